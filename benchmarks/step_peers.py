"""The contestants of `step.py` that have an environment of their own: transformers with Torch by hand, and TRL.

Needs torch, transformers, accelerate, datasets and trl, and nothing of keras_bond.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import pathlib
import random
import tempfile
import time

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from turns import HeldLoop, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(work):
    return transformers.AutoModelForCausalLM.from_pretrained(work["exported"], dtype=torch.float32).to(DEVICE)


def now():
    """Seconds, when all that was asked of the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def tokenizer(vocabulary_size, stop=None):
    """Its text is the token ids themselves. By default the model cannot draw its `stop` token: completions are full."""
    stop = vocabulary_size if stop is None else stop
    words = {str(i): i for i in range(vocabulary_size + 1)}
    plain = Tokenizer(models.WordLevel(words, unk_token="3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "2", "eos_token": str(stop), "pad_token": "0", "unk_token": "3"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, padding_side="left", **special)


def reward(completions):
    """How many different characters a completion has: the same cheap reward for every contestant."""
    return [float(len(set(completion))) for completion in completions]


def by_hand(work):
    """J-BOND as one would write it for transformers: `generate()`, logits at the completions alone, autograd."""
    policy, anchor, reference = (load(work) for _ in range(3))
    words = tokenizer(policy.config.vocab_size)
    settings, length = work["settings"], work["completion_length"]
    n, beta, eta = settings["n"], settings["beta"], settings["eta"]
    optimizer = torch.optim.SGD(policy.parameters(), work["learning_rate"], momentum=work["momentum"])
    for model in (policy, anchor, reference):
        model.generation_config = transformers.GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=length, pad_token_id=0, eos_token_id=None
        )

    def log_prob(model, ids):
        logits = model(ids[:, :-1], logits_to_keep=length, use_cache=False).logits
        chosen = logits.gather(2, ids[:, -length:, None])[..., 0]
        return (chosen - logits.logsumexp(2)).sum(1)

    def generate(model, prompt_ids):
        return model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids))

    def step():
        prompt_ids = torch.tensor(random.sample(work["token_ids"], work["batch_size"]), device=DEVICE)
        rows = len(prompt_ids)
        times = [now()]
        with torch.no_grad():
            samples = generate(policy, prompt_ids)
            anchor_samples = generate(anchor, prompt_ids.repeat_interleave(n, 0))
            times.append(now())
            anchor_log_prob, _ = log_prob(anchor, samples), log_prob(reference, samples)
            texts = words.batch_decode(torch.cat([samples, anchor_samples])[:, -length:])
            rewards, anchor_rewards = torch.tensor(reward(texts), device=DEVICE).split([rows, rows * n])
            anchor_rewards = anchor_rewards.view(rows, n)
            best = anchor_samples[n * torch.arange(rows, device=DEVICE) + anchor_rewards.argmax(1)]
            penalty = torch.where(rewards < anchor_rewards.amin(1), -(2**n) * math.log(2), 0.0)
        times.append(now())
        log_probs, best_log_probs = log_prob(policy, torch.cat([samples, best])).split(rows)
        returns = penalty - (log_probs.detach() - anchor_log_prob) / (n - 1)
        advantage = returns - (returns.sum() - returns) / (rows - 1)
        loss = -(1 - beta) * best_log_probs.mean() - beta * (n - 1) * (advantage * log_probs).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), work["clip_norm"])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(anchor.parameters()), list(policy.parameters()), eta)
        times.append(now())
        parts = (b - a for a, b in itertools.pairwise(times))
        return dict(zip(("sampling", "scoring", "update"), parts, strict=True), total=times[-1] - times[0])

    return lambda count: [step() for _ in range(count)]


class Turns(transformers.TrainerCallback):
    """Tells a `HeldLoop` of the steps of a trainer."""

    def __init__(self, loop):
        self.loop = loop

    def on_step_end(self, args, state, control, **others):
        control.should_training_stop = not self.loop.step_ended()


def grpo(work, about):
    """TRL's GRPO with its reference model: as many sampled completions, all of which it trains on."""
    import datasets
    import trl

    samples = 1 + work["settings"]["n"]
    model = load(work)
    model.generation_config.eos_token_id = None
    loop = HeldLoop(about, now)

    def checked_reward(completions, completion_ids, **columns):
        lengths = {len(ids) for ids in completion_ids}
        if lengths != {work["completion_length"]}:
            raise ValueError(f"every completion must have {work['completion_length']} tokens. Received: {sorted(lengths)}")
        return reward(completions)

    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=work["batch_size"] * samples,
        num_generations=samples,
        max_completion_length=work["completion_length"],
        beta=0.04,
        max_steps=10**9,
        max_grad_norm=work["clip_norm"],
        learning_rate=work["learning_rate"],
        warmup_steps=work["warmup_steps"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=DEVICE == "cpu",
        logging_steps=10**9,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model,
        checked_reward,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": [" ".join(map(str, ids)) for ids in work["token_ids"]]}),
        processing_class=tokenizer(model.config.vocab_size),
        callbacks=[Turns(loop)],
        optimizers=(torch.optim.SGD(model.parameters(), work["learning_rate"], momentum=work["momentum"]), None),
    )
    model.generate = loop.timed("sampling", model.generate)
    trainer._prepare_inputs = loop.timed("collect", trainer._prepare_inputs)
    trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=("by hand", "grpo"))
    parser.add_argument("work", type=pathlib.Path, help="JSON, of `step.py`")
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text())
    about = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate", "trl")}
    about["gpu"] = f"1 x {torch.cuda.get_device_name()}" if DEVICE == "cuda" else None
    if arguments.contestant == "by hand":
        serve(about, by_hand(work))
    else:
        grpo(work, about)
