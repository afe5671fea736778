"""What the tutorials claim, a page each: every assertion, what was measured, how far the bound is.

docs/_hooks/road/ledger.py recorded it while they ran; `clean` keeps it in a cell's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .source import Cell, Notebook, where

THIN = 0.10  # of the bound: with less, another machine may see it fail
FOLDER = "claims"
PAGE = f"{FOLDER}/index.md"
UNSEARCHED = "---\nsearch: {exclude: true}\n---"  # assertions have any word
SAID = (
    "Each tutorial asserts what it says, and no page is built unless every assertion holds. A "
    "tutorial's page lists them, with what the last run measured. The margin is the distance to "
    f"the bound as a share of it; under {100 * THIN:.0f} % it is called thin, for another "
    "machine may see it fail. Whole numbers and equalities have none. Of a claim that is "
    "made in a loop, the tightest is shown."
)


class Claim(NamedTuple):
    """A claim and where it stands."""

    said: dict[str, Any]  # text, message, measured, sign, bound, margin
    section: str  # the heading above it
    cell: Cell
    place: str

    @property
    def thin(self) -> bool:
        margin = self.said.get("margin")
        return margin is not None and margin < THIN


def claims_of(notebook: Notebook, name: str) -> list[Claim]:
    """The claims of an executed notebook, in their order."""
    section = ""
    found: list[Claim] = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, re.M)
            section = headings[-1] if headings else section
            continue
        for said in cell.metadata.get("claims", []):
            found.append(Claim(said, section, cell, where(name, index, cell)))
    return found


def warnings(notebook: Notebook, name: str) -> list[str]:
    """The claims that only just hold, each with its place."""
    return [
        f"{claim.place}: only {100 * claim.said['margin']:.1f} % between "
        f"{claim.said['measured']:g} and {claim.said['bound']:g}: assert {claim.said['text']}"
        for claim in claims_of(notebook, name)
        if claim.thin
    ]


def claims_pages(notebooks: Mapping[str, Notebook]) -> dict[str, str]:
    """The Markdown of the pages of claims, which only the build has: one for all, one each."""
    pages: dict[str, str] = {}
    rows = ["| Tutorial | Claims | With a bound | Thin |", "| --- | --- | --- | --- |"]
    for name, notebook in notebooks.items():
        claims = claims_of(notebook, name)
        if not claims:
            continue
        title = _title(notebook, name)
        pages[f"{FOLDER}/{name}.md"] = _of_one(name, title, claims)
        bounds = [claim.said["margin"] for claim in claims if claim.said.get("margin") is not None]
        thin = sum(claim.thin for claim in claims)
        rows.append(f"| [{title}]({name}.md) | {len(claims)} | {len(bounds)} | {thin} |")
    parts = [UNSEARCHED, "# What this site claims", SAID, "\n".join(rows)]
    return {PAGE: "\n\n".join(parts) + "\n"} | pages


def _title(notebook: Notebook, name: str) -> str:
    found = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)
    return found[1] if found else name


def _of_one(name: str, title: str, claims: list[Claim]) -> str:
    """The page of one tutorial's claims."""
    thin = sum(claim.thin for claim in claims)
    rows = ["| Claim | Measured | Bound | Margin | Where |", "| --- | --- | --- | --- | --- |"]
    parts = [
        UNSEARCHED,
        f"# What tutorial {name[:2]} claims",
        f"These are the assertions of [{title}](../tutorials/{name}.ipynb), with what its last run "
        "measured. What the columns mean: [What this site claims](index.md).",
        f"{len(claims)} claims, {thin} of them thin.\n{{ .claims }}",
        "\n".join(rows + [_row(claim, name) for claim in claims]),
    ]
    return "\n\n".join(parts) + "\n"


def _row(claim: Claim, name: str) -> str:
    said = claim.said
    text = _code(said["text"])
    if said.get("message"):
        text += f"<br>{_plain(said['message'])}"
    measured = bound = margin = ""
    if "measured" in said:
        measured = f"{said['measured']:.4g}"
        bound = f"{said['sign']}&nbsp;{said['bound']:.4g}".replace("<", "&lt;")
    if said.get("margin") is not None:
        margin = f"{100 * said['margin']:.0f} %"
    if claim.thin:
        margin = f"**{margin}, thin**"
    # As HTML, for MkDocs does not see the anchor of a block of code and would call the link dead.
    address = f"../../tutorials/{name}/#{claim.cell.id}"
    link = f'<a href="{address}">{_plain(claim.section)}</a>'
    return f"| {text} | {measured} | {bound} | {margin} | {link} |"


def _plain(text: str) -> str:
    """A text that a table and a link can hold."""
    return re.sub(r"([|\[\]*_<])", r"\\\1", " ".join(text.replace("`", "").split()))


def _code(text: str) -> str:
    """Code in a table, in one line; a pipe in it ends no column."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
