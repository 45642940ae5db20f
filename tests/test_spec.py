"""Specs against the published parameter counts, and against the weights of a built model."""

import dataclasses
import json

import pytest

from keras_encdec.models import EncDecBackbone
from keras_encdec.sharing.catalog import known_spec
from keras_encdec.spec import (
    AdaptorSpec,
    AttentionSpec,
    CrossAttentionSpec,
    NormSpec,
    PairSpec,
    RotarySpec,
    count_parameters,
    stack_from_json,
)
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

EMBEDDING = "embedding/embeddings"

# arXiv 2408.00118, tables 1 and 2: without embeddings, and embeddings of 256,128 rows.
GEMMA2 = [
    ("gemma2_2b", 2_024_517_888, 590_118_912),
    ("gemma2_9b", 8_324_201_984, 917_962_752),
    ("gemma2_27b", 26_047_480_320, 1_180_237_824),
]
# The eight released pairs: encoder and decoder without embeddings, the cross-attention's
# share with its two norms, and the total with two embeddings of 256,000 rows.
RELEASED = [
    ("t5gemma_s", "t5gemma_s", 20_988_416, 29_385_216, 8_396_800, 312_517_632),
    ("t5gemma_b", "t5gemma_b", 84_972_288, 113_302_272, 28_329_984, 591_490_560),
    ("t5gemma_l", "t5gemma_l", 308_380_672, 409_093_120, 100_712_448, 1_241_761_792),
    ("t5gemma_ml", "t5gemma_ml", 743_889_024, 866_632_320, 122_743_296, 2_200_345_344),
    ("t5gemma_xl", "t5gemma_xl", 1_157_826_560, 1_560_578_048, 402_751_488, 3_766_980_608),
    ("gemma2_2b", "gemma2_2b", 2_024_517_888, 2_392_687_872, 368_169_984, 5_596_853_760),
    ("gemma2_9b", "gemma2_2b", 8_324_201_984, 2_460_845_312, 436_327_424, 12_292_375_296),
    ("gemma2_9b", "gemma2_9b", 8_324_201_984, 10_174_191_104, 1_849_989_120, 20_333_401_088),
]
# arXiv 2504.06225, table 1: decoder-only counts, where d_ffn is gate and up together.
PAPER = [
    ("t5gemma_s_paper", 14_696_960, 37.8),
    ("t5gemma_b_paper", 56_660_736, 141.7),
    ("t5gemma_l_paper", 204_571_648, 509.9),
    ("t5gemma_xl_paper", 780_339_200, 1963.4),
]


def by_length(pairs):
    return RotarySpec(original_length=8, short_factors=(1.5,) * pairs, long_factors=(3.0,) * pairs)


def turned(decoder, layers=None):
    cross_attention = CrossAttentionSpec(layers=layers, rotary="continuous")
    return tiny_pair(decoder=decoder, cross_attention=cross_attention)


HEADS = AttentionSpec(4, 2, 16, 16.0)
BAD = [
    (lambda: AttentionSpec(4, 3, 16, 16.0), "num_kv_heads that divides"),
    (lambda: tiny_encoder(attention=AttentionSpec(4, 2, 15, 15.0)), "an even head_dim"),
    (lambda: tiny_encoder(rotary=(None, RotarySpec())), "as many rotary as windows"),
    (lambda: tiny_encoder(activation="relu"), "activation.*silu"),
    (lambda: RotarySpec(low_frequency_factor=1.0), "both frequency factors"),
    (lambda: RotarySpec(short_factors=(1.0,), original_length=8), "short_factors and long_factors"),
    (lambda: RotarySpec(original_length=8), "or none of these"),
    (lambda: RotarySpec(fraction=1.5), "fraction of RotarySpec as .* at most 1"),
    (lambda: tiny_encoder(rotary=by_length(7)), "8 short_factors, one for each pair"),
    (lambda: tiny_encoder(rotary=RotarySpec(fraction=0.2)), "an even head_dim for rotary"),
    (lambda: tiny_encoder(pre_norm=False, post_norm=False), "a pre_norm or a post_norm"),
    (lambda: AttentionSpec(4, 2, 16, 16.0, norm_across_heads=True), "a query_key_norm for"),
    (lambda: AttentionSpec(4, 2, 16, 16.0, value_norm=0.0), "value_norm of AttentionSpec"),
    (
        lambda: RotarySpec(
            proportional=True, short_factors=(1.0,), long_factors=(1.0,), original_length=8
        ),
        "no factors where proportional",
    ),
    (lambda: tiny_encoder(feedforward_dim=(80, 160)), "as many feedforward_dim as windows"),
    (lambda: tiny_encoder(attention=(HEADS,) * 3), "as many attention as windows"),
    (lambda: tiny_decoder(borrowing_layers=1), "a layer before the borrowing_layers"),
    (lambda: tiny_encoder(borrowing_layers=4), "a layer before the borrowing_layers"),
    (lambda: tiny_encoder(per_layer_dim=0), "per_layer_dim of StackSpec"),
    (
        lambda: tiny_pair(
            decoder=tiny_encoder(borrowing_layers=1),
            cross_attention=CrossAttentionSpec(merged=True),
        ),
        "no borrowing_layers where attention is merged",
    ),
    (lambda: CrossAttentionSpec(merged=True, gate=True), "no gate"),
    (lambda: tiny_pair(cross_attention=CrossAttentionSpec(layers=(2,))), "layers that there are"),
    (lambda: tiny_pair(cross_attention=CrossAttentionSpec(merged=True)), "one width for merged"),
    (lambda: turned(tiny_decoder(rotary=None)), "rotary positions for .* in a layer that has it"),
    (lambda: turned(tiny_decoder(rotary=(RotarySpec(), None)), (1,)), "in a layer that has it"),
    (lambda: turned(tiny_decoder(rotary=by_length(6))), "without long_factors"),
    (lambda: tiny_pair(tied_embeddings=True), "one width, one vocabulary"),
    (lambda: AdaptorSpec(), "several groups or a width"),
    (lambda: tiny_pair(adaptor=AdaptorSpec(5)), "groups of an adaptor from 1 to 4"),
    (lambda: tiny_pair(decoder=tiny_decoder(windows=((3, 4), None))), "windows are numbers"),
    (lambda: tiny_encoder(windows=()), "at least one layer"),
    (lambda: tiny_encoder(windows=(8, 0)), "windows of StackSpec of at least 1"),
    (lambda: tiny_pair(encoder_attention="sideways"), "'bidirectional' or 'causal'"),
]


def without_embeddings(weights):
    return count_parameters({k: v for k, v in weights.items() if not k.endswith(EMBEDDING)})


def side(weights, name):
    return {k: v for k, v in weights.items() if k.startswith(f"{name}/")}


@pytest.mark.parametrize(("name", "blocks", "embedding"), GEMMA2)
def test_gemma2_counts(name, blocks, embedding):
    spec = dataclasses.replace(known_spec(name), vocabulary_size=256_128)
    assert without_embeddings(spec.weights()) == blocks
    assert count_parameters(spec.weights()) - blocks == embedding


@pytest.mark.parametrize(("encoder", "decoder", "reads", "writes", "cross", "total"), RELEASED)
def test_released_pair_counts(encoder, decoder, reads, writes, cross, total):
    weights = PairSpec(known_spec(encoder), known_spec(decoder)).weights()
    assert without_embeddings(side(weights, "encoder")) == reads
    assert without_embeddings(side(weights, "decoder")) == writes
    assert count_parameters({k: v for k, v in weights.items() if "cross" in k}) == cross
    assert count_parameters(weights) == total


@pytest.mark.parametrize(("name", "count", "pair_millions"), PAPER)
def test_paper_counts(name, count, pair_millions):
    spec = known_spec(name)
    assert without_embeddings(spec.weights()) == count
    pair = without_embeddings(PairSpec(spec, spec).weights())
    assert round(pair / 1e6, 1) == pair_millions


def test_the_paper_counts_9b_2b_without_cross_attention():
    weights = PairSpec(known_spec("gemma2_9b"), known_spec("gemma2_2b")).weights()
    assert without_embeddings({k: v for k, v in weights.items() if "cross" not in k}) == (
        10_348_719_872
    )


@pytest.mark.parametrize("post_norm", [True, False])
def test_weights_are_those_of_a_built_model(post_norm):
    pair = PairSpec(tiny_encoder(post_norm=post_norm), tiny_decoder(post_norm=post_norm))
    model = EncDecBackbone(pair.encoder, pair.decoder)
    assert {w.path: tuple(w.shape) for w in model.weights} == pair.weights()
    assert model.count_params() == count_parameters(pair.weights())


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": NormSpec(1e-5), "dropout": 0.1},
        {"windows": (8, None, (3, 4), None)},
        {"rotary": None},
        {"rotary": (None, RotarySpec(100.0, 8.0, 1.0, 4.0, 64), RotarySpec(), None)},
        {"attention": AttentionSpec(4, 2, 16, 16.0, bias=True, query_key_norm=NormSpec(1e-3))},
        {"attention": AttentionSpec(4, 2, 16, 16.0, None, False, NormSpec(1e-3), True)},
        {"pre_norm": False, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
        {"rotary": dataclasses.replace(by_length(6), fraction=0.75, attention_factor=1.2)},
    ],
)
def test_a_stack_survives_json(changes):
    spec = tiny_encoder(**changes)
    assert stack_from_json(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_rotary_of_layers_that_are_alike_is_one():
    assert tiny_encoder(rotary=(RotarySpec(100.0),) * 4) == tiny_encoder(rotary=RotarySpec(100.0))


def test_the_query_scale_of_27b_is_not_its_head_width():
    assert known_spec("gemma2_27b").attention.query_scale == 1 / 12
    assert known_spec("gemma2_9b").attention.query_scale == 1 / 16


@pytest.mark.parametrize(("make", "expected"), BAD)
def test_bad_specs_raise(make, expected):
    with pytest.raises(ValueError, match=rf"(?s)Expected .*{expected}.*Received"):
        make()
