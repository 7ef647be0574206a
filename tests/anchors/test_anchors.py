import keras
import numpy as np
import pytest
from keras import ops

from keras_bond.anchors import Anchor, EMAAnchor, FrozenAnchor, PeriodicAnchor

RNG = np.random.default_rng(0)
START = [RNG.normal(size=(2, 3)), RNG.normal(size=4)]
PATH = [[RNG.normal(size=(2, 3)), RNG.normal(size=4)] for _ in range(6)]  # the policy after each update


def variables(values=START, dtype="float32"):
    return [keras.Variable(np.asarray(v, "float32"), dtype=dtype) for v in values]


def following(anchor, values=START):
    anchor.follow(variables(values))
    return anchor


def assert_shadow(anchor, expected, to_numpy, **tolerance):
    assert len(anchor.shadows) == len(expected)
    for shadow, value in zip(anchor.shadows, expected, strict=True):
        np.testing.assert_allclose(to_numpy(shadow.value), np.asarray(value, "float32"), **{"rtol": 0, **tolerance})


ANCHORS = [lambda: FrozenAnchor(), lambda: PeriodicAnchor(3), lambda: EMAAnchor(0.3)]


@pytest.mark.parametrize("make", ANCHORS, ids=["frozen", "periodic", "ema"])
def test_shadow_starts_as_an_exact_copy(make, to_numpy):
    assert_shadow(following(make()), START, to_numpy)


@pytest.mark.parametrize("make", ANCHORS, ids=["frozen", "periodic", "ema"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shadow_is_float32_and_no_alias(make, dtype, to_numpy):
    theta = variables([np.ones(3)], dtype)
    anchor = make()
    anchor.follow(theta)
    assert [s.dtype for s in anchor.shadows] == ["float32"]
    theta[0].assign(np.full(3, 2.0))
    assert_shadow(anchor, [np.ones(3)], to_numpy)


@pytest.mark.parametrize("make", ANCHORS, ids=["frozen", "periodic", "ema"])
def test_shadow_is_tracked_and_not_trainable(make):
    anchor = following(make())
    assert anchor.trainable_variables == []
    assert [v.path for v in anchor.variables] == [v.path for v in [anchor.updates, *anchor.shadows]]


def test_ema_after_k_updates_is_the_weighted_sum(to_numpy):
    anchor = following(EMAAnchor(0.3))
    for k, values in enumerate(PATH, start=1):
        anchor.update([ops.convert_to_tensor(v, "float32") for v in values])
        weights = [0.7**k, *(0.3 * 0.7 ** (k - j) for j in range(1, k + 1))]
        expected = [sum(w * v for w, v in zip(weights, part, strict=True)) for part in zip(START, *PATH[:k], strict=True)]
        assert_shadow(anchor, expected, to_numpy, rtol=1e-5, atol=1e-6)


def test_ema_of_a_bfloat16_policy_does_not_round_away(to_numpy):
    """The policy moves by one bfloat16 step at 1; a share of 0.02 of it is below half a step."""
    theta = variables([[1.0, -1.0]], "bfloat16")
    anchor = EMAAnchor()
    anchor.follow(theta)
    moved = np.array([1.0078125, -1.015625])  # both exact in bfloat16
    theta[0].assign(moved)
    for k in range(1, 51):
        anchor.update([theta[0].value])
        if k in (1, 50):
            expected = moved + 0.98**k * (np.array([1.0, -1.0]) - moved)
            assert_shadow(anchor, [expected], to_numpy, rtol=2e-6)


def test_ema_with_eta_one_is_the_policy(to_numpy):
    anchor = following(EMAAnchor(1.0))
    anchor.update(PATH[0])
    assert_shadow(anchor, PATH[0], to_numpy)


@pytest.mark.parametrize("period", [1, 2, 3])
def test_periodic_copies_at_multiples_and_rests_between(period, to_numpy):
    anchor = following(PeriodicAnchor(period))
    for k, values in enumerate(PATH, start=1):
        anchor.update(values)
        last = k - k % period
        assert_shadow(anchor, PATH[last - 1] if last else START, to_numpy)


def test_frozen_never_moves(to_numpy):
    anchor = following(FrozenAnchor())
    for values in PATH:
        anchor.update(values)
    assert_shadow(anchor, START, to_numpy)
    assert anchor.rate(1) == 0


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("make", ANCHORS, ids=["frozen", "periodic", "ema"])
def test_a_step_that_only_accumulates_moves_nothing(make, tensor, to_numpy):
    """The third call is the third step, but only the second update: the period of 3 is not over."""
    anchor, twin = following(make()), following(make())
    flags = [1, 0, 1, 0, 0]
    for values, flag in zip(PATH, flags, strict=False):
        before = [to_numpy(s.value).copy() for s in anchor.shadows]
        anchor.update(values, ops.convert_to_tensor(flag) if tensor else flag)
        if flag:
            twin.update(values)
        else:
            assert_shadow(anchor, before, to_numpy)
    assert_shadow(anchor, [to_numpy(s.value) for s in twin.shadows], to_numpy)
    if not isinstance(anchor, FrozenAnchor):
        assert int(anchor.updates.value) == 2


def test_distance_is_euclidean_over_all_variables(to_numpy):
    anchor = following(EMAAnchor(0.5))
    np.testing.assert_array_equal(to_numpy(anchor.distance(variables())), 0)
    expected = np.sqrt(sum(np.sum((v - s) ** 2) for v, s in zip(PATH[0], START, strict=True)))
    np.testing.assert_allclose(to_numpy(anchor.distance(PATH[0])), expected, rtol=1e-5)
    anchor.update(PATH[0])
    np.testing.assert_allclose(to_numpy(anchor.distance(PATH[0])), expected / 2, rtol=1e-5)


def test_matches_compares_shapes():
    anchor = following(FrozenAnchor())
    assert anchor.matches(variables(PATH[0]))
    assert not anchor.matches(variables(START[::-1]))
    assert not anchor.matches(variables(START[:1]))


@pytest.mark.parametrize("method", ["update", "distance"])
def test_values_must_be_as_many_as_the_shadows(method):
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter than argument 1"):
        getattr(following(EMAAnchor(0.5)), method)([ops.zeros((2, 3))])


@pytest.mark.parametrize(
    ("anchor", "own"),
    [
        (FrozenAnchor(), {}),
        (PeriodicAnchor(50), {"period": 50}),
        (EMAAnchor(0.1), {"eta": 0.1}),
        (EMAAnchor(), {"eta": 0.02}),
    ],
    ids=["frozen", "periodic", "ema", "ema by default"],
)
def test_config_round_trip(anchor, own):
    config = anchor.get_config()
    assert own.items() <= config.items()
    assert not config["trainable"]
    for twin in (
        type(anchor).from_config(config),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(anchor)),
    ):
        assert type(twin) is type(anchor)
        assert twin.get_config() == config


@pytest.mark.parametrize("make", ANCHORS, ids=["frozen", "periodic", "ema"])
def test_following_twice_is_refused(make):
    anchor = following(make())
    with pytest.raises(ValueError) as error:
        anchor.follow(variables())
    assert str(error.value) == f"`{type(anchor).__name__}` follows 2 variables already: make one anchor per trainer."


@pytest.mark.parametrize("eta", [0, -0.1, 1.01, float("nan")])
def test_eta_must_lie_in_0_to_1(eta):
    with pytest.raises(ValueError) as error:
        EMAAnchor(eta)
    assert str(error.value) == f"`eta` must lie in (0, 1]. Received: eta={eta}"


@pytest.mark.parametrize("period", [0, -3, 2.0, None])
def test_period_must_be_a_positive_integer(period):
    with pytest.raises(ValueError) as error:
        PeriodicAnchor(period)
    assert str(error.value) == f"`period` must be an integer of at least 1. Received: period={period!r}"


def test_a_subclass_says_how_fast_it_follows(to_numpy):
    class Slowing(Anchor):
        def rate(self, update):
            return 1 / (1 + ops.cast(update, "float32"))

    anchor = following(Slowing(), [np.zeros(1)])
    for value in (1.0, 2.0, 6.0):  # the running mean of 0, 1, 2, 6
        anchor.update([np.array([value])])
    assert_shadow(anchor, [[9 / 4]], to_numpy, rtol=1e-6)


def test_the_base_class_has_no_rate():
    with pytest.raises(NotImplementedError, match=r"`Anchor` must implement `rate\(update\)`."):
        following(Anchor()).update(PATH[0])
