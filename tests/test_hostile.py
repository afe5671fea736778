"""Hostile and odd input: files made to harm, absurd arguments, Ctrl-C and a full disk at any moment.

Each is answered in the one voice, by a ValueError, TypeError or OSError, and leaves everything as it was.
"""

import copy
import errno
import hashlib
import io
import math
import os
import random

import pytest
import torch
from helpers import refused
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_checkpoint import build, everything, loaders
from torch import nn

import rnnkit as rk

LOSS = rk.seq2seq_loss(nn.MSELoss())
often = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


# ---------------------------------------------------------------- states


class Cut:
    """Ends a training by an error in its second epoch."""

    order = 2  # after the checkpoint

    def on_step_end(self, learner):
        if (learner.epoch_index, learner.step_index) == (1, 2):
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The file of a training that was cut short within an epoch, as bytes and as a state."""
    path = tmp_path_factory.mktemp("good") / "a.pt"
    extra = (rk.KeepBest(), rk.Checkpoint(path, 1), Cut())
    learner, _, *phases = build("own", extra=extra)
    with pytest.raises(ZeroDivisionError):
        learner.fit(2, *loaders("own", 0), *phases)
    return path.read_bytes(), torch.load(path, weights_only=True)


def another(*callbacks):
    """A learner of the same kind, and what it fits with."""
    extra = (rk.KeepBest(), *callbacks)
    learner, _, *phases = build("own", salt=5, extra=extra)
    return learner, [*loaders("own", 5), *phases]


def places(tree, at=()):
    """The way to each part of a state, not to all of a long list."""
    found = [at] if at else []
    keys = list(tree) if isinstance(tree, dict) else []
    if isinstance(tree, list | tuple):
        keys = range(min(len(tree), 3))
    for key in keys:
        found += places(tree[key], (*at, key))
    return found


def changed(tree, at, value):
    """The state with another value in one place; without it where that is `LEFT_OUT`."""
    key, *rest = at
    parts = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest:
        parts[key] = changed(tree[key], rest, value)
    elif value is LEFT_OUT:
        del parts[key]
    else:
        parts[key] = value
    return tuple(parts) if isinstance(tree, tuple) else parts


def nested(depth):
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


LEFT_OUT = object()
ODD = [
    LEFT_OUT, None, True, 3, -1, 10**30, 2**63, math.nan, math.inf, -0.5, 1j, "x", "", [], {}, [1], {"a": 1}, (1, 2),
    torch.zeros(()), torch.zeros(0), torch.full((2,), math.nan), torch.zeros(3, dtype=torch.int64),
    torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**6, 10**6), nested(60), nested(3000),
]  # fmt: skip


def written(learner):
    """What a learner is, as the bytes of a file: NaN is NaN, and what is repeated is not written out."""
    buffer = io.BytesIO()
    torch.save(everything(learner), buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def told(error):
    message = str(error)
    return ": got " in message and "; wanted " in message and "Likely fix: " in message


def test_what_is_not_changed_is_gone_on_from(good):
    learner, rest = another()
    learner.load_state_dict(copy.deepcopy(good[1]))
    assert learner.fit(2, *rest).epoch_index == 2


@often
@given(
    data=st.binary(max_size=300),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_a_file_of_other_bytes_is_refused(good, tmp_path_factory, data, cut, flips):
    whole = bytearray(good[0][: int(len(good[0]) * cut)])
    for place, mask in flips:
        if whole:
            whole[int(place * len(whole))] ^= mask
    path = tmp_path_factory.getbasetemp() / "odd.pt"
    for content in (data, bytes(whole) + data):
        if content == good[0]:
            continue
        path.write_bytes(content)
        checkpoint = rk.Checkpoint(path)
        learner, _ = ANOTHER
        before = learner.epoch_index
        refused(
            lambda checkpoint=checkpoint, learner=learner: checkpoint.load(learner),
            "got a file that cannot",
        )
        assert learner.epoch_index == before


ANOTHER = another()


@pytest.mark.parametrize("saved", [
    None, 3, "x", [], {}, torch.zeros(3), {"format": "rnnkit checkpoint 1"}, {"format": torch.zeros(2)},
    nested(3000), {"format": "rnnkit checkpoint 1", "model": nested(3000)},
], ids=range(10))  # fmt: skip
def test_what_is_no_state_at_all_is_refused(saved):
    refused(lambda: ANOTHER[0].load_state_dict(saved), "Learner: got ")


# ---------------------------------------------------------------- Ctrl-C


class Interrupt:
    """Raises KeyboardInterrupt at the n-th event of all."""

    def __init__(self, order, n):
        self.order = order
        self.left = n

    def strike(self, learner):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    on_fit_begin = on_epoch_begin = on_step_begin = on_window_begin = on_loss_begin = strike
    on_backward_begin = on_backward_end = on_window_end = on_step_end = on_epoch_end = strike
    on_fit_end = strike


@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step:UserWarning"
)  # resumed after its last step
@pytest.mark.parametrize("order", [-2, 3])
@pytest.mark.parametrize("n", random.Random(0).sample(range(1, 120), 10))
def test_after_ctrl_c_a_learner_goes_on_and_the_bar_and_the_file_are_whole(
    tmp_path, monkeypatch, order, n
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    path = tmp_path / "a.pt"
    bar = rk.ProgressBar()
    interrupt = Interrupt(order, n)
    learner, rest = another(bar, rk.Checkpoint(path, 1), interrupt)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(9, *rest)
    assert bar._bar is None
    assert not learner.fitting
    assert [file.name for file in tmp_path.iterdir()] in ([], ["a.pt"])
    if path.exists():
        resumed, again = another(rk.ProgressBar(), rk.Checkpoint(path), Interrupt(order, 0))
        rk.Checkpoint(path).load(resumed)
        assert resumed.fit(3, *again).epoch_index >= 1
    epochs = learner.epoch_index
    assert learner.fit(1, *rest).epoch_index == epochs + 1
    assert all(parameter.isfinite().all() for parameter in learner.parameters)


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("when", ["write", "fsync", "replace", "create"])
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_at_any_call_leaves_the_good_file_and_says_so(
    tmp_path, monkeypatch, when, kind
):
    path = tmp_path / "a.pt"
    learner, rest = another(rk.Checkpoint(path))
    learner.fit(1, *rest)
    good, error = path.read_bytes(), OSError(kind, os.strerror(kind))

    def fails(*arguments, **options):
        raise error

    class Full:
        """A file of which only the first bytes find room."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[: random.Random(kind).randrange(len(data))])
            raise error

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    from rnnkit.training import checkpoint

    if when == "write":
        made = checkpoint._created
        monkeypatch.setattr(checkpoint, "_created", lambda *names: Full(made(*names)))
    elif when == "create":
        monkeypatch.setattr(checkpoint, "_created", fails)
    else:
        monkeypatch.setattr(os, when, fails)
    message = refused(lambda: rk.Checkpoint(path).save(learner), os.strerror(kind), OSError)
    assert "the file of before is as it was" in message
    monkeypatch.undo()
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    rk.Checkpoint(path).save(learner)
