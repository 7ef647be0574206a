"""What a notebook leaves in its folder for `sweep` and `report`: the contract between them.

A notebook that can be swept has a parameters cell with at least `seed`, `output` (a folder) and `profile`, and writes there

| file | a row for each | columns |
|---|---|---|
| `metrics.csv` | update | `step` (1, 2, ...), then the trainer's logs: `reward`, `kl_reference`, ... |
| `evaluation.csv` | held-out evaluation along the run | `step`, then for each estimate `NAME`, `NAME_low`, `NAME_high` |
| `best_of_n.csv` | N | `n`, `win_rate`, `reward`, `kl`: Best-of-n of the reference |

The estimates have the names of `keras_bond.evaluation`: `reward`, `win_rate`, `kl`, `frontier_efficiency`, ...; an empty
field is a figure that there is not. Further columns and files are welcome. `write_results` writes all three.
"""

import pathlib

import pandas as pd

from keras_bond.experiments.provenance import device

PARAMETERS = ("seed", "output", "profile")
FILES = ("metrics.csv", "evaluation.csv", "best_of_n.csv")
_ENDS = ("", "_low", "_high")


def write_results(output, rows, path, points):
    """Write the three files of the contract, and `device.txt`: what it ran on.

    Args:
        output: the folder; made where it is missing.
        rows: list of dicts, one per update, with `step`: `Run.rows`.
        path: list of (step, `Evaluation`): `Run.path`.
        points: list of dicts with `n`, `win_rate`, `reward`, `kl`, as `evaluation.best_of_n_points` returns them.
    """
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    evaluations = [
        {"step": step} | {name + end: v for name, e in evaluation.estimates.items() for end, v in zip(_ENDS, e, strict=True)}
        for step, evaluation in path
    ]
    for name, table in zip(FILES, (rows, evaluations, points), strict=True):
        pd.DataFrame(table).to_csv(output / name, index=False)
    (output / "device.txt").write_text(device() + "\n", encoding="utf-8")
