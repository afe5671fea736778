"""How the code is written, in figures: `python tests/test_style.py [FOLDER]` prints them.

What is counted, by syntax tree and tokens:

- A code line is a line that is neither blank nor part of a docstring; a line with a comment alone
  is one. "Per 1,000" is per 1,000 code lines.
- A conditional expression is `a if b else c`, in comprehensions and calls too; a statement `if` is
  none.
- A tuple assignment is `a, b = x, y`: a tuple displayed on both sides. Taking apart what belongs
  together, as in `outputs, state = model(inputs)`, is none.
- A comment is a comment token, at a line's end too; what speaks to a tool (pyright, ruff) is none.
- A function's length is its lines from `def` to its end, without its docstring.
- A room is a folder or module at the top of the package; a floor is one step of the longest chain
  of imports between rooms; a circle is a set of rooms of which each reaches each.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rnnkit"
HOOKS = ROOT / "docs" / "_hooks"
WIDTH = 100
TO_A_TOOL = re.compile(r"#\s*(pyright|type|ruff|noqa|fmt|pragma)\b")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Figures:
    """The figures of one file, or of several added up."""

    lines: int = 0
    code: int = 0
    comments: int = 0
    conditional: int = 0
    tuples: int = 0
    wide: list[str] = field(default_factory=list)  # file:line of each line over WIDTH
    longest: tuple[int, str] = (0, "")  # its lines and its name

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            self.lines + other.lines,
            self.code + other.code,
            self.comments + other.comments,
            self.conditional + other.conditional,
            self.tuples + other.tuples,
            self.wide + other.wide,
            max(self.longest, other.longest),
        )

    def per_1000(self, count: int) -> float:
        return 1000 * count / self.code

    def percent(self, count: int) -> float:
        return 100 * count / self.code


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def is_tuple_assignment(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(TO_A_TOOL.match(comment) is None for comment in said)


def measure(text: str, name: str) -> Figures:
    """The figures of one source text."""
    tree = ast.parse(text)
    lines = text.splitlines()
    documented = docstring_lines(tree)
    figures = Figures(lines=len(lines), comments=comments(text))
    for number, line in enumerate(lines, 1):
        if len(line) > WIDTH:
            figures.wide.append(f"{name}:{number}")
        if line.strip() and number not in documented:
            figures.code += 1
    for node in ast.walk(tree):
        figures.conditional += isinstance(node, ast.IfExp)
        figures.tuples += is_tuple_assignment(node)
        if isinstance(node, ast.FunctionDef):
            own = set(range(node.lineno, node.end_lineno + 1))
            own -= docstring_lines(ast.Module([node], []))
            figures.longest = max(figures.longest, (len(own), f"{name}: {node.name}"))
    return figures


def figures_of(folder: Path) -> Figures:
    """The figures of all Python below a folder."""
    total = Figures()
    for path in sorted(folder.rglob("*.py")):
        total += measure(
            path.read_text(encoding="utf-8"), path.relative_to(folder.parent).as_posix()
        )
    return total


# --- the house -----------------------------------------------------------------------------------


def room_of(parts: Iterable[str]) -> str:
    """The room that a path below the package stands in; the face is a room of its own."""
    first = next(iter(parts)).removesuffix(".py")
    return "the face" if first == "__init__" else first


def imported(tree: ast.AST, folders: tuple[str, ...]) -> Iterator[str]:
    """The rooms that a module in `folders` of the package imports from."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            package, *parts = (node.module or "").split(".")
            if package == "rnnkit":
                yield room_of(parts or ["__init__"])
            continue
        above = folders[: len(folders) + 1 - node.level]
        if node.module:
            yield room_of([*above, *node.module.split(".")])
        else:
            yield from (room_of([*above, name.name]) for name in node.names)


def rooms(package: Path) -> dict[str, set[str]]:
    """Each room and the other rooms that it imports."""
    needs: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        here = needs.setdefault(room_of(parts), set())
        here |= set(imported(ast.parse(path.read_text(encoding="utf-8")), parts[:-1]))
    return {room: others - {room} for room, others in needs.items()}


def reached(room: str, needs: dict[str, set[str]]) -> set[str]:
    """All rooms that a room needs, at once or through others."""
    seen: set[str] = set()
    waiting = set(needs[room])
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting |= needs[here]
    return seen


def circles(needs: dict[str, set[str]]) -> set[frozenset[str]]:
    found: set[frozenset[str]] = set()
    for room in needs:
        circle = {other for other in reached(room, needs) if room in reached(other, needs)}
        if circle:
            found.add(frozenset(circle))
    return found


def floors(needs: dict[str, set[str]]) -> int:
    """How many floors the house has; there must be no circle."""

    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in needs[room]), default=0)

    return max(floor(room) for room in needs)


# --- what is held --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[PACKAGE, HOOKS], ids=["rnnkit", "hooks"])
def figures(request: pytest.FixtureRequest) -> Figures:
    return figures_of(request.param)


def test_no_line_is_wider_than_100_columns(figures: Figures) -> None:
    assert not figures.wide


def test_a_conditional_expression_is_for_a_default(figures: Figures) -> None:
    assert figures.per_1000(figures.conditional) <= 20


def test_one_thought_a_line(figures: Figures) -> None:
    assert figures.per_1000(figures.tuples) <= 10


def test_a_comment_stands_where_a_reader_stops() -> None:
    figures = figures_of(PACKAGE)
    assert figures.percent(figures.comments) >= 4


def test_the_house_has_five_floors_and_no_circle() -> None:
    needs = rooms(PACKAGE)
    assert not circles(needs)
    assert floors(needs) == 5


def test_the_measure_sees_what_it_counts() -> None:
    text = '"""Two\n\nlines."""\n\na, b = 1, 2\nc = a if b else 3  # why\nd, e = divmod(a, b)\n'
    seen = measure(text, "x.py")
    assert (seen.lines, seen.code, seen.comments) == (7, 3, 1)
    assert (seen.conditional, seen.tuples) == (1, 1)
    assert measure(f"x = '{WIDTH * 'x'}'  # noqa\n", "x.py").wide == ["x.py:1"]
    assert measure("x = 1  # noqa\n", "x.py").comments == 0
    assert measure('def f():\n    """Doc."""\n    return 1\n', "x.py").longest == (2, "x.py: f")
    circle = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert circles(circle) == {frozenset({"b", "c"})}
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3


def table(folder: Path) -> str:
    figures = figures_of(folder)
    length, name = figures.longest
    lines = [
        f"lines                               {figures.lines}",
        f"code lines                          {figures.code}",
        f"conditional expressions per 1,000   {figures.per_1000(figures.conditional):.1f}"
        f"  ({figures.conditional}; at most 20)",
        f"tuple assignments per 1,000         {figures.per_1000(figures.tuples):.1f}"
        f"  ({figures.tuples}; at most 10)",
        f"comments, of code lines             {figures.percent(figures.comments):.1f} %"
        f"  ({figures.comments}; at least 4 %)",
        f"comments, of all lines              {100 * figures.comments / figures.lines:.1f} %",
        f"lines over {WIDTH} columns             {len(figures.wide)}",
        f"longest function                    {length} lines, {name}",
    ]
    if folder.name == PACKAGE.name:
        needs = rooms(folder)
        around = circles(needs)
        high = "none, for there are circles" if around else str(floors(needs))
        lines += [
            f"rooms                               {len(needs)}",
            f"floors                              {high}",
            f"circles                             {len(around)}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE))
