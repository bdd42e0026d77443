"""Flywise's own model format: a folder with `model.safetensors` (weights) and `config.json`.

Nothing in a bundle can run code. Pickled checkpoints are refused here, never opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from core.contracts import LabelSet
from core.errors import ModelError, UnsafeFileError
from core.structures import Structure

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "MODEL_CARD.md"
REPLAY = "replay.npz"
"""Labelled frames of what the model was trained on, where it brings some."""
FORMAT = 1


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the configuration and the weights of a bundle.

    Raises:
        UnsafeFileError: `folder` is a pickled checkpoint. ModelError: it is no bundle.
    """
    if folder.is_file():
        raise UnsafeFileError(
            f"{folder.name} is not a Flywise bundle but a single file. MACE checkpoints (.model) "
            "are pickles, which run code when opened, so it was not opened. Make a bundle of it "
            f"({CONFIG} and {WEIGHTS}) with: flywise convert FILE FOLDER."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is not a model bundle: {CONFIG} and {WEIGHTS} are needed."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise ModelError(f"The bundle {folder} is damaged: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"The bundle {folder} is of another format than {FORMAT}.")
    return config, weights


def replay(folder: Path) -> LabelSet | None:
    """Return the frames a bundle brings for rehearsal, with total energies; None if it has none.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / REPLAY
    if not path.is_file():
        return None
    try:
        with np.load(path) as data:
            given = {name: data[name] for name in ("numbers", "n_atoms", "positions", "forces")}
            energies = data["energy"].astype(float)
        parts = np.cumsum(given["n_atoms"].astype(int))[:-1]
        numbers, positions, forces = (
            np.split(given[name].astype(kind), parts)
            for name, kind in (("numbers", int), ("positions", float), ("forces", float))
        )
        structures = tuple(Structure(z, r) for z, r in zip(numbers, positions, strict=True))
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}.") from error
    return LabelSet(structures, energies, tuple(forces))


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write a bundle; `config` must be plain JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **config}, indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(contiguous, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
