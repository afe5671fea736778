"""What torch.compile makes of a recurrent layer on a CPU: the figures of docs/speed.md, "The compiler".

    python tests/benchmarks/bench_compile.py [rounds]

Forward and backward of one LSTM or GRU layer, B=32 T=32 H=128: the layer of PyTorch, a step of its equations called at
each hour, and the same step compiled by inductor, which needs a C++ compiler. Ratios to the first way, as in
bench_choices.py. What compiling took is printed as processor time too, that of the compiler's own processes included.
"""

import os
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from bench_choices import compare
from bench_generation import keep_heap
from torch import Tensor, nn

B, T, H = 32, 32, 128
Step = Callable[..., tuple[Tensor, ...]]


def lstm_step(x, h, c, w_x, w_h, b_x, b_h):
    i, f, g, o = (x @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x, h, w_x, w_h, b_x, b_h):
    r_x, z_x, n_x = (x @ w_x.T + b_x).chunk(3, -1)
    r_h, z_h, n_h = (h @ w_h.T + b_h).chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    return ((1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h,)


def loop(step: Step, layer: nn.RNNBase, inputs: Tensor, parts: int) -> Tensor:
    # With requires_grad from the first step on, one graph serves all.
    state = tuple(inputs.new_zeros(B, H, requires_grad=True) for _ in range(parts))
    outputs: list[Tensor] = []
    for x in inputs:
        state = step(x, *state, *layer.parameters())
        outputs.append(state[0])
    return torch.stack(outputs)


def processor() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def measure(kind: type[nn.RNNBase], step: Step, parts: int, rounds: int) -> None:
    inputs = torch.randn(T, B, H)
    torch.manual_seed(0)
    layer = kind(H, H)
    compiled = torch.compile(step, fullgraph=True)

    def by(step: Step) -> Tensor:
        return loop(step, layer, inputs, parts)

    def trained(outputs: Callable[[], Tensor]) -> None:
        outputs().square().mean().backward()

    start, used = time.perf_counter(), processor()
    trained(lambda: by(compiled))
    wall, cores = time.perf_counter() - start, processor() - used
    print(f"{kind.__name__}: compiled in {wall:.0f} s, {cores:.0f} s of processor time")
    torch.testing.assert_close(by(compiled), layer(inputs)[0], rtol=1e-4, atol=1e-5)
    ways = {
        "the layer": lambda: trained(lambda: layer(inputs)[0]),
        "its step, a loop": lambda: trained(lambda: by(step)),
        "its step compiled, a loop": lambda: trained(lambda: by(compiled)),
    }
    compare(f"{kind.__name__}, B={B} T={T} H={H}", ways, rounds)


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    measure(nn.LSTM, lstm_step, 2, rounds)
    measure(nn.GRU, gru_step, 1, rounds)


if __name__ == "__main__":
    keep_heap()
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing compiled before
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
