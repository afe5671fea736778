"""A public training script, written out in plain PyTorch, and what docs/coming.md makes of it: the same numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnkit import (
    BPTTTrainingPhase,
    BPTTValidationPhase,
    ClipGradients,
    History,
    KeepBest,
    Learner,
    Scheduler,
    SoftmaxSampler,
    StreamLoader,
    sample_model,
    seq2seq_loss,
)

WORDS, WINDOW, RATE, EPOCHS = 23, 7, 20.0, 16


class LanguageModel(nn.Module):
    """Embedding, two layers, head, with dropout between all; the weights of both ends may be the same."""

    def __init__(self, kind: str, tied: bool) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(WORDS, 12)
        self.rnn = getattr(nn, kind)(12, 12, 2, dropout=0.2)
        self.decoder = nn.Linear(12, WORDS)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.drop(self.encoder(tokens)), state)
        return self.decoder(self.drop(hidden)).log_softmax(-1), state


def in_columns(tokens: Tensor, rows: int) -> Tensor:
    """A stream cut into rows of one length, side by side, `(T, rows)`; the rest is left out."""
    length = len(tokens) // rows
    return tokens[: length * rows].view(rows, length).t().contiguous()


def held(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def windows(columns: Tensor) -> list[tuple[Tensor, Tensor]]:
    starts = range(0, len(columns) - 1, WINDOW)
    pairs = [(columns[k : k + WINDOW], columns[k + 1 : k + 1 + WINDOW]) for k in starts]
    return [(inputs[: len(targets)], targets) for inputs, targets in pairs]


class ByHand:
    """The loop of word_language_model: a carried state, clipping, plain descent, a rate that is quartered."""

    def __init__(self, model: LanguageModel, train: Tensor, valid: Tensor) -> None:
        self.model = model
        self.loss = nn.NLLLoss()
        self.losses: list[float] = []
        self.gradients: list[list[Tensor]] = []
        self.validations: list[float] = []
        self.rates: list[float] = []
        rate = RATE
        best = copy.deepcopy(model.state_dict())
        for _ in range(EPOCHS):
            self.rates.append(rate)
            self.train(train, rate)
            score = self.evaluate(valid)
            if not self.validations or score < min(self.validations):
                best = copy.deepcopy(model.state_dict())
            else:
                rate /= 4
            self.validations.append(score)
        model.load_state_dict(best)

    def train(self, columns: Tensor, rate: float) -> None:
        self.model.train()
        parameters = list(self.model.parameters())
        state: Any = None
        for inputs, targets in windows(columns):
            self.model.zero_grad()
            outputs, state = self.model(inputs, state)
            state = held(state)
            loss = self.loss(outputs.flatten(0, 1), targets.flatten())
            loss.backward()
            self.losses.append(loss.item())
            self.gradients.append([weight.grad.clone() for weight in parameters])
            nn.utils.clip_grad_norm_(parameters, 0.25)
            with torch.no_grad():
                for weight in parameters:
                    weight.sub_(weight.grad, alpha=rate)

    @torch.no_grad()
    def evaluate(self, columns: Tensor) -> float:
        self.model.eval()
        total, state = 0.0, None
        for inputs, targets in windows(columns):
            outputs, state = self.model(inputs, state)
            total += len(inputs) * self.loss(outputs.flatten(0, 1), targets.flatten()).item()
        return total / (len(columns) - 1)


class Noted:
    """The losses and gradients of all updates, before they are clipped, and the rate of each epoch."""

    order = -100

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[list[Tensor]] = []
        self.rates: list[float] = []

    def on_epoch_begin(self, learner: Learner) -> None:
        if learner.phase_name == "training":
            self.rates.append(learner.optimizer.param_groups[0]["lr"])

    def on_backward_end(self, learner: Learner) -> None:
        self.losses.append(float(learner.current.loss))
        self.gradients.append([weight.grad.clone() for weight in learner.model.parameters()])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_word_language_model_gives_its_losses_gradients_rates_and_best_weights(
    kind: str, tied: bool
) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(WORDS, (304,))
    train = in_columns(tokens[:203], 4)
    valid = in_columns(tokens[203:], 3)
    model = LanguageModel(kind, tied).double()
    ours = copy.deepcopy(model)

    torch.manual_seed(1)
    hand = ByHand(model, train, valid)

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(ours.parameters(), RATE)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.25, patience=0, threshold=0
    )
    noted, history = Noted(), History()
    callbacks = [noted, ClipGradients(0.25), history, KeepBest(), Scheduler(plateau)]
    Learner(ours, seq2seq_loss(nn.NLLLoss()), optimizer, callbacks).fit(
        EPOCHS,
        StreamLoader(list(train.T), 4, WINDOW),
        StreamLoader(list(valid.T), 3, WINDOW),
        BPTTTrainingPhase(stateful=True),
        BPTTValidationPhase(stateful=True),
    )

    assert len(noted.losses) == len(hand.losses) == EPOCHS * 7
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(noted.losses, hand.losses, **exact)
    torch.testing.assert_close(noted.gradients, hand.gradients, **exact)
    validations = [row["loss"] for row in history.rows if row["phase"] == "validation"]
    torch.testing.assert_close(validations, hand.validations, **exact)
    assert noted.rates == hand.rates
    assert len(set(hand.rates)) > 1, "the rate was never quartered"
    torch.testing.assert_close(ours.state_dict(), model.state_dict(), **exact)


def test_its_generator_draws_the_same_words() -> None:
    torch.manual_seed(0)
    model = LanguageModel("LSTM", tied=True).double().eval()

    generator = torch.Generator().manual_seed(9)
    word, state, drawn = torch.tensor([[3]]), None, []
    with torch.no_grad():
        for _ in range(50):
            outputs, state = model(word, state)
            weights = (outputs.squeeze() / 0.7).exp()
            word = torch.multinomial(weights, 1, generator=generator).view(1, 1)
            drawn.append(word.item())

    sampler = SoftmaxSampler(0.7, generator=torch.Generator().manual_seed(9))
    sample = sample_model(model, 1 + 50, torch.tensor([[3]]), sampler)
    assert sample.tokens[1:, 0].tolist() == drawn
