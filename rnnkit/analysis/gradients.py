"""Where a recurrent gradient comes from: the share of each step, and how it fades with the lag."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.errors import Refusal, asked, check_kind, in_words
from ..core.layout import Sequences, between, extent, fill_padding, join
from ..core.model import check_call, check_one_way, run_model, unwrap
from ..core.signature import check_takes
from ..core.state import State


@asked("gradient_by_step")
def gradient_by_step(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Sequences,
    targets: Any,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""The share of each time step in the gradient of every parameter; the shares sum to it.

    A recurrent model uses one weight $W$ at every step. With a copy $W_t$ of it that only step $t$
    uses, $dL/dW = \sum_t d_t$, where $d_t = dL/dW_t$ is the share of step $t$. With a loss on the
    last step, truncated BPTT keeps the last shares.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import gradient_by_step
    >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)  # h = 5 x + 4 h
    >>> _ = nn.init.constant_(model.weight_ih_l0, 5.0)
    >>> _ = nn.init.constant_(model.weight_hh_l0, 4.0)
    >>> inputs = torch.tensor([2.0, 3.0]).view(2, 1, 1)
    >>> shares = gradient_by_step(model, lambda outputs, targets: outputs[-1].sum(), inputs, None)
    >>> {name: share.flatten().tolist() for name, share in shares.items()}
    {'weight_ih_l0': [8.0, 3.0], 'weight_hh_l0': [0.0, 10.0]}

    Args:
        model: a recurrent module. It keeps its `.grad` and its buffers.
        loss: `loss(outputs, targets)`, or `loss(outputs, targets, lengths)` where lengths are
            given, to a number.
        inputs: `(T, B, *F)`, a list of `T` steps `(B, *F)`, or a dict of such sequences.
        targets: what the loss wants.
        lengths: int64 on the CPU, `(B,)`. A step that is padding in every row has the share zero.

    Returns:
        Parameter name -> `(T, *shape)`, for every parameter that requires a gradient; zeros where
        the loss does not depend on it. Takes the memory of `T` gradients.

    Raises:
        TypeError: if the model is no module, or a cell.
        ValueError: if the model is bidirectional, drops out (train mode with dropout above 0), or
            gives other outputs step by step than over the whole sequence; if the loss is no number,
            or depends on no parameter.

    From Werbos, "Backpropagation through time: what it does and how to do it", 1990. A sum that
    came out wrong: [Flux issue 2185](https://github.com/FluxML/Flux.jl/issues/2185).
    """
    inputs = _checked_call(model, inputs, lengths)
    check_takes("loss", loss, "outputs, targets", "outputs, targets, lengths")
    if isinstance(model, nn.DataParallel):
        model = model.module  # what it splits over devices has no other weights
    time = extent(inputs)[0]
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # no backward in eval mode
        copies: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                copy = parameter.detach().expand(time, *parameter.shape)  # (T, *shape), one memory
                copies[name] = copy.requires_grad_()

        outputs = _step_by_step(model, inputs, copies)
        whole = run_model(_Weighted(model), inputs, None)[0]
        _check_same(outputs, whole)

        given = [outputs, targets]
        if lengths is not None:
            given.append(lengths)
        total = loss(*given)
        if not isinstance(total, Tensor) or total.ndim or not total.requires_grad:
            fix = "average over the steps, and keep the outputs attached: no detach, no .item()."
            wanted = "a tensor () that depends on a parameter"
            raise Refusal(f"a loss {in_words(total)}", wanted, fix)
        leaves = list(copies.values())
        shares = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return dict(zip(copies, shares, strict=True))


def gradient_flow(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Sequences,
    targets: Any,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""How far back a gradient reaches: the norm of each step's share, by lag.

    Entry $k$ is $\lVert d_{T-1-k} \rVert$, the lag $k$ counted back from the last step of the
    batch. With a loss on the last step, norms that shrink with the lag are a vanishing gradient,
    norms that grow an exploding one. A loss on every step feeds every lag, which can hide both.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import gradient_flow
    >>> model = nn.RNN(1, 1, nonlinearity="relu", bias=False)  # h = x + h / 2
    >>> _ = nn.init.constant_(model.weight_ih_l0, 1.0)
    >>> _ = nn.init.constant_(model.weight_hh_l0, 0.5)
    >>> inputs = torch.ones(4, 1, 1)
    >>> flow = gradient_flow(model, lambda outputs, targets: outputs[-1].sum(), inputs, None)
    >>> flow["weight_ih_l0"].tolist()
    [1.0, 0.5, 0.25, 0.125]

    Args and what it raises are those of [gradient_by_step][rnnkit.gradient_by_step].

    Returns:
        Parameter name -> `(T,)`, for every parameter that requires a gradient.

    From Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    2013.
    """
    flow: dict[str, Tensor] = {}
    for name, share in gradient_by_step(model, loss, inputs, targets, lengths).items():
        # In float32 the square of 1e-23 is 0.
        size = share.reshape(len(share), -1).abs()  # (T, N)
        flow[name] = size.cpu().double().norm(dim=1).flip(0).to(size)
    return flow


class _Weighted:
    """A model with other weights, and buffers of its own, which errors call like the model."""

    def __init__(self, model: nn.Module) -> None:
        self.__name__ = type(unwrap(model)).__name__
        self.model = model
        self.weights: dict[str, Tensor] = {}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def __call__(self, inputs: Any, state: State) -> Any:
        return functional_call(self.model, {**self.buffers, **self.weights}, (inputs, state))


def _step_by_step(model: nn.Module, inputs: Any, copies: dict[str, Tensor]) -> Any:
    """The outputs `(T, B, *O)` of one call a step, each with its own weights."""
    stepped = _Weighted(model)
    by_step = {name: copy.unbind() for name, copy in copies.items()}
    parts: list[Any] = []
    state: State = None
    for t in range(extent(inputs)[0]):
        stepped.weights = {name: weights[t] for name, weights in by_step.items()}
        output, state = run_model(stepped, between(inputs, t, t + 1), state)
        parts.append(output)
    return join(parts)


def _checked_call(model: nn.Module, inputs: Sequences, lengths: Tensor | None) -> Any:
    """The inputs, after all that can be seen before the model is run."""
    check_kind("model", model, nn.Module, "a torch.nn.Module", "only a module has weights.")
    inputs = check_call(model, inputs, lengths=lengths)
    fix = "ask about a one-directional model."
    check_one_way(model, "", "a model that reads time in one direction", fix)
    _check_dropout(model)
    if lengths is not None:
        inputs = fill_padding(inputs, lengths)  # zero times what is not finite would be no number
    return inputs


def _check_dropout(model: nn.Module) -> None:
    for module in model.modules():
        name = type(module).__name__
        rate = vars(module).get("p" if "Dropout" in name else "dropout", 0)
        if module.training and isinstance(rate, float | int) and rate > 0:
            fix = "model.eval() before the call, model.train() after it."
            raise Refusal(f"{name} with dropout {rate:g} in train mode", "no randomness", fix)


def _check_same(stepped: Any, whole: Any) -> None:
    """Refuse a model whose outputs step by step are not those over the whole sequence."""
    if isinstance(whole, dict):
        for name in whole:
            _check_same(stepped[name], whole[name])
        return
    if not whole.is_floating_point():  # a class, which a tie may turn, has no gradient
        return
    close = torch.finfo(whole.dtype).eps ** 0.5
    if not torch.allclose(stepped, whole, close, close, equal_nan=True):
        largest = float((stepped - whole).detach().abs().max())
        raise Refusal(
            f"outputs that differ by up to {largest:.2g} between the two",
            "the same from T calls of one step as from one call of T",
            "model.eval() for dropout and batch norm; a model that looks ahead in time has no "
            "shares by step.",
        )
