"""Draws the patterns of the tutorials.

    python docs/_hooks/patterns.py

writes docs/assets/patterns/*.svg and, with Chromium, a bitmap of each beside it, for notebooks:
JupyterLab shows no SVG that is attached to a cell.

One grammar: inputs below, state to the right, outputs above, a diamond where a loss is. A dashed
edge feeds an output to the next input, two bars cut a state that is detached, gray is padding.
"""

import shutil
import subprocess
from collections.abc import Container, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from PIL.PngImagePlugin import PngInfo

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "patterns"

STATE = "#0072B2"
LOSS = "#C04A00"
OUTPUT = "#00664A"
FED = "#B0508A"
INK = "#444444"
PAD = "#B8B8B8"

WIDTH = 360  # px: at that width a drawing is read on a phone without shrinking
GAP = 56  # between two steps
LEFT = 84  # of the first step

ABOUT = {
    "00": (
        "A forecast with known covariates",
        "Three measured inputs, then each next input is the last output, dashed. "
        "The calendar is read at every step, past and future.",
    ),
    "01": (
        "A recurrent network",
        "One cell, used at five steps: an input goes in below, a state goes on to the right, "
        "an output comes out above.",
    ),
    "02": (
        "Sequence to sequence",
        "Each step has an input below, a state that goes on to the right, "
        "an output and a loss above.",
    ),
    "03": (
        "Sequence to one",
        "Two rows of a batch, of lengths 5 and 3. "
        "The loss is on the last valid step; padding is gray.",
    ),
    "04": (
        "From a primer to samples",
        "Three given inputs, then a sampler S draws each next input from the last output, dashed.",
    ),
    "05": (
        "Sequences of different lengths",
        "Two words in one batch, the short one padded to six steps in gray. Each has its loss at "
        "its own last letter. Below, four rows in two batches: as they come, and in buckets.",
    ),
    "06": (
        "Where the gradient comes from",
        "One weight W is used at three steps. The shares d1, d2, d3 flow back and add up.",
    ),
    "07": (
        "Truncated backpropagation",
        "Three windows of at most two steps. Two bars cut the state after steps 2 and 4: "
        "its value passes, the gradient does not.",
    ),
    "08": (
        "Closed-loop validation",
        "T - n given steps have the open loss; n steps fed by the model's outputs the closed loss.",
    ),
    "09": (
        "Scheduled sampling",
        "Five steps with an output and a loss each. A coin has chosen the output of the step "
        "before, dashed, as the input of steps 3 and 5; the other steps read the data.",
    ),
    "10": (
        "Encoder, attention, decoder",
        "An encoder reads three letters in both directions; its outputs are the memory. Its last "
        "state goes on to a decoder, which writes two phonemes and a stop: each is the next input, "
        "dashed, and at each step attention A reads the memory.",
    ),
    "11": (
        "A cell of your own",
        "A cell takes an input and the state before, and gives a new state. "
        "A loop over time calls it once a step.",
    ),
    "12": (
        "Four voices that hear each other",
        "Four notes go into each state; soprano, alto, tenor and bass come out, each hearing "
        "those above it. The notes drawn are the third input, dashed.",
    ),
    "13": (
        "A label for every step",
        "Five inputs. Each goes into a state that is passed on to the right and into one that is "
        "passed on to the left; both make the output, which has a loss.",
    ),
    "14": (
        "A probabilistic forecast with known covariates",
        "Each output is a distribution. After three measured inputs, each next input is drawn "
        "from the last distribution, dashed. The calendar is read at every step.",
    ),
    "15": (
        "A model in service",
        "Three calls of one model: users A and B, then A, B and C, then B and C. The states of "
        "those who type come from a store below, and the new ones go back to it.",
    ),
    "16": (
        "Two processes that train one model",
        "Two unrolled graphs of three steps, one a process, each with rows and a state of its own. "
        "The sum and the weight of each one's losses go into one gradient.",
    ),
}

Parts = list[str]


# --- what a drawing is made of -------------------------------------------------------------------


def text(
    x: float, y: float, words: str, color: str = INK, *, anchor: str = "middle", size: int = 13
) -> str:
    """Words; `h_1` sets what follows the underscore as an index."""
    base, _, index = escape(words).partition("_")
    low = f'<tspan dy="3" font-size="{size - 1.8:g}">{index}</tspan>' if index else ""
    place = f'x="{x:g}" y="{y}" fill="{color}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{base}{low}</text>"


def path(
    data: str, color: str = INK, *, dashed: bool = False, width: float = 1.8, tip: bool = True
) -> str:
    """A line along `data`, an arrow if it has a tip."""
    line = f'<path d="{data}" fill="none" stroke="{color}" stroke-width="{width}"'
    if dashed:
        line += ' stroke-dasharray="5 4"'
    if tip:
        line += f' marker-end="url(#tip-{color[1:]})"'
    return line + "/>"


def disc(x: float, y: float, words: str, color: str, *, dashed: bool = False) -> str:
    circle = f'<circle cx="{x}" cy="{y}" r="15" fill="#FFFFFF" stroke="{color}" stroke-width="1.8"'
    if dashed:
        circle += ' stroke-dasharray="4 3"'
    return circle + "/>" + text(x, y + 4, words, color)


def box(
    x: float, y: float, words: str, color: str = STATE, *, width: int = 36, fill: str = "#EAF3F9"
) -> str:
    place = f'x="{x - width / 2:g}" y="{y - 15}" width="{width}" height="30" rx="6"'
    rect = f'<rect {place} fill="{fill}" stroke="{color}" stroke-width="1.8"/>'
    return rect + text(x, y + 4, words, color)


def diamond(x: float, y: float, color: str = LOSS) -> str:
    """A loss; (x, y) is its middle."""
    return f'<path d="M{x} {y - 11}l11 11l-11 11l-11 -11Z" fill="{color}"/>'


def span(x1: float, x2: float, y: float, words: str, color: str = INK) -> str:
    """A bracket under the columns from x1 to x2."""
    bracket = path(f"M{x1 - 18} {y - 5}V{y}H{x2 + 18}V{y - 5}", color, width=1.2, tip=False)
    return bracket + text((x1 + x2) / 2, y + 16, words, color)


# --- the unrolled graph --------------------------------------------------------------------------


class Graph:
    """The unrolled graph, one column per input; its first row, losses or outputs, is at `y`."""

    def __init__(
        self,
        y: int,
        inputs: Sequence[str],
        outputs: Sequence[str],
        losses: Container[int] = (),
        *,
        fed: Container[int] = (),
        cuts: Container[int] = (),
        valid: int = 9,
        gap: int = GAP,
        left: int = LEFT,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.losses = losses
        self.fed = fed
        self.cuts = cuts
        self.valid = valid
        self.gap = gap
        self.left = left
        # the height of each row
        self.y = y
        self.top = y + 46 if losses else y
        self.mid = self.top + 54
        self.low = self.top + 108

    def parts(self) -> Parts:
        parts = self._names()
        for t in range(len(self.inputs)):
            parts += self._state(t)
            parts += self._output(t)
            parts += self._input(t)
            parts += self._loss(t)
        return parts

    def _x(self, t: int) -> int:
        return self.left + t * self.gap

    def _ink(self, t: int, color: str) -> str:
        return color if t < self.valid else PAD

    def _names(self) -> Parts:
        rows = {"loss": self.y} if self.losses else {}
        rows |= {"output": self.top, "state": self.mid, "input": self.low}
        return [text(8, y + 4, name, anchor="start", size=12) for name, y in rows.items()]

    def _state(self, t: int) -> Parts:
        parts: Parts = []
        x = self._x(t)
        color = self._ink(t, STATE)
        if t > 0:
            parts.append(path(f"M{x - self.gap + 18} {self.mid}H{x - 20}", color))
        if t in self.cuts:
            bars = f"M{x + self.gap // 2 - 8} {self.mid + 9}l5 -18m0 18l5 -18"
            parts.append(path(bars, LOSS, width=2.4, tip=False))
        parts.append(path(f"M{x} {self.low - 15}V{self.mid + 17}", self._ink(t, INK)))
        fill = "#EAF3F9" if t < self.valid else "#FFFFFF"
        parts.append(box(x, self.mid, f"h_{t + 1}", color, fill=fill))
        return parts

    def _output(self, t: int) -> Parts:
        if not self.outputs[t]:
            return []
        x = self._x(t)
        up = path(f"M{x} {self.mid - 15}V{self.top + 17}", OUTPUT)
        return [up, disc(x, self.top, self.outputs[t], OUTPUT)]

    def _input(self, t: int) -> Parts:
        x = self._x(t)
        if t not in self.fed:
            return [disc(x, self.low, self.inputs[t], self._ink(t, INK))]
        start = f"M{x - self.gap + 15} {self.top}"
        bend = x - self.gap // 2
        down = f"Q{bend} {self.top} {bend} {self.mid}Q{bend} {self.low} {x - 17} {self.low}"
        fed = disc(x, self.low, self.inputs[t], FED, dashed=True)
        return [fed, path(start + down, FED, dashed=True)]

    def _loss(self, t: int) -> Parts:
        if t not in self.losses:
            return []
        x = self._x(t)
        color = FED if t in self.fed else LOSS
        up = path(f"M{x} {self.top - 15}V{self.y + 13}", color)
        return [up, diamond(x, self.y, color)]


# --- the drawings --------------------------------------------------------------------------------

XS = [f"x_{t}" for t in range(1, 6)]
YS = [f"y_{t}" for t in range(1, 6)]


def recurrent_network() -> tuple[int, Parts]:
    parts = Graph(26, XS, YS).parts()
    parts.append(span(84, 308, 164, "one cell, the same weights at every step", STATE))
    return 192, parts


def sequence_to_sequence() -> tuple[int, Parts]:
    return 206, Graph(26, XS, YS, range(5)).parts()


def sequence_to_one() -> tuple[int, Parts]:
    parts = Graph(28, XS, ["", "", "", "", "y_5"]).parts() + loss_beside(308, 28)
    parts.append(text(66, 32, "row 1, length 5", anchor="start"))
    parts += Graph(188, XS, ["", "", "y_3", "", ""], valid=3).parts() + loss_beside(196, 188)
    parts.append(text(66, 192, "row 2, length 3", anchor="start"))
    return 320, parts


def loss_beside(x: int, y: int) -> Parts:
    """The loss of the output at (x, y), at its right and not above it, which takes less room."""
    right = path(f"M{x + 15} {y}H{x + 23}", LOSS, tip=False)
    return [right, diamond(x + 34, y), text(x + 34, y - 15, "loss", LOSS, size=12)]


def primer_to_samples() -> tuple[int, Parts]:
    parts = Graph(26, [*XS[:3], "s_4", "s_5"], YS, fed=[3, 4]).parts()
    parts += [box(x, 44, "S", FED, width=18, fill="#FFFFFF") for x in (224, 280)]
    parts.append(span(84, 196, 164, "primer"))
    parts.append(span(252, 308, 164, "drawn by S", FED))
    return 192, parts


def different_lengths() -> tuple[int, Parts]:
    parts: Parts = []
    for row, (word, count) in enumerate([("oak", 1), ("banana", 3)]):
        y = 64 + 70 * row
        last = len(word) - 1
        for t in range(6):
            x = 88 + 48 * t
            color, line, letter = PAD, PAD, "0"
            if t <= last:
                color, line, letter = INK, STATE, word[t]
            if t > 0:
                parts.append(path(f"M{x - 32} {y}H{x - 18}", line))
            parts.append(disc(x, y, letter, color))
        x = 88 + 48 * last
        parts.append(path(f"M{x} {y - 15}V{y - 23}", LOSS))
        parts.append(diamond(x, y - 35))
        syllables = "1 syllable" if count == 1 else f"{count} syllables"
        if last == 5:  # no room to the right
            parts.append(text(x - 16, y - 30, syllables, LOSS, anchor="end"))
        else:
            parts.append(text(x + 16, y - 30, syllables, LOSS, anchor="start"))
        parts.append(text(8, y - 2, f"length {len(word)}", anchor="start", size=12))

    parts += _rows_as_squares(24, "as they come", [[3, 6], [6, 2]])
    parts += _rows_as_squares(204, "in buckets", [[6, 6], [3, 2]])
    return 278, parts


def _rows_as_squares(left: int, name: str, batches: list[list[int]]) -> Parts:
    """Batches one under the other, a row for each sequence: a square a step, gray where padded."""
    parts = [text(left, 182, name, anchor="start")]
    y = 194
    for lengths in batches:
        for length in lengths:
            for t in range(max(lengths)):
                size = 13
                look = f'fill="{PAD}"'
                if t < length:
                    size = 12
                    look = 'fill="#EAF3F9" stroke="#0072B2"'
                place = f'x="{left + 17 * t}" y="{y}" width="{size}" height="{size}"'
                parts.append(f'<rect {place} {look} stroke-width="1.4"/>')
            y += 17
        y += 8
    return parts


def gradient_shares() -> tuple[int, Parts]:
    parts = Graph(26, XS[:3], ["", "", "y_3"], [2], gap=100, left=96).parts()
    parts.append(path("M276 26Q254 26 254 70Q254 100 276 114", LOSS, width=2.6))
    for t, x in enumerate((96, 196, 296)):
        if t > 0:
            parts.append(path(f"M{x - 20} 118H{x - 79}", LOSS, width=2.6))
        parts.append(path(f"M{x - 30} 255V180Q{x - 30} 156 {x - 20} 140"))
        parts.append(path(f"M{x + 19} 136Q{x + 30} 146 {x + 30} 172V250", LOSS, width=2.6))
        parts.append(text(x + 44, 220, f"d_{t + 1}", LOSS))
    parts.append(box(196, 270, "one weight W, used three times", width=272))
    parts.append(text(196, 310, "gradient of W = d₁ + d₂ + d₃", LOSS))
    return 326, parts


def truncated() -> tuple[int, Parts]:
    parts = Graph(26, XS, YS, range(5), cuts=[1, 3]).parts()
    parts.append(span(84, 140, 208, "window 1"))
    parts.append(span(196, 252, 208, "window 2"))
    parts.append(span(308, 308, 208, "3"))
    return 236, parts


def closed_loop() -> tuple[int, Parts]:
    parts = Graph(26, [*XS[:3], "y_3", "y_4"], YS, range(5), fed=[3, 4]).parts()
    parts.append(span(84, 196, 208, "T \u2212 n steps given", LOSS))
    parts.append(span(252, 308, 208, "n self-fed", FED))
    parts.append(text(140, 242, "open loss", LOSS))
    parts.append(text(280, 242, "closed loss", FED))
    return 254, parts


def forecast_with_calendar() -> tuple[int, Parts]:
    parts = Graph(26, [*XS[:3], "y_3", "y_4"], YS, fed=[3, 4]).parts()
    return 244, parts + _calendar_below("its own")


def drawn_with_calendar() -> tuple[int, Parts]:
    distributions = [f"p_{t}" for t in range(1, 6)]
    parts = Graph(26, [*XS[:3], "s_4", "s_5"], distributions, fed=[3, 4]).parts()
    parts += [box(x, 44, "D", FED, width=18, fill="#FFFFFF") for x in (224, 280)]
    return 244, parts + _calendar_below("drawn by D")


def _calendar_below(fed: str) -> Parts:
    """What is known of all five steps, and where the last two get the rest from."""
    parts = [text(8, 186, "calendar", anchor="start", size=12)]
    for t in range(5):
        x = LEFT + t * GAP
        parts.append(path(f"M{x} 167V151", INK))
        parts.append(disc(x, 182, f"c_{t + 1}", INK))
    parts.append(span(84, 196, 216, "measured"))
    parts.append(span(252, 308, 216, fed, FED))
    return parts


def attention() -> tuple[int, Parts]:
    letters = {"s": 46, "h": 96, "e": 146}
    written = {"SH": 214, "IY": 268, "stop": 322}
    top, middle, mid, low = 26, 80, 138, 192
    parts = [box(96, middle, "memory", OUTPUT, width=136, fill="#FFFFFF")]

    # The encoder reads in both directions.
    for letter, x in letters.items():
        parts.append(path(f"M{x} {low - 15}V{mid + 17}"))
        parts.append(path(f"M{x} {mid - 15}V{middle + 17}", OUTPUT))
        parts += [box(x, mid, "h", STATE), disc(x, low, letter, INK)]
        if x > 46:
            parts.append(path(f"M{x - 32} {mid - 6}H{x - 20}", STATE))
            parts.append(path(f"M{x - 18} {mid + 6}H{x - 30}", STATE))

    # The decoder is fed what it wrote, and looks at the memory at each step.
    parts.append(path(f"M164 {mid}H194", STATE))
    parts.append(path(f"M164 {middle}H196", OUTPUT))
    for i, (phone, x) in enumerate(written.items()):
        parts.append(path(f"M{x} {mid - 15}V{middle + 17}", STATE))
        parts.append(path(f"M{x} {middle - 15}V{top + 17}", OUTPUT))
        parts.append(path(f"M{x} {low - 15}V{mid + 17}"))
        parts += [box(x, mid, "s", STATE), box(x, middle, "A", OUTPUT, width=30, fill="#FFFFFF")]
        parts.append(box(x, top, phone, OUTPUT, width=40 if i == 2 else 30, fill="#FFFFFF"))
        if i == 0:
            parts.append(box(x, low, "start", INK, width=44, fill="#FFFFFF"))
            continue
        parts.append(path(f"M{x - 36} {mid}H{x - 20}", STATE))
        parts.append(path(f"M{x - 39} {middle}H{x - 18}", OUTPUT))
        bend = x - 27
        down = f"Q{bend} {top} {bend} {mid}Q{bend} {low} {x - 17} {low}"
        parts.append(disc(x, low, list(written)[i - 1], FED, dashed=True))
        parts.append(path(f"M{x - 39} {top}" + down, FED, dashed=True))
    parts.append(span(46, 146, 222, "encoder"))
    parts.append(span(214, 322, 222, "decoder", FED))
    return 250, parts


def own_cell() -> tuple[int, Parts]:
    parts = [text(8, 24, "yours: one step", anchor="start")]
    parts += [path("M90 58H148", STATE), path("M212 58H248", STATE), path("M180 101V76")]
    parts += [box(60, 58, "state", width=60), box(295, 58, "new state", width=90)]
    parts += [box(180, 58, "cell", LOSS, width=60, fill="#FFFFFF"), disc(180, 117, "x", INK)]
    parts.append(text(8, 160, "the loop: Unroll(cell)", anchor="start"))
    return 320, parts + Graph(188, XS, YS).parts()


def both_directions() -> tuple[int, Parts]:
    loss, output, back, forth, low = 26, 72, 126, 180, 234
    rows = {"loss": loss, "output": output, "state": back, "input": low}
    parts = [text(8, y + 4, name, anchor="start", size=12) for name, y in rows.items()]
    for t in range(5):
        x = LEFT + t * GAP
        if t > 0:
            parts.append(path(f"M{x - GAP + 15} {forth}H{x - 17}", STATE))
            parts.append(path(f"M{x - 15} {back}H{x - GAP + 17}", FED))
        parts.append(path(f"M{x} {low - 15}V{forth + 17}"))
        parts.append(path(f"M{x} {back - 15}V{output + 17}", OUTPUT))
        # past the state in between: the input on its right, the forward state on its left
        right = x + 25
        beside = f"Q{right} {low - 24} {right} {forth}Q{right} {back + 30} {x + 11} {back + 16}"
        parts.append(path(f"M{x + 12} {low - 10}" + beside))
        left = x - 25
        beside = f"Q{left} {forth - 28} {left} {back}Q{left} {output + 26} {x - 12} {output + 12}"
        parts.append(path(f"M{x - 11} {forth - 15}" + beside, OUTPUT))
        parts.append(box(x, back, f"b_{t + 1}", FED, width=30, fill="#FBF1F6"))
        parts.append(box(x, forth, f"h_{t + 1}", width=30))
        parts.append(disc(x, output, YS[t], OUTPUT))
        parts.append(disc(x, low, XS[t], INK))
        parts.append(path(f"M{x} {output - 15}V{loss + 13}", LOSS))
        parts.append(diamond(x, loss))
    return 260, parts


def four_voices() -> tuple[int, Parts]:
    parts = [text(8, 66, "output", anchor="start", size=12)]
    parts += [text(8, 158, "state", anchor="start", size=12)]
    parts += [text(8, 214, "input", anchor="start", size=12)]
    for t, x in enumerate((96, 196, 296)):
        if t > 0:
            parts.append(path(f"M{x - 82} 154H{x - 20}", STATE))
        parts.append(path(f"M{x} 197V171"))
        parts.append(box(x, 154, f"h_{t + 1}", width=36))
        parts.append(path(f"M{x} 139V129", OUTPUT))
        for row, name in enumerate("SATB"):
            parts.append(text(x, 24 + 30 * row, name, OUTPUT))
            if row > 0:
                parts.append(path(f"M{x} {30 * row - 2}v10", OUTPUT, width=1.4))
        frame = f'<rect x="{x - 18}" y="10" width="36" height="116" rx="8" fill="none"'
        parts.append(frame + f' stroke="{OUTPUT}" stroke-width="1.8"/>')
        fed = t == 2
        color = FED if fed else INK
        dashes = ' stroke-dasharray="4 3"' if fed else ""
        place = f'<rect x="{x - 38}" y="199" width="76" height="26" rx="13" fill="#FFFFFF"'
        parts.append(f'{place} stroke="{color}" stroke-width="1.8"{dashes}/>')
        parts.append(text(x, 216, "S A T B", color))
    parts.append(path("M214 68Q246 68 246 130Q246 212 256 212", FED, dashed=True))
    parts.append(span(96, 196, 240, "given"))
    parts.append(span(278, 314, 240, "drawn", FED))
    return 266, parts


def scheduled_sampling() -> tuple[int, Parts]:
    parts = Graph(26, ["x_1", "x_2", "y_2", "x_4", "y_4"], YS, range(5), fed=[2, 4]).parts()
    parts.append(text(8, 217, "coin", anchor="start", size=12))
    for t, side in enumerate(["", "data", "own", "data", "own"]):
        color = FED if side == "own" else INK
        parts.append(text(LEFT + t * GAP, 217, side, color))
    return 230, parts


def in_service() -> tuple[int, Parts]:
    top, middle, low, store = 26, 84, 142, 214
    rows = {"output": top, "call": middle, "input": low, "kept": store}
    parts = [text(8, y + 4, name, anchor="start", size=12) for name, y in rows.items()]
    for x, users in ((104, "A B"), (196, "A B C"), (288, "B C")):
        parts.append(path(f"M{x} {low - 13}V{middle + 17}"))
        parts.append(path(f"M{x} {middle - 15}V{top + 15}", OUTPUT))
        parts += [_pill(x, top, users, OUTPUT), _pill(x, low, users, INK)]
        parts.append(box(x, middle, "step", width=52))
        # up from the store at its left, down to it at its right
        parts.append(
            path(f"M{x - 38} {store - 19}V{middle + 12}Q{x - 38} {middle} {x - 29} {middle}", STATE)
        )
        parts.append(
            path(f"M{x + 26} {middle}Q{x + 38} {middle} {x + 38} {middle + 12}V{store - 21}", STATE)
        )
    frame = f'<rect x="58" y="{store - 18}" width="276" height="36" rx="8" fill="none"'
    parts.append(frame + f' stroke="{STATE}" stroke-width="1.8"/>')
    for x, user in ((104, "A"), (196, "B"), (288, "C")):
        parts.append(text(x, store + 4, f"state of {user}", STATE, size=12))
    return 246, parts


def _pill(x: int, y: int, words: str, color: str) -> str:
    place = f'x="{x - 29}" y="{y - 13}" width="58" height="26" rx="13"'
    rect = f'<rect {place} fill="#FFFFFF" stroke="{color}" stroke-width="1.8"/>'
    return rect + text(x, y + 4, words, color)


def two_processes() -> tuple[int, Parts]:
    middle, x = 142, 290
    parts = [box(x, middle, "one gradient", LOSS, width=104, fill="#FFFFFF")]
    for rank, y in enumerate((28, 256)):
        parts += Graph(y, XS[:3], YS[:3], range(3)).parts()
        parts.append(span(84, 196, y + 182, f"process {rank + 1}, rows of its own"))
        parts.append(path(f"M210 {y}H{x - 54}", LOSS))
        parts.append(box(x, y, "sum, weight", LOSS, width=104, fill="#FFFFFF"))
    parts.append(path(f"M{x} 45V{middle - 17}", LOSS))
    parts.append(path(f"M{x} 239V{middle + 17}", LOSS))
    return 464, parts


DRAWN = {
    "00": forecast_with_calendar,
    "01": recurrent_network,
    "02": sequence_to_sequence,
    "03": sequence_to_one,
    "04": primer_to_samples,
    "05": different_lengths,
    "06": gradient_shares,
    "07": truncated,
    "08": closed_loop,
    "09": scheduled_sampling,
    "10": attention,
    "11": own_cell,
    "12": four_voices,
    "13": both_directions,
    "14": drawn_with_calendar,
    "15": in_service,
    "16": two_processes,
}


def drawings() -> dict[str, str]:
    """File name -> SVG."""
    made: dict[str, str] = {}
    for number, draw in DRAWN.items():
        height, parts = draw()
        made[f"{number}.svg"] = svg(*ABOUT[number], height, parts)
    return made


def svg(title: str, description: str, height: int, parts: Parts) -> str:
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH * 1.5:g}" height="{height * 1.5:g}" role="img"'
        ' font-family="DejaVu Sans, Verdana, sans-serif">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>",
        "<defs>",
        *(arrow_tip(color) for color in (STATE, LOSS, OUTPUT, FED, INK, PAD)),
        "</defs>",
        f'{card} fill="#FFFFFF" stroke="#D0D0D0"/>',
        *parts,
        "</svg>\n",
    ]
    return "\n".join(lines)


def arrow_tip(color: str) -> str:
    marker = f'<marker id="tip-{color[1:]}" viewBox="0 0 8 8" refX="6.5" refY="4"'
    size = 'markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" orient="auto"'
    return f'{marker} {size}><path d="M0 0L8 4L0 8Z" fill="{color}"/></marker>'


# --- bitmaps -------------------------------------------------------------------------------------


def mark_of(drawing: str) -> str:
    """What a bitmap holds in its text "Drawing": which drawing it is of."""
    return sha256(drawing.encode()).hexdigest()[:16]


def is_of(bitmap: Path, drawing: str) -> bool:
    """Whether there is such a bitmap and it shows this drawing."""
    if not bitmap.exists():
        return False
    with Image.open(bitmap) as image:
        return image.info.get("Drawing") == mark_of(drawing)


def photograph(drawing: Path, bitmap: Path, browser: str) -> None:
    """A drawing as Chromium shows it, half as large again, in at most 64 colors."""
    text = drawing.read_text(encoding="utf-8")
    height = text.partition(f'viewBox="0 0 {WIDTH} ')[2].partition('"')[0]
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        size = f"--window-size={WIDTH * 3 // 2},{int(height) * 3 // 2 + 200}"  # and room to spare
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        scale = "--force-device-scale-factor=1.5"
        command = [browser, *options, scale, f"--screenshot={shot}", drawing.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        whole = Image.open(shot).convert("RGB")
    about = PngInfo()
    about.add_text("Drawing", mark_of(text))
    cut = whole.crop((0, 0, WIDTH * 9 // 4, int(height) * 9 // 4))
    cut.quantize(64).save(bitmap, pnginfo=about, optimize=True)


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for name, drawing in drawings().items():
        file = FOLDER / name
        bitmap = file.with_suffix(".png")
        file.write_text(drawing, encoding="utf-8")
        if is_of(bitmap, drawing):
            continue
        if browser:
            photograph(file, bitmap, browser)
        else:
            print(f"{bitmap.name} is old, and there is no Chromium to make it with")


if __name__ == "__main__":
    main()
