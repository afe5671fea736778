"""What every contestant of `bench_peers.py` has: the task, and a clock that its loader carries.

A contestant is a module with `start(task)`, which gives a function `train(batches)`: one epoch over the batches as that
library's documentation writes it, returning the mean of the batches' losses. The clock runs from the first batch that
is asked for until the batches are at an end, so what a trainer does before and after an epoch is not counted.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 64
RATE = 1e-3
CLIP = 1.0
BATCHES = 8  # of the data, over and over


@dataclass(frozen=True)
class Task:
    """Next-token prediction: an embedding, one recurrent layer and a linear head, as wide all three."""

    kind: str  # LSTM, GRU or RNN
    batch: int
    steps: int
    hidden: int
    threads: int

    def data(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets, each int64 `(T, B)`: a token mostly says which comes next."""
        draw = np.random.default_rng(0)
        follows = draw.permutation(VOCABULARY)
        tokens = np.empty((self.steps + 1, BATCHES * self.batch), np.int64)
        tokens[0] = draw.integers(VOCABULARY, size=tokens.shape[1])
        for t in range(self.steps):
            noise = draw.integers(VOCABULARY, size=tokens.shape[1])
            told = draw.random(tokens.shape[1]) < 0.8
            tokens[t + 1] = np.where(told, follows[tokens[t]], noise)
        rows = [tokens[:, i * self.batch : (i + 1) * self.batch] for i in range(BATCHES)]
        return [(np.ascontiguousarray(part[:-1]), np.ascontiguousarray(part[1:])) for part in rows]

    def weights(self) -> dict[str, np.ndarray]:
        """The first weights of all, float32, in PyTorch's names, shapes and order of gates."""
        draw = np.random.default_rng(1)
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind] * self.hidden
        bound = self.hidden**-0.5
        shapes = {
            "embedding": (VOCABULARY, self.hidden),
            "weight_ih": (gates, self.hidden),
            "weight_hh": (gates, self.hidden),
            "bias_ih": (gates,),
            "bias_hh": (gates,),
            "head": (VOCABULARY, self.hidden),
            "head_bias": (VOCABULARY,),
        }
        made = {}
        for name, shape in shapes.items():
            made[name] = draw.uniform(-bound, bound, shape).astype(np.float32)
        made["bias_hh"][:] = (
            0  # for the libraries that have one bias; Adam moves two by twice as much
        )
        return made


class Clock:
    """A number of batches, and the seconds from the first that is asked for to the end of all.

    With one thread they are seconds of the processor, to which what else the machine does adds little.
    """

    def __init__(self, batches: list[Any], count: int, threads: int) -> None:
        self.batches = batches
        self.count = count
        self._now = time.process_time if threads == 1 else time.perf_counter
        self.seconds = 0.0
        self._start = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        self.start()
        for i in range(self.count):
            yield self.batches[i % len(self.batches)]
        self.stop()

    def start(self) -> None:
        """The beginning; called again by who fetches a batch before it."""
        self._start = self._now()

    def stop(self) -> None:
        """The end; called again by who still computes after the last batch."""
        self.seconds = self._now() - self._start


def torch_task(task: Task) -> tuple[Any, list[Any]]:
    """The model as `nn.ModuleList` of three, and the batches as tensors; for the contestants on PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(task.threads)
    weights = {name: torch.from_numpy(value) for name, value in task.weights().items()}
    parts = [
        nn.Embedding(VOCABULARY, task.hidden),
        getattr(nn, task.kind)(task.hidden, task.hidden),
        nn.Linear(task.hidden, VOCABULARY),
    ]
    embedding, layer, head = parts
    embedding.load_state_dict({"weight": weights["embedding"]})
    layer.load_state_dict(
        {f"{name}_l0": weights[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    )
    head.load_state_dict({"weight": weights["head"], "bias": weights["head_bias"]})
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in task.data()]
    return nn.ModuleList(parts), batches


def torch_model(parts: Any) -> Any:
    """The model as most documentation writes one: logits `(T, B, V)` of tokens `(T, B)`."""
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer, self.head = parts

        def forward(self, tokens: Any) -> Any:
            hidden, _ = self.layer(self.embedding(tokens))
            return self.head(hidden)

    return Model()


def main() -> None:
    """Train on command: a line with a number is so many batches; the answer is seconds and loss."""
    sys.path.insert(0, str(Path(__file__).parent))
    name, *fields = sys.argv[1:]
    kind, *numbers = fields
    task = Task(kind, *map(int, numbers))
    out = sys.stdout
    sys.stdout = sys.stderr  # what trainers print is not the answer
    module, _, variant = name.partition(":")
    start = importlib.import_module(module).start
    train, batches = start(task, variant) if variant else start(task)
    for line in sys.stdin:
        clock = Clock(batches, int(line), task.threads)
        loss = float(train(clock))
        print(json.dumps({"seconds": clock.seconds, "loss": loss}), file=out, flush=True)


if __name__ == "__main__":
    main()
