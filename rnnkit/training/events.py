"""The events of a training, and how a callback cancels what is left."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..core.errors import Refusal

EVENTS = (
    "FitBegin", "EpochBegin", "StepBegin", "WindowBegin", "LossBegin", "BackwardBegin", "BackwardEnd", "WindowEnd",
    "StepEnd", "EpochEnd", "FitEnd",
)  # fmt: skip


class CancelStep(Exception):
    """Raised by a callback: the rest of this step is left out, and it is not averaged; `StepEnd` follows."""


class CancelEpoch(Exception):
    """Raised by a callback: the rest of this epoch is left out; `EpochEnd` follows."""


class CancelFit(Exception):
    """Raised by a callback: training ends; `EpochEnd` and `FitEnd` follow, and an epoch cut short is not counted."""


def method_of(event: str) -> str:
    """The name of a callback's method: `on_backward_end` for `BackwardEnd`."""
    return "on" + re.sub(r"([A-Z])", r"_\1", event).lower()


def handlers(callbacks: Sequence[object]) -> dict[str, list[Callable[[Any], object]]]:
    """The methods to call for each event, in the callbacks' order; at `FitBegin`, where some resume, in the reverse."""
    names = {method_of(event) for event in EVENTS}
    for callback in callbacks:
        for method in dir(callback):
            if method.startswith("on_") and method not in names:
                came = f"{type(callback).__name__}.{method}"
                raise Refusal(came, f"one of {', '.join(sorted(names))}", "rename it.")
    resuming = sorted(callbacks, key=lambda callback: -getattr(callback, "order", 0))
    found: dict[str, list[Callable[[Any], object]]] = {}
    for event in EVENTS:
        methods = [
            getattr(c, method_of(event), None)
            for c in (resuming if event == "FitBegin" else callbacks)
        ]
        found[event] = [method for method in methods if method is not None]
    return found
