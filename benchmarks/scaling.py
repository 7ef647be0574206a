"""What a step of J-BOND takes on each chip of a TPU, against the chips, the batch, the length and the vocabulary.

    python benchmarks/scaling.py [--only SWEEP]

needs `pip install 'keras-bond[tpu-compile,experiments]'` and no TPU. Bytes that a chip holds throughout are those of every
variable's layout, for whole models. Operations and temporaries are of the update that XLA's TPU compiler has made for the
topology, for a Gemma 2B with LoRA 8 that has `LAYERS` of its 18 layers: all widths and the vocabulary are the real ones, and
compiling takes a minute instead of ten. Writes scaling.json and scaling.png beside this file; what is in scaling.json is
not measured again.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common

from keras_bond import scale

HERE = pathlib.Path(__file__).parent
FILE = HERE / "scaling.json"
LAYERS = 2
TOPOLOGIES = {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
UPDATE = {
    "preset": "gemma_2b",
    "lora_rank": 8,
    "num_layers": LAYERS,
    "batch_size": 256,
    "prompt_length": 256,
    "completion_length": 256,
    "programs": ["update"],
}
HELD = {"programs": [], "batch_size": 256}
STEP = {"batch_size": 128, "microbatch_size": 16, "prompt_length": 256, "completion_length": 256}
POLICIES = [("gemma_2b", 8), ("gemma_2b", None), ("gemma2_9b", 8), ("gemma2_9b", None)]


def update(chips, model_chips=None, **arguments):
    """The arguments of one measurement of an update, by microbatches of 16 prompts, or one for each chip of a batch axis."""
    topology = TOPOLOGIES[chips]
    model_chips = model_chips or int(topology.split("x")[-1])
    batch_chips = chips // model_chips
    return {
        **UPDATE,
        "topology": topology,
        "model_chips": model_chips,
        "microbatch_size": max(16, batch_chips),
        **arguments,
    }


SWEEPS = {
    "chips": [update(chips, 1) for chips in TOPOLOGIES],
    "batch": [update(8, batch_size=size) for size in (32, 64, 128, 256, 512)],
    "completion": [update(8, completion_length=length) for length in (64, 128, 256, 512, 1024)],
    "vocabulary": [update(8, vocabulary_size=size) for size in (32000, 64000, 128000, 256000)],
    "model": [
        {**HELD, "preset": preset, "lora_rank": rank, "topology": topology, "model_chips": chips}
        for preset, rank in POLICIES
        for chips, topology in TOPOLOGIES.items()
    ],
    "step": [
        {**STEP, "preset": "gemma_2b", "topology": "v5e:2x4", "lora_rank": 8},
        # in bfloat16 alone, an update by 3e-6 would round away
        {**STEP, "preset": "gemma_2b", "topology": "v5e:2x4", "dtype": "mixed_bfloat16"},
        {**STEP, "preset": "gemma_7b", "topology": "v5e:2x4", "lora_rank": 8},
        {**STEP, "preset": "gemma_7b", "topology": "v5e:2x4", "lora_rank": 8, "sampling_batch_size": 32},
        {**STEP, "preset": "gemma2_9b", "topology": "v5e:4x4", "lora_rank": 8},
    ],
}
X = {"chips": "chips", "batch": "batch_size", "completion": "completion_length", "vocabulary": "vocabulary_size"}
TITLES = {
    "chips": "chips over the batch axis",
    "batch": "prompts a step (8 chips)",
    "completion": "tokens a completion (8 chips)",
    "vocabulary": "vocabulary (8 chips)",
}


def load():
    return json.loads(FILE.read_text()) if FILE.exists() else {"reports": {}}


def measured(results, arguments):
    """The report of these arguments, from the file or compiled now and written to it."""
    key = json.dumps(arguments, sort_keys=True)
    if key not in results["reports"]:
        print(key, flush=True)
        versions = {name: importlib.metadata.version(name) for name in ("jax", "keras", "keras-hub", "libtpu")}
        report = scale.step_report(**arguments, say=lambda line: print(f"  {line}", flush=True))
        results["reports"][key] = report | {"provenance": common.provenance() | {"versions": versions}}
        FILE.write_text(json.dumps(results, indent=1) + "\n")
    return results["reports"][key]


def rows(results, sweep):
    """(x, TFLOP a chip, GiB of temporaries a chip) of each update of a sweep that has been measured."""
    for arguments in SWEEPS[sweep]:
        report = results["reports"].get(json.dumps(arguments, sort_keys=True))
        if report:
            program = report["programs"]["update"]
            yield {**report, **arguments}[X[sweep]], program["flops"] / 1e12, program["temporaries"] / 2**30


def held_rows(results):
    """By policy, (chips, GiB held a chip, the share of anchor and reference in it)."""
    table = {policy: [] for policy in POLICIES}
    for arguments in SWEEPS["model"]:
        report = results["reports"].get(json.dumps(arguments, sort_keys=True))
        if report:
            share = report["anchor_and_reference_bytes"] / report["state_bytes"]
            policy = arguments["preset"], arguments["lora_rank"]
            table[policy].append((report["chips"], report["state_bytes"] / 2**30, share))
    return table


def label(preset, rank):
    return f"{preset}, LoRA {rank}" if rank else f"{preset}, full"


def tables(results):
    for arguments in SWEEPS["step"]:
        report = results["reports"].get(json.dumps(arguments, sort_keys=True))
        if report:
            yield from ("", *scale.report_lines(report))
    for policy, points in held_rows(results).items():
        yield f"\n{label(*policy)}: chips over the model axis, GiB a chip, times chips, share of anchor and reference"
        for chips, gib, share in points:
            yield f"{chips:>6} {gib:>8.3f} {gib * chips:>8.2f} {share:>8.2%}"
    for sweep in X:
        yield f"\n{TITLES[sweep]}: TFLOP and GiB of temporaries a chip"
        for x, flops, temporaries in rows(results, sweep):
            yield f"{x:>6} {flops:>8.4g} {temporaries:>8.3f}"


def draw(results):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sweeps = {sweep: list(rows(results, sweep)) for sweep in X}
    sweeps = {sweep: points for sweep, points in sweeps.items() if len(points) > 1}
    panels = 1 + len(sweeps)
    figure, axes = pyplot.subplots(1, panels, figsize=(4.4 * panels, 3.8), layout="constrained", squeeze=False)
    axes = axes[0]
    for policy, points in held_rows(results).items():
        if points:
            chips, gib, _ = zip(*points, strict=True)
            axes[0].loglog(chips, gib, "o-", base=2, label=label(*policy))
            axes[0].loglog(chips, [gib[0] * chips[0] / n for n in chips], ":", color="0.6", base=2)
    axes[0].axhline(15.75, color="0.3", linewidth=0.8)
    axes[0].set(title="held throughout", xlabel="chips over the model axis", ylabel="GiB a chip")
    axes[0].legend(fontsize=8)
    for axis, (sweep, points) in zip(axes[1:], sweeps.items(), strict=True):
        x, flops, temporaries = zip(*points, strict=True)
        axis.loglog(x, flops, "o-", base=2, label="TFLOP")
        axis.loglog(x, temporaries, "s--", base=2, label="GiB of temporaries")
        axis.set(title=f"update, {LAYERS} layers", xlabel=TITLES[sweep], ylabel="a chip")
        axis.legend(fontsize=8)
    figure.savefig(HERE / "scaling.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SWEEPS), action="append", help="a sweep, as often as there are some")
    arguments, results = parser.parse_args(), load()
    for sweep in arguments.only or SWEEPS:
        for measurement in SWEEPS[sweep]:
            measured(results, measurement)
    print(*tables(results), sep="\n")
    draw(results)


if __name__ == "__main__":
    main()
