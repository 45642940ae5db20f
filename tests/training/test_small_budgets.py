"""LoRA beside a cross-attention that trains whole, over int8 and int4, and bfloat16."""

import keras
import numpy as np
import pytest

from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import pretrained
from keras_encdec.training.warmup import is_new


def model(**kwargs):
    one = {"windows": (8,)}
    return tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)), **kwargs)


def fit(lm, epochs=4):
    lm.compile(keras.optimizers.Adam(1e-2))
    x = make_inputs(source=(20, 13), target=(16, 9))
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    return lm.fit(
        x, y, sample_weight=weight.astype("float32"), epochs=epochs, verbose=0, shuffle=False
    ).history["loss"]


def changed(lm, before):
    return {w.path for w in lm.weights if not np.array_equal(to_numpy(w), before[w.path])}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_trains_lora_and_the_cross_attention_and_nothing_else(mode):
    lm = model()
    if mode:
        lm.quantize(mode, filters=pretrained)
        assert lm.backbone.decoder.embedding.quantization_mode == mode
    lm.backbone.enable_lora(2)
    expected = {w.path for w in lm.weights if is_new(w.path) or "lora" in w.path}
    assert {w.path for w in lm.trainable_weights} == expected
    assert any("lora" in path for path in expected)
    assert not any("lora" in path and is_new(path) for path in expected)
    before = {w.path: to_numpy(w) for w in lm.weights}
    losses = fit(lm)
    assert losses[-1] < losses[0]
    assert changed(lm, before) == expected


@pytest.mark.slow
def test_lora_in_the_cross_attention_too():
    lm = model()
    lm.quantize("int8")
    with pytest.raises(ValueError, match="a cross-attention in float"):
        lm.backbone.enable_lora(2)
    lm.backbone.enable_lora(2, train_cross_attention=False)
    trains = {w.path for w in lm.trainable_weights}
    assert all("lora" in path for path in trains)
    assert any(is_new(path) for path in trains)
    losses = fit(lm)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_lora_on_the_embedding_that_is_read_out():
    lm = model()
    lm.backbone.enable_lora(2, target_layer_names=["embedding"])
    before = {w.path: to_numpy(w) for w in lm.weights}
    losses = fit(lm)
    assert losses[-1] < losses[0]
    assert "decoder/embedding/lora_embeddings_b" in changed(lm, before)


@pytest.mark.slow
def test_bfloat16_over_float32_weights():
    low, full = fit(model(dtype="mixed_bfloat16")), fit(model())
    np.testing.assert_allclose(low, full, rtol=2e-2)


@pytest.mark.long
def test_adam_in_bfloat16_would_not_move():
    """0.999 is 1 in bfloat16, and with it the size of Adam's step is 0."""
    lm = model(dtype="bfloat16")
    with pytest.raises(
        ValueError, match=r"Received: 0\.999, which is 1 there: Adam would not move"
    ):
        fit(lm)
    x = make_inputs(source=(20, 13), target=(16, 9))
    lm.compile(keras.optimizers.Adafactor(1e-2))
    losses = lm.fit(x, x["decoder_token_ids"], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
