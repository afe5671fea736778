"""What is averaged over what: losses over sequences that know where each sequence ends."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .core.errors import Refusal, asked, in_words
from .core.layout import Steps, as_sequence, check_lengths
from .core.model import Model, check_call, run_model

_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_ELEMENTWISE_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class SequenceLoss:
    """What [seq2seq_loss][rnnkit.seq2seq_loss] and [seq2one_loss][rnnkit.seq2one_loss] make."""

    @asked(lambda loss: loss.name)
    def __init__(self, loss_fn: Callable[..., Tensor], average: str, name: str) -> None:
        if not callable(loss_fn):
            raise Refusal(
                in_words(loss_fn), "a loss function (outputs, targets)", "nn.MSELoss().", TypeError
            )
        if average not in ("step", "sequence", "last"):
            raise Refusal(
                f"average={average!r}", '"step" or "sequence"', "choose what is averaged."
            )
        self.loss_fn, self.average, self.name = loss_fn, average, name
        self._elementwise = loss_fn in _ELEMENTWISE or isinstance(loss_fn, _ELEMENTWISE_MODULES)

    @asked(lambda loss: loss.name)
    def __call__(self, outputs: Steps, targets: Steps, lengths: Tensor | None = None) -> Tensor:
        outputs = as_sequence(outputs, "outputs")
        time, batch = outputs.shape[:2]
        if self.average == "last":
            targets = self._check_last(outputs, targets)
            if lengths is None:
                return self._call(outputs[-1], targets).mean()
            last = check_lengths(lengths, time, batch).to(outputs.device) - 1
            return self._call(
                outputs[last, torch.arange(batch, device=outputs.device)], targets
            ).mean()
        targets = as_sequence(targets, "targets")
        if targets.shape[:2] != (time, batch):
            came = f"outputs {in_words(outputs)} and targets {in_words(targets)}"
            fix = (
                "one target for each step and row; one target for a whole sequence is seq2one_loss."
            )
            raise Refusal(came, "the same T and B for both", fix)
        self._refuse_broadcast(outputs, targets)
        valid = None
        if lengths is None:
            outputs, targets = outputs.flatten(0, 1), targets.flatten(0, 1)
        else:
            check_lengths(lengths, time, batch)
            valid = (torch.arange(time).unsqueeze(1) < lengths).to(outputs.device)
            outputs, targets = outputs[valid], targets[valid]
        losses = self._call(outputs, targets)
        if self.average == "step":
            return losses.mean() if losses.ndim else losses
        rows = torch.arange(batch, device=outputs.device).expand(time, batch)
        rows = rows.flatten() if valid is None else rows[valid]
        if losses.ndim == 0:
            return torch.stack(
                [self._call(outputs[rows == i], targets[rows == i]) for i in range(batch)]
            ).mean()
        each = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
        sums = each.new_zeros(batch).index_add(0, rows, each)
        return (sums / torch.bincount(rows, minlength=batch)).mean()

    @asked(lambda loss: f"{loss.name}.on")
    def on(
        self, model: Model, inputs: Steps, targets: Steps, lengths: Tensor | None = None
    ) -> Tensor:
        """The loss of a model from its first state: the form `loss(model, xs, ys)` of issue 144."""
        inputs = check_call(model, inputs, lengths=lengths)
        return self(run_model(model, inputs, None, lengths, carry=False)[0], targets, lengths)

    def _check_last(self, outputs: Tensor, targets: object) -> Tensor:
        time, batch = outputs.shape[:2]
        if not isinstance(targets, Tensor):
            fix = "torch.as_tensor(targets); one target for each step is seq2seq_loss."
            raise Refusal(
                f"targets = {in_words(targets)}", f"targets ({batch}, *Y)", fix, TypeError
            )
        every_step = targets.shape[:2] == (time, batch) and not targets.is_floating_point()
        if targets.shape[:1] != (batch,) or targets.shape == outputs.shape or every_step:
            came = f"outputs {in_words(outputs)} and targets {in_words(targets)}"
            fix = "for a target at every step use seq2seq_loss; for the last one pass targets[-1]."
            raise Refusal(came, f"one target a sequence, ({batch}, *Y)", fix)
        self._refuse_broadcast(outputs[-1], targets)
        return targets

    def _refuse_broadcast(self, outputs: Tensor, targets: Tensor) -> None:
        if not (self._elementwise or targets.is_floating_point()) or outputs.shape == targets.shape:
            return
        fewer, more = sorted((outputs.shape, targets.shape), key=len)
        if self._elementwise or (outputs.is_floating_point() and (*fewer, 1) == more):
            fix = "they would broadcast to a wrong number; add the missing dimension with targets.unsqueeze(-1)."
            raise Refusal(
                f"outputs {in_words(outputs)} and targets {in_words(targets)}", "equal shapes", fix
            )

    def _call(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.loss_fn(outputs, targets)
        if not isinstance(losses, Tensor) or (losses.ndim and losses.shape[0] != outputs.shape[0]):
            came = f"{in_words(losses)} from the loss of outputs {in_words(outputs)}"
            fix = 'use a loss with reduction "mean" or "none".'
            raise Refusal(came, "a scalar, or one loss a step", fix)
        return losses


@asked("seq2seq_loss")
def seq2seq_loss(
    loss_fn: Callable[..., Tensor], average: Literal["step", "sequence"] = "step"
) -> SequenceLoss:
    r"""The loss of every valid step of every sequence, averaged; padding never counts.

    $$
    \text{step: } \frac{\sum_b \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})}{\sum_b n_b}
    \qquad
    \text{sequence: } \frac{1}{B} \sum_b \frac{1}{n_b} \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})
    $$

    Args:
        loss_fn: any loss of PyTorch's signature, reduced or not. It is called once, on all valid steps: outputs
            `(N, *O)` and targets `(N, *Y)`. (A reduced one under `average="sequence"` is called once a sequence.)
        average: over steps, each counting alike, or over sequences, each counting alike.

    Returns:
        `loss(outputs (T, B, *O), targets (T, B, *Y), lengths=None)`, a scalar tensor, which raises `ValueError` where
            `T`, `B` or lengths do not fit or an elementwise loss would broadcast, `TypeError` where lengths are not
            int64 on the CPU; and `.on(model, inputs, targets, lengths=None)`, the same of a model's outputs.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> loss = seq2seq_loss(nn.MSELoss())
    >>> outputs, targets = torch.zeros(3, 2, 1), torch.ones(3, 2, 1)
    >>> targets[1:, 1] = 100.0  # padding of the second sequence
    >>> loss(outputs, targets, torch.tensor([3, 1])).item()
    1.0
    """
    if average == "last":
        raise Refusal("average='last'", '"step" or "sequence"', "that is seq2one_loss.")
    return SequenceLoss(loss_fn, average, "seq2seq_loss")


def seq2one_loss(loss_fn: Callable[..., Tensor]) -> SequenceLoss:
    """The loss of the output at each sequence's own last step, averaged over the sequences.

    Args:
        loss_fn: any loss of PyTorch's signature, reduced or not, called once on `(B, *O)` and `(B, *Y)`.

    Returns:
        `loss(outputs (T, B, *O), targets (B, *Y), lengths=None)`, a scalar tensor, which raises `ValueError` where it
            is given a target for every step; the rest as for [seq2seq_loss][rnnkit.seq2seq_loss].

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> outputs = torch.arange(6.0).view(3, 2, 1)
    >>> seq2one_loss(nn.L1Loss())(outputs, torch.zeros(2, 1), torch.tensor([3, 1])).item()  # |4| and |1|
    2.5
    """
    return SequenceLoss(loss_fn, "last", "seq2one_loss")
