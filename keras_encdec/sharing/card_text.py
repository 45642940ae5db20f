"""What a card says of a model: its record, for a person to read.

Knows words and tables. Leaves front matter, the user's own text and files to
`keras_encdec.sharing.card`.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from keras_encdec.families import pairs
from keras_encdec.sharing import licenses
from keras_encdec.spec import EncoderSpec, PairSpec, StackSpec, count_parameters

SITE = "https://arxiv.org/abs/2504.06225"
TAGS = ("keras", "encoder-decoder", "keras-encdec")
_SIDES = ("encoder", "decoder")
BLANK = "To be filled by the author."
BLANKS = ("Intended use", "Training data", "Limits, risks and biases")

# Of tasks that write nothing: the hubs' name, what it is for, and a line that uses it.
_TASKS = {
    "EncDecTextClassifier": (
        "text-classification",
        " A head on it classifies texts.",
        'print(model.classify(["A text."]))',
    ),
    "EncDecTextEmbedder": (
        "feature-extraction",
        " It makes vectors of texts, to search and compare them by.",
        'print(model.encode_text(["A text."], prompt="document"))',
    ),
    "EncDecMaskedLM": (
        "fill-mask",
        " It predicts hidden tokens, by the state in front of each: a start for other tasks.",
        'model.fit(["A text.", "Another."])',
    ),
    "EncDecReranker": (
        "text-ranking",
        " It ranks documents by how well they answer a query.",
        'print(model.rank("A query.", ["A document.", "Another."]))',
    ),
    "EncDecRewardModel": (
        "text-classification",
        " It says how good an answer to an input is.",
        'print(model.score(["An input."], ["An answer."]))',
    ),
    "EncoderBackbone": (
        "feature-extraction",
        "",
        'print(model({"token_ids": ids, "padding_mask": mask}))',
    ),
    "SentenceTransformer": (
        "sentence-similarity",
        " It makes vectors of texts, to search and compare them by.",
        'print(model.encode(["A text."], prompt_name="document"))',
    ),
    "T5GemmaForSequenceClassification": (
        "text-classification",
        " A head on it classifies texts.",
        "print(model(**inputs).logits)",
    ),
}
_STATES = "feature-extraction", "", "print(model(**inputs).last_hidden_state)"

Record = Mapping[str, Any]
Spec = PairSpec | EncoderSpec


def front_matter(record: Record, is_export: bool, kind: str = "") -> dict[str, Any]:
    """Fields of the hubs' front matter, as far as they are known.

    Args:
        record: `lm.provenance`.
        is_export: whether the files are those of transformers.
        kind: class of the task or backbone.
    """
    sources = list(record["sources"].values())
    bases = list(dict.fromkeys(s["hugging_face"] for s in sources if s.get("hugging_face")))
    languages = list(dict.fromkeys(one for s in sources for one in s.get("language", ())))
    license = licenses.common(record["sources"])
    encodes = kind in _TASKS or kind.endswith("Model")  # of transformers, without a head
    fields = {
        "library_name": _library(is_export, kind),
        "pipeline_tag": _TASKS.get(kind, _STATES)[0] if encodes else "text2text-generation",
        "license": license,
        "base_model": bases,
        "base_model_relation": "finetune" if bases else None,
        "language": languages,
        "tags": list(TAGS),
    }
    return {name: value for name, value in fields.items() if value}


def _library(is_export: bool, kind: str) -> str:
    """Whose files they are, as the hubs call it."""
    if kind == "SentenceTransformer":
        return "sentence-transformers"
    return "transformers" if is_export else "keras-hub"


def marked_part(record: Record, spec: Spec, handle: str, is_export: bool, kind: str = "") -> str:
    """What the package says of a model, in Markdown.

    Args:
        record: `lm.provenance`.
        spec: of the pair, or of an encoder alone.
        handle: what the model is loaded by.
        is_export: whether the files are those of transformers.
        kind: class of the task or backbone.
    """
    if isinstance(spec, EncoderSpec) or kind in _TASKS:
        use = (_use_exported if is_export else _how_to_use_task)(handle, kind)
    else:
        use = _how_to_use(spec, handle, is_export)
    return "\n\n".join((_what_it_is(record, spec, kind), _how_made(record), use))


# What it is.


def _what_it_is(record: Record, spec: Spec, kind: str) -> str:
    total = f"{count_parameters(spec.weights()):,}"
    if isinstance(spec, EncoderSpec):
        causal = spec.encoder_attention == "causal"
        how = "token by token, each seeing those before it" if causal else "at once"
        text = f"An encoder of {total} parameters, which reads a text {how}."
    else:
        text = (
            f"An encoder-decoder language model of {total} parameters: the encoder reads the input "
            "at once, in both directions, and the decoder writes the output."
        )
    text += _TASKS[kind][1] if kind in _TASKS else ""
    text += f" Made with keras_encdec by the method of [Encoder-Decoder Gemma]({SITE})."
    sides = _sides(spec)
    return f"{text}\n\n{_table(('', *sides), _rows_of_sides(record['sources'], spec))}"


def _sides(spec: Spec) -> tuple[str, ...]:
    return _SIDES[:1] if isinstance(spec, EncoderSpec) else _SIDES


def _rows_of_sides(sources: Record, spec: Spec) -> Iterator[tuple[str, ...]]:
    sides = _sides(spec)
    made_of = [sources.get(side) or sources.get("pair") or {} for side in sides]
    stacks: list[StackSpec] = [getattr(spec, side) for side in sides]
    if any(made_of):
        yield "made of", *(_source(source) for source in made_of)
        yield "licence of that", *(source.get("license") or "not recorded" for source in made_of)
    yield "parameters", *(f"{_parameters(spec, side):,}" for side in sides)
    yield "layers", *(str(stack.num_layers) for stack in stacks)
    yield "width", *(f"{stack.width:,}" for stack in stacks)
    yield "attention heads", *(_heads(stack) for stack in stacks)
    if any(stack.experts for stack in stacks):
        yield "experts", *(_experts(stack) for stack in stacks)
    yield "vocabulary", *(f"{stack.vocabulary_size:,}" for stack in stacks)


def _source(source: Record) -> str:
    name, there = source.get("name", "not recorded"), source.get("hugging_face")
    return f"{name} ([{there}](https://huggingface.co/{there}))" if there else str(name)


def _parameters(spec: Spec, side: str) -> int:
    weights = spec.weights()
    return count_parameters({n: s for n, s in weights.items() if n.startswith(f"{side}/")})


def _heads(stack: StackSpec) -> str:
    kinds = dict.fromkeys((each.num_heads, each.num_kv_heads) for each in stack.attentions)
    return " or ".join(f"{heads}, {keys} of keys and values" for heads, keys in kinds)


def _experts(stack: StackSpec) -> str:
    experts = stack.experts
    if experts is None:
        return "none"
    shared = "" if experts.shared_dim is None else " and one that all share"
    return f"{experts.num_experts}, {experts.top_k} for a token{shared}"


# How it was made.


def _how_made(record: Record) -> str:
    history = record["history"]
    if not history and not record["sources"]:
        return "## How it was made\n\nIts weights are random, or were set by hand."
    told = _told(history)
    lines = [f"{number}. {_line(entry)}" for number, entry in enumerate(told, 1)]
    parts = ["## How it was made", "\n".join(lines)]
    runs = [entry for entry in told if entry["what"] == "fit"]
    if runs:
        head = ("run", "learned from", "tokens read / written", "steps", "learning rate", "loss")
        parts.append(_table(head, [_row_of_run(n, run) for n, run in enumerate(runs, 1)]))
        total = {side: sum(run["tokens"][side] for run in runs) for side in _SIDES}
        parts.append(
            f"Tokens seen in all: {total['encoder']:,} by the encoder, {total['decoder']:,} by the "
            "decoder, padding not counted. Losses are means over target tokens, in nats: of the "
            "first batch, and of the last epoch."
        )
        parts.append("\n".join(f"- Run {n}: {_details(run)}" for n, run in enumerate(runs, 1)))
    return "\n\n".join(parts)


def _told(history: list[Record]) -> list[Record]:
    """All that changed the model; with which of its runs a fit is."""
    numbers, every = itertools.count(1), _with_merged(history)
    return [{**e, "number": next(numbers)} if e["what"] == "fit" else e for e in every]


def _with_merged(history: list[Record], model: str = "") -> Iterator[Record]:
    """What was done, before a merge to each model that went into it, whose name it then has."""
    for entry in history:
        for one in entry.get("models", ()):
            yield from _with_merged(one["history"], one["name"])
        yield {**entry, "model": model}


def _line(entry: Record) -> str:
    what, day = entry["what"], str(entry.get("date", ""))[:10]
    model = f"{entry['model']}, " if entry["model"] else ""
    known = {
        "converted": lambda: f"converted: {entry.get('plan')}{_options(entry)}",
        "fit": lambda: f"trained, run {entry['number']} below, {entry['state']}",
        "lora": lambda: (
            f"LoRA of rank {entry.get('rank')} on {_and(entry.get('layers', ()))}"
            + (
                ", beside a cross-attention that trains whole"
                * bool(entry["whole_cross_attention"])
            )
        ),
        "lora merged": lambda: f"LoRA of rank {entry.get('rank')} merged into the weights",
        "quantised": lambda: f"quantised: {entry.get('mode')}",
        "loaded": lambda: "loaded from files that say nothing of what was done before",
        "exported": lambda: "exported to the layout of transformers, quantised weights as floats",
        "made an encoder": lambda: f"made a {entry.get('attention')} encoder, alone",
        "encoder taken": lambda: "the encoder taken out, alone",
        "train_on_batch": lambda: f"`train_on_batch`, {entry['times']:,} times",
        "weights loaded": lambda: f"weights loaded from {entry.get('name')}",
        "merged": lambda: _merged(entry),
        "averaged": lambda: f"the mean of the weights at steps {_and(entry['steps'])}",
    }
    return f"{day}: {model}{known.get(what, lambda: what)()}."


def _merged(entry: Record) -> str:
    text = f"merged by {entry['method']} of " + _and(
        [f"{one['name']} ({one['weight']:.3g})" for one in entry["models"]]
    )
    if "density" in entry:
        text += f", {entry['density']:.3g} of their changes kept"
    if "base" in entry:
        text += f", {entry['strength']:.3g} of the way from {entry['base']}"
    return text


def _options(entry: Record) -> str:
    said = [f"{name}={value!r}" for name, value in entry.get("options", {}).items()]
    return f" (with {_and(said)})" if said else ""


def _row_of_run(number: int, run: Record) -> tuple[str, ...]:
    tokens = [f"{run['tokens'][side]:,}" for side in _SIDES]
    losses = [run.get(when, {}).get("loss") for when in ("first", "last")]
    loss = " → ".join("?" if loss is None else f"{loss:.3f}" for loss in losses)
    held_out = run.get("last", {}).get("val_loss")
    loss += "" if held_out is None else f" (held out {held_out:.3f})"
    steps = f"{run['steps']:,}"
    return str(number), _data(run["data"]), " / ".join(tokens), steps, _rate(run), loss


def _data(data: Record) -> str:
    objective = data.get("objective")
    if not isinstance(objective, Mapping):
        return str(objective or data["kind"])
    inner = objective.get("objectives")
    name = str(objective["class"])
    if isinstance(inner, list):
        return f"{data['kind']}, {name} of {_and([str(one['class']) for one in inner])}"
    return f"{data['kind']}, {name}"


def _rate(run: Record) -> str:
    rate = run.get("learning_rate")
    if isinstance(rate, Mapping):
        config = rate.get("config", {})
        peak = config.get("warmup_target") or config.get("initial_learning_rate")
        return f"{rate.get('class_name')}" + (f", {peak:g}" if isinstance(peak, float) else "")
    return f"{rate:g}" if isinstance(rate, float) else str(rate)


def _details(run: Record) -> str:
    data, loss = run["data"], run.get("loss")
    size = data.get("batch_size")
    lengths = [data.get(f"{side}_sequence_length") for side in _SIDES]
    objective = data.get("objective")
    parts = [
        _objective(objective) if isinstance(objective, Mapping) else "",
        _many(run["batches"], "batch", "es") + (f" of {size} rows" if size else ""),
        _many(run["epochs"], "whole epoch"),
        f"texts of up to {lengths[0]} and {lengths[1]} tokens" if all(lengths) else "",
        "packed" if data.get("packing") else "",
        f"{run['optimizer']}, {run['trained_parameters']:,} parameters trained",
        "" if isinstance(loss, Mapping) else f"loss {loss}",
        run["policy"],
        "distilled" if run.get("distillation") else "",
        _average(run.get("average") or {}),
        _and([f"{name} {version}" for name, version in run.get("versions", {}).items()]),
    ]
    return "; ".join(filter(None, parts)) + "."


def _average(average: Record) -> str:
    """What is said where a mean of the weights is what training gave."""
    in_place = average.get("in_place")
    return f"weights averaged over steps, decay {average['decay']:g}" if in_place else ""


def _objective(config: Record) -> str:
    """The class of an objective with those of its fields that are short."""
    short = {k: v for k, v in config.items() if isinstance(v, (str, int, float)) and k != "class"}
    return f"{config['class']}({', '.join(f'{k}={v!r}' for k, v in short.items())})"


def _many(count: int, what: str, ending: str = "s") -> str:
    return f"{count:,} {what}" + ending * (count != 1)


# How to use it.


def _how_to_use(spec: PairSpec, handle: str, is_export: bool) -> str:
    if is_export:
        load = f'"{handle.removeprefix("hf://")}"'
        kind = _class_in_transformers(spec)
        code = (
            f"from transformers import AutoTokenizer, {kind}\n\n"
            f"model = {kind}.from_pretrained({load})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({load})\n"
            'inputs = tokenizer("A text.", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"
        )
        back = f'import keras_encdec\n\nlm = keras_encdec.from_preset("{handle}")'
        return f"## How to use it\n\n{_code(code)}\n\nBack in Keras:\n\n{_code(back)}"
    ours = (
        f'import keras_encdec\n\nlm = keras_encdec.from_preset("{handle}")\n'
        'print(lm.generate("A text."))'
    )
    theirs = (
        "import keras_encdec  # whose classes KerasHub then knows\nimport keras_hub\n\n"
        f'lm = keras_hub.models.Seq2SeqLM.from_preset("{handle}")'
    )
    return (
        f"## How to use it\n\n`pip install keras-encdec`, then:\n\n{_code(ours)}\n\n"
        f"In KerasHub:\n\n{_code(theirs)}\n\n{_in_transformers(spec)}"
    )


def _how_to_use_task(handle: str, kind: str) -> str:
    use = _TASKS[kind][2] if kind in _TASKS else "print(model.summary())"
    load = f'model = keras_encdec.models.{kind}.from_preset("{handle}")'
    code = f"import keras_encdec\n\n{load}\n{use}"
    return f"## How to use it\n\n`pip install keras-encdec`, then:\n\n{_code(code)}"


def _use_exported(handle: str, kind: str) -> str:
    """Of an encoder in a layout of others."""
    name = handle.removeprefix("hf://")
    if kind == "SentenceTransformer":
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")'
        )
    else:
        code = (
            f"from transformers import AutoTokenizer, {kind}\n\n"
            f'model = {kind}.from_pretrained("{name}")\n'
            f'inputs = AutoTokenizer.from_pretrained("{name}")("A text.", return_tensors="pt")'
        )
    code += f"\n{_TASKS.get(kind, _STATES)[2]}"
    load = f'encoder = keras_encdec.models.EncoderBackbone.from_preset("{handle}")'
    back = "" if "Classification" in kind else _code(f"import keras_encdec\n\n{load}")
    return f"## How to use it\n\n{_code(code)}" + (back and f"\n\nBack in Keras:\n\n{back}")


def _in_transformers(spec: PairSpec) -> str:
    kind = _class_in_transformers(spec)
    if kind is None:
        return "transformers has no layout for a pair of this kind."
    code = (
        'lm.export_to_transformers("./exported")\n\n'
        f"from transformers import {kind}\n\n"
        f'model = {kind}.from_pretrained("./exported")'
    )
    return f"In transformers, after an export:\n\n{_code(code)}"


def _class_in_transformers(spec: PairSpec) -> str | None:
    """That loads an export of a pair; None if there is no layout for it."""
    try:
        return pairs.layout_of(spec, "float32").config["architectures"][0]
    except ValueError:
        return None


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _and(names: Any) -> str:
    *first, last = map(str, names or ("nothing",))
    return f"{', '.join(first)} and {last}" if first else last
