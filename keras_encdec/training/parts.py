"""Many rows through a model, some at a time: a step's memory no longer grows with its batch.

Knows how rows are divided and that the backward pass computes each part again. Leaves what a
row becomes to the model.
"""

from collections.abc import Callable, Mapping

import keras
from keras import ops

from keras_encdec.spec import Tensor


def check_backend() -> None:
    """Raises ValueError where rows cannot be divided."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Expected JAX with texts_at_once. Received: {keras.backend.backend()}. Leave it out, "
            "or set backbone.remat = True for memory."
        )


def in_parts(
    function: Callable[[Mapping[str, Tensor]], Tensor], rows: Mapping[str, Tensor], size: int
) -> Tensor:
    """`function(rows)`, of which the backward pass needs `rows` and weights alone.

    The value and its gradients are those of one call: gradient caching (arXiv 2101.06983),
    written as recomputation, part by part.

    Args:
        function: of rows, (R, S) each, to vectors (R, D), each row for itself; it changes no
            variable.
        rows: (R, S) each.
        size: rows at a time.
    """
    import jax

    count = ops.shape(next(iter(rows.values())))[0]
    if count <= size:
        return function(rows)
    filled = {name: ops.pad(x, ((0, -count % size), (0, 0))) for name, x in rows.items()}
    parts = {name: ops.reshape(x, (-1, size, x.shape[-1])) for name, x in filled.items()}
    vectors = jax.lax.map(jax.checkpoint(function, prevent_cse=False), parts)
    return ops.reshape(vectors, (-1, vectors.shape[-1]))[:count]
