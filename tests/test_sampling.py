"""The future after a primer: sample_model and forecast, against a loop written out by hand."""

import math

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import (
    Counting,
    Scaling,
    assert_state,
    continuous_model,
    language_model,
    leaves,
    seeded,
    wander,
)
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    DistributionSampler,
    Feedback,
    RecurrentSequential,
    Sample,
    SoftmaxSampler,
    batchseq,
    beam_search,
    forecast,
    identity,
    rollout,
    sample_best,
    sample_model,
    with_covariates,
)

pytestmark = pytest.mark.usefixtures("in_double_precision", "quick_and_plain_steps")


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_samples_of_these_tests_do_not_repeat_one_token(recurrent, layers):
    """Else a sampler that reads the wrong step or row would go unnoticed."""
    tokens = sample_model(
        language_model(recurrent, layers), 20, torch.randint(V, (4, 5)), wander
    ).tokens[4:]
    assert all(len(row.unique()) >= 4 for row in tokens.T)
    assert len(tokens.T.unique(dim=0)) == 5


def test_the_outputs_answer_the_tokens():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    sample = sample_model(model, 20, primer, SoftmaxSampler(generator=seeded(1)))
    torch.testing.assert_close(
        sample.outputs, model(sample.tokens)[0].detach(), rtol=1e-10, atol=1e-10
    )


def test_the_shapes_of_a_sample():
    sample = sample_model(
        language_model(), 20, torch.randint(V, (4, 3)), SoftmaxSampler(generator=seeded(1))
    )
    assert isinstance(sample, Sample)
    assert sample.tokens.shape == (20, 3)
    assert sample.tokens.dtype == torch.int64
    assert sample.outputs.shape == (20, 3, V)
    assert sample.log_probs.shape == (20, 3)
    assert sample.next.shape == (1, 3)


def test_a_sample_can_be_taken_apart():
    sample = sample_model(language_model(), 20, torch.randint(V, (4, 3)), wander)
    tokens, outputs, log_probs, following, state = sample
    assert tokens is sample.tokens and outputs is sample.outputs
    assert log_probs is sample.log_probs and following is sample.next and state is sample.state


def test_the_primer_comes_first_and_counts():
    primer = torch.randint(V, (4, 3))
    sample = sample_model(language_model(), 20, primer, wander)
    assert torch.equal(sample.tokens[:4], primer)


def test_a_length_of_the_primer_draws_the_next_token_only():
    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = sample_model(model, 4, primer, wander)
    assert torch.equal(sample.tokens, primer)
    assert torch.equal(sample.next[0], wander(model(primer)[0][-1]))


def test_log_probs_are_what_the_model_gave_the_token_that_followed():
    sample = sample_model(
        language_model(), 20, torch.randint(V, (4, 3)), SoftmaxSampler(generator=seeded(1))
    )
    followed = torch.cat([sample.tokens[1:], sample.next])
    wanted = sample.outputs.log_softmax(-1).gather(-1, followed[..., None])[..., 0]
    torch.testing.assert_close(sample.log_probs, wanted)


def test_a_continuous_model_has_no_log_probs():
    sample = sample_model(continuous_model(), 10, torch.randn(4, 3, 2))
    assert sample.log_probs is None
    assert sample.tokens.shape == (10, 3, 2)
    assert sample.next.shape == (1, 3, 2)
    assert torch.equal(sample.tokens[4:], sample.outputs[3:-1])
    assert torch.equal(sample.next[0], sample.outputs[-1])


def test_a_sample_has_no_gradient():
    sample = sample_model(continuous_model(), 10, torch.randn(4, 3, 2, requires_grad=True))
    assert not any(
        x.requires_grad for x in [sample.tokens, sample.outputs, sample.next, *leaves(sample.state)]
    )


def test_what_was_sampled_can_be_trained_on():
    model = language_model()
    sample = sample_model(model, 10, torch.randint(V, (4, 3)), wander)
    outputs, _ = model(sample.tokens, None)
    F.cross_entropy(outputs[:-1].flatten(0, 1), sample.tokens[1:].flatten()).backward()
    _, state = model(sample.next, sample.state)
    assert state is not None


def test_one_hot_vectors_go_in_and_come_out():
    model = RecurrentSequential(nn.LSTM(V, H), nn.Linear(H, V))
    primer = F.one_hot(torch.randint(V, (4, 3)), V).double()
    sample = sample_model(model, 10, primer, SoftmaxSampler(one_hot=True, generator=seeded(1)))
    assert sample.tokens.shape == (10, 3, V)
    assert sample.tokens.sum(-1).eq(1).all()
    followed = torch.cat([sample.tokens[1:], sample.next])
    torch.testing.assert_close(
        sample.log_probs, (sample.outputs.log_softmax(-1) * followed).sum(-1)
    )


def test_a_distribution_head_is_sampled_with_its_log_probs():
    model = RecurrentSequential(nn.GRU(1, H), nn.Linear(H, 2))

    def normal(outputs):
        return torch.distributions.Normal(outputs[..., :1], F.softplus(outputs[..., 1:]))

    sample = sample_model(model, 10, torch.randn(4, 3, 1), DistributionSampler(normal))
    followed = torch.cat([sample.tokens[1:], sample.next])
    assert sample.tokens.shape == (10, 3, 1)
    torch.testing.assert_close(sample.log_probs, normal(sample.outputs).log_prob(followed)[..., 0])


def test_the_log_prob_of_an_image_of_classes_is_the_sum_over_its_pixels():
    class Pixels(nn.Module):
        def forward(self, inputs, state=None):
            outputs = torch.stack([inputs, -inputs, 0.5 * inputs], 2).double()
            return outputs, torch.zeros(1, inputs.shape[1], 1)

    sample = sample_model(Pixels(), 5, torch.randint(3, (2, 4, 2, 2)), sample_best)
    followed = torch.cat([sample.tokens[1:], sample.next])
    wanted = -F.cross_entropy(
        sample.outputs.flatten(0, 1), followed.flatten(0, 1), reduction="none"
    )
    torch.testing.assert_close(sample.log_probs, wanted.sum((1, 2)).unflatten(0, (5, 4)))


class OfBytes(nn.Module):
    """A model that takes tokens of any dtype."""

    def __init__(self, classes):
        super().__init__()
        self.inner = RecurrentSequential(
            nn.Embedding(classes, 4), nn.LSTM(4, H), nn.Linear(H, classes)
        )

    def forward(self, tokens, state=None):
        return self.inner(tokens.long(), state)


def greedy(model, primer):
    return sample_model(model, 9, primer, sample_best)


def searched(model, primer):
    return beam_search(model, 9, primer, 3)


@pytest.mark.parametrize("generate", [greedy, searched])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_tokens_of_few_bits_are_generated_like_those_of_64(dtype, generate):
    model, primer = OfBytes(V), torch.randint(V, (4, 3))
    sample, wanted = generate(model, primer.to(dtype)), generate(model, primer)
    assert sample.tokens.dtype == sample.next.dtype == dtype
    assert torch.equal(sample.tokens.long(), wanted.tokens)
    assert torch.equal(sample.log_probs, wanted.log_probs)


def closed(model, primer):
    return rollout(model, primer, Feedback.always(), sample_best)


@pytest.mark.parametrize("generate", [greedy, searched, closed])
def test_a_class_that_the_tokens_cannot_hold_is_refused(generate):
    """256 begins a text of bytes; in a byte it is 0."""
    model = OfBytes(257)
    with torch.no_grad():
        model.inner[2].bias[256] += 100
    with pytest.raises(ValueError, match=r"a draw of 256 for inputs of torch.uint8.*int64"):
        generate(model, torch.zeros(3, 2, dtype=torch.uint8))


def test_a_sampler_that_writes_to_its_logits_changes_no_outputs():
    """As one does that forbids a token."""

    def all_but_0(logits):
        logits[:, 0] = float("-inf")
        return logits.argmax(1)

    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = sample_model(model, 12, primer, all_but_0)
    outputs, _ = model(sample.tokens)
    torch.testing.assert_close(sample.outputs, outputs.detach(), rtol=1e-10, atol=1e-10)
    closed, _ = rollout(model, sample.tokens, Feedback.last(8), all_but_0)
    torch.testing.assert_close(closed, outputs, rtol=1e-10, atol=1e-10)


def test_a_sampler_that_writes_to_what_the_data_has_leaves_the_data_as_it_was():
    def fed(outputs, given):
        given[:, :1] = outputs[:, :1]
        return given

    model, inputs = continuous_model(), torch.randn(9, 3, 2)
    before, future = inputs.clone(), inputs[4:]
    rollout(model, inputs, Feedback.last(5), fed)
    sample_model(model, 9, inputs[:4], fed, future=future)
    forecast(model, 5, inputs[:4], fed, future=future)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_batch_is_its_rows_alone(recurrent):
    model, primer = language_model(recurrent, 2), torch.randint(V, (4, 5))
    together = sample_model(model, 20, primer, wander)
    for row in range(5):
        alone = sample_model(model, 20, primer[:, row : row + 1], wander)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        assert torch.equal(together.next[:, row], alone.next[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_50_and_then_50_more_are_100():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    whole = sample_model(model, 100, primer, SoftmaxSampler(generator=seeded(7)))
    sampler = SoftmaxSampler(generator=seeded(7))
    first = sample_model(model, 50, primer, sampler)
    then = sample_model(model, 50, first.next, sampler, first.state)
    assert torch.equal(torch.cat([first.tokens, then.tokens]), whole.tokens)
    assert torch.equal(then.next, whole.next)
    torch.testing.assert_close(
        torch.cat([first.outputs, then.outputs]), whole.outputs, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        torch.cat([first.log_probs, then.log_probs]), whole.log_probs, rtol=1e-10, atol=1e-10
    )
    assert_state(then.state, whole.state, rtol=1e-10, atol=1e-10)


def test_going_on_works_for_continuous_models_too():
    model, primer = continuous_model(nn.LSTM), torch.randn(4, 3, 2)
    whole, first = sample_model(model, 20, primer), sample_model(model, 9, primer)
    then = sample_model(model, 11, first.next, state=first.state)
    torch.testing.assert_close(
        torch.cat([first.tokens, then.tokens]), whole.tokens, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counting], ids=["packs", "takes tensors only"]
)
@pytest.mark.parametrize("lengths", [[4, 1, 3], [1, 1, 5], [2, 2, 2], [6]], ids=str)
def test_primers_of_different_length_go_on_from_their_own_ends(lengths, wrap):
    model = language_model(layers=2)
    primers = [torch.randint(V, (n,)) for n in lengths]
    total = 12
    together = sample_model(wrap(model), total, batchseq(primers), wander)
    for row, primer in enumerate(primers):
        alone = sample_model(model, total, primer[:, None], wander)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        assert torch.equal(together.next[:, row], alone.next[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_lengths_can_be_given_beside_the_primer():
    model = language_model()
    padded, lengths = batchseq([torch.randint(V, (n,)) for n in (4, 1, 3)])
    paired = sample_model(model, 12, (padded, lengths), wander)
    beside = sample_model(model, 12, padded, wander, lengths=lengths)
    assert torch.equal(paired.tokens, beside.tokens)


def test_a_sample_from_primers_of_different_length_goes_on():
    model = language_model(layers=2)
    primer = batchseq([torch.randint(V, (n,)) for n in (4, 1, 3)])
    whole = sample_model(model, 20, primer, wander)
    first = sample_model(model, 9, primer, wander)
    then = sample_model(model, 11, first.next, wander, first.state)
    assert torch.equal(torch.cat([first.tokens, then.tokens]), whole.tokens)
    assert_state(then.state, whole.state, rtol=1e-10, atol=1e-10)


class Successor(nn.Module):
    """A toy model: after token v comes v + 1. Its state counts the steps of each row."""

    def forward(self, inputs, state=None):
        state = torch.zeros(1, inputs.shape[1], 1) if state is None else state
        return 5 * F.one_hot((inputs + 1) % V, V).double(), state + inputs.shape[0]


def test_each_row_stops_at_its_own_stop_token():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2, 5]]), sample_best, stop=5)
    assert sample.tokens[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.tokens[:4, 1].tolist() == [2, 3, 4, 5]
    assert sample.tokens[4:, 1].eq(5).all(), "a stopped row is filled with its last token"


def test_generation_ends_when_all_rows_have_stopped():
    model = Counting(Successor())
    sample = sample_model(model, 1000, torch.tensor([[0, 2]]), sample_best, stop=5)
    assert sum(model.calls) <= 7
    assert sample.tokens.shape[0] <= 7
    assert sample.tokens[-1].eq(5).all()


def test_the_lengths_of_a_sample_count_the_steps_up_to_the_stop():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2, 4]]), sample_best, stop=5)
    assert sample.lengths.tolist() == [6, 4, 2]
    assert sample.lengths.dtype == torch.int64


def test_stop_may_be_a_question_about_the_tokens():
    sample = sample_model(
        Successor(), 10, torch.tensor([[0, 2]]), sample_best, stop=lambda tokens: tokens >= 4
    )
    assert sample.tokens[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert sample.tokens[:3, 1].tolist() == [2, 3, 4]


def test_without_a_stop_every_row_has_the_whole_length():
    sample = sample_model(Successor(), 10, torch.tensor([[0, 2]]), sample_best)
    assert sample.tokens.shape == (10, 2)
    assert sample.lengths.tolist() == [10, 10]


@pytest.mark.parametrize("primer", [[5, 0], [0, 5], [5]], ids=str)
def test_the_stop_token_in_a_primer_does_not_stop_a_row(primer):
    sample = sample_model(Successor(), 6, torch.tensor(primer)[:, None], sample_best, stop=5)
    then = [(primer[-1] + i + 1) % V for i in range(6 - len(primer))]
    assert sample.tokens[:, 0].tolist() == primer + then


def test_the_stop_token_in_the_longer_of_two_primers_does_not_stop_its_row():
    primers = batchseq([torch.tensor([0]), torch.tensor([3, 5, 6])])
    sample = sample_model(Successor(), 8, primers, sample_best, stop=5)
    assert sample.tokens[:, 1].tolist() == [3, 5, 6, 0, 1, 2, 3, 4]
    assert sample.lengths.tolist() == [6, 8]


def test_log_probs_count_the_stop_token_and_nothing_after_it():
    primer = torch.tensor([[0, 2, 4]])
    whole = sample_model(Successor(), 10, primer, sample_best)
    stopped = sample_model(Successor(), 10, primer, sample_best, stop=5)
    for row, length in enumerate([6, 4, 2]):
        torch.testing.assert_close(
            stopped.log_probs[: length - 1, row], whole.log_probs[: length - 1, row]
        )
        assert stopped.log_probs[: length - 1, row].ne(0).all()
        assert stopped.log_probs[length - 1 :, row].eq(0).all()


def test_a_row_that_does_not_stop_keeps_its_last_log_prob():
    sample = sample_model(Successor(), 4, torch.tensor([[0, 3]]), sample_best, stop=5)
    assert sample.lengths.tolist() == [4, 3]
    assert sample.log_probs.ne(0).T.tolist() == [[True] * 4, [True, True, False, False]]


def test_what_follows_a_row_that_has_stopped_is_its_stop_token():
    sample = sample_model(Successor(), 4, torch.tensor([[0, 3]]), sample_best, stop=5)
    assert sample.next.tolist() == [[4, 5]]


def test_the_draw_after_the_last_step_is_checked_too():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3, 3\).*sampler.*\(3, 2\)"):
        sample_model(model, 4, torch.zeros(4, 3, 2))


def test_tokens_of_a_model_without_classes_have_no_log_probs():
    def counting(tokens, state=None):
        return tokens + 0.75, torch.zeros(1, tokens.shape[1], 1)

    sample = sample_model(
        counting, 4, torch.tensor([[0, 2]]), lambda outputs: outputs.round().long()
    )
    assert sample.tokens.T.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert sample.log_probs is None


@pytest.mark.parametrize("training", [True, False])
def test_dropout_sleeps_while_sampling_and_the_mode_comes_back(training):
    model = RecurrentSequential(
        nn.Embedding(V, 4), nn.LSTM(4, H), nn.Dropout(0.5), nn.Linear(H, V)
    ).train(training)
    primer = torch.randint(V, (4, 3))
    first, again = sample_model(model, 20, primer, wander), sample_model(model, 20, primer, wander)
    assert torch.equal(first.outputs, again.outputs)
    assert all(module.training == training for module in model.modules())


def test_a_member_frozen_in_eval_mode_stays_frozen():
    model = RecurrentSequential(nn.LSTM(2, H), nn.Dropout(0.5), nn.Linear(H, 2)).train()
    model[1].eval()
    sample_model(model, 5, torch.randn(2, 3, 2))
    assert model.training
    assert not model[1].training


def test_the_mode_comes_back_after_an_error_too():
    model = continuous_model().train()
    with pytest.raises(ValueError, match="sampler"):
        sample_model(model, 5, torch.randn(2, 3, 2), sampler=lambda outputs: outputs[:, :1])
    assert model.training


def test_the_backend_switches_are_as_before():
    before = (torch.backends.mkldnn.enabled, torch.is_grad_enabled(), torch.get_rng_state())
    sample_model(language_model(), 10, torch.randint(V, (2, 3)), wander)
    assert torch.backends.mkldnn.enabled == before[0]
    assert torch.is_grad_enabled() == before[1]


# The future as the data has it: covariates.


def covariate_model(fed=1, covariates=2):
    """Features and covariates in, the next features out."""
    return RecurrentSequential(nn.LSTM(fed + covariates, H), nn.Linear(H, fed))


def with_future_by_hand(model, primer, future, sampler):
    """The referee: one call a step, each input the sampler's features before the data's covariates."""
    known, tokens, outputs, state = [*primer, *future], [], [], None
    with torch.no_grad():
        for t, x in enumerate(known):
            if t >= len(primer):
                drawn = sampler(outputs[-1])
                x = torch.cat([drawn, x[:, drawn.shape[1] :]], 1)
            out, state = model(x[None], state)
            tokens.append(x)
            outputs.append(out[0])
    return torch.stack(tokens), torch.stack(outputs), state


def test_the_future_is_read_where_the_sampler_keeps_it_and_nowhere_else():
    model, data = covariate_model(), torch.randn(12, 3, 3)
    data[5:, :, 0] = math.nan  # the fed feature is not known of the future
    sample = sample_model(model, 12, data[:5], with_covariates(identity, 1), future=data[5:])
    tokens, outputs, state = with_future_by_hand(model, data[:5], data[5:], identity)
    torch.testing.assert_close(sample.tokens, tokens)
    torch.testing.assert_close(sample.outputs, outputs)
    assert_state(sample.state, state)
    assert torch.equal(sample.tokens[5:, :, 1:], data[5:, :, 1:])


@pytest.mark.parametrize("lengths", [[4, 1, 3], [1, 1, 5], [2, 2, 2], [6]], ids=str)
def test_after_primers_of_different_length_the_future_begins_at_each_row_s_own_end(lengths):
    model, length, sampler = covariate_model(), 9, with_covariates(identity, 1)
    rows = [torch.randn(length, 3) for _ in lengths]
    primer = batchseq([row[:n] for row, n in zip(rows, lengths, strict=True)], pad=99.0)
    future, _ = batchseq([row[n:] for row, n in zip(rows, lengths, strict=True)], pad=99.0)
    together = sample_model(model, length, primer, sampler, future=future)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone = sample_model(model, length, row[:n, None], sampler, future=row[n:, None])
        torch.testing.assert_close(together.tokens[:, i], alone.tokens[:, 0])
        torch.testing.assert_close(together.outputs[:, i], alone.outputs[:, 0])
        assert torch.equal(alone.tokens[:, 0, 1:], row[:, 1:])


def test_a_sampler_is_given_the_step_that_it_feeds():
    seen = []

    def look(outputs, given):
        seen.append(given)
        return outputs

    model, primer, future = continuous_model(), torch.randn(4, 3, 2), torch.randn(6, 3, 2)
    sample_model(model, 10, primer, look, future=future)
    assert torch.equal(torch.stack(seen), future)


def test_what_comes_next_is_drawn_where_the_future_has_a_step_for_it():
    model, data = covariate_model(), torch.randn(9, 3, 3)
    sampler = with_covariates(identity, 1)
    short = sample_model(model, 8, data[:4], sampler, future=data[4:8])
    more = sample_model(model, 8, data[:4], sampler, future=data[4:])
    assert short.next is None
    assert torch.equal(more.next[0], sampler(more.outputs[-1], data[8]))
    assert torch.equal(short.tokens, more.tokens)
    then = sample_model(model, 1, more.next, sampler, more.state)
    assert torch.equal(then.tokens, more.next)


def test_the_log_probs_of_a_forecast_are_those_of_what_was_fed():
    def normal(outputs):
        return torch.distributions.Normal(outputs[..., :1], F.softplus(outputs[..., 1:]))

    model = RecurrentSequential(nn.GRU(3, H), nn.Linear(H, 2))
    sampler, data = with_covariates(DistributionSampler(normal), 1), torch.randn(9, 3, 3)
    sample = sample_model(model, 8, data[:4], sampler, future=data[4:8])
    wanted = normal(sample.outputs[:-1]).log_prob(sample.tokens[1:, :, :1])[..., 0]
    torch.testing.assert_close(sample.log_probs[:-1], wanted)
    assert sample.log_probs[-1].eq(0).all(), "nothing follows"
    more = sample_model(model, 8, data[:4], sampler, future=data[4:])
    assert more.log_probs.ne(0).all()


def test_a_sampler_that_may_see_the_data_is_not_given_padding():
    def gentle(outputs, given=None):
        return outputs if given is None else 0 * outputs

    model = continuous_model()
    primer = batchseq([torch.randn(n, 2) for n in (4, 1)])
    found = sample_model(model, 8, primer, gentle)
    assert torch.equal(found.tokens, sample_model(model, 8, primer).tokens)
    future = torch.zeros(7, 2, 2)
    held = sample_model(model, 8, primer, gentle, future=future)
    assert held.tokens[4:].eq(0).all()


def test_rows_stop_with_a_future_too():
    def counting(inputs, state=None):
        return inputs[..., :1] + 1, torch.zeros(1, inputs.shape[1], 1)

    data = torch.tensor([[[0.0, 9], [2, 9]]] + [[[-1.0, t], [-1, t]] for t in range(9)])
    sample = sample_model(
        counting,
        10,
        data[:1],
        with_covariates(identity, 1),
        future=data[1:],
        stop=lambda tokens: tokens[:, 0] >= 4,
    )
    assert sample.lengths.tolist() == [5, 3]
    assert sample.tokens[:, 0].tolist() == [[0, 9], [1, 0], [2, 1], [3, 2], [4, 3]]
    assert sample.tokens[:, 1].tolist() == [[2, 9], [3, 0], [4, 1], [4, 1], [4, 1]]


# Dicts of inputs and outputs.


class TwoHeads(nn.Module):
    """Tokens and numbers in, logits and numbers out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(V, 3), nn.LSTM(5, H)
        self.logits, self.level = nn.Linear(H, V), nn.Linear(H, 2)

    def forward(self, inputs, state=None):
        hidden, state = self.rnn(
            torch.cat([self.embedding(inputs["token"]), inputs["level"]], 2), state
        )
        return {"logits": self.logits(hidden), "level": self.level(hidden)}, state


def both_heads(outputs):
    return {"level": outputs["level"], "token": wander(outputs["logits"])}


def two_inputs(time, batch):
    return {"token": torch.randint(V, (time, batch)), "level": torch.randn(time, batch, 2)}


def test_a_dict_of_inputs_and_outputs_is_sampled_like_the_loop_by_hand():
    model, primer = TwoHeads(), two_inputs(4, 3)
    sample = sample_model(model, 9, primer, both_heads)
    inputs, state = {name: part[:1] for name, part in primer.items()}, None
    with torch.no_grad():
        for t in range(9):
            outputs, state = model(inputs, state)
            for name, part in outputs.items():
                torch.testing.assert_close(sample.outputs[name][t], part[0])
            for name, part in inputs.items():
                torch.testing.assert_close(sample.tokens[name][t], part[0])
            drawn = both_heads({name: part[0] for name, part in outputs.items()})
            inputs = {
                name: part[t + 1][None] if t < 3 else drawn[name][None]
                for name, part in primer.items()
            }
    assert_state(sample.state, state)
    assert torch.equal(sample.next["token"], inputs["token"])
    assert sample.log_probs is None


def test_a_dict_of_primers_of_different_length_is_each_row_alone():
    model, whole, lengths = TwoHeads(), two_inputs(4, 2), [4, 2]
    together = sample_model(model, 9, whole, both_heads, lengths=torch.tensor(lengths))
    for i, n in enumerate(lengths):
        primer = {name: part[:n, i : i + 1] for name, part in whole.items()}
        alone = sample_model(model, 9, primer, both_heads)
        for name in whole:
            torch.testing.assert_close(together.tokens[name][:, i], alone.tokens[name][:, 0])


def test_in_a_dict_the_covariates_are_the_inputs_that_are_not_fed():
    model, data = TwoHeads(), two_inputs(9, 3)
    sampler = with_covariates(lambda outputs: wander(outputs["logits"]), "token")
    primer, future = ({n: p[a:b] for n, p in data.items()} for a, b in ((0, 4), (4, 9)))
    sample = sample_model(model, 9, primer, sampler, future=future)
    assert torch.equal(sample.tokens["level"], data["level"])
    drawn = wander(sample.outputs["logits"].flatten(0, 1)).unflatten(0, (9, 3))
    assert torch.equal(sample.tokens["token"][4:], drawn[3:-1])
    again, _ = model(sample.tokens)
    torch.testing.assert_close(sample.outputs["logits"], again["logits"].detach())


def test_a_dict_stops_by_a_function():
    model = TwoHeads()
    sample = sample_model(
        model, 50, two_inputs(2, 3), both_heads, stop=lambda tokens: tokens["token"] < 4
    )
    for i, n in enumerate(sample.lengths.tolist()):
        assert sample.tokens["token"][2 : n - 1, i].ge(4).all()
        assert sample.tokens["token"][n - 1 :, i].eq(sample.tokens["token"][n - 1, i]).all()
        assert sample.tokens["level"][n - 1 :, i].eq(sample.tokens["level"][n - 1, i]).all()


# What log-probabilities there are.


def test_a_regression_to_whole_numbers_has_no_log_probs():
    """One output is no distribution over one class, and two are none over two."""

    def counts(tokens, state=None):
        return (tokens + 1.0).unsqueeze(2), torch.zeros(1, tokens.shape[1], 1)

    def mean_and_scale(tokens, state=None):
        return torch.stack([tokens % 2 + 0.0, tokens + 1.0], 2), torch.zeros(1, tokens.shape[1], 1)

    primer = torch.tensor([[0, 1]])
    for model in (counts, mean_and_scale):
        sample = sample_model(model, 5, primer, lambda outputs: outputs[:, 0].round().long())
        assert sample.log_probs is None


def test_a_function_of_one_s_own_says_that_it_draws_classes():
    def argmax(outputs):
        return outputs.argmax(1)

    model, primer = language_model(), torch.randint(V, (4, 3))
    assert sample_model(model, 9, primer, argmax).log_probs is None
    argmax.classes = True
    found = sample_model(model, 9, primer, argmax).log_probs
    torch.testing.assert_close(found, sample_model(model, 9, primer, sample_best).log_probs)


def test_a_token_of_the_primer_that_is_no_class_cannot_follow():
    model = RecurrentSequential(nn.Embedding(V + 1, 4), nn.GRU(4, H), nn.Linear(H, V))
    sample = sample_model(model, 6, torch.tensor([[1], [V], [2]]), sample_best)
    assert sample.log_probs[0].eq(-math.inf).all()
    assert sample.log_probs[1:].isfinite().all()


def test_a_class_that_is_ruled_out_leaves_the_log_probs_of_one_hot_rows_finite():
    class Masked(nn.Module):
        def forward(self, inputs, state=None):
            logits = inputs.roll(1, 2).masked_fill(torch.arange(V) == 3, -math.inf)
            return logits, torch.zeros(1, inputs.shape[1], 1)

    primer = F.one_hot(torch.tensor([[0, 5]]), V).double()
    sample = sample_model(Masked(), 6, primer, SoftmaxSampler(one_hot=True, generator=seeded(1)))
    assert sample.log_probs.isfinite().all()


def test_log_probs_are_made_in_single_precision():
    model = language_model().bfloat16()
    sample = sample_model(model, 9, torch.randint(V, (4, 3)), sample_best)
    assert sample.outputs.dtype == torch.bfloat16
    assert sample.log_probs.dtype == torch.float32


# Where it ends, and what it costs.


def test_a_stop_long_before_the_length_costs_nothing_in_advance():
    sample = sample_model(Successor(), 10**13, torch.tensor([[0, 2]]), sample_best, stop=5)
    assert sample.lengths.tolist() == [6, 4]


def test_sampling_works_whatever_the_default_device_is():
    model, primer = language_model(), batchseq([torch.randint(V, (n,)) for n in (3, 1)])
    numbers, future = covariate_model(), torch.randn(6, 2, 3)
    ragged = (torch.randn(3, 2, 3), torch.tensor([3, 1]))
    sampler = with_covariates(identity, 1)

    def draw():
        tokens = sample_model(model, 7, primer, sample_best, stop=0).tokens
        paths = forecast(numbers, 5, ragged, sampler, future=future, paths=2)
        return tokens, sample_model(numbers, 7, ragged, sampler, future=future).tokens, paths

    wanted = draw()
    torch.set_default_device("meta")
    try:
        found = draw()
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, wanted))


class Learned(nn.Module):
    """A model whose first state is learned."""

    def __init__(self):
        super().__init__()
        self.rnn, self.start = nn.GRU(2, H), nn.Parameter(torch.randn(1, 1, H))
        self.out = nn.Linear(H, 2)

    def initial_state(self, batch_size):
        return self.start.expand(1, batch_size, H).contiguous()

    def forward(self, inputs, state=None):
        state = self.initial_state(inputs.shape[1]) if state is None else state
        hidden, state = self.rnn(inputs, state)
        return self.out(hidden), state


@pytest.mark.parametrize("draw", ["sample_model", "forecast"])
def test_a_learned_first_state_is_that_of_each_row(draw):
    model, primers = Learned(), [torch.randn(n, 2) for n in (4, 1, 3)]

    def run(primer, n):
        if draw == "forecast":
            return forecast(model, 5, primer)[:, :, 0]
        return sample_model(model, 9, primer).tokens[:, :]

    together = run(batchseq(primers), 9)
    for i, primer in enumerate(primers):
        torch.testing.assert_close(together[:, i], run(primer[:, None], 9)[:, 0])


# forecast


def gaussian(outputs):
    return torch.distributions.Normal(outputs[..., :1], F.softplus(outputs[..., 1:]))


def test_what_a_model_writes_to_its_inputs_is_not_what_it_was_fed():
    model, primer = nn.GRU(2, 2), torch.randn(5, 3, 2)
    before = primer.clone()
    tokens = [primer]
    outputs, state = model((primer - 1) * 2)
    for _ in range(4):
        tokens.append(outputs[-1:])
        outputs, state = model((tokens[-1] - 1) * 2, state)
    wanted = torch.cat(tokens).detach()
    torch.testing.assert_close(sample_model(Scaling(model), 9, primer).tokens, wanted)
    torch.testing.assert_close(forecast(Scaling(model), 4, primer)[:, :, 0], wanted[5:])
    assert torch.equal(primer, before)


@pytest.mark.parametrize("paths", [1, 4])
def test_the_paths_of_a_forecast_are_rows_of_sample_model_under_the_same_generator(paths):
    model, primer = language_model(layers=2), torch.randint(V, (5, 3))
    found = forecast(model, 8, primer, SoftmaxSampler(generator=seeded(3)), paths=paths)
    rows = primer.repeat_interleave(paths, 1)
    sample = sample_model(model, 5 + 8, rows, SoftmaxSampler(generator=seeded(3)))
    assert found.shape == (8, 3, paths)
    assert torch.equal(found.flatten(1), sample.tokens[5:])


class Thinned(nn.Module):
    """Monte Carlo dropout: it draws in evaluation mode, too."""

    def forward(self, inputs):
        return F.dropout(inputs, 0.5)


def test_paths_of_a_model_that_draws_itself_begin_as_one_and_repeated_rows_do_not():
    model = RecurrentSequential(nn.GRU(1, 8), Thinned(), nn.Linear(8, 1))
    primer = torch.randn(5, 1, 1)
    paths = forecast(model, 3, primer, paths=20)[:, 0, :, 0]  # (3, paths)
    assert (paths[0] == paths[0, 0]).all()
    assert len(paths[1].unique()) > 1
    repeated = forecast(model, 3, primer.repeat_interleave(20, 1))[:, :, 0, 0]
    assert len(repeated[0].unique()) > 1


def test_the_paths_of_numbers_are_rows_of_sample_model_too():
    model = RecurrentSequential(nn.LSTM(1, H), nn.Linear(H, 2))
    primer, sampler = torch.randn(5, 3, 1), DistributionSampler(gaussian)
    torch.manual_seed(4)
    found = forecast(model, 8, primer, sampler, paths=6)
    torch.manual_seed(4)
    sample = sample_model(model, 5 + 7, primer.repeat_interleave(6, 1), sampler)
    assert found.shape == (8, 3, 6, 1)
    torch.testing.assert_close(found.flatten(1, 2)[:-1], sample.tokens[5:])
    torch.testing.assert_close(found.flatten(1, 2)[-1], sample.next[0])


def test_a_forecast_keeps_the_covariates_of_the_future():
    model = RecurrentSequential(nn.LSTM(3, H), nn.Linear(H, 2))
    data, sampler = torch.randn(11, 3, 3), with_covariates(DistributionSampler(gaussian), 1)
    torch.manual_seed(4)
    found = forecast(model, 6, data[:5], sampler, paths=4, future=data[5:])
    torch.manual_seed(4)
    rows = data.repeat_interleave(4, 1)
    sample = sample_model(model, 11, rows[:5], sampler, future=rows[5:])
    torch.testing.assert_close(found.flatten(1, 2), sample.tokens[5:])
    assert torch.equal(found[..., 1:], data[5:, :, None, 1:].expand(6, 3, 4, 2))


@pytest.mark.parametrize("n", [6, 1])  # more steps than the longest row is ahead, and fewer
def test_a_forecast_of_sequences_of_different_length_goes_on_from_each_row_s_own_end(n):
    model, sampler = covariate_model(), with_covariates(identity, 1)
    rows = [torch.randn(own + n, 3) for own in (4, 1, 3)]
    primer = batchseq([row[:-n] for row in rows], pad=99.0)
    future = torch.stack([row[-n:] for row in rows], 1)
    found = forecast(model, n, primer, sampler, future=future, paths=2)
    beside = forecast(model, n, primer[0], sampler, future=future, lengths=primer[1])
    for i, row in enumerate(rows):
        alone = forecast(model, n, row[:-n, None], sampler, future=row[-n:, None])
        torch.testing.assert_close(found[:, i], alone.expand(n, 1, 2, 3)[:, 0])
        torch.testing.assert_close(beside[:, i], alone[:, 0])


def test_a_forecast_reads_the_primer_once_and_consumes_all_draws_but_the_last():
    model = Counting(continuous_model())
    forecast(model, 8, torch.randn(5, 3, 2), paths=10)
    assert model.calls == [5] + [1] * 7


def test_a_forecast_of_one_step_is_one_call():
    model = Counting(continuous_model())
    found = forecast(model, 1, torch.randn(5, 3, 2))
    assert model.calls == [5]
    assert found.shape == (1, 3, 1, 2)


def test_a_forecast_goes_on_from_a_state():
    model, data = continuous_model(nn.LSTM), torch.randn(9, 3, 2)
    _, state = model(data[:4])
    found = forecast(model, 6, data[4:], state=state)
    torch.testing.assert_close(found, forecast(model, 6, data))


def test_a_forecast_of_a_dict_is_a_dict():
    model, primer = TwoHeads(), two_inputs(4, 3)
    found = forecast(model, 5, primer, both_heads, paths=2)
    sample = sample_model(model, 9, primer, both_heads)
    assert found["token"].shape == (5, 3, 2)
    assert found["level"].shape == (5, 3, 2, 2)
    for path in range(2):
        assert torch.equal(found["token"][:, :, path], sample.tokens["token"][4:])


def test_a_forecast_has_no_gradient_and_leaves_the_mode():
    model = continuous_model().train()
    assert not forecast(model, 5, torch.randn(4, 3, 2, requires_grad=True)).requires_grad
    assert model.training
