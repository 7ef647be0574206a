"""BOND: sections 3 and 4 of "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv 2407.14622)."""

import keras

from keras_bond._checks import check_at_least, check_share
from keras_bond.anchors import FrozenAnchor
from keras_bond.ops import backward_kl_loss, bond_reward, forward_kl_loss, jeffreys_loss, valid_mean
from keras_bond.quantiles import Learned, MonteCarlo
from keras_bond.rollout import replicas
from keras_bond.trainers.trainer import AlignmentTrainer


@keras.saving.register_keras_serializable("keras_bond")
class BOND(AlignmentTrainer):
    """Distils Best-of-N of the reference into the policy: the Jeffreys divergence, with estimated quantiles.

    For every prompt x of the batch:

        y ~ pi,   y_1 ... y_k ~ pi_ref,   y_best the best of y_1 ... y_N,   p_<=(y) = P[r(y') <= r(y)] for y' ~ pi_ref
        G = (1 - beta) [ -grad log pi(y_best) ]
          + beta (N - 1) [ -grad log pi(y) (log p_<=(y) - log(pi(y)/pi_ref(y)) / (N - 1) - B) ]

    B is the mean return of the other samples of the batch. One sampling pass serves both the quantiles and y_best: it draws
    max(N, k) reference samples a prompt.

    Args:
        policy, reward, **kwargs: see `AlignmentTrainer`.
        n: the N of Best-of-N, at least 2.
        beta: in [0, 1]: 1 is the backward KL alone, 0 the forward KL alone.
        quantiles: `keras_bond.quantiles.MonteCarlo(k)`, the default with k = 16, or `keras_bond.quantiles.Learned()`.
        exact_ties: whether r_BOND keeps the collision factor, log[(p_<=^N - p_<^N) / (p_<= - p_<)] / (N - 1), which makes
            the backward KL exact under ties (ours; the paper drops it). Needs `MonteCarlo`.
        anchor: whose Best-of-N is distilled; the reference, a `FrozenAnchor`, by default.

    Raises:
        ValueError: if an argument is out of range; the message names it.

    Example:

    ```python
    trainer = keras_bond.BOND(policy, reward, n=8, quantiles=keras_bond.quantiles.MonteCarlo(16))
    trainer.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
    trainer.fit(prompts, batch_size=64)
    ```
    """

    parts = ("forward_loss", "backward_loss", "log_quantile")

    def __init__(self, policy, reward, n=4, beta=0.5, quantiles=None, exact_ties=False, anchor=None, **kwargs):
        check_at_least(2, n=n)
        check_share(beta=beta)
        quantiles = MonteCarlo() if quantiles is None else quantiles
        if not isinstance(quantiles, (MonteCarlo, Learned)):
            raise ValueError(
                f"`quantiles` must be `quantiles.MonteCarlo` or `quantiles.Learned`. Received: quantiles={quantiles!r}"
            )
        if exact_ties and not isinstance(quantiles, MonteCarlo):
            raise ValueError(
                "`exact_ties=True` needs p_<, which only `quantiles.MonteCarlo` estimates. "
                f"Received: quantiles={type(quantiles).__name__}"
            )
        if isinstance(quantiles, Learned) and replicas():
            raise ValueError(
                "`quantiles.Learned` does not run under a `tf.distribute` strategy: use `quantiles.MonteCarlo`, or the JAX "
                "backend with `keras.distribution`."
            )
        super().__init__(
            policy,
            reward,
            anchor=anchor or FrozenAnchor(),
            num_anchor_samples=max(n, quantiles.num_samples),
            num_best_of=n,
            **kwargs,
        )
        self.n, self.beta, self.exact_ties = n, beta, exact_ties
        self.quantiles = quantiles
        self.quantiles.follow(policy)

    def collect(self, rows, draw):
        trajectory = super().collect(rows, draw)
        p_less, p_less_equal = self.quantiles(trajectory)
        return trajectory._replace(p_less=p_less, p_less_equal=p_less_equal)

    def observe(self, trajectory):
        self.quantiles.observe(trajectory)

    def objective(self, scores, trajectory):
        reward = bond_reward(trajectory.p_less_equal, *((trajectory.p_less, self.n) if self.exact_ties else ()))
        forward = forward_kl_loss(scores.contender_log_prob, trajectory.contender_weights, scores.contender_anchor_log_prob)
        backward = backward_kl_loss(scores.log_prob, trajectory.anchor_log_prob, reward, self.n)
        return jeffreys_loss(forward, backward, self.beta), {
            "forward_loss": forward,
            "backward_loss": backward,
            "log_quantile": valid_mean(bond_reward(trajectory.p_less_equal)),
        }

    # A learned quantile's model and its optimizer belong to the training state, but not to the trainer's own variables.

    def _state_variables(self):
        groups = super()._state_variables()
        groups["non_trainable_variables"] = [*groups["non_trainable_variables"], *self.quantiles.variables]
        return groups

    def _unsaved_by_keras(self):
        return [*super()._unsaved_by_keras(), *self.quantiles.variables]

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = {"n": self.n, "beta": self.beta, "exact_ties": self.exact_ties}
        objects = {"quantiles": serialize(self.quantiles), "anchor": serialize(self.anchor)}
        return {**super().get_config(), **config, **objects}
