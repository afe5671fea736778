"""One layout, `(T, B, *features)`, padded at the end, with lengths beside it; the ways into it and out of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps, as_sequence, check_lengths


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
        x, y = self.inputs, self.targets
        inputs = (x[0].to(device), x[1], x[2].to(device)) if isinstance(x, tuple) else x.to(device)
        return replace(self, inputs=inputs, targets=None if y is None else y.to(device))


@asked("steps")
def steps(sequence: Steps) -> list[Tensor]:
    """The `T` steps `(B, *F)` of `(T, B, *F)`, as views, or of a list of steps: the "sequence of batches" of Flux.

    Raises `ValueError` if there is no step or they differ in shape.

    >>> [step.shape for step in steps(torch.zeros(3, 2, 5))] == [(2, 5)] * 3
    True
    """
    return list(as_sequence(sequence, "sequence").unbind(0))


@asked("get_inout_seq")
def get_inout_seq(batch: Any) -> tuple[Any, ...]:
    """Inputs and targets of a batch, in whatever form it came: `(inputs, targets)` or `(inputs, targets, lengths)`.

    A tuple is these already and a [SequenceBatch][rnnkit.SequenceBatch] holds them. In one sequence `(T, B, *F)`, or
    list of steps, each step's target is the step that follows; a `ValueError` where none does. Anything else is a
    `TypeError`. As in [issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144), its type says what it is.

    >>> inputs, targets = get_inout_seq(torch.arange(4).unsqueeze(1))
    >>> inputs.flatten().tolist(), targets.flatten().tolist()
    ([0, 1, 2], [1, 2, 3])
    """
    if isinstance(batch, tuple) and len(batch) in (2, 3):
        return batch
    if isinstance(batch, SequenceBatch):
        if batch.targets is not None:
            return tuple(batch)
        *source, sequence = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
        inputs, targets = get_inout_seq(sequence)
        inputs = (*source, inputs) if source else inputs
        if batch.lengths is None:
            return inputs, targets
        return inputs, targets, check_lengths(batch.lengths, *sequence.shape[:2], least=2) - 1
    if not isinstance(batch, Tensor | list):
        wanted = "a tuple of two or three, a SequenceBatch or one sequence"
        fix = "a tuple is a pair (inputs, targets); a list is the T steps of one sequence."
        raise Refusal(in_words(batch), wanted, fix, TypeError)
    sequence = as_sequence(batch, "a sequence", least=1)
    if len(sequence) < 2:
        fix = "one step has no next step to predict; drop it."
        raise Refusal(f"a sequence {in_words(sequence)}", "at least two steps", fix)
    return sequence[:-1], sequence[1:]


@asked("batchseq")
def batchseq(sequences: Sequence[Tensor], pad: float = 0.0) -> tuple[Tensor, Tensor]:
    """One batch `(max T_i, B, *F)` of `B` sequences `(T_i, *F)`, `pad` after their ends, and lengths, int64 `(B,)`.

    Raises `TypeError` if they are not tensors of one dtype, `ValueError` if none is there, one is empty or `F` differs.

    >>> padded, lengths = batchseq([torch.tensor([1, 2, 3]), torch.tensor([4])])
    >>> padded.T.tolist(), lengths.tolist()
    ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    items = list(sequences)
    if not items:
        raise Refusal("an empty list", "at least one sequence (T_i, *F)", "check the filter.")
    if (
        not all(isinstance(item, Tensor) for item in items)
        or len({item.dtype for item in items}) > 1
    ):
        came = ", ".join(
            sorted(
                {str(item.dtype) if isinstance(item, Tensor) else in_words(item) for item in items}
            )
        )
        raise Refusal(
            came, "tensors of one dtype", "torch.as_tensor(sequence, dtype=...).", TypeError
        )
    if any(item.ndim == 0 for item in items) or len({item.shape[1:] for item in items}) > 1:
        came = f"sequences {', '.join(sorted({in_words(item) for item in items})[:4])}"
        fix = "only the first dimension, time, may differ between sequences."
        raise Refusal(came, "sequences (T_i, *F) of equal F", fix)
    lengths = [len(item) for item in items]
    if 0 in lengths:
        came = f"an empty sequence at index {lengths.index(0)}"
        raise Refusal(came, "at least one step in each", "drop empty sequences.")
    return pad_sequence(items, padding_value=pad), torch.tensor(lengths)


@asked("unbatchseq")
def unbatchseq(padded: Steps, lengths: Tensor) -> list[Tensor]:
    """The `B` sequences `(lengths[i], *F)` of a batch `(T, B, *F)`, as views: undoes [batchseq][rnnkit.batchseq].

    Raises `TypeError` if the lengths are not int64 on the CPU, `ValueError` if they are not `(B,)`, each from 1 to `T`.

    >>> [s.tolist() for s in unbatchseq(torch.tensor([[1, 4], [2, 0]]), torch.tensor([2, 1]))]
    [[1, 2], [4]]
    """
    padded = as_sequence(padded, "padded")
    check_lengths(lengths, *padded.shape[:2])
    return [padded[:n, i] for i, n in enumerate(lengths.tolist())]
