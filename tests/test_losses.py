"""What is averaged over what. The referee is always the same: the sequences one by one, with no padding, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rnnkit import batchseq, seq2one_loss, seq2seq_loss

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
some_lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)
NAN = float("nan")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ragged(lengths, *features, seed=0):
    """One random float64 sequence `(length, *features)` a length."""
    generator = seeded(seed)
    return [torch.randn(n, *features, dtype=torch.float64, generator=generator) for n in lengths]


def ragged_classes(lengths, classes, seed=0):
    generator = seeded(seed)
    return [torch.randint(classes, (n,), generator=generator) for n in lengths]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def loss_and_gradients(loss, leaves):
    return loss, torch.autograd.grad(loss, leaves)


def assert_same(got, wanted):
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-10, atol=1e-12)
    for a, b in zip(got[1], wanted[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- seq2seq: padding never changes a loss or a gradient


@few
@given(
    lengths=some_lengths,
    garbage=st.sampled_from([0.0, 1e6, NAN]),
    reduction=st.sampled_from(["mean", "none"]),
)
def test_mse_by_step_is_the_mean_over_all_valid_steps(lengths, garbage, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 3, seed=1)]
    targets = ragged(lengths, 3, seed=2)
    padded, lengths = batchseq(outputs, pad=garbage)
    loss = seq2seq_loss(nn.MSELoss(reduction=reduction))(
        padded, batchseq(targets, pad=garbage)[0], lengths
    )
    wanted = F.mse_loss(torch.cat(outputs), torch.cat(targets))
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(
    lengths=some_lengths,
    garbage=st.sampled_from([0.0, 1e6, NAN]),
    reduction=st.sampled_from(["mean", "none"]),
)
def test_mse_by_sequence_is_the_mean_of_the_means_one_by_one(lengths, garbage, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 3, seed=1)]
    targets = ragged(lengths, 3, seed=2)
    padded, lengths = batchseq(outputs, pad=garbage)
    loss_fn = seq2seq_loss(nn.MSELoss(reduction=reduction), average="sequence")
    loss = loss_fn(padded, batchseq(targets, pad=garbage)[0], lengths)
    wanted = mean(F.mse_loss(x, y) for x, y in zip(outputs, targets, strict=True))
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(
    lengths=some_lengths,
    garbage=st.sampled_from([0.0, 1e6, NAN]),
    reduction=st.sampled_from(["mean", "none"]),
)
def test_cross_entropy_by_step(lengths, garbage, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 5, seed=1)]
    targets = ragged_classes(lengths, 5, seed=2)
    padded, lengths = batchseq(outputs, pad=garbage)
    loss = seq2seq_loss(nn.CrossEntropyLoss(reduction=reduction))(
        padded, batchseq(targets)[0], lengths
    )
    wanted = F.cross_entropy(torch.cat(outputs), torch.cat(targets))
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths, reduction=st.sampled_from(["mean", "none"]))
def test_cross_entropy_by_sequence(lengths, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 5, seed=1)]
    targets = ragged_classes(lengths, 5, seed=2)
    padded, lengths = batchseq(outputs, pad=NAN)
    loss_fn = seq2seq_loss(nn.CrossEntropyLoss(reduction=reduction), average="sequence")
    loss = loss_fn(padded, batchseq(targets)[0], lengths)
    wanted = mean(F.cross_entropy(x, y) for x, y in zip(outputs, targets, strict=True))
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths)
def test_class_weights_divide_by_the_weights_of_the_valid_steps(lengths):
    weight = torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=torch.float64)
    outputs = [x.requires_grad_() for x in ragged(lengths, 4, seed=1)]
    targets = ragged_classes(lengths, 4, seed=2)
    padded, lengths = batchseq(outputs, pad=NAN)
    loss = seq2seq_loss(nn.CrossEntropyLoss(weight=weight))(padded, batchseq(targets)[0], lengths)
    wanted = F.cross_entropy(torch.cat(outputs), torch.cat(targets), weight=weight)
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths)
def test_an_ignored_class_leaves_the_denominator_too(lengths):
    outputs = [x.requires_grad_() for x in ragged(lengths, 4, seed=1)]
    targets = ragged_classes(lengths, 4, seed=2)
    targets[0][0] = 1  # so that something is left
    padded, lengths = batchseq(outputs, pad=NAN)
    loss = seq2seq_loss(nn.CrossEntropyLoss(ignore_index=0))(
        padded, batchseq(targets, pad=3)[0], lengths
    )
    wanted = F.cross_entropy(torch.cat(outputs), torch.cat(targets), ignore_index=0)
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths, average=st.sampled_from(["step", "sequence"]))
def test_an_elementwise_loss_over_images_averages_the_features_too(lengths, average):
    outputs = [x.requires_grad_() for x in ragged(lengths, 2, 3, 3, seed=1)]
    targets = ragged(lengths, 2, 3, 3, seed=2)
    padded, lengths = batchseq(outputs, pad=NAN)
    loss = seq2seq_loss(nn.L1Loss(reduction="none"), average=average)(
        padded, batchseq(targets, pad=NAN)[0], lengths
    )
    if average == "step":
        wanted = F.l1_loss(torch.cat(outputs), torch.cat(targets))
    else:
        wanted = mean(F.l1_loss(x, y) for x, y in zip(outputs, targets, strict=True))
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(
    lengths=some_lengths,
    average=st.sampled_from(["step", "sequence"]),
    cell=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
)
def test_the_parameters_of_a_model_get_the_gradient_of_the_sequences_one_by_one(
    lengths, average, cell
):
    torch.manual_seed(3)
    model = cell(2, 4).double()
    inputs, targets = ragged(lengths, 2, seed=1), ragged(lengths, 4, seed=2)
    padded, lengths = batchseq(inputs, pad=50.0)
    outputs, _ = model(padded)
    loss = seq2seq_loss(nn.MSELoss(), average=average)(
        outputs, batchseq(targets, pad=NAN)[0], lengths
    )
    alone = [model(x[:, None])[0][:, 0] for x in inputs]
    if average == "step":
        wanted = F.mse_loss(torch.cat(alone), torch.cat(targets))
    else:
        wanted = mean(F.mse_loss(x, y) for x, y in zip(alone, targets, strict=True))
    parameters = list(model.parameters())
    assert_same(loss_and_gradients(loss, parameters), loss_and_gradients(wanted, parameters))


@few
@given(lengths=some_lengths)
def test_the_gradient_in_the_padding_is_exactly_zero(lengths):
    outputs, lengths = batchseq(ragged(lengths, 3, seed=1), pad=NAN)
    outputs.requires_grad_()
    seq2seq_loss(nn.MSELoss())(outputs, torch.zeros_like(outputs), lengths).backward()
    for row, length in enumerate(lengths.tolist()):
        assert outputs.grad[length:, row].eq(0).all()
        assert outputs.grad[:length, row].ne(0).all()


@pytest.mark.parametrize("average", ["step", "sequence"])
def test_padding_beyond_the_longest_sequence_changes_nothing_either(average):
    outputs, lengths = batchseq(ragged([3, 5, 1], 2, seed=1), pad=NAN)
    targets, _ = batchseq(ragged([3, 5, 1], 2, seed=2), pad=NAN)
    more = torch.full((4, 3, 2), NAN, dtype=torch.float64)
    loss = seq2seq_loss(nn.MSELoss(), average=average)
    longer = loss(torch.cat([outputs, more]), torch.cat([targets, more]), lengths)
    torch.testing.assert_close(longer, loss(outputs, targets, lengths))


# ---------------------------------------------------------------- seq2seq: the rest of its contract


def test_without_lengths_every_step_counts():
    outputs, targets = (
        torch.randn(5, 3, 2, generator=seeded(1)),
        torch.randn(5, 3, 2, generator=seeded(2)),
    )
    got = seq2seq_loss(nn.MSELoss())(outputs, targets)
    torch.testing.assert_close(got, F.mse_loss(outputs, targets))


def test_the_two_averages_differ_where_lengths_differ():
    outputs, lengths = torch.tensor([[[1.0], [3.0]], [[1.0], [0.0]]]), torch.tensor([2, 1])
    targets = torch.zeros_like(outputs)
    by_step = seq2seq_loss(nn.L1Loss(), average="step")(outputs, targets, lengths)
    by_sequence = seq2seq_loss(nn.L1Loss(), average="sequence")(outputs, targets, lengths)
    assert by_step.item() == pytest.approx((1 + 1 + 3) / 3)
    assert by_sequence.item() == pytest.approx((1 + 3) / 2)


def test_the_loss_function_is_called_once_and_sees_the_flattened_valid_steps():
    calls = []

    def loss_fn(outputs, targets):
        calls.append((tuple(outputs.shape), tuple(targets.shape)))
        return F.cross_entropy(outputs, targets)

    outputs, targets = (
        torch.randn(5, 3, 7, generator=seeded(1)),
        torch.zeros(5, 3, dtype=torch.int64),
    )
    seq2seq_loss(loss_fn)(outputs, targets, torch.tensor([5, 1, 2]))
    assert calls == [((8, 7), (8,))]


def test_lists_of_steps_are_sequences():
    outputs, targets = (
        torch.randn(5, 3, 2, generator=seeded(1)),
        torch.randn(5, 3, 2, generator=seeded(2)),
    )
    lengths = torch.tensor([5, 1, 2])
    loss = seq2seq_loss(nn.MSELoss())
    torch.testing.assert_close(
        loss(list(outputs), list(targets), lengths), loss(outputs, targets, lengths)
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_is_one_number(reduction):
    outputs = torch.randn(5, 3, 2, generator=seeded(1))
    loss_fn = nn.MSELoss(reduction=reduction)
    assert seq2seq_loss(loss_fn)(outputs, torch.zeros(5, 3, 2)).shape == ()
    assert seq2seq_loss(loss_fn, average="sequence")(outputs, torch.zeros(5, 3, 2)).shape == ()
    assert seq2one_loss(loss_fn)(outputs, torch.zeros(3, 2)).shape == ()


def test_on_runs_the_model_as_in_the_thread():
    torch.manual_seed(0)
    model, loss = nn.GRU(2, 3), seq2seq_loss(nn.MSELoss())
    inputs, targets, lengths = torch.randn(5, 3, 2), torch.randn(5, 3, 3), torch.tensor([5, 1, 2])
    outputs, _ = model(inputs)
    torch.testing.assert_close(loss.on(model, inputs, targets), loss(outputs, targets))
    torch.testing.assert_close(
        loss.on(model, inputs, targets, lengths), loss(outputs, targets, lengths)
    )


def test_on_takes_the_lists_of_the_thread():
    torch.manual_seed(0)
    model, loss = nn.GRU(2, 3), seq2seq_loss(nn.MSELoss())
    inputs, targets = torch.randn(5, 3, 2), torch.randn(5, 3, 3)
    torch.testing.assert_close(
        loss.on(model, list(inputs), list(targets)), loss.on(model, inputs, targets)
    )


def test_on_a_bidirectional_model_padding_changes_nothing():
    torch.manual_seed(0)
    model = nn.GRU(2, 3, bidirectional=True).double()
    inputs, targets = ragged([5, 1, 3], 2, seed=1), ragged([5, 1, 3], 6, seed=2)
    padded, lengths = batchseq(inputs, pad=9.0)
    got = seq2seq_loss(nn.MSELoss()).on(model, padded, batchseq(targets)[0], lengths)
    wanted = F.mse_loss(torch.cat([model(x[:, None])[0][:, 0] for x in inputs]), torch.cat(targets))
    torch.testing.assert_close(got, wanted)


# ---------------------------------------------------------------- seq2one


@few
@given(
    lengths=some_lengths,
    garbage=st.sampled_from([0.0, 1e6, NAN]),
    reduction=st.sampled_from(["mean", "none"]),
)
def test_seq2one_reads_the_last_valid_step_of_every_row(lengths, garbage, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 3, seed=1)]
    targets = torch.randn(len(lengths), 3, dtype=torch.float64, generator=seeded(2))
    padded, lengths = batchseq(outputs, pad=garbage)
    loss = seq2one_loss(nn.MSELoss(reduction=reduction))(padded, targets, lengths)
    wanted = F.mse_loss(torch.stack([x[-1] for x in outputs]), targets)
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths, reduction=st.sampled_from(["mean", "none"]))
def test_seq2one_cross_entropy(lengths, reduction):
    outputs = [x.requires_grad_() for x in ragged(lengths, 4, seed=1)]
    targets = torch.randint(4, (len(lengths),), generator=seeded(2))
    padded, lengths = batchseq(outputs, pad=NAN)
    loss = seq2one_loss(nn.CrossEntropyLoss(reduction=reduction))(padded, targets, lengths)
    wanted = F.cross_entropy(torch.stack([x[-1] for x in outputs]), targets)
    assert_same(loss_and_gradients(loss, outputs), loss_and_gradients(wanted, outputs))


@few
@given(lengths=some_lengths, cell=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]))
def test_seq2one_gives_a_model_the_gradient_of_the_sequences_one_by_one(lengths, cell):
    torch.manual_seed(3)
    model, inputs = cell(2, 4).double(), ragged(lengths, 2, seed=1)
    targets = torch.randn(len(lengths), 4, dtype=torch.float64, generator=seeded(2))
    padded, lengths = batchseq(inputs, pad=50.0)
    loss = seq2one_loss(nn.MSELoss())(model(padded)[0], targets, lengths)
    wanted = mean(
        F.mse_loss(model(x[:, None])[0][-1, 0], y) for x, y in zip(inputs, targets, strict=True)
    )
    parameters = list(model.parameters())
    assert_same(loss_and_gradients(loss, parameters), loss_and_gradients(wanted, parameters))


def test_seq2one_without_lengths_reads_the_last_step():
    outputs, targets = (
        torch.randn(5, 3, 2, generator=seeded(1)),
        torch.randn(3, 2, generator=seeded(2)),
    )
    torch.testing.assert_close(
        seq2one_loss(nn.MSELoss())(outputs, targets), F.mse_loss(outputs[-1], targets)
    )


def test_seq2one_takes_a_row_of_one_step_with_two_outputs_for_one_target():
    """Shapes that coincide (T = B = Y = 1) are no target sequence."""

    def gaussian(outputs, target):
        return F.gaussian_nll_loss(outputs[:, :1], target, outputs[:, 1:].exp())

    outputs, target = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[1.5]])
    assert seq2one_loss(gaussian)(outputs, target).item() == pytest.approx(0.5)


def test_on_reads_no_padding_backward_where_all_rows_are_of_one_length():
    model, x, y = nn.GRU(2, 3, bidirectional=True), torch.randn(6, 4, 2), torch.randn(6, 4, 6)
    loss = seq2seq_loss(nn.MSELoss()).on(model, x, y, torch.full((4,), 3))
    torch.testing.assert_close(loss, F.mse_loss(model(x[:3])[0], y[:3]))


def test_seq2one_on_runs_the_model():
    torch.manual_seed(0)
    model, loss = nn.GRU(2, 3), seq2one_loss(nn.MSELoss())
    inputs, targets, lengths = torch.randn(5, 3, 2), torch.randn(3, 3), torch.tensor([5, 1, 2])
    wanted = F.mse_loss(
        torch.stack([model(inputs)[0][n - 1, i] for i, n in enumerate([5, 1, 2])]), targets
    )
    torch.testing.assert_close(loss.on(model, inputs, targets, lengths), wanted)


# ---------------------------------------------------------------- bad input, and what is said about it


def test_seq2seq_refuses_outputs_and_targets_of_different_length():
    with pytest.raises(
        ValueError, match=r"(?s)seq2seq_loss.*\(5, 3, 1\).*\(4, 3, 1\).*the same T and B"
    ):
        seq2seq_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(4, 3, 1))


def test_seq2seq_refuses_outputs_and_targets_of_different_batch():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*\(5, 3, 1\).*\(5, 2, 1\)"):
        seq2seq_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(5, 2, 1))


def test_lists_of_unequal_length_are_refused_and_not_cut_short():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss"):
        seq2seq_loss(nn.MSELoss())([torch.zeros(3, 1)] * 5, [torch.zeros(3, 1)] * 4)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss_class", [nn.MSELoss, nn.L1Loss])
def test_an_elementwise_loss_may_not_broadcast(loss_class, reduction):
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*\(5, 3, 1\).*\(5, 3\)"):
        seq2seq_loss(loss_class(reduction=reduction))(torch.zeros(5, 3, 1), torch.zeros(5, 3))


def test_an_elementwise_loss_may_not_repeat_a_feature():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*\(5, 3, 4\).*\(5, 3, 1\)"):
        seq2seq_loss(nn.MSELoss())(torch.zeros(5, 3, 4), torch.zeros(5, 3, 1))


def test_a_loss_function_of_ones_own_may_not_broadcast_over_a_missing_feature():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*\(5, 3, 1\).*\(5, 3\)"):
        seq2seq_loss(lambda outputs, targets: (outputs - targets).abs())(
            torch.zeros(5, 3, 1), torch.zeros(5, 3)
        )


@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
def test_an_elementwise_function_may_not_broadcast(loss_fn):
    for outputs, targets in [((5, 3, 1), (5, 3)), ((5, 3, 1), (5, 3, 2))]:
        with pytest.raises(ValueError, match=r"seq2seq_loss: got outputs .* wanted equal shapes"):
            seq2seq_loss(loss_fn)(torch.zeros(outputs), torch.zeros(targets))


def test_seq2one_may_not_broadcast_either():
    with pytest.raises(ValueError, match=r"(?s)seq2one_loss.*\(3,\)"):
        seq2one_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(3))


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.tensor([6, 2, 1]), r"6.*T = 5|T = 5.*6|6.*5"),
        (torch.tensor([5, 0, 1]), r"\b0\b"),
        (torch.tensor([5, -1, 1]), r"-1"),
        (torch.tensor([5, 2]), r"\(2,\)"),
        (torch.tensor([5.0, 2.0, 1.0]), r"float"),
        (torch.tensor([[5, 2, 1]]), r"\(1, 3\)"),
    ],
)
@pytest.mark.parametrize("name", ["seq2seq_loss", "seq2one_loss"])
def test_lengths_that_do_not_fit_are_refused(name, lengths, words):
    loss, targets = {
        "seq2seq_loss": (seq2seq_loss(nn.MSELoss()), torch.zeros(5, 3, 1)),
        "seq2one_loss": (seq2one_loss(nn.MSELoss()), torch.zeros(3, 1)),
    }[name]
    with pytest.raises((ValueError, TypeError), match=rf"(?s){name}.*lengths.*({words})"):
        loss(torch.zeros(5, 3, 1), targets, lengths)


def test_seq2one_refuses_a_target_sequence():
    with pytest.raises(
        ValueError, match=r"(?s)seq2one_loss.*\(5, 3, 1\).*(seq2seq_loss|one target)"
    ):
        seq2one_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(5, 3, 1))


@pytest.mark.parametrize(
    ("loss_fn", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.zeros(3, 3, dtype=torch.long)),
        (lambda x, y: (x - y).abs(), torch.zeros(3, 3, 2)),
    ],
    ids=["classes", "floats"],
)
def test_seq2one_refuses_a_target_sequence_of_as_many_steps_as_there_are_rows(loss_fn, targets):
    with pytest.raises(ValueError, match=r"seq2one_loss: got .* wanted one target a sequence"):
        seq2one_loss(loss_fn)(torch.zeros(3, 3, 2), targets)


def test_classes_of_as_many_features_as_there_are_steps_and_rows_are_no_target_sequence():
    outputs, classes = torch.randn(3, 3, 4, 3), torch.randint(4, (3, 3))
    loss = seq2one_loss(nn.CrossEntropyLoss())
    torch.testing.assert_close(loss(outputs, classes), F.cross_entropy(outputs[-1], classes))


def test_seq2one_refuses_targets_of_another_batch():
    with pytest.raises(ValueError, match=r"(?s)seq2one_loss.*\(5, 3, 1\).*\(2, 1\)"):
        seq2one_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(2, 1))


def test_one_target_a_sequence_beside_one_a_step_is_told_where_it_stands():
    lengths = [2, 4, 3]
    outputs = {
        "risk": batchseq(ragged(lengths)).sequences,
        "diagnosis": batchseq(ragged(lengths, 3)).sequences,
    }
    targets = {
        "risk": batchseq(ragged(lengths, seed=1)).sequences,
        "diagnosis": torch.tensor([1, 0, 2]),
    }
    loss = seq2seq_loss({"risk": nn.MSELoss(), "diagnosis": nn.CrossEntropyLoss()})
    with pytest.raises(ValueError, match=r"at the last, ignore_index before"):
        loss(outputs, targets, torch.tensor(lengths))

    ends = torch.tensor(lengths) - 1, torch.arange(3)
    classes = torch.full((4, 3), -100)
    classes[ends] = targets["diagnosis"]
    by_hand = F.cross_entropy(outputs["diagnosis"][ends], targets["diagnosis"])
    by_hand += seq2seq_loss(nn.MSELoss())(outputs["risk"], targets["risk"], torch.tensor(lengths))
    together = loss(outputs, targets | {"diagnosis": classes}, torch.tensor(lengths))
    torch.testing.assert_close(together, by_hand)


@pytest.mark.parametrize("make", [seq2seq_loss, seq2one_loss])
def test_what_is_no_loss_function_is_refused(make):
    with pytest.raises(TypeError, match=rf"(?s){make.__name__}.*a str.*loss function"):
        make("mse")


def test_the_last_step_only_is_another_loss():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*last.*seq2one_loss"):
        seq2seq_loss(nn.MSELoss(), average="last")


def test_lengths_in_a_list_are_refused():
    with pytest.raises(TypeError, match=r"(?s)seq2seq_loss.*lengths = a list of 3.*int64"):
        seq2seq_loss(nn.MSELoss())(torch.zeros(5, 3, 1), torch.zeros(5, 3, 1), [5, 2, 1])


def test_lengths_on_another_device_are_refused():
    with pytest.raises(
        TypeError, match=r"seq2seq_loss: got lengths of torch.int64 on meta; wanted an int64 CPU"
    ):
        seq2seq_loss(nn.MSELoss())(
            torch.zeros(5, 3, 1), torch.zeros(5, 3, 1), torch.tensor([5, 2, 1], device="meta")
        )


@pytest.mark.parametrize("read", ["last", "mean", lambda outputs, lengths: {"a": outputs["a"][-1]}])
def test_seq2one_refuses_heads_of_outputs_for_one_loss(read):
    loss = seq2one_loss(nn.MSELoss(), read=read)
    heads = {"a": torch.zeros(5, 3, 1), "b": torch.zeros(5, 3, 1)}
    with pytest.raises(ValueError, match=r"(?s)seq2one_loss: got outputs = a dict of 'a'.*\"all\""):
        loss(heads, torch.zeros(3, 1))


def test_seq2one_refuses_heads_of_targets_for_one_loss():
    with pytest.raises(
        ValueError, match=r"seq2one_loss: got targets = a dict of 'y'.*and one loss"
    ):
        seq2one_loss(nn.MSELoss())(torch.zeros(5, 3, 1), {"y": torch.zeros(3, 1)})


def test_seq2one_scores_one_output_that_read_takes_from_several_heads():
    heads = {"a": torch.ones(5, 3, 1), "b": torch.zeros(5, 3, 1)}
    loss = seq2one_loss(nn.MSELoss(), read=lambda outputs, lengths: outputs["a"][-1])
    assert loss(heads, torch.zeros(3, 1)) == 1


def test_seq2one_refuses_a_list_of_targets():
    with pytest.raises(TypeError, match=r"(?s)seq2one_loss.*a list of 5.*\(3, \*Y\).*seq2seq_loss"):
        seq2one_loss(nn.MSELoss())(torch.zeros(5, 3, 1), [torch.zeros(3, 1)] * 5)


@pytest.mark.parametrize(
    "wrong", [lambda x, y: (x - y).sum(0), lambda x, y: 0.0], ids=["summed over steps", "a float"]
)
def test_a_loss_function_that_gives_neither_a_number_nor_one_loss_a_step_is_refused(wrong):
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*from the loss.*reduction"):
        seq2seq_loss(wrong)(torch.zeros(5, 3, 2), torch.zeros(5, 3, 2))


def test_a_model_that_loses_steps_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)seq2seq_loss.*\(1, 3, 2\).*\(5, 3, 2\).*the same T and B"
    ):
        seq2seq_loss(nn.MSELoss()).on(
            lambda x, state: (x[-1:], state), torch.zeros(5, 3, 2), torch.zeros(5, 3, 2)
        )


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match=r"(?s)seq2seq_loss.*average.*batch.*step.*sequence"):
        seq2seq_loss(nn.MSELoss(), average="batch")


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))], ids=["Linear", "Sequential"]
)
def test_a_model_without_a_state_is_refused(model):
    with pytest.raises(TypeError, match=r"(?s)seq2seq_loss.*outputs, state"):
        seq2seq_loss(nn.MSELoss()).on(model, torch.zeros(5, 3, 2), torch.zeros(5, 3, 3))


def test_a_model_that_returns_no_state_is_refused():
    with pytest.raises(TypeError, match=r"(?s)seq2seq_loss.*\(5, 3, 2\).*outputs, state"):
        seq2seq_loss(nn.MSELoss()).on(
            lambda inputs, state: inputs, torch.zeros(5, 3, 2), torch.zeros(5, 3, 2)
        )


def test_a_batch_first_model_is_refused():
    model = nn.GRU(2, 3, batch_first=True)
    with pytest.raises(ValueError, match=r"(?s)batch_first"):
        seq2seq_loss(nn.MSELoss()).on(model, torch.zeros(5, 3, 2), torch.zeros(5, 3, 3))
