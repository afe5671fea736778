"""The page hook: tutorials become pages of MkDocs's own Markdown, with their figures, downloads and footer."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import execute
import nbformat
from convert import Converted, download, to_markdown
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel

log = logging.getLogger("mkdocs.hooks.page")
serving = False
pages: dict[str, tuple[Any, Converted]] = {}  # src_uri -> notebook, page


def root_of(config: Any) -> Path:
    return Path(config.config_file_path).parent


def on_startup(command: str, dirty: bool) -> None:
    global serving
    serving = command == "serve"


def on_config(config: Any) -> Any:
    if not config.repo_url:
        config.edit_uri = None  # no repository is known, so no page can be edited there
    return config


def on_pre_build(config: Any) -> None:
    """Run what is stale. While serving, only what was edited; RNNKIT_EXECUTE=never runs nothing."""
    if os.environ.get("RNNKIT_EXECUTE") == "never":
        return
    for problem in execute.update(root_of(config), edited_only=serving):
        log.warning(problem)


def on_files(files: Any, config: Any) -> Any:
    """Convert each notebook; its figures and its two downloads become files of the site."""
    pages.clear()
    for file in list(files):
        if not re.fullmatch(r"tutorials/\w+\.ipynb", file.src_uri):
            continue
        notebook = nbformat.read(file.abs_src_path, 4)
        name = Path(file.src_uri).stem
        page = to_markdown(notebook, name)
        for problem in page.problems:
            log.warning(problem)
        pages[file.src_uri] = notebook, page
        made = page.files | dict.fromkeys(
            downloads(name), b""
        )  # downloads are filled in on_env: they need addresses
        for path, content in made.items():
            uri = f"tutorials/{path}"
            files.append(
                File.generated(config, uri, content=content, inclusion=InclusionLevel.INCLUDED)
            )
    return files


def downloads(name: str) -> tuple[str, str]:
    return f"{name}/{name}.ipynb", f"{name}/{name}_empty.ipynb"


def on_page_read_source(page: Any, config: Any) -> str | None:
    if page.file.src_uri not in pages:
        return None
    vars(page).pop("render", None)  # mkdocs-jupyter's own HTML is not used
    notebook, converted = pages[page.file.src_uri]
    name = Path(page.file.src_uri).stem
    if config.repo_url and page.edit_url:
        page.edit_url = page.edit_url.replace(
            f"docs/tutorials/{name}.ipynb", f"tutorials/{name}.py"
        )
    return (
        converted.markdown
        + "\n"
        + footer(notebook.metadata.get("rnnkit", {}), name, root_of(config))
    )


def footer(facts: dict[str, Any], name: str, root: Path) -> str:
    """What made this page, and its downloads."""
    git = ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    made = f"rnnkit {facts.get('rnnkit')}, torch {facts.get('torch')}, Python {facts.get('python')}"
    made += f", commit `{commit}`" if commit else ""
    ran = f"ran in {facts.get('seconds', 0):.0f} s, one thread on a machine with {facts.get('cores')} cores"
    full, empty = downloads(name)
    links = [
        f"[Notebook with outputs]({full}){{ download }}",
        f"[without outputs]({empty}){{ download }}",
    ]
    if colab := os.environ.get("RNNKIT_COLAB_URL"):
        links.append(f"[open in Colab]({colab.rstrip('/')}/tutorials/{full})")
    return f"---\n\nMade with {made}; {ran}.\n{' · '.join(links)}\n{{ .made-with }}\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Pages link to tutorials as files of the source tree; the site has them as notebooks."""
    here = posixpath.dirname(page.file.src_uri) or "."

    def link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'tutorials/{match[1]}.ipynb', here)}{match[2]}"

    if page.file.src_uri in pages:
        return markdown
    return re.sub(r"\]\((?:\.\./)*tutorials/(\w+)\.py([#) ])", link, markdown)


@event_priority(-40)  # after every page is rendered, before autorefs resolves its references (-50)
def on_env(env: Any, config: Any, files: Any) -> None:
    autorefs = config.plugins["autorefs"]
    for line in Path(__file__).with_name("links.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            autorefs.register_url(*line.split())
    for uri, (notebook, page) in pages.items():
        check(uri, page, autorefs, files)
        for path, outputs in zip(downloads(Path(uri).stem), (True, False), strict=True):
            made = download(
                notebook, partial(absolute, uri=uri, config=config, files=files), outputs
            )
            files.get_file_from_path(f"tutorials/{path}").content_string = (
                nbformat.writes(made) + "\n"
            )


def reference(identifier: str, autorefs: Any) -> str | None:
    try:
        return autorefs.get_item_url(identifier)[0]
    except KeyError:
        return None


def check(uri: str, page: Converted, autorefs: Any, files: Any) -> None:
    """MkDocs names the file of a dead link; a tutorial's reader also wants the cell."""
    for place, kind, to in page.links:
        if kind == "ref":
            if reference(to, autorefs) is None:
                log.warning(f"{place}: its reference [{to}] names nothing in the API")
            continue
        path, _, anchor = to.partition("#")
        file = files.get_file_from_path(path or uri)
        if file is None:
            log.warning(f"{place}: its link leads to {path}, which does not exist")
        elif anchor and (file.page is None or anchor not in file.page.present_anchor_ids):
            log.warning(
                f"{place}: its link leads to #{anchor}, which {path or 'its page'} does not have"
            )


def absolute(kind: str, to: str, uri: str, config: Any, files: Any) -> str | None:
    """The address a downloaded notebook links to, or None where the site's own is not known (RNNKIT_SITE_URL)."""
    if kind == "ref":
        address = reference(to, config.plugins["autorefs"])
    else:
        path, _, anchor = to.partition("#")
        file = files.get_file_from_path(path or uri)
        address = file and file.url + (f"#{anchor}" if anchor else "")
    if address is None or re.match(r"\w+:", address):
        return address
    return (
        config.site_url.rstrip("/") + "/" + address.removeprefix("./") if config.site_url else None
    )


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme asks the repository's host for its stars; a page of this site asks nothing of other hosts."""
    return output.replace(' data-md-component="source"', "")


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    return output_content.replace(' data-md-component="source"', "")
