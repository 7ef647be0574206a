"""What another backend than the three is told."""

import importlib

import keras
import pytest

from keras_bond.rollout.functional import Program
from keras_bond.trainers import backend

pytestmark = pytest.mark.any_backend


def test_another_backend_is_refused(monkeypatch):
    from keras_bond import scale

    monkeypatch.setattr(keras.config, "backend", lambda: "numpy")
    with pytest.raises(ValueError, match=r"runs on the backends jax, tensorflow and torch: set KERAS_BACKEND .* numpy$"):
        importlib.reload(backend)
    with pytest.raises(ValueError, match=r"^keras_bond runs on the backends jax, tensorflow and torch\. Received: numpy$"):
        Program(abs)
    with pytest.raises(ValueError, match=r"^keras_bond\.scale needs JAX: .* Received: numpy$"):
        importlib.reload(scale)
