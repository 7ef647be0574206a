"""The pieces of a decoder's pass: what is written to a cache, and sums in float16."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import families
from keras_bond.families.decoder import write_columns
from keras_bond.families.gemma import add
from keras_bond.rollout import Rollout


@pytest.mark.parametrize("index", [0, 1, 3, 4, ops.convert_to_tensor(1, "int32")], ids=str)
def test_columns_are_written_and_the_others_stay(index, to_numpy):
    array, values = np.arange(24.0, dtype="float32").reshape(2, 4, 3), -np.ones((2, 2, 3), "float32")
    expected = np.concatenate([array, np.zeros((2, 2, 3))], axis=1)
    at = int(to_numpy(index))
    expected[:, at : at + 2] = values
    found = write_columns(ops.convert_to_tensor(array), index, ops.convert_to_tensor(values))
    np.testing.assert_array_equal(to_numpy(found), expected[:, : max(4, at + 2)])  # of an int, also new ones


def test_in_float16_a_sum_stays_finite(to_numpy):
    half, single = (
        [ops.convert_to_tensor(x, dtype) for x in ([6e4, -6e4], [6e4, -1e4])] for dtype in ("float16", "float32")
    )
    np.testing.assert_array_equal(to_numpy(add(*half)), np.array([65504, -65504], "float16"))
    np.testing.assert_array_equal(to_numpy(add(*single)), np.array([120000, -70000], "float32"))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX's program")
@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_window_is_a_mask_of_the_tokens_at_hand_once_for_all_layers(kind):
    """Not of all columns by all columns, and not in every layer."""
    import jax
    import jax.extend

    def masks(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars if v.aval.dtype == bool and v.aval.shape[-1:] == (11,))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from masks(inner)

    def masks_of(model):
        family, mask = families.of(model), ops.ones((3, 11), "int32")
        cache = family.new_cache(3, 11)
        token = lambda column: family.decode(ops.ones((3, 1), "int32"), cache, column, mask)[0]  # noqa: E731
        return [*masks(jax.make_jaxpr(token)(np.int32(7)).jaxpr)]

    made, plain = masks_of(tiny.causal_lm(kind)), masks_of(tiny.causal_lm("gemma"))
    assert all(shape.count(11) == 1 for shape in made)
    assert made.count((3, 1, 11)) == plain.count((3, 1, 11)) + 1  # in two or six layers


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="KerasHub has no fused attention there")
def test_fused_attention_says_the_same_at_odd_lengths(monkeypatch):
    """KerasHub takes it on a GPU, where cuDNN has a gradient for even lengths alone; here it is the backend's own."""
    policy, lengths = tiny.causal_lm(), []
    rollout = Rollout(policy, 8, 5)
    ids, mask = rollout.pad(rollout.encode(["ab", "cbaab"]), 8)
    completions = np.array([[4, 5, 6, 4, 1], [6, 1, 0, 0, 0]], "int32")
    plain = ops.convert_to_numpy(rollout.token_log_probs(*map(ops.convert_to_tensor, (ids, mask, completions))))

    def fused(query, key, value, **settings):
        lengths.extend(array.shape[1] for array in (query, key, value))
        return attend(query, key, value, **settings)

    attend = ops.dot_product_attention
    monkeypatch.setattr(ops, "dot_product_attention", fused)
    monkeypatch.setattr(type(policy.backbone.transformer_layers[0].attention), "_use_fused_attention_op", lambda self: True)
    two = np.repeat(completions, 2, axis=0)  # two a prompt: 7 columns are read, then 6 from there on
    apart = ops.convert_to_numpy(rollout.token_log_probs(*map(ops.convert_to_tensor, (ids, mask, two))))
    assert lengths
    assert not any(length % 2 for length in lengths)
    np.testing.assert_allclose(apart[::2], plain, rtol=0, atol=64 * np.finfo("float32").eps * np.abs(plain).max())
