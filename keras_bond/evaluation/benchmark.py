"""The tasks of lm-evaluation-harness on a causal language model: `harness.KerasHubLM`, run and read."""

import importlib.util
import numbers
import pathlib
from typing import NamedTuple

ZERO_SHOT = {
    "GPQA": "gpqa_main_zeroshot",
    "GSM8K": "gsm8k_cot_zeroshot",
    "MATH": "hendrycks_math",
    "BBH": "bbh_zeroshot",
}
"""The benchmarks by name, and what the harness calls their zero-shot form."""


class Score(NamedTuple):
    """One metric of one task or group of tasks."""

    task: str
    """As the harness calls it."""
    metric: str
    filter: str
    """How the answer is read from the text, `"none"` where there is one way only."""
    value: float
    stderr: float | None
    """Standard error of `value`; `None` where the harness has none."""
    num_fewshot: int | None
    """Worked examples in the context; `None` for a group whose tasks differ."""
    num_samples: int | None
    """Documents the value is a mean of; `None` for a group."""
    higher_is_better: bool | None


def benchmark(causal_lm, tasks, *, include_path=None, limit=None, num_fewshot=None, apply_chat_template=False, **adapter):
    """Run tasks of lm-evaluation-harness on a live model or a preset.

    Args:
        causal_lm: a KerasHub `CausalLM` or the name of a preset, see `harness.KerasHubLM`.
        tasks: list of str: `GPQA`, `GSM8K`, `MATH`, `BBH` (their zero-shot forms, see `ZERO_SHOT`), any name the harness
            knows, or one from `include_path`.
        include_path: folder with tasks of one's own, as YAML files in the harness' format.
        limit: documents a task; all by default.
        num_fewshot: worked examples in the context; as the task has it by default.
        apply_chat_template: whether the contexts are turns of a chat, by the adapter's `chat_template`.
        **adapter: of `harness.KerasHubLM`: `batch_size` (8, rows a compiled call), `max_length` (8192, tokens of context
            and continuation), `max_gen_toks` (256, where a task does not say it), `dtype`, `lora`, `seed` (0),
            `chat_template` ("auto"), `family` ("auto").

    Returns:
        List of `Score`: tasks in the harness' order, then groups.

    Raises:
        ValueError: if there is no such task or folder, or an argument is out of range.
        RuntimeError: if a task cannot be loaded, such as when its data cannot be reached.
        ImportError: if lm-eval is not installed.

    Example:

    ```python
    before = keras_bond.evaluation.benchmark(policy, ["GSM8K"], limit=100)
    trainer.fit(prompts)
    after = keras_bond.evaluation.benchmark(policy, ["GSM8K"], limit=100)
    ```
    """
    names, manager = find_tasks(tasks, include_path)
    load_tasks(names, manager)  # before the model: what is missing should be said at once
    import lm_eval

    from keras_bond.evaluation.harness import KerasHubLM

    model = KerasHubLM(causal_lm, **adapter)
    settings = {"task_manager": manager, "limit": limit, "num_fewshot": num_fewshot, "log_samples": False}
    settings["apply_chat_template"] = apply_chat_template
    return scores_of(lm_eval.simple_evaluate(model, tasks=names, **settings))


def find_tasks(tasks, include_path=None):
    """(names of the harness, its `TaskManager`) for the tasks of `benchmark`.

    Raises:
        ValueError: if there is no such task or folder.
        ImportError: if lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError("Benchmarks need lm-evaluation-harness: pip install 'keras-bond[benchmark]'")
    from lm_eval.tasks import TaskManager

    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"`tasks` must be a list of at least one name. Received: tasks={tasks!r}")
    names = [ZERO_SHOT.get(task, task) for task in tasks]
    if include_path is not None:
        if not pathlib.Path(include_path).is_dir():
            raise ValueError(f"`include_path` must be a folder with tasks. Received: include_path={str(include_path)!r}")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return names, own  # the harness' own tasks, more than ten thousand files, need not be read
    manager = TaskManager(include_path=include_path and str(include_path))
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        where = f"in {str(include_path)!r}" if include_path is not None else "in the folder that `include_path` names"
        raise ValueError(
            f"`tasks` must be of {', '.join(ZERO_SHOT)}, names of lm-evaluation-harness (`lm_eval ls tasks` lists them) or "
            f"tasks {where}. Received: {', '.join(unknown)}"
        )
    return names, manager


def load_tasks(names, manager):
    """The tasks with their data, as `manager.load` has them.

    Raises:
        RuntimeError: if a task cannot be loaded; it names the first.
    """
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # whatever a hub, a loader of data or a task's own code may raise
            reason = next(iter(str(error).splitlines()), "")
            raise RuntimeError(
                f"The task {name} cannot be loaded: {type(error).__name__}: {reason}. Its data were expected on the Hugging "
                "Face hub or in its cache, or where the task's own file says. Connect to the network (GPQA's data also need "
                "`hf auth login` and its terms accepted), or name a folder of tasks with local data by `include_path` "
                "(--include-path)."
            ) from error


def scores_of(results):
    """What `lm_eval.simple_evaluate` returned, as a list of `Score`.

    >>> scores_of({"results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A"}}, "n-shot": {"t": 0}})
    [Score(task='t', metric='acc', filter='none', value=0.5, stderr=None, num_fewshot=0, num_samples=None, \
higher_is_better=None)]
    """
    scores = []
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            scores.append(
                Score(
                    task,
                    metric,
                    filter_name,
                    float(value),
                    float(stderr) if isinstance(stderr, numbers.Real) else None,
                    results.get("n-shot", {}).get(task),
                    results.get("n-samples", {}).get(task, {}).get("effective"),
                    results.get("higher_is_better", {}).get(task, {}).get(metric),
                )
            )
    return scores
