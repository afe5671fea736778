"""An executed notebook without what differs between two runs of the same code."""

from __future__ import annotations

import re

from .ledger import KIND
from .source import Cell, Notebook

# A terminal's escape sequences: colors, cursor, titles.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")

# What differs from run to run, and what takes its place.
MASKS = [
    # tqdm: [00:03<00:00, 31.2it/s]
    (re.compile(r"\[[\d:?]+<[\d:?]+,\s*[\d.?]+\s*(?:\w*/s|s/\w*)(?:,\s*)?"), "["),
    (re.compile(r"\b[\d.]+\s?(it/s|s/it)\b"), r"… \1"),
    # where things lie on the machine that made the page
    (re.compile(r"(?:/[\w.+-]+)+/site-packages/"), "site-packages/"),
    (re.compile(r"(?:/[\w.+-]+)*/ipykernel_\d+/\d+\.py(?::\d+)?"), "<cell>"),
    (re.compile(r"(?:/private)?(?:/var/folders/\w+/\w+/T|/tmp)/[\w.+-]+"), "/tmp/…"),
    # where an object lies in memory
    (re.compile(r"\b0x[0-9a-fA-F]{6,}\b"), "0x…"),
]


def masked(text: str) -> str:
    """A text as a terminal would leave it, with what changes between runs masked."""
    lines: list[str] = []
    for line in ESCAPES.sub("", text).split("\n"):
        # what stands before the last carriage return was overwritten
        line = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
        for pattern, instead in MASKS:
            line = pattern.sub(instead, line)
        if "%|" in line:  # a progress bar of which nothing was left in the brackets
            line = line.replace("[]", "").rstrip()
        lines.append(line)
    return "\n".join(lines)


def clean(notebook: Notebook) -> Notebook:
    """The notebook itself, cleaned in place."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the hours at which it ran
        if cell.cell_type == "code":
            _keep_claims(cell)
            _join_streams(cell)
            for output in cell.outputs:
                _mask(output)
            cell.outputs = [output for output in cell.outputs if not _is_silent(output)]
    return notebook


def _keep_claims(cell: Cell) -> None:
    """What the ledger recorded is no output of the code: it goes to the cell's metadata."""
    claims = [claim for output in cell.outputs for claim in output.get("data", {}).get(KIND, [])]
    if claims:
        cell.metadata["claims"] = claims
    cell.outputs = [output for output in cell.outputs if KIND not in output.get("data", {})]


def _join_streams(cell: Cell) -> None:
    """One output of what came in pieces: a carriage return may overwrite the piece before."""
    outputs: list[Cell] = []
    for output in cell.outputs:
        goes_on = (
            output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name
        )
        if goes_on:
            outputs[-1].text += output.text
        else:
            outputs.append(output)
    cell.outputs = outputs


def _mask(output: Cell) -> None:
    if output.output_type == "stream":
        output.text = masked(output.text)
    elif output.output_type == "error":
        output.evalue = masked(output.evalue)
        output.traceback = [f"{output.ename}: {output.evalue}"]
    elif "text/plain" in output.data:
        output.data["text/plain"] = masked(output.data["text/plain"])


def _is_silent(output: Cell) -> bool:
    return output.output_type == "stream" and not output.text.strip()
