"""What a function can be called with: functions, modules, builtins."""

import functools
import gc
import weakref

import torch
from torch import nn

from rnnkit.core.signature import by_place, check_takes, must_be_given, parameters_of


def names(called, which):
    return [parameter.name for parameter in parameters_of(called) if which(parameter)]


def test_what_can_be_given_by_place_and_what_must_be():
    def call(a, b, /, c, d=1, *rest, e, f=2):
        raise NotImplementedError

    assert names(call, by_place) == ["a", "b", "c", "d"]
    assert names(call, must_be_given) == ["a", "b", "c"]
    assert names(functools.partial(call, 1), must_be_given) == ["b", "c"]


def test_a_module_is_asked_for_its_forward():
    assert names(nn.GRU(2, 3), by_place) == ["input", "hx"]
    assert names(nn.GRU(2, 3), must_be_given) == ["input"]


def test_code_in_c_does_not_say():
    assert parameters_of(torch.tanh) is None


def test_a_decorator_takes_what_it_says_or_what_it_hands_on():
    def call(a, b, c):
        raise NotImplementedError

    @functools.wraps(call)
    def two(a, b):
        return call(a, b, 0)

    @functools.wraps(call)
    def any_number(*arguments):
        return call(*arguments)

    assert names(two, must_be_given) == ["a", "b"]
    assert names(any_number, must_be_given) == ["a", "b", "c"]


def test_what_can_be_called_with_two_arguments_is_taken_whatever_else_it_takes():
    def option(a, b, c=1, *, d=2):
        raise NotImplementedError

    def any_number(*arguments):
        raise NotImplementedError

    for called in (
        option,
        any_number,
        functools.partial(option, 0),
        functools.wraps(option)(any_number),
        nn.MSELoss(),
        nn.MSELoss().forward,
        nn.functional.cross_entropy,
        torch.sub,
        max,
    ):
        check_takes("f", called, "outputs, targets")


class Decorated(nn.Module):
    """A forward of two arguments behind one that takes any number of them."""

    def _inner(self, inputs, state=None):
        raise NotImplementedError

    @functools.wraps(_inner)
    def forward(self, *arguments):
        return self._inner(*arguments)


class AnyNumber(nn.Module):
    def forward(*arguments):
        raise NotImplementedError


def test_a_forward_is_read_without_its_self():
    for _ in range(2):  # read, and remembered
        assert names(Decorated(), by_place) == ["inputs", "state"]
        assert [p.kind.name for p in parameters_of(AnyNumber())] == ["VAR_POSITIONAL"]


def test_a_forward_of_the_object_goes_before_that_of_its_class():
    layer = nn.GRU(2, 3)
    assert names(layer, by_place) == ["input", "hx"]
    layer.forward = lambda inputs, state, more: (inputs, state)
    assert names(layer, by_place) == ["inputs", "state", "more"]


def test_what_is_remembered_of_a_class_keeps_no_model_alive():
    layer = nn.GRU(2, 3)
    alive = weakref.ref(layer)
    parameters_of(layer)
    del layer
    gc.collect()
    assert alive() is None
