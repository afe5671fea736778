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


def another(*callbacks, salt=5):
    """A learner of the same kind, and what it fits with."""
    extra = (rk.KeepBest(), *callbacks)
    learner, _, *phases = build("own", salt=salt, extra=extra)
    return learner, [*loaders("own", salt), *phases]


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


quietly = pytest.mark.filterwarnings("ignore")  # a scheduler is stepped before a held update


class Steps:
    """A metric that counts by itself."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.steps = 0
        self.sums = torch.zeros(2)

    def update(self, outputs, targets):
        self.steps += len(outputs)
        self.sums = self.sums + 1.0

    def compute(self):
        return self.steps + self.sums.sum()

    def state_dict(self):
        return {"steps": self.steps, "sums": self.sums}

    def load_state_dict(self, saved):
        self.steps = saved["steps"]
        self.sums = saved["sums"]


def with_all_sorts(extra=(), salt=0):
    """A training with states of other kinds: a stream, two heads, held gradients, metrics, plateaus."""
    torch.manual_seed(salt)
    random.seed(salt)
    heads = {"a": nn.MSELoss(), "b": nn.L1Loss()}
    model = Heads()
    optimizer = torch.optim.SGD([
        {"params": model.rnn.parameters()}, {"params": model.out.parameters(), "lr": 0.1},
    ], 0.05, momentum=0.9)  # fmt: skip
    rates = torch.optim.lr_scheduler
    warm = rates.LinearLR(optimizer, 0.1, 1.0, 3)
    late = rates.CosineAnnealingLR(optimizer, 9)
    callbacks = [
        rk.History(),
        rk.Scheduler(rates.ReduceLROnPlateau(optimizer, patience=1)),
        rk.Scheduler(rates.SequentialLR(optimizer, [warm, late], [3]), per="step"),
        *extra,
    ]
    loss = rk.seq2seq_loss(heads, weights={"a": 1.0, "b": 2.0})
    metrics = {
        "steps": Steps(),
        "off": rk.seq2seq_loss({"a": nn.L1Loss(), "b": nn.L1Loss()}),
    }
    learner = rk.Learner(model, loss, optimizer, callbacks, metrics=metrics)
    data = [torch.sin(torch.arange(7.0 * 3).reshape(7, 3, 1) + i) for i in range(5)]
    batches = [(part, {"a": part, "b": part}) for part in data]
    training = rk.BPTTTrainingPhase(window=4, stateful=True, accumulate=2)
    return learner, [batches, batches[:2], training, rk.BPTTValidationPhase(stateful=True)]


def in_float16(extra=(), salt=0):
    """A training whose gradients are scaled."""
    torch.manual_seed(salt)
    random.seed(salt)
    model = rk.RecurrentSequential(nn.GRU(1, 4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    learner = rk.Learner(model, LOSS, optimizer, [rk.History(), *extra], autocast=torch.float16)
    data = [torch.sin(torch.arange(7.0 * 3).reshape(7, 3, 1) + i) for i in range(5)]
    return learner, [data, data[:2], rk.BPTTTrainingPhase(window=4), rk.BPTTValidationPhase()]


class Heads(nn.Module):
    """Two heads on a GRU."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, inputs, state=None):
        outputs, state = self.rnn(inputs, state)
        outputs = self.out(outputs)
        return {"a": outputs[..., :1], "b": outputs[..., 1:]}, state


TRAININGS = {
    "own": lambda extra=(), salt=0: another(*extra, salt=salt),
    "all sorts": with_all_sorts,
    "float16": in_float16,
}
SAVED: dict[str, object] = {}


def saved_by(kind):
    """The state of a training that was cut short within an epoch; made once."""
    if kind not in SAVED:

        class Take:
            order = 1

            def on_step_end(self, learner):
                buffer = io.BytesIO()
                torch.save(learner.state_dict(), buffer)
                SAVED[kind] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)

        learner, rest = TRAININGS[kind]((Take(), Cut()))
        with pytest.raises(ZeroDivisionError):
            learner.fit(2, *rest)
    return SAVED[kind]


class Loads:
    """Loads a state as a fit begins, as a checkpoint does, if it has one."""

    order = 1

    def __init__(self, state=None):
        self.state = state

    def on_fit_begin(self, learner):
        state = self.state
        self.state = None
        if state is not None:
            learner.load_state_dict(state)


def kept(learner, phases=()):
    """What a learner is, and its phases, without what generators draw, as the bytes of a file."""
    parts = [learner.model, learner.optimizer, *learner.callbacks, *phases]
    states = [part.state_dict() for part in parts if hasattr(part, "state_dict")]
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(states), buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


UNTOUCHED: dict[str, list[str]] = {}


def untouched(kind):
    """What comes of a training that was given no state."""
    if kind not in UNTOUCHED:
        learner, rest = TRAININGS[kind]((Loads(),), salt=5)
        learner.fit(1, *rest)
        UNTOUCHED[kind] = [written(learner), kept(learner, rest[2:])]
    return UNTOUCHED[kind]


def goes_on_or_is_as_it_was(kind, state, at_begin):
    """Gives whether the state was gone on from; any other error than a refusal comes through."""
    loads = Loads(state if at_begin else None)
    learner, rest = TRAININGS[kind]((loads,), salt=5)
    before = kept(learner, rest[2:])
    loaded = at_begin
    try:
        if not at_begin:
            learner.load_state_dict(state)
            loaded = True
            before = kept(learner, rest[2:])
        learner.fit(2, *rest)
        return True
    except (ValueError, TypeError) as error:
        assert told(error), error
        late = str(error).startswith("BPTT")  # by the first batch, which a carried state meets
    if late:
        assert learner.fit(1, *rest).epoch_index <= 2**53
        return False
    assert kept(learner, rest[2:]) == before
    if at_begin or not loaded:
        learner.fit(1, *rest)
        assert [written(learner), kept(learner, rest[2:])] == untouched(kind)
    return False


@quietly
@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize("at_begin", [False, True])
def test_what_is_not_changed_is_gone_on_from(kind, at_begin):
    assert goes_on_or_is_as_it_was(kind, copy.deepcopy(saved_by(kind)), at_begin)


@quietly
@pytest.mark.parametrize("kind", TRAININGS)
@settings(often, max_examples=60)
@given(
    part=st.integers(0, 99),
    place=st.integers(0, 9999),
    odd=st.integers(0, len(ODD) - 1),
    beside=st.integers(0, 3),
    at_begin=st.booleans(),
)
def test_a_state_with_an_odd_value_anywhere_is_gone_on_from_or_refused(
    kind, part, place, odd, beside, at_begin
):
    state = saved_by(kind)
    name = list(state)[part % len(state)]
    known = [at for at in places(state) if at[0] == name]
    at = known[place % len(known)]
    if not beside and isinstance(found_at(state, at), dict):  # a part more
        at = (*at, "step")
    value = ODD[odd]
    if value is LEFT_OUT and at[-1] == "step" and at not in known:
        value = None
    goes_on_or_is_as_it_was(kind, changed(copy.deepcopy(state), at, value), at_begin)


def found_at(tree, at):
    for key in at:
        tree = tree[key]
    return tree


# Of each kind one, which would be taken by its form and then fail deep inside.
TAKEN = {
    "a moment that is no tensor": ("own", ("optimizer", "state", 0, "exp_avg_sq"), [1]),
    "a count of steps that is divided by": ("own", ("optimizer", "state", 0, "step"), -1),
    "an option for another device": ("own", ("optimizer", "param_groups", 0, "capturable"), True),
    "an option of no kind": ("own", ("optimizer", "param_groups", 0, "foreach"), torch.zeros(2)),
    "a period of no epoch": ("own", ("callbacks", "2 Scheduler(StepLR)", "step_size"), 0),
    "a method of a scheduler": ("own", ("callbacks", "2 Scheduler(StepLR)", "step"), 3),
    "an epoch without its generators": ("own", ("epoch_rng",), {}),
    "a number that Python's generator adds to": ("own", ("rng", "python", 2), "x"),
    "a place behind NumPy's numbers": ("own", ("rng", "numpy", 2), 10**6),
    "a sum of two numbers": ("own", ("tally", "averages", "loss", "waiting", 0, "sum"), [1.0, 2.0]),
    "a sum without its heads": ("all sorts", ("tally", "averages", "loss", "waiting", 0, "sum"), 3),
    "a metric that there is not": ("all sorts", ("tally", "counters", "x"), {}),
    "a metric's state that is none": ("all sorts", ("tally", "counters", "steps"), 3),
    "a metric's tensor of another shape": ("all sorts", ("tally", "counters", "steps", "sums"), torch.zeros(3)),
    "a carried state of another size": ("all sorts", ("phases", 0, "carried"), torch.zeros(1, 3, 7)),
    "a carried state of another form": ("all sorts", ("phases", 0, "carried"), [torch.zeros(1, 3, 4)]),
    "a part of an interval": ("float16", ("scaler", "growth_interval"), 0.5),
    "a count that is no number": ("float16", ("scaler", "_growth_tracker"), math.nan),
    "steps read by no rows": ("all sorts", ("phases", 0, "read"), 3),
    "steps read by other rows": ("all sorts", ("phases", 0, "read"), torch.zeros(2, dtype=torch.int64)),
}  # fmt: skip


@quietly
@pytest.mark.parametrize("what", TAKEN)
def test_what_no_step_can_be_made_from_is_refused(what):
    kind, at, value = TAKEN[what]
    state = copy.deepcopy(saved_by(kind))
    assert not goes_on_or_is_as_it_was(kind, changed(state, at, value), at_begin=False)


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

    from rnnkit.core import files

    if when == "write":
        made = files.new_file
        monkeypatch.setattr(files, "new_file", lambda *names: Full(made(*names)))
    elif when == "create":
        monkeypatch.setattr(files, "new_file", fails)
    else:
        monkeypatch.setattr(os, when, fails)
    message = refused(lambda: rk.Checkpoint(path).save(learner), os.strerror(kind), OSError)
    assert "the file of before is as it was" in message
    monkeypatch.undo()
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    rk.Checkpoint(path).save(learner)


# ---------------------------------------------------------------- absurd arguments

INF, NAN = math.inf, math.nan
x, tok = torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.long)
model, lm = nn.GRU(3, 3), rk.RecurrentSequential(nn.Embedding(4, 4), nn.GRU(4, 4))
opt, mse = torch.optim.SGD(model.parameters(), 0.1), rk.seq2seq_loss(nn.MSELoss())


class Hook:
    def __init__(self, hears):
        self.on_step_end = hears


def learner(**options):
    return rk.Learner(model, mse, opt, **options)


ABSURD = [
    (lambda: rk.BPTTTrainingPhase(window=0), 'BPTTTrainingPhase: got window = 0'),
    (lambda: rk.BPTTTrainingPhase(window=-1), 'BPTTTrainingPhase: got window = -1'),
    (lambda: rk.BPTTTrainingPhase(window=2.5), 'BPTTTrainingPhase: got window = 2.5'),
    (lambda: rk.BPTTTrainingPhase(window=True), 'BPTTTrainingPhase: got window = True'),
    (lambda: rk.BPTTTrainingPhase(window="a"), "BPTTTrainingPhase: got window = 'a'"),
    (lambda: rk.BPTTValidationPhase(nfeedback=-1), 'BPTTValidationPhase: got nfeedback = -1'),
    (lambda: rk.BPTTValidationPhase(nfeedback=99)(model, mse, x), 'BPTTValidationPhase: got nfeedback = 99 and a sequence of 4 steps'),
    (lambda: rk.BPTTValidationPhase(nfeedback=NAN), 'BPTTValidationPhase: got nfeedback = nan'),
    (lambda: rk.BPTTValidationPhase(nfeedback="3"), "BPTTValidationPhase: got nfeedback = '3'"),
    (lambda: rk.BPTTTrainingPhase(accumulate=0), 'BPTTTrainingPhase: got accumulate = 0'),
    (lambda: rk.BPTTTrainingPhase(feedback=3), 'BPTTTrainingPhase: got feedback = a int'),
    (lambda: rk.sample_model(model, -1, x), 'sample_model: got length = -1'),
    (lambda: rk.sample_model(model, 1.5, x), 'sample_model: got length = 1.5'),
    (lambda: rk.sample_model(model, "9", x), "sample_model: got length = '9'"),
    (lambda: rk.sample_model(model, 3, None), 'sample_model: got an empty primer'),
    (lambda: rk.sample_model(model, 3, "abc"), 'sample_model: got primer = a str'),
    (lambda: rk.sample_model(model, 3, torch.zeros(3)), 'sample_model: got primer (3,)'),
    (lambda: rk.sample_model(model, 8, x, sampler=3), 'sample_model: got sampler = a int'),
    (lambda: rk.sample_model(None, 8, x), 'sample_model: got a NoneType'),
    (lambda: rk.SoftmaxSampler(temperature=0), 'SoftmaxSampler: got temperature = 0'),
    (lambda: rk.SoftmaxSampler(temperature=INF), 'SoftmaxSampler: got temperature = inf'),
    (lambda: rk.SoftmaxSampler(temperature=NAN), 'SoftmaxSampler: got temperature = nan'),
    (lambda: rk.SoftmaxSampler(temperature=-1), 'SoftmaxSampler: got temperature = -1'),
    (lambda: rk.SoftmaxSampler(temperature="hot"), 'SoftmaxSampler: got temperature = hot'),
    (lambda: rk.SoftmaxSampler(top_k=0), 'SoftmaxSampler: got top_k = 0'),
    (lambda: rk.SoftmaxSampler(top_k=1.5), 'SoftmaxSampler: got top_k = 1.5'),
    (lambda: rk.SoftmaxSampler(top_p=2), 'SoftmaxSampler: got top_p = 2'),
    (lambda: rk.SoftmaxSampler(top_p=NAN), 'SoftmaxSampler: got top_p = nan'),
    (lambda: rk.beam_search(lm, 3, tok, 0), 'beam_search: got width = 0'),
    (lambda: rk.beam_search(lm, -1, tok, 2), 'beam_search: got length = -1'),
    (lambda: rk.beam_search(lm, 3, tok, 2, stop="a"), "beam_search: got stop = 'a'"),
    (lambda: rk.beam_search(model, 8, x, 2), 'beam_search: got a primer (5, 2, 3) of torch.float32'),
    (lambda: rk.beam_search(lm, 3, tok, 2, stop=0, length_penalty=NAN), 'beam_search: got length_penalty = nan'),
    (lambda: rk.forecast(model, 8, x, paths=-3, sampler=rk.identity), 'forecast: got paths = -3'),
    (lambda: rk.rollout(model, x, "all"), 'rollout: got feedback = a str'),
    (lambda: rk.Feedback.every(0), 'Feedback.every: got k = 0'),
    (lambda: rk.Feedback.every(-2), 'Feedback.every: got k = -2'),
    (lambda: rk.Feedback.last(NAN), 'Feedback.last: got n = nan'),
    (lambda: rk.Feedback.probability(2.0), 'Feedback.probability: got p = 2.0'),
    (lambda: rk.Feedback.probability(NAN), 'Feedback.probability: got p = nan'),
    (lambda: rk.batchseq([]), 'batchseq: got an empty list'),
    (lambda: rk.batchseq(3), 'batchseq: got a int'),
    (lambda: rk.batchseq([torch.zeros(3,2), torch.zeros(3,4)]), 'batchseq: got sequences (3, 2), (3, 4)'),
    (lambda: rk.unbatchseq(x, torch.tensor([9, 9])), 'unbatchseq: got lengths from 9 to 9'),
    (lambda: rk.unbatchseq("x", torch.tensor([1])), 'unbatchseq: got padded = a str'),
    (lambda: rk.steps(None), 'steps: got sequence = a NoneType'),
    (lambda: rk.get_inout_seq(3), 'get_inout_seq: got a int'),
    (lambda: rk.get_inout_seq(torch.zeros(1, 2, 3)), 'get_inout_seq: got a sequence (1, 2, 3)'),
    (lambda: rk.StreamLoader(torch.arange(100), batch_size=0, window=4), 'StreamLoader: got batch_size = 0'),
    (lambda: rk.StreamLoader(torch.arange(100), batch_size=10**9, window=4), 'StreamLoader: got (100,) for 1000000000 rows'),
    (lambda: rk.StreamLoader(torch.arange(100), batch_size=2, window=NAN), 'StreamLoader: got window = nan'),
    (lambda: rk.StreamLoader(None, batch_size=2, window=3), 'StreamLoader: got a NoneType'),
    (lambda: rk.BucketSampler([3, -1], batch_size=2), 'BucketSampler: got a length of -1 at index 1'),
    (lambda: rk.BucketSampler([3, 1], batch_size=0), 'BucketSampler: got batch_size = 0'),
    (lambda: rk.BucketSampler("ab", batch_size=1), 'BucketSampler: got lengths a str'),
    (lambda: rk.seq2seq_loss(None), 'seq2seq_loss: got a NoneType'),
    (lambda: rk.seq2seq_loss("mse"), 'seq2seq_loss: got a str'),
    (lambda: rk.seq2seq_loss(nn.MSELoss(), average="all"), "seq2seq_loss: got average='all'"),
    (lambda: rk.seq2one_loss(3), 'seq2one_loss: got a int'),
    (lambda: rk.seq2one_loss(nn.MSELoss(), read="middle"), "seq2one_loss: got read='middle'"),
    (lambda: rk.seq2seq_loss(nn.MSELoss(), warmup=-1), 'seq2seq_loss: got warmup = -1'),
    (lambda: rk.Learner(model, mse, None), 'Learner: got no optimizer'),
    (lambda: rk.Learner(None, mse, opt), 'Learner: got model = a NoneType'),
    (lambda: rk.Learner(model, 3, opt), 'Learner: got loss = a int'),
    (lambda: learner().fit(-1, [x]), 'Learner: got epochs = -1'),
    (lambda: learner().fit(1.5, [x]), 'Learner: got epochs = 1.5'),
    (lambda: learner().fit(NAN, [x]), 'Learner: got epochs = nan'),
    (lambda: learner().fit(1, None), 'Learner: got a NoneType for training'),
    (lambda: learner().fit(1, x), 'Learner: got (5, 2, 3) for training, which is one batch'),
    (lambda: learner().fit(1, []), 'Learner: got no batches in epoch 1'),
    (lambda: learner().fit(1, ["a"]), 'SequenceBatch.of: got a str'),
    (lambda: learner(autocast="half"), 'Learner: got autocast = half'),
    (lambda: rk.Learner(model, mse, opt, [3]), 'Learner: got a int that hears no event'),
    (lambda: rk.ClipGradients(-1), 'ClipGradients: got max_norm = -1'),
    (lambda: rk.ClipGradients(NAN), 'ClipGradients: got max_norm = nan'),
    (lambda: rk.ClipGradients("1"), 'ClipGradients: got max_norm = a str'),
    (lambda: rk.EarlyStopping(patience=-1), 'EarlyStopping: got patience = -1'),
    (lambda: rk.EarlyStopping(patience=NAN), 'EarlyStopping: got patience = nan'),
    (lambda: rk.Checkpoint("/tmp/a.pt", 0), 'Checkpoint: got every = 0'),
    (lambda: rk.Checkpoint(3), 'Checkpoint: got path = a int'),
    (lambda: rk.Scheduler(3), 'Scheduler: got scheduler = a int'),
    (lambda: rk.Scheduler(torch.optim.lr_scheduler.StepLR(opt, 1), per="day"), "Scheduler: got per='day'"),
    (lambda: rk.Unroll(3), 'Unroll: got cell = a int'),
    (lambda: rk.PerStep(nn.Linear(3, 3))(3), 'PerStep: got inputs a int'),
    (lambda: rk.RecurrentSequential(nn.GRUCell(3, 3)), 'RecurrentSequential: got a cell, GRUCell'),
    (lambda: rk.EncoderDecoder(3, 4), 'EncoderDecoder: got encoder = a int'),
    (lambda: rk.select_rows(3, torch.tensor([0])), 'select_rows: got a int in a state'),
    (lambda: rk.reset_rows(torch.zeros(1, 2, 3), torch.tensor([True])), 'reset_rows: got rows (1,) of torch.bool for a leaf (1, 2, 3)'),
    (lambda: rk.detach(3), 'detach: got a int in a state'),
    (lambda: rk.gradient_by_step(model, None, x, x), 'gradient_by_step: got loss = a NoneType'),
    (lambda: rk.plot_history(3), 'plot_history: got a int'),
    (lambda: rk.export_program(model, x, steps=-4), 'export_program: got steps = -4'),
    (lambda: rk.export_onnx(model, 3, x), 'export_onnx: got path = a int'),
    (lambda: rk.evaluate(model, mse, None), 'evaluate: got a NoneType for evaluation'),
    (lambda: rk.evaluate(model, mse, [x], phase=3), 'evaluate: got a int'),
    (lambda: rk.energy_score(torch.zeros(1, 2), torch.zeros(3)), 'energy_score: got paths (1, 2) and targets (3,)'),
    (lambda: rk.DistributionSampler(3), 'DistributionSampler: got make = a int'),
    (lambda: rk.pad_collate([]), 'pad_collate: got an empty list'),
    (lambda: rk.select_rows(torch.zeros(1, 2, 3), torch.tensor([5])), "select_rows: got rows [5]"),
    (lambda: rk.forecast(model, x, 3), "forecast: got horizon = (5, 2, 3)"),
    (lambda: rk.seq2seq_loss(lambda y: y.mean()), "seq2seq_loss: got a loss that wants y; "),
    (lambda: rk.seq2seq_loss(lambda: 0), "seq2seq_loss: got a loss that wants nothing; "),
    (lambda: rk.seq2seq_loss(lambda y, t, n: y), "seq2seq_loss: got a loss that wants y, t, n; "),
    (lambda: rk.seq2seq_loss({"a": nn.Linear(3, 1)}), "seq2seq_loss: got a loss that wants input; "),
    (lambda: rk.seq2one_loss(mse.loss_fn, lambda y: y[-1]), "seq2one_loss: got read(y); wanted read(outputs, lengths)"),
    (lambda: rk.Learner(model, lambda y: y.mean(), opt), "Learner: got a loss that wants y; "),
    (lambda: learner(metrics={"a": lambda y: y.mean()}), "Learner: got a loss that wants y; "),
    (lambda: learner(callbacks=[Hook(lambda: 0)]), "Learner: got Hook.on_step_end(); wanted Hook.on_step_end(learner)"),
    (lambda: learner(callbacks=[Hook(None)]), "Learner: got Hook.on_step_end = a NoneType; "),
    (lambda: rk.sample_model(model, 8, x, lambda: 0), "sample_model: got sampler(); wanted sampler(outputs) or sampler(outputs, given)"),
    (lambda: rk.BPTTTrainingPhase(sampler=lambda a, b, c: a), "BPTTTrainingPhase: got sampler(a, b, c); "),
    (lambda: rk.sample_model(lm, 8, tok, rk.sample_best, stop=lambda t, n: t), "sample_model: got stop(t, n); wanted stop(tokens)"),
    (lambda: rk.DistributionSampler(torch.distributions.Normal), "DistributionSampler: got make(loc, scale, validate_args); "),
    (lambda: rk.BPTTValidationPhase(2, score="crps"), "BPTTValidationPhase: got score = a str; wanted score(paths, targets)"),
    (lambda: rk.BPTTValidationPhase(2, score=lambda paths: paths), "BPTTValidationPhase: got score(paths); "),
    (lambda: rk.rollout(lambda a, s, n: (a, s), x), "rollout: got <lambda>(a, s, n); wanted <lambda>(inputs, state)"),
    (lambda: rk.rollout(nn.GRU, x), "rollout: got the class GRU; "),
    (lambda: rk.Learner(nn.GRU, mse, opt), "Learner: got model = the class GRU; "),
    (lambda: rk.SoftmaxSampler(top_k=True), "SoftmaxSampler: got top_k = True"),
    (lambda: rk.SoftmaxSampler(top_p="0.9"), "SoftmaxSampler: got top_p = '0.9'"),
    (lambda: rk.SoftmaxSampler(min_p=torch.ones(2)), "SoftmaxSampler: got min_p = tensor([1., 1.])"),
    (lambda: rk.Feedback.probability("0.5"), "Feedback.probability: got p = 0.5; wanted 0 <= p <= 1"),
    (lambda: rk.rollout(model, x, rk.Feedback.probability(lambda step: None)), "Feedback.probability(<function"),
    (lambda: rk.EarlyStopping(3, min_delta="0.1"), "EarlyStopping: got min_delta = '0.1'"),
    (lambda: rk.KeepBest(min_delta=None), "KeepBest: got min_delta = None"),
    (lambda: rk.Unroll(nn.GRUCell(3, 3), dropout=2.0), "Unroll: got dropout = 2.0"),
    (lambda: rk.Unroll(nn.GRUCell(3, 3), dropout=True), "Unroll: got dropout = True"),
    (lambda: rk.Unroll(nn.GRUCell(3, 3))(torch.zeros(4)), "Unroll: got inputs (4,)"),
    (lambda: rk.seq2seq_loss({"a": nn.MSELoss()}, weights=[1.0]), "seq2seq_loss: got weights = a list of 1"),
    (lambda: rk.Scheduler(opt), "Scheduler: got scheduler = a SGD"),
    (lambda: rk.Scheduler(torch.optim.lr_scheduler.StepLR), "Scheduler: got scheduler = the class StepLR"),
    (lambda: rk.RecurrentSequential([nn.GRU(3, 3)]), "RecurrentSequential: got a member = a list of 1"),
    (lambda: rk.RecurrentSequential(nn.GRU(3, 3), None), "RecurrentSequential: got a member = a NoneType"),
    (lambda: rk.RecurrentSequential(nn.GRU), "RecurrentSequential: got a member = the class GRU"),
    (lambda: rk.PerStep(nn.Linear), "PerStep: got module(in_features, out_features, "),
    (lambda: rk.PerStep([nn.Linear(3, 3)]), "PerStep: got module = a list of 1"),
    (lambda: rk.sample_model(lm, 8, tok[0, 0]), "sample_model: got primer ()"),
    (lambda: mse.on(rk.RecurrentSequential, x, x), "seq2seq_loss.on: got the class RecurrentSequential; "),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), ABSURD, ids=[text for _, text in ABSURD])
def test_what_cannot_be_meant_is_refused_in_the_one_voice(call, text):
    assert refused(call, text, (ValueError, TypeError, OSError, IndexError)).startswith(text)


def test_what_is_large_and_can_be_meant_is_bounded_by_the_data():
    """A window longer than any sequence is no window; a width above all candidates keeps them all."""
    whole = rk.BPTTTrainingPhase()(model, mse, x, torch.optim.SGD(model.parameters(), 0.0)).loss
    wide = rk.BPTTTrainingPhase(window=10**30)(
        model, mse, x, torch.optim.SGD(model.parameters(), 0.0)
    ).loss
    assert torch.equal(whole, wide)
    assert len(rk.beam_search(lm, 7, tok, 10**12).tokens) == len(
        rk.beam_search(lm, 7, tok, 64).tokens
    )


# ---------------------------------------------------------------- slips

labels = torch.zeros(2, dtype=torch.long)
narrow = rk.RecurrentSequential(nn.GRU(3, 4), nn.Linear(4, 1))
cross_entropy = nn.CrossEntropyLoss()
SLIPS = [
    (lambda: rk.get_inout_seq(x.numpy()), "torch.as_tensor"),
    (lambda: rk.evaluate(model, rk.seq2seq_loss(cross_entropy), [(x, labels)]), "seq2one_loss"),
    (lambda: learner(metrics={"right": lambda y, t: (y.argmax(-1) == t).float().mean()}).step(
        rk.BPTTValidationPhase(), (x, labels)), "seq2one_loss"),
    (lambda: rk.forecast(narrow, 2, x), "with_covariates(sampler, n)"),
    (lambda: learner().fit([x], 3), "epochs = a list of 1; wanted a whole number"),
    (lambda: rk.Learner(model, opt, mse), "Learner(model, loss, optimizer)"),
    (lambda: rk.pad_collate([(x, x, x[..., 0])]), "an item that is a tuple of 3"),
    (lambda: rk.Unroll(nn.GRUCell(3, 3))({"a": x}), "the sequences of a dict, torch.cat("),
    (lambda: rk.StreamLoader((x, x), 2, 2), "torch.cat([x, y], 1)"),
    (lambda: rk.StreamLoader({"a": x}, 2, 2), "a dict of 'a'; wanted one stream"),
    (lambda: rk.seq2seq_loss({"a": nn.MSELoss()})({"a": x}, {"a": labels}), "seq2one_loss"),
    (lambda: rk.pad_collate([(x,)]), "an item that is a tuple of 1"),
    (lambda: rk.evaluate(narrow, mse, [x]), "those features alone as targets"),
    (lambda: mse(x, {"a": x, "b": x}), "or (inputs, targets) with one target"),
    (lambda: mse({"policy": x, "value": x}, x), "a bare loss(outputs, targets, lengths) for one of all"),
    (lambda: rk.seq2one_loss(lambda y, t, n: y[0], read="all")(x, x), "targets.transpose(0, 1)"),
    (lambda: mse(x, x, weights=torch.ones_like(x)), "a sum and a weight masks features"),
    (lambda: rk.get_inout_seq({"a": x, "fixed": x[0]}), "cut, pad or expand them"),
    (lambda: rk.get_inout_seq({"text": x, "question": x[:2]}), "is a source, (source, lengths, inputs)"),
    (lambda: rk.get_inout_seq(rk.SequenceBatch(x, x, restart=x[..., 0] > 0)), "cut the batch"),
    (lambda: rk.seq2seq_loss(cross_entropy)(x, x.long()), "targets.argmax(-1) of one-hot rows"),
    (lambda: rk.Learner(model, mse, opt, [rk.EarlyStopping(2, "f1")]).fit(1, [x], [x]), "metrics={'f1': ...}"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), SLIPS, ids=[words for _, words in SLIPS])
def test_a_common_slip_is_answered_with_what_cures_it(call, words):
    refused(call, words, (ValueError, TypeError))
