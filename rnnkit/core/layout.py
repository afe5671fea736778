"""The layout rule: what a sequence is, how long its rows are, which of its steps are valid.

A sequence is a tensor `(T, B, *F)`, or a dict of such tensors with the same `T` and `B`. Lengths
and masks live on the CPU: they decide what is called, and asking a device would wait for it.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .errors import Refusal, in_words
from .state import State, leaves_of, map_leaves, onto

Steps: TypeAlias = Tensor | Sequence[Tensor]
Sequences: TypeAlias = Any  # Steps, or a dict of them


def as_sequence(sequence: Steps, name: str = "inputs") -> Tensor:
    """A sequence `(T, B, *F)`, from itself or from a list of `T` steps `(B, *F)`."""
    if isinstance(sequence, Sequence) and not isinstance(sequence, str | PackedSequence):
        sequence = _stacked(sequence, name)
    if not isinstance(sequence, Tensor):
        raise Refusal(
            f"{name} = {in_words(sequence)}",
            "a tensor (T, B, *F) or a list of steps",
            "torch.as_tensor of an array; a first member of a stack may join the sequences of a "
            "dict, torch.cat(list(parts.values()), -1).",
            TypeError,
        )
    if not is_dense(sequence):
        raise Refusal(
            f"{name} = a nested or sparse tensor",
            "a dense tensor (T, B, *F)",
            "batchseq pads a list of sequences; a sparse one has to_dense().",
            TypeError,
        )
    if sequence.ndim < 2:
        fix = (
            "time is dim 0 and the batch is dim 1; a single sequence gets a batch of one with "
            "unsqueeze(1)."
        )
        if name.startswith("targets["):
            fix = f"beside a target of each step it stands at the last, ignore_index before; {fix}"
        if name.startswith("targets"):
            fix = f"seq2one_loss scores one target a sequence; {fix}"
        raise Refusal(f"{name} {in_words(sequence)}", f"{name} (T, B, *F)", fix)
    if 0 in sequence.shape[:2]:
        came = f"empty {name} {in_words(sequence)}"
        raise Refusal(came, "at least one step and one row", "drop empty sequences.")
    return sequence


def is_dense(sequence: Any) -> TypeGuard[Tensor]:
    """Whether it has one shape for all rows, and a number in each place."""
    if not isinstance(sequence, Tensor):
        return False
    return sequence.layout is torch.strided and not sequence.is_nested


def _stacked(steps: Sequence[Tensor], name: str) -> Tensor:
    others = [step for step in steps if not isinstance(step, Tensor)]
    if not others and len({step.shape for step in steps}) == 1:
        return torch.stack(tuple(steps))
    came = "an empty list"
    kind = ValueError
    if others:
        came = f"a list that holds {in_words(others[0])}"
        kind = TypeError
    elif steps:
        came = f"a list of {', '.join(map(in_words, steps[:4]))}"
    raise Refusal(
        f"{name} = {came}",
        "a list of steps of equal shape (B, *F)",
        "a list is T steps of one batch; sequences of unequal length go through batchseq; a model "
        "gives a pair, outputs, state = model(inputs).",
        kind,
    )


def as_sequences(sequence: Sequences, name: str = "inputs") -> Any:
    """A sequence, or a dict of sequences, in which all have the same `T` and `B`."""
    if is_dense(sequence) and sequence.ndim > 1 and sequence.numel():
        return sequence  # the usual case
    if not isinstance(sequence, dict):
        return as_sequence(sequence, name)
    parts: dict[Any, Tensor] = {}
    for key, part in sequence.items():
        parts[key] = as_sequence(part, f"{name}[{key!r}]")
    if len({part.shape[:2] for part in parts.values()}) != 1:
        shapes = ", ".join(f"{key!r} {in_words(part)}" for key, part in parts.items())
        raise Refusal(
            f"{name} = a dict of {shapes or 'nothing'}",
            "sequences of the same T and B",
            "cut, pad or expand them to one length; one of a length of its own is a source, "
            "(source, lengths, inputs).",
        )
    return parts


def parts_of(sequence: Any) -> list[Any]:
    """The sequences of a dict, or the one that it is."""
    if isinstance(sequence, dict):
        return list(sequence.values())
    return [sequence]


def extent(sequence: Any) -> tuple[int, int]:
    """`T` and `B` of a sequence, or of a dict of sequences."""
    if not isinstance(sequence, Tensor):
        sequence = parts_of(sequence)[0]
    return sequence.size(0), sequence.size(1)


def device_of(sequence: Any) -> torch.device:
    """Where a sequence, or a dict of sequences, lives."""
    return parts_of(sequence)[0].device


def lengths_between(lengths: Tensor | None, start: int, stop: int) -> Tensor | None:
    """How many steps each row has from `start` to before `stop`."""
    if lengths is None:
        return None
    return (lengths - start).clamp(0, stop - start)


def between(sequence: Any, start: int, stop: int) -> Any:
    """The steps from `start` to before `stop`, as views."""
    if isinstance(sequence, Tensor):
        return sequence[start:stop]
    return map_leaves(lambda part: part[start:stop], sequence)


def join(parts: Sequence[Any]) -> Any:
    """Stretches of a sequence, one after another in time."""
    if len(parts) == 1:
        return parts[0]
    return map_leaves(lambda *stretches: torch.cat(stretches), *parts)


def lengthened(sequence: Any, time: int) -> Any:
    """A sequence with steps of zeros behind it up to `time`."""

    def longer(part: Tensor) -> Tensor:
        return torch.cat([part, part.new_zeros(time - len(part), *part.shape[1:])])

    return map_leaves(longer, sequence)


def all_lengths(lengths: Tensor | None, time: int, batch: int) -> Tensor:
    """The lengths, or `T` for each row where there are none."""
    return torch.full((batch,), time, device="cpu") if lengths is None else lengths


def valid_steps(lengths: Tensor, time: int) -> Tensor:
    """Which steps are not padding: bool, on the CPU, `(T, B)`."""
    return torch.arange(time, device="cpu").unsqueeze(1) < lengths


def valid_like(sequence: Tensor, lengths: Tensor) -> Tensor:
    """The same where a sequence `(T, B, *F)` is, and shaped to broadcast over it."""
    valid = onto(valid_steps(lengths, len(sequence)), sequence.device)
    return valid.view(*valid.shape, *[1] * (sequence.ndim - 2))


def check_lengths(lengths: Tensor, time: int, batch: int, least: int = 1) -> Tensor:
    """Lengths as they must be: int64, on the CPU, `(B,)`, from `least` to `T`."""
    wanted = f"an int64 CPU tensor ({batch},)"
    fix = (
        "lengths is what batchseq and pad_collate return: "
        "torch.tensor([len(s) for s in sequences])."
    )
    if not isinstance(lengths, Tensor):
        raise Refusal(f"lengths = {in_words(lengths)}", wanted, fix, TypeError)
    if lengths.shape != (batch,):
        raise Refusal(f"lengths {in_words(lengths)} for a batch of {batch}", wanted, fix)
    if lengths.dtype != torch.int64 or lengths.device.type != "cpu":
        came = f"lengths of {lengths.dtype} on {lengths.device}"
        raise Refusal(came, wanted, "lengths.to('cpu', torch.int64).", TypeError)
    low = int(lengths.min())
    high = int(lengths.max())
    if low < least or high > time:
        raise Refusal(
            f"lengths from {low} to {high}",
            f"lengths from {least} to T = {time}",
            "drop shorter sequences; lengths count the steps of each row before padding.",
        )
    return lengths


def check_weights(weights: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """Weights as they must be: of one of these shapes, finite and not negative; on the CPU."""
    wanted = "weights " + " or ".join(map(str, shapes))
    if not isinstance(weights, Tensor):
        fix = "a float tensor, or a bool one, True where a target is scored."
        raise Refusal(f"weights = {in_words(weights)}", wanted, fix, TypeError)
    if tuple(weights.shape) not in shapes:
        fix = (
            "one weight for each step and row, or where targets are one a sequence, for each row; "
            "a loss_fn that gives a sum and a weight masks features."
        )
        raise Refusal(f"weights {in_words(weights)}", wanted, fix)
    weights = weights.to("cpu")
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        came = f"weights from {float(weights.min()):g} to {float(weights.max()):g}"
        fix = "a target that is not scored has the weight 0."
        raise Refusal(came, "finite weights, none below 0", fix)
    return weights


def check_state(
    state: State,
    batch: int,
    fix: str = "start with state=None, or keep the rows that go on with select_rows(state, rows).",
) -> None:
    """Every leaf of a state that comes in must have the batch as dim 1."""
    for leaf in leaves_of(state):
        if leaf.ndim < 2 or leaf.shape[1] != batch:
            came = f"a state leaf {in_words(leaf)} for a batch of {batch}"
            raise Refusal(came, f"(layers, {batch}, *F)", fix)


def fill_padding(sequence: Any, lengths: Tensor) -> Any:
    """The sequence with a step of the data wherever padding stands: each row's own last one.

    What a user pads with may have no finite gradient in a model (a logarithm of zero); a step of
    the data does. A row of length 0 gets the first step of the longest row.
    """
    time = extent(sequence)[0]
    steps = torch.arange(time, device="cpu").unsqueeze(1)  # (T, 1)
    rows = torch.arange(len(lengths), device="cpu")  # (B,)
    last = (lengths - 1).clamp(min=0)

    step = torch.minimum(steps, last)  # (T, B)
    row = rows.where(lengths > 0, lengths.argmax())
    return gathered(sequence, step, row)


def gathered(sequence: Any, steps: Tensor, rows: Tensor) -> Any:
    """The sequence's entries at `steps`, `(N,)` or `(N, B)`, of `rows`, `(N,)` or `(B,)`."""
    return map_leaves(
        lambda part: part[onto(steps, part.device), onto(rows, part.device)], sequence
    )


def at_own_step(sequence: Any, index: Tensor) -> Any:
    """Of each row the step at its own index `(B,)`: `(B, *F)`."""
    if bool((index == index[0]).all()):
        return map_leaves(lambda part: part[int(index[0])], sequence)
    return gathered(sequence, index, torch.arange(len(index), device="cpu"))


def pack(sequence: Any, lengths: Tensor) -> Any:
    """The valid steps of a sequence as a `PackedSequence`, or a dict of such."""
    # PyTorch would sort the rows by itself, and then wait for the device.
    lengths, order = lengths.sort(descending=True)
    order = onto(order, device_of(sequence))

    def packed(part: Tensor) -> Any:
        data, batch_sizes, _, _ = pack_padded_sequence(part.index_select(1, order), lengths)
        return PackedSequence(data, batch_sizes, order)

    return map_leaves(packed, sequence)


def unpack(packed: Any) -> tuple[Any, Tensor]:
    """The sequence `(T, B, *F)` of what `pack` makes, padded with zeros, and its lengths."""
    first = parts_of(packed)[0]
    rows = torch.arange(int(first.batch_sizes[0]), device="cpu")
    lengths = (first.batch_sizes.unsqueeze(1) > rows).sum(0)  # from the longest to the shortest
    if first.unsorted_indices is not None:
        lengths = lengths[first.unsorted_indices.cpu()]  # which waits for the device
    return padded(packed), lengths


def padded(packed: Any, time: int | None = None) -> Any:
    """The sequence alone, of `time` steps where that is given."""
    if isinstance(packed, dict):
        return {name: padded(part, time) for name, part in packed.items()}
    in_order = PackedSequence(packed.data, packed.batch_sizes)
    sequence, _ = pad_packed_sequence(in_order, total_length=time)
    if packed.unsorted_indices is None:
        return sequence
    return sequence.index_select(1, packed.unsorted_indices)


def repack(packed: PackedSequence, data: Tensor) -> PackedSequence:
    """Other data, `(N, *F)`, in the order of a `PackedSequence`."""
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def pack_like(sequence: Any, packed: PackedSequence, lengths: Tensor) -> Any:
    """What `pack` makes of a sequence, in the order of another `PackedSequence`."""
    if isinstance(sequence, dict):
        return {name: pack_like(part, packed, lengths) for name, part in sequence.items()}
    if packed.sorted_indices is not None:  # the rows stand by length in packed data
        sequence = sequence.index_select(1, packed.sorted_indices)
        lengths = lengths[packed.sorted_indices.cpu()]
    return repack(packed, pack_padded_sequence(sequence, lengths).data)
