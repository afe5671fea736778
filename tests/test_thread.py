"""The four wishes of FluxTraining.jl issue 144, as its author would write them down.

Predict sequence to sequence; predict sequence to one; predict the future of a sequence after a seed; each of these for
batches. A sequence is written as in the thread: a list of steps, each step one batch `(B, features)`. The names are
the thread's: `xs` and `ys` go in, `ŷs` (here `yhats`) come out, `m` is the model.

https://github.com/FluxML/FluxTraining.jl/issues/144
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    RecurrentSequential,
    batchseq,
    get_inout_seq,
    identity,
    pad_collate,
    sample_best,
    sample_model,
    seq2one_loss,
    seq2seq_loss,
    steps,
)

pytestmark = pytest.mark.usefixtures("in_double_precision")

mse, crossentropy = nn.MSELoss(), nn.CrossEntropyLoss()


def waves(batch_size, length=24):
    """Sines of random phase: a list of `length` steps `(batch_size, 1)`."""
    phase = 6.3 * torch.rand(batch_size, 1)
    return [torch.sin(0.4 * t + phase) for t in range(length)]


def train(m, loss, batches, lr=0.02):
    """A plain loop: no learner, no phase."""
    optimizer, losses = torch.optim.Adam(m.parameters(), lr), []
    for xs, ys, *lengths in batches:
        optimizer.zero_grad()
        value = loss.on(m, xs, ys, *lengths)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def one_by_one(m, xs):
    """What the thread's `[m(x) for x in xs]` gives: the model called step after step, its state carried by hand."""
    state, yhats = None, []
    for x in xs:
        yhat, state = m(x[None], state)
        yhats.append(yhat[0])
    return yhats


# ---------------------------------------------------------------- predict sequence to sequence


def test_predict_sequence_to_sequence():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    loss = seq2seq_loss(mse)
    losses = train(m, loss, [get_inout_seq(waves(16)) for _ in range(150)])
    assert losses[-1] < losses[0] / 5

    for batch_size in (1, 16):
        xs, ys = get_inout_seq(waves(batch_size))
        yhats, _ = m(xs)
        assert loss(yhats, ys) < loss(xs, ys) / 2, (
            "it has learned more than to repeat the last value"
        )


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_loss_over_a_sequence_is_the_mean_of_the_losses_step_by_step(batch_size):
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    xs, ys = get_inout_seq(waves(batch_size))
    yhats = one_by_one(m, steps(xs))
    wanted = sum(mse(yhat, y) for yhat, y in zip(yhats, steps(ys), strict=True)) / len(yhats)
    torch.testing.assert_close(seq2seq_loss(mse).on(m, xs, ys), wanted)


def test_sequences_of_different_length_in_one_batch_to_sequences():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    singles = [torch.cat(waves(1, length)) for length in (9, 24, 15)]
    xs, ys, lengths = get_inout_seq(pad_collate(singles))
    alone = [seq2seq_loss(mse).on(m, *get_inout_seq(single[:, None])) for single in singles]
    together = seq2seq_loss(mse, average="sequence").on(m, xs, ys, lengths)
    torch.testing.assert_close(together, sum(alone) / 3)


# ---------------------------------------------------------------- predict sequence to one


def questions(batch_size, length=8):
    """Which came more often, positive or negative steps? A list of steps `(batch_size, 1)` and one class a row."""
    xs = [torch.randn(batch_size, 1).sign() for _ in range(length)]
    return xs, (sum(xs)[:, 0] > 0).long()


def test_predict_sequence_to_one():
    m = RecurrentSequential(nn.GRU(1, 16), nn.Linear(16, 2))
    train(m, seq2one_loss(crossentropy), [questions(16) for _ in range(150)], lr=0.03)

    xs, y = questions(500)
    yhats, _ = m(xs)
    assert (sample_best(yhats[-1]) == y).double().mean() > 0.9
    alone, _ = m([x[:1] for x in xs])
    torch.testing.assert_close(alone[:, 0], yhats[:, 0])


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_loss_of_one_is_the_loss_of_the_last_step(batch_size):
    m = RecurrentSequential(nn.GRU(1, 16), nn.Linear(16, 2))
    xs, y = questions(batch_size)
    torch.testing.assert_close(
        seq2one_loss(crossentropy).on(m, xs, y), F.cross_entropy(one_by_one(m, xs)[-1], y)
    )


def test_sequences_of_different_length_in_one_batch_to_one():
    m = RecurrentSequential(nn.GRU(1, 16), nn.Linear(16, 2))
    singles = [(torch.randn(length, 1), length % 2) for length in (9, 4, 6)]
    xs, ys, lengths = pad_collate(singles)
    alone = [seq2one_loss(crossentropy).on(m, x[:, None], torch.tensor([y])) for x, y in singles]
    torch.testing.assert_close(seq2one_loss(crossentropy).on(m, xs, ys, lengths), sum(alone) / 3)


# ---------------------------------------------------------------- predict the future of a sequence after a seed


def test_predict_the_future_after_a_primer():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    train(m, seq2seq_loss(mse), [get_inout_seq(waves(16)) for _ in range(300)])

    for batch_size in (1, 16):
        truth = waves(batch_size, 24)
        s = sample_model(m, 24, truth[:16], identity)
        future, wanted = s.tokens[16:], torch.stack(truth[16:])
        assert torch.equal(s.tokens[:16], torch.stack(truth[:16]))
        staying_put = truth[15].expand(8, -1, -1)
        assert mse(future, wanted) < mse(staying_put, wanted) / 4, (
            "eight steps on its own stay near the wave"
        )


@pytest.mark.parametrize("batch_size", [1, 16])
def test_sampling_is_feeding_each_output_back(batch_size):
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    primer, nseq = waves(batch_size, 6), 20
    fed = list(primer)
    while len(fed) < nseq:
        fed.append(one_by_one(m, fed)[-1])
    s = sample_model(m, nseq, primer)
    torch.testing.assert_close(s.tokens, torch.stack(fed))
    torch.testing.assert_close(s.outputs, torch.stack(one_by_one(m, fed)))


def test_a_language_can_be_learned_and_spoken():
    """Five letters in their order, over and over: after any of them the next ones are known."""
    m = RecurrentSequential(nn.Embedding(5, 8), nn.GRU(8, 16), nn.Linear(16, 5))

    def alphabet(batch_size, length):
        first = torch.randint(5, (batch_size,))
        return [(first + t) % 5 for t in range(length)]

    train(m, seq2seq_loss(crossentropy), [get_inout_seq(alphabet(16, 12)) for _ in range(100)])
    for batch_size in (1, 16):
        truth = alphabet(batch_size, 40)
        s = sample_model(m, 40, truth[:2], sample_best)
        assert torch.equal(s.tokens, torch.stack(truth))
        assert s.log_probs.exp().min() > 0.5


def test_primers_of_different_length_in_one_batch():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    primers = [torch.cat(waves(1, length)) for length in (3, 9, 6)]
    together = sample_model(m, 20, batchseq(primers))
    for row, primer in enumerate(primers):
        alone = sample_model(m, 20, primer[:, None])
        torch.testing.assert_close(together.tokens[:, row], alone.tokens[:, 0])


# ---------------------------------------------------------------- what the code in the thread got wrong


def test_sequences_of_unequal_length_are_not_cut_to_the_shorter():
    xs = waves(4)
    with pytest.raises(ValueError, match=r"seq2seq_loss.*the same T and B"):
        seq2seq_loss(mse)(xs, xs[:-1])


def test_what_was_sampled_is_not_thrown_away():
    m = RecurrentSequential(nn.Embedding(5, 8), nn.GRU(8, 16), nn.Linear(16, 5))
    s = sample_model(m, 12, [torch.tensor([0, 1])], sample_best)
    assert torch.equal(torch.cat([s.tokens[1:], s.next]), s.outputs.argmax(-1))


def test_nseq_counts_the_primer_and_is_never_exceeded():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    assert len(sample_model(m, 6, waves(2, 6)).outputs) == 6
    with pytest.raises(ValueError, match=r"length counts the primer"):
        sample_model(m, 5, waves(2, 6))


def test_a_sample_needs_something_to_start_from():
    m = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
    with pytest.raises(ValueError, match=r"sample_model.*primer"):
        sample_model(m, 5, [])
