"""J-BOND: Algorithm 2 of "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv 2407.14622)."""

import keras
from keras import ops

from keras_bond.anchors import EMAAnchor
from keras_bond.ops import backward_kl_loss, forward_kl_loss, jbond_reward, jeffreys_loss, kl_loss
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
        policy: a KerasHub `CausalLM` with a Gemma, Gemma 2 or Gemma 3 text backbone. It is trained in place.
        reward: `f(prompts, completions, **columns) -> B floats`, or a `keras_bond.rewards.Reward`.
        n: anchor samples per prompt, at least 2. The paper has 2; more is ours.
        beta: in [0, 1]: 1 is the backward KL alone, 0 the forward KL alone.
        eta: in (0, 1]: how fast the anchor follows.
        gamma: >= 0: weight of KL(pi || pi_a), which slows the policy down.
        max_prompt_length: tokens, start token included; longer prompts are refused.
        max_completion_length: tokens, stop token included.
        temperature: > 0, of both sampling and log-probabilities.
        stop_token_ids: `"auto"` or a sequence of ids.
        sampler: only `"random"`: the log-probabilities must be those of the distribution sampled from.
        seed: of prompts' order, policy samples and anchor samples.

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

    def __init__(self, policy, reward, n=2, beta=0.5, eta=0.02, gamma=0.0, **kwargs):
        if not isinstance(n, int) or n < 2:
            raise ValueError(f"`n` must be an integer of at least 2. Received: n={n!r}")
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta` must lie in [0, 1]. Received: beta={beta}")
        if not gamma >= 0:
            raise ValueError(f"`gamma` must be at least 0. Received: gamma={gamma}")
        super().__init__(policy, reward, anchor=EMAAnchor(eta), num_anchor_samples=n, **kwargs)
        self.n, self.beta, self.eta, self.gamma = n, beta, eta, gamma

    def objective(self, log_prob, best_log_prob, trajectory):
        reward = jbond_reward(trajectory.reward, trajectory.anchor_rewards)
        forward = forward_kl_loss(best_log_prob)
        backward = backward_kl_loss(log_prob, trajectory.anchor_log_prob, reward, self.n)
        regularizer = kl_loss(log_prob, trajectory.anchor_log_prob)
        return jeffreys_loss(forward, backward, self.beta) + self.gamma * regularizer, {
            "forward_loss": forward,
            "backward_loss": backward,
            "regularizer": regularizer,
            "penalised": ops.mean(ops.cast(reward < 0, "float32")),
        }

    def get_config(self):
        config = {"n": self.n, "beta": self.beta, "eta": self.eta, "gamma": self.gamma}
        return {**super().get_config(), **config}
