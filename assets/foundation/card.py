"""The model card of the bundled model as Markdown; every figure comes from what was measured."""

from __future__ import annotations

from typing import Any

from ase.data import chemical_symbols

from core.potentials.mace import MacePotential

MODEL = """
A MACE with {parameters:,} parameters ({irreps}, two layers, cutoff {cutoff} Å) and a screened
nuclear repulsion of every pair, for {elements};
made by `assets/foundation` from nothing but SMILES and GFN1-xTB.

Trained on {labelled:,} GFN1-xTB frames of molecules and dimers: near equilibrium, MD at
300-4,000 K, stretched, compressed and torn bonds, atoms handed over, contacts, every pair of
elements pressed together. {molecules:,} molecules in all.
{special}
{epochs} epochs, {minutes} minutes ({machine}), seed {seed}, {date}.
{earlier}

## Errors

Forces in meV/Å; energies in meV/atom: within molecules (each one's own mean removed) and absolute.
distorted: bonds stretched or compressed by up to 0.6 of their length, angles bent, sides twisted;
reaction: a bond torn to 1.4-2.6 times its length, or an atom on its way to another molecule; dimer
and scan: two molecules in contact, or with an atom of each pressed together. Unseen: molecules of
H, C, N and O drawn at random, and others with further elements, half of them chains, half of ring
scaffolds that no molecule was trained on. Strained or rare: rings of three or four, N-N, N-O, O-O
and acetal bonds, halogens on heteroatoms, bonds between P, S, Si and B.
"""
CHOSEN = (
    "{chosen:,} of the molecules were chosen, out of random ones, by how little an earlier model "
    "knew of their atoms."
)
REHEARSED = (
    "Besides, {rehearsed:,} frames that carried what the earlier model predicts, of molecules like "
    "those it\nhad learned: rehearsed, so that they are not forgotten."
)
TINY = (
    "{tiny} of the molecules have up to four atoms and are like no others: water (in clusters "
    "too), CO, O3, H2."
)
EARLIER = (
    "Started from the weights of an earlier run: {frames:,} frames of {molecules:,} molecules,\n"
    "{epochs} epochs, {minutes} minutes."
)
COLUMNS = (
    "| set | class | frames | forces MAE | RMSE | energy within, MAE | absolute, MAE | RMSE |",
    "|---|---|---|---|---|---|---|---|",
)
KEYS = ("frames", "forces_MAE", "forces_RMSE", "energy_within_MAE", "energy_MAE", "energy_RMSE")
CURVE = """
## Learning

MAE of the averaged weights on a quarter of the unseen frames in the course of training; forces in
meV/Å, energies in meV/atom.

| minutes | frames seen | forces, 300 K | forces, 1,200 K | energy, 300 K | energy, 1,200 K |
|---|---|---|---|---|---|"""
CURVE_KEYS = ("forces_MAE_300K", "forces_MAE_1200K", "energy_MAE_300K", "energy_MAE_1200K")
LIMITS = """
## Use and limits

A starting point for on-the-fly fine-tuning, not a production potential: it inherits GFN1-xTB's
errors, knows closed-shell neutral molecules and the first stretch of their bonds' breaking, and has
seen no ions and no periodic systems. Energies are total GFN1-xTB energies; other levels of theory
differ by a constant per composition that a campaign fits first. `replay.npz` holds frames of each
kind it was trained on, for rehearsal."""


def card(potential: MacePotential, about: dict[str, Any]) -> str:
    """Return the model card of `potential`; `about` is what its bundle says of itself."""
    training = about["training"]
    elements = ", ".join(chemical_symbols[z] for z in potential.elements)
    words = {"rehearsed": REHEARSED, "chosen": CHOSEN, "tiny": TINY}
    special = "\n".join(text.format(**training) for key, text in words.items() if training.get(key))
    filled = MODEL.format(
        parameters=potential.n_parameters, irreps=potential.config["hidden_irreps"],
        cutoff=potential.cutoff, elements=elements,
        labelled=training["frames"] - training.get("rehearsed", 0),
        **training | {"special": special, "earlier": "\n".join(_earlier(training))},
    )  # fmt: skip
    lines = [f"# {about['title']}", *filled.splitlines(), "", *COLUMNS]
    for where, table in about["errors"].items():
        for name, row in table.items():
            lines.append(f"| {where} | {name} | " + " | ".join(str(row[k]) for k in KEYS) + " |")
    if about["curve"]:
        lines += CURVE.splitlines()
        lines += [
            f"| {row['minutes']} | {row['frames']:,} | "
            + " | ".join(str(row[k]) for k in CURVE_KEYS)
            + " |"
            for row in about["curve"]
        ]
    lines += _worst(about["worst"])
    lines += _in_use(about.get("checks"))
    return "\n".join([*lines, *LIMITS.splitlines()]) + "\n"


def _earlier(training: dict[str, Any]) -> list[str]:
    """Return a sentence for each run that this one goes on from, the last one first."""
    before = training.get("earlier")
    return [EARLIER.format(**before), *_earlier(before)] if before else []


def _worst(worst: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "",
        "## Known failures",
        "",
        "Molecules with the worst forces at 300 K, MAE in meV/Å.",
        "",
    ]
    for where, molecules in worst.items():
        named = ", ".join(f"{name} ({error:.0f})" for name, error in molecules.items())
        lines.append(f"- {where}: {named}")
    return lines


def _in_use(checks: dict[str, Any] | None) -> list[str]:
    if checks is None:
        return []
    kept = checks["broken_but_kept_by_GFN1"]
    attracted = checks["not_repulsive"]
    return [
        "",
        "## In use",
        "",
        f"{checks['molecules']} held-out molecules, {checks['picoseconds']} ps at "
        f"{checks['kelvin']:.0f} K: {len(checks['broken'])} broke, {len(kept)} of them kept by "
        f"GFN1-xTB{': ' if kept else ''}{', '.join(kept)}.",
        "",
        f"{checks['pairs']} pairs of elements pressed from 0.7 of their bond to 0.5 Å: "
        + (
            f"not repulsive everywhere: {', '.join(attracted)}."
            if attracted
            else f"all repel, with at least {checks['smallest_push_eV_per_A']} eV/Å."
        ),
    ]
