"""The one settings schema: default, bounds, unit and help of every field, and the TOML file.

The forms of the app, the command line's help and the documentation are derived from it.
Quantities with a unit accept text ("0.5 kcal/mol") or a number in the inner unit; they are stored
in the inner unit. A field marked `live` may be changed while a campaign runs.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from core.errors import InputError, SettingsError, shorten
from core.structures import Structure, check, from_file, from_name, from_smiles
from core.units import KCAL_PER_MOL, parse_energy, parse_force, parse_stress

NONE = "none"
"""How a settings file, which knows no null, says that there is no tolerance."""


def _quantity(parse: Any) -> BeforeValidator:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        try:
            return parse(value, "value")
        except SettingsError as error:
            raise ValueError(str(error).removeprefix("value: ")) from error

    return BeforeValidator(convert)


Energy = Annotated[float, _quantity(parse_energy)]
Force = Annotated[float, _quantity(parse_force)]
Stress = Annotated[float, _quantity(parse_stress)]


def _live(**extra: Any) -> dict[str, Any]:
    return {"live": True, **extra}


def _only(**accepted: str) -> dict[str, Any]:
    """Say for which values of other fields of the section, given as words, a field has meaning."""
    return {"only": {name: words.split() for name, words in accepted.items()}}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StructureSettings(_Section):
    """What is simulated: exactly one of smiles, file and name."""

    smiles: str | None = Field(None, description="Molecule as SMILES.")
    file: str | None = Field(None, description="Structure file (xyz, cif, pdb, sdf, ...).")
    name: str | None = Field(None, description="Name in ASE's molecule library.")
    charge: int | None = Field(None, ge=-20, le=20, description="Total charge, e.")
    spin: int | None = Field(None, ge=0, le=20, description="Number of unpaired electrons.")

    @model_validator(mode="after")
    def _one(self) -> StructureSettings:
        given = [k for k in ("smiles", "file", "name") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of smiles, file and name is needed, but {len(given)} were given"
            )
        return self


class PotentialSettings(_Section):
    """The foundation model."""

    model: str = Field(
        "bundled", title="Foundation model",
        description="Its name, or the folder of a bundle.",
    )  # fmt: skip
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the model.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", title="Device",
        description="Where the model computes; auto measures a step and takes a CUDA card where "
        "it is faster.",
    )  # fmt: skip
    threads: int = Field(1, ge=1, le=64, description="CPU threads of the simulation.")
    compiled: bool = Field(
        False, title="Compiled steps",
        description="Steps of small systems take a fraction of the time, after a minute in which "
        "they are compiled; needs a C++ compiler. Trajectories then repeat to rounding only.",
    )  # fmt: skip
    learning_threads: int = Field(
        0, ge=0, le=64, title="CPU threads of learning",
        description="The simulation waits meanwhile; 0 for all cores.",
    )  # fmt: skip


class DynamicsSettings(_Section):
    """Molecular dynamics."""

    ensemble: Literal["langevin", "nose-hoover", "npt", "nve"] = Field(
        "langevin",
        title="Ensemble",
        description="Thermostat; npt for a crystal whose volume answers to the pressure; nve for "
        "constant energy.",
    )
    temperature_K: float = Field(
        300.0, gt=0, le=10_000, description="Temperature.", json_schema_extra=_live(unit="K")
    )
    timestep_fs: float = Field(
        0.5, gt=0, le=5, description="Time step.", json_schema_extra={"unit": "fs"}
    )
    friction_per_fs: float = Field(
        0.01, gt=0, le=1, description="Langevin friction.", json_schema_extra={"unit": "1/fs"}
    )
    pressure: Stress = Field(
        0.0, ge=-1, le=10, title="Pressure", description="Pressure of the npt ensemble.",
        json_schema_extra={"unit": "eV/Å³"} | _only(ensemble="npt"),
    )  # fmt: skip
    steps: int = Field(
        5000, ge=1, le=100_000_000, description="Steps to run.", json_schema_extra=_live()
    )
    check_every: int = Field(
        10,
        ge=1,
        le=10_000,
        description="Steps between checks of the forces and stored frames; the energy is watched "
        "at every step.",
    )
    max_speed_factor: float = Field(
        20.0,
        gt=1,
        title="Heat limit",
        description="Reset when the kinetic temperature exceeds this multiple of the wanted one.",
    )


CALIBRATIONS: dict[str, Any] = {
    "student-t": "In our study its 90 % bounds held 88 to 93 % of new energies, and of the largest "
    "forces 87 to 99 % after ten scored frames, 89 to 92 % after 30. Take it.",
    "conformal": "By the ranks of earlier errors, with no law for them: 89 to 91 % of both after "
    "30 scored frames, of the largest forces 78 to 99 % after ten. Take it for long campaigns.",
}
POSTERIORS: dict[str, Any] = {
    "linearised": "The default. In our study it ranks the largest force errors best, has σ right "
    "within a quarter before any calibration, and takes seconds for each label. Take it unless you "
    "compare methods.",
    "last-layer": "Samples of the readouts alone: small and simple, but overconfident five to "
    "fourteen times until calibrated. Take it for models too large for the default.",
    "deep-ensemble": "Several trainings from different starts: overconfident one and a half to "
    "three times, a minute or two for each label. Take it to compare with what others do.",
    "blip": "Noise on the weights of one model, whose memory is all it needs: σ right within a "
    "factor of two and a half, but a weak ranking; minutes for each label.",
    "sghmc": "The published sampler: over a hundred times the default's time for each label, "
    "energies overconfident five to eight times. Take it to reproduce the publication.",
}
"""When to take which, by `flywise bench posterior` (the table is in README)."""


class TrustSettings(_Section):
    """The accuracy that is asked for."""

    energy_tolerance: Energy | None = Field(
        None,
        gt=0,
        title="Energy tolerance",
        description="Largest acceptable error of the total energy; default 0.5 kcal/mol·√(N/9).",
        json_schema_extra=_live(unit="eV"),
    )
    force_tolerance: Force | None = Field(
        0.15,
        gt=0,
        title="Force tolerance",
        description="Largest acceptable error of any atom's force; none to decide by energy only.",
        json_schema_extra=_live(unit="eV/Å"),
    )
    stress_tolerance: Stress | None = Field(
        None,
        gt=0,
        title="Stress tolerance",
        description="Largest acceptable error of any stress component, for crystals; none to "
        "decide without it.",
        json_schema_extra={"unit": "eV/Å³"},
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        title="Confidence",
        description="Wanted probability of staying within the tolerances.",
        json_schema_extra=_live(),
    )
    calibration: Literal["student-t", "conformal"] = Field(
        "student-t",
        title="Calibration",
        description="How errors of earlier labels correct the model's own σ.",
        json_schema_extra=_live() | {"choices": CALIBRATIONS},
    )
    initial_labels: int = Field(8, ge=2, le=200, description="Frames labelled before any trust.")
    initial_stride: int = Field(30, ge=1, le=10_000, description="Steps between those frames.")

    @field_validator("energy_tolerance", "force_tolerance", "stress_tolerance", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == NONE else value

    def energy_tolerance_for(self, n_atoms: int) -> float:
        """Return the tolerance of the total energy in eV for a structure of `n_atoms`."""
        if self.energy_tolerance is not None:
            return self.energy_tolerance
        return 0.5 * KCAL_PER_MOL * math.sqrt(n_atoms / 9)


class FinetuningSettings(_Section):
    """Which weights labels may move."""

    strategy: Literal[
        "naive", "freeze-products", "freeze-readouts", "lora", "replay", "pseudolabel-replay",
        "replay-lora",
    ] = Field(
        "naive", title="Strategy",
        description="naive: all weights move; freeze-products: products and readouts; "
        "freeze-readouts: readouts. The others are for fine-tuning from a file.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _in_a_campaign(self) -> FinetuningSettings:
        if self.strategy in _FROM_FILES:
            raise ValueError(
                f"strategy {self.strategy!r} is not for campaigns: {_FROM_FILES[self.strategy]}; "
                "accepted here: naive, freeze-products, freeze-readouts; for the others use "
                "flywise finetune on exported labels"
            )
        return self


_FACTORS = (
    "its free numbers are products of two factors, for which there is no prior centred on the "
    "foundation and no closed form of the uncertainty"
)
_REHEARSAL = (
    "a campaign's uncertainty rests on a prior centred on the foundation's weights, which holds "
    "them back already; rehearsed frames would count as labels of the system"
)
_FROM_FILES = {
    "lora": _FACTORS, "replay": _REHEARSAL, "pseudolabel-replay": _REHEARSAL,
    "replay-lora": _FACTORS,
}  # fmt: skip
"""Strategies without meaning together with a posterior over the weights, and why."""


class PosteriorSettings(_Section):
    """How uncertainty over the weights is represented and learned."""

    kind: Literal["linearised", "last-layer", "deep-ensemble", "blip", "sghmc"] = Field(
        "linearised", title="Posterior", description="Where the uncertainty comes from.",
        json_schema_extra={"choices": POSTERIORS},
    )  # fmt: skip
    prior_std: float = Field(
        0.3, gt=0, description="Prior spread of each weight.",
        json_schema_extra=_only(kind="linearised last-layer"),
    )  # fmt: skip
    noise_energy: Energy | None = Field(
        None, gt=0, title="Noise of the energy",
        description="Of labels, and what the model cannot fit; default a seventh of the tolerance.",
        json_schema_extra={"unit": "eV"},
    )  # fmt: skip
    noise_force: Force | None = Field(
        None, gt=0, title="Noise of a force component",
        description="The same of forces; default a fifth of the tolerance, 0.03 eV/Å without one.",
        json_schema_extra={"unit": "eV/Å"},
    )  # fmt: skip
    noise_stress: Stress | None = Field(
        None, gt=0, title="Noise of a stress component",
        description="The same of stress; default a tenth of the tolerance.",
        json_schema_extra={"unit": "eV/Å³"} | _only(kind="linearised"),
    )  # fmt: skip
    iterations: int = Field(
        6, ge=1, le=1000, description="Steps of the mean for each label.",
        json_schema_extra=_only(kind="linearised"),
    )  # fmt: skip
    max_rows: int = Field(
        6000, ge=100, title="Most rows",
        description="Energies and force components learned from; beyond, old labels keep fewer.",
        json_schema_extra=_only(kind="linearised"),
    )  # fmt: skip
    members: int = Field(
        32, ge=2, le=128, description="Weight samples.",
        json_schema_extra=_only(kind="linearised last-layer"),
    )  # fmt: skip
    descent_steps: int = Field(
        300, ge=10, description="Steps of fine-tuning at each update.",
        json_schema_extra=_only(kind="last-layer deep-ensemble blip"),
    )  # fmt: skip
    descent_rate: float = Field(
        1e-3, gt=0, description="Learning rate of these.",
        json_schema_extra=_only(kind="last-layer deep-ensemble blip"),
    )  # fmt: skip
    ensemble: int = Field(
        5, ge=2, le=32, description="Members of a deep ensemble.",
        json_schema_extra=_only(kind="deep-ensemble"),
    )  # fmt: skip
    ensemble_noise: float = Field(
        0.1, ge=0, title="Spread of the members' starts",
        description="Relative to each block of weights.",
        json_schema_extra=_only(kind="deep-ensemble"),
    )  # fmt: skip
    passes: int = Field(
        8, ge=2, le=128, description="Stochastic evaluations of a frame.",
        json_schema_extra=_only(kind="blip"),
    )  # fmt: skip
    blip_prior: float = Field(
        1e-3, gt=0, lt=0.3, title="Prior noise",
        description="Variance of a weight over its square, before any label.",
        json_schema_extra=_only(kind="blip"),
    )  # fmt: skip
    blip_divergence: float = Field(
        1.0, ge=0, title="Weight of the divergence",
        description="From the prior noise, beside the likelihood.",
        json_schema_extra=_only(kind="blip"),
    )  # fmt: skip
    blip_noise: Literal["weights", "gates"] = Field(
        "weights", title="Noise of",
        description="weights: each by itself; gates: one for all that lead to a channel.",
        json_schema_extra=_only(kind="blip"),
    )  # fmt: skip
    chains: int = Field(
        8, ge=2, le=64, description="Chains.", json_schema_extra=_only(kind="sghmc")
    )
    sghmc_steps: int = Field(
        2000, ge=10, description="Steps per chain and label.",
        json_schema_extra=_only(kind="sghmc"),
    )  # fmt: skip
    sghmc_prior_std: float = Field(
        0.5, gt=0, description="Prior spread of each weight of a chain.",
        json_schema_extra=_only(kind="sghmc"),
    )  # fmt: skip
    sghmc_learning_rate: float = Field(
        1e-3, gt=0, description="Initial step size.", json_schema_extra=_only(kind="sghmc")
    )
    sghmc_friction: float = Field(
        0.1, gt=0, lt=1, description="Friction.", json_schema_extra=_only(kind="sghmc")
    )
    sghmc_frozen: bool = Field(
        False, title="Freeze the mass",
        description="Once the noise begins, so that the sampled law is right.",
        json_schema_extra=_only(kind="sghmc"),
    )  # fmt: skip


@dataclass(frozen=True)
class Noise:
    """Standard deviations of what a label gives, model discrepancy included.

    Attributes:
        energy: eV. force: of a component, eV/Å. stress: of a component, eV/Å³, or None.
    """

    energy: float
    force: float
    stress: float | None = None


class LabellingSettings(_Section):
    """Reference calculations, and who decides about them."""

    reference: str = Field(
        "gfn2-xtb",
        title="Level of theory",
        description="gfn1-xtb, gfn2-xtb, dft:FUNCTIONAL/BASIS (PySCF), ase:CALCULATOR (any that "
        "ASE drives, with its options as JSON), or teacher:BUNDLE (a frozen potential).",
    )
    mode: Literal["approve", "threshold", "batch"] = Field(
        "threshold",
        title="Flagged frames",
        description="approve: ask for each; threshold: label without asking; batch: collect.",
        json_schema_extra=_live(),
    )
    batch_size: int = Field(
        8, ge=1, le=1000, description="Frames proposed at once.",
        json_schema_extra=_live() | _only(mode="batch"),
    )  # fmt: skip
    batch_by: Literal["joint", "sigma"] = Field(
        "joint", title="Batch by",
        description="joint: each frame adds to what those before it tell of energies and forces; "
        "for comparison, sigma: those of the largest force σ.",
        json_schema_extra=_only(mode="batch"),
    )  # fmt: skip
    rule: Literal["tolerance", "sigma", "moving-average"] = Field(
        "tolerance", title="Flag by",
        description="tolerance: where an error may exceed one; for comparison, sigma: where the "
        "largest raw force σ exceeds a value; moving-average: where it exceeds its mean over the "
        "last 400 checks by a fraction.",
    )  # fmt: skip
    rule_value: float = Field(
        0.1, gt=0, title="Value of the rule",
        description="eV/Å for sigma, the fraction for moving-average.",
        json_schema_extra=_only(rule="sigma moving-average"),
    )  # fmt: skip
    every: int = Field(
        0, ge=0, title="Label every Nth step",
        description="Instead of where the model is unsure; 0 for where it is unsure.",
    )  # fmt: skip
    time_limit_s: float = Field(
        600.0, gt=0, title="Time limit of a label",
        description="One that takes longer is cancelled.",
        json_schema_extra=_live(unit="s"),
    )  # fmt: skip
    processes: int = Field(1, ge=1, le=64, description="Reference calculations side by side.")
    max_labels: int = Field(
        1000, ge=1, title="Most labels", description="After these the campaign pauses.",
        json_schema_extra=_live(),
    )  # fmt: skip
    resume_from: Literal["flagged", "last-trusted"] = Field(
        "flagged", title="Resume from", description="Where MD goes on after an update.",
        json_schema_extra=_live(),
    )  # fmt: skip
    seed: int = Field(1, ge=0, le=2**32 - 1, description="Seed of all random numbers.")


class Settings(_Section):
    """A campaign's settings; `[structure]` is the only section that must be given."""

    structure: StructureSettings
    potential: PotentialSettings = PotentialSettings()
    dynamics: DynamicsSettings = DynamicsSettings()
    trust: TrustSettings = TrustSettings()
    finetuning: FinetuningSettings = FinetuningSettings()
    posterior: PosteriorSettings = PosteriorSettings()
    labelling: LabellingSettings = LabellingSettings()

    def noise_for(self, n_atoms: int) -> Noise:
        """Return the noise of labels of `n_atoms`: as given, or in proportion to the tolerances."""
        trust, given = self.trust, self.posterior
        energy = given.noise_energy or trust.energy_tolerance_for(n_atoms) / 7
        force = given.noise_force or (trust.force_tolerance or 0.15) / 5
        if trust.stress_tolerance is None:
            return Noise(energy, force)
        return Noise(energy, force, given.noise_stress or trust.stress_tolerance / 10)

    def with_value(self, path: str, value: Any) -> Settings:
        """Return settings with the field `path` ("trust.confidence") set to `value`.

        Raises:
            SettingsError: no such field, or a value that is not accepted.
        """
        section, _, name = path.partition(".")
        data = self.model_dump()
        if section not in data or name not in data[section]:
            raise SettingsError(f"There is no setting {path!r}.")
        data[section][name] = value
        return from_dict(data)

    def to_json(self) -> str:
        """Return the settings as one JSON object, every field written out."""
        return self.model_dump_json()

    def to_toml(self) -> str:
        """Return the settings as a file that `load` reads, every field written out."""
        parts = []
        for section, values in self.model_dump().items():
            defaults = type(getattr(self, section)).model_fields
            lines = [
                f"{name} = {_toml(value)}"
                for name, value in values.items()
                if value is not None or defaults[name].default is not None
            ]
            parts.append("\n".join([f"[{section}]", *lines]) + "\n")
        return "\n".join(parts)


def _toml(value: str | float | bool | None) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def fields() -> list[dict[str, Any]]:
    """Return path, title (or None), type, default, unit, help, bounds and more of each field.

    "choices" says of the values of some fields when to take each; "only" names other fields of the
    section and the values without which this one has no meaning.
    """
    listed = []
    for section, info in Settings.model_fields.items():
        schema = info.annotation.model_json_schema()  # type: ignore[union-attr]
        for name, entry in schema["properties"].items():
            types = [t for t in entry.get("anyOf", [entry]) if t.get("type") != "null"]
            listed.append(
                {
                    "path": f"{section}.{name}",
                    "title": info.annotation.model_fields[name].title,  # type: ignore[union-attr]
                    "help": entry.get("description", ""),
                    "default": entry.get("default"),
                    "unit": entry.get("unit"),
                    "choices": entry.get("choices", {}),
                    "only": entry.get("only", {}),
                    "live": bool(entry.get("live", False)),
                    "optional": len(types) < len(entry.get("anyOf", [entry])),
                    **{k: v for k, v in types[0].items() if k in _BOUNDS},
                }
            )
    return listed


_BOUNDS = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def live_paths() -> frozenset[str]:
    """Return the paths of all fields that may be changed while a campaign runs."""
    return frozenset(entry["path"] for entry in fields() if entry["live"])


def from_dict(data: dict[str, Any], where: str = "settings") -> Settings:
    """Validate a nested dictionary.

    Raises:
        SettingsError: one line per field that is not accepted, with the value given.
    """
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        lines = [_explain(entry) for entry in error.errors()]
        raise SettingsError(f"{where}: " + "; ".join(lines)) from error


def _explain(entry: Any) -> str:
    path = ".".join(str(part) for part in entry["loc"]) or "settings"
    given = entry.get("input")
    if entry["type"] == "extra_forbidden":
        return f"{shorten(path)} is not a setting{_nearest(path[:100])}"
    if entry["type"] == "missing":
        return f"{path} is missing"
    message = shorten(entry["msg"].removeprefix("Value error, "))
    shown = "" if isinstance(given, dict) else f" (given: {shorten(repr(given), 100)})"
    return f"{path}: {message}{shown}"


def _nearest(path: str) -> str:
    known = [entry["path"] for entry in fields()] + list(Settings.model_fields)
    close = difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def load(path: str | Path) -> Settings:
    """Read a settings TOML file; a relative structure file or bundle is relative to it.

    Raises:
        SettingsError: missing file, malformed TOML, or fields that are not accepted.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"There is no settings file {path}.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid TOML: {error}.") from error
    settings = from_dict(data, path.name)
    file = settings.structure.file
    if file and not Path(file).is_absolute():
        settings = settings.with_value("structure.file", str((path.parent / file).resolve()))
    model = settings.potential.model
    named = model == "bundled" or ":" in model or model == "lennard-jones"
    if not named and (path.parent / model).is_dir():
        settings = settings.with_value("potential.model", str((path.parent / model).resolve()))
    return settings


def from_json(text: str) -> Settings:
    """Read what `Settings.to_json` wrote."""
    return from_dict(json.loads(text))


def structure_of(settings: Settings) -> Structure:
    """Build the start structure.

    Raises:
        InputError: the structure cannot be read or simulated.
    """
    structure = _structure_of(settings.structure)
    if settings.trust.stress_tolerance is not None and not structure.is_bulk:
        raise InputError(
            f"trust.stress_tolerance is for crystals, but {structure.formula} does not repeat in "
            "all three directions; leave it out, or give a structure with a cell."
        )
    if settings.dynamics.ensemble == "npt" and not structure.is_bulk:
        raise InputError(
            f"dynamics.ensemble 'npt' is for crystals, but {structure.formula} does not repeat in "
            "all three directions; use 'langevin' or 'nose-hoover'."
        )
    if settings.dynamics.ensemble == "npt" and structure.fixed:
        raise InputError(
            f"dynamics.ensemble 'npt' moves all atoms, but {len(structure.fixed)} are fixed; use "
            "'langevin' or 'nose-hoover'."
        )
    return structure


def _structure_of(given: StructureSettings) -> Structure:
    if given.smiles:
        structure = from_smiles(given.smiles)
    elif given.file:
        return from_file(given.file, charge=given.charge, spin=given.spin)
    elif given.name:
        structure = from_name(given.name)
    else:
        raise InputError("No structure was given.")
    if given.charge is None and given.spin is None:
        return structure
    return check(
        Structure(
            structure.numbers,
            structure.positions,
            structure.cell,
            structure.pbc,
            structure.charge if given.charge is None else given.charge,
            structure.spin if given.spin is None else given.spin,
            structure.fixed,
        )
    )
