"""The future of a sequence after a primer: the likeliest that a search finds."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import Refusal, asked, at_least, check_number, in_full, in_words
from ..core.layout import Steps, between, check_state, valid_steps
from ..core.model import BATCH_IN_STATE, Model, evaluating, run_model
from ..core.state import State, onto, select_rows
from ._fast import quicker_step
from .rollouts import Rollout, Stretch
from .samplers import as_like, sample_best
from .sampling import Sample, check_length, check_primer, check_token, sample_of


@asked("beam_search")
def beam_search(
    model: Model,
    length: int,
    primer: Steps | tuple[Tensor, Tensor],
    width: int,
    *,
    state: State = None,
    stop: int | None = None,
    lengths: Tensor | None = None,
    length_penalty: float = 0.0,
    best: int = 1,
) -> Sample:
    r"""The likeliest continuations of each row that a search finds, as a [Sample][rnnkit.Sample].

    The search keeps `width` candidates for each row and ranks one that drew `n` tokens `y` by

    $$
    n^{-\alpha} \sum_{i=1}^{n} \log p(y_i \mid y_{<i})
    $$

    with `length_penalty` for alpha: 0 ranks by likelihood, which favors short candidates, 1 by the
    mean of a token. A candidate that drew the stop token is finished; the search ends when no other
    can come before it. With width 1 it is [sample_model][rnnkit.sample_model] with
    [sample_best][rnnkit.sample_best]; with `V ** (n - 1)` it is exact for `n` drawn tokens. Sums
    are made in float32 at least.

    Args:
        model: `outputs, state = model(inputs, state)` with logits `(T, B, V)`.
        length: tokens to consume, the primer's among them.
        primer: integers `(T0, B)` with `1 <= T0 <= length`, or primers of different length as the
            pair that [batchseq][rnnkit.batchseq] gives.
        width: candidates kept for each row, the finished ones among them.
        state: the state before the primer.
        stop: a token that finishes a candidate.
        lengths: int64 CPU `(B,)`, the primers' lengths; instead of the pair.
        length_penalty: the exponent alpha.
        best: how many candidates to return for each row, at most `width`.

    Returns:
        A sample of `B * best` rows: row `b * best + k` is the candidate of row `b` in place `k`,
            the likeliest first. `scores (B, best)` is what they were ranked by; `-inf` says that
            there is no such candidate. `next` is the likeliest token after each candidate.

    Raises:
        ValueError: if `width` or `best` is below 1, `best` above `width`, `length_penalty` is not
            finite, or the primer, the state or the outputs do not fit.
        TypeError: if primer or stop are no tokens, or the model gives no state.

    Source: Graves 2012, <https://arxiv.org/abs/1211.3711>, for the search over beams.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import RecurrentSequential, beam_search
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> sample = beam_search(model, 6, torch.tensor([[0, 1]]), width=3, best=2)
    >>> sample.tokens.unflatten(1, (2, 2)).shape, sample.scores.shape
    (torch.Size([6, 2, 2]), torch.Size([2, 2]))
    """
    _check_options(width, best, stop, length_penalty)
    inputs, lengths = check_primer(model, primer, lengths, state)
    check_length(length, inputs)
    _check_tokens(inputs)
    shortest = int(lengths.min())

    with torch.no_grad(), evaluating(model):
        # All rows read to the end of the shortest primer, in one call.
        driven = torch.zeros(shortest, 1, dtype=torch.bool, device="cpu")
        rollout = Rollout(model, sample_best)
        primed = next(rollout.stretches(between(inputs, 0, shortest), driven, state))
        _check_logits(primed.outputs)
        check_state(primed.state, len(lengths), BATCH_IN_STATE)
        search = _Search(width, best, stop, length_penalty, length, onto(lengths, inputs.device))
        beams = search.first(primed.outputs[-1])
        state = primed.state

        # Each step every candidate grows by every class, and the likeliest of them all are kept.
        step = quicker_step(model, len(lengths) * width)
        trail: list[_Beams] = []
        for t in range(shortest, length):
            if stop is not None and search.is_decided(beams):
                break
            grown = search.grow(beams)
            if t < int(lengths.max()):  # the longer primers are still read
                grown = search.read(grown, t, inputs[t])
            state = select_rows(state, _flat(grown.parent, beams.count))
            token = as_like(grown.token.view(1, -1), inputs)  # (1, B * W)
            outputs, state = run_model(step, token, state)
            beams = replace(grown, answer=outputs[0].unflatten(0, grown.token.shape))
            trail.append(beams)

        # The best of the last candidates, and the way that each came.
        scores, index = search.ranking(beams)  # (B, best)
        state = select_rows(state, _flat(index, beams.count))
        consumed, outputs = _trace(primed, trail, index)
        ended, stopped = _ends(consumed, lengths.repeat_interleave(best), stop)
        after = sample_best(outputs[-1])
        if stop is not None:
            after = after.masked_fill(onto(stopped, after.device), stop)
        after = as_like(after, inputs).unsqueeze(0)
        return sample_of(
            consumed, outputs, after, state, sample_best, ended, stopped=stopped, scores=scores
        )


@dataclass(frozen=True)
class _Beams:
    """`W` candidates of each of `B` rows."""

    parent: Tensor  # (B, W): which candidate of the step before each goes on from
    token: Tensor  # (B, W): what it drew last
    scores: Tensor  # (B, W): the log-probability of what it drew; -inf if it cannot be
    drawn: Tensor  # (B, W): how many tokens it drew
    done: Tensor  # (B, W): whether it drew the stop token
    answer: Tensor  # (B, W, V): the logits after its last token

    @property
    def count(self) -> int:
        return self.scores.shape[1]  # W


@dataclass(frozen=True)
class _Search:
    width: int  # candidates of a row that are kept
    best: int  # candidates of a row that are asked for
    stop: int | None
    penalty: float
    length: int
    lengths: Tensor  # (B,): those of the primers

    def first(self, answer: Tensor) -> _Beams:
        nothing = torch.zeros_like(self.lengths).unsqueeze(1)  # (B, 1)
        dtype = torch.promote_types(answer.dtype, torch.float32)
        return _Beams(
            parent=nothing,
            token=nothing,
            scores=nothing.to(dtype),
            drawn=nothing,
            done=nothing.bool(),
            answer=answer.unsqueeze(1),
        )

    def rank(self, scores: Tensor, drawn: Tensor) -> Tensor:
        if not self.penalty:
            return scores
        return scores / drawn.clamp(min=1).to(scores.dtype) ** self.penalty

    def grow(self, beams: _Beams) -> _Beams:
        """The best of all candidates that are one token longer; a finished one stays as it is."""
        classes = beams.answer.shape[2]
        follow = beams.answer.log_softmax(2, dtype=beams.scores.dtype)  # (B, W, V)
        # Behind a token of probability 0 there may be NaN, which would win every comparison.
        follow = follow.masked_fill(follow.isnan(), float("-inf"))
        # A finished candidate may only repeat its last token, for nothing.
        if self.stop is not None and 0 <= self.stop < classes:
            follow = follow.masked_fill(beams.done.unsqueeze(2), float("-inf"))
            follow[:, :, self.stop].masked_fill_(beams.done, 0.0)
        scores = (beams.scores.unsqueeze(2) + follow).flatten(1)  # (B, W * V)
        drawn = beams.drawn + (~beams.done).long()  # (B, W)

        ranks = self.rank(scores, drawn.repeat_interleave(classes, 1))
        kept = ranks.topk(min(self.width, ranks.shape[1]), 1).indices  # (B, W)
        parent = kept // classes
        token = kept % classes
        done = beams.done.gather(1, parent)
        if self.stop is not None:
            done = done | (token == self.stop)
        return _Beams(
            parent, token, scores.gather(1, kept), drawn.gather(1, parent), done, beams.answer
        )

    def read(self, grown: _Beams, time: int, token: Tensor) -> _Beams:
        """The same, but the rows whose primer goes on have one candidate, which reads it."""
        reading = (time < self.lengths).unsqueeze(1)  # (B, 1)
        alone = torch.zeros_like(grown.scores)
        alone[:, 1:] = float("-inf")
        return replace(
            grown,
            parent=grown.parent.masked_fill(reading, 0),
            token=torch.where(reading, token.unsqueeze(1), grown.token),
            scores=torch.where(reading, alone, grown.scores),
            drawn=grown.drawn.masked_fill(reading, 0),
            done=grown.done & ~reading,
        )

    def is_decided(self, beams: _Beams) -> bool:
        """Whether no candidate that goes on can come before the `best` finished ones of its row.

        A sum of log-probabilities only falls. Divided by the power of the length, it is highest at
        the greatest length, or now where the exponent is negative.
        """
        if not bool(beams.done.any()):
            return False
        if beams.count < self.best:
            return bool((beams.done | beams.scores.isneginf()).all())
        ranks = self.rank(beams.scores, beams.drawn)
        finished = ranks.masked_fill(~beams.done, float("-inf")).topk(self.best, 1).values[:, -1]
        longest = (self.length - self.lengths).unsqueeze(1)
        at_most = torch.maximum(ranks, self.rank(beams.scores, longest))
        others = at_most.masked_fill(beams.done, float("-inf")).amax(1)
        return bool(((finished > others) | others.isneginf()).all())

    def ranking(self, beams: _Beams) -> tuple[Tensor, Tensor]:
        """Ranks and places of the best candidates, `(B, best)`; `-inf` where there are too few."""
        found = self.rank(beams.scores, beams.drawn).topk(min(self.best, beams.count), 1)
        missing = self.best - found.values.shape[1]
        return (
            F.pad(found.values, (0, missing), value=float("-inf")),
            F.pad(found.indices, (0, missing)),
        )


def _flat(index: Tensor, count: int) -> Tensor:
    """Candidates `(B, n)` of `count` in each row, as rows of a batch of `B * count`: `(B * n,)`."""
    rows = torch.arange(len(index), device=index.device).unsqueeze(1)
    return (index + rows * count).flatten()


def _trace(primed: Stretch, trail: list[_Beams], index: Tensor) -> tuple[Tensor, Tensor]:
    """The whole way to the candidates `index (B, n)`: `(T, B * n)` and logits `(T, B * n, V)`."""
    count = index.shape[1]
    tokens: list[Tensor] = []
    outputs: list[Tensor] = []
    for beams in reversed(trail):
        tokens.append(beams.token.gather(1, index).view(1, -1).to(primed.inputs.dtype))
        outputs.append(beams.answer.flatten(0, 1)[None, _flat(index, beams.count)])
        index = beams.parent.gather(1, index)
    tokens.append(primed.inputs.repeat_interleave(count, 1))
    outputs.append(primed.outputs.repeat_interleave(count, 1))
    return torch.cat(tokens[::-1]), torch.cat(outputs[::-1])


def _ends(tokens: Tensor, lengths: Tensor, stop: int | None) -> tuple[Tensor, Tensor]:
    """How many tokens each row has up to its own stop, and whether it has one, on the CPU."""
    time = len(tokens)
    if stop is None:
        return torch.full_like(lengths, time), torch.zeros_like(lengths, dtype=torch.bool)
    hit = (tokens == stop).cpu() & ~valid_steps(lengths, time)  # (T, B)
    stopped = hit.any(0)
    first = hit.int().argmax(0) + 1
    return torch.where(stopped, first, time), stopped


def _check_options(width: int, best: int, stop: object, length_penalty: float) -> None:
    at_least("width", width, 1, "1 is greedy decoding.")
    at_least("best", best, 1, "1 returns the likeliest candidate of each row.")
    if best > width:
        came = f"best = {best} of width = {width}"
        raise Refusal(came, "best <= width", "a search has no more candidates than it keeps.")
    if stop is not None:
        check_token(stop)
    fix = "0 ranks by likelihood, 1 by the mean of a token."
    check_number("length_penalty", length_penalty, math.isfinite, "a finite number", fix)


def _check_tokens(inputs: object) -> None:
    if isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point():
        return
    fix = "beams are made of classes."
    raise Refusal(f"a primer {in_full(inputs)}", "tokens, int64 (T0, B)", fix, TypeError)


def _check_logits(outputs: object) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 3:
        fix = "end the model with nn.Linear(H, V)."
        raise Refusal(f"outputs {in_words(outputs)}", "logits (T, B, V)", fix)
