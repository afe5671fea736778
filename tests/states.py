"""Looking into a state tree, as several tests do."""

import torch


def leaves(state):
    """The tensors of a state, in order."""
    if state is None:
        return []
    if isinstance(state, torch.Tensor):
        return [state]
    return [leaf for part in (state.values() if isinstance(state, dict) else state) for leaf in leaves(part)]


def assert_state(got, wanted, **tolerance):
    got, wanted = leaves(got), leaves(wanted)
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
