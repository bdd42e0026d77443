"""A step of molecular dynamics: Flywise against ASE with mace-torch's own MACECalculator.

    flywise bench step [--systems ethanol,ethanol-small,3BPA,waters,silicon] [--threads N]
                       [--device cuda --members 8,16,32]

The same weights, precision, threads, thermostat and start for all, in turns within one run. The
committee is what mace-torch offers for uncertainty; its members here differ by noise on
the weights, which costs the same as members that were trained. Flywise's bounds are those of a
campaign with default settings: the energy's at every step and the forces' at every tenth, by the
linearised posterior or by that of the last layer. Forces of all members at every step are measured
in stacks of the size found best, and one by one. Steps are compiled on the processor only. All run
on the bundled model but silicon and "ethanol-small", a model of 29,904 weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import ase.units
import numpy as np
import torch
from ase.build import bulk, molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from common import cell, context, machine, table

from core.dynamics.integrators import Dynamics
from core.posterior import make as make_posterior
from core.potentials import load
from core.potentials.base import TorchPotential
from core.potentials.convert import convert
from core.potentials.device import require_cuda
from core.potentials.mace import guarded, scripted
from core.settings import DynamicsSettings, Noise, PosteriorSettings
from core.structures import Structure, from_atoms

SHARED = Path(__file__).resolve().parents[3] / "shared"
ROUNDS, STRIDE = 10, 10
LEAST_S = {"cpu": 0.4, "cuda": 0.15}
"""Seconds that a way runs in each round, at least."""
KELVIN, DT_FS, FRICTION = 300.0, 0.5, 0.01


def waters(n: int = 4, density: float = 0.997) -> ase.Atoms:
    """A periodic box of n³ water molecules in random orientations."""
    rng = np.random.default_rng(1)
    edge = (n**3 * 18.015 / 6.022e23 / density) ** (1 / 3) * 1e8
    box = ase.Atoms(cell=[edge] * 3, pbc=True)
    for place in np.ndindex(n, n, n):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        one.translate(edge / n * (np.array(place) + 0.5))
        box += one
    return box


def system(name: str) -> tuple[ase.Atoms, TorchPotential]:
    """Return atoms and the model they are simulated with."""
    if name == "ethanol":
        return molecule("CH3CH2OH"), load("bundled")
    if name == "3BPA":
        return ase.io.read(SHARED / "data" / "3bpa" / "train_300K.xyz", 0), load("bundled")
    if name == "waters":
        return waters(), load("bundled")
    if name == "ethanol-small":
        return molecule("CH3CH2OH"), converted("committee-hco-1.model")
    return bulk("Si", cubic=True).repeat(2), converted("mace-si.model")


def converted(checkpoint: str) -> TorchPotential:
    """Return the model of a real checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        convert(SHARED / "models" / checkpoint, Path(folder) / "bundle", consent=True)
        return load(str(Path(folder) / "bundle"))


def committee(potential: TorchPotential, count: int) -> list[torch.nn.Module]:
    """Return mace's models with the potential's weights, but for the first moved at random."""
    models = [scripted(potential) for _ in range(count)]
    torch.manual_seed(1)
    with torch.no_grad():
        for model in models[1:]:
            for p in model.parameters():
                p.mul_(1 + 0.01 * torch.randn_like(p))
    return models


def with_calculator(atoms: ase.Atoms, models: list[torch.nn.Module], device: str) -> Callable:
    """Return a function that makes n steps with ASE and MACECalculator."""
    with guarded():
        from mace.calculators import MACECalculator

    atoms = atoms.copy()
    atoms.calc = MACECalculator(models=models, device=device, default_dtype="float32")
    MaxwellBoltzmannDistribution(
        atoms, temperature_K=KELVIN, rng=np.random.RandomState(1), force_temp=True
    )
    integrator = Langevin(
        atoms, DT_FS * ase.units.fs, temperature_K=KELVIN, friction=FRICTION / ase.units.fs,
        fixcm=False, rng=np.random.RandomState(1),
    )  # fmt: skip
    return integrator.run


def with_flywise(
    atoms: ase.Atoms, potential: TorchPotential, *, posterior: PosteriorSettings | None = None,
    compiled: Path | None = None,
) -> Callable:  # fmt: skip
    """Return a function that makes n steps with Flywise, with the bounds of a posterior or none.

    With the folder `compiled`, steps are compiled before the function is returned.
    """
    structure = from_atoms(atoms)
    if compiled is not None:
        potential.compile(structure, compiled)
    evaluator = potential.evaluator(structure)
    dynamics = _dynamics(structure, evaluator)
    if posterior is None:
        _await_compiled(potential, dynamics.run)
        return dynamics.run
    bounds = make_posterior(
        potential, posterior, Noise(0.003, 0.03), energy_tolerance=0.02,
        elements=sorted(set(structure.numbers.tolist())),
    )  # fmt: skip
    state = bounds.init(np.random.default_rng(1))
    evaluator.watch(bounds.watched(state))

    def run(n: int) -> None:
        for _ in range(n):
            dynamics.run(1)
            bounds.energy_sigma(state, evaluator.changes)
            if dynamics.step % STRIDE == 0:
                bounds.spread(state, dynamics.structure, quick=True)

    _await_compiled(potential, run, programs=2)
    return run


def _await_compiled(potential: TorchPotential, run: Callable, programs: int = 1) -> None:
    compiler = potential.compiler
    while compiler is not None and len(compiler.made) < programs:
        run(STRIDE)
        for told in compiler.news:
            if told.problem:
                raise RuntimeError(told.problem)


def with_members(
    atoms: ase.Atoms, potential: TorchPotential, count: int, *, stacked: bool
) -> Callable:
    """Return a function that makes n steps on the mean of `count` members, all evaluated each."""
    structure = from_atoms(atoms)
    members, theta = potential.members(), potential.get_theta()
    thetas = theta * (1 + 0.01 * torch.randn(count, len(theta), dtype=theta.dtype))
    thetas = thetas.to(potential.device)
    if not stacked:
        members._measured = lambda *_: 1

    def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
        energies, forces, _ = members(structure.moved(positions), thetas)
        return float(energies.mean()), forces.mean(0)

    return _dynamics(structure, evaluate).run


def _dynamics(structure: Structure, evaluator: Callable) -> Dynamics:
    settings = DynamicsSettings(
        temperature_K=KELVIN, timestep_fs=DT_FS, friction_per_fs=FRICTION, check_every=STRIDE
    )
    return Dynamics(structure, evaluator, settings, np.random.default_rng(1))


def measure(name: str, threads: int, device: str, members: list[int]) -> dict[str, Any]:
    """Return ms a step of each way, by round, all ways in turn."""
    with tempfile.TemporaryDirectory() as folder:
        return _measured(name, threads, device, members, Path(folder))


def _measured(
    name: str, threads: int, device: str, members: list[int], folder: Path
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    atoms, potential = system(name)
    models = committee(potential, max(members))
    committees = {
        f"the same, committee of {count}": with_calculator(atoms, models[:count], device)
        for count in members
    }
    calculator = with_calculator(atoms, models[:1], device)
    if device == "cuda":
        potential.move_to(require_cuda())
    last_layer = PosteriorSettings(kind="last-layer")
    ways = {
        "ASE + MACECalculator": calculator,
        **committees,
        "Flywise": with_flywise(atoms, potential),
        "Flywise with bounds": with_flywise(atoms, potential, posterior=PosteriorSettings()),
        "Flywise with bounds, last layer": with_flywise(atoms, potential, posterior=last_layer),
    }
    if device == "cpu":
        others = [system(name)[1] for _ in range(2)]
        ways["Flywise, compiled"] = with_flywise(atoms, others[0], compiled=folder)
        ways["Flywise, compiled, with bounds"] = with_flywise(
            atoms, others[1], posterior=PosteriorSettings(), compiled=folder
        )
    for count in members:
        ways[f"Flywise, {count} members"] = with_members(atoms, potential, count, stacked=True)
        ways[f"Flywise, {count} members one by one"] = with_members(
            atoms, potential, count, stacked=False
        )
    counts = {}
    for way, run in ways.items():
        run(1)
        began = time.perf_counter()
        run(STRIDE if "bounds" in way else 1)
        each = (time.perf_counter() - began) / (STRIDE if "bounds" in way else 1)
        least = STRIDE if "bounds" in way else 2
        counts[way] = least * max(1, round(LEAST_S[device] / each / least))
    rounds: dict[str, list[float]] = {way: [] for way in ways}
    for k in range(ROUNDS):
        for way in list(ways)[:: 1 if k % 2 else -1]:
            began = time.perf_counter()
            ways[way](counts[way])
            rounds[way].append(1000 * (time.perf_counter() - began) / counts[way])
    return {
        "atoms": len(atoms), "parameters": potential.n_parameters, "rounds": rounds,
        "device": torch.cuda.get_device_name() if device == "cuda" else "processor",
    }  # fmt: skip


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="flywise bench step")
    parser.add_argument("--systems", default="ethanol,ethanol-small,3BPA,waters,silicon")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--members", default="8", help="numbers of members, by commas")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    threads, device = arguments.threads, arguments.device
    members = [int(count) for count in arguments.members.split(",")]
    suffix = "" if device == "cpu" else f"-{device}"
    rows, devices = [], set()
    for name in arguments.systems.split(","):
        found = cell(
            "step", f"{name}-{threads}t{suffix}",
            lambda n=name: measure(n, threads, device, members),
        )  # fmt: skip
        devices.add(found.get("device", "processor"))
        first = next(iter(found["rounds"].values()))
        for way, times in found["rounds"].items():
            ratios = [t / f for t, f in zip(times, first, strict=True)]
            rows.append(
                (
                    f"{name}, {found['atoms']} atoms", way, statistics.median(times),
                    statistics.median(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}",
                )
            )  # fmt: skip
    columns = ("system", "way", "ms a step", "times ASE + MACECalculator", "range")
    print(table("A step of MD, 0.5 fs, Langevin, float32", columns, rows))
    where = ", ".join(sorted(devices))
    print(machine(context(device=where, threads=threads, seeds="1", rounds=ROUNDS)))


if __name__ == "__main__":
    main()
