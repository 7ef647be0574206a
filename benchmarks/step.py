"""How long is a J-BOND step, of what parts, and how long is it elsewhere? The best of n alone, all weights by SGD.

    python benchmarks/step.py --peers PYTHON --tunix PYTHON
    python benchmarks/step.py --peers PYTHON --tunix PYTHON --model 1.5M

Contestants: this package on JAX, TensorFlow and Torch; on Torch also with `jit_compile=True`, and on JAX with all
samples in the update, and with Keras' own products in its dense layers; KerasHub's `generate()` with Keras' own train
step on each; J-BOND by hand in transformers and Torch; TRL's GRPO; Tunix's GRPO. The last three need environments of
their own, with trl and with google-tunix, whose interpreters `--peers` and `--tunix` name; without them they are left
out. All in float32, on the same prompts, with the same number of sampled completions of the same length: nothing stops
early. The bundled model has 64 prompts of 8 tokens a step, each with 5 completions of 20 tokens; the others, of random
weights, 16 prompts of 32 tokens, each with 3 completions of 32 tokens. Where there is a GPU, all are on it, with
products in TF32, as JAX has them by default. Backends not installed are left out.

Each contestant is a process; they take turns, round by round, and sleep in between. The table gives medians over rounds of
the medians over a turn's steps; the ratio to the first contestant is taken within each round. `work` is the least that the
matrix products of a step take: the rows of a prompt share its pass, as they do not elsewhere. Writes `step-MODEL.json`
beside this file, on a GPU `step-MODEL-CARD.json`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import tempfile

from common import BEST_OF_4, export_for_trl, print_table, provenance
from turns import Contestant, medians

SGD = {"learning_rate": 3e-4, "momentum": 0.9, "clip_norm": 20.0, "warmup_steps": 10}
PARTS = ("sampling", "scoring", "update", "total")
HERE = pathlib.Path(__file__).parent
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "Torch"}
SHARED_GPU = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
}
"""A process holds the memory that it needs, not the whole GPU's; products of float32 are of one kind."""
_SMALL = {"vocabulary_size": 4096, "num_layers": 4, "num_query_heads": 4, "num_key_value_heads": 1}
_LARGE = {"vocabulary_size": 32000, "num_layers": 8, "num_query_heads": 8, "num_key_value_heads": 1}
MODELS = {
    "bundled": None,
    "1.5M": _SMALL | {"hidden_dim": 128, "intermediate_dim": 1024, "head_dim": 32},
    "46M": _LARGE | {"hidden_dim": 512, "intermediate_dim": 4096, "head_dim": 64},
    "350M": {
        "vocabulary_size": 256000,
        "num_layers": 18,
        "num_query_heads": 3,
        "num_key_value_heads": 1,
        "hidden_dim": 768,
        "intermediate_dim": 6144,
        "head_dim": 256,
    },
}
"""The bundled model, and three with random weights; `intermediate_dim` is KerasHub's, twice the width of the layer."""


def bundled():
    import keras_hub

    from keras_bond import presets
    from keras_bond.experiments.align import PRESET

    return keras_hub.models.CausalLM.from_preset(presets.path(PRESET))


def random_gemma(sizes):
    """A `CausalLM` with random weights, and the bundled vocabulary filled up with pieces that no text has."""
    import keras_hub
    from sentencepiece import sentencepiece_model_pb2

    vocabulary = sentencepiece_model_pb2.ModelProto.FromString(bundled().preprocessor.tokenizer.proto)
    for i in range(len(vocabulary.pieces), sizes["vocabulary_size"]):
        vocabulary.pieces.add(piece=f"<{i}>", score=-1e6)
    tokenizer = keras_hub.models.GemmaTokenizer(proto=vocabulary.SerializeToString())
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer=tokenizer)
    return keras_hub.models.GemmaCausalLM(keras_hub.models.GemmaBackbone(**sizes), preprocessor)


def case(model):
    """(policy, its prompts, their token ids, (prompt length, completion length), J-BOND's settings, prompts a step)."""
    from keras_bond import presets
    from keras_bond.experiments.align import PRESET, SIZES

    policy = random_gemma(MODELS[model]) if MODELS[model] else bundled()
    if MODELS[model]:
        lengths, settings, rows = (32, 32), {"n": 2, "beta": 0.5, "eta": 0.02, "variance_reduction": False}, 16
    else:
        lengths, settings, rows = (SIZES["max_prompt_length"], SIZES["max_completion_length"]), BEST_OF_4, 64
    prompts, token_ids = prompts_of(policy.preprocessor.tokenizer, presets.prompts(PRESET, "train"), lengths[0])
    return policy, prompts, token_ids, lengths, settings, rows


def prepare(folder, model, batch_size):
    """The work of a step as JSON, and the model as a preset and for transformers beside it.

    Returns the file, its contents, and the configuration of the model's backbone.
    """
    os.environ |= SHARED_GPU | {"KERAS_BACKEND": "jax"}
    policy, prompts, token_ids, lengths, settings, rows = case(model)
    policy.save_to_preset(folder / "preset")
    export_for_trl(policy, folder / "exported")
    work = {
        "prompts": prompts,
        "token_ids": token_ids,
        "preset": str(folder / "preset"),
        "exported": str(folder / "exported"),
        "batch_size": batch_size or rows,
        "prompt_length": lengths[0],
        "completion_length": lengths[1],
        "settings": settings,
        **SGD,
    }
    (folder / "work.json").write_text(json.dumps(work))
    return folder / "work.json", work, policy.backbone.get_config()


def prompts_of(tokenizer, texts, length):
    """Prompts of exactly `length` tokens, start token included, each of several texts in a row, and their token ids."""
    prompts, token_ids, text = [], [], ""
    for more in texts:
        text = f"{text} {more}".strip()
        ids = [tokenizer.start_token_id, *map(int, tokenizer(text))]
        if len(ids) == length:
            prompts.append(text)
            token_ids.append(ids)
        if len(ids) >= length:
            text = ""
    return prompts, token_ids


def forward_flops(backbone, prompts, rows, prompt_length, completion_length):
    """Floating point operations of the matrix products of a forward pass; attention to earlier tokens alone.

    Args:
        backbone: dict, the configuration of a `GemmaBackbone`.
        prompts: each is passed once, up to its last token.
        rows: completions, each with the last token of its prompt in place of its own, and with the logits of all.
        prompt_length, completion_length: tokens.

    >>> sizes = {"num_layers": 1, "hidden_dim": 2, "num_query_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    >>> sizes |= {"intermediate_dim": 4, "vocabulary_size": 10}
    >>> forward_flops(sizes, prompts=1, rows=1, prompt_length=1, completion_length=1)
    104
    """
    hidden, head = backbone["hidden_dim"], backbone["head_dim"]
    queries, keys = backbone["num_query_heads"] * head, backbone["num_key_value_heads"] * head
    weights = 2 * hidden * (queries + keys) + 3 * hidden * (backbone["intermediate_dim"] // 2)
    read, end = prompt_length - 1, prompt_length - 1 + completion_length
    seen = prompts * sum(range(1, read + 1)) + rows * sum(range(read + 1, end + 1))
    layers = (prompts * read + rows * completion_length) * weights + 2 * queries * seen
    return 2 * (backbone["num_layers"] * layers + rows * completion_length * hidden * backbone["vocabulary_size"])


def step_flops(backbone, work, scored, updated):
    """Of a step: all samples drawn, `scored` rows passed forward, and `updated` rows forward and backward.

    Samples of the same weights, and rows of an update, share the pass of their prompt; a row that is scored has its own.
    """
    batch, lengths = work["batch_size"], (work["prompt_length"], work["completion_length"])
    sampled = forward_flops(backbone, 2 * batch, batch * (1 + work["settings"]["n"]), *lengths)
    return (
        sampled + forward_flops(backbone, scored, scored, *lengths) + 3 * forward_flops(backbone, batch, updated, *lengths)
    )


def contestants(batch_size, n, peers, tunix):
    """name: (command without the work, environment, rows that are scored, rows that are trained on)."""
    table, everything = {}, batch_size * (1 + n)
    names = {backend: name for backend, name in NAMES.items() if importlib.util.find_spec(backend)}
    for backend, name in names.items():
        command = [sys.executable, HERE / "step_keras.py", "ours"]
        table[f"keras_bond, {name}"] = (command, {"KERAS_BACKEND": backend}, 2 * batch_size, 2 * batch_size)
    if "torch" in names:
        command = [sys.executable, HERE / "step_keras.py", "ours, jit_compile"]
        table["keras_bond, Torch, jit_compile"] = (command, {"KERAS_BACKEND": "torch"}, 2 * batch_size, 2 * batch_size)
    command = [sys.executable, HERE / "step_keras.py", "ours, all samples"]
    table["keras_bond, JAX, all samples in the update"] = (
        command,
        {"KERAS_BACKEND": "jax"},
        (2 + n) * batch_size,
        everything,
    )
    command = [sys.executable, HERE / "step_keras.py", "ours, Keras' products"]
    table["keras_bond, JAX, Keras' products"] = (command, {"KERAS_BACKEND": "jax"}, 2 * batch_size, 2 * batch_size)
    for backend, name in names.items():
        command = [sys.executable, HERE / "step_keras.py", "keras_hub"]
        table[f"KerasHub alone, {name}"] = (command, {"KERAS_BACKEND": backend}, 2 * batch_size, 2 * batch_size)
    if peers:
        command = [peers, HERE / "step_peers.py", "by hand"]
        table["transformers and Torch, by hand"] = (command, {}, 2 * batch_size, 2 * batch_size)
        table["TRL GRPO"] = ([peers, HERE / "step_peers.py", "grpo"], {}, everything, everything)
    if tunix:
        table["Tunix GRPO"] = ([tunix, HERE / "step_tunix.py"], {}, everything, everything)
    return table


def measure(entries, work_file, rounds, steps):
    """After every round, name: (what the contestant runs on, the medians of each of its turns until now)."""
    running = {name: Contestant([*command, work_file], **more) for name, (command, more, *_) in entries.items()}
    try:
        about = {}
        for name, contestant in running.items():
            about[name] = contestant.ready()
            print(f"{name} is ready.", file=sys.stderr, flush=True)
        turns = {name: [] for name in entries}
        for i in range(rounds):
            for name, contestant in running.items():
                turns[name].append(medians(contestant.turn(steps)))
                said = f"Round {i + 1} of {rounds}: {turns[name][-1]['total']:.3f} s a step, {name}"
                print(said, file=sys.stderr, flush=True)
            yield {name: (about[name], turns[name]) for name in entries}
    finally:
        for contestant in running.values():
            contestant.close()


def summaries(measured, entries, work, backbone):
    """A dict for each contestant: its medians, and its time as a ratio to the first one's, round by round."""
    tokens = work["batch_size"] * (1 + work["settings"]["n"]) * work["completion_length"]
    first = next(iter(measured.values()))[1]
    for name, (about, turns) in measured.items():
        ratios = [turn["total"] / ours["total"] for turn, ours in zip(turns, first, strict=True)]
        seconds = medians(turns)
        yield {
            "name": name,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds["total"],
            "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
            "gflop": step_flops(backbone, work, *entries[name][2:]) / 1e9,
            "rounds": turns,
            "versions": about,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of an environment with trl")
    parser.add_argument("--tunix", help="interpreter of an environment with google-tunix")
    parser.add_argument("--model", choices=MODELS, default="bundled")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="a turn")
    parser.add_argument("--batch-size", type=int, help="prompts a step")
    parser.add_argument("--only", nargs="+", help="names of contestants; all by default")
    arguments = parser.parse_args()
    if not arguments.peers:
        print("Without --peers: transformers and TRL are left out.", file=sys.stderr)
    if not arguments.tunix:
        print("Without --tunix: Tunix is left out.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        work_file, work, backbone = prepare(pathlib.Path(folder), arguments.model, arguments.batch_size)
        entries = contestants(work["batch_size"], work["settings"]["n"], arguments.peers, arguments.tunix)
        entries = {name: entries[name] for name in arguments.only or entries}
        sizes = {key: work[key] for key in ("batch_size", "prompt_length", "completion_length", "settings")}
        about = {**provenance(), "steps_a_turn": arguments.steps, **sizes}
        for python in filter(None, (arguments.peers, arguments.tunix)):
            about["command"] = about["command"].replace(python, "PYTHON")
        for measured in measure(entries, work_file, arguments.rounds, arguments.steps):
            results = [*summaries(measured, entries, work, backbone)]
            gpus = sorted({r["versions"]["gpu"] for r in results if r["versions"].get("gpu")})
            name = "-".join(["step", arguments.model, *(gpu.removeprefix("1 x ").replace(" ", "-") for gpu in gpus)])
            written = {**about, "rounds": len(results[0]["rounds"]), "contestants": results}
            (HERE / f"{name}.json").write_text(json.dumps(written, indent=2) + "\n")
    print_table(
        ["contestant", *(f"{part}, s" for part in PARTS), "tokens/s", "time, ratio (least to most)", "work, GFLOP"],
        [
            [
                r["name"],
                *(f"{r['seconds'][part]:.3f}" for part in PARTS),
                f"{r['tokens_per_second']:.0f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*r["ratio"]),
                f"{r['gflop']:.1f}",
            ]
            for r in results
        ],
    )


if __name__ == "__main__":
    main()
