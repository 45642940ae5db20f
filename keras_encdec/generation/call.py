"""One call of generation: its inputs in one batch, or in slots that are filled again.

Knows what a row of a session becomes in the end, and that the place of a row that ended
goes to the next input while the others go on ("continuous batching", Orca, OSDI 2022). Leaves
rows to `keras_encdec.generation.session`, the file of a job to `keras_encdec.generation.jobs`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_encdec import hosts
from keras_encdec.data.prompts import Prompts
from keras_encdec.generation import buckets
from keras_encdec.generation.engine import Engine
from keras_encdec.generation.jobs import in_batches
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.generation.results import Encoding, apart
from keras_encdec.generation.session import DecodingSession, pad
from keras_encdec.generation.text import Detokenize, SessionTexts
from keras_encdec.objectives.images import IMAGES

_SHARE = 8  # of a batch's slots, one share is filled again at a time


def encode(engine: Engine, prompts: Prompts, **sizes: int) -> Encoding:
    """Runs the encoder over prompts; `sizes` as of `Engine.encode`."""
    hosts.check_same("prompts", prompts.ids)
    arrays = prompts.arrays()
    sides = arrays["encoder_token_ids"], arrays["encoder_padding_mask"]
    images = arrays.get(IMAGES)
    source = engine.encode(*sides, images=images, largest=prompts.longest, **sizes)
    given = arrays["decoder_padding_mask"].astype(bool)
    return Encoding(
        source, arrays["decoder_token_ids"], given, prompts.single, prompts.width is not None
    )


class Call:
    """What is asked for, for any of its inputs.

    Args:
        engine: `Engine`.
        options: `DecodingOptions`, with the length and stop tokens that are meant.
        detokenize: `Detokenize`; None where neither inputs nor stop strings are text.
        seed: numbers to draw with, in place of the options' one and of the sampler's own.
    """

    def __init__(
        self,
        engine: Engine,
        options: DecodingOptions,
        detokenize: Detokenize | None,
        seed: Sequence[int] | None = None,
    ):
        self.engine, self.options, self.detokenize = engine, options, detokenize
        drafts = options.draft not in ("auto", None)
        self._draft = options.draft.make_generate_function() if drafts else options.draft
        own = engine.draw_seed() if seed is None and options.seed is None else (options.seed,)
        self.seed = own if seed is None else tuple(seed)

    def session(self, encoding: Encoding, numbers: Sequence[int] | None = None) -> DecodingSession:
        """Rows for inputs, which have these numbers in the call."""
        options, length = self.options, self.options.max_length
        hosts.check_same("options", options.identity())
        arrays = encoding.token_ids, encoding.given
        ids, given = (pad(x[:, :length], length, len(x)) for x in arrays)
        return self.engine.decode(
            encoding.source,
            ids,
            given,
            samples=options.samples,
            stop_token_ids=options.stop_token_ids,
            temperature=options.temperature,
            seed=self.seed,
            numbers=numbers,
            draft=self._draft,
        )

    def texts(self, session: DecodingSession) -> SessionTexts:
        """What its rows say."""
        assert self.detokenize is not None
        return SessionTexts(session, self.detokenize, self.options.stop_strings)

    def whole(self, encoding: Encoding, numbers: Sequence[int] | None = None) -> Any:
        """The outputs of one batch; with `return_scores`, `(outputs, scores)`.

        A list of R texts, or for model inputs a dict of (R, T) arrays; scores are (R,).
        """
        rows = _Rows(self, self.session(encoding, numbers), encoding.tokens)
        while not rows.session.finished:
            rows.advance()
        outputs = rows.outputs()
        return (outputs, rows.session.scores) if self.options.return_scores else outputs

    def of_many(
        self, prompts: Prompts, batch_size: int
    ) -> Callable[[list[int]], Iterator[dict[int, Any]]]:
        """For `jobs.run`: outputs of prompts, the longest first, as they end.

        An output is a text or, with `num_samples`, a list of n; of model inputs it is a dict
        of n lists of ids and of n masks. With `return_scores`, `(output, scores)`.

        Args:
            prompts: `Prompts`.
            batch_size: of them at a time.
        """
        write = self._in_slots if self.engine.refills else self._in_batches
        return lambda numbers: write(prompts, numbers, batch_size)

    def _in_batches(
        self, prompts: Prompts, numbers: list[int], batch_size: int
    ) -> Iterator[dict[int, Any]]:
        def write(some: list[int]) -> list:
            found = self.whole(encode(self.engine, prompts.some(some)), some)
            parts = list(found) if self.options.return_scores else [found]
            parts = [self._by_input(part, prompts) for part in parts]
            return list(zip(*parts, strict=True)) if self.options.return_scores else parts[0]

        return in_batches(write, batch_size)(numbers)

    def _by_input(self, found: Any, prompts: Prompts) -> list:
        """Rows of outputs or scores, those of an input together, as a file of JSON holds them."""
        parts = apart(found, self.options.samples)
        one = prompts.width is None and self.options.num_samples is None
        return [part[0] for part in parts] if one else parts

    def _in_slots(
        self, prompts: Prompts, numbers: list[int], batch_size: int
    ) -> Iterator[dict[int, Any]]:
        def size(number: int) -> int:
            needed = max(1, prompts.lengths[number])
            return buckets.length(needed, prompts.longest, buckets.SMALLEST_SOURCE)

        while numbers:
            length = size(numbers[0])
            count = sum(size(number) == length for number in numbers)
            count = max(count, batch_size)  # shorter ones fill a batch rather than begin another
            yield from self._of_one_size(prompts, numbers[:count], batch_size, length)
            numbers = numbers[count:]

    def _of_one_size(
        self, prompts: Prompts, numbers: list[int], batch_size: int, length: int
    ) -> Iterator[dict[int, Any]]:
        """Outputs of inputs that are padded to one length."""
        slots, waiting = numbers[:batch_size], numbers[batch_size:]
        few = max(1, len(slots) // _SHARE)
        encoding = encode(self.engine, prompts.some(slots))
        rows = _Rows(self, self.session(encoding, slots), encoding.tokens)
        there = np.ones(len(slots), bool)
        while there.any():
            more = few * self.options.samples if waiting else rows.session.rows
            rows.advance(min(rows.session.rows, int(rows.session.ended.sum()) + more))
            ended = there & rows.session.ended.reshape(len(slots), -1).all(axis=1)
            if not ended.any():
                continue
            outputs = self._by_input(rows.outputs(), prompts)
            yield {slots[i]: outputs[i] for i in np.flatnonzero(ended)}
            there &= ~ended
            while waiting and not there.all():
                free = np.flatnonzero(~there)
                count = len(slots) if len(free) > len(slots) // 2 else few
                new = waiting[: min(count, len(free))]
                waiting, free = waiting[len(new) :], free[: len(new)].tolist()
                encoding = encode(self.engine, prompts.some(new), rows=count, smallest=length)
                rows.replace(free, self.session(encoding, new))
                there[free] = True
                for i, number in zip(free, new, strict=True):
                    slots[i] = number


class _Rows:
    """The rows of a session, and what becomes of them."""

    def __init__(self, call: Call, session: DecodingSession, of_tokens: bool):
        self._call, self.session, self._of_tokens = call, session, of_tokens
        self._look()

    def _look(self) -> None:
        of_text = not self._of_tokens or self._call.options.stop_strings
        self._texts = self._call.texts(self.session) if of_text else None

    def replace(self, places: Sequence[int], other: DecodingSession) -> None:
        self.session.replace(places, other)
        self._look()

    def advance(self, spare: int | None = None) -> None:
        (self._texts or self.session).advance(spare=spare)

    def outputs(self) -> Any:
        """Of all rows, a list of texts or a dict of arrays."""
        strip = self._call.options.strip_prompt
        if self._texts and not self._of_tokens:
            return self._texts.whole(strip)
        ids, mask = (self._texts or self.session).tokens()
        mask = mask & ~self.session.given if strip else mask
        return {"decoder_token_ids": ids, "decoder_padding_mask": mask}
