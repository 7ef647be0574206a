"""Whether a learned quantile says what counting says."""

from typing import NamedTuple

import numpy as np

from keras_bond._checks import check_at_least
from keras_bond.evaluation.best_of_n import quantiles
from keras_bond.evaluation.estimates import Estimate, bootstrap


class CalibrationBin(NamedTuple):
    """Completions whose predicted quantiles are neighbours."""

    size: int
    predicted: float
    """Their mean predicted p_<=."""
    empirical: Estimate
    """Their mean p_<= among the reference's samples, with its interval."""


def calibration(learned, rollout, evaluation, bins=10):
    """Predicted against empirical quantile, by decile of the prediction, on held-out prompts.

    The policy's samples are sorted by the p_<= that the model predicts, and cut into `bins` equal parts; in each the mean
    prediction stands beside the mean of #{i: r(y_i) <= r(y)} / k over the k reference samples of the same prompt.

    Samples whose reward abstained are left out.

    Args:
        learned: `keras_bond.quantiles.Learned`, of a trainer whose anchor is the evaluation's reference.
        rollout: that trainer's `rollout`.
        evaluation: `Evaluation` of the policy.
        bins: parts.

    Returns:
        List of `CalibrationBin`, in rising order of the prediction.

    Raises:
        ValueError: if there are fewer samples than `bins`.

    Example:

    ```python
    for part in keras_bond.evaluation.calibration(trainer.quantiles, trainer.rollout, evaluator()):
        print(f"{part.predicted:.2f} {part.empirical.value:.2f}")
    ```

    Source: BOND, figure 9, compares the two ways to train; this compares the estimates themselves.
    """
    samples, reference = evaluation.samples, evaluation.reference_samples
    _, empirical = quantiles(samples.rewards, reference.rewards)
    bins = check_at_least(1, bins=bins)
    if empirical.count() < bins:
        raise ValueError(f"`bins` may be at most the number of samples, {empirical.count()}. Received: bins={bins}")
    ids, mask = rollout.pad(rollout.encode(evaluation.prompts))
    columns = range(samples.rewards.shape[1])
    predicted = np.stack([learned.predict(ids, mask, samples.token_ids[:, j], samples.mask[:, j]) for j in columns], axis=1)
    predicted, empirical = predicted[~np.ma.getmaskarray(empirical)], empirical.compressed()
    result = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), bins):
        means = bootstrap({"p": empirical[part]}, seed=0)["p"]
        result.append(CalibrationBin(len(part), float(predicted[part].mean()), Estimate.of(means)))
    return result
