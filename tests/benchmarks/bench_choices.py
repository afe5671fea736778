"""What the choices of a training cost: the figures of docs/speed.md.

    python tests/benchmarks/bench_choices.py [rounds]

Every row is a ratio to the first way of its group, 1.00: the median over rounds of time over time, the ways taken in
turn in an order drawn anew each round, since the machine may be shared. Wall time, one thread unless a row says
two. The heap keeps what is freed (see bench_generation.py), so that chance has no part in it. Some minutes.
"""

import platform
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench_generation import keep_heap
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

import rnnkit as rk

V = 64
SHAPES = {"tiny": (8, 16, 32), "small": (32, 32, 128), "medium": (32, 128, 256)}
Way = Callable[[], object]


def compare(
    group: str, ways: dict[str, Way], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Print the ratios of each way to the first, and give their medians."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            start = clock()
            ways[name]()
            times[name].append(clock() - start)
    first = next(iter(times.values()))
    found: dict[str, float] = {}
    print(group)
    for name, row in times.items():
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(row, first, strict=True)], n=4
        )
        found[name] = middle
        print(f"  {name:<58} {middle:5.2f}  ({low:.2f} to {high:.2f})", flush=True)
    return found


def model_of(kind: type[nn.RNNBase], hidden: int) -> rk.RecurrentSequential:
    torch.manual_seed(0)
    return rk.RecurrentSequential(
        nn.Embedding(V, hidden), kind(hidden, hidden), nn.Linear(hidden, V)
    )


def step_of(
    shape: str, kind: type[nn.RNNBase] = nn.LSTM, repeats: int = 1, threads: int = 1, **options
) -> Way:
    """A training step of a Learner; `fused` is the optimizer's, `autocast` the Learner's, `cells` unrolls the model."""
    batch, length, hidden = SHAPES[shape]
    model = model_of(kind, hidden)
    if options.get("cells"):
        model[1] = rk.Unroll.from_fused(model[1])
    optimizer = torch.optim.Adam(model.parameters(), fused=options.get("fused", False))
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    learner = rk.Learner(model, loss, optimizer, autocast=options.get("autocast"))
    tokens = torch.randint(V, (length + 1, batch))
    phase = rk.BPTTTrainingPhase(feedback=options.get("feedback"), sampler=rk.sample_best)

    def way() -> None:
        torch.set_num_threads(threads)
        for _ in range(repeats):
            learner.step(phase, tokens)
        torch.set_num_threads(1)

    return way


def by_hand(shape: str, kind: type[nn.RNNBase]) -> Way:
    """What a first tutorial does: model and loss once for every step."""
    batch, length, hidden = SHAPES[shape]
    model, loss_fn = model_of(kind, hidden), nn.CrossEntropyLoss()
    optimizer, tokens = torch.optim.Adam(model.parameters()), torch.randint(V, (length + 1, batch))

    def way() -> None:
        state, loss = None, torch.zeros(())
        for t in range(length):
            outputs, state = model(tokens[t : t + 1], state)
            loss = loss + loss_fn(outputs[0], tokens[t + 1])
        optimizer.zero_grad()
        (loss / length).backward()
        optimizer.step()

    return way


def ragged(kind: type[nn.RNNBase], buckets: bool, packed: bool) -> Way:
    """A pass over 128 sequences of 5 to 500 steps, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(128).log_normal_(4, 1, generator=generator).long().clamp(5, 500)
    data = [torch.randn(n, 128, generator=generator) for n in lengths.tolist()]
    sampler = rk.BucketSampler(lengths, 32) if buckets else None
    options = {"batch_sampler": sampler} if sampler else {"batch_size": 32}
    batches = [
        (b.inputs, b.lengths) for b in DataLoader(data, collate_fn=rk.pad_collate, **options)
    ]
    rnn = kind(128, 128)

    def way() -> None:
        for inputs, counts in batches:
            if packed:
                outputs, _ = pad_packed_sequence(
                    rnn(pack_padded_sequence(inputs, counts, enforce_sorted=False))[0]
                )
            else:
                outputs = rnn(inputs)[0] * (
                    torch.arange(len(inputs)).unsqueeze(1) < counts
                ).unsqueeze(2)
            outputs.sum().backward()

    return way


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, rnnkit {rk.__version__}, Python {platform.python_version()}, {rounds} rounds"
    )
    for kind in nn.LSTM, nn.GRU:
        ways = {
            "one call of the model, one loss": step_of("small", kind),
            "both for each step": by_hand("small", kind),
        }
        ways["cells, one loss"] = step_of("small", kind, cells=True)
        ways["fed its own output at half of the steps"] = step_of(
            "small", kind, feedback=rk.Feedback.every(2)
        )
        compare(f"a training step, {kind.__name__}, B=32 T=32 H=128", ways, rounds)
    for shape, repeats in ("tiny", 20), ("medium", 1):
        ways = {
            "Adam": step_of(shape, repeats=repeats),
            "Adam(fused=True)": step_of(shape, repeats=repeats, fused=True),
        }
        ways["Learner(autocast=torch.bfloat16)"] = step_of(
            shape, repeats=repeats, autocast=torch.bfloat16
        )
        ways["two threads"] = step_of(shape, repeats=repeats, threads=2)
        compare(f"a training step, LSTM, {shape}: B, T, H = {SHAPES[shape]}", ways, rounds)
    for kind in nn.LSTM, nn.GRU:
        ways = {}
        for buckets in False, True:
            for packed in False, True:
                name = f"{'packed' if packed else 'padded'}{', batches of like length' if buckets else ''}"
                ways[name] = ragged(kind, buckets, packed)
        compare(
            f"sequences of 5 to 500 steps, {kind.__name__}, B=32 H=128, forward and backward",
            ways,
            rounds,
        )


if __name__ == "__main__":
    keep_heap()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
