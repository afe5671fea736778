"""A model, a loss and an optimizer, with events around their steps: a host for phases."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import Refusal, asked
from ..core.model import check_model, evaluating
from .bptt import BPTTTrainingPhase
from .closed_loop import BPTTValidationPhase
from .events import CancelEpoch, CancelFit, CancelStep, handlers
from .phase import Loop as Host
from .phase import Loss, Phase, StepState
from .rng import generators_of, rng_state, set_rng_state


class Learner(Host):
    """Trains and validates a recurrent model, and tells its callbacks about each part of it.

    A callback is any object with a method for an event, `on_backward_end(learner)` for `BackwardEnd`. In order:
    `FitBegin EpochBegin StepBegin WindowBegin LossBegin BackwardBegin BackwardEnd WindowEnd StepEnd EpochEnd FitEnd`;
    the window's five come for each window of a training step, of validation's only `LossBegin`.

    Args:
        model: `outputs, state = model(inputs, state)`.
        loss: made by [seq2seq_loss][rnnkit.seq2seq_loss] or [seq2one_loss][rnnkit.seq2one_loss], or any function of
            `(outputs, targets)` and, where there are lengths, `lengths`, to a scalar.
        optimizer: any `torch.optim.Optimizer` over the model's parameters.
        callbacks: called in this order.
        device: where the model and each batch are moved; nothing is moved where it is `None`.
        autocast: `torch.bfloat16` for mixed precision in the forward pass and the loss.

    Attributes:
        phase: the running phase; `phase_name` is `"training"` or `"validation"`.
        state: the [StepState][rnnkit.StepState] of the step, as far as it has come.
        averages: of the running epoch, weighted: `loss`, in validation `open_loss`, `closed_loss`, `loss_by_step`.
        epoch_index: epochs completed.
        step_index: training steps completed in this epoch.

    Raises:
        ValueError: if the model is built with `batch_first=True`, or a callback's method names no event.
        TypeError: if the model is a bare cell, or `autocast` is not `torch.bfloat16`.

    >>> import rnnkit
    >>> model = rnnkit.RecurrentSequential(nn.GRU(1, 8), nn.Linear(8, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> learner = Learner(model, rnnkit.seq2seq_loss(nn.MSELoss()), optimizer)
    >>> learner.fit(2, [torch.ones(21, 4, 1)]).epoch_index
    2
    """

    @asked("Learner")
    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        callbacks: Sequence[object] = (),
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_model(model)
        if autocast not in (None, torch.bfloat16):
            fix = "float16 needs a scaler around the optimizer; bfloat16 does not."
            raise Refusal(f"autocast = {autocast}", "torch.bfloat16 or None", fix, TypeError)
        super().__init__(model if device is None else model.to(device), loss, optimizer)
        self.device = None if device is None else torch.device(device)
        self.autocast = autocast
        self.callbacks = sorted(callbacks, key=lambda callback: getattr(callback, "order", 0))
        self.parameters = list(model.parameters())
        self.phase: Phase | None = None
        self.phases: tuple[Phase, ...] = ()
        self.loaders: tuple[Iterable[Any], ...] = ()
        self.sums: dict[str, tuple[Tensor, int | Tensor]] = {}
        self.epoch_index: int = 0
        self.step_index: int = 0
        self.last_phase = False  # of an epoch of `fit`
        self.epoch_rng: dict[str, Any] = {}  # the generators when the epoch began
        self.resume_rng: dict[str, Any] | None = (
            None  # and when the training that is resumed was killed
        )
        self._handlers = handlers(self.callbacks)

    @property
    def phase_name(self) -> str:
        """`"training"` or `"validation"`, empty before the first phase."""
        return "" if self.phase is None else self.phase.name

    @property
    def averages(self) -> dict[str, Tensor]:
        """The running epoch's averages, each weighted by what its steps averaged."""
        return {name: total.mean() for name, total in self.sums.items()}

    @property
    def state(self):
        return self.current

    def emit(self, event: str) -> None:
        """Call every callback's method for `event`."""
        for handler in self._handlers[event]:
            handler(self)

    def context(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under: autocast, where it was asked for."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast((self.device or self.parameters[0].device).type, self.autocast)

    @asked("Learner")
    def fit(
        self,
        epochs: int,
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
        training: Phase | None = None,
        validation: Phase | None = None,
    ) -> "Learner":
        """Train for `epochs` epochs, each followed by one of validation where there is data for it.

        Args:
            epochs: epochs to add to those made; a resumed training makes up what is missing.
            train: batches, in any form that [get_inout_seq][rnnkit.get_inout_seq] takes.
            valid: batches to validate on.
            training: `BPTTTrainingPhase()` where it is `None`.
            validation: `BPTTValidationPhase()` where it is `None`.

        Returns:
            The learner itself.
        """
        parts = [(BPTTTrainingPhase() if training is None else training, train)]
        if valid is not None:
            parts.append((BPTTValidationPhase() if validation is None else validation, valid))
        self.phases, self.loaders = zip(*parts, strict=True)
        target = self.epoch_index + epochs
        try:
            self.emit("FitBegin")
            while self.epoch_index < target:
                for phase, data in parts:
                    self.last_phase = phase is self.phases[-1]
                    self.epoch(phase, data)
        except CancelFit:
            pass
        finally:
            self.last_phase = False
        self._tell_all("FitEnd")
        return self

    @asked("Learner")
    def epoch(self, phase: Phase, data: Iterable[Any]) -> dict[str, Tensor]:
        """One pass of `phase` over `data`; returns the weighted averages.

        Raises:
            ValueError: if there is no batch.
        """
        self.phase, training = phase, phase.name == "training"
        seen = self.step_index if training and self.resume_rng is not None else 0
        if seen:
            set_rng_state(self.epoch_rng, generators_of([data]))
        else:
            phase.reset()
            self.sums, self.epoch_rng = {}, rng_state(generators_of([data]))
        if training:
            self.step_index = seen
            self.model.train()
        cancelled: CancelFit | None = None
        try:
            with nullcontext() if training else evaluating(self.model):
                self.emit("EpochBegin")
                batches = iter(data)
                for _ in zip(range(seen), batches, strict=False):  # before the training was killed
                    pass
                self._go_on()
                empty = not seen
                for batch in batches:
                    empty = False
                    self.step(phase, batch)
            if empty:
                fix = "a generator is spent after one epoch; pass a list or a DataLoader."
                came = f"no batches in epoch {self.epoch_index + 1}"
                raise Refusal(came, f"at least one for {phase.name}", fix)
        except CancelEpoch:
            pass
        except CancelFit as error:
            cancelled, self.last_phase = error, False
        self._go_on()
        cancelled = self._tell_all("EpochEnd") or cancelled
        if self.last_phase:
            self.epoch_index, self.step_index = self.epoch_index + 1, 0
        if cancelled is not None:
            raise cancelled
        return self.averages

    def _go_on(self) -> None:
        """After the batches of a resumed epoch that were seen before: the generators as they stood then."""
        if self.resume_rng is not None:
            set_rng_state(self.resume_rng, [])
            self.resume_rng = None

    def _tell_all(self, event: str) -> CancelFit | None:
        """`emit` of an end: what one callback cancels, the others hear all the same."""
        cancelled = None
        for handler in self._handlers[event]:
            try:
                handler(self)
            except CancelEpoch:
                pass
            except CancelFit as error:
                cancelled = error
        return cancelled

    def step(self, phase: Phase, batch: Any) -> StepState | None:
        """One step of `phase` on `batch`; returns its [StepState][rnnkit.StepState], kept as `learner.state`."""
        self.phase = phase
        try:
            for name, total in phase.run(self, batch).totals.items():
                self.sums[name] = self.sums[name] + total if name in self.sums else total
        except CancelStep:
            pass
        if phase.name == "training":
            self.step_index += 1
        with suppress(CancelStep):  # nothing is left to cancel
            self.emit("StepEnd")
        return self.current

    def _add(self, name: str, value: Tensor, weight: int | Tensor) -> None:
        value = value.float() if value.dtype.itemsize < 4 else value
        if name not in self.sums:
            self.sums[name] = value * weight, weight
            return
        total, weights = self.sums[name]
        if isinstance(weight, int):
            self.sums[name] = total.add(value, alpha=weight), weights + weight
            return
        parts = (total, torch.as_tensor(weights), value * weight, weight)
        longest = max(
            len(value), len(total)
        )  # a loss for each step, of batches of different length
        total, weights, value, weight = (F.pad(part, (0, longest - len(part))) for part in parts)
        self.sums[name] = total + value, weights + weight
