"""Run in processes of their own, which see several devices; prints one line of JSON.

    python run_distributed.py '{"fit": [["data", [2, 4]]], "load": ["folder"]}'

calls `fit` and `load` of this file with these arguments. `test_distribution.py` sets the
environment and says what the answers should be.
"""

import contextlib
import gc
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import compiled_step
import jax
import keras
import keras_hub
import numpy as np
from jax.experimental import multihost_utils
from keras.src.backend.jax.core import JaxVariable

import keras_encdec
from keras_encdec import layout
from keras_encdec.data import batches, tokenize
from keras_encdec.families import t5gemma
from keras_encdec.files import read_json
from keras_encdec.generation import BeamSearch
from keras_encdec.layout import shard_shape
from keras_encdec.models import (
    EncDecBackbone,
    EncDecRewardModel,
    EncDecSeq2SeqLM,
    EncDecSeq2SeqLMPreprocessor,
    EncDecTextClassifier,
    EncoderBackbone,
)
from keras_encdec.sharing import catalog
from keras_encdec.spec import AttentionSpec, MoESpec, PairSpec, StackSpec
from keras_encdec.testing.models import draw, make_inputs, tiny_backbone
from keras_encdec.testing.specs import other_pair, sunk, tiny_decoder, tiny_encoder, tiny_pair
from keras_encdec.testing.specs import uneven as uneven_stack
from keras_encdec.training import DPO, RLOO, BradleyTerry
from keras_encdec.training.estimate import estimate
from keras_encdec.training.loss import Sums
from keras_encdec.training.token_likelihood import token_log_likelihoods
from keras_encdec.training.warmup import pretrained

STEPS, ROWS = 5, 8
DIVERGENCES = "forward", "reverse", "jensen_shannon"
EMBEDDED = catalog.embedded("gemma2_tiny_docs")
T5GEMMA = Path(__file__).parents[1] / "parity" / "hf_t5gemma"


def pair(**changes):
    """Two key/value heads on up to eight devices, and widths that only some meshes divide."""
    encoder = tiny_encoder(windows=(8, None), **changes)
    return tiny_pair(encoder=encoder, decoder=tiny_decoder(windows=(6,), **changes))


SHARED = {"shared_dim": 16, "separate_norms": True, "router_norm": 1e-2, "expert_scale": True}
SPECS = {
    "usual": pair(),
    "other": other_pair(),  # biases, an output of its own and the like
    "alike": tiny_pair(
        encoder=tiny_encoder(windows=(8,) * 3), decoder=tiny_decoder(windows=(6,) * 3)
    ),
    # The model axis of four cuts the encoder's experts, and not the decoder's.
    "experts": tiny_pair(
        encoder=tiny_encoder(windows=(8, None), experts=MoESpec(8, 2, 24, **SHARED)),
        decoder=tiny_decoder(
            windows=(6,), experts=MoESpec(3, 2, 20, shared_dim=12, shared_gate=True)
        ),
    ),
    "sunk": tiny_pair(
        encoder=sunk(tiny_encoder(windows=(8, None)), 8),
        decoder=sunk(tiny_decoder(windows=(6,)), 3),
    ),
    "uneven": tiny_pair(
        encoder=uneven_stack(tiny_encoder()), decoder=uneven_stack(tiny_encoder(width=42))
    ),
}


def distribution(mesh, spec, **kwargs):
    """`"data"` for data parallel, else (batch, model) devices with our layout map."""
    if mesh == "data":
        return keras.distribution.DataParallel(**kwargs)
    mesh = keras.distribution.DeviceMesh(tuple(mesh), ("batch", "model"))
    layout_map = EncDecBackbone.get_layout_map(mesh, spec)
    return keras.distribution.ModelParallel(layout_map=layout_map, **kwargs)


def fit(meshes, name="usual"):
    """The largest difference of the loss and of each weight, by mesh."""
    return apart(meshes, SPECS[name], train)


def fit_others(meshes, names):
    """As `fit`, of pairs of other kinds."""
    return {name: fit(meshes, name) for name in names}


def scanned(meshes):
    """As `fit`, of blocks that are scanned on the mesh and not on one device."""
    return apart(meshes, SPECS["alike"], train, scan=True)


def gathered(mesh):
    """Shapes that a compiled step gathers over devices, without a scan and with one."""
    attention = AttentionSpec(8, 8, 32, 16.0)
    stack = StackSpec(1024, 192, 768, attention, (None,) * 3)
    with distribution(mesh, spec := PairSpec(stack, stack)).scope():
        steps = [compiled_step.compiled(spec, 8, 64, 64, scan=scan) for scan in (False, True)]
    found = [
        re.findall(r"= (\w+\[[\d,]*\])\S* all-gather(?:-start)?\(", step.as_text())
        for step in steps
    ]
    return [sorted(set(shapes)) for shapes in found]


def train(spec, **settings):
    """Loss and weights after five steps with the default compile."""
    keras.utils.set_random_seed(0)
    lm = EncDecSeq2SeqLM(tiny_backbone(spec))
    lm.compile(**settings)
    x = make_inputs((20, 13, 1, 7, 9, 20, 4, 5) * STEPS, (16, 9, 1, 4, 5, 16, 8, 7) * STEPS)
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    weight = x["decoder_padding_mask"].astype("float32")
    history = lm.fit(x, y, sample_weight=weight, batch_size=ROWS, shuffle=False, verbose=0)
    return {"loss": np.array(history.history["loss"]), **weights_of(lm)}


def apart(meshes, spec, train, **there):
    """The largest difference of each number of a training from that on one device, by mesh.

    What is in `there` is set on a mesh alone.
    """
    expected, differences = train(spec), {}
    for mesh in meshes:
        with distribution(mesh, spec).scope():
            found = train(spec, **there)
        differences[str(mesh)] = {k: float(np.abs(found[k] - v).max()) for k, v in expected.items()}
    return differences


def classify(meshes):
    """As `fit`, of a classifier; its last batch is no whole one."""
    return apart(meshes, pair(), train_classifier)


def train_classifier(spec):
    keras.utils.set_random_seed(0)
    backbone = EncoderBackbone.from_preset(tiny_backbone(spec))
    model = EncDecTextClassifier(backbone, num_classes=3)
    for weight in model.head.weights:
        weight.assign(draw(weight.name, tuple(weight.shape)))
    inputs = make_inputs((20, 13, 1, 7, 9, 20, 4, 5, 11, 2), (1,) * 10)
    x = {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}
    history = model.fit(x, np.arange(10) % 3, batch_size=ROWS, shuffle=False, epochs=2, verbose=0)
    return {"loss": np.array(history.history["loss"]), **weights_of(model)}


def prefer(meshes, rewards=False):
    """As `fit`, of answers that people preferred; the last batch is no whole one."""
    return apart(
        meshes, pair(vocabulary_size=4096), lambda spec: train_on_preferences(spec, rewards)
    )


def judge(meshes):
    """As `prefer`, of a reward model."""
    return prefer(meshes, rewards=True)


def reward(meshes):
    """As `fit`, of answers that are drawn and rewarded; a token drawn otherwise would show."""
    return apart(meshes, pair(vocabulary_size=4096), train_on_rewards)


def train_on_rewards(spec):
    tokenizer = keras_hub.models.Tokenizer.from_preset(EMBEDDED)
    lm = EncDecSeq2SeqLM(tiny_backbone(spec), EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 8))

    def lengths(prompts, texts, records):
        return [len(text) / 10 for text in texts]

    lm.compile(keras.optimizers.SGD(0.02), loss=RLOO(lengths, num_samples=2))
    prompts = [f"Returns the mean of {i} numbers." for i in range(10)]
    history = lm.fit(prompts, batch_size=ROWS, shuffle=False, epochs=2, verbose=0).history
    logs = {name: np.array(history[name]) for name in ("loss", "reward", "kl", "length")}
    return {**logs, **weights_of(lm)}


def train_on_preferences(spec, rewards):
    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.Tokenizer.from_preset(EMBEDDED)
    task, loss = (EncDecRewardModel, BradleyTerry()) if rewards else (EncDecSeq2SeqLM, DPO())
    lm = task(tiny_backbone(spec), EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20))
    if rewards:
        lm.head.kernel.assign(draw("head", tuple(lm.head.kernel.shape)))
    lm.compile(keras.optimizers.SGD(0.02), loss=loss)
    answers = [f"Mean of {i}." + " Of an array." * (i % 2) for i in range(10)]
    data = {
        "prompt": [f"Returns the mean of {i} numbers." for i in range(10)],
        "chosen": answers,
        "rejected": [*answers[1:], "None."],
    }
    history = lm.fit(data, batch_size=ROWS, shuffle=False, epochs=2, verbose=0)
    return {"loss": np.array(history.history["loss"]), **weights_of(lm)}


def weights_of(lm):
    """The whole of each weight, also where other processes hold parts of it."""
    values = [multihost_utils.process_allgather(v.value, tiled=True) for v in lm.weights]
    return {v.path: np.asarray(x) for v, x in zip(lm.weights, values, strict=True)}


def write(meshes):
    """Whether the same tokens are written, and the largest difference of a score, by mesh."""
    expected, found = written(), {}
    for mesh in meshes:
        with distribution(mesh, pair()).scope():
            tokens, scores = written()
        difference = float(np.abs(scores - expected[1]).max())
        found[str(mesh)] = [bool((tokens == expected[0]).all()), difference]
    return found


def written():
    """Greedy tokens, then beams, and the scores of these."""
    keras.utils.set_random_seed(0)
    lm = EncDecSeq2SeqLM(tiny_backbone(pair()))
    inputs = make_inputs((20, 13, 7), (4, 1, 2))
    lm.compile(sampler="greedy")
    greedy = lm.generate(inputs, 12, stop_token_ids=None)
    lm.compile(sampler=BeamSearch(3))
    beams, scores = lm.generate(inputs, 12, stop_token_ids=(7,), return_scores=True)
    return np.stack([x["decoder_token_ids"] for x in (greedy, beams)]), scores


def hosts(mesh, index, port):
    """Loss and norms of the weights in one of two processes; without a port, the only one."""
    scope = contextlib.nullcontext()
    if port is not None:
        keras.distribution.initialize(f"localhost:{port}", 2, index)
        active = distribution(mesh, pair(vocabulary_size=4096), auto_shard_dataset=False)
        scope = active.scope()
    with scope:
        found = train_on_text()
    return {name: float(np.linalg.norm(value)) for name, value in found.items()}


def read(folder, index, port):
    """Norms of loaded weights in one of two processes, by way of loading; or in the only one."""
    if port is not None:
        keras.distribution.initialize(f"localhost:{port}", 2, index)
    found = {}
    for name, spec in presets(folder).items():
        scope = contextlib.nullcontext()
        if port is not None:
            scope = distribution([4, 2], spec, auto_shard_dataset=False).scope()
        with scope:
            keras.utils.set_random_seed(0)
            lm = keras_encdec.from_preset(name, preprocessor=None)
            norms = {k: float(np.linalg.norm(v)) for k, v in weights_of(lm).items()}
            found |= {f"{Path(name).name}/{k}": v for k, v in norms.items()}
    return found


def presets(folder):
    """A preset for each way of loading, with its spec: ours, T5Gemma's layout, and two sources."""
    if not Path(folder).exists():
        EncDecSeq2SeqLM(tiny_backbone(pair())).save_to_preset(folder)
    released = t5gemma.from_transformers(read_json(T5GEMMA / "config.json"))
    adapted = catalog.presets["gemma2_tiny_mini"].spec
    return {folder: pair(), T5GEMMA: released, "gemma2_tiny_mini": adapted}


def train_on_text():
    """Loss and weights after a pass over some texts, of which this process reads its share."""
    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.Tokenizer.from_preset(EMBEDDED)
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20)
    lm = EncDecSeq2SeqLM(tiny_backbone(pair(vocabulary_size=4096)), preprocessor)
    lm.compile(attention="fused")
    texts = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 3) for i in range(40)]
    data = batches(tokenize(texts, tokenizer), preprocessor, ROWS)
    history = lm.fit(data, verbose=0)
    return {"loss": np.array(history.history["loss"]), **weights_of(lm)}


class Watch:
    """The most bytes that devices hold at any assignment to a variable.

    Of each device `peak` counts what is spread over the mesh, and `alone` what lies on
    one device: source models, and arrays on their way.
    """

    def __init__(self):
        self.peak, self.alone, self._assign = 0, 0, JaxVariable._direct_assign

    def __enter__(self):
        def assign(variable, value):
            self.look()
            self._assign(variable, value)
            self.look()

        gc.collect()
        self.before = self._alone()
        JaxVariable._direct_assign = assign
        return self

    def __exit__(self, *error):
        JaxVariable._direct_assign = self._assign

    def look(self):
        on_mesh = sum(shard_bytes(a) for a in jax.live_arrays() if is_spread(a))
        self.peak = max(self.peak, on_mesh)
        self.alone = max(self.alone, self._alone() - self.before)

    def seen(self, lm):
        """The peaks, next to the bytes of a device's shards and of whole weights."""
        shards = [4 * math.prod(shard_shape(v.shape, v._layout)) for v in lm.weights]
        assert shards == [shard_bytes(v.value) for v in lm.weights]
        whole = [4 * math.prod(v.shape) for v in lm.weights]
        return {
            "peak": self.peak,
            "alone": self.alone,
            "share": sum(shards),
            "shard": max(shards),
            "tensor": max(whole),
            "all": sum(whole),
        }

    def _alone(self):
        return sum(shard_bytes(a) for a in jax.live_arrays() if not is_spread(a))


def is_spread(array):
    return isinstance(array.sharding, jax.sharding.NamedSharding)


def shard_bytes(array):
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def load(folder):
    """What each way of loading holds at most, and what it ends with."""
    found = {}
    for name, spec in presets(folder).items():
        with distribution([2, 4], spec).scope():
            with Watch() as watch:
                lm = keras_encdec.from_preset(name, preprocessor=None)
            found[Path(name).name] = watch.seen(lm)
            if name == folder:
                with Watch() as watch:
                    lm.backbone.load_weights(f"{folder}/model.weights.h5")
                found["load_weights"] = watch.seen(lm)
        del lm
    return found


CASES = [
    {"dtype": "float32", "optimizer": "adamw"},
    {"dtype": "bfloat16", "optimizer": "adafactor"},
    {"dtype": "float32", "optimizer": "muon"},
    {"dtype": "bfloat16", "optimizer": "adamw", "lora_rank": 3},
    {"dtype": "float32", "optimizer": "adamw", "lora_rank": 2, "quantization": "int8"},
    {"dtype": "bfloat16", "optimizer": "sgd", "quantization": "int4"},
]


def held(mesh):
    """Bytes on each device of weights, trainable ones and optimizer; held, and estimated."""
    sizes = {"batch_size": 8, "source_length": 20, "target_length": 16}
    even = pair(width=48, feedforward_dim=80)  # int4 halves the last dimension
    return [held_by(case, mesh, even, sizes) for case in CASES]


def held_by(case, mesh, spec, sizes):
    with distribution(mesh, spec).scope():
        lm = EncDecSeq2SeqLM(tiny_backbone(spec, dtype=case["dtype"]))
        if mode := case.get("quantization"):
            lm.quantize(mode, filters=pretrained if "lora_rank" in case else None)
        if rank := case.get("lora_rank"):
            lm.backbone.enable_lora(rank)
        optimizer = keras.optimizers.get(case["optimizer"])
        optimizer.build(lm.trainable_variables)
        parts = lm.weights, lm.trainable_variables, optimizer.variables
        found = [sum(shard_bytes(v.value) for v in part) for part in parts]
        logits = np.asarray(lm(make_inputs((20, 13), (16, 9))), "float32")
    expected = estimate(spec, mesh=tuple(mesh), **case, **sizes)
    return {
        "held": found,
        "estimated": [expected.parameters, expected.gradients, expected.optimizer],
        "finite": bool(np.isfinite(logits).all()),
    }


CASES_OF_A_STEP = {
    "in one": {"batch_size": ROWS},
    "in four parts": {"batch_size": 4 * ROWS, "gradient_accumulation_steps": 4},
    "with a teacher": {"batch_size": ROWS, "teacher": True},
}


def step(*meshes):
    """Bytes of a compiled training step on each device, and as estimated, by mesh and case.

    A part of a batch has 2048 tokens.
    """
    attention = AttentionSpec(8, 8, 32, 16.0, 5.0)
    stack = StackSpec(8192, 192, 768, attention, (None,) * 2, final_logit_soft_cap=30.0)
    spec, found = PairSpec(stack, stack), {}
    for mesh in meshes:
        for name, case in CASES_OF_A_STEP.items():
            run = {**case, "source_length": 128, "target_length": 128}
            run["teacher"] = stack if "teacher" in case else None
            with distribution(mesh, spec).scope():
                needed = compiled_step.needed(spec, **run)
            planned = {"mesh": tuple(mesh), "attention": "plain", "teacher_dtype": "float32"}
            found[f"{mesh} {name}"] = [needed, estimate(spec, **planned, **run).total]
    return found


def program(*meshes):
    """Shapes in a compiled step that only a whole embedding has, by mesh and case.

    Whole is what the batch axis cuts, put together again.
    """
    attention = AttentionSpec(8, 8, 32, 16.0, 5.0)
    stack = StackSpec(8192, 192, 768, attention, (None,), final_logit_soft_cap=30.0)
    spec, found = PairSpec(stack, stack), {}
    for mesh in meshes:
        for name, case in {"labels": {}, "teacher": {"teacher": stack}}.items():
            with distribution(mesh, spec).scope():
                step = compiled_step.compiled(spec, 8, 32, 32, **case)
            shapes = set(re.findall(r"\w+\[([\d,]+)\]", step.as_text()))
            assert f"{8192 // math.prod(mesh)},192" in shapes  # a shard of the words
            words = 8192 // mesh[1]
            found[f"{mesh} {name}"] = sorted(shapes & {f"{words},192", f"192,{words}"})
    return found


LOSSES = {
    "labels": {},
    "no cap": {"cap": None},
    "untied": {"tied": False},
    "words that the devices do not divide": {"size": 260},
    "rows that they do not divide": {"rows": 3},
    "frozen": {"trained": False},
    "by token": {"by_token": True},
    "by token, frozen": {"by_token": True, "trained": False},
    "kept": {"teacher": "kept", "divergence": "jensen_shannon"},
    **{name: {"teacher": "asked", "divergence": name} for name in DIVERGENCES},
}


def loss(meshes):
    """The largest difference of sums and gradients, to the largest number, by mesh and case."""
    expected, found = {k: summed(**case) for k, case in LOSSES.items()}, {}
    for mesh in meshes:
        for name, case in LOSSES.items():
            spec = pair(vocabulary_size=case.get("size", 256), width=16)
            with distribution(mesh, spec).scope():
                some = summed(**case)
            pairs = zip(some, expected[name], strict=True)
            errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
            found[f"{mesh} {name}"] = max(errors)
    return found


def summed(
    cap=3.0,
    tied=True,
    size=256,
    rows=8,
    trained=True,
    teacher=None,
    divergence="forward",
    by_token=False,
):
    """Sums of the fused loss with training and without, and gradients of the first."""
    rng = np.random.default_rng(0)
    embedding = reversible("decoder/embedding", size, rng, cap, tied)
    states = rng.normal(size=(rows, 7, 16)).astype("float32")
    labels = rng.integers(-1, size, (rows, 7))
    y = {"labels": labels, "teacher_ids": np.argsort(rng.random((rows, 7, size)))[..., :5]}
    y["teacher_log_probs"] = np.log(rng.random((rows, 7, 5), "float32") / 3)
    asked = SimpleNamespace(trainable=False, preprocessor=None)
    asked.token_embedding = reversible("teacher", size, rng, None, True) if teacher else None
    asked.backbone = asked
    layout.spread_out(asked.token_embedding.variables if teacher else [])
    options = {"weight": 0.7, "temperature": 2.0, "divergence": divergence}
    told = keras_encdec.training.Distillation(asked if teacher != "kept" else None, **options)
    theirs = rng.normal(size=states.shape).astype("float32")
    weights = rng.random((rows, 7)).astype("float32")
    loss = keras_encdec.training.FusedCrossEntropy(1e-2, 0.1, chunk_tokens=2 * rows)

    def sums(states, matrices, training):
        variables = embedding.trainable_variables if trained else []
        with keras.StatelessScope(list(zip(variables, matrices, strict=True))):
            targets = {"kept": told.teacher_targets, "asked": told.targets_of_states}.get(teacher)
            given = ({}, y) if teacher == "kept" else (keras.ops.convert_to_tensor(theirs),)
            targets = targets and targets(*given)
            if by_token:
                options = {"training": training, "chunk_tokens": 2 * rows, "temperature": 0.8}
                found = token_log_likelihoods(states, embedding, labels, weights, **options)
                return Sums(keras.ops.sum(keras.ops.tanh(found / 20)), found, found, found)
            return loss(states, embedding, labels, weights, teacher=targets, training=training)

    embedding.trainable = trained
    given = (states, [v.value for v in embedding.trainable_variables])
    train = jax.value_and_grad(lambda *x: ((s := sums(*x, True)).loss, s), (0, 1), has_aux=True)
    (_, first), gradients = jax.jit(train)(*given)
    second = jax.jit(lambda *x: sums(*x, False))(*given)
    stacked = (np.stack(np.broadcast_arrays(*some[:3])) for some in (first, second))
    parts = [*stacked, *jax.tree.leaves(gradients)]
    return [np.asarray(x) for x in parts]


def reversible(name, size, rng, cap, tied):
    """A `ReversibleEmbedding` with the path that layouts know."""
    with keras.name_scope(name.split("/")[0]):
        layer = keras.layers.ReversibleEmbedding(
            size, 16, tie_weights=tied, logit_soft_cap=cap, name=name.split("/")[-1]
        )
        layer.build()
    for variable in layer.variables:
        variable.assign(rng.normal(size=variable.shape))
    return layer


PAIRS = [f"The mean of {i} numbers." for i in range(5)], [f"Mean of {i}" for i in range(5)]
TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 3) for i in range(7)]
UNEVEN = {
    "pairs packed": {"packing": True, "x": PAIRS[0], "y": PAIRS[1]},
    "pairs in batches of 3": {"x": PAIRS[0], "y": PAIRS[1], "batch_size": 3},
    "texts": {"x": TEXTS},
    "texts packed": {"packing": True, "x": TEXTS, "batch_size": 5},
    "in parts": {"x": TEXTS, "gradient_accumulation_steps": 2, "batch_size": 6},
}


def uneven(meshes):
    """The largest difference of losses of data that devices do not divide, by mesh."""
    spec = pair(vocabulary_size=4096)
    expected, found = losses(spec), {}
    for mesh in meshes:
        with distribution(mesh, spec).scope():
            some = losses(spec)
        found[str(mesh)] = {k: abs(some[k] - v) for k, v in expected.items()}
    return found


def losses(spec):
    """The loss, and that of a validation, of each kind of data."""
    tokenizer, found = keras_hub.models.Tokenizer.from_preset(EMBEDDED), {}
    for name, given in UNEVEN.items():
        keras.utils.set_random_seed(0)
        given = dict(given)
        preprocessor = EncDecSeq2SeqLMPreprocessor(
            tokenizer, 24, 20, packing=given.pop("packing", False)
        )
        lm = EncDecSeq2SeqLM(tiny_backbone(spec), preprocessor)
        lm.compile(gradient_accumulation_steps=given.pop("gradient_accumulation_steps", 1))
        history = lm.fit(**given, validation_data=TEXTS[:3], verbose=0).history
        found |= {f"{name}, {log}": history[log][0] for log in ("loss", "val_loss")}
    return found


def order(mesh):
    """What is said of what was made before the distribution, and of what it cannot cut."""
    x = make_inputs((20, 13, 1, 7), (16, 9, 1, 4))
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    early = EncDecSeq2SeqLM(tiny_backbone(pair()))
    early.compile()
    optimizer = keras.optimizers.AdamW()
    with distribution(mesh, pair()).scope():
        lm = EncDecSeq2SeqLM(tiny_backbone(pair()))
        lm.compile(optimizer=optimizer)
        whole = EncDecSeq2SeqLM(tiny_backbone(pair()))
        found = {
            "model, fit": said(early.fit, x, y),
            "model, generate": said(early.generate, x, 20),
            "optimizer": said(lm.fit, x, y),
            "int4": said(whole.quantize, "int4"),
        }
        whole.generate(x, 20, stop_token_ids=None)  # nothing of it was quantised
    return found


def said(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def teacher(meshes):
    """By mesh: whether a teacher trains alike, and its bytes on a device beside those of all."""
    spec = pair(vocabulary_size=4096)
    (expected, _), found = asked(spec), {}
    for mesh in meshes:
        with distribution(mesh, spec).scope():
            loss, lm = asked(spec)
            weights = [v.value for v in lm._distillation.teacher.backbone.weights]
        share = sum(map(shard_bytes, weights)) / sum(w.nbytes for w in weights)
        found[str(mesh)] = [abs(loss - expected), share]
    return found


def asked(spec):
    """The loss of an epoch with a teacher that is asked, and the task."""
    keras.utils.set_random_seed(0)
    teacher = keras_hub.models.CausalLM.from_preset(EMBEDDED)
    tokenizer = teacher.preprocessor.tokenizer
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20)
    lm = EncDecSeq2SeqLM(tiny_backbone(spec), preprocessor)
    lm.compile(distillation=keras_encdec.training.Distillation(teacher))
    return lm.fit(TEXTS, batch_size=8, verbose=0).history["loss"][0], lm


COMMANDS = (step, program, loss, fit, fit_others, scanned, gathered, write, load, held, hosts)
COMMANDS += (read, uneven, order, teacher, classify, prefer, judge, reward)
COMMANDS = {f.__name__: f for f in COMMANDS}

if __name__ == "__main__":
    calls = json.loads(sys.argv[1])
    print(json.dumps({name: COMMANDS[name](*arguments) for name, arguments in calls.items()}))
