"""What the tests share: small models and data, seeds, looking into a state tree."""

import pytest
import torch
from hypothesis import settings
from torch import nn

from rnnkit import RecurrentSequential, identity, sample_model

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def leaves(state):
    """The tensors of a state, in order."""
    if state is None:
        return []
    if isinstance(state, torch.Tensor):
        return [state]
    return [
        leaf
        for part in (state.values() if isinstance(state, dict) else state)
        for leaf in leaves(part)
    ]


def assert_state(got, wanted, **tolerance):
    got, wanted = leaves(got), leaves(wanted)
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def refused(call, text, kind=ValueError):
    """`call()` is refused, in the one voice and with `text` in it; gives the whole message."""
    with pytest.raises(kind) as info:
        call()
    message = str(info.value)
    assert text in message, message
    assert ": got " in message and "; wanted " in message and ". Likely fix: " in message, message
    return message


FUSED = {"LSTM": (nn.LSTM, nn.LSTMCell), "GRU": (nn.GRU, nn.GRUCell), "RNN": (nn.RNN, nn.RNNCell)}
every_kind = pytest.mark.parametrize("kind", FUSED)


def assert_same_call(model, reference, inputs, state=None, reference_state=None):
    """Outputs, state and every gradient: of the inputs and of the parameters, in order."""
    results = []
    for run, before in ((model, state), (reference, reference_state)):
        x = inputs.detach().clone().requires_grad_(inputs.is_floating_point())
        outputs, after = run(x, before)
        loss = outputs.sin().sum() + sum(leaf.cos().sum() for leaf in leaves(after))
        wrt = [*([x] if x.requires_grad else []), *run.parameters()]
        results.append((outputs, after, torch.autograd.grad(loss, wrt)))
    (outputs, after, gradients), (wanted, wanted_after, wanted_gradients) = results
    torch.testing.assert_close(outputs, wanted)
    assert_state(after, wanted_after)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b)


# Generation: small models, and loops by hand that call them for one step at a time.

VOCABULARY, HIDDEN = 7, 5


def language_model(recurrent=nn.LSTM, layers=1):
    """Tokens in, logits out."""
    return RecurrentSequential(
        nn.Embedding(VOCABULARY, 4),
        recurrent(4, HIDDEN, num_layers=layers),
        nn.Linear(HIDDEN, VOCABULARY),
    )


def wander(outputs):
    """A sampler without chance that repeats itself less than `sample_best`: the smallest change of a logit matters."""
    return (1000 * outputs).sin().argmax(1)


wander.classes = True


def continuous_model(recurrent=nn.GRU, features=2):
    return RecurrentSequential(recurrent(features, HIDDEN), nn.Linear(HIDDEN, features))


class Counting(nn.Module):
    """Passes every call on and notes how many steps each had."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, inputs, state=None):
        self.calls.append(inputs.shape[0])
        return self.model(inputs, state)


class Scaling(nn.Module):
    """A model of scaled inputs, which it scales where they lie."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, state=None):
        inputs -= 1
        inputs *= 2
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


def assert_samples_like(model, other, primer, sampler=wander, again=wander):
    """20 steps are those of the loop over plain calls; `again` is a sampler that draws the same."""
    sample = sample_model(model, 20, primer, sampler)
    tokens, outputs, following, state = generate_by_hand(other, 20, primer, again)
    assert torch.equal(sample.tokens, tokens)
    assert torch.equal(sample.next[0], following)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)
    assert_state(sample.state, state, rtol=1e-10, atol=1e-10)
