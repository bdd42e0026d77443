"""The command line. Parses, calls, prints; loads what a command needs only when it runs.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from ase.data import chemical_symbols

from core.errors import FlywiseError, InputError
from core.threads import waiting

cli = typer.Typer(
    name="flywise", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="On-the-fly fine-tuning of interatomic potentials with calibrated uncertainty.",
)  # fmt: skip

Json = Annotated[
    bool, typer.Option("--json", help="Print the figures as one JSON object on the last line.")
]
Campaign = Annotated[Path, typer.Argument(help="Campaign directory.")]
EnergyUnit = Annotated[
    str | None, typer.Option(help="Unit of the energies: eV, kcal/mol, Hartree, ...")
]
ForceUnit = Annotated[
    str | None, typer.Option(help="Unit of the forces: eV/A, kcal/mol/A, Hartree/Bohr, ...")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Precision = Annotated[str, typer.Option(help="float32 or float64.")]
Device = Annotated[str, typer.Option(help="Where the model computes: cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=0, max=64, help="CPU threads; 0 for all.")]
Head = Annotated[str | None, typer.Option(help="Of a model with several heads, the one to use.")]
LISTED = 5
"""Structures a screening names one by one, of those it leaves out."""
PATIENCE_S = 10.0
"""Longest wait for a worker that is at work."""


@cli.command()
def serve(
    directory: Annotated[Path | None, typer.Argument(help="Campaign directory.")] = None,
    demo: Annotated[str | None, typer.Option(help="Name of a demo to open.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 5006,
) -> None:
    """Open the app in the browser."""
    importlib.import_module("app.main").serve(directory, demo=demo, port=port)


@cli.command()
def run(
    settings_file: Annotated[Path, typer.Argument(metavar="SETTINGS.toml", help="Settings.")],
    out: Annotated[Path, typer.Option("--out", help="Campaign directory, new or to resume.")],
    seed: Annotated[int | None, typer.Option(help="Overrides labelling.seed.")] = None,
    as_json: Json = False,
) -> None:
    """Run a campaign without a screen. Ctrl-C pauses; the same command resumes."""
    from core import settings, worker
    from core.campaign.reader import CampaignReader
    from core.campaign.report import summary
    from core.worker import interrupted

    given = settings.load(settings_file)
    if seed is not None:
        given = given.with_value("labelling.seed", seed)
    changes = worker.prepare(out, given)
    state = worker.run_inline(out, changes, _Progress())
    with CampaignReader(out) as reader:
        figures = summary(reader)
    _print(figures, as_json, _report_lines(figures))
    if state.phase == "failed":
        raise FlywiseError(f"The campaign failed: {state.failure}")
    if state.phase == "deciding":
        _say("Frames wait for a decision: open the campaign with flywise serve.")
    if state.paused is not None and not interrupted(state):
        raise FlywiseError(f"The campaign pauses: {state.paused}")


class _Progress:
    """Writes a line on standard error for what a person would want to know."""

    def __call__(self, state: Any, event: Any) -> None:
        kind = type(event).__name__
        if kind == "FrameChecked" and not event.reasons and event.step % 500:
            return
        if kind in _TOLD:
            text = _TOLD[kind](state, event)
            _say(f"step {state.step:>6}  labels {state.n_labels:>4}  {text}")


_TOLD: dict[str, Any] = {
    "WorkerStarted": lambda s, e: "started" if not s.started else "resumed",
    "FrameChecked": lambda s, e: (
        f"flagged ({', '.join(e.reasons)})" if e.reasons else f"P(within) {e.probability:.3f}"
    ),
    "StepCompiled": lambda s, e: (
        f"steps not compiled: {e.problem}"
        if e.problem
        else f"steps compiled: {e.before_ms:.2g} to {e.after_ms:.2g} ms"
    ),
    "LabelFailed": lambda s, e: f"label failed: {e.failure}: {e.message}",
    "Updated": lambda s, e: f"learned {e.n_labels} labels in {e.seconds:.2f} s",
    "RolledBack": lambda s, e: f"back at the weights of snapshot {e.to}",
    "UpdateRefused": lambda s, e: f"new weights refused: {e.reason}",
    "Broken": lambda s, e: f"rewound: {e.reason}",
    "WorkerFailed": lambda s, e: "failed",
    "Pause": lambda s, e: "paused",
}


@cli.command()
def status(directory: Campaign, as_json: Json = False) -> None:
    """Say what happened so far."""
    from core import worker
    from core.campaign.reader import CampaignReader
    from core.campaign.report import summary

    with CampaignReader(directory) as reader:
        figures = summary(reader)
        figures["worker_pid"] = worker.holder(directory)
        figures["network_filesystem"] = reader.network_filesystem
    shown = _report_lines(figures)
    if figures["network_filesystem"]:
        shown.append(
            f"warning    the directory lies on {figures['network_filesystem']}: run worker and app "
            "on the same machine, or move it to a local disk"
        )
    _print(figures, as_json, shown)


@cli.command()
def export(
    directory: Campaign,
    file: Annotated[Path, typer.Argument(metavar="FILE.extxyz", help="File to write.")],
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only frames that wait, to be labelled elsewhere.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write labels and trajectory, or the frames that wait for a label, as extended XYZ."""
    from core.campaign.exchange import export_frames
    from core.campaign.export import export as export_campaign
    from core.campaign.reader import CampaignReader

    if waiting:
        with CampaignReader(directory) as reader:
            count = export_frames(reader, file)
    else:
        count = export_campaign(directory, file)
    _print({"frames": count, "file": str(file)}, as_json, [f"{count} frames written to {file}"])


@cli.command("import")
def import_labels(
    directory: Campaign,
    file: Annotated[Path, typer.Argument(metavar="FILE.extxyz", help="Labels to read.")],
    energy_unit: EnergyUnit = None,
    force_unit: ForceUnit = None,
    level: Annotated[
        str | None, typer.Option(help="Level of theory, as flywise export writes it.")
    ] = None,
    who: Annotated[str, typer.Option(help="Name kept beside the labels.")] = "command line",
    as_json: Json = False,
) -> None:
    """Take labels that were computed elsewhere for flagged frames."""
    from core import worker
    from core.campaign import exchange
    from core.campaign.labels import Declared
    from core.campaign.reader import CampaignReader, Commander

    declared = Declared(energy_unit, force_unit, level)
    with CampaignReader(directory) as reader:
        offer = exchange.read_labels(reader, _contents(file), file.name, declared)
        commander = Commander(directory)
        number = exchange.hand_over(commander, offer, who)
        commander.close()
        outcome = _outcome(reader, number) if worker.holder(directory) is not None else None
    if outcome not in (None, "done"):
        raise FlywiseError(f"{file.name}: nothing was imported. {outcome}")
    when = "taken" if outcome else "kept; the campaign takes them when it runs next"
    figures = {"labels": len(offer.ids), "queries": offer.ids, "taken": outcome == "done"}
    _print(figures, as_json, [f"{len(offer.ids)} labels {when}"])


@cli.command()
def snapshots(directory: Campaign, as_json: Json = False) -> None:
    """List what the model learned, update by update."""
    from core.campaign.reader import CampaignReader

    with CampaignReader(directory) as reader:
        state, found = reader.state(), reader.snapshots()
    shown = []
    for s in found:
        given = s.info.get("receipt", {}).get("errors", {}).get("new")
        new = "" if given is None else (
            f"  new labels {1e3 * given['force'][0]:.0f} -> {1e3 * given['force'][1]:.0f} meV/Å"
        )  # fmt: skip
        again = f"  as snapshot {s.info['restored']}" if "restored" in s.info else ""
        mark = "*" if s.id == state.snapshot else " "
        shown.append(f"{mark}{s.id:>4}  {s.n_labels:>4} labels{new}{again}")
    figures = {
        "in_force": state.snapshot,
        "snapshots": [
            {"id": s.id, "labels": s.n_labels, "weights": s.weights, **s.info} for s in found
        ],
    }
    _print(figures, as_json, shown or ["Nothing was learned yet."])


@cli.command()
def rollback(
    directory: Campaign,
    snapshot: Annotated[int, typer.Argument(min=1, help="Its number, see flywise snapshots.")],
    who: Annotated[str, typer.Option(help="Name kept beside the decision.")] = "command line",
    as_json: Json = False,
) -> None:
    """Put an earlier snapshot in force; labels learned since then are set aside, not lost."""
    from core import worker
    from core.campaign import events as ev
    from core.campaign.loop import advance
    from core.campaign.reader import CampaignReader, Commander

    command = ev.RollBack(snapshot=snapshot, who=who)
    with CampaignReader(directory) as reader:
        if worker.holder(directory) is None:
            advance(reader.state(), command)  # raises what there is against it
        commander = Commander(directory)
        number = commander.post(command)
        commander.close()
        outcome = _outcome(reader, number) if worker.holder(directory) is not None else None
    if outcome not in (None, "done"):
        raise FlywiseError(f"Nothing was changed. {outcome}")
    when = "in force" if outcome else "kept; it takes effect when the campaign runs next"
    figures = {"snapshot": snapshot, "taken": outcome == "done"}
    _print(figures, as_json, [f"snapshot {snapshot} {when}"])


def _contents(file: Path) -> bytes:
    from core.campaign.labels import MAX_FILE_BYTES

    if not file.is_file():
        raise InputError(f"There is no file {file}; give the path of an extended XYZ file.")
    with open(file, "rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


def _outcome(reader: Any, command: int) -> str | None:
    """Return what the worker did about a command, None if it is busy for long."""
    end = time.monotonic() + PATIENCE_S
    while (outcome := reader.command(command).outcome) is None and time.monotonic() < end:
        time.sleep(0.05)
    return outcome


@cli.command()
def audit(
    directory: Campaign,
    every: Annotated[int, typer.Option(min=1, help="Recompute frames at multiples of N steps.")],
    processes: Annotated[int, typer.Option(min=1, max=64, help="Calculations at once.")] = 2,
    as_json: Json = False,
) -> None:
    """Recompute trajectory frames with the reference: was the promise kept?"""
    from core.campaign.audit import audit as audit_campaign

    figures = audit_campaign(directory, every, processes=processes).to_dict()
    _print(figures, as_json, _audit_lines(figures))


@cli.command()
def models(as_json: Json = False) -> None:
    """List the models that can be loaded by name."""
    known = importlib.import_module("core.potentials").available()  # loads torch
    _print({"models": known}, as_json, [f"{name}: {about}" for name, about in known.items()])


@cli.command()
def download(
    name: Annotated[str, typer.Argument(help="Name of a foundation model, see flywise models.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Accept its licence, and that it runs.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Fetch it from here instead.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the file must be.")] = None,
    head: Head = None,
) -> None:
    """Fetch a foundation model and make a safe bundle of it; an attempt cut off goes on."""
    zoo = importlib.import_module("core.potentials.mace_zoo")  # loads torch
    known = zoo.foundations()
    if not yes and name in known and sys.stdin.isatty():
        said = f"{name} is under the {known[name].licence}, and its file runs as a program once."
        yes = typer.confirm(said + " Accept both?")

    def progress(done: int, total: int | None) -> None:
        share = "" if total is None else f" of {total / 1e6:.1f}"
        print(f"\r{done / 1e6:.1f}{share} MB", end="", file=sys.stderr, flush=True)

    found = zoo.get(name, consent=yes, head=head, url=url, sha256=sha256, progress=progress)
    print(f'\n{name} is in {getattr(found, "folder", found)}; use it as model = "{name}".')


@cli.command()
def convert(
    file: Annotated[Path, typer.Argument(help="MACE checkpoint (.model, .pt).")],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle, made by this.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree that the file runs.")] = False,
    head: Head = None,
    as_json: Json = False,
) -> None:
    """Make a safe bundle of a pickled MACE; energies and forces are compared before and after."""
    module = importlib.import_module("core.potentials.convert")  # loads torch
    if not yes and file.is_file() and sys.stdin.isatty():
        yes = typer.confirm(module.WARNING.format(name=file.name) + " Go on?")
    done = module.convert(file, out, consent=yes, head=head)
    figures = {
        "bundle": str(done.folder), "elements": [chemical_symbols[z] for z in done.elements],
        "heads": done.heads, "head": done.head,
        "parameters": done.n_parameters, "structures_compared": done.structures,
        "largest_energy_difference_eV_per_atom": done.energy_difference,
        "largest_force_difference_eV_per_A": done.force_difference,
    }  # fmt: skip
    several = f"head {done.head} of {', '.join(done.heads)}; " if len(done.heads) > 1 else ""
    line = (
        f"{done.folder}: {done.n_parameters:,} parameters, {', '.join(figures['elements'])}; "
        f"{several}"
        f"{done.structures} structures differ by at most {done.energy_difference:.1e} eV/atom and "
        f"{done.force_difference:.1e} eV/Å from the checkpoint."
    )
    _print(figures, as_json, [line])


@cli.command()
def finetune(
    train: Annotated[Path, typer.Argument(metavar="TRAIN.extxyz", help="Labels to learn.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle to be made.")],
    model: Annotated[
        str, typer.Option(help="Foundation model: its name, or a bundle.")
    ] = "bundled",
    strategy: Annotated[
        str, typer.Option(help="What moves, and what is rehearsed; flywise strategies lists them.")
    ] = "naive",
    test: Annotated[Path | None, typer.Option(help="Labels never trained on.")] = None,
    isolated: Annotated[
        str, typer.Option(help="Isolated atoms: estimated, computed or foundation.")
    ] = "estimated",
    reference: Annotated[
        str | None, typer.Option(help="Level of theory that computes isolated atoms.")
    ] = None,
    rehearsal: Annotated[
        Path | None, typer.Option(help="Labelled frames of the foundation's pretraining.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps at most.")] = 2000,
    seed: Seed = 1,
    dtype: Precision = "float32",
    device: Device = "cpu",
    threads: Threads = 0,
    energy_unit: EnergyUnit = None,
    force_unit: ForceUnit = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a file of labels, with a receipt. Ctrl-C keeps a checkpoint."""
    from core.campaign.labels import Declared

    _check_choice("--isolated", isolated, ("estimated", "computed", "foundation"))
    _check_choice("--dtype", dtype, ("float32", "float64"))
    _check_choice("--device", device, ("cpu", "cuda"))
    _use_threads(threads)
    module = importlib.import_module("core.campaign.finetune")  # loads torch
    order = module.Order(
        train, out, model, strategy, test, isolated, reference, rehearsal, dtype,
        Declared(energy_unit, force_unit), module.TuningSettings(steps=steps, seed=seed), device,
    )  # fmt: skip
    told = _Epochs()
    try:
        receipt = module.finetune(order, told)
    except KeyboardInterrupt:
        raise FlywiseError(
            f"Interrupted; a checkpoint is in {out}, and the same command goes on."
        ) from None
    figures = receipt.to_dict() | {"model": str(out)}
    _print(
        figures,
        as_json,
        [*importlib.import_module("core.finetuning.receipt").lines(receipt), f"model      {out}"],
    )


class _Epochs:
    """Says now and then how a training goes."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, progress: Any, epochs: int) -> None:
        if time.monotonic() < self._told + 2 and progress.epoch < epochs:
            return
        self._told = time.monotonic()
        left = progress.seconds / progress.epoch * (epochs - progress.epoch)
        validation = (
            "" if math.isnan(progress.validation) else f"  unseen {progress.validation:.3g}"
        )
        _say(
            f"epoch {progress.epoch:>5} of {epochs}  loss {progress.loss:.3g}{validation}  "
            f"{1e3 * progress.energy_rmse:.1f} meV/atom  {1e3 * progress.force_rmse:.0f} meV/Å  "
            f"{left:.0f} s left at most"
        )


@cli.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names or bundles; the first is what "
        "the others are compared with.")
    ],
    on: Annotated[Path, typer.Option("--on", help="Labels never trained on, extended XYZ.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Report to write, .html; figures beside it, .json.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Level of theory for frequencies and deep minima.")
    ] = None,
    pretraining: Annotated[
        Path | None, typer.Option(help="Labelled frames of the foundation's own distribution.")
    ] = None,
    picoseconds: Annotated[
        float, typer.Option(min=0.01, help="Of dynamics at each temperature.")
    ] = 5.0,
    trials: Annotated[int, typer.Option(min=1, help="Random starts of the search.")] = 20,
    seed: Seed = 1,
    dtype: Precision = "float32",
    device: Device = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Test models on labels and on physics, side by side: which to deploy, and why."""
    if out is not None and out.suffix != ".html":
        raise InputError(f"--out is {out.name}; the report is HTML, give a name ending in .html.")
    _check_choice("--dtype", dtype, ("float32", "float64"))
    _check_choice("--device", device, ("cpu", "cuda"))
    _use_threads(threads)
    module = importlib.import_module("core.campaign.evaluate")  # loads torch
    inquiry = module.Inquiry(
        tuple(models), on, reference, pretraining, picoseconds, trials, seed, dtype,
        device=device,
    )  # fmt: skip
    result = module.evaluate(inquiry, lambda name, f: _say(f"{name}: {f.said}"))
    if out is not None:
        from app.evaluation_report import write

        write(result, out)
    _print(result, as_json, module.lines(result))


def _use_threads(n: int) -> None:
    """Let torch use n threads (0 for all), and references one, which is quickest for molecules."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    importlib.import_module("torch").set_num_threads(n or os.cpu_count() or 1)


def _check_choice(name: str, given: str, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise InputError(f"{name} is {given!r}; accepted: {', '.join(accepted)}.")


@cli.command()
def strategies(as_json: Json = False) -> None:
    """List the ways to fine-tune."""
    known = importlib.import_module("core.finetuning.strategies").STRATEGIES  # loads torch
    listed = {name: s.about for name, s in known.items()}
    _print({"strategies": listed}, as_json, [f"{name}: {about}" for name, about in listed.items()])


@cli.command()
def screen(
    pool: Annotated[
        Path,
        typer.Argument(help="Structures: .extxyz, an ASE .db, .h5, or a campaign's folder."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Extended XYZ to be written.")],
    n: Annotated[int, typer.Option("-n", min=0, help="How many to choose.")] = 100,
    kernel: Annotated[
        str, typer.Option(help="activation, ntk, force-ntk or joint: by what they are told apart.")
    ] = "joint",
    select: Annotated[
        str,
        typer.Option(help="reduction, determinant, lcmd, farthest, top or random: how to choose."),
    ] = "reduction",
    train: Annotated[
        Path | None, typer.Option(help="Structures that are labelled already.")
    ] = None,
    model: Annotated[str, typer.Option(help="Its name, or a bundle.")] = "bundled",
    shortlist: Annotated[
        int, typer.Option(min=0, help="Candidates of the last stage; 0 for five times -n.")
    ] = 0,
    width: Annotated[int, typer.Option(min=16, max=8192, help="Columns of the sketch.")] = 512,
    seed: Seed = 1,
    dtype: Precision = "float32",
    device: Device = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Choose from a pool what is worth a label. Interrupted, the same command goes on."""
    _check_choice("--dtype", dtype, ("float32", "float64"))
    _check_choice("--device", device, ("cpu", "cuda"))
    _use_threads(threads)
    module = importlib.import_module("core.campaign.screen")  # loads torch
    order = module.Order(
        pool, n, out, train, model, module.Recipe(kernel, width=width, seed=seed), select,
        shortlist, dtype, device,
    )  # fmt: skip
    try:
        figures = module.screen(order, _Stage())
    except KeyboardInterrupt:
        raise FlywiseError(
            f"Interrupted; what is done is beside {out}, and the same command goes on."
        ) from None
    stages = [f"{name:<12}{seconds:.0f} s" for name, seconds in figures["stages_s"].items()]
    chosen = f"chosen      {figures['chosen']:,} of {figures['pool']:,}, written to {out}"
    left_out = figures["left_out"]
    for place, why in [*left_out.items()][:LISTED]:
        _say(f"left out    structure {place}: {why}")
    if len(left_out) > LISTED:
        _say(f"left out    {len(left_out):,} structures in all (--json lists them)")
    _print(figures, as_json, [*stages, chosen])


class _Stage:
    """Says now and then how far a screening is."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, stage: str, done: int, seconds: float) -> None:
        if time.monotonic() > self._told + 2:
            self._told = time.monotonic()
            _say(f"{stage}: {done:,} structures, {seconds:.0f} s")


@cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Name of a benchmark.")]
) -> None:
    """Run one of the benchmarks of a checkout; further options go to it."""
    folder = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"
    known = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    if name not in known:
        listed = ", ".join(known) or "none: benchmarks come with the repository, not the package"
        raise InputError(f"There is no benchmark {name!r}; accepted: {listed}.")
    sys.path.insert(0, str(folder))
    sys.argv = [str(folder / f"bench_{name}.py"), *context.args]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _report_lines(figures: dict[str, Any]) -> list[str]:
    from core.campaign.report import lines

    return lines(figures)


def _audit_lines(figures: dict[str, Any]) -> list[str]:
    from core.units import GPA, KCAL_PER_MOL

    def kcal(energy: float) -> str:
        return f"{energy / KCAL_PER_MOL:.3f} kcal/mol"

    left_out = ", ".join(f"{n} {why}" for why, n in figures["excluded"].items() if n) or "none"
    shown = [f"frames     {figures['frames']} recomputed; left out: {left_out}"]
    if not figures["frames"]:
        return shown
    low, high = (100 * end for end in figures["interval"])
    shown += [
        f"energy     {100 * figures['within_tolerance']:.1f} % within "
        f"{kcal(figures['tolerance_eV'])} (95 % interval {low:.1f}-{high:.1f} %)",
        f"RMSE       {kcal(figures['rmse_eV'])}; untuned {kcal(figures['rmse_untuned_eV'])}",
        f"forces     mean largest error {figures['force_mean_max_error']:.3f} eV/Å",
        f"labels     {figures['labels']} on {figures['steps']} steps "
        f"({100 * figures['labels_per_step']:.2f} %)",
    ]
    if figures["force_within_tolerance"] is not None:
        shown[-2] += f", {100 * figures['force_within_tolerance']:.1f} % within tolerance"
    if figures["stress_within_tolerance"] is not None:
        shown.insert(
            -1,
            f"stress     mean largest error {figures['stress_mean_max_error'] / GPA:.3f} GPa, "
            f"{100 * figures['stress_within_tolerance']:.1f} % within tolerance",
        )
    if figures["failed"]:
        shown.append(f"failed     {figures['failed']} frames the reference could not compute")
    return shown


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(figures: dict[str, Any], as_json: bool, shown: list[str]) -> None:
    print(json.dumps(_finite(figures)) if as_json else "\n".join(shown), flush=True)


def _finite(value: Any) -> Any:
    """Return `value` with None for numbers JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> NoReturn:
    """Run the command line; errors end in one message and an exit code."""
    os.environ.update(waiting())
    try:
        cli(standalone_mode=True)
    except InputError as error:
        _say(f"flywise: {error}")
        sys.exit(2)
    except FlywiseError as error:
        _say(f"flywise: {error}")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
