"""Exported models, each against the model itself, and what exporters do in silence."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from helpers import Scaling, refused
from torch import nn

from rnnkit import (
    Attention,
    EncoderDecoder,
    PerStep,
    RecurrentSequential,
    Unroll,
    export_onnx,
    export_program,
)

LAYERS = {
    "lstm": nn.LSTM(3, 8, num_layers=2, dropout=0.5),
    "gru": nn.GRU(3, 8),
    "rnn": nn.RNN(3, 8, nonlinearity="relu"),
    "tokens": RecurrentSequential(
        nn.Embedding(9, 4), nn.LSTM(4, 8), nn.Dropout(0.5), nn.GRU(8, 5), nn.Linear(5, 9)
    ),
    "normed": RecurrentSequential(
        PerStep(nn.BatchNorm1d(3)), nn.GRU(3, 8), PerStep(nn.Linear(8, 2))
    ),
}
LOOPS = {
    "cells": RecurrentSequential(Unroll(nn.LSTMCell(3, 8), nn.LSTMCell(8, 8)), nn.Linear(8, 1)),
    "projected": nn.LSTM(3, 8, proj_size=4),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_model = pytest.mark.parametrize("name", [*LAYERS, *LOOPS])


def inputs_for(name, time, rows):
    if name == "tokens":
        return torch.randint(9, (time, rows))
    return torch.randn(time, rows, 3)


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in leaves(part)]


def called(model, inputs, state):
    """What the model gives in evaluation, as a list, and its state."""
    model.eval()
    with torch.no_grad():
        outputs, state = model(inputs, state)
    model.train()
    return [outputs, *leaves(state)], state


def session(path):
    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in run.get_inputs()]

    def call(*tensors):
        given = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return [torch.from_numpy(value) for value in run.run(None, given)]

    return call


def assert_same(run, name, model, time, rows, calls=1):
    """The exported and the model over the same inputs, each carrying its own state."""
    _, state = called(model, inputs_for(name, 4, rows), None)
    ours = leaves(state)
    for _ in range(calls):
        inputs = inputs_for(name, time, rows)
        wanted, state = called(model, inputs, state)
        got = run(inputs, *ours)
        ours = got[1:]
        for theirs, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(theirs, right, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- Equal to the model


@every_model
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_step_through_torch_export_is_the_model_over_1000_steps(name):
    model = (LAYERS | LOOPS)[name].train()
    run = export_program(model, inputs_for(name, 6, 2), steps=1).module()
    assert_same(run, name, model, 1, 7, calls=1000)
    assert_same(run, name, model, 1, 1, calls=5)
    assert model.training


@every_layer
def test_a_sequence_in_onnx_is_the_model_at_any_number_of_steps_and_rows(tmp_path, name):
    model = LAYERS[name].train()
    export_onnx(model, tmp_path / "model.onnx", inputs_for(name, 6, 2))
    run = session(tmp_path / "model.onnx")
    for time in (1, 9, 64):
        for rows in (1, 7):
            assert_same(run, name, model, time, rows)
    assert_same(run, name, model, 1, 7, calls=1000)
    assert model.training


def test_cells_are_exported_a_step_or_a_chunk_at_a_time(tmp_path):
    model = LOOPS["cells"]
    for steps in (1, 9):
        export_onnx(model, tmp_path / "model.onnx", inputs_for("cells", 2, 2), steps=steps)
        run = session(tmp_path / "model.onnx")
        for rows in (1, 7):
            assert_same(run, "cells", model, steps, rows, calls=3)
    run = export_program(model, inputs_for("cells", 2, 2), steps=9).module()
    assert_same(run, "cells", model, 9, 7, calls=3)


def test_a_model_that_writes_to_its_inputs_is_exported(tmp_path):
    model, example = nn.GRU(3, 8).eval(), torch.randn(6, 2, 3)
    before = example.clone()
    export_onnx(Scaling(model), tmp_path / "model.onnx", example)
    program = export_program(Scaling(model), example, steps=6).module()
    assert torch.equal(example, before)
    state = torch.randn(1, 2, 8)
    wanted = model((example - 1) * 2, state)
    for run in (session(tmp_path / "model.onnx"), program):
        for got, right in zip(run(example.clone(), state), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=0, atol=1e-5)


def test_a_program_is_saved_and_loaded(tmp_path):
    model = LAYERS["gru"]
    torch.export.save(
        export_program(model, torch.randn(2, 2, 3), steps=1), str(tmp_path / "gru.pt2")
    )
    run = torch.export.load(str(tmp_path / "gru.pt2")).module()
    assert_same(run, "gru", model, 1, 7, calls=5)


def test_two_directions_are_exported_as_whole_sequences(tmp_path):
    model = nn.GRU(3, 4, bidirectional=True)
    export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 2, 3))
    assert_same(session(tmp_path / "model.onnx"), "both", model, 9, 7)


def test_a_decoder_goes_out_with_what_its_encoder_read():
    decoder = RecurrentSequential(nn.Embedding(5, 4), nn.GRU(4, 8))
    encoder = RecurrentSequential(nn.GRU(3, 8))
    model = EncoderDecoder(encoder, decoder, Attention(8, 5)).eval()
    tokens = torch.randint(5, (7, 2))
    with torch.no_grad():
        state = model.encode(torch.randn(6, 2, 3), torch.tensor([6, 4]))
        run = export_program(model, tokens, steps=1, state=state).module()
        for step in tokens.split(1):
            got = run(step, *leaves(state))
            outputs, state = model(step, state)
            for theirs, right in zip(got, [outputs, *leaves(state)], strict=True):
                torch.testing.assert_close(theirs, right)


class Named(nn.Module):
    """Two sequences in, two out."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, inputs, state=None):
        outputs, state = self.gru(inputs["load"] + inputs["weather"], state)
        return {"mean": outputs, "spread": outputs.exp()}, state


def test_dicts_go_in_and_out_by_their_names(tmp_path):
    model = Named()
    inputs = {"load": torch.randn(5, 2, 3), "weather": torch.randn(5, 2, 3)}
    export_onnx(model, tmp_path / "model.onnx", inputs)
    run = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [value.name for value in run.get_inputs()] == [
        "inputs_load",
        "inputs_weather",
        "state_0",
    ]
    assert [value.name for value in run.get_outputs()] == [
        "outputs_mean",
        "outputs_spread",
        "new_state_0",
    ]
    state = torch.randn(1, 2, 4)
    given = [inputs["load"], inputs["weather"], state]
    with torch.no_grad():
        outputs, after = model(inputs, state)
    wanted = [outputs["mean"], outputs["spread"], after]
    for theirs, right in zip(session(tmp_path / "model.onnx")(*given), wanted, strict=True):
        torch.testing.assert_close(theirs, right)


def test_a_program_takes_and_gives_the_sequences_of_a_dict_one_by_one():
    model = Named()
    inputs = {"load": torch.randn(1, 2, 3), "weather": torch.randn(1, 2, 3)}
    state = torch.randn(1, 2, 4)
    outputs, after = model(inputs, state)
    given = export_program(model, inputs, steps=1).module()(*inputs.values(), state)
    for theirs, right in zip(given, (*outputs.values(), after), strict=True):
        torch.testing.assert_close(theirs, right)


# ---------------------------------------------------------------- Refused


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_length_that_torch_export_would_fix_is_refused(kind):
    refused(
        lambda: export_program(kind(3, 4), torch.randn(6, 2, 3)),
        "export_program: got a program of torch.export that takes the 5 steps of its example only; "
        "wanted one for any number of steps. Likely fix: torch.export keeps T of nn.LSTM",
    )


class Sum(nn.Module):
    """A recurrence that is one operation over all steps."""

    def forward(self, inputs, state=None):
        if state is None:
            state = torch.zeros_like(inputs[:1])
        outputs = inputs.cumsum(0) + state
        return outputs, outputs[-1:]


def test_an_open_length_stays_open_where_torch_export_can():
    run = export_program(Sum(), torch.randn(4, 2, 3)).module()
    assert_same(run, "sum", Sum(), 64, 7)


class Clock(nn.Module):
    """A model with a number that Python computes: an exporter keeps that of its example."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, inputs, state=None):
        outputs, state = self.gru(inputs, state)
        return outputs / len(inputs), state


def test_a_number_that_the_exporter_keeps_is_found_and_nothing_is_written(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("the old one")
    refused(
        lambda: export_onnx(Clock(), path, torch.randn(6, 2, 3)),
        "export_onnx: got the ONNX file, which at T = 1, B = 1 is not the model: a number is off by",
    )
    assert path.read_text() == "the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    export_onnx(Clock(), path, torch.randn(6, 2, 3), steps=1)
    assert onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape == [1, "rows", 3]


class Branching(nn.GRU):
    """An `if` that none of the comparisons enters."""

    def forward(self, inputs, state=None):
        outputs, state = super().forward(inputs, state)
        if inputs.abs().max() > 1e6:
            outputs = 0 * outputs
        return outputs, state


def test_a_branch_that_the_exporter_keeps_is_warned_of_by_its_line(tmp_path):
    with pytest.warns(torch.jit.TracerWarning, match="boolean") as heard:
        export_onnx(Branching(3, 4), tmp_path / "model.onnx", torch.randn(6, 2, 3))
    assert {Path(warning.filename).name for warning in heard} == {Path(__file__).name}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("model", "example", "wanted"),
    [
        (LOOPS["cells"], torch.randn(6, 2, 3), "the ONNX file, which at T = 1, B = 1 is not the model:"),
        (LOOPS["projected"], torch.randn(6, 2, 3), "a model that torch.onnx.export does not take (Symb"),
        (nn.GRU(3, 4).double(), torch.randn(6, 2, 3).double(), "weights of torch.float64, weight_ih_l0 the"),
        (lambda inputs, state=None: (inputs, state), torch.randn(6, 2, 3), "a function; wanted a torch.nn.M"),
        (nn.GRUCell(3, 4), torch.randn(6, 2, 3), "a cell, GRUCell; wanted a model"),
        (nn.GRU(3, 4), torch.randn(3), "inputs (3,); wanted inputs (T, B, *F)"),
        (nn.GRU(3, 4), torch.randn(6, 3), "a state leaf (1, 4) for a batch of 3; wanted"),
    ],
)  # fmt: skip
def test_what_has_no_onnx_file_is_refused_and_none_is_written(tmp_path, model, example, wanted):
    call = lambda: export_onnx(model, tmp_path / "model.onnx", example)  # noqa: E731
    refused(call, f"export_onnx: got {wanted}", (ValueError, TypeError))
    assert not list(tmp_path.iterdir())


def test_arguments_that_cannot_be_meant_are_refused(tmp_path):
    example = torch.randn(6, 2, 3)
    both = nn.GRU(3, 4, bidirectional=True)
    refused(
        lambda: export_program(both, example, steps=1),
        "export_program: got a bidirectional model in pieces of steps=1; wanted one that reads",
    )
    refused(
        lambda: export_program(nn.GRU(3, 4), example, steps=0),
        "export_program: got steps = 0; wanted steps >= 1.",
    )
    refused(
        lambda: export_onnx(nn.GRU(3, 4), tmp_path / "no" / "model.onnx", example),
        "export_onnx: got No such file or directory when writing",
        OSError,
    )
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(
        lambda: export_onnx(nn.GRU(3, 4), tmp_path / "model.onnx", torch.randn(6, 2, 3)),
        "export_onnx: got no package onnxruntime; wanted one that runs ONNX files. "
        "Likely fix: pip install 'rnnkit[export]'.",
        ImportError,
    )
