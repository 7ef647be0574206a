"""Quantiles by a model that learns them along with the policy."""

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least, check_number, check_positive
from keras_bond.ops import is_valid, monte_carlo_quantiles, valid_mean


class QuantileModel(keras.Model):
    """A backbone and a sigmoid head on the hidden state of a completion's last token: p_theta(x, y) in (0, 1), (R,)."""

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="zeros", dtype="float32", name="head")
        self.head.build((None, backbone.hidden_dim))
        self.built = True

    def call(self, inputs, training=False):
        token_ids, mask = inputs["token_ids"], inputs["mask"]
        hidden = self.backbone({"token_ids": token_ids, "padding_mask": mask}, training=training)
        last = ops.argmax(ops.cumsum(ops.cast(mask, "int32"), axis=1), axis=1)  # the first place where all are counted
        hidden = ops.take_along_axis(hidden, ops.reshape(last, (-1, 1, 1)), axis=1)
        return self.head(ops.squeeze(hidden, 1))[:, 0]


@keras.saving.register_keras_serializable("keras_bond")
class Learned:
    """A model of p_<=(x, y), initialised from the reference and trained jointly with the policy, inside the same `fit`.

        minimise  -E[ z log p(x, y) + (1 - z) log(1 - p(x, y)) ],   z = 1{r(x, y') <= r(x, y)},   y ~ pi, y' ~ pi_a

    whose minimiser is p_<=. At each step it first places the policy's samples, then learns from them, with an optimizer of
    its own. It needs one anchor sample y' a prompt, not k; but memory for a second model.

    Args:
        num_samples: anchor samples y' a prompt that make the label z (their mean, when more than one); the paper has 1.
        learning_rate: of its Adam.
        floor: in (0, 1): the least p_<= that is reported, which keeps log p_<= in reach.

    `history` holds the cross-entropy of each step.

    Example:

    ```python
    keras_bond.BOND(policy, reward, n=8, quantiles=keras_bond.quantiles.Learned())
    ```

    Source: BOND, appendix B.1.
    """

    def __init__(self, num_samples=1, learning_rate=1e-3, floor=1e-3):
        self.num_samples = check_at_least(1, num_samples=num_samples)
        self.learning_rate = check_positive(learning_rate=learning_rate)
        self.floor = check_number("lie in (0, 1)", lambda floor: 0 < floor < 1, floor=floor)
        self.history: list[float] = []

    def follow(self, policy):
        """Start from the present weights of `policy`, a KerasHub `CausalLM` (with LoRA: from those it adapts)."""
        original = policy.backbone
        backbone = type(original).from_config(original.get_config())
        weights = [w for w in original.weights if "lora" not in w.name]
        for ours, theirs in zip(backbone.weights, weights, strict=True):
            ours.assign(ops.copy(theirs.value))  # never the policy's own buffer, which a step may donate
        self.model = QuantileModel(backbone)
        self.model.compile(keras.optimizers.Adam(self.learning_rate, global_clipnorm=1.0), loss=_cross_entropy)
        self.model.optimizer.build(self.model.trainable_variables)

    def __call__(self, trajectory):
        """(None, p_less_equal) of the policy's samples, (R,): ties are not told apart. NaN where one has no reward."""
        return None, np.where(np.isnan(trajectory.reward), np.float32(np.nan), self.predict(*_completions(trajectory)))

    def predict(self, prompt_ids, prompt_mask, completion_ids, completion_mask):
        """p_<= of completions, (R,): prompts (R, P), left-padded, and completions (R, T), with their masks."""
        inputs = _inputs(prompt_ids, prompt_mask, completion_ids, completion_mask)
        return np.maximum(ops.convert_to_numpy(self.model.predict_on_batch(inputs)), np.float32(self.floor))

    def observe(self, trajectory):
        """One step of Adam on the cross-entropy of these samples; none where no sample can be compared."""
        of_anchor = trajectory.relative_anchor_rewards[:, : self.num_samples]
        labels = ops.convert_to_numpy(monte_carlo_quantiles(trajectory.relative_reward, of_anchor)[1])
        if not np.isnan(labels).all():
            self.history.append(float(self.model.train_on_batch(_inputs(*_completions(trajectory)), labels)))

    @property
    def variables(self):
        return [*self.model.variables, *self.model.optimizer.variables]

    def get_config(self):
        return {"num_samples": self.num_samples, "learning_rate": self.learning_rate, "floor": self.floor}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _cross_entropy(labels, predicted):
    """Over the samples that have a label; others have NaN."""
    valid = is_valid(labels)
    return valid_mean(ops.binary_crossentropy(ops.where(valid, labels, 0.0), predicted), valid)


def _completions(trajectory):
    """The policy's samples, each with its prompt."""
    samples = len(trajectory.completion_ids) // len(trajectory.prompt_ids)
    prompts = (np.repeat(field, samples, axis=0) for field in (trajectory.prompt_ids, trajectory.prompt_mask))
    return *prompts, trajectory.completion_ids, trajectory.completion_mask


def _inputs(prompt_ids, prompt_mask, completion_ids, completion_mask):
    fields = ((prompt_ids, completion_ids), (prompt_mask, completion_mask))
    token_ids, mask = (np.concatenate([ops.convert_to_numpy(f) for f in field], axis=1) for field in fields)
    return {"token_ids": token_ids.astype("int32"), "mask": mask.astype("int32")}
