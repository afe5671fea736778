"""Quicker steps: delete this file, and every result stays."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.model import Model
from ..core.state import State
from ..models.stack import RecurrentSequential
from ..models.unroll import Unroll

_FUSED = [kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)]
_FEW = 16  # rows up to which cells are the quicker step on every processor tried: tests/benchmarks
_SMALL = 256  # classes for which a table of gates costs less than a few steps: bytes and characters, not words


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
    return partial(
        model.thread, table + [one_step(member, rows) for member in list(model)[len(table) :]]
    )


def _cells(module: nn.Module) -> nn.Module:
    """An `nn.LSTM`, `nn.GRU` or `nn.RNN` as cells; anything else as it is."""
    if isinstance(module, nn.RNNBase) and type(module).forward in _FUSED:
        with suppress(ValueError):  # two directions, a projection, weights that are computed
            return module if module.training and module.dropout else Unroll.from_fused(module)
    return module


def _table(embedding: nn.Module, lstm: nn.Module) -> list[Model]:
    """A plain embedding of few classes and LSTM as a table of gates and cells that take them; else nothing."""
    if (
        type(embedding) is not nn.Embedding
        or not isinstance(lstm, nn.LSTM)
        or not (_plain(embedding) and _plain(lstm))
    ):
        return []
    if (
        embedding.num_embeddings > _SMALL
        or embedding.max_norm is not None
        or embedding.weight.device.type != "cpu"
    ):
        return []
    cells = _cells(lstm)
    if not isinstance(cells, Unroll):
        return []
    first: Any = cells.cells[0]
    bias = first.bias_ih + first.bias_hh if first.bias else None
    gates = F.linear(embedding.weight, first.weight_ih, bias)
    return [
        partial(F.embedding, weight=gates),
        Unroll(_GateCell(first.weight_hh), *cells.cells[1:]),
    ]


class _GateCell(nn.Module):
    """An LSTM cell whose input is what its input weights make of it: the gates `(B, 4 H)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.t()

    def forward(self, gates: Tensor, state: State) -> State:
        if state is not None:
            gates = torch.addmm(gates, state[0], self.weight)
        i, f, g, o = gates.chunk(4, 1)
        c = (
            i.sigmoid() * _tanh(g)
            if state is None
            else f.sigmoid() * state[1] + i.sigmoid() * _tanh(g)
        )
        return o.sigmoid() * _tanh(c), c


def _tanh(x: Tensor) -> Tensor:
    """For many rows by the logistic function: a third of the time where MKL's own is slow, exact to a rounding at 1."""
    return x.tanh() if len(x) <= _FEW else (2 * x).sigmoid_().mul_(2).sub_(1)


def _plain(model: nn.Module) -> bool:
    hooks = (
        model._forward_hooks
        or model._forward_pre_hooks
        or model._backward_hooks
        or model._backward_pre_hooks
    )  # pyright: ignore[reportPrivateUsage]
    first = next(model.parameters(), None)
    autocast = torch.is_autocast_enabled("cpu" if first is None else first.device.type)
    everywhere = nn.modules.module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
    return not hooks and not everywhere and not autocast and "forward" not in vars(model)
