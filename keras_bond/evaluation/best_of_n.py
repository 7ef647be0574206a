"""What Best-of-N sampling itself reaches, and how far a policy is from it, read off samples of the reference."""

import numpy as np
from keras import ops

from keras_bond.ops import best_of_n_kl, best_of_n_log_ratio, best_of_n_weights, monte_carlo_quantiles
from keras_bond.rewards import ranks


def best_of_n_points(rewards, ns=(2, 4)):
    """Win rate and reward of Best-of-n against the reference, from k reference samples per prompt.

    Every choice of n of the k samples is compared with the k - n others: unbiased, ties counting half.

    Args:
        rewards: (P, k) array, k > max(ns). NaN is a sample that has none: it counts nowhere, nor does a prompt with no more
            than n others.
        ns: the values of n.

    Returns:
        A list of dicts with `n`, `win_rate`, `reward` and `kl`, the bound log n - (n - 1)/n in nats.

    Raises:
        ValueError: if there are too few samples for an n.

    Example:

    >>> round(best_of_n_points(np.array([[0.0, 1.0, 2.0]]), ns=[2])[0]["win_rate"], 4)
    0.6667
    """
    rewards = np.asarray(rewards, "float64")
    points = []
    for n in ns:
        if n >= rewards.shape[1]:
            raise ValueError(f"Best-of-{n} needs more than {n} samples per prompt. Received: {rewards.shape[1]}")
        wins = []
        for j in range(rewards.shape[1]):  # the opponent of the best of n of the others
            one, others = rewards[:, [j]], np.delete(rewards, j, axis=1)
            won = _under_best_of_n(others, n, (others > one) + 0.5 * (others == one))
            wins.append(np.ma.masked_where(np.isnan(rewards[:, j]), won))
        figures = mean_there(np.ma.stack(wins, axis=1), axis=1), _under_best_of_n(rewards, n, rewards)
        win_rate, reward = (float(np.ma.filled(mean_there(figure), np.nan)) for figure in figures)
        points.append({"n": n, "win_rate": win_rate, "reward": reward, "kl": best_of_n_kl(n)})
    return points


def there(values):
    """A masked array without what is NaN, that of samples whose reward abstained."""
    return np.ma.masked_where(np.isnan(values), values)


def mean_there(values, axis=None):
    """The mean of what is not masked, masked where nothing is left. (NumPy's own also masks what is infinite.)

    >>> mean_there(there(np.array([[1.0, np.nan, 3.0], [0.0, np.nan, -np.inf], [np.nan] * 3])), axis=1).tolist()
    [2.0, -inf, None]
    """
    kept = ~np.ma.getmaskarray(values)
    count = kept.sum(axis=axis)
    with np.errstate(invalid="ignore"):  # of both infinities
        total = np.where(kept, np.ma.getdata(values), 0).sum(axis=axis, dtype="float64")
    return np.ma.masked_where(count == 0, total / np.maximum(count, 1))


def quantiles(rewards, reference_rewards, smoothing=0.0):
    """(p_<, p_<=) of every sample among the reference's of its prompt: (P, m), (P, k) -> two masked arrays (P, m).

    Rewards of NaN count nowhere. What has none, or nothing to be compared with, is masked.

    >>> [p.tolist() for p in quantiles(np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]]))]
    [[[0.0, 0.5]], [[0.5, 0.5]]]
    """
    m = rewards.shape[1]
    ranked = ranks(np.concatenate([rewards, reference_rewards], axis=1))  # a backend compares in float32
    each = np.repeat(ranked[:, m:], m, axis=0)
    found = monte_carlo_quantiles(ranked[:, :m].ravel(), each, smoothing)
    return [there(ops.convert_to_numpy(p).reshape(rewards.shape)) for p in found]


def forward_kl(reference, n):
    """KL(pi_BoN || pi) in nats, an estimate per prompt from k > n samples of the reference.

        sum_i w_i [ log pi_BoN(y_i)/pi_ref(y_i) + log pi_ref(y_i) - log pi(y_i) ]

    with w of `ops.best_of_n_weights`; a sample's quantiles are those among all k, itself one of its equals.

    Args:
        reference: `Samples` of the reference, their `log_probs` under the policy included.
        n: the N of Best-of-N.

    Returns:
        (P,) masked array, without the prompts where fewer than n samples have a reward.

    Source: BOND, section 4 and figure 2 (32 samples); the weights are ours.
    """
    log_ratio = _log_ratio(reference.rewards, reference.rewards, n) + reference.reference_log_probs - reference.log_probs
    return _under_best_of_n(reference.rewards, n, log_ratio)


def backward_kl(samples, reference, n):
    """KL(pi || pi_BoN) in nats, an estimate per prompt from samples of the policy and k > n of the reference.

        mean_y [ KL(pi || pi_ref) along y - log pi_BoN(y)/pi_ref(y) ]

    with the exact per-token KL, and quantiles (count + 1)/(k + 1), which keep it finite where the policy does worse than all
    k samples, and bias it downwards there.

    Args:
        samples: `Samples` of the policy.
        reference: `Samples` of the reference.
        n: the N of Best-of-N.

    Returns:
        (P,) masked array, without the prompts where no sample has a reward, or none of the reference's.

    Source: BOND, section 4 and figure 2 (32 samples).
    """
    return mean_there(samples.kl - _log_ratio(samples.rewards, reference.rewards, n, smoothing=1.0), axis=1)


def _under_best_of_n(rewards, n, values):
    """The mean of `values` (P, k) over the best of every choice of n samples that have a reward: (P,), masked array."""
    weights = ops.convert_to_numpy(best_of_n_weights(ranks(rewards), n))
    with np.errstate(invalid="ignore"):  # 0 times minus infinity, of what is never the best
        return np.ma.masked_where(~(weights > 0), weights * values).sum(axis=1)


def _log_ratio(rewards, reference_rewards, n, smoothing=0.0):
    p_less, p_less_equal = (np.ma.filled(p, np.nan) for p in quantiles(rewards, reference_rewards, smoothing))
    return there(ops.convert_to_numpy(best_of_n_log_ratio(p_less, p_less_equal, n)))


def check_best_of_n(best_of_n, num_reference_samples):
    """`best_of_n` must be `None`, or an integer of at least 2 with more reference samples than that."""
    if best_of_n is None:
        return
    if not isinstance(best_of_n, int) or best_of_n < 2:
        raise ValueError(f"`best_of_n` must be an integer of at least 2, or None. Received: best_of_n={best_of_n!r}")
    if num_reference_samples <= best_of_n:
        raise ValueError(
            f"`num_reference_samples` must be above `best_of_n`={best_of_n}, whose quantiles they estimate: raise it, the "
            f"paper takes 32. Received: num_reference_samples={num_reference_samples}"
        )
