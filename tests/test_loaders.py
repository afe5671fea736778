"""Collating, windows of streams, buckets: tested against plain indexing."""

import sys
import time
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import few, refused, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from rnnkit import BucketSampler, SequenceBatch, StreamLoader, pad_collate, unbatchseq

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


def sensors(length, seed=0):
    return {
        "level": torch.randn(length, 3, dtype=torch.float64, generator=seeded(seed)),
        "day": torch.arange(length),
    }


def test_pad_collate_pads_dicts_of_sequences_part_by_part():
    items = [sensors(n, seed=n) for n in (4, 2, 3)]
    (batch,) = DataLoader(items, batch_size=3, collate_fn=pad_collate)
    assert batch.targets is None
    assert batch.lengths.tolist() == [4, 2, 3]
    for name in ("level", "day"):
        alone = unbatchseq(batch.inputs[name], batch.lengths)
        assert all(torch.equal(row, item[name]) for row, item in zip(alone, items, strict=True))
    shifted = SequenceBatch.of(batch)
    assert torch.equal(shifted.targets["level"], batch.inputs["level"][1:])


def test_pad_collate_pads_or_stacks_dicts_of_targets():
    items = [(sensors(n), {"step": torch.arange(n), "kind": n}) for n in (4, 2, 3)]
    batch = SequenceBatch.of(pad_collate(items))
    assert batch.targets["step"].T.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0], [0, 1, 2, 0]]
    assert batch.targets["kind"].tolist() == [4, 2, 3]
    whole = [(torch.zeros(n), {"both": torch.tensor([n, -n])}) for n in (4, 2)]
    assert pad_collate(whole, per="sequence").targets["both"].tolist() == [[4, -4], [2, -2]]


@pytest.mark.parametrize(
    ("items", "text", "kind"),
    [
        (
            [{"a": torch.zeros(3), "b": torch.zeros(2)}],
            "pad_collate: got 'a' of [3], 'b' of [2] steps; wanted the same number of steps",
            ValueError,
        ),
        (
            [{"a": torch.zeros(3)}, {"b": torch.zeros(3)}],
            "got sequences a dict of 'a' beside a dict of 'b'; wanted dicts with the same keys",
            TypeError,
        ),
        (
            [{"a": torch.zeros(3)}, torch.zeros(3)],
            "got sequences a dict of 'a' beside (3,)",
            TypeError,
        ),
        ([{}], "got no steps; wanted the same number of steps for each", ValueError),
        (
            [(torch.zeros(3), {"a": 1}), (torch.zeros(3), 1)],
            "got targets a dict of 'a' beside a int",
            TypeError,
        ),
        ([(torch.zeros(3), "cat")], "got a target that is a str; wanted a number or a", TypeError),
        (
            [(torch.zeros(3), torch.zeros(2)), (torch.zeros(3), torch.zeros(4))],
            "got a target (2,) for a sequence of 3 steps at index 0",
            ValueError,
        ),
    ],
)
def test_items_that_do_not_fit_each_other_are_refused(items, text, kind):
    refused(lambda: pad_collate(items), text, kind)


def test_targets_of_sequences_have_one_shape():
    items = [(torch.zeros(3), torch.zeros(2)), (torch.zeros(3), torch.zeros(4))]
    message = refused(
        lambda: pad_collate(items, per="sequence"), "got targets (2,), (4,); wanted targets of one"
    )
    assert 'per="step"' in message


def test_targets_as_arrays_and_lists_become_tensors():
    items = [(torch.zeros(2), np.array([1, 2])), (torch.zeros(3), [3, 4, 5])]
    assert pad_collate(items).targets.T.tolist() == [[1, 2, 0], [3, 4, 5]]


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


class Slices:
    """A stream of which nothing but slices can be had."""

    def __init__(self, whole):
        self.whole = whole

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        return self.whole[index]


@few
@given(
    extra=st.integers(0, 40),
    batch_size=st.integers(1, 4),
    window=st.integers(1, 7),
    features=st.sampled_from([(), (2,), (2, 3)]),
)
def test_views_of_a_tensor_and_slices_of_a_stream_are_the_same_batches(
    extra, batch_size, window, features
):
    stream = torch.randn(2 * batch_size + extra, *features, generator=seeded(extra))
    views, sliced = (
        StreamLoader(stream, batch_size, window),
        StreamLoader(Slices(stream), batch_size, window),
    )
    assert len(views) == len(sliced) == len(list(views))
    for a, b in zip(views, sliced, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.restart, b.restart)
        assert a.lengths is None
        assert b.lengths is None
        assert a.inputs.is_contiguous()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("of", [lambda stream: stream, Slices, lambda stream: [stream, stream]])
def test_what_changes_a_batch_changes_neither_the_stream_nor_the_targets(of, batch_size):
    stream = torch.arange(20.0)
    for batch in StreamLoader(of(stream), batch_size, 4):
        targets = batch.targets.clone()
        batch.inputs.add_(100)
        assert torch.equal(batch.targets, targets)
        batch.targets.add_(1000)
    assert torch.equal(stream, torch.arange(20.0))


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"])
@pytest.mark.parametrize("of", [lambda stream: stream, Slices, lambda stream: [stream, stream]])
def test_whole_numbers_of_any_width_are_what_an_embedding_takes(kind, of):
    stream = np.arange(20).astype(kind)
    embedding = nn.Embedding(20, 3)
    for batch in StreamLoader(of(stream), 2, 4):
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert embedding(batch.inputs).shape == (*batch.inputs.shape, 3)
        assert torch.equal(batch.targets, batch.inputs + 1)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.uint16])
def test_a_tensor_of_narrow_whole_numbers_is_widened_too(kind):
    (batch,) = StreamLoader(torch.tensor([3, 1, 250], dtype=kind), 1, 4)
    assert batch.inputs.flatten().tolist() == [3, 1]
    assert batch.targets.flatten().tolist() == [1, 250]
    assert batch.inputs.dtype == torch.int64


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bool"])
def test_what_is_no_whole_number_keeps_its_dtype(kind):
    stream = np.arange(20).astype(kind)
    for batch in StreamLoader(stream, 2, 4):
        assert str(batch.inputs.dtype) == f"torch.{kind}"
    assert torch.equal(batch.inputs[:, 0], torch.as_tensor(stream)[8:9])


def test_a_read_only_memory_map_is_read_without_a_warning(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(50, dtype=np.uint16))
    stream = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = rows_of(StreamLoader(stream, 3, 5), 3)
    assert [row[0][0] for row in rows] == [0, 16, 32]
    assert [row[-1][1] for row in rows] == [16, 32, 48]


def test_of_a_memory_map_no_more_than_a_window_is_read(tmp_path):
    resource = pytest.importorskip("resource")
    if sys.platform != "linux":
        pytest.skip(
            "elsewhere a file with holes takes its whole size, and memory is told otherwise"
        )
    stream = np.memmap(tmp_path / "huge", np.uint16, "w+", shape=(2**32,))  # 8 GiB of holes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loader = StreamLoader(stream, 64, 16)
    batches = iter(loader)
    for _ in range(10):
        assert next(batches).inputs.shape == (16, 64)
    assert len(loader) == (2**32 - 1) // 64 // 16 + 1
    assert time.perf_counter() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_documents_of_two_dtypes_are_refused():
    documents = [torch.arange(5), torch.arange(5.0)]
    refused(
        lambda: list(StreamLoader(documents, 2, 3)),
        "StreamLoader: got documents of torch.float32 and torch.int64; wanted one dtype",
        TypeError,
    )


def test_documents_of_unequal_features_are_refused():
    documents = [torch.zeros(5, 2), torch.zeros(5, 3)]
    refused(lambda: list(StreamLoader(documents, 2, 3)), "documents of steps (2,) and (3,)")


@pytest.mark.parametrize(
    "stream",
    [
        np.arange(20.0)[::-1],
        np.arange(20, dtype=">f4"),
        np.array(list("some letters of a text")),
        np.arange(20).astype("datetime64[s]"),
    ],
    ids=["reversed", "of another byte order", "letters", "times"],
)
def test_an_array_that_torch_does_not_take_is_refused_with_the_way_to_turn_it(stream):
    def read(stream):
        return list(StreamLoader(stream, 1, 4))

    for source in (stream, [stream]):
        text = "StreamLoader: got a ndarray that torch does not"
        message = refused(partial(read, source), text, TypeError)
        assert "np.ascontiguousarray" in message


def test_lengths_of_a_small_dtype_hold_no_limit_that_is_larger_than_it():
    for dtype in (torch.uint8, torch.uint16):
        lengths = torch.tensor([200, 100, 3], dtype=dtype)
        assert list(BucketSampler(lengths, None, max_steps=600, shuffle=False)) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        ("text", "StreamLoader: got a str; wanted sequences of numbers"),
        (b"text", "got a bytes; wanted"),
        (["a text", "another"], "got a list that holds a str; wanted"),
        (torch.tensor(3), "got (); wanted sequences of numbers"),
        ([torch.tensor(3)], "got a list that holds (); wanted"),
        (torch.arange(9).to_sparse(), "got (9,); wanted sequences of numbers"),
        (7, "got a int; wanted"),
        (iter([1, 2]), "got a list_iterator; wanted"),
    ],
)
def test_what_is_no_sequence_of_numbers_is_refused(stream, text):
    message = refused(lambda: StreamLoader(stream, 1, 2), text, TypeError)
    assert "encoded" in message


def test_a_document_of_one_step_has_no_next_step_and_is_left_out():
    loader = StreamLoader([torch.tensor([7]), torch.tensor([1, 2])], 1, 4)
    assert [row for row in rows_of(loader, 1)] == [[(1, 2, True)]]
    refused(lambda: StreamLoader([torch.tensor([7])], 1, 4), "got a list of 1 for 1 rows; wanted")


@pytest.mark.parametrize("stream", [np.arange(20), [torch.arange(9, device="cpu"), [1, 2, 3]]])
def test_a_stream_is_on_the_cpu_whatever_the_default_device_is(stream):
    torch.set_default_device("meta")
    try:
        batches = list(StreamLoader(stream, 2, 4))
    finally:
        torch.set_default_device(None)
    for batch in batches:
        assert batch.inputs.device.type == batch.restart.device.type == "cpu"
    assert batches[0].restart.tolist() == [True, True]


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


@few
@given(
    count=st.integers(1, 60),
    batch_size=st.none() | st.integers(1, 9),
    max_steps=st.integers(30, 90),
    shuffle=st.booleans(),
    seed=st.integers(0, 20),
)
def test_max_steps_bounds_rows_times_the_longest(count, batch_size, max_steps, shuffle, seed):
    lengths = torch.randint(1, 31, (count,), generator=seeded(seed))
    sampler = BucketSampler(
        lengths, batch_size, max_steps=max_steps, shuffle=shuffle, generator=seeded(seed)
    )
    batches = list(sampler)
    assert len(sampler) == len(batches) == len(list(sampler))
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    most = batch_size or count
    for batch in batches:
        assert len(batch) * int(lengths[batch].max()) <= max_steps
        assert 1 <= len(batch) <= most
    if not shuffle:  # the shortest first, and each batch too full for the longest of the one before
        for shorter, longer in pairwise(batches):
            assert lengths[shorter].max() <= lengths[longer].min()
            full = (len(longer) + 1) * int(lengths[longer].max()) > max_steps
            assert full or len(longer) == most


@few
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 20),
)
def test_drop_last_gives_full_batches_alone(count, batch_size, shuffle, seed):
    lengths = torch.randint(1, 31, (count,), generator=seeded(seed))
    sampler = BucketSampler(
        lengths, batch_size, drop_last=True, shuffle=shuffle, generator=seeded(seed)
    )
    batches = list(sampler)
    assert len(sampler) == len(batches) == count // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    seen = [i for batch in batches for i in batch]
    assert len(seen) == len(set(seen))
    if not shuffle:
        assert sorted(seen) == list(range(count - count % batch_size))


def test_drop_last_leaves_out_other_sequences_in_every_epoch():
    lengths = torch.arange(1, 12)
    sampler = BucketSampler(lengths, 4, drop_last=True, generator=seeded())
    left_out = [set(range(11)) - {i for batch in sampler for i in batch} for _ in range(40)]
    assert all(len(indices) == 3 for indices in left_out)
    assert set.union(*left_out) == set(range(11)), "none is left out for good, the longest neither"


def test_drop_last_with_max_steps_leaves_out_the_shortest():
    sampler = BucketSampler([4, 4, 2, 2, 1], None, max_steps=8, drop_last=True, shuffle=False)
    assert list(sampler) == [[0, 1]]  # [2, 3, 4] fill 6 of 8 steps: one more of 2 would fit
    assert len(sampler) == 1


@pytest.mark.parametrize(
    ("make", "text", "kind"),
    [
        (
            lambda: BucketSampler([1, 2], None),
            "got batch_size = None; wanted batch_size, max",
            ValueError,
        ),
        (
            lambda: BucketSampler([3, 9, 2], 2, max_steps=8),
            "BucketSampler: got a sequence of 9 steps at index 1; wanted none longer than max_steps = 8",
            ValueError,
        ),
        (lambda: BucketSampler([3], 1, max_steps=0), "got max_steps = 0; wanted", ValueError),
        (lambda: BucketSampler([3], 1.5), "got batch_size = 1.5; wanted a whole number", TypeError),
        (lambda: BucketSampler([3, 0], 1), "got a length of 0 at index 1; wanted", ValueError),
        (lambda: BucketSampler([3.0, 1.0], 1), "got lengths of torch.float32; wanted", TypeError),
        (
            lambda: BucketSampler(torch.ones(3, 2).long(), 1),
            "got lengths (3, 2); wanted",
            ValueError,
        ),
    ],
)
def test_a_bucket_sampler_refuses_what_makes_no_batches(make, text, kind):
    refused(make, text, kind)


def test_buckets_are_made_on_the_cpu_whatever_the_default_device_is():
    torch.set_default_device("meta")
    try:
        batches = list(BucketSampler([3, 1, 2, 5], 2))
    finally:
        torch.set_default_device(None)
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]


def test_a_stream_loader_says_that_no_data_loader_goes_around_it():
    loader = StreamLoader(torch.arange(30), batch_size=2, window=5)
    refused(lambda: next(iter(DataLoader(loader))), "wanted for batch in loader", TypeError)
    refused(lambda: loader[0], "wanted for batch in loader", TypeError)
    assert len(list(loader)) == len(loader)
