import types

import keras
import pytest
import tiny

if keras.config.backend() != "jax":
    pytest.skip("keras_bond.scale is JAX's", allow_module_level=True)

from keras_bond import scale

DEVICES = [f"cpu:{i}" for i in range(8)]  # only counted


def mesh(shape=(2, 4), axes=("batch", "model")):
    return keras.distribution.DeviceMesh(shape, axes, DEVICES)


def policy(kind="gemma", **config):
    return tiny.causal_lm(kind, **{"alphabet": "abcd", "num_query_heads": 4, "head_dim": 8, **config})


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_every_variable_has_one_layout_and_kernels_are_split(kind, lora):
    model = policy(kind, lora=lora)
    layouts = scale.layout_map(model, mesh())
    split = 0
    for variable in model.variables:
        axes = layouts[variable.path].axes  # raises where two rules match
        assert len(axes) == len(variable.shape)
        assert all(variable.shape[i] % 4 == 0 for i, axis in enumerate(axes) if axis == "model")
        split += "model" in axes
        if variable.name in ("kernel", "embeddings"):
            assert axes.count("model") == 1, variable.path
        if variable.name == "scale":
            assert tuple(axes) == (None,)
    assert split >= 8


def axes(layouts, name):
    return tuple(layouts[f"decoder_block_0/{name}"].axes)


def test_which_axes():
    layouts = scale.layout_map(policy(num_key_value_heads=1), mesh())
    assert tuple(layouts["token_embedding/embeddings"].axes) == ("model", None)
    assert axes(layouts, "attention/query/kernel") == ("model", None, None)
    assert axes(layouts, "attention/key/kernel") == (None, "model", None)  # one head: the width is split
    assert axes(layouts, "attention/attention_output/kernel") == ("model", None, None)
    assert axes(layouts, "ffw_gating/kernel") == axes(layouts, "ffw_gating_2/kernel") == (None, "model")
    assert axes(layouts, "ffw_linear/kernel") == ("model", None)


def test_lora_follows_its_kernel_whatever_it_is_enabled_on():
    model = policy()
    model.backbone.enable_lora(
        2, target_layer_names=["query", "attention_output", "ffw_gating", "ffw_linear", "token_embedding"]
    )
    layouts = scale.layout_map(model, mesh())
    found = {v.path: tuple(layouts[v.path].axes) for v in model.trainable_variables}
    assert found == {
        "token_embedding/lora_embeddings_a": ("model", None),
        "token_embedding/lora_embeddings_b": (None, None),
        "decoder_block_0/attention/query/lora_kernel_a": ("model", None, None),
        "decoder_block_0/attention/query/lora_kernel_b": (None, None),
        "decoder_block_0/attention/attention_output/lora_kernel_a": ("model", None, None),
        "decoder_block_0/attention/attention_output/lora_kernel_b": (None, None),
        "decoder_block_0/ffw_gating/lora_kernel_a": (None, None),
        "decoder_block_0/ffw_gating/lora_kernel_b": (None, "model"),
        "decoder_block_0/ffw_linear/lora_kernel_a": ("model", None),
        "decoder_block_0/ffw_linear/lora_kernel_b": (None, None),
    }


def test_what_no_axis_can_be_split_in_is_whole():
    layouts = scale.layout_map(policy(alphabet="abc", hidden_dim=6), mesh())
    assert tuple(layouts["token_embedding/embeddings"].axes) == (None, None)


def test_an_abstract_policy_has_the_same_layouts():
    import keras_hub

    def build():
        sizes = {"num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "head_dim": 8}
        return keras_hub.models.GemmaBackbone(vocabulary_size=8, num_layers=2, **sizes)

    backbone = scale.abstract(build)
    assert [v.path for v in backbone.variables] == [v.path for v in build().variables]
    layouts, other = (scale.layout_map(model, mesh()) for model in (backbone, build()))
    assert {k: layouts[k].axes for k in layouts} == {k: other[k].axes for k in other}


def test_a_variable_without_a_rule_is_named():
    other = types.SimpleNamespace(variables=[keras.Variable([1.0, 2.0, 3.0], name="gate")])
    with pytest.raises(ValueError) as error:
        scale.layout_map(other, mesh())
    assert str(error.value) == (
        "`layout_map` has no rule for the variable `gate` of shape (3,), which would be whole on every chip. "
        "Expected the variables of a Gemma, Gemma 2 or Gemma 3 text model, with LoRA or without, not quantized. Add your "
        "own rule to a `keras.distribution.LayoutMap`."
    )


def test_a_wrong_mesh_is_refused():
    with pytest.raises(
        ValueError, match=r"^`model_axis` must name an axis of the mesh, one of \['batch', 'tensor'\]. Received"
    ):
        scale.layout_map(policy(), mesh(axes=("batch", "tensor")))
    assert scale.layout_map(policy(), mesh(axes=("batch", "tensor")), model_axis="tensor")
    with pytest.raises(ValueError, match=r"^`mesh` must be a `keras.distribution.DeviceMesh`\. Received: mesh=8"):
        scale.layout_map(policy(), 8)
