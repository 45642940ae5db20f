"""What is handed to `compile` and `fit`: losses, teachers, warm-up, checkpoints."""

from keras_encdec.training.averaging import WeightAverage, mean_of_checkpoints
from keras_encdec.training.checkpoint import Checkpoint
from keras_encdec.training.contrastive import BiXSE, InBatchNCE
from keras_encdec.training.distillation import Distillation
from keras_encdec.training.estimate import estimate
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.policy import GRPO, RLOO
from keras_encdec.training.preferences import DPO, IPO, KTO, ORPO, SimPO
from keras_encdec.training.ranking import (
    ListNet,
    ListwiseSoftmax,
    PointwiseCrossEntropy,
    RankNet,
)
from keras_encdec.training.reward_trainer import BradleyTerry
from keras_encdec.training.warmup import CrossAttentionWarmup, pretrained

__all__ = [
    "DPO",
    "GRPO",
    "IPO",
    "KTO",
    "ORPO",
    "RLOO",
    "BiXSE",
    "BradleyTerry",
    "Checkpoint",
    "CrossAttentionWarmup",
    "Distillation",
    "FusedCrossEntropy",
    "InBatchNCE",
    "ListNet",
    "ListwiseSoftmax",
    "PointwiseCrossEntropy",
    "RankNet",
    "SimPO",
    "WeightAverage",
    "estimate",
    "mean_of_checkpoints",
    "pretrained",
]
