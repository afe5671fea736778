"""What a model may declare, and how it is called: each row of a batch gets what it gets alone, in float64."""

import warnings
from functools import partial

import pytest
import torch
from helpers import assert_state, leaves, refused
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.optim.swa_utils import AveragedModel

from rnnkit import (
    EncoderDecoder,
    PerStep,
    RecurrentSequential,
    Unroll,
    rollout,
    sample_model,
    select_rows,
    seq2seq_loss,
)
from rnnkit.core.errors import asked
from rnnkit.core.model import (
    Declared,
    call_model,
    check_call,
    check_model,
    check_one_way,
    evaluating,
    restart_rows,
    run_model,
    spread_rows,
    unwrap,
)

pytestmark = pytest.mark.usefixtures("in_double_precision")

F, H = 3, 4
LENGTHS = [4, 6, 1, 3]
PADS = [0.0, 100.0, float("nan")]
every_pad = pytest.mark.parametrize("pad", PADS)


class Tagger(nn.Module):
    """A bidirectional class of one's own that says nothing."""

    def __init__(self, bidirectional=True):
        super().__init__()
        self.emb = nn.Linear(F, F)
        self.rnn = nn.LSTM(F, H, bidirectional=bidirectional)
        self.out = nn.Linear(2 * H if bidirectional else H, 2)

    def forward(self, inputs, state=None):
        hidden, state = self.rnn(self.emb(inputs), state)
        return self.out(hidden), state


class PackedTagger(Tagger):
    """The same, which takes a PackedSequence and says so."""

    takes_packed = True

    def forward(self, inputs, state=None):
        if not isinstance(inputs, PackedSequence):
            return super().forward(inputs, state)
        fields = inputs[1:]
        hidden, state = self.rnn(PackedSequence(self.emb(inputs.data), *fields), state)
        return PackedSequence(self.out(hidden.data), *fields), state


class OneWay(Tagger):
    def __init__(self):
        super().__init__(bidirectional=False)


class LearnedStart(nn.Module):
    """A GRU whose first state is learned."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(F, H)
        self.first = nn.Parameter(torch.randn(1, 1, H))

    def initial_state(self, batch_size):
        return self.first.expand(-1, batch_size, -1)

    def forward(self, inputs, state=None):
        return self.rnn(inputs, self.initial_state(inputs.shape[1]) if state is None else state)


class Difference(nn.Module):
    """A stateless member that looks one step back."""

    def forward(self, inputs):
        return torch.cat([inputs[:1], inputs[1:] - inputs[:-1]])


class Heads(nn.Module):
    """Two outputs of one hidden state, as a dict."""

    def __init__(self):
        super().__init__()
        self.pitch = nn.Linear(H, 2)
        self.length = nn.Linear(H, 1)

    def forward(self, hidden):
        return {"pitch": self.pitch(hidden), "length": self.length(hidden)}


class Join(nn.Module):
    """The parts of a dict of inputs, side by side."""

    def forward(self, inputs):
        return torch.cat([inputs["a"], inputs["b"]], -1)


@pytest.fixture(scope="module")
def a_process_group(tmp_path_factory):
    place = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{place}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")


def in_two_wrappers(model):
    return AveragedModel(nn.parallel.DistributedDataParallel(model))


def with_a_weight_norm(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight_norm(module)
        if isinstance(module, nn.RNNBase) and not is_parametrized(module):
            weight_norm(module, "weight_hh_l0")
    return model


WRAPPERS = {
    "bare": lambda model: model,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compile": compiled,
    "weight_norm": with_a_weight_norm,
    "two": in_two_wrappers,
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def innermost(model):
    while True:
        inner = dict(model.named_children())
        if set(inner) == {"module"} or set(inner) == {"module", "n_averaged"}:
            model = inner["module"]
        elif set(inner) == {"_orig_mod"}:
            model = inner["_orig_mod"]
        else:
            return model


def rows_of(lengths=LENGTHS, features=F):
    return [torch.randn(n, features) for n in lengths]


def padded(rows, pad):
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.full((int(lengths.max()), len(rows), *rows[0].shape[1:]), pad)
    for i, row in enumerate(rows):
        batch[: len(row), i] = row
    return batch, lengths


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_gradients(got, wanted):
    assert any(gradient is not None for gradient in wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def assert_every_row_as_alone(model, rows, pad, carry=False):
    """Outputs, state (with `carry`), loss and gradients of a padded batch are those of its rows."""
    alone = innermost(model)
    inputs, lengths = padded(rows, pad)
    targets = torch.randn(*inputs.shape[:2], 1)
    loss_fn = seq2seq_loss(nn.MSELoss())

    outputs, state = run_model(model, inputs, None, lengths, carry=carry)
    targets = targets.expand_as(outputs)
    loss = loss_fn(outputs, targets, lengths)

    errors = []
    for i, row in enumerate(rows):
        wanted, after = alone(row.unsqueeze(1))
        torch.testing.assert_close(outputs[: len(row), i], wanted[:, 0])
        errors.append((wanted[:, 0] - targets[: len(row), i]).square().flatten())
        if carry:
            for leaf, last in zip(leaves(state), leaves(after), strict=True):
                torch.testing.assert_close(leaf[:, i], last[:, 0])
    mean = torch.cat(errors).mean()
    torch.testing.assert_close(loss, mean)
    assert_gradients(gradients(alone, loss), gradients(alone, mean))


# ---------------------------------------------------------------- two directions


@every_pad
@every_wrapper
@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
def test_a_bidirectional_class_that_takes_packed_data_is_given_it(
    wrap, pad, carry, a_process_group
):
    assert_every_row_as_alone(wrap(PackedTagger()), rows_of(), pad, carry)


@every_wrapper
@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
def test_a_bidirectional_class_that_does_not_is_refused_with_the_cure(wrap, carry, a_process_group):
    model = wrap(Tagger())
    inputs, lengths = padded(rows_of(), 0.0)
    message = refused(
        rollout_of(model, inputs, lengths) if carry else told(model, inputs, lengths),
        "Tagger does not say so",
    )
    assert "two directions and rows of different length" in message
    assert "takes_packed = True" in message and "Models of your own" in message


def boundary(call):
    return asked("test")(call)


def rollout_of(model, inputs, lengths):
    return lambda: rollout(model, inputs, lengths=lengths)


def told(model, inputs, lengths):
    """`run_model` without a carried state, by a boundary of the test's own."""
    return boundary(lambda: run_model(model, inputs, None, lengths, carry=False))


@every_wrapper
def test_rows_of_one_length_need_no_packing(wrap, a_process_group):
    model = wrap(Tagger())
    inputs = torch.randn(5, 3, F)
    outputs, _ = run_model(model, inputs, None, torch.tensor([5, 5, 5]))
    torch.testing.assert_close(outputs, innermost(model)(inputs)[0])


@every_pad
@every_wrapper
def test_a_wrapped_bidirectional_member_of_a_stack_is_given_packed_data(wrap, pad, a_process_group):
    member = wrap(nn.LSTM(F, H, bidirectional=True))
    stack = RecurrentSequential(nn.Linear(F, F), member, nn.Linear(2 * H, 2))
    assert Declared(stack).bidirectional and Declared(stack).takes_packed
    assert_every_row_as_alone(stack, rows_of(), pad)


@every_wrapper
def test_a_stack_with_a_member_that_does_not_take_packed_data_is_refused(wrap, a_process_group):
    stack = RecurrentSequential(wrap(Tagger()), nn.Linear(2, 2))
    inputs, lengths = padded(rows_of(), 0.0)
    refused(told(stack, inputs, lengths), "RecurrentSequential does not say so")


@every_pad
@every_wrapper
def test_a_wrapped_bidirectional_encoder_reads_each_source_to_its_own_end(
    wrap, pad, a_process_group
):
    encoder = wrap(nn.GRU(F, H, bidirectional=True))
    model = EncoderDecoder(encoder, nn.GRU(F, H), bridge=lambda state: state.sum(0, keepdim=True))
    rows = rows_of()
    inputs, lengths = padded(rows, pad)
    (state,) = Declared(wrap(model)).encode(inputs, lengths)
    for i, row in enumerate(rows):
        (alone,) = model.encode(row.unsqueeze(1))
        torch.testing.assert_close(state[:, i], alone[:, 0])


@every_wrapper
def test_an_encoder_that_cannot_is_refused(wrap, a_process_group):
    model = EncoderDecoder(wrap(Tagger()), nn.GRU(F, H))
    inputs, lengths = padded(rows_of(), 0.0)
    message = refused(lambda: model.encode(inputs, lengths), "Tagger does not say so")
    assert message.startswith("EncoderDecoder.encode:")


def test_a_subclass_of_a_fused_module_with_a_forward_of_its_own_must_say_what_it_takes():
    class Normed(nn.LSTM):
        def forward(self, inputs, hx=None):
            return super().forward(inputs / 2, hx)

    assert not Declared(Normed(F, H)).takes_packed
    assert Declared(nn.LSTM(F, H)).takes_packed
    inputs, lengths = padded(rows_of(), 0.0)
    refused(told(Normed(F, H, bidirectional=True), inputs, lengths), "Normed does not say so")
    assert_every_row_as_alone(Normed(F, H), rows_of(), float("nan"), carry=True)


def test_what_a_class_declares_wins_over_what_its_members_do():
    class Causal(Tagger):
        bidirectional = False

    assert not Declared(Causal()).bidirectional
    assert Declared(nn.Sequential(Tagger())).bidirectional
    assert not Declared(nn.Sequential(Causal())).bidirectional


def test_packed_data_under_a_dataparallel_of_two_devices_is_refused():
    model = nn.DataParallel(nn.LSTM(F, H, bidirectional=True), dim=1)
    inputs, lengths = padded(rows_of(), 0.0)
    model.device_ids = [0, 1]  # as it is where there are two
    message = refused(told(model, inputs, lengths), "under DataParallel")
    assert "DistributedDataParallel" in message


def test_a_function_is_a_model_too():
    rnn = nn.GRU(F, H)
    inputs, lengths = padded(rows_of(), float("nan"))
    outputs, state = run_model(lambda x, s: rnn(x, s), inputs, None, lengths)
    for i, n in enumerate(LENGTHS):
        alone, last = rnn(inputs[:n, i : i + 1])
        torch.testing.assert_close(outputs[:n, i], alone[:, 0])
        torch.testing.assert_close(state[:, i], last[:, 0])


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what people have
        return torch.jit.script(model)


class Scriptable(nn.Module):
    def __init__(self, bidirectional=False):
        super().__init__()
        self.rnn = nn.GRU(F, H, bidirectional=bidirectional)

    def forward(self, inputs: torch.Tensor, state: torch.Tensor | None = None):
        return self.rnn(inputs, state)


def test_a_scripted_model_is_read_like_the_one_it_was_made_of():
    model = scripted(Scriptable())
    check_model(model)
    assert RecurrentSequential(model).recurrent == (True,)
    assert_every_row_as_alone(model, rows_of(), float("nan"), carry=True)
    inputs, lengths = padded(rows_of(), 0.0)
    refused(told(scripted(Scriptable(True)), inputs, lengths), "two directions")


@pytest.mark.parametrize("form", ["traced", "frozen"])
def test_a_traced_and_a_frozen_model_generate_like_the_one_they_were_made_of(form):
    model = Scriptable().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        if form == "traced":
            example = (torch.zeros(2, 1, F), torch.zeros(1, 1, H))
            made = torch.jit.trace(model, example, check_trace=False)
        else:
            made = torch.jit.freeze(torch.jit.script(model))
    primer, state = torch.randn(4, 3, F), torch.zeros(1, 3, H)
    weights = torch.randn(H, F)
    sample = sample_model(made, 9, primer, lambda outputs: outputs @ weights, state)
    outputs, _ = model(sample.tokens, state)
    torch.testing.assert_close(sample.outputs, outputs.detach())


# ---------------------------------------------------------------- one direction


@every_pad
@every_wrapper
@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
def test_a_one_way_class_of_ones_own_needs_to_say_nothing(wrap, pad, carry, a_process_group):
    assert_every_row_as_alone(wrap(OneWay()), rows_of(), pad, carry)


def test_a_model_that_looks_back_without_a_state_is_not_stepped():
    class Recent(nn.Module):
        """The difference to the step before, which its state does not hold, and a GRU."""

        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(F, H)

        def forward(self, inputs, state=None):
            return self.rnn(Difference()(inputs), state)

    assert_every_row_as_alone(Recent(), rows_of(), float("nan"), carry=True)


def test_the_batch_is_called_once_where_padding_changes_nothing():
    calls = []
    model = OneWay()
    model.register_forward_hook(lambda module, args, result: calls.append(args[0].shape))
    inputs, lengths = padded(rows_of(), 0.0)
    run_model(model, inputs, None, lengths, carry=False)
    assert calls == [(6, 4, F)]


def test_a_quantized_lstm_gives_each_row_what_it_gives_alone():
    quantized = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    lstm = nn.LSTM(F, H, bidirectional=True).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(lstm), {nn.LSTM})[0]
    assert isinstance(model, quantized.LSTM)
    check_model(model)
    assert Declared(model).takes_packed and Declared(model).bidirectional
    rows = [row.float() for row in rows_of()]
    inputs, lengths = padded(rows, 100.0)
    outputs, state = run_model(model, inputs.float(), None, lengths)
    for i, row in enumerate(rows):
        alone, (h, c) = model(row.unsqueeze(1))
        # Its activations are quantized by the range of a batch: equal to a step of that.
        torch.testing.assert_close(outputs[: len(row), i], alone[:, 0], atol=0.02, rtol=0)
        assert_state((state[0][:, i], state[1][:, i]), (h[:, 0], c[:, 0]), atol=0.02, rtol=0)


# ---------------------------------------------------------------- batch statistics


def normed_stack():
    return RecurrentSequential(PerStep(nn.BatchNorm1d(F)), nn.GRU(F, H))


@every_pad
@every_wrapper
def test_batch_statistics_in_training_do_not_count_padding(wrap, pad, a_process_group):
    stack = wrap(normed_stack())
    norm, rnn = innermost(stack)[0].module, innermost(stack)[1]
    rows = rows_of()
    inputs, lengths = padded(rows, pad)
    outputs, _ = run_model(stack, inputs, None, lengths, carry=False)
    steps = torch.cat(rows)
    scale = norm.weight / (steps.var(0, correction=0) + norm.eps).sqrt()
    for i, row in enumerate(rows):
        alone, _ = rnn(((row - steps.mean(0)) * scale + norm.bias).unsqueeze(1))
        torch.testing.assert_close(outputs[: len(row), i], alone[:, 0])
    torch.testing.assert_close(norm.running_mean, 0.1 * steps.mean(0))


def test_a_batch_norm_in_evaluation_needs_no_packing():
    stack = normed_stack().eval()
    assert not Declared(stack).batch_statistics
    assert_every_row_as_alone(stack, rows_of(), 100.0)


def test_a_batch_norm_without_running_statistics_always_has_them_of_the_batch():
    stack = RecurrentSequential(PerStep(nn.BatchNorm1d(F, track_running_stats=False)), nn.GRU(F, H))
    assert Declared(stack.eval()).batch_statistics


def test_batch_statistics_of_a_class_that_does_not_take_packed_data_are_refused():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(F)
            self.rnn = nn.GRU(F, H)

        def forward(self, inputs, state=None):
            return self.rnn(self.norm(inputs.flatten(0, 1)).view_as(inputs), state)

    inputs, lengths = padded(rows_of(), 0.0)
    message = refused(told(Normed(), inputs, lengths), "Normed does not say so")
    assert "batch statistics, in training mode," in message
    assert_every_row_as_alone(Normed().eval(), rows_of(), float("nan"))


# ---------------------------------------------------------------- learned first states


@every_wrapper
def test_a_restarted_row_starts_from_what_is_learned(wrap, a_process_group):
    model = wrap(LearnedStart())
    alone = innermost(model)
    inputs = torch.randn(5, 3, F)
    restart = torch.tensor([True, False, True])
    _, state = alone(torch.randn(2, 3, F))
    state = state.detach()
    outputs, _ = run_model(model, inputs, restart_rows(model, state, restart))
    fresh, _ = alone(inputs[:, restart])
    on, _ = alone(inputs[:, ~restart], state[:, ~restart])
    torch.testing.assert_close(outputs[:, restart], fresh)
    torch.testing.assert_close(outputs[:, ~restart], on)
    got = gradients(alone, outputs.square().sum())
    wanted = gradients(alone, fresh.square().sum() + on.square().sum())
    assert_gradients(got, wanted)
    assert alone.first.grad.abs().sum() > 0


@every_wrapper
@every_pad
def test_a_learned_start_in_a_ragged_batch(wrap, pad, a_process_group):
    assert_every_row_as_alone(wrap(LearnedStart()), rows_of(), pad, carry=True)


@pytest.mark.parametrize("lengths", [[0, 3, 2], [0, 0, 0], [4, 0, 4]], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["from nothing", "from a state"])
@pytest.mark.parametrize(
    "make",
    [LearnedStart, PackedTagger, OneWay, lambda: nn.GRU(F, H)],
    ids=["start", "packed", "own", "GRU"],
)
def test_a_row_without_a_step_keeps_its_state(make, given, lengths):
    model = make()
    inputs = torch.full((4, 3, F), float("nan"))
    for i, n in enumerate(lengths):
        inputs[:n, i] = torch.randn(n, F)
    before = model(torch.randn(2, 3, F))[1] if given else None
    outputs, state = run_model(model, inputs, before, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        row = [leaf[:, i : i + 1] for leaf in leaves(before)]
        row_state = None if not given else (row[0] if len(row) == 1 else tuple(row))
        if n:
            alone, after = model(inputs[:n, i : i + 1], row_state)
            torch.testing.assert_close(outputs[:n, i], alone[:, 0])
        elif given:
            after = row_state
        elif isinstance(model, LearnedStart):
            after = model.initial_state(1)
        else:
            after = [torch.zeros_like(leaf[:, :1]) for leaf in leaves(state)]
        for leaf, wanted in zip(leaves(state), leaves(after), strict=True):
            torch.testing.assert_close(leaf[:, i : i + 1], wanted)


def test_a_stack_starts_each_member_from_its_own_first_state():
    stack = RecurrentSequential(nn.Linear(F, F), LearnedStart(), nn.LSTM(H, 2), nn.Linear(2, 1))
    first = stack.initial_state(3)
    torch.testing.assert_close(first[0], stack[1].first.expand(-1, 3, -1))
    assert first[1] is None and len(first) == 2
    inputs = torch.randn(5, 3, F)
    _, state = stack(torch.randn(2, 3, F))
    outputs, _ = stack(inputs, restart_rows(stack, state, torch.tensor([False, True, False])))
    torch.testing.assert_close(outputs[:, 1:2], stack(inputs[:, 1:2])[0])
    torch.testing.assert_close(
        outputs[:, :1], stack(inputs[:, :1], select_rows(state, torch.tensor([0])))[0]
    )


def test_a_member_whose_first_state_the_model_does_not_hand_on_is_refused():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = LearnedStart()

        def forward(self, inputs, state=None):
            return self.inner(inputs, state)

    model = Holder()
    _, state = model(torch.randn(2, 3, F))
    message = refused(
        boundary(lambda: restart_rows(model, state, torch.tensor([True, False, False]))),
        "Holder, whose member LearnedStart has an initial_state",
        TypeError,
    )
    assert "method initial_state(batch_size)" in message


def test_a_member_whose_first_state_is_zero_asks_for_none_of_the_model():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = RecurrentSequential(Unroll(nn.GRUCell(F, H)), nn.LSTM(H, H))

        def forward(self, inputs, state=None):
            return self.inner(inputs, state)

    model = Holder()
    _, state = model(torch.randn(2, 3, F))
    restarted = restart_rows(model, state, torch.tensor([True, False, False]))
    for leaf, before in zip(leaves(restarted), leaves(state), strict=True):
        assert not leaf[:, 0].any()
        assert torch.equal(leaf[:, 1:], before[:, 1:])


@pytest.mark.parametrize(
    ("first", "text", "kind"),
    [
        (
            lambda self, n: torch.zeros(1, 1, H),
            "a state leaf (1, 1, 4) for a batch of 3",
            ValueError,
        ),
        (lambda self, n: (torch.zeros(1, n, H),), "where another state has", ValueError),
        (lambda self, n: torch.zeros(2, n, H), "leaves of one shape", ValueError),
        (torch.zeros(1, 1, H), "(1, 1, 4) called initial_state", TypeError),
    ],
    ids=["one row", "another form", "another shape", "a tensor"],
)
def test_a_first_state_that_is_none_is_refused(first, text, kind):
    class Wrong(nn.GRU):
        initial_state = first

    model = Wrong(F, H)
    _, state = model(torch.randn(2, 3, F))
    refused(
        boundary(lambda: restart_rows(model, state, torch.tensor([True, False, True]))), text, kind
    )


def test_no_restart_is_no_work():
    state = torch.randn(1, 3, H)
    assert restart_rows(nn.GRU(F, H), state, None) is state
    assert restart_rows(nn.GRU(F, H), state, torch.tensor([False] * 3)) is state
    assert restart_rows(nn.GRU(F, H), None, torch.tensor([True] * 3)) is None


def test_a_model_that_says_nothing_restarts_from_zero():
    state = torch.randn(1, 3, H)
    got = restart_rows(nn.GRU(F, H), state, torch.tensor([True, False, True]))
    assert got[:, [0, 2]].eq(0).all() and torch.equal(got[:, 1], state[:, 1])


# ---------------------------------------------------------------- padding never makes NaN


class Log(nn.Module):
    def forward(self, inputs):
        return inputs.log()


LOGS = {
    "a step's": lambda: RecurrentSequential(PerStep(Log()), nn.GRU(F, H)),
    "the sequence's": lambda: RecurrentSequential(Log(), Difference(), nn.GRU(F, H)),
    "behind a layer": lambda: RecurrentSequential(
        nn.Linear(F, F), nn.Softplus(), Log(), nn.GRU(F, H)
    ),
    "both ways": lambda: RecurrentSequential(Log(), nn.GRU(F, H, bidirectional=True)),
}


@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
@pytest.mark.parametrize("pad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", LOGS.values(), ids=LOGS.keys())
def test_a_model_that_is_not_finite_on_padding_learns(make, pad, carry):
    rows = [row.abs() + 0.5 for row in rows_of()]
    assert_every_row_as_alone(make(), rows, pad, carry)


@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
def test_a_row_without_a_step_makes_no_nan(carry):
    class LogGRU(nn.GRU):
        def forward(self, inputs, hx=None):
            return super().forward(inputs.log(), hx)

    model = LogGRU(F, H)
    inputs = torch.rand(4, 2, F) + 0.5
    inputs[:, 0] = float("nan")
    outputs, _ = run_model(model, inputs, None, torch.tensor([0, 3]), carry=carry)
    wanted, _ = model(inputs[:3, 1:])
    torch.testing.assert_close(outputs[:3, 1:], wanted)
    got = gradients(model, outputs[:3, 1].square().sum())
    assert_gradients(got, gradients(model, wanted.square().sum()))


# ---------------------------------------------------------------- dicts of sequences


@pytest.mark.parametrize("carry", [False, True], ids=["outputs", "state too"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["one way", "both ways"])
def test_inputs_and_outputs_may_be_dicts(carry, both_ways):
    hidden = H // 2 if both_ways else H
    rnn = nn.GRU(2 * F, hidden, bidirectional=both_ways)
    model = RecurrentSequential(Join(), rnn, Heads())
    a, b = rows_of(), rows_of()
    lengths = torch.tensor(LENGTHS)
    inputs = {"a": padded(a, float("nan"))[0], "b": padded(b, 0.0)[0]}
    outputs, state = run_model(model, inputs, None, lengths, carry=carry)
    total = sum(valid(part, lengths).square().sum() for part in outputs.values())
    alone = 0
    for i, (row_a, row_b) in enumerate(zip(a, b, strict=True)):
        wanted, last = model({"a": row_a.unsqueeze(1), "b": row_b.unsqueeze(1)})
        for name, part in wanted.items():
            torch.testing.assert_close(outputs[name][: len(row_a), i], part[:, 0])
            alone = alone + part.square().sum()
        if carry:
            torch.testing.assert_close(state[0][:, i], last[0][:, 0])
    assert_gradients(gradients(model, total), gradients(model, alone))


def valid(part, lengths):
    return part[torch.arange(len(part)).unsqueeze(1) < lengths]


def test_a_dict_for_a_class_of_ones_own_goes_through_row_by_row():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2 * F, H)

        def forward(self, inputs, state=None):
            outputs, state = self.rnn(Join()(inputs), state)
            return {"out": outputs}, state

    model = Two()
    inputs = {"a": padded(rows_of(), 7.0)[0], "b": padded(rows_of(), 7.0)[0]}
    outputs, state = run_model(model, inputs, None, torch.tensor(LENGTHS))
    for i, n in enumerate(LENGTHS):
        part = {name: x[:n, i : i + 1] for name, x in inputs.items()}
        wanted, last = model(part)
        torch.testing.assert_close(outputs["out"][:n, i], wanted["out"][:, 0])
        torch.testing.assert_close(state[:, i], last[:, 0])


# ---------------------------------------------------------------- what is checked


def test_a_model_is_found_behind_all_its_wrappers(a_process_group):
    model = OneWay()
    assert unwrap(model) is model
    assert unwrap(nn.parallel.DistributedDataParallel(nn.DataParallel(model))) is model
    assert unwrap(compiled(nn.parallel.DistributedDataParallel(model))) is model
    assert isinstance(unwrap(AveragedModel(compiled(model))), OneWay)


@pytest.mark.parametrize(
    ("model", "text", "kind"),
    [
        (lambda: nn.GRUCell(F, H), "a cell, GRUCell", TypeError),
        (lambda: nn.DataParallel(nn.LSTMCell(F, H)), "a cell, LSTMCell", TypeError),
        (lambda: nn.Linear(F, H), "Linear, which takes no state", TypeError),
        (lambda: nn.Sequential(nn.GRU(F, H)), "Sequential, which takes no state", TypeError),
        (lambda: nn.GRU(F, H, batch_first=True), "GRU(batch_first=True)", ValueError),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(1, 1))), "takes no state", TypeError),
        (lambda: lambda x, lengths=None, state=None: x, "second argument is lengths", TypeError),
    ],
)
def test_what_is_no_model_over_time_is_refused(model, text, kind):
    refused(boundary(lambda: check_model(model())), text, kind)


@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 2, 4])])
def test_a_sequence_without_a_batch_is_refused(lengths):
    model = RecurrentSequential(nn.Linear(F, H), nn.GRU(H, H), nn.Linear(H, F))
    message = refused(
        boundary(lambda: run_model(model, torch.randn(6, F), None, lengths, carry=False)),
        f"a state leaf (1, {H}) for a batch of {F}",
    )
    assert "unsqueeze(1)" in message


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_sequence_without_a_batch_is_refused_where_its_features_could_be_rows(layer):
    message = refused(
        lambda: rollout(layer(F, F), torch.randn(6, F)), f"inputs (6, {F}); wanted inputs (T, B, F)"
    )
    assert "unsqueeze(1)" in message


def test_a_class_of_ones_own_may_be_a_kind_of_sequential():
    class Mine(nn.Sequential):
        def forward(self, inputs, state=None):
            return self[0](inputs, state)

    check_model(Mine(nn.GRU(F, H)))


def test_rows_split_along_time_are_refused():
    model = nn.DataParallel(nn.GRU(F, H))
    model.device_ids, model.dim = [0, 1], 0  # as it is where there are two
    refused(boundary(lambda: check_model(model)), "DataParallel(dim=0)")


@pytest.mark.parametrize("result", [torch.zeros(2, 3, H), (1, 2, 3), [1, 2], None])
def test_a_model_that_gives_no_pair_is_refused(result):
    def forgetful(inputs, state):
        return result

    message = refused(
        boundary(lambda: call_model(forgetful, torch.zeros(2, 3, F), None)), "a pair", TypeError
    )
    assert "from forgetful" in message


def test_outputs_of_another_length_are_refused():
    def last(inputs, state):
        return inputs[-1:], None

    refused(boundary(lambda: run_model(last, torch.zeros(5, 2, F), None)), "the same T and B")


def test_a_packed_sequence_that_comes_back_padded_is_refused():
    class Padding(PackedTagger):
        def forward(self, inputs, state=None):
            outputs, state = super().forward(inputs, state)
            if isinstance(outputs, PackedSequence):
                outputs = pad_packed_sequence(outputs)[0]
            return outputs, state

    inputs, lengths = padded(rows_of(), 0.0)
    refused(told(Padding(), inputs, lengths), "from Padding; wanted a PackedSequence", TypeError)


def test_a_packed_sequence_of_other_rows_is_refused():
    class Longer(nn.Module):
        takes_packed = True
        bidirectional = True

        def forward(self, inputs, state=None):
            time = int(pad_packed_sequence(inputs)[1].max())
            whole = torch.zeros(time, 4, H)
            return pack_padded_sequence(whole, torch.tensor([time] * 4)), state

    inputs, lengths = padded(rows_of(), 0.0)
    refused(told(Longer(), inputs, lengths), "rows of [4, 6, 1, 3] steps, as they came in")


def test_a_check_of_a_call_names_what_does_not_fit():
    model = nn.GRU(F, H)
    inputs = torch.zeros(5, 2, F)
    assert check_call(model, list(inputs)).shape == (5, 2, F)
    refused(boundary(lambda: check_call(model, inputs, torch.zeros(1, 3, H))), "a batch of 2")
    refused(boundary(lambda: check_call(model, inputs, None, torch.tensor([5, 6]))), "T = 5")
    refused(boundary(lambda: check_call(model, torch.zeros(5), name="source")), "source (5,)")


def test_a_model_of_two_directions_is_refused_where_one_is_needed():
    check_one_way(OneWay(), "", "", "")
    refused(
        boundary(lambda: check_one_way(Tagger(), " here", "x", "y.")), "bidirectional model here"
    )


def test_rows_that_are_spread_can_be_selected_again():
    tree = (torch.randn(2, 2, 3), {"a": torch.randn(1, 2)})
    spread = spread_rows(tree, torch.tensor([3, 1]), 4)
    assert spread[0].shape == (2, 4, 3) and spread[1]["a"].shape == (1, 4)
    torch.testing.assert_close(spread[0][:, [3, 1]], tree[0])
    assert spread[0][:, [0, 2]].eq(0).all()


# ---------------------------------------------------------------- evaluating


class Merging(nn.Linear):
    """An adapter that is merged into the weights by `train(False)`, as in low-rank adaption."""

    def __init__(self):
        super().__init__(F, F)
        self.delta = torch.ones(F, F)
        self.merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += self.delta if not mode else -self.delta
            self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "weight_norm"])
def test_evaluating_calls_eval_and_train(name, a_process_group):
    model = WRAPPERS[name](nn.Sequential(Merging(), nn.Dropout()))
    layer = innermost(model)[0]
    weight = layer.weight.detach().clone()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        torch.testing.assert_close(layer.weight.detach(), weight + 1)
    torch.testing.assert_close(layer.weight.detach(), weight)
    assert all(module.training for module in model.modules())


def test_evaluating_puts_every_modules_own_mode_back():
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Linear(1, 1)), nn.Dropout())
    for frozen in ([], [model[0]], [model[0][1]], [model[0], model[1]], [model]):
        model.train()
        for module in frozen:
            module.eval()
        before = [module.training for module in model.modules()]
        with pytest.raises(KeyError), evaluating(model):
            raise KeyError
        assert [module.training for module in model.modules()] == before


class Dozing(nn.Module):
    """A model with dropout, which can be called by another name too."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(F, F, 2, dropout=0.9)

    def forward(self, inputs, state=None, twice=False):
        return self.rnn(inputs, state)

    def step(self, inputs, state):
        return self.rnn(inputs, state)


@pytest.mark.parametrize(
    "called",
    [
        lambda model: partial(model, twice=True),
        lambda model: model.step,
        lambda model: partial(partial(model.step)),
    ],
    ids=["a partial", "a method", "a partial of a partial of a method"],
)
def test_a_module_behind_a_partial_or_a_method_is_evaluated_too(called):
    model, primer = Dozing(), torch.randn(4, 3, F)
    sample = sample_model(called(model), 9, primer)
    assert model.training and model.rnn.training
    torch.testing.assert_close(sample.outputs, model.eval()(sample.tokens)[0].detach())


def test_a_partial_of_a_bidirectional_model_is_known_to_be_one():
    model = partial(Tagger(), state=None)
    refused(boundary(lambda: check_one_way(model, "", "one way", "none.")), "a bidirectional model")


def test_evaluating_what_is_no_module_does_nothing():
    with evaluating(lambda inputs, state: (inputs, state)):
        pass


# ---------------------------------------------------------------- the default device


def test_another_default_device_changes_nothing():
    model = RecurrentSequential(Difference(), Unroll(nn.GRUCell(F, H)))
    inputs, lengths = padded(rows_of(), float("nan"))
    wanted, state = run_model(model, inputs, None, lengths)
    torch.set_default_device("meta")
    try:
        outputs, after = run_model(model, inputs, None, lengths)
        run_model(model, inputs, None, lengths, carry=False)
        encoder = EncoderDecoder(nn.GRU(F, H, device="cpu"), nn.GRU(F, H, device="cpu"))
        encoder.encode(inputs, lengths)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(outputs, wanted)
    assert_state(after, state)
