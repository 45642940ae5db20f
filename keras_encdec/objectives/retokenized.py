"""PrefixLM for a pair of two vocabularies: what is read is tokenised again.

Knows that windows are cut in the decoder's tokens. Leaves the split to PrefixLM.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_encdec.objectives.objective import Example, Objective
from keras_encdec.objectives.prefix_lm import PrefixLM
from keras_encdec.objectives.tokenizer import encode


@dataclasses.dataclass(frozen=True)
class Retokenized(Objective):
    """PrefixLM whose input is in the encoder's tokens and whose target in the decoder's.

    Args:
        objective: `PrefixLM`.
        tokenizer: of the decoder, whose tokens windows are of.
        encoder_tokenizer: of the encoder.
        inputs_length: S; of an input that is longer in the encoder's tokens the last S
            are read, which the target follows.

    Raises:
        ValueError: if it is another objective, whose tokens mean something to both sides.
    """

    objective: Any
    tokenizer: Any
    encoder_tokenizer: Any
    inputs_length: int

    def __post_init__(self) -> None:
        if not isinstance(self.objective, PrefixLM):
            raise ValueError(
                "Expected PrefixLM, or pairs of texts, for encoder and decoder of two "
                f"vocabularies. Received: {type(self.objective).__name__}. Sentinels, mode tokens "
                "and mixtures need tokens that both sides know."
            )

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def mode(self) -> str:
        return self.objective.mode

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        example = self.objective(tokens, seed)
        text = self.tokenizer.detokenize(example.inputs.tolist())
        (ids,) = encode(self.encoder_tokenizer, [text])
        inputs = np.array(ids[-self.inputs_length :], "int32")
        return dataclasses.replace(example, inputs=inputs)

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        return self.objective.raw_lengths(inputs_length, targets_length, seeds)
