"""The MD step of one structure as machine code, compiled in a process of its own while MD goes on.

A step of a molecule is many small operations; torch's compiler fuses them. A program holds for
the elements of one structure and for any weights. Its shapes are fixed: every atom receives
`width` edges, and those it lacks come from itself, out of reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
import warnings
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.contracts import Compilation, Derivatives
from core.potentials.invariant import places
from core.structures import Structure

if TYPE_CHECKING:
    from core.potentials.base import GraphBatch, TorchPotential

PATIENCE = 50
"""Steps of one kind before a program is made for them."""
FAR = 1e3
"""Length of an edge that is not there, Å."""
SPARE = 1.2
"""Width over the most edges an atom has now."""
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference from the uncompiled step, in units of the largest value."""
TRIALS = 5


@dataclass(frozen=True)
class Plan:
    """What a program is made for: edges of each atom, results, and CPU threads."""

    width: int
    stress: bool
    weights: bool
    threads: int


class Program:
    """A compiled step."""

    def __init__(self, potential: TorchPotential, plan: Plan, path: Path) -> None:
        self._run = torch._inductor.aoti_load_package(str(path))
        self._weights = [p.detach() for p in potential.parameters()]
        self.plan = plan
        self._edges: tuple[torch.Tensor, ...] = ()
        self._taken: torch.Tensor | None = None

    def takes(self, graphs: GraphBatch) -> bool:
        """Take over the edges of `graphs`; False if there is no room for them."""
        if self._taken is not graphs.shifts:  # made anew with every change of the edges
            arranged = _arranged(graphs, self.plan.width)
            if arranged is None:
                return False
            self._edges, self._taken = arranged, graphs.shifts
        return True

    def __call__(
        self, graphs: GraphBatch, weights: list[torch.Tensor] | None = None
    ) -> Derivatives:
        """Return energy, forces, and as planned stress and ∂E/∂θ of the relevant weights.

        With the weights in force, unless others are given in the order of the parameters.
        """
        energy, forces, *others = self._run(
            self._weights if weights is None else weights, graphs.positions, *self._edges
        )
        stress = None
        if self.plan.stress:
            stress = others.pop(0).double().numpy() / graphs.volumes[0]
        gradient = others[0] if self.plan.weights else torch.zeros(0)
        total = float(energy) + float(graphs.isolated[0])
        return Derivatives(total, forces.double().numpy(), stress, gradient)


class Compiler:
    """Makes programs for one structure in the background, and keeps them in `folder`.

    Attributes:
        columns: relevant weights, of which programs give the gradient.
        made: programs by what they give beside energy and forces: (stress, gradient in weights).
        news: what has become of the first program, and why there are no more; until taken.
    """

    def __init__(self, potential: TorchPotential, structure: Structure, folder: Path) -> None:
        self._potential, self._structure, self._folder = potential, structure, folder
        self.columns = potential.relevant(structure.numbers)
        self._species = potential.graphs([structure]).species
        self._threads = torch.get_num_threads()
        self._told = False
        self.made: dict[tuple[bool, bool], Program] = {}
        self._calls: dict[tuple[bool, bool], int] = {}
        self._child: _Child | None = None
        self._stopped = potential.recipe() is None
        self.news: list[Compilation] = []
        if potential.device.type != "cpu":
            self._stopped = True
            self.news.append(Compilation(problem="they are compiled for the processor only"))

    def program(self, graphs: GraphBatch, *, stress: bool, weights: bool) -> Program | None:
        """Return the program for such steps, if it is there and has room for these edges."""
        if self._stopped or not self.suits(graphs):
            return None
        kind = stress, weights
        found = self.made.get(kind)
        if found is not None and found.takes(graphs):
            return found
        self._calls[kind] = self._calls.get(kind, 0) + 1
        if self._child is not None:
            self._collect(graphs)
        elif self._calls[kind] >= PATIENCE:
            self._begin(graphs, *kind)
        return None

    def suits(self, graphs: GraphBatch) -> bool:
        """Whether `graphs` is the one structure, at whatever positions."""
        return graphs.n_structures == 1 and torch.equal(graphs.species, self._species)

    def close(self) -> None:
        """Give up what is being made."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _begin(self, graphs: GraphBatch, stress: bool, weights: bool) -> None:
        most = int(torch.bincount(graphs.receivers).max()) if len(graphs.receivers) else 0
        width = int(np.ceil(SPARE * most)) + 1
        if not any(self._structure.pbc):
            width = min(width, len(self._structure) - 1)
        plan = Plan(max(width, 1), stress, weights, self._threads)
        self._child = _Child(self._potential, self._structure, plan, self._folder)

    def _collect(self, graphs: GraphBatch) -> None:
        assert self._child is not None
        ended = self._child.ended()
        if ended is None:
            return
        plan, self._child = self._child.plan, None
        kind = plan.stress, plan.weights
        self._calls[kind] = 0
        problem = ended
        if not problem:
            path = _path(self._potential, self._structure, plan, self._folder)
            program = Program(self._potential, plan, path)
            if not program.takes(graphs):
                return
            problem, before, after = self._compared(program, graphs)
        if problem:
            self._stopped = True
            self.news.append(Compilation(problem=problem))
            return
        self.made[kind] = program
        if not self._told:
            self.news.append(Compilation(1e3 * before, 1e3 * after))
        self._told = True

    def _compared(self, program: Program, graphs: GraphBatch) -> tuple[str, float, float]:
        """Return how the program contradicts the uncompiled step, and seconds of both."""
        plan = program.plan

        def plain() -> Derivatives:
            return self._potential._derivatives(graphs, stress=plan.stress, weights=plan.weights)

        before, expected = _seconds(plain)
        graphs.positions = graphs.positions.detach()
        after, found = _seconds(lambda: program(graphs))
        allowed = AGREEMENT[self._potential.dtype]
        interaction = expected.energy - float(graphs.isolated[0])
        compared = {
            "energy": (found.energy, expected.energy, abs(interaction)),
            "forces": (found.forces, expected.forces, np.abs(expected.forces).max()),
        }
        if expected.stress is not None:
            compared["stress"] = (found.stress, expected.stress, np.abs(expected.stress).max())
        if plan.weights:
            gradient = expected.gradient[self.columns]
            compared["gradient"] = (found.gradient, gradient, gradient.abs().max())
        problem = ""
        for name, (now, then, size) in compared.items():
            worst = float(np.abs(np.asarray(now) - np.asarray(then)).max())
            if worst > allowed * max(1.0, float(size)):
                problem = f"its {name} came out wrong by {worst:.2g}"
        return problem, before, after


def _seconds(step: Any) -> tuple[float, Derivatives]:
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        found = step()
        times.append(time.perf_counter() - began)
    return min(times), found


def _arranged(graphs: GraphBatch, width: int) -> tuple[torch.Tensor, ...] | None:
    """Return senders (N·width,) and shifts (N·width, 3) with `width` edges for each atom."""
    n = len(graphs.species)
    place, most = places(graphs.receivers, n)
    if most > width:
        return None
    place = place + graphs.receivers * (width - most)
    senders = torch.arange(n).repeat_interleave(width)
    shifts = torch.zeros(n * width, 3, dtype=graphs.shifts.dtype)
    shifts[:, 0] = FAR
    senders[place], shifts[place] = graphs.senders, graphs.shifts
    return senders, shifts


class _Child:
    """The process in which a program is made."""

    def __init__(
        self, potential: TorchPotential, structure: Structure, plan: Plan, folder: Path
    ) -> None:
        self.plan = plan
        self._path = _path(potential, structure, plan, folder)
        self._process: Any = None
        if self._path.exists():
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        context = get_context("spawn")
        self._answer, answer = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_make, daemon=True,
            args=(potential.recipe(), structure, plan, self._path, answer),
        )  # fmt: skip
        self._process.start()
        answer.close()

    def ended(self) -> str | None:
        """Return None while it works, then the problem it met, or an empty string."""
        if self._process is None:
            return ""
        if self._answer.poll():
            with contextlib.suppress(EOFError):
                problem = str(self._answer.recv())
                self._process.join()
                return problem
        elif self._process.is_alive():
            return None
        return "the compiler's process ended unexpectedly"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _path(potential: TorchPotential, structure: Structure, plan: Plan, folder: Path) -> Path:
    recipe = potential.recipe()
    assert recipe is not None
    digest = hashlib.sha256()
    for tensor in recipe.constants.values():
        digest.update(tensor.numpy().tobytes())
    about = [
        recipe.config, str(recipe.dtype), structure.numbers.tolist(), asdict(plan), platform.node(),
        torch.backends.cpu.get_cpu_capability(),
        *(importlib.metadata.version(name) for name in ("torch", "mace-torch", "flywise")),
    ]  # fmt: skip
    digest.update(json.dumps(about, default=str, sort_keys=True).encode())
    return folder / f"{digest.hexdigest()[:24]}.pt2"


def _make(recipe: Any, structure: Structure, plan: Plan, path: Path, answer: Any) -> None:
    """Compile; send the problem met, or an empty string."""
    os.nice(5)
    torch.set_num_threads(plan.threads)
    try:
        compile_program(recipe.build(), structure, plan, path)
        answer.send("")
    except Exception as error:  # of torch's compiler, which knows no few kinds
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        answer.send(f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])


def compile_program(
    potential: TorchPotential, structure: Structure, plan: Plan, path: Path
) -> None:
    """Compile the step of `structure` into the file `path`, which appears when it is complete."""
    from torch.fx.experimental.proxy_tensor import make_fx

    step, arguments = _step(potential, structure, plan)
    part = path.with_suffix(f".{os.getpid()}.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own parts
        traced = make_fx(step)(*arguments)
        traced.graph.eliminate_dead_code()
        traced.recompile()
        exported = torch.export.export(traced, arguments)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(part))
    part.replace(path)


def _step(potential: TorchPotential, structure: Structure, plan: Plan) -> tuple[Any, Any]:
    """Return the step as a function of its arguments, and examples of those."""
    plain = potential.graphs([structure])
    n = len(structure)
    one_hot = torch.eye(len(potential.elements), dtype=potential.dtype)[plain.species]
    fixed = replace(
        plain, receivers=torch.arange(n).repeat_interleave(plan.width),
        places=torch.arange(n * plan.width), width=plan.width, one_hot=one_hot,
    )  # fmt: skip
    network = potential.members().network
    columns = potential.relevant(structure.numbers)

    def step(
        weights: list[torch.Tensor], positions: torch.Tensor, senders: torch.Tensor,
        shifts: torch.Tensor,
    ) -> list[torch.Tensor]:  # fmt: skip
        positions = positions.detach().requires_grad_(True)
        graphs = replace(fixed, positions=positions, senders=senders, shifts=shifts)
        wanted = [positions]
        if plan.stress:
            graphs.strain = torch.zeros(1, 3, 3, dtype=potential.dtype).requires_grad_(True)
            wanted.append(graphs.strain)
        weights = [w.detach().requires_grad_(plan.weights) for w in weights]
        energy = network.nodes(weights, graphs, potential.geometry(graphs)).sum()
        if plan.weights:
            wanted += weights
        slope, *others = torch.autograd.grad(energy, wanted, materialize_grads=True)
        results = [energy.detach(), -slope]
        if plan.stress:
            results.append(others.pop(0)[0])
        if plan.weights:
            results.append(torch.cat([g.reshape(-1) for g in others]).index_select(0, columns))
        return results

    senders = torch.arange(n).repeat_interleave(plan.width)
    shifts = torch.full((n * plan.width, 3), FAR, dtype=potential.dtype)
    weights = [p.detach() for p in potential.parameters()]
    return step, (weights, plain.positions.detach(), senders, shifts)
