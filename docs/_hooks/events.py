"""What MkDocs calls: tutorials become its own pages, with figures, downloads and a footer."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from away.about import commit_of
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel
from road.claims import claims_pages
from road.download import Origin, download, downloads
from road.gallery import INDEX, gallery, parts_of
from road.header import strip
from road.install import Wheel, name_wheel, wheel_of
from road.light import light_code, light_page
from road.links import LINK, Link, external
from road.outputs import framed
from road.page import Page, to_page
from road.pictures import sized
from road.playground import model_files, with_samples
from road.run import update
from road.script import script, script_path
from road.source import Notebook
from road.used import User, api_of, names_used, with_users

log = logging.getLogger("mkdocs.hooks.road")
# Of tutorials; another page says it in its front matter. Here is who asks for LSTM, and no more.
BOOSTED = {"tutorials/01_recurrent.ipynb": 1.4}
# What people type who do not know a page's own words; another page has `tags` in its front matter.
WORDS = {
    "00_forecast": ["multivariate", "univariate", "lookback", "stock price", "rmse", "sales"],
    "01_recurrent": ["sliding window", "num_layers"],
    "02_seq2seq": ["next value"],
    "03_seq2one": ["classification"],
    "04_generate": ["language model", "nucleus", "char-rnn"],
    "05_lengths": ["masking", "collate_fn"],
    "06_gradients": ["exploding gradient", "orthogonal"],
    "08_closed_loop": ["recursive", "free running"],
    "09_feedback": ["curriculum"],
    "10_attention": ["machine translation"],
    "11_own_cell": ["video", "custom cell"],
    "12_polyphony": ["multi-label"],
    "13_labels": ["named entity", "pos tagging"],
    "14_probabilistic": ["quantile", "confidence"],
    "15_serving": ["deployment"],
    "16_machine": ["bfloat16"],
}
NAMES_ELSEWHERE = Path(__file__).with_name("links.txt")


@dataclass
class Road:
    """What one build knows of the tutorials, from event to event."""

    serving: bool = False
    notebooks: dict[str, Notebook] = field(default_factory=dict)  # by the page's src_uri
    pages: dict[str, Page] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)  # of rnnkit, that each uses
    wheel: Wheel | None = None  # this build's package


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
    """Convert each notebook; its figures, its downloads and the wheel become files of the site."""
    road.notebooks.clear()
    road.pages.clear()
    road.names.clear()
    road.wheel = wheel_of(root_of(config))
    for file in list(files):
        if not re.fullmatch(r"tutorials/\w+\.ipynb", file.src_uri):
            continue
        name = Path(file.src_uri).stem
        notebook = nbformat.read(file.abs_src_path, 4)
        # The downloads need addresses, which are known when all pages are made: on_env fills them.
        paths = [*downloads(name).values(), script_path(name)]
        made: dict[str, bytes] = dict.fromkeys(paths, b"")
        if road.wheel:
            name_wheel(notebook, road.wheel.name, address_of(f"tutorials/{name}", config))
            made[f"{name}/{road.wheel.name}"] = road.wheel.content
        page = to_page(notebook, name)
        for problem in page.problems:
            log.warning(problem)
        road.notebooks[file.src_uri] = notebook
        road.pages[file.src_uri] = page
        road.names[file.src_uri] = names_used(notebook)
        contents = {f"tutorials/{path}": content for path, content in (page.files | made).items()}
        for uri, content in (contents | model_files(notebook)).items():
            files.append(
                File.generated(config, uri, content=content, inclusion=InclusionLevel.INCLUDED)
            )
    by_name = {page.name: road.notebooks[uri] for uri, page in sorted(road.pages.items())}
    for uri, markdown in claims_pages(by_name).items():
        listed = InclusionLevel.NOT_IN_NAV  # where the nav does not say otherwise
        files.append(File.generated(config, uri, content=markdown, inclusion=listed))
    if parts := parts_of(config.nav, road.pages):
        files.append(File.generated(config, INDEX, content=gallery(parts)))
    return files


def address_of(path: str, config: Any) -> str | None:
    """The whole address of a path of the site, or None where the site's own is not known."""
    if not config.site_url:  # RNNKIT_SITE_URL
        return None
    return config.site_url.rstrip("/") + "/" + path.removeprefix("./")


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
    top = strip(made.header.minutes, facts, ways_to_get(made.name, page, config))
    names = api_of(road.names[page.file.src_uri])
    return made.whole(top, f"{names}\n\n{footer(facts, root_of(config))}".lstrip())


def ways_to_get(name: str, page: Any, config: Any) -> list[str]:
    """The links of the strip: the downloads, the package, and what has an address."""
    forms = downloads(name)
    links = [
        f"Notebook: [with outputs]({forms['outputs']}){{ download }}",
        f"[without]({forms['empty']}){{ download }}",
        f"[exercises only]({forms['exercises']}){{ download }}",
        f"[script]({script_path(name)}){{ download }}",
    ]
    if road.wheel:
        links.append(f"[its package]({name}/{road.wheel.name}){{ download }}")
    if colab := os.environ.get("RNNKIT_COLAB_URL"):
        links.append(f"[open in Colab]({colab.rstrip('/')}/tutorials/{forms['outputs']})")
    if source := source_address(page, config):
        links.append(f"[source]({source})")
    return links


def source_address(page: Any, config: Any) -> str | None:
    """Where a tutorial's source can be read, once on_page_read_source has mended its edit_url."""
    if not config.repo_url or not page.edit_url:
        return None
    return page.edit_url.replace("/edit/", "/blob/")


def footer(facts: dict[str, Any], root: Path) -> str:
    """What made this page."""
    made = f"rnnkit {facts.get('rnnkit')}, torch {facts.get('torch')}, Python {facts.get('python')}"
    if commit := commit_of(root):
        made += f", commit `{commit}`"
    seconds = facts.get("seconds", 0)
    ran = f"ran in {seconds:.0f} s, one thread on a machine with {facts.get('cores')} cores"
    return f"---\n\nMade with {made}; {ran}.\n{{ .made-with }}\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Pages link to tutorials as files of the source tree; the site has them as notebooks."""
    color_signatures_alone(markdown, config)
    made = road.pages.get(page.file.src_uri)
    said = made.header.description if made else ""
    if not page.is_homepage:  # which the site's own description describes
        page.meta.setdefault("description", said or first_words(markdown))
    if page.file.src_uri in BOOSTED:
        page.meta.setdefault("search", {"boost": BOOSTED[page.file.src_uri]})
    if made:
        page.meta.setdefault("tags", WORDS.get(made.name, []))
        return markdown
    markdown = with_samples(markdown, {page.name: page for page in road.pages.values()})
    here = posixpath.dirname(page.file.src_uri) or "."

    def link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'tutorials/{match[1]}.ipynb', here)}{match[2]}"

    return re.sub(r"\]\((?:\.\./)*tutorials/(\w+)\.py([#) ])", link, markdown)


def color_signatures_alone(markdown: str, config: Any) -> None:
    """Python is colored by docs/assets/site.js; to color it here as well takes a second a build.

    But for the signatures of the API, which hold links: their pages ask for a name, ::: name.
    """
    options = config.mdx_configs.setdefault("pymdownx.highlight", {})
    options["extend_pygments_lang"] = [{"name": "python", "lang": "text"}]
    if re.search(r"^::: ", markdown, re.M):
        options["extend_pygments_lang"] = []


def first_words(markdown: str) -> str:
    """The first paragraph of a page without its syntax, for search engines; "" where it has none.

    >>> first_words("# Title\\n\\nSee [the *rule*](a.md): `(B, *F)`. More.\\n\\nNo.")
    'See the rule: (B, *F). More.'
    """
    found = re.search(r"^(?=[A-Z\[*`])(?:.+\n?)+", markdown, re.M)
    text = LINK.sub(lambda match: match["text"], found[0] if found else "")
    parts = re.split(r"`+([^`]*)`+", text)  # prose, code, prose, ...
    parts[::2] = [re.sub(r"[*\"<>]|\{[^}]*\}", "", part) for part in parts[::2]]
    text = " ".join("".join(parts).replace('"', "'").split())
    if len(text) <= 160:
        return text
    return text[:157].rpartition(" ")[0] + " …"


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    def read(address: str) -> bytes | None:
        file = by_address.get(posixpath.normpath(posixpath.join(page.url, address)))
        if file is None:
            return None
        return file.content_bytes

    by_address = {file.url: file for file in files.media_files()}
    if page.file.src_uri.startswith("api/"):
        html = with_users(html, users_of_names(page, files))
    return light_code(sized(framed(html), read))


def users_of_names(page: Any, files: Any) -> dict[str, list[User]]:
    """By each name of the package, the tutorials that use it, as linked from a page."""
    users: dict[str, list[User]] = {}
    for uri, made in sorted(road.pages.items()):
        address = files.get_file_from_path(uri).url_relative_to(page.file)
        user = User(made.name.partition("_")[0], made.title, address)
        for name in road.names[uri]:
            users.setdefault(name, []).append(user)
    return users


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
        made_page = files.get_file_from_path(uri).page
        origin = Origin(
            name=page.name,
            license=config.copyright or "",
            page=address_of(made_page.url, config),
            source=source_address(made_page, config),
            docs=Path(config.docs_dir),
        )
        for form, path in downloads(page.name).items():
            made = download(road.notebooks[uri], form, address, origin)
            file = files.get_file_from_path(f"tutorials/{path}")
            file.content_string = nbformat.writes(made) + "\n"
        plain = download(road.notebooks[uri], "empty", address, replace(origin, docs=None))
        file = files.get_file_from_path(f"tutorials/{script_path(page.name)}")
        file.content_string = script(plain, page.name)


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
    return address_of(address, config)


# --- as it is written ----------------------------------------------------------------------------


def asks_nobody(html: str) -> str:
    """The theme asks the repository's host for its stars; a page of this site asks nobody."""
    return html.replace(' data-md-component="source"', "")


def on_post_page(output: str, page: Any, config: Any) -> str:
    return light_page(asks_nobody(output))


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    if not template_name.endswith(".html"):
        return output_content
    return light_page(asks_nobody(output_content))
