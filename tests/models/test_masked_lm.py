"""Hidden tokens: logits and losses beside NumPy, training, files, and what is refused."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import (
    EncDecMaskedLM,
    EncDecMaskedLMPreprocessor,
    EncDecSeq2SeqLMPreprocessor,
    EncDecTextEmbedder,
    EncoderBackbone,
)
from keras_encdec.objectives import MNTP, PrefixLM
from keras_encdec.testing.models import assert_close, draw, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_encoder, tiny_pair
from keras_encdec.training import FusedCrossEntropy

TEXTS = [
    "Return the sum of two numbers.",
    "Raise an error.",
    "Open a file and read all of it. " * 3,
]


@pytest.fixture(scope="module")
def lm():
    return EncDecMaskedLM.from_preset("gemma2_mini_docs", sequence_length=32)


def tiny(pair=None):
    model = EncDecMaskedLM(EncoderBackbone.from_preset(tiny_backbone(pair)))
    return model, model.backbone.spec.encoder


def rows(vocabulary_size, seed=0):
    generator = np.random.default_rng(seed)
    ids = generator.integers(3, vocabulary_size, (3, 12)).astype("int32")
    mask = (np.arange(12)[None] < [[12], [7], [9]]).astype("int32")
    places = np.array([[1, 5, 11], [2, 6, 0], [8, 0, 0]], "int32")
    return {"token_ids": ids, "padding_mask": mask, "mask_positions": places}


@pytest.mark.slow
def test_logits_are_of_the_states_in_front():
    model, spec = tiny()
    x = rows(spec.vocabulary_size)
    states = to_numpy(model.backbone({n: x[n] for n in ("token_ids", "padding_mask")}))
    matrix = to_numpy(model.backbone.encoder.embedding.embeddings).astype("float64")
    before = np.maximum(x["mask_positions"] - 1, 0)
    logits = np.take_along_axis(states.astype("float64"), before[..., None], 1) @ matrix.T
    cap = spec.final_logit_soft_cap
    assert cap is not None
    assert_close(to_numpy(model(x)), cap * np.tanh(logits / cap), 1e-4)


@pytest.mark.slow
def test_an_output_matrix_of_its_own_comes_from_the_source():
    """Left causal, what is read before a token are the source's logits of it."""
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 32}
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=64, intermediate_dim=48, tie_word_embeddings=False, **sizes
    )
    for weight in backbone.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)) + (weight.path[-5:] == "scale"))
    model = EncDecMaskedLM.from_preset(backbone, encoder_attention="causal", preprocessor=None)
    x = rows(64)
    inputs = {n: x[n] for n in ("token_ids", "padding_mask")}
    theirs = to_numpy(backbone.token_embedding(backbone(inputs), reverse=True))
    before = np.maximum(x["mask_positions"] - 1, 0)
    assert_close(to_numpy(model(x)), np.take_along_axis(theirs, before[..., None], 1), 1e-4)


def numbers(lm, texts):
    """Loss, accuracy and perplexity from logits, in float64."""
    logits, (_, y, weight) = lm.predict(texts, verbose=0), lm.preprocessor(texts)
    logits = logits.astype("float64")
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, y[..., None], 2)[..., 0]
    loss = (nll * weight).sum() / weight.sum()
    right = ((logits.argmax(-1) == y) * weight).sum() / weight.sum()
    return {"loss": loss, "accuracy": right, "perplexity": np.exp(loss)}


@pytest.mark.slow
def test_numbers_are_means_over_hidden_tokens(lm):
    lm.compile()
    expected = numbers(lm, TEXTS)
    for options in ({}, {"batch_size": 1}, {"batch_size": 3}):
        found = lm.evaluate(TEXTS, verbose=0, return_dict=True, **options)
        assert found == pytest.approx(expected, rel=1e-4)
    lm.preprocessor.packing = True
    packed = lm.preprocessor(TEXTS)
    assert len(packed[1]) < len(lm.predict(TEXTS, verbose=0)) + 1
    assert packed[0]["padding_mask"].max() == 2
    assert lm.evaluate(TEXTS, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-4)
    lm.preprocessor.packing = False


@pytest.mark.slow
def test_weights_of_texts_count(lm):
    lm.compile()
    weighted = lm.evaluate(TEXTS[:2], sample_weight=np.array([1.0, 0.0]), return_dict=True)
    alone = lm.evaluate(TEXTS[:1], return_dict=True)
    assert weighted == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_it_learns_comes_back_and_goes_on_as_an_embedder(tmp_path):
    lm = EncDecMaskedLM.from_preset(
        "gemma2_mini_docs",
        sequence_length=32,
        objective=MNTP(rate=0.3, random_rate=0.0, keep_rate=0.0),
        seed=4,
    )
    lm.backbone.enable_lora(4)
    lm.compile(keras.optimizers.Adam(1e-2), logs=["tokens"])
    history = lm.fit(TEXTS, epochs=4, batch_size=4, verbose=0, validation_data=TEXTS)
    losses = history.history["val_loss"]
    assert losses[-1] < losses[0]
    assert all("lora" in v.path for v in lm.trainable_variables)
    expected = lm.evaluate(TEXTS, verbose=0, return_dict=True)
    lm.save_to_preset(tmp_path / "mntp")
    again = EncDecMaskedLM.from_preset(tmp_path / "mntp")
    assert again.preprocessor.objective == lm.preprocessor.objective
    assert again.preprocessor.get_config() == lm.preprocessor.get_config()
    again.compile()
    assert again.evaluate(TEXTS, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-4)
    embedder = EncDecTextEmbedder.from_preset(tmp_path / "mntp", sequence_length=32)
    mine = EncDecTextEmbedder.from_preset(lm, sequence_length=32)
    assert_close(embedder.encode_text(TEXTS), mine.encode_text(TEXTS), 1e-4)


def test_epochs_hide_other_tokens(lm):
    batches = lm._batches(lm._source(TEXTS), lm._batching(8, epochs=2))
    first, second = (next(iter(batches.read(epoch)))[1] for epoch in (0, 1))
    again = next(iter(batches.read(0)))[1]
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


@pytest.mark.slow
def test_a_keras_file_goes_on(tmp_path):
    model, spec = tiny()
    model.compile(keras.optimizers.SGD(0.1), loss=FusedCrossEntropy(z_loss=1e-4))
    x, y = rows(spec.vocabulary_size), np.full((3, 3), 5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again._fused.z_loss == 1e-4
    assert_close(to_numpy(again(x)), to_numpy(model(x)))
    assert float(model.compute_loss(x, y)) == pytest.approx(float(again.compute_loss(x, y)))


REFUSED = {
    "pairs": (lambda lm: lm.fit(TEXTS, TEXTS), "Expected plain texts for MNTP. Received: pairs"),
    "classes": (lambda lm: lm.fit(TEXTS, class_weight={0: 1}), "Expected no class_weight"),
    "metrics": (lambda lm: lm.compile(weighted_metrics=["accuracy"]), "weighted_metrics"),
    "loss": (lambda lm: lm.compile(loss="mse"), "Expected loss='auto' or"),
    "labels": (lambda lm: lm.preprocessor(TEXTS, TEXTS), "Expected texts. Received: pairs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(lm, name):
    lm.compile()
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call(lm)


def test_other_objectives_and_other_tasks_are_refused(lm):
    tokenizer = lm.preprocessor.tokenizer
    with pytest.raises(ValueError, match="Expected MNTP"):
        EncDecMaskedLMPreprocessor(tokenizer, objective=PrefixLM())
    with pytest.raises(ValueError, match=r"Expected a mask token.* no such token"):
        EncDecMaskedLMPreprocessor(tokenizer, objective=MNTP(mask_token="no such token"))(
            [TEXTS[0]]
        )
    pairs = EncDecSeq2SeqLMPreprocessor(tokenizer, objective=MNTP())
    with pytest.raises(ValueError, match="Train it with EncDecMaskedLM"):
        pairs(TEXTS)


def test_an_encoder_without_its_output_matrix_is_refused():
    pair = tiny_backbone(tiny_pair(encoder=tiny_encoder(tied_output=False)))
    with pytest.raises(ValueError, match="Start from the source of the pair"):
        EncDecMaskedLM.from_preset(pair)
