"""Batches for training: padded, in buckets of like length, or windows of a long stream."""

import warnings
from collections.abc import Iterator, Sequence, Sized
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from ..core.errors import Refusal, asked, at_least, in_words, one_of, tensor_of
from ..core.layout import device_of, is_dense
from .batches import SequenceBatch, batchseq


@asked("pad_collate")
def pad_collate(
    items: Sequence[Any], *, per: Literal["step", "sequence"] = "step", pad: float = 0.0
) -> SequenceBatch:
    """Sequences of different length as one batch: the `collate_fn` of a `DataLoader`.

    >>> import torch
    >>> from rnnkit import pad_collate
    >>> inputs, targets, lengths = pad_collate([(torch.zeros(3, 1), 0), (torch.zeros(5, 1), 1)])
    >>> tuple(inputs.shape), targets.tolist(), lengths.tolist()
    ((5, 2, 1), [0, 1], [3, 5])

    Args:
        items: sequences `(T_i, *F)`, or pairs of a sequence and its target. A sequence may be a
            dict of several, `{name: (T_i, *F)}`, all of `T_i` steps; so may a target.
        per: what a target belongs to: each `"step"`, `(T_i, *Y)`, padded to `(T, B, *Y)`, or the
            whole `"sequence"`, `(*Y)`, stacked to `(B, *Y)`, as numbers always are. A DataLoader
            takes `functools.partial(pad_collate, per="sequence")`.
        pad: what stands after the end of a shorter sequence, and of its targets.

    Returns:
        Inputs `(T, B, *F)`, targets where there are some, lengths `(B,)`.

    Raises:
        TypeError: if the items are neither sequences nor pairs, all alike.
        ValueError: if there is none, features differ, or a target is not as long as its sequence.
    """
    fix = 'a target for each step is "step", one for a sequence is "sequence".'
    one_of("per", per, ("step", "sequence"), fix)
    if not items:
        raise Refusal("an empty list", "at least one item", "check the batch sampler.")
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        if isinstance(items[0], tuple):
            fix = "several are a dict; for weights, write a function that gives a SequenceBatch."
            came = f"an item that is {in_words(items[0])}"
            raise Refusal(came, "sequences, or pairs (sequence, target)", fix, TypeError)
        inputs, lengths = _padded(items, pad)
        return SequenceBatch(inputs, lengths=lengths)

    inputs, lengths = _padded([sequence for sequence, _ in items], pad)
    stack = partial(_batched, lengths=lengths, per=per, pad=pad, device=device_of(inputs))
    targets = [target for _, target in items]
    if isinstance(targets[0], dict):
        columns = _by_name(targets, "targets")
        named = {name: stack(column) for name, column in columns.items()}
        return SequenceBatch(inputs, named, lengths)
    return SequenceBatch(inputs, stack(targets), lengths)


def _padded(sequences: Sequence[Any], pad: float) -> tuple[Any, Tensor]:
    if not isinstance(sequences[0], dict):
        return batchseq(sequences, pad=pad)
    columns = _by_name(sequences, "sequences")
    parts = {name: batchseq(column, pad=pad) for name, column in columns.items()}
    if len({tuple(part.lengths.tolist()) for part in parts.values()}) != 1:
        came = ", ".join(f"{name!r} of {part.lengths.tolist()}" for name, part in parts.items())
        fix = "the sequences of one dict are read side by side, step by step."
        raise Refusal(f"{came or 'no'} steps", "the same number of steps for each", fix)
    lengths = next(iter(parts.values())).lengths
    return {name: part.sequences for name, part in parts.items()}, lengths


def _by_name(items: Sequence[Any], what: str) -> dict[Any, list[Any]]:
    """Dicts with the same keys as one dict of lists."""
    names = items[0].keys()
    for item in items:
        if not isinstance(item, dict) or item.keys() != names:
            came = f"{what} {in_words(items[0])} beside {in_words(item)}"
            fix = "every item has the same parts; a DataLoader batches one kind of item."
            raise Refusal(came, "dicts with the same keys", fix, TypeError)
    return {name: [item[name] for item in items] for name in names}


def _batched(
    targets: list[Any], *, lengths: Tensor, per: str, pad: float, device: torch.device
) -> Tensor:
    """The targets of a batch: padded `(T, B, *Y)`, or one a sequence `(B, *Y)`."""
    tensors = [_as_target(target, device) for target in targets]
    if per == "sequence" or all(target.ndim == 0 for target in tensors):
        shapes = sorted({in_words(target) for target in tensors})
        if len(shapes) > 1:
            came = f"targets {', '.join(shapes[:4])}"
            fix = 'targets (T_i, *Y), one for each step, are per="step".'
            raise Refusal(came, "targets of one shape (*Y), one a sequence", fix)
        return torch.stack(tensors)
    for i, (target, length) in enumerate(zip(tensors, lengths.tolist(), strict=True)):
        if target.ndim == 0 or len(target) != length:
            came = f"a target {in_words(target)} for a sequence of {length} steps at index {i}"
            fix = 'one for the whole sequence is functools.partial(pad_collate, per="sequence").'
            raise Refusal(came, "a target for every step", fix)
    return batchseq(tensors, pad=pad).sequences


def _as_target(target: Any, device: torch.device) -> Tensor:
    if isinstance(target, Tensor):
        return target
    fix = "encode it: the number of its class, or a tensor."
    came = f"a target that is {in_words(target)}"
    return tensor_of(target, came, "a number or a tensor", fix, device)


class Segment(NamedTuple):
    """What one row reads from first to last: a document, or a row's share of the stream."""

    source: Any  # what is sliced along time
    start: int
    stop: int  # the last step, which is only a target


class Piece(NamedTuple):
    """What one row reads in one window."""

    source: Any
    start: int
    steps: int  # 0 where no document is left for the row
    restart: bool  # whether the segment starts here


class StreamLoader:
    """A long stream, or many documents, as `B` rows side by side, window after window.

    Row i of a batch goes on from row i of the batch before. A stream of `N` steps is cut into `B`
    contiguous rows of `(N - 1) // B` steps; up to `B - 1` are left over. Documents are dealt to the
    rows as these become free, and no window crosses the end of one; a document of one step is left
    out. Each target is the step that follows.

    In each [SequenceBatch][rnnkit.SequenceBatch], inputs and targets are copies `(T, B, *F)`,
    `restart` is true where a row or document starts, and `lengths` stand where rows differ (0 with
    no document left; a `stateful` phase takes that). Whole numbers of any width come as int64.

    >>> import torch
    >>> from rnnkit import StreamLoader
    >>> for inputs, targets in StreamLoader(torch.arange(9), batch_size=2, window=3):
    ...     print(inputs.T.tolist(), targets.T.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]

    Args:
        stream: `(N, *F)`, a tensor, an array or anything with `len` and slices that
            `torch.as_tensor` takes; or a list of such documents. It is read window by window, so it
            may be a memory map.
        batch_size: `B`, rows read side by side.
        window: steps a batch, at most.
        rank: which of the processes that read the stream together this one is, from 0. Of
            `ranks * batch_size` rows it reads its own `batch_size`; of documents it may have a
            batch in which no row has a step.
        ranks: how many processes there are, each with the same number of batches.

    Raises:
        TypeError: if the stream, or a document, is no sequence of numbers.
        ValueError: if `batch_size` or `window` is below 1, there is no such rank, or a row would
            have no step.
    """

    @asked("StreamLoader")
    def __init__(
        self, stream: Any, batch_size: int, window: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        at_least("batch_size", batch_size, 1, "count the rows that are read side by side.")
        at_least("window", window, 1, "count the steps of a batch.")
        _check_rank(rank, ranks)
        self.batch_size = batch_size
        self.window = window
        self.rank = rank
        self.ranks = ranks
        self._rows = batch_size * ranks  # of all ranks; this one's own are some of them
        self._own = slice(rank * batch_size, (rank + 1) * batch_size)
        if isinstance(stream, dict) or (isinstance(stream, tuple) and len(stream) == 2):
            fix = "put them side by side, torch.cat([x, y], 1), and take each batch apart."
            raise Refusal(in_words(stream), "one stream, or a list of documents", fix, TypeError)
        self._one_stream = not isinstance(stream, list | tuple)  # or documents
        if self._one_stream:
            segments = _side_by_side(_readable(stream), self._rows)
        else:
            segments = [_document(document) for document in stream]
        self._segments = [segment for segment in segments if segment.start < segment.stop]
        if not self._segments:
            came = f"{in_words(stream)} for {self._rows} rows"
            raise Refusal(came, "at least two steps a row", "use fewer rows.")

    def __len__(self) -> int:
        if self._one_stream:
            row = self._segments[0]
            return len(range(row.start, row.stop, self.window))
        return sum(1 for _ in self._windows())

    @asked("StreamLoader")
    def __getitem__(self, index: object) -> SequenceBatch:
        """Refused: a `DataLoader` around it would ask for single batches."""
        fix = "iterate over it as it is; no DataLoader goes around it."
        raise Refusal("an index", "for batch in loader", fix, TypeError)

    def __iter__(self) -> Iterator[SequenceBatch]:
        first = self._segments[0]
        if self._one_stream and isinstance(first.source, Tensor):
            return self._views(first.source, first.stop)
        return (_batch_of(window[self._own]) for window in self._windows())

    def _views(self, stream: Tensor, row: int) -> Iterator[SequenceBatch]:
        """The windows of one stream in memory: slices of two views, the second a step later."""
        count = self._rows * row
        inputs = stream[:count].unflatten(0, (self._rows, row))[self._own].transpose(0, 1)
        targets = stream[1 : count + 1].unflatten(0, (self._rows, row))[self._own].transpose(0, 1)
        for start in range(0, row, self.window):
            stop = start + self.window
            yield SequenceBatch(
                _copied(inputs[start:stop]),  # (T, B, *F)
                _copied(targets[start:stop]),
                restart=torch.full((self.batch_size,), start == 0, device="cpu"),
            )

    def _windows(self) -> Iterator[tuple[Piece, ...]]:
        waiting = iter(self._segments)

        def row() -> Iterator[Piece]:
            # From one iterator for all rows: the next segment goes to the row that is free.
            for source, start, stop in waiting:
                for at in range(start, stop, self.window):
                    yield Piece(source, at, min(self.window, stop - at), at == start)

        nothing = Piece(self._segments[0].source, 0, 0, False)
        return zip_longest(*(row() for _ in range(self._rows)), fillvalue=nothing)


@asked("StreamLoader")
def _batch_of(window: Sequence[Piece]) -> SequenceBatch:
    read = [_read(piece) for piece in window]
    if len({steps.dtype for steps in read}) > 1:
        kinds = sorted({str(steps.dtype) for steps in read})
        fix = "give every document the same dtype."
        raise Refusal(f"documents of {' and '.join(kinds)}", "one dtype", fix, TypeError)
    if len({steps.shape[1:] for steps in read}) > 1:
        kinds = sorted({str(tuple(steps.shape[1:])) for steps in read})
        fix = "only their length may differ between documents."
        raise Refusal(f"documents of steps {' and '.join(kinds)}", "steps of equal shape", fix)
    whole = pad_sequence(read)  # (T + 1, B, *F)
    if len(whole) == 1:  # other ranks have documents left
        whole = torch.cat([whole, whole])
    counts = torch.tensor([piece.steps for piece in window], device="cpu")
    return SequenceBatch(
        _copied(whole[:-1]),
        _copied(whole[1:]),
        lengths=None if bool((counts == len(whole) - 1).all()) else counts,
        restart=torch.tensor([piece.restart for piece in window], device="cpu"),
    )


def _read(piece: Piece) -> Tensor:
    steps = piece.source[piece.start : piece.start + piece.steps + 1]
    return steps if isinstance(steps, Tensor) else _as_tensor(steps)


def _as_tensor(numbers: Any) -> Tensor:
    came = f"{in_words(numbers)} that torch does not take"
    fix = "np.ascontiguousarray(stream, np.float32), or np.int64 for classes."
    return tensor_of(numbers, came, "numbers in the order of memory", fix)


def _copied(steps: Tensor) -> Tensor:
    """A copy, of whole numbers as int64: what an embedding and a loss take."""
    dtype = steps.dtype
    if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        dtype = torch.int64
    return steps.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _side_by_side(stream: Any, count: int) -> list[Segment]:
    steps = (len(stream) - 1) // count
    if steps < 1:  # before a list is made that no memory may hold
        return []
    return [Segment(stream, i * steps, (i + 1) * steps) for i in range(count)]


def _document(document: Any) -> Segment:
    document = _readable(document, "a list that holds ")
    if not len(document):
        came = f"a list that holds {in_words(document)}"
        raise Refusal(came, "sequences of numbers", "drop empty documents.", TypeError)
    return Segment(document, 0, len(document) - 1)


def _readable(stream: Any, holds: str = "") -> Any:
    """A stream that can be sliced: a tensor where that reads nothing, else the stream itself."""
    if is_dense(stream) and stream.ndim > 0:
        return stream
    if isinstance(stream, Tensor | str | bytes) or not isinstance(stream, Sized):
        fix = (
            "a list is a list of documents; one stream is a tensor, torch.tensor(stream); files "
            "are read, and text is encoded as numbers, first."
        )
        raise Refusal(f"{holds}{in_words(stream)}", "sequences of numbers", fix, TypeError)
    lender: Any = stream
    try:
        memoryview(lender)  # an array or a memory map lends its memory, and nothing is read
    except (TypeError, ValueError):
        return stream
    with warnings.catch_warnings():
        # A map may be read-only, and nothing is written to it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return _as_tensor(stream)


class BucketSampler(Sampler[list[int]]):
    """Batches of sequences of like length: less padding, so less work.

    For `DataLoader(data, batch_sampler=BucketSampler(...), collate_fn=pad_collate)`. Batches are
    filled from the longest sequence down.

    >>> from rnnkit import BucketSampler
    >>> list(BucketSampler([5, 1, 5, 1], 2, shuffle=False))
    [[1, 3], [0, 2]]
    >>> list(BucketSampler([5, 1, 1, 1], None, max_steps=5, shuffle=False))
    [[1, 2, 3], [0]]

    Args:
        lengths: `(N,)`, a tensor or list: the length of every sequence of the data set.
        batch_size: sequences a batch, at most; `None` where only `max_steps` counts.
        shuffle: draw the order of the batches, and of sequences of equal length, anew each epoch.
        generator: for the shuffling; the global one where it is `None`.
        drop_last: give no batch that could have held more. Left out are the sequences too many for
            batches of `batch_size`, drawn anew each epoch (the last ones without `shuffle`); with
            `max_steps`, the shortest.
        max_steps: padded steps a batch, at most: rows times the longest of them.
        rank: which of the processes that share the data set this one is, from 0. Their batches of
            one step are of like length.
        ranks: how many processes there are, each with the same number of batches, of `batch_size`
            and `max_steps` at most. With `shuffle` they need a generator each, of the same seed.
            Every sequence comes once an epoch, but for fewer than `ranks` of the shortest.

    Raises:
        TypeError: if lengths are not whole numbers.
        ValueError: if there are none, one is below 1 or above `max_steps`, there is neither
            `batch_size` nor `max_steps`, no such rank, fewer sequences than ranks, or no generator
            that they have in common.
    """

    @asked("BucketSampler")
    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        batch_size: int | None,
        *,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        max_steps: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.lengths = _checked_counts(lengths)
        _check_rank(rank, ranks)
        if ranks > len(self.lengths):
            came = f"{len(self.lengths)} sequences for {ranks} ranks"
            raise Refusal(came, "one for each at least", "use fewer processes.")
        if ranks > 1 and shuffle and generator is None:
            fix = "generator=torch.Generator().manual_seed(0), the same in every rank."
            came = f"shuffle without a generator for {ranks} ranks"
            raise Refusal(came, "an order that they have in common", fix)
        if batch_size is None and max_steps is None:
            fix = "batch_size bounds the sequences of a batch, max_steps its padded steps."
            raise Refusal("batch_size = None", "batch_size, max_steps or both", fix)
        if batch_size is not None:
            at_least("batch_size", batch_size, 1, "count the sequences of a batch.")
        if max_steps is not None:
            at_least("max_steps", max_steps, 1, "count the padded steps of a batch.")
            longest = int(self.lengths.argmax())
            if self.lengths[longest] > max_steps:
                raise Refusal(
                    f"a sequence of {self.lengths[longest]} steps at index {longest}",
                    f"none longer than max_steps = {max_steps}",
                    "cut it, leave it out, or raise max_steps.",
                )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator
        self._drop_last = drop_last
        self.max_steps = max_steps
        self.rank = rank
        self.ranks = ranks
        # Where batches end depends on the sorted lengths alone, the same in every epoch.
        self._count = len(self._batches(torch.arange(len(self.lengths), device="cpu")))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches(self._order(len(self.lengths)))
        for i in self._order(len(batches)).tolist():
            yield batches[i][self.rank :: self.ranks].tolist()

    def _order(self, count: int) -> Tensor:
        if self.shuffle:
            return torch.randperm(count, generator=self.generator, device="cpu")
        return torch.arange(count, device="cpu")

    def _batches(self, order: Tensor) -> list[Tensor]:
        """The batches of all ranks, the shortest first; the order decides ties."""
        if self._drop_last and self.max_steps is None and self.batch_size is not None:
            order = order[: len(order) - len(order) % (self.batch_size * self.ranks)]
        order = order[self.lengths[order].argsort(descending=True, stable=True)]
        longest_first = self.lengths[order].tolist()

        batches: list[Tensor] = []
        start = 0
        while start < len(order):
            room = self._room(longest_first[start])
            batch = order[start : start + room]
            if len(batch) == room or not self._drop_last:
                batches.append(batch)
            start += room
        if batches and len(batches[-1]) < self.ranks:
            batches[-2:] = self._evened(batches[-2:])
        return batches[::-1]

    def _evened(self, last: list[Tensor]) -> list[Tensor]:
        """The last two batches with a sequence for every rank in each; or the first alone."""
        together = torch.cat(last)
        first = min(len(last[0]), len(together) - self.ranks)
        if first < self.ranks:
            return last[:-1]
        return [together[:first], together[first:]]

    def _room(self, longest: int) -> int:
        limits: list[int] = []
        if self.batch_size is not None:
            limits.append(self.batch_size)
        if self.max_steps is not None:
            limits.append(self.max_steps // longest)
        return min(limits) * self.ranks


def _check_rank(rank: int, ranks: int) -> None:
    at_least("ranks", ranks, 1, "torch.distributed.get_world_size().")
    at_least("rank", rank, 0, "torch.distributed.get_rank().")
    if rank >= ranks:
        raise Refusal(f"rank = {rank} of {ranks}", "rank < ranks", "ranks are counted from 0.")


def _checked_counts(lengths: Any) -> Tensor:
    fix = "pass the length of every sequence."
    counts = tensor_of(lengths, f"lengths {in_words(lengths)}", "whole numbers", fix)
    if counts.ndim != 1 or not len(counts):
        raise Refusal(f"lengths {in_words(counts)}", "lengths (N,) with N >= 1", fix)
    if counts.is_floating_point() or counts.dtype == torch.bool:
        fix = "lengths count steps: [len(sequence) for sequence in data]."
        raise Refusal(f"lengths of {counts.dtype}", "whole numbers", fix, TypeError)
    counts = counts.long()  # in its own dtype max_steps may have no place
    if int(counts.min()) < 1:
        came = f"a length of {int(counts.min())} at index {int(counts.argmin())}"
        raise Refusal(came, "lengths of at least 1", "drop empty sequences.")
    return counts
