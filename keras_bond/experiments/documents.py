"""Documents to summarise, and the prompts that ask for it."""

import pathlib

from keras_bond import presets
from keras_bond.experiments.inputs import read_prompts

HELD_OUT = 10
"""Every tenth document of a file is held out."""


def read_documents(source, split, column="document", limit=None):
    """A list of texts: news articles, say.

    Args:
        source: a `.jsonl` or `.csv` file; the name of a data set on the Hugging Face hub, where need be with
            `@REVISION`; or `""`, for the bundled prompts in the place of documents.
        split: `"train"` or `"test"`. Of a file, every tenth document is of the test split.
        column: that holds the text.
        limit: how many at most, from the start.

    Raises:
        ValueError: if there is no such file, data set, split or column, or a text is missing.
        ImportError: if a data set is named and the package `datasets` is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test". Received: split={split!r}')
    if not source:
        return presets.prompts("tiny_gemma", split)[:limit]
    local = pathlib.Path(source).suffix.lower() in (".csv", ".jsonl")
    documents = _from_file(source, split, column) if local else _from_hub(source, split, column)
    for i, document in enumerate(documents := documents[:limit]):
        if not isinstance(document, str) or not document.strip():
            raise ValueError(f"{source!r}, split {split}, row {i}: expected a text in `{column}`, received {document!r:.60}")
    return documents


def summary_prompts(documents, tokenizer, max_prompt_length, template="{document}"):
    """The table that `fit` takes: each document in the template, cut at its end so that the prompt is short enough.

    Args:
        documents: list of str.
        tokenizer: of the policy: `policy.preprocessor.tokenizer`.
        max_prompt_length: tokens, the start token included.
        template: the prompt, with `{document}` where the document goes.

    Returns:
        dict of lists `prompt` and `document`, the latter as far as the policy reads it.

    Raises:
        ValueError: if there is no `{document}` in the template, or no room for one.
    """
    if "{document}" not in template:
        raise ValueError(f"`template` must have a place for {{document}}. Received: template={template!r}")
    room = max_prompt_length - 1

    def prompts(documents):
        return [template.replace("{document}", document) for document in documents]

    if len(_tokens(tokenizer, prompts([""]))[0]) >= room:
        raise ValueError(
            f"`template` leaves no room for a document in `max_prompt_length`={max_prompt_length}. "
            f"Received: template={template!r}"
        )
    documents = list(documents)
    too_long = {i: len(ids) - room for i, ids in enumerate(_tokens(tokenizer, prompts(documents))) if len(ids) > room}
    while too_long:  # again where tokens have merged otherwise after the cut
        rows = _tokens(tokenizer, [documents[i] for i in too_long])
        for (i, excess), ids in zip(too_long.items(), rows, strict=True):
            documents[i] = _text(tokenizer, ids[:-excess])
        rows = _tokens(tokenizer, prompts([documents[i] for i in too_long]))
        too_long = {i: len(ids) - room for i, ids in zip(too_long, rows, strict=True) if len(ids) > room}
    return {"prompt": prompts(documents), "document": documents}


def _from_file(path, split, column):
    texts = read_prompts(path, column)[column]
    return [text for i, text in enumerate(texts) if (i % HELD_OUT == HELD_OUT - 1) == (split == "test")]


def _from_hub(source, split, column):
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"The data set {source!r} needs the package `datasets`: pip install 'keras-bond[summarization]'"
        ) from error
    name, _, revision = source.partition("@")
    try:
        table = datasets.load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # whatever the hub, the network or a data set's own files have to say
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"expected a .jsonl or .csv file or a data set on the Hugging Face hub, received {source!r}, whose split "
            f"{split} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
    if column not in table.column_names:
        raise ValueError(f"{source!r} has no column `{column}`, but {', '.join(table.column_names)}")
    return list(table[column])


def _tokens(tokenizer, texts):
    rows = tokenizer(texts)
    return rows.to_list() if hasattr(rows, "to_list") else [list(map(int, row)) for row in rows]


def _text(tokenizer, ids):
    text = tokenizer.detokenize(ids)
    return text.numpy().decode("utf-8", errors="ignore") if hasattr(text, "numpy") else str(text)
