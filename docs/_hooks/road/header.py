"""What a tutorial says of itself at its top, and what its reader sees of that under the title.

    # ---
    # rnnkit:
    #   needs: two CPU cores
    #   data: hourly temperatures of Seattle, 2010, from vega_datasets
    #   minutes: 10
    #   prerequisites: a first [torch.nn.Module][]
    #   learn:
    #     - to forecast past the last row
    #     - to say what the forecast is worth
    #   description: A forecast of hourly temperatures with an LSTM, in 120 lines.
    # ---

It is YAML in comments before the first cell. Each field may be left out, and so may all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

TEXTS = {"prerequisites": "You should know", "needs": "You need", "data": "Data"}
FIELDS = {*TEXTS, "minutes", "learn", "description"}


@dataclass
class Header:
    """What a tutorial says of itself, and what is wrong with how it says it."""

    minutes: int | None = None  # to read it
    learn: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # the keys of TEXTS
    description: str = ""
    problems: list[str] = field(default_factory=list)


def read(text: str) -> Header:
    """The header from its YAML.

    >>> read("rnnkit: {minutes: ten, need: time}").problems
    ['minutes is a whole number, not ten', 'it knows no need']
    """
    header = Header()
    try:
        said = (yaml.safe_load(text) or {}).get("rnnkit") or {}
    except (yaml.YAMLError, AttributeError) as error:
        header.problems.append(f"it is no YAML: {' '.join(str(error).split())}")
        return header

    header.minutes = said.get("minutes")
    if header.minutes is not None and not isinstance(header.minutes, int):
        header.problems.append(f"minutes is a whole number, not {header.minutes}")
    header.learn = _lines(said.get("learn"))
    header.description = str(said.get("description") or "")
    for name in TEXTS:
        if said.get(name):
            header.texts[name] = "; ".join(_lines(said[name]))
    header.problems += [f"it knows no {name}" for name in said if name not in FIELDS]
    return header


def _lines(value: Any) -> list[str]:
    """What may be written as one text or as a list of them."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value)] if value else []


def glance(header: Header) -> str:
    """What you will learn and need, as plain Markdown; "" where the tutorial does not say."""
    parts: list[str] = []
    if header.learn:
        parts.append("**You will learn**")
        parts.append("\n".join(f"- {item}" for item in header.learn))
    for name, label in TEXTS.items():
        if name in header.texts:
            parts.append(f"**{label}** {header.texts[name]}")
    return "\n\n".join(parts)


def strip(minutes: int | None, facts: dict[str, Any], links: list[str]) -> str:
    """How long it takes, what it ran with, and where to get it: two lines under the title."""
    said = [f"{minutes} minutes to read"] if minutes else []
    if "seconds" in facts:
        said.append(f"runs in {facts['seconds']:.0f} s on one core")
    if "torch" in facts:
        said.append(f"rnnkit {facts['rnnkit']}, torch {facts['torch']}, Python {facts['python']}")
    return f"{' · '.join(said)}\n{' · '.join(links)}\n{{ .strip }}".lstrip("\n")
