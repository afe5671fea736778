"""Operations on a state: `None`, or a tree of tuples, lists and dicts of tensors `(layers, B, *features)`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any


def map_leaves(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """The tree with `function` applied to every leaf, and to the leaves of `others` at the same place."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if state is None:
        return None
    if isinstance(state, dict):
        return {key: map_leaves(function, leaf, *(other[key] for other in others)) for key, leaf in state.items()}
    if isinstance(state, tuple | list):
        items = [map_leaves(function, *leaves) for leaves in zip(state, *others, strict=True)]
        return type(state)(*items) if hasattr(state, "_fields") else type(state)(items)
    raise TypeError(
        f"state: got a {type(state).__name__}; wanted a tree of tensors (layers, B, *F) in tuples, lists or dicts. "
        "Likely fix: keep numbers and modules out of the state."
    )


def where_rows(rows: Tensor, new: Any, old: Any) -> Any:
    """`new` in the rows where `rows` (bool, `(B,)`) is true, `old` (zero where it is `None`) in the others."""
    if old is None:
        return reset_rows(new, ~rows)
    return map_leaves(lambda leaf, kept: torch.where(_along(rows, leaf), leaf, kept), new, old)


def detach(state: Any) -> Any:
    """A state, any tree of tensors, without its history: truncated backpropagation is this call between two windows.

    The numbers are shared. Raises `TypeError` if a leaf is not a tensor.

    >>> h = torch.ones(1, 2, 3, requires_grad=True)
    >>> detach((h, h))[0].requires_grad
    False
    """
    return map_leaves(Tensor.detach, state)


def select_rows(state: Any, index: Tensor) -> Any:
    """The rows `index`, int64 `(N,)` or bool `(B,)`, of a state `(layers, B, *F)`, in that order; one may come twice.

    Raises `IndexError` if the state does not have such a row.

    >>> select_rows(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([2, 0])).flatten().tolist()
    [3.0, 1.0]
    """
    return map_leaves(lambda leaf: leaf[:, index.to(leaf.device)], state)


def reset_rows(state: Any, rows: Tensor) -> Any:
    """A new state, zero in the `rows`, bool `(B,)`, that start afresh: for models whose first state is zero.

    Raises `ValueError` if `rows` is not a bool tensor of the state's batch size.

    >>> reset_rows(torch.tensor([[[1.0], [2.0]]]), torch.tensor([True, False])).flatten().tolist()
    [0.0, 2.0]
    """

    def reset(leaf: Tensor) -> Tensor:
        if rows.dtype != torch.bool or rows.shape != leaf.shape[1:2]:
            raise ValueError(
                f"reset_rows: got rows {tuple(rows.shape)} of {rows.dtype} for a leaf {tuple(leaf.shape)}; "
                f"wanted a bool tensor (B,). Likely fix: rows = torch.zeros({leaf.shape[1]}, dtype=torch.bool)."
            )
        return leaf.masked_fill(_along(rows, leaf), 0)

    return map_leaves(reset, state)


def _along(rows: Tensor, leaf: Tensor) -> Tensor:
    """`rows`, `(B,)`, shaped to broadcast over a leaf `(layers, B, *F)`."""
    return rows.to(leaf.device).view(-1, *[1] * (leaf.ndim - 2))
