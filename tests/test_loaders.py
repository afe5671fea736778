"""Layouts, batching, shifting, windows: tested against plain indexing."""

from functools import partial

import pytest
import torch
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rnnkit import (
    BucketSampler,
    SequenceBatch,
    StreamLoader,
    batchseq,
    get_inout_seq,
    pad_collate,
    steps,
    unbatchseq,
)

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)

FEATURES = [(), (1,), (3,), (2, 3), (1, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.int64, torch.bool]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_sequence(length, features=(2,), dtype=torch.float64, generator=None):
    return torch.randint(-9, 9, (length, *features), generator=generator).to(dtype)


# ---------------------------------------------------------------- pad_collate


def test_pad_collate_of_sequences_through_a_data_loader():
    data = [torch.arange(float(n)) for n in (4, 2, 3, 5)]
    first, second = DataLoader(data, batch_size=2, collate_fn=pad_collate)
    assert isinstance(first, SequenceBatch)
    assert first.targets is None
    assert first.lengths.tolist() == [4, 2]
    assert second.lengths.tolist() == [3, 5]
    for batch, rows in ((first, data[:2]), (second, data[2:])):
        back = unbatchseq(batch.inputs, batch.lengths)
        assert all(torch.equal(a, b) for a, b in zip(back, rows, strict=True))


def test_pad_collate_of_pairs_pads_a_target_per_step():
    data = [(torch.full((n, 2), float(n)), torch.full((n,), n)) for n in (4, 2, 3)]
    (batch,) = DataLoader(data, batch_size=3, collate_fn=pad_collate)
    assert batch.inputs.shape == (4, 3, 2)
    assert batch.targets.shape == (4, 3)
    assert batch.lengths.tolist() == [4, 2, 3]
    assert batch.targets.dtype == torch.int64
    for row, (inputs, targets) in enumerate(data):
        assert torch.equal(unbatchseq(batch.inputs, batch.lengths)[row], inputs)
        assert torch.equal(unbatchseq(batch.targets, batch.lengths)[row], targets)


def test_pad_collate_pads_the_targets_of_every_step_like_the_inputs():
    batch = pad_collate(
        [(torch.zeros(n, 2), torch.zeros(n, dtype=torch.long)) for n in (3, 1)], pad=-100
    )
    assert batch.inputs[1:, 1].eq(-100).all()
    assert batch.targets[:, 1].tolist() == [0, -100, -100]


@pytest.mark.parametrize("number", [int, float, torch.tensor])
def test_pad_collate_of_pairs_stacks_a_target_per_sequence(number):
    data = [(torch.zeros(n, 2), number(n)) for n in (4, 2, 3)]
    (batch,) = DataLoader(data, batch_size=3, collate_fn=pad_collate)
    assert batch.targets.shape == (3,)
    assert batch.targets.tolist() == [4, 2, 3]
    assert batch.targets.is_floating_point() == (number is float)


def test_pad_collate_can_be_told_that_a_vector_belongs_to_the_sequence():
    data = [(torch.zeros(n, 2), torch.tensor([n, -n])) for n in (4, 2, 3)]
    (batch,) = DataLoader(data, batch_size=3, collate_fn=partial(pad_collate, per="sequence"))
    assert batch.targets.tolist() == [[4, -4], [2, -2], [3, -3]]
    assert batch.lengths.tolist() == [4, 2, 3]


def test_pad_collate_refuses_a_target_per_step_of_another_length():
    with pytest.raises(ValueError, match=r"(?s)pad_collate.*\(3, 1\).*4 steps"):
        pad_collate([(torch.zeros(4, 2), torch.zeros(3, 1))])


def test_pad_collate_refuses_an_empty_list():
    with pytest.raises(ValueError, match=r"(?s)pad_collate.*empty"):
        pad_collate([])


def test_pad_collate_refuses_an_unknown_per():
    with pytest.raises(ValueError, match=r"(?s)pad_collate.*per.*row"):
        pad_collate([(torch.zeros(4, 2), torch.zeros(4, 1))], per="row")


# ---------------------------------------------------------------- StreamLoader


def rows_of(batches, batch_size):
    """What each row of the loader saw: a list of (input, target, starts afresh) a row, read off step by step."""
    rows = [[] for _ in range(batch_size)]
    for batch in batches:
        time = batch.inputs.shape[0]
        lengths = batch.lengths if batch.lengths is not None else torch.full((batch_size,), time)
        restart = (
            batch.restart
            if batch.restart is not None
            else torch.zeros(batch_size, dtype=torch.bool)
        )
        for row in range(batch_size):
            for t in range(int(lengths[row])):
                afresh = t == 0 and bool(restart[row])
                rows[row].append((int(batch.inputs[t, row]), int(batch.targets[t, row]), afresh))
    return rows


@few
@given(extra=st.integers(0, 40), batch_size=st.integers(1, 4), window=st.integers(1, 7))
def test_a_stream_becomes_contiguous_rows(extra, batch_size, window):
    stream = torch.arange(2 * batch_size + extra)
    rows = rows_of(StreamLoader(stream, batch_size, window), batch_size)
    for row in rows:
        assert row[0][2], "every row starts afresh in the first window"
        assert not any(afresh for _, _, afresh in row[1:]), "one stream restarts nowhere else"
        inputs = [seen for seen, _, _ in row]
        assert inputs == list(range(inputs[0], inputs[0] + len(inputs))), "row i continues row i"
        assert all(target == seen + 1 for seen, target, _ in row), "the target is the next element"


@few
@given(extra=st.integers(0, 40), batch_size=st.integers(1, 4), window=st.integers(1, 7))
def test_every_transition_of_a_stream_is_seen_once_but_for_a_remainder_below_the_batch_size(
    extra, batch_size, window
):
    stream = torch.arange(2 * batch_size + extra)
    rows = rows_of(StreamLoader(stream, batch_size, window), batch_size)
    seen = [inputs for row in rows for inputs, _, _ in row]
    assert len(seen) == len(set(seen))
    assert len(stream) - 1 - len(seen) < batch_size


def test_no_window_is_longer_than_asked():
    windows = [batch.inputs.shape[0] for batch in StreamLoader(torch.arange(50), 2, 7)]
    assert max(windows) == 7
    assert all(w == 7 for w in windows[:-1])


def test_the_length_of_a_stream_loader_is_its_number_of_windows():
    for stream in (torch.arange(50), [document(0, 9), document(1, 4), document(2, 12)]):
        loader = StreamLoader(stream, 2, 7)
        assert len(loader) == len(list(loader))


def test_a_stream_loader_can_be_iterated_twice():
    loader = StreamLoader(torch.arange(50), 2, 7)
    first, second = rows_of(loader, 2), rows_of(loader, 2)
    assert first == second
    assert first[0]


def test_a_stream_with_features_keeps_them():
    stream = torch.arange(60.0).reshape(20, 3)
    batch = next(iter(StreamLoader(stream, 2, 4)))
    assert batch.inputs.shape == (4, 2, 3)
    assert batch.targets.shape == (4, 2, 3)
    assert torch.equal(batch.inputs[1:], batch.targets[:-1])


def document(number, length):
    """Elements that tell where they come from: 1000 times the document plus the position."""
    return 1000 * number + torch.arange(length)


@few
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=7),
    batch_size=st.integers(1, 3),
    window=st.integers(1, 5),
)
def test_no_window_crosses_a_document(lengths, batch_size, window):
    documents = [document(i, n) for i, n in enumerate(lengths)]
    for batch in StreamLoader(documents, batch_size, window):
        for row in range(batch_size):
            valid = int(batch.lengths[row]) if batch.lengths is not None else batch.inputs.shape[0]
            if valid:
                inputs, targets = batch.inputs[:valid, row], batch.targets[:valid, row]
                assert len(set((torch.cat([inputs, targets]) // 1000).tolist())) == 1
                assert torch.equal(targets, inputs + 1)


@few
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=7),
    batch_size=st.integers(1, 3),
    window=st.integers(1, 5),
)
def test_every_transition_of_the_documents_is_seen_once(lengths, batch_size, window):
    documents = [document(i, n) for i, n in enumerate(lengths)]
    rows = rows_of(StreamLoader(documents, batch_size, window), batch_size)
    seen = sorted(inputs for row in rows for inputs, _, _ in row)
    wanted = sorted(int(element) for doc in documents for element in doc[:-1])
    assert seen == wanted


@few
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=7),
    batch_size=st.integers(1, 3),
    window=st.integers(1, 5),
)
def test_a_row_restarts_where_a_document_starts_and_nowhere_else(lengths, batch_size, window):
    documents = [document(i, n) for i, n in enumerate(lengths)]
    for row in rows_of(StreamLoader(documents, batch_size, window), batch_size):
        for inputs, _, afresh in row:
            assert afresh == (inputs % 1000 == 0)


class RecordingStream:
    """A stream that lives elsewhere: it knows its length and hands out slices, and notes how long they were."""

    def __init__(self, length):
        self.length, self.slices = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if isinstance(index, int):
            self.slices.append(1)
            return torch.tensor(index)
        start, stop, stride = index.indices(self.length)
        assert stride == 1, "a stream is read forward"
        self.slices.append(stop - start)
        return torch.arange(start, stop)


def test_a_stream_loader_never_loads_more_than_a_window():
    stream = RecordingStream(1000)
    rows = rows_of(StreamLoader(stream, batch_size=4, window=10), 4)
    assert sum(len(row) for row in rows) > 990
    assert max(stream.slices) <= 11, "a window and the one target after it"


def test_a_stream_loader_loads_nothing_before_it_is_asked():
    stream = RecordingStream(1000)
    batches = iter(StreamLoader(stream, batch_size=4, window=10))
    next(batches)
    assert sum(stream.slices) <= 4 * 11


@pytest.mark.parametrize(("batch_size", "window"), [(0, 4), (2, 0), (-1, 4), (2, -3)])
def test_a_stream_loader_refuses_sizes_below_one(batch_size, window):
    wrong = batch_size if batch_size < 1 else window
    with pytest.raises(ValueError, match=rf"(?s)StreamLoader.*{wrong}"):
        StreamLoader(torch.arange(50), batch_size, window)


def test_a_stream_loader_refuses_a_list_of_numbers():
    with pytest.raises(
        TypeError, match=r"StreamLoader: got a list that holds \(0,\); wanted sequences"
    ):
        StreamLoader([torch.arange(5), torch.arange(0)], batch_size=1, window=2)
    with pytest.raises(TypeError, match=r"(?s)StreamLoader.*a list.*torch.tensor"):
        StreamLoader([1, 2, 3, 4, 5], 2, 3)


def test_a_stream_loader_refuses_a_stream_too_short_for_its_rows():
    with pytest.raises(ValueError, match=r"(?s)StreamLoader.*3.*(batch_size|rows)"):
        list(StreamLoader(torch.arange(3), 4, 5))


# ---------------------------------------------------------------- BucketSampler


def lognormal_lengths(count):
    return torch.empty(count).log_normal_(3.0, 1.0, generator=seeded(1)).clamp(1, 500).long()


@few
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_bucket_sampler_gives_every_index_once(count, batch_size, shuffle, seed):
    lengths = torch.randint(1, 30, (count,), generator=seeded(seed))
    sampler = BucketSampler(lengths, batch_size, shuffle=shuffle, generator=seeded(seed))
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(sampler) == len(batches) == -(-count // batch_size)


def padding_of(batches, lengths):
    return sum(
        int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_bucket_sampler_puts_like_lengths_together(shuffle):
    lengths = lognormal_lengths(256)
    bucketed = padding_of(
        list(BucketSampler(lengths, 32, shuffle=shuffle, generator=seeded(2))), lengths
    )
    in_order = padding_of([list(range(i, i + 32)) for i in range(0, 256, 32)], lengths)
    assert bucketed < in_order / 2


def test_a_bucket_sampler_takes_a_list_of_lengths():
    assert sorted(i for batch in BucketSampler([3, 1, 2], 2) for i in batch) == [0, 1, 2]


def test_the_generator_decides_the_shuffle():
    lengths = lognormal_lengths(64)
    first = list(BucketSampler(lengths, 8, generator=seeded(5)))
    again = list(BucketSampler(lengths, 8, generator=seeded(5)))
    other = list(BucketSampler(lengths, 8, generator=seeded(6)))
    assert first == again
    assert first != other


def test_a_shuffled_sampler_changes_from_epoch_to_epoch_and_an_unshuffled_one_does_not():
    lengths = lognormal_lengths(64)
    shuffled, fixed = (
        BucketSampler(lengths, 8, generator=seeded(5)),
        BucketSampler(lengths, 8, shuffle=False),
    )
    assert list(shuffled) != list(shuffled)
    assert list(fixed) == list(fixed)


def test_shuffling_also_mixes_the_order_of_lengths_across_batches():
    lengths = lognormal_lengths(256)
    means = [
        float(lengths[batch].double().mean())
        for batch in BucketSampler(lengths, 16, generator=seeded(3))
    ]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_a_bucket_sampler_drives_a_data_loader():
    data = [torch.full((n,), float(n)) for n in (5, 1, 4, 2, 3, 1)]
    sampler = BucketSampler([len(s) for s in data], 2, generator=seeded())
    batches = list(DataLoader(data, batch_sampler=sampler, collate_fn=pad_collate))
    assert sorted(n for batch in batches for n in batch.lengths.tolist()) == [1, 1, 2, 3, 4, 5]
    assert all(int(batch.lengths.max() - batch.lengths.min()) <= 1 for batch in batches)


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_bucket_sampler_refuses_a_batch_size_below_one(batch_size):
    with pytest.raises(ValueError, match=rf"(?s)BucketSampler.*{batch_size}"):
        BucketSampler([1, 2], batch_size)


def test_a_bucket_sampler_refuses_no_lengths():
    with pytest.raises(ValueError, match=r"(?s)BucketSampler.*\(0,\)"):
        BucketSampler([], 2)
