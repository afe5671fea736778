"""The links of a tutorial: written as they are true in the source tree, led to the site's pages."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# What is no prose: fences, code spans, mathematics.
CODE = re.compile(
    r"^(?P<f>[ >]*(?:`{3,}|~{3,})).*?^(?P=f)[`~]*[ \t]*$|(?<!`)(?P<t>`+)(?!`).+?(?<!`)(?P=t)(?!`)"
    r"|\$\$.+?\$\$|(?<![\\$\w])\$[^$\n]+\$(?!\d)",
    re.M | re.S,
)
# [text](url "title"), ![text](url), [text][reference], [reference][]
LINK = re.compile(
    r"(?P<bang>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]"
    r"(?:\(\s*<?(?P<url>[^\s()<>]+)>?(?P<title>\s+\"[^\"]*\")?\s*\)|\[(?P<ref>[^\[\]\n]*)\])"
)
# src="url" and href="url" of HTML
ATTRIBUTE = re.compile(r"(?P<head>\b(?:src|href)=\")(?P<url>[^\"]+)\"")

Rewrite = Callable[[re.Match[str]], str]


class Link(NamedTuple):
    """What a tutorial refers to: a file of docs/, with its anchor, or a name of the API."""

    kind: Literal["url", "ref"]
    to: str


@dataclass
class Moved:
    """A text with its links moved, what has to be there, and the links that lead to no page."""

    text: str = ""
    links: list[Link] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)


def external(url: str) -> bool:
    """Whether an address names its scheme, as https: does."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", url) is not None


def referred(match: re.Match[str]) -> str:
    """The name that a reference, [text][name] or [name][], means."""
    return (match["ref"] or match["text"]).strip("`")


def source_of(url: str) -> str | None:
    """The file in docs/, with its anchor, that a link written in tutorials/ means, or None.

    >>> source_of("../docs/shapes.md#the-rule"), source_of("04_generate.py"), source_of("../x.py")
    ('shapes.md#the-rule', 'tutorials/04_generate.ipynb', None)
    """
    path, mark, anchor = url.partition("#")
    if not path:
        return mark + anchor
    file = posixpath.normpath(posixpath.join("tutorials", path))
    if re.fullmatch(r"tutorials/\w+\.py", file):
        file = "docs/" + file.removesuffix(".py") + ".ipynb"
    if not file.startswith("docs/"):
        return None
    return file.removeprefix("docs/") + mark + anchor


def outside_code(text: str, link: Rewrite, attribute: Rewrite) -> str:
    """The text, rewritten in its links and HTML attributes, not in its code and mathematics."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    def restore(text: str) -> str:
        return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)

    def whole(match: re.Match[str]) -> str:  # a link whose text holds code, as it was
        return link(LINK.fullmatch(restore(match[0])) or match)

    prose = CODE.sub(keep, text)
    prose = LINK.sub(whole, prose)
    prose = ATTRIBUTE.sub(attribute, prose)
    return restore(prose)


def moved(text: str) -> Moved:
    """The links of a cell as its page in docs/tutorials/ needs them."""
    result = Moved()

    def move(url: str) -> str:
        if external(url):
            return url
        target = source_of(url)
        if target is None:
            result.stray.append(url)
            return url
        result.links.append(Link("url", target))
        if target.startswith("#"):
            return target
        return posixpath.relpath(target, "tutorials")

    def link(match: re.Match[str]) -> str:
        if match["url"]:
            return f"{match['bang']}[{match['text']}]({move(match['url'])}{match['title'] or ''})"
        result.links.append(Link("ref", referred(match)))
        return match[0]

    def attribute(match: re.Match[str]) -> str:
        return f'{match["head"]}{move(match["url"])}"'

    result.text = outside_code(text, link, attribute)
    return result
