"""What people do with a model, in one of two processes of four devices; prints a line of JSON.

    python run_hosts.py '["folder", "data", 0, 12345]'

The arguments: a folder that both processes see, the mesh, the number of this process and the
port where the first one listens; without a port there is one process. `test_hosts.py` sets the
environment and says what the answers should be.
"""

import contextlib
import json
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
from run_distributed import distribution, pair, weights_of

import keras_encdec
from keras_encdec.generation import BeamSearch
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import tiny_backbone

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 3) for i in range(11)]
INPUTS = [f"Returns the sum of {i} numbers of a row." for i in range(11)]
TARGETS = [f"The sum of {i}." for i in range(11)]
SPEC = pair(vocabulary_size=4096)


def main(folder, mesh, index, port):
    scope, folder = contextlib.nullcontext(), Path(folder)
    if port is not None:
        keras.distribution.initialize(f"localhost:{port}", 2, index)
        scope = distribution(mesh, SPEC, auto_shard_dataset=False).scope()
    with scope:
        found = {"train": train(), "checkpoint": checkpoint(folder / "run")}
        lm = make()
        found |= {"write": write(lm, folder), "files": files(lm, folder)}
        found["errors"] = errors(lm, folder, index)
    return found


def make(packing=False):
    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20, packing=packing)
    lm = EncDecSeq2SeqLM(tiny_backbone(SPEC), preprocessor)
    lm.compile(sampler="greedy")
    return lm


def train():
    """Losses, and the norm of all weights, by what was trained on."""
    found = {}
    for name, packing, given in (
        ("pairs", False, {"x": INPUTS, "y": TARGETS, "batch_size": 8}),
        ("pairs packed, in one batch", True, {"x": INPUTS, "y": TARGETS}),
        ("texts packed", True, {"x": TEXTS, "batch_size": 8}),
    ):
        lm = make(packing)
        held = {"encoder_text": INPUTS[:3], "decoder_text": TARGETS[:3]}
        history = lm.fit(**given, validation_data=held, verbose=0).history
        history["evaluate"] = lm.evaluate(INPUTS[:5], TARGETS[:5], verbose=0)
        history["norm"] = float(np.sqrt(sum((v**2).sum() for v in weights_of(lm).values())))
        history.pop("tokens_per_second", None)
        found[name] = history
    return found


def checkpoint(folder):
    """Losses of a run whose second epoch is another call."""
    found = []
    for epochs in (1, 2):
        lm = make()
        saved = keras_encdec.training.Checkpoint(folder)
        history = lm.fit(INPUTS, TARGETS, batch_size=8, epochs=epochs, callbacks=[saved], verbose=0)
        found += history.history["loss"]
    return found


def write(lm, folder):
    """What is generated and scored, in every way there is."""
    scores = lm.score({"encoder_text": INPUTS, "decoder_text": TARGETS}, batch_size=4)
    found = {
        "text": lm.generate(INPUTS[:3], 18, None),
        "stream": "".join(lm.generate_stream(INPUTS[0], 18, None)),
        "samples": lm.generate(INPUTS[:2], 18, None, num_samples=3),
        "scores": scores.total.tolist(),
        "job": lm.generate(INPUTS, 18, None, batch_size=4, path=folder / "outputs.jsonl"),
    }
    lm.compile(sampler=BeamSearch(3))
    found["beams"] = lm.generate(INPUTS[:3], 18, None, return_scores=True)
    lm.compile(sampler=keras_hub.samplers.RandomSampler(seed=1))
    found["drawn"] = lm.generate(INPUTS[:3], 18, None)
    found["seeded"] = lm.generate(INPUTS[:3], 18, None, seed=3)
    return found


def files(lm, folder):
    """Which files were written, and whether a preset comes back as it was."""
    lm.save_to_preset(folder / "preset")
    lm.save_to_preset(folder / "preset")
    again = keras_encdec.from_preset(str(folder / "preset"))
    before, after = weights_of(lm), weights_of(again)
    adapted = make()
    adapted.backbone.enable_lora(2)
    adapted.backbone.save_lora_weights(folder / "adapter.lora.h5")
    with contextlib.suppress(ValueError):  # of what the layout cannot hold
        lm.export_to_transformers(folder / "exported")
    every = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    names = sorted(str(path) for path in every if path.parts[0] not in ("run", "thesis"))
    return {"same": all((after[k] == v).all() for k, v in before.items()), "names": names}


def errors(lm, folder, index):
    """What is said where processes differ, or one cannot write."""
    (folder / "thesis").mkdir(exist_ok=True)
    (folder / "thesis" / "thesis.tex").touch()
    calls = {
        "foreign": lambda: lm.save_to_preset(folder / "thesis"),
        "job": lambda: lm.generate(INPUTS, 18, batch_size=4, path=folder / "outputs.jsonl"),
        "texts": lambda: lm.fit(TEXTS[: 5 + index], verbose=0),
        "batch": lambda: lm.evaluate(INPUTS, TARGETS, batch_size=8 + 8 * index, verbose=0),
        "prompts": lambda: lm.generate(INPUTS[: 2 + index], 18),
        "options": lambda: lm.generate(INPUTS[0], 18 + index),
        "predict": lambda: lm.predict(TEXTS, verbose=0),
        "score": lambda: lm.score(
            {"encoder_text": INPUTS, "decoder_text": TARGETS[:: 1 - 2 * index]}
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*json.loads(sys.argv[1]))))
