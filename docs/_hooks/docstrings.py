"""A griffe extension: what docstrings and the package's names need before they become API pages."""

import re
from typing import Any

from griffe import Alias, Extension, Module, Object


def fence(text: str) -> str:
    """`text` with a `pycon` fence around each doctest that begins a paragraph, which Markdown would take for quotes."""
    out: list[str] = []
    for paragraph in re.split(r"\n{2,}", text):
        if not paragraph.startswith(">>> "):
            out.append(paragraph)
        elif out and out[-1].startswith("```pycon") and out[-1].endswith("\n```"):
            out[-1] = f"{out[-1][:-4]}\n{paragraph}\n```"  # neighbors share one
        else:
            out.append(f"```pycon\n{paragraph}\n```")
    return "\n\n".join(out)


class Docstrings(Extension):
    """Doctests as fences; and a function named like its module is found under its own name, as in Python."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        for name, member in list(pkg.members.items()):
            if (
                isinstance(member, Module)
                and name in member.members
                and pkg.exports
                and name in pkg.exports
            ):
                pkg.members[name] = Alias(name, member.members[name], parent=pkg)
