"""Several processes that train one model: what they add up, and what the first does for all.

A loss is a sum and a weight, in each process as in each window. So the loss of the joint batch is
the sum of sums by the sum of weights, and its gradient the sum of the gradients of each process's
sum by the joint weight.

The reducer of DistributedDataParallel is not used: it averages, and waits in each backward pass, of
which a process without a scored step has none."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.errors import Refusal
from ..core.model import wrappers
from ..core.state import onto
from ..losses.total import Total, weight_like

T = TypeVar("T")


def ranks_of(model: Any) -> "Ranks | None":
    """The processes of a model's DistributedDataParallel, if it is in one."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    around = wrappers(model)
    for i, part in enumerate(around):
        if isinstance(part, DistributedDataParallel):
            _check_plain(part, around[:i])
            return Ranks(cast(dist.ProcessGroup, part.process_group), part.module)
    _check_whole(model)
    return None


def _check_plain(model: DistributedDataParallel, around: list[Any]) -> None:
    """Refuse what would be lost, as the model is called without its DistributedDataParallel."""
    if any(part.__class__.__name__ == "OptimizedModule" for part in around):
        fix = "DistributedDataParallel(torch.compile(model))."
        raise Refusal("torch.compile around DistributedDataParallel", "it inside", fix, TypeError)
    if model.mixed_precision is not None:
        came = "DistributedDataParallel with mixed_precision"
        fix = "Learner(..., autocast=torch.bfloat16)."
        raise Refusal(came, "one without", fix, TypeError)


def _check_whole(model: Any) -> None:
    """Refuse shared out weights, whose model has to be called alike in every rank."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, nn.Module):
        return
    shares = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    if any(isinstance(module, shares) for module in model.modules()):
        raise Refusal(
            "a model whose weights are shared out over ranks (fully_shard, FSDP)",
            "one that each rank has as a whole",
            "DistributedDataParallel(model): each rank may call it as often as its rows need.",
            TypeError,
        )


class Ranks:
    """The processes of a group that train one model, each on its own share of the data.

    Every method is called by all of them.
    """

    def __init__(self, group: dist.ProcessGroup, module: nn.Module) -> None:
        self.group = group
        self.module = module  # the model, without what makes it one of several
        self.rank = dist.get_rank(group)  # which of them this is, from 0
        self.count = dist.get_world_size(group)
        self.first = dist.get_global_rank(group, 0)  # the first one's number among all processes

    @property
    def device(self) -> torch.device:
        """Where the model is, and what is sent."""
        return next(self.module.parameters()).device

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, written over the values."""
        dist.all_reduce(values, group=self.group)
        return values

    def most(self, number: int) -> int:
        """The greatest of a number of each rank."""
        numbers = torch.tensor(number, device=self.device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self.group)
        return int(numbers)

    def joint(self, total: Total) -> Total:
        """The total of the joint batch."""
        sums = total.sum.detach().double()
        weights = weight_like(total.weight, sums).expand_as(sums)
        sums, weights = self._sum(torch.stack([sums, weights]))
        return Total(sums, weights, total.scales)

    def sum_of(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Numbers, summed over ranks."""
        return list(self._sum(onto(torch.stack(list(weights)), self.device)))

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums the gradients over ranks, once for an update, in float32 at least.

        A rank that has none for a parameter adds nothing; where no rank has one there is none, as
        in one process. Buffers, those of a batch norm, become those of rank 0.
        """
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for dtype, alike in by_dtype.items():
            self._add_alike(alike, torch.promote_types(dtype, torch.float32))
        for buffer in self.module.buffers():
            dist.broadcast(buffer, self.first, self.group)

    def _add_alike(self, parameters: list[Tensor], dtype: torch.dtype) -> None:
        """One sum of all gradients side by side, and behind them how many ranks have each."""
        pieces: list[Tensor] = []
        has: list[float] = []
        for parameter in parameters:
            gradient = parameter.grad
            has.append(float(gradient is not None))
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            elif gradient.is_sparse:
                fix = "nn.Embedding(..., sparse=False)."
                raise Refusal("a sparse gradient", "dense ones, to be added over ranks", fix)
            pieces.append(gradient.reshape(-1).to(dtype))
        counts = torch.tensor(has, dtype=dtype, device=pieces[0].device)
        sums = self._sum(torch.cat([*pieces, counts]))

        sizes = [parameter.numel() for parameter in parameters]
        *gradients, counts = sums.split([*sizes, len(parameters)])
        for i, parameter in enumerate(parameters):
            if has[i] or bool(counts[i]):  # a device is waited for only where this rank has none
                parameter.grad = gradients[i].view_as(parameter).to(parameter.dtype)

    @torch.no_grad()
    def give_firsts(self, modules: Iterable[nn.Module]) -> None:
        """Gives every rank the first one's weights."""
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor, self.first, self.group)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order; tensors in them on the CPU."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return cast(list[T], values)

    def check_same(self, what: str, value: object, wanted: str, fix: str) -> None:
        """Refuse, in every rank, what has to be the same and is not."""
        values = [repr(one) for one in self.gather(value)]
        if len(set(values)) > 1:
            came = ", ".join(f"{one} in rank {i}" for i, one in enumerate(values))
            raise Refusal(f"{what}: {came}", wanted, fix)


def count_of(ranks: Ranks | None) -> int:
    """How many processes train a model."""
    return 1 if ranks is None else ranks.count


def is_first(ranks: Ranks | None) -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return ranks is None or ranks.rank == 0


def by_first(ranks: Ranks | None, do: Callable[[], T]) -> T:
    """What `do` gives in rank 0, in every rank, an error too."""
    if ranks is None:
        return do()
    said: list[Any] = [None, None]
    error: BaseException | None = None
    if ranks.rank == 0:
        try:
            said[0] = do()
        except BaseException as caught:
            error = caught
            said[1] = f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(said, ranks.first, ranks.group)
    if error is not None:
        raise error
    if said[1] is not None:
        raise Refusal(f"an error in rank 0, {said[1]}", "rank 0 to go on", "mend it there.")
    return said[0]
