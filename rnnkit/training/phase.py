"""What a phase is given and gives back: a host with its events, a batch taken apart, a state carried on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words
from ..core.layout import as_sequence, check_lengths, check_state
from ..core.model import check_model, check_one_way
from ..core.state import reset_rows
from ..data.batches import SequenceBatch, get_inout_seq
from ..generation.feedback import Feedback
from ..generation.samplers import NextInput
from ..losses import SequenceLoss

Loss = Callable[..., Tensor]


@dataclass(slots=True)
class StepState:
    """What a step was given and what came of it.

    Attributes:
        inputs: `(T, B, *F)`.
        targets: `(T, B, *Y)`, or `(B, *Y)` with `seq2one_loss`.
        lengths: int64 CPU `(B,)`, or `None`.
        outputs: `(T, B, *O)`, without gradient.
        loss: scalar, without gradient; a tensor, so that no step waits for it.
        weight: what an epoch weighs the loss by: valid steps, or sequences where the loss averages those.
        open_loss: validation: the loss of the driven steps; `None` where there are none.
        closed_loss: validation: the loss of the steps that the model fed itself.
        loss_by_step: validation: `(T,)`, the loss of each step alone.
        parts: what an epoch averages: name to value and weight.
    """

    inputs: Tensor
    targets: Any
    lengths: Tensor | None = None
    outputs: Tensor | None = None
    loss: Tensor | None = None
    weight: int = 0
    open_loss: Tensor | None = None
    closed_loss: Tensor | None = None
    loss_by_step: Tensor | None = None
    parts: dict[str, tuple[Tensor, int | Tensor]] = field(default_factory=dict)


class Host:
    """What a phase needs around it: the three objects of a plain PyTorch loop, to which a Learner adds the rest."""

    def __init__(self, model: Any, loss: Loss, optimizer: Any) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.device: torch.device | None = None
        self.state: StepState | None = None

    def emit(self, event: str) -> None:
        """Tell the callbacks."""

    def context(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under."""
        return nullcontext()


class Phase:
    """What both phases share: a batch taken apart, and a state carried from batch to batch."""

    name = "phase"

    def __init__(
        self, sampler: NextInput, stateful: bool, feedback: Feedback | None = None
    ) -> None:
        self.sampler, self.stateful, self.feedback = sampler, stateful, feedback
        self.state: Any = None
        self.steps = 0

    @asked(lambda phase: type(phase).__name__)
    def __call__(self, model: Any, loss: Loss, batch: Any, optimizer: Any = None) -> StepState:
        """One step in a plain PyTorch loop, without a Learner."""
        check_model(model)
        return self.run(Host(model, loss, optimizer), batch)

    def run(self, host: Host, batch: Any) -> StepState:
        """One step for a host."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the carried state: the next batch starts afresh."""
        self.state = None

    def _generators(self) -> list[torch.Generator | None]:
        return [getattr(part, "generator", None) for part in (self.feedback, self.sampler)]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: steps made, the carried state, and the generators' states."""
        kept = [
            None if generator is None else generator.get_state() for generator in self._generators()
        ]
        return {"steps": self.steps, "state": self.state, "generators": kept}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.steps, self.state = saved["steps"], saved["state"]
        for generator, kept in zip(self._generators(), saved["generators"], strict=True):
            if generator is not None and kept is not None:
                generator.set_state(kept)

    def begin(self, host: Host, batch: Any) -> tuple[StepState, Any]:
        """The batch as a StepState, the state it starts from, and the event StepBegin."""
        restart = batch.restart if isinstance(batch, SequenceBatch) else None
        inputs, targets, *rest = get_inout_seq(batch)
        lengths: Tensor | None = rest[0] if rest else None
        if host.device is not None:
            inputs, targets = _move(inputs, host.device), _move(targets, host.device)
        state: Any = None
        if isinstance(inputs, tuple) and len(inputs) == 3 and hasattr(host.model, "encode"):
            source, source_lengths, inputs = inputs
            with host.context():
                state = host.model.encode(source, source_lengths)
        inputs = as_sequence(inputs)
        time, rows = inputs.shape[:2]
        per_step = not reads_last(host.loss)
        if per_step:
            targets = as_sequence(targets, "targets")
            if targets.shape[:2] != (time, rows):
                came = f"inputs {in_words(inputs)} and targets {in_words(targets)}"
                fix = (
                    "one target for each step and row; a target a sequence goes with seq2one_loss."
                )
                raise Refusal(came, "the same T and B for both", fix)
        if lengths is not None:
            longest = int(
                check_lengths(lengths, time, rows, least=0 if restart is not None else 1).max()
            )
            inputs, targets = inputs[:longest], targets[:longest] if per_step else targets
        if self.stateful:
            fix = "make the model one-directional, or stateful=False."
            check_one_way(host.model, ", stateful", "a state that goes on", fix)
            if state is not None:
                fix = "stateful=False: each batch starts from its own source."
                raise Refusal(
                    "a source in the batch, stateful",
                    "one place that the first state comes from",
                    fix,
                )
            if self.state is not None:
                fix = "StreamLoader and DataLoader(drop_last=True) keep the batch size; phase.reset() starts afresh."
                check_state(self.state, rows, fix)
                state = self.state if restart is None else reset_rows(self.state, restart)
        host.state = StepState(inputs, targets, lengths)
        host.emit("StepBegin")
        return host.state, state


def reads_last(loss: Loss) -> bool:
    """Whether a loss has one target a sequence, so that there are no targets to cut into windows."""
    return isinstance(loss, SequenceLoss) and loss.average == "last"


def weight_of(loss: Loss, outputs: Tensor, lengths: Tensor | None) -> int:
    """What an epoch weighs a loss by: valid steps, or sequences where the loss averages those."""
    if isinstance(loss, SequenceLoss) and loss.average != "step":
        return outputs.shape[1] if lengths is None else int((lengths > 0).sum())
    return count_steps(outputs, lengths)


def count_steps(outputs: Tensor, lengths: Tensor | None) -> int:
    """The steps of all rows `(T, B)` that are not padding."""
    return outputs.shape[0] * outputs.shape[1] if lengths is None else int(lengths.sum())


def call_loss(loss: Loss, outputs: Tensor, targets: Any, lengths: Tensor | None) -> Tensor:
    """The scalar loss of a stretch; rows of length 0 take no part."""
    if lengths is not None and not lengths.all():
        rows, lengths = lengths.nonzero().squeeze(1), lengths[lengths > 0]
        outputs, targets = outputs[:, rows], targets[rows] if reads_last(loss) else targets[:, rows]
    value = loss(outputs, targets) if lengths is None else loss(outputs, targets, lengths)
    if not isinstance(value, Tensor) or value.ndim:
        fix = "average it: seq2seq_loss takes an unreduced loss and does."
        raise Refusal(f"a loss {in_words(value)}", "a scalar tensor", fix)
    return value


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        source, lengths, inner = value
        return _move(source, device), lengths, _move(inner, device)
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value
