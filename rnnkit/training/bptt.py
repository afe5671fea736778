"""What one training step is: backpropagation through time, full or truncated."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked
from ..core.model import check_one_way
from ..core.state import State, detach
from ..generation.feedback import Feedback
from ..generation.rollouts import Roller
from ..generation.samplers import NextInput, identity
from .phase import Host, Phase, StepState, call_loss, count_steps, reads_last, weight_of


class BPTTTrainingPhase(Phase):
    """One training step by backpropagation through time, full or truncated.

    With `window = k2` and `stride = k1` it is truncated BPTT: every `k1` steps, the loss of these new steps is
    backpropagated through the last `k2` steps and the optimizer makes a step. What lies further back is run again
    from a state without history. With [seq2one_loss][rnnkit.seq2one_loss] there is one loss, at the end, and it is
    backpropagated through the last `window` steps of each sequence.

    Events: `StepBegin`, then for each window `WindowBegin`, `LossBegin`, `BackwardBegin`, `BackwardEnd`, (the
    optimizer's step,) `WindowEnd`, then `StepEnd`.

    `phase(model, loss, batch, optimizer)`, or `learner.step(phase, batch)`, gives a [StepState][rnnkit.StepState],
    whose loss weighs every window by its valid steps.

    Args:
        window: `k2`, steps that a gradient goes back; all of them where it is `None`.
        stride: `k1`, steps between two updates, at most `window`; equal to it where it is `None`.
        stateful: carry the state, detached, from batch to batch: row `i` goes on where row `i` ended. Rows that
            `SequenceBatch.restart` marks start from zero.
        feedback: which steps are fed by the model itself: scheduled sampling; none where it is `None`.
        sampler: maps the outputs of one step to the next input.

    Raises:
        ValueError: if `window` or `stride` is below 1 or `stride > window`; by the step, if shapes do not fit, a
            carried state has another batch size, or the loss is no scalar or does not depend on the parameters.

    Source: Williams and Peng 1990, BPTT(h; h'); Sutskever 2013, section 2.8.6, for the names k1 and k2.

    >>> import rnnkit
    >>> model = rnnkit.RecurrentSequential(torch.nn.GRU(1, 8), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> phase = BPTTTrainingPhase(window=5)
    >>> step = phase(model, rnnkit.seq2seq_loss(torch.nn.MSELoss()), torch.ones(21, 4, 1), optimizer)
    >>> step.outputs.shape, step.weight
    (torch.Size([20, 4, 1]), 80)
    """

    name = "training"

    @asked("BPTTTrainingPhase")
    def __init__(
        self,
        window: int | None = None,
        stride: int | None = None,
        stateful: bool = False,
        feedback: Feedback | None = None,
        sampler: NextInput = identity,
    ) -> None:
        super().__init__(sampler, stateful, feedback)
        for name, value in (("window", window), ("stride", stride)):
            if value is not None and value < 1:
                fix = (
                    f"{name}=None is full BPTT."
                    if name == "window"
                    else "None makes it equal to window."
                )
                raise Refusal(f"{name} = {value}", f"{name} >= 1", fix)
        if stride is not None and (window is None or stride > window):
            fix = "window = k2 is how far a gradient goes back, stride = k1 how often; k1 <= k2."
            raise Refusal(f"stride = {stride} and window = {window}", "stride <= window", fix)
        self.window, self.stride = window, window if stride is None else stride

    @asked("BPTTTrainingPhase")
    def run(self, host: Host, batch: Any) -> StepState:
        """One step for a host."""
        if host.optimizer is None:
            fix = "phase(model, loss, batch, optimizer); BPTTValidationPhase needs none."
            raise Refusal("no optimizer", "one over the model's parameters", fix)
        if getattr(host.model, "training", True) is False:
            host.model.train()
        step, state = self.begin(host, batch)
        time, rows = step.inputs.shape[:2]
        if self.stride is not None and self.stride < time:
            came = f" and stride = {self.stride} for {time} steps"
            fix = "window=None, or a one-directional model."
            check_one_way(host.model, came, "a model whose state goes on forward only", fix)
        mask = (
            None
            if self.feedback is None
            else self.feedback.mask(time, rows, step.lengths, self.steps)
        )
        roller = Roller(host.model, self.sampler, self.stateful)
        if self.window is not None and self.window < time and reads_last(host.loss):
            outputs, loss = self._last_window(host, step, state, mask, roller, self.window)
        elif self.stride is not None and self.stride < time and not reads_last(host.loss):
            outputs, loss = self._windows(host, step, state, mask, roller, self.stride)
        else:
            host.emit("WindowBegin")
            with host.context():
                outputs, state = roller.run(step.inputs, mask, state, step.lengths)
            outputs, loss = self._update(host, step, outputs, step.targets, step.lengths)
            if self.stateful:
                self.state = detach(state)
        self.steps += 1
        step.outputs, step.loss, step.weight = (
            outputs,
            loss,
            weight_of(host.loss, outputs, step.lengths),
        )
        step.parts = {"loss": (loss, step.weight)}
        return step

    def _windows(
        self,
        host: Host,
        step: StepState,
        state: State,
        mask: Tensor | None,
        roller: Roller,
        stride: int,
    ) -> tuple[Tensor, Tensor]:
        """A loss for the new steps of every window, its gradient through the window's steps."""
        time, back = len(step.inputs), (self.window or stride) - stride
        answers: list[Tensor] = []
        losses: list[Tensor] = []
        weights: list[int] = []
        start, previous = (
            0,
            None,
        )  # where the window's gradient begins; `state` and `previous` are what was there
        for new in range(0, time, stride):
            end = min(new + stride, time)
            split = (
                max(start, end - back) if end < time else end
            )  # where the next window's gradient will begin
            host.emit("WindowBegin")
            parts: list[Tensor] = []
            following = state, previous
            with host.context():
                for a, b in pairwise(sorted({start, split, end})):
                    fed = None if mask is None else mask[a:b]
                    part, state = roller.run(
                        step.inputs[a:b], fed, state, _between(step.lengths, a, b), previous
                    )
                    parts.append(part)
                    previous = None if mask is None else part[-1]
                    if b == split:
                        following = state, previous
            lengths, outputs = _between(step.lengths, new, end), torch.cat(parts)[new - start :]
            weights.append(count_steps(outputs, lengths))
            outputs, loss = self._update(host, step, outputs, step.targets[new:end], lengths)
            answers.append(outputs)
            losses.append(loss)
            start, (state, previous) = split, detach(following)
        if self.stateful:
            self.state = state
        total = torch.stack(losses) @ torch.tensor(
            weights, dtype=losses[0].dtype, device=losses[0].device
        )
        return torch.cat(answers), total / sum(weights)

    def _last_window(
        self,
        host: Host,
        step: StepState,
        state: State,
        mask: Tensor | None,
        roller: Roller,
        window: int,
    ) -> tuple[Tensor, Tensor]:
        """One loss at each row's end, its gradient through the row's last `window` steps."""
        time, batch = step.inputs.shape[:2]
        lengths = torch.full((batch,), time) if step.lengths is None else step.lengths
        ahead = (lengths - window).clamp(min=0)
        within, longest, rows = lengths - ahead, int(ahead.max()), torch.arange(batch)
        offsets = torch.arange(int(within.max())).unsqueeze(1)
        index, valid = (ahead + offsets).clamp(max=time - 1), offsets < within
        host.emit("WindowBegin")
        with (
            torch.no_grad(),
            host.context(),
        ):  # a context of its own: autocast keeps the casts it made without gradient
            fed = None if mask is None else mask[:longest]
            head, state = replace(roller, carry=True).run(step.inputs[:longest], fed, state, ahead)
        with host.context():
            fed = None if mask is None else mask[index, rows] & valid
            previous = head[(ahead - 1).clamp(min=0), rows]
            outputs, state = roller.run(
                step.inputs[index, rows], fed, detach(state), within, previous
            )
        outputs, loss = self._update(host, step, outputs, step.targets, within)
        if self.stateful:
            self.state = detach(state)
        everything = torch.cat([head, head.new_zeros(time - longest, *head.shape[1:])])
        everything[index[valid], rows.expand_as(index)[valid]] = outputs[valid]
        return everything, loss

    def _update(
        self, host: Host, step: StepState, outputs: Tensor, targets: Any, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a window, its gradient, and the optimizer's step."""
        with host.context():
            host.emit("LossBegin")
            loss = call_loss(host.loss, outputs, targets, lengths)
        if not loss.requires_grad:
            fix = "compute it from the outputs, without .detach(), .item() or torch.no_grad()."
            raise Refusal("a loss without gradient", "one that depends on the parameters", fix)
        step.loss = loss.detach()
        host.emit("BackwardBegin")
        host.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        host.emit("BackwardEnd")
        host.optimizer.step()
        host.emit("WindowEnd")
        return outputs.detach(), step.loss


def _between(lengths: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if lengths is None else (lengths - start).clamp(0, end - start)
