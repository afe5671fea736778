"""Quicker steps are the plain ones to a rounding, and only where nobody would see a difference."""

import copy

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import (
    assert_samples_like,
    assert_state,
    continuous_model,
    generate_by_hand,
    language_model,
    seeded,
    wander,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from rnnkit import (
    Feedback,
    PerStep,
    RecurrentSequential,
    SoftmaxSampler,
    identity,
    rollout,
    sample_best,
    sample_model,
)
from rnnkit.core.errors import Refusal
from rnnkit.core.state import map_leaves
from rnnkit.generation._fast import quicker_draws, quicker_step
from rnnkit.generation.rollouts import Rollout

pytestmark = pytest.mark.usefixtures("in_double_precision")


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sample_model_is_the_loop_over_plain_model_calls(recurrent, layers):
    model = language_model(recurrent, layers)
    assert_samples_like(model, model, torch.randint(V, (4, 3)))


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
    """A table of gates stands for both where there are few classes, for steps one by one and at once."""
    embedding = nn.Embedding(classes, 4, **options)
    model = RecurrentSequential(
        embedding, nn.LSTM(4, H, num_layers=2, bias=bias), nn.Linear(H, classes)
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    other = copy.deepcopy(model)  # max_norm writes to the weights
    primer = torch.randint(classes, (3, 20))
    assert_samples_like(model, other, primer)  # one by one
    sampler, again = [SoftmaxSampler(generator=seeded(1)) for _ in range(2)]
    assert_samples_like(model, other, primer, sampler, again)
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


@pytest.mark.parametrize("sampler", [wander, sample_best])
def test_a_state_before_the_primer_reaches_the_table_of_gates(sampler):
    model, primer = language_model(), torch.randint(V, (1, 3))
    _, state = model(torch.randint(V, (4, 3)))
    sample = sample_model(model, 9, primer, sampler, state)
    _, outputs, _, _ = generate_by_hand(model, 9, primer, sampler, state)
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


class Halved(torch.Tensor):
    """A weight of half the size, as a linear layer reads it, in the manner of quantized ones."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            args = (args[0], args[1].as_subclass(torch.Tensor) / 2, *args[2:])
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("stop", [None, V])
def test_a_weight_of_another_class_is_read_by_its_layer_alone(stop):
    model, primer = language_model(), torch.randint(V, (4, 3))
    model[2].weight = nn.Parameter(model[2].weight.detach().as_subclass(Halved))
    sample = sample_model(model, 12, primer, sample_best, stop=stop)
    tokens, outputs, _, _ = generate_by_hand(model, 12, primer, sample_best)
    assert torch.equal(sample.tokens, tokens)
    torch.testing.assert_close(sample.outputs, outputs)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
def test_probabilities_put_on_a_sampler_itself_are_what_it_draws_from(options):
    sampler = SoftmaxSampler(**options)
    sampler.probabilities = lambda outputs: torch.eye(V)[[3] * len(outputs)]
    sample = sample_model(language_model(), 12, torch.zeros(1, 2, dtype=torch.long), sampler)
    assert (sample.tokens[1:] == 3).all()


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


# Where a quicker step is taken, and where it would not be the same.


def is_quicker(model, rows=1):
    with torch.no_grad():
        return quicker_step(model, rows) is not model


def test_a_model_of_pytorch_s_own_layers_has_a_quicker_step():
    """Without this the tests of this file would hold where nothing is quicker."""
    for model in (language_model(), nn.LSTM(2, 2), nn.GRU(2, 2), nn.RNN(2, 2)):
        assert is_quicker(model)
        assert is_quicker(model.float())
    assert is_quicker(language_model(), rows=1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 20])
def test_with_few_digits_a_model_is_stepped_as_it_is(dtype, rows):
    model, primer = language_model(layers=2).to(dtype), torch.randint(V, (4, rows))
    assert not is_quicker(model, rows)
    sample = sample_model(model, 12, primer, wander)
    tokens, outputs, _, _ = generate_by_hand(model, 12, primer, wander)
    assert torch.equal(sample.tokens, tokens)
    assert torch.equal(sample.outputs, outputs)


@pytest.mark.parametrize("rows", [3, 40])
def test_small_numbers_keep_their_digits(rows):
    """The tangent near 0 is its argument: by way of the logistic function, near 1/2, it has no digit right."""
    lstm = nn.LSTM(4, H, bias=False).float()
    model = RecurrentSequential(
        nn.Embedding(V, 4).float(), lstm, nn.Linear(H, H, bias=False).float()
    )
    with torch.no_grad():
        lstm.weight_ih_l0.mul_(1e-7)
    primer = torch.randint(V, (1, rows))

    def fed(outputs):
        return primer[0]

    sample = sample_model(model, 12, primer, fed)
    _, outputs, _, _ = generate_by_hand(model, 12, primer, fed)
    assert outputs.abs().max() < 1e-6
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-4, atol=0)


def test_batch_statistics_are_not_made_by_a_quicker_step():
    model = RecurrentSequential(PerStep(nn.BatchNorm1d(2)), nn.GRU(2, H), nn.Linear(H, 2))
    assert not is_quicker(model)
    assert is_quicker(model.eval())


def test_batch_statistics_of_rows_of_different_length_are_refused_in_single_steps_too():
    """In a module of one's own: its padding would count, and no step says so."""
    model = Wrapped(nn.LSTM)
    model.head = nn.Sequential(PerStep(nn.BatchNorm1d(H)), nn.Linear(H, V))
    closed, lengths = Rollout(model, sample_best, carry=False), torch.tensor([6, 4, 3, 5])
    fed = Feedback.always().mask(6, 4, lengths)
    with pytest.raises(Refusal, match="batch statistics, in training mode"):
        closed.over(torch.randint(V, (6, 4)), fed, None, lengths)


def test_a_quicker_step_starts_from_zeros_like_the_model():
    for model in (language_model(layers=2), language_model(nn.GRU)):
        tokens = torch.randint(V, (1, 3))
        with torch.no_grad():
            outputs, state = quicker_step(model, 3)(tokens, None)
            wanted, wanted_state = model(tokens)
        torch.testing.assert_close(outputs, wanted)
        assert_state(state, wanted_state)


def test_a_token_beyond_the_table_is_an_error_as_in_the_embedding():
    with pytest.raises(IndexError):
        sample_model(
            language_model(), 5, torch.tensor([[0]]), lambda outputs: outputs.argmax(1) + V
        )


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"temperature": 3.0, "top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}],
    ids=str,
)
def test_all_steps_at_once_draw_what_the_sampler_draws_one_by_one(recurrent, options):
    model, primer = language_model(recurrent, 2).float(), torch.randint(V, (2, 5))
    sampler = SoftmaxSampler(**options, generator=seeded(1))
    sample = sample_model(model, 60, primer, sampler)
    again = SoftmaxSampler(**options, generator=seeded(1))
    tokens, outputs, following, state = generate_by_hand(model, 60, primer, again)
    assert torch.equal(sample.tokens, tokens)
    assert torch.equal(sample.next[0], following)
    assert torch.equal(sampler.generator.get_state(), again.generator.get_state())
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-4, atol=1e-5)
    assert_state(sample.state, state, rtol=1e-4, atol=1e-5)


def test_a_draw_from_no_number_is_the_sampler_s_error():
    """Where later logits are numbers again, too."""
    model, token = language_model(), torch.tensor([[0]])
    with torch.no_grad(), pytest.raises(ValueError, match="SoftmaxSampler: got logits whose"):
        quicker_draws(model, SoftmaxSampler(), 3, torch.full((1, V), torch.nan), model(token)[1])


def test_logits_that_a_temperature_makes_infinite_are_the_sampler_s_error():
    """At a step in the middle, after which all logits are small again."""
    model, token = language_model().float(), torch.tensor([[0]])
    with torch.no_grad():
        first, state = model(token)
        with pytest.raises(ValueError, match="SoftmaxSampler: got logits whose"):
            quicker_draws(model, SoftmaxSampler(temperature=1e-42), 3, first[0], state)


class Wrapped(nn.Module):
    """A model of the user's own."""

    def __init__(self, recurrent):
        super().__init__()
        self.embedding = nn.Embedding(V, 4)
        self.recurrent = recurrent(4, H, 2)
        self.head = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        hidden, state = self.recurrent(self.embedding(tokens), state)
        return self.head(hidden).tanh(), state


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_layer_inside_a_module_of_one_s_own_is_stepped_as_itself(recurrent, rows):
    model, calls = Wrapped(recurrent), []
    model.recurrent.register_forward_hook(lambda *_: calls.append(1))
    assert_samples_like(model, model, torch.randint(V, (4, rows)))
    assert len(calls) == 1 + 16 + 20, "the primer, each step of the kit, each call by hand"
    assert is_quicker(model) and not is_quicker(model, rows=20)


def test_a_layer_inside_is_itself_again_after_an_error():
    model, calls = Wrapped(nn.LSTM), []

    def fails(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("the fifth")

    model.head.register_forward_hook(fails)
    with pytest.raises(KeyError):
        sample_model(model, 12, torch.randint(V, (1, 3)), sample_best)
    assert "forward" not in vars(model.recurrent)


def test_a_layer_inside_may_be_called_by_name():
    class ByName(Wrapped):
        def forward(self, tokens, state=None):
            hidden, state = self.recurrent(input=self.embedding(tokens), hx=state)
            return self.head(hidden), state

    model = ByName(nn.LSTM)
    assert is_quicker(model)
    assert_samples_like(model, model, torch.randint(V, (4, 3)))


class OtherWeights(Wrapped):
    """Weights made anew at each call, as a hypernetwork or a low-rank update has them."""

    def forward(self, tokens, state=None):
        weights = {name: -2 * own for name, own in self.recurrent.named_parameters()}
        arguments = (self.embedding(tokens), state)
        hidden, state = torch.func.functional_call(self.recurrent, weights, arguments)
        return self.head(hidden), state


class Dropping(Wrapped):
    """Dropout in evaluation, too, which seeds itself so that two calls are alike."""

    def __init__(self, recurrent):
        super().__init__(recurrent)
        self.recurrent.dropout = 0.5

    def forward(self, tokens, state=None):
        torch.manual_seed(0)
        self.recurrent.train()
        result = super().forward(tokens, state)
        self.recurrent.eval()
        return result


class Casting(Wrapped):
    """A forward with autocast in it."""

    def forward(self, tokens, state=None):
        with torch.autocast("cpu", torch.bfloat16):
            hidden, state = self.recurrent(self.embedding(tokens), state)
        return self.head(hidden.float()), state


class Remembering(nn.Module):
    """A recurrent layer whose steps are computed once more for their gradient."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent(2, 2, 2)

    def forward(self, inputs, state=None):
        return checkpoint(self.recurrent, inputs, state, use_reentrant=False)


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_checkpoint_inside_a_forward_has_the_gradient_of_the_loop(recurrent, rows):
    model, inputs = Remembering(recurrent), torch.randn(5, rows, 2)
    outputs, _ = rollout(model, inputs, Feedback.always())
    outputs.square().sum().backward()
    step, state, wanted = inputs[:1], None, 0
    for _ in inputs:
        step, state = model.recurrent(step, state)
        wanted = wanted + step.square().sum()
    weights = list(model.parameters())
    for weight, grad in zip(weights, torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(weight.grad, grad)


@pytest.mark.parametrize("kind", [OtherWeights, Dropping, Casting])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_a_forward_does_to_a_layer_inside_holds_for_single_steps(recurrent, kind):
    model, primer = kind(recurrent).float().eval(), torch.randint(V, (1, 3))
    assert is_quicker(model)
    sample = sample_model(model, 12, primer, sample_best)
    tokens, outputs, _, _ = generate_by_hand(model, 12, primer, sample_best)
    assert torch.equal(sample.tokens, tokens)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_subclass_with_a_call_of_its_own_keeps_it(recurrent):
    class Doubled(recurrent):
        def __call__(self, *arguments):
            outputs, state = super().__call__(*arguments)
            return 2 * outputs, state

    assert_steps_like_itself(Doubled(3, 3), torch.randn(4, 2, 3))
    model = RecurrentSequential(nn.Embedding(V, 4), Doubled(4, H), nn.Linear(H, V))
    assert_samples_like(model, model, torch.randint(V, (4, 3)))


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("spoil", ["fewer layers", "fewer rows", "another width"])
def test_a_state_that_does_not_fit_is_the_layer_s_own_error(recurrent, spoil):
    cut = {
        "fewer layers": lambda part: part[:1],
        "fewer rows": lambda part: part[:, :1],
        "another width": lambda part: part[:, :, :2],
    }[spoil]

    class Spoiling(Wrapped):
        def forward(self, tokens, state=None):
            outputs, state = super().forward(tokens, state)
            return outputs, map_leaves(cut, state)

    model = Spoiling(recurrent)
    primer = torch.randint(V, (1, 3))
    with pytest.raises((RuntimeError, ValueError)) as info:
        sample_model(model, 4, primer, sample_best)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as plain:
        Wrapped(recurrent)(primer, model(primer)[1])
    assert str(info.value) == str(plain.value)
