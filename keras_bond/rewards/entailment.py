"""Entailment: does the document say what its summary says? A reward for abstractive summaries."""

from typing import Any

import keras

from keras_bond.rewards.reward import Reward

LABEL = "entailment"


@keras.saving.register_keras_serializable("keras_bond")
class Entailment(Reward):
    """How probable it is that a document entails the completion, by a classifier of natural language inference: in [0, 1].

    The classifier is a Hugging Face one with a label `entailment`, run by `transformers`' pipeline. Where document and
    completion are too long for it together, the end of the document is cut. A blank completion scores 0: it would be
    entailed by anything.

    Args:
        model: name or folder of the classifier.
        column: of the prompts' table: the text that must entail the completion.
        batch_size: pairs a call of the classifier.
        device: of the classifier, as `transformers.pipeline` takes it, such as `"cpu"`; an accelerator if there is one.

    Raises:
        ImportError: if `transformers` or `torch` is not installed.
        ValueError: if the classifier cannot be loaded or has no label `entailment`, or, when called, the column is missing.

    Example:

    ```python
    reward = keras_bond.rewards.Entailment()
    reward(["Summarize: ..."], [" Two men were arrested."], document=["Police in Leeds arrested two brothers on Monday."])
    ```

    Source: Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment Feedback",
    ACL 2023 (arXiv 2306.00186).
    """

    def __init__(self, model="MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli", column="document", batch_size=16, device=None):
        self.model, self.column, self.batch_size, self.device = model, column, batch_size, device
        self._classifier = _load(model, device)
        labels = list(self._classifier.model.config.id2label.values())
        if sum(label.lower() == LABEL for label in labels) != 1:
            raise ValueError(
                f"`model` must have one label `{LABEL}`. Received: model={model!r}, whose labels are {', '.join(labels)}"
            )

    def __call__(self, prompts, completions, completion_ids=None, **columns):
        if self.column not in columns:
            raise ValueError(
                f"`Entailment` reads the column `{self.column}`, the text that must entail the completion. "
                f"Received prompts with the columns: {', '.join(['prompt', *columns])}."
            )
        texts = [completion.strip() for completion in completions]
        pairs = [
            {"text": document, "text_pair": text} for document, text in zip(columns[self.column], texts, strict=True) if text
        ]
        answers = iter(self._scores(pairs))
        return [next(answers) if text else 0.0 for text in texts]

    def _scores(self, pairs):
        settings = {"top_k": None, "truncation": "only_first", "function_to_apply": "softmax"}
        answers = self._classifier(pairs, batch_size=self.batch_size, **settings) if pairs else []
        return [next(each["score"] for each in answer if each["label"].lower() == LABEL) for answer in answers]

    def get_config(self):
        return {"model": self.model, "column": self.column, "batch_size": self.batch_size, "device": self.device}


def _load(model, device) -> Any:
    try:
        import torch  # noqa: F401  which the pipeline needs, and would only say so when it has loaded the rest
        from transformers import pipeline
    except ImportError as error:
        raise ImportError(
            "`Entailment` needs the packages `transformers` and `torch`: pip install 'keras-bond[summarization]'"
        ) from error
    try:
        return pipeline("text-classification", model=model, device=device)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            "`model` must be a sequence classifier on the Hugging Face hub, in its cache or in a folder. "
            f"Received: model={model!r}, which cannot be loaded: {reason}"
        ) from error
