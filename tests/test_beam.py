"""Beam search, against all sequences scored one after the other."""

import itertools
import math

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import Counting, assert_state, language_model, leaves, seeded
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    RecurrentSequential,
    beam_search,
    sample_best,
    sample_model,
)

pytestmark = pytest.mark.usefixtures("in_double_precision", "quick_and_plain_steps")


class Markov(nn.Module):
    """A toy model whose next logits depend on the last two tokens; the state holds the one before the last."""

    def __init__(self, classes, seed):
        super().__init__()
        self.classes = classes
        self.table = 2 * torch.randn(classes + 1, classes, classes, generator=seeded(seed))

    def forward(self, inputs, state=None):
        before = torch.full((1, inputs.shape[1]), self.classes) if state is None else state
        outputs = []
        for tokens in inputs:
            outputs.append(self.table[before[0], tokens])
            before = tokens[None]
        return torch.stack(outputs), before


def score(model, start, sequence):
    """Log-probability the model gives to `sequence` after `start`."""
    tokens = torch.tensor([start, *sequence])[:, None]
    log_probs = model(tokens)[0][:-1, 0].log_softmax(-1)
    return float(log_probs.gather(1, tokens[1:]).sum())


def best_of_all(model, start, count):
    """The most likely of all sequences of `count` classes, one scored after the other."""
    sequences = itertools.product(range(model.classes), repeat=count)
    return max(sequences, key=lambda sequence: score(model, start, sequence))


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_as_wide_as_the_square_of_the_classes_finds_the_best_of_all_sequences_of_length_3(
    seed,
):
    model, starts = Markov(4, seed), torch.arange(4)
    sample = beam_search(model, 4, starts[None], width=4**2)
    for row, start in enumerate(starts.tolist()):
        best = best_of_all(model, start, 3)
        assert sample.tokens[1:, row].tolist() == list(best)
        assert sample.log_probs[:3, row].sum().item() == pytest.approx(score(model, start, best))


def test_the_best_sequence_is_not_always_the_greedy_one():
    """Without this the test above would hold for greedy search too."""
    starts = torch.arange(4)[None]
    greedy = [sample_model(Markov(4, seed), 4, starts, sample_best).tokens for seed in range(8)]
    best = [[best_of_all(Markov(4, seed), start, 3) for start in range(4)] for seed in range(8)]
    assert [[tuple(row.tolist()) for row in tokens[1:].T] for tokens in greedy] != best


def test_a_beam_of_width_1_is_sample_best():
    model, primer = language_model(layers=2), torch.randint(V, (4, 3))
    beam, greedy = (
        beam_search(model, 15, primer, width=1),
        sample_model(model, 15, primer, sample_best),
    )
    assert torch.equal(beam.tokens, greedy.tokens)
    assert torch.equal(beam.next, greedy.next)
    torch.testing.assert_close(beam.outputs, greedy.outputs)
    torch.testing.assert_close(beam.log_probs, greedy.log_probs)
    assert_state(beam.state, greedy.state)


def test_an_exact_beam_is_never_less_likely_than_greedy():
    model, primer = Markov(4, 1), torch.tensor([[2, 0, 1]])
    greedy, wide = (
        beam_search(model, 4, primer, width=width).log_probs[:-1].sum(0) for width in (1, 16)
    )
    assert (wide >= greedy - 1e-12).all()


def test_a_batch_of_beams_is_its_rows_alone():
    model, primer = language_model(), torch.randint(V, (4, 3))
    with torch.no_grad():
        model[-1].weight.mul_(30)
    together = beam_search(model, 10, primer, width=3)
    for row in range(3):
        alone = beam_search(model, 10, primer[:, row : row + 1], width=3)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])
        torch.testing.assert_close(together.outputs[:, row], alone.outputs[:, 0])
        torch.testing.assert_close(together.log_probs[:, row], alone.log_probs[:, 0])


def test_the_outputs_of_the_best_beam_answer_its_tokens():
    model, primer = language_model(nn.GRU, 2), torch.randint(V, (4, 3))
    sample = beam_search(model, 10, primer, width=3)
    outputs, state = model(sample.tokens)
    torch.testing.assert_close(sample.outputs, outputs.detach())
    assert_state(sample.state, [leaf.detach() for leaf in leaves(state)])


def test_a_beam_has_no_gradient():
    sample = beam_search(language_model(), 10, torch.randint(V, (4, 3)), width=3)
    assert not any(
        x.requires_grad for x in [sample.outputs, sample.log_probs, *leaves(sample.state)]
    )


@pytest.mark.parametrize("training", [True, False])
def test_dropout_sleeps_in_a_beam_search_and_the_mode_comes_back(training):
    model = RecurrentSequential(
        nn.Embedding(V, 4), nn.LSTM(4, H), nn.Dropout(0.5), nn.Linear(H, V)
    ).train(training)
    primer = torch.randint(V, (4, 3))
    sample = beam_search(model, 10, primer, width=3)
    assert all(module.training == training for module in model.modules())
    torch.testing.assert_close(sample.outputs, model.eval()(sample.tokens)[0].detach())


def test_a_beam_that_has_stopped_keeps_its_score():
    """Class 0 ends a sequence. Ending at once has probability 0.6; going on, every next token has at most 0.5."""

    class Ending(nn.Module):
        def forward(self, inputs, state=None):
            first = state is None
            row = torch.tensor([0.6, 0.4, 1e-9]) if first else torch.tensor([1e-9, 0.5, 0.5])
            outputs = row.log().expand(inputs.shape[0], inputs.shape[1], 3)
            return outputs, torch.ones(1, inputs.shape[1], 1)

    sample = beam_search(Ending(), 5, torch.tensor([[1]]), width=3, stop=0)
    assert sample.tokens[1:, 0].eq(0).all()
    assert sample.lengths.tolist() == [2]
    assert sample.log_probs.sum().item() == pytest.approx(math.log(0.6))


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_search_with_a_stop_is_the_search_over_lists_of_candidates(seed, width):
    model = Markov(4, seed)
    sample = beam_search(model, 7, torch.arange(4)[None], width=width, stop=0)
    for row in range(4):
        beams = [()]
        for _ in range(6):
            grown = [(*beam, v) for beam in beams if beam[-1:] != (0,) for v in range(4)]
            beams = [beam for beam in beams if beam[-1:] == (0,)] + grown
            beams = sorted(beams, key=lambda beam, row=row: score(model, row, beam), reverse=True)[
                :width
            ]
        assert tuple(sample.tokens[1 : 1 + len(beams[0]), row].tolist()) == beams[0]
        assert sample.lengths[row] == 1 + len(beams[0])


class Counter(nn.Module):
    """Sure of the class that follows the one it read."""

    def forward(self, inputs, state=None):
        return 5 * F.one_hot((inputs + 1) % V, V).to(torch.float64), torch.zeros(
            1, inputs.shape[1], 1
        )


@pytest.mark.parametrize("stop", [5, 0, V, None])
def test_a_beam_of_width_1_is_sample_best_where_rows_stop_and_where_none_can(stop):
    primer = torch.tensor([[0, 3]])
    greedy = sample_model(Counter(), 4, primer, sample_best, stop=stop)
    beam = beam_search(Counter(), 4, primer, 1, stop=stop)
    assert torch.equal(beam.tokens, greedy.tokens)
    assert torch.equal(beam.next, greedy.next)
    assert torch.equal(beam.lengths, greedy.lengths)
    torch.testing.assert_close(beam.log_probs, greedy.log_probs)


def test_a_beam_search_ends_when_every_candidate_has_stopped():
    class Stopping(nn.Module):
        def forward(self, inputs, state=None):
            outputs = torch.tensor([0.0, -torch.inf]).expand(*inputs.shape, 2)
            return outputs, torch.ones(1, inputs.shape[1], 1)

    sample = beam_search(Counting(Stopping()), 1000, torch.tensor([[1, 1]]), width=1, stop=0)
    assert sample.tokens.tolist() == [[1, 1], [0, 0]]
    assert sample.lengths.tolist() == [2, 2]


def test_a_beam_search_of_the_primer_alone_draws_the_next_token_only():
    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = beam_search(model, 4, primer, width=3)
    assert torch.equal(sample.tokens, primer)
    assert torch.equal(sample.next[0], model(primer)[0][-1].argmax(1))
