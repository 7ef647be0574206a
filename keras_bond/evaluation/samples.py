"""What an evaluation looked at, and the one CSV that keeps it."""

import csv
import itertools
import json
from typing import NamedTuple

import numpy as np

from keras_bond.data import is_conversation
from keras_bond.evaluation.best_of_n import check_best_of_n
from keras_bond.evaluation.estimates import Estimate, estimate_all

_FIGURES = ["reward", "length", "truncated", "kl", "log_prob", "reference_log_prob"]
_COLUMNS = ["prompt_index", "prompt", "source", "sample", "completion", *_FIGURES, "token_ids"]


class Samples(NamedTuple):
    """k completions for each of P prompts, of at most T tokens, and what is known of them."""

    texts: list
    """k lists of P str."""
    rewards: np.ndarray
    """(P, k) float64; NaN where the reward abstained."""
    lengths: np.ndarray
    """(P, k), tokens, the stop token included."""
    truncated: np.ndarray
    """(P, k), whether the budget ended before a stop token came."""
    kl: np.ndarray
    """(P, k), nats: exact per token along each sample; zeros for the reference itself."""
    log_probs: np.ndarray
    """(P, k), nats: log pi(y|x) under the policy; for samples of the reference NaN, unless `best_of_n` asked for them."""
    reference_log_probs: np.ndarray
    """(P, k), nats: log pi_ref(y|x) under the reference."""
    token_ids: np.ndarray
    """(P, k, T); padding after the stop token."""
    mask: np.ndarray
    """(P, k, T) bool, true up to and including the stop token."""


class Evaluation(NamedTuple):
    """The result of `evaluate`."""

    estimates: dict[str, Estimate]
    """By name, as `evaluate` lists them."""
    samples: Samples
    reference_samples: Samples
    prompts: list
    """P str, or conversations."""

    def save(self, path):
        """Write a CSV with a row for every completion, from which `load` makes this `Evaluation` again.

        Its columns: `prompt_index`, `prompt`, `source` (policy or reference), `sample`, `completion`, `reward`, `length`,
        `truncated`, `kl`, `log_prob`, `reference_log_prob`, `token_ids` (separated by spaces, padding included).
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for i, prompt in enumerate(self.prompts):
                prompt = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
                for source, samples in (("policy", self.samples), ("reference", self.reference_samples)):
                    for j, texts in enumerate(samples.texts):
                        figures = [str(values[i, j]) for values in samples[1:7]]  # as many digits as it needs
                        token_ids = " ".join(map(str, samples.token_ids[i, j]))
                        writer.writerow([i, prompt, source, j, texts[i], *figures, token_ids])


def load(path, best_of_n=None, seed=0):
    """The `Evaluation` that `Evaluation.save` wrote to `path`: the same samples and, for the same `seed`, estimates.

    Args:
        path: of the CSV.
        best_of_n: N, if the KLs to Best-of-N are wanted; they must have been when it was saved.
        seed: of the bootstrap.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: if the file is not one that `Evaluation.save` wrote, or cannot serve `best_of_n`.

    Example:

    ```python
    result.save("samples.csv")
    keras_bond.evaluation.load("samples.csv").estimates == result.estimates  # True
    ```
    """
    try:
        samples, reference, prompts = _read(path)
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"`path` must be a file that `Evaluation.save` wrote, and whole. Received: {str(path)!r}, where {error}"
        ) from error
    best_of_n = check_best_of_n(best_of_n, reference.rewards.shape[1])
    if best_of_n is not None and np.isnan(reference.log_probs).any():
        raise ValueError(
            "`best_of_n` needs the log-probs of the reference's samples under the policy: evaluate with `best_of_n`, then "
            f"save. Received: best_of_n={best_of_n} and {str(path)!r}, which lacks them"
        )
    return Evaluation(estimate_all(samples, reference, seed, best_of_n), samples, reference, prompts)


def _read(path):
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise ValueError(f"the columns are {reader.fieldnames}, not {_COLUMNS}")
        rows = list(reader)
    for row in rows:
        if None in row or None in row.values() or row["source"] not in ("policy", "reference"):
            raise ValueError(f"this row is broken: {list(row.values())!s:.200}")
    policy, reference = (
        sorted((r for r in rows if r["source"] == source), key=lambda r: (int(r["prompt_index"]), int(r["sample"])))
        for source in ("policy", "reference")
    )
    prompts = [_prompt(row["prompt"]) for row in policy if row["sample"] == "0"]
    return _samples(policy, len(prompts)), _samples(reference, len(prompts)), prompts


def _prompt(text):
    """The conversation that was written as JSON; other text as it is."""
    try:
        value = json.loads(text) if text.startswith("[{") else None
    except ValueError:
        value = None
    return value if is_conversation(value) else text


def _samples(rows, num_prompts):
    """`Samples` from the rows of one source, ordered by prompt and sample."""
    k = len(rows) // max(num_prompts, 1)
    places = [(int(row["prompt_index"]), int(row["sample"])) for row in rows]
    if not rows or places != [*itertools.product(range(num_prompts), range(k))]:
        raise ValueError("there are not equally many completions for each prompt")

    def grid(name, parse, dtype):
        try:
            return np.array([parse(row[name]) for row in rows], dtype).reshape(num_prompts, k)
        except (ValueError, KeyError) as error:
            raise ValueError(f"the column `{name}` is broken: {error}") from error

    token_ids = [row["token_ids"].split() for row in rows]
    if len({len(row) for row in token_ids}) > 1:
        raise ValueError("there are not equally many token ids in each row")
    lengths = grid("length", int, "int64")
    return Samples(
        texts=[[row["completion"] for row in rows[j::k]] for j in range(k)],
        rewards=grid("reward", float, "float64"),
        lengths=lengths,
        truncated=grid("truncated", {"False": False, "True": True}.__getitem__, "bool"),
        kl=grid("kl", float, "float32"),
        log_probs=grid("log_prob", float, "float32"),
        reference_log_probs=grid("reference_log_prob", float, "float32"),
        token_ids=np.array(token_ids).astype("int32").reshape(num_prompts, k, -1),
        mask=np.arange(len(token_ids[0])) < lengths[:, :, None],
    )
