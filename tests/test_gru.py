"""GRU: PyTorch's own is the referee, in float64, wherever the two could differ."""

import copy
import inspect
import io

import pytest
import torch
from helpers import assert_state, by_hand, seeded
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from rnnkit import (
    GRU,
    BPTTTrainingPhase,
    RecurrentSequential,
    Unroll,
    export_program,
    pad_collate,
    sample_best,
    sample_model,
    seq2seq_loss,
)
from rnnkit.core.model import Declared, run_model
from rnnkit.generation._fast import quicker_step
from rnnkit.models import gru as module

pytestmark = pytest.mark.usefixtures("in_double_precision")

T, B, F, H = 9, 4, 3, 5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def layers_run(monkeypatch):
    """How often a layer of our own has run: a test of two equal things could compare one to itself."""
    calls, run = [], module._Layer.apply
    monkeypatch.setattr(module._Layer, "apply", lambda *given: (calls.append(1), run(*given))[1])
    return calls


def pair(*sizes, **options):
    """Ours and PyTorch's, with the same weights."""
    ours, torchs = GRU(*sizes, **options), nn.GRU(*sizes, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def everything(run, model, *inputs):
    """Outputs, state and the gradient of all that wants one."""
    outputs, state = run(*inputs)
    wanted = [tensor for tensor in (*inputs, *model.parameters()) if tensor.requires_grad]
    loss = outputs.sin().sum() + state.cos().sum()
    return outputs, state, *torch.autograd.grad(loss, wanted)


def assert_same(ours, torchs, *inputs, **tolerance):
    got = everything(ours, ours, *inputs)
    wanted = everything(torchs, torchs, *inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or EXACT))


def test_it_is_built_as_nn_gru_is():
    assert issubclass(GRU, nn.GRU)
    assert inspect.signature(GRU) == inspect.signature(nn.GRU)
    assert repr(GRU(3, 5, num_layers=2)) == repr(nn.GRU(3, 5, num_layers=2))


@pytest.mark.parametrize("with_state", [False, True], ids=["from nothing", "from a state"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"bias": False},
        {"batch_first": True},
        {"bidirectional": True},
        {"bidirectional": True, "num_layers": 2, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_outputs_state_and_every_gradient_are_those_of_nn_gru(options, with_state, layers_run):
    ours, torchs = pair(F, H, **options)
    sequence = torch.randn(T, B, F)
    inputs = [sequence.transpose(0, 1) if ours.batch_first else sequence]
    states = ours.num_layers * (1 + ours.bidirectional)
    if with_state:
        inputs.append(torch.randn(states, B, H))
    for tensor in inputs:
        tensor.requires_grad_()
    assert_same(ours, torchs, *inputs)
    assert len(layers_run) == states


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (8, 3, 1, 2), (40, 1, 2, 16), (9, 33, 20, 7)])
def test_any_sizes_give_the_same(sizes, layers_run):
    time, batch, features, hidden = sizes
    inputs = torch.randn(time, batch, features, requires_grad=True)
    assert_same(*pair(features, hidden), inputs)
    assert layers_run


def test_in_float32_it_is_the_same_to_a_rounding(layers_run):
    ours, torchs = pair(F, 32, num_layers=2, dtype=torch.float32)
    inputs = torch.randn(50, B, F, dtype=torch.float32, requires_grad=True)
    assert_same(ours, torchs, inputs, rtol=1e-4, atol=1e-4)
    assert len(layers_run) == 2


@pytest.mark.parametrize("read", [lambda outputs, state: outputs[2], lambda outputs, state: state])
def test_a_gradient_comes_from_one_step_or_from_the_state_alone(read, layers_run):
    gradients = []
    for model in pair(F, H, num_layers=2):
        torch.manual_seed(0)
        inputs = torch.randn(T, B, F, requires_grad=True)
        loss = read(*model(inputs)).square().sum()
        gradients.append(torch.autograd.grad(loss, [inputs, *model.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert len(layers_run) == 2


def test_the_gradient_is_that_of_small_differences(layers_run):
    ours = GRU(2, 2)
    inputs = torch.randn(8, 1, 2, requires_grad=True)
    state = torch.randn(1, 1, 2, requires_grad=True)
    names = [name for name, _ in ours.named_parameters()]

    def call(inputs, state, *weights):
        return torch.func.functional_call(
            ours, dict(zip(names, weights, strict=True)), (inputs, state)
        )

    given = (inputs, state, *ours.parameters())
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)
    assert layers_run


def test_a_gradient_of_a_gradient_ends_where_one_input_was_made_of_another(layers_run):
    results = []
    for model in pair(F, H):
        torch.manual_seed(0)
        inputs = torch.randn(T, B, F, requires_grad=True)
        state = inputs[:1, :, :1].expand(1, B, H)
        outputs, _ = model(inputs, state)
        (first,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [inputs, *model.parameters()]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert layers_run


def test_gradients_in_a_batch_are_those_one_by_one(layers_run):
    inputs = torch.randn(T, B, F, requires_grad=True)
    outputs, _ = GRU(F, H)(inputs)

    def gradient(by, **options):
        return torch.autograd.grad(outputs, inputs, by, retain_graph=True, **options)[0]

    several = torch.randn(3, *outputs.shape)
    wanted = torch.stack([gradient(by) for by in several])
    torch.testing.assert_close(gradient(several, is_grads_batched=True), wanted, **EXACT)
    torch.testing.assert_close(torch.func.vmap(gradient)(several), wanted, **EXACT)
    assert len(layers_run) == 1


def test_the_backward_pass_can_be_made_twice():
    ours, inputs = GRU(F, H), torch.randn(T, B, F, requires_grad=True)
    loss = ours(inputs)[0].square().sum()
    loss.backward(retain_graph=True)
    once = inputs.grad.clone()
    loss.backward()
    torch.testing.assert_close(inputs.grad, 2 * once, **EXACT)


def test_strange_strides_of_inputs_states_and_gradients_count_for_nothing(layers_run):
    ours, torchs = pair(F, H)
    inputs = torch.randn(B, F, 2 * T).permute(2, 0, 1)[::2]
    state = torch.randn(H, B, 1).permute(2, 1, 0)
    results = []
    for model in (ours, torchs):
        outputs, _ = model(inputs, state)
        weights = list(model.parameters())
        expanded = torch.autograd.grad(outputs.sum(), weights, retain_graph=True)
        turned = torch.randn(H, B, T, generator=seeded()).permute(2, 1, 0)
        results.append([*expanded, *torch.autograd.grad(outputs, weights, turned)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert layers_run


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "all", "inputs"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen, layers_run):
    ours, torchs = pair(F, H)
    for model in (ours, torchs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in (name, "all"))
    assert_same(ours, torchs, torch.randn(T, B, F, requires_grad=frozen != "inputs"))
    assert layers_run


def test_weights_that_two_layers_share_get_the_gradient_of_both(layers_run):
    ours, torchs = pair(H, H, num_layers=2)
    for model in (ours, torchs):
        model.weight_hh_l1 = model.weight_hh_l0
    assert_same(ours, torchs, torch.randn(T, B, H))
    assert len(layers_run) == 2


def test_weights_that_are_computed_are_computed_in_each_call(layers_run):
    ours, torchs = pair(F, H)
    for model in (ours, torchs):
        nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    inputs = torch.randn(T, B, F)
    assert_same(ours, torchs, inputs)
    for model in (ours, torchs):
        with torch.no_grad():
            model.parametrizations.weight_hh_l0.original0.mul_(2)
    assert_same(ours, torchs, inputs)
    assert len(layers_run) == 2


def test_dropout_between_layers_draws_as_nn_gru_does(layers_run):
    ours, torchs = pair(F, 16, num_layers=3, dropout=0.5)
    inputs = torch.randn(T, B, F)
    results = []
    for model in (ours, torchs):
        torch.manual_seed(3)
        results.append(model(inputs)[0])
    torch.testing.assert_close(*results, **EXACT)
    torch.testing.assert_close(ours.eval()(inputs)[0], torchs.eval()(inputs)[0], **EXACT)
    assert len(layers_run) == 6


def test_what_was_saved_of_one_loads_into_the_other():
    ours, torchs = GRU(F, H, num_layers=2), nn.GRU(F, H, num_layers=2)
    inputs = torch.randn(T, B, F)
    for source, target in ((torchs, ours), (ours, torchs)):
        nn.init.normal_(source.weight_hh_l1)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file))
        torch.testing.assert_close(target(inputs)[0], source(inputs)[0], **EXACT)


def test_a_copy_trains_apart_from_the_original(layers_run):
    ours, inputs = GRU(F, H), torch.randn(T, B, F)
    twin = copy.deepcopy(ours)
    before = ours(inputs)[0].detach()
    twin(inputs)[0].sum().backward()
    torch.optim.SGD(twin.parameters(), 1.0).step()
    torch.testing.assert_close(ours(inputs)[0], before, **EXACT)
    assert not torch.allclose(twin(inputs)[0], before)
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert len(layers_run) == 4


def test_it_can_be_computed_again_instead_of_kept(layers_run):
    ours, torchs = pair(F, H)
    inputs = torch.randn(T, B, F, requires_grad=True)

    def again(inputs):
        return checkpoint(ours, inputs, use_reentrant=False)

    got, wanted = everything(again, ours, inputs), everything(torchs, torchs, inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert len(layers_run) == 2


def test_it_keeps_a_quarter_less_for_the_backward_pass_than_nn_gru():
    kept = []
    for model in pair(H, H):
        sizes = {}

        def pack(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        inputs = torch.randn(200, B, H, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = model(inputs)  # or the next model's tensors would take these ones' places
        kept.append((sum(sizes.values()), held))
    ours, torchs = (size for size, _ in kept)
    assert 0.7 < ours / torchs < 0.8


# Where nn.GRU runs itself.


def packed(inputs):
    return pack_padded_sequence(inputs, torch.full((B,), T))


def dual(inputs):
    return forward_ad.make_dual(inputs, torch.ones_like(inputs))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward mode uses it
@pytest.mark.parametrize(
    ("around", "given"),
    [
        (torch.no_grad(), lambda inputs: inputs),
        (torch.inference_mode(), lambda inputs: inputs),
        (forward_ad.dual_level(), dual),
        (torch.enable_grad(), packed),
        (torch.enable_grad(), lambda inputs: inputs[:, 0]),
        (torch.enable_grad(), lambda inputs: inputs[:7]),
        (torch.enable_grad(), lambda inputs: inputs[:, :0]),
    ],
    ids=["no_grad", "inference", "forward mode", "packed", "no batch", "few steps", "no row"],
)
def test_elsewhere_it_is_nn_gru_itself(around, given, layers_run):
    ours, torchs = pair(F, H)
    inputs = torch.randn(T, B, F)
    with around:
        got, wanted = ours(given(inputs)), torchs(given(inputs))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not layers_run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_with_few_digits_it_is_nn_gru_itself(dtype, layers_run):
    ours, torchs = pair(F, H, dtype=dtype)
    inputs = torch.randn(T, B, F, dtype=dtype)
    torch.testing.assert_close(ours(inputs), torchs(inputs), rtol=0, atol=0)
    assert not layers_run


def test_under_autocast_it_is_nn_gru_itself(layers_run):
    ours, torchs = pair(F, H, dtype=torch.float32)
    inputs = torch.randn(T, B, F, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(inputs), torchs(inputs), rtol=0, atol=0)
    assert not layers_run


def test_on_another_device_it_is_nn_gru_itself(layers_run):
    ours = GRU(F, H, device="meta")
    outputs, state = ours(torch.empty(T, B, F, device="meta"))
    assert outputs.shape == (T, B, H) and state.shape == (1, B, H)
    assert not layers_run


def test_a_transform_of_torch_func_goes_through_nn_gru(layers_run):
    gradients = []
    for model in pair(F, H):
        parameters = dict(model.named_parameters())
        inputs = torch.randn(T, B, F, generator=seeded())

        def loss(parameters, model=model, inputs=inputs):
            return torch.func.functional_call(model, parameters, (inputs,))[0].sin().sum()

        gradients.append(torch.func.grad(loss)(parameters))
    torch.testing.assert_close(*gradients, **EXACT)
    assert not layers_run


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # of any nn.GRU
def test_a_compiled_graph_and_an_export_hold_nn_gru(layers_run):
    ours, torchs = pair(F, H)
    inputs = torch.randn(T, B, F)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(ours, backend="eager")(inputs), torchs(inputs))
    program = export_program(ours, inputs, steps=T)
    assert any("gru" in str(node.target) for node in program.graph.nodes)
    assert not layers_run


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model(torch.zeros(T, B, F + 1)),
        lambda model: model(torch.zeros(T, B, F), torch.zeros(1, B + 1, H)),
        lambda model: model(torch.zeros(T, B, F), torch.zeros(B, H)),
        lambda model: model(torch.zeros(T, B, F, dtype=torch.float32)),
        lambda model: model(torch.zeros(T, B, F, 1)),
    ],
)
def test_what_nn_gru_refuses_is_refused_in_its_words(call):
    messages = []
    for model in pair(F, H):
        with pytest.raises((RuntimeError, ValueError)) as info:
            call(model)
        messages.append(str(info.value))
    assert messages[0] == messages[1]


def test_outputs_that_were_changed_in_place_are_refused_as_an_lstms_are():
    for model in (GRU(F, H), nn.LSTM(F, H, dtype=torch.float32)):
        outputs, _ = model(torch.randn(T, B, F, dtype=next(model.parameters()).dtype))
        outputs.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outputs.sum().backward()


# Among the other pieces.


def test_it_is_known_as_nn_gru_is_and_a_subclass_with_its_own_forward_is_not():
    class Scaled(GRU):
        def forward(self, input, hx=None):
            outputs, state = super().forward(input, hx)
            return 2 * outputs, state

    assert Declared(GRU(F, H)).takes_packed and not Declared(Scaled(F, H)).takes_packed
    cells = quicker_step(GRU(F, H), 1)
    assert type(cells) is type(quicker_step(nn.GRU(F, H), 1)) and not isinstance(cells, nn.Module)
    assert isinstance(quicker_step(Scaled(F, H), 1), Scaled)
    ours, inputs = GRU(F, H), torch.randn(T, B, F)
    torch.testing.assert_close(Unroll.from_fused(ours)(inputs), ours(inputs), **EXACT)


@pytest.mark.parametrize("both_ways", [False, True])
def test_rows_of_different_length_give_what_nn_gru_gives(both_ways):
    ours, torchs = pair(F, H, bidirectional=both_ways)
    batch = pad_collate([torch.randn(length, F) for length in (3, 9, 5)])
    for a, b in zip(
        run_model(ours, batch.inputs, None, batch.lengths),
        run_model(torchs, batch.inputs, None, batch.lengths),
        strict=True,
    ):
        assert_state(a, b, **EXACT)


def test_windows_with_a_carried_state_train_it_as_they_train_nn_gru(layers_run):
    wave = torch.sin(torch.arange(60) / 4).reshape(30, 2, 1)
    losses = []
    for recurrent in pair(1, H, num_layers=2):
        torch.manual_seed(0)
        model = RecurrentSequential(recurrent, nn.Linear(H, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        phase = BPTTTrainingPhase(window=8)
        loss = seq2seq_loss(nn.MSELoss())
        losses.append([float(phase(model, loss, wave, optimizer).loss) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]
    assert layers_run


def test_it_generates_what_it_generates_when_it_is_called_step_by_step():
    model = RecurrentSequential(nn.Embedding(9, F), GRU(F, H), nn.Linear(H, 9))
    primer = torch.randint(9, (3, 2))
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[3:] = True
    wanted, _ = by_hand(model, torch.cat([primer, primer]), mask, sample_best)
    sample = sample_model(model, 6, primer, sample_best)
    torch.testing.assert_close(sample.outputs, wanted)
