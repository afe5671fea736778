"""One layout, `(T, B, *F)`, padded at the end, with lengths beside it; the ways into and out of it.

A batch comes in many forms, and `SequenceBatch.of` is the one place that reads them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.errors import Refusal, asked, in_full, in_words, one_of
from ..core.layout import (
    Steps,
    as_sequence,
    as_sequences,
    between,
    check_lengths,
    check_weights,
    extent,
    is_dense,
    parts_of,
)
from ..core.state import like, onto


class Padded(NamedTuple):
    """Sequences of different length in one tensor, and how long each of them is.

    As a batch, each step's target is the next.

    >>> import torch
    >>> from rnnkit import batchseq, get_inout_seq
    >>> padded = batchseq([torch.tensor([1, 2, 3]), torch.tensor([4, 5])])
    >>> padded.sequences.T.tolist(), padded.lengths.tolist()
    ([[1, 2, 3], [4, 5, 0]], [3, 2])
    >>> inputs, targets, lengths = get_inout_seq(padded)
    >>> inputs.T.tolist(), targets.T.tolist(), lengths.tolist()
    ([[1, 2], [4, 5]], [[2, 3], [5, 0]], [2, 1])

    Attributes:
        sequences: `(T, B, *F)`, each padded after its end.
        lengths: int64 on the CPU, `(B,)`.
    """

    sequences: Tensor
    lengths: Tensor


@dataclass(eq=False)  # Lightning writes to a copy
class SequenceBatch:
    """One batch of sequences; iterating gives those of inputs, targets and lengths that are there.

    >>> import torch
    >>> from rnnkit import SequenceBatch
    >>> inputs, targets = SequenceBatch(torch.zeros(5, 2, 1), torch.zeros(5, 2, 1))

    Attributes:
        inputs: `(T, B, *F)`, a list of `T` steps, or a dict of such sequences; for an
            encoder-decoder `(source, source_lengths, inputs)`.
        targets: `(T, B, *Y)` or, one a sequence, `(B, *Y)`, or a dict of them; `None` where each
            step's target is the next step of the inputs.
        lengths: int64 on the CPU, `(B,)`; `None` where every row has `T` steps.
        restart: bool `(B,)`, the rows that do not go on from the batch before; `None` where nothing
            goes on. With it a row may have the length 0. Within a batch no row restarts.
        weights: `(T, B)`, or for targets one a sequence also `(B,)`, what each target counts for,
            0: it is not scored. They are shifted with the targets.
    """

    inputs: Any
    targets: Any = None
    lengths: Tensor | None = None
    restart: Tensor | None = None
    weights: Tensor | None = None

    @staticmethod
    @asked("SequenceBatch.of")
    def of(batch: Any) -> "SequenceBatch":
        """A batch in any form that [get_inout_seq][rnnkit.get_inout_seq] takes, with its targets.

        >>> import torch
        >>> from rnnkit import SequenceBatch
        >>> batch = SequenceBatch.of(torch.arange(4).unsqueeze(1))
        >>> batch.inputs.flatten().tolist(), batch.targets.flatten().tolist()
        ([0, 1, 2], [1, 2, 3])
        """
        return _usual(batch) or _read(batch)

    def __iter__(self) -> Iterator[Any]:
        parts = (self.inputs, self.targets, self.lengths)
        return (part for part in parts if part is not None)

    def to(self, device: torch.device | str) -> "SequenceBatch":
        """The same batch with inputs, targets and weights on `device`; lengths stay on the CPU.

        The host does not wait for the copies.
        """
        inputs = self.inputs
        if isinstance(inputs, tuple) and len(inputs) == 3:
            source, lengths, own = inputs  # lengths of the source stay too
            inputs = (move(source, device), lengths, move(own, device))
        else:
            inputs = move(inputs, device)
        targets = move(self.targets, device)
        return replace(self, inputs=inputs, targets=targets, weights=move(self.weights, device))

    def pin_memory(self) -> "SequenceBatch":
        """The same batch in pinned memory: `DataLoader(pin_memory=True)` calls this."""
        parts: dict[str, Any] = _each_tensor(lambda leaf: leaf.pin_memory(), vars(self))
        return SequenceBatch(**parts)


def move(tree: Any, device: torch.device | str | None) -> Any:
    """The tensors of a batch on a device; where they are, if it is `None`."""
    if device is None:
        return tree
    return _each_tensor(lambda leaf: onto(leaf, torch.device(device)), tree)


def _each_tensor(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`function` of every tensor in tuples, lists and dicts; all else stays as it is."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _each_tensor(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        items = [_each_tensor(function, part) for part in tree]
        return like(tree, items)
    return tree


@asked("get_inout_seq")
def get_inout_seq(batch: Any) -> tuple[Any, ...]:
    """Inputs and targets of a batch in whatever form: `(inputs, targets)` or `(..., lengths)`.

    Its type says what it is. `SequenceBatch.of(batch)` keeps weights and restarts, too. From
    [issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144).

    | a batch | is |
    |---|---|
    | `(inputs, targets)`, `(inputs, targets, lengths)` | these already |
    | a [SequenceBatch][rnnkit.SequenceBatch] | its parts; without targets it is shifted |
    | a tensor `(T, B, *F)`, a list of steps, a dict of sequences | one sequence, shifted |
    | a [Padded][rnnkit.Padded] | one ragged sequence, shifted, with lengths less by 1 |

    Shifted: the inputs are all steps but the last, the targets all but the first.

    >>> import torch
    >>> from rnnkit import get_inout_seq
    >>> inputs, targets = get_inout_seq(torch.arange(4).unsqueeze(1))
    >>> inputs.flatten().tolist(), targets.flatten().tolist()
    ([0, 1, 2], [1, 2, 3])

    Raises:
        TypeError: if it is none of these, or a list of two: `DataLoader` makes lists of pairs.
        ValueError: if a sequence to be shifted has one step, or the parts do not fit.
    """
    return tuple(_usual(batch) or _read(batch))


def _read(batch: Any) -> SequenceBatch:
    batch = _unpadded(_named(batch))
    source, sequence = _taken_apart(batch.inputs)
    sequence = as_sequences(sequence, "inputs")
    if batch.targets is None:
        batch = _shifted(batch, sequence)
        sequence = between(sequence, 0, extent(sequence)[0] - 1)
    shape = extent(sequence)  # T, B

    # Inputs and targets have the same steps now, and the other parts must fit them.
    if batch.lengths is not None:
        least = 1 if batch.restart is None else 0  # a row may have no document left
        check_lengths(batch.lengths, *shape, least)
    if batch.restart is not None:
        _check_restart(batch.restart, shape[1])
    if isinstance(batch.targets, dict):
        _check_targets(batch.targets, *shape)
    weights = batch.weights
    if weights is not None:
        weights = _checked_weights(weights, shape, shape[1:])
    inputs: Any = sequence
    if source:
        inputs = (*source, sequence)
    if inputs is batch.inputs and weights is batch.weights:
        return batch
    return replace(batch, inputs=inputs, weights=weights)


def _usual(batch: Any) -> SequenceBatch | None:
    """What `_read` would make of one sequence or a pair of tensors, in which all is right."""
    if type(batch) is Tensor and is_dense(batch):
        if batch.ndim > 1 and len(batch) > 1 and batch.numel():
            return SequenceBatch(batch[:-1], batch[1:])
    elif type(batch) is tuple and len(batch) == 2:
        inputs, targets = batch
        if type(inputs) is type(targets) is Tensor and inputs.ndim > 1 and inputs.numel():
            return SequenceBatch(inputs, targets)
    return None


def _named(batch: Any) -> SequenceBatch:
    if isinstance(batch, SequenceBatch):
        return batch
    if isinstance(batch, Padded):
        return SequenceBatch(batch.sequences, lengths=batch.lengths)
    if isinstance(batch, tuple) and len(batch) in (2, 3):
        if batch[1] is None:  # as the targets of a SequenceBatch it would mean: shift
            fix = "SequenceBatch(inputs), where each step's target is the next one."
            raise Refusal("a tuple whose targets are None", "(inputs, targets)", fix, TypeError)
        return SequenceBatch(*batch)
    if isinstance(batch, list):
        _check_is_no_pair(batch)
    if not isinstance(batch, Tensor | list | dict):
        raise Refusal(
            in_words(batch),
            "a tuple of two or three, a SequenceBatch or one sequence",
            "a tuple is a pair (inputs, targets); a list is the T steps of one sequence; an array "
            "becomes a tensor by torch.as_tensor.",
            TypeError,
        )
    return SequenceBatch(batch)


def _check_is_no_pair(batch: list[Any]) -> None:
    """Refuse a list that may have been a tuple before a DataLoader had it."""
    if len(batch) == 2:
        wanted = "(inputs, targets)"
    elif len(batch) == 3 and _is_flat(batch[2]) and not _is_flat(batch[0]):
        wanted = "(inputs, targets, lengths)"  # the steps of one sequence are all alike
    else:
        return
    raise Refusal(
        f"a list of {len(batch)}",
        f"a tuple {wanted}, or one sequence (T, B, *F)",
        "a DataLoader made a list of the tuple: pass tuple(batch), or collate_fn=pad_collate; if "
        "these are the steps of one sequence, torch.stack(batch).",
        TypeError,
    )


def _is_flat(part: object) -> bool:
    return isinstance(part, Tensor) and part.ndim == 1


def _unpadded(batch: SequenceBatch) -> SequenceBatch:
    for name in ("inputs", "targets"):
        padded = getattr(batch, name)
        if not isinstance(padded, Padded):
            continue
        if batch.lengths is not None and not torch.equal(batch.lengths, padded.lengths):
            raise Refusal(
                f"{name} with lengths {padded.lengths.tolist()} beside {batch.lengths.tolist()}",
                "the same lengths for inputs and targets",
                "a target for each step comes with as many steps as its sequence.",
            )
        batch = replace(batch, **{name: padded.sequences, "lengths": padded.lengths})
    return batch


def _taken_apart(inputs: Any) -> tuple[tuple[Any, ...], Any]:
    if not isinstance(inputs, tuple):
        return (), inputs
    if len(inputs) != 3:
        raise Refusal(
            f"inputs = {in_words(inputs)}",
            "a sequence, or (source, source_lengths, inputs) for an encoder-decoder",
            "(*batchseq(sources), inputs); several inputs are a dict, the steps of one a list.",
            TypeError,
        )
    source, lengths, sequence = inputs
    if lengths is None and isinstance(source, dict):
        # Only `encode` reads it: each part may have steps of its own.
        source = {key: as_sequence(part, f"the source[{key!r}]") for key, part in source.items()}
        firsts = {key: part[:1] for key, part in source.items()}
        as_sequences(firsts, "the first steps of the source")
    else:
        source = as_sequences(source, "the source")
    if lengths is not None:
        check_lengths(lengths, *extent(source))
    return (source, lengths), sequence


def _shifted(batch: SequenceBatch, sequence: Any) -> SequenceBatch:
    shape = extent(sequence)  # T, B
    if shape[0] < 2:
        came = parts_of(sequence)[0]
        fix = "one step has no next step to predict; drop it."
        raise Refusal(f"a sequence {in_words(came)}", "at least two steps", fix)
    lengths = batch.lengths
    if lengths is not None:
        lengths = check_lengths(lengths, *shape, least=2) - 1  # a row's last step has no next one
    weights = batch.weights
    if weights is not None:
        weights = _checked_weights(weights, shape)[1:]  # a weight belongs to its target
    targets = between(sequence, 1, shape[0])  # (T - 1, B, *F)
    return replace(batch, targets=targets, lengths=lengths, weights=weights)


def _check_restart(restart: Tensor, rows: int) -> None:
    if not isinstance(restart, Tensor) or restart.dtype != torch.bool or restart.shape != (rows,):
        came = f"restart = {in_words(restart)}"
        if isinstance(restart, Tensor):
            came = f"restart {in_full(restart)}"
        fix = "True in the rows that start afresh, at step 0 only; cut the batch where others do."
        raise Refusal(came, f"a bool tensor ({rows},)", fix)


def _check_targets(targets: dict[Any, Any], time: int, rows: int) -> None:
    for name, target in targets.items():
        if not isinstance(target, Tensor):
            continue  # a list of steps, which the loss stacks and checks
        if target.shape[:2] != (time, rows) and target.shape[:1] != (rows,):
            raise Refusal(
                f"targets[{name!r}] {in_words(target)} for T = {time} and B = {rows}",
                f"({time}, {rows}, *Y), or one a sequence, ({rows}, *Y)",
                "all parts of a batch have the same T and B; the batch is dim 1 of a sequence.",
            )


def _checked_weights(weights: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    check_weights(weights, *shapes)
    if weights.dtype == torch.bool:
        return weights.to(torch.get_default_dtype())
    if not weights.is_floating_point():
        raise Refusal(f"weights of {weights.dtype}", "float weights", "weights.float().", TypeError)
    return weights


@asked("steps")
def steps(sequence: Steps) -> list[Tensor]:
    """The `T` steps `(B, *F)` of a sequence, as views: a "sequence of batches" in Flux.

    >>> import torch
    >>> from rnnkit import steps
    >>> [tuple(step.shape) for step in steps(torch.zeros(3, 2, 5))]
    [(2, 5), (2, 5), (2, 5)]

    Args:
        sequence: `(T, B, *F)`, or a list of steps already.

    Raises:
        TypeError: if it is neither.
        ValueError: if there is no step, or steps differ in shape.
    """
    return list(as_sequence(sequence, "sequence").unbind(0))


@asked("batchseq")
def batchseq(sequences: Sequence[Tensor], *, pad: float = 0.0) -> Padded:
    """`B` sequences `(T_i, *F)` side by side, `(max T_i, B, *F)`, and the length of each.

    >>> import torch
    >>> from rnnkit import batchseq
    >>> padded, lengths = batchseq([torch.tensor([1, 2, 3]), torch.tensor([4])])
    >>> padded.T.tolist(), lengths.tolist()
    ([[1, 2, 3], [4, 0, 0]], [3, 1])

    Args:
        sequences: tensors `(T_i, *F)` of one dtype and equal `F`, each of at least one step.
        pad: what stands after the end of a shorter one; it changes no number.

    Returns:
        A [Padded][rnnkit.Padded], sequences and lengths.

    Raises:
        TypeError: if they are not tensors of one dtype.
        ValueError: if there is none, one is empty, or `F` differs.
    """
    if not isinstance(sequences, Iterable):
        fix = "put brackets around it: [sequence]."
        raise Refusal(in_words(sequences), "a list of sequences", fix, TypeError)
    if isinstance(sequences, Tensor):
        sequences = sequences.unbind()  # a nested tensor has no other way to its parts
    items = list(sequences)
    _check_sequences(items)
    lengths = torch.tensor([len(item) for item in items], device="cpu")
    return Padded(pad_sequence(items, padding_value=pad), lengths)


def _check_sequences(items: list[Tensor]) -> None:
    if not items:
        raise Refusal("an empty list", "at least one sequence (T_i, *F)", "check the filter.")
    kinds = {str(x.dtype) if is_dense(x) else in_words(x) for x in items}
    if len(kinds) > 1 or not is_dense(items[0]):
        came = ", ".join(sorted(kinds))
        fix = "torch.as_tensor(sequence, dtype=...)."
        raise Refusal(came, "dense tensors of one dtype", fix, TypeError)
    if len({item.shape[1:] for item in items}) > 1 or any(item.ndim == 0 for item in items):
        shapes = sorted({in_words(item) for item in items})
        fix = "only the first dimension, time, may differ between sequences."
        raise Refusal(f"sequences {', '.join(shapes[:4])}", "sequences (T_i, *F) of equal F", fix)
    for i, item in enumerate(items):
        if not len(item):
            came = f"an empty sequence at index {i}"
            raise Refusal(came, "at least one step in each", "drop empty sequences.")


@asked("unbatchseq")
def unbatchseq(padded: Steps, lengths: Tensor, *, padding: str = "right") -> list[Tensor]:
    """The `B` sequences `(lengths[i], *F)` of a batch `(T, B, *F)`: undoes `batchseq`.

    >>> import torch
    >>> from rnnkit import unbatchseq
    >>> lengths = torch.tensor([2, 1])
    >>> padded = torch.tensor([[1, 4], [2, 0]])
    >>> [row.tolist() for row in unbatchseq(padded, lengths)]
    [[1, 2], [4]]
    >>> padded = torch.tensor([[1, 0], [2, 4]])
    >>> [row.tolist() for row in unbatchseq(padded, lengths, padding="left")]
    [[1, 2], [4]]

    Args:
        padded: `(T, B, *F)`, or a list of steps.
        lengths: int64 on the CPU, `(B,)`, each from 1 to `T`.
        padding: where it is: `"right"`, after the end of a row, as everywhere in rnnkit, or
            `"left"`, before its start, as Keras pads.

    Returns:
        Views of the batch, one a row.

    Raises:
        TypeError: if the lengths are not int64 on the CPU.
        ValueError: if they are not `(B,)`, or not from 1 to `T`.
    """
    one_of(
        "padding", padding, ("right", "left"), 'rnnkit pads on the "right", Keras on the "left".'
    )
    padded = as_sequence(padded, "padded")
    counts = check_lengths(lengths, *extent(padded)).tolist()
    if padding == "left":
        return [padded[len(padded) - count :, i] for i, count in enumerate(counts)]
    return [padded[:count, i] for i, count in enumerate(counts)]
