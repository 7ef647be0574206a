"""The contestant of `sample_efficiency.py` that has an environment of its own: TRL's GRPO on the exported model.

Needs torch, transformers, accelerate, datasets, trl, sentencepiece and vaderSentiment, and nothing of keras_bond. Leaves the
model after every part of the run in `step-N`, and prints the seconds and completions it took to come there as JSON.
"""

import argparse
import json
import pathlib
import time

import datasets
import sentencepiece
import torch
import transformers
import trl
from step_peers import tokenizer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


class Checkpoints(transformers.TrainerCallback):
    """Saves the model after every `every` steps; what that takes does not count."""

    def __init__(self, folder, every):
        self.folder, self.every, self.seconds, self.path = folder, every, 0.0, []

    def on_step_begin(self, args, state, control, **others):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **others):
        self.seconds += time.perf_counter() - self.started
        if state.global_step % self.every == 0:
            model.save_pretrained(self.folder / f"step-{state.global_step}")
            self.path.append({"step": state.global_step, "seconds": self.seconds})


def main(work):
    transformers.set_seed(work["seed"])
    model = transformers.AutoModelForCausalLM.from_pretrained(work["exported"], dtype=torch.float32)
    words = sentencepiece.SentencePieceProcessor(model_file=work["tokenizer"])
    analyzer, stops = SentimentIntensityAnalyzer(), set(work["stop_token_ids"])
    model.generation_config.eos_token_id = sorted(stops)

    def sentiment(completions, completion_ids, **columns):
        texts = (words.decode([i for i in map(int, ids) if i not in stops]) for ids in completion_ids)
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    checkpoints = Checkpoints(pathlib.Path(work["folder"]), work["every"])
    settings = trl.GRPOConfig(
        output_dir=work["folder"],
        per_device_train_batch_size=work["batch_size"] * work["num_generations"],
        num_generations=work["num_generations"],
        max_completion_length=work["completion_length"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=work["beta"],
        max_steps=work["steps"],
        learning_rate=work["learning_rate"],
        warmup_steps=10,
        lr_scheduler_type="constant_with_warmup",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=10**9,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work["seed"],
    )
    trl.GRPOTrainer(
        model,
        sentiment,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": [" ".join(map(str, ids)) for ids in work["token_ids"]]}),
        processing_class=tokenizer(model.config.vocab_size, stop=min(stops)),
        callbacks=[checkpoints],
    ).train()
    print(json.dumps(checkpoints.path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path, help="JSON, of `sample_efficiency.py`")
    main(json.loads(parser.parse_args().work.read_text()))
