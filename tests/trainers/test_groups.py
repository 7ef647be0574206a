"""A batch in groups of like length: the same scores, the same gradient, fewer positions."""

import hub
import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import BOND, JBOND
from keras_bond.data import bucket
from keras_bond.ops import sequence_log_prob
from keras_bond.rollout import Rollout, group, groups, weights_of

PROMPTS = ["ab", "c", "bcaabcaabcab", "aab", "cc", "b", "ca", "abcabc"]


def ragged(rng, count=16, samples=3, width=24, mean=5, longest=16):
    of_prompts, lengths = (8 / rng.uniform(size=count)).clip(1, longest), rng.geometric(1 / mean, (count, samples))
    prompt_mask = (np.arange(longest) >= longest - of_prompts.astype(int)[:, None]).astype("int32")
    mask = np.arange(width) < lengths.clip(1, width)[..., None]
    ids = rng.integers(3, 7, mask.shape)
    return prompt_mask * rng.integers(3, 7, prompt_mask.shape), prompt_mask, mask * ids, mask


@pytest.mark.any_backend
def test_groups_hold_every_token_once_in_few_positions(monkeypatch):
    monkeypatch.setattr(groups, "FEWEST_POSITIONS", 1)
    prompt_ids, prompt_mask, ids, mask = ragged(np.random.default_rng(0))
    found = group(prompt_ids, prompt_mask, ids, mask)
    prompts = [row[of == 1].tolist() for part in found.prompts for row, of in zip(*part, strict=True)]
    completions = [
        (prompts[owner], row[of].tolist()) for part in found.completions for owner, row, of in zip(*part, strict=True)
    ]
    in_order = [completions[place] for place in found.places]
    expected = [
        (prompt_ids[i][prompt_mask[i] == 1].tolist(), ids[i, j][mask[i, j]].tolist()) for i in range(16) for j in range(3)
    ]
    assert in_order == expected
    positions = sum(part.ids.size for part in (*found.prompts, *found.completions))
    assert positions <= groups.GAIN * (prompt_ids.size + ids.size)


@pytest.mark.any_backend
def test_what_gains_nothing_by_groups_stays_whole(monkeypatch):
    prompt_ids, prompt_mask, ids, mask = ragged(np.random.default_rng(0))
    assert group(prompt_ids, prompt_mask, ids, mask) is None  # too small
    monkeypatch.setattr(groups, "FEWEST_POSITIONS", 1)
    assert group(prompt_ids, np.ones_like(prompt_mask), ids, np.ones_like(mask)) is None


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("mean", "budget", "count", "programs", "share"),
    [(15, 256, 64, 30, 0.45), (100, 256, 64, 10, 0.75), (200, 512, 16, 35, 0.75)],
)
def test_the_shapes_that_come_up_are_few(mean, budget, count, programs, share):
    """Each is a program. Lengths of a geometric law, prompts of a heavy tail; of 200 steps (seen: 24, 7, 27)."""
    rng, shapes, positions = np.random.default_rng(0), set(), [0, 0]
    for _ in range(200):
        batch = ragged(rng, count, 3, budget, mean, 176)
        widest = bucket(batch[1].sum(1).max(), 176), bucket(batch[3].sum(2).max(), budget)
        whole = [field[..., -widest[0] :] for field in batch[:2]] + [field[..., : widest[1]] for field in batch[2:]]
        found = group(*whole)
        sizes = (
            [part.ids.shape for part in (*found.prompts, *found.completions)] if found else [field.shape for field in whole]
        )
        shapes.add(tuple(sizes))
        positions[0] += sum(map(np.prod, sizes)) / (1 if found else 2)  # of the whole also the masks
        positions[1] += whole[0].size + whole[2].size
    assert positions[0] < share * positions[1]
    assert len(shapes) <= programs


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_groups_are_scored_as_the_whole(monkeypatch, to_numpy, kind):
    monkeypatch.setattr(groups, "FEWEST_POSITIONS", 1)
    model = hub.causal_lm(kind, max_sequence_length=64) if kind in hub.CONFIGS else tiny.causal_lm(kind, scale=0.3)
    prompt_ids, prompt_mask, ids, mask = ragged(np.random.default_rng(1))
    rollout = Rollout(model, 16, 24)
    whole = rollout.score(weights_of(model), prompt_ids, prompt_mask, ids.reshape(-1, 24).astype("int32"))
    expected = to_numpy(sequence_log_prob(whole, mask.reshape(-1, 24)))
    found = to_numpy(rollout.score_groups(weights_of(model), group(prompt_ids, prompt_mask, ids.astype("int32"), mask)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=24 * tiny.ROUNDING)  # sums of 24 log-probs


@pytest.mark.parametrize(
    ("algorithm", "settings", "lora"),
    tiny.on_all_backends(
        [(JBOND, {"n": 2, "num_samples": 2}, 2)],
        [
            (JBOND, {"n": 2, "num_samples": 2}, 2),
            (JBOND, {"n": 2, "variance_reduction": False}, None),
            (BOND, {"n": 2}, None),
        ],
    ),
)
def test_the_gradient_of_groups_is_that_of_the_whole(monkeypatch, algorithm, settings, lora):
    monkeypatch.setattr(groups, "GAIN", 2.0)
    steps = {}
    for fewest in (1, 10**9):
        monkeypatch.setattr(groups, "FEWEST_POSITIONS", fewest)
        policy = tiny.causal_lm(seed=1, lora=lora)
        trainer = algorithm(
            policy, tiny.letters_reward, max_prompt_length=16, max_completion_length=24, **settings
        )  # fmt: skip
        tiny.perturb(policy, np.random.default_rng(3), 0.1)  # away from the anchor
        trainer.compile(keras.optimizers.SGD(1.0))
        start = [ops.convert_to_numpy(v.value) + 0 for v in policy.trainable_variables]
        logs = trainer.fit(PROMPTS, batch_size=8, verbose=0).history
        assert (trainer.trajectory.groups is None) == (fewest > 1)
        step = [s - ops.convert_to_numpy(v.value) for s, v in zip(start, policy.trainable_variables, strict=True)]
        steps[fewest] = step, {name: value[0] for name, value in logs.items()}
    (found, logs), (expected, expected_logs) = steps.values()
    largest = max(np.abs(gradient).max() for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=tiny.ROUNDING * largest)
    for name, value in expected_logs.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
