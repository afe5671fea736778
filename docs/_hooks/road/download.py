"""The notebooks that a reader takes away: links that lead to the site, no syntax of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import nbformat

from .links import Link, external, outside_code, referred, source_of
from .source import Notebook

ALERT = re.compile(r"^> \[!(\w+)\][ \t]*$", re.M)
HIDDEN = {"solution", "hide-input"}  # tags of a cell whose code is folded in Jupyter

Address = Callable[[Link], str | None]


def downloads(name: str) -> tuple[str, str]:
    """The paths of a tutorial's two downloads: with outputs, and without."""
    return f"{name}/{name}.ipynb", f"{name}/{name}_empty.ipynb"


def download(notebook: Notebook, absolute: Address, outputs: bool) -> Notebook:
    """A copy of the notebook for a reader, with its outputs or without.

    `absolute` gives the address of a link; where it gives None, the link becomes its text.
    """
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            cell.source = quotes(_linked(cell.source, absolute))
        elif not outputs:
            cell.outputs = []
            cell.execution_count = None
        kept: dict[str, Any] = {"tags": tags} if tags else {}
        if cell.cell_type == "code" and HIDDEN & set(tags):
            kept["jupyter"] = {"source_hidden": True}
        cell.metadata = nbformat.from_dict(kept)
    notebook.metadata.pop("rnnkit", None)
    return notebook


def _linked(text: str, absolute: Address) -> str:
    def address(url: str) -> str | None:
        if external(url):
            return url
        target = source_of(url)
        return None if target is None else absolute(Link("url", target))

    def link(match: re.Match[str]) -> str:
        if match["url"]:
            to = address(match["url"])
        else:
            to = absolute(Link("ref", referred(match)))
        if to:
            return f"{match['bang']}[{match['text']}]({to}{match['title'] or ''})"
        return f"*({match['text']})*" if match["bang"] else match["text"]

    def attribute(match: re.Match[str]) -> str:
        return f'{match["head"]}{address(match["url"]) or ""}"'

    return outside_code(text, link, attribute)


def quotes(text: str) -> str:
    """Alerts, which Jupyter does not know, as quotes with a bold first line.

    >>> quotes("> [!NOTE]\\n> Mind the axis.")
    '> **Note**\\n>\\n> Mind the axis.'
    """
    return ALERT.sub(lambda match: f"> **{match[1].capitalize()}**\n>", text)
