"""Tasks of lm-eval by name: found, their data looked through, and several models asked.

Knows lm-eval's index, its YAML and its results. Leaves answers to `keras_encdec.evaluation.LM`.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.meta
import lm_eval.evaluator
import lm_eval.utils
import numpy as np
from lm_eval.tasks import TaskManager

from keras_encdec import check
from keras_encdec.evaluation.harness import LM

# What lm_eval.simple_evaluate seeds (lm_eval/defaults.py); examples are drawn by the second.
_SEED, _FEWSHOT_SEED = 0, 1234
_RESAMPLES = 1000  # of a bootstrapped standard error; lm-eval's 100,000 take minutes of F1
_SHOWN = 20  # names that an error lists
_TEMPLATES = "doc_to_text", "doc_to_target", "doc_to_choice"


class Tasks:
    """Tasks whose data was read.

    Args:
        names: of tasks, groups or tags, or patterns such as `"arc_*"`.
        include_path: a folder with YAML of one's own, or None. Where it has all of them, no
            others are looked for, which takes seconds.

    Raises:
        ValueError: if there is no such task, or its data is damaged; a row of a local JSONL file
            is named by its line.
    """

    def __init__(self, names: Sequence[str], include_path: str | os.PathLike | None = None):
        if not names:
            raise ValueError("Expected the name of a task at least. Received: none.")
        if include_path is not None and not Path(include_path).is_dir():
            raise ValueError(f"Expected a folder of tasks. Received: {str(include_path)!r}.")
        self.manager = _manager(names, include_path)
        self.names = [found for name in names for found in self.manager.match_tasks([name])]
        for name in self.names:
            for config in _configs(self.manager.task_index, name):
                _check_rows(config)
        self._loaded = self._load()

    def _load(self) -> Any:
        try:
            return self.manager.load(self.names)
        except Exception as error:  # of datasets, Jinja, YAML and lm-eval, each of its own type
            raise ValueError(
                f"Expected tasks {self.names} whose data can be read. Received: "
                f"{type(error).__name__}: {error}. Files in dataset_kwargs are looked for from "
                "the folder in which this runs."
            ) from error

    def evaluate(
        self,
        lm: LM,
        limit: int | None = None,
        num_fewshot: int | None = None,
        chat: bool = False,
    ) -> dict[str, Any]:
        """What lm-eval finds of a model, as `lm_eval.simple_evaluate` would, of JSON types.

        Args:
            lm: `LM`.
            limit: documents of each task; all if None.
            num_fewshot: examples in front of each document; each task's own number if None.
                A task that says 0 keeps it, as in lm-eval.
            chat: whether prompts are framed as a user's turns.
        """
        for task in self._loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            shots = num_fewshot if num_fewshot is not None and own != 0 else own or 0
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        random.seed(_SEED)
        np.random.seed(_FEWSHOT_SEED)
        # A pool of processes would be forked from one in which JAX has threads.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        found: Any = lm_eval.evaluator.evaluate(
            lm,
            self._loaded,
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
        kept = "results", "groups", "n-shot", "n-samples", "versions", "higher_is_better"
        return {key: _plain(found[key]) for key in kept if key in found}


def evaluate(
    models: Mapping[str, Callable[[], LM]], tasks: Tasks, **options: Any
) -> dict[str, dict[str, Any]]:
    """Results of several models on the same documents, one model after another.

    Args:
        models: what makes each, by name; one is let go before the next is made.
        tasks: `Tasks`.
        **options: of `Tasks.evaluate`.

    Returns:
        By model, as `Tasks.evaluate`, with `model` and `cut_contexts` beside.
    """
    found = {}
    for name, make in models.items():
        lm = make()
        found[name] = {
            **tasks.evaluate(lm, **options),
            "model": lm.get_model_info(),
            "cut_contexts": lm.cut_contexts,
        }
    return found


def rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, int, list]]:
    """Lines of a table: task, metric, shots, documents, and `(value, standard error)` by model.

    Args:
        results: from `evaluate`.
    """
    first = next(iter(results.values()))
    for task, metrics in first["results"].items():
        for name in metrics:
            metric, _, kind = name.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            shots = str(first["n-shot"].get(task, ""))
            count = first["n-samples"].get(task, {}).get("effective", 0)
            other = f"{metric}_stderr,{kind}"
            each = [results[model]["results"][task] for model in results]
            label = metric if kind == "none" else f"{metric} ({kind})"
            yield task, label, shots, count, [(m.get(name), m.get(other)) for m in each]


def _manager(names: Sequence[str], include_path: Any) -> TaskManager:
    own = None if include_path is None else str(include_path)
    if own is not None:
        found = TaskManager(include_path=own, include_defaults=False)
        if all(found.match_tasks([name]) for name in names):
            return found
    every = TaskManager(include_path=own)
    for name in names:
        if not every.match_tasks([name]):
            mine = [] if own is None else found.all_tasks[:_SHOWN]
            here = (
                f" {include_path} has {', '.join(mine) or 'none that can be read'}." if own else ""
            )
            raise ValueError(
                f"Expected the name of a task of lm-eval. Received: {name!r}."
                f"{check.nearest(name, every.all_tasks, most=3)}{here}"
            )
    return every


def _configs(index: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The YAML of a task, or of all tasks of a group or tag, as far as it is their own."""
    entry = index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    if isinstance(config.get("task"), str) and "group" not in config:
        yield config
    children = config.get("task") if isinstance(config.get("task"), list) else entry.tags
    for child in children or ():
        if isinstance(child, str) and child != name:
            yield from _configs(index, child)


def _check_rows(config: Mapping[str, Any]) -> None:
    """Refuses a local JSONL file with a row that lacks what the task's templates ask for.

    `datasets` fills such a row with None, which a template writes as a word.
    """
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") != "json" or config.get("process_docs"):
        return
    needed = {key for name in _TEMPLATES for key in _keys(config.get(name))}
    for path in _paths(files):
        if path.suffix == ".jsonl" and path.is_file():
            _check_file(path, needed, config.get("task"))


def _check_file(path: Path, needed: set[str], task: Any) -> None:
    text = path.read_text(encoding="utf-8-sig")  # str.splitlines would part texts that hold U+2028
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Expected JSON in {where}. Received: {error}.") from error
        if not isinstance(row, dict) or (missing := sorted(needed - set(row))):
            said = f"{list(row)}, without {missing}" if isinstance(row, dict) else repr(row)
            raise ValueError(
                f"Expected an object with {sorted(needed)}, which task {task!r} asks for, in "
                f"{where}. Received: {said}."
            )
    if not lines:
        raise ValueError(f"Expected documents of task {task!r} in {path}. Received: none.")


def _keys(template: Any) -> Iterator[str]:
    """Keys of a document that a template reads; of a function none are known."""
    if isinstance(template, (list, tuple)):
        for one in template:
            yield from _keys(one)
    if not isinstance(template, str):
        return
    if re.fullmatch(r"[^\W\d]\w*", template):  # a key alone
        yield template
        return
    try:
        yield from jinja2.meta.find_undeclared_variables(lm_eval.utils.env.parse(template))
    except jinja2.TemplateSyntaxError:
        return  # lm-eval says so when it renders it


def _paths(files: Any) -> list[Path]:
    """The local files that `data_files` names: one, several, or some for each split."""
    if isinstance(files, Mapping):
        return [path for some in files.values() for path in _paths(some)]
    several = [files] if isinstance(files, str) else files or []
    return [Path(file) for file in several if "://" not in str(file)]


def _plain(value: Any) -> Any:
    """The same as JSON's types: numbers of NumPy as Python's, what is none of them as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
