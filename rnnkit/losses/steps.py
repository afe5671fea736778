"""A loss of every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, at_least, one_of
from ..core.layout import as_sequences, between, check_weights, extent, valid_steps
from ..core.state import map_leaves, onto
from .base import Ask, Scored, SequenceLoss, no_single, of_both, part_of
from .function import Each, Head, LossFunction
from .total import Total, in_a_row, nothing, precise, stacked, weight_like


@asked("seq2seq_loss")
def seq2seq_loss(
    loss_fn: LossFunction | Mapping[Any, LossFunction],
    average: Literal["step", "sequence"] = "step",
    warmup: int = 0,
    *,
    weights: Mapping[Any, float] | None = None,
) -> StepLoss:
    r"""The loss of every valid step of every sequence, averaged; padding never counts.

    $$
    \text{step: } \frac{\sum_b \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})}{\sum_b n_b}
    \qquad
    \text{sequence: } \frac{1}{B} \sum_b \frac{1}{n_b} \sum_{t < n_b} \ell(y_{tb}, \hat y_{tb})
    $$

    It is a sum and a weight, `loss.total(outputs, targets, lengths)`: those of windows, steps or
    batches, added up, are those of the whole.

    What `loss_fn` may be, and what its sum and weight are:

    - A loss of PyTorch with `reduction`, as a module, a function or a `functools.partial` of one:
      it is taken unreduced, and the weight is what its mean divides by (elements, without
      `ignore_index`, class weights counted).
    - A function to one loss a step, `(N,)` or `(N, *F)`: their sum, features averaged, and `N`.
    - A function to a scalar, a mean over the steps it is given: `N` times it, and `N`.
    - A function to a pair of scalars: that pair. For masks, missing targets, anything else.
    - A dict of these: each head with the outputs and targets of its name; their means, times
      `weights`, are added up.

    Args:
        loss_fn: one of these; called on all valid steps at once, outputs `(N, *O)`, targets `(N,
            *Y)`.
        average: whether each step counts alike, or each sequence.
        warmup: steps at the beginning of each sequence that are read and not scored.
        weights: what each head of a dict of losses is multiplied by; 1 where it is not named.

    Returns:
        `loss(outputs (T, B, *O), targets (T, B, *Y), lengths=None, weights=None)`, a scalar tensor,
            0 where nothing is scored. `weights (T, B)` multiply each step's loss and its weight.
            Raises `ValueError` where `T`, `B` or lengths do not fit or shapes would broadcast,
            `TypeError` where lengths are not int64 on the CPU. `.on(model, inputs, targets,
            lengths=None)` is the same of a model's outputs.

    Raises:
        ValueError: if the average is neither, or the loss is reduced by a sum.
        TypeError: if `loss_fn` cannot be called.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import seq2seq_loss
    >>> loss = seq2seq_loss(nn.MSELoss())
    >>> outputs, targets = torch.zeros(3, 2, 1), torch.ones(3, 2, 1)
    >>> targets[1:, 1] = 100.0  # padding of the second sequence
    >>> loss(outputs, targets, torch.tensor([3, 1])).item()
    1.0
    """
    one_of("average", average, ("step", "sequence"), "of the last step alone it is seq2one_loss.")
    at_least("warmup", warmup, 0, "0 scores every step.")
    return StepLoss(loss_fn, average, warmup, weights)


class StepLoss(SequenceLoss):
    name = "seq2seq_loss"

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        average: str = "step",
        warmup: int = 0,
        weights: Mapping[Any, float] | None = None,
    ) -> None:
        super().__init__(loss_fn, weights)
        self.average = average
        self.warmup = warmup
        self.fits: object = None  # the shapes that were found to fit last

    def _scored(self, ask: Ask) -> Scored:
        targets = ask.one_a_step()
        mask: Tensor | None = None  # every step counts
        if ask.lengths is not None:
            mask = valid_steps(ask.lengths, ask.time)
        if self.warmup:
            steps = torch.arange(ask.time, device="cpu").unsqueeze(1)
            if ask.read is not None:
                steps = steps + ask.read
            mask = _both(mask, (steps >= self.warmup).expand(ask.time, ask.batch))
        weights = ask.weights
        if weights is not None:
            weights = check_weights(weights, (ask.time, ask.batch))
            mask = _both(mask, weights != 0)
        known = targets
        if ask.known is not ask.targets:
            known = as_sequences(ask.known, "targets")
        return ScoredSteps(self, targets, known, mask, weights)


def _both(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask & other


class _Laid(NamedTuple):
    """What a head is asked about: the `N` steps that are scored, side by side."""

    outputs: Tensor  # (N, *O)
    targets: Tensor  # (N, *Y)
    known: Tensor  # the same, on the CPU where they came from there


class ScoredSteps(Scored):
    """A target for each step.

    Each loss function is called once on all steps that count: what it tells of each is a table, of
    which every total is a sum over some rows."""

    def __init__(
        self,
        loss: StepLoss,
        targets: Any,
        known: Any,
        mask: Tensor | None,
        weights: Tensor | None,
        row_weights: list[Tensor] | None = None,
    ) -> None:
        self.loss = loss
        self.targets = targets
        self.known = known
        self.shape = extent(targets)  # T, B
        self.index: Tensor | None = None  # (N,): which of the T * B steps count; all where None
        if mask is not None and not bool(mask.all()):
            self.index = mask.flatten().nonzero().squeeze(1)
        self._mask = mask
        self.weights = weights  # (T, B), on the CPU: the steps' own weights

        # Under average="sequence" a step counts by its share in its row, which a part must know.
        self.cut = row_weights is not None
        self.row_weights = row_weights  # by head, (B,)
        if row_weights is None and loss.average == "sequence":
            self.row_weights = [self._weight_by_row(head) for head in loss.heads]

    @property
    def mask(self) -> Tensor:
        """Which steps count: bool, on the CPU, `(T, B)`."""
        if self._mask is None:
            return torch.ones(self.shape, dtype=torch.bool, device="cpu")
        return self._mask

    @property
    def count(self) -> int:
        time, batch = self.shape
        if self.loss.average == "sequence":
            return int(self.mask.any(0).sum())
        if self.index is None:
            return time * batch
        return len(self.index)

    def total(self, outputs: Any) -> Total:
        totals = [self._total_of(i, laid) for i, laid in enumerate(self._laid_out(outputs))]
        return stacked(totals, self.loss.scales)

    def between(self, start: int, stop: int) -> Scored:
        weights = between(self.weights, start, stop)
        targets, known = of_both(lambda tree: between(tree, start, stop), self.targets, self.known)
        mask = between(self._mask, start, stop)
        return self._part(targets, known, mask, weights)

    def _only(self, mask: Tensor) -> ScoredSteps:
        return self._part(self.targets, self.known, _both(self._mask, mask), self.weights)

    def _part(
        self, targets: Any, known: Any, mask: Tensor | None, weights: Tensor | None
    ) -> ScoredSteps:
        return ScoredSteps(self.loss, targets, known, mask, weights, self.row_weights)

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        by_head: list[list[Total]] = []
        for i, laid in enumerate(self._laid_out(outputs)):
            table = self._table(i, laid)
            if table is None:  # called anew for each part
                by_head.append([self._only(mask).total(outputs).head(i) for mask in masks])
            else:
                by_head.append([table.total(self._of_valid(mask.flatten())) for mask in masks])
        return [stacked(totals, self.loss.scales) for totals in zip(*by_head, strict=True)]

    def by_step(self, outputs: Any, mask: Tensor | None = None) -> Total:
        if mask is not None:
            return self._only(mask).by_step(outputs)
        totals: list[Total] = []
        for i, laid in enumerate(self._laid_out(outputs)):
            table = self._table(i, laid)
            if table is None:
                steps = range(self.shape[0])
                alone = [self.between(t, t + 1).total(between(outputs, t, t + 1)) for t in steps]
                totals.append(in_a_row([total.head(i) for total in alone]))
            else:
                totals.append(self._by_step(table))
        return stacked(totals, self.loss.scales)

    def _by_step(self, table: Each) -> Total:
        time, batch = self.shape
        step = self._of_valid(torch.arange(time * batch, device="cpu")) // batch  # (N,)
        step = onto(step, table.losses.device)
        sums = table.losses.new_zeros(time).index_add(0, step, table.losses)
        weights = weight_like(table.weights, sums).expand_as(table.losses)
        return Total(sums, sums.new_zeros(time).index_add(0, step, weights))

    def step_weights(self) -> Tensor:
        weights = self.mask.double()
        return weights if self.weights is None else weights * self.weights

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        self._check(outputs)
        return map_leaves(self._flat, outputs), map_leaves(self._flat, self.targets)

    def _laid_out(self, outputs: Any) -> list[_Laid]:
        self._check(outputs)
        laid: list[_Laid] = []
        for head in self.loss.heads:
            own = self._flat(part_of(outputs, head.key, "outputs"))
            targets = known = self._flat(part_of(self.targets, head.key, "targets"))
            if self.known is not self.targets:
                known = self._flat(part_of(self.known, head.key, "targets"))
            laid.append(_Laid(own, targets, known))
        return laid

    def _flat(self, sequence: Tensor) -> Tensor:
        """`(T, B, *F)` to `(N, *F)`."""
        return self._of_valid(sequence.flatten(0, 1))

    def _of_valid(self, flat: Tensor) -> Tensor:
        if self.index is None:
            return flat.contiguous()
        return flat.index_select(0, onto(self.index, flat.device))

    def _check(self, outputs: Any) -> None:
        shapes = None
        if isinstance(outputs, Tensor) and isinstance(self.targets, Tensor):
            # What was found right for one batch is right for the next of the same shapes.
            shapes = (outputs.shape, self.targets.shape, self.targets.dtype)
            if self.loss.fits == shapes:
                return
        self.loss.check_heads("outputs", outputs)
        self.loss.check_heads("targets", self.targets)
        for head in self.loss.heads:
            own = part_of(outputs, head.key, "outputs")
            target = part_of(self.targets, head.key, "targets")
            head.check_shapes(own, target, leading=2)
        self.loss.fits = shapes

    def _total_of(self, i: int, laid: _Laid) -> Total:
        head = self.loss.heads[i]
        if len(laid.outputs) and self.weights is None and self.row_weights is None:
            given = head.whole(*laid) or head(*laid)
            if isinstance(given, Each):
                given = given.total()
            return given
        table = self._table(i, laid)
        if table is None:
            return self._row_by_row(i, laid)
        return table.total()

    def _table(self, i: int, laid: _Laid) -> Each | None:
        """What each of the `N` steps adds to the sum and to the weight, if a head tells."""
        if not len(laid.outputs):
            return Each(precise(laid.outputs.flatten()[:0]), 0.0)
        given = self.loss.heads[i](*laid)
        if isinstance(given, Total):
            if self.weights is not None:
                raise no_single("step")
            return None
        if self.row_weights is not None and isinstance(given.weights, float):
            given = Each(given.losses / given.weights, 1.0)  # a row counts steps, not features
        if self.weights is not None:
            given = given.times(self._of_valid(self.weights.flatten()))
        if self.row_weights is not None:
            given = given.times(self._shares(self.row_weights[i]))
        return given

    def _shares(self, whole: Tensor) -> Tensor:
        """One by the weight of a step's whole row, `(N,)`."""
        share = torch.where(whole > 0, 1 / whole, 0)  # (B,)
        return self._of_valid(share.expand(self.shape).flatten())

    def _weight_by_row(self, head: Head) -> Tensor:
        """The weight of each row's steps, `(B,)`, in float64 on the CPU."""
        # Without padding, whose targets may be no classes.
        weights = self._of_valid(self.step_weights().flatten())  # (N,)
        own = head.weights(self._flat(part_of(self.known, head.key, "targets")))
        if own is not None:
            weights = weights * own.to("cpu", torch.float64)
        return weights.new_zeros(self.shape[1]).index_add(0, self._rows(), weights)

    def _rows(self) -> Tensor:
        """The row of each step that counts, `(N,)`, on the CPU."""
        time, batch = self.shape
        return self._of_valid(torch.arange(batch, device="cpu").repeat(time))

    def _row_by_row(self, i: int, laid: _Laid) -> Total:
        """Under `average="sequence"`, a function that gives one number for all."""
        head = self.loss.heads[i]
        row = self._rows()
        total = nothing(laid.outputs)
        for b in row.unique().tolist():
            here = (row == b).nonzero().squeeze(1)
            given = head(*(part[onto(here, part.device)] for part in laid))
            if isinstance(given, Each):
                given = given.total()
            if head.scalar and self.row_weights is not None:
                share = len(here) / float(self.row_weights[i][b])
                total += Total(given.mean() * share, share)
                continue
            if self.cut:
                raise Refusal(
                    'a loss that gives (sum, weight), average="sequence", and a part of its '
                    "sequences",
                    "whole sequences, for a part does not tell what the whole weighs",
                    'average="step", or a loss of each step, with the steps that count in '
                    "SequenceBatch.weights.",
                )
            counted = float(not given.empty)
            total += Total(given.mean() * counted, counted)
        return total
