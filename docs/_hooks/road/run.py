"""Tutorials, executed: nbmake runs a notebook once, and that run is its test.

A notebook is run when it is stale: its source, the code of rnnkit, Python's minor version or
torch's version has changed since it last ran to its end. docs/tutorials/ holds only notebooks that
did; their hashes, and what they have saved, are in their metadata.
"""

from __future__ import annotations

import ast
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

import nbformat

from .claims import warnings
from .clean import clean
from .install import pins
from .page import to_page
from .playground import encoded
from .source import Notebook, digest, notebook_of, sources, target, where

TIMEOUT = 600  # seconds a cell may take
KERNELS = 3  # kernels to try until one starts: several that start at once can pick the same port
SIDE_BY_SIDE = 2  # tutorials that run at a time
HOOKS = Path(__file__).resolve().parents[1]
IPYTHON = HOOKS / "ipython_config.txt"
LEDGER = Path(__file__).with_name("ledger.py")


def say(text: str) -> None:
    print(text, flush=True)


# --- what is stale -------------------------------------------------------------------------------


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
    parts: list[str] = []
    for path in sorted(package.rglob("*.py")):
        parts.append(f"{path.relative_to(root)} {code_of(path)}")
    for path in sorted(package.glob("*.mplstyle")):
        parts.append(path.read_text(encoding="utf-8"))
    parts.append(code_of(LEDGER))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return digest(*parts, python, version("torch"))


def staleness(root: Path, source: Path, library: str) -> str:
    """Why a tutorial must run, or "" where its notebook is fresh."""
    kept = target(root, source)
    if not kept.exists():
        return "new"
    facts = nbformat.read(kept, 4).metadata.get("rnnkit", {})
    if facts.get("source") != digest(source.read_text(encoding="utf-8")):
        return "tutorial changed"
    if facts.get("library") != library:
        return "rnnkit, Python or torch changed"
    return ""


# --- one run -------------------------------------------------------------------------------------


def environment(root: Path) -> dict[str, str]:
    """What a kernel sees: figures as SVG without a date, one thread, no colors, no history."""
    ipython = root / ".run" / "ipython"
    profile = ipython / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(IPYTHON, profile / "ipython_config.py")
    path = [str(root), str(HOOKS)]  # where the kernel finds road.ledger
    if "PYTHONPATH" in os.environ:
        path.append(os.environ["PYTHONPATH"])
    ours = {
        "IPYTHONDIR": str(ipython),
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return os.environ | ours


def run(root: Path, source: Path, library: str) -> list[str]:
    """Execute one tutorial and keep its notebook, or say what went wrong."""
    facts: dict[str, Any] = {
        "source": digest(source.read_text(encoding="utf-8")),
        "library": library,
    }
    start = time.monotonic()
    notebook, failure, saved = _execute(root, source)
    seconds = time.monotonic() - start

    if problems := to_page(notebook, source.stem).problems:
        return problems
    if failure:
        last = _last_executed(notebook)
        return [f"{where(source.stem, last, notebook.cells[last])}: nbmake failed\n{failure}"]

    facts |= {
        "seconds": round(seconds, 1),
        "cores": os.cpu_count() or 1,
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "rnnkit": _own_version(),
        "pins": pins(notebook),
        "saved": saved,
    }
    notebook.metadata["rnnkit"] = notebook.metadata.get("rnnkit", {}) | facts
    _keep(notebook, target(root, source))
    for warning in warnings(notebook, source.stem):
        say(f"  WARNING {warning}")
    return []


def _execute(root: Path, source: Path) -> tuple[Notebook, str, dict[str, str]]:
    """The executed notebook, cleaned, what nbmake said where it failed, and what was saved."""
    folder = root / ".run" / f"{source.stem}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / f"{source.stem}.ipynb"
    try:
        for attempt in range(KERNELS):
            nbformat.write(notebook_of(source), stage)
            done = subprocess.run(
                _nbmake(root, stage),
                capture_output=True,
                text=True,
                env=environment(root),
                check=False,
            )
            notebook = clean(nbformat.read(stage, 4))
            # It ran to its end or to a cell that failed; else its kernel never started.
            started = any(cell.get("execution_count") for cell in notebook.cells)
            if done.returncode == 0 or started or attempt == KERNELS - 1:
                failure = done.stdout + done.stderr if done.returncode else ""
                return notebook, failure, encoded(folder)
    finally:
        shutil.rmtree(folder)
    raise AssertionError("unreachable")


def _nbmake(root: Path, stage: Path) -> list[str]:
    """The command that executes a notebook in place: pytest with nbmake and nothing else."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--color=no", f"--rootdir={root}"]
    pytest += ["-c", os.devnull, "-p", "no:cacheprovider", "-p", "nbmake.pytest_plugin"]
    nbmake = ["--nbmake", "--overwrite", "--nbmake-kernel=python3", f"--nbmake-timeout={TIMEOUT}"]
    return [*pytest, *nbmake, str(stage)]


def _last_executed(notebook: Notebook) -> int:
    executed = [index for index, cell in enumerate(notebook.cells) if cell.get("execution_count")]
    return max(executed, default=0)


def _own_version() -> str:
    try:
        return version("rnnkit")
    except PackageNotFoundError:
        return "(not installed)"


def _keep(notebook: Notebook, path: Path) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


# --- all that is stale ---------------------------------------------------------------------------


def update(
    root: Path, only: list[str] | None = None, *, force: bool = False, edited_only: bool = False
) -> list[str]:
    """Run what is stale, two at a time, and return the problems, each with its file and cell."""
    _drop_orphans(root)
    library = surroundings(root)
    stale: dict[Path, str] = {}
    fresh = 0
    for source in sources(root):
        if only and source.stem not in only:
            continue
        reason = staleness(root, source, library) or ("forced" if force else "")
        if reason and not (edited_only and reason.startswith("rnnkit")):
            stale[source] = reason
        else:
            fresh += 1
    say(f"tutorials: {fresh} fresh, {len(stale)} to run")
    for source, reason in stale.items():
        say(f"  {source.stem}: {reason}")
    if not stale:
        return []
    return Runs(root, library, len(stale)).all_of(list(stale))


def _drop_orphans(root: Path) -> None:
    """A notebook whose tutorial is gone goes too."""
    wanted = {target(root, source) for source in sources(root)}
    for kept in (root / "docs" / "tutorials").glob("*.ipynb"):
        if kept not in wanted:
            kept.unlink()


class Runs:
    """Runs of several tutorials, and a word now and then for who waits for them."""

    def __init__(self, root: Path, fingerprint: str, count: int) -> None:
        self.root = root
        self.fingerprint = fingerprint
        self.count = count
        self.done = 0
        self.problems: list[str] = []
        self.start = time.monotonic()
        self.finished = threading.Event()

    def all_of(self, stale: list[Path]) -> list[str]:
        """The problems of all of them."""
        threading.Thread(target=self._tick, daemon=True).start()
        try:
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                list(pool.map(self._one, stale))
        finally:
            self.finished.set()
        return self.problems

    def _one(self, source: Path) -> None:
        start = time.monotonic()
        found = run(self.root, source, self.fingerprint)
        self.problems.extend(found)
        self.done += 1
        outcome = "FAILED" if found else "passed"
        seconds = time.monotonic() - start
        say(f"  {source.stem}: {outcome} in {seconds:.0f} s ({self.done} of {self.count})")

    def _tick(self) -> None:
        while not self.finished.wait(10):
            seconds = time.monotonic() - self.start
            say(f"  … {self.done} of {self.count} done after {seconds:.0f} s")
