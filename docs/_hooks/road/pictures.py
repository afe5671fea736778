"""How large a picture is, said on its page, so that nothing moves when it arrives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

IMAGE = re.compile(r'<img (?P<rest>[^>]*\bsrc="(?P<src>[^"]+)"[^>]*)>')
PIXELS = {"": 1.0, "px": 1.0, "pt": 4 / 3}  # of CSS, by the unit
PNG = b"\x89PNG\r\n\x1a\n"


class Size(NamedTuple):
    """Width and height in pixels of CSS."""

    width: int
    height: int


def size_of(content: bytes) -> Size | None:
    """The size of an SVG that says it, or of a PNG; None where neither can be read.

    >>> size_of(b'<svg viewBox="0 0 9 9" width="30pt" height="15pt">')
    Size(width=40, height=20)
    """
    if content.startswith(PNG):
        return Size(int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))
    opening = re.search(rb"<svg\b[^>]*>", content)
    if opening is None:
        return None
    said = re.findall(r'\b(width|height)="([\d.]+)(px|pt|)"', opening[0].decode())
    lengths = {name: round(float(number) * PIXELS[unit]) for name, number, unit in said}
    if len(lengths) < 2:
        return None
    return Size(lengths["width"], lengths["height"])


def sized(html: str, read: Callable[[str], bytes | None]) -> str:
    """The content of a page with the size of each picture; `read` gives the file of an address."""

    def image(match: re.Match[str]) -> str:
        size = size_of(read(match["src"]) or b"")
        if size is None or " width=" in match[0]:
            return match[0]
        rest = match["rest"].removesuffix("/").rstrip()
        return f'<img {rest} width="{size.width}" height="{size.height}">'

    return IMAGE.sub(image, html)
