"""A mixture of experts: many feed-forwards, of which each token goes through a few.

Knows how many there are and how a token's are chosen. Leaves which numbers that gives to
`keras_encdec.layers.experts`. Standard library only.
"""

import dataclasses
import math
from typing import Any

from keras_encdec import check
from keras_encdec.spec.fields import check_fields, check_given, require


@dataclasses.dataclass(frozen=True)
class MoESpec:
    """A router and its experts, in place of the feed-forward (Mixtral, arXiv 2401.04088).

    The router's softmax gives each expert a probability; a token goes through those of the
    largest, whose outputs are added, weighted by it. No expert has a capacity: no token is
    dropped, and what stands beside a token changes none of its numbers. Beside them there may be
    a shared expert, which all tokens go through.

    Args:
        num_experts: E.
        top_k: experts that a token goes through.
        expert_dim: hidden width of each expert's gated feed-forward.
        renormalize: whether the weights of a token's experts are divided by their sum (Mixtral;
            `norm_topk_prob` of Qwen 3 MoE).
        balance_weight: in training this many times the loss of uneven experts is added to the
            loss (arXiv 2101.03961, equation 4; `router_aux_loss_coef` of configs); 0 for none.
        layers: the layers that have experts, by number; None for all. The others have the
            feed-forward of `StackSpec.feedforward_dim`.
        router_bias: whether the router adds a bias to the logit of each expert (gpt-oss;
            transformers, modeling_gpt_oss.py).
        expert_bias: whether each of an expert's three products adds a bias (likewise).
        shared_dim: hidden width of a shared expert, whose output is added to that of a token's
            own (Qwen 2 MoE, arXiv 2407.10671; in Gemma 4 the dense feed-forward beside the
            experts); None for none.
        shared_gate: whether the shared expert's output is multiplied by a sigmoid, for each token
            of one number (Qwen 2 MoE).
        separate_norms: whether the experts read their input by a norm of their own, and what they
            and what the shared expert gives is normalised before both are added (Gemma 4).
        router_norm: epsilon of a norm without scale by which the router reads the sublayer's
            input, before the norm of the others; times a scale that is learned, times D**-0.5
            (Gemma 4). None for a router that reads what the shared expert reads.
        expert_scale: whether the weight of each expert is multiplied by a number of its own that
            is learned, after the division by their sum (Gemma 4).
    """

    num_experts: int
    top_k: int
    expert_dim: int
    renormalize: bool = True
    balance_weight: float = 0.001
    layers: tuple[int, ...] | None = None
    router_bias: bool = False
    expert_bias: bool = False
    shared_dim: int | None = None
    shared_gate: bool = False
    separate_norms: bool = False
    router_norm: float | None = None
    expert_scale: bool = False

    def __post_init__(self) -> None:
        check_fields(self, check.whole, "num_experts", "top_k", "expert_dim")
        check_given(self, check.whole, "shared_dim")
        check_fields(self, check.flag, "renormalize", "router_bias", "expert_bias")
        check_fields(self, check.flag, "shared_gate", "separate_norms", "expert_scale")
        check_fields(self, check.real, "balance_weight", least=0)
        check_given(self, check.real, "router_norm", above=0)
        for layer in self.layers or ():
            check.whole("layers of MoESpec", layer, least=0)
        require(self.top_k <= self.num_experts, "top_k of at most num_experts", self)
        alone = self.shared_dim is None
        for name in ("shared_gate", "separate_norms"):
            require(not (alone and getattr(self, name)), f"{name} beside a shared_dim", self)

    def is_in(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.layers is None or layer in self.layers

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight; those of experts are stacked."""
        e, d, f = self.num_experts, width, self.expert_dim
        weights: dict[str, tuple[int, ...]] = {
            "router/kernel": (d, e),
            "experts/gate": (e, d, f),
            "experts/up": (e, d, f),
            "experts/down": (e, f, d),
        }
        if self.router_bias:
            weights["router/bias"] = (e,)
        if self.expert_bias:
            biases = {"gate": f, "up": f, "down": d}
            weights |= {f"experts/{name}_bias": (e, size) for name, size in biases.items()}
        if self.router_norm is not None:
            weights["router/scale"] = (d,)
        if self.expert_scale:
            weights["router/expert_scale"] = (e,)
        if self.shared_dim is not None:
            weights |= {f"shared/{k}": v for k, v in gated_weights(d, self.shared_dim).items()}
        if self.shared_gate:
            weights["shared_weight/kernel"] = (d, 1)
        if self.separate_norms:
            names = "pre_experts_norm", "post_experts_norm", "post_shared_norm"
            weights |= {f"{name}/scale": (d,) for name in names}
        return weights

    def idle_parameters(self, width: int) -> int:
        """Parameters of a layer's experts that a token does not go through."""
        shapes = [s for name, s in self.weights(width).items() if name.startswith("experts/")]
        of_expert = sum(math.prod(shape[1:]) for shape in shapes) + self.expert_scale
        return (self.num_experts - self.top_k) * of_expert


def gated_weights(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight of a gated feed-forward."""
    d, f = width, hidden
    return {"gate/kernel": (d, f), "up/kernel": (d, f), "down/kernel": (f, d)}


def of_kept_layers(experts: MoESpec | None, kept: list[int]) -> MoESpec | None:
    """The experts of a stack that has only some of the layers, or None where none has any."""
    if experts is None:
        return None
    layers = tuple(new for new, old in enumerate(kept) if experts.is_in(old))
    return dataclasses.replace(experts, layers=layers) if layers else None


def experts_from_json(data: MoESpec | dict[str, Any] | None) -> MoESpec | None:
    """As `keras_encdec.spec.stack_from_json`, of a `MoESpec`."""
    if not isinstance(data, dict):
        return data
    layers = data["layers"]
    return MoESpec(**{**data, "layers": None if layers is None else tuple(layers)})
