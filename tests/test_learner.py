"""The Learner: epoch averages, the same training as a plain loop, devices, precision and modes."""

import copy
import operator
import random

import numpy as np
import pytest
import torch
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rnnkit as rk

MSE = nn.MSELoss()
SEQ = rk.seq2seq_loss(MSE)


def net(seed: int = 1, dropout: float = 0.0) -> rk.RecurrentSequential:
    torch.manual_seed(seed)
    return rk.RecurrentSequential(nn.LSTM(3, 5), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def data(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner_of(
    model: nn.Module | None = None, loss=SEQ, rate: float = 0.1, **options
) -> rk.Learner:
    model = net() if model is None else model
    return rk.Learner(model, loss, torch.optim.SGD(model.parameters(), rate), **options)


def errors(outputs: Tensor, y: Tensor, lengths: Tensor) -> list[Tensor]:
    """One tensor of squared errors a row, `(length,)`."""
    return [(outputs[:n, i] - y[:n, i]).square().mean(1) for i, n in enumerate(lengths.tolist())]


batches = st.lists(
    st.tuples(st.integers(3, 7), st.integers(1, 3), st.booleans()), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None)
@given(shapes=batches, average=st.sampled_from(["step", "sequence"]), n=st.integers(0, 2))
def test_epoch_averages_weigh_every_batch_by_what_it_averaged(shapes, average, n):
    loader, every, open_part, closed_part, rows, steps = [], [], [], [], [], {}
    model = net()
    for seed, (time, batch, ragged) in enumerate(shapes):
        x, y = data(time, batch, 3, seed=seed), data(time, batch, 3, seed=seed + 50)
        lengths = torch.full((batch,), time)
        if ragged and batch > 1:
            lengths[1] = 3
        loader.append((x, y, lengths) if ragged else (x, y))
        phase = rk.BPTTValidationPhase(nfeedback=n)
        outputs = phase(model, SEQ, loader[-1]).outputs
        for error in errors(outputs, y, lengths):
            every.append(error)
            rows.append(error.mean())
            open_part.append(error[: len(error) - n])
            closed_part.append(error[len(error) - n :])
            for t, one in enumerate(error):
                steps.setdefault(t, []).append(
                    (one, 1 / len(error) if average == "sequence" else 1)
                )
    loss = rk.seq2seq_loss(MSE, average)
    learner = learner_of(model, loss)
    averages = learner.epoch(rk.BPTTValidationPhase(nfeedback=n), loader)
    by_step = torch.stack(
        [
            sum(one * w for one, w in steps[t]) / sum(w for _, w in steps[t])
            for t in range(len(steps))
        ]
    )
    if n:
        torch.testing.assert_close(averages["loss_by_step"], by_step)
    if average == "sequence":
        torch.testing.assert_close(averages["loss"], torch.stack(rows).mean())
        return
    torch.testing.assert_close(averages["loss"], torch.cat(every).mean())
    torch.testing.assert_close(averages["open_loss"], torch.cat(open_part).mean())
    assert ("closed_loss" in averages) == (n > 0)
    if n:
        torch.testing.assert_close(averages["closed_loss"], torch.cat(closed_part).mean())
    training = learner_of(model, loss, rate=0.0).epoch(rk.BPTTTrainingPhase(window=2), loader)
    outputs = [errors(model(b[0])[0].detach(), b[1], b[2] if len(b) > 2 else torch.full((b[0].shape[1],), len(b[0])))
               for b in loader]  # fmt: skip
    torch.testing.assert_close(
        training["loss"], torch.cat([e for batch in outputs for e in batch]).mean()
    )


def test_an_average_over_a_long_epoch_is_exact_in_half_precision():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

        def forward(self, inputs, state=None):
            return inputs + self.weight, state

    learner = learner_of(Half(), lambda outputs, targets: (outputs - targets).mean(), rate=0.0)
    batch = (
        torch.ones(5, 300, 1, dtype=torch.bfloat16),
        torch.zeros(5, 300, 1, dtype=torch.bfloat16),
    )
    assert learner.epoch(rk.BPTTTrainingPhase(), [batch] * 300)["loss"].item() == 1.0


class Clip:
    def on_backward_end(self, learner):
        nn.utils.clip_grad_norm_(learner.parameters, 0.1)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"stateful": True}])
def test_a_plain_loop_equals_the_learner_bitwise(options):
    loader = list(rk.StreamLoader(data(61, 3), 3, 6))

    def optimizer_of(model):
        return torch.optim.Adam(model.parameters(), 0.01)

    one, two, three = net(dropout=0.3), net(dropout=0.3), net(dropout=0.3)
    torch.manual_seed(5)
    phase, optimizer = rk.BPTTTrainingPhase(**options), optimizer_of(one)
    losses = []
    for _ in range(2):
        phase.reset()
        losses += [phase(one, SEQ, batch, optimizer).loss for batch in loader]
    torch.manual_seed(5)
    learner = rk.Learner(two, SEQ, optimizer_of(two))
    learner.fit(2, loader, training=rk.BPTTTrainingPhase(**options))
    torch.manual_seed(5)
    learner = rk.Learner(three, SEQ, optimizer_of(three), [rk.History()])
    phase, seen = rk.BPTTTrainingPhase(**options), []
    for _ in range(2):
        phase.reset()
        seen += [learner.step(phase, batch).loss for batch in loader]
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert all(map(torch.equal, one.parameters(), three.parameters()))
    assert torch.equal(torch.stack(losses), torch.stack(seen))


def test_the_learner_equals_a_loop_in_plain_pytorch_bitwise():
    loader = [data(9, 3, 3, seed=seed) for seed in range(4)]
    learner = learner_of(callbacks=[Clip()])
    learner.fit(2, loader)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        for x in loader:
            hidden, _ = model[0](x[:-1])
            loss = MSE(model[2](hidden), x[1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    assert all(map(torch.equal, learner.parameters, model.parameters()))
    assert torch.equal(learner.state.loss, loss.detach())


def test_a_step_gives_its_state_and_keeps_it():
    learner, x = learner_of(), data(6, 2, 3)
    step = learner.step(rk.BPTTTrainingPhase(), x)
    assert step is learner.state
    assert torch.equal(step.inputs, x[:-1])
    assert torch.equal(step.targets, x[1:])
    assert step.lengths is None
    assert (step.outputs.requires_grad, step.loss.requires_grad, step.loss.shape) == (
        False,
        False,
        (),
    )
    assert (step.weight, step.open_loss, step.closed_loss, step.loss_by_step) == (
        10,
        None,
        None,
        None,
    )
    assert learner.step_index == 1
    validation = learner.step(rk.BPTTValidationPhase(nfeedback=2), x)
    assert validation is learner.state
    assert learner.step_index == 1
    assert validation.loss_by_step.shape == (5,)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_model_and_batches_are_moved_to_the_device(device):
    seen = []

    class Spy(nn.GRU):
        def forward(self, inputs, state=None):
            seen.append(inputs.device.type)
            return super().forward(inputs, state)

    learner = learner_of(Spy(3, 3), device=device)
    x = torch.randn(6, 2, 3)
    for batch in (
        x,
        list(x),
        (x, x),
        (list(x), list(x)),
        (x, x, torch.tensor([6, 3])),
        rk.SequenceBatch(x),
    ):
        if device == "meta" and isinstance(batch, tuple) and len(batch) == 3:
            continue  # picking valid steps needs numbers, which meta tensors do not have
        step = learner.step(rk.BPTTTrainingPhase(), batch)
        assert (step.inputs.device.type, step.targets.device.type, step.outputs.device.type) == (
            device,
        ) * 3
    assert set(seen) == {device}
    assert {p.device.type for p in learner.parameters} == {device}
    assert all(map(operator.is_, learner.optimizer.param_groups[0]["params"], learner.parameters))


def test_the_parts_of_an_encoder_decoder_are_moved():
    model = rk.EncoderDecoder(nn.GRU(2, 4), nn.GRU(3, 4))
    learner = learner_of(model, device="meta")
    batch = (torch.randn(5, 2, 2), None, torch.randn(4, 2, 3)), torch.randn(4, 2, 4)
    step = learner.step(rk.BPTTTrainingPhase(), batch)
    assert (step.inputs.device.type, step.outputs.device.type, step.loss.device.type) == (
        "meta",
    ) * 3


def test_autocast_computes_in_bfloat16_and_keeps_weights_in_float32():
    torch.manual_seed(0)
    x, seen = torch.randn(8, 4, 3), []

    class Spy(nn.Linear):
        def forward(self, inputs):
            seen.append((torch.is_autocast_enabled("cpu"), super().forward(inputs).dtype))
            return super().forward(inputs)

    def build():
        torch.manual_seed(3)
        return rk.RecurrentSequential(nn.LSTM(3, 5), Spy(5, 3))

    plain, mixed = learner_of(build()), learner_of(build(), autocast=torch.bfloat16)
    for learner in (plain, mixed):
        learner.fit(1, [x], [x])
    assert seen == [(False, torch.float32)] * 2 + [(True, torch.bfloat16)] * 2
    assert mixed.state.outputs.dtype == torch.bfloat16
    assert {p.dtype for p in mixed.parameters} == {torch.float32}
    assert mixed.state.loss.item() == pytest.approx(plain.state.loss.item(), rel=0.03)
    assert mixed.state.loss.item() != plain.state.loss.item()


def test_the_encoder_runs_under_autocast_too():
    seen = []

    class Spy(nn.GRU):
        def forward(self, *args):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(*args)

    learner = learner_of(rk.EncoderDecoder(Spy(2, 4), nn.GRU(3, 4)), autocast=torch.bfloat16)
    batch = (torch.randn(5, 2, 2), None, torch.randn(4, 2, 3)), torch.randn(4, 2, 4)
    learner.step(rk.BPTTTrainingPhase(), batch)
    learner.step(rk.BPTTValidationPhase(), batch)
    assert seen == [True, True]


def test_the_loss_runs_under_autocast_too():
    seen = []

    def loss(outputs, targets):
        seen.append(torch.is_autocast_enabled("cpu"))
        return MSE(outputs, targets)

    learner, x = learner_of(net().float(), loss, autocast=torch.bfloat16), torch.randn(8, 4, 3)
    for phase in (rk.BPTTTrainingPhase(), rk.BPTTTrainingPhase(window=4), rk.BPTTValidationPhase()):
        learner.step(phase, x)
    assert len(seen) > 3
    assert all(seen)


def test_another_dtype_is_refused():
    with pytest.raises(TypeError) as info:
        learner_of(autocast=torch.float64)
    assert str(info.value) == (
        "Learner: got autocast = torch.float64; wanted torch.bfloat16, torch.float16 or None. Likely fix: None "
        "computes in the dtype of the weights."
    )


def in_float16():
    """A model that a CPU can train in float16, and batches of different lengths."""
    torch.manual_seed(3)
    model = rk.RecurrentSequential(nn.GRU(3, 5), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(1)
    return model, [torch.randn(n, 4, 3, generator=generator) for n in (8, 5, 9)]


@pytest.mark.parametrize("window", [None, 3])
def test_float16_trains_as_a_loop_with_a_scaler(window):
    model, batches = in_float16()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for batch in batches:
        inputs, targets = batch[:-1], batch[1:]
        state = None
        for start in range(0, len(inputs), window or len(inputs)):
            here = slice(start, start + (window or len(inputs)))
            with torch.autocast("cpu", torch.float16):
                outputs, state = model(inputs[here], state)
                loss = nn.functional.mse_loss(outputs, targets[here])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            state = rk.detach(state)
            losses.append(loss.item())

    other, batches = in_float16()
    learner = rk.Learner(
        other,
        SEQ,
        torch.optim.Adam(other.parameters(), 0.01),
        [rk.ClipGradients(0.1)],
        autocast=torch.float16,
    )
    for batch in batches:
        learner.step(rk.BPTTTrainingPhase(window), batch)
    assert learner.scaler.state_dict() == scaler.state_dict()
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


def test_accumulated_gradients_in_float16_are_scaled_and_scaled_back():
    gradients = []
    for autocast in (torch.float16, None):
        model, (batch, *_) = in_float16()
        learner = rk.Learner(
            model, SEQ, torch.optim.SGD(model.parameters(), 0.1), autocast=autocast
        )
        if learner.scaler is not None:
            learner.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        phase = rk.BPTTTrainingPhase(accumulate=2)
        for _ in range(2):
            learner.step(phase, batch)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for half, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(half, whole, rtol=0.02, atol=1e-3)


def test_where_float16_overflows_the_update_is_left_out():
    model, (batch, *_) = in_float16()
    learner = rk.Learner(
        model, SEQ, torch.optim.SGD(model.parameters(), 0.1), autocast=torch.float16
    )
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = [parameter.clone() for parameter in model.parameters()]
    learner.step(rk.BPTTTrainingPhase(), batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert learner.scaler.get_scale() == 2.0**99


def test_float16_resumed_is_bitwise_that_of_one_go(tmp_path):
    def learner():
        model, batches = in_float16()
        made = rk.Learner(
            model, SEQ, torch.optim.Adam(model.parameters(), 0.01), autocast=torch.float16
        )
        made.scaler = torch.amp.GradScaler("cpu", growth_interval=2)  # its scale moves
        return made, batches

    whole, batches = learner()
    whole.fit(4, batches)
    cut, batches = learner()
    cut.fit(2, batches)
    saved = cut.state_dict()
    resumed, batches = learner()
    resumed.load_state_dict(saved)
    resumed.fit(2, batches)
    assert (
        resumed.scaler.state_dict() == whole.scaler.state_dict() != learner()[0].scaler.state_dict()
    )
    for one, same in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, same)

    in_full, _ = learner()
    in_full.scaler = None
    with pytest.raises(ValueError) as info:
        in_full.load_state_dict(saved)
    assert "got a scaler of gradients: True; wanted a scaler of gradients: False" in str(info.value)


def test_float16_accumulated_and_cut_before_its_update_is_bitwise_that_of_one_go():
    class Kill:
        def on_step_end(self, learner):
            raise KeyboardInterrupt

    def learner(*callbacks):
        model, batches = in_float16()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        made = rk.Learner(model, SEQ, optimizer, callbacks, autocast=torch.float16)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return made, batches[:1], rk.BPTTTrainingPhase(accumulate=2)

    whole, batches, phase = learner()
    whole.fit(1, batches, training=phase)
    cut, batches, phase = learner(Kill())
    with pytest.raises(KeyboardInterrupt):
        cut.fit(1, batches, training=phase)  # its only batch is held back
    resumed, batches, phase = learner()
    resumed.load_state_dict(cut.state_dict())
    resumed.fit(1, batches, training=phase)
    assert all(map(torch.equal, whole.parameters, resumed.parameters))
    assert not all(map(torch.equal, whole.parameters, cut.parameters))


def test_a_step_cancelled_before_its_update_leaves_a_scaler_that_goes_on():
    class SkipSecond:
        def on_backward_end(self, learner):
            if learner.step_index == 1:
                raise rk.CancelStep

    model, batches = in_float16()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu")
    for i, batch in enumerate(batches):
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.mse_loss(model(batch[:-1])[0], batch[1:])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if i != 1:
            scaler.step(optimizer)
        scaler.update()

    other, batches = in_float16()
    own = torch.optim.Adam(other.parameters(), 0.01)
    learner = rk.Learner(other, SEQ, own, [SkipSecond()], autocast=torch.float16)
    learner.fit(1, batches)
    assert learner.scaler.state_dict() == scaler.state_dict()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


class Modes:
    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, learner):
        self.seen.append((learner.phase_name, learner.model.training))

    on_step_begin = on_epoch_begin


def test_train_and_evaluation_mode():
    modes, learner = Modes(), None
    learner = learner_of(net(dropout=0.5), callbacks=[modes])
    learner.model.eval()
    x = data(6, 2, 3)
    learner.fit(1, [x], [x])
    assert modes.seen == [("training", True)] * 2 + [("validation", False)] * 2
    assert learner.model.training
    learner.model.eval()
    learner.epoch(rk.BPTTValidationPhase(), [x])
    assert not any(module.training for module in learner.model.modules())


def test_a_module_that_a_callback_freezes_stays_frozen():
    class Freeze:
        def on_epoch_begin(self, learner):
            learner.model[1].eval()

    model, x = net(dropout=0.5), data(6, 2, 3)
    learner = learner_of(model, callbacks=[Freeze()])
    learner.fit(2, [x], [x])
    other = learner_of(net(dropout=0.0))
    other.fit(2, [x], [x])
    assert all(map(torch.equal, learner.parameters, other.parameters))


def test_any_function_is_a_loss():
    x, y, lengths, seen = data(6, 3, 3), data(6, 3, 3, seed=8), torch.tensor([6, 2, 4]), []

    def loss(outputs, targets, lengths=None):
        seen.append((tuple(outputs.shape), None if lengths is None else lengths.tolist()))
        return rk.seq2seq_loss(MSE)(outputs, targets, lengths)

    for batch in [(x, y), (x, y, lengths)]:
        for phase in (
            rk.BPTTTrainingPhase(),
            rk.BPTTTrainingPhase(window=3),
            rk.BPTTValidationPhase(nfeedback=1),
        ):
            one, two = learner_of(loss=loss), learner_of()
            left, right = (
                learner.epoch(phase, [batch, (2 * x[:4], y[:4])]) for learner in (one, two)
            )
            assert left.keys() == right.keys()
            for name in left:
                torch.testing.assert_close(left[name], right[name])
            assert all(map(torch.allclose, one.parameters, two.parameters))
    assert ((6, 3, 3), [6, 2, 4]) in seen
    assert ((3, 2, 3), [3, 1]) in seen  # the second window, without the row that has ended
    plain = learner_of(loss=MSE)
    assert torch.equal(
        plain.step(rk.BPTTTrainingPhase(), (x, y)).loss, MSE(net()(x)[0], y).detach()
    )


def test_a_single_step_tells_the_callbacks_which_phase_it_is_of():
    modes, x = Modes(), data(6, 2, 3)
    learner = learner_of(callbacks=[modes])
    for phase in (rk.BPTTTrainingPhase(), rk.BPTTValidationPhase(), rk.BPTTTrainingPhase()):
        learner.step(phase, x)
        assert learner.phase is phase
    assert [name for name, _ in modes.seen] == ["training", "validation", "training"]


def test_epochs_and_steps_are_counted():
    counts = []

    class Count:
        def on_step_end(self, learner):
            counts.append((learner.epoch_index, learner.step_index, learner.phase_name))

    x = data(6, 2, 3)
    learner = learner_of(callbacks=[Count()])
    assert learner.fit(2, [x, x], [x]) is learner
    one = [(0, 1, "training"), (0, 2, "training"), (0, 2, "validation")]
    assert counts == one + [(1, *rest) for _, *rest in one]
    assert learner.epoch_index == 2
    assert learner.fit(1, [x]).epoch_index == 3
    learner.epoch(rk.BPTTValidationPhase(), [x])
    assert learner.epoch_index == 3


def test_between_two_fits_no_step_of_the_next_epoch_is_made():
    x = data(6, 2, 3)
    for valid in (None, [x]):
        learner = learner_of().fit(2, [x, x, x], valid)
        assert (learner.epoch_index, learner.step_index) == (2, 0)


def test_each_epoch_starts_a_stateful_phase_afresh():
    loader = [
        (batch.inputs, batch.targets) for batch in rk.StreamLoader(data(41, 3), 2, 5)
    ]  # with no restart marks
    phase = rk.BPTTTrainingPhase(stateful=True)
    validation = rk.BPTTValidationPhase(stateful=True)
    history = rk.History()
    learner = learner_of(rate=0.0, callbacks=[history])
    learner.fit(3, loader, loader, training=phase, validation=validation)
    losses = [row["loss"] for row in history.rows]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-9)


def test_the_carried_state_of_training_outlives_a_step_of_validation():
    batches = list(rk.StreamLoader(data(41, 3), 2, 5))
    one, two = learner_of(), learner_of()
    training, other = rk.BPTTTrainingPhase(stateful=True), rk.BPTTTrainingPhase(stateful=True)
    validation = rk.BPTTValidationPhase(stateful=True)
    for batch in batches:
        one.step(training, batch)
        one.step(validation, batch)
        two.step(other, batch)
    assert all(map(torch.equal, one.parameters, two.parameters))


def test_no_batches_is_an_error():
    x = data(6, 2, 3)
    learner = learner_of()
    with pytest.raises(ValueError, match="no batches") as info:
        learner.fit(2, (batch for batch in [x, x]))
    assert str(info.value) == (
        "Learner: got no batches in epoch 2; wanted at least one for training. Likely fix: a generator is spent after "
        "one epoch; pass a list or a DataLoader."
    )
    with pytest.raises(ValueError, match="at least one for validation"):
        learner.fit(1, [x], [])


def test_a_model_that_breaks_the_layout_is_refused():
    for model, error, text in [
        (nn.GRU(3, 3, batch_first=True), ValueError, r"Learner: got GRU\(batch_first=True\)"),
        (nn.GRUCell(3, 3), TypeError, "Learner: got a cell, GRUCell"),
        (nn.Linear(3, 3), TypeError, "Learner: got Linear, which takes no state"),
    ]:
        with pytest.raises(error, match=text):
            learner_of(model)


# What runs beside a fit


def everything(learner: rk.Learner, history: rk.History, stop: rk.EarlyStopping) -> list:
    """All of a fit that is to be left alone."""
    kept = (learner.epoch_index, learner.step_index, learner.phase, learner.state)
    averages = {name: value.tolist() for name, value in learner.averages.items()}
    weights = [p.detach().clone() for p in learner.parameters]
    place = {name: learner.state_dict()[name] for name in ("place", "fits", "passes")}
    return copy.copy([*kept, averages, list(history.rows), stop.best, stop.waited, place, weights])


def alike(left: list, right: list) -> bool:
    *left, one = left
    *right, two = right
    return left == right and all(map(torch.equal, one, two))


class Stop:
    """Would end any epoch that it hears of."""

    def __init__(self) -> None:
        self.armed = False

    def on_step_end(self, learner: rk.Learner) -> None:
        if self.armed:
            raise rk.CancelFit

    on_epoch_end = on_step_end


@pytest.mark.parametrize("phase", [rk.BPTTValidationPhase(), rk.BPTTTrainingPhase()])
def test_an_epoch_after_a_fit_changes_nothing_of_it(phase):
    history, stop, armed = rk.History(), rk.EarlyStopping(1), Stop()
    keep = rk.KeepBest()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    rate = rk.Scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    callbacks = [history, keep, rate, armed, stop]
    learner = rk.Learner(model, SEQ, optimizer, callbacks)
    x, test = data(6, 2, 3), 100 * data(5, 2, 3, seed=9)
    learner.fit(2, [x], [x])
    before = everything(learner, history, stop)
    steps = rate.scheduler.last_epoch
    averages = learner.epoch(phase, [test, test])
    assert alike(before, everything(learner, history, stop))
    assert averages["loss"].item() == pytest.approx(SEQ(model(test[:-1])[0], test[1:]).item())
    armed.armed = True
    learner.epoch(phase, [test, test])  # no CancelFit comes out
    assert alike(before, everything(learner, history, stop))
    assert (rate.scheduler.last_epoch, keep.epoch) == (steps, 1)


class Look:
    """Looks at other data at some event, as people do: with no thought of what it is called by."""

    def __init__(self, event: str, data, phase: str, train: bool = False) -> None:
        self.data, self.phase, self.seen = data, phase, []
        self.with_phase = rk.BPTTTrainingPhase() if train else rk.BPTTValidationPhase()
        setattr(self, event, self.look)

    def look(self, learner: rk.Learner) -> None:
        if learner.phase_name in (self.phase, "") or not learner.fitting:
            self.seen.append(learner.epoch(self.with_phase, self.data)["loss"].item())
            learner.step(self.with_phase, self.data[0])


EVENTS = [
    "fit_begin",
    "epoch_begin",
    "step_begin",
    "loss_begin",
    "step_end",
    "epoch_end",
    "fit_end",
]


@pytest.mark.parametrize("event", [f"on_{event}" for event in EVENTS])
@pytest.mark.parametrize("phase", ["training", "validation"])
def test_an_epoch_within_a_callback_changes_nothing_of_the_fit(event, phase):
    class Count:
        def __init__(self) -> None:
            self.events = []

        def on_step_end(self, learner: rk.Learner) -> None:
            place = (learner.epoch_index, learner.step_index, learner.phase_name)
            self.events.append((place, learner.fitting, learner.state.loss.item()))

        on_epoch_end = on_step_end

    def fitted(*callbacks):
        torch.manual_seed(3)
        model, history, count = net(dropout=0.4), rk.History(), Count()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        stop, rate = rk.EarlyStopping(2), rk.Scheduler(schedule, per="step")
        learner = rk.Learner(model, SEQ, optimizer, [*callbacks, history, count, stop, rate])
        batches = [data(6, 2, 3, seed=seed) for seed in range(5)]
        loader = DataLoader(batches, batch_size=None, shuffle=True)
        learner.fit(2, loader, batches[:2])
        return everything(learner, history, stop), count.events, schedule.last_epoch

    test = [data(4, 2, 3, seed=20), data(7, 1, 3, seed=21)]
    look = Look(event, DataLoader(test, batch_size=None, shuffle=True).dataset, phase)
    watched, plain = fitted(look), fitted()
    assert look.seen
    # Phase and state are objects of each fit's own.
    for i in (2, 3):
        watched[0][i] = plain[0][i] = None
    assert alike(watched[0], plain[0])
    assert watched[1:] == plain[1:]


def test_a_callback_that_trains_is_heard_where_it_acts_on_gradients_only():
    class Hear:
        def __init__(self) -> None:
            self.events = []

        def on_epoch_begin(self, learner: rk.Learner) -> None:
            self.events.append("epoch")

        def on_backward_end(self, learner: rk.Learner) -> None:
            self.events.append("gradient")

        def on_step_end(self, learner: rk.Learner) -> None:
            self.events.append("step")

    x, hear = data(6, 2, 3), Hear()
    look = Look("on_epoch_end", [x], "training", train=True)
    learner = learner_of(callbacks=[hear, look])
    learner.fit(1, [x])
    assert hear.events == ["epoch", "gradient", "step", "gradient", "gradient"]
    assert (learner.epoch_index, learner.step_index) == (1, 0)


def test_a_fit_within_a_fit_is_refused():
    class Fit:
        def on_step_end(self, learner: rk.Learner) -> None:
            learner.fit(1, [data(6, 2, 3)])

    learner = learner_of(callbacks=[Fit()])
    refused(lambda: learner.fit(1, [data(6, 2, 3)]), "Learner: got fit, called by a callback")


def test_steps_of_one_phase_are_averaged_and_not_with_those_of_another():
    learner, x, y = learner_of(rate=0.0), data(6, 2, 3), 3 * data(9, 2, 3, seed=3)
    training, validation = rk.BPTTTrainingPhase(), rk.BPTTValidationPhase()
    losses = [learner.step(training, batch).loss for batch in (x, y)]
    mean = (losses[0] * 10 + losses[1] * 16) / 26
    torch.testing.assert_close(learner.averages["loss"], mean)
    learner.step(validation, x)
    torch.testing.assert_close(learner.averages["loss"], losses[0])


# What is refused


X = torch.randn(4, 3, 2)
ONE_BATCH = {
    "a tensor": X,
    "a pair": (X, X),
    "with lengths": (X, X, torch.tensor([4, 2, 1])),
    "a SequenceBatch": rk.SequenceBatch(X, X),
    "a dict": {"a": X},
    "lists of steps": (list(X), list(X)),
    "a source": ((X, None, X), X),
}


@pytest.mark.parametrize("name", ONE_BATCH)
def test_one_batch_where_batches_are_wanted_is_refused(name):
    batch = ONE_BATCH[name]
    torch.manual_seed(0)
    learner = learner_of(rk.RecurrentSequential(nn.GRU(2, 4), nn.Linear(4, 2)))
    text = "which is one batch; wanted batches: a DataLoader, or a list of them. Likely fix: put "
    before = copy.deepcopy(learner.model.state_dict())
    refused(lambda: learner.fit(1, batch), text, TypeError)
    refused(lambda: learner.fit(1, [X], batch), text, TypeError)
    refused(lambda: learner.epoch(rk.BPTTValidationPhase(), batch), text, TypeError)
    refused(lambda: rk.evaluate(learner.model, SEQ, batch), text, TypeError)
    assert all(torch.equal(before[key], value) for key, value in learner.model.state_dict().items())


@pytest.mark.parametrize("data", [[(X, X)], ((X, X), (X, X)), (rk.SequenceBatch(X),), [X, X]])
def test_batches_in_brackets_are_taken(data):
    learner = learner_of(rk.RecurrentSequential(nn.GRU(2, 4), nn.Linear(4, 2)))
    assert learner.fit(1, data, data).epoch_index == 1


def test_an_optimizer_that_needs_a_closure_is_refused_and_the_loop_it_says_works():
    torch.manual_seed(0)
    model = nn.GRU(3, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1)
    text = refused(lambda: rk.Learner(model, SEQ, optimizer), "LBFGS, whose step", TypeError)
    code = text.partition("def closure(): ")[2].partition("; then ")[0]
    inputs = torch.randn(5, 2, 3)
    targets, loss, before = torch.zeros(5, 2, 3), SEQ, SEQ.on(model, inputs, torch.zeros(5, 2, 3))
    scope = {
        "optimizer": optimizer,
        "loss_fn": loss,
        "model": model,
        "inputs": inputs,
        "targets": targets,
    }
    exec("def closure():\n    " + code.replace("; ", "\n    "), scope)
    assert "optimizer.step(closure)" in text
    optimizer.step(scope["closure"])
    assert loss.on(model, inputs, targets) < before


def test_what_is_given_for_a_number_of_epochs_is_said_in_words():
    learner = rk.Learner(nn.GRU(1, 1), SEQ, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(TypeError, match="Learner: got epochs = a list of 2; wanted a whole number"):
        learner.fit([torch.zeros(5, 3, 1)] * 2, 1)


def test_a_number_of_epochs_is_a_whole_number():
    refused(lambda: learner_of().fit(-1, [data(6, 2, 3)]), "Learner: got epochs = -1")
    refused(lambda: learner_of().fit(1.5, [data(6, 2, 3)]), "epochs = 1.5", TypeError)
    assert learner_of().fit(0, [data(6, 2, 3)]).epoch_index == 0


def test_the_parameters_of_the_loss_are_moved_to_the_device():
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs - targets) * self.scale).square().mean(-1)

    loss = Learned()
    learner_of(nn.GRU(3, 3), rk.seq2seq_loss(loss), device="meta")
    assert loss.scale.device.type == "meta"


def test_the_generators_are_where_they_were_after_a_look_within_a_fit():
    class Draw:
        def on_step_end(self, learner: rk.Learner) -> None:
            before = (torch.get_rng_state(), random.getstate())
            learner.epoch(rk.BPTTValidationPhase(), DataLoader([data(4, 2, 3)], batch_size=None))
            assert torch.equal(before[0], torch.get_rng_state())
            assert before[1] == random.getstate()
            self.done = True

    draw = Draw()
    learner_of(callbacks=[draw]).fit(1, [data(6, 2, 3)])
    assert draw.done


def test_a_number_of_numpy_is_a_whole_number_too(tmp_path):
    checkpoint = rk.Checkpoint(tmp_path / "run.pt", np.int32(1), resume=True)
    learner = learner_of(callbacks=[checkpoint])
    phase = rk.BPTTTrainingPhase(np.int64(2))
    assert learner.fit(np.int64(2), [data(6, 2, 3)], training=phase).epoch_index == 2
    learner.fit(np.int64(1), [data(6, 2, 3)])  # its file is written, and read back, as any other
    assert learner.epoch_index == 3
    again = rk.Checkpoint(tmp_path / "run.pt", resume=True)
    resumed = learner_of(callbacks=[again])
    resumed.fit(2, [data(6, 2, 3)]).fit(1, [data(6, 2, 3)])
    assert all(map(torch.equal, learner.parameters, resumed.parameters))


def test_what_is_no_phase_is_refused():
    learner, batches = learner_of(), [data(5, 2, 3)]
    calls = (
        lambda: learner.epoch(batches, rk.BPTTValidationPhase()),
        lambda: learner.step(batches[0], rk.BPTTTrainingPhase()),
        lambda: learner.epoch(rk.BPTTValidationPhase, batches),
        lambda: learner.fit(1, batches, training=rk.BPTTTrainingPhase),
        lambda: rk.evaluate(learner.model, SEQ, batches, 3),
    )
    for call in calls:
        refused(call, "wanted a phase", TypeError)


def test_a_phase_of_training_trains_and_one_of_validation_does_not():
    learner, batches = learner_of(), [data(5, 2, 3)]
    refused(
        lambda: learner.fit(1, batches, training=rk.BPTTValidationPhase()), "a phase that trains"
    )
    refused(
        lambda: learner.fit(1, batches, batches, validation=rk.BPTTTrainingPhase()),
        "a phase that does not train",
    )
    assert learner.epoch_index == 0


@pytest.mark.parametrize("wrong", [None, 5, rk.BPTTTrainingPhase()])
def test_what_holds_no_batches_is_refused(wrong):
    refused(lambda: learner_of().fit(1, wrong), "wanted batches", TypeError)
    if wrong is not None:
        refused(lambda: learner_of().fit(1, [data(5, 2, 3)], wrong), "wanted batches", TypeError)


def test_batches_may_be_asked_for_by_their_number():
    class Numbered:
        def __getitem__(self, i):
            return [data(5, 2, 3), data(6, 2, 3)][i]

    assert learner_of().fit(1, Numbered()).epoch_index == 1


def test_callbacks_are_objects_in_a_list():
    refused(lambda: learner_of(callbacks=rk.History()), "a History", TypeError)
    refused(lambda: learner_of(callbacks=[rk.History]), "History, a class", TypeError)


def test_a_callback_that_would_not_be_heard_cannot_be_added_to_a_learner():
    with pytest.raises(AttributeError):
        learner_of().callbacks.append(rk.History())


def test_any_function_may_take_the_place_of_the_loss():
    weights = []
    for first in (SEQ, nn.L1Loss()):
        model = net()
        learner = rk.Learner(model, first, torch.optim.SGD(model.parameters(), 0.1))
        learner.loss = nn.L1Loss()
        learner.fit(1, [data(6, 2, 3)], [data(6, 2, 3)])
        weights.append(learner.parameters)
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_look_with_the_loader_and_the_phase_of_the_fit_changes_nothing_of_it():
    def trained(*callbacks, accumulate: int) -> list[Tensor]:
        shared = torch.Generator().manual_seed(3)

        def noisy(outputs: Tensor) -> Tensor:
            noise = torch.randn(outputs.shape, generator=shared, dtype=outputs.dtype)
            return outputs + noise

        noisy.generator = shared
        loader = DataLoader(data(8, 5, 3), 2, shuffle=True, generator=shared, collate_fn=steps)
        feedback = rk.Feedback.probability(0.5, generator=shared)
        training = rk.BPTTTrainingPhase(accumulate=accumulate, feedback=feedback, stateful=True)
        validation = rk.BPTTValidationPhase(2, noisy)
        learner = learner_of(callbacks=callbacks)
        learner.fit(2, loader, loader, training, validation)
        return learner.parameters

    def steps(rows: list[Tensor]) -> Tensor:
        return torch.stack(rows, 1)

    class Look:
        def on_step_end(self, learner: rk.Learner) -> None:
            learner.epoch(learner.phases[1], learner.loaders[0])

    for accumulate in (1, 2):
        plain = trained(accumulate=accumulate)
        assert all(map(torch.equal, plain, trained(Look(), accumulate=accumulate)))
