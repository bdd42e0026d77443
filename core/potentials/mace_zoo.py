"""The foundation models that mace-torch knows by name: where they are, and under which licence.

A published checkpoint is a pickle: it is fetched into a cache, converted in a process of its own
(`core.potentials.convert`) after a person accepted the licence and agreed, and used as a bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.assets import downloaded
from core.errors import ModelError
from core.potentials.convert import Conversion, convert
from core.potentials.download import Progress, fetch
from core.potentials.mace import guarded

MIT = "MIT licence"
ASL = "Academic Software License (no commercial use)"
UNDER_MIT = frozenset(
    {
        "mace-mp:small", "mace-mp:medium", "mace-mp:large", "mace-mp:small-0b",
        "mace-mp:medium-0b", "mace-mp:small-0b2", "mace-mp:medium-0b2", "mace-mp:large-0b2",
        "mace-mp:medium-0b3", "mace-mp:medium-mpa-0",
    }
)  # fmt: skip
"""As their publishers say (ACEsuit/mace-foundations); the rest are under the ASL."""
ANICC = "mace-anicc:large"
ANICC_URL = (
    "https://github.com/ACEsuit/mace/raw/main/mace/calculators/foundations_models/"
    "ani500k_large_CC.model"
)
UNFIT = {
    "mace-omol": "its charge and spin are inputs of the network, which are not given yet",
    "mace-polar": "it is another architecture, with charges that answer to a field",
}
"""Families that mace-torch knows as well, and why they cannot be used."""
FAMILIES = {
    "mace-mp": ("mace_mp_urls", "materials, 89 elements"),
    "mace-off": ("mace_off_urls", "organic molecules"),
}
"""Family -> its table in mace-torch, and what it is for."""


@dataclass(frozen=True)
class Foundation:
    """A published model."""

    name: str
    url: str
    licence: str
    about: str


@cache
def foundations() -> dict[str, Foundation]:
    """Return name ("mace-mp:small") -> model."""
    with guarded():
        from mace.calculators import foundations_models as tables

    found = {}
    for family, (table, about) in FAMILIES.items():
        for size, url in getattr(tables, table).items():
            name = f"{family}:{size}"
            url = tables._normalize_github_download_url(url)
            found[name] = Foundation(name, url, MIT if name in UNDER_MIT else ASL, about)
    url = tables._normalize_github_download_url(ANICC_URL)
    found[ANICC] = Foundation(ANICC, url, MIT, "H, C, N, O at coupled-cluster level (ANI-1ccx)")
    return found


def get(
    name: str, *, consent: bool, head: str | None = None, url: str | None = None,
    sha256: str | None = None, progress: Progress | None = None,
) -> Path | Conversion:  # fmt: skip
    """Fetch and convert a foundation model; return the folder of its bundle if it is there already.

    Args:
        consent: a person accepted the licence, and that the checkpoint runs once as a program.
        head: of a model with several, see `convert`.
        url, sha256: another place to fetch it from, and what it must be.

    Raises:
        ModelError: no such name. UnsafeFileError: nobody agreed. DownloadError: see `fetch`.
    """
    known = foundations()
    if (why := UNFIT.get(name.partition(":")[0])) is not None:
        raise ModelError(f"{name} cannot be used: {why}.")
    if name not in known:
        raise ModelError(f"There is no model {name!r}; accepted: {', '.join(known)}.")
    folder = downloaded(name)
    if folder.is_dir():
        return folder
    if not consent:
        raise ModelError(
            f"{name} is published under the {known[name].licence}, as a pickle, which runs once as "
            f"a program while it is converted. Agree to both with: flywise download {name} --yes"
        )
    address = url or known[name].url
    checkpoint = fetch(address, folder.with_suffix(".model"), sha256=sha256, progress=progress)
    try:
        return convert(checkpoint, folder, consent=True, head=head)
    finally:  # what could not be converted may be damaged: the next attempt fetches it anew
        checkpoint.unlink()
