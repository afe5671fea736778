"""The contest of bench_peers.py: the page shows its results, and its contestants do the same work."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "benchmarks" / "bench_peers.py"
HERE = [
    "by_hand:plain",
    "by_hand:best",
    "by_hand:literal",
    "with_rnnkit:phase",
    "with_rnnkit:learner",
    "with_rnnkit:fast",
]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_peers", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peers"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_measured(bench: ModuleType) -> None:
    page = bench.PAGE.read_text()
    made = page.partition(bench.BEGIN)[2].partition(bench.END)[0]
    assert made.strip() == bench.tables(json.loads(bench.RESULTS.read_text())).strip()


def test_what_the_page_says_is_what_was_measured(bench: ModuleType) -> None:
    contests = json.loads(bench.RESULTS.read_text())["contests"]
    ratios = {(c["shape"], c["kind"], c["threads"]): c["ratios"] for c in contests}
    tiny = {label: row[0] for label, row in ratios["tiny", "LSTM", 1].items()}
    medium = {label: row[0] for label, row in ratios["medium", "LSTM", 1].items()}
    compiled = ["Keras on JAX", "JAX by hand", "equinox", "flax nnx"]
    assert all(medium[label] > 1.2 for label in compiled)
    assert all(tiny[label] < 0.8 for label in ("JAX by hand", "equinox"))
    assert tiny["loop by hand, fused Adam"] < 0.95
    trainers = ["rnnkit, Learner", "ignite", "skorch", "Lightning", "accelerate", "fastai"]
    assert all(medium[label] < 1.15 for label in trainers)
    for shape in ("tiny", "long"):
        gru = ratios[shape, "GRU", 1]
        assert gru["rnnkit, Learner, rnnkit.GRU"][0] < 0.65
    assert all(ratios[shape, "GRU", 1]["flax nnx"][0] < 1 for shape in bench.SHAPES)
    literal = [row["model and loss once a step"][0] for key, row in ratios.items() if "LSTM" in key]
    assert min(literal) > 1.5


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_contestants_on_this_package_do_the_work_of_the_plain_loop(kind: str) -> None:
    losses = [trained(name, kind) for name in HERE]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def trained(name: str, kind: str) -> list[float]:
    """The mean losses of one batch, then of five."""
    call = [
        sys.executable,
        SCRIPT.with_name("peers") / "contest.py",
        name,
        kind,
        "3",
        "5",
        "8",
        "1",
    ]
    done = subprocess.run(
        call, input="1\n5\n", capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [json.loads(line)["loss"] for line in done.stdout.splitlines()]
