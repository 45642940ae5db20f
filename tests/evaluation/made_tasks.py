"""Tasks of lm-eval made of docstrings, in a folder, and requests as it makes them."""

import dataclasses
import json
import random
from typing import Any

import yaml

from keras_encdec.data import docstrings

COUNT = 12  # documents of each task


def written(folder, name, rows, **config):
    """A task in a folder: its YAML and its JSONL."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return data


def documents(count=COUNT):
    """`(body, summary)` of docstrings of Keras, and three summaries of others."""
    _, held_out = docstrings.load(("keras",))
    pairs = [pair for doc in held_out if (pair := doc.summary_and_body)][:count]
    assert len(pairs) == count
    rng = random.Random(0)
    for number, (summary, body) in enumerate(pairs):
        others = [s for i, (s, _) in enumerate(pairs) if i != number and s != summary]
        choices = [summary, *rng.sample(others, 3)]
        rng.shuffle(choices)
        yield {"body": body[:300], "choices": choices, "label": choices.index(summary)}


def make_tasks(folder, count=COUNT):
    """All four kinds of request; the names of the tasks."""
    rows = list(documents(count))
    written(
        folder,
        "docs_choice",
        rows,
        output_type="multiple_choice",
        doc_to_text="{{body}}\nSummary:",
        doc_to_choice="choices",
        doc_to_target="label",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        num_fewshot=1,
        fewshot_split="test",
    )
    written(
        folder,
        "docs_summary",
        rows,
        output_type="generate_until",
        doc_to_text="{{body}}\nSummary:",
        doc_to_target="{{choices[label]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match"}, {"metric": "bleu"}],
    )
    written(
        folder,
        "docs_text",
        rows,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="body",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    written(
        folder,
        "docs_last",
        [{"text": row["body"].rpartition(" ")[0], "word": row["body"].split()[-1]} for row in rows],
        output_type="loglikelihood",
        doc_to_text="text",
        doc_to_target="word",
        metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
    )
    return ["docs_choice", "docs_summary", "docs_text", "docs_last"]


@dataclasses.dataclass
class Asked:
    """As lm-eval's Instance."""

    args: tuple[Any, ...]
    task_name: str = "some_task"
    doc_id: int = 7


def asked(*each):
    """Requests of these arguments."""
    return [Asked(args) for args in each]


CONTEXTS = [
    "Returns the mean of an array along an axis.\nArgs:",
    "Sort",
    "A layer that normalises its inputs. It applies a transformation that keeps the mean near 0.",
]
ANSWERS = [" x: the array.", " an array", " of the"]
PAIRS = asked(*[(context, answer) for context in CONTEXTS for answer in ANSWERS])
