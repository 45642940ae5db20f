"""Attention for CPUs: one head of one row at a time, so that logits stay in a core's cache.

Memory grows linearly with the text, forward and backward. Leaves when to take it to
`keras_encdec.layers.fused`.
"""

from keras_encdec.layers.masks import KeyRange
from keras_encdec.layers.shards import Attend
from keras_encdec.layers.softmax import softmax
from keras_encdec.spec import Tensor

# Logits at once: 4 MB. At 2048 x 2048 (4 rows, 8 heads of 64) 0.27 s, where all heads of 256
# queries take 0.50 and the plain path 0.73 (LOG.md).
_LOGITS = 2**20


def kernel(*, scale: float, soft_cap: float | None) -> Attend:
    """For queries that each see something."""
    import jax
    import jax.numpy as jnp

    def run(
        query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, sinks: Tensor | None = None
    ) -> Tensor:
        rows, length, heads, width = query.shape
        keys, kv_heads = key.shape[1:3]
        group = heads // kv_heads
        most = max(1, _LOGITS // (group * keys))
        count = -(-length // most)
        size = -(-length // count)

        def by_block(x: Tensor) -> Tensor:
            """(B, T, ...) to (B, count, size, ...)."""
            widths = [(0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)]
            return jnp.pad(x, widths).reshape(rows, count, size, *x.shape[2:])

        def each(x: Tensor) -> Tensor:
            """(B, T) to (B, count, size * G), one for each query of a block."""
            return jnp.repeat(by_block(x), group, axis=2)

        # (B, K, count, size * G, H): plain matrices, whose products XLA on CPU is quick at.
        query = by_block(query * scale).reshape(rows, count, size, kv_heads, group, width)
        query = jnp.moveaxis(query, 3, 1).reshape(rows, kv_heads, count, size * group, width)
        key, value = (jnp.moveaxis(x, 2, 1) for x in (key, value))  # (B, K, S, H)
        start, end = each(visible.start), jnp.maximum(each(visible.end), 1)
        places = jnp.arange(keys)
        if sinks is not None:  # (K, size * G, 1)
            sinks = jnp.tile(sinks.reshape(kv_heads, group), (1, size))[..., None]

        def of_row(row: tuple[Tensor, ...]) -> Tensor:
            query, key, value, start, end = row

            def of_head(head: tuple[Tensor, ...]) -> Tensor:
                query, key, value, sinks = head

                @jax.checkpoint
                def of_block(block: tuple[Tensor, ...]) -> Tensor:
                    # Or XLA makes what is seen once for all heads, T x S of it.
                    query, start, end = jax.lax.optimization_barrier(block)
                    seen = (places >= start[:, None]) & (places < end[:, None])
                    logits = jnp.matmul(query, key.T)
                    weights = softmax(logits, seen, soft_cap, value.dtype, sinks)
                    return jnp.matmul(weights, value)

                return jax.lax.map(of_block, (query, start, end))

            return jax.lax.map(of_head, (query, key, value, sinks))

        output = jax.lax.map(of_row, (query, key, value, start, end))
        output = output.reshape(rows, kv_heads, count, size, group, width)
        output = jnp.moveaxis(output, 1, 3).reshape(rows, count * size, heads, width)
        return output[:, :length]

    return run
