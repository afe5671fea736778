"""Generation by rnnkit beside other ways and libraries, interleaved in one run, in the form of `bench_peers.py`.

    python tests/benchmarks/bench_sampling.py run [rounds] [--check]  every contest, 7 rounds; 6 minutes
    python tests/benchmarks/bench_sampling.py page                    the tables of docs/peers.md anew

All have the same weights: an embedding, one or two layers of 256, a linear head, 64 classes. Before anything is timed
all generate 200 tokens by the highest logit, which must be the same tokens. One thread; seconds are those of the
processor, ratios are to the first contestant in the same round. JAX is of the environment that `bench_peers.py
install` makes. `--check` ends with an error where `sample_model` is above its target.
"""

import json
import random
import statistics
import sys
from typing import Any

from bench_peers import (
    RESULTS,
    Contestant,
    Worker,
    put_into_page,
    ratios_to,
    shown,
    table,
    versions,
)

BEGIN = "<!-- what follows is made by bench_sampling.py -->"
END = "<!-- end of what bench_sampling.py makes -->"
ROUNDS = 7
FEW = 16  # with more rows a generation is a third as long
LENGTHS = {"sampling": (1000, 200), "beam": (200, 200), "paths": (20, 10)}  # timed, compared
TARGET = 1.10

HAND = "best loop by hand"
KIT = "`sample_model`, RecurrentSequential"
WRAPPED = "`sample_model`, a module of one's own"
CALLED = "`sample_model`, one with a branch"
SAMPLING = [
    Contestant(HAND, "sampling_torch:best"),
    Contestant("best loop by hand, tokens alone", "sampling_torch:best_tokens"),
    Contestant(KIT, "sampling_torch:kit"),
    Contestant(WRAPPED, "sampling_torch:kit_wrapped"),
    Contestant(CALLED, "sampling_torch:kit_called"),
    Contestant("a module called for each step, oneDNN off", "sampling_torch:layer_without_onednn"),
    Contestant("a module called for each step", "sampling_torch:layer"),
    Contestant("cells called for each step", "sampling_torch:cells"),
    Contestant("NumPy by hand", "sampling_arrays:with_numpy"),
    Contestant("JAX by hand, `lax.scan`", "sampling_arrays:with_jax", "jax"),
    Contestant("matrix products alone", "sampling_torch:floor", trains=False),
]
BEAM = [
    Contestant("a beam by hand", "sampling_torch:hand_beam"),
    Contestant("`beam_search`", "sampling_torch:kit_beam"),
]
PATHS = [
    Contestant("`sample_model` of rows repeated 100 times", "sampling_torch:repeated_paths"),
    Contestant("`sample_model` 100 times", "sampling_torch:single_paths"),
    Contestant("`forecast(paths=100)`", "sampling_torch:kit_paths"),
]
PATHS_OF_A_ROW = 100
WHO = {"sampling": SAMPLING, "beam": BEAM, "paths": PATHS}
KINDS = ("LSTM", "GRU")
SETTINGS = {"sampling": [(1, 1), (2, 1), (1, 64), (2, 64)], "beam": [(1, 1), (1, 16)]}
SETTINGS["paths"] = [(1, 1)]  # layers and rows


def contest(
    name: str, workers: list[Worker], kind: str, layers: int, rows: int, rounds: int
) -> dict[str, Any]:
    """The ratios of all to the first: median and quartiles, and the tokens that it makes in a second."""
    base = workers[0].contestant.label
    task = f"{kind} {layers} {rows}"
    count, compared = LENGTHS[name]
    if rows > FEW:
        count //= 3
    _compare(workers, f"{task} {compared} 1")
    found = []
    for _ in range(rounds):
        row = {}
        for worker in random.sample(workers, len(workers)):
            row[worker.contestant.label] = worker.ask(f"{task} {count} 0")["seconds"]
        found.append(row)
    seconds = statistics.median(row[base] for row in found)
    ratios = ratios_to(base, found)
    drawn = count * rows * (PATHS_OF_A_ROW if name == "paths" else 1)
    return {
        "contest": name,
        "kind": kind,
        "layers": layers,
        "batch": rows,
        "tokens per second": round(drawn / seconds),
        "ratios": {worker.contestant.label: ratios[worker.contestant.label] for worker in workers},
    }


def _compare(workers: list[Worker], line: str) -> None:
    """The work is the same where the likeliest tokens are."""
    wanted = workers[0].ask(line)["tokens"]
    for worker in workers[1:]:
        answer = worker.ask(line)
        if worker.contestant.trains:
            assert answer["tokens"] == wanted, worker.contestant.label


def run(rounds: int, check: bool) -> None:
    done = json.loads(RESULTS.read_text())
    done["versions"] = versions()
    done["generation"] = []
    for name, who in WHO.items():
        workers = [Worker(one, [], 1, "sampling.py") for one in who]
        try:
            for kind in KINDS:
                for layers, rows in SETTINGS[name]:
                    result = contest(name, workers, kind, layers, rows, rounds)
                    done["generation"].append(result)
                    print(json.dumps(result), flush=True)
        finally:
            for worker in workers:
                worker.end()
    RESULTS.write_text(json.dumps(done, indent=1) + "\n")
    if check:
        _hold(done["generation"])


def _hold(results: list[dict[str, Any]]) -> None:
    """End with an error where `sample_model` is above its target."""
    missed = []
    for result in results:
        for label in (KIT, WRAPPED):
            ratio = result["ratios"].get(label, [0])[0]
            if ratio > TARGET:
                task = f"{result['kind']}, {_head(result)}"
                missed.append(f"{label}, {task}: {ratio:.2f}")
    if missed:
        raise SystemExit(f"above {TARGET}: {'; '.join(missed)}")


# ---- The page


def page() -> None:
    """Write the tables into the page."""
    put_into_page(BEGIN, tables(json.loads(RESULTS.read_text())), END)


def tables(done: dict[str, Any]) -> str:
    """A table of sampling for each kind, and one of beams and paths for both."""
    told = []
    for kind in KINDS:
        here = [c for c in done["generation"] if (c["contest"], c["kind"]) == ("sampling", kind)]
        heads = ["Generated by", *map(_head, here)]
        told.append(table(f"{kind}, a token at a time", heads, _rows(SAMPLING, here)))
    for name, who, title in (("beam", BEAM, "Beams of 4"), ("paths", PATHS, "100 paths")):
        here = [c for c in done["generation"] if c["contest"] == name]
        heads = ["Made by", *(f"{c['kind']}, {_head(c)}" for c in here)]
        told.append(table(title, heads, _rows(who, here)))
    return "\n".join(told)


def _head(contest: dict[str, Any]) -> str:
    layers = "1 layer" if contest["layers"] == 1 else f"{contest['layers']} layers"
    return f"{layers}, `B={contest['batch']}`"


def _rows(who: list[Contestant], here: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The cells of each contestant; those of the first say how fast it is."""
    first, *others = who
    rows = {first.label: [f"1.00, {c['tokens per second']:,} tokens/s" for c in here]}
    for one in others:
        rows[one.label] = [shown(c["ratios"][one.label]) for c in here]
    return rows


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or ["run"]
    if command == "run":
        numbers = [int(word) for word in rest if word.isdigit()]
        run(numbers[0] if numbers else ROUNDS, "--check" in rest)
    elif command == "page":
        page()
    else:
        raise SystemExit(__doc__)
