"""Callbacks: what is shown, kept, clipped, stopped and scheduled, held to PyTorch and to counting by hand."""

import copy
import csv
import fcntl
import io
import os
import pickle
import pty
import struct
import sys
import termios
import threading
import time
import types

import pandas
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from tqdm import tqdm

import rnnkit as rk

MSE = nn.MSELoss()
SEQ = rk.seq2seq_loss(MSE)


def data(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner_of(*callbacks, rate: float = 0.1, loss=SEQ) -> rk.Learner:
    torch.manual_seed(1)
    model = rk.RecurrentSequential(nn.LSTM(3, 5), nn.Linear(5, 3)).double()
    return rk.Learner(model, loss, torch.optim.SGD(model.parameters(), rate), callbacks)


def refused(text: str, call) -> None:
    with pytest.raises(ValueError, match=text.partition(":")[0]) as info:
        call()
    assert str(info.value) == text


# ProgressBar


class Slow:
    def on_step_begin(self, learner):
        time.sleep(0.01)


def test_away_from_a_terminal_there_is_a_line_for_each_epoch(capsys):
    history, x = rk.History(), data(6, 2, 3)
    learner_of(history, rk.ProgressBar(), Slow()).fit(
        2, [x, x], [x], validation=rk.BPTTValidationPhase(nfeedback=2)
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, row in zip(lines, history.rows, strict=True):
        losses = "  ".join(
            f"{name} {row[name]:.4g}" for name in row if name not in ("epoch", "phase")
        )
        head, _, speed = line.rpartition("  ")
        assert head == f"epoch {row['epoch']} {row['phase']}: {losses}"
        assert speed.startswith("(")
        assert speed.endswith(" steps/s)")
        assert 1 <= int(speed[1:].split()[0]) <= 100  # a hundredth of a second a step, at least
    assert "closed_loss" in lines[1]


def test_in_a_terminal_there_is_a_bar(monkeypatch, capsys):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                shown.append(part)
        except OSError:  # how Linux tells the end of a terminal
            pass

    reader = threading.Thread(target=read)
    reader.start()
    history, x = rk.History(), data(6, 2, 3)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        learner_of(history, rk.ProgressBar(every=0.0)).fit(2, [x] * 7, [x])
        monkeypatch.undo()
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    finals = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")][:-1]
    assert len(finals) == 4
    for line, row in zip(finals, history.rows, strict=True):
        assert line.startswith(
            f"epoch {row['epoch']} {row['phase']}: {7 if row['phase'] == 'training' else 1} steps ["
        )
        assert f"loss {row['loss']:.4g}" in line
    assert "loss=" in text  # while the epoch runs
    assert capsys.readouterr().out == ""


def test_a_bar_is_closed_where_an_error_ends_the_epoch(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Fail:
        def on_step_end(self, learner: rk.Learner) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Terminal())
    before = len(tqdm._instances)
    with pytest.raises(KeyboardInterrupt):
        learner_of(rk.ProgressBar(), Fail()).fit(1, [data(6, 2, 3)])
    assert len(tqdm._instances) == before
    assert sys.stderr.getvalue().endswith("\n")


def test_an_epoch_beside_a_fit_is_shown_without_a_number(capsys):
    learner = learner_of(rk.ProgressBar(), rk.History())
    learner.epoch(rk.BPTTValidationPhase(), [data(6, 2, 3)])
    assert capsys.readouterr().out.startswith("validation: loss ")


def test_where_there_is_no_standard_error_there_is_a_line_for_each_epoch(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # as in a program with windows
    learner_of(rk.ProgressBar()).fit(1, [data(6, 2, 3)])
    assert capsys.readouterr().out.startswith("epoch 1 training: loss ")


def test_metrics_are_shown_and_kept(capsys):
    history = rk.History()
    learner = learner_of()
    metrics = {"mse": SEQ}
    callbacks = [history, rk.ProgressBar()]
    learner = rk.Learner(learner.model, SEQ, learner.optimizer, callbacks, metrics=metrics)
    learner.fit(1, [data(6, 2, 3)], [data(6, 2, 3)])
    for line, row in zip(capsys.readouterr().out.splitlines(), history.rows, strict=True):
        assert row["mse"] == row["loss"]
        assert f"mse {row['mse']:.4g}" in line


# History


def test_history_keeps_every_epoch_in_every_form(tmp_path):
    history, x, seen = rk.History(), data(6, 2, 3), []

    class Look:
        def on_epoch_end(self, learner):
            seen.append(
                (
                    learner.phase_name,
                    {name: value for name, value in learner.averages.items() if not value.ndim},
                )
            )

    assert history.as_dict() == {}
    learner = learner_of(history, Look())
    learner.fit(2, [x, 2 * x], [x], validation=rk.BPTTValidationPhase(nfeedback=2))
    assert [(row["epoch"], row["phase"]) for row in history.rows] == [
        (1, "training"), (1, "validation"), (2, "training"), (2, "validation")
    ]  # fmt: skip
    for row, (phase, averages) in zip(history.rows, seen, strict=True):
        assert phase == row["phase"]
        assert {name: float(value) for name, value in averages.items()} == {
            name: value for name, value in row.items() if name not in ("epoch", "phase")
        }
    columns = history.as_dict()
    assert list(columns) == ["epoch", "phase", "loss", "open_loss", "closed_loss"]
    assert columns["epoch"] == [1, 1, 2, 2]
    assert columns["closed_loss"] == [
        None,
        history.rows[1]["closed_loss"],
        None,
        history.rows[3]["closed_loss"],
    ]
    history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {name: str(value) for name, value in row.items()} for row in history.rows
    ]
    frame = history.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(columns)
    assert frame["loss"].tolist() == columns["loss"]
    assert frame["closed_loss"].isna().tolist() == [True, False, True, False]
    learner.fit(1, [x])
    assert history.rows[-1]["epoch"] == 3


def test_history_says_what_it_needs_for_a_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pandas"):
        rk.History().to_frame()


# StopOnNaN


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("window", [None, 2])
def test_a_loss_that_is_no_number_stops_before_it_does_harm(bad, window):
    x = data(6, 2, 3)
    worse = x.clone()
    worse[-1, 0, 0] = bad  # a target of the last step: the windows before it are sound
    kept = {}

    class Keep:
        def on_window_begin(self, learner):
            kept["weights"] = [p.detach().clone() for p in learner.parameters]

    learner = learner_of(Keep(), rk.StopOnNaN())
    batches = [[x, x, x], [x, worse, x]]
    phase = rk.BPTTTrainingPhase(window=window)
    learner.fit(1, batches[0], training=phase)
    refused(f"StopOnNaN: got a loss of {bad} in epoch 2, step 2; wanted a finite loss. Likely fix: clip the gradients "
            "with ClipGradients(1.0), lower the learning rate, or look for it in the data: a missing target may have "
            "the weight 0.",
            lambda: learner.fit(1, batches[1], training=phase))  # fmt: skip
    assert all(map(torch.equal, kept["weights"], learner.parameters))
    assert all(p.isfinite().all() for p in learner.parameters)
    careless = learner_of()
    careless.fit(1, [worse])
    assert not all(p.isfinite().all() for p in careless.parameters)


# ClipGradients


@pytest.mark.parametrize("max_norm", [0.01, 1e9])
def test_clipping_is_that_of_pytorch(max_norm):
    clip, x = rk.ClipGradients(max_norm), data(6, 2, 3)
    seen: list[list[Tensor]] = []

    class Keep:
        def on_backward_end(self, learner):
            seen.append([p.grad.clone() for p in learner.parameters])

    class KeepAfter(Keep):
        order = 1

    learner = learner_of(Keep(), clip, KeepAfter())
    learner.step(rk.BPTTTrainingPhase(), x)
    before, after = seen
    for p, gradient in zip(learner.parameters, before, strict=True):
        p.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(learner.parameters, max_norm)
    assert torch.equal(norm, clip.norm)
    assert all(
        torch.equal(p.grad, gradient) for p, gradient in zip(learner.parameters, after, strict=True)
    )
    total = torch.cat([gradient.flatten() for gradient in after]).norm().item()
    assert total == pytest.approx(min(max_norm, norm.item()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_around_the_limit_clipping_is_that_of_pytorch_to_the_bit(dtype):
    """Where it would multiply by 1, nothing is multiplied."""
    gradients = [data(4, 3).to(dtype), data(5, seed=8).to(dtype)]
    weights = [torch.zeros_like(gradient, requires_grad=True) for gradient in [*gradients, data(2)]]
    optimizer = torch.optim.SGD(weights, 0.1)  # one of them without a gradient

    def given(scale: float = 1.0) -> None:
        for weight, gradient in zip(weights, gradients, strict=False):
            weight.grad = gradient * scale

    given()
    norm = float(nn.utils.get_total_norm([weight.grad for weight in weights[:2]]))
    limits = [norm, norm - 1e-6, norm + 1e-6, norm + 2e-6, norm * 0.99, norm * 1.01, 1e9, 0.1]
    changed = []
    for limit in [*limits, torch.tensor(norm), torch.tensor(2 * norm)]:
        given()
        reference = nn.utils.clip_grad_norm_(weights, limit)
        wanted = [weight.grad for weight in weights[:2]]
        given()
        clip = rk.ClipGradients(limit)
        clip.on_backward_end(types.SimpleNamespace(optimizer=optimizer))
        assert torch.equal(clip.norm, reference)
        assert all(map(torch.equal, [weight.grad for weight in weights[:2]], wanted))
        changed.append(not all(map(torch.equal, wanted, gradients)))
    assert True in changed
    assert False in changed

    for wrong in (float("nan"), float("inf")):  # is seen by whoever looks for it
        given(wrong)
        clip.on_backward_end(types.SimpleNamespace(optimizer=optimizer))
        assert not clip.norm.isfinite()
        assert weights[0].grad.isnan().all()


def test_every_window_is_clipped():
    norms = []

    class Norms:
        order = 1

        def on_backward_end(self, learner):
            norms.append(torch.cat([p.grad.flatten() for p in learner.parameters]).norm().item())

    learner_of(rk.ClipGradients(0.01), Norms()).step(rk.BPTTTrainingPhase(window=2), data(7, 2, 3))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan")])
def test_a_norm_must_be_above_zero(max_norm):
    refused(f"ClipGradients: got max_norm = {max_norm}; wanted max_norm > 0. Likely fix: 1.0 is common.",
            lambda: rk.ClipGradients(max_norm))  # fmt: skip


# EarlyStopping


class Given:
    """A loss that is, in each epoch, what is given."""

    def __init__(self, training: list[float], validation: list[float]) -> None:
        self.values = {"training": training, "validation": validation}
        self.learner: rk.Learner | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.learner is not None
        return outputs.sum() * 0 + self.values[self.learner.phase_name][self.learner.epoch_index]


def stopped(
    losses: list[float], patience: int, phase: str = "validation"
) -> tuple[int, rk.EarlyStopping]:
    """The epochs made of those for which there is a loss."""
    flat = [1.0] * len(losses)
    loss = Given(losses, flat) if phase == "training" else Given(flat, losses)
    callback = rk.EarlyStopping(patience, phase=phase)
    learner = loss.learner = learner_of(callback, loss=loss)
    x = data(3, 1, 3)
    learner.fit(len(losses), [x], [x] if phase == "validation" else None)
    return learner.epoch_index, callback


@pytest.mark.parametrize("phase", ["validation", "training"])
@pytest.mark.parametrize(("losses", "patience", "epochs", "best"), [
    ([5, 4, 3, 2, 1], 1, 5, 1),
    ([5, 6, 4, 3], 1, 2, 5),
    ([5, 6, 4, 3], 2, 4, 3),
    ([5, 5, 5, 5], 2, 3, 5),
    ([3, 4, 2, 4, 4, 4, 1], 3, 6, 2),
    ([3, float("nan"), float("nan"), 1], 2, 3, 3),
])  # fmt: skip
def test_training_stops_after_epochs_without_a_new_best(losses, patience, epochs, best, phase):
    made, callback = stopped([float(loss) for loss in losses], patience, phase)
    assert made == epochs
    assert callback.best == best


def test_a_stopped_learner_may_go_on():
    callback = rk.EarlyStopping(1)
    learner = learner_of(callback, rate=0.0)
    x = data(6, 2, 3)
    assert learner.fit(5, [x], [x]).epoch_index == 2
    assert learner.fit(5, [x], [x]).epoch_index == 3


def test_early_stopping_watches_the_closed_loop():
    callback, history, x = rk.EarlyStopping(1, "closed_loss"), rk.History(), data(9, 2, 3)
    learner_of(history, callback).fit(3, [x], [x], validation=rk.BPTTValidationPhase(nfeedback=4))
    assert callback.best == min(
        row["closed_loss"] for row in history.rows if row["phase"] == "validation"
    )


class NoData:
    """Batches that nobody may ask for."""

    def __iter__(self):
        raise AssertionError("an epoch has begun")


def test_early_stopping_refuses_what_is_not_there():
    refused("EarlyStopping: got patience = 0; wanted patience >= 1. Likely fix: wait an epoch.",
            lambda: rk.EarlyStopping(0))  # fmt: skip
    refused("EarlyStopping: got phase='valid'; wanted \"training\" or \"validation\". Likely fix: validation is the "
            "one that tells of new data.", lambda: rk.EarlyStopping(1, phase="valid"))  # fmt: skip
    x = data(6, 2, 3)
    fix = "Likely fix: closed_loss is there with BPTTValidationPhase(nfeedback) for nfeedback >= 1."
    for name in ("closed_loss", "loss_by_step"):  # the one is not there, the other is no number
        refused(f"EarlyStopping: got monitor='{name}'; wanted one of ['loss', 'open_loss']. {fix}",
                lambda name=name: learner_of(rk.EarlyStopping(1, name)).fit(1, [x], [x]))  # fmt: skip
    x = NoData()
    known = "wanted one of ['accuracy', 'loss', 'open_loss']."
    own = "Likely fix: Learner(..., metrics={'val_loss': ...}) has a metric of this name."
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    for watch in (rk.EarlyStopping(1, "val_loss"), rk.KeepBest("val_loss")):
        learner = rk.Learner(nn.GRU(1, 1), SEQ, optimizer, [watch], metrics={"accuracy": SEQ})
        refused(f"{type(watch).__name__}: got monitor='val_loss'; {known} {own}",
                lambda learner=learner: learner.fit(1, x, x))  # fmt: skip
    refused("EarlyStopping: got no validation in this fit; wanted one of ['training']. Likely fix: "
            'learner.fit(epochs, train, valid), or EarlyStopping(2, phase="training").',
            lambda: learner_of(rk.EarlyStopping(2)).fit(1, [x]))  # fmt: skip


@pytest.mark.parametrize(("mode", "min_delta", "values", "epochs", "best"), [
    ("max", 0.0, [1, 2, 3, 3, 3, 9], 5, 3),
    ("max", 0.0, [3, 2, 1, 9], 3, 3),
    ("max", 0.5, [1, 1.4, 1.6, 2.0, 2.1, 9], 5, 1.6),
    ("min", 0.5, [3, 2.6, 2.4, 2.0, 2.0, 0], 5, 2.4),
    ("min", 0.0, [3, 2.9, 2.8, 2.7], 4, 2.7),
])  # fmt: skip
@pytest.mark.parametrize("phase", ["validation", "training"])
def test_a_metric_is_watched_either_way_and_by_how_much_it_is_better(
    mode, min_delta, values, epochs, best, phase
):
    """The metric is, in each epoch, what is given."""
    x, made = data(3, 1, 3), {}

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        value = values[made["learner"].epoch_index]
        return torch.full(
            (len(outputs),), float(value if made["learner"].phase_name == phase else 0)
        )

    stop = rk.EarlyStopping(2, "value", phase, mode=mode, min_delta=min_delta)
    keep = rk.KeepBest("value", mode, phase, min_delta)
    learner = learner_of(stop, keep)
    metrics = {"value": rk.seq2seq_loss(metric)}
    learner = rk.Learner(learner.model, SEQ, learner.optimizer, [stop, keep], metrics=metrics)
    made["learner"] = learner
    learner.fit(len(values), [x], [x])
    assert learner.epoch_index == epochs
    assert stop.best == keep.best == pytest.approx(best)
    assert keep.epoch == values.index(best) + 1


def test_stopping_at_a_training_loss_the_last_epoch_is_validated_and_counted(tmp_path):
    loss = Given([3.0, 4.0, 4.0], [1.0] * 3)
    history = rk.History()
    callbacks = [rk.EarlyStopping(1, phase="training"), history, rk.Checkpoint(tmp_path / "a.pt")]
    learner = loss.learner = learner_of(*callbacks, loss=loss)
    x = data(3, 1, 3)
    learner.fit(3, [x], [x])
    assert learner.epoch_index == 2
    assert [(row["epoch"], row["phase"]) for row in history.rows] == [
        (1, "training"), (1, "validation"), (2, "training"), (2, "validation")
    ]  # fmt: skip
    assert torch.load(tmp_path / "a.pt", weights_only=True)["place"] == (2, 0)
    again = Given([0.0] * 4, [0.0] * 4)
    resume = rk.Checkpoint(tmp_path / "a.pt", resume=True)
    other = again.learner = learner_of(
        rk.EarlyStopping(1, phase="training"), rk.History(), resume, loss=again
    )
    assert other.fit(3, [x], [x]).epoch_index == 2  # it had ended


def test_another_learner_is_watched_afresh_and_the_same_one_is_not():
    stop, keep, x = rk.EarlyStopping(2), rk.KeepBest(), data(6, 2, 3)
    first = learner_of(stop, keep)
    first.fit(1, [0.001 * x], [0.001 * x])
    low = stop.best
    first.fit(1, [x], [x])
    assert stop.best == keep.best == low
    assert (stop.waited, keep.epoch) == (1, 1)
    second = learner_of(stop, keep)
    second.fit(1, [x], [x])
    assert stop.best == keep.best > low
    assert (stop.waited, keep.epoch) == (0, 1)


class SkipEverything:
    def on_step_begin(self, learner: rk.Learner) -> None:
        raise rk.CancelStep


def test_an_epoch_without_a_step_left_says_nothing_to_early_stopping_and_the_plateau():
    stop = rk.EarlyStopping(1)
    learner = learner_of(SkipEverything(), stop)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(learner.optimizer, patience=0)
    learner = rk.Learner(
        learner.model, SEQ, learner.optimizer, [SkipEverything(), stop, rk.Scheduler(plateau)]
    )
    assert learner.fit(3, [data(6, 2, 3)], [data(6, 2, 3)]).epoch_index == 3
    assert (stop.best, stop.waited, plateau.last_epoch) == (float("inf"), 0, 0)


# KeepBest


def weights_of(learner: rk.Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.parameters]


class Weights:
    """The weights at the end of every epoch."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_epoch_end(self, learner: rk.Learner) -> None:
        if learner.phase_name == "training":
            self.seen.append(weights_of(learner))


@pytest.mark.parametrize("phase", ["training", "validation"])
def test_the_best_weights_are_brought_back(phase):
    losses, flat = [3.0, 1.0, 2.0, 1.0], [5.0] * 4
    loss = Given(losses, flat) if phase == "training" else Given(flat, losses)
    weights, keep, x = Weights(), rk.KeepBest(phase=phase), data(6, 2, 3)

    def moving(outputs: Tensor, targets: Tensor) -> Tensor:
        return (
            loss(outputs, targets) + (outputs - outputs.detach()).mean()
        )  # a gradient, and no more

    learner = loss.learner = learner_of(weights, keep, loss=moving)
    learner.fit(4, [x], [x])
    assert (keep.best, keep.epoch) == (1.0, 2)
    assert all(map(torch.equal, weights_of(learner), weights.seen[1]))
    assert not torch.equal(weights.seen[1][-1], weights.seen[3][-1])


def test_a_fit_that_is_cancelled_brings_the_best_weights_back_too():
    class Cancel:
        def on_step_begin(self, learner: rk.Learner) -> None:
            if learner.epoch_index == 2:
                raise rk.CancelFit

    weights, keep, x = Weights(), rk.KeepBest(), data(6, 2, 3)
    learner = learner_of(weights, keep, Cancel(), rate=1e3)  # the first epoch is the best
    learner.fit(5, [x], [x])
    assert keep.epoch is not None
    assert all(map(torch.equal, weights_of(learner), weights.seen[keep.epoch - 1]))


def test_no_epoch_that_is_no_number_is_the_best():
    loss = Given([1.0] * 3, [float("nan"), 2.0, float("nan")])
    keep, x = rk.KeepBest(), data(3, 1, 3)
    learner = loss.learner = learner_of(keep, loss=loss)
    learner.fit(3, [x], [x])
    assert (keep.best, keep.epoch) == (2.0, 2)


def test_the_best_weights_are_in_the_checkpoint(tmp_path):
    def trained(epochs: int, **options) -> tuple[rk.Learner, rk.KeepBest]:
        loss, keep = Given([1.0] * 4, [3.0, 1.0, 2.0, 4.0]), rk.KeepBest()

        def moving(outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets) + (outputs - outputs.detach()).mean()

        checkpoint = rk.Checkpoint(tmp_path / "a.pt", **options)
        learner = loss.learner = learner_of(keep, checkpoint, loss=moving)
        learner.fit(epochs, [data(6, 2, 3)], [data(6, 2, 3)])
        return learner, keep

    whole, _ = trained(4)
    trained(3)
    resumed, keep = trained(4, resume=True)
    assert (keep.best, keep.epoch) == (1.0, 2)
    assert all(map(torch.equal, weights_of(whole), weights_of(resumed)))


def test_keeping_the_best_refuses_what_is_not_there():
    x = data(6, 2, 3)
    refused("KeepBest: got mode='low'; wanted \"min\" or \"max\". Likely fix: a loss is better lower, an "
            "accuracy higher.", lambda: rk.KeepBest(mode="low"))  # fmt: skip
    refused("KeepBest: got min_delta = -1; wanted min_delta >= 0. Likely fix: 0 counts every new best.",
            lambda: rk.KeepBest(min_delta=-1))  # fmt: skip
    refused("KeepBest: got no validation in this fit; wanted one of ['training']. Likely fix: "
            'learner.fit(epochs, train, valid), or KeepBest(phase="training").',
            lambda: learner_of(rk.KeepBest()).fit(1, [x]))  # fmt: skip
    refused("KeepBest: got monitor='accuracy'; wanted one of ['loss', 'open_loss']. Likely fix: "
            "Learner(..., metrics={'accuracy': ...}) has a metric of this name.",
            lambda: learner_of(rk.KeepBest("accuracy", "max")).fit(1, [x], [x]))  # fmt: skip


# Scheduler


class Rates:
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_backward_begin(self, learner: rk.Learner) -> None:
        self.seen.append(learner.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("make", [
    lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 2), lr_scheduler.ExponentialLR(o, 0.5)],
                                        [2]),
])  # fmt: skip
@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.filterwarnings(
    "ignore:The epoch parameter in `scheduler.step:UserWarning"
)  # of torch's own SequentialLR
def test_a_scheduler_steps_as_in_a_plain_loop(per, make, valid):
    rates, x = Rates(), data(4, 1, 3)
    learner = learner_of(rates)
    learner = rk.Learner(
        learner.model, SEQ, learner.optimizer, [rates, rk.Scheduler(make(learner.optimizer), per)]
    )
    learner.fit(4, [x] * 3, [x] * 2 if valid else None)
    optimizer = learner_of().optimizer
    scheduler, expected = make(optimizer), []
    for _ in range(4):
        for _ in range(3):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per == "step":
                scheduler.step()
        if per == "epoch":
            scheduler.step()
    assert rates.seen == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("phase", ["training", "validation"])
def test_a_plateau_lowers_the_rate(phase):
    losses, flat = [3.0, 2.0, 2.0, 2.0, 1.0], [1.0] * 5
    loss = Given(losses, flat) if phase == "training" else Given(flat, losses)
    learner, rates = learner_of(loss=loss), Rates()
    plateau = lr_scheduler.ReduceLROnPlateau(learner.optimizer, factor=0.5, patience=1)
    learner = loss.learner = rk.Learner(
        learner.model, loss, learner.optimizer, [rates, rk.Scheduler(plateau)]
    )
    x = data(3, 1, 3)
    learner.fit(5, [x], [x] if phase == "validation" else None)
    assert rates.seen == [0.1, 0.1, 0.1, 0.1, 0.05]
    assert plateau.best == 1.0


def test_a_plateau_watches_what_it_is_told():
    x = data(9, 2, 3)
    history, learner = rk.History(), learner_of()
    plateau = lr_scheduler.ReduceLROnPlateau(learner.optimizer)
    learner = rk.Learner(learner.model, SEQ, learner.optimizer,
                         [history, rk.Scheduler(plateau, monitor="closed_loss")])  # fmt: skip
    learner.fit(2, [x], [x], validation=rk.BPTTValidationPhase(nfeedback=4))
    assert plateau.best == min(
        row["closed_loss"] for row in history.rows if row["phase"] == "validation"
    )
    fix = "Likely fix: closed_loss is there with BPTTValidationPhase(nfeedback) for nfeedback >= 1."
    refused(
        f"Scheduler: got monitor='closed_loss'; wanted one of ['loss']. {fix}",
        lambda: learner.fit(1, [x]),
    )


def test_a_plateau_watches_a_metric_upward():
    values, x = [1.0, 2.0, 2.0, 2.0, 2.0], data(3, 1, 3)
    learner = learner_of()

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(outputs),), values[learner.epoch_index])

    plateau = lr_scheduler.ReduceLROnPlateau(learner.optimizer, "max", factor=0.5, patience=1)
    rates, callback = Rates(), rk.Scheduler(plateau, monitor="value")
    metrics = {"value": rk.seq2seq_loss(metric)}
    learner = rk.Learner(learner.model, SEQ, learner.optimizer, [rates, callback], metrics=metrics)
    learner.fit(5, [x], [x])
    assert plateau.best == 2.0
    assert rates.seen == [0.1, 0.1, 0.1, 0.1, 0.05]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_step_of_validation_beside_the_fit_does_not_stop_a_scheduler_of_steps():
    class Validate:
        order = -1

        def on_step_end(self, learner: rk.Learner) -> None:
            if learner.phase_name == "training":
                learner.step(rk.BPTTValidationPhase(), data(5, 2, 3))

    learner = learner_of()
    schedule = lr_scheduler.StepLR(learner.optimizer, 1, 0.5)
    callbacks = [Validate(), rk.Scheduler(schedule, "step")]
    learner = rk.Learner(learner.model, SEQ, learner.optimizer, callbacks)
    learner.fit(2, [data(6, 2, 3)] * 3)
    assert schedule.last_epoch == 6


def test_a_scheduler_refuses_what_makes_no_sense():
    optimizer = learner_of().optimizer
    refused("Scheduler: got per='batch'; wanted \"epoch\" or \"step\". Likely fix: most are stepped an epoch.",
            lambda: rk.Scheduler(lr_scheduler.StepLR(optimizer, 2), "batch"))  # fmt: skip
    refused('Scheduler: got ReduceLROnPlateau with per="step"; wanted per="epoch". Likely fix: its patience counts '
            "epochs.", lambda: rk.Scheduler(lr_scheduler.ReduceLROnPlateau(optimizer), "step"))  # fmt: skip
    of_another = learner_of(rk.Scheduler(lr_scheduler.StepLR(optimizer, 2)))
    refused("Scheduler: got the schedule of another optimizer; wanted one of the learner's. Likely fix: build it "
            "after the optimizer.", lambda: of_another.fit(1, [data(6, 2, 3)]))  # fmt: skip


def test_a_callback_given_twice_is_refused():
    history = rk.History()
    refused("Learner: got one callback twice; wanted each once. Likely fix: a schedule would be stepped twice.",
            lambda: learner_of(history, history))  # fmt: skip
    assert len(learner_of(rk.History(), history).fit(1, [data(6, 2, 3)]).callbacks) == 2


# Order


def test_the_checkpoint_writes_after_the_callbacks_whose_state_it_keeps(tmp_path):
    history = rk.History()
    learner = learner_of(rk.Checkpoint(tmp_path / "a.pt"), history)
    learner = rk.Learner(
        learner.model, SEQ, learner.optimizer, [rk.Checkpoint(tmp_path / "a.pt"), history]
    )
    learner.fit(1, [data(6, 2, 3)])
    assert learner.callbacks[0] is history
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    assert saved["callbacks"]["0 History"]["rows"] == history.rows
    assert len(history.rows) == 1


@pytest.mark.parametrize("hidden", [False, True])
def test_the_best_weights_of_a_loss_that_has_some_are_brought_back_with_them(hidden):
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).square().mean(-1) / self.log.exp() + self.log

    torch.manual_seed(0)
    model, own, keep = nn.GRU(3, 3), Learned(), rk.KeepBest()
    loss = own
    if hidden:  # in a function, where only the optimizer knows of it
        loss = lambda outputs, targets: own(outputs, targets)  # noqa: E731
    optimizer = torch.optim.SGD([*model.parameters(), *own.parameters()], 3.0)  # too much
    learner = rk.Learner(model, rk.seq2seq_loss(loss), optimizer, [keep])
    valid = [torch.randn(6, 2, 3)]
    learner.fit(6, [torch.randn(6, 2, 3)], valid)
    assert keep.epoch is not None
    assert keep.epoch < 6
    again = learner.epoch(rk.BPTTValidationPhase(), valid)["loss"].item()
    assert again == pytest.approx(keep.best, rel=1e-6)


def test_a_gradient_that_the_optimizer_does_not_use_counts_in_no_norm():
    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.Linear(3, 3), nn.GRU(3, 3))
    clip, norms = rk.ClipGradients(1e9), []

    class Norm:
        order = 1

        def on_backward_end(self, learner: rk.Learner) -> None:
            used = [p.grad.flatten() for p in model[1].parameters()]
            norms.append((clip.norm.item(), torch.cat(used).norm().item()))

    optimizer = torch.optim.SGD(model[1].parameters(), 0.01)  # nobody empties the first's .grad
    rk.Learner(model, MSE, optimizer, [clip, Norm()]).fit(5, [torch.randn(6, 2, 3)])
    assert [got for got, _ in norms] == pytest.approx([right for _, right in norms])


def test_a_deep_copy_of_a_learner_goes_on_as_the_learner_does():
    stop, keep = rk.EarlyStopping(2), rk.KeepBest()
    learner = learner_of(rk.History(), stop, keep, rate=1e3)  # the first epoch is the best
    train, valid = [data(6, 2, 3)], [data(6, 2, 3)]
    learner.fit(1, train, valid)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(learner)))
    for one in (learner, copied):
        one.fit(3, train, valid)
        history, stop, keep = one.callbacks
        assert (one.epoch_index, keep.epoch, len(history.rows)) == (3, 1, 6)
    assert all(map(torch.equal, weights_of(learner), weights_of(copied)))
    assert copied.callbacks[0].rows == learner.callbacks[0].rows


def test_a_metric_of_several_numbers_is_not_watched():
    class Several:
        def reset(self) -> None: ...

        def update(self, outputs: Tensor, targets: Tensor) -> None: ...

        def compute(self) -> Tensor:
            return torch.ones(3)

    model = nn.GRU(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stop = rk.EarlyStopping(1, "each", "training")
    learner = rk.Learner(model, MSE, optimizer, [stop], metrics={"each": Several()})
    refused(
        "EarlyStopping: got monitor='each', a tensor (3,); wanted a single number. "
        "Likely fix: give the metric an average of its own: one number an epoch.",
        lambda: learner.fit(1, [torch.ones(6, 2, 3)]),
    )


def test_an_epoch_cut_short_is_not_in_the_history():
    class Cancel:
        left = 1

        def on_step_end(self, learner: rk.Learner) -> None:
            if learner.epoch_index == 1 and self.left:
                self.left = 0
                raise rk.CancelFit

    history = rk.History()
    learner = learner_of(history, Cancel())
    learner.fit(3, [data(6, 2, 3)] * 2).fit(1, [data(6, 2, 3)] * 2)
    assert learner.epoch_index == 2
    assert [row["epoch"] for row in history.rows] == [1, 2]
