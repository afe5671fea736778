"""An executed notebook as the Markdown of its page."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from .clean import masked
from .links import CODE, Link, moved
from .source import Cell, Notebook, where

# Which form of an output a page shows, the best first.
SHOWN = ("image/svg+xml", "image/png", "text/markdown", "text/latex", "text/plain")

# What MkDocs would read and Jupyter would show as it is.
RAW = re.compile(
    r"^\s*(?:!!!|\?\?\?|===|:::|--8<--)|\[\^[^\]]+\]|\{\s*[.#:][\w-]+[^}]*\}\s*$", re.M
)


class Found(NamedTuple):
    """A link and the cell that it stands in, in words."""

    place: str
    link: Link


@dataclass
class Page:
    """A page's Markdown, the files it shows, the links it makes, and what is wrong with it."""

    name: str
    markdown: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # their paths begin with the name
    links: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Unshowable(Exception):
    """An output that a page cannot show, and why."""


def to_page(notebook: Notebook, name: str) -> Page:
    """The page of the executed notebook of tutorials/NAME.py."""
    page = Page(name)
    parts: list[str] = []
    for solution, cells in groupby(
        enumerate(notebook.cells), key=lambda item: _is_solution(item[1])
    ):
        texts = [_cell(cell, where(name, index, cell), page) for index, cell in cells]
        text = "\n\n".join(text for text in texts if text)
        parts.append(_folded(text) if solution else text)
    page.markdown = "\n\n".join(parts) + "\n"
    return page


def _is_solution(cell: Cell) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def _folded(text: str) -> str:
    lines = [f"    {line}".rstrip() for line in text.split("\n")]
    return "\n".join(['??? example "Solution"', "", *lines])


def _cell(cell: Cell, place: str, page: Page) -> str:
    if cell.cell_type == "markdown":
        return _prose(cell, place, page)
    if cell.cell_type == "code":
        return _code(cell, place, page)
    return ""


def _prose(cell: Cell, place: str, page: Page) -> str:
    for raw in RAW.finditer(CODE.sub("", cell.source)):
        page.problems.append(
            f"{place}: {raw[0].strip()!r} is raw text in Jupyter: write an alert, a tag or a link"
        )
    result = moved(cell.source)
    for url in result.stray:
        page.problems.append(
            f"{place}: its link {url} leads to no page (pages are in docs/, not in the rest)"
        )
    page.links += [Found(place, link) for link in result.links]
    return result.text


def _code(cell: Cell, place: str, page: Page) -> str:
    tags = cell.metadata.get("tags", [])
    outputs = cell.get("outputs", [])
    parts: list[str] = []
    if cell.source.strip() and "hide-input" not in tags:
        parts.append(fence(cell.source, ".python .input"))

    # An error is the lesson, or it is a fault.
    raises = "raises-exception" in tags
    errors = [output for output in outputs if output.output_type == "error"]
    if raises and not errors:
        page.problems.append(f"{place}: it is tagged raises-exception and raised nothing")
    if errors and not raises:
        page.problems += [f"{place}: it raised {e.ename}: {e.evalue}" for e in errors]
        return "\n\n".join(parts)

    for output in outputs:
        try:
            parts.append(_output(output, cell, page))
        except Unshowable as problem:
            page.problems.append(f"{place}: {problem}")
    return "\n\n".join(parts)


def fence(text: str, classes: str) -> str:
    """A fenced block; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    body = text.strip("\n")
    return f"{ticks} {{ {classes} }}\n{body}\n{ticks}"


def _output(output: Cell, cell: Cell, page: Page) -> str:
    """One output as Markdown; a file that it needs goes to the page."""
    if output.output_type == "stream":
        return fence(output.text, f".text .output .no-copy{_stderr(output)}")
    if output.output_type == "error":
        return fence(f"{output.ename}: {masked(output.evalue)}", ".text .output .no-copy .error")
    mime = _best(output.data)
    data = output.data[mime]
    if mime.startswith("image/"):
        return _figure(mime, data, cell.metadata.get("alt", "").strip(), page)
    if mime == "text/plain":
        return fence(data, ".text .output .no-copy")
    return str(data)


def _stderr(output: Cell) -> str:
    """The class of what goes to stderr and is no progress bar."""
    lines = [line for line in output.text.splitlines() if line.strip()]
    bars = all("%|" in line for line in lines)
    return " .stderr" if output.name == "stderr" and not bars else ""


def _best(data: dict[str, str]) -> str:
    """The form of an output that the page shows; no widget, no HTML."""
    shown = [mime for mime in SHOWN if mime in data]
    foreign = [mime for mime in data if mime == "text/html" or mime.startswith("application/")]
    if foreign or not shown:
        came = ", ".join(data)
        raise Unshowable(f"its output {came} cannot be shown on a page: print it or draw it")
    return shown[0]


def _figure(mime: str, data: str, alt: str, page: Page) -> str:
    if not alt:
        raise Unshowable('its figure has no alt text: write # %% alt="what the figure shows"')
    number = 1 + len(page.files)
    if mime == "image/png":
        file = f"{page.name}/figure-{number}.png"
        page.files[file] = base64.b64decode(data)
    else:
        file = f"{page.name}/figure-{number}.svg"
        page.files[file] = data.encode()
    escaped = re.sub(r"([\[\]\\])", r"\\\1", alt)
    return f"![{escaped}]({file}){{ .figure loading=lazy }}"
