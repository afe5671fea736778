"""The one place where a model is stepped: stretches fed by the data as one call, single steps fed by the model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps
from ..core.model import Model, check_call, check_one_way, run_model
from ..core.state import State, where_rows
from ._fast import one_step
from .feedback import Feedback
from .samplers import NextInput, identity


@dataclass
class Roller:
    """A model and a sampler, rolled over sequences that were checked; without `carry` no state is asked for.

    The state may then have run on over padding.
    """

    model: Model
    sampler: NextInput
    carry: bool = True

    def run(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        state: State,
        lengths: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs `(T, B, *O)` and the state after; `mask (T, B)` says where the model is fed its own output.

        `previous (B, *O)` is the output before the first step, where there was one.
        """
        if mask is None or not mask.any():
            return run_model(self.model, inputs, state, lengths, carry=self.carry)
        parts = list(self.walk(inputs, mask, state, lengths, previous))
        return torch.cat([outputs for _, outputs, _ in parts]), parts[-1][2]

    def walk(
        self,
        inputs: Tensor,
        mask: Tensor,
        state: State,
        lengths: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, State]]:
        """Stretch by stretch: the inputs consumed `(n, B, *F)`, the outputs `(n, B, *O)` and the state after them."""
        fix = "train it with Feedback.never(), or make it one-directional."
        check_one_way(self.model, "", "one that can be stepped: it reads the future", fix)
        some, every = mask.any(1).tolist(), mask.all(1).tolist()
        starts = [t for t, fed in enumerate(some) if fed or t == 0]
        single = one_step(self.model, inputs.shape[1])
        mask = mask.to(inputs.device)
        for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
            stretch = inputs[start:stop]
            if some[start] and previous is not None:
                first = self.draw(previous, stretch[0]).unsqueeze(0)
                if not every[start]:
                    first = where_rows(mask[start], first, stretch[:1])
                stretch = torch.cat([first, stretch[1:]])  # a copy: a model may write to its input
            here = None if lengths is None else (lengths - start).clamp(0, stop - start)
            model = single if some[start] and len(stretch) == 1 else self.model
            outputs, state = run_model(model, stretch, state, here, carry=self.carry)
            yield stretch, outputs, state
            previous = outputs[-1]

    def draw(self, outputs: Tensor, like: Tensor) -> Tensor:
        """The next input, checked against the form that the model takes."""
        drawn = self.sampler(outputs)
        if drawn.shape != like.shape or drawn.is_floating_point() != like.is_floating_point():
            came = f"{in_words(drawn)} of {drawn.dtype} from the sampler, for outputs {in_words(outputs)}"
            fix = "tokens come from sample_best or SoftmaxSampler, one-hot rows from SoftmaxSampler(one_hot=True)."
            raise Refusal(came, f"the model's next input, {in_words(like)} of {like.dtype}", fix)
        return drawn.to(like.dtype)


@asked("rollout")
def rollout(
    model: Model,
    inputs: Steps,
    feedback: Feedback | None = None,
    sampler: NextInput = identity,
    state: State = None,
    lengths: Tensor | None = None,
    step: int = 0,
) -> tuple[Tensor, State]:
    """The outputs `(T, B, *O)` of a model over a sequence in which some steps are fed by itself, and its last state.

    Every stretch of steps fed by the data is one call of the model, so the call count is one more than the number
    of steps at which some row is fed back. Gradients flow through a differentiable sampler.

    Args:
        model: `outputs, state = model(inputs, state)`.
        inputs: `(T, B, *F)`; what stands at a step that is fed back is not read.
        feedback: which steps are fed back; none where it is `None`.
        sampler: maps the outputs `(B, *O)` of one step to the next input `(B, *F)`.
        state: the state before the first step.
        lengths: int64 CPU `(B,)`; the state returned is then each row's at its own last step.
        step: training steps made so far, for a feedback with a schedule.

    Raises:
        ValueError: if shapes, lengths or state do not fit, or the sampler's output is not an input.
        TypeError: if the model gives no state.

    >>> import torch
    >>> outputs, state = rollout(torch.nn.GRU(2, 2), torch.zeros(10, 4, 2), Feedback.last(3))
    >>> outputs.shape
    torch.Size([10, 4, 2])
    """
    inputs = check_call(model, inputs, state, lengths)
    mask = None if feedback is None else feedback.mask(len(inputs), inputs.shape[1], lengths, step)
    return Roller(model, sampler).run(inputs, mask, state, lengths)


class Rollout(Roller):
    over = Roller.run
