"""What the models of a scale cost: operations, and seconds of a query (claim C15).

Knows which models are held against each other. Leaves counting to `keras_encdec.evaluation.flops`,
clocks to `keras_encdec.evaluation.latency`.
"""

import keras_hub

from keras_encdec.evaluation.claims_arms import Scale
from keras_encdec.evaluation.claims_data import Data
from keras_encdec.evaluation.flops import forward_flops
from keras_encdec.evaluation.latency import pair_writer, source_writer, time_queries
from keras_encdec.sharing import catalog
from keras_encdec.sharing.load import adapt

_QUERIES = 40


def costs(scale: Scale, data: Data) -> dict[str, dict[str, list[float]]]:
    """By model, its `"flops"`, one number, and its `"seconds"`, one for each query.

    A query is half a window read, and as many tokens written one by one, at batch 1 and greedily;
    its FLOPs are those of one pass, with attention to every key and without logits, which all
    write alike. Decoder-only models run in KerasHub's engine, pairs in ours, without drafts.

    Args:
        scale: `Scale`.
        data: whose windows are read.
    """
    small, large, half = scale.small, scale.large, scale.half
    specs, writers = {}, {}
    for name, encoder, decoder in (
        ("pair of small", small, small),
        ("pair of large", large, large),
        ("large with small", large, small),
    ):
        lm = adapt(encoder, decoder, dtype=scale.dtype)
        specs[name] = lm.backbone.spec
        start = lm.preprocessor.converter.start_token_id
        writers[name] = pair_writer(lm, half, start, draft=None)
    for name, preset in (("small", small), ("large", large)):
        specs[name] = specs[f"pair of {name}"].decoder
        place = catalog.on_this_machine(preset)
        lm = keras_hub.models.CausalLM.from_preset(place, preprocessor=None, dtype=scale.dtype)
        writers[name] = source_writer(lm, half)
    times = time_queries(writers, data.test.windows[:_QUERIES, :half], half)
    flops = {name: forward_flops(spec, half, half) for name, spec in specs.items()}
    return {
        name: {
            "flops": [float(flops[name].linear + flops[name].attention)],
            "seconds": times.seconds[name].tolist(),
        }
        for name in writers
    }
