"""Batches for training: padded, in buckets of like length, or windows of a long stream."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from ..core.errors import Refusal, asked, in_words
from .batches import SequenceBatch, batchseq


@asked("pad_collate")
def pad_collate(
    items: Sequence[Any], per: Literal["step", "sequence"] = "step", pad: float = 0.0
) -> SequenceBatch:
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
        raise Refusal(f"per={per!r}", '"step" or "sequence"', fix)
    if not items:
        raise Refusal("an empty list", "at least one item", "check the batch sampler.")
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        inputs, lengths = batchseq(items, pad=pad)
        return SequenceBatch(inputs, lengths=lengths)
    inputs, lengths = batchseq([item[0] for item in items], pad=pad)
    targets = [torch.as_tensor(item[1]) for item in items]
    if per == "sequence" or all(target.ndim == 0 for target in targets):
        return SequenceBatch(inputs, torch.stack(targets), lengths)
    for i, (target, length) in enumerate(zip(targets, lengths.tolist(), strict=True)):
        if target.ndim == 0 or len(target) != length:
            came = f"a target {in_words(target)} for a sequence of {length} steps at index {i}"
            fix = 'one target for the whole sequence is functools.partial(pad_collate, per="sequence").'
            raise Refusal(came, "a target for every step", fix)
    return SequenceBatch(inputs, batchseq(targets, pad=pad)[0], lengths)


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

    @asked("StreamLoader")
    def __init__(self, stream: Any, batch_size: int, window: int) -> None:
        if batch_size < 1 or window < 1:
            raise Refusal(
                f"{batch_size = }, {window = }", "both at least 1", "count rows and steps."
            )
        self.batch_size, self.window = batch_size, window
        if isinstance(stream, list | tuple):
            if bad := [
                in_words(document)
                for document in stream
                if not (hasattr(document, "__len__") and len(document))
            ]:
                fix = "a list is a list of documents; one stream is a tensor, torch.tensor(stream)."
                raise Refusal(f"a list that holds {bad[0]}", "sequences", fix, TypeError)
            segments = [(document, 0, len(document) - 1) for document in stream]
        else:
            row = (len(stream) - 1) // batch_size
            segments = [(stream, i * row, (i + 1) * row) for i in range(batch_size)]
        self._segments = [(source, start, stop) for source, start, stop in segments if start < stop]
        if not self._segments:
            came = f"{in_words(stream)} for {batch_size} rows"
            raise Refusal(came, "at least two steps a row", "use fewer rows.")

    def _windows(self) -> Iterator[Sequence[tuple[Any, int, int, bool]]]:
        """For each window and row: the source, its first step, the number of steps, whether it starts afresh."""
        waiting = iter(self._segments)

        def row() -> Iterator[tuple[Any, int, int, bool]]:
            for source, start, stop in waiting:
                for at in range(start, stop, self.window):
                    yield source, at, min(self.window, stop - at), at == start

        return zip_longest(
            *(row() for _ in range(self.batch_size)), fillvalue=(self._segments[0][0], 0, 0, False)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self._windows())

    def __iter__(self) -> Iterator[SequenceBatch]:
        for window in self._windows():
            pieces = [torch.as_tensor(source[at : at + n + 1]) for source, at, n, _ in window]
            inputs, targets = (
                pad_sequence([p[:-1] for p in pieces]),
                pad_sequence([p[1:] for p in pieces]),
            )
            counts, restart = (
                torch.tensor([n for _, _, n, _ in window]),
                torch.tensor([new for *_, new in window]),
            )
            yield SequenceBatch(
                inputs, targets, None if counts.unique().numel() == 1 else counts, restart
            )


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

    @asked("BucketSampler")
    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        generator: Generator | None = None,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        if batch_size < 1 or self.lengths.ndim != 1 or not len(self.lengths):
            came, fix = (
                f"lengths {in_words(self.lengths)}, {batch_size = }",
                "pass the length of every sequence.",
            )
            raise Refusal(came, "lengths (N,) with N >= 1 and batch_size >= 1", fix)
        self.batch_size, self.shuffle, self.generator = batch_size, shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def _order(self, count: int) -> Tensor:
        return (
            torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)
        )

    def __iter__(self) -> Iterator[list[int]]:
        mixed = self._order(len(self.lengths))
        batches = mixed[self.lengths[mixed].argsort(stable=True)].split(self.batch_size)
        yield from (batches[i].tolist() for i in self._order(len(batches)).tolist())
