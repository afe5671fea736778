"""What is averaged over what: losses over sequences that know where each sequence ends."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._contract import Model, Steps, as_sequence, check_lengths, check_model, refuse, run_model, shape

__all__ = ["seq2one_loss", "seq2seq_loss"]

_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_ELEMENTWISE_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class SequenceLoss:
    """What [seq2seq_loss][rnnkit.seq2seq_loss] and [seq2one_loss][rnnkit.seq2one_loss] make."""

    def __init__(self, loss_fn: Callable[..., Tensor], average: Literal["step", "sequence", "last"], name: str) -> None:
        if not callable(loss_fn):
            raise refuse(name, shape(loss_fn), "a loss function (outputs, targets)", "nn.MSELoss().", TypeError)
        if average not in ("step", "sequence", "last"):
            raise refuse(name, f"average={average!r}", '"step" or "sequence"', "choose what is averaged.")
        self.loss_fn, self.average, self.name = loss_fn, average, name

    def __call__(self, outputs: Steps, targets: Steps, lengths: Tensor | None = None) -> Tensor:
        outputs = as_sequence(outputs, self.name, "outputs")
        if self.average == "last":
            return self._last(outputs, targets, lengths)
        targets = as_sequence(targets, self.name, "targets")
        time, batch = outputs.shape[:2]
        if targets.shape[:2] != (time, batch):
            came = f"outputs {shape(outputs)} and targets {shape(targets)}"
            fix = "one target for each step and row; one target for a whole sequence is seq2one_loss."
            raise refuse(self.name, came, "the same T and B for both", fix)
        self._refuse_broadcast(outputs, targets)
        if lengths is None:
            return self._average(outputs.flatten(0, 1), targets.flatten(0, 1), None, time, batch)
        check_lengths(lengths, time, batch, self.name)
        valid = (torch.arange(time).unsqueeze(1) < lengths).to(outputs.device)
        return self._average(outputs[valid], targets[valid], valid, time, batch)

    def on(self, model: Model, inputs: Steps, targets: Steps, lengths: Tensor | None = None) -> Tensor:
        """The loss of a model from its first state: the form `loss(model, xs, ys)` of issue 144."""
        inputs = as_sequence(inputs, f"{self.name}.on")
        check_model(model, f"{self.name}.on")
        if lengths is not None:
            check_lengths(lengths, len(inputs), inputs.shape[1], f"{self.name}.on")
        return self(run_model(model, inputs, None, lengths, f"{self.name}.on", carry=False)[0], targets, lengths)

    def weight(self, outputs: Tensor, lengths: Tensor | None) -> int:
        """How many terms the average is over: what an epoch weighs this loss by."""
        if self.average != "step":
            return outputs.shape[1]
        return outputs.shape[0] * outputs.shape[1] if lengths is None else int(lengths.sum())

    def by_step(self, outputs: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
        """The loss of each step alone, over the rows that have it: `(T,)`."""
        losses: list[Tensor] = []
        for t, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            rows = slice(None) if lengths is None else (lengths > t).to(output.device)
            losses.append(self._call(output[rows], target[rows]).mean())
        return torch.stack(losses)

    def _average(self, outputs: Tensor, targets: Tensor, valid: Tensor | None, time: int, batch: int) -> Tensor:
        losses = self._call(outputs, targets)
        if self.average == "step":
            return losses if losses.ndim == 0 else losses.mean()
        rows = torch.arange(batch, device=outputs.device).expand(time, batch)
        rows = rows.flatten() if valid is None else rows[valid]
        if losses.ndim == 0:
            return torch.stack([self._call(outputs[rows == i], targets[rows == i]) for i in range(batch)]).mean()
        each = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
        sums = each.new_zeros(batch).index_add(0, rows, each)
        return (sums / torch.bincount(rows, minlength=batch)).mean()

    def _last(self, outputs: Tensor, targets: Any, lengths: Tensor | None) -> Tensor:
        time, batch = outputs.shape[:2]
        if not isinstance(targets, Tensor):
            fix = "torch.as_tensor(targets); one target for each step is seq2seq_loss."
            raise refuse(self.name, f"targets = {shape(targets)}", f"targets ({batch}, *Y)", fix, TypeError)
        every_step = targets.shape[:2] == (time, batch) and not targets.is_floating_point()
        if targets.shape[:1] != (batch,) or targets.shape == outputs.shape or every_step:
            came = f"outputs {shape(outputs)} and targets {shape(targets)}"
            fix = "for a target at every step use seq2seq_loss; for the last one pass targets[-1]."
            raise refuse(self.name, came, f"one target a sequence, ({batch}, *Y)", fix)
        self._refuse_broadcast(outputs[-1], targets)
        if lengths is None:
            return self._call(outputs[-1], targets).mean()
        check_lengths(lengths, time, batch, self.name)
        last = outputs[lengths.to(outputs.device) - 1, torch.arange(batch, device=outputs.device)]
        return self._call(last, targets).mean()

    def _refuse_broadcast(self, outputs: Tensor, targets: Tensor) -> None:
        elementwise = self.loss_fn in _ELEMENTWISE or isinstance(self.loss_fn, _ELEMENTWISE_MODULES)
        floats = outputs.is_floating_point() and targets.is_floating_point()
        fewer, more = sorted((outputs.shape, targets.shape), key=len)
        if (elementwise and outputs.shape != targets.shape) or (floats and (*fewer, 1) == tuple(more)):
            came = f"outputs {shape(outputs)} and targets {shape(targets)}"
            fix = "they would broadcast to a wrong number; add the missing dimension with targets.unsqueeze(-1)."
            raise refuse(self.name, came, "equal shapes", fix)

    def _call(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.loss_fn(outputs, targets)
        if not isinstance(losses, Tensor) or (losses.ndim > 0 and losses.shape[0] != outputs.shape[0]):
            came = f"{shape(losses)} from the loss of outputs {shape(outputs)}"
            fix = 'use a loss with reduction "mean" or "none".'
            raise refuse(self.name, came, "a scalar, or one loss a step", fix)
        return losses


def seq2seq_loss(loss_fn: Callable[..., Tensor], average: Literal["step", "sequence"] = "step") -> SequenceLoss:
    r"""The loss of every valid step of every sequence, averaged; padding never counts.

    $$
    \text{step: } \frac{\sum_b \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})}{\sum_b n_b}
    \qquad
    \text{sequence: } \frac{1}{B} \sum_b \frac{1}{n_b} \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})
    $$

    Args:
        loss_fn: any loss of PyTorch's signature, reduced or not. It is called once, on the valid steps in one row:
            outputs `(N, *O)` and targets `(N, *Y)`. (A reduced one under `average="sequence"` is called a sequence.)
        average: over steps, each counting alike, or over sequences, each counting alike.

    Returns:
        `loss(outputs (T, B, *O), targets (T, B, *Y), lengths=None)`, a scalar tensor; and `.on(model, inputs,
        targets, lengths=None)`, the same of a model's outputs.

    Raises:
        ValueError: by the loss, if `T`, `B` or lengths do not fit, or an elementwise loss would broadcast.
        TypeError: by the loss, if lengths are not int64 on the CPU.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> loss = seq2seq_loss(nn.MSELoss())
    >>> outputs, targets = torch.zeros(3, 2, 1), torch.ones(3, 2, 1)
    >>> targets[1:, 1] = 100.0  # padding of the second sequence
    >>> loss(outputs, targets, torch.tensor([3, 1])).item()
    1.0
    """
    if average == "last":
        raise refuse("seq2seq_loss", "average='last'", '"step" or "sequence"', "that is seq2one_loss.")
    return SequenceLoss(loss_fn, average, "seq2seq_loss")


def seq2one_loss(loss_fn: Callable[..., Tensor]) -> SequenceLoss:
    """The loss of the output at each sequence's own last step, averaged over the sequences.

    Args:
        loss_fn: any loss of PyTorch's signature, reduced or not, called once on `(B, *O)` and `(B, *Y)`.

    Returns:
        `loss(outputs (T, B, *O), targets (B, *Y), lengths=None)`, a scalar tensor; and `.on(model, inputs, targets,
        lengths=None)`, the same of a model's outputs.

    Raises:
        ValueError: by the loss, if it is given a target for every step, or lengths do not fit.
        TypeError: by the loss, if lengths are not int64 on the CPU.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> outputs = torch.arange(6.0).view(3, 2, 1)
    >>> seq2one_loss(nn.L1Loss())(outputs, torch.zeros(2, 1), torch.tensor([3, 1])).item()  # |4| and |1|
    2.5
    """
    return SequenceLoss(loss_fn, "last", "seq2one_loss")
