"""`fit` as a user meets it: randomness, compilation, anchors, LoRA, accumulation, callbacks, errors."""

import itertools

import keras
import numpy as np
import pytest
import tiny
from keras import ops
from scripted import make

from keras_bond import JBOND
from keras_bond.callbacks import EvaluateEvery, StepLogger
from keras_bond.evaluation import Evaluator
from keras_bond.rewards import RewardError
from keras_bond.trainers.trainer import ANCHOR_METRICS, METRICS

LOGGED = {*METRICS, *ANCHOR_METRICS, *JBOND.parts}
PROMPTS = ["ab", "c", "bca", "aab", "cc"]
SIZES = {"max_prompt_length": 8, "max_completion_length": 4}
on_torch = pytest.mark.skipif(keras.config.backend() != "torch", reason="other backends always compile")


def trainer_of(policy=None, reward=tiny.letters_reward, optimizer=None, **kwargs):
    trainer = JBOND(policy or tiny.causal_lm(), reward, **{**SIZES, **kwargs})
    trainer.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9))
    return trainer


def values(variables):
    return [ops.convert_to_numpy(ops.cast(v.value, "float32")) + 0 for v in variables]


def count_updates(trainer):
    """A list that grows with every run of the trainer's Python for an update."""
    updates, loss_and_logs = [], trainer.loss_and_logs
    trainer.loss_and_logs = lambda trajectory: updates.append(0) or loss_and_logs(trajectory)
    return updates


class Recorder(keras.callbacks.Callback):
    """Keeps the trajectories, and the policy after each update."""

    def __init__(self, trainer):
        super().__init__()
        self.trajectories, self.policies, self.logs = [], [], []
        collect = trainer.collect

        def recorded(batch, draw):
            self.trajectories.append(collect(batch, draw))
            return self.trajectories[-1]

        trainer.collect = recorded

    def on_train_batch_end(self, batch, logs=None):
        self.model.sync()
        self.policies.append(values(self.model.policy.trainable_variables))
        self.logs.append({k: float(v) for k, v in logs.items()})


def test_metrics_history_and_their_order():
    trainer = trainer_of()
    recorder = Recorder(trainer)
    history = trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[recorder]).history
    assert set(history) == LOGGED
    assert [len(v) for v in history.values()] == [2] * len(LOGGED)
    for name in LOGGED:  # an epoch's log is the mean of its steps
        np.testing.assert_allclose(history[name][1], np.mean([r[name] for r in recorder.logs[3:]]), rtol=1e-5, atol=1e-6)

    last, logs = recorder.trajectories[-1], recorder.logs[-1]
    reward, anchor = np.asarray(last.reward), np.asarray(last.anchor_rewards)
    mask, ids = ops.convert_to_numpy(last.completion_mask), ops.convert_to_numpy(last.completion_ids)
    expected = {
        "reward": reward.mean(),
        "anchor_reward": anchor.mean(),
        "reward_std": reward.std(),
        "win_rate": np.mean((reward[:, None] > anchor) + 0.5 * (reward[:, None] == anchor)),
        "tie_rate": np.mean(reward[:, None] == anchor),
        "penalised": np.mean(reward < anchor.min(1)),
        "completion_length": mask.sum(1).mean(),
        "truncated": np.mean(mask[:, -1] & (ids[:, -1] != 1)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_contenders_and_their_weights(variance_reduction):
    trainer = trainer_of(n=2, num_anchor_samples=4, variance_reduction=variance_reduction)
    recorder = Recorder(trainer)
    trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=1, verbose=0, callbacks=[recorder])
    (t,) = recorder.trajectories
    anchor, weights = np.asarray(t.anchor_rewards), ops.convert_to_numpy(t.contender_weights)
    contenders = type("C", (), {"token_ids": t.contender_ids, "mask": t.contender_mask})
    rewards = np.reshape(tiny.letters_reward(None, trainer.rollout.decode(contenders)), weights.shape)
    if variance_reduction:  # all, by their chance to be the best of 2 of the 4
        np.testing.assert_allclose(rewards, anchor)
        pairs = [list(pair) for pair in itertools.combinations(range(4), 2)]
        best = np.mean([anchor[:, pair].max(1) for pair in pairs], axis=0)
        np.testing.assert_allclose((weights * rewards).sum(1), best, rtol=1e-5, atol=1e-6)
    else:  # the best of the first 2 alone
        np.testing.assert_array_equal(weights, 1)
        np.testing.assert_allclose(rewards[:, 0], anchor[:, :2].max(1))


def test_rollouts_differ_and_the_streams_are_independent():
    trainer = trainer_of(optimizer=keras.optimizers.SGD(0.0))
    recorder = Recorder(trainer)
    trainer.fit(["ab"], batch_size=64, steps_per_epoch=3, verbose=0, callbacks=[recorder])
    first, second, third = (ops.convert_to_numpy(t.completion_ids) for t in recorder.trajectories)
    assert (first != second).any(axis=1).mean() > 0.5
    assert (second != third).any(axis=1).mean() > 0.5
    assert (first != recorder.trajectories[0].contender_ids[::2]).any(
        axis=1
    ).mean() > 0.5  # policy = anchor, yet other samples
    assert len(np.unique(first, axis=0)) > 10


def run(seed, steps=4, **kwargs):
    trainer = trainer_of(seed=seed)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=steps, verbose=0, **kwargs)
    return trainer


def test_the_seed_reproduces_the_run_bit_for_bit():
    one, same, other = run(1), run(1), run(2)
    for a, b in zip(values(one.variables), values(same.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(values(one.policy.variables), values(other.policy.variables), strict=True))


@pytest.mark.any_backend
def test_evaluation_does_not_disturb_training(tmp_path):
    plain = run(3)
    trainer = trainer_of(seed=3)
    evaluator = Evaluator(trainer.policy, None, tiny.letters_reward, PROMPTS, batch_size=4, rollout=trainer.rollout)
    every = EvaluateEvery(evaluator, 2)
    log = StepLogger(tmp_path / "steps.csv")
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=4, verbose=0, callbacks=[every, log])
    for a, b in zip(values(plain.variables), values(trainer.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [step for step, _ in every.results] == [0, 2, 4]
    assert every.results[0][1].estimates["kl"].value == pytest.approx(0, abs=1e-6)
    assert every.results[2][1].estimates["kl"].value > 1e-5
    rows = (tmp_path / "steps.csv").read_text().splitlines()
    assert rows[0].startswith("step,seconds,reward,kl_reference,")
    assert len(rows) == 5


def test_every_piece_is_compiled_once():
    """Sampling is two pieces, of the policy and of the anchor."""
    trainer = trainer_of()
    pieces = {"sample": trainer.rollout._sample, "score": trainer.rollout._score}
    updates = count_updates(trainer)
    trainer.fit(PROMPTS, batch_size=4, epochs=3, verbose=0)
    traced = keras.config.backend() != "torch"  # which records their parts: see `Recorded`
    assert {name: piece.traces for name, piece in pieces.items()} == {"sample": 2 * traced, "score": int(traced)}
    assert len(updates) == 1


@on_torch
@pytest.mark.parametrize("settings", [{"run_eagerly": True}, {"microbatch_size": 2}])
def test_torch_computes_the_same_update_without_a_recording(settings):
    """In every update of `run_eagerly`, and where a recording would hold one microbatch after another."""
    microbatch_size = settings.pop("microbatch_size", None)
    policies = []
    for eager in (False, True):
        trainer = trainer_of(microbatch_size=microbatch_size if eager else None)
        trainer.compile(keras.optimizers.SGD(0.05, momentum=0.9), **(settings if eager else {}))
        updates = count_updates(trainer)
        trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
        assert len(updates) == (3 if eager else 1)
        policies.append(values(trainer.policy.variables))
    for a, b in zip(*policies, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@on_torch
def test_an_objective_that_reads_numbers_on_the_host_is_run_at_every_update():
    trainer, read = trainer_of(), []
    objective = trainer.objective

    def reading(scores, trajectory):
        read.append(ops.convert_to_numpy(ops.stop_gradient(scores.log_prob)).sum())
        return objective(scores, trajectory)

    trainer.objective = reading
    trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    assert len(set(read)) == 3


@on_torch
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_what_an_objective_assigns_is_not_lost(run_eagerly):
    trainer, count = trainer_of(), keras.Variable(0.0, trainable=False)
    trainer.compile(keras.optimizers.SGD(0.05), run_eagerly=run_eagerly)
    objective = trainer.objective

    def counting(scores, trajectory):
        count.assign_add(1.0)
        return objective(scores, trajectory)

    trainer.objective = counting
    trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    assert float(count.value) == 3


@on_torch
def test_compile_has_the_update_recorded_anew():
    trainer = trainer_of()
    updates = count_updates(trainer)
    for times in (1, 2):
        trainer.compile(keras.optimizers.SGD(0.05))
        trainer.fit(PROMPTS, batch_size=4, verbose=0)
        assert len(updates) == times


@on_torch
def test_jit_compile_hands_what_is_recorded_to_torchs_compiler(monkeypatch):
    """The prompts' pass, a token of policy and of anchor, scoring and the gradient."""
    import torch

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda recording, **_: compiled.append(recording) or recording)
    trainer = trainer_of()
    for jit_compile in (True, "auto"):
        trainer.compile(keras.optimizers.SGD(0.05), jit_compile=jit_compile)
        trainer.fit(PROMPTS, batch_size=4, verbose=0)
        assert len(compiled) == 5  # the second time none is added
        assert all(isinstance(recording, torch.fx.GraphModule) for recording in compiled)


def test_an_error_in_the_very_first_update_leaves_the_policy_whole():
    trainer = trainer_of()
    start = values(trainer.policy.variables)
    trainer.objective = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit(PROMPTS, batch_size=4, verbose=0)
    for a, b in zip(start, values(trainer.policy.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.any_backend
def test_evaluate_weighs_prompts_equally_and_leaves_training_alone():
    plain, trainer = run(5), trainer_of(seed=5)
    logs = trainer.evaluate(PROMPTS, batch_size=4, verbose=0)  # a batch of four and one of one
    recorder = Recorder(trainer)
    assert logs == trainer.evaluate(PROMPTS, batch_size=4, verbose=0)
    rewards = np.concatenate([np.asarray(t.reward) for t in recorder.trajectories])
    assert len(rewards) == 5
    np.testing.assert_allclose(logs["reward"], rewards.mean(), rtol=1e-5, atol=1e-6)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=4, verbose=0)
    for a, b in zip(values(plain.variables), values(trainer.variables), strict=True):
        np.testing.assert_array_equal(a, b)


class EvaluateOthers(keras.callbacks.Callback):
    """`evaluate` on other prompts, after every update and every epoch of the `fit` that it is in."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.evaluate(["cc", "b", "a"], batch_size=2, verbose=0)

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(["cc", "b", "a"], batch_size=2, verbose=0)


def test_evaluate_inside_fit_changes_nothing():
    """Neither what is trained on, nor what is drawn, nor the epoch's means."""
    plain, trainer = trainer_of(seed=3), trainer_of(seed=3)
    histories = [
        one.fit(PROMPTS, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
        for one, callbacks in ((plain, []), (trainer, [EvaluateOthers()]))
    ]
    assert histories[0] == histories[1]
    for a, b in zip(values(plain.variables), values(trainer.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.any_backend
def test_a_second_fit_goes_on_where_the_first_one_ended():
    """Whatever the optimizer counts: steps that only accumulate, and steps that a scaled loss leaves out."""
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    trainer, seen = trainer_of(tiny.causal_lm(dtype="mixed_float16"), optimizer=optimizer), []
    trainer.collect = lambda batch, draw, collect=trainer.collect: seen.extend(batch.prompts) or collect(batch, draw)
    for steps in (1, 3, 1):
        trainer.fit(PROMPTS, batch_size=3, steps_per_epoch=steps, verbose=0)
    assert int(trainer.cursor.value) == len(seen) == 15
    assert [sorted(seen[i : i + 5]) for i in (0, 5, 10)] == [sorted(PROMPTS)] * 3


@pytest.mark.any_backend
def test_fit_on_a_stream():
    """It has no end: rows are read as they come, and their columns reach the reward."""
    answers = []

    def reward(completions, answer):
        answers.extend(answer)
        return tiny.letters_reward(None, completions)

    stream = ({"prompt": PROMPTS[i % 5], "answer": i} for i in itertools.count())
    trainer_of(reward=reward).fit(stream, batch_size=4, steps_per_epoch=1, epochs=2, verbose=0)
    assert sorted(answers) == sorted([*range(8)] * 3)


@pytest.mark.any_backend
def test_long_prompts_are_cut_or_dropped_as_asked():
    trainer = trainer_of(long_prompts="cut")
    with pytest.warns(UserWarning, match=r"1 of 6 prompts had more tokens than `max_prompt_length`=8, the longest 10"):
        feed = trainer._open([*PROMPTS, "abcabcabc"], 6, training=True)
    assert feed.take([*range(6)]).prompt_ids.shape == (6, 8)
    assert trainer.get_config()["long_prompts"] == "cut"


def test_sampling_and_metrics_keep_their_precision_under_a_narrow_floatx():
    keras.config.set_floatx("bfloat16")
    try:
        trainer = trainer_of()
        draw = trainer.draw(4)
    finally:
        keras.config.set_floatx("float32")
    dtypes = [draw.policy_uniforms.dtype, draw.anchor_uniforms.dtype, *(m.dtype for m in trainer.metrics)]
    assert {keras.backend.standardize_dtype(d) for d in dtypes} == {"float32"}


def test_a_reward_that_is_a_layer_is_not_trained():
    class Judge(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3,), name="kernel")

        def __call__(self, prompts, completions):
            return tiny.letters_reward(prompts, completions)

    judge = Judge()
    judge.build(None)
    trainer = trainer_of(reward=judge)
    assert len(trainer.trainable_variables) == len(trainer.policy.trainable_variables)
    trainer.fit(PROMPTS, batch_size=4, verbose=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_anchor_follows_the_recurrence_in_float32(dtype):
    policy = tiny.causal_lm(dtype=dtype)
    trainer = trainer_of(policy, eta=0.02)
    start = values(policy.trainable_variables)
    recorder = Recorder(trainer)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=5, verbose=0, callbacks=[recorder])
    assert keras.backend.standardize_dtype(policy.trainable_variables[0].dtype) == dtype
    for i, shadow in enumerate(trainer.anchor.shadows):
        expected = 0.98**5 * start[i].astype("float64")
        expected += sum(0.02 * 0.98 ** (4 - j) * recorder.policies[j][i] for j in range(5))
        assert keras.backend.standardize_dtype(shadow.dtype) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(shadow.value), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(ops.convert_to_numpy(trainer.reference.shadows[i].value), start[i])
    moved = [np.abs(a - b).max() for a, b in zip(values(trainer.anchor.shadows), start, strict=True)]
    assert max(moved) > 0


def test_the_anchor_moves_once_per_optimizer_update():
    trainer = trainer_of(optimizer=keras.optimizers.SGD(0.05, gradient_accumulation_steps=2), eta=0.5)
    start = values(trainer.policy.trainable_variables)
    recorder = Recorder(trainer)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=4, verbose=0, callbacks=[recorder])
    assert int(trainer.anchor.updates) == 2
    for i, shadow in enumerate(trainer.anchor.shadows):
        expected = 0.25 * start[i] + 0.25 * recorder.policies[1][i] + 0.5 * recorder.policies[3][i]
        np.testing.assert_allclose(ops.convert_to_numpy(shadow.value), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(recorder.policies[0][i], start[i])


def test_grad_norm_and_anchor_distance():
    trainer = make(tiny.causal_lm(), tiny.letters_reward, optimizer=keras.optimizers.SGD(0.1), eta=0.02)
    start = values(trainer.policy.trainable_variables)
    logs = trainer.fit(["ab"], batch_size=32, verbose=0).history
    step = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(values(trainer.policy.trainable_variables), start, strict=True)))
    np.testing.assert_allclose(logs["grad_norm"][0], step / 0.1, rtol=1e-4)
    np.testing.assert_allclose(logs["anchor_distance"][0], 0.98 * step, rtol=1e-4)


def test_it_learns_and_the_aligned_policy_generates():
    policy = tiny.causal_lm()
    trainer = trainer_of(policy)
    history = trainer.fit(PROMPTS, batch_size=64, steps_per_epoch=30, epochs=3, verbose=0).history
    assert history["reward"][-1] > history["reward"][0] + 0.3
    assert 0 < history["kl_reference"][-1] < 10
    assert history["kl_reference"][-1] > history["kl_anchor"][-1]
    assert isinstance(policy.generate("ab", max_length=8), str)
    logs = trainer.evaluate(PROMPTS, batch_size=4, verbose=0)
    assert set(logs) == LOGGED
    assert logs["reward"] > history["reward"][0]


def test_lora_trains_and_shadows_the_adapter_alone():
    policy = tiny.causal_lm(lora=2)
    frozen = values(policy.non_trainable_variables)
    trainer = trainer_of(policy)
    logs = trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=3, verbose=0).history
    assert logs["grad_norm"][0] > 0
    assert len(trainer.anchor.shadows) == len(policy.trainable_variables)
    assert all("lora" in v.path for v in policy.trainable_variables)
    for a, b in zip(frozen, values(policy.non_trainable_variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lora_enabled_too_late_is_refused():
    policy = tiny.causal_lm()
    trainer = trainer_of(policy)
    policy.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="trainable variables have changed since the trainer was made"):
        trainer.fit(PROMPTS, batch_size=4, verbose=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: 1 / 0, r"`reward` function `reward` raised ZeroDivisionError"),
        (lambda texts: [float("nan")] * len(texts), r"must return numbers, or `None` .* Received: nan for the completion"),
        pytest.param(lambda texts: [0.0], r"expected 12. Received: 1", marks=pytest.mark.any_backend),
        pytest.param(lambda texts: ["good"] * len(texts), r"must return one number per", marks=pytest.mark.any_backend),
    ],
)
def test_a_failing_reward_leaves_policy_and_trainer_usable(answer, message):
    calls = []

    def reward(prompts, completions):
        calls.append(len(completions))
        return answer(completions) if len(calls) == 3 else tiny.letters_reward(prompts, completions)

    trainer, plain = trainer_of(reward=reward), trainer_of()
    with pytest.raises(RewardError, match=message):
        trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=5, verbose=0)
    plain.fit(PROMPTS, batch_size=4, steps_per_epoch=2, verbose=0)
    for a, b in zip(values(trainer.variables), values(plain.variables), strict=True):
        np.testing.assert_array_equal(a, b)  # all as after the last whole step, seeds included
    assert np.isfinite(trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=2, verbose=0).history["loss"][0])
    assert isinstance(trainer.policy.generate("ab", max_length=6), str)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "`n` must be an integer of at least 2. Received: n=1"),
        ({"n": 2.0}, "`n` must be an integer of at least 2"),
        ({"beta": 1.5}, r"`beta` must lie in \[0, 1\]. Received: beta=1.5"),
        ({"gamma": -1}, "`gamma` must be at least 0. Received: gamma=-1"),
        ({"eta": 0}, r"`eta` must lie in \(0, 1\]. Received: eta=0"),
        ({"reward": None}, r"`reward` must be a callable .* Received: reward=None"),
        ({"sampler": "greedy"}, r"`sampler` must be \"random\" in training: .* Received: sampler='greedy'"),
        ({"sampler": "top_k"}, "another distribution than the model's"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"max_completion_length": 0}, "`max_completion_length` must be an integer of at least 1"),
        ({"microbatch_size": 0}, "`microbatch_size` must be an integer of at least 1. Received: microbatch_size=0"),
        ({"n": 4, "num_anchor_samples": 3}, "`num_anchor_samples` must be an integer of at least 4"),
    ],
)
def test_bad_arguments_name_themselves(change, message):
    with pytest.raises(ValueError, match=message):
        JBOND(**{"policy": tiny.causal_lm(), "reward": tiny.letters_reward, **SIZES, **change})


@pytest.mark.any_backend
def test_a_trainer_needs_something_to_train_and_an_objective():
    policy = tiny.causal_lm()
    policy.trainable = False
    with pytest.raises(ValueError, match=r"^`policy` has no trainable variables"):
        JBOND(policy, tiny.letters_reward, **SIZES)
    with pytest.raises(NotImplementedError, match=r"^`JBOND` must implement `objective`"):
        super(JBOND, trainer_of()).objective(None, None)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": []}, "`prompts` is empty"),
        ({"x": "ab"}, "must be a collection of str, not one str"),
        ({"x": ["ab", 3]}, "Received at row 1: 3"),
        ({"x": ["ab", "abcabcabc"]}, r"Prompt 1 has 10 tokens .* more than `max_prompt_length`=8"),
        ({"x": ["ab"], "batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"x": ["ab"], "validation_data": ["c"]}, r"takes prompts only; .* Received: validation_data"),
    ],
)
def test_bad_prompts_are_refused_before_anything_moves(arguments, message):
    trainer = trainer_of()
    start = values(trainer.variables)
    with pytest.raises(ValueError, match=message):
        trainer.fit(**arguments, verbose=0)
    for a, b in zip(start, values(trainer.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "takes no `loss`"),
        ({"steps_per_execution": 4}, "`steps_per_execution` must be 1"),
        ({"optimizer": keras.optimizers.SGD(use_ema=True)}, "`use_ema=True` replaces the policy"),
    ],
)
def test_compile_refuses_what_cannot_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        JBOND(tiny.causal_lm(), tiny.letters_reward, **SIZES).compile(**arguments)


@pytest.mark.any_backend
def test_columns_reach_the_reward():
    seen = []

    def reward(prompts, completions, target):
        seen.extend(zip(prompts, target, strict=True))
        return [float(c.count(t)) for c, t in zip(completions, target, strict=True)]

    table = {"prompt": ["ab", "c"], "target": ["a", "b"], "unused": [1, 2]}
    trainer_of(reward=reward).fit(table, batch_size=4, verbose=0)
    assert set(seen) == {("ab", "a"), ("c", "b")}
    assert len(seen) == 12


@pytest.mark.any_backend
def test_the_progress_bar_leads_with_reward_and_kl(capsys):
    trainer_of().fit(PROMPTS, batch_size=4, verbose=2)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.index("reward:") < line.index("kl_reference:") < line.index("win_rate:")
    assert "loss" not in line
