"""Unroll, against the fused modules and cells stepped by hand in float64."""

import pytest
import torch
from helpers import FUSED, assert_same_call, assert_state, every_kind
from torch import nn

from rnnkit import PerStep, RecurrentSequential, Unroll, detach

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
    again, _ = compiled(inputs, state)
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


# ---------------------------------------------------------------- what is refused


def test_unroll_refuses_a_state_of_another_batch():
    model = Unroll(nn.GRUCell(F, H))
    with pytest.raises(ValueError, match=r"(?s)Unroll.*\(1, 2, 5\).*batch of 4"):
        model(torch.randn(T, B, F), torch.zeros(1, 2, H))


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


def test_from_fused_refuses_what_is_not_fused():
    with pytest.raises(
        TypeError, match=r"(?s)Unroll.from_fused.*Linear.*nn.LSTM, nn.GRU or nn.RNN"
    ):
        Unroll.from_fused(nn.Linear(F, H))
