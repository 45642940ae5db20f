"""A pair learns from rewards of its own answers: by which weights, at which place, and errors."""

import dataclasses
import json

import keras
import keras_hub
import numpy as np
import pytest
from seen import Seen, log_softmax, pair_of_texts

from keras_encdec import training
from keras_encdec.data.prompted import as_prompted
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.models.rollouts import Rollouts
from keras_encdec.private import read_ahead
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import tiny_backbone
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import Checkpoint

PROMPTS = ["Sum of all.", "Sort an array in place.", "The mean.", "Write it to a file.", "x"]
GIVEN = {"prompt": PROMPTS, "wanted": [3, 1, 4, 1, 5]}
G, LENGTH = 2, 6


def letters(prompts, texts, records):
    """Longer texts are better, and what the row wants counts."""
    assert len(prompts) == len(texts) == len(records["wanted"])
    return [len(text) / 10 + wanted for text, wanted in zip(texts, records["wanted"], strict=True)]


def starts_low(prompts, texts, records):
    return [float(text[:1].islower()) for text in texts]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def make(tokenizer, loss=None, rate=0.05, **options):
    lm = pair_of_texts(16, LENGTH)
    loss = loss or training.RLOO([letters, starts_low], num_samples=G, weights=[1, 0.5])
    lm.compile(keras.optimizers.SGD(rate), loss=loss, **options)
    return lm


@pytest.fixture
def batches(monkeypatch):
    """All that are made, as they are handed over."""
    found = []
    own = Rollouts._made

    def made(self, position, batch):
        found.append((position, own(self, position, batch)))
        return found[-1][1]

    monkeypatch.setattr(Rollouts, "_made", made)
    return found


def test_each_batch_is_drawn_by_the_weights_right_before_its_step(tokenizer, batches):
    lm, seen = make(tokenizer), Seen()
    lm.fit(GIVEN, batch_size=2, epochs=2, verbose=0, callbacks=[seen])
    assert [position for position, _ in batches] == [(e, b) for e in range(2) for b in range(3)]
    again = make(tokenizer)
    rollouts = again._made(again._source(GIVEN), again._batching(2, epochs=2, shuffle=True))
    moved = []
    for (position, (x, y, _)), weights in zip(list(batches), seen.weights, strict=False):
        again.set_weights(weights)
        x_again, y_again, _ = next(rollouts.read(*position))
        np.testing.assert_array_equal(x["decoder_token_ids"], x_again["decoder_token_ids"])
        np.testing.assert_array_equal(y["labels"], y_again["labels"])
        again.set_weights(seen.weights[0])
        first = next(rollouts.read(*position))[1]["labels"]
        moved.append(first.shape != y["labels"].shape or (first != y["labels"]).any())
    assert any(moved[1:])  # older weights would have drawn something else


def test_numbers_of_a_first_step_by_score(tokenizer, batches):
    """Loss, reward and divergence of a batch, from `score` of its answers, by two policies."""
    other = make(tokenizer)
    for weight in other.trainable_weights:
        weight.assign(weight * 1.05)
    loss = training.RLOO([letters, starts_low], num_samples=G, kl=0.3, reference=other)
    lm = make(tokenizer, loss, rate=0.0)
    logs = lm.fit(GIVEN, batch_size=5, verbose=0).history
    ((_, (x, y, weight)),) = batches
    assert weight.tolist() == [1] * 5
    flat = {name: a.reshape(-1, a.shape[-1]) for name, a in x.items()}
    flat = {n: np.repeat(a, G, axis=0) if n.startswith("enc") else a for n, a in flat.items()}
    there = flat["decoder_padding_mask"] > 0
    now, before = (
        np.take_along_axis(log_softmax(np.array(m.predict(flat, verbose=0))), labels, -1)[..., 0]
        for m, labels in ((m, y["labels"].reshape(-1, there.shape[1], 1)) for m in (lm, other))
    )
    now, before = ((a * there).sum(1).reshape(5, G) for a in (now, before))
    reward = y["rewards"].sum(-1)
    assert logs["reward"][0] == pytest.approx(reward.mean(), rel=1e-5)
    assert logs["reward_letters"][0] == pytest.approx(y["rewards"][..., 0].mean(), rel=1e-5)
    assert logs["kl"][0] == pytest.approx((now - before).mean(), rel=1e-3, abs=1e-4)
    assert logs["entropy"][0] == pytest.approx(-now.sum() / there.sum(), rel=1e-4)
    assert logs["length"][0] == pytest.approx(there.sum() / there.shape[0], rel=1e-5)
    np.testing.assert_allclose(y["reference"], before, atol=2e-3)
    found = lm.evaluate(GIVEN, batch_size=2, verbose=0, return_dict=True)
    assert set(found) == {
        "reward",
        "reward_letters",
        "reward_starts_low",
        "length",
        "truncated",
        "kl",
    }


@pytest.mark.slow
def test_at_first_nothing_diverges_and_later_it_does(tokenizer):
    lm = make(tokenizer, training.RLOO(letters, num_samples=G, kl=0.0))
    assert lm.evaluate(GIVEN, verbose=0, return_dict=True)["kl"] == pytest.approx(0, abs=1e-5)
    lm.fit(GIVEN, epochs=3, batch_size=5, verbose=0)
    later = lm.evaluate(GIVEN, verbose=0, return_dict=True)["kl"]
    assert abs(later) > 1e-3
    lm.fit(GIVEN, batch_size=5, verbose=0)  # `"initial"` is of the first call, not of each
    assert lm.evaluate(GIVEN, verbose=0, return_dict=True)["kl"] != pytest.approx(0, abs=1e-4)


def test_the_reference_gives_the_weights_back(tokenizer):
    lm = make(tokenizer, rate=0.0)
    before = [np.array(weight) for weight in lm.get_weights()]
    lm.fit(GIVEN, batch_size=2, verbose=0)
    for one, other in zip(before, lm.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mean_of_weights_by_hand(tokenizer):
    loss = training.RLOO(letters, num_samples=G, reference="ema", ema_rate=0.3)
    lm, seen = make(tokenizer, loss), Seen()
    lm.fit(GIVEN, batch_size=2, epochs=2, verbose=0, callbacks=[seen])
    names = [v.path for v in lm.weights]
    for kept, variable in zip(lm.anchor_variables, lm.trainable_variables, strict=True):
        values = [w[names.index(variable.path)].astype("float64") for w in seen.weights]
        mean = values[0]
        for value in values[1:]:
            mean = mean + 0.3 * (value - mean)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(kept.value), mean, atol=1e-5)


LOSSES = {
    "RLOO": training.RLOO([letters, starts_low], num_samples=G),
    "ema": training.RLOO(letters, num_samples=G, reference="ema"),
    "GRPO": training.GRPO(letters, num_samples=G, updates=2, kl=0.1, reference="initial"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_run_goes_on_bit_for_bit(tokenizer, tmp_path, name):
    ends = []
    for stop in (None, 4):
        loss = dataclasses.replace(LOSSES[name], path=str(tmp_path / f"{stop}.jsonl"))
        folder = tmp_path / str(stop)
        if stop is not None:
            lm = make(tokenizer, loss)
            callbacks = [Checkpoint(folder, every=2), StopAfter(stop)]
            with pytest.raises(Stopped):
                lm.fit(GIVEN, batch_size=2, epochs=2, verbose=0, callbacks=callbacks)
        lm = make(tokenizer, loss)
        lm.fit(GIVEN, batch_size=2, epochs=2, verbose=0, callbacks=[Checkpoint(folder, every=2)])
        state = [*lm.variables, *lm.optimizer.variables, *lm.anchor_variables]
        state = [keras.ops.convert_to_numpy(v.value) for v in state]
        ends.append((state, (tmp_path / f"{stop}.jsonl").read_text()))
    (alone, lines), (resumed, lines_again) = ends
    assert lines == lines_again
    assert len(lines.splitlines()) == 2 * 5 * G
    for one, other in zip(alone, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_of_what_was_drawn(tokenizer, tmp_path):
    path = tmp_path / "deep" / "rollouts.jsonl"
    lm = make(tokenizer, training.RLOO([letters, starts_low], num_samples=G, path=str(path)))
    for _ in range(2):  # it begins anew
        lm.fit(GIVEN, batch_size=5, verbose=0)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == 5 * G
    for line in lines:
        assert line["prompt"] == PROMPTS[line["row"]]
        own = letters([0], [line["text"]], {"wanted": [GIVEN["wanted"][line["row"]]]})[0]
        assert line["rewards"]["letters"] == pytest.approx(own)
        assert line["reward"] == pytest.approx(sum(line["rewards"].values()), rel=1e-6)
        assert 0 < line["length"] <= LENGTH
        assert line["truncated"] == (line["length"] == LENGTH) or line["length"] == LENGTH


@pytest.mark.slow
def test_several_steps_on_the_same_answers(tokenizer):
    """The first of them is on the policy that drew; clipping bites only later."""
    loss = training.GRPO(letters, num_samples=4, epsilon=0.01, updates=3)
    lm = make(tokenizer, loss, rate=0.3)
    lm.fit(GIVEN, batch_size=5, verbose=0)
    assert int(keras.ops.convert_to_numpy(lm.optimizer.iterations.value)) == 3
    once = make(tokenizer, dataclasses.replace(loss, updates=1), rate=0.3)
    assert once.fit(GIVEN, batch_size=5, verbose=0).history["clip_share"] == [0.0]
    assert lm.evaluate(GIVEN, verbose=0, return_dict=True)["reward"] > 0


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="parts of a step")
@pytest.mark.parametrize("normalize", ["tokens", "length"])
def test_parts_of_a_step_are_the_step(tokenizer, normalize):
    loss = training.GRPO(letters, num_samples=G, normalize=normalize)
    ends = []
    for parts in (1, 2):
        lm = make(tokenizer, loss, gradient_accumulation_steps=parts)
        lm.fit(GIVEN, batch_size=4, verbose=0, shuffle=False)
        ends.append([np.array(weight) for weight in lm.get_weights()])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


FORMS = {
    "texts": PROMPTS,
    "dict": {"prompt": PROMPTS},
    "rows": [{"prompt": prompt} for prompt in PROMPTS],
    "arrays": {"prompt": np.array(PROMPTS)},
}


def test_what_is_handed_over(tokenizer):
    import pandas
    import tensorflow as tf

    lm = make(tokenizer, training.RLOO(starts_low, num_samples=G, kl=0, reference=None))
    first = lm.evaluate(PROMPTS, verbose=0)
    frames = {"frame": pandas.DataFrame({"prompt": PROMPTS})}
    frames["dataset"] = tf.data.Dataset.from_tensor_slices({"prompt": PROMPTS})
    frames["batches"] = tf.data.Dataset.from_tensor_slices({"prompt": PROMPTS}).batch(2)
    for name, form in {**FORMS, **frames}.items():
        assert lm.evaluate(form, verbose=0) == first, name


@pytest.mark.slow
def test_weights_of_prompts_and_validation(tokenizer):
    lm = make(tokenizer, training.RLOO(starts_low, num_samples=G, kl=0, reference=None))
    each = [lm.evaluate(GIVEN, sample_weight=np.eye(5)[i], verbose=0)[0] for i in range(5)]
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.5])
    found = lm.evaluate(GIVEN, sample_weight=weights, verbose=0)[0]
    assert found == pytest.approx(np.average(each, weights=weights))
    logs = lm.fit(GIVEN, validation_data={"prompt": PROMPTS[:3]}, epochs=2, verbose=0).history
    assert {"val_reward", "val_length", "val_truncated"} <= set(logs)


def test_evaluate_uses_or_refuses_each_argument(tokenizer, capsys):
    keras.config.enable_interactive_logging()
    lm = make(tokenizer, training.RLOO(starts_low, num_samples=G, kl=0, reference=None))
    found = lm.evaluate(PROMPTS, return_dict=True)
    assert f"reward {found['reward']:.4g}, length {found['length']:.4g}" in capsys.readouterr().out
    assert lm.evaluate(PROMPTS, verbose=0, return_dict=True) == found
    assert not capsys.readouterr().out
    first = lm.evaluate(PROMPTS[:2], verbose=0)
    assert lm.evaluate(PROMPTS, batch_size=2, steps=1, verbose=0) == first
    with pytest.raises(ValueError, match=r"Received: Seen\. Give it to fit"):
        lm.evaluate(PROMPTS, callbacks=[Seen()])
    with pytest.raises(TypeError, match="an argument of evaluate"):
        lm.evaluate(PROMPTS, stepz=1)


@pytest.mark.slow
def test_in_mixed_bfloat16(tokenizer):
    """A policy is its reference at first, though answers are scored in other shapes."""
    one = {"vocabulary_size": 4096, "windows": (8,)}
    pair = PairSpec(tiny_encoder(**one), tiny_decoder(**one))
    backbone = tiny_backbone(pair, dtype="mixed_bfloat16")
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 16, LENGTH))
    loss = training.RLOO(starts_low, num_samples=8, kl=0.01)
    lm.compile(3e-3, loss=loss)
    before = lm.evaluate(PROMPTS, verbose=0, return_dict=True)
    assert before["kl"] == pytest.approx(0, abs=0.05)
    logs = lm.fit(PROMPTS, epochs=5, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert logs["kl"][0] == pytest.approx(0, abs=0.05)
    assert logs["kl"][-1] > 0.1
    assert {str(v.dtype) for v in lm.trainable_variables} == {"float32"}


def raises(prompts, texts, records):
    raise RuntimeError("no judge")


BAD = {
    "raises": (raises, RuntimeError, "no judge"),
    "nan": (lambda p, t, r: [float("nan")] * len(t), ValueError, "to the prompt 'Sum of all.'"),
    "few": (lambda p, t, r: [1.0], ValueError, "Expected 10 numbers of the reward lambda"),
    "words": (lambda p, t, r: list(t), ValueError, "Expected 10 numbers of the reward lambda"),
}


@pytest.mark.parametrize("case", BAD)
def test_rewards_that_fail_change_nothing(tokenizer, case):
    """The second step's reward fails: the weights are those of the first."""
    function, error, message = BAD[case]
    calls = []

    def later(prompts, texts, records):
        calls.append(1)
        return starts_low(prompts, texts, records) if len(calls) < 2 else function(*given(prompts))

    def given(prompts):
        return prompts, ["t"] * len(prompts), {}

    later.__name__ = "lambda"
    seen = Seen()
    lm = make(tokenizer, training.RLOO(later, num_samples=G))
    with pytest.raises(error, match=message):
        lm.fit(GIVEN, batch_size=5, epochs=3, verbose=0, shuffle=False, callbacks=[seen])
    for one, other in zip(seen.weights[-1], lm.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_data_is_refused(tokenizer):
    lm = make(tokenizer)
    for x, y, message in (
        (PROMPTS, PROMPTS, "answers are drawn"),
        ({"text": PROMPTS}, None, "Expected the column prompt"),
        ({"prompt": ["a", " "]}, None, "prompt of row 1"),
        ({"prompt": ["a", "b"], "wanted": [1]}, None, "Expected a wanted for each of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="For answers, generate"):
        lm.predict(PROMPTS)
    with pytest.raises(ValueError, match="steps_per_execution"):
        lm.compile(loss=training.RLOO(letters), steps_per_execution=2)
    reference = make(tokenizer)
    small = {"windows": (8,), "vocabulary_size": 4095}
    reference.backbone = tiny_backbone(PairSpec(tiny_encoder(**small), tiny_decoder(**small)))
    lm.compile(loss=training.RLOO(letters, reference=reference))
    with pytest.raises(ValueError, match="a task of the same vocabularies"):
        lm.fit(GIVEN, verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras' trainer on JAX")
def test_nothing_is_read_ahead_on_an_accelerator():
    from keras.src.backend.jax.trainer import JAXEpochIterator

    read = []

    def batches():
        for i in range(3):
            read.append(i)
            yield (np.full((2,), i),)

    for ahead in (True, False):
        read.clear()
        with read_ahead(ahead):
            next(iter(JAXEpochIterator._one_batch_ahead_iterator(None, batches())))
        assert read == ([0, 1] if ahead else [0])


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_on_a_small_budget(tokenizer, quantized):
    """LoRA, on int8 too: what is frozen stays, and the start is what nothing diverges from."""
    lm = make(tokenizer)
    if quantized:
        lm.quantize("int8", filters=training.pretrained)
    lm.backbone.enable_lora(2)
    lm.compile(keras.optimizers.SGD(5.0), loss=training.RLOO(letters, num_samples=G))
    trained = {id(v) for v in lm.trainable_variables}
    frozen = [
        (v, np.array(v)) for v in lm.variables if id(v) not in trained and "seed" not in v.path
    ]
    assert len(lm.anchor_variables) == 0
    assert lm.evaluate(GIVEN, verbose=0, return_dict=True)["kl"] == pytest.approx(0, abs=1e-5)
    assert len(lm.anchor_variables) == len(trained)
    lm.fit(GIVEN, batch_size=5, epochs=3, verbose=0)
    for variable, before in frozen:
        np.testing.assert_array_equal(variable, before)
    assert abs(lm.evaluate(GIVEN, verbose=0, return_dict=True)["kl"]) > 1e-4


def test_weights_of_a_stream_are_kept():
    parts = [
        ({"prompt": "One.", "wanted": 1}, None, 2.0),
        ({"prompt": "Two.", "wanted": 2}, None, 0.5),
    ]
    found = as_prompted(iter(parts))
    assert (found.prompts, found.records) == (["One.", "Two."], {"wanted": [1, 2]})
    assert found.weights.tolist() == [2.0, 0.5]
