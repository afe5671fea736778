"""What MkDocs calls: tutorials become its own pages, with figures, downloads and a footer."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel
from road.download import download, downloads
from road.light import light_code, light_page
from road.links import Link, external
from road.page import Page, to_page
from road.run import update
from road.source import Notebook

log = logging.getLogger("mkdocs.hooks.road")
NAMES_ELSEWHERE = Path(__file__).with_name("links.txt")


@dataclass
class Road:
    """What one build knows of the tutorials, from event to event."""

    serving: bool = False
    notebooks: dict[str, Notebook] = field(default_factory=dict)  # by the page's src_uri
    pages: dict[str, Page] = field(default_factory=dict)


road = Road()


def root_of(config: Any) -> Path:
    return Path(config.config_file_path).parent


# --- before the pages ----------------------------------------------------------------------------


def on_startup(command: str, dirty: bool) -> None:
    road.serving = command == "serve"


def on_config(config: Any) -> Any:
    if not config.repo_url:
        config.edit_uri = None  # no repository is known, so no page can be edited there
    return config


def on_pre_build(config: Any) -> None:
    """Run what is stale. While serving, only what was edited; RNNKIT_EXECUTE=never runs nothing."""
    if os.environ.get("RNNKIT_EXECUTE") == "never":
        return
    for problem in update(root_of(config), edited_only=road.serving):
        log.warning(problem)


def on_files(files: Any, config: Any) -> Any:
    """Convert each notebook; its figures and its two downloads become files of the site."""
    road.notebooks.clear()
    road.pages.clear()
    for file in list(files):
        if not re.fullmatch(r"tutorials/\w+\.ipynb", file.src_uri):
            continue
        notebook = nbformat.read(file.abs_src_path, 4)
        page = to_page(notebook, Path(file.src_uri).stem)
        for problem in page.problems:
            log.warning(problem)
        road.notebooks[file.src_uri] = notebook
        road.pages[file.src_uri] = page
        # The downloads need addresses, which are known when all pages are made: on_env fills them.
        made = page.files | dict.fromkeys(downloads(page.name), b"")
        for path, content in made.items():
            uri = f"tutorials/{path}"
            files.append(
                File.generated(config, uri, content=content, inclusion=InclusionLevel.INCLUDED)
            )
    return files


# --- a page --------------------------------------------------------------------------------------


def on_page_read_source(page: Any, config: Any) -> str | None:
    made = road.pages.get(page.file.src_uri)
    if made is None:
        return None
    vars(page).pop("render", None)  # mkdocs-jupyter's own HTML is not used
    if config.repo_url and page.edit_url:
        source = f"tutorials/{made.name}.py"
        page.edit_url = page.edit_url.replace(f"docs/tutorials/{made.name}.ipynb", source)
    facts = road.notebooks[page.file.src_uri].metadata.get("rnnkit", {})
    return f"{made.markdown}\n{footer(facts, made.name, root_of(config))}"


def footer(facts: dict[str, Any], name: str, root: Path) -> str:
    """What made this page, and its downloads."""
    made = f"rnnkit {facts.get('rnnkit')}, torch {facts.get('torch')}, Python {facts.get('python')}"
    if commit := commit_of(root):
        made += f", commit `{commit}`"
    seconds = facts.get("seconds", 0)
    ran = f"ran in {seconds:.0f} s, one thread on a machine with {facts.get('cores')} cores"
    full, empty = downloads(name)
    links = [
        f"[Notebook with outputs]({full}){{ download }}",
        f"[without outputs]({empty}){{ download }}",
    ]
    if colab := os.environ.get("RNNKIT_COLAB_URL"):
        links.append(f"[open in Colab]({colab.rstrip('/')}/tutorials/{full})")
    return f"---\n\nMade with {made}; {ran}.\n{' · '.join(links)}\n{{ .made-with }}\n"


def commit_of(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Pages link to tutorials as files of the source tree; the site has them as notebooks."""
    if page.file.src_uri in road.pages:
        return markdown
    here = posixpath.dirname(page.file.src_uri) or "."

    def link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'tutorials/{match[1]}.ipynb', here)}{match[2]}"

    return re.sub(r"\]\((?:\.\./)*tutorials/(\w+)\.py([#) ])", link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    return light_code(html)


# --- when all pages are made ---------------------------------------------------------------------


@event_priority(-40)  # after every page is rendered, before autorefs resolves its references (-50)
def on_env(env: Any, config: Any, files: Any) -> None:
    """Check the links of the tutorials, and write their downloads."""
    autorefs = config.plugins["autorefs"]
    for line in NAMES_ELSEWHERE.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            autorefs.register_url(*line.split())
    for uri, page in road.pages.items():
        check(uri, page, autorefs, files)
        address = partial(absolute, uri=uri, config=config, files=files)
        full, empty = downloads(page.name)
        for path, outputs in ((full, True), (empty, False)):
            made = download(road.notebooks[uri], address, outputs)
            file = files.get_file_from_path(f"tutorials/{path}")
            file.content_string = nbformat.writes(made) + "\n"


def check(uri: str, page: Page, autorefs: Any, files: Any) -> None:
    """MkDocs names the file of a dead link; a tutorial's reader also wants the cell."""
    for place, link in page.links:
        if fault := _fault(link, uri, autorefs, files):
            log.warning(f"{place}: its {fault}")


def _fault(link: Link, uri: str, autorefs: Any, files: Any) -> str:
    """What is wrong with a link, or "" where it leads somewhere."""
    if link.kind == "ref":
        known = reference(link.to, autorefs) is not None
        return "" if known else f"reference [{link.to}] names nothing in the API"
    path, _, anchor = link.to.partition("#")
    file = files.get_file_from_path(path or uri)
    if file is None:
        return f"link leads to {path}, which does not exist"
    if anchor and (file.page is None or anchor not in file.page.present_anchor_ids):
        return f"link leads to #{anchor}, which {path or 'its page'} does not have"
    return ""


def reference(identifier: str, autorefs: Any) -> str | None:
    """The address of a name of the API, or None."""
    try:
        return autorefs.get_item_url(identifier)[0]
    except KeyError:
        return None


def absolute(link: Link, uri: str, config: Any, files: Any) -> str | None:
    """The address that a download links to, or None where the site's own is not known."""
    if link.kind == "ref":
        address = reference(link.to, config.plugins["autorefs"])
    else:
        path, _, anchor = link.to.partition("#")
        file = files.get_file_from_path(path or uri)
        address = file and file.url + (f"#{anchor}" if anchor else "")
    if address is None or external(address):
        return address
    if not config.site_url:  # RNNKIT_SITE_URL
        return None
    return config.site_url.rstrip("/") + "/" + address.removeprefix("./")


# --- as it is written ----------------------------------------------------------------------------


def asks_nobody(html: str) -> str:
    """The theme asks the repository's host for its stars; a page of this site asks nobody."""
    return html.replace(' data-md-component="source"', "")


def on_post_page(output: str, page: Any, config: Any) -> str:
    return light_page(asks_nobody(output))


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    return asks_nobody(output_content)
