"""The adapter for lm-evaluation-harness: against the harness' own `hf` model, and against itself in other batches."""

import ast
import importlib.metadata
import json
import pathlib
import re
import runpy
import sys
import tomllib

import keras
import lm_eval
import numpy as np
import pytest
import tiny
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from keras_bond import presets
from keras_bond.evaluation import ZERO_SHOT, Score, benchmark, harness
from keras_bond.evaluation.benchmark import scores_of
from keras_bond.evaluation.harness import KerasHubLM
from keras_bond.rollout import Rollout, rollout

ROOT = pathlib.Path(__file__).parents[2]
COMPILES = keras.config.backend() != "torch"


def write_task(folder, name, documents, **settings):
    """A task in the harness' format, with its data beside it and their cache too."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in settings.pop("metrics")]
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "context",
        "metric_list": metrics,
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def write_tasks(folder, contexts, choices, until):
    endings = [{"context": c, "choices": choices, "label": i % len(choices)} for i, c in enumerate(contexts)]
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    write_task(folder, "endings", endings, metrics=["acc", "acc_norm"], **choice)
    texts = [{"context": c, "answer": choices[0]} for c in contexts]
    generation = {"generation_kwargs": {"until": until, "max_gen_toks": 12, "do_sample": False}}
    settings = {"output_type": "generate_until", "doc_to_target": "answer", **generation}
    write_task(folder, "continuation", texts, metrics=["exact_match"], **settings)
    return folder


def requests(kind, *arguments):
    return [Instance(kind, {}, each, 0, ("task", i, 1)) for i, each in enumerate(arguments)]


def test_agrees_with_the_hf_model_on_the_exported_folder(tmp_path):
    """`export_to_transformers`, then accuracy, text and log-likelihoods; `max_length` is so small that it cuts contexts."""
    from lm_eval.models.huggingface import HFLM

    policy = presets.load("tiny_gemma")
    policy.export_to_transformers(str(tmp_path / "exported"))
    theirs = HFLM(str(tmp_path / "exported"), device="cpu", dtype="float32", batch_size=3, max_length=24)
    ours = KerasHubLM(policy, batch_size=4, max_length=24)
    lines = presets.prompts("tiny_gemma", "test")
    prompts = [f"{lines[2 * i]} {lines[2 * i + 1]}" for i in range(7)]
    contexts = [*prompts, f"{prompts[0]} ", f"{prompts[1]} the", " ".join(prompts)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_tasks(tasks, contexts, [" the people", " our country and the world", " of"], [".", ",", " and"])
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected, found = (
        lm_eval.evaluate(model, manager.load(["endings", "continuation"]), bootstrap_iters=0) for model in (theirs, ours)
    )
    assert found["results"] == expected["results"]
    assert 0 < found["results"]["endings"]["acc,none"] < 1
    pairs = list(zip(found["samples"]["endings"], expected["samples"]["endings"], strict=True))
    scores = np.array([[[r[0][0] for r in s["resps"]] for s in pair] for pair in pairs])
    assert scores.shape == (10, 2, 3)
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=1e-4)
    greedy = [[[r[0][1] for r in s["resps"]] for s in pair] for pair in pairs]
    assert all(a == b for a, b in greedy)
    texts = [[s["resps"][0][0] for s in results["samples"]["continuation"]] for results in (found, expected)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5
    assert all(text and not re.search(r"[.,]| and", text) for text in texts[0])
    assert len({len(ours.tok_encode(text)) for text in texts[0]}) > 2  # some are ended by a stop string

    (best,) = ours.generate_until(requests("generate_until", (prompts[2], {"max_gen_toks": 9})))
    best = best[: best.index(" ", 1)]  # the first word: greedy for both
    odd = [("", " We will"), ("<bos>We will", " not"), (prompts[2], best), (prompts[0], " nothing the people\nof it")]
    odd += [("We<eos> will", " not<eos>"), ("<unk>", "<pad>"), ("", "<bos>We")]
    results = [model.loglikelihood(requests("loglikelihood", *odd)) for model in (ours, theirs)]
    np.testing.assert_allclose(*([score for score, _ in each] for each in results), atol=1e-4)
    assert [greedy for _, greedy in results[0]] == [greedy for _, greedy in results[1]]
    assert results[0][2][1]
    long = requests("loglikelihood_rolling", *((text,) for text in (prompts[0], " ".join(prompts[:3]), "")))
    np.testing.assert_allclose(ours.loglikelihood_rolling(long), theirs.loglikelihood_rolling(long), atol=1e-3)
    with pytest.raises(
        ValueError, match=r"tokens that are not the context's.* Received 0 tokens. In request 1: \('We wil', 'l'\)"
    ):
        ours.loglikelihood(requests("loglikelihood", ("We", " will"), ("We wil", "l")))  # one token: " will"


def test_chats(policy):
    """What `--apply_chat_template` asks of a model; a template that knows no system turn goes without it, as `hf` does."""
    adapter = KerasHubLM(policy, max_length=40)
    system, user = {"role": "system", "content": "b"}, {"role": "user", "content": "a"}
    text = adapter.apply_chat_template([system, user])
    assert text == "<bos><start_of_turn>user\nb\n\na<end_of_turn>\n<start_of_turn>model\n"
    assert adapter.tok_encode(text).count(2) == 1
    assert adapter.chat_template(True).startswith("{#- Gemma 1, 2 and 3")
    assert adapter.chat_template(False) is None
    assert adapter.tokenizer_name == f"{policy.name}__gemma"
    open_reply = [user, {"role": "assistant", "content": "c"}]
    assert adapter.apply_chat_template(open_reply, add_generation_prompt=False).endswith("<start_of_turn>model\nc")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    assert KerasHubLM(policy, chat_template=template).apply_chat_template([system, user]) == "a"
    with pytest.raises(ValueError, match="Received: chat_template=None"):
        KerasHubLM(policy, chat_template=None).apply_chat_template([user])


@pytest.fixture(scope="module")
def policy():
    return tiny.causal_lm(scale=1.0)


def test_one_program_per_bucket(policy):
    adapter = KerasHubLM(policy, batch_size=2, max_length=40)
    lengths = [(1, 1), (7, 3), (8, 2), (9, 2), (20, 8), (31, 8), (3, 9)]  # in letters; the start token comes on top
    texts = [("a" * context, "b" * continuation) for context, continuation in lengths]
    expected = {(8, 8), (16, 8), (32, 8), (8, 16)}
    scores = adapter.loglikelihood(requests("loglikelihood", *texts))
    assert adapter._score.traces == (len(expected) if COMPILES else 0)
    again = adapter.loglikelihood(requests("loglikelihood", *texts[::-1]))[::-1]
    np.testing.assert_allclose([s for s, _ in scores], [s for s, _ in again], rtol=1e-5, atol=1e-5)
    adapter.loglikelihood(requests("loglikelihood", ("cab" * 4, "c")))
    assert adapter._score.traces == (len(expected) if COMPILES else 0)

    contexts = [
        ("a" * context, {"until": ["x"], "max_gen_toks": budget}) for context in (1, 6, 7, 8, 15) for budget in (5, 8)
    ]
    adapter.generate_until(requests("generate_until", *contexts))
    assert adapter.rollout._sample.traces == (2 if COMPILES else 0)  # contexts of 8 and of 16, a segment of 8
    adapter.generate_until(requests("generate_until", ("b", {"max_gen_toks": 3})))
    assert adapter.rollout._sample.traces == (2 if COMPILES else 0)


@pytest.mark.any_backend
def test_scores_in_chunks_of_positions_are_scores(policy, monkeypatch):
    asked = requests("loglikelihood", ("ab", "abcabca"), ("", "ccc"), ("abcab", "b"))
    expected = KerasHubLM(policy, batch_size=2).loglikelihood(asked)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 2 * 7 * 2)  # two positions of two rows
    found = KerasHubLM(policy, batch_size=2).loglikelihood(asked)
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def plain_logits(policy, tokens, width=40):
    """(tokens, V): from the plain model, without a cache, padded on the right: float64."""
    ids, mask = np.zeros((2, 1, width), "int32")
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    logits = keras.ops.convert_to_numpy(policy({"token_ids": ids, "padding_mask": mask}))
    return logits[0, : len(tokens)].astype("float64")


def plain_sample(policy, prompt, number, budget, segment, seed, truncate=lambda p: p):
    """Token by token from the plain model, by inverting its distribution with the row's own random numbers."""
    tokens = list(prompt)
    for t in range(budget):
        p = truncate(np.exp(plain_logits(policy, tokens)[-1]))
        u = np.random.default_rng([seed, number, t - t % segment]).random(segment, "float32")[t % segment]
        tokens.append(int(np.searchsorted(np.cumsum(p / p.sum()), u)))
        if tokens[-1] == 1:
            break
    return tokens[len(prompt) :]


def test_generation_in_segments_is_generation(monkeypatch):
    monkeypatch.setattr(harness, "SEGMENT", 8)
    policy, seed = tiny.causal_lm(scale=0.3), 32
    adapter = KerasHubLM(policy, batch_size=2, max_length=64, seed=seed)
    contexts, settings = ["ab", "c", "abcab", "bca" * 5], {"max_gen_toks": 19, "do_sample": True}
    prompts = [adapter.tok_encode(context) for context in contexts]
    tokens = [plain_sample(policy, prompt, i, 19, 8, seed) for i, prompt in enumerate(prompts)]
    assert [len(row) for row in tokens] == [19, 18, 4, 1]
    expected = [adapter.tok_decode(row) for row in tokens]
    assert adapter.generate_until(requests("generate_until", *((c, settings) for c in contexts))) == expected

    calls, sample = [], Rollout.sample
    monkeypatch.setattr(Rollout, "sample", lambda *arguments: calls.append(1) or sample(*arguments))
    assert expected[0] == "bacccbaabbbabbbb"
    for stop, text, segments in (("ac", "b", 1), ("bba", "bacccbaab", 2), ("x", expected[0], 3)):
        asked = requests("generate_until", (contexts[0], {**settings, "until": [stop, "y"]}))
        assert adapter.generate_until(asked) == [text]
        assert len(calls) == segments
        calls.clear()


@pytest.mark.any_backend
def test_samples_have_streams_of_their_own(policy):
    settings = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 12}
    asked = requests("generate_until", *[("ab", settings)] * 5, ("ab", {"max_gen_toks": 12}))
    adapter = KerasHubLM(policy, batch_size=3)
    texts = adapter.generate_until(asked)
    assert len(set(texts[:5])) > 2
    assert KerasHubLM(policy, batch_size=2).generate_until(asked[:5]) == texts[:5]
    adapter.seed = 1
    others = adapter.generate_until(asked)
    assert others[:5] != texts[:5]
    assert others[5] == texts[5]  # greedy


@pytest.mark.any_backend
def test_the_temperature_is_that_of_the_samples(policy):
    many = requests("generate_until", *[("ab", {"do_sample": True, "temperature": 0.5, "max_gen_toks": 1})] * 512)
    texts = KerasHubLM(policy, batch_size=64).generate_until(many)
    logits = plain_logits(policy, [2, *policy.preprocessor.tokenizer("ab")])[-1] / 0.5
    p = np.exp(logits) / np.exp(logits).sum()
    for letter, token in (("a", 4), ("b", 5), ("c", 6)):
        error = np.sqrt(p[token] * (1 - p[token]) / len(texts))
        assert abs(texts.count(letter) / len(texts) - p[token]) < 4 * error + 1e-9


def nucleus(p, mass):
    """The most probable tokens up to the one that reaches the mass, and 0 for the others."""
    ranked = np.sort(p / p.sum())[::-1]
    return np.where(p / p.sum() >= ranked[(np.cumsum(ranked) < mass).sum()], p, 0)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("settings", "truncate"),
    [
        ({"top_k": 2}, lambda p: np.where(p >= np.sort(p)[-2], p, 0)),
        ({"top_p": np.float64(0.6), "top_k": -1}, lambda p: nucleus(p, 0.6)),
        ({"min_p": 0.5, "num_beams": 1, "typical_p": None}, lambda p: np.where(p >= 0.5 * p.max(), p, 0)),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_samples_are_of_the_most_probable_tokens(policy, settings, truncate):
    contexts = ["ab", "c", "abcab"]
    adapter = KerasHubLM(policy, batch_size=np.int64(2), seed=5)
    asked = {"max_gen_toks": np.int64(8), "do_sample": True, **settings}
    found = adapter.generate_until(requests("generate_until", *((context, asked) for context in contexts)))
    rows = [plain_sample(policy, adapter.tok_encode(c), i, 8, 8, 5, truncate) for i, c in enumerate(contexts)]
    assert found == [adapter.tok_decode(row) for row in rows]
    assert rows != [plain_sample(policy, adapter.tok_encode(c), i, 8, 8, 5) for i, c in enumerate(contexts)]


@pytest.mark.any_backend
def test_an_empty_continuation_scores_nothing(policy):
    adapter = KerasHubLM(policy, batch_size=2)
    pairs = [("ab", "c"), ("ab", ""), ("", ""), ("", "ab"), ("ab ", "")]
    scores = adapter.loglikelihood(requests("loglikelihood", *pairs))
    assert [scores[i] for i in (1, 2, 4)] == [(0.0, True)] * 3
    alone = adapter.loglikelihood(requests("loglikelihood", pairs[0], pairs[3]))
    np.testing.assert_allclose([scores[i][0] for i in (0, 3)], [score for score, _ in alone], rtol=1e-6)


@pytest.mark.any_backend
@pytest.mark.parametrize("until", ["b", ["", "b", None], ["c" * 9, "b"], None, "", []], ids=repr)
def test_stop_strings_as_tasks_give_them(policy, until):
    adapter, settings = KerasHubLM(policy, seed=5), {"max_gen_toks": 8, "do_sample": True}
    whole, text = (
        adapter.generate_until(requests("generate_until", ("ab", {**settings, **more})))[0]
        for more in ({}, {"until": until})
    )
    assert "b" in whole
    assert text == (whole.split("b")[0] if until else whole)


@pytest.mark.any_backend
def test_what_is_answered_is_cached_at_once(policy, monkeypatch):
    """What was done before an interruption need not be done again."""
    adapter, cached, calls, sample = KerasHubLM(policy, batch_size=1), {}, [], Rollout.sample
    monkeypatch.setattr(adapter.cache_hook, "add_partial", lambda kind, arguments, text: cached.update({arguments[0]: text}))

    def once(*arguments):
        calls.append(1)
        return sample(*arguments) if len(calls) == 1 else sys.exit("interrupted")

    monkeypatch.setattr(Rollout, "sample", once)
    with pytest.raises(SystemExit):
        adapter.generate_until(requests("generate_until", ("ab" * 9, {"max_gen_toks": 3}), ("c", {"max_gen_toks": 3})))
    assert [*cached] == ["ab" * 9]


@pytest.mark.any_backend
def test_a_live_model_is_read_anew():
    policy, other = tiny.causal_lm(seed=0), tiny.causal_lm(seed=1)
    adapter = KerasHubLM(policy, batch_size=2)
    asked = requests("loglikelihood", ("ab", "c"), ("", "abc"))
    before, expected = adapter.loglikelihood(asked), KerasHubLM(other, batch_size=2).loglikelihood(asked)
    for variable, value in zip(policy.weights, other.weights, strict=True):
        variable.assign(value)
    after = adapter.loglikelihood(asked)
    np.testing.assert_allclose([s for s, _ in after], [s for s, _ in expected], rtol=1e-6)
    assert abs(before[0][0] - after[0][0]) > 1e-2
    assert adapter._score.traces <= 1


@pytest.mark.any_backend
def test_lora_weights_are_loaded_over_the_preset(tmp_path):
    tuned, asked = tiny.causal_lm(lora=2), requests("loglikelihood", ("ab", "c"))
    tuned.backbone.save_lora_weights(str(tmp_path / "policy.lora.h5"))
    plain = tiny.causal_lm()
    plain.save_to_preset(str(tmp_path / "preset"))
    (ours,) = KerasHubLM(str(tmp_path / "preset"), lora=tmp_path / "policy.lora.h5").loglikelihood(asked)
    np.testing.assert_allclose(ours[0], KerasHubLM(tuned).loglikelihood(asked)[0][0], rtol=1e-6)
    assert abs(ours[0] - KerasHubLM(plain).loglikelihood(asked)[0][0]) > 1e-2


@pytest.mark.any_backend
def test_the_harness_knows_it_by_name(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    assert get_model(name) is importlib.metadata.EntryPoint(name, value, "lm_eval.models").load() is KerasHubLM
    tiny.causal_lm().save_to_preset(str(tmp_path / "preset"))
    settings = f"preset={tmp_path / 'preset'},max_length=32,dtype=bfloat16,seed=3"
    adapter = get_model(name).create_from_arg_string(settings, {"batch_size": "4", "device": "cuda:0"})
    assert (adapter.batch_size, adapter.max_length, adapter.seed) == (4, 32, 3)
    assert adapter.causal_lm.backbone.compute_dtype == "bfloat16"


@pytest.mark.any_backend
def test_the_command_line_of_the_harness_has_it_too(monkeypatch):
    import lm_eval.__main__

    seen = []
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(get_model("keras_hub")))
    monkeypatch.delitem(sys.modules, "keras_bond.evaluation.lm_eval", raising=False)
    runpy.run_module("keras_bond.evaluation.lm_eval", run_name="__main__")
    assert seen == [KerasHubLM]


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": "many"}, "`batch_size` must be an integer of at least 1. Received: batch_size='many'"),
        ({"max_length": 0}, "`max_length` must be an integer of at least 1. Received: max_length=0"),
        ({"max_gen_toks": 0}, "`max_gen_toks` must be an integer of at least 1. Received: max_gen_toks=0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
        ({"dtype": "float16"}, "a model has its own. Received: dtype='float16', lora=None"),
        (
            {"lora": "a.lora.h5"},
            "`dtype` and `lora` are for a preset that is loaded: a model has its own. Received: dtype=None",
        ),
        (
            {"preset": "tiny_gemma", "lora": "none.lora.h5"},
            "`lora` must be a file of `backbone.save_lora_weights`. Received: lora='none.lora.h5'",
        ),
        ({"preset": "none"}, "the name of a KerasHub preset, received 'none'"),
        ({"preset": 3}, "The policy must be a KerasHub `CausalLM`"),
    ],
)
def test_bad_arguments(policy, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        KerasHubLM(**{"preset": policy, **settings})


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "loglikelihood",
            ("a", "b" * 9),
            "1 to `max_length`=8 tokens that are not the context's: raise `max_length`, or mend",
        ),
        ("loglikelihood", ("a", "b" * 9), "Received 9 tokens. In request 1: ('a', 'bbbbbbbbb')"),
        ("loglikelihood", ("a\ud800", "b"), r"valid Unicode"),
        ("loglikelihood_rolling", ("a\ud800",), r"In request 1: ('a\ud800',)"),
        (
            "generate_until",
            ("a", {"max_gen_toks": 8}),
            "below `max_length`=8: the context needs room. Received: max_gen_toks=8",
        ),
        ("generate_until", ("a", {"max_gen_toks": 0}), "Received: max_gen_toks=0 In request 1: ('a', {'max_gen_toks': 0})"),
        (
            "generate_until",
            ("a", {"num_beams": 2}),
            "of until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p; others",
        ),
        ("generate_until", ("a", {"num_beams": 2}), "no counterpart here. Received: {'num_beams': 2} In request 1"),
        ("generate_until", ("a", {"max_gen_toks": 4, "do_sample": True, "top_p": 1.5}), "Received: top_p=1.5 In request 1"),
        (
            "generate_until",
            ("a", {"max_gen_toks": 4, "temperature": -1, "do_sample": True}),
            "temperature=-1.0 In request 1",
        ),
        (
            "generate_until",
            ("a", {"max_gen_toks": 4, "until": [1]}),
            "`until` must be a str or a list of str. Received: until=[1]",
        ),
    ],
)
def test_what_cannot_be_answered_is_named_before_the_work_begins(policy, monkeypatch, kind, arguments, message):
    monkeypatch.setattr(Rollout, "pad", lambda *arguments: pytest.fail("work began"))
    good = {"loglikelihood": ("a", "b"), "loglikelihood_rolling": ("a",), "generate_until": ("a", {"max_gen_toks": 4})}
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(KerasHubLM(policy, max_length=8), kind)(requests(kind, good[kind], arguments))


@pytest.mark.any_backend
def test_no_batch_size_is_searched_for(policy, caplog):
    assert KerasHubLM(policy, batch_size="auto:4", dtype="auto").batch_size == 8
    assert "`batch_size` is not searched for: auto:4 becomes 8" in caplog.text


@pytest.mark.any_backend
def test_greedy_ignores_what_shapes_a_distribution(policy):
    plain, shaped = ({"max_gen_toks": 4, "do_sample": False, **more} for more in ({}, {"top_p": 0.9, "temperature": 0.0}))
    adapter = KerasHubLM(policy)
    assert len(set(adapter.generate_until(requests("generate_until", ("ab", plain), ("ab", shaped))))) == 1


# benchmark


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path, ["ab", "c", "abcab", "bca"], ["a", "b", "cc"], ["c"])


@pytest.mark.any_backend
def test_benchmark_scores_a_live_model(policy, folder):
    scores = benchmark(policy, ["endings", "continuation"], include_path=folder, limit=3, batch_size=4)
    assert [(s.task, s.metric, s.filter) for s in scores] == [
        ("endings", "acc", "none"),
        ("endings", "acc_norm", "none"),
        ("continuation", "exact_match", "none"),
    ]
    assert {(s.num_fewshot, s.num_samples, s.higher_is_better) for s in scores} == {(0, 3, True)}
    hits, tokenize = 0, policy.preprocessor.tokenizer
    for label, context in enumerate(("ab", "c", "abcab")):
        totals = []
        for choice in ("a", "b", "cc"):
            tokens = [2, *tokenize(context), *tokenize(choice)]
            logits = plain_logits(policy, tokens)
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            totals.append(sum(log_p[t - 1, tokens[t]] for t in range(len(tokens) - len(choice), len(tokens))))
        hits += int(np.argmax(totals) == label)
    assert scores[0].value == pytest.approx(hits / 3)
    assert scores[0].stderr == pytest.approx(np.std([1] * hits + [0] * (3 - hits), ddof=1) / np.sqrt(3))


@pytest.mark.any_backend
def test_scores_of_groups_and_of_what_is_no_number():
    results = {
        "results": {"t": {"alias": "t", "acc,none": np.float64(0.5), "acc_stderr,none": "N/A", "note,none": "x"}},
        "groups": {"g": {"alias": "g", "acc,none": 0.25, "acc_stderr,none": 0.125}},
        "n-shot": {"t": 5},
        "n-samples": {"t": {"original": 9, "effective": 4}},
        "higher_is_better": {"t": {"acc": True}, "g": {"acc": True}},
    }
    assert scores_of(results) == [
        Score("t", "acc", "none", 0.5, None, 5, 4, True),
        Score("g", "acc", "none", 0.25, 0.125, None, None, True),
    ]


@pytest.mark.any_backend
def test_the_zero_shot_names_are_tasks_of_the_harness():
    tasks = pathlib.Path(lm_eval.__file__).parent / "tasks"
    folders = [str(tasks / name) for name in ("gpqa", "gsm8k", "hendrycks_math", "bbh")]
    manager = TaskManager(include_path=folders, include_defaults=False)
    assert set(ZERO_SHOT.values()) <= {*manager.all_subtasks, *manager.all_groups}


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("tasks", "include", "message"),
    [
        ("GPQA", ".", "`tasks` must be a list of at least one name. Received: tasks='GPQA'"),
        ([], ".", "`tasks` must be a list of at least one name. Received: tasks=[]"),
        (["endings"], "none", "`include_path` must be a folder with tasks. Received: include_path='"),
        (["endings", "dance"], ".", "Received: dance"),
        (["dance"], None, "or tasks in the folder that `include_path` names. Received: dance"),
    ],
)
def test_a_task_that_is_not_there_is_named(folder, monkeypatch, tasks, include, message):
    index = lambda include_path=None, include_defaults=False: TaskManager(None, include_path, include_defaults)  # noqa: E731
    monkeypatch.setattr("lm_eval.tasks.TaskManager", index)  # without the harness' own tasks, whose files take seconds
    with pytest.raises(ValueError, match=re.escape(message)):
        benchmark("no preset is loaded", tasks, include_path=include and folder / include)


@pytest.mark.any_backend
def test_data_that_cannot_be_reached_are_named_before_the_model_is_loaded(folder):
    (folder / "continuation.jsonl").unlink()
    message = (
        r"The task continuation cannot be loaded: FileNotFoundError: .*continuation.jsonl.* Its data were expected on .* "
        r"Connect to the network .*, or name a folder of tasks with local data by `include_path`"
    )
    with pytest.raises(RuntimeError, match=message):
        benchmark("no preset is loaded", ["endings", "continuation"], include_path=folder)


@pytest.mark.any_backend
def test_without_the_harness_its_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras-bond\[benchmark\]'"):
        benchmark("tiny_gemma", ["GPQA"])


@pytest.mark.any_backend
def test_only_the_adapter_imports_the_harness_when_it_is_imported():
    for path in (ROOT / "keras_bond").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert path.name in ("harness.py", "lm_eval.py") or not any(name.split(".")[0] == "lm_eval" for name in names), (
                path
            )
