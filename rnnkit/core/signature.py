"""What a function of the user's can be called with, read off its signature."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from torch import nn


def parameters_of(called: Callable[..., Any]) -> list[Parameter] | None:
    """The parameters of a function, or of a module's `forward`; `None` where C code does not say.

    >>> [parameter.name for parameter in parameters_of(lambda outputs, given: outputs)]
    ['outputs', 'given']
    """
    call: Any = called
    if isinstance(called, nn.Module):
        call = getattr(called, "forward", None)
    try:
        return list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return None


def by_place(parameter: Parameter) -> bool:
    """Whether it can be given by its place."""
    return parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def takes_two(parameters: list[Parameter]) -> bool:
    """Whether two arguments can be given by their places."""
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    return sum(map(by_place, parameters)) >= 2


def must_be_given(parameter: Parameter) -> bool:
    """Whether it can be given by its place, and has to be."""
    return by_place(parameter) and parameter.default is Parameter.empty
