"""Control tokens: what frames turns, texts and images. A user's text never becomes one.

Text that spells a control token, such as `<end_of_turn>`, is broken inside it, and what is
beside the break is tokenised apart: the same characters, as plain text. Without this anyone
whose text a model reads could begin a turn in someone else's name.
"""

import functools
import re
import unicodedata
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from keras_encdec.objectives.sentinels import PIECES as SENTINELS
from keras_encdec.objectives.tokenizer import BREAK, encode, piece_id

# Of the tokenizers of Gemma 2 to 4, Llama 2 and 3, Mistral, Qwen and SmolLM; those that a
# tokenizer has, or lists as its special ones, are its control tokens.
_KNOWN = (
    *("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<s>", "</s>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
    *("<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", '<|"|>'),
    *("<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>"),
    *("<|video>", "<|video|>", "<video|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "[INST]", "[/INST]", "<think>", "</think>"),
)
_found: "weakref.WeakKeyDictionary[Any, frozenset[str]]" = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The control tokens that a tokenizer makes of text, `<unused0>` and its like among them."""
    if tokenizer not in _found:
        special = [t for t in getattr(tokenizer, "special_tokens", ()) if isinstance(t, str)]
        known = [t for t in dict.fromkeys((*_KNOWN, *SENTINELS, *special)) if len(t) > 1]
        ids = [piece_id(tokenizer, token) for token in known]
        there = [(t, i) for t, i in zip(known, ids, strict=True) if i is not None]
        every = encode(tokenizer, [token for token, _ in there]) if there else []
        kept = [t for (t, i), row in zip(there, every, strict=True) if i in row]
        _found[tokenizer] = frozenset(kept)
    return _found[tokenizer]


def plain(
    tokenizer: Any, texts: Iterable[str], allowed: Sequence[str] = (), others: Sequence[str] = ()
) -> list[str]:
    """Texts that `encode` makes no control token of.

    Args:
        tokenizer: that will encode them.
        texts: strings.
        allowed: control tokens that stay what they are.
        others: tokens that something else than the tokenizer makes of text.
    """
    tokens = control_tokens(tokenizer).union(others).difference(allowed)
    if not tokens:
        return list(texts)
    pattern = _pattern(tokens)
    return [_broken(text, pattern) for text in texts]


@functools.lru_cache
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    """Finds any of these tokens, the longest first."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)))


def _broken(text: str, pattern: re.Pattern[str]) -> str:
    """The text with a break behind the first character of each control token in it."""
    parts, position = [], 0
    while match := pattern.search(text, position):
        parts.append(text[position : match.start() + 1])
        position = match.start() + 1
    broken = BREAK.join([*parts, text[position:]])
    if not text.isascii() and pattern.search(unicodedata.normalize("NFKC", text)):
        return BREAK.join(text)  # some tokenizers normalise: no two characters stand together
    return broken
