"""Each test of a potential passes a sound one and fails one that is broken on purpose."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase.build import molecule

from core.campaign.evaluate import recommend
from core.contracts import Label, LabelSet
from core.evaluation import accuracy, minima, stability
from core.evaluation.finding import Finding
from core.evaluation.repulsion import repulsion
from core.potentials.lennard_jones import LennardJones
from core.structures import Structure, from_atoms

ARGON = 18


class Holed(LennardJones):
    """Argon as it should be, but for a deep well where two atoms nearly coincide."""

    def atomic(self, graphs, *geometry):
        nodes, _ = super().atomic(graphs, *geometry)
        (r,) = geometry
        capped = torch.clamp(nodes, max=5.0)
        well = -40.0 * torch.exp(-((r / 1.6) ** 4))
        capped = capped.index_add(0, graphs.senders, well)
        return capped, capped[:, None]


class Inverted(LennardJones):
    """Argon that attracts where it should repel."""

    def atomic(self, graphs, *geometry):
        nodes, features = super().atomic(graphs, *geometry)
        return -nodes, features


@dataclass(frozen=True)
class Springy:
    """A potential as a level of theory."""

    potential: LennardJones
    fingerprint: str = "as the potential"

    def check(self, structure):
        pass

    def compute(self, structure):
        found = self.potential.predict([structure])
        return Label(structure, float(found.energies[0]), found.forces[0], self.fingerprint)


def cluster(scale=1.0):
    """Seven atoms near the minimum, a pentagonal bipyramid."""
    ring = [(np.cos(a), np.sin(a), 0.0) for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)]
    shape = np.array([*ring, (0, 0, 0.65), (0, 0, -0.65)])
    return Structure(np.full(7, ARGON), 3.2 * scale * shape)


def labels(potential, n=30, scale=1.0, spread=0.08):
    rng = np.random.default_rng(3)
    base = cluster(scale)
    frames = tuple(
        base.moved(base.positions + spread * rng.standard_normal((7, 3))) for _ in range(n)
    )
    found = potential.predict(frames)
    return LabelSet(frames, found.energies, found.forces)


def test_accuracy_is_judged_by_the_forces():
    given = labels(LennardJones())
    assert accuracy.parity(LennardJones(), given).verdict == "good"
    wrong = accuracy.parity(LennardJones(epsilon=0.5), given)
    assert wrong.verdict == "bad" and "meV/Å" in wrong.said
    assert wrong.figures["force"] == pytest.approx(
        np.sqrt(np.mean((0.5 / 0.0104 - 1) ** 2 * np.concatenate(given.forces) ** 2)), rel=1e-6
    )
    assert len(wrong.series["energy"][0]) == 30


def test_a_constant_between_two_energy_zeros_is_said_apart():
    given = labels(LennardJones())
    shifted = LabelSet(given.structures, given.energies + 7.0, given.forces)
    found = accuracy.parity(LennardJones(), shifted)
    assert found.figures["energy"] == pytest.approx(1.0, rel=1e-6)
    assert found.figures["energy_within"] == pytest.approx(0, abs=1e-9)


def test_atoms_that_attract_when_pressed_are_found():
    assert repulsion(LennardJones(), [ARGON]).verdict == "good"
    found = repulsion(Holed(), [ARGON])
    assert found.verdict == "bad" and "Ar-Ar" in found.figures["attracted"]


def test_a_simulation_that_breaks_is_found_and_its_time_told():
    sound, frames = stability.stability(
        LennardJones(), cluster(), picoseconds=0.3, seed=1, temperatures=(20.0,)
    )
    assert sound.verdict == "good" and sound.figures["ps"] == {"20": 0.3} and len(frames) > 10
    broken, _ = stability.stability(
        Inverted(), cluster(), picoseconds=2.0, seed=1, temperatures=(20.0,)
    )
    assert broken.verdict == "bad" and broken.figures["ps"]["20"] < 2.0
    assert "20 K" in broken.said


def test_a_torn_bond_counts_below_a_thousand_kelvin():
    methane = from_atoms(molecule("CH4"))
    free = LennardJones((1, 6), sigma=0.75, epsilon=1e-2)  # holds no molecule together
    cold, _ = stability.stability(free, methane, picoseconds=0.1, seed=1, temperatures=(600.0,))
    hot, _ = stability.stability(free, methane, picoseconds=0.1, seed=1, temperatures=(1200.0,))
    assert cold.verdict == "bad" and "torn" in cold.said
    assert hot.verdict == "good"


def test_distances_of_another_size_are_found():
    frames = list(labels(LennardJones(), 40).structures)
    same = stability.distributions(frames, labels(LennardJones(), 40))
    assert same.verdict == "good"
    wide = stability.distributions(frames, labels(LennardJones(), 40, scale=1.08))
    assert wide.verdict == "bad" and wide.figures["mean_A"] > 0.1
    few = stability.distributions(frames, labels(LennardJones(), 5))
    assert few.verdict == "unknown" and "too few" in few.said


def test_a_model_whose_atoms_are_too_large_is_found_by_its_simulation():
    def simulated(potential, seed):
        start, _, _ = minima.relaxed(potential.evaluator(cluster()), cluster())
        _, frames = stability.stability(
            potential, start, picoseconds=1.0, seed=seed, temperatures=(0.5,)
        )
        return frames

    sound = LennardJones()
    given = simulated(sound, 2)
    found = sound.predict(given)
    given = LabelSet(tuple(given), found.energies, found.forces)
    assert stability.distributions(simulated(sound, 1), given).verdict == "good"
    swollen = stability.distributions(simulated(LennardJones(sigma=3.8), 1), given)
    assert swollen.verdict == "bad" and "Ar-Ar" in swollen.said


def test_frequencies_are_those_of_two_masses_on_a_spring():
    def spring(positions):
        apart = positions[1] - positions[0]
        length = np.linalg.norm(apart)
        push = 10.0 * (length - 1.2) * apart / length
        return 5.0 * (length - 1.2) ** 2, np.array([push, -push])

    pair = Structure(np.array([6, 8]), np.array([[0, 0, 0], [0, 0, 1.2]]))
    (found,) = minima.frequencies(spring, pair)
    reduced = 12.011 * 15.999 / (12.011 + 15.999)
    assert found == pytest.approx(521.47 * np.sqrt(10.0 / reduced), rel=2e-4)


def test_vibrations_are_compared_with_the_references():
    argon = LennardJones()
    start = cluster()
    truth = argon.evaluator(start)
    same, minimum, energy = minima.vibrations(argon.evaluator(start), start, truth)
    assert same.verdict == "good" and same.figures["mean_error_cm"] < 0.5
    assert len(same.figures["cm"]) == 3 * 7 - 6
    assert energy == pytest.approx(argon.predict([minimum]).energies[0])
    assert energy < argon.predict([start]).energies[0]
    stiff, *_ = minima.vibrations(LennardJones(epsilon=50.0).evaluator(start), start, truth)
    assert stiff.verdict == "bad"
    none, *_ = minima.vibrations(Inverted().evaluator(start), start, None)
    assert none.verdict == "bad" and "came apart" in none.said


def test_a_saddle_is_not_taken_for_a_minimum():
    def linear(positions):
        """Three atoms in a line that would rather bend."""
        x = torch.tensor(positions, requires_grad=True)
        left, right = x[0] - x[1], x[2] - x[1]
        energy = 5 * ((left.norm() - 1) ** 2 + (right.norm() - 1) ** 2)
        energy = energy - 0.5 * (left + right).pow(2).sum()
        (slope,) = torch.autograd.grad(energy, x)
        return float(energy.detach()), -slope.numpy()

    in_line = Structure(np.array([8, 6, 8]), np.array([[-1.05, 0, 0], [0, 0, 0], [1.0, 0, 0]]))
    found, *_ = minima.vibrations(linear, in_line, None)
    assert found.verdict == "bad" and "2 imaginary" in found.said


def test_a_random_search_finds_minima_that_should_not_be():
    start = cluster()
    argon = LennardJones()
    _, minimum, energy = minima.vibrations(argon.evaluator(start), start, None)
    sound = minima.search(argon.evaluator, minimum, energy, None, trials=4, seed=1)
    assert sound.verdict == "good" and sound.figures["trials"] == 4
    assert min(sound.series["depths_eV_per_atom"]) > -1e-3
    false = minima.search(Holed().evaluator, minimum, energy, None, trials=4, seed=1)
    assert false.verdict == "bad" and false.figures["collapsed"] > 0


def test_a_deep_minimum_is_false_only_if_the_reference_says_so():
    start = cluster()
    deep = LennardJones(epsilon=2.0)
    minimum, _, _ = minima.relaxed(deep.evaluator(start), start)
    energy = 0.0  # as if the known minimum lay far higher
    alone = minima.search(deep.evaluator, minimum, energy, None, trials=2, seed=1)
    assert alone.figures["too_deep"] == 2
    far = minimum.moved(3.0 * minimum.positions)
    same = Springy(deep)
    backed = minima.search(deep.evaluator, far, energy, same, trials=2, seed=1)
    assert backed.figures["too_deep"] == 0
    shallow = minima.search(deep.evaluator, far, energy, Springy(LennardJones()), trials=2, seed=1)
    assert shallow.figures["too_deep"] == 2


def test_forgetting_is_measured_beside_the_foundation():
    argon, own = LennardJones(), labels(LennardJones(epsilon=0.012), spread=0.3)
    assert accuracy.forgetting(argon, argon, own).verdict == "good"
    lost = accuracy.forgetting(LennardJones(epsilon=1.0), argon, own)
    assert lost.verdict == "bad" and lost.figures["growth"] > 2


def finding(name, verdict, force=0.1):
    return Finding(name, verdict, "", {"force": force})


def test_the_recommendation_weighs_physics_before_accuracy():
    sharp = [finding("accuracy", "good", 0.02), finding("dynamics", "bad")]
    sound = [finding("accuracy", "doubtful", 0.1), finding("dynamics", "good")]
    best, why = recommend({"sharp": sharp, "sound": sound})
    assert best == "sound" and "sharp fails in dynamics" in why
    assert recommend({"sharp": sharp})[0] is None
    doubtful = [finding("accuracy", "good", 0.02), finding("repulsion", "doubtful")]
    clean = [finding("accuracy", "good", 0.04), finding("repulsion", "good")]
    best, why = recommend({"a": doubtful, "b": clean})
    assert best == "b" and "a is more accurate" in why and "repulsion" in why
    forgot = [finding("accuracy", "good", 0.02), finding("memory", "bad")]
    best, why = recommend({"first": [finding("accuracy", "doubtful", 0.2)], "tuned": forgot})
    assert best == "tuned" and "forgotten" in why
    kept = [finding("accuracy", "doubtful", 0.06), finding("memory", "good")]
    best, why = recommend({"naive": forgot, "replay": kept})
    assert best == "naive" and "replay has not, and is off by 60 meV/Å" in why
