"""The shares of the steps: golden numbers, autograd's sum, detaching, finite differences, lengths, errors."""

import pytest
import torch
from helpers import Scaling, refused
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rnnkit import (
    PerStep,
    RecurrentSequential,
    Unroll,
    gradient_by_step,
    gradient_flow,
    seq2one_loss,
    seq2seq_loss,
)

T, B, F, H = 5, 3, 2, 4


class IdentityCell(nn.Module):
    """h = Wi x + Wh h + b from a learned h0: the numbers of Flux issue 2185."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("Wi", 5.0), ("Wh", 4.0), ("b", 0.0), ("h0", 7.0)):
            setattr(self, name, nn.Parameter(torch.full((1, 1), value, dtype=torch.float64)))

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.h0 if state is None else state[0]
        outputs = []
        for x in inputs:
            h = x @ self.Wi + h @ self.Wh + self.b
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)


class Running(nn.Module):
    """A stateless cell that keeps statistics in a buffer, which every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(F, H)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs: Tensor, state: object = None) -> tuple[Tensor, object]:
        self.calls += 1
        return self.lstm(inputs, state)


def last(outputs: Tensor, targets: object) -> Tensor:
    return outputs[-1].sum()


def autograd(model: nn.Module, loss, *batch) -> dict[str, Tensor]:
    total = loss(model(batch[0])[0], *batch[1:])
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(
        zip(names, torch.autograd.grad(total, parameters, materialize_grads=True), strict=True)
    )


MODELS = {
    "rnn": lambda: nn.RNN(F, H),
    "gru": lambda: nn.GRU(F, H, num_layers=2),
    "lstm": lambda: nn.LSTM(F, H, num_layers=2),
    "projected": lambda: nn.LSTM(F, 6, proj_size=H),
    "stack": lambda: RecurrentSequential(
        nn.Linear(F, 3), nn.GRU(3, H), nn.Tanh(), nn.LSTM(H, H), nn.Linear(H, H)
    ),
    "cells": lambda: Unroll(nn.LSTMCell(F, H), nn.LSTMCell(H, H)),
    "per step": lambda: RecurrentSequential(PerStep(nn.Linear(F, H)), Unroll(nn.GRUCell(H, H))),
    "buffer": Running,
}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(T, B, f, generator=generator, dtype=torch.float64) for f in (F, H))


def test_golden_numbers_of_flux_2185():
    shares = gradient_by_step(
        IdentityCell(), last, torch.tensor([2.0, 3.0]).double().view(2, 1, 1), None
    )
    by_step = {name: share.flatten().tolist() for name, share in shares.items()}
    assert by_step == {"Wi": [8, 3], "Wh": [28, 38], "b": [4, 1], "h0": [16, 0]}
    assert {name: sum(share) for name, share in by_step.items()} == {
        "Wi": 11,
        "Wh": 66,
        "b": 5,
        "h0": 16,
    }


def test_golden_numbers_of_a_state_detached_at_each_step():
    model, xs = IdentityCell(), torch.tensor([2.0, 3.0]).double().view(2, 1, 1)
    _, state = model(xs[:1])
    model(xs[1:], state.detach())[0].sum().backward()
    cut = {name: p.grad.item() for name, p in model.named_parameters() if p.grad is not None}
    assert cut == {"Wi": 3, "Wh": 38, "b": 1}
    shares = gradient_by_step(model, last, xs, None)
    assert {name: shares[name][-1].item() for name in cut} == cut


@pytest.mark.parametrize("average", ["step", "sequence"])
def test_the_shares_sum_to_autograds_gradient(model, average):
    inputs, targets = batch()
    loss = seq2seq_loss(nn.MSELoss(reduction="none"), average=average)
    lengths = torch.tensor([5, 2, 3])
    shares = gradient_by_step(model, loss, inputs, targets, lengths)
    expected = autograd(model, loss, inputs, targets, lengths)
    assert shares.keys() == expected.keys()
    for name, parameter in model.named_parameters():
        assert shares[name].shape == (T, *parameter.shape)
        assert shares[name].dtype == torch.float64
        torch.testing.assert_close(shares[name].sum(0), expected[name], rtol=0, atol=1e-12)


def test_a_cut_before_step_s_leaves_the_shares_from_s_on(model):
    inputs, targets = batch()
    loss = seq2one_loss(nn.MSELoss())
    shares = gradient_by_step(model, loss, inputs, targets[-1])

    def detached(state):
        return state.detach() if isinstance(state, Tensor) else tuple(map(detached, state))

    for s in range(1, T):
        _, state = model(inputs[:s])
        total = loss(model(inputs[s:], detached(state))[0], targets[-1])
        cut = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
        for share, part in zip(shares.values(), cut, strict=True):
            torch.testing.assert_close(share[s:].sum(0), part, rtol=0, atol=1e-12)


def test_finite_differences_agree_at_every_step():
    """A weight nudged at one step only moves the loss by that step's share."""
    torch.manual_seed(0)
    model, (inputs, targets) = nn.GRU(F, H).double(), batch()
    loss = seq2seq_loss(nn.MSELoss())
    shares = gradient_by_step(model, loss, inputs, targets)
    eps = 1e-6

    @torch.no_grad()
    def nudged(parameter: Tensor, index: int, step: int, by: float) -> float:
        outputs, state = [], None
        for t in range(T):
            parameter.view(-1)[index] += by * (t == step)
            output, state = model(inputs[t : t + 1], state)
            parameter.view(-1)[index] -= by * (t == step)
            outputs.append(output)
        return loss(torch.cat(outputs), targets).item()

    for name, parameter in model.named_parameters():
        for index in (0, parameter.numel() // 2, parameter.numel() - 1):
            for t in range(T):
                change = nudged(parameter, index, t, eps) - nudged(parameter, index, t, -eps)
                assert shares[name][t].flatten()[index].item() == pytest.approx(
                    change / (2 * eps), abs=1e-8
                )


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_fused_equals_loop(kind):
    torch.manual_seed(0)
    fused = kind(F, H, num_layers=2).double()
    loop, (inputs, targets) = Unroll.from_fused(fused), batch()
    loss = seq2seq_loss(nn.MSELoss())
    a, b = (
        gradient_by_step(fused, loss, inputs, targets),
        gradient_by_step(loop, loss, inputs, targets),
    )
    same = {id(p): name for name, p in loop.named_parameters()}
    assert len(a) == len(b) == 8
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(a[name], b[same[id(parameter)]], rtol=0, atol=1e-12)


def test_the_first_step_has_no_share_in_the_recurrent_weight():
    torch.manual_seed(0)
    inputs, targets = batch()
    share = gradient_by_step(nn.RNN(F, H).double(), seq2seq_loss(nn.MSELoss()), inputs, targets)[
        "weight_hh_l0"
    ]
    assert share[0].abs().max() == 0
    assert share[1:].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize(
    "make",
    [lambda y: (seq2seq_loss(nn.MSELoss()), y), lambda y: (seq2one_loss(nn.MSELoss()), y[-1])],
)
def test_padding_has_no_share_and_no_influence(make):
    torch.manual_seed(0)
    model, (inputs, targets) = nn.GRU(F, H).double(), batch()
    loss, targets = make(targets)
    lengths = torch.tensor([3, 1, 2])
    shares = gradient_by_step(model, loss, inputs, targets, lengths)
    inputs[3:] = 1e3
    inputs[1:, 1] = -1e3
    again = gradient_by_step(model, loss, inputs, targets, lengths)
    for name, share in shares.items():
        assert share[3:].abs().max() == 0
        assert share[:3].abs().max() > 0
        torch.testing.assert_close(share, again[name], rtol=0, atol=1e-14)


def test_the_model_stays_as_it_is():
    model, (inputs, targets) = Running().double(), batch()
    before = [p.clone() for p in model.parameters()]
    gradient_by_step(model, seq2seq_loss(nn.MSELoss()), inputs, targets)
    assert model.calls.item() == 0
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_has_no_influence_has_zeros_and_what_is_frozen_is_left_out():
    model = RecurrentSequential(nn.Linear(F, F), nn.LSTM(F, H, num_layers=2)).double()
    model[0].bias.requires_grad_(False)
    inputs, _ = batch()
    first = gradient_by_step(model, lambda outputs, targets: outputs[0].sum(), inputs, None)
    assert "0.bias" not in first
    assert first["1.weight_hh_l1"].abs().max() == 0
    assert first["1.weight_ih_l1"][0].abs().max() > 0
    assert first["1.weight_ih_l1"][1:].abs().max() == 0


def test_tied_weights_have_one_share_a_step():
    torch.manual_seed(0)
    cell = nn.GRUCell(H, H)
    model = RecurrentSequential(nn.Linear(F, H), Unroll(cell), Unroll(cell)).double()
    inputs, targets = batch()
    loss = seq2seq_loss(nn.MSELoss())
    shares, expected = (
        gradient_by_step(model, loss, inputs, targets),
        autograd(model, loss, inputs, targets),
    )
    assert shares.keys() == expected.keys()
    for name, share in shares.items():
        torch.testing.assert_close(share.sum(0), expected[name], rtol=0, atol=1e-12)


def test_a_list_of_steps_integer_inputs_and_no_grad():
    torch.manual_seed(0)
    model = RecurrentSequential(nn.Embedding(7, 3), nn.LSTM(3, H), nn.Linear(H, 7)).eval()
    tokens = torch.randint(7, (T + 1, B))
    loss = seq2seq_loss(nn.CrossEntropyLoss())
    with torch.no_grad():
        shares = gradient_by_step(model, loss, list(tokens[:-1]), list(tokens[1:]))
    expected = autograd(model, loss, tokens[:-1], tokens[1:])
    for name, share in shares.items():
        torch.testing.assert_close(share.sum(0), expected[name], rtol=1e-4, atol=1e-6)


def test_flow_is_the_norm_by_lag():
    torch.manual_seed(0)
    model, (inputs, targets) = nn.LSTM(F, H).double(), batch()
    lengths = torch.tensor([4, 2, 1])
    loss = seq2seq_loss(nn.MSELoss())
    flow, shares = (
        f(model, loss, inputs, targets, lengths) for f in (gradient_flow, gradient_by_step)
    )
    assert flow.keys() == shares.keys()
    for name, norms in flow.items():
        assert norms.shape == (T,)
        assert norms[0] == 0  # lag 0 is step T - 1, padding in every row
        for lag in range(T):
            torch.testing.assert_close(norms[lag], shares[name][T - 1 - lag].norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_of_a_linear_cell_decays_by_its_weight(dtype):
    model = nn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=dtype)
    inputs = torch.ones(120, 1, 1, dtype=dtype)
    for weight in (0.5, 2.0):
        nn.init.constant_(model.weight_ih_l0, 1.0)
        nn.init.constant_(model.weight_hh_l0, weight)
        flow = gradient_flow(model, last, inputs, None)["weight_ih_l0"]
        # To 2 ** 119 and its inverse, whose squares float32 does not hold.
        expected = weight ** torch.arange(120, dtype=dtype)
        torch.testing.assert_close(flow, expected, atol=0, rtol=1e-6)


class Ahead(nn.Module):
    """Reads the next step too, so it gives other outputs step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(F, H)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.linear(inputs + inputs.roll(-1, 0)), state


def mean(outputs: Tensor, targets: object) -> Tensor:
    return outputs.mean()


@pytest.mark.parametrize(
    ("model", "loss", "error", "text"),
    [
        (
            nn.LSTM(F, H, bidirectional=True),
            mean,
            ValueError,
            "got a bidirectional model; wanted a model that reads",
        ),
        (nn.LSTM(F, H, batch_first=True), mean, ValueError, "LSTM(batch_first=True)"),
        (nn.LSTMCell(F, H), mean, TypeError, "got a cell, LSTMCell"),
        (
            lambda x, s: (x, s),
            mean,
            TypeError,
            "gradient_by_step: got model = a function; wanted a torch.nn.Module",
        ),
        (
            nn.LSTM(F, H, 2, dropout=0.5),
            mean,
            ValueError,
            "got LSTM with dropout 0.5 in train mode; wanted no random",
        ),
        (
            RecurrentSequential(nn.LSTM(F, H), nn.Dropout(0.1)),
            mean,
            ValueError,
            "got Dropout with dropout 0.1",
        ),
        (
            Ahead(),
            mean,
            ValueError,
            "between the two; wanted the same from T calls of one step as from one call of T",
        ),
        (
            RecurrentSequential(nn.LSTM(F, H), PerStep(nn.BatchNorm1d(H))),
            mean,
            ValueError,
            "model.eval() for dropout",
        ),
        (
            nn.LSTM(F, H),
            lambda y, _: y.mean(0),
            ValueError,
            "got a loss (3, 4); wanted a tensor () that depends",
        ),
        (
            nn.LSTM(F, H),
            lambda y, _: y.mean().detach(),
            ValueError,
            "got a loss (); wanted a tensor () that depends",
        ),
        (
            nn.LSTM(F, H),
            lambda y, _: y.mean().item(),
            ValueError,
            "got a loss a float; wanted a tensor ()",
        ),
    ],
)
def test_errors(model, loss, error, text):
    with pytest.raises(error) as raised:
        gradient_by_step(model, loss, torch.randn(T, B, F), None)
    assert text in str(raised.value)


class Scaled(nn.Module):
    """A GRU whose outputs are scaled by a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.scale = nn.GRU(F, H), nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs, state=None):
        outputs, state = self.rnn(inputs, state)
        return outputs * self.scale, state


def test_a_parameter_without_dimensions_has_shares_and_a_flow():
    model, inputs = Scaled(), torch.randn(T, B, F)
    shares = gradient_by_step(model, mean, inputs, None)["scale"]
    mean(model(inputs)[0], None).backward()
    assert shares.shape == (T,)
    torch.testing.assert_close(shares.sum(), model.scale.grad)
    torch.testing.assert_close(
        gradient_flow(model, mean, inputs, None)["scale"], shares.abs().flip(0)
    )


def test_an_error_names_the_model():
    class Outputs(nn.Module):
        def forward(self, inputs, state=None):
            return inputs

    with pytest.raises(
        TypeError, match=r"gradient_by_step: got \(1, 3, \d+\) from Outputs; wanted a pair"
    ):
        gradient_by_step(Outputs(), mean, torch.randn(T, B, F), None)


def test_a_model_that_sees_a_little_of_the_other_steps_is_refused():
    class Leaking(nn.GRU):
        def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            outputs, state = super().forward(inputs, state)
            return outputs + 1e-4 * inputs.sum(), state

    inputs, _ = batch()
    with pytest.raises(ValueError, match="the same from T calls of one step as from one call of T"):
        gradient_by_step(Leaking(F, H).double(), last, inputs, None)


def test_dropout_is_fine_in_eval_mode():
    model = nn.LSTM(F, H, 2, dropout=0.5).eval()
    assert gradient_by_step(model, mean, torch.randn(T, B, F), None)["weight_ih_l0"].shape == (
        T,
        4 * H,
        F,
    )


def test_lengths_are_checked():
    with pytest.raises(
        ValueError,
        match=r"gradient_by_step: got lengths from 2 to 6; wanted lengths from 1 to T = 5",
    ):
        gradient_by_step(nn.LSTM(F, H), mean, torch.randn(T, B, F), None, torch.tensor([2, 6, 3]))


class Log(nn.Module):
    """Takes the logarithm of its inputs: not finite on padding of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(F, dtype=torch.float64))
        self.rnn = nn.GRU(F, H).double()

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.rnn((inputs * self.scale).log(), state)


def test_padding_that_a_model_is_not_finite_on_has_no_share():
    torch.manual_seed(0)
    model, (inputs, targets) = Log(), batch()
    inputs = inputs.abs() + 1
    lengths = torch.tensor([5, 2, 3])
    for row, length in enumerate(lengths.tolist()):
        inputs[length:, row] = 0
    loss = seq2seq_loss(nn.MSELoss())
    shares = gradient_by_step(model, loss, inputs, targets, lengths)
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, length in enumerate(lengths.tolist()):  # one sequence at a time, with no padding
        outputs, _ = model(inputs[:length, row : row + 1])
        total = (outputs - targets[:length, row : row + 1]).square().mean(-1).sum() / lengths.sum()
        for name, grad in zip(
            wanted, torch.autograd.grad(total, list(model.parameters())), strict=True
        ):
            wanted[name] += grad
    for name, share in shares.items():
        torch.testing.assert_close(share.sum(0), wanted[name], rtol=0, atol=1e-12)


class TwoHeads(nn.Module):
    """Reads two sequences and gives two."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(F + 1, H)
        self.one, self.two = nn.Linear(H, 1), nn.Linear(H, 2)

    def forward(self, inputs, state=None):
        outputs, state = self.rnn(torch.cat([inputs["a"], inputs["b"]], -1), state)
        return {"one": self.one(outputs), "two": self.two(outputs)}, state


def test_dicts_of_inputs_and_outputs_have_their_shares():
    torch.manual_seed(0)
    model = TwoHeads().double()
    inputs = {"a": batch()[0], "b": batch()[1][..., :1]}

    def loss(outputs, targets):
        return outputs["one"].square().mean() + targets * outputs["two"][-1].sum()

    shares = gradient_by_step(model, loss, inputs, 3.0)
    expected = autograd(model, loss, inputs, 3.0)
    for name, share in shares.items():
        assert share.shape[0] == T
        torch.testing.assert_close(share.sum(0), expected[name], rtol=0, atol=1e-12)


def test_a_head_of_classes_beside_the_outputs_is_no_hindrance():
    class WithClasses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3)

        def forward(self, inputs, state=None):
            hidden, state = self.rnn(inputs, state)
            return {"hidden": hidden, "class": hidden.argmax(-1), "on": hidden[..., 0] > 0}, state

    torch.manual_seed(0)
    model, inputs = WithClasses(), torch.randn(5, 2, 2)
    shares = gradient_by_step(model, lambda outputs, _: outputs["hidden"].sum(), inputs, None)
    model.rnn(inputs)[0].sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(shares[name].sum(0), parameter.grad)


def test_a_head_that_looks_ahead_is_seen_in_a_dict_too():
    class Heads(Ahead):
        def forward(self, inputs, state=None):
            return {"plain": inputs, "ahead": super().forward(inputs, state)[0]}, state

    refused(
        lambda: gradient_by_step(
            Heads(), lambda y, _: y["ahead"].mean(), torch.randn(T, B, F), None
        ),
        "wanted the same from T calls of one step as from one call of T",
    )


@pytest.mark.parametrize(
    "wrap",
    [AveragedModel, nn.DataParallel, lambda model: torch.compile(model, backend="eager")],
    ids=["averaged", "parallel", "compiled"],
)
def test_a_model_behind_a_wrapper_has_the_same_shares(wrap):
    torch.manual_seed(0)
    model, (inputs, targets) = RecurrentSequential(nn.GRU(F, H), nn.Linear(H, H)).double(), batch()
    loss = seq2seq_loss(nn.MSELoss())
    alone = gradient_by_step(model, loss, inputs, targets)
    wrapped = gradient_by_step(wrap(model), loss, inputs, targets)
    for name, share in alone.items():
        (same,) = (other for key, other in wrapped.items() if f".{key}".endswith(f".{name}"))
        torch.testing.assert_close(same, share, rtol=0, atol=1e-12)


def test_an_error_names_the_model_behind_its_wrapper():
    class Outputs(nn.Module):
        def forward(self, inputs, state=None):
            return inputs

    refused(
        lambda: gradient_by_step(AveragedModel(Outputs()), mean, torch.randn(T, B, F), None),
        "from Outputs; wanted a pair",
        TypeError,
    )


def test_shares_are_the_model_s_whatever_the_default_device_is():
    model, inputs = nn.GRU(F, H), torch.randn(T, B, F)
    lengths = torch.tensor([5, 2, 3])
    torch.set_default_device("meta")
    try:
        shares = gradient_by_step(model, lambda y, _, n: y[:2].mean(), inputs, None, lengths)
    finally:
        torch.set_default_device(None)
    assert shares["weight_hh_l0"][2:].abs().max() == 0
    assert shares["weight_hh_l0"][1].abs().max() > 0


def test_a_model_that_writes_to_its_inputs_has_shares_too():
    model, inputs = nn.GRU(F, H), torch.randn(T, B, F)
    before = inputs.clone()
    shares = gradient_by_step(
        Scaling(model), lambda outputs, _: outputs.square().sum(), inputs, None
    )
    assert torch.equal(inputs, before)
    model((inputs - 1) * 2)[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(shares[f"model.{name}"].sum(0), parameter.grad)
