"""Images beside texts: which tokens stand for them, what their pixels become, what is refused."""

import functools

import keras
import numpy as np
import pytest

from keras_encdec.data import as_source, facts
from keras_encdec.data.batching import Batching, batch_source
from keras_encdec.data.labelled import as_labelled
from keras_encdec.data.preferred import as_preferred
from keras_encdec.data.prompted import as_prompted
from keras_encdec.data.prompts import Prompts, prompts_of
from keras_encdec.data.ranked import as_ranked
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives.images import ImageTokens
from keras_encdec.sharing.load import tokenizer_alone
from keras_encdec.spec import VisionSpec

BEGIN, IMAGE, END = 4096, 4097, 4098
VISION = VisionSpec(8, 2, 8, 12, 1, 2, 4, BEGIN, IMAGE, END)
SEEN = [BEGIN, IMAGE, IMAGE, IMAGE, IMAGE, END]
RED = np.zeros((5, 9, 3), "uint8") + np.array([255, 0, 0], "uint8")
BLUE = np.zeros((8, 8, 3), "float32") + np.array([0, 0, 1], "float32")


@functools.cache
def preprocessor(**options):
    return EncDecSeq2SeqLMPreprocessor(tokenizer_alone("gemma2_tiny_docs"), 32, 8, **options)


def reads_images():
    return preprocessor(vision=VISION)


def ids(text):
    return [int(i) for i in preprocessor().tokenizer(text)]


def read(x):
    """What the encoder reads of each prompt, and its images."""
    inputs = reads_images().generate_preprocess(x)
    rows = zip(inputs["encoder_token_ids"], inputs["encoder_padding_mask"], strict=True)
    return [row[mask > 0].tolist() for row, mask in rows], inputs.get("images")


def test_an_image_stands_where_its_place_is_kept_or_in_front():
    front, image = read({"images": RED, "text": "Which?"})
    assert front == [ids("\n\n") + SEEN + ids("\n\nWhich?")]
    np.testing.assert_array_equal(image, np.broadcast_to([1.0, -1, -1], (1, 1, 8, 8, 3)))
    text = "<start_of_image> or <start_of_image>?"
    both, images = read({"images": [RED, BLUE], "text": text})
    assert both == [ids("\n\n") + SEEN + ids("\n\n or \n\n") + SEEN + ids("\n\n?")]
    assert images[0, :, 3, 3].tolist() == [[1, -1, -1], [-1, -1, 1]]


def test_rows_have_the_images_of_their_texts():
    rows, images = read({"images": [None, [BLUE, RED], RED], "text": ["a", "b", "c"]})
    assert rows[0] == ids("a")
    assert [row.count(IMAGE) for row in rows] == [0, 8, 4]
    assert images.shape == (3, 2, 8, 8, 3)
    assert not images[0].any()
    assert not images[2, 1].any()
    assert images[1, 1, 0, 0].tolist() == images[2, 0, 0, 0].tolist() == [1, -1, -1]
    texts, none = read({"text": ["a <start_of_image>"]})  # as without a part for images
    blind = preprocessor().generate_preprocess("a <start_of_image>")["encoder_token_ids"]
    assert texts[0] == blind[0, : len(texts[0])].tolist()
    assert none is None


@pytest.mark.parametrize("shape", [(20, 13, 3), (3, 50, 3), (8, 8, 3)])
def test_pixels_are_resized_as_by_others(shape):
    """Keras' bilinear with antialiasing, which the processors have; pixels stay whole numbers."""
    image = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    (found,) = ImageTokens.of(VISION).pixels([[image]])[0]
    kwargs = {"antialias": True, "data_format": "channels_last"}
    theirs = keras.ops.image.resize(image.astype("float32"), (8, 8), **kwargs)
    theirs = np.rint(keras.ops.convert_to_numpy(theirs))
    assert np.abs((found + 1) * 127.5 - theirs).max() <= 1.001  # a half may go either way
    assert np.mean(np.abs((found + 1) * 127.5 - theirs) > 0.01) < 0.02
    (again,) = ImageTokens.of(VISION).pixels([[image / 255]])[0]
    assert np.abs(again - found).max() < 1.01 / 255


PAIRS = {"images": [RED, BLUE, RED], "inputs": ["a", "b", "c"], "targets": ["x", "y", "z"]}


def batches(data, **options):
    batching = Batching(2, shuffle=False, **options)
    return list(batch_source(as_source(data), reads_images().converter, batching).read(0))


def test_pairs_of_any_form_have_images():
    first, second = batches(PAIRS)
    assert first[0]["images"].shape == second[0]["images"].shape == (2, 1, 8, 8, 3)
    assert not second[0]["images"][1].any()  # a row that fills the batch up
    assert second[2][1].sum() == 0
    rows = [dict(zip(PAIRS, row, strict=True)) for row in zip(*PAIRS.values(), strict=True)]
    alone = {"images": PAIRS["images"], "encoder_text": PAIRS["inputs"]}
    for data in (rows, iter(rows)):
        for ours, theirs in zip(batches(PAIRS), batches(data), strict=True):
            keras.tree.map_structure(np.testing.assert_array_equal, ours, theirs)
    (x, y, _), (again, labels, _) = reads_images()(PAIRS), reads_images()(alone, PAIRS["targets"])
    np.testing.assert_array_equal(x["images"], again["images"])
    np.testing.assert_array_equal(y, labels)
    other = {**PAIRS, "images": [BLUE, BLUE, RED]}
    assert facts.digest(as_source(PAIRS)) != facts.digest(as_source(other))


def test_a_job_knows_prompts_by_their_images():
    def known(images):
        source = as_source({"images": images, "text": ["a", "b"]})
        converter = reads_images().converter
        return Prompts.of_ids(
            prompts_of(source, converter)[0], converter, images=source.images
        ).ids()

    assert known([RED, BLUE]) == known([RED, BLUE]) != known([BLUE, RED])
    assert known([RED, BLUE]) != known([RED.swapaxes(0, 1), BLUE])  # the same bytes


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"images": RED[..., :2], "text": "a"}, r"shape \(height, width, 3\).*\(5, 9, 2\)"),
        ({"images": np.moveaxis(RED, -1, 0), "text": "a"}, r"\(3, 5, 9\).*Channels come last"),
        ({"images": RED > 0, "text": "a"}, r"numbers. Received: bool"),
        ({"images": BLUE * 255, "text": "a"}, r"floats from 0 to 1.*to 255"),
        ({"images": BLUE * np.nan, "text": "a"}, r"floats from 0 to 1"),
        ({"images": [None, BLUE + 1], "text": ["a", "b"]}, r"floats from 0 to 1.*2.0 in row 1"),
        ({"images": [RED], "text": ["a", "b"]}, r"images for each of 2 texts.*Received: 1"),
        ({"images": "a.png", "text": ["a", "b"]}, r"images for each of 2 texts.*Received: 1"),
        ({"images": RED, "image": RED, "text": "a"}, r"one column images.*\['images', 'image'\]"),
        ({"pixel_values": RED, "text": "a"}, r"images as they are.*\['pixel_values'\]"),
        ({"prompts": "a", "images": RED}, r"KerasHub's prompts and responses are"),
        ({"images": [RED, [RED]], "text": ["a", "<start_of_image> <start_of_image>"]},
         r"as many images as <start_of_image>.*1 images, and 2 in"),
        ({"images": [[]], "text": ["<start_of_image>"]}, r"0 images, and 1 in"),
        ({"images": [RED] * 5, "text": "a"}, r"encoder_sequence_length of at least 3\d"),
        ({"images": RED}, r"Expected columns encoder_text"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_read_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        reads_images().generate_preprocess(x)


def test_what_images_do_not_go_with_is_refused_by_name():
    x = {"images": RED, "text": "a"}
    with pytest.raises(ValueError, match="Expected texts without images"):
        preprocessor().generate_preprocess(x)
    with pytest.raises(ValueError, match=r"preprocessor\.packing = False with images"):
        preprocessor(vision=VISION, packing=True)({**PAIRS})
    with pytest.raises(ValueError, match=r"Expected pairs: .*decoder_text"):
        reads_images()(x)
    columns = {"text": ["a"], "label": [1], "images": [RED]}
    for data in (columns, [{"text": "a", "label": 1, "images": RED}]):
        with pytest.raises(ValueError, match="Expected texts alone"):
            as_labelled(data)
    for make, name in ((as_prompted, "prompt"), (as_ranked, "document")):
        with pytest.raises(ValueError, match="Expected texts alone"):
            make({name: ["a"], "query": ["b"], "images": [RED]})
    with pytest.raises(ValueError, match="Expected texts alone"):
        as_ranked({"query": ["a"], "positive": ["b"], "images": [RED]})
    compared = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    with pytest.raises(ValueError, match="Expected texts alone"):
        as_preferred({**compared, "image": [RED]})
    image = [{"role": "user", "content": [{"type": "image", "image": RED}]}]
    with pytest.raises(ValueError, match="Expected texts alone"):
        as_preferred({**compared, "prompt": [image]})
    with pytest.raises(ValueError, match="Expected messages as"):
        as_prompted({"prompt": [image]}).tokens(reads_images().converter)


def test_the_preprocessor_comes_back():
    config = reads_images().get_config()
    again = EncDecSeq2SeqLMPreprocessor.from_config(config)
    assert again.vision == VISION
    assert EncDecSeq2SeqLMPreprocessor.from_config({**config, "vision": None}).vision is None
