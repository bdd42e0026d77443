"""Where files lie: the bundled model and the examples that come with Flywise, fetched models.

An installed wheel keeps them in `core/_assets`; a checkout in `assets` and `examples`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath

from core.errors import FlywiseError, ModelError

FOUNDATION = re.compile(r"mace-(mp|off|anicc):[a-z0-9-]+")
"""Names of published foundation models."""
_PACKAGE = Path(__file__).resolve().parent


def asset(name: str) -> Path:
    """Where a shipped file or folder lies.

    Args:
        name: path below `assets` with forward slashes, such as "models/bundled", or below
            `examples` when it begins with "examples".

    Raises:
        FlywiseError: the name leads out of the assets, or nothing of that name was shipped.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or "\\" in name or PurePosixPath(name).is_absolute():
        raise FlywiseError(
            f"{name!r} is not the name of an asset: give a path such as 'models/bundled'."
        )
    places = [root.joinpath(*parts) for root in _roots(parts[0])]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise FlywiseError(
        f"The file {name!r} that comes with Flywise is missing (looked at {looked}). "
        "Install Flywise again, or fetch the whole repository."
    )


def _roots(first: str) -> list[Path]:
    checkout = _PACKAGE.parent
    return [_PACKAGE / "_assets", checkout if first == "examples" else checkout / "assets"]


def model_folder(name: str) -> Path:
    """Return where the bundle of a model is, or would be.

    Args:
        name: "bundled", a foundation model ("mace-mp:small"), or the path of a bundle.

    Raises:
        ModelError: a foundation model that was not fetched yet.
    """
    if name == "bundled":
        return asset("models/bundled")
    if not FOUNDATION.fullmatch(name):
        return Path(name)
    folder = downloaded(name)
    if not folder.is_dir():
        raise ModelError(
            f"{name} is not on this machine yet; fetch it with: flywise download {name}"
        )
    return folder


def downloaded(name: str) -> Path:
    """Return where a foundation model goes in the user's cache."""
    return cache() / "models" / name.replace(":", "-")


def fetched() -> list[str]:
    """Return the names of the foundation models that are on this machine, sorted."""
    folders = (cache() / "models").glob("mace-*-*/config.json")
    names = (re.sub(r"^(mace-[a-z]+)-", r"\1:", path.parent.name) for path in folders)
    return sorted(name for name in names if FOUNDATION.fullmatch(name))


def cache() -> Path:
    """Return the folder of what can be fetched or made again; FLYWISE_HOME moves it."""
    if home := os.environ.get("FLYWISE_HOME"):
        return Path(home)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "flywise"
