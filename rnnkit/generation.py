"""The future of a sequence after a primer: drawn step by step, or searched for the likeliest."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._contract import Model, Sampler, State, Steps, check_call, refuse, shape
from .samplers import identity, sample_best
from .state import select_rows, where_rows
from .stepping import Roller, one_step

Stop = int | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """What a model generated; iterating over it gives tokens, outputs, log_probs, next and state.

    Attributes:
        tokens: `(length, B, *F)`, the inputs that the model consumed: the primer, then what it drew.
        outputs: `(length, B, *O)`; `outputs[t]` answers `tokens[t]`.
        log_probs: `(length, B)`, the log-probability that `outputs[t]` gave to what followed it, `tokens[t + 1]` or
            `next`, before any temperature or cut; 0 after a row has stopped; `None` where the outputs are no
            distribution.
        next: `(1, B, *F)`, drawn from the last output and not yet consumed.
        state: the model's state after the last token.
        lengths: int64 `(B,)`, the tokens of each row up to and with the one that stopped it.
    """

    tokens: Tensor
    outputs: Tensor
    log_probs: Tensor | None
    next: Tensor
    state: State
    lengths: Tensor

    def __iter__(self) -> Iterator[Tensor | State | None]:
        return iter((self.tokens, self.outputs, self.log_probs, self.next, self.state))


def sample_model(
    model: Model,
    length: int,
    primer: Steps | tuple[Tensor, Tensor],
    sampler: Sampler = identity,
    state: State = None,
    stop: Stop | None = None,
    lengths: Tensor | None = None,
) -> Sample:
    """A [Sample][rnnkit.Sample] of the future after a primer: the model reads that, and then what it draws itself.

    `sample_model(model, n, s.next, sampler, s.state)` goes on from a sample `s`: 50 steps and then 50 more are the
    100 that one call gives. Runs in evaluation mode, without gradient, and leaves the model's mode as it was. `length`
    counts the primer, as `nseq` does in [issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    Args:
        model: `outputs, state = model(inputs, state)`.
        length: steps to consume, the primer's among them.
        primer: `(T0, B, *F)` with `1 <= T0 <= length`, or primers of different length as the pair that
            [batchseq][rnnkit.batchseq] gives.
        sampler: maps the outputs `(B, *O)` of one step to the next input `(B, *F)`.
        state: the state before the primer.
        stop: a token, or a function of tokens `(B, *F)` to bool `(B,)`: a row that draws it stops there, is filled
            with it, and generation ends when all rows have stopped.
        lengths: int64 CPU `(B,)`, the primers' lengths; instead of the pair.

    Raises:
        ValueError: if the primer is empty or longer than `length`, a state has another batch size, or the sampler's
            output is not an input.
        TypeError: if there is no primer, or the model gives no state.

    >>> from rnnkit import RecurrentSequential, sample_best
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> sample = sample_model(model, 20, torch.tensor([[0], [1]]), sample_best)
    >>> sample.tokens.shape, sample.tokens[:2, 0].tolist()
    (torch.Size([20, 1]), [0, 1])
    """
    call = "sample_model"
    inputs, lengths = _start(call, model, length, primer, lengths, state)
    time, batch = inputs.shape[:2]
    mask = torch.arange(length).unsqueeze(1) >= lengths
    inputs = torch.cat([inputs, inputs.new_zeros(length - time, *inputs.shape[1:])])
    ended, going = torch.full((batch,), length), torch.ones(batch, dtype=torch.bool)
    consumed: list[Tensor] = []
    answers: list[Tensor] = []

    def hold(outputs: Tensor) -> Tensor:
        """The draw, in which a row that stopped repeats the token it stopped at."""
        drawn = sampler(outputs)
        return drawn if going.all() else where_rows(going, drawn.unsqueeze(0), consumed[-1][-1:])[0]

    with torch.no_grad(), evaluating(model):
        roller = Roller(model, sampler if stop is None else hold, call)
        t = -1
        for tokens, outputs, after in roller.walk(inputs, mask, state):
            state = after
            consumed.append(tokens)
            answers.append(outputs)
            t += len(tokens)
            if stop is not None:
                hit = _stops(stop, tokens[-1]) & going & mask[t]
                ended[hit], going = t + 1, going & ~hit
                if not going.any():
                    break
        drawn = roller.draw(answers[-1][-1], inputs[0]).unsqueeze(0)
        return _gather(torch.cat(consumed), torch.cat(answers), drawn, state, ended, sampler, ~going)


def beam_search(
    model: Model, length: int, primer: Steps, width: int, state: State = None, stop: int | None = None
) -> Sample:
    """The likeliest continuation of each row that a search over `width` candidates finds, as a [Sample][rnnkit.Sample].

    A candidate's score is the sum of the log-probabilities of the tokens it drew. With width 1 it is
    [sample_model][rnnkit.sample_model] with [sample_best][rnnkit.sample_best]; with `V ** (n - 1)` and more it is
    exact for `n` drawn tokens. The sample's `next` is the best token after the best candidate.

    Args:
        model: `outputs, state = model(inputs, state)` with logits `(T, B, V)`.
        length: tokens to consume, the primer's among them.
        primer: int64 `(T0, B)` with `1 <= T0 <= length`.
        width: candidates kept for each row.
        state: the state before the primer.
        stop: a token that ends a candidate, which keeps its score from there on.

    Raises:
        ValueError: if `width` is below 1, or the primer, the state or the outputs do not fit.
        TypeError: if the primer is not of integers, or the model gives no state.

    >>> from rnnkit import RecurrentSequential
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> beam_search(model, 6, torch.tensor([[0, 1]]), width=3).tokens.shape
    torch.Size([6, 2])
    """
    call = "beam_search"
    if width < 1:
        raise refuse(call, f"width = {width}", "width >= 1", "1 is greedy decoding.")
    inputs, _ = _start(call, model, length, primer, None, state)
    if inputs.is_floating_point() or inputs.ndim != 2:
        came = f"a primer {shape(inputs)} of {inputs.dtype}"
        raise refuse(call, came, "tokens, int64 (T0, B)", "beams are made of classes.", TypeError)
    time, batch = inputs.shape
    rows, end = torch.arange(batch, device=inputs.device), -1 if stop is None else stop  # no class is -1
    with torch.no_grad(), evaluating(model):
        driven = torch.zeros(time, 1, dtype=torch.bool)
        _, head, state = next(Roller(model, sample_best, call).walk(inputs, driven, state))
        if head.ndim != 3:
            raise refuse(call, f"outputs {shape(head)}", "logits (T, B, V)", "end the model with nn.Linear(H, V).")
        classes, answer = head.shape[2], head[-1].unsqueeze(1)
        scores, done = head.new_zeros(batch, 1), torch.zeros(batch, 1, dtype=torch.bool, device=head.device)
        only = head.new_full((classes,), float("-inf")).masked_fill(torch.arange(classes, device=head.device) == end, 0)
        step = one_step(model, batch * width)
        trail: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(length - time):
            beams = scores.shape[1]
            follow = torch.where(done.unsqueeze(2), only, answer.log_softmax(-1))
            scores, best = (scores.unsqueeze(2) + follow).flatten(1).topk(min(width, beams * classes), 1)
            parent, token = best // classes, best % classes
            state = select_rows(state, (parent + rows.unsqueeze(1) * beams).flatten())
            outputs, state = step(token.view(1, -1), state)
            answer = outputs[0].view(batch, -1, classes)
            done = done.gather(1, parent) | (token == end)
            trail.append((parent, token, answer))
            if done.all():
                break
        beam = scores.argmax(1)
        state = select_rows(state, rows * scores.shape[1] + beam)
        tokens: list[Tensor] = [inputs]
        answers: list[Tensor] = [head]
        for parent, token, answer in reversed(trail):
            tokens.insert(1, token[rows, beam].unsqueeze(0))
            answers.insert(1, answer[rows, beam].unsqueeze(0))
            beam = parent[rows, beam]
        consumed, outputs = torch.cat(tokens), torch.cat(answers)
        hit = (consumed[time:] == end).cpu()
        stopped = hit.any(0)
        lengths = time + (hit.cumsum(0) == 0).sum(0) + stopped
        after = sample_best(outputs[-1]).masked_fill(stopped.to(outputs.device), end).unsqueeze(0)
        return _gather(consumed, outputs, after, state, lengths, sample_best, stopped)


def _start(
    call: str, model: Model, length: int, primer: Steps | tuple[Tensor, Tensor], lengths: Tensor | None, state: State
) -> tuple[Tensor, Tensor]:
    """The checked primer `(T0, B, *F)` and its lengths `(B,)`."""
    if isinstance(primer, tuple) and len(primer) == 2:
        primer, lengths = primer
    if primer is None or (isinstance(primer, Tensor) and not len(primer)):
        fix = "start from a first step of your own: a token that begins a text, or a zero input."
        kind = TypeError if primer is None else ValueError
        raise refuse(call, "an empty primer", "at least one step (T0, B, *F)", fix, kind)
    inputs = check_call(call, model, primer, state, lengths, "primer")
    time, batch = inputs.shape[:2]
    if length < time:
        fix = "length counts the primer; generate n new steps with length = len(primer) + n."
        raise refuse(call, f"length = {length} and a primer {shape(inputs)}", f"length >= {time}", fix)
    return inputs, torch.full((batch,), time) if lengths is None else lengths


@contextmanager
def evaluating(model: Model) -> Generator[None]:
    """Evaluation mode inside, every module's own mode again after it."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _stops(stop: Stop, tokens: Tensor) -> Tensor:
    hit = stop(tokens) if callable(stop) else tokens == stop
    if hit.shape != tokens.shape[:1]:
        fix = "pass a function of tokens (B, *F) to bool (B,)."
        raise refuse("sample_model", f"stop {shape(hit)} for tokens {shape(tokens)}", "bool (B,)", fix)
    return hit.cpu()


def _gather(
    tokens: Tensor, outputs: Tensor, after: Tensor, state: State, ended: Tensor, sampler: Sampler, stopped: Tensor
) -> Sample:
    """A sample with its log-probabilities; `ended (B,)` counts the tokens of each row."""
    followed = torch.cat([tokens[1:], after])
    score, log_probs = getattr(sampler, "log_prob", None), None
    if score is not None:
        log_probs = score(outputs, followed)
    elif not followed.is_floating_point() and outputs.ndim == followed.ndim + 1:
        log_probs = outputs.log_softmax(2).gather(2, followed.unsqueeze(2)).flatten(2).sum(2)
    elif getattr(sampler, "one_hot", False):
        log_probs = (outputs.log_softmax(-1) * followed).sum(-1)
    if log_probs is not None and stopped.any():
        filled = stopped & (torch.arange(len(tokens)).unsqueeze(1) >= ended - 1)
        log_probs = log_probs.masked_fill(filled.to(log_probs.device), 0.0)
    return Sample(tokens, outputs, log_probs, after, state, ended)
