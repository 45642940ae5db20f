"""A tokenizer's chat template on its way: from a folder, through presets, into exports."""

import json
import shutil

import pytest
from chat_templates import CHATML, GEMMA
from qwen_folder import write_qwen

import keras_encdec
from keras_encdec.sharing.tokenizers import chat_template_of_files

QUESTION = [{"role": "user", "content": "Sum?"}]
TALKS = {"messages": [[*QUESTION, {"role": "assistant", "content": "Of all."}]]}


def with_template(folder, template, name="tokenizer_config.json"):
    """The folder with a template in one of its files."""
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, "chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return with_template(write_qwen(tmp_path_factory.mktemp("qwen")), CHATML)


def short(lm):
    lm.preprocessor.encoder_sequence_length, lm.preprocessor.decoder_sequence_length = 96, 8
    return lm


@pytest.mark.slow
def test_a_preset_keeps_it(qwen, tmp_path):
    """And what chats and learns goes on as before."""
    lm = short(keras_encdec.adapt(str(qwen)))
    lm.save_to_preset(tmp_path / "preset")
    again = short(keras_encdec.from_preset(tmp_path / "preset"))
    assert again.preprocessor.chat_template == CHATML
    for one in (lm, again):
        one.compile(sampler="greedy")
    assert again.chat(QUESTION, max_length=4) == lm.chat(QUESTION, max_length=4)
    losses = [one.fit(TALKS, verbose=0).history["loss"] for one in (lm, again)]
    assert losses[0] == losses[1]


def test_a_folder_brings_its_template(qwen):
    """With the system turn that it adds; None goes back to the format of the pieces."""
    preprocessor = keras_encdec.from_preset(str(qwen)).preprocessor
    assert preprocessor.chat_template == CHATML
    ids, _ = preprocessor.converter.of_chat(QUESTION)
    read = preprocessor.tokenizer.detokenize(ids)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert read.startswith(system)
    preprocessor.chat_template = None
    bare = preprocessor.tokenizer.detokenize(preprocessor.converter.of_chat(QUESTION)[0])
    assert read == system + bare
    assert keras_encdec.from_preset(str(qwen), preprocessor=None).preprocessor is None


def test_two_models_of_one_vocabulary(qwen, tmp_path):
    """The encoder's template, or that of the other where it has none."""
    bare = tmp_path / "bare"
    shutil.copytree(qwen, bare)
    with_template(bare, None)
    for pair in ([qwen, bare], [bare, qwen]):
        assert keras_encdec.adapt(*map(str, pair)).preprocessor.chat_template == CHATML
    assert keras_encdec.adapt(str(bare)).preprocessor.chat_template is None


def test_where_templates_lie(tmp_path):
    folder = str(tmp_path)
    assert chat_template_of_files(folder) is None
    with_template(tmp_path, "{{ 'processor' }}", "chat_template.json")
    assert chat_template_of_files(folder) == "{{ 'processor' }}"
    named = [{"name": n, "template": n} for n in ("tool_use", "default")]
    with_template(tmp_path, named)
    assert chat_template_of_files(folder) == "default"
    with_template(tmp_path, named[:1])
    with pytest.raises(ValueError, match=r"named default.*Received: \['tool_use'\]"):
        chat_template_of_files(folder)
    with_template(tmp_path, ["default"])
    with pytest.raises(ValueError, match="Expected a whole chat template"):
        chat_template_of_files(folder)
    with_template(tmp_path, 3)
    with pytest.raises(ValueError, match=r"text \(str\) in chat_template of tokenizer_config"):
        chat_template_of_files(folder)
    (tmp_path / "chat_template.jinja").write_text("é\n")
    assert chat_template_of_files(folder) == "é\n"


@pytest.mark.transformers
def test_an_export_takes_it_along(tmp_path):
    transformers = pytest.importorskip("transformers")
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.preprocessor.chat_template = GEMMA
    lm.export_to_transformers(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = theirs.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert lm.preprocessor.converter.of_chat(QUESTION)[0] == expected
    again = keras_encdec.from_preset(tmp_path / "out")
    assert again.preprocessor.chat_template == GEMMA
    theirs.save_pretrained(tmp_path / "out")  # which moves it to a file of its own
    assert chat_template_of_files(str(tmp_path / "out")) == GEMMA
    lm.export_to_transformers(tmp_path / "out")
