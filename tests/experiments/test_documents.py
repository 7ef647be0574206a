"""Documents from files and from the hub, and the prompts they become."""

import json
import sys
import types

import keras_hub
import pytest

from keras_bond import presets
from keras_bond.experiments.documents import read_documents, summary_prompts

pytestmark = pytest.mark.any_backend


@pytest.fixture
def articles(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps({"article": f"Article {i}.", "id": i}) + "\n" for i in range(25)))
    return str(path)


@pytest.fixture
def hub(monkeypatch):
    """A package `datasets` that has one data set."""

    class Table(dict):
        column_names = ("document", "summary")

    def load_dataset(name, split, revision):
        if name != "news":
            raise ConnectionError("cannot reach the hub\nand much more")
        return Table(document=[f"{split} at {revision}: {i}" for i in range(3)])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_of_a_file_every_tenth_is_held_out(articles):
    assert read_documents(articles, "test", "article") == ["Article 9.", "Article 19."]
    train = read_documents(articles, "train", "article")
    assert (len(train), train[8:10]) == (23, ["Article 8.", "Article 10."])
    assert read_documents(articles, "train", "article", limit=2) == ["Article 0.", "Article 1."]


def test_nothing_named_is_the_bundled_prompts():
    assert read_documents("", "test", limit=5) == presets.prompts("tiny_gemma", "test")[:5]


def test_the_hub_is_asked_for_split_and_revision(hub):
    assert read_documents("news", "train", limit=1) == ["train at None: 0"]
    assert read_documents("news@refs/convert/parquet", "test")[2] == "test at refs/convert/parquet: 2"


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("news", "text", "'news' has no column `text`, but document, summary$"),
        ("old", "text", r"received 'old', whose split train cannot be loaded: ConnectionError: cannot reach the hub$"),
        ("missing.jsonl", "text", "there is no file 'missing.jsonl'$"),
    ],
)
def test_what_is_not_there_is_one_line(hub, source, column, message):
    with pytest.raises(ValueError, match=message):
        read_documents(source, "train", column)


def test_a_wrong_column_or_row_of_a_file_is_named(articles, tmp_path):
    with pytest.raises(ValueError, match=r"articles.jsonl' has no column `document`, but article, id$"):
        read_documents(articles, "train")
    path = tmp_path / "gap.jsonl"
    path.write_text('{"document": "a"}\n{"document": null}\n')
    with pytest.raises(ValueError, match=r"gap\.jsonl', split train, row 1: expected a text in `document`, received None"):
        read_documents(str(path), "train")
    path.write_text('{"document": "a"}\n{"document": " \\n"}\n')
    with pytest.raises(ValueError, match=r"row 1: expected a text in `document`, received ' \\n'$"):
        read_documents(str(path), "train")
    with pytest.raises(ValueError, match="`split` must be"):
        read_documents(str(path), "validation")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"'news' needs the package `datasets`: pip install 'keras-bond\[summarization\]'"):
        read_documents("news", "train")


def test_prompts_are_cut_within_the_document():
    tokenizer = keras_hub.models.GemmaTokenizer.from_preset(presets.path("tiny_gemma"))
    short, long = "We will act.", "The state of our union is strong, and it will be stronger. " * 20
    template = "Here is the news: {document} In one sentence:"
    table = summary_prompts([short, long, long[5:]], tokenizer, 40, template)
    lengths = [len(row) for row in tokenizer(table["prompt"])]
    assert table["document"][0] == short
    assert all(37 <= length <= 39 for length in lengths[1:])
    for whole, document, prompt in zip([short, long, long[5:]], table["document"], table["prompt"], strict=True):
        assert whole.startswith(document)
        assert prompt == template.replace("{document}", document)


def test_without_a_template_the_document_is_the_prompt():
    tokenizer = keras_hub.models.GemmaTokenizer.from_preset(presets.path("tiny_gemma"))
    documents = presets.prompts("tiny_gemma", "test")[:20]
    assert summary_prompts(documents, tokenizer, 8) == {"prompt": documents, "document": documents}


@pytest.mark.parametrize(
    ("template", "message"), [("Summarize.", "must have a place for"), ("It is late. " * 9 + "{document}", "leaves no room")]
)
def test_a_template_without_room_is_refused(template, message):
    tokenizer = keras_hub.models.GemmaTokenizer.from_preset(presets.path("tiny_gemma"))
    with pytest.raises(ValueError, match=message):
        summary_prompts(["a"], tokenizer, 16, template)
