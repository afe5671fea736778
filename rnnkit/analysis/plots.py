"""Figures with matplotlib: the learning curve, the error by horizon, the gradient by lag."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRAY = "#666666"  # baselines
_DARK = "#444444"  # marks and their words


@asked("plot_history")
def plot_history(history: Any, ax: "Axes | None" = None) -> "Axes":
    """The learning curve: the losses of training and validation, epoch by epoch.

    >>> from rnnkit import plot_history
    >>> rows = [{"epoch": epoch, "phase": "training", "loss": 1 / epoch} for epoch in (1, 2, 3)]
    >>> [text.get_text() for text in plot_history(rows).texts]
    ['training']

    Args:
        history: a [History][rnnkit.History], or its `rows`: dicts with `epoch`, `phase` and `loss`,
            and perhaps `open_loss` and `closed_loss`.
        ax: the matplotlib axes to draw on and return; `None` makes new ones.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no row with a loss.
    """
    rows: Any = getattr(history, "rows", history)
    fix = "plot_history(history), after a fit with the callback history = History()."
    if not isinstance(rows, Sequence) or not all(map(_is_row, rows)):
        raise Refusal(in_words(history), "a History, or its rows", fix, TypeError)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        labels = {"loss": row["phase"], "open_loss": "open loop", "closed_loss": "closed loop"}
        for key, label in labels.items():
            if row.get(key) is not None:
                curves.setdefault(str(label), []).append((float(row["epoch"]), float(row[key])))
    if not curves:
        raise Refusal(f"{len(rows)} rows and no loss", "rows with epoch, phase, loss", fix)

    drawn = _axes(ax)
    for label, points in curves.items():
        epochs, losses = zip(*points, strict=True)
        marker = "o" if sum(map(math.isfinite, losses)) == 1 else ""  # no line can be seen
        drawn.plot(epochs, losses, label=label, marker=marker)
    return _finish(drawn, "epoch", "loss")


def _is_row(row: Any) -> bool:
    return isinstance(row, Mapping) and {"epoch", "phase"} <= set(row)


@asked("plot_horizon")
def plot_horizon(
    loss_by_step: Tensor | list[Tensor] | Mapping[str, Tensor | list[Tensor]],
    ax: "Axes | None" = None,
    *,
    nfeedback: int | None = None,
    baselines: Mapping[str, float | Tensor] | None = None,
) -> "Axes":
    """The error by horizon: the loss at every time step, and where the loop closes.

    >>> import torch
    >>> from rnnkit import plot_horizon
    >>> loss_by_step = torch.tensor([0.1, 0.1, 0.2, 0.4])
    >>> ax = plot_horizon(loss_by_step, nfeedback=2, baselines={"last value": 0.3})
    >>> [text.get_text() for text in ax.texts]
    ['loop closes', 'last value', 'model']

    Args:
        loss_by_step: `(T,)`, as validation records it; `(seeds, T)`, or a list of `(T,)`, drawn
            as the mean over seeds in a band from the smallest to the largest; or label -> one of
            them.
        ax: the matplotlib axes to draw on and return; `None` makes new ones.
        nfeedback: how many of the last steps the model itself fed.
        baselines: name -> the loss, a number or `(T,)`, of what the model has to beat; in gray.

    Raises:
        ImportError: without matplotlib.
        ValueError: if shapes do not fit, or `nfeedback` is not from 0 to `T - 1`.
    """
    curves = _curves(loss_by_step)
    time = next(iter(curves.values())).shape[-1]
    if nfeedback is not None and not 0 <= nfeedback < time:
        fix = "nfeedback is the number that BPTTValidationPhase was given."
        raise Refusal(f"nfeedback={nfeedback} for T = {time}", f"0 to {time - 1}", fix)
    lines = _baselines(baselines or {}, time)

    drawn = _axes(ax)
    for label, curve in curves.items():
        _draw_band(drawn, label, curve)
    for (name, line), dash in zip(lines.items(), cycle(("--", ":", "-.")), strict=False):
        drawn.plot(line.numpy(), dash, color=_GRAY, linewidth=1.5, label=name)
    if nfeedback:
        _mark_feedback(drawn, time - nfeedback - 0.5)
    return _finish(drawn, "time step", "loss at the step")


def _curves(loss_by_step: Any) -> dict[str, Tensor]:
    if not isinstance(loss_by_step, Mapping):
        loss_by_step = {"model": loss_by_step}
    wanted = "(T,) or (seeds, T)"
    curves: dict[str, Tensor] = {}
    for label, value in loss_by_step.items():
        fix = "average over rows and features; validation's loss_by_step is (T,)."
        if value is None:
            fix = "BPTTValidationPhase(by_step=True) makes it."
        curves[label] = _numbers(label, value, (1, 2), wanted, fix)
    if len({curve.shape[-1] for curve in curves.values()}) != 1:
        came = ", ".join(f"{label} {in_words(curve)}" for label, curve in curves.items())
        raise Refusal(came or "no curve", "the same T for all", "cut them to the steps they share.")
    return curves


def _baselines(baselines: Mapping[str, float | Tensor], time: int) -> dict[str, Tensor]:
    lines: dict[str, Tensor] = {}
    for name, value in baselines.items():
        wanted = f"a number or ({time},)"
        fix = "average it over rows and seeds."
        line = _numbers(f"the baseline {name}", value, (0, 1), wanted, fix)
        if line.shape not in ((), (time,)):
            came = f"the baseline {name} {in_words(line)} for T = {time}"
            raise Refusal(came, wanted, fix)
        lines[name] = line.expand(time)
    return lines


def _numbers(name: str, value: Any, dimensions: Sequence[int], wanted: str, fix: str) -> Tensor:
    """A tensor, an array, or a list of numbers or of such, in float64."""
    try:
        if isinstance(value, list | tuple):  # those of several seeds, perhaps
            value = torch.stack(list(map(torch.as_tensor, value)))
        numbers = torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        shown = None if value is None else in_words(value)
        raise Refusal(f"{name} = {shown}", wanted, fix) from None
    if numbers.ndim not in dimensions or 0 in numbers.shape:
        raise Refusal(f"{name} {in_words(numbers)}", wanted, fix)
    return numbers


def _draw_band(ax: Any, label: str, curve: Tensor) -> None:
    """The mean over seeds, and where there are several, a band from the smallest to the largest."""
    seeds = torch.atleast_2d(curve)  # (seeds, T)
    (line,) = ax.plot(seeds.mean(0).numpy(), label=label)
    if len(seeds) > 1:
        edges = [seeds.amin(0).numpy(), seeds.amax(0).numpy()]
        steps = range(seeds.shape[1])
        ax.fill_between(steps, *edges, color=line.get_color(), alpha=0.2, linewidth=0)


def _mark_feedback(ax: Any, edge: float) -> None:
    ax.axvline(edge, color=_DARK, linewidth=1)
    ax.annotate(
        "loop closes",
        (edge, 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        color=_DARK,
    )


@asked("plot_gradient_flow")
def plot_gradient_flow(flow: Mapping[str, Tensor], ax: "Axes | None" = None) -> "Axes":
    """How far back the gradient reaches: the norm of each step's share by lag, logarithmic.

    >>> import torch
    >>> from rnnkit import plot_gradient_flow
    >>> ax = plot_gradient_flow({"weight_ih_l0": torch.tensor([1.0, 0.5, 0.25])})
    >>> ax.get_yscale(), ax.get_xlabel()
    ('log', 'lag (steps before the last)')

    Args:
        flow: parameter name -> `(T,)`, from [gradient_flow][rnnkit.gradient_flow]; a share of zero
            leaves a gap.
        ax: the matplotlib axes to draw on and return; `None` makes new ones.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a flow is not `(T,)`, or there is none.
    """
    wanted = "norms (T,)"
    fix = "pass what gradient_flow returned; gradient_by_step returns the shares themselves."
    if not isinstance(flow, Mapping):
        raise Refusal(in_words(flow), f"a dict of {wanted}", fix, TypeError)
    curves = {name: _numbers(name, norms, (1,), wanted, fix) for name, norms in flow.items()}
    if not curves:
        raise Refusal("no parameter", wanted, fix)
    drawn = _axes(ax)
    drawn.set_yscale("log")
    for name, norms in curves.items():
        drawn.plot(norms.where(norms > 0, torch.nan).numpy(), label=name)
    return _finish(drawn, "lag (steps before the last)", "norm of the share")


def _axes(ax: "Axes | None") -> Any:  # Any: matplotlib leaves its keywords untyped
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        fix = 'pip install "rnnkit[plot]".'
        raise Refusal("no matplotlib", "matplotlib", fix, ImportError) from error
    return plt.subplots(layout="constrained")[1] if ax is None else ax


class _End(NamedTuple):
    """Where a line ends."""

    height: float  # on the page, in points
    point: tuple[float, float]
    line: Any


def _finish(ax: Any, xlabel: str, ylabel: str) -> "Axes":
    """Names the axes and writes each line's label where it ends, in its color."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.get_ylim()  # brings up to date the limits, on which a label's place depends

    lowest_free = -math.inf
    for end in sorted(_ends(ax), key=lambda end: end.height):
        # From the lowest up: a label that would lie on the one below it is moved up.
        lowest_free = max(end.height, lowest_free + 14)
        ax.annotate(
            end.line.get_label(),
            end.point,
            xytext=(6, lowest_free - end.height),
            textcoords="offset points",
            va="center",
            color=end.line.get_color(),
            annotation_clip=False,
        )
    return ax


def _ends(ax: Any) -> list[_End]:
    ends: list[_End] = []
    for line in ax.get_lines():
        points = [tuple(point) for point in line.get_xydata() if math.isfinite(point[1])]
        unlabeled = line.get_label().startswith("_")  # matplotlib's mark
        if points and not unlabeled:
            height = ax.transData.transform(points[-1])[1] * 72 / ax.figure.dpi
            ends.append(_End(height, points[-1], line))
    return ends
