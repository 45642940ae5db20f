"""Several fine-tuned models as one: their files go in, tensor by tensor, and a preset comes out.

Knows what is asked before a byte is written, and what the result says of itself. Leaves formulas to
`keras_encdec.sharing.mixing`, and which presets go together to `keras_encdec.sharing.mergeable`.
"""

import contextlib
import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_hub

from keras_encdec import check, formats, integrity, provenance
from keras_encdec.files import atomic_folder, is_own
from keras_encdec.progress import track
from keras_encdec.provenance import Provenance
from keras_encdec.sharing import mergeable
from keras_encdec.sharing.mergeable import Mergeable
from keras_encdec.sharing.mixing import DENSITY, METHODS, OF_BASE, Mixing
from keras_encdec.sharing.tensors import tensors_of
from keras_encdec.sharing.whole import sizes_of

_NEW = integrity.FILE, provenance.FILE  # which the result has of its own


def merge(
    presets: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    method: str = "average",
    *,
    base: str | os.PathLike | None = None,
    weights: Sequence[float] | None = None,
    strength: float | None = None,
    density: float | None = None,
) -> None:
    """Makes one preset of several that were trained from the same weights.

    Tensors are combined in float64, a stretch at a time, and rounded once: of whole models only
    the result is in memory, to be checked. Dtype and preprocessor are the first preset's.

    Args:
        presets: two or more folders of `save_to_preset`, or handles of them: pairs, encoders or
            tasks with heads, all of one spec, task and tokenizer.
        out: the folder to write, whole or not at all; new, empty, or a preset to replace.
        method: how they are combined. `"average"` takes the mean (model soups, arXiv 2203.05482).
            `"slerp"` goes along the arc between two; with `base`, of what each has learned since
            (WARP, arXiv 2406.16768). `"ties"` keeps the largest changes since `base`, lets them
            vote on a sign, and averages those that have it (arXiv 2306.01708); shares are taken
            of each tensor. `"sum"` adds to `base` what each has learned (arXiv 2212.04089), such as
            an adapted pair, and its source's instruction-tuned model converted like `base`.
        base: the preset that training began from.
        weights: of each preset, such as `[3, 1]`; they are divided by their sum, and equal if None.
            For `"slerp"` the second's share is the place on the arc. For `"sum"` they are factors,
            1 if None, which may be negative.
        strength: from 0, `base` itself, to 1, what the method makes; between them the result lies
            on the line (WARP's eta). 1 if None.
        density: for `"ties"`, the share of changes in a tensor that stays; 0.2 if None.

    Raises:
        ValueError: if an argument cannot be, or is not for this method; if presets differ in what
            gives their numbers a meaning, are quantised, damaged, or say that they do not come from
            `base`. Nothing is written then, nor if the result is not finite.
        OSError: if there is no room or no right to write.

    Example:
        >>> keras_encdec.merge(["./run_1", "./run_2"], "./merged", "slerp", base="./start")
    """
    mixing = _mixing(presets, method, base is not None, weights, strength, density)
    models = [mergeable.found(preset) for preset in presets]
    start = None if base is None else mergeable.found(base)
    every = [*models, *([start] if start else [])]
    mergeable.check_alike(every)
    if start:
        mergeable.check_ancestor(start, models, of_others=method == "sum")
    _check_out(Path(out), every)
    first, record = models[0].folder, _record(models, start, mixing)
    sizes = {n: s for n, s in sizes_of(first).items() if is_own(n) and n not in _NEW}
    with atomic_folder(out, sum(sizes.values()), largest=max(sizes.values())) as folder:
        for name in sizes:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first / name, folder / name)
        _mix(mixing, models, start, folder)
        record.write(folder)
        policy = keras.dtype_policies.get(models[0].config["config"].get("dtype_policy"))
        merged = keras_hub.models.Backbone.from_preset(str(folder), dtype=policy)
        merged.describe(folder, out)


def _mixing(
    presets: Any, method: Any, has_base: bool, weights: Any, strength: Any, density: Any
) -> Mixing:
    """Checks what is asked for, apart from the presets themselves."""
    check.one_of("method", method, METHODS)
    count = 0 if isinstance(presets, (str, os.PathLike)) else len(presets)
    if count < 2 or (method == "slerp" and count > 2):
        raise ValueError(
            f"Expected {'two' if method == 'slerp' else 'two or more'} presets for {method!r}. "
            f"Received: {presets!r}. One model is brought nearer to another by "
            'merge([one, other], out, "average", weights=[1 - s, s]).'
        )
    if method in OF_BASE and not has_base:
        raise ValueError(
            f"Expected base, the preset that training began from, for {method!r}. Received: None."
        )
    if strength is not None and not has_base:
        raise ValueError(f"Expected base beside strength. Received: strength={strength!r} alone.")
    if density is not None and method != "ties":
        raise ValueError(f"Expected density for 'ties' alone. Received: {density!r}, {method!r}.")
    return Mixing(
        method,
        _given(weights, count) if method == "sum" else _shares(weights, count),
        1.0 if strength is None else check.real("strength", strength, least=0, most=1),
        DENSITY if density is None else check.real("density", density, above=0, most=1),
    )


def _shares(weights: Any, count: int) -> tuple[float, ...]:
    """Weights that sum to 1."""
    real = _given(weights, count, least=0)
    if not sum(real):
        raise ValueError(f"Expected weights, one of them above 0. Received: {list(real)}.")
    return tuple(weight / sum(real) for weight in real)


def _given(weights: Any, count: int, **limits: float) -> tuple[float, ...]:
    """Weights as they are."""
    given = [1.0] * count if weights is None else list(weights)
    real = tuple(check.real("weights", weight, **limits) for weight in given)
    if len(real) != count:
        raise ValueError(f"Expected weights of {count} presets. Received: {given}.")
    return real


def _check_out(out: Path, every: Sequence[Mergeable]) -> None:
    if out.resolve() in [one.folder.resolve() for one in every]:
        raise ValueError(
            f"Expected another folder than those that are merged. Received: {out}. Choose a new "
            "name."
        )


def _record(models: Sequence[Mergeable], base: Mergeable | None, mixing: Mixing) -> Provenance:
    """What all models share of their past, then the merge, with what each has of its own."""
    records, record = [model.record for model in models], Provenance()
    shared = mergeable.shared_past(records)
    record.history = copy.deepcopy(records[0].history[:shared])
    for number, theirs in enumerate(records):
        for side, source in theirs.sources.items():
            if source not in record.sources.values():
                record.sources[side if side not in record.sources else f"{side} {number}"] = source
    pairs = zip(models, mixing.weights, records, strict=True)
    of = [{"name": m.name, "weight": w, "history": r.history[shared:]} for m, w, r in pairs]
    facts: dict[str, Any] = {"method": mixing.method, "models": of}
    if base is not None:
        facts |= {"base": base.name, "strength": mixing.strength}
    if mixing.method == "ties":
        facts["density"] = mixing.density
    record.add("merged", **facts, versions=formats.versions(keras.backend.backend()))
    return record


def _mix(mixing: Mixing, models: Sequence[Mergeable], base: Mergeable | None, folder: Path) -> None:
    """Writes the result over the tensors of a copy of the first model."""
    with contextlib.ExitStack() as files:
        theirs = [tensors_of(model.folder, files) for model in models]
        initial = None if base is None else tensors_of(base.folder, files)
        for name, tensor in track(tensors_of(folder, files, "r+").items(), "Merging"):
            if tensor.is_real:
                start = None if initial is None else initial[name]
                for rows, numbers in mixing.mix([tensors[name] for tensors in theirs], start):
                    tensor.write(rows, numbers)
