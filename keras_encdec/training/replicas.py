"""A chunk of the output loss on the devices that there are.

Knows two ways. Each device has some rows and all words, as XLA cuts them; or, on JAX's
meshes, all rows of a chunk and a shard of the words, so that no device holds the whole
embedding or the whole of its gradient. Leaves the mathematics to
`keras_encdec.training.chunk` and the loop over T to `keras_encdec.training.loss`.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.spec import Shape, Tensor
from keras_encdec.training.chunk import Chunk, dot
from keras_encdec.training.words import Shard


@dataclasses.dataclass(frozen=True)
class Rows:
    """Each device has the rows of its data replica, and all words.

    Args:
        chunk: the mathematics.
        dtype: of what is multiplied.
        replicas: groups of rows that lie on devices of their own.
    """

    chunk: Chunk
    dtype: str
    replicas: int = 1

    def tokens(self, chunk_tokens: int, shape: Shape) -> int:
        """Of a chunk on all devices, for a matrix (V, D) and as many logits as a replica takes."""
        return chunk_tokens * self.replicas

    def matrix(self, matrix: Tensor) -> Tensor:
        """(V, D) as `values` and `gradients` read it."""
        return ops.cast(matrix, self.dtype)

    def values(self, states: Tensor, matrix: Tensor, *tokens: Tensor) -> Tensor:
        """(4,) sums of a chunk.

        Args:
            states: (B, t, D).
            matrix: what `matrix` gave.
            *tokens: labels, weights, and chunks of a teacher's inputs.
        """
        return self.chunk(states, matrix, *self._targets(*tokens), gradient=False)[0]

    def nll(self, states: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B, t) of a chunk, as `keras_encdec.training.chunk.Chunk.nll`."""
        return self.chunk.nll(states, matrix, labels, weights)

    def gradients(
        self, states: Tensor, matrix: Tensor, *tokens: Tensor, by_matrix: bool
    ) -> tuple[Tensor, ...]:
        """As `values`, and gradients of the first sum, float32.

        They are by states (B, t, D) and, with `by_matrix`, what may be added to `zeros`.
        """
        sums, d_logits = self.chunk(states, matrix, *self._targets(*tokens), gradient=True)
        d_logits = ops.cast(d_logits, self.dtype)
        d_states = dot("btv,vd->btd", d_logits, matrix)
        return (sums, d_states, *([self._by_matrix(d_logits, states)] if by_matrix else []))

    def zeros(self, shape: Shape) -> Tensor:
        """(R, V, D) for a matrix of (V, D).

        Each data replica sums its own rows, so that devices talk once, at the end.
        """
        return ops.zeros((self.replicas, *shape), "float32")

    def total(self, d_matrix: Tensor) -> Tensor:
        """What was added to `zeros`, as the gradient by the matrix."""
        return ops.sum(d_matrix, axis=0)

    def _by_matrix(self, d_logits: Tensor, states: Tensor) -> Tensor:
        if self.replicas == 1:  # without the batch axis XLA needs no transposed copy
            return _by_matrix(d_logits, states)[None]
        d_logits, states = (
            ops.reshape(x, (self.replicas, -1, *x.shape[1:])) for x in (d_logits, states)
        )
        return dot("rbtv,rbtd->rvd", d_logits, states)

    def _targets(self, labels: Tensor, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        teacher = self.chunk.teacher
        return labels, weights, *(inputs if teacher is None else teacher.chunk(*inputs))


@dataclasses.dataclass(frozen=True)
class Shards(Rows):
    """Each device has a shard of the words, and all rows of a chunk.

    The states of a chunk are gathered along the batch axis, and their gradient is summed and
    scattered, where `Rows` gathers the embedding and sums its gradient. Each device sends its
    own tokens' states once and receives all others': less than V of them for most batches.

    Args:
        mesh: `jax.sharding.Mesh`.
        batch: its axis that cuts the rows.
    """

    mesh: Any = None
    batch: str = "batch"

    def tokens(self, chunk_tokens: int, shape: Shape) -> int:
        size, width = shape
        return gathered_tokens(chunk_tokens, self.replicas, size // self._others, width)

    def matrix(self, matrix: Tensor) -> Tensor:
        return self._laid(super().matrix(matrix), (self._axes,))

    def values(self, states: Tensor, matrix: Tensor, *tokens: Tensor) -> Tensor:
        here = Rows(self._chunk, self.dtype)

        def local(*inputs: Tensor) -> Tensor:
            return here.values(*self._gathered(*inputs))

        return self._map(local, self._specs()[0], states, matrix, *self._targets(*tokens))

    def nll(self, states: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        here = Rows(self._chunk, self.dtype)

        def local(*inputs: Tensor) -> Tensor:
            return here.nll(*self._gathered(*inputs))

        return self._map(local, self._specs()[0], states, matrix, labels, weights)

    def gradients(
        self, states: Tensor, matrix: Tensor, *tokens: Tensor, by_matrix: bool
    ) -> tuple[Tensor, ...]:
        import jax

        here = Rows(self._chunk, self.dtype)

        def local(*inputs: Tensor) -> tuple[Tensor, ...]:
            sums, d_states, *d_matrix = here.gradients(
                *self._gathered(*inputs), by_matrix=by_matrix
            )
            d_states = jax.lax.psum_scatter(d_states, self.batch, tiled=True)
            if self._others > 1:
                d_states = jax.lax.psum(d_states, self._axes[:-1])
            return (sums, d_states, *(d[0] for d in d_matrix))

        specs = self._specs()[: 2 + by_matrix]
        return self._map(local, specs, states, matrix, *self._targets(*tokens))

    def zeros(self, shape: Shape) -> Tensor:
        return self._laid(ops.zeros(shape, "float32"), (self._axes,))

    def total(self, d_matrix: Tensor) -> Tensor:
        return d_matrix

    def _targets(self, labels: Tensor, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """A teacher writes logits of its shard of words for all rows, as the student does."""
        if self._asks:
            inputs = tuple(self._laid(x, ()) for x in inputs)
        return super()._targets(labels, weights, *inputs)

    @property
    def _axes(self) -> tuple[str, ...]:
        """The mesh's, that of the batch last: it cuts further what the others have cut."""
        return (*(name for name in self.mesh.axis_names if name != self.batch), self.batch)

    @property
    def _others(self) -> int:
        """Devices along all axes but the batch's."""
        return self.mesh.size // self.replicas

    @property
    def _chunk(self) -> Chunk:
        """For one device, where a teacher's logits come as they are."""
        teacher = self.chunk.teacher
        ready = teacher and dataclasses.replace(teacher, logits=None)
        return dataclasses.replace(self.chunk, words=Shard(self._axes), teacher=ready)

    @property
    def _asks(self) -> bool:
        return self.chunk.teacher is not None and self.chunk.teacher.logits is not None

    def _gathered(self, states: Tensor, matrix: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        """With the rows of all devices; of a teacher's logits each has all of its words'."""
        import jax

        there = 2 if self._asks else len(tokens)
        rows = [jax.lax.all_gather(x, self.batch, tiled=True) for x in (states, *tokens[:there])]
        return rows[0], matrix, *rows[1:], *tokens[there:]

    def _specs(self) -> tuple[Any, ...]:
        """Where sums, rows and words lie."""
        import jax

        return tuple(jax.sharding.PartitionSpec(*x) for x in ((), (self.batch,), (self._axes,)))

    def _map(
        self, local: Any, results: Any, states: Tensor, matrix: Tensor, *tokens: Tensor
    ) -> Any:
        """`local` on every device."""
        import jax

        _, rows, words = self._specs()
        logits = jax.sharding.PartitionSpec(None, None, self._axes)
        targets = [logits if self._asks else rows] * (len(tokens) - 2)
        given = (rows, words, rows, rows, *targets)
        options = {"mesh": self.mesh, "in_specs": given, "out_specs": results}
        return jax.shard_map(local, check_vma=False, **options)(states, matrix, *tokens)

    def _laid(self, x: Tensor, axes: tuple[Any, ...]) -> Tensor:
        """With each dimension cut by these axes."""
        import jax

        sharding = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(*axes))
        return jax.lax.with_sharding_constraint(x, sharding)


def _by_matrix(d_logits: Tensor, states: Tensor) -> Tensor:
    """(v, D)."""
    d_logits, states = (ops.reshape(x, (-1, x.shape[-1])) for x in (d_logits, states))
    return dot("nv,nd->vd", d_logits, states)


def on_devices(chunk: Chunk, dtype: str, rows: int, vocabulary_size: int) -> Rows:
    """The way for a batch of `rows` under the active distribution.

    What cuts no weight (data parallel) keeps the embedding whole, and so its gradient.
    """
    distribution = keras.distribution.distribution()
    replicas = layout.replicas()
    if distribution is None or rows % replicas:
        return Rows(chunk, dtype)
    mesh = distribution.device_mesh
    cuts = isinstance(distribution, keras.distribution.ModelParallel)
    if not cuts or keras.backend.backend() != "jax" or vocabulary_size % mesh.devices.size:
        return Rows(chunk, dtype, replicas)
    of_mesh = {"mesh": mesh.backend_mesh, "batch": distribution.batch_dim_name}
    return Shards(chunk, dtype, replicas, **of_mesh)


def gathered_tokens(chunk_tokens: int, replicas: int, words: int, width: int) -> int:
    """Tokens of a chunk whose states all devices gather.

    As many as make a device `chunk_tokens` times `words` logits, but on hundreds of devices no
    more than have as many numbers in their states.

    Args:
        chunk_tokens: of `keras_encdec.training.FusedCrossEntropy`.
        replicas: devices along the batch axis, which divide the words further.
        words: that the other axes leave a device.
        width: D.
    """
    return chunk_tokens * min(replicas, max(1, words // width))
