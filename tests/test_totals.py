"""What is put together from pieces is the loss of the whole: random splits against plain PyTorch in one call.

The referee is the loss function of PyTorch on all valid steps, called once, in float64.
"""

import functools
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rnnkit as rk
from rnnkit.losses.plain import as_loss
from rnnkit.losses.total import Total

pytestmark = pytest.mark.usefixtures("in_double_precision")

many = settings(max_examples=40, deadline=None, derandomize=True, database=None)
C = 4


def classes(generator, time, batch):
    """Targets in which a third is to be ignored."""
    targets = torch.randint(C, (time, batch), generator=generator)
    return targets.masked_fill(torch.rand(time, batch, generator=generator) < 0.35, -1)


def real(generator, time, batch):
    return torch.rand(time, batch, C, generator=generator)


def gaussian(outputs, targets):
    return F.gaussian_nll_loss(outputs[:, :2], targets[:, :2], outputs[:, 2:].exp(), eps=1e-9)


def masked(outputs, targets):
    """A loss of one's own that leaves out missing targets, as a sum and a count."""
    there = targets > 0.3
    return (outputs - targets)[there].square().sum(), there.sum()


def masked_mean(outputs, targets):
    total, count = masked(outputs, targets)
    return total / count


WEIGHT = torch.tensor([0.2, 1.0, 2.5, 0.7], dtype=torch.float64)
KINDS = {
    "cross-entropy": (nn.CrossEntropyLoss(ignore_index=-1), classes),
    "weighted cross-entropy": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1), classes),
    "smoothed cross-entropy": (
        nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1, label_smoothing=0.2),
        classes,
    ),
    "unreduced cross-entropy": (
        nn.CrossEntropyLoss(ignore_index=-1, reduction="none"),
        classes,
    ),
    "a function of torch, in part": (
        functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=-1),
        classes,
    ),
    "cross-entropy of probabilities": (nn.CrossEntropyLoss(weight=WEIGHT), real),
    "negative log-likelihood": (nn.NLLLoss(weight=WEIGHT, ignore_index=-1), classes),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), real),
    "squared": (nn.MSELoss(), real),
    "huber": (nn.HuberLoss(delta=0.3), real),
    "poisson": (nn.PoissonNLLLoss(), real),
    "kl": (nn.KLDivLoss(reduction="batchmean"), real),
    "gaussian": (gaussian, real),
    "a pair": (masked, real),
}


def plain(loss_fn, outputs, targets):
    """The mean by PyTorch itself."""
    if loss_fn is masked:
        return masked_mean(outputs, targets)
    if isinstance(loss_fn, nn.CrossEntropyLoss) and loss_fn.reduction == "none":
        loss_fn = nn.CrossEntropyLoss(ignore_index=-1)
    return loss_fn(outputs, targets)


def whole(loss_fn, outputs, targets, lengths, average="step"):
    """The referee: all valid steps in one call, or one call a sequence; sequences without a target do not count."""
    rows = [(outputs[:n, i], targets[:n, i]) for i, n in enumerate(lengths.tolist())]
    if average == "step":
        return plain(loss_fn, torch.cat([o for o, _ in rows]), torch.cat([t for _, t in rows]))
    means = torch.stack([plain(loss_fn, o, t) for o, t in rows])
    return means[~means.isnan()].mean()


def problem(kind, time, batch, seed):
    """Outputs, targets and lengths, of which some step has a target."""
    loss_fn, make = KINDS[kind]
    generator = seeded(seed)
    outputs = torch.randn(time, batch, C, generator=generator, requires_grad=True)
    targets = make(generator, time, batch)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    targets[0, 0] = 1 if targets.ndim == 2 else 0.9
    lengths[0] = time
    return loss_fn, outputs, targets, lengths


def agree(total, expected, leaf):
    """The same loss, and the same gradient."""
    torch.testing.assert_close(total.mean(), expected, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(total.mean(), leaf, retain_graph=True)[0]
    wanted = torch.autograd.grad(expected, leaf, retain_graph=True)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


shapes = {"time": st.integers(1, 9), "batch": st.integers(1, 4), "seed": st.integers(0, 999)}
every_kind = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("average", ["step", "sequence"])


@every_kind
@both
@many
@given(**shapes)
def test_the_loss_is_that_of_all_valid_steps_in_one_call(kind, average, time, batch, seed):
    loss_fn, outputs, targets, lengths = problem(kind, time, batch, seed)
    loss = rk.seq2seq_loss(loss_fn, average)
    expected = whole(loss_fn, outputs, targets, lengths, average)
    total = loss.total(outputs, targets, lengths)
    agree(total, expected, outputs)
    torch.testing.assert_close(loss(outputs, targets, lengths), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        total.sum / torch.as_tensor(total.weight), expected, rtol=1e-10, atol=1e-12
    )


def cuts_of(time, seed):
    places = sorted({0, time, *torch.randint(0, time + 1, (3,), generator=seeded(seed)).tolist()})
    return list(pairwise(places))


@every_kind
@both
@many
@given(**shapes)
def test_windows_add_up_to_the_whole(kind, average, time, batch, seed):
    if kind == "a pair" and average == "sequence":
        return  # refused: see test_losses
    loss_fn, outputs, targets, lengths = problem(kind, time, batch, seed)
    scored = rk.seq2seq_loss(loss_fn, average).over(targets, time, batch, lengths)
    totals = [scored.between(a, b).total(outputs[a:b]) for a, b in cuts_of(time, seed)]
    expected = whole(loss_fn, outputs, targets, lengths, average)
    agree(functools.reduce(Total.__add__, totals), expected, outputs)


@every_kind
@both
@many
@given(**shapes)
def test_driven_and_self_fed_part_and_single_steps_add_up_to_the_whole(
    kind, average, time, batch, seed
):
    if kind == "a pair" and average == "sequence":
        return
    loss_fn, outputs, targets, lengths = problem(kind, time, batch, seed)
    scored = rk.seq2seq_loss(loss_fn, average).over(targets, time, batch, lengths)
    expected = whole(loss_fn, outputs, targets, lengths, average)
    driven = torch.arange(time).unsqueeze(1) < lengths - seed % time
    parts = scored.parts(outputs, [driven, ~driven])
    agree(parts[0] + parts[1], expected, outputs)
    by_step = scored.by_step(outputs)
    alone = Total(by_step.sum.sum(0), torch.as_tensor(by_step.weight).sum(0))
    agree(alone, expected, outputs)


@every_kind
@both
@many
@given(**shapes)
def test_batches_add_up_to_the_epoch(kind, average, time, batch, seed):
    loss_fn, outputs, targets, lengths = problem(kind, time, batch, seed)
    loss = rk.seq2seq_loss(loss_fn, average)
    totals = []
    for rows in torch.randperm(batch, generator=seeded(seed)).split(2):
        totals.append(loss.total(outputs[:, rows], targets[:, rows], lengths[rows]))
    expected = whole(loss_fn, outputs, targets, lengths, average)
    agree(functools.reduce(Total.__add__, totals), expected, outputs)


HEADS = {"word": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1), "value": nn.MSELoss()}


@many
@given(**shapes)
def test_the_heads_of_a_dict_are_weighed_each_by_itself(time, batch, seed):
    word_fn, words, word_targets, lengths = problem("weighted cross-entropy", time, batch, seed)
    value_fn, values, value_targets, _ = problem("squared", time, batch, seed + 1)
    outputs = {"word": words, "value": values}
    targets = {"word": word_targets, "value": value_targets}
    loss = rk.seq2seq_loss(HEADS, weights={"value": 0.3})
    expected = whole(word_fn, words, word_targets, lengths)
    expected = expected + 0.3 * whole(value_fn, values, value_targets, lengths)

    scored = loss.over(targets, time, batch, lengths)
    pieces = []
    for a, b in cuts_of(time, seed):
        piece = {"word": words[a:b], "value": values[a:b]}
        pieces.append(scored.between(a, b).total(piece))
    for total in (scored.total(outputs), sum(pieces)):
        torch.testing.assert_close(total.mean(), expected, rtol=1e-10, atol=1e-12)
        got = torch.autograd.grad(total.mean(), [words, values], retain_graph=True)
        wanted = torch.autograd.grad(expected, [words, values], retain_graph=True)
        for left, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@many
@given(**shapes)
def test_weights_of_steps_multiply_a_step_s_loss_and_its_weight(time, batch, seed):
    _, outputs, targets, lengths = problem("squared", time, batch, seed)
    weights = torch.rand(time, batch, generator=seeded(seed))
    weights = weights.masked_fill(weights < 0.3, 0)
    weights[0, 0] = 0.5
    targets[weights == 0] = torch.nan  # what is missing is not looked at
    valid = (torch.arange(time).unsqueeze(1) < lengths) & (weights > 0)
    each = (outputs[valid] - targets[valid]).square().mean(1)
    expected = (each * weights[valid]).sum() / weights[valid].sum()
    loss = rk.seq2seq_loss(nn.MSELoss())
    agree(loss.total(outputs, targets, lengths, weights), expected, outputs)
    scored = loss.over(targets, time, batch, lengths, weights)
    totals = [scored.between(a, b).total(outputs[a:b]) for a, b in cuts_of(time, seed)]
    agree(functools.reduce(Total.__add__, totals), expected, outputs)


# In a phase: windows, accumulated batches, an epoch


def tagger(seed=0):
    torch.manual_seed(seed)
    return rk.RecurrentSequential(nn.GRU(2, 5), nn.Linear(5, C))


def tagged(seed, batch=3, time=7):
    """A ragged batch of which only some steps have a target, and none in the steps 2 to 4."""
    generator = seeded(seed)
    inputs = torch.randn(time, batch, 2, generator=generator)
    targets = classes(generator, time, batch)
    targets[2:5] = -1
    targets[0, 0] = 1
    lengths = torch.randint(5, time + 1, (batch,), generator=generator)
    lengths[0] = time
    return inputs, targets, lengths


CROSS = nn.CrossEntropyLoss(ignore_index=-1)


class Momentum(torch.optim.SGD):
    """Counts its steps."""

    def __init__(self, model, rate=0.0):
        super().__init__(model.parameters(), lr=rate, momentum=0.9)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"window": 3, "stride": 1}])
@both
def test_the_windows_loss_is_that_of_the_batch(options, average):
    inputs, targets, lengths = tagged(3)
    model = tagger()
    phase = rk.BPTTTrainingPhase(**options)
    loss = rk.seq2seq_loss(CROSS, average)
    step = phase(model, loss, (inputs, targets, lengths), Momentum(model))
    expected = whole(CROSS, model(inputs)[0].detach(), targets, lengths, average)
    torch.testing.assert_close(step.loss, expected, rtol=1e-10, atol=1e-12)


def test_a_window_without_a_target_makes_no_nan_and_no_update():
    inputs, targets, lengths = tagged(3)
    model = tagger()
    optimizer = Momentum(model, rate=0.1)
    moved = []

    class Watch(rk.Learner):
        def emit(self, event):
            if event == "WindowEnd":
                moved.append([p.detach().clone() for p in model.parameters()])
            super().emit(event)

    learner = Watch(model, rk.seq2seq_loss(CROSS), optimizer, [rk.StopOnNaN()])
    step = learner.step(rk.BPTTTrainingPhase(window=1), (inputs, targets, lengths))
    assert step.loss.isfinite()
    assert optimizer.count < 7
    for t in (2, 3, 4):  # momentum would move the weights
        assert all(map(torch.equal, moved[t], moved[t - 1]))


def test_a_batch_without_a_target_adds_nothing_to_an_epoch():
    inputs, targets, lengths = tagged(3)
    model = tagger()
    learner = rk.Learner(model, rk.seq2seq_loss(CROSS), Momentum(model))
    empty = (inputs, torch.full_like(targets, -1), lengths)
    validation = rk.BPTTValidationPhase(by_step=True)
    averages = learner.epoch(validation, [empty, (inputs, targets, lengths), empty])
    expected = whole(CROSS, model(inputs)[0].detach(), targets, lengths)
    torch.testing.assert_close(averages["loss"].double(), expected, rtol=1e-10, atol=1e-12)
    valid = torch.arange(len(targets)).unsqueeze(1) < lengths
    there = ((targets != -1) & valid).any(1)
    assert 0 < there.sum() < len(targets)
    assert averages["loss_by_step"][there].isfinite().all()
    assert averages["loss_by_step"][~there].isnan().all(), "of a step that was never scored"


LOSSES = {
    "cross-entropy": lambda: rk.seq2seq_loss(CROSS),
    "by sequence": lambda: rk.seq2seq_loss(CROSS, "sequence"),
    "heads": lambda: rk.seq2seq_loss({"a": CROSS, "b": nn.MSELoss()}, weights={"b": 0.2}),
}


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(2, 5)
        self.a = nn.Linear(5, C)
        self.b = nn.Linear(5, 1)

    def forward(self, inputs, state=None):
        outputs, state = self.rnn(inputs, state)
        return {"a": self.a(outputs), "b": self.b(outputs)}, state


def batch_for(name, seed):
    inputs, targets, lengths = tagged(seed)
    if name == "heads":
        targets = {"a": targets, "b": inputs[..., :1] * 2}
    return inputs, targets, lengths


def joined(batches):
    """The batches as one, row beside row."""
    inputs, targets, lengths = zip(*batches, strict=True)
    if isinstance(targets[0], dict):
        together = {key: torch.cat([t[key] for t in targets], 1) for key in targets[0]}
    else:
        together = torch.cat(targets, 1)
    return torch.cat(inputs, 1), together, torch.cat(lengths)


@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_batches_have_the_gradient_of_the_joined_batch(name):
    batches = [batch_for(name, seed) for seed in (1, 2, 3)]
    one = TwoHeads() if name == "heads" else tagger()
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    phase = rk.BPTTTrainingPhase(accumulate=3)
    before = [p.detach().clone() for p in one.parameters()]
    for i, batch in enumerate(batches):
        assert all(map(torch.equal, before, one.parameters())), f"moved before batch {i}"
        phase(one, LOSSES[name](), batch, optimizer)
    two = TwoHeads() if name == "heads" else tagger()
    optimizer = torch.optim.SGD(two.parameters(), 0.1)
    rk.BPTTTrainingPhase()(two, LOSSES[name](), joined(batches), optimizer)
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_the_last_batches_of_an_epoch_make_an_update_of_their_own():
    batches = [tagged(seed) for seed in range(5)]
    model = tagger()
    optimizer = Momentum(model)
    rk.Learner(model, rk.seq2seq_loss(CROSS), optimizer).fit(
        1, batches, training=rk.BPTTTrainingPhase(accumulate=2)
    )
    assert optimizer.count == 3
    phase = rk.BPTTTrainingPhase(accumulate=2)
    optimizer.count = 0
    for batch in batches:
        phase(model, rk.seq2seq_loss(CROSS), batch, optimizer)
    phase.flush(optimizer)
    phase.flush(optimizer)
    assert optimizer.count == 3


def test_accumulated_gradients_are_clipped_when_they_are_whole():
    batches = [tagged(seed) for seed in range(2)]
    model = tagger()
    clip = rk.ClipGradients(1e-3)
    learner = rk.Learner(
        model, rk.seq2seq_loss(CROSS), torch.optim.SGD(model.parameters(), 1.0), [clip]
    )
    before = [p.detach().clone() for p in model.parameters()]
    learner.fit(1, batches, training=rk.BPTTTrainingPhase(accumulate=2))
    moved = torch.cat(
        [(a.detach() - b).flatten() for a, b in zip(model.parameters(), before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-4)


def test_accumulation_goes_on_from_a_state_dict():
    batches = [tagged(seed) for seed in range(2)]
    one, two = tagger(), tagger()
    loss = rk.seq2seq_loss(CROSS)
    first = torch.optim.SGD(one.parameters(), 0.1)
    phase = rk.BPTTTrainingPhase(accumulate=2)
    for batch in batches:
        phase(one, loss, batch, first)
    second = torch.optim.SGD(two.parameters(), 0.1)
    before, after = rk.BPTTTrainingPhase(accumulate=2), rk.BPTTTrainingPhase(accumulate=2)
    before(two, loss, batches[0], second)
    second.zero_grad()
    after.load_state_dict(before.state_dict())
    after(two, loss, batches[1], second)
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_an_epoch_of_a_dict_of_losses_is_that_of_all_its_data():
    batches = [batch_for("heads", seed) for seed in (1, 2, 3)]
    model = TwoHeads()
    loss = LOSSES["heads"]()
    learner = rk.Learner(model, loss, Momentum(model))
    averages = learner.epoch(rk.BPTTValidationPhase(), batches)
    inputs, targets, lengths = joined(batches)
    expected = loss.on(model, inputs, targets, lengths).detach()
    torch.testing.assert_close(averages["loss"].double(), expected, rtol=1e-10, atol=1e-12)


def test_a_function_of_one_s_own_is_taken_as_it_is_and_torch_s_own_by_steps():
    assert as_loss(nn.MSELoss()).name == "seq2seq_loss"
    assert as_loss(F.mse_loss).name == "seq2seq_loss"
    assert as_loss(lambda outputs, targets: 0).name == "the loss"


def test_a_validation_with_losses_by_step_evaluates_an_unreduced_loss_once():
    calls = []

    def counted(outputs, targets):
        calls.append(len(outputs))
        return (outputs - targets).square()

    batch = (torch.randn(6, 2, 2), torch.randn(6, 2, C))
    step = rk.BPTTValidationPhase(by_step=True)(tagger(), rk.seq2seq_loss(counted), batch)
    assert calls == [12]
    torch.testing.assert_close(step.loss, step.loss_by_step.mean())


def test_a_step_cancelled_at_its_update_does_not_stop_the_updates_to_come():
    class CancelFirst:
        def __init__(self):
            self.left = 1

        def on_backward_end(self, learner):
            if self.left:
                self.left -= 1
                raise rk.CancelStep

    model = tagger()
    optimizer = Momentum(model)
    learner = rk.Learner(model, rk.seq2seq_loss(CROSS), optimizer, [CancelFirst()])
    batches = [tagged(seed) for seed in range(8)]
    learner.fit(1, batches, training=rk.BPTTTrainingPhase(accumulate=2))
    assert optimizer.count == 3  # four pairs of batches, and the first one's update was cancelled


def test_the_class_of_an_optimizer_is_refused():
    model = tagger()
    with pytest.raises(TypeError, match=r"the class SGD.*SGD\(model.parameters"):
        rk.Learner(model, rk.seq2seq_loss(CROSS), torch.optim.SGD)


class TwoDoors(nn.Module):
    """Goes through one member or the other, as the batch says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.GRU(2, 2)
        self.right = nn.GRU(2, 2)

    def forward(self, inputs, state=None):
        if float(inputs[0, 0, 0]) > 0:
            return self.left(inputs, state)
        return self.right(inputs, state)


def test_a_member_that_one_of_the_accumulated_batches_did_not_use_keeps_its_gradient():
    generator = seeded(1)
    inputs = torch.rand(2, 5, 3, 2, generator=generator)
    inputs[1, 0, 0, 0] = -1.0
    targets = torch.rand(2, 5, 3, 2, generator=generator)
    for order in ((0, 1), (1, 0)):
        model, phase = TwoDoors(), rk.BPTTTrainingPhase(accumulate=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        for i in order:
            phase(model, rk.seq2seq_loss(nn.MSELoss()), (inputs[i], targets[i]), optimizer)
        alone = TwoDoors()
        sum(F.mse_loss(alone(inputs[i])[0], targets[i]) / 2 for i in order).backward()
        for own, wanted in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(own.grad, wanted.grad)


def test_a_head_without_a_target_in_all_accumulated_batches_adds_nothing_to_the_gradient():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.GRU(2, C)

        def forward(self, inputs, state=None):
            outputs, state = self.net(inputs, state)
            return {"tag": outputs, "idle": outputs}, state

    inputs = torch.rand(2, 5, 3, 2, generator=seeded(1))
    tags = classes(seeded(2), 5, 6).view(5, 2, 3).transpose(0, 1)
    loss = rk.seq2seq_loss({"tag": CROSS, "idle": CROSS}, weights={"idle": 2.0})
    model, phase = Heads(), rk.BPTTTrainingPhase(accumulate=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    for i in range(2):
        targets = {"tag": tags[i], "idle": torch.full((5, 3), -1)}
        phase(model, loss, (inputs[i], targets), optimizer)
    alone = Heads()
    outputs = torch.cat([alone(part)[0]["tag"].flatten(0, 1) for part in inputs])
    CROSS(outputs, tags.flatten()).backward()
    for own, wanted in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad)
