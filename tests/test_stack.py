"""RecurrentSequential and PerStep, each against its members called one by one in float64."""

import pytest
import torch
from helpers import FUSED, assert_same_call, assert_state, every_kind, leaves
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnkit import PerStep, RecurrentSequential, Unroll, batchseq, detach, select_rows, unbatchseq

pytestmark = pytest.mark.usefixtures("in_double_precision")

T, B, F, H = 6, 4, 3, 5

# ---------------------------------------------------------------- RecurrentSequential


@every_kind
def test_a_stack_of_one_fused_module_is_that_module(kind):
    fused = FUSED[kind][0](F, H, num_layers=2)
    assert_same_call(RecurrentSequential(fused), fused, torch.randn(T, B, F))


@every_kind
def test_the_state_goes_in_and_comes_out(kind):
    model, inputs = (
        RecurrentSequential(nn.Linear(F, F), FUSED[kind][0](F, H), nn.Tanh()),
        torch.randn(T, B, F),
    )
    whole, last = model(inputs)
    first, state = model(inputs[:2])
    then, state = model(inputs[2:], state)
    torch.testing.assert_close(torch.cat([first, then]), whole)
    assert_state(state, last)


def test_the_state_has_one_entry_for_each_recurrent_member():
    model = RecurrentSequential(
        nn.Linear(F, F), nn.LSTM(F, H), nn.ReLU(), nn.GRU(H, 2, num_layers=3)
    )
    _, state = model(torch.randn(T, B, F))
    assert isinstance(state, tuple)
    assert len(state) == 2
    assert [tuple(leaf.shape) for leaf in leaves(state)] == [(1, B, H), (1, B, H), (3, B, 2)]


def test_a_stack_is_its_members_one_after_the_other():
    embedding, lstm, linear, gru = nn.Embedding(9, F), nn.LSTM(F, H), nn.Linear(H, F), nn.GRU(F, 2)
    tokens = torch.randint(9, (T, B))
    outputs, state = RecurrentSequential(embedding, lstm, linear, gru)(tokens)
    x, lstm_state = lstm(embedding(tokens))
    wanted, gru_state = gru(linear(x))
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, (lstm_state, gru_state))


def test_stacks_nest():
    flat = RecurrentSequential(
        nn.Linear(F, F), nn.LSTM(F, H), nn.Tanh(), nn.GRU(H, 2), nn.Linear(2, 1)
    )
    nested = RecurrentSequential(
        RecurrentSequential(flat[0], flat[1]),
        flat[2],
        RecurrentSequential(RecurrentSequential(flat[3]), flat[4]),
    )
    inputs = torch.randn(T, B, F)
    _, flat_state = detach(flat(torch.randn(2, B, F)))
    nested_state = ((flat_state[0],), ((flat_state[1],),))
    assert_same_call(nested, flat, inputs)
    assert_same_call(nested, flat, inputs, nested_state, flat_state)


class Seen(nn.Module):
    """Notes the shape of each input."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x


def test_stateless_members_see_the_whole_sequence_at_once():
    before, after = Seen(), Seen()
    RecurrentSequential(before, nn.LSTM(F, H), after)(torch.randn(T, B, F))
    assert before.shapes == [(T, B, F)]
    assert after.shapes == [(T, B, H)]


def test_the_fused_kernel_stays_fused():
    lstm, calls = nn.LSTM(F, H), []
    lstm.register_forward_hook(lambda module, args, result: calls.append(tuple(args[0].shape)))
    RecurrentSequential(lstm)(torch.randn(T, B, F))
    assert calls == [(T, B, F)]


def test_a_stack_with_no_recurrent_member_has_an_empty_state():
    outputs, state = RecurrentSequential(nn.Linear(F, H), nn.Tanh())(torch.randn(T, B, F))
    assert outputs.shape == (T, B, H)
    assert leaves(state) == []


def test_a_recurrent_model_of_ones_own_is_a_member():
    class Sum(nn.Module):
        def forward(self, inputs, state=None):
            total = inputs.cumsum(0) + (0 if state is None else state)
            return total, total[-1:]

    model, inputs = RecurrentSequential(Sum(), nn.Identity()), torch.randn(T, B, F)
    _, state = model(inputs[:2])
    torch.testing.assert_close(model(inputs[2:], state)[0], inputs.cumsum(0)[2:])


def test_a_stack_can_be_indexed_extended_and_saved_like_nn_sequential():
    model = RecurrentSequential(nn.Linear(F, F), nn.LSTM(F, H))
    model.append(nn.GRU(H, 2))
    assert isinstance(model[1], nn.LSTM)
    outputs, state = model(torch.randn(T, B, F))
    assert outputs.shape == (T, B, 2)
    assert len(state) == 2
    assert set(model.state_dict()) == set(
        nn.Sequential(nn.Linear(F, F), nn.LSTM(F, H), nn.GRU(H, 2)).state_dict()
    )


def test_a_compiled_member_keeps_its_state():
    torch._dynamo.reset()
    gru, inputs = Unroll(nn.GRUCell(F, H)), torch.randn(T, B, F)
    model = RecurrentSequential(
        nn.Linear(F, F), torch.compile(gru, backend="eager"), nn.Linear(H, 2)
    )
    outputs, state = model(inputs)
    wanted, wanted_state = RecurrentSequential(model[0], gru, model[2])(inputs)
    torch.testing.assert_close(outputs, wanted)
    assert_state(state, wanted_state)


@pytest.mark.parametrize(
    "model", [Unroll(nn.GRUCell(F, H)), RecurrentSequential(nn.GRU(F, H))], ids=["Unroll", "stack"]
)
def test_a_list_of_steps_is_a_sequence(model):
    model, inputs = model.double(), torch.randn(T, B, F)
    torch.testing.assert_close(model(list(inputs))[0], model(inputs)[0])


# ---------------------------------------------------------------- PackedSequence in and out

LENGTHS = torch.tensor([4, 6, 1, 3])


def packed_input(features=F, lengths=LENGTHS):
    padded, lengths = batchseq([torch.randn(n, features) for n in lengths.tolist()], pad=99.0)
    return padded, lengths, pack_padded_sequence(padded, lengths, enforce_sorted=False)


def models_that_take_packed_sequences():
    return {
        "stack": RecurrentSequential(
            nn.Linear(F, F), nn.LSTM(F, H, num_layers=2), nn.Tanh(), nn.GRU(H, 2)
        ),
        "nested": RecurrentSequential(RecurrentSequential(nn.GRU(F, H)), nn.Linear(H, 2)),
        "unrolled LSTM": Unroll(nn.LSTMCell(F, H), nn.LSTMCell(H, H)),
        "unrolled GRU": Unroll(nn.GRUCell(F, H)),
        "stack of both": RecurrentSequential(
            Unroll(nn.RNNCell(F, H)), PerStep(nn.Linear(H, H)), nn.LSTM(H, 2)
        ),
    }


every_packable = pytest.mark.parametrize(
    "name", ["stack", "nested", "unrolled LSTM", "unrolled GRU", "stack of both"]
)


@every_packable
@pytest.mark.parametrize("with_state", [False, True], ids=["from nothing", "from a state"])
def test_a_packed_sequence_gives_each_row_what_it_gives_alone(name, with_state):
    model = models_that_take_packed_sequences()[name]
    padded, lengths, packed = packed_input()
    before = model(torch.randn(2, B, F))[1] if with_state else None
    outputs, state = model(packed, before)
    assert isinstance(outputs, PackedSequence)
    back, back_lengths = pad_packed_sequence(outputs)
    assert torch.equal(back_lengths, lengths)
    for i, row in enumerate(unbatchseq(padded, lengths)):
        index = torch.tensor([i])
        alone, alone_state = model(row[:, None], select_rows(before, index))
        torch.testing.assert_close(back[: lengths[i], i], alone[:, 0])
        assert_state(select_rows(state, index), alone_state)


@every_packable
def test_a_packed_sequence_gives_the_gradient_of_the_rows_alone(name):
    model = models_that_take_packed_sequences()[name]
    padded, lengths, packed = packed_input()
    outputs, state = model(packed)
    loss = outputs.data.square().sum() + sum(leaf.square().sum() for leaf in leaves(state))
    alone = 0
    for row in unbatchseq(padded, lengths):
        row_outputs, row_state = model(row[:, None])
        alone = (
            alone
            + row_outputs.square().sum()
            + sum(leaf.square().sum() for leaf in leaves(row_state))
        )
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


@every_packable
def test_a_packed_sequence_sorted_by_its_owner_is_taken_too(name):
    model = models_that_take_packed_sequences()[name]
    rows = [torch.randn(n, F) for n in (6, 4, 3, 1)]
    padded, lengths = batchseq(rows)
    outputs, state = model(pack_padded_sequence(padded, lengths, enforce_sorted=True))
    back, _ = pad_packed_sequence(outputs)
    for i, row in enumerate(rows):
        alone, alone_state = model(row[:, None])
        torch.testing.assert_close(back[: len(row), i], alone[:, 0])
        assert_state(select_rows(state, torch.tensor([i])), alone_state)


def test_packed_tokens_pass_an_embedding_and_a_dropout():
    model = RecurrentSequential(
        nn.Embedding(9, F), nn.Dropout(0.5), nn.LSTM(F, H), nn.Linear(H, 9)
    ).eval()
    padded, lengths = batchseq([torch.randint(9, (n,)) for n in (4, 6, 1, 3)])
    outputs, _ = model(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    wanted, _ = model(padded)
    back, _ = pad_packed_sequence(outputs)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(back[:n, i], wanted[:n, i])


def test_batch_normalization_over_a_packed_sequence_leaves_the_padding_out():
    model = RecurrentSequential(PerStep(nn.BatchNorm1d(F)), nn.GRU(F, H))
    padded, lengths, packed = packed_input()
    model(packed)
    valid = torch.cat(unbatchseq(padded, lengths))
    torch.testing.assert_close(model[0].module.running_mean, 0.1 * valid.mean(0))


# ---------------------------------------------------------------- PerStep


def test_per_step_applies_a_convolution_to_every_step():
    conv, images = nn.Conv2d(2, 3, 3, padding=1), torch.randn(T, B, 2, 5, 5)
    torch.testing.assert_close(PerStep(conv)(images), torch.stack([conv(x) for x in images]))


def test_per_step_normalizes_over_all_steps_of_all_rows():
    norm, inputs = nn.BatchNorm1d(F), 3 + 2 * torch.randn(T, B, F)
    wanted = (inputs - inputs.mean((0, 1))) / (inputs.var((0, 1), correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(PerStep(norm)(inputs), wanted)


def test_per_step_may_change_the_feature_shape():
    assert PerStep(nn.Flatten())(torch.randn(T, B, 2, 3, 4)).shape == (T, B, 24)


def test_per_step_calls_its_module_once():
    seen = Seen()
    PerStep(seen)(torch.randn(T, B, 2, 5, 5))
    assert seen.shapes == [(T * B, 2, 5, 5)]


# ---------------------------------------------------------------- what is refused


def test_batch_first_is_refused_when_the_model_is_built():
    with pytest.raises(
        ValueError, match=r"(?s)RecurrentSequential.*LSTM\(batch_first=True\).*dim 0"
    ):
        RecurrentSequential(nn.LSTM(2, 3, batch_first=True))


def test_a_bare_cell_in_a_stack_is_refused():
    with pytest.raises(TypeError, match=r"(?s)RecurrentSequential.*LSTMCell.*Unroll"):
        RecurrentSequential(nn.LSTMCell(2, 3))


def test_a_state_with_another_number_of_entries_is_refused():
    model = RecurrentSequential(nn.LSTM(F, H), nn.GRU(H, H))
    with pytest.raises(ValueError, match=r"(?s)RecurrentSequential.*tuple of 1.*tuple of 2"):
        model(torch.randn(T, B, F), (None,))


def test_a_recurrent_member_that_returns_no_state_is_refused():
    class Forgetful(nn.Module):
        def forward(self, inputs, state=None):
            return inputs

    with pytest.raises(TypeError, match=r"(?s)RecurrentSequential.*Forgetful.*outputs, state"):
        RecurrentSequential(Forgetful())(torch.randn(T, B, F))


@pytest.mark.parametrize("last", [True, False])
def test_a_member_whose_state_is_called_otherwise_is_refused(last):
    class Other(nn.Module):
        def forward(self, inputs, hidden=None):
            return inputs, hidden

    members = [Other()] if last else [Other(), nn.Linear(F, H)]
    with pytest.raises(TypeError, match=r"(?s)RecurrentSequential.*Other.*`state`"):
        RecurrentSequential(*members)(torch.randn(T, B, F))


def test_per_step_refuses_an_input_without_time_and_batch():
    with pytest.raises(ValueError, match=r"(?s)PerStep.*\(5,\).*\(T, B, \*F\)"):
        PerStep(nn.Linear(5, 2))(torch.randn(5))
