"""Samplers: callables that map the outputs `(B, *O)` of one step to the input `(B, *F)` of the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..core.errors import Refusal, asked, in_words

NextInput = Callable[..., Tensor]


def identity(outputs: Tensor) -> Tensor:
    """The outputs themselves, `(B, *F)`, for a model that predicts the next input.

    >>> identity(torch.tensor([[0.5]])).item()
    0.5
    """
    return outputs


@asked("sample_best")
def sample_best(outputs: Tensor) -> Tensor:
    """Greedy decoding: the class with the highest score in each row, `(B, V, *O)` to int64 `(B, *O)`.

    Classes are dim 1, as in `torch.nn.functional.cross_entropy`. Raises `ValueError` if there is none.

    >>> sample_best(torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])).tolist()
    [1, 0]
    """
    if outputs.ndim < 2:
        raise Refusal(f"outputs {in_words(outputs)}", "(B, V)", "keep the batch dimension.")
    return outputs.argmax(1)


def sample_softmax(outputs: Tensor) -> Tensor:
    """A class of each row, int64 `(B,)`, drawn with the probabilities `softmax(outputs)`.

    Raises `ValueError` if the outputs are not logits `(B, V)`.

    >>> sample_softmax(torch.tensor([[0.0, 100.0]])).tolist()
    [1]
    """
    return SoftmaxSampler()(outputs)


@dataclass(eq=False)
class SoftmaxSampler:
    """Draws a class from `softmax(outputs / temperature)`, cut down to the likelier classes.

    A call maps logits `(B, V)` to int64 `(B,)`, or to `(B, V)` with `one_hot`. The cuts are made in the order of the
    arguments, each on what the one before left, renormalized. Raises `ValueError` for other shapes, and for an
    argument out of its range.

    Args:
        temperature: above 0; below 1 sharpens, above 1 flattens.
        top_k: keep the `k` likeliest classes.
        top_p: keep the likeliest classes until their sum reaches `p`; the one that reaches it stays, so the first
            always does (Holtzman et al. 2020, <https://arxiv.org/abs/1904.09751>).
        min_p: keep the classes with at least `min_p` times the highest probability
            (Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>).
        one_hot: return the draw as a one-hot row in the dtype of the outputs, for a model without an embedding.
        generator: the source of randomness; PyTorch's global one where it is `None`.

    >>> sampler = SoftmaxSampler(temperature=0.5, top_k=2)
    >>> sampler.probabilities(torch.tensor([[0.0, 1.0, 2.0]])).round(decimals=2).tolist()
    [[0.0, 0.11999999731779099, 0.8799999952316284]]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    one_hot: bool = False
    generator: torch.Generator | None = None

    @asked("SoftmaxSampler")
    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", self.temperature > 0, "above 0; the limit at 0 is sample_best"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1]"),
        ):
            if not good:
                fix = (
                    "None leaves the cut out."
                    if name != "temperature"
                    else "1.0 leaves the logits as they are."
                )
                raise Refusal(f"{name} = {getattr(self, name)}", f"{name} {wanted}", fix)

    @asked("SoftmaxSampler")
    def probabilities(self, outputs: Tensor) -> Tensor:
        """What a draw is made from: `(B, V)`, each row summing to 1, zero where a class was cut."""
        if outputs.ndim != 2 or not outputs.is_floating_point():
            fix = "end the model with nn.Linear(H, V); identity is for outputs that are inputs."
            raise Refusal(f"outputs {in_words(outputs)}", "float logits (B, V)", fix)
        p = (outputs if self.temperature == 1 else outputs / self.temperature).softmax(1)
        if self.top_k is not None and self.top_k < p.shape[1]:
            p = _keep(
                p,
                torch.zeros_like(p, dtype=torch.bool).scatter_(
                    1, p.topk(self.top_k, 1).indices, True
                ),
            )
        if self.top_p is not None and self.top_p < 1:
            ranked, order = p.sort(dim=1, descending=True, stable=True)
            p = _keep(
                p, torch.zeros_like(p).scatter(1, order, ranked.cumsum(1) - ranked) < self.top_p
            )
        if self.min_p is not None:
            p = _keep(p, p >= self.min_p * p.amax(1, keepdim=True))
        return p

    def __call__(self, outputs: Tensor) -> Tensor:
        drawn = torch.multinomial(self.probabilities(outputs), 1, generator=self.generator)
        return (
            torch.zeros_like(outputs).scatter_(1, drawn, 1.0) if self.one_hot else drawn.squeeze(1)
        )


def _keep(p: Tensor, kept: Tensor) -> Tensor:
    p = p.masked_fill(~kept, 0.0)
    return p / p.sum(1, keepdim=True)


class DistributionSampler:
    """Draws the next input, `(B, *F)`, from the distribution that the outputs parametrize.

    Args:
        make: maps outputs `(B, *O)`, or `(T, B, *O)`, to a `torch.distributions.Distribution` over `(B, *F)`, or
            `(T, B, *F)`: index its parameters from the last dimension. Anything else raises `TypeError`.

    >>> sampler = DistributionSampler(lambda y: torch.distributions.Normal(y[..., :1], y[..., 1:].exp()))
    >>> sampler(torch.zeros(4, 2)).shape
    torch.Size([4, 1])
    """

    def __init__(self, make: Callable[[Tensor], Distribution]) -> None:
        self.make = make

    def _distribution(self, outputs: Tensor) -> Distribution:
        made = self.make(outputs)
        if not isinstance(made, Distribution):
            fix = "return torch.distributions.Normal(mean, scale), or another distribution."
            raise Refusal(f"{in_words(made)} from make", "a Distribution", fix, TypeError)
        return made

    @asked("DistributionSampler")
    def __call__(self, outputs: Tensor) -> Tensor:
        return self._distribution(outputs).sample()

    @asked("DistributionSampler")
    def log_prob(self, outputs: Tensor, drawn: Tensor) -> Tensor:
        """The log-probability (or density) of what was drawn, summed over features: `(T, B)`."""
        log_prob = self._distribution(outputs).log_prob(drawn)
        return log_prob.flatten(2).sum(2) if log_prob.ndim > 2 else log_prob
