"""Feedback policies: masks, written out step by step."""

import math
import pickle

import pytest
import torch
from helpers import few, seeded
from hypothesis import given
from hypothesis import strategies as st

from rnnkit import (
    Feedback,
)

sizes = {"T": st.integers(1, 12), "B": st.integers(1, 4)}


def random_lengths(T, B, seed):
    return torch.randint(1, T + 1, (B,), generator=seeded(seed))


def every_policy():
    return [
        Feedback.never(),
        Feedback.always(),
        Feedback.last(0),
        Feedback.every(2),
        Feedback.probability(0.5, generator=seeded(1)),
        Feedback.probability(0.5, per="row", generator=seeded(1)),
        Feedback.probability(0.5, per="sequence", generator=seeded(1)),
        Feedback.probability(lambda step: 1.0),
    ]


@few
@given(**sizes, use_lengths=st.booleans(), seed=st.integers(0, 99))
def test_a_mask_says_for_each_step_and_row_whether_the_model_feeds_itself_and_never_at_step_0(
    T, B, use_lengths, seed
):
    lengths = random_lengths(T, B, seed) if use_lengths else None
    for policy in every_policy():
        mask = policy.mask(T, B, lengths=lengths)
        assert mask.shape == (T, B)
        assert mask.dtype == torch.bool
        assert not mask[0].any()


@few
@given(**sizes, seed=st.integers(0, 99))
def test_nothing_is_fed_after_a_row_s_end(T, B, seed):
    lengths = random_lengths(T, B, seed)
    for policy in every_policy():
        mask = policy.mask(T, B, lengths=lengths)
        assert not any(mask[length:, row].any() for row, length in enumerate(lengths.tolist()))


@few
@given(**sizes)
def test_never_and_always(T, B):
    assert not Feedback.never().mask(T, B).any()
    assert Feedback.always().mask(T, B)[1:].all()


@few
@given(**sizes, data=st.data())
def test_last_n_feeds_the_last_n_steps(T, B, data):
    n = data.draw(st.integers(0, T - 1))
    wanted = [[t >= T - n] * B for t in range(T)]
    assert Feedback.last(n).mask(T, B).tolist() == wanted


@few
@given(**sizes, seed=st.integers(0, 99), data=st.data())
def test_last_n_counts_from_each_row_s_own_end(T, B, seed, data):
    lengths = random_lengths(T, B, seed)
    n = data.draw(st.integers(0, int(lengths.min()) - 1))
    mask = Feedback.last(n).mask(T, B, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        assert mask[:length, row].tolist() == [t >= length - n for t in range(length)]


@few
@given(**sizes, more=st.integers(0, 3))
def test_last_n_refuses_a_sequence_in_which_no_step_would_be_driven(T, B, more):
    with pytest.raises(
        ValueError, match=rf"(?s)Feedback.last\({T + more}\).*{T} steps.*first step must be driven"
    ):
        Feedback.last(T + more).mask(T, B)


def test_last_n_refuses_one_row_too_short_for_it():
    with pytest.raises(ValueError, match=r"(?s)Feedback.last\(3\).*2 steps.*at least 4"):
        Feedback.last(3).mask(9, 2, lengths=torch.tensor([9, 2]))


def test_last_n_feeds_nothing_in_a_row_that_has_run_dry():
    assert Feedback.last(2).mask(4, 2, lengths=torch.tensor([4, 0])).T.int().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ]


@few
@given(**sizes, k=st.integers(1, 15))
def test_every_k_feeds_each_kth_step(T, B, k):
    wanted = [[t > 0 and t % k == 0] * B for t in range(T)]
    assert Feedback.every(k).mask(T, B).tolist() == wanted


@few
@given(**sizes, k=st.integers(1, 15))
def test_every_k_forced_is_the_reverse(T, B, k):
    wanted = [[t % k != 0] * B for t in range(T)]
    assert Feedback.every(k, forced=True).mask(T, B).tolist() == wanted


def test_every_1_is_always():
    assert torch.equal(Feedback.every(1).mask(6, 2), Feedback.always().mask(6, 2))


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_probability_0_is_never_and_1_is_always(per):
    assert not Feedback.probability(0.0, per=per).mask(6, 3).any()
    assert Feedback.probability(1.0, per=per).mask(6, 3)[1:].all()


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_a_probability_is_the_share_of_fed_steps(per):
    draws = torch.stack(
        [
            Feedback.probability(0.3, per=per, generator=seeded(i)).mask(5, 4)[1:]
            for i in range(2000)
        ]
    )
    share = draws.double().mean().item()
    # per sequence, one draw decides 16 entries: the standard error is that of the 2000 masks alone, at most
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 2000))


def coins(per):
    return Feedback.probability(0.5, per=per, generator=seeded(1)).mask(40, 30)[1:]


def test_per_step_is_a_coin_for_each_step_of_each_row():
    mask = coins("step")
    assert mask.any(0).all()
    assert mask.any(1).all()
    assert not mask.all(0).any()
    assert not mask.all(1).any()


def test_per_row_is_a_coin_for_each_row_kept_for_its_whole_sequence():
    mask = coins("row")
    assert torch.equal(mask.any(0), mask.all(0))
    assert mask[0].any()
    assert not mask[0].all()


def test_per_sequence_is_one_coin_for_the_whole_batch():
    masks = [
        Feedback.probability(0.5, per="sequence", generator=seeded(i)).mask(9, 5)[1:]
        for i in range(20)
    ]
    assert all(bool(mask.any()) == bool(mask.all()) for mask in masks)
    assert len({bool(mask.any()) for mask in masks}) == 2


def test_rows_and_steps_are_drawn_independently():
    mask = Feedback.probability(0.5, generator=seeded(1)).mask(201, 100)[1:].double()
    for first, second in ((mask[:-1], mask[1:]), (mask[:, :-1], mask[:, 1:])):
        both = (first * second).mean().item()
        assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / first.numel()))


@pytest.mark.parametrize("per", ["step", "row", "sequence"])
def test_the_generator_decides_the_mask(per):
    def draw(seed):
        return Feedback.probability(0.5, per=per, generator=seeded(seed)).mask(20, 20)

    assert torch.equal(draw(3), draw(3))
    assert any(not torch.equal(draw(3), draw(seed)) for seed in (4, 5, 6, 7, 8))


def test_a_schedule_is_asked_with_the_training_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 if step >= 100 else 0.0

    policy = Feedback.probability(schedule)
    assert not policy.mask(6, 3, step=99).any()
    assert policy.mask(6, 3, step=100)[1:].all()
    assert asked == [99, 100]


def test_a_policy_says_what_it_is():
    policies = [
        Feedback.never(),
        Feedback.last(3),
        Feedback.every(2),
        Feedback.probability(0.25, per="row"),
    ]
    for policy, name in zip(
        policies, ["never()", "last(3)", "every(2", "probability(0.25, per='row')"], strict=True
    ):
        assert f"Feedback.{name}" in repr(policy)


def test_a_policy_can_be_pickled():
    for policy in (Feedback.last(2), Feedback.every(3), Feedback.probability(1.0)):
        assert torch.equal(pickle.loads(pickle.dumps(policy)).mask(6, 2), policy.mask(6, 2))
