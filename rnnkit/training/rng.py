"""Every generator that a training draws from: found, kept, put back."""

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch


def generators_of(loaders: Iterable[object]) -> list[torch.Generator]:
    """The generators of their own that data loaders draw their order from, each once."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        for part in _parts_of(loader):
            named = getattr(part, "generator", None)
            for own in (named, *getattr(part, "__dict__", {}).values()):
                if isinstance(own, torch.Generator):
                    found[id(own)] = own
    return list(found.values())


def _parts_of(loader: object, depth: int = 3) -> list[object]:
    """The loader and what in it may have a generator: data set and samplers, whatever its class."""
    names = ("dataset", "sampler", "batch_sampler", "loader")
    inner = [getattr(loader, name, None) for name in names]
    several = getattr(loader, "datasets", None)  # of a `ConcatDataset`
    if isinstance(several, list):
        inner += several
    parts = [loader]
    for part in inner:
        if part is not None and depth:  # a `Subset` has a data set of its own
            parts += _parts_of(part, depth - 1)
    return parts


def rng_state(generators: list[torch.Generator]) -> dict[str, Any]:
    """The states of the global generators, and of those given."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "own": [generator.get_state() for generator in generators],
    }


def _numpy_state() -> tuple[Any, ...] | None:
    """The state of NumPy's global generator in plain values, where NumPy is there."""
    if "numpy" not in sys.modules:
        return None
    state: Any = sys.modules["numpy"].random.get_state()
    if not isinstance(state, tuple):
        return None
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)


def set_rng_state(state: dict[str, Any], generators: list[torch.Generator]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    if state["numpy"] is not None and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(state["numpy"])
    for generator, own in zip(generators, state["own"], strict=False):
        generator.set_state(own)
