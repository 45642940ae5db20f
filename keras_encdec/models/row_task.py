"""Tasks whose data is rows, each with a loss of its own: how rows are batched.

Leaves what a row is to the tasks, and `fit` and its like to `keras_encdec.models.learner`.
"""

from collections.abc import Mapping
from typing import Any

from keras_encdec import layout
from keras_encdec.data.batching import Batching
from keras_encdec.data.labelled import Classes
from keras_encdec.models.learner import Learner
from keras_encdec.models.task_files import TaskFiles
from keras_encdec.training.encoder_trainer import EncoderTrainer


class RowTask(TaskFiles, Learner, EncoderTrainer):
    """Gives a task what trains and saves it."""

    def _batching(
        self,
        batch_size: int | None,
        class_weight: Mapping[int, float] | None = None,
        epochs: int | None = None,
        **options: Any,
    ) -> Batching:
        own = {"shuffle": False, "epochs": epochs or 1, "multiple": layout.replicas()}
        return Batching(batch_size, **{**own, "classes": self._classes(class_weight), **options})

    def _classes(self, class_weight: Mapping[int, float] | None) -> Classes | None:
        """Which labels there may be; None for any."""
        if class_weight is not None:
            raise ValueError(
                "Expected no class_weight: there are no classes. Received: one. Weigh rows by "
                "sample_weight."
            )
        return None
