"""J-BOND: Algorithm 2 of "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv 2407.14622)."""

import keras

from keras_bond._checks import check_at_least, check_not_negative, check_share
from keras_bond.anchors import EMAAnchor
from keras_bond.ops import (
    backward_kl_loss,
    expected_jbond_reward,
    forward_kl_loss,
    is_valid,
    jbond_reward,
    jeffreys_loss,
    kl_loss,
    valid_mean,
)
from keras_bond.trainers.trainer import AlignmentTrainer


@keras.saving.register_keras_serializable("keras_bond")
class JBOND(AlignmentTrainer):
    """Distils Best-of-n of a moving anchor into the policy: the Jeffreys divergence, n = 2, an EMA anchor.

    For every prompt x of the batch:

        y ~ pi,   y_1 ... y_n ~ pi_a,   y_best the best of them,   r_J(y) = -2^n log 2 if r(y) < min r(y_i), else 0
        G = (1 - beta) [ -grad log pi(y_best) ]
          + beta (n - 1) [ -grad log pi(y) (r_J(y) - log(pi(y)/pi_a(y)) / (n - 1) - B) ]
          + gamma [ +grad log pi(y) (log(pi(y)/pi_a(y)) - B') ]

    then an optimizer step on the mean of G, and theta_a <- (1 - eta) theta_a + eta theta. B and B' are the mean of the
    other samples of the batch. Every KL is to the moving anchor; the reference (the policy as it was at construction) is
    only what `kl_reference` is reported against. With LoRA, call `enable_lora` on the policy first.

    Args:
        policy, reward, **kwargs: see `AlignmentTrainer`.
        n: anchor samples per prompt, at least 2. The paper has 2; more is ours.
        beta: in [0, 1]: 1 is the backward KL alone, 0 the forward KL alone.
        eta: in (0, 1]: how fast the anchor follows.
        gamma: >= 0: weight of KL(pi || pi_a), which slows the policy down.
        num_anchor_samples: k, at least n; n by default. Every choice of n of the k samples counts: the same objective, and
            less noise for every sample more (ours).
        variance_reduction: whether all k count in the forward term, less what the policy gives them already, see
            `ops.forward_kl_loss` (ours); `False` is the paper's estimator, the best of the first n alone.
        anchor: a `keras_bond.anchors.Anchor`; `EMAAnchor(eta)` by default. `eta` says nothing about another one.

    Raises:
        ValueError: if an argument is out of range; the message names it.

    Example:

    ```python
    policy = keras_hub.models.CausalLM.from_preset(keras_bond.presets.path("tiny_gemma"))
    trainer = keras_bond.JBOND(policy, keras_bond.rewards.VaderSentiment(), max_prompt_length=16)
    trainer.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
    trainer.fit(keras_bond.presets.prompts("tiny_gemma", "train"), batch_size=64)
    trainer.policy.generate("We will")
    ```
    """

    parts = ("forward_loss", "backward_loss", "regularizer", "penalised")

    def __init__(
        self,
        policy,
        reward,
        n=2,
        beta=0.5,
        eta=0.02,
        gamma=0.0,
        num_anchor_samples=None,
        variance_reduction=True,
        anchor=None,
        **kwargs,
    ):
        check_at_least(2, n=n)
        num_anchor_samples = n if num_anchor_samples is None else num_anchor_samples
        check_at_least(n, num_anchor_samples=num_anchor_samples)
        check_share(beta=beta)
        check_not_negative(gamma=gamma)
        samples = {"num_anchor_samples": num_anchor_samples, "num_best_of": n, "variance_reduction": variance_reduction}
        super().__init__(policy, reward, anchor=anchor or EMAAnchor(eta), **samples, **kwargs)
        self.n, self.beta, self.eta, self.gamma = n, beta, eta, gamma

    def objective(self, scores, trajectory):
        reward = jbond_reward(trajectory.relative_reward, trajectory.relative_anchor_rewards, self.n)
        forward = forward_kl_loss(scores.contender_log_prob, trajectory.contender_weights, scores.contender_anchor_log_prob)
        backward = backward_kl_loss(scores.log_prob, trajectory.anchor_log_prob, reward, self.n)
        regularizer = kl_loss(scores.log_prob, trajectory.anchor_log_prob, is_valid(reward))
        return jeffreys_loss(forward, backward, self.beta) + self.gamma * regularizer, {
            "forward_loss": forward,
            "backward_loss": backward,
            "regularizer": regularizer,
            "penalised": valid_mean(reward) / expected_jbond_reward(0.0, self.n),
        }

    def get_config(self):
        config = {"n": self.n, "beta": self.beta, "eta": self.eta, "gamma": self.gamma}
        config["num_anchor_samples"] = self.num_anchor_samples
        return {**super().get_config(), **config, "anchor": keras.saving.serialize_keras_object(self.anchor)}
