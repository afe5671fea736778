"""llms.txt: what the site is, and a line that leads to the twin of each page of the navigation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FILE = "llms.txt"


class Entry(NamedTuple):
    """A page: the part of the site it stands in, its title, where its twin is, what it is for."""

    part: str
    title: str
    twin: str
    description: str


def llms(name: str, description: str, entries: Sequence[Entry]) -> str:
    """The text.

    >>> print(llms("rnnkit", "A site.", [Entry("Guide", "State", "state/index.md", "What it is.")]))
    # rnnkit
    <BLANKLINE>
    > A site.
    <BLANKLINE>
    ## Guide
    <BLANKLINE>
    - [State](state/index.md): What it is.
    <BLANKLINE>
    """
    lines = [f"# {name}", "", f"> {description}"]
    part = ""
    for entry in entries:
        if entry.part != part:
            part = entry.part
            lines += ["", f"## {part}", ""]
        lines.append(f"- [{entry.title}]({entry.twin}): {entry.description}")
    return "\n".join(lines) + "\n"
