"""Texts to what an encoder, or a decoder that writes nothing, reads: rows of tokens, cut to fit.

Knows what stands between two texts of a row and which of them is cut. NumPy only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.control import control_tokens, plain
from keras_encdec.objectives.rows import Inputs
from keras_encdec.objectives.tokenizer import encode, start_token_id
from keras_encdec.warn import warn

# Of EmbeddingGemma (its model card), for retrieval.
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
_MULTIPLE = 16  # rows are as long as the longest, up to a multiple of this: fewer programs


@dataclasses.dataclass(frozen=True)
class Reader:
    """Makes rows of texts.

    Where the texts of a row do not fit, the longest of them is cut at its end, token by token.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        sequence_length: S, tokens of a row at most.
        separator: text between two texts of a row.
        add_start_token: whether rows begin with `<bos>`, which a decoder-only model has seen in
            front of every text, and a released encoder in front of none.
        add_end_token: whether rows end with `<eos>`.
        allow_special: whether control tokens that texts spell are those tokens.
        seed: what the order of rows follows from.

    Raises:
        ValueError: if the length leaves no room, or the tokenizer has no such token.
    """

    tokenizer: Any
    sequence_length: int = 512
    separator: str = "\n"
    add_start_token: bool = False
    add_end_token: bool = False
    allow_special: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check.whole("sequence_length", self.sequence_length, least=4)
        check.whole("seed", self.seed, least=0)
        for name in ("add_start_token", "add_end_token", "allow_special"):
            check.flag(name, getattr(self, name))
        ends = {"add_start_token": self.start_token_id, "add_end_token": self.end_token_id}
        for name, token in ends.items():
            if getattr(self, name) and token is None:
                raise ValueError(
                    f"Expected a tokenizer with a {name[4:]}_id for {name}=True. Received: "
                    f"{type(self.tokenizer).__name__}, which has none."
                )

    @property
    def start_token_id(self) -> int | None:
        """What rows begin with, by `add_start_token`; None if there is no such token."""
        return getattr(self.tokenizer, "start_token_id", None)

    @property
    def end_token_id(self) -> int | None:
        """What rows end with, by `add_end_token`; None if there is no such token."""
        return getattr(self.tokenizer, "end_token_id", None)

    @property
    def plain_tokens(self) -> list[str]:
        """Control tokens that are plain text where a text spells them."""
        return [] if self.allow_special else sorted(control_tokens(self.tokenizer))

    def rows_of(self, rows: Sequence[Sequence[str]]) -> list[list[int]]:
        """Token ids of each row of texts; rows that are cut are counted in a warning."""
        texts = [self._said(row) for row in rows]
        ids = iter(encode(self.tokenizer, [text for row in texts for text in row]))
        found, too_long = [], []
        for row in texts:
            parts = [next(ids) for _ in row]
            size = sum(map(len, parts))
            room = self.sequence_length - self.add_start_token - self.add_end_token
            if size > room:
                too_long.append(size)
                parts = _cut(parts, room)
            found.append(self._framed([i for part in parts for i in part]))
        if too_long:
            warn(
                f"{len(too_long)} of {len(found)} texts were cut to sequence_length = "
                f"{self.sequence_length} tokens; the longest has {max(too_long)}."
            )
        return found

    def _said(self, row: Sequence[str]) -> list[str]:
        texts = list(row) if self.allow_special else plain(self.tokenizer, row)
        return [self.separator + text if i else text for i, text in enumerate(texts)]

    def _framed(self, ids: list[int]) -> list[int]:
        ends: list[Any] = [self.start_token_id, self.end_token_id]
        return [*ends[:1] * self.add_start_token, *ids, *ends[1:] * self.add_end_token]

    def lay(self, rows: Sequence[Sequence[int]], length: int | None = None) -> Inputs:
        """`token_ids` and `padding_mask`, (B, S) int32, S no longer than is needed.

        Args:
            rows: of token ids.
            length: S, or None.
        """
        longest = -(-max(map(len, rows)) // _MULTIPLE) * _MULTIPLE
        shape = len(rows), length or min(longest, self.sequence_length)
        ids = np.full(shape, self.tokenizer.pad_token_id or 0, "int32")
        mask = np.zeros(shape, "int32")
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return {"token_ids": ids, "padding_mask": mask}


@dataclasses.dataclass(frozen=True)
class PromptedReader(Reader):
    """A reader that says in front of each text what the text is for.

    Args:
        prompts: texts by name, `"query"` and `"document"` among them.

    Raises:
        ValueError: if one of the two is missing, or one is no text.
    """

    prompts: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(PROMPTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prompts, Mapping) or not set(PROMPTS) <= set(self.prompts):
            raise ValueError(
                "Expected prompts as a dict with 'query' and 'document', such as "
                f"{dict(PROMPTS)}. Received: {self.prompts!r}."
            )
        for name, prompt in self.prompts.items():
            check.text(f"prompts[{name!r}]", prompt)

    def prompted(self, texts: Sequence[str], prompt: str | None) -> list[tuple[str]]:
        """Rows of one text each, behind the prompt of that name, or none.

        Raises:
            ValueError: if there is no prompt of that name.
        """
        if prompt is None:
            return [(text,) for text in texts]
        said = self.prompts[check.one_of("prompt", prompt, tuple(self.prompts))]
        return [(said + text,) for text in texts]

    def laid(self, texts: Sequence[str], side: str) -> Inputs:
        """Texts behind the prompt `side`, as of `lay`."""
        return self.lay(self.rows_of(self.prompted(texts, side)))


class _DecoderReader(Reader):
    """Its rows begin as a decoder's do."""

    @property
    def start_token_id(self) -> int:
        return start_token_id(self.tokenizer)


# What the decoder of a reranker is told in front of each query.
INSTRUCTION = "Does the document answer the query? Say yes or no."


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Makes rows of documents for an encoder, and of instruction and query for its decoder.

    A decoder's row is `<bos>`, or where there is none the end token, the instruction, a line
    break and the query. Where a row does not fit, a document is cut at its end, and the longer of
    instruction and query at its own.

    Args:
        tokenizer: of the decoder, and of the encoder if it has none of its own.
        encoder_tokenizer: of an encoder with another vocabulary, or None.
        encoder_sequence_length: S, tokens of a document at most.
        decoder_sequence_length: T, tokens of instruction and query at most.
        instruction: text in front of each query; "" for none.
        allow_special: as of `Reader`.
        seed: what the order of rows follows from.

    Raises:
        ValueError: as `Reader`; or if the instruction is no text.
    """

    tokenizer: Any
    encoder_tokenizer: Any = None
    encoder_sequence_length: int = 512
    decoder_sequence_length: int = 128
    instruction: str = INSTRUCTION
    allow_special: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("encoder_sequence_length", "decoder_sequence_length"):
            check.whole(name, getattr(self, name), least=4)
        check.text("instruction", self.instruction)
        check.flag("allow_special", self.allow_special)
        check.whole("seed", self.seed, least=0)

    def reader(self, side: str) -> Reader:
        """That of a side: `"document"` or `"query"`."""
        own: dict[str, Any] = {"allow_special": self.allow_special}
        if side == "query":
            own["add_start_token"] = True
            return _DecoderReader(self.tokenizer, self.decoder_sequence_length, **own)
        tokenizer = self.encoder_tokenizer or self.tokenizer
        return Reader(tokenizer, self.encoder_sequence_length, **own)

    def rows_of(self, texts: Sequence[str], side: str) -> list[list[int]]:
        """Token ids of documents, or of queries behind the instruction; as `Reader.rows_of`."""
        front = (self.instruction,) if side == "query" and self.instruction else ()
        return self.reader(side).rows_of([(*front, text) for text in texts])

    def laid(self, texts: Sequence[str], side: str) -> Inputs:
        """`token_ids` and `padding_mask` of texts of a side; as `Reader.lay`."""
        return self.reader(side).lay(self.rows_of(texts, side))


def _cut(parts: list[list[int]], room: int) -> list[list[int]]:
    """The longest parts made shorter, until all together have room."""
    sizes = [len(part) for part in parts]
    while sum(sizes) > room:
        longest = sizes.index(max(sizes))
        second = max([size for i, size in enumerate(sizes) if i != longest], default=0)
        sizes[longest] -= min(sum(sizes) - room, max(1, sizes[longest] - second))
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
