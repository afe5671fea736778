"""Unaligned sequence to sequence: an encoder whose reading is the first state of a decoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..core.errors import Refusal, asked, check_kind, in_words
from ..core.layout import Sequences, all_lengths, device_of, extent, pack_like, unpack, valid_steps
from ..core.model import Declared, call_model, check_call, check_model, run_model
from ..core.state import State, onto


class Attention(nn.Module):
    r"""Global attention of a decoder's outputs over the encoder's, then one layer to the targets.

    $$
    a = \operatorname{softmax}(q W m^\top), \qquad y = V \tanh(U [a m;\, q])
    $$

    `attention(queries (T, B, H), memory (S, B, M), mask (S, B))` is `(T, B, O)`, with the "general"
    score of Luong, Pham and Manning 2015, <https://arxiv.org/abs/1508.04025>.

    Args:
        features: `H`, features of the decoder's outputs `q`.
        outputs: `O`, features of the result.
        memory: `M`, features of the encoder's outputs `m`; `H` where it is `None`.

    >>> import torch
    >>> from rnnkit import Attention
    >>> mask = torch.ones(7, 2, dtype=torch.bool)
    >>> Attention(8, 30)(torch.zeros(5, 2, 8), torch.zeros(7, 2, 8), mask).shape
    torch.Size([5, 2, 30])
    """

    def __init__(self, features: int, outputs: int, memory: int | None = None) -> None:
        super().__init__()
        memory = features if memory is None else memory
        self.score = nn.Linear(features, memory, bias=False)
        self.combine = nn.Linear(features + memory, features)
        self.head = nn.Linear(features, outputs)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights(queries, memory, mask)  # (T, B, S)
        context = torch.einsum("tbs,sbm->tbm", weights, memory)  # (T, B, M)
        both = torch.cat([context, queries], -1)  # (T, B, M + H)
        return self.head(torch.tanh(self.combine(both)))  # (T, B, O)

    def weights(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Where each step looks: `(T, B, S)`, summing to 1 over the source."""
        scores = torch.einsum("tbm,sbm->tbs", self.score(queries), memory)
        return scores.masked_fill(~mask.T, float("-inf")).softmax(-1)


class EncoderDecoder(nn.Module):
    """An encoder and a decoder as one recurrent model, which begins with what the encoder read.

    `model(inputs, state)` gives outputs `(T, B, *O)` and the state, which begins as
    `model.encode(source, lengths)`; `model((source, lengths, inputs))` does both, so
    `((source, lengths, inputs), targets, target_lengths)` is a batch to train on. In translation
    the inputs begin with a start token, and the targets, one step ahead, end with a stop token. The
    state is `(decoder state, memory (S, B, M), mask (S, B))`, the last two only with attention.

    Args:
        encoder: a recurrent model over the source `(S, B, *F)`.
        decoder: a recurrent model over the inputs `(T, B, *F)`.
        attention: called `attention(outputs (T, B, H), memory, mask)`, such as
            [Attention][rnnkit.Attention].
        bridge: makes the decoder's first state of the encoder's last one; `None` takes it as it is.

    Raises:
        TypeError: if it is called without a state and without a source.

    >>> import torch
    >>> from torch import nn
    >>> from rnnkit import Attention, EncoderDecoder
    >>> model = EncoderDecoder(nn.GRU(4, 8), nn.GRU(3, 8), Attention(8, 5))
    >>> state = model.encode(torch.zeros(9, 2, 4), torch.tensor([9, 4]))
    >>> outputs, state = model(torch.zeros(6, 2, 3), state)
    >>> outputs.shape
    torch.Size([6, 2, 5])
    """

    @asked("EncoderDecoder")
    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        attention: nn.Module | None = None,
        bridge: Callable[[State], State] | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            check_kind(name, part, nn.Module, "a torch.nn.Module", "nn.GRU(4, 8), for one.")
            check_model(part)
        self.encoder = encoder
        self.decoder = decoder
        self.attention = attention
        self.bridge = bridge

    # What this model declares is about the inputs, which the decoder reads, not about the source.

    @property
    def bidirectional(self) -> bool:
        """Whether outputs depend on later inputs."""
        return Declared(self.decoder).bidirectional

    @property
    def batch_statistics(self) -> bool:
        """Whether the rows of a batch change each other's outputs."""
        return Declared(self.decoder).batch_statistics or Declared(self.attention).batch_statistics

    @property
    def takes_packed(self) -> bool:
        """Whether it gives a `PackedSequence` for one."""
        return Declared(self.decoder).takes_packed and not Declared(self.attention).batch_statistics

    @asked("EncoderDecoder.encode")
    def encode(self, source: Sequences, lengths: Tensor | None = None) -> State:
        """The first state: each row's source `(S, B, *F)` read to its own end.

        Args:
            source: `(S, B, *F)`, or a dict of such sequences.
            lengths: of each row, int64 on the CPU, `(B,)`.

        Raises:
            ValueError: if the lengths do not fit the source, or the encoder reads in both
                directions and cannot take the rows packed.
        """
        source = check_call(self.encoder, source, None, lengths, "source")
        memory, state = run_model(self.encoder, source, None, lengths)
        if self.bridge is not None:
            state = self.bridge(state)
        if self.attention is None:
            return (state,)
        time, batch = extent(source)
        mask = valid_steps(all_lengths(lengths, time, batch), time)  # (S, B)
        return state, memory, onto(mask, device_of(source))

    @asked("EncoderDecoder")
    def forward(self, inputs: Any, state: State = None) -> tuple[Any, State]:
        if state is None:
            if not isinstance(inputs, tuple) or len(inputs) != 3:
                raise Refusal(
                    f"inputs {in_words(inputs)} and no state",
                    "a source",
                    "state = model.encode(source, lengths), or inputs = (source, lengths or None, "
                    "inputs).",
                    TypeError,
                )
            source, lengths, inputs = inputs
            state = self.encode(source, lengths)
        outputs, inner = call_model(self.decoder, inputs, state[0])
        if self.attention is not None:
            outputs = self._attend(outputs, state[1], state[2])
        return outputs, (inner, *state[1:])

    def _attend(self, outputs: Any, memory: Tensor, mask: Tensor) -> Any:
        attention: Any = self.attention
        if not isinstance(outputs, PackedSequence):
            return attention(outputs, memory, mask)
        queries, lengths = unpack(outputs)  # (T, B, H)
        return pack_like(attention(queries, memory, mask), outputs, lengths)
