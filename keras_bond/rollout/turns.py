"""The turns of a chat: what the model sees of a prompt."""

import pathlib
import re
import warnings

from keras_bond import presets
from keras_bond.data import chat, is_conversation


class Turns:
    """Prompts, text or conversations, as the text that one model sees.

    Args:
        causal_lm: a KerasHub `CausalLM` with its preprocessor.
        chat_template: `None`: text is seen as it is, and conversations are refused. `"auto"`, the template in the folder
            that `presets.load` had the model from, else that of its family; or what `data.chat.template` takes: a
            conversation is rendered, and a text is one message of the user.

    Raises:
        ValueError: if there is no such template.
    """

    def __init__(self, causal_lm, chat_template=None):
        self.template = chat.template_of(causal_lm, chat_template, presets.origin(causal_lm))
        self._causal_lm, self._warned = causal_lm, False

    @property
    def markers(self):
        """Spellings that the template writes for tokens of their own: see `data.tokenize`."""
        return () if self.template is None else self.template.markers

    def render(self, prompts):
        """The text that the model sees of each prompt, a str or a conversation: a list of str.

        Raises:
            ValueError: if there is a conversation and no chat template, or the template refuses it.
        """
        if self.template is not None:
            return [self.template.render(chat.as_messages(prompt), where=f" at row {i}") for i, prompt in enumerate(prompts)]
        for i, prompt in enumerate(prompts):
            if is_conversation(prompt):
                raise ValueError(
                    'Prompts that are conversations need a chat template: pass `chat_template="auto"`, that of the model\'s '
                    f"family, or see `keras_bond.data.chat.template`. Received at row {i}: {prompt!r:.200}"
                )
        if not self._warned:
            self._warn_of_plain_text(prompts)
        return prompts

    def _warn_of_plain_text(self, prompts):
        model = self._causal_lm
        names = (str(name) for name in (presets.origin(model), model.name, model.backbone.name))
        instruct = next((name for name in names if re.search(r"instruct|[-_]it(?![a-z])", name.lower())), None)
        plain = next((text for text in prompts if not any(end in text for end in chat.TURN_ENDS)), None)
        if instruct is None or plain is None:
            return
        self._warned = True
        start = getattr(model.preprocessor.tokenizer, "start_token", None) or ""
        seen = plain if plain.startswith(start) else start + plain
        warnings.warn(
            f"`{pathlib.PurePath(instruct).name}` was tuned on conversations, and the prompts are plain text: the model "
            f"will see {seen!r:.300}, without the turns of a chat. "
            'Pass `chat_template="auto"` to make each prompt a turn of the user.',
            stacklevel=2,
        )
