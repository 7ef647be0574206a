"""LoRA beside the kernels: the same function as Keras' sum, less rounding, no sum, and one pass for several adapters."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.rollout import Rollout, Weights, weights_of
from keras_bond.rollout.adapters import differ_in_adapters_alone, join_sides, set_products, split_sides

PROMPTS = ["ab", "c", "abcab"]


def with_adapter(layer, shape, alpha=3.0, seed=0):
    """`layer`, built, with LoRA of rank 2 and random factors."""
    layer.build(shape)
    layer.enable_lora(2, lora_alpha=alpha)
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(rng.standard_normal(variable.shape))
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dense(5),
        keras.layers.EinsumDense("btd,ndh->btnh", (None, 3, 4), bias_axes="nh"),
        keras.layers.EinsumDense("btnh,nhd->btd", (None, 6)),
    ],
    ids=["Dense", "query", "output"],
)
def test_beside_its_kernel_an_adapter_is_what_keras_adds(layer, to_numpy):
    shape = (2, 3, 4, 5) if "btnh," in getattr(layer, "equation", "") else (2, 3, 5)
    layer = with_adapter(layer, shape)
    inputs = np.random.default_rng(1).standard_normal(shape, "float32")
    expected = to_numpy(layer(inputs))
    set_products(keras.Sequential([layer]))
    assert "call" in vars(layer)
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, rtol=1e-5, atol=1e-5)


def test_what_a_bfloat16_sum_would_round_away_is_kept(to_numpy):
    """W is 1 and A B is 2^-10, a quarter of the step of bfloat16 at 1."""
    layer = with_adapter(keras.layers.Dense(1, use_bias=False, dtype="bfloat16"), (1, 2), alpha=2.0)
    layer._kernel.assign([[1.0], [1.0]])
    layer.lora_kernel_a.assign([[1.0, 0.0], [0.0, 0.0]])
    layer.lora_kernel_b.assign([[2.0**-10], [0.0]])
    inputs = ops.convert_to_tensor([[1.0, -1.0]], "bfloat16")
    assert to_numpy(ops.cast(layer(inputs), "float32")) == 0.0
    set_products(keras.Sequential([layer]))
    assert ops.dtype(layer(inputs)) == "bfloat16"
    assert to_numpy(ops.cast(layer(inputs), "float32")) == 2.0**-10


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_a_model_with_adapters_beside_is_the_one_with_the_sums(kind, to_numpy):
    model = tiny.causal_lm(kind, lora=2)
    inputs = {"token_ids": np.array([[2, 4, 5, 6]]), "padding_mask": np.ones((1, 4))}
    expected = to_numpy(model(inputs))
    set_products(model)
    assert differ_in_adapters_alone(model)
    np.testing.assert_allclose(to_numpy(model(inputs)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_the_factors_may_be_finer_than_the_kernel(dtype, to_numpy):
    layer = with_adapter(keras.layers.EinsumDense("btd,ndh->btnh", (None, 3, 4), dtype=dtype), (2, 3, 5))
    inputs = np.random.default_rng(1).standard_normal((2, 3, 5), "float32")
    expected = to_numpy(ops.cast(layer(inputs), "float32"))
    set_products(keras.Sequential([layer]))
    assert ops.dtype(layer(inputs)) == "bfloat16"
    np.testing.assert_allclose(to_numpy(ops.cast(layer(inputs), "float32")), expected, atol=0.02 * np.abs(expected).max())


def trained_beside_an_adapter(model):
    model.backbone.get_layer("final_normalization").trainable = True


def embedding_adapted(model):
    model.backbone.token_embedding.trainable = True
    model.backbone.token_embedding.enable_lora(2)


def quantized(model):
    model.backbone.quantize("int8")


@pytest.mark.parametrize(
    ("lora", "change"),
    [(None, None), (2, trained_beside_an_adapter), (2, embedding_adapted), (2, quantized)],
    ids=["no LoRA", "a norm", "an embedding", "int8"],
)
def test_only_models_that_differ_in_adapters_beside_share_a_pass(lora, change):
    model = tiny.causal_lm(lora=lora)
    if change:
        change(model)
    set_products(model)
    assert not differ_in_adapters_alone(model)


def test_what_is_more_than_a_product_stays_with_keras():
    layers = [
        with_adapter(keras.layers.Dense(5, activation="relu"), (1, 5)),
        with_adapter(keras.layers.EinsumDense("btd,hd->bth", (None, 5)), (1, 2, 5)),
        with_adapter(keras.layers.EinsumDense("btd,d->btd", (None, 5)), (1, 2, 5)),
        with_adapter(keras.layers.EinsumDense("...d,df->...f", 5), (1, 2, 5)),
    ]
    with keras.RematScope("full"):  # JAX would remember the weights of the first call
        layers.append(with_adapter(keras.layers.Dense(5), (1, 5)))
    set_products(keras.Sequential(layers))
    assert not any("call" in vars(layer) for layer in layers)


def test_sides_are_split_by_prompt_and_joined_again(to_numpy):
    rows = np.arange(2 * 5 * 3).reshape(2 * 5, 3)
    own, others = split_sides(ops.convert_to_tensor(rows), [2, 3])
    np.testing.assert_array_equal(to_numpy(own), rows[[[0, 1], [5, 6]]])
    np.testing.assert_array_equal(to_numpy(others), rows[[[2, 3, 4], [7, 8, 9]]])
    np.testing.assert_array_equal(to_numpy(join_sides([own, others])), rows)


def policy_and_anchor(model, rng):
    """Sources for three prompts: two samples of `model`, four of one whose trained weights are half a unit away."""
    policy = weights_of(model)
    moved = [
        to + 0.5 * rng.standard_normal(to.shape).astype("float32") for to in map(ops.convert_to_numpy, policy.trainable)
    ]
    anchor = Weights([ops.convert_to_tensor(value) for value in moved], policy.frozen)
    return [(policy, rng.random((3, 2, 6), "float32")), (anchor, rng.random((3, 4, 6), "float32"))]


def assert_scored_as_sampled(rollout, sources, prompt, sampled, to_numpy):
    for (weights, uniforms), completions in zip(sources, sampled, strict=True):
        ids, mask = (np.repeat(field, uniforms.shape[1], axis=0) for field in prompt)
        scores, chosen = to_numpy(rollout.score(weights, ids, mask, completions.token_ids)), to_numpy(completions.mask)
        np.testing.assert_allclose(scores[chosen], to_numpy(completions.log_probs)[chosen], atol=1e-4)


@pytest.mark.parametrize("kind", tiny.on_all_backends(["gemma"], ["gemma", "gemma3"]))
@pytest.mark.parametrize("lora", [2, None])
def test_sources_sampled_together_are_as_each_alone(kind, lora, monkeypatch, to_numpy):
    """With LoRA in one loop, without it in one each; on every backend with the same uniforms."""
    model = tiny.causal_lm(kind, lora=lora)
    rng = np.random.default_rng(3)
    rollout = Rollout(model, 8, 6)
    prompt, sources = rollout.pad(rollout.encode(PROMPTS)), policy_and_anchor(model, rng)

    passes, sample = [], rollout._sample
    monkeypatch.setattr(rollout, "_sample", lambda sources, *prompt: passes.append(len(sources)) or sample(sources, *prompt))
    together = rollout.sample_each(sources, *prompt)
    assert passes == ([2] if lora else [1, 1])
    for source, completions in zip(sources, together, strict=True):
        (alone,) = rollout.sample_each([source], *prompt)
        np.testing.assert_array_equal(to_numpy(completions.token_ids), to_numpy(alone.token_ids))
        np.testing.assert_array_equal(to_numpy(completions.mask), to_numpy(alone.mask))
        chosen = to_numpy(alone.mask)
        np.testing.assert_allclose(to_numpy(completions.log_probs)[chosen], to_numpy(alone.log_probs)[chosen], atol=1e-4)
    assert_scored_as_sampled(rollout, sources, prompt, together, to_numpy)


@pytest.mark.parametrize("change", [quantized, trained_beside_an_adapter], ids=["int8", "a norm"])
def test_a_model_changed_after_its_rollout_was_made_is_sampled_apart(change, to_numpy, request):
    """In one pass the anchor's samples would come from the policy."""
    if change is quantized:
        request.getfixturevalue("xla_for_cpus")
    model = tiny.causal_lm(lora=2)
    rollout = Rollout(model, 8, 6)
    assert differ_in_adapters_alone(model)
    change(model)
    prompt, sources = rollout.pad(rollout.encode(PROMPTS)), policy_and_anchor(model, np.random.default_rng(3))
    assert_scored_as_sampled(rollout, sources, prompt, rollout.sample_each(sources, *prompt), to_numpy)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX's program")
def test_neither_the_sum_nor_its_gradient_exists():
    import jax
    import jax.extend

    model = tiny.causal_lm(lora=2, hidden_dim=6, head_dim=10)
    rollout = Rollout(model, 4, 3)
    prompt = rollout.pad(rollout.encode(["ab"]))
    kernel = model.backbone.transformer_layers[0].attention.query_dense._kernel.shape

    def loss(trainable):
        return ops.sum(rollout._score_function(Weights(trainable, []), *prompt, np.array([[4, 5, 6]])))

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from shapes(inner)

    made = list(shapes(jax.make_jaxpr(jax.grad(loss))([v.value for v in model.trainable_variables]).jaxpr))
    assert len(made) > 50
    assert kernel not in made
