"""What rnnkit.GRU saves: forward and backward of one layer, against nn.GRU and against the floor.

    python tests/benchmarks/bench_gru.py [rounds] [threads]

The floor is the time of the matrix products that no way of computing the same gradients can leave out: of each step's
state with the recurrent weights, of each step's gradient with them, and four that are one product for all steps. "step"
is a training step of a whole model (embedding, GRU, linear head, cross-entropy, Adam) by a Learner. The ways are taken
in turn, in an order drawn anew each round; each round gives ratios, and their median is what to trust, since the
machine may be shared. Processor time with one thread, wall time with more. The heap keeps what is freed, so that chance
has no part in it.
"""

import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench_generation import keep_heap
from torch import nn

import rnnkit as rk

V = 64
# B, T, H, and how often in one measurement.
SHAPES = {
    "tiny": (8, 16, 32, 10),
    "few steps": (32, 8, 128, 10),
    "small": (32, 32, 128, 4),
    "medium": (32, 128, 256, 1),
    "long": (8, 1024, 128, 1),
}
Way = Callable[[], object]


def layer(kind: type[nn.GRU], batch: int, length: int, hidden: int) -> Way:
    """Forward and backward, with the gradients of the inputs and of all weights."""
    torch.manual_seed(0)
    gru = kind(hidden, hidden)
    inputs = torch.randn(length, batch, hidden, requires_grad=True)
    by = torch.randn(length, batch, hidden)
    wanted = [inputs, *gru.parameters()]
    return lambda: torch.autograd.grad(gru(inputs)[0], wanted, by)


def floor(batch: int, length: int, hidden: int) -> Way:
    """The matrix products alone, on tensors of the same sizes."""
    w, u = torch.randn(3 * hidden, hidden), torch.randn(3 * hidden, hidden)
    rows, states = torch.randn(length * batch, hidden), torch.randn(length * batch, hidden)
    sums, grads = torch.randn(batch, 3 * hidden), torch.randn(length * batch, 3 * hidden)
    state = torch.randn(batch, hidden)

    def way() -> None:
        torch.mm(rows, w.t())
        for _ in range(length):
            torch.mm(state, u.t(), out=sums)
        for _ in range(length):
            torch.mm(sums, u, out=state)
        torch.mm(grads, w)
        torch.mm(grads.t(), rows)
        torch.mm(grads.t(), states)
        sums.fill_(1.0)  # or numbers grow from call to call

    return way


def step(kind: type[nn.GRU], batch: int, length: int, hidden: int) -> Way:
    """A training step of a whole model."""
    torch.manual_seed(0)
    model = rk.RecurrentSequential(
        nn.Embedding(V, hidden), kind(hidden, hidden), nn.Linear(hidden, V)
    )
    optimizer = torch.optim.Adam(model.parameters())
    learner = rk.Learner(model, rk.seq2seq_loss(nn.CrossEntropyLoss()), optimizer)
    tokens = torch.randint(V, (length + 1, batch))
    phase = rk.BPTTTrainingPhase()
    return lambda: learner.step(phase, tokens)


def compare(ways: dict[str, Way], repeats: int, rounds: int, clock: Callable[[], float]) -> dict:
    """Of each way the ratios to the first, one a round."""
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        spent = {}
        for name in random.sample(list(ways), len(ways)):
            start = clock()
            for _ in range(repeats):
                ways[name]()
            spent[name] = clock() - start
        for name in ways:
            ratios[name].append(spent[name] / spent[next(iter(ways))])
    return {name: row[1:] for name, row in ratios.items()}  # the first round warmed up


def main(rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    print(
        f"torch {torch.__version__}, rnnkit {rk.__version__}, Python {platform.python_version()}, threads {threads}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    clock = time.process_time if threads == 1 else time.perf_counter
    for name, (*shape, repeats) in SHAPES.items():
        for a, b in zip(layer(rk.GRU, *shape)(), layer(nn.GRU, *shape)(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
        layers = {"nn.GRU": layer(nn.GRU, *shape), "rnnkit.GRU": layer(rk.GRU, *shape)}
        layers["floor"] = floor(*shape)
        steps = {"nn.GRU": step(nn.GRU, *shape), "rnnkit.GRU in a step": step(rk.GRU, *shape)}
        found = compare(layers, repeats, rounds, clock) | compare(steps, repeats, rounds, clock)
        told = []
        for way in ("rnnkit.GRU", "floor", "rnnkit.GRU in a step"):
            low, middle, high = statistics.quantiles(found[way], n=4)
            told.append(f"{way} {middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"{name:9} B, T, H = {shape}: {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    keep_heap()
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [25, 1][len(arguments) :]))
