"""What MkDocs calls so that the site can be taken away: as a zip, as text, cited and followed."""

from __future__ import annotations

import logging
import posixpath
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from away import archive, changes, cite, feed, licenses, llms
from away.about import commit_of, day_of, versions
from away.api import described
from away.card import FOLDER, Card, card
from away.twin import twin
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from road.links import external

log = logging.getLogger("mkdocs.hooks.takeaway")
SIZE = re.compile(r'(<span class="rk-size">)[^<]*(</span>)')


@dataclass
class Away:
    """What one build writes beside its pages, by its path in the site."""

    made: dict[str, bytes] = field(default_factory=dict)
    releases: list[changes.Release] = field(default_factory=list)
    nav: Any = None


away = Away()


def root_of(config: Any) -> Path:
    return Path(config.config_file_path).parent


def absolute(path: str, config: Any) -> str:
    """The whole address of a path of the site, or the path where the site's own is not known."""
    return f"{config.site_url.rstrip('/')}/{path}" if config.site_url else path


# --- before the pages ----------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """What docs/_overrides/main.html says under each page."""
    root = root_of(config)
    config.extra["made"] = {
        "versions": versions(),
        "commit": commit_of(root),
        "feed": config.site_url and absolute(feed.FILE, config),
    }
    return config


def on_files(files: Any, config: Any) -> Any:
    """The pages that are made of files of the repository; what a page may link to is a file."""
    root = root_of(config)
    away.made.clear()
    text = (root / "CHANGES.md").read_text(encoding="utf-8")
    try:
        away.releases = changes.releases(text)
    except ValueError as problem:
        log.warning(problem)
    citation = (root / cite.SOURCE).read_text(encoding="utf-8")
    constraints = (root / "constraints.txt").read_text(encoding="utf-8")
    made = {
        changes.PAGE: changes.changes_page(text, config.extra["made"]["feed"]),
        cite.PAGE: cite.cite_page(citation, config.repo_url or config.site_url or ""),
        cite.SOURCE: citation,
        licenses.PAGE: licenses.licenses_page(constraints),
        llms.FILE: "",  # on_post_build writes it, and the archive
        archive.FILE: "",
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    away.nav = nav
    return nav


# --- when all pages are made ---------------------------------------------------------------------


@event_priority(-40)  # after every page is rendered, before autorefs resolves its references (-50)
def on_env(env: Any, config: Any, files: Any) -> None:
    """The twin of each page, and its card where there is an address to show it from."""
    handler = config.plugins["mkdocstrings"].get_handler("python")
    options = handler.get_options({})

    def documented(name: str) -> str:
        return described(handler.collect(name, options))

    for file in files.documentation_pages():
        page = file.page
        address = partial(to_twin, file=file, config=config, files=files)
        away.made[twin_of(file)] = twin(page.markdown, address, documented).encode()
        if config.site_url:
            path = f"{FOLDER}/{posixpath.dirname(file.dest_uri) or 'index'}.png"
            away.made[path] = card(card_of(page, config), root_of(config) / ".run" / "cards")
            page.meta["card"] = absolute(path, config)


def twin_of(file: Any) -> str:
    """The path of a page's twin; a file that is no page has none, and is meant itself."""
    return re.sub(r"\.html$", ".md", file.dest_uri)


def to_twin(to: str, is_name: bool, file: Any, config: Any, files: Any) -> str | None:
    """Where a link of a twin leads: to another twin, to a file of the site, elsewhere."""
    here = posixpath.dirname(file.dest_uri) or "."
    path, mark, anchor = to.partition("#")
    if is_name:
        try:
            url = config.plugins["autorefs"].get_item_url(to)[0]
        except KeyError:
            return None
        if external(url):
            return url
        path, mark, anchor = url.partition("#")
        path = posixpath.join(path, "index.md")
    elif external(to) or not path:
        return to
    else:
        source = posixpath.join(posixpath.dirname(file.src_uri), path)
        found = files.get_file_from_path(posixpath.normpath(source))
        if found is None:
            return None
        path = twin_of(found)
    return posixpath.relpath(path, here) + mark + anchor


def card_of(page: Any, config: Any) -> Card:
    """What the card of a page shows."""
    title = page.meta.get("title") or page.title
    description = page.meta.get("description") or config.site_description
    drawing = None
    if tutorial := re.match(r"tutorials/(\d\d)_", page.file.src_uri):
        bitmap = Path(config.docs_dir, "assets", "patterns", f"{tutorial[1]}.png")
        if bitmap.exists():
            drawing = bitmap
    return Card(title, description, drawing)


# --- when all is written -------------------------------------------------------------------------


@event_priority(-100)  # after the search has written its index
def on_post_build(config: Any) -> None:
    """Write what lies beside the pages; the archive last, for it holds the others."""
    site = Path(config.site_dir)
    entries = list(entries_of(away.nav.items, "", config))
    text = llms.llms(config.site_name, config.site_description, entries)
    away.made[llms.FILE] = text.encode()
    day = day_of(root_of(config))
    if config.site_url and (day or any(release.day for release in away.releases)):
        author = config.copyright.partition(",")[0]
        text = feed.feed(away.releases, config.site_url, config.site_name, author, day)
        away.made[feed.FILE] = text.encode()
    for path, content in away.made.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    whole = archive.archive(site, config.site_url or "")
    (site / archive.FILE).write_bytes(whole)
    page = site / "takeaway" / "index.html"
    size = f"{len(whole) / 1e6:.1f} MB"
    page.write_text(SIZE.sub(rf"\g<1>{size}\2", page.read_text(encoding="utf-8")), "utf-8")


def entries_of(items: Any, part: str, config: Any) -> list[llms.Entry]:
    """The pages of the navigation, in its order, as lines of llms.txt."""
    found: list[llms.Entry] = []
    for item in items:
        if item.is_section:
            found += entries_of(item.children, part or item.title, config)
        elif item.is_page:
            title = item.meta.get("title") or item.title
            said = item.meta.get("description") or config.site_description
            address = absolute(twin_of(item.file), config)
            found.append(llms.Entry(part or "Start", title, address, " ".join(said.split())))
    return found
