"""What a second process gives: two that train one model, each on half of a batch, against one on all of it.

    python tests/benchmarks/bench_ranks.py [rounds]

Medium shape: 32 rows of 128 steps, an LSTM of 256, one thread a process. In turn: one process on the joint batch, two
with rnnkit, two with the reducer of DistributedDataParallel in a loop written by hand. Each round gives a ratio, and the
median of the ratios is what to trust. Both cores have to be free: the load of the machine is printed, and with every
round the processor time that the two had beside the wall time, which tells whether somebody else was there.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rnnkit as rk

V, B, T, H = 64, 32, 128, 256


def build():
    torch.manual_seed(0)
    model = rk.RecurrentSequential(nn.Embedding(V, H), nn.LSTM(H, H), nn.Linear(H, V))
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def by_learner(inputs, targets, wrap):
    model, optimizer = build()
    learner = rk.Learner(wrap(model), rk.seq2seq_loss(nn.CrossEntropyLoss()), optimizer)
    phase = rk.BPTTTrainingPhase()
    return lambda: learner.step(phase, (inputs, targets)), model


def by_hand(inputs, targets):
    model, optimizer = build()
    ddp = DistributedDataParallel(model)
    loss_fn = nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad(set_to_none=True)
        outputs, _ = ddp(inputs)
        loss_fn(outputs.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step, model


def timed(step, count=2):
    """Wall and processor time of a step, for this process."""
    dist.barrier()
    start, used = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count, (time.process_time() - used) / count


def work(rank, folder, rounds):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    tokens = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(0))
    own = tokens[:, rank * B // 2 : (rank + 1) * B // 2]
    alone, _ = by_learner(tokens[:-1], tokens[1:], lambda model: model)
    ours, left = by_learner(own[:-1], own[1:], DistributedDataParallel)
    theirs, right = by_hand(own[:-1], own[1:])
    rows = []
    for i in range(rounds + 1):
        one = timed(alone if rank == 0 else lambda: None)
        two, reducer = timed(ours), timed(theirs)
        rows.append((one, two, reducer))
        if i == 0:
            torch.testing.assert_close(list(left.parameters()), list(right.parameters()))
    if rank == 0:
        report(rows[1:])
    dist.barrier()
    dist.destroy_process_group()


def report(rows):
    for name, at in (("rnnkit", 1), ("the reducer", 2)):
        ratios = [row[0][0] / row[at][0] for row in rows]
        by_processor = [row[0][1] / row[at][1] for row in rows]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"two processes with {name}: {middle:.2f} times one (quartiles {low:.2f} to {high:.2f}, "
            f"best round {max(ratios):.2f}); by processor time of rank 0 "
            f"{statistics.median(by_processor):.2f}"
        )
    milliseconds = [statistics.median(row[i][0] for row in rows) * 1e3 for i in range(3)]
    print("median ms a step: one {:.0f}, rnnkit {:.0f}, the reducer {:.0f}".format(*milliseconds))


def main(rounds):
    print(f"torch {torch.__version__}, rnnkit {rk.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"B={B} T={T} H={H}, one thread a process, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (Path(folder), rounds), 2)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
