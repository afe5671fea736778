"""Two processes that train one model, held against one process on the joint batch.

The two are started once, do all that is asked of them, and leave what came of it in files."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchmetrics
from helpers import refused, seeded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rnnkit as rk

RANKS, V, H, F = 2, 7, 5, 2
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- what is trained


def beside(batches):
    """The joint batch: the rows of all side by side, padded to the longest."""
    time = max(len(batch.inputs) for batch in batches)

    def joined(name):
        parts = [getattr(batch, name) for batch in batches]
        if parts[0] is None:
            return None
        if parts[0].ndim == 1:
            return torch.cat(parts)
        rest = [part.new_zeros(time - len(part), *part.shape[1:]) for part in parts]
        return torch.cat([torch.cat(pair) for pair in zip(parts, rest, strict=True)], 1)

    lengths = []
    for batch in batches:
        rows = batch.inputs.shape[1]
        full = torch.full((rows,), len(batch.inputs))
        lengths.append(full if batch.lengths is None else batch.lengths)
    targets, restart = joined("targets"), None
    if batches[0].restart is not None:
        restart = torch.cat([batch.restart for batch in batches])
    return rk.SequenceBatch(
        joined("inputs"), targets, torch.cat(lengths), restart, joined("weights")
    )


def language_model():
    torch.manual_seed(0)
    return rk.RecurrentSequential(nn.Embedding(V, 4), nn.LSTM(4, H), nn.Linear(H, V)).double()


def continuous_model():
    torch.manual_seed(0)
    return rk.RecurrentSequential(nn.GRU(F, H), nn.Linear(H, F)).double()


class TwoHeads(nn.Module):
    """One output by each of two heads; the second is scored in one rank only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.a, self.b = nn.GRU(F, H), nn.Linear(H, V), nn.Linear(H, V)
        self.never = nn.Linear(1, 1)
        self.double()

    def forward(self, inputs, state=None):
        hidden, state = self.rnn(inputs, state)
        return {"a": self.a(hidden), "b": self.b(hidden)}, state


def tokens(*shape, seed=0):
    return torch.randint(V, shape, generator=seeded(seed))


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def language_shares(lengths, count=2):
    """Batches of tokens by rank, some not scored; each rank has rows and lengths of its own."""
    steps = []
    for i in range(count):
        shares = []
        for rank, own in enumerate(lengths):
            inputs, targets = tokens(2, max(own), len(own), seed=10 * i + rank)
            targets[numbers(*targets.shape, seed=i + rank) > 0.8] = -100
            shares.append(rk.SequenceBatch(inputs, targets, torch.tensor(own)))
        steps.append(shares)
    return steps


def continuous_shares(sizes, count=2):
    steps = []
    for i in range(count):
        whole = [numbers(t + 1, b, F, seed=10 * i + r) for r, (t, b) in enumerate(sizes)]
        steps.append([rk.SequenceBatch(x[:-1], x[1:]) for x in whole])
    return steps


def without_weight():
    """Of four batches one is scored in no rank, and two in one rank only."""
    steps = continuous_shares([(9, 2), (9, 3)], 4)
    scored = [(1.0, 0.0), (0.0, 0.0), (0.0, 0.5), (1.0, 2.0)]
    weighed = []
    for shares, each in zip(steps, scored, strict=True):
        pairs = zip(shares, each, strict=True)
        weighed.append([replace(b, weights=torch.full(b.inputs.shape[:2], w)) for b, w in pairs])
    return weighed


def heads():
    steps = []
    for i in range(2):
        shares = []
        for rank in range(RANKS):
            a, b = tokens(2, 6, 2, seed=10 * i + rank)
            if rank == 0 or i == 1:  # in the second batch nobody scores it
                b = torch.full_like(b, -100)
            targets = {"a": a, "b": b}
            shares.append(rk.SequenceBatch(numbers(6, 2, F, seed=10 * i + rank), targets))
        steps.append(shares)
    return steps


def beside_heads(batches):
    names = batches[0].targets
    return rk.SequenceBatch(
        torch.cat([batch.inputs for batch in batches], 1),
        {name: torch.cat([batch.targets[name] for batch in batches], 1) for name in names},
    )


def translator():
    torch.manual_seed(0)
    encoder = rk.RecurrentSequential(nn.Embedding(V, 4), nn.GRU(4, H))
    decoder = rk.RecurrentSequential(nn.Embedding(V, 4), nn.GRU(4, H))
    return rk.EncoderDecoder(encoder, decoder, rk.Attention(H, V)).double()


def translations():
    """Sources and targets of lengths of their own, three rows in one rank and two in the other."""
    lengths = [([5, 3, 4], [4, 6, 2]), ([7, 2], [3, 5])]
    steps = []
    for i in range(2):
        shares = []
        for rank, (of_source, own) in enumerate(lengths):
            source = tokens(max(of_source), len(of_source), seed=20 * i + rank)
            inputs, targets = tokens(2, max(own), len(own), seed=10 * i + rank)
            read = (source, torch.tensor(of_source), inputs)
            shares.append(rk.SequenceBatch(read, targets, torch.tensor(own)))
        steps.append(shares)
    return steps


def beside_translations(batches):
    reads = [batch.inputs for batch in batches]
    sources = beside([rk.SequenceBatch(source, None, own) for source, own, _ in reads])
    whole = beside(
        [replace(b, inputs=inputs) for b, (*_, inputs) in zip(batches, reads, strict=True)]
    )
    return replace(whole, inputs=(sources.inputs, sources.lengths, whole.inputs))


def normed_model():
    torch.manual_seed(0)
    norm = rk.PerStep(nn.BatchNorm1d(F))
    return rk.RecurrentSequential(norm, nn.GRU(F, H), nn.Linear(H, F)).double()


STREAM = tokens(101, seed=3)
DOCUMENTS = [tokens(n, seed=n) for n in (30, 9, 4, 25, 6)]


def stream_shares(stream, rows, window):
    loaders = [rk.StreamLoader(stream, rows, window, rank=i, ranks=RANKS) for i in range(RANKS)]
    return [list(shares) for shares in zip(*loaders, strict=True)]


def one_target():
    steps = []
    for i in range(2):
        shares = []
        for rank, own in enumerate(([9, 5, 7], [6, 2])):
            x = numbers(max(own), len(own), F, seed=10 * i + rank)
            y = numbers(1, len(own), F, seed=i + rank)[0]
            shares.append(rk.SequenceBatch(x, y, torch.tensor(own)))
        steps.append(shares)
    return steps


def beside_one(batches):
    whole = beside([rk.SequenceBatch(b.inputs, None, b.lengths) for b in batches])
    targets = torch.cat([batch.targets for batch in batches])
    return rk.SequenceBatch(whole.inputs, targets, whole.lengths)


ce, mse = nn.CrossEntropyLoss, nn.MSELoss
step_loss, mean_loss = rk.seq2seq_loss(ce()), rk.seq2seq_loss(mse())
ragged = language_shares([[9, 5, 7], [6, 2]])

# name: model, loss, phase, the shares of each batch, and how the joint batch is made of them
CASES = {
    "full": (continuous_model, mean_loss, {}, continuous_shares([(9, 3), (9, 2)])),
    "another length": (continuous_model, mean_loss, {}, continuous_shares([(9, 3), (4, 2)])),
    "ragged": (language_model, step_loss, {}, ragged),
    "by sequence": (language_model, rk.seq2seq_loss(ce(), average="sequence"), {}, ragged),
    "windows": (language_model, step_loss, {"window": 3}, language_shares([[10, 5], [6, 2, 1]])),
    "windows that overlap": (
        language_model,
        step_loss,
        {"window": 4, "stride": 3},
        language_shares([[10, 5], [6, 2, 1]]),
    ),
    "a stream": (
        language_model,
        step_loss,
        {"stateful": True, "window": 3},
        stream_shares(STREAM, 2, 10),
    ),
    "documents": (language_model, step_loss, {"stateful": True}, stream_shares(DOCUMENTS, 2, 5)),
    "documents in windows": (
        language_model,
        step_loss,
        {"stateful": True, "window": 3, "stride": 2},
        stream_shares(DOCUMENTS, 2, 5),
    ),
    "feedback": (
        continuous_model,
        mean_loss,
        {"feedback": rk.Feedback.last(4)},
        continuous_shares([(9, 3), (9, 2)]),
    ),
    "feedback in windows": (
        continuous_model,
        mean_loss,
        {"feedback": rk.Feedback.last(4), "window": 3},
        continuous_shares([(9, 3), (9, 2)]),
    ),
    "accumulated": (
        language_model,
        step_loss,
        {"accumulate": 2, "window": 4},
        language_shares([[9, 5, 7], [6, 2]], 5),
    ),
    "no weight": (continuous_model, mean_loss, {}, without_weight()),
    "no weight, accumulated": (continuous_model, mean_loss, {"accumulate": 3}, without_weight()),
    "heads": (TwoHeads, rk.seq2seq_loss({"a": ce(), "b": ce()}, weights={"b": 0.5}), {}, heads()),
    "heads, accumulated": (
        TwoHeads,
        rk.seq2seq_loss({"a": ce(), "b": ce()}, weights={"b": 0.5}),
        {"accumulate": 2},
        heads(),
    ),
    "one target": (continuous_model, rk.seq2one_loss(mse()), {}, one_target()),
    "one target, a window": (
        continuous_model,
        rk.seq2one_loss(mse()),
        {"window": 6},
        one_target(),
    ),
    "encoder and decoder": (translator, step_loss, {}, translations()),
}


def join_of(case):
    if case.startswith("heads"):
        return beside_heads
    if case.startswith("encoder"):
        return beside_translations
    return beside_one if case.startswith("one target") else beside


# ---------------------------------------------------------------- what is looked at


class Record:
    """Each step's loss, and the gradient of each update."""

    def __init__(self):
        self.before, self.losses, self.gradients = [], [], []

    def on_backward_begin(self, learner):
        self.before.append(learner.current.loss)

    def on_backward_end(self, learner):
        parameters = learner.optimizer.param_groups[0]["params"]
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])

    def on_step_end(self, learner):
        self.losses.append(learner.current.loss)


def trained(case, batches, wrap=lambda model: model):
    """What an epoch of a case does, and what it leaves."""
    make, loss, options, _ = CASES[case]
    model, record = make(), Record()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    learner = rk.Learner(wrap(model), loss, optimizer, [record, rk.ClipGradients(0.5)])
    averages = learner.epoch(rk.BPTTTrainingPhase(**options), batches)
    return {**vars(record), "averages": averages, "weights": list(model.parameters())}


def with_batch_norm(batches):
    model = normed_model()
    learner = learner_of(DistributedDataParallel(model))
    learner.epoch(rk.BPTTTrainingPhase(), batches)
    return model.state_dict()


def in_a_plain_loop(batches, wrap=lambda model: model):
    model, phase = language_model(), rk.BPTTTrainingPhase(accumulate=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for batch in batches:
        phase(wrap(model), step_loss, batch, optimizer)
    phase.flush(optimizer)
    return list(model.parameters())


VALIDATION = [[(9, 2), (6, 3), (12, 1)], [(7, 2)]]  # steps and rows of each rank's batches


def validation_of(rank):
    return [numbers(t, b, F, seed=t) for t, b in VALIDATION[rank]]


def evaluated(batches, wrap=lambda model: model):
    return rk.evaluate(
        wrap(continuous_model()),
        mean_loss,
        batches,
        rk.BPTTValidationPhase(nfeedback=3),
        metrics={
            "mae": rk.seq2seq_loss(nn.L1Loss()),
            "counted": torchmetrics.MeanAbsoluteError(),
        },
    )


def fitted(train, valid, folder, wrap=lambda model: model):
    """A fit of which everything that decides something decides."""
    model = continuous_model()
    optimizer = torch.optim.SGD(model.parameters(), 3.0)
    history = rk.History()
    stop, best = rk.EarlyStopping(2, phase="training"), rk.KeepBest(phase="training")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    callbacks = [history, stop, best, rk.Scheduler(plateau), rk.ProgressBar()]
    callbacks.append(rk.Checkpoint(folder / "fit.pt"))
    learner = rk.Learner(wrap(model), mean_loss, optimizer, callbacks)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        learner.fit(40, train, valid)
    return {
        "rows": history.rows,
        "epochs": learner.epoch_index,
        "best": best.epoch,
        "rate": optimizer.param_groups[0]["lr"],
        "weights": list(model.parameters()),
        "said": said.getvalue(),
    }


class Cut:
    """Ends the process's training in the middle of its second epoch, as an interrupt does."""

    def on_step_begin(self, learner):
        if learner.phase.trains and learner.epoch_index == 1 and learner.step_index == 3:
            raise KeyboardInterrupt


def resumed(kind, path, rank, cut):
    """The weights and the history of three epochs, in one go or cut and resumed."""
    rows = []
    for callbacks in [[rk.Checkpoint(path, every=2), Cut()], []] if cut else [[]]:
        torch.manual_seed(rank)
        generator = seeded(5)
        if kind == "stream":
            data = rk.StreamLoader(STREAM, 2, 8, rank=rank, ranks=RANKS)
            options = {"stateful": True, "window": 3, "accumulate": 3}
        else:
            texts = [tokens(3 + i % 7, seed=i) for i in range(26)]
            sampler = rk.BucketSampler(
                list(map(len, texts)), 2, generator=generator, rank=rank, ranks=RANKS
            )
            pairs = [(text[:-1], text[1:]) for text in texts]
            data = torch.utils.data.DataLoader(
                pairs, batch_sampler=sampler, collate_fn=rk.pad_collate
            )
            feedback = rk.Feedback.probability(0.5, generator=seeded(rank))
            options = {"feedback": feedback, "sampler": rk.sample_best}
        model = language_model()
        model[1].dropout = 0.0
        model = rk.RecurrentSequential(*model, nn.Dropout(0.2)).double()
        if cut and not callbacks:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1)
            callbacks = [rk.Checkpoint(path, resume=True)]
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        history = rk.History()
        learner = rk.Learner(
            DistributedDataParallel(model), step_loss, optimizer, [history, *callbacks]
        )
        with contextlib.suppress(KeyboardInterrupt):
            learner.fit(3, data, training=rk.BPTTTrainingPhase(**options))
        rows = history.rows
    return {"rows": rows, "weights": list(model.parameters()), "files": path.exists()}


class Endless(torch.utils.data.IterableDataset):
    """Data that cannot tell how much of it there is."""

    def __iter__(self):
        return iter(validation_of(0))


def without_a_length(valid):
    """The losses of a validation within a fit, whose training loader has no length."""
    history = rk.History()
    learner = learner_of(DistributedDataParallel(continuous_model()), callbacks=[history])
    learner.optimizer.param_groups[0]["lr"] = 0.0
    train = torch.utils.data.DataLoader(Endless(), batch_size=None)
    learner.fit(1, train, valid, validation=rk.BPTTValidationPhase(nfeedback=3))
    return {name: history.rows[-1][name] for name in ("loss", "open_loss", "closed_loss")}


class Uncounted:
    """A metric that counts, and does not know of other ranks."""

    def reset(self):
        self.sum = 0.0

    def update(self, outputs, targets):
        self.sum += float(outputs.sum())

    def compute(self):
        return self.sum


def learner_of(model, **options):
    return rk.Learner(
        model, options.pop("loss", mean_loss), torch.optim.SGD(model.parameters(), 0.1), **options
    )


def refusals(rank, folder):
    """What two processes are refused: each a call, and a part of what it says."""
    whole = continuous_model()
    one, ddp = whole, DistributedDataParallel(continuous_model())
    batch = numbers(4, 2, F)
    counted = learner_of(ddp, metrics={"sum": Uncounted()})
    tables = rk.RecurrentSequential(nn.Embedding(V, F, sparse=True), nn.GRU(F, V)).double()
    sparse = learner_of(DistributedDataParallel(tables), loss=step_loss)
    alone = rk.Learner(one, mean_loss, torch.optim.SGD(one.parameters(), 0.1))
    yield (
        lambda: learner_of(ddp).fit(1, [batch] * (1 + rank)),
        "batches to train on: 1 in rank 0, 2 in rank 1; wanted the same number in every rank",
    )
    yield (
        lambda: counted.epoch(rk.BPTTValidationPhase(), [batch + rank]),
        "metrics that count: {'sum': ",
    )
    yield (
        lambda: learner_of(ddp).fit(1, [batch], []),
        "got no batches in epoch 1; wanted at least one for validation.",
    )
    yield (lambda: sparse.step(rk.BPTTTrainingPhase(), tokens(4, 2)), "got a sparse gradient;")
    path = folder / "alone.pt"
    if rank == 0:
        alone.fit(1, [batch])
        torch.save(alone.state_dict(), path)
    dist.barrier()
    yield (
        lambda: learner_of(ddp).load_state_dict(torch.load(path)),
        "got a file of 1 process; wanted one of 2. Likely fix: torchrun --nproc-per-node 1;",
    )
    nowhere = rk.Checkpoint(folder)  # a folder in rank 0's eyes, too
    yield (
        lambda: learner_of(ddp, callbacks=[nowhere]).fit(1, [batch]),
        ["got a folder;", "got an error in rank 0, ValueError: Checkpoint("][rank],
    )


# ---------------------------------------------------------------- the two processes


def work(rank, folder):
    """All that one of the two does."""
    torch.set_num_threads(1)
    place = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=RANKS)
    came = {}
    for case, (*_, steps) in CASES.items():
        came[case] = trained(case, [shares[rank] for shares in steps], DistributedDataParallel)
    own = [shares[rank] for shares in ragged]
    came["plain loop"] = in_a_plain_loop(own, DistributedDataParallel)
    came["batch norm"] = with_batch_norm([shares[rank] for shares in CASES["full"][-1]])
    came["validation"] = evaluated(validation_of(rank), DistributedDataParallel)
    # One rank has nothing to validate on.
    mine = validation_of(0) if rank == 0 else []
    came["validation of one"] = evaluated(mine, DistributedDataParallel)
    came["fit and validation of one"] = without_a_length(mine)
    train = [shares[rank] for shares in CASES["full"][-1]]
    # Only the first writes and reads, so the other's path is one that it could not write to.
    mine = folder if rank == 0 else Path("/dev/null/nothing")
    came["fit"] = fitted(train, validation_of(rank), mine, DistributedDataParallel)
    for kind in ("stream", "buckets"):
        for cut in (False, True):
            came[kind, cut] = resumed(kind, mine / f"{kind}.pt", rank, cut)
    # A parameter that a loss reads, and that only the optimizer knows of.
    model = continuous_model()
    own = nn.Parameter(torch.full((), float(rank + 1)))
    rk.Learner(
        DistributedDataParallel(model), mean_loss, torch.optim.SGD([*model.parameters(), own], 0.1)
    )
    came["own"] = own.detach()
    for i, (call, text) in enumerate(refusals(rank, folder)):
        came["refusal", i] = text
        refused(call, text)
    torch.save(came, folder / f"{rank}.pt")
    dist.destroy_process_group()
    time.sleep(1)  # for gloo's threads, see docs/ranks.md


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What came of each of the two."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (folder,), RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


# ---------------------------------------------------------------- against one process


def assert_same_gradients(came, wanted):
    assert len(came) == len(wanted) > 0
    for ours, theirs in zip(came, wanted, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                close(left, right)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does_on_the_joint_batch(both, case):
    join = join_of(case)
    wanted = trained(case, [join(shares) for shares in CASES[case][-1]])
    for came in both:
        assert_same_gradients(came[case]["gradients"], wanted["gradients"])
        for name in ("before", "losses", "weights"):
            close(came[case][name], wanted[name])
        close(came[case]["averages"], wanted["averages"])
    for left, right in zip(both[0][case]["weights"], both[1][case]["weights"], strict=True):
        assert torch.equal(left, right)  # to the bit


def test_phases_in_a_plain_loop_add_over_ranks_too(both):
    wanted = in_a_plain_loop([beside(shares) for shares in ragged])
    for came in both:
        close(came["plain loop"], wanted)


def test_a_batch_norm_has_each_ranks_own_rows_and_the_running_statistics_of_the_first(both):
    model = normed_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for shares in CASES["full"][-1]:
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        second = torch.func.functional_call(model, before, (shares[1].inputs,))[0]
        first, _ = model(shares[0].inputs)  # only this one moves the model's own statistics
        losses = [(first - shares[0].targets).square(), (second - shares[1].targets).square()]
        optimizer.zero_grad()
        (sum(each.sum() for each in losses) / sum(each.numel() for each in losses)).backward()
        optimizer.step()
    for came in both:
        close(came["batch norm"], model.state_dict())
    assert model[0].module.running_mean.abs().max() > 1e-3, "no statistics"


def test_a_validation_is_that_of_all_batches_wherever_they_are(both):
    wanted = evaluated(validation_of(0) + validation_of(1))
    assert set(wanted) >= {"open_loss", "closed_loss", "loss_by_step", "mae", "counted"}
    for came in both:
        close({**came["validation"], "counted": 0.0}, {**wanted, "counted": 0.0}, equal_nan=True)
        assert came["validation"]["counted"] == pytest.approx(wanted["counted"], rel=1e-5)


def test_a_rank_may_have_nothing_to_validate_on(both):
    wanted = evaluated(validation_of(0))
    for came in both:
        close(came["validation of one"], wanted, equal_nan=True)
        for name, value in came["fit and validation of one"].items():
            assert value == pytest.approx(wanted[name], rel=1e-12)


def test_what_decides_decides_the_same_in_every_rank(both, tmp_path):
    train = [beside(shares) for shares in CASES["full"][-1]]
    wanted = fitted(train, validation_of(0) + validation_of(1), tmp_path)
    assert 3 < wanted["epochs"] < 40 and wanted["rate"] < 3 and wanted["best"] > 1, (
        "nothing was decided"
    )
    for came in both:
        for name in ("epochs", "best", "rate"):
            assert came["fit"][name] == wanted[name]
        for ours, theirs in zip(came["fit"]["rows"], wanted["rows"], strict=True):
            assert ours.pop("phase") == theirs["phase"]
            close(ours, {name: theirs[name] for name in ours})
        close(came["fit"]["weights"], wanted["weights"])
    assert both[0]["fit"]["rows"] == both[1]["fit"]["rows"]


def test_what_the_optimizer_alone_knows_of_begins_as_in_the_first_rank(both):
    assert [came["own"].item() for came in both] == [1.0, 1.0]


def test_only_the_first_rank_shows_progress(both):
    assert both[0]["fit"]["said"].count("\n") == 2 * both[0]["fit"]["epochs"]
    assert both[1]["fit"]["said"] == ""


@pytest.mark.parametrize("kind", ["stream", "buckets"])
def test_a_training_resumed_by_two_processes_is_bitwise_that_of_one_go(both, kind):
    for rank, came in enumerate(both):
        whole, cut = came[kind, False], came[kind, True]
        assert len(cut["rows"]) == 3 and cut["rows"] == whole["rows"]
        for left, right in zip(cut["weights"], whole["weights"], strict=True):
            assert torch.equal(left, right)
        assert cut["files"] == (rank == 0)


def test_what_two_processes_cannot_do_is_refused_in_words(both):
    for came in both:
        assert sum(key[0] == "refusal" for key in came) == 6


@pytest.fixture
def a_group_of_one(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", ["windows", "feedback", "no weight", "heads, accumulated"])
def test_a_group_of_one_trains_as_a_process_alone(a_group_of_one, case):
    batches = [join_of(case)(shares) for shares in CASES[case][-1]]
    came, wanted = trained(case, batches, DistributedDataParallel), trained(case, batches)
    assert_same_gradients(came["gradients"], wanted["gradients"])
    close(came["weights"], wanted["weights"])


def test_the_model_is_the_one_inside_and_so_are_the_names_of_its_weights(a_group_of_one):
    model = continuous_model()
    learner = learner_of(DistributedDataParallel(model))
    assert learner.model is model
    assert learner.state_dict()["model"].keys() == model.state_dict().keys()


def test_a_wrapper_whose_work_would_be_lost_is_refused(a_group_of_one):
    model = continuous_model()
    around = torch.compile(DistributedDataParallel(model), backend="eager")
    refused(
        lambda: learner_of(around),
        "got torch.compile around DistributedDataParallel; wanted it inside.",
        TypeError,
    )
    mixed = DistributedDataParallel(model)
    mixed.mixed_precision = torch.nn.parallel.distributed._MixedPrecision(torch.bfloat16)
    refused(lambda: learner_of(mixed), "DistributedDataParallel with mixed_precision;", TypeError)


def test_a_model_whose_weights_are_shared_out_is_refused(a_group_of_one):
    shared = continuous_model()
    fully_shard(shared, mesh=init_device_mesh("cpu", (1,)))
    text = "got a model whose weights are shared out over ranks"
    refused(lambda: learner_of(shared), text, TypeError)
    refused(lambda: rk.evaluate(shared, mean_loss, [numbers(4, 2, F)]), text, TypeError)
    optimizer = torch.optim.SGD(shared.parameters(), 0.1)
    batch = numbers(4, 2, F)
    refused(lambda: rk.BPTTTrainingPhase()(shared, mean_loss, batch, optimizer), text, TypeError)


def test_the_script_of_the_guide_runs_with_torchrun(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "ranks.md").read_text()
    (script,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    around = {**os.environ, "PYTHONPATH": str(Path(rk.__file__).parent.parent)}
    done = subprocess.run(
        [*command, "2", "train.py"], cwd=tmp_path, env=around, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert said == [f"epoch {i} {name}" for i in (1, 2) for name in ("training", "validation")]
    assert (tmp_path / "run.pt").exists()


# ---------------------------------------------------------------- loaders


@pytest.mark.parametrize("stream", [STREAM, STREAM.numpy(), DOCUMENTS], ids=["one", "map", "list"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_of_a_stream_read_side_by_side_what_one_reader_reads(stream, ranks):
    whole = rk.StreamLoader(stream, 2 * ranks, 5)
    parts = [rk.StreamLoader(stream, 2, 5, rank=i, ranks=ranks) for i in range(ranks)]
    assert [len(part) for part in parts] == [len(whole)] * ranks
    for wanted, *shares in zip(whole, *parts, strict=True):
        joint = beside(shares)
        rows, time = wanted.inputs.shape[1], int(joint.lengths.max())
        lengths = wanted.lengths
        if lengths is None:
            lengths = torch.full((rows,), len(wanted.inputs))
        assert torch.equal(joint.lengths, lengths)
        assert torch.equal(joint.restart, wanted.restart)
        for t in range(time):
            here = t < lengths
            assert torch.equal(joint.inputs[t, here], wanted.inputs[t, here])
            assert torch.equal(joint.targets[t, here], wanted.targets[t, here])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch_size", "max_steps"), [(1, None), (3, None), (None, 12), (3, 20)])
def test_the_ranks_of_a_bucket_sampler_share_each_batch(ranks, drop_last, batch_size, max_steps):
    for count in range(ranks, 30):
        lengths = torch.randint(1, 9, (count,), generator=seeded(count))
        options = {"max_steps": max_steps, "drop_last": drop_last, "ranks": ranks}
        shares = []
        for rank in range(ranks):
            sampler = rk.BucketSampler(
                lengths, batch_size, generator=seeded(1), rank=rank, **options
            )
            shares.append(list(sampler))
            assert len(sampler) == len(shares[-1])
        assert len({len(batches) for batches in shares}) == 1
        seen = [i for batches in shares for batch in batches for i in batch]
        assert len(seen) == len(set(seen))
        for batches in shares:
            for batch in batches:
                assert 0 < len(batch) <= (batch_size or 99)
                assert len(batch) * int(lengths[batch].max()) <= (max_steps or 999)
        missed = count - len(seen)
        roomy = batch_size == 3 and max_steps is None
        if not drop_last:
            assert missed == 0 if roomy or ranks == 1 else missed < ranks


def test_a_split_that_cannot_be_is_refused():
    sampler = partial(rk.BucketSampler, [3, 4, 5], 1)
    refused(lambda: rk.StreamLoader(STREAM, 2, 5, rank=2, ranks=2), "rank = 2 of 2")
    refused(lambda: rk.StreamLoader(STREAM, 2, 5, ranks=0), "ranks = 0")
    refused(lambda: rk.StreamLoader(STREAM, 60, 5, ranks=2), "for 120 rows")
    refused(lambda: sampler(ranks=4, shuffle=False), "3 sequences for 4 ranks")
    refused(lambda: sampler(ranks=2), "shuffle without a generator for 2 ranks")
