"""Loops by hand in PyTorch: the plain one, the best, and that of the thread, a model and a loss for each step.

Beside them the floor: the matrix products of a training step alone, the recurrent ones a step at a time.
"""

import torch
from contest import CLIP, RATE, Task, torch_model, torch_task
from torch import nn


def start(task: Task, variant: str):
    parts, batches = torch_task(task)
    if variant == "floor":
        return products(task), batches
    model = torch_model(parts)
    parameters = list(model.parameters())
    fused = variant == "best"
    optimizer = torch.optim.Adam(parameters, RATE, fused=fused)
    loss_fn = nn.CrossEntropyLoss()

    def whole(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_fn(model(inputs).flatten(0, 1), targets.flatten())

    def literal(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`sum(loss.(model.(xs), ys))`, as in the thread: the layer keeps its state between calls."""
        state = None
        total = torch.zeros(())
        for x, y in zip(inputs, targets, strict=True):
            hidden, state = model.layer(model.embedding(x).unsqueeze(0), state)
            total = total + loss_fn(model.head(hidden[0]), y)
        return total / len(inputs)

    score = literal if variant == "literal" else whole

    def train(loader) -> float:
        total = torch.zeros(())
        for inputs, targets in loader:
            loss = score(inputs, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            total += loss.detach()
        return total / len(loader)

    return train, batches


def products(task: Task):
    """All products of one step, forward and backward, into memory that is there already."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[task.kind] * task.hidden
    rows = task.steps * task.batch
    wide = [(task.hidden, gates), (task.hidden, 64)]  # the input's and the head's
    steps = torch.randn(task.steps, task.batch, task.hidden)
    ahead = torch.randn(task.steps, task.batch, gates)
    weight = torch.randn(task.hidden, gates)
    made = torch.empty(task.batch, gates)
    back = torch.empty(task.batch, task.hidden)
    whole = []
    for left, right in wide:
        x, w, y = torch.randn(rows, left), torch.randn(left, right), torch.randn(rows, right)
        whole.append((x, w, y, torch.empty_like(x), torch.empty_like(w), torch.empty_like(y)))

    def step() -> None:
        for x, w, y, dx, dw, out in whole:
            torch.mm(x, w, out=out)
            torch.mm(y, w.T, out=dx)
            torch.mm(x.T, y, out=dw)
        for t in range(task.steps):
            torch.mm(steps[t], weight, out=made)
        for t in range(task.steps):
            torch.mm(ahead[t], weight.T, out=back)
        torch.mm(steps.flatten(0, 1).T, ahead.flatten(0, 1))

    def train(loader) -> float:
        for _ in loader:
            step()
        return float("nan")

    return train
