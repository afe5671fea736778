"""What tutorials save, as files for the playground: docs/playground.md, docs/assets/playground.js.

A tutorial that ends with a file `NAME.pt` in its folder, by `torch.save` of a dict, has it kept in
the metadata of its executed notebook: one thing, that is fresh or stale as a whole. Beside it is
kept `NAME.safetensors`, which the site has, in the format of
https://github.com/huggingface/safetensors: the length of a header, the header in JSON, numbers.
`"weights"`, a state dict, is rounded to float16, half of its bytes; other tensors stay as they are;
what is no tensor is text in the header. A build needs no torch for it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from pathlib import Path
from typing import Any

from .page import Page
from .source import Notebook

SAMPLE = re.compile(r"<!-- hero of (\w+) -->")


# --- while a tutorial runs -----------------------------------------------------------------------


def encoded(folder: Path) -> dict[str, str]:
    """The files that a run has saved and not removed, and what the site has of each, as text for
    the notebook's metadata."""
    files: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.pt")):
        files[path.name] = path.read_bytes()
        files[f"{path.stem}.safetensors"] = packed(files[path.name])
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def packed(content: bytes) -> bytes:
    """What `torch.save` wrote of a dict, in the format of safetensors."""
    import torch  # only here: a site is built without it

    said: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    tensors = {name: weight.half() for name, weight in said.pop("weights").items()}
    texts: dict[str, str] = {}
    for name, value in said.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value.float()
        else:
            texts[name] = json.dumps(value)

    header: dict[str, Any] = {"__metadata__": texts}
    numbers = b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(numbers), len(numbers) + len(data)],
        }
        numbers += data
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the numbers begin at a multiple of 8
    return struct.pack("<Q", len(head)) + head + numbers


# --- when the site is built ----------------------------------------------------------------------


def saved(notebook: Notebook) -> dict[str, bytes]:
    """The files that are kept of a tutorial, by their names."""
    facts = notebook.metadata.get("rnnkit", {})
    return {name: base64.b64decode(text) for name, text in facts.get("saved", {}).items()}


def model_files(notebook: Notebook) -> dict[str, bytes]:
    """The paths and contents of the models of a tutorial, as the site has them."""
    files = saved(notebook)
    return {f"playground/{name}": files[name] for name in files if name.endswith(".safetensors")}


def with_samples(markdown: str, pages: dict[str, Page]) -> str:
    """The page with what tutorials show under their titles: its readers without JavaScript."""

    def hero(match: re.Match[str]) -> str:
        name = match[1]
        if name not in pages:
            return ""  # no such tutorial has run; MkDocs misses the models that the page links to
        return pages[name].hero.replace(f"]({name}/", f"](tutorials/{name}/")

    return SAMPLE.sub(hero, markdown)
