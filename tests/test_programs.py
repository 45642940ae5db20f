"""Compiled programs outlive the process that made them."""

import json
import os
import subprocess
import sys

import jax
import keras
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from keras_encdec import compile_cache

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX keeps programs")

SCRIPT = """
import json, sys
import jax
import keras_encdec
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.split("/")[-1]))
keras_encdec.compile_cache(sys.argv[1])
from keras_encdec.testing.models import make_inputs, tiny_lm
lm, x = tiny_lm(), make_inputs((20, 13), (16, 9))
lm.fit(x, x["decoder_token_ids"], sample_weight=x["decoder_padding_mask"], verbose=0)
lm.compile(sampler="greedy")
tokens = lm.generate({k: v for k, v in x.items()}, max_length=24, stop_token_ids=None)
tokens = tokens["decoder_token_ids"].tolist()
print(json.dumps([found.count("cache_hits"), found.count("cache_misses"), tokens]))
"""


@pytest.fixture
def settings():
    names = "compilation_cache_dir", "compilation_cache_max_size"
    names += ("persistent_cache_min_compile_time_secs",)
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


@on_jax
def test_a_program_is_kept(tmp_path, settings):
    jax.jit(lambda x: x * 3)(1.0)  # one is compiled already
    compile_cache(tmp_path / "new" / "folder", max_bytes=10**6)
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert list(tmp_path.glob("new/folder/*/jit_*-cache"))


@on_jax
@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    first, second = (
        json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])
        for _ in range(2)
    )
    assert first[1] > 0
    assert second[:2] == [sum(first[:2]), 0]
    assert second[2] == first[2]


@on_jax
@pytest.mark.parametrize("size", [0, 1.5, "1 GB"])
def test_a_limit_that_is_none(tmp_path, size, settings):
    with pytest.raises(ValueError, match="Expected max_bytes of at least 1"):
        compile_cache(tmp_path, size)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX keeps programs")
def test_other_backends_keep_none(tmp_path):
    with pytest.raises(ValueError, match=r"Expected JAX .* Received: "):
        compile_cache(tmp_path)
