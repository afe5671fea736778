"""Every Python block of the README and the guides runs, prints what stands below it, and raises what it says.

Each section (from one heading to the next) starts with nothing imported, so that what a reader copies is complete.
A `text` block directly after a `python` block is what that block prints, or the error or warning it ends with.
`...` in it stands for anything, and line breaks count as spaces.
"""

import contextlib
import doctest
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rnnkit

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROBLEM = re.compile(r"^\w*(Error|Exception|Unsupported|Warning): ")


@dataclass
class Block:
    line: int
    code: str
    expected: str | None = None


@dataclass
class Section:
    page: Path
    title: str
    blocks: list[Block]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.title}"


def sections(page: Path) -> Iterator[Section]:
    """The sections of a page that hold Python, each with its blocks in order."""
    section = Section(page, "top", [])
    language: str | None = None
    body: list[str] = []
    start, follows = 0, False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"```\s*\{?\.?(\w*)", line)
        if language is None and fence:
            language, body, start = fence[1], [], number
        elif language is not None and line.startswith("```"):
            text = "\n".join(body)
            if language == "python":
                section.blocks.append(Block(start, text))
            elif language == "text" and follows:
                section.blocks[-1].expected = text
            follows, language = language == "python", None
        elif language is not None:
            body.append(line)
        elif line.startswith("#"):
            yield section
            section, follows = Section(page, line.lstrip("# "), []), False
        elif line.strip():
            follows = False
    assert language is None, f"{page}:{start}: a code fence that is never closed"
    yield section


def matches(expected: str, came: str) -> bool:
    """Whether `came` is `expected`, where `...` stands for anything and any white space is a space."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    return re.fullmatch(r"\s?.*?\s?".join(parts).strip(), " ".join(came.split())) is not None


def run(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Run one block; what it printed, or the error or the warning it ended with."""
    printed = io.StringIO()
    program = compile("\n" * block.line + block.code, str(page), "exec")
    problem = block.expected is not None and PROBLEM.match(block.expected) is not None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(program, namespace)
        except Exception as error:
            if not problem:
                raise
            return f"{type(error).__name__}: {error}"
    if caught:
        warning = f"{caught[0].category.__name__}: {caught[0].message}"
        assert problem, f"{page}:{block.line} warns, and the page does not say so: {warning}"
        return warning
    return printed.getvalue()


SECTIONS = [
    section for page in PAGES if page.exists() for section in sections(page) if section.blocks
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_code_of_a_section_runs(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in section.blocks:
        came = run(block, section.page, namespace)
        if block.expected is not None:
            where = f"{section.page.relative_to(ROOT)}:{block.line}"
            assert matches(block.expected, came), (
                f"{where} says\n{block.expected}\nand gives\n{came}"
            )


def test_the_reader_of_pages_sees_a_wrong_number(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n## B\n```python\n1 / 0\n```\n```text\nOSError: x\n```\n"
    )
    a, b = [section.blocks[0] for section in sections(page) if section.blocks]
    assert run(a, page, {}) == "2\n"
    assert not matches("3", "2\n") and matches("2", "2\n")
    assert not matches(b.expected or "", run(b, page, {}))
    assert matches("ZeroDivisionError: ...", run(b, page, {}))


def test_the_list_of_questions_has_each_one_in_its_order() -> None:
    pages = ROOT / "docs" / "faq"
    listed: list[tuple[str, ...]] = re.findall(
        r"^- \[(.+?)\]\((\w+)\.md#([\w-]+)\)$", (pages / "index.md").read_text(), re.MULTILINE
    )
    asked: list[tuple[str, ...]] = []
    for page in ("practice", "models", "data", "training", "use"):
        for question, anchor in re.findall(
            r"^### (.+) \{ #([\w-]+) \}$", (pages / f"{page}.md").read_text(), re.MULTILINE
        ):
            asked.append((question, page, anchor))
    assert len(asked) > 45 and listed == asked


def examples() -> Iterator[doctest.DocTest]:
    """The examples of all public docstrings, each with nothing imported."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in rnnkit.__all__:
        value = getattr(rnnkit, name)
        if callable(value):
            yield from finder.find(value, f"rnnkit.{name}", module=False, globs={})


EXAMPLES = [test for test in examples() if test.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_of_a_docstring_runs_by_itself(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False
    )
    failed = runner.run(example, out=said.append).failed
    assert not failed, "".join(said)


def test_every_public_name_has_an_example() -> None:
    shown = {example.name.removeprefix("rnnkit.") for example in EXAMPLES}
    public = {name for name in rnnkit.__all__ if callable(getattr(rnnkit, name))}
    assert public - shown == set()


API = {
    page.stem: re.findall(r"^::: rnnkit\.(\w+)$", page.read_text(), re.MULTILINE)
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
}


def test_the_api_pages_list_what_the_package_exports() -> None:
    listed = [name for names in API.values() for name in names]
    assert len(listed) == len(set(listed)), "a name stands on two API pages"
    assert sorted(listed) == sorted(name for name in rnnkit.__all__ if not name.startswith("__"))


@pytest.mark.parametrize("page", sorted(set(API) - {"index"}))
def test_the_api_pages_follow_the_rooms(page: str) -> None:
    parts = {"callbacks": "training", "learner": "training", "samplers": "generation"}
    parts["export"] = "models"
    room = parts.get(page, page)
    for name in API[page]:
        assert getattr(rnnkit, name).__module__.split(".")[1] == room, name


def test_no_section_of_an_api_page_is_called_like_a_name() -> None:
    """The two would be landmarks of one name in the table of contents."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        titles = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert not set(titles) & set(rnnkit.__all__), page.name


def test_the_api_index_names_every_name_once() -> None:
    table = (ROOT / "docs" / "api" / "index.md").read_text().partition("\n## ")[0]
    named = re.findall(r"\[rnnkit\.(\w+)\]", table)
    assert sorted(named) == sorted(name for names in API.values() for name in names)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "faq").glob("[!i]*.md")), ids=str)
def test_an_answer_of_the_faq_has_three_sentences_at_most(page: Path) -> None:
    for entry in page.read_text().split("\n### ")[1:]:
        title, answer = entry.split("\n\n")[:2]
        words = re.sub(r"`[^`]*`|\]\([^)]*\)|\]\[[^]]*\]", "x", answer)
        sentences = re.findall(r"[.?!](?=\s+[A-Zx*[]|$)", words)
        assert len(sentences) <= 3, f"{title}: {len(sentences)} sentences"
