"""Texts to what an encoder alone reads: tokens of one row, cut where they do not fit.

Knows what stands between two texts of a row and which of them is cut. NumPy only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.control import control_tokens, plain
from keras_encdec.objectives.rows import Inputs
from keras_encdec.objectives.tokenizer import encode
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
        ends = {"add_start_token": "start_token_id", "add_end_token": "end_token_id"}
        for name, token in ends.items():
            if getattr(self, name) and getattr(self.tokenizer, token, None) is None:
                raise ValueError(
                    f"Expected a tokenizer with a {token} for {name}=True. Received: "
                    f"{type(self.tokenizer).__name__}, which has none."
                )

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
        start = [self.tokenizer.start_token_id] if self.add_start_token else []
        return [*start, *ids, *([self.tokenizer.end_token_id] if self.add_end_token else [])]

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


def _cut(parts: list[list[int]], room: int) -> list[list[int]]:
    """The longest parts made shorter, until all together have room."""
    sizes = [len(part) for part in parts]
    while sum(sizes) > room:
        longest = sizes.index(max(sizes))
        second = max([size for i, size in enumerate(sizes) if i != longest], default=0)
        sizes[longest] -= min(sum(sizes) - room, max(1, sizes[longest] - second))
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
