"""The road from a tutorial to its page: what it shows, what it refuses, and when it runs again."""

import base64
import doctest
import importlib
import json
import logging
import os
import re
import struct
import subprocess
import zipfile
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.formatters import HTMLFormatter
from IPython.display import Audio
from markdown import markdown as html_of
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from road import run
from road.claims import claims_of, warnings
from road.clean import clean, masked
from road.download import Origin, download
from road.gallery import gallery, parts_of
from road.header import read
from road.install import name_wheel, pins, wheel_of
from road.outputs import framed
from road.page import Page, to_page
from road.pictures import size_of, sized
from road.playground import model_files
from road.source import digest, notebook_of, target
from road.used import User, api_of, with_users

ROOT = Path(__file__).resolve().parent.parent
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
DRAWS = f"from IPython.display import SVG, display\n\ndisplay(SVG('{SVG}'))\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A site of one page and a package of one function, on the road of this repository."""
    for folder in ("docs", "tutorials", "rnnkit"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rnnkit" / "__init__.py").touch()
    (tmp_path / "rnnkit" / "losses.py").write_text(
        'def half(x):\n    """Half."""\n    return x / 2\n'
    )
    (tmp_path / "docs" / "index.md").write_text(
        "# Home\n\n## Layout\n\n[The tutorial](../tutorials/01_a.py)\n"
    )
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: test\n"
        "site_url: !ENV [RNNKIT_SITE_URL, '']\n"
        "theme: mkdocs\n"
        f"hooks: [{ROOT}/docs/_hooks/events.py]\n"
        "plugins: [autorefs, {mkdocs-jupyter: {execute: false, cache: false, include: ['tutorials/*.ipynb']}}]\n"
        "markdown_extensions: [admonition, attr_list, pymdownx.details, pymdownx.superfences, "
        "{pymdownx.quotes: {callouts: true}}]\n"
        "validation: {links: {anchors: warn, unrecognized_links: warn, not_found: warn}}\n"
    )
    return tmp_path


def write(project: Path, text: str, name: str = "01_a") -> Path:
    path = project / "tutorials" / f"{name}.py"
    path.write_text(text)
    return path


def strict_build(project: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of a strict build; it must fail exactly where there are any."""
    with caplog.at_level(logging.WARNING):
        try:
            build(
                load_config(
                    str(project / "mkdocs.yml"), strict=True, site_dir=str(project / "site")
                )
            )
        except Abort:
            assert caplog.messages
        else:
            assert not caplog.messages
    return caplog.messages


def notebook(*cells: Any) -> Any:
    return nbformat.v4.new_notebook(cells=list(cells))


def markdown(text: str) -> Any:
    return nbformat.v4.new_markdown_cell(text)


def code(source: str, *outputs: Any, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def shown(data: dict[str, str]) -> Any:
    return nbformat.v4.new_output("display_data", data)


def stream(text: str, name: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=name, text=text)


def page(*cells: Any) -> Page:
    return to_page(notebook(*cells), "01_a")


# --- what fails, with the name of the file and the cell ---------------------------------------------------------------


def test_a_tutorial_that_raises_that_is_wrong_or_that_draws_without_alt_text_fails(
    project: Path,
) -> None:
    title = "# %% [markdown]\n# # Title\n\n# %%\n"
    write(project, title + "x = 1\n\n# %%\nint('one')\n", "01_raises")
    write(project, title + "assert 1 + 1 == 3, 'one and one are two'\n", "02_wrong")
    write(project, title + DRAWS, "03_draws")
    write(project, title + "1 + 1\n", "04_right")
    problems = sorted(run.update(project))
    assert [problem.partition(": ")[0] for problem in problems] == [
        "tutorials/01_raises.py:7, cell 3",
        "tutorials/02_wrong.py:4, cell 2",
        "tutorials/03_draws.py:4, cell 2",
    ]
    assert "ValueError: invalid literal" in problems[0]
    assert "AssertionError: one and one are two" in problems[1]
    assert "no alt text" in problems[2]
    kept = [path.name for path in (project / "docs" / "tutorials").iterdir()]
    assert kept == ["04_right.ipynb"], "what failed must not count as fresh"
    assert not list((project / ".run").rglob("*.ipynb"))


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("[x](../docs/nowhere.md)", "its link leads to nowhere.md, which does not exist"),
        (
            "[x](../docs/index.md#nowhere)",
            "its link leads to #nowhere, which index.md does not have",
        ),
        (
            "[x](09_nowhere.py)",
            "its link leads to tutorials/09_nowhere.ipynb, which does not exist",
        ),
        ("[x](#nowhere)", "its link leads to #nowhere, which its page does not have"),
        ("[x][rnnkit.nowhere]", "its reference [rnnkit.nowhere] names nothing in the API"),
        ("[x](../rnnkit/losses.py)", "its link ../rnnkit/losses.py leads to no page"),
    ],
)
def test_a_dead_link_fails_the_strict_build(
    project: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    link: str,
    message: str,
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    keep(project, write(project, f"# %% [markdown]\n# # Title\n\n# %% [markdown]\n# See {link}.\n"))
    messages = strict_build(project, caplog)
    assert any(text.startswith(f"tutorials/01_a.py:4, cell 2: {message}") for text in messages), (
        messages
    )


def keep(project: Path, source: Path) -> None:
    """The notebook of a tutorial that holds no code, kept as if it had run."""
    (project / "docs" / "tutorials").mkdir(exist_ok=True)
    nbformat.write(notebook_of(source), target(project, source))


def test_a_problem_in_a_kept_notebook_fails_the_strict_build(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    keep(project, write(project, "# %% [markdown]\n# # Title\n#\n# !!! note\n"))
    messages = strict_build(project, caplog)
    assert messages == [
        "tutorials/01_a.py:1, cell 1: '!!!' is raw text in Jupyter: write an alert, a tag or a link"
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            code("x", shown({"application/vnd.jupyter.widget-view+json": "{}", "text/plain": "W"})),
            "cannot be shown",
        ),
        (code("x", shown({"text/html": "<script>1</script>"})), "cannot be shown on a page"),
        (code("x", shown({"text/html": str(HTMLFormatter()(Audio(b"RIFF")))})), "no alt text"),
        (code("x", tags=["raises-exception"]), "raised nothing"),
        (
            code("x", nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[])),
            "it raised E: v",
        ),
        (markdown("A footnote[^1]."), "raw text in Jupyter"),
        (markdown("A button\n{ .md-button }"), "raw text in Jupyter"),
    ],
)
def test_what_a_page_cannot_show_is_refused(cell: Any, message: str) -> None:
    (problem,) = page(markdown("# Title"), cell).problems
    assert problem.startswith("tutorials/01_a.py, cell 2: ")
    assert message in problem


# --- when a tutorial runs --------------------------------------------------------------------------------------------


def test_a_tutorial_runs_once_and_again_when_its_code_or_the_package_changes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(
        project,
        "# %% [markdown]\n# # Title\n\n# %%\nfrom rnnkit.losses import half\n\nprint(half(6))\n",
    )
    losses = project / "rnnkit" / "losses.py"

    def stale() -> str:
        return run.staleness(project, source, run.surroundings(project))

    assert stale() == "new"
    assert run.update(project) == []
    assert "01_a: passed" in capsys.readouterr().out
    assert stale() == ""
    assert "3.0" in page(*nbformat.read(target(project, source), 4).cells).markdown
    first = target(project, source).read_bytes()
    assert run.update(project) == []
    assert "1 fresh, 0 to run" in capsys.readouterr().out
    assert target(project, source).read_bytes() == first

    losses.write_text(
        '"""Losses."""\n\n\ndef half(x):\n    """One half."""\n    return x / 2  # of it\n'
    )
    assert stale() == "", "a docstring or a comment is not code"
    losses.write_text(losses.read_text().replace("x / 2", "x / 3"))
    assert stale() == "rnnkit, Python or torch changed"
    losses.write_text(losses.read_text().replace("x / 3", "x / 2"))
    assert stale() == ""
    (project / "rnnkit" / "style.mplstyle").write_text("lines.linewidth: 2\n")
    assert stale() == "rnnkit, Python or torch changed"
    source.write_text(source.read_text().replace("Title", "Name"))
    assert stale() == "tutorial changed"


@pytest.mark.parametrize("changed", ["torch", "python"])
def test_another_torch_or_python_makes_stale(
    project: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = run.surroundings(project)
    assert run.surroundings(project) == before
    if changed == "torch":
        monkeypatch.setattr(run, "version", lambda name: "0.0")
    else:
        monkeypatch.setattr(run.sys, "version_info", type("V", (), {"major": 3, "minor": 99}))
    assert run.surroundings(project) != before


def test_a_run_that_is_interrupted_leaves_nothing_fresh(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(project, "# %%\n1 + 1\n")

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(project, source, run.surroundings(project))
    assert run.staleness(project, source, run.surroundings(project)) == "new"
    assert not list((project / ".run").rglob("*.ipynb"))


def test_what_a_tutorial_saves_is_kept_with_it_and_goes_to_no_reader(project: Path) -> None:
    values = "{'weights': {'w': torch.arange(3.0) / 3}, 'mean': torch.tensor(0.1), 'names': ['a']}"
    source = write(
        project,
        f"# %% [markdown]\n# # Title\n\n# %%\nimport torch\ntorch.save({values}, 'model.pt')\n",
    )
    assert run.update(project) == []
    assert not list((project / ".run").rglob("*.pt"))
    executed = nbformat.read(target(project, source), 4)
    ((path, content),) = model_files(executed).items()
    assert path == "playground/model.safetensors"

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    numbers = content[8 + length :]
    assert length % 8 == 0
    assert header["__metadata__"] == {"names": '["a"]'}
    assert header["w"] == {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}
    assert header["mean"] == {"dtype": "F32", "shape": [], "data_offsets": [6, 10]}
    assert struct.unpack("<3ef", numbers) == pytest.approx([0, 1 / 3, 2 / 3, 0.1], rel=1e-3)
    assert "saved" not in download(executed, "outputs", lambda link: None).metadata["rnnkit"]


def test_while_serving_only_an_edited_tutorial_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(run, "run", lambda root, source, library: ran.append(source.stem) or [])
    for name in ("01_a", "02_b"):
        source = write(project, "# %%\n1 + 1\n", name)
        made = notebook_of(source)
        made.metadata["rnnkit"] = {
            "source": digest(source.read_text()),
            "library": "of another day",
        }
        (project / "docs" / "tutorials").mkdir(exist_ok=True)
        nbformat.write(made, target(project, source))
    write(project, "# %%\n2 + 2\n", "02_b")
    run.update(project, edited_only=True)
    assert ran == ["02_b"]


def test_a_notebook_whose_tutorial_is_gone_goes(project: Path) -> None:
    keep(project, write(project, "# %%\n", "01_gone"))
    (project / "tutorials" / "01_gone.py").unlink()
    run.update(project)
    assert not list((project / "docs" / "tutorials").glob("*.ipynb"))


def test_a_conversion_gives_the_same_bytes_every_time(project: Path) -> None:
    source = write(project, "# %% [markdown]\n# # Title\n\n# %%\n1 + 1\n")
    made = notebook_of(source)
    assert nbformat.writes(made) == nbformat.writes(notebook_of(source))
    assert [cell.id for cell in made.cells] == ["cell-0", "cell-1"]


# --- what a page shows -----------------------------------------------------------------------------------------------


def test_an_alert_becomes_an_admonition_and_a_quote_stays_one(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    prose = "Before.\n> [!WARNING]\n> Take `care`.\n>\n> Twice.\n\n> A quote."
    lines = "\n".join(f"# {line}" for line in prose.split("\n"))
    keep(project, write(project, f"# %% [markdown]\n# # Title\n#\n{lines}\n"))
    assert strict_build(project, caplog) == []
    html = (project / "site" / "tutorials" / "01_a" / "index.html").read_text()
    assert (
        '<div class="admonition warning">\n<p class="admonition-title">Warning</p>\n'
        "<p>Take <code>care</code>.</p>\n<p>Twice.</p>\n</div>" in html
    )
    assert "<blockquote>\n<p>A quote.</p>\n</blockquote>" in html


def test_solutions_in_a_row_are_folded_into_one() -> None:
    cells = [
        code("1", tags=["solution"]),
        nbformat.v4.new_markdown_cell("Because.", metadata={"tags": ["solution"]}),
        code("2", stream("two\n"), tags=["solution"]),
        markdown("After."),
    ]
    text = page(*cells).markdown
    assert text.count("???") == 1
    folded = text.partition('??? example "Solution"\n\n')[2].partition("\n\nAfter.")[0]
    assert all(line.startswith("    ") for line in folded.splitlines() if line)
    assert "two" in folded
    assert "Because." in folded


def test_a_hidden_input_is_closed_code_under_what_it_shows() -> None:
    drawn = code("draw()", shown({"image/svg+xml": SVG}), alt="A", tags=["hide-input"])
    text = page(drawn).markdown
    assert text.index("figure-1.svg") < text.index('??? code "Code of this figure"')
    assert text.endswith("    ``` { .python .input }\n    draw()\n    ```\n")
    text = page(code("print(1)", stream("1\n"), tags=["hide-input"])).markdown
    assert text.startswith("``` { .text .output .no-copy }\n1\n```")
    assert '??? code "Code of this output"' in text


def test_checks_in_a_row_are_folded_and_counted() -> None:
    text = page(
        code("assert a\nfor b in c:\n    torch.testing.assert_close(b, b)", tags=["check"]),
        code("assert d", tags=["check"]),
        markdown("After."),
        code("assert e", tags=["check"]),
    ).markdown
    assert re.findall(r"^\?\?\?.*", text, re.M) == [
        '??? check "3 checks passed"',
        '??? check "1 check passed"',
    ]
    assert text.index("assert d") < text.index("After.") < text.index("assert e")


def test_a_fold_is_closed_with_what_it_prints_and_can_have_a_name() -> None:
    text = page(
        code("import a", stream("printed\n"), tags=["fold", "hide-input"]),
        markdown("Between."),
        code("import b", tags=["fold"], summary='What "b" needs'),
    ).markdown
    first, _, second = text.partition("Between.")
    assert first.startswith('??? fold "Set-up"\n\n    ``` { .python .input }\n    import a')
    assert "    printed" in first
    assert "??? fold \"What 'b' needs\"" in second


def test_evidence_is_closed_under_headings_that_stay_open() -> None:
    tags = {"tags": ["evidence"]}
    text = page(
        markdown("Before."),
        nbformat.v4.new_markdown_cell("## Ten seeds\n\nThey agree.", metadata=tags),
        code("draw()", shown({"image/svg+xml": SVG}), alt="A", tags=["evidence", "hide-input"]),
        code("assert a", tags=["evidence", "check"]),
        nbformat.v4.new_markdown_cell("### Another width", metadata=tags),
        code("run(9)", stream("nine\n"), **tags),
        markdown("After."),
    ).markdown
    open_lines = [line for line in text.splitlines() if line and not line.startswith("    ")]
    assert open_lines == [
        "Before.",
        "## Ten seeds",
        '??? evidence "Evidence"',
        "### Another width",
        '??? evidence "Evidence"',
        "After.",
    ]
    for inside in ("    They agree.", '    ??? code "Code', '    ??? check "1 check', "    nine"):
        assert inside in text


def test_a_hero_stands_under_the_title_and_in_its_place() -> None:
    hero = code("draw()", shown({"image/svg+xml": SVG}), alt="A", caption="C.", tags=["hero"])
    converted = page(markdown("# Title\n\nOne line.\n\nMore."), code("x = 1"), hero)
    figure = (
        "[![A](01_a/figure-1.svg){ .figure%s }](01_a/figure-1.svg){ .enlarge }\n\nC.\n{ .caption }"
    )
    assert converted.whole("STRIP", "FOOT").startswith(
        f"# Title\n\nOne line.\n\nSTRIP\n\n{figure % ''}\n\nMore.\n\n"
    )
    assert converted.markdown.endswith(f"draw()\n```\n\n{figure % ' loading=lazy'}\n")
    assert list(converted.files) == ["01_a/figure-1.svg"]
    assert not converted.problems
    second = code("draw(2)", shown({"image/svg+xml": SVG}), alt="A", tags=["hero"])
    (problem,) = page(hero, second).problems
    assert "second hero" in problem
    (problem,) = page(code("x", tags=["hero"])).problems
    assert "shows nothing" in problem


def test_no_code_is_dropped_or_moved() -> None:
    tags = [
        "any",
        "hide-input",
        "check",
        "fold",
        "evidence",
        "solution",
        "hero",
        "raises-exception",
    ]
    cells = [code(f"step({i})", stream("s\n"), tags=[tag]) for i, tag in enumerate(tags)]
    assert re.findall(r"step\((\d)\)", page(*cells).markdown) == list("01234567")


HEADER = """# ---
# rnnkit:
#   needs: two cores
#   minutes: 10
#   prerequisites: "[state](../docs/index.md#layout): what it is"
#   learn: [one thing, another]
# ---

"""


def test_a_header_becomes_a_box_that_links_are_checked_in(project: Path) -> None:
    source = write(project, f"{HEADER}# %% [markdown]\n# # Title\n#\n# Line.\n\n# %%\n1 + 1\n")
    made = notebook_of(source)
    assert [cell.source for cell in made.cells] == ["# Title\n\nLine.", "1 + 1"]
    assert [cell.metadata["line"] for cell in made.cells] == [9, 14]
    converted = to_page(made, "01_a")
    assert converted.header.minutes == 10
    assert converted.markdown.startswith(
        '# Title\n\nLine.\n\n!!! glance ""\n\n    **You will learn**\n\n    - one thing\n    - another\n\n'
        "    **You should know** [state](../index.md#layout): what it is\n\n    **You need** two cores\n\n"
    )
    assert tuple(converted.links[0].link) == ("url", "index.md#layout")
    empty = download(made, "empty", lambda link: None)
    assert empty.cells[1].source.startswith("**You will learn**\n\n- one thing")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rnnkit: {minutes: ten}", "minutes is a whole number, not ten"),
        ("rnnkit: {minutes: 1, time: 2}", "it knows no time"),
        ("rnnkit: [", "it is no YAML: "),
        ("rnnkit", "it is no YAML: "),
    ],
)
def test_a_header_that_is_wrong_is_refused(text: str, problem: str) -> None:
    (found,) = read(text).problems
    assert found.startswith(problem)
    made = notebook(markdown("# Title"))
    made.metadata["rnnkit"] = {"header": text}
    assert to_page(made, "01_a").problems == [f"tutorials/01_a.py, its header: {found}"]


def test_a_picture_and_its_caption_become_one_figure() -> None:
    link = '<a class="enlarge" href="f.svg"><img alt="A" class="figure" src="f.svg" /></a>'
    assert framed(f'<p>{link}</p>\n<p class="caption">A <em>b</em>.</p>\n<p>C</p>') == (
        f"<figure>{link}<figcaption>A <em>b</em>.</figcaption></figure>\n<p>C</p>"
    )
    assert framed(f"<p>{link}</p>\n<p>C</p>") == f"<figure>{link}</figure>\n<p>C</p>"


def test_a_sound_becomes_a_player_that_is_named_and_does_not_start_by_itself() -> None:
    """What IPython shows for `Audio(..., autoplay=True)`; only its sound is taken over."""
    heard = str(HTMLFormatter()(Audio(b"RIFF", autoplay=True)))
    cell = code("Audio('a.wav')", shown({"text/html": heard}), alt='A "fifth" [c, g]', caption="C.")
    made = page(markdown("# Title"), cell)
    assert made.problems == []
    assert made.files == {"01_a/sound-1.wav": b"RIFF"}
    html = framed(html_of(made.markdown, extensions=["attr_list"]))
    assert html.endswith(
        '<figure><audio controls preload="none" src="01_a/sound-1.wav"'
        ' aria-label="A &quot;fifth&quot; [c, g]"></audio><figcaption>C.</figcaption></figure>'
    )


def test_an_error_that_is_the_lesson_is_shown_without_its_traceback() -> None:
    error = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="no", traceback=["\x1b[31m/home/x.py"]
    )
    converted = page(code("f()", error, tags=["raises-exception"]))
    assert not converted.problems
    assert "``` { .text .output .no-copy .error }\nValueError: no\n```" in converted.markdown


def test_a_figure_is_a_file_with_alt_text() -> None:
    converted = page(
        code(
            "draw()", shown({"image/svg+xml": SVG, "text/plain": "<Figure>"}), alt="A [line] rises."
        )
    )
    assert "![A \\[line\\] rises.](01_a/figure-1.svg){ .figure loading=lazy }" in converted.markdown
    assert converted.files == {"01_a/figure-1.svg": SVG.encode()}


def test_code_that_holds_fences_keeps_them() -> None:
    text = page(code('print("""```""")', stream("```\n"))).markdown
    assert "```` { .python .input }" in text
    assert "```` { .text .output .no-copy }\n```\n````" in text


@pytest.mark.parametrize(
    ("came", "stays"),
    [
        (
            "\r  0%|   | 0/3 [00:00<?, ?it/s]\r100%|###| 3/3 [00:01<00:00, 31.2it/s]\n",
            "100%|###| 3/3\n",
        ),
        ("100%|###| 3/3 [00:01<00:00,  1.2s/it, loss=0.5]", "100%|###| 3/3 [loss=0.5]"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("31.2 it/s", "… it/s"),
        ("<object at 0x7f12ab34cd56>", "<object at 0x…>"),
        (
            "/home/me/.venv/lib/python3.11/site-packages/torch/x.py:3: W",
            "site-packages/torch/x.py:3: W",
        ),
        ("/tmp/ipykernel_12/345.py:3: W", "<cell>: W"),
        ("/tmp/tmpab12_x/model.pt", "/tmp/…/model.pt"),
        ("a list [] stays", "a list [] stays"),
        ("loss 0.123", "loss 0.123"),
    ],
)
def test_what_differs_between_runs_is_masked(came: str, stays: str) -> None:
    assert masked(came) == stays
    assert masked(stays) == stays


def test_pieces_of_a_stream_are_joined_before_they_are_masked() -> None:
    made = clean(
        notebook(code("x", stream("\r 1%| |", "stderr"), stream("\r100%|#| 1/1\n", "stderr")))
    )
    assert [output.text for output in made.cells[0].outputs] == ["100%|#| 1/1\n"]
    assert ".stderr" not in page(*made.cells).markdown, "a progress bar is not an error"
    assert ".stderr" in page(code("x", stream("UserWarning: no\n", "stderr"))).markdown


LINKS = (
    "[a](../docs/index.md#layout) [b](04_generate.py) ![c](../docs/assets/c.svg) [d][rnnkit.half] [`rnnkit.half`][]\n"
    'www: [e](https://example.org/x.md "T"), code `[f](../docs/f.md)`, math $h[t](x)$, <img src="../docs/g.svg">\n'
)


def test_links_of_the_source_tree_lead_to_pages() -> None:
    converted = page(markdown(LINKS))
    assert converted.markdown.strip() == (
        "[a](../index.md#layout) [b](04_generate.ipynb) ![c](../assets/c.svg) [d][rnnkit.half] [`rnnkit.half`][]\n"
        'www: [e](https://example.org/x.md "T"), code `[f](../docs/f.md)`, math $h[t](x)$, <img src="../g.svg">'
    )
    assert [tuple(found.link) for found in converted.links] == [
        ("url", "index.md#layout"),
        ("url", "tutorials/04_generate.ipynb"),
        ("url", "assets/c.svg"),
        ("ref", "rnnkit.half"),
        ("ref", "rnnkit.half"),
        ("url", "g.svg"),
    ]


def test_links_of_a_download_are_absolute_or_text() -> None:
    note = markdown("> [!NOTE]\n> See [a](../docs/a.md).")
    made = notebook(markdown(LINKS), note, code("1", stream("1"), tags=["solution"]))
    far = download(made, "empty", lambda link: f"https://site.test/{link.kind}/{link.to}")
    assert far.cells[0].source == (
        "[a](https://site.test/url/index.md#layout) [b](https://site.test/url/tutorials/04_generate.ipynb) "
        "![c](https://site.test/url/assets/c.svg) [d](https://site.test/ref/rnnkit.half) "
        "[`rnnkit.half`](https://site.test/ref/rnnkit.half)\n"
        'www: [e](https://example.org/x.md "T"), code `[f](../docs/f.md)`, math $h[t](x)$, '
        '<img src="https://site.test/url/g.svg">\n'
    )
    assert far.cells[1].source == "> **Note**\n>\n> See [a](https://site.test/url/a.md)."
    assert far.cells[2].outputs == []
    assert far.cells[2].metadata == {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    near = download(made, "outputs", lambda link: None)
    assert near.cells[0].source.startswith(
        "a b *(c)* d `rnnkit.half`\nwww: [e](https://example.org/x.md"
    )
    assert near.cells[2].outputs
    assert made.cells[0].source == LINKS, "the notebook itself is not changed"


def test_the_exercises_have_empty_answers() -> None:
    answer = {"tags": ["solution"]}
    made = notebook(
        markdown("**1.** How?"),
        code("f(1)", stream("one"), **answer),
        nbformat.v4.new_markdown_cell("So.", metadata=answer),
        markdown("**2.** And?"),
        code("f(2)", **answer),
    )
    exercises = download(made, "exercises", lambda link: None)
    empty = "# Your answer"
    assert [cell.source for cell in exercises.cells] == ["**1.** How?", empty, "**2.** And?", empty]
    assert not any(cell.get("outputs") or cell.metadata for cell in exercises.cells)
    assert nbformat.writes(exercises) == nbformat.writes(
        download(made, "exercises", lambda link: None)
    )


def test_a_drawing_is_attached_as_a_bitmap_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("both.svg", "both.png", "alone.svg"):
        (tmp_path / "assets" / name).write_text(name)
    text = (
        "![a](../docs/assets/both.svg) ![b](../docs/assets/alone.svg) ![c](../docs/assets/no.svg)"
    )
    made = download(
        notebook(markdown(text)), "empty", lambda link: "https://x.test", Origin(docs=tmp_path)
    )
    (cell,) = made.cells
    assert (
        cell.source == "![a](attachment:both.png) ![b](attachment:alone.svg) ![c](https://x.test)"
    )
    assert {name: list(data) for name, data in cell.attachments.items()} == {
        "both.png": ["image/png"],
        "alone.svg": ["image/svg+xml"],
    }
    assert base64.b64decode(cell.attachments["both.png"]["image/png"]) == b"both.png"
    nbformat.validate(made)


def test_a_download_says_where_it_is_from_and_what_it_ran_with() -> None:
    made = notebook(markdown("# Title"))
    made.metadata["rnnkit"] = {
        "rnnkit": "0.1",
        "python": "3.11.7",
        "pins": {"torch": "2.13.0"},
        "source": "a hash",
    }
    origin = Origin("01_a", "MIT License", page="https://x.test/01_a/")
    taken = download(made, "outputs", lambda link: None, origin)
    assert taken.metadata.rnnkit == {
        "tutorial": "01_a",
        "page": "https://x.test/01_a/",
        "license": "MIT License",
        "version": "0.1",
        "python": "3.11.7",
        "pins": {"torch": "2.13.0"},
    }
    assert taken.cells[-1].source == (
        "---\n\nA tutorial of rnnkit 0.1; its page is <https://x.test/01_a/>; MIT License.\n\n"
        "It ran with Python 3.11.7 and these versions:\n\n```text\ntorch==2.13.0\n```"
    )


@pytest.mark.parametrize(
    ("line", "near", "far"),
    [
        (
            '%pip install "rnnkit[plot]" scikit-learn',
            '%pip install "./r.whl[plot]" scikit-learn',
            '%pip install "rnnkit[plot] @ https://x.test/a/r.whl" scikit-learn',
        ),
        (
            "%pip install rnnkit",
            '%pip install "./r.whl"',
            '%pip install "rnnkit @ https://x.test/a/r.whl"',
        ),
        ("%pip install rnnkit-else", "%pip install rnnkit-else", "%pip install rnnkit-else"),
    ],
)
def test_the_install_line_names_the_wheel(line: str, near: str, far: str) -> None:
    for folder, wanted in ((None, near), ("https://x.test/a/", far)):
        made = notebook(markdown(line), code(line), code("import rnnkit"))
        name_wheel(made, "r.whl", folder)
        assert [cell.source for cell in made.cells] == [line, wanted, "import rnnkit"]


def test_pins_are_of_what_the_install_line_names() -> None:
    found = pins(notebook(code('%pip install "rnnkit[plot]" scikit-learn not-there')))
    assert list(found) == ["matplotlib", "scikit-learn", "torch"]
    assert found["torch"] == run.version("torch").partition("+")[0]
    assert list(pins(notebook(code("import rnnkit")))) == ["torch"]


def test_a_source_tree_without_a_package_has_no_wheel(project: Path) -> None:
    assert wheel_of(project) is None


def test_a_wheel_lies_beside_each_notebook_and_its_line_names_it(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "rnnkit"\nversion = "0.7"\nrequires-python = ">=3.11"\n'
    )
    install = '# %% tags=["skip-execution"]\n# %pip install "rnnkit[plot]"\n'
    keep(project, write(project, f"# %% [markdown]\n# # Title\n\n{install}"))
    wheel = "rnnkit-0.7-py3-none-any.whl"
    for address, line in (
        ("", f'"./{wheel}[plot]"'),
        ("https://x.test/", f'"rnnkit[plot] @ https://x.test/tutorials/01_a/{wheel}"'),
    ):
        monkeypatch.setenv("RNNKIT_SITE_URL", address)
        assert strict_build(project, caplog) == []
        site = project / "site" / "tutorials" / "01_a"
        assert zipfile.is_zipfile(site / wheel)
        html = (site / "index.html").read_text()
        assert f'href="{wheel}"' in html
        assert line in unescape(re.sub("<[^>]*>", "", html))
        for ending in ("", "_empty", "_exercises"):
            made = nbformat.read(site / f"01_a{ending}.ipynb", 4)
            assert made.cells[1].source == f"%pip install {line}"


def test_a_built_page_has_its_parts(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_SITE_URL", "https://site.test/docs/")
    monkeypatch.setenv("RNNKIT_COLAB_URL", "https://colab.test/site")
    text = "# %% [markdown]\n# # Title\n# [Home](../docs/index.md#layout) [torch.nn.LSTM][]\n\n"
    write(project, f'{text}# %% alt="A square."\n{DRAWS}\n# %% tags=["solution"]\nprint(7)\n')
    assert strict_build(project, caplog) == []
    site = project / "site" / "tutorials" / "01_a"
    html = (site / "index.html").read_text()
    for part in (
        'href="../../#layout"',
        "torch.nn.LSTM.html",
        '<img alt="A square." class="figure" loading="lazy" src="figure-1.svg" width="9" height="9">',
        '<details class="example">',
        'href="01_a.ipynb"',
        'href="01_a_empty.ipynb"',
        'href="01_a_exercises.ipynb"',
        'href="https://colab.test/site/tutorials/01_a/01_a.ipynb"',
        f"torch {run.version('torch')}, Python",
        "</details>",
    ):
        assert part in html, part
    assert (site / "figure-1.svg").read_text().strip() == SVG
    full, empty = (nbformat.read(site / name, 4) for name in ("01_a.ipynb", "01_a_empty.ipynb"))
    assert (
        "[Home](https://site.test/docs/#layout) [torch.nn.LSTM](https://docs.pytorch.org/"
        in full.cells[0].source
    )
    assert full.cells[2].outputs[0].text == "7\n"
    assert f"torch=={run.version('torch').partition('+')[0]}" in full.cells[-1].source
    assert empty.cells[2].outputs == []
    assert 'href="tutorials/01_a/"' in (project / "site" / "index.html").read_text()


def test_a_page_is_edited_where_the_tutorial_lies(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    keep(project, write(project, "# %% [markdown]\n# # Title\n"))
    with (project / "mkdocs.yml").open("a") as config:
        config.write("repo_url: https://github.com/someone/rnnkit\nedit_uri: edit/main/docs/\n")
    assert strict_build(project, caplog) == []
    html = (project / "site" / "tutorials" / "01_a" / "index.html").read_text()
    assert "https://github.com/someone/rnnkit/edit/main/tutorials/01_a.py" in html


def test_without_an_address_no_link_is_made_up(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RNNKIT_SITE_URL", "RNNKIT_COLAB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    keep(project, write(project, "# %% [markdown]\n# # Title\n# [Home](../docs/index.md)\n"))
    assert strict_build(project, caplog) == []
    assert "olab" not in (project / "site" / "tutorials" / "01_a" / "index.html").read_text()
    made = nbformat.read(project / "site" / "tutorials" / "01_a" / "01_a.ipynb", 4)
    assert made.cells[0].source == "# Title\nHome"


# --- what is claimed -------------------------------------------------------------------------------------------------


CLAIMS = """# %% [markdown]
# # Title
#
# ## Far

# %%
import torch
error, rows = 0.125, 7

assert error < 0.5, "the error is small"
assert rows == 7 and rows > 6

# %% [markdown]
# ## Near

# %%
for value in (0.5, 0.99, 0.7):
    assert 1.0 >= value
assert all(0.1 < x < 0.9 for x in (0.2, 0.5))
assert (torch.tensor([1.0, 3.0]) > 0.5).all()
assert "a" in "abc", "no number"
torch.testing.assert_close(torch.tensor(1.005), torch.tensor(1.0), rtol=0, atol=1e-2)

# %%
try:
    assert error > 0.5
except AssertionError:
    error = "said"
error

# %%
def check(x):
    assert x < 2.0

# %%
check(1.5)
"""


def test_what_a_tutorial_asserts_is_recorded_while_it_runs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(project, CLAIMS)
    assert run.update(project) == []
    made = nbformat.read(target(project, source), 4)
    found = [
        (
            c.section,
            c.said["text"],
            *(c.said.get(k) for k in ("measured", "sign", "bound", "margin")),
        )
        for c in claims_of(made, "01_a")
    ]
    close = "torch.testing.assert_close(torch.tensor(1.005), torch.tensor(1.0), rtol=0, atol=0.01)"
    assert found == [
        ("Far", "error < 0.5", 0.125, "<", 0.5, 0.75),
        ("Far", "rows == 7 and rows > 6", 7, "==", 7, None),
        ("Near", "1.0 >= value", 0.99, "<=", 1, 0.01),
        ("Near", "all((0.1 < x < 0.9 for x in (0.2, 0.5)))", 0.5, "<", 0.9, 0.4444),
        ("Near", "(torch.tensor([1.0, 3.0]) > 0.5).all()", 1, ">", 0.5, 1),
        ("Near", "'a' in 'abc'", None, None, None, None),
        ("Near", close, 0.005, "<=", 0.01, 0.5),
        ("Near", "x < 2.0", 1.5, "<", 2, 0.25),
    ]
    (warning,) = warnings(made, "01_a")
    assert warning == (
        "tutorials/01_a.py:16, cell 4: only 1.0 % between 0.99 and 1: assert 1.0 >= value"
    )
    assert f"WARNING {warning}" in capsys.readouterr().out
    assert made.cells[4].outputs[0].data["text/plain"] == "'said'", "what is shown is as it was"
    assert not any(cell.get("outputs") for cell in made.cells if cell is not made.cells[4])
    assert "claims" not in nbformat.writes(download(made, "outputs", lambda link: None))


def test_the_page_of_claims_leads_to_their_cells(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_EXECUTE", "never")
    source = write(project, "# %% [markdown]\n# # Title\n#\n# ## Which `a`\n\n# %%\nassert x\n")
    made = notebook_of(source)
    near = {"measured": 1.9, "sign": "<", "bound": 2, "margin": 0.05}
    made.cells[1].metadata["claims"] = [
        {"text": "a | b < 2", "message": "a [b]", **near},
        {"text": "`x`"},
    ]
    keep(project, source)
    nbformat.write(made, target(project, source))
    assert strict_build(project, caplog) == []
    overview = (project / "site" / "claims" / "index.html").read_text()
    table = overview.partition("</table>")[0]
    row = [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", table)]
    assert row == ["Title", "2", "1", "1"]
    assert 'href="01_a/"' in overview
    html = (project / "site" / "claims" / "01_a" / "index.html").read_text()
    text = [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall("<td>(.*?)</td>", html)]
    assert text[:5] == ["a | b < 2a [b]", "1.9", "<\xa02", "5 %, thin", "Which a"]
    assert text[5:10] == ["`x`", "", "", "", "Which a"]
    assert 'href="../../tutorials/01_a/#cell-1"' in html
    assert 'id="cell-1"' in (project / "site" / "tutorials" / "01_a" / "index.html").read_text()
    assert "2 claims, 1 of them thin." in html


# --- what the build knows of all of them ------------------------------------------------------------------------------


def test_a_picture_says_its_size_where_its_file_does() -> None:
    """So that nothing moves when it comes."""
    dot = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAACCAIAAAAW4yFwAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
    )
    files = {"a.svg": SVG.encode(), "b.png": dot, "c.svg": b'<svg viewBox="0 0 1 1"/>'}
    assert size_of(dot) == (1, 2)
    assert sized('<img alt="x" src="a.svg" />', files.get) == (
        '<img alt="x" src="a.svg" width="9" height="9">'
    )
    assert 'width="1" height="2"' in sized('<img src="b.png">', files.get)
    for as_it_was in ('<img src="c.svg">', '<img src="d.svg">', '<img width="3" src="a.svg">'):
        assert sized(as_it_was, files.get) == as_it_was


def test_all_tutorials_stand_on_one_page_by_their_part_of_the_navigation() -> None:
    header = read("rnnkit: {minutes: 3, prerequisites: 'a loop, [b](02_b.py)', description: Said.}")
    picture = "[![A *line*](01_a/figure-1.svg){ .figure }](01_a/figure-1.svg){ .enlarge }"
    a = Page("01_a", header, "# First\n\nA line.", hero=picture)
    b = Page("02_b", opening="# Second", hero="``` { .text .output }\n1\n2\n```")
    nav = [{"Home": "index.md"}, {"Lessons": ["x.md", {"One": ["a"]}, {"Two": ["b", "y.md"]}]}]
    parts = parts_of(nav, {"a": a, "b": b})
    assert parts == {"One": [a], "Two": [b]}

    made = gallery(parts)
    assert made.index("## One") < made.index("(01_a.ipynb)") < made.index("## Two")
    assert "**[01 First](01_a.ipynb)**\n\nSaid.\n\n3 minutes. " in made
    assert "a loop, [b](02_b.ipynb)." in made
    assert "![A *line*](01_a/figure-1.svg){ .thumbnail loading=lazy }" in made
    assert "``` { .text .thumbnail .no-copy }\n1\n2\n```" in made
    assert "2 tutorials, 3 minutes" in made


def test_a_name_of_the_api_says_who_uses_it_under_its_first_sentence() -> None:
    entry = (
        '<h3 id="rnnkit.{0}" class="doc doc-heading">{0}</h3>'
        '<div class="doc doc-contents first">\n<p>What it is.</p>\n<p>More.</p></div>'
    )
    users = {"b": [User("01", 'A "b"', "../a/"), User("02", "B", "../b/")]}
    a, b = with_users(entry.format("a") + "|" + entry.format("b"), users).split("|")
    assert a == entry.format("a")
    first, _, rest = b.partition("<p>More")
    assert "Used in: " in first and '<a href="../a/" title="A &quot;b&quot;">01</a>, <a' in first
    assert rest == ".</p></div>"
    assert api_of([]) == "" and "[a][rnnkit.a], [b][rnnkit.b]." in api_of(["a", "b"])


# --- this repository -------------------------------------------------------------------------------------------------


def test_make_names_the_cure_for_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.8.1' && exit 0\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "site", f"PYTHON={old}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "rnnkit needs Python 3.11 or newer" in done.stdout
    assert "Likely fix" in done.stdout


def test_the_strict_build_is_not_quiet() -> None:
    """With --quiet MkDocs does not count warnings either, and --strict passes whatever is wrong."""
    used = re.findall(r"mkdocs.*build.*", (ROOT / "Makefile").read_text())
    assert sum("--strict" in line for line in used) == 2
    assert not [line for line in used if re.search(r"--quiet|\s-q\b", line)]


@pytest.mark.parametrize(
    "name",
    [
        "claims",
        "clean",
        "download",
        "header",
        "install",
        "light",
        "links",
        "outputs",
        "page",
        "pictures",
        "run",
        "source",
        "used",
    ],
)
def test_an_example_of_the_road_runs(name: str) -> None:
    module = importlib.import_module(f"road.{name}")
    assert doctest.testmod(module).failed == 0
