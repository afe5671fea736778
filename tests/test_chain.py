"""A module of the user's own is taken for a chain of its children only where its code can do nothing else."""

import itertools

import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import assert_samples_like, generate_by_hand, seeded, wander
from torch import nn

from rnnkit import RecurrentSequential, SoftmaxSampler, sample_model
from rnnkit.generation._chain import chain_of

pytestmark = pytest.mark.usefixtures("in_double_precision")

CALLS = itertools.count()
lstm = print  # a function of the name of a child


class Parts(nn.Module):
    """What all the models here are made of."""

    def __init__(self, recurrent=nn.LSTM):
        super().__init__()
        self.embedding = nn.Embedding(V, 4)
        self.lstm = recurrent(4, H)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(H, V)
        self.times = 0


class Usual(Parts):
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(self.dropout(hidden)), state


class ByIndex(Parts):
    def forward(self, tokens, state):
        both = self.lstm(self.embedding(tokens), state)
        return self.head(both[0]), both[-1]


class Inside(nn.Module):
    """A stack inside of a module."""

    def __init__(self, recurrent=nn.LSTM):
        super().__init__()
        self.stack = RecurrentSequential(nn.Embedding(V, 4), recurrent(4, H), nn.Linear(H, V))

    def forward(self, tokens, state=None):
        return self.stack(tokens, state)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("kind", [Usual, ByIndex, Inside])
def test_a_chain_of_children_generates_what_its_calls_would(kind, recurrent, rows):
    model = kind(recurrent).eval()
    assert chain_of(model) is not None
    primer = torch.randint(V, (3, rows))
    assert_samples_like(model, model, primer)
    draws = [SoftmaxSampler(generator=seeded(1)) for _ in range(2)]
    assert_samples_like(model, model, primer, *draws)


def test_the_links_of_a_chain_are_told_in_the_order_of_the_calls():
    model = Usual()
    links = [(model.embedding, False), (model.lstm, True), (model.dropout, False)]
    assert chain_of(model) == [*links, (model.head, False)]


def test_a_dropout_that_is_training_is_a_link_of_the_generation():
    """Dropout is off while a model generates, unless the module is one that says otherwise."""

    class Always(nn.Dropout):
        def forward(self, input):
            return nn.functional.dropout(input, self.p, True)

    model = Usual().eval()
    model.dropout = Always(0.5)
    primer = torch.randint(V, (1, 3))
    torch.manual_seed(1)
    sample = sample_model(model, 20, primer, wander)
    torch.manual_seed(1)
    _, outputs, _, _ = generate_by_hand(model, 20, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)


# Each does something that a chain of its children would not, now or at some later step.


class Branches(Parts):
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return (self.head(hidden) if tokens[0, 0] > 2 else self.head(-hidden)), state


class Counts(Parts):
    def forward(self, tokens, state=None):
        self.times = self.times + 1
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden) * self.times, state


class Draws(Parts):
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        next(CALLS)
        return self.head(hidden), state


class CallsAnother(Parts):
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        lstm(end="")
        return self.head(hidden), state


class Matches(Parts):
    def forward(self, tokens, state=None):
        match state:
            case (h, c):
                state = (h, -c)
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


class Tries(Parts):
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        try:
            hidden = -hidden
        except:  # noqa: E722
            hidden = hidden
        return self.head(hidden), state


class Residual(Parts):
    def forward(self, tokens, state=None):
        x = self.embedding(tokens)
        hidden, state = self.lstm(x, state)
        return self.head(hidden + hidden), state


class Turned(Parts):
    def forward(self, tokens, state=None):
        hidden, (h, c) = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), (c, h)


class Forgets(Parts):
    def forward(self, tokens, state=None):
        hidden, _ = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


class Twice(Parts):
    def forward(self, tokens, state=None):
        x = self.embedding(tokens)
        hidden, state = self.lstm(x, state)
        hidden, state = self.lstm(x, state)
        return self.head(hidden), state


class Writes(Parts):
    def forward(self, tokens, state=None):
        tokens[:] = 1
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


class Decorated(Parts):
    @torch.no_grad()
    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


class Closure(Parts):
    def forward(self, tokens, state=None):
        hidden, state = (lambda x: self.lstm(x, state))(self.embedding(tokens))
        return self.head(hidden), state


class OtherHead(Parts):
    """Its head is another thing than its child of that name."""

    @property
    def head(self):
        return lambda hidden: -self._modules["head"](hidden)

    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


class CalledOtherwise(Usual):
    def __call__(self, *args):
        outputs, state = super().__call__(*args)
        return -outputs, state


class Hooked(Usual):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, args, given: (-given[0], given[1]))


class HookedInside(Usual):
    def __init__(self):
        super().__init__()
        self.dropout.register_forward_hook(lambda module, args, given: -given)


NO_CHAINS = [Branches, Counts, Draws, CallsAnother, Matches, Tries, Residual, Turned, Forgets]
NO_CHAINS += [Twice, Writes, Decorated, Closure, OtherHead, CalledOtherwise]


@pytest.mark.parametrize("kind", NO_CHAINS)
def test_what_does_more_than_call_its_children_in_turn_is_no_chain(kind):
    assert chain_of(kind()) is None


@pytest.mark.parametrize("kind", [*NO_CHAINS, Hooked, HookedInside])
def test_what_is_no_chain_generates_what_its_calls_would(kind):
    model, again = kind().eval(), kind().eval()
    again.load_state_dict(model.state_dict())
    primer = torch.randint(V, (1, 3))
    sample = sample_model(model, 20, primer, wander)
    _, outputs, _, _ = generate_by_hand(again, 20, primer, wander)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)


def test_a_side_effect_happens_at_every_step():
    before = next(CALLS)
    sample_model(Draws(), 20, torch.randint(V, (1, 3)), wander)
    assert next(CALLS) - before - 1 == 20


class GivesThree(nn.LSTM):
    def forward(self, input, hx=None):
        outputs, state = super().forward(input, hx)
        return outputs, None, state


def test_a_layer_that_gives_more_than_a_pair_is_in_no_chain():
    model = ByIndex(GivesThree)
    assert chain_of(model) is None
    primer = torch.randint(V, (1, 3))
    state = torch.zeros(1, 3, H), torch.zeros(1, 3, H)
    sample = sample_model(model, 20, primer, wander, state)
    _, outputs, _, _ = generate_by_hand(model, 20, primer, wander, state)
    torch.testing.assert_close(sample.outputs, outputs, rtol=1e-10, atol=1e-10)
