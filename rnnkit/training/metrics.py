"""What an epoch adds up: its losses, and metrics, which are losses without a gradient."""

import copy
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.errors import Refusal, in_words, tensor_of
from ..core.layout import all_lengths, extent, parts_of
from ..losses.base import SequenceLoss
from ..losses.function import refuse_class
from ..losses.plain import as_loss
from .average import Average
from .events import Stateful
from .phase import Loop, Phase, StepState
from .ranks import Ranks

RESERVED = ("loss", "open_loss", "closed_loss", "loss_by_step", "epoch", "phase")


@runtime_checkable
class Counter(Protocol):
    """A metric that counts by itself, as those of torchmetrics do."""

    def update(self, outputs: Any, targets: Any, /) -> object: ...  # `(N, *O)` and `(N, *Y)`

    def compute(self) -> Any: ...

    def reset(self) -> object: ...


class Metrics:
    """The metrics of a Learner by name: losses that are only looked at, and counters."""

    def __init__(
        self, metrics: Mapping[str, Any] | None, device: torch.device | None = None
    ) -> None:
        self.losses: dict[str, SequenceLoss] = {}
        self.counters: dict[str, Counter] = {}
        for name, metric in _checked(metrics).items():
            if isinstance(metric, Counter):
                self.counters[name] = metric
                if isinstance(metric, nn.Module):
                    move_to(device, [metric])
                    for part in metric.modules():  # one around another has its counts there
                        ask: Any = getattr(part, "persistent", None)
                        if ask is not None:  # else one of torchmetrics would keep none in a file
                            ask(True)
            else:
                self.losses[name] = as_loss(metric)
                move_to(device, self.losses[name].modules())


def _checked(metrics: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        fix = 'metrics={"accuracy": seq2seq_loss(correct)}.'
        raise Refusal(f"metrics = {in_words(metrics)}", "a dict of metrics by name", fix, TypeError)
    for name, metric in metrics.items():
        if not isinstance(name, str) or name in RESERVED:
            wanted = f"a name that is none of {', '.join(RESERVED)}"
            raise Refusal(f"a metric named {name!r}", wanted, "rename it.")
        refuse_class(metric)
        if not callable(metric) and not isinstance(metric, Counter):
            raise Refusal(
                f"metrics[{name!r}] = {in_words(metric)}",
                "a loss, or an object with update, compute and reset",
                "seq2seq_loss(function), or a metric of torchmetrics.",
                TypeError,
            )
    return metrics


def move_to(device: torch.device | None, modules: Iterable[nn.Module]) -> None:
    """What has buffers of its own, as class weights are, is where the batches are moved."""
    for module in modules:
        module.to(device)


# The counters that some epoch is using: another that begins within it counts with copies.
_in_use: set[int] = set()


class Tally:
    """What one epoch has added up so far."""

    def __init__(self, loop: Loop, metrics: Metrics) -> None:
        self.loop = loop
        self.averages = defaultdict[str, Average](Average)
        self.joint: dict[str, Average] | None = None  # of all ranks, when the epoch is over
        self.counted = False
        self.nothing: Refusal | None = None  # of a rank without a batch
        self.computed: dict[str, Tensor] = {}
        self.losses = metrics.losses
        self.counters: dict[str, Counter] = {}
        for name, counter in metrics.counters.items():
            self.counters[name] = copy.deepcopy(counter) if id(counter) in _in_use else counter
            self.counters[name].reset()

    def add(self, phase: Phase, step: StepState) -> None:
        """Adds what a step has come to; its metrics are then in `step.totals` beside its losses."""
        if self.losses or self.counters:  # nothing is paid for what is not asked for
            self._look_at(phase, step)
        for name, total in step.totals.items():
            self.averages[name].add(total)

    @torch.no_grad()
    def _look_at(self, phase: Phase, step: StepState) -> None:
        read = phase.read  # the steps of each row up to the end of this batch, where it goes on
        if read is not None:
            read = read - all_lengths(step.lengths, *extent(step.inputs))
        with self.loop.context():
            # A metric has a reading, a warmup and weights of its own, of the same targets.
            for name, metric in self.losses.items():
                step.totals[name] = step.scored_by(metric, read).total(step.outputs)
        if self.counters:
            outputs, targets = step.scored_by(self.loop.loss, read).valid(step.outputs)
            if not len(parts_of(outputs)[0]):  # many a counter cannot count nothing
                return
            self.counted = True
            for counter in self.counters.values():
                counter.update(outputs, targets)

    def compute(self) -> None:
        """At the end of the epoch: joins the ranks' averages, asks the counters that counted."""
        ranks = self.loop.ranks
        if ranks is not None:
            self._join(ranks)
        if not self.counted:
            return
        for name, counter in self.counters.items():
            value = counter.compute()
            if isinstance(value, Mapping):  # a collection of metrics
                for key, one in value.items():
                    self.computed[f"{name}.{key}"] = _as_tensor(f"{name}.{key}", one)
            else:
                self.computed[name] = _as_tensor(name, value)
        if ranks is not None:
            ranks.check_same(
                "metrics that count",
                {name: value.tolist() for name, value in self.computed.items()},
                "the same in every rank",
                "a metric of torchmetrics, which adds over ranks, or a loss: "
                "seq2seq_loss(function).",
            )

    def _join(self, ranks: Ranks) -> None:
        states = {name: average.state_dict() for name, average in self.averages.items()}
        by_name = defaultdict[str, list[dict[str, Any]]](list)
        counted: list[bool] = []
        for share, has_counted in ranks.gather((states, self.counted)):
            counted.append(has_counted)
            for name, state in share.items():
                by_name[name].append(state)
        if self.nothing is not None and not by_name:  # nor has another rank
            raise self.nothing
        # A rank without a batch asks its counters too: those of torchmetrics wait for it.
        self.counted = any(counted)
        self.joint = {}
        for name, shares in by_name.items():
            self.joint[name] = Average.joined(shares, ranks.device)

    @contextmanager
    def holding(self) -> Generator[None]:
        """An epoch that is under way: no other one counts with its counters."""
        held = {id(counter) for counter in self.counters.values()}
        _in_use.update(held)
        try:
            yield
        finally:
            _in_use.difference_update(held)

    def means(self) -> dict[str, Tensor]:
        averages = self.averages if self.joint is None else self.joint
        means = {name: average.mean() for name, average in averages.items()}
        return {**means, **self.computed}

    def state_dict(self) -> dict[str, Any]:
        counters: dict[str, Any] = {}
        for name, counter in self.counters.items():
            if not isinstance(counter, Stateful):
                raise Refusal(
                    f"the metric {name!r}, {in_words(counter)}, in the middle of an epoch",
                    "one with state_dict and load_state_dict",
                    "give it both, or write at the ends of epochs only: Checkpoint(path).",
                )
            counters[name] = counter.state_dict()
        averages = {name: average.state_dict() for name, average in self.averages.items()}
        return {"averages": averages, "counters": counters}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        self.counted = bool(saved["averages"])
        for name, state in saved["averages"].items():
            self.averages[name].load_state_dict(state, device)
        for name, state in saved["counters"].items():
            counter: Any = self.counters[name]
            counter.load_state_dict(state)


def numbers_of(means: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(mean) for name, mean in means.items() if not mean.ndim}


def _as_tensor(name: str, value: Any) -> Tensor:
    came = f"{in_words(value)} computed by the metric {name!r}"
    fix = "compute the curves and tables of a metric in a callback, at EpochEnd."
    return tensor_of(value, came, "a number or a tensor", fix, device=None)
