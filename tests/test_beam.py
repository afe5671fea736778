"""Beam search, against all sequences scored one after the other."""

import itertools
import math

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import Counting, assert_state, few, language_model, leaves, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rnnkit import (
    RecurrentSequential,
    batchseq,
    beam_search,
    sample_best,
    sample_model,
)
from rnnkit.generation import beam

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


def test_tokens_that_a_model_writes_over_are_those_that_were_drawn():
    class Shifted(nn.Module):
        def forward(self, inputs, state=None):
            outputs, state = model(inputs.clone(), state)
            inputs += 1
            return outputs, state

    model, primer = language_model(), torch.randint(V, (4, 3))
    wanted = beam_search(model, 10, primer, width=3)
    assert torch.equal(beam_search(Shifted(), 10, primer, width=3).tokens, wanted.tokens)


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


# What is ranked: all that can follow, written out.


def continuations(model, start, count, stop):
    """Every sequence of at most `count` classes that ends with `stop` or has `count`."""
    done, going = [], [()]
    for _ in range(count):
        grown = [(*s, v) for s in going for v in range(model.classes)]
        done += [s for s in grown if s[-1] == stop]
        going = [s for s in grown if s[-1] != stop]
    return done + going


def ranked(model, start, count, stop, penalty):
    """All of them with their ranks, the best first."""
    found = [
        (score(model, start, s) / len(s) ** penalty, s)
        for s in continuations(model, start, count, stop)
    ]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("stop", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_enough_beam_finds_the_best_few_of_all_sequences(seed, stop, penalty):
    model, best = Markov(3, seed), 5
    starts = torch.arange(3)[None]
    sample = beam_search(model, 5, starts, width=3**4, stop=stop, length_penalty=penalty, best=best)
    for row in range(3):
        wanted = ranked(model, row, 4, stop, penalty)[:best]
        for place, (rank, sequence) in enumerate(wanted):
            i = row * best + place
            length = int(sample.lengths[i])
            assert tuple(sample.tokens[1:length, i].tolist()) == sequence
            assert sample.scores[row, place].item() == pytest.approx(rank)
            drawn = sample.log_probs[: length - 1, i].sum().item()
            assert drawn / len(sequence) ** penalty == pytest.approx(rank)


def test_a_penalty_of_the_length_changes_what_is_found():
    """Without this the test above would hold if the penalty were not read."""
    found = set()
    for penalty in (0.0, 1.0, 2.0):
        sample = beam_search(
            Markov(3, 1), 5, torch.arange(3)[None], 81, stop=0, length_penalty=penalty
        )
        found.add(tuple(sample.lengths.tolist()))
    assert len(found) > 1


@few
@given(
    seed=st.integers(0, 9999),
    width=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 0.5, 1.0, 3.0, -1.0]),
    best=st.integers(1, 6),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_a_search_that_ends_early_finds_what_the_whole_search_finds(
    seed, width, penalty, best, lengths
):
    model, best = Markov(4, seed), min(best, width)
    primer = batchseq([torch.randint(4, (n,), generator=seeded(seed + n)) for n in lengths])
    options = {"stop": 0, "length_penalty": penalty, "best": best}
    early = beam_search(model, 12, primer, width, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam._Search, "is_decided", lambda search, beams: False)
        whole = beam_search(model, 12, primer, width, **options)
    torch.testing.assert_close(early.scores, whole.scores)
    time = len(early.tokens)
    for i in range(len(lengths) * best):
        if early.scores.flatten()[i].isfinite():
            assert early.lengths[i] == whole.lengths[i]
            assert torch.equal(early.tokens[:, i], whole.tokens[:time, i])
            assert torch.equal(early.next[:, i], whole.next[:, i])


def test_a_search_ends_when_nothing_can_win_any_more():
    class Ending(nn.Module):
        """Ends with probability 0.9 at every step."""

        def forward(self, inputs, state=None):
            outputs = torch.tensor([0.9, 0.1]).log().expand(*inputs.shape, 2)
            return outputs, torch.ones(1, inputs.shape[1], 1)

    model = Counting(Ending())
    sample = beam_search(model, 1000, torch.tensor([[1, 1]]), width=3, stop=0)
    assert sample.tokens.tolist() == [[1, 1], [0, 0]]
    assert len(model.calls) == 2

    # With a reward for length a longer one may still come first: only its end tells.
    model = Counting(Ending())
    beam_search(model, 50, torch.tensor([[1]]), width=3, stop=0, length_penalty=1.0)
    assert len(model.calls) > 2


def test_the_best_few_go_on_as_rows_of_a_batch():
    model, primer = language_model(), torch.randint(V, (4, 3))
    sample = beam_search(model, 9, primer, width=4, best=2)
    assert sample.tokens.shape == (9, 6)
    assert sample.scores.shape == (3, 2)
    assert (sample.scores[:, 0] >= sample.scores[:, 1]).all()
    assert torch.equal(sample.tokens[:4], primer.repeat_interleave(2, 1))
    outputs, state = model(sample.tokens)
    torch.testing.assert_close(sample.outputs, outputs.detach())
    assert_state(sample.state, [leaf.detach() for leaf in leaves(state)])
    then = sample_model(model, 3, sample.next, sample_best, sample.state)
    assert then.tokens.shape == (3, 6)


def test_the_first_of_the_best_few_is_the_best():
    primer = torch.tensor([[2, 0, 1]])
    one = beam_search(Markov(4, 1), 8, primer, width=5, stop=3)
    few_of_them = beam_search(Markov(4, 1), 8, primer, width=5, stop=3, best=5)
    time = len(one.tokens)
    assert torch.equal(few_of_them.tokens[:time, ::5], one.tokens)
    torch.testing.assert_close(few_of_them.scores[:, :1], one.scores)


def test_a_candidate_that_does_not_exist_has_the_score_of_minus_infinity():
    sample = beam_search(Markov(2, 0), 2, torch.tensor([[0]]), width=4, best=4)
    assert sample.scores.isfinite().tolist() == [[True, True, False, False]]
    sample = beam_search(Markov(2, 0), 1, torch.tensor([[0]]), width=4, best=3)
    assert sample.scores.isfinite().tolist() == [[True, False, False]]


@pytest.mark.parametrize("stop", [None, 0])
@pytest.mark.parametrize("lengths", [[4, 1, 3], [1, 1, 5], [2, 2], [6]], ids=str)
def test_primers_of_different_length_are_searched_from_their_own_ends(lengths, stop):
    model = Markov(5, 3)
    primers = [torch.randint(5, (n,)) for n in lengths]
    options = {"stop": stop, "best": 2, "length_penalty": 0.5}
    together = beam_search(model, 9, batchseq(primers), 4, **options)
    for row, primer in enumerate(primers):
        alone = beam_search(model, 9, primer[:, None], 4, **options)
        time = len(alone.tokens)
        for place in range(2):
            i = 2 * row + place
            assert torch.equal(together.tokens[:time, i], alone.tokens[:, place])
            assert torch.equal(together.next[:, i], alone.next[:, place])
        torch.testing.assert_close(together.scores[row], alone.scores[0])
        assert torch.equal(together.lengths[2 * row : 2 * row + 2], alone.lengths)


def test_a_token_of_the_primer_that_is_no_class_is_read():
    """A vocabulary may have tokens that a model reads and never gives."""
    model = RecurrentSequential(nn.Embedding(V + 1, 4), nn.GRU(4, H), nn.Linear(H, V))
    primers = [torch.tensor([V]), torch.tensor([V, 1, V])]
    together = beam_search(model, 8, batchseq(primers), 3)
    for row, primer in enumerate(primers):
        alone = beam_search(model, 8, primer[:, None], 3)
        assert torch.equal(together.tokens[:, row], alone.tokens[:, 0])


def test_lengths_can_be_given_beside_the_primer():
    padded, lengths = batchseq([torch.randint(4, (n,)) for n in (4, 1)])
    paired = beam_search(Markov(4, 0), 8, (padded, lengths), 3)
    beside = beam_search(Markov(4, 0), 8, padded, 3, lengths=lengths)
    assert torch.equal(paired.tokens, beside.tokens)


# Numbers that are no numbers, and numbers with few digits.


@pytest.mark.parametrize("width", [2, 3, 9])
def test_a_candidate_of_probability_0_is_never_followed(width):
    """Behind token 0, which cannot be, all logits are -inf: their log_softmax is NaN, which wins a topk."""

    class Trap(nn.Module):
        def forward(self, inputs, state=None):
            rows = torch.tensor([[-math.inf] * 3, [-math.inf, 0.2, 0.1], [-math.inf, 0.3, 0.0]])
            return rows[inputs], torch.ones(1, inputs.shape[1], 1)

    sample = beam_search(Trap(), 6, torch.tensor([[1, 2]]), width, best=2)
    assert sample.tokens.gt(0).all()
    assert sample.scores.isfinite().all()
    assert sample.log_probs.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_summed_in_single_precision(dtype):
    """The same logits in float32 give the same sequences and scores."""

    class Rounded(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.inner, self.dtype = Markov(20, 1), dtype
            self.inner.table = self.inner.table.to(torch.bfloat16).to(torch.float16)

        def forward(self, inputs, state=None):
            outputs, state = self.inner(inputs, state)
            return outputs.to(self.dtype), state

    model = Rounded(torch.float32)
    model.inner.table = model.inner.table.to(dtype)
    single = beam_search(model, 30, torch.arange(20)[None], 4)
    model.dtype = dtype
    half = beam_search(model, 30, torch.arange(20)[None], 4)
    assert half.scores.dtype == half.log_probs.dtype == torch.float32
    assert torch.equal(half.tokens, single.tokens)
    torch.testing.assert_close(half.scores, single.scores)


def test_a_search_works_whatever_the_default_device_is():
    model, primer = language_model(), batchseq([torch.randint(V, (n,)) for n in (3, 1)])
    wanted = beam_search(model, 7, primer, 3, stop=0, best=2)
    torch.set_default_device("meta")
    try:
        found = beam_search(model, 7, primer, 3, stop=0, best=2)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.lengths, wanted.lengths)
