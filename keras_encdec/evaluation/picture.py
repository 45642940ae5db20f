"""Pictures: matplotlib's figures without a window and without its global state.

The one place that asks for matplotlib, which the demo extra brings.
"""

from typing import Any

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def figure(width: float = 10, height: float = 4) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches, whose parts do not overlap.

    Raises:
        ImportError: without matplotlib, naming the pip line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'keras-encdec[demo]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Any) -> None:
    """Writes a figure as a PNG."""
    drawn.savefig(path, format="png", dpi=120)
