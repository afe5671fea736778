"""Events: each phase is held to the list in its own docstring, and cancelling leaves out what it says."""

import re

import pytest
import torch
from helpers import refused
from torch import nn

import rnnkit as rk
from rnnkit.training import events
from rnnkit.training.events import EVENTS, method_of

SEQ = rk.seq2seq_loss(nn.MSELoss())


def net() -> rk.RecurrentSequential:
    torch.manual_seed(1)
    return rk.RecurrentSequential(nn.GRU(2, 3), nn.Linear(3, 2))


class Log:
    """Writes every event down, and raises at the one it is told to, each time or the first time only."""

    def __init__(
        self, at: str = "", error: type[Exception] | None = None, once: bool = False
    ) -> None:
        self.events: list[str] = []
        self.phases: list[str] = []
        self.at, self.error, self.once = at, error, once

    def put(self, event: str, learner: rk.Learner) -> None:
        self.events.append(event)
        self.phases.append(learner.phase_name)
        if (
            self.error is not None
            and event == self.at
            and (not self.once or self.events.count(event) == 1)
        ):
            raise self.error


def _method(event: str):
    return lambda self, learner: self.put(event, learner)


for _event in EVENTS:
    setattr(Log, method_of(_event), _method(_event))


def learner_with(*callbacks) -> rk.Learner:
    model = net()
    return rk.Learner(model, SEQ, torch.optim.SGD(model.parameters(), 0.1), callbacks)


X = torch.arange(14.0).view(7, 1, 2) / 14  # six steps to predict: three windows of two
STEP = [
    "StepBegin",
    "WindowBegin",
    "LossBegin",
    "BackwardBegin",
    "BackwardEnd",
    "WindowEnd",
    "StepEnd",
]


def documented(phase: type, windows: int) -> list[str]:
    """The events of a step, read from the paragraph `Events:` of the docstring."""
    paragraph = re.search(r"Events:(.*?)\n\s*\n", phase.__doc__ or "", re.DOTALL)
    assert paragraph, f"{phase.__name__} says no events"
    before, middle, after = re.fullmatch(
        r"(.*?)(?:then for each window (.*), then (.*))?", " ".join(paragraph[1].split()), re.DOTALL
    ).groups(default="")
    first, inner, last = (re.findall(r"`(\w+)`", part) for part in (before, middle, after))
    assert set(first + inner + last) <= set(EVENTS)
    return first + inner * windows + last


@pytest.mark.parametrize("phase", [rk.BPTTTrainingPhase, rk.BPTTValidationPhase])
@pytest.mark.parametrize("loss", ["seq2seq", "seq2one", "plain"])
def test_a_phase_fires_the_events_of_its_docstring(phase, loss):
    log, model = Log(), net()
    fn = {"seq2seq": SEQ, "seq2one": rk.seq2one_loss(nn.MSELoss()), "plain": nn.MSELoss()}[loss]
    batch = (X[:-1], torch.ones(1, 2)) if loss == "seq2one" else X
    learner = rk.Learner(model, fn, torch.optim.SGD(model.parameters(), 0.1), [log])
    for options in (
        [{}] if phase is rk.BPTTValidationPhase else [{}, {"window": 2}, {"window": 4, "stride": 2}]
    ):
        log.events.clear()
        learner.step(phase(**options), batch)
        windows = 3 if options and loss != "seq2one" else 1
        assert log.events == documented(phase, windows)
    if phase is rk.BPTTValidationPhase:
        log.events.clear()
        learner.step(phase(nfeedback=3), batch)
        assert log.events == documented(phase, 1)


def test_the_docstrings_say_what_design_says():
    assert documented(rk.BPTTTrainingPhase, 1) == STEP
    assert documented(rk.BPTTValidationPhase, 1) == ["StepBegin", "LossBegin", "StepEnd"]


def test_the_order_of_a_whole_fit():
    log = Log()
    learner_with(log).fit(2, [X, X], [X], training=rk.BPTTTrainingPhase(window=3))
    window = STEP[1:-1]
    training = ["EpochBegin", *["StepBegin", *window, *window, "StepEnd"] * 2, "EpochEnd"]
    validation = ["EpochBegin", "StepBegin", "LossBegin", "StepEnd", "EpochEnd"]
    assert log.events == ["FitBegin", *[*training, *validation] * 2, "FitEnd"]
    assert log.phases[:2] == ["", "training"]
    assert log.phases[len(training) + 1] == "validation"


def test_what_a_callback_sees_at_each_event():
    seen = {}

    class Look:
        pass

    for event in EVENTS:

        def look(learner, event=event):
            state, grads = learner.state, [p.grad is not None for p in learner.parameters]
            weights = learner.parameters[0].detach().clone()
            seen[event] = (
                state and state.outputs,
                state and state.loss,
                all(grads),
                weights,
                learner.step_index,
            )

        setattr(Look, method_of(event), staticmethod(look))
    learner_with(Look()).fit(1, [X])
    assert seen["FitBegin"][0] is None
    assert seen["StepBegin"][1] is None
    assert seen["LossBegin"][1] is None
    assert isinstance(seen["BackwardBegin"][1], torch.Tensor)
    assert not seen["BackwardBegin"][2]
    assert seen["BackwardEnd"][2]
    assert torch.equal(seen["BackwardEnd"][3], seen["StepBegin"][3])
    assert not torch.equal(seen["WindowEnd"][3], seen["StepBegin"][3])
    assert seen["StepEnd"][0].shape == (6, 1, 2)
    assert (seen["WindowEnd"][4], seen["StepEnd"][4]) == (0, 1)


@pytest.mark.parametrize("phase", [rk.BPTTTrainingPhase, rk.BPTTValidationPhase])
def test_the_loss_is_computed_after_its_event_and_the_outputs_before_it(phase):
    log, model = Log(), net()
    model.register_forward_hook(lambda *_: log.events.append("model"))

    def loss(outputs, targets):
        log.events.append("loss")
        return nn.functional.mse_loss(outputs, targets)

    rk.Learner(model, loss, torch.optim.SGD(model.parameters(), 0.1), [log]).step(phase(), X)
    first = log.events.index("model")
    assert log.events[first : first + 3] == ["model", "LossBegin", "loss"]


@pytest.mark.parametrize("event", STEP)
def test_a_cancelled_step_is_left_out_and_the_next_one_comes(event):
    log = Log(event, rk.CancelStep, once=True)
    learner = learner_with(log)
    averages = learner.epoch(rk.BPTTTrainingPhase(), [X * 5, X])
    upto = STEP[: STEP.index(event) + 1]
    first = upto if event == "StepEnd" else [*upto, "StepEnd"]
    assert log.events == ["EpochBegin", *first, *STEP, "EpochEnd"]
    assert learner.step_index == 2
    if event not in (
        "WindowEnd",
        "StepEnd",
    ):  # the first step has changed nothing and does not count
        other = learner_with()
        assert torch.equal(averages["loss"], other.epoch(rk.BPTTTrainingPhase(), [X])["loss"])
        assert all(map(torch.equal, learner.parameters, other.parameters))


@pytest.mark.parametrize("event", ["EpochBegin", *STEP, "EpochEnd"])
@pytest.mark.parametrize("with_validation", [False, True])
def test_a_cancelled_epoch_ends_and_the_next_one_comes(event, with_validation):
    log = Log(event, rk.CancelEpoch, once=True)
    learner = learner_with(log).fit(2, [X, X], [X] if with_validation else None)
    sequence = ["EpochBegin", *STEP, *STEP, "EpochEnd"]
    cut = sequence[: sequence.index(event) + 1]
    first = cut if event == "EpochEnd" else [*cut, "EpochEnd"]
    validation = ["EpochBegin", "StepBegin", "LossBegin", "StepEnd", "EpochEnd"] * with_validation
    assert log.events == ["FitBegin", *first, *validation, *sequence, *validation, "FitEnd"]
    assert learner.epoch_index == 2


@pytest.mark.parametrize("event", ["FitBegin", "EpochBegin", *STEP, "EpochEnd", "FitEnd"])
@pytest.mark.parametrize("with_validation", [False, True])
def test_a_cancelled_fit_ends(event, with_validation):
    log, after = Log(event, rk.CancelFit), Log()
    learner = learner_with(log, after).fit(2, [X, X], [X] if with_validation else None)
    validation = ["EpochBegin", "StepBegin", "LossBegin", "StepEnd", "EpochEnd"] * with_validation
    sequence = ["FitBegin", "EpochBegin", *STEP, *STEP, "EpochEnd", *validation]
    cut = sequence[: sequence.index(event) + 1] if event != "FitEnd" else [*sequence, *sequence[1:]]
    tail = {"FitBegin": ["FitEnd"], "EpochEnd": ["FitEnd"], "FitEnd": ["FitEnd"]}
    assert log.events == [*cut, *tail.get(event, ["EpochEnd", "FitEnd"])]
    assert after.events[-1] == "FitEnd"
    assert after.events.count("EpochEnd") == log.events.count("EpochEnd")
    done = {"EpochEnd": 0 if with_validation else 1, "FitEnd": 2}
    assert learner.epoch_index == done.get(event, 0)
    log.error = None
    assert learner.fit(1, [X]).epoch_index == done.get(event, 0) + 1


def test_every_callback_hears_the_end_of_an_epoch_that_one_of_them_ends_the_fit_at():
    first, second = Log("EpochEnd", rk.CancelFit), Log()
    learner_with(first, second).fit(5, [X])
    assert second.events == ["FitBegin", "EpochBegin", *STEP, "EpochEnd", "FitEnd"]


def test_another_error_is_not_swallowed():
    log = Log("LossBegin", ZeroDivisionError, once=True)
    learner = learner_with(log)
    with pytest.raises(ZeroDivisionError):
        learner.fit(2, [X], [X])
    with pytest.raises(ZeroDivisionError):
        learner_with(Log("EpochEnd", ZeroDivisionError)).fit(1, [X])
    assert learner.fit(2, [X], [X]).epoch_index == 2


def test_an_error_in_validation_does_not_make_the_next_epoch_one_of_a_fit():
    log = Log()
    learner = learner_with(log)
    with pytest.raises(TypeError):
        learner.fit(2, [X], ["no batch"])
    learner.epoch(rk.BPTTValidationPhase(), [X])
    assert learner.epoch_index == 0


def test_a_method_that_names_no_event_is_refused():
    class Typo:
        def on_epoch_ends(self, learner):
            raise NotImplementedError

    names = ", ".join(sorted(method_of(event) for event in EVENTS))
    with pytest.raises(ValueError, match="Typo") as info:
        learner_with(Typo())
    assert (
        str(info.value)
        == f"Learner: got Typo.on_epoch_ends; wanted one of {names}. Likely fix: rename it."
    )


def test_callbacks_are_called_in_their_order():
    calls = []

    class Named:
        def __init__(self, name, order=0):
            self.name, self.order = name, order

        def on_fit_begin(self, learner):
            calls.append(self.name)

        def on_epoch_begin(self, learner):
            calls.append(self.name.upper())

    learner_with(Named("late", 1), Named("a"), Named("b"), Named("early", -1)).fit(1, [X])
    assert calls == ["late", "a", "b", "early", "EARLY", "A", "B", "LATE"]


def table() -> dict[str, tuple[str, str]]:
    """The rows of the table of events: when each comes, what is there."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", events.__doc__ or "", re.MULTILINE)
    return {event: (when, there) for event, when, there in rows}


def test_the_table_has_every_event_in_order_and_says_which_are_of_training_only():
    assert tuple(table()) == EVENTS
    heard = {"training": Log(), "validation": Log()}
    for name, phase in (
        ("training", rk.BPTTTrainingPhase()),
        ("validation", rk.BPTTValidationPhase()),
    ):
        learner_with(heard[name]).epoch(phase, [X])
    only = set(heard["training"].events) - set(heard["validation"].events)
    assert {event for event, (when, _) in table().items() if when.startswith("training:")} == only


SEEN = {
    "inputs": lambda learner: learner.current.inputs,
    "outputs": lambda learner: learner.current.outputs,
    "loss": lambda learner: learner.current.loss,
    "averages": lambda learner: learner.averages.get("loss"),
}


@pytest.mark.parametrize("phase", [rk.BPTTTrainingPhase(), rk.BPTTValidationPhase()])
def test_what_an_event_promises_is_there_in_both_phases(phase):
    seen = {}

    class Look:
        pass

    for event in EVENTS:

        def look(learner, event=event):
            there = [
                name
                for name, get in SEEN.items()
                if learner.current is None or get(learner) is not None
            ]
            seen[event] = set() if learner.current is None else set(there)

        setattr(Look, method_of(event), staticmethod(look))
    learner_with(Look()).epoch(phase, [X])
    assert seen["EpochBegin"] == set()
    assert seen["StepBegin"] == {"inputs"}
    assert seen["LossBegin"] >= {"inputs", "outputs"}
    if phase.trains:
        assert seen["BackwardBegin"] == seen["BackwardEnd"] == {"inputs", "outputs", "loss"}
    assert seen["StepEnd"] == seen["EpochEnd"] == set(SEEN)


@pytest.mark.parametrize("ignored", [(), (1,)])
@pytest.mark.parametrize("phase", [rk.BPTTTrainingPhase(4), rk.BPTTValidationPhase()])
def test_what_is_put_in_place_of_a_batch_as_its_step_begins_is_read_and_scored(phase, ignored):
    draws = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 9, 3, 2, generator=draws)
    labels = torch.randint(2, (7, 3), generator=draws)
    for row in ignored:  # what is known of the targets of before says nothing
        labels[:, row] = -100
    cut = {
        "inputs": other[:7],
        "targets": labels,
        "lengths": torch.tensor([7, 5, 2]),
        "weights": torch.rand(7, 3, generator=draws),
    }

    class Change:
        def on_step_begin(self, learner):
            for name, value in cut.items():
                setattr(learner.current, name, value)

    steps = []
    for callbacks, batch in (
        ([Change()], rk.SequenceBatch(first, torch.zeros(9, 3, dtype=torch.long))),
        ([], rk.SequenceBatch(**cut)),
    ):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
        learner = rk.Learner(model, loss, optimizer, callbacks, metrics={"same": loss})
        steps.append((learner.epoch(phase, [batch]), list(model.parameters())))
    torch.testing.assert_close(*steps, rtol=0, atol=0)


def test_the_gradient_of_the_window_before_is_there_until_the_next_is():
    norms = {"on_window_begin": [], "on_backward_begin": [], "on_backward_end": []}

    class Norm:
        pass

    for name in norms:

        def look(learner, name=name):
            grads = [p.grad for p in learner.parameters if p.grad is not None]
            norms[name].append(float(sum(g.square().sum() for g in grads)))

        setattr(Norm, name, staticmethod(look))
    learner_with(Norm()).step(rk.BPTTTrainingPhase(window=2), X)
    assert norms["on_window_begin"] == [0.0, *norms["on_backward_end"][:-1]]
    assert norms["on_backward_begin"] == norms["on_window_begin"]


def test_what_a_callback_opens_is_closed_at_the_end_of_its_epoch_however_it_ends():
    class Open:
        def __init__(self):
            self.open = 0

        def on_epoch_begin(self, learner):
            self.open += 1
            learner.defer(self.close)

        def close(self):
            self.open -= 1

    for error in (
        None,
        rk.CancelStep,
        rk.CancelEpoch,
        rk.CancelFit,
        ZeroDivisionError,
        KeyboardInterrupt,
    ):
        opened, log = Open(), Log("LossBegin" if error else "", error)
        learner = learner_with(opened, log)
        try:
            learner.fit(1, [X], [X])
        except (ZeroDivisionError, KeyboardInterrupt) as caught:
            assert type(caught) is error
        assert opened.open == 0
        assert not learner.fitting


def test_a_callback_with_the_state_of_a_training_is_kept_by_its_place_and_kind():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    parts = [rk.ClipGradients(1.0), rk.History(), Log(), rk.Scheduler(scheduler)]
    assert list(events.stateful(parts)) == ["0 History", "1 Scheduler(StepLR)"]


def test_an_epoch_that_a_callback_cancels_outside_a_fit_gives_what_it_had():
    for error in (rk.CancelEpoch, rk.CancelFit):
        log = Log("BackwardBegin", error)
        log.once = False
        learner = learner_with(log)
        assert learner.epoch(rk.BPTTTrainingPhase(), [X]) == {}
        assert log.events[-1] == "EpochEnd"
        assert not learner.fitting


def test_no_batches_beside_a_fit_are_refused_too():
    refused(lambda: learner_with().epoch(rk.BPTTValidationPhase(), []), "Learner: got no batches")


@pytest.mark.parametrize("error", [rk.CancelStep, rk.CancelEpoch, rk.CancelFit])
def test_every_callback_hears_the_end_of_a_step_whatever_one_of_them_cancels_there(error):
    first, second = Log("StepEnd", error), Log()
    learner_with(first, second).fit(1, [X, X])
    assert second.events == first.events


def test_of_what_two_callbacks_cancel_at_the_end_of_a_step_the_wider_is_cancelled():
    wide, narrow = Log("StepEnd", rk.CancelEpoch), Log("StepEnd", rk.CancelStep)
    for callbacks in ((wide, narrow), (narrow, wide)):
        assert learner_with(*callbacks).fit(1, [X, X]).epoch_index == 1
    assert wide.events.count("StepEnd") == 2


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("FitBegin", rk.CancelStep),
        ("FitBegin", rk.CancelEpoch),
        ("EpochBegin", rk.CancelStep),
    ],
)
def test_what_has_not_begun_cannot_be_cancelled(event, error):
    learner = learner_with(Log(event, error))
    refused(lambda: learner.fit(1, [X]), f"{error.__name__} at {event}")


@pytest.mark.parametrize("event", ["EpochEnd", "FitEnd"])
def test_what_is_over_is_not_cancelled_and_every_callback_hears_of_it(event):
    after = Log()
    learner = learner_with(Log(event, rk.CancelStep), after).fit(2, [X])
    assert learner.epoch_index == 2
    assert after.events.count("EpochEnd") == 2
    assert after.events[-1] == "FitEnd"


def test_the_update_of_the_last_accumulated_batches_can_be_left_out():
    learner = learner_with(Log("BackwardEnd", rk.CancelStep))
    before = [parameter.detach().clone() for parameter in learner.parameters]
    learner.fit(2, [X], training=rk.BPTTTrainingPhase(accumulate=2))
    assert learner.epoch_index == 2
    assert all(map(torch.equal, learner.parameters, before))
