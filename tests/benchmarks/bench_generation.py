"""How fast the kit steps a model, against the loop one would write by hand: `nn.LSTM` called for one step at a time.

    python tests/benchmarks/bench_generation.py [--tokens 1000] [--repeats 7]
        [--heap kept|free] [--check] [--plain]

One thread. The two sides take turns, so that a busy machine slows both; what is printed is the median of the ratios of
CPU time, and the lowest and highest of them. Below 1 the kit is faster. `--check` ends with an error where a ratio is
above its target. The targets of `sample_model` lie between the ratio with the quicker steps and that without: who loses
them hears of it. `--plain` takes them away, to see what they do.

With glibc, one step of `nn.LSTM` takes up to three times as long in some processes: the buffers that it frees go back
to the system and are taken again at every call. `--heap kept`, the default, forbids that, so that the loop by hand is
as quick as it can be; `--heap free` leaves it to chance.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnnkit import Feedback, RecurrentSequential, SoftmaxSampler, rollout, sample_model
from rnnkit.generation import beam, rollouts

V, H = 64, 256
KEPT = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def keep_heap() -> None:
    """Start this process again with a heap that keeps what is freed, which is decided when a process starts."""
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})


@dataclass
class Case:
    name: str
    kit: Callable[[], object]
    hand: Callable[[], object]
    target: float


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(case: Case, repeats: int) -> list[float]:
    """Ratios of CPU time, kit over hand, one a round; the side that goes first changes from round to round."""
    case.kit(), case.hand()
    out: list[float] = []
    for i in range(repeats):
        if i % 2:
            hand, kit = seconds(case.hand), seconds(case.kit)
        else:
            kit, hand = seconds(case.kit), seconds(case.hand)
        out.append(kit / hand)
    return out


def generation(batch: int, tokens: int, target: float) -> Case:
    """Sampling `tokens` tokens with an embedding, one LSTM layer and a linear head."""
    embedding, lstm, head = nn.Embedding(V, H), nn.LSTM(H, H), nn.Linear(H, V)
    model = RecurrentSequential(embedding, lstm, head)
    primer = torch.randint(V, (1, batch))

    def hand() -> Tensor:
        token, state, out = primer, None, []
        with torch.no_grad():
            for _ in range(tokens):
                hidden, state = lstm(embedding(token), state)
                logits = head(hidden)
                token = torch.multinomial(logits[0].softmax(1), 1).T
                out.append(token)
        return torch.cat(out)

    def kit() -> Tensor:
        return sample_model(model, tokens, primer, SoftmaxSampler()).tokens

    return Case(f"sample_model, batch {batch}, {tokens} tokens", kit, hand, target)


def closed_loop(batch: int, time_steps: int, n: int, gradient: bool, target: float) -> Case:
    """A driven stretch and `n` steps fed back, with or without the gradient of their sum."""
    lstm, head = nn.LSTM(8, H), nn.Linear(H, 8)
    model, inputs = RecurrentSequential(lstm, head), torch.randn(time_steps, batch, 8)

    def finish(outputs: Tensor) -> None:
        if gradient:
            model.zero_grad()
            outputs.sum().backward()

    def hand() -> None:
        with torch.set_grad_enabled(gradient):
            hidden, state = lstm(inputs[: time_steps - n])
            outputs = [head(hidden)]
            for _ in range(n):
                hidden, state = lstm(outputs[-1][-1:], state)
                outputs.append(head(hidden))
            finish(torch.cat(outputs))

    def kit() -> None:
        with torch.set_grad_enabled(gradient):
            finish(rollout(model, inputs, Feedback.last(n))[0])

    what = "with gradient" if gradient else "no gradient"
    return Case(f"rollout, last({n}) of {time_steps}, batch {batch}, {what}", kit, hand, target)


def cases(tokens: int) -> Iterable[Case]:
    yield generation(1, tokens, target=0.35)
    yield generation(64, max(tokens // 5, 2), target=0.75)
    yield closed_loop(1, 200, 100, gradient=False, target=0.85)
    yield closed_loop(32, 64, 32, gradient=False, target=1.15)
    yield closed_loop(32, 64, 32, gradient=True, target=1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--heap", choices=("kept", "free"), default="kept")
    parser.add_argument(
        "--check", action="store_true", help="end with an error where a ratio is above its target"
    )
    parser.add_argument("--plain", action="store_true", help="without the quicker steps")
    options = parser.parse_args()
    if options.plain:
        for module in (beam, rollouts):
            module.quicker_step = lambda model, rows: model
        rollouts.quicker_draws = lambda *_: None
    if options.heap == "kept":
        keep_heap()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    missed: list[str] = []
    print(
        f"torch {torch.__version__}, one thread, heap {options.heap}; CPU time, kit over loop by hand"
    )
    for case in cases(options.tokens):
        found = ratios(case, options.repeats)
        middle = statistics.median(found)
        verdict = "" if middle <= case.target else "  MISSED"
        missed += [case.name] if verdict else []
        spread = f"({min(found):.2f} to {max(found):.2f})"
        print(
            f"{case.name:<56} {middle:5.2f} {spread}  target {case.target:.2f}{verdict}", flush=True
        )
    if options.check and missed:
        raise SystemExit(f"above target: {', '.join(missed)}")


if __name__ == "__main__":
    main()
