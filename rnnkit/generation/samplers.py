"""Samplers: callables that make the next input of the outputs of one step.

A sampler is called `sampler(outputs)` with the outputs `(B, *O)` of one step and gives the next
input `(B, *F)`, or a dict of such. One that takes a second argument, required or named `given`, is
called `sampler(outputs, given)`: `given (B, *F)` is what the data has at the step that is fed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..core.errors import Refusal, asked, at_least, check_number, in_full, in_words, is_number
from ..core.signature import check_takes, must_be_given, parameters_of
from ..core.state import map_leaves

NextInput: TypeAlias = Callable[..., Any]


class DeclaredSampler:
    """The one table of what a sampler may declare, as attributes of its class or of the object.

    | attribute | what it says | where it is absent |
    |---|---|---|
    | `draws: bool` | draws at random: one path is one of many | it does not |
    | `classes: bool` | draws classes, dim 1 of the outputs, by `softmax` | it does not |
    | `log_prob(outputs, drawn)` | log-probabilities `(T, B)` or `None` | by `classes`, or `None` |

    Whether it sees `given` is read off its parameters, once.
    """

    def __init__(self, sampler: NextInput) -> None:
        check_sampler(sampler)
        self.sampler = sampler
        self.draws = bool(getattr(sampler, "draws", False))
        self.classes = bool(getattr(sampler, "classes", False))
        given = _given_of(sampler)
        self.sees_given = given is not None
        self.needs_given = given is not None and given.default is given.empty
        self._by_name = given is not None and _has_its_name(given)

    def __call__(self, outputs: Any, given: Any) -> Any:
        """The next input, by a call in the form that the sampler takes.

        It gets copies, for many write to their logits, and to what the data has.
        """
        outputs = map_leaves(torch.clone, outputs)
        if not self.sees_given:
            return self.sampler(outputs)
        given = map_leaves(torch.clone, given)
        if self._by_name:
            return self.sampler(outputs, given=given)
        return self.sampler(outputs, given)

    def log_prob(self, outputs: Any, drawn: Any) -> Tensor | None:
        """The log-probabilities `(T, B)` of what was drawn; `None` where nothing says them."""
        own = getattr(self.sampler, "log_prob", None)
        if own is not None:
            return own(outputs, drawn)
        if self.classes:
            return _class_log_prob(outputs, drawn)
        return None


def _given_of(sampler: NextInput) -> Parameter | None:
    """The parameter that takes what the data has at a step: by its name, or the second one."""
    others = (parameters_of(sampler) or [])[1:]
    for parameter in others:
        if _has_its_name(parameter):
            return parameter
    return others[0] if others and must_be_given(others[0]) else None


def _has_its_name(parameter: Parameter) -> bool:
    by_name = parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return by_name and parameter.name == "given"


def _class_log_prob(outputs: Tensor, drawn: Tensor) -> Tensor | None:
    """By `log_softmax` over dim 2: of indices `(T, B, *O)`, or of one-hot rows `(T, B, V)`."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 3:
        return None
    log_p = outputs.log_softmax(2, dtype=_at_least_single(outputs))  # (T, B, V, *O)
    if drawn.is_floating_point():
        if drawn.ndim != 3 or drawn.shape != outputs.shape:  # no one-hot rows
            return None
        return torch.where(drawn == 0, 0, log_p * drawn).sum(2)
    if outputs.ndim != drawn.ndim + 1:
        return None
    drawn = drawn.long()
    known = (drawn >= 0) & (drawn < outputs.shape[2])  # a primer may have tokens of its own
    index = drawn.where(known, 0).unsqueeze(2)
    found = log_p.gather(2, index).squeeze(2).where(known, float("-inf"))  # (T, B, *O)
    return _over_features(found)


def _over_features(log_prob: Tensor) -> Tensor:
    return log_prob.unsqueeze(-1).flatten(2).sum(2)


def _at_least_single(tensor: Tensor) -> torch.dtype:
    """Sums over classes or steps need more digits than float16 and bfloat16 have."""
    return torch.promote_types(tensor.dtype, torch.float32)


def identity(outputs: Any) -> Any:
    """The outputs themselves, `(B, *F)`, for a model that predicts the next input.

    >>> import torch
    >>> from rnnkit import identity
    >>> identity(torch.tensor([[0.5]])).item()
    0.5
    """
    return outputs


@asked("sample_best")
def sample_best(outputs: Tensor) -> Tensor:
    """Greedy decoding: the class with the highest score, `(B, V, *O)` to int64 `(B, *O)`.

    Classes are dim 1, as in `torch.nn.functional.cross_entropy`. Raises `ValueError` if there is
    none.

    >>> import torch
    >>> from rnnkit import sample_best
    >>> sample_best(torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])).tolist()
    [1, 0]
    """
    if getattr(outputs, "ndim", 0) < 2:
        raise Refusal(f"outputs {in_words(outputs)}", "(B, V)", "keep the batch dimension.")
    return outputs.argmax(1)


vars(sample_best).update(classes=True)  # see DeclaredSampler


def sample_softmax(outputs: Tensor) -> Tensor:
    """A class of each row, int64 `(B,)`, drawn with the probabilities `softmax(outputs)`.

    Raises `ValueError` if the outputs are not logits `(B, V)`.

    >>> import torch
    >>> from rnnkit import sample_softmax
    >>> sample_softmax(torch.tensor([[0.0, 100.0]])).tolist()
    [1]
    """
    return SoftmaxSampler()(outputs)


vars(sample_softmax).update(classes=True, draws=True)


@dataclass(eq=False)
class SoftmaxSampler:
    """Draws a class from `softmax(outputs / temperature)`, cut down to the likelier classes.

    A call maps logits `(B, V)` to int64 `(B,)`, or to `(B, V)` with `one_hot`. The cuts are made in
    this order, each on what the one before left, renormalized. Raises `ValueError` for other
    shapes, and for an argument out of its range.

    Args:
        temperature: above 0; below 1 sharpens, above 1 flattens.
        top_k: keep the `k` likeliest classes.
        top_p: keep the likeliest classes until their sum reaches `p`, with the one that reaches it
            (Holtzman et al. 2020, <https://arxiv.org/abs/1904.09751>).
        min_p: keep the classes with at least `min_p` times the highest probability
            (Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>).
        one_hot: return the draw as a one-hot row in the dtype of the outputs.
        generator: PyTorch's global one where it is `None`.

    >>> import torch
    >>> from rnnkit import SoftmaxSampler
    >>> sampler = SoftmaxSampler(temperature=0.5, top_k=2)
    >>> sampler.probabilities(torch.tensor([[0.0, 1.0, 2.0]])).round(decimals=2).tolist()
    [[0.0, 0.11999999731779099, 0.8799999952316284]]
    """

    draws: ClassVar[bool] = True
    classes: ClassVar[bool] = True

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    one_hot: bool = False
    generator: torch.Generator | None = None

    @asked("SoftmaxSampler")
    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 < self.temperature < math.inf:
            came = f"temperature = {self.temperature}"
            wanted = "temperature above 0; the limit at 0 is sample_best"
            raise Refusal(came, wanted, "1.0 leaves the logits as they are.")
        none = "None leaves the cut out."
        if self.top_k is not None:
            at_least("top_k", self.top_k, 1, none)
        if self.top_p is not None:
            check_number("top_p", self.top_p, lambda p: 0 < p <= 1, "top_p in (0, 1]", none)
        if self.min_p is not None:
            check_number("min_p", self.min_p, lambda p: 0 <= p <= 1, "min_p in [0, 1]", none)

    @asked("SoftmaxSampler")
    def probabilities(self, outputs: Tensor) -> Tensor:
        """What a draw is made from: `(B, V)`, in float32 at least, zero where a class was cut."""
        logits = isinstance(outputs, Tensor) and outputs.is_floating_point()
        if not logits or outputs.ndim != 2:
            fix = "end the model with nn.Linear(H, V); identity is for outputs that are inputs."
            raise Refusal(f"outputs {in_words(outputs)}", "float logits (B, V)", fix)
        p = (outputs.to(_at_least_single(outputs)) / self.temperature).softmax(1)
        if self.top_k is not None and self.top_k < p.shape[1]:
            p = _keep_top_k(p, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            p = _keep_top_p(p, self.top_p)
        if self.min_p is not None:
            p = _keep(p, p >= self.min_p * p.amax(1, keepdim=True))
        return p

    @asked("SoftmaxSampler")
    def __call__(self, outputs: Tensor) -> Tensor:
        p = self.probabilities(outputs)
        try:
            drawn = torch.multinomial(p, 1, generator=self.generator)  # (B, 1)
        except RuntimeError:
            rows = p.isnan().any(1).nonzero().flatten().tolist()
            if not rows:
                raise
            fix = "StopOnNaN ends a training that diverges; a mask of -inf leaves a class."
            wanted = "logits without NaN and inf, one of them above -inf"
            raise Refusal(f"logits whose softmax is NaN in rows {rows}", wanted, fix) from None
        if self.one_hot:
            return torch.zeros_like(outputs).scatter_(1, drawn, 1.0)
        return drawn.squeeze(1)


def _keep_top_k(p: Tensor, k: int) -> Tensor:
    likeliest = p.topk(k, 1).indices
    return _keep(p, torch.zeros_like(p, dtype=torch.bool).scatter_(1, likeliest, True))


def _keep_top_p(p: Tensor, top_p: float) -> Tensor:
    ranked, order = p.sort(dim=1, descending=True, stable=True)
    before = nn.functional.pad(ranked[:, :-1].cumsum(1), (1, 0))  # the sum of the likelier ones
    # A sum that is p but for a rounding has reached it: 0.5 and 0.3 are 0.8.
    info = torch.finfo(p.dtype)
    reached = max(top_p * (1 - 8 * info.eps), info.tiny)  # the likeliest stays
    return _keep(p, torch.empty_like(p).scatter_(1, order, before) < reached)


def _keep(p: Tensor, kept: Tensor) -> Tensor:
    p = p.masked_fill(~kept, 0.0)
    return p / p.sum(1, keepdim=True)


class DistributionSampler:
    """Draws the next input, `(B, *F)`, from the distribution that the outputs parametrize.

    Args:
        make: maps outputs `(B, *O)`, or `(T, B, *O)`, to a `torch.distributions.Distribution` over
            `(B, *F)`, or `(T, B, *F)`: index from the last dimension. Anything else raises
            `TypeError`.

    >>> import torch
    >>> from rnnkit import DistributionSampler
    >>> from torch.distributions import Normal
    >>> sampler = DistributionSampler(lambda y: Normal(y[..., :1], y[..., 1:].exp()))
    >>> sampler(torch.zeros(4, 2)).shape
    torch.Size([4, 1])
    """

    draws: ClassVar[bool] = True

    @asked("DistributionSampler")
    def __init__(self, make: Callable[[Any], Distribution]) -> None:
        check_takes("make", make, "outputs")
        self.make = make

    def _distribution(self, outputs: Any) -> Distribution:
        made = self.make(outputs)
        if not isinstance(made, Distribution):
            fix = "return torch.distributions.Normal(mean, scale), or another distribution."
            raise Refusal(f"{in_words(made)} from make", "a Distribution", fix, TypeError)
        return made

    @asked("DistributionSampler")
    def __call__(self, outputs: Any) -> Tensor:
        return self._distribution(outputs).sample()

    @asked("DistributionSampler")
    def log_prob(self, outputs: Any, drawn: Tensor) -> Tensor:
        """The log-probability (or density) of what was drawn, summed over features: `(T, B)`."""
        return _over_features(self._distribution(outputs).log_prob(drawn))


class WithCovariates:
    """What [with_covariates][rnnkit.with_covariates] makes."""

    def __init__(self, sampler: NextInput, fed: int | str | Sequence[str]) -> None:
        self.sampler = sampler
        self.fed = fed
        self.generator = getattr(sampler, "generator", None)  # a phase keeps its state
        self._declared = DeclaredSampler(sampler)
        self.draws = self._declared.draws
        self.classes = self._declared.classes

    def __repr__(self) -> str:
        return f"with_covariates({self.sampler!r}, {self.fed!r})"

    @asked("with_covariates")
    def __call__(self, outputs: Any, given: Any) -> Any:
        drawn = self._declared(outputs, given)
        if isinstance(self.fed, int):
            return self._first_features(drawn, given, outputs, self.fed)
        names = self.fed
        if isinstance(names, str):
            drawn = {names: drawn}
            names = [names]
        return self._named(drawn, given, outputs, names)

    def _first_features(self, drawn: Any, given: Any, outputs: Any, fed: int) -> Tensor:
        if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[1] < fed:
            came = f"fed = {fed} for inputs {in_words(given)} at a step"
            fix = (
                "dim 1 of a step holds its features; for a dict of inputs fed is a name, or names."
            )
            raise Refusal(came, f"inputs (B, F) with F >= {fed}", fix)
        check_drawn(drawn, given[:, :fed], outputs, f"the next input's first {fed} features")
        return torch.cat([as_like(drawn, given), given[:, fed:]], 1)

    def _named(self, drawn: Any, given: Any, outputs: Any, names: Sequence[str]) -> dict[str, Any]:
        if not isinstance(given, dict) or not set(names) <= set(given):
            fix = "fed names inputs that the sampler makes; for a single tensor it is a number."
            raise Refusal(f"inputs {in_words(given)}", f"a dict with {list(names)}", fix)
        wanted = {name: given[name] for name in names}
        check_drawn(drawn, wanted, outputs, "the next input's fed part")
        return {**given, **drawn}

    def log_prob(self, outputs: Any, drawn: Any) -> Tensor | None:
        """The log-probabilities `(T, B)` of what was fed; `None` where no distribution is known."""
        if isinstance(self.fed, int):
            part = drawn[:, :, : self.fed]
        elif isinstance(self.fed, str):
            part = drawn[self.fed]
        else:
            part = {name: drawn[name] for name in self.fed}
        return self._declared.log_prob(outputs, part)


@asked("with_covariates")
def with_covariates(sampler: NextInput, fed: int | str | Sequence[str]) -> WithCovariates:
    """A sampler that feeds some features and keeps the others, covariates, as the data has them.

    Covariates are a time of day, a price, an action: what is known of the future; in generation it
    comes as `future=`. A step is

        torch.cat([sampler(outputs), given[:, fed:]], 1)

    A model answers row `t` with the value of `t + 1`. So the row has the action that leads there
    and, one row early, the promotion or holiday of `t + 1`, in training and in `future`.

    Args:
        sampler: maps the outputs `(B, *O)` of one step to the fed features `(B, fed, *F)`.
        fed: how many features the model feeds, the first ones; for a dict of inputs the name of the
            fed one, or a list of names, for which the sampler gives a dict.

    Raises:
        ValueError: if `fed` is below 1; by a step, if the sampler gives other features.
        TypeError: if `fed` is no whole number, no name and no list of names.

    >>> import torch
    >>> from rnnkit import identity, with_covariates
    >>> sampler = with_covariates(identity, 1)
    >>> sampler(torch.tensor([[0.5]]), torch.tensor([[9.0, 1.0, 2.0]])).tolist()
    [[0.5, 1.0, 2.0]]
    """
    fix = "how many features the model feeds, the first ones; or their names in a dict of inputs."
    if not isinstance(fed, str | list | tuple):
        at_least("fed", fed, 1, fix)
        return WithCovariates(sampler, int(cast("int", fed)))  # NumPy's whole numbers too
    if not fed or not all(isinstance(name, str) for name in fed):
        raise Refusal(f"fed = {fed!r}", "a name, or a list of names", fix, TypeError)
    return WithCovariates(sampler, fed)


def check_sampler(sampler: object) -> None:
    fix = "identity, sample_best, SoftmaxSampler() or a function of your own."
    if isinstance(sampler, type) or not callable(sampler):
        raise Refusal(f"sampler = {in_words(sampler)}", "a function", fix, TypeError)
    if not any(map(_has_its_name, parameters_of(sampler) or [])):
        check_takes("sampler", sampler, "outputs", "outputs, given")


def check_drawn(drawn: Any, like: Any, outputs: Any, what: str) -> None:
    """Refuse a draw without the form of `like`, the input that it is to be, in all but dtype."""
    if isinstance(like, dict):
        _check_names(drawn, like, what)
        for name, part in like.items():
            check_drawn(drawn[name], part, outputs, f"{what}[{name!r}]")
        return
    kind = TypeError
    fix = "return a tensor: the sampler maps the outputs (B, *O) to the next input (B, *F)."
    if isinstance(drawn, Tensor):
        alike = drawn.is_floating_point() == like.is_floating_point()
        if alike and drawn.shape == like.shape:
            return  # the usual case
        kind = ValueError
        fix = (
            "tokens come from sample_best or SoftmaxSampler, "
            "one-hot rows from SoftmaxSampler(one_hot=True)."
        )
        if alike and drawn.is_floating_point():
            fix = (
                "with_covariates(sampler, n) feeds the first n features and keeps the others; "
                "DistributionSampler draws from what the outputs parametrize."
            )
    came = f"{in_full(drawn)} from the sampler, for outputs {in_words(outputs)}"
    raise Refusal(came, f"{what}, {in_full(like)}", fix, kind)


def as_like(drawn: Tensor, like: Tensor) -> Tensor:
    """A draw in the dtype of the input that it is to be, which must hold a whole number."""
    if drawn.dtype == like.dtype:
        return drawn
    cast = drawn.to(like.dtype)
    if not like.is_floating_point() and not torch.equal(cast.to(drawn.dtype), drawn):
        raise Refusal(
            f"a draw of {int(drawn.max())} for inputs of {like.dtype}",
            "inputs of a dtype that holds every class",
            "pass tokens as int64, with tokens.long().",
        )
    return cast


def _check_names(drawn: Any, like: dict[str, Any], what: str) -> None:
    if not isinstance(drawn, dict) or set(drawn) != set(like):
        fix = (
            "return a dict with these names; with_covariates keeps the others as the data has them."
        )
        kind = ValueError if isinstance(drawn, dict) else TypeError
        raise Refusal(f"{in_words(drawn)} from the sampler", f"{what}, {in_words(like)}", fix, kind)
