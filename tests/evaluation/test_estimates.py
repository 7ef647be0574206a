"""Figures by hand, from samples made up for it."""

import numpy as np
import pytest

from keras_bond.evaluation import UNITS, Evaluation, Samples, distinct_n, load
from keras_bond.evaluation.estimates import estimate_all


def samples_of(texts, rewards=None, seed=0):
    """`Samples` of k lists of P texts; whatever is not given is made up."""
    k, count = len(texts), len(texts[0])
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, (count, k))
    token_ids = rng.integers(1, 9, (count, k, 4)).astype("int32")
    mask = np.arange(4) < lengths[:, :, None]
    floats = [rng.standard_normal((count, k)).astype("float32") for _ in range(4)]
    rewards = np.asarray(floats[0] if rewards is None else rewards, "float64")
    kl, log_probs, reference_log_probs = floats[1:]
    truncated = rng.random((count, k)) < 0.5
    return Samples(
        texts, rewards, lengths, truncated, kl, log_probs, reference_log_probs, np.where(mask, token_ids, 0), mask
    )


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b a", "a"], 1, 2 / 4),
        (["a b a", "a"], 2, 2 / 2),  # no bigram across two texts
        (["a b a b", "b a"], 2, 2 / 4),
        ([" so\nit   was "], 2, 1),
        (["", "a"], 2, 0),
    ],
)
def test_distinct_n_by_hand(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_distinct_is_the_mean_over_whole_groups_of_first_samples():
    same, all_new = ["a b"] * 16, [f"{i} {i}x" for i in range(16)]
    policy = samples_of([same + all_new + ["left over"] * 15, ["never looked at"] * 47])
    estimates = estimate_all(policy, samples_of([all_new + all_new + same[:15]]))
    assert estimates["distinct_1"].value == pytest.approx((2 / 32 + 1) / 2)
    assert estimates["distinct_2"].value == pytest.approx((1 / 16 + 1) / 2)
    assert estimates["distinct_1"][1:] == pytest.approx((2 / 32, 1))  # two groups, resampled: one of them twice at the ends
    assert estimates["reference_distinct_1"] == pytest.approx((1, 1, 1))


def test_one_group_and_one_prompt_have_no_interval():
    estimates = estimate_all(samples_of([["a b", "a"]]), samples_of([["a", "b"]]))
    assert estimates["distinct_1"].value == pytest.approx(2 / 3)
    assert np.isnan(estimates["distinct_1"][1:]).all()
    assert estimates["reward"].low < estimates["reward"].high
    assert np.isnan(estimate_all(samples_of([["a"]]), samples_of([["b"]]))["reward"][1:]).all()


def test_log_quantile_by_hand():
    policy = samples_of([["x"] * 2] * 2, rewards=[[0.0, 5.0], [1.0, 1.0]])
    reference = samples_of([["x"] * 2] * 3, rewards=[[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    expected = np.mean(np.log([1 / 4, 4 / 4, 3 / 4, 3 / 4]))
    assert estimate_all(policy, reference)["log_quantile"].value == pytest.approx(expected, rel=1e-5)


NAN = float("nan")
ABSTAINED = np.array([[NAN, 5.0], [1.0, NAN], [NAN, NAN], [2.0, 0.0]])
REFERENCE_ABSTAINED = np.array([[1.0, NAN, 3.0], [NAN, NAN, NAN], [1.0, 2.0, 3.0], [NAN, 0.0, 2.0]])


def test_what_abstained_is_left_out_and_counted():
    policy, reference = samples_of([["x"] * 4] * 2, ABSTAINED), samples_of([["x"] * 4] * 3, REFERENCE_ABSTAINED)
    estimates = estimate_all(policy, reference, best_of_n=2)
    expected = {
        "reward": np.mean([5.0, 1.0, 1.0]),
        "reference_reward": np.mean([2.0, 2.0, 1.0]),
        "win_rate": np.mean([1.0, (3 / 4 + 1 / 4) / 2]),  # two prompts have rewards of both
        "log_quantile": np.mean([np.log(3 / 3), np.log([3 / 3, 2 / 3]).mean()]),
        "abstained": 4 / 8,
        "reference_abstained": 5 / 12,
        "kl": policy.kl.mean(),  # of all samples, as it has nothing to do with rewards
        "truncated": policy.truncated.mean(),
        "completion_length": policy.lengths.mean(),
    }
    for name, value in expected.items():
        assert estimates[name].value == pytest.approx(value, rel=1e-5), name
    there = [estimate_all(*(type(s)(*(f[rows] if isinstance(f, np.ndarray) else f for f in s)) for s in (policy, reference)))
             for rows in ([0, 1, 3], [0, 2, 3], [0, 3])]  # fmt: skip
    assert there[0]["reward"].value == estimates["reward"].value
    assert there[1]["reference_reward"].value == estimates["reference_reward"].value
    assert there[2]["win_rate"].value == estimates["win_rate"].value


def test_the_interval_is_over_the_prompts_that_have_a_reward():
    rewards = np.random.default_rng(0).standard_normal((80, 1))
    whole = samples_of([["x"] * 80], np.where(np.arange(80)[:, None] % 2, NAN, rewards))
    half = samples_of([["x"] * 40], rewards[::2])
    of_whole, of_half = (estimate_all(samples, samples)["reward"] for samples in (whole, half))
    assert of_whole.value == pytest.approx(of_half.value)
    assert of_whole.high - of_whole.low == pytest.approx(of_half.high - of_half.low, rel=0.2)  # of 1000 resamples each


def test_where_all_abstain_there_is_no_estimate():
    policy = samples_of([["x"] * 3] * 2, np.full((3, 2), NAN))
    estimates = estimate_all(policy, samples_of([["x"] * 3] * 3, np.full((3, 3), NAN)), best_of_n=2)
    of_rewards = {"reward", "reference_reward", "win_rate", "log_quantile", "frontier_efficiency", "kl_efficiency"}
    of_rewards |= {"forward_kl_best_of_n", "backward_kl_best_of_n"}
    for name, estimate in estimates.items():
        assert np.isnan(estimate.value) == (name in of_rewards), name
    assert estimates["abstained"] == estimates["reference_abstained"] == (1, 1, 1)


def test_minus_infinity_is_the_worst_and_the_mean():
    lowest = -np.inf
    policy = samples_of([["x"] * 2] * 2, [[lowest, 1.0], [0.0, lowest]])
    reference = samples_of([["x"] * 2] * 2, [[lowest, 0.0], [lowest, 2.0]])
    estimates = estimate_all(policy, reference)
    assert estimates["reward"].value == estimates["reference_reward"].value == lowest
    assert np.isnan(estimates["reward"][1:]).all()
    assert estimates["win_rate"].value == pytest.approx(np.mean([0.5, 0, 1, 1, 1, 0, 0.5, 0]))
    assert estimates["win_rate"].low <= estimates["win_rate"].high


def test_rewards_are_compared_in_float64():
    few, many = samples_of([["x"] * 2] * 2, [[1.0, 2.0], [0.0, 2.0]]), samples_of([["x"] * 2] * 3, [[0, 1, 2], [2, 1, 1]])
    far = [samples._replace(rewards=1e9 + samples.rewards) for samples in (few, many)]
    near, far = estimate_all(few, many, best_of_n=2), estimate_all(*far, best_of_n=2)
    for name in ("win_rate", "log_quantile", "forward_kl_best_of_n", "backward_kl_best_of_n"):
        assert near[name] == far[name]


def test_every_estimate_has_a_unit_and_the_order_of_the_table():
    estimates = estimate_all(samples_of([["a"] * 3]), samples_of([["b"] * 3] * 4), best_of_n=3)
    assert list(estimates) == list(UNITS)


PROMPTS = ['say "hi",', "two\nlines\r\nand\ttab ", "", "grüße \u2028 🙂"]


@pytest.fixture
def saved(tmp_path):
    rare = ["", ' a "quoted", b', "\r", "\x00 and \u2028"]
    policy = samples_of([rare, rare[::-1]], [[1 / 3, NAN], [-np.inf, np.inf], [NAN, NAN], [1e9 + 1 / 3, -0.0]])
    reference = samples_of([["b", "c", "", " "]] * 3, seed=1)
    evaluation = Evaluation(estimate_all(policy, reference, 5, 2), policy, reference, PROMPTS)
    evaluation.save(tmp_path / "samples.csv")
    return evaluation, tmp_path / "samples.csv"


def test_what_is_saved_is_loaded_whatever_the_text(saved):
    evaluation, path = saved
    loaded = load(str(path), best_of_n=2, seed=5)
    np.testing.assert_equal(loaded.estimates, evaluation.estimates)  # to the last bit
    assert loaded.prompts == PROMPTS
    for ours, theirs in ((loaded.samples, evaluation.samples), (loaded.reference_samples, evaluation.reference_samples)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
    header = "prompt_index,prompt,source,sample,completion,reward,length,truncated,kl,log_prob,reference_log_prob,token_ids"
    assert path.read_text(encoding="utf-8").splitlines()[0] == header


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    policy, reference = samples_of([["a"] * 12] * 2), samples_of([["b"] * 12] * 11)  # 10 comes after 9, not after 1
    Evaluation({}, policy, reference, [*"abcdefghijkl"]).save(tmp_path / "samples.csv")
    header, *rows = (tmp_path / "samples.csv").read_text().splitlines()
    (tmp_path / "samples.csv").write_text("\n".join([header, *sorted(rows)[::-1]]))
    loaded = load(tmp_path / "samples.csv")
    assert loaded.prompts == [*"abcdefghijkl"]
    np.testing.assert_array_equal(loaded.reference_samples.rewards, reference.rewards)
    np.testing.assert_array_equal(loaded.samples.token_ids, policy.token_ids)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "a,b\n1,2\n", "the columns are ['a', 'b'], not ['prompt_index', "),
        (lambda text: "", "the columns are None, not ['prompt_index', "),
        (lambda text: text.splitlines()[0] + "\n", "there are not equally many completions for each prompt"),
        (lambda text: text[: text.rindex("\n3,")] + "\n", "there are not equally many completions for each prompt"),
        (lambda text: text[: text.rindex(" ")] + "\n", "there are not equally many token ids in each row"),
        (lambda text: text[: text.rindex(",")] + "\n", "this row is broken: ['3', "),
        (lambda text: text.rstrip() + ",more\n", "this row is broken: ['3', "),
        (lambda text: text.replace("False", "maybe"), "the column `truncated` is broken: 'maybe'"),
        (lambda text: text.replace("policy", "poet", 1), "this row is broken: ['0', "),
    ],
)
def test_a_file_that_is_not_one_is_refused(saved, spoil, message):
    path = saved[1]
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    path.write_text(spoil(text), encoding="utf-8", newline="")
    with pytest.raises(ValueError) as error:
        load(path)
    start = f"`path` must be a file that `Evaluation.save` wrote, and whole. Received: {str(path)!r}, where "
    assert str(error.value).startswith(start + message)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "samples.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match=r"^`path` must be a file that `Evaluation.save` wrote"):
        load(tmp_path / "samples.csv")
