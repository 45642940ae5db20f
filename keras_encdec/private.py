"""What the package needs of the private modules of Keras, KerasHub and Tokamax, in one place.

Each name with the reason; `tests/test_private.py` fails when one moves or means something
else. Everything else in the package imports these names from here.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

# What Kaggle lists of a model, which kagglehub has no public call for.
from kagglehub.clients import build_kaggle_client
from kagglehub.handle import ModelHandle
from kagglesdk.models.types.model_api_service import (
    ApiGetModelInstanceRequest,
    ApiListModelInstanceVersionFilesRequest,
)

# The value of a variable as it is kept, which `keras.Variable.value` casts inside a layer.
from keras.src.backend import AutocastScope

# Variables that Keras has put off; see `deferred_variables`.
from keras.src.backend.common.global_state import get_global_attribute

# Which `keras.StatelessScope` is open; see `keras_encdec.hosts`.
from keras.src.backend.common.stateless_scope import get_stateless_scope

# Which layers the `filters` of `quantize` mean, to mean fewer.
from keras.src.quantizers.utils import should_quantize_layer

# Keras takes batches of one's own through it, on every backend and with their number.
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

# A file of a preset: of a folder, or of kaggle:// and hf:// handles as KerasHub fetches them.
from keras_hub.src.utils.preset_utils import get_file

__all__ = [
    "AutocastScope",
    "DataAdapter",
    "deferred_variables",
    "get_file",
    "get_stateless_scope",
    "in_float32",
    "kaggle_files",
    "read_ahead",
    "should_quantize_layer",
    "tokamax_attention",
    "told_to_jit",
]


def in_float32(variable: keras.Variable) -> Any:
    """A weight as it is kept, and not in the compute dtype of the layer that reads it."""
    with AutocastScope(None):
        return keras.ops.cast(variable, "float32")


def deferred_variables() -> list[keras.Variable]:
    """Keras' own list of the variables that it will fill when the next scope ends.

    Variables made in a `keras.StatelessScope(initialize_variables=False)` are on it: who
    fills them takes them off.
    """
    return get_global_attribute("uninitialized_variables", [], set_to_default=True)


def tokamax_attention() -> tuple[Mapping[str, Callable[..., Any]], Callable[..., Any]]:
    """Tokamax's implementations of attention by name, and its mask.

    Only these objects, which lie behind its public function, take a range of keys for each
    query. Where no one has parsed absl's flags they are parsed empty: else Tokamax reads the
    arguments of the program as flags.

    Raises:
        ImportError: if Tokamax is not installed.
    """
    from absl import flags
    from tokamax._src.ops.attention import api, base

    if not flags.FLAGS.is_parsed():
        flags.FLAGS([""])
    return api.IMPLEMENTATIONS, base.Mask


@contextlib.contextmanager
def told_to_jit(options: Mapping[str, Any]) -> Iterator[None]:
    """While it is open, steps that Keras' trainer compiles on JAX get these compiler options.

    It calls `jax.jit` itself and has no argument for them. Flax' own `jit` takes none.
    """
    import jax
    from keras.src.backend.jax import trainer

    if trainer.jit is not jax.jit or not options:
        yield
        return
    trainer.jit = functools.partial(jax.jit, compiler_options=dict(options))
    try:
        yield
    finally:
        trainer.jit = jax.jit


@contextlib.contextmanager
def read_ahead(wanted: bool) -> Iterator[None]:
    """While it is open, Keras' trainer on JAX reads a batch ahead of its step only if wanted.

    On an accelerator it asks for the next batch before a step, and has no argument for it.
    """
    if wanted or keras.backend.backend() != "jax":
        yield
        return
    from keras.src.backend.jax import trainer

    cls = trainer.JAXEpochIterator
    own = cls._one_batch_ahead_iterator
    cls._one_batch_ahead_iterator = lambda self, batches: map(trainer._distribute_data, batches)
    try:
        yield
    finally:
        cls._one_batch_ahead_iterator = own


def kaggle_files(handle: ModelHandle) -> dict[str, int]:
    """Bytes of the files, by name, of a model's newest version on Kaggle, as far as it lists them.

    Raises:
        requests.HTTPError: if Kaggle says no.
    """
    found: dict[str, int] = {}
    with build_kaggle_client() as client:
        asked: Any = ApiGetModelInstanceRequest()
        listed: Any = ApiListModelInstanceVersionFilesRequest()
        for request in (asked, listed):
            request.owner_slug, request.model_slug = handle.owner, handle.model
            request.framework, request.instance_slug = handle.framework_enum(), handle.variation
        api = client.models.model_api_client
        listed.version_number = api.get_model_instance(asked).version_number
        listed.page_size = 100
        while True:
            page = api.list_model_instance_version_files(listed)
            found |= {file.name: file.size for file in page.files}
            if not page.next_page_token:
                return found
            listed.page_token = page.next_page_token
