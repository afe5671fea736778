"""Quicker steps: delete this file, and every result stays.

`nn.LSTM` and its like are made for whole sequences: a call of one step pays for the preparation of
many. What is here takes one step with the same weights and fewer calls. It is used where it is the
same to a rounding: in float32 and float64, for PyTorch's own modules that nobody has put a hook on.
Everything else is stepped as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.model import FUSED, Declared, Model, call_model, runs
from ..core.state import State
from ..models.stack import RecurrentSequential

# Up to here cells are the quicker step on every processor tried, see tests/benchmarks.
_FEW_ROWS = 16
# Up to here a table of gates costs less than a few steps: bytes and characters, not words.
_SMALL_VOCABULARY = 256

_CELLS: dict[str, Callable[..., Tensor]] = {
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


def quicker_step(model: Model, rows: int) -> Model:
    """What takes a step `(1, rows, *F)` as `model` does, quicker where it can; else `model` itself.

    For few rows a fused module is stepped as cells on its own weights. Without gradient, an
    embedding of few classes and the input weights of the LSTM behind it become one table.
    """
    if not isinstance(model, nn.Module) or not _untouched(model):
        return model
    if type(model) is not RecurrentSequential:
        if rows > _FEW_ROWS or not _has_cells(model):
            return model
        return _LSTMCells(model) if isinstance(model, nn.LSTM) else _Cells(model)
    if Declared(model).batch_statistics:  # which rows are in a call would count
        return model
    members: list[nn.Module] = list(model)
    quick: list[Model] = []
    if len(members) > 1 and not torch.is_grad_enabled() and _fit_a_table(members[0], members[1]):
        quick = _table(members[0], members[1])
    quick += [quicker_step(member, rows) for member in members[len(quick) :]]
    return _Stack(quick, model.recurrent)


def _untouched(module: nn.Module) -> bool:
    """Whether a call is the class's own forward and nothing more, in a dtype of enough digits."""
    hooks = (
        module._forward_hooks  # pyright: ignore[reportPrivateUsage]
        or module._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        or module._backward_hooks  # pyright: ignore[reportPrivateUsage]
        or module._backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    )
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    everywhere = any(getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in kinds)
    if hooks or everywhere or "forward" in vars(module):
        return False
    for parameter in module.parameters():
        # In float16 and bfloat16 the order of a sum changes digits that a draw depends on.
        if parameter.dtype not in (torch.float32, torch.float64):
            return False
        kind = parameter.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return False
    return not torch.is_autocast_enabled("cpu")


def _has_cells(module: nn.Module) -> bool:
    """Whether it is an `nn.LSTM`, `nn.GRU` or `nn.RNN` that its cells can stand for."""
    if not isinstance(module, nn.RNNBase) or not runs(module, *FUSED):
        return False
    if module.bidirectional or module.proj_size or module.batch_first:
        return False
    if module.training and module.dropout:  # is drawn between the layers
        return False
    for weights in module.all_weights:
        if not all(isinstance(weight, nn.Parameter) for weight in weights):  # they are computed
            return False
    return True


class _Stack:
    """The members of a `RecurrentSequential`, in quicker forms, and the state through them."""

    def __init__(self, members: list[Model], recurrent: tuple[bool, ...]) -> None:
        self.members = list(zip(members, recurrent, strict=True))

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        after: list[State] = []
        for member, recurrent in self.members:
            if recurrent:
                before = None if state is None else state[len(after)]
                inputs, new = call_model(member, inputs, before)
                after.append(new)
            else:
                inputs = member(inputs)
        return inputs, tuple(after)


class _Cells:
    """One step of an `nn.GRU` or `nn.RNN`, layer by layer, on the module's own weights."""

    def __init__(self, module: Any) -> None:
        self.mode: str = module.mode
        self.weights: list[list[Tensor]] = module.all_weights
        self.hidden: int = module.hidden_size

    def __call__(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        x = inputs[0]  # (B, F)
        if state is None:
            state = self.start(x.new_zeros(len(self.weights), len(x), self.hidden))
        return self.step(x, state)

    def start(self, zeros: Tensor) -> State:
        """The state before the first step."""
        return zeros

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        cell = _CELLS[self.mode]
        after: list[Tensor] = []
        for before, weights in zip(state, self.weights, strict=True):
            x = cell(x, before, *weights)  # (B, H)
            after.append(x)
        return x.unsqueeze(0), torch.stack(after)


class _LSTMCells(_Cells):
    """One step of an `nn.LSTM`."""

    def start(self, zeros: Tensor) -> State:
        return zeros, zeros

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        short: list[Tensor] = []
        long: list[Tensor] = []
        for layer in range(len(self.weights)):
            x, c = self.layer(layer, x, state[0][layer], state[1][layer])  # (B, H)
            short.append(x)
            long.append(c)
        return x.unsqueeze(0), (torch.stack(short), torch.stack(long))

    def layer(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The new `h` and `c` of a layer."""
        return torch.lstm_cell(x, (h, c), *self.weights[layer])


def _fit_a_table(embedding: nn.Module, lstm: nn.Module) -> bool:
    """Whether the two are a plain embedding of few classes, on a CPU, and an LSTM."""
    if type(embedding) is not nn.Embedding or not isinstance(lstm, nn.LSTM):
        return False
    if not (_untouched(embedding) and _untouched(lstm) and _has_cells(lstm)):
        return False
    small = embedding.num_embeddings <= _SMALL_VOCABULARY
    return small and embedding.max_norm is None and embedding.weight.device.type == "cpu"


def _table(embedding: Any, lstm: Any) -> list[Model]:
    """What the first layer's input weights make of each class, and the LSTM that takes it."""
    weights: list[Tensor] = lstm.all_weights[0]
    bias = weights[2] + weights[3] if lstm.bias else None
    gates = F.linear(embedding.weight, weights[0], bias)  # (V, 4 H)
    return [partial(F.embedding, weight=gates), _CellsOnGates(lstm)]


class _CellsOnGates(_LSTMCells):
    """An LSTM whose input is what its input weights make of it: the gates `(1, B, 4 H)`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.recurrent = self.weights[0][1].t()  # (H, 4 H)

    def layer(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if layer:
            return super().layer(layer, x, h, c)
        i, f, g, o = torch.addmm(x, h, self.recurrent).chunk(4, 1)  # (B, H) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
