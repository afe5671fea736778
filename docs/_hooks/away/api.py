"""What the docstring of a name says, as Markdown: its signature, its text, its methods."""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Note|Source|Example|Examples):")


def described(item: Any, level: int = 3) -> str:
    """The Markdown of what griffe collected; a method is named as in a call, Learner.fit."""
    own = item.final_target if item.is_alias else item  # an alias is what the package re-exports
    parts = [f"{'#' * level} {item.path}"]
    if level > 3:
        parts = [f"{'#' * level} {item.parent.name}.{item.name}"]
    if own.is_function or own.is_class:
        parts.append(f"```python\n{own.signature(name=item.name)}\n```")
    if own.docstring:
        parts.append(sections(own.docstring.value))
    if own.is_class:
        parts += [described(member, level + 1) for member in own.members.values() if _told(member)]
    return "\n\n".join(parts)


def _told(member: Any) -> bool:
    """Whether a member of a class is its own, is public and says what it does."""
    return not member.is_alias and not member.name.startswith("_") and bool(member.docstring)


def sections(text: str) -> str:
    """The sections of a docstring as lists, which Markdown would take for code.

    >>> print(sections("Half.\\n\\nArgs:\\n    x: the whole,\\n        a number"))
    Half.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - x: the whole,
      a number
    """
    told: list[str] = []
    inside = False
    for line in text.splitlines():
        if head := SECTION.fullmatch(line):
            told += [f"**{head[1]}**", ""]
            inside = True
        elif inside and line.startswith("        "):
            told.append("  " + line.removeprefix("        "))
        elif inside and line.startswith("    "):
            told.append("- " + line.removeprefix("    "))
        else:
            inside = inside and not line.strip()
            told.append(line)
    return "\n".join(told)
