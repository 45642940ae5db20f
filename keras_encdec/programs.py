"""Compiled programs that outlive a process, in a folder, on JAX.

Knows which settings of JAX keep them and when they would not fit a machine. Leaves what is
compiled to `keras_encdec.training` and `keras_encdec.generation`.
"""

import hashlib
import os
import platform
from pathlib import Path

import keras

from keras_encdec import check

_SECONDS = 0.0


def compile_cache(folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Keeps compiled programs in a folder: a later process reads what this one compiled.

    Call it before anything else, in each process. All programs of JAX are kept, such as the
    step of `fit`, and the encoder and the loop of `generate`. A program is found again by its
    operations and shapes, hence by the model's spec, dtypes, batch and padded lengths, by the
    versions of JAX and XLA, XLA's flags and the devices; and by the processor's instructions,
    so that machines may share a folder. Values, such as weights and prompts, do not matter.
    What is out of date is never read but stays there: the folder can be deleted at any time.
    Each process still traces its programs, which is what is left of a first call.

    Args:
        folder: made if it is not there.
        max_bytes: what it may grow to; what was used least recently goes first. None for no
            limit: a program has some hundred kilobytes to some ten megabytes.

    Raises:
        ValueError: if the backend is not JAX, or `max_bytes` is no number of 1 or more.

    Example:
        >>> keras_encdec.compile_cache("~/.cache/keras_encdec")

    Reference:
        [JAX's persistent compilation cache](https://docs.jax.dev/en/latest/persistent_compilation_cache.html)
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Expected JAX for compile_cache, whose programs can be kept. Received: "
            f"{keras.backend.backend()}. Set KERAS_BACKEND=jax before importing Keras."
        )
    import jax
    from jax.experimental.compilation_cache import compilation_cache as jax_cache

    size = -1 if max_bytes is None else check.whole("max_bytes", max_bytes, most=2**63 - 1)
    path = Path(folder).expanduser().absolute() / _processor()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", size)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax_cache.reset_cache()  # it may have been asked for a program, without a folder, already


def _processor() -> str:
    """A name for processors of the same instructions, which XLA compiles for and JAX leaves out."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = next(x for x in lines if x.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        said = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
