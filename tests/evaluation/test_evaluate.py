"""Evaluation against enumeration: every figure of one tiny policy against another."""

import itertools
import math

import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.evaluation import Evaluator, evaluate, load
from keras_bond.ops import frontier_win_rate, sequence_log_prob
from keras_bond.rollout import Rollout, weights_of

SIZES = {"max_prompt_length": 4, "max_completion_length": 3}
COUNT, K, N = 1900, 8, 3  # not a multiple of the batch


def enumerate_policy(policy):
    """Every completion of a policy: (ids, mask, log-probs, rewards)."""
    rollout = Rollout(policy, *SIZES.values())
    ids, mask = tiny.completions(7, 3)
    prompt = rollout.pad(rollout.encode([tiny.PROMPT] * len(ids)))
    log_prob = sequence_log_prob(rollout.score(weights_of(policy), *prompt, ids), mask)
    texts = rollout.decode(type("C", (), {"token_ids": ids, "mask": mask}))
    return ids, mask, ops.convert_to_numpy(log_prob).astype("float64"), np.array(tiny.letters_reward(None, texts))


@pytest.fixture(scope="module")
def models():
    policy, reference = tiny.causal_lm(seed=1), tiny.causal_lm(seed=1)
    tiny.perturb(policy, np.random.default_rng(2), 0.2)
    return policy, reference


@pytest.fixture(scope="module")
def exact(models):
    """(ids, mask, rewards, log pi, log pi_ref, p_<, p_<=) of every completion, in float64."""
    ids, mask, log_p, rewards = enumerate_policy(models[0])
    log_q = enumerate_policy(models[1])[2]
    q = np.exp(log_q)
    return ids, mask, rewards, log_p, log_q, (rewards < rewards[:, None]) @ q, (rewards <= rewards[:, None]) @ q


@pytest.fixture(scope="module")
def result(models):
    return evaluate(
        *models,
        tiny.letters_reward,
        [tiny.PROMPT] * COUNT,
        num_samples=4,
        num_reference_samples=K,
        best_of_n=N,
        batch_size=256,
        seed=3,
        **SIZES,
    )


def assert_agrees(estimate, value, name=None):
    standard_error = (estimate.high - estimate.low) / (2 * 1.96)
    assert abs(estimate.value - value) < 4 * standard_error, (name, estimate, value)
    assert 0 < standard_error < 0.1
    assert estimate.low < estimate.value < estimate.high


def log_ratio(p_less, p_less_equal, n):
    return math.log(sum(p_less ** (i - 1) * p_less_equal ** (n - i) for i in range(1, n + 1)))


def log_ratios(p_less, p_less_equal):
    return np.array([log_ratio(*p, N) for p in zip(p_less, p_less_equal, strict=True)])


def counts(k):
    """Every way k samples fall: (below, equal, number of orders)."""
    for below, equal in itertools.product(range(k + 1), repeat=2):
        if below + equal <= k:
            yield below, equal, math.comb(k, below) * math.comb(k - below, equal)


def mean_over_samples(function, p_less, p_less_equal, k):
    """E[function(below, equal)] for k samples of the reference, per completion."""
    equal_mass = p_less_equal - p_less
    return sum(
        orders * p_less**below * equal_mass**equal * (1 - p_less_equal) ** (k - below - equal) * function(below, equal)
        for below, equal, orders in counts(k)
    )


def test_estimates_agree_with_enumeration(result, exact):
    ids, mask, rewards, log_p, log_q, p_less, p_less_equal = exact
    p, q = np.exp(log_p), np.exp(log_q)
    wins = (rewards[:, None] > rewards) + 0.5 * (rewards[:, None] == rewards)
    log_quantile = mean_over_samples(lambda below, equal: math.log((below + equal + 1) / (K + 1)), p_less, p_less_equal, K)
    means = {
        "reward": p @ rewards,
        "reference_reward": q @ rewards,
        "win_rate": p @ wins @ q,
        "kl": p @ (log_p - log_q),
        "kl_log_ratio": p @ (log_p - log_q),
        "log_quantile": p @ log_quantile,
        "completion_length": p @ mask.sum(1),
        "reference_completion_length": q @ mask.sum(1),
        "truncated": p @ (mask.all(1) & (ids[:, -1] != 1)),
    }
    for name, value in means.items():
        assert_agrees(result.estimates[name], value, name)
    widths = {name: result.estimates[name].high - result.estimates[name].low for name in ("kl", "kl_log_ratio")}
    assert widths["kl"] < 0.7 * widths["kl_log_ratio"]
    win_rate, kl = result.estimates["win_rate"].value, result.estimates["kl"].value
    efficiency = (win_rate - 0.5) / (float(frontier_win_rate(kl)) - 0.5)
    assert result.estimates["frontier_efficiency"].value == pytest.approx(efficiency, rel=1e-4)


def kls_to_best_of_n(exact, k):
    """(forward, backward) as the evaluation expects them of k samples of the reference."""
    _, _, _, log_p, log_q, p_less, p_less_equal = exact

    def weight(below, equal):  # k times the chance that this sample is the best of N of itself and k - 1 others
        return k * (math.comb(below + equal + 1, N) - math.comb(below, N)) / math.comb(k, N) / (equal + 1)

    def forward(below, equal):
        return weight(below, equal) * log_ratio(below / k, (below + equal + 1) / k, N)

    def backward(below, equal):  # the sample counts among its equals
        return -log_ratio(below / (k + 1), (below + equal + 1) / (k + 1), N)

    weights = mean_over_samples(weight, p_less, p_less_equal, k - 1)
    np.testing.assert_allclose(np.log(weights), log_ratios(p_less, p_less_equal), atol=1e-9)  # unbiased: Theorem 1
    return (
        np.exp(log_q) @ (mean_over_samples(forward, p_less, p_less_equal, k - 1) + weights * (log_q - log_p)),
        np.exp(log_p) @ (log_p - log_q + mean_over_samples(backward, p_less, p_less_equal, k)),
    )


def test_the_kls_to_best_of_n_agree_with_enumeration(result, exact):
    forward, backward = kls_to_best_of_n(exact, K)
    assert_agrees(result.estimates["forward_kl_best_of_n"], forward)
    assert_agrees(result.estimates["backward_kl_best_of_n"], backward)


def test_the_kls_to_best_of_n_tend_to_the_true_ones(exact):
    _, _, _, log_p, log_q, p_less, p_less_equal = exact
    log_best = log_q + log_ratios(p_less, p_less_equal)
    assert np.exp(log_best).sum() == pytest.approx(1, abs=1e-5)
    true = np.array([np.exp(log_best) @ (log_best - log_p), np.exp(log_p) @ (log_p - log_best)])
    few, paper = (np.abs(kls_to_best_of_n(exact, k) - true) for k in (K, 32))
    assert (paper < 0.04 * true).all()
    assert (paper < 0.5 * few).all()


def test_every_sample_has_its_log_probs_tokens_and_mask(result, exact):
    ids, mask, _, log_p, log_q, *_ = exact
    place = {tuple(row[m]): i for i, (row, m) in enumerate(zip(ids, mask, strict=True))}
    for samples in (result.samples, result.reference_samples):
        k = len(samples.texts)
        assert samples.token_ids.shape == samples.mask.shape == (COUNT, k, 3)
        assert samples.mask.dtype == bool
        np.testing.assert_array_equal(samples.mask.sum(2), samples.lengths)
        flat = zip(samples.token_ids.reshape(-1, 3), samples.mask.reshape(-1, 3), strict=True)
        places = [place[tuple(row[m])] for row, m in flat]
        np.testing.assert_allclose(samples.log_probs.ravel(), log_p[places], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(samples.reference_log_probs.ravel(), log_q[places], rtol=1e-5, atol=1e-5)
        assert samples.rewards.tolist() == [tiny.letters_reward(None, row) for row in zip(*samples.texts, strict=True)]


def test_what_is_saved_is_loaded(result, tmp_path):
    result.save(tmp_path / "samples.csv")
    loaded = load(tmp_path / "samples.csv", best_of_n=N, seed=3)
    assert loaded.estimates == result.estimates
    assert loaded.prompts == result.prompts
    for ours, theirs in ((loaded.samples, result.samples), (loaded.reference_samples, result.reference_samples)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    without = load(tmp_path / "samples.csv", seed=3).estimates
    assert without == {name: estimate for name, estimate in result.estimates.items() if "best_of_n" not in name}


@pytest.mark.any_backend
def test_a_lora_policy_against_its_snapshot(tmp_path, monkeypatch):
    policy = tiny.causal_lm(seed=4, lora=2)
    prompts = ["ab", "c", "ba"] * 40
    options = {"batch_size": 120, "num_reference_samples": 3, "temperature": 0.7}
    evaluator = Evaluator(policy, None, tiny.letters_reward, prompts, **options, **SIZES)
    first = evaluator()
    assert first.estimates["kl"].value == pytest.approx(0, abs=1e-6)
    assert first.estimates["kl_log_ratio"].value == pytest.approx(0, abs=1e-6)
    assert first.estimates["win_rate"].low < 0.5 < first.estimates["win_rate"].high
    scores = score(evaluator.rollout, policy, prompts, first.samples)
    tiny.perturb(policy, np.random.default_rng(5), 0.3)
    second = evaluator()
    assert second.estimates["kl"].value > 0.01  # the reference stayed where it was
    np.testing.assert_allclose(first.samples.log_probs, scores, atol=1e-5)
    scores = score(evaluator.rollout, policy, prompts, second.samples)
    np.testing.assert_allclose(second.samples.log_probs, scores, atol=1e-5)
    assert np.abs(second.samples.reference_log_probs - scores).max() > 0.1
    for a, b in zip(second.samples, evaluator().samples, strict=True):  # the same numbers each time
        np.testing.assert_array_equal(a, b)
    assert evaluator(2).samples.rewards.shape == (120, 2)

    # the reference's samples are scored under the policy on request alone
    assert np.isnan(second.reference_samples.log_probs).all()
    assert "forward_kl_best_of_n" not in second.estimates
    second.save(tmp_path / "samples.csv")
    np.testing.assert_equal(load(tmp_path / "samples.csv").estimates, second.estimates)
    with pytest.raises(ValueError, match=r"^`best_of_n` needs the log-probs .* Received: best_of_n=2 and .* lacks them$"):
        load(tmp_path / "samples.csv", best_of_n=2)
    calls, rollout_score = [], evaluator.rollout.score
    monkeypatch.setattr(evaluator.rollout, "score", lambda *arguments: calls.append(0) or rollout_score(*arguments))
    evaluator()
    assert len(calls) == 0
    evaluator.best_of_n = 2
    third = evaluator()
    assert len(calls) == 3
    scores = score(evaluator.rollout, policy, prompts, third.reference_samples)
    np.testing.assert_allclose(third.reference_samples.log_probs[:, :1], scores, atol=1e-5)
    assert third.estimates["forward_kl_best_of_n"].value > 0


def score(rollout, policy, prompts, samples):
    prompt = rollout.pad(rollout.encode(prompts))
    log_probs = rollout.score(weights_of(policy), *prompt, samples.token_ids[:, 0])
    return ops.convert_to_numpy(sequence_log_prob(log_probs, samples.mask[:, 0]))[:, None]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1. Received: num_samples=0"),
        (
            {"num_reference_samples": 0},
            "`num_reference_samples` must be an integer of at least 1. Received: num_reference_samples=0",
        ),
        ({"best_of_n": 1}, "`best_of_n` must be an integer of at least 2. Received: best_of_n=1"),
        ({"best_of_n": 2.0}, "`best_of_n` must be an integer of at least 2. Received: best_of_n=2.0"),
        (
            {"best_of_n": 4},
            "`num_reference_samples` must be above `best_of_n`=4, whose quantiles they estimate: raise it, the paper takes "
            "32. Received: num_reference_samples=4",
        ),
        ({"prompts": []}, "`prompts` is empty: at least one prompt is needed."),
    ],
)
def test_errors(models, kwargs, message):
    with pytest.raises(ValueError) as error:
        evaluate(*models, tiny.letters_reward, **{"prompts": ["ab"], **SIZES, **kwargs})
    assert str(error.value) == message


@pytest.mark.any_backend
def test_tokens_and_columns_reach_the_reward(models, monkeypatch):
    def reward(completions, completion_ids, answer):
        assert len(completions) == len(completion_ids) == len(answer) == 3
        assert all(row.count(1) == (row[-1] == 1) for row in completion_ids)
        return [float(len(row)) for row in completion_ids]

    table = {"prompt": ["ab", "c", "ba"], "answer": ["1", "2", "3"]}
    result = evaluate(*models, reward, table, batch_size=2, **SIZES)
    np.testing.assert_array_equal(result.samples.rewards, result.samples.lengths)
    monkeypatch.setattr(Rollout, "sample", lambda *arguments: pytest.fail("a completion was sampled"))
    with pytest.raises(
        ValueError, match=r"Received: `reward\(completions, completion_ids, answer\)`, which needs `answer`$"
    ):
        evaluate(*models, reward, table["prompt"], **SIZES)


def test_a_reference_with_another_tokenizer_is_refused(models):
    with pytest.raises(ValueError, match=r"^`policy` and `reference` must share one vocabulary: their tokenizers split the"):
        evaluate(models[0], tiny.causal_lm(alphabet="abd"), tiny.letters_reward, ["c"], **SIZES)
