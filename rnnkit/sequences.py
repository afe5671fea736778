"""Sequences and batches: one layout, `(T, B, *features)`, and the ways into it and out of it.

Time is dim 0 and the batch is dim 1, everywhere. Sequences of different length are padded at the end, with their
lengths beside them as an int64 CPU tensor `(B,)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_sequence

from ._contract import Steps, as_sequence, check_lengths, refuse, shape

__all__ = ["SequenceBatch", "batchseq", "get_inout_seq", "pad_collate", "steps", "unbatchseq"]


@dataclass(frozen=True)
class SequenceBatch:
    """One batch of sequences; iterating over it gives those of inputs, targets and lengths that are there.

    Attributes:
        inputs: `(T, B, *F)`; an encoder-decoder takes `(source, source_lengths, inputs)`.
        targets: `(T, B, *Y)` or, one a sequence, `(B, *Y)`; `None` where the inputs, shifted by one, are the targets.
        lengths: int64 CPU `(B,)`, or `None` where every row has `T` steps.
        restart: bool `(B,)`, the rows that start afresh here and do not go on from the batch before; or `None`.

    >>> inputs, targets = SequenceBatch(torch.zeros(5, 2, 1), torch.zeros(5, 2, 1))
    """

    inputs: Any
    targets: Tensor | None = None
    lengths: Tensor | None = None
    restart: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return (part for part in (self.inputs, self.targets, self.lengths) if part is not None)

    def to(self, device: torch.device | str) -> "SequenceBatch":
        """The same batch with inputs and targets on `device`; lengths and restart stay on the CPU."""
        inputs: Any = self.inputs
        if isinstance(inputs, tuple):
            source, lengths, inner = inputs
            inputs = (source.to(device), lengths, inner.to(device))
        else:
            inputs = inputs.to(device)
        return replace(self, inputs=inputs, targets=None if self.targets is None else self.targets.to(device))


def steps(sequence: Steps) -> list[Tensor]:
    """The `T` steps `(B, *F)` of a sequence: the "sequence of batches" of the Flux world.

    Args:
        sequence: `(T, B, *F)`, or a list of steps already.

    Returns:
        A list of `T` tensors `(B, *F)`, views where a tensor was given.

    Raises:
        ValueError: if it is empty or its steps differ in shape.

    >>> [step.shape for step in steps(torch.zeros(3, 2, 5))] == [(2, 5)] * 3
    True
    """
    return list(as_sequence(sequence, "steps", "sequence").unbind(0))


def get_inout_seq(batch: Any) -> tuple[Any, ...]:
    """Inputs and targets of a batch, in whatever form the batch came.

    Args:
        batch: a tuple `(inputs, targets)` or `(inputs, targets, lengths)`, returned as it is; a
            [SequenceBatch][rnnkit.SequenceBatch]; or one sequence `(T, B, *F)`, or a list of its steps, which gives
            itself without its last step and without its first: each step's target is the step that follows.

    Returns:
        `(inputs, targets)` or `(inputs, targets, lengths)`.

    Raises:
        TypeError: if the batch has another form.
        ValueError: if a sequence has fewer than two steps.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144), which tells a pair from
    a sequence by their type, as here.

    >>> inputs, targets = get_inout_seq(torch.arange(4).unsqueeze(1))
    >>> inputs.flatten().tolist(), targets.flatten().tolist()
    ([0, 1, 2], [1, 2, 3])
    """
    if isinstance(batch, SequenceBatch):
        if batch.targets is not None:
            return tuple(batch)
        inputs, targets = get_inout_seq(batch.inputs)
        if batch.lengths is None:
            return inputs, targets
        check_lengths(batch.lengths, len(batch.inputs), batch.inputs.shape[1], "get_inout_seq", least=2)
        return inputs, targets, batch.lengths - 1
    if isinstance(batch, tuple) and not isinstance(batch, PackedSequence):
        parts: tuple[Any, ...] = batch
        if len(parts) in (2, 3):
            return parts
    elif isinstance(batch, Tensor | list):
        sequence = as_sequence(batch, "get_inout_seq", "a sequence", least=1)
        if len(sequence) < 2:
            fix = "one step has no next step to predict; drop it."
            raise refuse("get_inout_seq", f"a sequence {shape(sequence)}", "at least two steps", fix)
        return sequence[:-1], sequence[1:]
    fix = "a tuple is a pair (inputs, targets); a list is the T steps of one sequence."
    came = shape(batch)
    raise refuse("get_inout_seq", came, "a tuple of two or three, a SequenceBatch or one sequence", fix, TypeError)


def batchseq(sequences: Sequence[Tensor], pad: float = 0.0) -> tuple[Tensor, Tensor]:
    """One padded batch of `B` sequences of different length.

    Args:
        sequences: `B` tensors `(T_i, *F)` of equal `F` and dtype.
        pad: what stands after the end of a shorter sequence.

    Returns:
        The batch `(max T_i, B, *F)` and the lengths, int64 `(B,)`.

    Raises:
        ValueError: if there is no sequence, one is empty, or their features differ.
        TypeError: if they are not tensors of one dtype.

    >>> padded, lengths = batchseq([torch.tensor([1, 2, 3]), torch.tensor([4])])
    >>> padded.T.tolist(), lengths.tolist()
    ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    items = list(sequences)
    if not items:
        raise refuse("batchseq", "an empty list", "at least one sequence (T_i, *F)", "check the filter.")
    if not all(isinstance(item, Tensor) for item in items) or len({item.dtype for item in items}) > 1:
        came = ", ".join(sorted({str(item.dtype) if isinstance(item, Tensor) else shape(item) for item in items}))
        raise refuse("batchseq", came, "tensors of one dtype", "torch.as_tensor(sequence, dtype=...).", TypeError)
    if any(item.ndim == 0 for item in items) or len({item.shape[1:] for item in items}) > 1:
        came = ", ".join(sorted({shape(item) for item in items})[:4])
        fix = "only the first dimension, time, may differ between sequences."
        raise refuse("batchseq", f"sequences {came}", "sequences (T_i, *F) of equal F", fix)
    lengths = torch.tensor([len(item) for item in items])
    if not lengths.all():
        came = f"an empty sequence at index {int((lengths == 0).nonzero()[0])}"
        raise refuse("batchseq", came, "at least one step in each", "drop empty sequences.")
    return pad_sequence(items, padding_value=pad), lengths


def unbatchseq(padded: Steps, lengths: Tensor) -> list[Tensor]:
    """The sequences of a padded batch, each at its own length: the inverse of [batchseq][rnnkit.batchseq].

    Args:
        padded: `(T, B, *F)`.
        lengths: int64 CPU `(B,)`, from 1 to `T`.

    Returns:
        `B` tensors `(lengths[i], *F)`, views of the batch.

    Raises:
        ValueError: if the lengths do not fit the batch.
        TypeError: if they are not int64 on the CPU.

    >>> [s.tolist() for s in unbatchseq(torch.tensor([[1, 4], [2, 0]]), torch.tensor([2, 1]))]
    [[1, 2], [4]]
    """
    padded = as_sequence(padded, "unbatchseq", "padded")
    check_lengths(lengths, padded.shape[0], padded.shape[1], "unbatchseq")
    return [padded[:n, i] for i, n in enumerate(lengths.tolist())]


def pad_collate(items: Sequence[Any], per: Literal["step", "sequence"] = "step", pad: float = 0.0) -> SequenceBatch:
    """[batchseq][rnnkit.batchseq] as the `collate_fn` of a `torch.utils.data.DataLoader`.

    Args:
        items: sequences `(T_i, *F)`, or pairs of a sequence and its target. A number or a tensor without dimensions
            is the one target of its sequence.
        per: what a target tensor with dimensions belongs to: each step, `(T_i, *Y)`, padded like the inputs, or the
            `"sequence"`, `(*Y)`, stacked. Nothing is guessed from its shape.
        pad: what stands after the end of a shorter sequence.

    Returns:
        A batch with `inputs (T, B, *F)`, `lengths (B,)` and `targets` `(T, B, *Y)`, `(B, *Y)` or `None`.

    Raises:
        ValueError: if features differ, or a target a step has not the length of its sequence.
        TypeError: if the items are neither sequences nor pairs.

    >>> inputs, targets, lengths = pad_collate([(torch.zeros(3, 1), 0), (torch.zeros(5, 1), 1)])
    >>> inputs.shape, targets.tolist(), lengths.tolist()
    (torch.Size([5, 2, 1]), [0, 1], [3, 5])
    """
    if per not in ("step", "sequence"):
        fix = 'a target for each step is "step", one for a sequence is "sequence".'
        raise refuse("pad_collate", f"per={per!r}", '"step" or "sequence"', fix)
    if not items:
        raise refuse("pad_collate", "an empty list", "at least one item", "check the batch sampler.")
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        inputs, lengths = batchseq(items, pad)
        return SequenceBatch(inputs, lengths=lengths)
    inputs, lengths = batchseq([item[0] for item in items], pad)
    targets = [torch.as_tensor(item[1]) for item in items]
    if per == "sequence" or all(target.ndim == 0 for target in targets):
        return SequenceBatch(inputs, torch.stack(targets), lengths)
    for i, target in enumerate(targets):
        if target.ndim == 0 or len(target) != lengths[i]:
            came = f"a target {shape(target)} for a sequence of {int(lengths[i])} steps at index {i}"
            fix = 'one target for the whole sequence is functools.partial(pad_collate, per="sequence").'
            raise refuse("pad_collate", came, "a target for every step", fix)
    return SequenceBatch(inputs, batchseq(targets, pad)[0], lengths)
