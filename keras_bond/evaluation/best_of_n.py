"""What Best-of-N sampling itself reaches, read off samples of the reference."""

import itertools

import numpy as np

from keras_bond.ops import best_of_n_kl


def best_of_n_points(rewards, ns=(2, 4)):
    """Win rate and reward of Best-of-n against the reference, from k reference samples per prompt.

    Every choice of n of the k samples is compared with the k - n others: unbiased, ties counting half.

    Args:
        rewards: (P, k) array, k > max(ns).
        ns: the values of n.

    Returns:
        A list of dicts with `n`, `win_rate`, `reward` and `kl`, the bound log n - (n - 1)/n in nats.

    Raises:
        ValueError: if there are too few samples for an n.

    Example:

    >>> best_of_n_points(np.array([[0.0, 1.0, 2.0]]), ns=[2])[0]["win_rate"]
    0.6666666666666666
    """
    rewards = np.asarray(rewards, "float64")
    points = []
    for n in ns:
        if n >= rewards.shape[1]:
            raise ValueError(f"Best-of-{n} needs more than {n} samples per prompt. Received: {rewards.shape[1]}")
        wins, bests = [], []
        for chosen in itertools.combinations(range(rewards.shape[1]), n):
            best = rewards[:, chosen].max(axis=1, keepdims=True)
            others = np.delete(rewards, chosen, axis=1)
            wins.append(np.mean((best > others) + 0.5 * (best == others)))
            bests.append(best.mean())
        points.append({"n": n, "win_rate": float(np.mean(wins)), "reward": float(np.mean(bests)), "kl": best_of_n_kl(n)})
    return points
