"""Which steps a model is fed its own output at: one policy for training, validation and generation."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..core.errors import Refusal, asked


class Feedback:
    """Which steps of a sequence are fed by the model itself instead of by the data.

    Made by one of its five constructors. The first step is always fed by the data: there is no output before it.

    >>> Feedback.last(2).mask(5, 1).flatten().tolist()
    [False, False, False, True, True]
    """

    def __init__(
        self, rule: tuple[Any, ...], name: str, generator: Generator | None = None
    ) -> None:
        self._rule, self._name, self.generator = rule, name, generator

    def __repr__(self) -> str:
        return f"Feedback.{self._name}"

    @classmethod
    def never(cls) -> "Feedback":
        """Teacher forcing: every step is fed by the data."""
        return cls(("last", 0), "never()")

    @classmethod
    def always(cls) -> "Feedback":
        """Free running: every step but the first is fed by the model."""
        return cls(("every", 1, False), "always()")

    @classmethod
    @asked("Feedback.last")
    def last(cls, n: int) -> "Feedback":
        """The last `n` steps of each sequence are fed by the model: a closed loop after a driven part.

        Raises `ValueError` if `n` is negative or, by the mask, not below the length of a sequence.
        """
        if n < 0:
            raise Refusal(f"n = {n}", "n >= 0", "0 is Feedback.never().")
        return cls(("last", n), f"last({n})")

    @classmethod
    @asked("Feedback.every")
    def every(cls, k: int, forced: bool = False) -> "Feedback":
        """Steps `k`, `2k`, `3k`, ... are fed by the model; `every(1)` is `always()`.

        With `forced` it is the reverse, sparse teacher forcing: those steps are fed by the data and all others by the
        model (Hess et al. 2023, <https://arxiv.org/abs/2306.04406>). Raises `ValueError` if `k` is below 1.
        """
        if k < 1:
            raise Refusal(f"k = {k}", "k >= 1", "1 is Feedback.always().")
        return cls(("every", k, forced), f"every({k}, forced={forced})")

    @classmethod
    @asked("Feedback.probability")
    def probability(
        cls,
        p: float | Callable[[int], float],
        per: Literal["step", "row", "sequence"] = "step",
        generator: Generator | None = None,
    ) -> "Feedback":
        """Scheduled sampling: a coin decides what feeds a step (Bengio et al. 2015, <https://arxiv.org/abs/1506.03099>).

        Args:
            p: the probability of feeding the model's own output, or a schedule: a function of the number of training
                steps made so far. Outside [0, 1] it is a `ValueError`, of a schedule at that step.
            per: a coin for each step of each row, as in the paper, for each row, or for the whole batch of sequences.
            generator: the source of randomness; PyTorch's global one where it is `None`.

        >>> Feedback.probability(lambda step: min(1.0, step / 100)).mask(4, 2, step=100).float().mean().item()
        0.75
        """
        if per not in ("step", "row", "sequence"):
            fix = "a coin for each step of each row is the paper's."
            raise Refusal(f"per={per!r}", '"step", "row" or "sequence"', fix)
        if not callable(p):
            _chance(p, 0)
        return cls(("probability", p, per), f"probability({p}, per={per!r})", generator)

    @asked(lambda feedback: f"Feedback.{feedback._name}")
    def mask(self, time: int, batch: int, lengths: Tensor | None = None, step: int = 0) -> Tensor:
        """Where the model feeds itself: bool CPU `(T, B)`, for `time`, `T` steps, and `batch`, `B` rows.

        Nothing is fed back after a row's end, by `lengths`, int64 CPU `(B,)`, or `T` each where it is `None`. A
        schedule is asked with `step`, the number of training steps made so far.
        """
        lengths = torch.full((batch,), time) if lengths is None else lengths
        t = torch.arange(time).unsqueeze(1)
        match self._rule:
            case "last", n:
                short = lengths[(lengths > 0) & (lengths <= n)]
                if len(short):
                    came, wanted = (
                        f"a sequence of {int(short.min())} steps",
                        f"at least {n + 1} steps",
                    )
                    fix = "the first step must be driven, so n is at most T - 1."
                    raise Refusal(came, wanted, fix)
                fed = t >= lengths - n
            case "every", k, forced:
                fed = (t % k == 0) ^ forced
            case _:
                _, p, per = self._rule
                size = {"step": (time, batch), "row": (1, batch), "sequence": (1, 1)}[per]
                fed = torch.rand(size, generator=self.generator) < _chance(p, step)
        return fed & (t > 0) & (t < lengths)


def _chance(p: float | Callable[[int], float], step: int) -> float:
    value = float(p(step) if callable(p) else p)
    if not 0 <= value <= 1:
        came = f"p = {value}" + (f" at step {step}" if callable(p) else "")
        raise Refusal(came, "0 <= p <= 1", "clip the schedule.")
    return value
