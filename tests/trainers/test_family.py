"""What every algorithm shares, and what sets each apart."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import BOND, GRPO, JBOND, BestOfNSFT, IterativeBOND, Reinforce
from keras_bond.anchors import FrozenAnchor
from keras_bond.callbacks import EvaluateEvery
from keras_bond.evaluation import Evaluator
from keras_bond.quantiles import Learned, MonteCarlo
from keras_bond.rewards import RewardError, VaderSentiment
from keras_bond.trainers.trainer import ANCHOR_METRICS, METRICS

PROMPTS = ["ab", "c", "bca", "aab", "cc"]
SIZES = {"max_prompt_length": 8, "max_completion_length": 4}
FAMILY = {
    "JBOND, two samples": (JBOND, {"num_samples": 2}),
    "BOND": (BOND, {"n": 3, "quantiles": MonteCarlo(5)}),
    "BOND, learned": (BOND, {"n": 5, "quantiles": Learned(learning_rate=0.01)}),
    "IterativeBOND": (IterativeBOND, {"n": 2, "period": 2, "quantiles": MonteCarlo(4)}),
    "BestOfNSFT": (BestOfNSFT, {"n": 3}),
    "Reinforce": (Reinforce, {"beta_rl": 0.05}),
    "GRPO": (GRPO, {"num_samples": 4}),
}


def trainer_of(name, reward=tiny.letters_reward, rate=0.05, policy_seed=0, **kwargs):
    algorithm, settings = FAMILY[name]
    settings = {key: type(v).from_config(v.get_config()) if key == "quantiles" else v for key, v in settings.items()}
    trainer = algorithm(tiny.causal_lm(seed=policy_seed), reward, **{**SIZES, **settings, **kwargs})
    trainer.compile(keras.optimizers.SGD(rate, momentum=0.9))
    return trainer


def values(variables):
    return [ops.convert_to_numpy(v.value) + 0 for v in variables]


def state(trainer):
    return [value for group in trainer._state_variables().values() for value in values(group)]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", tiny.on_all_backends(["BOND, learned"], FAMILY))
def test_it_learns_and_logs_what_it_knows(name):
    trainer = trainer_of(name)
    before = trainer.evaluate(PROMPTS * 40, batch_size=200, verbose=0)["reward"]
    history = trainer.fit(PROMPTS, batch_size=32, steps_per_epoch=30, epochs=2, verbose=0).history
    logged = {*METRICS, *(ANCHOR_METRICS if trainer.num_anchor_samples else ()), *trainer.parts}
    assert set(history) == logged
    assert np.isfinite(list(history.values())).all()
    after = trainer.evaluate(PROMPTS * 40, batch_size=200, verbose=0)
    assert set(after) == logged
    assert after["reward"] > before + 0.2
    assert 0 < after["kl_reference"] < 11  # at most -log pi_ref(the best completion)


@pytest.mark.any_backend
def test_evaluation_does_not_disturb_training_nor_teach():
    plain, trainer = trainer_of("BOND, learned"), trainer_of("BOND, learned")
    plain.fit(PROMPTS, batch_size=8, steps_per_epoch=2, verbose=0)
    evaluator = Evaluator(trainer.policy, None, tiny.letters_reward, PROMPTS, batch_size=4, rollout=trainer.rollout)
    trainer.evaluate(PROMPTS, batch_size=4, verbose=0)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=2, verbose=0, callbacks=[EvaluateEvery(evaluator, 1)])
    assert_equal(state(plain), state(trainer))


def test_a_run_continues_where_its_weights_were_saved(tmp_path):
    name = "BOND, learned"
    whole, half, rest = trainer_of(name), trainer_of(name), trainer_of(name, policy_seed=9)
    whole.fit(PROMPTS, batch_size=4, steps_per_epoch=5, verbose=0)
    half.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    half.save_weights(tmp_path / "state.h5")
    rest.load_weights(tmp_path / "state.h5")
    rest.fit(PROMPTS, batch_size=4, steps_per_epoch=2, verbose=0)
    assert_equal(state(whole), state(rest))


@pytest.mark.any_backend
@pytest.mark.parametrize("name", FAMILY)
def test_config_and_keras_file_round_trip(name, tmp_path):
    trainer = trainer_of(name, reward=VaderSentiment())
    for variable in (v for group in trainer._state_variables().values() for v in group if v.dtype == "float32"):
        variable.assign(variable.value + 0.5)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert type(loaded) is type(trainer)
    assert loaded.optimizer.get_config() == trainer.optimizer.get_config()
    plain = {key for key, value in trainer.get_config().items() if not isinstance(value, dict)}
    assert {key: trainer.get_config()[key] for key in plain} == {key: loaded.get_config()[key] for key in plain}
    assert_equal(values(trainer.variables), values(loaded.variables))
    if isinstance(trainer, BOND):
        assert trainer.quantiles.get_config() == loaded.quantiles.get_config()
        assert_equal(values(trainer.quantiles.variables), values(loaded.quantiles.variables))


@pytest.mark.any_backend
def test_a_frozen_anchor_is_the_reference_and_held_once():
    trainer = trainer_of("BOND")
    assert trainer.reference is trainer.anchor
    shadows = [v for v in trainer.non_trainable_variables if "shadow" in v.path]
    assert len(shadows) == len(trainer.policy.trainable_variables)
    start = values(trainer.anchor.shadows)
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=3, verbose=0)
    assert_equal(start, values(trainer.anchor.shadows))
    assert trainer_of("IterativeBOND").reference is not trainer_of("IterativeBOND").anchor


@pytest.mark.any_backend
def test_iterative_bond_moves_its_anchor_every_period():
    trainer = trainer_of("IterativeBOND")
    policy, anchor = [values(trainer.policy.trainable_variables)], [values(trainer.anchor.shadows)]
    for _ in range(4):
        trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=1, verbose=0)
        policy.append(values(trainer.policy.trainable_variables))
        anchor.append(values(trainer.anchor.shadows))
    for step, source in enumerate((0, 0, 2, 2, 4)):
        assert_equal(anchor[step], policy[source])


class Counted:
    """Counts the calls of `trainer.rollout.sample_each`, and keeps what they returned."""

    def __init__(self, trainer):
        self.sample_each, self.drawn = trainer.rollout.sample_each, []
        trainer.rollout.sample_each = self

    def __call__(self, *arguments):
        self.drawn.append(self.sample_each(*arguments))
        return self.drawn[-1]


@pytest.mark.any_backend
@pytest.mark.parametrize(("n", "k"), [(3, 5), (4, 2)])
def test_one_sampling_pass_serves_quantiles_and_best(n, k):
    trainer = trainer_of("BOND", n=n, quantiles=MonteCarlo(k), num_samples=2, variance_reduction=False)
    counted, trajectories, collect = Counted(trainer), [], trainer.collect
    trainer.collect = lambda *a: trajectories.append(collect(*a)) or trajectories[-1]
    trainer.fit(PROMPTS, batch_size=16, steps_per_epoch=1, verbose=0)
    ((own, others),) = counted.drawn
    (t,) = trajectories
    reward, anchor = (np.array(tiny.letters_reward(None, trainer.rollout.decode(c))) for c in (own, others))
    assert (len(reward), len(anchor)) == (16 * 2, 16 * max(n, k))
    anchor = anchor.reshape(16, -1)
    np.testing.assert_array_equal(t.reward, reward)
    np.testing.assert_array_equal(t.anchor_rewards, np.repeat(anchor, 2, axis=0))
    texts = trainer.rollout.decode(type("C", (), {"token_ids": t.contender_ids, "mask": t.contender_mask}))
    np.testing.assert_array_equal(tiny.letters_reward(None, texts), anchor[:, :n].max(1))
    first = np.repeat(anchor[:, :k], 2, axis=0)
    counts = (first <= reward[:, None]).sum(1)
    np.testing.assert_allclose(ops.convert_to_numpy(t.p_less_equal), (counts + 1) / (k + 1), rtol=1e-6)
    counts = (first < reward[:, None]).sum(1)
    np.testing.assert_allclose(ops.convert_to_numpy(t.p_less), counts / (k + 1), rtol=1e-6)


@pytest.mark.any_backend
def test_bond_depends_on_the_order_of_rewards_alone():
    stretched = lambda prompts, texts: [np.exp(3 * r) + 7 for r in tiny.letters_reward(prompts, texts)]  # noqa: E731
    plain, monotone = trainer_of("BOND"), trainer_of("BOND", reward=stretched)
    for trainer in (plain, monotone):
        trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=3, verbose=0)
    assert_equal(values(plain.policy.variables), values(monotone.policy.variables))


@pytest.mark.any_backend
def test_grpo_is_its_formula():
    rng, m = np.random.default_rng(0), 4
    trainer = trainer_of("GRPO", beta_rl=0.3)
    log_prob, reference = rng.normal(-3, 1, (2, 8)).astype("float32")
    lengths = rng.integers(1, 5, 8)
    rewards = rng.normal(size=8).astype("float32")
    trajectory = SimpleNamespace(
        relative_reward=rewards, reference_log_prob=reference, completion_mask=np.arange(4) < lengths[:, None]
    )
    variable = keras.Variable(log_prob)

    def loss():
        return trainer.objective(SimpleNamespace(log_prob=variable + 0.0), trajectory)[0]

    (gradient,) = tiny.gradients(loss, [variable])
    groups, ratio = rewards.reshape(-1, m).astype("float64"), log_prob - reference
    advantages = ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()
    others = (ratio.sum() - ratio) / 7
    np.testing.assert_allclose(gradient, (-advantages / lengths + 0.3 * (ratio - others)) / 8, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", tiny.on_all_backends(["BOND, learned"], ["BOND, learned", "Reinforce"]))
def test_a_failing_reward_leaves_everything_as_it_was(name):
    calls = []

    def reward(prompts, texts):
        calls.append(len(texts))
        return tiny.letters_reward(prompts, texts) if len(calls) != 3 else [float("nan")] * len(texts)

    trainer, plain = trainer_of(name, reward=reward), trainer_of(name)
    with pytest.raises(RewardError, match="must return numbers, or `None`"):
        trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=4, verbose=0)
    plain.fit(PROMPTS, batch_size=8, steps_per_epoch=2, verbose=0)
    assert_equal(state(plain), state(trainer))
    trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=2, verbose=0)
    plain.fit(PROMPTS, batch_size=8, steps_per_epoch=2, verbose=0)
    assert_equal(state(plain), state(trainer))


def test_an_error_in_what_the_quantile_learns_leaves_the_last_update():
    trainer, plain = trainer_of("BOND, learned"), trainer_of("BOND, learned")
    trainer.quantiles.observe = lambda trajectory: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=4, verbose=0)
    plain.fit(PROMPTS, batch_size=8, steps_per_epoch=1, verbose=0)
    assert_equal(values(plain.policy.variables), values(trainer.policy.variables))


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        (BOND, {"n": 1}, "`n` must be an integer of at least 2. Received: n=1"),
        (BOND, {"beta": -0.1}, r"`beta` must lie in \[0, 1\]. Received: beta=-0.1"),
        (BOND, {"num_samples": 0}, "`num_samples` must be an integer of at least 1. Received: num_samples=0"),
        (
            BOND,
            {"quantiles": Learned(), "exact_ties": True},
            "`exact_ties=True` needs p_<, which only `quantiles.MonteCarlo` estimates. Received: quantiles=Learned",
        ),
        (
            BOND,
            {"quantiles": 16},
            "`quantiles` must be `quantiles.MonteCarlo` or `quantiles.Learned`. Received: quantiles=16",
        ),
        (IterativeBOND, {"period": 0}, "`period` must be an integer of at least 1. Received: period=0"),
        (BestOfNSFT, {"n": True}, "`n` must be an integer of at least 2. Received: n=True"),
        (Reinforce, {"beta_rl": -1.0}, "`beta_rl` must be at least 0. Received: beta_rl=-1.0"),
        (Reinforce, {"beta_rl": float("nan")}, "`beta_rl` must be at least 0. Received: beta_rl=nan"),
        (Reinforce, {"num_samples": 1}, "`num_samples` must be an integer of at least 2. Received: num_samples=1"),
    ],
)
def test_bad_arguments_name_themselves(algorithm, change, message):
    with pytest.raises(ValueError, match=message):
        algorithm(tiny.causal_lm(), tiny.letters_reward, **{**SIZES, **change})


@pytest.mark.any_backend
def test_an_anchor_of_another_trainer_is_refused():
    anchor = FrozenAnchor()
    BOND(tiny.causal_lm(), tiny.letters_reward, anchor=anchor, **SIZES)
    with pytest.raises(ValueError, match="make one anchor per trainer"):
        BOND(tiny.causal_lm(), tiny.letters_reward, anchor=anchor, **SIZES)
