"""Generation in PyTorch: as it is written, as well as it can be written by hand, and by rnnkit."""

from collections.abc import Callable
from typing import Any

import torch
from sampling import HIDDEN, VOCABULARY, Task, torch_module, torch_parts
from torch import Tensor, nn

from rnnkit import (
    RecurrentSequential,
    SoftmaxSampler,
    beam_search,
    forecast,
    sample_best,
    sample_model,
)

PATHS = 100
WIDTH = 4


def drawn_of(logits: Tensor, greedy: bool) -> Tensor:
    """The next tokens `(B,)` of logits `(B, V)`."""
    if greedy:
        return logits.argmax(1)
    return torch.multinomial(logits.softmax(1), 1).squeeze(1)


def finished(tokens: list[Tensor], logits: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `(n, B)`, logits `(n, B, V)` and log-probabilities `(n, B)` of lists of steps."""
    all_tokens = torch.stack(tokens)
    all_logits = torch.stack(logits)
    log_p = all_logits.log_softmax(2)
    return all_tokens, all_logits, log_p.gather(2, all_tokens.unsqueeze(2)).squeeze(2)


# ---- As it is written


def stepped(model: Callable[..., Any], batch: int, guard: Any) -> Callable[..., Any]:
    """A loop over calls of `model(tokens (1, B), state)`."""

    def generate(count: int, greedy: bool) -> Any:
        token = torch.zeros(batch, dtype=torch.long)
        state, tokens, kept = None, [], []
        with guard():
            for _ in range(count):
                logits, state = model(token.unsqueeze(0), state)
                token = drawn_of(logits[0], greedy)
                tokens.append(token)
                kept.append(logits[0])
            return finished(tokens, kept)

    return generate


def layer(task: Task) -> Callable[..., Any]:
    """The layer called for each step, without gradient."""
    return stepped(torch_module(task), task.batch, torch.no_grad)


def layer_without_onednn(task: Task) -> Callable[..., Any]:
    """The same in inference mode, with oneDNN off, which is what costs an LSTM its time."""
    generate = stepped(torch_module(task), task.batch, torch.inference_mode)

    def without(count: int, greedy: bool) -> Any:
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return generate(count, greedy)

    return without


def cells(task: Task) -> Callable[..., Any]:
    """PyTorch's cells, in inference mode."""
    embedding, _, head = torch_parts(task)
    members = []
    for k in range(task.layers):
        cell = getattr(nn, f"{task.kind}Cell")(HIDDEN, HIDDEN)
        for parameter, value in zip(cell.parameters(), task.layer_weights(k), strict=True):
            parameter.data = torch.from_numpy(value)
        members.append(cell)

    def model(tokens: Tensor, states: Any) -> Any:
        x, after = embedding(tokens[0]), []
        for k, cell in enumerate(members):
            state = cell(x, states[k] if states else None)
            x = state[0] if task.kind == "LSTM" else state
            after.append(state)
        return head(x).unsqueeze(0), after

    return stepped(model, task.batch, torch.inference_mode)


# ---- As well as it can be written by hand


class HandLSTM:
    """One step in place: gates in the order i, f, o, g, so that one call makes three of them."""

    def __init__(self, weights: list[Tensor], batch: int) -> None:
        order = torch.tensor([0, 1, 3, 2])
        split = [weight.unflatten(0, (4, HIDDEN))[order].flatten(0, 1) for weight in weights]
        self.of_input, own, bias, own_bias = split
        self.bias = bias + own_bias
        self.own = own.t().contiguous()  # (H, 4 H)
        self.gates = torch.empty(batch, 4 * HIDDEN)
        self.three = self.gates[:, : 3 * HIDDEN]
        self.i, self.f, self.o, self.g = self.gates.chunk(4, 1)
        self.h = torch.zeros(batch, HIDDEN)
        self.c = torch.zeros(batch, HIDDEN)

    def step(self) -> Tensor:
        self.gates.addmm_(self.h, self.own)
        self.three.sigmoid_()
        self.g.tanh_()
        self.c.mul_(self.f).addcmul_(self.i, self.g)
        torch.tanh(self.c, out=self.h)
        return self.h.mul_(self.o)

    def reset(self) -> None:
        self.h.zero_()
        self.c.zero_()


class HandGRU:
    """One step in place; the biases of r and z are in what the input gives."""

    def __init__(self, weights: list[Tensor], batch: int) -> None:
        self.of_input, own, bias, own_bias = weights
        self.bias = bias.clone()
        self.bias[: 2 * HIDDEN] += own_bias[: 2 * HIDDEN]
        self.own_bias = own_bias.clone()
        self.own_bias[: 2 * HIDDEN] = 0
        self.own = own.t().contiguous()  # (H, 3 H)
        self.gates = torch.empty(batch, 3 * HIDDEN)
        self.mine = torch.empty(batch, 3 * HIDDEN)
        self.two, self.n = self.gates.split([2 * HIDDEN, HIDDEN], 1)
        self.r, self.z = self.two.chunk(2, 1)
        self.own_two, self.own_n = self.mine.split([2 * HIDDEN, HIDDEN], 1)
        self.h = torch.zeros(batch, HIDDEN)

    def step(self) -> Tensor:
        torch.addmm(self.own_bias, self.h, self.own, out=self.mine)
        self.two.add_(self.own_two).sigmoid_()
        self.n.addcmul_(self.r, self.own_n).tanh_()
        return torch.lerp(self.n, self.h, self.z, out=self.h)

    def reset(self) -> None:
        self.h.zero_()


def best(task: Task, keep: bool = True) -> Callable[..., Any]:
    """Gates of each token from a table, all in place, the noise of all draws made at once."""
    weights = {name: torch.from_numpy(value) for name, value in task.weights().items()}
    make = {"LSTM": HandLSTM, "GRU": HandGRU}[task.kind]
    layers = [
        make([torch.from_numpy(value) for value in task.layer_weights(k)], task.batch)
        for k in range(task.layers)
    ]
    first, *others = layers
    table = torch.addmm(first.bias, weights["embedding"], first.of_input.t())
    between = [layer.of_input.t().contiguous() for layer in others]
    head = weights["head"].t().contiguous()
    bias = weights["head_bias"]
    shape = task.batch, VOCABULARY

    def generate(count: int, greedy: bool) -> Any:
        for each in layers:
            each.reset()
        tokens = torch.zeros(count + 1, task.batch, dtype=torch.long)
        logits = torch.empty(count if keep else 1, *shape)
        noise = torch.empty(count, *shape)
        if not greedy:
            noise.exponential_().log_().neg_()
        token, *following = tokens.unbind()
        kept = logits.unbind() if keep else [logits[0]] * count
        scores = torch.empty(shape)
        for out, answer, gumbel in zip(following, kept, noise.unbind(), strict=True):
            torch.index_select(table, 0, token, out=first.gates)
            x = first.step()
            for each, of_input in zip(others, between, strict=True):
                torch.addmm(each.bias, x, of_input, out=each.gates)
                x = each.step()
            torch.addmm(bias, x, head, out=answer)
            chosen = answer if greedy else torch.add(answer, gumbel, out=scores)
            token = torch.argmax(chosen, 1, out=out)
        if not keep:
            return tokens[1:]
        log_p = logits.log_softmax(2)
        return tokens[1:], logits, log_p.gather(2, tokens[1:].unsqueeze(2)).squeeze(2)

    return torch.inference_mode()(generate)


def best_tokens(task: Task) -> Callable[..., Any]:
    """The same, of which nothing is kept but the tokens."""
    return best(task, keep=False)


def floor(task: Task) -> Callable[..., Any]:
    """The matrix products of a step alone: at batch 1 the time to read the weights."""
    own = [torch.from_numpy(task.layer_weights(k)[1]).t().contiguous() for k in range(task.layers)]
    products = own + [
        torch.from_numpy(task.layer_weights(k)[0]).t().contiguous() for k in range(1, task.layers)
    ]
    products.append(torch.from_numpy(task.weights()["head"]).t().contiguous())
    x = torch.randn(task.batch, HIDDEN)
    outs = [torch.empty(task.batch, weight.shape[1]) for weight in products]

    def generate(count: int, greedy: bool) -> None:
        pairs = list(zip(products, outs, strict=True))
        for _ in range(count):
            for weight, out in pairs:
                torch.mm(x, weight, out=out)

    return torch.inference_mode()(generate)


# ---- By rnnkit


def sampled(model: Any, task: Task) -> Callable[..., Any]:
    primer = torch.zeros(1, task.batch, dtype=torch.long)

    def generate(count: int, greedy: bool) -> Any:
        sample = sample_model(model, count, primer, chooser(greedy))
        return torch.cat([sample.tokens, sample.next]), sample.outputs, sample.log_probs

    return generate


def kit(task: Task) -> Callable[..., Any]:
    """`sample_model` of a RecurrentSequential."""
    return sampled(RecurrentSequential(*torch_parts(task)), task)


def kit_wrapped(task: Task) -> Callable[..., Any]:
    """`sample_model` of a module of the user's own, a chain of its children."""
    return sampled(torch_module(task), task)


def kit_called(task: Task) -> Callable[..., Any]:
    """`sample_model` of a module of the user's own that is more than a chain."""
    return sampled(torch_module(task, branch=True), task)


# ---- Beam search


def kit_beam(task: Task) -> Callable[..., Any]:
    """`beam_search` of a RecurrentSequential."""
    model = RecurrentSequential(*torch_parts(task))
    primer = torch.zeros(1, task.batch, dtype=torch.long)
    return lambda count, greedy: beam_search(model, count + 1, primer, WIDTH).tokens


def hand_beam(task: Task) -> Callable[..., Any]:
    """A beam for each row, over calls of the module, the way back by the parents of each step."""
    model = torch_module(task)

    def generate(count: int, greedy: bool) -> Tensor:
        token = torch.zeros(1, task.batch, dtype=torch.long)
        rows = torch.arange(task.batch).unsqueeze(1)
        logits, state = model(token)
        scores = torch.zeros(task.batch, 1)
        parents, tokens = [], []
        for _ in range(count):
            width = scores.shape[1]
            follow = logits[0].log_softmax(1).unflatten(0, (task.batch, width))
            scores, kept = (scores.unsqueeze(2) + follow).flatten(1).topk(WIDTH, 1)
            parent, token = kept // VOCABULARY, kept % VOCABULARY
            index = (rows * width + parent).flatten()
            if task.kind == "LSTM":
                state = tuple(part[:, index] for part in state)
            else:
                state = state[:, index]
            logits, state = model(token.view(1, -1), state)
            parents.append(parent)
            tokens.append(token)
        place = torch.zeros(task.batch, 1, dtype=torch.long)
        found = []
        for parent, token in zip(parents[::-1], tokens[::-1], strict=True):
            found.append(token.gather(1, place))
            place = parent.gather(1, place)
        return torch.stack(found[::-1]).squeeze(2)

    return torch.inference_mode()(generate)


# ---- Paths of a forecast


def kit_paths(task: Task) -> Callable[..., Any]:
    """`forecast`: the primer is read once."""
    model = RecurrentSequential(*torch_parts(task))
    primer = torch.zeros(100, task.batch, dtype=torch.long)
    return lambda count, greedy: forecast(model, count, primer, chooser(greedy), paths=PATHS)[
        :, :, 0
    ]


def repeated_paths(task: Task) -> Callable[..., Any]:
    """`sample_model` of a batch in which each row stands for each path."""
    model = RecurrentSequential(*torch_parts(task))
    primer = torch.zeros(100, task.batch * PATHS, dtype=torch.long)

    def generate(count: int, greedy: bool) -> Tensor:
        sample = sample_model(model, 100 + count, primer, chooser(greedy))
        return sample.tokens[100:, ::PATHS]

    return generate


def single_paths(task: Task) -> Callable[..., Any]:
    """`sample_model` called for each path."""
    model = RecurrentSequential(*torch_parts(task))
    primer = torch.zeros(100, task.batch, dtype=torch.long)

    def generate(count: int, greedy: bool) -> Tensor:
        for _ in range(PATHS):
            sample = sample_model(model, 100 + count, primer, chooser(greedy))
        return sample.tokens[100:]

    return generate


def chooser(greedy: bool) -> Callable[..., Any]:
    return sample_best if greedy else SoftmaxSampler()
