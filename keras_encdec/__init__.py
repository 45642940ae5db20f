"""Decoder-only language models as encoder-decoders: convert, adapt, use, share.

lm = keras_encdec.from_preset("gemma2_2b_2b")
lm.fit(texts)
lm.generate("...")
lm.save_to_preset("./my_model")
"""

from keras_encdec import quiet

with quiet.imports():
    import keras_hub  # noqa: F401  imports TensorFlow

from keras_encdec import data, generation, models, objectives, training
from keras_encdec.programs import compile_cache
from keras_encdec.sharing.catalog import presets
from keras_encdec.sharing.load import adapt, from_preset
from keras_encdec.sharing.upload import upload_preset

__version__ = "0.1.0"

__all__ = [
    "adapt",
    "compile_cache",
    "data",
    "from_preset",
    "generation",
    "models",
    "objectives",
    "presets",
    "training",
    "upload_preset",
]
