"""The closed loop in training and validation: covariates, sample paths and their score, what callbacks see.

The referee is a loop by hand, one row and one step at a time, in float64.
"""

import math

import pytest
import torch
from helpers import refused, seeded
from torch import nn

import rnnkit as rk

pytestmark = pytest.mark.usefixtures("in_double_precision")

MSE = nn.MSELoss()


def close(left, right):
    torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=1e-9, atol=1e-12)


def data(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


class Weather(nn.Module):
    """Reads a value and two covariates, predicts the next value."""

    takes_packed = True

    def __init__(self, outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.net = rk.RecurrentSequential(nn.GRU(3, 5), nn.Linear(5, outputs))
        self.calls = []

    def forward(self, inputs, state=None):
        self.calls.append(1)
        return self.net(inputs, state)


def by_hand(model, inputs, lengths, fed):
    """Row by row and step by step: the value is the model's own where `fed` says so, the covariates never are."""
    outputs = torch.zeros(*inputs.shape[:2], 1)
    for i, n in enumerate(lengths):
        state, output = None, None
        for t in range(n):
            step = inputs[t, i].clone()
            if t and fed[t, i]:
                step = torch.cat([output, step[1:]])
            out, state = model(step.view(1, 1, 3), state)
            output = out[0, 0]
            outputs = outputs.index_put((torch.tensor(t), torch.tensor(i)), output)
    return outputs


COVARIATES = rk.with_covariates(rk.identity, 1)


def weather(seed=0, time=9, rows=3):
    inputs = data(time, rows, 3, seed=seed)
    targets = data(time, rows, 1, seed=seed + 1)
    return inputs, targets, torch.tensor([time, 5, 7])


def test_validation_keeps_covariates_as_the_data_has_them():
    inputs, targets, lengths = weather()
    model = Weather()
    phase = rk.BPTTValidationPhase(nfeedback=3, sampler=COVARIATES)
    step = phase(model, rk.seq2seq_loss(MSE), (inputs, targets, lengths))
    fed = torch.arange(9).unsqueeze(1) >= lengths - 3
    outputs = by_hand(model, inputs, lengths.tolist(), fed)
    errors = (outputs - targets).square()
    valid = torch.arange(9).unsqueeze(1) < lengths
    close(step.closed_loss, errors[fed & valid].mean().detach())
    close(step.open_loss, errors[~fed & valid].mean().detach())


@pytest.mark.parametrize("window", [None, 4])
def test_training_with_feedback_keeps_covariates_and_has_the_loop_s_gradient(window):
    inputs, targets, lengths = weather(3)
    model, other = Weather(), Weather()
    feedback = rk.Feedback.probability(0.5, generator=seeded(2))
    fed = rk.Feedback.probability(0.5, generator=seeded(2)).mask(9, 3, lengths)
    phase = rk.BPTTTrainingPhase(window, feedback=feedback, sampler=COVARIATES)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    step = phase(model, rk.seq2seq_loss(MSE), (inputs, targets, lengths), optimizer)
    outputs = by_hand(other, inputs, lengths.tolist(), fed)
    valid = torch.arange(9).unsqueeze(1) < lengths
    loss = (outputs - targets).square()[valid].mean()
    close(step.loss, loss.detach())
    if window is None:
        loss.backward()
        for left, right in zip(model.parameters(), other.parameters(), strict=True):
            close(left.grad, right.grad)


def test_a_driven_stretch_stays_one_call():
    inputs, targets, _ = weather()
    model = Weather()
    phase = rk.BPTTValidationPhase(nfeedback=3, sampler=COVARIATES)
    phase(model, rk.seq2seq_loss(MSE), (inputs, targets))
    assert len(model.calls) == 4  # the six driven steps, and each step that it feeds itself


# Paths


class Autoregression(nn.Module):
    """x' = a x + noise of a known spread: outputs are the mean and the log of the spread."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def forward(self, inputs, state=None):
        mean = 0.8 * inputs
        log = torch.full_like(mean, math.log(self.spread))
        state = inputs.new_zeros(1, inputs.shape[1], 1) if state is None else state
        return torch.cat([mean, log], -1), state


def normal(outputs):
    return torch.distributions.Normal(outputs[..., :1], outputs[..., 1:].exp())


def likelihood(outputs, targets):
    return -normal(outputs).log_prob(targets).flatten(1).sum(1)


def autoregressive(rows=400, time=24):
    noise = data(time, rows, 1, seed=5)
    steps = [noise[0]]
    for t in range(1, time):
        steps.append(0.8 * steps[-1] + noise[t])
    return torch.stack(steps)


def test_the_score_of_paths_is_lowest_for_the_true_spread_where_one_path_s_likelihood_is_not():
    series = autoregressive()
    loss = rk.seq2seq_loss(likelihood)
    scores, likelihoods = {}, {}
    for spread in (0.6, 1.0, 1.6, 2.2):
        torch.manual_seed(0)
        model = Autoregression(spread)
        sampler = rk.DistributionSampler(normal)
        step = rk.BPTTValidationPhase(nfeedback=12, sampler=sampler, paths=50)(model, loss, series)
        scores[spread] = float(step.closed_loss)
        one_path = rk.rollout(model, series[:-1], rk.Feedback.last(12), sampler)[0]
        likelihoods[spread] = float(loss(one_path[-12:], series[-12:]))
    assert min(scores, key=scores.get) == 1.0, scores
    assert min(likelihoods, key=likelihoods.get) != 1.0, likelihoods


def test_the_closed_loss_of_paths_is_the_crps_written_out():
    series, lengths = autoregressive(4, 12), torch.tensor([12, 7, 9, 12])
    model = Autoregression(1.0)
    sampler = rk.DistributionSampler(normal)
    phase = rk.BPTTValidationPhase(nfeedback=3, sampler=sampler, paths=6)
    torch.manual_seed(3)
    step = phase(model, rk.seq2seq_loss(likelihood), (series[:-1], series[1:], lengths - 1))

    torch.manual_seed(3)
    mask = rk.Feedback.last(3).mask(11, 4, lengths - 1)
    rk.rollout(model, series[:-1], rk.Feedback.last(3), sampler, lengths=lengths - 1)
    assert mask.any()
    primed = lengths - 4
    primer = series[:8]
    paths = rk.forecast(model, 4, (primer, primed), sampler, paths=6)[1:]
    total = 0.0
    for k in range(3):
        for i in range(4):
            x = paths[k, i, :, 0]
            y = series[primed[i] + k + 1, i, 0]
            spread = (x.unsqueeze(0) - x.unsqueeze(1)).abs().sum() / (6 * 5)
            total += float((x - y).abs().mean() - spread / 2)
    close(step.closed_loss, total / 12)
    close(step.loss, step.open_loss)


def test_a_sampler_that_draws_values_is_scored_on_paths_and_one_of_classes_keeps_its_loss():
    assert rk.BPTTValidationPhase(3, rk.DistributionSampler(normal)).paths == 32
    assert rk.BPTTValidationPhase(3, rk.SoftmaxSampler()).paths is None
    assert rk.BPTTValidationPhase(3).paths is None
    refused(lambda: rk.BPTTValidationPhase(3, paths=1), "paths = 1")


def test_paths_with_covariates_are_scored_in_what_is_forecast():
    inputs, targets, lengths = weather()
    model = Weather(outputs=2)
    sampler = rk.with_covariates(rk.DistributionSampler(normal), 1)
    phase = rk.BPTTValidationPhase(nfeedback=3, sampler=sampler, paths=5)
    step = phase(model, rk.seq2seq_loss(likelihood), (inputs, targets, lengths))
    assert step.closed_loss.isfinite()
    assert step.loss_by_step.shape == (9,)
    other = rk.with_covariates(rk.DistributionSampler(normal), 1)
    batch = inputs, data(9, 3, 2), lengths
    refused(
        lambda: rk.BPTTValidationPhase(nfeedback=3, sampler=other, paths=5)(
            model, rk.seq2seq_loss(lambda y, t: (y - t).square()), batch
        ),
        "a step",
    )


class ByName(Weather):
    """The same of a dict of the value and of what is known ahead."""

    takes_packed = False

    def forward(self, inputs, state=None):
        return super().forward(torch.cat([inputs["value"], inputs["known"]], -1), state)


def test_paths_of_a_dict_of_inputs_are_scored_as_those_of_one_tensor():
    inputs, targets, lengths = weather()
    named = {"value": inputs[..., :1], "known": inputs[..., 1:]}
    loss = rk.seq2seq_loss(likelihood)
    steps = []
    for model, given, fed in ((Weather(2), inputs, 1), (ByName(2), named, "value")):
        sampler = rk.with_covariates(rk.DistributionSampler(normal), fed)
        torch.manual_seed(3)
        phase = rk.BPTTValidationPhase(nfeedback=3, sampler=sampler, paths=5)
        steps.append(phase(model, loss, (given, targets, lengths)))
    close(steps[0].closed_loss, steps[1].closed_loss)
    close(steps[0].loss_by_step, steps[1].loss_by_step)

    def everything(outputs):
        return {"value": outputs[:, :1], "known": torch.zeros(len(outputs), 2)}

    several = rk.BPTTValidationPhase(nfeedback=3, sampler=everything, paths=5)
    batch = named, targets, lengths
    refused(lambda: several(model, loss, batch), "a dict of draws and paths to score", TypeError)


def test_a_score_of_one_s_own_gets_paths_and_targets():
    seen = []

    def score(paths, targets):
        seen.append((tuple(paths.shape), tuple(targets.shape)))
        return torch.full(targets.shape[:2], 2.0)

    sampler = rk.DistributionSampler(normal)
    phase = rk.BPTTValidationPhase(4, sampler, paths=7, score=score)
    step = phase(Autoregression(1.0), rk.seq2seq_loss(likelihood), autoregressive(5, 10))
    assert seen == [((4, 5, 7, 1), (4, 5, 1))]
    assert step.closed_loss == 2


@pytest.mark.parametrize("lengths", [None, [9, 5, 7]], ids=["alike", "ragged"])
def test_paths_are_scored_beside_a_loss_that_is_any_function(lengths):
    def normal(outputs):
        return torch.distributions.Normal(outputs[..., :1], outputs[..., 1:].exp())

    def likelihood(outputs, targets, lengths=None):
        each = -normal(outputs).log_prob(targets).squeeze(-1)  # (T, B)
        if lengths is None:
            return each.mean()
        valid = torch.arange(len(each)).unsqueeze(1) < lengths
        return each[valid].mean()

    inputs, targets, _ = weather()
    batch, stops = (inputs, targets), [9, 9, 9]
    if lengths is not None:
        batch, stops = (*batch, torch.tensor(lengths)), lengths
    model = Weather(outputs=2)
    sampler = rk.with_covariates(rk.DistributionSampler(normal), 1)
    step = rk.BPTTValidationPhase(3, sampler, paths=2)(model, likelihood, batch)

    driven = [model(inputs[: n - 3, i : i + 1])[0].squeeze(1) for i, n in enumerate(stops)]
    for t in range(min(stops) - 3):  # later a row is fed, and has a score
        outputs = torch.stack([row[t] for row in driven]).unsqueeze(0)
        close(step.loss_by_step[t], likelihood(outputs, targets[t : t + 1]).detach())
    assert step.loss_by_step.isfinite().all()


def test_steps_of_weight_zero_are_not_scored_on_paths():
    series = autoregressive(5, 10)
    weights = torch.ones(9, 5)
    weights[6:, :4] = 0
    spoiled = series[1:].clone()
    spoiled[6:, :4] = math.nan
    sampler = rk.DistributionSampler(normal)
    batch = rk.SequenceBatch(series[:-1], spoiled, weights=weights)
    phase = rk.BPTTValidationPhase(4, sampler, paths=7)
    step = phase(Autoregression(1.0), rk.seq2seq_loss(likelihood), batch)
    assert step.closed_loss.isfinite()
    assert step.totals["closed_loss"].weight == 8  # step 5 of all rows, steps 6 to 8 of the last


@pytest.mark.parametrize("by_step", [None, False], ids=["by step", "in one number"])
def test_scores_of_paths_are_weighed_step_by_step_and_a_row_without_steps_counts_for_nothing(
    by_step,
):
    inputs, targets, _ = weather()
    lengths = torch.tensor([9, 0, 6])
    weights = data(9, 3).abs() + 0.1
    model = Weather()
    loss_fn = nn.L1Loss(reduction="none")

    def score(paths, targets):
        assert paths.shape == (3, 3, 2, 1)
        return (paths.mean(2) - targets).square().sum(-1)

    phase = rk.BPTTValidationPhase(3, COVARIATES, paths=2, score=score, by_step=by_step)
    batch = rk.SequenceBatch(inputs, targets, lengths, torch.tensor([False, True, False]), weights)
    step = phase(model, rk.seq2seq_loss(loss_fn), batch)

    outputs = by_hand(
        model, inputs, lengths.tolist(), torch.arange(9).unsqueeze(1) >= lengths - 3
    ).detach()
    sums = torch.zeros(2, 9)  # what the model is driven at, and what it is fed at
    counted = torch.zeros(2, 9)
    for i, n in enumerate(lengths.tolist()):
        for t in range(n):
            fed = int(t >= n - 3)
            error = (outputs[t, i, 0] - targets[t, i, 0]).abs() ** (1 + fed)
            sums[fed, t] += weights[t, i] * error
            counted[fed, t] += weights[t, i]
    close(step.open_loss, sums[0].sum() / counted[0].sum())
    close(step.closed_loss, sums[1].sum() / counted[1].sum())
    assert step.weight == 15
    if by_step is None:
        close(step.loss_by_step, sums.sum(0) / counted.sum(0))
        close(step.totals["loss_by_step"].sum, sums.sum(0))
    else:
        assert step.loss_by_step is None
        assert set(step.totals) == {"loss", "open_loss", "closed_loss"}


def test_with_teacher_forcing_there_are_no_paths_to_score():
    series = autoregressive(5, 10)
    sampler = rk.DistributionSampler(normal)
    steps = []
    for phase in (rk.BPTTValidationPhase(), rk.BPTTValidationPhase(0, sampler, paths=7)):
        steps.append(phase(Autoregression(1.0), rk.seq2seq_loss(likelihood), series))
    close(steps[1].loss, steps[0].loss)
    assert steps[1].closed_loss is None


class Lines(Weather):
    """The same of features that are lines of some places, of which it reads the mean."""

    takes_packed = False

    def forward(self, inputs, state=None):
        outputs, state = super().forward(inputs.mean(-1), state)
        return outputs.unsqueeze(-1).expand(*outputs.shape, inputs.shape[-1]), state


@pytest.mark.parametrize("kind, shape", [(Weather, (3,)), (Lines, (3, 4))])
def test_covariates_among_the_targets_add_nothing_to_the_score_of_paths(kind, shape):
    inputs = data(10, 3, *shape)

    def value(outputs):
        return outputs[:, :1] + torch.randn(outputs[:, :1].shape)

    steps = []
    for features in (1, 3):
        model = kind(outputs=features)
        model.net[1].weight.data.fill_(0.1)  # the value is forecast alike
        model.net[1].bias.data.zero_()
        phase = rk.BPTTValidationPhase(3, rk.with_covariates(value, 1), paths=4)
        torch.manual_seed(3)
        batch = inputs[:-1], inputs[1:, :, :features]
        steps.append(phase(model, rk.seq2seq_loss(MSE), batch))
    close(steps[1].closed_loss, steps[0].closed_loss)


def test_a_loss_that_is_no_mean_of_steps_is_refused_where_only_the_closed_loop_is_scored_apart():
    def rms(outputs, targets):
        return (outputs - targets).square().mean().sqrt()

    inputs, targets, _ = weather()
    phase = rk.BPTTValidationPhase(3, COVARIATES, by_step=False)
    refused(lambda: phase(Weather(), rms, (inputs, targets)), "whose parts put together are")


def test_a_row_of_one_step_has_none_to_be_driven_at():
    inputs, targets, _ = weather()
    phase = rk.BPTTValidationPhase(1, COVARIATES)
    batch = inputs, targets, torch.tensor([9, 1, 5])
    refused(lambda: phase(Weather(), rk.seq2seq_loss(MSE), batch), "a sequence of 1 steps")


def test_the_energy_score_refuses_what_does_not_fit():
    refused(lambda: rk.energy_score(data(4, 3, 1, 2), data(4, 3, 2)), "P >= 2")
    refused(lambda: rk.energy_score(data(4, 3, 5, 2), data(4, 3, 1)), "(n, B, P, *F)")


# What a callback sees


@pytest.mark.parametrize("phase", [rk.BPTTTrainingPhase(window=3), rk.BPTTValidationPhase(2)])
def test_the_outputs_are_there_when_the_loss_is_computed(phase):
    seen = {}

    class Look:
        def on_loss_begin(self, learner):
            seen.setdefault("LossBegin", []).append(learner.state.outputs.shape[0])

        def on_backward_end(self, learner):
            seen.setdefault("BackwardEnd", []).append(learner.state.outputs.shape[0])

    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.GRU(2, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learner = rk.Learner(model, rk.seq2seq_loss(MSE), optimizer, [Look()])
    step = learner.step(phase, data(9, 2, 2))
    assert step.outputs.shape == (8, 2, 2)
    if phase.trains:
        assert seen == {"LossBegin": [3, 3, 2], "BackwardEnd": [3, 3, 2]}
    else:
        assert seen == {"LossBegin": [8]}


# The optimizer, autocast, a learned start


def test_an_optimizer_that_needs_a_closure_is_refused_with_the_loop_that_works():
    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.GRU(2, 3), nn.Linear(3, 2))
    optimizer = torch.optim.LBFGS(model.parameters())
    loss = rk.seq2seq_loss(MSE)
    message = refused(
        lambda: rk.BPTTTrainingPhase()(model, loss, data(9, 2, 2), optimizer), "LBFGS", TypeError
    )
    assert "optimizer.step(closure)" in message
    inputs, targets = data(8, 2, 2), data(8, 2, 2, seed=1)
    before = loss.on(model, inputs, targets)

    def closure():
        optimizer.zero_grad()
        value = loss.on(model, inputs, targets)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    assert loss.on(model, inputs, targets) < before


def test_windows_inside_the_caller_s_autocast_see_the_weights_of_now(monkeypatch):
    def trained(cached):
        torch.manual_seed(0)
        model = rk.RecurrentSequential(nn.Linear(2, 2), nn.GRU(2, 2)).float()
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        x = data(12, 3, 2).float()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            rk.BPTTTrainingPhase(window=3)(model, rk.seq2seq_loss(MSE), (x, x), optimizer)
        return list(model.parameters())

    def apart(one, two):
        return max(float((a - b).detach().abs().max()) for a, b in zip(one, two, strict=True))

    right = trained(False)
    assert apart(trained(True), right) < 0.002
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    assert apart(trained(True), right) > 0.02, "the test would not notice casts of before"


class LearnedStart(nn.Module):
    """Its first state is a parameter."""

    takes_packed = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(2, 3)
        self.first = nn.Parameter(torch.randn(1, 1, 3))

    def initial_state(self, batch_size):
        return self.first.expand(1, batch_size, 3).contiguous()

    def forward(self, inputs, state=None):
        if state is None:
            size = inputs.batch_sizes[0] if hasattr(inputs, "batch_sizes") else inputs.shape[1]
            state = self.initial_state(int(size))
        return self.rnn(inputs, state)


def test_a_learned_start_has_its_gradient_where_a_row_fits_into_the_window():
    model, other = LearnedStart(), LearnedStart()
    inputs, targets, lengths = data(9, 3, 2), data(3, 3, seed=1), torch.tensor([9, 2, 4])
    loss = rk.seq2one_loss(MSE)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    step = rk.BPTTTrainingPhase(window=4)(model, loss, (inputs, targets, lengths), optimizer)
    rows = []
    for i, n in enumerate(lengths.tolist()):
        row, state = inputs[:n, i : i + 1], None
        if n > 4:
            with torch.no_grad():
                _, state = other(row[: n - 4])
            row = row[n - 4 :]
        rows.append((other(row, state)[0][-1, 0] - targets[i]).square().mean())
    expected = torch.stack(rows).mean()
    expected.backward()
    close(step.loss, expected.detach())
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        close(left.grad, right.grad)
    assert model.first.grad.abs().sum() > 0


def test_rows_that_restart_begin_where_the_model_learned_to():
    model = LearnedStart()
    documents = [data(7, 2), data(5, 2, seed=1), data(6, 2, seed=2)]
    loss = rk.seq2seq_loss(lambda y, t: y.square().sum(1))
    learner = rk.Learner(model, loss, torch.optim.SGD(model.parameters(), 0.0))
    loader = rk.StreamLoader(documents, 2, 3)
    average = learner.epoch(rk.BPTTTrainingPhase(stateful=True), loader)["loss"]
    alone = [model(part[:-1].unsqueeze(1))[0].square().sum(2) for part in documents]
    close(average.double(), torch.cat(alone).mean().detach())


class Resting(nn.Module):
    """A loss with a dropout, which rests in validation."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, outputs, targets):
        return self.dropout((outputs - targets).square()).mean()


def test_a_loss_that_is_a_module_is_in_evaluation_mode_in_validation_and_as_it_was_after():
    model, inputs = nn.GRU(1, 1), data(6, 40, 1)
    loss = rk.seq2seq_loss(Resting())
    wanted = MSE(model(inputs[:-1])[0], inputs[1:])
    close(rk.BPTTValidationPhase()(model, loss, inputs).loss, wanted)
    assert loss.loss_fn.training and loss.loss_fn.dropout.training and model.training
    close(rk.evaluate(model, loss, [inputs])["loss"], wanted.item())
    learner = rk.Learner(model, loss, torch.optim.SGD(model.parameters(), 0.1))
    close(learner.epoch(rk.BPTTValidationPhase(), [inputs])["loss"], wanted)
    trained = learner.step(rk.BPTTTrainingPhase(), inputs).loss
    assert abs(trained - wanted) > 1e-6, "in training it drops"


def test_a_horizon_that_grows_has_the_loss_by_step_of_one_that_was_given():
    model = nn.GRU(1, 1)
    grown = rk.BPTTValidationPhase()
    grown.nfeedback = 3
    steps = [phase(model, MSE, data(9, 2, 1)) for phase in (grown, rk.BPTTValidationPhase(3))]
    close(*[step.loss_by_step for step in steps])
