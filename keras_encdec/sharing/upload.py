"""A model to Kaggle or Hugging Face, card and licence with it.

Knows what is asked before a byte is sent, and when a model is published: not before the hub
has all of it. Sends by the hubs' own clients, as `keras_hub.upload_preset` would write a card
of its own over ours. Leaves what is whole to `keras_encdec.sharing.whole`, and the words of
errors to `keras_encdec.sharing.hub_errors`.
"""

import abc
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import kagglehub

from keras_encdec import provenance
from keras_encdec.files import OWN, read_json
from keras_encdec.private import kaggle_files
from keras_encdec.progress import say
from keras_encdec.sharing import card, licenses
from keras_encdec.sharing.hub_errors import explained, is_passing, status_of
from keras_encdec.sharing.hubs import Hub, HuggingFace, Kaggle, hub_of
from keras_encdec.sharing.whole import check_whole, sizes_of
from keras_encdec.warn import warn

_TRIES = 3
_WAIT = 5.0  # seconds before the second one
_LOOKS = 0.0, 5.0, 10.0, 15.0  # seconds between looks at what Kaggle lists
_NOTHING = "Nothing was published."


def upload_preset(
    folder: str | os.PathLike,
    handle: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    message: str | None = None,
) -> None:
    """Uploads what `save_to_preset` or `export_to_transformers` wrote, card and licence with it.

    Checked before anything is sent: the handle, that the folder is whole and holds nothing
    else, front matter, and the licence against those of the sources. The card's part of ours
    is written anew in the folder, with the handle to load by, and its licence is set. A card
    that was edited on the hub, and not here, is taken over.

    Args:
        folder: of the model.
        handle: `"hf://owner/model"`, or `"kaggle://owner/model/keras/variation"`, without a
            version: Kaggle counts them.
        license: as Hugging Face or Kaggle calls it, such as `"apache-2.0"`; None for the
            card's own, which is filled in where all sources have one.
        private: whether only its owner sees it; None as the hub does by itself: Hugging
            Face publishes, Kaggle's new models are private.
        message: of the commit or version.

    Raises:
        ValueError: if something of this is not as it should be, or the hub does not know the
            owner; nothing was sent then.
        PermissionError: if the hub asks for a token, or refuses the one there is.
        ConnectionError: if it does not answer, or a connection broke more than once. The
            message says what is published, and the same call goes on.

    Example:
        >>> keras_encdec.upload_preset("./my_model", "hf://me/my_model", license="gemma")
    """
    folder, target = Path(folder).expanduser(), _target(handle)
    license = None if license is None else licenses.normalised(license)
    is_export = check_whole(folder)
    target.check(is_export, private)
    card.fields_of(folder)
    with target.explained(_NOTHING):
        there = target.card()
    chosen = _card(folder, target.handle, license, there)
    sizes = sizes_of(folder)
    say(
        f"Uploading {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB, to {target.handle} "
        f"(licence: {chosen})."
    )
    load = target.send(folder, sizes, chosen, private, message or "Upload by keras_encdec")
    say(_line(load, card.kind_of(folder, read_json(folder / "config.json")), is_export))


@contextlib.contextmanager
def folder_for(handle: str) -> Any:
    """A folder that a model is written to on its way to a hub, with the model's name.

    Raises:
        ValueError: if the handle has not the form of one.
    """
    target = _target(handle)
    with tempfile.TemporaryDirectory(prefix="upload-") as parent:
        yield Path(parent) / target.title


def _target(handle: str) -> "Target":
    hub = hub_of(handle)
    if hub is None:
        raise ValueError(
            "Expected 'hf://owner/model' or 'kaggle://owner/model/keras/variation'. Received: "
            f"{handle!r}."
        )
    return _OnHuggingFace(handle) if isinstance(hub, HuggingFace) else _OnKaggle(handle)


def _card(folder: Path, handle: str, license: str | None, there: str | None) -> str:
    """Writes the card as it will be uploaded; returns the licence."""
    record = read_json(folder / provenance.FILE)
    text = card.written(folder, handle, there)
    fields = card.front_matter(text, folder / card.FILE)
    chosen = license or fields.get("license")
    if chosen is None:
        raise ValueError(
            "Expected license=..., such as 'apache-2.0' or 'gemma', as that of the sources is not "
            f"known. Received: None, and no license in the front matter of {folder / card.FILE}."
        )
    if chosen == "other" and not fields.get("license_name"):
        raise ValueError(
            "Expected the name of another licence as license_name in the front matter of the card, "
            f"and its text in a file LICENSE. Received: neither, in {folder / card.FILE}."
        )
    if chosen != fields.get("license"):
        text = card.with_field(text, "license", chosen)
    for conflict in licenses.conflicts(chosen, record["sources"]):
        warn(conflict)
    card.put(folder, text)
    return chosen


def _line(load: str, kind: str, is_export: bool) -> str:
    """What loads the model.

    Args:
        load: its handle.
        kind: its class, here or in the library that it is exported to.
        is_export: whether it is exported.
    """
    if is_export and load.startswith(HuggingFace.scheme):
        name = load.removeprefix(HuggingFace.scheme)
        if kind == "SentenceTransformer":
            return f'sentence_transformers.SentenceTransformer("{name}")'
        return f'transformers.{kind}.from_pretrained("{name}")'
    if kind in ("EncDecSeq2SeqLM", "EncDecBackbone", "T5GemmaForConditionalGeneration"):
        return f'keras_encdec.from_preset("{load}")'
    return f'keras_encdec.models.{"EncoderBackbone" if is_export else kind}.from_preset("{load}")'


class Target(Hub):
    """Where a model goes to."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """The model's name."""

    def explained(self, state: str) -> Any:
        """See `hub_errors.explained`."""
        return explained(self, "upload", state)

    @abc.abstractmethod
    def check(self, is_export: bool, private: bool | None) -> None:
        """Raises ValueError where the handle is not one to upload such a model to."""

    @abc.abstractmethod
    def card(self) -> str | None:
        """The card that is there."""

    @abc.abstractmethod
    def send(
        self, folder: Path, sizes: dict[str, int], license: str, private: bool | None, message: str
    ) -> str:
        """Sends all of it; returns the handle to load it by."""


class _OnHuggingFace(HuggingFace, Target):
    def __init__(self, handle: str):
        super().__init__(handle)
        self.api = huggingface_hub.HfApi(library_name="keras-encdec")

    @property
    def title(self) -> str:
        return self.id.rpartition("/")[2]

    def check(self, is_export: bool, private: bool | None) -> None:
        if "/" not in self.id:
            raise ValueError(
                f"Expected an owner in a handle to upload to, 'hf://owner/{self.id}'. Received: "
                f"{self.handle!r}."
            )

    def card(self) -> str | None:
        try:
            path = self.api.hf_hub_download(self.id, card.FILE)
        except Exception as error:  # the client's types for this differ between its versions
            if status_of(error) in (401, 403, 404):  # none yet; or not to be read
                return None
            raise
        return Path(path).read_text()

    def send(
        self, folder: Path, sizes: dict[str, int], license: str, private: bool | None, message: str
    ) -> str:
        with self.explained(_NOTHING):
            self.api.create_repo(self.id, private=private, exist_ok=True)
            found = self.api.model_info(self.id).private
        if private is not None and found != private:
            asked, there = ("private", "public") if private else ("public", "private")
            raise ValueError(
                f"Expected {self.handle} to be {asked}. Received: a {there} one that is there "
                f"already. {_NOTHING} Change it at {self.page}/settings, or choose another name."
            )
        state = (
            f"{self.handle} is as it was: a commit comes last and holds all files or none, and "
            "what had arrived need not be sent again."
        )
        with self.explained(state):
            _again(lambda: self._commit(folder, message), lambda: self._has(sizes))
        with self.explained(f"Whether it is whole was not seen: look at {self.page}."):
            if not self._has(sizes):
                raise ConnectionError(
                    f"Expected all files at {self.page}. Received: others. Call again."
                )
        return self.handle

    def _commit(self, folder: Path, message: str) -> None:
        patterns = list(OWN)
        self.api.upload_folder(
            repo_id=self.id, folder_path=folder, commit_message=message, delete_patterns=patterns
        )

    def _has(self, sizes: dict[str, int]) -> bool:
        info = self.api.model_info(self.id, files_metadata=True)
        there = {file.rfilename: file.size for file in info.siblings or ()}
        return sizes.items() <= there.items()


class _OnKaggle(Kaggle, Target):
    @property
    def title(self) -> str:
        return self.parsed.variation

    def check(self, is_export: bool, private: bool | None) -> None:
        if self.parsed.is_versioned():
            raise ValueError(
                "Expected a handle without a version, which Kaggle counts itself. Received: "
                f"{self.handle!r}."
            )
        expected = "transformers" if is_export else "keras"
        if self.parsed.framework.lower() != expected:
            raise ValueError(
                f"Expected 'kaggle://{self.parsed.owner}/{self.parsed.model}/{expected}/"
                f"{self.parsed.variation}' for such a folder. Received: {self.handle!r}."
            )
        if private is False:
            raise ValueError(
                "Expected private=None or True on Kaggle, whose client makes all new models "
                f"private. Received: False. Upload it, then publish it at {self.page}."
            )

    def card(self) -> str | None:
        """None: a version of Kaggle is new throughout, and the old ones stay."""
        return None

    def send(
        self, folder: Path, sizes: dict[str, int], license: str, private: bool | None, message: str
    ) -> str:
        state = (
            "No version is published before all files have arrived; if the connection broke at the "
            f"very end, look at {self.page} before you call again."
        )
        with self.explained(state):
            kagglehub.model_upload(
                self.id,
                str(folder),
                license_name=licenses.on_kaggle(license),
                version_notes=message,
            )
            seen = self._wait_for(sizes)
        if not seen:
            say(f"Kaggle has all of it and still goes through the files: {self.page}")
        return self.handle

    def _wait_for(self, sizes: dict[str, int]) -> bool:
        """Whether Kaggle lists all files, within half a minute.

        Raises:
            ConnectionError: if one is there in part: kagglehub 1.0 takes a file that broke five
                times for one that was sent.
        """
        for wait in _LOOKS:
            time.sleep(wait)
            there = kaggle_files(self.parsed)
            some = {name: there[name] for name in sizes if name in there}
            if broken := [name for name, size in some.items() if size != sizes[name]]:
                raise ConnectionError(
                    f"Expected all of {broken[0]} on Kaggle. Received: {some[broken[0]]:,} of "
                    f"{sizes[broken[0]]:,} bytes, in a version that is there already. Delete that "
                    f"version at {self.page}, then call again."
                )
            if some.keys() == sizes.keys():
                return True
        return False


def _again(send: Callable[[], None], has_all: Callable[[], bool]) -> None:
    """Sends, and again where a connection broke: what has arrived is not sent twice."""
    for left in range(_TRIES - 1, -1, -1):
        try:
            send()
            return
        except Exception as error:
            if not is_passing(error):
                raise
            with contextlib.suppress(Exception):
                if has_all():
                    return  # the answer was lost alone
            if not left:
                raise
            say(f"The connection broke ({type(error).__name__}): going on where it was.")
            time.sleep(_WAIT * (_TRIES - left))
