"""
Title: Evaluate a pair beside its source
Author: keras_encdec
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Perplexity, lm-eval's tasks, SuperGLUE on the encoder, and what a model costs.
Accelerator: GPU
"""

"""
## Introduction

[Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225) compares each pair with the
decoder-only model it was made of, at equal cost. This guide asks the same four questions
of a pair and of its source:

- how well does it continue text: perplexity;
- what does it get right: tasks of
  [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness);
- what does its encoder know: SuperGLUE, fine-tuned;
- what does it cost: FLOPs.

The guide is written for one GPU of 16 GB and `gemma2_2b_2b`; put a preset of a pair that
you have adapted in its place. With `KERAS_ENCDEC_SMALL=1` the same code runs on any CPU in
about two minutes, without network, on small models that ship with the package. Numbers
of pairs that were not adapted, as these are not, mean nothing but that it runs.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides,eval]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import json
from pathlib import Path

import keras_encdec
import lm_eval
from keras_encdec import evaluation
from keras_encdec.data import docstrings
from lm_eval.tasks import TaskManager

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    PAIR, SOURCE, DTYPE = "gemma2_tiny_tiny", "gemma2_tiny_docs", None
    TEXTS, QUESTIONS, LENGTH = 8, 8, 320
    STAND_IN = {"size": 32, "val_size": 32, "packages": ["numpy", "keras", "jax"]}
else:
    PAIR, SOURCE, DTYPE = "gemma2_2b_2b", "gemma2_2b_en", "bfloat16"
    TEXTS, QUESTIONS, LENGTH, STAND_IN = 200, 200, 512, {}

"""
## Perplexity

`score` gives the log-probability of each token of a target, given what the encoder reads.
Its numbers depend neither on the batch nor on the padding.
"""

pair = keras_encdec.from_preset(PAIR, dtype=DTYPE)
_, held_out = docstrings.load(["numpy"])
parts = [both for doc in held_out if (both := doc.summary_and_body)][:TEXTS]
bodies = [body[:300] for _, body in parts]
summaries = [summary for summary, _ in parts]

scores = pair.score((bodies, summaries), batch_size=8)
print(f"perplexity of {len(parts)} summaries: {scores.perplexity:.1f}")

"""
## Tasks of lm-eval

`evaluation.LM` is a model of lm-eval: a pair, whose encoder reads the context and whose
decoder is scored on the continuation, or a decoder-only model, through the same code.
Each distinct context is read once. Any task of lm-eval will do
(`lm_eval.simple_evaluate(lm, tasks=["arc_easy", "boolq"])`); here is one of your own, made
of a file of questions and one that says what to ask, which needs no network:
"""

folder = Path("./my_tasks")
folder.mkdir(exist_ok=True)
questions = [
    {"body": body, "right": summary, "wrong": summaries[number - 1]}
    for number, (body, summary) in enumerate(zip(bodies, summaries, strict=True))
][:QUESTIONS]
lines = "".join(json.dumps(question) + "\n" for question in questions)
(folder / "summaries.jsonl").write_text(lines)
task = {
    "task": "which_summary",
    "dataset_path": "json",
    "dataset_kwargs": {
        "data_files": {"validation": str((folder / "summaries.jsonl").resolve())}
    },
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "{{body}}\n\nIn one line:",
    "doc_to_choice": "{{[' ' + right, ' ' + wrong]}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}
(folder / "which_summary.yaml").write_text(json.dumps(task))  # JSON is YAML, too

tasks = TaskManager(include_path=str(folder), include_defaults=False)
for name, model in {"pair": pair, "source": SOURCE}.items():
    lm = evaluation.LM(model, dtype=None if model is pair else DTYPE)
    found = lm_eval.simple_evaluate(
        lm, tasks=["which_summary"], task_manager=tasks, bootstrap_iters=0
    )
    print(
        f"{name}: {found['results']['which_summary']['acc,none']:.2f} of questions right"
    )

"""
With `answers="answers.jsonl"` each answer is kept as it is found, and after a kill the
same call goes on. In a terminal it is one line:

    keras-encdec eval ./my_pair gemma2_2b_en --tasks arc_easy,boolq --output found.json

## SuperGLUE

The encoder with a new head, all weights tuned, each model over a grid and seeds, until
the development set gets no better. Unpack SuperGLUE's archives into a folder; where there
is none, `write_stand_in` makes files of the same seven formats of docstrings. One task,
one place of the grid and two seeds here, so that it takes a minute:
"""

if not Path("./SuperGLUE").exists():
    evaluation.write_stand_in("./SuperGLUE", **STAND_IN)
results = evaluation.superglue(
    {
        "source": (SOURCE, {"encoder_attention": "causal", "dtype": DTYPE}),
        "encoder": (SOURCE, {"dtype": DTYPE}),
    },
    "./SuperGLUE",
    tasks="CB",
    grid={"learning_rate": [3e-4], "batch_size": [16], "dropout": [0.0]},
    seeds=[0, 1],
    epochs=1,
    sequence_length=LENGTH,
    output="./superglue",
)
print(results)

"""
Read the second table first: a difference that the seeds and the development set would
make by themselves is called undecided. The picture is in `superglue/superglue.png`.

## What it costs

FLOPs follow from the spec, so no weight is needed. A 2B-2B pair costs about as much as a
2B model, at an input and a target of 4,096 tokens each (figure 3 of the paper):
"""

of_pair = evaluation.forward_flops(
    keras_encdec.presets["gemma2_2b_2b"].spec, 4096, 4096
)
print(f"gemma2_2b_2b, 4,096 + 4,096 tokens: {of_pair.total / 1e12:.1f} TFLOP")

"""
In a terminal, `keras-encdec report flops`, `latency` (time of a query), `curves` (quality
over tokens seen, from checkpoints) and `correlation` draw the paper's figures with your
models in them: a PNG and a JSON each.
"""
