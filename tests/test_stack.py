"""RecurrentSequential and PerStep, each against its members called one by one in float64."""

from copy import deepcopy

import pytest
import torch
from helpers import FUSED, assert_same_call, assert_state, every_kind, leaves, refused
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnkit import (
    PerStep,
    RecurrentSequential,
    Unroll,
    batchseq,
    detach,
    rollout,
    select_rows,
    unbatchseq,
)
from rnnkit.models import stack

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


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo asks its inputs for it
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


# ---------------------------------------------------------------- members that come and go


@pytest.mark.parametrize("way", ["set", "modules", "delete", "insert"])
def test_a_member_that_is_replaced_by_another_kind_is_seen(way):
    model = RecurrentSequential(nn.Linear(F, F), nn.GRU(F, F))
    inputs = torch.randn(T, B, F)
    model(inputs)
    if way == "set":
        model[1] = nn.Linear(F, F)
    elif way == "modules":  # as torch.ao.quantization does
        model._modules["1"] = nn.Linear(F, F)
    elif way == "delete":
        del model[1]
    else:
        model.insert(0, nn.LSTM(F, F))
    wanted, states = inputs, []
    for member in model:
        if isinstance(member, nn.Linear):
            wanted = member(wanted)
        else:
            wanted, state = member(wanted)
            states.append(state)
    outputs, state = model(inputs)
    torch.testing.assert_close(outputs, wanted)
    assert len(state) == len(states) == (2 if way == "insert" else 0)


def test_a_compiled_stack_sees_a_replaced_member():
    torch._dynamo.reset()
    model = RecurrentSequential(nn.Linear(F, F), Unroll(nn.GRUCell(F, F)))
    fast = torch.compile(model, backend="eager", fullgraph=True)
    inputs = torch.randn(T, B, F)
    fast(inputs)
    model[1] = nn.Linear(F, F)
    outputs, state = fast(inputs)
    torch.testing.assert_close(outputs, model[1](model[0](inputs)))
    assert state == ()


def test_a_copy_of_a_stack_has_members_of_its_own():
    model = RecurrentSequential(nn.Linear(F, F), nn.GRU(F, H))
    copy = deepcopy(model)
    copy[1] = nn.Tanh()
    assert copy.recurrent == (False, False)
    assert model.recurrent == (False, True)


def test_a_member_that_comes_later_is_checked_too():
    model = RecurrentSequential(nn.GRU(F, H))
    model.append(nn.LSTMCell(H, H))
    refused(lambda: model(torch.randn(T, B, F)), "a cell, LSTMCell", TypeError)
    refused(lambda: model.recurrent, "a cell, LSTMCell", TypeError)


# ---------------------------------------------------------------- what stateless members see


class Difference(nn.Module):
    """A member that looks one step back."""

    def forward(self, x):
        return torch.cat([x[:1], x[1:] - x[:-1]])


class OnlyThree(nn.Module):
    """A member that fails on anything but (T, B, F), and fails to be finite on what is not positive."""

    def forward(self, x):
        assert x.ndim == 3
        return x.log()


def hooked(member):
    member.register_forward_hook(lambda module, args, outputs: outputs.exp())
    return member


def looking_back(member):
    member.register_forward_hook(lambda module, args, outputs: Difference()(outputs))
    return member


STATELESS = {
    "a difference": lambda: Difference(),
    "in a Sequential": lambda: nn.Sequential(nn.Linear(F, F), Difference(), nn.Tanh()),
    "a subclass": lambda: type("Mine", (nn.Linear,), {"forward": lambda self, x: x - x[:1]})(F, F),
    "flattened features": lambda: nn.Sequential(nn.Unflatten(2, (1, F)), nn.Flatten(2)),
    "a logarithm": lambda: OnlyThree(),
    "a softmax of features": lambda: nn.Softmax(-1),
    "rows dropped in evaluation": lambda: nn.Dropout1d(0.5).eval(),
    "each step": lambda: nn.Sequential(PerStep(nn.Linear(F, F)), nn.LayerNorm(F)),
    "a hook": lambda: hooked(nn.Sequential(nn.Linear(F, F))),
    "a hook that looks one step back": lambda: looking_back(nn.Linear(F, F)),
    "a hook inside": lambda: nn.Sequential(hooked(nn.Sequential(nn.Linear(F, F)))),
}


@pytest.mark.parametrize("owner", [False, True], ids=["sorted by torch", "sorted by its owner"])
@pytest.mark.parametrize("make", STATELESS.values(), ids=STATELESS.keys())
def test_a_stateless_member_sees_packed_rows_as_it_sees_them_alone(make, owner):
    model = RecurrentSequential(nn.Identity(), make(), nn.GRU(F, H), Difference())
    rows = [torch.rand(n, F) + 0.5 for n in ((6, 4, 3, 1) if owner else (4, 6, 1, 3))]
    padded, lengths = batchseq(rows, pad=float("nan"))
    outputs, state = model(pack_padded_sequence(padded, lengths, enforce_sorted=owner))
    back, back_lengths = pad_packed_sequence(outputs)
    assert torch.equal(back_lengths, lengths)
    total = outputs.data.square().sum()
    alone = 0
    for i, row in enumerate(rows):
        wanted, last = model(row.unsqueeze(1))
        torch.testing.assert_close(back[: len(row), i], wanted[:, 0])
        assert_state(select_rows(state, torch.tensor([i])), last)
        alone = alone + wanted.square().sum()
    for a, b in zip(
        torch.autograd.grad(total, list(model.parameters()), allow_unused=True),
        torch.autograd.grad(alone, list(model.parameters()), allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class Softer(RecurrentSequential):
    """A stack whose subclass does to its outputs what a PackedSequence cannot."""

    def forward(self, inputs, state=None):
        outputs, state = super().forward(inputs, state)
        return outputs * 0.5, state


def softened(model):
    model.register_forward_hook(lambda module, args, result: (result[0] * 0.5, result[1]))
    return model


@pytest.mark.parametrize("make", [Softer, lambda *parts: softened(RecurrentSequential(*parts))])
def test_what_is_done_to_the_outputs_of_a_stack_is_done_to_rows_of_any_length(make):
    model, lengths = make(nn.GRU(F, H), nn.Linear(H, F)), torch.tensor([4, 6, 1, 3])
    inputs = torch.randn(6, 4, F)
    outputs, state = rollout(model, inputs, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        wanted, last = model(inputs[:n, i : i + 1])
        torch.testing.assert_close(outputs[:n, i : i + 1], wanted)
        assert_state(select_rows(state, torch.tensor([i])), last)


def test_packed_steps_keep_their_order_through_a_stateless_member():
    rows = [torch.randn(n, F) for n in (3, 3, 5, 3, 5)]
    padded, lengths = batchseq(rows)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    outputs, _ = RecurrentSequential(nn.Sequential(Seen()))(packed)
    torch.testing.assert_close(outputs.data, packed.data)
    assert torch.equal(outputs.sorted_indices, packed.sorted_indices)


def test_every_known_module_does_the_same_to_a_step_whatever_stands_before_it():
    inputs = torch.randn(T, B, F)
    for kind in (
        nn.Linear,
        nn.LayerNorm,
        nn.RMSNorm,
        nn.ReLU,
        nn.RReLU,
        nn.Softplus,
        nn.AlphaDropout,
    ):
        options = {nn.Linear: (F, H), nn.LayerNorm: (F,), nn.RMSNorm: (F,)}
        module = kind(*options.get(kind, ())).eval()
        assert stack._sees_one_step(module)
        torch.testing.assert_close(module(inputs), torch.stack([module(x) for x in inputs]))
    for module in (
        nn.Softmax(0),
        nn.PReLU(F),
        nn.Dropout1d(),
        nn.Flatten(),
        nn.GLU(0),
        nn.Conv1d(F, F, 1),
    ):
        assert not stack._sees_one_step(module)


def test_a_member_that_looks_ahead_says_so_and_is_not_packed():
    class Ahead(nn.Module):
        bidirectional = True

        def forward(self, x):
            return x.flip(0).cumsum(0)

    model = RecurrentSequential(Ahead(), nn.GRU(F, H))
    assert not model.takes_packed
    message = refused(lambda: model(packed_input()[2]), "a PackedSequence for Ahead")
    assert "takes_packed = True" in message and "PerStep" in message


def test_an_own_batch_norm_that_is_training_is_not_packed():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(F)

        def forward(self, x):
            return self.norm(x.flatten(0, 1)).view_as(x)

    model = RecurrentSequential(Normed(), nn.GRU(F, H))
    assert not model.takes_packed
    refused(lambda: model(packed_input()[2]), "a PackedSequence for Normed")
    model.eval()
    assert model.takes_packed
    model(packed_input()[2])
    assert RecurrentSequential(nn.Sequential(PerStep(nn.BatchNorm1d(F))), nn.GRU(F, H)).takes_packed


def test_a_member_that_takes_packed_data_is_given_it():
    class Reads(nn.Module):
        takes_packed = True

        def forward(self, x):
            assert isinstance(x, PackedSequence)
            return PackedSequence(2 * x.data, *x[1:])

    packed = packed_input()[2]
    torch.testing.assert_close(RecurrentSequential(Reads())(packed)[0].data, 2 * packed.data)


# ---------------------------------------------------------------- dicts


class Join(nn.Module):
    def forward(self, inputs):
        return torch.cat([inputs["a"], inputs["b"]], -1)


class Heads(nn.Module):
    def forward(self, x):
        return {"first": x[..., :2], "change": Difference()(x)}


def test_the_first_member_may_take_a_dict_and_the_last_give_one():
    model = RecurrentSequential(Join(), nn.GRU(2 * F, H), Heads())
    a, lengths = batchseq([torch.randn(n, F) for n in (4, 6, 1, 3)], pad=9.0)
    b, _ = batchseq([torch.randn(n, F) for n in (4, 6, 1, 3)], pad=float("nan"))
    packed = {
        name: pack_padded_sequence(x, lengths, enforce_sorted=False)
        for name, x in {"a": a, "b": b}.items()
    }
    outputs, state = model(packed)
    for name, part in outputs.items():
        back, _ = pad_packed_sequence(part)
        for i, n in enumerate(lengths.tolist()):
            alone, last = model({"a": a[:n, i : i + 1], "b": b[:n, i : i + 1]})
            torch.testing.assert_close(back[:n, i], alone[name][:, 0])
            assert_state(select_rows(state, torch.tensor([i])), last)


def test_a_recurrent_first_member_may_take_a_dict():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2 * F, H)

        def forward(self, inputs, state=None):
            return self.rnn(Join()(inputs), state)

    model = RecurrentSequential(Two(), nn.Linear(H, 1))
    inputs = {"a": torch.randn(T, B, F), "b": torch.randn(T, B, F)}
    outputs, _ = model(inputs)
    torch.testing.assert_close(outputs, model[1](model[0].rnn(Join()(inputs))[0]))


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


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(F),
        nn.BatchNorm2d(F),
        nn.BatchNorm3d(F),
        nn.InstanceNorm1d(F),
        nn.GroupNorm(1, F),
        nn.Sequential(nn.Linear(F, F), nn.BatchNorm1d(F)),
        nn.DataParallel(nn.BatchNorm1d(F)),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_bare_norm_that_would_take_rows_for_channels_is_refused(norm):
    message = refused(
        lambda: RecurrentSequential(norm, nn.GRU(F, H)), "which takes dim 1 for channels"
    )
    assert "PerStep(" in message and message.startswith("RecurrentSequential:")
    RecurrentSequential(PerStep(norm), nn.GRU(F, H))


@pytest.mark.parametrize("shape", [(T - 1, 4, F), (F,)])
def test_a_stateless_member_that_changes_the_steps_is_refused(shape):
    class Fewer(nn.Module):
        def forward(self, x):
            return torch.zeros(shape)

    refused(lambda: RecurrentSequential(Fewer())(packed_input()[2]), "from Fewer", TypeError)


@pytest.mark.parametrize("inputs", [[1, 2], {"a": torch.zeros(2, 2)}, None])
def test_per_step_refuses_what_is_no_tensor(inputs):
    refused(lambda: PerStep(nn.Linear(2, 2))(inputs), "wanted (T, B, *F)")


@pytest.mark.parametrize("module", [nn.LSTM(F, H), nn.Flatten(0)], ids=["recurrent", "flat"])
def test_per_step_refuses_a_module_that_does_not_give_one_output_a_step(module):
    refused(
        lambda: PerStep(module.double())(torch.randn(T, B, F)),
        f"from {type(module).__name__} for 24 steps",
    )


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell, nn.LSTMCell])
def test_a_cell_is_applied_to_no_step_alone(cell):
    message = refused(lambda: PerStep(cell(F, H)), "a cell, ", TypeError)
    assert message.startswith("PerStep: ") and "Unroll(" in message
