"""Making a recurrent model out of parts: stacks, cells stepped over time, modules applied to each step.

Each is called like `torch.nn.LSTM`, `outputs, state = model(inputs, state)`, over `(T, B, *F)`, and takes a
`PackedSequence` in place of a padded batch: state is then each row's at its own last step.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._contract import State, as_sequence, call_model, check_model, check_state, refuse, shape
from .attention import Attention as Attention
from .attention import EncoderDecoder as EncoderDecoder
from .state import map_leaves, select_rows

_CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}


def _like(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def _is_recurrent(module: nn.Module) -> bool:
    """Whether `forward` takes a state: its second parameter is called `state` or `hx`."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    return list(inspect.signature(module.forward).parameters)[1:2] in (["state"], ["hx"])


class RecurrentSequential(nn.Sequential):
    """`nn.Sequential` that threads the state through its recurrent members.

    A member is recurrent if the second parameter of its `forward` is called `state` or `hx`, as in `torch.nn.LSTM`.
    Every other member gets the whole `(T, B, *F)` at once, so that fused kernels stay fused. A call gives outputs
    `(T, B, *O)` and the state, a tuple with one entry for each recurrent member.

    Raises:
        TypeError: if a member is a bare cell, or a recurrent one gives no state.
        ValueError: if a member is built with `batch_first=True`, or a state does not fit.

    >>> model = RecurrentSequential(nn.Embedding(10, 4), nn.LSTM(4, 8), nn.Linear(8, 10))
    >>> outputs, state = model(torch.zeros(5, 2, dtype=torch.long))
    >>> outputs.shape, len(state)
    (torch.Size([5, 2, 10]), 1)
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self._recurrent: tuple[bool, ...] = ()
        for module, recurrent in zip(self, self.recurrent, strict=True):
            if recurrent or isinstance(module, nn.RNNBase | nn.RNNCellBase):
                check_model(module, "RecurrentSequential")

    @property
    def recurrent(self) -> tuple[bool, ...]:
        """Which members are recurrent."""
        if len(self._recurrent) != len(self):  # a member was appended or taken away
            self._recurrent = tuple(_is_recurrent(module) for module in self)
        return self._recurrent

    @property
    def takes_packed(self) -> bool:
        """Whether every recurrent member takes a `PackedSequence`."""
        members = [module for module, recurrent in zip(self, self.recurrent, strict=True) if recurrent]
        return all(isinstance(m, nn.RNNBase) or getattr(m, "takes_packed", False) for m in members)

    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = as_sequence(inputs, "RecurrentSequential") if isinstance(inputs, list) else inputs
        count = sum(self.recurrent)
        if state is not None and (not isinstance(state, tuple) or len(state) != count):
            fix = "pass the state that this model returned; it has one entry for each recurrent member."
            raise refuse("RecurrentSequential", f"a state = {shape(state)}", f"a tuple of {count}", fix)
        return self.thread(self, inputs, state)

    def thread(self, members: Iterable[Callable[..., Any]], inputs: Any, state: State) -> tuple[Any, State]:
        """What `forward` does, through `members` in place of this stack's own."""
        after: list[State] = []
        for module, recurrent in zip(members, self.recurrent, strict=True):
            if recurrent:
                before = None if state is None else state[len(after)]
                inputs, new = call_model(module, inputs, before, "RecurrentSequential")
                after.append(new)
            elif isinstance(inputs, PackedSequence) and not isinstance(module, PerStep):
                inputs = _like(inputs, module(inputs.data))
            else:
                inputs = module(inputs)
            if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
                fix = "call the second parameter of a recurrent member's forward `state`, so that it is given one."
                came = f"{shape(inputs)} from {type(module).__name__}"
                raise refuse("RecurrentSequential", came, "outputs alone from a stateless member", fix, TypeError)
        return inputs, tuple(after)


class PerStep(nn.Module):
    """Applies a module that wants `(N, *F)`, such as `Conv2d` or `BatchNorm1d`, to every step of every row.

    It is called once, on the `T * B` steps: `(T, B, *F)` to `(T, B, *O)`, a `PackedSequence` to a `PackedSequence`.
    Raises `ValueError` for anything else.

    >>> PerStep(nn.Conv2d(1, 4, 3, padding=1))(torch.zeros(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, PackedSequence):
            return _like(inputs, self.module(inputs.data))
        if inputs.ndim < 2:
            raise refuse("PerStep", f"inputs {shape(inputs)}", "(T, B, *F)", "add the batch as dim 1.")
        return self.module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


class Unroll(nn.Module):
    """A cell, called like `nn.LSTMCell` (`state = cell(x_t, state)`), stepped over time: a recurrent model.

    The output `(T, B, *O)` of a step is the cell's state, or the first part of it where it is a tuple, `h` of `(h, c)`.
    Leaves of the state are `(layers, B, *F)`: each cell's own `(B, *F)`, stacked.

    Args:
        cells: one cell a layer, with states of the same form; a `ValueError` if there is none.
        dropout: probability of dropping an output between layers, in training.

    >>> outputs, (h, c) = Unroll(nn.LSTMCell(3, 8))(torch.zeros(5, 2, 3))
    >>> outputs.shape, h.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """

    takes_packed = True

    def __init__(self, *cells: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        if not cells:
            raise refuse("Unroll", "no cell", "one cell a layer", "Unroll(nn.LSTMCell(3, 8)).")
        self.cells, self.dropout = nn.ModuleList(cells), dropout

    @classmethod
    def from_fused(cls, fused: nn.RNNBase) -> "Unroll":
        """The loop of cells that computes what `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, on the same parameters.

        `torch.compile(fullgraph=True)` refuses the fused modules and takes the loop. The two share their parameters:
        train the one, use the other. Raises `TypeError` for any other module, `ValueError` for two directions, a
        projection, `batch_first=True` or weights that are computed.

        >>> lstm = nn.LSTM(3, 8, num_layers=2)
        >>> torch.allclose(Unroll.from_fused(lstm)(torch.ones(5, 2, 3))[0], lstm(torch.ones(5, 2, 3))[0], atol=1e-6)
        True
        """
        call = "Unroll.from_fused"
        make: Any = next((cell for kind, cell in _CELLS.items() if isinstance(fused, kind)), None)
        if make is None:
            fix = "any other cell goes into Unroll(cell) directly."
            raise refuse(call, shape(fused), "nn.LSTM, nn.GRU or nn.RNN", fix, TypeError)
        if fused.bidirectional or fused.proj_size or fused.batch_first:
            fix = "a cell sees one step at a time, forward in time."
            raise refuse(call, repr(fused), "one direction, no projection, batch_first=False", fix)
        if not all(isinstance(weight, nn.Parameter) for weights in fused.all_weights for weight in weights):
            fix = "remove the parametrization first."
            raise refuse(call, "weights that are computed", "weights that are parameters", fix)
        options = {"nonlinearity": fused.nonlinearity} if isinstance(fused, nn.RNN) else {}
        cells: list[nn.Module] = []
        for layer in range(fused.num_layers):
            size = fused.hidden_size if layer else fused.input_size
            cell = make(size, fused.hidden_size, bias=fused.bias, device="meta", **options)
            for name, _ in list(cell.named_parameters()):
                setattr(cell, name, getattr(fused, f"{name}_l{layer}"))
            cells.append(cell)
        return cls(*cells, dropout=fused.dropout).train(fused.training)

    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:
        packed: PackedSequence | None = None
        if isinstance(inputs, PackedSequence):
            packed, steps = inputs, inputs.data.split(inputs.batch_sizes.tolist())
            if state is not None and packed.sorted_indices is not None:
                state = select_rows(state, packed.sorted_indices)
        else:
            steps = as_sequence(inputs, "Unroll", least=1).unbind(0)
        check_state(state, len(steps[0]), "Unroll")
        last: list[State] = []
        for layer, cell in enumerate(self.cells):
            before = None if state is None else map_leaves(lambda leaf, layer=layer: leaf[layer], state)
            if layer and self.dropout and self.training:
                steps = [F.dropout(step, self.dropout) for step in steps]
            steps, after = _scan(cell, steps, before)
            last.append(after)
        state = map_leaves(lambda *leaves: torch.stack(leaves), *last)
        if packed is None:
            return torch.stack(list(steps)), state
        if packed.unsorted_indices is not None:
            state = select_rows(state, packed.unsorted_indices)
        return _like(packed, torch.cat(list(steps))), state


def _scan(cell: nn.Module, steps: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """One layer over its steps; where a step has fewer rows than the one before, the last rows have ended."""
    outputs: list[Tensor] = []
    ended: list[State] = []
    for step in steps:
        count = len(step)
        if outputs and count < len(outputs[-1]):
            ended.insert(0, map_leaves(lambda leaf, count=count: leaf[count:], state))
            state = map_leaves(lambda leaf, count=count: leaf[:count], state)
        state = cell(step, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    if ended:
        state = map_leaves(lambda *leaves: torch.cat(leaves), state, *ended)
    return outputs, state
