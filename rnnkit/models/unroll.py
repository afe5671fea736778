"""A cell stepped over time: a recurrent model out of any cell."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..core.errors import Refusal, asked, check_kind, check_number, in_words
from ..core.layout import as_sequence, check_state, repack
from ..core.model import FUSED, Declared, evaluating, name_of, runs, unwrap
from ..core.state import State, leaves_of, map_leaves, same_form, select_rows, shapes

_CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
_PYTORCHS_OWN = [cell.forward for cell in _CELLS.values()]


class Unroll(nn.Module):
    """A cell, called like `nn.LSTMCell`, stepped over time: a recurrent model.

    A cell, `cell(x_t, state)`, gives its new state, a tensor or a tuple; the output of the step is
    the state, or its first part, `h` of `(h, c)`. Or it gives a pair `(output, state)`, an output
    `(B, *O)` and a state of any form. Which of the two a pair is, the cell may declare with
    `returns_output`, `True` or `False`; one that does not is asked once, with one row: it gives a
    state if it takes the pair back. A method `initial_state(batch_size)` of a cell, with leaves
    `(batch_size, *F)`, says what a row starts from.

    Outputs are `(T, B, *O)`, leaves of the state `(layers, B, *F)`: each cell's own, stacked.

    Args:
        cells: one cell a layer, with states of the same form.
        dropout: probability of dropping an output between layers, in training.

    Raises:
        ValueError: if there is no cell, or what a cell gives may be read in two ways.
        TypeError: if a cell gives neither a state nor an output and a state.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import Unroll
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
        for cell in cells:
            check_kind("cell", cell, nn.Module, "cells, modules", "Unroll(nn.LSTMCell(3, 8)).")
            if runs(unwrap(cell), *FUSED):  # it would take the rows of a step for steps
                fix = "Unroll.from_fused makes cells of a layer."
                raise Refusal(f"a layer, {name_of(cell)}", "a cell", fix, TypeError)
        fix = "0 drops nothing."
        check_number("dropout", dropout, lambda p: 0 <= p <= 1, "dropout in [0, 1]", fix)
        self.cells = nn.ModuleList(cells)
        self.dropout = dropout

    @classmethod
    @asked("Unroll.from_fused")
    def from_fused(cls, fused: nn.RNNBase) -> "Unroll":
        """The loop of cells that computes what `nn.LSTM`, `nn.GRU` or `nn.RNN` computes.

        `torch.compile(fullgraph=True)` refuses the fused modules and takes the loop. The two share
        their parameters.

        Raises:
            TypeError: for any other module, and a subclass with a `forward` of its own.
            ValueError: for two directions, a projection, `batch_first=True` or weights that are
                computed.

        >>> import torch
        >>> from rnnkit import Unroll
        >>> lstm = torch.nn.LSTM(3, 8, num_layers=2)
        >>> outputs, state = Unroll.from_fused(lstm)(torch.ones(5, 2, 3))
        >>> torch.allclose(outputs, lstm(torch.ones(5, 2, 3))[0], atol=1e-6)
        True
        """
        make = _cell_of(fused)
        options: dict[str, Any] = {"bias": fused.bias, "device": "meta"}
        if isinstance(fused, nn.RNN):
            options["nonlinearity"] = fused.nonlinearity
        cells: list[nn.Module] = []
        for layer in range(fused.num_layers):
            size = fused.hidden_size if layer else fused.input_size
            # On no device, as the fused module's own parameters take the place of the cell's.
            cell = make(size, fused.hidden_size, **options)
            for name, _ in list(cell.named_parameters()):
                setattr(cell, name, getattr(fused, f"{name}_l{layer}"))
            cells.append(cell)
        return cls(*cells, dropout=fused.dropout).train(fused.training)

    def initial_state(self, batch_size: int) -> State:
        """What a row starts from: the cells' first states, stacked; `None` where all are zero."""
        return _stacked([Declared(cell).initial_state(batch_size) for cell in self.cells])

    @asked("Unroll")
    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:
        packed: PackedSequence | None = None
        if isinstance(inputs, PackedSequence):
            packed = inputs
            steps = packed.data.split(packed.batch_sizes.tolist())
            if packed.sorted_indices is not None:  # the rows stand by length in packed data
                state = select_rows(state, packed.sorted_indices)
        else:
            steps = as_sequence(inputs).unbind(0)
        rows = steps[0].shape[0]  # not len(), which fixes it for torch.export
        if state is not None:
            check_state(state, rows)
            self._check_layers(state)

        last: list[State] = []
        for layer, cell in enumerate(self.cells):
            before = _first_state(cell, rows) if state is None else _at(state, layer)
            if layer and self.dropout and self.training:
                steps = [F.dropout(step, self.dropout) for step in steps]
            steps, after = _scan(cell, steps, before)
            last.append(after)
        state = _stacked(last)

        if packed is None:
            return torch.stack(list(steps)), state
        if packed.unsorted_indices is not None:
            state = select_rows(state, packed.unsorted_indices)
        return repack(packed, torch.cat(list(steps))), state

    def _check_layers(self, state: State) -> None:
        layers = len(self.cells)
        for leaf in leaves_of(state):
            if len(leaf) != layers:
                came = f"a state leaf {in_words(leaf)} for {layers} cells"
                wanted = f"({layers}, B, *F), one layer for each cell"
                raise Refusal(came, wanted, "pass the state that this model returned.")


def _cell_of(fused: nn.RNNBase) -> Any:
    make = next((cell for kind, cell in _CELLS.items() if isinstance(fused, kind)), None)
    if make is None:
        fix = "any other cell goes into Unroll(cell) directly."
        raise Refusal(in_words(fused), "nn.LSTM, nn.GRU or nn.RNN", fix, TypeError)
    if not runs(fused, *FUSED):
        came = f"{type(fused).__name__}, with a forward of its own"
        fix = "cells compute what PyTorch's own forward does; unroll the module that it is made of."
        raise Refusal(came, "nn.LSTM, nn.GRU or nn.RNN", fix, TypeError)
    if fused.bidirectional or fused.proj_size or fused.batch_first:
        fix = "a cell sees one step at a time, forward in time."
        raise Refusal(repr(fused), "one direction, no projection, batch_first=False", fix)
    for weights in fused.all_weights:
        if not all(isinstance(weight, nn.Parameter) for weight in weights):
            fix = "remove the parametrization first."
            raise Refusal("weights that are computed", "weights that are parameters", fix)
    return make


def _at(state: State, index: int | slice) -> State:
    """A layer's state `(B, *F)` of a state's `(layers, B, *F)`, or some rows of a layer's."""
    return map_leaves(lambda leaf: leaf[index], state)


def _stacked(states: list[State]) -> State:
    """The states of all cells as one, leaves `(layers, B, *F)`; `None` is zero."""
    given = [state for state in states if state is not None]
    if not given:
        return None
    if len(given) < len(states):
        zeros = map_leaves(torch.zeros_like, given[0])
        states = [zeros if state is None else state for state in states]
    return map_leaves(_stack_leaves, *states)


def _stack_leaves(*leaves: Tensor) -> Tensor:
    if any(leaf.shape != leaves[0].shape for leaf in leaves[1:]):
        raise Refusal(
            "cells whose states are " + ", ".join(map(in_words, leaves)),
            "cells with states of one shape, which are stacked as layers",
            "RecurrentSequential(Unroll(first), Unroll(second)) keeps a state for each.",
        )
    return torch.stack(leaves)


def _first_state(cell: nn.Module, batch: int) -> State:
    first = Declared(cell).initial_state(batch)
    for leaf in leaves_of(first):
        if leaf.shape[:1] != (batch,):
            came = f"{in_words(leaf)} from initial_state({batch}) of {name_of(cell)}"
            fix = "expand what is learned to one row for each row of the batch."
            raise Refusal(came, f"leaves ({batch}, *F)", fix)
    return first


def _scan(cell: nn.Module, steps: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """One layer over its steps, of which in packed data later ones have fewer rows."""
    outputs: list[Tensor] = []
    ended: list[State] = []
    pair = False  # whether the cell gives (output, state)
    for step in steps:
        count = step.shape[0]
        if outputs and count < outputs[-1].shape[0]:
            ended.insert(0, _at(state, slice(count, None)))
            state = _at(state, slice(count))
        result = cell(step, state)
        if not outputs:  # what the first step shows holds for all
            pair = _gives_output(cell, step, state, result)
        if pair:
            output, state = result
        else:
            output = result[0] if isinstance(result, tuple) else result
            state = result
        outputs.append(output)
    if ended:
        state = map_leaves(lambda *leaves: torch.cat(leaves), state, *ended)
    return outputs, state


_asked_before: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _gives_output(cell: nn.Module, step: Tensor, state: State, result: Any) -> bool:
    if runs(cell, *_PYTORCHS_OWN):
        return False
    pair = _is_pair(cell, step, state, result)
    output = result[0] if isinstance(result, tuple) and result else result
    if not isinstance(output, Tensor) or output.shape[:1] != step.shape[:1]:
        raise Refusal(
            f"{shapes(result)} from {name_of(cell)} for {len(step)} rows",
            "a state, a tensor (B, *O) or a tuple that begins with one, or a pair (output, state)",
            "return (output, state), with an output (B, *O), and declare returns_output = True in "
            "the cell's class.",
            TypeError,
        )
    return pair


def _is_pair(cell: nn.Module, step: Tensor, state: State, result: Any) -> bool:
    declared = Declared(cell).returns_output
    may_be = isinstance(result, tuple) and len(result) == 2
    if declared and not may_be:
        raise Refusal(
            f"{shapes(result)} from {name_of(cell)}",
            "a pair (output, state), for it declares returns_output",
            "return the output and the state, or take returns_output away.",
            TypeError,
        )
    if declared is not None or not may_be:
        return bool(declared)

    # A state keeps its form.
    if state is not None:
        if same_form(result, state):
            return False
        if same_form(result[1], state):
            return True
        raise Refusal(
            f"{shapes(result)} from {name_of(cell)} for a state {shapes(state)}",
            "a state of the same form, or a pair of an output and one",
            "let the cell give back what it takes.",
        )
    if torch.compiler.is_compiling():
        return False  # a cell that does not take this back says so
    if cell not in _asked_before:
        _asked_before[cell] = _ask(cell, step, result)
    return _asked_before[cell]


def _ask(cell: nn.Module, step: Tensor, result: tuple[Any, Any]) -> bool:
    """Whether a pair is an output and a state: which of the two does the cell take back?"""
    no_state = _why_not(cell, step, result, result)
    no_pair = _why_not(cell, step, result[1], result)
    if bool(no_state) == bool(no_pair):
        taken = "both the pair and its second part"
        if no_state:
            taken = f"neither the pair ({no_state}) nor its second part ({no_pair})"
        raise Refusal(
            f"{shapes(result)} from {name_of(cell)}, which takes back {taken}",
            "a state, or a pair of an output and a state",
            "declare returns_output, True or False, in the cell's class.",
        )
    return bool(no_state)


def _why_not(cell: nn.Module, step: Tensor, state: State, result: Any) -> str:
    """Why a cell does not take a state back; nothing where it does."""
    devices: list[torch.device] = []
    if step.is_cuda:
        devices.append(step.device)
    # A question changes nothing: no mode, no random number.
    with torch.no_grad(), evaluating(cell), torch.random.fork_rng(devices):
        try:
            # With one row, for a tensor of one row cannot be taken apart as if it were a pair.
            again = cell(step[:1], _at(state, slice(1)))
        except Exception as error:  # whatever it raises
            return f"{type(error).__name__}: {error}"
    if not same_form(again, result):
        return f"gives {shapes(again)} for it"
    return ""
