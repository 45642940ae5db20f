"""An encoder alone in the layouts of transformers: which one holds it, and what each would lose.

Knows the head of a classifier on T5Gemma's encoder too.

A layout holds an encoder if its config, read again, is the encoder: what comes back otherwise is
named. So nothing is written that reads as another model, and no family lists what it lacks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_encdec import check
from keras_encdec.families import known, t5gemma
from keras_encdec.families.dialect import Rule
from keras_encdec.families.layout import Layout, differences
from keras_encdec.spec import EncoderSpec

T5GEMMA = "t5gemma"
# What such a folder may hold beside an encoder: a classifier's head, a tie stored as a copy.
HEAD = "score.out_proj"
DROPPED = ("lm_head.weight", "*.inv_freq", f"{HEAD}.*")
_CLASSIFIER = "T5GemmaForSequenceClassification"


def layout_of(spec: EncoderSpec, dtype: str) -> Layout:
    """The first layout that holds an encoder: T5Gemma's, then those of decoder-only families.

    A decoder-only family holds an encoder by `"is_causal": false`, which transformers reads from
    version 5.2 on.

    Args:
        spec: of the encoder.
        dtype: name of the dtype that the tensors are written in.

    Raises:
        ValueError: naming the fields that the nearest layout cannot hold.
    """
    nearest: tuple[str, list[str]] | None = None
    for model_type, write in _writers(dtype):
        config = {"model_type": model_type, **write(spec), "dtype": dtype}
        read = from_transformers(config)
        assert read is not None  # it says that it is an encoder's
        lost = list(differences(spec, read))
        if not lost:
            return Layout(config, rules_of(config))
        if nearest is None or len(lost) < len(nearest[1]):
            nearest = model_type, lost
    assert nearest is not None
    raise ValueError(
        "Expected an encoder that a layout of transformers holds. Received: one of which the "
        f"nearest, {nearest[0]!r}, cannot hold {'; '.join(nearest[1])}. save_to_preset keeps any "
        "encoder."
    )


def from_transformers(config: Mapping[str, Any]) -> EncoderSpec | None:
    """The encoder behind a `config.json`; None where it does not say that it is one.

    Raises:
        ValueError: if a spec cannot express a field.
    """
    if t5gemma.is_encoder(config):
        return t5gemma.encoder_from_transformers(config)
    if config.get("is_causal") is None or "model_type" not in config:
        return None
    causal = check.flag("is_causal", config["is_causal"])
    return EncoderSpec(known.spec_of(config), "causal" if causal else "bidirectional")


def head_to_transformers(names: Sequence[str] | int, dropout: float) -> dict[str, Any]:
    """What a config says of the head of `EncDecTextClassifier`.

    Args:
        names: of its classes, or how many there are.
        dropout: rate in front of it.
    """
    if isinstance(names, int):
        names = _unnamed(names)
    return {
        "architectures": [_CLASSIFIER],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "classifier_dropout_rate": dropout,
    }


def head_from_transformers(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The head behind a `config.json`, as arguments of `EncDecTextClassifier`.

    Returns:
        None where the config is not that of a classifier on an encoder.

    Raises:
        ValueError: if its classes are not numbered from 0 on.
    """
    if config.get("architectures") != [_CLASSIFIER] or not t5gemma.is_encoder(config):
        return None
    labels = config.get("id2label") or dict(enumerate(_unnamed(2)))  # as transformers has it
    by_number = {str(number): name for number, name in labels.items()}
    try:
        names = [by_number[str(i)] for i in range(len(by_number))]
    except KeyError as error:
        raise ValueError(
            f"Expected id2label with numbers from 0 to {len(by_number) - 1}. Received: {labels}."
        ) from error
    unnamed = names == _unnamed(len(names))
    classes = {"num_classes": len(names)} if unnamed else {"label_names": names}
    return {**classes, "dropout": config.get("classifier_dropout_rate", 0.0)}


def _unnamed(count: int) -> list[str]:
    return [f"LABEL_{i}" for i in range(count)]


def rules_of(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """For the weights of the encoder behind a `config.json`."""
    if t5gemma.is_encoder(config):
        return t5gemma.TRANSFORMERS_ENCODER
    family = known.of_model_type(config["model_type"])
    return tuple(
        dataclasses.replace(rule, ours=f"encoder/{rule.ours}") for rule in family.transformers
    )


def _writers(dtype: str) -> Iterator[tuple[str, Callable[[EncoderSpec], dict[str, Any]]]]:
    """The model types and what writes their configs."""
    yield T5GEMMA, lambda spec: t5gemma.encoder_to_transformers(spec, dtype)
    for family in known.FAMILIES:
        if family.to_transformers is not None:
            for model_type in family.model_types:
                yield model_type, family.to_transformers
