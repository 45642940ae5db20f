"""compile and fit: the fused loss by default, parts of a batch, and teachers."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec import data, objectives
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import Distillation, FusedCrossEntropy

ON_JAX = pytest.mark.skipif(keras.backend.backend() != "jax", reason="on JAX only")


def batch(rows=4):
    x = make_inputs(source=(20, 13, 1, 7)[:rows], target=(16, 9, 1, 5)[:rows])
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    return x, y, x["decoder_padding_mask"].astype("float32")


def fitted(lm=None, steps=2, **options):
    lm = lm or tiny_lm()
    lm.compile(optimizer=keras.optimizers.SGD(0.1), **options)
    x, y, weight = batch()
    history = lm.fit(
        x, y, sample_weight=weight, batch_size=4, epochs=steps, verbose=0, shuffle=False
    )
    return lm, history.history


def plain_loss():
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )


def assert_same_weights(a, b, tolerance=1e-5):
    for one, other in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=tolerance, err_msg=one.path)


@pytest.mark.slow
def test_trains_as_with_logits():
    fused, ours = fitted(loss=FusedCrossEntropy(chunk_tokens=8))
    plain, theirs = fitted(loss=plain_loss(), weighted_metrics=["accuracy"])
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours["accuracy"], theirs["accuracy"], rtol=1e-5)
    np.testing.assert_allclose(ours["perplexity"], np.exp(ours["loss"]), rtol=1e-5)
    assert_same_weights(fused, plain)


@pytest.mark.long
def test_evaluates_as_with_logits_and_still_gives_logits():
    lm = tiny_lm()
    x, y, weight = batch()
    ours = lm.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
    assert lm(x).shape == (4, 16, 96)
    assert lm.predict(x, verbose=0).shape == (4, 16, 96)
    lm.compile(loss=plain_loss())
    theirs = lm.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    assert set(ours) == {"loss", "accuracy", "perplexity"}


def logs_of(lm, **options):
    """Of `fit` and `evaluate`, where nothing moves."""
    x, y, weight = batch()
    lm.compile(optimizer=keras.optimizers.SGD(0.0), **options)
    given = {"sample_weight": weight, "batch_size": 4, "verbose": 0}
    history = lm.fit(x, y, **given).history
    evaluated = lm.evaluate(x, y, **given, return_dict=True)
    return history, evaluated, lm.evaluate(x, y, **given)


def on_logits():
    return {
        "loss": plain_loss(),
        "metrics": [keras.metrics.SparseCategoricalAccuracy(name="one")],
        "weighted_metrics": [keras.metrics.SparseTopKCategoricalAccuracy(5, name="two")],
    }


@pytest.mark.long
def test_a_loss_after_another_is_as_if_it_were_the_first():
    small = PairSpec(tiny_encoder(windows=(8,)), tiny_decoder(windows=(8,)))
    lm, other = tiny_lm(pair=small), tiny_lm(pair=small)
    first, then, last = (logs_of(lm, **options) for options in (on_logits(), {}, on_logits()))
    for found, expected in ((then, logs_of(other)), (last, first)):
        for some, others in zip(found, expected, strict=True):
            keras.tree.assert_same_structure(some, others)
            keras.tree.map_structure(np.testing.assert_allclose, some, others)


@pytest.mark.slow
@ON_JAX
def test_a_batch_in_parts_is_the_batch():
    """Rows of 16, 9, 1 and 5 tokens: parts hold different numbers of them."""
    whole, ours = fitted()
    split, theirs = fitted(gradient_accumulation_steps=4)
    assert_same_weights(whole, split)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)


@ON_JAX
def test_parts_that_do_not_divide_the_batch():
    with pytest.raises(ValueError, match="that 3 gradient_accumulation_steps divide"):
        fitted(gradient_accumulation_steps=3)


def test_options_that_contradict():
    lm = tiny_lm()
    with pytest.raises(ValueError, match="at least 1"):
        lm.compile(gradient_accumulation_steps=0)
    with pytest.raises(ValueError, match="FusedCrossEntropy with"):
        lm.compile(loss=plain_loss(), distillation=Distillation())
    with pytest.raises(ValueError, match="a loss on logits for metrics"):
        lm.compile(weighted_metrics=["accuracy"])
    if keras.backend.backend() == "jax":
        adam = keras.optimizers.Adam(gradient_accumulation_steps=2)
        with pytest.raises(ValueError, match=r"in lm\.compile"):
            lm.compile(adam)
    else:
        with pytest.raises(ValueError, match="Expected the JAX backend"):
            lm.compile(gradient_accumulation_steps=2)


def gemma(vocabulary_size=96):
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=vocabulary_size,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=8,
        final_logit_soft_cap=3.0,
    )
    for i, weight in enumerate(backbone.weights):
        weight.assign(np.random.default_rng(i).normal(size=weight.shape) / 2)
    return keras_hub.models.GemmaCausalLM(backbone)


@pytest.mark.long
def test_asks_the_teacher_what_follows_the_input_and_the_target_so_far():
    teacher = gemma()
    x, y, _ = batch()
    states = Distillation(teacher, start_token=2).teacher_targets(x, y).inputs[0]
    for row in range(4):
        source = x["encoder_token_ids"][row][x["encoder_padding_mask"][row] > 0]
        labels = y[row][x["decoder_padding_mask"][row] > 0]
        ids = np.concatenate([[2], source, labels])[None]
        alone = teacher.backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        expected = to_numpy(alone)[0, len(source) : len(source) + len(labels)]
        np.testing.assert_allclose(to_numpy(states)[row, : len(labels)], expected, atol=1e-5)


@pytest.mark.long
def test_trains_with_a_teacher_that_stays_as_it_is():
    teacher = gemma()
    before = [to_numpy(w) for w in teacher.weights]
    lm, history = fitted(distillation=Distillation(teacher, start_token=2), steps=3)
    assert history["loss"][-1] < history["loss"][0]
    for weight, value in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)
    assert not {id(w) for w in teacher.weights} & {id(w) for w in lm.weights}
    _, alone = fitted(steps=1)
    assert abs(alone["loss"][0] - history["loss"][0]) > 1e-3


@pytest.mark.slow
def test_a_share_of_zero_is_no_teacher():
    taught, ours = fitted(distillation=Distillation(gemma(), weight=0.0))
    alone, theirs = fitted()
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    assert_same_weights(taught, alone)


def test_a_teacher_of_another_vocabulary():
    with pytest.raises(ValueError, match=r"the student's 96 tokens\. Received: one of 50"):
        tiny_lm().compile(distillation=Distillation(gemma(50)))


@pytest.mark.slow
def test_distillation_without_rows():
    with pytest.raises(ValueError, match="batches with teacher_ids"):
        fitted(distillation=Distillation())


@pytest.mark.long
def test_kept_rows_teach_what_the_teacher_does(tmp_path):
    """All words kept on disk, or asked in each step: the same training."""
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    size = tokenizer.vocabulary_size()
    words = {"vocabulary_size": size}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**words), tiny_decoder(**words)))
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 16, objective=objectives.PrefixLM())
    lm, teacher = EncDecSeq2SeqLM(backbone, preprocessor), gemma(size)
    texts = [f"Returns the mean of {i} numbers along an axis." for i in range(4)]
    tokens = data.tokenize(texts, tokenizer)
    rows = data.write_teacher(
        tmp_path / "rows", teacher, tokens, preprocessor, k=size, dtype="float32"
    )
    start, losses = [to_numpy(w) for w in lm.weights], []
    asked = Distillation(teacher, start_token=tokenizer.start_token_id)
    for distillation, kept in ((asked, None), (Distillation(), rows)):
        for weight, value in zip(lm.weights, start, strict=True):
            weight.assign(value)
        lm.compile(optimizer=keras.optimizers.SGD(0.1), distillation=distillation)
        batches = data.batches(tokens, preprocessor, 2, steps=2, teacher=kept)
        losses.append(lm.fit(batches, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    lm.compile(distillation=asked)
    preprocessor.objective = objectives.UL2()
    with pytest.raises(ValueError, match="Expected PrefixLM for a teacher that is asked"):
        lm.fit(texts)
    preprocessor.packing = True
    with pytest.raises(ValueError, match=r"Expected preprocessor\.packing = False"):
        lm.fit(texts)
