"""The int8 screen of the output projection: bounds that hold, and the same tokens always."""

import keras
import numpy as np
import pytest

from keras_encdec.generation import screen

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone")

WIDTH = 64


def matrices():
    """(V, D) float32 matrices by name."""
    rng = np.random.default_rng(0)
    usual = rng.normal(size=(1500, WIDTH)) / WIDTH**0.5
    sizes = 10.0 ** rng.uniform(-6, 6, (len(usual), 1))
    spiky = np.where(rng.random(usual.shape) < 0.02, usual * 1e4, usual)
    found = {
        "usual": usual,
        "short": usual[:5],
        "uneven": usual[:1003],
        "sizes": usual * sizes,
        "spiky": spiky,
        "equal": np.repeat(usual[:1], 600, axis=0),
        "twice": np.concatenate([usual[:700], usual[:700]]),
        "nearly twice": np.concatenate([usual[:700], usual[:700] * (1 + 2.0**-22)]),
        "zeros": np.zeros((600, WIDTH)),
        "some zeros": np.where(np.arange(len(usual))[:, None] % 3 == 0, usual, 0.0),
        "huge": usual * 1e37,
        "tiny": usual * 1e-37,
        "below float32": usual * 1e-43,
        "one NaN": np.where(np.arange(usual.size).reshape(usual.shape) == 777, np.nan, usual),
        "one Inf": np.where(np.arange(usual.size).reshape(usual.shape) == 777, np.inf, usual),
    }
    return {name: x.astype("float32") for name, x in found.items()}


MATRICES = matrices()
FINITE = [name for name in MATRICES if not name.startswith("one ")]


def some_states(matrix, seed, rows=12):
    """(rows, D) float32 states of many kinds, some of which are words of the matrix."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH))
    words = matrix[rng.integers(0, len(matrix), rows)]
    x[1] *= 1e6
    x[2] *= 1e-6
    x[3] = np.where(np.arange(WIDTH) == seed % WIDTH, 100.0, 1e-3)
    x[4:7] = words[4:7] * 30
    x[7] = (words[7] + words[8]) * 10
    x[8] = np.sign(x[8])
    return x.astype("float32")


def plain(states, matrix, soft_cap=None):
    """(M,) ids of the largest logits as the embedding of Keras gives them; -1 if not finite."""
    import jax.numpy as jnp

    logits = jnp.matmul(states, matrix.astype(states.dtype).T)
    if soft_cap is not None:
        logits = jnp.tanh(logits / soft_cap) * soft_cap
    logits = logits.astype("float32")
    ids = jnp.argmax(logits, axis=1).astype("int32")
    return jnp.where(jnp.isfinite(jnp.sum(logits, axis=1)), ids, -1)


def compiled(dtype="float32", soft_cap=None):
    """Functions of states and a matrix: the plain ids, the screen's, and which are certain."""
    import jax

    def screened(states, matrix):
        table = screen.table_of(matrix.astype(dtype))
        whole = plain(states, matrix, soft_cap)
        _, known = screen.certain(states, table, matrix, soft_cap)
        ids = screen.argmax(states, table, matrix, soft_cap, lambda: whole)
        return whole, ids, known

    run = jax.jit(screened)
    return lambda states, matrix: map(
        np.asarray, run(jax.numpy.asarray(states, dtype), jax.numpy.asarray(matrix))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FINITE)
def test_no_logit_is_above_its_bound(name):
    import jax

    matrix, upper = MATRICES[name], jax.jit(screen._upper)
    table = jax.jit(screen.table_of)(matrix)
    for seed in range(4):
        states = some_states(matrix, seed)
        logits = states.astype("float64") @ matrix.astype("float64").T
        bound, length = (np.asarray(x, "float64") for x in upper(states, table))
        sums = length[:, 0] * float(np.max(table.norm)) * len(matrix)
        # The others are never certain.
        rows = (sums < np.finfo("float32").max) & (np.max(np.abs(states), axis=1) > 1e-30)
        assert rows.any()
        assert (length[:, 0] >= np.linalg.norm(states.astype("float64"), axis=1))[rows].all()
        blocks = bound.shape[1]
        for start in range(0, len(matrix), blocks):
            some = logits[:, start : start + blocks]
            assert (some <= bound[:, : some.shape[1]])[rows].all()


@pytest.mark.slow
@pytest.mark.parametrize("soft_cap", [None, 30.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_tokens(dtype, soft_cap):
    run = compiled(dtype, soft_cap)
    for name, matrix in MATRICES.items():
        for seed in range(3):
            expected, ids, known = run(some_states(matrix, seed), matrix)
            np.testing.assert_array_equal(ids, expected, err_msg=name)
            if name in ("equal", "twice", "zeros", "one NaN", "one Inf"):
                assert not known.any(), name


@pytest.mark.slow
@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_the_same_tokens_of_thousands_of_states(soft_cap):
    run, rng = compiled(soft_cap=soft_cap), np.random.default_rng(1)
    known = []
    for _ in range(400):
        states = rng.normal(size=(12, WIDTH)) * rng.uniform(0.1, 40)
        expected, ids, is_known = run(states.astype("float32"), MATRICES["usual"])
        np.testing.assert_array_equal(ids, expected)
        known.append(is_known)
    assert np.mean(known) > 0.95


def test_what_is_certain_is_right_by_itself():
    """Beside the ids of float64, and without the whole projection to fall back on."""
    import jax

    matrix, rng = MATRICES["usual"], np.random.default_rng(2)
    table, certain = jax.jit(screen.table_of)(matrix), jax.jit(screen.certain)
    states = rng.normal(size=(200, WIDTH)).astype("float32")
    ids, known = map(np.asarray, certain(states, table, matrix))
    expected = np.argmax(states.astype("float64") @ matrix.astype("float64").T, axis=1)
    assert known.mean() > 0.95
    np.testing.assert_array_equal(ids[known], expected[known])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_states_that_are_not_finite_are_never_certain(value):
    run = compiled()
    states = some_states(MATRICES["usual"], 0)
    states[5, 7] = value
    expected, ids, known = run(states, MATRICES["usual"])
    np.testing.assert_array_equal(ids, expected)
    assert known[0]
    assert not known[5]


def test_more_words_in_reach_than_are_computed_again():
    """Words so alike that int8 cannot tell them apart, more of them than blocks are taken."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=WIDTH)
    matrix = (base + 1e-4 * rng.normal(size=(screen._BLOCK * 200, WIDTH))).astype("float32")
    expected, ids, known = compiled()(np.repeat(base[None], 12, axis=0), matrix)
    np.testing.assert_array_equal(ids, expected)
    assert not known.any()


def test_the_memory_of_a_table():
    import jax

    matrix = MATRICES["usual"]
    table = jax.jit(screen.table_of)(matrix)
    assert table.nbytes == matrix.size + 12 * len(matrix)
