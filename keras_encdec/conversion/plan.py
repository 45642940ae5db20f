"""The plan of a conversion: where each weight of the pair comes from.

Knows the recipe of the paper (arXiv 2504.06225, section 3.2). Touches no array:
a plan can be made, printed and tested from specs alone.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from keras_encdec.conversion.options import (
    ConversionOptions,
    CrossAttentionInit,
    takes_conversion_options,
)
from keras_encdec.spec import (
    AdaptorSpec,
    CrossAttentionSpec,
    PairSpec,
    Shape,
    StackSpec,
    count_parameters,
)
from keras_encdec.spec.experts import of_kept_layers

_OF_KEYS_AND_VALUES = tuple(
    f"attention/{name}/{kind}" for name in ("key", "value") for kind in ("kernel", "bias")
)
_NORM_OF_KEYS = "attention/key_norm/scale"  # (H,), or (K, H)
_LENT = "attention/key", "attention/value"  # how what a layer may borrow begins


@dataclasses.dataclass(frozen=True)
class Step:
    """One weight of the pair and its origin.

    Args:
        target: name of the weight.
        shape: its shape.
        source: `(side, name)` in a source model, or None for a fresh weight.
        repeat: how often each key/value head is repeated on the way.
    """

    target: str
    shape: Shape
    source: tuple[str, str] | None
    repeat: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every weight of a pair, each with one origin.

    Args:
        pair: what will be built.
        sources: the decoder-only specs it is made of, by side.
        steps: one per weight of the pair.
        decoder_layers: the source's layer behind each layer of the decoder.
    """

    pair: PairSpec
    sources: dict[str, StackSpec]
    steps: tuple[Step, ...]
    decoder_layers: tuple[int, ...] = ()

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """`(side, name)` of each weight of a source that nothing is made of."""
        used = {step.source for step in self.steps}
        every = [(side, name) for side, spec in self.sources.items() for name in spec.weights()]
        return [source for source in every if source not in used]

    @property
    def fresh(self) -> list[Step]:
        return [step for step in self.steps if step.source is None]

    def table(self) -> Table:
        """The plan as a `rich` table, layers folded into one row."""
        table = Table("weight", "shape", "layers", "from", box=None, title=self.summary())
        for (target, shape, origin), layers in self._rows().items():
            table.add_row(target, " x ".join(map(str, shape)), str(layers), origin)
        for side in self.sources:
            for what, layers in _left_out([name for s, name in self.dropped if s == side]):
                table.add_row("(left out)", "", str(layers), f"{side} model: {what}")
        return table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as text:
            console.print(self.table())
        return text.get()

    def summary(self) -> str:
        total = count_parameters({step.target: step.shape for step in self.steps})
        fresh = count_parameters({step.target: step.shape for step in self.fresh})
        text = f"{total:,} parameters, {total - fresh:,} from the source, {fresh:,} fresh"
        idle = self.pair.encoder.idle_parameters + self.pair.decoder.idle_parameters
        text += f"; {total - idle:,} active for a token of each side" if idle else ""
        source = self.sources.get("decoder") or self.sources.get("source")
        if source is None or source.num_layers == len(self.decoder_layers):
            return text
        kept = ", ".join(map(str, self.decoder_layers))
        return f"{text}; decoder of layers {kept} of {source.num_layers}"

    def _rows(self) -> Counter:
        uses = Counter(step.source for step in self.steps)
        rows: Counter = Counter()
        for step in self.steps:
            rows[_fold(step.target), step.shape, _origin(step, uses[step.source])] += 1
        return rows


@takes_conversion_options
def make_plan(
    encoder: StackSpec, decoder: StackSpec | None = None, *, options: ConversionOptions
) -> Plan:
    """Plans a pair from two decoder-only specs.

    Args:
        encoder: becomes the encoder, all of it.
        decoder: becomes the decoder, with cross-attention added; by default the
            same model as the encoder (a balanced pair from one source).
        {options}

    Raises:
        ValueError: if there are no such layers, self-attention cannot be copied, or the
            two do not fit together as they are asked to.
    """
    sides = {"encoder": "encoder", "decoder": "decoder"}
    if decoder is None:
        sides, decoder = dict.fromkeys(sides, "source"), encoder
    kept = _kept_layers(options.decoder_layers, decoder.num_layers)
    reads, writes = _expanded(encoder) if options.expand_gqa else encoder, _thinned(decoder, kept)
    cross_attention, tied = _cross_attention(options, writes), options.tied_embeddings
    attention, adaptor = options.encoder_attention, _adaptor(options, writes)
    copies = _copies_self_attention(options.cross_attention_init, encoder, decoder, adaptor)
    pair = PairSpec(reads, writes, attention, cross_attention, tied, adaptor)
    of_layers = zip(reads.attentions, encoder.attentions, strict=True)
    repeats = tuple(new.num_kv_heads // old.num_kv_heads for new, old in of_layers)
    lenders = tuple(map(decoder.lender_of, range(decoder.num_layers)))
    origins = _Origins(sides, copies, repeats, kept, lenders, tied)
    steps = tuple(origins.step(name, shape) for name, shape in pair.weights().items())
    sources = {sides["encoder"]: encoder, sides["decoder"]: decoder}
    return Plan(pair, sources, steps, tuple(kept))


def random_plan(pair: PairSpec) -> Plan:
    """The plan of an architecture without sources: every weight is fresh."""
    return Plan(pair, {}, tuple(Step(name, shape, None) for name, shape in pair.weights().items()))


def _cross_attention(options: ConversionOptions, decoder: StackSpec) -> CrossAttentionSpec:
    """As a decoder of this kind is to have it."""
    merged, gate = options.merged_attention, options.cross_attention_gate
    if gate == "auto":
        gate = not merged and not decoder.post_norm
    layers, rotary = options.cross_attention_layers, options.cross_attention_rotary
    return CrossAttentionSpec(merged, gate, None if layers is None else tuple(layers), rotary)


def _adaptor(options: ConversionOptions, decoder: StackSpec) -> AdaptorSpec | None:
    """Of what a decoder reads, if it is asked for."""
    if options.adaptor_groups == 1 and not options.adaptor_projection:
        return None
    width = decoder.width if options.adaptor_projection else None
    return AdaptorSpec(options.adaptor_groups, width)


def _kept_layers(layers: int | Sequence[int] | None, depth: int) -> Sequence[int]:
    if layers is None:
        return range(depth)
    kept = range(layers) if isinstance(layers, int) else list(layers)
    rising = len(kept) <= depth and all(a < b for a, b in itertools.pairwise(kept))
    if not kept or not rising or kept[0] < 0 or kept[-1] >= depth:
        raise ValueError(
            f"Expected decoder_layers from 1 to {depth}, or rising numbers from 0 to {depth - 1} "
            f"such as range(0, {depth}, 2). Received: {layers!r}."
        )
    return kept


def _expanded(spec: StackSpec) -> StackSpec:
    """With a key/value head for each query head."""
    attentions = (dataclasses.replace(a, num_kv_heads=a.num_heads) for a in spec.attentions)
    return dataclasses.replace(spec, attention=tuple(attentions))


def _thinned(spec: StackSpec, kept: Sequence[int]) -> StackSpec:
    """With some of the layers.

    Raises:
        ValueError: if a weight of the whole stack has parts of the others, or a layer is kept
            without the one whose keys and values it borrows.
    """
    lenders = [spec.lender_of(i) for i in kept]
    if missing := {i for i in lenders if i is not None} - set(kept):
        raise ValueError(
            f"Expected decoder_layers with layer {min(missing)}, whose keys and values later ones "
            f"borrow. Received: {list(kept)}."
        )
    if spec.per_layer_dim is not None and len(kept) < spec.num_layers:
        raise ValueError(
            f"Expected all {spec.num_layers} layers of a decoder with an embedding for each. "
            f"Received: decoder_layers={list(kept)}."
        )
    return dataclasses.replace(
        spec,
        windows=tuple(spec.windows[i] for i in kept),
        attention=tuple(spec.attentions[i] for i in kept),
        feedforward_dim=tuple(spec.feedforward_dims[i] for i in kept),
        rotary=tuple(spec.rotaries[i] for i in kept),
        borrowing_layers=sum(i is not None for i in lenders),
        experts=of_kept_layers(spec.experts, list(kept)),
    )


@dataclasses.dataclass(frozen=True)
class _Origins:
    """Where each weight of a pair is from.

    Args:
        sides: the source of each side.
        copies: whether cross-attention starts from self-attention.
        repeats: how often the key/value heads of each of the encoder's layers are repeated.
        kept: the source's layer behind each layer of the decoder.
        lenders: for each layer of the decoder's source that has no keys and values, whose it
            borrows: what its cross-attention starts from.
        tied_embeddings: whether the one embedding, the encoder's by name, is the decoder's.
    """

    sides: dict[str, str]
    copies: bool
    repeats: Sequence[int]
    kept: Sequence[int]
    lenders: Sequence[int | None]
    tied_embeddings: bool

    def step(self, target: str, shape: Shape) -> Step:
        side, name = target.split("/", 1)
        if name.startswith("adaptor/"):
            return Step(target, shape, None)
        if self.tied_embeddings and name == "embedding/embeddings":
            side = "decoder"
        if "cross_attention" in name:
            if "cross_attention_gate" in name or not self.copies:
                return Step(target, shape, None)
            name = name.replace("cross_attention", "attention")
        by_head = name.endswith(_OF_KEYS_AND_VALUES)
        by_head |= name.endswith(_NORM_OF_KEYS) and len(shape) == 2
        layer = re.match(r"block_(\d+)/(.*)", name)
        if layer is None:
            return Step(target, shape, (self.sides[side], name))
        number, rest = int(layer[1]), layer[2]
        repeat = self.repeats[number] if side == "encoder" and by_head else 1
        if side == "decoder":
            number = self.kept[number]
            lender = self.lenders[number] if rest.startswith(_LENT) else None
            number = number if lender is None else lender
        return Step(target, shape, (self.sides[side], f"block_{number}/{rest}"), repeat)


def _copies_self_attention(
    init: CrossAttentionInit,
    encoder: StackSpec,
    decoder: StackSpec,
    adaptor: AdaptorSpec | None,
) -> bool:
    projected = adaptor is not None and adaptor.width is not None
    if init == "self_attention" and encoder.width != decoder.width and not projected:
        raise ValueError(
            "Expected encoder and decoder of one width to copy self-attention from. "
            f"Received: {encoder.width} and {decoder.width}. Use cross_attention_init='random', "
            "or adaptor_projection=True, which brings states to the decoder's width."
        )
    return init == "self_attention" or (init == "auto" and encoder == decoder)


def _origin(step: Step, uses: int) -> str:
    if step.source is None:
        return "fresh"
    side, name = step.source
    origin = f"{side} model"
    if _fold(step.target.partition("/")[2]) != _fold(name):
        origin += f": {_fold(name)}"
    origin += f", heads x {step.repeat}" if step.repeat > 1 else ""
    return origin + (" (shared)" if uses > 1 else "")


def _left_out(names: list[str]) -> Iterator[tuple[str, int]]:
    """Whole layers as one, with how many they are, then other weights."""
    layers = sorted({int(match[1]) for name in names if (match := re.match(r"block_(\d+)/", name))})
    if layers:
        yield f"layers {', '.join(map(str, layers))}", len(layers)
    for name in names:
        if not name.startswith("block_"):
            yield _fold(name), 1


def _fold(name: str) -> str:
    name = name.removesuffix("/kernel").removesuffix("/scale").removesuffix("/embeddings")
    return "/".join("block_*" if part.startswith("block_") else part for part in name.split("/"))
