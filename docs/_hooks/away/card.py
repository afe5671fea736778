"""The picture that a link to a page is shown with: its title, what it is for, its drawing.

Drawn once for what stands on it; a card that is drawn is kept in .run/cards.
"""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

FOLDER = "cards"
SIZE = (1200, 630)  # what those who show cards ask for
EDGE = 64
PAPER = "#ffffff"
INK = "#1b1f24"
GRAY = "#57606a"
BLUE = "#0b5fa5"  # of docs/assets/site.css
TEXT = 560  # the width of the text
DRAWING = (670, 90, 1160, 560)  # where the drawing is: left, top, right, bottom


class Card(NamedTuple):
    """What stands on a card."""

    title: str
    description: str
    drawing: Path | None = None  # a bitmap


def card(said: Card, kept: Path) -> bytes:
    """A PNG; from the folder `kept` where this very card was drawn before."""
    drawing = said.drawing.read_bytes() if said.drawing else b""
    parts = [said.title, said.description, Path(__file__).read_text(encoding="utf-8")]
    name = hashlib.sha256("\0".join(parts).encode() + drawing).hexdigest()[:32]
    file = kept / f"{name}.png"
    if not file.exists():
        kept.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{id(said)}")
        part.write_bytes(draw(said))
        part.replace(file)  # whole or not at all
    return file.read_bytes()


def draw(said: Card) -> bytes:
    """The card, drawn: the text at the left, the drawing or the logo at the right."""
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, SIZE[0], 12), fill=BLUE)
    _logo(pen, EDGE, 56, 2)
    pen.text((EDGE + 62, 60), "rnnkit", fill=BLUE, font=_font(34, bold=True))
    top = _paragraph(pen, said.title, 140, _font(46, bold=True), INK, 5)
    _paragraph(pen, said.description, top + 24, _font(26), GRAY, (560 - top) // 34)
    if said.drawing:
        _paste(image, said.drawing)
    else:
        _logo(pen, 770, 175, 12)
    buffer = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; to find it, matplotlib need not be imported."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("a card needs the fonts of matplotlib: pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' * bold}.ttf", size)


def _paragraph(
    pen: ImageDraw.ImageDraw,
    text: str,
    top: int,
    font: ImageFont.FreeTypeFont,
    color: str,
    most: int,
) -> int:
    """Text in at most so many lines; gives where it ends."""
    lines = broken(text, font)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1].rstrip('.,;: ')} …"]
    for line in lines:
        pen.text((EDGE, top), line, fill=color, font=font)
        top += round(font.size * 1.3)
    return top


def broken(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= TEXT:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _logo(pen: ImageDraw.ImageDraw, left: float, top: float, scale: float) -> None:
    """The logo of docs/assets/favicon.svg, 24 units wide: two states, arrows in, on and out."""

    def at(*numbers: float) -> list[tuple[float, float]]:
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return [(left + x * scale, top + y * scale) for x, y in pairs]

    for x in (2.0, 15.0):
        pen.rounded_rectangle(at(x, 9, x + 7, 15), radius=scale, fill=BLUE)
        pen.polygon(at(x + 1.2, 5, x + 3.5, 2, x + 5.8, 5), fill=BLUE)
        pen.rectangle(at(x + 2.7, 5, x + 4.3, 8.2), fill=BLUE)
        pen.rectangle(at(x + 2.7, 15.8, x + 4.3, 22), fill=BLUE)
    pen.rectangle(at(9.6, 11.2, 11.8, 12.8), fill=BLUE)
    pen.polygon(at(11.8, 9.6, 14.6, 12, 11.8, 14.4), fill=BLUE)


def _paste(image: Image.Image, drawing: Path) -> None:
    """A bitmap, as large as it fits, in the middle of its place."""
    left, top, right, bottom = DRAWING
    with Image.open(drawing) as found:
        picture = found.convert("RGB")
    scale = min((right - left) / picture.width, (bottom - top) / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    x = left + (right - left - picture.width) // 2
    y = top + (bottom - top - picture.height) // 2
    image.paste(picture, (x, y))
