"""What a model costs and what it is worth: FLOPs, time per query, quality, SuperGLUE, how scores
agree, and what the paper claims.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_encdec.evaluation.claims import claims
from keras_encdec.evaluation.correlation import correlate
from keras_encdec.evaluation.curves import curve_of, evaluated
from keras_encdec.evaluation.flops import forward_flops, token_flops
from keras_encdec.evaluation.latency import time_queries
from keras_encdec.evaluation.stand_in import write_stand_in
from keras_encdec.evaluation.superglue import superglue

if TYPE_CHECKING:
    from keras_encdec.evaluation.harness import LM
    from keras_encdec.evaluation.mteb_models import MTEBEncoder, MTEBReranker

__all__ = [
    "LM",
    "MTEBEncoder",
    "MTEBReranker",
    "claims",
    "correlate",
    "curve_of",
    "evaluated",
    "forward_flops",
    "superglue",
    "time_queries",
    "token_flops",
    "write_stand_in",
]


_EXTRAS = {"LM": "harness", "MTEBEncoder": "mteb_models", "MTEBReranker": "mteb_models"}


def __getattr__(name: str) -> Any:
    """Classes of lm-eval's and mteb's, when they are asked for: both are extras."""
    if name in _EXTRAS:
        return getattr(importlib.import_module(f"{__name__}.{_EXTRAS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
