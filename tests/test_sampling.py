"""The future after a primer: sample_model and forecast, against a loop written out by hand."""

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import Counting, assert_state, continuous_model, language_model, leaves, seeded, wander
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    DistributionSampler,
    RecurrentSequential,
    Sample,
    SoftmaxSampler,
    batchseq,
    sample_best,
    sample_model,
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
