"""The releases as an Atom feed (RFC 4287), for whoever wants to be told of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from markdown import markdown
from markdown.extensions.toc import slugify

from .changes import Release

FILE = "feed.xml"
ATOM = "http://www.w3.org/2005/Atom"


def feed(releases: Sequence[Release], address: str, title: str, author: str, day: str) -> str:
    """The feed of a site at `address`. `day` is when it last changed, if nothing is out yet."""
    out = [release for release in releases if release.day]
    page = f"{address.rstrip('/')}/changes/"
    root = ElementTree.Element("feed", xmlns=ATOM)
    _add(root, "id", page)
    _add(root, "title", f"{title}: releases")
    _add(root, "updated", _moment(max((release.day for release in out), default=day)))
    _add(_add(root, "author"), "name", author)
    _add(root, "link", href=page)
    _add(root, "link", rel="self", href=f"{address.rstrip('/')}/{FILE}")
    for release in out:
        entry = _add(root, "entry")
        link = f"{page}#{slugify(release.heading, '-')}"
        _add(entry, "id", link)
        _add(entry, "title", f"{title} {release.version}")
        _add(entry, "updated", _moment(release.day))
        _add(entry, "link", href=link)
        _add(entry, "content", markdown(release.text), type="html")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(parent: ElementTree.Element, name: str, text: str = "", **attributes: str):
    child = ElementTree.SubElement(parent, name, attributes)
    child.text = text or None
    return child


def _moment(day: str) -> str:
    return f"{day}T00:00:00Z"
