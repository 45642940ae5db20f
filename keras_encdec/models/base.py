"""What all our backbones are beside their stacks: settings, LoRA, quantisation, files.

Leaves which stacks there are to the backbones, dtype policies in files to
`keras_encdec.models.policies`, and files of LoRA to `keras_encdec.models.lora`.
"""

import dataclasses
import gc
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import keras_hub

from keras_encdec import check, formats, hosts, integrity, layout
from keras_encdec.files import atomic_folder, final_of, shard_names
from keras_encdec.layers.stack import Stack
from keras_encdec.layout.axes import layout_map
from keras_encdec.models import lora, policies
from keras_encdec.models.images import beside_images, of_images
from keras_encdec.provenance import Provenance
from keras_encdec.spec import EncoderSpec, PairSpec
from keras_encdec.training.held import quantized
from keras_encdec.training.warmup import is_new, pretrained
from keras_encdec.warn import warn

_QUANTISED = "kernel", "embeddings"  # ends of their paths


class StacksBackbone(keras_hub.models.Backbone):
    """A KerasHub backbone of our stacks, which are there before it is made.

    Args:
        spec: what it is; its fields are the config.
        dtype: dtype or policy of computations and weights.
        **kwargs: of `keras_hub.models.Backbone`, `inputs` and `outputs` among them.
    """

    spec: Any  # `PairSpec` or `EncoderSpec`

    def __init__(self, spec: PairSpec | EncoderSpec, dtype: Any = None, **kwargs: Any):
        super().__init__(dtype=None if dtype is None else policies.default(dtype), **kwargs)
        policies.settle(self)
        self.spec, self.record = spec, Provenance()

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Those that it is made of, the encoder first."""
        raise NotImplementedError

    @property
    def has_experts(self) -> bool:
        """Whether a stack has layers of experts, which TensorFlow's XLA cannot compile."""
        return any(stack.spec.experts is not None for stack in self.stacks)

    @classmethod
    def of(cls, spec: PairSpec | EncoderSpec, **kwargs: Any) -> Any:
        """The backbone of a spec."""
        fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        return cls(**fields, **kwargs)

    @property
    def attention(self) -> str:
        """How attention is computed: one of `keras_encdec.layers.choice.PATHS`."""
        return self.stacks[0].attention

    @attention.setter
    def attention(self, path: str) -> None:
        for stack in self.stacks:
            stack.check_attention(path)  # all of them, before one is set
        for stack in self.stacks:
            stack.attention = path

    @property
    def remat(self) -> bool:
        """Whether the backward pass computes each block again."""
        return self.stacks[0].remat

    @remat.setter
    def remat(self, value: bool) -> None:
        check.flag("remat", value)
        for stack in self.stacks:
            stack.remat = value

    @property
    def scan(self) -> bool:
        """Whether blocks that are alike are compiled once."""
        return self.stacks[0].scan

    @scan.setter
    def scan(self, value: bool) -> None:
        for stack in self.stacks:
            stack.scan = value

    def _enable_lora(
        self, rank: int, target_layer_names: Sequence[str] | None, whole: bool
    ) -> None:
        """Freezes the model, but for LoRA and, with `whole`, for a cross-attention, which is new.

        Raises:
            ValueError: as `EncDecBackbone.enable_lora`.
        """
        rank = check.whole("rank", rank)
        names = self._lora_names(target_layer_names)
        new = [layer for layer in self._flatten_layers() if not pretrained(layer)]
        if whole and any(getattr(layer, "quantization_mode", None) for layer in new):
            raise ValueError(
                "Expected a cross-attention in float, as it is to train. Received: a quantised "
                "one. Quantise with filters=keras_encdec.training.pretrained, or pass "
                "train_cross_attention=False."
            )
        numbers = self._lora_targets(names, whole)
        self.record.add("lora", rank=rank, layers=names, whole_cross_attention=whole)
        self._lora_rank, self._lora_enabled_layers = rank, numbers
        self._trains_cross_attention = whole
        self.trainable = True
        layers = lora.numbered_layers(self)
        for layer in self._flatten_layers(include_self=False):
            layer.trainable = False
        for layer in new if whole else ():
            layer.trainable = True
        for layer in (layers[i] for i in numbers):
            layer.trainable = True
            layer.enable_lora(rank)
            if getattr(layer, "bias", None) is not None:
                layer.bias.trainable = False

    def _lora_targets(self, names: Sequence[str], train_cross_attention: bool) -> list[int]:
        """Numbers of the layers of these names, less those that train whole."""
        return [
            i
            for i, layer in enumerate(lora.numbered_layers(self))
            if layer.name in names
            and hasattr(layer, "enable_lora")
            and (pretrained(layer) or not train_cross_attention)
        ]

    def _lora_names(self, asked: Sequence[str] | None) -> list[str]:
        """Names of the layers that get LoRA.

        Raises:
            ValueError: if there is no layer of a name, with the nearest one.
        """
        if asked is None:
            return self.default_lora_layer_names()
        can = [x.name for x in lora.numbered_layers(self) if hasattr(x, "enable_lora")]
        known = tuple(dict.fromkeys(can))
        names: list[Any] = [asked] if isinstance(asked, str) else list(asked)
        for name in names or [asked]:
            check.one_of("target_layer_names", name, known)
        return names

    @hosts.by_first
    def save_lora_weights(self, filepath: str | os.PathLike) -> None:
        """Writes what trained after `enable_lora`: LoRA, and the cross-attention if it is whole.

        A file of KerasHub's format, which reads LoRA from it; see `keras_encdec.models.lora`.

        Args:
            filepath: its name, which ends in `.lora.h5`.

        Raises:
            ValueError: without LoRA, or if the name ends otherwise.
        """
        numbers = self._lora_numbers
        if not numbers:
            raise ValueError("Expected a model with LoRA. Received: none. Call enable_lora first.")
        layers = lora.numbered_layers(self)
        trains = {id(v) for v in self.trainable_variables}
        whole = [
            v
            for v in self.weights
            if not v.name.startswith("lora_")
            and (id(v) in trains or (self._trains_cross_attention and is_new(v.path)))
        ]
        lora.write(filepath, self._lora_rank, {i: layers[i] for i in numbers}, whole)

    def load_lora_weights(self, filepath: str | os.PathLike) -> None:
        """Reads what `save_lora_weights` wrote into a pair of the same sources and options.

        Enables LoRA as it was enabled there, where it is not yet.

        Raises:
            ValueError: if the file is damaged or of another pair; no weight is changed then.
        """
        found, layers = lora.read(filepath), lora.numbered_layers(self)
        if self._lora_numbers:
            lora.check_fits(self, found, self._lora_numbers, self._lora_rank)
            if self._trains_cross_attention and not found.trained:
                warn(f"{filepath} holds LoRA alone: the cross-attention stays as it is.")
        else:
            names = sorted({layers[i].name for i in found.layers if i < len(layers)})
            whole = any(map(is_new, found.trained))
            lora.check_fits(self, found, self._lora_targets(names, whole), found.rank)
            self._enable_lora(found.rank, names, whole)
        with layout.placing(self.weights):
            lora.assign(self, found)
        self.record.add("lora loaded", name=Path(filepath).name)

    @property
    def _lora_numbers(self) -> list[int]:
        """Of the layers with LoRA, as `lora.numbered_layers` counts them."""
        return getattr(self, "_lora_enabled_layers", [])

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, in seconds instead of minutes; what reads images stays.

        Of experts the kernels are kept in int8, and computed with in the dtype of what goes in;
        routers stay.

        Raises:
            ValueError: if there are experts and the mode is not int8, or it has a weight quantiser
                of its own; or if the active distribution cannot cut a weight in int4, of which
                two share a byte. Nothing is quantised then.
        """
        config = kwargs.get("config")
        if self.has_experts and (
            (mode or getattr(config, "mode", None)) != "int8"
            or getattr(config, "weight_quantizer", None) is not None
        ):
            raise ValueError(
                "Expected mode='int8' for a model with experts, which have no other, by the "
                f"largest number of each column. Received: {mode or config!r}."
            )
        if mode == "int4":
            weights = self.spec.weights().items()
            parts = ((p, s) for p, s in weights if p.endswith(_QUANTISED) and not of_images(p))
            every = (w for path, shape in parts for w in quantized(path, shape, "float32", mode))
            layout.check({weight.path: weight.shape for weight in every})
        if getattr(self.spec, "vision", None) is not None:
            kwargs["filters"] = beside_images(kwargs.get("filters"))
        gc.freeze()  # Keras collects garbage after every kernel: 0.3 s each, without this
        try:
            with warnings.catch_warnings():  # of each norm, which is to stay as it is
                warnings.filterwarnings("ignore", "Layer .* does not have a `quantize` method")
                super().quantize(mode, **kwargs)
        finally:
            gc.unfreeze()
        self.record.add("quantised", mode=str(mode or kwargs.get("config")))

    @hosts.by_first
    def save_to_preset(
        self, preset_dir: str | os.PathLike, max_shard_size: float | None = 10
    ) -> None:
        """As `EncDecSeq2SeqLM.save_to_preset`, without a task."""
        size, largest = policies.bytes_in_files(self.weights, max_shard_size)
        with atomic_folder(preset_dir, size, largest=largest) as folder:
            super().save_to_preset(str(folder), max_shard_size)
            self.describe(folder, preset_dir)

    def merged_in_files(self) -> list[dict[str, Any]]:
        """What the record of files says beside the model's: they hold LoRA merged."""
        return [{"what": "lora merged", "rank": self._lora_rank}] if self._lora_numbers else []

    def describe(self, folder: Path, name: str | os.PathLike) -> None:
        """Writes what a preset holds beside KerasHub's files: record, card and checksums.

        Args:
            folder: the preset that is being written.
            name: what it will be called; a card that is there is the user's, who keeps it.
        """
        from keras_encdec.sharing.card import write_card

        self.record.write(folder, *self.merged_in_files())
        write_card(folder, final_of(name))
        integrity.write(folder, self)

    def load_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in Keras, but refuses damaged files, of which Keras skips what it cannot read.

        Raises:
            ValueError: if a file is missing, truncated or lies outside the folder; or if it is
                a preset's and a weight is not the one that was saved.
        """
        path = Path(filepath)
        _check_readable(path)
        with layout.placing(self.weights):
            super().load_weights(filepath, *args, **kwargs)
        if path.name in ("model.weights.h5", "model.weights.json"):  # a preset's
            integrity.check_weights(path.parent, self)
            self.record.read(path.parent)
        else:
            self.record.add("weights loaded", name=path.name)

    def save_assets(self, folder: str) -> None:
        """Keeps the record in a .keras file."""
        self.record.write(Path(folder))

    def load_assets(self, folder: str) -> None:
        """Reads the record of a .keras file."""
        self.record.read(Path(folder))

    @staticmethod
    def get_layout_map(
        device_mesh: keras.distribution.DeviceMesh,
        spec: PairSpec | EncoderSpec | None = None,
        model_parallel_dim_name: str = "model",
        data_parallel_dim_name: str = "batch",
    ) -> keras.distribution.LayoutMap:
        """See `keras_encdec.layout.axes.layout_map`.

        Example:
            >>> mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
            >>> layout_map = EncDecBackbone.get_layout_map(mesh)
            >>> distribution = keras.distribution.ModelParallel(layout_map=layout_map)
            >>> keras.distribution.set_distribution(distribution)
        """
        return layout_map(device_mesh, spec, model_parallel_dim_name, data_parallel_dim_name)

    def get_config(self) -> dict[str, Any]:
        own = {"name": self.name, "trainable": self.trainable, **formats.mark("preset")}
        return {**own, **policies.config_of(self), **dataclasses.asdict(self.spec)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        formats.check_known("preset", config, config.get("name", "a config"))
        config.pop(formats.KEY, None)
        dtype, quantization = policies.taken_from(config)
        backbone = cls(**config, dtype=dtype)
        policies.restore(backbone, quantization)
        return backbone


def _check_readable(path: Path) -> None:
    for name in shard_names(path) if path.suffix == ".json" else [path.name]:
        try:
            h5py.File(path.with_name(name)).close()
        except OSError as error:
            raise ValueError(
                f"Expected a whole weights file. Received: {path.with_name(name)}, which cannot "
                f"be read ({error}). Download or save it again."
            ) from error
