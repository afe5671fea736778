"""What a function of the user's can be called with, read off its signature."""

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from torch import nn

from .errors import Refusal, in_words


def parameters_of(called: Callable[..., Any]) -> list[Parameter] | None:
    """The parameters of a function or a module's `forward`; `None` where C code does not say."""
    call: Any = getattr(called, "_orig_mod", called)  # inside torch.compile
    if isinstance(call, nn.Module):
        call = getattr(call, "forward", None)
        if inspect.ismethod(call) and inspect.isfunction(call.__func__):
            return _of_method(call.__func__)
    return _read(call)


@functools.lru_cache(maxsize=64)
def _of_method(function: Callable[..., Any]) -> list[Parameter] | None:
    """Those of a class's function, without `self`; read once, for a loop may ask at each step."""
    parameters = _read(function)
    if parameters and by_place(parameters[0]):
        return parameters[1:]
    return parameters


def _read(call: Any) -> list[Parameter] | None:
    try:
        signature = inspect.signature(call, follow_wrapped=False)
        if any(p.kind is Parameter.VAR_POSITIONAL for p in signature.parameters.values()):
            signature = inspect.signature(call)  # what a decorator hands its arguments on to
    except (TypeError, ValueError):
        return None
    return list(signature.parameters.values())


def by_place(parameter: Parameter) -> bool:
    """Whether it can be given by its place."""
    return parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def takes(parameters: list[Parameter] | None, *counts: int) -> bool:
    """Whether one of these numbers of arguments can be given by their places."""
    if parameters is None:
        return True
    least = sum(map(must_be_given, parameters))
    most = sum(map(by_place, parameters))
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        most = max(counts)
    return any(least <= count <= most for count in counts)


def check_takes(name: str, called: Any, *forms: str) -> None:
    """Refuse what cannot be called with the arguments of one of these forms."""
    came = f"{name} = {in_words(called)}"
    if callable(called):
        parameters = parameters_of(called)
        if takes(parameters, *(len(form.split(", ")) for form in forms)):
            return
        came = f"{name}({', '.join(parameter.name for parameter in parameters or [])})"
    wanted = " or ".join(f"{name}({form})" for form in forms)
    fix = "pass a function that is called with these arguments, by their places."
    raise Refusal(came, wanted, fix, TypeError)


def must_be_given(parameter: Parameter) -> bool:
    """Whether it can be given by its place, and has to be."""
    return by_place(parameter) and parameter.default is Parameter.empty
