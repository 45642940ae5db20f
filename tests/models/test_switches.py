"""The switches of later papers: where a pair starts, what it holds, and that caches follow."""

import keras
import numpy as np
import pytest

import keras_encdec
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.spec import AdaptorSpec, CrossAttentionSpec, count_parameters
from keras_encdec.testing.models import (
    assert_close,
    decoded,
    make_inputs,
    run,
    tiny_backbone,
    to_numpy,
)
from keras_encdec.testing.specs import later, sunk, tiny_decoder, tiny_encoder, tiny_pair, uneven

SOURCE = "gemma2_tiny_docs"
SWITCHES = {
    "merged": {"cross_attention": CrossAttentionSpec(merged=True)},
    "gate": {"cross_attention": CrossAttentionSpec(gate=True)},
    "some layers": {"cross_attention": CrossAttentionSpec(layers=(1, 3))},
    "merged in some layers": {"cross_attention": CrossAttentionSpec(merged=True, layers=(0,))},
    "continuous": {"cross_attention": CrossAttentionSpec(rotary="continuous")},
    "merged and continuous": {
        "cross_attention": CrossAttentionSpec(merged=True, rotary="continuous")
    },
    "adaptor": {"decoder": tiny_decoder(), "adaptor": AdaptorSpec(3, 24)},
    "merged by an adaptor": {
        "decoder": tiny_decoder(),
        "cross_attention": CrossAttentionSpec(merged=True),
        "adaptor": AdaptorSpec(width=42),
    },
    "tied": {"tied_embeddings": True},
    "borrowed keys": {"encoder": uneven(tiny_encoder()), "decoder": uneven(tiny_encoder())},
    "sinks": {"encoder": sunk(tiny_encoder()), "decoder": sunk(tiny_encoder())},
    "merged with sinks": {
        "encoder": sunk(tiny_encoder()),
        "decoder": sunk(tiny_encoder()),
        "cross_attention": CrossAttentionSpec(merged=True),
    },
    # Texts of 20 tokens are long, those of 13 are not.
    "merged in later families": {
        "encoder": later(tiny_encoder(), 14),
        "decoder": later(tiny_encoder(), 16),
        "cross_attention": CrossAttentionSpec(merged=True),
    },
}
every_switch = pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name) for name, changes in SWITCHES.items()],
)


def pair(changes):
    return tiny_pair(**{"decoder": tiny_encoder(), **changes})


def generated(backbone, inputs):
    """Greedy tokens after four given ones."""
    lm = EncDecSeq2SeqLM(backbone)
    lm.compile(sampler="greedy")
    given = {**inputs, "decoder_padding_mask": (np.arange(16) < 4) * np.ones((3, 1), "int32")}
    return np.asarray(lm.generate(given, stop_token_ids=None)["decoder_token_ids"])


@pytest.mark.slow
@every_switch
def test_cached_is_full_and_padding_does_not_matter(changes):
    backbone, inputs = tiny_backbone(pair(changes)), make_inputs(target=(16, 16, 16))
    decoder, mask = backbone.decoder, inputs["encoder_padding_mask"]
    states = backbone.encoder(inputs["encoder_token_ids"], mask)
    full = run(backbone, inputs)["decoder_sequence_output"]
    context, cache = decoder.context(states, mask), decoder.empty_cache(3, 16)
    for i in range(16):
        ids = inputs["decoder_token_ids"][:, i : i + 1]
        state, cache = decoded(decoder, ids, i, cache, context)
        assert_close(to_numpy(state)[:, 0], full[:, i], 1e-5)
    written = generated(backbone, inputs)
    alone = {key: rows[1:2, :13] if "enc" in key else rows[1:2] for key, rows in inputs.items()}
    assert_close(run(backbone, alone)["decoder_sequence_output"], full[1:2], 1e-5)
    logits = to_numpy(decoder.logits(decoder(written, np.ones_like(written), states, mask)))
    np.testing.assert_array_equal(written[:, 4:], logits.argmax(-1)[:, 3:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(SWITCHES[name], id=name)
        for name in ("merged", "gate", "continuous", "adaptor", "sinks")
    ],
)
def test_packed_is_unpacked(changes):
    backbone, inputs = tiny_backbone(pair(changes)), make_inputs((9, 7), (8, 8))
    apart = run(backbone, inputs)["decoder_sequence_output"]
    rows = {}
    for side, lengths in (("encoder", (9, 7)), ("decoder", (8, 8))):
        ids = inputs[f"{side}_token_ids"]
        rows[f"{side}_token_ids"] = np.concatenate(
            [i[:n] for i, n in zip(ids, lengths, strict=True)]
        )[None]
        rows[f"{side}_padding_mask"] = np.repeat([1, 2], lengths)[None].astype("int32")
    together = run(backbone, rows)["decoder_sequence_output"][0]
    assert_close(together, np.concatenate([apart[0], apart[1]]), 1e-5)


def without_input(lm, inputs):
    """Logits of the decoder-only model that the decoder was made of."""
    source = keras_encdec.adapt(SOURCE, encoder_attention="causal", preprocessor=None).backbone
    mask = inputs["decoder_padding_mask"]
    return to_numpy(source.decoder.logits(source.encoder(inputs["decoder_token_ids"], mask)))


@pytest.mark.long
def test_a_gated_pair_starts_as_its_source():
    lm = keras_encdec.adapt(SOURCE, cross_attention_gate=True)
    inputs = make_inputs()
    kept = inputs["decoder_padding_mask"] == 1
    found = to_numpy(lm(inputs))
    assert_close(found[kept], without_input(lm, inputs)[kept], 1e-4)
    lm.compile(optimizer=keras.optimizers.SGD(0.1))
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    lm.fit(inputs, labels, sample_weight=weight, verbose=0)
    gates = [to_numpy(b.gate.scale) for b in lm.backbone.decoder.blocks]
    assert all(gate != 0 for gate in gates)


@pytest.mark.slow
def test_a_switch_is_saved(tmp_path):
    options = {"cross_attention_gate": True, "cross_attention_layers": [0, 2]}
    options["cross_attention_rotary"] = "continuous"
    lm = keras_encdec.adapt(SOURCE, tied_embeddings=True, decoder_layers=[0, 1, 3], **options)
    spec = lm.backbone.spec
    assert spec.decoder.num_layers == 3
    assert spec.cross_attention.rotary == "continuous"
    lm.save_to_preset(tmp_path / "pair")
    again = keras_encdec.from_preset(tmp_path / "pair")
    assert again.backbone.spec == spec
    inputs = make_inputs()
    np.testing.assert_array_equal(to_numpy(again(inputs)), to_numpy(lm(inputs)))


def test_what_each_switch_leaves_out():
    whole = count_parameters(pair({}).weights())
    sizes = {name: count_parameters(pair(c).weights()) for name, c in SWITCHES.items()}
    encoder = tiny_encoder()
    embedding = encoder.vocabulary_size * encoder.width
    cross = {k: v for k, v in pair({}).weights().items() if "cross_attention" in k}
    assert whole - sizes["tied"] == embedding
    assert whole - sizes["merged"] == count_parameters(cross)
    assert whole - sizes["some layers"] == count_parameters(cross) // 2
    assert sizes["gate"] - whole == encoder.num_layers


@pytest.mark.slow
def test_merged_and_tied_pairs_are_all_source():
    lm = keras_encdec.adapt(SOURCE, merged_attention=True, tied_embeddings=True)
    source = keras_encdec.adapt(SOURCE).backbone
    block, theirs = lm.backbone.decoder.blocks[1], source.decoder.blocks[1]
    for name in ("query", "key", "value", "output_dense"):
        ours, other = (getattr(b.attention, name).kernel for b in (block, theirs))
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(other))
    assert lm.backbone.decoder.embedding is lm.backbone.encoder.embedding


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8", "lora"])
def test_smaller_variables(mode):
    lm = keras_encdec.adapt(SOURCE, merged_attention=True, tied_embeddings=True)
    before = to_numpy(lm(make_inputs()))
    if mode == "int8":
        lm.quantize("int8")
        assert np.abs(to_numpy(lm(make_inputs())) - before).max() < 2
    else:
        lm.backbone.enable_lora(4)
        np.testing.assert_array_equal(to_numpy(lm(make_inputs())), before)
        assert all("lora" in v.path for v in lm.trainable_variables)
