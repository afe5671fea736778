"""One loss function, whatever its kind: what it gives for `N` steps laid side by side."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss  # pyright: ignore[reportPrivateUsage]

from ..core.errors import Refusal, in_full, in_words
from ..core.model import evaluating, name_of, unwrap
from ..core.signature import must_be_given, parameters_of, takes
from ..core.state import onto
from .total import Total, exact, precise

LossFunction = Callable[..., Any]

# PyTorch's losses, as a module and as a function. Of the first two the mean leaves some targets out
# (ignore_index), or weighs them.
_WEIGHING = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}
# Their targets are classes: of another shape than the outputs by nature.
_CLASSES = {**_WEIGHING, nn.MultiMarginLoss: F.multi_margin_loss}


class Each(NamedTuple):
    """What a loss function gives for `N` steps: each one's loss and weight, `(N,)`, or one weight
    for all.

    Weights are on the CPU where the targets were known there.
    """

    losses: Tensor
    weights: Tensor | float

    def total(self, where: Tensor | None = None) -> Total:
        """The sum and the weight of all steps, or of those `where`, bool `(N,)` on the CPU."""
        losses, weights = self
        if where is not None:
            index = where.nonzero().squeeze(1)
            losses = losses.index_select(0, onto(index, losses.device))
            if isinstance(weights, Tensor):
                weights = weights.index_select(0, onto(index, weights.device))
        if isinstance(weights, Tensor):
            return Total(losses.sum(), weights.sum())
        return Total(losses.sum(), weights * len(losses))

    def times(self, factors: Tensor) -> Each:
        factors = factors.to(self.losses.dtype)
        weights = self.weights
        own = factors
        if isinstance(weights, Tensor):
            own = onto(factors, weights.device)
        return Each(self.losses * onto(factors, self.losses.device), weights * own)


class Head:
    """One loss function, asked for `N` steps side by side: outputs `(N, *O)`, targets `(N, *Y)`.

    `known` are the same targets, on the CPU if they came from there.

    Attributes:
        key: its name in a dict of losses.
        scalar: whether it gave one number for all steps.
    """

    def __init__(self, loss_fn: LossFunction, key: Any = None, lengths: bool = False) -> None:
        if not callable(loss_fn):
            fix = "nn.MSELoss()."
            raise Refusal(in_words(loss_fn), "a loss function (outputs, targets)", fix, TypeError)
        refuse_class(loss_fn)
        self.loss_fn = bare(loss_fn)
        self.key = key
        self._options = torch_options(self.loss_fn)
        counts = [2]
        if lengths and self._options is None:
            counts.append(3)
        check_wanted(self.loss_fn, *counts)
        self.scalar = False
        self._class_weight: tuple[Tensor, int, Tensor] | None = None
        self._weighs = _is_one_of(_WEIGHING, self.loss_fn)
        self._own_forward = _has_own_forward(self.loss_fn)  # which knows its targets
        pytorchs = self._options is not None and not self._own_forward
        self._classes = pytorchs and _is_one_of(_CLASSES, self.loss_fn)
        self._same_shape = pytorchs
        self._refuse_sum()

    @property
    def options(self) -> dict[str, Any] | None:
        """What a loss of PyTorch's own is built with, as it stands; `None` of another."""
        if self._options is not None and isinstance(self.loss_fn, nn.Module):
            return _settings_of(self.loss_fn)  # a module's may be set later
        return self._options

    def __call__(self, outputs: Tensor, targets: Any, known: Any) -> Each | Total:
        """Each step's loss where the function tells it, a sum and a weight where it does not."""
        options = self.options
        if options is None:
            return self.read(self.loss_fn(outputs, targets), len(outputs))
        self._refuse_sum()
        try:
            losses = self._unreduced(outputs, targets)
        except RuntimeError:
            if self._classes or targets.is_floating_point():
                raise
            came = f"targets of {targets.dtype}, which {name_of(self.loss_fn)} does not take"
            fix = "targets.float(); classes go with nn.CrossEntropyLoss."
            raise Refusal(came, f"targets of {outputs.dtype}", fix, TypeError) from None
        if not isinstance(losses, Tensor) or losses.shape[:1] != outputs.shape[:1]:
            # A subclass that reduces by itself.
            return self.read(self.loss_fn(outputs, targets), len(outputs))
        losses = _features(precise(losses))  # (N, K)
        weights = self.weights(known)
        if weights is None:
            weights = float(losses.shape[1])
            if options["reduction"] == "batchmean":
                weights = 1.0
        each = Each(losses.sum(1), weights)
        if self._own_forward and options["reduction"] != "none":
            self._check_mean(each, outputs, targets, known)
        return each

    def _check_mean(self, each: Each, outputs: Tensor, targets: Tensor, known: Any) -> None:
        loss_fn: Any = self.loss_fn
        with torch.no_grad():
            mean = float(loss_fn(outputs, targets))
            steps = float(each.total().mean())
            error = max(1e-5, 2 * torch.finfo(outputs.dtype).eps)
            if math.isclose(mean, steps, rel_tol=error, abs_tol=1e-5) or math.isnan(mean):
                return
            if not loss_fn.training:
                raise Refusal(
                    f"a subclass of PyTorch's loss that gives {mean:.4g}, and {steps:.4g} by its "
                    "steps",
                    "the mean of its own steps",
                    "derive it from nn.Module, whose answer is taken as it is.",
                )
            with evaluating(loss_fn):  # where nothing is drawn at random, as by dropout
                self(outputs, targets, known)

    def whole(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Total | None:
        """The total of all steps as torch reduces them, where that is quicker and the same."""
        loss_fn: Any = self.loss_fn
        kind = type(loss_fn)
        if kind is not nn.CrossEntropyLoss and kind is not nn.MSELoss:
            return None
        if loss_fn.reduction != "mean" or outputs.dtype.itemsize < 4:
            return None
        weight = float(targets.numel())
        if kind is nn.CrossEntropyLoss:
            if loss_fn.weight is not None or targets.is_floating_point():
                return None
            weight = _count_of_others(known.long(), loss_fn.ignore_index)
        if weight == 0:
            return None
        mean = loss_fn(outputs, targets)
        return Total(mean, weight, is_mean=True)

    def weights(self, targets: Tensor) -> Tensor | None:
        """What torch's mean divides by at each step, `(N,)`; `None` where all count alike."""
        options: dict[str, Any] = self.options or {}
        weight = options.get("weight")
        if weight is not None and _function_of(self.loss_fn) in (F.mse_loss, F.l1_loss):
            return _features(weight).sum(1)
        if not self._weighs or targets.is_floating_point():  # probabilities count alike
            return None
        targets = targets.long()  # bytes would be a mask of the classes, and 156 be -100
        ignored = targets == options["ignore_index"]
        if weight is None:
            weights = (~ignored).to(exact(targets.device))
        else:
            class_weight = self._class_weight_on(targets.device, weight)
            weights = class_weight[targets.masked_fill(ignored, 0)].masked_fill(ignored, 0)
        return _features(weights).sum(1)

    def _class_weight_on(self, device: torch.device, weight: Tensor) -> Tensor:
        """The weights of the classes on a device: copied once, and again when they change."""
        if weight.device == device:
            return weight
        kept = self._class_weight
        if kept is None or kept[0] is not weight or kept[1] != weight._version:
            kept = (weight, weight._version, weight.to(device))
            self._class_weight = kept
        return kept[2]

    def read(self, given: Any, count: int) -> Each | Total:
        """What a function gave for `count` steps: a loss for each, their mean, or a pair."""
        if isinstance(given, tuple) and len(given) == 2:
            return pair_of(given)
        if not isinstance(given, Tensor) or (given.ndim and given.shape[0] != count):
            raise Refusal(
                f"{in_words(given)} from the loss of {count} steps",
                "a scalar tensor (a mean of the steps), one loss a step, or a pair (sum, weight)",
                'use a loss with reduction "mean" or "none".',
            )
        if given.is_complex():
            fix = "take the absolute value, or the sum of the squares of both parts."
            raise Refusal("complex numbers from the loss", "real ones", fix)
        given = precise(given)
        if given.ndim == 0:
            self.scalar = True
            return Total(given, float(count), is_mean=True)
        return Each(_features(given).mean(1), 1.0)

    def check_shapes(self, outputs: Tensor, targets: Tensor, *, leading: int) -> None:
        """Refuse shapes that would broadcast to a wrong number; `leading` dimensions, of steps and
        rows, come before those of the features."""
        if self._classes:
            _check_classes(outputs, targets, leading)
            return
        if outputs.shape == targets.shape:
            return
        missing = (*outputs.shape, 1) == targets.shape or outputs.shape == (*targets.shape, 1)
        if self._same_shape or missing:
            fix = (
                "they would broadcast to a wrong number; add the missing dimension with "
                "targets.unsqueeze(-1)."
            )
            if outputs.ndim == targets.ndim:
                fix = (
                    "a model has an output for each feature of the targets; with covariates pass "
                    "(inputs, targets), and those features alone as targets."
                )
            came = f"outputs {in_words(outputs)} and targets {in_words(targets)}"
            raise Refusal(came, "equal shapes", fix)

    def _unreduced(self, outputs: Tensor, targets: Any) -> Any:
        if not isinstance(self.loss_fn, nn.Module):
            # The two old words for a reduction would win over the new one.
            given = _keywords_of(self.loss_fn)
            unsaid = {name: None for name in ("size_average", "reduce") if name in given}
            return self.loss_fn(outputs, targets, reduction="none", **unsaid)
        # A copy that shares everything but the one word, so that other threads may use the loss.
        view = object.__new__(type(self.loss_fn))
        view.__dict__.update(self.loss_fn.__dict__)
        view.__dict__["reduction"] = "none"
        return view(outputs, targets)

    def _refuse_sum(self) -> None:
        options = self.options or _keywords_of(self.loss_fn)
        # A module of one's own has it by the name that PyTorch gives it.
        if "sum" in (options.get("reduction"), getattr(self.loss_fn, "reduction", None)):
            raise Refusal(
                'a loss with reduction="sum"',
                'reduction="mean" or "none"',
                "a sum grows with the length of the batch; build the loss with the mean and set "
                "the learning rate, or give a function that says what it divides by: "
                "lambda y, t: (F.mse_loss(y, t, reduction='sum'), 1.0).",
            )


def _features(values: Tensor) -> Tensor:
    if values.ndim == 1:
        return values.unsqueeze(1)
    return values.flatten(1)


def _count_of_others(targets: Tensor, ignored: int) -> float:
    if ignored < 0 and targets.numel() and int(targets.min()) >= 0:
        return float(targets.numel())  # the usual case, in one operation
    return float((targets != ignored).sum())


def bare(loss_fn: Any) -> Any:
    """A loss of PyTorch's own without what hides it: a wrapper, `partial`, its `forward`."""
    if isinstance(loss_fn, functools.partial) and not (loss_fn.args or loss_fn.keywords):
        return bare(loss_fn.func)
    inner = loss_fn
    if inspect.ismethod(loss_fn) and loss_fn.__name__ in ("forward", "_wrapped_call_impl"):
        inner = loss_fn.__self__
    inner = unwrap(inner)
    return inner if isinstance(inner, _Loss) else loss_fn


def _function_of(loss_fn: Any) -> Any:
    """What is inside a partial; where it is one of PyTorch's that was compiled, PyTorch's."""
    if isinstance(loss_fn, functools.partial):  # Python makes one of a partial of a partial
        loss_fn = loss_fn.func
    if hasattr(loss_fn, "_torchdynamo_orig_callable") and loss_fn.__module__ == F.__name__:
        return getattr(F, loss_fn.__name__, loss_fn)
    return loss_fn


def _is_one_of(losses: Mapping[Any, Any], loss_fn: Any) -> bool:
    loss_fn = _function_of(loss_fn)
    same = any(loss_fn is function for function in losses.values())  # == may be its own
    return same or isinstance(loss_fn, tuple(losses))


def _has_own_forward(loss_fn: Any) -> bool:
    """Whether it is a subclass of a loss of PyTorch's that computes in a way of its own."""
    return isinstance(loss_fn, _Loss) and type(loss_fn).forward.__module__ != _Loss.__module__


def _keywords_of(loss_fn: Any) -> dict[str, Any]:
    if isinstance(loss_fn, functools.partial):
        return loss_fn.keywords
    return {}


def refuse_class(loss_fn: object) -> None:
    if isinstance(loss_fn, type):
        fix = f"make one: {loss_fn.__name__}()."
        raise Refusal(in_words(loss_fn), "a loss function", fix, TypeError)


def check_wanted(loss_fn: Any, *counts: int) -> None:
    """Refuse a loss that is not called with so many arguments."""
    parameters = parameters_of(loss_fn)
    if not takes(parameters, *counts):
        wanted = [parameter.name for parameter in parameters or [] if must_be_given(parameter)]
        raise Refusal(
            f"a loss that wants {', '.join(wanted) or 'nothing'}",
            "one of (outputs, targets)",
            "write a function that gives it all of them, lambda outputs, targets: ...; with "
            'read="all", lambda outputs, targets, lengths: ...',
            TypeError,
        )


def _check_classes(outputs: Tensor, targets: Tensor, leading: int) -> None:
    """Targets are classes, without the outputs' dimension of classes, or probabilities of them."""
    probabilities = targets.is_floating_point() and targets.shape == outputs.shape
    without = outputs.shape[:leading] + outputs.shape[leading + 1 :]
    classes = targets.dtype in (torch.int64, torch.uint8) and targets.shape == without
    if probabilities or (classes and outputs.ndim > leading):
        return
    came = f"outputs {in_words(outputs)} and targets {in_full(targets)}"
    wanted = f"classes {tuple(without)}, int64, without the dimension of the classes"
    fix = (
        "targets.squeeze(-1) drops a dimension of 1, targets.long() makes classes of numbers, "
        "targets.argmax(-1) of one-hot rows."
    )
    raise Refusal(came, wanted, fix)


def torch_options(loss_fn: Any) -> dict[str, Any] | None:
    """The options of a loss of PyTorch's own, which can be had unreduced; `None` of another."""
    if _has_own_forward(loss_fn) and not takes(parameters_of(loss_fn), 1, 2):
        return None  # it wants lengths
    if isinstance(loss_fn, _Loss):
        return _settings_of(loss_fn)
    function = _function_of(loss_fn)
    if isinstance(loss_fn, functools.partial) and loss_fn.args:
        return None
    if function is not getattr(F, getattr(function, "__name__", ""), None):
        return None  # a decorator may give one's own function the name
    parameters = parameters_of(function) or []
    defaults = {parameter.name: parameter.default for parameter in parameters}
    if "reduction" not in defaults:
        return None
    options = {"ignore_index": None, "weight": None, **defaults, **_keywords_of(loss_fn)}
    if options.get("size_average") is False and options.get("reduce") is not False:
        options["reduction"] = "sum"  # the old way to say so
    return options


def _settings_of(loss_fn: nn.Module) -> dict[str, Any]:
    names = ("reduction", "ignore_index", "weight")
    return {name: getattr(loss_fn, name, None) for name in names}


def pair_of(given: tuple[Any, Any]) -> Total:
    total, weight = given
    scalar_weight = isinstance(weight, Real) or (isinstance(weight, Tensor) and weight.ndim == 0)
    if not isinstance(total, Tensor) or total.ndim or not scalar_weight:
        raise Refusal(
            f"a pair of {in_words(total)} and {in_words(weight)} from the loss",
            "a pair of scalars, (sum, weight)",
            "sum the losses of the steps that count, and count them.",
        )
    if getattr(weight, "requires_grad", False):
        fix = "add up two losses; of outputs, weight.detach(): the loss is sum / weight."
        raise Refusal("a pair whose weight has a gradient from the loss", "(sum, weight)", fix)
    on_device = isinstance(weight, Tensor) and weight.device.type != "cpu"  # not waited for
    if not on_device and not 0 <= float(weight) < math.inf:
        came = f"a pair whose weight is {float(weight):g} from the loss"
        fix = "count the steps that the sum is of; 0 where there is none."
        raise Refusal(came, "a weight that is finite and not below 0", fix)
    if isinstance(weight, Tensor):
        return Total(precise(total), weight)
    return Total(precise(total), float(weight))
