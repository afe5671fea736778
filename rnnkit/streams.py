"""Order over batches: a long stream as rows that go on from window to window, and batches of like length."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ._contract import refuse, shape
from .sequences import SequenceBatch

__all__ = ["BucketSampler", "StreamLoader"]


class StreamLoader:
    """A long stream, or many documents, as `B` rows read window after window, row i going on from row i.

    A stream of `N` steps is cut into `B` contiguous rows of `(N - 1) // B` steps; the up to `B - 1` steps after the
    last row are left out. Documents are dealt to the rows as these become free, and no window crosses the end of
    one. Each target is the step that follows. No more than a window is ever read: `stream` may be memory-mapped.

    Args:
        stream: `(N, *F)`, anything with `len` and slices that `torch.as_tensor` takes; or a list of documents.
        batch_size: `B`, rows read side by side.
        window: steps a batch, at most.

    Yields:
        [SequenceBatch][rnnkit.SequenceBatch] with `inputs (T, B, *F)`, `targets` of the same shape, `restart` true
        for rows at the start of a row or document, and `lengths` where rows differ (0 for a row with no document
        left; a `stateful` phase takes that).

    Raises:
        ValueError: if a row would have no step, or `batch_size` or `window` is below 1.

    >>> for inputs, targets in StreamLoader(torch.arange(9), batch_size=2, window=3):
    ...     print(inputs.T.tolist(), targets.T.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]
    """

    def __init__(self, stream: Any, batch_size: int, window: int) -> None:
        if batch_size < 1 or window < 1:
            came = f"batch_size = {batch_size}, window = {window}"
            raise refuse("StreamLoader", came, "both at least 1", "count rows and steps.")
        self.batch_size, self.window = batch_size, window
        if isinstance(stream, list | tuple):
            documents: Sequence[Any] = stream
            if not all(hasattr(document, "__len__") and len(document) for document in documents):
                fix = "a list is a list of documents; one stream is a tensor, torch.tensor(stream)."
                raise refuse("StreamLoader", f"a list that holds {shape(documents[0])}", "sequences", fix, TypeError)
            self._segments = [(document, 0, len(document) - 1) for document in documents if len(document) > 1]
        else:
            row = (len(stream) - 1) // batch_size
            self._segments = [(stream, i * row, (i + 1) * row) for i in range(batch_size)] if row > 0 else []
        if not self._segments:
            came = f"{shape(stream)} for {batch_size} rows"
            raise refuse("StreamLoader", came, "at least two steps a row", "use fewer rows.")

    def _plan(self) -> Iterator[list[tuple[Any, int, int, bool]]]:
        """For each window and row: the source, its first step, the number of steps, whether it starts afresh."""
        waiting = iter(self._segments)
        rows: list[tuple[Any, int, int]] = [(None, 0, 0)] * self.batch_size
        while True:
            window: list[tuple[Any, int, int, bool]] = []
            for i, (source, start, stop) in enumerate(rows):
                fresh = start == stop
                if fresh:
                    source, start, stop = next(waiting, (None, 0, 0))
                steps = min(self.window, stop - start)
                window.append((source, start, steps, fresh and steps > 0))
                rows[i] = source, start + steps, stop
            if not any(steps for _, _, steps, _ in window):
                return
            yield window

    def __len__(self) -> int:
        return sum(1 for _ in self._plan())

    def __iter__(self) -> Iterator[SequenceBatch]:
        for window in self._plan():
            pieces = [torch.as_tensor(source[start : start + n + 1]) if n else None for source, start, n, _ in window]
            lengths = torch.tensor([n for _, _, n, _ in window])
            first = next(piece for piece in pieces if piece is not None)
            both = first.new_zeros(int(lengths.max()) + 1, len(window), *first.shape[1:])
            targets = both[1:].clone()
            for i, piece in enumerate(pieces):
                if piece is not None:
                    both[: len(piece) - 1, i], targets[: len(piece) - 1, i] = piece[:-1], piece[1:]
            even = bool((lengths == lengths[0]).all())
            restart = torch.tensor([fresh for _, _, _, fresh in window])
            yield SequenceBatch(both[:-1], targets, None if even else lengths, restart)


class BucketSampler(Sampler[list[int]]):
    """Batches of sequences of like length, for `DataLoader(batch_sampler=...)`: less padding, so less work.

    Args:
        lengths: `(N,)`, a tensor or list: the length of every sequence of the data set.
        batch_size: sequences a batch; the last batch may be smaller.
        shuffle: draw the order of the batches, and of sequences of equal length, anew in each epoch.
        generator: for the shuffling; the global one where it is `None`.

    Yields:
        Lists of indices; every index comes once an epoch.

    Raises:
        ValueError: if `batch_size` is below 1 or there are no lengths.

    >>> list(BucketSampler([5, 1, 5, 1], batch_size=2, shuffle=False))
    [[1, 3], [0, 2]]
    """

    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        if batch_size < 1 or self.lengths.ndim != 1 or not len(self.lengths):
            came = f"lengths {shape(self.lengths)}, batch_size = {batch_size}"
            fix = "pass the length of every sequence of the data set."
            raise refuse("BucketSampler", came, "lengths (N,) with N >= 1 and batch_size >= 1", fix)
        self.batch_size, self.shuffle, self.generator = batch_size, shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self.lengths)
        mixed = torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)
        batches = mixed[self.lengths[mixed].argsort(stable=True)].split(self.batch_size)
        order = torch.randperm(len(batches), generator=self.generator) if self.shuffle else torch.arange(len(batches))
        for i in order.tolist():
            yield batches[i].tolist()
