"""What people hang on the events of a Learner."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._contract import refuse
from .checkpoint import Checkpoint
from .events import CancelFit
from .progress import History, ProgressBar

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["Checkpoint", "ClipGradients", "EarlyStopping", "History", "ProgressBar", "Scheduler", "StopOnNaN"]


def _average(learner: "Learner", name: str, call: str) -> float:
    averages = learner.averages
    if name not in averages:
        fix = "closed_loss is there with BPTTValidationPhase(nfeedback) for nfeedback >= 1."
        raise refuse(call, f"monitor={name!r}", f"one of {sorted(averages)}", fix)
    return float(averages[name])


class StopOnNaN:
    """Stops with an error at the first loss that is not a number, before the optimizer uses it.

    Raises:
        ValueError: by the step, with the epoch and the step where it happened.
    """

    def on_backward_begin(self, learner: "Learner") -> None:
        """Look at the loss."""
        loss = None if learner.state is None else learner.state.loss
        if loss is not None and not math.isfinite(float(loss)):
            came = f"a loss of {float(loss)} in epoch {learner.epoch_index + 1}, step {learner.step_index + 1}"
            fix = "clip the gradients with ClipGradients(1.0), lower the learning rate, or look for it in the data."
            raise refuse("StopOnNaN", came, "a finite loss", fix)


class ClipGradients:
    """Scales the gradients down where their norm, over all parameters, is above `max_norm`.

    Args:
        max_norm: above 0.

    Attributes:
        norm: the norm before clipping, of the last window; scalar tensor.

    Raises:
        ValueError: if `max_norm` is not above 0.

    Source: Pascanu, Mikolov and Bengio 2013, <https://arxiv.org/abs/1211.5063>.

    >>> callback = ClipGradients(1.0)
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise refuse("ClipGradients", f"max_norm = {max_norm}", "max_norm > 0", "1.0 is common.")
        self.max_norm = max_norm
        self.norm: torch.Tensor | None = None

    def on_backward_end(self, learner: "Learner") -> None:
        """Clip."""
        self.norm = nn.utils.clip_grad_norm_(learner.parameters, self.max_norm)


class EarlyStopping:
    """Ends the training when a loss has not improved for some epochs.

    Args:
        patience: epochs without a new best before the end, at least 1.
        monitor: `"loss"`, `"open_loss"` or `"closed_loss"`.
        phase: `"validation"` or `"training"`: whose loss.

    Attributes:
        best: the lowest value seen.

    Raises:
        ValueError: if `patience` is below 1 or there is no such phase; in training, if there is no validation to
            watch or, at the end of an epoch, no such loss.

    >>> callback = EarlyStopping(patience=3, monitor="closed_loss")
    """

    def __init__(self, patience: int, monitor: str = "loss", phase: str = "validation") -> None:
        if patience < 1:
            raise refuse("EarlyStopping", f"patience = {patience}", "patience >= 1", "wait an epoch.")
        if phase not in ("training", "validation"):
            fix = "validation is the one that tells of new data."
            raise refuse("EarlyStopping", f"phase={phase!r}", '"training" or "validation"', fix)
        self.patience, self.monitor, self.phase = patience, monitor, phase
        self.best, self.waited = math.inf, 0

    def on_fit_begin(self, learner: "Learner") -> None:
        """Look whether there is something to watch, and whether the training that is resumed had ended."""
        names = [phase.name for phase in learner.phases]
        if self.phase not in names:
            fix = f'learner.fit(epochs, train, valid), or EarlyStopping({self.patience}, phase="training").'
            raise refuse("EarlyStopping", f"no {self.phase} in this fit", f"one of {names}", fix)
        if self.waited >= self.patience:
            raise CancelFit

    def on_epoch_end(self, learner: "Learner") -> None:
        """Compare."""
        if learner.phase_name != self.phase:
            return
        value = _average(learner, self.monitor, "EarlyStopping")
        self.best, self.waited = (value, 0) if value < self.best else (self.best, self.waited + 1)
        if self.waited >= self.patience:
            raise CancelFit

    def on_fit_end(self, learner: "Learner") -> None:
        """Another `fit` may go on."""
        self.waited = 0 if self.waited >= self.patience else self.waited

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.best, self.waited = saved["best"], saved["waited"]


class Scheduler:
    """Steps a learning rate scheduler of PyTorch.

    Args:
        scheduler: any of `torch.optim.lr_scheduler`; `ReduceLROnPlateau` is given the monitored loss.
        per: `"epoch"` or training `"step"`.
        monitor: for `ReduceLROnPlateau`: which of the epoch's averages of the last phase.

    Raises:
        ValueError: if `per` is neither, or, at the end of an epoch, there is no such loss.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    >>> callback = Scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 10))
    """

    def __init__(self, scheduler: Any, per: str = "epoch", monitor: str = "loss") -> None:
        if per not in ("epoch", "step"):
            raise refuse("Scheduler", f"per={per!r}", '"epoch" or "step"', "most are stepped an epoch.")
        self.plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if self.plateau and per == "step":
            fix = "its patience counts epochs."
            raise refuse("Scheduler", 'ReduceLROnPlateau with per="step"', 'per="epoch"', fix)
        self.scheduler, self.per, self.monitor = scheduler, per, monitor

    def on_step_end(self, learner: "Learner") -> None:
        """Step, for a scheduler that counts training steps."""
        if self.per == "step" and learner.phase_name == "training":
            self.scheduler.step()

    def on_epoch_end(self, learner: "Learner") -> None:
        """Step, for a scheduler that counts epochs."""
        if self.per != "epoch" or not learner.last_phase:
            return
        if self.plateau:
            self.scheduler.step(_average(learner, self.monitor, "Scheduler"))
        else:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.scheduler.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.scheduler.load_state_dict(saved)
