"""How a model is called, and what it may declare.

A recurrent model is anything called like `torch.nn.LSTM`: `outputs, state = model(inputs, state)`, with
`state=None` at the start, `inputs` and `outputs` of shape `(T, B, *features)` and every leaf of `state` of shape
`(layers, B, *features)`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .errors import refuse, shape
from .layout import Steps, as_sequence, check_lengths, check_state
from .state import State, map_leaves, select_rows, where_rows

Model: TypeAlias = Callable[..., Any]
Sampler: TypeAlias = Callable[[Tensor], Tensor]


def check_model(model: Model, call: str) -> None:
    """Refuse what cannot keep the contract: cells, `batch_first` modules."""
    if isinstance(model, nn.RNNCellBase):
        fix = f"Unroll({type(model).__name__}(...)) steps a cell over time."
        raise refuse(call, f"a cell, {type(model).__name__}", "a model over (T, B, *F)", fix, TypeError)
    if isinstance(model, nn.Linear | nn.Sequential) and not getattr(model, "recurrent", ()):
        fix = "RecurrentSequential threads the state through a stack of layers."
        came = f"{type(model).__name__}, which takes no state"
        raise refuse(call, came, "outputs, state = model(inputs, state)", fix, TypeError)
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, nn.RNNBase) and module.batch_first:
            name = type(module).__name__
            fix = f"build {name} without batch_first and transpose a (B, T, F) batch with x.transpose(0, 1)."
            raise refuse(call, f"{name}(batch_first=True)", "time as dim 0, the batch as dim 1", fix)


def check_call(
    call: str, model: Model, inputs: Steps, state: State = None, lengths: Tensor | None = None, name: str = "inputs"
) -> Tensor:
    """The inputs `(T, B, *F)` that a model is to be called on, after what a boundary checks."""
    inputs = as_sequence(inputs, call, name)
    check_model(model, call)
    check_state(state, inputs.shape[1], call)
    if lengths is not None:
        check_lengths(lengths, len(inputs), inputs.shape[1], call)
    return inputs


def call_model(model: Model, inputs: Any, state: State, call: str) -> tuple[Any, State]:
    """`outputs, state = model(inputs, state)`, or a clear error where the model gives something else."""
    result = model(inputs, state)
    if not isinstance(result, tuple) or len(result) != 2:
        fix = "return (outputs, state) like torch.nn.LSTM; RecurrentSequential does it for a stack of layers."
        raise refuse(call, f"{shape(result)} from {_name(model)}", "a pair (outputs, state)", fix, TypeError)
    return result


def is_bidirectional(model: Model) -> bool:
    """Whether some member reads the sequence backward too, so that padding and the future change its outputs."""
    if not isinstance(model, nn.Module):
        return False
    own = getattr(model, "bidirectional", None)
    return any(getattr(m, "bidirectional", False) is True for m in model.modules()) if own is None else bool(own)


def check_one_way(model: Model, call: str, came: str, wanted: str, fix: str) -> None:
    """Refuse a model that reads time in both directions."""
    if is_bidirectional(model):
        raise refuse(call, f"a bidirectional model{came}", wanted, fix)


def run_model(
    model: Model, inputs: Tensor, state: State, lengths: Tensor | None, call: str, carry: bool = True
) -> tuple[Tensor, State]:
    """One call of `model` over `(T, B, *F)`; with `lengths` the state is each row's at its own last step.

    Packs only where padding would change what is asked for: a bidirectional member, or (`carry`) the state itself.
    A row of length 0 keeps the state it came with. A model that takes no `PackedSequence` is stepped instead.
    """
    if lengths is None or not (carry or is_bidirectional(model)) or bool((lengths == len(inputs)).all()):
        outputs, state = call_model(model, inputs, state, call)
    elif isinstance(model, nn.RNNBase) or getattr(model, "takes_packed", False):
        outputs, state = _run_packed(model, inputs, state, lengths, call)
    else:
        parts: list[Tensor] = []
        for t, step in enumerate(inputs.split(1)):
            out, new = call_model(model, step, state, call)
            parts.append(out)
            state = where_rows(lengths > t, new, state)
        outputs = torch.cat(parts)
    if not isinstance(outputs, Tensor) or outputs.shape[:2] != inputs.shape[:2]:
        fix = "a model maps (T, B, *F) to (T, B, *O); to read one step of it is the loss's affair."
        raise refuse(call, f"outputs {shape(outputs)} for inputs {shape(inputs)}", "the same T and B for both", fix)
    return outputs, state


def _run_packed(model: Model, inputs: Tensor, state: State, lengths: Tensor, call: str) -> tuple[Tensor, State]:
    rows = lengths.nonzero().squeeze(1)
    if len(rows) < len(lengths):
        index = rows.to(inputs.device)
        some, new = _run_packed(model, inputs[:, index], select_rows(state, index), lengths[rows], call)
        outputs = some.new_zeros(len(inputs), len(lengths), *some.shape[2:]).index_copy(1, index, some)

        def spread(leaf: Tensor) -> Tensor:
            return leaf.new_zeros(len(leaf), len(lengths), *leaf.shape[2:]).index_copy(1, index, leaf)

        return outputs, where_rows(lengths > 0, map_leaves(spread, new), state)
    packed = pack_padded_sequence(inputs, lengths, enforce_sorted=False)
    outputs, state = call_model(model, packed, state, call)
    if not isinstance(outputs, PackedSequence):
        fix = "a model with takes_packed = True gives a PackedSequence for a PackedSequence."
        raise refuse(call, f"{shape(outputs)} from {_name(model)}", "a PackedSequence", fix, TypeError)
    return pad_packed_sequence(outputs, total_length=len(inputs))[0], state


def _name(model: Model) -> str:
    return getattr(model, "__name__", type(model).__name__)


@contextmanager
def evaluating(model: Model) -> Generator[None]:
    """Evaluation mode inside, every module's own mode again after it."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
