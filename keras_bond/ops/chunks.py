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

    Of a part only its inputs are kept for the backward pass, which computes the part anew (`keras.remat`). Rows
    i, i + count, i + 2 count, ... make part i.

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
    # a new function each time: JAX remembers what it has traced by the function, with the variables' values of then
    part = keras.remat(lambda *chunks: function(*chunks))

    def split(array):
        array = ops.reshape(array, (-1, count, *array.shape[1:]))
        return ops.swapaxes(array, 0, 1)

    def join(array):
        array = ops.swapaxes(array, 0, 1)
        return ops.reshape(array, (-1, *array.shape[2:]))

    parts = [split(array) for array in arrays]
    if keras.config.backend() == "tensorflow":  # whose loops lose the gradients of rematerialised variables
        results = [part(*(p[i] for p in parts)) for i in range(count)]
        result = keras.tree.map_structure(lambda *rows: ops.stack(rows), *results)
    else:
        result = ops.map(lambda chunks: part(*chunks), parts)
    return keras.tree.map_structure(join, result)
