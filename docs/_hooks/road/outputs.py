"""The outputs of a cell as Markdown, and the files that they show."""

from __future__ import annotations

import base64
import re

from .clean import masked
from .source import Cell

# Which form of an output a page shows, the best first.
SHOWN = ("image/svg+xml", "image/png", "text/markdown", "text/latex", "text/plain")


class Unshowable(Exception):
    """An output that a page cannot show, and why."""


def fence(text: str, classes: str) -> str:
    """A fenced block; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    body = text.strip("\n")
    return f"{ticks} {{ {classes} }}\n{body}\n{ticks}"


def shows_figure(cell: Cell) -> bool:
    """Whether an output of the cell is a picture."""
    kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
    return any(kind.startswith("image/") for kind in kinds)


def output_text(output: Cell, cell: Cell, caption: str, name: str, files: dict[str, bytes]) -> str:
    """One output of a cell as Markdown; a file that it shows is added to the page's files."""
    if output.output_type == "stream":
        return fence(output.text, f".text .output .no-copy{_stderr(output)}")
    if output.output_type == "error":
        return fence(f"{output.ename}: {masked(output.evalue)}", ".text .output .no-copy .error")
    mime = _best(output.data)
    data = output.data[mime]
    if mime.startswith("image/"):
        alt = cell.metadata.get("alt", "").strip()
        if not alt:
            raise Unshowable('its figure has no alt text: write # %% alt="what the figure shows"')
        file = _add(files, name, mime, data)
        return figure(file, alt, caption)
    if mime == "text/plain":
        return fence(data, ".text .output .no-copy")
    return str(data)


def _stderr(output: Cell) -> str:
    """The class of what goes to stderr and is no progress bar."""
    lines = [line for line in output.text.splitlines() if line.strip()]
    bars = all("%|" in line for line in lines)
    return " .stderr" if output.name == "stderr" and not bars else ""


def _best(data: dict[str, str]) -> str:
    """The form of an output that the page shows; no widget, no HTML."""
    shown = [mime for mime in SHOWN if mime in data]
    foreign = [mime for mime in data if mime == "text/html" or mime.startswith("application/")]
    if foreign or not shown:
        came = ", ".join(data)
        raise Unshowable(f"its output {came} cannot be shown on a page: print it or draw it")
    return shown[0]


def _add(files: dict[str, bytes], name: str, mime: str, data: str) -> str:
    """The path of a picture, now among the page's files."""
    number = 1 + len(files)
    if mime == "image/png":
        file = f"{name}/figure-{number}.png"
        files[file] = base64.b64decode(data)
    else:
        file = f"{name}/figure-{number}.svg"
        files[file] = data.encode()
    return file


def figure(file: str, alt: str, caption: str) -> str:
    """A picture that leads to itself, whole, and its caption in the next paragraph.

    `framed` makes one figure of the two when the page is HTML.
    """
    escaped = re.sub(r"([\[\]\\])", r"\\\1", alt)
    picture = f"[![{escaped}]({file}){{ .figure loading=lazy }}]({file}){{ .enlarge }}"
    if caption:
        picture += f"\n\n{caption}\n{{ .caption }}"
    return picture


# What Markdown makes of a figure: a paragraph with the picture, and perhaps one with its caption.
PICTURE = re.compile(
    r'<p>(?P<picture><a class="enlarge"[^>]*><img[^>]*></a>)</p>'
    r'(?:\s*<p class="caption">(?P<caption>.*?)</p>)?',
    re.DOTALL,
)


def framed(html: str) -> str:
    """The content of a page with its pictures and their captions as figures."""

    def frame(match: re.Match[str]) -> str:
        caption = ""
        if match["caption"]:
            caption = f"<figcaption>{match['caption']}</figcaption>"
        return f"<figure>{match['picture']}{caption}</figure>"

    return PICTURE.sub(frame, html)
