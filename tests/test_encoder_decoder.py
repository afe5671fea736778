"""EncoderDecoder and Attention, each pair against itself alone in float64."""

import pytest
import torch
from helpers import assert_state, leaves, refused
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim.swa_utils import AveragedModel

from rnnkit import (
    Attention,
    BPTTValidationPhase,
    EncoderDecoder,
    PerStep,
    RecurrentSequential,
    batchseq,
    sample_best,
    sample_model,
    seq2seq_loss,
)
from rnnkit.core.model import Declared, run_model

pytestmark = pytest.mark.usefixtures("in_double_precision")

T, B, F, H, V = 6, 4, 3, 5, 7


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
    loss = loss_fn.on(model, (source, lengths, inputs), inputs, target_lengths)
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


# ---------------------------------------------------------------- ragged targets, and what is declared


def of_numbers(decoder=None, attention=True, encoder=None):
    """An encoder-decoder over numbers, for which padding may be NaN."""
    decoder = nn.GRU(F, H) if decoder is None else decoder
    encoder = nn.GRU(F, H) if encoder is None else encoder
    return EncoderDecoder(encoder, decoder, Attention(H, 2) if attention else None)


class OwnDecoder(nn.Module):
    """One that does not take packed data."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(F, H)

    def forward(self, inputs, state=None):
        return self.rnn(inputs.cumsum(0), state)


@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
@pytest.mark.parametrize("attention", [False, True], ids=["plain", "attention"])
@pytest.mark.parametrize("make", [lambda: nn.GRU(F, H), OwnDecoder], ids=["packed", "own"])
def test_ragged_sources_and_targets_give_each_pair_what_it_gives_alone(make, attention, carry):
    model = of_numbers(make(), attention)
    sources = [torch.randn(n, F) for n in (5, 2, 7)]
    targets = [torch.randn(n, F) for n in (3, 6, 1)]
    source, source_lengths = batchseq(sources, pad=float("nan"))
    inputs, lengths = batchseq(targets, pad=float("nan"))
    state = model.encode(source, source_lengths)
    outputs, after = run_model(model, inputs, state, lengths, carry=carry)
    total = sum(outputs[:n, i].square().sum() for i, n in enumerate(lengths.tolist()))
    alone = 0
    for i, (one, other) in enumerate(zip(sources, targets, strict=True)):
        wanted, last = model((one.unsqueeze(1), None, other.unsqueeze(1)))
        torch.testing.assert_close(outputs[: len(other), i], wanted[:, 0])
        alone = alone + wanted.square().sum()
        if carry:
            torch.testing.assert_close(after[0][:, i], last[0][:, 0])
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(alone, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_batch_statistics_of_the_decoder_do_not_count_padding():
    norm = nn.BatchNorm1d(F)
    model = of_numbers(RecurrentSequential(PerStep(norm), nn.GRU(F, H)))
    model.bridge = lambda state: (state,)
    targets = [torch.randn(n, F) for n in (3, 6, 1)]
    inputs, lengths = batchseq(targets, pad=100.0)
    state = model.encode(torch.randn(4, 3, F))
    run_model(model, inputs, state, lengths, carry=False)
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.cat(targets).mean(0))


def test_what_it_declares_is_what_its_decoder_declares():
    both = nn.GRU(F, H, bidirectional=True)
    assert not Declared(of_numbers(encoder=nn.GRU(F, H, bidirectional=True))).bidirectional
    assert Declared(of_numbers(decoder=both)).bidirectional
    assert Declared(of_numbers()).takes_packed
    assert not Declared(of_numbers(OwnDecoder())).takes_packed
    normed = RecurrentSequential(PerStep(nn.BatchNorm1d(F)), nn.GRU(F, H))
    assert Declared(of_numbers(normed)).batch_statistics
    assert not Declared(of_numbers(encoder=normed)).batch_statistics


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, AveragedModel, nn.Identity],
    ids=["DataParallel", "AveragedModel", "bare"],
)
def test_a_source_is_encoded_behind_a_wrapper(wrap):
    model = of_numbers()
    wrapped = model if wrap is nn.Identity else wrap(model)
    source = torch.randn(5, 3, F)
    encode = Declared(wrapped).encode
    assert encode is not None
    assert_state(encode(source)[:2], model.encode(source)[:2])


def test_the_source_may_be_a_dict():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2 * F, H)

        def forward(self, inputs, state=None):
            return self.rnn(torch.cat([inputs["a"], inputs["b"]], -1), state)

    model = of_numbers(encoder=Two())
    source = {"a": torch.randn(5, 3, F), "b": torch.randn(5, 3, F)}
    lengths = torch.tensor([5, 2, 3])
    state, memory, mask = model.encode(source, lengths)
    assert torch.equal(mask, torch.arange(5)[:, None] < lengths)
    for i, n in enumerate(lengths.tolist()):
        alone, alone_memory, _ = model.encode({k: x[:n, i : i + 1] for k, x in source.items()})
        torch.testing.assert_close(state[:, i], alone[:, 0])
        torch.testing.assert_close(memory[:n, i], alone_memory[:, 0])


class Pyramid(EncoderDecoder):
    """Reads two steps of the source as one."""

    def encode(self, source, lengths=None):
        if lengths is None:
            lengths = torch.full((source.shape[1],), len(source))
        pairs = source[: len(source) // 2 * 2].unflatten(0, (-1, 2))  # (S / 2, 2, B, F)
        memory, state = run_model(
            self.encoder, pairs.transpose(1, 2).flatten(2), None, lengths // 2
        )
        return state, memory, torch.arange(len(memory)).unsqueeze(1) < lengths // 2


def test_an_encode_of_a_subclass_may_shorten_the_source_and_an_encoder_may_not():
    decoder = nn.GRU(F, H)
    model = Pyramid(nn.GRU(2 * F, H), decoder, Attention(H, V))
    rows = [torch.randn(n, F) for n in (8, 5, 2)]
    source, lengths = batchseq(rows)
    inputs, targets = torch.randn(4, 3, F), torch.randn(4, 3, V)
    loss = seq2seq_loss(nn.MSELoss())
    step = BPTTValidationPhase()(model, loss, ((source, lengths, inputs), targets))
    for i, row in enumerate(rows):
        alone, _ = model(inputs[:, i : i + 1], model.encode(row.unsqueeze(1)))
        torch.testing.assert_close(step.outputs[:, i : i + 1], alone)

    class Halves(nn.Module):
        takes_packed = True
        rnn = nn.GRU(F, H)

        def forward(self, inputs, state=None):
            padded, lengths = pad_packed_sequence(inputs)
            padded = pack_padded_sequence(padded, lengths // 2, enforce_sorted=False)
            return self.rnn(padded, state)

    halves = EncoderDecoder(Halves(), decoder, Attention(H, V))
    refused(
        lambda: halves.encode(source, lengths), "a source is shortened by an encode of your own"
    )


def test_a_first_state_that_the_decoder_learns_is_not_asked_for():
    class Learned(nn.GRU):
        def initial_state(self, batch_size):
            raise AssertionError("the source says where the decoder starts")

    model = of_numbers(Learned(F, H))
    inputs, lengths = batchseq([torch.randn(n, F) for n in (3, 6, 1)])
    run_model(model, inputs, model.encode(torch.randn(5, 3, F)), lengths)


# ---------------------------------------------------------------- what is refused


def test_batch_first_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match=r"(?s)EncoderDecoder.*LSTM\(batch_first=True\).*dim 0"):
        EncoderDecoder(nn.LSTM(2, 3, batch_first=True), nn.GRU(2, 3))


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


@every_encoder_decoder
def test_a_source_of_other_rows_than_the_inputs_is_refused(make):
    loss, inputs = seq2seq_loss(nn.CrossEntropyLoss()), torch.zeros(4, 2, dtype=torch.int64)
    batch = (inputs.T, None, inputs), inputs  # a source with the batch first
    for call in (loss.on, lambda *asked: BPTTValidationPhase()(asked[0], loss, asked[1:])):
        refused(lambda call=call: call(make(), *batch), "the source has the batch as dim 1")


@pytest.mark.parametrize("lengths", [[8, 2, 2], [0, 2, 2], [2, 2]], ids=str)
def test_source_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)EncoderDecoder.encode.*lengths"):
        encoder_decoder(attention=True).encode(
            torch.zeros(7, 3, dtype=torch.int64), torch.tensor(lengths)
        )
