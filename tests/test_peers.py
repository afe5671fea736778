"""The contests of the page: it shows their results, and their contestants do the same work."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
    return loaded(SCRIPT)


@pytest.fixture(scope="module")
def sampling(bench: ModuleType) -> ModuleType:
    return loaded(SCRIPT.with_name("bench_sampling.py"))


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("contests", ["bench", "sampling"])
def test_the_page_shows_what_was_measured(
    contests: str, bench: ModuleType, request: pytest.FixtureRequest
) -> None:
    script = request.getfixturevalue(contests)
    page = bench.PAGE.read_text()
    made = page.partition(script.BEGIN)[2].partition(script.END)[0]
    assert made.strip() == script.tables(json.loads(bench.RESULTS.read_text())).strip()


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
        won = (1 - gru["rnnkit, Learner, rnnkit.GRU"][0]) / (1 - gru["JAX by hand"][0])
        assert won < 0.5 if shape == "tiny" else won > 0.6
    for kind in ("GRU", "RNN"):
        assert all(ratios[shape, kind, 1]["flax nnx"][0] < 1 for shape in bench.SHAPES)
    spent = {(c["shape"], c["threads"]): c["milliseconds"] for c in contests if c["kind"] == "LSTM"}
    assert spent["medium", 2] < 0.7 * spent["medium", 1]
    assert spent["tiny", 2] > 0.9 * spent["tiny", 1] and spent["long", 2] < 0.8 * spent["long", 1]
    literal = [row["model and loss once a step"][0] for key, row in ratios.items() if "LSTM" in key]
    assert min(literal) > 1.5


def test_what_the_page_says_of_generation_is_what_was_measured(sampling: ModuleType) -> None:
    found = json.loads(sampling.RESULTS.read_text())["generation"]
    tokens = [c for c in found if c["contest"] == "sampling"]
    for contest in tokens:
        ratios = {label: row[0] for label, row in contest["ratios"].items()}
        for label in (sampling.KIT, sampling.WRAPPED):
            assert 0.9 <= round(ratios[label], 1) <= 1.2
        called = ratios[sampling.CALLED]
        written = ratios["a module called for each step"]
        low, high = (2, 5) if contest["batch"] == 1 else (0.9, 1.8)
        assert low <= round(called, 1) <= high
        assert ratios["JAX by hand, `lax.scan`"] < 1
        assert ratios["NumPy by hand"] < 1.05
        if (contest["kind"], contest["batch"]) == ("LSTM", 1):
            assert called < 0.8 * written
        else:
            assert 1.0 <= round(called / written, 1) <= 1.4
    for contest in found:
        if contest["contest"] == "paths":
            at_once = contest["ratios"]["`forecast(paths=100)`"][0]
            assert contest["ratios"]["`sample_model` 100 times"][0] > 3 * at_once


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_contestants_generate_the_same_tokens(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.with_name("peers")))
    threads = torch.get_num_threads()
    task = importlib.import_module("sampling").Task(kind, 2, 3)
    in_torch = importlib.import_module("sampling_torch")
    starts = [in_torch.best, in_torch.layer, in_torch.cells, in_torch.kit, in_torch.kit_wrapped]
    starts.append(importlib.import_module("sampling_arrays").with_numpy)
    made = [[torch.as_tensor(part) for part in start(task)(60, True)] for start in starts]
    torch.set_num_threads(threads)
    for tokens, logits, log_probs in made[1:]:
        assert torch.equal(tokens[-60:], made[0][0])
        torch.testing.assert_close(logits, made[0][1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(log_probs, made[0][2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_contestants_on_this_package_do_the_work_of_the_plain_loop(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.with_name("peers")))
    threads = torch.get_num_threads()
    contest = importlib.import_module("contest")
    losses: list[list[float]] = []
    for name in HERE:
        module, _, variant = name.partition(":")
        task = contest.Task(kind, 3, 5, 8, 1)
        train, batches = importlib.import_module(module).start(task, variant)
        losses.append([float(train(contest.Clock(batches, count, 1))) for count in (1, 5)])
    torch.set_num_threads(threads)
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)
