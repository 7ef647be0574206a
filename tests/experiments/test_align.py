"""What every reproduction does, without the model: the notebooks' own test runs it with one."""

import pathlib

import numpy as np
import pytest

from keras_bond.experiments import align
from keras_bond.experiments.results import FILES

pytestmark = pytest.mark.any_backend


@pytest.fixture
def called(monkeypatch):
    """The arguments with which `align` is called instead of run."""
    calls = []

    def run(trainer, train, held_out, **settings):
        calls.append({"held_out": held_out, **settings})
        samples = type("Samples", (), {"rewards": np.random.default_rng(0).random((4, 8))})
        return align.Run(type("Evaluator", (), {"reference_samples": samples}), [{"step": 1, "reward": 0.5}], [])

    monkeypatch.setattr(align, "align", run)
    return calls


def test_the_smoke_profile_outranks_every_size(called, tmp_path):
    sizes = {"steps": 90, "batch_size": 64, "num_prompts": 100, "evaluations": 4, "seed": 3}
    align.align_bundled(None, tmp_path / "full", **sizes)
    align.align_bundled(None, tmp_path / "smoke", profile="smoke", **sizes)
    full, smoke = called
    assert (len(full.pop("held_out")), len(smoke.pop("held_out"))) == (100, 16)
    assert full == {"steps": 90, "batch_size": 64, "evaluations": 4, "seed": 3, "log": tmp_path / "full" / "metrics.csv"}
    assert smoke == {"steps": 2, "batch_size": 8, "evaluations": 1, "seed": 3, "log": tmp_path / "smoke" / "metrics.csv"}


def test_it_leaves_what_a_sweep_needs(called, tmp_path):
    run, points = align.align_bundled(None, str(tmp_path / "new" / "folder"), steps=1, best_of=(2, 4, 7))
    assert [point["n"] for point in points] == [2, 4, 7]
    assert run.rows == [{"step": 1, "reward": 0.5}]
    assert all((pathlib.Path(tmp_path) / "new" / "folder" / name).is_file() for name in FILES)


def test_a_profile_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"`profile` must be .full. or .smoke.\. Received: profile='smok'"):
        align.align_bundled(None, tmp_path, profile="smok", steps=1)
