"""Nothing is lost: a training that was killed goes on to bitwise the same result."""

import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._contract import refuse

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["Checkpoint"]

_FORMAT = "rnnkit checkpoint 1"


class Checkpoint:
    """Writes the whole training to a file, at the end of each epoch and every so many steps, and goes on from it.

    The file holds the weights, the optimizer, the phases' carried states and counts, the callbacks' states, the
    place in the epoch, and the states of PyTorch's and Python's generators and of the data loader's own. A training
    killed at any moment and resumed gives bitwise the weights and the history of one that was not, as long as the
    loader gives the same batches for the same generator. It is written beside the old file and then put in its
    place, so a good one is there at any moment; it is read with `weights_only=True`.

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

    def __init__(self, path: str | Path, every: int | None = None, resume: bool = False) -> None:
        if every is not None and every < 1:
            fix = "None writes at the end of each epoch only."
            raise ValueError(refuse("Checkpoint", f"every = {every}", "every >= 1", fix))
        self.path, self.every, self.resume = Path(path), every, resume

    def on_fit_begin(self, learner: "Learner") -> None:
        """Resume."""
        if self.resume and self.path.exists():
            self.load(learner)

    def on_step_end(self, learner: "Learner") -> None:
        """Write, every so many training steps."""
        due = self.every is not None and learner.step_index % self.every == 0
        if due and learner.phase_name == "training":
            self.save(learner)

    def on_epoch_end(self, learner: "Learner") -> None:
        """Write, after the last phase of an epoch."""
        if learner.last_phase:
            self.save(learner, epoch_done=True)

    def save(self, learner: "Learner", epoch_done: bool = False) -> None:
        """Write the file atomically.

        Args:
            learner: what is written.
            epoch_done: the epoch is complete; the next one begins.
        """
        place = (learner.epoch_index + 1, 0) if epoch_done else (learner.epoch_index, learner.step_index)
        saved = {
            "format": _FORMAT,
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "place": place,
            "sums": {} if epoch_done else learner.sums,
            "phases": [phase.state_dict() for phase in learner.phases],
            "callbacks": {name: part.state_dict() for name, part in _keepers(learner).items()},
            "rng": rng_state([]),
            "epoch_rng": learner.epoch_rng,
        }
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(saved, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def load(self, learner: "Learner") -> None:
        """Put the learner where the file left it; everything is checked before anything is changed."""
        call = f"Checkpoint({str(self.path)!r})"
        try:
            saved: Any = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:
            fix = "it may have been cut short or hold pickled objects, which are not loaded; use an earlier copy."
            came = f"a file that cannot be read ({type(error).__name__})"
            raise ValueError(refuse(call, came, f"a file of the format {_FORMAT!r}", fix)) from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            fix = "a bare state_dict goes through model.load_state_dict."
            raise ValueError(refuse(call, "a file of another kind", f"the format {_FORMAT!r}", fix))
        self._check(call, saved, learner)
        learner.model.load_state_dict(saved["model"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        (learner.epoch_index, learner.step_index), learner.sums = saved["place"], saved["sums"]
        for phase, state in zip(learner.phases, saved["phases"], strict=True):
            phase.load_state_dict(state)
        for name, part in _keepers(learner).items():
            part.load_state_dict(saved["callbacks"][name])
        learner.epoch_rng = saved["epoch_rng"]
        if learner.step_index:
            learner.resume_rng = saved["rng"]
        else:
            set_rng_state(saved["rng"], [])

    @staticmethod
    def _check(call: str, saved: dict[str, Any], learner: "Learner") -> None:
        fix = "build the same model, optimizer, phases and callbacks as for the run that wrote it."
        here: dict[str, Tensor] = learner.model.state_dict()
        there: dict[str, Tensor] = saved["model"]
        for name in [*here, *there]:
            shapes = [tuple(tree[name].shape) if name in tree else "nothing" for tree in (there, here)]
            if shapes[0] != shapes[1]:
                raise ValueError(refuse(call, f"another model: {name} {shapes[0]}", f"{name} {shapes[1]}", fix))
        pairs = (
            ("parameter groups", [len(group["params"]) for group in saved["optimizer"]["param_groups"]],
             [len(group["params"]) for group in learner.optimizer.param_groups]),
            ("callbacks", sorted(saved["callbacks"]), sorted(_keepers(learner))),
            ("phases", len(saved["phases"]), len(learner.phases)),
        )  # fmt: skip
        for name, came, wanted in pairs:
            if came != wanted:
                raise ValueError(refuse(call, f"{name} {came}", f"{name} {wanted}", fix))


def _keepers(learner: "Learner") -> dict[str, Any]:
    """The callbacks that have a state, by their place and class."""
    keepers = [part for part in learner.callbacks if hasattr(part, "state_dict")]
    return {f"{i} {type(part).__name__}": part for i, part in enumerate(keepers)}


def generators_of(data: object) -> list[torch.Generator]:
    """The generators of its own that a data loader draws its order from."""
    parts = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler"))]
    parts += [getattr(part, "sampler", None) for part in parts]
    found: list[torch.Generator] = []
    for part in parts:
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
            found.append(generator)
    return found


def rng_state(generators: list[torch.Generator]) -> dict[str, Any]:
    """The states of the global generators, and of those given."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "own": [generator.get_state() for generator in generators],
    }


def set_rng_state(state: dict[str, Any], generators: list[torch.Generator]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    for generator, own in zip(generators, state["own"], strict=False):
        generator.set_state(own)
