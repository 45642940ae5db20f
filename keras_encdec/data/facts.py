"""What the batches of a run follow from, as JSON: so that a run goes on with the same ones.

Knows what of data, batching and converter decides a batch. Leaves what is done about a
difference to `keras_encdec.training`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_encdec.data.batching import Batching
from keras_encdec.data.images import digest as digest_of_image
from keras_encdec.data.kinds import (
    Conversations,
    Documents,
    ModelInputs,
    Pairs,
    Source,
    Stream,
    as_dict,
    kind_of,
)
from keras_encdec.data.labelled import Labelled, ReadyRows
from keras_encdec.data.preferred import Preferred
from keras_encdec.data.prompted import Prompted
from keras_encdec.data.ranked import Ranked
from keras_encdec.data.tokens import Tokens, vocabulary_digest
from keras_encdec.objectives import Objective, Stages
from keras_encdec.objectives.config import to_config
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.images import ImageTokens


def made_of(
    source: Source, converter: FeatureConverter | None, batching: Batching
) -> dict[str, Any]:
    """What decides the batches of some data.

    Args:
        source: from `keras_encdec.data.as_source`.
        converter: `FeatureConverter`, or None.
        batching: `Batching`.

    Returns:
        JSON types by name, such as `{"data": "...", "batch_size": 8, "packing": False}`.
    """
    facts = {"data": digest(source), **_settings(converter, batching)}
    vocabularies = {k: vocabulary_digest(v) for k, v in facts.items() if _is_tokenizer(v)}
    return facts | vocabularies


def described(
    source: Source, converter: FeatureConverter | None, batching: Batching
) -> dict[str, Any]:
    """The same for a person: what kind the data is of, and no digest, which takes a while.

    Returns:
        JSON types by name, such as `{"kind": "pairs", "batch_size": 8, "objective": None}`.
    """
    kind = kind_of(source.first() if isinstance(source, Stream) else source)
    facts = {"kind": kind, **_settings(converter, batching)}
    if kind not in ("texts", "tokens"):
        facts["objective"] = None
    return {name: value for name, value in facts.items() if not name.endswith("tokenizer")}


def digest(source: Source | Labelled) -> str:
    """Tells data apart by all that is in it; a stream only by its type."""
    found = hashlib.blake2b(digest_size=16)
    for part in _parts(source):
        found.update(part)
        found.update(len(part).to_bytes(8, "little"))
    return found.hexdigest()


def _settings(converter: FeatureConverter | None, batching: Batching) -> dict[str, Any]:
    """Of both; tokenizers as they are."""
    facts: dict[str, Any] = {
        "batch_size": batching.batch_size,
        "shuffle": batching.shuffle,
        "steps_per_epoch": batching.steps,
    }
    for field in () if converter is None else dataclasses.fields(converter):
        facts[field.name] = _of_field(getattr(converter, field.name))
    if facts.get("images") is None:
        facts.pop("images", None)  # as before there were any
    return facts


def _of_field(value: Any) -> Any:
    if isinstance(value, (Objective, Stages)):
        try:
            return to_config(value)
        except ValueError:  # one of the user's
            return repr(value)
    return dataclasses.asdict(value) if isinstance(value, ImageTokens) else value


def _is_tokenizer(value: Any) -> bool:
    return hasattr(value, "get_vocabulary")


def _parts(source: Any) -> Iterable[bytes]:
    if isinstance(source, Tokens):
        yield from source.digests()
    elif isinstance(source, Documents):
        yield from (document.text.encode() for document in source)
    elif isinstance(source, Pairs):
        for texts in (source.encoder_text, source.decoder_text or ()):
            yield from (text.encode() for text in texts)
        yield from _of_images(source.images)
    elif isinstance(source, Conversations):
        yield source.answers.encode()
        for messages in source.messages:
            yield json.dumps(list(messages), sort_keys=True, default=str).encode()
        yield from _of_images(source.images)
    elif isinstance(source, ModelInputs):
        for name, array in {**source.x, **as_dict(source.y, "y")}.items():
            yield from (name.encode(), _bytes(array))
    elif isinstance(source, Labelled):
        yield from (text.encode() for row in source.read() for text in row)
        yield from (str(label).encode() for label in _listed(source.labels))
    elif isinstance(source, Ranked):
        for column in (source.queries, *source.documents):
            yield from (text.encode() for text in column)
            yield str(len(column)).encode()
        yield from (str(score).encode() for score in _listed(source.scores))
    elif isinstance(source, Preferred):
        for part in (source.better, source.worse):
            yield from () if part is None else _parts(part)
        for numbers in (source.labels, source.margins):
            yield b"" if numbers is None else _bytes(numbers)
    elif isinstance(source, Prompted):
        for column in (source.prompts, *source.records.values()):
            yield json.dumps(list(column), sort_keys=True, default=str).encode()
    elif isinstance(source, ReadyRows):
        for name, array in {**source.x, **as_dict(source.labels, "labels")}.items():
            yield from (name.encode(), _bytes(array))
    else:
        yield source.name.encode()
    weights = getattr(source, "weights", None)
    if weights is not None:
        yield _bytes(weights)


def _of_images(images: Any) -> Iterable[bytes]:
    return (digest_of_image(image).encode() for some in images or () for image in some)


def _listed(labels: Any) -> list:
    return [] if labels is None else labels.tolist()


def _bytes(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()
