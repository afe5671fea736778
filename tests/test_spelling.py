"""No word of the pages, the tutorials and the package is one that codespell knows as misspelled, or as British."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ["*.md", "docs/**/*.md", "tutorials/*.py", "rnnkit/**/*.py", "docs/_hooks/**/*.py"]
DICTIONARIES = "clear,rare,en-GB_to_en-US"
# Names in code: several things called `before`, a map of colors; the prefix; and the spelling of Python's own CancelledError.
RIGHT = ["befores", "cancelled", "greys", "mis"]


def misspelled(*files: Path) -> str:
    command = [sys.executable, "-m", "codespell_lib", "--builtin", DICTIONARIES]
    command += ["--ignore-words-list", ",".join(RIGHT)]
    done = subprocess.run(
        [*command, *map(str, files)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_every_word_is_spelled_as_codespell_has_it() -> None:
    files = [path for pattern in READ for path in sorted(ROOT.glob(pattern))]
    assert len(files) > 60
    assert misspelled(*files) == ""


def test_a_misspelled_word_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A reccurent network, seperately, in colour.\n")
    assert misspelled(page).count("==>") == 3
