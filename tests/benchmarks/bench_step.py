"""What a Learner costs: one `learner.step` against the same step written by hand, with the same optimizer.

    python tests/benchmarks/bench_step.py [rounds]

Both train the same model (embedding, LSTM, linear head, cross-entropy, Adam, gradient clipping) on the same batch. The
two are timed in turn, a short block of steps each, and each round gives a ratio; the median of the ratios is what to
trust, since the machine may be shared. Processor time is measured, so that a busy machine adds little, and the heap
keeps what is freed (see bench_heap.py). Targets: tiny 1.04, medium and long 1.00. Below it stands what a bare step is
made of. With 100 rounds, 4 minutes.
"""

import platform
import random
import statistics
import sys
import time

import torch
from bench_generation import keep_heap
from torch import nn

import rnnkit as rk

V = 64
SHAPES = {
    "tiny": (8, 16, 32, 1.04, 10),
    "medium": (32, 128, 256, 1.00, 1),
    "long": (8, 1024, 128, 1.00, 1),
}


def build(hidden: int) -> tuple[rk.RecurrentSequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = rk.RecurrentSequential(
        nn.Embedding(V, hidden), nn.LSTM(hidden, hidden), nn.Linear(hidden, V)
    )
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def by_hand(hidden: int, inputs: torch.Tensor, targets: torch.Tensor, bare: bool = False):
    """A loop without events and checks, the average kept as a tensor as the Learner keeps it.

    Where it is `bare`, not even RecurrentSequential is called, but its three modules one after the other.
    """
    model, optimizer = build(hidden)
    embedding, lstm, head = model
    parameters = list(model.parameters())
    loss_fn = nn.CrossEntropyLoss()
    total = torch.zeros(())

    def step() -> None:
        nonlocal total
        if bare:
            hidden_states, _ = lstm(embedding(inputs))
            outputs = head(hidden_states)
        else:
            outputs, _ = model(inputs)
        loss = loss_fn(outputs.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total = total + loss.detach()

    return step, model


def by_learner(hidden: int, inputs: torch.Tensor, targets: torch.Tensor, *callbacks: object):
    model, optimizer = build(hidden)
    clip = rk.ClipGradients(1.0)
    learner = rk.Learner(
        model, rk.seq2seq_loss(nn.CrossEntropyLoss()), optimizer, [clip, *callbacks]
    )
    phase = rk.BPTTTrainingPhase()
    return lambda: learner.step(phase, (inputs, targets)), model


def parts_of_a_step(hidden: int, inputs: torch.Tensor, targets: torch.Tensor) -> dict:
    """What a bare step is made of: name to a function that does so much of it, each more than the one before."""
    (embedding, lstm, head), _ = build(hidden)
    parameters = [*embedding.parameters(), *lstm.parameters(), *head.parameters()]
    loss_fn = nn.CrossEntropyLoss()
    plain = torch.optim.Adam(parameters, 1e-3)
    fused = torch.optim.Adam(parameters, 1e-3, fused=True)

    def forward() -> torch.Tensor:
        return loss_fn(head(lstm(embedding(inputs))[0]).flatten(0, 1), targets.flatten())

    def no_gradient() -> None:
        with torch.no_grad():
            forward()

    def backward() -> None:
        plain.zero_grad()
        forward().backward()

    def update(optimizer: torch.optim.Optimizer, clip: bool) -> None:
        backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return {
        "Adam and clipping": lambda: update(plain, clip=True),
        "forward and loss, without gradient": no_gradient,
        "forward, loss, backward": backward,
        "the same and fused Adam": lambda: update(fused, clip=False),
        "the same, fused Adam and clipping": lambda: update(fused, clip=True),
    }


def timed(steps: list, count: int) -> list[float]:
    """The processor time of each for a block of `count` calls, after one call that warms the caches; in any order."""
    spent = [0.0] * len(steps)
    for which in random.sample(range(len(steps)), len(steps)):
        steps[which]()
        start = time.process_time()
        for _ in range(count):
            steps[which]()
        spent[which] = time.process_time() - start
    return spent


def main(rounds: int) -> None:
    keep_heap()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, rnnkit {rk.__version__}, Python {platform.python_version()}, one thread"
    )
    for name, (batch, length, hidden, target, count) in SHAPES.items():
        tokens = torch.randint(V, (length + 1, batch), generator=torch.Generator().manual_seed(0))
        hand, left = by_hand(hidden, tokens[:-1], tokens[1:])
        ours, right = by_learner(hidden, tokens[:-1], tokens[1:])
        more, _ = by_learner(hidden, tokens[:-1], tokens[1:], rk.History(), rk.ProgressBar())
        bare, _ = by_hand(hidden, tokens[:-1], tokens[1:], bare=True)
        steps = [hand, ours, more, bare]
        timed(steps, 3)
        assert all(map(torch.equal, left.parameters(), right.parameters())), "not the same training"
        rows = []
        for _ in range(max(5, rounds)):
            rows.append(timed(steps, count))
        ratios = [ours / hand for hand, ours, *_ in rows]
        low, middle, high = statistics.quantiles(ratios, n=4)
        shown = statistics.median(row[2] / row[0] for row in rows)
        stack = statistics.median(row[0] / row[3] for row in rows)
        milliseconds = statistics.median(row[0] for row in rows) / count * 1e3
        print(
            f"{name:6} B={batch} T={length} H={hidden}: learner.step / by hand = {middle:.3f} (quartiles {low:.3f} to "
            f"{high:.3f}, target {target}); with History and ProgressBar {shown:.3f}; by hand {milliseconds:.2f} ms, "
            f"of which RecurrentSequential against bare modules {stack:.3f}"
        )
        parts = parts_of_a_step(hidden, tokens[:-1], tokens[1:])
        rows = [timed(list(parts.values()), count) for _ in range(max(5, rounds // 5))]
        for i, part in enumerate(parts):
            share = statistics.median(row[i] / row[0] for row in rows)
            print(f"    {part:36} {share:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
