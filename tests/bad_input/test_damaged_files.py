"""Presets that were damaged, mixed up or made to attack: each is refused, and no code is run."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from qwen_folder import write_qwen
from reference_folder import write_folder

import keras_encdec
from keras_encdec.data import Teacher, Tokens, batches, tokenize, write_teacher
from keras_encdec.testing.models import tiny_backbone

JSON = ("config.json", "task.json", "preprocessor.json", "tokenizer.json")
ASSET = "assets/tokenizer/vocabulary.spm"
WEIGHTS = "model.weights.h5"
OF_A_PAIR = (*JSON, WEIGHTS, ASSET)
RELEASED = ("config.json", "model.safetensors", "tokenizer.model")


class Payload:
    def __reduce__(self):
        return (os.system, (f"touch {MARK}",))


MARK = "/tmp/keras_encdec_was_attacked"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def zeroed(path):
    """As a disk leaves it that lost a block."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = bytes(4096)
    path.write_bytes(data)


def emptied(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pickle(path):
    path.write_bytes(pickle.dumps(Payload()))


def of_latin_1(path):
    path.write_bytes(b'{"a": "\xe9"}')


def a_list(path):
    path.write_text("[]")


ABSENT = object()


def edited(**changes):
    """Fields of a JSON file, by `__` for what is inside."""

    def change(path):
        data = json.loads(path.read_text())
        for name, value in changes.items():
            inner, (*outer, last) = data, [int(p) if p.isdigit() else p for p in name.split("__")]
            for part in outer:
                inner = inner[part]
            inner[last] = value
            if value is ABSENT:
                del inner[last]
        path.write_text(json.dumps(data))

    shown = {name: "absent" if value is ABSENT else value for name, value in changes.items()}
    change.__name__ = ",".join(f"{name}={value!r}" for name, value in shown.items())
    return change


DAMAGES = (cut, emptied, gone, a_folder, a_pickle)
PAIR = [(name, damage) for name in OF_A_PAIR for damage in DAMAGES]
PAIR.remove(("task.json", gone))  # then it is a backbone's preset
PAIR += [(name, damage) for name in JSON for damage in (of_latin_1, a_list)]
PAIR += [(WEIGHTS, flipped), (ASSET, flipped)]
PAIR += [
    ("config.json", edited(registered_name="os>system")),
    ("config.json", edited(class_name="system", module="os")),
    ("config.json", edited(config__brand_new=7)),
    ("config.json", edited(config__encoder__brand_new=7)),
    ("config.json", edited(config__encoder__width=-1)),
    ("config.json", edited(config__encoder__width=52)),
    ("config.json", edited(config__decoder__windows=[1.5])),
    ("config.json", edited(config__tied_embeddings="no")),
    ("config.json", edited(config__encoder=None)),
    ("task.json", edited(registered_name="os>system")),
    ("preprocessor.json", edited(config__encoder_sequence_length=0)),
    ("preprocessor.json", edited(config__objective={"class": "system"})),
    ("preprocessor.json", edited(config__chat="no")),
]
RELEASE = [(name, damage) for name in RELEASED for damage in (*DAMAGES[:2], *DAMAGES[3:])]
RELEASE += [(name, gone) for name in RELEASED[:2]]
RELEASE += [
    ("config.json", edited(model_type="t5gemma9")),
    ("config.json", edited(brand_new=7)),
    ("config.json", edited(encoder__brand_new=7)),
    ("config.json", edited(encoder__hidden_size=64)),
    ("config.json", edited(encoder__num_attention_heads=0)),
    ("config.json", edited(decoder__attn_logit_softcapping=-1)),
]
SECOND_RELEASE = [("model.safetensors", damage) for damage in (cut, emptied, gone)]
SECOND_RELEASE += [
    ("config.json", damage)
    for damage in (
        edited(brand_new=7),
        edited(encoder__brand_new=7),
        edited(encoder__text_config__brand_new=7),
        edited(decoder__brand_new=7),
        edited(decoder__rope_parameters__full_attention__brand_new=7),
        edited(decoder__use_bidirectional_attention=True),
        edited(decoder__layer_types=["chunked_attention"] * 4),
        edited(decoder__layer_types=[]),
        edited(decoder__layer_types=3),
        edited(decoder__num_hidden_layers=1.5),
        edited(decoder__rope_parameters="linear"),
        edited(decoder__rope_parameters__full_attention=ABSENT),
        edited(decoder__attn_logit_softcapping=-1),
        edited(decoder__hidden_size=52),
        edited(decoder=None),
        edited(decoder=ABSENT),
        edited(encoder=ABSENT),
        edited(encoder__text_config=[]),
        edited(attention_dropout=0.1),
        edited(dropout_rate="no"),
        edited(tie_word_embeddings=False),
        edited(encoder__tie_word_embeddings=False),
        edited(is_encoder_decoder=False),
        edited(model_type=["t5gemma2"]),
        edited(model_type=None),
    )
]
SOURCE = [
    (name, damage)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for damage in (cut, emptied, a_pickle, a_list, of_latin_1)
]
SOURCE += [
    ("config.json", edited(brand_new=7)),
    ("config.json", edited(model_type="gpt9")),
    ("config.json", edited(num_hidden_layers="two")),
    ("tokenizer.json", a_folder),
    ("tokenizer.json", edited(model=ABSENT)),
    ("tokenizer.json", edited(model__type="Nobody")),
    ("tokenizer.json", edited(model__vocab={})),
    ("tokenizer.json", edited(model__vocab={"a": -1})),
    ("tokenizer.json", edited(model__merges=[["no", "where"]])),
    ("tokenizer.json", edited(added_tokens=3)),
    ("tokenizer_config.json", edited(eos_token=ABSENT)),
    ("tokenizer_config.json", edited(eos_token="<nowhere>")),
    ("tokenizer_config.json", edited(eos_token=5)),
    ("tokenizer_config.json", edited(eos_token={})),
    ("tokenizer_config.json", edited(bos_token=["<|im_start|>"])),
]


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    parent = tmp_path_factory.mktemp("whole")
    world.lm.save_to_preset(parent / "pair")
    world.lm.export_to_transformers(parent / "release")
    write_folder(parent / "second_release", "t5gemma2")
    (parent / "source").mkdir()
    write_qwen(parent / "source")
    tokens = tokenize(world.texts, world.tokenizer, parent / "tokens")
    write_teacher(parent / "rows", world.teacher, tokens, world.pre, k=3)
    tiny_lora().save_lora_weights(parent / "run.lora.h5")
    return parent


def tiny_lora():
    backbone = tiny_backbone()
    backbone.enable_lora(2)
    return backbone


def ids(cases):
    return [f"{name}-{damage.__name__}" for name, damage in cases]


def refused(folder):
    """That it is, in words that say which file or folder, and what to do."""
    with pytest.raises(ValueError, match=r"(?s)Expected .*Received: ") as error:
        keras_encdec.from_preset(str(folder))
    message = str(error.value)
    assert len(message) < 2000
    assert "{{function_node" not in message
    assert not os.path.exists(MARK)
    return message


@pytest.mark.parametrize(("name", "damage"), PAIR, ids=ids(PAIR))
def test_a_damaged_pair_is_refused(folders, tmp_path, name, damage):
    shutil.copytree(folders / "pair", tmp_path / "pair")
    damage(tmp_path / "pair" / name)
    refused(tmp_path / "pair")


@pytest.mark.parametrize(("name", "damage"), RELEASE, ids=ids(RELEASE))
def test_a_damaged_release_is_refused(folders, tmp_path, name, damage):
    shutil.copytree(folders / "release", tmp_path / "release")
    damage(tmp_path / "release" / name)
    refused(tmp_path / "release")


@pytest.mark.parametrize(("name", "damage"), SECOND_RELEASE, ids=ids(SECOND_RELEASE))
def test_a_damaged_second_release_is_refused(folders, tmp_path, name, damage):
    shutil.copytree(folders / "second_release", tmp_path / "release")
    damage(tmp_path / "release" / name)
    message = refused(tmp_path / "release")
    assert "brand_new" in message or "brand_new" not in damage.__name__


@pytest.mark.parametrize(("name", "damage"), SOURCE, ids=ids(SOURCE))
def test_a_damaged_source_is_refused(folders, tmp_path, name, damage):
    shutil.copytree(folders / "source", tmp_path / "source")
    damage(tmp_path / "source" / name)
    refused(tmp_path / "source")


def test_whole_ones_load(folders):
    for name in ("pair", "release", "second_release", "source"):
        keras_encdec.from_preset(str(folders / name))


@pytest.mark.parametrize("damage", [*DAMAGES, flipped, of_latin_1, zeroed])
def test_a_damaged_file_of_lora_is_refused(folders, tmp_path, damage):
    path = tmp_path / "run.lora.h5"
    shutil.copy(folders / path.name, path)
    damage(path)
    backbone = tiny_lora()
    before = [np.array(v) for v in backbone.weights]
    with pytest.raises(ValueError, match=r"Expected .*Received: .*run\.lora\.h5"):
        backbone.load_lora_weights(path)
    for variable, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


@pytest.mark.parametrize("damage", [cut, emptied, gone, a_pickle, flipped, a_folder])
def test_damaged_tokens_are_refused(folders, tmp_path, damage):
    shutil.copytree(folders / "tokens", tmp_path / "tokens")
    damage(tmp_path / "tokens" / "00000.tokens.npy")
    with pytest.raises(ValueError, match=r"00000\.tokens\.npy"):
        Tokens.load(tmp_path / "tokens")[:]


FIELDS = ("kind", "about", "shards", "finished")
WITHOUT = [edited(**{name: ABSENT}) for name in FIELDS]
OTHERS = [edited(**{name: value}) for name in FIELDS for value in (None, 3, "text", [3])]
OTHERS += [edited(shards=[{}]), edited(shards=[{"files": 3}]), edited(shards__0__files={})]
OTHERS += [edited(shards__0__files=ABSENT), edited(shards__0__facts=ABSENT)]
OTHERS += [edited(about={}), edited(finished={}), edited(finished__skipped=3)]
OF_TEACHERS = [edited(about={}), edited(about__end="x"), edited(shards__0__facts={})]
OF_TEACHERS += [edited(shards__0__files__ids={}), edited(shards__0__files__ends=ABSENT)]


INDEX = [cut, emptied, a_pickle, a_list, of_latin_1, *WITHOUT]


def named(damage):
    return damage.__name__


@pytest.mark.parametrize("damage", [*INDEX, *OTHERS], ids=named)
def test_a_damaged_index_is_refused(folders, tmp_path, damage):
    shutil.copytree(folders / "tokens", tmp_path / "tokens")
    damage(tmp_path / "tokens" / "shards.json")
    with pytest.raises(ValueError, match=r"Expected .*tokens"):
        Tokens.load(tmp_path / "tokens")[:]


@pytest.mark.parametrize("damage", [*INDEX, *OF_TEACHERS], ids=named)
def test_so_is_one_of_teacher_rows(folders, world, tmp_path, damage):
    shutil.copytree(folders / "rows", tmp_path / "rows")
    damage(tmp_path / "rows" / "shards.json")
    tokens = Tokens.load(folders / "tokens")
    with pytest.raises(ValueError, match=r"Expected .*rows"):
        batches(tokens, world.pre, 1, teacher=Teacher(tmp_path / "rows"))[0]


@pytest.mark.parametrize("damage", INDEX, ids=named)
def test_and_nobody_goes_on_with_it(folders, world, tmp_path, damage):
    shutil.copytree(folders / "tokens", tmp_path / "tokens")
    damage(tmp_path / "tokens" / "shards.json")
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    if damage.__name__.startswith("finished"):
        tokenize(world.texts, world.tokenizer, tmp_path / "tokens")  # as one that is not
        return
    with pytest.raises(ValueError, match=r"Expected .*tokens"):
        tokenize(world.texts, world.tokenizer, tmp_path / "tokens")
    assert {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()} == before
