"""Flywise's own model format: a folder with `model.safetensors` (weights) and `config.json`.

Nothing in a bundle can run code. Pickled checkpoints are refused here, never opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from core.errors import ModelError, UnsafeFileError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "MODEL_CARD.md"
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


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write a bundle; `config` must be plain JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **config}, indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(contiguous, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
