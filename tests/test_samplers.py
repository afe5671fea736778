"""Samplers against brute force: probabilities written out row by row in Python, and counted frequencies."""

import functools
import math

import numpy
import pytest
import torch
from helpers import few, refused, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from rnnkit import (
    DistributionSampler,
    SoftmaxSampler,
    identity,
    sample_best,
    sample_softmax,
    with_covariates,
)
from rnnkit.generation.samplers import DeclaredSampler


def logits(rows=3, classes=6, seed=0):
    return 2 * torch.randn(rows, classes, dtype=torch.float64, generator=seeded(seed))


# ---------------------------------------------------------------- the referee


def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def keep(row, kept):
    total = sum(p for i, p in enumerate(row) if i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(row)]


def by_hand(row, temperature=1.0, top_k=None, top_p=None, min_p=None):
    row = softmax([x / temperature for x in row])
    order = sorted(range(len(row)), key=lambda i: -row[i])
    if top_k is not None:
        row = keep(row, order[:top_k])
    if top_p is not None:
        kept, mass = [], 0.0
        for i in order:  # the smallest set of most likely tokens whose mass reaches top_p
            if mass >= top_p:
                break
            kept.append(i)
            mass += row[i]
        row = keep(row, kept)
    if min_p is not None:
        row = keep(row, [i for i, p in enumerate(row) if p >= min_p * max(row)])
    return row


def assert_probabilities(sampler, outputs, **how):
    got = sampler.probabilities(outputs)
    wanted = torch.tensor([by_hand(row, **how) for row in outputs.tolist()], dtype=torch.float64)
    assert got.shape == outputs.shape
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got == 0, wanted == 0), "what is cut is cut to exactly zero"


# ---------------------------------------------------------------- distributions


def test_with_no_option_the_probabilities_are_the_softmax():
    assert_probabilities(SoftmaxSampler(), logits())


@few
@given(seed=st.integers(0, 999), temperature=st.floats(0.05, 20))
def test_temperature_divides_the_logits(seed, temperature):
    assert_probabilities(
        SoftmaxSampler(temperature=temperature), logits(seed=seed), temperature=temperature
    )


@few
@given(seed=st.integers(0, 999), top_k=st.integers(1, 6))
def test_top_k_keeps_the_k_most_likely(seed, top_k):
    assert_probabilities(SoftmaxSampler(top_k=top_k), logits(seed=seed), top_k=top_k)


def test_top_k_above_the_number_of_classes_keeps_all():
    assert_probabilities(SoftmaxSampler(top_k=50), logits())


@few
@given(seed=st.integers(0, 999), top_p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, top_p):
    assert_probabilities(SoftmaxSampler(top_p=top_p), logits(seed=seed), top_p=top_p)


@few
@given(seed=st.integers(0, 999), min_p=st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough_beside_the_most_likely(seed, min_p):
    assert_probabilities(SoftmaxSampler(min_p=min_p), logits(seed=seed), min_p=min_p)


@few
@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(1, 6),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.01, 0.9),
)
def test_together_temperature_comes_first_then_top_k_top_p_and_min_p(
    seed, temperature, top_k, top_p, min_p
):
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    assert_probabilities(SoftmaxSampler(**how), logits(seed=seed), **how)


def test_a_class_ruled_out_by_minus_infinity_has_probability_zero():
    outputs = logits()
    outputs[:, 2] = -math.inf
    probabilities = SoftmaxSampler(temperature=0.5, top_p=0.99).probabilities(outputs)
    assert probabilities[:, 2].eq(0).all()
    assert probabilities.isfinite().all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_p_ends_where_the_sum_reaches_p_and_not_a_rounding_later(dtype):
    outputs = torch.tensor([[0.3, 0.1, 0.1, 0.5]], dtype=dtype).log()
    probabilities = SoftmaxSampler(top_p=0.8).probabilities(outputs)
    torch.testing.assert_close(probabilities, torch.tensor([[0.375, 0, 0, 0.625]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_classes_are_summed_in_single_precision(dtype):
    outputs = torch.zeros(1, 2000, dtype=dtype)  # in bfloat16 a sum of 1/2000 ends at 1/8
    probabilities = SoftmaxSampler(top_p=0.5).probabilities(outputs)
    assert probabilities.dtype == torch.float32
    assert (probabilities > 0).sum().item() == pytest.approx(1000, abs=2)
    assert probabilities.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_divided_by_the_temperature_in_single_precision(dtype):
    """In bfloat16 the first two end 0.25 apart and not 0.18; in float16 20 / 1e-5 is infinite."""
    outputs = torch.tensor([[20.0, 19.875, 1.0]], dtype=dtype)
    for temperature in (0.7, 1e-5):
        sampler = SoftmaxSampler(temperature=temperature)
        torch.testing.assert_close(
            sampler.probabilities(outputs), sampler.probabilities(outputs.float()), rtol=0, atol=0
        )


# ---------------------------------------------------------------- frequencies


def p_value(counts, probabilities):
    """Pearson's chi-square test: how likely frequencies at least this odd are, were the probabilities true."""
    possible = probabilities > 0
    assert counts[~possible].eq(0).all(), "drew what cannot be drawn"
    expected = probabilities[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor(float(possible.sum() - 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def test_the_referee_can_tell_a_wrong_distribution():
    fair = torch.full((6,), 1 / 6, dtype=torch.float64)
    loaded = torch.tensor([0.2, 0.16, 0.16, 0.16, 0.16, 0.16], dtype=torch.float64)
    counts = torch.bincount(
        torch.multinomial(loaded, 20_000, replacement=True, generator=seeded()), minlength=6
    )
    assert p_value(counts.double(), loaded) > 1e-6
    assert p_value(counts.double(), fair) < 1e-6


@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}],
    ids=str,
)
def test_draws_have_the_frequencies_of_the_probabilities(how):
    row = torch.tensor([0.3, -0.5, 1.2, 0.0, -1.0, 0.7], dtype=torch.float64)
    draws = SoftmaxSampler(**how, generator=seeded(1))(row.expand(20_000, 6))
    counts = torch.bincount(draws, minlength=6).double()
    # One test in a million fails by chance; the seed is fixed, so it fails always or never.
    assert p_value(counts, torch.tensor(by_hand(row.tolist(), **how), dtype=torch.float64)) > 1e-6


def test_sample_softmax_draws_from_the_softmax():
    row = torch.tensor([0.3, -0.5, 1.2, 0.0, -1.0, 0.7], dtype=torch.float64)
    torch.manual_seed(1)
    draws = sample_softmax(row.expand(20_000, 6))
    assert draws.shape == (20_000,)
    assert draws.dtype == torch.int64
    assert p_value(torch.bincount(draws, minlength=6).double(), row.softmax(0)) > 1e-6


def test_rows_are_drawn_independently():
    outputs = torch.zeros(20_000, 2, dtype=torch.float64)
    draws = SoftmaxSampler(generator=seeded(1))(outputs)
    pairs = 2 * draws[:-1:2] + draws[1::2]
    counts = torch.bincount(pairs, minlength=4).double()
    assert p_value(counts, torch.full((4,), 0.25, dtype=torch.float64)) > 1e-6


# ---------------------------------------------------------------- what comes out


def test_identity_feeds_the_output_back():
    outputs = torch.randn(3, 2)
    assert identity(outputs) is outputs


def test_sample_best_is_the_most_likely_class_of_each_row():
    outputs = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0], [0.0, 1.0, 2.0], [0.0, 9.0, 2.0]])
    best = sample_best(outputs)
    assert best.tolist() == [1, 0, 2, 1]
    assert best.dtype == torch.int64


def test_sample_best_takes_the_class_along_dim_1_of_images_too():
    outputs = torch.randn(2, 3, 4, 4, generator=seeded())
    assert torch.equal(sample_best(outputs), outputs.argmax(1))


def test_a_softmax_sampler_gives_one_index_a_row():
    draws = SoftmaxSampler(generator=seeded())(logits())
    assert draws.shape == (3,)
    assert draws.dtype == torch.int64


def test_one_hot_gives_the_same_draws_as_vectors():
    outputs = logits(rows=50)
    indices = SoftmaxSampler(generator=seeded(3))(outputs)
    vectors = SoftmaxSampler(one_hot=True, generator=seeded(3))(outputs)
    assert vectors.shape == outputs.shape
    assert vectors.dtype == outputs.dtype
    assert vectors.sum(1).eq(1).all()
    assert torch.equal(vectors.argmax(1), indices)


def test_top_k_of_one_is_sample_best():
    outputs = logits(rows=50)
    assert torch.equal(SoftmaxSampler(top_k=1)(outputs), sample_best(outputs))


def test_the_generator_decides_the_draws():
    outputs = logits(rows=200)
    first = SoftmaxSampler(generator=seeded(3))(outputs)
    assert torch.equal(first, SoftmaxSampler(generator=seeded(3))(outputs))
    assert not torch.equal(first, SoftmaxSampler(generator=seeded(4))(outputs))


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SoftmaxSampler(generator=seeded(3))(logits())
    assert torch.equal(before, torch.get_rng_state())


def test_draws_carry_no_gradient():
    outputs = logits().requires_grad_()
    assert not SoftmaxSampler(one_hot=True, generator=seeded())(outputs).requires_grad


# ---------------------------------------------------------------- DistributionSampler


def test_a_distribution_sampler_draws_from_the_head_s_distribution():
    sampler = DistributionSampler(lambda outputs: Normal(outputs[:, :1], outputs[:, 1:].exp()))
    torch.manual_seed(0)
    draws = sampler(torch.tensor([2.0, math.log(0.5)]).expand(20_000, 2))
    assert draws.shape == (20_000, 1)
    assert draws.mean().item() == pytest.approx(2.0, abs=5 * 0.5 / math.sqrt(20_000))
    assert draws.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * 20_000))


def test_a_distribution_sampler_of_classes_gives_indices():
    sampler = DistributionSampler(lambda outputs: Categorical(logits=outputs))
    assert sampler(logits()).shape == (3,)


def test_a_distribution_sampler_takes_independent_features():
    sampler = DistributionSampler(lambda outputs: Independent(Normal(outputs[:, :2], 1.0), 1))
    assert sampler(logits(classes=4)).shape == (3, 2)


def test_a_distribution_sampler_refuses_what_is_no_distribution():
    with pytest.raises(TypeError, match=r"(?s)DistributionSampler.*Distribution"):
        DistributionSampler(lambda outputs: outputs)(logits())


# ---------------------------------------------------------------- what a sampler sees and says


class Sees(nn.Module):
    def forward(self, outputs, given):
        return outputs + given


def three(outputs, temperature, given=None):
    return outputs * temperature if given is None else outputs * temperature + given


@pytest.mark.parametrize(
    ("sampler", "sees", "needs"),
    [
        (identity, False, False),
        (sample_best, False, False),
        (SoftmaxSampler(), False, False),
        (torch.clone, False, False),  # a builtin, which does not say
        (lambda outputs: outputs, False, False),
        (lambda outputs, t=3: outputs, False, False),
        (lambda *args: args[0], False, False),
        (nn.Softmax(1), False, False),
        (lambda outputs, x: x, True, True),
        (lambda outputs, x, /: x, True, True),
        (lambda outputs, given=None: outputs, True, False),
        (lambda outputs, *, given: given, True, True),
        (functools.partial(three, temperature=2.0), True, False),
        (Sees(), True, True),
        (with_covariates(identity, 3), True, True),
    ],
)
def test_whether_a_sampler_sees_what_the_data_has_is_read_off_its_parameters(sampler, sees, needs):
    declared = DeclaredSampler(sampler)
    assert (declared.sees_given, declared.needs_given) == (sees, needs)
    assert isinstance(declared(torch.ones(2, 3), torch.ones(2, 3)), torch.Tensor)


def test_what_the_data_has_arrives_by_place_and_by_name():
    outputs, given = torch.ones(2, 3), torch.full((2, 3), 5.0)
    for sampler in (lambda o, x: o + x, lambda o, *, given: o + given, Sees()):
        assert torch.equal(DeclaredSampler(sampler)(outputs, given), torch.full((2, 3), 6.0))
    sampler = functools.partial(three, temperature=2.0)
    assert torch.equal(DeclaredSampler(sampler)(outputs, given), torch.full((2, 3), 7.0))


def test_a_sampler_says_whether_it_draws():
    by_chance = [SoftmaxSampler(), sample_softmax, DistributionSampler(lambda y: Normal(y, 1))]
    for sampler in by_chance:
        assert DeclaredSampler(sampler).draws
        assert DeclaredSampler(with_covariates(sampler, 1)).draws
    for sampler in (identity, sample_best, lambda outputs: outputs, with_covariates(identity, 1)):
        assert not DeclaredSampler(sampler).draws


# ---------------------------------------------------------------- with_covariates


def test_the_first_features_are_fed_and_the_others_kept():
    outputs, given = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.arange(10.0).view(2, 5)
    drawn = with_covariates(identity, 2)(outputs, given)
    assert drawn.tolist() == [[1, 2, 2, 3, 4], [3, 4, 7, 8, 9]]


def test_features_of_images_are_their_channels():
    outputs, given = torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 4, 4)
    drawn = with_covariates(identity, 1)(outputs, given)
    assert torch.equal(drawn, torch.cat([outputs, given[:, 1:]], 1))


def test_the_draw_is_cast_to_what_the_data_is():
    drawn = with_covariates(identity, 1)(torch.ones(2, 1).double(), torch.zeros(2, 2))
    assert drawn.dtype == torch.float32


def test_the_sampler_inside_may_see_what_the_data_has_too():
    def faded(outputs, given):
        return outputs * given[:, 1:]

    drawn = with_covariates(faded, 1)(torch.ones(1, 1), torch.tensor([[9.0, 0.25]]))
    assert drawn.tolist() == [[0.25, 0.25]]


def test_in_a_dict_the_fed_input_has_a_name():
    given = {"level": torch.zeros(2, 1), "hour": torch.ones(2, dtype=torch.long)}
    drawn = with_covariates(identity, "level")(torch.full((2, 1), 5.0), given)
    assert drawn["level"].tolist() == [[5], [5]]
    assert drawn["hour"] is given["hour"]


def test_in_a_dict_several_inputs_may_be_fed():
    given = {"a": torch.zeros(2, 1), "b": torch.zeros(2, dtype=torch.long), "c": torch.ones(2, 3)}

    def both(outputs):
        return {"a": outputs["mean"], "b": outputs["logits"].argmax(1)}

    outputs = {"mean": torch.full((2, 1), 5.0), "logits": torch.eye(2)}
    drawn = with_covariates(both, ["a", "b"])(outputs, given)
    assert drawn["a"].tolist() == [[5], [5]]
    assert drawn["b"].tolist() == [0, 1]
    assert drawn["c"] is given["c"]


def test_log_probs_are_those_of_what_was_fed():
    normal = DistributionSampler(lambda y: Normal(y[..., :1], 1.0))
    outputs, drawn = torch.randn(5, 2, 2), torch.randn(5, 2, 3)
    found = with_covariates(normal, 1).log_prob(outputs, drawn)
    torch.testing.assert_close(found, normal.log_prob(outputs, drawn[..., :1]))
    assert with_covariates(identity, 1).log_prob(outputs, drawn) is None


@pytest.mark.parametrize(
    ("fed", "kind"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError), ([], TypeError)],
    ids=str,
)
def test_what_is_fed_is_a_number_of_features_or_names(fed, kind):
    refused(lambda: with_covariates(identity, fed), "fed = ", kind)


@pytest.mark.parametrize(
    ("sampler", "fed", "given", "words", "kind"),
    [
        (identity, 4, torch.zeros(2, 3), "F >= 4", ValueError),
        (identity, 1, torch.zeros(2), "F >= 1", ValueError),
        (identity, 1, {"a": torch.zeros(2, 3)}, "a dict of 'a'", ValueError),
        (identity, "a", torch.zeros(2, 3), "a dict with ['a']", ValueError),
        (identity, "b", {"a": torch.zeros(2, 3)}, "a dict with ['b']", ValueError),
        (identity, 2, torch.zeros(2, 3), "first 2 features, (2, 2)", ValueError),
        (sample_best, 1, torch.zeros(2, 3), "torch.int64", ValueError),
        (lambda outputs: None, 1, torch.zeros(2, 3), "a NoneType from the sampler", TypeError),
        (identity, ["a"], {"a": torch.zeros(2, 1)}, "the next input's fed part", TypeError),
        (lambda o: {}, ["a"], {"a": torch.zeros(2, 1)}, "a dict of 'a'", ValueError),
    ],
)
def test_what_does_not_fit_the_covariates_is_refused(sampler, fed, given, words, kind):
    sampler = with_covariates(sampler, fed)
    message = refused(lambda: sampler(torch.zeros(2, 1), given), words, kind)
    assert message.startswith("with_covariates: ")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temperature": 0.0}, "temperature.*0"),
        ({"temperature": -1.0}, "temperature.*-1"),
        ({"temperature": math.nan}, "temperature.*nan"),
        ({"temperature": torch.tensor([0.5, 2.0])}, r"temperature.*0\.5"),
        ({"top_k": 0}, "top_k.*0"),
        ({"top_k": -3}, "top_k.*-3"),
        ({"top_p": 0.0}, "top_p.*0"),
        ({"top_p": 1.5}, "top_p.*1.5"),
        ({"min_p": -0.1}, "min_p.*-0.1"),
        ({"min_p": 1.1}, "min_p.*1.1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(how, words):
    with pytest.raises(ValueError, match=rf"(?s)SoftmaxSampler.*{words}"):
        SoftmaxSampler(**how)


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(2, 3, 4)])
def test_a_softmax_sampler_wants_one_step(wrong):
    shape = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"(?s)SoftmaxSampler.*{shape}.*\(B, V\)"):
        SoftmaxSampler()(wrong)


BROKEN = {
    "NaN": lambda row: row.fill_(math.nan),
    "one NaN": lambda row: row[:1].fill_(math.nan),
    "inf": lambda row: row[:1].fill_(math.inf),
    "all masked": lambda row: row.fill_(-math.inf),
}


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_draw_from_logits_without_probabilities_is_refused_and_names_the_rows(kind, how):
    outputs = logits()
    BROKEN[kind](outputs[1])
    text = "SoftmaxSampler: got logits whose softmax is NaN in rows [1]; "
    assert refused(lambda: SoftmaxSampler(**how)(outputs), text).startswith(text)


def test_an_error_of_another_cause_in_a_draw_stays_as_it_is():
    with pytest.raises(RuntimeError, match="cannot sample"):
        SoftmaxSampler()(torch.zeros(2, 0))


@pytest.mark.parametrize("wrong", [[[0.0, 1.0]], (torch.zeros(2, 3), None), numpy.zeros((2, 3))])
def test_a_sampler_of_classes_wants_a_tensor(wrong):
    refused(lambda: sample_softmax(wrong), "SoftmaxSampler: got outputs a ")
    if not isinstance(wrong, numpy.ndarray):  # which knows what argmax is
        refused(lambda: sample_best(wrong), "sample_best: got outputs a ")


@pytest.mark.parametrize("kind", [SoftmaxSampler, DistributionSampler, nn.Tanh])
def test_a_class_is_no_sampler_but_an_object_of_it(kind):
    with pytest.raises(
        TypeError, match=rf"with_covariates: got sampler = the class {kind.__name__}"
    ):
        with_covariates(kind, 1)


def test_sample_best_wants_a_class_dimension():
    with pytest.raises(ValueError, match=r"(?s)sample_best.*\(4,\).*\(B, V\)"):
        sample_best(torch.zeros(4))


def test_the_smallest_top_p_keeps_the_likeliest_class():
    logits = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float32)
    p = SoftmaxSampler(top_p=1e-46).probabilities(logits)
    assert p.tolist() == [[0.0, 1.0, 0.0]]
