"""The same phases under Lightning's Trainer: its loops, bar, checkpoints, precision and devices.

An extra: `pip install rnnkit[lightning]`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from torch import Tensor, nn

from ..core.errors import Refusal, asked
from ..core.model import check_model, encoded, run_model
from ..data.batches import Padded, SequenceBatch, move
from .bptt import BPTTTrainingPhase
from .closed_loop import BPTTValidationPhase
from .metrics import Metrics, Tally, move_to
from .phase import Loop, Loss, Phase, StepState, check_optimizer, check_phase
from .ranks import Ranks


class PhaseModule(LightningModule):
    """A model, a loss and an optimizer as a `LightningModule` whose steps are rnnkit's phases.

    A training step is a step of `training`, and the weights after `trainer.fit` are those of a
    [Learner][rnnkit.Learner]. Under `strategy="ddp"` sums and weights are added over processes.

    Logged at the end of each epoch are the losses of all its data, `train_loss`, `val_loss`,
    `val_open_loss`, `val_closed_loss`, and metrics alike, for `ModelCheckpoint(monitor=...)` and
    `EarlyStopping`.

    A checkpoint of Lightning's also has the phases' carried states and generators.

    The optimizer steps inside the phase, so gradients are clipped by the hook
    `on_before_optimizer_step`.

    Args:
        model: `outputs, state = model(inputs, state)`; `module.model` is the model to keep.
        loss: as for a Learner.
        optimizer: an optimizer of the model's parameters, or what else `configure_optimizers` may
            return, a dict with a scheduler for one. It is stepped by its `interval`; step a
            `ReduceLROnPlateau` in a hook.
        training: the phase of a training step, `BPTTTrainingPhase()` where it is `None`.
        validation: that of a validation and a test step, `BPTTValidationPhase()` where it is
            `None`.
        metrics: as for a Learner.

    Raises:
        TypeError: if the model cannot be called, or a phase is none.
        ValueError: if a phase of training does not train, or one of validation does; by `fit`, with
            `precision="16-mixed"` and other scaled gradients.

    >>> import torch
    >>> from rnnkit import PhaseModule, seq2seq_loss
    >>> model = torch.nn.GRU(1, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> module = PhaseModule(model, seq2seq_loss(torch.nn.MSELoss()), optimizer)
    >>> module.automatic_optimization
    False
    """

    @asked("PhaseModule")
    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Any,
        *,
        training: Phase | None = None,
        validation: Phase | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_model(model)
        self.automatic_optimization = False  # a step may have many updates, one for each window
        self.model = model
        self.optimizer = optimizer
        self.training_phase = BPTTTrainingPhase() if training is None else training
        self.validation_phase = BPTTValidationPhase() if validation is None else validation
        check_phase(self.training_phase, trains=True)
        check_phase(self.validation_phase, trains=False)
        own = optimizer.get("optimizer") if isinstance(optimizer, dict) else optimizer
        self.loop = Loop(model, loss, own)
        modules = self.loop.trained() if hasattr(own, "param_groups") else self.loop.modules()
        self.loss_modules = nn.ModuleList(modules[1:])
        self.metrics = Metrics(metrics)
        self._tallies: dict[str, Tally] = {}  # by the phase's name: a validation is in an epoch
        self._held: dict[str, ExitStack] = defaultdict(ExitStack)
        self._saved: dict[str, Any] | None = None  # phases of a checkpoint, until training starts

    def configure_optimizers(self) -> Any:
        """The optimizer that was given."""
        return self.optimizer

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The model's outputs and state."""
        return self.model(*arguments, **options)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """The batch as it is: a phase moves it."""
        return batch

    # Training

    @asked("PhaseModule")
    def on_train_start(self) -> None:
        """Goes on from a checkpoint, where there is one."""
        self._settle()
        check_optimizer(self.optimizers(use_pl_optimizer=False))
        if isinstance(self.trainer.train_dataloader, list | tuple | Tensor):
            fix = "DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)."
            raise Refusal("a list, to Lightning one of loaders", "one loader", fix, TypeError)
        for phase in self._phases.values():
            phase.belong_to(self.loop)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise Refusal(
                f'precision="{self.trainer.precision}", whose gradients are scaled',
                "gradients as they are",
                'Trainer(precision="bf16-mixed"), or "32-true".',
            )
        if self._saved is not None:
            for name, phase in self._phases.items():
                phase.load_state_dict(self._saved[name])
                phase.carried = move(phase.carried, self.device)
            self._saved = None

    def on_train_epoch_start(self) -> None:
        """Starts afresh."""
        self.training_phase.reset()
        self._count(self.training_phase)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """A step of the training phase."""
        self.loop.optimizer = self.optimizers()
        step = self._step(self.training_phase, batch)
        self._schedule("step", batch_idx + 1)
        if self.trainer.is_last_batch:  # before the validation of the epoch looks at the weights
            self.training_phase.finish(self.loop)
            self._schedule("epoch", self.current_epoch + 1)
        loss = step.loss
        if loss is not None:
            self.log("train_loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the averages."""
        self._tell("train", self.training_phase)

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        """Starts afresh."""
        self._settle()
        self.validation_phase.reset()
        self._count(self.validation_phase)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """A step of the validation phase."""
        self._step(self.validation_phase, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the averages."""
        self._tell("val", self.validation_phase)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the averages."""
        self._tell("test", self.validation_phase)

    # Prediction

    @asked("PhaseModule")
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The model's outputs and state for a batch's inputs, all steps of a bare sequence."""
        if not isinstance(batch, SequenceBatch | tuple):
            return self(move(batch, self.device))
        if isinstance(batch, Padded):
            batch = SequenceBatch(batch.sequences, lengths=batch.lengths)
        elif isinstance(batch, tuple):
            batch = SequenceBatch.of(batch)
        inputs, state = encoded(self.model, batch.to(self.device).inputs)
        return run_model(self.model, inputs, state, batch.lengths)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the phases carry."""
        checkpoint["rnnkit"] = {name: phase.state_dict() for name, phase in self._phases.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps it until the training starts."""
        self._saved = checkpoint.get("rnnkit")  # or it is another module's

    # How it is done

    @property
    def _phases(self) -> dict[str, Phase]:
        return {"training": self.training_phase, "validation": self.validation_phase}

    def _settle(self) -> None:
        """Where the Trainer has put the model, and how many processes share the data."""
        self.loop.device = self.device
        for counter in self.metrics.counters.values():
            if isinstance(counter, nn.Module):
                move_to(self.device, [counter])
        self.loop.ranks = None
        if dist.is_available() and dist.is_initialized() and self.trainer.world_size > 1:
            self.loop.ranks = Ranks(cast(dist.ProcessGroup, dist.group.WORLD), self.model)

    def _count(self, phase: Phase) -> Tally:
        """What an epoch adds up."""
        self._held[phase.name].close()  # of an epoch that was cut short
        tally = Tally(self.loop, self.metrics)
        self._tallies[phase.name] = tally
        self._held[phase.name].enter_context(tally.holding())
        return tally

    def _step(self, phase: Phase, batch: Any) -> StepState:
        tally = self._tallies.get(phase.name)
        if tally is None:  # an epoch that is resumed in its middle
            tally = self._count(phase)
        step = phase.run(self.loop, batch)
        tally.add(phase, step)
        return step

    def _schedule(self, interval: str, count: int) -> None:
        """Steps the schedulers, which Lightning leaves to a module that steps its optimizer."""
        for config in self.trainer.lr_scheduler_configs:
            plateau = isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if config.interval == interval and count % config.frequency == 0 and not plateau:
                self.lr_scheduler_step(config.scheduler, None)

    def _tell(self, prefix: str, phase: Phase) -> None:
        tally = self._tallies.get(phase.name)
        if tally is None:
            return
        tally.compute()
        self._held[phase.name].close()
        means = {f"{prefix}_{name}": mean for name, mean in tally.means().items()}
        numbers = {name: mean.float() for name, mean in means.items() if not mean.ndim}
        self.log_dict(numbers, prog_bar=True, sync_dist=self.loop.ranks is not None)
