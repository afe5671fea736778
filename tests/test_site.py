"""The built site, read without a browser: all it links to is there, and nothing on it comes from elsewhere."""

import gzip
import json
import os
import posixpath
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.site

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("RNNKIT_SITE_DIR", ROOT / "site"))
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
TUTORIALS = [page for page in PAGES if re.fullmatch(r"tutorials/\d\d_\w+/index\.html", page)]
# Bytes of HTML in a tutorial's page, figures aside: as it is, and compressed as it is sent. The aim is 60,000; half of
# each longer page is its text.
LIMIT = 60_000, 22_000
LONGER = {"04_generate": 80_000, "06_gradients": 75_000, "08_closed_loop": 70_000}
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


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_light(name: str) -> None:
    html = page(name).text.encode()
    assert len(html) < LONGER.get(name.split("/")[1], LIMIT[0])
    assert len(gzip.compress(html)) < LIMIT[1]


def test_the_tests_see_a_dead_link_and_another_host() -> None:
    bad = Page(
        '<a href="nowhere/">x</a><img src="https://example.org/a.png"><link rel="stylesheet" href="//b.org/c.css">'
    )
    assert found(bad.links[0], "index.html") is None
    assert [elsewhere(url) for url in bad.loads] == [True, True]
    assert bad.problems
