"""Open a pickled MACE checkpoint and write down what it holds: run in a process of its own, only.

    python -m core.potentials.mace_unpickle CHECKPOINT FOLDER

A pickle is a program: opening it runs whatever its author put there, with the rights of whoever
opens it. `core.potentials.convert` starts this process after a person agreed; nobody imports it.
It writes a bundle and, in `probe.npz`, energies and forces by mace's own evaluation of the original
model, which the other side compares with those of the bundle.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import FlywiseError, ModelError
from core.potentials import bundle, probe
from core.potentials.convert import ERROR, PROBE
from core.potentials.mace import CLASSES, GATES, INTERACTIONS, READOUTS
from core.structures import Structure

_RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def main(checkpoint: Path, folder: Path) -> None:
    """Write the bundle and the probe."""
    module = torch.load(checkpoint, map_location="cpu", weights_only=False)
    config = configuration(module)
    bundle.write(folder, {"model": config}, module.state_dict())
    structures = probe.structures(config["atomic_numbers"], float(config["r_max"]))
    module = module.double()
    energies, forces = zip(
        *(evaluate(module, structures, config, head) for head in config["heads"]), strict=True
    )
    np.savez(folder / PROBE, energies=np.stack(energies), forces=np.stack(forces))


def configuration(module: Any) -> dict[str, Any]:
    """Return what `core.potentials.mace` builds the same module from, as plain JSON values.

    Raises:
        ModelError: it is no MACE that can be built again.
    """
    kind = type(module).__name__
    kind = getattr(module, "original_name", kind)  # of a scripted module
    if kind not in CLASSES:
        raise ModelError(f"It holds a {kind}; accepted: {' and '.join(CLASSES)}.")
    if getattr(module, "embedding_specs", None) or hasattr(module, "embedding_readout"):
        raise ModelError("It takes inputs beside the atoms (embedding_specs), which are not known.")
    first, last = module.interactions[0], module.interactions[-1]
    readout, product = module.readouts[-1], module.products[0]
    radial = module.radial_embedding
    heads = list(getattr(module, "heads", None) or ["Default"])
    config: dict[str, Any] = {
        "class": kind,
        "r_max": float(module.r_max),
        "num_bessel": _radial_functions(radial.bessel_fn),
        "num_polynomial_cutoff": int(radial.cutoff_fn.p),
        "max_ell": int(module.spherical_harmonics._lmax),
        "interaction_cls": _known(last, INTERACTIONS),
        "interaction_cls_first": _known(first, INTERACTIONS),
        "num_interactions": int(module.num_interactions),
        "num_elements": len(module.atomic_numbers),
        "hidden_irreps": str(product.linear.irreps_out),
        "gate": _gate(readout),
        "readout_cls": _known(readout, READOUTS),
        "atomic_energies": np.asarray(
            module.atomic_energies_fn.atomic_energies.detach().double()
        ).tolist(),
        "avg_num_neighbors": float(first.avg_num_neighbors),
        "atomic_numbers": [int(z) for z in module.atomic_numbers],
        "correlation": len(product.symmetric_contractions.contractions[0].weights) + 1,
        "radial_type": _RADIAL[type(radial.bessel_fn).__name__],
        "radial_MLP": _widths(first.conv_tp_weights),
        "pair_repulsion": hasattr(module, "pair_repulsion_fn"),
        "distance_transform": _TRANSFORMS.get(
            type(getattr(radial, "distance_transform", None)).__name__, "None"
        ),
        "heads": heads,
    }
    hidden = str(getattr(readout, "hidden_irreps", "16x0e"))
    scalars = sum(int(part.partition("x")[0]) for part in hidden.split("+"))
    config["MLP_irreps"] = f"{max(1, scalars // len(heads))}x0e"
    for name, usual in (
        ("apply_cutoff", True), ("use_reduced_cg", False), ("use_so3", False),
        ("use_agnostic_product", False), ("use_last_readout_only", False),
        ("use_edge_irreps_first", False),
    ):  # fmt: skip
        config[name] = bool(getattr(module, name, usual))
    edges = getattr(module, "edge_irreps", None)
    config["edge_irreps"] = None if edges is None else str(edges)
    if kind == "ScaleShiftMACE":
        for name in ("scale", "shift"):
            value = getattr(module.scale_shift, name).detach().double().reshape(-1)
            config[f"atomic_inter_{name}"] = value.tolist() if len(value) > 1 else float(value)
    return config


def _radial_functions(basis: Any) -> int:
    if hasattr(basis, "num_basis"):
        return int(basis.num_basis)
    return len(getattr(basis, "bessel_weights", getattr(basis, "gaussian_weights", ())))


def _known(part: Any, known: Mapping[str, type]) -> str:
    name = getattr(part, "original_name", type(part).__name__)
    if name not in known:
        raise ModelError(f"It has a {name}, which this version of mace-torch cannot build.")
    return name


def _gate(readout: Any) -> str:
    function = readout.non_linearity.acts[0].f if hasattr(readout, "non_linearity") else None
    for name, known in GATES.items():
        if known is function:
            return name
    raise ModelError(f"Its readout has the activation {function!r}, which is not known.")


def _widths(network: Any) -> list[int]:
    """Return the widths of the hidden layers of the radial network."""
    return [int(h) for h in network.hs[1:-1]]


def evaluate(
    module: Any, structures: list[Structure], config: dict[str, Any], head: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return total energies (S,), eV, and forces (ΣN, 3), eV/Å, as mace itself computes them."""
    from mace import data
    from mace.tools import torch_geometric, utils

    torch.set_default_dtype(torch.float64)
    table = utils.AtomicNumberTable(config["atomic_numbers"])
    heads = config["heads"]
    sets = [
        data.AtomicData.from_config(
            data.config_from_atoms(structure.to_atoms(), head_name=head),
            z_table=table, cutoff=config["r_max"], heads=heads,
        )
        for structure in structures
    ]  # fmt: skip
    loader = torch_geometric.dataloader.DataLoader(sets, batch_size=1, shuffle=False)  # type: ignore[arg-type]
    energies, forces = [], []
    for batch in loader:
        out = module(batch.to_dict(), compute_stress=False)
        energies.append(float(out["energy"]))
        forces.append(out["forces"].detach().numpy())
    return np.array(energies), np.concatenate(forces)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        main(source, target)
    except FlywiseError as error:
        (target / ERROR).write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from error
    except Exception as error:
        (target / ERROR).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(1) from error
