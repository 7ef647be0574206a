"""One of several processes; prints its logs and how many prompts it has scored.

    process_run.py ADDRESS COUNT INDEX [FOLDER [DIES_AT]]

With COUNT 0 it is all alone. With a folder it saves its state there after every second step, or goes on from what is there.
DIES_AT is the step in which this process is killed.
"""

import functools
import json
import os
import pathlib
import signal
import sys

import jax
import keras
import tiny

from keras_bond import JBOND
from keras_bond.rollout import lengths

address, count, index, *more = sys.argv[1:]
folder, dies_at = pathlib.Path(more[0]) if more else None, int(more[1]) if more[1:] else None
if int(count):
    # how soon the others notice that one is gone, 100 seconds by default; Keras has no argument for it
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10)
    keras.distribution.initialize(address, num_processes=int(count), process_id=int(index))
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))

lengths.FIRST_SEGMENT = 2  # two programs sample 5 tokens
rows, seen = [], []


def reward(prompts, completions):
    seen.append(len(prompts))
    if len(seen) == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return tiny.letters_reward(prompts, completions)


trainer = JBOND(
    tiny.causal_lm(seed=11), reward, seed=3, variance_reduction=False, max_prompt_length=4, max_completion_length=5
)
trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
logged = ("loss", "reward", "win_rate", "kl_reference", "grad_norm", "completion_length")
callbacks = [
    keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: rows.append([float(logs[k]) for k in logged]))
]
if folder and folder.exists():
    trainer.load_weights(folder)
if folder:
    callbacks.append(keras.callbacks.OrbaxCheckpoint(folder, save_freq=2, save_on_background=False))
steps = 4 - int(trainer.optimizer.iterations)
trainer.fit(["ab", "c", "ba"], batch_size=8, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
rows.append(list(trainer.evaluate(["ab", "c", "ba", "a"], batch_size=4, verbose=0).values()))
print(json.dumps({"rows": rows, "seen": seen}))
