"""Cross-attention with rotary positions: a target goes on where its input ends.

What a decoder computes is held to NumPy in float64, which knows positions by counting tokens.
"""

import numpy as np
import pytest

from keras_encdec.layers import masks
from keras_encdec.layers.rotary import timescales
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.spec import CrossAttentionSpec
from keras_encdec.testing.models import assert_close, make_inputs, run, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_encoder, tiny_pair

STACK = tiny_encoder(windows=(6,))  # one layer
# Segments with padding before, behind and between them, the second of one token in the input.
SOURCE = np.array([[0, 1, 1, 1, 1, 1, 0, 2, 3, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
TARGET = np.array([[1] * 8 + [0] + [2] * 3 + [3] * 7, [0] * 3 + [1] * 16])
WAYS = {"separate": False, "merged": True}


def pair(merged=False):
    cross_attention = CrossAttentionSpec(merged=merged, rotary="continuous")
    return tiny_pair(encoder=STACK, decoder=STACK, cross_attention=cross_attention)


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def backbone(request):
    return tiny_backbone(pair(request.param))


class Reference:
    """The decoder's one layer in float64, of one text and its target."""

    def __init__(self, decoder):
        own = decoder.path + "/"
        self.weights = {
            w.path.removeprefix(own): np.asarray(to_numpy(w), "float64") for w in decoder.weights
        }
        self.spec, self.merged = decoder.spec, decoder.blocks[0].merged

    def kernel(self, name):
        return self.weights[f"block_0/{name}/kernel"]

    def norm(self, name, x):
        scale = 1 + self.weights[f"{name}_norm/scale"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def turned(self, x, first):
        """(T, N, H) whose first token stands at `first`."""
        angle = (first + np.arange(len(x)))[:, None, None] / timescales(
            self.spec.rotaries[0], x.shape[-1]
        )
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
        )

    def keys_values(self, sublayer, x, first):
        key, value = (
            np.einsum("sd,dkh->skh", x, self.kernel(f"{sublayer}/{n}")) for n in ("key", "value")
        )
        return self.turned(key, first), value

    def attention(self, sublayer, x, first, keys_values, seen):
        query = self.turned(np.einsum("td,dnh->tnh", x, self.kernel(f"{sublayer}/query")), first)
        heads = self.spec.attention
        each = heads.num_heads // heads.num_kv_heads
        key, value = (np.repeat(part, each, axis=1) for part in keys_values)
        logits = np.einsum("tnh,snh->nts", query, key) * heads.query_scale
        logits = heads.logit_soft_cap * np.tanh(logits / heads.logit_soft_cap)
        weights = np.where(seen, np.exp(logits), 0)
        weights /= weights.sum(-1, keepdims=True)
        output = np.einsum("nts,snh->tnh", weights, value)
        return np.einsum("tnh,nhd->td", output, self.kernel(f"{sublayer}/attention_output"))

    def __call__(self, ids, states):
        count, before = len(ids), len(states)
        x = self.weights["embedding/embeddings"][ids] * self.spec.width**0.5
        distance = np.arange(count)[:, None] - np.arange(count)
        seen = (distance >= 0) & (distance < self.spec.windows[0])
        y = self.norm("block_0/pre_attention", x)
        first = before if self.merged else 0  # alone, self-attention knows differences only
        keys_values = self.keys_values("attention", y, first)
        if self.merged:
            context = self.keys_values("attention", states, 0)
            keys_values = [np.concatenate(two) for two in zip(keys_values, context, strict=True)]
            seen = np.concatenate([seen, np.ones((count, before), bool)], axis=1)
        y = self.attention("attention", y, first, keys_values, seen)
        x = x + self.norm("block_0/post_attention", y)
        if not self.merged:
            y = self.norm("block_0/pre_cross_attention", x)
            context = self.keys_values("cross_attention", states, 0)
            y = self.attention("cross_attention", y, before, context, True)
            x = x + self.norm("block_0/post_cross_attention", y)
        y = self.norm("block_0/pre_feedforward", x)
        gate, up = (y @ self.kernel(f"feedforward/{name}") for name in ("gate", "up"))
        gate = gate / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        y = (gate * up) @ self.kernel("feedforward/down")
        return self.norm("final", x + self.norm("block_0/post_feedforward", y))


def test_packed_and_padded_rows_are_those_of_numpy(backbone):
    rng, width = np.random.default_rng(0), STACK.width
    ids = rng.integers(3, 96, TARGET.shape)
    states = rng.normal(size=(*SOURCE.shape, width)).astype("float32")
    found = to_numpy(backbone.decoder(ids, TARGET, states, SOURCE))
    reference = Reference(backbone.decoder)
    for row, number in [(0, 1), (0, 2), (0, 3), (1, 1)]:
        target, source = TARGET[row] == number, SOURCE[row] == number
        expected = reference(ids[row, target], np.asarray(states[row, source], "float64"))
        assert_close(found[row, target], expected, 1e-4)


@pytest.mark.slow
def test_merged_is_a_text_read_in_a_row():
    """Keys of the input, then those of the target: one causal attention over both."""
    block = tiny_backbone(pair(merged=True)).decoder.blocks[0]
    layer = block.attention
    x = np.random.default_rng(1).normal(size=(2, 15, STACK.width)).astype("float32")
    visible, positions = masks.self_attention(np.ones((2, 15)), causal=True), np.arange(15)[None]
    expected, _ = layer(x, visible, positions)
    part = block._merged(x, x[:, :9], masks.cross_attention(np.ones((2, 9))), positions[:, :9])
    own = masks.self_attention(np.ones((2, 6)), causal=True)
    found, _ = layer(x[:, 9:], own, positions[:, 9:], also=[part])
    assert_close(to_numpy(found), to_numpy(expected)[:, 9:])


@pytest.mark.slow
def test_rows_go_on_from_different_places(backbone):
    """Prompts of unlike lengths, then three tokens at a time: as drafts are read."""
    inputs = make_inputs(source=(20, 13, 1), target=(16, 16, 16))
    decoder, mask = backbone.decoder, inputs["encoder_padding_mask"]
    ids, full = inputs["decoder_token_ids"], run(backbone, inputs)["decoder_sequence_output"]
    context = decoder.context(backbone.encoder(inputs["encoder_token_ids"], mask), mask)
    index = np.array([7, 4, 2], "int32")
    _, cache = decoder.prefill(ids[:, :7], index, context, 16)
    for _ in range(2):
        places = index[:, None] + np.arange(3)
        states, new = decoder.step(np.take_along_axis(ids, places, 1), index, cache, context)
        expected = np.take_along_axis(full, places[..., None], axis=1)
        assert_close(to_numpy(states), expected)
        cache = decoder.keep(cache, new, index, np.full(3, 3))
        index = index + 3


@pytest.mark.slow
def test_targets_that_share_an_input(backbone):
    inputs = make_inputs(source=(9, 4), target=(8, 8))
    ids = np.random.default_rng(2).integers(3, 96, (6, 8))
    ones = np.ones_like(ids)
    mask = inputs["encoder_padding_mask"]
    states = to_numpy(backbone.encoder(inputs["encoder_token_ids"], mask))
    shared = backbone.decoder(ids, ones, states, mask)
    repeated = (np.repeat(x, 3, axis=0) for x in (states, mask))
    assert_close(to_numpy(shared), to_numpy(backbone.decoder(ids, ones, *repeated)))
    decoder, context = backbone.decoder, backbone.decoder.context(states, mask)
    stepped, _ = decoder.step(ids[:, :4], 0, decoder.empty_cache(6, 8), context)
    assert_close(to_numpy(stepped), to_numpy(shared)[:, :4])


@pytest.mark.slow
def test_slots_that_are_filled_again(backbone):
    lm = EncDecSeq2SeqLM(backbone)
    lm.compile(sampler="greedy")
    inputs = make_inputs(source=(9, 4, 12, 1, 7, 3, 11), target=(16,) * 7)
    inputs["decoder_padding_mask"] = (np.arange(16) < 2) * np.ones((7, 1), "int32")
    ids = lm.generate(inputs, stop_token_ids=None)["decoder_token_ids"]
    stops = tuple(int(i) for i in np.unique(ids[:, 4:])[::3])
    found = lm.generate(inputs, stop_token_ids=stops, batch_size=2)
    assert len(set(found["decoder_padding_mask"].sum(-1))) > 1
    for i in range(7):
        alone = {key: rows[i : i + 1] for key, rows in inputs.items()}
        expected = lm.generate(alone, stop_token_ids=stops)
        kept = expected["decoder_padding_mask"][0] == 1
        np.testing.assert_array_equal(found["decoder_padding_mask"][i] == 1, kept)
        one, two = (x["decoder_token_ids"] for x in (found, expected))
        np.testing.assert_array_equal(one[i, kept], two[0, kept])


@pytest.mark.slow
def test_keys_of_an_input_are_turned_once(backbone):
    inputs = make_inputs(source=(9, 4), target=(8, 8))
    mask = inputs["encoder_padding_mask"]
    states = backbone.encoder(inputs["encoder_token_ids"], mask)
    keys, _ = backbone.decoder.context(states, mask).keys_values[0]
    sublayer = "attention" if backbone.decoder.blocks[0].merged else "cross_attention"
    reference = Reference(backbone.decoder)
    expected, _ = reference.keys_values(sublayer, np.asarray(to_numpy(states)[1, :4], "float64"), 0)
    assert_close(to_numpy(keys)[1].swapaxes(0, 1)[:4], expected)
