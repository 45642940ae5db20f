"""The mixture of experts: which of them a token goes through, and what they make of it.

Knows the router, the expert that all tokens share, how tokens come to their own and back, on one
device or with experts apart, and how evenly they are spread. Leaves the products to
`keras_encdec.layers.ragged`.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec import layout
from keras_encdec.layers import ragged
from keras_encdec.layers.feedforward import GatedFeedForward, gated
from keras_encdec.layers.norm import RMSNorm, normalized
from keras_encdec.layers.rows import project
from keras_encdec.private import in_float32
from keras_encdec.spec import Activation, InputShape, MoESpec, NormSpec, Shape, Tensor
from keras_encdec.spec.experts import experts_from_json

KERNELS = "gate", "up", "down"
_OfKernels = tuple[Any, ...]  # a tensor of each; or None of each, where there is none


@keras.saving.register_keras_serializable(package="keras_encdec")
class MixtureOfExperts(keras.layers.Layer):
    """For each token the sum of what its experts make of it, weighted by the router.

    Where there is a shared expert, what that makes of the token is added.

    Args:
        spec: `MoESpec`, or its fields as a dict.
        activation: of each expert's gate, as of `StackSpec`.
        norm: `NormSpec` of the norms that `separate_norms` asks for, or its fields as a dict; None
            for its defaults.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self,
        spec: MoESpec | dict[str, Any],
        activation: Activation = "silu",
        norm: NormSpec | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        found = experts_from_json(spec)
        assert found is not None
        self.spec, self.activation = found, activation
        self.norm = NormSpec(**norm) if isinstance(norm, dict) else norm or NormSpec()
        policy = {"dtype": self.dtype_policy}
        self.router = Router(found, name="router", **policy)
        self.experts = Experts(found, activation, name="experts", **policy)
        self.shared = self.shared_weight = None
        if found.shared_dim is not None:
            self.shared = GatedFeedForward(found.shared_dim, activation, name="shared", **policy)
        if found.shared_gate:
            self.shared_weight = keras.layers.Dense(
                1, use_bias=False, activation="sigmoid", name="shared_weight", **policy
            )
        names = ("pre_experts", "post_experts", "post_shared") if found.separate_norms else ()
        self.norms = {n: RMSNorm(self.norm, name=f"{n}_norm", **policy) for n in names}

    def build(self, input_shape: InputShape) -> None:
        beside = [each for each in (self.shared, self.shared_weight) if each is not None]
        for layer in (self.router, self.experts, *beside, *self.norms.values()):
            layer.build(input_shape)

    def call(
        self, x: Tensor, is_token: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Applies the layer.

        Args:
            x: (B, T, D).
            is_token: (B or 1, T or 1) bool, False for padding, which goes through no expert
                but the shared one.
            residual: (B, T, D), what `x` was before the sublayer's norm, which a router with a
                norm of its own and experts with `separate_norms` read; None for `x`.

        Returns:
            `((B, T, D), load)`, where the load (2, E) float32 is, for each expert, how many
            tokens go through it and the sum of the probabilities that all tokens give it.
        """
        residual = x if residual is None else residual
        probabilities = self.router(x if self.spec.router_norm is None else residual)
        weights, chosen = ops.top_k(probabilities, self.spec.top_k)
        if self.spec.renormalize:
            weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        if self.spec.expert_scale:
            weights = weights * self.router.scales_of(chosen)
        there = ops.logical_and(is_token, ops.ones(ops.shape(x)[:2], "bool"))[..., None]
        chosen = ops.where(there, ops.cast(chosen, "int32"), self.spec.num_experts)
        weights = ops.cast(ops.where(there, weights, 0), self.compute_dtype)
        read = self._normed("pre_experts", residual) if self.spec.separate_norms else x
        y = self._normed("post_experts", self.experts(read, weights, chosen))
        return self._with_shared(x, y), self._load(probabilities, chosen, there)

    def _with_shared(self, x: Tensor, y: Tensor) -> Tensor:
        """`y`, and beside it what the shared expert makes of `x`, where there is one."""
        if self.shared is None:
            return y
        shared = self.shared(x)
        if self.shared_weight is not None:
            shared = shared * project(self.shared_weight, x)
        return y + self._normed("post_shared", shared)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return self.norms[name](x) if self.spec.separate_norms else x

    def _load(self, probabilities: Tensor, chosen: Tensor, there: Tensor) -> Tensor:
        count = _counts(chosen, self.spec.num_experts)
        given = ops.sum(ops.where(there, probabilities, 0), axis=(0, 1))
        return ops.stack([ops.cast(count, "float32"), given])

    def get_config(self) -> dict[str, Any]:
        own = {
            "spec": dataclasses.asdict(self.spec),
            "activation": self.activation,
            "norm": dataclasses.asdict(self.norm),
        }
        return {**super().get_config(), **own}


class Router(keras.layers.Layer):
    """(B, T, D) states to (B, T, E) probabilities of experts, in float32 whatever the policy.

    Its product is in float32 too: in bfloat16 two experts of nearly equal probability would
    often change places. A norm and scales of its own are Gemma 4's (modeling_gemma4.py of
    transformers 5.23, `Gemma4TextRouter`).
    """

    def __init__(self, spec: MoESpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def build(self, input_shape: InputShape) -> None:
        width, experts = input_shape[-1], self.spec.num_experts
        self.kernel = _kernel(self, "kernel", (width, experts))
        if self.spec.router_bias:
            self.bias = _bias(self, "bias", (experts,))
        if self.spec.router_norm is not None:
            self.scale = self.add_weight(name="scale", shape=(width,), initializer="ones")
        if self.spec.expert_scale:
            self.expert_scale = self.add_weight(
                name="expert_scale", shape=(experts,), initializer="ones"
            )

    def call(self, x: Tensor) -> Tensor:
        x = ops.cast(x, "float32")
        epsilon = self.spec.router_norm
        if epsilon is not None:
            x = normalized(x, epsilon) * in_float32(self.scale) * x.shape[-1] ** -0.5
        logits = ops.matmul(x, in_float32(self.kernel))
        if self.spec.router_bias:
            logits = logits + in_float32(self.bias)
        return ops.softmax(logits, axis=-1)

    def scales_of(self, chosen: Tensor) -> Tensor:
        """Of each of these experts, float32."""
        return ops.take(in_float32(self.expert_scale), chosen, axis=0)


class Experts(keras.layers.Layer):
    """Gated feed-forwards side by side."""

    quantization_config: Any = None  # of `quantize`, as Keras' own layers have it

    def __init__(self, spec: MoESpec, activation: Activation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec, self.activation = spec, activation
        # TensorFlow's XLA knows no groups whose sizes depend on values.
        self.supports_jit = keras.backend.backend() != "tensorflow"

    def build(self, input_shape: InputShape) -> None:
        experts, width, hidden = self.spec.num_experts, input_shape[-1], self.spec.expert_dim
        shapes = dict.fromkeys(("gate", "up"), (experts, width, hidden))
        shapes["down"] = (experts, hidden, width)
        for name, shape in shapes.items():
            if self.quantization_mode:
                self._add_codes(name, shape)
            else:
                setattr(self, name, _kernel(self, name, shape))
        for name, (*_, outputs) in shapes.items() if self.spec.expert_bias else ():
            setattr(self, f"{name}_bias", _bias(self, f"{name}_bias", (experts, outputs)))

    def _add_codes(self, name: str, shape: Shape) -> None:
        """In place of a kernel: int8, each column divided by its scale."""
        frozen = {"trainable": False, "autocast": False}
        codes = self.add_weight(name=name, shape=shape, dtype="int8", initializer="zeros", **frozen)
        scale = self.add_weight(
            name=f"{name}_scale",
            shape=(shape[0], shape[2]),
            dtype="float32",
            initializer="ones",
            **frozen,
        )
        setattr(self, name, codes)
        setattr(self, f"{name}_scale", scale)
        self._is_quantized = True  # what Keras looks at

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        """As of Keras' Dense, in int8 alone; what goes into experts is not rounded.

        Raises:
            ValueError: if the mode is another.
        """
        if mode != "int8":
            raise self._quantization_mode_error(mode)
        self.quantization_config = config
        for name in KERNELS:
            kernel = np.asarray(ops.convert_to_numpy(getattr(self, name)), "float32")
            codes, scale = keras.quantizers.abs_max_quantize(kernel, axis=1, to_numpy=True)
            delattr(self, name)
            self._add_codes(name, kernel.shape)
            getattr(self, name).assign(codes)
            getattr(self, f"{name}_scale").assign(scale[:, 0])
        self._dtype_policy = keras.dtype_policies.get(f"int8_from_{self.dtype_policy.name}")

    def quantized_call(self, *args: Any, **kwargs: Any) -> Tensor:
        """What Keras calls in place of `call` then."""
        return self.call(*args, **kwargs)

    def call(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Applies to each token its experts.

        Args:
            x: (B, T, D).
            weights: (B, T, k), of each of a token's experts.
            chosen: (B, T, k) int32, their numbers; E for none.
        """
        scales = self._all("_scale") if self.quantization_mode else (None,) * len(KERNELS)
        biases = self._all("_bias") if self.spec.expert_bias else (None,) * len(KERNELS)
        kernels = self._all(), scales, biases
        axes = layout.activation_axes()
        if axes is None:
            return self._through(x, weights, chosen, *kernels)
        return self._apart(axes, x, weights, chosen, *kernels)

    def _all(self, behind: str = "") -> _OfKernels:
        return tuple(ops.convert_to_tensor(getattr(self, name + behind)) for name in KERNELS)

    def _through(
        self,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        kernels: _OfKernels,
        scales: _OfKernels,
        biases: _OfKernels,
    ) -> Tensor:
        """As `call`, with the experts that these belong to, numbered from 0."""
        each, width, count = chosen.shape[-1], x.shape[-1], kernels[0].shape[0]
        numbers = ops.reshape(chosen, (-1,))
        order = ops.argsort(numbers)  # an expert's rows stand together, those of none last
        rows = ops.take(ops.reshape(x, (-1, width)), order // each, axis=0)
        sizes = _counts(numbers, count)
        experts = ops.take(numbers, order)

        def product(rows: Tensor, i: int) -> Tensor:
            made = ragged.product(rows, kernels[i], sizes, scales[i])
            return made if biases[i] is None else made + _of_rows(biases[i], experts)

        made = product(gated(self.activation, product(rows, 0), product(rows, 1)), 2)
        made = ops.reshape(ops.take(made, ops.argsort(order), axis=0), (-1, each, width))
        weights = ops.reshape(weights, (-1, each, 1))
        return ops.reshape(ops.sum(made * weights, axis=1), ops.shape(x))

    def _apart(
        self,
        axes: layout.ActivationAxes,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        *kernels: _OfKernels,
    ) -> Tensor:
        """As `call`, each device with its rows and its experts, whose outputs are added up.

        Its rows lie on all devices along the axis of the experts, so nothing is sent but the sum.
        """
        import jax

        def cuts(axis: str | None, size: int | None) -> str | None:
            parts = axes.mesh.shape[axis] if axis else 1
            return axis if size and parts > 1 and size % parts == 0 else None

        by_rows, by_experts = cuts(axes.batch, x.shape[0]), cuts(axes.model, self.spec.num_experts)

        def run(x: Tensor, weights: Tensor, chosen: Tensor, *kernels: _OfKernels) -> Tensor:
            if by_experts is None:
                return self._through(x, weights, chosen, *kernels)
            count = kernels[0][0].shape[0]
            chosen = chosen - jax.lax.axis_index(by_experts) * count
            chosen = ops.where(ops.logical_and(chosen >= 0, chosen < count), chosen, count)
            return jax.lax.psum(self._through(x, weights, chosen, *kernels), by_experts)

        rows, experts = (jax.sharding.PartitionSpec(axis) for axis in (by_rows, by_experts))
        specs = (rows, rows, rows, *[experts] * len(kernels))
        # A loop over blocks does not say along which axes its output varies.
        return jax.shard_map(run, mesh=axes.mesh, in_specs=specs, out_specs=rows, check_vma=False)(
            x, weights, chosen, *kernels
        )


def unevenness(load: Tensor, spec: MoESpec) -> Tensor:
    """The loss of uneven experts (arXiv 2101.03961, equation 4), a mean over layers.

    E times the sum over experts of the share of tokens that go through one and of the mean
    probability that it is given; k where both are even. One layer's is
    `load_balancing_loss_func` of transformers, which counts all layers' experts of a number as one.

    Args:
        load: (L, 2, E), of each layer as from `MixtureOfExperts`.
        spec: of the experts.

    Returns:
        A scalar, float32.
    """
    counts, given = load[:, 0], load[:, 1]
    tokens = ops.maximum(ops.sum(counts, axis=-1, keepdims=True) / spec.top_k, 1.0)
    shares = ops.stop_gradient(counts / tokens)
    return spec.num_experts * ops.mean(ops.sum(shares * given / tokens, axis=-1))


def busiest(load: Tensor) -> Tensor:
    """Tokens of the busiest expert over the mean of all, a mean over layers: 1 where all are even.

    Args:
        load: (L, 2, E), as of `unevenness`.

    Returns:
        A scalar, float32.
    """
    counts = load[:, 0]
    mean = ops.maximum(ops.mean(counts, axis=-1), 1e-20)
    return ops.mean(ops.max(counts, axis=-1) / mean)


def _counts(chosen: Tensor, count: int) -> Tensor:
    """(E,) int32: how often each of that many experts was chosen; E stands for none."""
    numbers = ops.reshape(chosen, (-1,))
    return ops.segment_sum(ops.ones_like(numbers), numbers, num_segments=count + 1)[:count]


def _of_rows(biases: Tensor, experts: Tensor) -> Tensor:
    """(E, F) biases by each row's expert (R,), 0 for a row of none."""
    none = ops.zeros_like(biases[:1])
    return ops.take(ops.concatenate([biases, none]), experts, axis=0)


def _bias(layer: keras.layers.Layer, name: str, shape: tuple[int, ...]) -> keras.Variable:
    return layer.add_weight(name=name, shape=shape, initializer="zeros")


def _kernel(layer: keras.layers.Layer, name: str, shape: tuple[int, ...]) -> keras.Variable:
    """(..., in, out), drawn by its inputs."""
    initializer = keras.initializers.RandomNormal(stddev=shape[-2] ** -0.5)
    return layer.add_weight(name=name, shape=shape, initializer=initializer)
