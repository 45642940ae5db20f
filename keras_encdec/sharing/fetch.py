"""Files of a preset, wherever it is: a folder, or a hub that they are fetched from.

Knows when one file is enough and when all are. Leaves the words of errors to
`keras_encdec.sharing.hub_errors`.
"""

from keras_encdec.private import get_file
from keras_encdec.sharing.hub_errors import explained
from keras_encdec.sharing.hubs import hub_of


def file_of(preset: str, name: str) -> str:
    """The path of one file of a preset, fetched if need be.

    Raises:
        FileNotFoundError: if the preset has none of that name.
        PermissionError: where a hub asks for a token or an accepted licence.
        ConnectionError: where it does not answer.
        ValueError: where it knows no such model.
    """
    with explained(hub_of(preset)):
        return get_file(preset, name)


def folder_of(preset: str) -> str:
    """The folder of a preset, fetched whole at one version; a name of something else as it is.

    Raises:
        PermissionError: as `file_of`.
        ConnectionError: as `file_of`.
        ValueError: as `file_of`.
    """
    hub = hub_of(preset)
    with explained(hub):
        return preset if hub is None else hub.fetch()
