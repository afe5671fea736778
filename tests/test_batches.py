"""Layouts, padding, shifting, the forms of a batch: tested against plain indexing."""

import pickle

import pytest
import torch
from helpers import few, refused, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data._utils.pin_memory import pin_memory

from rnnkit import Padded, SequenceBatch, batchseq, get_inout_seq, pad_collate, steps, unbatchseq

FEATURES = [(), (1,), (3,), (2, 3), (1, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.int64, torch.bool]


def random_sequence(length, features=(2,), dtype=torch.float64, generator=None):
    return torch.randint(-9, 9, (length, *features), generator=generator).to(dtype)


# ---------------------------------------------------------------- steps


def test_steps_of_a_tensor_are_its_slices_along_dim_0():
    sequence = torch.arange(24.0).reshape(4, 3, 2)
    parts = steps(sequence)
    assert isinstance(parts, list)
    assert len(parts) == 4
    for t, part in enumerate(parts):
        assert torch.equal(part, sequence[t])


def test_steps_of_a_list_are_the_list():
    sequence = [torch.full((3, 2), float(t)) for t in range(4)]
    parts = steps(sequence)
    assert len(parts) == 4
    assert all(torch.equal(a, b) for a, b in zip(parts, sequence, strict=True))


def test_steps_keep_the_gradient():
    sequence = torch.ones(4, 3, 2, requires_grad=True)
    steps(sequence)[2].sum().backward()
    assert sequence.grad[2].eq(1).all()
    assert sequence.grad[[0, 1, 3]].eq(0).all()


def test_steps_refuses_steps_of_unequal_shape():
    with pytest.raises(ValueError, match=r"(?s)steps.*\(3, 2\).*\(2, 2\)"):
        steps([torch.zeros(3, 2), torch.zeros(2, 2)])


def test_steps_refuses_an_empty_list():
    with pytest.raises(ValueError, match=r"(?s)steps.*empty"):
        steps([])


def test_steps_refuses_a_list_of_numbers():
    with pytest.raises(TypeError, match=r"(?s)steps.*a list that holds a float.*\(B, \*F\)"):
        steps([1.0, 2.0])


def test_steps_refuses_a_tensor_without_a_batch():
    with pytest.raises(ValueError, match=r"(?s)steps.*\(5,\).*\(T, B, \*F\).*unsqueeze\(1\)"):
        steps(torch.zeros(5))


@pytest.mark.parametrize("wrong", [None, 3, "abc", {"a": 1}])
def test_steps_refuses_what_is_no_sequence(wrong):
    with pytest.raises(TypeError, match="steps"):
        steps(wrong)


# ---------------------------------------------------------------- get_inout_seq


def test_a_pair_is_inputs_and_targets_already():
    inputs, targets = torch.zeros(5, 2, 1), torch.ones(5, 2, 1)
    got = get_inout_seq((inputs, targets))
    assert got[0] is inputs
    assert got[1] is targets
    assert len(got) == 2


def test_a_triple_is_inputs_targets_and_lengths_already():
    parts = (torch.zeros(5, 2, 1), torch.ones(5, 2, 1), torch.tensor([5, 3]))
    got = get_inout_seq(parts)
    assert len(got) == 3
    assert all(a is b for a, b in zip(got, parts, strict=True))


def test_one_sequence_gives_itself_without_its_last_and_without_its_first_step():
    sequence = torch.arange(10.0).reshape(5, 2, 1)
    inputs, targets = get_inout_seq(sequence)
    assert torch.equal(inputs, sequence[:-1])
    assert torch.equal(targets, sequence[1:])


def test_a_list_of_steps_is_one_sequence():
    sequence = [torch.full((2, 1), float(t)) for t in range(5)]
    inputs, targets = get_inout_seq(sequence)
    assert torch.equal(torch.stack(steps(inputs)), torch.stack(sequence[:-1]))
    assert torch.equal(torch.stack(steps(targets)), torch.stack(sequence[1:]))


def test_a_list_of_two_is_refused_as_it_may_be_two_steps_or_a_pair():
    message = refused(
        lambda: get_inout_seq([torch.zeros(5, 2, 1), torch.zeros(5, 2, 1)]),
        "get_inout_seq: got a list of 2; wanted a tuple (inputs, targets), or one sequence",
        TypeError,
    )
    assert "tuple(batch)" in message
    assert "torch.stack(batch)" in message


def test_a_sequence_batch_gives_its_parts():
    batch = SequenceBatch(torch.zeros(5, 2, 1), torch.ones(5, 2, 1), torch.tensor([5, 3]))
    inputs, targets, lengths = get_inout_seq(batch)
    assert inputs is batch.inputs
    assert targets is batch.targets
    assert lengths is batch.lengths


def test_a_sequence_batch_without_targets_is_shifted_and_so_are_its_lengths():
    sequences = [torch.arange(5.0), torch.arange(3.0)]
    padded, lengths = batchseq(sequences)
    inputs, targets, shifted = get_inout_seq(SequenceBatch(padded, lengths=lengths))
    assert torch.equal(inputs, padded[:-1])
    assert torch.equal(targets, padded[1:])
    assert shifted.tolist() == [4, 2]
    for i, sequence in enumerate(sequences):
        assert torch.equal(unbatchseq(inputs, shifted)[i], sequence[:-1])
        assert torch.equal(unbatchseq(targets, shifted)[i], sequence[1:])


def test_a_sequence_batch_without_targets_and_lengths_is_shifted():
    sequence = torch.arange(10.0).reshape(5, 2, 1)
    inputs, targets = get_inout_seq(SequenceBatch(sequence))
    assert torch.equal(inputs, sequence[:-1])
    assert torch.equal(targets, sequence[1:])


def test_an_encoder_decoder_s_inputs_are_shifted_and_its_source_is_not():
    source, inner = torch.rand(7, 2, 3), torch.rand(5, 2, 1)
    batch = SequenceBatch((source, torch.tensor([7, 4]), inner), lengths=torch.tensor([5, 3]))
    (same, lengths, inputs), targets, shifted = get_inout_seq(batch)
    assert same is source
    assert lengths.tolist() == [7, 4]
    assert torch.equal(inputs, inner[:-1])
    assert torch.equal(targets, inner[1:])
    assert shifted.tolist() == [4, 2]
    assert len(get_inout_seq(SequenceBatch((source, None, inner)))) == 2


def test_one_step_has_no_next_one():
    with pytest.raises(ValueError, match=r"(?s)get_inout_seq.*\(1, 2, 1\).*at least two steps"):
        get_inout_seq(torch.zeros(1, 2, 1))


def test_a_row_of_one_step_has_no_next_one():
    padded, lengths = batchseq([torch.zeros(5), torch.zeros(1)])
    with pytest.raises(ValueError, match=r"get_inout_seq.*lengths from 1.*drop shorter"):
        get_inout_seq(SequenceBatch(padded, lengths=lengths))


@pytest.mark.parametrize(
    "wrong",
    [None, 3.0, "abc", (torch.zeros(2, 1),), (1, 2, 3, 4), torch.zeros(3, 2, 1).to_sparse()],
    ids=lambda wrong: type(wrong).__name__,
)
def test_anything_else_is_a_type_error(wrong):
    with pytest.raises(TypeError, match="get_inout_seq"):
        get_inout_seq(wrong)


# ---------------------------------------------------------------- batchseq, unbatchseq


@few
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    features=st.sampled_from(FEATURES),
    dtype=st.sampled_from(DTYPES),
)
def test_unbatchseq_is_the_exact_inverse_of_batchseq(lengths, features, dtype):
    sequences = [random_sequence(n, features, dtype, seeded(i)) for i, n in enumerate(lengths)]
    padded, got_lengths = batchseq(sequences)
    assert padded.shape == (max(lengths), len(lengths), *features)
    assert padded.dtype == dtype
    assert got_lengths.tolist() == lengths
    assert got_lengths.dtype == torch.int64
    assert got_lengths.device.type == "cpu"
    back = unbatchseq(padded, got_lengths)
    assert len(back) == len(sequences)
    for was, now in zip(sequences, back, strict=True):
        assert now.dtype == was.dtype
        assert torch.equal(was, now)


def test_the_padding_is_what_was_asked_for():
    padded, lengths = batchseq([torch.ones(3, 2), torch.ones(1, 2)], pad=-7.0)
    assert lengths.tolist() == [3, 1]
    assert padded[:, 0].eq(1).all()
    assert padded[0, 1].eq(1).all()
    assert padded[1:, 1].eq(-7).all()


def test_integer_tokens_can_be_padded_with_an_index():
    padded, _ = batchseq([torch.tensor([1, 2, 3]), torch.tensor([4])], pad=9)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[1, 4], [2, 9], [3, 9]]


def test_batchseq_lets_the_gradient_through():
    first, second = torch.ones(3, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    padded, _ = batchseq([first, second])
    (2 * padded).sum().backward()
    assert first.grad.eq(2).all()
    assert second.grad.eq(2).all()


def test_batchseq_refuses_an_empty_list():
    with pytest.raises(ValueError, match=r"(?s)batchseq.*empty"):
        batchseq([])


def test_batchseq_refuses_sequences_of_unequal_feature_shape():
    with pytest.raises(ValueError, match=r"(?s)batchseq.*\(3, 2\).*\(4, 5\)"):
        batchseq([torch.zeros(3, 2), torch.zeros(4, 5)])


def test_batchseq_refuses_an_empty_sequence():
    with pytest.raises(ValueError, match=r"(?s)batchseq.*index 1.*drop"):
        batchseq([torch.zeros(3, 2), torch.zeros(0, 2)])


def test_batchseq_refuses_sequences_of_unequal_dtype():
    with pytest.raises(TypeError, match=r"(?s)batchseq.*float32.*int64.*one dtype"):
        batchseq([torch.zeros(3), torch.zeros(3, dtype=torch.int64)])


def test_batchseq_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"(?s)batchseq.*a list of 2.*as_tensor"):
        batchseq([[1.0, 2.0], [3.0]])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_its_sequences_and_none_of_them(layout):
    sequences = [random_sequence(3), random_sequence(2)]
    nested = torch.nested.nested_tensor(sequences, layout=layout)
    padded, expected = batchseq(nested), batchseq(sequences)
    assert torch.equal(padded.sequences, expected.sequences)
    assert torch.equal(padded.lengths, expected.lengths)
    text = "a nested tensor; wanted dense tensors of one dtype"
    refused(lambda: batchseq([nested, nested]), text, TypeError)


def test_batchseq_refuses_sparse_sequences():
    sparse = torch.eye(2).to_sparse()
    refused(lambda: batchseq([sparse, sparse]), "wanted dense tensors", TypeError)


@pytest.mark.parametrize(
    ("lengths", "word"),
    [
        (torch.tensor([6, 2]), "6"),
        (torch.tensor([-1, 2]), "-1"),
        (torch.tensor([5, 2, 2]), r"\(3,\)"),
        (torch.tensor([5.0, 2.0]), "float"),
    ],
)
def test_unbatchseq_refuses_lengths_that_do_not_fit(lengths, word):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)unbatchseq.*{word}"):
        unbatchseq(torch.zeros(5, 2, 1), lengths)


# ---------------------------------------------------------------- SequenceBatch, pad_collate


def test_iterating_a_sequence_batch_gives_the_parts_that_are_there():
    inputs, targets, lengths = torch.zeros(5, 2, 1), torch.ones(5, 2, 1), torch.tensor([5, 3])
    restart = torch.tensor([True, False])
    assert [part is inputs for part in SequenceBatch(inputs)] == [True]
    assert len(list(SequenceBatch(inputs, targets))) == 2
    assert len(list(SequenceBatch(inputs, lengths=lengths))) == 2
    unpacked_inputs, unpacked_targets, unpacked_lengths = SequenceBatch(
        inputs, targets, lengths, restart
    )
    assert unpacked_inputs is inputs
    assert unpacked_targets is targets
    assert unpacked_lengths is lengths


def test_a_sequence_batch_moves_with_to_and_its_lengths_stay_on_the_cpu():
    batch = SequenceBatch(
        torch.zeros(5, 2, 1), torch.ones(5, 2, 1), torch.tensor([5, 3]), torch.tensor([True, False])
    )
    moved = batch.to("meta")
    assert moved.inputs.device.type == "meta"
    assert moved.targets.device.type == "meta"
    assert moved.lengths.tolist() == [5, 3]
    assert SequenceBatch(torch.zeros(5, 2, 1)).to("meta").targets is None


def test_a_sequence_batch_that_moves_keeps_its_restarts():
    batch = SequenceBatch(
        torch.zeros(3, 2), lengths=torch.tensor([3, 1]), restart=torch.tensor([True, False])
    )
    assert batch.to("meta").restart.tolist() == [True, False]
    assert batch.to("meta").lengths.tolist() == [3, 1]


def test_the_batch_of_an_encoder_decoder_moves_too():
    source, lengths, inputs = torch.zeros(7, 2, 1), torch.tensor([7, 4]), torch.zeros(5, 2, 1)
    moved = SequenceBatch((source, lengths, inputs), torch.zeros(5, 2, 1)).to("meta")
    assert moved.inputs[0].device.type == moved.inputs[2].device.type == "meta"
    assert moved.inputs[1] is lengths


def test_a_named_tuple_among_the_targets_stays_one_when_it_moves():
    targets = Padded(torch.zeros(5, 2), torch.tensor([5, 3]))
    moved = SequenceBatch(torch.zeros(5, 2, 1), targets).to("meta").targets
    assert isinstance(moved, Padded)
    assert moved.sequences.device.type == "meta"


def test_what_is_no_tensor_among_the_targets_stays_when_it_moves():
    targets = {"class": torch.zeros(5, 2), "text": ["a", "b"]}
    moved = SequenceBatch(torch.zeros(5, 2, 1), targets).to("meta").targets
    assert moved["class"].device.type == "meta"
    assert moved["text"] == ["a", "b"]


def test_two_batches_are_equal_if_they_are_one():
    batch = SequenceBatch(torch.zeros(5, 2, 1))
    assert batch == batch
    assert batch != SequenceBatch(torch.zeros(5, 2, 1))


# ---------------------------------------------------------------- SequenceBatch.of


def forms_of(inputs, targets, lengths):
    yield "a pair", (inputs, targets), False
    yield "lists of steps", (list(inputs), targets), False
    yield "a triple", (inputs, targets, lengths), True
    yield "a SequenceBatch", SequenceBatch(inputs, targets), False
    yield "with lengths", SequenceBatch(inputs, targets, lengths), True
    yield "padded inputs", (Padded(inputs, lengths), targets), True
    yield "both padded", (Padded(inputs, lengths), Padded(targets, lengths)), True
    yield "padded in a batch", SequenceBatch(Padded(inputs, lengths), targets), True


def test_every_form_of_a_batch_is_read_alike():
    inputs = torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded())
    targets = torch.randn(5, 2, dtype=torch.float64, generator=seeded(1))
    lengths = torch.tensor([5, 3])
    for name, form, ragged in forms_of(inputs, targets, lengths):
        batch = SequenceBatch.of(form)
        assert isinstance(batch, SequenceBatch), name
        assert torch.equal(batch.inputs, inputs), name
        assert torch.equal(batch.targets, targets), name
        assert (batch.lengths is lengths) == ragged, name
        assert len(get_inout_seq(form)) == 2 + ragged, name


@few
@given(
    lengths=st.lists(st.integers(2, 7), min_size=1, max_size=5), features=st.sampled_from(FEATURES)
)
def test_what_batchseq_gives_is_one_ragged_sequence_and_no_pair(lengths, features):
    sequences = [random_sequence(n, features, generator=seeded(i)) for i, n in enumerate(lengths)]
    batch = SequenceBatch.of(batchseq(sequences))
    inputs = unbatchseq(batch.inputs, batch.lengths)
    targets = unbatchseq(batch.targets, batch.lengths)
    for i, sequence in enumerate(sequences):
        assert torch.equal(inputs[i], sequence[:-1])
        assert torch.equal(targets[i], sequence[1:])


def test_padded_inputs_and_targets_must_agree_in_their_lengths():
    inputs, targets = batchseq([torch.zeros(3), torch.zeros(2)]), batchseq([torch.zeros(3)] * 2)
    refused(
        lambda: get_inout_seq((inputs, targets)),
        "get_inout_seq: got targets with lengths [3, 3] beside [3, 2]; wanted the same lengths",
    )
    refused(
        lambda: SequenceBatch.of(SequenceBatch(inputs, lengths=torch.tensor([3, 3]))),
        "SequenceBatch.of: got inputs with lengths [3, 2] beside [3, 3]",
    )


def test_padded_is_a_pair_that_keeps_its_name_through_pickle():
    padded = batchseq([torch.zeros(3), torch.zeros(2)])
    sequences, lengths = padded
    assert sequences is padded.sequences
    assert lengths is padded.lengths
    assert isinstance(pickle.loads(pickle.dumps(padded)), Padded)


def test_a_dict_of_sequences_is_one_sequence_of_several_parts():
    parts = {"level": torch.randn(5, 2, 3), "day": torch.arange(10).reshape(5, 2)}
    inputs, targets = get_inout_seq(parts)
    assert inputs.keys() == targets.keys() == parts.keys()
    for name, part in parts.items():
        assert torch.equal(inputs[name], part[:-1])
        assert torch.equal(targets[name], part[1:])


def test_a_dict_of_lists_of_steps_is_a_dict_of_sequences():
    parts = {"a": list(torch.randn(5, 2, 3)), "b": torch.randn(5, 2)}
    batch = SequenceBatch.of((parts, torch.zeros(5, 2)))
    assert torch.equal(batch.inputs["a"], torch.stack(parts["a"]))


@pytest.mark.parametrize("other", [(4, 2, 1), (5, 3, 1), (2, 5)])
def test_parts_of_a_dict_have_one_t_and_one_b(other):
    wrong = {"a": torch.zeros(5, 2, 1), "b": torch.zeros(other)}
    text = (
        f"got inputs = a dict of 'a' (5, 2, 1), 'b' {other}; wanted sequences of the same T and B"
    )
    refused(lambda: SequenceBatch.of(wrong), text)
    refused(lambda: SequenceBatch.of((wrong, torch.zeros(5, 2))), text)


def test_targets_of_a_dict_fit_the_steps_or_the_rows_of_the_inputs():
    inputs = torch.zeros(5, 2, 1)
    fit = {"step": torch.zeros(5, 2, 7), "sequence": torch.zeros(2), "list": [torch.zeros(2)] * 5}
    assert SequenceBatch.of((inputs, fit)).targets == fit
    refused(
        lambda: SequenceBatch.of((inputs, {"step": torch.zeros(4, 2)})),
        "got targets['step'] (4, 2) for T = 5 and B = 2; wanted (5, 2, *Y), or one a sequence",
    )
    refused(lambda: SequenceBatch.of((inputs, {"step": torch.zeros(())})), "got targets['step'] ()")


def test_lengths_are_checked_and_only_a_restart_allows_an_empty_row():
    inputs, empty = torch.zeros(5, 2, 1), torch.tensor([5, 0])
    fit = SequenceBatch(inputs, inputs, empty, restart=torch.tensor([False, True]))
    assert SequenceBatch.of(fit).lengths is empty
    refused(lambda: SequenceBatch.of((inputs, inputs, empty)), "got lengths from 0 to 5; wanted")
    refused(lambda: SequenceBatch.of((inputs, inputs, torch.tensor([6, 5]))), "lengths from 5 to 6")
    refused(lambda: get_inout_seq((inputs, inputs, torch.tensor([5]))), "lengths (1,) for a batch")


@pytest.mark.parametrize(
    ("restart", "text"),
    [
        (torch.zeros(3, dtype=torch.bool), "got restart (3,) of torch.bool; wanted a bool tensor"),
        (torch.zeros(2), "got restart (2,) of torch.float32; wanted a bool tensor (2,)"),
        ([True, False], "got restart = a list of 2; wanted a bool tensor (2,)"),
    ],
)
def test_a_restart_is_a_bool_for_each_row(restart, text):
    inputs = torch.zeros(5, 2, 1)
    refused(lambda: SequenceBatch.of(SequenceBatch(inputs, inputs, restart=restart)), text)


def test_targets_that_are_none_in_a_tuple_are_refused():
    message = refused(
        lambda: get_inout_seq((torch.zeros(5, 2, 1), None)), "a tuple whose targets are", TypeError
    )
    assert "SequenceBatch(inputs)" in message


def test_a_tuple_as_inputs_is_the_source_its_lengths_and_the_inputs():
    source, inputs, targets = torch.zeros(7, 2, 1), torch.zeros(5, 2, 1), torch.zeros(5, 2)
    lengths = torch.tensor([7, 4])
    batch = SequenceBatch.of(((list(source), lengths, list(inputs)), targets))
    assert [part.shape for part in batch.inputs] == [(7, 2, 1), (2,), (5, 2, 1)]
    message = refused(
        lambda: SequenceBatch.of(((source, inputs), targets)),
        "got inputs = a tuple of 2; wanted a sequence, or (source, source_lengths, inputs)",
        TypeError,
    )
    assert "(*batchseq(sources), inputs); several inputs are a dict" in message
    refused(
        lambda: SequenceBatch.of(((source, torch.tensor([8, 4]), inputs), targets)),
        "got lengths from 4 to 8; wanted lengths from 1 to T = 7",
    )


def test_the_parts_of_a_source_without_lengths_may_each_have_steps_of_their_own():
    burn, kept, inputs = torch.zeros(3, 2, 1), torch.ones(1, 2, 8), torch.zeros(5, 2, 1)
    source = {"burn": list(burn), "kept": kept}
    batch = SequenceBatch.of(((source, None, inputs), torch.zeros(5, 2)))
    assert [part.shape for part in batch.inputs[0].values()] == [(3, 2, 1), (1, 2, 8)]
    lengths = torch.tensor([3, 2])  # of which part?
    refused(
        lambda: SequenceBatch.of(((source, lengths, inputs), torch.zeros(5, 2))),
        "got the source = a dict of 'burn' (3, 2, 1), 'kept' (1, 2, 8); wanted sequences of the same",
    )
    source["kept"] = kept[:, :1]
    refused(
        lambda: SequenceBatch.of(((source, None, inputs), torch.zeros(5, 2))),
        "got the first steps of the source = a dict of 'burn' (1, 2, 1), 'kept' (1, 1, 8)",
    )


def test_one_step_of_a_dict_has_no_next_one():
    refused(lambda: get_inout_seq({"a": torch.zeros(1, 2)}), "got a sequence (1, 2); wanted at lea")


# ---------------------------------------------------------------- weights


@few
@given(
    lengths=st.lists(st.integers(2, 7), min_size=1, max_size=5),
    seed=st.integers(0, 9),
    kind=st.sampled_from([torch.float64, torch.float32, torch.bool]),
)
def test_weights_belong_to_targets_and_are_shifted_with_them(lengths, seed, kind):
    sequences = [torch.arange(float(n)) + 100 * i for i, n in enumerate(lengths)]
    padded, counts = batchseq(sequences)
    weights = torch.randint(0, 3, padded.shape, generator=seeded(seed)).to(kind)
    batch = SequenceBatch.of(SequenceBatch(padded, lengths=counts, weights=weights))
    assert batch.weights.is_floating_point()
    for i, sequence in enumerate(sequences):
        for t in range(len(sequence) - 1):
            at = (sequence[t + 1] == padded[:, i]).nonzero().item()  # where the target stands
            assert batch.targets[t, i] == padded[at, i]
            assert batch.weights[t, i] == weights[at, i]


def test_weights_beside_targets_are_theirs_as_they_are():
    inputs, weights = torch.zeros(5, 2, 1), torch.rand(5, 2, dtype=torch.float64)
    assert SequenceBatch.of(SequenceBatch(inputs, inputs, weights=weights)).weights is weights
    of_rows = torch.tensor([1.0, 0.0])
    batch = SequenceBatch(inputs, torch.zeros(2), weights=of_rows)
    assert SequenceBatch.of(batch).weights is of_rows
    assert get_inout_seq(batch)[0] is inputs
    assert len(get_inout_seq(batch)) == 2


@pytest.mark.parametrize(
    ("weights", "text", "kind"),
    [
        (torch.ones(4, 2), "got weights (4, 2); wanted weights (5, 2) or (2,).", ValueError),
        (torch.ones(5, 2, 1), "got weights (5, 2, 1); wanted weights (5, 2) or", ValueError),
        (torch.ones(5), "got weights (5,); wanted", ValueError),
        (torch.tensor(1.0), "got weights (); wanted", ValueError),
        (-torch.ones(5, 2), "got weights from -1 to -1; wanted finite weights, none", ValueError),
        (torch.ones(5, 2).log() / 0, "got weights from nan to nan; wanted finite", ValueError),
        (torch.ones(5, 2) / 0, "got weights from inf to inf; wanted finite", ValueError),
        (torch.ones(5, 2).long(), "got weights of torch.int64; wanted float weights", TypeError),
        ([1.0, 2.0], "got weights = a list of 2; wanted weights (5, 2)", TypeError),
    ],
)
def test_weights_that_cannot_be_weights_are_refused(weights, text, kind):
    inputs = torch.zeros(5, 2, 1)
    refused(lambda: SequenceBatch.of(SequenceBatch(inputs, inputs, weights=weights)), text, kind)


def test_weights_of_rows_cannot_be_shifted():
    batch = SequenceBatch(torch.zeros(5, 2, 1), weights=torch.ones(2))
    refused(lambda: SequenceBatch.of(batch), "got weights (2,); wanted weights (5, 2).")


def test_weights_move_with_the_targets():
    batch = SequenceBatch(torch.zeros(5, 2), torch.zeros(5, 2), weights=torch.ones(5, 2))
    assert batch.to("meta").weights.device.type == "meta"


# ---------------------------------------------------------------- what a DataLoader does to a batch


@pytest.fixture
def pinned(monkeypatch):
    """PyTorch's own pin_memory, where a machine has nothing to pin for: `pinned(tensor)` says it was."""
    seen = []

    def pin(tensor, device=None):  # before torch 2.9 with the device
        copy = tensor.clone()
        seen.append(copy)
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return lambda tensor: any(tensor is copy for copy in seen)


def test_a_sequence_batch_is_pinned_whole_and_stays_one(pinned):
    inputs = {"a": torch.rand(5, 2), "b": torch.rand(5, 2, 1)}
    parts = torch.rand(5, 2), torch.tensor([5, 3]), torch.tensor([True, False]), torch.rand(5, 2)
    batch = pin_memory(SequenceBatch(inputs, *parts))
    assert isinstance(batch, SequenceBatch)
    for was, now in zip(
        parts, (batch.targets, batch.lengths, batch.restart, batch.weights), strict=True
    ):
        assert torch.equal(was, now)
        assert pinned(now)
    assert all(pinned(part) for part in batch.inputs.values())
    assert SequenceBatch.of(batch).lengths is batch.lengths


def test_a_source_is_pinned_in_its_tuple(pinned):
    inputs = torch.rand(7, 2, 1), None, torch.rand(5, 2, 1)
    batch = pin_memory(SequenceBatch(inputs, torch.rand(5, 2)))
    assert isinstance(batch.inputs, tuple)
    assert batch.inputs[1] is None
    assert pinned(batch.inputs[0])
    assert pinned(batch.inputs[2])


@pytest.mark.parametrize("collate", [batchseq, pad_collate])
def test_what_our_collate_functions_make_survives_pinning(pinned, collate):
    sequences = [torch.arange(5.0), torch.arange(3.0)]
    batch = pin_memory(next(iter(DataLoader(sequences, batch_size=2, collate_fn=collate))))
    inputs, targets, lengths = get_inout_seq(batch)
    assert lengths.tolist() == [4, 2]
    assert torch.equal(inputs[:, 0], sequences[0][:-1])
    assert torch.equal(targets[:, 0], sequences[0][1:])


def test_a_pair_that_the_default_collate_function_made_a_list_is_refused():
    data = TensorDataset(torch.rand(8, 5), torch.rand(8, 5))
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert isinstance(batch, list)
    refused(lambda: SequenceBatch.of(batch), "SequenceBatch.of: got a list of 2", TypeError)


@pytest.mark.parametrize(
    "batch",
    [
        [torch.zeros(2, 1), torch.zeros(2, 1)],
        [torch.zeros(5, 2, 1), torch.zeros(5, 2)],
        [{"a": torch.zeros(5, 2)}, torch.zeros(5, 2)],
        [torch.zeros(5, 2, 1), torch.zeros(5, 2), torch.tensor([5, 3])],
        [torch.zeros(5, 2), torch.zeros(2), torch.tensor([5, 3])],
        [{"a": torch.zeros(5, 2)}, torch.zeros(5, 2), torch.tensor([5, 3])],
    ],
)
def test_a_list_that_was_a_tuple_is_refused_with_the_cure(batch):
    message = refused(lambda: get_inout_seq(batch), f"got a list of {len(batch)}", TypeError)
    assert "collate_fn=pad_collate" in message


def test_a_list_of_three_steps_of_tokens_is_a_sequence():
    inputs, targets = get_inout_seq(
        [torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5, 6])]
    )
    assert inputs.tolist() == [[1, 2], [3, 4]]
    assert targets.tolist() == [[3, 4], [5, 6]]


def test_a_batch_is_moved_without_waiting_for_its_copies(monkeypatch):
    waited = []
    move = torch.Tensor.to

    def watched(tensor, *args, **kwargs):
        waited.append(not kwargs["non_blocking"])
        return move(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    SequenceBatch(torch.zeros(5, 2, 1), torch.zeros(5, 2)).to("meta")
    assert waited == [False, False]


# ---------------------------------------------------------------- padding on the left


@few
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), features=st.sampled_from(FEATURES)
)
def test_padding_on_the_left_is_taken_off_and_turned_to_the_right(lengths, features):
    sequences = [random_sequence(n, features, generator=seeded(i)) for i, n in enumerate(lengths)]
    right, counts = batchseq(sequences, pad=-1.0)
    left = torch.full_like(right, -1.0)
    for i, sequence in enumerate(sequences):
        left[len(left) - len(sequence) :, i] = sequence
    rows = unbatchseq(left, counts, padding="left")
    assert all(torch.equal(row, was) for row, was in zip(rows, sequences, strict=True))
    assert torch.equal(batchseq(rows, pad=-1.0).sequences, right)


def test_unbatchseq_refuses_an_unknown_side():
    refused(
        lambda: unbatchseq(torch.zeros(5, 2), torch.tensor([5, 2]), padding="pre"),
        'unbatchseq: got padding=\'pre\'; wanted "right" or "left".',
    )


# ---------------------------------------------------------------- the default device


@pytest.fixture
def another_default_device():
    """Tensors made without a word land on a device without numbers, where nothing can be read."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_lengths_are_on_the_cpu_whatever_the_default_device_is(another_default_device):
    sequences = [torch.arange(5, device="cpu"), torch.arange(3, device="cpu")]
    padded = batchseq(sequences)
    assert padded.lengths.device.type == "cpu"
    batch = SequenceBatch.of(padded)
    assert batch.lengths.tolist() == [4, 2]
    rows = unbatchseq(batch.targets, batch.lengths, padding="right")
    assert [row.tolist() for row in rows] == [[1, 2, 3, 4], [1, 2]]
