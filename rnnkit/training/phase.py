"""What phases share: a batch taken apart, a state carried on, the loop around them."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import Named, Refusal, asked, in_words
from ..core.layout import all_lengths, as_sequences, between, check_state, extent
from ..core.model import (
    call_model,
    check_model,
    check_one_way,
    encoded,
    evaluating,
    restart_rows,
    unwrap,
)
from ..core.state import State, detach
from ..data.batches import SequenceBatch, move
from ..generation.feedback import Feedback, check_feedback
from ..generation.rollouts import Rollout
from ..generation.samplers import NextInput, check_sampler
from ..losses.base import Scored, SequenceLoss
from ..losses.plain import as_loss
from ..losses.total import Total
from .forms import check_count, check_form, check_read, updated_by
from .ranks import ranks_of
from .rng import rng_state, set_rng_state

Loss = SequenceLoss | Callable[..., Any]


@dataclass(slots=True)
class StepState:
    """What a step was given and what came of it.

    >>> import torch
    >>> from rnnkit import BPTTValidationPhase, Learner, seq2seq_loss
    >>> model = torch.nn.GRU(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, seq2seq_loss(torch.nn.MSELoss()), optimizer)
    >>> step = learner.step(BPTTValidationPhase(nfeedback=3), torch.ones(11, 4, 1))
    >>> step.outputs.shape, step.loss_by_step.shape
    (torch.Size([10, 4, 1]), torch.Size([10]))

    Attributes:
        inputs: `(T, B, *F)`, or a dict of such sequences.
        targets: `(T, B, *Y)`, or `(B, *Y)` with `seq2one_loss`.
        lengths: int64 CPU `(B,)`, or `None`.
        weights: of the steps, `(T, B)`, or `None`.
        outputs: `(T, B, *O)`, without gradient; from `LossBegin` to `WindowEnd` those of the
            window.
        loss: scalar tensor, without gradient.
        weight: the steps, or sequences, that the loss is given; of them it may ignore some.
        open_loss: validation: the loss of the driven steps.
        closed_loss: validation: the loss, or the score, of the steps that the model fed itself.
        loss_by_step: validation: `(T,)`, where it was asked for; NaN where no step was scored.
        totals: what an epoch adds up: name to sum and weight.
        known_targets: the targets before they were moved to the model's device.
    """

    inputs: Any
    targets: Any
    lengths: Tensor | None = None
    weights: Tensor | None = None
    outputs: Any = None
    loss: Tensor | None = None
    weight: int = 0
    open_loss: Tensor | None = None
    closed_loss: Tensor | None = None
    loss_by_step: Tensor | None = None
    totals: dict[str, Total] = field(default_factory=dict[str, Total])
    known_targets: Any = None

    def keep(self, name: str, total: Total) -> None:
        """Notes a loss by its name, and its total for the epoch."""
        self.totals[name] = total
        setattr(self, name, total.mean())

    def scored_by(self, loss: SequenceLoss, read: Tensor | None) -> Scored:
        """What of the step a loss looks at, where so many steps of each row came before."""
        return loss.over(
            self.targets,
            *extent(self.inputs),
            self.lengths,
            self.weights,
            read=read,
            known=self.known_targets,
            came=Named("inputs", self.inputs),
        )


class Loop:
    """What a phase runs in: the three objects of a plain PyTorch loop.

    Attributes:
        model: as it was given; of a DistributedDataParallel the model inside it.
        ranks: the processes that train the model together; `None` where it is one.
        current: the [StepState][rnnkit.StepState] of the step, as far as it has come.
        device: where each batch is moved; `None` moves nothing.
        scaler: what keeps the gradients of a loss in float16 above 0; `None` in another dtype.
    """

    def __init__(self, model: Any, loss: Loss, optimizer: Any) -> None:
        self.ranks = ranks_of(model)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.device: torch.device | None = None
        self.scaler: torch.amp.GradScaler | None = None
        if self.ranks is not None:
            self.model = self.ranks.module
            self.device = self.ranks.device
        self.current: StepState | None = None

    @property
    def loss(self) -> SequenceLoss:
        """What the phases ask; any function may be put in its place."""
        return self._loss

    @loss.setter
    def loss(self, loss: Loss) -> None:
        self._loss = as_loss(loss)

    def modules(self) -> list[Any]:
        """What has weights: the model, and the loss's own modules."""
        return [self.model, *self.loss.modules()]

    def trained(self) -> list[nn.Module]:
        """The model, the loss's modules, and what the optimizer updates beside them."""
        modules = nn.ModuleList(self.modules())
        known = set(modules.parameters())
        others = [other for other in updated_by(self.optimizer) if other not in known]
        if others:  # a function that is the loss may read them
            modules.append(nn.ParameterList(others))
        return list(modules)

    def emit(self, event: str) -> None:
        """Tell the callbacks."""

    def context(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under."""
        return nullcontext()


@dataclass(slots=True)
class Work:
    """A step at work: its batch taken apart, the state it starts from, and what is scored."""

    loop: Loop
    step: StepState
    carried: State  # of the batch before, or made of a source
    restart: Tensor | None  # (B,): the rows to which that state does not belong
    scored: Scored
    rollout: Rollout
    mask: Tensor | None = None  # (T, B): where the model is fed its own output

    def start(self) -> State:
        """The state before the first step; rows that start afresh have the model's as it is now."""
        return restart_rows(self.loop.model, self.carried, self.restart)


class Phase:
    """What both phases share: a batch taken apart, and a state carried from batch to batch."""

    name = "phase"
    trains = False

    def __init__(
        self, sampler: NextInput, stateful: bool, feedback: Feedback | None = None
    ) -> None:
        if feedback is not None:
            check_feedback(feedback)
        check_sampler(sampler)
        self.sampler = sampler
        self.stateful = stateful
        self.feedback = feedback
        self.carried: State = None  # the state after the last batch
        self.read: Tensor | None = None  # (B,): steps of each row that came before, for a warmup
        self.updates = 0  # training steps made
        self._training: object = None  # the one it belongs to
        self._tried = True  # whether the model takes what is carried: what was loaded is tried

    @asked(lambda phase: type(phase).__name__)
    def __call__(self, model: Any, loss: Loss, batch: Any, optimizer: Any = None) -> StepState:
        """One step in a plain PyTorch loop, without a Learner."""
        check_model(model)
        if self.trains:
            check_optimizer(optimizer)
        return self.run(Loop(model, loss, optimizer), batch)

    def run(self, loop: Loop, batch: Any) -> StepState:
        """One step for a loop."""
        raise NotImplementedError

    def finish(self, loop: Loop) -> None:
        """What is left to do after the last batch of an epoch."""

    def belong_to(self, training: object) -> None:
        """A fit begins: in another training a schedule begins anew."""
        if self._training is not None and self._training is not training:
            self.updates = 0
        self._training = training

    def reset(self) -> None:
        """Forget the carried state: the next batch starts afresh."""
        self.carried = None
        self.read = None

    @property
    def steps(self) -> int:
        """Training steps made, which a schedule of feedback is asked with."""
        return self.updates

    def generators(self) -> list[torch.Generator | None]:
        """Those that this phase draws from, where it has its own."""
        return [getattr(part, "generator", None) for part in (self.feedback, self.sampler)]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = [None if own is None else own.get_state() for own in self.generators()]
        return {
            "updates": self.updates,
            "carried": self.carried,
            "read": self.read,
            "generators": kept,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        check_count("phase's updates", saved["updates"])
        check_form("phase's generators", saved["generators"], [None for _ in self.generators()])
        check_read(saved["read"])
        self.updates = saved["updates"]
        if self.stateful:
            self.carried = saved["carried"]
            self.read = saved["read"]
        self._tried = self.carried is None
        for generator, kept in zip(self.generators(), saved["generators"], strict=True):
            if generator is not None and kept is not None:
                generator.set_state(kept)

    def begin(self, loop: Loop, batch: Any) -> Work:
        """Take a batch apart, and tell that the step begins."""
        loss = loop.loss
        batch = SequenceBatch.of(batch)
        loss.check_model(loop.model)
        inputs, state = self._encode(loop, batch.inputs)
        inputs = as_sequences(inputs)
        targets = batch.targets
        if not loss.per_sequence:
            targets = as_sequences(targets, "targets")
        weights = batch.weights

        # What stands behind the longest row is neither run nor scored.
        lengths = batch.lengths
        if lengths is not None:
            time = max(1, int(lengths.max()))  # of a rank, every row may be without a document
            inputs = between(inputs, 0, time)
            if not loss.per_sequence:
                targets = between(targets, 0, time)
            if weights is not None and weights.ndim > 1:
                weights = weights[:time]

        step = StepState(inputs, targets, lengths, weights)
        self._align(loop, step)

        # What counts is read before the batch is moved: a device would have to be waited for.
        step.known_targets = step.targets
        step.inputs = move(step.inputs, loop.device)
        moved = move(step.targets, loop.device)
        step.targets = moved

        if self.stateful:
            state = self._carried_to(loop, state, step.inputs)
            if batch.restart is not None and self.read is not None:
                self.read = self.read.masked_fill(batch.restart, 0)
        loop.current = step
        loop.emit("StepBegin")
        if step.targets is not moved:  # a callback has put others there
            step.known_targets = step.targets
        rollout = Rollout(loop.model, self.sampler, carry=self.stateful)
        return Work(loop, step, state, batch.restart, step.scored_by(loss, self.read), rollout)

    def _align(self, loop: Loop, step: StepState) -> None:
        """Make the steps as many in all ranks, where the number of windows depends on them."""

    def _encode(self, loop: Loop, inputs: Any) -> tuple[Any, State]:
        """The inputs, and the state that a source makes where there is one."""
        if not isinstance(inputs, tuple):
            return inputs, None
        source, *rest = inputs
        with loop.context():
            return encoded(loop.model, (move(source, loop.device), *rest))

    def _carried_to(self, loop: Loop, state: State, inputs: Any) -> State:
        """The state carried from the batch before."""
        rows = extent(inputs)[1]
        fix = "make the model one-directional, or stateful=False."
        check_one_way(loop.model, ", stateful", "a state that goes on", fix)
        if state is not None:
            raise Refusal(
                "a source in the batch, stateful",
                "one place that the first state comes from",
                "stateful=False: each batch starts from its own source.",
            )
        fix = (
            "StreamLoader and DataLoader(drop_last=True) keep the batch size; phase.reset() starts "
            "afresh."
        )
        check_state(self.carried, rows, fix)
        if self.read is not None and len(self.read) != rows:
            raise Refusal(f"{len(self.read)} rows read for a batch of {rows}", "as many", fix)
        if not self._tried:
            self._try_carried(loop, inputs)
        return self.carried

    def _try_carried(self, loop: Loop, inputs: Any) -> None:
        """Refuse a carried state that was loaded and that the model does not take."""
        drawn = rng_state([])
        try:
            with torch.no_grad(), evaluating(loop.model), loop.context():
                call_model(unwrap(loop.model), inputs, self.carried)
        except Exception as error:
            came = f"a carried state that the model does not take ({type(error).__name__}: {error})"
            raise Refusal(came, "one of the model's own", "phase.reset() starts afresh.") from error
        finally:
            set_rng_state(drawn, [])
        self._tried = True

    def _carry(self, state: State, step: StepState) -> None:
        """Keep the state after a batch, and count the steps that each row has read."""
        if not self.stateful:
            return
        self.carried = detach(state)
        now = all_lengths(step.lengths, *extent(step.inputs))
        self.read = now if self.read is None else self.read + now


def check_phase(phase: Any, trains: bool | None = None) -> None:
    """Refuse what is no phase, and one that trains where it must not, or the other way round."""
    if not isinstance(phase, Phase):
        fix = "BPTTTrainingPhase() or BPTTValidationPhase()."
        raise Refusal(in_words(phase), "a phase", fix, TypeError)
    if trains is not None and phase.trains != trains:
        wanted = "a phase that does not train"
        if trains:
            wanted = "a phase that trains"
        fix = "BPTTTrainingPhase() trains, BPTTValidationPhase() does not."
        raise Refusal(in_words(phase), wanted, fix)


@functools.cache
def _needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether the optimizers of a class evaluate the loss themselves."""
    step = getattr(kind, "step", None)
    if step is None:  # one that hands on what it is asked for to another
        return False
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer that has to evaluate the loss itself, several times a step."""
    if optimizer is None:
        fix = "phase(model, loss, batch, optimizer); BPTTValidationPhase needs none."
        raise Refusal("no optimizer", "one over the model's parameters", fix)
    if isinstance(optimizer, type):
        fix = f"build it: {optimizer.__name__}(model.parameters(), ...)."
        raise Refusal(in_words(optimizer), "an optimizer", fix, TypeError)
    if not all(hasattr(optimizer, name) for name in ("param_groups", "step", "zero_grad")):
        fix = (
            "the order is Learner(model, loss, optimizer); of several optimizers make one with "
            "parameter groups: torch.optim.SGD([{...}, {...}])."
        )
        raise Refusal(f"optimizer = {in_words(optimizer)}", "one optimizer", fix, TypeError)
    if _needs_closure(type(optimizer)):
        raise Refusal(
            f"{type(optimizer).__name__}, whose step calls a closure several times",
            "an optimizer that makes a step from gradients that are there",
            "write the loop: def closure(): optimizer.zero_grad(); "
            "loss = loss_fn.on(model, inputs, targets); loss.backward(); return loss; "
            "then optimizer.step(closure).",
            TypeError,
        )
