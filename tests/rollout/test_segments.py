"""Sampling by segments: the samples of one program, at the cost of the columns and rows in use."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.rollout import Completions, Rollout, Weights, sizes, weights_of
from keras_bond.rollout import rollout as module

PROMPTS = ["ab", "c", "ba", "a", "cb", "abc"]
WIDTH, BUDGET = 4, 12
STOP, OTHER = 1, 4


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr(sizes, "FIRST_SEGMENT", 3)
    monkeypatch.setattr(module, "fewest_rows", lambda tensor: 4)
    assert sizes.segments(BUDGET) == [3, 6, 12]


class Watched(Rollout):
    """Notes the shape, (rows, columns), of every program that samples, in the order of the calls."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.shapes, self.programs = [], (self._begin, self._go_on)
        self._begin, self._go_on = map(self._noted, self.programs)

    def _noted(self, program):
        def call(*arguments):
            *rest, (step, cache, *rows), progress = program(*arguments)
            self.shapes.append(tuple(rows[-1].shape))
            assert {tuple(array.shape[:2]) for array in keras.tree.flatten(cache)} == {
                (rows[-1].shape[0], WIDTH - 1 + rows[-1].shape[1])
            }
            return (*rest, (step, cache, *rows), progress)

        return call

    @property
    def traces(self):
        return sum(program.traces for program in self.programs)


def sample(rollout, sources, to_numpy):
    prompt = rollout.pad(rollout.encode(PROMPTS), WIDTH)
    return [[*map(to_numpy, completions)] for completions in rollout.sample_each(sources, *prompt)]


@pytest.mark.parametrize(
    ("kind", "lora"), tiny.on_all_backends([("gemma", 2)], [("gemma", None), ("gemma", 2), ("gemma3", 2)])
)
def test_segments_draw_the_samples_of_one_program(kind, lora, to_numpy, monkeypatch):
    model = tiny.causal_lm(kind, lora=lora, scale=0.3)
    rng, policy = np.random.default_rng(1), weights_of(model)
    moved = [value + 0.3 * rng.standard_normal(value.shape).astype("float32") for value in map(to_numpy, policy.trainable)]
    anchor = Weights([ops.convert_to_tensor(value) for value in moved], policy.frozen)
    sources = [(w, rng.random((len(PROMPTS), n, BUDGET), "float32")) for w, n in ((policy, 2), (anchor, 3))]

    with monkeypatch.context() as patch:
        patch.setattr(sizes, "FIRST_SEGMENT", BUDGET)
        whole = Watched(model, WIDTH, BUDGET, stop_token_ids=(1, 5))
        expected = sample(whole, sources, to_numpy)
    assert whole.shapes == []
    rollout = Watched(model, WIDTH, BUDGET, stop_token_ids=(1, 5))
    drawn = []
    for (ids, mask, log_probs), of_one in zip(sample(rollout, sources, to_numpy), expected, strict=True):
        np.testing.assert_array_equal(ids, of_one[0])
        np.testing.assert_array_equal(mask, of_one[1])
        np.testing.assert_allclose(log_probs, of_one[2], rtol=1e-5, atol=1e-5)
        drawn += mask.sum(axis=1).tolist()
    assert min(drawn) < 3
    assert max(drawn) == BUDGET
    rows, columns = zip(*rollout.shapes, strict=True)
    assert set(columns) == {3, 6, BUDGET}
    assert min(rows) == 4


def scripted(logits, uniforms, temperature):
    """Stops at a number above 1/2, whatever the model says; the number is the log-probability."""
    return ops.where(uniforms > 0.5, STOP, OTHER), uniforms


def script(drawn, count=4):
    """Numbers (B, count, T) by which completion i of all has drawn[i] tokens, or all that fit where that is more."""
    uniforms = np.random.default_rng(0).uniform(0, 0.5, (len(PROMPTS) * count, BUDGET)).astype("float32")
    for row, length in zip(uniforms, drawn, strict=True):
        row[length - 1 : length] = 0.9
    return uniforms.reshape(len(PROMPTS), count, BUDGET)


def assert_as_scripted(completions, drawn, uniforms):
    ids, mask, log_probs = completions
    columns, drawn = np.arange(BUDGET), np.array(drawn)[:, None]
    np.testing.assert_array_equal(mask, columns < drawn)
    np.testing.assert_array_equal(ids, np.where(columns == drawn - 1, STOP, np.where(mask, OTHER, 0)))
    np.testing.assert_array_equal(log_probs, np.where(mask, uniforms.reshape(-1, BUDGET), 0))


R = 4 * len(PROMPTS)
"""Rows of one source: they shrink to 4."""
CASES = {
    "all stop at once": ([1] * R, [(R, 3)]),
    "all stop with the first segment": ([3] * R, [(R, 3)]),
    "none stops": ([99] * R, [(R, 3), (R, 6), (R, 12)]),
    "all stop with the budget": ([BUDGET] * R, [(R, 3), (R, 6), (R, 12)]),
    "five go on": ([1] * (R - 5) + [99] * 5, [(R, 3), (R, 6), (R, 12)]),
    "four go on": ([99] * 2 + [1] * (R - 4) + [99] * 2, [(R, 3), (4, 3), (4, 6), (4, 12)]),
    "three leave the others at a segment's end": ([3] * (R - 3) + [99] * 3, [(R, 3), (4, 6), (4, 12)]),
    "one stays until the second segment": ([2, 5] + [1] * (R - 2), [(R, 3), (4, 3), (4, 6)]),
    "some leave in the last": ([9] * (R - 2) + [10, 11], [(R, 3), (R, 6), (R, 12), (4, 12)]),
}


def test_columns_grow_and_rows_leave_as_they_stop_in_few_programs(to_numpy):
    rollout, shapes = Watched(tiny.causal_lm(), WIDTH, BUDGET, draw=scripted, stop_token_ids=(STOP,)), []
    for name, (drawn, expected) in CASES.items():
        uniforms = script(drawn)
        (completions,) = sample(rollout, [(weights_of(rollout.causal_lm), uniforms)], to_numpy)
        assert_as_scripted(completions, drawn, uniforms)
        assert rollout.shapes == expected, name
        shapes += expected
        rollout.shapes.clear()
    assert len(set(shapes)) == 6 == len(sizes.segments(BUDGET)) * (len(sizes.row_sizes(R, 4)) - 1)
    assert rollout.traces == (0 if keras.config.backend() == "torch" else 6)


def test_groups_of_prompts_end_on_their_own(to_numpy):
    """Of two prompts at a time, rows i and i + 3; only the second group goes on."""
    model, drawn = tiny.causal_lm(), [2] * R
    drawn[4:8], drawn[16:20] = [99, 5, 99, 99], [2, 99, 99, 2]
    rollout = Watched(model, WIDTH, BUDGET, draw=scripted, stop_token_ids=(STOP,), sampling_batch_size=2)
    uniforms = script(drawn)
    (completions,) = sample(rollout, [(weights_of(model), uniforms)], to_numpy)
    assert_as_scripted(completions, drawn, uniforms)
    assert rollout.shapes == [(8, 3), (8, 3), (8, 6), (8, 12), (8, 3)]


@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX's program")
def test_inside_a_program_all_is_one_program():
    import jax

    rollout = Watched(tiny.causal_lm(), WIDTH, BUDGET)
    sources = [(weights_of(rollout.causal_lm), np.zeros((2, n, BUDGET), "float32")) for n in (1, 2)]
    prompt = np.ones((2, 2, WIDTH), "int32")
    program = str(jax.make_jaxpr(lambda sources, *prompt: rollout.sample_each(sources, *prompt))(sources, *prompt))
    assert program.count("while[") == len(sources)
    assert rollout.shapes == []


def test_completions_are_cut_to_the_bucket_of_the_longest(to_numpy):
    rollout = Rollout(tiny.causal_lm(), WIDTH, 40)

    def of(drawn):
        mask = np.arange(40) < np.array(drawn)[:, None]
        return Completions(*map(ops.convert_to_tensor, (np.where(mask, 5, 0), mask, np.where(mask, -1.5, 0))))

    for drawn, width in (([[3, 9], [1]], 12), ([[0], [0]], 8), ([[17, 2], [24]], 24), ([[5], [33]], 40)):
        assert rollout.completion_bucket(max(map(max, drawn))) == width
        for rows, given, cut in zip(drawn, map(of, drawn), rollout.trim([of(rows) for rows in drawn]), strict=True):
            for before, after in zip(given, cut, strict=True):
                np.testing.assert_array_equal(to_numpy(after), to_numpy(before)[:, :width])
            np.testing.assert_array_equal(to_numpy(cut.mask).sum(axis=1), rows)
