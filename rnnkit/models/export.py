"""A model for another program: through `torch.export` or as an ONNX file, compared with itself.

Exporters fix in silence what they should leave open. So nothing is given out before it gave what
the model gives at other numbers of steps and rows, from states that are not zero.
"""

import os
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..core.errors import Refusal, asked, at_least, check_kind, in_words
from ..core.files import write_whole
from ..core.layout import check_state, extent
from ..core.model import (
    BATCH_IN_STATE,
    call_model,
    check_call,
    check_one_way,
    evaluating,
    unwrap,
)
from ..core.state import State, leaves_of, map_leaves, select_rows

_STEPS = 5  # of the example that is exported, where their number stays open
_ROWS = 3  # of it; exporters take a dimension of 1 for a constant
_OTHERS = ((1, 1), (1, 7), (9, 1), (12, 7))  # steps and rows that what is exported is run at
_CLOSE = 1e-5  # how far a number may be off, absolutely, and relatively to numbers above 1


@asked("export_program")
def export_program(
    model: nn.Module, inputs: Any, *, steps: int | None = None, state: State = None
) -> ExportedProgram:
    """A model with its state going in and out, through `torch.export`, for any number of rows.

    The program is called with `(inputs, *leaves)` and gives `(outputs, *leaves)`: the sequences of
    a dict and the leaves of the state one by one, in their order. It computes what the model does
    in evaluation: it has run at 1 and 7 rows, and agrees to `1e-5`.

    `torch.export` keeps the number of steps of `nn.LSTM`, `nn.GRU` and `nn.RNN`, and of any loop
    over steps, which is refused. So export one step, or the chunk that will be called, with
    `steps`.

    Args:
        model: `outputs, state = model(inputs, state)`; wrappers are taken off.
        inputs: an example `(T, B, *F)`, or a dict of them. Its steps are drawn from to make others.
        steps: `T` of the program, 1 for a step; `None` leaves it open.
        state: an example state with the rows of `inputs`, for a model that cannot start without.

    Returns:
        The program; `program.module()` is called, `torch.export.save` writes it.

    Raises:
        TypeError: if the model is no module.
        ValueError: if it cannot be exported, `T` would be fixed though `steps` is `None`, or the
            program does not give what the model gives.

    Source: [torch.export](https://docs.pytorch.org/docs/stable/export.html).

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import export_program
    >>> program = export_program(nn.GRU(2, 4), torch.randn(10, 1, 2), steps=1).module()
    >>> outputs, state = program(torch.randn(1, 7, 2), torch.zeros(1, 7, 4))
    >>> outputs, state = program(torch.randn(1, 7, 2), state)
    >>> outputs.shape, state.shape
    (torch.Size([1, 7, 4]), torch.Size([1, 7, 4]))
    """
    form = _form_of(model, inputs, steps, state)
    with evaluating(form.model), torch.no_grad():
        example = tuple(form.draw(steps or _STEPS, _ROWS))
        rows = Dim("rows")
        time = Dim.AUTO if steps is None else Dim.STATIC
        shapes = [{0: time, 1: rows} for _ in form.inputs] + [{1: rows} for _ in form.state]
        with _told("torch.export"):
            program = torch.export.export(
                form.flat, example, dynamic_shapes=(tuple(shapes),), strict=False
            )
        if steps is None:
            _refuse_a_fixed_length(form, program)
        _compare(form, steps, program.module(), "the program of torch.export")
    return program


@asked("export_onnx")
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Any,
    *,
    steps: int | None = None,
    state: State = None,
) -> None:
    """A model with its state going in and out as an ONNX file, for any number of steps and rows.

    The file has the inputs `inputs`, `state_0`, ... and the outputs `outputs`, `new_state_0`, ...,
    with the state as in [export_program][rnnkit.export_program]; of a dict each sequence is called
    `inputs_NAME`, `outputs_NAME`. It computes what the model does in evaluation: it has run under
    onnxruntime at 1, 9 and 12 steps with 1 and 7 rows, and agrees to `1e-5`.

    `nn.LSTM`, `nn.GRU` and `nn.RNN` become ONNX's own operators, which take any number of steps. A
    loop over steps, as in [Unroll][rnnkit.Unroll], is written out step by step, so it is refused
    without `steps`.

    Args:
        model: `outputs, state = model(inputs, state)`; wrappers are taken off.
        path: the file to write, replaced once the new one is right.
        inputs: an example `(T, B, *F)`, or a dict of them. Its steps are drawn from to make others.
        steps: `T` of the file, 1 for a step; `None` leaves it open.
        state: an example state with the rows of `inputs`, for a model that cannot start without.

    Raises:
        TypeError: if the model is no module.
        ValueError: if it is not float32, cannot be exported, or the file does not give what the
            model gives.
        OSError: if the file cannot be written.
        ImportError: without the extra `rnnkit[export]`.

    Source: [the operator LSTM of ONNX](https://onnx.ai/onnx/operators/onnx__LSTM.html).

    >>> import os, tempfile
    >>> import onnxruntime, torch
    >>> from torch import nn
    >>> from rnnkit import export_onnx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gru.onnx")
    ...     export_onnx(nn.GRU(2, 4), path, torch.randn(10, 1, 2))
    ...     session = onnxruntime.InferenceSession(path)
    >>> [(value.name, value.shape) for value in session.get_inputs()]
    [('inputs', ['steps', 'rows', 2]), ('state_0', [1, 'rows', 4])]
    """
    runtime = _onnxruntime()
    check_kind("path", path, (str, os.PathLike), "a path", "name the file to write.")
    form = _form_of(model, inputs, steps, state)
    _check_dtype(form.model)
    with evaluating(form.model), torch.no_grad():
        data = _onnx(form, steps)
        with _told("onnxruntime"):
            options = runtime.SessionOptions()
            options.log_severity_level = 4  # what it would log comes as an exception, too
            session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        known = {value.name for value in session.get_inputs()}

        def run(*tensors: Tensor) -> list[Tensor]:
            named = zip(form.names, tensors, strict=True)
            # What the outputs do not depend on, the exporter leaves out.
            given = {name: tensor.cpu().numpy() for name, tensor in named if name in known}
            return list(map(torch.from_numpy, session.run(None, given)))

        _compare(form, steps, run, "the ONNX file")
    write_whole(Path(path), data, "make room, or choose another place.")


class _Flat(nn.Module):
    """A model called with the leaves of its inputs and state, which gives leaves too."""

    def __init__(self, model: nn.Module, inputs: Any, state: State) -> None:
        super().__init__()
        self.model = model
        self._example = (inputs, state)  # in a tuple, its tensors are no part of the module
        self.training = False  # else the exporters would put the model into training after

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = iter(tensors)
        inputs, state = map_leaves(lambda _: next(leaves), self._example)
        outputs, state = call_model(self.model, inputs, state)
        return (*leaves_of(outputs), *leaves_of(state))


class _Form(NamedTuple):
    model: nn.Module
    flat: _Flat
    example: Any  # inputs (T, B, *F) whose steps are drawn from
    start: State  # a state with the rows of the example, or None
    inputs: list[str]
    outputs: list[str]
    state: list[str]

    @property
    def names(self) -> list[str]:
        return self.inputs + self.state

    @property
    def results(self) -> list[str]:
        return self.outputs + [f"new_{name}" for name in self.state]

    def draw(self, time: int, rows: int) -> list[Tensor]:
        batch = extent(self.example)[1]
        start = select_rows(self.start, torch.arange(rows) % batch)
        _, state = call_model(self.model, _drawn(self.example, _STEPS, rows), start)
        return [*leaves_of(_drawn(self.example, time, rows)), *leaves_of(state)]


def _form_of(model: Any, inputs: Any, steps: int | None, state: State) -> _Form:
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        fix = "put the call into a module's forward."
        raise Refusal(in_words(model), "a torch.nn.Module", fix, TypeError)
    if steps is not None:
        at_least("steps", steps, 1, "1 exports a step, None a sequence of any length.")
        check_one_way(
            model,
            f" in pieces of steps={steps}",
            "one that reads forward",
            "a piece has not seen the steps after it: export whole sequences, without steps.",
        )
    inputs = check_call(model, inputs, state)
    with evaluating(model), torch.no_grad():
        given = map_leaves(torch.clone, inputs)  # to which the model may write
        outputs, after = call_model(model, given, state)
    check_state(after, extent(inputs)[1], BATCH_IN_STATE)
    leaves = [f"state_{i}" for i in range(len(leaves_of(after)))]
    flat = _Flat(model, inputs, after)
    return _Form(
        model, flat, inputs, state, _names("inputs", inputs), _names("outputs", outputs), leaves
    )


def _names(name: str, sequences: Any) -> list[str]:
    if isinstance(sequences, dict):
        return [f"{name}_{key}" for key in sequences]
    return [name]


def _drawn(inputs: Any, time: int, rows: int) -> Any:
    """Steps drawn from a sequence, always the same."""
    length, batch = extent(inputs)
    generator = torch.Generator().manual_seed(time)
    steps = torch.randint(length * batch, (time * rows,), generator=generator)

    def draw(part: Tensor) -> Tensor:
        chosen = part.flatten(0, 1)[steps.to(part.device)]  # (time * rows, *F)
        return chosen.unflatten(0, (time, rows))

    return map_leaves(draw, inputs)


def _refuse_a_fixed_length(form: _Form, program: ExportedProgram) -> None:
    try:
        program.module()(*form.draw(_STEPS + 1, _ROWS))
    except (AssertionError, RuntimeError):  # a guard of the program; in torch 2.6 another
        raise Refusal(
            f"a program of torch.export that takes the {_STEPS} steps of its example only",
            "one for any number of steps",
            "torch.export keeps T of nn.LSTM, nn.GRU, nn.RNN and of a loop over steps: pass "
            "steps=1 and loop outside, or use export_onnx, which leaves T open for the three.",
        ) from None


def _onnx(form: _Form, steps: int | None) -> bytes:
    open_axes = {name: {1: "rows"} for name in form.names + form.results}
    if steps is None:
        for name in form.inputs + form.outputs:
            open_axes[name][0] = "steps"
    with TemporaryDirectory() as folder, _told("torch.onnx.export"):
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            form.flat,
            tuple(form.draw(steps or _STEPS, _ROWS)),
            file,
            input_names=form.names,
            output_names=form.results,
            dynamic_axes=open_axes,
            dynamo=False,
        )
        return file.read_bytes()


def _onnxruntime() -> Any:
    try:
        import_module("onnx")  # the exporter needs it
        return import_module("onnxruntime")
    except ModuleNotFoundError as error:
        fix = "pip install 'rnnkit[export]'."
        raise Refusal(
            f"no package {error.name}", "one that runs ONNX files", fix, ImportError
        ) from error


def _check_dtype(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise Refusal(
                f"weights of {weight.dtype}, {name} the first",
                "torch.float32, for which onnxruntime has recurrent operators",
                "export copy.deepcopy(model).float().",
            )


def _compare(form: _Form, steps: int | None, run: Callable[..., Any], what: str) -> None:
    sizes = _OTHERS if steps is None else ((steps, 1), (steps, 7))
    for time, rows in sizes:
        tensors = form.draw(time, rows)
        wanted = form.flat(*map(torch.clone, tensors))  # it may write to them
        try:
            got = list(run(*tensors))
        except Exception as error:
            difference = _reason(error)
        else:
            difference = _difference(got, wanted)
        if difference is not None:
            raise Refusal(
                f"{what}, which at T = {time}, B = {rows} is not the model: {difference}",
                "the model's outputs and state",
                "an exporter keeps what Python computed for its example, such as the number of "
                "steps of a loop: pass steps=1 and loop outside, or use nn.LSTM, nn.GRU, nn.RNN.",
            )


def _difference(got: list[Tensor], wanted: tuple[Tensor, ...]) -> str | None:
    for ours, theirs in zip(wanted, got, strict=True):
        ours = ours.cpu()
        if theirs.shape != ours.shape:
            return f"{in_words(theirs)} for {in_words(ours)}"
        if not torch.allclose(theirs, ours, rtol=_CLOSE, atol=_CLOSE, equal_nan=True):
            return f"a number is off by {(theirs - ours).abs().max():.1e}"
    return None


@contextmanager
def _told(who: str) -> Generator[None]:
    """Another package's work: its error is our reason, its warnings of the model are heard."""
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.filterwarnings("default", ".* the trace")
            warnings.filterwarnings("ignore", module=r"(torch|rnnkit)\.")
            yield
    except Exception as error:
        raise Refusal(
            f"a model that {who} does not take ({_reason(error)})",
            "one that it exports",
            "export the parts that it does take, and do the rest outside; the page Export names "
            "what it does not.",
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error), 200)}"
