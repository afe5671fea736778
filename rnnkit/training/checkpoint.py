"""A file and when to write it: a training that was killed goes on to bitwise the same result."""

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import Refusal, asked, at_least, check_kind
from ..core.files import new_file, place_beside, target_of, write_whole
from .ranks import by_first
from .resume import FORMAT, OF_RANK, go_on_from

if TYPE_CHECKING:
    from .learner import Learner


class Checkpoint:
    """Writes the whole training to a file, at the end of each epoch and every so many steps, and
    goes on from it.

    The file holds [Learner.state_dict][rnnkit.Learner.state_dict]. A training killed at any moment
    and resumed gives bitwise the weights and the history of one that was not, as long as the loader
    gives the same batches for the same generator. Run a script again from its top: `fit(2)` and
    `fit(2)` make four epochs, however often they were killed between. To resume training the next
    day and train longer, ask for more: where the file has two epochs, `fit(5)` makes three. Its
    `["model"]` is of the last epoch; what [KeepBest][rnnkit.KeepBest] brings back is saved after.

    It is written beside the old file, `.name.process`, and then put in its place, so a good one is
    there at any moment. It has a checksum, and `torch.load(path, weights_only=True)` reads it.

    Of several processes the first writes and reads it, for all. As many go on from it.

    >>> from rnnkit import Checkpoint
    >>> checkpoint = Checkpoint("run.pt", every=100, resume=True)

    Args:
        path: the file, or a symbolic link to it; `~` is your home.
        every: training steps between two writes within an epoch; `None` writes at its end only.
        resume: go on from the file where it exists, once: a later `fit` of the same learner goes on
            from itself.

    Raises:
        ValueError: if `every` is below 1; by `fit`, if the path is no regular file; when resuming,
            if the file is damaged, holds anything but tensors and plain values, or is of another
            model, optimizer or set of callbacks; when writing, if a state could not be read back.
        OSError: by `fit`, if there can be no such file; when writing, if the disk is full.

    After an error the learner and the file of before are as they were.
    """

    order = 1  # after the callbacks whose state it keeps

    @asked("Checkpoint")
    def __init__(self, path: str | Path, every: int | None = None, *, resume: bool = False) -> None:
        if every is not None:
            at_least("every", every, 1, "None writes at the end of each epoch only.")
        check_kind("path", path, (str, os.PathLike), "a path", "name the file to write.")
        self.path = Path(path).expanduser()
        self.every = every
        self.resume = resume
        self._known: object = None  # a training and the file that it has written or read

    def on_fit_begin(self, learner: "Learner") -> None:
        there = by_first(learner.ranks, self._look)
        if self.resume and there and self._known != (learner.place, self.path):
            self.load(learner)

    def on_step_end(self, learner: "Learner") -> None:
        if self.every is None or not learner.fitting or learner.phase_name != "training":
            return
        if learner.now.cancelled:  # it is to come to this end again
            return
        if learner.step_index % self.every == 0:
            self.save(learner)

    def on_epoch_end(self, learner: "Learner") -> None:
        if learner.fitting and learner.last_phase:
            self.save(learner)

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def save(self, learner: "Learner") -> None:
        """Write the file: the old one or the new one is there at any moment, whole."""
        saved = learner.state_dict()
        ranks = learner.ranks
        if ranks is not None:
            own = _serialized({name: saved[name] for name in OF_RANK})
            saved["ranks"] = [_deserialized(share, _PLAIN) for share in ranks.gather(own)]
        by_first(ranks, lambda: write(self.path, saved))
        self._known = (learner.place, self.path)

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def load(self, learner: "Learner") -> None:
        """Put the learner where the file left it; where that fails, it is as it was."""
        go_on_from(learner, by_first(learner.ranks, lambda: read(self.path)))
        self._known = (learner.place, self.path)

    @asked(lambda checkpoint: f"Checkpoint({str(checkpoint.path)!r})")
    def _look(self) -> bool:
        check_path(self.path)
        return self.path.exists()


# ---- The file: an archive of torch.save, with a checksum as the archive's comment

_MARK = b"rnnkit sha256 "
_COMMENT = len(_MARK) + 64
_DAMAGED = (
    "it may have been cut short or hold pickled objects, which are not loaded; use an earlier copy."
)
_PLAIN = (
    "the state_dict of a callback may hold tensors, numbers, strings, lists, tuples and dicts "
    "only. So may a metric's, and the extra state of a module."
)
_LAST = b"PK\x05\x06"  # begins the last record: 22 bytes, the comment's length at their end
_WANTED = f"a file of the format {FORMAT!r}"


def write(path: Path, saved: dict[str, Any]) -> None:
    fix = "make room, or choose another place; the file of before is as it was."
    write_whole(path, with_checksum(_serialized(saved)), fix)


def read(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        came = f"a file that cannot be read ({error.strerror or error})"
        raise Refusal(came, _WANTED, "look at the path and its permissions.", OSError) from error
    check_checksum(data)
    return _deserialized(data, _DAMAGED)


def _serialized(saved: dict[str, Any]) -> bytes:
    """The bytes of `torch.save`, made in memory, which no full disk can cut; readable again."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    data = buffer.getvalue()
    _deserialized(data, _PLAIN)  # what cannot be read back does not replace what can
    return data


def _deserialized(data: bytes, fix: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        came = f"a file that cannot be read ({type(error).__name__})"
        raise Refusal(came, _WANTED, fix) from error


def with_checksum(data: bytes) -> bytes:
    """An archive with the checksum of its bytes as its comment, which all readers pass over."""
    content = data[:-2] + _COMMENT.to_bytes(2, "little")
    return content + _MARK + hashlib.sha256(content).hexdigest().encode()


def check_checksum(data: bytes) -> None:
    """Refuse bytes that are not those that were written; a plain archive has no checksum."""
    plain = data[-22:-18] == _LAST and data[-2:] == b"\0\0"
    if plain:
        return
    content = data[:-_COMMENT]
    if data[-_COMMENT:] != _MARK + hashlib.sha256(content).hexdigest().encode():
        came = "a file that cannot be read (its checksum is not that of its bytes)"
        raise Refusal(came, _WANTED, _DAMAGED)


def check_path(path: Path) -> None:
    """Refuse a path that cannot be written to; remove what killed processes have left beside it."""
    target = target_of(path)
    try:
        _check_no_other(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = place_beside(target)
        new_file(beside, target).close()
        beside.unlink()
    except OSError as error:
        came = f"a path that cannot be written to ({error.strerror or error})"
        fix = "look at the folder and its permissions."
        raise Refusal(came, "a file in a folder of yours", fix, OSError) from error
    _remove_left_over(target)


def _check_no_other(target: Path) -> None:
    kind = ""
    if target.is_symlink():  # one is left where links lead in a circle
        kind = "a link that leads to itself"
    elif target.is_dir():
        kind = "a folder"
    elif target.exists() and not target.is_file():
        kind = "a pipe or device"
    if kind:
        raise Refusal(kind, "a regular file, or none yet", "give the file a name of its own.")


def _remove_left_over(target: Path) -> None:
    """Files beside the target that a process was killed at writing."""
    if os.name != "posix":  # elsewhere one cannot ask for a process without ending it
        return
    prefix = f".{target.name}."
    for file in target.parent.iterdir():
        number = file.name.removeprefix(prefix)
        if file.name.startswith(prefix) and number.isdigit() and not _lives(int(number)):
            file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
