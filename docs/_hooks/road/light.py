"""A built page without what nobody reads. It was more than half of a tutorial's page.

Python code is plain text, and docs/assets/site.js colors it; other code is without the tags that
change no color. Outside code, a run of white space over several lines is one line break. The source
code of the API, the code of figures and the checks are not searched: they have any word. What only
some pages need, KaTeX and the looks of the API, comes with no other.
"""

from __future__ import annotations

import re

PLAIN = re.compile(r'<span class="(?:n|o|p|w)">([^<]*)</span>')
INPUT = re.compile(
    r'(<div (?:id="[\w-]+" )?class=")language-python (input highlight"><pre>)(.*?)(</pre>)',
    re.DOTALL,
)
BLOCK = re.compile(r'(<div class="language-python highlight">)(<pre>.*?</pre>)', re.DOTALL)
SOURCE = re.compile(r'<details class="mkdocstrings-source">.*?</details>', re.DOTALL)
UNSEARCHED = re.compile(r'<details class="(?:mkdocstrings-source|code|check)"')
SIGNATURE = re.compile(r'(doc-signature highlight"><pre>(?:<span></span>)?<code>)(\w+)')
# What a page loads only where it has such an element.
LOADS = {
    'class="arithmatex': re.compile(r'<(?:link|script)\b[^>]*/katex\.min\.(?:css"|js"></script)>'),
    'class="doc doc-object': re.compile(r'<link\b[^>]*/_mkdocstrings\.css">'),
}
TITLE = re.compile(r'(?<=title=")\s[^"]*(?=")')  # autorefs takes it from a heading as it is
SPAN = re.compile(r"</?span[^>]*>")
VERBATIM = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)", re.DOTALL)
BLANK = re.compile(r"\s*\n\s*")


def light_code(html: str) -> str:
    """The content of a page with lighter code."""

    def plain(match: re.Match[str]) -> str:
        head, rest, code, end = match.groups()
        return head + rest + SPAN.sub("", code) + end

    def block(match: re.Match[str]) -> str:
        return match[1] + SPAN.sub("", match[2])

    def source(match: re.Match[str]) -> str:
        return SPAN.sub("", match[0])

    html = SOURCE.sub(source, BLOCK.sub(block, INPUT.sub(plain, html)))
    html = SIGNATURE.sub(r'\1<span class="nf">\2</span>', html)
    return UNSEARCHED.sub(r"\g<0> data-search-exclude", PLAIN.sub(r"\1", html))


def light_page(html: str) -> str:
    """A whole page without the white space between its tags, and what it does not need.

    >>> light_page('<link href="katex/katex.min.css"><script src="a/katex.min.js"></script>')
    ''
    """
    for element, loads in LOADS.items():
        if element not in html:
            html = loads.sub("", html)
    html = TITLE.sub(lambda match: " ".join(match[0].split()), html)
    parts: list[str] = []
    for index, part in enumerate(VERBATIM.split(html)):  # text, element, its name, text, ...
        if index % 3 == 0:
            parts.append(BLANK.sub("\n", part))
        elif index % 3 == 1:
            parts.append(part)
    return "".join(parts)
