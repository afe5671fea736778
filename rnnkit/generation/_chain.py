"""What a module of the user's own is, where its `forward` is a chain of its children.

    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state

A `forward` like this one, which has no branch and names nothing but the module's own children, does
the same on every call. One call with stand-ins for the children tells what that is. Any other is
left alone: a reader of its code would have to know what all else in it does.
"""

import dis
import inspect
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

from torch import nn

from ..core.model import FUSED, runs
from ..models.stack import RecurrentSequential


def chain_of(model: nn.Module) -> list[tuple[nn.Module, bool]] | None:
    """The children that `model(inputs, state)` calls one after another, and which has the state.

    `None` where it is anything else than that.
    """
    forward = getattr(type(model), "forward", None)
    children = dict(model.named_children())
    if not isinstance(forward, FunctionType) or type(model).__call__ is not nn.Module.__call__:
        return None
    if not _is_straight(forward.__code__, frozenset(children)):
        return None
    if any(getattr(model, name) is not child for name, child in children.items()):
        return None
    return _Recorder(children).of(forward)


@lru_cache(maxsize=128)
def _is_straight(code: CodeType, children: frozenset[str]) -> bool:
    """Whether `forward(self, inputs, state)` has no branch, and names its children alone."""
    if code.co_argcount != 3 or code.co_kwonlyargcount:
        return False
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return False
    if code.co_freevars or code.co_cellvars or code.co_exceptiontable:
        return False
    if not children.issuperset(code.co_names):
        return False
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasjrel:
            return False
        if step.opcode in dis.hasname and step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            return False
    return True


class _Recorder:
    """Notes the calls of children, each of which must take what the one before it gave."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        self.links: list[tuple[nn.Module, bool]] = []
        self.last = object()  # what the next child takes
        self.state = object()
        noting = {name: self._noting(child) for name, child in children.items()}
        self.stand_ins = SimpleNamespace(**noting)  # for the module: it has nothing else

    def of(self, forward: Callable[..., Any]) -> list[tuple[nn.Module, bool]] | None:
        try:
            given = forward(self.stand_ins, self.last, self.state)
        except Exception:  # something else was done to what stood in
            return None
        if type(given) is not tuple or list(map(id, given)) != [id(self.last), id(self.state)]:
            return None
        if [recurrent for _, recurrent in self.links].count(True) != 1:
            return None
        return self.links

    def _noting(self, child: nn.Module) -> Callable[..., Any]:
        def call(inputs: object, state: object = None) -> Any:
            if inputs is not self.last:
                raise TypeError
            self.last = object()
            self.links.append((child, state is not None))
            if state is None:
                return self.last
            if state is not self.state or not _gives_a_pair(child):
                raise TypeError
            self.state = object()
            return self.last, self.state

        return call


def _gives_a_pair(child: nn.Module) -> bool:
    """Whether it is known to give outputs and a state, and no third."""
    return type(child) is RecurrentSequential or runs(child, *FUSED)
