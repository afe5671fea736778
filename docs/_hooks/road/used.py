"""Which tutorials use which name of the package, and the links from each to the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from typing import NamedTuple

from .source import Notebook

PACKAGE = "rnnkit"
# The entry of a name on its page of the API, to the end of its first sentence.
ENTRY = re.compile(
    r'id="rnnkit\.(?P<name>\w+)" class="doc doc-heading">(?:(?!<h3\b).)*?'
    r'<div class="doc doc-contents first">\s*<p>.*?</p>',
    re.DOTALL,
)


class User(NamedTuple):
    """A tutorial that uses a name: its number, its title, where it is from the page of the name."""

    number: str
    title: str
    address: str


def names_in(code: str) -> set[str]:
    """The names of the package that code imports from it or asks it for, in a script it writes too.

    >>> sorted(names_in("import rnnkit\\nfrom rnnkit import steps\\nrnnkit.detach(0).rnnkit"))
    ['detach', 'steps']
    >>> names_in("script = 'model = 1\\\\nrnnkit.rollout(model)'")
    {'rollout'}
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == PACKAGE:
            names.add(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            with suppress(SyntaxError):  # of prose
                names |= names_in(node.value)
    return names


def names_used(notebook: Notebook) -> list[str]:
    """The names of the package that a tutorial's code uses, in alphabetical order."""
    names: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith("%"):
            names |= names_in(cell.source)
    return sorted(names, key=str.lower)


def api_of(names: Iterable[str]) -> str:
    """The line at a tutorial's end that leads to the API, as Markdown; "" without a name."""
    links = [f"[{name}][{PACKAGE}.{name}]" for name in names]
    if not links:
        return ""
    return f"In the API: {', '.join(links)}.\n{{ .made-with data-search-exclude=1 }}"


def with_users(html: str, users: Mapping[str, list[User]]) -> str:
    """A page of the API with the tutorials that use each name, under its first sentence."""

    def entry(match: re.Match[str]) -> str:
        links = [
            f'<a href="{user.address}" title="{escape(user.title)}">{user.number}</a>'
            for user in users.get(match["name"], [])
        ]
        if not links:
            return match[0]
        line = f"Used in: {', '.join(links)}."
        return f'{match[0]}\n<p class="used-in" data-search-exclude>{line}</p>'

    return ENTRY.sub(entry, html)
