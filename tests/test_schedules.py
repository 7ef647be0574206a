import keras
import numpy as np
import pytest

from keras_bond.schedules import LinearWarmup, PerUpdate


def test_linear_warmup():
    schedule = LinearWarmup(3e-6, 100)
    np.testing.assert_allclose(
        [float(schedule(s)) for s in (0, 49, 99, 100, 5000)], [3e-8, 1.5e-6, 3e-6, 3e-6, 3e-6], rtol=1e-5
    )
    optimizer = keras.optimizers.Adam(keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule)))
    assert float(optimizer.learning_rate) == pytest.approx(3e-8)


@pytest.mark.parametrize(("arguments", "name"), [((0, 10), "learning_rate"), ((1e-3, 0), "warmup_steps")])
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        LinearWarmup(*arguments)


def test_an_update_has_at_least_one_step():
    with pytest.raises(ValueError, match=r"`steps` must be an integer of at least 1\. Received: steps=0"):
        PerUpdate(LinearWarmup(1e-3, 10), 0)
