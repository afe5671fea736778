"""A built page without what nobody reads. It was more than half of a tutorial's page.

The code of a tutorial is plain text, and docs/assets/site.js colors it; other code is without the
tags that change no color. Outside code, a run of white space over several lines is one line break.
"""

from __future__ import annotations

import re

PLAIN = re.compile(r'<span class="(?:n|o|p|w)">([^<]*)</span>')
INPUT = re.compile(
    r'(<div (?:id="[\w-]+" )?class=")language-python (input highlight"><pre>)(.*?)(</pre>)',
    re.DOTALL,
)
SPAN = re.compile(r"</?span[^>]*>")
VERBATIM = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)", re.DOTALL)
BLANK = re.compile(r"\s*\n\s*")


def light_code(html: str) -> str:
    """The content of a page with lighter code."""

    def plain(match: re.Match[str]) -> str:
        head, rest, code, end = match.groups()
        return head + rest + SPAN.sub("", code) + end

    return PLAIN.sub(r"\1", INPUT.sub(plain, html))


def light_page(html: str) -> str:
    """A whole page without the white space between its tags."""
    parts: list[str] = []
    for index, part in enumerate(VERBATIM.split(html)):  # text, element, its name, text, ...
        if index % 3 == 0:
            parts.append(BLANK.sub("\n", part))
        elif index % 3 == 1:
            parts.append(part)
    return "".join(parts)
