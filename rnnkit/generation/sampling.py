"""The future of a sequence after a primer, drawn step by step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, at_least, in_full, in_words
from ..core.layout import (
    Sequences,
    all_lengths,
    as_sequences,
    at_own_step,
    between,
    check_state,
    extent,
    gathered,
    join,
    valid_like,
    valid_steps,
)
from ..core.model import BATCH_IN_STATE, Model, check_call, evaluating
from ..core.signature import check_takes
from ..core.state import State, map_leaves, onto, where_rows
from .rollouts import Rollout, Stretch, first_step, last_step, one_step_of
from .samplers import DeclaredSampler, NextInput, identity

Stop = int | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Sample:
    """What a model generated; iterating over it gives tokens, outputs, log_probs, next and state.

    >>> import torch
    >>> from rnnkit import sample_model
    >>> sample = sample_model(torch.nn.GRU(1, 1), 7, torch.zeros(3, 2, 1))
    >>> tokens, outputs, *rest = sample
    >>> tokens.shape, sample.next.shape, sample.lengths.tolist()
    (torch.Size([7, 2, 1]), torch.Size([1, 2, 1]), [7, 7])

    Attributes:
        tokens: `(length, B, *F)`, the inputs that the model consumed: the primer, then what it
            drew.
        outputs: `(length, B, *O)`; `outputs[t]` answers `tokens[t]`.
        log_probs: `(length, B)`, the log-probability that `outputs[t]` gave to what followed it,
            `tokens[t + 1]` or `next`, before any temperature or cut; 0 after a row has stopped, and
            where nothing follows; `None` where the sampler declares no distribution, by
            `classes = True` or a `log_prob` as [DistributionSampler][rnnkit.DistributionSampler].
        next: `(1, B, *F)`, drawn from the last output and not yet consumed; `None` where the
            sampler wants what the data has at that step and `future` ends before it.
        state: the model's state after the last token.
        lengths: int64 `(B,)`, the tokens of each row up to and with the one that stopped it.
        scores: of a [beam_search][rnnkit.beam_search] only: `(B, best)`, what its candidates were
            ranked by.
    """

    tokens: Any
    outputs: Any
    log_probs: Tensor | None
    next: Any
    state: State
    lengths: Tensor
    scores: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tokens, self.outputs, self.log_probs, self.next, self.state))


@asked("sample_model")
def sample_model(
    model: Model,
    length: int,
    primer: Sequences | tuple[Any, Tensor],
    sampler: NextInput = identity,
    state: State = None,
    *,
    stop: Stop | None = None,
    lengths: Tensor | None = None,
    future: Sequences | None = None,
) -> Sample:
    """A [Sample][rnnkit.Sample] of the future after a primer, drawn step by step.

    `sample_model(model, n, s.next, sampler, s.state)` goes on from a sample `s`: 50 steps and then
    50 more are the 100 that one call gives, but a row that has stopped begins again. Runs in
    evaluation mode, without gradient. `length` counts the primer, as `nseq` does in
    [issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    Args:
        model: `outputs, state = model(inputs, state)`.
        length: steps to consume, the primer's among them.
        primer: `(T0, B, *F)` with `1 <= T0 <= length`, or a dict of such; or primers of different
            length as the pair that [batchseq][rnnkit.batchseq] gives.
        sampler: maps the outputs `(B, *O)` of one step to the next input `(B, *F)`; with a second
            parameter, called `given` or required, it also gets what `future` has there.
        state: the state before the primer.
        stop: a token, or a function of tokens `(B, *F)` to bool `(B,)`: a row that draws it stops
            there, is filled with it, and generation ends when all rows have stopped.
        lengths: int64 CPU `(B,)`, the primers' lengths; instead of the pair.
        future: `(length - T0, B, *F)`, the steps after each primer's own end, of which only what
            the sampler keeps is read, as of [with_covariates][rnnkit.with_covariates] the
            covariates. With one step more, `next` is drawn too.

    Raises:
        ValueError: if the primer is empty or longer than `length`, a state has another batch size,
            the sampler's output is not an input, the future is too short, or there is none and the
            sampler wants it.
        TypeError: if there is no primer, the model gives no state, the sampler no tensor or `stop`
            no bool tensor.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import RecurrentSequential, sample_best, sample_model
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> sample = sample_model(model, 20, torch.tensor([[0], [1]]), sample_best)
    >>> sample.tokens.shape, sample.tokens[:2, 0].tolist()
    (torch.Size([20, 1]), [0, 1])
    """
    inputs, lengths = check_primer(model, primer, lengths, state)
    check_length(length, inputs)
    time = extent(inputs)[0]
    known = _Known.of(sampler, inputs, lengths, future, length - int(lengths.min()))
    drawing = _Drawing(model, known.sampler, _stop_function(stop), length, lengths)

    with torch.no_grad(), evaluating(model):
        # The primer: one call to the end of the shortest, then a call for each step.
        driven = valid_steps(lengths, time)
        for stretch in drawing.stretches(known.inputs, ~driven, state):
            drawing.keep(stretch)

        # What follows it. Nothing is made in advance: `stop` may end it long before `length`.
        for stretch in drawing.go_on(known, length):
            drawing.keep(stretch)
            if stop is not None and not drawing.going.any():
                break

        # What would come next, where all that it is made of is known.
        like = known.at(drawing.time)
        after: Any = None
        if like is not None:
            after = one_step_of(drawing.next_input(drawing.answer, like))
        return sample_of(
            join(drawing.inputs),
            join(drawing.outputs),
            after,
            drawing.state,
            sampler,
            drawing.ended,
            stopped=~drawing.going,
        )


@asked("forecast")
def forecast(
    model: Model,
    horizon: int,
    primer: Sequences | tuple[Any, Tensor],
    sampler: NextInput = identity,
    *,
    paths: int = 1,
    future: Sequences | None = None,
    lengths: Tensor | None = None,
    state: State = None,
) -> Any:
    """Sample paths past the last step of each row: what may come, `paths` times.

    The primer is read once, and each path is what [sample_model][rnnkit.sample_model] draws after
    it; a model that draws itself, as by Monte Carlo dropout, wants the rows of the primer repeated
    instead. Runs in evaluation mode, without gradient.

    Args:
        model: `outputs, state = model(inputs, state)`.
        horizon: steps past the last one.
        primer: `(T0, B, *F)`, or a dict of such; or sequences of different length as the pair that
            [batchseq][rnnkit.batchseq] gives.
        sampler: as of [sample_model][rnnkit.sample_model]; one that draws makes every path another.
        paths: paths for each row.
        future: `(horizon, B, *F)`, the steps past the last one, as of
            [sample_model][rnnkit.sample_model].
        lengths: int64 CPU `(B,)`, the primers' lengths; instead of the pair.
        state: the state before the primer.

    Returns:
        `(horizon, B, paths, *F)`, whole inputs with the covariates among them, or a dict of such. A
        quantile over the paths is `result.quantile(0.9, dim=2)`.

    Raises:
        ValueError: if `horizon` or `paths` is below 1, or anything does not fit, as in
            [sample_model][rnnkit.sample_model].
        TypeError: if there is no primer, the model gives no state or the sampler no tensor.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import DistributionSampler, RecurrentSequential, forecast
    >>> model = RecurrentSequential(nn.GRU(1, 8), nn.Linear(8, 2))
    >>> head = lambda y: torch.distributions.Normal(y[..., :1], y[..., 1:].exp())
    >>> forecast(model, 24, torch.zeros(100, 4, 1), DistributionSampler(head), paths=50).shape
    torch.Size([24, 4, 50, 1])
    """
    at_least("horizon", horizon, 1, "it counts the steps past the primer.")
    at_least("paths", paths, 1, "one path is a single draw of the future.")
    inputs, lengths = check_primer(model, primer, lengths, state)
    known = _Known.of(sampler, inputs, lengths, future, horizon)
    with torch.no_grad(), evaluating(model):
        rollout = Rollout(model, known.sampler)
        outputs, state = rollout.over(inputs, None, state, lengths)
        check_state(state, len(lengths), BATCH_IN_STATE)
        answer = at_own_step(outputs, lengths - 1)
        return draw_paths(model, known.sampler, answer, state, known.ahead(horizon), paths)


def draw_paths(
    model: Model, sampler: NextInput, answer: Any, state: State, given: Any, paths: int
) -> Any:
    """`n` draws `(n, B, paths, *F)`, the first of the outputs `answer (B, *O)` and the state there.

    The k-th draw is made with `given[k]`, of `given (n, B, *F)`; the last one is not consumed.
    """

    def every_path(step: Any) -> Any:
        return map_leaves(lambda part: part.repeat_interleave(paths, 0), step)

    def given_at(k: int) -> Any:
        return every_path(map_leaves(lambda part: part[k], given))

    rollout = Rollout(model, sampler)
    time, batch = extent(given)
    answer = every_path(answer)  # (B * paths, *O)
    state = map_leaves(lambda leaf: leaf.repeat_interleave(paths, 1), state)
    drawn: list[Any] = []
    for stretch in rollout.onward(answer, state, map(given_at, range(time - 1))):
        drawn.append(stretch.inputs)
        answer = last_step(stretch.outputs)
    drawn.append(one_step_of(rollout.next_input(answer, given_at(time - 1))))
    return map_leaves(lambda part: part.unflatten(1, (batch, paths)), join(drawn))


class _Drawing(Rollout):
    """A rollout that keeps what it makes; a row that has stopped repeats its last token."""

    def __init__(
        self,
        model: Model,
        sampler: NextInput,
        stop: Callable[[Any], Tensor] | None,
        length: int,
        lengths: Tensor,
    ) -> None:
        super().__init__(model, sampler)
        self.stop = stop
        self.lengths = lengths
        self.going = torch.ones_like(lengths, dtype=torch.bool)  # (B,): those that have not stopped
        self.ended = torch.full_like(lengths, length)  # (B,): steps up to and with the last
        self.time = 0  # steps consumed
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.state: State = None

    @property
    def answer(self) -> Any:
        return last_step(self.outputs[-1])

    def keep(self, stretch: Stretch) -> None:
        """Note a stretch, and which rows stop at its last step."""
        self.inputs.append(stretch.inputs)
        self.outputs.append(stretch.outputs)
        self.state = stretch.state
        self.time += extent(stretch.inputs)[0]
        if self.stop is not None:
            drawn = self.time > self.lengths  # a stop token in the primer stops nothing
            hit = _hits(self.stop, last_step(stretch.inputs)) & drawn & self.going
            self.ended[hit] = self.time
            self.going = self.going & ~hit

    def go_on(self, known: "_Known", length: int) -> Iterator[Stretch]:
        """What follows the last step, up to `length`; all at once where nothing looks at a step."""
        tokens = self.inputs[-1]
        if self.stop is None and known.future is None and _are_tokens(tokens):
            drawn = self.at_once(length - self.time, self.answer, self.state)
            if drawn is not None:
                yield drawn
                return
        given = (known.at(t) for t in range(self.time, length))
        yield from self.onward(self.answer, self.state, given)

    def next_input(self, outputs: Any, given: Any) -> Any:
        drawn = super().next_input(outputs, given)
        if self.stop is None or bool(self.going.all()):
            return drawn
        held = last_step(self.inputs[-1])
        return first_step(where_rows(self.going, one_step_of(drawn), one_step_of(held)))


@dataclass
class _Known:
    """What the data has at each step: the primer, then the future from each row's own end."""

    sampler: NextInput  # the one to call, which does not see what is not there
    inputs: Any  # (T0, B, *F): the primer, after a shorter row's end its future
    lengths: Tensor  # (B,): the primers'
    future: Any  # (n, B, *F), or `None`
    needed: bool  # whether the sampler cannot do without

    @classmethod
    def of(
        cls, sampler: NextInput, inputs: Any, lengths: Tensor, future: Sequences | None, steps: int
    ) -> "_Known":
        declared = DeclaredSampler(sampler)
        if future is not None:
            future = as_sequences(future, "future")
            _check_future(future, inputs, steps)
            inputs = _filled(inputs, future, lengths)
        elif declared.needs_given and steps:
            raise Refusal(
                "a sampler that wants what the data has at each step, and no future",
                f"future ({steps}, B, *F), the steps after the primer",
                "pass future=; of it only what the sampler keeps is read.",
            )
        elif declared.sees_given and not declared.needs_given:
            return cls(lambda outputs: sampler(outputs), inputs, lengths, None, needed=False)
        return cls(sampler, inputs, lengths, future, declared.needs_given)

    def at(self, time: int) -> Any:
        """What the data has at a step behind the primer, `(B, *F)`; `None` after the future.

        Without a future it is the form of an input, for a sampler that does not see it.
        """
        if self.future is None:
            return None if self.needed else first_step(self.inputs)
        behind = time - self.lengths
        if int(behind.max()) >= extent(self.future)[0]:
            return None
        return at_own_step(self.future, behind)

    def ahead(self, steps: int) -> Any:
        """The `steps` from each row's own end on, `(steps, B, *F)`."""
        if self.future is not None:
            return between(self.future, 0, steps)
        return map_leaves(lambda part: part[:1].expand(steps, *part.shape[1:]), self.inputs)


def _check_future(future: Any, inputs: Any, steps: int) -> None:
    def form(tree: Any) -> Any:
        return map_leaves(lambda part: (part.shape[1:], part.is_floating_point()), tree)

    if form(future) != form(inputs):
        raise Refusal(
            f"future {in_words(future)} after a primer {in_words(inputs)}",
            "steps of the same form, (n, B, *F)",
            "the future has all the features of the primer; what the sampler feeds is not read.",
        )
    if extent(future)[0] < steps:
        raise Refusal(
            f"a future of {extent(future)[0]} steps",
            f"at least {steps}",
            "it holds the steps after each primer, from the row's own end on.",
        )


def _filled(inputs: Any, future: Any, lengths: Tensor) -> Any:
    """The primer with each row's future, not padding, after its end."""
    time = extent(inputs)[0]
    if bool((lengths == time).all()):
        return inputs
    rows = torch.arange(len(lengths), device="cpu")
    behind = torch.arange(time, device="cpu").unsqueeze(1) - lengths
    index = behind.clamp(0, extent(future)[0] - 1)  # a forecast may end before the longest row
    return map_leaves(
        lambda part, after: torch.where(valid_like(part, lengths), part, after),
        inputs,
        gathered(future, index, rows),
    )


def check_primer(
    model: Model, primer: Sequences | tuple[Any, Tensor], lengths: Tensor | None, state: State
) -> tuple[Any, Tensor]:
    if isinstance(primer, tuple) and len(primer) == 2:
        primer, lengths = primer
    if primer is None or (isinstance(primer, Tensor) and 0 in primer.shape[:1]):
        fix = "start from a first step of your own: a token that begins a text, or a zero input."
        kind = TypeError if primer is None else ValueError
        raise Refusal("an empty primer", "at least one step (T0, B, *F)", fix, kind)
    inputs = check_call(model, primer, state, lengths, "primer")
    return inputs, all_lengths(lengths, *extent(inputs))


def check_length(length: int, inputs: Any) -> None:
    fix = "length counts the primer; generate n new steps with length = len(primer) + n."
    at_least("length", length, 1, fix)
    time = extent(inputs)[0]
    if length < time:
        came = f"length = {length} and a primer {in_words(inputs)}"
        raise Refusal(came, f"length >= {time}", fix)


def check_token(stop: object) -> None:
    if not isinstance(stop, Integral) or isinstance(stop, bool):
        fix = "pass the class that ends a row; sample_model takes a function of tokens, too."
        raise Refusal(f"stop = {stop!r}", "a token, a whole number", fix, TypeError)


def _are_tokens(inputs: object) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.dtype == torch.int64


def _stop_function(stop: Stop | None) -> Callable[[Any], Tensor] | None:
    if stop is None:
        return None
    if callable(stop):
        check_takes("stop", stop, "tokens")
        return stop
    check_token(stop)
    return lambda tokens: tokens == stop


def _hits(stop: Callable[[Any], Tensor], tokens: Any) -> Tensor:
    hit = stop(tokens)
    fix = "pass a function of tokens (B, *F) to bool (B,)."
    if not isinstance(hit, Tensor) or hit.dtype != torch.bool:
        came = f"{in_full(hit)} from stop for tokens {in_words(tokens)}"
        raise Refusal(came, "a bool tensor (B,)", fix, TypeError)
    if hit.shape != extent(one_step_of(tokens))[1:]:
        came = f"stop {in_words(hit)} for tokens {in_words(tokens)}"
        raise Refusal(came, "bool (B,)", fix)
    return hit.cpu()


def sample_of(
    tokens: Any,
    outputs: Any,
    after: Any,
    state: State,
    sampler: NextInput,
    ended: Tensor,
    *,
    stopped: Tensor,
    scores: Tensor | None = None,
) -> Sample:
    """A sample with its log-probabilities; `ended (B,)` counts the tokens of each row."""
    time = extent(tokens)[0]
    followed = between(tokens, 1, time)
    if after is not None:
        followed = join([followed, after])
    answers = between(outputs, 0, extent(followed)[0])
    log_probs = DeclaredSampler(sampler).log_prob(answers, followed)
    if log_probs is not None:
        if after is None:
            log_probs = torch.cat([log_probs, log_probs.new_zeros(1, log_probs.shape[1])])
        if bool(stopped.any()):
            filled = stopped & ~valid_steps(ended - 1, time)  # (T, B)
            log_probs = log_probs.masked_fill(onto(filled, log_probs.device), 0.0)
    return Sample(tokens, outputs, log_probs, after, state, ended, scores)
