"""What it is worth that the heap keeps what a training step frees: two settings of glibc, of the process.

    python tests/benchmarks/bench_heap.py [rounds]

A training step of a Learner (embedding, one layer, linear head, cross-entropy, Adam), in two processes that take turns:
one as it starts, the other with the two variables of `KEPT`. Printed is the ratio of processor time, kept over not
kept, its median and quartiles over rounds, and of both processes the most memory that they had and the pages that they
had to ask for in a step. One thread. Four minutes.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time

from bench_generation import KEPT

SHAPES = {
    "B=8 T=16 H=32": (8, 16, 32, 200),
    "B=32 T=32 H=128": (32, 32, 128, 20),
    "B=32 T=128 H=256": (32, 128, 256, 3),
    "B=8 T=1024 H=128": (8, 1024, 128, 3),
}
KINDS = ("LSTM", "GRU", "rnnkit.GRU")


def work(kind: str, shape: str) -> None:
    """Answer each line with the processor time of some steps, the most memory so far in MB, and pages a step."""
    import torch
    from torch import nn

    import rnnkit as rk

    torch.set_num_threads(1)
    batch, length, hidden, count = SHAPES[shape]
    layer = {"LSTM": nn.LSTM, "GRU": nn.GRU, "rnnkit.GRU": rk.GRU}[kind]
    model = rk.RecurrentSequential(
        nn.Embedding(64, hidden), layer(hidden, hidden), nn.Linear(hidden, 64)
    )
    learner = rk.Learner(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
    phase, tokens = rk.BPTTTrainingPhase(), torch.randint(64, (length + 1, batch))
    for _ in range(3):
        learner.step(phase, tokens)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.process_time()
        for _ in range(count):
            learner.step(phase, tokens)
        spent = time.process_time() - start
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(spent, used.ru_maxrss // 1024, (used.ru_minflt - before) // count, flush=True)


def asked(worker: subprocess.Popen[str]) -> list[float]:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return [float(word) for word in worker.stdout.readline().split()]


def compare(kind: str, shape: str, rounds: int) -> None:
    bare = {name: value for name, value in os.environ.items() if name not in KEPT}
    command = [sys.executable, __file__, "work", kind, shape]
    workers = []
    for environment in (bare, bare | KEPT):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        workers.append(subprocess.Popen(command, text=True, env=environment, **pipes))
    ratios = []
    for k in range(rounds):
        turn = workers if k % 2 else workers[::-1]
        answers = {worker.pid: asked(worker) for worker in turn}
        free, kept = (answers[worker.pid] for worker in workers)
        ratios.append(kept[0] / free[0])
    for worker in workers:
        worker.communicate()
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{kind:<10} {shape:<16} {middle:.2f}  ({low:.2f} to {high:.2f})  {free[1]:.0f} and {kept[1]:.0f} MB, "
        f"{free[2]:.0f} and {kept[2]:.0f} pages",
        flush=True,
    )


def main(rounds: int) -> None:
    import torch

    import rnnkit as rk

    libc = " ".join(platform.libc_ver())
    print(
        f"torch {torch.__version__}, rnnkit {rk.__version__}, {libc}, {rounds} rounds", flush=True
    )
    for kind in KINDS:
        for shape in SHAPES:
            compare(kind, shape, rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
