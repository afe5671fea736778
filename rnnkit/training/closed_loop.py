"""What one validation step is: a driven part, then a closed loop in which the model is fed its own output."""

from typing import Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked
from ..core.model import evaluating
from ..generation.feedback import Feedback
from ..generation.rollouts import Roller
from ..generation.samplers import NextInput, identity
from .phase import Host, Phase, StepState, call_loss, reads_last, weight_of


class BPTTValidationPhase(Phase):
    """One validation step: a driven part, then a closed loop in which the model is fed its own output.

    The model reads the first `T - nfeedback` steps of each sequence and feeds itself through the last `nfeedback`:
    the inputs at these steps are not read. Runs in evaluation mode and without gradient, and leaves the model's mode
    and a training phase's carried state as they were.

    Events: `StepBegin`, `LossBegin`, `StepEnd`.

    `phase(model, loss, batch)`, or `learner.step(phase, batch)`, gives a [StepState][rnnkit.StepState] with `loss` over
    all steps, `open_loss` over the driven and `closed_loss` over the self-fed ones, and `loss_by_step (T,)`. With
    [seq2one_loss][rnnkit.seq2one_loss] there is only `loss`, and it as one of the two. In
    [issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144) one loss over both parts hid the closed loop's.

    Args:
        nfeedback: steps fed by the model, at the end; 0 is teacher forcing.
        sampler: maps the outputs of one step to the next input.
        stateful: carry the state from batch to batch, as in training; each epoch starts afresh.

    Raises:
        ValueError: if `nfeedback` is negative; by the step, if a sequence is not longer than it.

    >>> import rnnkit
    >>> model = rnnkit.RecurrentSequential(torch.nn.GRU(1, 8), torch.nn.Linear(8, 1))
    >>> phase = BPTTValidationPhase(nfeedback=5)
    >>> step = phase(model, rnnkit.seq2seq_loss(torch.nn.MSELoss()), torch.ones(21, 4, 1))
    >>> step.loss_by_step.shape
    torch.Size([20])
    """

    name = "validation"

    @asked("BPTTValidationPhase")
    def __init__(
        self, nfeedback: int = 0, sampler: NextInput = identity, stateful: bool = False
    ) -> None:
        super().__init__(sampler, stateful)
        if nfeedback < 0:
            fix = "0 validates with teacher forcing."
            raise Refusal(f"nfeedback = {nfeedback}", "nfeedback >= 0", fix)
        self.nfeedback = nfeedback

    @asked("BPTTValidationPhase")
    def run(self, host: Host, batch: Any) -> StepState:
        """One step for a host."""
        n = self.nfeedback
        with torch.no_grad(), evaluating(host.model):
            step, state = self.begin(host, batch)
            time, rows = step.inputs.shape[:2]
            lengths = torch.full((rows,), time) if step.lengths is None else step.lengths
            shortest = int(lengths[lengths > 0].min())
            if n >= shortest:
                fix = "the first step must be driven: nfeedback is at most T - 1."
                raise Refusal(
                    f"nfeedback = {n} and a sequence of {shortest} steps", "nfeedback < T", fix
                )
            mask = Feedback.last(n).mask(time, rows, step.lengths) if n else None
            with host.context():
                roller = Roller(host.model, self.sampler, self.stateful)
                step.outputs, state = roller.run(step.inputs, mask, state, step.lengths)
                host.emit("LossBegin")
                step.loss = call_loss(host.loss, step.outputs, step.targets, step.lengths)
                step.weight = weight_of(host.loss, step.outputs, step.lengths)
                step.parts = {"loss": (step.loss, step.weight)}
                if reads_last(host.loss):
                    step.open_loss, step.closed_loss = (None, step.loss) if n else (step.loss, None)
                else:
                    self._split(host, step, step.outputs, lengths)
            if self.stateful:
                self.state = state
        return step

    def _split(self, host: Host, step: StepState, outputs: Tensor, lengths: Tensor) -> None:
        """The loss of the driven part, of the closed loop, and of each step."""
        n, times, targets = self.nfeedback, torch.arange(len(outputs)).unsqueeze(1), step.targets

        def loss(outputs: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
            return call_loss(host.loss, outputs, targets, lengths)

        step.open_loss, step.parts["open_loss"] = step.loss, step.parts["loss"]
        if n:
            driven = None if step.lengths is None else (lengths - n).clamp(min=0)
            end = len(outputs) - n if driven is None else int(driven.max())
            step.open_loss = loss(outputs[:end], targets[:end], driven)
            step.parts["open_loss"] = step.open_loss, weight_of(host.loss, outputs[:end], driven)
            rows = lengths.nonzero().squeeze(1)
            closed = lengths[rows] - n + times[:n], rows
            step.closed_loss = loss(outputs[closed], targets[closed], None)
            step.parts["closed_loss"] = (
                step.closed_loss,
                weight_of(host.loss, outputs[closed], None),
            )
        here = lengths > times
        alone = [None if step.lengths is None else row.long() for row in here]
        step.loss_by_step = torch.stack(list(map(loss, outputs.split(1), targets.split(1), alone)))
        step.parts["loss_by_step"] = step.loss_by_step, here.sum(1).to(outputs.device)
