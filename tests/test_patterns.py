"""The drawings of the patterns: as committed, as the script makes them, and readable."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"

spec = importlib.util.spec_from_file_location("patterns", ROOT / "docs/_hooks/patterns.py")
patterns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(patterns)
DRAWINGS = patterns.drawings()


def test_the_committed_drawings_are_what_the_script_draws():
    files = patterns.FOLDER.glob("*.svg")
    committed = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert committed == DRAWINGS, "run python docs/_hooks/patterns.py"


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_bitmap_shows_the_drawing_as_it_is_now(name):
    bitmap = (patterns.FOLDER / name).with_suffix(".png")
    assert patterns.is_of(bitmap, DRAWINGS[name]), "run python docs/_hooks/patterns.py"
    assert not patterns.is_of(bitmap, DRAWINGS[name] + "changed")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_can_be_read(name):
    root = ET.fromstring(DRAWINGS[name])
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    width, height = map(float, root.get("viewBox").split()[2:])
    assert width == 360
    words = [*root.iter(f"{SVG}text"), *root.iter(f"{SVG}tspan")]
    assert all(float(word.get("font-size")) >= 10 for word in words)
    assert all(0 < float(word.get("y")) < height for word in root.iter(f"{SVG}text"))
    assert "http" not in DRAWINGS[name].replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_colors_are_those_of_the_figures():
    style = (ROOT / "rnnkit/style.mplstyle").read_text(encoding="utf-8")
    palette = {f"#{color}" for color in re.findall(r'"(\w{6})"', style)}
    assert len(palette) == 5
    strokes = {
        color for drawing in DRAWINGS.values() for color in re.findall(r'stroke="(#\w+)"', drawing)
    }
    assert strokes <= palette | {patterns.PAD, "#D0D0D0"}


@pytest.mark.parametrize(
    ("name", "losses", "fed", "cut"),
    [
        ("00", 0, 2, 0),
        ("02", 5, 0, 0),
        ("03", 2, 0, 0),
        ("04", 0, 2, 0),
        ("06", 1, 0, 0),
        ("07", 5, 0, 2),
        ("08", 5, 2, 0),
    ],
)
def test_the_grammar(name, losses, fed, cut):
    """Diamonds are losses, dashed arrows feed an output back, a pair of bars cuts the state."""
    drawing = DRAWINGS[f"{name}.svg"]
    assert drawing.count("l11 11l-11 11l-11 -11Z") == losses
    assert drawing.count('stroke-dasharray="5 4"') == fed
    assert drawing.count("l5 -18m0 18l5 -18") == cut
