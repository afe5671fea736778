"""The whole site as a zip that opens from a disk, without a server and without a network.

From file:// a browser lists a folder instead of opening its index.html, and lets no page fetch a
file or start a worker. So links to folders name the page. The search reads its index from a script
and runs in a frame, as the theme has it for sites on a disk: its bundle looks for
search/search_index.js there, and docs/assets/offline holds the worker of its author. Its instant
navigation is taken out, for on a disk it ends the theme's own events before they begin.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

FILE = "rnnkit-site.zip"
FOLDER = "rnnkit-site"  # what it unpacks to
WORKER = "assets/offline/iframe-worker.js"
INDEX = "search/search_index"
# What is of no use on a disk: addresses, maps for debuggers, other languages, what is shared.
LEFT_OUT = re.compile(
    r"404\.html|sitemap\.xml(\.gz)?|objects\.inv|feed\.xml|.*\.map|.*/lunr/.*|cards/.*|"
    rf"{re.escape(INDEX)}\.json|{re.escape(FILE)}"
)
PACKED = re.compile(r".*\.(png|whl|woff2)")  # what does not shrink
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip knows
INSTANT = re.compile(r'"navigation\.instant[\w.]*",?\s*')
TAG = re.compile(r"<[a-zA-Z][^<>]*>")
LINK = re.compile(r'\s(?P<name>href|src)="(?P<path>[^"#?]*)(?P<rest>[#?][^"]*)?"')


class Kept(NamedTuple):
    """What is in the archive, and where the site is otherwise, "" where that is not known."""

    names: frozenset[str]
    address: str


def archive(site: Path, address: str) -> bytes:
    """The bytes of the zip: the same for the same site."""
    files = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
    names = sorted(name for name in files if not LEFT_OUT.fullmatch(name))
    kept = Kept(frozenset(names), address)
    made: dict[str, bytes] = {}
    for name in names:
        content = (site / name).read_bytes()
        if name.endswith(".html"):
            content = from_disk(content.decode(), name, kept).encode()
        made[name] = content
    made[f"{INDEX}.js"] = _searched((site / f"{INDEX}.json").read_text(encoding="utf-8")).encode()
    return zipped(made.items())


def zipped(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip in which nothing says when and where it was made."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as made:
        for name, content in sorted(files):
            entry = ZipInfo(f"{FOLDER}/{name}", LONG_AGO)
            entry.create_system = 3  # whatever the system is: the next line is read as Unix has it
            entry.external_attr = 0o644 << 16
            entry.compress_type = ZIP_DEFLATED
            if PACKED.fullmatch(name):
                entry.compress_type = ZIP_STORED
            made.writestr(entry, content)
    return buffer.getvalue()


def from_disk(html: str, name: str, kept: Kept) -> str:
    """A page whose links lead to files, with the worker that its search needs."""
    html = TAG.sub(lambda tag: LINK.sub(partial(_to_a_file, name=name, kept=kept), tag[0]), html)
    html = INSTANT.sub("", html)
    worker = posixpath.relpath(WORKER, posixpath.dirname(name) or ".")
    return html.replace("</head>", f'<script src="{worker}"></script></head>', 1)


def _to_a_file(link: re.Match[str], name: str, kept: Kept) -> str:
    """The attribute as it leads to a file of the archive, to the site, or nowhere."""
    path = link["path"]
    if not path or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", path):
        return link[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path)))
    rest = link["rest"] or ""
    if target in kept.names:
        return link[0]
    if posixpath.normpath(f"{target}/index.html") in kept.names:
        return f' {link["name"]}="{path.rstrip("/")}/index.html{rest}"'
    if kept.address:
        return f' {link["name"]}="{kept.address.rstrip("/")}/{target}{rest}"'
    return ""


def _searched(index: str) -> str:
    """The index of the search as a script, whose addresses name the page."""
    said = json.loads(index)
    for entry in said["docs"]:
        path, mark, anchor = entry["location"].partition("#")
        entry["location"] = f"{path}index.html{mark}{anchor}"
    return f"var __index = {json.dumps(said, ensure_ascii=False, separators=(',', ':'))}"
