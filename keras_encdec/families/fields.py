"""A config of someone else's, read so that nothing in it is ignored.

Knows which fields say how a model is run rather than what it is. Leaves what the others
mean to the families.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

# What a checkpoint's config also holds: who wrote it, which ids its tokenizer has, how it
# was initialised, and hints to programs that run it. No number of the model depends on it.
# The plainest way to see a name here is `transformers.PretrainedConfig().to_dict()`.
_ABOUT = {
    "_name_or_path",
    "_sliding_window_pattern",  # layer_types say it
    "architectures",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_position_embeddings",
    "model_type",
    "name",
    "pad_token_id",
    "pretraining_tp",  # how products were split
    "problem_type",
    "return_dict",
    "torch_dtype",
    "trainable",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
}
_REQUIRED = object()


class Fields:
    """The fields of a config, each taken once.

    Args:
        config: name to value.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in config.items() if name not in _ABOUT}

    def __call__(self, name: str, default: Any = _REQUIRED) -> Any:
        """Takes a field; with a default it may be absent.

        Raises:
            ValueError: if it is absent.
        """
        if name not in self._left and default is _REQUIRED:
            raise ValueError(
                f"Expected a config with {name}. Received: one with {sorted(self._left)}. "
                "It is not the config of a model of this family, or it is damaged."
            )
        return self._left.pop(name, default)

    def only(self, name: str, *allowed: Any) -> None:
        """Takes a field that may be absent, and else can only have one of these values.

        Raises:
            ValueError: if it has another.
        """
        value = self._left.pop(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"Expected {name}={' or '.join(map(repr, allowed))}. Received: {value!r}, "
                "which keras_encdec has no field for."
            )

    def check_empty(self) -> None:
        """Raises ValueError if a field was not taken and says something."""
        for name, value in self._left.items():
            if value not in (None, False):
                raise ValueError(
                    "Expected only fields that keras_encdec knows. "
                    f"Received: {name}={repr(value)[:80]}, "
                    "which it would have to ignore."
                )


@contextlib.contextmanager
def reading(config: Mapping[str, Any]) -> Iterator[Fields]:
    """The fields of a config, all of which are to be taken while it is open."""
    fields = Fields(config)
    yield fields
    fields.check_empty()
