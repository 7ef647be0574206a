"""Models that have shapes and no memory."""

import jax


def abstract(build):
    """What `build()` returns, made without memory: its variables have paths, shapes, dtypes and layouts, but no values.

    Args:
        build: a function without arguments that makes Keras objects, such as a policy of billions of parameters.

    Example:

    ```python
    policy = keras_bond.scale.abstract(lambda: keras_hub.models.CausalLM.from_preset("gemma2_9b_en", load_weights=False))
    sum(math.prod(v.shape) for v in policy.variables)
    ```
    """
    made = []
    jax.eval_shape(lambda: made.append(build()))
    return made[0]
