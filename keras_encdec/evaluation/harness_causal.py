"""A decoder-only model of KerasHub: likelihoods and texts behind what is given.

Knows KerasHub's calls. Batches are padded to a few sizes, and no row sees another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_encdec import hosts
from keras_encdec.evaluation.harness_requests import Request, Writing
from keras_encdec.generation import buckets
from keras_encdec.generation.compiled import Compiled
from keras_encdec.generation.likelihood import log_likelihoods
from keras_encdec.generation.session import check_finite
from keras_encdec.objectives.rows import padded
from keras_encdec.spec import Tensor

_SMALLEST, _SMALLEST_SCORED = 32, 8  # tokens of a row, and targets of it
_INPUTS = {"token_ids", "padding_mask"}


class CausalEngine:
    """Programs of a causal language model.

    Args:
        lm: `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if its backbone reads more than tokens and their mask.
    """

    def __init__(self, lm: Any):
        if not isinstance(lm.backbone.input, dict) or set(lm.backbone.input) != _INPUTS:
            raise ValueError(
                f"Expected a model that reads {sorted(_INPUTS)}. Received: {type(lm).__name__}, "
                f"which reads {lm.backbone.input!r}."
            )
        self.lm, self._embedding = lm, lm.backbone.token_embedding
        self._score = Compiled(self._run_score, lm.backbone.variables)
        self._writers: dict[Writing, Any] = {}

    def logits(self, states: Tensor) -> Tensor:
        """(B, T, D) states of the backbone to (B, T, V) logits, as the task makes them."""
        return self._embedding(states, reverse=True)

    def score(
        self, requests: Sequence[Request], batch_size: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `keras_encdec.evaluation.harness_models.Model.score`."""

        def score(some: list[Request], rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
            read = [r.given + r.target[:-1] for r in some]
            ids, mask = _padded(read, rows, _SMALLEST)
            labels, there = _padded([r.target for r in some], rows, _SMALLEST_SCORED)
            first = np.array([len(r.given) - 1 for r in some], "int32")
            first = np.pad(first, (0, rows - len(some)))
            found = [hosts.whole(part) for part in self._score(ids, mask, first, labels)]
            counted = there[: len(some)] > 0
            check_finite(np.isfinite(found[0][: len(some)]) | ~counted, "a log-probability")
            return [tuple(part[i][counted[i]] for part in found) for i in range(len(some))]  # type: ignore[misc]

        return _longest_first(score, requests, batch_size)

    def _run_score(
        self, token_ids: Tensor, mask: Tensor, first: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        states = self.lm.backbone({"token_ids": token_ids, "padding_mask": mask})
        places = first[:, None] + ops.arange(labels.shape[1], dtype="int32")
        places = ops.minimum(places, token_ids.shape[1] - 1)
        states = ops.take_along_axis(states, places[..., None], axis=1)
        return log_likelihoods(self, states, labels)

    def write(
        self,
        requests: Sequence[Request],
        how: Writing,
        stop_token_ids: tuple[int, ...],
        seed: int,
        batch_size: int,
    ) -> list[list[int]]:
        """As `keras_encdec.evaluation.harness_models.Model.write`; a batch is written to its end.

        What is drawn depends on the batch, as KerasHub draws for all of its rows at once.
        """
        writer = self._writer(how)
        # KerasHub ends a row whose padding is a stop token, as Qwen's is, before it begins.
        room = next(i for i in range(len(stop_token_ids) + 1) if i not in stop_token_ids)
        for variable in writer.sampler.variables:
            variable.assign(np.array([seed, 0]))

        def write(some: list[Request], rows: int) -> list[list[int]]:
            longest = max(len(r.given) for r in some)
            # Rows that only fill the batch are the first one's: an empty one would begin at 0.
            given = [r.given for r in some]
            ids, mask = _padded(given, rows, longest + how.most, some[0].given)
            ids = np.where(mask > 0, ids, room)
            found = writer.generate(
                {"token_ids": ids, "padding_mask": mask}, stop_token_ids=stop_token_ids
            )
            written = np.asarray(found["padding_mask"]).astype(bool) & (mask == 0)
            ids = np.asarray(found["token_ids"])
            return [ids[i][written[i]][: how.most].tolist() for i in range(len(some))]

        return _longest_first(write, requests, batch_size)

    def _writer(self, how: Writing) -> Any:
        """A task of the same weights with the sampler that is asked for."""
        if how.num_beams > 1:
            raise ValueError(
                f"Expected num_beams=1 of a decoder-only model. Received: {how.num_beams}."
            )
        if how.sampling not in self._writers:
            writer = type(self.lm)(backbone=self.lm.backbone, preprocessor=None)
            writer.compile(sampler=how.sampler())
            self._writers[how.sampling] = writer
        return self._writers[how.sampling]


def _longest_first(
    run: Callable[[list[Request], int], list], requests: Sequence[Request], batch_size: int
) -> list:
    """Answers in the order of the requests; `run` gets some of one length and rows to pad to."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].given + requests[i].target))
    answers: list[Any] = [None] * len(requests)
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        rows = buckets.rows(batch_size if len(order) > batch_size else len(some))
        for i, answer in zip(some, run([requests[i] for i in some], rows), strict=True):
            answers[i] = answer
    return answers


def _padded(
    each: Sequence[Sequence[int]], rows: int, smallest: int, filling: Sequence[int] = (0,)
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, L) int32 ids and mask, L a size that is seldom a new one."""
    length = buckets.length(max(smallest, *map(len, each)), smallest=_SMALLEST_SCORED)
    return padded([*each, *[filling] * (rows - len(each))], length)
