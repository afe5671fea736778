"""Which steps a model is fed its own output at: one policy for training, validation and generation."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ._contract import refuse

__all__ = ["Feedback"]

Schedule = Callable[[int], float]


class Feedback:
    """Which steps of a sequence are fed by the model itself instead of by the data.

    Made by one of its five constructors. The first step is always fed by the data: there is no output before it.

    >>> Feedback.last(2).mask(5, 1).flatten().tolist()
    [False, False, False, True, True]
    """

    def __init__(self, rule: Callable[[int, int, Tensor, int], Tensor], name: str) -> None:
        self._rule, self._name = rule, name
        self.generator: torch.Generator | None = None

    def __repr__(self) -> str:
        return f"Feedback.{self._name}"

    @classmethod
    def never(cls) -> "Feedback":
        """Teacher forcing: every step is fed by the data."""
        return cls(partial(_constant, False), "never()")

    @classmethod
    def always(cls) -> "Feedback":
        """Free running: every step but the first is fed by the model."""
        return cls(partial(_constant, True), "always()")

    @classmethod
    def last(cls, n: int) -> "Feedback":
        """The last `n` steps of each sequence are fed by the model: a closed loop after a driven part.

        Raises:
            ValueError: if `n` is negative, or, by the mask, not below the length of a sequence.
        """
        if n < 0:
            raise refuse(f"Feedback.last({n})", f"n = {n}", "n >= 0", "0 is Feedback.never().")
        return cls(partial(_last, n), f"last({n})")

    @classmethod
    def every(cls, k: int, forced: bool = False) -> "Feedback":
        """Steps `k`, `2k`, `3k`, ... are fed by the model; `every(1)` is `always()`.

        Args:
            k: the distance between two such steps.
            forced: the reverse, sparse teacher forcing: those steps are fed by the data and all others by the model
                (Hess et al. 2023, <https://arxiv.org/abs/2306.04406>).

        Raises:
            ValueError: if `k` is below 1.
        """
        if k < 1:
            raise refuse(f"Feedback.every({k})", f"k = {k}", "k >= 1", "1 is Feedback.always().")
        return cls(partial(_every, k, forced), f"every({k}, forced={forced})")

    @classmethod
    def probability(
        cls,
        p: float | Schedule,
        per: Literal["step", "row", "sequence"] = "step",
        generator: torch.Generator | None = None,
    ) -> "Feedback":
        """Scheduled sampling: a coin with probability `p` decides what feeds a step.

        Args:
            p: the probability of feeding the model's own output, or a schedule: a function of the number of training
                steps made so far.
            per: one coin for each step of each row (as in the paper), for each row of the batch, kept for its whole
                sequence, or for the whole batch of sequences.
            generator: the source of randomness; PyTorch's global one where it is `None`.

        Raises:
            ValueError: if `p` is outside [0, 1], at once or, of a schedule, at the step where it is.

        Source: Bengio et al. 2015, <https://arxiv.org/abs/1506.03099>.

        >>> Feedback.probability(lambda step: min(1.0, step / 100)).mask(4, 2, step=100).float().mean().item()
        0.75
        """
        if per not in ("step", "row", "sequence"):
            fix = "a coin for each step of each row is the paper's."
            raise refuse("Feedback.probability", f"per={per!r}", '"step", "row" or "sequence"', fix)

        if not callable(p):
            _chance(p, 0)
        feedback = cls(partial(_probability, p, per, generator), f"probability({p}, per={per!r})")
        feedback.generator = generator
        return feedback

    def mask(self, time: int, batch: int, lengths: Tensor | None = None, step: int = 0) -> Tensor:
        """Where the model feeds itself.

        Args:
            time: `T`, steps.
            batch: `B`, rows.
            lengths: int64 CPU `(B,)`; `T` each where it is `None`. Steps after a row's end are never fed back.
            step: training steps made so far, for a schedule.

        Returns:
            bool CPU `(T, B)`.
        """
        lengths = torch.full((batch,), time) if lengths is None else lengths
        mask = self._rule(time, batch, lengths, step).expand(time, batch) & (torch.arange(time).unsqueeze(1) < lengths)
        mask[0] = False
        return mask


def _constant(fed: bool, time: int, batch: int, lengths: Tensor, step: int) -> Tensor:
    return torch.full((time, 1), fed)


def _last(n: int, time: int, batch: int, lengths: Tensor, step: int) -> Tensor:
    active = lengths[lengths > 0]
    if n and len(active) and int(active.min()) <= n:
        came = f"a sequence of {int(active.min())} steps"
        fix = "the first step must be driven, so n is at most T - 1."
        raise refuse(f"Feedback.last({n})", came, f"at least {n + 1} steps", fix)
    return torch.arange(time).unsqueeze(1) >= lengths - n


def _every(k: int, forced: bool, time: int, batch: int, lengths: Tensor, step: int) -> Tensor:
    return ((torch.arange(time) % k == 0) ^ forced).unsqueeze(1)


def _probability(
    p: float | Schedule, per: str, generator: torch.Generator | None, time: int, batch: int, lengths: Tensor, step: int
) -> Tensor:
    size = {"step": (time, batch), "row": (1, batch), "sequence": (1, 1)}[per]
    return (torch.rand(size, generator=generator) < _chance(p, step)).expand(time, -1)


def _chance(p: float | Schedule, step: int) -> float:
    value = float(p(step) if callable(p) else p)
    if not 0 <= value <= 1:
        came = f"p = {value}" + (f" at step {step}" if callable(p) else "")
        raise refuse("Feedback.probability", came, "0 <= p <= 1", "clip the schedule.")
    return value
