"""The outputs of a cell as Markdown, and the files that they show."""

from __future__ import annotations

import base64
import re

from .clean import masked
from .source import Cell

# Which form of an output a page shows, the best first.
SHOWN = ("image/svg+xml", "image/png", "text/markdown", "text/latex", "text/plain")

# The one HTML that a page shows: the player of IPython.display.Audio, with its sound inside.
PLAYER = re.compile(r'\s*<audio\b[^>]*>\s*<source src="data:audio/(?:x-)?wav;base64,([^"]+)"')


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
    alt = cell.metadata.get("alt", "").strip()
    if heard := PLAYER.match(output.data.get("text/html", "")):
        if not alt:
            raise Unshowable('its sound has no alt text: write # %% alt="what is heard"')
        return sound(_add(files, name, "audio/wav", heard[1]), alt, caption)
    mime = _best(output.data)
    data = output.data[mime]
    if mime.startswith("image/"):
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
    """The path of a picture or a sound, now among the page's files."""
    number = 1 + len(files)
    if mime == "audio/wav":
        file = f"{name}/sound-{number}.wav"
        files[file] = base64.b64decode(data)
    elif mime == "image/png":
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
    picture = f"[![{_escaped(alt)}]({file}){{ .figure loading=lazy }}]({file}){{ .enlarge }}"
    return picture + _captioned(caption)


def sound(file: str, alt: str, caption: str) -> str:
    """A link to a sound, of which `framed` makes a player, and its caption."""
    return f"[{_escaped(alt)}]({file}){{ .sound }}" + _captioned(caption)


def _escaped(alt: str) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", alt)


def _captioned(caption: str) -> str:
    return f"\n\n{caption}\n{{ .caption }}" if caption else ""


# What Markdown makes of a figure or a sound: a paragraph with it, and perhaps one with its caption.
FIGURE = re.compile(
    r'<p>(?P<shown><a class="enlarge"[^>]*><img[^>]*></a>|<a class="sound"[^>]*>[^<]*</a>)</p>'
    r'(?:\s*<p class="caption">(?P<caption>.*?)</p>)?',
    re.DOTALL,
)
SOUND = re.compile(r'<a class="sound" href="([^"]*)">([^<]*)</a>')


def framed(html: str) -> str:
    """The content of a page with its pictures and sounds, and their captions, as figures."""

    def frame(match: re.Match[str]) -> str:
        caption = ""
        if match["caption"]:
            caption = f"<figcaption>{match['caption']}</figcaption>"
        return f"<figure>{SOUND.sub(player, match['shown'])}{caption}</figure>"

    return FIGURE.sub(frame, html)


def player(link: re.Match[str]) -> str:
    """The browser's own player, which loads nothing before it is asked to play."""
    label = link[2].replace('"', "&quot;")
    return f'<audio controls preload="none" src="{link[1]}" aria-label="{label}"></audio>'
