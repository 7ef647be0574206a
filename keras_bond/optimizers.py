"""Optimizers."""

import keras
from keras import ops

from keras_bond._checks import check_at_least, check_positive


@keras.saving.register_keras_serializable("keras_bond")
class RowwiseSGD(keras.optimizers.SGD):
    """SGD with momentum that takes shorter steps along rows with larger gradients: a natural gradient, row by row.

        s_r  <-  s_r + (mean_d g_rd^2 - s_r) / min(t, horizon)                    of row r, at update t
        g_r  <-  g_r / (1 + s_r / (damping * mean over rows of s)),               then SGD's own step with momentum

    A row of a token embedding is the token. What SGD changes in the logit of a token is in proportion to how often the
    token occurs, times what it is worth: it spends nearly all KL on the frequent tokens, whatever these are worth. Where the
    gradient of a batch is mostly noise, as that of a policy is, its second moment s_r is in proportion to the Fisher
    information of row r, and so to the frequency: dividing by it leaves the worth. `damping` bounds the step of rows that
    were hardly ever seen, of which little is known.

    The step of every row is shorter than SGD's, and the learning rate has to be larger. Variables of one axis are one row.
    An entry of memory per row is all that it needs beyond SGD's momentum.

    Args:
        learning_rate: float or schedule.
        momentum: in [0, 1].
        damping: > 0, in units of the mean row; large is SGD.
        horizon: updates, at least 1, that s remembers.
        **kwargs: as in `keras.optimizers.SGD`.

    Raises:
        ValueError: if an argument is out of range; the message names it.

    Example:

    >>> table = keras.Variable([[0.0], [0.0], [0.0]])
    >>> RowwiseSGD(1.0).apply([ops.convert_to_tensor([[3.0], [0.1], [0.0]])], [table])
    >>> [round(float(x), 3) for x in ops.ravel(table)]
    [-0.751, -0.1, 0.0]

    Source: ours; learning rates by a token's frequency: Li et al., "Frequency-aware SGD for Efficient Embedding Learning
    with Provable Benefits" (arXiv 2110.04844).
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, damping=1.0, horizon=100, name="rowwise_sgd", **kwargs):
        check_positive(damping=damping)
        check_at_least(1, horizon=horizon)
        super().__init__(learning_rate, momentum=momentum, name=name, **kwargs)
        self.damping, self.horizon = damping, horizon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.second_moments = [
            self.add_variable((_rows(variable), 1), dtype="float32", name=f"second_moment_{i}")
            for i, variable in enumerate(variables)
        ]

    def update_step(self, gradient, variable, learning_rate):
        second_moment = self.second_moments[self._get_variable_index(variable)]
        rows = ops.cast(ops.reshape(gradient, (_rows(variable), -1)), "float32")
        share = 1.0 / ops.minimum(ops.cast(self.iterations + 1, "float32"), float(self.horizon))
        now = ops.mean(ops.square(rows), axis=1, keepdims=True)
        moment = second_moment + share * (now - second_moment)
        self.assign(second_moment, moment)
        scale = self.damping * ops.mean(moment)
        rows = rows * ops.divide_no_nan(scale, scale + moment)
        super().update_step(ops.reshape(rows, variable.shape), variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "damping": self.damping, "horizon": self.horizon}


def _rows(variable):
    return variable.shape[0] if len(variable.shape) > 1 else 1
