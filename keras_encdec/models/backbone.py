"""The encoder-decoder as a KerasHub backbone. Knows inputs, outputs and config."""

import dataclasses
from pathlib import Path

import h5py
import keras
import keras_hub

from keras_encdec.files import atomic_folder, shard_names
from keras_encdec.layers.stack import Decoder, Encoder
from keras_encdec.spec import PairSpec, stack_from_json


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecBackbone(keras_hub.models.Backbone):
    """An encoder and a decoder with cross-attention, from two independent specs.

    Inputs are KerasHub's: `encoder_token_ids`, `encoder_padding_mask` (B, S) and
    `decoder_token_ids`, `decoder_padding_mask` (B, T). Outputs are
    `encoder_sequence_output` (B, S, D') and `decoder_sequence_output` (B, T, D).
    `backbone.encoder` and `backbone.decoder` can each be called alone.

    A padding mask is 0 for padding and 1 for tokens. Rows that hold several examples
    number them 1, 2, 3, ... in both masks: each then sees only itself, from position 0.

    Args:
        encoder: `StackSpec`, or its fields as a dict.
        decoder: `StackSpec`, or its fields as a dict.
        encoder_attention: `"bidirectional"` or `"causal"`.
        dtype: dtype or policy of computations and weights.
        **kwargs: of `keras_hub.models.Backbone`.

    Raises:
        ValueError: if a spec contradicts itself.

    Example:
        >>> pair = keras_encdec.testing.tiny_pair()
        >>> backbone = EncDecBackbone(pair.encoder, pair.decoder)

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225)
    """

    def __init__(self, encoder, decoder, encoder_attention="bidirectional", dtype=None, **kwargs):
        spec = PairSpec(stack_from_json(encoder), stack_from_json(decoder), encoder_attention)
        self.encoder = Encoder(
            spec.encoder, causal=encoder_attention == "causal", dtype=dtype, name="encoder"
        )
        self.decoder = Decoder(spec.decoder, spec.encoder.width, dtype=dtype, name="decoder")
        inputs = {
            f"{side}_{name}": keras.Input((None,), dtype="int32", name=f"{side}_{name}")
            for side in ("encoder", "decoder")
            for name in ("token_ids", "padding_mask")
        }
        source = (inputs["encoder_token_ids"], inputs["encoder_padding_mask"])
        target = (inputs["decoder_token_ids"], inputs["decoder_padding_mask"])
        encoder_output = self.encoder(*source)
        decoder_output = self.decoder(*target, encoder_output, source[1])
        super().__init__(
            inputs=inputs,
            outputs={
                "encoder_sequence_output": encoder_output,
                "decoder_sequence_output": decoder_output,
            },
            dtype=dtype,
            **kwargs,
        )
        self.spec = spec

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """As `EncDecSeq2SeqLM.save_to_preset`, without a task."""
        with atomic_folder(preset_dir) as folder:
            super().save_to_preset(str(folder), max_shard_size)

    def load_weights(self, filepath, *args, **kwargs):
        """As in Keras, but refuses damaged files, of which Keras skips what it cannot read.

        Raises:
            ValueError: if a file is missing, truncated or lies outside the folder.
        """
        _check_readable(Path(filepath))
        super().load_weights(filepath, *args, **kwargs)

    def get_config(self):
        return {**super().get_config(), **dataclasses.asdict(self.spec)}


def _check_readable(path: Path) -> None:
    for name in shard_names(path) if path.suffix == ".json" else [path.name]:
        try:
            h5py.File(path.with_name(name)).close()
        except OSError as error:
            raise ValueError(
                f"Expected a whole weights file. Received: {path.with_name(name)}, which cannot "
                f"be read ({error}). Download or save it again."
            ) from error
