"""What one training step is: backpropagation through time, full or truncated."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._contract import Sampler, State, is_bidirectional, refuse
from .feedback import Feedback
from .host import Host, Phase, StepState, call_loss, reads_last
from .losses import SequenceLoss
from .rollout import roll
from .samplers import identity
from .state import detach
from .validation import BPTTValidationPhase

__all__ = ["BPTTTrainingPhase", "BPTTValidationPhase", "StepState"]

Piece = tuple[Tensor, Tensor, int]


class BPTTTrainingPhase(Phase):
    """One training step by backpropagation through time, full or truncated.

    With `window = k2` and `stride = k1` it is truncated BPTT: every `k1` steps, the loss of these new steps is
    backpropagated through the last `k2` steps and the optimizer makes a step. What lies further back is run again
    from a state without history. With [seq2one_loss][rnnkit.seq2one_loss] there is one loss, at the end, and it is
    backpropagated through the last `window` steps of each sequence.

    Events: `StepBegin`, then for each window `WindowBegin`, `LossBegin`, `BackwardBegin`, `BackwardEnd`, (the
    optimizer's step,) `WindowEnd`, then `StepEnd`.

    Args:
        window: `k2`, steps that a gradient goes back; all of them where it is `None`.
        stride: `k1`, steps between two updates, at most `window`; equal to it where it is `None`.
        stateful: carry the state, detached, from batch to batch: row `i` goes on where row `i` ended. Rows that
            `SequenceBatch.restart` marks start from zero.
        feedback: which steps are fed by the model itself: scheduled sampling; none where it is `None`.
        sampler: maps the outputs of one step to the next input.

    Returns:
        By the call `phase(model, loss, batch, optimizer)`, or `learner.step(phase, batch)`: a
        [StepState][rnnkit.StepState]. Its loss weighs every window by its valid steps.

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

    def __init__(
        self,
        window: int | None = None,
        stride: int | None = None,
        stateful: bool = False,
        feedback: Feedback | None = None,
        sampler: Sampler = identity,
    ) -> None:
        super().__init__(sampler, stateful)
        for name, value in (("window", window), ("stride", stride)):
            if value is not None and value < 1:
                fix = f"{name}=None is full BPTT." if name == "window" else "None makes it equal to window."
                raise refuse("BPTTTrainingPhase", f"{name} = {value}", f"{name} >= 1", fix)
        if stride is not None and (window is None or stride > window):
            fix = "window = k2 is how far a gradient goes back, stride = k1 how often; k1 <= k2."
            came = f"stride = {stride} and window = {window}"
            raise refuse("BPTTTrainingPhase", came, "stride <= window", fix)
        self.window, self.stride, self.feedback = window, window if stride is None else stride, feedback

    def run(self, host: Host, batch: Any) -> StepState:
        """One step for a host."""
        model = host.model
        if host.optimizer is None:
            fix = "phase(model, loss, batch, optimizer); BPTTValidationPhase needs none."
            raise refuse("BPTTTrainingPhase", "no optimizer", "one over the model's parameters", fix)
        if getattr(model, "training", True) is False:
            model.train()
        step, state = self.begin(host, batch)
        time = len(step.inputs)
        if self.stride is not None and self.stride < time and is_bidirectional(model):
            fix = "window=None, or a one-directional model."
            came = f"a bidirectional model and stride = {self.stride} for {time} steps"
            raise refuse("BPTTTrainingPhase", came, "a model whose state goes on forward only", fix)
        mask = None
        if self.feedback is not None:
            mask = self.feedback.mask(time, step.inputs.shape[1], step.lengths, self.steps)
        last = reads_last(host.loss)
        if last and self.window is not None and self.window < time:
            pieces = self._last_window(host, step, state, mask)
        else:
            pieces = self._windows(host, step, state, mask, None if last else self.stride)
        outputs, losses, weights = zip(*pieces, strict=True)
        step.outputs = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        step.weight = sum(weights)
        loss = losses[0]
        if len(losses) > 1:
            loss = (torch.stack(losses) * torch.tensor(weights, device=loss.device)).sum() / step.weight
            if isinstance(host.loss, SequenceLoss) and host.loss.average == "sequence":
                step.weight = len(step.inputs[0]) if step.lengths is None else int((step.lengths > 0).sum())
        step.loss, step.parts = loss, {"loss": (loss, step.weight)}
        self.steps += 1
        return step

    def _windows(
        self, host: Host, step: StepState, state: State, mask: Tensor | None, stride: int | None
    ) -> Iterator[Piece]:
        time = len(step.inputs)
        stride = time if stride is None else stride
        back = 0 if self.window is None else self.window - stride
        start, previous = 0, None
        for new in range(0, time, stride):
            end = min(new + stride, time)
            host.emit("WindowBegin")
            with host.context():
                split = max(0, end - back) if end < time else end
                head: list[Tensor] = []
                if start < split < end:  # stop where the next window's gradient will begin
                    part, state, previous = self._part(host, step, mask, start, split, state, previous)
                    head.append(part)
                    kept = detach(state), detach(previous)
                    part, _, _ = self._part(host, step, mask, split, end, state, previous)
                    head.append(part)
                    start, (state, previous) = split, kept
                else:
                    part, after, last = self._part(host, step, mask, start, end, state, previous)
                    head.append(part)
                    if split > start:
                        start, state, previous = split, after, detach(last)
                    if end < time:
                        state = detach(state)
                outputs = torch.cat(head)[new - end :] if len(head) > 1 or len(head[0]) > end - new else head[0]
                targets = step.targets if end - new == time else step.targets[new:end]
                lengths = None if step.lengths is None else (step.lengths - new).clamp(0, end - new)
                host.emit("LossBegin")
                loss, weight = call_loss(host.loss, outputs, targets, lengths, "BPTTTrainingPhase")
            loss = _update(host, step, loss)
            if end - new < time:  # windows are weighed by their steps, whatever the loss averages
                weight = outputs.shape[0] * outputs.shape[1] if lengths is None else int(lengths.sum())
            yield outputs.detach(), loss, weight
            host.emit("WindowEnd")
        if self.stateful:
            self.state = detach(state)

    def _part(
        self, host: Host, step: StepState, mask: Tensor | None, a: int, b: int, state: State, previous: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        whole = b - a == len(step.inputs)
        inputs = step.inputs if whole else step.inputs[a:b]
        lengths = None if step.lengths is None else (step.lengths - a).clamp(0, b - a)
        fed = None if mask is None else mask[a:b]
        call = "BPTTTrainingPhase"
        outputs, state = roll(host.model, inputs, fed, self.sampler, state, lengths, call, self.stateful, previous)
        return outputs, state, None if mask is None else outputs[-1]

    def _last_window(self, host: Host, step: StepState, state: State, mask: Tensor | None) -> Iterator[Piece]:
        """One loss at each row's end, its gradient through the row's last `window` steps."""
        call, device = "BPTTTrainingPhase", step.inputs.device
        time, batch = step.inputs.shape[:2]
        lengths = torch.full((batch,), time) if step.lengths is None else step.lengths
        ahead = (lengths - (self.window or time)).clamp(min=0)
        inner, rows = lengths - ahead, torch.arange(batch)
        offsets = torch.arange(int(inner.max())).unsqueeze(1)
        index, valid = (ahead + offsets).clamp(max=time - 1), offsets < inner
        longest = int(ahead.max())
        host.emit("WindowBegin")
        with torch.no_grad(), host.context():  # a context of its own: autocast keeps the casts it made without gradient
            fed = None if mask is None else mask[:longest]
            head, state = roll(host.model, step.inputs[:longest], fed, self.sampler, state, ahead, call)
        with host.context():
            fed = None if mask is None else mask[index, rows] & valid
            previous = head[(ahead - 1).clamp(min=0).to(device), rows.to(device)]
            inputs = step.inputs[index.to(device), rows.to(device)]
            outputs, state = roll(
                host.model, inputs, fed, self.sampler, detach(state), inner, call, self.stateful, previous
            )
            host.emit("LossBegin")
            loss, weight = call_loss(host.loss, outputs, step.targets, inner, call)
        loss = _update(host, step, loss)
        everything = torch.cat([head, head.new_zeros(time - longest, *head.shape[1:])])
        everything[index[valid].to(device), rows.expand_as(index)[valid].to(device)] = outputs.detach()[
            valid.to(device)
        ]
        yield everything, loss, weight
        host.emit("WindowEnd")
        if self.stateful:
            self.state = detach(state)


def _update(host: Host, step: StepState, loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        fix = "compute it from the outputs, without .detach(), .item() or torch.no_grad()."
        came = "a loss without gradient"
        raise refuse("BPTTTrainingPhase", came, "one that depends on the parameters", fix)
    step.loss = detached = loss.detach()
    host.emit("BackwardBegin")
    host.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    host.emit("BackwardEnd")
    host.optimizer.step()
    return detached
