"""Models in the layouts of other libraries: to a folder, or by a handle to a hub.

Leaves the layouts and the hubs to `keras_encdec.sharing`.
"""

from collections.abc import Callable
from typing import Any

from keras_encdec import check
from keras_encdec.spec import PairSpec

_OF_UPLOADS = "license", "private", "message"


class Exports:
    """Gives a pair's task, an encoder, or a task on one, its `export_to_transformers`."""

    def export_to_transformers(
        self, path: Any, max_shard_size: float = 5.0, **options: Any
    ) -> None:
        """Writes the model as transformers loads it to a folder, or uploads it to a hub.

        A pair becomes a T5Gemma, or a T5Gemma 2 where its attention is merged and its sides share
        one embedding; an encoder T5Gemma's encoder, with a classifier's head, or a
        decoder-only model with `is_causal` in its config.

        Args:
            path: a folder, as of `keras_encdec.sharing.export.export_to_transformers` or, of
                encoders, `keras_encdec.sharing.export_encoder.export_encoder`; or a handle,
                `"hf://owner/model"` or `"kaggle://owner/model/transformers/variation"`.
            max_shard_size: of one file, in GiB.
            **options: with a handle, `license`, `private` and `message` of
                `keras_encdec.upload_preset`.

        Raises:
            ValueError: naming what the layout cannot hold, or as `keras_encdec.upload_preset`.

        Example:
            >>> classifier.export_to_transformers("./hf_classifier")
            >>> transformers.pipeline("text-classification", "./hf_classifier")("A text.")
        """
        from keras_encdec.sharing.export import export_to_transformers
        from keras_encdec.sharing.export_encoder import export_encoder

        model: Any = self
        pair = isinstance(getattr(model, "backbone", model).spec, PairSpec)
        write = export_to_transformers if pair else export_encoder
        exported(lambda folder: write(model, folder, max_shard_size), path, options)


def exported(write: Callable[[Any], None], path: Any, options: dict[str, Any]) -> None:
    """Lets a model be written to a folder, or to one on its way to a hub.

    Args:
        write: writes it to a folder.
        path: the folder, or a handle.
        options: of the upload.

    Raises:
        ValueError: if there are options of an upload without a handle, or as
            `keras_encdec.upload_preset`.
    """
    from keras_encdec.sharing.upload import folder_for, upload_preset

    check.keywords("a keyword of export_to_transformers()", options, _OF_UPLOADS)
    if "://" not in str(path):
        if options:
            raise ValueError(f"Expected a handle with {sorted(options)}. Received: {path}.")
        return write(path)
    with folder_for(path) as folder:
        write(folder)
        upload_preset(folder, path, **options)
