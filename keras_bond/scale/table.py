"""A step's report as text."""

import math

from keras_bond.scale.topology import CHIPS, GIB, parse_topology

_HEADER = ("program", "runs", "arguments", "outputs", "temporaries", "peak", "TFLOP", "GB moved", "roofline s", "compile s")
_LOWERS = {"sample": "--sampling-batch", "score": "--batch", "update": "--microbatch"}
"""What lowers the memory of a program."""


def report_lines(report):
    """The lines that `keras-bond scale` prints for a `step_report`: a table of programs, then memory, time and a verdict."""
    chip = CHIPS[parse_topology(report["topology"])[0]]
    sampled = f", {size} sampled at a time" if (size := report["sampling_batch_size"]) else ""
    parts = (f" by {report['microbatch_size']}" if report["microbatch_size"] else "") + sampled
    tuned = f"LoRA {report['lora_rank']}" if report["lora_rank"] else "full fine-tuning"
    yield (
        f"{report['preset']} ({report['parameters'] / 1e9:.2f}B parameters, {report['trainable'] / 1e6:.1f}M trained), "
        f"{tuned}, {report['dtype']}, on {report['topology']}: {report['chips']} chips as batch {report['batch_chips']} "
        f"x model {report['model_chips']}"
    )
    yield (
        f"batch {report['batch_size']}{parts}, prompt {report['prompt_length']}, completion "
        f"{report['completion_length']} tokens; a chip: {chip.memory / GIB:.2f} GiB, {chip.flops / 1e12:.0f} TFLOP/s, "
        f"{chip.bandwidth / 1e9:.0f} GB/s"
    )
    yield "Per chip; memory in GiB; a program runs so often a step:"
    rows = [_HEADER, *(_row(name, program) for name, program in report["programs"].items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    for row in rows:
        yield "  ".join(
            cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
    yield (
        f"held throughout: {_gib(report['state_bytes'])} GiB, of it policy {_gib(report['policy_bytes'])}, optimizer "
        f"{_gib(report['optimizer_bytes'])}, anchor and reference {_gib(report['anchor_and_reference_bytes'])}, which add "
        f"{share_of_shadows(report):.2%}"
    )
    seconds = step_seconds(report)
    if not math.isnan(seconds):
        yield f"step: {seconds:.2f} s by the roofline, if nothing waits for another chip or for the reward"
    yield verdict(report)


def _row(name, program):
    memory = (_gib(program[key]) for key in ("arguments", "outputs", "temporaries", "peak"))
    return (
        name,
        str(program["runs"]),
        *memory,
        _number(program["flops"] / 1e12),
        _number(program["moved"] / 1e9),
        _number(program["roofline_seconds"]),
        f"{program['compile_seconds']:.0f}",
    )


def _gib(value):
    return "-" if math.isnan(value) else f"{value / GIB:.2f}"


def _number(value):
    return "-" if math.isnan(value) else f"{value:.3g}"


def share_of_shadows(report):
    """What anchor and reference add to the bytes that a step is given, as a share of the rest."""
    return report["anchor_and_reference_bytes"] / (report["state_bytes"] - report["anchor_and_reference_bytes"])


def step_seconds(report):
    """The roofline's time of a step; not a number where a program does not fit."""
    return sum(program["runs"] * program["roofline_seconds"] for program in report["programs"].values())


def verdict(report):
    """One line: fits, or what to change."""
    peak, limit = report["peak_bytes"], report["limit_bytes"]
    room = f"{peak / GIB:.2f} of {limit / GIB:.2f} GiB a chip"
    if report["fits"]:
        return f"fits: {room}"
    changes = []
    if report["state_bytes"] > limit / 2:
        if not report["lora_rank"]:
            changes.append("adapt with --lora 8")
        changes.append("take a larger topology or a larger --model-chips")
    if report["peak_bytes"] - report["state_bytes"] > limit / 2:
        changes.append(f"lower {_LOWERS[report['peak_program']]}")
    return f"does not fit: {room}; {', or '.join(changes or ['lower --microbatch, --batch or --completion-length'])}"
