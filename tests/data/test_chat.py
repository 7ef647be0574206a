"""Chat templates: ours against texts written by hand, and all of them against the renderer of `transformers`."""

import datetime
import json
import re
import types

import keras
import pytest
import tiny
import transformers
from keras_hub.models import Qwen3Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers.utils.chat_template_utils import render_jinja_template

from keras_bond import presets
from keras_bond.data import ChatTemplate, chat, encode
from keras_bond.data.messages import asked
from keras_bond.rollout import Rollout

pytestmark = pytest.mark.any_backend

USER = {"role": "user", "content": "Why is the sky blue?"}
REPLY = {"role": "assistant", "content": "It scatters."}
SYSTEM = {"role": "system", "content": "Be brief."}
MORE = {"role": "user", "content": " And at night? "}
TODAY = datetime.datetime.now().strftime("%d %B %Y")
SMOLLM3 = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n"
    f"Today Date: {TODAY}\nReasoning Mode: /no_think\n\n## Custom Instructions\n\n"
)

EXPECTED = {  # [SYSTEM, USER, REPLY, MORE], and the text of [USER] alone
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nIt scatters.<|im_end|>\n<|im_start|>user\n And at night? <|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nBe brief.\n\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\nIt scatters."
        "<end_of_turn>\n<start_of_turn>user\nAnd at night?<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma4": (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nWhy is the sky blue?<turn|>\n<|turn>model\nIt scatters.<turn|>\n"
        "<|turn>user\nAnd at night?<turn|>\n<|turn>model\n",
        "<bos><|turn>user\nWhy is the sky blue?<turn|>\n<|turn>model\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt scatters.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd at night?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (
        "<s>[INST] Why is the sky blue?[/INST] It scatters.</s>[INST] Be brief.\n\n And at night? [/INST]",
        "<s>[INST] Why is the sky blue?[/INST]",
    ),
    "qwen2.5": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nIt scatters.<|im_end|>\n<|im_start|>user\n And at night? <|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nIt scatters.<|im_end|>\n<|im_start|>user\n And at night? <|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smollm3": (
        f"{SMOLLM3}Be brief.\n\n<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\nIt scatters.<|im_end|>\n<|im_start|>user\n And at night? <|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        f"{SMOLLM3}You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n<|im_end|>\n"
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
}

CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, REPLY, MORE],
    [SYSTEM, USER, REPLY, MORE],
    [USER, REPLY, MORE, REPLY, USER],
    [{"role": "user", "content": "{{ messages }} <b>&amp;</b> é漢\U0001f600"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "line\n\nline\n"}],
    [USER, {"role": "assistant", "content": "<think>\nRayleigh\n</think>\n\nIt scatters."}, MORE],
    [SYSTEM, USER, {"role": "assistant", "content": "It scat"}],
]

TWISTED = """{%- for m in messages %}
  {% if loop.index > 4 %}{% break %}{% endif %}
    {{ bos_token }}{{ m | tojson }}{{ strftime_now("%Y") }}
{% generation %}{{ m['content'] | trim }}{% endgeneration %}
{% endfor %}
{%- if add_generation_prompt %}> {% endif %}"""


def theirs(source, messages, **variables):
    goes_on = messages[-1]["role"] == "assistant"
    generation = {"continue_final_message": goes_on, "add_generation_prompt": not goes_on}
    ((text,), _) = render_jinja_template([messages], chat_template=source, **generation, **variables)
    return text


@pytest.mark.parametrize("name", chat.NAMES)
def test_a_shipped_template_is_the_text_of_the_model(name):
    longer, shorter = EXPECTED[name]
    assert chat.render([SYSTEM, USER, REPLY, MORE], name) == longer
    assert chat.render([USER], name) == chat.render(USER["content"], name) == shorter


@pytest.mark.parametrize("name", [*chat.NAMES, "twisted"])
def test_renders_as_transformers_does(name):
    template = ChatTemplate(TWISTED) if name == "twisted" else chat.template(name)
    for messages in CONVERSATIONS[: -1 if name == "twisted" else None]:  # theirs leaves its mark in JSON
        tokens = {"bos_token": "", "eos_token": ""}
        assert template.render(messages) == theirs(template.source, messages, **tokens), messages


def test_thoughts():
    thought = {"role": "assistant", "content": "<think>\nRayleigh\n</think>\n\nIt scatters."}
    qwen3 = chat.render([USER, thought, MORE], "qwen3", enable_thinking=False)
    assert "Rayleigh" not in qwen3
    assert qwen3.endswith("assistant\n<think>\n\n</think>\n\n")
    assert chat.render([USER, thought], "qwen3").endswith("assistant\n<think>\nRayleigh\n</think>\n\nIt scatters.")
    assert chat.render([USER], "gemma4", enable_thinking=False).endswith("model\n<|channel>thought\n<channel|>")
    assert "Reasoning Mode: /think" in chat.render([SYSTEM, USER], "smollm3", enable_thinking=True)
    with pytest.raises(ValueError, match="must begin with a system turn"):
        chat.render([USER], "smollm3", enable_thinking=True)


def test_a_reply_at_the_end_is_gone_on_with():
    assert chat.render([USER, REPLY], "chatml").endswith("<|im_start|>assistant\nIt scatters.")
    with pytest.raises(ValueError, match="leaves out the end of the assistant's last message"):
        chat.render([USER, REPLY], "{{ messages[0].content }}")
    assert asked([SYSTEM, USER, REPLY]) == [SYSTEM, USER]


def test_templates_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="which has neither: take one of chatml"):
        chat.template(tmp_path)
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    several = [
        {"name": "tools", "template": "{{ 1 }}"},
        {"name": "default", "template": "{{ bos_token }}default{{ eos_token }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**tokens, "chat_template": several}))
    assert chat.render([USER], str(tmp_path)) == "<s>default</s>"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}own")
    assert chat.render([USER], tmp_path) == "<s>own"
    assert chat.render([USER], tmp_path / "chat_template.jinja") == "own"


def test_templates_are_kept_in_their_place(tmp_path):
    for attack in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{% include 'x' %}"):
        with pytest.raises(ValueError, match="cannot render this conversation"):
            chat.render([USER], attack)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("gemma5", [USER], "must be None, \"auto\", one of chatml, gemma, .* Received: chat_template='gemma5'"),
        ("{% for %}", [USER], "must be Jinja text. Received in line 1"),
        (7, [USER], "Received: chat_template=7"),
        ("gemma", [], "at least one message"),
        ("gemma", [USER, USER], "cannot render this conversation: after a system turn, if any, user and assistant must"),
        ("gemma", [{"role": "user"}], "a `role` and a `content` that are text"),
        ("gemma", [{"role": "user", "content": [{"type": "image"}]}], "see images are not supported"),
    ],
)
def test_what_is_wrong_is_said(template, messages, message):
    with pytest.raises(ValueError, match=message):
        chat.render(messages, template)


def test_ids_are_those_of_transformers():
    """Markers that KerasHub's tokenizer does not list as special are tokens all the same, as in the checkpoint."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocabulary = {piece: i for i, piece in enumerate([*sorted(ByteLevel.alphabet()), "sk", *special])}
    ours = Qwen3Tokenizer(vocabulary=vocabulary, merges=["s k"])
    reference = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[("s", "k")], extra_special_tokens=special)
    template = chat.template("qwen3")
    conversations = [messages for messages in CONVERSATIONS if messages[-1]["role"] == "user"]
    texts = [template.render(messages) for messages in conversations]
    expected = [
        reference.apply_chat_template(
            messages, chat_template=template.source, add_generation_prompt=True, return_dict=False, tokenize=True
        )
        for messages in conversations
    ]
    assert encode(ours, texts, template.markers) == expected
    assert vocabulary["<|im_start|>"] in expected[0]


def test_the_template_of_a_model(tmp_path):
    policy = tiny.causal_lm()
    rollout = Rollout(policy, 99, 2, chat_template="auto")
    (ids,) = rollout.encode([[{"role": "user", "content": "ab"}]])
    assert ids[0] == 2
    assert ids.count(2) == 1  # the start token, which the template writes too
    assert rollout.render(["ab", [USER]])[0] == "<bos><start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\n"
    rollout = Rollout(policy, 9, 2, chat_template="{{ messages[0].content }}{{ eos_token }}")
    assert rollout.encode([[{"role": "user", "content": "ab"}], "c"]) == [[2, 4, 5, 1], [2, 6, 1]]
    rollout = Rollout(policy, 9, 2)
    with pytest.raises(ValueError, match=re.escape('pass `chat_template="auto"`, that of the model\'s family')):
        rollout.encode(["ab", [USER]])
    with pytest.raises(ValueError, match=r'^`chat_template="auto"` knows no template for a model with a object'):
        chat.template_of(types.SimpleNamespace(backbone=object()), "auto")
    folder = tmp_path / "tiny_instruct"
    policy.save_to_preset(str(folder))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}own")
    assert Rollout(presets.load(folder), 9, 2, chat_template="auto").render([[USER]]) == ["<bos>own"]


def test_an_instruct_preset_that_sees_plain_text_is_warned_of(tmp_path):
    folder = tmp_path / "tiny_instruct"
    tiny.causal_lm().save_to_preset(str(folder))
    rollout = Rollout(presets.load(folder), 9, 2)
    with pytest.warns(UserWarning, match="`tiny_instruct` was tuned on conversations.* will see '<bos>ab', without") as seen:
        rollout.encode(["ab", "b"])
    assert len(seen) == 1
    rollout.encode(["ab"])
    Rollout(presets.load(folder), 99, 2, chat_template="auto").encode(["ab"])  # no warning, which would be an error here


def test_a_template_is_saved_with_its_variables():
    template = chat.template("qwen3", enable_thinking=False)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(template))
    assert again.get_config() == template.get_config()
    assert again.render([USER]) == template.render([USER])
