"""The one voice: a helper gives the reason, the boundary that was called says who was asked."""

import pytest
import torch
from helpers import refused

from rnnkit.core.errors import Refusal, asked, at_least, in_words, one_of


def reason(kind=ValueError):
    raise Refusal("3", "an even number", "pass 2.", kind)


def test_the_boundary_says_who_was_asked():
    with pytest.raises(ValueError) as info:
        asked("halve")(reason)()
    assert str(info.value) == "halve: got 3; wanted an even number. Likely fix: pass 2."
    assert info.value.__suppress_context__


@pytest.mark.parametrize("kind", [TypeError, KeyError, IndexError])
def test_the_error_is_of_the_kind_that_was_refused(kind):
    with pytest.raises(kind, match="halve"):
        asked("halve")(reason)(kind)


def test_the_innermost_boundary_speaks():
    @asked("outer")
    def outer():
        return asked("inner")(reason)()

    assert refused(outer, "got 3").startswith("inner:")


def test_a_boundary_without_a_refusal_is_the_function():
    @asked("add")
    def add(a, *, b=1):
        """Adds."""
        return a + b

    assert add(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Adds.")


def test_a_method_may_be_named_after_its_object():
    class Phase:
        def __init__(self, name):
            self.name = name

        @asked(lambda phase: phase.name)
        def run(self):
            reason()

        @classmethod
        @asked("Phase.make")
        def make(cls):
            reason()

        @property
        @asked("Phase.rows")
        def rows(self):
            return reason()

    assert refused(Phase("training").run, "got 3").startswith("training:")
    assert refused(Phase.make, "got 3").startswith("Phase.make:")
    assert refused(lambda: Phase("x").rows, "got 3").startswith("Phase.rows:")


def test_another_error_passes_as_it_is():
    @asked("outer")
    def fails():
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match=r"^of the user$"):
        fails()


def test_a_boundary_compiles_as_one_graph():
    @asked("inner")
    def inner(x):
        if x.ndim == 1:
            reason()
        return 2 * x

    @asked("outer")
    def outer(x):
        return inner(x) + 1

    torch._dynamo.reset()
    compiled = torch.compile(outer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2, 2)), torch.full((2, 2), 3.0))


def test_a_refusal_speaks_from_inside_a_compiled_function():
    torch._dynamo.reset()

    @asked("outer")
    def outer(x):
        if x.ndim == 1:
            reason()
        return 2 * x

    with pytest.raises(ValueError, match="outer: got 3"):
        torch.compile(outer, backend="eager")(torch.ones(2))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 3), "(2, 3)"),
        (torch.tensor(1.0), "()"),
        ({"a": 1, "b": 2}, "a dict of 'a', 'b'"),
        ({}, "a dict of nothing"),
        ([1, 2], "a list of 2"),
        ((1,), "a tuple of 1"),
        (3, "a int"),
        (None, "a NoneType"),
    ],
    ids=str,
)
def test_a_value_in_words(value, words):
    assert in_words(value) == words


def test_a_word_is_one_of_some():
    one_of("mode", "min", ["min", "max"], "pass one.")
    message = refused(
        lambda: asked("f")(one_of)("mode", "mid", ["a", "b", "c"], "pass one."), "mode='mid'"
    )
    assert 'wanted "a", "b" or "c"' in message


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError)],
)
def test_a_count_is_a_whole_number(value, kind):
    at_least("n", 1, 1, "")
    refused(lambda: asked("f")(at_least)("n", value, 1, "pass 1."), f"n = {value!r}", kind)
