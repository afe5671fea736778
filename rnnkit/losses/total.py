"""A loss as a sum and a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.errors import Refusal
from ..core.state import onto


class Total:
    """A loss as a sum and a weight: `mean()` is what a user sees, `+` puts pieces together.

    With several heads (a dict of losses) both have a last dimension, the heads; the mean is then
    the sum over the heads of `scales` times each one's own mean.
    """

    __slots__ = ("_given", "_is_mean", "scales", "weight")

    def __init__(
        self,
        sum: Tensor,
        weight: Tensor | float,
        scales: Tensor | None = None,
        is_mean: bool = False,
    ) -> None:
        self._given = sum
        self._is_mean = is_mean  # where that came first, it is kept to the bit
        self.weight = weight
        self.scales = scales

    @property
    def sum(self) -> Tensor:
        """What the weight divides: a scalar, or `(T,)` of single steps."""
        if self._is_mean:
            return self._given * self.weight
        return self._given

    def __repr__(self) -> str:
        return f"Total(sum={self.sum}, weight={self.weight})"

    def __iter__(self) -> Iterator[Tensor | float]:
        return iter((self.sum, self.weight))

    def __getitem__(self, i: int) -> Tensor | float:
        return (self.sum, self.weight)[i]

    def __add__(self, other: Total) -> Total:
        return Total(self.sum + other.sum, self.weight + other.weight, self.scales)

    def __radd__(self, zero: int) -> Total:
        return self  # sum() begins with 0

    def mean(self) -> Tensor:
        """The sum by the weight; 0, not NaN, where nothing was weighed."""
        if self._is_mean:
            return self._given
        if isinstance(self.weight, Tensor):
            weight = weight_like(self.weight, self.sum)
            mean = self.sum / weight.masked_fill(weight == 0, 1)
        else:
            mean = self.sum / (self.weight or 1)
        if self.scales is None:
            return mean
        return (mean * weight_like(self.scales, mean)).sum(-1)

    def curve(self) -> Tensor:
        """Of single steps, `(T,)`, each one's mean; NaN, a gap, where a step was not scored."""
        weight = weight_like(self.weight, self.sum)
        if self.scales is not None:
            weight = weight.sum(-1)
        return self.mean().masked_fill(weight == 0, torch.nan)

    def detach(self) -> Total:
        """The same numbers without a gradient."""
        return Total(self._given.detach(), self.weight, self.scales, self._is_mean)

    @property
    def empty(self) -> bool:
        """Whether nothing was weighed: then there is no mean, and no gradient."""
        if isinstance(self.weight, Tensor):
            return not bool(self.weight.any())
        return self.weight == 0

    def over_time(self) -> Total:
        """The totals of single steps, `(T,)`, put together."""
        weight = weight_like(self.weight, self.sum)
        return Total(self.sum.sum(0), weight.sum(0), self.scales)

    def head(self, i: int) -> Total:
        """The part of one head."""
        if self.scales is None:
            return self
        weight = weight_like(self.weight, self.sum)
        return Total(self.sum[..., i], weight[..., i])


def stacked(totals: Sequence[Total], scales: tuple[float, ...] | None) -> Total:
    """The totals of the heads as one: with a dict of losses a last dimension of heads."""
    if scales is None:
        return totals[0]
    totals = list(totals)
    if torch.is_grad_enabled():
        idle = [total.empty for total in totals]
        for i, is_idle in enumerate(idle):
            # Beside others a head that scored nothing has no gradient: with one of zeros the
            # momentum of an optimizer would move what belongs to that head alone.
            if is_idle and not all(idle):
                totals[i] = totals[i].detach()
    sums, weights = _side_by_side(totals, -1)
    return Total(sums, weights, torch.tensor(scales, dtype=sums.dtype, device="cpu"))


def in_a_row(totals: Sequence[Total]) -> Total:
    """The totals of single steps as one, `(T,)`."""
    sums, weights = _side_by_side(totals, 0)
    return Total(sums, weights)


def _side_by_side(totals: Sequence[Total], dim: int) -> tuple[Tensor, Tensor]:
    sums = torch.stack([total.sum for total in totals], dim)
    # Where all weights are on the CPU they stay there, so that asking if there are any is free.
    like = sums
    weights = [total.weight for total in totals]
    if not any(isinstance(weight, Tensor) and not weight.is_cpu for weight in weights):
        like = torch.empty(0, dtype=sums.dtype, device="cpu")
    return sums, torch.stack([weight_like(weight, like) for weight in weights], dim)


def as_weight(weight: Tensor | float) -> Tensor:
    """A weight as a tensor of the dtype in which weights are added up; a number is on the CPU."""
    if not isinstance(weight, Tensor):
        return torch.tensor(weight, dtype=torch.float64, device="cpu")
    return weight.to(exact(weight.device))


def weight_like(weight: Tensor | float, like: Tensor) -> Tensor:
    """A weight as a tensor of the dtype and on the device of another one."""
    if isinstance(weight, Tensor):
        return onto(weight.to(like.dtype), like.device)
    return like.new_full((), weight)


def precise(losses: Tensor) -> Tensor:
    """In float32 at least: sums of bfloat16 stop growing at 256 steps, and counts have no mean."""
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def exact(device: torch.device) -> torch.dtype:
    """The dtype in which weights are added up: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def nothing(outputs: Tensor) -> Total:
    """The total of no step, which still has a gradient, of zeros."""
    return Total(precise(outputs.flatten()[:0].sum()), 0.0)


def check_adds_up(whole: Total, parts: Sequence[Total], dtype: torch.dtype) -> None:
    """Refuse a loss whose parts, put together, are not the whole: it is no mean of steps.

    Each may have been rounded to the `dtype` of the outputs.
    """
    together = float(sum(parts[1:], parts[0]).detach().mean())
    mean = float(whole.detach().mean())
    if math.isnan(together) and math.isnan(mean):  # for StopOnNaN to see
        return
    largest = max(abs(float(total.detach().mean())) for total in (whole, *parts))
    error = max(1e-3, 2 * torch.finfo(dtype).eps) * largest
    if not math.isclose(together, mean, rel_tol=0, abs_tol=error + 1e-5):
        raise Refusal(
            f"a loss of {mean:.4g} whose parts put together are {together:.4g}",
            "a mean over the steps it is given, or a pair (sum, weight), where a batch is scored "
            "in parts (window, nfeedback, by_step)",
            "return the pair; seq2seq_loss(..., warmup=n) leaves out first steps; or score whole "
            "batches only.",
        )
