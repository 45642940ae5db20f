"""The task: text in, text out; `fit`, `generate`, `save_to_preset`.

Knows the output layer. Training is `keras_encdec.models.learner`'s, decoding
`keras_encdec.generation`'s, and folders are `keras_encdec.sharing`'s.
"""

from typing import Any

import keras
import keras_hub

from keras_encdec import check, hosts, integrity
from keras_encdec.files import atomic_folder
from keras_encdec.generation.generator import Generator
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.learner import Learner
from keras_encdec.models.policies import bytes_in_files
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor, check_preprocessor


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLM(Generator, Learner, keras_hub.models.Seq2SeqLM):
    """An encoder-decoder language model with its preprocessor.

    Called on model inputs it returns logits (B, T, V). `fit` takes pairs of texts
    (`fit(inputs, targets)`, or a dict, rows or a dataset with `encoder_text` and
    `decoder_text`), plain texts (a list, files by `keras_encdec.data.read`, a dataset),
    which the preprocessor's objective makes into examples, `keras_encdec.data.Tokens`, or
    ready model inputs.

    Args:
        backbone: `EncDecBackbone`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`, or None to work on tokens.
        **kwargs: of `keras_hub.models.Seq2SeqLM`.

    Raises:
        ValueError: if the preprocessor is something else, or its tokenizers have more tokens
            than the embeddings have rows.

    Example:
        >>> lm = keras_encdec.from_preset("gemma2_tiny_tiny")
        >>> lm.fit(["Some text.", "More text."])
        >>> lm.generate("Some", max_length=32)

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225)
    """

    backbone_cls = EncDecBackbone
    preprocessor_cls = EncDecSeq2SeqLMPreprocessor

    def __init__(self, backbone: EncDecBackbone, preprocessor: Any = None, **kwargs: Any):
        check_preprocessor(preprocessor, backbone.spec)
        self.backbone = backbone
        self.preprocessor = preprocessor
        states = backbone(backbone.input)["decoder_sequence_output"]
        logits = backbone.decoder.embedding(states, reverse=True)
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)

    # Files.

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, of the backbone: a tokenizer has nothing to quantise."""
        self.backbone.quantize(mode, **kwargs)
        self.train_function = self.test_function = self.predict_function = None
        self.generate_function = None

    @hosts.by_first
    def save_to_preset(self, preset_dir: Any, max_shard_size: float | None = 10) -> None:
        """Writes a KerasHub preset folder, whole or not at all.

        Args:
            preset_dir: the folder; new, empty, or a preset to replace.
            max_shard_size: of one weights file, in GB; None for a single file.

        Raises:
            ValueError: if the folder holds something else.
        """
        if max_shard_size is not None:
            check.real("max_shard_size", max_shard_size, above=0)
        size, largest = bytes_in_files(self.weights, max_shard_size)
        with atomic_folder(preset_dir, size, largest=largest) as folder:
            super().save_to_preset(str(folder), max_shard_size)
            integrity.write(folder, self.backbone)

    def export_to_transformers(self, path: Any, max_shard_size: float = 5.0) -> None:
        """See `keras_encdec.sharing.export.export_to_transformers`."""
        from keras_encdec.sharing.export import export_to_transformers

        export_to_transformers(self, path, max_shard_size)
