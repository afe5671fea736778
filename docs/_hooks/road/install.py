"""The install line of a tutorial, which names the wheel of the very build that it comes with.

No index has the package yet, so that the wheel lies beside each notebook; by its address on the
site, where that is known, else in the notebook's own folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from .source import Cell, Notebook

OURS = re.compile(r"""(?<=\s)(["']?)rnnkit(?P<extras>\[[\w,-]+\])?\1(?=\s|$)""")
NAMED = re.compile(r"(?<=\s)[\"']?([A-Za-z][\w.-]*)")  # a package that an install line names


class Wheel(NamedTuple):
    """A built package: the name of its file, which pip reads, and its content."""

    name: str
    content: bytes


def wheel_of(root: Path) -> Wheel | None:
    """The package of this source tree, or None where it is none."""
    if not (root / "pyproject.toml").exists():
        return None
    with TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        subprocess.run(build, cwd=root, check=True, capture_output=True)
        (made,) = Path(folder).glob("*.whl")
        return Wheel(made.name, made.read_bytes())


def is_install(cell: Cell) -> bool:
    """Whether a cell is the line that a reader installs with."""
    return cell.cell_type == "code" and cell.source.lstrip().startswith("%pip install")


def name_wheel(notebook: Notebook, wheel: str, folder: str | None) -> None:
    """In the notebook itself: where its install line names rnnkit, name this wheel.

    `folder` is the address of the folder that holds the wheel, None where it is not known.
    """

    def named(match: re.Match[str]) -> str:
        extras = match["extras"] or ""
        if folder is None:
            return f'"./{wheel}{extras}"'
        return f'"rnnkit{extras} @ {folder.rstrip("/")}/{wheel}"'

    for cell in notebook.cells:
        if is_install(cell):
            cell.source = OURS.sub(named, cell.source)


def pins(notebook: Notebook) -> dict[str, str]:
    """The versions, here, of torch and of what the install line names, rnnkit aside."""
    names = {"torch"}
    for cell in notebook.cells:
        if is_install(cell):
            names |= set(NAMED.findall(cell.source.partition("install")[2]))
            names |= {"matplotlib"} if "rnnkit[plot]" in cell.source else set()
    found: dict[str, str] = {}
    for name in sorted(names - {"rnnkit"}):
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]  # without +cpu, which no index has
    return found
