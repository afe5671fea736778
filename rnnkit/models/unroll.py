"""A cell stepped over time: a recurrent model out of any cell."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..core.errors import Refusal, asked, in_words
from ..core.layout import as_sequence, check_state, repack
from ..core.state import State, map_leaves, select_rows

_CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}


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

    @asked("Unroll")
    def __init__(self, *cells: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        if not cells:
            raise Refusal("no cell", "one cell a layer", "Unroll(nn.LSTMCell(3, 8)).")
        self.cells, self.dropout = nn.ModuleList(cells), dropout

    @classmethod
    @asked("Unroll.from_fused")
    def from_fused(cls, fused: nn.RNNBase) -> "Unroll":
        """The loop of cells that computes what `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, on the same parameters.

        `torch.compile(fullgraph=True)` refuses the fused modules and takes the loop. The two share their parameters:
        train the one, use the other. Raises `TypeError` for any other module, `ValueError` for two directions, a
        projection, `batch_first=True` or weights that are computed.

        >>> lstm = nn.LSTM(3, 8, num_layers=2)
        >>> torch.allclose(Unroll.from_fused(lstm)(torch.ones(5, 2, 3))[0], lstm(torch.ones(5, 2, 3))[0], atol=1e-6)
        True
        """
        make: Any = next((cell for kind, cell in _CELLS.items() if isinstance(fused, kind)), None)
        if make is None:
            fix = "any other cell goes into Unroll(cell) directly."
            raise Refusal(in_words(fused), "nn.LSTM, nn.GRU or nn.RNN", fix, TypeError)
        if fused.bidirectional or fused.proj_size or fused.batch_first:
            fix = "a cell sees one step at a time, forward in time."
            raise Refusal(repr(fused), "one direction, no projection, batch_first=False", fix)
        if not all(
            isinstance(weight, nn.Parameter) for weights in fused.all_weights for weight in weights
        ):
            fix = "remove the parametrization first."
            raise Refusal("weights that are computed", "weights that are parameters", fix)
        options = {"nonlinearity": fused.nonlinearity} if isinstance(fused, nn.RNN) else {}
        cells: list[nn.Module] = []
        for layer in range(fused.num_layers):
            size = fused.hidden_size if layer else fused.input_size
            cell = make(size, fused.hidden_size, bias=fused.bias, device="meta", **options)
            for name, _ in list(cell.named_parameters()):
                setattr(cell, name, getattr(fused, f"{name}_l{layer}"))
            cells.append(cell)
        return cls(*cells, dropout=fused.dropout).train(fused.training)

    @asked("Unroll")
    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:
        packed: PackedSequence | None = None
        if isinstance(inputs, PackedSequence):
            packed, steps = inputs, inputs.data.split(inputs.batch_sizes.tolist())
            if state is not None and packed.sorted_indices is not None:
                state = select_rows(state, packed.sorted_indices)
        else:
            steps = as_sequence(inputs, least=1).unbind(0)
        check_state(state, len(steps[0]))
        last: list[State] = []
        for layer, cell in enumerate(self.cells):
            before = (
                None if state is None else map_leaves(lambda leaf, layer=layer: leaf[layer], state)
            )
            if layer and self.dropout and self.training:
                steps = [F.dropout(step, self.dropout) for step in steps]
            steps, after = _scan(cell, steps, before)
            last.append(after)
        state = map_leaves(lambda *leaves: torch.stack(leaves), *last)
        if packed is None:
            return torch.stack(list(steps)), state
        if packed.unsorted_indices is not None:
            state = select_rows(state, packed.unsorted_indices)
        return repack(packed, torch.cat(list(steps))), state


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
