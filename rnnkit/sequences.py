"""One layout, `(T, B, *features)`, padded at the end, with lengths beside it; the ways into it and out of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from ._contract import Steps, as_sequence, check_lengths, refuse, shape


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


def steps(sequence: Steps) -> list[Tensor]:
    """The `T` steps `(B, *F)` of `(T, B, *F)`, as views, or of a list of steps: the "sequence of batches" of Flux.

    Raises `ValueError` if there is no step or they differ in shape.

    >>> [step.shape for step in steps(torch.zeros(3, 2, 5))] == [(2, 5)] * 3
    True
    """
    return list(as_sequence(sequence, "steps", "sequence").unbind(0))


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
        return inputs, targets, check_lengths(batch.lengths, *sequence.shape[:2], call="get_inout_seq", least=2) - 1
    if not isinstance(batch, Tensor | list):
        wanted = "a tuple of two or three, a SequenceBatch or one sequence"
        fix = "a tuple is a pair (inputs, targets); a list is the T steps of one sequence."
        raise refuse("get_inout_seq", shape(batch), wanted, fix, TypeError)
    sequence = as_sequence(batch, "get_inout_seq", "a sequence", least=1)
    if len(sequence) < 2:
        fix = "one step has no next step to predict; drop it."
        raise refuse("get_inout_seq", f"a sequence {shape(sequence)}", "at least two steps", fix)
    return sequence[:-1], sequence[1:]


def batchseq(sequences: Sequence[Tensor], pad: float = 0.0) -> tuple[Tensor, Tensor]:
    """One batch `(max T_i, B, *F)` of `B` sequences `(T_i, *F)`, `pad` after their ends, and lengths, int64 `(B,)`.

    Raises `TypeError` if they are not tensors of one dtype, `ValueError` if none is there, one is empty or `F` differs.

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
        came = f"sequences {', '.join(sorted({shape(item) for item in items})[:4])}"
        fix = "only the first dimension, time, may differ between sequences."
        raise refuse("batchseq", came, "sequences (T_i, *F) of equal F", fix)
    lengths = [len(item) for item in items]
    if 0 in lengths:
        came = f"an empty sequence at index {lengths.index(0)}"
        raise refuse("batchseq", came, "at least one step in each", "drop empty sequences.")
    return pad_sequence(items, padding_value=pad), torch.tensor(lengths)


def unbatchseq(padded: Steps, lengths: Tensor) -> list[Tensor]:
    """The `B` sequences `(lengths[i], *F)` of a batch `(T, B, *F)`, as views: undoes [batchseq][rnnkit.batchseq].

    Raises `TypeError` if the lengths are not int64 on the CPU, `ValueError` if they are not `(B,)`, each from 1 to `T`.

    >>> [s.tolist() for s in unbatchseq(torch.tensor([[1, 4], [2, 0]]), torch.tensor([2, 1]))]
    [[1, 2], [4]]
    """
    padded = as_sequence(padded, "unbatchseq", "padded")
    check_lengths(lengths, *padded.shape[:2], call="unbatchseq")
    return [padded[:n, i] for i, n in enumerate(lengths.tolist())]


def pad_collate(items: Sequence[Any], per: Literal["step", "sequence"] = "step", pad: float = 0.0) -> SequenceBatch:
    """[batchseq][rnnkit.batchseq] as a `DataLoader`'s `collate_fn`: inputs `(T, B, *F)`, lengths `(B,)`, any targets.

    Args:
        items: sequences `(T_i, *F)`, or pairs of a sequence and its target; a `TypeError` if they are neither.
        per: what a target belongs to: each step, `(T_i, *Y)`, padded to `(T, B, *Y)` (a `ValueError` if `T_i` is not
            that of its sequence), or the whole `"sequence"`, `(*Y)`, stacked to `(B, *Y)`, as numbers always are.
        pad: what stands after the end of a shorter sequence.

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
    for i, (target, length) in enumerate(zip(targets, lengths.tolist(), strict=True)):
        if target.ndim == 0 or len(target) != length:
            came = f"a target {shape(target)} for a sequence of {length} steps at index {i}"
            fix = 'one target for the whole sequence is functools.partial(pad_collate, per="sequence").'
            raise refuse("pad_collate", came, "a target for every step", fix)
    return SequenceBatch(inputs, batchseq(targets, pad)[0], lengths)


class StreamLoader:
    """A long stream, or many documents, as `B` rows read window after window, row i going on from row i.

    A stream of `N` steps is cut into `B` contiguous rows of `(N - 1) // B` steps, without the up to `B - 1` left over.
    Documents are dealt to the rows as these become free, and no window crosses the end of one. Each target is the
    step that follows. No more than a window is ever read: `stream` may be memory-mapped. In each
    [SequenceBatch][rnnkit.SequenceBatch], inputs and targets are `(T, B, *F)`, `restart` is true at the start of a row
    or document, and `lengths` stand where rows differ (0 with no document left; a `stateful` phase takes that).

    Args:
        stream: `(N, *F)`, anything with `len` and slices that `torch.as_tensor` takes; or a list of documents.
        batch_size: `B`, rows read side by side; a `ValueError` if below 1, or if a row would have no step.
        window: steps a batch, at most; a `ValueError` if below 1.

    >>> for inputs, targets in StreamLoader(torch.arange(9), batch_size=2, window=3):
    ...     print(inputs.T.tolist(), targets.T.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]
    """

    def __init__(self, stream: Any, batch_size: int, window: int) -> None:
        if batch_size < 1 or window < 1:
            raise refuse("StreamLoader", f"{batch_size = }, {window = }", "both at least 1", "count rows and steps.")
        self.batch_size, self.window = batch_size, window
        if isinstance(stream, list | tuple):
            if bad := [shape(document) for document in stream if not (hasattr(document, "__len__") and len(document))]:
                fix = "a list is a list of documents; one stream is a tensor, torch.tensor(stream)."
                raise refuse("StreamLoader", f"a list that holds {bad[0]}", "sequences", fix, TypeError)
            segments = [(document, 0, len(document) - 1) for document in stream]
        else:
            row = (len(stream) - 1) // batch_size
            segments = [(stream, i * row, (i + 1) * row) for i in range(batch_size)]
        self._segments = [(source, start, stop) for source, start, stop in segments if start < stop]
        if not self._segments:
            came = f"{shape(stream)} for {batch_size} rows"
            raise refuse("StreamLoader", came, "at least two steps a row", "use fewer rows.")

    def _windows(self) -> Iterator[Sequence[tuple[Any, int, int, bool]]]:
        """For each window and row: the source, its first step, the number of steps, whether it starts afresh."""
        waiting = iter(self._segments)

        def row() -> Iterator[tuple[Any, int, int, bool]]:
            for source, start, stop in waiting:
                for at in range(start, stop, self.window):
                    yield source, at, min(self.window, stop - at), at == start

        return zip_longest(*(row() for _ in range(self.batch_size)), fillvalue=(self._segments[0][0], 0, 0, False))

    def __len__(self) -> int:
        return sum(1 for _ in self._windows())

    def __iter__(self) -> Iterator[SequenceBatch]:
        for window in self._windows():
            pieces = [torch.as_tensor(source[at : at + n + 1]) for source, at, n, _ in window]
            inputs, targets = pad_sequence([p[:-1] for p in pieces]), pad_sequence([p[1:] for p in pieces])
            counts, restart = torch.tensor([n for _, _, n, _ in window]), torch.tensor([new for *_, new in window])
            yield SequenceBatch(inputs, targets, None if counts.unique().numel() == 1 else counts, restart)


class BucketSampler(Sampler[list[int]]):
    """Batches of sequences of like length, for `DataLoader(batch_sampler=...)`: less padding, so less work.

    Args:
        lengths: `(N,)`, a tensor or list: of every sequence of the data set, whose indices come once an epoch.
        batch_size: indices in each list, fewer in the last; a `ValueError` if below 1, or if there are no lengths.
        shuffle: draw the order of the batches, and of sequences of equal length, anew in each epoch.
        generator: for the shuffling; the global one where it is `None`.

    >>> list(BucketSampler([5, 1, 5, 1], batch_size=2, shuffle=False))
    [[1, 3], [0, 2]]
    """

    def __init__(
        self, lengths: Tensor | Sequence[int], batch_size: int, shuffle: bool = True, generator: Generator | None = None
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        if batch_size < 1 or self.lengths.ndim != 1 or not len(self.lengths):
            came, fix = f"lengths {shape(self.lengths)}, {batch_size = }", "pass the length of every sequence."
            raise refuse("BucketSampler", came, "lengths (N,) with N >= 1 and batch_size >= 1", fix)
        self.batch_size, self.shuffle, self.generator = batch_size, shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def _order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)

    def __iter__(self) -> Iterator[list[int]]:
        mixed = self._order(len(self.lengths))
        batches = mixed[self.lengths[mixed].argsort(stable=True)].split(self.batch_size)
        yield from (batches[i].tolist() for i in self._order(len(batches)).tolist())
