"""Compiled steps: the same numbers as the uncompiled ones, for any weights and positions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from core.potentials import compiled
from core.potentials.base import TorchPotential
from core.potentials.compiled import Plan, Program, compile_program
from core.potentials.load import load
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure, from_atoms

WATER = from_atoms(molecule("H2O"))
WAIT_S = 600


def new_potential(dtype: torch.dtype = torch.float64, **changes: object) -> MacePotential:
    """Return a small untrained MACE for H, O and Si."""
    torch.manual_seed(1)
    config = default_config((1, 8, 14), np.array([-1.0, -2.0, -3.0]), channels=8, max_ell=2)
    return MacePotential({**config, **changes}, dtype=dtype)


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> tuple[MacePotential, Path]:
    """A potential and its compiled step of water, with the gradient in the weights."""
    potential = new_potential()
    path = tmp_path_factory.mktemp("compiled") / "water.pt2"
    compile_program(potential, WATER, Plan(2, stress=False, weights=True, threads=1), path)
    return potential, path


def moved(structure: Structure, seed: int, by: float = 0.1) -> np.ndarray:
    """Return positions (N, 3) displaced at random."""
    return structure.positions + by * np.random.default_rng(seed).normal(
        size=(len(structure.numbers), 3)
    )


def test_a_compiled_step_agrees_with_the_uncompiled_one(water: tuple[MacePotential, Path]) -> None:
    potential, path = water
    program = Program(potential, Plan(2, stress=False, weights=True, threads=1), path)
    for seed in range(3):
        potential.set_theta(potential.get_theta() + 0.1 * torch.randn(potential.n_parameters))
        structure = WATER.moved(moved(WATER, seed))
        graphs = potential.graphs([structure])
        assert program.takes(graphs)
        found, expected = program(graphs), potential.derivatives(structure)
        assert found.energy == pytest.approx(expected.energy, abs=1e-10)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-10)
        columns = potential.relevant(structure.numbers)
        np.testing.assert_allclose(found.gradient, expected.gradient[columns], atol=1e-10)
        assert np.abs(found.forces).max() > 1e-3


def test_atoms_that_are_out_of_reach_are_nobodys_neighbours(
    water: tuple[MacePotential, Path],
) -> None:
    potential, path = water
    program = Program(potential, Plan(2, stress=False, weights=True, threads=1), path)
    positions = WATER.positions.copy()
    positions[2] += 20.0
    structure = WATER.moved(positions)
    graphs = potential.graphs([structure])
    assert len(graphs.senders) == 2
    assert program.takes(graphs)
    found, expected = program(graphs), potential.derivatives(structure)
    assert found.energy == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-10)


def test_members_and_derivatives_use_the_programs_that_are_there(
    water: tuple[MacePotential, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential, path = water
    plain = new_potential()
    plain.set_theta(potential.get_theta())
    compiler = potential.compile(WATER, tmp_path)
    try:
        for kind in ((False, True), (False, False)):
            plan = Plan(2, stress=False, weights=kind[1], threads=torch.get_num_threads())
            compiler.made[kind] = Program(potential, replace(plan, weights=True), path)
        thetas = potential.get_theta() * (1 + 0.1 * torch.randn(3, potential.n_parameters))
        asked = []
        monkeypatch.setattr(Program, "__call__", spied(Program.__call__, asked))
        structure = WATER.moved(moved(WATER, 5))
        for found, expected in zip(
            potential.members()(structure, thetas)[:2], plain.members()(structure, thetas)[:2],
            strict=True,
        ):  # fmt: skip
            np.testing.assert_allclose(found, expected, atol=1e-10)
        found, expected = potential.derivatives(structure), plain.derivatives(structure)
        np.testing.assert_allclose(found.gradient, expected.gradient, atol=1e-10)
        assert len(asked) == 4
        potential.derivatives(from_atoms(molecule("OH")))
        assert len(asked) == 4  # another structure
    finally:
        potential.compiler = None


def spied(call, asked: list[object]):  # type: ignore[no-untyped-def]
    """Return `call` that notes each call in `asked`."""

    def noted(self, *given, **named):  # type: ignore[no-untyped-def]
        asked.append(self)
        return call(self, *given, **named)

    return noted


def test_a_program_without_room_for_the_edges_is_not_used(
    water: tuple[MacePotential, Path],
) -> None:
    potential, path = water
    program = Program(potential, Plan(1, stress=False, weights=True, threads=1), path)
    assert not program.takes(potential.graphs([WATER]))


def compiled_evaluator(potential: TorchPotential, structure: Structure, folder: Path):  # type: ignore[no-untyped-def]
    """Return an evaluator after its compiler has told what became of the step."""
    compiler = potential.compile(structure, folder)
    evaluate = potential.evaluator(structure)
    end = time.monotonic() + WAIT_S
    step = 0
    while time.monotonic() < end:
        evaluate(moved(structure, step := step + 1, 0.01))
        if compiler.news:
            return evaluate, compiler.news
    raise AssertionError("nothing was heard of the compiler")


def test_a_failed_compilation_is_told_and_leaves_the_step_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = new_potential()
    monkeypatch.setenv("CXX", "no-such-compiler")
    evaluate, (told,) = compiled_evaluator(potential, WATER, tmp_path)
    assert told.problem
    assert not list(tmp_path.glob("*.pt2"))
    energy, _ = evaluate(WATER.positions)
    assert energy == pytest.approx(potential.predict([WATER]).energies[0], abs=1e-10)


def test_a_step_that_contradicts_the_uncompiled_one_is_refused(
    water: tuple[MacePotential, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = water
    other = new_potential(avg_num_neighbors=3.0)  # the program was made for another model
    monkeypatch.setattr(compiled, "_path", lambda *given: path)
    compiler = other.compile(WATER, tmp_path)
    evaluate = other.evaluator(WATER)
    evaluate.watch(torch.ones(1, len(other.relevant(WATER.numbers)), dtype=torch.float64))
    for step in range(compiled.PATIENCE + 5):
        evaluate(moved(WATER, step, 0.01))
    (told,) = compiler.news
    assert "wrong by" in told.problem
    energy, _ = evaluate(WATER.positions)
    assert energy == pytest.approx(other.predict([WATER]).energies[0], abs=1e-10)


def test_what_a_program_is_kept_under_depends_on_all_it_was_made_of(tmp_path: Path) -> None:
    plan = Plan(2, stress=False, weights=True, threads=1)

    def kept(potential: TorchPotential, structure: Structure = WATER, plan: Plan = plan) -> Path:
        return compiled._path(potential, structure, plan, tmp_path)

    usual = kept(new_potential())
    trained = new_potential()
    trained.set_theta(trained.get_theta() + 1.0)
    assert kept(trained) == usual
    assert kept(new_potential(torch.float32)) != usual
    assert kept(new_potential(r_max=4.0)) != usual
    assert kept(new_potential(), from_atoms(molecule("OH"))) != usual
    assert kept(new_potential(), plan=Plan(2, stress=False, weights=True, threads=2)) != usual
    constants = new_potential()
    next(b for n, b in constants.module.named_buffers() if "scale" in n).mul_(2.0)
    assert kept(constants) != usual


def test_models_not_worth_it_are_left_alone(tmp_path: Path) -> None:
    argon = load("lennard-jones")
    pair = Structure(np.array([18, 18]), np.array([[0.0, 0, 0], [3.5, 0, 0]]))
    compiler = argon.compile(pair, tmp_path)
    evaluate = argon.evaluator(pair)
    for _ in range(2 * compiled.PATIENCE):
        evaluate(pair.positions)
    assert not compiler.news
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crystal_under_pressure_is_compiled_in_the_background(tmp_path: Path) -> None:
    potential = new_potential()
    silicon = from_atoms(bulk("Si", cubic=True))
    compiler = potential.compile(silicon, tmp_path)
    evaluate, plain = potential.evaluator(silicon), new_potential().evaluator(silicon)
    cell = np.array(silicon.cell)
    end = time.monotonic() + WAIT_S
    while not compiler.news:
        assert time.monotonic() < end
        evaluate(silicon.positions, cell)
    (told,) = compiler.news
    assert not told.problem and told.after_ms < told.before_ms
    for stretch in (1.0, 1.02, 0.98):
        found, expected = (
            e(stretch * moved(silicon, 1), stretch * cell) for e in (evaluate, plain)
        )
        assert found[0] == pytest.approx(expected[0], abs=1e-9)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-9)
        np.testing.assert_allclose(evaluate.stress, plain.stress, atol=1e-11)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mace_with_equivariant_features_is_compiled_too(tmp_path: Path) -> None:
    potential = new_potential(hidden_irreps="8x0e + 8x1o")
    evaluate, (told,) = compiled_evaluator(potential, WATER, tmp_path)
    assert not told.problem
    energy, forces = evaluate(WATER.positions)
    found = potential.predict([WATER])
    assert energy == pytest.approx(found.energies[0], abs=1e-10)
    np.testing.assert_allclose(forces, found.forces[0], atol=1e-9)
