"""`keras-encdec demo`: the whole job in small, on text and weights that ship with it.

Converts the embedded decoder-only model, adapts it with PrefixLM next to a pair that
starts from random weights, then fine-tunes it to summarise.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import keras_encdec
from keras_encdec.cli.plots import plot_curves
from keras_encdec.data import docstrings
from keras_encdec.files import atomic_folder
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.progress import track
from keras_encdec.sharing import catalog

SOURCE = "gemma2_tiny_docs"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the demo; `steps` is what `--minutes` scales.

    Chosen so that the default shows the encoder in use: short halves, where the
    input says most about the target.
    """

    steps: int = 180
    batch_size: int = 16
    half: int = 64
    rate: float = 1e-3
    scratch_rate: float = 3e-3
    held_out_windows: int = 256
    evaluations: int = 6
    summary_steps: int = 110
    body_length: int = 128
    summary_length: int = 32
    packages: tuple[str, ...] = docstrings.PACKAGES

    @property
    def windows(self) -> int:
        return self.steps * self.batch_size


def demo(output: str, minutes: float = 8, steps: int | None = None) -> dict:
    """Runs the demo and returns what it also writes to `results.json`.

    Args:
        output: folder for the preset, the numbers and the curves.
        minutes: budget on two cores.
        steps: adaptation steps instead.

    Raises:
        ValueError: if the budget is not positive, or `output` holds something else.
    """
    settings = _settings(minutes, steps)
    console = Console()
    start = time.time()
    keras.utils.set_random_seed(0)
    with atomic_folder(output, also=("results.json", "curves.png")) as folder:
        results = _run(settings, folder, console)
        results["minutes"] = round((time.time() - start) / 60, 2)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"\nDone in {results['minutes']} minutes. The adapted and fine-tuned model, the")
    console.print(f"numbers and the curves are in {Path(output).resolve()}:")
    console.print("  config.json ...   load it with keras_encdec.from_preset")
    console.print("  results.json      every number above\n  curves.png        the losses")
    return results


def _settings(minutes: float, steps: int | None) -> Settings:
    default = Settings()
    steps = round(default.steps * minutes / 8) if steps is None else steps
    if steps < 1:
        raise ValueError(f"Expected a positive budget. Received: {minutes} minutes, {steps} steps.")
    share = steps / default.steps
    return dataclasses.replace(
        default,
        steps=steps,
        evaluations=min(default.evaluations, steps),
        summary_steps=max(1, round(default.summary_steps * share)),
        held_out_windows=min(default.held_out_windows, 64 * steps),
        packages=default.packages if steps > 100 else ("keras", "numpy"),
    )


def _run(settings: Settings, folder: Path, console: Console) -> dict:
    training, held_out = docstrings.load(
        settings.packages, lambda files: track(files, "Reading docstrings of installed packages")
    )
    console.print(
        f"{len(training):,} docstrings to train on, {len(held_out):,} held out, by file.\n"
    )
    source = keras_hub.models.GemmaCausalLM.from_preset(catalog.embedded(SOURCE), preprocessor=None)
    lm = _prepare(keras_encdec.from_preset("gemma2_tiny_tiny"), settings)
    scratch = _prepare(_from_scratch(lm), settings)
    texts = _windows(lm, training, settings.windows)
    examples = _windows(lm, held_out, settings.held_out_windows)
    results: dict = {"settings": dataclasses.asdict(settings)}
    results["source_with_input"] = _source_loss(source, examples, with_input=True)
    results["source_without_input"] = _source_loss(source, examples, with_input=False)
    results["adapted"] = _adapt(lm, texts, examples, settings, settings.rate, "Adapting")
    results["from_scratch"] = _adapt(
        scratch, texts, examples, settings, settings.scratch_rate, "From scratch"
    )
    _print_losses(results, console)
    plot_curves(results, folder / "curves.png")
    results["summaries"] = _summarise(lm, training, held_out, settings, console)
    lm.save_to_preset(folder)
    return results


def _prepare(lm: EncDecSeq2SeqLM, settings: Settings) -> EncDecSeq2SeqLM:
    lm.preprocessor.encoder_sequence_length = settings.half
    lm.preprocessor.decoder_sequence_length = settings.half
    return lm


def _from_scratch(lm: EncDecSeq2SeqLM) -> EncDecSeq2SeqLM:
    spec = lm.backbone.spec
    preprocessor = type(lm.preprocessor)(lm.preprocessor.tokenizer)
    return EncDecSeq2SeqLM(EncDecBackbone(spec.encoder, spec.decoder), preprocessor)


def _windows(lm: EncDecSeq2SeqLM, docs: list, count: int) -> tuple:
    """The first `count` whole windows of the documents, in an order drawn once."""
    order = np.random.default_rng(0).permutation(len(docs))
    length = lm.preprocessor.decoder_sequence_length
    rows, found = [], 0
    for start in range(0, len(order), 256):
        texts = [docs[i].text for i in order[start : start + 256]]
        x, y, weight = lm.preprocessor(texts)
        whole = weight.sum(axis=-1) == length
        rows.append(keras.tree.map_structure(lambda a, keep=whole: a[keep], (x, y, weight)))
        found += whole.sum()
        if found >= count:
            break
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays)[:count], *rows)


def _source_loss(source: Any, examples: tuple, with_input: bool) -> float:
    """Held-out loss per target token of the decoder-only model."""
    x, y, weight = examples
    start = x["decoder_token_ids"][:, :1]
    before = x["encoder_token_ids"] if with_input else x["encoder_token_ids"][:, :0]
    token_ids = np.concatenate([start, before, y[:, :-1]], axis=1)
    targets = np.concatenate([np.zeros_like(before), y], axis=1)
    weights = np.concatenate([np.zeros(before.shape, "float32"), weight], axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    source.compile("sgd", loss, weighted_metrics=None)
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    return _evaluate(source, (inputs, targets, weights))


def _adapt(
    lm: EncDecSeq2SeqLM, texts: tuple, examples: tuple, settings: Settings, rate: float, name: str
) -> dict:
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, settings.steps, alpha=0.05, warmup_target=rate, warmup_steps=min(30, settings.steps)
    )
    curve = _train(lm, texts, examples, settings, schedule, settings.evaluations, name)
    return {
        "before": curve.losses[0],
        "after": curve.losses[-1],
        "steps": curve.steps,
        "losses": curve.losses,
    }


def _train(
    lm: EncDecSeq2SeqLM,
    texts: tuple,
    examples: tuple,
    settings: Settings,
    rate: Any,
    evaluations: int,
    name: str,
) -> "Curve":
    """One pass over `texts`, with held-out losses on `examples` along the way."""
    x, y, weight = texts
    steps = -(-len(y) // settings.batch_size)
    curve = Curve(examples, max(1, steps // evaluations), steps, name)
    lm.compile(keras.optimizers.AdamW(rate, beta_2=0.98, global_clipnorm=1.0), sampler="greedy")
    lm.fit(x, y, sample_weight=weight, batch_size=settings.batch_size, verbose=0, callbacks=[curve])
    return curve


def _evaluate(lm: Any, examples: tuple) -> float:
    x, y, weight = examples
    logs = lm.evaluate(x, y, sample_weight=weight, batch_size=32, verbose=0, return_dict=True)
    return round(float(logs["loss"]), 4)


class Curve(keras.callbacks.Callback):
    """Held-out losses along the way, under a progress bar."""

    def __init__(self, examples: tuple, every: int, total: int, name: str):
        super().__init__()
        self.examples, self.every, self.total = examples, every, total
        self.steps: list[int] = []
        self.losses: list[float] = []
        columns = (
            TextColumn("{task.description:44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns)
        self.name = name

    def on_train_begin(self, logs: Any = None) -> None:
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=self.total)
        self.record(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = batch + 1
        if step % self.every == 0 or step == self.total:
            self.record(step)
        self.bar.update(self.task, completed=step)

    def record(self, step: int) -> None:
        loss = _evaluate(self.model, self.examples)
        self.steps.append(step)
        self.losses.append(loss)
        self.bar.update(self.task, description=f"{self.name}: held-out loss {loss:.3f}")

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.stop()


def _print_losses(results: dict, console: Console) -> None:
    table = Table("held-out loss per target token", "nats", box=None, title_justify="left")
    table.add_row(
        "source model, with the input before the target", f"{results['source_with_input']:.3f}"
    )
    table.add_row("source model, without the input", f"{results['source_without_input']:.3f}")
    for name, key in (("adapted pair", "adapted"), ("pair from random weights", "from_scratch")):
        run = results[key]
        for step, loss in zip(run["steps"], run["losses"], strict=True):
            if step in (0, run["steps"][len(run["steps"]) // 2], run["steps"][-1]):
                table.add_row(f"{name}, step {step}", f"{loss:.3f}")
    console.print(table)
    gap = results["source_without_input"] - results["adapted"]["after"]
    verdict = "below" if gap > 0 else "NOT below"
    console.print(
        f"\nThe pair ends {abs(gap):.3f} {verdict} the source without input, where a pair that "
        "ignores its encoder would stand.\n"
    )


def _summarise(
    lm: EncDecSeq2SeqLM, training: list, held_out: list, settings: Settings, console: Console
) -> dict:
    """Fine-tunes body -> summary and writes three summaries of held-out docstrings."""
    lm.preprocessor.encoder_sequence_length = settings.body_length
    lm.preprocessor.decoder_sequence_length = settings.summary_length
    count = settings.summary_steps * settings.batch_size
    pairs = [pair for doc in training if (pair := doc.summary_and_body)]
    order = np.random.default_rng(1).permutation(len(pairs))[:count]
    summaries, bodies = zip(*(pairs[i] for i in order), strict=True)
    texts = lm.preprocessor({"encoder_text": list(bodies), "decoder_text": list(summaries)})
    held = [pair for doc in held_out if (pair := doc.summary_and_body)]
    chosen = [held[i] for i in np.random.default_rng(2).permutation(len(held))]
    examples = lm.preprocessor(
        {"encoder_text": [b for _, b in chosen[:64]], "decoder_text": [s for s, _ in chosen[:64]]}
    )
    rate = keras.optimizers.schedules.CosineDecay(
        settings.rate / 2, settings.summary_steps, alpha=0.05
    )
    curve = _train(lm, texts, examples, settings, rate, 2, "Fine-tuning to summarise")
    written = lm.generate([body for _, body in chosen[:3]])
    shown = []
    for (summary, body), text in zip(chosen, written, strict=False):
        rows = {
            "docstring": f"{' '.join(body.split())[:200]} ...",
            "its line": summary,
            "the pair": text,
        }
        for name, value in rows.items():
            console.print(f"[bold]{name:10}[/] {escape(value)}", highlight=False)
        console.print()
        shown.append({"body": body, "summary": summary, "generated": text})
    return {"before": curve.losses[0], "after": curve.losses[-1], "examples": shown}
