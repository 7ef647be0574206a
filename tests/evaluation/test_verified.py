"""pass@k, majority vote and the price of accuracy, against enumeration and closed forms."""

import itertools

import numpy as np
import pytest
import tiny

from keras_bond.evaluation import evaluate, load, majority, pass_at, verified
from keras_bond.ops import accuracy_kl

pytestmark = pytest.mark.any_backend


def test_pass_at_k_is_the_share_of_choices_with_a_right_one():
    correct = (np.random.default_rng(0).random((6, 7)) < 0.3).astype(float)
    for k in (1, 2, 5, 7):
        expected = [np.mean([max(choice) for choice in itertools.combinations(row, k)]) for row in correct]
        np.testing.assert_allclose(pass_at(correct, k), expected, rtol=1e-12)
    abstained = np.where(np.arange(7) < 3, correct, np.nan)
    np.testing.assert_allclose(pass_at(abstained, 2), pass_at(correct[:, :3], 2))
    assert pass_at(abstained, 4).mask.all()


def test_pass_at_k_is_unbiased():
    rng, rate = np.random.default_rng(1), 0.2
    found = pass_at((rng.random((20000, 8)) < rate).astype(float), 3)
    assert abs(found.mean() - (1 - (1 - rate) ** 3)) < 4 * found.std() / np.sqrt(len(found))


def test_the_majority_votes():
    correct = np.array([[1.0, 1, 0], [1, 0, 0], [0, 1, np.nan], [np.nan] * 3])
    answers = [["a", "a", "b"], ["a", "b", "c"], ["a", "b", "b"], ["a"] * 3]
    found = majority(correct, answers)
    np.testing.assert_allclose(found[:3], [1, 1 / 3, 1 / 2])
    assert found.mask.tolist() == [False, False, False, True]
    assert majority(np.array([[1.0, 0, 0]]), [["a", None, None]]).tolist() == [1.0]


def test_accuracy_costs_what_the_tilted_reference_costs(to_numpy):
    rng = np.random.default_rng(2)
    reference = rng.dirichlet(np.ones(6))
    right = np.array([1.0, 0, 0, 1, 0, 0])
    base = reference @ right
    accuracy = 0.8 if base < 0.8 else 0.95
    best = reference * np.where(right == 1, accuracy / base, (1 - accuracy) / (1 - base))
    np.testing.assert_allclose(to_numpy(accuracy_kl(accuracy, base)), best @ np.log(best / reference), rtol=1e-5)
    for _ in range(100):  # no other policy of this accuracy is nearer
        other = rng.dirichlet(np.ones(6))
        other *= np.where(right == 1, accuracy / (other @ right), (1 - accuracy) / (1 - other @ right))
        assert other @ np.log(other / reference) >= to_numpy(accuracy_kl(accuracy, base)) - 1e-6
    np.testing.assert_array_equal(to_numpy(accuracy_kl([0.2, 0.5, 0.0, 1.0], [0.4, 0.5, 0.0, 1.0])), 0)
    assert np.isinf(to_numpy(accuracy_kl(0.1, 0.0)))
    np.testing.assert_allclose(to_numpy(accuracy_kl(1.0, 0.5)), np.log(2), rtol=1e-6)


def test_an_evaluation_with_a_verifier(tmp_path):
    def verifier(prompts, completions):
        return [float("a" in text) for text in completions]

    policy, reference = (tiny.causal_lm(seed=seed) for seed in (0, 1))
    settings = {"max_prompt_length": 8, "max_completion_length": 3, "num_samples": 3, "num_reference_samples": 2}
    result = evaluate(policy, reference, verifier, ["ab", "c", "bca", "b"], pass_at=(1, 3), **settings)
    names = {"pass@1", "pass@3", "majority@3", "reference_pass@1", "reference_majority@2", "accuracy_kl_efficiency"}
    assert names <= set(result.estimates)
    assert "reference_pass@3" not in result.estimates
    assert result.estimates["pass@1"].value == pytest.approx(result.estimates["reward"].value)
    assert result.estimates["pass@3"].value == np.mean(result.samples.rewards.max(axis=1))
    assert result.estimates["pass@1"].low <= result.estimates["pass@1"].value <= result.estimates["pass@1"].high
    result.save(tmp_path / "samples.csv")
    again = verified(load(tmp_path / "samples.csv"), (1, 3))
    assert str(again) == str({name: result.estimates[name] for name in again})  # NaN is not equal to itself

    with pytest.raises(ValueError, match=r"`pass_at` must be whole numbers of at most `num_samples`=3"):
        evaluate(policy, reference, verifier, ["ab"], pass_at=8, **settings)
    with pytest.raises(ValueError, match=r"`pass_at` needs a verifier, whose rewards are 0 and 1. Received: a reward of"):
        evaluate(policy, reference, tiny.letters_reward, ["ab", "c"], pass_at=1, **settings)
