"""The future of a sequence after a primer: the likeliest that a search finds."""

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps
from ..core.model import Model, evaluating
from ..core.state import State, select_rows
from ._fast import one_step
from .rollouts import Roller
from .samplers import sample_best
from .sampling import Sample, check_primer, sample_of


@asked("beam_search")
def beam_search(
    model: Model,
    length: int,
    primer: Steps,
    width: int,
    state: State = None,
    stop: int | None = None,
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

    >>> from torch import nn
    >>> from rnnkit import RecurrentSequential
    >>> model = RecurrentSequential(nn.Embedding(5, 3), nn.GRU(3, 8), nn.Linear(8, 5))
    >>> beam_search(model, 6, torch.tensor([[0, 1]]), width=3).tokens.shape
    torch.Size([6, 2])
    """
    if width < 1:
        raise Refusal(f"width = {width}", "width >= 1", "1 is greedy decoding.")
    inputs, _ = check_primer(model, length, primer, None, state)
    if inputs.is_floating_point() or inputs.ndim != 2:
        came = f"a primer {in_words(inputs)} of {inputs.dtype}"
        raise Refusal(came, "tokens, int64 (T0, B)", "beams are made of classes.", TypeError)
    time, batch = inputs.shape
    rows, end = (
        torch.arange(batch, device=inputs.device),
        -1 if stop is None else stop,
    )  # no class is -1
    with torch.no_grad(), evaluating(model):
        driven = torch.zeros(time, 1, dtype=torch.bool)
        _, head, state = next(Roller(model, sample_best).walk(inputs, driven, state))
        if head.ndim != 3:
            raise Refusal(
                f"outputs {in_words(head)}",
                "logits (T, B, V)",
                "end the model with nn.Linear(H, V).",
            )
        classes, answer = head.shape[2], head[-1].unsqueeze(1)
        scores, done = (
            head.new_zeros(batch, 1),
            torch.zeros(batch, 1, dtype=torch.bool, device=head.device),
        )
        only = head.new_full((classes,), float("-inf")).masked_fill(
            torch.arange(classes, device=head.device) == end, 0
        )
        step = one_step(model, batch * width)
        trail: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(length - time):
            beams = scores.shape[1]
            follow = torch.where(done.unsqueeze(2), only, answer.log_softmax(-1))
            scores, best = (
                (scores.unsqueeze(2) + follow).flatten(1).topk(min(width, beams * classes), 1)
            )
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
        return sample_of(consumed, outputs, after, state, lengths, sample_best, stopped)
