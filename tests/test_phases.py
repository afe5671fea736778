"""Phases: truncated BPTT, carried state, closed loops and feedback, held to loops written out in plain PyTorch."""

import copy
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Scaling
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rnnkit as rk

MSE = nn.MSELoss()
SEQ = rk.seq2seq_loss(MSE)
LAST = rk.seq2one_loss(MSE)


def net(
    seed: int = 1, kind: type[nn.RNNBase] = nn.LSTM, features: int = 3, **options
) -> rk.RecurrentSequential:
    torch.manual_seed(seed)
    rnn = kind(features, 5, **options)
    return rk.RecurrentSequential(rnn, nn.Linear(10 if rnn.bidirectional else 5, features)).double()


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), rate)


def data(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copied(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class Gradients:
    """A callback that keeps every window's gradient."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_backward_end(self, learner: rk.Learner) -> None:
        self.seen.append([p.grad.clone() for p in learner.parameters])


def trained(phase, batch, loss=SEQ, model=None):
    """Gradients by window, the step, and the model after it."""
    model = net() if model is None else model
    kept = Gradients()
    step = rk.Learner(model, loss, sgd(model), [kept]).step(phase, batch)
    return kept.seen, step, model


def close(left, right) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def square(outputs: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean square over the valid steps, row by row and step by step."""
    rows = range(outputs.shape[1])
    ends = (
        [len(outputs)] * len(rows)
        if lengths is None
        else [max(0, min(len(outputs), int(n))) for n in lengths]
    )
    errors = [(outputs[t, i] - targets[t, i]).square().mean() for i in rows for t in range(ends[i])]
    return torch.stack(errors).mean()


def rnn_of(model: rk.RecurrentSequential):
    """A stack of an RNN and a linear layer, called as two plain modules."""
    rnn, head = model[0], model[1]

    def run(inputs: Tensor, state=None):
        hidden, state = rnn(inputs, state)
        return head(hidden), state

    return run


def cut(state):
    return None if state is None else tuple(part.detach() for part in state)


# Truncated BPTT


@pytest.mark.parametrize("window", [10, 11, 1000])
def test_a_window_as_long_as_the_sequence_is_bitwise_full_bptt(window):
    x = data(11, 4, 3)
    (cut_grads,), cut_step, cut_model = trained(rk.BPTTTrainingPhase(window=window), x)
    (full_grads,), full_step, full_model = trained(rk.BPTTTrainingPhase(), x)
    model = net()
    optimizer = sgd(model)
    outputs, _ = rnn_of(model)(x[:-1])
    loss = MSE(outputs, x[1:])
    loss.backward()
    optimizer.step()
    assert all(map(torch.equal, cut_grads, full_grads))
    assert all(map(torch.equal, full_grads, (p.grad for p in model.parameters())))
    assert all(map(torch.equal, cut_model.parameters(), model.parameters()))
    assert all(map(torch.equal, full_model.parameters(), model.parameters()))
    assert torch.equal(cut_step.loss, loss.detach())
    assert torch.equal(full_step.outputs, outputs.detach())
    assert (cut_step.weight, full_step.weight) == (40, 40)


def truncated(model, x, y, k1, k2, lengths=None):
    """Every k1 steps the loss of the new ones, its gradient from k2 - k1 steps before them on, one step a call."""
    run, optimizer, time = rnn_of(model), sgd(model), len(x)
    stored: dict[int, object] = {0: None}
    seen, losses, weights, answers = [], [], [], []
    for new in range(0, time, k1):
        end, begin = min(new + k1, time), max(0, new - (k2 - k1))
        state, outputs = stored[begin], []
        for t in range(begin, end):
            output, state = run(x[t : t + 1], state)
            outputs.append(output)
            stored[t + 1] = cut(state)
        fresh = torch.cat(outputs[new - begin :])
        inside = None if lengths is None else (lengths - new).clamp(0, end - new)
        loss = square(fresh, y[new:end], inside)
        optimizer.zero_grad()
        loss.backward()
        seen.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
        losses.append(loss.detach())
        weights.append(x.shape[1] * (end - new) if inside is None else int(inside.sum()))
        answers.append(fresh.detach())
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    return seen, mean, sum(weights), torch.cat(answers)


@settings(max_examples=25, deadline=None)
@given(time=st.integers(2, 12), batch=st.integers(1, 3), spans=st.tuples(st.integers(1, 7), st.integers(1, 7)),
       ragged=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_truncated_bptt_equals_a_loop_written_by_hand(time, batch, spans, ragged, seed):
    k1, k2 = sorted(spans)
    x, y = data(time, batch, 3, seed=seed), data(time, batch, 3, seed=seed + 1)
    lengths = None
    if ragged:
        lengths = torch.randint(
            1, time + 1, (batch,), generator=torch.Generator().manual_seed(seed)
        )
        lengths[0] = time
    whole = (x, y) if lengths is None else (x, y, lengths)
    grads, step, model = trained(rk.BPTTTrainingPhase(window=k2, stride=k1), whole)
    other = net()
    expected, loss, weight, outputs = truncated(other, x, y, k1, k2, lengths)
    assert len(grads) == len(expected) == -(-time // k1)
    for one, two in zip(grads, expected, strict=True):
        close(one, two)
    close(model.parameters(), other.parameters())
    close([step.loss], [loss])
    assert step.weight == weight
    for i, n in enumerate([time] * batch if lengths is None else lengths.tolist()):
        close([step.outputs[:n, i]], [outputs[:n, i]])


def test_a_stride_below_the_window_changes_the_gradient_but_not_the_first_window():
    x = data(11, 4, 3)
    near, _, _ = trained(rk.BPTTTrainingPhase(window=3), x)
    far, _, _ = trained(rk.BPTTTrainingPhase(window=7, stride=3), x)
    close(near[0], far[0])
    assert not torch.allclose(near[1][0], far[1][0])


class Echo(nn.Module):
    """Outputs are the inputs, times a weight of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, inputs: Tensor, state=None):
        return inputs * self.weight, state


@pytest.mark.parametrize("average", ["step", "sequence", "custom"])
def test_seven_steps_by_windows_of_three_average_to_four(average):
    losses = torch.arange(1.0, 8.0, dtype=torch.float64).view(7, 1, 1).expand(7, 2, 1)
    loss = (
        (lambda o, t: (o + t).mean())
        if average == "custom"
        else rk.seq2seq_loss(lambda o, t: (o + t)[:, 0], average)
    )
    batch = torch.zeros(7, 2, 1, dtype=torch.float64), losses
    model = Echo()
    learner = rk.Learner(model, loss, sgd(model, 0.0))
    averages = learner.epoch(rk.BPTTTrainingPhase(window=3), [batch])
    assert learner.state.loss.item() == pytest.approx(4.0)
    assert averages["loss"].item() == pytest.approx(4.0)
    assert learner.state.weight == (2 if average == "sequence" else 14)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_seq2one_backpropagates_through_the_last_window_of_each_row(window, kind, ragged):
    x, y = data(10, 4, 3), data(4, 3, seed=8)
    lengths = torch.tensor([10, 3, 7, 1]) if ragged else torch.tensor([10] * 4)
    batch = (x, y, lengths) if ragged else (x, y)
    (grads,), step, _ = trained(rk.BPTTTrainingPhase(window=window), batch, LAST, net(kind=kind))
    model = net(kind=kind)
    rnn, head = model
    total = 0.0
    for i, n in enumerate(lengths.tolist()):
        state, outputs = None, None
        for t in range(n):
            if t == n - window:
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state
                state = state.detach() if isinstance(state, Tensor) else state
            outputs, state = rnn(x[t : t + 1, i : i + 1], state)
        total = total + (head(outputs)[0, 0] - y[i]).square().mean() / 4
    total.backward()
    close(grads, (p.grad for p in model.parameters()))
    close([step.loss], [total.detach()])
    assert step.weight == 4
    outputs, _ = rnn_of(net(kind=kind))(x)
    for i, n in enumerate(lengths.tolist()):
        close([step.outputs[:n, i]], [outputs[:n, i].detach()])


def test_seq2one_with_a_stride_has_one_loss_and_one_update():
    x, y = data(10, 4, 3), data(4, 3, seed=8)
    for window in (3, 20):
        strided, _, _ = trained(rk.BPTTTrainingPhase(window=window, stride=2), (x, y), LAST)
        plain, _, _ = trained(rk.BPTTTrainingPhase(window=window), (x, y), LAST)
        assert len(strided) == 1
        close(strided[0], plain[0])


def test_seq2one_by_a_window_keeps_every_gradient_under_autocast():
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, 3), torch.randn(4, 3)
    norms = []
    for autocast in (None, torch.bfloat16):
        model = net().float()
        rk.Learner(model, LAST, sgd(model), autocast=autocast).step(
            rk.BPTTTrainingPhase(window=3), (x, y)
        )
        norms.append([p.grad.norm().item() for p in model.parameters()])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


class Saved:
    """The most bytes that autograd keeps for the backward pass at any moment.

    Each distinct storage counts once and whole, for as long as some saved tensor shares it. The storages of the
    parameters and of the batch do not count: they are there whether or not a graph holds a slice of them.
    """

    def __init__(self, *outside: Tensor) -> None:
        self.outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self.uses: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor):
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        box = _Box(tensor)
        if key not in self.outside:
            self.uses[key] = self.uses.get(key, 0) + 1
            if self.uses[key] == 1:
                self.now += size
                self.peak = max(self.peak, self.now)
            weakref.finalize(box, self.free, key, size)
        return box

    def free(self, key: int, size: int) -> None:
        self.uses[key] -= 1
        if not self.uses[key]:
            self.now -= size


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak(time: int, phase, loss, targets: Tensor | None = None) -> int:
    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.LSTM(2, 8), nn.Linear(8, 2))
    x = torch.randn(time + 1, 2, 2)
    batch = x if targets is None else (x[:-1], targets)
    optimizer = sgd(model)
    saved = Saved(x, *model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda box: box.tensor):
        phase(model, loss, batch, optimizer)
    return saved.peak


def test_the_memory_of_a_window_does_not_grow_with_the_sequence():
    full = [peak(time, rk.BPTTTrainingPhase(), SEQ) for time in (256, 1024)]
    assert full[1] > 3.5 * full[0]
    for phase in (
        partial(rk.BPTTTrainingPhase, window=64),
        partial(rk.BPTTTrainingPhase, window=128, stride=64),
    ):
        windows = [peak(time, phase(), SEQ) for time in (256, 1024, 4096, 16384)]
        assert len(set(windows)) == 1
        assert windows[0] < full[0]
    ends = [
        peak(time, rk.BPTTTrainingPhase(window=64), LAST, torch.ones(2, 2))
        for time in (256, 1024, 4096)
    ]
    assert len(set(ends)) == 1


# Streams


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("window", "options"), [(7, {}), (7, {"window": 3}), (7, {"window": 5, "stride": 2}), (40, {})]
)
def test_stateful_windows_equal_one_pass_over_the_unbroken_stream(kind, window, options):
    stream, model = data(101, 3), net(kind=kind)
    phase, optimizer = rk.BPTTTrainingPhase(stateful=True, **options), sgd(model, 0.0)
    outputs = [
        phase(model, SEQ, batch, optimizer).outputs for batch in rk.StreamLoader(stream, 4, window)
    ]
    rows = torch.stack([stream[i * 25 : (i + 1) * 25] for i in range(4)], 1)
    expected, _ = rnn_of(model)(rows)
    close([torch.cat(outputs)], [expected.detach()])
    fresh = rk.BPTTTrainingPhase(**options)
    other = torch.cat(
        [fresh(model, SEQ, b, optimizer).outputs for b in rk.StreamLoader(stream, 4, 7)]
    )
    assert not torch.allclose(other[8:], torch.cat(outputs)[8:])


@pytest.mark.parametrize("window", [None, 3, 1])
def test_a_state_is_carried_with_one_target_a_sequence_too(window):
    x, y, model = data(14, 3, 3), data(3, 3, seed=8), net()
    phase = rk.BPTTTrainingPhase(window=window, stateful=True)
    lengths = torch.tensor([7, 2, 5])
    phase(model, LAST, (x[:7], y, lengths), sgd(model, 0.0))
    outputs = phase(model, LAST, (x[7:], y), sgd(model, 0.0)).outputs
    for i, n in enumerate(lengths.tolist()):
        rest = torch.cat([x[:n, i : i + 1], x[7:, i : i + 1]])
        close([outputs[:, i]], [rnn_of(model)(rest)[0][n:, 0].detach()])


@pytest.mark.parametrize("window", [None, 3])
def test_a_state_carried_with_one_target_a_sequence_has_no_history(window):
    x, y, model = data(9, 3, 3), data(3, 3, seed=8), net()
    phase = rk.BPTTTrainingPhase(window=window, stateful=True)
    for part in (x[:7], x[7:]):  # the second is shorter than a window
        phase(model, LAST, (part, y), sgd(model))
        assert not any(leaf.requires_grad for leaf in phase.carried[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "stride": 1}, "validation"])
def test_documents_start_from_zero_and_rows_run_dry(kind, options):
    documents = [data(n, 3, seed=n) for n in (5, 13, 2, 9, 30, 8, 1)]
    model = net(kind=kind)
    if options == "validation":
        phase = partial(rk.BPTTValidationPhase(stateful=True), model, SEQ)
    else:
        phase = partial(
            rk.BPTTTrainingPhase(stateful=True, **options), model, SEQ, optimizer=sgd(model, 0.0)
        )
    rows: list[list[Tensor]] = [[], [], []]
    dry = 0
    for batch in rk.StreamLoader(documents, 3, 4):
        step = phase(batch)
        lengths = [len(step.outputs)] * 3 if batch.lengths is None else batch.lengths.tolist()
        dry += lengths.count(0)
        for row, restart, n, i in zip(rows, batch.restart.tolist(), lengths, range(3), strict=True):
            if restart:
                row.append(step.outputs[:n, i])
            elif n:
                row[-1] = torch.cat([row[-1], step.outputs[:n, i]])
    assert dry
    came = sorted((outputs for row in rows for outputs in row), key=len)
    expected = [
        rnn_of(model)(d[:-1].unsqueeze(1))[0][:, 0].detach()
        for d in sorted(documents, key=len)
        if len(d) > 1
    ]
    close(came, expected)


class Learned(nn.Module):
    """A GRU whose first state is a parameter."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 3)
        self.start = nn.Parameter(torch.ones(1, 1, 3))

    def initial_state(self, batch_size):
        return self.start.expand(1, batch_size, 3).contiguous()

    def forward(self, inputs, state=None):
        if state is None:
            state = self.initial_state(inputs.shape[1])
        return self.gru(inputs, state)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "stride": 1}])
def test_rows_that_all_restart_are_a_batch_that_begins(options):
    """In every window that reaches back to the first step a learned start has its gradient."""
    torch.manual_seed(0)
    begun = Learned().double()
    restarted = copy.deepcopy(begun)
    first, second = data(7, 2, 3), data(7, 2, 3, seed=1)
    stream = rk.BPTTTrainingPhase(stateful=True, **options)
    stream(restarted, SEQ, first, sgd(restarted))
    restarted.load_state_dict(begun.state_dict())
    batch = rk.SequenceBatch(second, restart=torch.ones(2, dtype=torch.bool))
    left = stream(restarted, SEQ, batch, sgd(restarted))
    right = rk.BPTTTrainingPhase(**options)(begun, SEQ, second, sgd(begun))
    assert torch.equal(left.loss, right.loss)
    assert torch.equal(left.outputs, right.outputs)
    assert all(map(torch.equal, restarted.parameters(), begun.parameters()))


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "stride": 1}])
def test_a_dry_row_takes_no_part_in_loss_and_gradient(options):
    x, y = data(6, 3, 3), data(6, 3, 3, seed=8)
    ragged = rk.SequenceBatch(x, y, torch.tensor([6, 0, 4]), torch.tensor([True, False, True]))
    grads, step, _ = trained(rk.BPTTTrainingPhase(stateful=True, **options), ragged)
    two = (x[:, [0, 2]], y[:, [0, 2]], torch.tensor([6, 4]))
    expected, other, _ = trained(rk.BPTTTrainingPhase(**options), two)
    for left, right in zip(grads, expected, strict=True):
        close(left, right)
    close([step.loss], [other.loss])
    assert step.weight == other.weight == 10


def test_a_dry_row_takes_no_part_in_a_closed_loop():
    x, y = data(6, 3, 3), data(6, 3, 3, seed=8)
    ragged = rk.SequenceBatch(x, y, torch.tensor([6, 0, 4]), torch.tensor([True, False, True]))
    step = rk.BPTTValidationPhase(nfeedback=2, stateful=True)(net(), SEQ, ragged)
    two = x[:, [0, 2]], y[:, [0, 2]], torch.tensor([6, 4])
    other = rk.BPTTValidationPhase(nfeedback=2)(net(), SEQ, two)
    assert list(step.totals) == list(other.totals)
    for name, (value, weight) in step.totals.items():
        other_value, other_weight = other.totals[name]
        close([value], [other_value])
        close([torch.as_tensor(weight)], [torch.as_tensor(other_weight)])


def test_a_carried_state_has_no_history():
    model, phase = net(), rk.BPTTTrainingPhase(stateful=True)
    batches = list(rk.StreamLoader(data(41, 3), 2, 5))
    state = None
    for batch in batches:
        kept = Gradients()
        rk.Learner(model, SEQ, sgd(model, 0.0), [kept]).step(phase, batch)
        model.zero_grad()
        outputs, state = rnn_of(model)(batch.inputs, cut(state))
        MSE(outputs, batch.targets).backward()
        close(kept.seen[0], (p.grad for p in model.parameters()))


def test_validation_leaves_the_training_state_and_the_mode_as_it_found_them():
    model = rk.RecurrentSequential(nn.GRU(3, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    model[1].eval()
    training, validation = (
        rk.BPTTTrainingPhase(stateful=True),
        rk.BPTTValidationPhase(stateful=True),
    )
    first, second = list(rk.StreamLoader(data(25, 3), 2, 6))
    training(model, SEQ, first, sgd(model))
    state, weights = training.carried, copied(model)
    before = [leaf.clone() for leaf in state]
    for _ in range(2):
        step = validation(model, SEQ, second)
        assert not step.outputs.requires_grad
    assert training.carried is state
    assert all(map(torch.equal, before, training.carried))
    assert all(map(torch.equal, weights, model.parameters()))
    assert [module.training for module in (model, *model)] == [True, True, False, True]


def test_dropout_is_on_in_training_and_off_in_validation():
    class Drop(Echo):
        def forward(self, inputs, state=None):
            return nn.functional.dropout(inputs * self.weight, 0.5, self.training), state

    model, x = Drop(), torch.ones(50, 2, 1, dtype=torch.float64)
    model.eval()
    step = rk.BPTTTrainingPhase()(model, SEQ, x, sgd(model))
    assert 0 < (step.outputs == 0).double().mean() < 1
    assert model.training
    assert not (rk.BPTTValidationPhase()(model, SEQ, x).outputs == 0).any()
    assert model.training


def test_validation_may_be_stateful():
    stream, model = data(101, 3), net()
    phase = rk.BPTTValidationPhase(stateful=True)
    outputs = torch.cat(
        [phase(model, SEQ, batch).outputs for batch in rk.StreamLoader(stream, 4, 7)]
    )
    rows = torch.stack([stream[i * 25 : (i + 1) * 25] for i in range(4)], 1)
    close([outputs], [rnn_of(model)(rows)[0].detach()])
    learner = rk.Learner(model, SEQ, sgd(model))
    whole = learner.epoch(phase, rk.StreamLoader(stream, 4, 7))["loss"]
    targets = torch.stack([stream[i * 25 + 1 : (i + 1) * 25 + 1] for i in range(4)], 1)
    close(
        [whole, learner.epoch(phase, rk.StreamLoader(stream, 4, 7))["loss"]],
        [MSE(outputs, targets)] * 2,
    )


def test_stateful_validation_goes_on_from_each_row_s_own_end():
    x, lengths, model = data(12, 3, 3), torch.tensor([7, 2, 5]), net()
    phase = rk.BPTTValidationPhase(stateful=True)
    phase(model, SEQ, (x[:7], x[:7], lengths))
    outputs = phase(model, SEQ, (x[7:], x[7:])).outputs
    for i, n in enumerate(lengths.tolist()):
        rest = torch.cat([x[:n, i : i + 1], x[7:, i : i + 1]])
        close([outputs[:, i]], [rnn_of(model)(rest)[0][n:, 0].detach()])


@pytest.mark.parametrize("part", ["feedback", "sampler"])
def test_the_state_of_a_phase_holds_the_generators_of_its_parts(part):
    def build(seed: int) -> rk.BPTTTrainingPhase:
        own = torch.Generator().manual_seed(seed)
        if part == "feedback":
            return rk.BPTTTrainingPhase(feedback=rk.Feedback.probability(0.5, generator=own))
        return rk.BPTTTrainingPhase(sampler=rk.SoftmaxSampler(generator=own))

    def draw(phase: rk.BPTTTrainingPhase) -> Tensor:
        return (
            phase.feedback.mask(40, 5) if part == "feedback" else phase.sampler(torch.zeros(100, 9))
        )

    one, two = build(1), build(2)
    draw(one)
    two.load_state_dict(one.state_dict())
    assert torch.equal(draw(one), draw(two))


# Closed loop


def by_hand(model, x, n, lengths=None):
    """Row by row and step by step: the last n inputs of a row are the outputs of the steps before."""
    outputs = torch.zeros_like(x)
    run = rnn_of(model)
    with torch.no_grad():
        for i in range(x.shape[1]):
            state, output = None, None
            end = len(x) if lengths is None else int(lengths[i])
            for t in range(end):
                output, state = run(x[t : t + 1, i : i + 1] if t < end - n else output, state)
                outputs[t, i] = output[0, 0]
    return outputs


def test_no_feedback_is_teacher_forcing():
    x, model = data(11, 4, 3), net()
    plain = rk.BPTTValidationPhase()(model, SEQ, x)
    assert plain.loss_by_step is None
    step = rk.BPTTValidationPhase(by_step=True)(model, SEQ, x)
    outputs = rnn_of(model)(x[:-1])[0].detach()
    assert torch.equal(step.outputs, outputs)
    assert torch.equal(plain.loss, MSE(outputs, x[1:]))
    close([step.loss], [plain.loss])  # that of all steps, put together
    assert torch.equal(step.open_loss, step.loss)
    assert step.closed_loss is None
    close([step.loss_by_step], [(outputs - x[1:]).square().mean((1, 2))])


@settings(max_examples=15, deadline=None)
@given(time=st.integers(2, 9), n=st.integers(1, 8), ragged=st.booleans(), kind=st.sampled_from([nn.LSTM, nn.GRU]),
       plain=st.booleans())  # fmt: skip
def test_a_closed_loop_equals_a_loop_written_by_hand(time, n, ragged, kind, plain):
    n = min(n, time - 1)
    x, y, model = data(time, 3, 3), data(time, 3, 3, seed=8), net(kind=kind)
    lengths = torch.tensor([time, n + 1, (time + n + 1) // 2]) if ragged else None
    loss = (lambda o, t, lengths=None: square(o, t, lengths)) if plain else SEQ
    step = rk.BPTTValidationPhase(nfeedback=n)(
        model, loss, (x, y) if lengths is None else (x, y, lengths)
    )
    outputs = by_hand(model, x, n, lengths)
    ends = [time] * 3 if lengths is None else lengths.tolist()
    errors = [(outputs[:e, i] - y[:e, i]).square().mean(1) for i, e in enumerate(ends)]
    for i, e in enumerate(ends):
        close([step.outputs[:e, i]], [outputs[:e, i]])
    close([step.loss], [torch.cat(errors).mean()])
    close([step.open_loss], [torch.cat([e[:-n] for e in errors]).mean()])
    close([step.closed_loss], [torch.cat([e[-n:] for e in errors]).mean()])
    total = sum(ends)
    close([step.loss], [(step.open_loss * (total - 3 * n) + step.closed_loss * 3 * n) / total])
    by_step = [torch.stack([e[t] for e in errors if len(e) > t]).mean() for t in range(time)]
    close([step.loss_by_step], [torch.stack(by_step)])
    each = 1 if plain else 3  # torch's mean divides by elements, a function of one's own by steps
    weights = {name: torch.as_tensor(weight / each) for name, (_, weight) in step.totals.items()}
    assert weights["loss"] == total
    assert weights["open_loss"] == total - 3 * n
    assert weights["closed_loss"] == 3 * n
    assert weights["loss_by_step"].tolist() == [sum(e > t for e in ends) for t in range(time)]


@pytest.mark.parametrize("n", [0, 3])
def test_a_closed_loop_with_one_target_a_sequence(n):
    x, y, model, lengths = data(9, 3, 3), data(3, 3, seed=8), net(), torch.tensor([9, 4, 6])
    step = rk.BPTTValidationPhase(nfeedback=n)(model, LAST, (x, y, lengths))
    outputs = by_hand(model, x, n, lengths)
    expected = torch.stack(
        [(outputs[e - 1, i] - y[i]).square().mean() for i, e in enumerate(lengths.tolist())]
    ).mean()
    close([step.loss], [expected])
    assert step.loss_by_step is None
    assert (step.open_loss is None, step.closed_loss is None) == (n > 0, n == 0)


def test_a_model_that_memorized_the_sequence_has_equal_open_and_closed_loss():
    torch.manual_seed(0)
    tokens = torch.tensor([0, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]).unsqueeze(1)
    model = rk.RecurrentSequential(nn.Embedding(10, 8), nn.LSTM(8, 32), nn.Linear(32, 10))
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    phase = rk.BPTTTrainingPhase()
    validation = rk.BPTTValidationPhase(nfeedback=8, sampler=rk.sample_best)
    before = validation(model, loss, tokens)
    for _ in range(250):
        phase(model, loss, tokens, optimizer)
    after = validation(model, loss, tokens)
    forced = rk.BPTTValidationPhase(by_step=True)(model, loss, tokens)
    assert before.closed_loss > 1
    assert after.closed_loss < 0.01
    torch.testing.assert_close(after.loss, forced.loss)
    torch.testing.assert_close(after.closed_loss, forced.loss_by_step[-8:].mean())
    torch.testing.assert_close(after.closed_loss, after.open_loss, atol=0.01, rtol=0)


# Feedback in training


@pytest.mark.parametrize("n", [2, 9])
def test_training_with_feedback_equals_a_loop_written_by_hand(n):
    x = data(11, 2, 3)
    (grads,), step, _ = trained(rk.BPTTTrainingPhase(feedback=rk.Feedback.last(n)), x)
    model = net()
    run = rnn_of(model)
    state, outputs = None, []
    for t in range(10):
        output, state = run(x[t : t + 1] if t < 10 - n else outputs[-1], state)
        outputs.append(output)
    MSE(torch.cat(outputs), x[1:]).backward()
    close(grads, (p.grad for p in model.parameters()))
    close([step.outputs], [torch.cat(outputs).detach()])


@pytest.mark.parametrize(
    "options",
    [{"window": 3}, {"window": 5, "stride": 2}, {"window": 7, "stride": 3}, {"window": 1}],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_feedback_goes_on_over_the_borders_of_windows(options, ragged):
    x, lengths = data(11, 3, 3), torch.tensor([10, 4, 7])
    batch = (x[:-1], x[1:], lengths) if ragged else x
    outputs = []
    for extra in ({}, options):
        model = net()
        phase = rk.BPTTTrainingPhase(feedback=rk.Feedback.every(2, forced=True), **extra)
        outputs.append(phase(model, SEQ, batch, sgd(model, 0.0)).outputs)
    for i, n in enumerate(lengths.tolist() if ragged else [10] * 3):
        close([outputs[0][:n, i]], [outputs[1][:n, i]])
    driven = rnn_of(net())(x[:-1])[0]
    assert not torch.allclose(outputs[0], driven)


@pytest.mark.parametrize("ragged", [False, True])
def test_seq2one_feedback_goes_on_over_the_border_of_the_last_window(ragged):
    x, y, lengths = data(10, 3, 3), data(3, 3, seed=8), torch.tensor([10, 4, 7])
    batch = (x, y, lengths) if ragged else (x, y)
    steps = [
        trained(
            rk.BPTTTrainingPhase(window=window, feedback=rk.Feedback.every(2, forced=True)),
            batch,
            LAST,
        )[1]
        for window in (None, 3, 4)
    ]
    close([steps[1].loss, steps[2].loss], [steps[0].loss] * 2)
    for i, n in enumerate(lengths.tolist() if ragged else [10] * 3):
        close([steps[1].outputs[:n, i]], [steps[0].outputs[:n, i]])


def test_the_gradient_through_feedback_is_that_of_finite_differences():
    x, phase = data(7, 2, 3), rk.BPTTTrainingPhase(feedback=rk.Feedback.every(3, forced=True))
    (grads,), _, _ = trained(phase, x)

    def loss_at(direction: list[Tensor], size: float) -> float:
        model = net()
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(d, alpha=size)
        return phase(model, SEQ, x, sgd(model, 0.0)).loss.item()

    for seed in range(4):
        direction = [data(*g.shape, seed=seed) for g in grads]
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item()
        assert (loss_at(direction, 1e-5) - loss_at(direction, -1e-5)) / 2e-5 == pytest.approx(
            slope, rel=1e-5, abs=1e-8
        )


def test_a_schedule_counts_the_steps_of_its_phase():
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.0 if step < 3 else 1.0

    x, model = data(9, 2, 3), net()
    phase = rk.BPTTTrainingPhase(window=4, feedback=rk.Feedback.probability(schedule))
    learner = rk.Learner(model, SEQ, sgd(model, 0.0))
    outputs = []
    for _ in range(2):  # epochs, validation between them and windows within a step do not count
        learner.epoch(phase, [x])
        outputs.append(learner.state.outputs)
        learner.epoch(rk.BPTTValidationPhase(), [x])
        outputs.append(phase(model, SEQ, x, sgd(model, 0.0)).outputs)
    assert asked == [0, 1, 2, 3]
    assert phase.steps == 4
    close(outputs, [rnn_of(model)(x[:-1])[0].detach()] * 3 + [by_hand(model, x[:-1], 7)])


@pytest.mark.parametrize(
    "train",
    [
        lambda learner, phase, batch: learner.fit(1, [batch], training=phase),
        lambda learner, phase, batch: learner.epoch(phase, [batch]),
        lambda learner, phase, batch: learner.step(phase, batch),
    ],
)
def test_a_schedule_begins_anew_with_another_learner_and_goes_on_with_the_same(train):
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.0

    phase = rk.BPTTTrainingPhase(feedback=rk.Feedback.probability(schedule))
    for _ in range(2):
        model = net()
        learner = rk.Learner(model, SEQ, sgd(model, 0.0))
        for _ in range(2):
            train(learner, phase, data(9, 2, 3))
    assert asked == [0, 1, 0, 1]


# Forms of a batch


def forms() -> list:
    x, ragged, short = data(6, 2, 3), torch.tensor([5, 3]), torch.tensor([4, 2])
    return [
        ("one sequence", x, None),
        ("a list of steps", list(x), None),
        ("a pair", (x[:-1], x[1:]), None),
        ("a pair of lists", (list(x[:-1]), list(x[1:])), None),
        ("three", (x[:-1], x[1:], ragged), ragged),
        ("a SequenceBatch", rk.SequenceBatch(x[:-1], x[1:]), None),
        ("a SequenceBatch with lengths", rk.SequenceBatch(x[:-1], x[1:], ragged), ragged),
        ("a SequenceBatch of one sequence", rk.SequenceBatch(x), None),
        ("one sequence with lengths", rk.SequenceBatch(x, lengths=short + 1), short),
    ]


@pytest.mark.parametrize(
    ("name", "batch", "lengths"), forms(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_form_of_a_batch(name, batch, lengths):
    x, model = data(6, 2, 3), net()
    expected = square(rnn_of(model)(x[:-1])[0], x[1:], lengths).detach()
    training = rk.BPTTTrainingPhase()(model, SEQ, batch, sgd(model, 0.0))
    validation = rk.BPTTValidationPhase()(model, SEQ, batch)
    close([training.loss, validation.loss], [expected] * 2)
    assert training.weight == validation.weight == (10 if lengths is None else int(lengths.sum()))


@pytest.mark.parametrize("attention", [False, True])
def test_an_encoder_decoder_trains_through_the_phase(attention):
    def build() -> rk.EncoderDecoder:
        torch.manual_seed(2)
        decoder = (
            nn.GRU(3, 5) if attention else rk.RecurrentSequential(nn.GRU(3, 5), nn.Linear(5, 4))
        )
        bridge = None if attention else (lambda state: (state,))
        return rk.EncoderDecoder(
            nn.GRU(2, 5), decoder, rk.Attention(5, 4) if attention else None, bridge
        ).double()

    source, inputs, targets = data(7, 2, 2), data(5, 2, 3), data(5, 2, 4, seed=8)
    source_lengths, lengths = torch.tensor([7, 4]), torch.tensor([3, 5])
    model = build().eval()  # a step of training is in training mode from the encoder on
    learner = rk.Learner(model, SEQ, sgd(model))
    step = learner.step(
        rk.BPTTTrainingPhase(), ((source, source_lengths, inputs), targets, lengths)
    )
    other = build()
    optimizer = sgd(other)
    memory, _ = other.encoder(source)
    first = torch.stack([memory[6, 0], memory[3, 1]]).unsqueeze(0)
    if attention:
        memory = torch.stack(
            [memory[:, 0], torch.cat([memory[:4, 1], torch.zeros(3, 5).double()])], 1
        )
        hidden, _ = other.decoder(inputs, first)
        outputs = other.attention(
            hidden, memory, torch.tensor([[True] * 7, [True] * 4 + [False] * 3]).T
        )
    else:
        outputs, _ = other.decoder(inputs, (first,))
    loss = square(outputs, targets, lengths)
    loss.backward()
    optimizer.step()
    close([step.loss], [loss.detach()])
    close(model.parameters(), other.parameters())
    validation = learner.step(
        rk.BPTTValidationPhase(), ((source, source_lengths, inputs), targets, lengths)
    )
    assert validation.loss < step.loss


def test_an_encoder_is_in_the_mode_of_its_phase():
    modes: list[bool] = []

    class Encoder(nn.GRU):
        def forward(self, *args):
            modes.append(self.training)
            return super().forward(*args)

    model = rk.EncoderDecoder(Encoder(2, 3), nn.GRU(3, 3)).double()
    batch = (data(4, 2, 2), None, data(5, 2, 3)), data(5, 2, 3)
    model.eval()
    rk.BPTTTrainingPhase()(model, SEQ, batch, sgd(model))
    rk.BPTTValidationPhase()(model, SEQ, batch)
    assert modes == [True, False]


# What is refused


def refused(text: str, call, error=ValueError) -> None:
    with pytest.raises(error) as info:
        call()
    assert str(info.value) == text


def test_windows_that_make_no_sense_are_refused():
    refused("BPTTTrainingPhase: got window = 0; wanted window >= 1. Likely fix: window=None is full BPTT.",
            lambda: rk.BPTTTrainingPhase(window=0))  # fmt: skip
    refused("BPTTTrainingPhase: got stride = -1; wanted stride >= 1. Likely fix: None makes it equal to window.",
            lambda: rk.BPTTTrainingPhase(window=4, stride=-1))  # fmt: skip
    fix = (
        "Likely fix: window = k2 is how far a gradient goes back, stride = k1 how often; k1 <= k2."
    )
    refused(f"BPTTTrainingPhase: got stride = 5 and window = 3; wanted stride <= window. {fix}",
            lambda: rk.BPTTTrainingPhase(window=3, stride=5))  # fmt: skip
    refused(f"BPTTTrainingPhase: got stride = 5 and window = None; wanted stride <= window. {fix}",
            lambda: rk.BPTTTrainingPhase(stride=5))  # fmt: skip


def test_a_closed_loop_needs_a_driven_step():
    refused("BPTTValidationPhase: got nfeedback = -1; wanted nfeedback >= 0. Likely fix: 0 validates with teacher "
            "forcing.", lambda: rk.BPTTValidationPhase(nfeedback=-1))  # fmt: skip
    fix = "Likely fix: the first step must be driven: nfeedback is at most T - 1."
    x, model = data(6, 2, 3), net()
    rk.BPTTValidationPhase(nfeedback=4)(model, SEQ, x)
    for n in (5, 6):
        refused(f"BPTTValidationPhase: got nfeedback = {n} and a sequence of 5 steps; wanted nfeedback < T. {fix}",
                lambda n=n: rk.BPTTValidationPhase(nfeedback=n)(model, SEQ, x))  # fmt: skip
    refused(f"BPTTValidationPhase: got nfeedback = 3 and a sequence of 3 steps; wanted nfeedback < T. {fix}",
            lambda: rk.BPTTValidationPhase(nfeedback=3)(model, SEQ, (x, x, torch.tensor([6, 3]))))  # fmt: skip


def test_a_sampler_that_does_not_fit_is_refused_with_both_shapes():
    x, y, model = (
        data(6, 2, 3),
        data(6, 2, 4),
        rk.RecurrentSequential(nn.GRU(3, 5), nn.Linear(5, 4)).double(),
    )
    text = (
        "{}: got (2, 4) of torch.float64 from the sampler, for outputs (2, 4); wanted the model's next input, "
        "(2, 3) of torch.float64. Likely fix: with_covariates(sampler, n) feeds the first n features and keeps the "
        "others; DistributionSampler draws from what the outputs parametrize."
    )
    refused(
        text.format("BPTTValidationPhase"),
        lambda: rk.BPTTValidationPhase(nfeedback=2)(model, SEQ, (x, y)),
    )
    phase = rk.BPTTTrainingPhase(feedback=rk.Feedback.always())
    refused(text.format("BPTTTrainingPhase"), lambda: phase(model, SEQ, (x, y), sgd(model)))


def test_a_loss_must_be_a_scalar_that_depends_on_the_parameters():
    x, model = data(6, 2, 3), net()
    fix = "Likely fix: average it: seq2seq_loss takes an unreduced loss and does."
    for loss, came in [
        (lambda o, t: (o - t).square(), "(5, 2, 3)"),
        (lambda o, t: (o - t).square().mean().view(1), "(1,)"),
        (lambda o, t: (o - t).square().mean().item(), "a float"),
    ]:
        for phase in (rk.BPTTTrainingPhase(), rk.BPTTValidationPhase()):
            name = type(phase).__name__
            refused(f"{name}: got a loss {came}; wanted a scalar tensor, or a pair (sum, weight). {fix}",
                    lambda phase=phase, loss=loss: phase(model, loss, x, sgd(model)))  # fmt: skip
    text = (
        "BPTTTrainingPhase: got a loss without gradient; wanted one that depends on the parameters. Likely fix: "
        "compute it from the outputs, without .detach(), .item() or torch.no_grad()."
    )
    before = copied(model)
    refused(text, lambda: rk.BPTTTrainingPhase()(model, lambda o, t: t.mean(), x, sgd(model)))
    with torch.no_grad():
        refused(text, lambda: rk.BPTTTrainingPhase()(model, SEQ, x, sgd(model)))
    assert all(map(torch.equal, before, model.parameters()))


def test_a_carried_state_of_another_batch_size_is_refused():
    text = (
        "{}: got a state leaf (1, 2, 5) for a batch of 3; wanted (layers, 3, *F). Likely fix: "
        "StreamLoader and DataLoader(drop_last=True) keep the batch size; phase.reset() starts afresh."
    )
    model = net()
    for phase in (rk.BPTTTrainingPhase(stateful=True), rk.BPTTValidationPhase(stateful=True)):
        phase(model, SEQ, data(6, 2, 3), sgd(model))
        refused(
            text.format(type(phase).__name__),
            lambda phase=phase: phase(model, SEQ, data(6, 3, 3), sgd(model)),
        )
        phase.reset()
        phase(model, SEQ, data(6, 3, 3), sgd(model))


def test_a_bidirectional_model_is_refused_where_time_is_cut():
    model, x = net(bidirectional=True), data(6, 2, 3)
    fix = "Likely fix: window=None, or a one-directional model."
    wanted = "wanted a model whose state goes on forward only."
    for options, stride in [
        ({"window": 3}, 3),
        ({"window": 3, "stride": 2}, 2),
        ({"window": 50, "stride": 2}, 2),
    ]:
        text = f"BPTTTrainingPhase: got a bidirectional model and stride = {stride} for 5 steps; {wanted} {fix}"
        refused(
            text, lambda options=options: rk.BPTTTrainingPhase(**options)(model, SEQ, x, sgd(model))
        )
    for phase in (rk.BPTTTrainingPhase(stateful=True), rk.BPTTValidationPhase(stateful=True)):
        refused(f"{type(phase).__name__}: got a bidirectional model, stateful; wanted a state that goes on. Likely "
                "fix: make the model one-directional, or stateful=False.",
                lambda phase=phase: phase(model, SEQ, x, sgd(model)))  # fmt: skip
    for phase in (
        rk.BPTTTrainingPhase(feedback=rk.Feedback.last(2)),
        rk.BPTTValidationPhase(nfeedback=2),
    ):
        refused(f"{type(phase).__name__}: got a bidirectional model; wanted one that can be stepped: it reads the "
                "future. Likely fix: make it one-directional; where nothing is generated, Feedback.never(); declare "
                "bidirectional = False where only its encode reads both ways.",
                lambda phase=phase: phase(model, SEQ, x, sgd(model)))  # fmt: skip
    for phase in (rk.BPTTTrainingPhase(), rk.BPTTTrainingPhase(window=5)):
        phase(model, SEQ, x, sgd(model))


def test_one_target_a_sequence_is_cut_by_the_window_alone():
    """A stride has nothing to cut there: a bidirectional model whose window holds all is trained."""
    models = []
    for options in ({}, {"window": 50, "stride": 2}):
        model = net(bidirectional=True)
        loss = rk.seq2one_loss(MSE, "mean")
        batch = (data(6, 2, 3), data(2, 3, seed=1))
        rk.BPTTTrainingPhase(**options)(model, loss, batch, sgd(model))
        models.append(model)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_whole_numbers_of_numpy_are_whole_numbers():
    found = []
    for kind in (int, np.int64, np.uint8):
        model = net()
        loss = rk.seq2seq_loss(MSE, warmup=kind(1))
        training = rk.BPTTTrainingPhase(kind(3), kind(2), accumulate=kind(1))
        found.append(training(model, loss, data(7, 2, 3), sgd(model)).loss)
        sampler = rk.with_covariates(lambda y: y[:, :2], kind(2))
        closed = rk.BPTTValidationPhase(kind(2), sampler)
        found.append(closed(model, loss, data(7, 2, 3)).closed_loss)
    assert found[0] == found[2] == found[4]
    assert found[1] == found[3] == found[5]
    refused("BPTTTrainingPhase: got window = np.True_; wanted a whole number, window >= 1. "
            "Likely fix: window=None is full BPTT.",
            lambda: rk.BPTTTrainingPhase(np.True_), TypeError)  # fmt: skip


def test_a_source_and_a_carried_state_are_refused():
    model = rk.EncoderDecoder(nn.GRU(2, 3), nn.GRU(3, 3)).double()
    batch = (data(4, 2, 2), None, data(5, 2, 3)), data(5, 2, 3)
    for phase in (rk.BPTTTrainingPhase(stateful=True), rk.BPTTValidationPhase(stateful=True)):
        refused(f"{type(phase).__name__}: got a source in the batch, stateful; wanted one place that the first state "
                "comes from. Likely fix: stateful=False: each batch starts from its own source.",
                lambda phase=phase: phase(model, SEQ, batch, sgd(model)))  # fmt: skip


def test_inputs_and_targets_must_match():
    model, x = net(), data(6, 2, 3)
    fix = "Likely fix: one target for each step and row; one target for a whole sequence is seq2one_loss."
    for phase in (rk.BPTTTrainingPhase(), rk.BPTTValidationPhase()):
        call = type(phase).__name__
        for targets, came in [
            (data(5, 2, 3), "(5, 2, 3)"),
            (data(6, 1, 3), "(6, 1, 3)"),
            (data(2, 3), "(2, 3)"),
        ]:
            text = f"{call}: got inputs (6, 2, 3) and targets {came}; wanted the same T and B for both. {fix}"
            refused(
                text,
                lambda phase=phase, targets=targets: phase(model, SEQ, (x, targets), sgd(model)),
            )
        with pytest.raises(
            ValueError, match=r"lengths from 1 to 7; wanted lengths from 1 to T = 6"
        ):
            phase(model, SEQ, (x, x, torch.tensor([1, 7])), sgd(model))
        with pytest.raises(TypeError, match=r"SequenceBatch.of: got a str"):
            phase(model, SEQ, "text", sgd(model))


def test_a_plain_loop_is_checked_like_a_learner():
    x = data(6, 2, 3)
    with pytest.raises(ValueError, match=r"BPTTTrainingPhase: got GRU\(batch_first=True\)"):
        rk.BPTTTrainingPhase()(nn.GRU(3, 3, batch_first=True).double(), SEQ, x, None)
    refused("BPTTTrainingPhase: got no optimizer; wanted one over the model's parameters. Likely fix: phase(model, "
            "loss, batch, optimizer); BPTTValidationPhase needs none.",
            lambda: rk.BPTTTrainingPhase()(net(), SEQ, x))  # fmt: skip


def test_an_optimizer_that_empties_gradients_in_its_own_way_is_asked_to():
    class Counting(torch.optim.SGD):
        emptied = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.emptied += 1
            super().zero_grad(set_to_none)

    model = nn.GRU(1, 1)
    optimizer = Counting(model.parameters(), 0.1)
    rk.BPTTTrainingPhase(window=5)(
        model, rk.seq2seq_loss(nn.MSELoss()), torch.ones(11, 2, 1), optimizer
    )
    assert optimizer.emptied == 2  # once a window


def test_a_gradient_of_before_does_not_count():
    model = nn.GRU(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    phase = rk.BPTTTrainingPhase()
    for _ in range(2):
        phase(model, rk.seq2seq_loss(nn.MSELoss()), torch.ones(11, 2, 1), optimizer)
    twice = [parameter.grad.clone() for parameter in model.parameters()]
    outputs, _ = model(torch.ones(10, 2, 1))
    once = torch.autograd.grad((outputs - 1).square().mean(), list(model.parameters()))
    torch.testing.assert_close(twice, list(once))


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"accumulate": 2}])
def test_an_optimizer_of_another_model_is_refused(options):
    phase = rk.BPTTTrainingPhase(**options)
    optimizer = sgd(nn.GRU(1, 1))

    def train():
        phase(nn.GRU(1, 1), SEQ, torch.ones(11, 2, 1), optimizer)
        phase.flush(optimizer)

    with pytest.raises(ValueError, match="BPTTTrainingPhase: got an optimizer that no gradient"):
        train()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged, torch.sparse_coo])
def test_a_nested_or_sparse_batch_is_refused(layout):
    x = torch.randn(4, 2, 3)
    if layout is torch.sparse_coo:
        batch = x.to_sparse()
    else:
        batch = torch.nested.nested_tensor([x[:, 0], x[:3, 1]], layout=layout)
    model = nn.LSTM(3, 3)
    learner = rk.Learner(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    text = "got inputs = a nested or sparse tensor; wanted a dense tensor"
    with pytest.raises(TypeError, match=text):
        learner.step(rk.BPTTTrainingPhase(), (batch, x))


@pytest.mark.parametrize(
    "phase",
    [
        rk.BPTTTrainingPhase(),
        rk.BPTTTrainingPhase(window=3),
        rk.BPTTTrainingPhase(window=4, stride=2),
        rk.BPTTTrainingPhase(window=3, feedback=rk.Feedback.every(2)),
        rk.BPTTValidationPhase(nfeedback=2),
    ],
)
def test_a_model_that_writes_to_its_inputs_leaves_the_targets_that_share_their_memory(phase):
    class Scaled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs, state=None):
            return self.model((inputs - 1) * 2, state)

    found = []
    for kind in (Scaling, Scaled):
        sequence = data(9, 4, 3)
        model = kind(net())
        _, step, _ = trained(phase, rk.get_inout_seq(sequence), model=model)
        assert torch.equal(sequence, data(9, 4, 3))
        found.append([step.loss, *copied(model)])
    close(*found)


def test_a_window_that_is_changed_between_two_epochs_is_that_of_a_phase_made_with_it():
    changed = rk.BPTTTrainingPhase(2)
    weights = []
    for phase in (changed, rk.BPTTTrainingPhase(4)):
        model = net()
        changed.window = 4
        phase(model, SEQ, data(9, 2, 3), sgd(model))
        weights.append(copied(model))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_window_that_becomes_shorter_than_the_stride_is_refused():
    model = net()
    phase = rk.BPTTTrainingPhase(6, 3)
    phase.window = 2
    with pytest.raises(ValueError, match="stride = 3 and window = 2; wanted stride <= window"):
        phase(model, SEQ, data(9, 2, 3), sgd(model))


class Own:
    """An optimizer of one's own: no class of PyTorch's, its gradients become zeros."""

    def __init__(self, parameters, rate: float = 0.1) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.rate = rate

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.rate * parameter.grad


class HandsOn:
    """What is around another optimizer, and hands on all that it is asked for."""

    def __init__(self, parameters) -> None:
        self.__dict__["inner"] = torch.optim.SGD(parameters, 0.1)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


@pytest.mark.parametrize("kind", [Own, HandsOn])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_an_optimizer_of_ones_own_makes_the_updates_of_pytorchs(kind, accumulate):
    batches = list(data(5, 7, 2, 3))
    weights = []
    for made in (kind, sgd):
        model = net()
        optimizer = made(model if made is sgd else list(model.parameters()))
        learner = rk.Learner(model, SEQ, optimizer)
        learner.fit(2, batches, training=rk.BPTTTrainingPhase(accumulate=accumulate))
        weights.append(copied(model))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)


def test_a_group_that_is_added_between_two_held_batches_is_updated_from_then_on():
    first, second = data(2, 7, 2, 3)
    model = net()
    wanted = copy.deepcopy(model)
    late = list(model[0].parameters())
    optimizer = sgd(model[1])
    phase = rk.BPTTTrainingPhase(accumulate=2)
    phase(model, SEQ, first, optimizer)
    optimizer.add_param_group({"params": late})
    phase(model, SEQ, second, optimizer)

    optimizer = sgd(wanted)
    for batch in (first, second):
        wanted[0].zero_grad()  # of the first batch it has none
        (SEQ.on(wanted, batch[:-1], batch[1:]) / 2).backward()
    optimizer.step()
    torch.testing.assert_close(copied(model), copied(wanted), rtol=0, atol=1e-12)


def test_a_group_that_is_added_before_the_last_update_is_not_in_it():
    model = net()
    optimizer = sgd(model[1])
    phase = rk.BPTTTrainingPhase(accumulate=2)
    phase(model, SEQ, data(7, 2, 3), optimizer)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    before = copied(model[0])
    phase.flush(optimizer)
    torch.testing.assert_close(copied(model[0]), before, rtol=0, atol=0)
