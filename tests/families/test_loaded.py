"""Checkpoints that `transformers` has written, loaded as real ones are: our log-probs are those of `transformers`."""

import numpy as np
import pytest
import test_export
import torch
import transformers

from keras_bond import export, presets
from keras_bond.rollout import Rollout, weights_of

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("kind", [kind for kind in test_export.MODELS if kind != "mistral"])  # KerasHub's own logits differ
def test_a_loaded_checkpoint_is_scored_as_transformers_scores_it(kind, tmp_path, to_numpy):
    export.to_transformers(test_export.MODELS[kind](), tmp_path / "made")  # for its sizes and its tokenizer
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(str(tmp_path / "made"))
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms, which are 0 and 1 in a new model, too
            parameter.add_(0.2 * torch.randn(parameter.shape))
    theirs.generation_config = transformers.GenerationConfig(eos_token_id=[1, 5])
    theirs.save_pretrained(str(tmp_path / "made"))

    policy = presets.load(tmp_path / "made")
    rollout = Rollout(policy, 8, 5)
    assert rollout.family.name == ("gemma" if kind.startswith("gemma") else "llama")
    texts = ["ab", "c", "abcab"] if kind.startswith(("gemma", "mistral")) else ["we", "I", "we will"]
    encoded, size = rollout.encode(texts), config.get_text_config().vocab_size
    completions = np.random.default_rng(0).integers(3, size, (3, 5)).astype("int32")
    found = to_numpy(rollout.score(weights_of(policy), *rollout.pad(encoded), completions))
    for row, prompt, completion in zip(found, encoded, completions, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([[*prompt, *completion.tolist()]])).logits[0].double()
        expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].numpy()[np.arange(5), completion]
        np.testing.assert_allclose(row, expected, atol=1e-4 * max(1.0, float(logits.abs().max())))
    assert {1, 5, policy.preprocessor.tokenizer.end_token_id} <= {*rollout.stop_token_ids}
