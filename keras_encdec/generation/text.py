"""Text while it is being generated: what of it is certain, and where it stops.

Knows stop strings. Leaves tokens to `keras_encdec.generation.session`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from keras_encdec.generation.session import DecodingSession

_BETWEEN_LOOKS = 8  # tokens generated before texts are searched for stop strings
Detokenize = Callable[[np.ndarray, np.ndarray], list[str]]  # (R, T) ids and mask to R texts
_UNFINISHED = "\ufffd"  # bytes that are no character yet


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first of the stop strings, or all of it."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found, default=len(text))]


def certain(text: str, stops: Sequence[str]) -> str:
    """What more tokens cannot take back: no half character, no beginning of a stop string."""
    text = cut(text, stops).rstrip(_UNFINISHED)
    tails = (k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k]))
    return text[: len(text) - max(tails, default=0)]


def completed_at(text: Callable[[int], str], count: int, stops: Sequence[str]) -> int:
    """How many tokens there are when the first of the stop strings is complete.

    Args:
        text: what a number of tokens say.
        count: of the tokens.
        stops: stop strings.

    Returns:
        The number of tokens up to and with the one that completes it; `count` if none does.
    """

    def holds(tokens: int) -> bool:
        said = text(tokens)
        return cut(said, stops) != said

    if not holds(count):
        return count
    few, many = 0, count  # the first many hold a stop
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if holds(middle) else (middle + 1, many)
    return many


class SessionTexts:
    """What the rows of a session say, each after its prompt.

    Args:
        session: `DecodingSession`, of R rows.
        detokenize: (R, T) ids and (R, T) bool of those that count, to R texts.
        stops: stop strings; a row ends when its text holds one.
    """

    def __init__(
        self,
        session: DecodingSession,
        detokenize: Detokenize,
        stops: Sequence[str] = (),
    ):
        self.session, self.stops, self._detokenize = session, stops, detokenize
        self._prompts = detokenize(session.ids, session.given)

    def advance(self, spare: int | None = None) -> None:
        """Generates to the end, or for some tokens where there are stop strings to look for.

        Args:
            spare: as of `DecodingSession.advance`.
        """
        if self.stops:
            self._advance(_BETWEEN_LOOKS, spare)
        else:
            self.session.advance(spare=spare)

    def whole(self, strip_prompt: bool) -> list[str]:
        """The R texts so far, each cut before the first stop string."""
        texts = [cut(text, self.stops) for text in self._texts(*self.session.tokens())]
        if strip_prompt:
            return texts
        return [p + t for p, t in zip(self._prompts, texts, strict=True)]

    def parts(self) -> Iterator[list[str]]:
        """Generates token by token; R texts each time, with what is new and certain in a row."""
        sent = [""] * self.session.rows
        while not self.session.finished:
            texts = self._advance(1)
            ready = cut if self.session.finished else certain
            texts = [ready(text, self.stops) for text in texts]
            new = [text[len(old) :] for old, text in zip(sent, texts, strict=True)]
            sent = [old + part for old, part in zip(sent, new, strict=True)]
            yield new

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """As `DecodingSession.tokens`, of each row up to what completes a stop string."""
        ids, mask = self.session.tokens()
        for row in range(len(ids)) if self.stops else ():
            mask[row] = self._until_stop(row, ids[row], mask[row])
        return ids, mask

    def _until_stop(self, row: int, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(mask & ~self.session.given[row])
        prompt = self._prompts[row]

        def first(count: int) -> np.ndarray:
            kept = self.session.given[row].copy()
            kept[places[:count]] = True
            return kept

        def text(count: int) -> str:
            return self._detokenize(ids[None], first(count)[None])[0].removeprefix(prompt)

        return first(completed_at(text, len(places), self.stops))

    def _advance(self, tokens: int, spare: int | None = None) -> list[str]:
        """Generates some tokens and ends the rows that hold a stop string; the R texts."""
        self.session.advance(tokens, spare)
        texts = self._texts(*self.session.tokens())
        self.session.end([cut(text, self.stops) != text for text in texts])
        return texts

    def _texts(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
        texts = self._detokenize(ids, mask)
        return [t.removeprefix(p) for p, t in zip(self._prompts, texts, strict=True)]
