"""The future of a sequence after a primer, searched for the likeliest."""

import torch
from torch import Tensor

from ._contract import Model, State, Steps, refuse, shape
from .generation import Sample, evaluating, gather, start
from .rollout import fast_step, walk
from .samplers import sample_best
from .state import select_rows

__all__ = ["beam_search"]


def beam_search(
    model: Model,
    length: int,
    primer: Steps,
    width: int,
    state: State = None,
    stop: int | None = None,
) -> Sample:
    """The likeliest continuation that a search over `width` candidates a row finds, the rows side by side.

    A candidate's score is the sum of the log-probabilities of the tokens it drew. With width 1 it is
    [sample_model][rnnkit.sample_model] with [sample_best][rnnkit.sample_best]; with `V ** (n - 1)` and more it is
    exact for `n` drawn tokens.

    Args:
        model: `outputs, state = model(inputs, state)` with logits `(T, B, V)`.
        length: tokens to consume, the primer's among them.
        primer: int64 `(T0, B)` with `1 <= T0 <= length`.
        width: candidates kept for each row.
        state: the state before the primer.
        stop: a token that ends a candidate, which keeps its score from there on.

    Returns:
        The best candidate of each row as a [Sample][rnnkit.Sample]; `next` is the best token after it.

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
        raise refuse("beam_search", f"width = {width}", "width >= 1", "1 is greedy decoding.")
    inputs, _ = start("beam_search", model, length, primer, None, state)
    if inputs.is_floating_point() or inputs.ndim != 2:
        came = f"a primer {shape(inputs)} of {inputs.dtype}"
        raise refuse("beam_search", came, "tokens, int64 (T0, B)", "beams are made of classes.", TypeError)
    time, batch = inputs.shape
    device = inputs.device
    with torch.no_grad(), evaluating(model):
        first = torch.zeros(time, 1, dtype=torch.bool)
        _, outputs, state = next(walk(model, inputs, first, sample_best, state, None, "beam_search"))
        if outputs.ndim != 3:
            fix = "end the model with nn.Linear(H, V)."
            raise refuse("beam_search", f"outputs {shape(outputs)}", "logits (T, B, V)", fix)
        head, step, classes = outputs, fast_step(model), outputs.shape[2]
        scores = torch.zeros(batch, 1, device=device, dtype=outputs.dtype)
        done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
        trail: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(length - time):
            beams = scores.shape[1]
            follow = outputs[-1].log_softmax(-1).view(batch, beams, classes)
            if stop is not None:
                only = torch.full((classes,), float("-inf"), device=device, dtype=scores.dtype)
                only[stop] = 0.0
                follow = torch.where(done.unsqueeze(2), only, follow)
            scores, best = (scores.unsqueeze(2) + follow).flatten(1).topk(min(width, beams * classes), 1)
            parent, token = best // classes, best % classes
            rows = (parent + torch.arange(batch, device=device).unsqueeze(1) * beams).flatten()
            outputs, state = step(token.flatten().unsqueeze(0), select_rows(state, rows))
            done = done.gather(1, parent) if stop is None else done.gather(1, parent) | (token == stop)
            trail.append((parent, token, outputs[0].view(batch, -1, classes)))
            if done.all():
                break
        row = torch.arange(batch, device=device)
        beam = scores.argmax(1)
        state = select_rows(state, row * scores.shape[1] + beam)
        tokens: list[Tensor] = []
        answers: list[Tensor] = []
        for parent, token, answer in reversed(trail):
            tokens.append(token[row, beam])
            answers.append(answer[row, beam])
            beam = parent[row, beam]
        drawn = torch.stack(tokens[::-1]) if tokens else inputs[:0]
        answers_all = torch.cat([head, torch.stack(answers[::-1])]) if answers else head
        hit = torch.zeros(drawn.shape, dtype=torch.bool) if stop is None else (drawn == stop).cpu()
        stopped = hit.any(0)
        ends = torch.full((batch,), time + len(drawn))
        if stopped.any():
            ends = torch.where(stopped, time + hit.int().argmax(0) + 1, ends)
        after = sample_best(answers_all[-1]).unsqueeze(0)
        return gather(torch.cat([inputs, drawn]), answers_all, after, state, ends, stopped, sample_best)
