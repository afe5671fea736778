"""Unaligned sequence to sequence: an encoder whose reading is the first state of a decoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import Refusal, asked, in_words
from ..core.layout import Steps
from ..core.model import call_model, check_call, check_model, run_model
from ..core.state import State


class Attention(nn.Module):
    r"""Global attention of a decoder's outputs over the encoder's, then one linear layer to the targets.

    $$
    a = \operatorname{softmax}(q W m^\top), \qquad y = V \tanh(U [a m;\, q])
    $$

    `attention(queries (T, B, H), memory (S, B, M), mask (S, B))` is `(T, B, O)`, with the "general" score of Luong,
    Pham and Manning 2015, <https://arxiv.org/abs/1508.04025>.

    Args:
        features: `H`, features of the decoder's outputs `q`.
        outputs: `O`, features of the result.
        memory: `M`, features of the encoder's outputs `m`; `H` where it is `None`.

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
        context = torch.einsum("tbs,sbm->tbm", self.weights(queries, memory, mask), memory)
        return self.head(torch.tanh(self.combine(torch.cat([context, queries], -1))))

    def weights(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Where each step looks: `(T, B, S)`, summing to 1 over the valid steps of the source."""
        scores = torch.einsum("tbm,sbm->tbs", self.score(queries), memory)
        return scores.masked_fill(~mask.T, float("-inf")).softmax(-1)


class EncoderDecoder(nn.Module):
    """An encoder and a decoder as one recurrent model, whose first state is what the encoder made of a source.

    `model(inputs, state)` gives outputs `(T, B, *O)` and the state, which begins as `model.encode(source, lengths)`;
    `model((source, lengths, inputs))` does both, so `((source, lengths, inputs), targets, target_lengths)` is a batch
    to train on. The state is `(decoder state, memory (S, B, M), mask (S, B))`, the last two only with attention: it
    samples, beam-searches and validates like any other model.

    Args:
        encoder: a recurrent model over the source `(S, B, *F)`.
        decoder: a recurrent model over the target side `(T, B, *F)`.
        attention: called `attention(outputs (T, B, H), memory, mask)`, such as [Attention][rnnkit.Attention].
        bridge: makes the decoder's first state of the encoder's last one; as it is where it is `None`.

    Raises:
        TypeError: if it is called without a state and without a source.

    >>> rnn = nn.GRU(4, 8)
    >>> model = EncoderDecoder(rnn, nn.GRU(3, 8), Attention(8, 5))
    >>> outputs, state = model(torch.zeros(6, 2, 3), model.encode(torch.zeros(9, 2, 4), torch.tensor([9, 4])))
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
        check_model(encoder)
        check_model(decoder)
        self.encoder, self.decoder, self.attention, self.bridge = (
            encoder,
            decoder,
            attention,
            bridge,
        )

    bidirectional = False  # an encoder that is reads the source, not what the decoder is fed

    @asked("EncoderDecoder.encode")
    def encode(self, source: Steps, lengths: Tensor | None = None) -> State:
        """The first state: each row's source `(S, B, *F)` read to its own end, by `lengths`, int64 CPU `(B,)`.

        Raises `ValueError` if the lengths do not fit the source.
        """
        source = check_call(self.encoder, source, None, lengths, "source")
        memory, state = run_model(self.encoder, source, None, lengths)
        state = state if self.bridge is None else self.bridge(state)
        if self.attention is None:
            return (state,)
        mask = torch.ones(source.shape[:2], dtype=torch.bool)
        if lengths is not None:
            mask = torch.arange(len(source)).unsqueeze(1) < lengths
        return state, memory, mask.to(source.device)

    @asked("EncoderDecoder")
    def forward(self, inputs: Any, state: State = None) -> tuple[Tensor, State]:
        if state is None:
            if not isinstance(inputs, tuple) or len(inputs) != 3:
                fix = "state = model.encode(source, lengths), or inputs = (source, lengths or None, inputs)."
                raise Refusal(f"inputs {in_words(inputs)} and no state", "a source", fix, TypeError)
            source, lengths, inputs = inputs
            state = self.encode(source, lengths)
        outputs, inner = call_model(self.decoder, inputs, state[0])
        if self.attention is not None:
            outputs = self.attention(outputs, state[1], state[2])
        return outputs, (inner, *state[1:])
