"""Tunix's GRPO as a contestant of `step.py`. Needs google-tunix, an environment of its own, and nothing of keras_bond."""

import argparse
import importlib.metadata
import itertools
import json
import pathlib
import random
import tempfile

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file
from tunix.models.gemma.model import AttentionType, ModelConfig
from tunix.models.gemma.params_safetensors import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from turns import HeldLoop


class Tokenizer:
    """Its text is the token ids themselves. The model cannot draw its stop token: completions are full."""

    def __init__(self, vocabulary_size):
        self.vocabulary_size = vocabulary_size

    def encode(self, text, **settings):
        return list(map(int, text.split()))

    def decode(self, ids, **settings):
        return " ".join(map(str, np.asarray(ids).tolist()))

    def bos_id(self):
        return 2

    def eos_id(self):
        return self.vocabulary_size

    def pad_id(self):
        return 0


def load(exported, mesh):
    """The model that was exported for transformers."""
    sizes = json.loads((exported / "config.json").read_text())
    config = ModelConfig(
        num_layers=sizes["num_hidden_layers"],
        num_embed=sizes["vocab_size"],
        embed_dim=sizes["hidden_size"],
        hidden_dim=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        head_dim=sizes["head_dim"],
        num_kv_heads=sizes["num_key_value_heads"],
        final_logit_softcap=None,
        use_post_attn_norm=False,
        use_post_ffw_norm=False,
        attention_types=(AttentionType.GLOBAL,) * sizes["num_hidden_layers"],
    )
    tensors = load_file(exported / "model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        # Tunix 0.1.7 reads the second norm of a layer by the name that it has in Gemma 2
        renamed = {k.replace("post_attention_layernorm", "pre_feedforward_layernorm"): v for k, v in tensors.items()}
        save_file(renamed, f"{folder}/model.safetensors")
        return create_model_from_safe_tensors(folder, config, mesh, dtype=jax.numpy.float32)


def grpo(work, about):
    """GRPO with a reference model: as many sampled completions, all of which it trains on."""
    samples, exported = 1 + work["settings"]["n"], pathlib.Path(work["exported"])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    actor, reference = (load(exported, mesh) for _ in range(2))

    def reward(prompts, completions, **columns):
        """How many different characters a completion has: the same cheap reward for every contestant."""
        lengths = {len(completion.split()) for completion in completions}
        if lengths != {work["completion_length"]}:
            raise ValueError(f"every completion must have {work['completion_length']} tokens. Received: {sorted(lengths)}")
        return [float(len(set(completion))) for completion in completions]

    schedule = optax.linear_schedule(0.0, work["learning_rate"], work["warmup_steps"])
    optimizer = optax.chain(optax.clip_by_global_norm(work["clip_norm"]), optax.sgd(schedule, momentum=work["momentum"]))
    cluster = RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=Tokenizer(actor.config.num_embed),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            training_config=RLTrainingConfig(actor_optimizer=optimizer, max_steps=10**9, eval_every_n_steps=10**9),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=work["completion_length"],
                max_prompt_length=work["prompt_length"],
                kv_cache_size=work["prompt_length"] + work["completion_length"],
                temperature=1.0,
            ),
        ),
    )
    learner = GRPOLearner(cluster, GRPOConfig(num_generations=samples, beta=0.04), reward)
    loop = HeldLoop(about)
    step, update = learner._run_global_step, cluster.update_actor
    cluster.generate = loop.timed("sampling", cluster.generate)

    def update_actor(examples, *arguments, **named):
        jax.block_until_ready(examples)
        loop.seconds["collect"] = loop.now() - loop.started
        update(examples, *arguments, **named)

    def held_step(*arguments):
        step(*arguments)
        jax.block_until_ready(nnx.state(actor))
        if not loop.step_ended():
            raise StopIteration

    cluster.update_actor, learner._run_global_step = update_actor, held_step
    texts = [" ".join(map(str, ids[1:])) for ids in work["token_ids"]]  # Tunix puts the start token before them
    learner.train({"prompts": np.array(random.sample(texts, work["batch_size"]))} for _ in itertools.count())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=pathlib.Path, help="JSON, of `step.py`")
    arguments = parser.parse_args()
    about = {name: importlib.metadata.version(name) for name in ("google-tunix", "flax", "jax", "jaxlib")}
    gpu = jax.devices()[0] if jax.default_backend() == "gpu" else None
    grpo(json.loads(arguments.work.read_text()), about | {"gpu": f"1 x {gpu.device_kind}" if gpu else None})
