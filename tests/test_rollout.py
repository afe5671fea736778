"""The one place where a model is stepped: feedback policies, rollout, sample_model, beam_search.

The referee is a loop written out by hand, one call of the model a step.
"""

import copy
import itertools
import math
import pickle

import pytest
import torch
from helpers import assert_state, leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    DistributionSampler,
    Feedback,
    RecurrentSequential,
    Sample,
    SoftmaxSampler,
    Unroll,
    batchseq,
    beam_search,
    identity,
    rollout,
    sample_best,
    sample_model,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("in_double_precision")

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
V, H = 7, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def language_model(recurrent=nn.LSTM, layers=1):
    """Tokens in, logits out."""
    return RecurrentSequential(
        nn.Embedding(V, 4), recurrent(4, H, num_layers=layers), nn.Linear(H, V)
    )


def wander(outputs):
    """A sampler without chance that repeats itself less than `sample_best`: the smallest change of a logit matters."""
    return (1000 * outputs).sin().argmax(1)


def continuous_model(recurrent=nn.GRU, features=2):
    return RecurrentSequential(recurrent(features, H), nn.Linear(H, features))


class Counting(nn.Module):
    """Passes every call on and notes how many steps each had."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, inputs, state=None):
        self.calls.append(inputs.shape[0])
        return self.model(inputs, state)


def by_hand(model, inputs, mask, sampler=identity, state=None):
    """The referee: one call a step, the model's own output where the mask says so."""
    outputs = []
    for t in range(inputs.shape[0]):
        x = inputs[t]
        if t and mask[t].any():
            own = sampler(outputs[-1])
            x = torch.where(mask[t].reshape(-1, *[1] * (x.dim() - 1)), own, x)
        step, state = model(x[None], state)
        outputs.append(step[0])
    return torch.stack(outputs), state


# ---------------------------------------------------------------- Feedback

sizes = {"T": st.integers(1, 12), "B": st.integers(1, 4)}


def random_lengths(T, B, seed):
    return torch.randint(1, T + 1, (B,), generator=seeded(seed))


def every_policy():
    return [
        Feedback.never(),
        Feedback.always(),
        Feedback.last(0),
        Feedback.every(2),
        Feedback.probability(0.5, generator=seeded(1)),
        Feedback.probability(0.5, per="row", generator=seeded(1)),
        Feedback.probability(0.5, per="sequence", generator=seeded(1)),
        Feedback.probability(lambda step: 1.0),
    ]


@few
@given(**sizes, use_lengths=st.booleans(), seed=st.integers(0, 99))
def test_a_mask_says_for_each_step_and_row_whether_the_model_feeds_itself_and_never_at_step_0(
    T, B, use_lengths, seed
):
    lengths = random_lengths(T, B, seed) if use_lengths else None
    for policy in every_policy():
        mask = policy.mask(T, B, lengths=lengths)
        assert mask.shape == (T, B)
        assert mask.dtype == torch.bool
        assert not mask[0].any()


@few
@given(**sizes, seed=st.integers(0, 99))
def test_nothing_is_fed_after_a_row_s_end(T, B, seed):
    lengths = random_lengths(T, B, seed)
    for policy in every_policy():
        mask = policy.mask(T, B, lengths=lengths)
        assert not any(mask[length:, row].any() for row, length in enumerate(lengths.tolist()))


@few
@given(**sizes)
def test_never_and_always(T, B):
    assert not Feedback.never().mask(T, B).any()
    assert Feedback.always().mask(T, B)[1:].all()


@few
@given(**sizes, data=st.data())
def test_last_n_feeds_the_last_n_steps(T, B, data):
    n = data.draw(st.integers(0, T - 1))
    wanted = [[t >= T - n] * B for t in range(T)]
    assert Feedback.last(n).mask(T, B).tolist() == wanted


@few
@given(**sizes, seed=st.integers(0, 99), data=st.data())
def test_last_n_counts_from_each_row_s_own_end(T, B, seed, data):
    lengths = random_lengths(T, B, seed)
    n = data.draw(st.integers(0, int(lengths.min()) - 1))
    mask = Feedback.last(n).mask(T, B, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        assert mask[:length, row].tolist() == [t >= length - n for t in range(length)]


@few
@given(**sizes, more=st.integers(0, 3))
def test_last_n_refuses_a_sequence_in_which_no_step_would_be_driven(T, B, more):
    with pytest.raises(
        ValueError, match=rf"(?s)Feedback.last\({T + more}\).*{T} steps.*first step must be driven"
    ):
        Feedback.last(T + more).mask(T, B)


def test_last_n_refuses_one_row_too_short_for_it():
    with pytest.raises(ValueError, match=r"(?s)Feedback.last\(3\).*2 steps.*at least 4"):
        Feedback.last(3).mask(9, 2, lengths=torch.tensor([9, 2]))


def test_last_n_feeds_nothing_in_a_row_that_has_run_dry():
    assert Feedback.last(2).mask(4, 2, lengths=torch.tensor([4, 0])).T.int().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ]


@few
@given(**sizes, k=st.integers(1, 15))
def test_every_k_feeds_each_kth_step(T, B, k):
    wanted = [[t > 0 and t % k == 0] * B for t in range(T)]
    assert Feedback.every(k).mask(T, B).tolist() == wanted


@few
@given(**sizes, k=st.integers(1, 15))
def test_every_k_forced_is_the_reverse(T, B, k):
    wanted = [[t % k != 0] * B for t in range(T)]
    assert Feedback.every(k, forced=True).mask(T, B).tolist() == wanted


def test_every_1_is_always():
    assert torch.equal(Feedback.every(1).mask(6, 2), Feedback.always().mask(6, 2))


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_probability_0_is_never_and_1_is_always(per):
    assert not Feedback.probability(0.0, per=per).mask(6, 3).any()
    assert Feedback.probability(1.0, per=per).mask(6, 3)[1:].all()


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_a_probability_is_the_share_of_fed_steps(per):
    draws = torch.stack(
        [
            Feedback.probability(0.3, per=per, generator=seeded(i)).mask(5, 4)[1:]
            for i in range(2000)
        ]
    )
    share = draws.double().mean().item()
    # per sequence, one draw decides 16 entries: the standard error is that of the 2000 masks alone, at most
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 2000))


def coins(per):
    return Feedback.probability(0.5, per=per, generator=seeded(1)).mask(40, 30)[1:]


def test_per_step_is_a_coin_for_each_step_of_each_row():
    mask = coins("step")
    assert mask.any(0).all()
    assert mask.any(1).all()
    assert not mask.all(0).any()
    assert not mask.all(1).any()


def test_per_row_is_a_coin_for_each_row_kept_for_its_whole_sequence():
    mask = coins("row")
    assert torch.equal(mask.any(0), mask.all(0))
    assert mask[0].any()
    assert not mask[0].all()


def test_per_sequence_is_one_coin_for_the_whole_batch():
    masks = [
        Feedback.probability(0.5, per="sequence", generator=seeded(i)).mask(9, 5)[1:]
        for i in range(20)
    ]
    assert all(bool(mask.any()) == bool(mask.all()) for mask in masks)
    assert len({bool(mask.any()) for mask in masks}) == 2


def test_rows_and_steps_are_drawn_independently():
    mask = Feedback.probability(0.5, generator=seeded(1)).mask(201, 100)[1:].double()
    for first, second in ((mask[:-1], mask[1:]), (mask[:, :-1], mask[:, 1:])):
        both = (first * second).mean().item()
        assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / first.numel()))


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_the_generator_decides_the_mask(per):
    def draw(seed):
        return Feedback.probability(0.5, per=per, generator=seeded(seed)).mask(20, 20)

    assert torch.equal(draw(3), draw(3))
    assert any(not torch.equal(draw(3), draw(seed)) for seed in (4, 5, 6, 7, 8))


def test_a_schedule_is_asked_with_the_training_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 if step >= 100 else 0.0

    policy = Feedback.probability(schedule)
    assert not policy.mask(6, 3, step=99).any()
    assert policy.mask(6, 3, step=100)[1:].all()
    assert asked == [99, 100]


def test_a_policy_says_what_it_is():
    policies = [
        Feedback.never(),
        Feedback.last(3),
        Feedback.every(2),
        Feedback.probability(0.25, per="row"),
    ]
    for policy, name in zip(
        policies, ["never()", "last(3)", "every(2", "probability(0.25, per='row')"], strict=True
    ):
        assert f"Feedback.{name}" in repr(policy)


def test_a_policy_can_be_pickled():
    for policy in (Feedback.last(2), Feedback.every(3), Feedback.probability(1.0)):
        assert torch.equal(pickle.loads(pickle.dumps(policy)).mask(6, 2), policy.mask(6, 2))


# ---------------------------------------------------------------- rollout


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


# ---------------------------------------------------------------- sample_model: what comes out


def generate_by_hand(model, length, primer, sampler, state=None):
    """The referee: the model is called for one step at a time, on its own last draw."""
    tokens, outputs = list(primer), []
    with torch.no_grad():
        for t in range(length):
            step, state = model(tokens[t][None], state)
            outputs.append(step[0])
            if t + 1 >= len(primer):
                tokens.append(sampler(step[0]))
    return torch.stack(tokens[:length]), torch.stack(outputs), tokens[length], state


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_samples_of_these_tests_do_not_repeat_one_token(recurrent, layers):
    """Else a sampler that reads the wrong step or row would go unnoticed."""
    tokens = sample_model(
        language_model(recurrent, layers), 20, torch.randint(V, (4, 5)), wander
    ).tokens[4:]
    assert all(len(row.unique()) >= 4 for row in tokens.T)
    assert len(tokens.T.unique(dim=0)) == 5


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sample_model_is_the_loop_over_plain_model_calls(recurrent, layers):
    model = language_model(recurrent, layers)
    assert_samples_like(model, model, torch.randint(V, (4, 3)))


def assert_samples_like(model, other, primer):
    sample = sample_model(model, 20, primer, wander)
    tokens, outputs, following, state = generate_by_hand(other, 20, primer, wander)
    assert torch.equal(sample.tokens, tokens)
    assert torch.equal(sample.next[0], following)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)
    assert_state(sample.state, state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("recurrent", "options"),
    [
        (nn.LSTM, {"bias": False}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.LSTM, {"dropout": 0.5, "num_layers": 2}),
    ],
    ids=str,
)
def test_every_option_of_the_fused_modules_is_stepped_rightly(recurrent, options):
    model = recurrent(3, 3, **{"num_layers": 2, **options}).eval()
    assert_steps_like_itself(model, torch.randn(4, 2, 3))


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_few_rows_and_many_are_stepped_alike(recurrent, rows):
    model, primer = continuous_model(recurrent), torch.randn(3, rows, 2)
    assert_steps_like_itself(model, primer)
    assert_steps_like_itself(recurrent(3, 3, num_layers=2), torch.randn(3, rows, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"max_norm": 0.5}], ids=str)
@pytest.mark.parametrize("classes", [7, 256, 257])
def test_an_embedding_and_an_lstm_are_stepped_as_themselves(classes, options, bias):
    """A table of gates stands for both where there are few classes."""
    embedding = nn.Embedding(classes, 4, **options)
    model = RecurrentSequential(
        embedding, nn.LSTM(4, H, num_layers=2, bias=bias), nn.Linear(H, classes)
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    other = copy.deepcopy(model)  # max_norm writes to the weights
    assert_samples_like(model, other, torch.randint(classes, (3, 20)))
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert "max_norm" in options or all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("rows", [3, 20])
def test_a_member_that_writes_to_its_input_leaves_the_state_alone(recurrent, rows):
    model = RecurrentSequential(
        nn.Embedding(V, 4), recurrent(4, H), nn.ReLU(inplace=True), nn.Linear(H, V)
    )
    assert_samples_like(model, model, torch.randint(V, (4, rows)))


def test_a_member_that_writes_to_what_the_model_is_fed_leaves_the_outputs_alone():
    model = RecurrentSequential(nn.ReLU(inplace=True), nn.GRU(2, H), nn.Linear(H, 2))
    primer = torch.randn(3, 4, 2)
    sample = sample_model(model, 9, primer.clone())
    _, outputs, _, _ = generate_by_hand(model, 9, primer.clone(), torch.clone)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)


def test_a_state_before_the_primer_reaches_the_table_of_gates():
    model, primer = language_model(), torch.randint(V, (1, 3))
    _, state = model(torch.randint(V, (4, 3)))
    sample = sample_model(model, 9, primer, wander, state)
    _, outputs, _, _ = generate_by_hand(model, 9, primer, wander, state)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [4, 20])
def test_scheduled_sampling_trains_the_embedding_and_the_input_weights(rows):
    """By the gradient of the loop over plain model calls."""
    model, tokens = language_model(), torch.randint(V, (6, rows))
    rollout(model, tokens, Feedback.always(), sample_best)[0].square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    step, state, outputs = tokens[:1], None, []
    for _ in range(6):
        out, state = model(step, state)
        outputs.append(out)
        step = out.argmax(2)
    torch.cat(outputs).square().sum().backward()
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-10, atol=1e-10)


def test_the_padding_token_of_an_embedding_gets_no_gradient_where_it_is_drawn():
    model = RecurrentSequential(nn.Embedding(V, 4, padding_idx=0), nn.LSTM(4, H), nn.Linear(H, V))
    tokens = torch.randint(1, V, (6, 3))
    rollout(model, tokens, Feedback.always(), lambda outputs: outputs.argmax(1) * 0)[
        0
    ].square().sum().backward()
    assert model[0].weight.grad[0].eq(0).all()
    assert model[0].weight.grad[tokens[0]].ne(0).any(1).all()


def test_a_member_added_later_is_stepped_too():
    model = language_model()
    model.append(nn.GRU(V, V))
    primer = torch.randint(V, (2, 3))
    sample = sample_model(model, 6, primer, sample_best)
    _, outputs, _, _ = generate_by_hand(model, 6, primer, sample_best)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)


def test_a_projected_lstm_is_stepped_rightly():
    assert_steps_like_itself(nn.LSTM(3, 5, num_layers=2, proj_size=3), torch.randn(4, 2, 3))


def assert_steps_like_itself(model, primer):
    sample = sample_model(model, 12, primer)
    _, outputs, following, state = generate_by_hand(model, 12, primer, identity)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sample.next[0], following, rtol=1e-10, atol=1e-10)
    assert_state(sample.state, state, rtol=1e-10, atol=1e-10)


def test_the_outputs_answer_the_tokens():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    sample = sample_model(model, 20, primer, SoftmaxSampler(generator=seeded(1)))
    torch.testing.assert_close(
        sample.outputs, model(sample.tokens)[0].detach(), rtol=1e-10, atol=1e-10
    )


def test_the_shapes_of_a_sample():
    sample = sample_model(
        language_model(), 20, torch.randint(V, (4, 3)), SoftmaxSampler(generator=seeded(1))
    )
    assert isinstance(sample, Sample)
    assert sample.tokens.shape == (20, 3)
    assert sample.tokens.dtype == torch.int64
    assert sample.outputs.shape == (20, 3, V)
    assert sample.log_probs.shape == (20, 3)
    assert sample.next.shape == (1, 3)


def test_a_sample_can_be_taken_apart():
    sample = sample_model(language_model(), 20, torch.randint(V, (4, 3)), wander)
    tokens, outputs, log_probs, following, state = sample
    assert tokens is sample.tokens and outputs is sample.outputs
    assert log_probs is sample.log_probs and following is sample.next and state is sample.state


def test_the_primer_comes_first_and_counts():
    primer = torch.randint(V, (4, 3))
    sample = sample_model(language_model(), 20, primer, wander)
    assert torch.equal(sample.tokens[:4], primer)


def test_a_length_of_the_primer_draws_the_next_token_only():
    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = sample_model(model, 4, primer, wander)
    assert torch.equal(sample.tokens, primer)
    assert torch.equal(sample.next[0], wander(model(primer)[0][-1]))


def test_log_probs_are_what_the_model_gave_the_token_that_followed():
    sample = sample_model(
        language_model(), 20, torch.randint(V, (4, 3)), SoftmaxSampler(generator=seeded(1))
    )
    followed = torch.cat([sample.tokens[1:], sample.next])
    wanted = sample.outputs.log_softmax(-1).gather(-1, followed[..., None])[..., 0]
    torch.testing.assert_close(sample.log_probs, wanted)


def test_a_continuous_model_has_no_log_probs():
    sample = sample_model(continuous_model(), 10, torch.randn(4, 3, 2))
    assert sample.log_probs is None
    assert sample.tokens.shape == (10, 3, 2)
    assert sample.next.shape == (1, 3, 2)
    assert torch.equal(sample.tokens[4:], sample.outputs[3:-1])
    assert torch.equal(sample.next[0], sample.outputs[-1])


def test_a_sample_has_no_gradient():
    sample = sample_model(continuous_model(), 10, torch.randn(4, 3, 2, requires_grad=True))
    assert not any(
        x.requires_grad for x in [sample.tokens, sample.outputs, sample.next, *leaves(sample.state)]
    )


def test_what_was_sampled_can_be_trained_on():
    model = language_model()
    sample = sample_model(model, 10, torch.randint(V, (4, 3)), wander)
    outputs, _ = model(sample.tokens, None)
    F.cross_entropy(outputs[:-1].flatten(0, 1), sample.tokens[1:].flatten()).backward()
    _, state = model(sample.next, sample.state)
    assert state is not None


def test_one_hot_vectors_go_in_and_come_out():
    model = RecurrentSequential(nn.LSTM(V, H), nn.Linear(H, V))
    primer = F.one_hot(torch.randint(V, (4, 3)), V).double()
    sample = sample_model(model, 10, primer, SoftmaxSampler(one_hot=True, generator=seeded(1)))
    assert sample.tokens.shape == (10, 3, V)
    assert sample.tokens.sum(-1).eq(1).all()
    followed = torch.cat([sample.tokens[1:], sample.next])
    torch.testing.assert_close(
        sample.log_probs, (sample.outputs.log_softmax(-1) * followed).sum(-1)
    )


def test_a_distribution_head_is_sampled_with_its_log_probs():
    model = RecurrentSequential(nn.GRU(1, H), nn.Linear(H, 2))

    def normal(outputs):
        return torch.distributions.Normal(outputs[..., :1], F.softplus(outputs[..., 1:]))

    sample = sample_model(model, 10, torch.randn(4, 3, 1), DistributionSampler(normal))
    followed = torch.cat([sample.tokens[1:], sample.next])
    assert sample.tokens.shape == (10, 3, 1)
    torch.testing.assert_close(sample.log_probs, normal(sample.outputs).log_prob(followed)[..., 0])


def test_the_log_prob_of_an_image_of_classes_is_the_sum_over_its_pixels():
    class Pixels(nn.Module):
        def forward(self, inputs, state=None):
            outputs = torch.stack([inputs, -inputs, 0.5 * inputs], 2).double()
            return outputs, torch.zeros(1, inputs.shape[1], 1)

    sample = sample_model(Pixels(), 5, torch.randint(3, (2, 4, 2, 2)), sample_best)
    followed = torch.cat([sample.tokens[1:], sample.next])
    wanted = -F.cross_entropy(
        sample.outputs.flatten(0, 1), followed.flatten(0, 1), reduction="none"
    )
    torch.testing.assert_close(sample.log_probs, wanted.sum((1, 2)).unflatten(0, (5, 4)))


# ---------------------------------------------------------------- sample_model: batches, resuming, stopping


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_batch_is_its_rows_alone(recurrent):
    model, primer = language_model(recurrent, 2), torch.randint(V, (4, 5))
    together = sample_model(model, 20, primer, wander)
    for row in range(5):
        alone = sample_model(model, 20, primer[:, row : row + 1], wander)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        assert torch.equal(together.next[:, row], alone.next[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_50_and_then_50_more_are_100():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    whole = sample_model(model, 100, primer, SoftmaxSampler(generator=seeded(7)))
    sampler = SoftmaxSampler(generator=seeded(7))
    first = sample_model(model, 50, primer, sampler)
    then = sample_model(model, 50, first.next, sampler, first.state)
    assert torch.equal(torch.cat([first.tokens, then.tokens]), whole.tokens)
    assert torch.equal(then.next, whole.next)
    torch.testing.assert_close(
        torch.cat([first.outputs, then.outputs]), whole.outputs, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        torch.cat([first.log_probs, then.log_probs]), whole.log_probs, rtol=1e-10, atol=1e-10
    )
    assert_state(then.state, whole.state, rtol=1e-10, atol=1e-10)


def test_going_on_works_for_continuous_models_too():
    model, primer = continuous_model(nn.LSTM), torch.randn(4, 3, 2)
    whole, first = sample_model(model, 20, primer), sample_model(model, 9, primer)
    then = sample_model(model, 11, first.next, state=first.state)
    torch.testing.assert_close(
        torch.cat([first.tokens, then.tokens]), whole.tokens, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counting], ids=["packs", "takes tensors only"]
)
@pytest.mark.parametrize("lengths", [[4, 1, 3], [1, 1, 5], [2, 2, 2], [6]], ids=str)
def test_primers_of_different_length_go_on_from_their_own_ends(lengths, wrap):
    model = language_model(layers=2)
    primers = [torch.randint(V, (n,)) for n in lengths]
    total = 12
    together = sample_model(wrap(model), total, batchseq(primers), wander)
    for row, primer in enumerate(primers):
        alone = sample_model(model, total, primer[:, None], wander)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        assert torch.equal(together.next[:, row], alone.next[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_lengths_can_be_given_beside_the_primer():
    model = language_model()
    padded, lengths = batchseq([torch.randint(V, (n,)) for n in (4, 1, 3)])
    paired = sample_model(model, 12, (padded, lengths), wander)
    beside = sample_model(model, 12, padded, wander, lengths=lengths)
    assert torch.equal(paired.tokens, beside.tokens)


def test_a_sample_from_primers_of_different_length_goes_on():
    model = language_model(layers=2)
    primer = batchseq([torch.randint(V, (n,)) for n in (4, 1, 3)])
    whole = sample_model(model, 20, primer, wander)
    first = sample_model(model, 9, primer, wander)
    then = sample_model(model, 11, first.next, wander, first.state)
    assert torch.equal(torch.cat([first.tokens, then.tokens]), whole.tokens)
    assert_state(then.state, whole.state, rtol=1e-10, atol=1e-10)


class Successor(nn.Module):
    """A toy model: after token v comes v + 1. Its state counts the steps of each row."""

    def forward(self, inputs, state=None):
        state = torch.zeros(1, inputs.shape[1], 1) if state is None else state
        return 5 * F.one_hot((inputs + 1) % V, V).double(), state + inputs.shape[0]


def test_each_row_stops_at_its_own_stop_token():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2, 5]]), sample_best, stop=5)
    assert sample.tokens[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.tokens[:4, 1].tolist() == [2, 3, 4, 5]
    assert sample.tokens[4:, 1].eq(5).all(), "a stopped row is filled with its last token"


def test_generation_ends_when_all_rows_have_stopped():
    model = Counting(Successor())
    sample = sample_model(model, 1000, torch.tensor([[0, 2]]), sample_best, stop=5)
    assert sum(model.calls) <= 7
    assert sample.tokens.shape[0] <= 7
    assert sample.tokens[-1].eq(5).all()


def test_the_lengths_of_a_sample_count_the_steps_up_to_the_stop():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2, 4]]), sample_best, stop=5)
    assert sample.lengths.tolist() == [6, 4, 2]
    assert sample.lengths.dtype == torch.int64


def test_stop_may_be_a_question_about_the_tokens():
    sample = sample_model(
        Successor(), 10, torch.tensor([[0, 2]]), sample_best, stop=lambda tokens: tokens >= 4
    )
    assert sample.tokens[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert sample.tokens[:3, 1].tolist() == [2, 3, 4]


def test_without_a_stop_every_row_has_the_whole_length():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2]]), sample_best)
    assert sample.tokens.shape == (10, 2)
    assert sample.lengths.tolist() == [10, 10]


@pytest.mark.parametrize("primer", [[5, 0], [0, 5], [5]], ids=str)
def test_the_stop_token_in_a_primer_does_not_stop_a_row(primer):
    sample = sample_model(Successor(), 6, torch.tensor(primer)[:, None], sample_best, stop=5)
    then = [(primer[-1] + i + 1) % V for i in range(6 - len(primer))]
    assert sample.tokens[:, 0].tolist() == primer + then


def test_the_stop_token_in_the_longer_of_two_primers_does_not_stop_its_row():
    primers = batchseq([torch.tensor([0]), torch.tensor([3, 5, 6])])
    sample = sample_model(Successor(), 8, primers, sample_best, stop=5)
    assert sample.tokens[:, 1].tolist() == [3, 5, 6, 0, 1, 2, 3, 4]
    assert sample.lengths.tolist() == [6, 8]


def test_log_probs_count_the_stop_token_and_nothing_after_it():
    primer = torch.tensor([[0, 2, 4]])
    whole = sample_model(Successor(), 10, primer, sample_best)
    stopped = sample_model(Successor(), 10, primer, sample_best, stop=5)
    for row, length in enumerate([6, 4, 2]):
        torch.testing.assert_close(
            stopped.log_probs[: length - 1, row], whole.log_probs[: length - 1, row]
        )
        assert stopped.log_probs[: length - 1, row].ne(0).all()
        assert stopped.log_probs[length - 1 :, row].eq(0).all()


def test_a_row_that_does_not_stop_keeps_its_last_log_prob():
    sample = sample_model(Successor(), 4, torch.tensor([[0, 3]]), sample_best, stop=5)
    assert sample.lengths.tolist() == [4, 3]
    assert sample.log_probs.ne(0).T.tolist() == [[True] * 4, [True, True, False, False]]


def test_what_follows_a_row_that_has_stopped_is_its_stop_token():
    sample = sample_model(Successor(), 4, torch.tensor([[0, 3]]), sample_best, stop=5)
    assert sample.next.tolist() == [[4, 5]]


def test_the_draw_after_the_last_step_is_checked_too():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3, 3\).*sampler.*\(3, 2\)"):
        sample_model(model, 4, torch.zeros(4, 3, 2))


def test_tokens_of_a_model_without_classes_have_no_log_probs():
    def counting(tokens, state=None):
        return tokens + 0.75, torch.zeros(1, tokens.shape[1], 1)

    sample = sample_model(
        counting, 4, torch.tensor([[0, 2]]), lambda outputs: outputs.round().long()
    )
    assert sample.tokens.T.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert sample.log_probs is None


# ---------------------------------------------------------------- sample_model: it leaves the model as it was


@pytest.mark.parametrize("training", [True, False])
def test_dropout_sleeps_while_sampling_and_the_mode_comes_back(training):
    model = RecurrentSequential(
        nn.Embedding(V, 4), nn.LSTM(4, H), nn.Dropout(0.5), nn.Linear(H, V)
    ).train(training)
    primer = torch.randint(V, (4, 3))
    first, again = sample_model(model, 20, primer, wander), sample_model(model, 20, primer, wander)
    assert torch.equal(first.outputs, again.outputs)
    assert all(module.training == training for module in model.modules())


def test_a_member_frozen_in_eval_mode_stays_frozen():
    model = RecurrentSequential(nn.LSTM(2, H), nn.Dropout(0.5), nn.Linear(H, 2)).train()
    model[1].eval()
    sample_model(model, 5, torch.randn(2, 3, 2))
    assert model.training
    assert not model[1].training


def test_the_mode_comes_back_after_an_error_too():
    model = continuous_model().train()
    with pytest.raises(ValueError, match="sampler"):
        sample_model(model, 5, torch.randn(2, 3, 2), sampler=lambda outputs: outputs[:, :1])
    assert model.training


def test_the_backend_switches_are_as_before():
    before = (torch.backends.mkldnn.enabled, torch.is_grad_enabled(), torch.get_rng_state())
    sample_model(language_model(), 10, torch.randint(V, (2, 3)), wander)
    assert torch.backends.mkldnn.enabled == before[0]
    assert torch.is_grad_enabled() == before[1]


@pytest.mark.parametrize("member", [None, 0, 1, 2], ids=["model", "embedding", "lstm", "head"])
def test_hooks_still_fire_while_sampling(member):
    model = language_model()
    hooked, calls = model if member is None else model[member], []
    hooked.register_forward_hook(lambda *_: calls.append(1))
    sample_model(model, 12, torch.randint(V, (4, 3)), wander)
    assert len(calls) == 9, "once for the primer and once for each of the 8 further steps"


@pytest.mark.parametrize("member", [None, 0, 1, 2], ids=["model", "embedding", "lstm", "head"])
def test_hooks_before_the_call_still_fire_while_sampling(member):
    model, calls = language_model(), []
    (model if member is None else model[member]).register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    sample_model(model, 12, torch.randint(V, (4, 3)), wander)
    assert len(calls) == 9


@pytest.mark.parametrize("member", [None, 0], ids=["model", "gru"])
@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_hooks_of_the_backward_pass_fire_once_for_each_call(member, register):
    model, calls = continuous_model(), []
    getattr(model if member is None else model[member], register)(lambda *_: calls.append(1))
    rollout(model, torch.randn(9, 3, 2, requires_grad=True), Feedback.last(4))[0].sum().backward()
    assert len(calls) == 5


@pytest.mark.parametrize("member", [0, 1, 2], ids=["embedding", "lstm", "head"])
def test_a_forward_put_on_a_module_itself_is_kept(member):
    model, primer = language_model(), torch.randint(V, (4, 3))
    own = model[member].forward

    def tripled(inputs, state=None):
        result = own(inputs, state) if member == 1 else own(inputs)
        return (3 * result[0], result[1]) if member == 1 else 3 * result

    model[member].forward = tripled
    sample = sample_model(model, 12, primer, wander)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs)


def test_hooks_on_all_modules_still_fire_while_sampling():
    model, calls = language_model(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    sample_model(model, 12, torch.randint(V, (4, 3)), wander)
    handle.remove()
    assert [calls.count(module) for module in (model, *model)] == [9, 9, 9, 9]


def test_a_hook_that_changes_the_state_changes_the_sample():
    model, primer = language_model(), torch.randint(V, (4, 3))
    model[1].register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))
    sample = sample_model(model, 12, primer, wander)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs)


def test_a_subclass_of_a_fused_module_keeps_its_own_forward():
    class Doubled(nn.LSTM):
        def forward(self, inputs, state=None):
            outputs, state = super().forward(inputs, state)
            return 2 * outputs, state

    model, primer = (
        RecurrentSequential(nn.Embedding(V, 4), Doubled(4, H), nn.Linear(H, V)),
        torch.randint(V, (4, 3)),
    )
    sample = sample_model(model, 12, primer, wander)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs)


@pytest.mark.parametrize("part", ["embedding", "stack"])
def test_a_subclass_of_an_embedding_or_of_the_stack_keeps_its_own_forward(part):
    class Scaled(nn.Embedding):
        def forward(self, inputs):
            return 3 * super().forward(inputs)

    class Sharpened(RecurrentSequential):
        def forward(self, inputs, state=None):
            outputs, state = super().forward(inputs, state)
            return outputs.flip(-1), state

    members = [
        (Scaled if part == "embedding" else nn.Embedding)(V, 4),
        nn.LSTM(4, H),
        nn.Linear(H, V),
    ]
    model = (Sharpened if part == "stack" else RecurrentSequential)(*members)
    primer = torch.randint(V, (4, 3))
    sample = sample_model(model, 12, primer, wander)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs)


def test_parametrized_weights_are_read_through_their_parametrization():
    model, primer = language_model(), torch.randint(V, (4, 3))
    torch.nn.utils.parametrizations.weight_norm(model[1], "weight_hh_l0")
    with torch.no_grad():
        model[1].parametrizations.weight_hh_l0.original0.mul_(2)
    sample = sample_model(model, 12, primer, wander)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs)


def test_under_autocast_a_model_is_stepped_as_it_is():
    model, primer = language_model().float(), torch.randint(V, (1, 3))
    with torch.autocast("cpu", torch.bfloat16):
        sample = sample_model(model, 12, primer, wander)
        _, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    assert sample.outputs.dtype == torch.bfloat16
    assert torch.equal(sample.outputs, outputs)


@pytest.mark.parametrize("rows", [3, 20])
def test_single_precision_is_stepped_closely_too(rows):
    model, primer = language_model(layers=2).float(), torch.randint(V, (4, rows))
    sample = sample_model(model, 12, primer, wander)
    assert sample.outputs.dtype == torch.float32
    torch.testing.assert_close(
        sample.outputs, model(sample.tokens)[0].detach(), rtol=1e-5, atol=1e-5
    )


# ---------------------------------------------------------------- beam_search


class Markov(nn.Module):
    """A toy model whose next logits depend on the last two tokens; the state holds the one before the last."""

    def __init__(self, classes, seed):
        super().__init__()
        self.classes = classes
        self.table = 2 * torch.randn(classes + 1, classes, classes, generator=seeded(seed))

    def forward(self, inputs, state=None):
        before = torch.full((1, inputs.shape[1]), self.classes) if state is None else state
        outputs = []
        for tokens in inputs:
            outputs.append(self.table[before[0], tokens])
            before = tokens[None]
        return torch.stack(outputs), before


def score(model, start, sequence):
    """Log-probability the model gives to `sequence` after `start`."""
    tokens = torch.tensor([start, *sequence])[:, None]
    log_probs = model(tokens)[0][:-1, 0].log_softmax(-1)
    return float(log_probs.gather(1, tokens[1:]).sum())


def best_of_all(model, start, count):
    """The most likely of all sequences of `count` classes, one scored after the other."""
    sequences = itertools.product(range(model.classes), repeat=count)
    return max(sequences, key=lambda sequence: score(model, start, sequence))


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_as_wide_as_the_square_of_the_classes_finds_the_best_of_all_sequences_of_length_3(
    seed,
):
    model, starts = Markov(4, seed), torch.arange(4)
    sample = beam_search(model, 4, starts[None], width=4**2)
    for row, start in enumerate(starts.tolist()):
        best = best_of_all(model, start, 3)
        assert sample.tokens[1:, row].tolist() == list(best)
        assert sample.log_probs[:3, row].sum().item() == pytest.approx(score(model, start, best))


def test_the_best_sequence_is_not_always_the_greedy_one():
    """Without this the test above would hold for greedy search too."""
    starts = torch.arange(4)[None]
    greedy = [sample_model(Markov(4, seed), 4, starts, sample_best).tokens for seed in range(8)]
    best = [[best_of_all(Markov(4, seed), start, 3) for start in range(4)] for seed in range(8)]
    assert [[tuple(row.tolist()) for row in tokens[1:].T] for tokens in greedy] != best


def test_a_beam_of_width_1_is_sample_best():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    beam, greedy = (
        beam_search(model, 15, primer, width=1),
        sample_model(model, 15, primer, sample_best),
    )
    assert torch.equal(beam.tokens, greedy.tokens)
    assert torch.equal(beam.next, greedy.next)
    torch.testing.assert_close(beam.outputs, greedy.outputs)
    torch.testing.assert_close(beam.log_probs, greedy.log_probs)
    assert_state(beam.state, greedy.state)


def test_an_exact_beam_is_never_less_likely_than_greedy():
    model, primer = Markov(4, 1), torch.tensor([[2, 0, 1]])
    greedy, wide = (
        beam_search(model, 4, primer, width=width).log_probs[:-1].sum(0) for width in (1, 16)
    )
    assert (wide >= greedy - 1e-12).all()


def test_a_batch_of_beams_is_its_rows_alone():
    model, primer = language_model(), torch.randint(V, (4, 3))
    with torch.no_grad():
        model[-1].weight.mul_(30)
    together = beam_search(model, 10, primer, width=3)
    for row in range(3):
        alone = beam_search(model, 10, primer[:, row : row + 1], width=3)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_the_outputs_of_the_best_beam_answer_its_tokens():
    model, primer = language_model(nn.GRU, 2), torch.randint(V, (4, 3))
    sample = beam_search(model, 10, primer, width=3)
    outputs, state = model(sample.tokens)
    torch.testing.assert_close(sample.outputs, outputs.detach())
    assert_state(sample.state, [leaf.detach() for leaf in leaves(state)])


def test_a_beam_has_no_gradient():
    sample = beam_search(language_model(), 10, torch.randint(V, (4, 3)), width=3)
    assert not any(
        x.requires_grad for x in [sample.outputs, sample.log_probs, *leaves(sample.state)]
    )


@pytest.mark.parametrize("training", [True, False])
def test_dropout_sleeps_in_a_beam_search_and_the_mode_comes_back(training):
    model = RecurrentSequential(
        nn.Embedding(V, 4), nn.LSTM(4, H), nn.Dropout(0.5), nn.Linear(H, V)
    ).train(training)
    primer = torch.randint(V, (4, 3))
    sample = beam_search(model, 10, primer, width=3)
    assert all(module.training == training for module in model.modules())
    torch.testing.assert_close(sample.outputs, model.eval()(sample.tokens)[0].detach())


def test_a_beam_that_has_stopped_keeps_its_score():
    """Class 0 ends a sequence. Ending at once has probability 0.6; going on, every next token has at most 0.5."""

    class Ending(nn.Module):
        def forward(self, inputs, state=None):
            first = state is None
            row = torch.tensor([0.6, 0.4, 1e-9]) if first else torch.tensor([1e-9, 0.5, 0.5])
            outputs = row.log().expand(inputs.shape[0], inputs.shape[1], 3)
            return outputs, torch.ones(1, inputs.shape[1], 1)

    sample = beam_search(Ending(), 5, torch.tensor([[1]]), width=3, stop=0)
    assert sample.tokens[1:, 0].eq(0).all()
    assert sample.lengths.tolist() == [2]
    assert sample.log_probs.sum().item() == pytest.approx(math.log(0.6))


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_search_with_a_stop_is_the_search_over_lists_of_candidates(seed, width):
    model = Markov(4, seed)
    sample = beam_search(model, 7, torch.arange(4)[None], width=width, stop=0)
    for row in range(4):
        beams = [()]
        for _ in range(6):
            grown = [(*beam, v) for beam in beams if beam[-1:] != (0,) for v in range(4)]
            beams = [beam for beam in beams if beam[-1:] == (0,)] + grown
            beams = sorted(beams, key=lambda beam, row=row: score(model, row, beam), reverse=True)[
                :width
            ]
        assert tuple(sample.tokens[1 : 1 + len(beams[0]), row].tolist()) == beams[0]
        assert sample.lengths[row] == 1 + len(beams[0])


class Counter(nn.Module):
    """Sure of the class that follows the one it read."""

    def forward(self, inputs, state=None):
        return 5 * F.one_hot((inputs + 1) % V, V).to(torch.float64), torch.zeros(
            1, inputs.shape[1], 1
        )


@pytest.mark.parametrize("stop", [5, 0, V, None])
def test_a_beam_of_width_1_is_sample_best_where_rows_stop_and_where_none_can(stop):
    primer = torch.tensor([[0, 3]])
    greedy = sample_model(Counter(), 4, primer, sample_best, stop=stop)
    beam = beam_search(Counter(), 4, primer, 1, stop=stop)
    assert torch.equal(beam.tokens, greedy.tokens)
    assert torch.equal(beam.next, greedy.next)
    assert torch.equal(beam.lengths, greedy.lengths)
    torch.testing.assert_close(beam.log_probs, greedy.log_probs)


def test_a_beam_search_ends_when_every_candidate_has_stopped():
    class Stopping(nn.Module):
        def forward(self, inputs, state=None):
            outputs = torch.tensor([0.0, -torch.inf]).expand(*inputs.shape, 2)
            return outputs, torch.ones(1, inputs.shape[1], 1)

    sample = beam_search(Counting(Stopping()), 1000, torch.tensor([[1, 1]]), width=1, stop=0)
    assert sample.tokens.tolist() == [[1, 1], [0, 0]]
    assert sample.lengths.tolist() == [2, 2]


def test_a_beam_search_of_the_primer_alone_draws_the_next_token_only():
    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = beam_search(model, 4, primer, width=3)
    assert torch.equal(sample.tokens, primer)
    assert torch.equal(sample.next[0], model(primer)[0][-1].argmax(1))


# ---------------------------------------------------------------- bad input, and what is said about it


def test_an_empty_primer_is_refused():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*empty primer"):
        sample_model(language_model(), 10, torch.zeros(0, 3, dtype=torch.int64), wander)


def test_an_empty_list_as_primer_is_refused():
    with pytest.raises(ValueError, match=r"(?s)primer.*empty"):
        sample_model(language_model(), 10, [], wander)


def test_a_length_shorter_than_the_primer_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)sample_model.*length.*3.*\(4, 3\)|sample_model.*\(4, 3\).*length.*3"
    ):
        sample_model(language_model(), 3, torch.zeros(4, 3, dtype=torch.int64), wander)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_a_state_of_another_batch_is_refused(recurrent):
    model = language_model(recurrent)
    _, state = model(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(1, 2, 5\).*batch of 3"):
        sample_model(model, 10, torch.zeros(4, 3, dtype=torch.int64), wander, state)


def test_rollout_refuses_a_state_of_another_batch():
    model = continuous_model()
    _, state = model(torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match=r"(?s)rollout.*\(1, 2, 5\).*batch of 3"):
        rollout(model, torch.zeros(4, 3, 2), state=state)


def test_a_sampler_whose_output_does_not_fit_is_refused():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3, 3\).*sampler.*\(3, 2\)"):
        sample_model(model, 10, torch.zeros(4, 3, 2))


def test_a_sampler_of_indices_for_a_model_of_vectors_is_refused():
    model = RecurrentSequential(nn.LSTM(V, H), nn.Linear(H, V))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3,\).*sampler.*\(3, 7\).*one_hot"):
        sample_model(model, 10, torch.zeros(4, 3, V), sample_best)


def test_a_sampler_of_numbers_for_a_model_of_tokens_is_refused():
    def regression(tokens, state=None):
        return 0.5 * tokens, torch.zeros(1, tokens.shape[1], 1)

    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(3,\) of torch.float64 from the sampler.*torch.int64"
    ):
        rollout(regression, torch.zeros(4, 3, dtype=torch.long), Feedback.last(1))


def test_rollout_refuses_a_sampler_that_does_not_fit():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)rollout.*\(3, 3\).*sampler.*\(3, 2\)"):
        rollout(model, torch.zeros(4, 3, 2), Feedback.last(1))


both_ways = pytest.mark.parametrize(
    "run", [rollout, lambda m, x: sample_model(m, 9, x)], ids=["rollout", "sample_model"]
)


@both_ways
def test_a_model_without_a_state_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*outputs, state"):
        run(nn.Linear(2, 2), torch.zeros(4, 3, 2))


@both_ways
def test_a_model_that_returns_no_state_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*\(4, 3, 2\).*outputs, state"):
        run(lambda inputs, state: inputs, torch.zeros(4, 3, 2))


@both_ways
def test_a_cell_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*GRUCell.*Unroll"):
        run(nn.GRUCell(2, 2), torch.zeros(4, 3, 2))


@both_ways
def test_a_batch_first_model_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(ValueError, match=rf"(?s){name}.*batch_first"):
        run(nn.GRU(2, 2, batch_first=True), torch.zeros(4, 3, 2))


@both_ways
def test_a_batch_first_model_is_refused_within_another_too(run):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(2, 2, batch_first=True)

        def forward(self, inputs, state=None):
            return self.inner(inputs, state)

    with pytest.raises(ValueError, match=r"GRU\(batch_first=True\); wanted time as dim 0"):
        run(Wrapped(), torch.zeros(4, 3, 2))


def test_a_bidirectional_model_cannot_be_stepped():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*bidirectional.*future"):
        sample_model(nn.GRU(2, 1, bidirectional=True), 9, torch.zeros(4, 3, 2))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_probability_outside_0_and_1_is_refused(p):
    with pytest.raises(ValueError, match=rf"(?s)Feedback.probability.*{p}"):
        Feedback.probability(p).mask(4, 2)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_is_refused_before_it_is_used(p):
    with pytest.raises(
        ValueError, match=r"Feedback.probability: got p = -?[01].1; wanted 0 <= p <= 1"
    ):
        Feedback.probability(p)


def test_a_schedule_that_leaves_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.probability.*1.5"):
        Feedback.probability(lambda step: step / 2).mask(4, 2, step=3)


def test_an_unknown_per_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.probability.*per.*batch"):
        Feedback.probability(0.5, per="batch")


def test_last_of_a_negative_number_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.last.*-1"):
        Feedback.last(-1)


@pytest.mark.parametrize("k", [0, -2])
def test_every_below_1_is_refused(k):
    with pytest.raises(ValueError, match=rf"(?s)Feedback.every.*{k}"):
        Feedback.every(k)


@pytest.mark.parametrize("width", [0, -1])
def test_a_beam_narrower_than_1_is_refused(width):
    with pytest.raises(ValueError, match=rf"(?s)beam_search.*width.*{width}"):
        beam_search(language_model(), 10, torch.zeros(4, 3, dtype=torch.int64), width)


def test_a_beam_search_over_continuous_outputs_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"(?s)beam_search"):
        beam_search(continuous_model(), 10, torch.zeros(4, 3, 2), 2)


def test_a_beam_search_from_numbers_is_refused():
    with pytest.raises(
        TypeError, match=r"beam_search: got a primer \(4, 3\) of torch.float64; wanted tokens"
    ):
        beam_search(
            lambda x, state: (x.unsqueeze(2).expand(-1, -1, V), x[:1]),
            9,
            torch.zeros(4, 3),
            width=2,
        )


def test_a_beam_search_over_images_is_refused():
    with pytest.raises(ValueError, match=r"(?s)beam_search.*\(4, 3, 2, 7\).*\(T, B, V\)"):
        beam_search(
            lambda x, state: (torch.zeros(*x.shape, 2, 7), None),
            10,
            torch.zeros(4, 3, dtype=torch.int64),
            2,
        )


def test_no_primer_at_all_is_refused():
    with pytest.raises(TypeError, match=r"(?s)sample_model.*primer"):
        sample_model(language_model(), 10, None, wander)


def test_a_stop_that_does_not_say_which_rows_is_refused():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*stop \(3, 2\).*\(B,\)"):
        sample_model(continuous_model(), 10, torch.zeros(4, 3, 2), stop=1)


def test_a_model_that_loses_steps_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(1, 3, 2\).*\(4, 3, 2\).*the same T and B"
    ):
        rollout(lambda x, state: (x[-1:], state), torch.zeros(4, 3, 2))


def test_a_model_that_loses_the_dimension_of_one_step_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)sample_model.*outputs \(3, 2\).*\(1, 3, 2\).*the same T and B"
    ):
        sample_model(lambda x, state: (x.squeeze(0), torch.zeros(1, 3, 1)), 4, torch.zeros(1, 3, 2))


@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_loses_the_dimension_of_a_self_fed_step_is_refused(n):
    def model(x, state):
        return (x.squeeze(0) if len(x) == 1 else x), torch.zeros(1, 3, 1)

    with pytest.raises(
        ValueError, match=r"(?s)rollout.*outputs \(3, 2\).*\(1, 3, 2\).*the same T and B"
    ):
        rollout(model, torch.zeros(4, 3, 2), Feedback.last(n))


def test_a_model_that_loses_rows_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(4, 1, 2\).*\(4, 3, 2\).*the same T and B"
    ):
        rollout(lambda x, state: (x[:, :1], state), torch.zeros(4, 3, 2))


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2)], ids=str)
def test_a_sequence_of_no_step_or_no_row_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"rollout: got empty inputs .* wanted at least one step and one row"
    ):
        rollout(continuous_model(), torch.zeros(shape))


def test_a_model_that_unpacks_what_it_was_given_packed_is_refused():
    class Unpacking(nn.Module):
        takes_packed = True

        def forward(self, inputs, state=None):
            return inputs.data, state

    with pytest.raises(TypeError, match=r"(?s)rollout.*Unpacking.*PackedSequence"):
        rollout(Unpacking(), torch.zeros(4, 3, 2), lengths=torch.tensor([4, 2, 1]))


@pytest.mark.parametrize("lengths", [[5, 1, 1], [4, 0, 1], [4, 1]], ids=str)
def test_primer_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)sample_model.*lengths"):
        sample_model(
            language_model(),
            10,
            (torch.zeros(4, 3, dtype=torch.int64), torch.tensor(lengths)),
            wander,
        )


@pytest.mark.parametrize("lengths", [[5, 1, 1], [4, 0, 1], [4, 1]], ids=str)
def test_rollout_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)rollout.*lengths"):
        rollout(continuous_model(), torch.zeros(4, 3, 2), lengths=torch.tensor(lengths))
