"""A model rolled over a sequence. The referee is a loop by hand, one call of the model a step."""

import math

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import (
    Counting,
    assert_state,
    by_hand,
    continuous_model,
    few,
    language_model,
    leaves,
    seeded,
    wander,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rnnkit import (
    BPTTTrainingPhase,
    BPTTValidationPhase,
    Feedback,
    PerStep,
    RecurrentSequential,
    Unroll,
    batchseq,
    identity,
    rollout,
    select_rows,
    seq2seq_loss,
    with_covariates,
)
from rnnkit.generation.rollouts import Rollout

pytestmark = pytest.mark.usefixtures("in_double_precision", "quick_and_plain_steps")


def policies(seed=5):
    return {
        "never": lambda: Feedback.never(),
        "always": lambda: Feedback.always(),
        "last(1)": lambda: Feedback.last(1),
        "last(4)": lambda: Feedback.last(4),
        "last(8)": lambda: Feedback.last(8),
        "every(3)": lambda: Feedback.every(3),
        "every(3, forced)": lambda: Feedback.every(3, forced=True),
        "per step": lambda: Feedback.probability(0.5, per="step", generator=seeded(seed)),
        "per row": lambda: Feedback.probability(0.5, per="row", generator=seeded(seed)),
        "per sequence": lambda: Feedback.probability(0.5, per="sequence", generator=seeded(seed)),
    }


every_named_policy = pytest.mark.parametrize("policy", policies().values(), ids=policies().keys())


@every_named_policy
def test_rollout_of_a_continuous_model_is_the_hand_written_loop(policy):
    model, inputs = continuous_model(), torch.randn(9, 3, 2)
    outputs, state = rollout(model, inputs, policy())
    wanted, wanted_state = by_hand(model, inputs, policy().mask(9, 3))
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, wanted_state)


@every_named_policy
def test_rollout_of_a_language_model_is_the_hand_written_loop(policy):
    model, inputs = language_model(layers=2), torch.randint(V, (9, 3))
    outputs, state = rollout(model, inputs, policy(), wander)
    wanted, wanted_state = by_hand(model, inputs, policy().mask(9, 3), wander)
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, wanted_state)


@every_named_policy
def test_rollout_s_gradient_is_that_of_the_hand_written_loop(policy):
    model, inputs = continuous_model(), torch.randn(9, 3, 2, requires_grad=True)
    leaves = [inputs, *model.parameters()]
    got = torch.autograd.grad(rollout(model, inputs, policy())[0].square().sum(), leaves)
    wanted = torch.autograd.grad(
        by_hand(model, inputs, policy().mask(9, 3))[0].square().sum(), leaves
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every_named_policy
def test_rollout_calls_the_model_once_and_then_once_for_each_step_it_feeds_itself(policy):
    model = Counting(continuous_model())
    rollout(model, torch.randn(9, 3, 2), policy())
    assert len(model.calls) == 1 + int(policy().mask(9, 3).any(1).sum())
    assert sum(model.calls) == 9, "every step is taken once"


def test_the_gradient_through_fed_back_outputs_agrees_with_finite_differences():
    model = RecurrentSequential(nn.GRU(1, 2), nn.Linear(2, 1))
    names, values = zip(*model.named_parameters(), strict=True)

    class Functional(nn.Module):
        def __init__(self, parameters):
            super().__init__()
            self.parameters_now = dict(zip(names, parameters, strict=True))

        def forward(self, inputs, state=None):
            return torch.func.functional_call(model, self.parameters_now, (inputs, state))

    def closed_loop(inputs, *parameters):
        return rollout(Functional(parameters), inputs, Feedback.last(3))[0]

    inputs = torch.randn(5, 2, 1, requires_grad=True)
    parameters = [value.detach().clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(closed_loop, (inputs, *parameters))


def test_the_driven_inputs_that_are_replaced_get_no_gradient():
    inputs = torch.randn(6, 2, 2, requires_grad=True)
    rollout(continuous_model(), inputs, Feedback.last(2))[0].sum().backward()
    assert inputs.grad[:4].ne(0).all()
    assert inputs.grad[4:].eq(0).all()


def test_what_is_replaced_may_be_anything():
    model, inputs = continuous_model(), torch.randn(6, 2, 2)
    spoiled = inputs.clone()
    spoiled[4:] = math.nan
    torch.testing.assert_close(
        rollout(model, spoiled, Feedback.last(2))[0], rollout(model, inputs, Feedback.last(2))[0]
    )


@every_named_policy
def test_rollout_goes_on_from_a_state(policy):
    model, inputs = continuous_model(nn.LSTM), torch.randn(9, 3, 2)
    _, state = model(torch.randn(4, 3, 2))
    outputs, after = rollout(model, inputs, policy(), state=state)
    wanted, wanted_after = by_hand(model, inputs, policy().mask(9, 3), state=state)
    torch.testing.assert_close(outputs, wanted)
    assert_state(after, wanted_after)


def test_rollout_takes_a_list_of_steps():
    model, inputs = continuous_model(), torch.randn(6, 2, 2)
    torch.testing.assert_close(
        rollout(model, list(inputs), Feedback.last(2))[0],
        rollout(model, inputs, Feedback.last(2))[0],
    )


RAGGED = {"lengths": st.lists(st.integers(3, 9), min_size=1, max_size=4), "n": st.integers(0, 2)}


either_way = st.sampled_from(
    [lambda model: model, Counting]
)  # one packs, the other takes tensors only


@few
@given(**RAGGED, wrap=either_way)
def test_with_lengths_rollout_is_each_row_alone(lengths, n, wrap):
    model = continuous_model()
    rows = [torch.randn(length, 2) for length in lengths]
    padded, lengths = batchseq(rows, pad=9.0)
    outputs, state = rollout(wrap(model), padded, Feedback.last(n), lengths=lengths)
    for i, row in enumerate(rows):
        alone, alone_state = rollout(model, row[:, None], Feedback.last(n))
        torch.testing.assert_close(outputs[: len(row), i], alone[:, 0])
        assert_state([leaf[:, i : i + 1] for leaf in leaves(state)], alone_state)


@few
@given(**RAGGED, wrap=either_way)
def test_with_lengths_rollout_goes_on_from_each_row_s_state(lengths, n, wrap):
    model = continuous_model(nn.LSTM)
    _, before = model(torch.randn(4, len(lengths), 2))
    rows = [torch.randn(length, 2) for length in lengths]
    padded, lengths = batchseq(rows, pad=9.0)
    outputs, state = rollout(wrap(model), padded, Feedback.last(n), state=before, lengths=lengths)
    for i, row in enumerate(rows):
        alone, alone_state = rollout(
            model, row[:, None], Feedback.last(n), state=select_rows(before, torch.tensor([i]))
        )
        torch.testing.assert_close(outputs[: len(row), i], alone[:, 0])
        assert_state(select_rows(state, torch.tensor([i])), alone_state)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counting], ids=["packs", "takes tensors only"]
)
def test_padding_beyond_the_longest_row_changes_nothing(wrap):
    model = continuous_model(nn.LSTM)
    padded, lengths = batchseq([torch.randn(n, 2) for n in (4, 6, 3)])
    longer = torch.cat([padded, torch.full((3, 3, 2), 9.0)])
    outputs, state = rollout(wrap(model), longer, Feedback.last(2), lengths=lengths)
    wanted, wanted_state = rollout(model, padded, Feedback.last(2), lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(outputs[:n, i], wanted[:n, i])
    assert_state(state, wanted_state)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counting], ids=["packs", "takes tensors only"]
)
def test_rows_of_one_length_below_the_padding_end_there(wrap):
    model, inputs = continuous_model(nn.LSTM), torch.randn(7, 3, 2)
    outputs, state = rollout(wrap(model), inputs, lengths=torch.tensor([4, 4, 4]))
    wanted, wanted_state = model(inputs[:4])
    torch.testing.assert_close(outputs[:4], wanted)
    assert_state(state, wanted_state)


@few
@given(**RAGGED)
def test_with_lengths_the_gradient_is_that_of_each_row_alone(lengths, n):
    model = continuous_model()
    rows, parameters = [torch.randn(length, 2) for length in lengths], list(model.parameters())
    padded, lengths = batchseq(rows, pad=9.0)
    outputs, _ = rollout(model, padded, Feedback.last(n), lengths=lengths)
    loss = sum(outputs[: len(row), i].square().sum() for i, row in enumerate(rows))
    alone = sum(rollout(model, row[:, None], Feedback.last(n))[0].square().sum() for row in rows)
    for a, b in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_draw_is_cast_to_what_the_inputs_are():
    model, inputs = continuous_model().float(), torch.randn(6, 2, 2, dtype=torch.float32)
    outputs, _ = rollout(model, inputs, Feedback.last(2), lambda outputs: outputs.double())
    torch.testing.assert_close(outputs, rollout(model, inputs, Feedback.last(2))[0])


def test_the_schedule_sees_rollout_s_step():
    model, inputs = continuous_model(), torch.randn(6, 2, 2)
    policy = Feedback.probability(lambda step: float(step >= 10))
    torch.testing.assert_close(rollout(model, inputs, policy, step=9)[0], model(inputs)[0])
    torch.testing.assert_close(
        rollout(model, inputs, policy, step=10)[0], rollout(model, inputs, Feedback.always())[0]
    )


def test_rollout_steps_a_convolutional_model_over_images():
    class ConvCell(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, x, state):
            state = torch.zeros_like(x) if state is None else state
            return torch.tanh(self.conv(torch.cat([x, state], 1)))

    model, inputs = Unroll(ConvCell()), torch.randn(5, 3, 2, 4, 4)
    mask = Feedback.last(2).mask(5, 3)
    torch.testing.assert_close(
        rollout(model, inputs, Feedback.last(2))[0], by_hand(model, inputs, mask)[0]
    )


def test_scheduled_sampling_mixes_rows_of_tokens():
    model, inputs = language_model(), torch.randint(V, (9, 6))
    mask = Feedback.probability(0.5, generator=seeded(2)).mask(9, 6)
    assert mask.any(1).ne(mask.all(1)).any(), "some step mixes fed and driven rows"
    outputs, _ = rollout(model, inputs, Feedback.probability(0.5, generator=seeded(2)), wander)
    torch.testing.assert_close(outputs, by_hand(model, inputs, mask, wander)[0])


# Samplers that see what the data has at the step: covariates.


def covariates_by_hand(model, inputs, mask, state=None):
    """The referee: one call a step; where the mask says so the first feature is the model's own output."""
    outputs = []
    for t, x in enumerate(inputs):
        if t and mask[t].any():
            own = torch.cat([outputs[-1], x[:, 1:]], 1)
            x = torch.where(mask[t].unsqueeze(1), own, x)
        step, state = model(x[None], state)
        outputs.append(step[0])
    return torch.stack(outputs), state


def covariate_model():
    return RecurrentSequential(nn.LSTM(3, H), nn.Linear(H, 1))


@every_named_policy
def test_with_covariates_a_rollout_is_the_hand_written_loop(policy):
    model, inputs = covariate_model(), torch.randn(9, 3, 3, requires_grad=True)
    outputs, state = rollout(model, inputs, policy(), with_covariates(identity, 1))
    wanted, wanted_state = covariates_by_hand(model, inputs, policy().mask(9, 3))
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, wanted_state)
    leaves = [inputs, *model.parameters()]
    got = torch.autograd.grad(outputs.square().sum(), leaves)
    for a, b in zip(got, torch.autograd.grad(wanted.square().sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@every_named_policy
def test_with_covariates_a_stretch_is_still_one_call(policy):
    model = Counting(covariate_model())
    rollout(model, torch.randn(9, 3, 3), policy(), with_covariates(identity, 1))
    assert len(model.calls) == 1 + int(policy().mask(9, 3).any(1).sum())
    assert sum(model.calls) == 9


@few
@given(**RAGGED, wrap=either_way)
def test_with_covariates_and_lengths_a_rollout_is_each_row_alone(lengths, n, wrap):
    model, sampler = covariate_model(), with_covariates(identity, 1)
    rows = [torch.randn(length, 3) for length in lengths]
    padded, lengths = batchseq(rows, pad=9.0)
    outputs, state = rollout(wrap(model), padded, Feedback.last(n), sampler, lengths=lengths)
    for i, row in enumerate(rows):
        mask = Feedback.last(n).mask(len(row), 1)
        alone, alone_state = covariates_by_hand(model, row[:, None], mask)
        torch.testing.assert_close(outputs[: len(row), i], alone[:, 0])
        assert_state(select_rows(state, torch.tensor([i])), alone_state)


def test_the_fed_features_of_the_data_are_not_read():
    model, inputs = covariate_model(), torch.randn(9, 3, 3)
    spoiled = inputs.clone()
    spoiled[5:, :, 0] = math.nan
    sampler = with_covariates(identity, 1)
    torch.testing.assert_close(
        rollout(model, spoiled, Feedback.last(4), sampler)[0],
        rollout(model, inputs, Feedback.last(4), sampler)[0],
    )


def test_a_sampler_is_given_what_the_data_has_at_the_step_that_it_feeds():
    seen = []

    def look(outputs, given):
        seen.append(given)
        return outputs

    model, inputs = continuous_model(), torch.randn(9, 3, 2)
    rollout(model, inputs, Feedback.last(4), look)
    assert torch.equal(torch.stack(seen), inputs[5:])


def test_the_closed_loop_of_validation_reads_covariates():
    model, batch = covariate_model(), torch.randn(9, 3, 3)
    loss = seq2seq_loss(nn.MSELoss())
    phase = BPTTValidationPhase(nfeedback=4, sampler=with_covariates(identity, 1))
    step = phase(model, loss, (batch, torch.randn(9, 3, 1)))
    wanted, _ = covariates_by_hand(model, batch, Feedback.last(4).mask(9, 3))
    torch.testing.assert_close(step.outputs, wanted.detach())


@pytest.mark.parametrize("window", [None, 4])
def test_training_with_feedback_reads_covariates(window):
    model, batch, targets = covariate_model(), torch.randn(9, 3, 3), torch.randn(9, 3, 1)
    feedback = Feedback.probability(0.5, generator=seeded(1))
    phase = BPTTTrainingPhase(
        window=window, feedback=feedback, sampler=with_covariates(identity, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    step = phase(model, seq2seq_loss(nn.MSELoss()), (batch, targets), optimizer)
    mask = Feedback.probability(0.5, generator=seeded(1)).mask(9, 3)
    wanted, _ = covariates_by_hand(model, batch, mask)
    torch.testing.assert_close(step.outputs, wanted.detach())


# Dicts of inputs and outputs.


class TwoHeads(nn.Module):
    """Tokens and numbers in, logits and numbers out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(V, 3), nn.GRU(5, H)
        self.logits, self.level = nn.Linear(H, V), nn.Linear(H, 2)

    def forward(self, inputs, state=None):
        tokens = self.embedding(inputs["token"])
        hidden, state = self.rnn(torch.cat([tokens, inputs["level"]], 2), state)
        return {"logits": self.logits(hidden), "level": self.level(hidden)}, state


def heads_by_hand(model, inputs, mask):
    """The referee: one call a step, both inputs the model's own where the mask says so."""
    logits, levels, state = [], [], None
    for t in range(len(mask)):
        token, level = inputs["token"][t], inputs["level"][t]
        if t and mask[t].any():
            token = torch.where(mask[t], wander(logits[-1]), token)
            level = torch.where(mask[t].unsqueeze(1), levels[-1], level)
        outputs, state = model({"token": token[None], "level": level[None]}, state)
        logits.append(outputs["logits"][0])
        levels.append(outputs["level"][0])
    return torch.stack(logits), torch.stack(levels), state


@every_named_policy
def test_a_dict_of_inputs_and_outputs_is_rolled_out_like_the_loop_by_hand(policy):
    model = TwoHeads()
    inputs = {"level": torch.randn(9, 3, 2), "token": torch.randint(V, (9, 3))}
    outputs, state = rollout(
        model,
        inputs,
        policy(),
        lambda outputs: {"token": wander(outputs["logits"]), "level": outputs["level"]},
    )
    logits, levels, wanted_state = heads_by_hand(model, inputs, policy().mask(9, 3))
    torch.testing.assert_close(outputs, {"logits": logits, "level": levels})
    assert_state(state, wanted_state)


def test_a_dict_with_lengths_is_each_row_alone():
    model, lengths = TwoHeads(), [9, 5, 3]
    inputs = {"level": torch.randn(9, 3, 2), "token": torch.randint(V, (9, 3))}
    sampler = with_covariates(lambda outputs: wander(outputs["logits"]), "token")
    outputs, state = rollout(
        model, inputs, Feedback.last(2), sampler, lengths=torch.tensor(lengths)
    )
    for i, n in enumerate(lengths):
        row = {name: part[:n, i : i + 1] for name, part in inputs.items()}
        alone, alone_state = rollout(model, row, Feedback.last(2), sampler)
        for name in alone:
            torch.testing.assert_close(outputs[name][:n, i], alone[name][:, 0])
        assert_state(select_rows(state, torch.tensor([i])), alone_state)


# What must not matter.


def test_a_rollout_works_whatever_the_default_device_is():
    model, inputs, lengths = continuous_model(), torch.randn(9, 3, 2), torch.tensor([9, 4, 5])

    def run():
        feedback = Feedback.probability(0.5, generator=seeded(1))
        fed, _ = rollout(model, inputs, feedback, lengths=lengths)
        return fed, rollout(model, inputs, Feedback.last(2), lengths=lengths)[0]

    wanted = run()
    torch.set_default_device("meta")
    try:
        found = run()
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("every", [1, 4])
def test_batch_statistics_of_a_rollout_count_no_row_that_has_ended(every, carry):
    """A batch norm in training reads all rows of a call: only those that have the step may be there."""
    model = RecurrentSequential(PerStep(nn.BatchNorm1d(2)), nn.GRU(2, H), nn.Linear(H, 2))
    inputs, lengths = torch.randn(9, 3, 2), torch.tensor([9, 9, 3])
    spoiled = inputs.clone()
    spoiled[3:, 2] = 1e6
    mask = Feedback.every(every).mask(9, 3, lengths)
    rolled = Rollout(model, identity, carry=carry)
    outputs, _ = rolled.over(inputs, mask, None, lengths)
    again, _ = rolled.over(spoiled, mask, None, lengths)
    torch.testing.assert_close(outputs[:, :2], again[:, :2])
