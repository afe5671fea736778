"""Losses over sequences: a sum and a weight, so that what is put together from pieces is the loss of the whole.

`seq2seq_loss` and `seq2one_loss` make a `SequenceLoss`. It is asked in two steps: `loss.over(targets, ...)` says what is
scored and with what weight, a `Scored`; that is given outputs, whole or in parts, and answers with a `Total`.

    SequenceLoss  ->  Scored  ->  Total, a sum and a weight
                        one `_Head` for each loss function: what it gives for steps laid side by side
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss  # pyright: ignore[reportPrivateUsage]

from .core.errors import Refusal, asked, at_least, in_words, one_of
from .core.layout import all_lengths, as_sequences, check_lengths, extent, valid_steps
from .core.model import Declared, Model, check_call, run_model
from .core.state import map_leaves

LossFunction = Callable[..., Any]


# ---- A loss as two numbers


@dataclass(frozen=True, slots=True)
class Total:
    """A loss as a sum and a weight: `mean()` is what a user sees, `+` is how pieces are put together.

    With several heads (a dict of losses) both have a last dimension, the heads; the mean is then the sum over the heads
    of `scales` times each one's own mean.

    >>> import torch
    >>> (Total(torch.tensor(6.0), 3) + Total(torch.tensor(2.0), 1)).mean().item()
    2.0
    """

    sum: Tensor
    weight: Tensor | float
    scales: Tensor | None = None
    quotient: Tensor | None = (
        None  # the mean, where it came first: then it is torch's own to the bit
    )

    def __iter__(self) -> Iterator[Tensor | float]:
        return iter((self.sum, self.weight))

    def __add__(self, other: Total) -> Total:
        return Total(self.sum + other.sum, self.weight + other.weight, self.scales)

    def mean(self) -> Tensor:
        """The sum by the weight; 0, not NaN, where nothing was weighed."""
        if self.quotient is not None:
            return self.quotient
        if isinstance(self.weight, Tensor):
            weight = self.weight.to(self.sum.dtype)
            mean = self.sum / weight.masked_fill(weight == 0, 1)
        else:
            mean = self.sum / (self.weight or 1)
        if self.scales is None:
            return mean
        return (mean * self.scales).sum(-1)

    def detach(self) -> Total:
        """The same numbers without a gradient."""
        quotient = None if self.quotient is None else self.quotient.detach()
        return replace(self, sum=self.sum.detach(), quotient=quotient)

    @property
    def empty(self) -> bool:
        """Whether nothing was weighed: then there is no mean, and no gradient."""
        return not bool(self.weight.any()) if isinstance(self.weight, Tensor) else self.weight == 0


# ---- One loss function


class _Each(NamedTuple):
    """What a loss function gives for `N` steps: each one's loss and weight, `(N,)`, or one weight for all."""

    losses: Tensor
    weights: Tensor | float


class _Piece(NamedTuple):
    """What a loss function gives that tells of no single step: two scalars."""

    sum: Tensor
    weight: Tensor | float
    mean: Tensor | None = None


# These have a target of another shape than the outputs by nature: a class where there are scores.
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_CLASS_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)


class _Head:
    """One loss function, whatever its kind, asked for `N` steps side by side: outputs `(N, *O)`, targets `(N, *Y)`."""

    def __init__(self, loss_fn: LossFunction, key: Any = None) -> None:
        if not callable(loss_fn):
            wanted = "a loss function (outputs, targets)"
            raise Refusal(in_words(loss_fn), wanted, "nn.MSELoss().", TypeError)
        self.loss_fn = loss_fn
        self.key = key
        self.options = _torch_options(loss_fn)
        self.scalar = (
            False  # seen to give one number for all steps, which tells nothing of one of them
        )
        base: Any = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
        self.of_classes = isinstance(base, _CLASSES) or base in _CLASS_FUNCTIONS
        # A mean over targets leaves some out (ignore_index) or weighs them.
        self.weighs = isinstance(base, _CLASSES[:2]) or base in _CLASS_FUNCTIONS[:2]
        self._refuse_sum()

    def __call__(self, outputs: Tensor, targets: Any) -> _Each | _Piece:
        """Each step's loss where the function tells it, a sum and a weight where it does not."""
        if self.options is None:
            return self._of_a_function(self.loss_fn(outputs, targets), outputs)
        self._refuse_sum()
        losses = self._unreduced(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape[:1] != outputs.shape[:1]:
            return self._of_a_function(losses, outputs)  # a subclass that reduces by itself
        losses = _precise(losses)
        features = losses[0].numel() if len(losses) else 1
        per_step = losses.flatten(1).sum(1) if losses.ndim > 1 else losses
        weights = self.weights(targets)
        if weights is not None:
            return _Each(per_step, weights)
        return _Each(per_step, 1.0 if self.options["reduction"] == "batchmean" else float(features))

    def whole(self, outputs: Tensor, targets: Tensor) -> _Piece | None:
        """All steps at once, as torch reduces them, where that is quicker and the same; else nothing."""
        if (
            self.options is None
            or self.options["reduction"] != "mean"
            or outputs.dtype.itemsize < 4
        ):
            return None
        weight = float(targets.numel())
        if type(self.loss_fn) is nn.CrossEntropyLoss:
            if self.options["weight"] is not None or targets.is_floating_point():
                return None
            weight = float((targets != self.options["ignore_index"]).sum())
        elif type(self.loss_fn) is not nn.MSELoss:
            return None
        if weight == 0:
            return None
        mean = self.loss_fn(outputs, targets)
        return _Piece(mean * weight, weight, mean)

    def weights(self, targets: Tensor) -> Tensor | None:
        """What torch's mean divides by, step by step, `(N,)`; `None` where it counts every step alike."""
        if not self.weighs or targets.is_floating_point():  # probabilities: each step counts as one
            return None
        options: dict[str, Any] = _torch_options(self.loss_fn) or {}
        ignored = targets == options["ignore_index"]
        class_weight: Tensor | None = options["weight"]
        if class_weight is None:
            weights = (~ignored).to(
                torch.float32 if targets.device.type == "mps" else torch.float64
            )
        else:
            weights = class_weight[targets.masked_fill(ignored, 0)].masked_fill(ignored, 0)
        return weights.flatten(1).sum(1) if weights.ndim > 1 else weights

    def _unreduced(self, outputs: Tensor, targets: Any) -> Any:
        if not isinstance(self.loss_fn, nn.Module):
            legacy = {"size_average": None, "reduce": None}
            return self.loss_fn(
                outputs, targets, **{**_legacy_of(self.loss_fn, legacy), "reduction": "none"}
            )
        # A copy that shares everything but the one word, so that other threads may use the loss.
        view = object.__new__(type(self.loss_fn))
        view.__dict__.update(self.loss_fn.__dict__)
        view.__dict__["reduction"] = "none"
        return view(outputs, targets)

    def of_all(self, outputs: Any, targets: Any, lengths: Tensor) -> _Each | _Piece:
        """What the function makes of a whole batch of `B` sequences."""
        rows = torch.empty(len(lengths), 0, device="cpu")
        return self._of_a_function(self.loss_fn(outputs, targets, lengths), rows)

    def _of_a_function(self, given: Any, outputs: Tensor) -> _Each | _Piece:
        if isinstance(given, tuple) and len(given) == 2:
            return _pair(given)
        if not isinstance(given, Tensor) or (given.ndim and given.shape[0] != len(outputs)):
            raise Refusal(
                f"{in_words(given)} from the loss of outputs {in_words(outputs)}",
                "a scalar (a mean over the steps), one loss a step, or a pair (sum, weight)",
                'use a loss with reduction "mean" or "none".',
            )
        if given.ndim == 0:
            self.scalar = True
            mean = _precise(given)
            return _Piece(mean * len(outputs), float(len(outputs)), mean)
        each = _precise(given)
        return _Each(each.flatten(1).mean(1) if each.ndim > 1 else each, 1.0)

    def _refuse_sum(self) -> None:
        if self.options is None:
            return
        reduction = getattr(self.loss_fn, "reduction", self.options["reduction"])
        if reduction == "sum":
            raise Refusal(
                'a loss with reduction="sum"',
                'reduction="mean" or "none"',
                "a sum grows with the length of the batch; build the loss with the mean and set the learning rate, or "
                "give a function that says what it divides by: lambda y, t: (F.mse_loss(y, t, reduction='sum'), 1.0).",
            )


def _torch_options(loss_fn: Any) -> dict[str, Any] | None:
    """The options of a loss of PyTorch's own, module or function, which can be had unreduced; else nothing."""
    if isinstance(loss_fn, _Loss):
        names = ("reduction", "ignore_index", "weight")
        return {name: getattr(loss_fn, name, None) for name in names}
    given: dict[str, Any] = {}
    function = loss_fn
    while isinstance(function, functools.partial):
        if function.args:
            return None
        given = {**function.keywords, **given}
        function = function.func
    if getattr(function, "__module__", "") != "torch.nn.functional":
        return None
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    if "reduction" not in defaults:
        return None
    options = {"ignore_index": None, "weight": None, **defaults, **given}
    if options.get("size_average") is False and options.get("reduce") is not False:
        options["reduction"] = "sum"  # the old way to say so
    return options


def _legacy_of(function: Any, names: dict[str, None]) -> dict[str, None]:
    """Of the two old words for a reduction those that `partial` was given: they would win over the new one."""
    keywords: Mapping[str, Any] = getattr(function, "keywords", {})
    return {name: None for name in names if name in keywords}


def _pair(given: tuple[Any, Any]) -> _Piece:
    total, weight = given
    scalars = [part for part in given if isinstance(part, Tensor) and part.ndim == 0]
    numbers = [part for part in given if isinstance(part, int | float)]
    if not isinstance(total, Tensor) or len(scalars) + len(numbers) < 2:
        raise Refusal(
            f"a pair of {in_words(total)} and {in_words(weight)} from the loss",
            "a pair of scalars, (sum, weight)",
            "sum the losses of the steps that count, and count them.",
        )
    return _Piece(_precise(total), weight if isinstance(weight, Tensor) else float(weight))


def _precise(losses: Tensor) -> Tensor:
    """In float32 at least: sums of bfloat16 stop growing at 256 steps."""
    return losses.float() if losses.dtype.itemsize < 4 else losses


def _zero(outputs: Tensor) -> Tensor:
    """A sum of nothing that still has a gradient, of zeros."""
    return _precise(outputs.flatten()[:0].sum())


# ---- What is scored


class Scored:
    """The targets of a batch, which of its steps count, and with what weight: what outputs are held against."""

    opaque = (
        False  # whether some loss function told nothing of single steps: then pieces may not add up
    )

    def total(self, outputs: Any) -> Total:
        """The sum and the weight of all that is scored."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """The steps that are scored, or the sequences where the loss averages those."""
        raise NotImplementedError

    def between(self, start: int, stop: int) -> Scored:
        """What is scored of the steps from `start` to before `stop`."""
        raise NotImplementedError

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        """The totals of parts of the batch, each a mask `(T, B)`, bool on the CPU: one run of steps in each row."""
        raise NotImplementedError

    def by_step(self, outputs: Any) -> Total:
        """The totals of each step alone, `(T,)`."""
        raise NotImplementedError

    def of_window(self, time: int, lengths: Tensor) -> Scored | None:
        """One target a sequence, for outputs of each row's last steps alone."""
        raise NotImplementedError

    def only(self, mask: Tensor) -> Scored:
        """What is scored of the steps in a mask `(T, B)`, bool on the CPU."""
        raise NotImplementedError

    def step_weights(self) -> Tensor:
        """What each step counts, `(T, B)`, on the CPU; 0 where it is not scored."""
        raise NotImplementedError

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        """What is scored, side by side: outputs `(N, *O)` and targets `(N, *Y)`."""
        raise NotImplementedError

    def _stacked(self, totals: Sequence[Total], scales: tuple[float, ...] | None) -> Total:
        """The heads' totals as one: with a dict of losses a last dimension of heads."""
        if scales is None:
            return totals[0]
        sums = torch.stack([total.sum for total in totals], -1)
        weights = torch.stack([torch.as_tensor(t.weight).to(sums) for t in totals], -1)
        return Total(sums, weights, sums.new_tensor(scales))


class _Steps(Scored):
    """A target for each step."""

    def __init__(
        self,
        loss: SequenceLoss,
        targets: Any,
        mask: Tensor | None,
        weights: Tensor | None,
        whole_rows: list[Tensor] | None = None,
        cut: bool = False,
    ) -> None:
        self.loss = loss
        self.targets = targets
        self.extent = extent(targets)
        self.mask = mask
        self.weights = weights
        self.cut = cut  # a piece of a longer batch
        self.index = None if mask is None else mask.flatten().nonzero().squeeze(1)
        self.whole_rows = whole_rows
        if whole_rows is None and loss.average == "sequence":
            self.whole_rows = [self._weight_by_row(head) for head in loss.heads]

    def total(self, outputs: Any) -> Total:
        flat, targets = self.valid(outputs)
        totals: list[Total] = []
        for i, head in enumerate(self.loss.heads):
            totals.append(self._of(i, _at(flat, head.key), _at(targets, head.key)))
        return self._stacked(totals, self.loss.scales)

    @property
    def count(self) -> int:
        time, batch = self.extent
        if self.loss.average == "sequence":
            return batch if self.mask is None else int(self.mask.any(0).sum())
        return time * batch if self.index is None else len(self.index)

    def between(self, start: int, stop: int) -> Scored:
        return _Steps(
            self.loss,
            map_leaves(lambda part: part[start:stop], self.targets),
            None if self.mask is None else self.mask[start:stop],
            None if self.weights is None else self.weights[start:stop],
            self.whole_rows,
            cut=True,
        )

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        chosen: list[Tensor] = []
        for mask in masks:
            mask = mask.flatten()
            chosen.append(mask if self.index is None else mask[self.index])
        flat, targets = self.valid(outputs)
        by_head: list[list[Total]] = []
        for i, head in enumerate(self.loss.heads):
            own_outputs, own_targets = _at(flat, head.key), _at(targets, head.key)
            table = self._table(i, own_outputs, own_targets)
            if table is None:
                pieces = [self.only(masks[k]).total(outputs) for k in range(len(masks))]
                by_head.append([_head_of(piece, i) for piece in pieces])
            else:
                by_head.append([_sum_of(table, where) for where in chosen])
        return [self._stacked(totals, self.loss.scales) for totals in zip(*by_head, strict=True)]

    def by_step(self, outputs: Any) -> Total:
        time, batch = self.extent
        flat, targets = self.valid(outputs)
        step = torch.arange(time * batch, device="cpu") if self.index is None else self.index
        step = step // batch  # (N,)
        totals: list[Total] = []
        for i, head in enumerate(self.loss.heads):
            table = self._table(i, _at(flat, head.key), _at(targets, head.key))
            if table is None:
                alone = [
                    _head_of(self.between(t, t + 1).total(_cut(outputs, t)), i) for t in range(time)
                ]
                sums = torch.stack([total.sum for total in alone])
                weights = torch.stack([torch.as_tensor(total.weight).to(sums) for total in alone])
                totals.append(Total(sums, weights))
            else:
                where = step.to(table.losses.device)
                sums = table.losses.new_zeros(time).index_add(0, where, table.losses)
                weights = sums.new_zeros(time).index_add(0, where, _spread(table).to(sums.dtype))
                totals.append(Total(sums, weights))
        return self._stacked(totals, self.loss.scales)

    def step_weights(self) -> Tensor:
        weights = torch.ones(self.extent, dtype=torch.float64, device="cpu")
        if self.mask is not None:
            weights = weights * self.mask
        return weights if self.weights is None else weights * self.weights

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        self._check(outputs)
        return map_leaves(self._flat, outputs), map_leaves(self._flat, self.targets)

    def _flat(self, leaf: Tensor) -> Tensor:
        flat = leaf.flatten(0, 1)  # (T * B, *F)
        return flat if self.index is None else flat.index_select(0, self.index.to(flat.device))

    def only(self, mask: Tensor) -> Scored:
        both = mask if self.mask is None else mask & self.mask
        return _Steps(self.loss, self.targets, both, self.weights, self.whole_rows, cut=True)

    def _check(self, outputs: Any) -> None:
        if isinstance(outputs, dict) != (self.loss.scales is not None):
            heads = [head.key for head in self.loss.heads]
            wanted = "one sequence of outputs" if heads == [None] else f"a dict with {heads}"
            raise Refusal(
                f"outputs = {in_words(outputs)}",
                wanted,
                "a dict of outputs goes with a dict of losses.",
            )
        for head in self.loss.heads:
            own, target = _at(outputs, head.key, "outputs"), _at(self.targets, head.key, "targets")
            if own.shape[:2] != target.shape[:2]:
                came = f"outputs {in_words(own)} and targets {in_words(target)}"
                fix = "one target for each step and row; one target for a whole sequence is seq2one_loss."
                raise Refusal(came, "the same T and B for both", fix)
            _refuse_broadcast(head, own, target)

    def _of(self, i: int, outputs: Tensor, targets: Tensor) -> Total:
        """One head's total; outputs `(N, *O)`, targets `(N, *Y)`."""
        head = self.loss.heads[i]
        if not len(outputs):
            return Total(_zero(outputs), 0.0)
        if self.weights is None and self.whole_rows is None:
            given = head.whole(outputs, targets) or head(outputs, targets)
            if isinstance(given, _Piece):
                return Total(given.sum, given.weight, None, given.mean)
            return _sum_of(given, None)
        table = self._table(i, outputs, targets)
        return self._row_by_row(i, outputs, targets) if table is None else _sum_of(table, None)

    def _table(self, i: int, outputs: Tensor, targets: Tensor) -> _Each | None:
        """What each of the `N` steps adds to the sum and to the weight; nothing where a head does not tell."""
        if not len(outputs):
            return _Each(_precise(outputs.flatten()[:0]), 0.0)
        given = self.loss.heads[i](outputs, targets)
        if isinstance(given, _Piece):
            self._refuse_weights()
            return None
        if self.weights is None and self.whole_rows is None:
            return given
        factors = self._factors(i).to(given.losses)
        losses, weights = given
        if self.whole_rows is not None and not isinstance(weights, Tensor):
            losses, weights = losses / weights, 1.0  # a row counts its steps, not their features
        return _Each(losses * factors, weights * factors)

    def _factors(self, i: int) -> Tensor:
        """What the steps' own weights and their rows' shares make of each step, `(N,)`."""
        time, batch = self.extent
        factors = torch.ones(time, batch, dtype=torch.float64, device="cpu")
        if self.weights is not None:
            factors = factors * self.weights
        if self.whole_rows is not None:
            whole = self.whole_rows[i]
            factors = factors * torch.where(whole > 0, 1 / whole, 0)
        flat = factors.flatten()
        return flat if self.index is None else flat[self.index]

    def _weight_by_row(self, head: _Head) -> Tensor:
        """The weight of each row's steps, `(B,)`, in float64 on the CPU."""
        time, batch = self.extent
        weights = self.step_weights()
        own = head.weights(_at(self.targets, head.key, "targets").flatten(0, 1))
        if own is not None:
            weights = weights * own.view(time, batch).to("cpu", torch.float64)
        return weights.sum(0)

    def _row_by_row(self, i: int, outputs: Tensor, targets: Tensor) -> Total:
        """Under `average="sequence"`, a function that gives one number for all it is given: called row by row."""
        assert_rows = self.whole_rows
        head = self.loss.heads[i]
        time, batch = self.extent
        row = torch.arange(time * batch, device="cpu") if self.index is None else self.index
        row = row % batch
        total = Total(_zero(outputs), 0.0)
        for b in row.unique().tolist():
            here = (row == b).nonzero().squeeze(1).to(outputs.device)
            given = head(outputs[here], targets[here])
            if not isinstance(given, _Piece):
                raise Refusal(
                    "a loss that is now one number, now many", "one of the two", "reduce it always."
                )
            if head.scalar and assert_rows is not None:
                share = len(here) / float(assert_rows[i][b])
                total += Total(given.sum / len(here) * share, share)
            elif self.cut:
                raise Refusal(
                    'a loss that gives (sum, weight), average="sequence", and a part of its sequences',
                    "whole sequences, for a part does not tell what the whole weighs",
                    'average="step", or give a loss of each step and mark the steps by SequenceBatch.weights.',
                )
            else:
                total += Total(*_mean_of_piece(given))
        return total

    def _refuse_weights(self) -> None:
        if self.weights is not None:
            raise Refusal(
                "weights and a loss that tells of no single step",
                "a loss of each step",
                'build it with reduction="none", or let the function return one loss a step.',
            )


def _mean_of_piece(piece: _Piece) -> tuple[Tensor, Tensor | float]:
    """One sequence's own mean, and 1; nothing of a sequence that weighs nothing."""
    mean = Total(piece.sum, piece.weight)
    if mean.empty:
        return piece.sum * 0, 0.0
    return mean.mean(), 1.0


def _spread(table: _Each) -> Tensor:
    weights = table.weights
    return (
        weights
        if isinstance(weights, Tensor)
        else torch.full_like(table.losses, weights, requires_grad=False)
    )


def _sum_of(table: _Each, where: Tensor | None) -> Total:
    """The total of a table, or of the steps `where` (bool `(N,)`)."""
    losses, weights = table
    if where is None:
        return Total(
            losses.sum(), weights.sum() if isinstance(weights, Tensor) else weights * len(losses)
        )
    index = where.nonzero().squeeze(1)
    chosen = losses.index_select(0, index.to(losses.device))
    if isinstance(weights, Tensor):
        return Total(chosen.sum(), weights.index_select(0, index.to(weights.device)).sum())
    return Total(chosen.sum(), weights * len(index))


def _head_of(total: Total, i: int) -> Total:
    """One head's part of a total."""
    if total.scales is None:
        return total
    weight: Any = total.weight
    return Total(total.sum[..., i], weight[..., i])


def _at(tree: Any, key: Any, name: str = "") -> Any:
    """A head's own outputs or targets."""
    if key is None:
        return tree
    if not isinstance(tree, dict) or key not in tree:
        raise Refusal(
            f"{name} = {in_words(tree)}",
            f"a dict with {key!r}",
            "name each head alike in all dicts.",
        )
    return tree[key]


def _cut(outputs: Any, t: int) -> Any:
    return map_leaves(lambda part: part[t : t + 1], outputs)


def _refuse_broadcast(head: _Head, outputs: Tensor, targets: Tensor) -> None:
    """Refuse shapes that would broadcast to a wrong number, whatever the dtype of the targets."""
    if head.of_classes or outputs.shape == targets.shape:
        return
    short, long = outputs.shape, targets.shape
    if len(short) > len(long):
        short, long = long, short
    elementwise = head.options is not None and _elementwise(head.loss_fn)
    if elementwise or (*short, 1) == tuple(long):
        raise Refusal(
            f"outputs {in_words(outputs)} and targets {in_words(targets)}",
            "equal shapes",
            "they would broadcast to a wrong number; add the missing dimension with targets.unsqueeze(-1).",
        )


_SAME_SHAPE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss, nn.KLDivLoss,
    nn.SoftMarginLoss, nn.HingeEmbeddingLoss,
)  # fmt: skip
_SAME_SHAPE_FUNCTIONS = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss, F.kl_div, F.soft_margin_loss, F.hinge_embedding_loss,
)  # fmt: skip


def _elementwise(loss_fn: Any) -> bool:
    """Whether a loss of PyTorch's compares outputs and targets one by one."""
    base = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    return isinstance(base, _SAME_SHAPE) or base in _SAME_SHAPE_FUNCTIONS


class _Rows(Scored):
    """A target for each sequence."""

    def __init__(
        self, loss: ReadLoss, targets: Any, time: int, lengths: Tensor, weights: Tensor | None
    ) -> None:
        self.loss = loss
        self.time = time
        counts = lengths > 0
        if weights is not None:
            counts = counts & (weights != 0)
        self.rows = counts.nonzero().squeeze(1)
        self.all = len(self.rows) == len(lengths)
        self.lengths = lengths if self.all else lengths[self.rows]
        self.weights = weights if weights is None or self.all else weights[self.rows]
        self.targets = targets if self.all else map_leaves(self._choose, targets)

    @property
    def count(self) -> int:
        return len(self.rows)

    def of_window(self, time: int, lengths: Tensor) -> Scored | None:
        """The same targets for outputs of each row's last steps alone; nothing where the reading wants all of them."""
        if self.loss.read != "last":
            return None
        window = copy.copy(self)
        window.time = time
        window.lengths = lengths if self.all else lengths[self.rows]
        return window

    def _choose(self, leaf: Tensor) -> Tensor:
        return leaf[self.rows.to(leaf.device)]

    def total(self, outputs: Any) -> Total:
        outputs = self._own(outputs)
        totals: list[Total] = []
        answers = outputs if self.loss.read == "all" else self.loss.read_out(outputs, self.lengths)
        for head in self.loss.heads:
            answer = _at(answers, head.key, "outputs")
            target = _at(self.targets, head.key, "targets")
            if not len(self.rows):
                totals.append(Total(_zero(answer), 0.0))
            elif self.loss.read == "all":
                totals.append(self._of(head, head.of_all(answer, target, self.lengths)))
            else:
                _check_target(answer, target, outputs)
                _refuse_broadcast(head, answer, target)
                totals.append(self._of(head, head(answer, target)))
        return self._stacked(totals, self.loss.scales)

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        if self.loss.read == "all":
            fix = 'seq2one_loss(read="last") or a function that reads.'
            raise Refusal('read="all"', "a loss that reads one output a sequence", fix)
        return self.loss.read_out(self._own(outputs), self.lengths), self.targets

    def _own(self, outputs: Any) -> Any:
        time, _ = extent(outputs)
        if time != self.time:
            raise Refusal(
                f"outputs of {time} steps", f"{self.time} steps", "score all outputs of the batch."
            )
        return (
            outputs
            if self.all
            else map_leaves(lambda part: part[:, self.rows.to(part.device)], outputs)
        )

    def _of(self, head: _Head, given: _Each | _Piece) -> Total:
        if isinstance(given, _Each) and self.weights is not None:
            factors = self.weights.to(given.losses)
            return _sum_of(_Each(given.losses * factors, given.weights * factors), None)
        if isinstance(given, _Each):
            return _sum_of(given, None)
        if self.weights is not None:
            fix = 'build it with reduction="none", or let the function return one loss a sequence.'
            raise Refusal(
                "weights and a loss that tells of no single sequence", "a loss of each", fix
            )
        return Total(given.sum, given.weight)


def _check_target(answer: Tensor, target: Any, outputs: Any) -> None:
    """One target a sequence, and not one for every step."""
    batch = len(answer)
    if not isinstance(target, Tensor):
        fix = "torch.as_tensor(targets); one target for each step is seq2seq_loss."
        raise Refusal(f"targets = {in_words(target)}", f"targets ({batch}, *Y)", fix, TypeError)
    shapes = [part.shape for part in (outputs.values() if isinstance(outputs, dict) else [outputs])]
    every_step = target.shape[:2] == shapes[0][:2] and not target.is_floating_point()
    if target.shape[:1] != (batch,) or target.shape in shapes or every_step:
        came = f"outputs {', '.join(str(tuple(shape)) for shape in shapes)} and targets {in_words(target)}"
        fix = "for a target at every step use seq2seq_loss; for the last one pass targets[-1]."
        raise Refusal(came, f"one target a sequence, ({batch}, *Y)", fix)


class _Plain(Scored):
    """A function of the user's over the padded batch: it sees all of the steps it is asked about, and is not opened."""

    opaque = True

    def __init__(
        self, loss: PlainLoss, targets: Any, time: int, batch: int, lengths: Tensor | None
    ) -> None:
        self.loss = loss
        self.targets = targets
        self.time = time
        self.batch = batch
        self.lengths = lengths

    def total(self, outputs: Any) -> Total:
        return self._of(outputs, self.targets, self.lengths)

    @property
    def count(self) -> int:
        return int(self._mask().sum())

    def between(self, start: int, stop: int) -> Scored:
        lengths = None if self.lengths is None else (self.lengths - start).clamp(0, stop - start)
        targets = map_leaves(lambda part: part[start:stop], self.targets)
        return _Plain(self.loss, targets, stop - start, self.batch, lengths)

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        return [self._part(outputs, mask) for mask in masks]

    def step_weights(self) -> Tensor:
        return self._mask().double()

    def _mask(self) -> Tensor:
        return valid_steps(all_lengths(self.lengths, self.time, self.batch), self.time)

    def by_step(self, outputs: Any) -> Total:
        alone = [self.between(t, t + 1).total(_cut(outputs, t)) for t in range(self.time)]
        sums = torch.stack([total.sum for total in alone])
        return Total(sums, torch.stack([torch.as_tensor(total.weight).to(sums) for total in alone]))

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        mask = self._mask()

        def flat(leaf: Tensor) -> Tensor:
            return leaf[mask.to(leaf.device)]

        return map_leaves(flat, outputs), map_leaves(flat, self.targets)

    def _part(self, outputs: Any, mask: Tensor) -> Total:
        """One run of steps in each row, moved to the front: the form in which the function knows a batch."""
        mask = mask & self._mask()
        counts = mask.sum(0)  # (B,)
        longest = int(counts.max())
        if longest == 0:
            return Total(
                _zero(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs), 0.0
            )
        starts = mask.int().argmax(0)
        index = starts + torch.arange(longest, device="cpu").unsqueeze(1)
        index = index.clamp(max=self.time - 1)  # (longest, B)
        rows = torch.arange(self.batch, device="cpu").expand_as(index)

        def gather(leaf: Tensor) -> Tensor:
            return leaf[index.to(leaf.device), rows.to(leaf.device)]

        equal = self.lengths is None and bool((counts == longest).all())
        lengths = None if equal else counts
        return self._of(map_leaves(gather, outputs), map_leaves(gather, self.targets), lengths)

    def _of(self, outputs: Any, targets: Any, lengths: Tensor | None) -> Total:
        time, batch = extent(outputs)
        if lengths is not None and not bool(lengths.all()):  # rows without a step take no part
            rows = lengths.nonzero().squeeze(1)

            def choose(leaf: Tensor) -> Tensor:
                return leaf[:, rows.to(leaf.device)]

            outputs, targets = map_leaves(choose, outputs), map_leaves(choose, targets)
            lengths = lengths[rows]
            batch = len(rows)
        if batch == 0:
            return Total(torch.zeros(()), 0.0)
        given = self.loss.call(outputs, targets, lengths, time, batch)
        if isinstance(given, tuple):
            total, weight, _ = _pair(given)
            return Total(total, weight)
        if not isinstance(given, Tensor) or given.ndim:
            fix = "average it: seq2seq_loss takes an unreduced loss and does."
            raise Refusal(
                f"a loss {in_words(given)}", "a scalar tensor, or a pair (sum, weight)", fix
            )
        count = float(time * batch if lengths is None else int(lengths.sum()))
        mean = _precise(given)
        return Total(mean * count, count, None, mean)


def check_adds_up(whole: Total, parts: Sequence[Total]) -> None:
    """Refuse a loss whose parts, put together, are not the loss of the whole: it is no mean of steps."""
    together = functools.reduce(Total.__add__, parts).mean()
    mean = whole.mean()
    if not torch.isclose(together, mean, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise Refusal(
            f"a loss of {float(mean):.4g} whose parts put together are {float(together):.4g}",
            "a mean over the steps it is given, or a pair (sum, weight), where a batch is scored in parts (window, nfeedback)",
            "return the pair; seq2seq_loss(..., warmup=n) leaves out first steps; or use neither window nor nfeedback.",
        )


# ---- The losses that users make


class SequenceLoss:
    """What [seq2seq_loss][rnnkit.seq2seq_loss] and [seq2one_loss][rnnkit.seq2one_loss] make."""

    name = "a loss"
    average = "step"
    per_sequence = False  # one target a sequence, so that there are no targets to cut into windows

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        weights: Mapping[Any, float] | None,
    ) -> None:
        self.loss_fn = loss_fn
        self.scales: tuple[float, ...] | None = None
        if not isinstance(loss_fn, Mapping):
            if weights is not None:
                fix = "weights go with a dict of losses; the weights of steps are SequenceBatch.weights."
                raise Refusal(
                    f"weights = {in_words(weights)} and one loss",
                    "a dict of losses",
                    fix,
                    TypeError,
                )
            self.heads = [_Head(loss_fn)]
            return
        given = {} if weights is None else dict(weights)
        if not loss_fn or not given.keys() <= loss_fn.keys():
            came = f"losses {list(loss_fn)} and weights {list(given)}"
            raise Refusal(came, "a loss for each weight", "name each head alike in both.")
        self.heads = [_Head(function, key) for key, function in loss_fn.items()]
        self.scales = tuple(float(given.get(key, 1.0)) for key in loss_fn)
        if not all(map(math.isfinite, self.scales)):
            raise Refusal(
                f"weights {self.scales}",
                "finite numbers",
                "leave a head out by leaving it out of the dict.",
            )

    def __call__(
        self,
        outputs: Any,
        targets: Any,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        return self.total(outputs, targets, lengths, weights).mean()

    def total(
        self,
        outputs: Any,
        targets: Any,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Total:
        """The sum and the weight of which the loss is the quotient, for putting pieces together."""
        return self._total(outputs, targets, lengths, weights)

    @asked(lambda loss: loss.name)
    def _total(
        self, outputs: Any, targets: Any, lengths: Tensor | None, weights: Tensor | None
    ) -> Total:
        outputs = as_sequences(outputs, "outputs")
        time, batch = extent(outputs)
        if lengths is not None:
            check_lengths(lengths, time, batch)
        came = f"outputs {in_words(outputs)}"
        return self.over(targets, time, batch, lengths, weights, came=came).total(outputs)

    @asked(lambda loss: f"{loss.name}.on")
    def on(
        self,
        model: Model,
        inputs: Any,
        targets: Any,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a model from its first state: the form `loss(model, xs, ys)` of issue 144."""
        self.check_model(model)
        inputs = check_call(model, inputs, lengths=lengths)
        outputs, _ = run_model(model, inputs, None, lengths, carry=False)
        return self(outputs, targets, lengths, weights)

    def over(
        self,
        targets: Any,
        time: int,
        batch: int,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        read: Tensor | None = None,
        came: str = "",
    ) -> Scored:
        """What is scored of a batch of `T` steps and `B` rows.

        `read (B,)` counts the steps of each row that came before; `came` is what the targets are held against, in words.
        """
        raise NotImplementedError

    def check_model(self, model: Model) -> None:
        """Refuse a model whose outputs this loss would misread."""

    @property
    def opaque(self) -> bool:
        """Whether it was seen to give one number for many steps: then parts of a batch may not add up."""
        return any(head.scalar for head in self.heads)

    def modules(self) -> list[nn.Module]:
        """The modules among the loss functions: they may have parameters and buffers of their own."""
        return [head.loss_fn for head in self.heads if isinstance(head.loss_fn, nn.Module)]


class StepLoss(SequenceLoss):
    """A loss of every step."""

    name = "seq2seq_loss"

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        average: str,
        warmup: int,
        weights: Mapping[Any, float] | None,
    ) -> None:
        super().__init__(loss_fn, weights)
        self.average = average
        self.warmup = warmup

    def over(
        self,
        targets: Any,
        time: int,
        batch: int,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        read: Tensor | None = None,
        came: str = "",
    ) -> Scored:
        targets = as_sequences(targets, "targets")
        if extent(targets) != (time, batch):
            came = f"{came} and targets {in_words(targets)}"
            fix = (
                "one target for each step and row; one target for a whole sequence is seq2one_loss."
            )
            raise Refusal(came, "the same T and B for both", fix)
        mask = None if lengths is None else valid_steps(lengths, time)
        if self.warmup:
            steps = torch.arange(time, device="cpu").unsqueeze(1)
            before = torch.zeros(batch, dtype=torch.int64, device="cpu") if read is None else read
            late = steps + before >= self.warmup
            mask = late if mask is None else mask & late
        if weights is not None:
            weights = _check_weights(weights, (time, batch))
            mask = weights != 0 if mask is None else mask & (weights != 0)
        if mask is not None and bool(mask.all()):
            mask = None
        return _Steps(self, targets, mask, weights)


class ReadLoss(SequenceLoss):
    """A loss of one output for each sequence."""

    name = "seq2one_loss"
    average = "sequence"
    per_sequence = True

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        read: str | Callable[..., Any],
        weights: Mapping[Any, float] | None,
    ) -> None:
        super().__init__(loss_fn, weights)
        self.read = read

    def over(
        self,
        targets: Any,
        time: int,
        batch: int,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        read: Tensor | None = None,
        came: str = "",
    ) -> Scored:
        lengths = all_lengths(lengths, time, batch)
        if weights is not None:
            weights = self._own_weights(weights, time, batch, lengths)
        _check_batch_first(targets, batch, came)
        return _Rows(self, targets, time, lengths, weights)

    def _own_weights(self, weights: Tensor, time: int, batch: int, lengths: Tensor) -> Tensor:
        if weights.ndim == 1:
            return _check_weights(weights, (batch,))
        if self.read != "last":
            came = f"weights {in_words(weights)} of steps, and read={self.read!r}"
            raise Refusal(
                came, f"weights ({batch},) of sequences", "a step has no loss of its own here."
            )
        weights = _check_weights(weights, (time, batch))
        return weights[(lengths - 1).clamp(min=0), torch.arange(batch, device="cpu")]

    def check_model(self, model: Model) -> None:
        if self.read == "last" and Declared(model).bidirectional:
            raise Refusal(
                'a bidirectional model, read="last"',
                "an output that both directions have read a sequence for: at the last step the backward one has read one",
                'seq2one_loss(loss_fn, read="mean") or "max", or a function of (outputs, lengths) that takes the forward '
                "half at the last step and the backward half at step 0.",
            )

    def read_out(self, outputs: Any, lengths: Tensor) -> Any:
        """One output for each row, `(B, *O)`, of outputs `(T, B, *O)`."""
        if not isinstance(self.read, str):
            answers = self.read(outputs, lengths)
            for answer in answers.values() if isinstance(answers, dict) else [answers]:
                if not isinstance(answer, Tensor) or answer.shape[:1] != lengths.shape:
                    came = f"{in_words(answer)} from read"
                    raise Refusal(came, f"({len(lengths)}, *O)", "give one output for each row.")
            return answers
        return map_leaves(lambda leaf: _READERS[str(self.read)](leaf, lengths), outputs)


def _read_last(outputs: Tensor, lengths: Tensor) -> Tensor:
    if bool((lengths == len(outputs)).all()):
        return outputs[-1]
    rows = torch.arange(len(lengths), device="cpu").to(outputs.device)
    return outputs[(lengths - 1).to(outputs.device), rows]


def _valid_like(outputs: Tensor, lengths: Tensor) -> Tensor:
    valid = valid_steps(lengths, len(outputs)).to(outputs.device)
    return valid.view(*valid.shape, *[1] * (outputs.ndim - 2))


def _read_mean(outputs: Tensor, lengths: Tensor) -> Tensor:
    total = torch.where(_valid_like(outputs, lengths), outputs, 0).sum(0)  # (B, *O)
    return total / lengths.to(outputs).view(-1, *[1] * (total.ndim - 1))


def _read_max(outputs: Tensor, lengths: Tensor) -> Tensor:
    return outputs.masked_fill(~_valid_like(outputs, lengths), -math.inf).amax(0)


_READERS = {"last": _read_last, "mean": _read_mean, "max": _read_max}


def _check_batch_first(targets: Any, batch: int, came: str) -> None:
    """Every tensor among the targets has one entry for each sequence."""

    def check(leaf: Tensor) -> Tensor:
        if leaf.shape[:1] != (batch,):
            fix = "for a target at every step use seq2seq_loss; for the last one pass targets[-1]."
            raise Refusal(
                f"{came} and targets {in_words(leaf)}", f"one target a sequence, ({batch}, *Y)", fix
            )
        return leaf

    if isinstance(targets, Tensor | tuple | dict):
        map_leaves(check, targets)


def _check_weights(weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    weights = weights.to("cpu")
    if tuple(weights.shape) != shape:
        came = f"weights {in_words(weights)}"
        raise Refusal(
            came, f"weights {shape}", "one weight for each step and row; 0 leaves a step out."
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise Refusal(
            "weights that are negative or not finite", "weights >= 0", "0 leaves a step out."
        )
    return weights


class PlainLoss(SequenceLoss):
    """Any function `loss(outputs, targets)` or `loss(outputs, targets, lengths)` over a padded batch, to a scalar."""

    name = "the loss"

    def __init__(self, function: LossFunction) -> None:
        if not callable(function):
            fix = "seq2seq_loss(nn.MSELoss())."
            raise Refusal(f"loss = {in_words(function)}", "a loss function", fix, TypeError)
        self.loss_fn = function
        self.heads = []
        self.scales = None
        self.wants_lengths, self.takes_lengths = _takes_lengths(function)

    @property
    def opaque(self) -> bool:
        return True

    def over(
        self,
        targets: Any,
        time: int,
        batch: int,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        read: Tensor | None = None,
        came: str = "",
    ) -> Scored:
        if weights is not None:
            fix = "seq2seq_loss(loss_fn) knows what weights of steps mean."
            raise Refusal("weights of steps and a function of its own", "a loss of each step", fix)
        targets = as_sequences(targets, "targets")
        if extent(targets) != (time, batch):
            came = f"{came} and targets {in_words(targets)}"
            fix = "one target for each step and row; a target a sequence goes with seq2one_loss."
            raise Refusal(came, "the same T and B for both", fix)
        return _Plain(self, targets, time, batch, lengths)

    def call(
        self, outputs: Any, targets: Any, lengths: Tensor | None, time: int, batch: int
    ) -> Any:
        """The function's answer, given lengths where it wants them or where there are any."""
        if self.wants_lengths:
            return self.loss_fn(outputs, targets, all_lengths(lengths, time, batch))
        if lengths is None:
            return self.loss_fn(outputs, targets)
        if not self.takes_lengths:
            fix = "loss(outputs, targets, lengths), or seq2seq_loss(loss_fn), which leaves padding out."
            raise Refusal(
                "a loss of two arguments and a batch with lengths",
                "one that takes lengths",
                fix,
                TypeError,
            )
        return self.loss_fn(outputs, targets, lengths)

    def modules(self) -> list[nn.Module]:
        return [self.loss_fn] if isinstance(self.loss_fn, nn.Module) else []


def _takes_lengths(function: LossFunction) -> tuple[bool, bool]:
    """Whether a function must be given a third argument, and whether it can be."""
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # written in C
        return False, True
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in by_place if p.default is p.empty]
    named = any(p.name == "lengths" for p in parameters)
    return len(required) >= 3, len(by_place) >= 3 or any_number or named


def as_loss(loss: Any) -> SequenceLoss:
    """A loss as a phase knows it: one of PyTorch's goes over steps, any other function over the padded batch."""
    if isinstance(loss, SequenceLoss):
        return loss
    if callable(loss) and _torch_options(loss) is not None:
        return StepLoss(loss, "step", 0, None)
    return PlainLoss(loss)


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

    It is a sum and a weight, `loss.total(outputs, targets, lengths)`, and pieces of a batch (windows, single steps, the
    batches of an epoch) are put together by adding sums and adding weights: what comes out is the loss of the whole.

    | `loss_fn` | sum and weight |
    |---|---|
    | a loss of PyTorch with `reduction`, module, function or `functools.partial` of one | taken unreduced; the weight is what its mean divides by: elements, without `ignore_index`, class weights counted |
    | a function to one loss a step, `(N,)` or `(N, *F)` | their sum (a step's features averaged), and `N` |
    | a function to a scalar | the scalar times `N`, and `N`: it must be a mean over the steps it is given |
    | a function to a pair of scalars | the pair: for masks, missing targets, anything else |
    | a dict of these, with `weights` | by head, each with outputs and targets of its name; summed over heads |

    Args:
        loss_fn: one of the table; called on all valid steps at once, outputs `(N, *O)` and targets `(N, *Y)`.
        average: over steps, each counting alike, or over sequences, each counting alike.
        warmup: steps at the beginning of each sequence that are read and not scored.
        weights: what each head of a dict of losses is multiplied by; 1 where it is not named.

    Returns:
        `loss(outputs (T, B, *O), targets (T, B, *Y), lengths=None, weights=None)`, a scalar tensor, 0 where nothing is
            scored. `weights (T, B)` multiply each step's loss and its weight. Raises `ValueError` where `T`, `B` or
            lengths do not fit or shapes would broadcast, `TypeError` where lengths are not int64 on the CPU. Also
            `.total(...)`, and `.on(model, inputs, targets, lengths=None)`, the same of a model's outputs.

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
    if average == "last":
        raise Refusal("average='last'", '"step" or "sequence"', "that is seq2one_loss.")
    one_of("average", average, ("step", "sequence"), "choose what is averaged.")
    at_least("warmup", warmup, 0, "0 scores every step.")
    return StepLoss(loss_fn, average, warmup, weights)


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
        read: which output: each row's own `"last"` (refused for a bidirectional model, whose backward half has read one
            step there), the `"mean"` or `"max"` over its valid steps, or a function of `(outputs (T, B, *O), lengths)` to
            `(B, *O)`. With `"all"`, `loss_fn(outputs, targets, lengths)` gets everything, and targets may be any tree
            of tensors with the batch first (connectionist temporal classification).
        weights: what each head of a dict of losses is multiplied by; 1 where it is not named.

    Returns:
        `loss(outputs (T, B, *O), targets (B, *Y), lengths=None, weights=None)`, a scalar tensor, which raises
            `ValueError` where it is given a target for every step; the rest as for
            [seq2seq_loss][rnnkit.seq2seq_loss]. `weights (B,)` multiply each sequence's loss and its weight.

    From [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import seq2one_loss
    >>> outputs = torch.arange(6.0).view(3, 2, 1)
    >>> seq2one_loss(nn.L1Loss())(outputs, torch.zeros(2, 1), torch.tensor([3, 1])).item()  # |4| and |1|
    2.5
    """
    if not callable(read):
        one_of("read", read, ("last", "mean", "max", "all"), "or a function of (outputs, lengths).")
    return ReadLoss(loss_fn, read, weights)
