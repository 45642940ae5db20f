"""Plans are complete, follow the recipe of the paper, and say where each weight is from."""

import dataclasses

import pytest
from rich.console import Console

from keras_encdec.conversion.plan import make_plan
from keras_encdec.sharing.catalog import known_spec
from keras_encdec.sharing.load import plan as plan_of
from keras_encdec.spec import PairSpec
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, uneven

OTHER_WIDTH = tiny_decoder()
SAME_WIDTH = tiny_encoder(windows=(8, None))
SAME_WIDTH_OTHER_WORDS = tiny_encoder(vocabulary_size=97)
EVERY_PLAN = {
    "balanced": lambda: make_plan(tiny_encoder()),
    "balanced, random": lambda: make_plan(tiny_encoder(), cross_attention_init="random"),
    "balanced, more heads": lambda: make_plan(tiny_encoder(), expand_gqa=True),
    "unbalanced": lambda: make_plan(tiny_encoder(), OTHER_WIDTH),
    "unbalanced, copied": lambda: make_plan(
        tiny_encoder(), SAME_WIDTH, cross_attention_init="self_attention"
    ),
    "gemma 1": lambda: make_plan(tiny_encoder(post_norm=False)),
}


def cross(plan):
    return [step for step in plan.steps if "cross_attention" in step.target]


def printed(plan):
    console = Console(width=200)
    with console.capture() as text:
        console.print(plan.table())
    return text.get()


@pytest.mark.parametrize("make", EVERY_PLAN.values(), ids=EVERY_PLAN.keys())
def test_each_target_is_set_exactly_once(make):
    plan = make()
    targets = [step.target for step in plan.steps]
    assert len(set(targets)) == len(targets)
    assert {step.target: step.shape for step in plan.steps} == plan.pair.weights()


@pytest.mark.parametrize("make", EVERY_PLAN.values(), ids=EVERY_PLAN.keys())
def test_each_source_tensor_is_used(make):
    plan = make()
    there = {(s, name) for s, spec in plan.sources.items() for name in spec.weights()}
    assert {step.source for step in plan.steps} - {None} == there


@pytest.mark.parametrize("make", EVERY_PLAN.values(), ids=EVERY_PLAN.keys())
def test_shapes_fit_after_repeating_heads(make):
    plan = make()
    for step in plan.steps:
        if step.source:
            shape = list(plan.sources[step.source[0]].weights()[step.source[1]])
            if step.repeat > 1:
                shape[-2] *= step.repeat
            assert tuple(shape) == step.shape, step


def test_auto_copies_self_attention_of_the_same_layer_with_its_norms():
    for step in cross(make_plan(tiny_encoder())):
        side, name = step.target.split("/", 1)
        assert side == "decoder"
        assert step.source == ("source", name.replace("cross_attention", "attention"))


def test_auto_starts_fresh_where_specs_differ():
    different = dataclasses.replace(tiny_encoder(), feedforward_dim=64)
    for decoder in (OTHER_WIDTH, SAME_WIDTH, different):
        plan = make_plan(tiny_encoder(), decoder)
        assert plan.fresh == cross(plan)
        assert len(plan.fresh) == 6 * decoder.num_layers


def test_auto_copies_from_the_decoder_where_two_equal_specs_are_given():
    plan = make_plan(tiny_encoder(), tiny_encoder())
    assert not plan.fresh
    assert {step.source[0] for step in cross(plan)} == {"decoder"}


def test_random_overrules_equal_specs():
    plan = make_plan(tiny_encoder(), cross_attention_init="random")
    assert plan.fresh == cross(plan)


def test_self_attention_needs_one_width():
    with pytest.raises(ValueError, match=r"Expected .*one width.*Received: 48 and 42"):
        make_plan(tiny_encoder(), OTHER_WIDTH, cross_attention_init="self_attention")


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match=r"Expected cross_attention_init.*Received: 'zero'"):
        make_plan(tiny_encoder(), cross_attention_init="zero")


def test_expand_gqa_gives_the_encoder_one_kv_head_per_query_head():
    plan = make_plan(tiny_encoder(), expand_gqa=True)
    assert plan.pair.encoder.attention.num_kv_heads == 4
    assert plan.pair.decoder.attention.num_kv_heads == 2
    repeated = [step.target for step in plan.steps if step.repeat > 1]
    kernels = [
        f"encoder/block_{i}/attention/{k}/kernel" for i in range(4) for k in ("key", "value")
    ]
    assert sorted(repeated) == sorted(kernels)
    assert {step.repeat for step in plan.steps} == {1, 2}


def test_balanced_has_one_source_and_unbalanced_two():
    assert set(make_plan(tiny_encoder()).sources) == {"source"}
    plan = make_plan(tiny_encoder(), OTHER_WIDTH)
    assert plan.sources == {"encoder": tiny_encoder(), "decoder": OTHER_WIDTH}
    assert {s.target.split("/")[0] == s.source[0] for s in plan.steps if s.source} == {True}


def test_encoder_attention_is_kept():
    causal = make_plan(tiny_encoder(), encoder_attention="causal").pair
    assert causal == PairSpec(tiny_encoder(), tiny_encoder(), "causal")


def test_27b_keeps_its_query_scale():
    plan = plan_of("gemma2_27b_2b")
    assert plan.pair.encoder.attention.query_pre_attn_scalar == 144
    assert plan.pair.decoder.attention.query_pre_attn_scalar == 256
    assert plan_of("gemma2_27b_27b").pair.decoder.attention.query_pre_attn_scalar == 144


def test_vocabularies_that_differ_cannot_share_an_embedding():
    with pytest.raises(ValueError, match="one vocabulary and a tied output for tied_embeddings"):
        make_plan(tiny_encoder(), SAME_WIDTH_OTHER_WORDS, tied_embeddings=True)


def test_the_table_says_shared_where_two_weights_read_one_tensor():
    text = printed(make_plan(tiny_encoder()))
    assert "(shared)" in text
    assert "fresh" not in text.replace("0 fresh", "")
    assert "block_*/attention/query (shared)" in text


def test_the_table_says_fresh_and_counts_it():
    plan = make_plan(tiny_encoder(), OTHER_WIDTH)
    text = printed(plan)
    rows = [line for line in text.splitlines() if line.rstrip().endswith(" fresh")]
    assert any("cross_attention/query" in row for row in rows)
    assert "(shared)" not in text
    # Two layers of query, output (42 x 6 x 12), key and value (48 x 2 x 12), two norms of 42.
    assert f"{2 * (2 * 42 * 72 + 2 * 48 * 24 + 2 * 42):,} fresh" in plan.summary()


def test_a_plan_of_a_real_recipe_allocates_nothing():
    assert known_spec("gemma2_9b") == plan_of("gemma2_9b_2b").sources["encoder"]
    assert "12,292,375,296 parameters" in plan_of("gemma2_9b_2b").summary()


def test_cross_attention_of_a_layer_that_borrows_starts_from_the_lender():
    plan = make_plan(uneven(tiny_encoder()))
    of = {step.target: step.source for step in plan.steps}
    assert of["decoder/block_3/cross_attention/key/kernel"] == (
        "source",
        "block_1/attention/key/kernel",
    )
    assert of["decoder/block_3/cross_attention/query/kernel"] == (
        "source",
        "block_3/attention/query/kernel",
    )
    assert "decoder/block_3/attention/key/kernel" not in of


def test_layers_that_cannot_go_are_named():
    spec = uneven(tiny_encoder())
    with pytest.raises(ValueError, match="with layer 1, whose keys and values later ones borrow"):
        make_plan(spec, decoder_layers=[0, 2, 3])
    with pytest.raises(ValueError, match="all 4 layers of a decoder with an embedding for each"):
        make_plan(spec, decoder_layers=[0, 1, 2])
    slim = make_plan(dataclasses.replace(spec, per_layer_dim=None), decoder_layers=[1, 3])
    assert slim.pair.decoder.borrowing_layers == 1
    assert slim.pair.decoder.feedforward_dims == (80, 160)


def test_heads_are_repeated_as_each_layer_asks():
    plan = make_plan(uneven(tiny_encoder(), 0), expand_gqa=True)
    repeats = {s.target: s.repeat for s in plan.steps if s.target.startswith("encoder/")}
    assert repeats["encoder/block_0/attention/value/kernel"] == 2
    assert repeats["encoder/block_1/attention/key/kernel"] == 4
