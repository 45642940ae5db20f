"""A step of the optimizer on JAX: what it is given, what XLA is told, what XLA makes of it."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from compiled_step import compiled

from keras_encdec.spec import AttentionSpec, PairSpec, StackSpec
from keras_encdec.testing.models import make_inputs, tiny_lm
from keras_encdec.training import jax_step

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="a step on JAX")

WORDS, WIDTH = 16384, 192


def applied(optimizer, grads):
    """Weights after a step from zeros, by our way to the optimizer, and the norm."""
    weights = [keras.Variable(np.zeros(g.shape), dtype=g.dtype) for g in grads]
    optimizer.build(weights)
    given, norm = jax_step._measured(grads)
    with jax_step._clipping(optimizer, given, norm) as clipped:
        optimizer.apply(clipped, weights)
    return [np.asarray(w.value, "float32") for w in weights], float(norm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "clipping",
    [{}, {"global_clipnorm": 0.5}, {"global_clipnorm": 1e3}, {"clipnorm": 0.5}, {"clipvalue": 0.1}],
    ids=str,
)
def test_clipping_is_that_of_keras(dtype, clipping):
    rng = np.random.default_rng(0)
    grads = [jnp.asarray(rng.normal(size=shape), dtype) for shape in ((5, 7), (3,), ())]
    found, norm = applied(keras.optimizers.SGD(1.0, **clipping), grads)
    theirs = keras.optimizers.SGD(1.0, **clipping)
    weights = [keras.Variable(np.zeros(g.shape), dtype=g.dtype) for g in grads]
    theirs.build(weights)
    theirs.apply(grads, weights)
    for actual, expected in zip(found, weights, strict=True):
        np.testing.assert_allclose(actual, np.asarray(expected.value, "float32"), rtol=1e-6)
    squares = sum(np.square(np.asarray(g, "float64")).sum() for g in grads)
    assert norm == pytest.approx(np.sqrt(squares), rel=1e-2 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_clipped_to_what_is_no_number(value):
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    found, norm = applied(optimizer, [jnp.asarray([1.0, value])])
    assert np.isnan(found[0]).all()
    assert not np.isfinite(norm)
    assert optimizer.global_clipnorm == 1.0


@pytest.mark.slow
def test_xla_is_told_to_order_by_memory(monkeypatch):
    asked, jit = [], jax.jit

    def seen(*args, **kwargs):
        asked.append(kwargs.get("compiler_options"))
        return jit(*args, **kwargs)

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    expected = jax_step.compiler_options()
    assert list(expected.values()) == ["CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"]
    monkeypatch.setattr(jax, "jit", seen)
    monkeypatch.setattr("keras.src.backend.jax.trainer.jit", seen)
    lm = tiny_lm()
    lm.compile()
    x = make_inputs((5, 3), (4, 2))
    lm.fit(x, x["decoder_token_ids"], batch_size=2, verbose=0)
    assert asked == [expected]


@pytest.mark.parametrize("flags", ["--xla_cpu_enable_concurrency_optimized_scheduler=true", ""])
def test_what_the_user_told_xla_goes_first(flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert bool(jax_step.compiler_options()) == (not flags)


def test_an_xla_without_the_option_is_told_nothing():
    assert jax_step._known((("xla_cpu_no_such_option", True),)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.AdamW(global_clipnorm=1.0)])
def test_two_arrays_as_large_as_the_embedding_are_there_at_once(optimizer):
    """Of logits and of gradients: neither squares nor what is needed later lies beside them."""
    attention = AttentionSpec(4, 2, 40, 16.0, 5.0)
    stack = StackSpec(WORDS, WIDTH, 64, attention, (None,), final_logit_soft_cap=30.0)
    step = compiled(
        PairSpec(stack, stack), 2, 32, WIDTH // 2, None, WIDTH, by_memory=True, optimizer=optimizer
    )
    entry = step.as_text().partition("ENTRY")[2]
    assert f"f32[{WORDS},{WIDTH}]" in entry
    assert step.memory_analysis().temp_size_in_bytes < 2.5 * 4 * WORDS * WIDTH
