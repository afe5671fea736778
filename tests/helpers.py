"""What the tests share: small models and data, seeds, looking into a state tree."""

import pytest
import torch
from hypothesis import settings
from torch import nn

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
