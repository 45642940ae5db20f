"""Laws of every dialect: one rule per weight, a bitwise way back, and the names of the others."""

import dataclasses
import json
from pathlib import Path

import keras_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from keras_encdec.families import dialect, gemma, t5gemma
from keras_encdec.families import keras_hub as keras_hub_rules
from keras_encdec.spec import AdaptorSpec, CrossAttentionSpec, NormSpec, PairSpec
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

TIED = {"tie_word_embeddings": True}
PARITY = Path(__file__).parents[1] / "parity"
GEMMA2 = {
    "vocabulary_size": 96,
    "num_layers": 4,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 48,
    "intermediate_dim": 160,
    "head_dim": 16,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "attention_logit_soft_cap": 5.0,
    "final_logit_soft_cap": 3.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 8,
}
T5GEMMA = {
    "vocabulary_size": 96,
    **{
        f"{side}_{field}": value
        for side, values in {
            "encoder": (48, 80, 4, 4, 2, 16, ["sliding_attention", "full_attention"] * 2),
            "decoder": (42, 72, 2, 6, 2, 12, ["sliding_attention", "full_attention"]),
        }.items()
        for field, value in zip(
            (
                "hidden_dim",
                "intermediate_dim",
                "num_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "layer_types",
            ),
            values,
            strict=True,
        )
    },
    "query_pre_attn_scalar": 10,
    "sliding_window": 8,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}


def keras_hub_gemma():
    model = keras_hub.models.GemmaBackbone(**GEMMA2)
    return {w.path: tuple(w.shape) for w in model.weights}


def keras_hub_t5gemma():
    model = keras_hub.models.T5GemmaBackbone(**T5GEMMA)
    last = {
        id(getattr(model, f"{s}_norm").scale): f"{s}_norm/scale" for s in ("encoder", "decoder")
    }
    return {last.get(id(w), w.path): tuple(w.shape) for w in model.weights}


def transformers_t5gemma():
    with safe_open(PARITY / "hf_t5gemma/model.safetensors", framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def hf_config():
    return json.loads((PARITY / "hf_t5gemma/config.json").read_text())


# A dialect, the weights it names, and the tensors of a real model in it: a line per family.
CASES = {
    "gemma in keras_hub": (keras_hub_rules.gemma_rules(), tiny_encoder(), keras_hub_gemma),
    "t5gemma in keras_hub": (t5gemma.KERAS_HUB, tiny_pair(), keras_hub_t5gemma),
    "t5gemma in transformers": (
        t5gemma.TRANSFORMERS,
        t5gemma.from_transformers(hf_config()),
        transformers_t5gemma,
    ),
}
every_dialect = pytest.mark.parametrize(
    ("rules", "spec", "theirs"), CASES.values(), ids=CASES.keys()
)


@every_dialect
def test_every_weight_has_one_rule_and_a_tensor_of_its_own(rules, spec, theirs):
    bound = dialect.bind(rules, spec.weights())
    assert bound.keys() == spec.weights().keys()
    assert len({tensor.name for tensor in bound.values()}) == len(bound)
    for rule in rules:  # and every rule a weight, but those for what this model lacks
        one = rule.ours.format(i=0)
        lacked = ("reverse_embeddings", "query_norm/scale", "key_norm/scale")
        assert one in bound or one.endswith(lacked), one


@every_dialect
def test_a_weight_with_no_rule_or_two_is_an_error(rules, spec, theirs):
    with pytest.raises(KeyError, match="Received: 0"):
        dialect.bind(rules[1:], spec.weights())
    with pytest.raises(KeyError, match="Received: 2"):
        dialect.bind((*rules, rules[0]), spec.weights())


@every_dialect
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_there_and_back_is_bitwise(rules, spec, theirs, dtype):
    rng = np.random.default_rng(0)
    for tensor in dialect.bind(rules, spec.weights()).values():
        array = rng.normal(size=tensor.shape).astype(dtype)
        ours = tensor.to_ours({tensor.name: array}.__getitem__)
        (back,) = tensor.to_theirs(ours)
        back = np.ascontiguousarray(back)
        assert ours.shape == tensor.our_shape
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


@every_dialect
def test_names_and_shapes_are_those_of_a_real_model(rules, spec, theirs):
    bound = dialect.bind(rules, spec.weights())
    assert {tensor.name: tensor.shape for tensor in bound.values()} == theirs()


def test_axes_move_and_do_not_only_fit():
    rule = dialect.Rule("w", "w", "(n h) d -> d n h")
    (tensor,) = dialect.bind([rule], {"w": (5, 2, 3)}).values()
    array = np.arange(30).reshape(6, 5)
    assert np.array_equal(tensor.to_ours(lambda name: array)[4, 1, 2], array[1 * 3 + 2, 4])


def test_weights_that_share_a_tensor_lie_one_after_another_along_its_axis():
    layout, array = "e d f -> e f d", np.arange(2 * 3 * 9).reshape(2, 3, 9)
    rules = [dialect.Rule(name, "both", layout, axis=2) for name in ("gate", "up")]
    bound = dialect.bind(rules, {"up": (2, 5, 3), "gate": (2, 4, 3)})
    for name, expected in {"gate": array[..., :4], "up": array[..., 4:]}.items():
        tensor = bound[name]
        assert tensor.shape == array.shape
        for given in (array, array[tensor.part]):
            ours = tensor.to_ours(lambda _, given=given: given)
            np.testing.assert_array_equal(ours, expected.swapaxes(1, 2))
        np.testing.assert_array_equal(tensor.to_theirs(ours), [expected])
    ((_, parts),) = dialect.by_tensor(bound).items()
    assert [name for name, _ in parts] == ["gate", "up"]


def test_weights_may_take_turns_along_the_axis_of_a_tensor():
    array = np.arange(2 * 3 * 8).reshape(2, 3, 8)
    rules = [
        dialect.Rule(name, "both", "e d f -> e d f", axis=2, takes_turns=True)
        for name in ("gate", "up")
    ]
    bound = dialect.bind(rules, {"up": (2, 3, 4), "gate": (2, 3, 4)})
    for first, name in enumerate(("gate", "up")):
        tensor = bound[name]
        assert tensor.shape == array.shape
        for given in (array, array[tensor.part]):
            ours = tensor.to_ours(lambda _, given=given: given)
            np.testing.assert_array_equal(ours, array[..., first::2])
    ((_, parts),) = dialect.by_tensor(bound).items()
    back = [array[..., i::2] for i in range(2)]
    np.testing.assert_array_equal(parts[0][1].joined(back), array)


def test_specs_of_real_configs():
    scale = {"query_pre_attn_scalar": 10}
    encoder = dataclasses.replace(tiny_encoder().attention, **scale)
    decoder = dataclasses.replace(tiny_decoder().attention, logit_soft_cap=5.0, **scale)
    pair = PairSpec(
        tiny_encoder(attention=encoder), tiny_decoder(attention=decoder, windows=(8, None))
    )
    assert t5gemma.from_keras_hub(keras_hub.models.T5GemmaBackbone(**T5GEMMA).get_config()) == pair
    config = keras_hub.models.GemmaBackbone(**GEMMA2).get_config()
    assert gemma.from_keras_hub({**TIED, **config}) == tiny_encoder()


@pytest.mark.parametrize(
    ("change", "spec"),
    [
        ({"layer_norm_epsilon": 1e-3}, {"norm": NormSpec(1e-3)}),
        ({"use_sliding_window_attention": False}, {"windows": (None,) * 4}),
        ({"dropout": 0.2}, {"dropout": 0.2}),
        (
            {"query_head_dim_normalize": False},
            {"attention": dataclasses.replace(tiny_encoder().attention, query_pre_attn_scalar=12)},
        ),
    ],
)
def test_gemma_fields_reach_the_spec(change, spec):
    config = keras_hub.models.GemmaBackbone(**{**GEMMA2, **change}).get_config()
    assert gemma.from_keras_hub({**TIED, **config}) == tiny_encoder(**spec)


def test_gemma_refuses_one_post_norm_without_the_other():
    config = keras_hub.models.GemmaBackbone(**GEMMA2).get_config()
    with pytest.raises(ValueError, match=r"Expected use_post_ffw_norm=True.*Received: False"):
        gemma.from_keras_hub({**TIED, **config, "use_post_ffw_norm": False})


@pytest.mark.parametrize("windows", [(8, None), (None, None), (8, 8), (None, 8)])
def test_config_round_trip(windows):
    pair = tiny_pair(decoder=tiny_decoder(windows=windows, dropout=0.1, norm=NormSpec(1e-5)))
    config = json.loads(json.dumps(t5gemma.to_transformers(pair, "float32")))
    assert t5gemma.from_transformers(config) == pair


def test_config_round_trip_of_a_file_written_by_transformers():
    """Each field that both write is the same, so nothing they wrote is lost on the way."""
    theirs = hf_config()
    ours = t5gemma.to_transformers(t5gemma.from_transformers(theirs), "float32")
    free = {"max_position_embeddings"}
    for mine, other in [(ours, theirs), *((ours[s], theirs[s]) for s in ("encoder", "decoder"))]:
        both = mine.keys() & other.keys() - {"encoder", "decoder"} - free
        assert {k: mine[k] for k in both} == {k: other[k] for k in both}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_activation", "relu"),
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn"}),
    ],
)
def test_transformers_refusals_name_the_field(field, value):
    config = hf_config()
    config["decoder"][field] = value
    named = field.replace("rope_parameters", "rope_type")
    with pytest.raises(ValueError, match=f"Expected {named}=.*Received"):
        t5gemma.from_transformers(config)


def test_untied_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"Expected tie_word_embeddings.*Received"):
        t5gemma.from_transformers({**hf_config(), "tie_word_embeddings": False})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("hidden_activation", "relu"),
        ("tie_word_embeddings", False),
    ],
)
def test_keras_hub_refusals_name_the_field(field, value):
    config = keras_hub.models.T5GemmaBackbone(**T5GEMMA).get_config()
    with pytest.raises(ValueError, match=f"Expected {field}=.*Received"):
        t5gemma.from_keras_hub({**TIED, **config, field: value})


def without_positions(spec):
    return dataclasses.replace(spec, rotary=None)


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (tiny_pair(encoder_attention="causal"), "encoder_attention"),
        (tiny_pair(encoder=tiny_encoder(post_norm=False)), "post_norm"),
        (tiny_pair(encoder=tiny_encoder(activation="silu")), "activation"),
        (tiny_pair(encoder=tiny_encoder(norm=NormSpec(1e-6, False))), "norm"),
        (tiny_pair(decoder=tiny_decoder(tied_output=False)), "tied_output"),
        (tiny_pair(decoder=tiny_decoder(vocabulary_size=97)), "vocabulary_size"),
        (tiny_pair(cross_attention=CrossAttentionSpec(gate=True)), "cross_attention"),
        (tiny_pair(adaptor=AdaptorSpec(2)), "adaptor"),
        (tiny_pair(cross_attention=CrossAttentionSpec(rotary="continuous")), "cross_attention"),
        (tiny_pair(decoder=tiny_decoder(windows=(4, 8))), "one window size"),
        (tiny_pair(decoder=without_positions(tiny_decoder())), "rotary"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(pair, named):
    with pytest.raises(ValueError, match=rf"(?s)Expected .*{named}.*Received"):
        t5gemma.to_transformers(pair, "float32")
