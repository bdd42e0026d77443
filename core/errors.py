"""The tree of errors. Each message says what was given, what is accepted, what to do.

FlywiseError
├── InputError              what a person gave cannot be used
│   ├── SettingsError           a settings file or a single field
│   ├── StructureError          a molecule or crystal
│   └── ModelError              a potential: file, format, elements it does not know
│       ├── UnsafeFileError         a file that would run code when opened
│       └── DownloadError           a model that did not arrive, or not as it was published
├── LabelError              a reference calculation gave no usable label
├── CampaignError           the campaign directory: locked, missing, of another version
└── CanaryError             new weights failed the check before entering a simulation
"""

from __future__ import annotations


class FlywiseError(Exception):
    """Base of every error Flywise raises on purpose."""


class InputError(FlywiseError):
    """What a person gave cannot be used."""


class SettingsError(InputError):
    """A settings file, or one field of it, is not acceptable."""


class StructureError(InputError):
    """A structure cannot be read or cannot be simulated."""


class ModelError(InputError):
    """A potential cannot be loaded, or does not cover the elements asked for."""


class UnsafeFileError(ModelError):
    """A file that would run code when opened was offered where data was expected."""


class DownloadError(ModelError):
    """A model could not be fetched; what arrived of it is kept where that helps."""


class LabelError(FlywiseError):
    """A reference calculation gave no usable label; `kind` as in `core.contracts.Failure`."""

    def __init__(self, message: str, *, kind: str = "unconverged") -> None:
        super().__init__(message)
        self.kind = kind


class CampaignError(FlywiseError):
    """A campaign directory is missing, locked, or of another version."""


class CanaryError(FlywiseError):
    """New weights failed the check that precedes their use in a simulation.

    `contradicting` are the places, among the new labels, of those that are at fault.
    """

    def __init__(self, message: str, contradicting: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.contradicting = contradicting


def shorten(text: str, most: int = 300) -> str:
    """Return a text for a message, its middle left out where it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
