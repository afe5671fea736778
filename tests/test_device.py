"""No step waits for a device: what decides is read on the CPU, and copies to the device are not waited for.

On a GPU PyTorch says itself who waits. Elsewhere the meta device shows it: it computes shapes and has no values, so what
reads one fails, and copies to it can be looked at.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rnnkit import (
    GRU,
    BPTTTrainingPhase,
    BPTTValidationPhase,
    ClipGradients,
    Feedback,
    History,
    Learner,
    ProgressBar,
    RecurrentSequential,
    SequenceBatch,
    Unroll,
    beam_search,
    forecast,
    rollout,
    sample_model,
    sample_softmax,
    seq2one_loss,
    seq2seq_loss,
)
from rnnkit.training import average
from rnnkit.training import phase as phase_module

V, H, T, B = 10, 8, 12, 3
LENGTHS = torch.tensor([12, 5, 7])
TOKENS = torch.arange(T * B).view(T, B) % V
NUMBERS = torch.linspace(-1, 1, T * B * 2).view(T, B, 2)
LABELS = torch.tensor([0, 4, 9])
CROSS_ENTROPY = seq2seq_loss(nn.CrossEntropyLoss())
SQUARES = seq2seq_loss(nn.MSELoss())


def classes(layer=nn.LSTM):
    return RecurrentSequential(nn.Embedding(V, H), layer(H, H), nn.Linear(H, V))


def numbers(layer=nn.GRU):
    return RecurrentSequential(layer(2, H), nn.Linear(H, 2))


def of_cells(width, hidden):
    return Unroll(nn.LSTMCell(width, hidden))


def both_ways():
    return RecurrentSequential(
        nn.Embedding(V, H), nn.GRU(H, H, bidirectional=True), nn.Linear(2 * H, V)
    )


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = classes()

    def forward(self, inputs, state=None):
        outputs, state = self.body(inputs, state)
        return {"this": outputs, "that": outputs}, state


TOKEN_BATCH = SequenceBatch(TOKENS, TOKENS)
RAGGED_TOKENS = SequenceBatch(TOKENS, TOKENS, LENGTHS)
NUMBER_BATCH = SequenceBatch(NUMBERS, NUMBERS)
RAGGED_NUMBERS = SequenceBatch(NUMBERS, NUMBERS, LENGTHS)
TWO_TARGETS = SequenceBatch(TOKENS, {"this": TOKENS, "that": TOKENS}, LENGTHS)
TWO_LOSSES = seq2seq_loss(
    {"this": nn.CrossEntropyLoss(), "that": nn.CrossEntropyLoss()}, weights={"this": 0.3}
)
BY_CHANCE = Feedback.probability(0.5)

# name: the model, the loss, the batch, the phase
STEPS = {
    "classes": (classes, CROSS_ENTROPY, TOKEN_BATCH, BPTTTrainingPhase),
    "ragged": (classes, CROSS_ENTROPY, RAGGED_TOKENS, BPTTTrainingPhase),
    "windows": (classes, CROSS_ENTROPY, RAGGED_TOKENS, lambda: BPTTTrainingPhase(5)),
    "stateful": (
        classes,
        CROSS_ENTROPY,
        TOKEN_BATCH,
        lambda: BPTTTrainingPhase(5, 2, stateful=True),
    ),
    "accumulated": (classes, CROSS_ENTROPY, TOKEN_BATCH, lambda: BPTTTrainingPhase(accumulate=2)),
    "ignored": (
        classes,
        seq2seq_loss(nn.CrossEntropyLoss(ignore_index=0)),
        TOKEN_BATCH,
        BPTTTrainingPhase,
    ),
    "weighed": (
        classes,
        CROSS_ENTROPY,
        SequenceBatch(TOKENS, TOKENS, weights=torch.rand(T, B)),
        BPTTTrainingPhase,
    ),
    "unreduced": (
        classes,
        seq2seq_loss(nn.CrossEntropyLoss(reduction="none")),
        RAGGED_TOKENS,
        BPTTTrainingPhase,
    ),
    "by sequence": (
        classes,
        seq2seq_loss(nn.CrossEntropyLoss(), "sequence"),
        RAGGED_TOKENS,
        lambda: BPTTTrainingPhase(5),
    ),
    "warmup": (numbers, seq2seq_loss(nn.MSELoss(), warmup=2), RAGGED_NUMBERS, BPTTTrainingPhase),
    "a function": (
        numbers,
        seq2seq_loss(lambda y, t: ((y - t) ** 2).mean()),
        RAGGED_NUMBERS,
        BPTTTrainingPhase,
    ),
    "over the batch": (
        numbers,
        lambda y, t: ((y - t) ** 2).mean(),
        NUMBER_BATCH,
        BPTTTrainingPhase,
    ),
    "fed at the end": (
        numbers,
        SQUARES,
        NUMBER_BATCH,
        lambda: BPTTTrainingPhase(feedback=Feedback.last(3)),
    ),
    "fed by chance": (
        numbers,
        SQUARES,
        RAGGED_NUMBERS,
        lambda: BPTTTrainingPhase(feedback=BY_CHANCE),
    ),
    "fed draws": (
        classes,
        CROSS_ENTROPY,
        TOKEN_BATCH,
        lambda: BPTTTrainingPhase(feedback=BY_CHANCE, sampler=sample_softmax),
    ),
    "one a sequence": (
        classes,
        seq2one_loss(nn.CrossEntropyLoss()),
        SequenceBatch(TOKENS, LABELS, LENGTHS),
        BPTTTrainingPhase,
    ),
    "the last window": (
        classes,
        seq2one_loss(nn.CrossEntropyLoss(), "mean"),
        SequenceBatch(TOKENS, LABELS, LENGTHS),
        lambda: BPTTTrainingPhase(4),
    ),
    "two heads": (TwoHeads, TWO_LOSSES, TWO_TARGETS, lambda: BPTTTrainingPhase(5, accumulate=2)),
    "ragged and stateful": (
        classes,
        CROSS_ENTROPY,
        RAGGED_TOKENS,
        lambda: BPTTTrainingPhase(stateful=True),
    ),
    "both directions": (both_ways, CROSS_ENTROPY, RAGGED_TOKENS, BPTTTrainingPhase),
    "rnnkit.GRU": (lambda: classes(GRU), CROSS_ENTROPY, TOKEN_BATCH, BPTTTrainingPhase),
    "cells": (lambda: classes(of_cells), CROSS_ENTROPY, TOKEN_BATCH, BPTTTrainingPhase),
    "validation": (classes, CROSS_ENTROPY, RAGGED_TOKENS, BPTTValidationPhase),
    "validation by step": (
        classes,
        CROSS_ENTROPY,
        RAGGED_TOKENS,
        lambda: BPTTValidationPhase(by_step=True),
    ),
    "closed loop": (numbers, SQUARES, RAGGED_NUMBERS, lambda: BPTTValidationPhase(3)),
    "two heads by step": (
        TwoHeads,
        TWO_LOSSES,
        TWO_TARGETS,
        lambda: BPTTValidationPhase(by_step=True),
    ),
}

# name: the model, and what is done with it and with tokens and numbers on its device
FUTURES = {
    "sample": (classes, lambda model, tokens, _: sample_model(model, 20, tokens, sample_softmax)),
    "ragged sample": (
        classes,
        lambda model, tokens, _: sample_model(model, 20, (tokens, LENGTHS), sample_softmax),
    ),
    "beam search": (classes, lambda model, tokens, _: beam_search(model, 20, tokens, 3)),
    "forecast": (numbers, lambda model, _, values: forecast(model, 5, values, paths=4)),
    "rollout": (numbers, lambda model, _, values: rollout(model, values, Feedback.every(2))),
}


def learner_of(name, device):
    make, loss, batch, phase = STEPS[name]
    model = make().to(device)  # to "meta" its parameters are made anew
    optimizer = torch.optim.Adam(model.parameters())
    learner = Learner(
        model, loss, optimizer, [History(), ProgressBar(), ClipGradients(1.0)], device=device
    )
    return learner, phase(), batch


class Waits(TorchDispatchMode):
    """What would make the CPU wait for a GPU, as the meta device shows it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        name = func.name()
        if name == "aten::_to_copy" and devices == {"cpu"}:
            target = torch.device(kwargs.get("device") or "cpu")
            if target.type == "meta" and not kwargs.get("non_blocking"):
                self.found.append("a copy to the device that is waited for")
        if name == "aten::copy_" and devices == {"cpu", "meta"}:
            self.found.append("a copy between the two")
        if name.startswith("aten::index") and "meta" in devices:
            for tensor in tensors:
                if tensor.dtype == torch.bool:
                    self.found.append("an index of bools, which are counted first")
                if tensor.device.type == "cpu" and tensor.ndim:
                    self.found.append("an index on the CPU, which is copied")
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reads_nothing_of_a_device(name, monkeypatch):
    monkeypatch.setattr(
        average, "_TOGETHER", 2
    )  # an epoch's losses are added up within these steps
    learner, phase, batch = learner_of(name, "meta")
    with Waits() as waits:
        for _ in range(3):
            learner.step(phase, batch)
    assert not waits.found


@pytest.mark.parametrize("name", FUTURES)
def test_generation_reads_nothing_of_a_device(name):
    make, draw = FUTURES[name]
    model, tokens, values = make().to("meta"), TOKENS.to("meta"), NUMBERS.to("meta")
    with Waits() as waits:
        draw(model, tokens, values)
    assert not waits.found


def test_what_waits_is_seen():
    here, there = torch.zeros(3), torch.zeros(3, device="meta")
    with Waits() as waits:
        here.to("meta")
    assert waits.found == ["a copy to the device that is waited for"]
    with Waits() as waits:
        here.to("meta", non_blocking=True)
    assert not waits.found
    with Waits() as waits, contextlib.suppress(Exception):
        _ = there[torch.tensor([True, False, True], device="meta")]
    assert waits.found == ["an index of bools, which are counted first"]
    with Waits() as waits:
        _ = there[torch.tensor([0, 1])]
    assert waits.found == ["an index on the CPU, which is copied"]
    for read in (there.sum().item, lambda: bool(there.any()), there.nonzero, there.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize("name", STEPS)
def test_what_is_counted_on_the_cpu_is_what_is_scored_on_the_device(name, monkeypatch):
    losses = []
    for device in ("cpu", "another"):
        if device == "another":  # as a device does: the same values in other tensors
            monkeypatch.setattr(phase_module, "move", lambda tree, _: tree_map(torch.clone, tree))
        torch.manual_seed(0)
        learner, phase, batch = learner_of(name, "cpu")
        losses.append([learner.step(phase, batch).loss for _ in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


@contextlib.contextmanager
def nothing_may_wait():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_not_wait_for_a_gpu(name):
    learner, phase, batch = learner_of(name, "cuda")
    learner.step(phase, batch)  # the first one sets the device up
    with nothing_may_wait():
        for _ in range(66):
            learner.step(phase, batch)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUTURES)
def test_generation_does_not_wait_for_a_gpu(name):
    make, draw = FUTURES[name]
    model, tokens, values = make().cuda(), TOKENS.cuda(), NUMBERS.cuda()
    draw(model, tokens, values)
    with nothing_may_wait():
        draw(model, tokens, values)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_a_gpu_trains_as_the_cpu_does(name):
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        learner, phase, batch = learner_of(name, device)
        losses.append([float(learner.step(phase, batch).loss) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
