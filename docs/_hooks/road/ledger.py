"""What a tutorial asserts, recorded while its kernel runs: the text, what was measured, the bound.

This is an extension of the kernel's IPython. It rewrites the syntax tree of each cell, so that an
assertion also says what it compared; what holds and what fails stays as it was. A cell that
asserted something has one more output, of the type KIND, which no reader's Jupyter shows.

Only what must hold is recorded: a comparison that is the assertion, a part of it joined by `and`,
or what `all` goes through; and torch.testing.assert_close. Of a claim that is made several times,
in a loop, the tightest is kept.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from IPython.display import display

KIND = "application/vnd.rnnkit.claims+json"
MANY = 100_000  # numbers that are too many to go through
NAME = "__claims__"  # of the ledger, among the builtins of the kernel

Claim = dict[str, Any]
OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
CLOSE = {"assert_close", "assert_allclose"}
# What torch.testing.assert_close allows where nothing is said: relative, absolute.
TOLERANCES = {
    "torch.float16": (1e-3, 1e-5),
    "torch.bfloat16": (1.6e-2, 1e-5),
    "torch.float32": (1.3e-6, 1e-5),
    "torch.float64": (1e-7, 1e-7),
}


# --- while it runs -------------------------------------------------------------------------------


class Ledger:
    """The claims of the cell that runs."""

    def __init__(self) -> None:
        self.claims: dict[str, Claim] = {}  # by their text
        self.held: set[str] = set()  # the texts of those that passed

    def holds(self, text: str, message: str) -> None:
        """An assertion has passed."""
        self.held.add(text)
        claim = self.claims.setdefault(text, {"text": text})
        if message:
            claim["message"] = message

    def compare(self, text: str, signs: list[str], fixed: list[bool], *values: Any) -> Any:
        """A comparison, perhaps a chain of them, with its result; `fixed` are written numbers."""
        result: Any = True
        for i, sign in enumerate(signs):
            left, right = values[i : i + 2]
            step = COMPARE[sign](left, right)
            result = result and step
            if fixed[i] and not fixed[i + 1]:
                self._note(text, right, FLIPPED[sign], left)
            else:
                self._note(text, left, sign, right)
        return result

    def close(self, text: str, check: Callable[..., Any], *values: Any, **options: Any) -> None:
        """A call of assert_close, and how near to its tolerance it came."""
        check(*values, **options)
        self.holds(text, "")
        actual, expected = (values + tuple(options.get(n) for n in ("actual", "expected")))[:2]
        rtol, atol = TOLERANCES.get(str(getattr(actual, "dtype", "")), (None, None))
        rtol = options.get("rtol", rtol)
        atol = options.get("atol", atol)
        pairs = list(_pairs(actual, expected))
        if rtol is None or atol is None:
            return
        for one, other in pairs:
            self._keep(text, abs(one - other), "<=", atol + rtol * abs(other))

    def _note(self, text: str, measured: Any, sign: str, bound: Any) -> None:
        exact = sign in ("==", "!=") or (_counts(measured) and _counts(bound))
        for one, other in _pairs(measured, bound):
            self._keep(text, one, sign, other, exact=exact)

    def _keep(
        self, text: str, measured: float, sign: str, bound: float, *, exact: bool = False
    ) -> None:
        """The tightest of what a claim compared."""
        if not (math.isfinite(measured) and math.isfinite(bound)):
            return
        margin = None
        if bound and not exact:
            margin = abs(bound - measured) / abs(bound)
        claim = self.claims.setdefault(text, {"text": text})
        before = claim.get("margin")
        if "measured" in claim and (margin is None or (before is not None and before <= margin)):
            return
        claim |= {"measured": _short(measured), "sign": sign, "bound": _short(bound)}
        claim["margin"] = None if margin is None else round(margin, 4)

    def publish(self, *_: Any) -> None:
        """Add the claims to the outputs of the cell that made them."""
        kept = [claim for text, claim in self.claims.items() if text in self.held]
        if kept:
            display({KIND: kept}, raw=True)
        self.claims = {}
        self.held = set()


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _counts(value: Any) -> bool:
    """Whether a value is made of whole numbers."""
    if isinstance(value, int):
        return True
    return "int" in str(getattr(value, "dtype", "")) or "bool" in str(getattr(value, "dtype", ""))


def _numbers(value: Any) -> list[float]:
    """The numbers of a value: a number, a tensor, an array; of anything else, none."""
    if isinstance(value, (bool, str)):
        return []
    if isinstance(value, (int, float)):
        return [float(value)]
    if math.prod(getattr(value, "shape", ())) > MANY:
        return []
    try:
        flat = value.reshape(-1).tolist()
        return [float(number) for number in flat]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return []


def _pairs(left: Any, right: Any) -> Iterable[tuple[float, float]]:
    """The numbers that are compared with each other."""
    ones = _numbers(left)
    others = _numbers(right)
    if len(ones) == 1:
        ones *= len(others)
    if len(others) == 1:
        others *= len(ones)
    return zip(ones, others, strict=True) if len(ones) == len(others) else []


# --- the syntax tree -----------------------------------------------------------------------------


class Recorder(ast.NodeTransformer):
    """Lets the assertions of a cell speak to the ledger."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        text = ast.unparse(node.test)
        message = ""
        if isinstance(node.msg, ast.Constant) and isinstance(node.msg.value, str):
            message = node.msg.value
        node.test = _must_hold(node.test, text)
        passed = _call("holds", [ast.Constant(text), ast.Constant(message)])
        return [node, ast.Expr(passed)]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func).rpartition(".")[2]
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if name not in CLOSE or starred:
            return node
        arguments = [ast.Constant(ast.unparse(node)), node.func, *node.args]
        return _call("close", arguments, node.keywords)


def _call(
    name: str, arguments: list[ast.expr], keywords: list[ast.keyword] | None = None
) -> ast.Call:
    ledger = ast.Attribute(ast.Name(NAME, ast.Load()), name, ast.Load())
    return ast.Call(ledger, arguments, keywords or [])


def _must_hold(node: ast.expr, text: str) -> ast.expr:
    """The expression with those comparisons recorded without which it does not hold."""
    if isinstance(node, ast.Compare):
        return _recorded(node, text)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        node.values = [_must_hold(value, text) for value in node.values]
    if isinstance(node, ast.Call):
        _all_must_hold(node, text)
    return node


def _all_must_hold(node: ast.Call, text: str) -> None:
    """all(x < y for ...) and (x < y).all()"""
    over = node.args[0] if len(node.args) == 1 else None
    if ast.unparse(node.func) == "all" and isinstance(over, (ast.GeneratorExp, ast.ListComp)):
        over.elt = _must_hold(over.elt, text)
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr == "all":
        called.value = _must_hold(called.value, text)


def _recorded(node: ast.Compare, text: str) -> ast.expr:
    if any(type(sign) not in OPERATORS for sign in node.ops):
        return node
    operands = [node.left, *node.comparators]
    signs: list[ast.expr] = [ast.Constant(OPERATORS[type(sign)]) for sign in node.ops]
    fixed: list[ast.expr] = [ast.Constant(_is_written(operand)) for operand in operands]
    lists = [ast.List(signs, ast.Load()), ast.List(fixed, ast.Load())]
    return _call("compare", [ast.Constant(text), *lists, *operands])


def _is_written(node: ast.expr) -> bool:
    """Whether an expression is a number as it is written, such as 0.5 or 1 / 6."""
    parts = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    return all(isinstance(part, parts) for part in ast.walk(node))


def load_ipython_extension(shell: Any) -> None:
    """What IPython calls when the kernel starts: docs/_hooks/ipython_config.txt."""
    ledger = Ledger()
    setattr(builtins, NAME, ledger)
    shell.ast_transformers.append(Recorder())
    shell.events.register("post_run_cell", ledger.publish)
