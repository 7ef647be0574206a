"""`keras-bond benchmark`: tasks of lm-evaluation-harness on any preset."""

import importlib.metadata
import json
import math
import pathlib
import time

import keras

from keras_bond.evaluation import benchmark
from keras_bond.experiments.provenance import device, versions, write_whole


def run(preset, tasks, output=None, say=print, started=None, **settings):
    """Run the tasks, print their scores and, where `output` is given, write them as JSON.

    Args:
        preset: name of a preset, see `presets.load`.
        tasks: list of str, see `evaluation.benchmark`.
        output: file.
        say: what prints the table.
        started: `time.time()` from which `seconds` counts; now by default.
        **settings: of `evaluation.benchmark`.

    Returns:
        List of `evaluation.Score`.

    Raises:
        ValueError: if an argument is wrong.
        RuntimeError: if a task cannot be loaded.
    """
    started = started or time.time()
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # where there is no network, each try would be a warning
    scores = benchmark(preset, tasks, **settings)
    seconds = round(time.time() - started, 1)
    say(f"{preset}, {seconds:.0f} s\n")
    say(table_of(scores))
    if output is not None:
        summary = {
            "preset": preset,
            "tasks": tasks,
            "scores": [{k: _plain(v) for k, v in score._asdict().items()} for score in scores],
            "settings": {k: _plain(v) for k, v in settings.items()},
            "seconds": seconds,
            "backend": keras.config.backend(),
            "device": device(),
            "versions": {**versions(), "lm_eval": importlib.metadata.version("lm_eval")},
        }
        output = pathlib.Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        say(f"\nScores in {output}.")
    return scores


def table_of(scores):
    """The scores as text: task, worked examples in the context, documents, metric, how it is read, value, standard error.

    >>> from keras_bond.evaluation import Score
    >>> one, group = Score("endings", "acc", "none", 0.5, 0.25, 0, 4, True), Score("all", "acc", "none", 1, *[None] * 4)
    >>> print(table_of([one, group]))
    task     shots  documents  metric  filter   value  std. error
    endings      0          4  acc     none    0.5000      0.2500
    all          -          -  acc     none    1.0000           -
    """
    header = ("task", "shots", "documents", "metric", "filter", "value", "std. error")
    rows = [header] + [
        tuple(
            "-" if cell is None else str(cell)
            for cell in (s.task, s.num_fewshot, s.num_samples, s.metric, s.filter, f"{s.value:.4f}", _fixed(s.stderr))
        )
        for s in scores
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust if name in ("task", "metric", "filter") else str.rjust for name in header]
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip() for row in rows
    )


def _fixed(value):
    return None if value is None else f"{value:.4f}"


def _plain(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    return str(value) if isinstance(value, pathlib.Path) else value
