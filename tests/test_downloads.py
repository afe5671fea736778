"""The notebooks a reader downloads: links that lead somewhere, no syntax of the page, a run in a fresh environment."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from road.download import Form, downloads
from road.links import ATTRIBUTE, CODE, LINK
from road.page import RAW
from road.source import sources, where
from sites import SITE_URL, command

ROOT = Path(__file__).resolve().parent.parent
NAMES = [source.stem for source in sources(ROOT)]


def notebooks(site: Path, name: str) -> dict[Form, Any]:
    """A tutorial's downloads."""
    return {
        form: nbformat.read(site / "tutorials" / path, 4) for form, path in downloads(name).items()
    }


def install_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if "skip-execution" in cell.metadata.get("tags", [])]


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_a_download_is_a_notebook_that_stands_alone(site: Path, name: str) -> None:
    made = notebooks(site, name)
    (wheel,) = (site / "tutorials" / name).glob("rnnkit-*.whl")
    for notebook in made.values():
        nbformat.validate(notebook)
        (install,) = install_cells(notebook)
        assert f" @ {SITE_URL}tutorials/{name}/{wheel.name}" in install.source
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "markdown":
                continue
            place = where(name, index, cell)
            text = CODE.sub("", cell.source)
            for link in links_of(text):
                assert stands(link, cell, site), f"{place}: {link}"
            assert not RAW.search(text), place
            assert "[!" not in text.replace("[![", ""), place


def links_of(text: str) -> list[str]:
    links = [match["url"] or f"[{match['ref']}]" for match in LINK.finditer(text)]
    return links + [match["url"] for match in ATTRIBUTE.finditer(text)]


def stands(link: str, cell: Any, site: Path) -> bool:
    """Whether a link of a cell leads somewhere: to its attachment, a page of the site, or elsewhere."""
    if link.startswith("attachment:"):
        return link.removeprefix("attachment:") in cell.attachments
    if link.startswith(SITE_URL):
        file = site / link.removeprefix(SITE_URL).partition("#")[0]
        return (file / "index.html" if file.is_dir() else file).is_file()
    return link.startswith("https://")


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_the_three_forms_of_a_download_differ_in_outputs_and_answers(site: Path, name: str) -> None:
    full, empty, exercises = notebooks(site, name).values()
    assert [cell.source for cell in full.cells] == [cell.source for cell in empty.cells]
    assert any(cell.get("outputs") for cell in full.cells)
    for notebook in (empty, exercises):
        assert not any(
            cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells
        )
    asked = [cell.source for cell in empty.cells if "solution" not in cell.metadata.get("tags", [])]
    left = [cell.source for cell in exercises.cells if cell.source != "# Your answer"]
    assert left == asked
    assert len(exercises.cells) - len(left) >= 2, "two exercises to answer"


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_a_download_carries_its_drawing_and_says_where_it_is_from(site: Path, name: str) -> None:
    for notebook in notebooks(site, name).values():
        attached = [
            kind for c in notebook.cells for a in c.get("attachments", {}).values() for kind in a
        ]
        drawn = "assets/patterns/" in (ROOT / "tutorials" / f"{name}.py").read_text()
        assert attached == (["image/png"] if drawn else [])
        about = notebook.metadata.rnnkit
        assert about.page == f"{SITE_URL}tutorials/{name}/"
        assert about.license and about.version and about.python
        assert about.page in notebook.cells[-1].source


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where fresh environments are made, one at a time: each is over a gigabyte."""
    folder = tmp_path_factory.mktemp("fresh")
    yield folder
    shutil.rmtree(folder)


def environment(fresh: Path, work: Path, install: str) -> Path:
    """An environment with Jupyter's kernel and nothing that this install line does not name.

    The package, which every line names, is installed once: the rest is done in a copy by hard links.
    """
    base, made = fresh / "base", fresh / "environment"
    if not base.exists():
        (package,) = [word for word in shlex.split(install) if "rnnkit" in word]
        command(sys.executable, "-m", "venv", base)
        python = base / "bin" / "python"
        command(python, "-m", "pip", "install", "-q", "ipykernel", work / package, **PINNED)
        command(python, "-c", "import ipykernel, matplotlib.pyplot, rnnkit")  # compiled once, too
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(base, made, symlinks=True, copy_function=os.link)
    return made


# Every other one runs as the notebook of its exercises, the rest as the script: the code is the same, as the tests
# above and test_tutorials.py hold it, and both would take ten minutes more.
ALONE = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
ALONE.pop("VIRTUAL_ENV", None)
# Two run side by side: with two threads each, which wait for each other, one of them took seven minutes.
ALONE["OMP_NUM_THREADS"] = "1"
PINNED = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_NO_COMPILE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[::2])
def test_a_notebook_of_exercises_runs_where_only_its_install_line_was_run(
    nowhere: Path,
    fresh: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notebook = notebooks(nowhere, name)["exercises"]
    (cell,) = install_cells(notebook)
    assert re.fullmatch(r"%pip install .*", cell.source.strip()), (
        "the install cell is one line, %pip install ..."
    )
    cell.metadata.tags.remove("skip-execution")  # a reader runs it
    kernel = tmp_path / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    work = nowhere / "tutorials" / name  # where the wheel lies beside the notebook
    python = environment(fresh, work, cell.source) / "bin" / "python"
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "fresh", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="fresh", resources={"metadata": {"path": str(work)}}
    )
    client.execute(env=ALONE | PINNED | {"IPYTHONDIR": str(tmp_path / "ipython")})
    assert sum(bool(cell.get("execution_count")) for cell in notebook.cells) >= 10
    assert "site-packages" in place_of_rnnkit(python, work), "it ran with the built wheel"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1::2])
def test_a_script_runs_where_only_its_install_line_was_run(
    nowhere: Path, fresh: Path, name: str
) -> None:
    work = nowhere / "tutorials" / name
    (cell,) = install_cells(notebooks(nowhere, name)["empty"])
    python = environment(fresh, work, cell.source) / "bin" / "python"
    install, run = re.findall(r"^#     (.+)$", (work / f"{name}.py").read_text(), re.M)[:2]
    assert f"%{install}" == cell.source.strip()
    assert run == f"python {name}.py"
    for call in ([python, "-m", *shlex.split(install)], [python, f"{name}.py"]):
        surroundings = ALONE | PINNED | {"MPLBACKEND": "agg"}
        done = subprocess.run(
            call, cwd=work, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "site-packages" in place_of_rnnkit(python, work), "it ran with the built wheel"


def place_of_rnnkit(python: Path, work: Path) -> str:
    """Which rnnkit that interpreter finds in that folder."""
    where = [str(python), "-c", "import rnnkit; print(rnnkit.__file__)"]
    return subprocess.run(where, cwd=work, capture_output=True, text=True, check=True).stdout
