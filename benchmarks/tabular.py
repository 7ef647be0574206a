"""How near the frontier do the algorithms stay without gradient noise? Exact gradients on an enumerable problem.

    python benchmarks/tabular.py

100 equally likely completions without ties, natural gradient descent on the logits along each algorithm's expected gradient.
Prints frontier efficiency where the win rate passes 0.6, 0.7, 0.8 and 0.9, and writes `tabular.json` beside this file.
"""

import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from common import print_table, provenance

from keras_bond import BOND, JBOND, BestOfNSFT, IterativeBOND, Reinforce, tabular

REWARDS = np.arange(100.0)
MARKS = (0.6, 0.7, 0.8, 0.9)
RUNS = [
    *((f"J-BOND, beta {b:g}, gamma {g:g}", JBOND, {"beta": b, "gamma": g}) for b in (0.0, 0.5, 1.0) for g in (0.0, 1.0)),
    ("BOND, N 4, beta 0.5", BOND, {"n": 4}),
    ("BOND, N 16, beta 0.5", BOND, {"n": 16}),
    ("iterative BOND, n 2, period 200", IterativeBOND, {"n": 2, "period": 200}),
    ("Best-of-N SFT, N 16", BestOfNSFT, {"n": 16}),
    ("REINFORCE, beta_RL 1", Reinforce, {"beta_rl": 1.0}),
]


def main():
    rows, runs = [], []
    for name, algorithm, settings in RUNS:
        path = tabular.train(
            algorithm, REWARDS, steps=1000, learning_rate=0.02 if algorithm is not Reinforce else 0.002, **settings
        )
        figures = tabular.progress(path)
        win, efficiency = figures["win_rate"], figures["frontier_efficiency"]
        at = {mark: float(efficiency[np.argmax(win >= mark)]) if win.max() >= mark else None for mark in MARKS}
        rows.append([name, *("not reached" if e is None else f"{e:.3f}" for e in at.values()), f"{win[-1]:.3f}"])
        runs.append({"name": name, "settings": settings, "efficiency_at_win_rate": at, "final_win_rate": float(win[-1])})
    print_table(["algorithm", *(f"at {mark}" for mark in MARKS), "last win rate"], rows)
    pathlib.Path(__file__).with_name("tabular.json").write_text(json.dumps({**provenance(), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
