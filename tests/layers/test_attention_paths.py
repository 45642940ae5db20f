"""Every path of attention gives the numbers of the plain one, and takes the memory it says."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_encdec.layers import by_head, cache, choice, fused, masks, tokamax
from keras_encdec.layers.attention import Attention, attend
from keras_encdec.layers.decoder import Decoder
from keras_encdec.layers.encoder import Encoder
from keras_encdec.spec import CrossAttentionSpec
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import (
    assert_close,
    make_inputs,
    tiny_backbone,
    tiny_lm,
    to_numpy,
)
from keras_encdec.testing.specs import later, sunk, tiny_decoder, tiny_encoder, tiny_pair, uneven

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="Tokamax is for JAX")
CAPS = [None, 5.0]
# Under which caps each backend fuses.
FUSED = {"jax": CAPS, "torch": [None], "tensorflow": []}[keras.backend.backend()]
PATHS = ["fused", *(["xla_chunked"] if keras.backend.backend() == "jax" else [])]


def lengths_mask(length, *runs):
    """(B, length): rows with their tokens at `start, end` pairs, each pair a segment."""
    mask = np.zeros((len(runs), length), "int32")
    for row, cuts in zip(mask, runs, strict=True):
        for number, (start, end) in enumerate(zip(cuts[::2], cuts[1::2], strict=True), start=1):
            row[start:end] = number
    return mask


# Whole rows, padding on either side and on both, several segments, and nothing at all.
KEYS = lengths_mask(45, (0, 45), (0, 30), (9, 45), (4, 20, 20, 21, 24, 43), ())
QUERIES = lengths_mask(37, (0, 37), (5, 37), (0, 11), (3, 9, 9, 33), (0, 37))
VISIBLE = {
    "causal": masks.self_attention(KEYS, causal=True),
    "causal, window": masks.self_attention(KEYS, causal=True, window=7),
    "both sides, window": masks.self_attention(KEYS, causal=False, window=7),
    "cross": masks.cross_attention(KEYS, QUERIES),
    "cross, one segment": masks.cross_attention(np.minimum(KEYS, 1)),
}
HEADS = {"grouped": (6, 2), "one for all": (3, 1), "own": (2, 2)}


def qkv(queries, keys, heads=(6, 2), rows=5):
    """Variables of heads that are 12 wide, large enough for the cap to bite."""
    n, k = heads
    rng = np.random.default_rng(0)
    shapes = ((rows, queries, n, 12), (rows, keys, k, 12), (rows, keys, k, 12))
    return [keras.Variable(rng.normal(0, 1.5, shape).astype("float32")) for shape in shapes]


def value_and_output_gradients(path, variables, visible, soft_cap):
    """The output, and the gradients of all its squares."""
    spec = {"scale": 0.7, "soft_cap": soft_cap, "path": path}

    def output():
        return attend(*(ops.convert_to_tensor(v) for v in variables), visible, **spec)

    gradients = value_and_gradients(lambda: ops.sum(ops.square(output())), variables)[1]
    return to_numpy(output()), gradients


def assert_paths_equal(variables, visible, soft_cap, path="fused"):
    expected = value_and_output_gradients("plain", variables, visible, soft_cap)
    found = value_and_output_gradients(path, variables, visible, soft_cap)
    assert_close(found[0], expected[0])
    for gradient, reference in zip(found[1], expected[1], strict=True):
        assert np.isfinite(reference).all()
        assert np.abs(reference).max() > 0.1
        assert_close(gradient / np.abs(reference).max(), reference / np.abs(reference).max())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("soft_cap", FUSED)
@pytest.mark.parametrize("kind", VISIBLE)
def test_fused_equals_plain(kind, soft_cap, path, monkeypatch):
    monkeypatch.setattr(tokamax, "_BLOCK", 16)
    monkeypatch.setattr(by_head, "_LOGITS", 16 * 3 * KEYS.shape[1])
    queries = QUERIES.shape[1] if "cross" in kind else KEYS.shape[1]
    variables = qkv(queries, KEYS.shape[1])
    output, gradients = assert_paths_equal(variables, VISIBLE[kind], soft_cap, path)
    unseen = ops.convert_to_numpy(VISIBLE[kind].end <= VISIBLE[kind].start)
    assert unseen.any()
    unseen = np.broadcast_to(unseen, output.shape[:2])
    assert not output[unseen].any()
    assert not gradients[0][unseen].any()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("soft_cap", FUSED[:1])
@pytest.mark.parametrize("heads", HEADS)
def test_fused_equals_plain_for_all_groupings(heads, soft_cap, path):
    assert_paths_equal(qkv(45, 45, HEADS[heads]), VISIBLE["causal, window"], soft_cap, path)


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize("path", PATHS)
def test_fused_equals_plain_over_several_chunks(path, monkeypatch):
    """Longer than a block of queries and Tokamax's 1024 keys, and no multiple of either."""
    mask = lengths_mask(1100, (3, 1090))
    visible = masks.self_attention(mask, causal=True, window=700)
    visible = masks.KeyRange(visible.start[:, 500:1030], visible.end[:, 500:1030])
    monkeypatch.setattr(by_head, "_LOGITS", 2**18)
    assert_paths_equal(qkv(530, 1100, (2, 1), rows=1), visible, 5.0, path)


@pytest.mark.slow
def test_auto_is_fused_where_texts_are_long(monkeypatch):
    called = []
    monkeypatch.setattr(fused, "attend", lambda *args: called.append(args[2].shape[1]) or args[2])
    for queries, keys in ((64, 64), (511, 512), (512, 512), (1, 2**18)):
        visible = masks.cross_attention(np.ones((1, keys), "int32"))
        tensors = [ops.convert_to_tensor(v) for v in qkv(queries, keys, (1, 1), rows=1)]
        attend(*tensors, visible, scale=1.0)
    assert called == ([512, 1] if None in FUSED else [])


REFUSAL = r"Expected attention that can be fused\. Received: 'fused' .*'auto'.*or to 'plain'"


@pytest.mark.parametrize("soft_cap", CAPS)
def test_fused_is_refused_where_nothing_fuses_and_auto_is_plain(soft_cap):
    visible = masks.cross_attention(np.ones((1, 512), "int32"))
    tensors = [ops.convert_to_tensor(v) for v in qkv(512, 512, (1, 1), rows=1)]
    spec = {"scale": 1.0, "soft_cap": soft_cap}
    encoder = Encoder(with_cap(tiny_encoder(), soft_cap))
    if soft_cap in FUSED:
        encoder.attention = "fused"
        assert encoder.attention == "fused"
        return
    with pytest.raises(ValueError, match=REFUSAL):
        attend(*tensors, visible, **spec, path="fused")
    with pytest.raises(ValueError, match=REFUSAL):
        encoder.attention = "fused"
    assert encoder.attention == "auto"
    found, plain = (attend(*tensors, visible, **spec, path=path) for path in ("auto", "plain"))
    np.testing.assert_array_equal(to_numpy(found), to_numpy(plain))


def with_cap(spec, soft_cap):
    attention = dataclasses.replace(spec.attention, logit_soft_cap=soft_cap)
    return dataclasses.replace(spec, attention=attention)


@pytest.mark.parametrize("layers", [None, (0,)])
def test_merged_attention_is_never_fused(layers):
    merged = CrossAttentionSpec(merged=True, layers=layers)
    decoder = Decoder(with_cap(tiny_encoder(), None), 48, merged)
    decoder.attention = "plain"
    with pytest.raises(ValueError, match="'fused' of merged attention"):
        decoder.attention = "fused"
    assert decoder.attention == "plain"
    layer = Attention(with_cap(tiny_encoder(), None).attention)
    x, every = ops.ones((1, 4, 48)), masks.self_attention(ops.ones((1, 4)), causal=False)
    layer.build(x.shape)
    kept = cache.keep(layer.keys_and_values(x))
    with pytest.raises(ValueError, match="'fused' of merged attention"):
        layer(x, every, also=[(*kept, every)], path="fused")


def test_a_pair_that_is_refused_keeps_its_setting():
    pair = tiny_pair(decoder=tiny_encoder(), cross_attention=CrossAttentionSpec(merged=True))
    backbone = tiny_backbone(pair)
    with pytest.raises(ValueError, match="Received: 'fused'"):
        backbone.attention = "fused"
    assert backbone.encoder.attention == backbone.decoder.attention == "auto"


@pytest.mark.slow
@on_jax
def test_without_tokamax(monkeypatch):
    monkeypatch.setattr(tokamax, "is_installed", lambda: False)
    tensors = [ops.convert_to_tensor(v) for v in qkv(512, 512, (1, 1), rows=1)]
    arguments = (*tensors, masks.cross_attention(np.ones((1, 512))))
    with pytest.raises(ValueError, match=r'pip install "keras-encdec\[jax\]"'):
        attend(*arguments, scale=1.0, path="xla_chunked")
    with pytest.raises(ValueError, match=r"Received: '.*Tokamax's, which is not installed"):
        tiny_backbone().attention = "xla_chunked"
    expected = attend(*arguments, scale=1.0, path="xla_by_head")
    np.testing.assert_array_equal(attend(*arguments, scale=1.0, path="auto"), expected)
    monkeypatch.setattr(fused.layout, "platform", lambda: "gpu")
    found = attend(*arguments, scale=1.0, path="auto")
    np.testing.assert_array_equal(found, attend(*arguments, scale=1.0, path="plain"))


@on_jax
def test_arguments_of_the_program_are_its_own(monkeypatch):
    """Tokamax asks absl's flags, which would parse the command line of any script."""
    from absl import flags

    flags.FLAGS.unparse_flags()
    monkeypatch.setattr("sys.argv", ["train.py", "--rate", "0.1"])
    fused._refusal.cache_clear()
    tensors = [ops.convert_to_tensor(v) for v in qkv(4, 4, (1, 1), rows=1)]
    attend(*tensors, masks.cross_attention(np.ones((1, 4))), scale=1.0, path="xla_chunked")


@pytest.mark.parametrize("name", fused.KERNELS)
def test_a_kernel_is_taken_by_its_name_or_refused_with_the_reason(name):
    """On a machine without GPU and TPU."""
    backbone = tiny_backbone()
    there = {"jax": ("xla_by_head", "xla_chunked")}.get(keras.backend.backend(), ())
    if name in there:
        backbone.attention = name
        assert backbone.attention == name
        return
    reason = {
        ("jax", "mosaic_gpu"): "runs on gpu, and this is cpu",
        ("jax", "triton"): "runs on gpu, and this is cpu",
        ("jax", "splash"): "runs on tpu, and this is cpu",
        ("torch", "sdpa"): r"takes no soft cap, and here it is 5\.0",
    }.get((keras.backend.backend(), name), f"is for .*, and this is {keras.backend.backend()}")
    with pytest.raises(ValueError, match=f"Received: '{name}' {reason}.*or to 'plain'"):
        backbone.attention = name
    assert backbone.attention == "auto"


def test_what_auto_takes_is_logged_once(caplog):
    choice._log.cache_clear()
    tensors = [ops.convert_to_tensor(v) for v in qkv(512, 512, (1, 1), rows=1)]
    short = [x[:, :4] for x in tensors]
    with caplog.at_level("INFO", logger="keras_encdec"):
        for _ in range(2):
            attend(*tensors, masks.cross_attention(np.ones((1, 512))), scale=1.0)
            attend(*short, masks.cross_attention(np.ones((1, 4))), scale=1.0)
            attend(*short, masks.cross_attention(np.ones((1, 4))), scale=1.0, path="plain")
    long, short = (record.getMessage() for record in caplog.records)
    taken = {"jax": "xla_by_head", "torch": "sdpa", "tensorflow": "plain"}[keras.backend.backend()]
    assert long.startswith(f"Attention by 'auto': {taken}")
    assert ("mosaic_gpu runs on gpu, and this is cpu" in long) == (taken == "xla_by_head")
    assert short == (
        "Attention by 'auto': plain, not faster ones (fused pays from 262144 pairs of query and "
        "key on)."
    )


@on_jax
def test_what_a_gpu_does_not_get_is_a_warning(monkeypatch, caplog):
    choice._log.cache_clear()
    monkeypatch.setattr(fused.layout, "platform", lambda: "gpu")
    monkeypatch.setattr(fused, "_refusal", lambda name, *args: "no" if "_" not in name else None)
    problem = fused.Problem((1, 512, 1, 2), (1, 512, 1, 2), "float32", 1.0, None, None)
    choice.choose("auto", problem)
    assert [record.levelname for record in caplog.records] == []  # a kernel, for info
    monkeypatch.setattr(
        fused, "_refusal", lambda name, *args: None if name == "xla_chunked" else "refuses: no cap"
    )
    choice.choose("auto", problem)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "triton refuses: no cap" in caplog.text


@on_jax
def test_a_kernel_without_a_gradient_gives_way(monkeypatch):
    """As Triton's does under a soft cap, which it refuses in the backward pass alone."""
    import jax

    def kernel(backward):
        kernel = jax.custom_vjp(lambda query, *rest: query)
        kernel.defvjp(lambda query, *rest: (query, rest), backward)
        return kernel

    def refuse(*args):
        raise NotImplementedError("no cap")

    def broken(*args):
        raise TypeError("Mesh.__init__() got an unexpected keyword argument 'out_shape'")

    kernels = {
        "mosaic_gpu": kernel(refuse),
        "triton": kernel(lambda rest, upstream: (upstream, *rest)),
        "xla_chunked": kernel(None),
    }
    monkeypatch.setattr(tokamax, "kernel", lambda name, **spec: kernels[name])
    monkeypatch.setattr(fused.layout, "platform", lambda: "gpu")
    monkeypatch.setattr(fused, "_refusal", fused._refusal.__wrapped__)  # without its memory
    problem = fused.Problem((1, 4, 1, 2), (1, 4, 1, 2), "float32", 1.0, None, None)
    assert fused.choose("fused", problem) == ("triton", (("mosaic_gpu", "refuses: no cap"),))
    assert fused.choose("mosaic_gpu", problem) == (None, (("mosaic_gpu", "refuses: no cap"),))
    with pytest.raises(ValueError, match=r"Received: 'mosaic_gpu' refuses: no cap\. Set it to"):
        choice.choose("mosaic_gpu", problem)

    kernels["mosaic_gpu"] = broken  # as those of a Tokamax that is older than JAX
    with pytest.warns(UserWarning, match="'mosaic_gpu' does not work with JAX .*out_shape"):
        assert fused.choose("fused", problem)[0] == "triton"


@on_jax
def test_tokamax_says_nothing_of_its_tuning(monkeypatch, caplog):
    from absl import logging

    def implementation(query, key, value, **spec):
        logging.warning("Autotuning cache miss for %s on %s with key %s", "a", "b", "c")
        logging.warning("Something else.")
        return query

    found = {"triton": implementation}, lambda **spec: None
    monkeypatch.setattr(tokamax, "tokamax_attention", lambda: found)
    tensors = [ops.convert_to_tensor(v) for v in qkv(4, 4, (1, 1), rows=1)]
    for _ in range(2):
        visible = masks.KeyRange(*np.zeros((2, 1, 4), "int32"))
        tokamax.kernel("triton", scale=1.0, soft_cap=None)(*tensors, visible)
    assert [record.getMessage() for record in caplog.records] == ["Something else."] * 2
    filters = logging.get_absl_logger().filters
    assert filters.count(tokamax._says_more_than_tuning) == 1


@on_jax
def test_tokamax_kernels_fill_up_tiles():
    def kernel(query, key, value, visible, sinks):
        assert query.shape[1] == visible.start.shape[1] == visible.end.shape[1] == 256
        assert key.shape[1] == value.shape[1] == 512
        return query

    query, key = np.ones((1, 200, 1, 2)), np.ones((1, 300, 1, 2))
    visible = masks.KeyRange(*np.zeros((2, 1, 200)))
    output = tokamax._aligned(kernel)(query, key, key, visible)
    assert output.shape == query.shape


def temporary_bytes(path, length):
    """What XLA sets aside for the gradient of one attention."""
    import jax

    def loss(query, key, value, visible):
        return ops.sum(ops.square(attend(query, key, value, visible, scale=1.0, path=path)))

    shape = jax.ShapeDtypeStruct((1, length, 2, 16), "float32")
    interval = jax.ShapeDtypeStruct((1, length), "int32")
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = gradient.lower(shape, shape, shape, masks.KeyRange(interval, interval))
    return lowered.compile().memory_analysis().temp_size_in_bytes


@on_jax
def test_memory_grows_with_the_length_not_its_square():
    assert temporary_bytes("plain", 4096) / temporary_bytes("plain", 1024) > 14
    assert temporary_bytes("fused", 4096) / temporary_bytes("fused", 1024) < 5


def packed_inputs():
    """Three examples that share a row, the second of them alone, and one of a lone token."""
    inputs = make_inputs(source=(20, 20, 20), target=(16, 16, 16))
    masks = {
        "encoder": lengths_mask(20, (0, 7, 7, 18, 18, 19), (0, 11), (0, 1)),
        "decoder": lengths_mask(16, (0, 5, 5, 14, 14, 15), (0, 9), (0, 16)),
    }
    for side, start, end in (("encoder", 7, 18), ("decoder", 5, 14)):
        inputs[f"{side}_padding_mask"] = masks[side]
        tokens = inputs[f"{side}_token_ids"]
        tokens[1, : end - start] = tokens[0, start:end]
    return inputs


def logits_and_gradients(backbone, inputs):
    """Logits at tokens, and the gradient of their squares by each weight."""
    real = ops.cast(inputs["decoder_padding_mask"][..., None] > 0, "float32")

    def logits(outputs):
        states = ops.convert_to_tensor(outputs["decoder_sequence_output"])
        return backbone.decoder.logits(states) * real

    def loss():
        return ops.sum(ops.square(logits(backbone(inputs, training=True))))

    backbone.compile()
    found = to_numpy(logits(backbone.predict_on_batch(inputs)))
    return [found, *value_and_gradients(loss, backbone.trainable_variables)[1]]


@pytest.fixture(scope="module", params=[*CAPS, "later", "uneven", "sunk"])
def reference(request):
    depth = 2 if request.param == "uneven" else 1
    encoder, decoder = tiny_encoder(windows=(8,) * depth), tiny_decoder(windows=(6,) * depth)
    pair = tiny_pair(encoder=encoder, decoder=decoder)
    cap = None if isinstance(request.param, str) else request.param
    sides = {side: with_cap(getattr(pair, side), cap) for side in ("encoder", "decoder")}
    if request.param == "later":
        sides = {side: later(spec, 10) for side, spec in sides.items()}
    if request.param == "uneven":
        sides = {side: uneven(spec, borrowing_layers=1) for side, spec in sides.items()}
    if request.param == "sunk":
        sides = {side: sunk(spec) for side, spec in sides.items()}
    backbone, inputs = tiny_backbone(dataclasses.replace(pair, **sides)), packed_inputs()
    backbone.attention = "plain"
    return backbone, inputs, logits_and_gradients(backbone, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "remat"), [("plain", True), ("fused", True)])
def test_settings_change_no_number_of_a_model(reference, path, remat):
    backbone, inputs, expected = reference
    spec = backbone.spec.encoder.attentions[0]
    if path == "fused" and fused.obstacle(path, spec.logit_soft_cap, spec.sinks):
        pytest.skip("refused, as tested above")
    backbone.attention, backbone.remat = path, remat
    found = logits_and_gradients(backbone, inputs)
    for array, value in zip(found, expected, strict=True):
        scale = np.abs(value).max()
        assert_close(array / scale, value / scale)
    assert_close(found[0][0, 5:14], found[0][1, :9])  # packed as alone


def trained_weights(remat):
    """Weights after two steps of `fit` with dropout."""
    keras.utils.set_random_seed(0)
    changes = {"windows": (8,), "dropout": 0.3}
    lm = tiny_lm(pair=tiny_pair(encoder=tiny_encoder(**changes), decoder=tiny_decoder(**changes)))
    lm.compile(keras.optimizers.SGD(0.1))
    lm.backbone.remat = remat
    inputs = make_inputs()
    labels, weights = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    lm.fit(inputs, labels, sample_weight=weights, epochs=2, verbose=0)
    return {weight.path: to_numpy(weight) for weight in lm.weights}


@pytest.mark.slow
def test_remat_drops_out_the_same():
    plain, again = trained_weights(remat=False), trained_weights(remat=True)
    for name, weight in plain.items():
        assert_close(again[name], weight, 1e-6)


@pytest.mark.parametrize(("setting", "value"), [("attention", "flash"), ("remat", "yes")])
def test_a_setting_that_is_none(setting, value):
    backbone = tiny_backbone()
    with pytest.raises(ValueError, match=f"Expected {setting} .* Received: {value!r}"):
        setattr(backbone, setting, value)
