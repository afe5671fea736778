"""A stack of layers as one recurrent model; modules applied to each step."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.rnn import PackedSequence

from ..core.errors import Refusal, asked, check_kind, in_words
from ..core.layout import as_sequence, extent, fill_padding, pack_like, parts_of, repack, unpack
from ..core.model import Declared, call_model, check_model, runs, untouched, unwrap
from ..core.signature import check_takes
from ..core.state import State

# Modules that do the same to every step, whatever stands before it.
# fmt: off
_OF_ONE_STEP = [
    kind.forward
    for kind in (
        nn.Identity, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm,
        nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout,
        nn.ReLU, nn.ReLU6, nn.RReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
        nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softsign,
        nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold,
    )
]
# fmt: on


class RecurrentSequential(nn.Sequential):
    """`nn.Sequential` that threads the state through its recurrent members.

    A member is recurrent if the second parameter of its `forward` is called `state` or `hx`. Every
    other member gets the whole `(T, B, *F)` at once. A call gives outputs `(T, B, *O)` and the
    state, a tuple with one entry for each recurrent member. The first member may take a dict of
    sequences, the last one may give one.

    A `PackedSequence` gives a `PackedSequence`. Members that do the same to every step (a linear
    layer, an embedding, an activation, [PerStep][rnnkit.PerStep]) see its steps without padding;
    any other stateless member sees `(T, B, *F)`, padded with each row's last step.

    Raises:
        TypeError: if a member is a bare cell, or a recurrent one gives no state.
        ValueError: if a member is built with `batch_first=True`, is a bare batch norm, or a state
            does not fit.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import RecurrentSequential
    >>> model = RecurrentSequential(nn.Embedding(10, 4), nn.LSTM(4, 8), nn.Linear(8, 10))
    >>> outputs, state = model(torch.zeros(5, 2, dtype=torch.long))
    >>> outputs.shape, len(state)
    (torch.Size([5, 2, 10]), 1)
    """

    @asked("RecurrentSequential")
    def __init__(self, *modules: nn.Module) -> None:
        for module in modules:  # nn.Sequential takes one dict, too
            fix = "a list of layers is given as RecurrentSequential(*layers)."
            check_kind("a member", module, (nn.Module, dict), "modules", fix)
        super().__init__(*modules)
        self._look_at_members()

    def _look_at_members(self) -> None:
        members = tuple(self)
        self._recurrent = tuple(map(_check_member, members))
        self._members = members

    @property
    @asked("RecurrentSequential")
    def recurrent(self) -> tuple[bool, ...]:
        """Which members are recurrent."""
        if tuple(self) != self._members:  # one was appended, taken away or replaced
            self._look_at_members()
        return self._recurrent

    @property
    def takes_packed(self) -> bool:
        """Whether every member gives a row of a `PackedSequence` what it gives the row alone."""
        # A subclass or a hook may do to the outputs what only a tensor takes.
        as_here = runs(self, RecurrentSequential.forward) and untouched(self)
        known = as_here or _sees_padding(Declared(self))
        return known and all(map(_takes_packed, self, self.recurrent))

    def initial_state(self, batch_size: int) -> State:
        """What a row starts from; an entry is `None` where it is zero."""
        return tuple(
            Declared(member).initial_state(batch_size)
            for member, recurrent in zip(self, self.recurrent, strict=True)
            if recurrent
        )

    @asked("RecurrentSequential")
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any, state: State = None
    ) -> tuple[Any, State]:
        if isinstance(inputs, list):
            inputs = as_sequence(inputs)
        which = self.recurrent
        count = sum(which)
        if state is not None and (not isinstance(state, tuple) or len(state) != count):
            raise Refusal(
                f"a state = {in_words(state)}",
                f"a tuple of {count}",
                "pass the state that this model returned; it has one entry for each recurrent "
                "member.",
            )

        after: list[State] = []
        for member, recurrent in zip(self, which, strict=True):
            if recurrent:
                before = None if state is None else state[len(after)]
                inputs, new = call_model(member, inputs, before)
                after.append(new)
            elif _is_packed(inputs):
                inputs = _call_packed(member, inputs)
            else:
                inputs = member(inputs)
            _check_outputs(member, inputs)
        return inputs, tuple(after)


class PerStep(nn.Module):
    """Applies a module that wants `(N, *F)`, such as `Conv2d` or `BatchNorm1d`, to every step.

    It is called once, on the `T * B` steps of all rows: `(T, B, *F)` to `(T, B, *O)`, a
    `PackedSequence` to a `PackedSequence`.

    Raises:
        ValueError: if the input is anything else, or the module does not give one output a step.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import PerStep
    >>> PerStep(nn.Conv2d(1, 4, 3, padding=1))(torch.zeros(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """

    takes_packed = True

    @asked("PerStep")
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        check_takes("module", module, "steps")
        if isinstance(unwrap(module), nn.RNNCellBase):
            check_model(module)  # each step would start from zeros
        self.module = module

    @asked("PerStep")
    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, PackedSequence):
            return repack(inputs, self._of_steps(inputs.data))
        if not isinstance(inputs, Tensor) or inputs.ndim < 2:
            raise Refusal(f"inputs {in_words(inputs)}", "(T, B, *F)", "add the batch as dim 1.")
        outputs = self._of_steps(inputs.flatten(0, 1))  # (T * B, *O)
        return outputs.reshape(inputs.shape[:2] + outputs.shape[1:])

    def _of_steps(self, steps: Tensor) -> Tensor:
        outputs = self.module(steps)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != steps.shape[:1]:
            raise Refusal(
                f"{in_words(outputs)} from {type(self.module).__name__} for {len(steps)} steps",
                "one output (N, *O) for each of N steps",
                "a recurrent layer goes into RecurrentSequential, a cell into Unroll.",
            )
        return outputs


def _check_member(member: nn.Module) -> bool:
    """Whether a member is recurrent; what cannot be a member is refused."""
    inner = unwrap(member)
    # The name tells: nearly any module takes a second argument of some kind.
    second = list(inspect.signature(inner.forward).parameters)[1:2]
    recurrent = second in (["state"], ["hx"])
    if recurrent or isinstance(inner, (nn.RNNBase, nn.RNNCellBase)):
        check_model(member)
    _check_norm(inner)
    return recurrent


def _check_norm(member: nn.Module) -> None:
    if runs(member, nn.Sequential.forward):
        for part in member.children():
            _check_norm(unwrap(part))
    if isinstance(member, (_NormBase, nn.GroupNorm)):
        name = type(member).__name__
        raise Refusal(
            f"{name}, which takes dim 1 for channels",
            "a module over (T, B, *F), in which dim 1 is the batch",
            f"PerStep({name}(...)) normalizes the features of every step.",
        )


def _check_outputs(member: nn.Module, outputs: Any) -> None:
    """A pair from a stateless member is most likely one whose state has another name."""
    if isinstance(outputs, tuple) and not isinstance(outputs, PackedSequence):
        raise Refusal(
            f"{in_words(outputs)} from {type(member).__name__}",
            "outputs alone from a stateless member",
            "call the second parameter of a recurrent member's forward `state`, so that it is "
            "given one.",
            TypeError,
        )


def _is_packed(inputs: Any) -> bool:
    if isinstance(inputs, Tensor):
        return False
    return any(isinstance(part, PackedSequence) for part in parts_of(inputs))


def _takes_packed(member: nn.Module, recurrent: bool) -> bool:
    declared = Declared(member)
    if recurrent or declared.takes_packed:
        return declared.takes_packed
    if _is_its_parts(member):
        return all(_takes_packed(part, False) for part in member.children())
    return _sees_one_step(member) or not _sees_padding(declared)


def _is_its_parts(member: nn.Module) -> bool:
    return runs(member, nn.Sequential.forward) and untouched(member)


def _sees_one_step(member: Any) -> bool:
    inner = unwrap(member)
    return runs(inner, *_OF_ONE_STEP) and untouched(inner)  # a hook may look at other steps


def _sees_padding(declared: Declared) -> bool:
    """Whether steps behind a row's end would change its outputs."""
    return declared.batch_statistics or declared.bidirectional


def _call_packed(member: Any, inputs: Any) -> Any:
    """A stateless member on packed steps: on the steps alone where it can be, else padded."""
    if _is_its_parts(member):
        for part in member:
            inputs = _call_packed(part, inputs)
        return inputs
    if Declared(member).takes_packed:
        return member(inputs)
    if _sees_one_step(member):
        return repack(inputs, member(inputs.data))
    return _call_padded(member, inputs)


def _call_padded(member: Any, inputs: Any) -> Any:
    """A member that may look at the steps before: it gets `(T, B, *F)`."""
    name = type(unwrap(member)).__name__
    if _sees_padding(Declared(member)):
        raise Refusal(
            f"a PackedSequence for {name}, whose outputs padding would change",
            "a member that takes a PackedSequence",
            "let its forward give a PackedSequence for one and declare takes_packed = True in its "
            "class, or apply it to each step with PerStep.",
        )
    padded, lengths = unpack(inputs)
    outputs = member(fill_padding(padded, lengths))  # (T, B, *O)
    for part in parts_of(outputs):
        if not isinstance(part, Tensor) or part.shape[:2] != extent(padded):
            raise Refusal(
                f"{in_words(part)} from {name} for inputs {in_words(padded)}",
                "outputs (T, B, *O) with the same T and B",
                "a stateless member keeps the steps and the rows.",
                TypeError,
            )
    return pack_like(outputs, parts_of(inputs)[0], lengths)
