"""The one voice of errors: what was called, what came, what was wanted, the likely fix."""

from collections.abc import Sequence

from torch import Tensor


def refuse(call: str, came: str, wanted: str, fix: str, kind: type[Exception] = ValueError) -> Exception:
    """An error to raise, in the one voice of the package."""
    return kind(f"{call}: got {came}; wanted {wanted}. Likely fix: {fix}")


def shape(value: object) -> str:
    """A value in the words of an error: the shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, list | tuple):
        items: Sequence[object] = value
        return f"a {type(value).__name__} of {len(items)}"
    return f"a {type(value).__name__}"
