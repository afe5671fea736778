"""Nothing is lost: trainings are killed with SIGKILL and resumed, and damaged or foreign files are refused.

Run as a script, this file trains in forked processes that are killed and resumed, and writes what came of them.
"""

import contextlib
import copy
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, RandomSampler, Subset

import rnnkit as rk

SEQ = rk.seq2seq_loss(nn.MSELoss())
EPOCHS = 3


class Noisy(Dataset):
    """Twelve sequences; where it is noisy, each is drawn with noise from PyTorch's and Python's global generators."""

    def __init__(self, noise: bool) -> None:
        self.noise = noise
        self.items = [
            torch.sin(torch.arange(7.0) * (0.3 + 0.1 * i)).unsqueeze(1) for i in range(12)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> torch.Tensor:
        item = self.items[i]
        chances = random.random() + np.random.random()
        return item + 0.1 * torch.randn(item.shape) + 0.1 * chances if self.noise else item


def loaders(kind: str, salt: int):
    if kind == "stream":
        stream = torch.sin(torch.arange(49.0) / 3).unsqueeze(1)
        return rk.StreamLoader(stream, 3, 4), rk.StreamLoader(stream[:31], 3, 4)
    own = torch.Generator().manual_seed(10 + salt) if kind in ("own", "bucket") else None
    if kind == "bucket":
        sampler = rk.BucketSampler([4, 7, 5] * 4, 3, generator=own)
        data = [item[:n] for item, n in zip(Noisy(False).items, [4, 7, 5] * 4, strict=True)]
        valid = DataLoader(
            data,
            4,
            shuffle=True,
            collate_fn=rk.pad_collate,
            generator=torch.Generator().manual_seed(salt),
        )
        return DataLoader(data, batch_sampler=sampler, collate_fn=rk.pad_collate), valid
    options = {"collate_fn": lambda items: torch.stack(items, 1), "generator": own}
    return DataLoader(Noisy(kind == "noisy"), 3, shuffle=True, **options), DataLoader(
        Noisy(False), 4, shuffle=True, **options
    )


class Kill:
    """Ends its own process with SIGKILL at the n-th time that an event comes in a phase."""

    def __init__(self, place: tuple[str, str, int]) -> None:
        self.place, self.count = place, 0
        self.order = -1
        setattr(self, f"on_{place[1]}", self.strike)

    def strike(self, learner: rk.Learner) -> None:
        if learner.phase_name in (self.place[0], ""):
            self.count += 1
            if self.count == self.place[2]:
                os.kill(os.getpid(), signal.SIGKILL)


class KillLate(Kill):
    """The same, but after the checkpoint."""

    def __init__(self, place) -> None:
        super().__init__(place)
        self.order = 2


def build(
    kind: str = "global", salt: int = 0, patience: int = 9, rate: float = 0.02, extra: tuple = ()
):
    torch.manual_seed(1 + salt)
    random.seed(1 + salt)
    np.random.seed(1 + salt)
    model = rk.RecurrentSequential(nn.LSTM(1, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    feedback = rk.Feedback.probability(
        lambda s: min(1.0, s / 20), generator=torch.Generator().manual_seed(3 + salt)
    )
    training = rk.BPTTTrainingPhase(
        window=4, stride=3, stateful=kind == "stream", feedback=feedback
    )
    validation = rk.BPTTValidationPhase(
        nfeedback=1 if kind == "stream" else 2, stateful=kind == "stream"
    )
    history = rk.History()
    callbacks = [
        history,
        rk.ClipGradients(1.0),
        rk.EarlyStopping(patience, "closed_loss"),
        rk.Scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9), per="step"),
        rk.Scheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)),
        *extra,
    ]
    return rk.Learner(model, SEQ, optimizer, callbacks), history, training, validation


def train(
    path: Path | None,
    out: Path,
    kind: str,
    every: int | None,
    place=None,
    late=None,
    epochs=EPOCHS,
    **options,
):
    """One process's life: a training from its file, where there is one, to its end or its kill."""
    torch.set_num_threads(1)
    salt = (
        1000 if path is not None and path.exists() else 0
    )  # whoever resumes has other seeds of his own
    checkpoint = [] if path is None else [rk.Checkpoint(path, every, resume=True)]
    kills = [Kill(place)] if place else []
    if late:
        kills.append(KillLate(late))
    extra = (*checkpoint, *kills)
    learner, history, training, validation = build(kind, salt, extra=extra, **options)
    learner.fit(epochs, *loaders(kind, salt), training, validation)
    weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
    adam = [value for state in learner.optimizer.state.values() for value in state.values()]
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    steps, draws = training.updates, [torch.rand(3), random.random(), float(np.random.random())]
    torch.save({"weights": weights, "adam": adam, "rates": rates, "rows": history.rows, "steps": steps,
                "epoch": learner.epoch_index, "draws": draws}, out)  # fmt: skip


def _time_of(path: Path | None) -> int:
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def forked(*args, after: int = 0, **options) -> int:
    """Train in a process of its own, killed from here after some writes; 0 or the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(*args, **options)
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    ended, status, seen = 0, 0, [_time_of(args[0])]
    while after and not ended:
        time.sleep(0.0005)
        ended, status = os.waitpid(pid, os.WNOHANG)
        seen += [now] if (now := _time_of(args[0])) != seen[-1] else []
        if len(seen) > after:
            time.sleep(random.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            break
    if not ended:
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the training failed"
    return 0


MIDDLE = ("training", "backward_end", 12)
SCENARIOS = {
    "middle, global generator": ("global", 1, {"place": MIDDLE}),
    "middle, noise in the data": ("noisy", 2, {"place": ("training", "step_begin", 7)}),
    "middle, noise, between two writes": ("noisy", 3, {"place": ("training", "window_end", 16)}),
    "middle, loader with its own generator": ("own", 2, {"place": ("training", "step_begin", 8)}),
    "middle, buckets of ragged sequences": ("bucket", 1, {"place": ("training", "loss_begin", 10)}),
    "middle of a stream": ("stream", 1, {"place": ("training", "step_begin", 7)}),
    "before the first write": ("own", 4, {"place": ("training", "step_begin", 3)}),
    "in validation": ("global", 2, {"place": ("validation", "loss_begin", 2)}),
    "in validation, after the last training step": ("own", 1, {"place": ("validation", "step_begin", 4)}),
    "in validation of a stream": ("stream", 1, {"place": ("validation", "loss_begin", 2)}),
    "at the end of an epoch, before its write": ("own", 3, {"place": ("validation", "epoch_end", 2)}),
    "right after an epoch, global generator": ("global", None, {"late": ("validation", "epoch_end", 1)}),
    "right after an epoch, own generators": ("own", None, {"late": ("validation", "epoch_end", 2)}),
    "right after an epoch, buckets": ("bucket", None, {"late": ("validation", "epoch_end", 1)}),
    "right after an epoch of a stream": ("stream", None, {"late": ("validation", "epoch_end", 1)}),
    "only whole epochs written": ("noisy", None, {"place": ("training", "backward_begin", 20)}),
    "after early stopping": ("global", None, {"late": ("validation", "epoch_end", 3), "patience": 1, "rate": 0.0,
                                              "epochs": 9}),
    "after the last epoch": ("own", 2, {"late": ("validation", "epoch_end", 3)}),
}  # fmt: skip
SCENARIOS["after early stopping"][2]["late"] = ("validation", "fit_end", 1)


def scenarios(folder: Path) -> None:
    import_module("torch._dynamo")  # Adam wants it: once here, and not once in every process
    results, plain = {}, {}
    for name, (kind, every, options) in SCENARIOS.items():
        settings = {key: value for key, value in options.items() if key not in ("place", "late")}
        out, path = folder / "out", folder / f"{len(results)}.pt"
        if (kind, str(settings)) not in plain:  # never killed, and never written to a file
            assert forked(None, out, kind, None, **settings) == 0
            plain[kind, str(settings)] = torch.load(out, weights_only=True)
        signals = [forked(path, out, kind, every, **options)]
        written = path.exists()
        signals.append(forked(path, out, kind, every, **settings))
        results[name] = (
            plain[kind, str(settings)],
            torch.load(out, weights_only=True),
            signals,
            written,
        )
    for kind in ("noisy", "own"):  # killed again and again, from outside and at any moment
        path, signals = folder / f"{kind}.pt", []
        while not signals or signals[-1]:
            signals.append(forked(path, folder / "out", kind, 1, after=random.randint(1, 3)))
            assert len(signals) < 100
        left = [file.name for file in folder.iterdir() if file.name.startswith(f".{kind}.pt")]
        results[f"again and again, {kind}"] = (
            plain[kind, "{}"],
            torch.load(folder / "out"),
            signals,
            True,
        )
        print(
            kind,
            len(signals),
            "processes;",
            len(left),
            "files left by a kill within a write",
            file=sys.stderr,
        )
    torch.save(results, folder / "results.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    folder = tmp_path_factory.mktemp("killed")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(rk.__file__).parents[1]),
    }
    run = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    print(run.stderr)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SCENARIOS, "again and again, noisy", "again and again, own"])
def test_a_training_killed_and_resumed_is_bitwise_the_one_that_was_not(results, name):
    plain, resumed, signals, written = results[name]
    assert set(signals[:-1]) == {signal.SIGKILL}
    assert signals[-1] == 0
    assert written == (name != "before the first write")
    assert plain["rows"] == resumed["rows"]
    assert all(
        torch.equal(plain["weights"][key], value) for key, value in resumed["weights"].items()
    )
    assert all(map(torch.equal, plain["adam"], resumed["adam"]))
    assert (plain["rates"], plain["steps"], plain["epoch"]) == (
        resumed["rates"],
        resumed["steps"],
        resumed["epoch"],
    )
    assert torch.equal(plain["draws"][0], resumed["draws"][0])
    assert plain["draws"][1:] == resumed["draws"][1:]


@pytest.mark.slow
def test_the_scenarios_are_different_trainings(results):
    weights = [results[f"middle, {name}"][0]["weights"]["2.bias"].item()
               for name in ("global generator", "noise in the data", "loader with its own generator")]  # fmt: skip
    assert len(set(weights)) == 3
    plain = results["after early stopping"][0]
    assert plain["epoch"] == 2
    assert [row["epoch"] for row in plain["rows"]] == [1, 1, 2, 2]
    assert len(results["again and again, own"][2]) > 2


# Damaged and foreign files


def everything(learner: rk.Learner):
    """All that a refused file must leave alone."""
    keepers = [part.state_dict() for part in learner.callbacks if hasattr(part, "state_dict")]
    place = (learner.epoch_index, learner.step_index, learner.averages)
    optimizer, generators = (
        learner.optimizer.state_dict(),
        [torch.get_rng_state(), random.getstate()],
    )
    phases = [phase.state_dict() for phase in learner.phases]
    return copy.deepcopy(
        [learner.model.state_dict(), optimizer, keepers, place, generators, phases]
    )


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


class Keep:
    """What a learner is, once the callbacks before the checkpoint have had their FitBegin."""

    order = 2  # at FitBegin: before the checkpoint

    def __init__(self) -> None:
        self.before = None

    def on_fit_begin(self, learner: rk.Learner) -> None:
        self.before = everything(learner)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "run" / "a.pt"
    learner, _, training, validation = build(extra=(rk.Checkpoint(path),))
    learner.fit(1, *loaders("global", 0), training, validation)
    return path


def refuses(path: Path, text: str, make=build, data=None, **options) -> None:
    """A learner that has trained a little meets the file, and is as it was."""
    keep, good = Keep(), path.read_bytes()
    checkpoint = rk.Checkpoint(path)
    learner, _, training, validation = make(salt=5, extra=(checkpoint, keep), **options)
    checkpoint.path = path.with_name("other.pt")
    data = loaders("global", 5) if data is None else data
    learner.fit(1, *data, training, validation)
    checkpoint.path, checkpoint.resume = path, True
    with pytest.raises(ValueError, match=r"Checkpoint\(") as info:
        learner.fit(1, *data, training, validation)
    assert text in str(info.value), str(info.value)
    assert str(info.value).startswith(f"Checkpoint({str(path)!r}): got ")
    assert "Likely fix: " in str(info.value)
    assert same(keep.before, everything(learner))
    assert path.read_bytes() == good


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_refused(written, part):
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * part)])
    refuses(
        written,
        "it may have been cut short or hold pickled objects, which are not loaded; use an earlier copy.",
    )


def test_text_is_refused(written):
    written.write_text("not a checkpoint")
    refuses(written, "got a file that cannot be read")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_object_is_refused_and_does_not_run(written, tmp_path):
    saved = torch.load(written, weights_only=True)
    torch.save({**saved, "bomb": Bomb(tmp_path / "gone off")}, written)
    refuses(written, "hold pickled objects, which are not loaded")
    assert not (tmp_path / "gone off").exists()
    torch.load(written, weights_only=False)
    assert (tmp_path / "gone off").exists()  # it would have


def test_a_file_of_another_kind_is_refused(written):
    saved = torch.load(written, weights_only=True)
    for other in (
        saved["model"],
        torch.zeros(3),
        [1, 2],
        {**saved, "format": "rnnkit checkpoint 0"},
    ):
        torch.save(other, written)
        refuses(written, "got a file of another kind; wanted the format 'rnnkit checkpoint 1'")
    for name in saved.keys() - {"format"}:
        torch.save({key: value for key, value in saved.items() if key != name}, written)
        fix = 'learner.model.load_state_dict(saved["model"]) takes the weights alone.'
        wanted = f"wanted all that a training is. Likely fix: {fix}"
        refuses(written, f"got a file without {name}; {wanted}")


def test_the_file_of_another_model_is_refused(written):
    saved = torch.load(written, weights_only=True)
    weight = saved["model"].pop("2.weight")
    torch.save(saved, written)
    refuses(written, "got a model's 2.weight nothing; wanted a model's 2.weight (1, 6)")
    saved["model"]["2.weight"] = weight[:, :4]
    torch.save(saved, written)
    refuses(written, "got a model's 2.weight (1, 4); wanted a model's 2.weight (1, 6)")
    saved["model"] |= {"2.weight": weight, "3.bias": weight}
    torch.save(saved, written)
    refuses(written, "got a model's 3.bias (1, 6); wanted a model's 3.bias nothing")


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_the_file_of_another_optimizer_is_refused(written):
    def other(kind, groups=1):
        def make(**options):
            learner, *rest = build(**options)
            parameters = learner.parameters
            learner.optimizer = kind([{"params": part} for part in (parameters[:3], parameters[3:])][:groups]
                                     if groups > 1 else parameters, lr=0.01)  # fmt: skip
            for callback in learner.callbacks:
                if isinstance(callback, rk.Scheduler):
                    old = callback.scheduler
                    step = {"step_size": old.step_size} if hasattr(old, "step_size") else {}
                    callback.scheduler = type(old)(learner.optimizer, gamma=old.gamma, **step)
            return learner, *rest

        return make

    for kind in (torch.optim.SGD, torch.optim.AdamW):
        text = "got the optimizer and phases ['Adam', 'BPTTTrainingPhase', 'BPTTValidationPhase']; wanted "
        refuses(
            written,
            f"{text}the optimizer and phases ['{kind.__name__}', 'BPTTTrainingPhase'",
            other(kind),
        )
    refuses(
        written,
        "got parameter groups [6]; wanted parameter groups [3, 3]",
        other(torch.optim.Adam, 2),
    )


@pytest.mark.parametrize("added", [False, True], ids=["from the start", "on the way"])
def test_a_layer_that_thaws_is_resumed_if_its_group_was_there_from_the_start(tmp_path, added):
    class Thaw:
        def on_epoch_begin(self, learner):
            frozen = learner.model[0]
            if learner.epoch_index >= 2 and not frozen.weight_ih_l0.requires_grad:
                frozen.requires_grad_(True)
                if added:
                    late = {"params": list(frozen.parameters()), "lr": 0.01}
                    learner.optimizer.add_param_group(late)

    def trained(name, epochs):
        torch.manual_seed(0)
        model = rk.RecurrentSequential(nn.GRU(1, 4).requires_grad_(False), nn.Linear(4, 1))
        groups = [{"params": model[1].parameters()}]
        if not added:
            groups.append({"params": model[0].parameters(), "lr": 0.01})
        optimizer = torch.optim.AdamW(groups, 0.1)
        callbacks = [Thaw(), rk.ClipGradients(0.1), rk.Checkpoint(tmp_path / name, resume=True)]
        rk.Learner(model, SEQ, optimizer, callbacks).fit(epochs, [data])
        return model

    data = torch.randn(8, 3, 1)
    whole = trained("whole.pt", 5)
    trained("cut.pt", 3)
    if added:
        with pytest.raises(ValueError, match=r"got parameter groups \[2, 4\]; wanted .* \[2\]"):
            trained("cut.pt", 5)
        return
    for one, other in zip(whole.parameters(), trained("cut.pt", 5).parameters(), strict=True):
        assert torch.equal(one, other)


class Ratio:
    """A share of feedback that grows with the epochs."""

    def __init__(self) -> None:
        self.share = 0.0

    def on_epoch_end(self, learner: rk.Learner) -> None:
        self.share += 0.2


class KeptRatio(Ratio):
    def state_dict(self) -> dict:
        return {"share": self.share}

    def load_state_dict(self, saved: dict) -> None:
        self.share = saved["share"]


@pytest.mark.parametrize("kind", [Ratio, KeptRatio])
def test_the_numbers_of_a_callback_of_one_s_own_are_resumed_if_it_has_both_methods(kind, tmp_path):
    def trained(name, epochs):
        torch.manual_seed(0)
        ratio, model = kind(), nn.GRU(1, 1)
        flips = torch.Generator().manual_seed(1)
        feedback = rk.Feedback.probability(lambda step: ratio.share, generator=flips)
        phase = rk.BPTTTrainingPhase(feedback=feedback)
        callbacks = [ratio, rk.Checkpoint(tmp_path / name, resume=True)]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rk.Learner(model, SEQ, optimizer, callbacks).fit(epochs, [data], training=phase)
        return model.weight_hh_l0

    data = torch.randn(9, 4, 1)
    whole = trained("whole.pt", 5)
    trained("cut.pt", 3)
    assert torch.equal(trained("cut.pt", 5), whole) == (kind is KeptRatio)


def test_the_file_of_other_callbacks_is_refused(written):
    def without(**options):
        learner, history, *rest = build(**options)
        kept = [part for part in learner.callbacks if part is not history]
        return rk.Learner(learner.model, SEQ, learner.optimizer, kept), history, *rest

    def rescheduled(**options):
        learner, *rest = build(**options)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(learner.optimizer, 10)
        kept = [rk.Scheduler(scheduler) if type(part) is rk.Scheduler and part.per == "epoch" else part
                for part in learner.callbacks]  # fmt: skip
        return rk.Learner(learner.model, SEQ, learner.optimizer, kept), *rest

    names = ["0 History", "1 EarlyStopping", "2 Scheduler(StepLR)", "3 Scheduler(ExponentialLR)"]
    refuses(written, f"got callbacks {names}; wanted callbacks ['0 EarlyStopping', ", without)
    refuses(written, "'3 Scheduler(CosineAnnealingLR)']", rescheduled)


def test_the_file_of_other_loaders_or_phases_is_refused(written):
    refuses(written, "got the loaders' own generators: 0; wanted the loaders' own generators: 1",
            data=loaders("own", 0))  # fmt: skip

    def alone(**options):
        learner, history, training, _ = build(**options)
        kept = [part for part in learner.callbacks if not isinstance(part, rk.EarlyStopping)]
        kept.append(rk.EarlyStopping(9, phase="training"))
        return rk.Learner(learner.model, SEQ, learner.optimizer, kept), history, training, None

    refuses(written, "wanted the optimizer and phases ['Adam', 'BPTTTrainingPhase']", alone,
            (loaders("global", 0)[0], None))  # fmt: skip


def test_a_state_that_fails_half_way_is_taken_back(written):
    saved = torch.load(written, weights_only=True)
    saved["callbacks"]["1 EarlyStopping"] = {"best": 0.0}
    torch.save(saved, written)
    refuses(
        written,
        "got a state that does not fit (KeyError: 'waited'); wanted the state of this learner",
    )
    assert saved["callbacks"]["0 History"]["rows"]


# Writing


class Awkward:
    """A callback with a state of some kind."""

    def __init__(self, state) -> None:
        self.state = {"state": 1}
        self.next = state

    def on_epoch_end(self, learner: rk.Learner) -> None:
        if learner.phase_name == "validation" and learner.epoch_index == 1:
            self.state = {"state": self.next}

    def state_dict(self):
        return self.state

    def load_state_dict(self, saved) -> None:
        self.state = saved


def fit_with(path: Path, state, epochs: int = 2, **options) -> rk.Learner:
    extra = (Awkward(state), rk.Checkpoint(path, **options))
    learner, _, training, validation = build(extra=extra)
    return learner.fit(epochs, *loaders("global", 0), training, validation)


@pytest.mark.parametrize(("state", "error", "text"), [
    ((i for i in range(3)), TypeError, "cannot pickle 'generator' object"),
    (Path("x"), ValueError, "got a file that cannot be read (UnpicklingError); wanted a file of the format 'rnnkit "
     "checkpoint 1'. Likely fix: the state_dict of a callback may hold tensors, numbers, strings, lists, tuples and "
     "dicts only."),
])  # fmt: skip
def test_a_state_that_cannot_be_written_or_read_back_leaves_the_good_file(
    tmp_path, state, error, text
):
    path = tmp_path / "a.pt"
    with pytest.raises(error) as info:
        fit_with(path, state)
    assert text in str(info.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    assert torch.load(path, weights_only=True)["place"] == (1, 0)
    assert fit_with(path, 2, resume=True).epoch_index == 2


def test_a_disk_that_is_full_leaves_the_good_file(tmp_path):
    path = tmp_path / "a.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fit_with(path, 2, 1)
    good, size = path.read_bytes(), path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            fit_with(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    assert path.read_bytes() == good


def test_when_it_writes(tmp_path):
    class Watch:
        order = 2

        def __init__(self, path: Path) -> None:
            self.path, self.places = path, []

        def look(self, learner: rk.Learner) -> None:
            if self.path.exists():
                self.places.append(torch.load(self.path, weights_only=True)["place"])

        on_step_end = on_epoch_end = look

    for every, with_validation, expected in [
        (2, False, [(0, 2), (0, 2), (0, 4), (1, 0)]),
        (None, False, [(1, 0)]),
        (None, True, [(1, 0)]),
        (3, True, [(0, 3)] * 4 + [(1, 0)]),
    ]:
        path = tmp_path / f"{every}{with_validation}.pt"
        watch, x = Watch(path), torch.ones(5, 2, 1)
        model = nn.GRU(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        learner = rk.Learner(model, SEQ, optimizer, [rk.Checkpoint(path, every), watch])
        learner.fit(1, [x] * 4, [x] if with_validation else None)
        assert watch.places == expected


def test_a_fit_that_was_cancelled_within_an_epoch_goes_on_within_it(tmp_path):
    class Cancel:
        def __init__(self) -> None:
            self.steps = 0

        def on_step_end(self, learner: rk.Learner) -> None:
            self.steps += learner.phase_name == "training"
            if self.steps == 7:
                raise rk.CancelFit

    path, rows = tmp_path / "a.pt", []
    for cancel in ((), (Cancel(),), ()):
        checkpoint = rk.Checkpoint(path if rows else tmp_path / "b.pt", 2, resume=True)
        learner, history, training, validation = build(salt=0, extra=(*cancel, checkpoint))
        learner.fit(2, *loaders("global", 0), training, validation)
        rows.append((history.rows, copy.deepcopy(learner.model.state_dict())))
    assert torch.load(path, weights_only=True)["place"] == (2, 0)
    assert rows[0][0] == rows[2][0] != rows[1][0]
    assert same(rows[0][1], rows[2][1])


def test_an_epoch_that_was_cancelled_is_not_gone_on_with_after_its_last_step(tmp_path):
    class FewSteps:
        def on_step_end(self, learner: rk.Learner) -> None:
            if learner.phase_name == "training" and learner.step_index == 2:
                raise rk.CancelEpoch

    class Kill:
        def on_loss_begin(self, learner: rk.Learner) -> None:
            if learner.phase_name == "validation":
                raise KeyboardInterrupt

    results = []
    for path, kills in (("a.pt", ()), ("b.pt", (Kill(),)), ("b.pt", ())):
        checkpoint = rk.Checkpoint(tmp_path / path, 1, resume=True)
        learner, history, training, validation = build(extra=(FewSteps(), *kills, checkpoint))
        with contextlib.suppress(KeyboardInterrupt):
            learner.fit(2, *loaders("global", 0), training, validation)
        results.append((history.rows, learner.model.state_dict()))
    whole, _, resumed = results
    assert resumed[0] == whole[0] and len(whole[0]) == 4
    assert same(resumed[1], whole[1])


class Around:
    """A loader around another, which draws by itself."""

    def __init__(self, loader, own: torch.Generator) -> None:
        self.loader, self.chance = loader, own

    def __iter__(self):
        for batch in self.loader:
            yield batch + torch.rand(1, generator=self.chance)


@pytest.mark.parametrize(
    "place",
    ["data set", "part of one", "one of several", "sampler of a batch sampler", "loader around"],
)
def test_a_generator_is_kept_wherever_the_loader_has_it(tmp_path, place):
    class Own(Dataset):
        def __init__(self, own: torch.Generator) -> None:
            self.generator = None if place.startswith(("sampler", "loader")) else own

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> torch.Tensor:
            own = self.generator
            return torch.full((5, 1), float(i)) if own is None else torch.rand(5, 1, generator=own)

    def trained(seed: int, epochs: int, *callbacks) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, own = nn.GRU(1, 1), torch.Generator().manual_seed(seed)
        data = Own(own)
        options = {"batch_size": 2}
        if place == "part of one":
            data = Subset(data, [3, 1, 2])
        elif place == "one of several":
            data = ConcatDataset([[torch.ones(5, 1)], data])
        elif place.startswith("sampler"):
            options = {"batch_sampler": BatchSampler(RandomSampler(data, generator=own), 2, False)}
        learner = rk.Learner(model, SEQ, torch.optim.SGD(model.parameters(), 0.1), callbacks)
        loader = DataLoader(data, collate_fn=lambda items: torch.stack(items, 1), **options)
        learner.fit(epochs, Around(loader, own) if place == "loader around" else loader)
        return learner.parameters

    path, whole = tmp_path / "a.pt", trained(1, 3)
    trained(1, 1, rk.Checkpoint(path))
    for seed in range(2, 6):  # whatever seed the one who resumes has
        other = path.with_name(f"{seed}.pt")
        other.write_bytes(path.read_bytes())
        assert all(map(torch.equal, trained(seed, 3, rk.Checkpoint(other, resume=True)), whole))


def test_an_epoch_cancelled_as_it_is_taken_up_again_is_over(tmp_path):
    class Stop:
        def on_step_end(self, learner: rk.Learner) -> None:
            if learner.step_index == 2:
                raise rk.CancelFit

    class Cancel:
        def __init__(self) -> None:
            self.left = []

        def on_epoch_begin(self, learner: rk.Learner) -> None:
            if not self.left:
                torch.rand(3)
                raise rk.CancelEpoch

        def on_epoch_end(self, learner: rk.Learner) -> None:
            self.left.append(torch.get_rng_state())

    cancel = Cancel()
    torch.manual_seed(0)
    for callback in (Stop(), cancel):
        model = nn.GRU(1, 1)
        checkpoint = rk.Checkpoint(tmp_path / "a.pt", 1, resume=True)
        learner = rk.Learner(
            model, SEQ, torch.optim.SGD(model.parameters(), 0.1), [callback, checkpoint]
        )
        learner.fit(2, [torch.ones(5, 2, 1)] * 4)
        if callback is not cancel:
            stopped = torch.load(tmp_path / "a.pt", weights_only=True)["rng"]["torch"]
    assert torch.equal(cancel.left[0], stopped)  # as if the seen batches had been made again
    assert learner.epoch_index == 2


def test_a_resumed_fit_makes_up_what_is_missing(written):
    def resumed(epochs: int) -> tuple[int, int]:
        learner, history, training, validation = build(extra=(rk.Checkpoint(written, resume=True),))
        learner.fit(epochs, *loaders("global", 0), training, validation)
        return learner.epoch_index, len(history.rows)

    assert resumed(1) == (1, 2)  # it was done
    assert resumed(3) == (3, 6)
    assert resumed(2) == (3, 6)


def test_a_finished_file_is_left_alone_without_resume(written):
    learner, history, training, validation = build(extra=(rk.Checkpoint(written),))
    learner.fit(1, *loaders("global", 0), training, validation)
    assert (learner.epoch_index, len(history.rows)) == (1, 2)


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    fit_with("~/a.pt", 1, 1)
    assert (tmp_path / "home" / "a.pt").exists()
    assert not Path("~").exists()


def test_a_training_whose_losses_are_large_goes_on(tmp_path):
    def trained(epochs: int) -> tuple[int, list]:
        torch.manual_seed(0)
        model, history = nn.GRU(1, 1), rk.History()
        optimizer = torch.optim.SGD(model.parameters(), 1e-12)
        plateau = rk.Scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
        checkpoint = rk.Checkpoint(tmp_path / "a.pt", 1, resume=True)
        callbacks = [history, rk.EarlyStopping(9), rk.KeepBest(), plateau, checkpoint]
        learner = rk.Learner(model, SEQ, optimizer, callbacks)
        batch = torch.ones(5, 3, 1), torch.full((5, 3, 1), 1e10)  # squared, above 2 ** 63
        learner.fit(epochs, [batch] * 3, [batch])
        return learner.epoch_index, history.rows

    assert trained(2)[1][0]["loss"] > 2**63
    epoch, rows = trained(4)
    (tmp_path / "a.pt").unlink()
    assert (epoch, rows) == trained(4)


def test_the_folders_of_the_file_are_made(tmp_path):
    path = tmp_path / "runs" / "today" / "a.pt"
    fit_with(path, 2, 1)
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


# The file itself


def test_a_file_with_one_wrong_byte_is_refused_wherever_it_is(written):
    good = written.read_bytes()
    random.seed(0)
    places = [random.randrange(len(good)) for _ in range(540)]
    ends = [*range(30), *range(len(good) - 120, len(good))]
    learner, _, training, validation = build(extra=(rk.Checkpoint(written, resume=True),))
    for place in places + ends:
        damaged = bytearray(good)
        damaged[place] ^= 1 << random.randrange(8)
        written.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match="Checkpoint") as info:
            rk.Checkpoint(written).load(learner)
        assert "got a file that cannot be read" in str(info.value), place
        assert "use an earlier copy" in str(info.value)
    written.write_bytes(good)
    learner.fit(1, *loaders("global", 0), training, validation)
    assert learner.epoch_index == 1


def test_a_file_is_one_that_every_archiver_and_torch_reads(written):
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"rnnkit sha256 ")
    for mmap in (False, True):
        assert torch.load(written, weights_only=True, mmap=mmap)["place"] == (1, 0)


def test_a_state_that_its_owner_saved_resumes_as_well(written):
    learner, history, training, validation = build(extra=(rk.Checkpoint(written, resume=True),))
    torch.save(torch.load(written, weights_only=True), written)
    learner.fit(2, *loaders("global", 0), training, validation)
    assert (learner.epoch_index, len(history.rows)) == (2, 4)


@pytest.mark.parametrize("part", ["fits", "tally", "epoch_rng", "passes"])
@pytest.mark.parametrize("value", [None, 3.5, "x", [0.5], torch.ones(2)])
def test_a_place_that_is_none_changes_nothing(written, part, value):
    saved = torch.load(written, weights_only=True)
    torch.save({**saved, part: value}, written)
    refuses(written, "got ")


@pytest.mark.parametrize("change", [
    lambda rng: rng.update(python=(3, (2**80,) * 625, None)),
    lambda rng: rng.update(python=(3, (-1,) * 625, None)),
    lambda rng: rng.update(torch=torch.zeros(5, dtype=torch.uint8)),
    lambda rng: rng.update(numpy=("MT19937", [2**70] * 624, 3, 0, 0.0)),
])  # fmt: skip
def test_generators_that_cannot_be_put_back_change_nothing(written, change):
    saved = torch.load(written, weights_only=True)
    change(saved["rng"])
    torch.save(saved, written)
    refuses(written, "got a state that does not fit (")


@pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX'")
def test_a_link_is_followed_and_the_mode_of_a_file_is_kept(tmp_path):
    target, link = tmp_path / "real" / "a.pt", tmp_path / "link.pt"
    link.symlink_to(target)
    before = os.umask(0o027)
    try:
        fit_with(link, 2, 1)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(0o600)
        fit_with(link, 2, 1)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [file.name for file in target.parent.iterdir()] == ["a.pt"]
    assert fit_with(link, 2, 2, resume=True).epoch_index == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "circle", "under a file", "too long"])
def test_a_path_that_can_be_no_file_is_found_before_the_training(tmp_path, kind):
    path = tmp_path / "a.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        _, terminal = os.openpty()  # a device that nobody misses, should the refusal fail
        path = Path(os.ttyname(terminal))
    elif kind == "circle":
        path.symlink_to(tmp_path / "b.pt")
        (tmp_path / "b.pt").symlink_to(path)
    elif kind == "under a file":
        path.write_text("")
        path = path / "b.pt"
    else:
        path = tmp_path / ("a" * 300)
    learner, *_ = build(extra=(rk.Checkpoint(path),))
    error = OSError if kind in ("under a file", "too long") else ValueError
    with pytest.raises(error, match="Checkpoint") as info:
        learner.fit(1, *loaders("global", 0))
    assert str(info.value).startswith(f"Checkpoint({str(path)!r}): got ")
    assert "Likely fix: " in str(info.value)
    assert learner.step_index == 0
    assert not any(file.name.startswith(".") for file in tmp_path.iterdir())


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    path = tmp_path / "a.pt"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f".a.pt.{gone.pid}"
    kept = [
        tmp_path / f".a.pt.{os.getppid()}",
        tmp_path / ".a.pt.x",
        tmp_path / f".b.pt.{gone.pid}",
    ]
    for file in (stale, *kept):
        file.write_text("half")
    fit_with(path, 2, 1)
    assert not stale.exists()
    assert all(file.exists() for file in kept)


def test_a_full_disk_is_said_in_words(tmp_path):
    path = tmp_path / "a.pt"
    fit_with(path, 2, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="Checkpoint") as info:
            fit_with(path, 2, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "got File too large when writing" in str(info.value)
    assert "the file of before is as it was" in str(info.value)


@pytest.fixture
def untraced():
    """No coverage: it takes a lock at each line, and an interrupt in its middle leaves that locked for ever."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file just opened
def test_an_interrupt_while_writing_comes_out_as_one_and_leaves_the_good_file(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint = rk.Checkpoint(path)
    learner, *rest = build(extra=(checkpoint,))
    learner.fit(1, *loaders("global", 0), *rest[1:])
    random.seed(0)
    start = time.perf_counter()
    checkpoint.save(learner)
    needed = time.perf_counter() - start
    interrupted = 0
    for _ in range(60):
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, needed))
            checkpoint.save(learner)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
        rk.Checkpoint(path).load(learner)
    assert interrupted > 20


# Several fits


def script(path: Path | None, fits, cut: tuple[int, int] | None = None, rates=None) -> rk.Learner:
    """A script with several fits, cut short in an epoch (of all) at a step."""

    class Cut:
        order = 2

        def on_step_end(self, learner: rk.Learner) -> None:
            if (
                learner.phase_name == "training"
                and (learner.epoch_index, learner.step_index) == cut
            ):
                raise ZeroDivisionError

    checkpoints = [] if path is None else [rk.Checkpoint(path, 1, resume=True)]
    learner, history, training, validation = build(extra=(*checkpoints, rk.KeepBest(), Cut()))
    learner.history = history
    try:
        for i, epochs in enumerate(fits):
            if rates:
                learner.optimizer.param_groups[0]["lr"] = rates[i]
            learner.fit(epochs, *loaders("global", 0), training, validation)
    except ZeroDivisionError:
        pass
    return learner


@pytest.mark.parametrize("cut", [(0, 2), (1, 4), (2, 1), (3, 2), (4, 3), None])
@pytest.mark.parametrize("rates", [None, (0.02, 0.005, 0.01)])
def test_a_script_of_several_fits_that_was_killed_and_run_again_is_the_one_that_was_not(
    tmp_path, cut, rates
):
    fits = (2, 2, 1)
    whole = script(None, fits, rates=rates)
    script(tmp_path / "a.pt", fits, cut, rates)
    for _ in range(3):  # run again, it goes on; once it is done, it stays done
        again = script(tmp_path / "a.pt", fits, rates=rates)
        assert again.epoch_index == 5
        assert again.history.rows == whole.history.rows
        assert all(map(torch.equal, again.parameters, whole.parameters))


@pytest.mark.parametrize("validated", [(False, True), (True, False, True)])
@pytest.mark.parametrize("cut", [(1, 1), (2, 1), (3, 1)])
def test_the_fits_of_a_script_may_have_phases_and_loaders_of_their_own(tmp_path, validated, cut):
    class Cut:
        order = 2

        def on_step_end(self, learner: rk.Learner) -> None:
            if (learner.epoch_index, learner.step_index) == cut and learner.phase.trains:
                raise ZeroDivisionError

    def run(*callbacks) -> tuple[list, list]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = nn.GRU(1, 1)
        history = rk.History()
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        learner = rk.Learner(model, SEQ, optimizer, [history, *callbacks])
        with contextlib.suppress(ZeroDivisionError):
            for i, has_validation in enumerate(validated):
                train, valid = loaders("noisy", i) if i else loaders("global", 0)
                training = rk.BPTTTrainingPhase(window=4, stateful=i > 0, accumulate=1 + i)
                learner.fit(2, train, valid if has_validation else None, training)
        return history.rows, learner.parameters

    rows, parameters = run()
    run(rk.Checkpoint(tmp_path / "a.pt", 1, resume=True), Cut())
    for _ in range(2):
        again = run(rk.Checkpoint(tmp_path / "a.pt", 1, resume=True))
        assert again[0] == rows
        assert all(map(torch.equal, again[1], parameters))


def test_a_fit_that_ended_early_is_not_made_longer_when_the_script_is_run_again(tmp_path):
    def run(cut: bool) -> tuple[int, int]:
        class Cut:
            order = 2

            def on_step_end(self, learner: rk.Learner) -> None:
                if cut and learner.epoch_index == 3:
                    raise ZeroDivisionError

        extra = (rk.Checkpoint(tmp_path / "a.pt", 1, resume=True), Cut())
        learner, history, training, validation = build(rate=0.0, patience=1, extra=extra)
        try:
            for epochs in (9, 9):  # each ends after the second epoch without a new best
                learner.fit(epochs, *loaders("global", 0), training, validation)
        except ZeroDivisionError:
            pass
        return learner.epoch_index, len(history.rows)

    first = run(cut=False)
    (tmp_path / "a.pt").unlink()
    run(cut=True)
    assert run(cut=False) == first
    assert run(cut=False) == first


def test_a_later_fit_of_the_same_learner_does_not_go_back_to_the_file(tmp_path):
    learner, _, training, validation = build(extra=(rk.Checkpoint(tmp_path / "a.pt", resume=True),))
    data = loaders("global", 0)
    learner.fit(1, *data, training, validation)
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    for scheduler in learner.callbacks:
        if isinstance(scheduler, rk.Scheduler):
            scheduler.scheduler.base_lrs = [0.0]
    with torch.no_grad():
        learner.parameters[0].zero_()
    learner.fit(1, *data, training, validation)
    assert learner.epoch_index == 2
    assert (learner.parameters[0] == 0).all()


def test_a_fit_that_failed_is_tried_again_from_where_it_is(tmp_path):
    class Fail:
        armed = True

        def on_step_end(self, learner: rk.Learner) -> None:
            if self.armed and learner.epoch_index == 1:
                raise ZeroDivisionError

    fail = Fail()
    learner, _, training, validation = build(extra=(rk.Checkpoint(tmp_path / "a.pt"), fail))
    with pytest.raises(ZeroDivisionError):
        learner.fit(3, *loaders("global", 0), training, validation)
    fail.armed = False
    learner.fit(2, *loaders("global", 0), training, validation)
    assert learner.epoch_index == 3


# The whole training as a value


def test_a_state_loaded_outside_a_fit_goes_on_bitwise(tmp_path):
    def data(salt: int):
        return loaders("own", salt)

    whole, rows, training, validation = build()
    torch.manual_seed(4)
    whole.fit(3, *data(0), training, validation)

    taken = {}

    class Take:
        def on_step_end(self, learner: rk.Learner) -> None:
            if (learner.epoch_index, learner.step_index, learner.phase_name) == (1, 2, "training"):
                taken.update(copy.deepcopy(learner.state_dict()))

    first, _, training, validation = build(extra=(Take(),))
    torch.manual_seed(4)
    first.fit(2, *data(0), training, validation)
    second, history, training, validation = build(salt=9)
    second.load_state_dict(taken)
    assert (second.epoch_index, second.step_index) == (1, 2)
    assert same(second.state_dict(), taken)
    second.fit(3, *data(9), training, validation)
    assert history.rows == rows.rows
    assert all(map(torch.equal, second.parameters, whole.parameters))


@pytest.mark.parametrize("event", ["step_end", "epoch_end"])
@pytest.mark.parametrize("phase", ["training", "validation"])
def test_a_state_taken_anywhere_goes_on_bitwise(event, phase):
    taken = {}

    class Take:
        order = 1

        def take(self, learner: rk.Learner) -> None:
            if (learner.epoch_index, learner.phase_name) == (1, phase) and not taken:
                taken.update(copy.deepcopy(learner.state_dict()))

    take = Take()
    setattr(take, f"on_{event}", take.take)
    whole, rows, training, validation = build(extra=(take,))
    torch.manual_seed(4)
    whole.fit(3, *loaders("noisy", 0), training, validation)
    second, history, training, validation = build(salt=9)
    second.load_state_dict(taken)
    second.fit(3, *loaders("noisy", 9), training, validation)
    assert history.rows == rows.rows
    assert all(map(torch.equal, second.parameters, whole.parameters))


@pytest.mark.parametrize("event", ["epoch_begin", "step_end", "epoch_end"])
def test_no_state_is_loaded_within_an_epoch_of_a_fit(event, tmp_path):
    class GoBack:
        def load(self, learner: rk.Learner) -> None:
            if learner.epoch_index == 1:
                checkpoint.load(learner)

    back, checkpoint = GoBack(), rk.Checkpoint(tmp_path / "a.pt")
    setattr(back, f"on_{event}", back.load)
    learner, _, training, validation = build(extra=(back, checkpoint))
    text = "got a state within an epoch of a fit; wanted one at FitBegin or outside a fit."
    with pytest.raises(ValueError, match=re.escape(text)):
        learner.fit(2, *loaders("global", 0), training, validation)
    checkpoint.load(learner)
    assert learner.epoch_index == 1


@pytest.mark.parametrize("before", [0, 2], ids=["new", "after a fit"])
def test_what_a_fit_on_trial_changed_is_put_back(before):
    """As one tries learning rates: a state, a fit, the state again, and the fit that counts."""

    def drawn(trial: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = rk.RecurrentSequential(nn.GRU(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        learner = rk.Learner(model, SEQ, optimizer, [rk.History()])
        train = [item.unsqueeze(1) for item in Noisy(False).items]
        training, validation = rk.BPTTTrainingPhase(), rk.BPTTValidationPhase()
        if before:
            learner.fit(before, train, train, training, validation)
        if trial:
            state = copy.deepcopy(learner.state_dict())
            learner.fit(1, train, train, training, validation)
            learner.load_state_dict(state)
        learner.fit(2, train, train, training, validation)
        assert [row["epoch"] for row in learner.callbacks[0].rows][-1] == before + 2
        return list(model.parameters())

    assert all(map(torch.equal, drawn(False), drawn(True)))


def test_a_state_after_a_fit_is_added_to():
    first, *phases = build()
    first.fit(2, *loaders("global", 0), *phases[1:])
    second, *phases = build(salt=3)
    second.load_state_dict(first.state_dict())
    second.fit(2, *loaders("global", 0), *phases[1:])
    assert second.epoch_index == 4


def test_a_state_after_steps_outside_a_fit_goes_on_bitwise():
    whole, rows, *phases = build()
    data = loaders("own", 0)
    whole.fit(1, *data, *phases)
    for batch in data[0]:
        whole.step(phases[0], batch)
    saved = copy.deepcopy(whole.state_dict())
    whole.fit(1, *data, *phases)

    resumed, history, *phases = build(salt=3)
    resumed.load_state_dict(saved)
    resumed.fit(1, *loaders("own", 7), *phases)
    assert history.rows == rows.rows
    assert all(map(torch.equal, resumed.parameters, whole.parameters))


def test_a_state_of_something_else_leaves_everything_as_it_was():
    first, *phases = build()
    first.fit(1, *loaders("own", 0), *phases[1:])
    saved = first.state_dict()
    second, *phases = build(salt=3)
    second.fit(1, *loaders("own", 5), *phases[1:])
    before = everything(second)
    broken = {
        "place": {**saved, "callbacks": {**saved["callbacks"], "0 History": {}}},
        "a file of another kind": {"model": saved["model"]},
        "parameter groups": {**saved, "optimizer": {"param_groups": [], "state": {}}},
        "model": {**saved, "model": [1]},
    }
    for bad in broken.values():
        with pytest.raises(ValueError, match="Learner: got"):
            second.load_state_dict(bad)
        assert same(before, everything(second))
    second.load_state_dict(saved)
    with pytest.raises(ValueError, match="Learner: got the loaders' own generators: 1"):
        second.fit(2, *loaders("global", 5), *phases[1:])
    second.fit(2, *loaders("own", 5), *phases[1:])
    assert second.epoch_index == 3


class Scaled(nn.Module):
    """A loss with a learned scale, and a count of its calls as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
        scale = self.log_scale.exp()
        return ((outputs - targets) / scale).square().mean(-1) + 2 * self.log_scale


class Pooled(Scaled):
    """The last output times a learned scale, as what a loss reads."""

    def forward(self, outputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return outputs[-1] * self.log_scale.exp()


@pytest.mark.parametrize("kind", [Scaled, Pooled])
def test_the_parameters_of_the_loss_are_part_of_the_training(tmp_path, kind):
    def trained(epochs: int, *callbacks, seed: int = 0) -> Scaled:
        torch.manual_seed(seed)
        model, own = nn.GRU(1, 1), kind()
        loss, batch = rk.seq2seq_loss(own), torch.ones(5, 2, 1)
        if kind is Pooled:
            loss, batch = rk.seq2one_loss(nn.MSELoss(), own), (batch, torch.ones(2, 1))
        optimizer = torch.optim.Adam([*model.parameters(), *own.parameters()], 0.1)
        learner = rk.Learner(model, loss, optimizer, callbacks)
        learner.fit(epochs, [batch] * 2)
        return own

    whole = trained(3)
    trained(1, rk.Checkpoint(tmp_path / "a.pt"))
    resumed = trained(3, rk.Checkpoint(tmp_path / "a.pt", resume=True), seed=5)
    assert whole.log_scale.item() == resumed.log_scale.item() != 0
    assert whole.calls.item() == resumed.calls.item() == 6


@pytest.mark.parametrize("plain", [False, True])
def test_what_the_optimizer_alone_knows_of_is_part_of_the_training(tmp_path, plain):
    def trained(epochs: int, *callbacks, start: float = 0.0) -> torch.Tensor:
        torch.manual_seed(0)
        model, log_scale = nn.GRU(1, 1), torch.tensor(start, requires_grad=True)
        if not plain:
            log_scale = nn.Parameter(log_scale.detach())
        optimizer = torch.optim.Adam([*model.parameters(), log_scale], 0.1)

        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            errors = (outputs - targets) / log_scale.exp()
            return errors.square().mean(-1) + 2 * log_scale

        learner = rk.Learner(model, rk.seq2seq_loss(loss), optimizer, callbacks)
        learner.fit(epochs, [torch.ones(5, 2, 1)] * 2)
        return log_scale

    whole = trained(3)
    trained(1, rk.Checkpoint(tmp_path / "a.pt"))
    resumed = trained(3, rk.Checkpoint(tmp_path / "a.pt", resume=True), start=1.0)
    assert whole.item() == resumed.item() != 0


class Coarse(torch.optim.Optimizer):
    """SGD with a momentum in float32, whatever the dtype of the weights."""

    def __init__(self, weights) -> None:
        super().__init__(weights, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for weight in self.param_groups[0]["params"]:
            kept = self.state[weight]
            if not kept:
                kept["momentum"] = torch.zeros_like(weight, dtype=torch.float32)
            kept["momentum"].mul_(0.9).add_(weight.grad.float())
            weight.add_(kept["momentum"].to(weight.dtype), alpha=-0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.ASGD, Coarse])
def test_what_an_optimizer_keeps_in_a_dtype_of_its_own_resumes_in_it(kind, dtype, tmp_path):
    def trained(epochs: int, dtype: torch.dtype, *callbacks) -> rk.Learner:
        torch.manual_seed(0)
        model = nn.GRU(1, 1).to(dtype)
        learner = rk.Learner(model, SEQ, kind(model.parameters()), callbacks)
        return learner.fit(epochs, [torch.linspace(0, 1, 9, dtype=dtype).view(9, 1, 1)])

    def kept(learner: rk.Learner) -> list[torch.Tensor]:
        return [value for state in learner.optimizer.state.values() for value in state.values()]

    path = tmp_path / "a.pt"
    whole = trained(6, dtype)
    trained(3, dtype, rk.Checkpoint(path))
    resumed = trained(6, dtype, rk.Checkpoint(path, resume=True))
    assert [value.dtype for value in kept(resumed)] == [value.dtype for value in kept(whole)]
    assert all(map(torch.equal, kept(resumed), kept(whole)))
    assert all(map(torch.equal, resumed.parameters, whole.parameters))

    other = trained(7, torch.float32, rk.Checkpoint(path, resume=True))  # in another precision
    assert all(value.dtype == torch.float32 for value in kept(other))


def test_one_generator_for_loader_and_feedback_resumes_bitwise_within_an_epoch(tmp_path):
    def trained(seed: int, cut: bool, *callbacks) -> rk.Learner:
        class Cut:
            order = 2

            def on_step_end(self, learner: rk.Learner) -> None:
                if cut and (learner.epoch_index, learner.step_index) == (1, 3):
                    raise ZeroDivisionError

        torch.manual_seed(0)
        model, own = nn.GRU(1, 1), torch.Generator().manual_seed(seed)
        items = [torch.full((7, 1), i / 10) for i in range(10)]
        loader = DataLoader(
            items, 2, shuffle=True, generator=own, collate_fn=lambda items: torch.stack(items, 1)
        )
        feedback = rk.Feedback.probability(0.5, generator=own)
        learner = rk.Learner(
            model, SEQ, torch.optim.SGD(model.parameters(), 0.1), [*callbacks, Cut()]
        )
        with contextlib.suppress(ZeroDivisionError):
            learner.fit(3, loader, training=rk.BPTTTrainingPhase(feedback=feedback))
        return learner

    whole = trained(1, False)
    trained(1, True, rk.Checkpoint(tmp_path / "a.pt", 1))
    resumed = trained(8, False, rk.Checkpoint(tmp_path / "a.pt", resume=True))
    assert resumed.epoch_index == 3
    assert all(map(torch.equal, whole.parameters, resumed.parameters))


class Jitter:
    """A sampler that draws from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs + torch.randn(outputs.shape, generator=self.generator)


@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("phase", ["training", "validation"])
def test_a_sampler_s_own_generator_goes_on_bitwise_within_a_phase(phase, covariates):
    def trained(seed: int, *callbacks, saved: object = None) -> list[dict]:
        torch.manual_seed(0)
        model, history = nn.GRU(1 + covariates, 1), rk.History()
        training, validation = Jitter(seed), Jitter(seed + 1)
        if covariates:
            training, validation = (
                rk.with_covariates(training, 1),
                rk.with_covariates(validation, 1),
            )
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        learner = rk.Learner(model, SEQ, optimizer, [history, *callbacks])
        if saved is not None:
            learner.load_state_dict(saved)
        batches = [(torch.ones(6, 2, 1 + covariates), torch.ones(6, 2, 1))] * 3
        feedback = rk.Feedback.last(3)
        learner.fit(
            2,
            batches,
            batches,
            rk.BPTTTrainingPhase(feedback=feedback, sampler=training),
            rk.BPTTValidationPhase(3, validation),
        )
        return history.rows

    class Take:
        saved = None

        def on_step_end(self, learner: rk.Learner) -> None:
            if learner.phase_name == phase and self.saved is None:
                self.saved = copy.deepcopy(learner.state_dict())

    take = Take()
    whole = trained(1, take)
    assert trained(8, saved=take.saved) == whole


class Remembers(nn.GRU):
    """A model with an extra state of its own."""

    extra = None

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state) -> None:
        self.extra = state


@pytest.mark.parametrize("extra", [{"seen": 3, "names": ["a"]}, torch.ones(2), "text", None])
def test_an_extra_state_of_a_module_resumes(tmp_path, extra):
    def trained(epochs: int, extra, **options) -> Remembers:
        model = Remembers(1, 1)
        model.extra = extra
        checkpoint = rk.Checkpoint(tmp_path / "a.pt", **options)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rk.Learner(model, SEQ, optimizer, [checkpoint, rk.KeepBest(phase="training")]).fit(
            epochs, [torch.ones(5, 2, 1)]
        )
        return model

    trained(1, extra)
    assert same(trained(2, "nothing", resume=True).extra, extra)


def test_an_extra_state_that_could_not_be_read_is_refused_when_it_is_written(tmp_path):
    model = Remembers(1, 1)
    model.extra = Path("x")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learner = rk.Learner(model, SEQ, optimizer, [rk.Checkpoint(tmp_path / "a.pt")])
    with pytest.raises(ValueError, match="the extra state of a module"):
        learner.fit(1, [torch.ones(5, 2, 1)])
    assert list(tmp_path.iterdir()) == []


def lazy_learner(path: Path, **options) -> rk.Learner:
    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.LazyLinear(4), nn.GRU(4, 3), nn.LazyLinear(1))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    return rk.Learner(model, SEQ, optimizer, [rk.History(), rk.Checkpoint(path, **options)])


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_resumes_and_a_file_that_does_not_fit_leaves_it_lazy(tmp_path):
    path, x = tmp_path / "a.pt", torch.ones(5, 2, 1)
    whole = lazy_learner(tmp_path / "whole.pt").fit(3, [x])
    lazy_learner(path).fit(1, [x])
    saved = torch.load(path, weights_only=True)
    saved["callbacks"]["0 History"] = {}
    torch.save(saved, tmp_path / "bad.pt")
    refusing = lazy_learner(tmp_path / "bad.pt", resume=True)
    with pytest.raises(ValueError, match="a state that does not fit"):
        refusing.fit(1, [x])
    assert nn.parameter.is_lazy(refusing.model[0].weight)
    resumed = lazy_learner(path, resume=True).fit(3, [x])
    assert all(map(torch.equal, resumed.parameters, whole.parameters))
    with pytest.raises(ValueError, match="Learner: got a lazy module without weights"):
        refusing.state_dict()


class Cut:
    """Ends a training by an error after a step of the second epoch."""

    order = 2  # after the checkpoint

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, learner: rk.Learner) -> None:
        if (learner.epoch_index, learner.step_index) == (1, self.step):
            raise ZeroDivisionError


def rows_with_metrics(metrics: dict, checkpoint: rk.Checkpoint, cut: int | None) -> list:
    """The history of two epochs of four steps, or of as many as come before it is cut short."""
    torch.manual_seed(0)
    model = nn.GRU(1, 1)
    history = rk.History()
    callbacks = [history, checkpoint]
    if cut:
        callbacks.append(Cut(cut))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learner = rk.Learner(model, SEQ, optimizer, callbacks, metrics=metrics)
    with contextlib.suppress(ZeroDivisionError):
        learner.fit(2, [torch.full((5, 2, 1), i / 4) for i in range(4)])
    return history.rows


@pytest.mark.parametrize("step", [2, 4])  # of four: nothing may be left to count
def test_a_counting_metric_is_resumed_within_an_epoch_or_refused_when_it_is_written(tmp_path, step):
    class Mean:
        def __init__(self) -> None:
            self.reset()

        def reset(self) -> None:
            self.total = self.count = 0.0

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.total += float((outputs - targets).abs().sum())
            self.count += len(targets)

        def compute(self) -> float:
            return self.total / self.count

    class Kept(Mean):
        def state_dict(self) -> dict:
            return {"total": self.total, "count": self.count}

        def load_state_dict(self, saved: dict) -> None:
            self.total, self.count = saved["total"], saved["count"]

    def trained(metric, cut: int | None, every: int | None, **options) -> list:
        checkpoint = rk.Checkpoint(tmp_path / "a.pt", every, **options)
        return rows_with_metrics({"mean": metric, "mse": SEQ}, checkpoint, cut)

    whole = trained(Kept(), None, None)
    trained(Kept(), step, 1)
    assert trained(Kept(), None, 1, resume=True) == whole
    assert len({row["mean"] for row in whole}) == 2
    (tmp_path / "a.pt").unlink()
    with pytest.raises(ValueError, match="in the middle of an epoch; wanted one with state_dict"):
        trained(Mean(), None, 1)
    assert trained(Mean(), None, None) == whole


def bootstrapped() -> torchmetrics.Metric:
    return torchmetrics.BootStrapper(torchmetrics.MeanAbsoluteError(), num_bootstraps=3)


@pytest.mark.parametrize(
    "kind", [torchmetrics.MeanAbsoluteError, torchmetrics.R2Score, bootstrapped]
)
def test_a_torchmetric_is_resumed_within_an_epoch(kind, tmp_path):
    def trained(cut: int | None, **options) -> list:
        checkpoint = rk.Checkpoint(tmp_path / "a.pt", 1, **options)
        return rows_with_metrics({"kind": kind()}, checkpoint, cut)

    whole = trained(None)
    trained(2)
    assert trained(None, resume=True) == whole


def test_every_must_be_at_least_one():
    with pytest.raises(ValueError, match="Checkpoint") as info:
        rk.Checkpoint("a.pt", every=0)
    assert str(info.value) == (
        "Checkpoint: got every = 0; wanted every >= 1. Likely fix: None writes at the end of each epoch only."
    )


if __name__ == "__main__":
    scenarios(Path(sys.argv[1]))
