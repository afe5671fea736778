"""The package's tests on the wheel that is installed, and not on the checkout: `python tests/wheel.py`.

They run in a folder of their own, with nothing of the checkout but themselves. The environment has the wheel with its
extras, and what the tests import: pytest, hypothesis, scikit-learn, pandas.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# These are of the site, the sources and the release: what they look at is no part of a wheel.
OF_THE_CHECKOUT = {
    "browser",
    "docs_code",
    "downloads",
    "home",
    "layers",
    "patterns",
    "peers",
    "playground",
    "release",
    "road",
    "site",
    "spelling",
    "style",
    "takeaway",
    "tutorials",
}
BESIDE = ("pyproject.toml", "docs/ranks.md")  # how pytest is asked; a page whose script is a test
NEEDS = (
    "hypothesis",
    "lightning",
    "matplotlib",
    "onnxruntime",
    "pandas",
    "sklearn",
    "torchmetrics",
)
# Why a test may be left out of a run: what a machine is, never what is not installed.
MAY_SKIP = (
    "no fork here",
    "no timer here",
    "modes and links are POSIX'",
    "elsewhere a file with holes",
)


class NothingIsSkipped:
    """Ends the run as failed if a test was left out for another reason than those."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def _see(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        reason = str(report.longrepr)
        if report.skipped and not any(known in reason for known in MAY_SKIP):
            self.skipped.append(f"{report.nodeid}: {reason}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._see(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped:
            print("\nleft out, and why:", *self.skipped, sep="\n")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def copied(folder: Path) -> list[str]:
    """Copies the tests of the package and what they need; gives their names."""
    (folder / "tests").mkdir()
    (folder / "docs").mkdir()
    for name in BESIDE:
        shutil.copy(ROOT / name, folder / name)
    for file in sorted((ROOT / "tests").glob("*.py")):
        if file.stem.removeprefix("test_") not in OF_THE_CHECKOUT:
            shutil.copy(file, folder / "tests")
    return [file.stem for file in sorted((folder / "tests").glob("test_*.py"))]


def where_installed() -> str:
    """Where a Python that knows nothing of this checkout finds the package."""
    ask = [sys.executable, "-I", "-c", "import rnnkit; print(rnnkit.__file__)"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


def run(folder: Path, chosen: list[str]) -> int:
    """The tests, and the examples of the docstrings as they are installed."""
    sys.path[:] = [
        entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "tests")
    ]
    os.environ.pop("PYTHONPATH", None)  # what a test starts finds the wheel too
    os.chdir(folder)
    options = ["-q", "-m", "not site and not slow", "-p", "no:cacheprovider", f"--rootdir={folder}"]
    return pytest.main([*options, *chosen, "--pyargs", "rnnkit"], [NothingIsSkipped()])


def main() -> int:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        sys.exit(f"tests/wheel.py needs {', '.join(missing)}: no test is left out for want of it.")
    installed = where_installed()
    if "site-packages" not in installed:
        sys.exit(f"rnnkit is that of {installed}, which is no installed wheel.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = copied(folder)
        print(f"{len(files)} files of tests on {installed}", flush=True)
        code = run(folder, [f"tests/{file}.py" for file in files])
        used = sys.modules["rnnkit"].__file__
        os.chdir(ROOT)
    if used != installed:
        sys.exit(f"the tests ran on {used}")
    return code


if __name__ == "__main__":
    sys.exit(main())
