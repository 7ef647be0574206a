"""What the callbacks keep, stop, show and write."""

import csv
import math
import sys

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import GRPO, JBOND
from keras_bond.callbacks import Checkpoint, KeepBest, KLBudget, SampleTable
from keras_bond.evaluation import Evaluator

pytestmark = [pytest.mark.any_backend, pytest.mark.filterwarnings("ignore:No completion of the first")]
PROMPTS = ["ab", "c", "bca", "aab", "cc"]
SIZES = {"max_prompt_length": 8, "max_completion_length": 4}


def trainer_of(kind=JBOND, rate=0.03, **kwargs):
    trainer = kind(tiny.causal_lm(), tiny.letters_reward, **SIZES, **kwargs)
    trainer.compile(keras.optimizers.SGD(rate))
    return trainer


def values(trainer):
    return [ops.convert_to_numpy(v.value) + 0 for v in trainer.policy.trainable_variables]


class Path(keras.callbacks.Callback):
    """The policy and the logs after every update."""

    def on_train_begin(self, logs=None):
        self.policies, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.model.sync()
        self.policies.append(values(self.model))
        self.logs.append({name: float(value) for name, value in logs.items()})


def test_a_budget_leaves_the_last_policy_within_it():
    trainer, path, budget = trainer_of(), Path(), KLBudget(0.05, every=2, window=3)
    trainer.fit(PROMPTS, batch_size=16, epochs=4, steps_per_epoch=10, verbose=0, callbacks=[path, budget])
    kl = [logs["kl_reference"] for logs in path.logs]
    means = {update: np.mean(kl[max(0, update - 3) : update]) for update in range(2, len(kl) + 1, 2)}
    beyond = [update for update, mean in means.items() if mean > 0.05]
    assert beyond == [len(kl)]  # the first look beyond it is the last update
    assert len(kl) < 40
    assert budget.kept_at == len(kl) - 2
    assert budget.value == pytest.approx(means[budget.kept_at], rel=1e-6)  # float32 logs
    for found, expected in zip(values(trainer), path.policies[budget.kept_at - 1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_run_within_its_budget_keeps_its_last_update():
    trainer, path, budget = trainer_of(), Path(), KLBudget(100, every=4)
    trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=6, verbose=0, callbacks=[path, budget])
    assert budget.kept_at == 6
    for found, expected in zip(values(trainer), path.policies[-1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_held_out_budget_is_the_evaluators_kl():
    trainer = trainer_of(rate=0.01)
    evaluator = Evaluator(trainer.policy, None, tiny.letters_reward, PROMPTS, batch_size=8, rollout=trainer.rollout)
    budget = KLBudget(0.05, evaluator=evaluator, every=1)
    trainer.fit(PROMPTS, batch_size=16, epochs=4, steps_per_epoch=10, verbose=0, callbacks=[budget])
    assert 0 < budget.value <= 0.05
    assert evaluator().estimates["kl"].value == budget.value  # of the policy that was left


def test_a_budget_that_was_never_kept_leaves_the_policy():
    trainer, path, budget = trainer_of(rate=3.0), Path(), KLBudget(1e-9, every=3, window=1)
    trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=20, verbose=0, callbacks=[path, budget])
    if budget.kept_at is None:
        np.testing.assert_array_equal(values(trainer)[0], path.policies[-1][0])
    with pytest.raises(ValueError, match=r"`nats` must be above 0\. Received: nats=0"):
        KLBudget(0)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_policy_is_left(mode):
    trainer, path, best = trainer_of(), Path(), KeepBest("reward", mode=mode, every=1, window=2)
    trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=8, verbose=0, callbacks=[path, best])
    means = [np.mean([logs["reward"] for logs in path.logs[max(0, i - 1) : i + 1]]) for i in range(8)]
    assert best.kept_at == int(np.argmax(means) if mode == "max" else np.argmin(means)) + 1
    for found, expected in zip(values(trainer), path.policies[best.kept_at - 1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_nobody_can_keep_is_refused():
    with pytest.raises(ValueError, match=r'`mode` must say with "max" or "min" which `grad_norm` is better'):
        KeepBest("grad_norm")
    with pytest.raises(ValueError, match=r"`metric` must be one that `fit` logs: .* Received: metric='rewards'"):
        trainer_of().fit(PROMPTS, verbose=0, callbacks=[KeepBest("rewards", mode="max")])


class StoppedError(Exception):
    """What stops a run here."""


def test_what_was_kept_and_shown_outlives_a_run_that_is_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 6:
                raise StoppedError

    def run(folder, *more):
        trainer, best = trainer_of(), KeepBest("reward", every=1, window=2)
        table = SampleTable(every=2, rows=1, filename=folder / "samples.csv", terminal=False)
        callbacks = [Checkpoint(folder / "run", every=2), best, table, *more]
        trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=8, verbose=0, callbacks=callbacks)
        return values(trainer), best.kept_at, best.value, table.table, (folder / "samples.csv").read_text()

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    expected = run(tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", Stop())
    found = run(tmp_path / "stopped")
    assert found[1:] == expected[1:]
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_table_says_what_the_update_was_made_of(tmp_path, capsys):
    texts = {}

    def reward(prompts, completions):
        rewards = tiny.letters_reward(prompts, completions)
        texts.update(zip(completions, rewards, strict=True))
        return rewards

    trainer = JBOND(tiny.causal_lm(), reward, **SIZES)
    trainer.compile("sgd")
    tables = [SampleTable(every=2, rows=3, filename=tmp_path / f"samples.{kind}", terminal=kind == "csv") for kind in
              ("csv", "parquet")]  # fmt: skip
    trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0, callbacks=tables)
    rows = tables[0].table
    assert [row["step"] for row in rows] == [1, 1, 1, 3, 3, 3]
    for row in rows:
        assert row["prompt"].strip() in PROMPTS
        assert row["reward"] == pytest.approx(texts[row["completion"]])
        assert row["best_reward"] == pytest.approx(texts[row["best"]])
        assert row["quantile"] in (0.0, 0.5, 1.0)
        assert (row["quantile"] == 1.0) == (row["reward"] >= row["best_reward"])
    with open(tmp_path / "samples.csv", newline="", encoding="utf-8") as file:
        assert [{k: str(v) for k, v in row.items()} for row in rows] == list(csv.DictReader(file))
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "samples.parquet").to_pylist() == rows
    assert "samples of update 3" in capsys.readouterr().out


def test_the_table_of_an_algorithm_without_anchor_samples():
    table = SampleTable(rows=2)
    trainer_of(GRPO, num_samples=3).fit(PROMPTS, batch_size=4, steps_per_epoch=1, verbose=0, callbacks=[table])
    assert [*table.table[0]] == ["step", "prompt", "completion", "reward"]
    assert not any(math.isnan(row["reward"]) for row in table.table)


def test_the_table_as_text_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    table = SampleTable(rows=2, log_dir=tmp_path, terminal=False)
    trainer_of().fit(PROMPTS, batch_size=4, steps_per_epoch=1, verbose=0, callbacks=[table])
    (events,) = tmp_path.iterdir()
    assert table.table[0]["prompt"].encode() in events.read_bytes()


def test_packages_that_a_table_lacks_are_named_when_it_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ends in .parquet needs the package: pip install pyarrow"):
        SampleTable(filename="samples.parquet")
    with pytest.raises(ImportError, match=r"`log_dir` needs the package: pip install 'keras-bond\[tensorboard\]'"):
        SampleTable(log_dir="logs")
