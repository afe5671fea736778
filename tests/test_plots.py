"""What the figures show: the lines, their labels, the axes, and the errors."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from rnnkit import plot_gradient_flow, plot_history, plot_horizon

ROWS = [
    {"epoch": 1, "phase": "training", "loss": 3.0},
    {"epoch": 1, "phase": "validation", "loss": 2.5, "open_loss": 2.0, "closed_loss": 4.0},
    {"epoch": 2, "phase": "training", "loss": 1.0},
    {"epoch": 2, "phase": "validation", "loss": 1.5, "open_loss": 1.25, "closed_loss": 3.5},
]


@pytest.fixture(autouse=True)
def figures():
    """Figures of a test go with it; the style is the package's."""
    with plt.style.context("rnnkit.style"):
        yield
    plt.close("all")


def lines(ax) -> dict[str, tuple[list, list]]:
    return {ln.get_label(): (list(ln.get_xdata()), list(ln.get_ydata())) for ln in ax.get_lines()}


def texts(ax) -> dict[str, object]:
    return {text.get_text(): text for text in ax.texts}


@pytest.mark.parametrize("history", [ROWS, SimpleNamespace(rows=ROWS)])
def test_history_draws_a_line_for_every_loss(history):
    ax = plot_history(history)
    assert lines(ax) == {
        "training": ([1, 2], [3.0, 1.0]),
        "validation": ([1, 2], [2.5, 1.5]),
        "open loop": ([1, 2], [2.0, 1.25]),
        "closed loop": ([1, 2], [4.0, 3.5]),
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_every_line_has_its_label_at_its_end_in_its_color():
    ax = plot_history(ROWS)
    assert texts(ax).keys() == lines(ax).keys()
    for line in ax.get_lines():
        label = texts(ax)[line.get_label()]
        assert label.xy == (line.get_xdata()[-1], line.get_ydata()[-1])
        assert label.get_color() == line.get_color()


def test_labels_do_not_overlap():
    ax = plot_horizon({str(y): torch.full((5,), y) for y in (0.0, 1.0, 1.001, 1.002, 100.0)})
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_the_labels_of_new_axes_lie_within_the_figure_in_any_style():
    with plt.style.context("default"):
        ax = plot_gradient_flow({"0.weight_ih_l0": torch.logspace(0, -8, 40)})
        ax.figure.canvas.draw()
    (label,) = ax.texts
    assert label.get_window_extent().x1 <= ax.figure.bbox.x1


def test_history_of_training_alone_and_of_one_epoch_shows_a_point():
    ax = plot_history(ROWS[:1])
    assert lines(ax) == {"training": ([1], [3.0])}
    assert ax.get_lines()[0].get_marker() == "o"


@pytest.mark.parametrize(
    "draw", [lambda ax: plot_history(ROWS, ax), lambda ax: plot_horizon(torch.ones(3), ax)]
)
def test_the_axes_given_are_the_axes_returned(draw):
    _, (left, right) = plt.subplots(1, 2)
    assert draw(right) is right
    assert not left.get_lines()
    assert len(plt.get_fignums()) == 1


def test_horizon_draws_the_loss_by_step_and_where_the_loop_closes():
    ax = plot_horizon(torch.tensor([0.1, 0.2, 0.3, 0.9, 1.5]), nfeedback=2)
    curve, edge = ax.get_lines()
    assert list(curve.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(curve.get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.9, 1.5])
    assert list(edge.get_xdata()) == [2.5, 2.5]  # steps 3 and 4 are fed by the model
    assert set(texts(ax)) == {"model", "loop closes"}
    assert texts(ax)["loop closes"].xy[0] == 2.5
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time step", "loss at the step")


@pytest.mark.parametrize("nfeedback", [None, 0])
def test_horizon_without_feedback_marks_nothing(nfeedback):
    ax = plot_horizon(torch.ones(5), nfeedback=nfeedback)
    assert set(texts(ax)) == {"model"}
    assert len(ax.get_lines()) == 1


def test_horizon_over_seeds_is_the_mean_in_a_band_of_all():
    seeds = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]], requires_grad=True)
    ax = plot_horizon({"trained closed": seeds, "trained open": seeds[0]})
    assert lines(ax) == {
        "trained closed": ([0, 1, 2], [2, 3, 5.5]),
        "trained open": ([0, 1, 2], [1, 2, 3]),
    }
    (band,) = ax.collections
    corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 1), (1, 2), (2, 3), (0, 3), (1, 4), (2, 8)}
    assert to_hex(band.get_facecolor()[0]) == to_hex(ax.get_lines()[0].get_color())


def test_a_list_is_that_of_several_seeds():
    by_seed = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 4.0, 8.0])]
    (line,) = plot_horizon(by_seed).get_lines()
    assert list(line.get_ydata()) == [2.0, 3.0, 5.5]
    (line,) = plot_horizon([1.0, 2.0, 3.0]).get_lines()
    assert list(line.get_ydata()) == [1.0, 2.0, 3.0]


def test_a_baseline_may_have_few_digits():
    baseline = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    lines = plot_horizon(torch.ones(3), baselines={"last value": baseline}).get_lines()
    assert list(lines[1].get_ydata()) == [1.0, 2.0, 3.0]


def test_horizon_draws_baselines_in_gray():
    ax = plot_horizon(
        torch.ones(3), baselines={"last value": 0.5, "climate": torch.tensor([1.0, 2.0, 3.0])}
    )
    assert lines(ax) == {
        "model": ([0, 1, 2], [1, 1, 1]),
        "last value": ([0, 1, 2], [0.5, 0.5, 0.5]),
        "climate": ([0, 1, 2], [1, 2, 3]),
    }
    _, first, second = ax.get_lines()
    assert first.get_color() == second.get_color() == "#666666"
    assert (first.get_linestyle(), second.get_linestyle()) == ("--", ":")


def test_flow_is_logarithmic_and_leaves_a_gap_at_zero():
    ax = plot_gradient_flow(
        {"a": torch.tensor([1.0, 0.1, 0.01]), "b": torch.tensor([0.5, 0.05, 0.0])}
    )
    assert ax.get_yscale() == "log"
    drawn = lines(ax)
    assert drawn["a"][0] == [0, 1, 2]
    assert drawn["a"][1] == pytest.approx([1, 0.1, 0.01])
    assert drawn["b"][1] == pytest.approx([0.5, 0.05, float("nan")], nan_ok=True)
    assert texts(ax)["b"].xy == pytest.approx((1, 0.05))  # where b is last seen
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "lag (steps before the last)",
        "norm of the share",
    )


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (
            lambda: plot_history([]),
            "plot_history: got 0 rows and no loss; wanted rows with epoch, phase, loss. Likely",
        ),
        (
            lambda: plot_horizon(torch.ones(2, 3, 4)),
            "plot_horizon: got model (2, 3, 4); wanted (T,) or (seeds, T).",
        ),
        (
            lambda: plot_horizon(None),
            "plot_horizon: got model = None; wanted (T,) or (seeds, T). Likely fix: BPTTValidationPhase(by_step=True)",
        ),
        (lambda: plot_horizon({}), "plot_horizon: got no curve; wanted the same T for all."),
        (
            lambda: plot_horizon({"a": torch.ones(3), "b": torch.ones(2, 4)}),
            "plot_horizon: got a (3,), b (2, 4); wanted the same T for all.",
        ),
        (
            lambda: plot_horizon(torch.ones(3), nfeedback=3),
            "plot_horizon: got nfeedback=3 for T = 3; wanted 0 to 2.",
        ),
        (
            lambda: plot_horizon(torch.ones(3), nfeedback=-1),
            "plot_horizon: got nfeedback=-1 for T = 3; wanted 0 to 2.",
        ),
        (
            lambda: plot_horizon(torch.ones(3), baselines={"mean": torch.ones(2)}),
            "plot_horizon: got the baseline mean (2,) for T = 3; wanted a number or (3,).",
        ),
        (
            lambda: plot_gradient_flow({"w": torch.ones(3, 2, 2)}),
            "plot_gradient_flow: got w (3, 2, 2); wanted norms (T,). Likely fix: pass what gradient_flow returned;",
        ),
        (
            lambda: plot_horizon([torch.ones(3), torch.ones(4)]),
            "plot_horizon: got model = a list of 2; wanted (T,) or (seeds, T). Likely fix: average",
        ),
        (lambda: plot_horizon("loss"), "plot_horizon: got model = a str; wanted (T,) or"),
        (
            lambda: plot_horizon(torch.ones(3), baselines={"mean": None}),
            "plot_horizon: got the baseline mean = None; wanted a number or (3,).",
        ),
        (
            lambda: plot_gradient_flow({"w": [[1.0], [2.0, 3.0]]}),
            "plot_gradient_flow: got w = a list of 2; wanted norms (T,). Likely fix: pass what",
        ),
        (
            lambda: plot_gradient_flow({}),
            "plot_gradient_flow: got no parameter; wanted norms (T,).",
        ),
    ],
)
def test_errors(draw, text):
    with pytest.raises(ValueError, match="wanted") as raised:
        draw()
    assert str(raised.value).startswith(text)
    assert not plt.get_fignums(), "a refused call leaves no empty figure"


@pytest.mark.parametrize("flow", [None, [1.0, 0.5], torch.ones(3)])
def test_a_flow_without_names_is_refused(flow):
    with pytest.raises(TypeError, match="wanted a dict of norms") as raised:
        plot_gradient_flow(flow)
    assert str(raised.value).startswith("plot_gradient_flow: got ")


@pytest.mark.parametrize("rows", [[1.0, 0.5], [{"epoch": 1, "loss": 1.0}], [{"loss": 1.0}], "rows"])
def test_rows_that_are_no_history_are_refused(rows):
    with pytest.raises(TypeError, match=r"plot_history: got .*; wanted a History, or its rows"):
        plot_history(rows)


def test_a_flow_may_be_of_lists_or_arrays():
    ax = plot_gradient_flow({"a": [1.0, 0.5], "b": np.array([1.0, 0.0])})
    assert lines(ax)["a"][1] == pytest.approx([1, 0.5])
    assert lines(ax)["b"][1] == pytest.approx([1, float("nan")], nan_ok=True)


def test_a_lone_loss_among_what_is_no_number_can_be_seen():
    losses = [float("nan"), 1.0, float("nan")]
    rows = [{"epoch": i, "phase": "training", "loss": loss} for i, loss in enumerate(losses)]
    assert plot_history(rows).get_lines()[0].get_marker() == "o"


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError) as raised:
        plot_history(ROWS)
    wanted = 'plot_history: got no matplotlib; wanted matplotlib. Likely fix: pip install "rnnkit[plot]".'
    assert str(raised.value) == wanted


def test_importing_the_package_does_not_import_matplotlib():
    code = (
        "import sys, rnnkit, rnnkit.analysis.plots; raise SystemExit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_label_in_any_color_of_the_style_can_be_read_on_white():
    colors = [to_hex(color) for color in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
    assert len(set(colors)) == 5
    assert all(1.05 / (luminance(color) + 0.05) >= 4.5 for color in colors)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    def drawn(name: str) -> bytes:
        plot_history(ROWS).figure.savefig(tmp_path / name, metadata={"Date": None})
        return (tmp_path / name).read_bytes()

    first = drawn("a.svg")
    assert first == drawn("b.svg")
    assert b">closed loop</text>" in first, "text stays text"
