"""Options stand in signatures, a misspelt one is named, and a plan comes before any weight."""

import dataclasses
import inspect
import pydoc

import keras_hub
import pytest

import keras_encdec
from keras_encdec.conversion.options import ConversionOptions
from keras_encdec.conversion.plan import make_plan
from keras_encdec.sharing import decoder_only
from keras_encdec.sharing.load import plan
from keras_encdec.testing.specs import other, tiny_decoder, tiny_encoder

DEFAULTS = {
    "cross_attention_init": "auto",
    "encoder_attention": "bidirectional",
    "expand_gqa": False,
    "decoder_layers": None,
    "merged_attention": False,
    "cross_attention_gate": "auto",
    "cross_attention_layers": None,
    "cross_attention_rotary": None,
    "tied_embeddings": False,
    "adaptor_groups": 1,
    "adaptor_projection": False,
}
FUNCTIONS = {
    "adapt": keras_encdec.adapt,
    "from_preset": keras_encdec.from_preset,
    "plan": plan,
    "make_plan": make_plan,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
SOURCE = "gemma2_tiny_docs"


@every_function
def test_they_stand_in_signature_and_help(function):
    parameters = inspect.signature(function).parameters
    found = {name: parameters[name].default for name in DEFAULTS}
    assert found == DEFAULTS
    assert all(parameters[name].kind == inspect.Parameter.KEYWORD_ONLY for name in DEFAULTS)
    assert "options" not in parameters
    text = pydoc.render_doc(function)
    assert all(f"        {name}: " in text for name in DEFAULTS)
    assert "{options}" not in text


def test_the_dataclass_is_where_they_are_from():
    assert dataclasses.asdict(ConversionOptions()) == DEFAULTS
    assert ConversionOptions(decoder_layers=range(0, 4, 2)).asked == ["decoder_layers"]
    assert hash(ConversionOptions(decoder_layers=[0, 2])) == hash(
        ConversionOptions(decoder_layers=(0, 2))
    )


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Weights and tokenizers, of files and of objects, that cannot be had."""

    def refuse(*args, **kwargs):
        raise AssertionError("a weight or a tokenizer was read")

    for kind in (decoder_only.InMemory, decoder_only.Preset, decoder_only.Folder):
        monkeypatch.setattr(kind, "source", refuse)
        monkeypatch.setattr(kind, "tokenizer", refuse)
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", refuse)


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cross_atention_gate", "cross_attention_gate"),
        ("decoder_layer", "decoder_layers"),
        ("expand_gpa", "expand_gqa"),
        ("tie_embeddings", "tied_embeddings"),
        ("dtyp", "dtype"),
    ],
)
@pytest.mark.parametrize("name_of_function", ["adapt", "from_preset"])
def test_a_misspelt_option_names_the_nearest(name_of_function, name, nearest):
    function = FUNCTIONS[name_of_function]
    message = rf"Expected a keyword of {name_of_function}\(\)\. Received: '{name}'\. .*{nearest!r}"
    with pytest.raises(TypeError, match=message):
        function(SOURCE, **{name: 1})


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cross_attention_init": "zero"}, "Expected cross_attention_init 'auto'"),
        ({"encoder_attention": "both"}, "Expected encoder_attention 'bidirectional' or 'causal'"),
        ({"cross_attention_gate": "yes"}, "Expected cross_attention_gate 'auto', True or False"),
        ({"cross_attention_rotary": True}, "Expected cross_attention_rotary 'continuous' or None"),
        ({"adaptor_groups": 0}, "Expected adaptor_groups of at least 1"),
        ({"adaptor_groups": 7}, "Expected groups of an adaptor from 1 to 6"),
        ({"adaptor_projection": 1}, "Expected adaptor_projection True or False"),
        ({"expand_gqa": "false"}, "Expected expand_gqa True or False"),
        ({"cross_attention_layers": 3}, "Expected cross_attention_layers as numbers"),
        ({"decoder_layers": ["first"]}, "Expected decoder_layers as numbers"),
        ({"decoder_layers": 9}, "Expected decoder_layers from 1 to 6"),
        ({"cross_attention_layers": [9]}, "in layers that there are"),
        ({"merged_attention": True, "cross_attention_gate": True}, "no gate where"),
        ({"dtype": "float31"}, "Expected a dtype or policy"),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(option, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received"):
        keras_encdec.adapt(SOURCE, **option)


@pytest.mark.usefixtures("nothing_is_read")
def test_two_that_do_not_fit_are_refused_before_a_weight_is_read():
    with pytest.raises(ValueError, match=r"Expected .*one width.*Received: 256 and 128"):
        keras_encdec.adapt(SOURCE, "gemma2_mini_docs", cross_attention_init="self_attention")


@pytest.mark.slow
@pytest.mark.parametrize("given", [SOURCE, "gemma2_tiny_tiny"])
def test_a_preset_takes_every_option(given):
    """`from_preset` converts where there is something to convert."""
    lm = keras_encdec.from_preset(
        given, preprocessor=None, decoder_layers=[1, 3], cross_attention_gate=True, chat=True
    )
    assert lm.backbone.spec.decoder.num_layers == 2
    assert lm.backbone.spec.cross_attention.gate


@pytest.mark.parametrize(
    ("decoder", "options", "gate"),
    [
        (tiny_encoder(), {}, False),
        (other(tiny_encoder()), {}, True),
        (other(tiny_encoder()), {"cross_attention_gate": False}, False),
        (tiny_encoder(), {"cross_attention_gate": True}, True),
        (other(tiny_encoder()), {"merged_attention": True}, False),
        (other(tiny_encoder()), {"cross_attention_layers": [1]}, True),
    ],
)
def test_a_gate_stands_where_no_post_norm_bounds(decoder, options, gate):
    """The decoder's blocks decide, whatever the encoder's are."""
    for encoder in (decoder, other(tiny_encoder()), tiny_encoder()):
        plan = make_plan(encoder, decoder, **options)
        assert plan.pair.cross_attention.gate is gate
        gates = {step.target for step in plan.fresh if "cross_attention_gate" in step.target}
        layers = options.get("cross_attention_layers", range(decoder.num_layers))
        expected = {f"decoder/block_{i}/cross_attention_gate/scale" for i in layers if gate}
        assert gates == expected


def test_ready_options_may_be_passed_and_changed():
    options = ConversionOptions(expand_gqa=True, cross_attention_gate=True)
    pair = make_plan(tiny_encoder(), tiny_decoder(), options=options, expand_gqa=False).pair
    assert pair.encoder == tiny_encoder()
    assert pair.cross_attention.gate
