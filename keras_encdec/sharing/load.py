"""From a name to a model: `from_preset` and `adapt`.

Finds out what a name, handle, folder or object is, and hands it to the room that
can read it: KerasHub, the T5Gemma layout, or conversion.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_hub

from keras_encdec import check, formats, integrity, provenance
from keras_encdec.accelerators import check_seen
from keras_encdec.conversion.execute import convert, load
from keras_encdec.conversion.options import ConversionOptions, takes_conversion_options
from keras_encdec.conversion.plan import Plan, make_plan, random_plan
from keras_encdec.conversion.sources import ModelSource, SafetensorsSource
from keras_encdec.families import t5gemma
from keras_encdec.files import read_json, readable, shard_names
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.models.base import StacksBackbone
from keras_encdec.models.preprocessor import check_preprocessor, check_rows
from keras_encdec.sharing import catalog
from keras_encdec.sharing.agreement import check_agreement
from keras_encdec.sharing.configs import PAIR, RELEASED, spec_of_config
from keras_encdec.sharing.decoder_only import (
    DecoderOnly,
    backbone_of,
    config_of,
    described,
    find,
)
from keras_encdec.sharing.fetch import file_of, folder_of
from keras_encdec.sharing.hub_errors import explained
from keras_encdec.sharing.hubs import hub_of
from keras_encdec.sharing.pixels import check_pixels
from keras_encdec.sharing.tokenizers import chat_template_of_files, tokenizer_of_files
from keras_encdec.spec import EncoderSpec, PairSpec, StackSpec

_AUTO = "auto"


@takes_conversion_options
def from_preset(
    preset: Any,
    *,
    dtype: Any = None,
    chat: bool | None = None,
    preprocessor: Any = _AUTO,
    options: ConversionOptions,
) -> EncDecSeq2SeqLM:
    """Loads an encoder-decoder by name.

    What is converted takes the options of `adapt`; a finished pair refuses them.

    Args:
        preset: one of
            - a recipe of `keras_encdec.presets`, such as `"gemma2_9b_2b"`: loads both
              sources through KerasHub and converts them, or makes random weights for
              an architecture such as `"t5gemma_s_s"`;
            - a folder or `kaggle://`, `hf://` handle of a saved pair of ours;
            - a folder or handle in the released T5Gemma layout, or T5Gemma 2's, which may
              read images too;
            - anything else that `adapt` takes: adapted, balanced.
        dtype: dtype or policy of the pair. If None, a pair that was saved in another policy
            than float32 comes back in its own; everything else is in Keras' default policy.
        chat: whether the sources are instruction-tuned; None for what the recipe says.
        preprocessor: `"auto"` for the one that belongs to the preset, None for none.
        {options}

    Returns:
        `EncDecSeq2SeqLM`.

    Raises:
        TypeError: if there is no such option, with the nearest one.
        ValueError: if the name is unknown, the files are damaged, or an option has no such
            value or is not for what the name stands for.

    Example:
        >>> lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    """
    _check_arguments(dtype, chat is not None and chat, preprocessor)
    check_seen()
    preset = str(preset)
    catalog.check_known(preset)
    if preset in catalog.presets:
        return _from_recipe(catalog.presets[preset], dtype, chat, preprocessor, options)
    name, preset = preset, catalog.on_this_machine(preset)
    config = config_of(preset)
    if config.get("registered_name") == PAIR:
        _check_no_options(options, chat)
        return _load_ours(folder_of(preset), dtype, preprocessor)
    if config.get("model_type") in tuple(RELEASED):  # whatever type it has
        _check_no_options(options, chat)
        return _load_released(folder_of(preset), config, dtype, preprocessor, name)
    if not {"registered_name", "model_type"} & set(config):
        raise ValueError(
            "Expected a config.json of KerasHub (registered_name) or of transformers "
            f"(model_type). Received: {preset!r}, whose config has neither."
        )
    return _convert([find(name)], dtype, bool(chat), preprocessor, options)


@takes_conversion_options
def adapt(
    encoder: Any,
    decoder: Any = None,
    *,
    dtype: Any = None,
    chat: bool = False,
    preprocessor: Any = _AUTO,
    options: ConversionOptions,
) -> EncDecSeq2SeqLM:
    """Turns one or two decoder-only models, of any known family, into an encoder-decoder.

    A source in memory is read as it computes: with its LoRA merged, and its quantised weights
    as floats.

    Args:
        encoder: becomes the encoder: a preset name, handle or folder of KerasHub or of
            transformers (config.json with safetensors), a KerasHub backbone or task.
            A `T5GemmaBackbone` is taken over whole.
        decoder: becomes the decoder; by default the same as the encoder. With another
            vocabulary each side keeps its own tokenizer.
        dtype: dtype or policy of the pair; Keras' default policy if None.
        chat: whether the sources are instruction-tuned, for the preprocessor.
        preprocessor: `"auto"` to build one from the sources' tokenizers, None for none.
        {options}

    Returns:
        `EncDecSeq2SeqLM`.

    Raises:
        TypeError: if there is no such option, with the nearest one.
        ValueError: if an option has no such value, a source is of no known family or has a
            field that no spec can express, or the two cannot be paired; no weight is read
            then.

    Example:
        >>> lm = keras_encdec.adapt("gemma2_tiny_docs", "gemma2_mini_docs")
    """
    _check_arguments(dtype, chat, preprocessor)
    check_seen()
    backbone = backbone_of(encoder)
    if type(backbone).__name__ == t5gemma.KERAS_HUB_CLASS:
        _check_no_options(options)
        if decoder is not None:
            raise ValueError(
                f"Expected no decoder beside a whole pair. Received: {type(backbone).__name__} "
                f"and {decoder!r}."
            )
        pair, model = _take_over(backbone, dtype), find(encoder)
        pair.record.sources = {"pair": {"name": f"a {type(encoder).__name__} in memory"}}
        return _task(pair, model.tokenizer(), chat, preprocessor)
    sources = [find(encoder)] if decoder is None else [find(encoder), find(decoder)]
    return _convert(sources, dtype, chat, preprocessor, options)


@takes_conversion_options
def plan(encoder: Any, decoder: Any = None, *, options: ConversionOptions) -> Plan:
    """What `from_preset` or `adapt` would do, from configs alone; no weight is loaded.

    Args:
        encoder: a recipe of `keras_encdec.presets`; or a decoder-only model, as for `adapt`.
        decoder: likewise a decoder-only model, or None.
        {options}

    Raises:
        TypeError: as `adapt`.
        ValueError: as `adapt`.
    """
    if decoder is None and isinstance(encoder, str) and encoder in catalog.presets:
        recipe = catalog.presets[encoder]
        if recipe.encoder is None:
            return random_plan(_random_pair(recipe, options))
        specs = [catalog.known_spec(recipe.encoder_spec)]
        if recipe.decoder != recipe.encoder:
            specs.append(catalog.known_spec(recipe.decoder_spec))
        return make_plan(*specs, options=options)
    models = [encoder] if decoder is None else [encoder, decoder]
    return make_plan(*[find(model).spec for model in models], options=options)


def spec_of(preset: str) -> PairSpec | EncoderSpec | StackSpec:
    """What a name stands for, from its config alone; no weight is loaded.

    Args:
        preset: as of `from_preset`.

    Returns:
        `PairSpec` of a recipe or a finished pair, `EncoderSpec` of an encoder, `StackSpec` of a
        decoder-only model.

    Raises:
        ValueError: as `from_preset`.
    """
    catalog.check_known(preset)
    if preset in catalog.presets:
        return catalog.presets[preset].spec
    config = config_of(catalog.on_this_machine(preset))
    return spec_of_config(config) or find(preset).spec


def makes_pair(preset: str) -> bool:
    """Whether `from_preset` finds a pair by this name, rather than a model to convert.

    Raises:
        ValueError: if it is unknown.
    """
    catalog.check_known(preset)
    if preset in catalog.presets:
        return True
    return isinstance(spec_of_config(config_of(catalog.on_this_machine(preset))), PairSpec)


def load_decoder_only(preset: str, dtype: Any = None) -> tuple[Any, Any]:
    """A decoder-only model as it is, and its tokenizer.

    Args:
        preset: name, handle or folder of KerasHub or of transformers.
        dtype: dtype or policy; of its config if None.

    Returns:
        `keras_hub.models.CausalLM` on tokens, and its tokenizer or None.

    Raises:
        ValueError: if it is unknown, or KerasHub cannot read it.
    """
    _check_arguments(dtype, False, _AUTO)
    check_seen()
    model: Any = find(preset)
    return model.task(dtype), model.tokenizer()


def _from_recipe(
    recipe: catalog.Recipe,
    dtype: Any,
    chat: bool | None,
    preprocessor: Any,
    options: ConversionOptions,
) -> EncDecSeq2SeqLM:
    chat = recipe.chat if chat is None else chat
    if recipe.encoder is None:
        backbone = EncDecBackbone.of(_random_pair(recipe, options), dtype=dtype)
        tokenizer = None
        if preprocessor == _AUTO:
            tokenizer = tokenizer_alone(recipe.tokenizer)
        return _task(backbone, tokenizer, chat, preprocessor)
    names = [recipe.encoder] + ([recipe.decoder] if recipe.decoder != recipe.encoder else [])
    return _convert([find(name) for name in names], dtype, chat, preprocessor, options)


def tokenizer_alone(preset: str | None) -> Any:
    """That of a preset whose weights are not wanted."""
    preset = catalog.on_this_machine(str(preset))
    with explained(hub_of(preset)):
        return keras_hub.models.Tokenizer.from_preset(preset)


def _random_pair(recipe: catalog.Recipe, options: ConversionOptions) -> PairSpec:
    return make_plan(recipe.spec.encoder, recipe.spec.decoder, options=options).pair


def _convert(
    models: Sequence[DecoderOnly],
    dtype: Any,
    chat: bool,
    preprocessor: Any,
    options: ConversionOptions,
) -> EncDecSeq2SeqLM:
    """Plans from the configs, then reads tokenizers, then weights."""
    plan = make_plan(*[model.spec for model in models], options=options)
    tokenizer, encoder_tokenizer = _tokenizers(models) if preprocessor == _AUTO else (None, None)
    sources = {side: model.source(dtype) for side, model in zip(plan.sources, models, strict=True)}
    backbone = convert(plan, sources, dtype)
    _record(backbone, models, plan, options)
    own = encoder_tokenizer is not None
    template = _chat_template(models[:1] if own else models) if preprocessor == _AUTO else None
    return _task(backbone, tokenizer, chat, preprocessor, encoder_tokenizer, template)


def _record(
    backbone: EncDecBackbone,
    models: Sequence[DecoderOnly],
    plan: Plan,
    options: ConversionOptions,
) -> None:
    about = [model.about() for model in models]
    backbone.record.sources = {"encoder": about[0], "decoder": about[-1]}
    asked = {name: getattr(options, name) for name in options.asked}
    made_by = formats.versions(keras.backend.backend())
    facts = {"plan": plan.summary(), "fresh": len(plan.fresh), "options": asked}
    backbone.record.add("converted", **facts, versions=made_by)


def _task(
    backbone: EncDecBackbone,
    tokenizer: Any,
    chat: bool,
    preprocessor: Any,
    encoder_tokenizer: Any = None,
    chat_template: str | None = None,
) -> EncDecSeq2SeqLM:
    if preprocessor == _AUTO:
        preprocessor = tokenizer and EncDecSeq2SeqLMPreprocessor(
            tokenizer,
            chat=chat,
            encoder_tokenizer=encoder_tokenizer,
            chat_template=chat_template,
            vision=backbone.spec.vision,
        )
    return EncDecSeq2SeqLM(backbone, preprocessor)


def _tokenizers(models: Sequence[DecoderOnly]) -> tuple[Any, Any]:
    """The decoder's and, where it is another, the encoder's; None where one is missing.

    Raises:
        ValueError: if a tokenizer has more tokens than its embedding has rows.
    """
    every = [model.tokenizer() for model in models]
    for model, tokenizer in zip(models, every, strict=True):
        if tokenizer is not None:
            check_rows(tokenizer, model.spec.vocabulary_size)
    encoder, decoder = every[0], every[-1]
    if encoder is None or decoder is None:
        return None, None
    same = encoder is decoder or encoder.get_vocabulary() == decoder.get_vocabulary()
    return decoder, None if same else encoder


def _chat_template(models: Sequence[DecoderOnly]) -> str | None:
    """That of the first which has one, of models of one vocabulary."""
    return next(filter(None, (model.chat_template() for model in models)), None)


def _take_over(backbone: Any, dtype: Any) -> EncDecBackbone:
    """A KerasHub `T5GemmaBackbone` as one of ours."""
    last_norms = {
        id(backbone.encoder_norm.scale): "encoder_norm/scale",
        id(backbone.decoder_norm.scale): "decoder_norm/scale",
    }
    source = ModelSource(backbone, rename=lambda v: last_norms.get(id(v), v.path))
    pair = t5gemma.from_keras_hub(backbone.get_config())
    return load(pair, source, t5gemma.KERAS_HUB, dtype=dtype)


def _load_ours(preset: str, dtype: Any, preprocessor: Any) -> EncDecSeq2SeqLM:
    kwargs = {} if preprocessor == _AUTO else {"preprocessor": preprocessor}
    check_files(preset)
    with readable("preset", preset):
        lm = EncDecSeq2SeqLM.from_preset(preset, dtype=dtype, **kwargs)
    check_preprocessor(lm.preprocessor, lm.backbone.spec)
    return lm


def check_files(preset: str) -> None:
    """Refuses a preset of ours that is not whole, before a weight is read.

    Args:
        preset: its folder.

    Raises:
        ValueError: naming the file.
    """
    with contextlib.suppress(FileNotFoundError):  # not sharded
        shard_names(file_of(preset, "model.weights.json"))
    check_agreement(preset)
    integrity.check_assets(Path(preset))


def _load_released(
    preset: str, config: dict[str, Any], dtype: Any, preprocessor: Any, name: str
) -> EncDecSeq2SeqLM:
    release = RELEASED[config["model_type"]]
    source = SafetensorsSource(lambda name: file_of(preset, name), preset)
    pair = release.from_transformers(config)
    if pair.vision is not None and preprocessor == _AUTO:
        check_pixels(preset, pair.vision.image_size)
    rules, dropped = release.dialect_of(pair, source.tensors())
    backbone = load(pair, source, rules, dropped, dtype)
    read_record(backbone, preset, name, "pair")
    tokenizer, template = None, None
    if preprocessor == _AUTO:
        tokenizer, template = tokenizer_of_files(preset), chat_template_of_files(preset)
    return _task(backbone, tokenizer, _chats(preset), preprocessor, chat_template=template)


def read_record(backbone: StacksBackbone, preset: str, name: str, source: str) -> None:
    """That of an export of ours; other releases are sources themselves.

    Args:
        backbone: whose record it becomes.
        preset: the folder.
        name: as the user gave it.
        source: what it is the source of: `"pair"` or `"encoder"`.
    """
    if (Path(preset) / provenance.FILE).exists():
        backbone.record.read(Path(preset))
    else:
        backbone.record.sources = {source: described(name, preset)}


def _chats(preset: str) -> bool:
    """Whether a release is instruction-tuned: it then stops at a list of ids."""
    try:
        config = read_json(file_of(preset, "generation_config.json"))
    except FileNotFoundError:
        return False
    return isinstance(config.get("eos_token_id"), list)


def _check_no_options(options: ConversionOptions, chat: bool | None = None) -> None:
    asked = [*options.asked, *([] if chat is None else ["chat"])]
    if asked:
        raise ValueError(
            f"Expected no conversion options for a finished pair. Received: {sorted(asked)}."
        )


def _check_arguments(dtype: Any, chat: Any, preprocessor: Any) -> None:
    """What would else be refused after the weights are read, or not at all."""
    check.flag("chat", chat)
    if preprocessor != _AUTO:
        check_preprocessor(preprocessor)
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected a dtype or policy such as 'bfloat16' or 'mixed_bfloat16'. "
            f"Received: {dtype!r}."
        ) from error
