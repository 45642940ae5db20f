"""The plan of a conversion: where each weight of the pair comes from.

Knows the recipe of the paper (arXiv 2504.06225, section 3.2). Touches no array:
a plan can be made, printed and tested from specs alone.
"""

import dataclasses
from collections import Counter
from typing import Literal

from rich.console import Console
from rich.table import Table

from keras_encdec.spec import EncoderAttention, PairSpec, Shape, StackSpec, count_parameters

CrossAttentionInit = Literal["auto", "self_attention", "random"]


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
    """

    pair: PairSpec
    sources: dict[str, StackSpec]
    steps: tuple[Step, ...]

    @property
    def fresh(self) -> list[Step]:
        return [step for step in self.steps if step.source is None]

    def table(self) -> Table:
        """The plan as a `rich` table, layers folded into one row."""
        table = Table("weight", "shape", "layers", "from", box=None, title=self.summary())
        for (target, shape, origin), layers in self._rows().items():
            table.add_row(target, " x ".join(map(str, shape)), str(layers), origin)
        return table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as text:
            console.print(self.table())
        return text.get()

    def summary(self) -> str:
        total = count_parameters({step.target: step.shape for step in self.steps})
        fresh = count_parameters({step.target: step.shape for step in self.fresh})
        return f"{total:,} parameters, {total - fresh:,} from the source, {fresh:,} fresh"

    def _rows(self) -> Counter:
        uses = Counter(step.source for step in self.steps)
        rows: Counter = Counter()
        for step in self.steps:
            rows[_fold(step.target), step.shape, _origin(step, uses[step.source])] += 1
        return rows


def make_plan(
    encoder: StackSpec,
    decoder: StackSpec | None = None,
    *,
    cross_attention_init: CrossAttentionInit = "auto",
    encoder_attention: EncoderAttention = "bidirectional",
    expand_gqa: bool = False,
) -> Plan:
    """Plans a pair from two decoder-only specs.

    Args:
        encoder: becomes the encoder, all of it.
        decoder: becomes the decoder, with cross-attention added; by default the
            same model as the encoder (a balanced pair from one source).
        cross_attention_init: `"self_attention"` copies each layer's self-attention
            with its norms, `"random"` starts fresh, `"auto"` copies where the two
            specs are equal (section 3.2; that the norms are copied too is ours).
        encoder_attention: `"bidirectional"` or `"causal"`.
        expand_gqa: repeat the encoder's key/value heads to one per query head.

    Raises:
        ValueError: if the vocabularies differ, or if self-attention cannot be copied.
    """
    balanced = decoder is None
    decoder = decoder or encoder
    if encoder.vocabulary_size != decoder.vocabulary_size:
        raise ValueError(
            "Expected two models with the same vocabulary. Received: "
            f"{encoder.vocabulary_size} and {decoder.vocabulary_size} tokens."
        )
    copies = _copies_self_attention(cross_attention_init, encoder, decoder)
    heads = encoder.attention.num_heads
    attention = dataclasses.replace(encoder.attention, num_kv_heads=heads)
    target = dataclasses.replace(encoder, attention=attention) if expand_gqa else encoder
    pair = PairSpec(target, decoder, encoder_attention)
    repeat = heads // encoder.attention.num_kv_heads if expand_gqa else 1
    sides = (
        {"encoder": "source", "decoder": "source"}
        if balanced
        else {s: s for s in ("encoder", "decoder")}
    )
    steps = [_step(name, shape, sides, copies, repeat) for name, shape in pair.weights().items()]
    sources = {sides["encoder"]: encoder, sides["decoder"]: decoder}
    return Plan(pair, sources, tuple(steps))


def random_plan(pair: PairSpec) -> Plan:
    """The plan of an architecture without sources: every weight is fresh."""
    return Plan(pair, {}, tuple(Step(name, shape, None) for name, shape in pair.weights().items()))


def _step(target: str, shape: Shape, sides: dict[str, str], copies: bool, repeat: int) -> Step:
    side, name = target.split("/", 1)
    if "cross_attention" in name:
        source = (sides[side], name.replace("cross_attention", "attention")) if copies else None
        return Step(target, shape, source)
    repeated = side == "encoder" and name.endswith(
        ("attention/key/kernel", "attention/value/kernel")
    )
    return Step(target, shape, (sides[side], name), repeat if repeated else 1)


def _copies_self_attention(init: str, encoder: StackSpec, decoder: StackSpec) -> bool:
    if init not in ("auto", "self_attention", "random"):
        raise ValueError(
            "Expected cross_attention_init 'auto', 'self_attention' or 'random'. "
            f"Received: {init!r}."
        )
    if init == "self_attention" and encoder.width != decoder.width:
        raise ValueError(
            "Expected encoder and decoder of one width to copy self-attention from. "
            f"Received: {encoder.width} and {decoder.width}. Use cross_attention_init='random'."
        )
    return init == "self_attention" or (init == "auto" and encoder == decoder)


def _origin(step: Step, uses: int) -> str:
    if step.source is None:
        return "fresh"
    side, name = step.source
    origin = f"{side} model"
    if step.target.partition("/")[2] != name:
        origin += f": {_fold(name)}"
    origin += f", heads x {step.repeat}" if step.repeat > 1 else ""
    return origin + (" (shared)" if uses > 1 else "")


def _fold(name: str) -> str:
    name = name.removesuffix("/kernel").removesuffix("/scale").removesuffix("/embeddings")
    return "/".join("block_*" if part.startswith("block_") else part for part in name.split("/"))
