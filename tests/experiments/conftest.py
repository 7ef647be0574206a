"""A notebook that keeps the contract of `experiments.results` without a model, and a sweep of it."""

import pytest
import yaml

PARAMETERS = """
profile = "full"
eta = 0.1
anchor = "ema"
mishap = ""  # "raises", "mute" or "killed"
tally = ""  # a file that gets a line from every run that ends
pause = ""  # a file: while it is there, nothing goes on, and there is another, `...d`
seed = 0
output = "runs"
"""

BODY = """
import csv, os, pathlib, random, signal, sys, time

pathlib.Path(output).mkdir(parents=True, exist_ok=True)
while pause and os.path.exists(pause):
    pathlib.Path(pause + "d").touch()
    time.sleep(0.05)
if mishap == "raises":
    raise ValueError(f"eta {eta} is broken")
if mishap == "killed":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if mishap == "mute":
    sys.exit()
noise = random.Random(f"{seed} {eta} {anchor}").gauss


def write(name, *rows):
    with open(os.path.join(output, name), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def row(step):
    kl = step * eta * (0.3 if anchor == "ema" else 0.4)
    figures = {"reward": 0.1 + kl + noise(0, 0.004), "win_rate": 0.5 + kl / 6 + noise(0, 0.004), "kl": kl}
    return {"step": step} | {k + end: v + d for k, v in figures.items() for end, d in (("", 0), ("_low", -1), ("_high", 1))}


write("metrics.csv", *({"step": s, "reward": noise(s * eta, 0.1), "kl_reference": s * eta / 4} for s in range(1, 31)))
write("evaluation.csv", *(row(step) for step in (0, 10, 20, 30)))
write("best_of_n.csv", *({"n": n, "win_rate": n / (n + 1), "reward": 0.1 * n, "kl": w} for n, w in ((2, 0.19), (4, 0.64))))
if tally:
    with open(tally, "a") as file:
        file.write(f"{anchor} {eta} {seed}\\n")
"""

SPEC = {
    "name": "ema",
    "notebook": "tiny.ipynb",
    "grid": {"eta": [0.05, 0.1]},
    "seeds": [0, 1],
    "findings": [
        {"figure": 6, "says": "A larger eta is faster.", "metric": "reward", "compare": [{"eta": 0.1}, {"eta": 0.05}]}
        | {"claim": "higher", "at": 20}
    ],
}


@pytest.fixture
def notebook(write_notebook, tmp_path, monkeypatch):
    """`tiny.ipynb` in `tmp_path`, which is where the test works."""
    monkeypatch.chdir(tmp_path)
    return write_notebook("tiny", PARAMETERS, BODY)


@pytest.fixture
def write_spec(notebook, tmp_path):
    """`write_spec(**changes)` -> path of a spec of four cells, with these keys changed; None removes one."""

    def write(**changes):
        path = tmp_path / "spec.yaml"
        spec = {key: value for key, value in {**SPEC, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    return write
