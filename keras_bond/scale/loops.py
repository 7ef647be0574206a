"""XLA counts the body of a loop once. A program's own text says how often it runs."""

import math

import jax
from jax.extend import core


def loop_factor(jaxpr):
    """Operations of a program's products of matrices, over the same with each loop run once: at least 1.

    Args:
        jaxpr: a `ClosedJaxpr`, as in `jax.jit(f).trace(...).jaxpr`. A loop that ends on a condition counts once.

    Example:

    >>> loop_factor(jax.make_jaxpr(lambda x: jax.lax.map(lambda row: row @ row, x))(jax.numpy.ones((8, 2, 2))))
    8.0
    """
    once = _operations(jaxpr.jaxpr, lambda length: 1)
    return _operations(jaxpr.jaxpr, lambda length: length) / once if once else 1.0


def _operations(jaxpr, runs):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        inner = sum(_operations(inside, runs) for inside in _inside(equation.params))
        total += inner * (runs(equation.params["length"]) if equation.primitive.name == "scan" else 1)
    return total


def _inside(params):
    """The programs that an equation holds: the body of a loop, a function that is called, the branches of a choice."""
    for value in jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
