"""A page hook: pages without what nobody sees. Both were more than half of a tutorial's page.

Code keeps the colors of keywords, strings, comments and the names that are defined; everything else in it is drawn in
one color, without tags of its own. Outside code, a run of white space over several lines is one line break.
"""

import re
from typing import Any

PLAIN = re.compile(r'<span class="(?:n|o|p|w|mi|mf|si|nb|ow|bp|nn|fm|ne|sa|se)">([^<]*)</span>')
VERBATIM = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)", re.DOTALL)
BLANK = re.compile(r"\s*\n\s*")


def on_page_content(html: str, **_: Any) -> str:
    return PLAIN.sub(r"\1", html)


def on_post_page(output: str, **_: Any) -> str:
    parts = VERBATIM.split(output)  # text, verbatim element, its name, text, ...
    return "".join(part if i % 3 == 1 else BLANK.sub("\n", part) for i, part in enumerate(parts) if i % 3 != 2)
