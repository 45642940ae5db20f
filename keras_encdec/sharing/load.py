"""From a name to a model: `from_preset` and `adapt`.

Finds out what a name, handle, folder or object is, and hands it to the room that
can read it: KerasHub, the T5Gemma layout, or conversion.
"""

import contextlib
from pathlib import Path

import keras_hub

from keras_encdec import layout
from keras_encdec.conversion.execute import convert, load
from keras_encdec.conversion.plan import Plan, make_plan, random_plan
from keras_encdec.conversion.sources import ModelSource, SafetensorsSource, Source
from keras_encdec.families import known, t5gemma, t5gemma2
from keras_encdec.files import read_json, shard_names
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.private import get_file
from keras_encdec.sharing import catalog
from keras_encdec.sharing.tokenizers import tokenizer_of_files
from keras_encdec.spec import PairSpec, StackSpec

_AUTO = "auto"
_RELEASED = {"t5gemma": t5gemma, "t5gemma2": t5gemma2}  # pairs, by their model_type


def from_preset(preset, *, dtype=None, preprocessor=_AUTO, **options) -> EncDecSeq2SeqLM:
    """Loads an encoder-decoder by name.

    Args:
        preset: one of
            - a recipe of `keras_encdec.presets`, such as `"gemma2_9b_2b"`: loads both
              sources through KerasHub and converts them, or makes random weights for
              an architecture such as `"t5gemma_s_s"`;
            - a folder or `kaggle://`, `hf://` handle of a saved pair of ours;
            - a folder or handle in the released T5Gemma layout, or T5Gemma 2's, whose
              text part is read;
            - anything else that `adapt` takes: adapted, balanced.
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
    if config.get("model_type") in _RELEASED:
        return _load_released(preset, config, dtype, preprocessor, options)
    if not {"registered_name", "model_type"} & set(config):
        raise ValueError(
            "Expected a config.json of KerasHub (registered_name) or of transformers "
            f"(model_type). Received: {preset!r}, whose config has neither."
        )
    return adapt(preset, dtype=dtype, preprocessor=preprocessor, **options)


def adapt(
    encoder, decoder=None, *, dtype=None, chat=False, preprocessor=_AUTO, **options
) -> EncDecSeq2SeqLM:
    """Turns one or two decoder-only models, of any known family, into an encoder-decoder.

    Args:
        encoder: becomes the encoder: a preset name, handle or folder of KerasHub or of
            transformers (config.json with safetensors), a KerasHub backbone or task.
            A `T5GemmaBackbone` is taken over whole.
        decoder: becomes the decoder; by default the same as the encoder. With another
            vocabulary each side keeps its own tokenizer.
        dtype: dtype or policy of the pair; Keras' default policy if None.
        chat: whether the sources are instruction-tuned, for the preprocessor.
        preprocessor: `"auto"` to build one from the sources' tokenizers, None for none.
        **options: the paper's choices `cross_attention_init`, `encoder_attention` and
            `expand_gqa`; `decoder_layers` for a smaller decoder; and of later papers
            `merged_attention`, `cross_attention_gate`, `cross_attention_layers` and
            `tied_embeddings`. See `keras_encdec.conversion.plan.make_plan`.

    Returns:
        `EncDecSeq2SeqLM`.

    Raises:
        ValueError: if a source is of no known family or has a field that no spec can
            express, or the two cannot be paired; nothing is built then.

    Example:
        >>> lm = keras_encdec.adapt("gemma2_tiny_docs", "gemma2_mini_docs")
    """
    first = _backbone_of(encoder)
    if type(first).__name__ == t5gemma.KERAS_HUB_CLASS:
        _check_no_options(options)
        return _task(_take_over(first, dtype), _tokenizer_of(encoder), chat, preprocessor)
    text = preprocessor == _AUTO
    sources = {"source": _source(encoder, dtype, text)}
    if decoder is not None:
        sources = {"encoder": sources["source"], "decoder": _source(decoder, dtype, text)}
    every = list(sources.values())
    plan = make_plan(*[source.spec for source in every], **options)
    tokenizer, encoder_tokenizer = _tokenizers(every)
    backbone = convert(plan, sources, dtype)
    return _task(backbone, tokenizer, chat, preprocessor, encoder_tokenizer)


def plan(encoder, decoder=None, **options) -> Plan:
    """What `from_preset` or `adapt` would do, from configs alone; no weight is loaded.

    Args:
        encoder: a recipe of `keras_encdec.presets`; or the name, handle or folder of a
            decoder-only model, as for `adapt`.
        decoder: likewise a decoder-only model, or None.
        **options: as for `adapt`.

    Raises:
        ValueError: as `adapt`.
    """
    if decoder is None and encoder in catalog.presets:
        recipe = catalog.presets[encoder]
        if recipe.encoder is None:
            return random_plan(_random_pair(recipe, options))
        specs = [catalog.known_spec(recipe.encoder_spec)]
        if recipe.decoder != recipe.encoder:
            specs.append(catalog.known_spec(recipe.decoder_spec))
        return make_plan(*specs, **options)
    models = [encoder] if decoder is None else [encoder, decoder]
    return make_plan(*map(_spec_of, models), **options)


def _spec_of(model) -> StackSpec:
    catalog.check_known(str(model))
    return known.spec_of(_config(catalog.on_this_machine(str(model))))


def _from_recipe(recipe: catalog.Recipe, dtype, preprocessor, options) -> EncDecSeq2SeqLM:
    if recipe.encoder is None:
        backbone = EncDecBackbone.of(_random_pair(recipe, options), dtype=dtype)
        tokenizer = None
        if preprocessor == _AUTO:
            tokenizer = keras_hub.models.Tokenizer.from_preset(recipe.tokenizer)
        return _task(backbone, tokenizer, recipe.chat, preprocessor)
    sides = [recipe.encoder] + ([recipe.decoder] if recipe.decoder != recipe.encoder else [])
    options = {"chat": recipe.chat, **options}
    return adapt(*sides, dtype=dtype, preprocessor=preprocessor, **options)


def _random_pair(recipe: catalog.Recipe, options) -> PairSpec:
    return make_plan(recipe.spec.encoder, recipe.spec.decoder, **options).pair


def _source(model, dtype, text: bool) -> Source:
    """What is to be converted, with its tokenizer if it is to work on text."""
    if not isinstance(model, (str, Path)):
        return _in_memory(_backbone_of(model), _tokenizer_of(model))
    catalog.check_known(str(model))
    preset = catalog.on_this_machine(str(model))
    config = _config(preset)
    if "model_type" in config:
        return _in_files(preset, config, text)
    tokenizer = keras_hub.models.Tokenizer.from_preset(preset) if text else None
    with layout.on_host():
        backbone = keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
    return _in_memory(backbone, tokenizer, consume=True)


def _in_memory(backbone, tokenizer, consume=False) -> Source:
    family = known.of_backbone(type(backbone).__name__)
    # Not every backbone of KerasHub tells: Llama's and Mistral's do not.
    config = {"tie_word_embeddings": backbone.token_embedding.tie_weights, **backbone.get_config()}
    spec, weights = family.read_keras_hub(config), ModelSource(backbone, consume)
    return Source(spec, weights, family.keras_hub, family.dropped, tokenizer)


def _in_files(preset, config, text: bool) -> Source:
    family = known.of_model_type(config["model_type"])
    spec = family.read_transformers(config)
    weights = SafetensorsSource(lambda name: get_file(preset, name), preset)
    tokenizer = tokenizer_of_files(preset) if text else None
    return Source(spec, weights, family.transformers, family.dropped, tokenizer)


def _backbone_of(model):
    return model.backbone if isinstance(model, keras_hub.models.Task) else model


def _tokenizer_of(model):
    return getattr(getattr(model, "preprocessor", None), "tokenizer", None)


def _task(backbone, tokenizer, chat, preprocessor, encoder_tokenizer=None) -> EncDecSeq2SeqLM:
    if preprocessor == _AUTO:
        preprocessor = tokenizer and EncDecSeq2SeqLMPreprocessor(
            tokenizer, chat=chat, encoder_tokenizer=encoder_tokenizer
        )
    return EncDecSeq2SeqLM(backbone, preprocessor)


def _tokenizers(sources) -> tuple:
    """The decoder's and, where it is another, the encoder's; None where one is missing.

    Raises:
        ValueError: if a tokenizer has more pieces than its embedding has rows.
    """
    for source in sources:
        rows = source.spec.vocabulary_size
        pieces = source.tokenizer.vocabulary_size() if source.tokenizer else 0
        if pieces > rows:
            raise ValueError(
                f"Expected a tokenizer of at most {rows} pieces, the rows of the embedding. "
                f"Received: one of {pieces}. It belongs to another model."
            )
    encoder, decoder = sources[0].tokenizer, sources[-1].tokenizer
    if encoder is None or decoder is None:
        return None, None
    same = encoder is decoder or encoder.get_vocabulary() == decoder.get_vocabulary()
    return decoder, None if same else encoder


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


def _load_released(preset, config, dtype, preprocessor, options) -> EncDecSeq2SeqLM:
    _check_no_options(options)
    release = _RELEASED[config["model_type"]]
    source = SafetensorsSource(lambda name: get_file(preset, name), preset)
    pair = release.from_transformers(config)
    backbone = load(pair, source, release.TRANSFORMERS, release.TRANSFORMERS_DROPPED, dtype)
    tokenizer = tokenizer_of_files(preset) if preprocessor == _AUTO else None
    return _task(backbone, tokenizer, _chats(preset), preprocessor)


def _chats(preset) -> bool:
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
