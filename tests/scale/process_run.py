"""One of two processes, each with two virtual devices: `process_run.py ADDRESS INDEX`. Prints the logs and its prompts."""

import json
import sys

import keras
import tiny

from keras_bond import JBOND

address, index = sys.argv[1], int(sys.argv[2])
if index >= 0:  # or all alone
    keras.distribution.initialize(address, num_processes=2, process_id=index)
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))

seen = []


def reward(prompts, completions):
    seen.append(len(prompts))
    return tiny.letters_reward(prompts, completions)


rows = []
trainer = JBOND(
    tiny.causal_lm(seed=11), reward, seed=3, variance_reduction=False, max_prompt_length=4, max_completion_length=5
)
trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
logged = ("loss", "reward", "win_rate", "kl_reference", "grad_norm", "completion_length")
keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: rows.append([float(logs[k]) for k in logged]))
trainer.fit(["ab", "c", "ba"], batch_size=8, steps_per_epoch=4, verbose=0, callbacks=[keep])
rows.append(list(trainer.evaluate(["ab", "c", "ba", "a"], batch_size=4, verbose=0).values()))
print(json.dumps({"rows": rows, "seen": seen}))
