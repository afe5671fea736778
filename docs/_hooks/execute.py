"""Tutorials, executed: jupytext makes the notebook, nbmake runs it once, and that run is the test.

    python docs/_hooks/execute.py [NAME ...] [--force] [--list]

A notebook is run when it is stale: its source, the code of rnnkit, Python's minor version or torch's version has
changed since it last ran to its end. docs/tutorials/ holds only notebooks that did; their hashes are in their metadata.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from convert import clean, to_markdown, where

TIMEOUT = 600  # seconds a cell may take
KERNELS = 3  # kernels to try until one starts: several that start at once can pick the same port


def say(text: str) -> None:
    print(text, flush=True)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def code_of(path: Path) -> str:
    """A module's syntax tree without docstrings and comments: what it does, not what it says."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def surroundings(root: Path) -> str:
    """The hash of what every tutorial depends on."""
    package = root / "rnnkit"
    parts = [f"{path.relative_to(root)} {code_of(path)}" for path in sorted(package.rglob("*.py"))]
    parts += [path.read_text(encoding="utf-8") for path in sorted(package.glob("*.mplstyle"))]
    return digest(*parts, f"{sys.version_info.major}.{sys.version_info.minor}", version("torch"))


def own_version() -> str:
    try:
        return version("rnnkit")
    except PackageNotFoundError:
        return "(not installed)"


def sources(root: Path) -> list[Path]:
    return sorted((root / "tutorials").glob("[0-9]*.py"))


def target(root: Path, source: Path) -> Path:
    return root / "docs" / "tutorials" / f"{source.stem}.ipynb"


def staleness(root: Path, source: Path, library: str) -> str:
    """Why a tutorial must run, or "" where its notebook is fresh."""
    notebook = target(root, source)
    if not notebook.exists():
        return "new"
    facts = nbformat.read(notebook, 4).metadata.get("rnnkit", {})
    if facts.get("source") != digest(source.read_text(encoding="utf-8")):
        return "tutorial changed"
    return "" if facts.get("library") == library else "rnnkit, Python or torch changed"


def convert(source: Path) -> Any:
    """The notebook of a tutorial, with ids and line numbers that do not change from one conversion to the next."""
    text = source.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("# %%")]
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        if len(lines) == len(notebook.cells):
            cell.metadata["line"] = lines[index]
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def environment(root: Path) -> dict[str, str]:
    """What a tutorial's kernel sees: figures as SVG without a date, one thread a tutorial, no colors, no history."""
    ipython = root / ".run" / "ipython"
    (ipython / "profile_default").mkdir(parents=True, exist_ok=True)
    config = Path(__file__).with_name("ipython_config.txt")
    shutil.copyfile(config, ipython / "profile_default" / "ipython_config.py")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    ours = {"IPYTHONDIR": str(ipython), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return {**os.environ, **ours, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(root: Path, source: Path, library: str) -> list[str]:
    """Execute one tutorial and keep its notebook, or say what went wrong."""
    stage = root / ".run" / f"{source.stem}-{os.getpid()}.ipynb"
    facts = {"source": digest(source.read_text(encoding="utf-8")), "library": library}
    start = time.monotonic()
    stage.parent.mkdir(exist_ok=True)
    try:
        pytest = [
            "pytest",
            "-q",
            "-p",
            "nbmake.pytest_plugin",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--color=no",
        ]
        nbmake = [
            "--nbmake",
            "--overwrite",
            f"--nbmake-timeout={TIMEOUT}",
            "--nbmake-kernel=python3",
            str(stage),
        ]
        command = [sys.executable, "-m", *pytest, f"--rootdir={root}", *nbmake]
        for _ in range(KERNELS):
            nbformat.write(convert(source), stage)
            result = subprocess.run(
                command, capture_output=True, text=True, env=environment(root), check=False
            )
            notebook = clean(nbformat.read(stage, 4))
            if not result.returncode or any(cell.get("execution_count") for cell in notebook.cells):
                break  # it ran to its end or to a cell that failed; else its kernel never started
    finally:
        stage.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    if problems := to_markdown(notebook, source.stem).problems:
        return problems
    if result.returncode:
        last = max(
            (i for i, cell in enumerate(notebook.cells) if cell.get("execution_count")), default=0
        )
        return [
            f"{where(source.stem, last, notebook.cells[last])}: nbmake failed\n{result.stdout}{result.stderr}"
        ]
    facts |= {
        "seconds": round(seconds, 1),
        "cores": os.cpu_count() or 1,
        "python": sys.version.split()[0],
    }
    facts |= {"torch": version("torch"), "rnnkit": own_version()}
    notebook.metadata["rnnkit"] = facts
    kept = target(root, source)
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept.with_suffix(".part"))
    os.replace(kept.with_suffix(".part"), kept)
    return []


def update(
    root: Path, only: list[str] | None = None, force: bool = False, edited_only: bool = False
) -> list[str]:
    """Run what is stale, two at a time, and return the problems, each with its file and cell."""
    for orphan in set((root / "docs" / "tutorials").glob("*.ipynb")) - {
        target(root, s) for s in sources(root)
    }:
        orphan.unlink()
    library = surroundings(root)
    chosen = [source for source in sources(root) if not only or source.stem in only]
    reasons = {
        source: staleness(root, source, library) or ("forced" if force else "") for source in chosen
    }
    if edited_only:
        reasons = {
            source: reason
            for source, reason in reasons.items()
            if reason in ("", "new", "tutorial changed")
        }
    stale = [source for source, reason in reasons.items() if reason]
    say(f"tutorials: {len(reasons) - len(stale)} fresh, {len(stale)} to run")
    for source in stale:
        say(f"  {source.stem}: {reasons[source]}")
    problems: list[str] = []
    done = 0
    start = time.monotonic()
    finished = threading.Event()

    def one(source: Path) -> None:
        nonlocal done
        began = time.monotonic()
        found = run(root, source, library)
        problems.extend(found)
        done += 1
        outcome = "FAILED" if found else "passed"
        say(
            f"  {source.stem}: {outcome} in {time.monotonic() - began:.0f} s ({done} of {len(stale)})"
        )

    def tick() -> None:
        while not finished.wait(10):
            say(f"  … {done} of {len(stale)} done after {time.monotonic() - start:.0f} s")

    if stale:
        threading.Thread(target=tick, daemon=True).start()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, stale))
    finally:
        finished.set()
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the tutorials that are stale.")
    parser.add_argument("names", nargs="*", help="only these, as 02_seq2seq")
    parser.add_argument("--force", action="store_true", help="run them even if they are fresh")
    parser.add_argument("--list", action="store_true", help="say what is stale and run nothing")
    options = parser.parse_args()
    root = Path.cwd()
    known = [source.stem for source in sources(root)]
    if unknown := set(options.names) - set(known):
        sys.exit(f"no tutorial named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.list:
        library = surroundings(root)
        for source in sources(root):
            say(f"{source.stem}: {staleness(root, source, library) or 'fresh'}")
        return
    problems = update(root, options.names, options.force)
    for problem in problems:
        say(f"ERROR {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
