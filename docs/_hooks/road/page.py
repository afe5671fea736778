"""An executed notebook as the Markdown of its page.

What a tag does to a cell: `evidence`, `solution`, `check` and `fold` close it, in one fold with its
neighbors of the same tag; `hide-input` closes its code, under its figure; what a `hero` shows
stands under the title too. Code is closed and never dropped: who copies all of it, in order, can
run it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import nbformat

from .header import Header, glance, read
from .links import CODE, Link, moved
from .outputs import Unshowable, fence, output_text, shows_figure
from .source import Cell, Notebook, where

# What MkDocs would read and Jupyter would show as it is.
RAW = re.compile(
    r"^\s*(?:!!!|\?\?\?|===|:::|--8<--)|\[\^[^\]]+\]|\{\s*[.#:][\w-]+[^}]*\}\s*$", re.M
)
FOLDS = ("evidence", "solution", "check", "fold")  # the outermost first
HEADING = re.compile(r"\A\s*(#{2,6} .+)\n?")
CHECKS = re.compile(r"\bassert_\w+$")  # a call that checks, by its name


class Found(NamedTuple):
    """A link and the cell that it stands in, in words."""

    place: str
    link: Link


class Placed(NamedTuple):
    """A cell and its place, in words."""

    cell: Cell
    place: str

    @property
    def tags(self) -> set[str]:
        return set(self.cell.metadata.get("tags", []))


@dataclass
class Page:
    """A page's Markdown, the files it shows, the links it makes, and what is wrong with it."""

    name: str
    header: Header = field(default_factory=Header)
    opening: str = ""  # the title, and the line under it
    glance: str = ""  # what you will learn and need
    hero: str = ""
    body: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # their paths begin with the name
    links: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.opening.partition("\n")[0].removeprefix("# ") or self.name

    @property
    def markdown(self) -> str:
        return self.whole()

    def whole(self, strip: str = "", footer: str = "") -> str:
        """The page in its order, with what only the build knows."""
        parts = [self.opening, strip, self.glance, self.hero, self.body, footer]
        return "\n\n".join(part for part in parts if part) + "\n"


def to_page(notebook: Notebook, name: str) -> Page:
    """The page of the executed notebook of tutorials/NAME.py."""
    page = Page(name)
    place = f"tutorials/{name}.py, its header"
    page.header = read(notebook.metadata.get("rnnkit", {}).get("header", ""))
    page.problems += [f"{place}: {problem}" for problem in page.header.problems]
    if said := glance(page.header):
        page.glance = _indented('!!! glance ""', _links_moved(said, place, page))

    cells = [Placed(cell, where(name, i, cell)) for i, cell in enumerate(notebook.cells)]
    if cells and cells[0].cell.cell_type == "markdown":
        page.opening, rest = _opening(cells[0].cell.source)
        page.opening = _prose(_with(cells[0], page.opening), page)
        cells[0] = _with(cells[0], rest)
    page.body = _told(cells, page, FOLDS)
    return page


def _opening(text: str) -> tuple[str, str]:
    """The title with the paragraph under it, and the rest of the first cell."""
    title, _, below = text.partition("\n\n")
    paragraph, _, rest = below.partition("\n\n")
    if not title.startswith("# "):
        return "", text
    if re.match(r"[-*>|!<$`#]", paragraph):  # no line of prose
        return title, below
    return f"{title}\n\n{paragraph}".rstrip(), rest


def _with(placed: Placed, source: str) -> Placed:
    """The same cell with another text."""
    return Placed(nbformat.from_dict({**placed.cell, "source": source}), placed.place)


# --- folds ---------------------------------------------------------------------------------------


def _told(cells: Sequence[Placed], page: Page, folds: Sequence[str]) -> str:
    """Cells as Markdown; those of one tag in a row are one fold. `folds` are not yet entered."""
    parts: list[str] = []

    def outermost(placed: Placed) -> str:
        return next((tag for tag in folds if tag in placed.tags), "")

    for tag, group in groupby(cells, key=outermost):
        members = list(group)
        if not tag:
            parts += [_cell(placed, page) for placed in members]
            continue
        inner = folds[folds.index(tag) + 1 :]
        if tag == "evidence":
            parts += [_evidence(section, page, inner) for section in _sections(members)]
        else:
            kind = "example" if tag == "solution" else tag  # the theme has a look for examples
            parts.append(_fold(kind, _summary(tag, members), _told(members, page, inner)))
    return "\n\n".join(part for part in parts if part)


def _indented(head: str, text: str) -> str:
    lines = [f"    {line}".rstrip() for line in text.split("\n")]
    return "\n".join([head, "", *lines])


def _fold(kind: str, summary: str, text: str) -> str:
    quoted = summary.replace('"', "'")
    return _indented(f'??? {kind} "{quoted}"', text) if text else ""


def _summary(tag: str, cells: Sequence[Placed]) -> str:
    """What a fold is called: as its first cell says it, or by its tag."""
    if said := cells[0].cell.metadata.get("summary"):
        return str(said)
    if tag == "check":
        count = sum(checks(placed.cell) for placed in cells)
        return f"{count} check passed" if count == 1 else f"{count} checks passed"
    return {"solution": "Solution", "fold": "Set-up", "evidence": "Evidence"}[tag]


def checks(cell: Cell) -> int:
    """How many assertions a cell holds.

    >>> checks(nbformat.v4.new_code_cell("assert a\\ntorch.testing.assert_close(b, c)"))
    2
    """
    if cell.cell_type != "code":
        return 0
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:  # a magic of Jupyter's
        return 0
    count = 0
    for node in ast.walk(tree):
        count += isinstance(node, ast.Assert)
        if isinstance(node, ast.Call):
            count += CHECKS.search(ast.unparse(node.func)) is not None
    return count


def _sections(cells: Sequence[Placed]) -> list[list[Placed]]:
    """Cells, parted before each that begins with a heading."""
    sections: list[list[Placed]] = []
    for placed in cells:
        heads = placed.cell.cell_type == "markdown" and HEADING.match(placed.cell.source)
        if heads or not sections:
            sections.append([])
        sections[-1].append(placed)
    return sections


def _evidence(section: list[Placed], page: Page, folds: Sequence[str]) -> str:
    """A closed section under its heading, which stays open to be found."""
    first, *others = section
    heading = HEADING.match(first.cell.source)
    if first.cell.cell_type != "markdown" or not heading:
        return _fold("evidence", _summary("evidence", section), _told(section, page, folds))
    rest = [_with(first, first.cell.source[heading.end() :]), *others]
    folded = _fold("evidence", _summary("evidence", section), _told(rest, page, folds))
    head = _links_moved(heading[1], first.place, page)
    return "\n\n".join(part for part in (head, folded) if part)


# --- cells ---------------------------------------------------------------------------------------


def _cell(placed: Placed, page: Page) -> str:
    if placed.cell.cell_type == "markdown":
        return _prose(placed, page)
    if placed.cell.cell_type == "code":
        return _code(placed, page)
    return ""


def _prose(placed: Placed, page: Page) -> str:
    for raw in RAW.finditer(CODE.sub("", placed.cell.source)):
        page.problems.append(
            f"{placed.place}: {raw[0].strip()!r} is raw text in Jupyter: "
            "write an alert, a tag or a link"
        )
    return _links_moved(placed.cell.source, placed.place, page)


def _links_moved(text: str, place: str, page: Page) -> str:
    result = moved(text)
    for url in result.stray:
        page.problems.append(
            f"{place}: its link {url} leads to no page (pages are in docs/, not in the rest)"
        )
    page.links += [Found(place, link) for link in result.links]
    return result.text


def _code(placed: Placed, page: Page) -> str:
    """A cell's code and what came out; where its input is hidden, closed code under it."""
    cell = placed.cell
    code = ""
    if cell.source.strip():
        # The page of all claims leads to the cells that make them.
        anchor = f" #{cell.id}" if cell.metadata.get("claims") else ""
        code = fence(cell.source, f".python .input{anchor}")
    shown = _outputs(placed, page)
    if "hero" in placed.tags:
        _to_the_top(shown, placed, page)
    if "hide-input" in placed.tags and not placed.tags & {"check", "fold"}:
        kind = "figure" if shows_figure(cell) else "output"
        parts = [*shown, _fold("code", f"Code of this {kind}", code)]
    else:
        parts = [code, *shown]
    return "\n\n".join(part for part in parts if part)


def _outputs(placed: Placed, page: Page) -> list[str]:
    """The outputs as Markdown. An error is the lesson, or it is a fault."""
    cell = placed.cell
    outputs = cell.get("outputs", [])
    raises = "raises-exception" in placed.tags
    errors = [output for output in outputs if output.output_type == "error"]
    if raises and not errors:
        page.problems.append(f"{placed.place}: it is tagged raises-exception and raised nothing")
    if errors and not raises:
        page.problems += [f"{placed.place}: it raised {e.ename}: {e.evalue}" for e in errors]
        return []

    caption = _links_moved(cell.metadata.get("caption", "").strip(), placed.place, page)
    shown: list[str] = []
    for output in outputs:
        try:
            shown.append(output_text(output, cell, caption, page.name, page.files))
        except Unshowable as problem:
            page.problems.append(f"{placed.place}: {problem}")
    return shown


def _to_the_top(shown: list[str], placed: Placed, page: Page) -> None:
    """What a hero shows, under the title as well; there it is seen at once, so it loads at once."""
    if page.hero:
        page.problems.append(f"{placed.place}: it is a second hero, and a page has one")
    elif not shown:
        page.problems.append(f"{placed.place}: it is tagged hero and shows nothing")
    page.hero = "\n\n".join(shown).replace(" loading=lazy", "")
