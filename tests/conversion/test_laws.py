"""The conversion law: adaptation starts exactly where the source model stands."""

from pathlib import Path

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import (
    assert_close,
    draw,
    logits_without_input,
    run,
    to_numpy,
)

PARITY = Path(__file__).parents[1] / "parity"
COMMON = {"vocabulary_size": 96, "num_layers": 3, "hidden_dim": 40, "intermediate_dim": 144}
# A new family is held to the law by one line here.
SOURCES = {
    "gemma2": {
        **COMMON,
        "head_dim": 12,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_sliding_window_attention": True,
        "sliding_window_size": 6,
        "attention_logit_soft_cap": 5.0,
        "final_logit_soft_cap": 3.0,
    },
    "gemma": {**COMMON, "head_dim": 12, "num_query_heads": 4, "num_key_value_heads": 1},
}
LENGTHS = (20, 13)


def source_backbone(name):
    backbone = keras_hub.models.GemmaBackbone(**SOURCES[name])
    for weight in backbone.weights:
        values = draw(weight.path, tuple(weight.shape))
        weight.assign(values / 3 if len(weight.shape) == 3 else values)
    return backbone


def tokens(vocabulary=96, lengths=LENGTHS):
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int32")
    ids = np.random.default_rng(0).integers(3, vocabulary, mask.shape).astype("int32")
    return ids * mask, mask


@pytest.mark.parametrize("name", SOURCES)
def test_without_cross_attention_the_decoder_is_the_source(name):
    source = source_backbone(name)
    ids, mask = tokens()
    inputs = {"token_ids": ids, "padding_mask": mask}
    expected = to_numpy(keras_hub.models.GemmaCausalLM(source)(inputs))
    found = logits_without_input(keras_encdec.adapt(source).backbone, ids, mask)
    assert_close(found[mask == 1], expected[mask == 1], 1e-4)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("expand_gqa", [False, True])
def test_with_a_causal_mask_the_encoder_is_the_source(name, expand_gqa):
    source = source_backbone(name)
    ids, mask = tokens()
    expected = to_numpy(source({"token_ids": ids, "padding_mask": mask}))
    pair = keras_encdec.adapt(source, encoder_attention="causal", expand_gqa=expand_gqa).backbone
    found = to_numpy(pair.encoder(ids, mask))
    assert_close(found[mask == 1], expected[mask == 1], 1e-4)
    bidirectional = keras_encdec.adapt(source).backbone
    assert np.abs(to_numpy(bidirectional.encoder(ids, mask)) - expected).max() > 1e-2


def test_without_post_norms_a_pair_starts_as_its_source():
    """Its cross-attention is copied, and its gate is closed: nothing is silenced here."""
    sizes = {**COMMON, "num_query_heads": 4, "num_key_value_heads": 2}
    source = keras_hub.models.LlamaBackbone(**sizes)
    for weight in source.trainable_weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    ids, mask = tokens()
    states = source({"token_ids": ids, "padding_mask": mask})
    expected = to_numpy(source.token_embedding(states, reverse=True))
    x = {f"{side}_token_ids": ids for side in ("encoder", "decoder")}
    x |= {f"{side}_padding_mask": mask for side in ("encoder", "decoder")}
    assert_close(run(keras_encdec.adapt(source), x)[mask == 1], expected[mask == 1], 1e-4)
    open_ = run(keras_encdec.adapt(source, cross_attention_gate=False), x)
    assert np.abs(open_ - expected)[mask == 1].max() > 0.1


@pytest.mark.slow
def test_the_law_holds_on_the_embedded_model():
    source = keras_hub.models.GemmaCausalLM.from_preset(
        catalog.embedded("gemma2_tiny_docs"), preprocessor=None
    )
    ids, mask = tokens(4096, (300, 40))
    expected = to_numpy(source({"token_ids": ids, "padding_mask": mask}))
    found = logits_without_input(keras_encdec.adapt("gemma2_tiny_docs").backbone, ids, mask)
    assert_close(found[mask == 1], expected[mask == 1], 1e-4)


def test_the_decoder_is_transformers_gemma2():
    # The query scale there is not the head width's, which KerasHub's own forward ignores.
    source = keras_hub.models.Backbone.from_preset(str(PARITY / "hf_gemma2"))
    with np.load(PARITY / "hf_gemma2.npz") as reference:
        ids, mask = reference["input_ids"].astype("int32"), reference["attention_mask"]
        found = logits_without_input(keras_encdec.adapt(source).backbone, ids, mask.astype("int32"))
        assert_close(found[mask == 1], reference["logits"][mask == 1], 1e-4)


def test_self_attention_is_copied_and_shared_memory_is_not():
    pair = keras_encdec.adapt(source_backbone("gemma2")).backbone
    block = pair.decoder.blocks[1]
    own, cross = block.attention.query.kernel, block.cross_attention.query.kernel
    np.testing.assert_array_equal(to_numpy(own), to_numpy(cross))
    cross.assign(cross * 0)
    assert np.abs(to_numpy(own)).max() > 0


def test_fresh_weights_are_drawn():
    pair = keras_encdec.adapt(source_backbone("gemma2"), cross_attention_init="random").backbone
    kernel = to_numpy(pair.decoder.blocks[0].cross_attention.query.kernel)
    assert 0.5 < kernel.std() / 40**-0.5 < 1.5
