"""A loss that is any function of the user's over the padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import Refusal, in_words
from ..core.layout import (
    all_lengths,
    between,
    extent,
    gathered,
    lengths_between,
    parts_of,
    valid_steps,
)
from ..core.signature import by_place, parameters_of, takes
from ..core.state import select_rows
from .base import Ask, Scored, SequenceLoss
from .function import LossFunction, bare, check_wanted, pair_of, refuse_class, torch_options
from .steps import StepLoss
from .total import Total, in_a_row, nothing, precise


def as_loss(loss: Any) -> SequenceLoss:
    """A loss as a phase knows it: PyTorch's own go over steps, others over the padded batch."""
    if isinstance(loss, SequenceLoss):
        return loss
    if torch_options(bare(loss)) is not None:
        return StepLoss(loss)
    return PlainLoss(loss)


class PlainLoss(SequenceLoss):
    """Any function over a padded batch, with or without its lengths."""

    name = "the loss"

    def __init__(self, function: LossFunction) -> None:
        if not callable(function):
            came = f"loss = {in_words(function)}"
            raise Refusal(came, "a loss function", "seq2seq_loss(nn.MSELoss()).", TypeError)
        refuse_class(function)
        check_wanted(function, 2, 3)
        self.loss_fn = function
        self.wants_lengths, self.takes_lengths = takes_lengths(function)

    @property
    def opaque(self) -> bool:
        return True

    def modules(self) -> list[nn.Module]:
        return [self.loss_fn] if isinstance(self.loss_fn, nn.Module) else []

    def _scored(self, ask: Ask) -> Scored:
        if ask.weights is not None:
            came = "weights of steps and a function of its own"
            fix = "seq2seq_loss(loss_fn) knows what weights of steps mean."
            raise Refusal(came, "a loss of each step", fix)
        return ScoredPlain(self, ask.one_a_step(), ask.lengths)

    def call(self, outputs: Any, targets: Any, lengths: Tensor | None) -> Any:
        function: Any = self.loss_fn
        if self.wants_lengths:
            return function(outputs, targets, all_lengths(lengths, *extent(outputs)))
        if lengths is None:
            return function(outputs, targets)
        if not self.takes_lengths:
            raise Refusal(
                "a loss of two arguments and a batch with lengths",
                "one that takes lengths",
                "loss(outputs, targets, lengths), or seq2seq_loss(loss_fn), which leaves out "
                "padding.",
                TypeError,
            )
        return function(outputs, targets, lengths)


def takes_lengths(function: LossFunction) -> tuple[bool, bool]:
    """Whether a function must be given a third argument, and whether it can be."""
    parameters = parameters_of(function)
    if parameters is None:
        return False, True
    needed = not takes(parameters, 2)
    # One that may be left out is some option of the loss, unless it is called by what it is.
    optional = [p for p in parameters if by_place(p)][2:3]
    named = any("len" in p.name for p in optional)
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return needed, needed or named or any_number


class ScoredPlain(Scored):
    """What a function of the user's is asked about: it sees all of these steps."""

    def __init__(self, loss: PlainLoss, targets: Any, lengths: Tensor | None) -> None:
        self.loss = loss
        self.targets = targets
        self.lengths = lengths
        self.time, self.batch = extent(targets)
        self.mask = valid_steps(all_lengths(lengths, self.time, self.batch), self.time)  # (T, B)

    @property
    def count(self) -> int:
        return int(self.mask.sum())

    def step_weights(self) -> Tensor:
        return self.mask.double()

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        steps, rows = self.mask.nonzero(as_tuple=True)  # (N,)
        return gathered(outputs, steps, rows), gathered(self.targets, steps, rows)

    def total(self, outputs: Any) -> Total:
        targets = self.targets
        lengths = self.lengths
        if lengths is not None and not bool(lengths.all()):  # rows without a step take no part
            rows = lengths.nonzero().squeeze(1)
            if not len(rows):
                return nothing(parts_of(outputs)[0])
            lengths = lengths[rows]
            outputs = select_rows(outputs, rows)
            targets = select_rows(targets, rows)
        given = self.loss.call(outputs, targets, lengths)
        if isinstance(given, tuple) and len(given) == 2:
            return pair_of(given)
        if not isinstance(given, Tensor) or given.ndim:
            wanted = "a scalar tensor, or a pair (sum, weight)"
            fix = "average it: seq2seq_loss takes an unreduced loss and does."
            raise Refusal(f"a loss {in_words(given)}", wanted, fix)
        return Total(precise(given), float(self.count), is_mean=True)

    def between(self, start: int, stop: int) -> Scored:
        targets = between(self.targets, start, stop)
        return ScoredPlain(self.loss, targets, lengths_between(self.lengths, start, stop))

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        return [self._part(outputs, mask & self.mask) for mask in masks]

    def by_step(self, outputs: Any, mask: Tensor | None = None) -> Total:
        totals: list[Total] = []
        for t, rows in enumerate(self.mask if mask is None else self.mask & mask):
            targets = between(self.targets, t, t + 1)
            step = ScoredPlain(self.loss, targets, None if bool(rows.all()) else rows.long())
            totals.append(step.total(between(outputs, t, t + 1)))
        return in_a_row(totals)

    def _part(self, outputs: Any, mask: Tensor) -> Total:
        """One run of steps in each row, moved to the front, where the function looks for it."""
        counts = mask.sum(0)  # (B,)
        first = mask.int().argmax(0)  # (B,)
        offsets = torch.arange(int(counts.max()), device="cpu").unsqueeze(1)
        steps = first + offsets  # (the longest run, B)
        rows = torch.arange(self.batch, device="cpu")
        targets = gathered(self.targets, steps, rows)
        part = ScoredPlain(self.loss, targets, None if self.lengths is None else counts)
        return part.total(gathered(outputs, steps, rows))
