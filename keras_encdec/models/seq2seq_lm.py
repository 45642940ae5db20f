"""The task: text in, text out; `fit`, `generate`, `save_to_preset`.

Knows the output layer. Training is `keras_encdec.models.pair_learner`'s, decoding
`keras_encdec.generation`'s, and folders are `keras_encdec.sharing`'s.
"""

from typing import Any

import keras
import keras_hub

from keras_encdec import check
from keras_encdec.generation.generator import Generator
from keras_encdec.layers.report import AttentionReport, report
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.exports import Exports
from keras_encdec.models.images import OptionalImages
from keras_encdec.models.pair_learner import PairLearner
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor, check_preprocessor
from keras_encdec.models.task_files import TaskFiles


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLM(
    OptionalImages, Exports, Generator, TaskFiles, PairLearner, keras_hub.models.Seq2SeqLM
):
    """An encoder-decoder language model with its preprocessor.

    Called on model inputs it returns logits (B, T, V). `fit` takes pairs of texts
    (`fit(inputs, targets)`, or a dict, rows or a dataset with `encoder_text` and
    `decoder_text`), plain texts (a list, files by `keras_encdec.data.read`, a dataset),
    which the preprocessor's objective makes into examples, `keras_encdec.data.Tokens`, or
    ready model inputs.

    A pair with `vision` reads `images` beside texts: for each text an array (H, W, 3) of integers
    from 0 to 255 or floats from 0 to 1, a picture of PIL, or a list of several. They stand in
    front of the text, or where it says `<start_of_image>`, once for each. `vision` is frozen
    unless `backbone.vision.trainable` is set.

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

    def attention_report(
        self, source: int = 1024, target: int = 1024, batch_size: int = 32
    ) -> AttentionReport:
        """Which kernel each kind of attention takes in a training step, and why no faster one.

        By `backbone.attention`, the active distribution, and this machine.

        Args:
            source: tokens of the encoder's rows.
            target: tokens of the decoder's rows.
            batch_size: rows of the step.

        Returns:
            `AttentionReport`, which prints as a table; `rows` has it as data.

        Example:
            >>> print(lm.attention_report(source=4096, target=512))
        """
        given = {"batch_size": batch_size, "source": source, "target": target}
        sizes = {name: check.whole(name, size) for name, size in given.items()}
        return report(self.backbone.encoder, self.backbone.decoder, **sizes)

    # Files.

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, of the backbone: a tokenizer has nothing to quantise."""
        super().quantize(mode, **kwargs)
        self.generate_function = None
