"""Tables to read in a notebook."""

import pandas as pd


def table(rows, digits=3):
    """A list of dicts as a table: text to the left and in full, numbers with `digits` places, no index.

    >>> "0.667" in table([{"N": 2, "win rate": 2 / 3}]).to_html()
    True
    """
    frame = pd.DataFrame(rows)
    text = [name for name in frame if pd.api.types.is_string_dtype(frame[name])]
    left = [{"selector": "", "props": "text-align: left; white-space: pre-wrap"}]
    return frame.style.hide(axis="index").format(precision=digits).set_table_styles(dict.fromkeys(text, left), axis=0)


SHOWN = ("reference_reward", "reward", "win_rate", "kl", "frontier_efficiency", "kl_efficiency", "completion_length")


def estimates_table(evaluation, more=()):
    """What an evaluation found, with 95 % intervals over prompts.

    Args:
        evaluation: `Evaluation`.
        more: names of further estimates.
    """
    return table([{"figure": name, **evaluation.estimates[name]._asdict()} for name in (*SHOWN, *more)])
