"""What a model costs and what it is worth: FLOPs, time per query, quality, and how scores agree."""

from keras_encdec.evaluation.correlation import correlate
from keras_encdec.evaluation.curves import curve_of, evaluated
from keras_encdec.evaluation.flops import forward_flops, token_flops
from keras_encdec.evaluation.latency import time_queries

__all__ = [
    "correlate",
    "curve_of",
    "evaluated",
    "forward_flops",
    "time_queries",
    "token_flops",
]
