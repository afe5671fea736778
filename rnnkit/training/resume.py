"""The whole training as a value: taken, compared, and put back, all of it or nothing."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from ..core.errors import Refusal
from ..core.state import map_leaves
from .callbacks import KeepBest
from .events import stateful
from .forms import (
    SAME,
    check_count,
    check_held,
    check_optimizer_state,
    check_place,
    check_rng,
    check_scaler,
    check_sizes,
    check_tally,
    check_weights,
    refuse_difference,
    shapes_of,
)
from .ranks import Ranks, count_of
from .rng import generators_of, rng_state, set_rng_state

if TYPE_CHECKING:
    from .learner import Learner

FORMAT = "rnnkit checkpoint 1"

_PLACE = ("place", "passes", "fits", "tally", "epoch_rng")
_FIT = ("kinds", "phases", "rng")
_PARTS = ("count", "model", "loss", "optimizer", "callbacks", *_PLACE, *_FIT)
OF_RANK = ("tally", "epoch_rng", "phases", "rng")  # what each rank alone has
_WEIGHTS = 'learner.model.load_state_dict(saved["model"]) takes the weights alone.'


class Resuming(NamedTuple):
    """Where a training that was cut short within an epoch goes on."""

    epoch_rng: dict[str, Any]  # the generators when the epoch began
    rng: dict[str, Any]  # and when it was cut short
    tally: dict[str, Any]  # what it had added up


class Waiting(NamedTuple):
    """A state that was loaded before the fit that it belongs to began."""

    saved: dict[str, Any]
    whole: bool  # whether all of it is put back then, or only what belongs to a fit


@dataclass(eq=False)
class Place:
    """Where a training is: in which of its fits, and where in the fit's epoch.

    A script that is run again makes the same fits again: those that its file had finished make no
    epoch, and each counts on from the end of the one before it.
    """

    fits: list[int] = field(default_factory=list[int])  # after which epoch each finished one ended
    fit: int = 0  # which one it is, or will be
    start: int = 0  # the epochs that the fit's own are added to
    in_fit: bool = False
    passes: int = 0  # phases of the fit's epoch that are done with
    # The generators when the fit's epoch began, empty between two; its parts when its phase did.
    epoch_rng: dict[str, Any] = field(default_factory=dict[str, Any])
    at_pass: dict[str, Any] = field(default_factory=dict[str, Any])
    resuming: Resuming | None = None  # where it goes on, until it has
    waiting: Waiting | None = None  # what was loaded for a fit that is still to begin

    @property
    def is_past(self) -> bool:
        """Whether the training that was loaded had finished this fit."""
        return self.fit < len(self.fits)

    def finish_fit(self, target: int, epochs: int) -> None:
        """A fit ends, at its `target` or before, after so many epochs in all."""
        if not self.is_past:
            self.fits.append(min(target, epochs))
        self.start = self.fits[self.fit]
        self.fit += 1


# ---- Taken


def state_of(learner: "Learner") -> dict[str, Any]:
    """The whole training."""
    saved = _state_of(learner)
    lazy = [name for name, value in saved["model"].items() if is_lazy(value)]
    if lazy:
        fix = "run the model once, on a batch, before its state is taken."
        raise Refusal(f"a lazy module without weights, {lazy[0]}", "weights", fix)
    return saved


def _state_of(learner: "Learner") -> dict[str, Any]:
    """The same, lazy modules among it."""
    callbacks = stateful(learner.callbacks)
    saved = {
        "format": FORMAT,
        "model": learner.model.state_dict(),
        "loss": [module.state_dict() for module in learner.trained()[1:]],
        "optimizer": learner.optimizer.state_dict(),
        "callbacks": {name: part.state_dict() for name, part in callbacks.items()},
        "count": count_of(learner.ranks),
    }
    if learner.scaler is not None:
        saved["scaler"] = learner.scaler.state_dict()
    waiting = learner.place.waiting
    if waiting is not None:
        return saved | {name: waiting.saved[name] for name in (*_PLACE, *_FIT)}
    fit = fit_of(learner)
    if learner.place.passes and learner.fitting and not learner.now.done:
        fit = learner.place.at_pass  # validation begins again, as it began
    return saved | _place_of(learner) | fit


def _place_of(learner: "Learner") -> dict[str, Any]:
    """Where the training is: what was made, and what the running epoch has added up."""
    place = learner.place
    now = learner.now
    said: dict[str, Any] = {
        "place": (learner.epoch_index, learner.step_index),
        "passes": place.passes,
        "fits": list(place.fits),
        "tally": {"averages": {}, "counters": {}},
        "epoch_rng": place.epoch_rng,
    }
    # Where in the epoch it is: the sums of a training phase that is under way go into the file,
    # those of a phase that is done with are in the history already.
    if not place.epoch_rng:  # between two epochs
        said["place"] = (learner.epoch_index, 0)
    elif learner.fitting and now.done and now.last:  # told of its end, and not yet counted
        said |= {"place": (learner.epoch_index + 1, 0), "passes": 0, "epoch_rng": {}}
    elif learner.fitting and now.done:
        said["passes"] += 1
    elif place.resuming is not None:
        said["tally"] = place.resuming.tally
    elif now.fitting and not place.passes:
        said["tally"] = now.tally.state_dict()
    return said


def fit_of(learner: "Learner") -> dict[str, Any]:
    """What belongs to a fit: its phases, and the generators of its loaders among all others."""
    return {
        "kinds": [type(part).__name__ for part in (learner.optimizer, *learner.phases)],
        "phases": [phase.state_dict() for phase in learner.phases],
        "rng": rng_state(generators_of(learner.loaders)),
    }


# ---- Put back


def go_on_from(learner: "Learner", saved: Any) -> None:
    """Puts a training back: within a fit at once, outside one what belongs to a fit when it begins.

    Within a fit, its script is run again from its top. Outside one the learner goes on from where
    the state was taken, whatever it has made itself.
    """
    place = learner.place
    if learner.fitting:  # its batches would go on where they are
        wanted = "one at FitBegin or outside a fit"
        raise Refusal("a state within an epoch of a fit", wanted, _WEIGHTS)
    _check_format(saved)
    saved = _share_of(saved, learner.ranks)
    _check_form(learner, saved)
    # A fit that the file had finished may have other phases and loaders than the file's own.
    in_fit = place.in_fit and place.fit >= len(saved["fits"])
    _put_or_restore(learner, saved, whole=True, in_fit=in_fit)
    if place.in_fit:
        place.fit = min(place.fit, len(place.fits))
        place.waiting = None if in_fit else Waiting(saved, whole=True)
    else:
        place.fit = len(place.fits)
        place.start = place.fits[-1] if place.fits else 0
        place.waiting = Waiting(saved, whole=False)
        if not saved["phases"]:  # it had begun no fit
            place.waiting = None
            set_rng_state(saved["rng"], [])


def put_what_waits(learner: "Learner") -> None:
    """At the beginning of the fit that a loaded state belongs to."""
    place = learner.place
    waiting = place.waiting
    if waiting is None or place.is_past:
        return
    place.waiting = None
    try:
        _put_or_restore(learner, waiting.saved, waiting.whole, in_fit=True)
    except BaseException:
        place.waiting = waiting
        raise


def _put_or_restore(learner: "Learner", saved: dict[str, Any], whole: bool, in_fit: bool) -> None:
    """Puts back what belongs to the fit with `in_fit`, and the rest with `whole`; or nothing."""
    before = copy.deepcopy(_state_of(learner))
    refuse_difference(_described(saved, in_fit), _described(before, in_fit))
    place = learner.place
    resuming = place.resuming
    epoch_rng = place.epoch_rng
    try:
        _put(learner, saved, whole, in_fit)
    except BaseException as error:
        if whole:  # first, for its schedulers are tried with its groups
            learner.optimizer.load_state_dict(before["optimizer"])
        _put(learner, before, whole, in_fit)
        place.resuming = resuming
        place.epoch_rng = epoch_rng
        if isinstance(error, Refusal) or not isinstance(error, Exception):
            raise
        raise _no_fit(error, "this learner") from error
    learner.epoch_index, learner.step_index = saved["place"]
    place.passes = saved["passes"]
    place.fits = list(saved["fits"])


def _put(learner: "Learner", saved: dict[str, Any], whole: bool, in_fit: bool) -> None:
    if in_fit:
        _put_fit(learner, saved)
    if not whole:
        return
    for name, part in stateful(learner.callbacks).items():
        part.load_state_dict(saved["callbacks"][name])
        if isinstance(part, KeepBest):
            check_weights(part.kept, learner.trained())
    check_optimizer_state(saved["optimizer"], learner.optimizer)
    _put_optimizer(learner, saved)
    if learner.scaler is not None:
        check_scaler(saved["scaler"], learner.scaler)
        learner.scaler.load_state_dict(saved["scaler"])
    for module, state in zip(learner.trained()[1:], saved["loss"], strict=True):
        module.load_state_dict(state)

    # The model last: a lazy one takes the shapes it is given, and could not give them back.
    if not any(is_lazy(value) for value in saved["model"].values()):
        learner.model.load_state_dict(saved["model"])


def _put_optimizer(learner: "Learner", saved: dict[str, Any]) -> None:
    """PyTorch casts what is kept for a weight to its dtype, NAdam's product too."""
    learner.optimizer.load_state_dict(saved["optimizer"])
    weights = learner.model.named_parameters()
    if any(weight.dtype != saved["model"].get(name, weight).dtype for name, weight in weights):
        return  # the weights go on in another
    states = saved["optimizer"]["state"]
    for i, kept in learner.optimizer.state_dict()["state"].items():
        for name, own in states.get(i, {}).items():
            value = kept.get(name)
            if isinstance(value, Tensor) and value.dtype != own.dtype:
                kept[name] = own.to(value.device)


def _put_fit(learner: "Learner", saved: dict[str, Any]) -> None:
    """What belongs to a fit: its phases' states, the generators, and the place in the epoch."""
    device = learner.parameters[0].device
    for phase, state in zip(learner.phases, saved["phases"], strict=True):
        phase.load_state_dict(state)
        if "held" in state:
            check_held(state["held"], learner.optimizer)
        phase.carried = map_leaves(lambda leaf: leaf.to(device), phase.carried)
    own = generators_of(learner.loaders)
    if saved["epoch_rng"]:
        set_rng_state(saved["epoch_rng"], own)  # it can be, when the epoch's batches are made again
    set_rng_state(saved["rng"], own)
    learner.place.epoch_rng = saved["epoch_rng"]
    learner.place.resuming = None
    _, steps = saved["place"]
    if steps > 0 and not saved["passes"]:
        learner.place.resuming = Resuming(saved["epoch_rng"], saved["rng"], saved["tally"])


def _share_of(saved: dict[str, Any], ranks: Ranks | None) -> dict[str, Any]:
    """This rank's own, of a file that has those of all."""
    here = count_of(ranks)
    there = saved["count"]
    check_count("count of processes", there)
    if here != there:
        came = f"a file of {there} processes"
        if there == 1:
            came = "a file of 1 process"
        fix = f"torchrun --nproc-per-node {there}; {_WEIGHTS}"
        raise Refusal(came, f"one of {here}", fix)
    if ranks is None or "ranks" not in saved:
        return saved
    return {**saved, **saved["ranks"][ranks.rank]}


# ---- Compared


def _check_format(saved: Any) -> None:
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        fix = "a bare state_dict goes through model.load_state_dict."
        raise Refusal("a file of another kind", f"the format {FORMAT!r}", fix)
    missing = [name for name in _PARTS if name not in saved]
    if missing:
        raise Refusal(f"a file without {', '.join(missing)}", "all that a training is", _WEIGHTS)


def _check_form(learner: "Learner", saved: dict[str, Any]) -> None:
    """Refuse a state that no training has."""
    try:
        check_sizes(saved)
        check_place(saved)
        losses = ("loss", *learner.metrics.losses)
        check_tally(saved["tally"], losses, learner.metrics.counters)
        check_rng(saved["rng"])
        if saved["epoch_rng"]:
            check_rng(saved["epoch_rng"])
        _described(saved, in_fit=True)
    except Refusal:
        raise
    except Exception as error:
        raise _no_fit(error, "a learner") from error


def _no_fit(error: Exception, whose: str) -> Refusal:
    came = f"a state that does not fit ({type(error).__name__}: {error})"
    return Refusal(came, f"the state of {whose}", SAME)


def _described(saved: dict[str, Any], in_fit: bool) -> dict[str, Any]:
    """What must be the same in a state and in the learner that goes on from it."""
    said = shapes_of("a model's ", saved["model"])
    for i, state in enumerate(saved["loss"]):
        said |= shapes_of(f"a loss's {i}.", state)
    kinds = list(saved["kinds"])
    if in_fit:
        said["the optimizer and phases"] = kinds
        said["the loaders' own generators:"] = len(saved["rng"]["own"])
    else:
        said["the optimizer"] = kinds[0]
    groups = saved["optimizer"]["param_groups"]
    said["parameter groups"] = [len(group["params"]) for group in groups]
    said["a scaler of gradients:"] = "scaler" in saved
    said["callbacks"] = sorted(saved["callbacks"])
    return said
