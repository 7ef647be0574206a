"""A family is held to its model's own logits before it is used."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_bond.families.family import to_the_left, widened

ROUNDINGS = 32
"""How many roundings of the largest logit a log-probability may be off.

The same sums in another order differ by a few roundings of their largest summand, in each of many layers; a mistake, such as
a norm that is left out, is the size of the logits. 32 was chosen between the two, not fitted: in bfloat16 it is an eighth of
the largest logit, in float16 a 32nd.
"""

SMALLEST = 1e-4
"""What float32 may be off, as a share of the largest logit, where it is computed in full: 840 roundings."""

_PROVEN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""For each model the families that have been held to it, by name."""


def prove(family):
    """Compare a family's log-probabilities with those of its model's own logits, on a short ragged batch; once for a model.

        |log p_family(y_t | x, y_<t) - log p_model(y_t | x, y_<t)|  <=  max(32 eps, 1e-4) max(1, |largest logit|)

    for all tokens y_t of the vocabulary: of completions that are scored, and of tokens that are drawn with a cache. eps is
    the dtype's, or that in which the device multiplies float32. One small program, of two rows and three passes. Windows and
    positions beyond 5 tokens go unseen. A model without values, as of `keras_bond.scale.abstract`, is not proved.

    Args:
        family: a `Family`.

    Returns:
        The largest difference, in nats; `None` where there was nothing to compare, or it had been done before.

    Raises:
        ValueError: if the difference is larger than that, or not a number. The message says how large, and what to do.

    Example:

    >>> import keras_hub, keras_bond
    >>> policy = keras_hub.models.CausalLM.from_preset(keras_bond.presets.path("tiny_gemma"))
    >>> keras_bond.families.prove(keras_bond.families.of(policy)) < 1e-4
    True
    """
    model = family.causal_lm
    proven = _PROVEN.setdefault(model, set())
    if family.name in proven or not _has_values(model):
        return None
    proven.add(family.name)
    difference, largest = _compiled(family)
    allowed = max(ROUNDINGS * _epsilon(model.compute_dtype), SMALLEST) * max(1.0, largest)
    if difference <= allowed:
        return difference
    proven.discard(family.name)
    way_out = (
        "The model's cache and its own logits say different things, so no family can run it."
        if family.name == "generic"
        else f'Pass `family="generic"`, which calls the model itself, or `family=keras_bond.families.of(policy, '
        f'"{family.name}")` to go on unproved.'
    )
    raise ValueError(
        f'The family "{family.name}" must give the log-probabilities of the policy\'s own logits, to {allowed:.2g} nats '
        f"in {model.compute_dtype}. Received: a {type(model).__name__}, for which they are {difference:.2g} nats apart. "
        f"{way_out}"
    )


def _epsilon(dtype):
    """The spacing of numbers at 1 of what is multiplied: a TPU takes float32 as bfloat16, a GPU may take it as TF32."""
    from keras_hub.src.utils import keras_utils as device

    full = 2.0**-8 if device.running_on_tpu() else 2.0**-11 if device.running_on_gpu() else 2.0**-23
    return {"float16": 2.0**-10, "bfloat16": 2.0**-8}.get(dtype, full)


def _has_values(model):
    variable = model.variables[0].value
    if keras.config.backend() != "jax":
        return True
    import jax

    return isinstance(variable, jax.Array) and not isinstance(variable, jax.core.Tracer)


def _compiled(family):
    """`_difference` as numbers; on JAX as one program, for its operations one by one would be a compilation each."""
    if keras.config.backend() != "jax":
        numbers = _difference(family)
    else:
        import jax

        variables = family.causal_lm.variables

        def program(values):
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return _difference(family)

        numbers = jax.jit(program)([variable.value for variable in variables])
    return tuple(float(ops.convert_to_numpy(number)) for number in numbers)


def _difference(family):
    """(largest difference of log-probabilities, largest logit) over the vocabulary."""
    model, size = family.causal_lm, family.vocabulary_size
    rows = np.arange(10).reshape(2, 5) * 7919 % size  # two prompts, of 1 and of 3 tokens, and completions of 2
    prompt_ids, completion_ids = (ops.convert_to_tensor(part, "int32") for part in (rows[:, :3], rows[:, 3:]))
    mask = ops.convert_to_tensor([[0, 0, 1], [1, 1, 1]], "int32")
    ids = ops.concatenate([prompt_ids, completion_ids], axis=1)
    ids, lengths = to_the_left(ids, widened(mask, 2, 1))
    padding = ops.cast(ops.arange(5, dtype="int32") < ops.expand_dims(lengths, 1), "int32")
    own = model({"token_ids": ids, "padding_mask": padding}, training=False)
    places = ops.expand_dims(lengths - 3, 1) + ops.arange(2, dtype="int32")
    own = ops.take_along_axis(own, ops.expand_dims(places, 2), axis=1)  # (2, 2, V): after a prompt, and one token more
    scored = family.logits(family.hidden(prompt_ids, mask, completion_ids))
    drawn = _drawn(family, prompt_ids, mask, completion_ids)
    own, scored, drawn = (ops.cast(logits, "float32") for logits in (own, scored, drawn))
    expected = ops.log_softmax(own)
    found = ops.stack([ops.log_softmax(scored), ops.log_softmax(drawn)])
    return ops.max(ops.abs(found - expected)), ops.max(ops.abs(own))


def _drawn(family, prompt_ids, mask, completion_ids):
    """(2, 2, V): the logits of the tokens after each prompt, a token at a time with a cache, as in sampling."""
    if family.pads_left:
        cache = family.read(prompt_ids[:, :-1], mask[:, :-1])
        ids, columns = ops.concatenate([prompt_ids[:, -1:], completion_ids], axis=1), widened(mask, 1, 1)
        family.widen(cache, 2)
        first, places = 2, np.array([0, 0])
    else:
        ids, _ = to_the_left(ops.concatenate([prompt_ids, completion_ids], axis=1), widened(mask, 2, 1))
        cache, columns = family.read(ids[:, :0], mask[:, :0]), ops.ones((2, 4), "int32")
        family.widen(cache, 4)
        first, places = 0, np.array([0, 2])
    logits = []
    for step in range(columns.shape[1] - first):
        after, cache = family.step(ids[:, step], cache, ops.convert_to_tensor(first + step, "int32"), columns)
        logits.append(after)
    return ops.stack([ops.stack([logits[place + t][row] for t in (0, 1)]) for row, place in enumerate(places)])
