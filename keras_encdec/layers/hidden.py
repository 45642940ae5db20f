"""Which states predict hidden tokens, and what logits are written from."""

from typing import Any

import keras
from keras import ops

from keras_encdec.spec import StackSpec, Tensor


def states_to_read(states: Tensor, spec: StackSpec) -> Tensor:
    """Normalised states as logits are written from them, in whatever way that is done."""
    return states if spec.logits_scaling == 1 else states / spec.logits_scaling


@keras.saving.register_keras_serializable(package="keras_encdec")
class StatesBefore(keras.layers.Layer):
    """(B, S, D) states and (B, T) places to the states in front of them, (B, T, D)."""

    def call(self, states: Tensor, places: Tensor) -> Tensor:
        before = ops.maximum(ops.cast(places, "int32") - 1, 0)
        return ops.take_along_axis(states, before[..., None], axis=1)

    def compute_output_spec(self, states: Tensor, places: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((*places.shape, states.shape[-1]), states.dtype)


@keras.saving.register_keras_serializable(package="keras_encdec")
class OutputMatrix(keras.layers.Layer):
    """What writes logits where the embedding does not; to a loss, as a `ReversibleEmbedding`.

    Args:
        input_dim: V.
        output_dim: D.
        logit_soft_cap: of the logits, or None.
        **kwargs: of `keras.layers.Layer`.
    """

    tie_weights = False
    quantization_mode = None

    def __init__(
        self, input_dim: int, output_dim: int, logit_soft_cap: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.logit_soft_cap = logit_soft_cap

    def build(self, *input_shapes: Any) -> None:
        self.reverse_embeddings = self.add_weight(
            (self.output_dim, self.input_dim), name="reverse_embeddings"
        )

    def call(self, states: Tensor, reverse: bool = True) -> Tensor:
        """(B, T, D) states to logits (B, T, V)."""
        logits = ops.matmul(states, self.reverse_embeddings)
        cap = self.logit_soft_cap
        return logits if cap is None else ops.tanh(logits / cap) * cap

    def get_config(self) -> dict[str, Any]:
        names = "input_dim", "output_dim", "logit_soft_cap"
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
