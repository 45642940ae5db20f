"""How likely a pair finds several answers to each input, which is read once for all of them.

Leaves what is made of that to `keras_encdec.training.preference_trainer` and
`keras_encdec.training.policy_trainer`.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.token_likelihood import token_log_likelihoods
from keras_encdec.training.trainer import Trainer


class AnswerTrainer(Trainer):
    """Trains a pair, `backbone`, on n answers to each input."""

    def answer_log_probs(
        self, x: Mapping[str, Tensor], labels: Tensor, training: bool, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(B, n, T) float32 log-probabilities of labels, in nats, and 1 where there is one, else 0.

        Args:
            x: model inputs, of encoder (B, S) and decoder (B, n, T).
            labels: (B, n, T).
            training: whether dropout is on, and gradients will be asked for.
            temperature: that logits are divided by.
        """
        model: Any = self
        encoder, decoder = model.backbone.encoder, model.backbone.decoder
        read = x["encoder_token_ids"], x["encoder_padding_mask"]
        shape, each = (ops.shape(read[0])[0], *labels.shape[1:]), labels.shape[1]
        ids, mask, labels = (
            ops.reshape(a, (-1, ops.shape(a)[-1]))
            for a in (x["decoder_token_ids"], x["decoder_padding_mask"], labels)
        )
        states, seen = encoder(*read, training=training), read[1]
        if states.shape[0] is None:  # in TensorFlow's graphs, where no one knows who shares what
            states, seen = (ops.repeat(a, each, axis=0) for a in (states, seen))
        states = decoder(ids, mask, states, seen, training=training)
        there = ops.cast(mask != 0, "float32")
        options: dict[str, Any] = {"training": training, "temperature": temperature}
        found = token_log_likelihoods(states, decoder.embedding, labels, there, **options)
        return ops.reshape(found, shape), ops.reshape(there, shape)

    def count_tokens(self, x: Mapping[str, Tensor]) -> None:
        """Adds a batch to those that were trained on."""
        self.token_counter.update_state(x["encoder_padding_mask"], x["decoder_padding_mask"])

    def report_means(
        self, mean: Tensor, weight: Tensor, logs: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """Takes a batch into the means that are reported.

        Args:
            mean: the loss.
            weight: (B,) what it counts.
            logs: numbers (B,), and what each counts (B,), by name.
        """
        assert self._reported is not None
        of_loss, *others = self._reported.metrics
        of_loss.update_state(mean, sample_weight=ops.sum(weight))
        for metric in others:
            values, counts = logs[metric.name]
            metric.update_state(values, sample_weight=counts)
