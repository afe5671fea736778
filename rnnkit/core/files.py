"""A file that is whole at any moment: the old one, or the new one."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import Refusal


def write_whole(path: Path, data: bytes, fix: str) -> None:
    """Write a file beside the old one, and then put it in its place."""
    target = target_of(path)
    beside = place_beside(target)
    try:
        with new_file(beside, target) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        came = f"{error.strerror or error} when writing {len(data)} bytes"
        raise Refusal(came, "a file written whole", fix, OSError) from error
    _sync_folder(target.parent)


def target_of(path: Path) -> Path:
    """The file itself, behind symbolic links."""
    return Path(os.path.realpath(path))


def place_beside(target: Path) -> Path:
    """Where this process writes what is to be the file."""
    return target.with_name(f".{target.name}.{os.getpid()}")


def new_file(beside: Path, target: Path) -> BinaryIO:
    """A new file to write to, with the old one's mode, or the one that a new file gets."""
    beside.unlink(missing_ok=True)  # of a process before this one, which had its number
    file = beside.open("xb")
    if os.name == "posix" and target.exists():
        os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
    return file


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
