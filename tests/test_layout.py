"""The layout rule: what is a sequence, lengths, valid steps, padding; against loops over steps and rows."""

import pytest
import torch
from helpers import few, refused, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from rnnkit.core.errors import asked
from rnnkit.core.layout import (
    all_lengths,
    as_sequence,
    as_sequences,
    between,
    check_lengths,
    check_state,
    device_of,
    extent,
    fill_padding,
    join,
    pack,
    pack_like,
    padded,
    repack,
    unpack,
    valid_steps,
)

T, B, F = 5, 3, 2


def boundary(function, *args, **options):
    return lambda: asked("test")(function)(*args, **options)


# ---------------------------------------------------------------- sequences


@pytest.mark.parametrize("shape", [(T, B), (T, B, F), (T, B, 1, 4, 4), (1, 1)])
def test_a_tensor_is_a_sequence_as_it_is(shape):
    inputs = torch.zeros(shape)
    assert as_sequence(inputs) is inputs


@pytest.mark.parametrize("kind", [list, tuple])
def test_steps_are_stacked_along_time(kind):
    inputs = torch.randn(T, B, F)
    assert torch.equal(as_sequence(kind(inputs)), inputs)


@pytest.mark.parametrize(
    ("steps", "text", "error"),
    [
        ([], "an empty list", ValueError),
        ([1, 2], "a list that holds a int", TypeError),
        ([torch.zeros(2), torch.zeros(3)], "a list of (2,), (3,)", ValueError),
        # What a GRU gives, and what an LSTM does.
        ((torch.zeros(3, 2, 1), torch.zeros(1, 2, 1)), "outputs, state = model(", ValueError),
        ((torch.zeros(3, 2, 1), (torch.zeros(1, 2, 1),) * 2), "outputs, state =", TypeError),
        ("text", "a str", TypeError),
        (torch.zeros(3, 2).numpy(), "torch.as_tensor of an array", TypeError),
        (None, "a NoneType", TypeError),
        (torch.zeros(3), "inputs (3,)", ValueError),
        (torch.zeros(0, 2), "empty inputs (0, 2)", ValueError),
        (torch.zeros(2, 0, 1), "empty inputs (2, 0, 1)", ValueError),
        (pack_sequence([torch.zeros(2)]), "a PackedSequence", TypeError),
    ],
    ids=str,
)
def test_what_is_no_sequence_is_refused(steps, text, error):
    refused(boundary(as_sequence, steps), text, error)


def test_a_dict_of_sequences_has_one_extent():
    inputs = {"a": torch.zeros(T, B, F), "b": list(torch.zeros(T, B))}
    parts = as_sequences(inputs)
    assert parts["b"].shape == (T, B)
    assert extent(parts) == extent(parts["a"]) == (T, B)
    assert device_of(parts) == device_of(parts["a"]) == torch.device("cpu")


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"a": torch.zeros(T, B), "b": torch.zeros(T, B + 1)}, "'a' (5, 3), 'b' (5, 4)"),
        ({"a": torch.zeros(T, B), "b": torch.zeros(T - 1, B)}, "'b' (4, 3)"),
        ({}, "a dict of nothing"),
        ({"a": torch.zeros(T)}, "inputs['a'] (5,)"),
    ],
    ids=["rows", "steps", "none", "no batch"],
)
def test_a_dict_of_others_is_refused(inputs, text):
    refused(boundary(as_sequences, inputs), text)


def test_stretches_are_joined_as_they_were_cut():
    inputs = {"a": torch.randn(T, B, F), "b": torch.randn(T, B)}
    cut = [between(inputs, 0, 2), between(inputs, 2, 3), between(inputs, 3, T)]
    assert cut[1]["a"].shape == (1, B, F)
    whole = join(cut)
    assert all(torch.equal(whole[name], inputs[name]) for name in inputs)
    tensor = inputs["a"]
    assert torch.equal(join([between(tensor, 0, 1), between(tensor, 1, T)]), tensor)
    assert between(tensor, 1, 3).data_ptr() == tensor[1].data_ptr()
    assert join([tensor]) is tensor


# ---------------------------------------------------------------- lengths


def test_without_lengths_every_step_counts():
    assert all_lengths(None, T, B).tolist() == [T] * B
    lengths = torch.tensor([1, 2, 3])
    assert all_lengths(lengths, T, B) is lengths


def test_valid_steps_are_those_before_the_end():
    wanted = [[True, True, True], [False, True, True], [False, False, True]]
    assert valid_steps(torch.tensor([1, 2, 5]), 3).tolist() == wanted


def test_lengths_and_masks_stay_on_the_cpu_whatever_the_default_device():
    lengths = torch.tensor([1, 5, 3])
    inputs = torch.randn(T, B)
    torch.set_default_device("meta")
    try:
        assert all_lengths(None, T, B).device.type == "cpu"
        assert valid_steps(lengths, T).device.type == "cpu"
        assert fill_padding(inputs, lengths).device.type == "cpu"
        assert check_lengths(lengths, T, B) is lengths
        assert unpack(pack(inputs, lengths))[0].device.type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    ("lengths", "text", "error"),
    [
        ([1, 2, 3], "lengths = a list of 3", TypeError),
        (torch.tensor([1.0, 2.0, 3.0]), "lengths of torch.float32", TypeError),
        (torch.tensor([1, 2, 3], dtype=torch.int32), "lengths of torch.int32", TypeError),
        (torch.zeros(3, dtype=torch.int64, device="meta"), "on meta", TypeError),
        (torch.tensor([1, 2]), "lengths (2,) for a batch of 3", ValueError),
        (torch.ones(T, 3, dtype=torch.bool), "lengths (5, 3) for a batch of 3", ValueError),
        (torch.tensor([0, 2, 3]), "lengths from 0 to 3", ValueError),
        (torch.tensor([1, 2, 6]), "lengths from 1 to 6", ValueError),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_are_refused(lengths, text, error):
    refused(boundary(check_lengths, lengths, T, B), text, error)


def test_a_row_may_have_no_step_where_that_is_said():
    check_lengths(torch.tensor([0, 2, 3]), T, B, least=0)


@pytest.mark.parametrize("leaf", [torch.zeros(1, 2, 4), torch.zeros(3)], ids=str)
def test_a_state_of_another_batch_is_refused(leaf):
    check_state((torch.zeros(1, B, 4), {"a": torch.zeros(2, B)}), B)
    check_state(None, B)
    refused(boundary(check_state, (torch.zeros(1, B, 4), leaf), B), "for a batch of 3")


# ---------------------------------------------------------------- padding


@few
@given(
    lengths=st.lists(st.integers(0, T), min_size=1, max_size=5).filter(any), seed=st.integers(0, 99)
)
def test_padding_is_filled_with_steps_of_the_data(lengths, seed):
    inputs = torch.randn(T, len(lengths), F, generator=seeded(seed))
    for i, n in enumerate(lengths):
        inputs[n:, i] = float("nan")
    before = inputs.clone()
    filled = fill_padding({"a": inputs, "b": inputs[..., 0]}, torch.tensor(lengths))
    longest = lengths.index(max(lengths))
    for i, n in enumerate(lengths):
        assert torch.equal(filled["a"][:n, i], inputs[:n, i])
        last = inputs[n - 1, i] if n else inputs[0, longest]
        assert all(torch.equal(step, last) for step in filled["a"][n:, i])
    assert torch.equal(filled["b"], filled["a"][..., 0])
    assert torch.equal(inputs.nan_to_num(), before.nan_to_num())


def test_no_gradient_comes_from_padding():
    inputs = torch.randn(T, B, F, requires_grad=True)
    lengths = torch.tensor([5, 2, 0])
    valid = valid_steps(lengths, T)
    fill_padding(inputs, lengths)[valid].sum().backward()
    assert torch.equal(inputs.grad[..., 0], valid.to(inputs.dtype))


# ---------------------------------------------------------------- packed


def test_what_is_packed_is_unpacked_without_its_padding():
    lengths = torch.tensor([2, 5, 3])
    inputs = {"a": torch.randn(T, B, F), "b": torch.randint(1, 9, (T, B))}
    packed = pack(inputs, lengths)
    assert torch.equal(unpack(packed)[1], lengths)
    back = padded(packed, 7)
    valid = valid_steps(lengths, 7)
    for name, part in inputs.items():
        assert back[name].shape[:2] == (7, B)
        assert torch.equal(back[name][valid], part[valid[:T]])
        assert back[name][~valid].eq(0).all()


@pytest.mark.parametrize("owner", [False, True])
def test_a_sequence_is_packed_in_the_order_of_another(owner):
    lengths = torch.tensor([5, 3, 3] if owner else [3, 5, 3])
    inputs = torch.randn(T, B, F)
    packed = pack_padded_sequence(inputs, lengths, enforce_sorted=owner)
    again = pack_like({"a": inputs + 1}, packed, lengths)["a"]
    assert torch.equal(again.data, packed.data + 1)
    assert torch.equal(again.batch_sizes, packed.batch_sizes)
    assert again.sorted_indices is packed.sorted_indices
    assert torch.equal(unpack(repack(packed, packed.data + 1))[0], unpack(again)[0])
