"""Makes the embedded models: a tokenizer and two Gemma 2 models of docstrings.

    python scripts/pretrain_docs.py tokenizer
    python scripts/pretrain_docs.py tiny --steps 2400
    python scripts/pretrain_docs.py mini --steps 6000

Each call writes a KerasHub preset below presets/models/ and prints one line for
LOG.md. The text is what `keras_encdec.data.docstrings` finds on this machine.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import numpy as np
import sentencepiece

from keras_encdec.data import docstrings

PRESETS = Path(__file__).parents[1] / "presets" / "models"
TOKENIZER = PRESETS / "docs_tokenizer.spm"
VOCABULARY = 4096
WINDOW = 256  # tokens of one training example; documents are joined, then cut
BATCH = 16

# Gemma 2 in small: every switch of the family is on, and K < N.
COMMON = {
    "vocabulary_size": VOCABULARY,
    "head_dim": 64,
    "query_head_dim_normalize": True,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "attention_logit_soft_cap": 50.0,
    "final_logit_soft_cap": 30.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 128,
}
SIZES = {
    "tiny": {
        "num_layers": 6,
        "hidden_dim": 256,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_dim": 2 * 768,
    },
    "mini": {
        "num_layers": 4,
        "hidden_dim": 128,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_dim": 2 * 384,
    },
}
PEAK_RATE = {"tiny": 2e-3, "mini": 4e-3}


def special_pieces() -> list[str]:
    """Pieces 4.. in Gemma's order, so that ids match (deepmind/gemma, _tokenizer.py)."""
    unused = [f"<unused{i}>" for i in range(99)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    newlines = ["\n", "\n\n"]
    indents = ["▁" * n for n in (2, 4, 8)]
    return ["<mask>", "<2mass>", "[@BOS@]", *unused, *turns, *newlines, *indents]


def train_tokenizer(texts: list[str]) -> bytes:
    model = io.BytesIO()
    rng = np.random.default_rng(0)
    sample = [texts[i] for i in rng.permutation(len(texts))[:12000]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in sample for line in text.split("\n") if line),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=special_pieces(),
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        character_coverage=0.9995,
        minloglevel=2,
    )
    return model.getvalue()


def windows(texts: list[str], seed: int | None = None) -> np.ndarray:
    """All documents as `<bos> tokens <eos>`, joined and cut: (examples, WINDOW + 1)."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    if seed is not None:
        texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    ids = processor.encode(texts, num_threads=2)
    stream = np.fromiter((t for doc in ids for t in (2, *doc, 1)), np.int32)
    count = len(stream) // (WINDOW + 1)
    return stream[: count * (WINDOW + 1)].reshape(count, WINDOW + 1)


def as_dataset(tokens: np.ndarray):
    x = {"token_ids": tokens[:, :-1], "padding_mask": np.ones_like(tokens[:, :-1])}
    return x, tokens[:, 1:]


class Journal(keras.callbacks.Callback):
    """Evaluates and saves every `every` steps; keeps one line per evaluation."""

    def __init__(self, name, lm, held_out, every):
        super().__init__()
        self.name, self.lm, self.held_out, self.every = name, lm, held_out, every
        self.lines, self.start = [], time.time()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.every == 0:
            self.record(batch + 1, logs)

    def record(self, step, logs):
        loss = self.model.evaluate(*self.held_out, batch_size=BATCH, verbose=0)
        loss = loss[0] if isinstance(loss, list) else loss
        line = {
            "model": self.name,
            "step": step,
            "tokens": step * BATCH * WINDOW,
            "train_loss": round(float(logs["loss"]), 4),
            "held_out_loss": round(loss, 4),
            "minutes": round((time.time() - self.start) / 60, 1),
            "cpu_minutes": round(sum(os.times()[:2]) / 60, 1),
        }
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        save(self.name, self.lm)


def save(name: str, lm) -> None:
    """Writes the preset in bfloat16, the dtype that ships."""
    backbone = keras_hub.models.GemmaBackbone(**SIZES[name], **COMMON, dtype="bfloat16")
    for target, source in zip(backbone.weights, lm.backbone.weights, strict=True):
        target.assign(source)
    tokenizer = keras_hub.tokenizers.GemmaTokenizer(proto=str(TOKENIZER))
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=WINDOW)
    keras_hub.models.GemmaCausalLM(backbone, preprocessor).save_to_preset(
        str(PRESETS / f"gemma2_{name}_docs")
    )


def train(name: str, steps: int, training: list[str], held_out: list[str]) -> None:
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GemmaBackbone(**SIZES[name], **COMMON)
    lm = keras_hub.models.GemmaCausalLM(backbone)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=PEAK_RATE[name], warmup_steps=200
    )
    model = keras.Model(lm.input, lm.output)  # plain fit: the tokens are ready
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=0.05, beta_2=0.98, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    tokens = windows(training, seed=0)
    print(f"{name}: {backbone.count_params():,} parameters, {tokens.size:,} tokens", flush=True)
    rng = np.random.default_rng(1)
    epochs = 1 + steps * BATCH // len(tokens)
    rows = np.concatenate([rng.permutation(len(tokens)) for _ in range(epochs)])
    x, y = as_dataset(tokens[rows[: steps * BATCH]])
    journal = Journal(name, lm, as_dataset(windows(held_out)[:256]), every=100)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[journal])
    path = PRESETS / f"gemma2_{name}_docs" / "training.json"
    path.write_text(json.dumps(journal.lines, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["tokenizer", *SIZES])
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    training, held_out = ([doc.text for doc in docs] for docs in docstrings.load())
    if args.what == "tokenizer":
        PRESETS.mkdir(parents=True, exist_ok=True)
        TOKENIZER.write_bytes(train_tokenizer(training))
    else:
        train(args.what, args.steps, training, held_out)


if __name__ == "__main__":
    main()
