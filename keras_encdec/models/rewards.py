"""Rewards of drawn answers: functions side by side in threads, models one after another.

Knows what a reward may return, and whose answer it was that got none. Leaves what rewards count
to `keras_encdec.training.policy`.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np


def rewarded(
    loss: Any, prompts: Sequence[Any], texts: Sequence[str], records: Mapping[str, Sequence[Any]]
) -> np.ndarray:
    """(N, n) float32, what each of n rewards says of N answers.

    Args:
        loss: `keras_encdec.training.policy.Policy`.
        prompts: N, one for each answer.
        texts: N answers.
        records: N values of each column of the data.

    Raises:
        ValueError: if a reward is no number for each answer, or NaN; it names the prompt.
        Exception: what a reward raises, with its name.
    """
    with ThreadPoolExecutor(len(loss.rewards)) as pool:
        jobs = [
            None if hasattr(r, "score") else pool.submit(r, list(prompts), list(texts), records)
            for r in loss.rewards
        ]
        calls = [
            partial(reward.score, list(prompts), list(texts)) if job is None else job.result
            for reward, job in zip(loss.rewards, jobs, strict=True)
        ]
        named = zip(loss.names, calls, strict=True)
        columns = [_numbers(name, _called(name, call), prompts) for name, call in named]
    return np.stack(columns, axis=1)


def _called(name: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        error.add_note(f"The reward {name} raised it; nothing of this step was applied.")
        raise


def _numbers(name: str, found: Any, prompts: Sequence[Any]) -> np.ndarray:
    try:
        array = np.asarray(found, "float32")
    except (TypeError, ValueError):
        array = np.zeros(0, "float32")
    if array.shape != (len(prompts),):
        size = array.shape if array.size else repr(found)[:60]
        raise ValueError(
            f"Expected {len(prompts)} numbers of the reward {name}, one for each answer. "
            f"Received: {size}. Nothing of this step was applied."
        )
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(
            f"Expected a finite number of the reward {name}. Received: {array[row]} for answer "
            f"{row} of this step, to the prompt {prompts[row]!r:.80}. Nothing of it was applied."
        )
    return array
