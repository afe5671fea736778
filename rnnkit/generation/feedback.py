"""Which steps a model is fed its own output at: in training, in validation, in generation."""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, at_least, check_kind, one_of
from ..core.layout import all_lengths, check_lengths, valid_steps

Probability = float | Callable[[int], float]


# Where the model feeds itself, bool, broadcast to `(T, B)`, but for step 0 and padding: of `T`, the
# lengths and the training steps made so far.
_Rule = Callable[[int, Tensor, int], Tensor]


def _last(n: int, time: int, lengths: Tensor, step: int) -> Tensor:
    short = lengths[(lengths > 0) & (lengths <= n)]
    if len(short):
        raise Refusal(
            f"a sequence of {int(short.min())} steps",
            f"at least {n + 1} steps",
            "the first step must be driven, so n is at most T - 1.",
        )
    return ~valid_steps(lengths - n, time)


def _every(k: int, forced: bool, time: int, lengths: Tensor, step: int) -> Tensor:
    times = torch.arange(time, device="cpu").unsqueeze(1)  # (T, 1)
    return (times % k == 0) ^ forced


def _coin(
    p: Probability,
    per: str,
    generator: torch.Generator | None,
    time: int,
    lengths: Tensor,
    step: int,
) -> Tensor:
    batch = len(lengths)
    sizes = {"step": (time, batch), "row": (1, batch), "sequence": (1, 1)}
    thrown = torch.rand(sizes[per], generator=generator, device="cpu")
    return thrown < _chance(p, step)


def _chance(p: Probability, step: int) -> float:
    when = ""
    if callable(p):
        when = f" at step {step}"
        p = p(step)
    if not isinstance(p, Real | Tensor) or not 0 <= p <= 1:
        raise Refusal(f"p = {p}{when}", "0 <= p <= 1", "clip the schedule.")
    return float(p)


class Feedback:
    """Which steps of a sequence are fed by the model itself instead of by the data.

    Made by one of its five constructors. The first step is always fed by the data.

    >>> from rnnkit import Feedback
    >>> Feedback.last(2).mask(5, 1).flatten().tolist()
    [False, False, False, True, True]
    """

    def __init__(self, rule: _Rule, name: str, generator: torch.Generator | None = None) -> None:
        self._rule = rule
        self._name = name
        self.generator = generator

    def __repr__(self) -> str:
        return f"Feedback.{self._name}"

    @classmethod
    def never(cls) -> "Feedback":
        """Teacher forcing: every step is fed by the data."""
        return cls(partial(_last, 0), "never()")

    @classmethod
    def always(cls) -> "Feedback":
        """Free running: every step but the first is fed by the model."""
        return cls(partial(_every, 1, False), "always()")

    @classmethod
    @asked("Feedback.last")
    def last(cls, n: int) -> "Feedback":
        """The last `n` steps of each sequence are fed by the model: a closed loop.

        Raises `ValueError` if `n` is negative or, by the mask, not below the length of a sequence.
        """
        at_least("n", n, 0, "0 is Feedback.never().")
        return cls(partial(_last, n), f"last({n})")

    @classmethod
    @asked("Feedback.every")
    def every(cls, k: int, forced: bool = False) -> "Feedback":
        """Steps `k`, `2k`, `3k`, ... are fed by the model; `every(1)` is `always()`.

        With `forced` those are fed by the data and all others by the model: sparse teacher forcing
        (Mikhaeil et al. 2022, <https://arxiv.org/abs/2110.07238>). Raises `ValueError` if `k` is
        below 1.
        """
        at_least("k", k, 1, "1 is Feedback.always().")
        return cls(partial(_every, k, forced), f"every({k}, forced={forced})")

    @classmethod
    @asked("Feedback.probability")
    def probability(
        cls,
        p: Probability,
        per: Literal["step", "row", "sequence"] = "step",
        generator: torch.Generator | None = None,
    ) -> "Feedback":
        """Scheduled sampling: a coin decides what feeds a step.

        Args:
            p: the probability of feeding the model's own output, or a schedule: a function of the
                training steps made so far. Outside [0, 1] it is a `ValueError`, of a schedule at
                that step.
            per: a coin for each step of each row, as in the paper, for each row, or for the batch.
            generator: on the CPU; PyTorch's global one where it is `None`.

        Source: Bengio et al. 2015, <https://arxiv.org/abs/1506.03099>.

        >>> from rnnkit import Feedback
        >>> schedule = Feedback.probability(lambda step: min(1.0, step / 100))
        >>> schedule.mask(4, 2, step=100).float().mean().item()
        0.75
        """
        fix = "a coin for each step of each row is the paper's."
        one_of("per", per, ("step", "row", "sequence"), fix)
        if not callable(p):
            _chance(p, 0)
        rule = partial(_coin, p, per, generator)
        return cls(rule, f"probability({p}, per={per!r})", generator)

    @asked(lambda feedback: f"Feedback.{feedback._name}")
    def mask(self, time: int, batch: int, lengths: Tensor | None = None, step: int = 0) -> Tensor:
        """Where the model feeds itself: bool, on the CPU, `(T, B)`; nowhere after a row's end.

        Args:
            time: `T`, steps.
            batch: `B`, rows.
            lengths: int64 CPU `(B,)`; `T` each where it is `None`.
            step: training steps made so far, for a schedule.

        Raises:
            ValueError: if a sequence is too short for the policy, or a schedule leaves [0, 1].
        """
        if lengths is not None:
            check_lengths(lengths, time, batch, least=0)
        lengths = all_lengths(lengths, time, batch)
        fed = self._rule(time, lengths, step) & valid_steps(lengths, time)
        fed[0] = False
        return fed


def check_feedback(feedback: object) -> None:
    fix = "Feedback.probability(0.5), Feedback.last(n) or another of its constructors."
    check_kind("feedback", feedback, Feedback, "a Feedback", fix)
