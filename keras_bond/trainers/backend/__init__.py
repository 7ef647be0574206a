"""What the backends do differently: how a step is compiled, and where gradients come from."""

import keras

if keras.config.backend() == "jax":
    from keras_bond.trainers.backend.jax import BackendTrainer, gradient, rows_here, rows_spread
elif keras.config.backend() == "tensorflow":
    from keras_bond.trainers.backend.one_device import rows_here, rows_spread
    from keras_bond.trainers.backend.tensorflow import BackendTrainer, gradient
elif keras.config.backend() == "torch":
    from keras_bond.trainers.backend.one_device import rows_here, rows_spread
    from keras_bond.trainers.backend.torch import BackendTrainer, gradient
else:
    raise ValueError(
        "keras_bond runs on the backends jax, tensorflow and torch: set KERAS_BACKEND to one of them before Keras is "
        f"imported. Received: {keras.config.backend()}"
    )

__all__ = ["BackendTrainer", "gradient", "rows_here", "rows_spread"]
