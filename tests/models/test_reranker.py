"""The reranker beside NumPy, on disk, in training, in files, and on what it refuses."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_encdec import training
from keras_encdec.data import EncodedDocuments
from keras_encdec.generation.compiled import Compiled
from keras_encdec.layers.pooling import PoolGroups
from keras_encdec.models import EncDecReranker, EncDecRerankerPreprocessor, EncDecSeq2SeqLM
from keras_encdec.sharing.load import tokenizer_alone
from keras_encdec.spec import CrossAttentionSpec, PairSpec
from keras_encdec.testing.models import (
    assert_close,
    make_inputs,
    pad,
    tiny_backbone,
    tiny_lm,
    to_numpy,
)
from keras_encdec.testing.specs import other_pair, tiny_decoder, tiny_encoder

WORDS = 5, 9
THINGS = ["sum", "file", "key", "shape", "name", "list"]
DOCUMENTS = [
    *(f"This is for the {thing} of it, and for nothing else." for thing in THINGS),
    "No.",
    "A long one: " + "it goes on and on, " * 6,
]
QUERY = "Which one has a sum?"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_alone("gemma2_mini_docs")


def make(tokenizer, dtype=None, pooling=4, **options):
    """A reranker of one layer on each side, all weights drawn."""
    size = {"windows": (8,), "vocabulary_size": tokenizer.vocabulary_size()}
    pair = PairSpec(tiny_encoder(**size), tiny_decoder(**size))
    lengths = {"encoder_sequence_length": 64, "decoder_sequence_length": 48}
    preprocessor = EncDecRerankerPreprocessor(
        tokenizer, words=("True", "False"), **{**lengths, **options}
    )
    return EncDecReranker(tiny_backbone(pair, dtype=dtype), preprocessor, pooling)


@pytest.fixture(scope="module")
def reranker(tokenizer):
    return make(tokenizer)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def compiled(function, backbone):
    return Compiled(function, backbone.variables)


# Scores.


def pooled(states, mask, size):
    """Groups of tokens one behind the other, by a loop; (B, G, D) and (B, G)."""
    groups = -(-mask.shape[1] // size)
    found = np.zeros((len(mask), groups, states.shape[2]))
    there = np.zeros((len(mask), groups), "int32")
    for row in range(len(mask)):
        tokens = states[row][mask[row] != 0].astype("float64")
        for group in range(-(-len(tokens) // size)):
            found[row, group] = tokens[group * size : (group + 1) * size].mean(axis=0)
            there[row, group] = 1
    return found, there


ONE_LAYER = PairSpec(tiny_encoder(windows=(8,)), tiny_decoder(windows=(6,)))
PAIRS = {
    "plain": ONE_LAYER,
    "merged": dataclasses.replace(
        ONE_LAYER,
        encoder=tiny_encoder(width=42, windows=(8,)),
        cross_attention=CrossAttentionSpec(merged=True),
    ),
    "another family": other_pair(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"), [("plain", 1), ("plain", 3), ("merged", 3), ("another family", 32)]
)
def test_log_odds_by_hand(kind, size):
    backbone, x = tiny_backbone(PAIRS[kind]), make_inputs()
    model = EncDecReranker(backbone, None, size, WORDS)
    encoder = x["encoder_token_ids"], x["encoder_padding_mask"]
    decoder = x["decoder_token_ids"], x["decoder_padding_mask"]
    states = to_numpy(compiled(backbone.encoder, backbone)(*encoder))
    states, mask = pooled(states, encoder[1], size)
    of_states = compiled(lambda *x: backbone.decoder.logits(backbone.decoder(*x)), backbone)
    logits = to_numpy(of_states(*decoder, states.astype("float32"), mask))
    last = logits[np.arange(3), decoder[1].sum(axis=1) - 1]
    expected = last[:, WORDS[0]] - last[:, WORDS[1]]
    assert np.abs(expected).max() > 0.1
    assert_close(to_numpy(compiled(model, backbone)(x)), expected)
    if size == 1:  # as the pair itself, and as the graph that Keras shows
        whole = to_numpy(compiled(EncDecSeq2SeqLM(backbone), backbone)(x))
        last = whole[np.arange(3), decoder[1].sum(axis=1) - 1]
        assert_close(last[:, WORDS[0]] - last[:, WORDS[1]], expected)
        graph = keras.Model(model.inputs, model.outputs)
        assert_close(to_numpy(compiled(graph, backbone)(x)), expected)


@pytest.mark.slow
def test_padding_anywhere_changes_nothing():
    model, x = EncDecReranker(tiny_backbone(ONE_LAYER), None, 3, WORDS), make_inputs()
    padded = pad(pad(x, "encoder", left=5, right=2, token=7), "decoder", right=5, token=7)
    run = compiled(model, model.backbone)
    assert_close(to_numpy(run(padded)), to_numpy(run(x)))


def test_groups_by_hand():
    states = np.arange(12, dtype="float32").reshape(1, 6, 2)
    layer = PoolGroups(2)
    found, mask = layer(states, np.array([[0, 1, 1, 1, 0, 0]]))
    assert to_numpy(found).tolist() == [[[3, 4], [6, 7], [0, 0]]]
    assert to_numpy(mask).tolist() == [[1, 1, 0]]
    nothing, none = layer(states, np.zeros((1, 6), "int32"))
    assert not to_numpy(nothing).any()
    assert not to_numpy(none).any()


@pytest.mark.long
def test_batch_order_and_mates_change_nothing(reranker):
    queries = [QUERY, "Why?", QUERY, "Is it a list of names?", "Who?", QUERY, "a", "What then?"]
    documents = [*DOCUMENTS[:6], DOCUMENTS[0], DOCUMENTS[7]]
    expected = reranker.score(queries, documents)
    assert (expected.shape, expected.dtype) == ((8,), "float32")
    assert np.ptp(expected) > 0.1
    assert_close(reranker.score(queries, documents, batch_size=3), expected)
    assert_close(reranker.score(queries[::-1], documents[::-1])[::-1], expected)
    assert_close(reranker.score(queries[3], documents[3]), expected[3:4])
    odds = reranker.predict((queries, documents), batch_size=3, verbose=0)
    assert_close(expected, sigmoid(odds))


def test_a_document_is_read_once(reranker, monkeypatch):
    read, programs = [], reranker._made_programs()
    whole = programs.read
    monkeypatch.setattr(programs, "read", lambda x: read.append(x) or whole(x))
    reranker.score(["a", "b", "c"], [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]])
    assert [int(x["padding_mask"].any(axis=1).sum()) for x in read] == [2]


@pytest.mark.slow
def test_the_best_come_first(reranker):
    scores = reranker.score([QUERY] * 8, DOCUMENTS)
    found = reranker.rank(QUERY, DOCUMENTS, batch_size=3)
    assert [i for i, _ in found] == np.argsort(-scores).tolist()
    assert_close(np.array([d.score for d in found]), scores[[d.index for d in found]])
    assert reranker.rank(QUERY, DOCUMENTS, top=2, batch_size=3) == found[:2]
    same = reranker.rank(QUERY, ["A key."] * 3)
    assert [document.index for document in same] == [0, 1, 2]


def test_what_the_decoder_reads(tokenizer):
    preprocessor = EncDecRerankerPreprocessor(
        tokenizer, words=("True", "False"), instruction="Say."
    )
    x = preprocessor({"query": QUERY, "document": "A sum."})
    there = x["decoder_padding_mask"][0] == 1
    ids = x["decoder_token_ids"][0][there].tolist()
    assert ids[0] == tokenizer.start_token_id
    assert tokenizer.detokenize(ids[1:]) == f"Say.\n{QUERY}"
    read = x["encoder_token_ids"][0][x["encoder_padding_mask"][0] == 1].tolist()
    assert tokenizer.detokenize(read) == "A sum."
    assert preprocessor.word_ids == tuple(tokenizer.token_to_id(w) for w in ("True", "False"))
    bare = EncDecRerankerPreprocessor(tokenizer, words=("True", "False"), instruction="")
    ids = bare.reader.rows_of([QUERY], "query")[0]
    assert tokenizer.detokenize(ids[1:]) == QUERY


# On disk.


@pytest.mark.slow
def test_from_disk_as_from_text(reranker, tmp_path):
    store = reranker.encode_documents(DOCUMENTS, tmp_path / "it", batch_size=1)
    assert len(store) == 8
    expected = {d.index: d.score for d in reranker.rank(QUERY, DOCUMENTS)}
    for documents in (store, tmp_path / "it", str(tmp_path / "it")):
        for size in (2, 32):
            found = {d.index: d.score for d in reranker.rank(QUERY, documents, batch_size=size)}
            assert found.keys() == expected.keys()
            for index, score in expected.items():
                assert found[index] == pytest.approx(score, abs=1e-5)
    (tokens,) = reranker._reader.rows_of(DOCUMENTS[-1:], "document")
    assert store.sizes(0)[-1] == -(-len(tokens) // 4)


def test_a_stopped_job_goes_on(reranker, tmp_path, monkeypatch):
    texts = [f"{text} {number}" for number in range(3) for text in DOCUMENTS]
    whole = reranker.encode_documents(texts, tmp_path / "whole", batch_size=1)
    programs = reranker._made_programs()
    read, calls = programs.read, []

    def stops(x):
        calls.append(x)
        if len(calls) == 12:  # in the second of three shards
            raise KeyboardInterrupt
        return read(x)

    with monkeypatch.context() as patch:
        patch.setattr(programs, "read", stops)
        with pytest.raises(KeyboardInterrupt):
            reranker.encode_documents(texts, tmp_path / "it", batch_size=1)
        with pytest.raises(ValueError, match="Expected a finished folder of encoded documents"):
            reranker.rank(QUERY, tmp_path / "it")
        again = reranker.encode_documents(texts, tmp_path / "it", batch_size=1)
    assert len(calls) == 12 + 16
    assert again.shards == whole.shards == [range(8), range(8, 16), range(16, 24)]
    for shard in range(3):
        pairs = zip(again.states(shard, range(8)), whole.states(shard, range(8)), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_what_is_stale_or_damaged_is_refused(reranker, tokenizer, tmp_path):
    folder = tmp_path / "it"
    store = reranker.encode_documents(DOCUMENTS, folder)
    with pytest.raises(ValueError, match=r"finished\. Load it"):
        reranker.encode_documents(DOCUMENTS, folder)
    with pytest.raises(ValueError, match="to be begun with encoded documents"):
        reranker.encode_documents(DOCUMENTS[1:], folder)
    with pytest.raises(ValueError, match=r"other pooling \(4, here 2\). Encode them again"):
        make(tokenizer, pooling=2).rank(QUERY, store)
    with pytest.raises(ValueError, match="other sequence_length"):
        make(tokenizer, encoder_sequence_length=32).rank(QUERY, store)
    other = make(tokenizer)
    other.rank(QUERY, store)
    kernel = other.backbone.encoder.blocks[0].attention.key.kernel
    other.backbone.decoder.final_norm.scale.assign_add(np.ones(42))
    other.rank(QUERY, store)  # what the decoder has learnt changes no state of a document
    kernel.assign(to_numpy(kernel) + 1)
    with pytest.raises(ValueError, match="other weights"):
        other.rank(QUERY, store)
    (shard,) = folder.glob("*.states.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="another checksum"):
        reranker.rank(QUERY, folder)
    with pytest.warns(UserWarning, match="Shard 0 of .* is damaged"):
        reranker.encode_documents(DOCUMENTS, folder)
    reranker.rank(QUERY, folder)
    with pytest.raises(FileNotFoundError):
        reranker.rank(QUERY, "A document, forgotten to be put into a list.")


@pytest.mark.slow
def test_bfloat16_keeps_its_bits(tokenizer, tmp_path):
    model = make(tokenizer, dtype="bfloat16")
    store = model.encode_documents(DOCUMENTS, tmp_path / "it")
    assert store.states(0, [0])[0].dtype == "bfloat16"
    assert np.load(tmp_path / "it/00000.states.npy").dtype == "uint16"
    expected = {d.index: d.score for d in model.rank(QUERY, DOCUMENTS)}
    assert {d.index: d.score for d in model.rank(QUERY, store)} == pytest.approx(expected, abs=1e-5)


# Training.

RANKED = {
    "query": ["Which has a sum?", "Which has a key?", "Which has a name?"],
    "positive": [DOCUMENTS[0], DOCUMENTS[2], DOCUMENTS[4]],
    "negatives": [[DOCUMENTS[1]], [DOCUMENTS[0], DOCUMENTS[3]], [DOCUMENTS[5]]],
}
GRADED = {**RANKED, "score": [1.0, 0.5, 0.25]}
LABELLED = {"query": RANKED["query"], "document": RANKED["positive"], "label": [1, 0, 0.5]}


def log_odds_of(reranker, data):
    """For each row its documents' log-odds, by `score`."""
    negatives = data.get("negatives", [[]] * 3)
    documents = data.get("positive", data.get("document"))
    every = []
    for query, one, some in zip(data["query"], documents, negatives, strict=True):
        p = reranker.score([query] * (1 + len(some)), [one, *some]).astype("float64")
        every.append(np.log(p / (1 - p)))
    return every


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def graded(odds, score):
    return softmax(np.array([score, *[0] * (len(odds) - 1)]))


def logistic(odds, p):
    return np.log1p(np.exp(odds)) - p * odds


LOSSES = {
    "auto, negatives": ("auto", RANKED, lambda o, s: -np.log(softmax(o)[0])),
    "ranknet": (training.RankNet(), RANKED, lambda o, s: logistic(o[0] - o[1:], 1).mean()),
    "ranknet, graded": (
        training.RankNet(),
        GRADED,
        lambda o, s: logistic(o[0] - o[1:], (1 + s) / 2).mean(),
    ),
    "listnet": (
        training.ListNet(),
        GRADED,
        lambda o, s: -(graded(o, s) * np.log(softmax(o))).sum(),
    ),
    "auto, labels": ("auto", LABELLED, lambda o, s: logistic(o[0], s)),
    "pointwise": (
        training.PointwiseCrossEntropy(),
        RANKED,
        lambda o, s: logistic(o, np.eye(1, len(o))[0]).mean(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LOSSES)
def test_losses_are_those_of_the_scores(reranker, case):
    loss, data, by_hand = LOSSES[case]
    reranker.compile(keras.optimizers.SGD(0.0), loss)
    scores = data.get("score", data.get("label", [1.0] * 3))
    each = [by_hand(o, s) for o, s in zip(log_odds_of(reranker, data), scores, strict=True)]
    for weights in (None, np.array([1.0, 0.0, 2.0])):
        found = reranker.evaluate(  # the last batch is filled up
            data, batch_size=2, sample_weight=weights, verbose=0, return_dict=True
        )
        assert found["loss"] == pytest.approx(np.average(each, weights=weights), abs=1e-4)


@pytest.mark.slow
def test_it_learns_a_planted_preference_and_comes_back(tokenizer, tmp_path):
    """Documents about files answer, whatever is asked; those held out as well."""
    model = make(tokenizer)
    ends = ["now", "then", "here", "there", "twice", "once", "soon", "late"]
    x = {
        "query": [f"Which one, {end}?" for end in ends[:6]],
        "positive": [f"It is a file {end}." for end in ends[:6]],
        "negatives": [[f"It is a key {end}.", f"It is a sum {end}."] for end in ends[:6]],
    }
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["accuracy"][-1] == 1
    assert history["tokens"][0] > 0
    held_out = [f"It is a {thing} {end}." for thing in ("key", "file", "sum") for end in ends[6:]]
    best = model.rank("Which one, soon?", held_out, top=2)
    assert {document.index for document in best} == {2, 3}
    model.save_to_preset(tmp_path / "it")
    again = EncDecReranker.from_preset(tmp_path / "it")
    assert again.rank("Which?", held_out) == model.rank("Which?", held_out)
    assert (again.pooling, again.word_ids) == (4, model.word_ids)
    assert again.preprocessor.words == ("True", "False")
    run = again.provenance["history"][-1]
    assert (run["what"], run["data"]["kind"]) == ("fit", "queries and documents")
    assert "ranks documents" in (tmp_path / "it/README.md").read_text()
    assert not (tmp_path / "it/task.weights.h5").exists()
    lm = EncDecSeq2SeqLM.from_preset(str(tmp_path / "it"))
    assert lm.preprocessor.tokenizer.vocabulary_size() == tokenizer.vocabulary_size()


@pytest.mark.slow
def test_a_keras_file(reranker, tmp_path):
    reranker.compile(keras.optimizers.Adam(1e-3), training.ListNet(0.5))
    reranker.save(tmp_path / "it.keras")
    again = keras.saving.load_model(tmp_path / "it.keras")
    assert again.rank(QUERY, DOCUMENTS) == reranker.rank(QUERY, DOCUMENTS)
    assert again._row_loss == training.ListNet(0.5)


@pytest.mark.slow
def test_under_lora_in_bfloat16(tokenizer):
    model = make(tokenizer, dtype="bfloat16")
    model.rank(QUERY, DOCUMENTS[:2])
    model.backbone.enable_lora(2)
    model.compile(keras.optimizers.Adafactor(1e-2), training.RankNet())
    before = model.rank(QUERY, DOCUMENTS[:2])
    assert np.isfinite(model.fit(RANKED, verbose=0).history["loss"]).all()
    assert model.rank(QUERY, DOCUMENTS[:2]) != before


@pytest.mark.slow
def test_int8(tokenizer):
    model = make(tokenizer)
    expected = model.score([QUERY] * 8, DOCUMENTS)
    model.quantize("int8")
    assert_close(model.score([QUERY] * 8, DOCUMENTS), expected, 0.2)


@pytest.mark.slow
def test_a_pair_by_name():
    model = EncDecReranker.from_preset(
        "gemma2_tiny_mini", words=("True", "False"), pooling=2, encoder_sequence_length=24
    )
    assert (model.pooling, model.preprocessor.encoder_sequence_length) == (2, 24)
    assert len(model.rank(QUERY, DOCUMENTS[:3])) == 3
    with pytest.raises(TypeError, match="poling"):
        EncDecReranker.from_preset("gemma2_tiny_mini", poling=2)


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", DOCUMENTS), "a query, a text that is not empty"),
        ((["a"], DOCUMENTS), "a query, a text"),
        (("a", []), "documents, each with text. Received: none"),
        (("a", ["b", " "]), "an empty one, document 1"),
        (("a", ["b", 3]), "documents of row 1"),
        (("a", DOCUMENTS, 0), "top"),
        (("a", DOCUMENTS, None, 0), "batch_size"),
    ],
)
def test_what_cannot_be_ranked(reranker, arguments, message):
    with pytest.raises(ValueError, match=message):
        reranker.rank(*arguments)


def test_pairs_that_cannot_be_scored(reranker):
    with pytest.raises(ValueError, match="positive for each of 2 queries"):
        reranker.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="Expected text as query of row 1"):
        reranker.score(["a", ""], ["c", "d"])
    with pytest.raises(ValueError, match="preprocessor to read text"):
        EncDecReranker(reranker.backbone, None, 4, WORDS).rank("a", ["b"])


def test_texts_that_do_not_fit_are_told(reranker):
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to sequence_length = 64"):
        reranker.rank(QUERY, ["Yes.", "a b c " * 40])
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to sequence_length = 48"):
        reranker.rank("a b c " * 40, ["Yes."])


def test_scores_that_are_not_finite_are_named(tokenizer, tmp_path):
    model = make(tokenizer)
    scale = model.backbone.encoder.final_norm.scale
    scale.assign(np.full(scale.shape, np.nan))
    with pytest.raises(FloatingPointError, match=r"2 of 2 texts.* text 0: 'This is for the sum"):
        model.rank(QUERY, DOCUMENTS[:2])
    with pytest.raises(FloatingPointError, match=r"finite states.*2 of 2 texts"):
        model.encode_documents(DOCUMENTS[:2], tmp_path / "it")
    assert not list((tmp_path / "it").glob("*.npy"))


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        ("auto", {**RANKED, "negatives": [["a"], [], ["b"]]}, "negatives.*none in row 1"),
        (training.RankNet(), LABELLED, "negatives for each query with RankNet.*none in row 0"),
        (training.ListNet(), LABELLED, "negatives for each query with ListNet"),
        ("auto", GRADED, "no scores with ListwiseSoftmax.*Use ListNet or RankNet"),
        ("auto", {"query": ["a"], "document": ["b"]}, "labels or negatives"),
        ("auto", {**LABELLED, "label": [0, 1, float("nan")]}, "score from 0 to 1"),
        ("auto", ["a", "b"], "the documents that answer them"),
    ],
)
def test_bad_data_changes_nothing(reranker, loss, data, message):
    reranker.compile("sgd", loss)
    before = to_numpy(reranker.backbone.decoder.final_norm.scale)
    with pytest.raises(ValueError, match=message):
        reranker.fit(data, verbose=0)
    np.testing.assert_array_equal(to_numpy(reranker.backbone.decoder.final_norm.scale), before)


def test_options_of_compile_that_cannot_be(reranker):
    with pytest.raises(ValueError, match="a loss that ranks"):
        reranker.compile(loss="mse")
    with pytest.raises(ValueError, match="no metrics"):
        reranker.compile(metrics=["mse"])
    reranker.compile()
    with pytest.raises(ValueError, match="class_weight"):
        reranker.fit(RANKED, class_weight={0: 1.0}, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": ("yes", "no")}, r"one token each. Received: 'yes', which is \['y', 'es'\]"),
        ({"words": ("True", "True")}, "two words of two tokens"),
        ({"words": "True"}, "Expected two words"),
        ({"words": ("True", 1)}, "words"),
        ({"encoder_sequence_length": 3}, "encoder_sequence_length"),
        ({"decoder_sequence_length": "8"}, "decoder_sequence_length"),
        ({"instruction": 1}, "instruction"),
    ],
)
def test_settings_that_cannot_be(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        EncDecRerankerPreprocessor(tokenizer, **{"words": ("True", "False"), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": 0, "word_ids": WORDS}, "pooling"),
        ({}, "word_ids, the ids of two words, without a preprocessor"),
        ({"word_ids": (3, 3)}, "two different word_ids"),
        ({"word_ids": (3, 96)}, "word_ids.*at most 95"),
    ],
)
def test_options_that_cannot_be(reranker, options, message):
    backbone = tiny_lm().backbone
    with pytest.raises(ValueError, match=message):
        EncDecReranker(backbone, None, **options)


def test_an_unfinished_format_is_named(reranker, tmp_path):
    reranker.encode_documents(DOCUMENTS[:2], tmp_path / "it")
    index = tmp_path / "it/shards.json"
    found = json.loads(index.read_text())
    found["format"]["number"] = 99
    index.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="99"):
        EncodedDocuments(tmp_path / "it")
