"""A model, a loss and an optimizer, with events around their steps: the loop that phases run in."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import Refusal, asked, at_least, check_kind, in_words
from ..core.model import Model, check_model, evaluating
from ..data.batches import SequenceBatch
from . import resume
from .bptt import BPTTTrainingPhase
from .closed_loop import BPTTValidationPhase
from .events import (
    Bracket,
    Cancel,
    CancelEpoch,
    CancelFit,
    CancelStep,
    Handlers,
    handlers,
    hushed,
    order_of,
)
from .metrics import Metrics, Tally, move_to, numbers_of
from .phase import Loop, Loss, Phase, StepState, check_optimizer, check_phase
from .resume import Place
from .rng import generators_of, rng_state, set_rng_state

_PLAINLY = nullcontext()  # can be entered again and again


@dataclass(eq=False)
class Pass:
    """What is known of an epoch while it runs, or of single steps of one phase."""

    heard: Handlers
    tally: Tally
    phase: Phase | None = None  # `None` before the first one
    fitting: bool = False  # whether it is one of a fit's own epochs
    last: bool = False  # whether the fit's epoch is over with it
    done: bool = False  # whether it came to its end
    cut: bool = False  # whether a `CancelFit` cut it short
    cancelled: bool = False  # whether a callback has cancelled the rest of it
    over: bool = False  # whether its end has been told
    exits: ExitStack = field(default_factory=ExitStack)  # closed when it ends, by an error too


class Learner(Loop):
    """Trains and validates a recurrent model, and tells its callbacks about each part of it.

    A callback is any object with a method for an event, `on_backward_end(learner)` for
    `BackwardEnd`. In order: `FitBegin EpochBegin StepBegin WindowBegin LossBegin BackwardBegin
    BackwardEnd WindowEnd StepEnd EpochEnd FitEnd`.

    >>> import torch
    >>> from rnnkit import Learner, RecurrentSequential, seq2seq_loss
    >>> model = RecurrentSequential(torch.nn.GRU(1, 8), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> learner = Learner(model, seq2seq_loss(torch.nn.MSELoss()), optimizer)
    >>> learner.fit(2, [torch.ones(21, 4, 1)]).epoch_index
    2

    Args:
        model: `outputs, state = model(inputs, state)`. With a `DistributedDataParallel` all its
            processes train one model, on the gradient of their joint batch; `learner.model` is what
            it is around.
        loss: made by [seq2seq_loss][rnnkit.seq2seq_loss] or [seq2one_loss][rnnkit.seq2one_loss], or
            any function of `(outputs, targets)` and, where there are lengths, `lengths`, to a
            scalar or a pair.
        optimizer: any `torch.optim.Optimizer` over the model's parameters whose `step` needs no
            closure.
        callbacks: called in this order; one that has an `order`, a number, before or after those of
            order 0.
        metrics: what is looked at beside the loss, by name, in both phases: losses, evaluated
            without gradient and averaged like the loss, or objects with `update`, `compute` and
            `reset`, as torchmetrics has them, which are given the scored steps side by side,
            outputs `(N, *O)` and targets `(N, *Y)`, or dicts of such; what a loss ignores by its
            `ignore_index` they must, too.
        device: where the model and each batch are moved; `None` moves nothing.
        autocast: mixed precision in the forward pass and the loss: `torch.bfloat16`, or
            `torch.float16`, whose gradients are scaled by a `torch.amp.GradScaler` as `scaler`.

    Attributes:
        current: the [StepState][rnnkit.StepState] of the step, as far as it has come.
        epoch_index: epochs completed.
        step_index: training steps completed in this epoch.
        averages: of the running epoch, by name; `phase_name` says of which phase.
        parameters: the model's.

    Raises:
        ValueError: if the model is built with `batch_first=True`, a callback's method names no
            event, or a metric has the name of a loss.
        TypeError: if the model is a bare cell, the optimizer needs a closure, or `autocast` is
            another dtype.
    """

    @asked("Learner")
    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        callbacks: Sequence[object] = (),
        *,
        metrics: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_kind("model", model, nn.Module, "a torch.nn.Module", "only a module has weights.")
        check_model(model)
        check_optimizer(optimizer)
        if autocast not in (None, torch.bfloat16, torch.float16):
            wanted = "torch.bfloat16, torch.float16 or None"
            fix = "None computes in the dtype of the weights."
            raise Refusal(f"autocast = {autocast}", wanted, fix, TypeError)
        super().__init__(model, loss, optimizer)
        if device is not None:
            self.device = torch.device(device)
        self._move(self.modules())
        if self.ranks is not None:
            self.ranks.give_firsts(self.trained()[1:])
        self.autocast = autocast
        self.parameters = list(model.parameters())
        if autocast is torch.float16:
            self.scaler = torch.amp.GradScaler(self._device_type)
        self.metrics = Metrics(metrics, self.device)
        if not isinstance(callbacks, Iterable):
            fix = "put brackets around it: [callback]."
            raise Refusal(in_words(callbacks), "a list of callbacks", fix, TypeError)
        self.callbacks = tuple(sorted(callbacks, key=order_of))
        self._handlers = handlers(self.callbacks)

        self.epoch_index: int = 0
        self.step_index: int = 0
        self.phases: tuple[Phase, ...] = ()
        self.loaders: tuple[Iterable[Any], ...] = ()
        self.now = Pass(self._handlers, Tally(self, self.metrics))
        self._busy = False  # then whatever begins was begun by a callback

        self.place = Place()  # for a checkpoint

    def _move(self, modules: list[nn.Module]) -> None:
        """Move them, and where that makes parameters anew, as on XLA, give the optimizer these."""
        before = [parameter for module in modules for parameter in module.parameters()]
        move_to(self.device, modules)
        after = [parameter for module in modules for parameter in module.parameters()]
        moved = dict(zip(before, after, strict=True))
        for group in self.optimizer.param_groups:
            group["params"][:] = [moved.get(parameter, parameter) for parameter in group["params"]]

    # What callbacks read

    @property
    def state(self) -> StepState | None:
        """The same as `current`."""
        return self.current

    @property
    def phase(self) -> Phase | None:
        """The running phase, `None` before the first one."""
        return self.now.phase

    @property
    def phase_name(self) -> str:
        """`"training"` or `"validation"`, empty before the first phase."""
        return "" if self.now.phase is None else self.now.phase.name

    @property
    def averages(self) -> dict[str, Tensor]:
        """Of the running epoch: `loss`, in validation `open_loss`, `closed_loss`, `loss_by_step`,
        the metrics. Of several processes each has its own share until `EpochEnd`."""
        return self.now.tally.means()

    @property
    def fitting(self) -> bool:
        """Whether the running epoch is one of a fit's own, and not one beside it."""
        return self.now.fitting and not self.now.over

    @property
    def last_phase(self) -> bool:
        """Whether the fit's epoch is over with the running phase, and was not cut short."""
        return self.now.last and not self.now.cut

    @property
    def cut_short(self) -> bool:
        """Whether a `CancelFit` has cut short the epoch that ends."""
        return self.now.cut

    def defer(self, close: Callable[[], object]) -> None:
        """Calls `close` when the running epoch is over, by an error too."""
        self.now.exits.callback(close)

    # What a phase and a bracket ask for

    def emit(self, event: str) -> None:
        """Calls every callback's method for `event`."""
        for handler in self.now.heard[event]:
            handler(self)

    def emit_to_all(self, event: str) -> Cancel | None:
        """`emit` of an end: what one callback cancels, the others hear; gives the widest cancel."""
        cancels: list[Cancel] = []
        for handler in self.now.heard[event]:
            try:
                handler(self)
            except Cancel as error:
                cancels.append(error)
                self.now.cancelled |= error.width > CancelStep.width
        return max(cancels, key=lambda cancel: cancel.width, default=None)

    def context(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under: autocast, where it was asked for."""
        if self.autocast is None:
            return _PLAINLY
        return torch.autocast(self._device_type, self.autocast)

    @property
    def _device_type(self) -> str:
        device = self.device or self.parameters[0].device
        return device.type

    # Training

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
            train: batches, each in any form that [get_inout_seq][rnnkit.get_inout_seq] takes.
            valid: batches to validate on.
            training: `BPTTTrainingPhase()` where it is `None`.
            validation: `BPTTValidationPhase()` where it is `None`.

        Raises:
            TypeError: if `train` or `valid` is one batch, or a phase is none.
            ValueError: if there are no batches; if called by a callback; if `training` does not
                train or `validation` does.
        """
        at_least("epochs", epochs, 0, "it counts passes over the data.")
        if self._busy:
            fix = "learner.epoch(phase, data) and learner.step(phase, batch) leave it alone."
            raise Refusal("fit, called by a callback,", "one fit at a time", fix)
        training = BPTTTrainingPhase() if training is None else training
        validation = BPTTValidationPhase() if validation is None else validation
        check_phase(training, trains=True)
        check_phase(validation, trains=False)
        parts: list[tuple[Phase, Iterable[Any]]] = [(training, train)]
        if valid is not None:
            parts.append((validation, valid))
        for phase, data in parts:
            _check_batches(data, phase.name)
        self.phases, self.loaders = zip(*parts, strict=True)
        for phase in self.phases:
            phase.belong_to(self.place)

        self.now = Pass(self._handlers, Tally(self, self.metrics))
        self._busy = True
        self.place.in_fit = True
        self.place.passes = 0
        target = self.place.start + int(epochs)  # a number of NumPy's could not be read back
        try:
            resume.put_what_waits(self)
            with Bracket(self, "Fit", CancelFit) as bracket:
                if bracket.begun:
                    self._epochs(target, parts)
            self.place.finish_fit(target, self.epoch_index)
        except BaseException:
            self.place.start = self.epoch_index  # another fit adds to what is made
            raise
        finally:
            self.place.in_fit = False
            self._busy = False
        return self

    def _epochs(self, target: int, parts: Sequence[tuple[Phase, Iterable[Any]]]) -> None:
        """The epochs up to `target`; none where the file that was loaded is of a later fit."""
        while self.epoch_index < target and not self.place.is_past:
            for phase, data in parts[self.place.passes :]:
                tally = Tally(self, self.metrics)
                now = Pass(self._handlers, tally, phase, fitting=True, last=phase is parts[-1][0])
                cancelled = self._run(now, phase, data)
                if cancelled is not None:
                    raise cancelled

    @asked("Learner")
    def epoch(self, phase: Phase, data: Iterable[Any]) -> dict[str, Tensor]:
        """One pass of `phase` over `data`, beside any fit; returns its averages.

        A fit's counts, averages, history and checkpoints are as before. Outside a fit the callbacks
        hear of it, and a `CancelFit` ends it. Where a callback calls it, they hear only what acts
        on a gradient, from `WindowBegin` to `WindowEnd` of training.

        Raises:
            TypeError: if `data` is one batch, or `phase` is none.
            ValueError: if there is no batch.
        """
        check_phase(phase)
        _check_batches(data, phase.name)
        with self._aside(phase, data):
            self._run(self.now, phase, data)
            return self.averages

    @asked("Learner")
    def step(self, phase: Phase, batch: Any) -> StepState | None:
        """One step of `phase` on `batch`; returns its [StepState][rnnkit.StepState].

        Called by a callback it changes nothing of what is running.

        Raises:
            TypeError: if `phase` is none.
        """
        check_phase(phase)
        if self._busy:
            with self._aside(phase, [batch]):
                return self._step(phase, batch)
        if self.now.over or self.now.phase is not phase:
            self.now = Pass(self._handlers, Tally(self, self.metrics), phase)
            phase.belong_to(self.place)
        if phase.trains:
            self.place.epoch_rng = {}  # an epoch that a fit left unfinished is not gone on with
        self._busy = True
        try:
            return self._step(phase, batch)
        finally:
            self._busy = False

    def _step(self, phase: Phase, batch: Any) -> StepState | None:
        with suppress(CancelStep):  # of what is left of it: the step ends, and counts
            self.now.tally.add(phase, phase.run(self, batch))
        if phase.trains:
            self.step_index += 1
        cancelled = self.emit_to_all("StepEnd")
        if cancelled is not None and not isinstance(cancelled, CancelStep):
            raise cancelled
        return self.current

    @contextmanager
    def _aside(self, phase: Phase, data: Iterable[Any]) -> Generator[None]:
        """What runs around this goes on afterwards as if nothing had been inside."""
        around = self.now
        current = self.current
        steps = self.step_index
        heard = self._handlers
        in_callback = self._busy
        with ExitStack() as afterwards:
            if in_callback:
                heard = hushed(heard, phase.trains)
                afterwards.enter_context(_restoring(phase))
            if in_callback and not phase.trains:
                # Looking at other data must not change what a training draws next.
                own = [*generators_of([data]), *phase.generators()]
                generators = [generator for generator in own if generator is not None]
                afterwards.callback(set_rng_state, rng_state(generators), generators)
            self.now = Pass(heard, Tally(self, self.metrics), phase)
            self._busy = True
            phase.belong_to(self.place)
            try:
                yield
            finally:
                self._busy = in_callback
                if in_callback or around.fitting:  # else nothing was there to go back to
                    self.now = around
                    self.current = current
                    self.step_index = steps

    def _run(self, now: Pass, phase: Phase, data: Iterable[Any]) -> CancelFit | None:
        """One pass over the data, from its begin to its end; gives back what cancels the fit."""
        self.now = now
        seen = self._begin(now, phase, data)
        try:
            with ExitStack() as now.exits:
                now.exits.enter_context(now.tally.holding())
                if phase.trains:
                    self.model.train()  # and so it stays
                else:
                    resting = evaluating(*self.modules())  # once, not at each step
                    now.exits.enter_context(resting)
                with Bracket(self, "Epoch", CancelEpoch, self._end) as bracket:
                    if bracket.begun:
                        self._batches(phase, data, seen)
        finally:
            now.over = True
        if now.fitting and now.done:
            self.place.passes += 1
            if now.last:  # the whole epoch is done with
                self.epoch_index += 1
                self.step_index = 0
                self.place.passes = 0
                self.place.epoch_rng = {}
        return bracket.fit_cancelled

    def _begin(self, now: Pass, phase: Phase, data: Iterable[Any]) -> int:
        """Sets out afresh, or where the training was cut short; gives the steps made before."""
        generators = generators_of([data])
        resuming = self.place.resuming
        if resuming is not None and now.fitting and phase.trains:
            set_rng_state(resuming.epoch_rng, generators)  # for the same batches in the same order
            now.tally.load_state_dict(resuming.tally, self.parameters[0].device)
            return self.step_index
        phase.reset()
        if now.fitting:
            self.place.at_pass = resume.fit_of(self)
        if phase.trains:
            self.step_index = 0
            if now.fitting:
                self.place.epoch_rng = rng_state(generators)
        return 0

    def _batches(self, phase: Phase, data: Iterable[Any], seen: int) -> None:
        if self.ranks is not None and phase.trains:
            self.ranks.check_same(
                "batches to train on",
                length_hint(data) or "any number",  # a DataLoader may have no length to tell
                "the same number in every rank",
                "StreamLoader and BucketSampler take rank= and ranks=; DistributedSampler splits "
                "any data set.",
            )
        batches = iter(data)
        for _ in islice(batches, seen):  # before the training was cut short
            pass
        self._restore_generators()
        empty = not seen
        for batch in batches:
            empty = False
            self._step(phase, batch)
        if empty:
            nothing = Refusal(
                f"no batches in epoch {self.epoch_index + 1}",
                f"at least one for {phase.name}",
                "a generator is spent after one epoch; pass a list or a DataLoader.",
            )
            if self.ranks is None:
                raise nothing
            self.now.tally.nothing = nothing
        with suppress(CancelStep):  # it leaves out the update of the last accumulated batches
            phase.finish(self)

    def _restore_generators(self) -> None:
        """After the batches of a resumed epoch that were seen: the generators as they were then."""
        if self.place.resuming is not None and self.now.fitting:
            set_rng_state(self.place.resuming.rng, generators_of(self.loaders))
            self.place.resuming = None

    def _end(self, cut: bool) -> None:
        """Before the end of an epoch is told."""
        self._restore_generators()
        self.now.tally.compute()
        self.now.cut = cut
        self.now.done = not cut

    # The whole training as a value

    @asked("Learner")
    def state_dict(self) -> dict[str, Any]:
        """The whole training in tensors and plain values: what a [Checkpoint][rnnkit.Checkpoint]
        writes.

        The weights, the loss's and all else that the optimizer updates, the states of the
        optimizer, phases and callbacks, the place in the epoch, and the generators of PyTorch,
        Python, NumPy and the data loaders.
        The tensors are not copied.

        Raises:
            ValueError: within an epoch, if a metric that counts has no `state_dict`.

        >>> import torch
        >>> from rnnkit import Learner
        >>> model = torch.nn.GRU(1, 1)
        >>> learner = Learner(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
        >>> learner.fit(2, [torch.ones(5, 3, 1)]).state_dict()["place"]
        (2, 0)
        """
        return resume.state_of(self)

    @asked("Learner")
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`; where it does not fit, everything is as it was.

        Outside a fit, the phases' states, the generators and the place in the epoch are put back
        when the next fit begins, which makes up the epochs that are missing.

        Raises:
            ValueError: if it is of another model, loss, optimizer or set of callbacks, phases or
                loaders; within an epoch of a fit.
        """
        resume.go_on_from(self, saved)


@contextmanager
def _restoring(phase: Phase) -> Generator[None]:
    """What the phase carries is afterwards what it was."""
    before = dict(vars(phase))
    try:
        yield
    finally:
        vars(phase).update(before)


def _check_batches(data: Any, name: str) -> None:
    if not isinstance(data, Iterable) and "__getitem__" not in dir(data):
        fix = "fit(epochs, train, valid), each a DataLoader or a list; phases by their names."
        raise Refusal(f"{in_words(data)} for {name}", "batches", fix, TypeError)
    one = isinstance(data, Tensor | SequenceBatch | dict)
    if isinstance(data, tuple):
        one = not all(isinstance(part, tuple | SequenceBatch) for part in data)
    if one:
        raise Refusal(
            f"{in_words(data)} for {name}, which is one batch",
            "batches: a DataLoader, or a list of them",
            "put brackets around it: [batch].",
            TypeError,
        )


@asked("evaluate")
def evaluate(
    model: Model,
    loss: Loss,
    data: Iterable[Any],
    phase: Phase | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The losses and metrics of a model over data: no optimizer, no callbacks, no events.

    >>> import torch
    >>> from rnnkit import evaluate, seq2seq_loss
    >>> model = torch.nn.GRU(1, 1)
    >>> losses = evaluate(model, seq2seq_loss(torch.nn.MSELoss()), [torch.ones(5, 3, 1)])
    >>> sorted(losses)
    ['loss', 'open_loss']

    Args:
        model: `outputs, state = model(inputs, state)`; it is evaluated where its parameters are, in
            evaluation mode.
        loss: as for [Learner][rnnkit.Learner].
        data: batches, each in any form that [get_inout_seq][rnnkit.get_inout_seq] takes.
        phase: `BPTTValidationPhase()` where it is `None`; its carried state stays as it was.
        metrics: as for [Learner][rnnkit.Learner].

    Returns:
        Floats by name: `loss`, and what else the phase and the metrics give; what is no single
            number, such as `loss_by_step (T,)`, stays a tensor.

    Raises:
        TypeError: if `data` is one batch, or `phase` is none.
        ValueError: if there are no batches, or the phase trains.
    """
    check_model(model)
    phase = BPTTValidationPhase() if phase is None else phase
    check_phase(phase, trains=False)
    _check_batches(data, "evaluation")
    loop = Loop(model, loss, None)
    if isinstance(model, nn.Module):
        loop.device = next((parameter.device for parameter in model.parameters()), None)
        move_to(loop.device, loop.loss.modules())
    tally = Tally(loop, Metrics(metrics, loop.device))
    resting = evaluating(*loop.modules())
    with tally.holding(), resting, torch.no_grad(), _restoring(phase):
        phase.reset()
        for batch in data:
            tally.add(phase, phase.run(loop, batch))
        tally.compute()
    means = tally.means()
    if not means:
        fix = "a generator is spent after one pass; pass a list or a DataLoader."
        raise Refusal("no batches", "at least one", fix)
    return {**means, **numbers_of(means)}
