"""Recurrent models made of parts, each against its plain PyTorch equal in float64."""

import pytest
import torch
from helpers import assert_state, leaves
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnkit import (
    Attention,
    EncoderDecoder,
    PerStep,
    RecurrentSequential,
    Unroll,
    batchseq,
    detach,
    sample_best,
    sample_model,
    select_rows,
    seq2seq_loss,
    unbatchseq,
)

pytestmark = pytest.mark.usefixtures("in_double_precision")

T, B, F, H = 6, 4, 3, 5
FUSED = {"LSTM": (nn.LSTM, nn.LSTMCell), "GRU": (nn.GRU, nn.GRUCell), "RNN": (nn.RNN, nn.RNNCell)}
every_kind = pytest.mark.parametrize("kind", FUSED)


def assert_same_call(model, reference, inputs, state=None, reference_state=None):
    """Outputs, state and every gradient: of the inputs and of the parameters, in order."""
    results = []
    for run, before in ((model, state), (reference, reference_state)):
        x = inputs.detach().clone().requires_grad_(inputs.is_floating_point())
        outputs, after = run(x, before)
        loss = outputs.sin().sum() + sum(leaf.cos().sum() for leaf in leaves(after))
        wrt = [*([x] if x.requires_grad else []), *run.parameters()]
        results.append((outputs, after, torch.autograd.grad(loss, wrt)))
    (outputs, after, gradients), (wanted, wanted_after, wanted_gradients) = results
    torch.testing.assert_close(outputs, wanted)
    assert_state(after, wanted_after)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b)


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


# ---------------------------------------------------------------- Unroll


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


# ---------------------------------------------------------------- EncoderDecoder

V = 7


def encoder_decoder(attention):
    encoder = RecurrentSequential(nn.Embedding(V, F), nn.GRU(F, H))
    if attention:
        decoder = RecurrentSequential(nn.Embedding(V, F), nn.GRU(F, H))
        return EncoderDecoder(encoder, decoder, Attention(H, V))
    return EncoderDecoder(
        encoder, RecurrentSequential(nn.Embedding(V, F), nn.GRU(F, H), nn.Linear(H, V))
    )


def bidirectional_encoder_decoder():
    """The two last states of a bidirectional encoder side by side are the first state of the decoder."""
    encoder = RecurrentSequential(nn.Embedding(V, F), nn.GRU(F, H, bidirectional=True))
    decoder = RecurrentSequential(nn.Embedding(V, F), nn.GRU(F, 2 * H))
    return EncoderDecoder(
        encoder,
        decoder,
        Attention(2 * H, V),
        bridge=lambda state: (torch.cat([*state[0]], -1).unsqueeze(0),),
    )


ENCODER_DECODERS = {
    "plain": lambda: encoder_decoder(attention=False),
    "attention": lambda: encoder_decoder(attention=True),
    "bidirectional": bidirectional_encoder_decoder,
}
every_encoder_decoder = pytest.mark.parametrize(
    "make", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS.keys()
)


def translations():
    """Sources and targets of different length, as lists of single sequences."""
    sources = [torch.randint(V, (n,)) for n in (5, 2, 7)]
    targets = [torch.randint(V, (n,)) for n in (3, 6, 1)]
    return sources, targets


@every_encoder_decoder
def test_the_padding_of_the_source_changes_nothing(make):
    model, (sources, targets) = make(), translations()
    source, lengths = batchseq(sources, pad=4)
    inputs, target_lengths = batchseq(targets)
    outputs, _ = model((source, lengths, inputs), None)
    for i, (alone_source, alone_target) in enumerate(zip(sources, targets, strict=True)):
        alone, _ = model((alone_source[:, None], None, alone_target[:, None]), None)
        torch.testing.assert_close(outputs[: target_lengths[i], i], alone[:, 0])


@every_encoder_decoder
def test_the_gradient_is_that_of_the_pairs_one_by_one(make):
    model, (sources, targets) = make(), translations()
    source, lengths = batchseq(sources, pad=4)
    inputs, target_lengths = batchseq(targets)
    loss_fn = seq2seq_loss(nn.CrossEntropyLoss(), average="sequence")
    loss = loss_fn(model((source, lengths, inputs), None)[0], inputs, target_lengths)
    alone = [
        nn.functional.cross_entropy(model((x[:, None], None, y[:, None]), None)[0][:, 0], y)
        for x, y in zip(sources, targets, strict=True)
    ]
    parameters = list(model.parameters())
    got = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(sum(alone) / len(alone), parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every_encoder_decoder
def test_encoding_first_and_decoding_then_is_the_same(make):
    model, (sources, targets) = make(), translations()
    source, lengths = batchseq(sources)
    inputs, _ = batchseq(targets)
    outputs, state = model((source, lengths, inputs), None)
    again, again_state = model(inputs, model.encode(source, lengths))
    torch.testing.assert_close(outputs, again)
    assert_state(
        [leaf.double() for leaf in leaves(state)], [leaf.double() for leaf in leaves(again_state)]
    )


@every_encoder_decoder
def test_the_decoder_goes_on_from_its_state(make):
    model, (sources, _) = make(), translations()
    source, lengths = batchseq(sources)
    inputs = torch.randint(V, (6, 3))
    whole, _ = model((source, lengths, inputs), None)
    first, state = model((source, lengths, inputs[:2]), None)
    then, _ = model(inputs[2:], state)
    torch.testing.assert_close(torch.cat([first, then]), whole)


@every_encoder_decoder
def test_every_leaf_of_its_state_has_the_batch_as_dim_1(make):
    model, (sources, targets) = make(), translations()
    source, lengths = batchseq(sources)
    for state in (
        model.encode(source, lengths),
        model((source, lengths, batchseq(targets)[0]), None)[1],
    ):
        assert leaves(state)
        assert all(leaf.shape[1] == 3 for leaf in leaves(state))


@every_encoder_decoder
def test_an_encoder_decoder_samples_like_any_model(make):
    model, (sources, _) = make(), translations()
    source, lengths = batchseq(sources)
    primer = torch.zeros(1, 3, dtype=torch.int64)
    sample = sample_model(model, 8, primer, sample_best, state=model.encode(source, lengths))
    for i, alone_source in enumerate(sources):
        state = model.encode(alone_source[:, None])
        tokens = [0]
        for _ in range(8):
            outputs, state = model(torch.tensor([[tokens[-1]]]), state)
            tokens.append(int(outputs[0, 0].argmax()))
        assert sample.tokens[:, i].tolist() == tokens[:-1]
        assert sample.next[0, i].item() == tokens[-1]


def test_attention_is_the_formula_written_out():
    attention, queries, memory = Attention(H, V), torch.randn(T, B, H), torch.randn(9, B, H)
    lengths = torch.tensor([9, 4, 1, 6])
    mask = torch.arange(9)[:, None] < lengths
    outputs = attention(queries, memory, mask)
    for t in range(T):
        for b in range(B):
            rows = memory[: lengths[b], b]
            weights = (rows @ (attention.score.weight @ queries[t, b])).softmax(0)
            both = torch.cat([weights @ rows, queries[t, b]])
            wanted = attention.head(torch.tanh(attention.combine(both)))
            torch.testing.assert_close(outputs[t, b], wanted)


def test_attention_looks_at_no_padding():
    attention, queries, memory = Attention(H, V), torch.randn(T, B, H), torch.randn(9, B, H)
    mask = torch.arange(9)[:, None] < torch.tensor([9, 4, 1, 6])
    weights = attention.weights(queries, memory, mask)
    assert weights.shape == (T, B, 9)
    assert weights.masked_select(~mask.T.expand_as(weights)).eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(T, B))
    spoiled = memory.masked_fill(~mask[..., None], 1e3)
    torch.testing.assert_close(attention(queries, spoiled, mask), attention(queries, memory, mask))


# ---------------------------------------------------------------- bad input, and what is said about it


@pytest.mark.parametrize(
    "build", [lambda m: RecurrentSequential(m), lambda m: EncoderDecoder(m, nn.GRU(2, 3))]
)
def test_batch_first_is_refused_when_the_model_is_built(build):
    with pytest.raises(
        ValueError,
        match=r"(?s)(RecurrentSequential|EncoderDecoder).*LSTM\(batch_first=True\).*dim 0",
    ):
        build(nn.LSTM(2, 3, batch_first=True))


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


def test_per_step_refuses_an_input_without_time_and_batch():
    with pytest.raises(ValueError, match=r"(?s)PerStep.*\(5,\).*\(T, B, \*F\)"):
        PerStep(nn.Linear(5, 2))(torch.randn(5))


def test_an_encoder_or_a_decoder_that_is_a_cell_is_refused_when_the_model_is_built():
    for parts in [(nn.GRUCell(2, 3), nn.GRU(2, 3)), (nn.GRU(2, 3), nn.GRUCell(2, 3))]:
        with pytest.raises(TypeError, match="EncoderDecoder: got a cell, GRUCell"):
            EncoderDecoder(*parts)


def test_an_encoder_decoder_of_a_pair_is_refused():
    model, (sources, targets) = encoder_decoder(attention=True), translations()
    with pytest.raises(
        TypeError, match=r"EncoderDecoder: got inputs a tuple of 2 and no state; wanted a source"
    ):
        model((sources[0].unsqueeze(1), targets[0].unsqueeze(1)))


def test_a_decoder_that_returns_no_state_is_refused():
    class Stateless(nn.Module):
        def forward(self, inputs, state=None):
            return inputs

    model = EncoderDecoder(nn.GRU(2, 3), Stateless())
    with pytest.raises(
        TypeError, match=r"EncoderDecoder: got \(2, 3, 4\) from Stateless; wanted a pair"
    ):
        model((torch.zeros(5, 3, 2), None, torch.zeros(2, 3, 4)))


def test_an_encoder_decoder_without_source_and_state_is_refused():
    with pytest.raises(TypeError, match=r"(?s)EncoderDecoder.*\(6, 3\).*encode"):
        encoder_decoder(attention=True)(torch.zeros(6, 3, dtype=torch.int64))


@pytest.mark.parametrize("lengths", [[8, 2, 2], [0, 2, 2], [2, 2]], ids=str)
def test_source_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)EncoderDecoder.encode.*lengths"):
        encoder_decoder(attention=True).encode(
            torch.zeros(7, 3, dtype=torch.int64), torch.tensor(lengths)
        )
