"""What a reader takes away of the site. Nothing here needs MkDocs or the network.

    about      what the site was made with: versions, and the commit where it is known
    changes    CHANGES.md as a page, and its releases
    feed       the releases as an Atom feed
    cite       CITATION.cff as a page
    twin       a page as plain Markdown, beside its HTML
    api        what a docstring says, as Markdown, for the twins of the API
    llms       llms.txt, the list of the twins
    card       the picture of a page that is shared
    archive    the whole site as a zip that opens from a disk

`docs/_hooks/takeaway.py` is what MkDocs calls. What is of no use without an address, the feed and
the cards, is made where the site's address is known.
"""
