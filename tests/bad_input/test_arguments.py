"""Arguments that no one can mean: each call of the public names, and what its error says.

A case is a call and a text that its message holds, or the value that the call gives. In a
message stand the argument's name, what was expected and what came.
"""

import re

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.data import Tokens, batches, read, tokenize, write_teacher
from keras_encdec.generation import BeamSearch
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, Mixture, PrefixLM, SpanCorruption, Stages
from keras_encdec.training import (
    Checkpoint,
    CrossAttentionWarmup,
    Distillation,
    FusedCrossEntropy,
    estimate,
)

NAN, INF = float("nan"), float("inf")


def at(sizes, **changes):
    return {**sizes, **changes}


SIZES = {"batch_size": 2, "source_length": 8, "target_length": 8}


def pair():
    return keras_encdec.presets["gemma2_tiny_tiny"].spec


# (call, what the message holds)
CONVERSION = [
    (lambda w: keras_encdec.adapt(w.source, tied_embeddings="no"), "tied_embeddings True or False"),
    (lambda w: keras_encdec.adapt(w.source, tied_embeddings=1), "tied_embeddings True or False"),
    (lambda w: keras_encdec.adapt(w.source, expand_gqa="yes"), "expand_gqa True or False"),
    (lambda w: keras_encdec.adapt(w.source, merged_attention=None), "merged_attention True"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=True), "decoder_layers as numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=0), "decoder_layers as numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=2.5), "decoder_layers as numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers="half"), "decoder_layers as numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=[1, 0]), "rising numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=[0.5]), "decoder_layers as numbers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=range(10**11)), "decoder_layers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=10**11), "decoder_layers"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=99), "decoder_layers from 1 to"),
    (lambda w: keras_encdec.adapt(w.source, decoder_layers=[]), "decoder_layers"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_layers=[99]), "layers that there are"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_layers=[-1]), "numbers of layers"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_layers=3), "numbers of layers"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_layers=[]), "layers that there are"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_gate="yes"), "cross_attention_gate"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_gate=1), "cross_attention_gate"),
    (lambda w: keras_encdec.adapt(w.source, cross_attention_init="self"), "'self_attention'"),
    (lambda w: keras_encdec.adapt(w.source, encoder_attention="bidirektional"), "Did you mean"),
    (lambda w: keras_encdec.adapt(w.source, encoder_attenton="causal"), "'encoder_attention'?"),
    (lambda w: keras_encdec.adapt(w.source, preprocessor="none"), "preprocessor as an EncDec"),
    (lambda w: keras_encdec.adapt(w.source, preprocessor=False), "preprocessor as an EncDec"),
    (lambda w: keras_encdec.adapt(w.source, preprocessor=w.tokenizer), "preprocessor as an"),
    (lambda w: keras_encdec.adapt(w.source, dtype="bfloat61"), "'bfloat61'"),
    (lambda w: keras_encdec.adapt(w.source, dtype="int8"), "'int8'"),
    (lambda w: keras_encdec.adapt(w.source, dtype=16), "16"),
    (lambda w: keras_encdec.adapt(w.source, chat="no"), "chat True or False"),
    (lambda w: keras_encdec.adapt(w.source, chat="no", preprocessor=None), "chat True or False"),
    # Of models that are not on this machine: nothing of them is asked for.
    (lambda w: keras_encdec.adapt("gemma2_27b_en", chat="no"), "chat True or False"),
    (lambda w: keras_encdec.adapt("gemma2_27b_en", chat=None), "chat True or False"),
    (lambda w: keras_encdec.from_preset("gemma2_27b_27b", chat="no"), "chat True or False"),
    (lambda w: keras_encdec.from_preset("gemma2_27b_en", chat=1), "chat True or False"),
    (lambda w: keras_encdec.adapt(3), "3"),
    (lambda w: keras_encdec.adapt(None), "None"),
    (lambda w: keras_encdec.adapt("gemma2_mini_doc"), "Did you mean 'gemma2_mini_docs'"),
    (lambda w: keras_encdec.adapt(w.source, "nowhere/at/all"), "'nowhere/at/all'"),
    (lambda w: keras_encdec.adapt(w.lm), "EncDec"),
    (lambda w: keras_encdec.adapt(keras.Sequential()), "Sequential"),
    (lambda w: keras_encdec.from_preset("gemma2_tiny_tiney"), "Did you mean 'gemma2_tiny_tiny'"),
    (lambda w: keras_encdec.from_preset(""), "''"),
    (lambda w: keras_encdec.from_preset("."), "config.json"),
    (lambda w: keras_encdec.from_preset("gemma2_tiny_tiny", preprocessor="no"), "preprocessor"),
    (lambda w: keras_encdec.from_preset("gemma2_tiny_tiny", chat="no"), "chat True or False"),
    (lambda w: keras_encdec.from_preset("gemma2_tiny_tiny", dtpye="float32"), "'dtype'?"),
    (lambda w: keras_encdec.presets["gemma2_9b_2bb"], "Did you mean 'gemma2_9b_2b'?"),
    (lambda w: keras_encdec.presets[3], "3"),
]
TASKS = [
    (lambda w: EncDecSeq2SeqLM(w.lm.backbone, "none"), "preprocessor as an EncDec"),
    (lambda w: EncDecSeq2SeqLM(w.lm.backbone, w.tokenizer), "preprocessor as an EncDec"),
    (lambda w: keras_encdec.from_preset("gemma2_tiny_mini").backbone.enable_lora(0), "rank"),
    (lambda w: w.lm.backbone.enable_lora(-1), "rank of at least 1"),
    (lambda w: w.lm.backbone.enable_lora(1.5), "rank of at least 1"),
    (lambda w: w.lm.backbone.enable_lora(None), "rank of at least 1"),
    (lambda w: w.lm.backbone.enable_lora(True), "rank of at least 1"),
    (lambda w: w.lm.backbone.enable_lora(4, ["querry"]), "Did you mean 'query'?"),
    (lambda w: w.lm.backbone.enable_lora(4, "feedforward"), "target_layer_names"),
    (lambda w: w.lm.backbone.enable_lora(4, []), "target_layer_names"),
    (lambda w: w.lm.backbone.enable_lora(4, train_cross_attention="no"), "train_cross_attention"),
    (lambda w: w.lm.backbone.save_lora_weights("a.lora.h5"), "Call enable_lora first"),
    (lambda w: w.lm.backbone.load_lora_weights("none.lora.h5"), "none.lora.h5"),
    (lambda w: setattr(w.lm.backbone, "remat", "no"), "remat True or False"),
    (lambda w: setattr(w.lm.backbone, "scan", "auto"), "scan True or False"),
    (lambda w: setattr(w.lm.backbone, "attention", "flash"), "attention"),
    (lambda w: w.lm.compile(distillation=Distillation(w.lm)), "the student itself"),
    (lambda w: w.lm.compile(logs=["tokens_per_secnd"]), "Did you mean 'tokens_per_second'?"),
    (lambda w: w.lm.compile(gradient_accumulation_steps=0), "gradient_accumulation_steps"),
    (lambda w: w.lm.compile(gradient_accumulation_steps=1.5), "gradient_accumulation_steps"),
    (lambda w: w.lm.compile(gradient_accumulation_steps="2"), "gradient_accumulation_steps"),
    (lambda w: w.lm.compile(attention="flash"), "attention"),
    (lambda w: w.lm.compile(remat=1), "remat True or False"),
    (lambda w: w.lm.compile(scan="yes"), "scan True or False"),
    (lambda w: w.lm.compile(sampler="greddy"), "'greedy'"),
    (lambda w: w.lm.compile(sampler=3), "3"),
    (lambda w: w.lm.compile(optimizer="adamm"), "adamm"),
    (lambda w: w.lm.compile(weighted_metrics=["accuracy"]), "metrics on logits"),
    (lambda w: w.lm.export_to_transformers("out", max_shard_size=0), "max_shard_size"),
    (lambda w: w.lm.export_to_transformers("out", max_shard_size=NAN), "max_shard_size"),
    (lambda w: w.lm.quantize("int3"), "int3"),
]
PREPROCESSORS = [
    (lambda w, k=k, v=v: EncDecSeq2SeqLMPreprocessor(w.tokenizer, **{k: v}), k)
    for k, values in {
        "encoder_sequence_length": (0, 1, -3, 1.5, "512", NAN, True, None),
        "decoder_sequence_length": (1, 2.0, [16]),
        "chat": ("no", 1, None),
        "packing": ("yes", 0),
        "cross_documents": ("no",),
        "allow_special": ("yes", 1),
        "seed": (-1, 0.5, "a", None, True),
    }.items()
    for v in values
] + [
    (lambda w: EncDecSeq2SeqLMPreprocessor(w.tokenizer, objective="ul3"), "Did you mean 'ul2'"),
    (lambda w: EncDecSeq2SeqLMPreprocessor(w.tokenizer, objective="prefixlm"), "'prefix_lm'"),
    (lambda w: EncDecSeq2SeqLMPreprocessor(w.tokenizer, objective=3), "3"),
    (lambda w: EncDecSeq2SeqLMPreprocessor(w.tokenizer, objective={"class": "UL3"}), "UL3"),
]
OBJECTIVES = [
    (lambda w: PrefixLM("thirds"), "split 'half' or 'random'"),
    (lambda w: PrefixLM("random", rate=0), "rate"),
    (lambda w: PrefixLM("random", rate=1), "rate"),
    (lambda w: PrefixLM("random", rate=NAN), "rate"),
    (lambda w: PrefixLM("random", rate="0.5"), "rate"),
    (lambda w: SpanCorruption(mean_span=0.5), "mean_span"),
    (lambda w: SpanCorruption(mean_span=INF), "mean_span"),
    (lambda w: SpanCorruption(mean_span=NAN), "mean_span"),
    (lambda w: SpanCorruption(mean_span=True), "mean_span"),
    (lambda w: SpanCorruption(rate=1.0), "rate"),
    (lambda w: SpanCorruption(rate=-0.1), "rate"),
    (lambda w: SpanCorruption(rate=None), "rate"),
    (lambda w: SpanCorruption(sentinels=[]), "sentinels"),
    (lambda w: SpanCorruption(sentinels=[5, 5]), "sentinels"),
    (lambda w: SpanCorruption(sentinels=[1.5]), "sentinels"),
    (lambda w: SpanCorruption(sentinels=[-1]), "sentinels"),
    (lambda w: SpanCorruption(overflow="recycle"), "overflow"),
    (lambda w: UL2("ul2rr"), "Did you mean 'ul2r'?"),
    (lambda w: UL2([PrefixLM(), "prefix_lm"]), "objectives"),
    (lambda w: UL2([]), "objectives"),
    (lambda w: UL2(rates=[1]), "rate"),
    (lambda w: UL2(mode_tokens="yes"), "mode_tokens"),
    (lambda w: UL2(overflow="recycle"), "overflow"),
    (lambda w: UL2(sentinels=[3, 3]), "sentinels"),
    (lambda w: Mixture([]), "objectives"),
    (lambda w: Mixture([PrefixLM()], [NAN]), "rate"),
    (lambda w: Mixture([PrefixLM()], [-1]), "rate"),
    (lambda w: Mixture([PrefixLM()], [0]), "rate"),
    (lambda w: Mixture([PrefixLM()], ["a"]), "rate"),
    (lambda w: Mixture([PrefixLM()], [True]), "rate"),
    (lambda w: Mixture(PrefixLM()), "objectives"),
    (lambda w: Mixture(["ul2"]), "objectives"),
    (lambda w: Stages([PrefixLM()], [INF]), "rate"),
    (lambda w: Stages([PrefixLM(), UL2()], [1]), "rate"),
    (lambda w: PrefixLM()(np.array([0.5, 1.5])), "integer"),
    (lambda w: PrefixLM()(np.array([[1, 2]])), "1-D"),
]
TRAINING = [
    (lambda w: FusedCrossEntropy(z_loss=INF), "z_loss"),
    (lambda w: FusedCrossEntropy(z_loss=-1e-4), "z_loss"),
    (lambda w: FusedCrossEntropy(z_loss="1e-4"), "z_loss"),
    (lambda w: FusedCrossEntropy(label_smoothing=1), "label_smoothing"),
    (lambda w: FusedCrossEntropy(label_smoothing=NAN), "label_smoothing"),
    (lambda w: FusedCrossEntropy(chunk_tokens=0), "chunk_tokens"),
    (lambda w: FusedCrossEntropy(chunk_tokens=0.5), "chunk_tokens"),
    (lambda w: Distillation(weight=NAN), "weight"),
    (lambda w: Distillation(weight=1.1), "weight"),
    (lambda w: Distillation(temperature=0), "temperature"),
    (lambda w: Distillation(temperature=INF), "temperature"),
    (lambda w: Distillation(divergence="forwards"), "Did you mean 'forward'?"),
    (lambda w: Distillation(beta=1), "beta"),
    (lambda w: Distillation(w.teacher, on_policy=NAN), "on_policy"),
    (lambda w: Distillation(w.teacher, on_policy="half"), "on_policy"),
    (lambda w: Distillation(w.teacher, on_policy=0.5, weight=0.5), "weight=1 with on_policy"),
    (lambda w: Distillation(on_policy=1), "a teacher that is asked"),
    (lambda w: CrossAttentionWarmup(0), "steps"),
    (lambda w: CrossAttentionWarmup(True), "steps"),
    (lambda w: CrossAttentionWarmup(1e3), "steps"),
    (lambda w: Checkpoint("run", every=0), "every"),
    (lambda w: Checkpoint("run", every=NAN), "every"),
    (lambda w: Checkpoint("run", every="500"), "every"),
    (lambda w: Checkpoint("run", keep=1), "keep"),
    (lambda w: Checkpoint("run", keep=2.0), "keep"),
    (lambda w: Checkpoint("run", mode="maximum"), "Did you mean 'max'?"),
    (lambda w: Checkpoint("run[v1]"), "run[v1]"),
    (lambda w: Checkpoint("nocloud://bucket/run"), "nocloud"),
    (lambda w: Checkpoint(3), "3"),
    (lambda w: Checkpoint("run", best=3), "best"),
    *(
        (lambda w, k=k, v=v: estimate(pair(), **at(SIZES, **{k: v})), k)
        for k, values in {
            "batch_size": (-1, 0, 1.5, "8", None),
            "source_length": (0, NAN),
            "target_length": (-5, True),
            "lora_rank": (0, 1.5),
            "chunk_tokens": (0, "all"),
            "quantization": ("int3", 8),
            "attention": ("auto", "flash"),
            "remat": ("yes",),
            "dtype": ("bfloat61",),
            "optimizer": ("adamm",),
            "mesh": ((0, 1), (2,), "8"),
        }.items()
        for v in values
    ),
    (lambda w: estimate("gemma2_9b_2b", **SIZES), "gemma2_9b_2b"),
]
MODES = {"R": [5], "X": [5000], "S": [6, 7]}


def fit_by(w, objective):
    w.lm.preprocessor.objective = objective
    try:
        w.lm.fit(w.texts, verbose=0)
    finally:
        w.lm.preprocessor.objective = None


FITS = [
    (lambda w, k=k, v=v: w.lm.fit(w.pairs, verbose=0, **{k: v}), k)
    for k, values in {
        "batch_size": (0, -1, 1.5, "8", True),
        "epochs": (-1, 1.5, "3", True),
        "initial_epoch": (-1, 0.5),
        "steps_per_epoch": (0, -1, 2.5),
        "validation_split": (1, -0.1, NAN, "0.1"),
        "validation_batch_size": (-1, 1.5),
        "shuffle": ("no",),
        "callbacks": ("early", [3]),
        "class_weight": ([1, 2], {-1: 1.0}, {5: NAN}),
        "sample_weight": ([1.0], [NAN, 1, 1], [[]], "abc", [-1, 1, 1]),
    }.items()
    for v in values
] + [
    (lambda w: fit_by(w, UL2(sentinels=[9, 4096])), "below 4096, the rows"),
    (lambda w: fit_by(w, Stages([PrefixLM(), Mixture([UL2(mode_tokens=MODES)])], [1, 1])), "5000"),
]
DATA = [
    (lambda w: tokenize(w.texts, w.tokenizer, "t", shard_size=0), "shard_size"),
    (lambda w: tokenize(w.texts, w.tokenizer, "t", shard_size=1.5), "shard_size"),
    (lambda w: tokenize(w.texts, w.tokenizer, "t", allow_special="no"), "allow_special"),
    (lambda w: tokenize(w.texts, None, "t"), "tokenizer"),
    (lambda w: tokenize(w.pairs, w.tokenizer, "t"), "plain texts"),
    (lambda w: tokenize([1, 2], w.tokenizer, "t"), "1"),
    (lambda w: tokenize({"title": ["a"]}, w.tokenizer, "t"), "title"),
    (lambda w: Tokens.load("nowhere"), "nowhere"),
    (lambda w: Tokens.from_documents([[0.5]]), "document 0"),
    (lambda w: Tokens.from_documents([[-1]]), "-1 in document 0|in document 0. Received: -1"),
    (lambda w: Tokens.from_documents([[4096]], 4096), "document 0"),
    (lambda w: Tokens.from_documents([[1], [[2]]]), "document 1"),
    (lambda w: read("nowhere.txt"), "nowhere.txt"),
    (lambda w: read([]), "file"),
    (lambda w: read(__file__, lines="no"), "lines True or False"),
    (lambda w: batches(w.tokens, w.pre, 0), "batch_size"),
    (lambda w: batches(w.tokens, w.pre, 2, epochs=0), "epochs"),
    (lambda w: batches(w.tokens, w.pre, 2, steps=1.5), "steps"),
    (lambda w: batches(w.tokens, w.pre, 2, host=(2, 2)), "host"),
    (lambda w: batches(w.texts, w.pre, 2), "Tokens"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, k=0), "k of at least 1"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, k=1.5), "k of at least 1"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, method="bottom"), "method"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, epochs=0), "epochs"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, batch_size=-1), "batch_size"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, dtype="int8"), "dtype"),
    (lambda w: write_teacher("t", w.teacher, w.tokens, w.pre, start_token="no"), "start_token"),
]
GENERATION = [
    (lambda w, k=k, v=v: w.lm.generate(w.texts, **{k: v}), k)
    for k, values in {
        "max_length": (0, -1, 1.5, "64", NAN, True, 2**31, 10**12),
        "num_samples": (0, -2, 1.5, "2", True),
        "temperature": (0, -1, NAN, INF, "hot", True, [1.0]),
        "seed": (-1, 0.5, "a", True, 2**31),
        "batch_size": (0, -1, 1.5, None, "4"),
        "stop_strings": ("a", [""], [3], 5),
        "stop_token_ids": ([-1], [0.5], "eos", [[1, 2]]),
        "strip_prompt": ("no", 1),
        "return_scores": ("yes", True),
    }.items()
    for v in values
] + [
    (lambda w: w.lm.generate(w.texts, max_lenght=8), "max_lenght"),
    (lambda w: w.lm.generate([]), "at least one"),
    (lambda w: w.lm.generate(""), "empty"),
    (lambda w: w.lm.generate(None), "None"),
    (lambda w: w.lm.generate(3), "3"),
    (lambda w: w.lm.generate([3]), "3"),
    (lambda w: w.lm.generate({"text": 3}), "3"),
    (lambda w: w.lm.generate(w.texts, path="."), "a new file"),
    (lambda w: w.lm.generate(w.texts, 2 * 10**9), "keys and values"),
    (lambda w: w.lm.score(w.texts), "decoder_text"),
    (lambda w: w.lm.score(w.pairs, batch_size=0), "batch_size"),
    (lambda w: w.lm.score({"encoder_text": ["a"], "decoder_text": []}), "decoder_text"),
    (lambda w: w.lm.chat([]), "roles"),
    (lambda w: w.lm.chat([{"role": "user"}]), "content"),
    (lambda w: w.lm.chat([{"role": "robot", "content": "a"}]), "robot"),
    (lambda w: w.lm.chat("a", 0), "max_length"),
    (lambda w: BeamSearch(0), "num_beams"),
    (lambda w: BeamSearch(1.5), "num_beams"),
    (lambda w: BeamSearch(True), "num_beams"),
    (lambda w: BeamSearch(length_penalty=NAN), "length_penalty"),
    (lambda w: BeamSearch(length_penalty="1"), "length_penalty"),
]


def changed(w, name, value):
    """The model inputs with one of them another."""
    return {**w.x, name: value}


IDS = [
    (lambda w: w.lm.generate(changed(w, "encoder_token_ids", w.x["encoder_token_ids"] - 99)), "-"),
    (
        lambda w: w.lm.generate(changed(w, "encoder_token_ids", w.x["encoder_token_ids"] + 4096)),
        "4",
    ),
    (lambda w: w.lm.generate(changed(w, "decoder_token_ids", w.x["decoder_token_ids"] + 0.5)), "."),
    (lambda w: w.lm.generate(changed(w, "encoder_token_ids", [[1, 2], [3]])), "rows of one length"),
    (lambda w: w.lm.generate(changed(w, "encoder_token_ids", "abc")), "encoder_token_ids"),
    (lambda w: w.lm.generate({"encoder_token_ids": [[1]]}), "encoder_padding_mask"),
    (lambda w: w.lm.score(changed(w, "encoder_token_ids", w.x["encoder_token_ids"] + 4096)), "4"),
    (lambda w: w.lm.predict(changed(w, "encoder_token_ids", w.x["encoder_token_ids"] - 99)), "-"),
    (lambda w: w.lm.predict(changed(w, "decoder_token_ids", w.x["decoder_token_ids"] + 4096)), "4"),
    (lambda w: w.lm.predict(changed(w, "encoder_token_ids", w.x["encoder_token_ids"] + 0.5)), "."),
    (
        lambda w: w.lm.fit(
            changed(w, "encoder_token_ids", w.x["encoder_token_ids"] + 4096),
            w.x["decoder_token_ids"],
            verbose=0,
        ),
        "4",
    ),
    (
        lambda w: w.lm.evaluate(
            changed(w, "decoder_token_ids", w.x["decoder_token_ids"] - 99),
            w.x["decoder_token_ids"],
            verbose=0,
        ),
        "-",
    ),
    (lambda w: w.lm.fit(w.x, w.x["decoder_token_ids"][:1], verbose=0), "rows"),
    (lambda w: w.lm.fit(w.x, w.x["decoder_token_ids"][:, :3], verbose=0), "label"),
]
TABLES = {
    "conversion": CONVERSION,
    "tasks": TASKS,
    "preprocessors": PREPROCESSORS,
    "objectives": OBJECTIVES,
    "training": TRAINING,
    "fit": FITS,
    "data": DATA,
    "generation": GENERATION,
    "ids": IDS,
}
CASES = [
    pytest.param(call, said, id=f"{table}-{number}")
    for table, cases in TABLES.items()
    for number, (call, said) in enumerate(cases)
]
ERRORS = (ValueError, TypeError, KeyError, OSError, MemoryError)


@pytest.mark.parametrize(("call", "said"), CASES)
def test_bad_arguments(world, folder, call, said):
    before = [np.array(v) for v in world.lm.weights]
    trainable = len(world.lm.trainable_weights)
    with pytest.raises(ERRORS, match="|".join(map(re.escape, said.split("|")))) as error:
        call(world)
    message = str(error.value)
    assert "Expected" in message or message.startswith("Could not interpret"), message  # Keras'
    assert len(message) < 1200
    assert len(world.lm.trainable_weights) == trainable
    for old, new in zip(before, world.lm.weights, strict=True):
        assert np.array_equal(old, np.array(new))


def test_there_are_many():
    assert len(CASES) > 250
    assert keras_hub.__version__
