"""A run that stopped goes on as if it had not; what is damaged, foreign or half written is told from what is whole."""

import csv
import json
import os
import resource
import shutil
import signal

import filelock
import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import BOND, JBOND, checkpoints
from keras_bond.callbacks import Checkpoint, EvaluateEvery, StepLogger
from keras_bond.evaluation import Evaluator
from keras_bond.quantiles import Learned

pytestmark = pytest.mark.filterwarnings("ignore:No completion of the first")
PROMPTS = ["ab", "c", "bca", "aab", "cc"]
SIZES = {"max_prompt_length": 8, "max_completion_length": 4}


class KilledError(Exception):
    """What stops a run here."""


class Stop(keras.callbacks.Callback):
    """Ends a run after `step` steps, counted over all its epochs."""

    def __init__(self, step, how):
        super().__init__()
        self.left, self.how = step, how

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.how()


def kill():
    raise KilledError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def trainer_of(lora=None, seed=0, kind=JBOND, optimizer=None, **kwargs):
    trainer = kind(tiny.causal_lm(lora=lora, seed=seed), tiny.letters_reward, **SIZES, **kwargs)
    trainer.compile(optimizer or keras.optimizers.Adam(0.01))
    return trainer


def values(trainer):
    return {name: ops.convert_to_numpy(variable.value) for name, variable in trainer.named_state().items()}


def assert_same_state(trainer, other):
    found, expected = values(trainer), values(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def run(folder, how=None, step=0, lora=None, prompts=PROMPTS, every=2, **kwargs):
    """Three epochs of four steps, and what was logged."""
    trainer = trainer_of(lora, **kwargs)
    evaluator = Evaluator(trainer.policy, None, tiny.letters_reward, PROMPTS, batch_size=4, rollout=trainer.rollout)
    log, evaluated = StepLogger(folder / "steps.csv"), EvaluateEvery(evaluator, 5)
    callbacks = [Checkpoint(folder / "run", every=every), log, evaluated, *([Stop(step, how)] if how else [])]
    history = trainer.fit(prompts, batch_size=4, epochs=3, steps_per_epoch=4, verbose=0, callbacks=callbacks)
    with open(folder / "steps.csv", newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return trainer, history, rows, [(update, one.estimates["reward"]) for update, one in evaluated.results]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), lora=2)


@pytest.mark.parametrize(
    ("how", "step", "error"),
    tiny.on_all_backends(
        [(kill, 7, KilledError)],
        [(kill, 7, KilledError), (kill, 9, KilledError), (terminate, 3, SystemExit), (kill, 1, KilledError)],
    ),
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, whole, how, step, error):
    """After 7 steps the last checkpoint is within the second epoch; after 9, between two; after 1 there is none."""
    with pytest.raises(error) as stopped:
        run(tmp_path, how, step, lora=2)
    if error is SystemExit:
        assert stopped.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert checkpoints.latest(tmp_path / "run").name == "step-00000003"
    trainer, history, rows, evaluated = run(tmp_path, lora=2)
    expected, expected_history, expected_rows, expected_evaluated = whole
    assert_same_state(trainer, expected)
    assert history.epoch == [0, 1, 2]
    assert history.history == expected_history.history
    assert rows == expected_rows
    assert evaluated == expected_evaluated
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == [f"step-{step:08d}" for step in (8, 10, 12)]


@pytest.mark.any_backend
def test_a_stream_and_a_learned_quantile_go_on_too(tmp_path):
    class Stream:
        def __iter__(self):
            return iter(PROMPTS * 20)

    settings = {"kind": BOND, "prompts": Stream(), "optimizer": None}
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        folder.mkdir()
    whole, *_ = run(tmp_path / "whole", quantiles=Learned(), n=2, **settings)
    with pytest.raises(KilledError):
        run(tmp_path / "stopped", kill, 7, quantiles=Learned(), n=2, **settings)
    again, *_ = run(tmp_path / "stopped", quantiles=Learned(), n=2, **settings)
    assert_same_state(again, whole)
    assert any(name.startswith("other/") for name in values(again))


@pytest.mark.any_backend
def test_a_script_of_several_fits_goes_on_in_the_one_that_was_stopped(tmp_path):
    def script(folder, stop=None):
        trainer, checkpoint, log = trainer_of(), Checkpoint(folder, every=1), StepLogger(f"{folder}.csv")
        histories = []
        for call, prompts in enumerate((PROMPTS, ["b", "cab"])):
            callbacks = [checkpoint, log, *([Stop(2, kill)] if call == stop else [])]
            histories.append(trainer.fit(prompts, batch_size=2, epochs=2, steps_per_epoch=2, verbose=0, callbacks=callbacks))
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in log.rows]
        return trainer, [[history.history for history in histories], rows]

    expected, expected_histories = script(tmp_path / "whole")
    with pytest.raises(KilledError):
        script(tmp_path / "stopped", stop=1)
    trainer, histories = script(tmp_path / "stopped")
    assert_same_state(trainer, expected)
    assert histories == expected_histories
    assert_same_state(script(tmp_path / "stopped")[0], expected)  # all is done


@pytest.mark.any_backend
def test_a_run_that_is_done_goes_on_for_more_epochs(tmp_path):
    def script(folder, epochs):
        trainer = trainer_of()
        callbacks = [Checkpoint(folder, every=3)]
        return trainer, trainer.fit(PROMPTS, batch_size=2, epochs=epochs, steps_per_epoch=2, verbose=0, callbacks=callbacks)

    expected, history = script(tmp_path / "whole", 3)
    script(tmp_path / "more", 1)
    trainer, again = script(tmp_path / "more", 3)
    assert_same_state(trainer, expected)
    assert again.history == history.history


@pytest.mark.any_backend
def test_a_run_that_a_callback_has_stopped_is_done(tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    def script():
        trainer = trainer_of()
        callbacks = [Checkpoint(tmp_path, every=3), Enough()]
        return trainer, trainer.fit(PROMPTS, batch_size=2, epochs=3, steps_per_epoch=2, verbose=0, callbacks=callbacks)

    (expected, history), (again, as_it_was) = script(), script()
    assert_same_state(again, expected)
    assert as_it_was.history == history.history
    assert history.epoch == [0]


@pytest.mark.any_backend
def test_callbacks_of_keras_remember(tmp_path):
    def script(stop=None):
        trainer = trainer_of()
        stopping = keras.callbacks.EarlyStopping("reward", mode="max", patience=9)
        logger = keras.callbacks.CSVLogger(tmp_path / "epochs.csv")
        callbacks = [Checkpoint(tmp_path / "run", every=2), stopping, logger, *([Stop(5, kill)] if stop else [])]
        trainer.fit(PROMPTS, batch_size=2, epochs=3, steps_per_epoch=2, verbose=0, callbacks=callbacks)
        return stopping, (tmp_path / "epochs.csv").read_text().splitlines()

    expected, rows = script()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(KilledError):
        script(stop=True)
    again, rows_again = script()
    assert (again.best, again.wait, again.best_epoch) == (expected.best, expected.wait, expected.best_epoch)
    assert rows_again == rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer = trainer_of(lora=2)
    trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=1, verbose=0)
    return trainer, checkpoints.save(trainer, folder, position={"mine": 3})


@pytest.mark.any_backend
def test_a_checkpoint_is_read_without_this_package_and_has_no_frozen_weight(saved):
    from safetensors.numpy import load_file

    trainer, path = saved
    arrays, manifest = load_file(path / "state.safetensors"), json.loads((path / "manifest.json").read_text())
    factors = [variable.path for variable in trainer.policy.trainable_variables]
    assert {name for name in arrays if name.startswith("policy/")} == {f"policy/{path}" for path in factors}
    assert {name.split("/")[0] for name in arrays} == {"policy", "anchor", "reference", "optimizer", "seeds", "cursor"}
    np.testing.assert_array_equal(arrays[f"policy/{factors[0]}"], trainer.policy.trainable_variables[0].numpy())
    assert manifest["algorithm"] == "JBOND"
    assert manifest["settings"]["max_completion_length"] == 4
    assert manifest["versions"]["keras"] == keras.__version__
    adapter = sum(np.prod(variable.shape) for variable in trainer.policy.trainable_variables)
    weights = sum(array.size for name, array in arrays.items() if array.ndim)
    assert weights - 4 == 5 * adapter  # policy, anchor, reference, two moments of Adam; two seeds


@pytest.mark.any_backend
def test_a_checkpoint_goes_to_a_trainer_of_its_kind_alone(saved):
    trainer, path = saved
    other = trainer_of(lora=2, seed=0)
    manifest, rest = checkpoints.restore(other, path)
    assert (manifest["position"], rest) == ({"mine": 3}, {})
    assert_same_state(other, trainer)

    def refused(trainer, message):
        before = values(trainer)
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(trainer, path)
        for name, value in values(trainer).items():
            np.testing.assert_array_equal(value, before[name])

    refused(trainer_of(lora=3), r"does not fit this trainer at .* 'anchor/.*lora_kernel_a' has the shape \(.*, 2\) there")
    refused(trainer_of(lora=2, optimizer=keras.optimizers.SGD(0.1)), "'optimizer/.*' has the shape")
    refused(trainer_of(lora=2, seed=5), "must be of the same frozen weights as this trainer")
    refused(trainer_of(lora=2, kind=BOND, n=2), "must be of the same algorithm as this trainer, 'BOND'. Received: 'JBOND'")
    uncompiled = JBOND(tiny.causal_lm(lora=2), tiny.letters_reward, **SIZES)
    with pytest.raises(ValueError, match="must be compiled before a checkpoint is loaded"):
        checkpoints.restore(uncompiled, path)


@pytest.mark.any_backend
def test_what_is_damaged_newer_or_no_checkpoint_is_refused(saved, tmp_path):
    trainer, path = saved

    def copy(name):
        return shutil.copytree(path, tmp_path / name)

    flipped = copy("flipped")
    content = bytearray((flipped / "state.safetensors").read_bytes())
    content[-9] ^= 1
    (flipped / "state.safetensors").write_bytes(content)
    short = copy("short")
    (short / "state.safetensors").write_bytes(content[:-40])
    for damaged in (flipped, short):
        with pytest.raises(ValueError, match=r"is damaged.*Remove the folder to go on from the checkpoint before it"):
            checkpoints.restore(trainer, damaged)
    newer = copy("newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(ValueError, match=r"has the format 2, and this version of keras_bond reads up to 1"):
        checkpoints.restore(trainer, newer)
    (newer / "manifest.json").write_text("[1]")
    for not_one in (newer, tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="`path` must be a checkpoint"):
            checkpoints.restore(trainer, not_one)


@pytest.mark.any_backend
def test_a_full_disk_leaves_the_checkpoint_before(saved, tmp_path):
    trainer, _ = saved
    first = checkpoints.save(trainer, tmp_path)
    before, limits = values(trainer), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written to .*The checkpoints before it are whole"):
            checkpoints.write(checkpoints.snapshot(trainer)._replace(step=9), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    checkpoints.restore(trainer, checkpoints.latest(tmp_path))
    for name, value in values(trainer).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.any_backend
def test_what_a_checkpoint_cannot_go_on_with_is_said_before_the_first_step(tmp_path):
    def fit(prompts=PROMPTS, batch_size=2, rate=0.01, callbacks=()):
        trainer = trainer_of(optimizer=keras.optimizers.Adam(rate))
        checkpoint = Checkpoint(tmp_path / "run", every=1)
        return trainer.fit(prompts, batch_size=batch_size, verbose=0, callbacks=[checkpoint, *callbacks])

    with pytest.raises(KilledError):
        fit(callbacks=[Stop(2, kill)])
    with pytest.raises(
        ValueError, match=r"must go on with the same `batch_size` and prompts: .*Received: .*'batch_size': 4"
    ):
        fit(batch_size=4)
    with filelock.FileLock(tmp_path / "run" / ".lock"), pytest.raises(ValueError, match="`folder` must belong to one run"):
        fit()
    with pytest.warns(UserWarning, match=r"whose settings were others: optimizer learning_rate: 0.009.* -> 0.5"):
        fit(rate=0.5)
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1"):
        Checkpoint(tmp_path, every=0)


@pytest.mark.any_backend
def test_a_log_that_has_lost_rows_is_refused(tmp_path):
    def fit(stop=(), trainer=None):
        callbacks = [Checkpoint(tmp_path / "run", every=1), StepLogger(tmp_path / "steps.csv"), *stop]
        return (trainer or trainer_of()).fit(PROMPTS, batch_size=2, verbose=0, callbacks=callbacks)

    with pytest.raises(KilledError):
        fit([Stop(2, kill)])
    (tmp_path / "steps.csv").write_text("step,seconds\n1,")
    trainer = trainer_of()
    before = values(trainer)
    with pytest.raises(ValueError, match=r"`filename` must have the 1 rows .* with 0 whole ones"):
        fit(trainer=trainer)
    for name, value in values(trainer).items():  # nothing has been changed
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.any_backend
def test_a_checkpoint_that_is_half_written_is_not_there(saved, tmp_path):
    trainer, _ = saved
    (tmp_path / ".writing-1").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoints.latest(tmp_path) is None
    for step in (9, 10, 100000000, 11):
        checkpoints.write(checkpoints.snapshot(trainer)._replace(step=step), tmp_path, keep=2)
    assert [path.name for path in checkpoints.checkpoint.steps(tmp_path)] == ["step-00000011", "step-100000000"]
