"""Nothing is lost: a training that was killed goes on to bitwise the same result."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import Refusal, asked
from ..core.state import map_leaves
from .rng import generators_of, rng_state, set_rng_state

if TYPE_CHECKING:
    from .learner import Learner


_FORMAT = "rnnkit checkpoint 1"
_FIX = (
    "build the same model, optimizer, phases, loaders and callbacks as for the run that wrote it."
)


class Checkpoint:
    """Writes the whole training to a file, at the end of each epoch and every so many steps, and goes on from it.

    The file holds the weights, the states of the optimizer, phases and callbacks, the place in the epoch, and the
    generators of PyTorch, Python, NumPy and the data loader. A training killed at any moment and resumed
    gives bitwise the weights and the history of one that was not, as long as the loader gives the same batches for
    the same generator. It is written beside the old file, `.name.process`, and then put in its place, so a good one
    is there at any moment; it is read with `weights_only=True`.

    Args:
        path: the file.
        every: training steps between two writes within an epoch; only at its end where it is `None`.
        resume: go on from the file where it exists; `fit` then makes up the epochs that are missing.

    Raises:
        ValueError: if `every` is below 1; when resuming, if the file is cut short, holds anything but tensors and
            plain values, or is of another model, optimizer or set of callbacks. The learner is then as it was.

    >>> checkpoint = Checkpoint("run.pt", every=100, resume=True)
    """

    order = 1  # after the callbacks whose state it keeps

    @asked("Checkpoint")
    def __init__(self, path: str | Path, every: int | None = None, resume: bool = False) -> None:
        if every is not None and every < 1:
            fix = "None writes at the end of each epoch only."
            raise Refusal(f"every = {every}", "every >= 1", fix)
        self.path, self.every, self.resume = Path(path), every, resume

    def on_fit_begin(self, learner: "Learner") -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.resume and self.path.exists():
            self.load(learner)

    def on_step_end(self, learner: "Learner") -> None:
        due = self.every is not None and learner.step_index % self.every == 0
        if due and learner.phase_name == "training":
            self.save(learner)

    def on_epoch_end(self, learner: "Learner") -> None:
        if learner.last_phase:
            self.save(learner, epoch_done=True)

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def save(self, learner: "Learner", epoch_done: bool = False) -> None:
        """Write the file atomically; with `epoch_done` it says that the next epoch begins."""
        saved = _take(learner)
        if epoch_done:
            saved |= {"place": (learner.epoch_index + 1, 0), "sums": {}}
        name = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with name.open("wb") as file:
                torch.save(saved, file)
                file.flush()
                os.fsync(file.fileno())
            self._read(name, mmap=True)  # what cannot be read back does not replace what can
            os.replace(name, self.path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def load(self, learner: "Learner") -> None:
        """Put the learner where the file left it; where that fails, it is as it was."""
        saved, before = self._read(self.path), copy.deepcopy(_take(learner))
        if missing := [name for name in before if name not in saved]:
            raise Refusal(f"a file without {', '.join(missing)}", "all that a training is", _FIX)
        there, here = _made_of(saved), _made_of(before)
        for name in here | there:
            if there.get(name, "nothing") != here.get(name, "nothing"):
                came, wanted = (f"{name} {made.get(name, 'nothing')}" for made in (there, here))
                raise Refusal(came, wanted, _FIX)
        try:
            _put(learner, saved)
        except Exception as error:
            _put(learner, before)
            came = f"a state that does not fit ({type(error).__name__}: {error})"
            raise Refusal(came, "the state of this learner", _FIX) from error
        learner.epoch_rng = saved["epoch_rng"]
        set_rng_state(saved["rng"], generators_of(learner.loaders))
        if learner.step_index:
            learner.resume_rng = saved["rng"]

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def _read(self, path: Path, mmap: bool = False) -> dict[str, Any]:
        try:
            saved: Any = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
        except Exception as error:
            fix = "it may have been cut short or hold pickled objects, which are not loaded; use an earlier copy."
            if mmap:
                fix = "the state_dict of a callback may hold tensors, numbers, strings, lists, tuples and dicts only."
            came = f"a file that cannot be read ({type(error).__name__})"
            raise Refusal(came, f"a file of the format {_FORMAT!r}", fix) from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            fix = "a bare state_dict goes through model.load_state_dict."
            raise Refusal("a file of another kind", f"the format {_FORMAT!r}", fix)
        return saved


def _take(learner: "Learner") -> dict[str, Any]:
    """All that a training is."""
    return {
        "format": _FORMAT,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "kinds": [
            type(learner.optimizer).__name__,
            *(type(phase).__name__ for phase in learner.phases),
        ],
        "place": (learner.epoch_index, learner.step_index),
        "sums": learner.sums,
        "phases": [phase.state_dict() for phase in learner.phases],
        "callbacks": {name: part.state_dict() for name, part in _keepers(learner).items()},
        "rng": rng_state(generators_of(learner.loaders)),
        "epoch_rng": learner.epoch_rng,
    }


def _put(learner: "Learner", saved: dict[str, Any]) -> None:
    device = learner.parameters[0].device
    learner.model.load_state_dict(saved["model"])
    learner.optimizer.load_state_dict(saved["optimizer"])
    (learner.epoch_index, learner.step_index), learner.sums = saved["place"], saved["sums"]
    for phase, state in zip(learner.phases, saved["phases"], strict=True):
        phase.load_state_dict(state)
        phase.state = map_leaves(lambda leaf: leaf.to(device), phase.state)
    for name, part in _keepers(learner).items():
        part.load_state_dict(saved["callbacks"][name])


def _made_of(saved: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in a file and in the learner that goes on from it."""
    return {
        **{f"a model's {name}": tuple(value.shape) for name, value in saved["model"].items()},
        "the optimizer and phases": saved["kinds"],
        "parameter groups": [len(group["params"]) for group in saved["optimizer"]["param_groups"]],
        "callbacks": sorted(saved["callbacks"]),
        "the loaders' own generators:": len(saved["rng"]["own"]),
    }


def _keepers(learner: "Learner") -> dict[str, Any]:
    """The callbacks that have a state, by their place and class."""
    keepers: list[Any] = [part for part in learner.callbacks if hasattr(part, "state_dict")]
    kinds = [
        dict.fromkeys(type(p).__name__ for p in (part, getattr(part, "scheduler", part)))
        for part in keepers
    ]
    return {
        f"{i} {'('.join(kind) + ')' * (len(kind) - 1)}": keepers[i] for i, kind in enumerate(kinds)
    }
