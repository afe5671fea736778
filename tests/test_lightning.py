"""Lightning's Trainer runs the phases: its weights and losses are those of a Learner.

Run as a script, this file trains in forked processes, of which some are killed and resumed.
"""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import refused
from torch import nn
from torch.utils.data import DataLoader

import rnnkit
from rnnkit import (
    BPTTTrainingPhase,
    BPTTValidationPhase,
    Feedback,
    History,
    Learner,
    PhaseModule,
    RecurrentSequential,
    seq2seq_loss,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers, devices

LOSS = seq2seq_loss(nn.MSELoss())


def network():
    torch.manual_seed(0)
    model = RecurrentSequential(nn.GRU(2, 6), nn.Linear(6, 2))
    return model, torch.optim.Adam(model.parameters(), 0.01)


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(13, 3, 2, generator=generator) for _ in range(count)]


TRAIN, VALID = batches(5, 1), batches(2, 2)


def loader(data):
    return DataLoader(data, batch_size=None)


def trainer(folder, epochs, **more):
    import lightning

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "enable_checkpointing": False, **quiet, **more}
    return lightning.Trainer(max_epochs=epochs, default_root_dir=folder, **options)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


PHASES = {
    "full": lambda: BPTTTrainingPhase(),
    "windows": lambda: BPTTTrainingPhase(window=5, stride=2),
    "stateful": lambda: BPTTTrainingPhase(window=5, stateful=True),
    "accumulated": lambda: BPTTTrainingPhase(accumulate=2),
    "feedback": lambda: BPTTTrainingPhase(feedback=Feedback.probability(0.5, generator=drawn(3))),
}


@pytest.mark.parametrize("scheduled", [False, True])
def test_what_the_optimizer_alone_knows_of_is_in_the_checkpoint(scheduled, tmp_path):
    def trained(epochs, start, path=None):
        model, _ = network()
        log_scale = nn.Parameter(torch.tensor(start))
        optimizer = torch.optim.Adam([*model.parameters(), log_scale], 0.1)
        if scheduled:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            optimizer = {"optimizer": optimizer, "lr_scheduler": scheduler}

        def loss(outputs, targets):
            errors = (outputs - targets) / log_scale.exp()
            return errors.square().mean(-1) + 2 * log_scale

        module = PhaseModule(model, seq2seq_loss(loss), optimizer)
        running = trainer(tmp_path, epochs)
        running.fit(module, loader(TRAIN), ckpt_path=path)
        return running, log_scale

    _, whole = trained(3, 0.0)
    running, _ = trained(1, 0.0)
    running.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = trained(3, 1.0, tmp_path / "one.ckpt")
    assert whole.item() == resumed.item() != 0


@pytest.mark.parametrize("kind", PHASES)
def test_weights_losses_and_metrics_are_those_of_a_learner(kind, tmp_path):
    validation = BPTTValidationPhase(nfeedback=4)
    metrics = {"off": seq2seq_loss(nn.L1Loss())}

    model, optimizer = network()
    history = History()
    learner = Learner(model, LOSS, optimizer, [history], metrics=metrics)
    learner.fit(3, TRAIN, VALID, training=PHASES[kind](), validation=validation)

    other, optimizer = network()
    module = PhaseModule(
        other, LOSS, optimizer, training=PHASES[kind](), validation=validation, metrics=metrics
    )
    running = trainer(tmp_path, 3)
    running.fit(module, loader(TRAIN), loader(VALID))

    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    *_, of_training, of_validation = history.rows
    for name in ("loss", "off"):
        logged = running.callback_metrics[f"train_{name}"].item()
        assert logged == pytest.approx(of_training[name], abs=1e-6)
    for name in ("loss", "open_loss", "closed_loss", "off"):
        logged = running.callback_metrics[f"val_{name}"].item()
        assert logged == pytest.approx(of_validation[name], abs=1e-6)
    model.load_state_dict(module.model.state_dict())  # and they may be put into each other


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_scheduler_is_stepped_as_by_a_learner(interval, tmp_path):
    def falling(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    model, optimizer = network()
    callback = rnnkit.Scheduler(falling(optimizer), interval)
    learner = Learner(model, LOSS, optimizer, [callback])
    learner.fit(4, TRAIN, training=BPTTTrainingPhase(accumulate=3))  # the last update has two

    other, own = network()
    scheduler = {"scheduler": falling(own), "interval": interval}
    phase = BPTTTrainingPhase(accumulate=3)
    optimizers = {"optimizer": own, "lr_scheduler": scheduler}
    module = PhaseModule(other, LOSS, optimizers, training=phase)
    trainer(tmp_path, 4).fit(module, loader(TRAIN), loader(VALID))

    assert own.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.01
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_schedule_of_feedback_begins_anew_with_another_module(tmp_path):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.0

    phase = BPTTTrainingPhase(feedback=Feedback.probability(schedule))
    for _ in range(2):
        model, optimizer = network()
        module = PhaseModule(model, LOSS, optimizer, training=phase)
        for _ in range(2):
            trainer(tmp_path, 1).fit(module, loader(TRAIN[:1]))
    assert asked == [0, 1, 0, 1]


def test_a_plateau_is_seen_by_a_hook(tmp_path):
    class Falling(PhaseModule):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            self.lr_schedulers().step(self.trainer.callback_metrics["val_loss"])

    model, optimizer = network()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.9)
    module = Falling(model, LOSS, {"optimizer": optimizer, "lr_scheduler": plateau})
    trainer(tmp_path, 3).fit(module, loader(TRAIN), loader(VALID))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)


def test_two_optimizers_are_refused(tmp_path):
    model, optimizer = network()
    module = PhaseModule(model, LOSS, [optimizer, network()[1]])
    running = trainer(tmp_path, 1)
    refused(lambda: running.fit(module, loader(TRAIN)), "optimizer = a list of 2", TypeError)
    refused(lambda: Learner(model, LOSS, [optimizer]), "optimizer = a list of 1", TypeError)


class Steps:
    """A metric that counts by itself: how many steps it was given."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.count = 0

    def update(self, outputs, targets):
        self.count += len(outputs)

    def compute(self):
        return self.count


def test_a_validation_within_an_epoch_leaves_the_counts_of_its_training(tmp_path):
    model, optimizer = network()
    module = PhaseModule(model, LOSS, optimizer, metrics={"steps": Steps()})
    running = trainer(tmp_path, 2)
    running.fit(module, loader(TRAIN), loader(VALID))
    assert running.callback_metrics["train_steps"] == 5 * 12 * 3
    assert running.callback_metrics["val_steps"] == 2 * 12 * 3


def test_a_test_is_an_evaluation(tmp_path):
    model, optimizer = network()
    module = PhaseModule(model, LOSS, optimizer)
    (found,) = trainer(tmp_path, 1).test(module, loader(VALID), verbose=False)
    wanted = rnnkit.evaluate(model, LOSS, VALID)
    assert found["test_loss"] == pytest.approx(wanted["loss"], abs=1e-6)


@pytest.mark.parametrize("kind", ["stateful", "feedback"])
def test_a_training_goes_on_from_a_checkpoint_of_lightning(kind, tmp_path):
    whole, optimizer = network()
    module = PhaseModule(whole, LOSS, optimizer, training=PHASES[kind]())
    trainer(tmp_path, 4).fit(module, loader(TRAIN), loader(VALID))

    first, optimizer = network()
    module = PhaseModule(first, LOSS, optimizer, training=PHASES[kind]())
    running = trainer(tmp_path, 2)
    running.fit(module, loader(TRAIN), loader(VALID))
    path = tmp_path / "half.ckpt"
    running.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["rnnkit"]["training"]["updates"] == 10

    torch.manual_seed(9)  # what is drawn or initialized now must not matter
    second = RecurrentSequential(nn.GRU(2, 6), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(second.parameters(), 0.01)
    training = PHASES[kind]()
    if training.feedback is not None:
        training.feedback.generator.manual_seed(77)
    module = PhaseModule(second, LOSS, optimizer, training=training)
    trainer(tmp_path, 4).fit(module, loader(TRAIN), loader(VALID), ckpt_path=path)
    for mine, theirs in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Placed:
    """A loader that knows how far it was read, as Lightning asks it to."""

    def __init__(self, data):
        self.data = data
        self.place = 0

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for i in range(self.place % len(self.data), len(self.data)):
            self.place = i + 1
            yield self.data[i]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


LOADERS = {"keeps its place": Placed, "begins anew": loader}


def in_a_process(work, *arguments):
    """Does the work in a process of its own; gives the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the training failed"
    return 0


def fit(kind, folder, name, killed=False, checkpoint=None):
    """A training of three epochs, and what it saw in a file; one that is killed writes checkpoints."""
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    class Look(Callback):
        """The batches and losses, and the end of the process in the second epoch."""

        def __init__(self):
            self.seen = []
            self.losses = []

        def on_train_batch_start(self, running, module, batch, batch_idx):
            found = [torch.equal(batch, one) for one in TRAIN].index(True)
            self.seen.append((running.current_epoch, batch_idx, found))

        def on_train_batch_end(self, running, module, outputs, batch, batch_idx):
            if killed and (running.current_epoch, batch_idx) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            self.losses.append(running.callback_metrics["train_loss_step"])

    model, optimizer = network()
    if checkpoint is not None:  # what is initialized now must not matter
        torch.manual_seed(9)
        model[0].reset_parameters()
    look = Look()
    callbacks = [look]
    if killed:  # three updates a batch: every two batches
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=6, save_top_k=-1))
    module = PhaseModule(model, LOSS, optimizer, training=PHASES["stateful"]())
    running = trainer(folder, 3, callbacks=callbacks, enable_checkpointing=killed)
    running.fit(module, LOADERS[kind](TRAIN), ckpt_path=checkpoint)
    saved = {"seen": look.seen, "losses": look.losses, "updates": running.global_step}
    saved |= {"weights": list(model.parameters()), "optimizer": optimizer.state_dict()}
    torch.save(saved, folder / name)


def killed_and_resumed(folder):
    """The script's: each training whole, and again, killed in its ninth batch and resumed."""
    import lightning  # noqa: F401  # once, for all processes

    torch.set_num_threads(1)
    for kind in LOADERS:
        own = folder / kind
        own.mkdir()
        assert in_a_process(fit, kind, own, "whole.pt") == 0
        assert in_a_process(fit, kind, own, "killed.pt", True) == signal.SIGKILL
        assert not (own / "killed.pt").exists()
        files = sorted(own.glob("*.ckpt"), key=lambda file: int(file.stem.partition("=")[2]))
        assert [file.name for file in files] == [f"step={n}.ckpt" for n in (6, 12, 18, 24)]
        assert in_a_process(fit, kind, own, "resumed.pt", False, files[-1]) == 0


def alike(mine, theirs):
    return all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


@pytest.fixture(scope="module")
def after_kills(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    folder = tmp_path_factory.mktemp("killed")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(folder)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(rnnkit.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


def test_a_training_killed_in_the_middle_of_an_epoch_is_bitwise_the_one_that_was_not(after_kills):
    own = after_kills / "keeps its place"
    whole, resumed = (torch.load(own / f"{name}.pt") for name in ("whole", "resumed"))
    # The last file is that of three batches into the second epoch: the ninth is trained on anew.
    assert resumed["seen"] == whole["seen"][8:]
    assert resumed["updates"] == whole["updates"] == 45
    assert alike(resumed["losses"], whole["losses"][8:])
    assert alike(resumed["weights"], whole["weights"])
    moments = [
        [value for state in run["optimizer"]["state"].values() for value in state.values()]
        for run in (resumed, whole)
    ]
    assert alike(*moments)


def test_where_the_loader_keeps_no_place_it_is_read_from_its_beginning(after_kills):
    own = after_kills / "begins anew"
    whole, resumed = (torch.load(own / f"{name}.pt") for name in ("whole", "resumed"))
    # Updates and places are counted as if nothing had been; the end of the epoch is left out.
    assert resumed["updates"] == 45
    assert [seen[:2] for seen in resumed["seen"]] == [seen[:2] for seen in whole["seen"][8:]]
    assert [found for _, _, found in resumed["seen"]] == [0, 1, 0, 1, 2, 3, 4]
    assert not alike(resumed["weights"], whole["weights"])


def test_gradients_are_clipped_by_a_hook(tmp_path):
    class Clipped(PhaseModule):
        def on_before_optimizer_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=0.01)

    model, optimizer = network()
    learner = Learner(model, LOSS, optimizer, [rnnkit.ClipGradients(0.01)])
    learner.fit(1, TRAIN, training=BPTTTrainingPhase(window=5))
    other, optimizer = network()
    module = Clipped(other, LOSS, optimizer, training=BPTTTrainingPhase(window=5))
    trainer(tmp_path, 1).fit(module, loader(TRAIN))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_trains_in_bfloat16(tmp_path):
    model, optimizer = network()
    running = trainer(tmp_path, 2, precision="bf16-mixed")
    module = PhaseModule(model, LOSS, optimizer, training=BPTTTrainingPhase(window=5))
    running.fit(module, loader(TRAIN))
    learner = Learner(*network_with_loss(), autocast=torch.bfloat16)
    learner.fit(2, TRAIN, training=BPTTTrainingPhase(window=5))
    for mine, theirs in zip(learner.parameters, model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.002)


def network_with_loss():
    model, optimizer = network()
    return model, LOSS, optimizer


TWO = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning, torch
from torch import nn
from torch.utils.data import DataLoader
from rnnkit import BPTTTrainingPhase, PhaseModule, RecurrentSequential, SequenceBatch, seq2seq_loss

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model = RecurrentSequential(nn.GRU(2, 6), nn.Linear(6, 5))
data = torch.load(sys.argv[1], weights_only=True)
loss = seq2seq_loss(nn.CrossEntropyLoss(ignore_index=-100))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
module = PhaseModule(model, loss, optimizer, training=BPTTTrainingPhase(window=4))
class Shares(torch.utils.data.Dataset):
    def __len__(self): return len(data)
    def __getitem__(self, i):
        inputs, targets = data[i]
        rows = slice(0, 1) if module.global_rank == 0 else slice(1, None)
        return SequenceBatch(inputs[:, rows], targets[:, rows])
trainer = lightning.Trainer(
    accelerator="cpu", strategy="ddp", devices=2, max_epochs=2, logger=False, use_distributed_sampler=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, DataLoader(Shares(), batch_size=None))
if trainer.global_rank == 0:
    torch.save([model.state_dict(), trainer.callback_metrics["train_loss"]], sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_are_one_on_the_joint_batch(tmp_path, in_double_precision):
    generator = drawn(4)
    data = []
    for _ in range(3):
        inputs = torch.randn(9, 4, 2, generator=generator)
        targets = torch.randint(5, (9, 4), generator=generator)
        targets[2:7, 0] = -100  # the first process has fewer targets than the second
        data.append((inputs, targets))
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(rnnkit.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "two.py", "data.pt", "out.pt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights, logged = torch.load(tmp_path / "out.pt", weights_only=True)

    torch.manual_seed(0)
    model = RecurrentSequential(nn.GRU(2, 6), nn.Linear(6, 5))
    loss = seq2seq_loss(nn.CrossEntropyLoss(ignore_index=-100))
    history = History()
    learner = Learner(model, loss, torch.optim.SGD(model.parameters(), 0.1), [history])
    learner.fit(2, data, training=BPTTTrainingPhase(window=4))
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(weights[name], parameter, rtol=0, atol=1e-10)
    assert logged.item() == pytest.approx(history.rows[-1]["loss"], abs=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_batch_with_lengths_is_converted_to_another_precision(precision, tmp_path):
    batch = rnnkit.SequenceBatch(TRAIN[0][:-1], TRAIN[0][1:], torch.tensor([12, 5, 7]))
    model, optimizer = network()
    trainer(tmp_path, 1, precision=precision).fit(
        PhaseModule(model, LOSS, optimizer), loader([batch])
    )
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}[precision]
    own, optimizer = network()
    changed = (batch.inputs.to(dtype), batch.targets.to(dtype), batch.lengths)
    Learner(own.to(dtype), LOSS, optimizer).fit(1, [rnnkit.SequenceBatch(*changed)])
    for mine, theirs in zip(own.parameters(), model.parameters(), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs)
    assert batch.inputs.dtype == torch.float32


@pytest.mark.parametrize("batches", [TRAIN, TRAIN[:1], [(TRAIN[0], TRAIN[0])], TRAIN[0]])
def test_batches_that_lightning_would_step_through_side_by_side_are_refused(batches, tmp_path):
    def fit(train, valid):
        model, optimizer = network()
        trainer(tmp_path, 1).fit(PhaseModule(model, LOSS, optimizer), train, valid)

    text = refused(lambda: fit(batches, None), "one loader", TypeError)
    if isinstance(batches, list):
        fix = text.partition("Likely fix: ")[2].rstrip(".")
        right = eval(fix, {"DataLoader": DataLoader, "batches": batches})
        fit(right, [right])  # Lightning takes one loader in a list too


def test_batches_of_a_bucket_sampler_are_predicted_in_their_order(tmp_path):
    rows = [torch.randn(n, 2, generator=drawn(n)) for n in (5, 2, 7, 3, 4)]
    sampler = rnnkit.BucketSampler(list(map(len, rows)), 2, shuffle=False)
    batches = DataLoader(
        rows, batch_sampler=sampler, collate_fn=lambda chosen: rnnkit.batchseq(chosen).sequences
    )
    module = PhaseModule(*network_with_loss())
    predicted = trainer(tmp_path, 1).predict(module, batches)
    for batch, (outputs, _) in zip(batches, predicted, strict=True):
        torch.testing.assert_close(outputs, module.model(batch)[0])


FORMS = {
    "a sequence": lambda x, y, lengths: x,
    "a dict": lambda x, y, lengths: {"only": x},
    "a pair": lambda x, y, lengths: (x, y),
    "a ragged pair": lambda x, y, lengths: (x, y, lengths),
    "a Padded": lambda x, y, lengths: rnnkit.Padded(x, lengths),
    "a SequenceBatch": lambda x, y, lengths: rnnkit.SequenceBatch(x, y, lengths),
    "one without targets": lambda x, y, lengths: rnnkit.SequenceBatch(x, lengths=lengths),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_predicted_in_whatever_form_it_comes(form, tmp_path):
    class Both(nn.Module):
        takes_packed = True

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, bidirectional=True)

        def forward(self, inputs, state=None):
            return self.rnn(inputs["only"] if isinstance(inputs, dict) else inputs, state)

    x, y = torch.randn(5, 3, 2, generator=drawn(0)), torch.randn(5, 3, 6)
    lengths = torch.tensor([5, 2, 3])
    batch = FORMS[form](x, y, lengths)
    module = PhaseModule(Both(), LOSS, torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    loader = DataLoader([batch], batch_size=None, collate_fn=lambda batch: batch)
    ragged = form not in ("a sequence", "a dict", "a pair")
    for (predicted,) in trainer(tmp_path, 1).predict(module, [loader, loader]):
        outputs, state = predicted
        for row, length in enumerate(lengths.tolist() if ragged else [5, 5, 5]):
            right, last = module.model.rnn(x[:length, row : row + 1])
            torch.testing.assert_close(outputs[:length, row : row + 1], right)
            torch.testing.assert_close(state[:, row : row + 1], last)


def test_what_steps_with_a_closure_is_refused_and_a_file_of_another_module_has_weights(tmp_path):
    model, _ = network()
    module = PhaseModule(model, LOSS, torch.optim.LBFGS(model.parameters()))
    refused(lambda: trainer(tmp_path, 1).fit(module, loader(TRAIN)), "from gradients", TypeError)

    first = PhaseModule(*network_with_loss())
    trainer(tmp_path, 1).fit(first, loader(TRAIN))
    first.trainer.save_checkpoint(tmp_path / "plain.ckpt")
    saved = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    torch.save({k: v for k, v in saved.items() if k != "rnnkit"}, tmp_path / "plain.ckpt")
    second = PhaseModule(*network_with_loss())
    trainer(tmp_path, 2).fit(second, loader(TRAIN), ckpt_path=tmp_path / "plain.ckpt")
    whole = Learner(*network_with_loss())
    whole.fit(2, TRAIN)
    for mine, theirs in zip(whole.parameters, second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_phase_that_does_not_fit_is_refused():
    model, optimizer = network()
    text = refused(
        lambda: PhaseModule(model, LOSS, optimizer, training=BPTTValidationPhase()),
        "a phase that trains",
    )
    assert text.startswith("PhaseModule: got a BPTTValidationPhase; ")
    text = refused(
        lambda: PhaseModule(model, LOSS, optimizer, validation=LOSS), "a phase", TypeError
    )
    assert "Likely fix: BPTTTrainingPhase() or BPTTValidationPhase()." in text


def test_without_lightning_the_name_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "rnnkit.training.lightning", raising=False)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ImportError, match=r"Likely fix: pip install 'rnnkit\[lightning\]'"):
        rnnkit.PhaseModule  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'phase_module'"):
        rnnkit.phase_module  # noqa: B018


if __name__ == "__main__":
    killed_and_resumed(Path(sys.argv[1]))
