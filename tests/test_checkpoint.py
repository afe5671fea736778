"""Nothing is lost: trainings are killed with SIGKILL and resumed, and damaged or foreign files are refused.

Run as a script, this file trains in forked processes that are killed and resumed, and writes what came of them.
"""

import copy
import os
import random
import resource
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

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

    def __init__(self, place: tuple[str, str, int] | None) -> None:
        self.place, self.count = place, 0
        self.order = -1
        if place is not None:
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
    extra = (*checkpoint, Kill(place), KillLate(late))
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
        refuses(written, f"got a file without {name}")


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


@pytest.mark.parametrize("place", ["data set", "sampler of a batch sampler"])
def test_a_generator_is_kept_wherever_the_loader_has_it(tmp_path, place):
    class Own(Dataset):
        def __init__(self, own: torch.Generator) -> None:
            self.generator = own if place == "data set" else None

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
        if place != "data set":
            options = {"batch_sampler": BatchSampler(RandomSampler(data, generator=own), 2, False)}
        learner = rk.Learner(model, SEQ, torch.optim.SGD(model.parameters(), 0.1), callbacks)
        learner.fit(
            epochs, DataLoader(data, collate_fn=lambda items: torch.stack(items, 1), **options)
        )
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


def test_the_folders_of_the_file_are_made(tmp_path):
    path = tmp_path / "runs" / "today" / "a.pt"
    fit_with(path, 2, 1)
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


def test_every_must_be_at_least_one():
    with pytest.raises(ValueError, match="Checkpoint") as info:
        rk.Checkpoint("a.pt", every=0)
    assert str(info.value) == (
        "Checkpoint: got every = 0; wanted every >= 1. Likely fix: None writes at the end of each epoch only."
    )


if __name__ == "__main__":
    scenarios(Path(sys.argv[1]))
