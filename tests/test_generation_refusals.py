"""What generation refuses, and what it says."""

import math

import numpy
import pytest
import torch
from helpers import HIDDEN as H
from helpers import VOCABULARY as V
from helpers import continuous_model, language_model, refused, wander
from torch import nn

from rnnkit import (
    Feedback,
    RecurrentSequential,
    beam_search,
    forecast,
    identity,
    rollout,
    sample_best,
    sample_model,
    with_covariates,
)

pytestmark = pytest.mark.usefixtures("in_double_precision")


def test_an_empty_primer_is_refused():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*empty primer"):
        sample_model(language_model(), 10, torch.zeros(0, 3, dtype=torch.int64), wander)


def test_an_empty_list_as_primer_is_refused():
    with pytest.raises(ValueError, match=r"(?s)primer.*empty"):
        sample_model(language_model(), 10, [], wander)


def test_a_length_shorter_than_the_primer_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)sample_model.*length.*3.*\(4, 3\)|sample_model.*\(4, 3\).*length.*3"
    ):
        sample_model(language_model(), 3, torch.zeros(4, 3, dtype=torch.int64), wander)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_a_state_of_another_batch_is_refused(recurrent):
    model = language_model(recurrent)
    _, state = model(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(1, 2, 5\).*batch of 3"):
        sample_model(model, 10, torch.zeros(4, 3, dtype=torch.int64), wander, state)


def test_rollout_refuses_a_state_of_another_batch():
    model = continuous_model()
    _, state = model(torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match=r"(?s)rollout.*\(1, 2, 5\).*batch of 3"):
        rollout(model, torch.zeros(4, 3, 2), state=state)


OTHER = {nn.GRU: nn.LSTM, nn.LSTM: nn.GRU}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("wrap", [lambda layer: layer, RecurrentSequential], ids=["layer", "stack"])
def test_a_state_of_another_kind_of_model_is_refused_in_words_that_name_both_forms(kind, wrap):
    x, model = torch.zeros(4, 3, 2), wrap(kind(2, 2))
    _, theirs = wrap(OTHER[kind](2, 2))(x)
    leaf = "(1, 3, 2)"
    forms = {nn.GRU: leaf, nn.LSTM: f"({leaf}, {leaf})"}
    text = (
        f"a state {forms[OTHER[kind]]} for {kind.__name__}; wanted one of the form that it gives, "
    )
    for run in (rollout, lambda *call, state: sample_model(call[0], 9, call[1], state=state)):
        assert f"{text}{forms[kind]}. " in refused(
            lambda run=run: run(model, x, state=theirs), "got "
        )


def test_an_error_that_is_not_of_the_state_stays_as_it_is():
    """Whatever the form of the state: a model may take more than one."""

    def broken(inputs, state=None):
        raise KeyError("of the user")

    def only_from_a_state(inputs, state=None):
        if state is not None:
            raise RuntimeError("of the user")
        return inputs, inputs[:1]

    for model in (broken, only_from_a_state):
        with pytest.raises((KeyError, RuntimeError), match="of the user"):
            rollout(model, torch.zeros(4, 3, 2), state=torch.zeros(1, 3, 2))


def test_a_sampler_whose_output_does_not_fit_is_refused():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3, 3\).*sampler.*\(3, 2\)"):
        sample_model(model, 10, torch.zeros(4, 3, 2))


def test_a_sampler_of_indices_for_a_model_of_vectors_is_refused():
    model = RecurrentSequential(nn.LSTM(V, H), nn.Linear(H, V))
    with pytest.raises(ValueError, match=r"(?s)sample_model.*\(3,\).*sampler.*\(3, 7\).*one_hot"):
        sample_model(model, 10, torch.zeros(4, 3, V), sample_best)


def test_a_sampler_of_numbers_for_a_model_of_tokens_is_refused():
    def regression(tokens, state=None):
        return 0.5 * tokens, torch.zeros(1, tokens.shape[1], 1)

    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(3,\) of torch.float64 from the sampler.*torch.int64"
    ):
        rollout(regression, torch.zeros(4, 3, dtype=torch.long), Feedback.last(1))


def test_rollout_refuses_a_sampler_that_does_not_fit():
    model = RecurrentSequential(nn.GRU(2, H), nn.Linear(H, 3))
    with pytest.raises(ValueError, match=r"(?s)rollout.*\(3, 3\).*sampler.*\(3, 2\)"):
        rollout(model, torch.zeros(4, 3, 2), Feedback.last(1))


both_ways = pytest.mark.parametrize(
    "run", [rollout, lambda m, x: sample_model(m, 9, x)], ids=["rollout", "sample_model"]
)


@both_ways
def test_a_model_without_a_state_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*outputs, state"):
        run(nn.Linear(2, 2), torch.zeros(4, 3, 2))


@both_ways
@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_model_that_cannot_be_given_a_state_is_refused(run, kind):
    class Alone(nn.Module):
        def forward(self, inputs, *, mask=None):
            return inputs, None

    model = {"module": Alone(), "function": lambda inputs: (inputs, None)}[kind]
    with pytest.raises(TypeError, match=r"which takes no state; wanted outputs, state = model"):
        run(model, torch.zeros(4, 3, 2))


@both_ways
def test_a_model_that_returns_no_state_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*\(4, 3, 2\).*outputs, state"):
        run(lambda inputs, state: inputs, torch.zeros(4, 3, 2))


@both_ways
def test_a_cell_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(TypeError, match=rf"(?s){name}.*GRUCell.*Unroll"):
        run(nn.GRUCell(2, 2), torch.zeros(4, 3, 2))


@both_ways
def test_a_batch_first_model_is_refused(run, request):
    name = request.node.callspec.id
    with pytest.raises(ValueError, match=rf"(?s){name}.*batch_first"):
        run(nn.GRU(2, 2, batch_first=True), torch.zeros(4, 3, 2))


@both_ways
def test_a_batch_first_model_is_refused_within_another_too(run):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(2, 2, batch_first=True)

        def forward(self, inputs, state=None):
            return self.inner(inputs, state)

    with pytest.raises(ValueError, match=r"GRU\(batch_first=True\); wanted time as dim 0"):
        run(Wrapped(), torch.zeros(4, 3, 2))


class BatchFirstState(nn.Module):
    """Of which the state is (B, layers, H)."""

    def __init__(self):
        super().__init__()
        self.inner = language_model(nn.GRU)

    def forward(self, tokens, state=None):
        if state is not None:
            state = (state.transpose(0, 1).contiguous(),)
        outputs, (state,) = self.inner(tokens, state)
        return outputs, state.transpose(0, 1)


@pytest.mark.parametrize(
    "run",
    [
        lambda model, primer: beam_search(model, 9, primer, 2),
        lambda model, primer: forecast(model, 5, primer, sample_best, paths=2),
        lambda model, primer: rollout(
            model, primer, Feedback.last(1), sample_best, lengths=torch.tensor([4, 2, 3])
        ),
    ],
)
def test_a_state_that_cannot_be_taken_apart_by_rows_is_refused_where_it_must_be(run):
    with pytest.raises(ValueError, match=r"a state leaf \(3, 1, 5\) for a batch of 3.*give back"):
        run(BatchFirstState(), torch.randint(V, (4, 3)))


def test_a_state_that_grows_with_time_wants_rows_of_one_length():
    class Remembers(nn.Module):
        def forward(self, inputs, state=None):
            if state is not None:
                inputs = torch.cat([state, inputs])
            return inputs.cumsum(0)[-len(inputs) :], inputs

    primer, lengths = torch.zeros(4, 3, 2), torch.tensor([4, 2, 3])
    with pytest.raises(
        ValueError, match=r"leaves \(2, 1, 2\), \(3, 1, 2\), \(4, 1, 2\) after rows"
    ):
        forecast(Remembers(), 5, primer, lengths=lengths)


def test_a_bidirectional_model_cannot_be_stepped():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*bidirectional.*future"):
        sample_model(nn.GRU(2, 1, bidirectional=True), 9, torch.zeros(4, 3, 2))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_probability_outside_0_and_1_is_refused(p):
    with pytest.raises(ValueError, match=rf"(?s)Feedback.probability.*{p}"):
        Feedback.probability(p).mask(4, 2)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_is_refused_before_it_is_used(p):
    with pytest.raises(
        ValueError, match=r"Feedback.probability: got p = -?[01].1; wanted 0 <= p <= 1"
    ):
        Feedback.probability(p)


def test_a_schedule_that_leaves_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.probability.*1.5"):
        Feedback.probability(lambda step: step / 2).mask(4, 2, step=3)


def test_an_unknown_per_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.probability.*per.*batch"):
        Feedback.probability(0.5, per="batch")


def test_last_of_a_negative_number_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Feedback.last.*-1"):
        Feedback.last(-1)


@pytest.mark.parametrize("k", [0, -2])
def test_every_below_1_is_refused(k):
    with pytest.raises(ValueError, match=rf"(?s)Feedback.every.*{k}"):
        Feedback.every(k)


@pytest.mark.parametrize("width", [0, -1])
def test_a_beam_narrower_than_1_is_refused(width):
    with pytest.raises(ValueError, match=rf"(?s)beam_search.*width.*{width}"):
        beam_search(language_model(), 10, torch.zeros(4, 3, dtype=torch.int64), width)


def test_a_beam_search_over_continuous_outputs_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"(?s)beam_search"):
        beam_search(continuous_model(), 10, torch.zeros(4, 3, 2), 2)


def test_a_beam_search_from_numbers_is_refused():
    with pytest.raises(
        TypeError, match=r"beam_search: got a primer \(4, 3\) of torch.float64; wanted tokens"
    ):
        beam_search(
            lambda x, state: (x.unsqueeze(2).expand(-1, -1, V), x[:1]),
            9,
            torch.zeros(4, 3),
            width=2,
        )


def test_a_beam_search_over_images_is_refused():
    with pytest.raises(ValueError, match=r"(?s)beam_search.*\(4, 3, 2, 7\).*\(T, B, V\)"):
        beam_search(
            lambda x, state: (torch.zeros(*x.shape, 2, 7), None),
            10,
            torch.zeros(4, 3, dtype=torch.int64),
            2,
        )


def test_no_primer_at_all_is_refused():
    with pytest.raises(TypeError, match=r"(?s)sample_model.*primer"):
        sample_model(language_model(), 10, None, wander)


def test_a_stop_that_does_not_say_which_rows_is_refused():
    with pytest.raises(ValueError, match=r"(?s)sample_model.*stop \(3, 2\).*\(B,\)"):
        sample_model(continuous_model(), 10, torch.zeros(4, 3, 2), stop=1)


def test_a_model_that_loses_steps_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(1, 3, 2\).*\(4, 3, 2\).*the same T and B"
    ):
        rollout(lambda x, state: (x[-1:], state), torch.zeros(4, 3, 2))


def test_a_model_that_loses_the_dimension_of_one_step_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)sample_model.*outputs \(3, 2\).*\(1, 3, 2\).*the same T and B"
    ):
        sample_model(lambda x, state: (x.squeeze(0), torch.zeros(1, 3, 1)), 4, torch.zeros(1, 3, 2))


@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_loses_the_dimension_of_a_self_fed_step_is_refused(n):
    def model(x, state):
        return (x.squeeze(0) if len(x) == 1 else x), torch.zeros(1, 3, 1)

    with pytest.raises(
        ValueError, match=r"(?s)rollout.*outputs \(3, 2\).*\(1, 3, 2\).*the same T and B"
    ):
        rollout(model, torch.zeros(4, 3, 2), Feedback.last(n))


def test_a_model_that_loses_rows_is_refused():
    with pytest.raises(
        ValueError, match=r"(?s)rollout.*\(4, 1, 2\).*\(4, 3, 2\).*the same T and B"
    ):
        rollout(lambda x, state: (x[:, :1], state), torch.zeros(4, 3, 2))


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2)], ids=str)
def test_a_sequence_of_no_step_or_no_row_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"rollout: got empty inputs .* wanted at least one step and one row"
    ):
        rollout(continuous_model(), torch.zeros(shape))


def test_a_model_that_unpacks_what_it_was_given_packed_is_refused():
    class Unpacking(nn.Module):
        takes_packed = True

        def forward(self, inputs, state=None):
            return inputs.data, state

    with pytest.raises(TypeError, match=r"(?s)rollout.*Unpacking.*PackedSequence"):
        rollout(Unpacking(), torch.zeros(4, 3, 2), lengths=torch.tensor([4, 2, 1]))


@pytest.mark.parametrize("lengths", [[5, 1, 1], [4, 0, 1], [4, 1]], ids=str)
def test_primer_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)sample_model.*lengths"):
        sample_model(
            language_model(),
            10,
            (torch.zeros(4, 3, dtype=torch.int64), torch.tensor(lengths)),
            wander,
        )


@pytest.mark.parametrize("lengths", [[5, 1, 1], [4, 0, 1], [4, 1]], ids=str)
def test_rollout_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match=r"(?s)rollout.*lengths"):
        rollout(continuous_model(), torch.zeros(4, 3, 2), lengths=torch.tensor(lengths))


# Samplers, stops and futures that do not fit.


@pytest.mark.parametrize("drawn", [None, 3, [0, 1, 2], (torch.zeros(3),)], ids=str)
@pytest.mark.parametrize("kind", ["rollout", "sample_model", "forecast"])
def test_a_sampler_that_gives_no_tensor_is_refused(kind, drawn):
    model, inputs = continuous_model(), torch.zeros(4, 3, 2)
    run = {
        "rollout": lambda: rollout(model, inputs, Feedback.last(1), lambda outputs: drawn),
        "sample_model": lambda: sample_model(model, 9, inputs, lambda outputs: drawn),
        "forecast": lambda: forecast(model, 9, inputs, lambda outputs: drawn),
    }[kind]
    message = refused(run, "from the sampler, for outputs (3, 2)", TypeError)
    assert message.startswith(f"{kind}: ")


def test_a_sampler_of_other_names_than_the_inputs_is_refused():
    def model(inputs, state=None):
        return inputs["a"], torch.zeros(1, 3, 1)

    inputs = {"a": torch.zeros(4, 3, 2), "b": torch.zeros(4, 3, 1)}
    call = lambda drawn: lambda: sample_model(model, 9, inputs, lambda outputs: drawn)  # noqa: E731
    refused(call({"a": torch.zeros(3, 2)}), "a dict of 'a' from the sampler")
    refused(call(torch.zeros(3, 2)), "a dict of 'a', 'b'", TypeError)
    refused(call({"a": torch.zeros(3, 2), "b": torch.zeros(3)}), "next input['b'], (3, 1)")


@pytest.mark.parametrize("stop", [True, 1.5, "end", [3], torch.tensor(3)], ids=str)
def test_a_stop_that_is_no_token_and_no_function_is_refused(stop):
    primer = torch.zeros(1, 3, dtype=torch.long)
    refused(lambda: sample_model(language_model(), 9, primer, stop=stop), "stop = ", TypeError)
    refused(lambda: beam_search(language_model(), 9, primer, 2, stop=stop), "stop = ", TypeError)


@pytest.mark.parametrize(
    "answer",
    [0, True, [False] * 3, None, torch.zeros(3), torch.zeros(3, dtype=torch.long)],
    ids=str,
)
def test_a_stop_that_does_not_answer_with_a_bool_tensor_is_refused(answer):
    primer = torch.zeros(1, 3, dtype=torch.long)
    call = lambda: sample_model(language_model(), 9, primer, sample_best, stop=lambda t: answer)  # noqa: E731
    refused(call, "from stop for tokens (3,); wanted a bool tensor (B,)", TypeError)


def test_a_token_stops_no_dict():
    def model(inputs, state=None):
        return inputs, torch.zeros(1, 3, 1)

    call = lambda: sample_model(model, 9, {"a": torch.zeros(1, 3, 2)}, stop=3)  # noqa: E731
    refused(call, "from stop for tokens a dict of 'a'", TypeError)


def test_whole_numbers_of_numpy_stop_rows():
    primer = torch.zeros(1, 3, dtype=torch.long)
    for stop in (numpy.int64(2), numpy.int32(2)):
        found = sample_model(language_model(), 9, primer, sample_best, stop=stop)
        wanted = sample_model(language_model(), 9, primer, sample_best, stop=2)
        assert found.tokens.shape[1] == wanted.tokens.shape[1]


@pytest.mark.parametrize("kind", ["sample_model", "forecast"])
def test_a_sampler_that_wants_the_data_is_refused_where_there_is_no_future(kind):
    model, primer = RecurrentSequential(nn.GRU(3, H), nn.Linear(H, 1)), torch.zeros(4, 2, 3)
    sampler = with_covariates(identity, 1)
    run = {"sample_model": sample_model, "forecast": forecast}[kind]
    message = refused(lambda: run(model, 9, primer, sampler), "and no future")
    assert message.startswith(f"{kind}: ")
    assert "pass future=" in message


@pytest.mark.parametrize(
    ("future", "words"),
    [
        (torch.zeros(4, 2, 3), "a future of 4 steps; wanted at least 5"),
        (torch.zeros(5, 2, 2), "future (5, 2, 2) after a primer (4, 2, 3)"),
        (torch.zeros(5, 1, 3), "future (5, 1, 3) after a primer (4, 2, 3)"),
        (torch.zeros(5, 2, 3, dtype=torch.long), "future (5, 2, 3) after a primer"),
        ({"a": torch.zeros(5, 2, 3)}, "a dict of 'a' after a primer"),
        (torch.zeros(0, 2, 3), "empty future"),
    ],
)
def test_a_future_that_does_not_fit_is_refused(future, words):
    model, primer = RecurrentSequential(nn.GRU(3, H), nn.Linear(H, 1)), torch.zeros(4, 2, 3)
    sampler = with_covariates(identity, 1)
    refused(lambda: sample_model(model, 9, primer, sampler, future=future), words)
    refused(lambda: forecast(model, 5, primer, sampler, future=future), words)


def test_the_future_of_the_shortest_row_must_be_there():
    model, primer = RecurrentSequential(nn.GRU(3, H), nn.Linear(H, 1)), torch.zeros(4, 2, 3)
    call = lambda: sample_model(  # noqa: E731
        model,
        9,
        (primer, torch.tensor([4, 1])),
        with_covariates(identity, 1),
        future=torch.zeros(5, 2, 3),
    )
    refused(call, "a future of 5 steps; wanted at least 8")


@pytest.mark.parametrize(
    ("horizon", "paths", "words", "kind"),
    [
        (0, 1, "horizon = 0; wanted horizon >= 1", ValueError),
        (5, 0, "paths = 0; wanted paths >= 1", ValueError),
        (2.0, 1, "horizon = 2.0", TypeError),
        (5, True, "paths = True", TypeError),
    ],
)
def test_a_forecast_of_nothing_is_refused(horizon, paths, words, kind):
    call = lambda: forecast(continuous_model(), horizon, torch.zeros(4, 3, 2), paths=paths)  # noqa: E731
    refused(call, words, kind)


def test_a_bidirectional_model_forecasts_nothing():
    model = nn.GRU(2, 1, bidirectional=True)
    refused(lambda: forecast(model, 5, torch.zeros(4, 3, 2)), "a bidirectional model")


@pytest.mark.parametrize("length", [2.0, "9", None], ids=str)
def test_a_length_that_is_no_whole_number_is_refused(length):
    primer = torch.zeros(4, 3, 2)
    refused(lambda: sample_model(continuous_model(), length, primer), "length = ", TypeError)


@pytest.mark.parametrize(
    ("options", "words", "kind"),
    [
        ({"best": 0}, "best = 0", ValueError),
        ({"best": 3}, "best = 3 of width = 2", ValueError),
        ({"length_penalty": math.nan}, "length_penalty = nan", ValueError),
        ({"length_penalty": math.inf}, "length_penalty = inf", ValueError),
        ({"length_penalty": None}, "length_penalty = None", ValueError),
        ({"stop": lambda tokens: tokens == 0}, "a token, a whole number", TypeError),
        ({"lengths": torch.tensor([4, 5, 1])}, "lengths from 1 to 5", ValueError),
    ],
    ids=["no best", "too many best", "nan", "infinite", "nothing", "a function", "lengths"],
)
def test_options_of_a_beam_search_that_do_not_fit_are_refused(options, words, kind):
    primer = torch.zeros(4, 3, dtype=torch.long)
    call = lambda: beam_search(language_model(), 9, primer, 2, **options)  # noqa: E731
    assert refused(call, words, kind).startswith("beam_search: ")


def test_a_beam_search_over_a_dict_is_refused():
    primer = {"a": torch.zeros(4, 3, dtype=torch.long)}
    call = lambda: beam_search(lambda x, s: (x["a"], None), 9, primer, 2)  # noqa: E731
    refused(call, "a primer a dict of 'a'; wanted tokens", TypeError)


@pytest.mark.parametrize("n", [1.5, "2", None], ids=str)
def test_feedback_counts_whole_steps(n):
    refused(lambda: Feedback.last(n), "n = ", TypeError)
    refused(lambda: Feedback.every(n), "k = ", TypeError)


def test_a_mask_for_lengths_that_do_not_fit_is_refused():
    refused(lambda: Feedback.always().mask(4, 2, torch.tensor([5, 1])), "lengths from 1 to 5")
