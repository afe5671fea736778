"""Where a recurrent gradient comes from: the share of every time step, and how it fades with the lag."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps
from ..core.model import check_call, check_one_way, run_model


@asked("gradient_by_step")
def gradient_by_step(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Steps,
    targets: Steps | None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""The share of each time step in the gradient of every parameter; the shares sum to the gradient.

    A recurrent model uses one weight $W$ at every step. With a copy $W_t$ of it that only step $t$ uses,
    $dL/dW = \sum_t d_t$, where $d_t = dL/dW_t$ is the share of step $t$. Where the loss is on the last step, detaching
    the state before that step leaves its share alone: truncated BPTT keeps the last shares.

    Args:
        model: a recurrent module, run step by step with such copies. It keeps its `.grad` and its buffers.
        loss: `loss(outputs, targets)`, or `loss(outputs, targets, lengths)` where lengths are given, to a number.
        inputs: `(T, B, *F)` or a list of `T` steps `(B, *F)`.
        targets: what the loss wants, handed on as it is; None for a loss that ignores it.
        lengths: int64 on the CPU, `(B,)`. A step that is padding in every row has the share zero.

    Returns:
        Parameter name -> `(T, *shape)`, like the parameter in dtype and device, for every parameter that requires a
        gradient; zeros where the loss does not depend on it. Takes the memory of `T` gradients.

    Raises:
        TypeError: if the model is no module, or a cell.
        ValueError: if the model is bidirectional, drops out (train mode with dropout above 0), or gives other outputs
            step by step than over the whole sequence; if the loss is no number, or depends on no parameter.

    From Werbos, "Backpropagation through time: what it does and how to do it", 1990. A sum that came out wrong, where
    a state was overwritten at every step: [Flux issue 2185](https://github.com/FluxML/Flux.jl/issues/2185).

    >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)  # h = 5 x + 4 h
    >>> _ = nn.init.constant_(model.weight_ih_l0, 5.0), nn.init.constant_(model.weight_hh_l0, 4.0)
    >>> inputs = torch.tensor([2.0, 3.0]).view(2, 1, 1)
    >>> shares = gradient_by_step(model, lambda outputs, targets: outputs[-1].sum(), inputs, None)
    >>> {name: share.flatten().tolist() for name, share in shares.items()}
    {'weight_ih_l0': [8.0, 3.0], 'weight_hh_l0': [0.0, 10.0]}
    """
    if not isinstance(model, nn.Module):
        fix = "pass the module whose parameters you ask about."
        raise Refusal(f"model = {in_words(model)}", "a torch.nn.Module", fix, TypeError)
    inputs = check_call(model, inputs, lengths=lengths)
    fix = "ask about a one-directional model."
    check_one_way(model, "", "a model that reads time in one direction", fix)
    _check_dropout(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    copies: dict[str, Tensor] = {}

    def stepped(*args: Any) -> Any:
        return functional_call(model, {**buffers, **copies}, args)

    stepped.__name__ = type(model).__name__  # who an error speaks of
    named = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    with (
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=False),
    ):  # cuDNN has no backward in eval mode
        leaves = [p.detach().expand(len(inputs), *p.shape).requires_grad_() for p in named.values()]
        parts, state = list[Tensor](), None
        for step, *weights in zip(inputs.split(1), *map(torch.unbind, leaves), strict=True):
            copies = dict(zip(named, weights, strict=True))
            output, state = run_model(stepped, step, state, None)
            parts.append(output)
        copies = {}
        outputs, whole = torch.cat(parts), run_model(stepped, inputs, None, None)[0]
        close = torch.finfo(whole.dtype).eps ** 0.5
        if not torch.allclose(outputs, whole, close, close, equal_nan=True):
            came = f"outputs that differ by up to {float((outputs - whole).detach().abs().max()):.2g} between the two"
            fix = "model.eval() for dropout and batch norm; a model that looks ahead in time has no shares by step."
            raise Refusal(came, "the same from T calls of one step as from one call of T", fix)
        total = loss(outputs, targets) if lengths is None else loss(outputs, targets, lengths)
        if not isinstance(total, Tensor) or total.ndim or not total.requires_grad:
            fix = "average the loss over the steps, and keep the outputs attached: no detach, no .item()."
            raise Refusal(
                f"a loss {in_words(total)}", "a tensor () that depends on a parameter", fix
            )
        shares = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return dict(zip(named, shares, strict=True))


def gradient_flow(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Steps,
    targets: Steps | None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""How far back a gradient reaches: the norm of each step's share, parameter name -> `(T,)`, by lag.

    Entry $k$ is $\lVert d_{T-1-k} \rVert$, the lag $k$ counted back from the last step of the batch. With a loss on the
    last step, norms that shrink with the lag are a vanishing gradient, norms that grow an exploding one. A loss on
    every step feeds every lag, which can hide both. Arguments and errors are those of
    [gradient_by_step][rnnkit.gradient_by_step].

    From Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013.

    >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)  # h = x + h / 2
    >>> _ = nn.init.constant_(model.weight_ih_l0, 1.0), nn.init.constant_(model.weight_hh_l0, 0.5)
    >>> flow = gradient_flow(model, lambda outputs, targets: outputs[-1].sum(), torch.ones(4, 1, 1), None)
    >>> flow["weight_ih_l0"].tolist()
    [1.0, 0.5, 0.25, 0.125]
    """
    shares = gradient_by_step(model, loss, inputs, targets, lengths)
    return {
        name: share.reshape(len(share), -1).square().sum(1).sqrt().flip(0)
        for name, share in shares.items()
    }


def _check_dropout(model: nn.Module) -> None:
    for module in model.modules():
        name = type(module).__name__
        rate = getattr(module, "p" if "Dropout" in name else "dropout", 0)
        if module.training and isinstance(rate, float | int) and rate > 0:
            fix = "model.eval() before the call, model.train() after it."
            raise Refusal(f"{name} with dropout {rate:g} in train mode", "no randomness", fix)
