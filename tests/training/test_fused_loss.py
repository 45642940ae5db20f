"""The fused loss is the plain one: values, gradients, metrics, and no logits in memory."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import ops

from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.training.distillation import Distillation
from keras_encdec.training.loss import FusedCrossEntropy

ROWS, LENGTH, WIDTH = 2, 7, 16
DIVERGENCES = [None, "forward", "reverse", "jensen_shannon"]


def plain(states, matrix, labels, weights, teacher, *, cap, z_loss, smoothing, kind, how):
    """The definition, over whole logits; JAX takes its gradient."""
    share, temperature, beta = how
    logits = states @ matrix.T
    logits = cap * jnp.tanh(logits / cap) if cap else logits
    norm = jax.nn.logsumexp(logits, axis=-1)
    target = jax.nn.one_hot(labels, len(matrix)) * (1 - smoothing) + smoothing / len(matrix)
    loss = norm - jnp.sum(target * logits, axis=-1)
    if kind:
        ours = jax.nn.log_softmax(logits / temperature)
        theirs = jax.nn.log_softmax(teacher / temperature)
        p, q = jnp.exp(theirs), jnp.exp(ours)
        middle = jnp.log(beta * p + (1 - beta) * q)
        divergence = {
            "forward": p * (theirs - ours),
            "reverse": q * (ours - theirs),
            "jensen_shannon": beta * p * (theirs - middle) + (1 - beta) * q * (ours - middle),
        }[kind]
        loss = (1 - share) * loss + share * temperature**2 * jnp.sum(divergence, axis=-1)
    return jnp.sum(weights * (loss + z_loss * norm**2))


class Asked:
    """Stands where a KerasHub causal LM does: gives states, and reads them out."""

    def __init__(self, logits):
        self.trainable, self.preprocessor = True, None
        self.backbone = self
        self.logits = logits

    def token_embedding(self, states, reverse):
        return states


def problem(size, dtype="float32", cap=3.0):
    rng = np.random.default_rng(size)
    embedding = keras.layers.ReversibleEmbedding(
        size, WIDTH, logit_soft_cap=cap, dtype=dtype and keras.DTypePolicy(dtype)
    )
    embedding.build()
    embedding.embeddings.assign(rng.normal(size=(size, WIDTH)))
    states = keras.Variable(rng.normal(size=(ROWS, LENGTH, WIDTH)), dtype="float32")
    labels = rng.integers(0, size, (ROWS, LENGTH)).astype("int32")
    weights = rng.random((ROWS, LENGTH)).astype("float32")
    weights[0, -2:] = 0
    teacher = 2 * rng.normal(size=(ROWS, LENGTH, size)).astype("float32")
    return embedding, states, labels, weights, teacher


def fused_and_plain(problem, kind, *, smoothing=0.1, z_loss=1e-2, how=(0.7, 2.0, 0.3), chunk=4):
    embedding, states, labels, weights, teacher = problem
    share, temperature, beta = how
    targets = None
    if kind:
        distillation = Distillation(
            Asked(teacher), weight=share, temperature=temperature, divergence=kind, beta=beta
        )
        targets = distillation.targets_of_states(ops.convert_to_tensor(teacher))
    loss = FusedCrossEntropy(z_loss=z_loss, label_smoothing=smoothing, chunk_tokens=chunk)

    def function():
        low = ops.cast(states + 0.0, embedding.compute_dtype)
        return loss(low, embedding, labels, weights, teacher=targets).loss

    ours = value_and_gradients(function, [states, embedding.embeddings])
    options = {"cap": embedding.logit_soft_cap, "z_loss": z_loss, "smoothing": smoothing}

    def of(s, m):
        s, m = (x.astype(embedding.compute_dtype).astype("float32") for x in (s, m))
        return plain(s, m, labels, weights, teacher, **options, kind=kind, how=how)

    values = [jnp.asarray(ops.convert_to_numpy(v)) for v in (states, embedding.embeddings)]
    theirs = jax.jit(jax.value_and_grad(of, (0, 1)))(*values)
    return ours, theirs


def assert_same(ours, theirs, tolerance):
    (value, gradients), (expected, expected_gradients) = ours, theirs
    assert abs(value - expected) <= tolerance * abs(expected)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        wanted = np.asarray(wanted, "float32")
        error = np.abs(actual - wanted).max() / np.abs(wanted).max()
        assert error <= tolerance


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equals_the_plain_loss(kind):
    assert_same(*fused_and_plain(problem(257), kind), 1e-5)


def test_equals_the_plain_loss_without_a_cap():
    assert_same(*fused_and_plain(problem(257, cap=None), "forward"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "forward"])
def test_equals_the_plain_loss_at_a_vocabulary_of_256_000(kind):
    assert_same(*fused_and_plain(problem(256_000), kind), 1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_size_of_a_chunk_does_not_matter(chunk):
    assert_same(*fused_and_plain(problem(257), "forward", chunk=chunk), 1e-5)


@pytest.mark.slow
def test_bfloat16_within_its_own_rounding():
    # Sums are float32. Gradients by logits enter their projections in bfloat16, and JAX rounds
    # the reference's once more on the way back: two roundings of 2^-8.
    assert_same(*fused_and_plain(problem(256_000, "mixed_bfloat16"), None), 2**-7)


def test_a_weight_of_zero_gives_no_gradient():
    (_, (d_states, _)), _ = fused_and_plain(problem(257), "forward")
    assert not d_states[0, -2:].any()
    assert d_states[1].any(axis=-1).all()


def test_sums_count_tokens_by_weight():
    embedding, states, labels, weights, _ = problem(257)
    sums = FusedCrossEntropy(chunk_tokens=4)(
        ops.convert_to_tensor(states), embedding, labels, weights, training=False
    )
    logits = ops.convert_to_numpy(embedding(ops.convert_to_tensor(states), reverse=True))
    log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    correct = logits.argmax(axis=-1) == labels
    expected = [np.sum(x * weights) for x in (nll, nll, correct, np.ones_like(weights))]
    np.testing.assert_allclose([float(x) for x in sums], expected, rtol=1e-5)


def test_kept_rows_share_all_probability():
    """Every word kept is the same as asking; in any order, at any temperature."""
    embedding, states, labels, weights, teacher = problem(61)
    log_probs = np.log(np.exp(teacher) / np.exp(teacher).sum(axis=-1, keepdims=True))
    order = np.random.default_rng(1).permuted(
        np.broadcast_to(np.arange(61), teacher.shape), axis=-1
    )
    y = {
        "labels": labels,
        "teacher_ids": order,
        "teacher_log_probs": np.take_along_axis(log_probs, order, -1),
    }
    options = {"weight": 0.7, "temperature": 2.0}
    kept = Distillation(None, **options).teacher_targets({}, y)
    teacher_states = ops.convert_to_tensor(teacher)
    asked = Distillation(Asked(teacher), **options).targets_of_states(teacher_states)
    loss = FusedCrossEntropy(chunk_tokens=4)
    values = [
        value_and_gradients(
            lambda targets=targets: (
                loss(
                    ops.cast(states, "float32") + 0, embedding, labels, weights, teacher=targets
                ).loss
            ),
            [states, embedding.embeddings],
        )
        for targets in (kept, asked)
    ]
    assert_same(*values, 1e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads JAX's program")
def test_no_array_holds_all_logits():
    embedding, states, labels, weights, _ = problem(4099)
    loss = FusedCrossEntropy(chunk_tokens=4)

    def function(s, m):
        with keras.StatelessScope([(embedding.embeddings, m)]):
            return loss(s, embedding, labels, weights).loss

    gradient = jax.jit(jax.grad(function, (0, 1)))
    text = gradient.lower(states.value, embedding.embeddings.value).compile().as_text()
    assert f"[{ROWS},2,4099]" in text
    for whole in (f"[{ROWS},{LENGTH},4099]", f"[{ROWS * LENGTH},4099]", f"[{ROWS},8,4099]"):
        assert whole not in text


@pytest.mark.parametrize("bad", [{"z_loss": -1}, {"label_smoothing": 1}, {"chunk_tokens": 0}])
def test_options_out_of_range(bad):
    with pytest.raises(ValueError, match=f"Expected {next(iter(bad))}"):
        FusedCrossEntropy(**bad)


@pytest.mark.parametrize(
    "bad", [{"weight": 2}, {"temperature": 0}, {"divergence": "best"}, {"divergence": "reverse"}]
)
def test_distillation_out_of_range(bad):
    with pytest.raises(ValueError, match="Expected"):
        Distillation(None, **bad)
