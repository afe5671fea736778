"""A state as a value: `None`, or a tree of tuples, lists and dicts of tensors `(layers, B, *F)`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .errors import Refusal, asked, in_full, in_words

State: TypeAlias = Any


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree with `function` applied to every leaf, and to the leaves of `others` at its place.

    Where another tree is `None`, each of its leaves is; others of another form are refused.
    """
    if isinstance(tree, Tensor):
        for other in others:
            if other is not None and not isinstance(other, Tensor):
                raise _another_form(tree, other)
        return function(tree, *others)
    if tree is None:
        return None

    # A part of another tree stands where it stands in this one.
    def at(key: Any) -> Any:
        return map_leaves(function, tree[key], *(_part(tree, other, key) for other in others))

    if isinstance(tree, dict):
        return {key: at(key) for key in tree}
    if isinstance(tree, (tuple, list)):  # torch 2.6 compiles no check of a union
        return like(tree, [at(i) for i in range(len(tree))])
    raise Refusal(
        f"a {type(tree).__name__} in a state",
        "a tree of tensors (layers, B, *F) in tuples, lists or dicts",
        "keep numbers and modules out of the state.",
        TypeError,
    )


def like(tree: Any, items: list[Any]) -> Any:
    """A tuple or list of the same kind, of these items."""
    if hasattr(tree, "_fields"):  # a named tuple takes them one by one
        return type(tree)(*items)
    return type(tree)(items)


def leaves_of(tree: Any) -> list[Tensor]:
    """The leaves of a tree, one by one."""
    found: list[Tensor] = []
    map_leaves(found.append, tree)
    return found


def same_form(a: State, b: State) -> bool:
    """Whether two states are trees of the same form, whatever the shapes of their leaves."""
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same_form(a[k], b[k]) for k in a)
        )
    if isinstance(a, tuple | list):
        alike = isinstance(b, (tuple, list)) and len(a) == len(b)
        return alike and all(map(same_form, a, b))
    return (a is None and b is None) or (isinstance(a, Tensor) and isinstance(b, Tensor))


def shapes(value: Any) -> str:
    """A tree as the shapes of its parts."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(shapes, value)) + ")"
    return in_words(value)


def _part(tree: Any, other: Any, key: Any) -> Any:
    """What stands at `key` in another tree, which must have the form of this one."""
    if other is None:
        return None
    if isinstance(tree, dict):
        alike = isinstance(other, dict) and other.keys() == tree.keys()
    else:
        alike = isinstance(other, (tuple, list)) and len(other) == len(tree)
    if not alike:
        raise _another_form(tree, other)
    return other[key]


def _another_form(tree: Any, other: Any) -> Refusal:
    return Refusal(
        f"{in_words(other)} where another state has {in_words(tree)}",
        "states of one form",
        "a model's initial_state, and each of its calls, give a tree of the same form.",
    )


def where_rows(rows: Tensor, new: State, old: State) -> State:
    """`new` in the rows, bool `(B,)`, `old` in the others, which are zero where it is `None`."""

    # Not a product with a mask: zero times NaN is NaN, in gradients too.
    def choose(new: Tensor, old: Tensor | None) -> Tensor:
        here = along(rows, new)
        if old is None:
            return new.masked_fill(~here, 0)
        if old.shape != new.shape:
            raise Refusal(
                f"state leaves {in_words(new)} and {in_words(old)}",
                "leaves of one shape (layers, B, *F)",
                "a model's initial_state, and each of its calls, give leaves of the same shapes.",
            )
        return torch.where(here, new, old)

    return map_leaves(choose, new, old)


def along(rows: Tensor, leaf: Tensor) -> Tensor:
    """`rows`, `(B,)`, shaped to broadcast over a leaf `(layers, B, *F)`."""
    return onto(rows, leaf.device).view(-1, *[1] * (leaf.ndim - 2))


def onto(part: Tensor, device: torch.device) -> Tensor:
    """The same on a device, which the host does not wait for.

    On Apple's a copy that nobody waits for may read memory that is used again by then.
    """
    return part.to(device, non_blocking=device.type != "mps")


@asked("detach")
def detach(state: State) -> State:
    """A state, any tree of tensors, without its history.

    Truncated backpropagation is this call between two windows. The numbers are shared. Raises
    `TypeError` if a leaf is not a tensor.

    >>> import torch
    >>> from rnnkit import detach
    >>> h = torch.ones(1, 2, 3, requires_grad=True)
    >>> detach((h, h))[0].requires_grad
    False
    """
    return map_leaves(Tensor.detach, state)


@asked("select_rows")
def select_rows(state: State, index: Tensor) -> State:
    """The rows `index`, int64 `(N,)` or bool `(B,)`, of a state `(layers, B, *F)`, in that order.

    One may come twice. Raises `IndexError` if the state does not have such a row, `TypeError` if
    the index is no such tensor.

    >>> import torch
    >>> from rnnkit import select_rows
    >>> state = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> select_rows(state, torch.tensor([2, 0])).flatten().tolist()
    [3.0, 1.0]
    """
    if not isinstance(index, Tensor) or index.is_floating_point():  # as torch.tensor([]) is
        fix = "torch.tensor(rows, dtype=torch.int64)."
        raise Refusal(f"rows {in_words(index)}", "int64 (N,) or bool (B,)", fix, TypeError)
    try:
        return map_leaves(lambda leaf: leaf[:, onto(index, leaf.device)], state)
    except IndexError as error:
        came = f"rows {index.tolist()} ({error})"
        raise Refusal(came, "rows that the state has", "count from 0.", IndexError) from error


@asked("reset_rows")
def reset_rows(state: State, rows: Tensor) -> State:
    """A new state, zero in the `rows`, bool `(B,)`, that start afresh.

    For models whose first state is zero. Raises `ValueError` if `rows` is not a bool tensor of the
    state's batch size.

    >>> import torch
    >>> from rnnkit import reset_rows
    >>> state = torch.tensor([[[1.0], [2.0]]])
    >>> reset_rows(state, torch.tensor([True, False])).flatten().tolist()
    [0.0, 2.0]
    """

    def reset(leaf: Tensor) -> Tensor:
        if getattr(rows, "dtype", None) != torch.bool or rows.shape != leaf.shape[1:2]:
            raise Refusal(
                f"rows {in_full(rows)} for a leaf {in_words(leaf)}",
                "a bool tensor (B,)",
                f"rows = torch.zeros({leaf.shape[1]}, dtype=torch.bool).",
            )
        return leaf.masked_fill(along(rows, leaf), 0)

    return map_leaves(reset, state)
