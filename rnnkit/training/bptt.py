"""What one training step is: backpropagation through time, full or truncated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import Refusal, asked, at_least
from ..core.layout import (
    all_lengths,
    at_own_step,
    between,
    extent,
    gathered,
    join,
    lengthened,
    lengths_between,
    parts_of,
)
from ..core.model import Declared, check_one_way
from ..core.state import State, detach, map_leaves, onto, where_rows
from ..generation.feedback import Feedback
from ..generation.rollouts import last_step
from ..generation.samplers import NextInput, identity
from ..losses.base import Scored
from ..losses.total import Total, as_weight, check_adds_up, weight_like
from .forms import updated_by
from .phase import Loop, Phase, StepState, Work
from .ranks import Ranks


class Window(NamedTuple):
    """A window of truncated BPTT, `start <= new < end` and `following <= end`.

    Its gradient begins at `start`, its loss is that of the steps from `new` to before `end`, and
    the next window's gradient begins at `following`."""

    start: int
    new: int
    end: int
    following: int


def windows(time: int, stride: int, window: int) -> Iterator[Window]:
    """The windows over `time` steps: every `stride` steps a loss, its gradient through `window`.

    >>> [tuple(w) for w in windows(7, stride=2, window=5)]
    [(0, 0, 2, 0), (0, 2, 4, 1), (1, 4, 6, 3), (3, 6, 7, 7)]
    """
    start = 0
    for new in range(0, time, stride):
        end = min(new + stride, time)
        following = max(start, end + stride - window)
        if end == time:  # the last window has none after it
            following = end
        yield Window(start, new, end, following)
        start = following


class Carried(NamedTuple):
    """What goes from one stretch to the next."""

    state: State
    previous: Any  # the output before, where the model may be fed it


def _run_stretch(work: Work, start: int, stop: int, carried: Carried) -> tuple[list[Any], Carried]:
    """The outputs of a stretch, a list of one or none, and what goes on from it."""
    if start == stop:
        return [], carried
    here = lengths_between(work.step.lengths, start, stop)
    fed = between(work.mask, start, stop)
    inputs = between(work.step.inputs, start, stop)
    outputs, state = work.rollout.over(inputs, fed, carried.state, here, carried.previous)
    previous: Any = None
    if fed is not None:
        previous = last_step(outputs)
    return [outputs], Carried(state, previous)


class _Ends:
    """Each row's own last `window` steps, side by side: `(W, B)` places in `(T, B)`."""

    def __init__(self, lengths: Tensor, time: int, window: int) -> None:
        self.time = time
        self.skipped = (lengths - window).clamp(min=0)  # (B,): steps before the window
        self.within = lengths - self.skipped  # (B,): steps of the window
        self.longest = int(self.skipped.max())
        offsets = torch.arange(int(self.within.max()), device="cpu").unsqueeze(1)
        self.index = self.skipped + offsets  # (W, B)
        self.rows = torch.arange(len(lengths), device="cpu")

    def gather(self, sequence: Any) -> Any:
        """`(W, B, *F)` of `(T, B, *F)`."""
        return gathered(sequence, self.index, self.rows)

    def last_before(self, sequence: Any) -> Any:
        """The step before each row's window, `(B, *F)`, of the steps before it."""
        return at_own_step(sequence, (self.skipped - 1).clamp(min=0))

    def put(self, early: Tensor, late: Tensor) -> Tensor:
        """The steps before the windows and the windows as one sequence, `(T, B, *F)`."""
        places = onto(self.index, early.device), onto(self.rows, early.device)
        return lengthened(early, self.time).index_put(places, late)


class BPTTTrainingPhase(Phase):
    """One training step by backpropagation through time, full or truncated.

    With `window = k2` and `stride = k1` it is truncated BPTT: every `k1` steps, the loss of these
    new steps is backpropagated through the last `k2` steps and the optimizer makes a step. With
    [seq2one_loss][rnnkit.seq2one_loss] there is one loss, at the end, and it is backpropagated
    through the last `window` steps of each sequence.

    Events: `StepBegin`, then for each window `WindowBegin`, `LossBegin`, `BackwardBegin`,
    `BackwardEnd`, (the optimizer's step,) `WindowEnd`, then `StepEnd`.

    A window in which nothing is scored has no backward pass and no update. With `accumulate`,
    `BackwardEnd` comes when the gradient is whole, before the update.

    `phase(model, loss, batch, optimizer)`, or `learner.step(phase, batch)`, gives a
    [StepState][rnnkit.StepState], whose loss is that of all windows put together.

    Args:
        window: `k2`, steps that a gradient goes back; all of them where it is `None`.
        stride: `k1`, steps between two updates, at most `window`, which it is where it is `None`.
        stateful: carry the state, detached, from batch to batch: row `i` goes on where row `i`
            ended. Rows that `SequenceBatch.restart` marks start from the model's first state.
        feedback: which steps are fed by the model itself: scheduled sampling. A schedule begins
            anew with another learner.
        sampler: maps the outputs of one step to the next input.
        accumulate: batches to one update, whose gradient is that of the batches joined. In a loop
            of your own, `phase.flush(optimizer)` makes the last update, which may have fewer.

    Raises:
        ValueError: if `window`, `stride` or `accumulate` is below 1 or `stride > window`; by the
            step, if shapes do not fit, a carried state has another batch size, or the loss does not
            depend on the parameters, or on none that the optimizer updates.
        TypeError: by the step, if the optimizer needs a closure.

    Source: Williams and Peng 1990, BPTT(h; h'); Sutskever 2013, section 2.8.6 (k1 and k2).

    >>> import torch
    >>> import rnnkit
    >>> model = rnnkit.RecurrentSequential(torch.nn.GRU(1, 8), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> phase = rnnkit.BPTTTrainingPhase(window=5)
    >>> loss = rnnkit.seq2seq_loss(torch.nn.MSELoss())
    >>> step = phase(model, loss, torch.ones(21, 4, 1), optimizer)
    >>> step.outputs.shape, step.weight
    (torch.Size([20, 4, 1]), 80)
    """

    name = "training"
    trains = True

    @asked("BPTTTrainingPhase")
    def __init__(
        self,
        window: int | None = None,
        stride: int | None = None,
        *,
        stateful: bool = False,
        feedback: Feedback | None = None,
        sampler: NextInput = identity,
        accumulate: int = 1,
    ) -> None:
        super().__init__(sampler, stateful, feedback)
        if window is not None:
            at_least("window", window, 1, "window=None is full BPTT.")
        if stride is not None:
            at_least("stride", stride, 1, "None makes it equal to window.")
        at_least("accumulate", accumulate, 1, "1 makes an update for each batch.")
        self.window = window
        self.stride = stride
        self._window_and_stride()
        self.accumulate = accumulate
        self._held = _Held()
        self._ranks: Ranks | None = None  # of the last step, for `flush`

    @asked("BPTTTrainingPhase")
    def run(self, loop: Loop, batch: Any) -> StepState:
        """One step for a loop."""
        self._ranks = loop.ranks
        if getattr(loop.model, "training", True) is False:
            loop.model.train()
        work = self.begin(loop, batch)
        if self.accumulate > 1:
            self._held.batches += 1  # from its begin: a step that is cut short has its place too
        step = work.step
        time, rows = extent(step.inputs)
        in_windows = self._is_cut(loop, time)
        if self.feedback is not None:
            work.mask = self.feedback.mask(time, rows, step.lengths, self.updates)
        if not in_windows:
            outputs, total = self._whole(work)
        elif loop.loss.per_sequence:
            outputs, total = self._last_window(work)
        else:
            outputs, total = self._windows(work)

        self.updates += 1
        if self._held.batches >= self.accumulate:
            self.finish(loop)
        step.outputs = outputs
        step.keep("loss", total)
        if loop.ranks is not None:
            step.loss = loop.ranks.joint(total).mean().to(total.sum.dtype)
        step.weight = work.scored.count
        return step

    def _window_and_stride(self) -> tuple[int | None, int | None]:
        """Window and stride as they are now: a callback may have changed them."""
        window = self.window
        stride = window if self.stride is None else self.stride
        if stride is not None and (window is None or stride > window):
            fix = "window = k2 is how far a gradient goes back, stride = k1 how often; k1 <= k2."
            raise Refusal(f"stride = {stride} and window = {window}", "stride <= window", fix)
        return window, stride

    def _align(self, loop: Loop, step: StepState) -> None:
        if loop.ranks is None or self.window is None or loop.loss.per_sequence:
            return
        time, rows = extent(step.inputs)
        longest = loop.ranks.most(time)
        if longest > time:
            step.lengths = all_lengths(step.lengths, time, rows)
            step.inputs = lengthened(step.inputs, longest)
            step.targets = lengthened(step.targets, longest)
            step.weights = lengthened(step.weights, longest)

    def _is_cut(self, loop: Loop, time: int) -> bool:
        """Whether so many steps are more than one window: then the model must read forward."""
        window, stride = self._window_and_stride()
        longest = stride
        if loop.loss.per_sequence:
            longest = window
        if longest is None or longest >= time:
            return False
        came = f" and stride = {stride} for {time} steps"
        wanted = "a model whose state goes on forward only"
        check_one_way(loop.model, came, wanted, "window=None, or a one-directional model.")
        return True

    def _whole(self, work: Work) -> tuple[Any, Total]:
        """Full BPTT: one window."""
        step = work.step
        work.loop.emit("WindowBegin")
        with work.loop.context():
            outputs, state = work.rollout.over(step.inputs, work.mask, work.start(), step.lengths)
        total = self._update(work, work.scored, outputs)
        self._carry(state, step)
        return step.outputs, total

    def _windows(self, work: Work) -> tuple[Any, Total]:
        """A loss for the new steps of every window, its gradient through the window's steps."""
        window, stride = self._window_and_stride()
        all_outputs: list[Any] = []
        totals: list[Total] = []
        places = list(windows(extent(work.step.inputs)[0], stride or 1, window or 1))
        carried = Carried(work.start(), None)
        for place in places:
            work.loop.emit("WindowBegin")
            with work.loop.context():
                # First up to where the next window begins, for its state is wanted there.
                old, following = _run_stretch(work, place.start, place.following, carried)
                rest, _ = _run_stretch(work, place.following, place.end, following)
            outputs = between(join(old + rest), place.new - place.start, place.end - place.start)
            totals.append(self._update(work, work.scored.between(place.new, place.end), outputs))
            all_outputs.append(work.step.outputs)
            carried = detach(following)  # the next window starts without a history
            if place.following == 0 and work.restart is not None:
                carried = Carried(work.start(), None)  # a learned first state is asked once more
        self._carry(carried.state, work.step)
        together = join(all_outputs)
        self._check_sum(work, together, places)
        first, *others = totals
        return together, sum(others, first)

    def _check_sum(self, work: Work, outputs: Any, places: Sequence[Window]) -> None:
        """A loss that is one number tells of no step: see that its windows add up to the batch."""
        if not work.loop.loss.opaque:
            return
        with torch.no_grad(), work.loop.context():
            parts: list[Total] = []
            for _, new, end, _ in places:
                scored = work.scored.between(new, end)
                parts.append(scored.total(between(outputs, new, end)))
            check_adds_up(work.scored.total(outputs), parts, parts_of(outputs)[0].dtype)

    def _last_window(self, work: Work) -> tuple[Any, Total]:
        """One loss at the end, its gradient through each row's own last `window` steps."""
        step = work.step
        loop = work.loop
        state = work.start()
        time, batch = extent(step.inputs)
        ends = _Ends(all_lengths(step.lengths, time, batch), time, self.window or 1)

        loop.emit("WindowBegin")
        # What lies before the window is read without gradient, and in a context of its own:
        # autocast would keep the casts that it made here.
        with torch.no_grad(), loop.context():
            fed = between(work.mask, 0, ends.longest)
            driven = replace(work.rollout, carry=True)
            early = between(step.inputs, 0, ends.longest)
            before, after = driven.over(early, fed, state, ends.skipped)

        with loop.context():
            # A row that fits into the window starts where the model does, with a gradient there.
            first = Declared(loop.model).initial_state(batch) if state is None else state
            start = where_rows(ends.skipped > 0, detach(after), first)
            fed = work.mask
            if fed is not None:
                fed = ends.gather(fed)
            inputs = ends.gather(step.inputs)  # (W, B, *F)
            previous = ends.last_before(before)
            outputs, state = work.rollout.over(inputs, fed, start, ends.within, previous)

        # A loss that reads the last step needs the window alone; another one reads all steps.
        of_window = work.scored.of_window(ends.within)
        if of_window is None:
            everything = map_leaves(ends.put, before, outputs)  # (T, B, *O)
            total = self._update(work, work.scored, everything)
        else:
            total = self._update(work, of_window, outputs)
            step.outputs = map_leaves(ends.put, before, step.outputs)
        self._carry(state, step)
        return step.outputs, total

    def _update(self, work: Work, scored: Scored, outputs: Any) -> Total:
        """The loss of a window, its gradient, and the optimizer's step."""
        loop = work.loop
        step = work.step
        step.outputs = map_leaves(Tensor.detach, outputs)
        with loop.context():
            loop.emit("LossBegin")
            total = scored.total(outputs)
        loss = total.mean()
        joint = total
        if loop.ranks is None:
            step.loss = loss.detach()
        else:
            # This rank's share of the loss of all: the shares' gradients add up to its gradient.
            joint = loop.ranks.joint(total)
            loss = Total(total.sum, joint.weight, total.scales).mean()
            step.loss = joint.mean().to(loss.dtype)
        if not joint.empty:
            if not (loss.requires_grad or total.empty):
                fix = "compute it from the outputs, without .detach(), .item() or torch.no_grad()."
                raise Refusal("a loss without gradient", "one that depends on the parameters", fix)
            loop.emit("BackwardBegin")
            if self.accumulate > 1:
                self._held.add(loop, total)
            else:
                _empty_gradients(loop.optimizer)
                if not total.empty:
                    _backpropagate(loop, loss)
                _make_update(loop)
        loop.emit("WindowEnd")
        return total.detach()

    @asked("BPTTTrainingPhase")
    def finish(self, loop: Loop) -> None:
        """Make the update of the batches held back, if there are any."""
        held = self._held
        self._held = _Held()  # first: a callback may cancel the step at BackwardEnd
        if held.sums:
            held.give(loop)
            _make_update(loop)

    def flush(self, optimizer: torch.optim.Optimizer) -> None:
        """The update of the batches held back by `accumulate`, in a loop of your own."""
        loop = Loop(None, torch.nn.MSELoss(), optimizer)  # no loss is asked for any more
        loop.ranks = self._ranks
        self.finish(loop)

    def reset(self) -> None:
        super().reset()
        self._held = _Held()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "held": vars(self._held)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self._held = _Held(**saved["held"])


def _empty_gradients(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.zero_grad()`, without the record for a profiler that PyTorch's own opens."""
    own = getattr(optimizer.zero_grad, "__func__", None)
    if own is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()  # another one may do more, and keep zeros
        return
    for parameter in updated_by(optimizer):
        parameter.grad = None


def _backpropagate(loop: Loop, loss: Tensor, retain_graph: bool = False) -> None:
    """The gradient of a loss, scaled where it is computed in float16."""
    if loop.scaler is not None:
        loss = loop.scaler.scale(loss)
    loss.backward(retain_graph=retain_graph)


def _make_update(loop: Loop) -> None:
    """The optimizer's step on a gradient that is whole."""
    parameters = updated_by(loop.optimizer)
    if loop.ranks is not None:
        loop.ranks.add_gradients(parameters)
    if all(parameter.grad is None for parameter in parameters):
        fix = "make it after the model, of model.parameters()."
        raise Refusal("an optimizer that no gradient reaches", "one of what the loss needs", fix)
    scaler = loop.scaler
    if scaler is None:
        loop.emit("BackwardEnd")
        loop.optimizer.step()
    else:
        # A gradient that a file or a rank brought may be before the first loss.
        scaler.scale(torch.zeros((), device=parameters[0].device))
        scaler.unscale_(loop.optimizer)  # first: what is clipped is the gradient itself
        try:
            loop.emit("BackwardEnd")
            scaler.step(loop.optimizer)
        finally:
            scaler.update()  # or it would unscale no other gradient
    torch.clear_autocast_cache()  # the caller's own would go on with the weights of before


@dataclass
class _Held:
    """Gradients of several batches, to be divided when the weights of all are known."""

    batches: int = 0
    sums: list[list[Tensor | None]] = field(default_factory=list)  # by head, by parameter
    weights: list[Tensor] = field(default_factory=list)  # by head
    scales: list[float] = field(default_factory=list)

    def add(self, loop: Loop, total: Total) -> None:
        """Backpropagate a sum, head by head, and put its gradient aside."""
        parameters = updated_by(loop.optimizer)
        heads = [total.sum] if total.scales is None else list(total.sum.unbind(-1))
        weights = as_weight(total.weight).reshape(-1)
        if not self.sums:
            self.sums = [[] for _ in heads]
            self.weights = [torch.zeros_like(weight) for weight in weights]
            self.scales = [1.0] if total.scales is None else total.scales.tolist()
        if total.empty:  # another rank has some
            return
        for h, head in enumerate(heads):
            _empty_gradients(loop.optimizer)
            _backpropagate(loop, head, retain_graph=h + 1 < len(heads))
            self.weights[h] = self.weights[h] + weights[h]
            sums = self.sums[h]
            sums += [None] * (len(parameters) - len(sums))  # at first, or for a group added since
            for i, parameter in enumerate(parameters):
                sums[i] = _plus(sums[i], parameter.grad)
                parameter.grad = None  # an optimizer's own zero_grad may write over it

    def give(self, loop: Loop) -> None:
        """Make `.grad` the gradient of all batches joined, of several ranks this one's share."""
        _empty_gradients(loop.optimizer)
        weights = self.weights
        if loop.ranks is not None:
            weights = loop.ranks.sum_of(weights)
        for sums, weight, scale in zip(self.sums, weights, self.scales, strict=True):
            if not bool(weight):
                continue
            for parameter, held in zip(updated_by(loop.optimizer), sums, strict=False):
                if held is not None:
                    share = held * weight_like(scale / weight, held)
                    parameter.grad = _plus(parameter.grad, share)


def _plus(held: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of two gradients, each perhaps none; a file brings them back on the CPU."""
    if held is None or more is None:
        return held if more is None else more
    return held.to(more.device) + more
