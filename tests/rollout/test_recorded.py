"""What Torch records and replays: the operations on tensors, without the Python around them."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.rollout import Rollout, weights_of
from keras_bond.rollout.functional import Recorded

RECORDS = keras.config.backend() == "torch"


def test_a_function_is_run_once_for_every_signature(to_numpy):
    calls = []

    def add(pair, scale):
        calls.append(len(pair))
        return pair[0] + scale * pair[1]

    add, (one, two) = Recorded(add), (ops.convert_to_tensor([float(i)] * 3) for i in (1, 2))
    for a, b, scale in ((one, two, 10.0), (two, one, 3.0), (one[:2], two[:2], 1.0)):
        result = add([a, b], ops.convert_to_tensor(scale))
        np.testing.assert_array_equal(to_numpy(result), to_numpy(a) + scale * to_numpy(b))
    assert len(calls) == (2 if RECORDS else 3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_tensor_that_is_no_argument_is_read_where_it_was(jit_compile, to_numpy):
    variable = keras.Variable([1.0, 2.0], trainable=False)
    add = Recorded(lambda x: x + variable, lambda: jit_compile)
    for value in ([1.0, 2.0], [5.0, 6.0]):
        variable.assign(value)
        np.testing.assert_array_equal(to_numpy(add(ops.ones((2,)))), np.array(value) + 1)


def test_a_function_that_reads_a_tensor_on_the_host_stays_eager(to_numpy):
    first = Recorded(lambda x: x[: int(x[0])])
    for values in ([1, 8, 9], [2, 8, 9]):
        np.testing.assert_array_equal(to_numpy(first(ops.convert_to_tensor(values))), values[: values[0]])


@pytest.mark.parametrize("read", [lambda x: int(x[0]), lambda x: ops.convert_to_numpy(x)[0]])
def test_an_array_read_on_the_host_is_read_every_time(read, to_numpy):
    if not RECORDS:
        pytest.skip("compilers cannot read a tensor")
    add = Recorded(lambda x: x + read(x))
    for values in ([1, 8], [2, 8]):
        np.testing.assert_array_equal(to_numpy(add(ops.convert_to_tensor(values))), np.array(values) + values[0])


@pytest.mark.parametrize("read", [float, lambda variable: variable.value.item()])
def test_a_variable_read_on_the_host_is_read_every_time(read, to_numpy):
    if not RECORDS:
        pytest.skip("compilers cannot read a tensor")
    variable = keras.Variable(0.0, trainable=False)
    add = Recorded(lambda x: x + read(variable))
    for value in (1.0, 2.0):
        variable.assign(value)
        np.testing.assert_array_equal(to_numpy(add(ops.ones((2,)))), [1 + value] * 2)


def test_after_an_error_a_function_is_recorded_again():
    failures, calls = [RuntimeError("once"), RuntimeError("and once more, eagerly")], []

    def double(x):
        calls.append(0)
        if failures:
            raise failures.pop()
        return 2 * x

    double = Recorded(double)
    with pytest.raises(RuntimeError, match="once"):
        double(ops.ones((1,)))
    failures.clear()
    calls.clear()
    for _ in range(3):
        assert float(double(ops.ones((1,)))[0]) == 2
    assert len(calls) == (1 if RECORDS else 3)


def test_a_random_number_without_a_seed_leaves_keras_generator_whole():
    if not RECORDS:
        pytest.skip("compilers have it as an argument")
    from keras.src.backend.common import global_state

    global_state.set_global_attribute("global_seed_generator", None)
    noise = Recorded(lambda x: x + keras.random.normal((1,)))
    drawn = {float(noise(ops.zeros((1,)))[0]) for _ in range(3)}
    assert len(drawn) == 3
    assert np.isfinite(ops.convert_to_numpy(keras.random.normal((2,)))).all()


def test_a_function_may_take_gradients_in_less_memory():
    """d/dw sum (w x)^2 = 2 w sum x^2, rematerialized: the product is computed a second time in the recording."""
    if not RECORDS:
        pytest.skip("the backends have ways of their own")
    import torch

    recorded = []

    def gradient(w, x):
        with torch.enable_grad():
            loss = keras.remat(lambda x: ops.sum(ops.square(ops.matmul(w, x))))(x)
            return torch.autograd.grad(loss, w)[0]

    gradient = Recorded(gradient)
    record = gradient._record
    gradient._record = lambda arguments: recorded.append(record(arguments)) or recorded[-1]
    w, x = torch.full((1, 1), 3.0, requires_grad=True), torch.tensor([[1.0, 2.0]])
    for factor in (1, 5):
        assert float(gradient(w, factor * x)) == 2 * 3 * 5 * factor**2
    (recorded,) = recorded
    products = [node for node in recorded.graph.nodes if "aten.mm" in str(node.target)]
    assert len(products) == 3  # forward, forward again, backward


@pytest.mark.parametrize(("read_on_the_host", "jit_compile"), [(False, False), (True, False), (False, True)])
def test_a_loop_ends_where_its_condition_says(read_on_the_host, jit_compile, to_numpy):
    """x <- a x + b from x = 1, with a = 3 and b = 1: x_i = (3^(i + 1) - 1) / 2. On a GPU Torch replays a CUDA graph."""
    if read_on_the_host and not RECORDS:
        pytest.skip("compilers cannot read a tensor")

    def iterate(factors, offset, i, x, pair):
        scale = float(factors[0]) if read_on_the_host else factors[0]
        return i + 1, scale * x + offset, [pair[1], pair[0]]

    loop = Recorded(iterate, lambda: jit_compile)
    for steps in (1, 2, 5):
        fixed = [ops.convert_to_tensor([3.0]), ops.convert_to_tensor(1.0)]
        state = (ops.convert_to_tensor(0), ops.ones((2,)), [ops.zeros((1,)), ops.ones((1,))])
        i, x, pair = loop.repeat(lambda i, x, pair, steps=steps: i < steps, fixed, state)
        assert int(i) == steps
        np.testing.assert_array_equal(to_numpy(x), [(3 ** (steps + 1) - 1) / 2] * 2)
        np.testing.assert_array_equal([float(to_numpy(p)[0]) for p in pair], [steps % 2, 1 - steps % 2])


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_sampling_and_scoring_are_recorded_windows_and_all(kind, monkeypatch, to_numpy):
    if not RECORDS:
        pytest.skip("compilers cannot read a tensor")
    import torch

    recordings, record = [], Recorded._record
    monkeypatch.setattr(Recorded, "_record", lambda self, args: recordings.append(record(self, args)) or recordings[-1])
    rollout = Rollout(tiny.causal_lm(kind), 8, 6)
    prompt, weights = rollout.pad(rollout.encode(["ab", "cabc"])), weights_of(rollout.causal_lm)
    completions = rollout.sample(weights, *prompt, np.full((2, 6), 0.6, "float32"))
    rollout.score(weights, *prompt, completions.token_ids)
    assert len(recordings) == 3  # of the prompts, of a token, of the scores
    assert all(isinstance(recording, torch.nn.Module) for recording in recordings)
