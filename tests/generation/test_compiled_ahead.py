"""What a call decodes with is compiled beside the encoder, once, and changes nothing."""

import threading

import keras
import numpy as np
import pytest

from keras_encdec.generation import engine
from keras_encdec.generation.compiled import Compiled
from keras_encdec.testing.models import make_inputs, tiny_lm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="shapes say what JAX will compile"
)


def generated(lm=None, length=20):
    """Ids of a greedy call, and its model."""
    if lm is None:
        lm = tiny_lm()
        lm.compile(sampler="greedy")
    x = make_inputs((length, 13), (4, 3))
    options = {"max_length": 24, "stop_token_ids": None, "draft": None}
    return lm.generate(x, **options)["decoder_token_ids"], lm


@pytest.fixture
def ahead(monkeypatch):
    """Functions that were compiled in other threads, by name."""
    found, plain = [], Compiled.ahead

    def recorded(self, *args, **kwargs):
        assert threading.current_thread() is not threading.main_thread()
        found.append(self.function.__name__)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Compiled, "ahead", recorded)
    return found


def test_begin_and_advance_are_compiled_beside_the_encoder_and_once(ahead):
    import jax

    compiled, (_, lm) = [], generated()
    assert ahead == ["_run_begin", "_run_advance"]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: compiled.append((name.split("/")[-1], about.get("fun_name")))
    )
    ids, _ = generated(lm, 140)  # an encoder of another length
    assert ahead == ["_run_begin", "_run_advance"] * 2
    programs = [name for name in compiled if name[0] == "backend_compile_duration"]
    assert [fun for _, fun in programs].count("jit(program)") == 3
    counts = lm.make_generate_function().compile_counts
    assert [counts[kind] for kind in ("encode", "begin", "advance")] == [2, 2, 2]
    again, _ = generated(lm, 140)
    np.testing.assert_array_equal(again, ids)
    assert len(ahead) == 4


def test_what_fails_beside_the_encoder_is_compiled_after_it(monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("no thread")

    monkeypatch.setattr(Compiled, "ahead", fails)
    ids, lm = generated()
    assert lm.make_generate_function().compile_counts["advance"] == 1
    monkeypatch.setattr(engine, "_compiles_ahead", lambda eager: False)
    np.testing.assert_array_equal(generated()[0], ids)
