"""What every loss over sequences offers, in two steps.

`loss.over(targets, ...)` says what is scored and with what weight, a `Scored`, which is given
outputs and answers with a `Total`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..core.errors import Named, Refusal, asked, check_kind, in_words
from ..core.layout import as_sequences, check_lengths, extent
from ..core.model import Model, check_call, encoded, run_model
from .function import Head, LossFunction
from .total import Total


class Scored:
    """The targets of a batch, which of its steps count, and with what weight."""

    @property
    def count(self) -> int:
        """The steps that are scored, or the sequences where the loss averages those."""
        raise NotImplementedError

    def total(self, outputs: Any) -> Total:
        """The sum and the weight of all that is scored."""
        raise NotImplementedError

    def between(self, start: int, stop: int) -> Scored:
        """What is scored of the steps from `start` to before `stop`."""
        raise NotImplementedError

    def parts(self, outputs: Any, masks: Sequence[Tensor]) -> list[Total]:
        """The totals of masks `(T, B)`, bool on the CPU, each of one run of steps a row."""
        raise NotImplementedError

    def by_step(self, outputs: Any, mask: Tensor | None = None) -> Total:
        """The totals of each step alone, `(T,)`, of those in a mask as of `parts`."""
        raise NotImplementedError

    def of_window(self, lengths: Tensor) -> Scored | None:
        """With one target a sequence, the same for outputs of each row's last steps."""
        raise NotImplementedError

    def step_weights(self) -> Tensor:
        """What each step counts, `(T, B)`, on the CPU; 0 where it is not scored."""
        raise NotImplementedError

    def valid(self, outputs: Any) -> tuple[Any, Any]:
        """What is scored, side by side: outputs `(N, *O)` and targets `(N, *Y)`."""
        raise NotImplementedError


class Ask(NamedTuple):
    """What a loss is asked about."""

    targets: Any
    known: Any  # the same, on the CPU where they came from there
    time: int  # T
    batch: int  # B
    lengths: Tensor | None
    weights: Tensor | None
    read: Tensor | None  # (B,): the steps of each row that came before
    came: object  # in an error: what the targets are held against

    def one_a_step(self) -> Any:
        """The targets, checked, `(T, B, *Y)`, or a dict of such."""
        targets = as_sequences(self.targets, "targets")
        if extent(targets) != (self.time, self.batch):
            raise Refusal(
                f"{self.came} and targets {in_words(targets)}",
                "the same T and B for both",
                "one target for each step and row; one target for a whole sequence is "
                "seq2one_loss.",
            )
        return targets


class SequenceLoss:
    """What [seq2seq_loss][rnnkit.seq2seq_loss] and [seq2one_loss][rnnkit.seq2one_loss] make.

    Attributes:
        heads: the loss functions, one for each entry of a dict of losses.
        scales: what each head's mean is multiplied by; `None` where there is no dict.
        per_sequence: whether there is one target a sequence, so that none can be cut into windows.
    """

    name = "a loss"
    per_sequence = False

    def __init__(
        self,
        loss_fn: LossFunction | Mapping[Any, LossFunction],
        weights: Mapping[Any, float] | None = None,
        lengths: bool = False,
    ) -> None:
        self.loss_fn = loss_fn
        self.scales: tuple[float, ...] | None = None
        by_name: Mapping[Any, Any] | nn.ModuleDict = {None: loss_fn}
        if isinstance(loss_fn, Mapping | nn.ModuleDict):
            by_name = loss_fn
            self.scales = _scales(loss_fn, weights or {})
        elif weights is not None:
            raise Refusal(
                f"weights = {in_words(weights)} and one loss",
                "a dict of losses",
                "weights go with a dict of losses; the weights of steps are SequenceBatch.weights.",
                TypeError,
            )
        for function in by_name.values():
            if isinstance(function, SequenceLoss):  # it would take the steps of all rows for one
                fix = (
                    "give the loss function inside it; average and warmup belong to the outer one."
                )
                raise Refusal(f"a {function.name} inside", "a loss of steps", fix, TypeError)
        self.heads = [Head(function, key, lengths) for key, function in by_name.items()]

    def __call__(
        self,
        outputs: Any,
        targets: Any,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        return self.total(outputs, targets, lengths, weights).mean()

    @asked(lambda loss: loss.name)
    def total(
        self,
        outputs: Any,
        targets: Any,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Total:
        """The sum and the weight of which the loss is the quotient."""
        outputs = as_sequences(outputs, "outputs")
        time, batch = extent(outputs)
        if lengths is not None:
            check_lengths(lengths, time, batch)
        came = Named("outputs", outputs)
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
        """The loss of a model from its first state."""
        self.check_model(model)
        inputs, state = encoded(model, inputs)
        inputs = check_call(model, inputs, state, lengths)
        outputs, _ = run_model(model, inputs, state, lengths, carry=False)
        return self(outputs, targets, lengths, weights)

    def over(
        self,
        targets: Any,
        time: int,
        batch: int,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        read: Tensor | None = None,
        known: Any = None,
        came: object = "outputs",
    ) -> Scored:
        """What is scored of a batch of `T` steps and `B` rows.

        `known` are the targets on the CPU, if they came from there, so that counting them waits for
        no device; the rest is as in `Ask`.
        """
        if known is None:
            known = targets
        return self._scored(Ask(targets, known, time, batch, lengths, weights, read, came))

    def _scored(self, ask: Ask) -> Scored:
        raise NotImplementedError

    def check_model(self, model: Model) -> None:
        """Refuse a model whose outputs this loss would misread."""

    def check_heads(self, name: str, given: Any) -> None:
        if isinstance(given, dict) and self.scales is None:
            fix = (
                f"{self.name}({{name: loss, ...}}), a bare loss(outputs, targets, lengths) for one "
                'of all heads, of seq2one_loss read="all", or (inputs, targets) with one target.'
            )
            came = f"{name} = {in_words(given)} and one loss"
            raise Refusal(came, f"one sequence of {name}", fix)

    @property
    def opaque(self) -> bool:
        """Whether it gave one number for many steps: then parts may not add up."""
        return any(head.scalar for head in self.heads)

    def modules(self) -> list[nn.Module]:
        return [head.loss_fn for head in self.heads if isinstance(head.loss_fn, nn.Module)]


def _scales(losses: Any, weights: Mapping[Any, float]) -> tuple[float, ...]:
    check_kind("weights", weights, Mapping, "a number by head", "a dict, {name: 1.0, ...}.")
    for key, weight in weights.items():
        if getattr(weight, "requires_grad", False):
            fix = "a loss function that is a module may have it as a parameter."
            raise Refusal(f"a weight of {key!r} that is learned", "a number", fix, TypeError)
    if not losses or not weights.keys() <= losses.keys():
        came = f"losses {list(losses)} and weights {list(weights)}"
        raise Refusal(came, "a loss for each weight", "name each head alike in both.")
    scales = tuple(float(weights.get(key, 1.0)) for key in losses)
    if not all(map(math.isfinite, scales)):
        fix = "leave a head out by leaving it out of the dict."
        raise Refusal(f"weights {scales}", "finite numbers", fix)
    return scales


def of_both(change: Callable[[Any], Any], targets: Any, known: Any) -> tuple[Any, Any]:
    """A change of the targets and of what is known of them, made once where they are one."""
    changed = change(targets)
    if known is targets:
        return changed, changed
    return changed, change(known)


def part_of(tree: Any, key: Any, name: str) -> Any:
    if key is None:
        return tree
    if not isinstance(tree, dict) or key not in tree:
        came = f"{name} = {in_words(tree)}"
        raise Refusal(came, f"a dict with {key!r}", "name each head alike in all dicts.")
    return tree[key]


def no_single(what: str) -> Refusal:
    """Weights cannot go with a loss of one number for all."""
    return Refusal(
        f"weights of {what}s and a loss that tells of no single {what}",
        f"a loss of each {what}",
        f'build it with reduction="none", or let the function return one loss a {what}.',
    )
