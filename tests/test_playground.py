"""The playground in Chromium: its arithmetic is rnnkit's, and everything on it is operable by keyboard."""

import io
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from road.playground import saved
from test_browser import drive, served
from test_site import SITE, base
from torch import Tensor, nn

from rnnkit import BPTTValidationPhase, RecurrentSequential, SoftmaxSampler, seq2seq_loss

pytestmark = pytest.mark.site

ROOT = Path(__file__).resolve().parent.parent
PRIMER = "def read(self):"


@cache
def kept(tutorial: str) -> dict[str, Any]:
    """What a tutorial has saved, from its executed notebook and not from the file of the site."""
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / f"{tutorial}.ipynb", 4)
    (content,) = [file for name, file in saved(notebook).items() if name.endswith(".pt")]
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.half().float() for name, weight in weights.items()}


def alphabet() -> list[str]:
    return kept("04_generate")["alphabet"]


def writer(weights: dict[str, Tensor]) -> nn.Module:
    size = len(alphabet())
    model = RecurrentSequential(nn.Embedding(size, 32), nn.LSTM(32, 128), nn.Linear(128, size))
    model.load_state_dict(weights)
    return model


def forecaster(weights: dict[str, Tensor]) -> nn.Module:
    model = RecurrentSequential(nn.LSTM(1, 32), nn.Linear(32, 1))
    model.load_state_dict(weights)
    return model


def encode(text: str) -> Tensor:
    for depth in range(8, 0, -1):
        text = text.replace("\n" + "    " * depth, chr(depth))
    number = {character: i for i, character in enumerate(alphabet())}
    return torch.tensor([number.get(character, number["?"]) for character in text])


@torch.no_grad()
def expected(primer: str, settings: dict[str, float]) -> Tensor:
    names = {"temperature": "temperature", "topK": "top_k", "topP": "top_p", "minP": "min_p"}
    sampler = SoftmaxSampler(**{names[name]: value for name, value in settings.items()})
    logits, _ = writer(rounded(kept("04_generate")["weights"]))(encode(primer).unsqueeze(1))
    return sampler.probabilities(logits[-1])[0]


@cache
def random_cases(count: int = 200) -> list[dict[str, Any]]:
    """Pieces of this file and noise, some with characters that the alphabet lacks; any settings."""
    chance = random.Random(0)
    source = Path(__file__).read_text(encoding="utf-8")
    noise = [*alphabet()[8:], "\n        ", "é", "\t", "\U0001d6fc"]
    cases: list[dict[str, Any]] = []
    for number in range(count):
        length = chance.randint(1, 200)
        start = chance.randrange(len(source) - length)
        primer = source[start : start + length]
        if number % 2:
            primer = "".join(chance.choices(noise, k=length))
        settings: dict[str, float] = {"temperature": round(chance.uniform(0.1, 2), 2)}
        if chance.random() < 0.5:
            settings["topK"] = chance.randint(1, len(alphabet()))
        if chance.random() < 0.5:
            settings["topP"] = round(chance.uniform(0.05, 1), 2)
        if chance.random() < 0.5:
            settings["minP"] = round(chance.uniform(0, 1), 2)
        cases.append({"primer": primer, "settings": settings})
    return cases


RUNS = [(run, nfeedback) for run in range(8) for nfeedback in (0, 83)]


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    """What the browser computed and showed, in one run of it."""
    with served() as host:
        address = f"{host}{base()}/"
        job = {"url": address, "cases": random_cases(), "runs": RUNS, "ui": {"primer": PRIMER}}
        return {"url": address, **drive("play.mjs", job)}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_probabilities_are_those_of_rnnkit(played: dict[str, Any]) -> None:
    worst = 0.0
    for case, came in zip(random_cases(), played["arithmetic"]["probabilities"], strict=True):
        wanted = expected(**case)
        worst = max(worst, (torch.tensor(came) - wanted).abs().max().item())
    print(f"largest difference of a probability: {worst:.1e}")
    assert worst < 1e-5


def test_the_cases_use_every_setting_and_the_cuts_cut() -> None:
    """Else the test above could not fail for a cut."""
    for name in ("topK", "topP", "minP"):
        cut = [case for case in random_cases() if name in case["settings"]]
        alone = [expected(case["primer"], {name: case["settings"][name]}) for case in cut]
        assert sum(bool((p == 0).any()) for p in alone) > 50, name
    assert sum(
        any(c not in alphabet() for c in case["primer"].replace("\n", ""))
        for case in random_cases()
    )


def test_what_is_encoded_is_decoded(played: dict[str, Any]) -> None:
    for case, came in zip(random_cases(), played["arithmetic"]["decoded"], strict=True):
        assert came == "".join(c if c in [*alphabet(), "\n"] else "?" for c in case["primer"])


def test_the_forecasts_are_those_of_rnnkit(played: dict[str, Any]) -> None:
    model = forecaster(rounded(kept("08_closed_loop")["weights"]))
    loss = seq2seq_loss(nn.MSELoss())
    worst = {0: 0.0, 83: 0.0}
    for (run, nfeedback), came in zip(RUNS, played["arithmetic"]["forecasts"], strict=True):
        values = kept("08_closed_loop")["runs"][:, run].view(-1, 1, 1)
        step = BPTTValidationPhase(nfeedback)(model, loss, values)
        off = (torch.tensor(came) - step.outputs.flatten()).abs().max().item()
        worst[nfeedback] = max(worst[nfeedback], off)
    print(f"largest difference of a forecast: {worst}")
    assert max(worst.values()) < 1e-4


def test_float16_costs_little() -> None:
    """As the page says."""
    text = encode((ROOT / "tests" / "test_state.py").read_text(encoding="utf-8")).unsqueeze(1)
    prices: list[float] = []
    closed: list[float] = []
    loss = seq2seq_loss(nn.MSELoss())
    for rounding in (dict, rounded):
        with torch.no_grad():
            logits, _ = writer(rounding(kept("04_generate")["weights"]))(text[:-1])
        price = nn.functional.cross_entropy(logits[:, 0], text[1:, 0])
        prices.append(price.item() / math.log(2))
        model = forecaster(rounding(kept("08_closed_loop")["weights"]))
        step = BPTTValidationPhase(83)(model, loss, kept("08_closed_loop")["runs"].unsqueeze(2))
        closed.append(step.closed_loss.item())
    print(f"bits {prices}, closed loss {closed}")
    assert prices[0] != prices[1] and abs(prices[0] - prices[1]) < 0.01
    assert closed[0] != closed[1] and abs(closed[0] / closed[1] - 1) < 0.15


# --- panels -----------------------------------------------------------------------------------------------------------


def shown(p: float) -> str:
    if p == 0:
        return "cut"
    if p < 0.0005:
        return "< 0.1 %"
    return f"{100 * p:.1f} %"


def test_everything_is_done_by_keyboard(played: dict[str, Any]) -> None:
    keyboard = played["keyboard"]
    sliders = ["temperature", "top-k", "top-p", "min-p"]
    buttons = ["write", "one", "again"]
    assert keyboard["stops"] == [
        *("primer", *sliders, "pace", "seed", *buttons, "text", "nfeedback", "run", "which", "step")
    ]
    assert keyboard["spoken"] == [
        ["Temperature", "0.8"],
        ["Top-k", "20"],
        ["Top-p", "0.9"],
        ["Min-p", "0.02"],
    ]


def test_the_panel_shows_the_probabilities_of_its_settings(played: dict[str, Any]) -> None:
    keyboard = played["keyboard"]
    p = expected(PRIMER, {"temperature": 0.8, "topK": 20, "topP": 0.9, "minP": 0.02})
    count = int((p > 0).sum())
    assert 1 < count < len(alphabet())
    assert keyboard["kept"] == f"{count} of {len(alphabet())} are possible"
    # A probability on the edge between two shown digits may be shown as either.
    both = [{shown(value * (1 + e)) for e in (-1e-5, 1e-5)} for value in p.sort().values.flip(0)]
    assert all(row[1] in allowed for row, allowed in zip(keyboard["table"], both[:12], strict=True))
    best = alphabet()[int(p.argmax())]
    spoken = {" ": "space", "\n": "new line"} | {
        chr(depth): f"new line, indent {depth}" for depth in range(1, 9)
    }
    assert keyboard["table"][0][0] == spoken.get(best, best)


def test_the_buttons_write_and_say_so(played: dict[str, Any]) -> None:
    keyboard = played["keyboard"]
    assert len(keyboard["all"]["text"]) >= 400
    assert keyboard["all"]["said"].startswith("Wrote 400 characters. The likeliest next: ")
    assert keyboard["moved"], "the state is that of the text"
    assert keyboard["one"]["text"].startswith(keyboard["all"]["text"])
    assert keyboard["one"]["text"] != keyboard["all"]["text"]
    assert keyboard["one"]["said"].startswith("Drawn: ")
    assert keyboard["again"]["text"] == "" and "Back to the primer" in keyboard["again"]["said"]
    assert keyboard["repeated"] == keyboard["all"]["text"], "a seed repeats its text"
    assert keyboard["empty"] == "Type a primer of at least one character."


def test_the_panel_shows_the_losses_of_rnnkit(played: dict[str, Any]) -> None:
    forecast = played["keyboard"]["forecast"]
    model = forecaster(rounded(kept("08_closed_loop")["weights"]))
    values = kept("08_closed_loop")["runs"][:, 2].view(-1, 1, 1)
    step = BPTTValidationPhase(85)(model, seq2seq_loss(nn.MSELoss()), values)
    open_loss = step.loss_by_step[100:-85].mean().item()
    none = "\u2013"
    assert float(forecast["closed"]) == pytest.approx(step.closed_loss.item(), rel=0.06)
    assert float(forecast["open"]) == pytest.approx(open_loss, rel=0.06)
    assert forecast["said"].startswith("Run 3, nfeedback 85: open loss ")
    for horizon, series, output, error in forecast["rows"]:
        place = len(values) - 1 - 85 + int(horizon) - 2
        if int(horizon) > 86:
            assert (series, output, error) == (none, none, none)
            continue
        truth = (
            values[place + 1].item() * kept("08_closed_loop")["std"]
            + kept("08_closed_loop")["mean"]
        )
        guess = (
            step.outputs[place].item() * kept("08_closed_loop")["std"]
            + kept("08_closed_loop")["mean"]
        )
        assert float(series) == pytest.approx(truth.item(), abs=0.0006)
        assert float(output) == pytest.approx(guess.item(), abs=0.0006)


def test_a_pattern_is_walked_through_one_step_a_key_press(played: dict[str, Any]) -> None:
    given = "input x{0}, state h{0}, output y{0}, it has a loss."
    fed = "input y{1}, state h{0}, output y{0}, its input comes from the output before, it has a loss."
    words, later = zip(*played["keyboard"]["walk"], strict=True)
    expected = [given, given, given, fed, fed]
    assert list(words) == [
        f"Step {t} of 5: {said.format(t, t - 1)}" for t, said in enumerate(expected, 1)
    ]
    assert later[-1] == 0 and list(later) == sorted(set(later), reverse=True), "more each time"
    others = played["keyboard"]["others"]
    assert len(others) == 8 and len(set(others.values())) > 4
    assert all("input " in said and "state h5" in said for said in others.values())
    assert "after it the state is cut" not in others["truncated backpropagation"]


def test_it_writes_sixty_characters_a_second(played: dict[str, Any]) -> None:
    motion = played["motion"]
    print(f"computed {played['arithmetic']['rate']:.0f}, shown {motion['rate']:.0f} a second")
    assert motion["pace"] == "100", "as the page comes"
    assert motion["steps"] > 20, "a few at a time, and not all at once"
    assert motion["rate"] > 60 and played["arithmetic"]["rate"] > 60
    assert motion["stays"], "the button stops it"


def test_who_wants_less_motion_gets_the_text_at_once(played: dict[str, Any]) -> None:
    assert played["keyboard"]["pace"] == "0"


def test_it_is_accessible_in_use(played: dict[str, Any]) -> None:
    assert played["violations"] == []


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_model_is_asked_for_where_it_is_seen_and_nowhere_else(played: dict[str, Any]) -> None:
    asked = played["asked"]
    assert asked["elsewhere"] == []
    assert asked["first"] == ["playground.js", "writer.safetensors"]
    assert asked["both"] == ["playground.js", "writer.safetensors", "forecaster.safetensors"]
    assert [url for url in played["requests"] if not url.startswith(played["url"])] == []
    assert played["problems"] == []


def test_the_models_are_small() -> None:
    sizes = [path.stat().st_size for path in (SITE / "playground").glob("*.safetensors")]
    assert len(sizes) == 2 and sum(sizes) < 600_000


def test_without_javascript_there_is_a_sample(played: dict[str, Any]) -> None:
    still = played["still"]
    assert "--- after training\nclass Reader:" in still["text"]
    assert still["pictures"] == 2 and still["panels"] == 0


def test_where_a_model_cannot_be_had_the_page_says_so_and_keeps_the_sample(
    played: dict[str, Any],
) -> None:
    failed = played["failed"]
    assert failed["said"] == "What this panel needs could not be loaded: the server answers 503."
    assert failed["sample"]
