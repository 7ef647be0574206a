"""Which family runs which model."""

from keras_bond.families.gemma import Gemma
from keras_bond.families.generic import Generic
from keras_bond.families.llama import Llama

FAMILIES = {family.name: family for family in (Gemma, Llama, Generic)}
"""By name. The first that knows a model runs it; `Generic` runs all."""


def of(causal_lm, name="auto"):
    """The family that runs a model: an object with `.name`.

    Args:
        causal_lm: a KerasHub `CausalLM`.
        name: `"auto"`, the fastest that is known, or the name of one: `"gemma"` (Gemma 1, 2, 3), `"llama"` (Llama 2 and 3,
            Mistral, Qwen 2, 2.5 and 3, Phi-3, SmolLM3), or `"generic"`, which runs every model.

    Returns:
        A `Family`.

    Raises:
        ValueError: if there is no family of this name, or it does not run this model.

    Example:

    >>> import keras_hub, keras_bond
    >>> policy = keras_hub.models.CausalLM.from_preset(keras_bond.presets.path("tiny_gemma"))
    >>> keras_bond.families.of(policy).name, keras_bond.families.of(policy, "generic").name
    ('gemma', 'generic')
    """
    backbone = getattr(causal_lm, "backbone", None)
    if not hasattr(causal_lm, "call_with_cache") or backbone is None:
        raise ValueError(
            "The policy must be a KerasHub `CausalLM`, such as `keras_hub.models.CausalLM.from_preset(...)`. "
            f"Received: {type(causal_lm).__name__} with backbone {type(backbone).__name__}"
        )
    if getattr(backbone, "use_bidirectional_attention", False):
        raise ValueError(
            "The policy must be a model that writes, each of whose tokens sees those before it. Received: a backbone "
            "that embeds texts, with use_bidirectional_attention=True"
        )
    if name == "auto":
        return next(family for family in FAMILIES.values() if _knows(family, backbone))(causal_lm)
    if name not in FAMILIES:
        raise ValueError(f'`family` must be "auto" or one of {", ".join(FAMILIES)}. Received: family={name!r}')
    if not _knows(FAMILIES[name], backbone):
        raise ValueError(
            f'The family "{name}" does not run this model: take `family="generic"`. Received: a {type(backbone).__name__}'
        )
    return FAMILIES[name](causal_lm)


def _knows(family, backbone):
    """Whether the family runs the backbone: its layers must be KerasHub's own, for their parts are run, not their `call`."""
    if family is Generic:
        return True
    if not isinstance(backbone, family.backbones) or getattr(backbone, "vision_encoder", None) is not None:
        return False
    return all(type(layer).__module__.startswith("keras_hub.") for layer in backbone.transformer_layers)
