"""The programs of a model that generates, on arrays.

Knows how often programs were compiled, and which inputs are padded to which size before one
sees them. Leaves the loop to `keras_encdec.generation.loop`, what stands between two calls
to `keras_encdec.generation.writing`.
"""

import operator

import keras
import numpy as np
from keras import ops
from keras_hub.samplers import Sampler, SpeculativeSampler

from keras_encdec.generation import buckets, loop
from keras_encdec.generation.beams import BeamSearch, search
from keras_encdec.generation.compiled import Compiled
from keras_encdec.generation.likelihood import log_likelihoods
from keras_encdec.generation.writing import (
    BeamWriting,
    SearchedWriting,
    Writing,
    distributed,
    pad,
)


class Engine:
    """Generation of a backbone with a sampler.

    Args:
        backbone: `keras_encdec.models.EncDecBackbone`.
        sampler: `keras_hub.samplers.Sampler`.
        eager: compile nothing.

    Raises:
        ValueError: if the sampler asks more than one model, or wants more beams than
            there are words.
    """

    def __init__(self, backbone, sampler, eager=False):
        _check_sampler(sampler, backbone.spec.decoder.vocabulary_size)
        self.backbone, self.sampler = backbone, sampler
        self.variables = backbone.variables

        def compiled(function, **kwargs):
            return Compiled(function, self.variables, eager=eager, **kwargs)

        self._encode = compiled(self._run_encoder)
        self._score = compiled(self._run_score)
        self.begin = compiled(self._run_begin)
        self.advance = compiled(self._run_advance, donate=True)
        self.beams = compiled(self._run_beams)
        self.search = compiled(self._run_sampler)

    @property
    def is_current(self) -> bool:
        """Whether the backbone still has the variables that programs were made for."""
        now = self.backbone.variables
        return len(now) == len(self.variables) and all(map(operator.is_, now, self.variables))

    @property
    def compile_counts(self) -> dict[str, int]:
        """Programs compiled so far, of each kind."""
        kinds = {"encode": self._encode, "begin": self.begin, "advance": self.advance}
        kinds |= {"beams": self.beams, "search": self.search, "score": self._score}
        return {kind: compiled.count for kind, compiled in kinds.items()}

    def encode(self, token_ids, mask, largest=None):
        """What a decoder reads of inputs, computed once.

        Args:
            token_ids: (B, S) int array.
            mask: (B, S), 0 for padding.
            largest: the longest S there will be.
        """
        sizes = {"largest": largest, "smallest": buckets.SMALLEST_SOURCE}
        sides = _cut(token_ids, mask, rows=_rows(len(mask)), **sizes)
        return self._encode(*map(distributed, sides))

    def decode(self, context, token_ids, given, **options) -> Writing:
        """Begins to write; see `Writing` for the arguments."""
        kind = Writing
        if isinstance(self.sampler, BeamSearch):
            kind = BeamWriting
        elif type(self.sampler).__call__ is not Sampler.__call__:
            kind = SearchedWriting
        return kind(self, context, token_ids, given, **options)

    def score(self, inputs, labels, weights):
        """(B, T) log-probabilities of labels, 0 where they do not count.

        Args:
            inputs: the four model inputs.
            labels: (B, T) int array.
            weights: (B, T), 0 where there is no label.
        """
        count, length = np.shape(labels)
        names = "token_ids", "padding_mask"
        encoder = [inputs[f"encoder_{name}"] for name in names]
        encoder = _cut(*encoder, rows=_rows(count), smallest=buckets.SMALLEST_SOURCE)
        decoder = [*(inputs[f"decoder_{name}"] for name in names), labels, weights]
        decoder = _cut(*decoder, rows=_rows(count))
        found = ops.convert_to_numpy(self._score(*map(distributed, (*encoder, *decoder))))
        found = found[:count, :length]
        return np.pad(found, [(0, 0), (0, length - found.shape[1])])

    def _run_encoder(self, token_ids, mask):
        states = self.backbone.encoder(token_ids, mask)
        return self.backbone.decoder.context(states, mask)

    def _run_begin(self, *tensors, **static):
        return loop.begin(self.backbone.decoder, *tensors, **static)

    def _run_advance(self, *tensors):
        return loop.advance(self.backbone.decoder, self.sampler, *tensors)

    def _run_beams(self, *tensors):
        return search(self.backbone.decoder, self.sampler, *tensors)

    def _run_score(self, source, source_mask, target, target_mask, labels, weights):
        encoder, decoder = self.backbone.encoder, self.backbone.decoder
        states = decoder(target, target_mask, encoder(source, source_mask), source_mask)
        found = log_likelihoods(decoder, states, labels)
        return ops.where(weights > 0, found, 0.0)

    def _run_sampler(self, token_ids, given, context, seeds, *, stop_token_ids):
        """As `keras_hub.samplers.Sampler.__call__` wants it: beams, contrastive search."""
        decoder, rows = self.backbone.decoder, token_ids.shape[0]
        loop.set_seeds(self.sampler, seeds)
        index = ops.min(ops.sum(ops.cast(given, "int32"), axis=-1))
        states, cache = decoder.prefill(token_ids, index - 1, context, token_ids.shape[1])

        def next_token(prompt, cache, index):
            last = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
            states, cache = decoder.step(last, index - 1, cache, context)
            logits = ops.squeeze(decoder.logits(states), axis=1)
            return logits, ops.squeeze(states, axis=1), cache

        token_ids = self.sampler(
            next=next_token,
            prompt=token_ids,
            cache=cache,
            index=index,
            mask=given,
            stop_token_ids=stop_token_ids,
            hidden_states=states,
            model=self.backbone,
        )
        return ops.reshape(token_ids, (rows, -1)), loop.seeds_of(self.sampler)


def _check_sampler(sampler, vocabulary_size):
    if isinstance(sampler, SpeculativeSampler):
        raise ValueError(
            "Expected a sampler that asks this model alone. Received: SpeculativeSampler, "
            "which needs a draft model beside it."
        )
    if getattr(sampler, "num_beams", 1) > vocabulary_size:
        raise ValueError(
            f"Expected num_beams of at most the vocabulary, {vocabulary_size}. "
            f"Received: {sampler.num_beams}."
        )


def _cut(token_ids, mask, *more, rows, **sizes):
    """Arrays (B, L) cut where the mask ends, and padded to a size that is seldom a new one."""
    used = np.flatnonzero(np.asarray(mask).any(axis=0))
    size = int(used[-1]) + 1 if len(used) else 1
    length = buckets.length(size, **sizes)
    arrays = token_ids, mask, *more
    return [pad(np.asarray(x, "int32")[:, :size], length, rows) for x in arrays]


def _rows(count):
    distribution = keras.distribution.distribution()
    return buckets.rows(count, getattr(distribution, "num_model_replicas", 1))
