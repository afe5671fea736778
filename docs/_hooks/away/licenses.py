"""The licenses of what rnnkit needs, as installed packages state them, as a page of the site."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata, requires
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = "licenses.md"
ABOUT = "The licenses of every package that rnnkit needs: to run, to build this site, to be tested."
UNKNOWN = "not stated"

GROUPS = {
    "To run": ("", "Whoever installs rnnkit gets these."),
    "For the extras `plot`, `metrics`, `lightning` and `export`": (
        "plot metrics lightning export",
        "Only who asks for an extra gets these.",
    ),
    "To build the site": ("docs", "They run the tutorials and make the pages."),
    "To test": ("dev", "They check the package and the site."),
}

HEAD = f"""---
title: Licenses
description: "{ABOUT}"
---

# Licenses

This page lists the license of every package that rnnkit needs. rnnkit itself is under the MIT
License.

None of them is part of rnnkit's own files: `pip` gets each from its authors. The tables are made by
the build, of what the packages that are installed state in their metadata, at the versions of
`constraints.txt`. Where a package brings parts of others, as PyTorch does, its own files say more.
Packages that only another operating system needs are missing.

What the tutorials read has licenses of its own: they stand, with the source, in the box under the
title of [each tutorial](tutorials/index.md). The site brings KaTeX (MIT) for its formulas, and the
theme mkdocs-material (MIT) with its icons."""


class Licensed(NamedTuple):
    """A package, its version and its license."""

    name: str
    version: str
    license: str


def licensed(name: str) -> Licensed | None:
    """What an installed package states of itself; None where it is not installed.

    >>> licensed("packaging").license
    'Apache-2.0 OR BSD-2-Clause'
    """
    try:
        said: Any = metadata(name)
    except PackageNotFoundError:
        return None
    version = str(said["Version"]).partition("+")[0]  # without +cpu, which no index has
    return Licensed(said["Name"], version, license_of(said))


def license_of(said: Any) -> str:
    """The expression, where there is one; else a short text; else what the classifiers say."""
    if said["License-Expression"]:
        return said["License-Expression"]
    text = (said["License"] or "").strip()
    if text and "\n" not in text and len(text) < 60:  # else it is the whole license
        return text
    kinds = [each for each in said.get_all("Classifier") or [] if each.startswith("License ::")]
    return "; ".join(each.rpartition(":: ")[2] for each in kinds) or UNKNOWN


def needed(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """The packages, all the way down, that an installed one asks for with some extras."""
    found: set[str] = set()
    waiting = [(name, extras)]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        asking = waiting.pop()
        if asking in seen:
            continue
        seen.add(asking)
        for asked in _asked(*asking):
            key = canonicalize_name(asked.name)
            found.add(key)
            waiting.append((key, tuple(sorted(asked.extras))))
    return found - {canonicalize_name(name)}


def _asked(name: str, extras: tuple[str, ...]) -> list[Requirement]:
    """What one package asks for here."""
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return []
    every = [Requirement(line) for line in lines]
    around = [{"extra": extra} for extra in ("", *extras)]
    return [each for each in every if not each.marker or any(map(each.marker.evaluate, around))]


def pinned(constraints: str) -> list[str]:
    """The names in a file of constraints.

    >>> pinned("torch==2.13.0\\ntqdm==4.70.1\\n")
    ['torch', 'tqdm']
    """
    return re.findall(r"^([\w.-]+)==", constraints, flags=re.M)


def groups(constraints: str) -> dict[str, list[str]]:
    """Each pinned package in the first group that needs it; what none names is for the tests."""
    left = {canonicalize_name(name) for name in pinned(constraints)}
    found: dict[str, list[str]] = {}
    for title, (extras, _) in GROUPS.items():
        names = left & needed("rnnkit", tuple(extras.split()))
        if title == list(GROUPS)[-1]:
            names = left
        found[title] = sorted(names)
        left = left - names
    return found


def licenses_page(constraints: str) -> str:
    """The Markdown of docs/licenses.md, which only the build has."""
    parts = [HEAD]
    for title, names in groups(constraints).items():
        parts.append(
            f"## {title}\n\n{GROUPS[title][1]}\n\n| Package | Version | License |\n|---|---|---|"
        )
        parts[-1] += "".join(f"\n{_row(name)}" for name in names)
    return "\n\n".join(parts) + "\n"


def _row(name: str) -> str:
    found = licensed(name)
    if found is None:
        return f"| {name} | not installed here | {UNKNOWN} |"
    return f"| {found.name} | {found.version} | {found.license.replace('|', '/')} |"
