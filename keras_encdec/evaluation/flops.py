"""Forward FLOPs of a model by its spec: the sums behind figure 3 of arXiv 2504.06225.

A multiply-add counts as two. Counted are the products with kernels (`linear`), of experts with
those that a token goes through, the two products
of each attention (`attention`) and the product that writes the logits (`logits`). Not counted are
the look-up of embeddings, norms, rotary positions, soft caps, softmax, activations, gates, sums
of an adaptor, sinks and biases: they grow with the width, not with its square. The paper gives no
formula; under the `"dense"` count a balanced pair takes about what its source takes, as the
paper's section 5 says.
Leaves the compiler's own count to `keras_encdec.evaluation.compiled`. Standard library only.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from keras_encdec import check
from keras_encdec.spec import PairSpec, Shape, StackSpec, Window, window_lengths

Counting = Literal["dense", "masked"]
Spec = PairSpec | StackSpec  # a pair, or a decoder-only model


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a forward pass of one row; they add up with `+`.

    Args:
        linear: of products with kernels.
        attention: of queries with keys, and of weights with values.
        logits: of states with the output matrix.
    """

    linear: int = 0
    attention: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.logits

    def __add__(self, other: "Flops") -> "Flops":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Flops(*map(sum, zip(mine, theirs, strict=True)))


def forward_flops(
    spec: Spec, source_length: int, target_length: int, counting: Counting = "dense"
) -> Flops:
    """Of reading an input and a target, and writing the target's logits.

    A pair reads the input with its encoder and the target with its decoder; a decoder-only
    model reads both as one text of S + T tokens.

    Args:
        spec: `PairSpec`, or the `StackSpec` of a decoder-only model.
        source_length: S, tokens of the input.
        target_length: T, tokens of the target, each of which has logits.
        counting: `"dense"` for attention to every key, as plain attention computes it;
            `"masked"` for the keys that a query sees, as a perfect kernel would.

    Returns:
        `Flops` of one row.

    Raises:
        ValueError: if a length is no whole number of at least 1, or there is no such counting.

    Example:
        >>> forward_flops(keras_encdec.presets["gemma2_2b_2b"].spec, 4096, 4096).total / 1e12
    """
    return sum(flops_by_side(spec, source_length, target_length, counting).values(), Flops())


def flops_by_side(
    spec: Spec, source_length: int, target_length: int, counting: Counting = "dense"
) -> dict[str, Flops]:
    """As `forward_flops`, apart: of `"encoder"` and `"decoder"`, or of `"decoder-only"`.

    The decoder has the keys and values that its cross-attention makes of the encoder's states.
    What makes tokens of images is not counted.
    """
    source = check.whole("source_length", source_length)
    target = check.whole("target_length", target_length)
    pairs = functools.partial(_pairs, masked=_is_masked(counting))
    if isinstance(spec, StackSpec):
        length = source + target
        seen = [pairs(length, window, causal=True) for window in spec.windows]
        linear = _linear(spec, spec.weights(), lambda _: length)
        return {"decoder-only": Flops(linear, _attention(spec, seen), _logits(spec, target))}
    encoder, decoder = spec.encoder, spec.decoder
    causal = spec.encoder_attention == "causal"
    read = [pairs(source, window, causal=causal) for window in encoder.windows]
    seen = [pairs(target, window, causal=True) for window in decoder.windows]
    seen = [own + _crosses(spec, i) * target * source for i, own in enumerate(seen)]
    weights = encoder.weights(writes=False) | spec.adaptor_weights()
    linear = _linear(encoder, weights, lambda _: source)
    return {
        "encoder": Flops(linear, _attention(encoder, read)),
        "decoder": Flops(
            _linear_of_decoder(spec, source, target),
            _attention(decoder, seen),
            _logits(decoder, target),
        ),
    }


def token_flops(
    spec: Spec, source_length: int, target_length: int = 0, counting: Counting = "dense"
) -> Flops:
    """Of writing one more token, where keys and values of all before it are kept.

    Args:
        spec: as of `forward_flops`.
        source_length: S, tokens of the input that it sees.
        target_length: tokens of the target that it sees, its own among them; 0 to count its
            attention to the input alone.
        counting: as of `forward_flops`; windows are shorter than the cache in `"masked"`.

    Returns:
        `Flops` of one row.

    Raises:
        ValueError: as `forward_flops`.
    """
    source = check.whole("source_length", source_length)
    target = check.whole("target_length", target_length, least=0)
    masked = _is_masked(counting)
    if isinstance(spec, StackSpec):
        seen = [_last(source + target, window, masked) for window in spec.windows]
        return Flops(
            _linear(spec, spec.weights(), lambda _: 1), _attention(spec, seen), _logits(spec, 1)
        )
    decoder = spec.decoder
    seen = [_last(target, window, masked) for window in decoder.windows]
    seen = [own + _crosses(spec, i) * source for i, own in enumerate(seen)]
    linear = _linear_of_decoder(spec, 0, 1)
    return Flops(linear, _attention(decoder, seen), _logits(decoder, 1))


def _is_masked(counting: Counting) -> bool:
    return check.one_of("counting", counting, get_args(Counting)) == "masked"


def _linear(spec: StackSpec, weights: Mapping[str, Shape], tokens: Callable[[str], int]) -> int:
    """Of all kernels, each with its tokens: 2 for each of its numbers and each token."""
    kernels = {name: shape for name, shape in weights.items() if name.endswith("/kernel")}
    if spec.experts is not None:
        experts = {n: shape for n, shape in weights.items() if "/experts/" in n and len(shape) == 3}
        kernels |= {name: (spec.experts.top_k, *shape[1:]) for name, shape in experts.items()}
    return sum(2 * math.prod(shape) * tokens(name) for name, shape in kernels.items())


def _linear_of_decoder(spec: PairSpec, source: int, target: int) -> int:
    """Of a decoder that reads `target` tokens and makes keys and values of `source` states."""

    def tokens(name: str) -> int:
        *block, sublayer, kernel, _ = name.split("/")
        if kernel not in ("key", "value"):
            return target
        if sublayer == "cross_attention":
            return source
        crosses = _crosses(spec, int(block[0].removeprefix("block_")))
        return target + (source if spec.cross_attention.merged and crosses else 0)

    weights = spec.decoder.weights(spec.context_width, spec.cross_attention)
    return _linear(spec.decoder, weights, tokens)


def _crosses(spec: PairSpec, layer: int) -> bool:
    return spec.cross_attention.is_in(layer)


def _attention(spec: StackSpec, pairs: Iterable[int]) -> int:
    """Two products of H multiply-adds for each head and each pair, of each layer in turn."""
    layers = zip(spec.attentions, pairs, strict=True)
    return sum(4 * heads.num_heads * heads.head_dim * each for heads, each in layers)


def _logits(spec: StackSpec, tokens: int) -> int:
    return 2 * spec.width * spec.vocabulary_size * tokens


def _pairs(length: int, window: Window, causal: bool, masked: bool) -> int:
    """Pairs of a query and a key in a self-attention of `length` tokens."""
    if not masked:
        return length**2
    before, after = window_lengths(length if window is None else window)
    if causal:
        return _triangle(length, before)
    return _triangle(length, before) + _triangle(length, after) - length


def _triangle(length: int, window: int) -> int:
    """Pairs where a query sees up to `window` keys on one side, its own among them."""
    window = min(window, length)
    return window * (window + 1) // 2 + (length - window) * window


def _last(length: int, window: Window, masked: bool) -> int:
    """Keys that the last of `length` tokens sees."""
    return length if window is None or not masked else min(length, window_lengths(window)[0])
