"""Turns of a conversation as text, framed as instruction-tuned models expect.

Knows who speaks when, and formats of families: which of them a model knows shows in its tokenizer,
as each has a piece that ends a turn. Leaves templates that come with a tokenizer to
`keras_encdec.objectives.chat_template`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras_encdec import check
from keras_encdec.objectives.tokenizer import encode, piece_id
from keras_encdec.warn import warn

_ROLES = {"user": "user", "assistant": "model", "model": "model"}
# In place of a system message and of the last turn; no text can hold them, as each is half a
# character of UTF-16.
SYSTEM, LAST = "\udffd", "\udffe"


class Frame:
    """What stands around turns; a subclass says what. Without a system message `system` is None.

    Attributes:
        end: the piece that ends a turn of the model.
    """

    end: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that `encode` makes of text, beside those of the tokenizer."""
        return ()

    @property
    def shown(self) -> str:
        """How turns look, for records."""
        raise NotImplementedError

    def conversation(self, system: str | None, texts: Sequence[str]) -> str:
        """Turns, from `turns`, as one text that the model goes on with."""
        raise NotImplementedError

    def answer(self, text: str) -> str:
        """What the model writes of an answer, before `end`."""
        return text

    def encode(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        """The ids of each of some conversations, or of parts of them."""
        return encode(tokenizer, texts)

    def fitted(
        self, tokenizer: Any, system: str | None, texts: Sequence[str], length: int
    ) -> tuple[list[int], list[str]]:
        """`(ids, what was left out)`: the last turns that `length` ids hold.

        The last of them always stays; where it alone is too long with the system message,
        that is cut first.
        """
        for first in range(0, len(texts), 2):
            (ids,) = self.encode(tokenizer, [self.conversation(system, texts[first:])])
            if len(ids) <= length:
                return ids, [f"the oldest {first} of {len(texts)} messages"] if first else []
        ids, cut = self.cut(tokenizer, texts[-1], length, system)
        return ids, [f"the oldest {first} of {len(texts)} messages"] * bool(first) + cut

    def cut(
        self, tokenizer: Any, text: str, length: int, system: str | None = None
    ) -> tuple[list[int], list[str]]:
        """A turn that is too long in its whole frame, with less of what was said; and what."""
        body, message = encode(tokenizer, [text, system or ""])
        alone, told = (self._parts(tokenizer, s) for s in (None, SYSTEM if message else None))
        least = min(alone, told, key=_size)  # a template may have a system turn of its own
        kept = body[: max(0, length - _size(least))]
        heard = message[: max(0, length - _size(told) - len(kept))]
        said = {SYSTEM: heard, LAST: kept}
        ids = [i for part in (told if heard else least) for i in said.get(part, part)]
        cut = [
            f"{len(whole) - len(part)} of {len(whole)} tokens of the {name} message"
            for name, part, whole in (("last", kept, body), ("system", heard, message))
            if len(part) < len(whole)
        ]
        return ids[:length], cut

    def _parts(self, tokenizer: Any, system: str | None) -> list[Any]:
        """The ids around a turn, and `SYSTEM` and `LAST` between them."""
        parts = re.split(f"([{SYSTEM}{LAST}])", self.conversation(system, [LAST]))
        around = iter(self.encode(tokenizer, parts[::2]))
        return [part if i % 2 else tuple(next(around)) for i, part in enumerate(parts)]


def _size(parts: Sequence[Any]) -> int:
    """Ids around a turn."""
    return sum(len(part) for part in parts if part not in (SYSTEM, LAST))


@dataclasses.dataclass(frozen=True)
class Format(Frame):
    """How turns of a family are framed.

    Args:
        end: the piece that ends a turn.
        user: what opens a user's turn.
        model: what opens the model's.
        system: what opens a system message; None where it has no turn of its own and
            opens the first user's.
        between: what stands between turns.
    """

    end: str
    user: str
    model: str
    system: str | None
    between: str

    @property
    def closing(self) -> str:
        """After what a user said: the end of the turn, and the beginning of the model's."""
        return f"{self.end}{self.between}{self.model}"

    @property
    def shown(self) -> str:
        return self.conversation("{system}", ["{user}"])

    def conversation(self, system: str | None, texts: Sequence[str]) -> str:
        first = ""
        if system and self.system is None:
            texts = [f"{system}\n\n{texts[0]}", *texts[1:]]
        elif system:
            first = f"{self.system}{system}{self.end}{self.between}"
        said = [f"{self.user}{texts[0]}{self.closing}"]
        for answer, text in zip(texts[1::2], texts[2::2], strict=True):
            said.append(f"{answer}{self.end}{self.between}{self.user}{text}{self.closing}")
        return first + "".join(said)


FORMATS = (
    # gemma/gm/text/_template.py
    Format("<end_of_turn>", "<start_of_turn>user\n", "<start_of_turn>model\n", None, "\n"),
    # ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
    Format("<turn|>", "<|turn>user\n", "<|turn>model\n", "<|turn>system\n", "\n"),
    # ChatML: chat_template in tokenizer_config.json of Qwen 2.5 and 3, SmolLM 2 and 3
    Format(
        "<|im_end|>",
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_start|>system\n",
        "\n",
    ),
    # Llama 3's model card, "Llama 3 instruct"
    Format(
        "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "",
    ),
)


def format_of(tokenizer: Any) -> Format | None:
    """The format whose turns the tokenizer can end."""
    return next((f for f in FORMATS if piece_id(tokenizer, f.end) is not None), None)


def required_format(tokenizer: Any) -> Format:
    """The format of a tokenizer.

    Raises:
        ValueError: if it has no pieces for turns, or splits them.
    """
    found, name = format_of(tokenizer), type(tokenizer).__name__
    if found is None:
        ends = ", ".join(known.end for known in FORMATS)
        raise ValueError(
            f"Expected a tokenizer with pieces for turns ({ends}) for a chat. "
            f"Received: {name} without them. Use generate."
        )
    if encode(tokenizer, [found.end]) != [[piece_id(tokenizer, found.end)]]:
        raise ValueError(
            f"Expected a tokenizer that keeps {found.end} whole. Received: {name}, which splits "
            "it. Make it with unsplittable_tokens that name the pieces of turns."
        )
    return found


def turns(messages: Any) -> tuple[str | None, list[str]]:
    """What the system said and what user and model said in turn, the user last.

    What the system said is None where there is no such message.

    Args:
        messages: `{"role": "user" | "assistant" | "model" | "system", "content": str}` in
            order, a system message first if at all; or a text, the only user's message.

    Raises:
        ValueError: if they are something else or out of turn.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    system, roles, said = _said(messages)
    if not _in_turn(roles) or len(roles) % 2 == 0:
        raise ValueError(
            "Expected user and assistant in turn, the user first and last, after at most one "
            f"system message. Received: roles {roles}."
        )
    return system, said


def answered(messages: Any) -> tuple[str | None, list[str]]:
    """As `turns`, of a conversation to learn from: the assistant last, and no message empty.

    Raises:
        ValueError: if they are something else, out of turn or empty.
    """
    system, roles, said = _said(messages)
    if not _in_turn(roles) or not roles or len(roles) % 2:
        raise ValueError(
            "Expected user and assistant in turn, the user first and the assistant last, after at "
            f"most one system message. Received: roles {roles}."
        )
    for role, text in zip(roles, said, strict=True):
        if not text.strip():
            raise ValueError(f"Expected text in each message. Received: {text!r} of the {role}.")
    return system, said


def warn_of(left_out: Sequence[str], length: int) -> None:
    """Warns of what a chat lost, if anything, to be no longer than `length` tokens."""
    if left_out:
        warn(
            f"A chat is longer than encoder_sequence_length = {length}. "
            f"Left out: {', '.join(left_out)}."
        )


class Asked(NamedTuple):
    """An answer of a conversation.

    Args:
        number: of the conversation.
        system: what the system said, or None.
        texts: what user and model said before, in turn.
        answer: what the model says to it.
    """

    number: int
    system: str | None
    texts: Sequence[str]
    answer: str


def asked(
    conversations: Sequence[tuple[str | None, Sequence[str]]], last: bool = False
) -> list[Asked]:
    """The answers of conversations, each with what was said before it.

    Args:
        conversations: from `answered`.
        last: whether the last answer of each is meant alone.
    """
    return [
        Asked(number, system, texts[:at], texts[at])
        for number, (system, texts) in enumerate(conversations)
        for at in range(len(texts) - 1 if last else 1, len(texts), 2)
    ]


def _said(messages: Any) -> tuple[str | None, list[Any], list[str]]:
    """The system message, and who said what."""
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(
                f'Expected messages as {{"role": ..., "content": text}}. Received: {message!r}.'
            )
        check.text("the content of a message", message["content"])
    roles = [message.get("role") for message in messages]
    told = roles[:1] == ["system"]
    texts = [message["content"] for message in messages]
    return texts[0] if told else None, roles[told:], texts[told:]


def _in_turn(roles: Sequence[Any]) -> bool:
    expected = ["user" if i % 2 == 0 else "model" for i in range(len(roles))]
    return [_ROLES.get(role) for role in roles] == expected
