"""The ways into the built site: the chooser on the first page, the path of the tutorials, the API and what uses it."""

import re
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml
from test_site import PAGES, ROOT, TUTORIALS, found, page

import rnnkit

pytestmark = pytest.mark.site

CHOOSER = "which-pattern-do-i-need"
# What somebody wants, words of the row of the chooser that says so, and where the answer is: at most two clicks away.
WISHES = [
    ("the next 12 values of a series", "a time series its future", "tutorials/00_forecast"),
    ("a multi-step forecast with intervals", "says how sure it is", "tutorials/14_probabilistic"),
    ("what is an RNN, and why an LSTM", "what is a recurrent network", "tutorials/01_recurrent"),
    ("what samples, time steps and features are", "which axis is time", "shapes"),
    ("why batch_first leaves the state as it is", "batch_first", "shapes"),
    ("a prediction at every step", "many to many", "tutorials/02_seq2seq"),
    ("a class for a whole sequence", "many to one", "tutorials/03_seq2one"),
    ("text, character by character", "what comes next, sampled", "tutorials/04_generate"),
    ("why and when to pack a batch", "of different lengths", "tutorials/05_lengths"),
    ("a gradient that differs from mine", "looks wrong", "tutorials/06_gradients"),
    ("carry the state, detach it or reset it", "carry, detach or reset", "state"),
    ("truncated BPTT with k1 and k2", "truncated BPTT", "tutorials/07_truncated"),
    ("stateful training on one long series", "stateful", "tutorials/07_truncated"),
    ("good validation, bad forecast", "low validation loss", "tutorials/08_closed_loop"),
    ("a forecast that flattens to one value", "an error message, or a silent", "errors"),
    ("training without teacher forcing", "teacher forcing", "tutorials/09_feedback"),
    ("translate one sequence into another", "attention", "tutorials/10_attention"),
    ("where the time axis of a ConvLSTM is", "images over time", "tutorials/11_own_cell"),
    ("backward through the graph a second time", "an error message", "errors"),
    ("weights that are no contiguous chunk", "an error message", "errors"),
    ("torch.compile and mixed precision", "trains too slowly", "speed"),
    ("an LSTM in production, as an ONNX file", "exported to ONNX", "tutorials/15_serving"),
    ("a training in bfloat16, compiled, in two processes", "more machine", "tutorials/16_machine"),
    ("an initial state that is learned", "whose forward I wrote", "models"),
]
NAV = yaml.safe_load(re.sub(r"!ENV.*", "x", (ROOT / "mkdocs.yml").read_text()))["nav"]
PARTS = [
    entry
    for entry in next(entry["Tutorials"] for entry in NAV if "Tutorials" in entry)
    if isinstance(entry, dict) and isinstance(next(iter(entry.values())), list)
]


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def links_of(html: str, source: str) -> list[str]:
    """The pages of the site that some HTML of the page `source` links to."""
    pages = [found(url, source) for url in re.findall(r'<a [^>]*href="([^"#]+)', html)]
    return [page.removesuffix("index.html").rstrip("/") for page in pages if page]


def articles(name: str) -> str:
    html = page(name).text
    return html[html.index("<article") : html.index("</article>")]


@cache
def rows() -> list[str]:
    """The rows of the chooser."""
    _, _, below = articles("index.html").partition(f'id="{CHOOSER}"')
    return re.findall(r"<tr>.*?</tr>", below.partition("</table>")[0], re.DOTALL)[1:]


@pytest.mark.parametrize(("wish", "words", "target"), WISHES)
def test_a_wish_is_fulfilled_in_two_clicks(wish: str, words: str, target: str) -> None:
    said = [row for row in rows() if words in text_of(row)]
    assert said, "no row says it"
    clicks = {link for row in said for link in links_of(row, "index.html")}
    assert any(link == target or link.startswith(f"{target}/") for link in clicks), clicks


def test_the_chooser_comes_first_and_begins_with_a_time_series() -> None:
    html = articles("index.html")
    assert re.findall(r'<h2 id="([^"]+)"', html)[0] == CHOOSER
    assert text_of(rows()[0]).startswith("a time series its future")


# --- the path ------------------------------------------------------------------------------------


@dataclass
class Card:
    """What a tutorial's own source and notebook say of it."""

    name: str
    title: str
    header: dict[str, object]
    alt: str  # of its hero; "" where that is a text
    shown: str = field(default="", repr=False)  # its card on the page of all tutorials


def cards() -> list[Card]:
    html = articles("tutorials/index.html")
    shown = re.findall(
        r'<div>\n<p><img.*?</div>|<div>\n<div class="[^"]*thumbnail.*?</div>\n<p>.*?</div>',
        html,
        re.DOTALL,
    )
    made: list[Card] = []
    for path in sorted((ROOT / "tutorials").glob("[0-9]*.py")):
        source = path.read_text(encoding="utf-8")
        header = yaml.safe_load(re.sub(r"^# ?", "", source.split("# ---\n")[1], flags=re.M))
        notebook = nbformat.read(ROOT / "docs" / "tutorials" / f"{path.stem}.ipynb", 4)
        [hero] = [c for c in notebook.cells if "hero" in c.metadata.get("tags", [])]
        title = re.search(r"^# # (.+)$", source, re.M)
        assert title
        made.append(Card(path.stem, title[1], header["rnnkit"], hero.metadata.get("alt", "")))
    for card, html in zip(made, shown, strict=True):
        card.shown = html
    return made


def test_the_page_of_all_tutorials_says_of_each_what_its_source_says() -> None:
    for card in cards():
        said = text_of(card.shown)
        assert f"{card.name[:2]} {card.title}" in said
        assert f"{card.header['minutes']} minutes" in said
        assert str(card.header["prerequisites"]) in said
        assert str(card.header["description"]).strip() in said
        assert links_of(card.shown, "tutorials/index.html") == [f"tutorials/{card.name}"]


def test_the_page_of_all_tutorials_shows_each_hero_with_its_alt_text() -> None:
    for card in cards():
        pictures = re.findall(r'<img alt="([^"]*)"[^>]* src="([^"]*)"', card.shown)
        if card.alt:
            assert [unescape(alt) for alt, _ in pictures] == [card.alt], card.name
            assert pictures[0][1].startswith(f"{card.name}/figure-")
        else:
            assert "thumbnail" in card.shown and not pictures, card.name


def test_the_tutorials_stand_in_their_parts() -> None:
    html = articles("tutorials/index.html")
    wanted = [(title, part) for entry in PARTS for title, part in entry.items()]
    sections = re.split(r"<h2 ", html)[1:]
    assert [text_of("<h2 " + one.partition("<a ")[0]) for one in sections] == [t for t, _ in wanted]
    for section, (_, part) in zip(sections, wanted, strict=True):
        assert links_of(section, "tutorials/index.html") == [
            uri.removesuffix(".ipynb") for uri in part
        ]


def footer(name: str, direction: str) -> tuple[str, str]:
    """The page that a footer leads to, and what it is called there."""
    link = re.search(
        rf'<a href="([^"]*)" class="md-footer__link md-footer__link--{direction}" aria-label="([^"]*)"',
        page(name).text,
    )
    assert link, name
    return found(link[1], name) or "", unescape(link[2])


def test_the_foot_of_each_page_leads_along_the_path() -> None:
    path = ["tutorials/index.html", *TUTORIALS]
    for before, after in pairwise(path):
        title = text_of(
            re.findall(r"<h1.*?</h1>", page(after).text, re.DOTALL)[0].partition("<a ")[0]
        )
        assert footer(before, "next") == (after, f"Next: {title}")
        assert footer(after, "prev")[0] == before
    assert footer("index.html", "next")[0] == path[0]


# --- the API and what uses it --------------------------------------------------------------------


def used(source: str) -> set[str]:
    """The names that code imports from the package, or asks it for; without a syntax tree."""
    code = re.sub(r"^#.*$", "", source, flags=re.M)
    lists = re.findall(r"^\s*from rnnkit import (?:\(([^)]*)\)|(.+))$", code, re.M)
    names = {name for pair in lists for name in re.findall(r"\w+", "".join(pair).split("#")[0])}
    return (names | set(re.findall(r"\brnnkit\.(\w+)", code))) & set(rnnkit.__all__)


def test_an_entry_of_the_api_and_the_tutorials_that_use_it_lead_to_each_other() -> None:
    entries: dict[str, str] = {}
    for name in PAGES:
        if name.startswith("api/"):
            for found_name, rest in re.findall(
                r'id="rnnkit\.(\w+)" class="doc doc-heading">(.*?)(?=<h3|\Z)',
                articles(name),
                re.DOTALL,
            ):
                line = re.search(r'<p class="used-in".*?</p>', rest)
                entries[found_name] = f"{name}|{line[0] if line else ''}"
    assert set(entries) == {name for name in rnnkit.__all__ if not name.startswith("__")}

    users: dict[str, list[str]] = {name: [] for name in entries}
    for tutorial in TUTORIALS:
        stem = tutorial.split("/")[1]
        names = used((ROOT / "tutorials" / f"{stem}.py").read_text(encoding="utf-8"))
        lines = re.findall(r'<p class="made-with">(.*?)</p>', articles(tutorial), re.DOTALL)
        [line] = [one for one in lines if one.startswith("In the API: ")]
        assert set(re.findall(r'#rnnkit\.(\w+)"', line)) == names, stem
        for name in names:
            users[name].append(f"tutorials/{stem}")
    for name, entry in entries.items():
        source, _, line = entry.partition("|")
        assert links_of(line, source) == users[name], name
    assert sum(map(len, users.values())) > 50


# --- what a page loads ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_only_a_page_with_math_loads_katex(name: str) -> None:
    loads = [url for url in page(name).loads if "katex" in url]
    assert bool(loads) == ('class="arithmatex"' in page(name).text), loads


@pytest.mark.parametrize("name", [name for name in PAGES if name != "404.html"])
def test_a_picture_says_its_size(name: str) -> None:
    pictures = re.findall(r"<img [^>]*>", articles(name))
    assert [one for one in pictures if not re.search(r'width="\d+" height="\d+"', one)] == []


def test_there_are_pictures_and_math() -> None:
    assert Path(ROOT / "site").exists()
    assert sum("<img " in articles(name) for name in PAGES if name != "404.html") > 15
    assert sum('class="arithmatex"' in page(name).text for name in PAGES) > 3
