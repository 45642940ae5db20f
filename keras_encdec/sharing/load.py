"""From a name to a model: `from_preset` and `adapt`.

Finds out what a name, handle, folder or object is, and hands it to the room that
can read it: KerasHub, the T5Gemma layout, or conversion.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import keras_hub
from keras_hub.src.utils.preset_utils import get_file

from keras_encdec import layout
from keras_encdec.conversion.execute import convert, load
from keras_encdec.conversion.plan import Plan, make_plan, random_plan
from keras_encdec.conversion.sources import ModelSource, SafetensorsSource
from keras_encdec.families import gemma, t5gemma
from keras_encdec.files import read_json, shard_names
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog

_AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Source:
    """A decoder-only model: its spec, its weights, and its tokenizer if it has one."""

    spec: Any
    weights: ModelSource
    tokenizer: Any


def from_preset(preset, *, dtype=None, preprocessor=_AUTO, **options) -> EncDecSeq2SeqLM:
    """Loads an encoder-decoder by name.

    Args:
        preset: one of
            - a recipe of `keras_encdec.presets`, such as `"gemma2_9b_2b"`: loads both
              sources through KerasHub and converts them, or makes random weights for
              an architecture such as `"t5gemma_s_s"`;
            - a folder or `kaggle://`, `hf://` handle of a saved pair of ours;
            - a folder or handle in the released T5Gemma layout;
            - anything else that KerasHub knows as decoder-only: adapted, balanced.
        dtype: dtype or policy of the pair; Keras' default policy if None.
        preprocessor: `"auto"` for the one that belongs to the preset, None for none.
        **options: of `adapt`, where the preset is converted.

    Returns:
        `EncDecSeq2SeqLM`.

    Raises:
        ValueError: if the name is unknown or the files are damaged.

    Example:
        >>> lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    """
    preset = str(preset)
    catalog.check_known(preset)
    if preset in catalog.presets:
        return _from_recipe(catalog.presets[preset], dtype, preprocessor, options)
    preset = catalog.on_this_machine(preset)
    config = _config(preset)
    if config.get("registered_name") == "keras_encdec>EncDecBackbone":
        return _load_ours(preset, dtype, preprocessor, options)
    if config.get("model_type") == "t5gemma":
        return _load_t5gemma(preset, config, dtype, preprocessor, options)
    if not {"registered_name", "model_type"} & set(config):
        raise ValueError(
            "Expected a config.json of KerasHub (registered_name) or of transformers "
            f"(model_type). Received: {preset!r}, whose config has neither."
        )
    return adapt(preset, dtype=dtype, preprocessor=preprocessor, **options)


def adapt(
    encoder,
    decoder=None,
    *,
    cross_attention_init="auto",
    encoder_attention="bidirectional",
    expand_gqa=False,
    dtype=None,
    chat=False,
    preprocessor=_AUTO,
) -> EncDecSeq2SeqLM:
    """Turns one or two decoder-only models into an encoder-decoder.

    Args:
        encoder: becomes the encoder: a preset name, handle or folder, a KerasHub
            backbone or a KerasHub task. A `T5GemmaBackbone` is taken over whole.
        decoder: becomes the decoder; by default the same as the encoder.
        cross_attention_init: `"self_attention"`, `"random"`, or `"auto"`: from
            self-attention where both configurations are equal (arXiv 2504.06225, 3.2).
        encoder_attention: `"bidirectional"`, or `"causal"` as an ablation.
        expand_gqa: give the encoder one key/value head per query head, by repetition.
        dtype: dtype or policy of the pair; Keras' default policy if None.
        chat: whether the sources are instruction-tuned, for the preprocessor.
        preprocessor: `"auto"` to build one from the source's tokenizer, None for none.

    Returns:
        `EncDecSeq2SeqLM`.

    Raises:
        ValueError: if the sources cannot be paired; nothing is built then.

    Example:
        >>> lm = keras_encdec.adapt("gemma2_tiny_docs", "gemma2_mini_docs")
    """
    first = _backbone_of(encoder)
    if type(first).__name__ == t5gemma.KERAS_HUB_CLASS:
        backbone = _take_over(first, dtype)
        return _task(backbone, _tokenizer_of(encoder), chat, preprocessor)
    sources = {"source": _source(encoder, dtype)}
    if decoder is not None:
        sources = {"encoder": sources["source"], "decoder": _source(decoder, dtype)}
        _check_same_tokenizer(*sources.values())
    specs = [source.spec for source in sources.values()]
    plan = make_plan(
        *specs,
        cross_attention_init=cross_attention_init,
        encoder_attention=encoder_attention,
        expand_gqa=expand_gqa,
    )
    weights = {side: source.weights for side, source in sources.items()}
    backbone = convert(plan, weights, dict.fromkeys(weights, gemma.KERAS_HUB), dtype)
    tokenizer = next(iter(sources.values())).tokenizer
    return _task(backbone, tokenizer, chat, preprocessor)


def plan(preset, **options) -> Plan:
    """The plan of a recipe, made from its known specs; no weight is loaded.

    Raises:
        ValueError: if `preset` is no recipe.
    """
    catalog.check_known(preset)
    if preset not in catalog.presets:
        raise ValueError(
            f"Expected a recipe of keras_encdec.presets. Received: {preset!r}, which is one model."
        )
    recipe = catalog.presets[preset]
    if recipe.encoder is None:
        return random_plan(recipe.spec)
    specs = [catalog.known_spec(recipe.encoder_spec)]
    if recipe.decoder != recipe.encoder:
        specs.append(catalog.known_spec(recipe.decoder_spec))
    return make_plan(*specs, **options)


def _from_recipe(recipe: catalog.Recipe, dtype, preprocessor, options) -> EncDecSeq2SeqLM:
    if recipe.encoder is None:
        spec = recipe.spec
        backbone = EncDecBackbone(spec.encoder, spec.decoder, dtype=dtype, **options)
        tokenizer = None
        if preprocessor == _AUTO:
            tokenizer = keras_hub.models.Tokenizer.from_preset(recipe.tokenizer)
        return _task(backbone, tokenizer, recipe.chat, preprocessor)
    sides = [recipe.encoder] + ([recipe.decoder] if recipe.decoder != recipe.encoder else [])
    options = {"chat": recipe.chat, **options}
    return adapt(*sides, dtype=dtype, preprocessor=preprocessor, **options)


def _source(model, dtype) -> Source:
    loaded = isinstance(model, (str, Path))
    if loaded:
        catalog.check_known(str(model))
        model = catalog.on_this_machine(str(model))
        tokenizer = keras_hub.models.Tokenizer.from_preset(model)
        with layout.on_host():
            model = keras_hub.models.Backbone.from_preset(model, dtype=dtype)
    else:
        tokenizer = _tokenizer_of(model)
    backbone = _backbone_of(model)
    if type(backbone).__name__ != gemma.KERAS_HUB_CLASS:
        raise ValueError(
            "Expected a Gemma or Gemma 2 preset, backbone or task of KerasHub. "
            f"Received: {type(backbone).__name__}."
        )
    spec = gemma.from_keras_hub(backbone.get_config())
    return Source(spec, ModelSource(backbone, consume=loaded), tokenizer)


def _backbone_of(model):
    return model.backbone if isinstance(model, keras_hub.models.Task) else model


def _tokenizer_of(model):
    return getattr(getattr(model, "preprocessor", None), "tokenizer", None)


def _check_same_tokenizer(encoder: Source, decoder: Source) -> None:
    if encoder.tokenizer is None or decoder.tokenizer is None:
        return
    if encoder.tokenizer.get_vocabulary() != decoder.tokenizer.get_vocabulary():
        raise ValueError(
            "Expected two models with the same vocabulary. Received: tokenizers of "
            f"{encoder.tokenizer.vocabulary_size()} and {decoder.tokenizer.vocabulary_size()} "
            "pieces that differ."
        )


def _task(backbone, tokenizer, chat, preprocessor) -> EncDecSeq2SeqLM:
    if preprocessor == _AUTO:
        preprocessor = tokenizer and EncDecSeq2SeqLMPreprocessor(tokenizer, chat=chat)
    return EncDecSeq2SeqLM(backbone, preprocessor)


def _take_over(backbone, dtype) -> EncDecBackbone:
    """A KerasHub `T5GemmaBackbone` as one of ours."""
    last_norms = {
        id(backbone.encoder_norm.scale): "encoder_norm/scale",
        id(backbone.decoder_norm.scale): "decoder_norm/scale",
    }
    source = ModelSource(backbone, rename=lambda v: last_norms.get(id(v), v.path))
    pair = t5gemma.from_keras_hub(backbone.get_config())
    return load(pair, source, t5gemma.KERAS_HUB, dtype=dtype)


def _config(preset) -> dict:
    try:
        return read_json(get_file(preset, "config.json"))
    except FileNotFoundError as error:
        raise ValueError(
            f"Expected a preset with a config.json. Received: {preset!r}, which has none."
        ) from error


def _load_ours(preset, dtype, preprocessor, options) -> EncDecSeq2SeqLM:
    _check_no_options(options)
    kwargs = {} if preprocessor == _AUTO else {"preprocessor": preprocessor}
    with contextlib.suppress(FileNotFoundError):  # not sharded
        shard_names(get_file(preset, "model.weights.json"))
    try:
        return EncDecSeq2SeqLM.from_preset(preset, dtype=dtype, **kwargs)
    except (OSError, KeyError, ValueError) as error:
        if "Expected" in str(error):
            raise
        raise ValueError(
            f"Expected a whole preset. Received: {preset!r}, which cannot be read ({error}). "
            "Download or save it again."
        ) from error


def _load_t5gemma(preset, config, dtype, preprocessor, options) -> EncDecSeq2SeqLM:
    _check_no_options(options)
    source = SafetensorsSource(lambda name: get_file(preset, name), preset)
    pair = t5gemma.from_transformers(config)
    backbone = load(pair, source, t5gemma.TRANSFORMERS, t5gemma.TRANSFORMERS_DROPPED, dtype)
    tokenizer = _t5gemma_tokenizer(preset) if preprocessor == _AUTO else None
    return _task(backbone, tokenizer, _t5gemma_chats(preset), preprocessor)


def _t5gemma_tokenizer(preset):
    try:
        proto = get_file(preset, "tokenizer.model")
    except FileNotFoundError:
        return None
    return keras_hub.tokenizers.GemmaTokenizer(proto)


def _t5gemma_chats(preset) -> bool:
    """Whether a release is instruction-tuned: it then stops at a list of ids."""
    try:
        config = read_json(get_file(preset, "generation_config.json"))
    except FileNotFoundError:
        return False
    return isinstance(config.get("eos_token_id"), list)


def _check_no_options(options) -> None:
    if options:
        raise ValueError(
            f"Expected no conversion options for a finished pair. Received: {sorted(options)}."
        )
