"""A tutorial as a script: the download without outputs, as a .py that says how it is run.

Its first lines are comments with the two commands that it takes in a fresh environment; after them
it is the notebook, cell by cell, as jupytext writes it.
"""

from __future__ import annotations

from copy import deepcopy

import jupytext
import nbformat

from .install import is_install
from .source import Cell, Notebook

# What stays of a cell's metadata in its marker, as in # %% tags=["solution"].
KEPT = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}


def script_path(name: str) -> str:
    """The path of a tutorial's script."""
    return f"{name}/{name}.py"


def script(notebook: Notebook, name: str) -> str:
    """The script of a notebook that stands alone and has no outputs and no attachments."""
    install = [cell for cell in notebook.cells if is_install(cell)]
    made = deepcopy(notebook)
    made.cells = [_bare(cell) for cell in made.cells if not is_install(cell)]
    made.metadata = nbformat.from_dict({"jupytext": KEPT})
    commands = [cell.source.lstrip().removeprefix("%") for cell in install]
    commands.append(f"python {name}.py")
    first = ["# In a fresh environment:", "#", *(f"#     {line}" for line in commands), ""]
    return "\n".join([*first, jupytext.writes(made, fmt="py:percent")])


def _bare(cell: Cell) -> Cell:
    """The cell itself, without the metadata that only a notebook reads."""
    cell.metadata.pop("jupyter", None)
    return cell
