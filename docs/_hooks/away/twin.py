"""A page as plain Markdown, for programs that read: beside state/index.html, state/index.md.

What only this site's Markdown knows is said in plain Markdown: a fold and a note are bold titles,
attributes go, a figure is its text, an output that is long is cut, what waits for JavaScript is
left out. Links lead to other twins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from road.links import outside_code, referred

LONGEST = 20  # lines of an output that are kept
HEAD = re.compile(r'(?:!!!|\?\?\?\+?) [\w -]+?(?: "(?P<title>.*)")?')
FENCE = re.compile(r"(?P<ticks>`{3,}|~{3,}) *(?P<info>.*)")
OBJECT = re.compile(r"::: ([\w.]+)")
ATTRIBUTES = re.compile(r"[ \t]*\{:?\s*(?:[.#][\w-]|download|loading=)[^{}\n]*\}")
WRAPPER = re.compile(r"^\s*</?div\b[^>]*>\s*$")
HIDDEN = re.compile(r"\s*<div\b[^>]* hidden>\s*")  # what only a program on the page makes use of
FIGURE = re.compile(r"\[(!\[(?:[^\[\]]|\\.|\[[^\[\]]*\])*\]\([^()]*\))\]\([^()]*\)")

Address: TypeAlias = Callable[[str, bool], str | None]  # of a link, or of a name of the API
Described: TypeAlias = Callable[[str], str]


def twin(markdown: str, address: Address, described: Described) -> str:
    """The twin of a page.

    `address(to, is_name)` is where a link leads, None where it leads nowhere; `described(name)` is
    the Markdown that stands where the page asks for the documentation of a name.
    """
    text = "\n".join(_plain(markdown.splitlines(), described))
    return outside_code(text, _linked(address), lambda match: match[0]).strip() + "\n"


def _plain(lines: list[str], described: Described) -> list[str]:
    """The lines without what is this site's own, but with their links as they are."""
    told: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := FENCE.fullmatch(line):
            end = _end_of_fence(lines, at, fence["ticks"])
            told += _fenced(fence, lines[at + 1 : end])
            at = end + 1
        elif head := HEAD.fullmatch(line):
            end = _end_of_block(lines, at + 1)
            inner = [each.removeprefix("    ") for each in lines[at + 1 : end]]
            if head["title"]:
                told += [f"**{head['title']}**", ""]
            told += _plain(inner, described)
            told += _prose("", after=told)
            at = end
        elif name := OBJECT.fullmatch(line):
            told += described(name[1]).splitlines()
            told += _prose("", after=told)
            at = _end_of_block(lines, at + 1)
        elif HIDDEN.fullmatch(line):
            at = _end_of_element(lines, at)
        else:
            told += _prose(line, after=told)
            at += 1
    return told


def _end_of_fence(lines: list[str], start: int, ticks: str) -> int:
    for at in range(start + 1, len(lines)):
        if lines[at].rstrip() == ticks:
            return at
    return len(lines)


def _end_of_block(lines: list[str], start: int) -> int:
    """Where the lines that are indented, and the blank ones between them, end."""
    for at in range(start, len(lines)):
        if lines[at].strip() and not lines[at].startswith("    "):
            return at
    return len(lines)


def _end_of_element(lines: list[str], start: int) -> int:
    """Where the `<div>` that begins here ends."""
    depth = 0
    for at in range(start, len(lines)):
        depth += len(re.findall(r"<div\b", lines[at])) - lines[at].count("</div>")
        if not depth:
            return at + 1
    return len(lines)


def _fenced(fence: re.Match[str], body: list[str]) -> list[str]:
    """A block with its language alone; the lines of an output that are too many are counted."""
    words = re.findall(r"[\w+-]+", fence["info"])
    if ".output" in fence["info"] and len(body) > LONGEST:
        body = [*body[:LONGEST], f"... ({len(body) - LONGEST} lines more)"]
    return [fence["ticks"] + "".join(words[:1]), *body, fence["ticks"]]


def _prose(line: str, after: list[str]) -> list[str]:
    """A line without attributes; none where that is all it had, or another blank line."""
    line = WRAPPER.sub("", line)
    kept = outside_code_only(line)
    if kept.strip():
        return [kept]
    if line.strip() or not after or not after[-1]:
        return []
    return [""]


def outside_code_only(line: str) -> str:
    """The line without attributes and with a picture for a picture that leads to itself.

    >>> outside_code_only("[Read](a.md){ .md-button } `{ .x }`")
    '[Read](a.md) `{ .x }`'
    """
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[::2] = [ATTRIBUTES.sub("", part) for part in parts[::2]]
    return FIGURE.sub(r"\1", "".join(parts))


def _linked(address: Address) -> Callable[[re.Match[str]], str]:
    def link(match: re.Match[str]) -> str:
        if match["url"]:
            to = address(match["url"], False)
        else:
            to = address(referred(match), True)
        if to is None:
            return match["text"]
        return f"{match['bang']}[{match['text']}]({to}{match['title'] or ''})"

    return link
