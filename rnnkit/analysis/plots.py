"""Figures people look at, with matplotlib: the learning curve, the error by horizon, the gradient by lag."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@asked("plot_history")
def plot_history(history: Any, ax: "Axes | None" = None) -> "Axes":
    """The learning curve: the loss of training and validation, and of validation's two loops, epoch by epoch.

    Args:
        history: a [History][rnnkit.History], or its `rows`: dicts with `epoch`, `phase` and `loss`, and perhaps
            `open_loss` and `closed_loss`.
        ax: the matplotlib axes to draw on and return; None makes new ones.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no row with a loss.

    >>> ax = plot_history([{"epoch": epoch, "phase": "training", "loss": 1 / epoch} for epoch in (1, 2, 3)])
    >>> [text.get_text() for text in ax.texts]
    ['training']
    """
    rows = getattr(history, "rows", history)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, label in (
            ("loss", str(row["phase"])),
            ("open_loss", "open loop"),
            ("closed_loss", "closed loop"),
        ):
            if row.get(key) is not None:
                curves.setdefault(label, []).append((float(row["epoch"]), float(row[key])))
    if not curves:
        fix = "fit at least one epoch with the History callback first."
        raise Refusal(f"{len(rows)} rows and no loss", "rows with epoch, phase, loss", fix)
    drawn = _axes(ax)
    for label, points in curves.items():
        drawn.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else "")
    return _finish(drawn, "epoch", "loss")


@asked("plot_horizon")
def plot_horizon(
    loss_by_step: Tensor | Mapping[str, Tensor],
    ax: "Axes | None" = None,
    nfeedback: int | None = None,
    baselines: Mapping[str, float | Tensor] | None = None,
) -> "Axes":
    """The error by horizon: the loss at every time step, counted from 0, and where the loop closes.

    Args:
        loss_by_step: `(T,)`, as validation records it; `(seeds, T)`, drawn as the mean over seeds in a band from the
            smallest to the largest; or label -> one of the two.
        ax: the matplotlib axes to draw on and return; None makes new ones.
        nfeedback: the last `nfeedback` steps were fed by the model itself; a vertical line stands before them.
        baselines: name -> the loss, a number or `(T,)`, of what the model has to beat; drawn in gray.

    Raises:
        ImportError: without matplotlib.
        ValueError: if shapes do not fit, or `nfeedback` is not from 0 to `T - 1`.

    >>> ax = plot_horizon(torch.tensor([0.1, 0.1, 0.2, 0.4]), nfeedback=2, baselines={"last value": 0.3})
    >>> [text.get_text() for text in ax.texts]
    ['loop closes', 'last value', 'model']
    """
    named = loss_by_step if isinstance(loss_by_step, Mapping) else {"model": loss_by_step}
    curves = {
        label: torch.as_tensor(value).detach().cpu().double() for label, value in named.items()
    }
    for label, curve in curves.items():
        if curve.ndim not in (1, 2) or 0 in curve.shape:
            fix = "average over rows and features; validation's loss_by_step is (T,)."
            raise Refusal(f"{label} {in_words(curve)}", "(T,) or (seeds, T)", fix)
    if len({curve.shape[-1] for curve in curves.values()}) != 1:
        came = (
            ", ".join(f"{label} {in_words(value)}" for label, value in named.items()) or "no curve"
        )
        raise Refusal(came, "the same T for all", "cut them to the steps they share.")
    time = next(iter(curves.values())).shape[-1]
    if nfeedback is not None and not 0 <= nfeedback < time:
        fix = "nfeedback is the number that BPTTValidationPhase was given."
        raise Refusal(f"nfeedback={nfeedback} for T = {time}", f"0 to {time - 1}", fix)
    grays = {
        name: torch.as_tensor(value).detach().cpu() for name, value in (baselines or {}).items()
    }
    for name, value in grays.items():
        if value.shape not in ((), (time,)):
            came = f"the baseline {name} {in_words(value)} for T = {time}"
            raise Refusal(came, f"a number or ({time},)", "average it over rows and seeds.")
    drawn = _axes(ax)
    for label, curve in curves.items():
        seeds = torch.atleast_2d(curve)
        (line,) = drawn.plot(seeds.mean(0).numpy(), label=label)
        if len(seeds) > 1:
            band = seeds.amin(0).numpy(), seeds.amax(0).numpy()
            drawn.fill_between(range(time), *band, color=line.get_color(), alpha=0.2, linewidth=0)
    for (name, value), dash in zip(grays.items(), cycle(("--", ":", "-.")), strict=False):
        drawn.plot(value.expand(time).numpy(), dash, color="#666666", linewidth=1.5, label=name)
    if nfeedback:
        edge, gray = time - nfeedback - 0.5, "#444444"
        drawn.axvline(edge, color=gray, linewidth=1)
        place = {"xytext": (4, -2), "textcoords": "offset points", "va": "top"}
        drawn.annotate(
            "loop closes", (edge, 1), xycoords=drawn.get_xaxis_transform(), color=gray, **place
        )
    return _finish(drawn, "time step", "loss at the step")


@asked("plot_gradient_flow")
def plot_gradient_flow(flow: Mapping[str, Tensor], ax: "Axes | None" = None) -> "Axes":
    """How far back the gradient reaches: for each parameter, the norm of each step's share by lag, logarithmic.

    Args:
        flow: parameter name -> `(T,)`, from [gradient_flow][rnnkit.gradient_flow]; a share of zero leaves a gap.
        ax: the matplotlib axes to draw on and return; None makes new ones.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a flow is not `(T,)`, or there is none.

    >>> ax = plot_gradient_flow({"weight_ih_l0": torch.tensor([1.0, 0.5, 0.25])})
    >>> ax.get_yscale(), ax.get_xlabel()
    ('log', 'lag (steps before the last)')
    """
    if not flow or any(norms.ndim != 1 for norms in flow.values()):
        came = (
            ", ".join(f"{name} {in_words(norms)}" for name, norms in flow.items()) or "no parameter"
        )
        fix = "pass what gradient_flow returned; gradient_by_step returns the shares themselves."
        raise Refusal(came, "norms (T,)", fix)
    drawn = _axes(ax)
    drawn.set_yscale("log")
    for name, norms in flow.items():
        seen = norms.detach().cpu().double()
        drawn.plot(seen.where(seen > 0, torch.nan).numpy(), label=name)
    return _finish(drawn, "lag (steps before the last)", "norm of the share")


def _axes(ax: "Axes | None") -> Any:  # Any: matplotlib leaves its keywords untyped
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise Refusal(
            "no matplotlib", "matplotlib", 'pip install "rnnkit[plot]".', ImportError
        ) from error
    return plt.subplots()[1] if ax is None else ax


def _finish(ax: Any, xlabel: str, ylabel: str) -> "Axes":
    """Names the axes and writes each line's label where it ends, in its color, moved up where two would overlap."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.get_ylim()  # brings up to date the limits, on which a label's place depends
    ends: list[tuple[float, tuple[float, ...], Any]] = []
    for line in ax.get_lines():
        points = [tuple(point) for point in line.get_xydata() if math.isfinite(point[1])]
        if points and not line.get_label().startswith(
            "_"
        ):  # matplotlib's mark of a line without a label
            ends.append(
                (ax.transData.transform(points[-1])[1] * 72 / ax.figure.dpi, points[-1], line)
            )
    free = -math.inf
    for height, end, line in sorted(ends, key=lambda end: end[0]):
        free = max(height, free + 14)
        place = {"xytext": (6, free - height), "textcoords": "offset points", "va": "center"}
        ax.annotate(line.get_label(), end, color=line.get_color(), annotation_clip=False, **place)
    return ax
