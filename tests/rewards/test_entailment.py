"""The entailment reward: with a stand-in for `transformers`, and with a real classifier of random weights."""

import json
import sys
import types

import keras
import pytest

from keras_bond.rewards import Entailment, RewardError, call_reward

pytestmark = pytest.mark.any_backend

DOCUMENTS = {"document": ["It rained all day.", "Nobody came.", "It rained all day."]}


class Classifier:
    """As the pipeline answers: all labels, the best one first; a summary of the document's own words is entailed."""

    def __init__(self, labels=("ENTAILMENT", "neutral", "contradiction")):
        config = types.SimpleNamespace(id2label=dict(enumerate(labels)))
        self.model, self.labels, self.calls = types.SimpleNamespace(config=config), labels, []

    def __call__(self, pairs, **settings):
        self.calls.append((pairs, settings))
        return [self.answer(pair["text"], pair["text_pair"]) for pair in pairs]

    def answer(self, document, summary):
        p = 0.9 if summary in document else 0.2
        scores = [p, *[(1 - p) / 2] * (len(self.labels) - 1)]
        answer = [{"label": name, "score": score} for name, score in zip(self.labels, scores, strict=True)]
        return sorted(answer, key=lambda each: -each["score"])


@pytest.fixture
def install(monkeypatch):
    """Put a `pipeline` where `transformers` has its own; returns what it was called with."""

    def put(pipeline):
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
        monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(pipeline=pipeline))

    return put


def test_scores_are_of_the_entailment_label_and_in_order(install):
    classifier = Classifier()
    install(lambda task, model, device: classifier)
    reward = Entailment("nli", batch_size=4)
    scores = call_reward(reward, ["Summarize."] * 3, [" It rained ", " It rained", ""], DOCUMENTS)
    assert scores.tolist() == pytest.approx([0.9, 0.2, 0.0])
    (pairs, settings) = classifier.calls[0]
    assert pairs == [
        {"text": "It rained all day.", "text_pair": "It rained"},
        {"text": "Nobody came.", "text_pair": "It rained"},
    ]
    assert settings == {"batch_size": 4, "top_k": None, "truncation": "only_first", "function_to_apply": "softmax"}


def test_blank_completions_alone_need_no_classifier(install):
    classifier = Classifier()
    install(lambda task, model, device: classifier)
    assert Entailment("nli")(["", ""], ["", " \n"], document=["a", "b"]) == [0.0, 0.0]
    assert classifier.calls == []


def test_a_missing_column_is_named(install):
    install(lambda task, model, device: Classifier())
    expected = r"reads the column `article`, the text .* Received prompts with the columns: prompt, document\."
    with pytest.raises(RewardError, match=expected):
        call_reward(Entailment("nli", column="article"), ["p"] * 3, [" a", " b", " c"], DOCUMENTS)


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1"), ("entailment", "Entailment")])
def test_a_classifier_without_the_label_is_refused(install, labels):
    install(lambda task, model, device: Classifier(labels))
    with pytest.raises(ValueError, match=f"must have one label `entailment`. .*model='nli', .* {', '.join(labels)}$"):
        Entailment("nli")


def test_a_classifier_that_is_not_there_is_one_line(install):
    def pipeline(task, model, device):
        raise OSError("no such model\nand a page of advice")

    install(pipeline)
    with pytest.raises(ValueError, match=r"Received: model='nli', which cannot be loaded: no such model$"):
        Entailment("nli")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-bond\[summarization\]'"):
        Entailment("nli")


def test_it_is_serialised(install):
    install(lambda task, model, device: Classifier())
    reward = Entailment("nli", column="article", batch_size=2, device="cpu")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(reward))
    assert again.get_config() == {"model": "nli", "column": "article", "batch_size": 2, "device": "cpu"}


def test_a_real_pipeline(tmp_path):
    """A BERT of random weights: probabilities, the same one by one as in a batch, and long documents are cut."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rained", "all", "day", "nobody", "came", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=16).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        id2label={0: "entailment", 1: "neutral"},
        label2id={"entailment": 0, "neutral": 1},
        initializer_range=1.0,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["0"] == "entailment"
    reward = Entailment(str(tmp_path), batch_size=2, device="cpu")
    documents, texts = ["it rained all day ." * 9, "nobody came .", "it rained ."], [" it rained", " nobody came", " it"]
    together = reward([""] * 3, texts, document=documents)
    alone = [reward([""], [text], document=[document])[0] for text, document in zip(texts, documents, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(0 < score < 1 for score in together)
    assert len(set(together)) == 3
