"""Quicker steps: delete this file, and every result stays.

`nn.LSTM` and its like are made for whole sequences: a call of one step pays for the preparation of
many. What is here takes one step with the same weights and fewer calls. It is used where it is the
same to a rounding: in float32 and float64, for PyTorch's own modules that nobody has put a hook on.
Everything else is called as it is.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.model import FUSED, Declared, Model, call_model, runs, untouched, unwrap
from ..core.state import State, map_leaves
from ..models.stack import RecurrentSequential
from ._chain import chain_of
from .samplers import NextInput, SoftmaxSampler, sample_best

# Up to here cells are the quicker step on every processor tried, see tests/benchmarks.
_FEW_ROWS = 16
# Up to here a table of gates costs less than a few steps: bytes and characters, not words.
_SMALL_VOCABULARY = 256

_CELLS: dict[str, Callable[..., Tensor]] = {
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


def quicker_step(model: Model, rows: int) -> Model:
    """What takes a step `(1, rows, *F)` as `model` does, quicker where it can; else `model` itself.

    For few rows a fused module is stepped as cells on its own weights, inside a module of the
    user's own too. Without gradient, an embedding of few classes and the input weights of what is
    behind it become one table.
    """
    if not isinstance(model, nn.Module) or not _is_precise(model):
        return model
    if Declared(model).batch_statistics:  # which rows are in a call would count
        return model
    stack = _Stack.of(model)
    if stack is not None:
        return stack.quicker(rows)
    if rows > _FEW_ROWS:
        return model
    if untouched(model) and _has_cells(model):
        return _cells_of(model)
    cells = _cells_inside(model)
    if not cells:
        return model
    return _CellsInside(model, cells)


def _is_precise(module: nn.Module) -> bool:
    """Whether its dtype has enough of them that the order of a sum changes no draw."""
    for parameter in module.parameters():
        if type(parameter) is not nn.Parameter:  # it may do other things in other functions
            return False
        if parameter.dtype not in (torch.float32, torch.float64) or _autocast_is_on(parameter):
            return False
    return not torch.is_autocast_enabled("cpu")


def _autocast_is_on(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor is."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _has_cells(module: nn.Module) -> bool:
    """Whether it is an `nn.LSTM`, `nn.GRU` or `nn.RNN` that its cells can stand for."""
    if not isinstance(module, nn.RNNBase) or not runs(module, *FUSED):
        return False
    if module.bidirectional or module.proj_size or module.batch_first:
        return False
    if module.training and module.dropout:  # is drawn between the layers
        return False
    for weights in module.all_weights:
        if not all(isinstance(weight, nn.Parameter) for weight in weights):  # they are computed
            return False
    return True


def _cells_inside(model: nn.Module) -> "dict[nn.Module, _Cells]":
    """The parts of a model of the user's own that its cells can stand for, and the cells."""
    parts = list(model.modules())
    if any(unwrap(part) is not part for part in parts):  # compiled code would be made anew
        return {}
    return {part: _cells_of(part) for part in parts if _has_cells(part)}


class _CellsInside:
    """A model that is called as it is, while its recurrent layers take single steps as cells."""

    def __init__(self, model: nn.Module, cells: "dict[nn.Module, _Cells]") -> None:
        self.model = model
        self.steps = [
            (vars(part), partial(_step_or_more, part, own)) for part, own in cells.items()
        ]

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        for attributes, step in self.steps:
            attributes["forward"] = step  # what a call of the part ends in, its hooks around it
        try:
            return call_model(self.model, inputs, state)
        finally:
            for attributes, _ in self.steps:
                attributes.pop("forward", None)


def _step_or_more(part: Any, cells: "_Cells", input: Any, hx: State = None) -> Any:
    """A single step `(1, B, F)` by cells, anything else by the layer's own forward, errors too."""
    if cells.fit(input, hx) and cells.are_unchanged(part, input):
        return cells(input, hx)
    return type(part).forward(part, input, hx)


class _Stack(NamedTuple):
    """Members that are called one after another, as a `RecurrentSequential` does."""

    members: list[tuple[Any, bool]]  # each, or what is quicker, and whether it is recurrent
    alone: bool  # whether the state is that of its only recurrent member, not a tuple of one

    @classmethod
    def of(cls, model: Any) -> "_Stack | None":
        """The members of a `RecurrentSequential`, or of a module that is a chain of its children.

        A dropout that is not training is none of them.
        """
        if not isinstance(model, nn.Module) or not untouched(model):
            return None
        alone = type(model) is not RecurrentSequential
        if alone:
            members = chain_of(model)
        else:
            members = list(zip(model, model.recurrent, strict=True))
        if members is None:
            return None
        return cls([(part, recurrent) for part, recurrent in members if not _is_idle(part)], alone)

    def quicker(self, rows: int) -> "_Stack":
        """The same, of quicker members."""
        members = list(self.members)
        quick: list[tuple[Any, bool]] = []
        if len(members) > 1 and not torch.is_grad_enabled():
            (first, _), (second, _), *others = members
            if _fit_a_table(first, second):
                quick = _on_table(first, second)
                members = others
        quick += [(quicker_step(member, rows), recurrent) for member, recurrent in members]
        return _Stack(quick, self.alone)

    def by_member(self, state: State) -> State:
        """The state as a tuple, with one entry for each recurrent member."""
        if self.alone and state is not None:
            return (state,)
        return state

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        state = self.by_member(state)
        after: list[State] = []
        for member, recurrent in self.members:
            if recurrent:
                before = None if state is None else state[len(after)]
                inputs, new = call_model(member, inputs, before)
                after.append(new)
            else:
                inputs = member(inputs)
        if self.alone:
            return inputs, after[0]
        return inputs, tuple(after)


def _is_idle(member: nn.Module) -> bool:
    return type(member) is nn.Dropout and not member.training and untouched(member)


class _Cells:
    """One step of a recurrent layer, or several, on the module's own weights."""

    parts = 1  # of a state

    def __init__(self, module: Any) -> None:
        self.mode: str = module.mode
        self.weights: list[list[Tensor]] = module.all_weights
        self.features: int = module.input_size
        self.hidden: int = module.hidden_size
        self.parameters = _identities(module)

    def fit(self, inputs: Any, state: Any) -> bool:
        """Whether they are a single step `(1, B, F)` and a state for it."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            return False
        steps, rows, features = inputs.shape
        if steps != 1 or features != self.features:
            return False
        if state is None:
            return True
        parts: Any = (state,)
        if isinstance(state, tuple | list):
            parts = state
        wanted = (len(self.weights), rows, self.hidden)
        alike = all(isinstance(part, Tensor) and part.shape == wanted for part in parts)
        return alike and len(parts) == self.parts

    def are_unchanged(self, module: Any, inputs: Tensor) -> bool:
        """Whether the forward around a module has changed nothing: weights, dropout, autocast."""
        if (module.training and module.dropout) or _autocast_is_on(inputs):
            return False
        if torch.is_grad_enabled() and _is_checkpointed():
            return False
        return _identities(module) == self.parameters

    def __call__(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        x = inputs[0]  # (B, F)
        if state is None:
            zeros = x.new_zeros(len(self.weights), len(x), self.hidden)
            state = zeros if self.parts == 1 else (zeros, zeros)
        return self.step(x, state)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after: list[Tensor] = []
        for layer, before in enumerate(state):
            x = self.layer(layer, x, before)  # (B, H)
            after.append(x)
        return x.unsqueeze(0), torch.stack(after)

    def layer(self, layer: int, x: Tensor, *state: Tensor) -> Any:
        """The new state of a layer."""
        return _CELLS[self.mode](x, *state, *self.weights[layer])


def _is_checkpointed() -> bool:
    """Whether hooks keep what a gradient needs: a checkpoint calls the layer itself once more."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked"):
            return False
    except RuntimeError:  # there are such hooks
        return True


def _identities(module: nn.Module) -> list[int]:
    return list(map(id, vars(module)["_parameters"].values()))


def _cells_of(module: nn.Module) -> _Cells:
    if isinstance(module, nn.LSTM):
        return _LSTMCells(module)
    return _Cells(module)


class _LSTMCells(_Cells):
    parts = 2

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        short: list[Tensor] = []
        long: list[Tensor] = []
        for layer, (h, c) in enumerate(zip(*state, strict=True)):
            x, c = self.layer(layer, x, h, c)  # (B, H)
            short.append(x)
            long.append(c)
        return x.unsqueeze(0), (torch.stack(short), torch.stack(long))

    def layer(self, layer: int, x: Tensor, *state: Tensor) -> Any:
        return torch.lstm_cell(x, state, *self.weights[layer])


# ---- An embedding of few classes: what a layer makes of each is made once


def _fit_a_table(embedding: nn.Module, rnn: nn.Module) -> bool:
    """Whether the two are a plain embedding of few classes, on a CPU, and an LSTM or GRU."""
    if type(embedding) is not nn.Embedding or not isinstance(rnn, nn.LSTM | nn.GRU):
        return False
    if not (untouched(embedding) and untouched(rnn) and _has_cells(rnn)):
        return False
    small = embedding.num_embeddings <= _SMALL_VOCABULARY
    return small and embedding.max_norm is None and embedding.weight.device.type == "cpu"


def _on_table(embedding: Any, rnn: Any) -> list[tuple[Model, bool]]:
    """What the first layer's input weights make of each class, and the layers that take it."""
    kind = _GRUOnGates
    if isinstance(rnn, nn.LSTM):
        kind = _LSTMOnGates
    layers = kind(rnn)
    gates = layers.first.of_input(embedding.weight)  # (V, gates * H)
    return [(partial(F.embedding, weight=gates), False), (layers, True)]


class _Weights(NamedTuple):
    """The weights of a layer, transposed, and its biases, most of which can be added early.

    An LSTM's gates are in the order i, f, o, g: three of them are logistic.
    """

    input: Tensor  # (F, gates * H)
    own: Tensor  # (H, gates * H)
    bias: Tensor  # (gates * H,)
    late: Tensor  # (gates * H,), what a GRU adds before its reset gate

    @classmethod
    def of(cls, rnn: Any, layer: int) -> "_Weights":
        weights: list[Tensor] = rnn.all_weights[layer]
        early = 2 * rnn.hidden_size
        if isinstance(rnn, nn.LSTM):
            weights = [_ordered(weight) for weight in weights]
            early = 4 * rnn.hidden_size
        of_input, own, *biases = weights
        bias, late = biases or of_input.new_zeros(2, len(of_input))
        early_bias = F.pad(late[:early], (0, len(late) - early))
        of_input = of_input.t()
        # Copies, for which the product of a single row is quicker than for views; those of the
        # first layer's input are read once, for the table.
        if layer:
            of_input = of_input.contiguous()
        return cls(of_input, own.t().contiguous(), bias + early_bias, late - early_bias)

    def of_input(self, x: Tensor) -> Tensor:
        """What `(N, F)` makes of the gates."""
        return torch.addmm(self.bias, x, self.input)


def _ordered(weight: Tensor) -> Tensor:
    """The gates i, f, g, o of a weight or bias as i, f, o, g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, f, o, g])


class _OnGates(_Cells):
    """Cells whose input is what its weights make of it in the first layer: `(1, B, gates * H)`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.first = _Weights.of(module, 0)

    def layer(self, layer: int, x: Tensor, *state: Tensor) -> Any:
        if layer:
            return super().layer(layer, x, *state)
        return self.on_gates(x, *state)

    def on_gates(self, gates: Tensor, *state: Tensor) -> Any:
        """The new state of the first layer."""
        raise NotImplementedError


class _LSTMOnGates(_OnGates, _LSTMCells):
    def on_gates(self, gates: Tensor, *state: Tensor) -> Any:
        h, c = state
        i, f, o, g = torch.addmm(gates, h, self.first.own).chunk(4, 1)  # (B, H) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class _GRUOnGates(_OnGates):
    def on_gates(self, gates: Tensor, *state: Tensor) -> Any:
        (h,) = state
        r, z, n = gates.chunk(3, 1)  # (B, H) each
        own_r, own_z, own_n = torch.addmm(self.first.late, h, self.first.own).chunk(3, 1)
        n = torch.addcmul(n, (r + own_r).sigmoid_(), own_n).tanh_()
        return torch.lerp(n, h, (z + own_z).sigmoid_())


# ---- All steps at once, where nothing looks at one before the next


def quicker_draws(
    model: Model, sampler: NextInput, steps: int, answer: Any, state: State
) -> tuple[Tensor, Tensor, State] | None:
    """`steps` tokens, the first drawn from `answer (B, V)`, by a loop in place; `None` elsewhere.

    They come as `(n, B)`, with what the model answered, `(n, B, V)`, and the state after them.
    For an embedding that fits a table, an LSTM or GRU, and a linear head, without gradient. The
    draws are those of the sampler from the same generator, but where two tie to a rounding.
    """
    if not _is_known(sampler) or steps < 1:
        return None
    stack = _stack_in_place(model)
    if stack is None:
        return None
    embedding, rnn, head = [member for member, _ in stack.members]
    state = map_leaves(torch.clone, state)
    first, *others = _in_place(rnn, stack.by_member(state)[0])
    table = first.weights.of_input(embedding.weight)
    to_logits = head.weight.t()
    bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias

    # The loop: every call writes to where its result is wanted.
    tokens = torch.empty(steps, len(answer), dtype=torch.int64, device="cpu")  # (n, B)
    logits = answer.new_empty(steps + 1, *answer.shape)  # (1 + n, B, V)
    logits[0] = answer
    choose = _chooser(sampler, logits[1:])
    with torch.inference_mode():
        for token, before, after in zip(tokens, logits[:-1], logits[1:], strict=True):
            choose(before, after, token)
            torch.index_select(table, 0, token, out=first.gates)
            x = first.step()
            for layer in others:
                torch.addmm(layer.weights.bias, x, layer.weights.input, out=layer.gates)
                x = layer.step()
            torch.addmm(bias, x, to_logits, out=after)

    _refuse_no_number(sampler, logits[:-1])
    return tokens, logits[1:], state


def _stack_in_place(model: Any) -> _Stack | None:
    """What a model is, if that is an embedding that fits a table, an LSTM or GRU, a linear head."""
    stack = _Stack.of(model)
    if stack is None or len(stack.members) != 3:
        return None
    if torch.is_grad_enabled() or not _is_precise(model):
        return None
    embedding, rnn, head = [member for member, _ in stack.members]
    if not _fit_a_table(embedding, rnn) or type(head) is not nn.Linear or not untouched(head):
        return None
    if head.out_features > embedding.num_embeddings:
        return None
    return stack


def _is_known(sampler: Any) -> bool:
    """Whether it is one that draws a class in a known way."""
    if type(sampler) is SoftmaxSampler:
        return not sampler.one_hot and "probabilities" not in vars(sampler)
    return sampler is sample_best


def _chooser(sampler: Any, noise: Tensor) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """What writes the sampler's draw from logits `(B, V)` and noise `(B, V)` to a tensor `(B,)`.

    The noise `(n, B, V)` of all draws is made now.
    """
    if sampler is sample_best:
        return lambda logits, _, token: torch.argmax(logits, 1, out=token)
    _make_noise(noise, sampler.generator)
    scores = torch.empty_like(noise[0])
    if sampler.top_k is sampler.top_p is sampler.min_p is None:
        # The largest p / noise is the largest log p - log noise: no softmax is wanted.
        noise.log_().mul_(-sampler.temperature)
        return lambda logits, noise, token: torch.argmax(
            torch.add(logits, noise, out=scores), 1, out=token
        )

    def choose(logits: Tensor, noise: Tensor, token: Tensor) -> None:
        # What torch.multinomial does to draw once, after it has looked at each number.
        torch.argmax(torch.div(sampler.probabilities(logits), noise, out=scores), 1, out=token)

    return choose


def _make_noise(noise: Tensor, generator: torch.Generator | None) -> None:
    """Write to `(n, B, V)` what `n` draws would ask the generator for."""
    if _one_call_is_many():
        noise.exponential_(generator=generator)
        return
    for draw in noise:
        draw.exponential_(generator=generator)


@cache
def _one_call_is_many() -> bool:
    """Whether one call draws the numbers that several would: not where MKL draws them."""
    one = torch.Generator().manual_seed(0)
    two = torch.Generator().manual_seed(0)
    noise = torch.empty(2, 64, dtype=torch.float32, device="cpu")
    singly = [torch.empty_like(draw).exponential_(generator=one) for draw in noise]
    return torch.equal(noise.exponential_(generator=two), torch.stack(singly))


def _refuse_no_number(sampler: NextInput, logits: Tensor) -> None:
    """Where a draw was made from NaN, the sampler is asked for it, and says so."""
    peaks = logits.amax(2) / getattr(sampler, "temperature", 1)  # (n, B)
    if not bool(peaks.isfinite().all()):
        time = int(peaks.isfinite().all(1).int().argmin())
        sampler(logits[time])


def _in_place(rnn: Any, state: State) -> "Sequence[_LSTMInPlace | _GRUInPlace]":
    """The layers, which write to a state `(layers, B, H)`."""
    weights = [_Weights.of(rnn, k) for k in range(rnn.num_layers)]
    if isinstance(rnn, nn.LSTM):
        return [_LSTMInPlace(*layer) for layer in zip(weights, *state, strict=True)]
    return [_GRUInPlace(*layer) for layer in zip(weights, state, strict=True)]


class _InPlace:
    """A layer whose steps write over the state, where `gates` has what the input makes of them."""

    def __init__(self, weights: _Weights, h: Tensor) -> None:
        self.weights = weights
        self.h = h
        self.hidden = h.shape[1]
        self.gates = h.new_empty(len(h), weights.own.shape[1])


class _LSTMInPlace(_InPlace):
    def __init__(self, weights: _Weights, h: Tensor, c: Tensor) -> None:
        super().__init__(weights, h)
        self.c = c
        self.i, self.f, self.o, self.g = self.gates.chunk(4, 1)
        self.logistic = self.gates[:, : 3 * self.hidden]

    def step(self) -> Tensor:
        self.gates.addmm_(self.h, self.weights.own)
        self.logistic.sigmoid_()
        self.g.tanh_()
        self.c.mul_(self.f).addcmul_(self.i, self.g)
        torch.tanh(self.c, out=self.h)
        return self.h.mul_(self.o)


class _GRUInPlace(_InPlace):
    def __init__(self, weights: _Weights, h: Tensor) -> None:
        super().__init__(weights, h)
        self.own = torch.empty_like(self.gates)
        self.r, self.z, self.n = self.gates.chunk(3, 1)
        self.r_and_z = self.gates[:, : 2 * self.hidden]
        self.own_r_and_z = self.own[:, : 2 * self.hidden]
        self.own_n = self.own[:, 2 * self.hidden :]

    def step(self) -> Tensor:
        torch.addmm(self.weights.late, self.h, self.weights.own, out=self.own)
        self.r_and_z.add_(self.own_r_and_z).sigmoid_()
        self.n.addcmul_(self.r, self.own_n).tanh_()
        return torch.lerp(self.n, self.h, self.z, out=self.h)
