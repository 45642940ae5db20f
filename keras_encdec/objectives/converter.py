"""Records to examples, and examples to rows: what text becomes, in one frozen object.

Knows tokens, lengths, chat turns and which seed belongs to which text. What is read and what
is written of plain text, the objective says; padding is `rows`' business. No Keras, no
model, no framework of data: `keras_encdec.models` wraps it as a preprocessor, and
`keras_encdec.data` makes batches with it. (The word is seqio's.)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_encdec import check
from keras_encdec.objectives import chat
from keras_encdec.objectives.chat import Frame
from keras_encdec.objectives.chat_template import Template
from keras_encdec.objectives.control import SENTINELS, plain
from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.images import ImageTokens
from keras_encdec.objectives.mixture import Stages
from keras_encdec.objectives.objective import Example, Objective
from keras_encdec.objectives.retokenized import Retokenized
from keras_encdec.objectives.rows import Inputs, Rows
from keras_encdec.objectives.seen import SeenReader
from keras_encdec.objectives.tokenizer import encode, piece_id, start_token_id
from keras_encdec.objectives.windows import Windows, cut
from keras_encdec.warn import warn as warn_user

Prompt = tuple[list[int], list[int]]  # what the encoder reads, what the decoder begins with
Images = Sequence[Sequence[Any]] | None  # of each text


@dataclasses.dataclass(frozen=True)
class FeatureConverter:
    """Makes examples of texts, of pairs and of prompts, the same way for all that use them.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer` of the decoder.
        encoder_tokenizer: of the encoder, where it has tokens of its own; else None.
        encoder_sequence_length: S, tokens of an encoder row.
        decoder_sequence_length: T, tokens of a decoder row.
        objective: makes examples of plain text; without the tokenizer's ids.
        chat: frame the encoder's text as a user's turn; answers end as a turn does.
        seed: what chance follows from.
        cross_documents: whether a window may go on into the next text.
        packing: whether several examples share a row.
        allow_special: whether control tokens that texts spell are those tokens; else they
            are plain text (`keras_encdec.objectives.control`).
        chat_template: in Jinja, of the encoder's tokenizer; None for the format that the pieces
            of the tokenizer tell.
        images: how images are read beside texts; None where they are not.

    Raises:
        ValueError: if a length is below 2, or the template is no text.
    """

    tokenizer: Any
    encoder_tokenizer: Any
    encoder_sequence_length: int
    decoder_sequence_length: int
    objective: Objective | Stages
    chat: bool = False
    seed: int = 0
    cross_documents: bool = False
    packing: bool = False
    allow_special: bool = False
    chat_template: str | None = None
    images: ImageTokens | None = None

    def __post_init__(self) -> None:
        for name in ("encoder_sequence_length", "decoder_sequence_length"):
            check.whole(name, getattr(self, name), least=2)  # <bos> and one token
        check.whole("seed", self.seed, least=0)
        for name in ("chat", "cross_documents", "packing", "allow_special"):
            check.flag(name, getattr(self, name))
        if self.chat_template is not None:
            check.text("chat_template", self.chat_template)

    def resized(self, encoder: int | None = None, decoder: int | None = None) -> "FeatureConverter":
        """The same with other lengths; None for those there are."""
        given = {"encoder_sequence_length": encoder, "decoder_sequence_length": decoder}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        return dataclasses.replace(self, **changes) if changes else self

    # The tokenizers' ids.

    @property
    def reads_by(self) -> Any:
        """The tokenizer of the encoder's text."""
        return self.encoder_tokenizer or self.tokenizer

    @property
    def start_token_id(self) -> int:
        """What the decoder reads first: `<bos>`, or where there is none the end token."""
        return start_token_id(self.tokenizer)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generated text: `<eos>`, and what ends a turn where there is one."""
        ids = [self.tokenizer.end_token_id, self._end_of_turn_id()]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @functools.cached_property
    def frame(self) -> Frame:
        """What stands around turns.

        Raises:
            ValueError: if there is no template and the tokenizer has no turns, or the template
                is none.
        """
        if self.chat_template is not None:
            return Template.of(self.chat_template, self.reads_by)
        return chat.required_format(self.reads_by)

    def _end_of_turn_id(self) -> int | None:
        """Of the template; where it is of the encoder's tokens alone, of the decoder's format."""
        alone = self.chat_template is not None and self.encoder_tokenizer is None
        found = self.frame if alone else chat.format_of(self.tokenizer)
        return None if found is None else piece_id(self.tokenizer, found.end)

    @property
    def _end_of_answer(self) -> int:
        end = self._end_of_turn_id()
        return self.tokenizer.end_token_id if end is None else end

    # Records to examples.

    @functools.cached_property
    def bound(self) -> Objective | Stages:
        """The objective with the tokenizer's ids.

        Raises:
            ValueError: if the tokenizer has no tokens for its sentinels, or it needs one
                vocabulary and there are two.
        """
        bound = self.objective.bind(self.tokenizer)
        if self.encoder_tokenizer is None:
            return bound
        sides = self.tokenizer, self.encoder_tokenizer
        return Retokenized(bound, *sides, self.encoder_sequence_length)

    def windows(
        self,
        document_lengths: Any,
        objective: Objective | Stages | None = None,
        first: int = 0,
        epoch: int = 0,
    ) -> Windows:
        """Where documents are cut into windows, each of which makes an example.

        Args:
            document_lengths: (d,) tokens of each, with its end token.
            objective: in place of the converter's own.
            first: number of the first document.
            epoch: how often they have been seen; what is left to chance is drawn anew.
        """
        return cut(
            document_lengths,
            required_callable(objective or self.bound),
            self.encoder_sequence_length,
            self.decoder_sequence_length,
            seed=fold(self.seed, epoch),
            cross_documents=self.cross_documents,
            first=first,
        )

    def of_texts(
        self, texts: Sequence[str], first: int = 0, epoch: int = 0, weights: Any = None
    ) -> list[Example]:
        """The examples of plain texts.

        Args:
            texts: strings, none of them empty.
            first: as in `windows`.
            epoch: as in `windows`.
            weights: what each text counts in the loss, or None.
        """
        end = self.tokenizer.end_token_id
        said = self._plain(self.tokenizer, texts, SENTINELS)
        documents = [[*ids, end] for ids in encode(self.tokenizer, said)]
        return self.of_documents(documents, first, epoch, weights)

    def of_documents(
        self, documents: Sequence[Any], first: int = 0, epoch: int = 0, weights: Any = None
    ) -> list[Example]:
        """As `of_texts`, of texts that are tokens already, each with its end token."""
        objective = required_callable(self.bound)
        tokens = np.concatenate(documents).astype("int32")
        sizes = [len(document) for document in documents]
        windows = self.windows(sizes, first=first, epoch=epoch)
        examples = [windows.example(i, tokens, objective)[1] for i in range(len(windows))]
        if weights is None:
            return examples
        self.check_weighted()
        each = weights[np.searchsorted(np.cumsum(sizes), windows.starts, side="right")]
        return self._weighted(examples, each)

    def check_weighted(self) -> None:
        """Raises ValueError where a weight for each text cannot be kept apart."""
        if self.cross_documents:
            raise ValueError(
                "Expected cross_documents = False with a sample_weight for each text, as a window "
                "may hold several texts. Received: both."
            )

    def of_pairs(
        self,
        encoder_texts: Sequence[str],
        decoder_texts: Sequence[str],
        weights: Any = None,
        warn: bool = False,
        images: Images = None,
    ) -> list[Example]:
        """The examples of pairs of texts: the first is read, the second written and ended.

        Args:
            encoder_texts: n strings.
            decoder_texts: as many.
            weights: (n,) or (n, T), what pairs or their targets count; or None.
            warn: whether to warn about texts that are cut.
            images: of each encoder text; or None.

        Raises:
            ValueError: if there are images that cannot be read, or have no room.
        """
        read = self._read(encoder_texts, warn, images)
        if self.chat:
            examples = self._answers(read, decoder_texts, images)
        else:
            answers = encode(self.tokenizer, self._plain(self.tokenizer, decoder_texts))
            examples = _ended(read, answers, self.tokenizer.end_token_id, images)
        return examples if weights is None else self._weighted(examples, weights)

    def of_conversations(
        self,
        conversations: Sequence[tuple[str | None, Sequence[str]]],
        last: bool = False,
        place: Callable[[int], str] = "conversation {}".format,
        images: Images = None,
    ) -> tuple[list[Example], list[int], int]:
        """The examples of conversations, one for each answer: what was said before is read.

        Where that does not fit into `encoder_sequence_length`, its oldest turns are left out, then
        the end of the system message, then that of the last turn.

        Args:
            conversations: from `keras_encdec.objectives.chat.answered`.
            last: whether the last answer of each is written alone.
            place: where one is from, by its number, for messages.
            images: of each conversation; or None.

        Returns:
            The examples; the number of the conversation of each; how many did not fit.

        Raises:
            ValueError: naming a conversation that the chat template refuses, or with an image
                that has no room.
        """
        frame, length = self.frame, self.encoder_sequence_length
        asked = chat.asked(conversations, last)
        numbers, written = [one.number for one in asked], [one.answer for one in asked]
        if images is not None:
            read, seen, left_out = self.seen.asked(frame, asked, images, place)
            return self._answers(read, written, seen), numbers, left_out
        before, framed = [self._before(one.system, one.texts) for one in asked], []
        for number, said in zip(numbers, before, strict=True):
            try:
                framed.append(frame.conversation(*said))
            except ValueError as error:
                raise ValueError(f"{error} It is in {place(number)}.") from error
        read = frame.encode(self.reads_by, framed)
        cut = [i for i, ids in enumerate(read) if len(ids) > length]
        for i in cut:
            read[i] = frame.fitted(self.reads_by, *before[i], length)[0]
        return self._answers(read, written), numbers, len(cut)

    def _answers(self, read: Any, texts: Sequence[str], images: Images = None) -> list[Example]:
        """The examples of answers, which end as a turn does, to what was read."""
        said = [self.frame.answer(text) for text in texts]
        answers = encode(self.tokenizer, self._plain(self.tokenizer, said))
        return _ended(read, answers, self._end_of_answer, images)

    def _weighted(self, examples: Sequence[Example], weights: Any) -> list[Example]:
        """Examples that count as much as `weights` says, one or several numbers for each."""
        found = []
        for number, (example, weight) in enumerate(zip(examples, weights, strict=True)):
            needed = min(len(example.targets), self.decoder_sequence_length)
            if np.ndim(weight) and len(weight) < needed:
                raise ValueError(
                    f"Expected a weight for each of {needed} targets in row {number}, the end "
                    f"token included. Received: {len(weight)}."
                )
            found.append(dataclasses.replace(example, weight=weight))
        return found

    def of_prompts(
        self,
        encoder_texts: Sequence[str],
        decoder_texts: Sequence[str] | None = None,
        images: Images = None,
    ) -> list[Prompt]:
        """The ids that encoder and decoder begin with; texts that are cut are warned about."""
        starts: list[list[int]] = [[]] * len(encoder_texts)
        if decoder_texts is not None:
            starts = encode(self.tokenizer, self._plain(self.tokenizer, decoder_texts))
        sides = zip(self._read(encoder_texts, True, images), starts, strict=True)
        return [(ids, [self.start_token_id, *start]) for ids, start in sides]

    def of_chat(self, messages: Any) -> Prompt:
        """A conversation as a prompt; see `keras_encdec.objectives.chat.turns` for messages.

        Where it does not fit into `encoder_sequence_length`, its oldest turns are left out,
        then the end of the system message, then that of the last turn, with a warning.

        Raises:
            ValueError: if messages are out of turn, or the tokenizer has no turns.
        """
        frame, length = self.frame, self.encoder_sequence_length
        said = self._before(*chat.turns(messages))
        ids, left_out = frame.fitted(self.reads_by, *said, length)
        chat.warn_of(left_out, length)
        return ids, [self.start_token_id]

    def _plain(self, tokenizer: Any, texts: Sequence[str], *tokens: Sequence[str]) -> list[str]:
        """What users say, which is no control token, unless they may; `tokens` as of `plain`."""
        return list(texts) if self.allow_special else plain(tokenizer, texts, *tokens)

    def _plain_turns(self, texts: Sequence[str]) -> list[str]:
        """As `_plain`, of what is said in turns that are read."""
        return self._plain(self.reads_by, texts, (), self.frame.tokens)

    def _before(self, system: str | None, texts: Sequence[str]) -> tuple[str | None, list[str]]:
        """As `_plain_turns`, of what the system said too."""
        told, *said = self._plain_turns([system or "", *texts])
        return None if system is None else told, said

    def _read(self, texts: Sequence[str], warn: bool, images: Images = None) -> list[list[int]]:
        """What the encoder reads of texts, cut to its length."""
        length = self.encoder_sequence_length
        if images is not None:
            every = self.seen.texts(texts, images, self.frame if self.chat else None)
        elif self.chat:
            said = [self.frame.conversation(None, [text]) for text in self._plain_turns(texts)]
            every = self.frame.encode(self.reads_by, said)
        else:
            every = encode(self.reads_by, self._plain(self.reads_by, texts))
        sizes = [len(ids) for ids in every if len(ids) > length]
        if sizes and warn:
            warn_user(
                f"{len(sizes)} of {len(every)} prompts were cut to encoder_sequence_length = "
                f"{length} tokens; the longest has {max(sizes)}."
            )
        if self.chat:
            fits = zip(self._plain_turns(texts), every, strict=True)
            return [
                ids if len(ids) <= length else self.frame.cut(self.reads_by, text, length)[0]
                for text, ids in fits
            ]
        return [ids[:length] for ids in every]

    @functools.cached_property
    def seen(self) -> SeenReader:
        """What reads texts with images.

        Raises:
            ValueError: if the model reads none, or rows are packed.
        """
        plain = functools.partial(self._plain, self.reads_by)
        length = self.encoder_sequence_length
        return SeenReader(self.images, self.reads_by, plain, length, self.packing)

    # Examples to rows.

    @functools.cached_property
    def rows(self) -> Rows:
        """How examples are laid into rows."""
        read, written = (side.pad_token_id or 0 for side in (self.reads_by, self.tokenizer))
        return Rows(
            self.encoder_sequence_length,
            self.decoder_sequence_length,
            self.start_token_id,
            self.tokenizer.end_token_id,
            read,
            written,
            self.images,
        )

    def grouped(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Examples by the row that they are laid into: several, if `packing` says so."""
        if not self.packing:
            return [[example] for example in examples]
        return [[examples[i] for i in group] for group in self.rows.plan(examples)]

    def lay_prompts(self, prompts: Iterable[Prompt]) -> Inputs:
        """The four model inputs of prompts."""
        every, rows = list(prompts), self.rows
        encoder = [[ids[: rows.source]] for ids, _ in every]
        return rows.model_inputs(encoder, [[ids[: rows.target]] for _, ids in every])


def _ended(read: Any, answers: Any, end: int, images: Images = None) -> list[Example]:
    """Examples of inputs and of answers, each with its end token."""
    seen = [()] * len(read) if images is None else images
    return [
        Example(np.array(ids, "int32"), np.array([*answer, end], "int32"), images=tuple(some))
        for ids, answer, some in zip(read, answers, seen, strict=True)
    ]


class HasConverter(Protocol):
    """What a converter can be asked of: the preprocessor of a task."""

    @property
    def converter(self) -> FeatureConverter: ...


def converter_of(owner: "FeatureConverter | HasConverter") -> FeatureConverter:
    """A converter itself, or that of a preprocessor."""
    return owner if isinstance(owner, FeatureConverter) else owner.converter


def required_callable(objective: Objective | Stages) -> Objective:
    """The objective, if it is one that makes an example by itself.

    Raises:
        ValueError: for `Stages`, which need to know the number of steps.
    """
    if isinstance(objective, Objective):
        return objective
    raise ValueError(
        f"Expected an objective that is called. Received: {type(objective).__name__}, which needs "
        "to know the number of steps. Use `lm.fit(texts)` or `keras_encdec.data.batches`."
    )
