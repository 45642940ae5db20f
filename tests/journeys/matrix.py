"""Kinds of data and what is done with them, as data; `test_matrix.py` goes through all cells.

A row says how the same texts, pairs or arrays are handed over, a column what is done with
them. A cell is to give what the first row of its group gives, or one error that says what to
do instead.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import keras
import numpy as np

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 3) for i in range(10)]
TARGETS = [f"Mean of {i}." + " Of an array." * (i % 2) for i in range(10)]
PAIRS = {"encoder_text": TEXTS, "decoder_text": TARGETS}
ROWS = [{key: column[i] for key, column in PAIRS.items()} for i in range(10)]
TUPLES = list(zip(TEXTS, TARGETS, strict=True))
TALKS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": target}]
    for text, target in TUPLES
]
MESSAGES = [{"messages": talk, "id": i} for i, talk in enumerate(TALKS)]
COMPLETED = {"prompt": [talk[:1] for talk in TALKS], "completion": [talk[1:] for talk in TALKS]}
PREFERRED = {"prompt": TEXTS, "chosen": TARGETS, "rejected": [*TARGETS[1:], TARGETS[0]]}
COMPARED = [{key: column[i] for key, column in PREFERRED.items()} for i in range(10)]
LENGTH, BATCH = 16, 4


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user passes as `x`, `y` and `sample_weight`."""

    x: Any
    y: Any = None
    weight: Any = None
    shuffle: bool = True


class Batches(keras.utils.PyDataset):
    """Batches of anything by number."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def arrays():
    """Model inputs, labels and weights of 10 rows."""
    rng = np.random.default_rng(0)
    x = {}
    for side in ("encoder", "decoder"):
        mask = np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (10, 1))
        x[f"{side}_token_ids"] = rng.integers(3, 4096, (10, LENGTH)).astype("int32") * mask
        x[f"{side}_padding_mask"] = mask.astype("int32")
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    return x, y, x["decoder_padding_mask"].astype("float32")


def ready():
    """The same as batches of `BATCH` rows, the last one of 2."""
    parts = [slice(at, at + BATCH) for at in range(0, 10, BATCH)]
    return [keras.tree.map_structure(lambda a, part=part: a[part], arrays()) for part in parts]


def tf_data(data):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(data)


def hugging_face(columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


def frame(columns):
    import pandas

    return pandas.DataFrame(columns)


def loader(data, **kwargs):
    from torch.utils.data import DataLoader

    return DataLoader(data, **kwargs)


def tensor(data):
    import tensorflow as tf

    return tf.constant(data)


def torch_tensor(array):
    import torch

    return torch.tensor(array)


def jsonl(folder: Path, field="text", values=TEXTS):
    from keras_encdec import data

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({field: value}) + "\n" for value in values))
    return data.read(path, field=field)


def tokens(tokenizer):
    from keras_encdec import data

    return data.tokenize(TEXTS, tokenizer)


def batched(rows, size=BATCH):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def batched_pairs():
    return list(zip(batched(TEXTS), batched(TARGETS), strict=True))


# Each row: a function of (folder, tokenizer).
TEXT_ROWS: dict[str, Callable] = {
    "list": lambda *_: Given(TEXTS),
    "tuple": lambda *_: Given(tuple(TEXTS)),
    "array": lambda *_: Given(np.array(TEXTS)),
    "array of objects": lambda *_: Given(np.array(TEXTS, object)),
    "list of bytes": lambda *_: Given([text.encode() for text in TEXTS]),
    "list of lists": lambda *_: Given(batched(TEXTS)),
    "rows {'text'}": lambda *_: Given([{"text": text, "id": i} for i, text in enumerate(TEXTS)]),
    "dict {'text'}": lambda *_: Given({"text": TEXTS}),
    "tf.Tensor": lambda *_: Given(tensor(TEXTS)),
    "DataFrame": lambda *_: Given(frame({"text": TEXTS})),
    "Series": lambda *_: Given(frame({"text": TEXTS})["text"]),
    "Dataset (HF)": lambda *_: Given(hugging_face({"text": TEXTS})),
    "column (HF)": lambda *_: Given(hugging_face({"text": TEXTS})["text"]),
    "stream (HF)": lambda *_: Given(hugging_face({"text": TEXTS}).to_iterable_dataset()),
    "tf.data": lambda *_: Given(tf_data(TEXTS)),
    "tf.data, batched": lambda *_: Given(tf_data(TEXTS).batch(3)),
    "Grain map": lambda *_: Given(grain.MapDataset.source(TEXTS)),
    "Grain iterator": lambda *_: Given(grain.MapDataset.source(TEXTS).to_iter_dataset()),
    "DataLoader": lambda *_: Given(loader(TEXTS, batch_size=3)),
    "PyDataset": lambda *_: Given(Batches(batched(TEXTS))),
    "generator": lambda *_: Given(text for text in TEXTS),
    "data.read": lambda folder, _: Given(jsonl(folder)),
    "Tokens": lambda _, tokenizer: Given(tokens(tokenizer)),
}
PAIR_ROWS: dict[str, Callable] = {
    "dict of lists": lambda *_: Given(PAIRS),
    "x and y, lists": lambda *_: Given(TEXTS, TARGETS),
    "x and y, arrays": lambda *_: Given(np.array(TEXTS), np.array(TARGETS)),
    "x and y, columns (HF)": lambda *_: Given(*hugging_columns()),
    "x and y, Series": lambda *_: Given(frame(PAIRS)["encoder_text"], frame(PAIRS)["decoder_text"]),
    "tuple of lists": lambda *_: Given((TEXTS, TARGETS)),
    "tuple of columns": lambda *_: Given((frame(PAIRS)["encoder_text"], np.array(TARGETS))),
    "dict of x, and y": lambda *_: Given({"encoder_text": TEXTS}, TARGETS),
    "dict of arrays": lambda *_: Given({key: np.array(c) for key, c in PAIRS.items()}),
    "dict of tensors": lambda *_: Given({key: tensor(c) for key, c in PAIRS.items()}),
    "list of dicts": lambda *_: Given(ROWS),
    "list of tuples": lambda *_: Given(TUPLES),
    "DataFrame": lambda *_: Given(frame({**PAIRS, "id": range(10)})),
    "Dataset (HF)": lambda *_: Given(hugging_face({**PAIRS, "id": list(range(10))})),
    "stream (HF)": lambda *_: Given(hugging_face(PAIRS).to_iterable_dataset()),
    "tf.data of dicts": lambda *_: Given(tf_data(PAIRS)),
    "tf.data of dicts, batched": lambda *_: Given(tf_data(PAIRS).batch(3)),
    "tf.data of tuples": lambda *_: Given(tf_data((TEXTS, TARGETS))),
    "tf.data of tuples, batched": lambda *_: Given(tf_data((TEXTS, TARGETS)).batch(3)),
    "Grain map": lambda *_: Given(grain.MapDataset.source(ROWS)),
    "Grain iterator": lambda *_: Given(grain.MapDataset.source(ROWS).to_iter_dataset()),
    "DataLoader of dicts": lambda *_: Given(loader(ROWS, batch_size=3)),
    "DataLoader of tuples": lambda *_: Given(loader(TUPLES, batch_size=2)),
    "PyDataset": lambda *_: Given(Batches(batched_pairs())),
    "generator of dicts": lambda *_: Given(dict(row) for row in ROWS),
    "generator of tuples": lambda *_: Given(pair for pair in TUPLES),
}
ARRAY_ROWS: dict[str, Callable] = {
    "arrays": lambda *_: Given(*arrays()),
    "lists": lambda *_: Given(*keras.tree.map_structure(lambda a: a.tolist(), arrays())),
    "tf.Tensor": lambda *_: Given(*keras.tree.map_structure(tensor, arrays())),
    "torch.Tensor": lambda *_: Given(*keras.tree.map_structure(torch_tensor, arrays())),
    "Keras tensors": lambda *_: Given(
        *keras.tree.map_structure(keras.ops.convert_to_tensor, arrays())
    ),
    "Dataset (HF)": lambda *_: Given(hugging_face(arrays()[0]), *arrays()[1:]),
}
READY_ROWS: dict[str, Callable] = {
    "arrays, in order": lambda *_: Given(*arrays(), shuffle=False),
    "list of batches": lambda *_: Given(ready()),
    "tf.data": lambda *_: Given(tf_data(arrays()).batch(BATCH)),
    "Grain map": lambda *_: Given(grain.MapDataset.source(ready())),
    "Grain iterator": lambda *_: Given(grain.MapDataset.source(ready()).to_iter_dataset()),
    "PyDataset": lambda *_: Given(Batches(ready())),
    "generator": lambda *_: Given(batch for batch in ready()),
    "DataLoader": lambda *_: Given(loader(ready(), batch_size=None)),
}

TALK_ROWS: dict[str, Callable] = {
    "dict of lists": lambda *_: Given({"messages": TALKS}),
    "list of dicts": lambda *_: Given(MESSAGES),
    "prompt, completion": lambda *_: Given(COMPLETED),
    "DataFrame": lambda *_: Given(frame({"messages": TALKS})),
    "Dataset (HF)": lambda *_: Given(hugging_face({"messages": TALKS})),
    "stream (HF)": lambda *_: Given(hugging_face({"messages": TALKS}).to_iterable_dataset()),
    "Grain map": lambda *_: Given(grain.MapDataset.source(MESSAGES)),
    "Grain iterator": lambda *_: Given(grain.MapDataset.source(MESSAGES).to_iter_dataset()),
    "generator": lambda *_: Given(dict(row) for row in MESSAGES),
    "data.read": lambda folder, _: Given(jsonl(folder, "messages", TALKS)),
}
PREFERENCE_ROWS: dict[str, Callable] = {
    "dict of lists": lambda *_: Given(PREFERRED),
    "dict of arrays": lambda *_: Given({key: np.array(c) for key, c in PREFERRED.items()}),
    "list of dicts": lambda *_: Given(COMPARED),
    "DataFrame": lambda *_: Given(frame({**PREFERRED, "id": range(10)})),
    "Dataset (HF)": lambda *_: Given(hugging_face(PREFERRED)),
    "stream (HF)": lambda *_: Given(hugging_face(PREFERRED).to_iterable_dataset()),
    "tf.data of dicts": lambda *_: Given(tf_data(PREFERRED)),
    "tf.data of dicts, batched": lambda *_: Given(tf_data(PREFERRED).batch(3)),
    "Grain map": lambda *_: Given(grain.MapDataset.source(COMPARED)),
    "DataLoader of dicts": lambda *_: Given(loader(COMPARED, batch_size=3)),
    "PyDataset": lambda *_: Given(Batches(compared_batches())),
    "generator": lambda *_: Given(dict(row) for row in COMPARED),
}


def compared_batches():
    parts = zip(*map(batched, PREFERRED.values()), strict=True)
    return [dict(zip(PREFERRED, part, strict=True)) for part in parts]


def hugging_columns():
    dataset = hugging_face(PAIRS)
    return dataset["encoder_text"], dataset["decoder_text"]


GROUPS = {"texts": TEXT_ROWS, "pairs": PAIR_ROWS, "arrays": ARRAY_ROWS, "batches": READY_ROWS}
GROUPS |= {"conversations": TALK_ROWS, "preferences": PREFERENCE_ROWS}
LOSSES = {"preferences": "DPO"}  # that a group needs
if importlib.util.find_spec("torch") is None:  # the tests need no PyTorch
    for rows in GROUPS.values():
        for name in [name for name in rows if "DataLoader" in name or "torch" in name]:
            del rows[name]
