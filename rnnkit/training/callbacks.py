"""What people hang on the events of a Learner: what is shown, kept, clipped, stopped and scheduled."""

import csv
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..core.errors import Refusal, asked
from .events import CancelFit

if TYPE_CHECKING:
    from .learner import Learner


def _monitored(learner: "Learner", name: str) -> float:
    numbers = {key: float(value) for key, value in learner.averages.items() if not value.ndim}
    if name not in numbers:
        fix = "closed_loss is there with BPTTValidationPhase(nfeedback) for nfeedback >= 1."
        raise Refusal(f"monitor={name!r}", f"one of {sorted(numbers)}", fix)
    return numbers[name]


class ProgressBar:
    """Shows each epoch's steps, loss and steps per second: a bar in a terminal, a line per epoch elsewhere.

    Args:
        every: seconds between two looks at the loss, which on an accelerator waits for it.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every = every
        self._bar: Any = None
        self._start, self._seen, self._steps = 0.0, 0.0, 0

    def on_epoch_begin(self, learner: "Learner") -> None:
        self._start, self._seen, self._steps = time.perf_counter(), 0.0, 0
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=f"epoch {learner.epoch_index + 1} {learner.phase_name}", unit=" steps"
            )

    def on_step_end(self, learner: "Learner") -> None:
        self._steps += 1
        if self._bar is not None:
            self._bar.update()
            if time.perf_counter() - self._seen > self.every and "loss" in learner.sums:
                self._seen = time.perf_counter()
                self._bar.set_postfix(loss=f"{float(learner.averages['loss']):.4g}")

    def on_epoch_end(self, learner: "Learner") -> None:
        shown = "  ".join(
            f"{name} {float(value):.4g}"
            for name, value in learner.averages.items()
            if not value.ndim
        )
        if self._bar is None:
            speed = self._steps / (time.perf_counter() - self._start)
            print(
                f"epoch {learner.epoch_index + 1} {learner.phase_name}: {shown}  ({speed:.0f} steps/s)",
                flush=True,
            )
        else:
            self._bar.set_postfix_str(shown)
            self._bar.close()
            self._bar = None


class History:
    """Keeps every epoch's averages.

    Attributes:
        rows: one dict for each epoch and phase: `epoch` (from 1), `phase`, `loss` and what else was averaged.

    >>> History().as_dict()
    {}
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, learner: "Learner") -> None:
        scalars = {name: float(value) for name, value in learner.averages.items() if not value.ndim}
        self.rows.append({"epoch": learner.epoch_index + 1, "phase": learner.phase_name, **scalars})

    def as_dict(self) -> dict[str, list[Any]]:
        """Columns by name, with `None` where a row has no value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, with a header, to a CSV file."""
        columns = self.as_dict()
        with Path(path).open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`; an `ImportError` without pandas."""
        try:
            import pandas as pd  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "History.to_frame: wanted pandas. Likely fix: pip install pandas."
            ) from error
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.rows = saved["rows"]


class StopOnNaN:
    """Raises ValueError, naming epoch and step, at the first loss that is not finite, before the optimizer uses it."""

    @asked("StopOnNaN")
    def on_backward_begin(self, learner: "Learner") -> None:
        loss = None if learner.state is None else learner.state.loss
        if loss is not None and not loss.isfinite():
            came = f"a loss of {float(loss)} in epoch {learner.epoch_index + 1}, step {learner.step_index + 1}"
            fix = "clip the gradients with ClipGradients(1.0), lower the learning rate, or look for it in the data."
            raise Refusal(came, "a finite loss", fix)


class ClipGradients:
    """Scales the gradients down where their norm, over all parameters, is above `max_norm`.

    Attributes:
        norm: the norm before clipping, of the last window; scalar tensor.

    Raises:
        ValueError: if `max_norm` is not above 0.

    Source: Pascanu, Mikolov and Bengio 2013, <https://arxiv.org/abs/1211.5063>.

    >>> callback = ClipGradients(1.0)
    """

    @asked("ClipGradients")
    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise Refusal(f"max_norm = {max_norm}", "max_norm > 0", "1.0 is common.")
        self.max_norm = max_norm
        self.norm: torch.Tensor | None = None

    def on_backward_end(self, learner: "Learner") -> None:
        self.norm = torch.nn.utils.clip_grad_norm_(learner.parameters, self.max_norm)


class EarlyStopping:
    """Ends the training when a loss has not improved for some epochs; another `fit` may go on.

    Args:
        patience: epochs without a new best before the end, at least 1.
        monitor: `"loss"`, `"open_loss"` or `"closed_loss"`.
        phase: `"validation"` or `"training"`: whose loss.

    Attributes:
        best: the lowest value seen.

    Raises:
        ValueError: if `patience` or `phase` is not as above; by `fit`, if there is no such phase or loss to watch.

    >>> callback = EarlyStopping(patience=3, monitor="closed_loss")
    """

    @asked("EarlyStopping")
    def __init__(self, patience: int, monitor: str = "loss", phase: str = "validation") -> None:
        if patience < 1:
            raise Refusal(f"patience = {patience}", "patience >= 1", "wait an epoch.")
        if phase not in ("training", "validation"):
            fix = "validation is the one that tells of new data."
            raise Refusal(f"phase={phase!r}", '"training" or "validation"', fix)
        self.patience, self.monitor, self.phase = patience, monitor, phase
        self.best: float = math.inf
        self.waited = 0

    @asked("EarlyStopping")
    def on_fit_begin(self, learner: "Learner") -> None:
        names = [phase.name for phase in learner.phases]
        if self.phase not in names:
            fix = f'learner.fit(epochs, train, valid), or EarlyStopping({self.patience}, phase="training").'
            raise Refusal(f"no {self.phase} in this fit", f"one of {names}", fix)
        if self.waited >= self.patience:  # the training that is resumed had ended
            raise CancelFit

    @asked("EarlyStopping")
    def on_epoch_end(self, learner: "Learner") -> None:
        if (
            learner.phase_name == self.phase and learner.sums
        ):  # an epoch of which no step is left says nothing
            value = _monitored(learner, self.monitor)
            self.best, self.waited = (
                (value, 0) if value < self.best else (self.best, self.waited + 1)
            )
            if self.waited >= self.patience:
                raise CancelFit

    def on_fit_end(self, learner: "Learner") -> None:
        self.waited = 0 if self.waited >= self.patience else self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.best, self.waited = saved["best"], saved["waited"]


class Scheduler:
    """Steps a learning rate scheduler of PyTorch.

    Args:
        scheduler: any of `torch.optim.lr_scheduler`; `ReduceLROnPlateau` is given the monitored loss.
        per: `"epoch"` or training `"step"`.
        monitor: for `ReduceLROnPlateau`: which of the epoch's averages of the last phase.

    Raises:
        ValueError: if `per` is neither, or `"step"` for `ReduceLROnPlateau`; by `fit`, if there is no such loss.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    >>> callback = Scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 10))
    """

    @asked("Scheduler")
    def __init__(self, scheduler: Any, per: str = "epoch", monitor: str = "loss") -> None:
        if per not in ("epoch", "step"):
            raise Refusal(f"per={per!r}", '"epoch" or "step"', "most are stepped an epoch.")
        self.plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if self.plateau and per == "step":
            raise Refusal(
                'ReduceLROnPlateau with per="step"', 'per="epoch"', "its patience counts epochs."
            )
        self.scheduler, self.per, self.monitor = scheduler, per, monitor

    def on_step_end(self, learner: "Learner") -> None:
        if self.per == "step" and learner.phase_name == "training":
            self.scheduler.step()

    @asked("Scheduler")
    def on_epoch_end(self, learner: "Learner") -> None:
        if self.per == "epoch" and learner.last_phase and (learner.sums or not self.plateau):
            given = [_monitored(learner, self.monitor)] if self.plateau else []
            self.scheduler.step(*given)

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(saved)
