"""Merged tensors are those of the formulas, ends are ends, and what is not alike is refused."""

import errno
import json
import math
import shutil
import subprocess
import sys
import tracemalloc

import h5py
import ml_dtypes
import numpy as np
import pytest

import keras_encdec
import keras_encdec_cli
from keras_encdec.models import EncDecTextClassifier, EncoderBackbone
from keras_encdec.sharing import mixing
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder

EPSILON = 1e-6
NORM = "layers/encoder/final_norm/vars/0"  # which `moved` leaves alone


def start(**kwargs):
    """A layer a side: building is the cost."""
    one = {"windows": (8,)}
    return tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)), **kwargs)


def moved(seed, lm=None):
    """A model whose weights, but one, are some way from those of `start`."""
    lm, rng = lm or start(), np.random.default_rng(seed)
    for weight in lm.weights:
        if weight.path != "encoder/final_norm/scale":
            weight.assign(to_numpy(weight) + 0.1 * rng.normal(size=weight.shape))
    return lm


def of_minus_zero(lm):
    kernel = lm.backbone.weights[0]
    kernel.assign(np.full(kernel.shape, -0.0, "float32"))
    return lm


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    of_minus_zero(start()).save_to_preset(folder / "base")
    moved(1).save_to_preset(folder / "one")
    moved(2).save_to_preset(folder / "two", max_shard_size=1e-4)
    moved(3).save_to_preset(folder / "three")
    return folder


@pytest.fixture
def merge(presets, tmp_path):
    """Merges presets by name, and returns the tensors of the result."""

    def call(names, method="average", base=None, **options):
        base = None if base is None else presets / base
        keras_encdec.merge(
            [presets / n for n in names], tmp_path / "out", method, base=base, **options
        )
        return tensors(tmp_path / "out")

    return call


def tensors(folder):
    """What Keras stores, by name."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            is_bfloat16 = item.attrs.get("dtype") == "bfloat16"
            found[name] = item[()].view(ml_dtypes.bfloat16) if is_bfloat16 else item[()]

    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(keep)
    return found


def exact(folder):
    return {name: array.astype("float64") for name, array in tensors(folder).items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.maximum(1, np.abs(array))
        assert (np.abs(found[name] - array) <= EPSILON * scale).all(), name


def assert_same(found, expected):
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


# The formulas, in float64 on whole tensors.


def average(models, weights):
    return sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights)


def slerp(base, one, other, t):
    """arXiv 2406.16768, equation 3."""
    u, v = one - base, other - base
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    if not lengths or np.array_equal(one, other):
        return (1 - t) * one + t * other
    angle = math.acos(np.sum(u * v) / lengths)
    return base + (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)


def ties(base, models, weights, density):
    """arXiv 2306.01708, algorithm 1, on a list of numbers at a time."""
    changes = []
    for model in models:
        change = (model - base).ravel()
        kept = np.argsort(-np.abs(change.astype("float32")))[: max(1, round(density * change.size))]
        changes.append(np.where(np.isin(np.arange(change.size), kept), change, 0))
    merged = np.zeros(base.size)
    for place in range(base.size):
        column = [(w, c[place]) for w, c in zip(weights, changes, strict=True)]
        sign = np.sign(sum(w * c for w, c in column))
        agree = [(w, c) for w, c in column if c * sign > 0]
        if agree:
            merged[place] = sum(w * c for w, c in agree) / sum(w for w, _ in agree)
    return base + merged.reshape(base.shape)


def by_name(function, *several):
    return {name: function(*(tensors[name] for tensors in several)) for name in several[0]}


@pytest.mark.parametrize("weights", [None, [3, 1, 4]])
def test_average(presets, merge, weights):
    names = "one", "two", "three"
    expected = by_name(
        lambda *models: average(models, weights or [1, 1, 1]), *(exact(presets / n) for n in names)
    )
    assert_close(merge(names, weights=weights), expected)


@pytest.mark.parametrize("base", [None, "base"])
@pytest.mark.parametrize(("weights", "t"), [(None, 0.5), ([3, 1], 0.25)])
def test_slerp(presets, merge, base, weights, t):
    origin = exact(presets / "base")
    if base is None:
        origin = {name: np.zeros(()) for name in origin}
    expected = by_name(
        lambda b, one, two: slerp(b, one, two, t),
        *(origin, exact(presets / "one"), exact(presets / "two")),
    )
    assert_close(merge(["one", "two"], "slerp", base, weights=weights), expected)


@pytest.mark.parametrize(
    ("options", "density"), [({}, 0.2), ({"density": 0.5, "weights": [1, 5, 2]}, 0.5)]
)
def test_ties(presets, merge, options, density):
    names, weights = ("one", "two", "three"), options.get("weights", [1, 1, 1])
    expected = by_name(
        lambda base, *models: ties(base, models, weights, density),
        *(exact(presets / name) for name in ("base", *names)),
    )
    assert_close(merge(names, "ties", "base", **options), expected)


@pytest.mark.parametrize("weights", [None, [1, -0.5]])
def test_sum(presets, merge, weights):
    """A pair that was adapted, and what tuning on instructions added to its source."""
    one, two = weights or (1, 1)
    expected = by_name(
        lambda base, adapted, instructed: base + one * (adapted - base) + two * (instructed - base),
        *(exact(presets / name) for name in ("base", "one", "two")),
    )
    assert_close(merge(["one", "two"], "sum", "base", weights=weights), expected)
    assert_same(merge(["one", "base"], "sum", "base"), tensors(presets / "one"))


@pytest.mark.parametrize("method", mixing.METHODS)
def test_strength_is_a_line_between_its_ends(presets, merge, method):
    base = tensors(presets / "base")
    assert_same(merge(["one", "two"], method, "base", strength=0), base)
    whole = merge(["one", "two"], method, "base", strength=1)
    assert_same(merge(["one", "two"], method, "base"), whole)
    expected = by_name(lambda b, m: 0.7 * b.astype("float64") + 0.3 * m, base, whole)
    assert_close(merge(["one", "two"], method, "base", strength=0.3), expected)
    if method == "average":
        assert_same(merge(["one", "two"]), whole)


@pytest.mark.parametrize(
    ("method", "base"), [("average", None), ("slerp", None), ("slerp", "base")]
)
def test_a_model_that_alone_has_a_weight(presets, merge, method, base):
    options = {"method": method, "base": base}
    assert_same(merge(["base", "one"], **options, weights=[1, 0]), tensors(presets / "base"))
    assert_same(merge(["base", "one"], **options, weights=[0, 2]), tensors(presets / "one"))


@pytest.mark.parametrize(
    ("method", "base"),
    [("average", None), ("average", "one"), ("slerp", None), ("slerp", "base"), ("ties", "one")],
)
def test_twice_the_same_is_itself(presets, merge, method, base):
    found = merge(["one", "one"], method, base, weights=[0.3, 0.7])
    assert_same(found, tensors(presets / "one"))


def test_votes_that_agree_are_what_they_are(presets, merge):
    """But for rounding, the way there and back."""
    found = merge(["one", "one"], "ties", "base", density=1.0)
    assert_close(found, exact(presets / "one"))


class Array:
    """What `mixing.Stored` is, of an array in memory."""

    def __init__(self, array):
        self._array = np.asarray(array)
        self.shape = self._array.shape

    def read(self, rows):
        return self._array[rows].astype("float64")


def test_an_arc_that_is_nearly_a_line():
    """Half way between v and (1 + e) v, where sines of the angle would be 0 / 0."""
    for other in [(2, 4, 6), (1, 2, 3 + 1e-9), (-1, -2, -3), (0, 0, 0)]:
        how = mixing.Mixing("slerp", (0.5, 0.5))
        ((_, found),) = how.mix([Array([1, 2, 3]), Array(other)], None)
        np.testing.assert_allclose(found, (np.array([1, 2, 3]) + other) / 2, rtol=1e-12)


def test_opposite_votes_cancel():
    base, one = Array([[1, 1], [1, 1]]), Array([[3, 1], [0.5, 2]])
    other = Array([[-1, 1], [4, 1.5]])
    ((_, found),) = mixing.Mixing("ties", (0.5, 0.5), density=0.5).mix([one, other], base)
    # +2 against -2 cancels; of -0.5 (cut off) and +3, +3; of +1 and +0.5 (cut off), +1.
    np.testing.assert_array_equal(found, [[1, 1], [4, 2]])


@pytest.mark.parametrize("method", mixing.METHODS)
def test_stretches_change_no_number_and_little_is_held(monkeypatch, method):
    rng = np.random.default_rng(0)
    base, *models = (Array(rng.normal(size=(512, 1024)).astype("float32")) for _ in range(3))
    how = mixing.Mixing(method, (0.5, 0.5), strength=0.3)
    ((_, whole),) = how.mix(models, base)
    monkeypatch.setattr(mixing, "_STRETCH", 2**14)
    tracemalloc.start()
    try:
        for rows, numbers in how.mix(models, base):
            tolerance = 1e-12 if method == "slerp" else 0  # whose angle is a sum
            np.testing.assert_allclose(numbers, whole[rows], rtol=0, atol=tolerance)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 8 * 2**14 + (method == "ties") * 4 * 2**19  # bytes


def test_bfloat16_stays_and_is_rounded_once(tmp_path):
    for seed in (1, 2):
        moved(seed, start(dtype="bfloat16")).save_to_preset(tmp_path / str(seed))
    keras_encdec.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    found, pairs = tensors(tmp_path / "out"), [tensors(tmp_path / str(seed)) for seed in (1, 2)]
    for name, array in found.items():
        assert array.dtype == ml_dtypes.bfloat16
        one, two = (pair[name].astype("float32") for pair in pairs)
        assert array.tobytes() == ((one + two) / 2).astype(ml_dtypes.bfloat16).tobytes(), name
    assert keras_encdec.from_preset(tmp_path / "out").backbone.dtype_policy.name == "bfloat16"


def test_files_are_cut_as_those_of_the_first(presets, tmp_path):
    keras_encdec.merge([presets / "two", presets / "one"], tmp_path / "cut")
    keras_encdec.merge([presets / "one", presets / "two"], tmp_path / "whole")
    assert_same(tensors(tmp_path / "cut"), tensors(tmp_path / "whole"))
    for first, out in (("two", "cut"), ("one", "whole")):
        names = [sorted(p.name for p in f.iterdir()) for f in (presets / first, tmp_path / out)]
        assert names[0] == names[1]


@pytest.mark.slow
def test_it_loads_and_writes(presets, merge, tmp_path):
    found = merge(["one", "two"], "slerp", "base", strength=0.3)
    lm = keras_encdec.from_preset(tmp_path / "out")  # compares checksums
    kernel = next(w for w in lm.weights if w.path == "encoder/embedding/embeddings")
    np.testing.assert_array_equal(to_numpy(kernel), found["layers/encoder/embedding/vars/0"])
    lm.compile(sampler="greedy")
    written = lm.generate(make_inputs(target=(1, 1, 1)), max_length=4, stop_token_ids=None)
    assert written["decoder_token_ids"].shape == (3, 4)


# Heads and encoders.


def classifier(seed, names=("no", "yes")):
    encoder = EncoderBackbone.from_preset(start().backbone)
    return moved(seed, EncDecTextClassifier(encoder, label_names=names))


@pytest.mark.slow
def test_heads_are_merged_too(tmp_path):
    for seed in (1, 2):
        classifier(seed).save_to_preset(tmp_path / str(seed))
    keras_encdec.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    both = [EncDecTextClassifier.from_preset(str(tmp_path / str(seed))) for seed in (1, 2)]
    found = EncDecTextClassifier.from_preset(str(tmp_path / "out"))
    assert found.label_names == ("no", "yes")
    for merged, one, two in zip(found.weights, *(c.weights for c in both), strict=True):
        expected = (to_numpy(one) + to_numpy(two)) / 2
        np.testing.assert_allclose(to_numpy(merged), expected, atol=EPSILON, err_msg=merged.path)
    classifier(2, ("yes", "no")).save_to_preset(tmp_path / "other")
    with pytest.raises(ValueError, match=r"one head.*label_names is no and yes"):
        keras_encdec.merge([tmp_path / "1", tmp_path / "other"], tmp_path / "new")
    start().save_to_preset(tmp_path / "pair")
    with pytest.raises(ValueError, match=r"one task.*EncDecTextClassifier and EncDecSeq2SeqLM"):
        keras_encdec.merge([tmp_path / "1", tmp_path / "pair"], tmp_path / "new")


# What is refused.

PAIR, BASE = ["one", "two"], {"base": "base"}
ARGUMENTS = [
    (["one"], {}, r"two or more presets for 'average'.*weights=\[1 - s, s\]"),
    ([], {}, "two or more presets"),
    (["one", "two", "three"], {"method": "slerp"}, "two presets for 'slerp'"),
    (PAIR, {"method": "slurp"}, "Received: 'slurp'. Did you mean 'slerp'"),
    (PAIR, {"method": "ties"}, "Expected base, .* for 'ties'"),
    (PAIR, {"method": "sum"}, "Expected base, .* for 'sum'"),
    (PAIR, {**BASE, "method": "sum", "weights": [1]}, "weights of 2 presets"),
    (PAIR, {"strength": 0.5}, "Expected base beside strength"),
    (PAIR, {**BASE, "strength": 1.5}, "Expected strength .*Received: 1.5"),
    (PAIR, {**BASE, "strength": -0.1}, "Expected strength"),
    (PAIR, {**BASE, "strength": "0.5"}, "Expected strength"),
    (PAIR, {**BASE, "density": 0.5}, "density for 'ties' alone. Received: 0.5, 'average'"),
    (PAIR, {**BASE, "method": "ties", "density": 0.0}, "Expected density"),
    (PAIR, {"weights": [1]}, "weights of 2 presets"),
    (PAIR, {"weights": [0, 0]}, "one of them above 0"),
    (PAIR, {"weights": [1, -1]}, "Expected weights as a finite number of at least 0"),
    (PAIR, {"weights": [1, float("nan")]}, "Expected weights"),
    (["one", "nowhere"], {}, "Expected the name of a preset.*nowhere"),
]


@pytest.mark.parametrize(("names", "options", "message"), ARGUMENTS)
def test_arguments_that_cannot_be(merge, tmp_path, names, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        merge(names, **options)
    assert not list(tmp_path.iterdir())


def test_one_name_in_place_of_a_list(presets, tmp_path):
    with pytest.raises(ValueError, match="two or more presets"):
        keras_encdec.merge(str(presets / "one"), tmp_path / "out")


def narrower():
    return tiny_lm(pair=PairSpec(tiny_encoder(windows=(8,), width=32), tiny_decoder(windows=(8,))))


def quantised():
    lm = start()
    lm.quantize("int8")
    return lm


OTHERS = [
    (narrower, r"one spec.*'one' and 'other', where encoder, width is 48 and 32"),
    (quantised, "in float. .*other.*quantised"),
    (lambda: start().backbone, r"one task.*EncDecSeq2SeqLM and EncDecBackbone"),
]


@pytest.mark.parametrize(("make", "message"), OTHERS)
def test_other_models_are_refused_by_what_differs(presets, tmp_path, make, message):
    make().save_to_preset(tmp_path / "other")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        keras_encdec.merge([presets / "one", tmp_path / "other"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_runs_in_float32_of_a_base_in_bfloat16(presets, tmp_path):
    """The result has the dtype of the first model; half of the way, by NumPy."""
    start(dtype="bfloat16").save_to_preset(tmp_path / "base")
    runs = presets / "one", presets / "two"
    options = {"base": tmp_path / "base", "strength": 0.5}
    keras_encdec.merge(runs, tmp_path / "out", "average", **options)
    one, two, base, found = map(tensors, (*runs, tmp_path / "base", tmp_path / "out"))
    for name, array in found.items():
        mean = (one[name].astype("float64") + two[name]) / 2
        expected = (base[name].astype("float64") + mean) / 2
        assert array.dtype == one[name].dtype
        np.testing.assert_allclose(array, expected, atol=1e-6)


def test_files_of_lora_and_recipes_are_no_presets(presets, tmp_path):
    lm = start()
    lm.backbone.enable_lora(2)
    lm.backbone.save_lora_weights(tmp_path / "it.lora.h5")
    for other in (tmp_path / "it.lora.h5", "gemma2_tiny_tiny"):
        with pytest.raises(ValueError, match=r"folders of save_to_preset.*load_lora_weights"):
            keras_encdec.merge([presets / "one", other], tmp_path / "out")
    with pytest.raises(ValueError, match=r"of this package.*GemmaBackbone"):
        keras_encdec.merge([presets / "one", "gemma2_mini_docs"], tmp_path / "out")


def test_lora_is_merged_with_its_weights(presets, tmp_path):
    lm = start()
    lm.backbone.enable_lora(2)
    factor = next(v for v in lm.trainable_variables if v.name == "lora_kernel_b")
    factor.assign(np.ones(factor.shape))
    lm.save_to_preset(tmp_path / "lora")
    keras_encdec.merge([presets / "base", tmp_path / "lora"], tmp_path / "out")
    both = by_name(lambda a, b: (a + b) / 2, exact(presets / "base"), exact(tmp_path / "lora"))
    assert_close(tensors(tmp_path / "out"), both)


def test_another_tokenizer(tmp_path):
    keras_encdec.from_preset("gemma2_tiny_mini").save_to_preset(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with open(tmp_path / "two/assets/tokenizer/vocabulary.spm", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"another assets/tokenizer/vocabulary.spm"):
        keras_encdec.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    (tmp_path / "two/digests.json").unlink()
    with pytest.raises(ValueError, match=r"one tokenizer.*vocabulary.spm"):
        keras_encdec.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_a_damaged_one(presets, tmp_path):
    shutil.copytree(presets / "one", tmp_path / "two")
    with h5py.File(tmp_path / "two/model.weights.h5", "r+") as file:
        file[NORM][0] += 1
    with pytest.raises(ValueError, match=r"that were saved in .*two.*encoder/final_norm/scale"):
        keras_encdec.merge([presets / "one", tmp_path / "two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Ancestors.


def of(name, *dates, **facts):
    """A model of a source, and a run of each date."""
    lm = moved(len(dates))
    lm.backbone.record.sources = {"pair": {"name": name, "license": f"of {name}"}}
    entries = [{"what": "converted", "date": "d", "plan": "p", "options": {}, **facts}]
    entries += [{"what": "fit", "date": date} for date in dates]
    for entry in entries:
        lm.backbone.record.add(**entry)
    return lm


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Saves models by name with a source and runs; merges them."""
    monkeypatch.setattr("keras_encdec.sharing.card.write_card", lambda folder, final: None)

    def call(base, *models, **options):
        saved = []
        for number, model in enumerate((base, *models)):
            if model is not None:
                model.save_to_preset(tmp_path / f"m{number}")
            saved.append(model and tmp_path / f"m{number}")
        keras_encdec.merge(saved[1:], tmp_path / "out", base=saved[0], **options)
        return json.loads((tmp_path / "out/provenance.json").read_text())

    return call


def test_the_result_says_what_it_was_made_of(history):
    models = of("a", "1"), of("a", "1", "2"), of("a", "1", "3", "4")
    record = history(*models, weights=[1, 3], strength=0.5)
    assert record["sources"] == {"pair": {"name": "a", "license": "of a"}}
    *past, merged = record["history"]
    assert [entry["what"] for entry in past] == ["converted", "fit"]
    assert (merged["what"], merged["method"], merged["base"]) == ("merged", "average", "m0")
    assert merged["strength"] == 0.5
    told = [(m["name"], m["weight"], [e["date"] for e in m["history"]]) for m in merged["models"]]
    assert told == [("m1", 0.25, ["2"]), ("m2", 0.75, ["3", "4"])]


def test_the_card_says_so_too(presets, merge, tmp_path):
    merge(["one", "two"], "slerp", "base", strength=0.3, weights=[3, 1])
    text = (tmp_path / "out/README.md").read_text()
    assert "merged by slerp of one (0.75) and two (0.25), 0.3 of the way from base." in text


@pytest.mark.slow
def test_runs_of_what_was_merged_are_in_the_card(presets, tmp_path):
    x = make_inputs()
    for name in ("first", "second"):
        lm = keras_encdec.from_preset(presets / "base")
        lm.compile("sgd")
        lm.fit(x, np.roll(x["decoder_token_ids"], -1, 1), verbose=0)
        lm.save_to_preset(tmp_path / name)
    both = [tmp_path / "first", tmp_path / "second"]
    keras_encdec.merge(both, tmp_path / "out", "ties", base=presets / "base")
    text = (tmp_path / "out/README.md").read_text()
    for said in (
        "first, trained, run 1 below, finished.",
        "second, trained, run 2 below, finished.",
        "merged by ties of first (0.5) and second (0.5), 0.2 of their changes kept, 1 of the way",
        "Tokens seen in all: 68 by the encoder, 52 by the decoder",
    ):
        assert said in text
    again = keras_encdec.from_preset(tmp_path / "out")
    assert [entry["what"] for entry in again.provenance["history"]] == ["merged"]


def test_licences_of_all_sources_are_kept(history):
    record = history(None, of("a"), of("b"), of("a"))
    assert [s["license"] for s in record["sources"].values()] == ["of a", "of b"]
    assert "pair" in record["sources"]


def test_other_ancestors_are_refused_by_both_names(history, tmp_path):
    with pytest.raises(ValueError, match=r"'m2', of b .*, and base 'm0', of a"):
        history(of("a"), of("a", "1"), of("b", "1"))
    with pytest.raises(ValueError, match=r"'m1', of a \(fit 2\), and base 'm0', of a \(fit 1\)"):
        history(of("a", "1"), of("a", "2"), of("a", "1", "2"))
    with pytest.raises(ValueError, match=r"'m1', of a, and base 'm0', of a \(fit 1\)"):
        history(of("a", "1"), of("a"), of("a"))
    assert not (tmp_path / "out").exists()


def test_a_conversion_without_chance_is_the_same_on_any_day(history):
    again = {"date": "later", "versions": {"keras": "4"}}
    history(of("a", fresh=0), of("a", "1", fresh=0, **again), of("a", "2", fresh=0))
    with pytest.raises(ValueError, match=r"\(converted later\), and base .*\(converted d\)"):
        history(of("a", fresh=3), of("a", "1", fresh=3, **again), of("a", "2", fresh=3))


def test_a_sum_takes_what_another_source_learned(history):
    """As long as chance had no part in the conversions: they map equal weights to equal ones."""
    history(of("a", fresh=0), of("a", "1", fresh=0), of("b", fresh=0), method="sum")
    with pytest.raises(ValueError, match=r"'m2', of b, and base 'm0', of a"):
        history(of("a", fresh=3), of("a", "1", fresh=3), of("b", fresh=3), method="sum")
    with pytest.raises(ValueError, match=r"'m2', of b, and base 'm0', of a"):
        history(of("a", fresh=0), of("a", "1", fresh=0), of("b", fresh=0))


def test_presets_that_tell_nothing_are_taken(history, presets, tmp_path):
    history(None, of("a"), of("b", "1"))
    for name in ("m1", "m2"):
        (tmp_path / name / "provenance.json").unlink()
    paths = [tmp_path / "m1", tmp_path / "m2"]
    keras_encdec.merge(paths, tmp_path / "new", "ties", base=presets / "base")


# The command.


def test_the_command(presets, tmp_path, capsys):
    one, two, base = (str(presets / name) for name in ("one", "two", "base"))
    options = ["--method", "slerp", "--base", base, "--strength", "0.3", "--weights", "3", "1"]
    assert (
        keras_encdec_cli.main(["merge", one, two, "--output", str(tmp_path / "a"), *options]) == 0
    )
    assert f'from_preset("{tmp_path / "a"}")' in capsys.readouterr().out
    strength = {"base": base, "strength": 0.3, "weights": [3, 1]}
    keras_encdec.merge([one, two], tmp_path / "b", "slerp", **strength)
    assert_same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert keras_encdec_cli.main(["merge", one, "--output", str(tmp_path / "c")]) == 2


# What is left after an error.


def contents(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_an_error_in_the_middle_leaves_what_was_there(presets, merge, tmp_path, monkeypatch):
    merge(["one", "two"])
    before = contents(tmp_path)
    mix = mixing.Mixing.mix

    def fails(self, models, base):
        if models[0].shape == (96, 42):
            raise OSError(errno.EIO, "the disk")
        return mix(self, models, base)

    monkeypatch.setattr(mixing.Mixing, "mix", fails)
    with pytest.raises(OSError, match="the disk"):
        merge(["one", "three"])
    assert contents(tmp_path) == before


def test_numbers_that_are_too_large_leave_nothing(tmp_path):
    lm = start(dtype="float16")
    for number in range(2):
        kernel = lm.backbone.weights[0]
        values = np.full(kernel.shape, 65504.0)  # the largest
        values[1::2] *= 1 - 2 * number  # of one sign, then half of each
        kernel.assign(values)
        lm.save_to_preset(tmp_path / str(number))
    with pytest.raises(ValueError, match=r"finite numbers in what is merged.*embedding"):
        keras_encdec.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out", "slerp")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_preset_or_goes_in_is_not_replaced(presets, merge, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("Dear ...")
    with pytest.raises(ValueError, match=r"letter\.txt"):
        merge(["one", "two"])
    with pytest.raises(ValueError, match="another folder than those that are merged"):
        keras_encdec.merge([presets / "one", presets / "two"], presets / "x/../two")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


KILLED = """
import os, signal, sys
import keras_encdec
from keras_encdec.sharing import tensors
written = []
write = tensors.Tensor.write
def dies(self, rows, array):
    write(self, rows, array)
    written.append(self)
    if len(written) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
tensors.Tensor.write = dies
keras_encdec.merge(sys.argv[1:3], sys.argv[3])
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing(presets, tmp_path):
    paths = [presets / "one", presets / "two", tmp_path / "out"]
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, *map(str, paths)])
    assert ended.returncode == -9
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="which a save that was stopped had left"):
        keras_encdec.merge(paths[:2], paths[2])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
