"""The tutorials themselves: each has the form of a lesson, and each goes red when the package is broken."""

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from road.header import read
from road.page import to_page
from road.run import environment
from road.source import notebook_of

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))

# The parts of a lesson in their order; others may stand between. A heading may go on: "Use it: forecast ...".
PARTS = [
    "The pattern",
    "Plain PyTorch",
    "With rnnkit",
    "Use it",
    "What goes wrong",
    "In short",
    "Try it",
    "Where next",
    "Evidence",
]
ANYWHERE = ["The data", "The shapes"]  # before "What goes wrong"
# Parts that a page does without, and why.
WITHOUT = {
    # All of it is plain PyTorch and about shapes, each under a heading of its own; it makes nothing to use.
    "01_recurrent": {"Plain PyTorch", "The shapes", "Use it"},
    # Its method is a look at any model: how to take it is said with it. Data and shapes stand under one heading.
    "06_gradients": {"Use it", "The shapes"},
}


def cells(source, kind=None, tag=None):
    return [
        c
        for c in notebook_of(source).cells
        if (kind is None or c.cell_type == kind) and (tag is None or tag in tags_of(c))
    ]


def tags_of(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def prose(source: Path) -> str:
    return "\n".join(cell.source for cell in cells(source, "markdown"))


def part(source: Path, name: str) -> list[Any]:
    """The cells of one part, its own heading among them; empty where the page has none."""
    found: list[Any] = []
    for cell in cells(source):
        heading = (
            re.search(r"^## (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        )
        if found and heading and not re.search(rf"^## {name}", cell.source, re.M):
            return found
        if found or (heading and re.search(rf"^## {name}", cell.source, re.M)):
            found.append(cell)
    return found


def copied(markdown: str) -> list[str]:
    """The blocks of code of a page's Markdown, visible and folded, in their order."""
    fence = re.compile(r"^( *)(`{3,}) \{ \.python \.input[^}]*\}\n(.*?)^\1\2$", re.M | re.S)
    return [textwrap.dedent(block).strip("\n") for _, _, block in fence.findall(markdown)]


def tables(table: symtable.SymbolTable, *, later: bool = False) -> Iterator[tuple[Any, bool]]:
    """A scope and those in it, each with whether it is run later: the body of a function."""
    yield table, later
    for inner in table.get_children():
        kept = inner.get_type() == "function" and not inner.get_name().endswith(("comp", "genexpr"))
        yield from tables(inner, later=later or kept)


def undefined(blocks: list[str]) -> list[str]:
    """The names that code, copied in this order, reads before they are defined.

    >>> undefined(["import math", "def f(): return b", "b = [c for c in f()]", "math.e, d"])
    ['d']
    >>> undefined(["x = x + 1"]), undefined(["for i in y: print(i)", "y = 1"])
    (['x'], ['y'])
    """
    known = set(dir(builtins)) | {"__name__"}
    missing: list[str] = []
    asked_later: set[str] = set()
    for block in blocks:
        for statement in ast.parse(block).body:
            whole = symtable.symtable(ast.unparse(statement), "<block>", "exec")
            bound = {
                s.get_name() for s in whole.get_symbols() if s.is_assigned() or s.is_imported()
            }
            # A loop or a definition binds before it reads; "x = x + 1" does not.
            before = known | bound if hasattr(statement, "body") else known
            for table, later in tables(whole):
                own = table is whole
                reads = [s for s in table.get_symbols() if s.is_referenced()]
                names = {s.get_name() for s in reads if own or s.is_global()}
                if later:
                    asked_later |= names
                else:
                    missing += sorted(names - before)
            known |= bound
    return missing + sorted(asked_later - known)


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
class TestCode:
    def test_a_cell_is_one_thought(self, source):
        long = [cell.source for cell in cells(source, "code") if len(cell.source.splitlines()) > 15]
        assert not long, f"{len(long)} cells of more than 15 lines, the first:\n{long[0]}"

    def test_a_line_fits_the_page(self, source):
        lines = "\n".join(cell.source for cell in cells(source, "code")).splitlines()
        wide = [line for line in lines if len(line) > 88]
        assert not wide, f"{len(wide)} lines of code over 88 columns, the first:\n{wide[0]}"

    def test_the_page_drops_no_code_and_what_is_copied_in_order_names_nothing_undefined(
        self, source
    ):
        notebook = notebook_of(source)
        blocks = copied(to_page(notebook, source.stem).markdown)
        written = [cell.source.strip("\n") for cell in notebook.cells if cell.cell_type == "code"]
        assert blocks == written
        assert undefined([block for block in blocks if not block.startswith("%pip")]) == []

    def test_it_says_how_to_install_and_does_not_do_it_here(self, source):
        (install,) = [cell for cell in cells(source, "code") if "%pip" in cell.source]
        assert "skip-execution" in tags_of(install)


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
class TestForm:
    def test_it_begins_with_a_title_and_one_line(self, source):
        first = cells(source)[0]
        title, line, *more = first.source.split("\n\n")
        assert title.startswith("# ") and "\n" not in title
        assert not more and re.match(r"[A-Z]", line) and len(line) < 300
        assert len(re.findall(r"^# (.+)$", prose(source), re.M)) == 1, "one title"

    def test_its_header_says_what_stands_under_the_title(self, source):
        header = read(notebook_of(source).metadata["rnnkit"]["header"])
        assert not header.problems
        assert header.minutes and header.learn and header.description
        assert header.texts.keys() == {"needs", "data", "prerequisites"}

    def test_the_parts_stand_in_order(self, source):
        headings = re.findall(r"^## (.+?)\s*$", prose(source), re.M)
        starts = "|".join(PARTS)
        came = [re.match(starts, heading) for heading in headings]
        order = list(dict.fromkeys(found[0] for found in came if found))
        spared = WITHOUT.get(source.stem, set())
        assert [name for name in order if name not in spared] == [
            name for name in PARTS if name not in spared
        ]
        for name in set(ANYWHERE) - spared:
            place = [i for i, heading in enumerate(headings) if heading.startswith(name)]
            assert len(place) == 1, f"{name}: {headings}"
            assert place[0] < headings.index("What goes wrong")

    def test_it_has_one_hero(self, source):
        (hero,) = cells(source, tag="hero")
        assert "alt" not in hero.metadata or hero.metadata["caption"], "a figure says what it means"

    def test_two_or_three_mistakes_are_made_on_purpose(self, source):
        mistakes = part(source, "What goes wrong")
        text = "\n".join(cell.source for cell in mistakes if cell.cell_type == "markdown")
        headings = re.findall(r"^### (.+)$", text.split("## In short")[0], re.M)
        assert 2 <= len(headings) <= 3, headings

    def test_it_ends_with_four_lines_and_three_exercises_that_have_answers(self, source):
        short = re.search(r"^## In short\s(.+?)^## ", prose(source), re.M | re.S)
        assert short and 3 <= len(re.findall(r"^- ", short[1], re.M)) <= 5
        numbers, answered = [], set()
        for cell in part(source, "Try it"):
            numbers += re.findall(r"^\*\*(\d)\. ", cell.source, re.M)
            if cell.cell_type == "code" and "solution" in tags_of(cell):
                answered.add(numbers[-1])
        assert numbers == ["1", "2", "3"] and answered == set(numbers)

    def test_an_answer_is_not_seen_before_it_is_asked_for(self, source):
        answered = False
        for cell in part(source, "Try it"):
            if "solution" in tags_of(cell):
                answered = True
            else:
                assert cell.cell_type == "markdown", f"code in the open:\n{cell.source}"
                opens = re.match(r"\*\*\d\. |## ", cell.source)
                assert opens or not answered, f"stands open after an answer:\n{cell.source}"

    def test_it_runs_with_the_answers_left_out(self, source):
        """As the notebook of the exercises has it."""
        asked = [
            cell.source
            for cell in cells(source, "code")
            if not {"solution", "skip-execution"} & set(tags_of(cell))
        ]
        assert undefined(asked) == []

    def test_it_asserts_what_it_claims(self, source):
        code = "\n".join(cell.source for cell in cells(source, "code"))
        assert len(re.findall(r"^\s*assert |assert_close", code, re.M)) >= 5

    def test_what_follows_the_lesson_is_evidence(self, source):
        everything = cells(source)
        first = next(i for i, cell in enumerate(everything) if "## Evidence" in cell.source)
        assert all("evidence" in tags_of(cell) for cell in everything[first:])
        assert not any("evidence" in tags_of(cell) for cell in everything[:first])


# What is done for more than one page.
NOT_SHIFTED = """
    from dataclasses import replace
    from rnnkit.data import batches
    whole = batches._shifted
    def still(batch, sequence):
        return replace(whole(batch, sequence), targets=batches.between(sequence, 0, len(sequence) - 1))
    batches._shifted, batches._usual = still, lambda batch: None
    """
PADDING_COUNTS = """
    from rnnkit.losses.steps import StepLoss
    over_valid = StepLoss.over
    def padded(self, targets, time, batch, lengths=None, *more, **named):
        return over_valid(self, targets, time, batch, None, *more, **named)
    StepLoss.over = padded
    """

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
        PADDING_COUNTS,
    ),
    "the shift is off by one": (
        "02_seq2seq",
        NOT_SHIFTED,
    ),
    "feedback is off by one": (
        "08_closed_loop",
        """
        import torch
        from rnnkit.generation.rollouts import Rollout
        whole = Rollout.over
        def late(self, inputs, mask, *arguments):
            if mask is not None:
                mask = torch.cat([mask[:1], mask[:-1]])
            return whole(self, inputs, mask, *arguments)
        Rollout.over = late
        """,
    ),
    "a closed loop is never closed": (
        "08_closed_loop",
        """
        from rnnkit.generation.rollouts import Rollout
        whole = Rollout.over
        Rollout.over = lambda self, inputs, mask, *arguments: whole(self, inputs, None, *arguments)
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
    "a shifted target stays where it was": (
        "01_recurrent",
        NOT_SHIFTED,
    ),
    "a forecast begins a step late": (
        "02_seq2seq",
        """
        import rnnkit
        whole = rnnkit.forecast
        def late(model, horizon, primer, *more, **named):
            return whole(model, horizon + 1, primer, *more, **named)[1:]
        rnnkit.forecast = late
        """,
    ),
    "buckets are no buckets": (
        "05_lengths",
        """
        from rnnkit import BucketSampler
        BucketSampler._batches = lambda self, order: list(order.split(self.batch_size))
        """,
    ),
    "the flow of the gradient is upside down": (
        "06_gradients",
        """
        import rnnkit
        whole = rnnkit.gradient_flow
        def by_step(*arguments, **options):
            return {name: norms.flip(0) for name, norms in whole(*arguments, **options).items()}
        rnnkit.gradient_flow = by_step
        """,
    ),
    "windows are not cut from each other": (
        "07_truncated",
        """
        from rnnkit.training import bptt
        bptt.detach = lambda state: state
        """,
    ),
    "training is never stopped early": (
        "08_closed_loop",
        """
        from rnnkit import EarlyStopping
        EarlyStopping.on_epoch_end = lambda self, learner: None
        """,
    ),
    "feedback in training is not heard": (
        "09_feedback",
        """
        import rnnkit
        whole = rnnkit.BPTTTrainingPhase.__init__
        def deaf(self, *arguments, feedback=None, **options):
            whole(self, *arguments, **options)
        rnnkit.BPTTTrainingPhase.__init__ = deaf
        """,
    ),
    "attention looks at padding": (
        "10_attention",
        """
        import torch, rnnkit
        def unmasked(self, queries, memory, mask):
            return torch.einsum("tbm,sbm->tbs", self.score(queries), memory).softmax(-1)
        rnnkit.Attention.weights = unmasked
        """,
    ),
    "a cell forgets the state that it is handed": (
        "11_own_cell",
        """
        from rnnkit.models import unroll
        whole = unroll._at
        unroll._at = lambda state, at: None if isinstance(at, int) else whole(state, at)
        """,
    ),
    "a padded batch of chords is averaged whole": (
        "12_polyphony",
        PADDING_COUNTS,
    ),
    "padded lines are scored whole": (
        "13_labels",
        PADDING_COUNTS,
    ),
    "a path is the mean and not a draw": (
        "14_probabilistic",
        """
        from rnnkit.generation.samplers import DistributionSampler
        def certain(self, outputs):
            return self._distribution(outputs).mean
        DistributionSampler.__call__ = certain
        """,
    ),
    "a user is given the state of another": (
        "15_serving",
        """
        import rnnkit
        whole = rnnkit.select_rows
        rnnkit.select_rows = lambda state, index: whole(state, index.flip(0))
        """,
    ),
    "a phase goes on with the casts of the weights before": (
        "16_machine",
        """
        from rnnkit.training import bptt
        whole = bptt._make_update
        def update(loop):
            import torch
            clear, torch.clear_autocast_cache = torch.clear_autocast_cache, lambda: None
            whole(loop)
            torch.clear_autocast_cache = clear
        bptt._make_update = update
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
    # What users' own losses, models and data once met in silence.
    "the loss of an epoch is the mean of its batches' means": (
        "05_lengths",
        """
        from rnnkit.losses.total import Total
        from rnnkit.training.average import Average
        whole = Average.add
        Average.add = lambda self, total: whole(self, Total(total.mean(), 1.0))
        """,
    ),
    "a model with two directions reads the padding": (
        "05_lengths",
        """
        from rnnkit.core.model import Declared
        Declared.bidirectional = property(lambda self: False)
        """,
    ),
    "the last step of two directions is read": (
        "03_seq2one",
        """
        from rnnkit.losses.sequences import ReadLoss
        ReadLoss.check_model = lambda self, model: None
        """,
    ),
    "outputs and targets are broadcast": (
        "02_seq2seq",
        """
        from rnnkit.losses.function import Head
        Head.check_shapes = lambda self, *arguments, **options: None
        """,
    ),
    "a sampler sees the outputs alone": (
        "00_forecast",
        """
        from rnnkit.generation.samplers import WithCovariates
        whole = WithCovariates.__call__
        WithCovariates.__call__ = lambda self, outputs, given: whole(self, outputs, 0 * given)
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
    notebook.cells.insert(0, nbformat.v4.new_code_cell(textwrap.dedent(patch).strip()))
    for key, value in environment(ROOT).items():
        monkeypatch.setenv(key, value)
    notebook, error = run(notebook, tmp_path)
    assert error is not None, "the tutorial does not notice"
    assert notebook.cells[0].execution_count == 1
    assert not any(output.output_type == "error" for output in notebook.cells[0].outputs), (
        "the patch itself failed"
    )
