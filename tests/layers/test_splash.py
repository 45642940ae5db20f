"""Splash attention, interpreted on a CPU, gives the numbers of the plain path."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_encdec.layers import attention, choice, fused, masks, splash
from keras_encdec.layers.masks import Limits
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import assert_close, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="Splash is JAX's")

T, S = 150, 300  # no multiples of a tile, and of unlike numbers of them


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Taken on a CPU, too, in its smallest tiles."""
    monkeypatch.setitem(fused._KERNELS["jax"], "splash", None)
    monkeypatch.setattr(splash, "_BLOCK", 128)


def rows(length, *cuts):
    """(B, length): rows with their tokens at `start, end` pairs, each pair a segment."""
    mask = np.zeros((len(cuts), length), "int32")
    for row, ends in zip(mask, cuts, strict=True):
        for number, (start, end) in enumerate(zip(ends[::2], ends[1::2], strict=True), start=1):
            row[start:end] = number
    return mask


# A whole row, padding on both ends and between segments, and inside of one.
KEYS = rows(S, (0, S), (20, 140, 145, 260))
KEYS[1, 200:210] = 0
# The last segment has no keys; there is padding on both ends.
QUERIES = rows(T, (0, T), (9, 80, 80, 120, 120, 140))
LIMITS = {
    "causal": Limits(causal=True),
    "causal, window": Limits(causal=True, window=40),
    "window": Limits(window=40),
    "uneven window": Limits(window=(30, 140)),
    "all": Limits(),
    "cross": Limits(),
}


def key_range(kind):
    if kind == "cross":
        return masks.cross_attention(KEYS, QUERIES)
    return masks.self_attention(KEYS, **LIMITS[kind]._asdict())


def drawn(queries, heads=(4, 2), width=12):
    rng = np.random.default_rng(0)
    shapes = [
        (2, length, n, width) for length, n in zip((queries, S, S), (*heads, heads[1]), strict=True)
    ]
    return [keras.Variable(rng.normal(0, 1.5, shape).astype("float32")) for shape in shapes]


def attended(path, variables, visible, limits, soft_cap):
    """The output, and the gradients of all its squares."""

    def output():
        rules = {"scale": 0.7 * variables[0].shape[-1] ** -0.5, "soft_cap": soft_cap}
        given = [variable.value for variable in variables]
        return attention.attend(*given, visible, **rules, limits=limits, path=path)

    gradients = value_and_gradients(lambda: (output() ** 2).sum(), variables)[1]
    return [to_numpy(output()), *gradients]


def assert_plain(variables, kind, soft_cap=2.0):
    visible, limits = key_range(kind), LIMITS[kind]
    expected = attended("plain", variables, visible, limits, soft_cap)
    found = attended("splash", variables, visible, limits, soft_cap)
    for array, value in zip(found, expected, strict=True):
        scale = np.abs(value).max()
        assert scale > 0.1
        assert_close(array / scale, value / scale)
    unseen = to_numpy(visible.end <= visible.start) > 0
    assert unseen.any()
    assert not found[0][unseen].any()
    assert not found[1][unseen].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal, window", "cross"])
def test_splash_equals_plain(kind):
    assert_plain(drawn(T if kind == "cross" else S), kind)


@pytest.mark.slow
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("kind", LIMITS)
def test_splash_equals_plain_for_every_mask(kind, soft_cap):
    assert_plain(drawn(T if kind == "cross" else S), kind, soft_cap)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "width"), [((3, 1), 12), ((2, 2), 128), ((4, 2), 256)])
def test_splash_equals_plain_for_all_groupings_and_widths(heads, width):
    assert_plain(drawn(S, heads, width), "causal, window")


@pytest.mark.slow
def test_masks_say_the_same_as_key_ranges():
    """What Splash computes of limits and segments, in booleans."""
    for kind, limits in LIMITS.items():
        visible = key_range(kind)
        queries, keys = visible.segments
        segments = np.asarray(queries)[:, :, None] == np.asarray(splash._runs(keys))[:, None]
        shape = segments.shape[1:]
        static = splash._mask(limits, shape)[0 : shape[0], 0 : shape[1]]
        found = segments & static & (np.asarray(queries) > 0)[:, :, None]
        np.testing.assert_array_equal(found, masks.dense(visible, S), err_msg=kind)


def test_tiles_that_nobody_sees_are_left_out_and_no_mask_is_held():
    tiles = {}
    for kind in ("causal", "causal, window", "all"):
        made = splash._splash(LIMITS[kind], 2, (1024, 1024), (128, 128), None, True)
        for info in (made.fwd_mask_info, made.dq_mask_info, made.dkv_mask_info):
            assert info.partial_mask_blocks is None
        info = made.fwd_mask_info
        tiles[kind] = 64 if info.block_mask is None else int((info.block_mask > 0).sum())
    assert tiles == {"causal": 36, "causal, window": 15, "all": 64}  # of 8 x 8


@pytest.mark.parametrize(("length", "tile"), [(1, 128), (300, 384), (512, 512), (520, 384)])
def test_lengths_are_filled_up_by_less_than_a_tile_of_128_for_each(monkeypatch, length, tile):
    monkeypatch.setattr(splash, "_BLOCK", 512)
    assert splash._tile(length) == tile
    count = -(-length // tile)
    assert count * tile - length < 128 * count


@pytest.mark.parametrize("kind", ["causal, window", "cross"])
def test_it_is_lowered_for_a_tpu_forward_and_backward(kind, monkeypatch):
    """Gemma 2's heads: three kernels, and no array of queries by keys."""
    import jax

    monkeypatch.setattr(splash, "_BLOCK", 512)
    kernel = splash.kernel(scale=1.0, soft_cap=50.0, limits=LIMITS[kind], interpret=False)
    queries, keys = (1100, 1100) if kind != "cross" else (700, 1100)

    def loss(query, key, value, visible):
        return kernel(query, key, value, visible).astype("float32").sum()

    shapes = [(2, queries, 8, 256), (2, keys, 4, 256), (2, keys, 4, 256)]
    inputs = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
    each, seen = (jax.ShapeDtypeStruct((2, n), "int32") for n in (queries, keys))
    visible = masks.KeyRange(each, each, masks.Segments(each, seen))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs, visible)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3
    assert "1152x1152" not in text  # filled up
    assert "768x1152" not in text


def test_without_the_limits_it_gives_way():
    shape = (1, 512, 1, 128)
    problem = fused.Problem(shape, shape, "float32", 1.0, None, limits=None)
    assert fused.choose("splash", problem)[1][0][1].startswith("needs the limits and segments")
    assert choice.find("auto", problem).path == "xla_by_head"
    assert choice.find("auto", problem._replace(limits=Limits())).path == "splash"


def test_on_a_cpu_it_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="Received: 'splash' runs on tpu, and this is cpu"):
        tiny_backbone().attention = "splash"


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_model_takes_it_in_every_attention(remat):
    """Packed rows and padding; windows shorter than the text."""
    sides = tiny_encoder(windows=(8, None)), tiny_decoder(windows=(6, None))
    backbone = tiny_backbone(dataclasses.replace(tiny_pair(), encoder=sides[0], decoder=sides[1]))
    inputs = make_inputs(source=(20, 20), target=(16, 16))
    inputs["encoder_padding_mask"] = rows(20, (0, 7, 7, 18), (2, 11))
    inputs["decoder_padding_mask"] = rows(16, (0, 5, 5, 14), (1, 9))
    real = (inputs["decoder_padding_mask"] > 0)[..., None]

    def loss():
        states = backbone(inputs, training=True)["decoder_sequence_output"]
        return ((states * real) ** 2).sum()

    backbone.remat, found = remat, {}
    for path in ("plain", "splash"):
        backbone.attention = path
        found[path] = value_and_gradients(loss, backbone.trainable_variables)
    assert found["splash"][0] == pytest.approx(found["plain"][0], rel=1e-6)
    for array, value in zip(found["splash"][1], found["plain"][1], strict=True):
        assert_close(array / np.abs(value).max(), value / np.abs(value).max())
