"""CHANGES.md as a page of the site, and its releases."""

from __future__ import annotations

import re
from typing import NamedTuple

PAGE = "changes.md"
NOT_YET = "not yet released"
HEADING = re.compile(rf"(?P<version>\d\S*) \((?P<day>\d{{4}}-\d\d-\d\d|{NOT_YET})\)")
ABOUT = "What each version of rnnkit brought, and what it breaks for whoever used the one before."


class Release(NamedTuple):
    """A version, the heading it has, the day it came out ("" where it has not), what is said."""

    version: str
    heading: str
    day: str
    text: str


def releases(text: str) -> list[Release]:
    """The versions of CHANGES.md, the newest first.

    >>> [found[:3] for found in releases("# Changes\\n\\n## 0.2.0 (2026-12-01)\\n\\nMore.\\n")]
    [('0.2.0', '0.2.0 (2026-12-01)', '2026-12-01')]
    """
    found: list[Release] = []
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, said = part.partition("\n")
        match = HEADING.fullmatch(heading.strip())
        if match is None:
            raise ValueError(
                f"CHANGES.md: its heading {heading.strip()!r} is no version with its day: "
                f"write ## 0.2.0 (2026-12-01), or ({NOT_YET})"
            )
        day = match["day"].replace(NOT_YET, "")
        found.append(Release(match["version"], heading.strip(), day, said.strip()))
    return found


def changes_page(text: str, feed: str | None) -> str:
    """The Markdown of docs/changes.md, which only the build has; `feed` is the feed's address."""
    title, _, rest = text.partition("\n")
    follow = f"[Follow the releases]({feed}), an Atom feed.\n\n" if feed else ""
    return f'---\ndescription: "{ABOUT}"\n---\n\n{title}\n\n{follow}{rest.lstrip()}'
