"""Peak memory and time of converting a Gemma 2 2B-shaped preset into 2B-2B.

    python bench/convert_2b.py /tmp/gemma2_2b_shape

The first call writes a preset of random bfloat16 weights (5.2 GB) to that folder. Prints
one line: seconds, peak resident memory, and its ratio to the finished model.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")


def write_preset(folder: Path) -> None:
    import keras_hub

    from keras_encdec.sharing import catalog

    spec = catalog.known_spec("gemma2_2b")
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=spec.vocabulary_size,
        num_layers=spec.num_layers,
        num_query_heads=spec.attention.num_heads,
        num_key_value_heads=spec.attention.num_kv_heads,
        hidden_dim=spec.width,
        intermediate_dim=2 * spec.feedforward_dim,
        head_dim=spec.attention.head_dim,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        attention_logit_soft_cap=spec.attention.logit_soft_cap,
        final_logit_soft_cap=spec.final_logit_soft_cap,
        use_sliding_window_attention=True,
        dtype="bfloat16",
    )
    backbone.save_to_preset(str(folder))
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    tokenizer.save_to_preset(str(folder))


def convert(folder: Path, what: str) -> None:
    import keras_encdec

    start = time.time()
    lm = keras_encdec.adapt(str(folder), dtype="bfloat16")
    seconds = time.time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    finished = 2 * lm.backbone.count_params()
    print(
        f"convert {what}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, "
        f"finished model {finished / 1e9:.2f} GB, ratio {peak / finished:.3f}"
    )


def main(script: str, description: str, write: Callable[[Path], None], what: str) -> None:
    """Writes the folder if it is not there, and converts it in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=["write", "convert"])
    args = parser.parse_args()
    if args.stage == "write":
        write(args.folder)
    elif args.stage == "convert":
        convert(args.folder, what)
    else:
        for stage in ["convert"] if args.folder.exists() else ["write", "convert"]:
            subprocess.run([sys.executable, script, args.folder, "--stage", stage], check=True)


if __name__ == "__main__":
    main(__file__, __doc__.split("\n")[0], write_preset, "2B-2B bfloat16")
