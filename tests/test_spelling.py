"""No word of the pages, the tutorials and the package is one that codespell knows as misspelled."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ["*.md", "docs/**/*.md", "tutorials/*.py", "rnnkit/**/*.py", "docs/_hooks/**/*.py"]
# Names in code: several things called `before`.
RIGHT = ["befores"]


def misspelled(*files: Path) -> str:
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", ",".join(RIGHT)]
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
    page.write_text("A reccurent network, seperately.\n")  # codespell:ignore
    assert misspelled(page).count("==>") == 2
