"""Fine-tunings on the labels of a campaign, beside it: another strategy tried on what was bought.

Each is a folder in the campaign's directory and a process of its own, which writes how it goes and
may be ended at any moment; started again it goes on from its checkpoint. Importing this loads no
torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.campaign import extxyz, store
from core.campaign.reader import CampaignReader
from core.errors import CampaignError, InputError

FOLDER = "finetuned"
ORDER, PROGRESS, ERROR, RECEIPT = "order.json", "progress.jsonl", "error.txt", "receipt.json"
TRAIN, HELD_OUT = "train.extxyz", "held_out.extxyz"
LEAST, EVERY = 2, 5
"""Fewest labels to learn from; each fifth of at least fifteen is held out."""
LEAST_TO_HOLD_OUT = 15

Status = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Study:
    """One fine-tuning as it stands.

    Attributes:
        number: counts from 1. epochs: one dict an epoch so far (see `core.training.Progress`).
        epochs_total: at most. receipt: as `core.finetuning.receipt.Receipt.to_dict`, when done.
    """

    number: int
    folder: Path
    strategy: str
    steps: int
    n_labels: int
    started: float
    status: Status
    epochs: tuple[dict[str, float], ...] = ()
    epochs_total: int = 0
    receipt: dict[str, Any] | None = None
    problem: str = ""

    @property
    def seconds_left(self) -> float | None:
        """How long it takes at most, None before the first epoch."""
        if not self.epochs or self.status != "running":
            return None
        done = self.epochs[-1]
        return done["seconds"] / done["epoch"] * (self.epochs_total - done["epoch"])


def sources(directory: Path) -> dict[Path, int]:
    """Return the campaigns beside this one whose labels could be learned too, and how many.

    These are at the same level of theory.
    """
    with CampaignReader(directory) as reader:
        level = reader.fingerprint
    found = {}
    for other in sorted(directory.parent.iterdir()):
        if other == directory or not (other / store.DATABASE).is_file():
            continue
        try:
            with CampaignReader(other) as reader:
                rows = [row for row in reader.labels() if row.learned is not None]
        except CampaignError:
            continue
        if rows and {row.fingerprint for row in rows} == {level}:
            found[other] = len(rows)
    return found


def start(
    directory: Path, strategy: str, *, steps: int, model: str, seed: int = 1,
    others: Sequence[Path] = (),
) -> int:  # fmt: skip
    """Begin a fine-tuning of `model` on the labels there are; return its number.

    Args:
        others: campaigns whose labels are learned too; labels are held out of this one only, so
            that tries on more labels compare with those on fewer.

    Raises:
        InputError: too few labels, or one under way.
    """
    if any(study.status == "running" for study in studies(directory)):
        raise InputError("A fine-tuning is under way already; wait for it or stop it.")
    number = 1 + max((s.number for s in studies(directory)), default=0)
    folder = directory / FOLDER / f"{number:03d}"
    frames = _learned(directory)
    if len(frames) < LEAST:
        raise InputError(f"{len(frames)} labels are learned; at least {LEAST} are needed.")
    held = EVERY if len(frames) >= LEAST_TO_HOLD_OUT else 0
    test = [f for k, f in enumerate(frames) if held and k % held == held - 1]
    train = [f for k, f in enumerate(frames) if not held or k % held != held - 1]
    train += [text for other in others for text in _learned(other)]
    folder.mkdir(parents=True)
    extxyz.save(folder / TRAIN, train)
    if test:
        extxyz.save(folder / HELD_OUT, test)
    order = {
        "strategy": strategy, "steps": steps, "model": model, "seed": seed,
        "n_labels": len(train), "started": time.time(), "pid": 0,
    }  # fmt: skip
    (folder / ORDER).write_text(json.dumps(order))
    order["pid"] = _spawn(folder)
    (folder / ORDER).write_text(json.dumps(order))
    return number


def _learned(directory: Path) -> list[str]:
    """Return the labels that a campaign has learned, as extended XYZ."""
    with CampaignReader(directory) as reader:
        return [_text(reader, row) for row in reader.labels() if row.learned is not None]


def _text(reader: CampaignReader, row: Any) -> str:
    structure = reader.frame(row.frame_id).of(reader.structure)
    info = {
        "REF_energy": row.energy, "fingerprint": row.fingerprint,
        "charge": structure.charge, "spin": structure.spin,
    }  # fmt: skip
    return extxyz.write(structure, info, {"pos": structure.positions, "REF_forces": row.forces})


def _spawn(folder: Path) -> int:
    with open(folder / "log.txt", "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "core.campaign.study", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )  # fmt: skip
    _children[child.pid] = child
    return child.pid


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes begun here, which have to be asked whether they ended."""


def stop(study: Study) -> None:
    """End a fine-tuning; what it wrote stays, and the last finished epoch for `go_on`."""
    pid = int(json.loads((study.folder / ORDER).read_text())["pid"])
    if study.status == "running" and _is_ours(pid, study.folder):
        os.killpg(pid, signal.SIGTERM)


def go_on(study: Study) -> None:
    """Go on with a fine-tuning that was stopped, after its last finished epoch.

    Raises:
        InputError: it was not stopped, or another one is under way.
    """
    others = studies(study.folder.parent.parent)
    if study.status != "stopped" or any(s.status == "running" for s in others):
        raise InputError("Only a fine-tuning that was stopped goes on, and one at a time.")
    order = json.loads((study.folder / ORDER).read_text())
    order["pid"] = _spawn(study.folder)
    (study.folder / ORDER).write_text(json.dumps(order))


def studies(directory: Path) -> list[Study]:
    """Return all fine-tunings of a campaign, oldest first."""
    folders = sorted((directory / FOLDER).glob("[0-9]*"))
    return [_read(folder) for folder in folders if (folder / ORDER).exists()]


def _read(folder: Path) -> Study:
    order = json.loads((folder / ORDER).read_text())
    lines = (folder / PROGRESS).read_text().splitlines() if (folder / PROGRESS).exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    receipt = None
    if (folder / RECEIPT).exists() and (folder / "config.json").exists():
        receipt = json.loads((folder / RECEIPT).read_text())
    problem = (folder / ERROR).read_text().strip() if (folder / ERROR).exists() else ""
    status: Status = "done" if receipt is not None else "failed" if problem else "stopped"
    if status == "stopped" and _is_ours(int(order["pid"]), folder):
        status = "running"
    return Study(
        number=int(folder.name), folder=folder, strategy=order["strategy"], steps=order["steps"],
        n_labels=order["n_labels"], started=order["started"], status=status,
        epochs=tuple(entries), epochs_total=int(entries[-1]["of"]) if entries else 0,
        receipt=receipt, problem=problem,
    )  # fmt: skip


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether a process is at work on `folder`."""
    if pid in _children:
        return _children[pid].poll() is None
    if not pid:
        return True  # being started at this moment
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    commands = Path(f"/proc/{pid}/cmdline")
    return not commands.exists() or str(folder) in commands.read_bytes().decode(errors="replace")


def main(folder: Path) -> None:
    """Do what the folder's order says; the entry of the child process."""
    import torch

    from core.campaign.finetune import Order, finetune
    from core.finetuning.tuning import TuningSettings
    from core.training import Progress

    os.nice(5)
    torch.set_num_threads(1)
    order = json.loads((folder / ORDER).read_text())
    made = Order(
        train=folder / TRAIN, out=folder, model=order["model"], strategy=order["strategy"],
        held_out=folder / HELD_OUT if (folder / HELD_OUT).exists() else None,
        tuning=TuningSettings(steps=order["steps"], seed=order["seed"]),
    )  # fmt: skip

    def tell(progress: Progress, epochs: int) -> None:
        values = {k: v for k, v in vars(progress).items() if np.isfinite(v)}
        with open(folder / PROGRESS, "a", encoding="utf-8") as file:
            file.write(json.dumps(values | {"of": epochs}) + "\n")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # keeps the last epoch, see `stop`
    try:
        finetune(made, tell)
    except KeyboardInterrupt:
        return
    except Exception as error:
        (folder / ERROR).write_text(f"{error or type(error).__name__}\n", encoding="utf-8")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
