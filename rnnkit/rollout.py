"""Running a model over a sequence, driven by the data or fed by itself; what else steps a model is at hand here."""

from torch import Tensor

from ._contract import Model, Sampler, State, Steps, check_call
from .feedback import Feedback as Feedback
from .generation import Sample as Sample
from .generation import beam_search as beam_search
from .generation import sample_model as sample_model
from .samplers import identity
from .stepping import Roller


def rollout(
    model: Model,
    inputs: Steps,
    feedback: Feedback | None = None,
    sampler: Sampler = identity,
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
    inputs = check_call("rollout", model, inputs, state, lengths)
    mask = None if feedback is None else feedback.mask(len(inputs), inputs.shape[1], lengths, step)
    return Roller(model, sampler, "rollout").run(inputs, mask, state, lengths)
