"""How a model is called, and what it may declare.

A recurrent model is anything called like `torch.nn.LSTM`: `outputs, state = model(inputs, state)`,
with `state=None` at the start, inputs and outputs `(T, B, *F)`, or each a dict of such, and leaves
of the state `(layers, B, *F)`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from inspect import Parameter
from itertools import chain
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.rnn import PackedSequence
from torch.optim.swa_utils import AveragedModel

from .errors import Refusal, in_words
from .layout import (
    Sequences,
    as_sequences,
    between,
    check_lengths,
    check_state,
    extent,
    fill_padding,
    lengthened,
    pack,
    padded,
    parts_of,
    unpack,
)
from .signature import check_takes, parameters_of, takes
from .state import (
    State,
    leaves_of,
    map_leaves,
    onto,
    same_form,
    select_rows,
    shapes,
    where_rows,
)

Model: TypeAlias = Callable[..., Any]

# What to do about a state that cannot be taken apart by rows.
BATCH_IN_STATE = "give back a state whose leaves have the batch as dim 1."

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_COMPILED = "_orig_mod"  # the name of the only child of what torch.compile gives
# What gives PyTorch's own results from PyTorch's own parameters; models/gru.py adds its own.
FUSED: list[Any] = [nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward]
_DYNAMIC = "nn.quantized.dynamic.modules.rnn"  # where PyTorch keeps quantized ones, no nn.RNNBase


def _wrapped(model: Any) -> Any:
    if isinstance(model, _WRAPPERS):
        return model.module
    if isinstance(model, nn.Module) and _COMPILED in model.__dict__.get("_modules", ()):
        return model.get_submodule(_COMPILED)
    return None


def unwrap(model: Any) -> Any:
    """The model itself, behind wrappers and `torch.compile`."""
    return wrappers(model)[-1]


def _without_partial(model: Any) -> Any:
    while isinstance(model, partial):
        model = model.func
    return model


def wrappers(model: Any) -> list[Any]:
    """The model as given, what that is around, and so on to the model itself."""
    found = [model]
    while (inner := _wrapped(found[-1])) is not None:
        found.append(inner)
    return found


def runs(module: Any, *forwards: Any) -> bool:
    """Whether a module runs one of these `forward`s: a subclass with its own does not."""
    if not isinstance(module, nn.Module) or "forward" in module.__dict__:
        return False
    return getattr(type(module), "forward", None) in forwards  # a scripted one has none


def untouched(module: nn.Module) -> bool:
    """Whether a call is the class's own forward and nothing more."""
    for kind in ("forward", "forward_pre", "backward", "backward_pre"):
        everywhere = getattr(nn.modules.module, f"_global_{kind}_hooks")
        if everywhere or getattr(module, f"_{kind}_hooks"):
            return False
    return "forward" not in vars(module) and type(module).__call__ is nn.Module.__call__


class Declared:
    """What a model declares, as attributes of its class or of the object: the one table of it.

    | attribute | what it says | where it is absent |
    |---|---|---|
    | `bidirectional: bool` | outputs depend on later steps | whether a member's do |
    | `takes_packed: bool` | gives a `PackedSequence` for one | true of PyTorch's recurrent layers |
    | `batch_statistics: bool` | rows change each other's outputs | a batch norm that is training |
    | `initial_state(batch_size)` | what a row starts from, a state | zeros |
    | `encode(source, lengths)` | the first state that a source makes | a batch has no source |
    | `returns_output: bool` | a cell gives `(output, state)` | the cell is asked |
    """

    def __init__(self, model: Any) -> None:
        self.model = unwrap(_without_partial(model))

    @property
    def bidirectional(self) -> bool:
        own = getattr(self.model, "bidirectional", None)
        if own is not None:
            return bool(own)
        return any(Declared(child).bidirectional for child in self._children)

    @property
    def takes_packed(self) -> bool:
        own = getattr(self.model, "takes_packed", None)
        if own is not None:
            return bool(own)
        return _is_pytorchs_own(self.model)

    @property
    def batch_statistics(self) -> bool:
        own = getattr(self.model, "batch_statistics", None)
        if own is not None:
            return bool(own)
        if isinstance(self.model, _BatchNorm):
            return self.model.training or self.model.running_mean is None
        return any(Declared(child).batch_statistics for child in self._children)

    @property
    def encode(self) -> Callable[..., State] | None:
        return getattr(self.model, "encode", None)

    @property
    def returns_output(self) -> bool | None:
        return getattr(self.model, "returns_output", None)

    def initial_state(self, batch_size: int) -> State:
        own = getattr(self.model, "initial_state", None)
        if callable(own):
            return own(batch_size)
        if own is not None:
            raise Refusal(
                f"{in_words(own)} called initial_state in {type(self.model).__name__}",
                "a method initial_state(batch_size) that gives a state",
                "call the tensor another name and expand it to (layers, batch_size, *F) in the "
                "method.",
                TypeError,
            )
        if self.encode is None:
            self._refuse_a_hidden_start()
        return None

    def _refuse_a_hidden_start(self) -> None:
        """A member's own first state has a place in the model's state that only the model knows."""
        for member in _modules_of(self.model)[1:]:
            own = getattr(member, "initial_state", None)
            if own is None or (callable(own) and not leaves_of(own(1))):
                continue  # it starts from zeros
            name = type(self.model).__name__
            raise Refusal(
                f"{name}, whose member {type(member).__name__} has an initial_state",
                f"what a row of {name} starts from",
                f"give {name} a method initial_state(batch_size) that puts the member's into a "
                "state of its own form. See the page Models of your own.",
                TypeError,
            )

    @property
    def _children(self) -> list[nn.Module]:
        return list(self.model.children()) if isinstance(self.model, nn.Module) else []


def _modules_of(model: Any) -> list[nn.Module]:
    model = _without_partial(model)
    return list(model.modules()) if isinstance(model, nn.Module) else []


def _is_pytorchs_own(model: Any) -> bool:
    """Whether it is a recurrent layer as PyTorch runs it."""
    if isinstance(model, nn.RNNBase):
        return runs(model, *FUSED)
    kind = type(model)
    return kind.__module__.endswith(_DYNAMIC) and kind.__name__ in ("LSTM", "GRU")


def check_model(model: Model) -> None:
    """Refuse what cannot keep the contract: cells, `batch_first` modules, a split along time."""
    inner = unwrap(model)
    if not callable(inner) or isinstance(inner, type):
        fix = "nn.GRU(3, 8), for one."
        raise Refusal(in_words(inner), "outputs, state = model(inputs, state)", fix, TypeError)
    if isinstance(inner, nn.RNNCellBase):
        name = type(inner).__name__
        fix = f"Unroll({name}(...)) steps a cell over time."
        raise Refusal(f"a cell, {name}", "a model over (T, B, *F)", fix, TypeError)
    parameters = parameters_of(inner)
    _check_second(inner, parameters or [])
    if not takes(parameters, 2):
        if not takes(parameters, 1):
            check_takes(name_of(inner), inner, "inputs, state")
        came = f"{name_of(inner)}, which takes no state"
        fix = "RecurrentSequential threads the state through a stack of layers."
        raise Refusal(came, "outputs, state = model(inputs, state)", fix, TypeError)
    for module in _modules_of(model):
        if isinstance(module, nn.RNNBase) or _is_pytorchs_own(module):
            _check_time_first(module)
        if _splits(module) and module.dim != 1:
            fix = "nn.DataParallel(model, dim=1)."
            came = f"DataParallel(dim={module.dim})"
            raise Refusal(came, "the batch, dim 1, split over devices", fix)


def _check_second(model: Any, parameters: list[Parameter]) -> None:
    """Refuse a state that is not the second argument, whose place another would be given."""
    names = [parameter.name for parameter in parameters[1:]]
    if {"state", "hx"}.intersection(names) and names[0] not in ("state", "hx"):
        came = f"{name_of(model)}, whose second argument is {names[0]}, not its state"
        fix = "forward(self, inputs, state=None, ...)."
        raise Refusal(came, "outputs, state = model(inputs, state)", fix, TypeError)


def _check_time_first(module: Any) -> None:
    if module.batch_first:
        name = type(module).__name__
        fix = (
            f"build {name} without batch_first and transpose a (B, T, F) batch with "
            "x.transpose(0, 1)."
        )
        raise Refusal(f"{name}(batch_first=True)", "time as dim 0, the batch as dim 1", fix)


def check_call(
    model: Model,
    inputs: Sequences,
    state: State = None,
    lengths: Tensor | None = None,
    name: str = "inputs",
) -> Any:
    """The inputs `(T, B, *F)`, after what a boundary checks of a call."""
    inputs = as_sequences(inputs, name)
    time, batch = extent(inputs)
    check_model(model)
    check_state(state, batch)
    if lengths is not None:
        check_lengths(lengths, time, batch)
    return inputs


def encoded(model: Model, inputs: Any) -> tuple[Any, State]:
    """The inputs, and the first state that a source beside them makes, if there is one."""
    encode = Declared(model).encode
    if encode is None or not isinstance(inputs, tuple) or len(inputs) != 3:
        return inputs, None
    source, lengths, inputs = inputs
    inputs = as_sequences(inputs)
    state = encode(source, lengths)
    fix = "the source has the batch as dim 1, and the rows of the inputs."
    check_state(state, extent(inputs)[1], fix)
    return inputs, state


def check_one_way(model: Model, came: str, wanted: str, fix: str) -> None:
    if Declared(model).bidirectional:
        raise Refusal(f"a bidirectional model{came}", wanted, fix)


def call_model(model: Model, inputs: Any, state: State) -> tuple[Any, State]:
    """`outputs, state = model(inputs, state)`; anything else is refused."""
    try:
        result = model(inputs, state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError):
        if state is not None:
            _check_form(model, inputs, state)
        raise
    if not isinstance(result, tuple) or len(result) != 2:
        came = f"{in_words(result)} from {name_of(model)}"
        fix = (
            "return (outputs, state) like torch.nn.LSTM; RecurrentSequential does it for a stack "
            "of layers."
        )
        raise Refusal(came, "a pair (outputs, state)", fix, TypeError)
    return result


def _check_form(model: Model, inputs: Any, state: State) -> None:
    """Refuse a state that a model could not read, if it gives one of another form."""
    try:
        with torch.no_grad(), evaluating(model):
            _, own = model(inputs, None)
    except Exception:  # it is not the state
        return
    if not same_form(state, own):
        came = f"a state {shapes(state)} for {name_of(model)}"
        fix = "start with state=None, or pass the state that this model returned."
        raise Refusal(came, f"one of the form that it gives, {shapes(own)}", fix)


def run_model(
    model: Model, inputs: Any, state: State, lengths: Tensor | None = None, *, carry: bool = True
) -> tuple[Any, State]:
    """One run of `model` over `(T, B, *F)`; with `lengths` the state is each row's at its end.

    The model gets a copy, to which it may write: the inputs may be targets too, or be read again.

    Padding never changes a number. A model that reads forward is called on the whole batch. Packed
    is a batch where padding would change what is asked for: the outputs of a bidirectional member,
    batch statistics, or (`carry`) the state itself. A row of length 0 keeps its state.
    """
    if lengths is None or bool((lengths == extent(inputs)[0]).all()):
        outputs, state = call_model(model, map_leaves(torch.clone, inputs), state)
    else:
        outputs, state = _run_ragged(model, inputs, state, lengths, carry)
    if isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.is_floating_point():
        # PyTorch's own layers take (T, B) for the steps and features of one row.
        fix = "one sequence (T, F) is a batch with unsqueeze(1)."
        if _is_pytorchs_own(unwrap(model)):
            raise Refusal(f"inputs {in_words(inputs)}", "inputs (T, B, F)", fix)
        check_state(state, inputs.shape[1], fix)
    _check_outputs(outputs, inputs)
    return outputs, state


def _check_outputs(outputs: Any, inputs: Any) -> None:
    wanted = extent(inputs)
    if isinstance(outputs, Tensor) and outputs.ndim > 1 and extent(outputs) == wanted:
        return  # the usual case
    for part in parts_of(outputs):
        if not isinstance(part, Tensor) or tuple(part.shape[:2]) != wanted:
            raise Refusal(
                f"outputs {in_words(part)} for inputs {in_words(inputs)}",
                "the same T and B for both",
                "a model maps (T, B, *F) to (T, B, *O); which step is read is the loss's affair.",
            )


def _run_ragged(
    model: Model, inputs: Any, state: State, lengths: Tensor, carry: bool
) -> tuple[Any, State]:
    declared = Declared(model)
    both_ways = declared.bidirectional
    statistics = declared.batch_statistics
    if not (carry or both_ways or statistics):
        # What a model does at padding stays there; the data's own steps keep it finite.
        return call_model(model, fill_padding(inputs, lengths), state)

    # From here on padding would count.
    check_state(state, extent(inputs)[1], BATCH_IN_STATE)
    if declared.takes_packed and not _splits_batches(model):
        return _run_rows(_run_packed, model, inputs, state, lengths)
    if both_ways or statistics:
        raise _needs_packing(model, both_ways)
    # A model that reads forward gives the same without a row's padding as with it.
    return _run_rows(_run_by_length, model, inputs, state, lengths)


def _needs_packing(model: Model, both_ways: bool) -> Refusal:
    why = "batch statistics, in training mode,"
    if both_ways:
        why = "two directions"
    came = f"a model with {why} and rows of different length"
    if _splits_batches(model):
        return Refusal(
            f"{came} under DataParallel",
            "a model that takes a PackedSequence, which DataParallel cuts along its features",
            "use DistributedDataParallel, or pass rows of one length.",
        )
    return Refusal(
        came,
        "one that takes a PackedSequence, for padding would change its outputs: "
        f"{name_of(model)} does not say so",
        "let its forward hand a PackedSequence to its recurrent layer and give one back, and "
        "declare takes_packed = True in its class; or pass rows of one length. See the page "
        "Models of your own.",
    )


def _splits_batches(model: Any) -> bool:
    """Whether a part of the model is called on some rows at a time, by DataParallel."""
    return any(map(_splits, _modules_of(model)))


def _splits(module: nn.Module) -> TypeGuard[nn.DataParallel[nn.Module]]:
    return isinstance(module, nn.DataParallel) and len(module.device_ids) > 1


def _run_rows(
    run: Callable[..., tuple[Any, State]], model: Model, inputs: Any, state: State, lengths: Tensor
) -> tuple[Any, State]:
    """`run` on the rows that have a step; the others get outputs of zero and keep their state."""
    if bool(lengths.all()):
        return run(model, inputs, state, lengths)
    batch = len(lengths)
    rows = lengths.nonzero().squeeze(1)
    if len(rows):
        here = select_rows(inputs, rows)
        outputs, after = run(model, here, select_rows(state, rows), lengths[rows])
        outputs = spread_rows(outputs, rows, batch)
        after = spread_rows(after, rows, batch)
    else:
        # No row has a step: a call in evaluation says what outputs and a state look like.
        with torch.no_grad(), evaluating(model):
            outputs, after = call_model(model, inputs, state)
        outputs = map_leaves(torch.zeros_like, outputs)
    before = _first_state(model, batch) if state is None else state
    return outputs, where_rows(lengths > 0, after, before)


def spread_rows(tree: Any, rows: Tensor, batch: int) -> Any:
    """A tree of `(n, len(rows), *F)` as `(n, batch, *F)`, zero in other rows."""

    def spread(leaf: Tensor) -> Tensor:
        index = onto(rows, leaf.device)
        return leaf.new_zeros(len(leaf), batch, *leaf.shape[2:]).index_copy(1, index, leaf)

    return map_leaves(spread, tree)


def _run_packed(model: Model, inputs: Any, state: State, lengths: Tensor) -> tuple[Any, State]:
    packed = pack(inputs, lengths)
    outputs, state = call_model(model, packed, state)
    first = parts_of(packed)[0]
    for part in parts_of(outputs):
        if not isinstance(part, PackedSequence):
            fix = "a model with takes_packed = True gives a PackedSequence for a PackedSequence."
            came = f"{in_words(part)} from {name_of(model)}"
            raise Refusal(came, "a PackedSequence", fix, TypeError)
        same_order = part.sorted_indices is first.sorted_indices
        if same_order and torch.equal(part.batch_sizes, first.batch_sizes):
            continue  # the usual case, in which no device is asked

        # Rows of another length would be read as rows of this batch, without an error.
        given = unpack(part)[1]
        if not torch.equal(given, lengths):
            fix = (
                "repack what was unpacked with its own lengths, batch_sizes and indices; a source "
                "is shortened by an encode of your own."
            )
            came = f"rows of {given.tolist()} steps from {name_of(model)}"
            raise Refusal(came, f"rows of {lengths.tolist()} steps, as they came in", fix)
    return padded(outputs, extent(inputs)[0]), state


def _run_by_length(model: Model, inputs: Any, state: State, lengths: Tensor) -> tuple[Any, State]:
    """The rows of each length as one call, without padding."""
    time = extent(inputs)[0]
    rows: list[Tensor] = []
    outputs: list[Any] = []
    states: list[State] = []
    for length in lengths.unique().tolist():
        here = (lengths == length).nonzero().squeeze(1)
        part = select_rows(between(inputs, 0, length), here)
        out, after = call_model(model, part, select_rows(state, here))
        _check_outputs(out, part)
        check_state(after, len(here), BATCH_IN_STATE)
        rows.append(here)
        outputs.append(lengthened(out, time))
        states.append(after)

    # Side by side the rows stand in the order of their lengths: put them back.
    back = torch.cat(rows).argsort()
    return select_rows(_beside(outputs), back), select_rows(_beside(states), back)


def _beside(trees: list[Any]) -> Any:
    def beside(*leaves: Tensor) -> Tensor:
        if len({(len(leaf), leaf.shape[2:]) for leaf in leaves}) > 1:
            raise Refusal(
                f"state leaves {', '.join(map(in_words, leaves))} after rows of different length",
                "leaves of one shape but for the rows, (layers, B, *F)",
                "a state that grows with time wants rows of one length.",
            )
        return torch.cat(leaves, 1)

    return map_leaves(beside, *trees)


def restart_rows(model: Model, state: State, rows: Tensor | None) -> State:
    """The state with the model's first state in these rows, bool `(B,)`."""
    if rows is None or state is None or not bool(rows.any()):
        return state  # with no state, all rows start afresh in the model itself
    return where_rows(~rows, state, _first_state(model, len(rows)))


def _first_state(model: Model, batch: int) -> State:
    first = Declared(model).initial_state(batch)
    check_state(
        first, batch, "expand what is learned to (layers, batch_size, *F) in initial_state."
    )
    return first


def name_of(model: Model) -> str:
    model = unwrap(model)
    return getattr(model, "__name__", type(model).__name__)


@contextmanager
def evaluating(*models: Any) -> Generator[None]:
    """Evaluation mode inside, every module's own mode again after it.

    By `eval` and `train` themselves, in which a module may do more than set a flag.
    """
    # The owners of methods among them.
    owners = [getattr(model, "__self__", model) for model in map(_without_partial, models)]
    modules = list(chain.from_iterable(map(_modules_of, owners)))
    before = [getattr(module, "training", False) for module in modules]  # not in a frozen one
    if not any(before):
        yield
        return
    try:
        for model in owners:
            if isinstance(model, nn.Module):
                model.eval()
        yield
    finally:
        for module, training in zip(modules, before, strict=True):  # a parent before its children
            if module.training is not training:
                module.train(training)
