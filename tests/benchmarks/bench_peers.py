"""A training step of rnnkit beside those of other trainers and libraries, interleaved in one run.

    python tests/benchmarks/bench_peers.py install          an environment for each peer, in .run/peers
    python tests/benchmarks/bench_peers.py run              every shape, kind and number of threads; 30 minutes
    python tests/benchmarks/bench_peers.py run tiny LSTM 1  one of them
    python tests/benchmarks/bench_peers.py page             the tables and figures of docs/peers.md anew

All train the same model (an embedding, one recurrent layer, a linear head; 64 classes, cross-entropy, Adam, clipping)
from the same weights on the same batches, each written as its documentation writes it: `peers/` has them. Before
anything is timed their losses are compared: the first to 1e-4, and the mean of the next five to 1 %, as some have one
bias where PyTorch has two. Each is a process of its own that waits; one at a time trains a block of steps, in random
order, and each round gives a ratio to the plain loop in the same round. The medians are what to trust.
"""

import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).with_name("peers")
ENVIRONMENTS = ROOT / ".run" / "peers"
RESULTS = ROOT / "docs" / "assets" / "peers.json"
PAGE = ROOT / "docs" / "peers.md"
FIGURE = ROOT / "docs" / "assets" / "peers.svg"
BEGIN = "<!-- what follows is made by bench_peers.py -->"
END = "<!-- end of it -->"

SHAPES = {
    "tiny": (8, 16, 32),
    "small": (32, 32, 128),
    "medium": (32, 128, 256),
    "long": (8, 1024, 128),
}
KINDS = ("LSTM", "GRU", "RNN")
ROUNDS = 7
ROUNDS_OF_SHORT = 25  # of a shape whose step is of some milliseconds
BLOCK = 0.1  # seconds of the plain loop in a block

TORCH = "torch==2.13.0"
JAX = ["jax==0.10.2", "flax==0.12.8", "optax==0.2.8", "equinox==0.13.8"]
NEEDS = {
    "ignite": [TORCH, "numpy", "pytorch-ignite==0.5.5"],
    "skorch": [TORCH, "numpy", "skorch==1.4.0"],
    "lightning": [TORCH, "numpy", "lightning==2.6.6"],
    "accelerate": [TORCH, "numpy", "accelerate==1.15.0"],
    "fastai": [TORCH, "numpy", "fastai==2.8.12"],
    "keras": [TORCH, "numpy", "keras==3.15.1", "jax==0.10.2"],
    "jax": JAX,
}


@dataclass(frozen=True)
class Contestant:
    label: str
    module: str  # of peers/, and its variant
    environment: str | None = None  # None is the one that runs this script
    kinds: tuple[str, ...] = KINDS
    trains: bool = True


PLAIN = "loop by hand"
CONTESTANTS = [
    Contestant(PLAIN, "by_hand:plain"),
    Contestant("loop by hand, fused Adam", "by_hand:best"),
    Contestant("rnnkit, phase in a loop", "with_rnnkit:phase"),
    Contestant("rnnkit, Learner", "with_rnnkit:learner"),
    Contestant("rnnkit, Learner, fused Adam", "with_rnnkit:fast"),
    Contestant("rnnkit, Learner, rnnkit.GRU", "with_rnnkit:gru", kinds=("GRU",)),
    Contestant("ignite", "with_ignite", "ignite"),
    Contestant("skorch", "with_skorch", "skorch"),
    Contestant("Lightning", "with_lightning", "lightning"),
    Contestant("accelerate", "with_accelerate", "accelerate"),
    Contestant("fastai", "with_fastai", "fastai"),
    Contestant("Keras on PyTorch", "with_keras:torch", "keras"),
    Contestant("Keras on JAX", "with_keras:jax", "keras"),
    Contestant("JAX by hand", "with_jax:raw", "jax"),
    Contestant("equinox", "with_jax:equinox", "jax", ("LSTM", "GRU")),
    Contestant("flax nnx", "with_jax:nnx", "jax"),
    Contestant("model and loss once a step", "by_hand:literal"),
    Contestant("matrix products alone", "by_hand:floor", trains=False),
]


def python_of(environment: str | None) -> str:
    if environment is None:
        return sys.executable
    return str(ENVIRONMENTS / environment / "bin" / "python")


def install() -> None:
    for name, packages in NEEDS.items():
        if not Path(python_of(name)).exists():
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENTS / name], check=True)
        subprocess.run([python_of(name), "-m", "pip", "install", "-q", *packages], check=True)
        print(f"{name}: {', '.join(packages)}")


class Worker:
    """A contestant that waits in a process of its own."""

    def __init__(
        self, contestant: Contestant, fields: list[str], threads: int, script: str = "contest.py"
    ) -> None:
        self.contestant = contestant
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            # Else glibc may give buffers back at every step, by chance, and a loop takes three times as long.
            "MALLOC_TRIM_THRESHOLD_": "1000000000",
            "MALLOC_MMAP_THRESHOLD_": "1000000000",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self._process = subprocess.Popen(
            [python_of(contestant.environment), PEERS / script, contestant.module, *fields],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def train(self, count: int) -> tuple[float, float]:
        """Seconds and mean loss of so many steps."""
        answer = self.ask(str(count))
        return answer["seconds"], answer["loss"]

    def ask(self, line: str) -> dict[str, Any]:
        """What it answers to a line."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"{self.contestant.label}: {self._process.stderr.read()[-2000:]}")
        return json.loads(answer)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def contest(shape: str, kind: str, threads: int, rounds: int) -> dict[str, Any]:
    """The ratios of all to the plain loop: median and quartiles, and the milliseconds of that loop."""
    here = [one for one in CONTESTANTS if kind in one.kinds]
    fields = [kind, *map(str, SHAPES[shape]), str(threads)]
    workers = [Worker(one, fields, threads) for one in here]
    try:
        _compare(workers)
        plain = workers[0]
        spent = min(plain.train(3)[0] / 3 for _ in range(3))
        count = max(2, round(BLOCK / spent))
        rows = []
        for _ in range(rounds):
            row = {}
            for worker in random.sample(workers, len(workers)):
                few = 2 if "once a step" in worker.contestant.label else count
                row[worker.contestant.label] = worker.train(few)[0] / few
            rows.append(row)
    finally:
        for worker in workers:
            worker.end()
    return {
        "shape": shape,
        "kind": kind,
        "threads": threads,
        "milliseconds": round(1e3 * statistics.median(row[PLAIN] for row in rows), 3),
        "ratios": ratios_to(PLAIN, rows),
    }


def ratios_to(base: str, rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median and quartiles over the rounds of each one's seconds over those of `base`."""
    ratios = {}
    for label in rows[0]:
        values = [row[label] / row[base] for row in rows]
        low, middle, high = statistics.quantiles(values, n=4)
        ratios[label] = [round(value, 3) for value in (middle, low, high)]
    return ratios


def _compare(workers: list[Worker]) -> None:
    """The work is the same where the losses are."""
    firsts = {worker.contestant.label: worker.train(1)[1] for worker in workers}
    then = {worker.contestant.label: worker.train(5)[1] for worker in workers}
    for worker in workers:
        label = worker.contestant.label
        if not worker.contestant.trains:
            continue
        assert abs(firsts[label] / firsts[PLAIN] - 1) < 1e-4, (label, firsts)
        assert abs(then[label] / then[PLAIN] - 1) < 1e-2, (label, then)


def run(chosen: list[str]) -> None:
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"contests": []}
    done["versions"] = versions()
    contests = {(c["shape"], c["kind"], c["threads"]): c for c in done["contests"]}
    for shape in SHAPES:
        for kind in KINDS:
            for threads in (1, 2):
                if not set(chosen) <= {shape, kind, str(threads)}:
                    continue
                result = contest(
                    shape, kind, threads, ROUNDS_OF_SHORT if shape == "tiny" else ROUNDS
                )
                contests[shape, kind, threads] = result
                print(json.dumps(result), flush=True)
                done["contests"] = [contests[key] for key in sorted(contests, key=str)]
                RESULTS.write_text(json.dumps(done, indent=1) + "\n")


def versions() -> dict[str, str]:
    """What ran: packages, interpreter, processor."""
    found = {"Python": platform.python_version()}
    for needs in NEEDS.values():
        for need in needs:
            name, _, version = need.partition("==")
            if version:
                found[name] = version
    processor = "unknown"
    if shutil.which("lscpu"):
        told = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        lines = [line for line in told.splitlines() if line.startswith("Model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    return found | {"processor": processor, "cores": str(os.cpu_count())}


# ---- The page


def page() -> None:
    """Write the tables into the page, and the figure beside it."""
    done = json.loads(RESULTS.read_text())
    put_into_page(BEGIN, tables(done), END)
    draw(done)


def put_into_page(begin: str, made: str, end: str) -> None:
    """Write what was made between its two marks, in place of what was there."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{made}\n{end}{after}")


def tables(done: dict[str, Any]) -> str:
    """A table for each kind of layer and number of threads: contestants by shapes, medians."""
    contests = {(c["shape"], c["kind"], c["threads"]): c for c in done["contests"]}
    told = []
    for threads in (1, 2):
        for kind in KINDS:
            shapes = [shape for shape in SHAPES if (shape, kind, threads) in contests]
            if shapes:
                here = [contests[shape, kind, threads] for shape in shapes]
                told.append(_table(kind, threads, here))
    versions = ", ".join(f"{name} {version}" for name, version in done["versions"].items())
    told.append(f"Made with {versions}.\n")
    return "\n".join(told)


def _table(kind: str, threads: int, contests: list[dict[str, Any]]) -> str:
    heads = ["%s `B={} T={} H={}`".format(*SHAPES[c["shape"]]) % c["shape"] for c in contests]
    rows = {}
    for one in CONTESTANTS:
        if kind in one.kinds:
            rows[one.label] = [_cell(c, one.label) for c in contests]
    return table(f"{kind}, {threads} thread{'s'[: threads - 1]}", ["Trained by", *heads], rows)


def table(title: str, heads: list[str], rows: dict[str, list[str]]) -> str:
    """A table under its title; a row is a label and its cells."""
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for label, cells in rows.items():
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(contest: dict[str, Any], label: str) -> str:
    if label == PLAIN:
        return f"1.00, {contest['milliseconds']:.3g} ms"
    return shown(contest["ratios"][label])


def shown(ratios: list[float]) -> str:
    """The median, and the quartiles where they are more than a tenth of it apart."""
    middle, low, high = ratios
    if high - low < 0.1 * middle:
        return f"{middle:.2f}"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def draw(done: dict[str, Any]) -> None:
    """Each contestant's ratio with an LSTM on one thread, at the smallest shape and at a usual one."""
    import matplotlib.pyplot as plt

    plt.style.use(ROOT / "rnnkit" / "style.mplstyle")
    contests = {c["shape"]: c for c in done["contests"] if (c["kind"], c["threads"]) == ("LSTM", 1)}
    labels = [one.label for one in CONTESTANTS if "LSTM" in one.kinds][::-1]
    figure, axes = plt.subplots(figsize=(5.2, 6.2))
    for shape, marker in (("tiny", "o"), ("medium", "s")):
        rows = [contests[shape]["ratios"][label] for label in labels]
        middles = [row[0] for row in rows]
        spread = [[row[0] - row[1] for row in rows], [row[2] - row[0] for row in rows]]
        heights = [i + (0.15 if shape == "tiny" else -0.15) for i in range(len(labels))]
        name = "{} B={} T={} H={}".format(shape, *SHAPES[shape])
        axes.errorbar(middles, heights, xerr=spread, fmt=marker, label=name, elinewidth=1)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set(
        xscale="log", yticks=range(len(labels)), yticklabels=labels,
        xticks=[0.1, 0.2, 0.5, 1, 2, 5], xticklabels=["0.1", "0.2", "0.5", "1", "2", "5"],
        xlabel="time of a step, the loop by hand = 1",
    )  # fmt: skip
    axes.minorticks_off()
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1), ncols=1)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or ["run"]
    if command == "install":
        install()
    elif command == "run":
        run(rest)
    elif command == "page":
        page()
    else:
        raise SystemExit(__doc__)
