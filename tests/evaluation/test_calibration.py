"""The calibration table, on predictions that are known."""

import numpy as np
import pytest
import tiny

from keras_bond.callbacks import EvaluateEvery
from keras_bond.evaluation import Evaluator, calibration

PROMPTS = ["ab", "c", "bca", "aab"] * 15


class Oracle:
    """Predicts what counting will find, plus a shift."""

    def __init__(self, evaluation, shift):
        rewards, reference = evaluation.samples.rewards, evaluation.reference_samples.rewards
        self.answers = iter(np.mean(reference[:, None] <= rewards[..., None], axis=2).T + shift)
        self.asked = []

    def predict(self, *arguments):
        self.asked.append([np.asarray(a).shape for a in arguments])
        return next(self.answers)


def test_calibration_compares_prediction_and_count_by_decile():
    policy = tiny.causal_lm()
    evaluator = Evaluator(
        policy, None, tiny.letters_reward, PROMPTS, num_samples=2, num_reference_samples=8, batch_size=16,
        max_prompt_length=4, max_completion_length=3,
    )  # fmt: skip
    evaluation = evaluator()
    oracle = Oracle(evaluation, shift=0.125)
    table = calibration(oracle, evaluator.rollout, evaluation)
    assert oracle.asked == [[(60, 4), (60, 4), (60, 3), (60, 3)]] * 2
    assert [part.size for part in table] == [12] * 10
    assert np.all(np.diff([part.predicted for part in table]) >= 0)
    for part in table:
        assert part.predicted - part.empirical.value == pytest.approx(0.125)
        assert part.empirical.low <= part.empirical.value <= part.empirical.high
    rewards = evaluation.samples.rewards.copy()
    rewards[:, 1] = np.nan  # half of them have no reward
    half = evaluation._replace(samples=evaluation.samples._replace(rewards=rewards))
    table = calibration(Oracle(evaluation, shift=0.125), evaluator.rollout, half)
    assert [part.size for part in table] == [6] * 10
    for part in table:
        assert part.predicted - part.empirical.value == pytest.approx(0.125)
    with pytest.raises(ValueError, match=r"`bins` must be an integer of at least 1\. Received: bins=0"):
        calibration(oracle, evaluator.rollout, evaluation, bins=0)
    with pytest.raises(ValueError, match=r"`num_samples` must be an integer of at least 1\. Received: num_samples=0"):
        evaluator(0)
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1\. Received: every=0"):
        EvaluateEvery(evaluator, 0)
    with pytest.raises(ValueError, match=r"`bins` may be at most the number of samples, 120\. Received: bins=121"):
        calibration(oracle, evaluator.rollout, evaluation, bins=121)
