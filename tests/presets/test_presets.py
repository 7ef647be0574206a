"""The bundled preset is what its README says."""

import pathlib

import keras_hub
import numpy as np
import pytest

from keras_bond import presets
from keras_bond.rollout import Rollout, weights_of

FOLDER = pathlib.Path(presets.path("tiny_gemma"))


@pytest.mark.any_backend
def test_it_is_small():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) < 8e6


@pytest.mark.any_backend
def test_no_prompt_is_in_two_splits():
    splits = {name: presets.prompts("tiny_gemma", name) for name in ("train", "validation", "test")}
    together = [prompt for prompts in splits.values() for prompt in prompts]
    assert len(together) == len(set(together))
    assert len(splits["train"]) > 5000
    assert min(map(len, splits.values())) >= 512


def test_it_models_english(to_numpy):
    policy = keras_hub.models.CausalLM.from_preset(str(FOLDER))
    assert policy.compute_dtype == "float32"
    rollout = Rollout(policy, 16, 20)
    ids, mask = rollout.pad(rollout.encode(["We must", "We must"]))
    sentence, scrambled = (rollout.tokenizer(text) for text in (" work together for peace.", " peace for together work."))
    length = min(len(sentence), len(scrambled))
    completions = np.array([list(sentence)[:length], list(scrambled)[:length]], "int32")
    log_probs = to_numpy(rollout.score(weights_of(policy), ids, mask, completions)).sum(axis=1)
    assert log_probs[0] > log_probs[1] + 5
    assert log_probs[0] / length > -np.log(rollout.tokenizer.vocabulary_size()) / 2


@pytest.mark.any_backend
def test_unknown_names():
    with pytest.raises(ValueError, match=r"Expected one of \['tiny_gemma'\]. Received: 'gemma_2b_en'"):
        presets.path("gemma_2b_en")
    with pytest.raises(ValueError, match="`split` must be one of"):
        presets.prompts("tiny_gemma", "dev")
