"""What README shows runs: its code blocks, at the size of the embedded models."""

import ast
import os
import re
from pathlib import Path

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.sharing import catalog

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
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
    text = "Returns the sum of two arrays, element by element, as a new array."
    names = {
        "texts": [text] * 4,
        "documents": [text] * 10,
        "summaries": ["Adds arrays."] * 10,
        "answers": ["no", "yes"] * 2,
        "others": ["Opens a file."] * 10,
        "conversations": [
            [{"role": "user", "content": text}, {"role": "assistant", "content": "Adds."}]
        ],
        "prompts": [text] * 4,
        "better": ["Adds arrays."] * 4,
        "worse": ["Opens a file."] * 4,
    }
    sizes = {
        "gemma2_2b_2b": "gemma2_tiny_tiny",
        "gemma2_9b_en": str(catalog.embedded("gemma2_tiny_docs")),
        "gemma2_2b_en": "gemma2_mini_docs",
        "hf://google/t5gemma-2b-2b-ul2": str(released),
    }
    return names, sizes


@pytest.mark.slow
def test_every_block_runs(world, tmp_path, monkeypatch):
    names, sizes = world
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", os.environ["KERAS_BACKEND"])
    for block in BLOCKS:
        for large, small in sizes.items():
            assert any(f'"{large}"' in block for block in BLOCKS), large
            block = block.replace(f'"{large}"', f'"{small}"')
        for statement in ast.parse(block).body:
            line = ast.unparse(statement)
            exec(line, names)
            if line.startswith("lm = "):
                exec(PREPARE, names)
    loaded = keras_hub.models.Seq2SeqLM.from_preset("./my_model")
    assert type(loaded) is keras_encdec.models.EncDecSeq2SeqLM
    assert (tmp_path / "hf_model" / "config.json").exists()


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert sum(link.startswith("guides/") for link in links) >= 8
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_every_guide_is_linked():
    for guide in (ROOT / "guides").glob("*.py"):
        assert f"(guides/{guide.name})" in README, guide.name


def test_the_picture_is_small():
    assert 1000 < (ROOT / "guides" / "demo.png").stat().st_size < 60_000


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
