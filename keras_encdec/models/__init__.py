"""Backbone, task and preprocessor, as KerasHub users know them."""

from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.json_tokenizer import JsonTokenizer
from keras_encdec.models.masked_lm import EncDecMaskedLM
from keras_encdec.models.masked_lm_preprocessor import EncDecMaskedLMPreprocessor
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor
from keras_encdec.models.reranker import EncDecReranker, RankedDocument
from keras_encdec.models.reranker_preprocessor import EncDecRerankerPreprocessor
from keras_encdec.models.reward_model import EncDecRewardModel
from keras_encdec.models.seq2seq_lm import EncDecSeq2SeqLM
from keras_encdec.models.text_classifier import EncDecTextClassifier
from keras_encdec.models.text_classifier_preprocessor import EncDecTextClassifierPreprocessor
from keras_encdec.models.text_embedder import EncDecTextEmbedder
from keras_encdec.models.text_embedder_preprocessor import EncDecTextEmbedderPreprocessor

__all__ = [
    "EncDecBackbone",
    "EncDecMaskedLM",
    "EncDecMaskedLMPreprocessor",
    "EncDecReranker",
    "EncDecRerankerPreprocessor",
    "EncDecRewardModel",
    "EncDecSeq2SeqLM",
    "EncDecSeq2SeqLMPreprocessor",
    "EncDecTextClassifier",
    "EncDecTextClassifierPreprocessor",
    "EncDecTextEmbedder",
    "EncDecTextEmbedderPreprocessor",
    "EncoderBackbone",
    "JsonTokenizer",
    "RankedDocument",
]
