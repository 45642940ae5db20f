"""What an objective is, and what it makes: an example.

Tokens in, examples out. NumPy only; knows no model, no text and no padding.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

_NO_SENTINELS = np.zeros(0, "int32")


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What an objective makes of a window of tokens.

    Args:
        inputs: 1-D int32, what the encoder reads.
        targets: 1-D int32, what the decoder must write.
        denoiser: the name of what made it, such as `"R(3,0.15)"`.
        sentinels: 1-D int32, the ids that stand for hidden spans; empty where there
            are none and the target follows the input.
        mode: how many tokens at the start of `inputs` name the denoiser.
        ends: whether the target is a whole answer, after which the decoder must stop.
            A continuation is not: where its window was cut, the text went on.
        teacher: ids and log-probabilities, (n, k) each, of a teacher's distribution at
            each target, its end token included; None without one.
        weight: what each target token counts in the loss: one number, or an array with
            one for each target and its end token, (n + 1,).
        places: of what an encoder learns alone (`MNTP`): 1-D int64, where in `inputs` each
            target belongs; None where a decoder writes the target.
        images: of `inputs`, in the order of their tokens; arrays (H, W, 3).
    """

    inputs: np.ndarray
    targets: np.ndarray
    denoiser: str = ""
    sentinels: np.ndarray = dataclasses.field(default_factory=lambda: _NO_SENTINELS, repr=False)
    mode: int = 0
    ends: bool = False
    teacher: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(default=None, repr=False)
    weight: float | np.ndarray = dataclasses.field(default=1.0, repr=False)
    places: np.ndarray | None = dataclasses.field(default=None, repr=False)
    images: Sequence[np.ndarray] = dataclasses.field(default=(), repr=False)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Where in the window the tokens of `inputs` and of `targets` stood.

        Returns:
            Two int64 arrays as long as `inputs` and `targets`; -1 for sentinels, mode
            tokens and what stands in place of a token.
        """
        if self.places is not None:
            read = np.arange(len(self.inputs))
            read[self.places] = -1
            return read, self.places
        source, target = self.inputs[self.mode :], self.targets
        hidden, opening = np.isin(source, self.sentinels), np.isin(target, self.sentinels)
        # A sentinel in the input takes the room of its span, any other token takes one.
        spans = np.diff(np.append(np.flatnonzero(opening), len(target))) - 1
        room = np.ones(len(source), "int64")
        room[hidden] = spans
        start = np.cumsum(room) - room
        if len(self.sentinels):
            written = np.arange(len(target)) - np.repeat(np.flatnonzero(opening), spans + 1) - 1
            written += np.repeat(start[hidden], spans + 1)
        else:
            written = np.arange(len(source), len(source) + len(target))
        read = np.concatenate([np.full(self.mode, -1), np.where(hidden, -1, start)])
        return read, np.where(opening, -1, written)

    def reassemble(self) -> np.ndarray:
        """The window that the example was made of, 1-D int32."""
        read, written = self.positions()
        tokens = np.empty(int(np.sum(read >= 0) + np.sum(written >= 0)), "int32")
        tokens[read[read >= 0]] = self.inputs[read >= 0]
        tokens[written[written >= 0]] = self.targets[written >= 0]
        return tokens


class Objective:
    """Base of all objectives: a frozen dataclass, called as `objective(tokens, seed)`.

    A new objective defines `__call__`, and `raw_lengths` if its windows are not two
    halves.
    """

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        """Makes an example of a window.

        Args:
            tokens: 1-D int32, at least 2.
            seed: what is left to chance follows from it.

        Raises:
            ValueError: if there are fewer than 2 tokens, or tokens that cannot be.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def mode(self) -> str:
        """The kind of denoiser it is for UL2: `"R"`, `"X"` or `"S"`; `""` for none."""
        return ""

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Ids that it puts among those of a text, as far as they are known before `bind`."""
        return ()

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        """Tokens of the window that each seed's example takes from the text.

        Args:
            inputs_length: S, room for an encoder input.
            targets_length: T, room for a target and its end token.
            seeds: (n,) uint64, as `__call__` will get them.

        Returns:
            (n,) int64.
        """
        return np.full(len(seeds), 2 * min(inputs_length, targets_length))

    def bind(self, tokenizer: Any) -> "Objective":
        """The same objective with the ids that it needs taken from `tokenizer`."""
        return self

    def show(self, text: str, tokenizer: Any, seed: int = 0) -> None:
        """Prints the example made of a text: what is read, what must be written.

        Args:
            text: at least 2 tokens long.
            tokenizer: `keras_hub.tokenizers.Tokenizer`.
            seed: int.
        """
        from keras_encdec.objectives.show import show

        show(self, text, tokenizer, seed)


def check_tokens(tokens: Any) -> np.ndarray:
    """`tokens` as a 1-D int32 array.

    Raises:
        ValueError: if it is something else, has fewer than 2, or negative ids.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or len(array) < 2 or array.dtype.kind not in "iu":
        raise ValueError(
            "Expected a 1-D array of at least 2 integer tokens. "
            f"Received: {array.dtype} of shape {array.shape}."
        )
    if array.min() < 0:
        raise ValueError(f"Expected token ids from 0 up. Received: {array.min()}.")
    return array.astype("int32", copy=False)
