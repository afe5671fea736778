"""A tutorial's notebook as Markdown for its page, and as the notebook a reader downloads. Needs no MkDocs, no network.

    python docs/_hooks/convert.py docs/tutorials/02_seq2seq.ipynb

prints the page's Markdown.
"""

from __future__ import annotations

import base64
import posixpath
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat

Cell = Any  # nbformat's cells are dictionaries with attributes
ALERTS = {
    "NOTE": "note",
    "TIP": "tip",
    "IMPORTANT": "info",
    "WARNING": "warning",
    "CAUTION": "danger",
}
CODE = re.compile(  # fences, code spans, mathematics
    r"^(?P<f>[ >]*(?:`{3,}|~{3,})).*?^(?P=f)[`~]*[ \t]*$|(?<!`)(?P<t>`+)(?!`).+?(?<!`)(?P=t)(?!`)"
    r"|\$\$.+?\$\$|(?<![\\$\w])\$[^$\n]+\$(?!\d)",
    re.M | re.S,
)
LINK = re.compile(
    r"(?P<bang>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]"
    r"(?:\(\s*<?(?P<url>[^\s()<>]+)>?(?P<title>\s+\"[^\"]*\")?\s*\)|\[(?P<ref>[^\[\]\n]*)\])"
)
ATTRIBUTE = re.compile(r"(?P<head>\b(?:src|href)=\")(?P<url>[^\"]+)\"")
RAW = re.compile(
    r"^\s*(?:!!!|\?\?\?|===|:::|--8<--)|\[\^[^\]]+\]|\{\s*[.#:][\w-]+[^}]*\}\s*$", re.M
)
SHOWN = ("image/svg+xml", "image/png", "text/markdown", "text/html", "text/latex", "text/plain")

# What differs from run to run, and what takes its place.
MASKS = [
    (re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07"), ""),
    (
        re.compile(r"\[[\d:?]+<[\d:?]+,\s*[\d.?]+\s*(?:\w*/s|s/\w*)(?:,\s*)?"),
        "[",
    ),  # tqdm: [00:03<00:00, 31.2it/s]
    (re.compile(r"\b[\d.]+\s?(it/s|s/it)\b"), r"… \1"),
    (re.compile(r"(?:/[\w.+-]+)+/site-packages/"), "site-packages/"),
    (re.compile(r"(?:/[\w.+-]+)*/ipykernel_\d+/\d+\.py(?::\d+)?"), "<cell>"),
    (re.compile(r"(?:/private)?(?:/var/folders/\w+/\w+/T|/tmp)/[\w.+-]+"), "/tmp/…"),
    (re.compile(r"\b0x[0-9a-fA-F]{6,}\b"), "0x…"),
]


@dataclass
class Converted:
    """A page's Markdown, the files it shows, the links it makes, and what is wrong with it."""

    markdown: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    links: list[tuple[str, str, str]] = field(default_factory=list)  # where, "url" or "ref", target
    problems: list[str] = field(default_factory=list)


def where(name: str, index: int, cell: Cell) -> str:
    line = cell.metadata.get("line")
    return f"tutorials/{name}.py{f':{line}' if line else ''}, cell {index + 1}"


# --- outputs ---------------------------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """Text as a terminal would leave it, without what a carriage return overwrote, what changes between runs masked."""
    text = MASKS[0][0].sub("", text)
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    for pattern, instead in MASKS[1:]:
        lines = [pattern.sub(instead, line) for line in lines]
    return "\n".join(line.replace("[]", "").rstrip() if "%|" in line else line for line in lines)


def clean(notebook: Any) -> Any:
    """The executed notebook without what differs between two runs of the same code."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                if outputs and outputs[-1].get("name") == output.name:
                    outputs[-1].text += output.text
                    continue
            elif output.output_type == "error":
                output.evalue = masked(output.evalue)
                output.traceback = [f"{output.ename}: {output.evalue}"]
            elif "text/plain" in output.data:
                output.data["text/plain"] = masked(output.data["text/plain"])
            outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = masked(output.text)
        if cell.cell_type == "code":
            cell.outputs = [o for o in outputs if o.output_type != "stream" or o.text.strip()]
    return notebook


class Table(HTMLParser):
    """The rows of the first HTML table, for a data frame shown as a Markdown table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = self.plain = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.plain |= tag == "table"
        self.inside = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data.replace("|", "\\|").strip()

    def markdown(self) -> str:
        head, *body = self.rows
        head[0] = head[0] or "index"
        lines = [head, ["---"] * len(head), *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fence(text: str, header: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{header}\n{text.strip(chr(10))}\n{ticks}"


def output_markdown(output: Any, cell: Cell, page: Converted, folder: str) -> str:
    """One output as Markdown; files it needs go to the page. ValueError where it cannot be shown."""
    if output.output_type == "stream":
        bars = all("%|" in line for line in output.text.splitlines() if line.strip())
        kind = " .stderr" if output.name == "stderr" and not bars else ""
        return fence(masked(output.text), f" {{ .text .output .no-copy{kind} }}")
    if output.output_type == "error":
        return fence(
            f"{output.ename}: {masked(output.evalue)}", " { .text .output .no-copy .error }"
        )
    foreign = [mime for mime in output.data if mime not in SHOWN]
    mime = next((mime for mime in SHOWN if mime in output.data), "")
    if not mime or any(m.startswith("application/") for m in foreign):
        raise ValueError(
            f"its output {', '.join(output.data)} cannot be shown on a page: print it or draw it"
        )
    data = output.data[mime]
    alt = cell.metadata.get("alt", "").strip()
    if mime.startswith("image/"):
        if not alt:
            raise ValueError('its figure has no alt text: write # %% alt="what the figure shows"')
        content = base64.b64decode(data) if mime == "image/png" else data.encode()
        file = f"{folder}/figure-{1 + len(page.files)}.{'png' if mime == 'image/png' else 'svg'}"
        page.files[file] = content
        escaped = re.sub(r"([\[\]\\])", r"\\\1", alt)
        return f"![{escaped}]({file}){{ .figure loading=lazy }}"
    if mime == "text/html":
        sound = re.search(r"data:audio/(\w+);base64,([^\"']+)", data)
        if sound and alt:
            file = f"sound-{1 + len(page.files)}.{sound[1]}"
            page.files[f"{folder}/{file}"] = base64.b64decode(sound[2])
            return (
                f'<audio controls preload="none" aria-label="{escape(alt)}" src="{file}"></audio>'
            )
        table = Table(data)
        if not table.plain or not table.rows:
            raise ValueError(
                "its HTML output cannot be shown on a page (a sound needs alt text): print it or draw it"
            )
        return table.markdown()
    return fence(data, " { .text .output .no-copy }") if mime == "text/plain" else str(data)


# --- prose -----------------------------------------------------------------------------------------------------------


def outside_code(
    text: str, link: Callable[[re.Match[str]], str], attribute: Callable[[re.Match[str]], str]
) -> str:
    """Replace links and src/href attributes where they are not code and not mathematics."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    def restore(text: str) -> str:
        return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)

    def whole(match: re.Match[str]) -> str:
        return link(LINK.fullmatch(restore(match[0])) or match)

    return restore(ATTRIBUTE.sub(attribute, LINK.sub(whole, CODE.sub(keep, text))))


def alerts(text: str, write: Callable[[str, list[str]], list[str]]) -> str:
    """Hand each GitHub alert (> [!NOTE] and the quote under it) to write, as its kind and its lines."""
    lines: list[str] = []
    rest = text.split("\n")
    while rest:
        start = re.fullmatch(r"> \[!(\w+)\]\s*", rest[0])
        if not start or start[1] not in ALERTS:
            lines.append(rest.pop(0))
            continue
        rest.pop(0)
        body: list[str] = []
        while rest and rest[0].startswith(">"):
            body.append(re.sub(r"^> ?", "", rest.pop(0)))
        lines += write(start[1], body)
    return "\n".join(lines)


def as_admonition(kind: str, body: list[str]) -> list[str]:
    return [
        "",
        f'!!! {ALERTS[kind]} "{kind.capitalize()}"',
        "",
        *(f"    {line}".rstrip() for line in body),
        "",
    ]


def as_quote(kind: str, body: list[str]) -> list[str]:
    return [f"> **{kind.capitalize()}**", ">", *(f"> {line}".rstrip() for line in body)]


def source_of(url: str) -> str | None:
    """A link as written in tutorials/ -> the file in docs/ that it means, with its anchor; None where there is none."""
    path, mark, anchor = url.partition("#")
    target = posixpath.normpath(posixpath.join("tutorials", path)) if path else "docs/"
    if re.fullmatch(r"tutorials/\w+\.py", target):
        target = "docs/" + target.removesuffix(".py") + ".ipynb"
    return target.removeprefix("docs/") + mark + anchor if target.startswith("docs/") else None


def external(url: str) -> bool:
    return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", url))


def page_links(text: str, place: str, page: Converted) -> str:
    """The links of a cell as the page needs them, from docs/tutorials/; each is noted for the check."""

    def move(url: str) -> str:
        if external(url):
            return url
        target = source_of(url)
        if target is None:
            page.problems.append(
                f"{place}: its link {url} leads to no page (pages are in docs/, not in the rest)"
            )
            return url
        page.links.append((place, "url", target))
        return target if target.startswith("#") else posixpath.relpath(target, "tutorials")

    def link(match: re.Match[str]) -> str:
        if match["url"]:
            return f"{match['bang']}[{match['text']}]({move(match['url'])}{match['title'] or ''})"
        page.links.append((place, "ref", (match["ref"] or match["text"]).strip("`")))
        return match[0]

    return outside_code(text, link, lambda m: f'{m["head"]}{move(m["url"])}"')


# --- the page --------------------------------------------------------------------------------------------------------


def cell_markdown(cell: Cell, place: str, page: Converted, name: str) -> str:
    if cell.cell_type == "markdown":
        for raw in RAW.finditer(CODE.sub("", cell.source)):
            page.problems.append(
                f"{place}: {raw[0].strip()!r} is raw text in Jupyter: write an alert, a tag or a link"
            )
        return page_links(alerts(cell.source, as_admonition), place, page)
    if cell.cell_type != "code":
        return ""
    tags = cell.metadata.get("tags", [])
    parts = (
        []
        if "hide-input" in tags or not cell.source.strip()
        else [fence(cell.source, " { .python .input }")]
    )
    outputs = cell.get("outputs", [])
    if "raises-exception" in tags and not any(o.output_type == "error" for o in outputs):
        page.problems.append(f"{place}: it is tagged raises-exception and raised nothing")
    for output in outputs:
        try:
            if output.output_type == "error" and "raises-exception" not in tags:
                raise ValueError(f"it raised {output.ename}: {output.evalue}")
            parts.append(output_markdown(output, cell, page, name))
        except ValueError as error:
            page.problems.append(f"{place}: {error}")
    return "\n\n".join(parts)


def to_markdown(notebook: Any, name: str) -> Converted:
    """The executed notebook of tutorials/NAME.py as the Markdown of its page."""
    page = Converted()
    parts: list[str] = []
    cells = [
        (index, cell, "solution" in cell.metadata.get("tags", []))
        for index, cell in enumerate(notebook.cells)
    ]
    for solution, group in groupby(cells, key=lambda item: item[2]):
        texts = [
            cell_markdown(cell, where(name, index, cell), page, name) for index, cell, _ in group
        ]
        text = "\n\n".join(text for text in texts if text)
        if solution:
            text = '??? example "Solution"\n\n' + "\n".join(
                f"    {line}".rstrip() for line in text.split("\n")
            )
        parts.append(text)
    page.markdown = "\n\n".join(parts) + "\n"
    return page


# --- the downloads ---------------------------------------------------------------------------------------------------


def download(notebook: Any, absolute: Callable[[str, str], str | None], outputs: bool) -> Any:
    """The notebook a reader downloads: links absolute (or text, where absolute gives None), no syntax of the page.

    absolute(kind, target) gives the address of a "url" (a file in docs/ and its anchor) or a "ref" (an identifier).
    """
    notebook = deepcopy(notebook)

    def address(url: str) -> str | None:
        target = url if external(url) else source_of(url)
        return target if target is None or external(target) else absolute("url", target)

    def link(match: re.Match[str]) -> str:
        text, ref = match["text"], (match["ref"] or match["text"]).strip("`")
        to = address(match["url"]) if match["url"] else absolute("ref", ref)
        if to:
            return f"{match['bang']}[{text}]({to}{match['title'] or ''})"
        return f"*({text})*" if match["bang"] else text

    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            text = outside_code(
                cell.source, link, lambda m: f'{m["head"]}{address(m["url"]) or ""}"'
            )
            cell.source = alerts(text, as_quote)
        elif not outputs:
            cell.outputs, cell.execution_count = [], None
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if {"solution", "hide-input"} & set(tags) and cell.cell_type == "code":
            cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.metadata.pop("rnnkit", None)
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1])
    converted = to_markdown(nbformat.read(path, 4), path.stem)
    print(converted.markdown)
    sys.exit("\n".join(converted.problems))
