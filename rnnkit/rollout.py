"""The one place where a model is stepped: stretches fed by the data as one call, single steps fed by the model."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._contract import (
    Model,
    Sampler,
    State,
    Steps,
    as_sequence,
    call_model,
    check_lengths,
    check_model,
    check_state,
    is_bidirectional,
    refuse,
    run_model,
    shape,
)
from .feedback import Feedback
from .modules import RecurrentSequential
from .samplers import identity
from .state import where_rows

__all__ = ["Feedback", "rollout"]

_FORWARD: dict[Any, type[nn.RNNBase]] = {kind.forward: kind for kind in (nn.LSTM, nn.GRU, nn.RNN)}


def rollout(
    model: Model,
    inputs: Steps,
    feedback: Feedback | None = None,
    sampler: Sampler = identity,
    state: State = None,
    lengths: Tensor | None = None,
    step: int = 0,
) -> tuple[Tensor, State]:
    """Runs a model over a sequence in which some steps are fed by the model itself.

    Every stretch of steps fed by the data is one call of the model, so the call count is one more than the number
    of steps at which some row is fed back. Gradients flow through a differentiable sampler.

    Args:
        model: `outputs, state = model(inputs, state)`.
        inputs: `(T, B, *F)`; what stands at a step that is fed back is not read.
        feedback: which steps are fed back; none where it is `None`.
        sampler: maps the outputs `(B, *O)` of one step to the next input `(B, *F)`.
        state: the state before the first step.
        lengths: int64 CPU `(B,)`; the state returned is then each row's at its own last step.
        step: training steps made so far, for a feedback with a schedule.

    Returns:
        Outputs `(T, B, *O)` and the state after the last step.

    Raises:
        ValueError: if shapes, lengths or state do not fit, or the sampler's output is not an input.
        TypeError: if the model gives no state.

    >>> model = RecurrentSequential(nn.GRU(1, 8), nn.Linear(8, 1))
    >>> outputs, state = rollout(model, torch.zeros(10, 4, 1), Feedback.last(3))
    >>> outputs.shape
    torch.Size([10, 4, 1])
    """
    inputs = as_sequence(inputs, "rollout")
    time, batch = inputs.shape[:2]
    check_model(model, "rollout")
    check_state(state, batch, "rollout")
    if lengths is not None:
        check_lengths(lengths, time, batch, "rollout")
    mask = None if feedback is None else feedback.mask(time, batch, lengths, step)
    return roll(model, inputs, mask, sampler, state, lengths, "rollout")


def roll(
    model: Model,
    inputs: Tensor,
    mask: Tensor | None,
    sampler: Sampler,
    state: State,
    lengths: Tensor | None,
    call: str,
    carry: bool = True,
    previous: Tensor | None = None,
) -> tuple[Tensor, State]:
    """[rollout][rnnkit.rollout] after its checks.

    Without `carry` the state may have run on over padding; `previous` is the output before the first step.
    """
    if mask is None or not mask.any():
        return run_model(model, inputs, state, lengths, call, carry)
    parts: list[Tensor] = []
    for _, outputs, new in walk(model, inputs, mask, sampler, state, lengths, call, carry, previous):
        parts.append(outputs)
        state = new
    return torch.cat(parts), state


def walk(
    model: Model,
    inputs: Tensor,
    mask: Tensor,
    sampler: Sampler,
    state: State,
    lengths: Tensor | None,
    call: str,
    carry: bool = True,
    previous: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Stretch after stretch: the inputs consumed `(n, B, *F)`, the outputs `(n, B, *O)` and the state after them."""
    if is_bidirectional(model):
        fix = "train it with Feedback.never(), or make it one-directional."
        raise refuse(call, "a bidirectional model", "one that can be stepped: it reads the future", fix)
    some, every = mask.any(1).tolist(), mask.all(1).tolist()
    starts = [t for t, fed in enumerate(some) if fed or t == 0]
    single = fast_step(model)
    mask = mask.to(inputs.device)
    for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
        stretch = inputs[start:stop]
        if some[start] and previous is not None:
            first = draw(sampler, previous, stretch[0], call)
            if not every[start]:
                first = torch.where(mask[start].view(-1, *[1] * (first.ndim - 1)), first, stretch[0])
            stretch = first.unsqueeze(0) if len(stretch) == 1 else torch.cat([first.unsqueeze(0), stretch[1:]])
        here = None if lengths is None else (lengths - start).clamp(0, stop - start)
        if len(stretch) > 1 or not some[start]:
            outputs, state = run_model(model, stretch, state, here, call, carry)
        else:
            outputs, new = call_model(single, stretch, state, call)
            state = new if here is None or not carry else where_rows(here > 0, new, state)
        yield stretch, outputs, state
        previous = outputs[-1]


def draw(sampler: Sampler, outputs: Tensor, like: Tensor, call: str) -> Tensor:
    """The next input, checked against the form that the model takes."""
    drawn = sampler(outputs)
    if drawn.shape != like.shape or drawn.is_floating_point() != like.is_floating_point():
        came = f"{shape(drawn)} of {drawn.dtype} from the sampler, for outputs {shape(outputs)}"
        fix = "tokens come from sample_best or SoftmaxSampler, one-hot rows from SoftmaxSampler(one_hot=True)."
        raise refuse(call, came, f"the model's next input, {shape(like)} of {like.dtype}", fix)
    return drawn.to(like.dtype)


def fast_step(model: Model) -> Model:
    """A model that takes one step `(1, B, *F)` and equals `model`, by the cell operator of a fused module's weights.

    Anything that is not plain `nn.LSTM`, `nn.GRU` or `nn.RNN`, alone or in a `RecurrentSequential`, is returned as it
    is. So is a module with hooks, or under autocast.
    """
    if not isinstance(model, nn.Module) or not _plain(model) or torch.is_autocast_enabled(_device(model)):
        return model
    if type(model) is RecurrentSequential:
        members = [
            (fast_step(m) if recurrent else m, recurrent) for m, recurrent in zip(model, model.recurrent, strict=False)
        ]

        def step(inputs: Tensor, state: State) -> tuple[Tensor, State]:
            after: list[State] = []
            for member, recurrent in members:
                if recurrent:
                    inputs, new = call_model(member, inputs, None if state is None else state[len(after)], "rollout")
                    after.append(new)
                else:
                    inputs = member(inputs)
            return inputs, tuple(after)

        return step
    kind = _FORWARD.get(getattr(type(model), "forward", None))
    if kind is None or not isinstance(model, nn.RNNBase):
        return model
    if model.bidirectional or model.proj_size or (model.training and model.dropout):
        return model
    return _fused_step(model, kind)


def _fused_step(model: nn.RNNBase, kind: type[nn.RNNBase]) -> Model:
    names = ("weight_ih_l", "weight_hh_l") + (("bias_ih_l", "bias_hh_l") if model.bias else ())
    weights = [tuple(getattr(model, f"{name}{layer}") for name in names) for layer in range(model.num_layers)]
    many = len(weights) > 1
    if kind is nn.RNN:
        cell: Callable[..., Tensor] = torch.rnn_tanh_cell if model.nonlinearity == "tanh" else torch.rnn_relu_cell
    else:
        cell = torch.gru_cell

    def lstm(inputs: Tensor, state: State) -> tuple[Tensor, State]:
        x = inputs[0]
        h, c = state if state is not None else (x.new_zeros(len(weights), len(x), model.hidden_size),) * 2
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for layer, weight in enumerate(weights):
            x, new = torch.lstm_cell(x, (h[layer], c[layer]), *weight)
            hs.append(x)
            cs.append(new)
        top = x.unsqueeze(0)
        return top, (torch.stack(hs) if many else top, torch.stack(cs) if many else cs[0].unsqueeze(0))

    def other(inputs: Tensor, state: State) -> tuple[Tensor, State]:
        x = inputs[0]
        h = state if state is not None else x.new_zeros(len(weights), len(x), model.hidden_size)
        hs: list[Tensor] = []
        for layer, weight in enumerate(weights):
            x = cell(x, h[layer], *weight)
            hs.append(x)
        return x.unsqueeze(0), torch.stack(hs) if many else x.unsqueeze(0)

    return lstm if kind is nn.LSTM else other


def _plain(model: nn.Module) -> bool:
    hooks = model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    return not hooks and "forward" not in vars(model)


def _device(model: nn.Module) -> str:
    first = next(model.parameters(), None)
    return "cpu" if first is None else first.device.type
