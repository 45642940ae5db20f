"""Sinks of attention beside arithmetic in float64, on every path that takes them."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_encdec.layers import by_head, cache, fused, masks, splash, tokamax
from keras_encdec.layers.attention import attend, attend_cached
from keras_encdec.layers.masks import Limits
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.testing.gradients import differences, value_and_gradients
from keras_encdec.testing.models import assert_close, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="kernels of JAX")
SCALE = 0.7
MASK = np.array([[1] * 9 + [2] * 8 + [0] * 4, [0] * 3 + [1] * 16 + [0] * 2], "int32")
LIMITS = {"window": Limits(causal=True, window=4), "both ways": Limits()}
# Of six heads: of little weight, of about that of a key, and of nearly all.
SINKS = np.array([-6.0, -1.0, 0.0, 1.0, 3.0, 9.0], "float32")


def drawn(length=MASK.shape[1]):
    """Queries of six heads, keys and values of two, and the sinks."""
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, 12) for n in (6, 2, 2)]
    return [rng.normal(0, 1, shape).astype("float32") for shape in shapes] + [SINKS]


def by_hand(seen, query, key, value, sinks):
    """Row by row, head by head and query by query; `seen` is (B, T, S)."""
    query, key, value, sinks = map(np.float64, (query, key, value, sinks))
    output, group = np.zeros(query.shape), query.shape[2] // key.shape[2]
    for row, place, head in np.ndindex(query.shape[:3]):
        keys = np.flatnonzero(seen[row, place])
        logits = SCALE * key[row, keys, head // group] @ query[row, place, head]
        weights = np.exp(logits) / (np.exp(logits).sum() + np.exp(sinks[head]))
        output[row, place, head] = weights @ value[row, keys, head // group]
    return output


def visible_of(kind):
    return masks.self_attention(MASK, **LIMITS[kind]._asdict())


def attended(path, kind, arrays):
    """The output, and the gradients of all its squares, by the sinks too."""
    variables = [keras.Variable(array) for array in arrays]

    def output():
        *given, sinks = (ops.convert_to_tensor(v) for v in variables)
        rules = {"scale": SCALE, "limits": LIMITS[kind], "path": path}
        return attend(*given, visible_of(kind), sinks=sinks, **rules)

    gradients = value_and_gradients(lambda: ops.sum(ops.square(output())), variables)[1]
    return [to_numpy(output()), *gradients]


@pytest.mark.parametrize("kind", LIMITS)
def test_a_sink_takes_its_part_of_the_sum_and_gives_nothing(kind):
    arrays, seen = drawn(), to_numpy(masks.dense(visible_of(kind), MASK.shape[1])) > 0
    output, *_ = attended("plain", kind, arrays)
    assert_close(output, by_hand(seen, *arrays), 1e-5)
    assert not seen.any(-1).all()  # a query that sees nothing gives nothing
    unsunk = by_hand(seen, *arrays[:3], np.full(6, -np.inf))
    changed = np.abs(output - unsunk)[seen.any(-1)].max((0, -1))
    assert changed[0] < 0.1 < 1 < changed[5]


def test_gradients_are_differences():
    arrays = [np.float64(array[:1, 8:12]) for array in drawn()[:3]]
    seen, variables = np.tril(np.ones((1, 4, 4))), [keras.Variable(x) for x in (*arrays, SINKS)]
    visible = masks.self_attention(np.ones((1, 4)), causal=True)

    def squares():
        *given, sinks = (ops.convert_to_tensor(v) for v in variables)
        return ops.sum(ops.square(attend(*given, visible, scale=SCALE, sinks=sinks)))

    _, found = value_and_gradients(squares, variables)
    arrays.append(np.float64(SINKS))
    expected = differences(lambda *some: (by_hand(seen, *some) ** 2).sum(), arrays)
    for gradient, value in zip(found, expected, strict=True):
        assert np.abs(value).max() > 0.1
        assert_close(gradient, value, 1e-4)


@on_jax
@pytest.mark.parametrize("path", ["xla_by_head", "xla_chunked", "splash"])
@pytest.mark.parametrize("kind", LIMITS)
def test_kernels_give_the_numbers_of_the_plain_path(path, kind, monkeypatch):
    monkeypatch.setattr(tokamax, "_BLOCK", 8)
    monkeypatch.setattr(by_head, "_LOGITS", 3 * 5 * MASK.shape[1])
    monkeypatch.setattr(splash, "_BLOCK", 128)
    monkeypatch.setitem(fused._KERNELS["jax"], "splash", None)
    expected, found = (attended(p, kind, drawn()) for p in ("plain", path))
    for array, value in zip(found, expected, strict=True):
        scale = np.abs(value).max()
        assert scale > 0.1
        assert_close(array / scale, value / scale)


def test_parts_share_one_sink():
    """As if the keys of a cache and of these tokens stood in a row; of three rows for each."""
    query, key, value, sinks = drawn()
    query = np.concatenate([query, 1 + query, -query])[[0, 2, 4, 1, 3, 5]][:, :3]
    cut = [[x[:, :5] for x in (key, value)], [x[:, 5:9] for x in (key, value)]]
    seen = [np.ones((1, 3, 5), bool), np.tril(np.ones((1, 3, 4), bool))]
    parts = [(*cache.keep(kv), ops.convert_to_tensor(s)) for kv, s in zip(cut, seen, strict=True)]
    found = to_numpy(attend_cached(query, *parts, scale=SCALE, sinks=sinks))
    rows = np.repeat([0, 1], 3)
    every = np.broadcast_to(np.concatenate(seen, -1), (6, 3, 9))
    assert_close(found, by_hand(every, query, key[rows, :9], value[rows, :9], sinks), 1e-5)


def with_sinks(spec, soft_cap=None):
    attention = dataclasses.replace(spec.attention, sinks=True, logit_soft_cap=soft_cap)
    return dataclasses.replace(spec, attention=attention)


@pytest.mark.parametrize("name", fused.KERNELS)
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_kernel_takes_sinks_or_is_refused_with_the_reason(name, platform, monkeypatch):
    monkeypatch.setattr(fused.layout, "platform", lambda: platform)
    sides = with_sinks(tiny_encoder()), with_sinks(tiny_decoder())
    backbone = tiny_backbone(tiny_pair(encoder=sides[0], decoder=sides[1]))
    here = fused._KERNELS.get(keras.backend.backend(), {})
    if name in here and here[name] in (None, platform) and name not in fused._WITHOUT_SINKS:
        backbone.attention = name
        assert backbone.attention == name
        return
    reason = "takes no sinks" if name in here and here[name] in (None, platform) else ""
    with pytest.raises(ValueError, match=f"Received: '{name}' .*{reason}.*'auto'"):
        backbone.attention = name
    backbone.attention = "auto"


@on_jax
def test_a_cap_beside_sinks_is_not_for_every_kernel():
    decoder = with_sinks(tiny_decoder(), soft_cap=5.0)
    backbone = tiny_backbone(tiny_pair(encoder=with_sinks(tiny_encoder()), decoder=decoder))
    with pytest.raises(ValueError, match="'xla_chunked' takes no sinks beside a soft cap"):
        backbone.attention = "xla_chunked"
    backbone.attention = "xla_by_head"


@pytest.mark.parametrize("field", ["sinks", "output_bias"])
def test_what_a_pair_cannot_be_written_with_is_named(field, tmp_path):
    encoder = tiny_encoder()
    encoder = dataclasses.replace(
        encoder, attention=dataclasses.replace(encoder.attention, **{field: True})
    )
    lm = EncDecSeq2SeqLM(tiny_backbone(tiny_pair(encoder=encoder)))
    with pytest.raises(ValueError, match=f"Expected attention.{field}=False, all that the T5Gemma"):
        lm.export_to_transformers(tmp_path / "pair")
