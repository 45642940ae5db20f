"""The task: text in, text out; `fit`, `generate`, `save_to_preset`.

Knows the output layer and what `fit` takes. Leaves tokens to the preprocessor, steps to
`keras_encdec.training`, decoding to `keras_encdec.generation` and folders to
`keras_encdec.sharing`.
"""

import inspect

import keras
import keras_hub
import numpy as np

from keras_encdec.data.teacher import check_one_vocabulary
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.files import atomic_folder
from keras_encdec.generation.generator import Generator
from keras_encdec.models import feed
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import PrefixLM
from keras_encdec.training import run
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.trainer import Trainer


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLM(Generator, Trainer, keras_hub.models.Seq2SeqLM):
    """An encoder-decoder language model with its preprocessor.

    Called on model inputs it returns logits (B, T, V). `fit` takes pairs of texts
    (`{"encoder_text": [...], "decoder_text": [...]}`), plain texts (a list, files by
    `keras_encdec.data.read`, a tf.data, Grain or Hugging Face dataset), which the
    preprocessor's objective makes into examples, `keras_encdec.data.Tokens`, or ready
    model inputs.

    Args:
        backbone: `EncDecBackbone`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`, or None to work on tokens.
        **kwargs: of `keras_hub.models.Seq2SeqLM`.

    Example:
        >>> lm = keras_encdec.from_preset("gemma2_tiny_tiny")
        >>> lm.fit(["Some text.", "More text."])
        >>> lm.generate("Some", max_length=32)

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225)
    """

    backbone_cls = EncDecBackbone
    preprocessor_cls = EncDecSeq2SeqLMPreprocessor

    def __init__(self, backbone, preprocessor=None, **kwargs):
        self.backbone = backbone
        self.preprocessor = preprocessor
        states = backbone(backbone.input)["decoder_sequence_output"]
        logits = backbone.decoder.embedding(states, reverse=True)
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        distillation=None,
        gradient_accumulation_steps=1,
        attention="auto",
        remat=False,
        weighted_metrics="auto",
        **kwargs,
    ):
        """As in `keras_hub.models.Seq2SeqLM`, with defaults for adaptation.

        Args:
            optimizer: by default AdamW at 1e-4 with gradients clipped at norm 1
                (arXiv 2512.14856, section 3.1, for the clipping; the rate is that of
                the official fine-tuning example).
            loss: by default `keras_encdec.training.FusedCrossEntropy()`, which never
                holds logits and reports accuracy and perplexity. Any other loss of
                Keras gets logits (B, T, V), and `weighted_metrics` with it.
            distillation: `keras_encdec.training.Distillation`, or None.
            gradient_accumulation_steps: parts that a batch is gone through in, for
                less memory; the step is that of the whole batch. On JAX.
            attention: `"auto"`, `"plain"` or `"fused"`; see `EncDecBackbone.attention`.
            remat: see `EncDecBackbone.remat`.
            weighted_metrics: metrics of logits, where `loss` gets logits.
            **kwargs: of `keras.Model.compile`, and `sampler`.

        Raises:
            ValueError: if options contradict each other.
        """
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-4, global_clipnorm=1.0)
        loss = FusedCrossEntropy() if loss == "auto" else loss
        self.compile_output(loss, distillation, gradient_accumulation_steps, optimizer)
        if isinstance(loss, FusedCrossEntropy):
            if weighted_metrics not in ("auto", None) or kwargs.get("metrics"):
                raise ValueError(
                    "Expected a loss on logits for metrics on logits. Received: the fused loss, "
                    "which reports accuracy and perplexity itself. Compile with "
                    "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
                )
            loss = weighted_metrics = None
        self.backbone.attention, self.backbone.remat = attention, remat
        super().compile(optimizer, loss, weighted_metrics=weighted_metrics, **kwargs)

    def fit(
        self,
        x=None,
        y=None,
        *,
        batch_size=None,
        epochs=1,
        callbacks=None,
        validation_data=None,
        sample_weight=None,
        **kwargs,
    ):
        """Trains; see the class for what `x` may be, and `keras.Model.fit`.

        The order of texts follows from the preprocessor's seed and the epoch, and
        what an objective leaves to chance is drawn anew in each epoch. With a
        `keras_encdec.training.Checkpoint` among the callbacks, the same call goes on
        where a killed one was.

        Raises:
            FloatingPointError: at the first loss that is no number.
            ValueError: if data, teacher or optimizer cannot do what they are asked to.
        """
        x = feed.pairs(x)
        self._check_teacher(x)
        self.check_optimizer()
        sliceable = isinstance(x, (list, tuple, np.ndarray))
        if sliceable and feed.is_text(x) and kwargs.get("validation_split"):
            kept = int(len(x) * (1 - kwargs.pop("validation_split")))
            x, validation_data = x[:kept], x[kept:]  # the last ones, as in Keras
        if feed.is_text(validation_data):
            validation_data = self._examples(validation_data, batch_size)
        callbacks = list(callbacks or [])
        checkpoint = run.find(callbacks)
        kwargs = {"validation_batch_size": batch_size, **kwargs}
        kwargs |= {"validation_data": validation_data, "epochs": epochs}
        kwargs["callbacks"] = [*callbacks, run.StopAtNaN(checkpoint)]
        with run.guarded(callbacks):
            given = feed.feed(x, self.preprocessor, batch_size, epochs)
            if given is None and checkpoint is not None:
                given = self._resumable(x, y, sample_weight, batch_size)
            if given is not None:
                kwargs["initial_epoch"] = kwargs.get("initial_epoch", 0)
                return run.run(self, given, **kwargs)
            if self._packs(x):
                x, y, sample_weight = self.preprocessor(x)
            kwargs |= {"batch_size": batch_size, "sample_weight": sample_weight}
            if self._is_ready(x):
                return keras.Model.fit(self, x, y, **kwargs)
            return super().fit(x, y, **kwargs)

    def evaluate(self, x=None, y=None, *, batch_size=None, **kwargs):
        """Evaluates; takes what `fit` takes."""
        x = feed.pairs(x)
        if feed.is_text(x) or self._packs(x):
            examples = self._examples(x, batch_size)
            if not isinstance(examples, tuple):
                return keras.Model.evaluate(self, examples, **kwargs)
            x, y, weight = examples
            kwargs = {"sample_weight": weight, "batch_size": batch_size, **kwargs}
            return keras.Model.evaluate(self, x, y, **kwargs)
        given = feed.feed(x, self.preprocessor, batch_size, epochs=1)
        if given is not None:
            kwargs = {"steps": given.steps, **kwargs}
            return keras.Model.evaluate(self, given.at(0, 0), **kwargs)
        return super().evaluate(x, y, batch_size=batch_size, **kwargs)

    def _resumable(self, x, y, sample_weight, batch_size):
        """Batches of `x` that a run can be taken up in the middle of."""
        if isinstance(x, dict):
            return feed.arrays(x, y, sample_weight, batch_size, self.preprocessor)
        if inspect.isgenerator(x) or isinstance(x, keras.utils.PyDataset):
            raise ValueError(
                "Expected data whose batches can be found again, with a Checkpoint: texts, pairs, "
                f"arrays, a tf.data or a Grain dataset. Received: {type(x).__name__}."
            )
        return feed.again(x)

    def _is_ready(self, x):
        """Whether `x` are model inputs, or gives batches of them as nothing else can."""
        return inspect.isgenerator(x) or (isinstance(x, dict) and "encoder_token_ids" in x)

    def _check_teacher(self, x):
        """Raises ValueError where a teacher that is asked would not see what it must."""
        teacher = self._distillation and self._distillation.teacher
        if self.preprocessor is None or not teacher:
            return
        check_one_vocabulary(self.preprocessor)
        theirs = getattr(teacher.preprocessor, "tokenizer", None)
        ours = self.preprocessor.tokenizer
        if theirs is not None and vocabulary_digest(theirs) != vocabulary_digest(ours):
            raise ValueError(
                "Expected a teacher with the student's tokenizer. Received: one whose pieces "
                "differ. Distillation needs one vocabulary."
            )
        pairs = isinstance(x, dict)
        if self.preprocessor.packing:
            raise ValueError(
                "Expected preprocessor.packing = False for a teacher that is asked in each step: "
                "it reads one example a row. Received: packing. Keep rows with "
                "keras_encdec.data.write_teacher."
            )
        if not pairs and not isinstance(self.preprocessor.objective, PrefixLM):
            raise ValueError(
                "Expected PrefixLM for a teacher that is asked in each step: it reads input and "
                f"target as one text. Received: {type(self.preprocessor.objective).__name__}. "
                "Keep rows with keras_encdec.data.write_teacher."
            )

    def _packs(self, x):
        """Whether `x` are pairs of which several are to share a row."""
        packing = self.preprocessor is not None and self.preprocessor.packing
        return packing and isinstance(x, dict) and "encoder_text" in x

    def _examples(self, texts, batch_size):
        """Plain texts as `(x, y, sample_weight)`, or as a dataset of such batches."""
        preprocessor = feed.required(self.preprocessor)
        if hasattr(texts, "element_spec"):
            return preprocessor.dataset(texts, batch_size or feed.BATCH_SIZE)
        return preprocessor(texts)

    def quantize(self, mode=None, **kwargs):
        """As `keras.Model.quantize`, of the backbone: a tokenizer has nothing to quantise."""
        self.backbone.quantize(mode, **kwargs)
        self.train_function = self.test_function = self.predict_function = None
        self.generate_function = None

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if isinstance(x, dict) and "encoder_token_ids" in x:
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return super().preprocess_samples(x, y, sample_weight)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Writes a KerasHub preset folder, whole or not at all.

        Args:
            preset_dir: the folder; new, empty, or a preset to replace.
            max_shard_size: of one weights file, in GB; None for a single file.

        Raises:
            ValueError: if the folder holds something else.
        """
        with atomic_folder(preset_dir) as folder:
            super().save_to_preset(str(folder), max_shard_size)

    def export_to_transformers(self, path, max_shard_size=5.0):
        """See `keras_encdec.sharing.export.export_to_transformers`."""
        from keras_encdec.sharing.export import export_to_transformers

        export_to_transformers(self, path, max_shard_size)
