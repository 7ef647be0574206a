"""Chat templates: a conversation becomes the text that a model was tuned to answer.

Templates are Jinja, as checkpoints of Hugging Face carry them, and run in Jinja's sandbox. Those in `templates` are ours.
"""

import datetime
import functools
import importlib.resources
import json
import pathlib
import re

import keras

from keras_bond.data.messages import REPLY, conversation, is_conversation
from keras_bond.data.tokens import token_id

NAMES = ("chatml", "gemma", "gemma4", "llama3", "mistral", "qwen2.5", "qwen3", "smollm3")
"""The templates that are shipped."""

FAMILIES = {
    "GemmaBackbone": "gemma",
    "Gemma3Backbone": "gemma",
    "Gemma3nBackbone": "gemma",
    "Gemma4Backbone": "gemma4",
    "Llama3Backbone": "llama3",
    "MistralBackbone": "mistral",
    "QwenBackbone": "qwen2.5",
    "Qwen3Backbone": "qwen3",
    "SmolLM3Backbone": "smollm3",
}
"""KerasHub's backbone -> the template of its instruct presets."""

TURN_ENDS = ("<end_of_turn>", "<turn|>", "<|eot_id|>", "<|im_end|>")
"""What ends a turn: a completion stops there, where the vocabulary has it."""

_MARKER = re.compile(r"<\|[^|<>\s]+\|?>|<[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]")
_GOES_ON = "\ue000goes on\ue000"


@keras.saving.register_keras_serializable("keras_bond")
class ChatTemplate:
    """A Jinja template, and what it is rendered with.

    The template sees `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception(text)`,
    `strftime_now(format)`, the filter `tojson`, and the variables that are given here.

    Args:
        source: str, the Jinja text.
        name: of a shipped template; `None` for others.
        bos_token, eos_token: str; by default those of the model's tokenizer.
        **variables: such as `enable_thinking=False`.

    Raises:
        ValueError: if the text is not Jinja; the message says in which line.

    Example:

    >>> shout = ChatTemplate("{% for message in messages %}{{ message.content | upper }}{{ mark }}{% endfor %}", mark="!")
    >>> shout.render([{"role": "user", "content": "hello"}])
    'HELLO!'

    Source: the interface is that of `apply_chat_template` in Hugging Face's `transformers`.
    """

    def __init__(self, source, name=None, bos_token=None, eos_token=None, **variables):
        self.source, self.name, self.bos_token, self.eos_token, self.variables = (
            source,
            name,
            bos_token,
            eos_token,
            variables,
        )
        _compiled(source)  # or an error

    @property
    def markers(self):
        """The spellings in the template that may be tokens of their own: `<|im_start|>`, `<start_of_turn>`, `[INST]`, ..."""
        return sorted({*_MARKER.findall(self.source), *TURN_ENDS})

    def render(self, messages, add_generation_prompt=True, where=""):
        """The text of one conversation, up to where the model goes on.

        A conversation that ends in a message of the assistant is left open there: the model completes that message.

        Args:
            messages: a list of `{"role": ..., "content": ...}`.
            add_generation_prompt: whether the beginning of the answer follows the last message.
            where: for the message of an error, such as `" at row 3"`.

        Returns:
            str.

        Raises:
            ValueError: if a message is not one, or the template refuses the conversation.
        """
        if not is_conversation(messages):
            raise ValueError(
                "A conversation must be a list of at least one message, each a dict with a `role` and a `content`. "
                f"Received{where}: {messages!r:.200}"
            )
        messages = conversation(messages, where)
        goes_on = add_generation_prompt and messages[-1]["role"] == REPLY
        if goes_on:
            messages[-1]["content"] += _GOES_ON
        tokens = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        generation = {"add_generation_prompt": add_generation_prompt and not goes_on}
        try:
            text = _compiled(self.source).render(messages=messages, **generation, **tokens, **self.variables)
        except Exception as error:  # whatever a template may run into: it is a program
            raise ValueError(
                f"The chat template {self.name or 'that was given'} cannot render this conversation: {error}. "
                f"Received{where}: {messages!r:.300}"
            ) from error
        if not goes_on:
            return text
        if _GOES_ON not in text:
            raise ValueError(
                f"The chat template {self.name or 'that was given'} leaves out the end of the assistant's last message, "
                f"which the model is to go on with: end with a message of the user. Received{where}: {messages!r:.300}"
            )
        return text[: text.rindex(_GOES_ON)].replace(_GOES_ON, "")

    def for_tokenizer(self, tokenizer):
        """This template, with the tokenizer's start and end token where it has none of its own."""
        tokens = {
            "bos_token": self.bos_token or getattr(tokenizer, "start_token", None),
            "eos_token": self.eos_token or getattr(tokenizer, "end_token", None),
        }
        return ChatTemplate(**{**self.get_config(), **tokens})

    def get_config(self):
        config = {"source": self.source, "name": self.name, "bos_token": self.bos_token, "eos_token": self.eos_token}
        return {**config, **self.variables}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def template(chat_template, **variables):
    """The `ChatTemplate` that `chat_template` names.

    Args:
        chat_template: one of `NAMES`; Jinja text; a folder with `chat_template.jinja` or a `tokenizer_config.json` that
            holds a template, such as a checkpoint of Hugging Face; a file of Jinja text; or a `ChatTemplate`.
        **variables: what the template sees besides, such as `enable_thinking=False`.

    Raises:
        ValueError: if it is none of these, or not Jinja.

    Example:

    >>> template("qwen3", enable_thinking=False).render([{"role": "user", "content": "2 + 2?"}])[-19:]
    '<think>\\n\\n</think>\\n\\n'
    """
    if isinstance(chat_template, ChatTemplate):
        return ChatTemplate(**{**chat_template.get_config(), **variables})
    if isinstance(chat_template, str) and chat_template in NAMES:
        source = importlib.resources.files("keras_bond.data").joinpath("templates", f"{chat_template}.jinja")
        return ChatTemplate(source.read_text(encoding="utf-8"), chat_template, **variables)
    if isinstance(chat_template, str) and re.search(r"\{[{%]", chat_template):
        return ChatTemplate(chat_template, **variables)
    if isinstance(chat_template, str | pathlib.Path) and str(chat_template) and pathlib.Path(chat_template).exists():
        found = from_folder(chat_template, **variables)
        if found is not None:
            return found
        raise ValueError(
            "`chat_template` must name a folder with `chat_template.jinja`, or with a template in `tokenizer_config.json`. "
            f"Received: {str(chat_template)!r}, which has neither: take one of {', '.join(NAMES)}"
        )
    raise ValueError(
        f'`chat_template` must be None, "auto", one of {", ".join(NAMES)}, Jinja text, the folder of a checkpoint, or a '
        f"`ChatTemplate`. Received: chat_template={chat_template!r:.200}"
    )


def from_folder(folder, **variables):
    """The `ChatTemplate` that a folder of a checkpoint holds, or a file of Jinja text; `None` where there is none."""
    folder = pathlib.Path(folder)
    if folder.is_file():
        return ChatTemplate(folder.read_text(encoding="utf-8"), **variables)
    config, file = {}, folder / "tokenizer_config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
    tokens = {key: config.get(key) for key in ("bos_token", "eos_token")}
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        source = {each["name"]: each["template"] for each in source}.get("default")
    if (folder / "chat_template.jinja").is_file():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return None if source is None else ChatTemplate(source, **{**tokens, **variables})


def template_of(causal_lm, chat_template, folder=None):
    """The `ChatTemplate` of a model, bound to its tokenizer; `None` for `None`.

    Args:
        causal_lm: a KerasHub `CausalLM`.
        chat_template: `None`; `"auto"`, the one in `folder`, else that of the model's family; or what `template` takes.
        folder: where the model was loaded from, if that is known.

    Raises:
        ValueError: if there is no such template, or with `"auto"` none is known for this family.
    """
    if chat_template is None:
        return None
    if isinstance(chat_template, str) and chat_template == "auto":
        chat_template = folder and pathlib.Path(folder).is_dir() and from_folder(folder)
        kinds = [kind.__name__ for kind in type(causal_lm.backbone).__mro__]
        chat_template = chat_template or next((FAMILIES[kind] for kind in kinds if kind in FAMILIES), None)
        if chat_template is None:
            raise ValueError(
                f'`chat_template="auto"` knows no template for a model with a {kinds[0]}: take one of {", ".join(NAMES)}, '
                'the folder of the checkpoint that it came from, or Jinja text. Received: chat_template="auto"'
            )
    return template(chat_template).for_tokenizer(causal_lm.preprocessor.tokenizer)


def render(messages, chat_template, **variables):
    """The text that a model sees of a conversation.

    Args:
        messages: a list of `{"role": ..., "content": ...}`; a str is one message of the user.
        chat_template: see `template`.
        **variables: what the template sees besides.

    Returns:
        str.

    Raises:
        ValueError: if there is no such template, or it refuses the conversation.

    Example:

    >>> render([{"role": "user", "content": "Why is the sky blue?"}], "gemma")
    '<bos><start_of_turn>user\\nWhy is the sky blue?<end_of_turn>\\n<start_of_turn>model\\n'
    """
    return template(chat_template, **variables).render(as_messages(messages))


def turn_ends(tokenizer):
    """Ids of the tokens that end a completion: the tokenizer's end, and what it has of `TURN_ENDS`; a list of int."""
    ends = [getattr(tokenizer, "end_token_id", None), *(token_id(tokenizer, token) for token in TURN_ENDS)]
    return [*dict.fromkeys(end for end in ends if end is not None)]


def as_messages(prompt):
    """A conversation as it is; a str as one message of the user.

    >>> as_messages("Hello")
    [{'role': 'user', 'content': 'Hello'}]
    """
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


@functools.lru_cache(64)
def _compiled(source):
    import jinja2.ext
    import jinja2.sandbox

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # Jinja's own escapes for HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", _without_statement, source))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"`chat_template` must be Jinja text. Received in line {error.lineno}: {error.message}") from error


def _without_statement(match):
    """`{% generation %}`, which marks answers for training on them, as a comment of the same whitespace."""
    opening, closing = ("{#-" if match[0].startswith("{%-") else "{#"), ("-#}" if match[0].endswith("-%}") else "#}")
    return f"{opening} {closing}"
