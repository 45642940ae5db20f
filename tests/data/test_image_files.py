"""What an image may be: arrays, pictures and files become transformers' pixels."""

import io

import keras
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from test_images_in_texts import BLUE, PAIRS, RED, batches, read, reads_images

from keras_encdec.data import as_source

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 7, 3)).astype("uint8")
GREY = COLOUR[..., 0]
CLEAR = np.concatenate([COLOUR, GREY[..., None]], axis=2)  # with an alpha channel


def pixels(image):
    """What an image becomes, before it is resized."""
    return np.asarray(as_source({"images": image, "text": "a"}).images[0][0])


def saved(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def convert_to_rgb():
    return pytest.importorskip("transformers.image_transforms").convert_to_rgb


@pytest.mark.transformers
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_pictures_become_those_of_transformers(mode, convert_to_rgb):
    picture = PIL.Image.fromarray(CLEAR).convert(mode)
    theirs = convert_to_rgb(picture, return_numpy=True)
    np.testing.assert_array_equal(pixels(picture), theirs)
    if mode in ("RGB", "L", "LA", "RGBA"):
        np.testing.assert_array_equal(pixels(saved(picture)), theirs)
    assert len(np.unique(theirs)) > 1


def test_a_palette_may_be_transparent():
    picture = PIL.Image.fromarray(GREY).convert("P")
    file = saved(picture, transparency=int(np.asarray(picture)[0, 0]))
    assert pixels(file)[0, 0].tolist() == [255] * 3


@pytest.mark.transformers
@pytest.mark.parametrize("one", [1, 255.0])
def test_arrays_of_other_channels_become_those_of_transformers(one, convert_to_rgb):
    """Grey is the same in each channel; what is transparent is on white."""
    for array in (GREY[..., None], CLEAR):
        array = array / one if one != 1 else array
        theirs = convert_to_rgb(array, return_numpy=True, input_data_format="channels_last")
        np.testing.assert_allclose(pixels(array), theirs, rtol=1e-12)
        assert pixels(array).dtype == array.dtype
    np.testing.assert_array_equal(pixels(GREY), pixels(GREY[..., None]))
    opaque = CLEAR.copy()
    opaque[..., 3] = [[0, 255, 51, 0, 0, 0, 0]]
    found = pixels(opaque)
    assert found[0, 0].tolist() == [255] * 3
    np.testing.assert_array_equal(found[0, 1], COLOUR[0, 1])
    np.testing.assert_allclose(found[0, 2], COLOUR[0, 2] * 0.2 + 204, atol=0.51)


def test_files_are_read_in_any_form_they_come_in(tmp_path):
    path, whole = tmp_path / "a.png", saved(PIL.Image.fromarray(COLOUR))
    path.write_bytes(whole)
    forms = [path, str(path), whole, {"bytes": whole, "path": None}, COLOUR.tolist()]
    forms += [{"bytes": None, "path": str(path)}, str(path).encode(), PIL.Image.open(path)]
    for form in [*forms, keras.ops.convert_to_tensor(COLOUR)]:
        np.testing.assert_array_equal(pixels(form), COLOUR)
    several = as_source({"images": [forms, None], "text": ["a", "b"]}).images
    assert list(map(len, several)) == [len(forms), 0]
    for column in (np.array([str(path)] * 2), np.stack([COLOUR] * 2), [[str(path)]] * 2):
        rows = as_source({"images": column, "text": ["a", "b"]}).images
        assert [np.asarray(row[0]).tolist() for row in rows] == [COLOUR.tolist()] * 2


def test_photographs_stand_upright(tmp_path):
    """Orientation 6 of EXIF: the first row of the file is the right side of the picture."""
    picture = PIL.Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    picture.save(path, exif=exif)
    np.testing.assert_array_equal(pixels(path), np.rot90(COLOUR, -1))
    np.testing.assert_array_equal(pixels(PIL.Image.open(path)), np.rot90(COLOUR, -1))


def test_files_that_are_none_are_refused_by_name(tmp_path):
    broken = tmp_path / "a.png"
    broken.write_bytes(saved(PIL.Image.fromarray(COLOUR))[:60])
    with pytest.raises(ValueError, match=r"Expected a file of an image.*a\.png"):
        pixels(broken)
    with pytest.raises(ValueError, match=r"Expected a file of an image.*b'no image'"):
        pixels(b"no image")
    with pytest.raises(FileNotFoundError, match=r"at /nowhere/a\.png. Received: a name of none"):
        pixels("/nowhere/a.png")
    with pytest.raises(FileNotFoundError, match="Download it first"):
        pixels("https://example.com/a.png")
    with pytest.raises(ValueError, match=r"8 bits a channel.*I;16"):
        pixels(PIL.Image.fromarray(GREY.astype("uint16") * 256))
    with pytest.raises(ValueError, match=r"of shape \(\)"):
        pixels({"bytes": None, "path": None})


def rows_of(data):
    return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]


def test_datasets_of_images_are_pairs(tmp_path):
    """Hugging Face's Image feature, decoded or not; tf.data and frames; batched or not."""
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    import tensorflow as tf

    arrays = [COLOUR, COLOUR[::-1], COLOUR[:, ::-1]]
    pairs = {**PAIRS, "images": arrays}
    pictures = {**PAIRS, "image": list(map(PIL.Image.fromarray, arrays))}
    del pictures["images"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "inputs": datasets.Value("string"),
            "targets": datasets.Value("string"),
        }
    )
    hugging = datasets.Dataset.from_dict(pictures, features=features)
    raw = hugging.cast_column("image", datasets.Image(decode=False))
    tensors = tf.data.Dataset.from_tensor_slices({**PAIRS, "images": np.stack(arrays)})
    forms = [hugging, raw, hugging.to_iterable_dataset(), tensors, tensors.batch(2)]
    forms += [pandas.DataFrame(pictures), rows_of(pictures), iter(rows_of(pictures))]
    expected = batches(pairs)
    for data in forms:
        for ours, theirs in zip(batches(data), expected, strict=True):
            keras.tree.map_structure(np.testing.assert_array_equal, ours, theirs)
    paths = []
    for number, array in enumerate(arrays):
        paths.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(array).save(paths[-1])
    for data in (
        {**PAIRS, "images": paths},
        tf.data.Dataset.from_tensor_slices({**PAIRS, "images": paths}),
    ):
        for ours, theirs in zip(batches(data), expected, strict=True):
            keras.tree.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_rows_may_lack_images():
    """A text reads the same alone, beside texts with images, and as a row without the name."""
    rows = [{"text": "b"}, {"text": "a", "images": RED}, {"text": "c", "images": None}]
    found, images = read(rows)
    assert found[0] == read("b")[0][0]
    assert found[1] == read({"text": "a", "images": RED})[0][0]
    assert found[2] == read("c")[0][0]
    assert [bool(row.any()) for row in images] == [False, True, False]
    pairs = rows_of(PAIRS)
    del pairs[1]["images"]
    for data in (pairs, iter(pairs)):
        (x, *_), _ = batches(data)
        assert not x["images"][1].any()
        assert (x["encoder_token_ids"][1] > 4095).sum() == 0
    with pytest.raises(ValueError, match=r"\['inputs', 'targets'\] in each row.*row 1"):
        as_source([pairs[0], {"images": BLUE, "inputs": "a"}])


def test_what_a_batch_holds_does_not_change_a_row():
    """Pixels, tokens, labels and weights of a row, alone and among others in any order."""
    rows = [
        {**row, "images": images}
        for row, images in zip(rows_of(PAIRS), [RED, [BLUE, RED], []], strict=True)
    ]
    alone = [batches([row])[0] for row in rows]
    for order in ([0, 1], [1, 0], [2, 1], [1, 2]):
        (x, y, weight), *_ = batches([rows[i] for i in order])
        for place, number in enumerate(order):
            own, labels, counts = alone[number]
            for name in set(own) - {"images"}:
                np.testing.assert_array_equal(x[name][place], own[name][0])
            count = own["images"].shape[1] if "images" in own else 0
            if count:
                np.testing.assert_array_equal(x["images"][place, :count], own["images"][0])
            assert not x["images"][place, count:].any()
            np.testing.assert_array_equal(y[place], labels[0])
            np.testing.assert_array_equal(weight[place], counts[0])


def test_the_preprocessor_has_no_images_in_a_graph():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices({**PAIRS, "images": np.stack([COLOUR] * 3)})
    with pytest.raises(ValueError, match="Expected texts alone inside a graph"):
        data.map(reads_images())
