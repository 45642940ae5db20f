"""The memory that a training step needs while it runs, beside variables and gradients.

Knows formulas, found by compiling steps and varying one size at a time (LOG.md). In bytes,
with c bytes to a number of the compute dtype. On a mesh, B, N, K, F and V are what one
device has. For each row of the batch a block keeps, for the backward pass,

    8 D per token and norm, and c (D + 5 F) per token,
    c (3 N H per query + 2 K H per key) for each attention, and its logits if it is plain:
    12 N T S,

and c D per query for a gate. An adaptor keeps 8 D per token of the input and group but the last,
and c (D + its width) if it projects. A decoder's block without cross-attention has only its own;
where attention is merged, one sees T + S keys, by the plain path whatever the others take.
Beside what is kept, one attention at a time works on 4 N T S more if it is plain; if fused,
on 24 N 256 S, a block of queries at a time.

With remat each block keeps its input, c D per token, and one at a time has the rest. Where
the batch axis cuts weights, those of a block are whole from its forward to its backward
pass: XLA gathers them once. With remat this is one block at a time too.

The output loss holds 12 V for each token of a chunk, 28 V with a teacher that is asked, the
embedding in the compute dtype, and the sum of its gradient in float32; these two where they
are not the variable and its gradient themselves. On a mesh whose devices divide V each has
its part of the words, for the tokens of all replicas: 8 V for each, 16 V with a teacher, and
where states are gathered (c + 4) D for them and their gradient. The teacher's forward pass
comes first, without the student's: on L = S + T + 1 tokens it works on the larger of 12 N L
and 3 c F for each, and on 2 c D.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from keras.distribution import TensorLayout

from keras_encdec.layout import shard_shape
from keras_encdec.layout.axes import axis_sizes
from keras_encdec.spec import Shape, StackSpec
from keras_encdec.training.planned import PlannedRun
from keras_encdec.training.replicas import gathered_tokens

_FUSED_QUERIES = 256  # at a time, where no kernel does it: keras_encdec.layers.fused

# Arrays that XLA keeps of each kind for the backward pass; autodiff alone would keep about
# twice as many.
_PER_NORM = 2  # of D, in float32
_PER_FEEDFORWARD = 5  # of F: gate, up, their product and the derivatives of gelu
_PER_QUERY, _PER_KEY = 3, 2  # of N * H and of K * H: before and after rotation, and the output
_PER_LOGIT = 3  # of attention logits, in float32: soft cap, exponentials, softmax
_PER_OUTPUT_LOGIT = 3  # likewise of the logits of the output
_PER_SHARDED_LOGIT = 2  # where each device has a part of the words

# Arrays that are there for a moment, of logits in float32.
_PLAIN_WORK, _FUSED_WORK = 1, 6
_TEACHER_WORK = 3  # of one attention or feed-forward of a forward pass
_PER_TEACHER_LOGIT = 4  # of the output: the teacher's, and what compares the two
_PER_SHARDED_TEACHER_LOGIT = 2


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
class Working:
    """The sizes of a planned run's step on one device; the formulas of the module."""

    run: PlannedRun

    def activations(self) -> int:
        """Of the fullest moment: the student's backward pass, or the teacher's forward."""
        run, blocks = self.run, list(self._blocks())
        kept = [self._kept(block) for block in blocks]
        size = sum(kept)
        if run.remat:
            inputs = sum(block.length * block.spec.width for block in blocks)
            size = run.rows * self._width * inputs + max(kept)
        size += self._adaptor()
        return max(size + max(map(self._work, blocks)), self._teacher())

    def _adaptor(self) -> int:
        """Bytes that the backward pass needs of what stands between the encoder and its reader."""
        adaptor, width = self.run.pair.adaptor, self.run.pair.encoder.width
        if adaptor is None:
            return 0
        size = 4 * _PER_NORM * width * (adaptor.groups - 1)
        size += self._width * (width + adaptor.width) if adaptor.width else 0
        return self.run.rows * self.run.source_length * size

    def gathered(self) -> int:
        """Weights of blocks that the batch axis cuts, whole in the compute dtype."""
        sizes: Counter[str] = Counter()
        for path, shape in self.run.pair.weights().items():
            if "/block_" in path and _is_cut(layout := self.run.layout(path)):
                block = "/".join(path.split("/")[:2])
                sizes[block] += self._width * math.prod(_gathered_shape(shape, layout))
        return max(sizes.values(), default=0) if self.run.remat else sizes.total()

    @property
    def _width(self) -> int:
        """Bytes of a number as computed with."""
        return np.dtype(self.run.policy.compute_dtype).itemsize

    def _blocks(self) -> Iterator[_Block]:
        """Every block of the pair, with what its attentions see."""
        pair, source, target = self.run.pair, self.run.source_length, self.run.target_length
        cross, plain = pair.cross_attention, self.run.attention == "plain"
        for _ in range(pair.encoder.num_layers):
            yield _Block("encoder", pair.encoder, source, (source,), plain)
        for i in range(pair.decoder.num_layers):
            sees, merged = cross.is_in(i), cross.is_in(i) and cross.merged
            keys = [target, source] if sees else [target]
            keys = [sum(keys)] if merged else keys
            gated = sees and cross.gate
            yield _Block("decoder", pair.decoder, target, tuple(keys), plain or merged, gated)

    def _kept(self, block: _Block) -> int:
        """Bytes that the backward pass needs of a block."""
        spec, length, (n, k, f) = block.spec, block.length, self._sizes(block)
        norms = len(spec.norm_sides) * (len(block.keys) + 1)
        row = length * (4 * _PER_NORM * norms * spec.width + self._width * _PER_FEEDFORWARD * f)
        row += self._width * length * spec.width * (1 + block.gated)
        heads = sum(_PER_QUERY * n * length + _PER_KEY * k * keys for keys in block.keys)
        row += self._width * spec.attentions[0].head_dim * heads
        if block.plain:
            row += 4 * _PER_LOGIT * n * length * sum(block.keys)
        return self.run.rows * row

    def _work(self, block: _Block) -> int:
        """Bytes that the block's largest attention needs for a moment."""
        count = _PLAIN_WORK if block.plain else _FUSED_WORK
        queries = block.length if block.plain else min(_FUSED_QUERIES, block.length)
        heads = self._sizes(block)[0]
        return 4 * count * self.run.rows * heads * queries * max(block.keys)

    def _sizes(self, block: _Block) -> tuple[int, int, int]:
        """N, K and F on a device, as the layout cuts the kernels."""
        kernels, side = block.spec.weights(), block.side
        names = ("attention/query", "attention/key", "feedforward/gate")
        paths = [f"block_0/{name}/kernel" for name in names]
        n, k, f = (shard_shape(kernels[p], self.run.layout(f"{side}/{p}"))[1] for p in paths)
        return n, k, f

    def _teacher(self) -> int:
        """The forward pass of a teacher that is asked, on input and target as one text."""
        spec, run = self.run.teacher, self.run
        if spec is None:
            return 0
        width = np.dtype(run.teacher_policy.compute_dtype).itemsize
        length = run.source_length + run.target_length + 1
        heads, dim = spec.attentions[0].num_heads, spec.feedforward_dims[0]
        widest = max(4 * heads * length, width * dim)
        return run.rows * length * (_TEACHER_WORK * widest + 2 * width * spec.width)

    def output_loss(self) -> int:
        """Of a chunk of logits, and of the matrix that makes them."""
        run, layout = self.run, self.run.layout(self.run.pair.output)
        words, width, replicas = self._output_matrix(layout)
        rows = run.rows * replicas
        tokens = rows * run.target_length
        if run.chunk_tokens is not None:
            of_chunk = gathered_tokens(run.chunk_tokens, replicas, words * replicas, width)
            tokens = rows * max(1, min(of_chunk // rows, run.target_length))
        size = 4 * self._arrays_of_logits() * tokens * words
        if replicas > 1:
            size += tokens * width * (self._width + 4)
        stored, computed = run.policy.variable_dtype, run.policy.compute_dtype
        trained = not (run.lora_rank or run.quantization)
        if _is_cut(layout) or computed != stored or not trained:
            size += words * width * self._width
        if trained and (_is_cut(layout) or stored != "float32"):
            size += words * width * 4
        return size

    @property
    def _shards_words(self) -> bool:
        run = self.run
        divides = run.pair.decoder.vocabulary_size % run.devices == 0
        return run.mesh is not None and run.chunk_tokens is not None and divides

    def _arrays_of_logits(self) -> int:
        """Float32 numbers that are held of each logit of a chunk."""
        if self._shards_words:
            return _PER_SHARDED_LOGIT + _PER_SHARDED_TEACHER_LOGIT * (self.run.teacher is not None)
        return _PER_OUTPUT_LOGIT + _PER_TEACHER_LOGIT * (self.run.teacher is not None)

    def _output_matrix(self, layout: TensorLayout | None) -> tuple[int, int, int]:
        """Words and width of what a device multiplies by, and whose replicas' tokens it takes.

        Of all with a part of the words (`keras_encdec.training.replicas`), else of its own.
        """
        run, path = self.run, self.run.pair.output
        shape = run.pair.weights()[path]
        transposed = path.endswith("reverse_embeddings")
        size, width = reversed(shape) if transposed else shape
        if self._shards_words:
            return size // run.devices, width, axis_sizes(run.mesh)["batch"]
        matrix = _gathered_shape(shape, layout)
        return matrix[transposed], width, 1


def _is_cut(layout: TensorLayout | None) -> bool:
    """Whether a weight must be gathered along the batch axis."""
    if layout is None:
        return False
    return "batch" in layout.axes and axis_sizes(layout.device_mesh)["batch"] > 1


def _gathered_shape(shape: Shape, layout: TensorLayout | None) -> Shape:
    """A device's part of a weight once it has been gathered along the batch axis."""
    if layout is None:
        return shape
    axes = [None if axis == "batch" else axis for axis in layout.axes]
    return shard_shape(shape, TensorLayout(axes, layout.device_mesh))
