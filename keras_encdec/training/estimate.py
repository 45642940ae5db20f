"""How much memory training takes on each device, before anything is allocated.

Knows the sums and what is said of them. Leaves a run's options to
`keras_encdec.training.planned`, variables to `keras_encdec.training.held`, the formulas of
a step to `keras_encdec.training.working`, and what else would fit to
`keras_encdec.training.fitting`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

from keras_encdec import check
from keras_encdec.spec import PairSpec, StackSpec
from keras_encdec.training import held
from keras_encdec.training.fitting import Alternative, Whole, left_whole, nearest
from keras_encdec.training.loss import CHUNK_TOKENS
from keras_encdec.training.planned import PlannedRun
from keras_encdec.training.working import Working

_PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "teacher",
    "gathered",
    "activations",
    "output_loss",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on each device; prints as tables in GB of 1e9 bytes.

    Args:
        devices: how many there are.
        parameters: all weights, with LoRA and the scales of quantization. Exact.
        gradients: of the trainable ones, and their sums in float32 where a batch is gone
            through in parts. Exact.
        optimizer: slots and counters. Exact.
        teacher: weights of a teacher that is asked.
        gathered: weights of blocks that the mesh's batch axis cuts, whole from a block's
            forward pass to its backward pass; with remat, of one block at a time.
        activations: of the blocks, by formula.
        output_loss: logits of a chunk, and a copy and a gradient of the embedding.
        even: `parameters`, were each cut by all devices.
        whole: weights that the mesh does not cut along an axis, as it does not divide them.
        limit: bytes of a device, if `estimate` was told.
        alternatives: runs within the limit, where this one is not, the nearest first.
    """

    devices: int
    parameters: int
    gradients: int
    optimizer: int
    teacher: int
    gathered: int
    activations: int
    output_loss: int
    even: int
    whole: tuple[Whole, ...] = ()
    limit: float | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in _PARTS)

    @property
    def fits(self) -> bool | None:
        """Whether the total is within the limit; None without one."""
        return None if self.limit is None else self.total <= self.limit

    def table(self) -> Table:
        """The parts and their sum as a `rich` table."""
        sizes = {name.replace("_", " "): getattr(self, name) for name in (*_PARTS, "total")}
        sizes = {name: size for name, size in sizes.items() if size}
        return _table("memory", sizes, f"GB on each of {self.devices}")

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as text:
            console.print(self.table())
            if self.whole:
                share = f"left whole: {self.parameters / self.even:.1f} times an even share"
                console.print(_table(share, {str(w): w.held for w in self.whole}))
            if self.limit is not None:
                console.print(self._verdict())
        return text.get()

    def _verdict(self) -> Table | str:
        size = f"{(self.limit or 0) / 1e9:g} GB"
        if self.fits:
            return f" fits in {size}"
        if not self.alternatives:
            return f" does not fit in {size}, nor does what was tried instead"
        others = {str(a): a.total for a in self.alternatives}
        return _table(f"does not fit in {size}, but would", others)


def _table(name: str, sizes: Mapping[str, int], unit: str = "GB on each") -> Table:
    table = Table(name, box=None)
    table.add_column(unit, justify="right")
    for text, size in sizes.items():
        table.add_row(text, f"{size / 1e9:,.3f}")
    return table


def estimate(
    pair: PairSpec | Any,
    *,
    mesh: keras.distribution.DeviceMesh | tuple[int, int] | None = None,
    batch_size: int,
    source_length: int,
    target_length: int,
    dtype: str = "float32",
    optimizer: str | keras.optimizers.Optimizer = "adamw",
    lora_rank: int | None = None,
    train_cross_attention: bool = True,
    quantization: str | None = None,
    attention: str = "fused",
    remat: bool = False,
    chunk_tokens: int | None = CHUNK_TOKENS,
    gradient_accumulation_steps: int = 1,
    teacher: StackSpec | None = None,
    teacher_dtype: str = "bfloat16",
    fits: float | None = None,
) -> Estimate:
    """The memory of a training step on each device.

    Args:
        pair: what is trained: a `PairSpec`, or what has one as its `spec`, such as
            `keras_encdec.presets["gemma2_9b_2b"]` or `lm.backbone`.
        mesh: `keras.distribution.DeviceMesh` with axes `batch` and `model`, or its shape;
            None for one device. For data parallel: None, with a device's `batch_size`.
        batch_size: B on all devices together.
        source_length: S.
        target_length: T.
        dtype: name of a dtype policy, such as `"bfloat16"` or `"mixed_bfloat16"`.
        optimizer: name or `keras.optimizers.Optimizer`.
        lora_rank: of `backbone.enable_lora`, or None.
        train_cross_attention: of `backbone.enable_lora`.
        quantization: `"int8"` or `"int4"` of `lm.quantize`, or None.
        attention: `"plain"`, as merged attention always is, or `"fused"`.
        remat: of `lm.compile`.
        chunk_tokens: of `FusedCrossEntropy`; None for a loss that takes logits.
        gradient_accumulation_steps: of `lm.compile`.
        teacher: the spec of a causal LM that `Distillation` asks in each step, such as
            `keras_encdec.presets["gemma2_9b_9b"].spec.decoder`; None for none.
        teacher_dtype: its policy; `"int8_from_bfloat16"` if it is quantized.
        fits: bytes of a device. Where the run needs more, others that do not are looked for.

    Returns:
        `Estimate`. `fits` and `alternatives` answer `fits=`.

    Raises:
        ValueError: if an option is none of these.

    Example:
        >>> sizes = {"batch_size": 8, "source_length": 1024, "target_length": 1024}
        >>> recipe = keras_encdec.presets["gemma2_9b_2b"]
        >>> print(estimate(recipe, mesh=(8, 1), dtype="mixed_bfloat16", fits=32e9, **sizes))
    """
    options = {name: value for name, value in locals().items() if name not in ("pair", "fits")}
    run = PlannedRun(getattr(pair, "spec", pair), **options)
    return _of(run) if fits is None else _within(run, check.real("fits", fits, above=0))


def _within(run: PlannedRun, limit: float) -> Estimate:
    found = _of(run)
    others = () if found.total <= limit else nearest(run, limit, lambda other: _of(other).total)
    return dataclasses.replace(found, limit=limit, alternatives=others)


def _of(run: PlannedRun) -> Estimate:
    weights, working = held.weights(run), Working(run)
    trainable = [weight for weight in weights if weight.trainable]
    whole = held.bytes_of(dataclasses.replace(weight, layout=None) for weight in weights)
    return Estimate(
        devices=run.devices,
        parameters=held.bytes_of(weights),
        gradients=held.bytes_of(held.gradients(run, trainable)),
        optimizer=held.bytes_of(held.slots(run.optimizer, trainable)),
        teacher=held.bytes_of(held.teacher_weights(run)),
        gathered=working.gathered(),
        activations=working.activations(),
        output_loss=working.output_loss(),
        even=whole // run.devices,
        whole=left_whole(run, weights),
    )
