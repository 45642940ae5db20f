"""An accelerator that JAX does not see is said, once, with the line that mends it."""

import warnings

import keras
import pytest

from keras_encdec.accelerators import check_seen

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's devices")


@pytest.fixture
def devices(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_seen.cache_clear()
    yield tmp_path
    check_seen.cache_clear()


@pytest.mark.parametrize(("name", "extra"), [("nvidia0", "cuda"), ("accel0", "tpu")])
def test_it_is_said_once(devices, name, extra):
    (devices / name).touch()
    with pytest.warns(UserWarning, match=rf'pip install "keras-encdec\[{extra}\]"'):
        check_seen(devices)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_seen(devices)


@pytest.mark.parametrize(
    "hidden", [{}, {"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}], ids=str
)
def test_nothing_is_said_without_one_or_where_it_is_hidden(devices, monkeypatch, hidden):
    if hidden:
        (devices / "nvidia0").touch()
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_seen(devices)
