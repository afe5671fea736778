"""Draws the patterns of the tutorials: `python docs/_hooks/patterns.py` writes docs/assets/patterns/*.svg.

One grammar: inputs below, state to the right, outputs above, a diamond where a loss is. A dashed edge feeds an
output to the next input, two bars cut a state that is detached, gray is padding.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "patterns"
STATE, LOSS, OUTPUT, FED, INK, PAD = (
    "#0072B2",
    "#C04A00",
    "#00664A",
    "#B0508A",
    "#444444",
    "#B8B8B8",
)
WIDTH, GAP, LEFT = (
    360,
    56,
    84,
)  # a drawing is 360 px wide: at that width it is read without shrinking
WORDS = """
02|Sequence to sequence|Each step has an input below, a state that goes on to the right, an output and a loss above.
03|Sequence to one|Two rows of a batch, of lengths 5 and 3. The loss is on the last valid step; padding is gray.
04|From a primer to samples|Three given inputs, then a sampler S draws each next input from the last output, dashed.
06|Where the gradient comes from|One weight W is used at three steps. The shares d1, d2, d3 flow back and add up.
07|Truncated backpropagation|Two bars cut the state after steps 2 and 4: its value passes, the gradient does not.
08|Closed-loop validation|T - n given steps have the open loss; n steps fed by the model's outputs the closed loss.
"""


def text(x, y, words, color=INK, anchor="middle", size=13):
    """Words; `h_1` sets what follows the underscore as an index."""
    base, _, index = escape(words).partition("_")
    low = f'<tspan dy="3" font-size="{size - 3}">{index}</tspan>' if index else ""
    return f'<text x="{x:g}" y="{y}" fill="{color}" text-anchor="{anchor}" font-size="{size}">{base}{low}</text>'


def path(data, color=INK, dashed=False, width=1.8, tip=True):
    """A line along `data`, an arrow if it has a tip."""
    more = ' stroke-dasharray="5 4"' * dashed + f' marker-end="url(#tip-{color[1:]})"' * tip
    return f'<path d="{data}" fill="none" stroke="{color}" stroke-width="{width}"{more}/>'


def disc(x, y, words, color, dashed=False):
    more = ' stroke-dasharray="4 3"' * dashed
    circle = f'<circle cx="{x}" cy="{y}" r="15" fill="#FFFFFF" stroke="{color}" stroke-width="1.8"{more}/>'
    return circle + text(x, y + 4, words, color)


def box(x, y, words, color=STATE, width=36, fill="#EAF3F9"):
    rect = (
        f'<rect x="{x - width / 2:g}" y="{y - 15}" width="{width}" height="30" rx="6" fill="{fill}"'
    )
    return f'{rect} stroke="{color}" stroke-width="1.8"/>' + text(x, y + 4, words, color)


def span(x1, x2, y, words, color=INK):
    """A bracket under the columns from x1 to x2."""
    bracket = path(f"M{x1 - 18} {y - 5}V{y}H{x2 + 18}V{y - 5}", color, width=1.2, tip=False)
    return bracket + text((x1 + x2) / 2, y + 16, words, color)


def graph(y, inputs, outputs, losses=(), fed=(), cuts=(), valid=9, gap=GAP, left=LEFT):
    """The unrolled graph, one column per input; its first row, losses or else outputs, stands at `y`."""
    top = y + 46 if losses else y
    mid, low = top + 54, top + 108
    rows = {"loss": y, "output": top, "state": mid, "input": low}
    parts = [
        text(8, at + 4, row, anchor="start", size=12)
        for row, at in rows.items()
        if losses or row != "loss"
    ]
    for t, name in enumerate(inputs):
        x = left + t * gap
        state, ink, fill = (STATE, INK, "#EAF3F9") if t < valid else (PAD, PAD, "#FFFFFF")
        parts += [path(f"M{x - gap + 18} {mid}H{x - 20}", state)] * (t > 0)
        if t in cuts:
            parts.append(
                path(f"M{x + gap // 2 - 8} {mid + 9}l5 -18m0 18l5 -18", LOSS, width=2.4, tip=False)
            )
        parts += [
            path(f"M{x} {low - 15}V{mid + 17}", ink),
            box(x, mid, f"h_{t + 1}", state, fill=fill),
        ]
        if outputs[t]:
            parts += [path(f"M{x} {mid - 15}V{top + 17}", OUTPUT), disc(x, top, outputs[t], OUTPUT)]
        parts.append(disc(x, low, name, FED if t in fed else ink, dashed=t in fed))
        if t in fed:
            bend = x - gap // 2
            curve = f"M{x - gap + 15} {top}Q{bend} {top} {bend} {mid}Q{bend} {low} {x - 17} {low}"
            parts.append(path(curve, FED, dashed=True))
        if t in losses:
            color = FED if t in fed else LOSS
            mark = f'<path d="M{x} {y - 11}l11 11l-11 11l-11 -11Z" fill="{color}"/>'
            parts += [path(f"M{x} {top - 15}V{y + 13}", color), mark]
    return parts


def drawings():
    """File name -> SVG."""
    xs, ys, each = [f"x_{t}" for t in range(1, 6)], [f"y_{t}" for t in range(1, 6)], range(5)
    first = [
        *graph(52, xs, ["", "", "", "", "y_5"], [4]),
        text(8, 24, "row 1, length 5", anchor="start"),
    ]
    second = [
        *graph(278, xs, ["", "", "y_3", "", ""], [2], valid=3),
        text(8, 250, "row 2, length 3", anchor="start"),
    ]
    drawn = graph(26, [*xs[:3], "s_4", "s_5"], ys, fed=[3, 4])
    drawn += [box(x, 44, "S", FED, 18, "#FFFFFF") for x in (224, 280)]
    drawn += [span(84, 196, 164, "primer"), span(252, 308, 164, "drawn by S", FED)]
    closed = graph(26, [*xs[:3], "y_3", "y_4"], ys, each, fed=[3, 4])
    closed += [
        span(84, 196, 208, "T \u2212 n steps given", LOSS),
        span(252, 308, 208, "n self-fed", FED),
    ]
    closed += [text(140, 242, "open loss", LOSS), text(280, 242, "closed loss", FED)]
    shares = graph(26, xs[:3], ["", "", "y_3"], [2], gap=100, left=96)
    shares.append(path("M276 26Q254 26 254 70Q254 100 276 114", LOSS, width=2.6))
    for t, x in enumerate((96, 196, 296)):
        shares += [path(f"M{x - 20} 118H{x - 79}", LOSS, width=2.6)] * (t > 0)
        shares += [path(f"M{x - 30} 255V180Q{x - 30} 156 {x - 20} 140")]
        shares += [path(f"M{x + 19} 136Q{x + 30} 146 {x + 30} 172V250", LOSS, width=2.6)]
        shares += [text(x + 44, 220, f"d_{t + 1}", LOSS)]
    shares.append(box(196, 270, "one weight W, used three times", width=272))
    shares.append(text(196, 310, "gradient of W = d₁ + d₂ + d₃", LOSS))
    graphs = [(206, graph(26, xs, ys, each)), (458, first + second), (192, drawn), (326, shares)]
    graphs += [(206, graph(26, xs, ys, each, cuts=[1, 3])), (254, closed)]
    words = [line.split("|") for line in WORDS.split("\n")[1:-1]]
    return {
        f"{n}.svg": svg(title, more, *g) for (n, title, more), g in zip(words, graphs, strict=True)
    }


def svg(title, description, height, parts):
    shape = 'viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse"'
    tips = [
        f'<marker id="tip-{c[1:]}" {shape} orient="auto"><path d="M0 0L8 4L0 8Z" fill="{c}"/></marker>'
        for c in (STATE, LOSS, OUTPUT, FED, INK, PAD)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH * 1.5:g}"'
    head += f' height="{height * 1.5:g}" role="img" font-family="DejaVu Sans, Verdana, sans-serif">'
    words = [f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>"]
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#FFFFFF" stroke="#D0D0D0"/>'
    return "\n".join([head, *words, "<defs>", *tips, "</defs>", card, *parts, "</svg>\n"])


if __name__ == "__main__":
    for name, drawing in drawings().items():
        (FOLDER / name).write_text(drawing, encoding="utf-8")
