"""The one place where a model is stepped."""

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import asked
from ..core.layout import Sequences, between, device_of, extent, join, lengths_between
from ..core.model import Model, check_call, check_one_way, run_model
from ..core.state import State, map_leaves, onto, where_rows
from ._fast import quicker_draws, quicker_step
from .feedback import Feedback, check_feedback
from .samplers import DeclaredSampler, NextInput, as_like, check_drawn, identity


class Stretch(NamedTuple):
    """Some steps that a model took in one call."""

    inputs: Any  # (n, B, *F), what was consumed
    outputs: Any  # (n, B, *O)
    state: State  # after them


@dataclass
class Rollout:
    """A model and a sampler, in this loop, in which a stretch between two fed steps is one call:

        for t in range(T):
            x = torch.where(mask[t], sampler(outputs), inputs[t]) if t else inputs[t]
            outputs, state = model(x, state)

    Without `carry` no state is asked for: it may have run on over padding.
    """

    model: Model
    sampler: NextInput
    _: KW_ONLY
    carry: bool = True

    @cached_property
    def _declared(self) -> DeclaredSampler:
        return DeclaredSampler(self.sampler)  # most rollouts in training feed nothing

    def over(
        self,
        inputs: Any,
        mask: Tensor | None,
        state: State,
        lengths: Tensor | None = None,
        previous: Any = None,
    ) -> tuple[Any, State]:
        """Outputs `(T, B, *O)` and the state after them.

        `mask (T, B)` says where the model is fed its own output; `previous (B, *O)` is the output
        before the first step, where there was one.
        """
        if mask is None or not bool(mask.any()):
            return run_model(self.model, inputs, state, lengths, carry=self.carry)
        answers: list[Any] = []
        for stretch in self.stretches(inputs, mask, state, lengths, previous):
            answers.append(stretch.outputs)
            state = stretch.state
        return join(answers), state

    def stretches(
        self,
        inputs: Any,
        mask: Tensor,
        state: State,
        lengths: Tensor | None = None,
        previous: Any = None,
    ) -> Iterator[Stretch]:
        """The same, stretch by stretch."""
        self._check_can_be_stepped()
        time, batch = extent(inputs)
        some = mask.any(1).tolist()
        every = mask.all(1).tolist()
        mask = onto(mask, device_of(inputs))
        single = self.model
        if any(some):
            single = quicker_step(self.model, batch)

        # A stretch begins where some row is fed by the model, and goes on to the next such step.
        starts = [t for t in range(time) if some[t] or t == 0]
        for start, stop in zip(starts, [*starts[1:], time], strict=True):
            stretch = between(inputs, start, stop)
            fed = some[start] and previous is not None
            if fed:
                given = first_step(stretch)
                first = one_step_of(self.next_input(previous, given))  # (1, B, *F)
                if not every[start]:
                    first = where_rows(mask[start], first, between(stretch, 0, 1))
                stretch = join([first, between(stretch, 1, stop - start)])  # a copy, see `onward`

            here = lengths_between(lengths, start, stop)
            alone = fed and stop - start == 1
            model = single if alone else self.model
            outputs, state = run_model(model, stretch, state, here, carry=self.carry)
            yield Stretch(stretch, outputs, state)
            previous = last_step(outputs)

    def onward(self, previous: Any, state: State, given: Iterable[Any]) -> Iterator[Stretch]:
        """Single steps that the model feeds, after the outputs `previous (B, *O)`: one for each of
        `given (B, *F)`, what the data has there."""
        self._check_can_be_stepped()
        batch = extent(one_step_of(previous))[1]
        single = quicker_step(self.model, batch)
        for at_step in given:
            drawn = one_step_of(self.next_input(previous, at_step))  # (1, B, *F)
            drawn = map_leaves(torch.clone, drawn)  # a sampler may give the same tensor each time
            outputs, state = run_model(single, drawn, state, carry=self.carry)
            yield Stretch(drawn, outputs, state)
            previous = last_step(outputs)

    def at_once(self, steps: int, previous: Any, state: State) -> Stretch | None:
        """The next `steps` that the model feeds; `None` where that is not quicker than `onward`."""
        drawn = quicker_draws(self.model, self.sampler, steps, previous, state)
        if drawn is None:
            return None
        return Stretch(*drawn)

    def next_input(self, outputs: Any, given: Any) -> Any:
        """What the sampler makes of `outputs (B, *O)`, in the form of `given (B, *F)`."""
        drawn = self._declared(outputs, given)
        check_drawn(drawn, given, outputs, "the model's next input")
        return map_leaves(as_like, drawn, given)

    def _check_can_be_stepped(self) -> None:
        check_one_way(
            self.model,
            "",
            "one that can be stepped: it reads the future",
            "make it one-directional; where nothing is generated, Feedback.never(); declare "
            "bidirectional = False where only its encode reads both ways.",
        )


def first_step(sequence: Any) -> Any:
    return map_leaves(lambda part: part[0], sequence)


def last_step(sequence: Any) -> Any:
    return map_leaves(lambda part: part[-1], sequence)


def one_step_of(step: Any) -> Any:
    """A step `(B, *F)` as a sequence of one, `(1, B, *F)`."""
    return map_leaves(lambda part: part.unsqueeze(0), step)


@asked("rollout")
def rollout(
    model: Model,
    inputs: Sequences,
    feedback: Feedback | None = None,
    sampler: NextInput = identity,
    *,
    state: State = None,
    lengths: Tensor | None = None,
    step: int = 0,
) -> tuple[Any, State]:
    """The outputs of a model over a sequence in which some steps are fed by itself, and its state.

    Every stretch of steps fed by the data is one call of the model. Gradients flow through a
    differentiable sampler.

    Args:
        model: `outputs, state = model(inputs, state)`.
        inputs: `(T, B, *F)`, or a dict of such; at a step that is fed back only a sampler that asks
            for it reads it.
        feedback: which steps are fed back; none where it is `None`.
        sampler: maps the outputs `(B, *O)` of one step to the next input `(B, *F)`; with a second
            parameter, called `given` or required, it also gets what `inputs` has there.
        state: the state before the first step.
        lengths: int64 CPU `(B,)`; the state returned is then each row's at its own last step.
        step: training steps made so far, for a feedback with a schedule.

    Returns:
        The outputs, `(T, B, *O)` or a dict of such, and the state.

    Raises:
        ValueError: if shapes, lengths or state do not fit, or the sampler's output is not an input.
        TypeError: if the model gives no state, or the sampler no tensor.

    >>> import torch
    >>> from rnnkit import Feedback, rollout
    >>> outputs, state = rollout(torch.nn.GRU(2, 2), torch.zeros(10, 4, 2), Feedback.last(3))
    >>> outputs.shape
    torch.Size([10, 4, 2])
    """
    inputs = check_call(model, inputs, state, lengths)
    mask: Tensor | None = None
    if feedback is not None:
        check_feedback(feedback)
        time, batch = extent(inputs)
        mask = feedback.mask(time, batch, lengths, step)
    return Rollout(model, sampler).over(inputs, mask, state, lengths)
