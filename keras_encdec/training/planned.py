"""A run that is only planned: what is trained, on which devices, with which options.

Knows what may be asked for and how a batch is divided. Leaves what variables take to
`keras_encdec.training.held` and what a step needs beside them to
`keras_encdec.training.working`.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import keras
from keras.distribution import DeviceMesh, TensorLayout

from keras_encdec import check
from keras_encdec.layout.axes import axis_sizes, layout_map
from keras_encdec.spec import PairSpec, StackSpec


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """The arguments of `keras_encdec.training.estimate`, which says what they are.

    Raises:
        ValueError: if one of them cannot be.
    """

    pair: PairSpec
    mesh: DeviceMesh | None
    batch_size: int
    source_length: int
    target_length: int
    dtype: str
    optimizer: str | keras.optimizers.Optimizer
    lora_rank: int | None
    train_cross_attention: bool
    quantization: str | None
    attention: str
    remat: bool
    chunk_tokens: int | None
    gradient_accumulation_steps: int
    teacher: StackSpec | None
    teacher_dtype: str

    def __post_init__(self) -> None:
        if not isinstance(self.pair, PairSpec):
            raise ValueError(
                f"Expected pair as a PairSpec, a recipe or a backbone. Received: {self.pair!r}. "
                "Names are those of keras_encdec.presets: presets['gemma2_9b_2b']."
            )
        if self.teacher is not None and not isinstance(self.teacher, StackSpec):
            raise ValueError(
                f"Expected teacher as a StackSpec or None. Received: {self.teacher!r}. Take a "
                "recipe's: keras_encdec.presets['gemma2_9b_9b'].spec.decoder."
            )
        for name in ("batch_size", "source_length", "target_length", "gradient_accumulation_steps"):
            check.whole(name, getattr(self, name))
        for name in ("lora_rank", "chunk_tokens"):
            if getattr(self, name) is not None:
                check.whole(name, getattr(self, name))
        for name in ("train_cross_attention", "remat"):
            check.flag(name, getattr(self, name))
        check.one_of("quantization", self.quantization, (None, "int8", "int4"))
        check.one_of("attention", self.attention, ("plain", "fused"))
        for name in ("dtype", "teacher_dtype"):
            _policy(name, getattr(self, name))
        object.__setattr__(self, "mesh", _mesh(self.mesh))
        self._check_known()
        self._check_parts()

    def _check_parts(self) -> None:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                "Expected a batch_size that gradient_accumulation_steps divide. Received: "
                f"{self.batch_size} rows in {self.gradient_accumulation_steps} parts."
            )

    def _check_known(self) -> None:
        """Refuses stacks that the formulas were not measured with."""
        stacks = {"encoder": self.pair.encoder, "decoder": self.pair.decoder}
        stacks |= {} if self.teacher is None else {"teacher": self.teacher}
        for name, stack in stacks.items():
            if stack.experts is not None:
                raise ValueError(
                    "Expected no experts, of which it is not known what a step takes. Received: "
                    f"{stack.experts.num_experts} in the {name}. Measure a step instead."
                )
            unlike = {len(set(stack.attentions)), len(set(stack.feedforward_dims))} != {1}
            if unlike or stack.borrowing_layers or stack.per_layer_dim is not None:
                raise ValueError(
                    "Expected layers that are alike, with keys and values of their own. Received: "
                    f"others in the {name}, of which it is not known what a step takes. Measure a "
                    "step instead."
                )

    def layout(self, path: str) -> TensorLayout | None:
        """Where a variable of the pair lies; the blocks of a stack are alike."""
        path = re.sub(r"/block_\d+/", "/block_0/", path)
        if path not in self._layouts:
            self._layouts[path] = None if self._layout_map is None else self._layout_map.get(path)
        return self._layouts[path]

    @functools.cached_property
    def _layouts(self) -> dict[str, TensorLayout | None]:
        return {}  # those that were asked for: Keras tries each pattern each time

    @functools.cached_property
    def _layout_map(self) -> keras.distribution.LayoutMap | None:
        return None if self.mesh is None else layout_map(self.mesh, self.pair)

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.devices.size

    @property
    def rows(self) -> int:
        """Of the batch that one device goes through at a time."""
        replicas = 1 if self.mesh is None else axis_sizes(self.mesh)["batch"]
        return -(-self.batch_size // (replicas * self.gradient_accumulation_steps))

    @property
    def policy(self) -> keras.DTypePolicy:
        return _policy("dtype", self.dtype)

    @property
    def teacher_policy(self) -> keras.DTypePolicy:
        return _policy("teacher_dtype", self.teacher_dtype)


def _policy(name: str, dtype: Any) -> keras.DTypePolicy:
    try:
        return keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {name} as the name of a policy. Received: {dtype!r}."
        ) from error


def _mesh(mesh: Any) -> DeviceMesh | None:
    """The mesh, of devices that need not exist where it is a shape."""
    if mesh is None or isinstance(mesh, DeviceMesh):
        return mesh
    if not isinstance(mesh, (tuple, list)) or len(mesh) != 2:
        raise ValueError(f"Expected mesh as (batch, model), or None. Received: {mesh!r}.")
    shape = tuple(check.whole("mesh", n) for n in mesh)
    devices = [f"planned:{i}" for i in range(math.prod(shape))]
    return DeviceMesh(shape, ("batch", "model"), devices)
