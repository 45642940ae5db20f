"""An embedder in mteb: what it is asked, and scores beside NumPy and mteb's own reading of it."""

import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from keras_encdec import evaluation
from keras_encdec.models import EncDecReranker, EncDecTextEmbedder
from keras_encdec.testing.models import assert_close, tiny_backbone

WORDS = ["array", "axis", "error", "file", "index", "list", "mean", "sort", "sum", "write"]
PROMPTS = {"query": "q: ", "document": "d: ", "STS": "similar: ", "MockRetrievalTask-query": "? "}


@pytest.fixture(scope="module")
def model():
    return EncDecTextEmbedder.from_preset(
        "gemma2_mini_docs", projection=(24,), prompts=PROMPTS, sequence_length=24
    )


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb")


@pytest.fixture
def encoder(mteb, model):
    return evaluation.MTEBEncoder(model, name="me/tiny", batch_size=5)


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 30, count)]


def sts(mteb):
    """A task of 24 pairs that is here already."""
    from datasets import Dataset, DatasetDict
    from mteb.mocks import MockSTSTask

    scores = np.random.default_rng(0).random(24).tolist()
    columns = {"sentence1": texts(24, 1), "sentence2": texts(24, 2), "score": scores}
    task = MockSTSTask()
    task.dataset, task.data_loaded = DatasetDict(test=Dataset.from_dict(columns)), True
    return task, columns


def score(mteb, model, task):
    options = {"cache": None, "show_progress_bar": False, "co2_tracker": False}
    return mteb.evaluate(model, task, **options).task_results[0].get_score()


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore:.* texts were cut to sequence_length")
def test_a_score_is_that_of_the_vectors(mteb, encoder, model):
    task, columns = sts(mteb)
    one, other = (model.encode_text(columns[f"sentence{i}"], prompt="STS") for i in (1, 2))
    expected = spearmanr((one.astype("float64") * other).sum(1), columns["score"])[0]
    assert abs(score(mteb, encoder, task) - expected) < 1e-6


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")  # sklearn's, of classes that are never predicted
def test_mteb_scores_our_export_alike(mteb, encoder, model, tmp_path):
    from mteb import mocks

    sentence_transformers = pytest.importorskip("sentence_transformers")
    model.export_to_sentence_transformers(tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"))
    kinds = mocks.MockRetrievalTask, mocks.MockClassificationTask, mocks.MockClusteringTask
    makers = [*kinds, mocks.MockPairClassificationTask, mocks.MockRerankingTask]
    for make in [*makers, lambda: sts(mteb)[0]]:
        found, expected = score(mteb, encoder, make()), score(mteb, theirs, make())
        assert abs(found - expected) < 1e-5, make


@pytest.mark.transformers
def test_what_is_asked(mteb, encoder, model):
    from mteb.mocks import MockClassificationTask, MockRetrievalTask, MockSTSTask
    from mteb.models.models_protocols import EncoderProtocol
    from mteb.types import PromptType

    assert isinstance(encoder, EncoderProtocol)
    where = {"hf_split": "test", "hf_subset": "default"}
    batches = [{"text": ["Add.", "Sort it."]}, {"text": ["Write."]}]
    flat = ["Add.", "Sort it.", "Write."]
    cases = (
        (MockRetrievalTask, PromptType.query, "MockRetrievalTask-query"),
        (MockRetrievalTask, PromptType.document, "document"),
        (MockSTSTask, None, "STS"),
        (MockClassificationTask, None, None),
    )
    for task, kind, prompt in cases:
        metadata = task().metadata
        found = encoder.encode(batches, task_metadata=metadata, prompt_type=kind, **where)
        assert_close(found, model.encode_text(flat, prompt=prompt))
    metadata = MockClassificationTask().metadata
    with pytest.warns(UserWarning, match="1 of 2 texts are empty"):
        found = encoder.encode([{"text": ["", "Add."]}], task_metadata=metadata, **where)
    assert not found[0].any()
    assert_close(found[1:], model.encode_text("Add."))
    with pytest.raises(TypeError, match="precision"):
        encoder.encode(batches, task_metadata=metadata, precision="int8", **where)
    with pytest.raises(ValueError, match=r"batches of texts.*image"):
        encoder.encode([{"image": [1]}], task_metadata=metadata, **where)


@pytest.mark.transformers
def test_results_are_kept_by_what_the_model_is(mteb, encoder, model):
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("me/tiny", 24, 24)
    assert meta.n_parameters == model.count_params()
    assert evaluation.MTEBEncoder(model).mteb_model_meta.revision == meta.revision
    others = [
        evaluation.MTEBEncoder(model, dimensions=8),
        evaluation.MTEBEncoder("gemma2_mini_docs"),
    ]
    revisions = {meta.revision, *(other.mteb_model_meta.revision for other in others)}
    kernel = model.dense[0].kernel
    before = kernel.numpy()
    kernel.assign(before + 1)
    revisions.add(encoder.mteb_model_meta.revision)
    kernel.assign(before)
    assert len(revisions) == 4
    assert encoder.mteb_model_meta.revision == meta.revision


@pytest.mark.transformers
def test_arguments_that_are_refused(mteb, model):
    for given, message in (
        ({"name": "tiny"}, "owner/model"),
        ({"batch_size": 0}, "batch_size"),
        ({"dimensions": 25}, "dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.MTEBEncoder(model, **given)
    encoder = EncDecTextEmbedder(
        EncDecTextEmbedder.from_preset(tiny_backbone()).backbone, preprocessor=None
    )
    with pytest.raises(ValueError, match="a preprocessor"):
        evaluation.MTEBEncoder(encoder)


@pytest.fixture(scope="module")
def judge():
    return EncDecReranker.from_preset(
        "gemma2_tiny_tiny",
        encoder_sequence_length=16,
        decoder_sequence_length=48,
        words=("True", "False"),
    )


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_a_reranker_in_mteb(mteb, judge):
    from mteb.mocks import MockRerankingTask
    from mteb.models.models_protocols import CrossEncoderProtocol

    reranker = evaluation.MTEBReranker(judge, name="me/judge", batch_size=3)
    assert isinstance(reranker, CrossEncoderProtocol)
    found = score(mteb, reranker, MockRerankingTask())
    task = MockRerankingTask()
    task.load_data()
    data = task.dataset["default"]["test"]
    texts = {row["id"]: row["text"] for row in (*data["corpus"], *data["queries"])}
    precisions = []
    for query, documents in data["top_ranked"].items():
        odds = judge.score([texts[query]] * len(documents), [texts[d] for d in documents])
        right = np.array([data["relevant_docs"][query].get(d, 0) for d in documents])
        places = 1 + np.flatnonzero(right[np.argsort(-odds, kind="stable")])
        precisions.append(np.mean(np.arange(1, 1 + len(places)) / places))
    assert abs(found - np.mean(precisions)) < 1e-5  # its main score is mean average precision


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_what_a_reranker_is_asked(mteb, judge):
    where = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    reranker = evaluation.MTEBReranker(judge)
    queries = [{"text": ["Which adds?", "Which sorts?"]}, {"text": ["Which adds?"]}]
    documents = [{"text": ["Add two numbers."]}, {"text": ["Sort a list.", "Sort a list."]}]
    found = reranker.predict(queries, documents, **where)
    flat = [[text for batch in side for text in batch["text"]] for side in (queries, documents)]
    assert_close(found, judge.score(*flat))
    with pytest.warns(UserWarning, match="1 of 2 pairs have an empty text"):
        found = reranker.predict([{"text": ["", "Which adds?"]}], [{"text": ["A.", "B."]}], **where)
    assert found[0] == 0
    assert found[1] > 0
    before = reranker.mteb_model_meta.revision
    instruction, judge.preprocessor.instruction = judge.preprocessor.instruction, "Does it answer?"
    assert reranker.mteb_model_meta.revision != before
    judge.preprocessor.instruction = instruction
    assert reranker.mteb_model_meta.revision == before
    with pytest.raises(ValueError, match="owner/model"):
        evaluation.MTEBReranker(judge, name="judge")


def test_without_mteb_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras_encdec.evaluation.mteb_models", raising=False)
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    with pytest.raises(ImportError, match=r'pip install "keras-encdec\[mteb\]"'):
        _ = evaluation.MTEBEncoder
