"""What people look at while a model trains, and after it."""

import csv
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["History", "ProgressBar"]


class ProgressBar:
    """Shows each epoch's steps, loss and steps per second: a bar in a terminal, a line per epoch elsewhere.

    Args:
        every: seconds between two looks at the loss, which on an accelerator waits for it.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every = every
        self._bar: Any = None
        self._start = self._seen = 0.0
        self._steps = 0

    def on_epoch_begin(self, learner: "Learner") -> None:
        """Start counting."""
        self._start, self._seen, self._steps = time.perf_counter(), 0.0, 0
        if sys.stderr.isatty():
            self._bar = tqdm(desc=f"epoch {learner.epoch_index + 1} {learner.phase_name}", unit=" steps", leave=True)

    def on_step_end(self, learner: "Learner") -> None:
        """Count a step."""
        self._steps += 1
        if self._bar is not None:
            self._bar.update()
            now = time.perf_counter()
            if now - self._seen > self.every and "loss" in learner.sums:
                self._seen = now
                self._bar.set_postfix(loss=f"{float(learner.averages['loss']):.4g}")

    def on_epoch_end(self, learner: "Learner") -> None:
        """Show the epoch's losses."""
        shown = "  ".join(f"{name} {float(value):.4g}" for name, value in learner.averages.items() if not value.ndim)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            self._bar.close()
            self._bar = None
            return
        speed = self._steps / (time.perf_counter() - self._start)
        print(f"epoch {learner.epoch_index + 1} {learner.phase_name}: {shown}  ({speed:.0f} steps/s)", flush=True)


class History:
    """Keeps every epoch's averages.

    Attributes:
        rows: one dict for each epoch and phase: `epoch` (from 1), `phase`, `loss` and what else was averaged.

    >>> History().as_dict()
    {}
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, learner: "Learner") -> None:
        """Add a row."""
        scalars = {name: float(value) for name, value in learner.averages.items() if not value.ndim}
        self.rows.append({"epoch": learner.epoch_index + 1, "phase": learner.phase_name, **scalars})

    def as_dict(self) -> dict[str, list[Any]]:
        """Columns by name, with `None` where a row has no value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, with a header, to a CSV file."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.as_dict()))
            writer.writeheader()
            writer.writerows(self.rows)

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            ImportError: if pandas is not there.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
        except ImportError as error:
            raise ImportError("History.to_frame: wanted pandas. Likely fix: pip install pandas.") from error
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.rows = saved["rows"]
