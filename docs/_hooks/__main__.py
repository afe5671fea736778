"""The commands of the road.

python docs/_hooks run [NAME ...] [--force] [--list]   run the tutorials that are stale
python docs/_hooks page NAME                           print the Markdown of an executed tutorial
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from road.page import to_page
from road.run import say, staleness, surroundings, update
from road.source import sources, target


def run(root: Path, names: list[str], *, force: bool, only_list: bool) -> list[str]:
    """Run what is stale, or say what is; gives the problems."""
    if not only_list:
        return update(root, names, force=force)
    library = surroundings(root)
    for source in sources(root):
        say(f"{source.stem}: {staleness(root, source, library) or 'fresh'}")
    return []


def page(root: Path, name: str) -> list[str]:
    """Print a page; gives its problems."""
    kept = target(root, Path(name))
    made = to_page(nbformat.read(kept, 4), name)
    say(made.markdown)
    return made.problems


def main() -> None:
    parser = argparse.ArgumentParser(prog="python docs/_hooks", description="The road to a page.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run the tutorials that are stale")
    runs.add_argument("names", nargs="*", help="only these, as 02_seq2seq")
    runs.add_argument("--force", action="store_true", help="run them even if they are fresh")
    runs.add_argument("--list", action="store_true", help="say what is stale and run nothing")
    pages = commands.add_parser("page", help="print the Markdown of an executed tutorial")
    pages.add_argument("names", nargs=1, help="which, as 02_seq2seq")
    options = parser.parse_args()

    root = Path.cwd()
    known = [source.stem for source in sources(root)]
    if unknown := set(options.names) - set(known):
        sys.exit(f"no tutorial named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.command == "run":
        problems = run(root, options.names, force=options.force, only_list=options.list)
    else:
        problems = page(root, options.names[0])
    for problem in problems:
        print(f"ERROR {problem}", file=sys.stderr, flush=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
