"""The one voice of errors: who was asked, what came, what was wanted, the likely fix.

A helper raises `Refusal` with the reason; the boundary that a user called says who was asked, with
`@asked("sample_model")`. The innermost boundary speaks, as it is nearest to the mistake.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Refusal(Exception):
    """The reason for an error, raised where it is seen; `asked` makes of it one of this `kind`."""

    def __init__(
        self, came: str, wanted: str, fix: str, kind: type[Exception] = ValueError
    ) -> None:
        super().__init__(f"got {came}; wanted {wanted}. Likely fix: {fix}")
        self.kind = kind


def asked(who: str | Callable[[Any], str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function a boundary: what is refused inside is told in its name, `who`.

    For a method whose name depends on its object, `who` is a function of the object.

    >>> @asked("halve")
    ... def halve(n):
    ...     if n % 2:
    ...         raise Refusal(f"n = {n}", "an even n", "pass 2 * n.")
    ...     return n // 2
    >>> halve(3)
    Traceback (most recent call last):
    ValueError: halve: got n = 3; wanted an even n. Likely fix: pass 2 * n.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def boundary(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Refusal as refusal:
                name = who
                if callable(name):
                    name = name(args[0])  # the object of a method
                raise refusal.kind(f"{name}: {refusal}") from None

        return boundary

    return decorate


def in_words(value: object) -> str:
    """A value in the words of an error: a tensor's shape, a dict's keys, else its type."""
    if isinstance(value, Tensor):
        return "a nested tensor" if value.is_nested else str(tuple(value.shape))
    if isinstance(value, dict):
        return "a dict of " + (", ".join(map(repr, value)) or "nothing")
    if isinstance(value, list | tuple):
        items: Sequence[object] = value
        return f"a {type(value).__name__} of {len(items)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"


def in_full(value: object) -> str:
    """A value in the words of an error, a tensor with its dtype."""
    words = in_words(value)
    if isinstance(value, Tensor):
        words += f" of {value.dtype}"
    return words


class Named(NamedTuple):
    """A value and what it is called, put into words only where an error needs them."""

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name} {in_words(self.value)}"


def tensor_of(value: Any, came: str, wanted: str, fix: str, device: Any = "cpu") -> Tensor:
    """A tensor of what torch takes for numbers; the rest is refused."""
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(came, wanted, fix, TypeError) from error


def one_of(name: str, value: object, words: Sequence[str], fix: str) -> None:
    if value not in words:
        *first, last = (f'"{word}"' for word in words)  # as one says it: "a", "b" or "c"
        raise Refusal(f"{name}={value!r}", f"{', '.join(first)} or {last}", fix)


def check_kind(
    name: str, value: object, kind: type | tuple[type, ...], wanted: str, fix: str
) -> None:
    """Refuse what is none of some classes; `True` is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refusal(f"{name} = {in_words(value)}", wanted, fix, TypeError)


def is_number(value: Any) -> bool:
    """Whether it is a real number, or a tensor of one; `True` is none."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(
    name: str, value: Any, fits: Callable[[Any], object], wanted: str, fix: str
) -> None:
    """Refuse what is no number, or one that does not fit."""
    if not is_number(value) or not fits(value):
        raise Refusal(f"{name} = {value!r}", wanted, fix)


def at_least(name: str, value: object, least: int, fix: str) -> None:
    """Refuse what is no whole number of `least` and more."""
    if not isinstance(value, Integral) or isinstance(value, bool):  # True is an int to Python
        shown = repr(value)
        if isinstance(value, Tensor | list | tuple | dict):
            shown = in_words(value)
        raise Refusal(f"{name} = {shown}", f"a whole number, {name} >= {least}", fix, TypeError)
    if int(value) < least:
        raise Refusal(f"{name} = {value}", f"{name} >= {least}", fix)
