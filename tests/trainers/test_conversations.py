"""Case 20: prompts that are conversations, from the trainer's argument to what the reward sees."""

import keras
import tiny

from keras_bond import JBOND
from keras_bond.data import chat

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ end }}{% endfor %}"


def test_fit_on_conversations():
    seen = []

    def reward(prompts, completions, answer):
        seen.append((prompts, completions, answer))
        return [float(len(text)) for text in completions]

    conversations = [[{"role": "system", "content": "b"}, {"role": "user", "content": text}] for text in ("a", "ab")]
    template = chat.template(TEMPLATE, end="c")
    trainer = JBOND(tiny.causal_lm(), reward, max_prompt_length=8, max_completion_length=4, chat_template=template)
    trainer.compile(keras.optimizers.SGD(1e-3))
    trainer.fit({"prompt": conversations, "answer": [1, 2]}, batch_size=2, epochs=1, shuffle=False, verbose=0)
    ((prompts, completions, answers),) = seen
    assert prompts == [conversations[0], conversations[1], *[conversations[0]] * 2, *[conversations[1]] * 2]
    assert answers == [1, 2, 1, 1, 2, 2]
    assert all(set(text) <= {*"abc", " ", "\u2047"} for text in completions)
    config = trainer.get_config()
    assert keras.saving.deserialize_keras_object(config["chat_template"]).render(conversations[0]) == "<bos>bcac"
    assert trainer.rollout.encode([conversations[1]]) == [[2, 5, 6, 4, 5, 6]]
