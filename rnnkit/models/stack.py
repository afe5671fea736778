"""A stack of layers as one recurrent model; modules applied to each step."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..core.errors import Refusal, asked, in_words
from ..core.layout import as_sequence
from ..core.model import call_model, check_model
from ..core.state import State


def repack(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def _is_recurrent(module: nn.Module) -> bool:
    """Whether `forward` takes a state: its second parameter is called `state` or `hx`."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    return list(inspect.signature(module.forward).parameters)[1:2] in (["state"], ["hx"])


class RecurrentSequential(nn.Sequential):
    """`nn.Sequential` that threads the state through its recurrent members.

    A member is recurrent if the second parameter of its `forward` is called `state` or `hx`, as in `torch.nn.LSTM`.
    Every other member gets the whole `(T, B, *F)` at once, so that fused kernels stay fused. A call gives outputs
    `(T, B, *O)` and the state, a tuple with one entry for each recurrent member.

    Raises:
        TypeError: if a member is a bare cell, or a recurrent one gives no state.
        ValueError: if a member is built with `batch_first=True`, or a state does not fit.

    >>> import torch
    >>> model = RecurrentSequential(nn.Embedding(10, 4), nn.LSTM(4, 8), nn.Linear(8, 10))
    >>> outputs, state = model(torch.zeros(5, 2, dtype=torch.long))
    >>> outputs.shape, len(state)
    (torch.Size([5, 2, 10]), 1)
    """

    @asked("RecurrentSequential")
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self._recurrent: tuple[bool, ...] = ()
        for module, recurrent in zip(self, self.recurrent, strict=True):
            if recurrent or isinstance(module, nn.RNNBase | nn.RNNCellBase):
                check_model(module)

    @property
    def recurrent(self) -> tuple[bool, ...]:
        """Which members are recurrent."""
        if len(self._recurrent) != len(self):  # a member was appended or taken away
            self._recurrent = tuple(_is_recurrent(module) for module in self)
        return self._recurrent

    @property
    def takes_packed(self) -> bool:
        """Whether every recurrent member takes a `PackedSequence`."""
        members = [
            module for module, recurrent in zip(self, self.recurrent, strict=True) if recurrent
        ]
        return all(isinstance(m, nn.RNNBase) or getattr(m, "takes_packed", False) for m in members)

    @asked("RecurrentSequential")
    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = as_sequence(inputs) if isinstance(inputs, list) else inputs
        count = sum(self.recurrent)
        if state is not None and (not isinstance(state, tuple) or len(state) != count):
            fix = "pass the state that this model returned; it has one entry for each recurrent member."
            raise Refusal(f"a state = {in_words(state)}", f"a tuple of {count}", fix)
        return self.thread(self, inputs, state)

    def thread(
        self, members: Iterable[Callable[..., Any]], inputs: Any, state: State
    ) -> tuple[Any, State]:
        """What `forward` does, through `members` in place of this stack's own."""
        after: list[State] = []
        for module, recurrent in zip(members, self.recurrent, strict=True):
            if recurrent:
                before = None if state is None else state[len(after)]
                inputs, new = call_model(module, inputs, before)
                after.append(new)
            elif isinstance(inputs, PackedSequence) and not isinstance(module, PerStep):
                inputs = repack(inputs, module(inputs.data))
            else:
                inputs = module(inputs)
            if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
                fix = "call the second parameter of a recurrent member's forward `state`, so that it is given one."
                came = f"{in_words(inputs)} from {type(module).__name__}"
                raise Refusal(came, "outputs alone from a stateless member", fix, TypeError)
        return inputs, tuple(after)


class PerStep(nn.Module):
    """Applies a module that wants `(N, *F)`, such as `Conv2d` or `BatchNorm1d`, to every step of every row.

    It is called once, on the `T * B` steps: `(T, B, *F)` to `(T, B, *O)`, a `PackedSequence` to a `PackedSequence`.
    Raises `ValueError` for anything else.

    >>> import torch
    >>> PerStep(nn.Conv2d(1, 4, 3, padding=1))(torch.zeros(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @asked("PerStep")
    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, PackedSequence):
            return repack(inputs, self.module(inputs.data))
        if inputs.ndim < 2:
            raise Refusal(f"inputs {in_words(inputs)}", "(T, B, *F)", "add the batch as dim 1.")
        return self.module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
