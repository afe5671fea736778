"""A mean over an epoch: sums and weights are added up, and divided once, at the end."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.layout import lengthened
from ..core.state import onto
from ..losses.total import Total, as_weight, weight_like

_TOGETHER = 64  # so many pieces wait, and are then added up in one operation


class Average:
    """The mean of what many pieces add up to, each a `Total`.

    They are added in float64, so that the last of a million steps counts as the first did, and
    always as many at once, so that a resumed training adds in the same order. Totals by step,
    `(T,)`, are padded to the longest.
    """

    def __init__(self) -> None:
        self._added: Total | None = None
        self._waiting: list[Total] = []
        self._dtype = torch.float32

    def add(self, total: Total) -> None:
        self._waiting.append(total)
        if len(self._waiting) == _TOGETHER:
            self._added = self.total()
            self._waiting = []

    def total(self) -> Total:
        """The sum and the weight of all pieces so far, in float64."""
        if not self._waiting:
            return self._added or Total(torch.zeros(()), 0.0)
        # What a mean is given in follows the losses; what it is added in does not.
        parts = [piece.sum for piece in self._waiting]
        self._dtype = torch.promote_types(parts[-1].dtype, torch.float32)
        weight = _weight_of(self._waiting, parts)
        return _sum_of(self._added, Total(_together(parts), weight, self._waiting[-1].scales))

    def mean(self) -> Tensor:
        """The sum by the weight, in the losses' dtype, float32 at least; NaN of nothing."""
        total = self.total()
        weight = weight_like(total.weight, total.sum)
        mean = Total(total.sum, weight, total.scales).mean()
        if total.scales is not None:  # of several heads: nothing was weighed where none was
            weight = weight.sum(-1)
        return mean.masked_fill(weight == 0, torch.nan).to(self._dtype)

    @classmethod
    def joined(cls, states: Sequence[dict[str, Any]], device: torch.device) -> "Average":
        """The average of all that several have added up, each given as its `state_dict`."""
        joint = cls()
        for state in states:
            part = cls()
            part.load_state_dict(state, device)
            joint._added = _sum_of(joint._added, part.total())
            joint._dtype = part._dtype
        return joint

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: what was added up, and what waits for it."""
        added = _plain(self._added)
        waiting = [_plain(total) for total in self._waiting]
        dtype = self._dtype
        if self._waiting:
            dtype = self._waiting[-1].sum.dtype
        return {"added": added, "waiting": waiting, "like": torch.zeros(0, dtype=dtype)}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device | None = None) -> None:
        """Goes on from a `state_dict`, with pieces that will come on `device`."""
        dtype = saved["like"].dtype
        self._dtype = torch.promote_types(dtype, torch.float32)
        self._added = None
        if saved["added"] is not None:
            self._added = _restored(saved["added"], torch.float64, device)
        self._waiting = [_restored(piece, dtype, device) for piece in saved["waiting"]]


def _together(parts: list[Tensor]) -> Tensor:
    """The sum of all in float64, each padded with zeros to the longest."""
    if parts[0].ndim:
        longest = max(map(len, parts))
        parts = [lengthened(part, longest) for part in parts]
    stacked = torch.stack(parts).detach()
    if stacked.device.type == "mps":  # it knows no float64
        stacked = stacked.cpu()
    return stacked.double().sum(0)


def _weight_of(pieces: list[Total], sums: list[Tensor]) -> Tensor | float:
    """What the pieces weigh together: a number where all are numbers."""
    numbers: list[float] = []
    tensors: list[Tensor] = []
    for piece, its_sum in zip(pieces, sums, strict=True):
        if isinstance(piece.weight, Tensor) or its_sum.ndim:
            weight = onto(as_weight(piece.weight), its_sum.device)
            tensors.append(weight.expand(its_sum.shape))
        else:
            numbers.append(piece.weight)
    if not tensors:
        return float(sum(numbers))
    return _plus(_together(tensors), float(sum(numbers)))


def _sum_of(before: Total | None, now: Total) -> Total:
    if before is None:
        return now
    return Total(_plus(before.sum, now.sum), _plus(before.weight, now.weight), now.scales)


def _plus(left: Tensor | float, right: Tensor | float) -> Any:
    """What was added before and what comes now, where that lives."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return left + right
    left = onto(left, right.device)
    if left.ndim and len(left) != len(right):
        longest = max(len(left), len(right))
        return lengthened(left, longest) + lengthened(right, longest)
    return left + right


def _plain(total: Total | None) -> dict[str, Any] | None:
    if total is None:
        return None
    parts = {"sum": total.sum, "weight": total.weight, "scales": total.scales}
    plain: dict[str, Any] = {}
    for name, part in parts.items():
        plain[name] = part.tolist() if isinstance(part, Tensor) else part
    return plain


def _restored(saved: dict[str, Any], dtype: torch.dtype, device: torch.device | None) -> Total:
    values = torch.tensor(saved["sum"], dtype=dtype, device=device)
    weight = saved["weight"]
    if isinstance(weight, list):
        weight = torch.tensor(weight, dtype=torch.float64, device=device)
    scales = saved["scales"]
    if scales is not None:
        scales = torch.tensor(scales, dtype=torch.float64, device=device)
    return Total(values, weight, scales)
