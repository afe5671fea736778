"""CITATION.cff as a page of the site."""

from __future__ import annotations

from typing import Any

import yaml

PAGE = "cite.md"
SOURCE = "CITATION.cff"


def cite_page(text: str, address: str) -> str:
    """The Markdown of docs/cite.md, which only the build has; `address` is the site's, or ""."""
    said = yaml.safe_load(text)
    about = f"How to cite {_name(said)}: in words, as BibTeX, as {SOURCE}."
    return "\n\n".join(
        [
            f'---\ndescription: "{about}"\n---',
            f"# Cite {_name(said)}",
            said["message"],
            f"## In words\n\n> {_words(said, address)}",
            f"## As BibTeX\n\n```bibtex\n{_bibtex(said, address)}\n```",
            f"## For a program\n\n[{SOURCE}]({SOURCE}){{ download }} says the same in the "
            "[Citation File Format](https://citation-file-format.github.io/); both texts above "
            "were made from it.\n",
        ]
    )


def _name(said: dict[str, Any]) -> str:
    return said["title"].partition(":")[0]


def _authors(said: dict[str, Any], whole: str = "{}") -> list[str]:
    """Persons have a family name and given names; others have one name, and `whole` holds it."""
    found: list[str] = []
    for author in said["authors"]:
        if "name" in author:
            found.append(whole.format(author["name"]))
        else:
            found.append(f"{author['family-names']}, {author['given-names']}")
    return found


def _year(said: dict[str, Any]) -> str:
    return str(said.get("date-released", ""))[:4]


def _words(said: dict[str, Any], address: str) -> str:
    year = f" ({_year(said)})" if _year(said) else ""
    words = f"{'; '.join(_authors(said))}{year}. {said['title']}. Version {said['version']}."
    return f"{words} <{address}>" if address else words


def _bibtex(said: dict[str, Any], address: str) -> str:
    fields = {
        "author": " and ".join(_authors(said, whole="{{{}}}")),
        "title": f"{{{said['title']}}}",
        "year": _year(said),
        "note": f"Version {said['version']}",
        "url": address,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{_name(said)},", *lines, "}"])
