"""The built site in a browser: no violation that axe-core can see, no request to another host, math typeset.

Every page is looked at, light and dark, wide and narrow.

Needs `chromium`, `node` and `npm`. Where one is missing the tests are skipped, and where `CI` is set they fail.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_site import PAGES as FILES
from test_site import SITE, TUTORIALS, base, found

pytestmark = pytest.mark.site

HERE = Path(__file__).resolve().parent / "browser"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
TUTORIAL_NAMES = {name.split("/")[1]: name.removesuffix("index.html") for name in TUTORIALS}
# Every page of the site by its path; a tutorial by its name.
PAGES = {name.removesuffix("/index.html"): name.removesuffix("index.html") for name in FILES}
PAGES = {name: path for name, path in PAGES.items() if name not in ("index.html", "404.html")}
PAGES = {name.removeprefix("tutorials/"): path for name, path in PAGES.items()}
PAGES |= {"home": "", "404": "no/such/page"}
# Whose first load is measured, and the bytes of all that home brings, compressed as it is sent.
LOADED = ["home", "tutorials", "02_seq2seq", "04_generate"]
SENT = 350_000
EXPONENT = re.compile(r"[\u2212-]?\d+")
# What is typed, and the pages of which one is the first or the second that is offered.
SEARCHES = {
    "Trying to backward through the graph a second time": ["errors"],
    "Expected hidden[0] size": ["errors"],
    "batch_first": ["shapes", "errors"],
    "teacher forcing": ["glossary", "faq/training", "tutorials/09_feedback"],
    "stateful": ["state", "faq/data", "tutorials/07_truncated", "coming"],
    "truncated backpropagation": ["glossary", "state", "tutorials/07_truncated"],
    "pack_padded_sequence": ["errors", "tutorials/05_lengths"],
    "vanishing gradient": ["tutorials/06_gradients", "glossary"],
    "lstm predicts constant": ["errors"],
    "lengths must be on the CPU": ["errors"],
    "RNN weights are not part of single contiguous chunk of memory": ["errors"],
    "temperature": ["tutorials/04_generate"],
    "export": ["export", "faq/use"],
    "onnx": ["export", "faq/use"],
    "multi-step forecast": ["tutorials/08_closed_loop", "tutorials/00_forecast"],
    "hidden state detach": ["state", "errors"],
    "val loss much lower than test": ["tutorials/08_closed_loop", "errors"],
    # What the same walk found nothing for.
    "nan loss": ["errors"],
    "predict future values": ["tutorials/00_forecast"],
    "shuffle time series": ["faq/practice"],
    "stationary": ["faq/practice"],
    "seasonality": ["faq/practice"],
    "inverse transform": ["faq/practice"],
    "time series": ["tutorials/00_forecast"],
    "overfitting": ["errors", "tutorials/", "glossary"],
    "LSTM": ["tutorials/01_recurrent"],
    "'lengths' argument should be a 1D CPU int64 tensor, but got 1D cuda:0": ["errors"],
    "Input and hidden tensors are not at the same device": ["errors"],
    "0D or 1D target tensor expected, multi-target not supported": ["errors"],
    "Expected input batch_size (21) to match target batch_size (7)": ["errors"],
    "not enough values to unpack (expected 2, got 1)": ["errors"],
    # What somebody types who comes from another system.
    "keras": ["coming", "checked"],
    "reset_after": ["coming"],
    "ModelResetter": ["coming"],
    "truncated_bptt_steps": ["lightning", "coming", "checked"],
    "create_supervised_tbptt_trainer": ["coming", "checked"],
    "lstm_seq2seq": ["checked"],
    # Wishes in the words of those who have them.
    "sequence classification": ["tutorials/03_seq2one"],
    "classify a sequence": ["tutorials/03_seq2one"],
    "attention": ["tutorials/10_attention"],
    "beam search": ["tutorials/10_attention"],
    "ConvLSTM": ["tutorials/11_own_cell"],
    "scheduled sampling": ["tutorials/09_feedback"],
    "prediction interval": ["tutorials/14_probabilistic"],
    "bidirectional": ["tutorials/13_labels"],
    "gradient clipping": ["tutorials/06_gradients", "api/callbacks"],
    "early stopping": ["api/callbacks"],
    "variable length sequences": ["tutorials/05_lengths"],
    "mixed precision": ["speed", "tutorials/16_machine"],
    "torch.compile": ["tutorials/16_machine", "faq/use", "errors"],
    "GradScaler": ["tutorials/16_machine"],
    "DistributedDataParallel": ["ranks", "tutorials/16_machine"],
    "deploy lstm": ["tutorials/15_serving"],
    "serving": ["tutorials/15_serving"],
    "streaming": ["tutorials/15_serving"],
    "shuffle": ["tutorials/07_truncated"],
    "music": ["tutorials/12_polyphony"],
    "retain_graph": ["errors"],
    # Questions in people's words.
    "should i use stateful lstm": ["faq/data"],
    "lstm forecast converges to same value": ["faq/training"],
    "how to do tbptt in pytorch": ["faq/training", "tutorials/07_truncated"],
    "does predict reset the lstm state": ["faq/training"],
    "exposure bias": ["faq/training", "tutorials/09_feedback"],
    "lstm streaming inference": ["faq/use"],
    "exported model ignores hidden state": ["faq/use"],
    "keras return_sequences": ["faq/use"],
    "validation better than real forecast": ["faq/training", "tutorials/08_closed_loop"],
    "why pack padded sequences": ["faq/data", "tutorials/05_lengths"],
    "pad token loss": ["faq/data"],
    "multi gpu lstm": ["ranks", "faq/use"],
    "promotions known in the future": ["faq/training"],
    "missing values": ["faq/practice"],
    "f1 score": ["faq/practice"],
    "resume training": ["api/callbacks"],
    "multiple inputs": ["shapes"],
    "initial hidden state": ["state"],
    "save and load model": ["faq/practice"],
    "continue training next day": ["faq/practice"],
    "save model": ["faq/practice"],
    "load model": ["faq/practice"],
    "normalize data": ["faq/practice"],
    "regularization": ["faq/models"],
    "many to one": ["faq/models"],
    "one to many": ["faq/models"],
    "many to many": ["faq/models"],
    # Words that stand on no page, or on many: the tags lead to one.
    "metrics": ["api/learner"],
    "multivariate": ["tutorials/00_forecast"],
    "stock price": ["tutorials/00_forecast"],
    "nucleus": ["tutorials/04_generate"],
    "machine translation": ["tutorials/10_attention"],
    "pos tagging": ["tutorials/13_labels"],
    "quantile": ["tutorials/14_probabilistic"],
    "mamba": ["alternatives"],
    "num_threads": ["speed"],
    "how many hidden units": ["faq/models"],
    "data leakage": ["faq/practice"],
    "anomaly detection": ["faq/practice"],
    "uncertainty": ["faq/practice"],
    "irregular time steps": ["faq/practice"],
    "reproducible": ["faq/use"],
    "fine tune": ["faq/models"],
    "sentiment analysis": ["faq/models"],
    # What a walk through seventy threads found badly or not at all.
    "loss not decreasing": ["errors/symptoms"],
    "loss stuck": ["errors/symptoms"],
    "bidirectional last hidden state": ["errors/silent"],
    "bidirectional lstm forecasting": ["faq/models"],
    "output vs hidden state": ["faq/data"],
    "weight decay": ["faq/models"],
    "dropout": ["faq/models"],
    "missing data": ["faq/practice"],
    "layer norm lstm": ["faq/models"],
    "gru vs lstm": ["faq/models"],
    "weight initialization": ["faq/models"],
    "pretrained embeddings": ["faq/models"],
    "weight tying": ["faq/models"],
    "cnn lstm": ["faq/models"],
    "static features": ["faq/models"],
    "reinforcement learning": ["faq/models"],
    "hierarchical lstm": ["faq/data"],
    "sliding window dataset": ["faq/practice"],
    "num_workers": ["faq/practice"],
    "predict multiple steps ahead": ["faq/practice"],
    "update model with new data": ["faq/practice"],
    "quantize lstm": ["faq/use"],
    "sequence length": ["faq/practice", "tutorials/05_lengths"],
    "lookback": ["faq/practice", "tutorials/00_forecast"],
    "multiple outputs": ["api/losses"],
    "out of memory": ["errors/symptoms"],
    "prediction is shifted by one": ["errors/symptoms"],
    "flat line prediction": ["errors/symptoms"],
    "text classification": ["faq/models"],
    "walk forward validation": ["faq/practice"],
    "multi gpu": ["ranks"],
    "stop token": ["api/generation"],
}
VIEWS = [(scheme, width) for width in (1280, 390) for scheme in ("light", "dark")]
if os.environ.get("SLOW") == "0":  # as `make test` says; CI and pytest itself look at everything
    VIEWS = [("light", 1280), ("dark", 390)]
    # The pages of claims are all made alike: the first one stands for them.
    PAGES = {name: path for name, path in PAGES.items() if not re.match(r"claims/(?!00)", name)}


def missing(what: str) -> None:
    """Skip on a machine that lacks `what`; fail in CI, where it has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"CI is set and {what} is missing, so nothing was looked at in a browser")
    pytest.skip(f"{what} is missing")


class Handler(SimpleHTTPRequestHandler):
    """The site under the path it is published at, with its own page for a missing address."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix(base()) or "/")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = (SITE / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    """The address of the site, while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drive(script: str, job: dict[str, Any]) -> Any:
    """What a script of tests/browser prints of a job, in Chromium."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            missing(tool)
    if CHROMIUM is None:
        missing("chromium")
    if not (HERE / "node_modules" / "axe-core").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
        if subprocess.run(command, cwd=HERE, check=False).returncode:
            missing("what `npm ci` installs")
    tools = {
        "executable": CHROMIUM,
        "axe": str(HERE / "node_modules" / "axe-core" / "axe.min.js"),
    }
    run = subprocess.run(
        ["node", str(HERE / script)], input=json.dumps(tools | job), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def seen(host: str) -> dict[str, Any]:
    """What the browser saw, everywhere, in one run of it."""
    views = [{"scheme": scheme, "width": width} for scheme, width in VIEWS]
    job = {
        "pages": [
            {"name": name, "url": f"{host}{base()}/{path}", "views": views}
            for name, path in PAGES.items()
        ],
        "tour": f"{host}{base()}/",
        "queries": list(SEARCHES),
        "loads": [
            {"name": name, "url": f"{host}{base()}/{PAGES[name]}", "widths": [1280, 390]}
            for name in LOADED
        ],
    }
    return drive("visit.mjs", job)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_a_page_is_accessible(seen: dict[str, Any], name: str, scheme: str, width: int) -> None:
    [view] = [
        v for v in seen["views"] if (v["name"], v["wanted"], v["width"]) == (name, scheme, width)
    ]
    assert view["violations"] == []
    assert view["scheme"] == {"light": "default", "dark": "slate"}[scheme], (
        "the page follows the system's colors"
    )
    assert view["overflow"] <= 0, "the page scrolls sideways"
    assert view["unreachable"] == 0, "something scrolls that the keyboard cannot reach"
    assert view["math"] == 0, "math that is not typeset"
    assert view["plain"] == 0, "code without colors"
    assert view["recolored"], "coloring changed the text of the code"
    assert view["copied"] == 0, "a copy button on an output"
    assert view["covered"] == 0, "a copy button on the code"
    assert view["faint"] == 0, "a copy button that is not seen"
    assert view["broken"] == [], "a word of code in a table, broken inside"
    if width == 390:
        assert view["indent"] < 1, "a definition that loses a part of a narrow line"
        assert view["narrow"] > 300, "the table of patterns is cards"


@pytest.mark.parametrize("name", TUTORIAL_NAMES)
def test_a_lesson_is_read_in_one_sitting(seen: dict[str, Any], name: str) -> None:
    """Down to its evidence, with its folds closed; 1280 by 900."""
    measured = next(v for v in seen["views"] if v["name"] == name)["measured"]
    assert measured["hero"] and measured["hero"] <= 900, "the result is on the first screen"
    assert measured["screens"] <= 9
    assert measured["lines"] <= 150, "lines of code that are not folded"
    assert measured["words"] <= 2000


@pytest.mark.parametrize("name", TUTORIAL_NAMES)
def test_the_letters_of_a_figure_are_read_on_a_phone(seen: dict[str, Any], name: str) -> None:
    """11 px; an exponent is smaller."""
    small = next(v for v in seen["views"] if v["name"] == name)["measured"]["small"]
    letters = [one for one in small if not (EXPONENT.fullmatch(one["said"]) and one["px"] > 7.5)]
    assert letters == []


@pytest.mark.parametrize("name", PAGES)
def test_a_figure_is_enlarged_by_keyboard(seen: dict[str, Any], name: str) -> None:
    view = next(v for v in seen["views"] if v["name"] == name)
    if view["enlarged"] is None:
        assert name not in TUTORIAL_NAMES, "a tutorial has a figure"
        return
    assert view["enlarged"]["violations"] == []
    assert view["enlarged"]["back"], "the focus is where it was"
    assert view["enlarged"]["wide"] > 300


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_and_logs_no_error(
    seen: dict[str, Any], host: str, name: str
) -> None:
    view = next(v for v in seen["views"] if v["name"] == name)
    assert [url for url in view["requests"] if not url.startswith((host, "data:", "blob:"))] == []
    expected = "404 (Not Found)" if name == "404" else "nothing"
    assert [problem for problem in view["problems"] if expected not in problem] == []


def test_search_navigation_and_colors_work(seen: dict[str, Any], host: str) -> None:
    steps = seen["steps"]
    assert steps["search"] == [], "the open search is accessible"
    assert steps["arrived"]["math"] == 0, "math is typeset after a navigation without a load"
    assert steps["switched"] and steps["kept"], (
        "the toggle changes the colors, and the choice is kept"
    )
    assert [url for url in steps["requests"] if not url.startswith((host, "data:", "blob:"))] == []
    assert steps["problems"] == []


def test_a_dark_page_is_printed_on_white(seen: dict[str, Any]) -> None:
    printed = seen["steps"]["printed"]
    assert printed["scheme"] == "slate", "the screen is dark"
    light = {
        name: min(map(int, re.findall(r"\d+", printed[name])[:3])) for name in ("paper", "code")
    }
    dark = {name: max(map(int, re.findall(r"\d+", printed[name])[:3])) for name in ("ink", "link")}
    assert min(light.values()) > 240 and dark["ink"] < 80 and dark["link"] < 170, printed


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_moves_while_a_page_loads(seen: dict[str, Any], name: str, width: int) -> None:
    [load] = [one for one in seen["loaded"] if (one["name"], one["width"]) == (name, width)]
    assert load["placeless"] == [], "a picture whose place is not kept until it comes"
    assert load["moved"] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_chooser_is_on_the_first_screen(seen: dict[str, Any], width: int) -> None:
    [load] = [one for one in seen["loaded"] if (one["name"], one["width"]) == ("home", width)]
    assert 0 < load["chooser"] < 844


def test_a_first_load_of_home_is_light(seen: dict[str, Any]) -> None:
    """Neither KaTeX nor the index of the search is in it, and the worker of the search is."""
    [load, _] = [one for one in seen["loaded"] if one["name"] == "home"]
    files = [found(url, "index.html") for url in load["first"] if not url.startswith("data:")]
    names = {file for file in files if file}
    assert not [name for name in names if "katex" in name or "search_index" in name]
    assert {"index.html", "assets/site.css", "assets/site.js"} < names
    assert [name for name in names if "workers/search" in name]
    sent = {name: len(gzip.compress((SITE / name).read_bytes())) for name in names}
    assert sum(sent.values()) < SENT, sent


@pytest.mark.parametrize("query", SEARCHES)
def test_the_search_offers_the_right_page_first_or_second(seen: dict[str, Any], query: str) -> None:
    offered = [path.removeprefix(f"{base()}/") for path in seen["steps"]["searches"][query]]
    assert any(path.startswith(tuple(SEARCHES[query])) for path in offered), offered


def test_the_cheat_sheet_is_printed_on_one_sheet_of_paper(host: str, tmp_path: Path) -> None:
    if CHROMIUM is None:
        missing("chromium")
    paper = tmp_path / "sheet.pdf"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    quiet += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"{host}{base()}/cheatsheet/"
    subprocess.run(
        [CHROMIUM, *quiet, "--no-pdf-header-footer", f"--print-to-pdf={paper}", address],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) == 2, "its two sides"
