"""The vocabulary as a device sees it: every word, or a shard of them.

Knows sums, largest values and places over words, the last axis of an array. Leaves what they
are asked for to `keras_encdec.training.chunk` and `keras_encdec.training.distillation`.
"""

import dataclasses

from keras import ops

from keras_encdec.spec import Tensor


class Words:
    """Every word is here."""

    def max(self, x: Tensor) -> Tensor:
        """(..., v) to (...): the largest of all words."""
        return ops.max(x, axis=-1)

    def sum(self, x: Tensor) -> Tensor:
        """(..., v) to (...): of all words."""
        return ops.sum(x, axis=-1)

    def count(self, x: Tensor) -> int:
        """V, of which an array (..., v) holds what is here."""
        return x.shape[-1]

    def log_softmax(self, x: Tensor) -> Tensor:
        """(..., v) to log-probabilities (..., v), whose sum is over all words."""
        x = x - self.max(x)[..., None]
        return x - ops.log(self.sum(ops.exp(x)))[..., None]

    def take(self, x: Tensor, ids: Tensor) -> Tensor:
        """(B, t, v) and words (B, t) to what each is (B, t)."""
        return ops.take_along_axis(x, ids[..., None], axis=-1)[..., 0]

    def one_hot(self, ids: Tensor, size: int) -> Tensor:
        """Words (B, t) to (B, t, size) float32, of the `size` words that are here."""
        return ops.one_hot(ids, size, dtype="float32")

    def scatter(self, values: Tensor, ids: Tensor, size: int) -> Tensor:
        """Values of words (B, t, k) to those of the `size` words that are here (B, t, size)."""
        rows, length, _ = ops.shape(ids)
        token = ops.reshape(ops.arange(rows * length, dtype="int32"), (rows, length, 1))
        place = ops.reshape(token * size + ids, (-1,))
        dense = ops.segment_sum(
            ops.reshape(values, (-1,)), place, num_segments=rows * length * size
        )
        return ops.reshape(dense, (rows, length, size))


ALL = Words()


@dataclasses.dataclass(frozen=True)
class Shard(Words):
    """An equal part of the words on each device; in the body of a `jax.shard_map`.

    Args:
        axes: of the mesh, which together cut the vocabulary, the first one most coarsely.
    """

    axes: tuple[str, ...]

    def max(self, x: Tensor) -> Tensor:
        import jax

        return jax.lax.pmax(super().max(x), self.axes)

    def sum(self, x: Tensor) -> Tensor:
        import jax

        return jax.lax.psum(super().sum(x), self.axes)

    def count(self, x: Tensor) -> int:
        import jax

        return super().count(x) * jax.lax.axis_size(self.axes)

    def take(self, x: Tensor, ids: Tensor) -> Tensor:
        import jax

        place, here = self._find(ids, x.shape[-1])
        return jax.lax.psum(ops.where(here, super().take(x, place), 0.0), self.axes)

    def one_hot(self, ids: Tensor, size: int) -> Tensor:
        place, here = self._find(ids, size)
        return super().one_hot(ops.where(here, place, -1), size)  # -1 is no word: all zeros

    def scatter(self, values: Tensor, ids: Tensor, size: int) -> Tensor:
        place, here = self._find(ids, size)
        return super().scatter(ops.where(here, values, 0.0), place, size)

    def _find(self, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where a word is among those here, and whether it is."""
        import jax

        place = ids - size * jax.lax.axis_index(self.axes)
        here = ops.logical_and(place >= 0, place < size)
        return ops.clip(place, 0, size - 1), here
