"""Whether a loaded state has the form of the one whose place it takes, before it is used."""

import copy
import random
import sys
import warnings
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import lr_scheduler

from ..core.errors import Refusal, in_words
from .average import Average

_FIX = "it is damaged, or another program has changed it; use an earlier copy."
SAME = (
    "build the same model, optimizer, phases, loaders and callbacks as for the run that wrote it."
)
_EPOCHS = 2**53  # more than any training makes
_STEPS = 2**63
_REPEATED = 2**20  # elements that may share memory: a state that all rows began with


def updated_by(optimizer: Any) -> list[Any]:
    parameters: list[Any] = []
    for group in optimizer.param_groups:
        parameters.extend(group["params"])
    return parameters


def check_form(name: str, came: Any, here: Any) -> None:
    """Refuse what is not of the kind of `here`: numbers for numbers, as many parts, named alike.

    Of what only one of two dicts has nothing is known, nor of what is `None` here.
    """
    if here is None:
        return
    if isinstance(here, Tensor) and here.ndim:
        _want(isinstance(came, Tensor) and came.shape == here.shape, name, came, in_words(here))
    elif isinstance(here, dict):
        _want(isinstance(came, dict), name, came, "a dict")
        for key in here.keys() & came.keys():
            check_form(f"{name}.{key}", came[key], here[key])
    elif isinstance(here, list | tuple):
        _check_parts(name, came, here)
    elif isinstance(here, bool | str):
        _want(isinstance(came, type(here)), name, came, in_words(here))
    elif is_kept_number(here):
        _want(is_kept_number(came), name, came, "a number")


def _check_parts(name: str, came: Any, here: Sequence[Any]) -> None:
    alike = isinstance(came, list | tuple) and (not here or len(came) == len(here))
    _want(alike, name, came, in_words(here))
    if not here:  # a list that grows
        plain = all(isinstance(part, Tensor | int | float | str) for part in came)
        _want(plain and len(set(map(type, came))) < 2, name, came, "parts of one kind")
    for i, part in enumerate(here):
        check_form(f"{name}.{i}", came[i], part)


def is_kept_number(value: Any) -> bool:
    """Whether it is a number, or a tensor of one; no bool, and no integer without end."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    if isinstance(value, float):
        return True
    return type(value) is int and abs(value) < _STEPS


def check_count(name: str, came: Any, below: int = _STEPS) -> None:
    _want(type(came) is int and 0 <= came < below, name, came, "a count")


def check_sizes(saved: Any) -> None:
    """Refuse what would take all memory to read: parts within parts without end, and a large tensor
    that has less memory than its shape says."""
    waiting = [(saved, 0)]
    while waiting:
        part, depth = waiting.pop()
        _want(depth < 100, "part", part, "parts within parts, and not a hundred times")
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]
        elif isinstance(part, Tensor) and not is_lazy(part) and part.numel() > _REPEATED:
            whole = part.untyped_storage().nbytes() >= part.numel() * part.element_size()
            _want(whole, "tensor", part, "one as large as it says")


def check_place(saved: dict[str, Any]) -> None:
    """Refuse a place that no training can be at, such as a fit that ended after now."""
    epochs, steps = saved["place"]
    check_count("an epoch", epochs, _EPOCHS)
    check_count("a step", steps)
    check_count("a phase", saved["passes"], max(1, len(saved["kinds"]) - 1))
    begun = saved["epoch_rng"] or not steps or saved["passes"]
    known = isinstance(saved["epoch_rng"], dict) and bool(begun)
    _want(known, "epoch_rng", saved["epoch_rng"], "that of a begun epoch")
    fits = saved["fits"]
    for end in fits:
        check_count("a fit's end", end, epochs + 1)
    _want(list(fits) == sorted(fits), "fits", fits, "one after the other")


def check_tally(saved: dict[str, Any], losses: Iterable[str], counters: dict[str, Any]) -> None:
    for name, average in saved["averages"].items():
        _check_average(name, average, 1 if name in losses else 2)
    for name, state in saved["counters"].items():
        trial = copy.deepcopy(counters[name])
        trial.reset()
        here = dict(trial.state_dict())
        for key, value in here.items():
            if is_kept_number(value) and isinstance(state.get(key), Tensor):
                here[key] = None  # a sum of nothing takes the shape of what is added to it
        check_form(f"the metric {name}", state, here)
        trial.load_state_dict(state)


def _check_average(name: str, average: Any, dimensions: int) -> None:
    for piece in (average["added"], *average["waiting"]):
        if piece is None:
            continue
        known = isinstance(piece["weight"], list) or is_kept_number(piece["weight"])
        if piece["scales"] is not None:
            heads = torch.tensor(piece["scales"]).shape
            known = known and torch.tensor(piece["sum"]).shape[-1:] == heads != ()
        _want(known, f"the average {name}", piece, "numbers, as many as heads")
    _want(average["like"].is_floating_point(), f"the average {name}", average["like"], "floats")
    trial = Average()
    trial.load_state_dict(average)
    _want(trial.mean().ndim < dimensions, f"the average {name}", average, "sums and weights")


def check_optimizer_state(saved: dict[str, Any], optimizer: Any) -> None:
    """Refuse groups of another form, and tensors kept for a parameter that are not of its shape."""
    here = optimizer.state_dict()
    check_form("the optimizer's groups", saved["param_groups"], here["param_groups"])
    for i, state in saved["state"].items():
        check_count("a parameter's state", i, len(updated_by(optimizer)))
        _want(isinstance(state, dict), "a parameter's state", state, "a dict")
    if is_pytorchs(optimizer):
        _check_steps(saved, optimizer)


def is_pytorchs(part: Any) -> bool:
    return type(part).__module__.split(".")[:2] == ["torch", "optim"]


def _check_steps(saved: dict[str, Any], optimizer: Any) -> None:
    """Refuse a state that no step can be made from: one is, with a stand-in for each parameter."""
    i = 0
    for group, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for parameter in here["params"]:
            state = saved["state"].get(i, {})
            i += 1
            if is_lazy(parameter) or _error_of(optimizer, parameter):
                continue  # it is not known what a step asks for, as of sparse gradients
            kept = {"state": {0: state}, "param_groups": [{**group, "params": [0]}]}
            error = _error_of(optimizer, parameter, kept)
            if error is not None:
                raise _no_step(optimizer, error)


def _error_of(optimizer: Any, parameter: Tensor, kept: Any = None) -> Exception | None:
    """What a step ends with, a first one or one from what is kept, if it is an error."""
    stand_in = torch.zeros_like(parameter).requires_grad_()
    stand_in.grad = torch.ones_like(stand_in)
    try:
        with warnings.catch_warnings(action="ignore"):
            trial = type(optimizer)([stand_in])
            if kept is not None:
                trial.load_state_dict(copy.deepcopy(kept))
            trial.step()
    except Exception as error:
        return error
    return None


def check_scheduler(saved: dict[str, Any], scheduler: Any) -> None:
    """Refuse a state of another form, and one that PyTorch's own scheduler cannot step from."""
    check_form("scheduler", saved, scheduler.state_dict())
    if not is_pytorchs(scheduler):
        return
    last = saved.get("last_epoch", 0)  # -1: it has not begun
    _want(type(last) is int and -1 <= last < _EPOCHS, "last_epoch", last, "a count")
    if isinstance(scheduler, lr_scheduler.SequentialLR | lr_scheduler.ChainedScheduler):
        for state, inner in zip(saved["_schedulers"], vars(scheduler)["_schedulers"], strict=True):
            check_scheduler(state, inner)
    elif not isinstance(scheduler, lr_scheduler.LambdaLR | lr_scheduler.MultiplicativeLR):
        _check_scheduler_steps(saved, scheduler)


def _check_scheduler_steps(saved: dict[str, Any], scheduler: Any) -> None:
    """Makes a step with a copy, of which the optimizer is a stand-in."""
    groups = [{**group, "params": []} for group in scheduler.optimizer.param_groups]
    stand_in = SimpleNamespace(param_groups=copy.deepcopy(groups), step=None)
    trial = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    metrics = ()
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        metrics = (0.0,)
    try:
        with warnings.catch_warnings(action="ignore"):
            trial.load_state_dict(copy.deepcopy(saved))
            trial.step(*metrics)
    except Exception as error:
        if isinstance(scheduler, lr_scheduler.OneCycleLR) and isinstance(error, ValueError):
            return  # it has made its last step
        raise _no_step(scheduler, error) from None


def _no_step(part: Any, error: Exception) -> Refusal:
    came = f"a state that {type(part).__name__} makes no step from"
    return Refusal(f"{came} ({type(error).__name__}: {error})", "its own", _FIX)


def check_scaler(saved: dict[str, Any], scaler: Any) -> None:
    check_form("scaler", saved, scaler.state_dict())
    for name in ("growth_interval", "_growth_tracker"):
        check_count(f"scaler's {name}", saved.get(name, 0), 2**31)


def check_held(held: dict[str, Any], optimizer: Any) -> None:
    """Refuse gradients of held back batches that are not those of an optimizer's parameters."""
    check_count("batches held", held["batches"])
    parameters = updated_by(optimizer)
    for head in held["sums"]:
        alike = isinstance(head, list) and len(head) == len(parameters)
        _want(alike, "gradients", head, f"those of {len(parameters)} parameters")
        for gradient, parameter in zip(head, parameters, strict=True):
            alike = isinstance(gradient, Tensor) and gradient.shape == parameter.shape
            _want(gradient is None or alike, "gradient", gradient, in_words(parameter))
    numbers = [1.0 for _ in held["sums"]]
    check_form("weights held", held["weights"], numbers)
    check_form("scales held", held["scales"], numbers)


def check_rng(state: dict[str, Any]) -> None:
    """Refuse what no generator can be put to and draw from; the global ones stay."""
    torch.Generator().set_state(state["torch"])
    trial = random.Random()
    version, inner, gauss = state["python"]
    trial.setstate((version, tuple(inner), gauss))
    trial.gauss(0.0, 1.0)
    if state["numpy"] is not None and "numpy" in sys.modules:
        sys.modules["numpy"].random.RandomState().set_state(state["numpy"])
        _, keys, place, *_ = state["numpy"]
        # Behind its numbers NumPy would read what else is in memory.
        _want(0 <= place <= len(keys), "place of NumPy's", place, "one in its numbers")


def check_read(read: Any) -> None:
    known = isinstance(read, Tensor) and read.dtype == torch.int64 and read.ndim == 1
    _want(read is None or known, "phase's steps read", read, "a number for each row")


def check_rows(rows: Any) -> None:
    for row in rows:
        for name, value in row.items():
            known = isinstance(name, str) and (isinstance(value, str) or is_kept_number(value))
            _want(known, f"a row's {name}", value, "a number or a word")


def check_weights(saved: Sequence[Any], modules: Sequence[Any]) -> None:
    """Refuse weights that are not those of some modules; none at all are none kept yet."""
    _want(len(saved) in (0, len(modules)), "weights", saved, f"those of {len(modules)} modules")
    for state, module in zip(saved, modules, strict=False):
        refuse_difference(shapes_of("weights ", state), shapes_of("weights ", module.state_dict()))


def shapes_of(whose: str, weights: dict[str, Any]) -> dict[str, Any]:
    """What must be the same of the weights of a module: their names and shapes."""
    shapes: dict[str, Any] = {}
    for name, value in weights.items():
        shape: Any = "of its own kind"  # what get_extra_state gives is its module's affair
        if is_lazy(value):
            shape = "lazy"
        elif isinstance(value, Tensor) and not name.endswith("_extra_state"):
            shape = tuple(value.shape)
        shapes[whose + name] = shape
    return shapes


def refuse_difference(there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in here | there:
        came = there.get(name, "nothing")
        wanted = here.get(name, "nothing")
        if came != wanted and "lazy" not in (came, wanted):
            raise Refusal(f"{name} {came}", f"{name} {wanted}", SAME)


def _want(holds: bool, name: str, came: Any, wanted: str) -> None:
    if not holds:
        raise Refusal(f"a state whose {name} is {in_words(came)}", wanted, _FIX)
