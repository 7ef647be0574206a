"""One rule for three anchors: after each optimizer update the shadow moves a share of the way to the policy.

theta_a <- (1 - rate) theta_a + rate theta
"""

import keras
from keras import ops

from keras_bond._checks import check_at_least, check_number


class Anchor(keras.layers.Layer):
    """Holds a shadow of a policy's trainable variables; subclasses say how fast it follows.

    The shadow is float32 whatever the policy's dtype: in bfloat16 a step of 0.02 would round away. Only trainable
    variables are shadowed: with LoRA that is the adapter alone, and the frozen backbone exists once for policy, anchor and
    reference. (Then the anchor averages the factors A and B; that is not the average of their product AB.)

    Subclasses implement `rate(update)`, with `update` = 1, 2, ... the number of optimizer updates so far.

    Example:

    >>> theta = keras.Variable([1.0])
    >>> anchor = EMAAnchor(eta=0.5)
    >>> anchor.follow([theta])
    >>> anchor.update([ops.zeros((1,))])
    >>> float(anchor.shadows[0][0])
    0.5
    """

    def __init__(self, **kwargs):
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.shadows = []

    def follow(self, variables):
        """Start from the present values of `variables` (a list of `keras.Variable`)."""
        if self.shadows:
            raise ValueError(
                f"`{type(self).__name__}` follows {len(self.shadows)} variables already: make one anchor per trainer."
            )
        # under `tf.distribute` every replica computes the same new value
        mirrored = {"trainable": False, "aggregation": "only_first_replica"}
        self.updates = self.add_weight(shape=(), dtype="int32", initializer="zeros", name="updates", **mirrored)
        with keras.name_scope(self.name, caller=self):
            self.shadows = [
                keras.Variable(
                    # a copy, never the policy's own buffer, which a training step may donate
                    ops.copy(ops.cast(v.value, "float32")),
                    dtype="float32",
                    name=f"shadow_{i}",
                    layout=getattr(v, "_layout", None),  # spread over devices as the variable is, as Keras' optimizers do
                    **mirrored,
                )
                for i, v in enumerate(variables)
            ]
        self.built = True

    def rate(self, update):
        """The share of the way to the policy at the given update: a scalar in [0, 1]."""
        raise NotImplementedError(f"`{type(self).__name__}` must implement `rate(update)`.")

    def update(self, values, updated=1):
        """Move the shadow once, after an optimizer update.

        Args:
            values: the policy's new trainable values, in the order of `follow`.
            updated: 0 where the step only accumulated gradients: then nothing moves. May be a traced scalar.
        """
        self.updates.assign(self.updates + ops.cast(updated, "int32"))
        rate = ops.cast(updated, "float32") * ops.cast(self.rate(self.updates), "float32")
        for shadow, value in zip(self.shadows, values, strict=True):
            shadow.assign((1.0 - rate) * shadow + rate * ops.cast(value, "float32"))

    def distance(self, values):
        """Euclidean distance ||theta - theta_a|| over all shadowed variables: a scalar."""
        squares = [
            ops.sum(ops.square(ops.cast(value, "float32") - shadow))
            for shadow, value in zip(self.shadows, values, strict=True)
        ]
        return ops.sqrt(sum(squares))

    def matches(self, variables):
        """Whether the shadow has the shapes of `variables`."""
        return [tuple(s.shape) for s in self.shadows] == [tuple(v.shape) for v in variables]


@keras.saving.register_keras_serializable("keras_bond")
class FrozenAnchor(Anchor):
    """An anchor that never moves: BOND's, and the reference that every KL is reported against."""

    def rate(self, update):
        return 0.0

    def update(self, values, updated=1):
        """Does nothing."""


@keras.saving.register_keras_serializable("keras_bond")
class PeriodicAnchor(Anchor):
    """An anchor that becomes the policy every `period` optimizer updates: iterative BOND (Algorithm 1).

    Args:
        period: optimizer updates between two moves, at least 1.
    """

    def __init__(self, period, **kwargs):
        super().__init__(**kwargs)
        self.period = check_at_least(1, period=period)

    def rate(self, update):
        return ops.equal(update % self.period, 0)

    def get_config(self):
        return {**super().get_config(), "period": self.period}


@keras.saving.register_keras_serializable("keras_bond")
class EMAAnchor(Anchor):
    """The exponential moving average of the policy: J-BOND's anchor (Algorithm 2, step 6).

        theta_a <- (1 - eta) theta_a + eta theta

    After k updates with the policy at theta_1 ... theta_k:
    theta_a = (1 - eta)^k theta_0 + eta sum_j (1 - eta)^(k-j) theta_j.

    Args:
        eta: in (0, 1]; the paper uses 0.02. A larger eta is faster and spends more KL.
    """

    def __init__(self, eta=0.02, **kwargs):
        super().__init__(**kwargs)
        self.eta = check_number("lie in (0, 1]", lambda eta: 0 < eta <= 1, eta=eta)

    def rate(self, update):
        return self.eta

    def get_config(self):
        return {**super().get_config(), "eta": self.eta}
