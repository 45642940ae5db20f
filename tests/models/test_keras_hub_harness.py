"""KerasHub's own tests of a backbone, a task and a preprocessor, on ours."""

import dataclasses

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import make_inputs
from keras_encdec.testing.specs import tiny_pair

pytest.importorskip("absl.testing")
from keras_hub.src.tests.test_case import TestCase as Harness

Harness.__test__ = False  # pytest would collect the import
PAIRS = {
    "encoder_text": ["Returns the mean.", "Returns the sum of an array."],
    "decoder_text": ["A mean.", "A sum."],
}


@pytest.mark.slow
class TestOurClasses(Harness):
    __test__ = True

    def setUp(self):
        keras.utils.set_random_seed(0)
        pair = tiny_pair()
        self.sides = {
            side: dataclasses.replace(getattr(pair, side), vocabulary_size=4096)
            for side in ("encoder", "decoder")
        }
        tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
        self.preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 12)

    @pytest.mark.long
    def test_backbone(self):
        inputs = make_inputs()
        self.run_backbone_test(
            EncDecBackbone,
            self.sides,
            inputs,
            {
                "encoder_sequence_output": (3, 20, 48),
                "decoder_sequence_output": (3, 16, 42),
            },
            variable_length_data=[make_inputs((n, 1), (n + 1, 2)) for n in (2, 3, 4)],
        )

    def test_task(self):
        self.run_task_test(
            EncDecSeq2SeqLM,
            {"backbone": EncDecBackbone(**self.sides), "preprocessor": self.preprocessor},
            train_data=(PAIRS,),
            expected_output_shape=(2, 12, 4096),
        )

    def test_saving(self):
        backbone = EncDecBackbone(**self.sides)
        self.run_model_saving_test(EncDecBackbone, self.sides, make_inputs())
        self.run_model_saving_test(
            EncDecSeq2SeqLM, {"backbone": backbone, "preprocessor": None}, make_inputs()
        )

    def test_preprocessor(self):
        tokenizer = self.preprocessor.tokenizer
        lengths = {"encoder_sequence_length": 16, "decoder_sequence_length": 12}
        x, y, weight = self.preprocessor(PAIRS)
        for data in (PAIRS, (PAIRS["encoder_text"], PAIRS["decoder_text"])):
            found = self.run_preprocessing_layer_test(
                EncDecSeq2SeqLMPreprocessor,
                {"tokenizer": tokenizer, **lengths},
                data,
                expected_output=(x, y, weight),
                return_output=True,
            )
            assert np.shape(found[1]) == (2, 12)
