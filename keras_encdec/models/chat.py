"""Turns of a conversation as text, framed as Gemma's instruction-tuned models expect.

Source: gemma/gm/text/_template.py and the tokenizer's model card; a system message has no
turn of its own there and opens the first user's.
"""

from collections.abc import Sequence

_ROLES = {"user": "user", "assistant": "model", "model": "model"}
OPENING, CLOSING = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"


def framed(text: str) -> str:
    """One user's turn, and the beginning of the model's."""
    return OPENING + text + CLOSING


def turns(messages) -> tuple[str, list[str]]:
    """What the system said, and what user and model said in turn, the user last.

    Args:
        messages: `{"role": "user" | "assistant" | "model" | "system", "content": str}` in
            order, a system message first if at all; or a text, the only user's message.

    Raises:
        ValueError: if they are something else or out of turn.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(
                f'Expected messages as {{"role": ..., "content": text}}. Received: {message!r}.'
            )
    roles = [message.get("role") for message in messages]
    system = messages[0]["content"] + "\n\n" if roles[:1] == ["system"] else ""
    roles, messages = roles[bool(system) :], messages[bool(system) :]
    expected = ["user" if i % 2 == 0 else "model" for i in range(len(roles))]
    if [_ROLES.get(role) for role in roles] != expected or len(roles) % 2 == 0:
        raise ValueError(
            "Expected user and assistant in turn, the user first and last, after at most one "
            f"system message. Received: roles {roles}."
        )
    return system, [message["content"] for message in messages]


def conversation(system: str, texts: Sequence[str]) -> str:
    """Turns, from `turns`, as one text."""
    later = zip(texts[1::2], texts[2::2], strict=True)
    return framed(system + texts[0]) + "".join(
        f"{answer}<end_of_turn>\n{framed(text)}" for answer, text in later
    )
