"""What Keras users expect of a model: config, files, dtypes, LoRA, int8, fit."""

import json

import keras
import numpy as np
import pytest

from keras_encdec.layers.attention import Attention
from keras_encdec.layers.decoder import Decoder
from keras_encdec.layers.encoder import Encoder
from keras_encdec.layers.feedforward import GatedFeedForward
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.spec import NormSpec, RotarySpec
from keras_encdec.testing.models import assert_close, make_inputs, run, tiny_lm
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

INPUTS = make_inputs()
VALID = INPUTS["decoder_padding_mask"] == 1


def new_lm():
    """A task with Keras's own initial weights."""
    pair = tiny_pair()
    return EncDecSeq2SeqLM(EncDecBackbone(pair.encoder, pair.decoder))


def next_tokens():
    """Targets for `INPUTS`, and weights that leave out the padding."""
    targets = np.roll(INPUTS["decoder_token_ids"], -1, axis=1)
    weights = np.roll(INPUTS["decoder_padding_mask"], -1, axis=1)
    weights[:, -1] = 0
    return targets, weights


def fit(lm, steps):
    """The loss before each of some steps on one batch."""
    targets, weights = next_tokens()
    history = lm.fit(INPUTS, targets, sample_weight=weights, epochs=steps, verbose=0)
    return history.history["loss"]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def logits(lm):
    return run(lm, INPUTS)


@pytest.mark.parametrize(
    "layer",
    [
        Encoder(tiny_encoder(), causal=True),
        Decoder(tiny_decoder(), 48),
        Attention(tiny_decoder().attention, RotarySpec(100.0)),
        GatedFeedForward(80),
        RMSNorm(NormSpec(1e-3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layer_config_round_trip(layer):
    data = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(data)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert getattr(again, "spec", None) == getattr(layer, "spec", None)


def test_backbone_config_round_trip():
    pair = tiny_pair(encoder_attention="causal")
    parts = (pair.encoder, pair.decoder, pair.encoder_attention)
    backbone = EncDecBackbone(*parts, dtype="bfloat16", name="some_name")
    again = EncDecBackbone.from_config(json.loads(json.dumps(backbone.get_config())))
    assert again.spec == pair
    assert again.get_config() == backbone.get_config()
    assert {w.dtype for w in again.weights} == {"bfloat16"}


def test_saved_model_gives_the_same_logits(lm, logits, tmp_path):
    lm.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is EncDecSeq2SeqLM
    assert again.backbone.spec == lm.backbone.spec
    np.testing.assert_array_equal(run(again, INPUTS), logits)


def test_saved_weights_give_the_same_logits(lm, logits, tmp_path):
    again = new_lm()
    assert np.abs(run(again, INPUTS) - logits).max() > 0.1
    lm.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(run(again, INPUTS), logits)


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_low_precision(policy, logits):
    lm = tiny_lm(dtype=policy)
    stored = "bfloat16" if policy == "bfloat16" else "float32"
    assert {w.dtype for w in lm.weights} == {stored}
    states = lm.backbone(INPUTS)
    assert {keras.backend.standardize_dtype(x.dtype) for x in states.values()} == {"bfloat16"}
    found = run(lm, INPUTS)
    assert np.isfinite(found).all()
    assert np.abs(found - logits)[VALID].mean() < 0.15


@pytest.mark.slow
def test_generation_in_low_precision():
    lm = tiny_lm(dtype="bfloat16")
    embeddings = lm.backbone.decoder.embedding.embeddings
    embeddings.assign(embeddings * 0.1)  # else it repeats its last token
    lm.compile(sampler="greedy")
    prompt = dict(INPUTS, decoder_padding_mask=np.arange(16)[None] < np.array([[4], [2], [1]]))
    found = lm.generate(prompt, stop_token_ids=None)["decoder_token_ids"]
    given = prompt["decoder_padding_mask"]
    np.testing.assert_array_equal(found[given], INPUTS["decoder_token_ids"][given])
    assert len(np.unique(found[0, 4:])) > 1


@pytest.mark.slow
def test_lora_starts_where_the_model_is_and_trains_alone(logits):
    lm = tiny_lm()
    lm.backbone.enable_lora(2, train_cross_attention=False)
    assert_close(run(lm, INPUTS), logits, 1e-6)
    before = {w.path: np.array(w) for w in lm.weights}
    lm.compile()
    fit(lm, 1)
    changed = {w.path for w in lm.weights if not np.array_equal(w, before[w.path])}
    lora = {path for path in before if "lora" in path}
    sublayers = {path.rsplit("/", 2)[0] for path in lora}
    assert len(sublayers) == 4 + 2 * 2  # one for each attention of each layer
    assert changed <= lora
    assert {path for path in lora if path.endswith("lora_kernel_b")} <= changed


@pytest.mark.slow
def test_what_came_after_the_first_fit_asks_for_compile():
    """And what left, or came back, does not."""
    lm = tiny_lm()
    lm.compile()
    fit(lm, 1)
    lm.backbone.encoder.trainable = False
    fit(lm, 1)
    lm.backbone.encoder.trainable = True
    fit(lm, 1)
    lm.backbone.enable_lora(2, train_cross_attention=False)
    with pytest.raises(ValueError, match=r"compile\(\) again .*32 new weights, .*lora_kernel_a"):
        fit(lm, 1)
    lm.compile()
    fit(lm, 1)


def test_int8_keeps_logits_close(logits):
    lm = tiny_lm()
    lm.quantize("int8")
    found = lm.predict_on_batch(INPUTS)
    kernels = [w for w in lm.weights if w.path.endswith(("kernel", "embeddings"))]
    assert {w.dtype for w in kernels} == {"int8"}
    difference = np.abs(found - logits)[VALID]
    assert 0 < difference.mean() < 0.15


@pytest.mark.slow
def test_fit_lowers_the_loss():
    lm = new_lm()
    lm.compile()
    first, second, third = fit(lm, 3)
    assert first > second > third


def test_padding_adds_nothing_to_the_loss(lm, logits):
    targets, weights = next_tokens()
    lm.compile()
    found = lm.evaluate(INPUTS, targets, sample_weight=weights, verbose=0)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    each = -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    expected = each[weights == 1].mean()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
