"""What the site was made with, as far as the build knows."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """The versions that a reader may ask for; what is not installed is left out."""
    found: dict[str, str] = {}
    for name in ("rnnkit", "torch"):
        try:
            found[name] = version(name).partition("+")[0]  # without +cpu, which no index has
        except PackageNotFoundError:
            continue
    return found | {"Python": platform.python_version()}


def commit_of(root: Path) -> str:
    """The commit of a source tree: what RNNKIT_COMMIT says, else what git says, else ""."""
    if said := os.environ.get("RNNKIT_COMMIT"):
        return said[:10]
    return _git(root, "rev-parse", "--short=10", "HEAD")


def day_of(root: Path) -> str:
    """The day of that commit, as git has it, or ""."""
    return _git(root, "log", "-1", "--format=%cs")


def _git(root: Path, *arguments: str) -> str:
    if not (root / ".git").exists():  # the repository around this tree is another one
        return ""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return done.stdout.strip()
