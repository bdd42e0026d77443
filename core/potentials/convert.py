"""From a pickled MACE checkpoint to a bundle, without ever opening the pickle in this process.

A child process opens it (`core.potentials.mace_unpickle`), in an empty folder, without network
where the system allows that, and within limits of time and size. What it leaves behind is data: a
configuration in JSON, weights as safetensors, and the energies and forces of a few structures by
mace's own evaluation. Here the model is built again from the first two and must give the same
energies and forces before the bundle is put in place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import ModelError, UnsafeFileError
from core.potentials import bundle, probe
from core.potentials.load import from_bundle

ERROR, PROBE = "error.txt", "probe.npz"
"""What the child leaves behind besides a bundle."""
OFFLINE = ("unshare", "--user", "--map-current-user", "--net")
"""Runs a command without network, on Linux where ordinary users may."""
TIME_LIMIT_S = 300.0
LARGEST_BYTES = 4 << 30
"""Of what the child leaves behind."""
AGREEMENT = 1e-6
"""Largest difference accepted, relative to the largest energy per atom and force of the probe."""
WARNING = (
    "{name} is a pickle: opening it runs whatever program its author put there, with your rights. "
    "Convert only files from people you trust."
)


@dataclass(frozen=True)
class Conversion:
    """What was converted: largest differences on S probe structures, eV/atom and eV/Å.

    Attributes:
        heads: all the model has. head: the one in use.
    """

    folder: Path
    elements: tuple[int, ...]
    heads: tuple[str, ...]
    head: str
    n_parameters: int
    structures: int
    energy_difference: float
    force_difference: float


def convert(
    checkpoint: str | Path, folder: str | Path, *, consent: bool, head: str | None = None,
    limit_s: float = TIME_LIMIT_S,
) -> Conversion:  # fmt: skip
    """Write the bundle `folder` from a pickled checkpoint.

    Args:
        consent: a person agreed that the file may run as a program.
        head: of a model with several, the one in use from then on; "Default" or the last without.

    Raises:
        UnsafeFileError: nobody agreed. ModelError: no such file, the folder is taken, it is no
            MACE, has no such head, or the bundle does not give the same energies and forces.
    """
    checkpoint, folder = Path(checkpoint).absolute(), Path(folder).absolute()
    if not checkpoint.is_file():
        raise ModelError(f"There is no file {checkpoint}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is there already; give the name of a new folder.")
    if not consent:
        raise UnsafeFileError(
            WARNING.format(name=checkpoint.name)
            + " Nothing was opened: agree first (flywise convert FILE FOLDER --yes)."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as name:
        stage = Path(name)
        _open_elsewhere(checkpoint, stage, limit_s)
        done = _compare(stage, folder, checkpoint.name, head)
        for part in stage.iterdir():
            if part.name not in (bundle.CONFIG, bundle.WEIGHTS):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        stage.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(stage, folder)
        stage.mkdir()  # for the context to remove
    return done


def _open_elsewhere(checkpoint: Path, stage: Path, limit_s: float) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        "PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "HOME": str(stage),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "core.potentials.mace_unpickle", str(checkpoint), str(stage)]
    process = subprocess.Popen(
        [*_offline(), *command], cwd=stage, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{checkpoint.name} was not converted within {limit_s:g} s; the attempt was ended."
        ) from None
    finally:
        _end(process)
    if code != 0:
        file = stage / ERROR
        said = file.read_text(encoding="utf-8", errors="replace")[:500] if file.is_file() else ""
        raise ModelError(
            f"{checkpoint.name} could not be converted: "
            f"{said or f'the process that opened it ended with code {code}.'}"
        )


def _offline() -> tuple[str, ...]:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run([*OFFLINE, "true"], capture_output=True, timeout=10).returncode == 0:
            return OFFLINE
    return ()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _compare(stage: Path, folder: Path, name: str, head: str | None) -> Conversion:
    """Build the model from what the child wrote, and hold it against the original's numbers."""
    size = sum(p.lstat().st_size for p in stage.rglob("*"))
    if size > LARGEST_BYTES or any(p.is_symlink() for p in stage.rglob("*")):
        raise ModelError(f"{name} left behind what is no model; nothing was kept.")
    config, weights = bundle.read(stage)
    if head is not None:
        config["model"]["head"] = head
        bundle.write(stage, config, weights)
    potential = from_bundle(config, weights, name=name, dtype="float64")
    structures = probe.structures(potential.elements, potential.cutoff)
    try:
        with np.load(stage / PROBE, allow_pickle=False) as wanted:
            energies, forces = wanted["energies"], wanted["forces"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name} was opened, but gave no energies to compare.") from error
    sizes = np.array([len(s) for s in structures])
    n_heads = len(potential.heads)
    if energies.shape != (n_heads, len(sizes)) or forces.shape != (n_heads, sizes.sum(), 3):
        raise ModelError(f"{name} was opened, but gave other energies than were asked for.")
    energy = force = 0.0
    for each, wanted_energies, wanted_forces in zip(potential.heads, energies, forces, strict=True):
        with potential.using(each):
            found = potential.predict(structures)
            isolated = np.array([potential.isolated_energy(s) for s in structures])
        assert found.forces is not None
        off_energy = float(np.abs((found.energies - wanted_energies) / sizes).max())
        off_force = float(np.abs(np.concatenate(found.forces) - wanted_forces).max())
        scale_energy = max(1.0, float(np.abs((wanted_energies - isolated) / sizes).max()))
        scale_force = max(1.0, float(np.abs(wanted_forces).max()))
        if not (off_energy <= AGREEMENT * scale_energy and off_force <= AGREEMENT * scale_force):
            raise ModelError(
                f"The bundle made from {name} differs from the original (head {each}) by "
                f"{off_energy:.2g} eV/atom and {off_force:.2g} eV/Å; nothing was kept."
            )
        energy, force = max(energy, off_energy), max(force, off_force)
    return Conversion(
        folder, potential.elements, potential.heads, potential.head, potential.n_parameters,
        len(structures), energy, force,
    )  # fmt: skip
