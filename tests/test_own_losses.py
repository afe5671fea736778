"""What people bring along as a loss: reductions, masks, read-outs, functions of their own.

The referee is the sum written out, over the steps that count.
"""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import refused, seeded
from torch import nn

import rnnkit as rk

pytestmark = pytest.mark.usefixtures("in_double_precision")


def close(left, right):
    torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=1e-9, atol=1e-12)


def data(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), device="cpu")


def net(features=3, outputs=3):
    torch.manual_seed(1)
    return rk.RecurrentSequential(nn.GRU(features, 4), nn.Linear(4, outputs))


def sgd(model, rate=0.1):
    return torch.optim.SGD(model.parameters(), rate)


# Reductions


SUMS = {
    "module": nn.MSELoss(reduction="sum"),
    "part": functools.partial(F.mse_loss, reduction="sum"),
    "part of a part": functools.partial(functools.partial(F.mse_loss, reduction="sum")),
    "the old word": functools.partial(F.mse_loss, size_average=False),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("make", [rk.seq2seq_loss, rk.seq2one_loss])
def test_a_sum_is_refused_with_the_way_to_write_it(name, make):
    message = refused(lambda: make(SUMS[name]), 'reduction="sum"')
    assert "lambda y, t: (F.mse_loss(y, t, reduction='sum'), 1.0)" in message


PYTORCHS = nn.CrossEntropyLoss()
HIDDEN = {
    "compiled": torch.compile(PYTORCHS, backend="eager"),
    "a partial of nothing": functools.partial(PYTORCHS),
    "its forward": PYTORCHS.forward,
    "its call": PYTORCHS.__call__,
    "a wrapper": nn.DataParallel(PYTORCHS),
}
if torch.__version__ >= "2.7":  # 2.6 compiles none of PyTorch's own functions
    compiled = torch.compile(F.cross_entropy, backend="eager")
    HIDDEN["a compiled function"] = compiled
    HIDDEN["a partial of it"] = functools.partial(compiled, ignore_index=-100)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_loss_of_pytorch_weighs_as_itself_whatever_hides_it(name):
    outputs, targets = data(4, 2, 3), torch.randint(3, (4, 2), generator=seeded())
    targets = targets.masked_fill(targets == 0, -100)
    total = rk.seq2seq_loss(HIDDEN[name]).total(outputs, targets)
    close(total.mean(), PYTORCHS(outputs.flatten(0, 1), targets.flatten()))
    assert total.weight == (targets != -100).sum()
    step = rk.BPTTValidationPhase()(net(), HIDDEN[name], (outputs, targets))
    assert step.totals["loss"].weight == total.weight


def test_one_whole_number_a_step_is_averaged():
    outputs, targets = data(4, 2, 3), torch.randint(3, (4, 2), generator=seeded())
    right = outputs.argmax(2) == targets
    loss = rk.seq2seq_loss(lambda y, t: (y.argmax(1) == t).long())
    close(loss(outputs, targets).double(), right.double().mean())


def test_the_mean_of_outputs_in_float16_is_within_its_range():
    outputs = torch.full((10_000, 1, 1), 10.0, dtype=torch.float16)
    loss = rk.seq2one_loss(nn.L1Loss(), read="mean")
    close(loss(outputs, torch.zeros(1, 1, dtype=torch.float16)).double(), 10.0)


@pytest.mark.parametrize(
    "loss_fn", [nn.MultiLabelSoftMarginLoss(), functools.partial(F.gaussian_nll_loss, var=1.0)]
)
def test_a_label_for_all_features_is_not_spread_over_them(loss_fn):
    loss = rk.seq2seq_loss(loss_fn)
    refused(lambda: loss(data(4, 2, 3), torch.ones(4, 2, 1)), "wanted equal shapes")


def test_a_function_of_one_s_own_may_not_broadcast_either():
    """`(N,)` beside `(N, 1)` would be `(N, N)`."""
    loss = rk.seq2seq_loss(lambda y, t: (y - t).square().mean())
    refused(lambda: loss(data(4, 2), data(4, 2, 1)), "wanted equal shapes")
    refused(lambda: loss(data(4, 2, 1), data(4, 2)), "wanted equal shapes")


class Own(nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs, targets):
        losses = (outputs - targets).pow(2)
        return losses.sum() if self.reduction == "sum" else losses.mean()


def own(outputs, targets, reduction):
    return Own(reduction)(outputs, targets)


@pytest.mark.parametrize("loss", [Own, lambda word: functools.partial(own, reduction=word)])
def test_a_sum_of_one_s_own_that_is_called_so_is_refused_too(loss):
    """It was taken for a mean: two batches of 2 and 4 equal rows gave 3.3 times the first's."""
    refused(lambda: rk.seq2seq_loss(loss("sum")), 'reduction="sum"')
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1)
    close(rk.seq2seq_loss(loss("mean"))(outputs, targets), F.mse_loss(outputs, targets))


def test_the_way_to_write_a_sum_works():
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1)
    loss = rk.seq2seq_loss(lambda y, t: (F.mse_loss(y, t, reduction="sum"), 1.0))
    close(loss(outputs, targets), (outputs - targets).square().sum())


def test_a_sum_that_is_set_later_is_refused_too():
    module = nn.MSELoss()
    loss = rk.seq2seq_loss(module)
    module.reduction = "sum"
    refused(lambda: loss(data(4, 2, 3), data(4, 2, 3)), 'reduction="sum"')


def test_a_loss_module_keeps_its_reduction_and_its_options():
    module = nn.CrossEntropyLoss(ignore_index=0)
    loss = rk.seq2seq_loss(module, "sequence")
    outputs, targets = data(4, 2, 3), torch.tensor([[1, 2], [0, 1], [0, 0], [2, 1]])
    before = loss(outputs, targets)
    assert module.reduction == "mean"
    module.ignore_index = 2
    assert not torch.isclose(before, loss(outputs, targets))
    rows = [module(outputs[:, i], targets[:, i]) for i in (0, 1)]
    close(loss(outputs, targets), torch.stack(rows).mean())


def test_a_weight_that_is_moved_with_the_module_is_the_one_that_counts():
    module = nn.CrossEntropyLoss(weight=torch.ones(3))
    loss = rk.seq2seq_loss(module, "sequence")
    module.weight = torch.tensor([1.0, 5.0, 0.1])
    outputs, targets = data(4, 2, 3), torch.tensor([[1, 2], [0, 1], [0, 0], [2, 1]])
    rows = [module(outputs[:, i], targets[:, i]) for i in (0, 1)]
    close(loss(outputs, targets), torch.stack(rows).mean())


@pytest.mark.parametrize("make", [rk.seq2seq_loss, rk.seq2one_loss])
def test_class_weights_and_missing_classes_go_together(make):
    module = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0]))
    outputs, targets = data(4, 5, 3), torch.tensor([[1, -100, 0, 2, -100]] * 4)
    expected = module(outputs.flatten(0, 1), targets.flatten())
    if make is rk.seq2one_loss:
        targets = targets[0]
        expected = module(outputs[-1], targets)
    close(make(module)(outputs, targets), expected)


def test_probabilities_of_classes_weigh_a_step_each():
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1).softmax(2)
    total = rk.seq2seq_loss(nn.CrossEntropyLoss()).total(outputs, targets)
    assert total.weight == 8
    close(total.mean(), F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1)))


@pytest.mark.parametrize("word", ["size_average", "reduce"])
def test_the_old_words_for_a_mean_leave_weights_of_steps(word):
    outputs, targets, weights = data(4, 2, 3), data(4, 2, 3, seed=1), data(4, 2).square()
    loss = rk.seq2seq_loss(functools.partial(F.mse_loss, **{word: True}))
    expected = (weights * (outputs - targets).square().mean(2)).sum() / weights.sum()
    close(loss(outputs, targets, weights=weights), expected)


@pytest.mark.parametrize("average", ["step", "sequence"])
@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.l1_loss, F.huber_loss])
def test_weights_of_elements_count_as_in_pytorch_s_mean(loss_fn, average):
    """The first two of these functions divide by the weights, the third by the elements."""
    weight = torch.rand(8, 3, generator=seeded())
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1)
    given = rk.seq2seq_loss(functools.partial(loss_fn, weight=weight), average)(outputs, targets)
    rows = weight.view(4, 2, 3)
    expected = loss_fn(outputs, targets, weight=rows)
    if average == "sequence":
        of_row = [loss_fn(outputs[:, i], targets[:, i], weight=rows[:, i]) for i in (0, 1)]
        expected = torch.stack(of_row).mean()
    close(given, expected)


def test_a_subclass_of_torch_s_keeps_what_its_mean_divides_by():
    class Twice(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            return 2 * super().forward(outputs, targets)

    outputs, targets = data(5, 2, 3), torch.tensor([[1, 0], [0, 0], [2, 1], [0, 0], [0, 1]])
    loss = rk.seq2seq_loss(Twice(ignore_index=0))
    expected = 2 * F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=0)
    close(loss(outputs, targets), expected)
    scored = loss.over(targets, 5, 2)
    together = scored.between(0, 2).total(outputs[:2]) + scored.between(2, 5).total(outputs[2:])
    close(together.mean(), expected)


class Root(nn.MSELoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, targets).sqrt()


class OverAll(nn.CrossEntropyLoss):
    """Divides by all targets, those that are ignored too."""

    def forward(self, outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none", ignore_index=0)
        return losses.mean() if self.reduction == "mean" else losses


class Scaled(nn.MSELoss):
    """Has one number for all, whatever its reduction."""

    def forward(self, outputs, targets):
        return (super().forward(outputs, targets) * torch.arange(3.0)).mean()


@pytest.mark.parametrize("average", ["step", "sequence"])
def test_a_subclass_is_no_mean_of_its_steps_in_silence(average):
    outputs, lengths = data(5, 2, 3), torch.tensor([5, 3])
    classes = torch.tensor([[1, 0], [0, 0], [2, 1], [0, 0], [0, 1]])
    for module, targets in ((Root(), data(5, 2, 3, seed=1)), (OverAll(ignore_index=0), classes)):
        asked = (rk.seq2seq_loss(module, average), outputs, targets, lengths)
        message = refused(lambda asked=asked: asked[0](*asked[1:]), "a subclass of PyTorch's loss")
        assert "nn.Module" in message

    # Followed, the fix gives the loss's own answer, as does one that reduces by itself.
    root = rk.seq2seq_loss(lambda y, t: F.mse_loss(y, t).sqrt(), average)
    targets = data(5, 2, 3, seed=1)
    for loss, module in ((root, Root()), (rk.seq2seq_loss(Scaled(), average), Scaled())):
        rows = [module(outputs[:n, i], targets[:n, i]) for i, n in enumerate([5, 3])]
        expected = (rows[0] + rows[1]) / 2
        if average == "step":
            mask = torch.arange(5).unsqueeze(1) < lengths
            expected = module(outputs[mask], targets[mask])
        close(loss(outputs, targets, lengths), expected)


class Noisy(nn.MSELoss):
    """Two evaluations draw two masks."""

    def forward(self, outputs, targets):
        return super().forward(F.dropout(outputs, 0.5, self.training), targets)


class NoisyRoot(Root):
    def forward(self, outputs, targets):
        return super().forward(F.dropout(outputs, 0.5, self.training), targets)


def test_a_subclass_that_draws_at_random_is_the_mean_of_its_steps():
    outputs, targets = data(5, 2, 3), data(5, 2, 3, seed=1)
    torch.manual_seed(0)
    given = rk.seq2seq_loss(Noisy())(outputs, targets)
    torch.manual_seed(0)
    close(given, Noisy()(outputs.flatten(0, 1), targets.flatten(0, 1)))
    root = NoisyRoot()
    refused(lambda: rk.seq2seq_loss(root)(outputs, targets), "a subclass of PyTorch's loss")
    assert root.training


class Doubled(nn.MSELoss):
    def forward(self, outputs, targets):
        return 2 * super().forward(outputs, targets)


def test_a_subclass_may_have_no_reduction():
    outputs, targets = data(5, 2, 3), data(5, 2, 3, seed=1)
    given = rk.seq2seq_loss(Doubled(reduction="none"))(outputs, targets)
    close(given, 2 * F.mse_loss(outputs, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_subclass_is_held_to_its_steps_as_precisely_as_its_dtype_allows(dtype):
    outputs, targets = data(50, 20, 3).to(dtype) * 1000, data(50, 20, 3, seed=1).to(dtype)
    given = rk.seq2seq_loss(Doubled())(outputs, targets)
    torch.testing.assert_close(given, Doubled()(outputs, targets).float(), rtol=1e-2, atol=0)
    outputs[0, 0] = math.nan
    assert rk.seq2seq_loss(Doubled())(outputs, targets).isnan()  # for StopOnNaN to see


class Masked(nn.MSELoss):
    """A mask is the last feature of the targets."""

    def forward(self, outputs, targets):
        mask = targets[..., 1:]
        return super().forward(outputs * mask, targets[..., :1] * mask)


class Variance(nn.GaussianNLLLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs[..., :1], targets, outputs[..., 1:].exp())


@pytest.mark.parametrize(("module", "features"), [(Masked(), (1, 2)), (Variance(), (2, 1))])
def test_a_subclass_of_pytorch_s_knows_its_targets(module, features):
    outputs, targets = data(4, 2, features[0]), data(4, 2, features[1], seed=1)
    expected = module(outputs.flatten(0, 1), targets.flatten(0, 1))
    close(rk.seq2seq_loss(module)(outputs, targets), expected)
    close(rk.seq2one_loss(module, "max")(outputs, targets[0]), module(outputs.amax(0), targets[0]))


class Known(nn.MSELoss):
    """One number where a target is missing; where none is, one loss a step can be had."""

    def forward(self, outputs, targets):
        known = ~targets.isnan()
        if known.all():
            return super().forward(outputs, targets)
        return super().forward(outputs[known], targets[known])


def test_a_subclass_may_tell_of_each_step_in_some_rows_alone():
    outputs, targets, lengths = data(5, 3, 2), data(5, 3, 2, seed=1), torch.tensor([5, 3, 4])
    targets[:2, 1, 0] = math.nan
    rows = [Known()(outputs[:n, i], targets[:n, i]) for i, n in enumerate(lengths)]
    loss = rk.seq2seq_loss(Known(), "sequence")
    close(loss(outputs, targets, lengths), torch.stack(rows).mean())


def test_a_decorated_function_is_not_the_one_of_pytorch_whose_name_it_has():
    @functools.wraps(F.cross_entropy)
    def squeezed(outputs, targets):
        return F.cross_entropy(outputs, targets.squeeze(-1))

    outputs, targets = data(4, 2, 3), torch.randint(3, (4, 2, 1), generator=seeded())
    expected = F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    close(rk.seq2seq_loss(squeezed)(outputs, targets), expected)


class Comparing(nn.Module):
    """As a metric of torchmetrics, it makes another one when it is compared."""

    def __eq__(self, other):
        return nn.Identity()

    __hash__ = nn.Module.__hash__

    def forward(self, outputs, targets):
        return (outputs[..., 0] - targets).abs().mean()


@pytest.mark.parametrize("average", ["step", "sequence"])
def test_a_loss_with_an_equality_of_its_own_is_none_of_pytorch_s(average):
    outputs, targets = data(4, 2, 3), data(4, 2, seed=1)
    expected = (outputs[..., 0] - targets).abs().mean()
    close(rk.seq2seq_loss(Comparing(), average)(outputs, targets), expected)


def test_low_precision_sums_do_not_stop_growing():
    """A bfloat16 sum of ones stays at 256."""
    outputs = torch.ones(1000, 1, 1, dtype=torch.bfloat16)
    for loss_fn in (nn.L1Loss(), nn.MSELoss(), lambda y, t: (y - t).abs().squeeze(-1)):
        for average in ("step", "sequence"):
            loss = rk.seq2seq_loss(loss_fn, average)
            total = loss.total(outputs, torch.zeros_like(outputs))
            assert float(total.mean()) == 1.0
            assert total.sum.dtype == torch.float32


# What a function may give


def test_one_loss_a_step_whose_features_are_averaged():
    outputs, targets, lengths = data(5, 3, 2), data(5, 3, 2, seed=1), torch.tensor([5, 1, 3])
    each = (outputs - targets).square()
    valid = torch.arange(5).unsqueeze(1) < lengths
    total = rk.seq2seq_loss(lambda y, t: (y - t).square()).total(outputs, targets, lengths)
    assert total.weight == 9
    close(total.sum, each.mean(2)[valid].sum())


@pytest.mark.parametrize(
    "given",
    [
        lambda y, t: (y.sum(1), 3.0),
        lambda y, t: (y.sum(), y.sum(1)),
        lambda y, t: (1.0, 2.0),
        lambda y, t: y[:2],
        lambda y, t: None,
        lambda y, t: (y.sum(), 1.0, 2.0),
    ],
    ids=["rows", "weights", "numbers", "some", "nothing", "three"],
)
def test_what_is_no_loss_is_refused(given):
    loss = rk.seq2seq_loss(given)
    refused(lambda: loss(data(4, 2, 3), data(4, 2, 3)), "from the loss")


def test_a_pair_by_sequence_is_taken_whole_and_refused_in_parts():
    def masked(y, t):
        return (y - t)[t > 0].square().sum(), (t > 0).sum()

    outputs, targets = data(6, 3, 1), data(6, 3, 1, seed=1).abs()
    targets[2:, 1] = -1
    targets[:, 2] = -1  # nothing to score: does not count
    loss = rk.seq2seq_loss(masked, "sequence")
    rows = [(outputs - targets)[:, i][targets[:, i] > 0].square().mean() for i in (0, 1)]
    close(loss(outputs, targets), torch.stack(rows).mean())
    scored = loss.over(targets, 6, 3)
    with pytest.raises(Exception, match="a part of its sequences"):
        scored.between(0, 3).total(outputs[:3])
    model = net(1, 1)
    phase = rk.BPTTTrainingPhase(window=2)
    refused(lambda: phase(model, loss, (data(6, 3, 1), targets), sgd(model)), 'average="step"')


# Parts that do not add up


def correlation(outputs, targets):
    pair = torch.stack([outputs.flatten(), targets.flatten()])
    return -torch.corrcoef(pair)[0, 1]


def last_steps(outputs, targets, lengths=None):
    return (outputs[2:] - targets[2:]).square().mean()


OPAQUE = {"a correlation of steps": rk.seq2seq_loss(correlation), "a slice": last_steps}


@pytest.mark.parametrize("name", OPAQUE)
def test_a_loss_that_is_no_mean_of_steps_is_never_called_on_parts_in_silence(name):
    batch = data(9, 2, 3), data(9, 2, 3, seed=1)
    model = net()
    whole = rk.BPTTTrainingPhase()(model, OPAQUE[name], batch, sgd(model, 0.0))
    assert whole.loss.isfinite()
    text = "whose parts put together are"
    phase = rk.BPTTTrainingPhase(window=4)
    refused(lambda: phase(model, OPAQUE[name], batch, sgd(model)), text)
    refused(lambda: rk.BPTTValidationPhase(nfeedback=3)(model, OPAQUE[name], batch), text)
    refused(lambda: rk.BPTTValidationPhase(by_step=True)(model, OPAQUE[name], batch), text)
    rk.BPTTValidationPhase()(model, OPAQUE[name], batch)


def test_a_mean_that_is_rounded_to_bfloat16_adds_up():
    loss = rk.seq2seq_loss(lambda y, t: (y - t).square().mean())
    model = net().bfloat16()
    for seed in range(0, 20, 2):
        batch = data(20, 3, 3, seed=seed).bfloat16(), data(20, 3, 3, seed=seed + 1).bfloat16()
        step = rk.BPTTTrainingPhase(window=5)(model, loss, batch, sgd(model, 0.0))
        wanted = F.mse_loss(step.outputs.double(), batch[1].double())
        torch.testing.assert_close(step.loss.double(), wanted, rtol=0.01, atol=0)
    phase = rk.BPTTTrainingPhase(window=5)
    refused(lambda: phase(model, rk.seq2seq_loss(correlation), batch, sgd(model)), "together are")


def test_a_function_of_outputs_targets_and_lengths_is_scored_in_parts():
    calls = []

    def loss(outputs, targets, lengths):
        calls.append(tuple(outputs.shape[:2]))
        return rk.seq2seq_loss(nn.MSELoss())(outputs, targets, lengths)

    x, y, model = data(9, 3, 3), data(9, 3, 3, seed=1), net()
    for batch in ((x, y), (x, y, torch.tensor([9, 4, 6]))):
        phase = rk.BPTTValidationPhase(nfeedback=3)
        own, known = phase(model, loss, batch), phase(model, rk.seq2seq_loss(nn.MSELoss()), batch)
        close(own.closed_loss, known.closed_loss)
        close(own.open_loss, known.open_loss)
        close(own.loss_by_step, known.loss_by_step)
    assert (3, 3) in calls


def test_a_function_of_two_arguments_is_refused_where_rows_differ():
    batch = data(5, 2, 3), data(5, 2, 3), torch.tensor([5, 2])

    def loss(outputs, targets):
        return (outputs - targets).square().mean()

    model = net()
    rk.BPTTValidationPhase()(model, loss, batch[:2])
    refused(lambda: rk.BPTTValidationPhase()(model, loss, batch), "takes lengths", TypeError)


def test_an_option_of_a_loss_is_not_given_the_lengths():
    batch = data(5, 2, 3), data(5, 2, 3, seed=1), torch.tensor([5, 2])

    def scaled(outputs, targets, scale=1.0):
        return (scale * (outputs - targets).square().mean(2)).mean()

    def masked(outputs, targets, lengths=None):
        return rk.seq2seq_loss(nn.MSELoss())(outputs, targets, lengths)

    model = net()
    refused(lambda: rk.BPTTValidationPhase()(model, scaled, batch), "takes lengths", TypeError)
    own = rk.BPTTValidationPhase()(model, masked, batch).loss
    close(own, masked(model(batch[0])[0].detach(), *batch[1:]))


def test_an_option_before_the_lengths_or_by_name_alone_is_not_given_them_either():
    batch = data(5, 2, 3), data(5, 2, 3, seed=1), torch.tensor([5, 2])

    def scaled(outputs, targets, scale=1.0, lengths=None):
        return (scale * (outputs - targets).square()).mean()

    def named(outputs, targets, *, lengths=None):
        return (outputs - targets).square().mean()

    phase = rk.BPTTValidationPhase()
    refused(lambda: phase(net(), scaled, batch), "takes lengths", TypeError)
    refused(lambda: phase(net(), named, batch), "takes lengths", TypeError)


def test_a_function_of_any_number_of_arguments_is_given_the_lengths():
    batch = data(5, 2, 3), data(5, 2, 3, seed=1), torch.tensor([5, 2])

    def masked(*given):
        return rk.seq2seq_loss(nn.MSELoss())(*given)

    step = rk.BPTTValidationPhase()(net(), masked, batch)
    close(step.loss, rk.BPTTValidationPhase()(net(), rk.seq2seq_loss(nn.MSELoss()), batch).loss)


def test_a_function_that_says_nothing_of_its_arguments_is_a_loss():
    inputs, targets = data(5, 2, 3), data(5, 2, 3, seed=1)
    step = rk.BPTTValidationPhase()(net(), torch.dist, (inputs, targets))
    close(step.loss, (net()(inputs)[0] - targets).square().sum().sqrt().detach())


@pytest.mark.parametrize("window", [None, 2])
def test_a_pair_over_the_padded_batch_is_divided_once_where_its_windows_are_put_together(window):
    inputs, targets = data(6, 2, 3), data(6, 2, 3, seed=1)
    targets[torch.rand(6, 2, 3, generator=seeded(2)) < 0.5] = math.nan

    def present(outputs, targets):
        there = ~targets.isnan()
        return (outputs - targets)[there].abs().sum(), there.sum()

    model = net()
    step = rk.BPTTTrainingPhase(window)(model, present, (inputs, targets), sgd(model, 0.0))
    there = ~targets.isnan()
    close(step.loss, (model(inputs)[0] - targets)[there].abs().mean().detach())


def test_a_metric_beside_a_function_over_the_padded_batch_is_given_the_valid_steps():
    inputs, targets, lengths = data(5, 3, 3), data(5, 3, 3, seed=1), torch.tensor([5, 2, 4])

    class Kept:
        def reset(self):
            self.given = []

        def update(self, outputs, targets):
            self.given.append((outputs, targets))

        def compute(self):
            return 0.0

    def masked(outputs, targets, lengths):
        return rk.seq2seq_loss(nn.MSELoss())(outputs, targets, lengths)

    model, kept = net(), Kept()
    rk.evaluate(model, masked, [(inputs, targets, lengths)], metrics={"kept": kept})
    ((outputs, scored),) = kept.given
    valid = torch.arange(5).unsqueeze(1) < lengths
    close(scored, targets[valid])
    close(outputs, model(inputs)[0][valid].detach())


# Warmup


@pytest.mark.parametrize("average", ["step", "sequence"])
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"window": 4, "stride": 3}])
def test_warmup_steps_are_read_and_not_scored(average, options):
    x, y, lengths = data(9, 3, 3), data(9, 3, 3, seed=1), torch.tensor([9, 5, 3])
    model = net()
    loss = rk.seq2seq_loss(nn.MSELoss(), average, warmup=3)  # the third row has nothing to score
    outputs = model(x)[0].detach()
    rows = [(outputs[3:n, i] - y[3:n, i]).square().mean(1) for i, n in ((0, 9), (1, 5))]
    expected = torch.cat(rows).mean()
    if average == "sequence":
        expected = torch.stack([row.mean() for row in rows]).mean()
    step = rk.BPTTTrainingPhase(**options)(model, loss, (x, y, lengths), sgd(model, 0.0))
    close(step.loss, expected)
    close(loss(outputs, y, lengths), expected)


def test_warmup_counts_from_where_a_row_of_a_stream_began():
    stream = data(31, 1)
    documents = [data(8, 1, seed=2), data(14, 1, seed=3)]
    model = net(1, 1)
    for source, rows in ((stream, 2), (documents, 2)):
        loss = rk.seq2seq_loss(nn.MSELoss(), warmup=5)
        learner = rk.Learner(model, loss, sgd(model, 0.0))
        loader = rk.StreamLoader(source, rows, 3)
        average = learner.epoch(rk.BPTTTrainingPhase(stateful=True), loader)["loss"]
        if source is stream:
            parts = [stream[:16], stream[15:31]]
        else:
            parts = documents
        errors = []
        for part in parts:
            outputs = model(part[:-1].unsqueeze(1))[0].squeeze(1)
            errors.append((outputs - part[1:])[5:].square())
        close(average.double(), torch.cat(errors).detach().mean())


def test_a_warmup_that_makes_no_sense_is_refused():
    refused(lambda: rk.seq2seq_loss(nn.MSELoss(), warmup=-1), "warmup = -1")
    refused(lambda: rk.seq2seq_loss(nn.MSELoss(), warmup=1.5), "warmup = 1.5", TypeError)


# One output a sequence


def halves(outputs, lengths):
    """The forward half at the last step, the backward half at the first."""
    rows = torch.arange(outputs.shape[1])
    size = outputs.shape[2] // 2
    return torch.cat([outputs[lengths - 1, rows, :size], outputs[0, :, size:]], 1)


@pytest.mark.parametrize("read", ["mean", "max", "last", halves])
def test_each_reading_is_that_of_each_row_alone(read):
    outputs, targets, lengths = data(7, 3, 4), data(3, 4, seed=1), torch.tensor([7, 1, 4])
    outputs[1:, 1] = math.nan  # padding is not read
    rows = []
    for i, n in enumerate(lengths.tolist()):
        row = outputs[:n, i]
        answers = {"mean": row.mean(0), "max": row.amax(0), "last": row[-1]}
        answer = torch.cat([row[-1, :2], row[0, 2:]]) if callable(read) else answers[read]
        rows.append((answer - targets[i]).square().mean())
    loss = rk.seq2one_loss(nn.MSELoss(), read)
    close(loss(outputs, targets, lengths), torch.stack(rows).mean())
    weights = torch.tensor([1.0, 0.0, 3.0])
    expected = (rows[0] + 3 * rows[2]) / 4
    close(loss(outputs, targets, lengths, weights), expected)


class Both(nn.Module):
    takes_packed = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(1, 4, bidirectional=True)

    def forward(self, inputs, state=None):
        return self.rnn(inputs, state)


def test_the_last_output_of_a_bidirectional_model_is_refused():
    for model in (Both(), nn.LSTM(1, 4, bidirectional=True)):
        loss = rk.seq2one_loss(nn.CrossEntropyLoss())
        batch = data(6, 2, 1), torch.tensor([0, 1])
        for call in (
            lambda model=model, loss=loss, batch=batch: loss.on(model, *batch),
            lambda model=model, loss=loss, batch=batch: rk.BPTTValidationPhase()(
                model, loss, batch
            ),
            lambda model=model, loss=loss, batch=batch: rk.BPTTTrainingPhase()(
                model, loss, batch, sgd(model)
            ),
        ):
            assert "read" in refused(call, "a bidirectional model")
        for read in ("mean", "max", halves):
            assert rk.seq2one_loss(nn.CrossEntropyLoss(), read).on(model, *batch).isfinite()


def test_a_bidirectional_model_read_at_both_ends_learns_the_first_sign():
    torch.manual_seed(0)
    inputs = torch.randn(40, 64, 1)
    targets = (inputs[0, :, 0] > 0).long()

    class Tagger(nn.Module):
        bidirectional = True

        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(1, 8, bidirectional=True)
            self.head = nn.Linear(16, 2)

        def forward(self, inputs, state=None):
            return self.rnn(inputs, state)

    model = Tagger()
    loss = rk.seq2one_loss(lambda y, t: F.cross_entropy(model.head(y), t), halves)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        rk.BPTTTrainingPhase()(model, loss, (inputs, targets), optimizer)
    answers = model.head(halves(model(inputs)[0], torch.full((64,), 40)))
    assert (answers.argmax(1) == targets).all()


def test_a_loss_of_everything_is_connectionist_temporal_classification():
    torch.manual_seed(0)
    model = net(3, 5)
    inputs, lengths = data(12, 3, 3), torch.tensor([12, 9, 7])
    texts, counts = torch.randint(1, 5, (3, 4)), torch.tensor([4, 2, 3])

    def ctc(outputs, targets, lengths):
        return F.ctc_loss(
            outputs.log_softmax(2), targets["text"], lengths, targets["length"], reduction="none"
        )

    loss = rk.seq2one_loss(ctc, "all")
    targets = {"text": texts, "length": counts}
    outputs = model(inputs)[0]
    rows = []
    for i in range(3):
        n, m = int(lengths[i]), int(counts[i])
        rows.append(
            F.ctc_loss(
                outputs[:n, i].log_softmax(1),
                texts[i, :m],
                torch.tensor(n),
                torch.tensor(m),
                reduction="none",
            )
        )
    expected = torch.stack(rows).mean()
    close(loss(outputs, targets, lengths), expected)
    step = rk.BPTTValidationPhase()(model, loss, (inputs, targets, lengths))
    close(step.loss, expected.detach())
    trained = rk.BPTTTrainingPhase()(model, loss, (inputs, targets, lengths), sgd(model, 0.0))
    close(trained.loss, expected.detach())
    cut = rk.BPTTTrainingPhase(window=5)(model, loss, (inputs, targets, lengths), sgd(model, 0.0))
    close(cut.loss, expected.detach())


class Temporal(nn.CTCLoss):
    def forward(self, outputs, targets, lengths):
        return super().forward(outputs.log_softmax(2), targets, lengths, torch.tensor([4, 4]))


class Counted(nn.MSELoss):
    def forward(self, outputs, targets, lengths):
        counts = torch.arange(len(outputs)).unsqueeze(1) < lengths
        return (outputs - targets)[counts].pow(2).mean()


def test_a_subclass_of_pytorch_s_may_want_the_lengths():
    outputs, lengths = data(9, 2, 5), torch.tensor([9, 8])
    texts = torch.randint(1, 5, (2, 4), generator=seeded())
    expected = Temporal()(outputs, texts, lengths)
    close(rk.seq2one_loss(Temporal(), "all")(outputs, texts, lengths), expected)
    model, inputs, targets = net(), data(9, 2, 3), data(9, 2, 3, seed=1)
    step = rk.BPTTValidationPhase()(model, Counted(), (inputs, targets, lengths))
    expected = rk.seq2seq_loss(nn.MSELoss()).on(model, inputs, targets, lengths)
    close(step.loss, expected.detach())


def test_a_compiled_loss_that_wants_the_lengths_is_given_them_where_all_rows_are_whole():
    compiled = torch.compile(Counted(), backend="eager")
    batch = (data(4, 2, 3), data(4, 2, 3, seed=1))
    step = rk.BPTTValidationPhase()(net(), compiled, batch)
    close(step.loss, rk.seq2seq_loss(nn.MSELoss()).on(net(), *batch).detach())


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), F.cross_entropy, lambda y, t: (y - t).mean()])
def test_a_loss_of_two_arguments_is_none_of_everything(loss_fn):
    """Of `F.cross_entropy` the lengths would be the weights of the classes."""
    for loss in (loss_fn, {"a": loss_fn}):
        refused(lambda loss=loss: rk.seq2one_loss(loss, "all"), 'read="all"', TypeError)


@pytest.mark.parametrize("losses", [nn.MSELoss(), {"a": nn.MSELoss(), "b": nn.L1Loss()}])
def test_a_function_that_reads_is_not_asked_about_no_row(losses):
    def each(outputs, lengths):
        read = torch.stack([outputs[:n, i].mean(0) for i, n in enumerate(lengths.tolist())])
        return {"a": read, "b": read} if isinstance(losses, dict) else read

    outputs, targets = data(4, 2, 3).requires_grad_(), data(2, 3)
    if isinstance(losses, dict):
        targets = {"a": targets, "b": targets}
    loss = rk.seq2one_loss(losses, each)(outputs, targets, weights=torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert outputs.grad.eq(0).all()


def test_readings_that_do_not_fit_are_refused():
    refused(lambda: rk.seq2one_loss(nn.MSELoss(), "first"), "read='first'")
    loss = rk.seq2one_loss(nn.MSELoss(), lambda outputs, lengths: outputs)
    refused(lambda: loss(data(4, 2, 3), data(2, 3)), "from read")
    loss = rk.seq2one_loss(nn.MSELoss(), "mean")
    refused(lambda: loss(data(4, 2, 3), data(2, 3), weights=torch.ones(4, 2)), "of steps")
    refused(lambda: rk.seq2one_loss(nn.MSELoss(), lambda outputs: outputs[-1]), "read", TypeError)


@pytest.mark.parametrize(
    ("read", "weights"),
    [("last", (5, 4)), ("last", (4,)), ("mean", (4,)), ("max", None)],
    ids=["of steps", "of rows", "a mean", "none"],
)
@pytest.mark.parametrize("window", [None, 2, 5])
def test_a_sequence_without_a_step_or_of_weight_zero_takes_no_part(read, weights, window):
    inputs, targets = data(5, 4, 3), data(4, 3, seed=1)
    lengths = torch.tensor([3, 0, 5, 2])
    of_rows = torch.ones(4)
    if weights is not None:
        weights = torch.rand(weights, generator=seeded(2)) + 0.5
        weights[..., 2] = 0
        of_rows = weights
    if of_rows.ndim == 2:
        of_rows = weights[lengths - 1, torch.arange(4)]

    model = net()
    losses = torch.zeros(4)
    for b in (0, 2, 3):
        steps, _ = model(inputs[: lengths[b], b : b + 1])
        answer = {"last": steps[-1], "mean": steps.mean(0), "max": steps.amax(0)}[read]
        losses[b] = F.mse_loss(answer[0], targets[b]).detach()
    counts = of_rows * (lengths > 0)
    expected = (losses * counts).sum() / counts.sum()

    targets[counts == 0] = math.nan  # what is missing is not looked at
    restart = torch.ones(4, dtype=torch.bool)
    batch = rk.SequenceBatch(inputs, targets, lengths, restart, weights)
    phase = rk.BPTTTrainingPhase(window)
    step = phase(model, rk.seq2one_loss(nn.MSELoss(), read), batch, sgd(model))
    close(step.loss, expected)


@pytest.mark.parametrize("read", ["mean", "last", halves])
@pytest.mark.parametrize("window", [3, 20])
def test_a_window_cuts_the_gradient_and_not_the_reading(read, window):
    inputs, targets, lengths = data(9, 3, 3), data(3, 4, seed=1), torch.tensor([9, 2, 5])
    model = net(3, 4)
    loss = rk.seq2one_loss(nn.MSELoss(), read)
    expected = loss.on(model, inputs, targets, lengths)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    phase = rk.BPTTTrainingPhase(window=window)
    step = phase(model, loss, (inputs, targets, lengths), sgd(model, 0.0))
    close(step.loss, expected.detach())
    if window == 20:
        for parameter, gradient in zip(model.parameters(), wanted, strict=True):
            close(parameter.grad, gradient)


# Shapes and weights


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.PoissonNLLLoss(),
        nn.MSELoss(),
        F.l1_loss,
        functools.partial(F.poisson_nll_loss, full=True),
        lambda y, t: (y - t).square().mean(),
        lambda y, t: ((y - t).square().sum(), 1.0),
    ],
    ids=["poisson", "squared", "function", "part", "own", "pair"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
def test_shapes_that_would_broadcast_are_refused_whatever_the_dtype(loss_fn, dtype):
    outputs, targets = data(50, 8, 1), torch.ones(50, 8, dtype=dtype)
    refused(lambda: rk.seq2seq_loss(loss_fn)(outputs, targets), "targets.unsqueeze(-1)")
    one = rk.seq2one_loss(loss_fn)
    refused(lambda: one(data(7, 50, 1), torch.ones(50, dtype=dtype)), "targets.unsqueeze(-1)")


def test_classes_need_no_shape_of_the_outputs():
    for loss_fn in (nn.CrossEntropyLoss(), F.cross_entropy, nn.MultiMarginLoss()):
        outputs, targets = data(5, 2, 1), torch.zeros(5, 2, dtype=torch.int64)
        assert rk.seq2seq_loss(loss_fn)(outputs, targets).isfinite()


def test_weights_that_do_not_fit_are_refused():
    loss = rk.seq2seq_loss(nn.MSELoss())
    y = data(4, 2, 3)
    for weights in (torch.ones(2, 4), -torch.ones(4, 2), torch.full((4, 2), math.nan)):
        refused(lambda weights=weights: loss(y, y, weights=weights), "weights")
    opaque = rk.seq2seq_loss(lambda y, t: (y - t).square().mean())
    refused(lambda: opaque(y, y, weights=torch.ones(4, 2)), "no single step")
    opaque = rk.seq2one_loss(lambda y, t: (y - t).square().mean())
    refused(lambda: opaque(y, y[0], weights=torch.ones(2)), "no single sequence")
    model = net()
    batch = rk.SequenceBatch(y, y, weights=torch.ones(4, 2))
    refused(lambda: rk.BPTTValidationPhase()(model, lambda y, t: (y - t).mean(), batch), "weights")


def test_a_loss_of_nothing_is_zero_and_has_a_gradient_of_zeros():
    outputs = data(4, 2, 3).requires_grad_()
    targets = torch.full((4, 2), -100)
    for loss in (
        rk.seq2seq_loss(nn.CrossEntropyLoss()),
        rk.seq2seq_loss(nn.CrossEntropyLoss(), "sequence"),
    ):
        value = loss(outputs, targets)
        assert value == 0
        (gradient,) = torch.autograd.grad(value, outputs)
        assert gradient.eq(0).all()
    value = rk.seq2seq_loss(nn.MSELoss(), warmup=9)(outputs, data(4, 2, 3))
    assert value == 0
    value.backward()
    assert outputs.grad.eq(0).all()


# Heads


def test_heads_that_do_not_fit_are_refused():
    both = {"a": nn.MSELoss(), "b": nn.CrossEntropyLoss()}
    refused(lambda: rk.seq2seq_loss(both, weights={"c": 1.0}), "'c'")
    refused(lambda: rk.seq2seq_loss({}), "losses []")
    refused(lambda: rk.seq2seq_loss(both, weights={"a": math.inf}), "inf")
    learned = nn.Parameter(torch.ones(()))  # it would stay as it is
    refused(lambda: rk.seq2seq_loss(both, weights={"a": learned}), "learned", TypeError)
    refused(lambda: rk.seq2seq_loss(nn.MSELoss(), weights={"a": 1.0}), "one loss", TypeError)
    loss = rk.seq2seq_loss(both)
    y, classes = data(4, 2, 3), torch.zeros(4, 2, dtype=torch.int64)
    refused(lambda: loss({"a": y}, {"a": y, "b": classes}), "'b'")
    refused(lambda: loss(y, {"a": y, "b": classes}), "a dict with 'a'")
    refused(lambda: rk.seq2seq_loss(nn.MSELoss())({"a": y}, {"a": y}), "one sequence of outputs")


@pytest.mark.parametrize("kind", [dict, nn.ModuleDict])
def test_heads_of_one_target_a_sequence(kind):
    losses = kind({"a": nn.MSELoss(), "b": nn.CrossEntropyLoss()})
    loss = rk.seq2one_loss(losses, "mean", weights={"a": 2.0})
    outputs = {"a": data(5, 3, 1), "b": data(5, 3, 4, seed=1)}
    targets = {"a": data(3, 1, seed=2), "b": torch.tensor([0, 3, 1])}
    expected = 2 * F.mse_loss(outputs["a"].mean(0), targets["a"])
    expected = expected + F.cross_entropy(outputs["b"].mean(0), targets["b"])
    close(loss(outputs, targets), expected)


# What stands where nothing is scored, and what is no loss at all


def test_a_head_is_held_to_its_own_outputs():
    """Two steps and two rows: a target of one head has the shape of the other's outputs."""
    outputs = {"a": data(2, 2, 3), "b": data(2, 2, 2, 3)}
    targets = {"a": data(2, 3, seed=1), "b": data(2, 2, 3, seed=2)}
    loss = rk.seq2one_loss({"a": nn.MSELoss(), "b": nn.MSELoss()})
    expected = sum(F.mse_loss(outputs[name][-1], targets[name]) for name in outputs)
    close(loss(outputs, targets), expected)
    refused(lambda: loss(outputs, {**targets, "a": outputs["a"]}), "one target a sequence")


@pytest.mark.parametrize("weight", [-2.0, math.nan, math.inf, torch.tensor(-1)])
def test_a_weight_below_zero_or_not_finite_is_refused(weight):
    loss = rk.seq2seq_loss(lambda y, t: ((y - t).square().sum(), weight))
    refused(lambda: loss(data(4, 2, 3), data(4, 2, 3)), "a pair whose weight is")


def test_a_weight_that_has_a_gradient_is_refused():
    """It would be cut off, and two losses, (reconstruction, divergence), would be a quotient."""
    outputs, targets = data(4, 2, 3).requires_grad_(), data(4, 2, 3, seed=1)
    loss = rk.seq2seq_loss(lambda y, t: ((y - t).pow(2).sum(), y.sigmoid().sum()))
    refused(lambda: loss(outputs, targets), "a pair whose weight has a gradient")
    assert loss(outputs.detach(), targets) > 0


@pytest.mark.parametrize("padding", [-7, 99])
def test_targets_in_the_padding_need_not_be_classes(padding):
    outputs = data(6, 3, 3)
    targets = torch.randint(3, (6, 3), generator=seeded(1))
    lengths = torch.tensor([6, 3, 2])
    weight = torch.tensor([0.5, 1.0, 3.0])
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss(weight=weight), average="sequence")
    rows = []
    for b, n in enumerate(lengths.tolist()):
        rows.append(F.cross_entropy(outputs[:n, b], targets[:n, b], weight=weight))
        targets[n:, b] = padding
    close(loss(outputs, targets, lengths), torch.stack(rows).mean())


def test_a_head_that_scored_nothing_is_not_moved_by_the_momentum_of_its_optimizer():
    """Two heads of parameters of their own; in the second batch the targets of one are missing."""
    left = nn.Linear(2, 2)
    right = nn.Linear(2, 3)
    optimizer = torch.optim.SGD([*left.parameters(), *right.parameters()], 0.1, momentum=0.9)
    loss = rk.seq2seq_loss({"left": nn.MSELoss(), "right": nn.CrossEntropyLoss(ignore_index=0)})
    inputs = data(5, 2, 2)
    targets = torch.ones(5, 2, dtype=torch.int64)
    for missing in (False, True):
        before = [p.detach().clone() for p in (left.weight, right.weight)]
        outputs = {"left": left(inputs), "right": right(inputs)}
        optimizer.zero_grad()
        loss(outputs, {"left": inputs + 1, "right": targets * (not missing)}).backward()
        optimizer.step()
        assert not torch.equal(left.weight, before[0])
        assert torch.equal(right.weight, before[1]) is missing


WRONG_CLASSES = {
    "a dimension of one": torch.ones(4, 2, 1, dtype=torch.int64),
    "int32": torch.ones(4, 2, dtype=torch.int32),
    "numbers": torch.ones(4, 2),
    "other probabilities": torch.ones(4, 2, 5),
}


@pytest.mark.parametrize("name", WRONG_CLASSES)
@pytest.mark.parametrize(
    "loss_fn", [nn.CrossEntropyLoss(), F.cross_entropy], ids=["module", "function"]
)
def test_targets_that_are_no_classes_are_refused(name, loss_fn):
    targets = WRONG_CLASSES[name]
    refused(lambda: rk.seq2seq_loss(loss_fn)(data(4, 2, 3), targets), "wanted classes (4, 2)")
    answer = targets[0]
    refused(lambda: rk.seq2one_loss(loss_fn)(data(4, 2, 3), answer), "wanted classes (2,)")


def test_classes_with_dimensions_of_their_own_and_bytes_are_targets():
    outputs = data(4, 2, 3, 5)
    targets = torch.randint(3, (4, 2, 5), generator=seeded(1))
    wanted = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1))
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    close(loss(outputs, targets), wanted)
    wanted = F.cross_entropy(outputs[..., 0].flatten(0, 1), targets[..., 0].flatten())
    close(loss(outputs[..., 0], targets[..., 0].to(torch.uint8)), wanted)


@pytest.mark.parametrize("average", ["step", "sequence"])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.1, 2, 200).double()])
def test_targets_of_bytes_are_the_classes_that_they_are_as_integers(average, weight):
    """In a byte the class 156 has the digits of the ignored -100."""
    outputs = data(4, 2, 200)
    targets = torch.tensor([[156, 3], [156, 199], [0, 156], [7, 156]])
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss(weight=weight), average)
    wanted = loss(outputs, targets, torch.tensor([4, 2]))
    close(loss(outputs, targets.to(torch.uint8), torch.tensor([4, 2])), wanted)


def test_a_class_is_no_loss():
    for make in (rk.seq2seq_loss, rk.seq2one_loss):
        refused(lambda make=make: make(nn.MSELoss), "the class MSELoss", TypeError)
    batch = (data(4, 2, 3), data(4, 2, 3))
    phase = rk.BPTTValidationPhase()
    refused(lambda: phase(net(), nn.MSELoss, batch), "the class MSELoss", TypeError)


def test_a_loss_over_sequences_is_none_of_steps():
    """To it all rows' steps were one row: of a warmup of one step, one in all was left out."""
    for inside in (rk.seq2seq_loss(nn.MSELoss(), warmup=1), rk.seq2one_loss(nn.MSELoss())):
        for losses in (inside, {"a": inside}):
            refused(lambda losses=losses: rk.seq2seq_loss(losses), "inside; wanted", TypeError)
            refused(lambda losses=losses: rk.seq2one_loss(losses), "inside; wanted", TypeError)


MORE = {
    "variance": nn.GaussianNLLLoss(),
    "a function": F.gaussian_nll_loss,
    "two inputs": nn.CosineEmbeddingLoss(),
    "lengths of the targets": nn.CTCLoss(),
}


@pytest.mark.parametrize("name", MORE)
def test_a_loss_that_wants_more_than_outputs_and_targets_is_refused(name):
    message = refused(lambda: rk.seq2seq_loss(MORE[name]), "a loss that wants", TypeError)
    assert "lambda outputs, targets:" in message
    assert "lambda outputs, targets, lengths:" in message, "what a CTC loss needs"


@pytest.mark.parametrize("loss_fn", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_labels_of_a_dtype_that_a_loss_of_pytorch_does_not_take_are_refused(loss_fn, dtype):
    """PyTorch's own error is of a cast of its result, or of the subtraction of two bool tensors."""
    y, targets = data(5, 2, 3), torch.ones(5, 2, 3, dtype=dtype)
    text = f"targets of {dtype}, which "
    message = refused(lambda: rk.seq2seq_loss(loss_fn)(y, targets), text, TypeError)
    assert "targets.float()" in message
    refused(lambda: rk.seq2one_loss(loss_fn)(y, targets[0]), text, TypeError)
    rk.seq2seq_loss(loss_fn)(y, targets.to(y.dtype))
    rk.seq2seq_loss(nn.SmoothL1Loss())(y, targets)  # which takes them


def test_a_function_that_is_told_the_rest_is_a_loss():
    loss = rk.seq2seq_loss(functools.partial(F.gaussian_nll_loss, var=2.0))
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1)
    close(loss(outputs, targets), F.gaussian_nll_loss(outputs, targets, var=2.0))


def test_weights_are_a_tensor():
    outputs, targets = data(4, 2, 3), data(4, 2, 3, seed=1)
    loss = rk.seq2seq_loss(nn.MSELoss())
    refused(lambda: loss(outputs, targets, weights=[1, 2]), "weights = a list", TypeError)
    loss = rk.seq2one_loss(nn.MSELoss())
    refused(lambda: loss(outputs, targets[0], weights=[1, 2]), "weights = a list", TypeError)


# Surroundings


class Twice(nn.Module):
    """Two heads of one model."""

    def __init__(self):
        super().__init__()
        self.model = net()

    def forward(self, inputs, state=None):
        outputs, state = self.model(inputs, state)
        return {"a": outputs, "b": 2 * outputs}, state


def runs_of_all_phases(model):
    """The losses of a model in every phase, with every kind of loss."""
    inputs, targets = data(6, 3, 3), data(6, 3, 3, seed=1)
    lengths = torch.tensor([6, 3, 2], device="cpu")
    weights = torch.rand(6, 3, generator=seeded(2), device="cpu")
    optimizer = sgd(model)
    found = []

    heads = rk.seq2seq_loss({"a": nn.MSELoss(), "b": lambda y, t: (y - t).abs().mean()})
    batch = (inputs, {"a": targets, "b": targets}, lengths)
    training = rk.BPTTTrainingPhase(3, 2, stateful=True, accumulate=2)
    for _ in range(2):
        found.append(training(model, heads, batch, optimizer).loss)
    closed = rk.BPTTValidationPhase(1, lambda outputs: outputs["a"])
    found.append(closed(model, heads, batch).loss_by_step)

    one_head = rk.seq2seq_loss(nn.MSELoss(), average="sequence")
    weighed = rk.SequenceBatch(inputs, targets, lengths, weights=weights)
    found.append(rk.BPTTValidationPhase(1)(model.model, one_head, weighed).loss_by_step)
    batch = (inputs, targets[0], lengths)
    loss = rk.seq2one_loss(nn.MSELoss(), "mean")
    found.append(rk.BPTTTrainingPhase(2)(model.model, loss, batch, optimizer).loss)

    sampler = rk.DistributionSampler(lambda y: torch.distributions.Normal(y, 1e-9 + 0 * y))
    paths = rk.BPTTValidationPhase(1, sampler, paths=2)
    found.append(paths(model.model, nn.MSELoss(), (inputs, targets, lengths)).closed_loss.round())
    return found


def test_losses_and_phases_make_nothing_on_a_default_device():
    first, second = Twice(), Twice()
    wanted = runs_of_all_phases(first)
    torch.set_default_device("meta")
    try:
        found = runs_of_all_phases(second)
    finally:
        torch.set_default_device(None)
    for left, right in zip(found, wanted, strict=True):
        assert left.device.type == "cpu"
        close(left, right)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_weight_is_counted_whatever_the_default_dtype(low):
    outputs = {"a": torch.ones(3001, 1, 1, dtype=torch.float64)}
    targets = {"a": torch.zeros(3001, 1, 1, dtype=torch.float64)}
    torch.set_default_dtype(low)
    try:
        total = rk.seq2seq_loss({"a": nn.MSELoss()}).total(outputs, targets)
    finally:
        torch.set_default_dtype(torch.float64)
    assert float(total.weight) == 3001
    close(total.mean(), torch.ones((), dtype=torch.float64))


# Scores of paths


def test_the_energy_score_of_paths_far_from_zero_is_exact_in_float32():
    """Spread of a hundredth about a thousand, of more paths than cdist takes one by one."""
    paths = 1000 + 0.01 * data(2, 3, 100, 1)
    targets = torch.full((2, 3, 1), 1000.0)
    found = rk.energy_score(paths.float(), targets.float())
    drawn = paths.float().double().squeeze(-1)  # (n, B, P)
    to_target = (drawn - 1000).abs().mean(2)
    apart = (drawn.unsqueeze(2) - drawn.unsqueeze(3)).abs().sum((2, 3)) / (2 * 100 * 99)
    torch.testing.assert_close(found.double(), to_target - apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", [lambda p, t: p.mean(), lambda p, t: 1.0], ids=["one", "float"])
def test_a_score_that_tells_of_no_step_is_refused(score):
    sampler = rk.DistributionSampler(lambda y: torch.distributions.Normal(y, 1.0))
    phase = rk.BPTTValidationPhase(2, sampler, score=score)
    batch = (data(6, 3, 3), data(6, 3, 3, seed=1))
    refused(lambda: phase(net(), nn.MSELoss(), batch), "from score; wanted a score of each step")


def test_what_is_no_feedback_and_no_sampler_is_refused():
    refused(lambda: rk.BPTTTrainingPhase(feedback=0.5), "feedback = a float", TypeError)
    refused(lambda: rk.BPTTTrainingPhase(sampler=3), "sampler = a int", TypeError)
    refused(lambda: rk.BPTTValidationPhase(1, None), "sampler = a NoneType", TypeError)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("step", [0, 5])
def test_a_loss_that_is_no_number_is_told_as_what_it_is_though_it_is_made_of_parts(step, bad):
    model = nn.LSTM(2, 2)
    inputs, targets = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    targets[step] = bad
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    learner = rk.Learner(
        model, lambda outputs, targets: (outputs - targets).abs().mean(), optimizer
    )
    for phase in (rk.BPTTTrainingPhase(window=3), rk.BPTTValidationPhase(nfeedback=2)):
        loss = learner.step(phase, (inputs, targets)).loss
        torch.testing.assert_close(loss, torch.tensor(bad, dtype=loss.dtype), equal_nan=True)


def test_a_loss_of_complex_numbers_is_refused():
    loss = rk.seq2seq_loss(lambda outputs, targets: ((outputs - targets) * 1j).mean())
    refused(lambda: loss(data(4, 2, 3), data(4, 2, 3)), "complex numbers from the loss")
