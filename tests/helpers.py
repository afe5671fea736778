"""What the tests share: small models and data, seeds, looking into a state tree."""

import pytest
import torch
from hypothesis import settings

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
