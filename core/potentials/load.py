"""From a name or a folder to a potential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.assets import model_folder
from core.errors import ModelError
from core.potentials import bundle
from core.potentials.base import TorchPotential
from core.potentials.device import CPU, require_cuda
from core.potentials.lennard_jones import LennardJones

_LATER = "_zeroed"
"""Flags of mace that older checkpoints do not have."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def available() -> dict[str, str]:
    """Return name -> one line about each potential that can be loaded by name."""
    from core.potentials.mace_zoo import foundations

    published = {f.name: f"MACE for {f.about}; {f.licence}" for f in foundations().values()}
    return {
        "bundled": "MACE trained by Flywise on GFN1-xTB labels of molecules of eleven elements",
        "lennard-jones": "Lennard-Jones argon, for trying things out; lennard-jones:EPSILON:SIGMA "
        "(eV, Å) for another one",
        **published,
    }


def load(name: str, *, dtype: str = "float32", device: str = "cpu") -> TorchPotential:
    """Load a potential by name or from a bundle folder.

    Args:
        device: "cpu" or "cuda".

    Raises:
        UnsafeFileError: `name` is a pickled checkpoint. ModelError: nothing of that name, or no
            such device.
    """
    place = require_cuda() if device == "cuda" else CPU
    potential = _loaded(name, dtype)
    potential.move_to(place)
    return potential


def _loaded(name: str, dtype: str) -> TorchPotential:
    if name.partition(":")[0] == "lennard-jones":
        return _lennard_jones(name, DTYPES[dtype])
    folder = model_folder(name)
    if not folder.exists():
        raise ModelError(
            f"There is no model {name!r}; accepted: {', '.join(available())}, or the path of a "
            "bundle folder."
        )
    config, weights = bundle.read(folder)
    return from_bundle(config, weights, name=name, dtype=dtype)


def _lennard_jones(name: str, dtype: torch.dtype) -> LennardJones:
    try:
        given = [float(part) for part in name.split(":")[1:]]
    except ValueError:
        given = [0.0]
    if len(given) not in (0, 2) or not all(value > 0 for value in given):
        raise ModelError(f"{name!r}: write lennard-jones, or lennard-jones:0.0104:3.4 (eV, Å).")
    if not given:
        return LennardJones(dtype=dtype)
    return LennardJones(dtype=dtype, epsilon=given[0], sigma=given[1])


def from_bundle(
    config: dict[str, Any], weights: dict[str, torch.Tensor], *, name: str, dtype: str
) -> TorchPotential:
    """Build a MACE from what `bundle.read` returned.

    Raises:
        ModelError: the weights do not belong to the configuration.
    """
    from core.potentials.mace import MacePotential

    potential = MacePotential(config["model"], name=name, dtype=DTYPES[dtype])
    unfit = f"The weights of {name!r} do not fit its configuration"
    try:
        keys = potential.module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{unfit}.") from error
    lacking = [key for key in keys.missing_keys if not key.endswith(_LATER)]
    if lacking or keys.unexpected_keys:
        raise ModelError(f"{unfit}: {', '.join([*lacking, *keys.unexpected_keys][:3])}.")
    return potential


def save(potential: TorchPotential, folder: Path, about: dict[str, Any]) -> None:
    """Write a MACE as a bundle; `about` (plain JSON values) goes beside the configuration."""
    config = {"model": potential.config, "about": about}  # type: ignore[attr-defined]
    bundle.write(folder, config, potential.module.state_dict())
