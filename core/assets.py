"""Where the files that come with Flywise lie: the bundled model and the examples.

An installed wheel keeps them in `core/_assets`; a checkout in `assets` and `examples`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from core.errors import FlywiseError

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
