"""A state as a value: `None`, or a tree of tuples, lists and dicts of tensors `(layers, B, *features)`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .errors import Refusal, asked, in_words

State: TypeAlias = Any


def map_leaves(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """The tree with `function` applied to every leaf, and to the leaves of `others` at the same place.

    Where another tree is `None`, `function` is given `None` for each of its leaves.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if tree is None:
        return None
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)
        return {
            key: map_leaves(function, tree[key], *(_part(other, key) for other in others))
            for key in keys
        }
    if isinstance(tree, tuple | list):
        indices = range(len(tree))
        items = [
            map_leaves(function, tree[i], *(_part(other, i) for other in others)) for i in indices
        ]
        named = hasattr(tree, "_fields")  # a named tuple takes its parts one by one
        return type(tree)(*items) if named else type(tree)(items)
    raise Refusal(
        f"a {type(tree).__name__} in a state",
        "a tree of tensors (layers, B, *F) in tuples, lists or dicts",
        "keep numbers and modules out of the state.",
        TypeError,
    )


def _part(tree: Any, key: Any) -> Any:
    return None if tree is None else tree[key]


def where_rows(rows: Tensor, new: State, old: State) -> State:
    """`new` in the rows where `rows` (bool, `(B,)`) is true, `old` (zero where it is `None`) in the others."""

    def choose(new: Tensor, old: Tensor | None) -> Tensor:
        here = along(rows, new)
        if old is None:
            return new.masked_fill(~here, 0)
        return torch.where(here, new, old)

    return map_leaves(choose, new, old)


def along(rows: Tensor, leaf: Tensor) -> Tensor:
    """`rows`, `(B,)`, shaped to broadcast over a leaf `(layers, B, *F)`."""
    return rows.to(leaf.device).view(-1, *[1] * (leaf.ndim - 2))


@asked("detach")
def detach(state: State) -> State:
    """A state, any tree of tensors, without its history: truncated backpropagation is this call between two windows.

    The numbers are shared. Raises `TypeError` if a leaf is not a tensor.

    >>> import torch
    >>> h = torch.ones(1, 2, 3, requires_grad=True)
    >>> detach((h, h))[0].requires_grad
    False
    """
    return map_leaves(Tensor.detach, state)


@asked("select_rows")
def select_rows(state: State, index: Tensor) -> State:
    """The rows `index`, int64 `(N,)` or bool `(B,)`, of a state `(layers, B, *F)`, in that order; one may come twice.

    Raises `IndexError` if the state does not have such a row.

    >>> import torch
    >>> select_rows(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([2, 0])).flatten().tolist()
    [3.0, 1.0]
    """
    return map_leaves(lambda leaf: leaf[:, index.to(leaf.device)], state)


@asked("reset_rows")
def reset_rows(state: State, rows: Tensor) -> State:
    """A new state, zero in the `rows`, bool `(B,)`, that start afresh: for models whose first state is zero.

    Raises `ValueError` if `rows` is not a bool tensor of the state's batch size.

    >>> import torch
    >>> reset_rows(torch.tensor([[[1.0], [2.0]]]), torch.tensor([True, False])).flatten().tolist()
    [0.0, 2.0]
    """

    def reset(leaf: Tensor) -> Tensor:
        if rows.dtype != torch.bool or rows.shape != leaf.shape[1:2]:
            raise Refusal(
                f"rows {in_words(rows)} of {rows.dtype} for a leaf {in_words(leaf)}",
                "a bool tensor (B,)",
                f"rows = torch.zeros({leaf.shape[1]}, dtype=torch.bool).",
            )
        return leaf.masked_fill(along(rows, leaf), 0)

    return map_leaves(reset, state)
