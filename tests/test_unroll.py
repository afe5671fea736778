"""Unroll, against the fused modules and cells stepped by hand in float64."""

import pytest
import torch
from helpers import FUSED, assert_same_call, assert_state, every_kind, leaves, refused
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnkit import PerStep, RecurrentSequential, Unroll, batchseq, detach, select_rows

pytestmark = pytest.mark.usefixtures("in_double_precision")

T, B, F, H = 6, 4, 3, 5


def cells_of(fused, cell_class):
    """Cells with the weights of a fused module, copied by hand."""
    cells = []
    for layer in range(fused.num_layers):
        cell = cell_class(
            fused.input_size if layer == 0 else fused.hidden_size,
            fused.hidden_size,
            bias=fused.bias,
        )
        for name, parameter in cell.named_parameters():
            parameter.data.copy_(getattr(fused, f"{name}_l{layer}"))
        cells.append(cell)
    return cells


@every_kind
def test_an_unrolled_cell_is_the_fused_module(kind):
    fused_class, cell_class = FUSED[kind]
    fused = fused_class(F, H)
    assert_same_call(Unroll(*cells_of(fused, cell_class)), fused, torch.randn(T, B, F))


@every_kind
@pytest.mark.parametrize("layers", [2, 3])
def test_unrolled_cells_are_the_layers_of_the_fused_module(kind, layers):
    fused_class, cell_class = FUSED[kind]
    fused = fused_class(F, H, num_layers=layers)
    assert_same_call(Unroll(*cells_of(fused, cell_class)), fused, torch.randn(T, B, F))


@every_kind
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [False, True], ids=["from nothing", "from a state"])
def test_from_fused_computes_what_the_fused_module_computes(kind, layers, bias, with_state):
    fused = FUSED[kind][0](F, H, num_layers=layers, bias=bias)
    state = detach(fused(torch.randn(2, B, F))[1]) if with_state else None
    assert_same_call(Unroll.from_fused(fused), fused, torch.randn(T, B, F), state, state)


@every_kind
def test_a_state_of_the_one_is_a_state_of_the_other(kind):
    fused = FUSED[kind][0](F, H, num_layers=2)
    unrolled, inputs = Unroll.from_fused(fused), torch.randn(T, B, F)
    whole, last = fused(inputs)
    for first, then in ((fused, unrolled), (unrolled, fused)):
        begun, state = first(inputs[:2])
        ended, state = then(inputs[2:], state)
        torch.testing.assert_close(torch.cat([begun, ended]), whole)
        assert_state(state, last)


def test_from_fused_keeps_the_nonlinearity():
    fused = nn.RNN(F, H, nonlinearity="relu")
    assert_same_call(Unroll.from_fused(fused), fused, torch.randn(T, B, F))


@every_kind
def test_from_fused_shares_the_parameters(kind):
    fused = FUSED[kind][0](F, H, num_layers=2)
    unrolled = Unroll.from_fused(fused)
    assert {id(p) for p in unrolled.parameters()} == {id(p) for p in fused.parameters()}


@every_kind
def test_training_the_one_trains_the_other(kind):
    fused = FUSED[kind][0](F, H)
    unrolled, inputs = Unroll.from_fused(fused), torch.randn(T, B, F)
    optimizer = torch.optim.SGD(unrolled.parameters(), lr=0.1)
    before = fused(inputs)[0].detach()
    unrolled(inputs)[0].sum().backward()
    optimizer.step()
    assert not torch.allclose(fused(inputs)[0], before)
    torch.testing.assert_close(fused(inputs)[0], unrolled(inputs)[0])


def test_from_fused_drops_out_between_layers_in_training_only():
    fused = nn.LSTM(F, 64, num_layers=2, dropout=0.5)
    unrolled, inputs = Unroll.from_fused(fused), torch.randn(T, B, F)
    assert not torch.equal(unrolled(inputs)[0], unrolled(inputs)[0])
    torch.testing.assert_close(unrolled.eval()(inputs)[0], fused.eval()(inputs)[0])


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_the_loop_compiles_as_one_graph(kind, layers):
    unrolled, inputs = (
        Unroll.from_fused(FUSED[kind][0](F, H, num_layers=layers)),
        torch.randn(3, B, F),
    )
    torch._dynamo.reset()
    compiled = torch.compile(unrolled, fullgraph=True, backend="eager")
    outputs, state = compiled(inputs)
    wanted, wanted_state = unrolled(inputs)
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, wanted_state)
    again, _ = compiled(inputs, detach(state))
    torch.testing.assert_close(again, unrolled(inputs, wanted_state)[0])


def test_a_stack_around_the_loop_compiles_as_one_graph():
    model = RecurrentSequential(nn.Embedding(9, F), Unroll(nn.LSTMCell(F, H)), nn.Linear(H, 9))
    torch._dynamo.reset()
    tokens = torch.randint(9, (3, B))
    outputs, _ = torch.compile(model, fullgraph=True, backend="eager")(tokens)
    torch.testing.assert_close(outputs, model(tokens)[0])


def test_the_leaves_of_an_unrolled_state_have_the_batch_as_dim_1():
    _, (h, c) = Unroll(nn.LSTMCell(F, H))(torch.randn(T, B, F))
    assert h.shape == c.shape == (1, B, H)


class ConvLSTMCell(nn.Module):
    """A small ConvLSTM (Shi et al. 2015), called like `nn.LSTMCell`, over images `(B, C, H, W)`."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x, state=None):
        if state is None:
            state = (x.new_zeros(x.shape[0], self.hidden, *x.shape[2:]),) * 2
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


def test_a_convolutional_cell_needs_no_special_case():
    cell = ConvLSTMCell(2, 3)
    model, images = Unroll(cell), torch.randn(T, B, 2, 4, 4)
    outputs, (h, c) = model(images)
    state, wanted = None, []
    for x in images:
        state = cell(x, state)
        wanted.append(state[0])
    torch.testing.assert_close(outputs, torch.stack(wanted))
    assert outputs.shape == (T, B, 3, 4, 4)
    torch.testing.assert_close(h, state[0][None])
    torch.testing.assert_close(c, state[1][None])


def test_a_convolutional_stack_carries_its_state():
    model = RecurrentSequential(
        PerStep(nn.Conv2d(1, 2, 3, padding=1)),
        Unroll(ConvLSTMCell(2, 3)),
        PerStep(nn.Conv2d(3, 1, 1)),
    )
    images = torch.randn(T, B, 1, 4, 4)
    whole, _ = model(images)
    first, state = model(images[:2])
    torch.testing.assert_close(torch.cat([first, model(images[2:], state)[0]]), whole)


def test_a_cell_may_keep_a_state_of_any_form():
    class Counter(nn.Module):
        def forward(self, x, state=None):
            state = (x, {"count": torch.ones(len(x), 1)}) if state is None else state
            return x + state[1]["count"], {"count": state[1]["count"] + 1}

    model, inputs = Unroll(Counter()), torch.zeros(4, B, 1)
    outputs, state = model(inputs)
    assert outputs[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert state[1]["count"].shape == (1, B, 1)
    assert model(inputs, state)[0][:, 0, 0].tolist() == [5, 6, 7, 8]


# ---------------------------------------------------------------- an output beside the state


class GRUWithHead(nn.Module):
    """Gives an output and a new state, a tensor."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(F, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x, state=None):
        state = self.cell(x, state)
        return self.head(state), state


class CellFirst(nn.Module):
    """Gives an output and a new state (c, h), in that order."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(F, H)

    def forward(self, x, state=None):
        h, c = self.cell(x, None if state is None else (state[1], state[0]))
        return h, (c, h)


class DictState(nn.Module):
    """Gives an output and a dict."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(F + H, H)

    def forward(self, x, state=None):
        h = x.new_zeros(len(x), H) if state is None else state["h"]
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        return h.square(), {"h": h}


class OneTensor(nn.Module):
    """Gives an output and a state of the same shape, both of which go on in its own way."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2 * H, H)
        self.first = nn.Linear(F, H)

    def forward(self, x, state=None):
        x = self.first(x)
        state = x if state is None else torch.tanh(self.inner(torch.cat([x, state], -1)))
        return state.exp(), state


class IndexedLSTM(nn.Module):
    """Called like nn.LSTMCell, and takes its state apart by indexing, which a tensor allows too."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(F, H)

    def forward(self, x, state=None):
        if state is not None:
            state = (state[0], state[1])
        return self.cell(x, state)


class Nested(nn.Module):
    """Gives a state (h, (c, n)) and nothing else."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(F, H)

    def forward(self, x, state=None):
        if state is None:
            zeros = x.new_zeros(len(x), H)
            state = (zeros, (zeros, x.new_zeros(len(x), 1)))
        h, (c, n) = state
        h, c = self.cell(x, (h, c))
        return h, (c, n + 1)


PAIRS = [GRUWithHead, CellFirst, DictState, OneTensor]
STATES = [IndexedLSTM, Nested]


def by_hand(cell, inputs, pair, state=None):
    outputs = []
    for x in inputs:
        result = cell(x, state)
        outputs.append(result[0])
        state = result[1] if pair else result
    return torch.stack(outputs), state


@pytest.mark.parametrize("time", [1, T])
@pytest.mark.parametrize("batch", [1, 2, B])
@pytest.mark.parametrize("make", PAIRS + STATES)
def test_what_a_cell_gives_is_found_by_asking_it(make, batch, time):
    cell = make()
    model, inputs = Unroll(cell), torch.randn(time, batch, F)
    outputs, state = model(inputs)
    wanted, last = by_hand(cell, inputs, make in PAIRS)
    torch.testing.assert_close(outputs, wanted)
    assert_state([leaf[0] for leaf in leaves(state)], last)
    more = torch.randn(2, batch, F)
    again, state = model(more, state)
    wanted, last = by_hand(cell, more, make in PAIRS, last)
    torch.testing.assert_close(again, wanted)
    assert_state([leaf[0] for leaf in leaves(state)], last)


@pytest.mark.parametrize("make", PAIRS + STATES)
def test_a_cell_is_asked_once_and_nothing_of_it_is_changed(make):
    class Noisy(make):
        calls = 0

        def forward(self, x, state=None):
            self.calls += 1
            x = nn.functional.dropout(x, 0.5, self.training)
            return super().forward(x, state)

    cell = Noisy()
    generator = torch.get_rng_state()
    outputs, _ = Unroll(cell)(torch.ones(T, B, F))
    asked = cell.calls - T
    assert 0 < asked <= 2 and cell.training
    torch.set_rng_state(generator)
    wanted, _ = by_hand(cell, torch.ones(T, B, F), make in PAIRS)
    torch.testing.assert_close(outputs, wanted)
    Unroll(cell)(torch.ones(T, B, F))
    assert cell.calls == asked + 3 * T


@pytest.mark.parametrize("make", PAIRS + STATES)
def test_a_cell_that_declares_what_it_gives_is_not_asked(make):
    class Declared(make):
        returns_output = make in PAIRS
        calls = 0

        def forward(self, x, state=None):
            self.calls += 1
            return super().forward(x, state)

    cell = Declared()
    inputs = torch.randn(T, B, F)
    outputs, state = Unroll(cell)(inputs)
    assert cell.calls == T
    wanted, last = by_hand(cell, inputs, make in PAIRS)
    torch.testing.assert_close(outputs, wanted)
    assert_state([leaf[0] for leaf in leaves(state)], last)


@pytest.mark.parametrize("make", PAIRS + STATES)
def test_packed_rows_of_such_cells_are_as_alone(make):
    model = Unroll(make(), dropout=0.5).eval()
    rows = [torch.randn(n, F) for n in (4, 6, 1, 3)]
    padded, lengths = batchseq(rows, pad=float("nan"))
    outputs, state = model(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    back, _ = pad_packed_sequence(outputs)
    for i, row in enumerate(rows):
        alone, last = model(row.unsqueeze(1))
        torch.testing.assert_close(back[: len(row), i], alone[:, 0])
        assert_state(select_rows(state, torch.tensor([i])), last)


def test_the_layers_of_an_output_cell_are_stacked():
    cells = [DictState(), DictState()]
    cells[1].inner = nn.Linear(2 * H, H)
    inputs = torch.randn(T, B, F)
    outputs, state = Unroll(*cells)(inputs)
    hidden, first = by_hand(cells[0], inputs, True)
    wanted, second = by_hand(cells[1], hidden, True)
    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(state["h"], torch.stack([first["h"], second["h"]]))


@pytest.mark.parametrize("make", [IndexedLSTM, ConvLSTMCell])
def test_a_cell_called_like_an_lstm_cell_compiles_as_one_graph(make):
    torch._dynamo.reset()
    cell = make(*((2, 3) if make is ConvLSTMCell else ()))
    inputs = torch.randn(3, B, 2, 4, 4) if make is ConvLSTMCell else torch.randn(3, B, F)
    outputs, _ = torch.compile(Unroll(cell), fullgraph=True, backend="eager")(inputs)
    torch.testing.assert_close(outputs, by_hand(cell, inputs, False)[0])


def test_a_cell_that_declares_its_output_compiles_as_one_graph():
    torch._dynamo.reset()
    cell = GRUWithHead()
    cell.returns_output = True
    inputs = torch.randn(3, B, F)
    outputs, _ = torch.compile(Unroll(cell), fullgraph=True, backend="eager")(inputs)
    torch.testing.assert_close(outputs, by_hand(cell, inputs, True)[0])


# ---------------------------------------------------------------- a first state of one's own


class LearnedGRU(nn.GRUCell):
    def __init__(self, inputs, hidden):
        super().__init__(inputs, hidden)
        self.first = nn.Parameter(torch.randn(hidden))

    def initial_state(self, batch_size):
        return self.first.expand(batch_size, -1)


def test_a_cell_starts_from_its_own_first_state():
    cells = [LearnedGRU(F, H), nn.GRUCell(H, H), LearnedGRU(H, H)]
    model, inputs = Unroll(*cells), torch.randn(T, B, F)
    wanted = inputs
    for cell in cells:
        first = cell.first.expand(B, -1) if hasattr(cell, "first") else torch.zeros(B, H)
        steps = []
        for x in wanted:
            first = cell(x, first)
            steps.append(first)
        wanted = torch.stack(steps)
    outputs, _ = model(inputs)
    torch.testing.assert_close(outputs, wanted)
    start = model.initial_state(B)
    torch.testing.assert_close(start[0], cells[0].first.expand(B, -1))
    assert start[1].eq(0).all() and start.shape == (3, B, H)
    torch.testing.assert_close(model(inputs, start)[0], wanted)


def test_a_model_of_cells_that_say_nothing_starts_from_nothing():
    assert Unroll(nn.LSTMCell(F, H), nn.LSTMCell(H, H)).initial_state(B) is None


def test_packed_rows_start_from_the_cells_own_first_state():
    model = Unroll(LearnedGRU(F, H))
    rows = [torch.randn(n, F) for n in (4, 6, 1, 3)]
    padded, lengths = batchseq(rows)
    outputs, _ = model(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    back, _ = pad_packed_sequence(outputs)
    for i, row in enumerate(rows):
        torch.testing.assert_close(back[: len(row), i], model(row.unsqueeze(1))[0][:, 0])


# ---------------------------------------------------------------- what is refused


def test_unroll_refuses_a_state_of_another_batch():
    model = Unroll(nn.GRUCell(F, H))
    with pytest.raises(ValueError, match=r"(?s)Unroll.*\(1, 2, 5\).*batch of 4"):
        model(torch.randn(T, B, F), torch.zeros(1, 2, H))


@every_kind
def test_a_layer_is_no_cell(kind):
    layer = FUSED[kind][0]
    refused(lambda: Unroll(layer(F, F)), "wanted a cell. Likely fix: Unroll.from_fused", TypeError)


def test_unroll_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Unroll.*one cell a layer"):
        Unroll()


@pytest.mark.parametrize(
    ("fused", "word"),
    [
        (lambda: nn.LSTM(F, H, bidirectional=True), "one direction"),
        (lambda: nn.LSTM(F, H, proj_size=2), "no projection"),
        (lambda: nn.LSTM(F, H, batch_first=True), "batch_first=False"),
    ],
)
def test_from_fused_refuses_what_a_cell_cannot_do(fused, word):
    with pytest.raises(ValueError, match=rf"(?s)Unroll.from_fused.*{word}"):
        Unroll.from_fused(fused())


def test_from_fused_refuses_weights_that_are_computed():
    fused = torch.nn.utils.parametrizations.weight_norm(nn.LSTM(F, H), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"(?s)Unroll.from_fused.*parametrization"):
        Unroll.from_fused(fused)


def test_from_fused_refuses_a_subclass_with_a_forward_of_its_own():
    class Doubled(nn.LSTM):
        def forward(self, inputs, state=None):
            outputs, state = super().forward(inputs, state)
            return 2 * outputs, state

    with pytest.raises(
        TypeError, match=r"Unroll.from_fused: got Doubled, with a forward of its own"
    ):
        Unroll.from_fused(Doubled(F, H))


def test_from_fused_refuses_what_is_not_fused():
    with pytest.raises(
        TypeError, match=r"(?s)Unroll.from_fused.*Linear.*nn.LSTM, nn.GRU or nn.RNN"
    ):
        Unroll.from_fused(nn.Linear(F, H))


class Gives(nn.Module):
    """A cell that gives whatever it is told to."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, state=None):
        return self.make(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: None,
        lambda x: [x, x],
        lambda x: {"h": x},
        lambda x: (),
        lambda x: x[:1],
        lambda x: x.sum(),
        lambda x: (None, x),
        lambda x: ((x, x), x),
        lambda x: ("h", x, x),
    ],
)
def test_what_is_neither_a_state_nor_an_output_and_a_state_is_refused(make):
    cell = Gives(make)
    cell.returns_output = False
    message = refused(
        lambda: Unroll(cell)(torch.randn(T, B, F)), "from Gives for 4 rows", TypeError
    )
    assert "returns_output = True" in message


def test_a_pair_that_may_be_read_in_two_ways_is_refused():
    cell = Gives(lambda x: (x, 2 * x))  # it looks at no state, and so it takes any
    message = refused(
        lambda: Unroll(cell)(torch.randn(T, B, F)), "both the pair and its second part"
    )
    assert message.startswith("Unroll: got ((4, 3), (4, 3)) from Gives")
    cell.returns_output = True
    outputs, state = Unroll(cell)(torch.ones(T, B, F))
    assert outputs.eq(1).all() and state.eq(2).all()


def test_a_pair_that_the_cell_does_not_take_back_is_refused_with_the_reason():
    class Broken(nn.Module):
        def forward(self, x, state=None):
            if state is not None:
                raise KeyError("no such state")
            return x, x

    message = refused(lambda: Unroll(Broken())(torch.randn(T, B, F)), "neither the pair (KeyError")
    assert "no such state" in message


def test_a_declared_output_that_does_not_come_is_refused():
    cell = Gives(lambda x: x)
    cell.returns_output = True
    refused(lambda: Unroll(cell)(torch.randn(T, B, F)), "for it declares returns_output", TypeError)


def test_a_cell_that_gives_another_form_than_it_takes_is_refused():
    cell = Gives(lambda x: (x, (x, x, x)))
    refused(lambda: Unroll(cell)(torch.randn(T, B, F), torch.zeros(1, B, H)), "for a state (4, 5)")


def test_cells_with_states_of_another_size_are_refused():
    message = refused(
        lambda: Unroll(nn.GRUCell(F, H), nn.GRUCell(H, 2))(torch.randn(T, B, F)),
        "cells whose states are (4, 5), (4, 2)",
    )
    assert "RecurrentSequential(" in message
    refused(
        lambda: Unroll(nn.GRUCell(F, H), nn.LSTMCell(H, H))(torch.randn(T, B, F)),
        "states of one form",
    )


def test_a_state_of_another_number_of_layers_is_refused():
    refused(
        lambda: Unroll(nn.GRUCell(F, H))(torch.randn(T, B, F), torch.zeros(2, B, H)), "for 1 cells"
    )


def test_a_first_state_of_another_batch_is_refused():
    cell = LearnedGRU(F, H)
    cell.initial_state = lambda batch_size: cell.first
    refused(lambda: Unroll(cell)(torch.randn(T, B, F)), "from initial_state(4) of LearnedGRU")
