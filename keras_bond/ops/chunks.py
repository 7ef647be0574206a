"""A function of many rows, computed part by part, so that what it needs for all rows at once never exists."""

import keras
from keras import ops


def smallest_divisor(number, at_least):
    """The smallest divisor of `number` that is `at_least` so large; `number` itself where there is none.

    >>> smallest_divisor(12, 3.5)
    4
    """
    return next((d for d in range(1, number) if number % d == 0 and d >= at_least), number)


def in_chunks(function, arrays, count):
    """`function(*arrays)`, `count` parts of the leading axis at a time, with the gradient of the whole.

    Of a part only its inputs are kept for the backward pass, which computes the part anew. Rows i, i + count,
    i + 2 count, ... make part i. Gradients flow to `arrays` and to variables.

    Args:
        function: of arrays with a leading axis to arrays (or a nest of them) with the same leading axis, row by row: a row
            of the result depends on that row of the arguments alone.
        arrays: (R, ...) each.
        count: a divisor of R; 1 calls `function` as it is.

    Returns:
        As `function` returns.

    Example:

    >>> in_chunks(lambda x: 2 * x, [ops.convert_to_tensor([1, 2, 3, 4])], 2).tolist()
    [2, 4, 6, 8]
    """
    if count == 1:
        return function(*arrays)

    one_by_one = _one_by_one_in_tensorflow if keras.config.backend() == "tensorflow" else _one_by_one
    return keras.tree.map_structure(_join, one_by_one(function, [_split(array, count) for array in arrays]))


def in_turns(function, arrays, count):
    """As `in_chunks`, without a gradient: so many calls of `function`, which may be one that runs compiled programs.

    >>> in_turns(lambda x: 2 * x, [ops.convert_to_tensor([1, 2, 3, 4])], 2).tolist()
    [2, 4, 6, 8]
    """
    if count == 1:
        return function(*arrays)
    parts = [function(*chunks) for chunks in zip(*(_split(array, count) for array in arrays), strict=True)]
    return keras.tree.map_structure(lambda *chunks: _join(ops.stack(chunks)), *parts)


def _split(array, count):
    return ops.swapaxes(ops.reshape(array, (-1, count, *array.shape[1:])), 0, 1)


def _join(array):
    array = ops.swapaxes(array, 0, 1)
    return ops.reshape(array, (-1, *array.shape[2:]))


def _one_by_one(function, parts):
    # a new function each time: JAX remembers what it has traced by the function, with the variables' values of then
    part = keras.remat(lambda *chunks: function(*chunks))
    return ops.map(lambda chunks: part(*chunks), parts)


def _one_by_one_in_tensorflow(function, parts):
    """Its loops lose the gradients of rematerialised variables: so the backward pass is a loop of our own."""
    import tensorflow as tf

    @tf.custom_gradient
    def run(*parts):
        floats = [part for part in parts if part.dtype.is_floating]

        def backward(*upstream, variables=()):
            def add_part(i, totals):
                chunks = [part[i] for part in parts]
                watched = [chunk for chunk in chunks if chunk.dtype.is_floating]
                with tf.GradientTape() as tape:
                    tape.watch(watched)
                    results = keras.tree.flatten(function(*chunks))
                sources = [*variables, *watched]
                gradients = tape.gradient(results, sources, [of_result[i] for of_result in upstream], "zero")
                of_variables, of_chunks = gradients[: len(variables)], gradients[len(variables) :]
                of_parts = zip(totals[len(variables) :], of_chunks, strict=True)
                return [
                    *(total + tf.convert_to_tensor(g) for total, g in zip(totals, of_variables, strict=False)),
                    *(tf.tensor_scatter_nd_update(total, [[i]], g[None]) for total, g in of_parts),
                ]

            zeros = [tf.zeros(value.shape, value.dtype) for value in (*variables, *floats)]
            totals = ops.fori_loop(0, parts[0].shape[0], add_part, zeros)
            of_floats = iter(totals[len(variables) :])
            return [next(of_floats) if part.dtype.is_floating else None for part in parts], totals[: len(variables)]

        return ops.map(lambda chunks: function(*chunks), list(parts)), backward

    return run(*parts)
