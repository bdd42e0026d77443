"""What can be said before a campaign starts: does the model know its elements, what costs a label.

Loads no torch: of a bundle only the configuration is read, and the reference is tried in a process
of its own (`python -m core.campaign.preflight`, fed by `measure`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.data
import numpy as np

from core.assets import model_folder
from core.errors import FlywiseError, ModelError, UnsafeFileError
from core.reference import make
from core.reference.child import ONE_THREAD
from core.structures import Structure

LIMIT_S = 30.0
"""A trial that takes longer is given up."""
MAX_CONFIG_BYTES = 1 << 20
ARGON = 18


@dataclass(frozen=True)
class Trial:
    """One label computed on trial: the seconds it took, or why there is none."""

    seconds: float | None = None
    problem: str | None = None


def known_elements(model: str) -> tuple[int, ...]:
    """Return the atomic numbers a model was made for; see `core.potentials.load` for the names.

    Raises:
        UnsafeFileError: a single file, such as a pickled checkpoint. ModelError: no such model.
    """
    if model.partition(":")[0] == "lennard-jones":
        return (ARGON,)
    folder = model_folder(model)
    if folder.is_file():
        raise UnsafeFileError(
            f"{folder.name} is a single file. MACE checkpoints (.model, .pt) are pickles, which "
            "run code when opened, so it was not opened. Make a bundle of it (flywise convert FILE "
            "FOLDER) and give that folder."
        )
    config = folder / "config.json"
    if not config.is_file() or not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"{model!r} is no model: give bundled, lennard-jones, a name that `flywise models` "
            "lists, or the path of a folder with "
            "config.json and model.safetensors."
        )
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"The configuration of {folder.name} is larger than 1 MB.")
    try:
        numbers = json.loads(config.read_text(encoding="utf-8"))["model"]["atomic_numbers"]
        return tuple(int(number) for number in numbers)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The configuration of {folder.name} is damaged: {error!r}.") from error


def check_model(model: str, structure: Structure) -> None:
    """Raise `ModelError` where a model does not know the elements of a structure."""
    known = known_elements(model)
    strange = sorted(set(structure.numbers.tolist()) - set(known))
    if strange:
        raise ModelError(
            f"The model {Path(model).name} does not know {_symbols(strange)}; it knows "
            f"{_symbols(known)}. Choose another model."
        )


def _symbols(numbers: Any) -> str:
    return ", ".join(ase.data.chemical_symbols[z] for z in numbers if 0 < z < 119)


async def measure(reference: str, structure: Structure, limit_s: float = LIMIT_S) -> Trial:
    """Compute one label in a process of its own and say how long it took."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "core.campaign.preflight",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
    )  # fmt: skip
    request = json.dumps({"reference": reference, **_to_dict(structure)}).encode()
    try:
        answer, _ = await asyncio.wait_for(process.communicate(request), limit_s)
        return Trial(**json.loads(answer.splitlines()[-1]))
    except TimeoutError:
        return Trial(problem=f"no label within {limit_s:g} s")
    except (IndexError, ValueError):
        return Trial(problem="the calculation broke off without a word")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _to_dict(structure: Structure) -> dict[str, Any]:
    return {
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist(),
        "pbc": list(structure.pbc),
        "charge": structure.charge,
        "spin": structure.spin,
    }


def attempt(request: dict[str, Any]) -> Trial:
    """Compute the label that `measure` asks for."""
    a, b, c = request["pbc"]
    structure = Structure(
        np.array(request["numbers"]), np.array(request["positions"]), np.array(request["cell"]),
        (a, b, c), request["charge"], request["spin"],
    )  # fmt: skip
    try:
        method = make(request["reference"], charge=structure.charge, spin=structure.spin)
        method.check(structure)
        warm = getattr(method, "warm", None)
        if warm is not None:
            warm()
        began = time.perf_counter()
        method.compute(structure)
        return Trial(seconds=time.perf_counter() - began)
    except FlywiseError as error:
        return Trial(problem=str(error))


if __name__ == "__main__":
    print(json.dumps(vars(attempt(json.load(sys.stdin)))))
