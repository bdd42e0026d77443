"""A new campaign in three choices: structure, model, level of theory. The rest has defaults.

What a browser uploads is read as text of a few structure formats; models are named, not uploaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.library import Library, Past, library
from app.widgets.form import (
    FIELDS,
    LABEL_ABOVE,
    LABEL_HIDDEN,
    SECTIONS,
    SELECT_LABEL_ABOVE,
    Form,
    tried,
)
from app.widgets.picture import svg
from app.wording import count, duration, roughly
from core import settings as schema
from core.assets import fetched
from core.campaign import preflight
from core.campaign.preflight import Trial
from core.errors import FlywiseError, ModelError, SettingsError, StructureError
from core.settings import Settings
from core.structures import FORMATS, Structure, from_bytes

MAX_UPLOAD_MB = 8
MAX_SMILES = 200

MOLECULES: dict[str, dict[str, str]] = {
    "Ethanol": {"smiles": "CCO"},
    "Water": {"name": "H2O"},
    "Methanol": {"name": "CH3OH"},
    "Formic acid": {"name": "HCOOH"},
    "Acetic acid": {"name": "CH3COOH"},
    "Acetone": {"name": "CH3COCH3"},
    "Acetamide": {"name": "CH3CONH2"},
    "Dimethyl ether": {"name": "CH3OCH3"},
    "Butane": {"name": "trans-butane"},
    "Benzene": {"name": "C6H6"},
    "Pyridine": {"name": "C5H5N"},
    "Furan": {"name": "C4H4O"},
    "Glycine": {"smiles": "NCC(=O)O"},
    "Malonaldehyde": {"smiles": r"O/C=C\C=O"},
    "Alanine dipeptide": {"smiles": "CC(=O)N[C@@H](C)C(=O)NC"},
    "Aspirin": {"smiles": "CC(=O)Oc1ccccc1C(=O)O"},
    "Paracetamol": {"smiles": "CC(=O)Nc1ccc(O)cc1"},
    "Argon, 13 atoms": {"file": "argon-13.xyz"},
}
"""What is offered by name."""

ARGON_A = 3.8
"""Distance of neighbours in the argon cluster, Å."""

MODELS = {
    "Bundled": "bundled", "Published": "published", "Argon": "lennard-jones", "Folder": "",
}  # fmt: skip
MODEL_HELP = {
    "bundled": "The MACE that comes with Flywise: molecules of H, B, C, N, O, F, Si, P, S, Cl and "
    "Br.",
    "published": "Foundation models that were fetched to this machine, under the licence accepted "
    "then.",
    "lennard-jones": "Lennard-Jones argon, for trying things out.",
    "": "A bundle on this machine: a folder with config.json and model.safetensors. MACE "
    "checkpoints (.model) are pickles, which run code when opened, and are not accepted.",
}
LEVELS = {"GFN2-xTB": "gfn2-xtb", "GFN1-xTB": "gfn1-xtb", "DFT": "dft:", "Teacher": "teacher:"}
LEVEL_HELP = {
    "gfn2-xtb": "A fast quantum method: good for learning how it works, and for screening.",
    "gfn1-xtb": "The method the bundled model was trained on.",
    "dft:": "Density functional theory with PySCF: functional and basis set; add /df for density "
    "fitting. Programs such as ORCA or VASP are named in a settings file, with flywise run.",
    "teacher:": "A frozen potential as reference, by name or by the path of a bundle folder.",
}

FUNCTIONAL = "PBE/def2-SVP"
"""Offered at first."""
UNNAMED = {"dft:": "Name functional and basis set.", "teacher:": "Name the teacher potential."}
"""Said while the name is missing that a level of theory needs."""

FETCH = (
    "<p>Foundation models such as MACE-OFF and MACE-MP are fetched once, in a terminal, where "
    "their licence is shown: <code>flywise models</code> lists them, <code>flywise download "
    "mace-off:small</code> fetches one. Come back here afterwards.</p>"
)
"""Said while none was fetched."""

CHOSEN = {
    "structure.smiles", "structure.file", "structure.name", "potential.model",
    "labelling.reference",
}  # fmt: skip
"""Fields that the three choices set."""

_CSS = """
:host { display: grid !important; gap: 16px; padding: 24px; box-sizing: border-box; width: 100%;
  max-width: 1180px; margin: 0 auto; align-items: start; grid-auto-rows: max-content;
  grid-template-columns: minmax(0, 1fr) 340px; }
.scroll-button { display: none !important; }
.title { grid-column: 1 / -1; } .summary { position: sticky !important; top: 16px; }
@media (max-width: 900px) { :host { grid-template-columns: minmax(0, 1fr); padding: 14px 12px; }
  .summary { position: static !important; } }
"""
_CHOICES_CSS = """
:host { display: flex !important; flex-direction: column; gap: 14px; min-width: 0; }
.scroll-button { display: none !important; }
"""
_CARD_CSS = """
:host { display: flex !important; flex-direction: column; padding: 16px 18px 18px; gap: 12px; }
.scroll-button { display: none !important; }
"""
_TEXT_CSS = """
h1 { margin: 0; font-size: 22px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.3; }
h2 { margin: 0; font-size: 15px; font-weight: 600; line-height: 1.4; }
h2 i { color: var(--fw-accent); font-style: normal; margin-right: 8px; }
p { margin: 0; font-size: 13px; line-height: 1.5; color: var(--fw-muted); overflow-wrap: anywhere; }
p.bad { color: var(--fw-bad); } p.good::before { content: "✓ "; color: var(--fw-good); }
p + p { margin-top: 4px; }
.picture { text-align: center; } .picture svg { display: block; margin: 0 auto; max-width: 100%; }
.formula { font-size: 17px; font-weight: 600; } .formula small { font-weight: 400;
  color: var(--fw-muted); font-size: 13px; } sub { font-size: 0.75em; line-height: 0; }
dl { margin: 0; font-size: 13px; line-height: 1.5; } dt { color: var(--fw-muted);
  font-size: 12px; margin-top: 6px; } dd { margin: 0; overflow-wrap: anywhere; }
"""
_BUTTONS_CSS = ":host { gap: 8px; display: flex !important; flex-wrap: wrap; }"
_ACCORDION: dict[str, Any] = {
    "boxShadow": "none", "border": "1px solid", "borderColor": "divider",
    "backgroundImage": "none", "&:before": {"display": "none"},
    ".MuiAccordionSummary-root": {"minHeight": "42px !important", "padding": "0 14px"},
    ".title": {"fontSize": "13px", "fontWeight": 600},
    ".MuiAccordionDetails-root": {"padding": "6px 14px 16px !important"},
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a structure comes from: a part of the settings, or an upload (name, content)."""

    given: dict[str, str]
    name: str
    upload: tuple[str, bytes] | None = None


class Setup(pn.viewable.Viewer):
    """Choices on the left; structure, checks, cost and the button that creates it on the right.

    Args:
        done: called with the directory of the campaign that was made. cancel: called to leave.
    """

    def __init__(self, done: Callable[[Path], None], cancel: Callable[[], None]) -> None:
        super().__init__()
        self._done, self._cancel = done, cancel
        self._library: Library = library()
        self._source: Source | None = None
        self._structure: Structure | None = None
        self._given = schema.from_dict({"structure": {"smiles": "CCO"}})
        self._wrong: set[str] = set()
        self._suggested = ""
        self._trial: tuple[object, Trial] | None = None
        self._measuring = False
        self._inputs()
        self._forms = self._details()
        self._layout = pn.Column(
            _html("<h1>New campaign</h1>", css_classes=["title"]),
            self._choices(),
            self._summary(),
            margin=0, css_classes=["setup"], stylesheets=[_CSS],
        )  # fmt: skip
        self._choose_source()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    # The inputs

    def _inputs(self) -> None:
        self._how = _options(["Library", "SMILES", "File"], "Structure from")
        self._pick = pmui.Select(
            label="Molecule", options=list(MOLECULES), value="Ethanol", **_SMALL,
            stylesheets=[SELECT_LABEL_ABOVE],
        )  # fmt: skip
        self._smiles = _text("SMILES, for example CC(=O)N", max_length=MAX_SMILES)
        self._file = pmui.FileInput(
            label=f"Drop a structure file here, or choose one (at most {MAX_UPLOAD_MB} MB)",
            max_file_size=MAX_UPLOAD_MB << 20, variant="outlined", color="primary", **_SMALL,
        )  # fmt: skip
        self._formats = _html(f"<p>Accepted: {', '.join(FORMATS)}, coordinates in Å.</p>")
        self._problem = _html("")
        self._model = _options(list(MODELS), "Model")
        self._folder = _text("Path of the bundle folder")
        self._published = pmui.Select(
            label="Published model", options=[], **_SMALL, stylesheets=[SELECT_LABEL_ABOVE]
        )
        self._model_help = _html("")
        self._level = _options(list(LEVELS), "Level of theory")
        self._teacher = _text("Name or path of the teacher potential")
        self._functional = _text("Functional/basis", value=FUNCTIONAL)
        self._level_help = _html("")
        for widget in (self._how, self._pick, self._smiles, self._file):
            widget.param.watch(lambda _: self._choose_source(), "value")
        for widget in (
            self._model, self._published, self._folder, self._level, self._functional,
            self._teacher,
        ):  # fmt: skip
            widget.param.watch(lambda _: self._choose_method(), "value")

    def _choices(self) -> pn.Column:
        return pn.Column(
            _card("1", "Structure", self._how, self._pick, self._smiles, self._file,
                  self._formats, self._problem),
            _card("2", "Model", self._model, self._published, self._folder, self._model_help),
            _card("3", "Level of theory", self._level, self._functional, self._teacher,
                  self._level_help),
            _card("", "Everything else", _html("<p>Defaults that suit most molecules.</p>"),
                  self._accordion()),
            margin=0, css_classes=["choices"], stylesheets=[_CHOICES_CSS],
        )  # fmt: skip

    def _details(self) -> dict[str, Form]:
        return {
            section: Form(
                self._given,
                [path for path in FIELDS if path.startswith(f"{section}.") and path not in CHOSEN],
                self._change,
            )
            for section in SECTIONS
        }

    def _accordion(self) -> pmui.Accordion:
        named = [(SECTIONS[section], form) for section, form in self._forms.items()]
        return pmui.Accordion(
            *named, margin=0, sizing_mode="stretch_width", disable_gutters=True, sx=_ACCORDION,
            title_variant="body1",
        )  # fmt: skip

    def _summary(self) -> pn.Column:
        self._picture = _html("", css_classes=["picture-pane"])
        self._checks = _html("")
        self._cost = _html("")
        self._name = _text("Name of the campaign", max_length=60)
        self._name.param.watch(lambda _: self._show_checks(), "value")
        self._create = pmui.Button(
            label="Create campaign", icon="check", variant="contained", color="primary", margin=0,
            disable_elevation=True, on_click=lambda _: self._make(), disabled=True,
        )  # fmt: skip
        leave = pmui.Button(
            label="Cancel", variant="text", color="primary", margin=0,
            on_click=lambda _: self._cancel(),
        )  # fmt: skip
        self._failed = _html("")
        return pn.Column(
            self._picture, self._checks, self._cost, self._name, self._failed,
            pn.Row(self._create, leave, margin=0, stylesheets=[_BUTTONS_CSS]),
            margin=0, css_classes=["summary"], stylesheets=[theme.CARD, _CARD_CSS],
        )  # fmt: skip

    # What a person does

    def _choose_source(self) -> None:
        how = self._how.value
        self._pick.visible = how == "Library"
        self._smiles.visible = how == "SMILES"
        self._file.visible = self._formats.visible = how == "File"
        for form in self._forms.values():
            form.follow(self._given)
        self._problem.object = ""
        try:
            self._source = self._chosen()
            if self._source is not None:
                fresh = {**self._source.given, "charge": None, "spin": None}
                self._given = schema.from_dict({**self._given.model_dump(), "structure": fresh})
                self._forms["structure"].reset(self._given)
        except FlywiseError as error:
            self._source = None
            self._problem.object = _bad(error)
        self._read()

    def _chosen(self) -> Source | None:
        if self._how.value == "Library":
            given = MOLECULES[self._pick.value]
            name = self._pick.value.partition(",")[0].lower().replace(" ", "-")
            return Source(given, name, _argon() if "file" in given else None)
        if self._how.value == "SMILES":
            smiles = self._smiles.value.strip()
            return Source({"smiles": smiles}, "") if smiles else None
        content, filename = self._file.value, self._file.filename
        if not isinstance(content, bytes) or not isinstance(filename, str):
            return None
        if len(content) > MAX_UPLOAD_MB << 20:
            raise StructureError(f"{filename} is larger than {MAX_UPLOAD_MB} MB.")
        if Path(filename).suffix.lower() in (".model", ".pt", ".pth", ".pkl", ".pickle"):
            raise StructureError(
                f"{filename} is a pickle, which can run code when opened, so it was not opened. "
                "A structure file is needed here; models are chosen in step 2."
            )
        return Source({"file": filename}, Path(filename).stem, (filename, content))

    def _choose_method(self) -> None:
        model, level = MODELS[self._model.value], LEVELS[self._level.value]
        self._folder.visible = model == ""
        self._functional.visible, self._teacher.visible = level == "dft:", level == "teacher:"
        self._model_help.object = f"<p>{MODEL_HELP[model]}</p>"
        self._level_help.object = f"<p>{LEVEL_HELP[level]}</p>"
        self._published.visible = False
        if model == "":
            model = self._folder.value.strip()
        elif model == "published":
            model = self._fetched()
        if level == "dft:":
            level += self._functional.value.strip()
        elif level == "teacher:":
            level += self._teacher.value.strip()
        given = self._given.with_value("potential.model", model)
        self._given = given.with_value("labelling.reference", level)
        self._show_checks()
        self._show_cost()
        self._measure_soon()

    def _fetched(self) -> str:
        """Return the published model that is chosen, "" while there is none on this machine."""
        names = fetched()
        if names != self._published.options:
            self._published.options = names
        self._published.visible = bool(names)
        if not names:
            self._model_help.object = FETCH
            return ""
        if self._published.value not in names:
            self._published.value = names[0]
        return str(self._published.value)

    def _change(self, path: str, text: str) -> str | None:
        try:
            self._given = tried(self._given, path, text)
        except SettingsError as error:
            self._wrong.add(path)
            self._show_checks()
            return str(error)
        self._wrong.discard(path)
        if path.startswith("structure."):
            self._read()
        else:
            self._show_checks()
            self._show_cost()
        return None

    def _make(self) -> None:
        upload = self._source.upload if self._source else None
        try:
            made = self._library.create(self._name.value.strip(), self._given, upload)
        except (FlywiseError, OSError) as error:
            self._failed.object = _bad(error)
            return
        self._done(made.directory)

    # What is shown

    def _read(self) -> None:
        self._structure = None
        try:
            if self._source is not None:
                self._structure = _structure(self._source, self._given)
                self._problem.object = ""
        except FlywiseError as error:
            self._problem.object = _bad(error)
        self._picture.object = _portrait(self._structure)
        self._suggest_name()
        self._choose_method()

    def _suggest_name(self) -> None:
        if self._structure is None or self._source is None:
            return
        former = self._suggested
        self._suggested = self._library.free_name(self._source.name or self._structure.formula)
        if self._name.value in ("", former):
            self._name.value = self._suggested

    def _show_checks(self) -> None:
        lines, ready = self._verdicts()
        self._checks.object = "".join(lines)
        self._create.disabled = not ready
        self._failed.object = ""

    def _verdicts(self) -> tuple[list[str], bool]:
        """Return what can be said before the start, and whether a campaign can be made."""
        structure = self._structure
        if structure is None:
            return ["<p>Choose a structure: it is drawn here.</p>"], False
        lines, ready = [], True
        model = self._given.potential.model
        try:
            if not model:
                raise ModelError("Choose a model.")
            preflight.check_model(model, structure)
            lines.append('<p class="good">The model knows all elements.</p>')
        except FlywiseError as error:
            lines.append(_bad(error))
            ready = False
        unnamed = UNNAMED.get(self._given.labelling.reference)
        if unnamed:
            lines.append(f'<p class="bad">{unnamed}</p>')
            ready = False
        if self._wrong:
            lines.append('<p class="bad">A field under “Everything else” is not accepted.</p>')
            ready = False
        return lines, ready and bool(self._name.value.strip())

    def _show_cost(self) -> None:
        if self._structure is None:
            self._cost.object = ""
            return
        trial = self._trial[1] if self._trial and self._trial[0] == self._asked() else None
        past = self._library.past(self._given)
        rows = cost(self._given, len(self._structure), trial, past)
        listed = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in rows)
        self._cost.object = f"<h2>What it will cost</h2><dl>{listed}</dl>"

    # What one label costs

    def _asked(self) -> object:
        """Return what the cost of a label depends on."""
        structure = self._structure
        return None if structure is None else (self._given.labelling.reference, structure.key)

    def _measure_soon(self) -> None:
        if pn.state.curdoc is not None and pn.state.curdoc.session_context and not self._measuring:
            self._measuring = True
            pn.state.execute(self.measure)

    async def measure(self) -> None:
        """Compute one label in a process of its own, until it is the one that is asked about."""
        try:
            while (asked := self._asked()) is not None and (
                self._trial is None or self._trial[0] != asked
            ):
                structure, reference = self._structure, self._given.labelling.reference
                assert structure is not None
                self._trial = (asked, await preflight.measure(reference, structure))
                self._show_cost()
        finally:
            self._measuring = False


def cost(
    given: Settings, n_atoms: int, trial: Trial | None, past: list[Past]
) -> list[tuple[str, str]]:
    """Return what can be said about labels and time before the start, and what it rests on.

    Args:
        trial: one label computed just now, None while it is. past: earlier campaigns.
    """
    first, most = given.trust.initial_labels, given.labelling.max_labels
    every, steps = given.labelling.every, given.dynamics.steps
    then = f"one every {count(every)} steps" if every else "wherever the model is unsure"
    rows = [("Labels", f"{first} first, then {then}; never more than {count(most)}.")]
    seconds = trial.seconds if trial is not None else None
    if seconds is not None:
        least = duration(seconds * first)
        rows.append(("One label", f"{duration(seconds)}, measured just now on one core."))
        rows.append(("The first labels together", f"about {least}, more if the machine is busy."))
    elif trial is not None:
        rows.append(("One label", f"Not known: {trial.problem}"))
    else:
        rows.append(("One label", "Being measured …"))
    alike = [p for p in past if p.n_atoms == n_atoms and p.steps > 0]
    if alike:
        longest = max(alike, key=lambda p: p.steps)
        labels, wall_s = longest.forecast(steps)
        rows.append((
            "If it goes like " + escape(longest.name),
            f"about {count(max(labels, first))} labels and at most {roughly(wall_s)} for "
            f"{count(steps)} steps (there: {count(len(longest.labels))} labels, "
            f"{roughly(longest.wall_s)}, {count(longest.steps)} steps).",
        ))  # fmt: skip
    else:
        rows.append((
            "Time for the whole run",
            "Not known before a first campaign of this size with this model and level of theory.",
        ))  # fmt: skip
    return rows


def _structure(source: Source, given: Settings) -> Structure:
    if source.upload is None:
        return schema.structure_of(given)
    name, content = source.upload
    asked = given.structure
    return from_bytes(content, name, charge=asked.charge, spin=asked.spin)


def _argon() -> tuple[str, bytes]:
    """Return an argon icosahedron as an xyz file."""
    from ase.cluster import Icosahedron

    atoms = Icosahedron("Ar", 2, latticeconstant=ARGON_A * 2**0.5)
    rows = [f"Ar {x:.6f} {y:.6f} {z:.6f}" for x, y, z in atoms.positions]
    return "argon-13.xyz", "\n".join([str(len(rows)), "", *rows, ""]).encode()


def _portrait(structure: Structure | None) -> str:
    if structure is None:
        return ""
    extra = [f"{count(len(structure))} atom{'' if len(structure) == 1 else 's'}"]
    extra += [f"charge {structure.charge:+d}"] if structure.charge else []
    extra += [f"{structure.spin} unpaired"] if structure.spin else []
    extra += ["periodic"] if any(structure.pbc) else []
    return (
        f'<div class="picture">{svg(structure, 304, 190)}</div>'
        f'<div class="formula">{wording.formula(structure.formula)} '
        f"<small>{' · '.join(extra)}</small></div>"
    )


_SMALL: dict[str, Any] = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}


def _bad(error: Exception) -> str:
    return f'<p class="bad" role="alert">{escape(str(error))}</p>'


def _html(text: str, **more: Any) -> pn.pane.HTML:
    return pn.pane.HTML(
        text, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width", **more
    )


def _text(label: str, **more: Any) -> pmui.TextInput:
    return pmui.TextInput(label=label, **_SMALL, sx=LABEL_ABOVE, **more)


def _options(options: list[str], label: str) -> pmui.RadioButtonGroup:
    return pmui.RadioButtonGroup(
        options=options, value=options[0], label=label, color="primary",
        stylesheets=[LABEL_HIDDEN], **_SMALL,
    )  # fmt: skip


def _card(number: str, title: str, *objects: Any) -> pn.Column:
    mark = f"<i>{number}</i>" if number else ""
    return pn.Column(
        _html(f"<h2>{mark}{title}</h2>"), *objects,
        margin=0, stylesheets=[theme.CARD, _CARD_CSS],
    )  # fmt: skip
