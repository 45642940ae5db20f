"""Decoder-only language models as encoder-decoders: convert, adapt, use, share.

lm = keras_encdec.from_preset("gemma2_2b_2b")
lm.fit(texts)
lm.generate("...")
lm.save_to_preset("./my_model")
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_encdec import quiet

with quiet.imports():
    import keras_hub  # noqa: F401  imports TensorFlow

from keras_encdec import data, generation, models, objectives, training
from keras_encdec.programs import compile_cache
from keras_encdec.sharing.catalog import presets
from keras_encdec.sharing.load import adapt, from_preset
from keras_encdec.sharing.merge import merge
from keras_encdec.sharing.upload import upload_preset

if TYPE_CHECKING:
    from keras_encdec import evaluation

__version__ = "0.1.0"

__all__ = [
    "adapt",
    "compile_cache",
    "data",
    "evaluation",
    "from_preset",
    "generation",
    "merge",
    "models",
    "objectives",
    "presets",
    "training",
    "upload_preset",
]


def __getattr__(name: str) -> Any:
    """`evaluation`, when it is asked for: nothing else needs it."""
    if name == "evaluation":
        return importlib.import_module("keras_encdec.evaluation")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
