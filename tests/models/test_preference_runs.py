"""Preferences on small budgets and over several runs: the reference stays the model's start."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec import training
from keras_encdec.models import EncDecBackbone, EncDecRewardModel, EncDecSeq2SeqLM
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor as Preprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import draw
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training.warmup import pretrained

pytestmark = pytest.mark.slow

PROMPTS = ["Returns the sum.", "Sort an array.", "Mean of values.", "Write it."]
CHOSEN = ["Of all values.", "In place.", "Of an axis.", "To a file."]
REJECTED = ["None.", "No.", "It is a mean.", "x"]
COLUMNS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
WEIGHT = np.array([1.0, 0.5, 0.0, 2.0])


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def make(
    tokenizer, loss=None, dtype=None, mode=None, rank=0, task=EncDecSeq2SeqLM, seed=0, **options
):
    """A tiny pair with drawn weights; LoRA, by the seed, over whole or quantised weights."""
    keras.utils.set_random_seed(seed)
    one = {"vocabulary_size": 4096, "windows": (8,)}
    backbone = EncDecBackbone.of(PairSpec(tiny_encoder(**one), tiny_decoder(**one)), dtype=dtype)
    for weight in backbone.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    if mode:
        backbone.quantize(mode, filters=pretrained)
    if rank:
        backbone.enable_lora(rank)
    lm = task(backbone, Preprocessor(tokenizer, 24, 12))
    options = {**options, **({"loss": loss} if loss else {})}
    lm.compile(keras.optimizers.SGD(0.02), **options)
    return lm


def fit(lm, epochs=2, **options):
    options = {"sample_weight": WEIGHT, "batch_size": 2, "verbose": 0, **options}
    return lm.fit(COLUMNS, epochs=epochs, **options).history["loss"]


def evaluated(lm, **options):
    options = {"batch_size": 3, "verbose": 0, "return_dict": True, **options}
    return lm.evaluate(COLUMNS, **options)


def totals(lm):
    """(4, 2) log-probabilities of both answers by `score`, in float64."""
    found = [
        lm.score({"encoder_text": PROMPTS, "decoder_text": some}) for some in (CHOSEN, REJECTED)
    ]
    return np.stack([np.array(x.total, "float64") for x in found], axis=1)


def trained(lm):
    return [keras.ops.convert_to_numpy(v) for v in lm.trainable_variables]


BUDGETS = {"whole": {}, "LoRA": {"rank": 2}, "LoRA on int8": {"rank": 2, "mode": "int8"}}


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_reference_is_the_start_after_several_fits(tokenizer, budget):
    """With a cross-attention that trains whole beside LoRA, what LoRA lies on is no reference."""
    lm = make(tokenizer, training.DPO(beta=0.1), **BUDGETS[budget])
    start = totals(lm)
    frozen = [np.array(v) for v in lm.non_trainable_variables if "seed" not in v.path]
    cross = lm.backbone.decoder.blocks[0].cross_attention
    before = [np.array(v) for v in cross.trainable_weights]
    losses = [*fit(lm), *fit(lm, epochs=1)]
    assert losses[-1] < losses[0]
    moved = zip(cross.trainable_weights, before, strict=True)
    assert all(np.abs(np.array(v) - value).max() > 0 for v, value in moved)
    ratios = totals(lm) - start
    margin = 0.1 * (ratios[:, 0] - ratios[:, 1])
    found = evaluated(lm)
    tolerance = 2e-2 if "int8" in budget else 1e-4  # int8 rounds activations
    assert found["loss"] == pytest.approx(np.logaddexp(0, -margin).mean(), rel=tolerance)
    assert found["margin"] == pytest.approx(margin.mean(), rel=tolerance)
    after = [np.array(v) for v in lm.non_trainable_variables if "seed" not in v.path]
    for one, other in zip(frozen, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("budget", ["whole", "LoRA"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_resumed_run_is_one_left_alone(tokenizer, budget, kept, tmp_path):
    """Bit for bit, in a model made anew with other LoRA: its reference is of before it trained."""
    path = str(tmp_path / "reference") if kept else None

    def run(folder, *stops, seed=0):
        lm = make(tokenizer, training.DPO(path=path), seed=seed, **BUDGETS[budget])
        callbacks = [training.Checkpoint(tmp_path / folder, every=1), *stops]
        return fit(lm, callbacks=callbacks), lm

    losses, alone = run("alone")
    with pytest.raises(Stopped):
        run("stopped", StopAfter(3))
    found, resumed = run("stopped", seed=1)
    assert found[-1] == losses[-1]
    for one, other in zip(trained(resumed), trained(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert evaluated(resumed) == evaluated(alone)


@pytest.mark.parametrize("loss", [training.DPO(), training.SimPO()], ids=["DPO", "SimPO"])
def test_parts_of_a_step_are_the_step(tokenizer, loss):
    """By one denominator, though rows of a part weigh otherwise than those of another."""
    found = {}
    for parts in (1, 2):
        lm = make(tokenizer, loss, gradient_accumulation_steps=parts)
        found[parts] = np.array(fit(lm, batch_size=4, shuffle=False)), trained(lm)
    np.testing.assert_allclose(found[1][0], found[2][0], atol=1e-6)
    for one, other in zip(found[1][1], found[2][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_in_mixed_bfloat16(tokenizer):
    """Model and reference are near one at first, whatever the batch, and the loss falls."""
    lm = make(tokenizer, training.DPO(), dtype="mixed_bfloat16")
    for size in (1, 4):
        found = evaluated(lm, batch_size=size)
        assert found["loss"] == pytest.approx(np.log(2), abs=0.02)
    losses = fit(lm, epochs=4)
    assert losses[-1] < losses[0] - 0.05
    assert {str(v.dtype) for v in lm.trainable_variables} == {"float32"}


@pytest.mark.parametrize("budget", ["LoRA", "LoRA on int8"])
def test_a_reward_model_on_a_small_budget(tokenizer, budget):
    lm = make(tokenizer, task=EncDecRewardModel, **BUDGETS[budget])
    losses = fit(lm, epochs=6)
    assert losses[-1] < losses[0]
    head = lm.head.kernel
    assert any(head is v for v in lm.trainable_variables)
