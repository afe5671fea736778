"""A tutorial's source, `tutorials/NN_name.py`, and the notebook that jupytext makes of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, TypeAlias

import jupytext
import nbformat

Cell: TypeAlias = Any  # nbformat's cells and notebooks are dictionaries with attributes
Notebook: TypeAlias = Any

# The header of a tutorial, in comments before its first cell: docs/_hooks/road/header.py.
HEADER = re.compile(r"\A# ---\n(?P<yaml>(?:#.*\n)*?)# ---\n\n*")


def sources(root: Path) -> list[Path]:
    """The tutorials of a source tree, in their order."""
    return sorted((root / "tutorials").glob("[0-9]*.py"))


def target(root: Path, source: Path) -> Path:
    """Where the executed notebook of a tutorial is kept."""
    return root / "docs" / "tutorials" / f"{source.stem}.ipynb"


def digest(*parts: str) -> str:
    """A short hash of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def where(name: str, index: int, cell: Cell) -> str:
    """A cell's place in words: the file, its line there where that is known, its number."""
    line = cell.metadata.get("line")
    file = f"tutorials/{name}.py"
    if line:
        file += f":{line}"
    return f"{file}, cell {index + 1}"


def notebook_of(source: Path) -> Notebook:
    """The notebook of a tutorial, not executed; two conversions give the same bytes."""
    text = source.read_text(encoding="utf-8")
    header = HEADER.match(text)
    notebook = jupytext.reads(HEADER.sub("", text), fmt="py:percent")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("# %%")]
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"  # jupytext's own ids are random
        if len(lines) == len(notebook.cells):
            cell.metadata["line"] = lines[index]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about: dict[str, Any] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    if header:
        about["rnnkit"] = {"header": re.sub(r"^# ?", "", header["yaml"], flags=re.M)}
    notebook.metadata = nbformat.from_dict(about)
    return notebook
