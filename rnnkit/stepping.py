"""The one place where a model is stepped: stretches fed by the data as one call, single steps fed by the model."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._contract import Model, Sampler, State, check_one_way, refuse, run_model, shape
from .modules import RecurrentSequential, Unroll
from .state import where_rows

_FUSED = [kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)]
_FEW = 16  # rows up to which cells are the quicker step on every processor tried: tests/benchmarks
_SMALL = 256  # classes for which a table of gates costs less than a few steps: bytes and characters, not words


@dataclass
class Roller:
    """A model and a sampler, rolled over sequences that were checked; without `carry` no state is asked for.

    The state may then have run on over padding. `call` is who asks, in the words of an error.
    """

    model: Model
    sampler: Sampler
    call: str
    carry: bool = True

    def run(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        state: State,
        lengths: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs `(T, B, *O)` and the state after; `mask (T, B)` says where the model is fed its own output.

        `previous (B, *O)` is the output before the first step, where there was one.
        """
        if mask is None or not mask.any():
            return run_model(self.model, inputs, state, lengths, self.call, self.carry)
        parts = list(self.walk(inputs, mask, state, lengths, previous))
        return torch.cat([outputs for _, outputs, _ in parts]), parts[-1][2]

    def walk(
        self, inputs: Tensor, mask: Tensor, state: State, lengths: Tensor | None = None, previous: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, State]]:
        """Stretch by stretch: the inputs consumed `(n, B, *F)`, the outputs `(n, B, *O)` and the state after them."""
        fix = "train it with Feedback.never(), or make it one-directional."
        check_one_way(self.model, self.call, "", "one that can be stepped: it reads the future", fix)
        some, every = mask.any(1).tolist(), mask.all(1).tolist()
        starts = [t for t, fed in enumerate(some) if fed or t == 0]
        single = one_step(self.model, inputs.shape[1])
        mask = mask.to(inputs.device)
        for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
            stretch = inputs[start:stop]
            if some[start] and previous is not None:
                first = self.draw(previous, stretch[0]).unsqueeze(0)
                if not every[start]:
                    first = where_rows(mask[start], first, stretch[:1])
                stretch = torch.cat([first, stretch[1:]])  # a copy: a model may write to its input
            here = None if lengths is None else (lengths - start).clamp(0, stop - start)
            model = single if some[start] and len(stretch) == 1 else self.model
            outputs, state = run_model(model, stretch, state, here, self.call, self.carry)
            yield stretch, outputs, state
            previous = outputs[-1]

    def draw(self, outputs: Tensor, like: Tensor) -> Tensor:
        """The next input, checked against the form that the model takes."""
        drawn = self.sampler(outputs)
        if drawn.shape != like.shape or drawn.is_floating_point() != like.is_floating_point():
            came = f"{shape(drawn)} of {drawn.dtype} from the sampler, for outputs {shape(outputs)}"
            fix = "tokens come from sample_best or SoftmaxSampler, one-hot rows from SoftmaxSampler(one_hot=True)."
            raise refuse(self.call, came, f"the model's next input, {shape(like)} of {like.dtype}", fix)
        return drawn.to(like.dtype)


def one_step(model: Model, rows: int) -> Model:
    """What takes one step `(1, rows, *F)` as `model` does, quicker where `model` is made of PyTorch's own modules.

    For few rows a fused module is stepped as cells on its own weights: oneDNN, under `nn.LSTM` on a CPU, prepares
    each call anew. Without gradient, an embedding and the input weights of the LSTM behind it become one table. A
    module of another kind, one that has hooks, and one under autocast are stepped as they are.
    """
    if not isinstance(model, nn.Module) or not _plain(model):
        return model
    if type(model) is not RecurrentSequential:
        return _cells(model) if rows <= _FEW else model
    table = _table(model[0], model[1]) if len(model) > 1 and not torch.is_grad_enabled() else []
    return partial(model.thread, table + [one_step(member, rows) for member in list(model)[len(table) :]])


def _cells(module: nn.Module) -> nn.Module:
    """An `nn.LSTM`, `nn.GRU` or `nn.RNN` as cells; anything else as it is."""
    if isinstance(module, nn.RNNBase) and type(module).forward in _FUSED:
        with suppress(ValueError):  # two directions, a projection, weights that are computed
            return module if module.training and module.dropout else Unroll.from_fused(module)
    return module


def _table(embedding: nn.Module, lstm: nn.Module) -> list[Model]:
    """A plain embedding of few classes and LSTM as a table of gates and cells that take them; else nothing."""
    if type(embedding) is not nn.Embedding or not isinstance(lstm, nn.LSTM) or not (_plain(embedding) and _plain(lstm)):
        return []
    if embedding.num_embeddings > _SMALL or embedding.max_norm is not None or embedding.weight.device.type != "cpu":
        return []
    cells = _cells(lstm)
    if not isinstance(cells, Unroll):
        return []
    first: Any = cells.cells[0]
    bias = first.bias_ih + first.bias_hh if first.bias else None
    gates = F.linear(embedding.weight, first.weight_ih, bias)
    return [partial(F.embedding, weight=gates), Unroll(_GateCell(first.weight_hh), *cells.cells[1:])]


class _GateCell(nn.Module):
    """An LSTM cell whose input is what its input weights make of it: the gates `(B, 4 H)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.t()

    def forward(self, gates: Tensor, state: State) -> State:
        if state is not None:
            gates = torch.addmm(gates, state[0], self.weight)
        i, f, g, o = gates.chunk(4, 1)
        c = i.sigmoid() * _tanh(g) if state is None else f.sigmoid() * state[1] + i.sigmoid() * _tanh(g)
        return o.sigmoid() * _tanh(c), c


def _tanh(x: Tensor) -> Tensor:
    """For many rows by the logistic function: a third of the time where MKL's own is slow, exact to a rounding at 1."""
    return x.tanh() if len(x) <= _FEW else (2 * x).sigmoid_().mul_(2).sub_(1)


def _plain(model: nn.Module) -> bool:
    hooks = model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    first = next(model.parameters(), None)
    autocast = torch.is_autocast_enabled("cpu" if first is None else first.device.type)
    everywhere = nn.modules.module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
    return not hooks and not everywhere and not autocast and "forward" not in vars(model)
