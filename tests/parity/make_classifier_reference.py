"""Makes logits and a gradient of transformers' T5GemmaForSequenceClassification, encoder only.

The encoder is that of hf_t5gemma/, within its window; the head is drawn here. Writes
hf_classifier.npz. Run with `python make_classifier_reference.py` where transformers==5.23.0, torch
2.13 (CPU) and safetensors are installed with pip.
"""

from pathlib import Path

import numpy as np
import torch
from make_transformers_reference import make_ids
from transformers import T5GemmaForSequenceClassification

HERE = Path(__file__).parent
NUM_LABELS = 3
RATE = 0.1  # of one step of plain gradient descent


def main():
    rng = np.random.default_rng(7)
    model = T5GemmaForSequenceClassification.from_pretrained(
        HERE / "hf_t5gemma",
        is_encoder_decoder=False,
        num_labels=NUM_LABELS,
        attn_implementation="eager",
    ).eval()
    head = model.score.out_proj
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(rng.normal(0, 0.2, tuple(head.weight.shape))))
        head.bias.copy_(torch.from_numpy(rng.normal(0, 0.2, tuple(head.bias.shape))))
    ids, mask = make_ids(rng, (14, 9, 11))
    labels = np.array([2, 0, 1])
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    kept = {
        "token_ids": ids,
        "padding_mask": mask,
        "labels": labels,
        "kernel": head.weight.detach().numpy().T.copy(),
        "bias": head.bias.detach().numpy().copy(),
    }
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    before = model(**inputs)
    loss = torch.nn.functional.cross_entropy(before.logits, torch.from_numpy(labels))
    loss.backward()
    query = model.model.encoder.layers[0].self_attn.q_proj.weight.grad
    kept |= {
        "logits": before.logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "kernel_gradient": head.weight.grad.numpy().T.copy(),
        "query_gradient": query.numpy().copy(),
    }
    optimizer.step()
    with torch.no_grad():
        kept["logits_after"] = model(**inputs).logits.numpy()
    np.savez_compressed(HERE / "hf_classifier.npz", **kept)
    moved = np.abs(kept["logits_after"] - kept["logits"]).max()
    print(f"loss {float(loss.detach()):.4f}; one step moves logits by up to {moved:.3f}")


if __name__ == "__main__":
    main()
