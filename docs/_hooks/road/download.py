"""The notebooks that a reader takes away: three forms, each of which stands alone.

Links lead to the site, no syntax of the page is left, a drawing comes with the notebook, and a last
cell says where the notebook is from and what it ran with.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nbformat

from .header import glance, read
from .links import Link, external, outside_code, referred, source_of
from .source import Cell, Notebook

ALERT = re.compile(r"^> \[!(\w+)\][ \t]*$", re.M)
CLOSED = {"solution", "hide-input", "check", "fold"}  # tags of a cell whose code Jupyter closes

Address: TypeAlias = Callable[[Link], str | None]
Form: TypeAlias = Literal["outputs", "empty", "exercises"]
FORMS: dict[Form, str] = {"outputs": "", "empty": "_empty", "exercises": "_exercises"}
IMAGES = {".svg": "image/svg+xml", ".png": "image/png"}


def downloads(name: str) -> dict[Form, str]:
    """The paths of a tutorial's downloads."""
    return {form: f"{name}/{name}{ending}.ipynb" for form, ending in FORMS.items()}


@dataclass(frozen=True)
class Origin:
    """Where a notebook comes from, as far as the build knows."""

    name: str = ""
    license: str = ""
    page: str | None = None  # its address
    source: str | None = None  # the address of its source
    docs: Path | None = None  # the folder of the pages and their drawings


def download(
    notebook: Notebook, form: Form, absolute: Address, origin: Origin | None = None
) -> Notebook:
    """A copy of the notebook for a reader: with its outputs, without, or with empty answers.

    `absolute` gives the address of a link; where it gives None, the link becomes its text.
    """
    origin = origin or Origin()
    if form != "outputs":
        notebook = _without_outputs(notebook)
    made = deepcopy(notebook)
    facts = made.metadata.pop("rnnkit", {})
    if form == "exercises":
        made.cells = _with_empty_answers(made.cells)
    if said := glance(read(facts.get("header", ""))):
        made.cells.insert(1, _text_cell("at-a-glance", said))

    for cell in made.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            _stands_alone(cell, absolute, origin.docs)
        kept: dict[str, Any] = {"tags": tags} if tags else {}
        if cell.cell_type == "code" and CLOSED & set(tags):
            kept["jupyter"] = {"source_hidden": True}
        cell.metadata = nbformat.from_dict(kept)

    if "rnnkit" in facts:  # the facts of a run
        made.metadata["rnnkit"] = nbformat.from_dict(_about(facts, origin))
        made.cells.append(_text_cell("about", _last_words(facts, origin)))
    return made


def _without_outputs(notebook: Notebook) -> Notebook:
    """The notebook with cells of its own that have no outputs; what else it holds is shared."""
    bare = {"outputs": [], "execution_count": None}
    made = copy(notebook)
    made.cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell = nbformat.from_dict({**cell, **bare})
        made.cells.append(cell)
    return made


def _text_cell(name: str, text: str) -> Cell:
    cell = nbformat.v4.new_markdown_cell(text)
    cell.id = name  # nbformat's own ids are random
    return cell


# --- answers -------------------------------------------------------------------------------------


def _is_answer(cell: Cell) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def _with_empty_answers(cells: list[Cell]) -> list[Cell]:
    """The cells with one empty cell in place of each answer."""
    kept: list[Cell] = []
    for answer, group in groupby(cells, key=_is_answer):
        members = list(group)
        if not answer:
            kept += members
            continue
        empty = nbformat.v4.new_code_cell("# Your answer")
        empty.id = members[0].id
        kept.append(empty)
    return kept


# --- prose ---------------------------------------------------------------------------------------


@dataclass
class _Prose:
    """How the prose of one cell refers to what is not in the notebook."""

    absolute: Address
    docs: Path | None
    attached: dict[str, dict[str, str]] = field(default_factory=dict)  # its drawings

    def address(self, url: str) -> str | None:
        if external(url):
            return url
        target = source_of(url)
        return None if target is None else self.absolute(Link("url", target))

    def drawing(self, url: str) -> str | None:
        file = _drawing(self.docs, source_of(url))
        if file is None:
            return self.address(url)
        data = base64.b64encode(file.read_bytes()).decode()
        self.attached[file.name] = {IMAGES[file.suffix]: data}
        return f"attachment:{file.name}"

    def link(self, match: re.Match[str]) -> str:
        if not match["url"]:
            to = self.absolute(Link("ref", referred(match)))
        elif match["bang"]:
            to = self.drawing(match["url"])
        else:
            to = self.address(match["url"])
        if to:
            return f"{match['bang']}[{match['text']}]({to}{match['title'] or ''})"
        return f"*({match['text']})*" if match["bang"] else match["text"]

    def attribute(self, match: re.Match[str]) -> str:
        return f'{match["head"]}{self.address(match["url"]) or ""}"'


def _stands_alone(cell: Cell, absolute: Address, docs: Path | None) -> None:
    """The prose of a cell, in place: its drawings attached, its links absolute or their text."""
    prose = _Prose(absolute, docs)
    cell.source = quotes(outside_code(cell.source, prose.link, prose.attribute))
    if prose.attached:
        cell.attachments = nbformat.from_dict(prose.attached)


def _drawing(docs: Path | None, target: str | None) -> Path | None:
    """The file of a drawing as a notebook can show it: JupyterLab shows no attached SVG."""
    if docs is None or target is None:
        return None
    file = docs / target
    for suffix in (".png", file.suffix):
        found = file.with_suffix(suffix)
        if suffix in IMAGES and found.is_file():
            return found
    return None


def quotes(text: str) -> str:
    """Alerts, which Jupyter does not know, as quotes with a bold first line.

    >>> quotes("> [!NOTE]\\n> Mind the axis.")
    '> **Note**\\n>\\n> Mind the axis.'
    """
    return ALERT.sub(lambda match: f"> **{match[1].capitalize()}**\n>", text)


# --- where it comes from -------------------------------------------------------------------------


def _about(facts: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """What a program reads of it in the notebook's metadata."""
    said = {
        "tutorial": origin.name,
        "page": origin.page,
        "source": origin.source,
        "license": origin.license,
        "version": facts["rnnkit"],
        "python": facts.get("python"),
        "pins": facts.get("pins"),
    }
    return {name: value for name, value in said.items() if value}


def _last_words(facts: dict[str, Any], origin: Origin) -> str:
    """What a reader reads of it in the last cell."""
    parts = [f"A tutorial of rnnkit {facts['rnnkit']}"]
    if origin.page:
        parts.append(f"its page is <{origin.page}>")
    if origin.source:
        parts.append(f"its source is <{origin.source}>")
    if origin.license:
        parts.append(origin.license)
    text = f"---\n\n{'; '.join(parts)}.\n\nIt ran with Python {facts.get('python')}"
    named = [f"{name}=={pin}" for name, pin in facts.get("pins", {}).items()]
    if not named:
        return f"{text}."
    return f"{text} and these versions:\n\n```text\n{' '.join(named)}\n```"
