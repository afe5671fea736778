"""The tutorials themselves: each has its twelve parts, and each goes red when the package is broken."""

import re
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from road.run import environment
from road.source import notebook_of

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
TWELVE_PARTS = ("02", "03", "04", "06", "08")
FIRST_FORM = [path for path in TUTORIALS if path.name.startswith(TWELVE_PARTS)]

PARTS = [  # the footer, the twelfth, is made by the build; the third has three headings
    "What comes out",
    "You will learn",
    "You need",
    "The pattern",
    "The shapes",
    "The data",
    "Plain PyTorch",
    "With rnnkit",
    "Train, look, doubt",
    "What goes wrong",
    "Try it",
    "Where next",
]


def cells(source, kind, tag=None):
    notebook = notebook_of(source)
    return [
        c
        for c in notebook.cells
        if c.cell_type == kind and (tag is None or tag in c.metadata.get("tags", []))
    ]


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
class TestCode:
    def test_a_cell_is_one_thought(self, source):
        long = [cell.source for cell in cells(source, "code") if len(cell.source.splitlines()) > 15]
        assert not long, f"{len(long)} cells of more than 15 lines, the first:\n{long[0]}"

    def test_a_line_fits_the_page(self, source):
        lines = "\n".join(cell.source for cell in cells(source, "code")).splitlines()
        wide = [line for line in lines if len(line) > 88]
        assert not wide, f"{len(wide)} lines of code over 88 columns, the first:\n{wide[0]}"


@pytest.mark.parametrize("source", FIRST_FORM, ids=lambda path: path.stem)
class TestForm:
    def test_the_parts_stand_in_order(self, source):
        text = "\n".join(cell.source for cell in cells(source, "markdown"))
        assert re.findall(r"^## (.+?)\s*$", text, re.MULTILINE) == PARTS
        assert len(re.findall(r"^# (.+)$", text, re.MULTILINE)) == 1, "one title"

    def test_it_asserts_what_it_claims_and_its_exercises_are_executed(self, source):
        code = "\n".join(cell.source for cell in cells(source, "code"))
        assert len(re.findall(r"^\s*assert |assert_close", code, re.MULTILINE)) >= 5
        assert len(cells(source, "code", "solution")) >= 2, "two exercises with executed answers"

    def test_it_says_how_to_install_and_does_not_do_it_here(self, source):
        install = [cell for cell in cells(source, "code") if "%pip" in cell.source]
        assert len(install) == 1
        assert "skip-execution" in install[0].metadata.tags

    def test_its_mistakes_are_made_on_purpose(self, source):
        headings = "\n".join(cell.source for cell in cells(source, "markdown")).split(
            "## What goes wrong"
        )[1]
        mistakes = re.findall(r"^### ", headings.split("## Try it")[0], re.MULTILINE)
        assert 2 <= len(mistakes) <= 4


# Each way of breaking the package: the tutorial that must go red, and what is done to rnnkit before its first cell.
BREAKS = {
    "seq2one_loss reads the last padded step": (
        "03_seq2one",
        """
        from rnnkit.losses.sequences import ReadLoss
        whole = ReadLoss.over
        def blind(self, targets, time, batch, lengths=None, *more, **named):
            return whole(self, targets, time, batch, None, *more, **named)
        ReadLoss.over = blind
        """,
    ),
    "a loss averages padding": (
        "02_seq2seq",
        """
        from rnnkit.losses.steps import StepLoss
        whole = StepLoss.over
        def padded(self, targets, time, batch, lengths=None, *more, **named):
            return whole(self, targets, time, batch, None, *more, **named)
        StepLoss.over = padded
        """,
    ),
    "the shift is off by one": (
        "02_seq2seq",
        """
        from dataclasses import replace
        from rnnkit.data import batches
        whole = batches._shifted
        def still(batch, sequence):
            return replace(whole(batch, sequence), targets=batches.between(sequence, 0, len(sequence) - 1))
        batches._shifted, batches._usual = still, lambda batch: None
        """,
    ),
    "feedback is off by one": (
        "08_closed_loop",
        """
        import torch, rnnkit
        whole = rnnkit.Feedback.mask
        def late(self, *arguments, **options):
            mask = whole(self, *arguments, **options)
            return torch.cat([mask[:1], mask[:-1]])
        rnnkit.Feedback.mask = late
        """,
    ),
    "a closed loop is never closed": (
        "08_closed_loop",
        """
        import torch, rnnkit
        whole = rnnkit.Feedback.mask
        rnnkit.Feedback.mask = lambda self, *a, **k: torch.zeros_like(whole(self, *a, **k))
        """,
    ),
    "a state is not carried": (
        "04_generate",
        """
        from rnnkit import RecurrentSequential
        whole = RecurrentSequential.forward
        RecurrentSequential.forward = lambda self, inputs, state=None: whole(self, inputs, None)
        """,
    ),
    "a state is not detached": (
        "06_gradients",
        """
        import rnnkit.training.bptt
        rnnkit.detach = rnnkit.training.bptt.detach = rnnkit.core.state.detach = lambda state: state
        """,
    ),
    "a sampler ignores its temperature": (
        "04_generate",
        """
        import rnnkit
        whole = rnnkit.SoftmaxSampler.__init__
        rnnkit.SoftmaxSampler.__init__ = lambda self, temperature=1.0, *a, **k: whole(self, 1.0, *a, **k)
        """,
    ),
    "top-p drops the first token": (
        "04_generate",
        """
        import rnnkit
        whole = rnnkit.SoftmaxSampler.probabilities
        def beheaded(self, outputs):
            p = whole(self, outputs)
            if self.top_p is None:
                return p
            cut = p.scatter(1, p.argmax(1, keepdim=True), 0.0) + 1e-9
            return cut / cut.sum(1, keepdim=True)
        rnnkit.SoftmaxSampler.probabilities = beheaded
        """,
    ),
    "a forecast's covariates come an hour late": (
        "00_forecast",
        """
        from rnnkit.generation import sampling
        whole = sampling._Known.ahead
        sampling._Known.ahead = lambda self, steps: whole(self, steps).roll(1, 0)
        """,
    ),
    "a step's share of the gradient holds the shares before it": (
        "06_gradients",
        """
        import rnnkit, rnnkit.analysis.gradients
        whole = rnnkit.gradient_by_step
        def running(*arguments, **options):
            return {name: share.cumsum(0) for name, share in whole(*arguments, **options).items()}
        rnnkit.gradient_by_step = rnnkit.analysis.gradients.gradient_by_step = running
        """,
    ),
}


def run(notebook, folder):
    """The executed notebook and the error it ended with; a kernel that never started is started again."""
    for attempt in range(3):
        copy = deepcopy(notebook)
        client = NotebookClient(
            copy, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
            return copy, None
        except CellExecutionError as error:
            return copy, error
        except RuntimeError:
            if attempt == 2 or any(cell.get("execution_count") for cell in copy.cells):
                raise
    raise AssertionError("unreachable")


@pytest.mark.slow
@pytest.mark.parametrize("broken", BREAKS)
def test_breaking_the_package_breaks_a_tutorial(broken, tmp_path, monkeypatch):
    name, patch = BREAKS[broken]
    notebook = notebook_of(ROOT / "tutorials" / f"{name}.py")
    lines = "\n".join(line.removeprefix(" " * 8) for line in patch.splitlines()).strip()
    notebook.cells.insert(0, nbformat.v4.new_code_cell(lines))
    for key, value in environment(ROOT).items():
        monkeypatch.setenv(key, value)
    notebook, error = run(notebook, tmp_path)
    assert error is not None, "the tutorial does not notice"
    assert notebook.cells[0].execution_count == 1
    assert not any(output.output_type == "error" for output in notebook.cells[0].outputs), (
        "the patch itself failed"
    )
