"""Train the tokenizer and the small Gemma on the sentences of `corpus.py`."""

import io
import math
import random

import keras
import keras_hub
import numpy as np
import sentencepiece

VOCABULARY_SIZE = 4096
MODEL = {
    "num_layers": 4,
    "num_query_heads": 6,
    "num_key_value_heads": 1,
    "hidden_dim": 192,
    "intermediate_dim": 1024,  # KerasHub halves it: 512 gated units
    "head_dim": 32,
}
BUCKETS = (16, 24, 32, 48)
TOKENS_PER_BATCH = 2048


def train_tokenizer(texts, seed):
    """A SentencePiece BPE model with Gemma's special ids, as bytes; it neither normalises nor adds a first space."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=1,
    )
    return model.getvalue()


def build_causal_lm(proto, dropout=0.0, dtype="float32"):
    """The bundled model, untrained."""
    tokenizer = keras_hub.models.GemmaTokenizer(proto=proto)
    backbone = keras_hub.models.GemmaBackbone(vocabulary_size=VOCABULARY_SIZE, dropout=dropout, dtype=dtype, **MODEL)
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=64)
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor)


class Batches(keras.utils.PyDataset):
    """Sentences as `<bos> ... <eos>`, batched by length so that every batch holds about the same number of tokens."""

    def __init__(self, rows, seed, num_batches=None):
        super().__init__()
        rng, batches = random.Random(seed), list[tuple]()
        while num_batches is None or len(batches) < num_batches:
            batches.extend(self._epoch(rows, rng))
            if num_batches is None:
                break
        self.batches = batches[:num_batches]

    @staticmethod
    def _epoch(rows, rng):
        batches, shuffled = [], rng.sample(rows, len(rows))
        for low, high in zip((0, *BUCKETS), BUCKETS, strict=False):
            bucket = [r for r in shuffled if low < min(len(r) - 1, BUCKETS[-1]) <= high]
            size = TOKENS_PER_BATCH // high
            batches += [(high, bucket[i : i + size]) for i in range(0, len(bucket) - size + 1, size)]
        return rng.sample(batches, len(batches))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        length, rows = self.batches[index]
        ids = np.zeros((len(rows), length + 1), "int32")
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row[: length + 1]  # a sentence too long for the largest bucket loses its end
        weight = (np.arange(1, length + 1) < np.array([len(r) for r in rows])[:, None]).astype("float32")
        return {"token_ids": ids[:, :-1], "padding_mask": weight.astype("int32")}, ids[:, 1:], weight


class PerplexityLog(keras.callbacks.Callback):
    """Prints the loss per token on validation sentences every `every` steps and keeps it in `history`."""

    def __init__(self, validation, every, log):
        super().__init__()
        self.validation, self.every, self.log, self.history, self.step = validation, every, log, [], 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.every == 0:
            self.record(logs["loss"])

    def record(self, train_loss):
        loss = nats_per_token(self.model, self.validation)
        self.history.append(loss)
        self.log(
            f"step {self.step}: mean training loss of the stage {train_loss:.3f}, "
            f"validation loss {loss:.4f} per token, perplexity {math.exp(loss):.2f}"
        )


def nats_per_token(model, batches):
    """Mean negative log-likelihood of the target tokens, in nats."""
    total = count = 0.0
    for x, y, weight in (batches[i] for i in range(len(batches))):
        logits = model.predict_on_batch(x)
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        total += float(keras.ops.sum(losses * weight))
        count += weight.sum()
    return total / count


def train(model, stages, validation, log, learning_rate=3e-3, every=500):
    """Fit `model` (token ids to logits) on the `Batches` of `stages` in turn, under one warm-up and cosine schedule."""
    steps = sum(len(s) for s in stages)
    warmup = min(200, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, alpha=0.02, warmup_target=learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.98, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["scale", "embeddings"])
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    perplexity = PerplexityLog(validation, every, log)
    for stage in stages:
        model.fit(stage, shuffle=False, verbose=0, callbacks=[perplexity])
    return perplexity.history
