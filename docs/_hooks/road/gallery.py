"""The page of all tutorials: what each shows, how long it takes, and what to know before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .header import TEXTS
from .links import moved
from .outputs import fence
from .page import Page

INDEX = "tutorials/index.md"
INTRODUCTION = (
    "Each tutorial teaches one pattern, in plain PyTorch first and then with rnnkit. They are a "
    "path: the foot of each page leads to the one before and to the next. You may also begin at "
    "[what you have and want](../index.md#which-pattern-do-i-need)."
)
PICTURE = re.compile(r"\[!\[(?P<alt>.*?)\]\((?P<file>[^)]+)\)\{", re.DOTALL)
LINES = 7  # of a text that stands for a picture


def parts_of(nav: Sequence[Any] | None, pages: Mapping[str, Page]) -> dict[str, list[Page]]:
    """The tutorials by the section of the navigation that holds them, in its order."""
    parts: dict[str, list[Page]] = {}
    for entry in nav or []:
        if not isinstance(entry, dict):
            continue
        for title, below in entry.items():
            if not isinstance(below, list):
                continue
            here = [pages[uri] for uri in below if isinstance(uri, str) and uri in pages]
            if here:
                parts[title] = here
            parts |= parts_of(below, pages)
    return parts


def gallery(parts: Mapping[str, list[Page]]) -> str:
    """The Markdown of the page, which only the build has."""
    pages = [page for part in parts.values() for page in part]
    minutes = sum(page.header.minutes or 0 for page in pages)
    told = [
        "---\nhide: [toc]\n---",
        "# Tutorials",
        INTRODUCTION,
        f"{len(pages)} tutorials, {minutes} minutes to read them all.",
    ]
    for title, part in parts.items():
        told.append(f"## {title}")
        told.append('<div class="rk-gallery" markdown>')
        told += [_card(page) for page in part]
        told.append("</div>")
    return "\n\n".join(told) + "\n"


def _card(page: Page) -> str:
    """One tutorial: its picture, its title, its description, and what it takes."""
    number = page.name.partition("_")[0]
    facts: list[str] = []
    if page.header.minutes:
        facts.append(f"{page.header.minutes} minutes")
    if known := page.header.texts.get("prerequisites"):
        facts.append(f"{TEXTS['prerequisites']}: {moved(known).text}")
    lines = [
        "<div markdown>",
        _thumbnail(page),
        f"**[{number} {page.title}]({page.name}.ipynb)**",
        page.header.description,
    ]
    if facts:
        lines.append(f"{'. '.join(facts)}.\n{{ .facts }}")
    lines.append("</div>")
    return "\n\n".join(line for line in lines if line)


def _thumbnail(page: Page) -> str:
    """What the page shows first, small: a picture, or the beginning of a text."""
    if found := PICTURE.match(page.hero):
        return f"![{found['alt']}]({found['file']}){{ .thumbnail loading=lazy }}"
    if not page.hero:
        return ""
    text = re.sub(r"\A`+[^\n]*\n|\n`+\Z", "", page.hero)
    return fence("\n".join(text.splitlines()[:LINES]), ".text .thumbnail .no-copy")
