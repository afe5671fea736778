"""What one validation step is: a driven part, then a closed loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, at_least, in_words
from ..core.layout import all_lengths, at_own_step, extent, gathered, parts_of, valid_steps
from ..core.model import evaluating, run_model
from ..core.signature import check_takes
from ..core.state import State, onto
from ..generation.samplers import DeclaredSampler, NextInput, identity
from ..generation.sampling import draw_paths
from ..losses.base import Scored
from ..losses.total import Total, check_adds_up, weight_like
from .phase import Loop, Phase, StepState, Work

Score = Callable[[Tensor, Tensor], Tensor]

_PATHS = 32  # where a sampler draws and no number is given


@asked("energy_score")
def energy_score(paths: Tensor, targets: Tensor) -> Tensor:
    r"""How far sample paths are from what came, `(n, B)`: lowest on average for the true
    distribution.

    $$
    \frac{1}{P} \sum_i \lVert x_i - y \rVert - \frac{1}{2 P (P - 1)} \sum_{i, j} \lVert x_i - x_j
    \rVert
    $$

    With one feature it is the continuous ranked probability score (CRPS), in the units of the data.

    Args:
        paths: `(n, B, P, *F)`.
        targets: `(n, B, *F)`.

    Returns:
        `(n, B)`; an unbiased estimate, which may be below 0.

    Raises:
        ValueError: if there are fewer than two paths, or the shapes do not fit.

    Source: Gneiting and Raftery 2007, <https://doi.org/10.1198/016214506000001437>, equation 22.

    >>> import torch
    >>> from rnnkit import energy_score
    >>> energy_score(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[1.0]])).item()  # 1 - 2 / 2
    0.0
    """
    count = paths.shape[2] if paths.ndim > 2 else 0
    if count < 2 or paths.shape[:2] + paths.shape[3:] != targets.shape:
        came = f"paths {in_words(paths)} and targets {in_words(targets)}"
        fix = "draw two paths or more of what the targets are."
        raise Refusal(came, "(n, B, P, *F) and (n, B, *F) with P >= 2", fix)
    drawn = paths.reshape(*paths.shape[:3], -1)  # (n, B, P, F)
    came_true = targets.reshape(*targets.shape[:2], 1, -1)  # (n, B, 1, F)
    distance = (drawn - came_true).norm(dim=-1).mean(2)
    # From 26 paths on cdist would take products, which lose the distances of what is far from 0.
    pairs = torch.cdist(drawn, drawn, compute_mode="donot_use_mm_for_euclid_dist")
    between = pairs.sum((2, 3)) / (count * (count - 1))
    return distance - between / 2


class BPTTValidationPhase(Phase):
    """One validation step: a driven part, then a closed loop in which the model is fed its own
    output.

    The model reads the first `T - nfeedback` steps of each sequence and feeds itself through the
    last `nfeedback`, of whose inputs only what a sampler keeps is read. Runs in evaluation mode,
    without gradient.

    Events: `StepBegin`, `LossBegin`, `StepEnd`.

    `phase(model, loss, batch)`, or `learner.step(phase, batch)`, gives a
    [StepState][rnnkit.StepState] with `loss` over all steps, `open_loss` over the driven and
    `closed_loss` over the self-fed ones, and `loss_by_step (T,)`. With
    [seq2one_loss][rnnkit.seq2one_loss] there is only `loss`, and it as one of the two.

    With a sampler that draws, the likelihood of the next step on one random path would reward the
    wrong spread. Then `closed_loss`, and `loss_by_step` at the self-fed steps, are a score of
    several paths, and `loss` is `open_loss`. A sampler of classes draws one path and keeps the
    loss, unless `paths` and a `score` of classes are given.

    Args:
        nfeedback: steps fed by the model, at the end; 0 is teacher forcing.
        sampler: maps the outputs of one step to the next input.
        stateful: carry the state from batch to batch; each epoch starts afresh.
        paths: how many paths a sampler that draws is scored on; 32 where it is `None`, but a
            function of your own does not tell that it draws.
        score: `score(paths (n, B, P, *F), targets (n, B, *F))` to `(n, B)`.
        by_step: whether `loss_by_step` is made; by default where `nfeedback` is above 0.

    Raises:
        ValueError: if `nfeedback` is negative; by the step, if a sequence is not longer than it, or
            a loss whose parts do not add up would be split.

    >>> import torch
    >>> import rnnkit
    >>> model = rnnkit.RecurrentSequential(torch.nn.GRU(1, 8), torch.nn.Linear(8, 1))
    >>> phase = rnnkit.BPTTValidationPhase(nfeedback=5)
    >>> step = phase(model, rnnkit.seq2seq_loss(torch.nn.MSELoss()), torch.ones(21, 4, 1))
    >>> step.loss_by_step.shape
    torch.Size([20])
    """

    name = "validation"

    @asked("BPTTValidationPhase")
    def __init__(
        self,
        nfeedback: int = 0,
        sampler: NextInput = identity,
        *,
        stateful: bool = False,
        paths: int | None = None,
        score: Score = energy_score,
        by_step: bool | None = None,
    ) -> None:
        super().__init__(sampler, stateful)
        at_least("nfeedback", nfeedback, 0, "0 validates with teacher forcing.")
        if paths is not None:
            at_least("paths", paths, 2, "a spread is seen from two paths on; 100 is common.")
        self.nfeedback = nfeedback
        declared = DeclaredSampler(sampler)
        self.paths = paths
        if paths is None and declared.draws and not declared.classes:
            self.paths = _PATHS
        check_takes("score", score, "paths, targets")
        self.score = score
        self.by_step = by_step

    @property
    def makes_by_step(self) -> bool:
        """Whether `loss_by_step` is made."""
        return self.nfeedback > 0 if self.by_step is None else self.by_step

    @asked("BPTTValidationPhase")
    def run(self, loop: Loop, batch: Any) -> StepState:
        """One step for a loop."""
        loss = loop.loss
        with torch.no_grad(), evaluating(*loop.modules()):
            work = self.begin(loop, batch)
            step = work.step
            state = work.start()
            time, rows = extent(step.inputs)
            lengths = all_lengths(step.lengths, time, rows)
            driven = self._driven(lengths, time)
            if driven is not None:
                work.mask = valid_steps(lengths, time) & ~driven
            with loop.context():
                step.outputs, after = work.rollout.over(step.inputs, work.mask, state, step.lengths)
                loop.emit("LossBegin")
                step.weight = work.scored.count
                if loss.per_sequence:
                    self._one_loss(step, work.scored)
                elif driven is not None and self.paths is not None:
                    self._score_paths(work, state, lengths, driven)
                else:
                    self._split(work, driven)
            self._carry(after, step)
        return step

    def _driven(self, lengths: Tensor, time: int) -> Tensor | None:
        """The driven steps, a mask `(T, B)`; `None` where all are driven."""
        n = self.nfeedback
        short = lengths[(lengths > 0) & (lengths <= n)]
        if len(short):
            came = f"nfeedback = {n} and a sequence of {int(short.min())} steps"
            fix = "the first step must be driven: nfeedback is at most T - 1."
            raise Refusal(came, "nfeedback < T", fix)
        if n == 0:
            return None
        return valid_steps(lengths - n, time)

    def _one_loss(self, step: StepState, scored: Scored) -> None:
        """One loss a sequence: it belongs to the closed loop where there is one."""
        step.keep("loss", scored.total(step.outputs))
        if self.nfeedback:
            step.closed_loss = step.loss
        else:
            step.open_loss = step.loss

    def _split(self, work: Work, driven: Tensor | None) -> None:
        """The loss of the driven part, of the closed loop, and of each step."""
        step = work.step
        scored = work.scored
        loss = work.loop.loss
        dtype = parts_of(step.outputs)[0].dtype
        by_step = scored.by_step(step.outputs) if self.makes_by_step else None
        if by_step is None or loss.opaque:
            total = scored.total(step.outputs)
        else:
            total = by_step.over_time()  # the loss was evaluated once, which is enough
        step.keep("loss", total)
        if driven is None:
            step.keep("open_loss", total)
        else:
            parts = scored.parts(step.outputs, [driven, ~driven])
            if loss.opaque:
                check_adds_up(total, parts, dtype)
            step.keep("open_loss", parts[0])
            step.keep("closed_loss", parts[1])
        if by_step is not None:
            if loss.opaque:
                check_adds_up(total, [by_step.over_time()], dtype)
            step.totals["loss_by_step"] = by_step
            step.loss_by_step = by_step.curve()

    def _score_paths(self, work: Work, state: State, lengths: Tensor, driven: Tensor) -> None:
        """The loss of the driven part, and the score of the paths that the closed loop draws."""
        step = work.step
        scored = work.scored
        (open_loop,) = scored.parts(step.outputs, [driven])
        step.keep("open_loss", open_loop)
        step.keep("loss", open_loop)

        # The steps of each row that it is fed at, and their scores.
        offsets = torch.arange(self.nfeedback, device="cpu").unsqueeze(1)
        index = (lengths - self.nfeedback + offsets).clamp(min=0)  # (n, B)
        rows = torch.arange(len(lengths), device="cpu")
        scores = self._scores(work, state, lengths, index, rows)  # (n, B)
        weights = gathered(scored.step_weights(), index, rows).to(scores)
        scores = torch.where(weights > 0, scores * weights, 0)
        closed = Total(scores.sum(), weights.sum())
        step.keep("closed_loss", closed)
        if self.makes_by_step:
            by_step = _at_places(work, driven, index, scores, weights)
            step.totals["loss_by_step"] = by_step
            step.loss_by_step = by_step.curve()

    def _scores(
        self, work: Work, state: State, lengths: Tensor, index: Tensor, rows: Tensor
    ) -> Tensor:
        """The score of each self-fed step, `(n, B)`."""
        step = work.step
        model = work.loop.model
        primed = (lengths - self.nfeedback).clamp(min=0)
        outputs, after = run_model(model, step.inputs, state, primed)
        answer = at_own_step(outputs, (primed - 1).clamp(min=0))
        # One draw more than steps: the first is of the last driven step, whose loss is known.
        given = gathered(step.inputs, torch.cat([index, index[-1:]]), rows)  # (n + 1, B, *F)
        draws = draw_paths(model, self.sampler, answer, after, given, self.paths or _PATHS)
        fed = getattr(self.sampler, "fed", None)
        if isinstance(fed, str):
            draws = draws[fed]
        for name, part in (("targets", step.targets), ("draws", draws)):
            if isinstance(part, dict):
                came = f"a dict of {name} and paths to score"
                fix = (
                    "validate one head at a time; with_covariates(sampler, name) tells what is fed."
                )
                raise Refusal(came, "one sequence", fix, TypeError)
        draws = draws[1:]
        targets = gathered(step.targets, index, rows)
        if isinstance(fed, int):  # what it keeps is not forecast
            if draws.shape[3:] == targets.shape[2:]:
                targets = targets[:, :, :fed]
            draws = draws[:, :, :, :fed]
        if draws.shape[3:] != targets.shape[2:]:
            came = f"draws {tuple(draws.shape[3:])} and targets {tuple(targets.shape[2:])} a step"
            fix = "with_covariates(sampler, fed) tells which features are forecast."
            raise Refusal(came, "draws of what the targets are", fix)
        scores = self.score(draws, targets)
        if not isinstance(scores, Tensor) or scores.shape != index.shape:
            came = f"{in_words(scores)} from score"
            wanted = f"a score of each step and row, {tuple(index.shape)}"
            raise Refusal(came, wanted, "take the mean over the paths, dim 2, alone.")
        return scores


def _at_places(work: Work, driven: Tensor, index: Tensor, scores: Tensor, weights: Tensor) -> Total:
    """By step: the loss where a row is driven, the score where it is fed."""
    alone = work.scored.by_step(work.step.outputs, driven)
    flat = onto(index.flatten(), scores.device)
    sums = alone.sum.index_add(0, flat, scores.flatten().to(alone.sum))
    own = weight_like(alone.weight, sums).expand_as(sums)
    return Total(sums, own.index_add(0, flat, weights.flatten().to(sums)))
