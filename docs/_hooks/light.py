"""A page hook: pages without what nobody reads. It was more than half of a tutorial's page.

The code of a tutorial is plain text, and docs/assets/site.js colors it; other code is without the tags that change no
color. Outside code, a run of white space over several lines is one line break.
"""

import re
from typing import Any

PLAIN = re.compile(r'<span class="(?:n|o|p|w)">([^<]*)</span>')
INPUT = re.compile(
    r'(<div class=")language-python (input highlight"><pre>)(.*?)(</pre>)', re.DOTALL
)
SPAN = re.compile(r"</?span[^>]*>")
VERBATIM = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)", re.DOTALL)
BLANK = re.compile(r"\s*\n\s*")


def on_page_content(html: str, **_: Any) -> str:
    html = INPUT.sub(lambda found: found[1] + found[2] + SPAN.sub("", found[3]) + found[4], html)
    return PLAIN.sub(r"\1", html)


def on_post_page(output: str, **_: Any) -> str:
    parts = VERBATIM.split(output)  # text, verbatim element, its name, text, ...
    return "".join(
        part if i % 3 == 1 else BLANK.sub("\n", part) for i, part in enumerate(parts) if i % 3 != 2
    )
