"""The built site, read without a browser: all it links to is there, and nothing on it comes from elsewhere."""

import gzip
import inspect
import json
import os
import posixpath
import re
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import rnnkit

pytestmark = pytest.mark.site

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("RNNKIT_SITE_DIR", ROOT / "site"))
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
TUTORIALS = [page for page in PAGES if re.fullmatch(r"tutorials/\d\d_\w+/index\.html", page)]
# Bytes of HTML in a page, figures aside: without what is folded, as it is, and compressed as it is sent.
LIGHT, WHOLE, SENT = 60_000, 90_000, 26_000
REFERENCE = 70_000  # without what is folded, in a page of the API: all that a room has
FOLD = re.compile(r"<details\b(?:(?!<details\b).)*?</details>", re.DOTALL)  # an innermost one
LOADED = {
    "img": "src",
    "script": "src",
    "audio": "src",
    "source": "src",
    "iframe": "src",
    "object": "data",
    "embed": "src",
}
SAID = {"canonical", "prev", "next", "alternate", "edit"}  # <link> elements that load nothing


@dataclass
class Page(HTMLParser):
    """What a page names, links to and loads."""

    text: str = field(repr=False)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        have = {name: value or "" for name, value in attrs}
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if "id" in have:
            self.ids.append(have["id"])
        if tag == "a" and "href" in have:
            self.links.append(have["href"])
        if tag == "link" and not SAID & set(have.get("rel", "").split()):
            self.loads.append(have["href"])
        if tag in LOADED and LOADED[tag] in have:
            self.loads.append(have[LOADED[tag]])
        if "srcset" in have:
            self.loads += [part.split()[0] for part in have["srcset"].split(",")]
        if "style" in have:
            self.loads += re.findall(r"url\(['\"]?([^'\")]+)", have["style"])
        if tag == "img" and "alt" not in have:
            self.problems.append(f"an image without alt text: {have.get('src')}")


@cache
def page(name: str) -> Page:
    return Page((SITE / name).read_text(encoding="utf-8"))


def base() -> str:
    """The path the site is published under, as the page for a missing address has it."""
    config = re.search(
        r'<script id="__config" type="application/json">(.*?)</script>', page("404.html").text
    )
    assert config
    return json.loads(config[1])["base"].rstrip("/")


def found(url: str, source: str) -> str | None:
    """The file of the site that `url` on page `source` means, or None where there is none."""
    path = unquote(urlsplit(url).path)
    if path.startswith("/"):
        target = path.removeprefix(base()).lstrip("/")
    else:
        target = (
            posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
        )
    file = SITE / target
    if file.is_dir():
        file /= "index.html"
    return file.relative_to(SITE).as_posix() if file.is_file() and SITE in file.parents else None


def elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def test_there_is_a_site() -> None:
    assert {"index.html", "404.html", "errors/index.html", "api/index.html"} <= set(PAGES), (
        "run: make site SERVE=0"
    )
    assert len(TUTORIALS) == len(list((ROOT / "tutorials").glob("[0-9][0-9]_*.py")))


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    dead: list[str] = []
    for url in page(name).links:
        if elsewhere(url) or urlsplit(url).scheme in ("mailto", "javascript"):
            continue
        target = found(url, name)
        anchor = unquote(urlsplit(url).fragment)
        if target is None or (
            anchor and target.endswith(".html") and anchor not in page(target).ids
        ):
            dead.append(url)
    assert not dead


@pytest.mark.parametrize("name", PAGES)
def test_everything_a_page_loads_is_on_the_site(name: str) -> None:
    assert page(name).loads
    for url in page(name).loads:
        if not url.startswith("data:"):
            assert not elsewhere(url), f"{url} comes from another host"
            assert found(url, name), f"{url} is not there"


def test_everything_a_stylesheet_loads_is_on_the_site() -> None:
    for sheet in SITE.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        for url in re.findall(
            r"url\(\s*(?:\"([^\"]*)\"|'([^']*)'|([^)\"']*))\s*\)|@import\s+[\"']([^\"']+)", text
        ):
            address = next(part for part in url if part)
            if not address.startswith(("data:", "#")):
                source = sheet.relative_to(SITE).as_posix()
                assert not elsewhere(address) and found(address, source), f"{source}: {address}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_made(name: str) -> None:
    seen = page(name)
    assert not seen.problems
    assert seen.tags.get("h1") == 1, "one title"
    assert len(seen.ids) == len(set(seen.ids)), (
        f"an id twice: {[i for i in seen.ids if seen.ids.count(i) > 1][:3]}"
    )
    assert "No description has been provided" not in seen.text
    assert 'data-md-component="source"' not in seen.text, (
        "the theme would ask the repository's host for its stars"
    )


def unfolded(html: str) -> str:
    """A page without what is closed on it."""
    while FOLD.search(html):
        html = FOLD.sub("", html)
    return html


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light(name: str) -> None:
    html = page(name).text
    assert len(unfolded(html).encode()) < (REFERENCE if name.startswith("api/") else LIGHT)
    assert len(html.encode()) < WHOLE
    assert len(gzip.compress(html.encode())) < SENT


def test_code_is_sent_without_colors() -> None:
    """docs/assets/site.js colors it; the signatures of the API, which hold links, have theirs."""
    html = page("errors/silent/index.html").text
    blocks = re.findall(r'<div class="language-python highlight">.*?</pre>', html, re.DOTALL)
    assert len(blocks) > 30 and not any("<span" in block for block in blocks)


def copied(html: str) -> list[str]:
    """The code that a reader copies from a tutorial's page, visible and folded, in its order."""
    return [
        unescape(code)
        for code in re.findall(r'input highlight"><pre>.*?<code>(.*?)</code>', html, re.DOTALL)
    ]


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_code_of_a_page_copied_in_order_is_the_code_that_ran(name: str) -> None:
    """So that it runs: its kernel ran these cells in this order, or there would be no page."""
    stem = name.split("/")[1]
    executed = nbformat.read(ROOT / "docs" / "tutorials" / f"{stem}.ipynb", 4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    ran = [cell.source.strip("\n") for cell in cells if cell.execution_count]
    blocks = [code.strip("\n") for code in copied(page(name).text)]
    install = [code for code in blocks if code.startswith("%pip")]
    assert len(install) == len(cells) - len(ran) == 1
    assert [code for code in blocks if code not in install] == ran


@pytest.mark.parametrize("name", [page for page in PAGES if page.startswith("api/")])
def test_an_example_of_the_api_is_no_quote(name: str) -> None:
    assert "blockquote" not in page(name).tags


@pytest.mark.parametrize("name", PAGES)
def test_a_heading_is_no_sentence_with_a_link(name: str) -> None:
    """It would stand so in the table of contents and in the search."""
    html = page(name).text
    article = html[html.index("<article") : html.index("</article>")]
    for heading in re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", article, re.DOTALL):
        links = re.findall(r'<a [^>]*class="([\w-]*)', heading)
        assert heading.count("<a ") == links.count("headerlink"), heading


def test_the_api_index_says_of_each_name_what_its_docstring_says() -> None:
    """The first sentence, so that the two stay one."""
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| \[(\w+)\]\[rnnkit\.\w+\] \| (.+) \|$", text, re.M))
    for name, line in said.items():
        first = (inspect.getdoc(getattr(rnnkit, name)) or "").split("\n\n")[0]
        unlinked = re.sub(r"\[(\w+)\]\[rnnkit\.\w+\]", r"\1", first)
        assert line == " ".join(unlinked.split()), name
    assert len(said) > 40


def test_each_page_has_a_title_of_its_own() -> None:
    titles: dict[str, str] = {}
    for name in PAGES:
        found = re.search(r"<title>(.*?)</title>", page(name).text)
        assert found and found[1].endswith(" - rnnkit"), name
        assert found[1] not in titles, f"{name} and {titles.get(found[1])}"
        assert found[1] != "rnnkit - rnnkit"
        titles[found[1]] = name


def test_the_page_for_a_missing_address_leads_to_every_part() -> None:
    article = re.search(r"<article.*?</article>", page("404.html").text, re.DOTALL)
    assert article
    led = {found(url, "404.html") for url in Page(article[0]).links}
    parts = {"index.html", "errors/index.html", "shapes/index.html", "api/index.html"}
    assert parts < led and any(part and part in TUTORIALS for part in led)


def test_each_page_describes_itself() -> None:
    said: dict[str, str] = {}
    for name in PAGES:
        if name != "404.html":
            found = re.search(r'<meta name="description" content="([^"]*)"', page(name).text)
            assert found and len(found[1]) <= 400, name
            assert found[1] not in said, f"{name} and {said.get(found[1])}"
            said[found[1]] = name


def test_the_tests_see_a_dead_link_and_another_host() -> None:
    bad = Page(
        '<a href="nowhere/">x</a><img src="https://example.org/a.png"><link rel="stylesheet" href="//b.org/c.css">'
    )
    assert found(bad.links[0], "index.html") is None
    assert [elsewhere(url) for url in bad.loads] == [True, True]
    assert bad.problems
