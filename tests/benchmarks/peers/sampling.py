"""What every contestant of `bench_sampling.py` has: the task, weights, and a clock around one generation.

A contestant is a function `start(task)` that gives `generate(count, greedy)`: `count` tokens after a first one, 0, of
each row, drawn from the softmax of the logits, or with `greedy` the likeliest. All but those that say so return the
tokens, the logits that each was drawn from, and the log-probability that it had. A generation of each length is made
once before the clock is looked at, so no compilation is in it.
"""

import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 64
HIDDEN = 256


@dataclass(frozen=True)
class Task:
    """An embedding, layers of an LSTM or GRU, and a linear head."""

    kind: str  # LSTM or GRU
    layers: int
    batch: int

    def weights(self) -> dict[str, np.ndarray]:
        """Float32, in PyTorch's names, shapes and order of gates; wide enough that tokens wander."""
        draw = np.random.default_rng(3)
        gates = {"LSTM": 4, "GRU": 3}[self.kind] * HIDDEN
        bound = 3 * HIDDEN**-0.5
        shapes: dict[str, tuple[int, ...]] = {"embedding": (VOCABULARY, HIDDEN)}
        for layer in range(self.layers):
            shapes[f"weight_ih_l{layer}"] = (gates, HIDDEN)
            shapes[f"weight_hh_l{layer}"] = (gates, HIDDEN)
            shapes[f"bias_ih_l{layer}"] = (gates,)
            shapes[f"bias_hh_l{layer}"] = (gates,)
        shapes["head"] = (VOCABULARY, HIDDEN)
        shapes["head_bias"] = (VOCABULARY,)
        made = {}
        for name, shape in shapes.items():
            made[name] = draw.uniform(-bound, bound, shape).astype(np.float32)
        return made

    def layer_weights(self, layer: int) -> list[np.ndarray]:
        """The four of one layer: of the input, of the state, and the biases of both."""
        weights = self.weights()
        return [
            weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]


def torch_parts(task: Task) -> tuple[Any, Any, Any]:
    """The embedding, the layers and the head, as PyTorch's modules."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    weights = {name: torch.from_numpy(value) for name, value in task.weights().items()}
    embedding = nn.Embedding(VOCABULARY, HIDDEN)
    layers = getattr(nn, task.kind)(HIDDEN, HIDDEN, task.layers)
    head = nn.Linear(HIDDEN, VOCABULARY)
    embedding.load_state_dict({"weight": weights["embedding"]})
    layers.load_state_dict({name: value for name, value in weights.items() if "_l" in name})
    head.load_state_dict({"weight": weights["head"], "bias": weights["head_bias"]})
    return embedding, layers, head


def torch_module(task: Task, branch: bool = False) -> Any:
    """The same as a module of the user's own, with a branch if it must be called at each step."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layers, self.head = torch_parts(task)

        def forward(self, tokens: Any, state: Any = None) -> Any:
            hidden, state = self.layers(self.embedding(tokens), state)
            return self.head(hidden), state

    class Branching(Net):
        def forward(self, tokens: Any, state: Any = None) -> Any:
            if tokens.ndim != 2:
                raise ValueError("tokens are (T, B)")
            return super().forward(tokens, state)

    return Branching() if branch else Net()


def main() -> None:
    """Generate on command: a line has the task, the number of tokens, and 1 for the likeliest."""
    sys.path.insert(0, str(Path(__file__).parent))
    out = sys.stdout
    sys.stdout = sys.stderr
    module, _, variant = sys.argv[1].partition(":")
    start = getattr(importlib.import_module(module), variant)
    task, generate, known = None, None, set()
    for line in sys.stdin:
        kind, *numbers = line.split()
        layers, batch, count, greedy = map(int, numbers)
        if task != Task(kind, layers, batch):
            task, known = Task(kind, layers, batch), set()
            generate = start(task)
        if (count, greedy) not in known:
            generate(count, bool(greedy))
            known.add((count, greedy))
        begin = time.process_time()
        made = generate(count, bool(greedy))
        answer: dict[str, Any] = {"seconds": time.process_time() - begin}
        if greedy and made is not None:
            tokens = np.asarray(made[0] if isinstance(made, tuple) else made)
            answer["tokens"] = tokens[-count:].tolist()
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
