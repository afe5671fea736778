"""Operations on a state tree: tuples, lists, dicts, None and tensors whose dim 1 is the batch."""

from collections import namedtuple

import pytest
import torch
from helpers import leaves, refused
from torch import nn

from rnnkit import RecurrentSequential, detach, reset_rows, select_rows
from rnnkit.core.errors import asked
from rnnkit.core.state import map_leaves, same_form, where_rows

B = 4


def tree(requires_grad=False):
    def leaf(layers, *features):
        return torch.randn(layers, B, *features, dtype=torch.float64, requires_grad=requires_grad)

    return (
        (leaf(2, 3), leaf(2, 3)),
        None,
        [leaf(1, 5)],
        {"memory": leaf(1, 2, 2, 2), "none": None},
    )


def same_structure(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_structure(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same_structure(x, y) for x, y in zip(a, b, strict=True))
    return a is b


OPERATIONS = [
    detach,
    lambda state: select_rows(state, torch.tensor([2, 0])),
    lambda state: reset_rows(state, torch.tensor([True, False, False, True])),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_shape_of_the_tree_stays(operation):
    state = tree()
    assert same_structure(state, operation(state))
    assert len(leaves(state)) == 4


def test_a_state_may_be_one_tensor():
    state = torch.ones(2, 3, 1, requires_grad=True)
    assert not detach(state).requires_grad
    assert select_rows(state, torch.tensor([0])).shape == (2, 1, 1)
    assert reset_rows(state, torch.tensor([True, False, True])).sum() == 2


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_state_stays_no_state(operation):
    assert operation(None) is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_came_in_is_not_changed(operation):
    state = tree()
    before = [leaf.clone() for leaf in leaves(state)]
    operation(state)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))


def test_detach_cuts_the_graph_and_keeps_the_values():
    state = tree(requires_grad=True)
    for was, now in zip(leaves(state), leaves(detach(state)), strict=True):
        assert torch.equal(was, now)
        assert not now.requires_grad
        assert was.requires_grad


def test_a_detached_state_lets_the_next_window_be_differentiated():
    torch.manual_seed(0)
    rnn = nn.LSTM(2, 3)
    _, state = rnn(torch.randn(4, B, 2))
    rnn(torch.randn(4, B, 2), state)[0].sum().backward(retain_graph=False)
    _, state = rnn(torch.randn(4, B, 2))
    for _ in range(2):
        state = detach(state)
        outputs, state = rnn(torch.randn(4, B, 2), state)
        outputs.sum().backward()


@pytest.mark.parametrize("index", [[0], [2, 0], [3, 3, 1, 0, 2], []])
def test_select_rows_indexes_dim_1_of_every_leaf(index):
    state, index = tree(), torch.tensor(index, dtype=torch.int64)
    for was, now in zip(leaves(state), leaves(select_rows(state, index)), strict=True):
        assert torch.equal(now, was[:, index])


@pytest.mark.parametrize("rows", [[0, 1], [], torch.tensor([]), torch.tensor([1.0])])
def test_rows_that_are_a_list_or_floats_are_told_their_dtype(rows):
    with pytest.raises(TypeError, match=r"select_rows: got rows .*dtype=torch\.int64"):
        select_rows(tree(), rows)


def test_selected_rows_go_on_as_they_would_have_alone():
    torch.manual_seed(0)
    model = RecurrentSequential(nn.LSTM(2, 3, num_layers=2), nn.GRU(3, 2)).double()
    first, then = (
        torch.randn(4, B, 2, dtype=torch.float64),
        torch.randn(3, B, 2, dtype=torch.float64),
    )
    _, state = model(first)
    all_rows, _ = model(then, state)
    index = torch.tensor([3, 1])
    some_rows, _ = model(then[:, index], select_rows(state, index))
    torch.testing.assert_close(some_rows, all_rows[:, index])


def test_selecting_passes_the_gradient_to_the_rows_it_took():
    state = torch.ones(1, B, 2, requires_grad=True)
    select_rows(state, torch.tensor([1, 1])).sum().backward()
    assert state.grad[0, :, 0].tolist() == [0, 2, 0, 0]


def test_reset_rows_zeroes_the_rows_it_names_and_no_other():
    state, rows = tree(), torch.tensor([True, False, False, True])
    for was, now in zip(leaves(state), leaves(reset_rows(state, rows)), strict=True):
        assert now[:, rows].eq(0).all()
        assert torch.equal(now[:, ~rows], was[:, ~rows])


def test_reset_rows_clears_what_is_not_a_number():
    state = torch.tensor([[[float("nan")], [1.0], [float("inf")], [2.0]]])
    assert reset_rows(state, torch.tensor([True, False, True, False])).flatten().tolist() == [
        0,
        1,
        0,
        2,
    ]


def test_a_reset_row_goes_on_as_if_it_had_just_started():
    torch.manual_seed(0)
    model = RecurrentSequential(nn.LSTM(2, 3, num_layers=2), nn.GRU(3, 2)).double()
    first, then = (
        torch.randn(4, B, 2, dtype=torch.float64),
        torch.randn(3, B, 2, dtype=torch.float64),
    )
    rows = torch.tensor([False, True, False, True])
    _, state = model(first)
    outputs, _ = model(then, reset_rows(state, rows))
    torch.testing.assert_close(outputs[:, rows], model(then)[0][:, rows])
    torch.testing.assert_close(outputs[:, ~rows], model(then, state)[0][:, ~rows])


def test_no_gradient_crosses_a_reset():
    state = torch.ones(1, B, 2, requires_grad=True)
    reset_rows(state, torch.tensor([True, False, False, True])).sum().backward()
    assert state.grad[0, :, 0].tolist() == [0, 1, 1, 0]


def test_reset_rows_refuses_a_mask_of_another_batch():
    with pytest.raises(
        ValueError, match=r"(?s)reset_rows.*\(3,\).*\(2, 4, 3\)|reset_rows.*\(2, 4, 3\).*\(3,\)"
    ):
        reset_rows((torch.zeros(2, 4, 3),), torch.tensor([True, False, True]))


@pytest.mark.parametrize("rows", [torch.tensor([0, 1, 0, 1]), [True, False, True, False]])
def test_reset_rows_refuses_what_is_no_mask(rows):
    with pytest.raises(ValueError, match=r"reset_rows: got rows .*wanted a bool tensor \(B,\)"):
        reset_rows(torch.zeros(2, 4, 3), rows)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_leaf_that_is_no_tensor_is_refused(operation):
    with pytest.raises(TypeError, match=r"got a str"):
        operation((torch.zeros(2, 4, 3), "state"))


# ---------------------------------------------------------------- two states at once


def test_a_tree_is_mapped_with_the_leaves_of_another():
    got = map_leaves(torch.add, tree(), tree())
    assert same_structure(got, tree())


def test_a_named_tuple_stays_one():
    Pair = namedtuple("Pair", "h c")
    state = Pair(torch.ones(1, B, 2), torch.ones(1, B, 2))
    assert isinstance(detach(state), Pair)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, B, 3),
        (torch.zeros(1, B, 2),),
        (torch.zeros(1, B, 2), {"a": torch.zeros(1, B, 2), "b": torch.zeros(1, B, 2)}),
        (torch.zeros(1, B, 2), torch.zeros(1, B, 2)),
        ((torch.zeros(1, B, 2),), {"a": torch.zeros(1, B, 2)}),
    ],
    ids=["a tensor", "shorter", "another key", "no dict", "a tuple for a leaf"],
)
def test_states_of_another_form_are_refused(other):
    state = (torch.ones(1, B, 2), {"a": torch.ones(1, B, 2)})
    rows = torch.tensor([True, False, True, False])
    refused(lambda: asked("test")(where_rows)(rows, state, other), "wanted states of one form")
    assert not same_form(state, other)


def test_states_whose_leaves_have_another_shape_are_refused():
    rows = torch.tensor([True, False, True, False])
    refused(
        lambda: asked("test")(where_rows)(rows, torch.ones(1, B, 2), torch.ones(1, B, 1)),
        "state leaves (1, 4, 2) and (1, 4, 1)",
    )


def test_rows_are_chosen_from_one_state_or_the_other():
    rows = torch.tensor([True, False, True, False])
    new, old = torch.randn(2, B, 3), torch.randn(2, B, 3)
    got, at_zero = where_rows(rows, (new, new), (old, None))
    assert torch.equal(got[:, rows], new[:, rows]) and torch.equal(got[:, ~rows], old[:, ~rows])
    assert torch.equal(at_zero[:, rows], new[:, rows]) and at_zero[:, ~rows].eq(0).all()


def test_a_row_that_is_not_chosen_passes_no_nan_on():
    new = torch.tensor([[[1.0], [float("nan")]]], requires_grad=True)
    where_rows(torch.tensor([True, False]), new.log(), None).sum().backward()
    assert new.grad[0, 0].item() == 1


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (None, None, True),
        (torch.zeros(1), torch.zeros(2), True),
        (torch.zeros(1), None, False),
        ((None,), [None], True),
        ((torch.zeros(1),), torch.zeros(1), False),
        (torch.zeros(1), (torch.zeros(1),), False),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {"b": None}, False),
        ({"a": None}, [None], False),
    ],
)
def test_the_form_of_a_state_is_its_tree(a, b, same):
    assert same_form(a, b) is same
