"""A pair, or a decoder-only model, as the claims train it and ask it.

Knows how both answer for the same tokens. Leaves recipes to `keras_encdec.evaluation.claims_arms`.
"""

import abc
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_encdec.objectives as objectives
from keras_encdec.evaluation.claims_arms import PREFIX_LM, UL2, Arm, Scale
from keras_encdec.evaluation.claims_data import Data, Rows
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.sharing import catalog
from keras_encdec.sharing.load import adapt, from_preset
from keras_encdec.training import CrossAttentionWarmup

_WEIGHTS = "model.weights.h5"
_TOGETHER = 32  # rows of an evaluation


class Trainee(abc.ABC):
    """A model of an arm.

    Args:
        lm: the task.
        scale: `Scale`.
    """

    def __init__(self, lm: Any, scale: Scale):
        self.lm, self.scale = lm, scale

    @abc.abstractmethod
    def begin(self, steps: int, rate: float) -> None:
        """Compiles it for so many steps, with a cosine to 0."""

    @abc.abstractmethod
    def adapt(self, data: Data, arm: Arm, part: range, steps: int, seed: int) -> None:
        """Goes through some of the steps of an arm's adaptation."""

    @abc.abstractmethod
    def tune(self, rows: Rows, lengths: tuple[int, int], seed: int) -> None:
        """Goes once through rows, in an order of the seed."""

    @abc.abstractmethod
    def loss(self, rows: Rows, lengths: tuple[int, int]) -> float:
        """Nats a token of what is to be written."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `loaded` reads."""

    def _optimizer(self, steps: int, rate: float) -> Any:
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        return keras.optimizers.AdamW(schedule, beta_2=0.98, global_clipnorm=1.0)


class PairTrainee(Trainee):
    """An encoder-decoder pair."""

    def save(self, folder: Path) -> None:
        """As a preset."""
        self.lm.save_to_preset(str(folder))

    def begin(self, steps: int, rate: float) -> None:
        self.lm.compile(self._optimizer(steps, rate))

    def adapt(self, data: Data, arm: Arm, part: range, steps: int, seed: int) -> None:
        pre = self.lm.preprocessor
        pre.encoder_sequence_length = pre.decoder_sequence_length = self.scale.half
        pre.packing = True
        fresh = round(arm.warmup * self.scale.warmup)
        end = 0
        for name, share in arm.stages:
            begin, end = end, end + round(share * steps)
            first, last = max(begin, part.start), min(end, part.stop)
            if last > first:
                pre.objective, pre.seed = self._objective(name), seed + first
                self.lm.fit(
                    list(data.texts),
                    batch_size=self.scale.batch_size,
                    steps_per_epoch=last - first,
                    callbacks=[CrossAttentionWarmup(fresh)] if fresh else None,
                    verbose=0,
                )
        pre.objective, pre.packing = None, False

    def _objective(self, name: str) -> Any:
        ul2 = objectives.UL2(sentinels=self.scale.sentinels or None)
        return {PREFIX_LM: objectives.PrefixLM(), UL2: ul2}[name]

    def tune(self, rows: Rows, lengths: tuple[int, int], seed: int) -> None:
        x, y = rows.of_pair(self._start, *lengths)
        self.lm.preprocessor.seed = seed
        self.lm.fit(x, y, batch_size=self.scale.batch_size, verbose=0)

    def loss(self, rows: Rows, lengths: tuple[int, int]) -> float:
        x, y = rows.of_pair(self._start, *lengths)
        found = self.lm.evaluate(x, y, batch_size=_TOGETHER, verbose=0, return_dict=True)
        return float(found["loss"])

    @property
    def _start(self) -> int:
        return int(self.lm.preprocessor.converter.start_token_id)


class SourceTrainee(Trainee):
    """A decoder-only model of KerasHub, which reads what is given before it writes."""

    def __init__(self, lm: Any, scale: Scale):
        super().__init__(lm, scale)
        self._start = int(lm.preprocessor.tokenizer.start_token_id)
        lm.preprocessor = None  # it gets token ids

    def save(self, folder: Path) -> None:
        """Weights alone: KerasHub cannot read back every tokenizer that it writes."""
        folder.mkdir(parents=True)
        self.lm.save_weights(folder / _WEIGHTS)

    def begin(self, steps: int, rate: float) -> None:
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        self.lm.compile(self._optimizer(steps, rate), loss, weighted_metrics=[])

    def adapt(self, data: Data, arm: Arm, part: range, steps: int, seed: int) -> None:
        """On whole windows, as in pretraining."""
        rng, size = np.random.default_rng(seed), self.scale.batch_size
        order = rng.permutation(len(data.train.windows))
        windows = data.train.windows[np.resize(order, steps * size)]
        windows = windows[part.start * size : part.stop * size]
        rows = Rows([[]] * len(windows), windows.tolist())
        self._fit(rows, windows.shape[1])

    def tune(self, rows: Rows, lengths: tuple[int, int], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(rows))
        self._fit(rows.some(order.tolist()), sum(lengths))

    def _fit(self, rows: Rows, length: int) -> None:
        x, y, weight = rows.of_source(self._start, length)
        size = self.scale.batch_size
        self.lm.fit(x, y, sample_weight=weight, batch_size=size, shuffle=False, verbose=0)

    def loss(self, rows: Rows, lengths: tuple[int, int]) -> float:
        """The sum over batches over their tokens, as Keras' means are by batch."""
        x, y, weight = rows.of_source(self._start, sum(lengths))
        total = 0.0
        for at in range(0, len(rows), _TOGETHER):
            some = slice(at, at + _TOGETHER)
            part = {name: array[some] for name, array in x.items()}
            found = self.lm.test_on_batch(part, y[some], weight[some])
            total += float(np.ravel(found)[0]) * float(weight[some].sum())
        return total / float(weight.sum())


def made(arm: Arm, scale: Scale, seed: int) -> Trainee:
    """The model that an arm begins with."""
    keras.utils.set_random_seed(seed)
    if arm.kind == "source":
        return _source(scale)
    sources = [scale.large if is_large else scale.small for is_large in arm.is_large]
    lm = adapt(*sources, dtype=scale.dtype, **arm.options)
    if arm.kind == "scratch":
        lm = EncDecSeq2SeqLM(
            EncDecBackbone.of(lm.backbone.spec, dtype=scale.dtype), lm.preprocessor
        )
    return PairTrainee(lm, scale)


def loaded(arm: Arm, scale: Scale, folder: Path) -> Trainee:
    """A model that was saved."""
    if arm.kind != "source":
        return PairTrainee(from_preset(folder, dtype=scale.dtype), scale)
    trainee = _source(scale)
    trainee.lm.load_weights(folder / _WEIGHTS)
    return trainee


def _source(scale: Scale) -> SourceTrainee:
    preset = catalog.on_this_machine(scale.small)
    return SourceTrainee(keras_hub.models.CausalLM.from_preset(preset, dtype=scale.dtype), scale)
