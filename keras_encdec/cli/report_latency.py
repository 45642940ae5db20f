"""`keras-encdec report latency`: seconds per query of a pair beside its decoder-only source."""

import argparse
import platform
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
from rich.table import Table

import keras_encdec
from keras_encdec import check
from keras_encdec.data import docstrings
from keras_encdec.evaluation.latency import (
    Times,
    Writer,
    in_keras_hub,
    pair_writer,
    prompts_of,
    source_writer,
    time_queries,
)
from keras_encdec.evaluation.picture import COLOURS
from keras_encdec.evaluation.reports import Report
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.sharing import catalog

_PACKAGES = "numpy", "keras", "stdlib"  # whose docstrings are prompts where no texts are given


def make(args: argparse.Namespace) -> Report:
    """The report of `keras-encdec report latency`.

    Args:
        args: `pairs`, names of recipes whose encoders have one source; `source_length`, `new`
            and `queries`; `texts`, files or None for docstrings; `dtype` or None; `drafts`,
            whether ours copies from the input; `keras_hub`, whether that times pairs too.

    Raises:
        ValueError: if the pairs have no common source, or texts are too short.
        FileNotFoundError: if there is no such file.
    """
    for name in ("source_length", "new", "queries"):
        check.whole(name, getattr(args, name))
    source = _common_source(args.pairs)
    texts = _texts(args.texts)
    lms = {name: keras_encdec.from_preset(name, dtype=args.dtype) for name in args.pairs}
    prompts = prompts_of(lms[args.pairs[0]], texts, args.source_length, args.queries)
    writers = _writers(args, source, lms)
    times = time_queries(writers, prompts, args.new)
    facts = {"source": source, "source_length": args.source_length, "new": args.new}
    facts |= {"queries": len(prompts), "drafts": args.drafts, **_machine(lms[args.pairs[0]])}
    seconds = {name: found.tolist() for name, found in times.seconds.items()}
    title = f"{len(prompts)} queries, {args.source_length} tokens in, {args.new} out, one at a time"
    return Report(
        data={**facts, "summary": times.summary(), "seconds": seconds},
        tables=(_table(times, title),),
        draw=lambda figure: _draw(figure, times, title),
        size=(9, 1.5 + 0.6 * len(seconds)),
        notes=_notes(len(prompts), args),
    )


def _notes(found: int, args: argparse.Namespace) -> tuple[str, ...]:
    fewer = f"Only {found} texts have {args.source_length} tokens. " if found < args.queries else ""
    return (
        f"{fewer}Tokens in, tokens out, greedy, compiled before. Ratios to the source are medians",
        "over prompts. Ours and KerasHub are two engines: --keras-hub times pairs in the source's.",
    )


def _common_source(pairs: Sequence[str]) -> str:
    """The decoder-only preset that the encoder of each pair is made of."""
    unknown = [name for name in pairs if name not in catalog.presets]
    if unknown:
        hint = check.nearest(unknown[0], catalog.presets)
        raise ValueError(f"Expected pairs of keras_encdec.presets. Received: {unknown[0]!r}.{hint}")
    sources = {catalog.presets[name].encoder for name in pairs}
    source = sources.pop()
    if sources or source is None:
        raise ValueError(
            "Expected pairs whose encoder is made of one decoder-only model. Received: "
            f"{', '.join(pairs)}."
        )
    return source


def _texts(files: Sequence[str] | None) -> list[str]:
    if files:
        documents: Any = keras_encdec.data.read(files)
        return [document.text for document in documents]
    _, held_out = docstrings.load(_PACKAGES)
    return [docstring.text for docstring in held_out]


def _writers(
    args: argparse.Namespace, source: str, lms: dict[str, EncDecSeq2SeqLM]
) -> dict[str, Writer]:
    place = catalog.on_this_machine(source)
    dtype = args.dtype or keras.config.dtype_policy()
    decoder_only = keras_hub.models.CausalLM.from_preset(place, preprocessor=None, dtype=dtype)
    writers = {f"{source}, KerasHub": source_writer(decoder_only, args.new)}
    options = {} if args.drafts else {"draft": None}
    for name, lm in lms.items():
        start = lm.preprocessor.converter.start_token_id
        writers[f"{name}, ours"] = pair_writer(lm, args.new, start, **options)
        if args.keras_hub:
            writers[f"{name}, KerasHub"] = pair_writer(in_keras_hub(lm), args.new, start)
    return writers


def _machine(lm: Any) -> dict[str, Any]:
    devices = [str(device) for device in keras.distribution.list_devices()]
    return {
        "backend": keras.backend.backend(),
        "devices": devices,
        "machine": platform.processor() or platform.machine(),
        "dtype": lm.backbone.dtype_policy.name,
    }


def _table(times: Times, title: str) -> Table:
    table = Table("ms per query", box=None, title=title, title_justify="left")
    for column in ("median", "10% to 90%", "to the source", "quartiles"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in times.summary().items():
        low, median, high = (1e3 * found[key] for key in ("low", "median", "high"))
        quartiles = f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}"
        table.add_row(
            name, f"{median:,.1f}", f"{low:,.1f} to {high:,.1f}", f"{found['ratio']:.2f}", quartiles
        )
    return table


def _draw(figure: Any, times: Times, title: str) -> None:
    axes = figure.subplots()
    names = list(times.seconds)[::-1]
    rows = [1e3 * times.seconds[name] for name in names]
    boxes = axes.boxplot(
        rows,
        orientation="horizontal",
        tick_labels=names,
        widths=0.6,
        patch_artist=True,
        whis=(10, 90),
        showfliers=False,
        medianprops={"color": "black"},
    )
    for box, colour in zip(boxes["boxes"], COLOURS, strict=False):
        box.set_facecolor(colour)
        box.set_alpha(0.6)
    axes.set_xlim(left=0)
    axes.set(xlabel="ms per query: median, quartiles, 10% to 90%", title=title)
