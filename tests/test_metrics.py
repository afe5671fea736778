"""What an epoch adds up. The referee counts by hand, one sequence at a time, in float64."""

import contextlib
import copy
import math
from fractions import Fraction

import pytest
import sklearn.metrics as sklearn
import torch
import torchmetrics
from helpers import few, refused, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rnnkit as rk
from rnnkit.losses.total import Total
from rnnkit.training.average import Average

CLASSES = 4


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """One number a step: 1 where the likeliest class is the right one."""
    return (outputs.argmax(-1) == targets).double()


def net(seed: int = 1) -> rk.RecurrentSequential:
    torch.manual_seed(seed)
    return rk.RecurrentSequential(nn.GRU(3, 5), nn.Linear(5, CLASSES)).double()


def batches(shapes, seed: int = 0):
    """Ragged batches of classes: `(inputs, targets, lengths)`."""
    generator = seeded(seed)
    made = []
    for time, rows in shapes:
        inputs = torch.randn(time, rows, 3, generator=generator, dtype=torch.float64)
        targets = torch.randint(CLASSES, (time, rows), generator=generator)
        lengths = torch.randint(1, time + 1, (rows,), generator=generator)
        made.append((inputs, targets, lengths))
    return made


def learner_of(model=None, callbacks=(), rate: float = 0.1, loss=None, **options) -> rk.Learner:
    model = net() if model is None else model
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss()) if loss is None else loss
    optimizer = torch.optim.SGD(model.parameters(), rate)
    return rk.Learner(model, loss, optimizer, callbacks, **options)


def valid(model, data) -> tuple[Tensor, Tensor]:
    """Outputs and targets of every step that is not padding, one sequence at a time."""
    outputs, targets = [], []
    with torch.no_grad():
        for inputs, wanted, lengths in data:
            for row, length in enumerate(lengths.tolist()):
                outputs.append(model(inputs[:length, row : row + 1])[0].squeeze(1))
                targets.append(wanted[:length, row])
    return torch.cat(outputs), torch.cat(targets)


# Averages

pieces = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=200
)


@few
@given(pieces)
def test_an_average_is_the_sum_of_sums_by_the_sum_of_weights(pieces):
    scalar, by_step = Average(), Average()
    total = Fraction(0)
    sums, weights = [Fraction(0)] * 5, [0] * 5
    for value, weight, time in pieces:
        scalar.add(Total(torch.tensor(value / 8.0) * weight, float(weight)))
        total += Fraction(value, 8) * weight
        column = torch.full((time,), value / 8.0)
        by_step.add(Total(column * weight, torch.full((time,), float(weight))))
        for t in range(time):
            sums[t] += Fraction(value, 8) * weight
            weights[t] += weight
    count = sum(weight for _, weight, _ in pieces)
    longest = max(time for *_, time in pieces)
    means = [float(s / w) if w else math.nan for s, w in zip(sums, weights, strict=True)][:longest]
    expected = float(total / count) if count else math.nan
    assert scalar.mean().item() == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert by_step.mean().tolist() == pytest.approx(means, rel=1e-6, nan_ok=True)


def test_three_hundred_thousand_steps_in_float32_are_averaged_to_the_last_digit():
    average = Average()
    third = torch.tensor(1 / 3)
    for _ in range(300_000):
        average.add(Total(third * 7, 7.0))
    assert average.mean().dtype == torch.float32
    assert average.total().sum.item() == pytest.approx(300_000 * (third * 7).item(), rel=1e-12)
    assert average.mean().item() == pytest.approx(1 / 3, rel=1e-7)


@pytest.mark.parametrize("steps", [1, 63, 64, 65, 200])
def test_an_average_taken_up_again_is_bitwise_the_one_that_went_on(steps):
    whole, first = Average(), Average()
    values = torch.rand(260, generator=seeded())
    for i, value in enumerate(values):
        whole.add(Total(value * 3, 3.0 + i))
        if i < steps:
            first.add(Total(value * 3, 3.0 + i))
            first.mean()  # looking at it changes nothing
    second = Average()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(second.mean(), first.mean())
    for i, value in enumerate(values[steps:], steps):
        second.add(Total(value * 3, 3.0 + i))
    for name in ("sum", "weight"):
        left, right = getattr(second.total(), name), getattr(whole.total(), name)
        assert float(left) == float(right)


def test_an_average_of_weighed_steps_has_all_digits_also_when_it_is_taken_up_again():
    sums, weights = torch.rand(2, 7, dtype=torch.float64, generator=seeded())
    whole, again = Average(), Average()
    for total, weight in zip(sums, weights, strict=True):
        whole.add(Total(total, weight))
    again.load_state_dict(whole.state_dict())
    for average in (whole, again):
        assert average.mean().item() == pytest.approx(
            (sums.sum() / weights.sum()).item(), rel=1e-14
        )


def test_an_average_of_several_heads_is_the_sum_of_their_scaled_means():
    average = Average()
    scales = torch.tensor([1.0, 10.0])
    for weights in ([1.0, 2.0], [3.0, 0.0]):
        weight = torch.tensor(weights)
        average.add(Total(torch.tensor([0.5, 2.0]) * weight, weight, scales))
    assert average.mean().item() == pytest.approx(0.5 + 20.0)


def test_an_average_has_the_precision_of_what_is_averaged():
    for dtype, wanted in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        average = Average()
        average.add(Total(torch.ones((), dtype=dtype), 2.0))
        assert average.mean().dtype == wanted
        assert average.mean().item() == 0.5


# Losses that are only looked at

shapes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=4)


@few
@given(shapes)
def test_an_accuracy_over_ragged_batches_is_that_of_a_count_by_hand(shapes):
    model, data = net(), batches(shapes)
    outputs, targets = valid(model, data)
    expected = (outputs.argmax(-1) == targets).double().mean()
    learner = learner_of(model, rate=0.0, metrics={"accuracy": rk.seq2seq_loss(correct)})
    for phase in (rk.BPTTTrainingPhase(), rk.BPTTTrainingPhase(window=2), rk.BPTTValidationPhase()):
        torch.testing.assert_close(learner.epoch(phase, data)["accuracy"], expected)
    evaluated = rk.evaluate(model, learner.loss, data, metrics=learner.metrics.losses)
    assert evaluated["accuracy"] == pytest.approx(expected.item())


@pytest.mark.parametrize("average", ["step", "sequence"])
def test_a_metric_that_is_the_loss_has_the_value_of_the_loss(average):
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss(), average)
    history = rk.History()
    learner = learner_of(loss=loss, callbacks=[history], metrics={"same": loss})
    data = batches([(5, 3), (3, 2)])
    learner.fit(2, data, data)
    assert len(history.rows) == 4
    for row in history.rows:
        assert row["same"] == row["loss"]


def test_a_metric_s_own_warmup_goes_on_with_a_state_from_batch_to_batch():
    model, seen = net(), []

    class Seen:
        def on_step_end(self, learner):
            seen.append(learner.averages["accuracy"])

    accuracy = rk.seq2seq_loss(correct, warmup=6)
    inputs, targets, _ = batches([(12, 2)])[0]
    with torch.no_grad():
        right = correct(model(inputs)[0], targets)  # (T, B)
    pieces = zip(inputs.split(4), targets.split(4), strict=True)
    learner = learner_of(model, [Seen()], metrics={"accuracy": accuracy})
    learner.epoch(rk.BPTTValidationPhase(stateful=True), list(pieces))
    assert seen[0].isnan()
    assert [float(value) for value in seen[1:]] == [
        float(right[6:8].mean()),
        float(right[6:].mean()),
    ]


def test_a_metric_that_is_the_loss_has_its_value_in_half_precision_too():
    """What autocast computes in float32, such as the logarithms of probabilities, it does in both."""
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    history = rk.History()
    options = {"autocast": torch.bfloat16, "metrics": {"same": loss}}
    learner = learner_of(net().float(), [history], loss=loss, **options)
    data = [(inputs.float(), targets) for inputs, targets, _ in batches([(5, 3), (3, 2)])]
    learner.fit(2, data, data)
    for row in history.rows:
        assert row["same"] == row["loss"]


def test_a_metric_is_looked_at_without_a_gradient_and_changes_nothing():
    seen = []

    def look(outputs, targets):
        seen.append((torch.is_grad_enabled(), outputs.requires_grad))
        return correct(outputs, targets)

    data = batches([(5, 3), (3, 2)])
    watched, plain = learner_of(metrics={"looked": rk.seq2seq_loss(look)}), learner_of()
    for learner in (watched, plain):
        learner.fit(2, data, data)
    assert set(seen) == {(False, False)}
    assert len(seen) == 8
    assert all(map(torch.equal, watched.parameters, plain.parameters))


def test_without_metrics_the_loss_is_called_no_more_often():
    calls = []

    def loss(outputs, targets):
        calls.append(len(outputs))
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    learner = learner_of(loss=rk.seq2seq_loss(loss))
    learner.epoch(rk.BPTTTrainingPhase(), batches([(5, 3)] * 3))
    assert len(calls) == 3


def test_the_metrics_of_a_step_are_in_its_state():
    learner = learner_of(rate=0.0, metrics={"accuracy": rk.seq2seq_loss(correct)})
    data = batches([(5, 3)])
    step = learner.step(rk.BPTTTrainingPhase(), data[0])
    outputs, targets = valid(learner.model, data)
    expected = (outputs.argmax(-1) == targets).double().mean()
    torch.testing.assert_close(step.totals["accuracy"].mean(), expected)


def test_a_step_that_is_cancelled_is_in_no_metric():
    class Cancel:
        def on_backward_begin(self, learner):
            if learner.step_index == 0:
                raise rk.CancelStep

    data = batches([(5, 3), (4, 2)])
    metrics = {"accuracy": rk.seq2seq_loss(correct)}
    one = learner_of(callbacks=[Cancel()], rate=0.0, metrics=metrics)
    two = learner_of(rate=0.0, metrics=metrics)
    phase = rk.BPTTTrainingPhase()
    assert one.epoch(phase, data) == two.epoch(phase, data[1:])


# Metrics that count by themselves


class Count:
    """Counts as torchmetrics does, and writes down what is asked of it."""

    def __init__(self):
        self.asked = []
        self.reset()
        self.asked.clear()

    def reset(self):
        self.right = self.all = 0
        self.asked.append("reset")

    def update(self, outputs, targets):
        assert (outputs.shape[1:], targets.shape) == ((CLASSES,), outputs.shape[:1])
        self.right += int(correct(outputs, targets).sum())
        self.all += len(targets)
        self.asked.append("update")

    def compute(self):
        self.asked.append("compute")
        return self.right / self.all


def test_a_counter_is_reset_as_an_epoch_begins_and_computed_as_it_ends():
    count, history = Count(), rk.History()
    model, data = net(), batches([(5, 3), (3, 2)])
    learner = learner_of(model, [history], rate=0.0, metrics={"count": count})
    count.asked.clear()
    learner.fit(1, data, data[:1])
    asked = [word for i, word in enumerate(count.asked) if count.asked[i : i + 2] != ["reset"] * 2]
    assert asked == ["reset", "update", "update", "compute", "reset", "update", "compute"]
    for row, part in zip(history.rows, (data, data[:1]), strict=True):
        outputs, targets = valid(model, part)
        assert row["count"] == pytest.approx((outputs.argmax(-1) == targets).double().mean().item())


def test_the_f1_of_torchmetrics_over_ragged_batches_is_that_of_sklearn():
    f1 = torchmetrics.classification.MulticlassF1Score(CLASSES, average="macro")
    model, data = net(), batches([(9, 4), (6, 3), (7, 5)])
    outputs, targets = valid(model, data)
    expected = sklearn.f1_score(targets, outputs.argmax(-1), average="macro")
    learner = learner_of(model, rate=0.0, metrics={"f1": f1})
    for phase in (rk.BPTTTrainingPhase(window=4), rk.BPTTValidationPhase()):
        assert learner.epoch(phase, data)["f1"].item() == pytest.approx(expected, rel=1e-6)
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    got = rk.evaluate(model, loss, data, metrics={"f1": f1})
    assert got["f1"] == pytest.approx(expected, rel=1e-6)


def test_a_collection_of_torchmetrics_gives_a_number_for_each():
    kinds = torchmetrics.classification
    accuracy = kinds.MulticlassAccuracy(CLASSES, average="micro")
    each = kinds.MulticlassRecall(CLASSES, average="none")
    learner = learner_of(
        rate=0.0, metrics={"all": torchmetrics.MetricCollection({"acc": accuracy, "rec": each})}
    )
    data = batches([(5, 3)])
    averages = learner.epoch(rk.BPTTValidationPhase(), data)
    outputs, targets = valid(learner.model, data)
    assert averages["all.acc"].item() == pytest.approx(correct(outputs, targets).mean().item())
    assert averages["all.rec"].shape == (CLASSES,)


@pytest.mark.parametrize("make", [rk.seq2seq_loss, rk.seq2one_loss])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_counter_and_a_loss_get_steps_that_lie_side_by_side_of_a_slice_of_a_table(make, rows):
    table = torch.randn(6, rows + 2, 7, dtype=torch.float64, generator=seeded())
    inputs, targets = table[:, 1 : rows + 1, :3], table[:, 1 : rows + 1, 2 : CLASSES + 2]
    model = net()
    outputs = model(inputs)[0].detach()
    if make is rk.seq2one_loss:
        targets, outputs = targets[-1], outputs[-1]

    def flat(answers: Tensor, wanted: Tensor) -> Tensor:
        return (answers.view(-1) - wanted.view(-1)).square().mean()

    counter = torchmetrics.MeanSquaredError().set_dtype(torch.float64)
    got = rk.evaluate(model, make(flat), [(inputs, targets)], metrics={"mse": counter})
    right = (outputs - targets).square().mean().item()
    assert got["mse"] == pytest.approx(right, rel=1e-12)
    assert got["loss"] == pytest.approx(right, rel=1e-12)


def test_a_counter_of_a_running_epoch_is_not_disturbed_by_another_look():
    count, history = Count(), rk.History()
    data, other = batches([(5, 3), (3, 2)]), batches([(4, 2)], seed=9)

    class Look:
        def __init__(self):
            self.seen = []

        def on_step_end(self, learner):
            loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
            inside = learner.epoch(rk.BPTTValidationPhase(), other)["count"].item()
            beside = rk.evaluate(learner.model, loss, other, metrics={"count": count})["count"]
            self.seen.append((inside, beside))

    look, model = Look(), net()
    learner = learner_of(model, [history, look], rate=0.0, metrics={"count": count})
    learner.fit(1, data)
    outputs, targets = valid(model, data)
    assert history.rows[0]["count"] == pytest.approx(correct(outputs, targets).mean().item())
    outputs, targets = valid(model, other)
    expected = pytest.approx(correct(outputs, targets).mean().item())
    assert look.seen == [(expected, expected)] * 2


def test_a_metric_for_one_target_a_sequence():
    model, data = net(), batches([(5, 3), (3, 2)])
    data = [(inputs, targets[0], lengths) for inputs, targets, lengths in data]
    count = Count()
    loss = rk.seq2one_loss(nn.CrossEntropyLoss())
    metrics = {"accuracy": rk.seq2one_loss(correct), "count": count}
    got = rk.evaluate(model, loss, data, metrics=metrics)
    right = []
    for inputs, targets, lengths in data:
        for row, length in enumerate(lengths.tolist()):
            last = model(inputs[:length, row : row + 1])[0][-1, 0]
            right.append(float(last.argmax() == targets[row]))
    assert got["accuracy"] == got["count"] == pytest.approx(sum(right) / len(right))


# What is refused


@pytest.mark.parametrize("name", ["loss", "open_loss", "closed_loss", "loss_by_step", "epoch", 3])
def test_the_name_of_a_loss_is_no_name_for_a_metric(name):
    text = f"Learner: got a metric named {name!r}; wanted a name that is none of loss, open_loss"
    refused(lambda: learner_of(metrics={name: rk.seq2seq_loss(correct)}), text)


def test_what_is_no_metric_is_refused():
    refused(lambda: learner_of(metrics={"a": 1}), "metrics['a'] = a int", TypeError)
    refused(lambda: learner_of(metrics=[correct]), "a dict of metrics by name", TypeError)


# Evaluation


def test_an_evaluation_is_that_of_the_validation_phase():
    model, data = net(), batches([(5, 3), (6, 2)])
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    got = rk.evaluate(model, loss, data)
    wanted = learner_of(model, loss=loss).epoch(rk.BPTTValidationPhase(), data)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert isinstance(value, float) == (name != "loss_by_step")
        torch.testing.assert_close(torch.as_tensor(value).double(), wanted[name])
    outputs, targets = valid(model, data)
    by_hand = nn.functional.cross_entropy(outputs, targets)
    assert got["loss"] == pytest.approx(by_hand.item(), rel=1e-12)


def test_an_evaluation_leaves_model_and_phase_as_they_were():
    model = net()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    loss, data = rk.seq2seq_loss(nn.CrossEntropyLoss()), batches([(5, 3), (4, 3)])
    phase = rk.BPTTValidationPhase(stateful=True)
    phase(model, loss, data[0])
    carried = phase.carried
    one = rk.evaluate(model, loss, data, phase)
    assert phase.carried is carried
    assert one["loss"] == rk.evaluate(model, loss, data, phase)["loss"]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_evaluation_refuses_what_is_not_to_be_evaluated():
    model, loss, data = net(), rk.seq2seq_loss(nn.CrossEntropyLoss()), batches([(5, 3)])
    text = "evaluate: got a BPTTTrainingPhase; wanted a phase that does not train"
    refused(lambda: rk.evaluate(model, loss, data, rk.BPTTTrainingPhase()), text)
    refused(lambda: rk.evaluate(model, loss, data[0]), "which is one batch", TypeError)
    refused(lambda: rk.evaluate(model, loss, []), "got no batches")
    refused(lambda: rk.evaluate(nn.GRUCell(3, 3), loss, data), "a cell", TypeError)


@pytest.mark.parametrize("value", [None, "high", (torch.ones(3), torch.ones(2)), {"a": {"b": 1.0}}])
def test_what_a_counter_computes_is_a_number_or_a_tensor(value):
    class Odd(Count):
        def compute(self):
            return value

    fix = "computed by the metric 'odd"
    refused(lambda: learner_of(metrics={"odd": Odd()}).fit(1, batches([(5, 3)])), fix, TypeError)


def test_class_weights_are_moved_to_the_device():
    weighted = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    learner_of(metrics={"weighted": rk.seq2seq_loss(weighted)}, device="meta")
    assert weighted.weight.device.type == "meta"

    loss = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    with contextlib.suppress(NotImplementedError, RuntimeError):  # this device has no numbers
        rk.evaluate(net().to("meta"), rk.seq2seq_loss(loss), batches([(5, 3)]))
    assert loss.weight.device.type == "meta"


def test_a_batch_without_a_step_to_count_is_not_counted():
    data = [rk.SequenceBatch(*batch) for batch in batches([(5, 3), (4, 2)])]
    unscored = rk.SequenceBatch(*batches([(6, 2)], seed=1)[0], weights=torch.zeros(6, 2))
    f1 = torchmetrics.F1Score("multiclass", num_classes=CLASSES)
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    right = rk.evaluate(net(), loss, data, metrics={"f1": f1})
    got = rk.evaluate(net(), loss, [unscored, *data, unscored], metrics={"f1": f1})
    assert got == right
    assert "f1" not in rk.evaluate(net(), loss, [unscored], metrics={"f1": f1})


@pytest.mark.parametrize("metric", [torchmetrics.MeanSquaredError, nn.L1Loss])
def test_a_class_is_no_metric(metric):
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    data = batches([(5, 3)])
    refused(lambda: rk.evaluate(net(), loss, data, metrics={"m": metric}), "the class", TypeError)


def test_a_counter_that_is_told_what_the_loss_ignores_equals_sklearn():
    data = batches([(7, 4), (5, 3)])
    for _, targets, _ in data:
        targets[1] = -100
    f1 = torchmetrics.F1Score("multiclass", num_classes=CLASSES, average="macro", ignore_index=-100)
    model = net()
    got = rk.evaluate(model, rk.seq2seq_loss(nn.CrossEntropyLoss()), data, metrics={"f1": f1})
    outputs, targets = valid(model, data)
    kept = targets != -100
    right = sklearn.f1_score(targets[kept], outputs[kept].argmax(1), average="macro")
    assert got["f1"] == pytest.approx(right)
