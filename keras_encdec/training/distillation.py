"""What a teacher says about a batch: from kept rows, or from a model that is asked.

Knows where the teacher stands at each target and how its distribution is mixed with the label.
Leaves chunks to `keras_encdec.training.loss` and rows on disk to
`keras_encdec.data.teacher`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from keras import ops

from keras_encdec import check, layout
from keras_encdec.spec import Tensor
from keras_encdec.training import divergence as divergences
from keras_encdec.training.words import Words

_NOTHING = -1e30  # in place of -inf, so that an empty row stays a number
_DIVERGENCES = ("forward", "reverse", "jensen_shannon")


class Distillation:
    """A teacher, for `lm.compile(distillation=...)`.

    The loss of a token is `(1 - weight) * label + weight * temperature^2 * divergence`
    (arXiv 1503.02531, section 2). In kept rows, what no text holds (UL2's sentinels and
    its end tokens) has all probability on the label. Evaluation reports the labels' loss.

    Args:
        teacher: a KerasHub causal LM with the student's vocabulary. It is asked in each
            step, frozen, in whatever dtype or quantisation it has: the input and the
            target follow each other in its context. None: the batches bring the rows of
            `keras_encdec.data.write_teacher`.
        weight: share of the teacher; 1 in Gemma 2 (arXiv 2408.00118, section 3.2).
        temperature: both distributions' logits are divided by it.
        divergence: `"forward"`, `"reverse"` or `"jensen_shannon"`.
        beta: share of the teacher in the middle that Jensen-Shannon compares both with.
        start_token: id that the teacher reads first; None for none, `"auto"` for the
            one of its tokenizer.
        on_policy: share of batches, from 0 to 1, whose targets the student writes itself
            right before the step, at temperature 1 and as long as the batch's targets may
            be (GKD, arXiv 2306.13649, algorithm 1; it takes 0.5 or 1). Seed, epoch and
            number say which batches. Of those, what `fit` logs is about these targets.

    Raises:
        ValueError: if an argument is out of range, or a share `on_policy` goes with no
            teacher that is asked, or with labels.

    Example:
        >>> teacher = keras_hub.models.CausalLM.from_preset("gemma2_9b_en", dtype="bfloat16")
        >>> teacher.backbone.quantize("int8")  # not the task: its tokenizer would refuse
        >>> lm.compile(distillation=keras_encdec.training.Distillation(teacher))

        On the student's own outputs half of the time:

        >>> on_own = keras_encdec.training.Distillation(
        ...     teacher, on_policy=0.5, divergence="jensen_shannon"
        ... )
    """

    def __init__(
        self,
        teacher: Any = None,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward",
        beta: float = 0.5,
        start_token: int | Literal["auto"] | None = "auto",
        on_policy: float = 0.0,
    ):
        self.weight = check.real("weight", weight, least=0, most=1)
        self.temperature = check.real("temperature", temperature, above=0)
        self.beta = check.real("beta", beta, above=0, below=1)
        self.kind = check.one_of("divergence", divergence, _DIVERGENCES)
        if divergence == "reverse" and teacher is None:
            raise ValueError(
                "Expected a teacher that is asked, for the reverse divergence: kept rows give "
                "most tokens no probability. Received: no teacher. Use 'jensen_shannon'."
            )
        self.on_policy = check.real("on_policy", on_policy, least=0, most=1)
        if self.on_policy and (teacher is None or self.weight != 1):
            raise ValueError(
                "Expected a teacher that is asked and weight=1 with on_policy: no kept rows are "
                "about a student's own outputs, and as labels they teach nothing. Received: "
                f"{'no' if teacher is None else 'a'} teacher, weight={self.weight}. Give both, or "
                "on_policy=0."
            )
        self.teacher = teacher
        self.start_token = _start_of(teacher) if isinstance(start_token, str) else start_token

    def teacher_targets(self, x: dict[str, Tensor], y: Any) -> "TeacherTargets":
        """What the teacher says about a batch.

        Args:
            x: model inputs.
            y: labels (B, T), or a dict of `labels`, `teacher_ids` and
                `teacher_log_probs` (B, T, k).

        Returns:
            `TeacherTargets`.

        Raises:
            ValueError: if there is neither a teacher nor rows, or a teacher beside images, of
                which it sees none.
        """
        if self.teacher is not None and "images" in x:
            raise ValueError(
                "Expected texts alone with a teacher that is asked, as it reads no images. "
                "Received: images."
            )
        if self.teacher is not None:
            labels = y["labels"] if isinstance(y, dict) else y
            states = _states(self.teacher.backbone, x, labels, self.start_token)
            return self.targets_of_states(states)
        if not isinstance(y, dict) or "teacher_ids" not in y:
            raise ValueError(
                "Expected batches with teacher_ids and teacher_log_probs. Received: labels alone. "
                "Fit `data.batches(..., teacher=...)`, or give Distillation a teacher."
            )
        rows = [ops.cast(y["teacher_ids"], "int32"), ops.cast(y["teacher_log_probs"], "float32")]
        return TeacherTargets(self, rows, self._kept)

    def targets_of_states(self, states: Tensor) -> "TeacherTargets":
        """`TeacherTargets` of the teacher's states (B, T, D), each about to write its label."""
        return TeacherTargets(self, [states], self._asked, self._logits)

    def begin(self, student: Any, vocabulary_size: int) -> None:
        """Freezes the teacher, and lays it on the devices that there are.

        Raises:
            ValueError: if the teacher is the student, or its vocabulary not of this size.
        """
        if self.teacher is None:
            return
        if self.teacher is student or self.teacher.backbone is student.backbone:
            raise ValueError(
                "Expected a teacher beside the student. Received: the student itself, which "
                "would not train."
            )
        size = self.teacher.backbone.token_embedding.input_dim
        if size != vocabulary_size:
            raise ValueError(
                f"Expected a teacher of the student's {vocabulary_size} tokens. "
                f"Received: one of {size}. Distillation needs one vocabulary."
            )
        self.teacher.trainable = False
        layout.spread_out(self.teacher.variables)

    def facts(self) -> dict[str, Any]:
        """What decides the loss, as JSON types."""
        names = ["weight", "temperature", "kind", "beta"]
        names += ["on_policy"] * bool(self.on_policy)  # files from before it have none
        return {name: getattr(self, name) for name in names}

    def _logits(self, states: Tensor) -> Tensor:
        """(B, t, V) of a chunk of the teacher's states."""
        return self.teacher.backbone.token_embedding(states, reverse=True)

    def _asked(self, words: Words, size: int, logits: Tensor) -> Tensor:
        """(B, t, v) log-probabilities of the teacher's logits."""
        return words.log_softmax(ops.cast(logits, "float32") / self.temperature)

    def _kept(self, words: Words, size: int, ids: Tensor, log_probs: Tensor) -> Tensor:
        """(B, t, v) log-probabilities of a chunk of rows; what was not kept has none.

        As in Gemma 3 (arXiv 2503.19786, section 2.2), the kept tokens share all of it.
        """
        log_probs = ops.maximum(log_probs, _NOTHING) / self.temperature
        return ops.log(words.scatter(ops.softmax(log_probs, axis=-1), ids, size))


@dataclasses.dataclass(frozen=True)
class TeacherTargets:
    """A teacher's distributions for a batch.

    Args:
        distillation: how it is used.
        inputs: arrays of (B, T, ...), of which the loss takes chunks.
        log_probs: words, how many are here, and what `chunk` gives, to log-probabilities
            (B, t, v) of those.
        logits: a chunk of the inputs to logits (B, t, V); None where there are none.
    """

    distillation: Distillation
    inputs: list[Tensor]
    log_probs: Callable[..., Tensor]
    logits: Callable[..., Tensor] | None = None

    @property
    def weight(self) -> float:
        return self.distillation.weight

    def chunk(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Chunks of `inputs` to what `divergence` takes: themselves, or the teacher's logits."""
        return inputs if self.logits is None else (self.logits(*inputs),)

    def divergence(self, words: Words, logits: Tensor, *targets: Tensor) -> divergences.Divergence:
        """Divergence (B, t) at the temperature, times its square, and its gradient.

        Args:
            words: those that logits are of.
            logits: (B, t, v) of the student.
            *targets: what `chunk` gives; of logits those of the words that are here.

        Returns:
            The value, and a function that makes the gradient by `logits` (B, t, v).
        """
        ours, temperature = self.distillation, self.distillation.temperature
        student = words.log_softmax(logits / temperature)
        teacher = self.log_probs(words, logits.shape[-1], *targets)
        if ours.kind == "jensen_shannon":
            value, gradient = divergences.jensen_shannon(words, teacher, student, ours.beta)
        else:
            value, gradient = getattr(divergences, ours.kind)(words, teacher, student)
        return temperature**2 * value, lambda: temperature * gradient()


def _start_of(teacher: Any) -> int | None:
    """The token that a model's tokenizer begins a text with."""
    preprocessor = getattr(teacher, "preprocessor", None)
    return preprocessor and preprocessor.tokenizer.start_token_id


def _states(backbone: Any, x: dict[str, Tensor], labels: Tensor, start_token: int | None) -> Tensor:
    """(B, T, D) of the teacher, each about to write the label at its place."""
    mask = ops.cast(ops.not_equal(x["encoder_padding_mask"], 0), "int32")
    target_mask = ops.cast(ops.not_equal(x["decoder_padding_mask"], 0), "int32")
    start = ops.full_like(mask[:, : int(start_token is not None)], start_token or 0)
    ids = ops.concatenate(
        [ops.cast(i, "int32") for i in (start, x["encoder_token_ids"], labels)], axis=1
    )
    there = ops.concatenate([ops.ones_like(start), mask, target_mask], axis=1)
    # What is there moves to the front, in its order.
    length = ids.shape[1]
    order = ops.argsort((1 - there) * length + ops.arange(length, dtype="int32"), axis=-1)
    ids, there = (ops.take_along_axis(i, order, axis=1) for i in (ids, there))
    states = backbone({"token_ids": ids, "padding_mask": there})
    before = ops.sum(mask, axis=1, keepdims=True) + start.shape[1] - 1
    place = before + ops.arange(labels.shape[1], dtype="int32")
    place = ops.clip(place, 0, length - 1)
    return ops.take_along_axis(states, place[..., None], axis=1)
