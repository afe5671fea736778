"""Operations on a state: any tree of tuples, lists and dicts whose leaves are tensors `(layers, B, *features)`.

State is a value that goes into a model and comes out of it, never a field that is overwritten. `None` is the state
before the first step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["detach", "reset_rows", "select_rows"]


def map_leaves(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """The tree with `function` applied to every leaf, and to the leaves of `others` at the same place."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if state is None:
        return None
    if isinstance(state, dict):
        tree: dict[Any, Any] = state
        return {key: map_leaves(function, leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
    if isinstance(state, tuple | list):
        items: list[Any] = [map_leaves(function, *leaves) for leaves in zip(state, *others, strict=True)]
        named = hasattr(state, "_fields")
        return type(state)(*items) if named else type(state)(items)
    raise TypeError(
        f"state: got a {type(state).__name__}; wanted a tree of tensors (layers, B, *F) in tuples, lists or dicts. "
        "Likely fix: keep numbers and modules out of the state."
    )


def where_rows(rows: Tensor, new: Any, old: Any) -> Any:
    """`new` in the rows where `rows` (bool, `(B,)`) is true, `old` (zero where it is `None`) in the others."""

    def choose(leaf: Tensor, kept: Tensor) -> Tensor:
        return torch.where(rows.to(leaf.device).view(1, -1, *[1] * (leaf.ndim - 2)), leaf, kept)

    if old is None:
        return reset_rows(new, ~rows)
    return map_leaves(choose, new, old)


def detach(state: Any) -> Any:
    """The same state without its history: no gradient flows back through it.

    Truncated backpropagation through time is this call between two windows.

    Args:
        state: a tree of tensors `(layers, B, *F)`, or `None`.

    Returns:
        A tree of the same form that shares the numbers.

    Raises:
        TypeError: if a leaf is not a tensor.

    >>> h = torch.ones(1, 2, 3, requires_grad=True)
    >>> detach((h, h))[0].requires_grad
    False
    """
    if isinstance(state, Tensor):
        return state.detach()
    return map_leaves(Tensor.detach, state)


def select_rows(state: Any, index: Tensor) -> Any:
    """The rows `index` of a state, in that order; a row may come twice.

    Args:
        state: a tree of tensors `(layers, B, *F)`, or `None`.
        index: int64 `(N,)` or bool `(B,)`.

    Returns:
        The tree with leaves `(layers, N, *F)`.

    Raises:
        IndexError: if `index` names a row that the state does not have.

    >>> select_rows(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([2, 0])).flatten().tolist()
    [3.0, 1.0]
    """
    return map_leaves(lambda leaf: leaf[:, index.to(leaf.device)], state)


def reset_rows(state: Any, rows: Tensor) -> Any:
    """The state with some rows set to zero, the start of a model whose first state is zero.

    Args:
        state: a tree of tensors `(layers, B, *F)`, or `None`.
        rows: bool `(B,)`, true for the rows that start afresh.

    Returns:
        A new tree; the one given is left as it is.

    Raises:
        ValueError: if `rows` is not a bool tensor of the state's batch size.

    >>> reset_rows(torch.tensor([[[1.0], [2.0]]]), torch.tensor([True, False])).flatten().tolist()
    [0.0, 2.0]
    """

    def reset(leaf: Tensor) -> Tensor:
        if rows.dtype != torch.bool or rows.shape != leaf.shape[1:2]:
            raise ValueError(
                f"reset_rows: got rows {tuple(rows.shape)} of {rows.dtype} for a leaf {tuple(leaf.shape)}; "
                f"wanted a bool tensor (B,). Likely fix: rows = torch.zeros({leaf.shape[1]}, dtype=torch.bool)."
            )
        return leaf.masked_fill(rows.to(leaf.device).view(1, -1, *[1] * (leaf.ndim - 2)), 0)

    return map_leaves(reset, state)
