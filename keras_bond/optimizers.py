"""Optimizers."""

import keras
from keras import ops

from keras_bond._checks import check_at_least, check_not_negative, check_positive


@keras.saving.register_keras_serializable("keras_bond")
class RowwiseSGD(keras.optimizers.SGD):
    """SGD with momentum that takes shorter steps along rows of large or of noisy gradients: a natural gradient, row by row.

        m_r  <-  m_r + (g_r - m_r) / min(t, horizon),    s_r  <-  s_r + (|g_r|^2 - s_r) / min(t, horizon)   row r, update t
        z_r   =  min(t, horizon) |m_r|^2 / s_r                                        signal to noise
        g_r  <-  g_r / (1 + s_r / (damping * mean over rows of s)) * z_r / (z_r + shrinkage)
        then SGD's own step with momentum

    A row of a token embedding is the token. What SGD changes in the logit of a token is in proportion to how often the
    token occurs, times what it is worth: it spends nearly all KL on the frequent tokens, whatever these are worth. Where the
    gradient of a batch is mostly noise, as that of a policy is, its second moment s_r is in proportion to the Fisher
    information of row r, and so to the frequency: dividing by it leaves the worth. `damping` bounds the step of rows that
    were hardly ever seen, of which little is known.

    Most tokens are worth nothing to a reward, and what their rows learn is noise, for which KL is spent all the same.
    `shrinkage` is the empirical Bayes answer: of a row whose gradients add up as noise does, z_r = 1 (1/2 long after
    `horizon`), it leaves 1 / (1 + shrinkage) of the step; that of a row whose gradients agree, z_r = t, hardly changes.

    The step of every row is shorter than SGD's, and the learning rate has to be larger. Variables of one axis are one row.
    It needs an entry of memory per row beyond SGD's momentum, and with `shrinkage` as much as the momentum once more.

    Args:
        learning_rate: float or schedule.
        momentum: in [0, 1].
        damping: > 0, in units of the mean row; large is SGD.
        shrinkage: >= 0; 0 asks for no agreement.
        horizon: updates, at least 1, that m and s remember.
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

    def __init__(
        self, learning_rate=0.01, momentum=0.0, damping=1.0, shrinkage=0.0, horizon=100, name="rowwise_sgd", **kwargs
    ):
        damping, shrinkage = check_positive(damping=damping), check_not_negative(shrinkage=shrinkage)
        horizon = check_at_least(1, horizon=horizon)
        super().__init__(learning_rate, momentum=momentum, name=name, **kwargs)
        self.damping, self.shrinkage, self.horizon = damping, shrinkage, horizon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.second_moments = [
            self.add_variable((_rows(variable), 1), dtype="float32", name=f"second_moment_{i}")
            for i, variable in enumerate(variables)
        ]
        self.means = [  # float32, whatever the policy's dtype: in bfloat16 a hundredth would round away
            self.add_variable(v.shape, dtype="float32", name=f"mean_{i}", layout=getattr(v, "_layout", None))
            for i, v in enumerate(variables if self.shrinkage else ())
        ]

    def update_step(self, gradient, variable, learning_rate):
        index, shape = self._get_variable_index(variable), (_rows(variable), -1)
        memory = ops.minimum(ops.cast(self.iterations + 1, "float32"), float(self.horizon))
        gradient = ops.cast(gradient, "float32")

        def remember(average, now):
            value = average + (now - average) / memory
            self.assign(average, value)
            return value

        rows = ops.reshape(gradient, shape)
        moment = remember(self.second_moments[index], _mean_square(rows))
        scale = self.damping * ops.mean(moment)
        rows = rows * ops.divide_no_nan(scale, scale + moment)
        if self.shrinkage:
            signal = memory * _mean_square(ops.reshape(remember(self.means[index], gradient), shape))
            rows = rows * ops.divide_no_nan(signal, signal + self.shrinkage * moment)
        super().update_step(ops.reshape(rows, variable.shape), variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "damping": self.damping, "shrinkage": self.shrinkage, "horizon": self.horizon}


def _rows(variable):
    return variable.shape[0] if len(variable.shape) > 1 else 1


def _mean_square(rows):
    return ops.mean(ops.square(rows), axis=1, keepdims=True)
