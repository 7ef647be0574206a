"""What an update needs in memory: against the real models' known sizes, and against arithmetic by hand."""

import keras
import keras_hub
import pytest

from keras_bond.experiments.memory import GIB, MARGIN, Device, Memory, memory, table_of
from keras_bond.experiments.plots import memory_figure

pytestmark = pytest.mark.any_backend

ON_JAX = pytest.mark.skipif(keras.config.backend() != "jax", reason="it traces with JAX")


@ON_JAX
@pytest.mark.parametrize("name", ["gemma_2b", "gemma_7b"])
def test_full_fine_tuning_of_the_real_sizes(name):
    need = memory(name, prompt_length=8, completion_length=8)
    parameters = keras_hub.models.GemmaCausalLM.presets[f"{name}_en"]["metadata"]["params"]
    assert need.parameters == parameters
    assert need.weights == need.gradients == 4 * parameters
    assert need.copies == 2 * parameters
    assert need.optimizer == pytest.approx(8 * parameters, abs=100)  # and its step and learning rate
    assert need.shadows == pytest.approx(8 * parameters, abs=100)


@ON_JAX
def test_with_lora_only_the_factors_are_trained():
    need = memory("gemma_2b", lora_rank=8, prompt_length=24, completion_length=8, n=4)
    factors = 18 * 8 * ((8 * 2048 + 256) + (2048 + 256))  # A and B of queries, of values
    assert need.parameters == 2506172416 + factors
    assert need.weights == 2 * 2506172416 + 4 * factors
    assert need.gradients == 4 * factors
    assert need.shadows == pytest.approx(8 * factors, abs=100)
    assert need.cache == (1 + 4) * 18 * 2 * 32 * 256 * 2  # rows, layers, keys and values, columns, head, bfloat16
    tokens = 23 + 2 * 8  # of the prompt, and of two completions with the prompt's last
    products = 18 * tokens * (2 * 2048 + 2 * 256 + 2 * 16384) * 2  # queries, keys, values, gates: the least to be kept
    assert products < need.activations < 6 * products
    layer = need.activations / 18  # the last keeps less of the prompt than the others
    assert layer < need.scored * tokens / (23 + 8) < 1.1 * layer
    assert need.read / need.scored == pytest.approx(2 * 23 / (23 + 8))


@ON_JAX
def test_a_model_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"one of gemma_2b, gemma_7b, .*\. Received: name='gemma_9b'"):
        memory("gemma_9b")


@pytest.fixture
def need():
    sizes = {"weights": 8, "optimizer": 2, "shadows": 2, "gradients": 1, "copies": 1, "logits": 0.5}
    per_prompt = {"activations": 1, "scored": 0.25, "read": 0.375, "cache": 0.5}
    return Memory(parameters=1, split_heads=4, **{key: size * GIB for key, size in (sizes | per_prompt).items()})


def test_the_parts_are_added(need):
    one, mesh = Device("one", 30), Device("mesh", 10, batch=2, model=4)
    assert need.held(one) == 12 * GIB
    assert need.updating(one, 3) == (12 + 2 + 0.5 + 3) * GIB
    assert need.sampling(one, 4) == (12 + 1 + 0.5 + 2) * GIB
    assert need.scoring(one, 4) == (12 + 1 + 0.5 + 1) * GIB
    assert need.updating(mesh, 4) == (3 + 0.5 + 0.5 + 2) * GIB
    assert need.sampling(mesh, 8) == (3 + 0.25 + 0.5 + 0.375 * 8 / 2) * GIB  # the cache is split by heads as well
    assert need.scoring(mesh, 8) == (3 + 0.25 + 0.5 + 0.25 * 8 / 2) * GIB
    assert need._replace(split_heads=1).sampling(mesh, 8) == (3 + 0.25 + 0.5 + 0.5 * 8 / 2) * GIB


def test_the_largest_settings_that_fit(need):
    one, limit = Device("one", 30), MARGIN * 30 * GIB
    assert need.settings(one) == (32, 16, 8)
    assert need.scoring(one, 32) <= limit < need.scoring(one, 64)
    assert need.sampling(one, 16) <= limit < need.sampling(one, 32)
    assert need.updating(one, 8) <= limit < need.updating(one, 16)
    assert need._replace(scored=10 * GIB).settings(one) == (1, 1, 1)  # no part is larger than the whole
    assert need.settings(Device("one", 300), 32) == (32, 32, 32)
    assert need.settings(Device("one", 13)) is None
    assert need.settings(Device("one", 16.5)) is None  # one prompt is sampled, none is trained on


def test_the_table_and_the_figure(need):
    rows = table_of({"ours": need, "theirs": need._replace(weights=90 * GIB)}, [Device("one", 30)])
    assert rows == [
        {
            "device": "one",
            "GiB a chip": 30,
            "model": "ours",
            "held": 12,
            "batch_size": "32",
            "sampling_batch_size": "16",
            "microbatch_size": "8",
            "sampling": "21.5",
            "updating": "22.5",
        },
        {
            "device": "one",
            "GiB a chip": 30,
            "model": "theirs",
            "held": 94,
            "batch_size": "does not fit",
            "sampling_batch_size": "",
            "microbatch_size": "",
            "sampling": "",
            "updating": "",
        },
    ]
    figure = memory_figure({"ours": need})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ours"]
