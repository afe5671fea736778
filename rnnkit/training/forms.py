"""Whether a loaded state has the form of the one whose place it takes, before it is used."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, optim
from torch.nn.parameter import is_lazy

from ..core.errors import Refusal, in_words
from .average import Average

_FIX = "it is damaged, or another program has changed it; use an earlier copy."
_EPOCHS = 2**53  # more than any training makes
_STEPS = 2**63
# Of these it is known what they keep for a parameter: numbers, and tensors of its shape.
_BY_PARAMETER = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.NAdam)
_REPEATED = 2**20  # elements that may share memory: a state that all rows began with


def parameters_of(optimizer: Any) -> list[Any]:
    """All that an optimizer updates, in the order of its state."""
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
    if isinstance(here, dict):
        _want(name, came, "a dict", isinstance(came, dict))
        for key in here.keys() & came.keys():
            check_form(f"{name}.{key}", came[key], here[key])
    elif isinstance(here, list | tuple):
        alike = isinstance(came, list | tuple) and len(came) == len(here)
        _want(name, came, in_words(here), alike)
        for i in range(len(here)):
            check_form(f"{name}.{i}", came[i], here[i])
    elif isinstance(here, bool | str):
        _want(name, came, in_words(here), isinstance(came, type(here)))
    elif is_number(here):
        _want(name, came, "a number", is_number(came))


def is_number(value: Any) -> bool:
    """Whether it is a number, or a tensor of one; no bool, and small enough to be counted with."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _STEPS or not math.isfinite(value)


def check_count(name: str, came: Any, below: int = _STEPS) -> None:
    """Refuse what is no whole number from 0 to before `below`."""
    _want(name, came, "a count", type(came) is int and 0 <= came < below)


def check_sizes(saved: Any) -> None:
    """Refuse what would take all memory to read: parts within parts without end, and a large tensor
    that has less memory than its shape says.
    """
    waiting = [(saved, 0)]
    while waiting:
        part, depth = waiting.pop()
        _want("part", part, "parts within parts, and not a hundred times", depth < 100)
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]
        elif isinstance(part, Tensor) and not is_lazy(part):
            small = part.numel() <= _REPEATED
            _want("tensor", part, "one as large as it says", small or _is_own(part))


def _is_own(tensor: Tensor) -> bool:
    """Whether each of its elements has memory of its own."""
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def check_place(saved: dict[str, Any]) -> None:
    """Refuse a place that no training can be at, such as a fit that ended after now."""
    for name in ("place", "fits", "kinds"):
        _want(name, saved[name], "a list", isinstance(saved[name], list | tuple))
    epochs, steps = saved["place"]
    check_count("an epoch", epochs, _EPOCHS)
    check_count("a step", steps)
    check_count("a phase", saved["passes"], max(1, len(saved["kinds"]) - 1))
    fits = saved["fits"]
    before = 0
    for end in fits:
        check_count("a fit's end", end, epochs + 1)
        _want("fits", fits, "one after the other", end >= before)
        before = end


def check_tally(saved: dict[str, Any]) -> None:
    """Refuse sums that no mean can be made of."""
    _want("counters", saved["counters"], "a dict", isinstance(saved["counters"], dict))
    for name, average in saved["averages"].items():
        trial = Average()
        trial.load_state_dict(average)
        _want(f"the average {name}", average, "sums and weights", trial.mean().ndim < 2)


def check_optimizer_state(saved: dict[str, Any], optimizer: Any) -> None:
    """Refuse groups of another form, and tensors kept for a parameter that are not of its shape."""
    check_form(
        "the optimizer's groups", saved["param_groups"], optimizer.state_dict()["param_groups"]
    )
    parameters = parameters_of(optimizer)
    states = saved["state"]
    _want("optimizer's state", states, "a dict", isinstance(states, dict))
    for i, state in states.items():
        check_count("a parameter's state", i, len(parameters))
        _want("a parameter's state", state, "a dict", isinstance(state, dict))
        if type(optimizer) in _BY_PARAMETER:
            for name, value in state.items():
                if not _fits(value, parameters[i]):
                    wanted = f"a number or {in_words(parameters[i])}"
                    raise Refusal(f"a state whose {name} is {in_words(value)}", wanted, _FIX)


def check_groups(optimizer: Any, before: list[set[str]]) -> None:
    """Refuse groups that are without what they had before they were loaded."""
    for group, names in zip(optimizer.param_groups, before, strict=True):
        _want("group", group, f"one with {', '.join(sorted(names))}", names <= set(group))


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether an optimizer of that kind keeps this: a number, or a tensor like the parameter."""
    if value is None or is_number(value) or is_lazy(parameter):
        return True
    return isinstance(value, Tensor) and value.shape == parameter.shape and _is_own(value)


def check_held(held: dict[str, Any], optimizer: Any) -> None:
    """Refuse gradients of held back batches that are not those of an optimizer's parameters."""
    check_count("batches held", held["batches"])
    if held["sums"] is None:
        return
    parameters = parameters_of(optimizer)
    for head in held["sums"]:
        alike = isinstance(head, list) and len(head) == len(parameters)
        _want("gradients", head, f"those of {len(parameters)} parameters", alike)
        for gradient, parameter in zip(head, parameters, strict=True):
            alike = isinstance(gradient, Tensor) and gradient.shape == parameter.shape
            _want("gradient", gradient, in_words(parameter), gradient is None or alike)
    numbers = [1.0 for _ in held["sums"]]
    check_form("weights held", held["weights"], numbers)
    check_form("scales held", held["scales"], numbers)


def check_rows(rows: Any) -> None:
    """Refuse what is no history: a list of dicts of numbers and words."""
    _want("rows", rows, "a list", isinstance(rows, list))
    for row in rows:
        _want("a row", row, "a dict", isinstance(row, dict))
        for name, value in row.items():
            known = isinstance(name, str) and (isinstance(value, str) or is_number(value))
            _want(f"a row's {name}", value, "a number or a word", known)


def check_weights(saved: Sequence[Any], modules: Sequence[Any]) -> None:
    """Refuse weights that are not those of some modules; none at all are none kept yet."""
    _want("weights", saved, f"those of {len(modules)} modules", len(saved) in (0, len(modules)))
    for state, module in zip(saved, modules, strict=False):
        here = module.state_dict()
        _want("weights", state, in_words(here), isinstance(state, dict) and set(state) == set(here))
        for name, value in here.items():
            if is_lazy(value) or is_lazy(state[name]) or not isinstance(value, Tensor):
                continue
            if name.endswith("_extra_state"):  # is its module's affair
                continue
            alike = isinstance(state[name], Tensor) and state[name].shape == value.shape
            _want(f"weights {name}", state[name], in_words(value), alike)


def _want(name: str, came: Any, wanted: str, holds: bool) -> None:
    if not holds:
        raise Refusal(f"a state whose {name} is {in_words(came)}", wanted, _FIX)
