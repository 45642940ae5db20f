"""Pictures of what the demo measured."""

from pathlib import Path

from keras_encdec.evaluation import picture


def plot_curves(results: dict, path: Path) -> None:
    """Held-out loss of both pairs over steps, beside the source model's two levels.

    Args:
        results: from the demo.
        path: the PNG to write.

    Raises:
        ImportError: without matplotlib, naming the pip line.
    """
    figure = picture.figure(10, 4)
    whole, close = figure.subplots(1, 2)
    for axes in (whole, close):
        for key, label in (("adapted", "adapted pair"), ("from_scratch", "from random weights")):
            axes.plot(results[key]["steps"], results[key]["losses"], marker="o", label=label)
        axes.axhline(results["source_without_input"], ls="--", c="gray", label="source, no input")
        axes.axhline(results["source_with_input"], ls=":", c="black", label="source, with input")
        axes.set_xlabel("steps")
    whole.set_ylabel("held-out loss per target token (nats)")
    low, high = results["source_with_input"], results["source_without_input"]
    close.set_ylim(low - 0.5 * (high - low), high + 2 * (high - low))
    close.set_title("the same, close up")
    whole.legend()
    picture.save(figure, path)
