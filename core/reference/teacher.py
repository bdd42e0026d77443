"""A frozen potential as reference: instant labels with a known truth, for tests and lessons.

Knows no potential: it names a loader that is imported where the label is computed.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.assets import asset
from core.contracts import Label
from core.errors import LabelError, ModelError
from core.reference.base import check_charge
from core.structures import Structure

LOADER = "core.potentials:load"
"""Module and function: (name or path, dtype=...) -> a `core.contracts.Potential`."""


@dataclass(frozen=True)
class TeacherReference:
    """A level of theory given by the weights of a potential.

    Attributes:
        bundle: what the loader is called with. digest: of the weights, part of the fingerprint.
        loader: "module:function"; dtype: precision the teacher computes in.
    """

    bundle: str
    digest: str
    charge: int = 0
    spin: int = 0
    loader: str = LOADER
    dtype: str = "float64"

    @property
    def fingerprint(self) -> str:
        """The teacher's weights, precision, charge and spin in one line."""
        return f"teacher weights={self.digest} {self.dtype} charge={self.charge} spin={self.spin}"

    def check(self, structure: Structure) -> None:
        """Raise `LabelError` where the teacher does not know the elements of `structure`."""
        check_charge(structure, self.charge, self.spin)
        try:
            self.warm().check(structure)
        except ModelError as error:
            raise LabelError(
                f"The teacher cannot label this: {error}", kind="unsupported"
            ) from error

    def compute(self, structure: Structure) -> Label:
        """Return the teacher's energy, forces and stress; raise `LabelError` as `check` does."""
        self.check(structure)
        started = time.perf_counter()
        predicted = self.warm().predict([structure], stress=structure.is_bulk)
        return Label(
            structure=structure,
            energy=float(predicted.energies[0]),
            forces=predicted.forces[0],
            fingerprint=self.fingerprint,
            wall_s=time.perf_counter() - started,
            stress=predicted.stress[0] if structure.is_bulk else None,
        )

    def warm(self) -> Any:
        """Load the potential, once per process, and return it."""
        return _load(self.loader, self.bundle, self.dtype)


def of_bundle(bundle: str, *, charge: int = 0, spin: int = 0) -> TeacherReference:
    """Return the reference of a bundle folder, or of a potential known by name.

    Raises:
        ModelError: neither a folder nor a name the loader knows.
    """
    folder = asset("models/bundled") if bundle == "bundled" else Path(bundle)
    if not folder.is_dir():
        _load(LOADER, bundle, "float64")  # explains what is accepted if there is no such model
        return TeacherReference(bundle, bundle, charge, spin)
    return TeacherReference(str(folder.resolve()), _digest(folder), charge, spin)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{folder.name} is no model bundle: it has no {name}.")
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def _load(loader: str, bundle: str, dtype: str) -> Any:
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(bundle, dtype=dtype)
