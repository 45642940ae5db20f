"""How much memory training takes on each device, before anything is allocated.

Knows what a training step keeps: variables and optimizer slots exactly, as Keras makes
them, and the rest by formulas. Leaves which device holds what to
`keras_encdec.layout`.

The formulas, in bytes, with c bytes to a number of the compute dtype. On a mesh, B, N, K,
F and V are what one device has. For each row of the batch a block needs

    8 D per token and norm, and 5 c F per token,
    c (3 N H per query + 2 K H per key) for each attention, and its logits:
    16 N T S if plain; if fused, 16 N 256 S for one block of queries at a time,

and c D per query for a gate. A decoder's block without cross-attention has only its own;
where attention is merged, one sees T + S keys, by the plain path whatever the others take.
The backward pass needs all blocks. With remat each keeps its input, c D per token, and
one block at a time needs the rest. Where the batch axis cuts weights, those of one block
are whole while it runs. The output loss holds 16 V for each token of a chunk, the
embedding in the compute dtype, and the sum of its gradient in float32; these two where
they are not the variable and its gradient themselves.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.distribution import TensorLayout
from rich.console import Console
from rich.table import Table

from keras_encdec import check
from keras_encdec.layout import Weight, axis_sizes, layout_map, shard_shape
from keras_encdec.spec import PairSpec, Shape, StackSpec
from keras_encdec.training.loss import CHUNK_TOKENS
from keras_encdec.training.warmup import is_new

_LORA = ("query/kernel", "value/kernel")  # KerasHub's Backbone.default_lora_layer_names
_INT4_BLOCK = 128  # rows that share a scale: keras.quantizers.Int4QuantizationConfig
_FUSED_QUERIES = 256  # at a time, where no kernel does it: keras_encdec.layers.fused

# Arrays that XLA keeps of each kind for the backward pass, found by varying one size at a
# time (LOG.md); autodiff alone would keep about twice as many.
_PER_NORM = 2  # of D, in float32
_PER_FEEDFORWARD = 5  # of F: gate, up, their product and the derivatives of gelu
_PER_QUERY, _PER_KEY = 3, 2  # of N * H and of K * H: before and after rotation, and the output
_PER_LOGIT = 4  # of attention logits, in float32: soft cap, mask, softmax
_PER_OUTPUT_LOGIT = 3  # likewise of the logits of the output


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on each device; prints as a table in GB of 1e9 bytes.

    Args:
        devices: how many there are.
        parameters: all weights, with LoRA and the scales of quantization. Exact.
        gradients: of the trainable ones. Exact.
        optimizer: slots and counters. Exact.
        activations: of the blocks, by the formula of `estimate`.
        output_loss: logits of a chunk, and a copy and a gradient of the embedding.
    """

    devices: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    output_loss: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self)[1:])

    def table(self) -> Table:
        """The parts and their sum as a `rich` table."""
        table = Table("memory", box=None)
        table.add_column(f"GB on each of {self.devices}", justify="right")
        for name, size in [*list(dataclasses.asdict(self).items())[1:], ("total", self.total)]:
            table.add_row(name.replace("_", " "), f"{size / 1e9:,.3f}")
        return table

    def __str__(self) -> str:
        console = Console(width=80)
        with console.capture() as text:
            console.print(self.table())
        return text.get()


def estimate(
    pair: PairSpec,
    *,
    mesh: keras.distribution.DeviceMesh | tuple[int, int] | None = None,
    batch_size: int,
    source_length: int,
    target_length: int,
    dtype: str = "float32",
    optimizer: str | keras.optimizers.Optimizer = "adamw",
    lora_rank: int | None = None,
    train_cross_attention: bool = True,
    quantization: str | None = None,
    attention: str = "fused",
    remat: bool = False,
    chunk_tokens: int | None = CHUNK_TOKENS,
) -> Estimate:
    """The memory of a training step on each device; see the module for the formulas.

    Args:
        pair: what is trained, such as `keras_encdec.presets["gemma2_9b_2b"].spec`.
        mesh: `keras.distribution.DeviceMesh` with axes `batch` and `model`, or its shape;
            None for one device. For data parallel: None, with a device's `batch_size`.
        batch_size: B on all devices together.
        source_length: S.
        target_length: T.
        dtype: name of a dtype policy, such as `"bfloat16"` or `"mixed_bfloat16"`.
        optimizer: name or `keras.optimizers.Optimizer`.
        lora_rank: of `backbone.enable_lora`, or None.
        train_cross_attention: of `backbone.enable_lora`.
        quantization: `"int8"` or `"int4"` of `lm.quantize`, or None.
        attention: `"plain"`, as merged attention always is, or `"fused"`.
        remat: of `lm.compile`.
        chunk_tokens: of `FusedCrossEntropy`; None for a loss that takes logits.

    Raises:
        ValueError: if an option is none of these.

    Example:
        >>> spec = keras_encdec.presets["gemma2_9b_2b"].spec
        >>> sizes = {"batch_size": 8, "source_length": 1024, "target_length": 1024}
        >>> print(estimate(spec, mesh=(8, 1), dtype="bfloat16", remat=True, **sizes))
    """
    sizes = batch_size, source_length, target_length
    _check(*sizes, lora_rank, chunk_tokens, quantization, attention)
    mesh = _checked(pair, mesh, dtype, remat)
    layouts = {} if mesh is None else layout_map(mesh, pair)
    policy = keras.dtype_policies.get(dtype)
    tuned = lora_rank, train_cross_attention
    variables = _variables(pair, policy.variable_dtype, *tuned, quantization)
    weights = [dataclasses.replace(v, layout=layouts.get(v.path)) for v in variables]
    trainable = [w for w in weights if w.trainable]
    rows = batch_size if mesh is None else -(-batch_size // axis_sizes(mesh)["batch"])
    step = _Step(pair, layouts, rows, source_length, target_length, policy)
    return Estimate(
        devices=1 if mesh is None else mesh.devices.size,
        parameters=_bytes(weights),
        gradients=_bytes(trainable),
        optimizer=_bytes(_slots(optimizer, trainable)),
        activations=step.activations(attention, remat),
        output_loss=step.output_loss(chunk_tokens, trained=not (lora_rank or quantization)),
    )


def _checked(pair: Any, mesh: Any, dtype: Any, remat: Any) -> keras.distribution.DeviceMesh | None:
    """The mesh, of devices that need not exist where it is a shape."""
    check.flag("remat", remat)
    if not isinstance(pair, PairSpec):
        raise ValueError(f"Expected pair as a PairSpec. Received: {pair!r}.")
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected dtype as the name of a policy. Received: {dtype!r}.") from error
    if mesh is None or isinstance(mesh, keras.distribution.DeviceMesh):
        return mesh
    if not isinstance(mesh, (tuple, list)) or len(mesh) != 2:
        raise ValueError(f"Expected mesh as (batch, model), or None. Received: {mesh!r}.")
    return _planned(tuple(check.whole("mesh", n) for n in mesh))  # type: ignore[arg-type]


def _planned(shape: tuple[int, int]) -> keras.distribution.DeviceMesh:
    """A mesh of devices that need not exist."""
    devices = [f"planned:{i}" for i in range(math.prod(shape))]
    return keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)


def _variables(
    pair: PairSpec,
    dtype: str,
    lora_rank: int | None,
    train_cross_attention: bool,
    quantization: str | None,
) -> Iterable[Weight]:
    """What Keras makes of each weight: itself, its scales, its LoRA.

    A cross-attention that trains beside LoRA is whole, and not quantized.
    """
    for path, shape in pair.weights().items():
        layer, _, name = path.rpartition("/")
        if lora_rank and train_cross_attention and is_new(path):
            yield Weight(path, shape, dtype)
            continue
        if name in ("scale", "bias") or quantization is None:
            yield Weight(path, shape, dtype, trainable=not lora_rank)
        else:
            yield from quantized(path, shape, dtype, quantization)
        if lora_rank and path.endswith(_LORA):
            yield Weight(f"{layer}/lora_{name}_a", (*shape[:-1], lora_rank))
            yield Weight(f"{layer}/lora_{name}_b", (lora_rank, shape[-1]))


def quantized(path: str, shape: Shape, dtype: str, mode: str) -> Iterable[Weight]:
    """The int8 or int4 values of a kernel, and what their scale takes (Keras 3.15).

    Keras scales columns of kernels and rows of embeddings, so these count as (D, V).
    """
    layer, _, name = path.rpartition("/")
    inputs = 2 if path.endswith("attention_output/kernel") else 1
    if name == "embeddings":
        rows, columns = shape[1], shape[0]
        packed: Shape = (columns, -(-rows // 2))
    elif name == "reverse_embeddings":
        rows, columns = shape
        packed = (-(-rows // 2), columns)
    else:
        rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        packed = (rows, -(-columns // 2))
    if mode == "int8":
        yield Weight(path, shape, "int8", trainable=False)
        yield Weight(f"{path}_scale", (columns,), dtype, trainable=False)
        return
    groups = -(-rows // _INT4_BLOCK)
    yield Weight(path, packed, "int8", trainable=False)
    yield Weight(f"{path}_scale", (groups, columns), dtype, trainable=False)
    if name == "reverse_embeddings":  # Keras 3.15 makes its zeros in float32
        yield Weight(f"{path}_zero", (groups, columns), "float32", trainable=False)
    else:
        yield Weight(f"{path}_zero", (groups, columns), "int8", trainable=False)
        yield Weight(f"{layer}/g_idx", (rows,), "float32", trainable=False)


def _slots(optimizer: str | keras.optimizers.Optimizer, trainable: list[Weight]) -> list[Weight]:
    """Every variable that an optimizer asks for when it is built, none of them made.

    A slot made from a weight has the weight's layout. Others, such as Adafactor's rows
    and columns, Keras replicates.
    """
    optimizer = keras.optimizers.get(optimizer)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    asked: list[Weight] = []

    def add_variable(
        shape: Shape,
        dtype: str | None = None,
        layout: TensorLayout | None = None,
        name: str = "",
        **kwargs: Any,
    ) -> Weight:
        asked.append(Weight(name, tuple(shape), dtype or keras.backend.floatx(), layout=layout))
        return asked[-1]

    optimizer.add_variable = add_variable
    optimizer.build(trainable)
    made = [Weight(v.path, tuple(v.shape), v.dtype) for v in optimizer.variables]  # scalars
    return [*asked, *made]


def _bytes(weights: Iterable[Weight]) -> int:
    """On one device."""
    return sum(
        math.prod(shard_shape(w.shape, w.layout)) * np.dtype(w.dtype).itemsize for w in weights
    )


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block as far as a step needs memory for it.

    Args:
        side: `"encoder"` or `"decoder"`.
        spec: of its stack.
        length: tokens of a row, as queries.
        keys: of each of its attentions.
        plain: whether these keep their logits.
        gated: whether a gate keeps what it multiplies.
    """

    side: str
    spec: StackSpec
    length: int
    keys: tuple[int, ...]
    plain: bool
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class _Step:
    """The sizes of a step on one device; the formulas of `estimate`."""

    pair: PairSpec
    layouts: Mapping[str, TensorLayout]
    rows: int
    source: int
    target: int
    policy: keras.DTypePolicy

    @property
    def width(self) -> int:
        """Bytes of a number as computed with."""
        return np.dtype(self.policy.compute_dtype).itemsize

    def activations(self, attention: str, remat: bool) -> int:
        blocks = list(self._blocks(attention == "plain"))
        sizes = [self._kept(block) for block in blocks]
        kept = sum(sizes)
        if remat:
            inputs = sum(block.length * block.spec.width for block in blocks)
            kept = self.rows * self.width * inputs + max(sizes)
        in_chunks = [self._logits(b, _FUSED_QUERIES) for b in blocks if not b.plain]
        return kept + max(in_chunks, default=0) + self._gathered()

    def _blocks(self, plain: bool) -> Iterator["_Block"]:
        """Every block of the pair, with what its attentions see."""
        encoder, decoder, cross = self.pair.encoder, self.pair.decoder, self.pair.cross_attention
        for _ in range(encoder.num_layers):
            yield _Block("encoder", encoder, self.source, (self.source,), plain)
        for i in range(decoder.num_layers):
            sees, merged = cross.is_in(i), cross.is_in(i) and cross.merged
            keys = [self.target, self.source] if sees else [self.target]
            keys = [sum(keys)] if merged else keys
            gated = sees and cross.gate
            yield _Block("decoder", decoder, self.target, tuple(keys), plain or merged, gated)

    def _kept(self, block: "_Block") -> int:
        """Bytes that the backward pass needs of a block."""
        spec, length, (n, k, f) = block.spec, block.length, self._sizes(block.side, block.spec)
        norms = (2 if spec.post_norm else 1) * (len(block.keys) + 1)
        row = length * (4 * _PER_NORM * norms * spec.width + self.width * _PER_FEEDFORWARD * f)
        row += self.width * length * spec.width * block.gated
        heads = sum(_PER_QUERY * n * length + _PER_KEY * k * keys for keys in block.keys)
        row += self.width * spec.attention.head_dim * heads
        logits = sum(self._logits(block, length, keys) for keys in block.keys)
        return self.rows * row + (logits if block.plain else 0)

    def _logits(self, block: "_Block", queries: int, keys: int | None = None) -> int:
        """Of that many queries to that many keys, by default the most that it sees."""
        heads = self._sizes(block.side, block.spec)[0]
        seen = max(block.keys) if keys is None else keys
        return 4 * _PER_LOGIT * self.rows * heads * min(queries, block.length) * seen

    def _sizes(self, side: str, spec: StackSpec) -> tuple[int, int, int]:
        """N, K and F on a device, as the layout cuts the kernels."""
        kernels = spec.weights()
        names = ("attention/query", "attention/key", "feedforward/gate")
        paths = [f"block_0/{name}/kernel" for name in names]
        n, k, f = (shard_shape(kernels[p], self.layouts.get(f"{side}/{p}"))[1] for p in paths)
        return n, k, f

    def _gathered(self) -> int:
        """The weights of one block in the compute dtype, where the batch axis cuts them."""
        sizes: Counter[str] = Counter()
        for path, shape in self.pair.weights().items():
            if "/block_" in path and _is_cut(layout := self.layouts.get(path)):
                sizes["/".join(path.split("/")[:2])] += math.prod(_gathered_shape(shape, layout))
        return max(sizes.values(), default=0) * self.width

    def output_loss(self, chunk_tokens: int | None, trained: bool) -> int:
        path = self.pair.output
        layout = self.layouts.get(path)
        matrix = _gathered_shape(self.pair.weights()[path], layout)
        words = matrix[path.endswith("reverse_embeddings")]
        tokens = self.rows * self.target
        if chunk_tokens is not None:
            tokens = self.rows * max(1, min(chunk_tokens // self.rows, self.target))
        stored, computed, cut = (
            self.policy.variable_dtype,
            self.policy.compute_dtype,
            _is_cut(layout),
        )
        size = 4 * _PER_OUTPUT_LOGIT * tokens * words
        if cut or computed != stored or not trained:
            size += math.prod(matrix) * self.width
        if trained and (cut or stored != "float32"):
            size += math.prod(matrix) * 4
        return size


def _is_cut(layout: TensorLayout | None) -> bool:
    """Whether a weight must be gathered along the batch axis."""
    return layout is not None and "batch" in layout.axes


def _gathered_shape(shape: Shape, layout: TensorLayout | None) -> Shape:
    """A device's part of a weight once it has been gathered along the batch axis."""
    if layout is None:
        return shape
    axes = [None if axis == "batch" else axis for axis in layout.axes]
    return shard_shape(shape, TensorLayout(axes, layout.device_mesh))


def _check(
    batch_size: Any,
    source_length: Any,
    target_length: Any,
    lora_rank: Any,
    chunk_tokens: Any,
    quantization: Any,
    attention: Any,
) -> None:
    check.whole("batch_size", batch_size)
    check.whole("source_length", source_length)
    check.whole("target_length", target_length)
    if lora_rank is not None:
        check.whole("lora_rank", lora_rank)
    if chunk_tokens is not None:
        check.whole("chunk_tokens", chunk_tokens)
    check.one_of("quantization", quantization, (None, "int8", "int4"))
    check.one_of("attention", attention, ("plain", "fused"))
