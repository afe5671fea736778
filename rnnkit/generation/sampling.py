"""The future of a sequence after a primer, drawn step by step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps
from ..core.model import Model, check_call, evaluating
from ..core.state import State, where_rows
from .rollouts import Roller
from .samplers import NextInput, identity

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


@asked("sample_model")
def sample_model(
    model: Model,
    length: int,
    primer: Steps | tuple[Tensor, Tensor],
    sampler: NextInput = identity,
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

    >>> from torch import nn
    >>> from rnnkit import RecurrentSequential, sample_best
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> sample = sample_model(model, 20, torch.tensor([[0], [1]]), sample_best)
    >>> sample.tokens.shape, sample.tokens[:2, 0].tolist()
    (torch.Size([20, 1]), [0, 1])
    """
    inputs, lengths = check_primer(model, length, primer, lengths, state)
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
        roller = Roller(model, sampler if stop is None else hold)
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
        return sample_of(
            torch.cat(consumed), torch.cat(answers), drawn, state, ended, sampler, ~going
        )


def check_primer(
    model: Model,
    length: int,
    primer: Steps | tuple[Tensor, Tensor],
    lengths: Tensor | None,
    state: State,
) -> tuple[Tensor, Tensor]:
    """The checked primer `(T0, B, *F)` and its lengths `(B,)`."""
    if isinstance(primer, tuple) and len(primer) == 2:
        primer, lengths = primer
    if primer is None or (isinstance(primer, Tensor) and not len(primer)):
        fix = "start from a first step of your own: a token that begins a text, or a zero input."
        kind = TypeError if primer is None else ValueError
        raise Refusal("an empty primer", "at least one step (T0, B, *F)", fix, kind)
    inputs = check_call(model, primer, state, lengths, "primer")
    time, batch = inputs.shape[:2]
    if length < time:
        fix = "length counts the primer; generate n new steps with length = len(primer) + n."
        raise Refusal(
            f"length = {length} and a primer {in_words(inputs)}", f"length >= {time}", fix
        )
    return inputs, torch.full((batch,), time) if lengths is None else lengths


def _stops(stop: Stop, tokens: Tensor) -> Tensor:
    hit = stop(tokens) if callable(stop) else tokens == stop
    if hit.shape != tokens.shape[:1]:
        fix = "pass a function of tokens (B, *F) to bool (B,)."
        raise Refusal(f"stop {in_words(hit)} for tokens {in_words(tokens)}", "bool (B,)", fix)
    return hit.cpu()


def sample_of(
    tokens: Tensor,
    outputs: Tensor,
    after: Tensor,
    state: State,
    ended: Tensor,
    sampler: NextInput,
    stopped: Tensor,
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


def draw_paths(model, sampler, answer, state, given, paths):
    raise NotImplementedError
