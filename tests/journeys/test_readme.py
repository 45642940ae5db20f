"""What README shows runs: its code blocks, at the size of the embedded models."""

import ast
import json
import re
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from qwen_folder import write_qwen

import keras_encdec
from keras_encdec.sharing import catalog

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PREPARE = """
for length in ("encoder_sequence_length", "decoder_sequence_length"):
    setattr(lm.preprocessor, length, 16)
lm.compile(sampler="greedy")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    released = tmp_path_factory.mktemp("released") / "t5gemma"
    keras_encdec.from_preset("gemma2_tiny_mini").export_to_transformers(released)
    qwen = write_qwen(tmp_path_factory.mktemp("qwen"))
    text = "Returns the sum of two arrays, element by element, as a new array."
    names = {
        "step": 1,
        "texts": [text] * 4,
        "held_out": [text] * 2,
        "documents": [text] * 4,
        "summaries": ["Adds arrays."] * 4,
    }
    sizes = {
        "gemma2_2b_2b": "gemma2_tiny_tiny",
        "gemma2_9b_2b": "gemma2_tiny_mini",
        "gemma2_9b_en": str(catalog.embedded("gemma2_tiny_docs")),
        "gemma2_2b_en": "gemma2_mini_docs",
        "hf://google/t5gemma-2b-2b-ul2": str(released),
        "qwen3_0.6b_en": str(catalog.embedded("gemma2_mini_docs")),
        "hf://HuggingFaceTB/SmolLM2-135M": str(qwen),
        "hf://Qwen/Qwen2.5-0.5B": str(qwen),
    }
    return names, sizes


@pytest.fixture
def no_distribution():
    yield
    keras.distribution.set_distribution(None)


@pytest.mark.slow
def test_every_block_runs(world, tmp_path, monkeypatch, no_distribution):
    names, sizes = world
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in names["texts"]]
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines))
    for block in BLOCKS:
        for large, small in sizes.items():
            block = block.replace(f'"{large}"', f'"{small}"').replace("(8, 1)", "(1, 1)")
        for statement in ast.parse(block).body:
            line = ast.unparse(statement)
            exec(line, names)
            if line.startswith("lm = "):
                exec(PREPARE, names)
    assert (tmp_path / "outputs.jsonl").read_text().count("\n") == len(names["texts"])
    assert [len(beams) for beams in names["best"]] == [4] * len(names["texts"])
    assert set(names["y"]) == {"labels", "teacher_ids", "teacher_log_probs"}
    assert names["states"].shape[-1] == names["lm"].backbone.spec.encoder.width
    loaded = keras_hub.models.Seq2SeqLM.from_preset("./my_model")
    assert type(loaded) is keras_encdec.models.EncDecSeq2SeqLM


def test_the_table_of_pairs_names_every_recipe():
    table = README.split("## Pairs")[1].split("##")[0]
    for name in keras_encdec.presets:
        assert f"`{name.removesuffix('_paper')}`" in table


def test_the_map_names_every_room():
    rooms = {path.name for path in (Path(keras_encdec.__file__).parent).iterdir()}
    for room in rooms - {"__pycache__", "_presets"}:
        assert f"  {room}" in README, room


def test_embedded_models_fit_in_the_wheel():
    files = [p for p in (catalog.folder() / "models").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 20e6
    assert (
        catalog.known_spec("gemma2_mini_docs").width < catalog.known_spec("gemma2_tiny_docs").width
    )


def test_special_ids_of_the_embedded_tokenizer():
    # deepmind/gemma, gm/text/_tokenizer.py
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    expected = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    expected |= {f"<unused{i}>": 7 + i for i in range(99)}
    expected |= {"<start_of_turn>": 106, "<end_of_turn>": 107}
    assert {piece: tokenizer.token_to_id(piece) for piece in expected} == expected


@pytest.mark.slow
def test_generation_depends_on_the_input():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    x = lm.preprocessor(
        {"encoder_text": ["Sum of arrays.", "Open a file."], "decoder_text": ["a", "a"]}
    )[0]
    logits = np.asarray(lm(x))
    assert np.abs(logits[0, 0] - logits[1, 0]).max() > 1e-3
