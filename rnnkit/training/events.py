"""The events of a training: when each comes, what is there then, and how what is left is cancelled.

A callback is any object with a method for an event: `on_backward_end(learner)` for `BackwardEnd`.

| event | when it comes | what is there |
|---|---|---|
| `FitBegin` | before the first epoch of a `fit` | `phases`, what a `Checkpoint` put back |
| `EpochBegin` | before a phase reads its first batch | `phase`; no averages yet |
| `StepBegin` | a batch has been taken apart | `current.inputs`, `targets`, `lengths`, `weights` |
| `WindowBegin` | training: before the model reads a window | `.grad` of the window before |
| `LossBegin` | between outputs and their loss | `current.outputs`, in training the window's |
| `BackwardBegin` | training: between loss and gradient | `current.loss`; the last `.grad` still |
| `BackwardEnd` | training: before the optimizer's step | `.grad`, to be looked at or changed |
| `WindowEnd` | training: after the optimizer's step | the new weights |
| `StepEnd` | the step is counted and averaged | `current` as a whole, `step_index`, `averages` |
| `EpochEnd` | after the last batch, or when cancelled | the `averages`, metrics among them |
| `FitEnd` | after the last epoch, or when cancelled | `epoch_index` |

The five from `WindowBegin` to `WindowEnd` come for each window of a training step; of them
validation has `LossBegin`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..core.errors import Refusal, in_words
from ..core.signature import check_takes

if TYPE_CHECKING:
    from .learner import Learner

EVENTS = (
    "FitBegin",
    "EpochBegin",
    "StepBegin",
    "WindowBegin",
    "LossBegin",
    "BackwardBegin",
    "BackwardEnd",
    "WindowEnd",
    "StepEnd",
    "EpochEnd",
    "FitEnd",
)
WINDOW = EVENTS[3:8]  # from WindowBegin to WindowEnd

Handler = Callable[[Any], object]
Handlers = dict[str, list[Handler]]


class Cancel(Exception):
    """What a callback raises to leave out the rest of something, the wider the more."""

    width = 0


class CancelStep(Cancel):
    """Raised by a callback: the rest of this step is left out, not averaged; `StepEnd` follows.

    >>> import torch
    >>> from rnnkit import CancelStep, Learner, seq2seq_loss
    >>> class SkipShort:
    ...     def on_step_begin(self, learner):
    ...         if len(learner.current.inputs) < 10:
    ...             raise CancelStep
    ...     def on_loss_begin(self, learner):
    ...         print(len(learner.current.inputs), "steps")
    >>> model = torch.nn.GRU(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, seq2seq_loss(torch.nn.MSELoss()), optimizer, [SkipShort()])
    >>> fitted = learner.fit(1, [torch.ones(5, 3, 1), torch.ones(21, 3, 1)])
    20 steps
    """

    width = 1


class CancelEpoch(Cancel):
    """Raised by a callback: the rest of this epoch is left out; `EpochEnd` follows.

    >>> import torch
    >>> from rnnkit import CancelEpoch, Learner, seq2seq_loss
    >>> class TwoSteps:
    ...     def on_step_end(self, learner):
    ...         print("step", learner.step_index)
    ...         if learner.step_index == 2:
    ...             raise CancelEpoch
    >>> model = torch.nn.GRU(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, seq2seq_loss(torch.nn.MSELoss()), optimizer, [TwoSteps()])
    >>> fitted = learner.fit(1, 9 * [torch.ones(5, 3, 1)])
    step 1
    step 2
    """

    width = 2


class CancelFit(Cancel):
    """Raised by a callback: training ends; `EpochEnd` and `FitEnd` follow.

    An epoch cut short is not counted.

    >>> import torch
    >>> from rnnkit import CancelFit, Learner, seq2seq_loss
    >>> class Enough:
    ...     def on_epoch_end(self, learner):
    ...         if learner.averages["loss"] < 10:
    ...             raise CancelFit
    >>> model = torch.nn.GRU(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, seq2seq_loss(torch.nn.MSELoss()), optimizer, [Enough()])
    >>> learner.fit(9, [torch.ones(5, 3, 1)]).epoch_index
    1
    """

    width = 3


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state is part of the training, and of its checkpoints."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: dict[str, Any], /) -> object: ...


def order_of(callback: object) -> int:
    return getattr(callback, "order", 0)


def stateful(callbacks: Sequence[object]) -> dict[str, Stateful]:
    """The callbacks that have a state, by their place and kind: `2 Scheduler(StepLR)`."""
    found: dict[str, Stateful] = {}
    for callback in callbacks:
        if isinstance(callback, Stateful):
            kind = getattr(callback, "kind", type(callback).__name__)
            found[f"{len(found)} {kind}"] = callback
    return found


def method_of(event: str) -> str:
    """The name of a callback's method: `on_backward_end` for `BackwardEnd`."""
    return "on" + re.sub(r"([A-Z])", r"_\1", event).lower()


def handlers(callbacks: Sequence[object]) -> Handlers:
    """The methods to call for each event, in the callbacks' order.

    At `FitBegin` those of a higher order come first: a `Checkpoint` puts the others' states back
    before they look.
    """
    for callback in callbacks:
        _check_methods(callback)
    if len(set(map(id, callbacks))) < len(callbacks):
        raise Refusal("one callback twice", "each once", "a schedule would be stepped twice.")
    found: Handlers = {}
    for event in EVENTS:
        # The sort is stable: among callbacks of one order the first given is the first called.
        asked = sorted(callbacks, key=order_of, reverse=event == "FitBegin")
        name = method_of(event)
        found[event] = [getattr(callback, name) for callback in asked if name in dir(callback)]
    return found


def _check_methods(callback: object) -> None:
    if isinstance(callback, type):
        came = f"{callback.__name__}, a class"
        raise Refusal(came, "callbacks", f"{callback.__name__}(), an object of it.", TypeError)
    names = {method_of(event) for event in EVENTS}
    for method in dir(callback):
        if not method.startswith("on_"):
            continue
        came = f"{type(callback).__name__}.{method}"
        if method not in names:
            raise Refusal(came, f"one of {', '.join(sorted(names))}", "rename it.")
        check_takes(came, getattr(callback, method), "learner")
    if names.isdisjoint(dir(callback)):
        fix = "give it a method for an event, such as on_step_end(self, learner)."
        raise Refusal(f"{in_words(callback)} that hears no event", "callbacks", fix, TypeError)


def hushed(handlers: Handlers, training: bool) -> Handlers:
    """What is heard of what a callback runs: of training what acts on a gradient, else nothing."""
    heard: Handlers = {event: [] for event in EVENTS}
    if training:
        heard |= {event: handlers[event] for event in WINDOW}
    return heard


@dataclass(eq=False)
class Bracket:
    """Owns begin, end and cancel of a fit or an epoch, by its `name`.

    The end is told to every callback, also where one of them raised `cancel`, and not where it
    ended in an error. A `CancelFit` within an epoch waits in `fit_cancelled` until the epoch's end
    has been told. Before that `ending` is called, with whether there was one.
    """

    learner: "Learner"
    name: str
    cancel: type[Exception]
    ending: Callable[[bool], None] | None = None
    begun: bool = False
    fit_cancelled: CancelFit | None = None

    def __enter__(self) -> "Bracket":
        try:
            self.learner.emit(self.name + "Begin")
            self.begun = True
        except Exception as error:
            if not self._cancels(error):
                self._check_narrower(error)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None and not self._cancels(error):
            return False
        if self.ending is not None:
            self.ending(self.fit_cancelled is not None)
        cancelled = self.learner.emit_to_all(self.name + "End")
        if isinstance(cancelled, CancelFit):  # of anything narrower nothing is left
            self.fit_cancelled = cancelled
        return True

    def _check_narrower(self, error: Exception) -> None:
        if isinstance(error, Cancel):
            kind = type(error).__name__
            part = kind.removeprefix("Cancel")
            wanted = f"one from {part}Begin to {part}End"
            fix = f"no {part.lower()} has begun; CancelFit ends the training from anywhere."
            raise Refusal(f"{kind} at {self.name}Begin", wanted, fix) from None

    def _cancels(self, error: BaseException) -> bool:
        if isinstance(error, CancelFit):
            self.fit_cancelled = error
            return True
        return isinstance(error, self.cancel)
