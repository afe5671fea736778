"""A loss of one output for each sequence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import Refusal, asked, in_words, one_of
from ..core.layout import all_lengths, at_own_step, check_weights, extent, parts_of, valid_like
from ..core.model import Declared, Model
from ..core.signature import check_takes
from ..core.state import along, leaves_of, map_leaves, onto, select_rows
from .base import Ask, Scored, SequenceLoss, no_single, of_both, part_of
from .function import Each, LossFunction
from .plain import takes_lengths
from .total import Total, nothing, stacked


@asked("seq2one_loss")
def seq2one_loss(
    loss_fn: LossFunction | Mapping[Any, LossFunction],
    read: Literal["last", "mean", "max", "all"] | Callable[..., Any] = "last",
    *,
    weights: Mapping[Any, float] | None = None,
) -> ReadLoss:
    """The loss of one output for each sequence, averaged over the sequences.

    Args:
        loss_fn: as for [seq2seq_loss][rnnkit.seq2seq_loss], called once on `(B, *O)` and `(B, *Y)`.
        read: which output: each row's own `"last"` (refused for a bidirectional model, whose
            backward half has read one step there), the `"mean"` or `"max"` over its valid steps, or
            a function of `(outputs (T, B, *O), lengths)` to `(B, *O)`. With `"all"`,
            `loss_fn(outputs, targets, lengths)` gets everything, and targets may be any tree of
            tensors with the batch first: for CTC, or for a target of each step, turned, beside one
            of the sequence.
        weights: of heads, as for `seq2seq_loss`.

    Returns:
        `loss(outputs (T, B, *O), targets (B, *Y), lengths=None, weights=None)`, as of
            [seq2seq_loss][rnnkit.seq2seq_loss], but with `weights (B,)` of sequences, and a
            `ValueError` where there is a target for every step.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import seq2one_loss
    >>> loss = seq2one_loss(nn.L1Loss())
    >>> outputs = torch.arange(6.0).view(3, 2, 1)
    >>> loss(outputs, torch.zeros(2, 1), torch.tensor([3, 1])).item()  # |4| and |1|
    2.5
    """
    if callable(read):
        check_takes("read", read, "outputs, lengths")
    else:
        one_of("read", read, ("last", "mean", "max", "all"), "or a function of (outputs, lengths).")
    return ReadLoss(loss_fn, read, weights)


class ReadLoss(SequenceLoss):
    name = "seq2one_loss"
    per_sequence = True

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        read: str | Callable[..., Any] = "last",
        weights: Mapping[Any, float] | None = None,
    ) -> None:
        super().__init__(loss_fn, weights, read == "all")
        self.read = read
        if read == "all" and not all(takes_lengths(head.loss_fn)[1] for head in self.heads):
            raise Refusal(
                'a loss of two arguments and read="all"',
                "loss_fn(outputs, targets, lengths)",
                'one output for each sequence is read="last", "mean" or "max".',
                TypeError,
            )

    def modules(self) -> list[nn.Module]:
        own = [self.read] if isinstance(self.read, nn.Module) else []
        return [*super().modules(), *own]

    def _scored(self, ask: Ask) -> Scored:
        lengths = all_lengths(ask.lengths, ask.time, ask.batch)
        weights = ask.weights
        if weights is not None:
            weights = self._row_weights(weights, ask.time, lengths)
        _check_batch_first(ask.targets, ask.batch, ask.came)
        return ScoredRows(self, ask, lengths, weights)

    def _row_weights(self, weights: Tensor, time: int, lengths: Tensor) -> Tensor:
        """The weights of the sequences, `(B,)`: their own, or of the step that is read."""
        batch = len(lengths)
        weights = check_weights(weights, (batch,), (time, batch))
        if weights.ndim == 1:
            return weights
        if self.read != "last":
            came = f"weights {in_words(weights)} of steps, and read={self.read!r}"
            fix = "a step has no loss of its own here; weigh the sequences."
            raise Refusal(came, f"weights ({batch},) of sequences", fix)
        return at_own_step(weights, (lengths - 1).clamp(min=0))

    def check_model(self, model: Model) -> None:
        if self.read == "last" and Declared(model).bidirectional:
            raise Refusal(
                'a bidirectional model and seq2one_loss(read="last")',
                "an output that both directions have read the sequence for: at the last step the "
                "backward one has read a single step",
                'read="mean" or read="max", or a function of (outputs, lengths) that takes the '
                "forward half at the last step and the backward half at step 0.",
            )

    def answers(self, outputs: Any, lengths: Tensor) -> Any:
        """One output for each row, `(B, *O)`, of outputs `(T, B, *O)`."""
        if not callable(self.read):
            reader = _READERS[self.read]
            return map_leaves(lambda leaf: reader(leaf, lengths), outputs)
        read = self.read(outputs, lengths)
        for part in parts_of(read):
            if not isinstance(part, Tensor) or part.shape[:1] != lengths.shape:
                came = f"{in_words(part)} from read"
                raise Refusal(came, f"({len(lengths)}, *O)", "give one output for each row.")
        return read


class ScoredRows(Scored):
    """A target for each sequence; rows without a step, or of weight 0, take no part."""

    def __init__(self, loss: ReadLoss, ask: Ask, lengths: Tensor, weights: Tensor | None) -> None:
        self.loss = loss
        counts = lengths > 0
        if weights is not None:
            counts = counts & (weights != 0)
        self.rows = counts.nonzero().squeeze(1)  # (B',)
        self.all = len(self.rows) == len(lengths)
        self.lengths = lengths[self.rows]
        self.weights = None if weights is None else weights[self.rows]
        self.targets = ask.targets
        self.known = ask.known
        if not self.all:
            self.targets, self.known = of_both(self._choose, ask.targets, ask.known)

    def _choose(self, tree: Any) -> Any:
        return map_leaves(lambda leaf: leaf[onto(self.rows, leaf.device)], tree)

    @property
    def count(self) -> int:
        return len(self.rows)

    def of_window(self, lengths: Tensor) -> Scored | None:
        if self.loss.read != "last":
            return None
        window = copy.copy(self)
        window.lengths = lengths[self.rows]
        return window

    def total(self, outputs: Any) -> Total:
        answers = outputs = self._own(outputs)
        if not len(self.rows):
            none = nothing(parts_of(outputs)[0])
            return stacked([none for _ in self.loss.heads], self.loss.scales)
        everything = self.loss.read == "all"
        if not everything:
            answers = self.loss.answers(outputs, self.lengths)
            self.loss.check_heads("outputs", answers)
            self.loss.check_heads("targets", self.targets)
        totals: list[Total] = []
        for head in self.loss.heads:
            answer = part_of(answers, head.key, "outputs")
            target = part_of(self.targets, head.key, "targets")
            if everything:
                given = head.loss_fn(answer, target, self.lengths)
                totals.append(self._weighed(head.read(given, len(self.rows))))
            else:
                _check_target(target, outputs, answer.ndim, head.key)
                head.check_shapes(answer, target, leading=1)
                known = part_of(self.known, head.key, "targets")
                totals.append(self._weighed(head(answer, target.contiguous(), known)))
        return stacked(totals, self.loss.scales)

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        if self.loss.read == "all":
            came = 'a loss with read="all"'
            raise Refusal(came, "one output a sequence", 'read="last" or a function that reads.')
        answers = self.loss.answers(self._own(outputs), self.lengths)
        return answers, map_leaves(Tensor.contiguous, self.targets)

    def _own(self, outputs: Any) -> Any:
        """The outputs of the rows that take part."""
        if self.all:
            return outputs
        return select_rows(outputs, self.rows)

    def _weighed(self, given: Each | Total) -> Total:
        if isinstance(given, Each):
            if self.weights is not None:
                given = given.times(self.weights)
            return given.total()
        if self.weights is not None:
            raise no_single("sequence")
        return given


def _check_target(target: Any, outputs: Any, answer_ndim: int, key: Any) -> None:
    """One target a sequence, and not one for every step."""
    time, batch = extent(outputs)
    if isinstance(outputs, dict):
        outputs = outputs.get(key, outputs)  # read may give heads that the model has not
    if not isinstance(target, Tensor):
        fix = "torch.as_tensor(targets); one target for each step is seq2seq_loss."
        raise Refusal(f"targets = {in_words(target)}", f"targets ({batch}, *Y)", fix, TypeError)
    shapes = [part.shape for part in parts_of(outputs)]
    # Classes of several features have a dimension less than the answer, as one class has.
    classes = not target.is_floating_point() and target.ndim >= answer_ndim
    if target.shape in shapes or (classes and target.shape[:2] == (time, batch)):
        came = f"outputs {in_words(outputs)} and targets {in_words(target)}"
        raise _for_every_step(came, batch)


def _check_batch_first(targets: Any, batch: int, came: object) -> None:
    """Every tensor among the targets has one entry for each sequence."""
    if not isinstance(targets, Tensor | tuple | dict):
        return
    for leaf in leaves_of(targets):
        if leaf.shape[:1] != (batch,):
            raise _for_every_step(f"{came} and targets {in_words(leaf)}", batch)


def _for_every_step(came: str, batch: int) -> Refusal:
    fix = (
        "for a target at every step use seq2seq_loss, or targets.transpose(0, 1) with "
        'read="all"; for the last one pass targets[-1].'
    )
    return Refusal(came, f"one target a sequence, (B = {batch}, *Y)", fix)


def _read_last(outputs: Tensor, lengths: Tensor) -> Tensor:
    if bool((lengths == len(outputs)).all()):
        return outputs[-1]
    return at_own_step(outputs, lengths - 1)


def _read_mean(outputs: Tensor, lengths: Tensor) -> Tensor:
    wide = torch.promote_types(outputs.dtype, torch.float32)  # a sum in float16 ends at 65504
    total = torch.where(valid_like(outputs, lengths), outputs, 0).sum(0, dtype=wide)  # (B, *O)
    return (total / along(lengths.to(wide), outputs)).to(outputs.dtype)


def _read_max(outputs: Tensor, lengths: Tensor) -> Tensor:
    return outputs.masked_fill(~valid_like(outputs, lengths), -math.inf).amax(0)


_READERS = {"last": _read_last, "mean": _read_mean, "max": _read_max}
