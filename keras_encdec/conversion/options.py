"""What a conversion may be asked for: the options of `adapt`, `from_preset` and `plan`.

Knows their names, meanings and defaults, and puts them into signatures. Leaves what they
come to, with two specs at hand, to `keras_encdec.conversion.plan`.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, get_args

from keras_encdec import check
from keras_encdec.spec import EncoderAttention
from keras_encdec.spec.sublayers import CrossRotary

CrossAttentionInit = Literal["auto", "self_attention", "random"]

Result = TypeVar("Result")
_MOST_LAYERS = 2**16  # that are looked at


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """The choices of a conversion: the paper's (arXiv 2504.06225), and those of later ones.

    Args:
        cross_attention_init: `"self_attention"` copies each layer's self-attention with its
            norms, `"random"` starts fresh, `"auto"` copies where the two sources are alike
            (section 3.2; that the norms are copied too is ours).
        encoder_attention: `"bidirectional"`, or `"causal"` as an ablation (section 5).
        expand_gqa: repeat the encoder's key/value heads to one per query head.
        decoder_layers: which of its layers the decoder keeps, by number, such as
            `range(0, 26, 2)`; with a number n the first n.
        merged_attention: let self-attention see the encoder too, in place of a
            cross-attention (T5Gemma 2, arXiv 2512.14856, section 2).
        cross_attention_gate: start as the decoder's source, by a gate that is 0
            (arXiv 2204.14198). `"auto"` has one where the decoder's blocks have no post norm,
            as in Llama and Qwen: nothing else bounds what a copied cross-attention adds.
            SmolLM2 stood at 8.44 nats after 25 steps without a gate, and begins at 3.23
            with it.
        cross_attention_layers: layers of the decoder that see the encoder, by number; None
            for all.
        cross_attention_rotary: `"continuous"` for rotary positions in the cross-attention too,
            where a target goes on behind its input, as in a decoder-only model that reads both in
            a row (RedLLM, arXiv 2510.26622). T5Gemma's has none.
        tied_embeddings: give both sides one embedding, the decoder's (T5Gemma 2).
        adaptor_groups: groups of the encoder's layers whose states are added up for the
            cross-attention, by numbers that start at the last layer alone (after LaMaTE,
            arXiv 2503.06594); 1 for that layer's alone.
        adaptor_projection: bring the encoder's states to the decoder's width first, from where
            `cross_attention_init="self_attention"` and `merged_attention` fit pairs of two widths.
    """

    cross_attention_init: CrossAttentionInit = "auto"
    encoder_attention: EncoderAttention = "bidirectional"
    expand_gqa: bool = False
    decoder_layers: int | Sequence[int] | None = None
    merged_attention: bool = False
    cross_attention_gate: bool | Literal["auto"] = "auto"
    cross_attention_layers: Sequence[int] | None = None
    cross_attention_rotary: CrossRotary = None
    tied_embeddings: bool = False
    adaptor_groups: int = 1
    adaptor_projection: bool = False

    def __post_init__(self) -> None:
        check.one_of(
            "cross_attention_init", self.cross_attention_init, get_args(CrossAttentionInit)
        )
        check.one_of("encoder_attention", self.encoder_attention, get_args(EncoderAttention))
        check.one_of("cross_attention_gate", self.cross_attention_gate, ("auto", True, False))
        check.one_of("cross_attention_rotary", self.cross_attention_rotary, get_args(CrossRotary))
        for name in ("expand_gqa", "merged_attention", "tied_embeddings", "adaptor_projection"):
            check.flag(name, getattr(self, name))
        groups = check.whole("adaptor_groups", self.adaptor_groups)
        object.__setattr__(self, "adaptor_groups", groups)
        self._number_layers("decoder_layers", or_count=True)
        self._number_layers("cross_attention_layers")

    def _number_layers(self, name: str, or_count: bool = False) -> None:
        """Makes numbers of layers a tuple, None and a count aside."""
        layers = getattr(self, name)
        try:
            if or_count and not isinstance(layers, Iterable) and layers is not None:
                numbers: Any = check.whole(name, layers)
            else:
                some = None if layers is None else list(itertools.islice(layers, _MOST_LAYERS + 1))
                if some is not None and len(some) > _MOST_LAYERS:
                    raise ValueError
                numbers = some and tuple(check.whole(name, layer, least=0) for layer in some)
        except (TypeError, ValueError):
            raise ValueError(
                f"Expected {name} as numbers of layers such as [1, 3]"
                f"{', or how many' if or_count else ''}. Received: {layers!r}."
            ) from None
        object.__setattr__(self, name, numbers)

    @property
    def asked(self) -> list[str]:
        """Names of the options that are not at their defaults."""
        fields = dataclasses.fields(self)
        return [field.name for field in fields if getattr(self, field.name) != field.default]


def takes_conversion_options(function: Callable[..., Result]) -> Callable[..., Result]:
    """Gives a function that is called with `options` a keyword for each of them.

    Signature and docstring then name every option, so that help and completion show them:
    a line `{options}` in the docstring stands for what they mean. A ready
    `ConversionOptions` may be passed as `options`; keywords replace its fields.

    Raises:
        TypeError: in a call with an unknown keyword, with the nearest one.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name != "options"]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in dataclasses.fields(ConversionOptions)
    ]
    known = [parameter.name for parameter in (*own, *options)]

    @functools.wraps(function)
    def called(*args: Any, options: ConversionOptions | None = None, **kwargs: Any) -> Result:
        check.keywords(f"a keyword of {function.__name__}()", kwargs, known)
        asked = {name: kwargs.pop(name) for name in known[len(own) :] if name in kwargs}
        asked_for = dataclasses.replace(options or ConversionOptions(), **asked)
        return function(*args, options=asked_for, **kwargs)

    called.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    if function.__doc__:
        called.__doc__ = function.__doc__.replace("        {options}", _meanings())
    return called


def _meanings() -> str:
    """The lines of `ConversionOptions` that say what each option is."""
    return (ConversionOptions.__doc__ or "").partition("Args:\n")[2].rstrip()
