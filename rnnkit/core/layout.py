"""The layout rule: what a sequence is, its lengths, its valid steps."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .errors import refuse, shape
from .state import State, map_leaves

Steps: TypeAlias = Tensor | Sequence[Tensor]


def as_sequence(sequence: Steps, call: str, name: str = "inputs", least: int = 2) -> Tensor:
    """A sequence `(T, B, *F)`, from itself or from a list of `T` steps `(B, *F)`."""
    if type(sequence) is Tensor and sequence.ndim > 1 and sequence.numel():
        return sequence
    if isinstance(sequence, Sequence) and not isinstance(sequence, str | PackedSequence):
        wanted, fix = "a list of steps (B, *F)", "pass at least one step, each a tensor (B, *F)."
        if not sequence:
            raise refuse(call, f"{name} = an empty list", wanted, fix)
        if not all(isinstance(step, Tensor) for step in sequence):
            raise refuse(call, f"{name} = a list that holds {shape(sequence[0])}", wanted, fix, TypeError)
        if len({step.shape for step in sequence}) > 1:
            shapes = ", ".join(map(shape, sequence[:4]))
            fix = "a list is T steps of one batch; sequences of unequal length go through batchseq."
            raise refuse(call, f"{name} = a list of {shapes}", "steps of equal shape (B, *F)", fix)
        sequence = torch.stack(tuple(sequence))
    if not isinstance(sequence, Tensor):
        fix = "stack the steps along a first dimension, time."
        raise refuse(call, f"{name} = {shape(sequence)}", "a tensor (T, B, *F) or a list of steps", fix, TypeError)
    if sequence.ndim < least:
        fix = "time is dim 0 and the batch is dim 1; give a single sequence a batch of one with unsqueeze(1)."
        raise refuse(call, f"{name} {shape(sequence)}", f"{name} (T, B, *F)", fix)
    if 0 in sequence.shape[:2]:
        raise refuse(call, f"empty {name} {shape(sequence)}", "at least one step and one row", "drop empty sequences.")
    return sequence


def check_lengths(lengths: Tensor, time: int, batch: int, call: str, least: int = 1) -> Tensor:
    """Lengths as they must be: int64, on the CPU, `(B,)`, each between `least` and `T`."""
    fix = "lengths is what batchseq and pad_collate return: torch.tensor([len(s) for s in sequences])."
    wanted = f"an int64 CPU tensor ({batch},)"
    if not isinstance(lengths, Tensor):
        raise refuse(call, f"lengths = {shape(lengths)}", wanted, fix, TypeError)
    if lengths.dtype != torch.int64 or lengths.device.type != "cpu":
        came = f"lengths of {lengths.dtype} on {lengths.device}"
        raise refuse(call, came, wanted, "lengths.to('cpu', torch.int64).", TypeError)
    if lengths.shape != (batch,):
        raise refuse(call, f"lengths {shape(lengths)} for a batch of {batch}", wanted, fix)
    low, high = int(lengths.min()), int(lengths.max())
    if low < least or high > time:
        fix = "drop empty sequences; lengths count the steps of each row before padding."
        raise refuse(call, f"lengths from {low} to {high}", f"lengths from {least} to T = {time}", fix)
    return lengths


def check_state(
    state: State,
    batch: int,
    call: str,
    fix: str = "start with state=None, or keep the rows that go on with select_rows(state, rows).",
) -> None:
    """Every leaf of a state that comes in must have the batch as dim 1."""

    def check(leaf: Tensor) -> Tensor:
        if leaf.ndim < 2 or leaf.shape[1] != batch:
            raise refuse(call, f"a state leaf {shape(leaf)} for a batch of {batch}", f"(layers, {batch}, *F)", fix)
        return leaf

    map_leaves(check, state)


def valid_steps(outputs: Tensor, lengths: Tensor | None) -> int:
    """The steps of all rows `(T, B)` that are not padding."""
    return outputs.shape[0] * outputs.shape[1] if lengths is None else int(lengths.sum())
