"""Where a recurrent gradient comes from: the share of every time step, and how it fades with the lag."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ._contract import State, Steps, as_sequence, check_lengths, check_model, is_bidirectional, refuse, run_model, shape

__all__ = ["gradient_by_step", "gradient_flow"]


def gradient_by_step(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Steps,
    targets: Steps | None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""The share of each time step in the gradient of every parameter.

    A recurrent model uses one weight $W$ at every step. Its gradient is the sum of what each use contributes:

    $$\frac{dL}{dW} = \sum_{t=1}^{T} d_t, \qquad d_t = \frac{dL}{dW_t},$$

    where $W_t$ is a copy of $W$ that only step $t$ uses. `gradient_by_step` runs the model step by step with such
    copies and returns all $d_t$. Detaching the state before step $T$ leaves $d_T$ alone: that is truncated BPTT.

    Example: an identity cell, $h_t = 5 x_t + 4 h_{t-1}$, read at its last step.
        >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)
        >>> _ = nn.init.constant_(model.weight_ih_l0, 5.0), nn.init.constant_(model.weight_hh_l0, 4.0)
        >>> inputs = torch.tensor([2.0, 3.0]).view(2, 1, 1)
        >>> shares = gradient_by_step(model, lambda outputs, targets: outputs[-1].sum(), inputs, None)
        >>> {name: share.flatten().tolist() for name, share in shares.items()}
        {'weight_ih_l0': [8.0, 3.0], 'weight_hh_l0': [0.0, 10.0]}

    Args:
        model: a recurrent module, `outputs, state = model(inputs, state)`. It is left as it is: no `.grad`, no
            buffer changes. Modules in train mode are fine as long as they are deterministic.
        loss: `loss(outputs, targets)`, or `loss(outputs, targets, lengths)` where lengths are given, to a number.
        inputs: `(T, B, *F)` or a list of T steps `(B, *F)`.
        targets: what the loss wants; handed on as it is. None for a loss that ignores it.
        lengths: int64 CPU tensor `(B,)`. The shares of steps that are padding in every row are zero.

    Returns:
        Parameter name -> `(T, *shape)`, in the dtype and on the device of the parameter, for every parameter that
            requires a gradient. `shares.sum(0)` is autograd's gradient. A parameter that the loss does not depend
            on has zeros. Takes the memory of T gradients.

    Raises:
        TypeError: the model is not a module, or is a cell.
        ValueError: the model is bidirectional (its outputs are no sum over steps taken in order), drops out, or
            gives other outputs step by step than over the whole sequence; the loss is no number or depends on no
            parameter.

    Sources: Werbos, "Backpropagation through time: what it does and how to do it", 1990, for the sum. A sum that
    came out wrong: FluxML/Flux.jl#2185, where a state that was overwritten at each step made autograd return other
    numbers than the sum by hand (3 and 38 instead of 11 and 66, the numbers of a state detached at each step).
    """
    call = "gradient_by_step"
    check_model(model, call)
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        fix = "pass the module whose parameters you ask about."
        raise TypeError(refuse(call, f"model = {shape(model)}", "a torch.nn.Module with parameters", fix))
    _check_deterministic(model, call)
    inputs = as_sequence(inputs, call)
    if lengths is not None:
        check_lengths(lengths, len(inputs), inputs.shape[1], call)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def run(parameters: dict[str, Tensor], sequence: Tensor, state: State) -> tuple[Tensor, State]:
        def called(*args: Any) -> Any:
            return functional_call(model, {**buffers, **parameters}, args)

        return run_model(called, sequence, state, None, call)

    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    copies = [{name: p.detach().requires_grad_() for name, p in named.items()} for _ in range(len(inputs))]
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN has no backward in eval mode
        parts: list[Tensor] = []
        state: State = None
        for step, parameters in zip(inputs.split(1), copies, strict=True):
            output, state = run(parameters, step, state)
            parts.append(output)
        outputs = torch.cat(parts)
        whole = run({}, inputs, None)[0].detach()
        close = torch.finfo(whole.dtype).eps ** 0.5
        if not torch.allclose(outputs.detach(), whole, close, close, equal_nan=True):
            off = float((outputs.detach() - whole).abs().max())
            fix = "model.eval() if it is random; a model that looks ahead in time has no shares by step."
            came = f"outputs that differ by up to {off:.2g} between T calls of one step and one call of T steps"
            raise ValueError(refuse(call, came, "the same outputs both ways", fix))
        total = loss(outputs, targets) if lengths is None else loss(outputs, targets, lengths)
        if not isinstance(total, Tensor) or total.ndim > 0 or not total.requires_grad:  # pyright: ignore[reportUnnecessaryIsInstance]
            came = f"a loss of {shape(total)}"
            if isinstance(total, Tensor) and not total.ndim:  # pyright: ignore[reportUnnecessaryIsInstance]
                came = "a loss that depends on no parameter"
            fix = "reduce the loss to its mean, and do not detach the outputs in it."
            raise ValueError(refuse(call, came, "a tensor () that depends on the parameters", fix))
        leaves = [leaf for parameters in copies for leaf in parameters.values()]
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return {name: torch.stack(grads[i :: len(named)]) for i, name in enumerate(named)}


def gradient_flow(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Steps,
    targets: Steps | None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""How much of a gradient reaches back how far: the norms of the shares by lag.

    Entry $k$ is $\lVert d_{T-1-k} \rVert_2$, steps counted from 0: lag 0 is the last step. With a loss on the last
    step only, norms that shrink by a factor per lag are a vanishing gradient, norms that grow an exploding one. With
    a loss on every step each lag holds what its own later losses send back, so that even a model with a short
    memory shows no decay.

    Example: the weight of the input in $h_t = x_t + h_{t-1} / 2$ fades by one half per lag.
        >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)
        >>> _ = nn.init.constant_(model.weight_ih_l0, 1.0), nn.init.constant_(model.weight_hh_l0, 0.5)
        >>> flow = gradient_flow(model, lambda outputs, targets: outputs[-1].sum(), torch.ones(4, 1, 1), None)
        >>> flow["weight_ih_l0"].tolist()
        [1.0, 0.5, 0.25, 0.125]

    Args:
        model: as in [gradient_by_step][rnnkit.gradient_by_step].
        loss: as there.
        inputs: `(T, B, *F)` or a list of T steps.
        targets: what the loss wants.
        lengths: int64 CPU tensor `(B,)`. Lags count from the last step of the padded batch.

    Returns:
        Parameter name -> `(T,)`.

    Raises:
        TypeError: as in `gradient_by_step`.
        ValueError: as in `gradient_by_step`.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    shares = gradient_by_step(model, loss, inputs, targets, lengths)
    return {name: share.flatten(1).norm(dim=1).flip(0) for name, share in shares.items()}


def _check_deterministic(model: nn.Module, call: str) -> None:
    if is_bidirectional(model):
        fix = "ask about a one-directional model."
        raise ValueError(refuse(call, "a bidirectional model", "a model that reads time in one direction", fix))
    for module in model.modules():
        p = getattr(module, "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "dropout", 0.0)  # pyright: ignore[reportPrivateUsage]
        if module.training and isinstance(p, float | int) and p > 0:
            came = f"{type(module).__name__} with dropout {p:g} in train mode"
            fix = "model.eval() before, model.train() after."
            raise ValueError(refuse(call, came, "a model without randomness", fix))
