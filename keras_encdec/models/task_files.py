"""What every task of ours does with its files: save, upload, quantise, say how it was made.

Leaves folders and hubs to `keras_encdec.sharing`.
"""

from typing import Any

import keras

from keras_encdec import check, hosts, integrity
from keras_encdec.files import atomic_folder
from keras_encdec.models.policies import bytes_in_files

_Mixin: Any = object  # beside a keras_hub.models.Task, whose methods it calls


class TaskFiles(_Mixin):
    """Gives a task on a backbone of ours its files."""

    backbone: Any
    recording: Any

    @property
    def provenance(self) -> dict[str, Any]:
        """How the model was made, as JSON types: see `keras_encdec.provenance`; a copy."""
        if self.recording is not None:
            self.recording.note()
        return self.backbone.record.to_json()

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, of the backbone: a tokenizer has nothing to quantise."""
        self.backbone.quantize(mode, **kwargs)
        self.train_function = self.test_function = self.predict_function = None

    @hosts.by_first
    def save_to_preset(self, preset_dir: Any, max_shard_size: float | None = 10) -> None:
        """Writes a KerasHub preset folder, whole or not at all.

        Args:
            preset_dir: the folder; new, empty, or a preset to replace.
            max_shard_size: of one weights file, in GB; None for a single file.

        Raises:
            ValueError: if the folder holds something else, or a weight is not finite.
        """
        if max_shard_size is not None:
            check.real("max_shard_size", max_shard_size, above=0)
        size, largest = bytes_in_files(self.weights, max_shard_size)
        integrity.check_head(self)
        with atomic_folder(preset_dir, size, largest=largest) as folder:
            super().save_to_preset(str(folder), max_shard_size)
            self.backbone.describe(folder, preset_dir)

    def upload(
        self,
        handle: str,
        *,
        license: str | None = None,
        private: bool | None = None,
        message: str | None = None,
        max_shard_size: float | None = 10,
    ) -> None:
        """Saves and uploads it: see `keras_encdec.upload_preset`.

        Where disk or connection are narrow, call `save_to_preset` and
        `keras_encdec.upload_preset`: after a kill the folder is still there.

        Example:
            >>> lm.upload("hf://me/my_model", license="gemma", private=True)
        """
        from keras_encdec.sharing.upload import folder_for, upload_preset

        options: Any = {"license": license, "private": private, "message": message}
        with folder_for(handle) as folder:
            self.save_to_preset(folder, max_shard_size)
            upload_preset(folder, handle, **options)


class HeadFiles(TaskFiles):
    """Gives a task a head that lies in a file of its own, beside the backbone's."""

    def save_task_weights(self, filepath: Any) -> None:
        """As in KerasHub, without the optimizer's, which it would keep of the backbone too."""
        keras.saving.save_weights(self, str(filepath), objects_to_skip=self._not_in_a_head())

    def load_task_weights(self, filepath: Any) -> None:
        """As in KerasHub, of a head alone."""
        keras.saving.load_weights(self, str(filepath), objects_to_skip=self._not_in_a_head())

    def _not_in_a_head(self) -> list[Any]:
        return [*self.backbone._flatten_layers(), self.optimizer]
