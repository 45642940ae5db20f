"""A pair learns from preferred answers: numbers by `score`, references that stay, and errors."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from seen import pair_of_texts

import keras_encdec
from keras_encdec import training

PROMPTS = ["Returns the sum.", "Sort an array.", "Mean of values.", "Write it."]
CHOSEN = ["Of all values.", "In place.", "Of an axis.", "To a file."]
REJECTED = ["None.", "No.", "It is a mean.", "x"]
COLUMNS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
JUDGED = {"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False, True, False]}
OTHERS = {"prompt": PROMPTS[:2], "chosen": REJECTED[:2], "rejected": CHOSEN[:2]}


def make(loss=None, **options):
    keras.utils.set_random_seed(0)
    lm = pair_of_texts()
    lm.compile(keras.optimizers.SGD(0.01), loss=loss or training.DPO(), **options)
    return lm


def totals(lm, answers):
    """Log-probabilities of whole answers by `score`, and how many tokens they have."""
    found = lm.score({"encoder_text": PROMPTS, "decoder_text": answers})
    return np.array(found.total, "float64"), np.array([len(row) for row in found.per_token])


@pytest.fixture(scope="module")
def start():
    lm = make()
    return [totals(lm, some) for some in (CHOSEN, REJECTED)]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def test_without_a_step_dpo_is_log_2():
    lm = make()
    found = lm.evaluate(COLUMNS, batch_size=3, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-5)


def test_losses_after_training_are_those_of_scores(start):
    """On data that training has seen, with a reference from before it."""
    lm = make()
    lm.fit(COLUMNS, batch_size=2, epochs=2, verbose=0)
    (now_w, size_w), (now_l, size_l) = (totals(lm, some) for some in (CHOSEN, REJECTED))
    (was_w, _), (was_l, _) = start
    assert ((now_w - was_w) - (now_l - was_l)).max() > 0.1
    margin = 0.1 * ((now_w - was_w) - (now_l - was_l))
    weight = np.array([1.0, 0.0, 2.0, 0.5])
    for size in (1, 3, 4):
        found = lm.evaluate(
            COLUMNS, sample_weight=weight, batch_size=size, verbose=0, return_dict=True
        )
        expected = (-log_sigmoid(margin) * weight).sum() / weight.sum()
        assert found["loss"] == pytest.approx(expected, rel=1e-4)
        assert found["margin"] == pytest.approx((margin * weight).sum() / weight.sum(), rel=1e-3)
    lm.compile(loss=training.SimPO(beta=2.0, gamma=0.5))
    means = now_w / size_w - now_l / size_l
    found = lm.evaluate(COLUMNS, batch_size=3, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(-log_sigmoid(2 * means - 0.5).mean(), rel=1e-4)


def test_kto_reads_answers_to_other_inputs(start):
    lm = make(training.KTO())
    found = lm.evaluate(JUDGED, batch_size=4, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(0.5, abs=1e-5)
    lm.fit(JUDGED, batch_size=4, epochs=2, verbose=0)
    (now, _), (was, _) = totals(lm, CHOSEN), start[0]
    own = now - was
    shifted = totals(lm, [*CHOSEN[1:], CHOSEN[0]])[0] - totals(make(), [*CHOSEN[1:], CHOSEN[0]])[0]
    divergence = max(0, shifted.mean())
    side = np.array([1, -1, 1, -1])
    losses = 1 / (1 + np.exp(side * 0.1 * (own - divergence)))
    found = lm.evaluate(JUDGED, batch_size=4, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert found["divergence"] == pytest.approx(divergence, rel=1e-3, abs=1e-5)
    assert found["wanted_reward"] == pytest.approx(0.1 * own[side > 0].mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="parts of a step")
def test_parts_of_a_step_are_the_step():
    losses = {}
    for parts in (1, 2):
        lm = make(gradient_accumulation_steps=parts)
        losses[parts] = lm.fit(COLUMNS, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1][-1] < losses[1][0]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="parts of a step")
def test_kto_is_refused_in_parts():
    """Its divergence is a mean over the batch, of which a part knows a part."""
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=1 with KTO"):
        make(training.KTO(), gradient_accumulation_steps=2)


@pytest.mark.slow
def test_another_task_is_a_reference(start):
    """It stays as it is, and a model that moved is compared with it."""
    reference, lm = make(), make(training.ORPO())
    lm.fit(COLUMNS, batch_size=4, epochs=2, verbose=0)
    lm.compile(loss=training.DPO(reference=reference))
    margin = 0.1 * ((totals(lm, CHOSEN)[0] - start[0][0]) - (totals(lm, REJECTED)[0] - start[1][0]))
    found = lm.evaluate(COLUMNS, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(-log_sigmoid(margin).mean(), rel=1e-4)


@pytest.mark.slow
def test_the_initial_model_cannot_be_asked_later():
    lm = make()
    lm.fit(COLUMNS, validation_data=OTHERS, epochs=1, verbose=0)
    lm.fit(COLUMNS, epochs=1, verbose=0)
    assert lm.evaluate(OTHERS, verbose=0, return_dict=True)["loss"] > np.log(2)
    with pytest.raises(ValueError, match="Expected data that the reference has seen"):
        lm.evaluate({**OTHERS, "prompt": ["Another.", "One."]}, verbose=0)
    lm.compile(loss=training.DPO())
    assert lm.evaluate(OTHERS, verbose=0, return_dict=True)["loss"] == pytest.approx(np.log(2))


def test_a_reference_is_kept(tmp_path):
    loss = training.DPO(path=str(tmp_path / "reference"))
    first = make(loss)
    losses = first.fit(COLUMNS, epochs=2, verbose=0).history["loss"]
    (folder,) = (tmp_path / "reference").iterdir()
    index = json.loads((folder / "shards.json").read_text())
    assert index["finished"] == {"rows": 4}
    again = make(loss)
    assert again.fit(COLUMNS, epochs=2, verbose=0).history["loss"] == losses
    first.compile(loss=loss)
    with pytest.raises(ValueError, match=r"(?s)Expected log-prob.*of other weights"):
        first.fit(COLUMNS, verbose=0)
    file = next(folder.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="another checksum"):
        make(loss).fit(COLUMNS, verbose=0)


def test_conversations_and_their_text_are_one():
    lm = make()
    lm.preprocessor.chat = True
    expected = lm.fit(COLUMNS, batch_size=2, epochs=2, verbose=0).history["loss"]
    lm = make()
    talks = {
        "prompt": [[{"role": "user", "content": text}] for text in PROMPTS],
        **{
            name: [[{"role": "assistant", "content": text}] for text in COLUMNS[name]]
            for name in ("chosen", "rejected")
        },
    }
    assert lm.fit(talks, batch_size=2, epochs=2, verbose=0).history["loss"] == expected


def test_options_come_back(tmp_path):
    lm = make(training.DPO(beta=0.3, label_smoothing=0.1))
    lm.save(str(tmp_path / "lm.keras"))
    again = keras.saving.load_model(str(tmp_path / "lm.keras"))
    assert again._preference == training.DPO(beta=0.3, label_smoothing=0.1)
    lm.compile(loss=training.DPO(reference=make()))
    with pytest.warns(UserWarning, match="The reference of a loss is not saved"):
        lm.save(str(tmp_path / "other.keras"))


def test_under_lora_what_trains_is_moved_alone():
    lm = make()
    lm.backbone.enable_lora(2)
    lm.compile(keras.optimizers.Adam(1e-2), loss=training.DPO())
    frozen = lm.backbone.non_trainable_weights[:5]
    before = [np.array(v) for v in frozen]
    history = lm.fit(COLUMNS, batch_size=4, epochs=3, verbose=0).history
    assert history["loss"][0] == pytest.approx(np.log(2), abs=1e-5)
    assert history["loss"][-1] < 0.6
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        (training.DPO(), JUDGED, "Expected columns prompt, chosen and rejected with DPO"),
        (training.KTO(), COLUMNS, "Expected columns prompt, completion and label with KTO"),
        (training.DPO(), PROMPTS, "Expected columns prompt, chosen and rejected with DPO"),
        (training.DPO(), {**COLUMNS, "margin": [1.0] * 4}, "Expected no margin with DPO"),
        (training.FusedCrossEntropy(), COLUMNS, "Expected a loss for preferences"),
    ],
)
def test_loss_and_data_that_do_not_go_together(loss, data, message):
    with pytest.raises(ValueError, match=message):
        make(loss).fit(data, verbose=0)


def test_packing_is_refused_as_there_is_one_a_row():
    for loss, x in ((training.DPO(), COLUMNS), (training.RLOO(lambda **_: [0.0]), PROMPTS)):
        lm = make(loss)
        lm.preprocessor.packing = True
        with pytest.raises(ValueError, match=r"packing = False with (preferences|prompts)"):
            lm.fit(x, verbose=0)


def test_it_predicts_of_one_answer_alone():
    lm = make()
    pairs = {"prompt": PROMPTS, "completion": CHOSEN}
    found = lm.predict(pairs, verbose=0)
    lm.compile()
    np.testing.assert_array_equal(lm.predict(pairs, verbose=0), found)
    with pytest.raises(ValueError, match=r"Expected one answer for each input, to predict"):
        lm.predict(COLUMNS, verbose=0)


def test_a_reference_of_another_vocabulary():
    lm = make()
    other = keras_encdec.models.EncDecSeq2SeqLM(
        keras_encdec.models.EncDecBackbone(
            *(
                dataclasses.replace(stack, vocabulary_size=64)
                for stack in (lm.backbone.spec.encoder, lm.backbone.spec.decoder)
            )
        )
    )
    lm.compile(loss=training.DPO(reference=other))
    with pytest.raises(ValueError, match="Expected reference as 'initial' or a task of the same"):
        lm.fit(COLUMNS, verbose=0)
