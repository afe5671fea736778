"""What a closed loop, ragged batches and long sequences cost: figures of docs/speed.md, held to targets.

    python tests/benchmarks/bench_limits.py [rounds] [--check]      two minutes

One thread, seconds of the processor, the ways taken in turn in an order drawn anew each round; what is printed is the
median of the ratios to the first way of a group. `--check` ends with an error where a figure misses its target.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_choices import compare
from bench_generation import keep_heap
from torch import nn
from torch.utils.data import DataLoader

import rnnkit as rk

Way = Callable[[], object]
WINDOWS = (64, 256)
LENGTHS = (256, 1024, 4096, 16384)
FLAT_BYTES = 1.05
FLAT_TIME = 1.15
BUCKETS = 1 / 1.5

missed: list[str] = []


def compared(group: str, ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Print and give the median ratios, of the processor's time."""
    return compare(group, ways, rounds, time.process_time)


def hold(name: str, found: float, target: float) -> None:
    """Note what is above its target."""
    if found > target:
        missed.append(f"{name}: {found:.2f}, target {target:.2f}")


# ---- Closed loop


def closed_loop(kind: type[nn.RNNBase], rounds: int) -> None:
    """`rollout` with its last steps fed back, against calls of the model for each step."""
    model = rk.RecurrentSequential(kind(8, 128), nn.Linear(128, 8))
    inputs = torch.randn(128, 32, 8)

    def each(n: int) -> Way:
        def way() -> None:
            state, outputs = None, []
            for t in range(len(inputs)):
                step = inputs[t : t + 1] if t < len(inputs) - n else outputs[-1]
                output, state = model(step, state)
                outputs.append(output)
            torch.cat(outputs).sum().backward()

        return way

    def kit(n: int) -> Way:
        return lambda: rk.rollout(model, inputs, rk.Feedback.last(n))[0].sum().backward()

    for n in (8, 64):
        ways = {"a call for each step": each(n), f"rollout, Feedback.last({n})": kit(n)}
        found = compared(
            f"closed loop, {kind.__name__}, T=128 B=32 H=128, with gradient", ways, rounds
        )
        hold(f"rollout last({n}), {kind.__name__}", found[f"rollout, Feedback.last({n})"], 1.0)


# ---- Ragged


def ragged(kind: type[nn.RNNBase], buckets: bool) -> Way:
    """An epoch of training on 128 sequences of 5 to 500 steps, in batches of 32."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(128).log_normal_(4, 1, generator=generator).long().clamp(5, 500)
    data = [torch.randn(n, 16, generator=generator) for n in lengths.tolist()]
    options: dict[str, Any] = {"batch_size": 32}
    if buckets:
        options = {"batch_sampler": rk.BucketSampler(lengths, 32)}
    loader = DataLoader(data, collate_fn=rk.pad_collate, **options)
    model = rk.RecurrentSequential(kind(16, 128), nn.Linear(128, 16))
    optimizer = torch.optim.Adam(model.parameters())
    learner = rk.Learner(model, rk.seq2seq_loss(nn.MSELoss()), optimizer)
    phase = rk.BPTTTrainingPhase()

    def way() -> None:
        for batch in loader:
            learner.step(phase, batch)

    return way


# ---- Windows


def window_of(length: int, window: int) -> tuple[Way, int]:
    """A pass over a sequence in windows, and the most bytes that autograd keeps at one time."""
    model = rk.RecurrentSequential(nn.LSTM(8, 64), nn.Linear(64, 8))
    phase = rk.BPTTTrainingPhase(window=window)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loss = rk.seq2seq_loss(nn.MSELoss())
    batch = torch.randn(length + 1, 8, 8)
    sizes: dict[object, int] = {}
    most = 0

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal most
        handle = object()
        sizes[handle] = tensor.numel() * tensor.element_size()
        most = max(most, sum(sizes.values()))
        return handle, tensor

    def unpack(packed: Any) -> torch.Tensor:
        sizes.pop(packed[0], None)
        return packed[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        phase(model, loss, batch, optimizer)
    return lambda: phase(model, loss, batch, optimizer), most


def windows(rounds: int) -> None:
    for window in WINDOWS:
        ways = {}
        kept = {}
        for length in LENGTHS:
            name = f"T = {length}"
            ways[name], kept[name] = window_of(length, window)
        # As many steps in each block, so that each has its share of what the machine does else.
        steps = max(LENGTHS)
        repeated = {name: _repeat(ways[name], steps // int(name.split()[2])) for name in ways}
        found = compared(f"time per token, windows of {window}, LSTM B=8 H=64", repeated, rounds)
        least = min(kept.values())
        for name in ways:
            print(f"  {name:<58} {kept[name]:,} bytes kept")
            hold(f"bytes, window {window}, {name}", kept[name] / least, FLAT_BYTES)
        spread = max(found.values()) / min(found.values())
        hold(f"time per token, window {window}", spread, FLAT_TIME)


def _repeat(way: Way, times: int) -> Way:
    def repeated() -> None:
        for _ in range(times):
            way()

    return repeated


# ---- Validation


def validation(kind: type[nn.RNNBase], rounds: int) -> None:
    """The loss of a held-out batch, and the same with the loss of each step."""
    model = rk.RecurrentSequential(nn.Embedding(64, 128), kind(128, 128), nn.Linear(128, 64))
    tokens = torch.randint(64, (129, 32))
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    ways: dict[str, Way] = {}
    for by_step in (False, True):
        phase = rk.BPTTValidationPhase(by_step=by_step)
        ways[f"by_step={by_step}"] = lambda phase=phase: phase(model, loss, tokens)
    compared(f"validation, {kind.__name__}, T=128 B=32 H=128", ways, rounds)


def main(rounds: int, check: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, rnnkit {rk.__version__}, {rounds} rounds")
    for kind in (nn.LSTM, nn.GRU):
        closed_loop(kind, rounds)
    for kind in (nn.LSTM, nn.GRU):
        ways = {"padded": ragged(kind, False), "batches of like length": ragged(kind, True)}
        found = compared(f"an epoch, 5 to 500 steps, {kind.__name__}, B=32 H=128", ways, rounds)
        hold(f"buckets, {kind.__name__}", found["batches of like length"], BUCKETS)
    windows(rounds)
    for kind in (nn.LSTM, nn.GRU):
        validation(kind, rounds)
    if check and missed:
        raise SystemExit("above target: " + "; ".join(missed))


if __name__ == "__main__":
    keep_heap()
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 9, "--check" in sys.argv)
