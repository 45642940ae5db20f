"""The scores that arXiv 2504.06225 prints, which ship as presets/paper_scores.json."""

from keras_encdec.evaluation.correlation import Scored, read_table
from keras_encdec.sharing import catalog

# What it says of Spearman's coefficients (figure 6): over all models, and the mean within sizes.
# Which models went in is not said; those of its tables give the first number alone.
CLAIMED = {("PT", "IT"): (0.97, 0.42), ("PT", "SuperGLUE"): (0.89, 0.05)}


def paper_table() -> list[Scored]:
    """Tables 2 and 4: 25 models of seven sizes."""
    return read_table(catalog.folder() / "paper_scores.json")
