"""Seconds per query of a pair beside its decoder-only source: figure 4 of arXiv 2504.06225.

A query is one prompt read and as many tokens written as were asked for, greedily, at batch 1,
with no end token, so that all models write the same number. The decoder-only model goes on from
the prompt in KerasHub's CausalLM; the pair reads it with its encoder, in our engine and, where
asked, in KerasHub's T5Gemma, so that one engine does both. Tokens in, tokens out: no text is
made. Leaves FLOPs to `keras_encdec.evaluation.flops`.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras_hub
import numpy as np

from keras_encdec import check
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.progress import track

Writer = Callable[[np.ndarray], np.ndarray]  # (1, S) ids of a prompt to the (n,) ids written


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each query, in the order of the prompts.

    Args:
        seconds: by model, each (number of prompts,); the first model is what others are held
            against.
    """

    seconds: Mapping[str, np.ndarray]

    def summary(self) -> dict[str, dict[str, float]]:
        """By model: `median`, `low` and `high`, the 10th and 90th percentile, in seconds.

        And `ratio`, the median over prompts of its time to the first model's on the same prompt,
        with `ratio_low` and `ratio_high`, the quartiles of those.
        """
        base = next(iter(self.seconds.values()))
        found = {}
        for name, seconds in self.seconds.items():
            low, median, high = np.percentile(seconds, (10, 50, 90))
            ratio_low, ratio, ratio_high = np.percentile(seconds / base, (25, 50, 75))
            numbers = {"median": median, "low": low, "high": high, "ratio": ratio}
            numbers |= {"ratio_low": ratio_low, "ratio_high": ratio_high}
            found[name] = {key: float(value) for key, value in numbers.items()}
        return found


def time_queries(writers: Mapping[str, Writer], prompts: np.ndarray, new: int) -> Times:
    """Times each model on each prompt, in turn, so that what slows the machine slows all.

    Each is called once before, to compile; which one begins changes from prompt to prompt.

    Args:
        writers: by name; at least one.
        prompts: (number of prompts, S) int token ids.
        new: n, tokens to be written.

    Returns:
        `Times`.

    Raises:
        ValueError: if there is no prompt, or a model writes another number of tokens.
    """
    prompts = np.asarray(prompts)
    if prompts.ndim != 2 or not prompts.size or prompts.dtype.kind not in "iu":
        raise ValueError(
            "Expected prompts as token ids (number of prompts, S), at least one. Received: "
            f"{prompts.dtype} {prompts.shape}."
        )
    for name, write in writers.items():
        _check_written(name, write(prompts[:1]), new)
    seconds = {name: np.zeros(len(prompts)) for name in writers}
    names = list(writers)
    for number in track(range(len(prompts)), "Timing queries"):
        begin = number % len(names)
        for name in names[begin:] + names[:begin]:
            start = time.perf_counter()
            written = writers[name](prompts[number : number + 1])
            seconds[name][number] = time.perf_counter() - start
            _check_written(name, written, new)
    return Times(seconds)


def _check_written(name: str, written: np.ndarray, new: int) -> None:
    if len(written) != new:
        raise ValueError(
            f"Expected {new} tokens of each model. Received: {len(written)} of {name}."
        )


def prompts_of(
    lm: EncDecSeq2SeqLM, texts: Sequence[str], source_length: int, count: int
) -> np.ndarray:
    """The beginnings of texts as prompts of one length, so that each program compiles once.

    Args:
        lm: a pair with its preprocessor, whose encoder's tokenizer reads them.
        texts: those too short are passed over.
        source_length: S, tokens of each.
        count: prompts at most, the first ones.

    Returns:
        (number of prompts, S) int32.

    Raises:
        ValueError: if no text has so many tokens.
    """
    source_length, count = check.whole("source_length", source_length), check.whole("count", count)
    converter = lm.preprocessor.converter.resized(encoder=10**9)
    found: list[list[int]] = []
    for start in range(0, len(texts), 256):
        read = converter.of_prompts(texts[start : start + 256])
        found += [ids[:source_length] for ids, _ in read if len(ids) >= source_length]
        if len(found) >= count:
            break
    if not found:
        raise ValueError(
            f"Expected texts of at least {source_length} tokens. Received: {len(texts)} shorter "
            "ones. Ask for a shorter source_length, or give longer texts."
        )
    return np.array(found[:count], "int32")


def source_writer(lm: Any, new: int) -> Writer:
    """A KerasHub CausalLM that goes on from a prompt.

    Args:
        lm: `keras_hub.models.CausalLM`; it is compiled anew.
        new: n, tokens to write.
    """
    lm.compile(sampler="greedy")

    def write(prompt: np.ndarray) -> np.ndarray:
        ids = np.pad(prompt, [(0, 0), (0, new)])
        mask = np.arange(ids.shape[1])[None] < prompt.shape[1]
        written = lm.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)
        kept = np.asarray(written["padding_mask"])[0] != 0
        return np.asarray(written["token_ids"])[0][kept][prompt.shape[1] :]

    return write


def pair_writer(lm: Any, new: int, start: int, **options: Any) -> Writer:
    """A pair of ours, or a KerasHub Seq2SeqLM, that reads a prompt and writes.

    Args:
        lm: the task; it is compiled anew, for greedy search.
        new: n, tokens to write.
        start: id of the token that the decoder begins with, which is not among them.
        **options: of its `generate`, such as `draft=None`.
    """
    lm.compile(sampler="greedy")
    target = np.zeros((1, 1 + new), "int32")
    target[:, 0] = start
    given = np.arange(1 + new)[None] < 1

    def write(prompt: np.ndarray) -> np.ndarray:
        inputs = {
            "encoder_token_ids": prompt,
            "encoder_padding_mask": np.ones_like(prompt),
            "decoder_token_ids": target,
            "decoder_padding_mask": given.astype("int32"),
        }
        written = lm.generate(inputs, stop_token_ids=None, **options)
        kept = np.asarray(written["decoder_padding_mask"])[0] != 0
        return np.asarray(written["decoder_token_ids"])[0][kept][1:]

    return write


def in_keras_hub(lm: EncDecSeq2SeqLM) -> Any:
    """The same pair as KerasHub's `T5GemmaSeq2SeqLM`.

    Raises:
        ValueError: if the released layout cannot hold it.
    """
    with tempfile.TemporaryDirectory() as folder:
        lm.export_to_transformers(folder)
        backbone = keras_hub.models.T5GemmaBackbone.from_preset(folder)
    return keras_hub.models.T5GemmaSeq2SeqLM(backbone, preprocessor=None)
