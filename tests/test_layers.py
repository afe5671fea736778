"""The house: a room imports only rooms on lower floors, and only the package's face re-exports."""

import ast
from pathlib import Path

import rnnkit

ROOT = Path(rnnkit.__file__).parent
FLOORS = {
    "core": 1,
    "data": 2,
    "models": 2,
    "losses": 2,
    "analysis": 2,
    "generation": 3,
    "training": 4,
    "": 5,
}


def imports(path: Path):
    """What a file imports of rnnkit, as paths from its root, and whether that is for types only."""
    tree = ast.parse(path.read_text())
    typing = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.relative_to(ROOT).parts[: -node.level]
            names = node.module.split(".") if node.module else [node.names[0].name]
            yield [*folder, *names], any(node in ast.walk(block) for block in typing)


def room_of(parts) -> str:
    return parts[0].removesuffix(".py").removesuffix("__init__")


FILES = sorted(ROOT.rglob("*.py"))


def test_a_room_imports_only_rooms_on_lower_floors():
    for path in FILES:
        here = room_of(path.relative_to(ROOT).parts)
        for there, _ in imports(path):
            room = room_of(there)
            assert room == here or FLOORS[room] < FLOORS[here], (
                f"{path.relative_to(ROOT)} imports {'.'.join(there)}"
            )


def test_only_the_face_re_exports():
    for path in FILES:
        tree = ast.parse(path.read_text())
        if path.name == "__init__.py" and path.parent != ROOT:
            assert len(tree.body) == 1, f"{path.parent.name}/__init__.py is more than a docstring"
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and path.parent != ROOT:
                assert all(name.asname != name.name for name in node.names), (
                    f"{path} re-exports {node.module}"
                )


def test_who_may_import_what():
    for path in FILES:
        for there, typing in imports(path):
            if there[-1] == "_fast":
                assert path.stem in ("rollouts", "beam")
            if there[-1] == "_chain":
                assert path.stem == "_fast"
            if there[-1] == "learner" and path.stem in ("checkpoint", "callbacks"):
                assert typing
