"""A griffe extension: what docstrings need before they become API pages."""

import re
from typing import Any

from griffe import Extension, Object


def fence(text: str) -> str:
    """`text` with a `pycon` fence around each doctest, which Markdown would take for quotes."""
    parts: list[str] = []
    for paragraph in re.split(r"\n{2,}", text):
        if not paragraph.startswith(">>> "):
            parts.append(paragraph)
        elif parts and parts[-1].startswith("```pycon"):  # neighbors share one
            parts[-1] = parts[-1].removesuffix("```") + f"{paragraph}\n```"
        else:
            parts.append(f"```pycon\n{paragraph}\n```")
    return "\n\n".join(parts)


class Docstrings(Extension):
    """Doctests as fences."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)
