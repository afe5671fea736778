"""What people hang on the events of a Learner: what is shown, kept, clipped, stopped, scheduled."""

import copy
import csv
import math
import sys
import time
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import Refusal, asked, at_least, check_kind, check_number, in_words, one_of
from .events import CancelFit
from .forms import (
    check_count,
    check_form,
    check_rows,
    check_scheduler,
    is_pytorchs,
    updated_by,
)
from .metrics import RESERVED, numbers_of
from .ranks import is_first

if TYPE_CHECKING:
    from .learner import Learner


def _monitored(learner: "Learner", name: str) -> float:
    numbers = numbers_of(learner.averages)
    if name in learner.averages and name not in numbers:
        fix = "give the metric an average of its own: one number an epoch."
        came = f"monitor={name!r}, a tensor {in_words(learner.averages[name])}"
        raise Refusal(came, "a single number", fix)
    if name not in numbers:
        raise _no_average(name, numbers)
    return numbers[name]


def _no_average(name: str, known: Iterable[str]) -> Refusal:
    fix = "closed_loss is there with BPTTValidationPhase(nfeedback) for nfeedback >= 1."
    if name not in RESERVED:
        fix = f"Learner(..., metrics={{{name!r}: ...}}) has a metric of this name."
    return Refusal(f"monitor={name!r}", f"one of {sorted(known)}", fix)


def _title(learner: "Learner") -> str:
    number = f"epoch {learner.epoch_index + 1} " if learner.fitting else ""
    return number + learner.phase_name


class ProgressBar:
    """Shows each epoch's steps, averages and steps per second: a bar in a terminal, a line per
    epoch elsewhere.

    Of several processes the first shows it.

    >>> from rnnkit import ProgressBar
    >>> callback = ProgressBar(every=2.0)

    Args:
        every: seconds between two looks at the averages, which on an accelerator wait for it.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every = every
        self._bar: Any = None
        self._start = 0.0
        self._looked = 0.0
        self._steps = 0

    def on_epoch_begin(self, learner: "Learner") -> None:
        self._start = time.perf_counter()
        self._looked = 0.0
        self._steps = 0
        if is_first(learner.ranks) and sys.stderr and sys.stderr.isatty():  # a window has none
            self._bar = tqdm(desc=_title(learner), unit=" steps")
            learner.defer(self.close)

    def on_step_end(self, learner: "Learner") -> None:
        self._steps += 1
        if self._bar is None:
            return
        self._bar.update()
        if time.perf_counter() - self._looked > self.every:
            self._looked = time.perf_counter()
            shown = numbers_of(learner.averages)
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})

    def on_epoch_end(self, learner: "Learner") -> None:
        numbers = numbers_of(learner.averages)
        if not is_first(learner.ranks):
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if self._bar is None:
            speed = self._steps / (time.perf_counter() - self._start)
            print(f"{_title(learner)}: {shown}  ({speed:.0f} steps/s)", flush=True)
        else:
            self._bar.set_postfix_str(shown)
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class History:
    """Keeps the averages of every epoch of a fit, those that are single numbers.

    >>> from rnnkit import History
    >>> History().as_dict()
    {}

    Attributes:
        rows: a dict for each epoch and phase: `epoch` (from 1), `phase`, and the averages.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, learner: "Learner") -> None:
        if learner.fitting and not learner.cut_short:  # such an epoch does not count
            place = {"epoch": learner.epoch_index + 1, "phase": learner.phase_name}
            self.rows.append({**place, **numbers_of(learner.averages)})

    def as_dict(self) -> dict[str, list[Any]]:
        """Columns by name, with `None` where a row has no value."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys(row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, with a header, to a CSV file."""
        columns = self.as_dict()
        with Path(path).open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`; an `ImportError` without pandas."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]

        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        check_rows(saved["rows"])
        self.rows = [dict(row) for row in saved["rows"]]


class StopOnNaN:
    """Raises ValueError, naming epoch and step, at the first loss that is not finite, before the
    optimizer uses it.

    >>> from rnnkit import StopOnNaN
    >>> callback = StopOnNaN()
    """

    @asked("StopOnNaN")
    def on_backward_begin(self, learner: "Learner") -> None:
        loss = None if learner.current is None else learner.current.loss
        if loss is not None and not loss.isfinite():
            place = f"epoch {learner.epoch_index + 1}, step {learner.step_index + 1}"
            raise Refusal(
                f"a loss of {float(loss)} in {place}",
                "a finite loss",
                "clip the gradients with ClipGradients(1.0), lower the learning rate, or look for "
                "it in the data: a missing target may have the weight 0.",
            )


class ClipGradients:
    """Scales the gradients down where their norm, over all parameters that the optimizer updates,
    is above `max_norm`.

    >>> from rnnkit import ClipGradients
    >>> callback = ClipGradients(1.0)

    Attributes:
        norm: the norm before clipping, of the last window; scalar tensor.

    Raises:
        ValueError: if `max_norm` is not above 0.

    Source: Pascanu, Mikolov and Bengio 2013, <https://arxiv.org/abs/1211.5063>.
    """

    @asked("ClipGradients")
    def __init__(self, max_norm: float) -> None:
        check_kind("max_norm", max_norm, (Real, Tensor), "a number above 0", "1.0 is common.")
        if not max_norm > 0:
            raise Refusal(f"max_norm = {max_norm}", "max_norm > 0", "1.0 is common.")
        self.max_norm = max_norm
        self.norm: Tensor | None = None

    def on_backward_end(self, learner: "Learner") -> None:
        # Of what the optimizer has not, nobody empties the gradients: their norm would only grow.
        parameters = updated_by(learner.optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients)
        # Well below the limit PyTorch multiplies by 1, so as to wait for no device; a CPU is here.
        if self.norm.is_cpu and float(self.norm) + 1e-6 < 0.9 * self.max_norm:
            return
        torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, self.norm)


class _Watch:
    """One of a fit's averages, and the best it has been."""

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"],
        phase: Literal["training", "validation"],
        min_delta: float,
    ) -> None:
        one_of("mode", mode, ("min", "max"), "a loss is better lower, an accuracy higher.")
        fix = "validation is the one that tells of new data."
        one_of("phase", phase, ("training", "validation"), fix)
        fix = "0 counts every new best."
        check_number("min_delta", min_delta, lambda delta: delta >= 0, "min_delta >= 0", fix)
        self.monitor = monitor
        self.mode = mode
        self.phase = phase
        self.min_delta = min_delta
        self._training: object = None  # the one it watches; a deep copy's is its own
        self.forget()

    def forget(self) -> None:
        """Start afresh."""
        self.best = math.inf if self.mode == "min" else -math.inf

    def _begin(self, learner: "Learner", how: str) -> None:
        """As a fit begins: is there what is watched, and is it the learner of before?"""
        names = [phase.name for phase in learner.phases]
        if self.phase not in names:
            fix = f"learner.fit(epochs, train, valid), or {how}."
            raise Refusal(f"no {self.phase} in this fit", f"one of {names}", fix)
        metrics = (*learner.metrics.losses, *learner.metrics.counters)
        if self.monitor not in RESERVED and not str(self.monitor).startswith(metrics):
            raise _no_average(self.monitor, [*RESERVED[:2], *metrics])  # not after an epoch
        if self._training is not None and self._training is not learner.place:
            self.forget()
        self._training = learner.place

    def _look(self, learner: "Learner") -> bool | None:
        """Whether an epoch is a new best, which NaN never is; `None` where it does not count."""
        if not learner.fitting or learner.phase_name != self.phase or learner.cut_short:
            return None
        if not learner.averages:  # no step was left
            return None
        value = _monitored(learner, self.monitor)
        better = value > self.best + self.min_delta
        if self.mode == "min":
            better = value < self.best - self.min_delta
        if better:
            self.best = value
        return better

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        check_form("best", saved["best"], self.best)
        self.best = saved["best"]
        self._training = None  # it is of whatever learner comes next


class EarlyStopping(_Watch):
    """Ends the training when a loss or a metric has not improved for some epochs; another `fit` may
    go on.

    It ends after an epoch with its validation, whichever phase is watched. The weights stay those
    of the last epoch; [KeepBest][rnnkit.KeepBest] brings back the best.

    >>> from rnnkit import EarlyStopping
    >>> callback = EarlyStopping(3)
    >>> callback = EarlyStopping(3, monitor="accuracy", mode="max", min_delta=0.001)

    Args:
        patience: epochs without a new best before the end, at least 1.
        monitor: `"loss"`, `"open_loss"`, `"closed_loss"`, or the name of a metric.
        phase: `"validation"` or `"training"`: whose.
        mode: whether lower (`"min"`) or higher (`"max"`) is better.
        min_delta: what a new best must be better by.

    Attributes:
        best: the best value seen. Another learner starts afresh.

    Raises:
        ValueError: if an argument is not as above; by `fit`, if there is no such phase or value to
            watch.
    """

    @asked("EarlyStopping")
    def __init__(
        self,
        patience: int,
        monitor: str = "loss",
        phase: Literal["training", "validation"] = "validation",
        *,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ) -> None:
        at_least("patience", patience, 1, "wait an epoch.")
        super().__init__(monitor, mode, phase, min_delta)
        self.patience = patience

    def forget(self) -> None:
        super().forget()
        self.waited = 0

    @asked("EarlyStopping")
    def on_fit_begin(self, learner: "Learner") -> None:
        self._begin(learner, f'EarlyStopping({self.patience}, phase="training")')
        if self.waited >= self.patience:  # the training that is resumed had ended
            raise CancelFit

    @asked("EarlyStopping")
    def on_epoch_end(self, learner: "Learner") -> None:
        better = self._look(learner)
        if better is not None:
            self.waited = 0 if better else self.waited + 1
        if learner.fitting and learner.last_phase and self.waited >= self.patience:
            raise CancelFit

    def on_fit_end(self, learner: "Learner") -> None:
        if self.waited >= self.patience:  # another fit has all its patience
            self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        check_count("EarlyStopping.waited", saved["waited"])
        super().load_state_dict(saved)
        self.waited = saved["waited"]


class KeepBest(_Watch):
    """Keeps the weights of the best epoch, those of a loss that has some among them, and brings
    them back at the end of `fit`.

    A second `fit` goes on from them, and they stay the best until an epoch is better.

    >>> from rnnkit import KeepBest
    >>> callback = KeepBest("accuracy", mode="max")

    Args:
        monitor: `"loss"`, `"open_loss"`, `"closed_loss"`, or the name of a metric.
        mode: whether lower (`"min"`) or higher (`"max"`) is better.
        phase: `"validation"` or `"training"`: whose.
        min_delta: what a new best must be better by.

    Attributes:
        best: the best value seen. Another learner starts afresh.
        epoch: the epoch (from 1) in which it was seen; `None` before the first.

    Raises:
        ValueError: if an argument is not as above; by `fit`, if there is no such phase or value to
            watch.
    """

    @asked("KeepBest")
    def __init__(
        self,
        monitor: str = "loss",
        mode: Literal["min", "max"] = "min",
        phase: Literal["training", "validation"] = "validation",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, phase, min_delta)

    def forget(self) -> None:
        super().forget()
        self.epoch: int | None = None
        self.kept: list[dict[str, Any]] = []

    @asked("KeepBest")
    def on_fit_begin(self, learner: "Learner") -> None:
        self._begin(learner, 'KeepBest(phase="training")')

    @asked("KeepBest")
    def on_epoch_end(self, learner: "Learner") -> None:
        if self._look(learner):
            self.epoch = learner.epoch_index + 1
            self.kept = [copy.deepcopy(part.state_dict()) for part in learner.trained()]

    def on_fit_end(self, learner: "Learner") -> None:
        for part, weights in zip(learner.trained(), self.kept, strict=False):  # none at first
            part.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self.kept}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["epoch"] is not None:
            check_count("best epoch", saved["epoch"])
        super().load_state_dict(saved)
        self.epoch = saved["epoch"]
        self.kept = saved["weights"]


class Scheduler:
    """Steps a learning rate scheduler of PyTorch.

    >>> import torch
    >>> from rnnkit import Scheduler
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    >>> callback = Scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 10))

    Args:
        scheduler: any of `torch.optim.lr_scheduler`; `ReduceLROnPlateau` is given what is
            monitored.
        per: `"epoch"` of a fit, or training `"step"`: each batch, also of those accumulated.
        monitor: for `ReduceLROnPlateau`: which of the averages of the epoch's last phase.

    Raises:
        ValueError: if `per` is neither, or `"step"` for `ReduceLROnPlateau`; by `fit`, if there is
            no such average.
    """

    @asked("Scheduler")
    def __init__(
        self,
        scheduler: Any,
        per: Literal["epoch", "step"] = "epoch",
        *,
        monitor: str = "loss",
    ) -> None:
        one_of("per", per, ("epoch", "step"), "most are stepped an epoch.")
        steps = hasattr(scheduler, "step") and not isinstance(scheduler, type)
        if not steps or isinstance(scheduler, torch.optim.Optimizer):
            came = f"scheduler = {in_words(scheduler)}"
            fix = "torch.optim.lr_scheduler.StepLR(optimizer, 10), for one."
            raise Refusal(came, "a scheduler, which has a step()", fix, TypeError)
        self.plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if self.plateau and per == "step":
            came = 'ReduceLROnPlateau with per="step"'
            raise Refusal(came, 'per="epoch"', "its patience counts epochs.")
        self.scheduler = scheduler
        self.per = per
        self.monitor = monitor

    @property
    def kind(self) -> str:
        return f"Scheduler({type(self.scheduler).__name__})"

    @asked("Scheduler")
    def on_fit_begin(self, learner: "Learner") -> None:
        groups = getattr(self.scheduler, "optimizer", learner.optimizer).param_groups
        if not any(group is own for group in groups for own in learner.optimizer.param_groups):
            fix = "build it after the optimizer."
            raise Refusal("the schedule of another optimizer", "one of the learner's", fix)

    def on_step_end(self, learner: "Learner") -> None:
        if self.per == "step" and learner.phase_name == "training":
            self.scheduler.step()

    @asked("Scheduler")
    def on_epoch_end(self, learner: "Learner") -> None:
        if self.per == "step" or not learner.fitting or not learner.last_phase:
            return
        if not self.plateau:
            self.scheduler.step()
        elif learner.averages:  # an epoch of which every step was cancelled says nothing
            self.scheduler.step(_monitored(learner, self.monitor))

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        check_scheduler(saved, self.scheduler)
        if is_pytorchs(self.scheduler):  # it would take any name, and one of its methods' too
            known = self.scheduler.state_dict().keys()
            saved = {name: value for name, value in saved.items() if name in known}
        self.scheduler.load_state_dict(saved)
