"""The product of a dense layer against NumPy, its gradients too; and the order of XLA's program."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.rollout import Rollout
from keras_bond.rollout.products import product

EQUATIONS = {
    "btd,df->btf": ((2, 3, 4), (4, 5)),
    "btd,ndh->btnh": ((2, 3, 4), (2, 4, 5)),
    "btnh,nhd->btd": ((2, 3, 2, 5), (2, 5, 4)),
    "dbt,ndh->btnh": ((4, 2, 3), (2, 4, 5)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_value_and_gradients_are_those_of_the_einsum(equation, gradient, to_numpy):
    """The loss is linear in the product, sum c (x W): its gradients are einsums of c."""
    operands, y = equation.split("->")
    x, w = operands.split(",")
    rng = np.random.default_rng(0)
    inputs, kernel = (rng.standard_normal(shape, "float32") for shape in EQUATIONS[equation])
    expected = np.einsum(equation, inputs, kernel)
    c = rng.standard_normal(expected.shape, "float32")
    np.testing.assert_allclose(to_numpy(product(equation, inputs, kernel)), expected, rtol=1e-5, atol=1e-6)
    of_inputs = gradient(lambda inputs: ops.sum(ops.multiply(c, product(equation, inputs, kernel))), inputs)
    of_kernel = gradient(lambda kernel: ops.sum(ops.multiply(c, product(equation, inputs, kernel))), kernel)
    np.testing.assert_allclose(of_inputs, np.einsum(f"{y},{w}->{x}", c, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum(f"{x},{y}->{w}", inputs, c), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("xla_for_cpus")
@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads XLA's program")
@pytest.mark.parametrize(("einsum", "transposed"), [(product, False), (ops.einsum, True)], ids=["ours", "JAX's own"])
def test_nothing_is_transposed_for_the_gradient_of_the_kernel(einsum, transposed):
    """21 positions, 26 outputs: (26, 21) is the transposed gradient of the product. JAX's own way shows that it is seen."""
    import jax

    def loss(kernel, inputs):
        return ops.sum(ops.gelu(einsum("btd,df->btf", inputs, kernel)))

    program = jax.jit(jax.grad(loss)).lower(np.ones((10, 26), "float32"), np.ones((3, 7, 10), "float32")).compile()
    assert ("f32[26,21]" in program.as_text()) == transposed


def test_every_product_of_a_policy_is_ours():
    model = tiny.causal_lm()
    Rollout(model, 8, 6)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.EinsumDense)]
    assert len(layers) == 7
    assert all("call" in vars(layer) for layer in layers)
