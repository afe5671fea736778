"""Builds of the site for tests: as it is published at an address, and as it is at none."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE_URL = "https://rnnkit.test/docs/"
REPO_URL = "https://github.com/someone/rnnkit"


def command(*arguments: object, **environment: str) -> None:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(
        [*map(str, arguments)], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def built(folder: Path, address: str, repository: str) -> Path:
    """The site as it is published. (That it passes the strict build is another check.)"""
    command(
        *(sys.executable, "-m", "mkdocs", "build", "--site-dir", folder),
        RNNKIT_SITE_URL=address,
        RNNKIT_REPO_URL=repository,
        RNNKIT_EXECUTE="never",
        NO_MKDOCS_2_WARNING="1",
    )
    return folder
