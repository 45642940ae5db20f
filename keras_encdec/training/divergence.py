"""How far a student's distribution is from a teacher's, with gradients by hand.

Each function takes log-probabilities at some temperature, (..., V) float32, of the words
that are here, and returns the divergence (...) and a function that makes its gradient by the
student's logits (..., V). A teacher may give no probability to a token: its log-probability
is then -inf.
"""

from collections.abc import Callable

from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.words import Words

Divergence = tuple[Tensor, Callable[[], Tensor]]  # the value, and what makes its gradient


def forward(words: Words, teacher: Tensor, student: Tensor) -> Divergence:
    """KL(teacher || student), the distillation of Gemma 2 (arXiv 2408.00118, 3.2)."""
    p, q = ops.exp(teacher), ops.exp(student)
    value = _expected(words, p, teacher - student)
    return value, lambda: q * words.sum(p)[..., None] - p


def reverse(words: Words, teacher: Tensor, student: Tensor) -> Divergence:
    """KL(student || teacher), which looks for one way of the teacher (arXiv 2306.08543)."""
    q = ops.exp(student)
    gap = student - teacher
    value = _expected(words, q, gap)
    return value, lambda: q * (gap - value[..., None])


def jensen_shannon(words: Words, teacher: Tensor, student: Tensor, beta: float) -> Divergence:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    The generalised Jensen-Shannon divergence of arXiv 2306.13649, section 2.
    """
    p, q = ops.exp(teacher), ops.exp(student)
    middle = ops.log(beta * p + (1 - beta) * q)
    to_student = student - middle
    of_student = _expected(words, q, to_student)
    value = beta * _expected(words, p, teacher - middle) + (1 - beta) * of_student
    return value, lambda: (1 - beta) * q * (to_student - of_student[..., None])


def _expected(words: Words, p: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` under `p`; tokens without probability count nothing."""
    return words.sum(ops.where(p > 0, p * values, 0.0))
