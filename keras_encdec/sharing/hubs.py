"""Kaggle and Hugging Face by their handles: pages, caches, and what the clients ask for.

Knows the form of a handle, where the clients keep what they fetched, and which variables they
take credentials from. Leaves what an error means to `keras_encdec.sharing.hub_errors`, fetching
to `keras_encdec.sharing.fetch`, and sending to `keras_encdec.sharing.upload`.
"""

import abc
import contextlib
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
import kagglehub
from huggingface_hub.utils import HFValidationError, validate_repo_id
from kagglehub.cache import Cache, get_cached_path
from kagglehub.config import get_cache_folder
from kagglehub.handle import ModelHandle, parse_model_handle

from keras_encdec.files import KEPT, OWN

_FETCHED = [*OWN, *KEPT]
_WHOLE = "[0-9]*.complete"  # what kagglehub puts beside a version that it fetched whole


class Hub(abc.ABC):
    """A model of a hub.

    Args:
        handle: whole, with its scheme.

    Raises:
        ValueError: if it has not the form of one.
    """

    name = ""
    scheme = ""
    credentials = ""

    def __init__(self, handle: str):
        self.handle = handle
        self.id = handle.removeprefix(self.scheme)

    @property
    @abc.abstractmethod
    def page(self) -> str:
        """Where a person looks at it."""

    @abc.abstractmethod
    def fetch(self) -> str:
        """The folder of all its files that a preset or checkpoint may have, fetched if need be."""

    @abc.abstractmethod
    def cached(self) -> str:
        """A sentence on what is on this machine already."""


class HuggingFace(Hub):
    """`hf://owner/model`."""

    name, scheme = "Hugging Face", "hf://"
    credentials = (
        "Make a token at https://huggingface.co/settings/tokens and put it into the environment "
        "variable HF_TOKEN, or call huggingface_hub.login()."
    )

    def __init__(self, handle: str):
        super().__init__(handle)
        try:
            validate_repo_id(self.id)
        except HFValidationError as error:
            raise ValueError(
                "Expected a handle of Hugging Face such as 'hf://owner/model'. Received: "
                f"{handle!r}."
            ) from error

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"

    def fetch(self) -> str:
        return huggingface_hub.snapshot_download(self.id, allow_patterns=_FETCHED)

    def cached(self) -> str:
        sizes = {}
        with contextlib.suppress(Exception):  # there is no cache, or one of another version
            repos = huggingface_hub.scan_cache_dir().repos
            sizes = {f"hf://{r.repo_id}": r.size_on_disk for r in repos if r.repo_type == "model"}
        own = sizes.pop(self.handle, None)
        if own is not None:
            return f"Of it {own / 1e6:,.1f} MB are on this machine, not all of it."
        return _told_others(sizes)


class Kaggle(Hub):
    """`kaggle://owner/model/framework/variation`, with a version behind it or not."""

    name, scheme = "Kaggle", "kaggle://"
    credentials = (
        "Make a token at https://www.kaggle.com/settings and put it into the environment variable "
        "KAGGLE_API_TOKEN (or KAGGLE_USERNAME and KAGGLE_KEY), or call kagglehub.login()."
    )

    def __init__(self, handle: str):
        super().__init__(handle)
        try:
            self.parsed: ModelHandle = parse_model_handle(self.id)
            self.parsed.framework_enum()
            whole = all(self.id.split("/"))
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(
                "Expected a handle of Kaggle such as 'kaggle://owner/model/keras/variation', with "
                f"a version behind it or not. Received: {handle!r}."
            )

    @property
    def page(self) -> str:
        return f"https://www.kaggle.com/models/{self.id}"

    def fetch(self) -> str:
        return self.here() or kagglehub.model_download(self.id)

    def here(self) -> str | None:
        """The folder of a version that was fetched whole."""
        return Cache().load_from_cache(self.parsed) if self.parsed.is_versioned() else None

    def cached(self) -> str:
        unversioned = self.parsed.with_version(0)
        folder = Path(get_cached_path(unversioned)).parent
        whole = [int(mark.stem) for mark in folder.glob(_WHOLE)]
        if whole:
            return (
                f"On this machine is {self.scheme}{unversioned}/{max(whole)}: load it by that name."
            )
        models = Path(get_cache_folder()) / "models"
        marks = models.glob(f"*/*/*/*/{_WHOLE}")
        found = {f"kaggle://{m.relative_to(models).with_suffix('').as_posix()}": 0 for m in marks}
        return _told_others(found)


def hub_of(handle: str) -> Hub | None:
    """What a handle names; None for a folder or a name.

    Raises:
        ValueError: if it is of a hub, and has not the form of its handles.
    """
    for kind in (HuggingFace, Kaggle):
        if str(handle).startswith(kind.scheme):
            return kind(str(handle))
    return None


def _told_others(handles: Iterable[str]) -> str:
    names = sorted(handles)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    if not names:
        return "Nothing of it is on this machine."
    return f"Nothing of it is on this machine; there are {', '.join(names[:5])}{more}."
