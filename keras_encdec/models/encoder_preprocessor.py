"""Texts to what an encoder reads: what preprocessors of tasks on an encoder have in common.

Knows KerasHub's calls and config. What a row is, `keras_encdec.objectives.reader` knows.
"""

from typing import Any

import keras

from keras_encdec.data.labelled import Labelled, as_labelled
from keras_encdec.data.ready import ids_within
from keras_encdec.objectives.reader import Reader
from keras_encdec.objectives.rows import Inputs

_OWN = "separator", "add_start_token", "add_end_token", "allow_special", "seed"
OPTIONS = "sequence_length", *_OWN

_Mixin: Any = object  # beside a preprocessor of KerasHub, whose methods it calls


class EncoderPreprocessor(_Mixin):
    """Gives a preprocessor its arguments, which are a `Reader`'s, and its calls."""

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int = 512,
        separator: str = "\n",
        add_start_token: bool = False,
        add_end_token: bool = False,
        allow_special: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.separator = separator
        self.add_start_token = add_start_token
        self.add_end_token = add_end_token
        self.allow_special = allow_special
        self.seed = seed
        self.reader  # noqa: B018 - checks them
        self.built = tokenizer.built = True  # else Keras traces the whole model in each epoch

    @property
    def reader(self) -> Reader:
        """What text becomes, by the settings as they are now."""
        return Reader(**self._options)

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokenizer", *OPTIONS)}

    def build(self, input_shape: Any = None) -> None:
        """Nothing: all is known from the start."""

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Text to `x`, `(x, y)` or `(x, y, sample_weight)`, as KerasHub has it.

        Args:
            x: texts, as `keras_encdec.data.labelled.as_labelled` takes them.
            y: labels, given back as they are.
            sample_weight: likewise.

        Returns:
            `x` with `token_ids` and `padding_mask`, int32, (B, S), or (B, C, S) with choices;
            without B for a single text.
        """
        source = as_labelled(x, y, sample_weight)
        if not isinstance(source, Labelled):
            raise ValueError("Expected text. Received: ready arrays.")
        inputs = inputs_of(source, self.reader)
        if source.single:
            inputs = {name: array[0] for name, array in inputs.items()}
        return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["truncate"]
        return {**config, **{name: getattr(self, name) for name in _OWN}}


def inputs_of(source: Any, reader: Reader | None, vocabulary_size: int | None = None) -> Inputs:
    """Model inputs of `Labelled` texts, or of arrays that are ready.

    Args:
        source: of `keras_encdec.data.labelled.as_labelled`.
        reader: `Reader`, which texts need.
        vocabulary_size: that ready ids must be below.

    Raises:
        ValueError: if there is text and no reader, or an id is outside the vocabulary.
    """
    if not isinstance(source, Labelled):
        mask = source.x["padding_mask"]
        ids = source.x["token_ids"]
        if vocabulary_size is not None:
            ids = ids_within("token_ids", ids, mask, vocabulary_size)
        return {"token_ids": ids, "padding_mask": mask.astype("int32")}
    if reader is None:
        raise ValueError("Expected token ids, as there is no preprocessor. Received: text.")
    laid = reader.lay(reader.rows_of(source.read()))
    if not source.choices:
        return laid
    shape = (len(source), source.num_choices, -1)
    return {name: array.reshape(shape) for name, array in laid.items()}
