"""The guides of this repository, and what a run of one must not print."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "guides").glob("*.py"))
EXECUTED = ("any_family", "generation")  # as notebooks


def warnings_of_ours(printed, name):
    """Lines in which a warning points at a guide, as ours do, or at this package."""
    places = rf"(?:{re.escape(name)}|keras_encdec/\S+\.py|ipykernel_\S+\.py)"
    return re.findall(rf"^.*{places}:\d+: \w*Warning.*$", printed, re.MULTILINE)
