"""The command line: parse, call one function, show, choose the exit code.

Nothing heavy is imported before a command needs it: `shadow --help` must answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# One BLAS thread for each worker (see shadow.audit); read when torch and NumPy are imported, so set before.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer

from shadow import __version__, console
from shadow.errors import ShadowError, UsageError

if TYPE_CHECKING:
    from shadow.gains import Sides
    from shadow.gate import Judged, Measured
    from shadow.lists import Selection
    from shadow.pairing import Filter
    from shadow.plan import Access
    from shadow.registry import Pair
    from shadow.rules import Rule
    from shadow.run import Result, Settings
    from shadow.scores import ScoreFiles

app = typer.Typer(
    name="shadow",
    help="Audit open-source model families: the spectra of every weight matrix and of every tuned-minus-base delta.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

lab_app = typer.Typer(
    name="lab", help="Controlled interventions on tiny models, whose truth is known.", no_args_is_help=True
)
app.add_typer(lab_app)

DEFAULT_OUTPUT = Path("reports")

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help="Families of the registry, `family` or `family:from..to`; a glob such as 'qwen2.5-*' in quotes.",
        metavar="[TARGET]...",
    ),
]
BaseReference = Annotated[
    str | None, typer.Option(help="Base checkpoint: ./DIR, /DIR, or org/name[@revision].", metavar="REF")
]
TunedReference = Annotated[str | None, typer.Option(help="Model tuned from it.", metavar="REF")]
ListFile = Annotated[
    str | None,
    typer.Option("--list", help="List of targets: YAML, or one a line; - for standard input.", metavar="FILE"),
]
Tag = Annotated[list[str] | None, typer.Option(help="Only families with this tag; repeated: with all.")]
ShardOption = Annotated[
    str | None, typer.Option("--shard", help="This job's share of the list: 2/4 is the second of four.", metavar="I/N")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for reports.", file_okay=False)]
Registry = Annotated[
    Path | None,
    typer.Option("--registry", help="Folder of your own family files.", envvar="SHADOW_REGISTRY", file_okay=False),
]


class Format(StrEnum):
    table = "table"
    json = "json"


class PrecisionName(StrEnum):
    default = "default"
    exact = "exact"
    fast = "fast"


class OptimizerName(StrEnum):
    adamw = "adamw"
    sgd = "sgd"
    muon = "muon"


class PresetName(StrEnum):
    smoke = "smoke"
    quick = "quick"
    full = "full"


class FetchName(StrEnum):
    auto = "auto"
    shards = "shards"
    ranges = "ranges"


class ExportName(StrEnum):
    csv = "csv"
    json = "json"
    arrow = "arrow"
    parquet = "parquet"
    duckdb = "duckdb"
    sqlite = "sqlite"
    hf_dataset_folder = "hf-dataset-folder"


class FigureName(StrEnum):
    depth = "depth"
    spectrum = "spectrum"
    heatmap = "heatmap"
    modules = "modules"


Component = Annotated[list[str] | None, typer.Option(help="Only this component; may be repeated.")]
Layer = Annotated[list[str] | None, typer.Option(help="Only these layers: 0, or 4-7; may be repeated.")]
Module = Annotated[list[str] | None, typer.Option(help="Only these modules: mlp.up, or attn.*; may be repeated.")]
Precision = Annotated[PrecisionName, typer.Option(help="How spectra are computed.")]
OptimizerOption = Annotated[
    OptimizerName | None,
    typer.Option(
        "--optimizer", help="What the tuned model was trained with, if you know: the label is held against it."
    ),
]
Jobs = Annotated[int | None, typer.Option(help="Worker threads; numbers do not depend on it.", min=1, max=1024)]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read torch .bin files, in a child process.")]
FetchOption = Annotated[
    FetchName, typer.Option("--fetch", help="Take whole shards from the Hub, or byte ranges (unverified).")
]
MaxDisk = Annotated[
    str | None,
    typer.Option("--max-disk", help="Most disk for fetched shards, such as 40GB: each is freed after use."),
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(
        "--scores",
        help="Benchmark scores that others measured: a CSV, results of lm-eval (JSON), or a folder of them; may be "
        "repeated.",
        metavar="FILE",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is in the Hub's cache, and no network.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        help="Exit with 4 when this holds of a figure, such as 'concentration > 0.5'; may be repeated.",
        metavar="RULE",
    ),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="YAML file of named rules.", metavar="FILE", dir_okay=False)
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        help="Finished reports: exit with 4 when a figure lies outside the interval that they give it.",
        metavar="RUN",
        file_okay=False,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="What --fail-on names may be absent, and what --against lacks."),
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", help="JUnit XML of the pairs and rules.", metavar="FILE", dir_okay=False),
]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"shadow {__version__}\n")
        raise typer.Exit


@app.callback()
def _shadow(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def audit(
    targets: Targets = None,
    base: BaseReference = None,
    tuned: TunedReference = None,
    listed: ListFile = None,
    tag: Tag = None,
    shard: ShardOption = None,
    output: Output = DEFAULT_OUTPUT,
    component: Component = None,
    layer: Layer = None,
    module: Module = None,
    precision: Precision = PrecisionName.default,
    nulls: Annotated[int, typer.Option(help="Also sample the null with this many sign flips.", min=0, max=1000)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sign flips.", min=0)] = 0,
    subspaces: Annotated[
        bool, typer.Option("--subspaces/--no-subspaces", help="Compare the leading singular subspaces.")
    ] = True,
    jobs: Jobs = None,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Write spectra.parquet.")] = True,
    optimizer: OptimizerOption = None,
    scores: Scores = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when something was skipped that should not be.")
    ] = False,
    fail_on: FailOn = None,
    policy: PolicyFile = None,
    against: Against = None,
    allow_missing: AllowMissing = False,
    junit: Junit = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
    registry: Registry = None,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    A list, a glob, --tag or --shard also writes index.json and batch.parquet: how each pair stands.

    Exit codes: 0 done; 1 could not; 2 wrong usage; 3 done, but --strict objects; 4 done, but a rule was met.
    """
    rules = _rules(fail_on, policy, against, allow_missing, junit)
    selection = _selected(targets, base, tuned, registry, listed, tag, shard)
    pairs = selection.own
    chosen = _filter(component or [], layer or [], module or [])
    from shadow.delta import Method
    from shadow.render import rules_view
    from shadow.run import Settings

    method = Method(precision.value, nulls, seed, subspaces)
    settings = Settings(method, chosen, spectra, None if optimizer is None else optimizer.value)
    access = _access(allow_pickle, offline, fetch, max_disk)
    given = _scores_of_pairs(scores or [], pairs)
    baselines = _baselines(against, [(pair.family, pair.name) for pair in pairs], allow_missing)

    def judge(result: Result) -> Judged:
        return _judged(result, rules, baselines.get((result.summary.family, result.summary.pair)), strict)

    if selection.is_list:
        _finish(_audit_list(selection, settings, output, jobs, access, given, judge, format), junit)
        return
    judged: list[Judged] = []
    for pair in pairs:
        try:
            show = format is Format.table
            result = _audit_one(pair, settings, output, jobs, access, show=show, scores=given.get(pair))
            judged.append(_judged(result, rules, baselines.get((pair.family, pair.name)), strict))
        except KeyboardInterrupt:
            console.say("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        except UsageError:
            raise
        except ShadowError as error:  # one failing pair does not stop the others
            judged.append(_at_fault(pair.family, pair.name, _named(error, pair, pairs)))
            continue
        if rules and format is Format.table:
            console.show(rules_view(judged[-1]))
    if format is Format.json:
        console.show_json(_told(judged))
    _finish(judged, junit)


def _judged(result: Result, rules: Sequence[Rule], baseline: Measured | None, strict: bool) -> Judged:
    from shadow.gate import Judged, judge_report, read_measured

    summary, seconds = result.summary, result.provenance.get("seconds") if result.measured else 0.0
    objections = tuple(sorted(result.should_not_have_skipped)) if strict else ()
    if not rules:
        return Judged(summary.family, summary.pair, summary, seconds, objections=objections)
    now = read_measured(result.folder, summary=summary)
    return judge_report(rules, now, baseline, seconds=seconds, objections=objections)


def _audit_list(
    selection: Selection,
    settings: Settings,
    output: Path,
    jobs: int | None,
    access: Access,
    scores: Mapping[Pair, ScoreFiles],
    judge: Callable[[Result], Judged],
    form: Format,
) -> list[Judged]:
    """Audit the pairs of a list, every one, and show how they stand; what came of each."""
    from shadow.batch import audit_list
    from shadow.batch_index import read_index
    from shadow.gate import Judged
    from shadow.render import batch_view, rules_view

    _tell(selection)
    judged: list[Judged] = []
    bugs: list[Exception] = []
    with console.list_progress(len(selection.own)) as watch:
        try:
            for tried in audit_list(
                selection, settings, output, jobs=jobs, access=access, scores=scores, say=console.say, watch=watch
            ):
                if tried.result is not None:
                    try:
                        judged.append(judge(tried.result))
                    except ShadowError as fault:  # does not stop the others
                        judged.append(_at_fault(tried.row.family, tried.row.pair, fault))
                elif isinstance(tried.fault, ShadowError):
                    error = ShadowError(f"{tried.row.name}: {tried.fault.message}", tried.fault.hint)
                    judged.append(_at_fault(tried.row.family, tried.row.pair, error))
                elif tried.fault is not None:
                    bugs.append(tried.fault)
                    judged.append(Judged(tried.row.family, tried.row.pair, fault=str(tried.row.error)))
        except KeyboardInterrupt:
            console.say("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
    index = read_index(output)
    assert index is not None
    if form is Format.json:
        console.show_json({**index.as_json(), "reports": _told(judged)})
    else:
        console.show(batch_view(index, console.out.options))
        for one in judged:
            if one.verdicts:
                console.show(rules_view(one, titled=True))
    if bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", bugs)
    return judged


def _told(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The summaries of what was audited, with what came of the rules where there are any."""
    return [
        one.summary.as_json() | ({"judged": one.as_json()} if one.verdicts else {}) for one in judged if one.summary
    ]


def _tell(selection: Selection) -> None:
    """What a list, a glob or a tag left out."""
    for name in selection.passed_over:
        console.say(f"{name} has no pair to compare: `shadow families {name}` says why")
    if not selection.own:
        count = len(selection.pairs)
        console.say(f"nothing to audit in shard {selection.shard}: the list has {count} pair{'s' * (count > 1)}")


@app.command()
def plan(
    targets: Targets = None,
    base: BaseReference = None,
    tuned: TunedReference = None,
    listed: ListFile = None,
    tag: Tag = None,
    shard: ShardOption = None,
    output: Output = DEFAULT_OUTPUT,
    component: Component = None,
    layer: Layer = None,
    module: Module = None,
    precision: Precision = PrecisionName.default,
    jobs: Jobs = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
    registry: Registry = None,
) -> None:
    """Tell what an audit would measure and take, from headers alone: nothing is measured, no weight is fetched.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    selection = _selected(targets, base, tuned, registry, listed, tag, shard)
    pairs = selection.own
    chosen = _filter(component or [], layer or [], module or [])
    access = _access(allow_pickle, offline, fetch, max_disk)
    from shadow.delta import Method
    from shadow.plan import DISK_HINT
    from shadow.render import plan_view
    from shadow.run import Settings, plan_pair

    _tell(selection)
    settings = Settings(Method(precision.value), chosen)
    plans, faults = [], []
    for pair in pairs:
        try:
            found = plan_pair(pair, settings, output, jobs=jobs, access=access, say=console.say)
        except UsageError:
            raise
        except ShadowError as error:
            faults.append(_named(error, pair, pairs))
            console.complain(faults[-1])
            continue
        plans.append(found)
        if format is Format.table:
            console.show(plan_view(found, console.out.options.max_width))
        if found["problem"]:
            faults.append(_named(ShadowError(found["problem"], DISK_HINT), pair, pairs))
            console.complain(faults[-1])
    if format is Format.json:
        console.show_json(plans)
    if faults:
        raise typer.Exit(1)


def _named(error: ShadowError, pair: Pair, pairs: tuple[Pair, ...]) -> ShadowError:
    """The fault of one pair among several."""
    return error if len(pairs) == 1 else ShadowError(f"{pair.family}:{pair.name}: {error.message}", error.hint)


def _audit_one(
    pair: Pair,
    settings: Settings,
    output: Path,
    jobs: int | None,
    access: Access,
    *,
    show: bool,
    scores: ScoreFiles | None,
) -> Result:
    from shadow.render import summary_view
    from shadow.run import run_pair

    with console.progress(f"{pair.family}:{pair.name}") as update:
        result = run_pair(pair, settings, output, jobs=jobs, access=access, say=console.say, show=update, scores=scores)
    if show:
        console.show(summary_view(result.summary, result.provenance, result.folder, console.out.options))
    return result


def _scores_of_pairs(files: list[Path], pairs: Sequence[Pair]) -> dict[Pair, ScoreFiles]:
    """The scores for each pair that they name; of the others it is said that there are none."""
    if not files:
        return {}
    from shadow.gains import is_named, sides_of_pair

    sides = {pair: sides_of_pair(pair) for pair in pairs}
    given = _read_scores(files, list(sides.values()))
    named = {pair: given for pair in pairs if is_named(given, sides[pair])}
    for pair in pairs:
        if pair not in named:
            console.say(f"no scores of {pair.family}:{pair.name}")
    return named


def _read_scores(files: list[Path], known: list[Sides]) -> ScoreFiles:
    """The scores of files, which must name a side of some pair; what they hold besides is told."""
    from shadow.gains import is_named, neither, unmatched
    from shadow.scores import read_scores

    given = read_scores(files)
    for note in given.notes:
        console.say(note)
    if not any(is_named(given, sides) for sides in known):
        raise neither(given, known)
    if rest := unmatched(given, known):
        console.say(rest)
    return given


def _selected(
    targets: list[str] | None,
    base: str | None,
    tuned: str | None,
    registry: Path | None,
    listed: str | None,
    tags: list[str] | None,
    shard: str | None,
) -> Selection:
    from shadow.lists import select
    from shadow.registry import given_pair, parse_reference

    if (base is None) != (tuned is None):
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    given = (
        [given_pair(parse_reference(base), parse_reference(tuned))] if base is not None and tuned is not None else []
    )
    selection = select(targets or [], given, registry, listed, tags or [], shard)
    if not selection.pairs:
        raise UsageError("nothing to audit", "name a family (try: shadow audit demo), or --base and --tuned")
    return selection


def _access(allow_pickle: bool, offline: bool, fetch: FetchName, max_disk: str | None) -> Access:
    from shadow.plan import Access

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    return Access(allow_pickle, offline, fetch.value, None if max_disk is None else _bytes(max_disk))


def _bytes(text: str) -> int:
    """`40GB`, `1.5 TiB` or a plain number of bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise UsageError(f"{text[:40]!r} is not a size", "write 40GB, 500MB or 1.5TB")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _filter(components: list[str], layers: list[str], modules: list[str]) -> Filter:
    import difflib
    from fnmatch import fnmatchcase

    from shadow.architecture import name_rules
    from shadow.pairing import Filter

    rules = name_rules()
    for component in components:
        _check_component(component)
    chosen: list[str] = []
    for pattern in modules:
        matching = [module for module in rules.modules if fnmatchcase(module, pattern)]
        if not matching:
            close = difflib.get_close_matches(pattern, rules.modules, n=1)
            raise UsageError(
                f"no module {pattern!r}",
                f"did you mean {close[0]!r}?" if close else "such as mlp.up or attn.*",
            )
        chosen += matching
    return Filter(tuple(sorted(set(components))), tuple(sorted(set(_layers(layers)))), tuple(sorted(set(chosen))))


def _check_component(component: str) -> None:
    from shadow.architecture import name_rules

    if component not in name_rules().components:
        raise UsageError(f"no component {component!r}", f"one of {', '.join(name_rules().components)}")


def _layers(texts: list[str]) -> list[int]:
    layers: list[int] = []
    for text in ",".join(texts).split(",") if texts else []:
        first, dash, last = text.partition("-")
        numbers = first.isdecimal() and (last.isdecimal() or not dash) and len(text) <= 12
        if not numbers or (dash and int(last) < int(first)):
            raise UsageError(f"{text!r} is not a layer", "write 0, or 4-7, or 0,3,5")
        layers += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    return layers


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A pair's folder, or one above it.", metavar="RUN")],
    scores: Scores = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Show finished reports again; of a list first how its pairs stand. Scores given here are not kept."""
    from shadow.batch_index import read_index
    from shadow.render import batch_view, summary_view
    from shadow.summary import read_summary, with_scores

    folders = _report_folders(run)
    index = read_index(run)
    if index is not None and folders == [run]:  # a list of which no pair is done
        folders = []
    if index is not None and format is Format.table:
        console.show(batch_view(index, console.out.options))
    found = [(*read_summary(folder), folder) for folder in folders]
    if scores:
        from shadow.gains import NO_SCORES, join, sides_of

        given = _read_scores(scores, [sides_of(provenance) for _, provenance, _ in found])
        found = [(with_scores(one, join(given, sides_of(told)) or NO_SCORES), told, at) for one, told, at in found]
    if format is Format.json:
        summaries = [summary.as_json() for summary, _, _ in found]
        console.show_json(summaries if index is None else {**index.as_json(), "reports": summaries})
        return
    for summary, provenance, folder in found:
        console.show(summary_view(summary, provenance, folder, console.out.options))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A pair's folder, or one above it.", metavar="RUN")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page, one file.", metavar="FILE", dir_okay=False)
    ] = Path("report.html"),
) -> None:
    """Write one web page of finished reports that loads nothing from anywhere: charts, tables, light and dark.

    Exit codes: 0 done, also when there is no finished report, which the page then says; 1 a report cannot be read.
    """
    from shadow.page import write_page

    folders = [folder for folder in _report_folders(run) if (folder / "matrices.parquet").is_file()]
    with console.steps("report") as update:
        written = write_page(run, folders, output, show=update)
    for _, fault in written.unreadable:
        console.complain(fault)
    told = f"{written.pairs} report{'' if written.pairs == 1 else 's'}" if written.pairs else "no finished report"
    console.say(f"{told} in {output}, {written.size / 1e6:.1f} MB")
    if written.unreadable:
        raise typer.Exit(1)


def _report_folders(run: Path) -> list[Path]:
    """The pair folders at or up to two levels below a path."""
    try:
        if not run.is_dir():
            raise ShadowError(f"no such folder: {run}", "name a folder that `shadow audit` made")
        found = [path.parent for depth in ("", "*/", "*/*/") for path in sorted(run.glob(f"{depth}matrices.parquet"))]
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ShadowError(f"{str(run)[:80]}: {error.strerror}", "name a folder that `shadow audit` made") from error
    return found or [run]


@app.command()
def merge(
    output: Annotated[Path, typer.Argument(help="Folder to merge into.", metavar="OUT", file_okay=False)],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders given to `shadow audit -o`; none makes the index of OUT anew.", metavar="[DIR]..."
        ),
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Join the reports of several jobs, such as the shards of a list, in one folder, and make its index anew.

    All must be of one version and of the same settings; two reports of one pair must hold the same numbers.

    Exit codes: 0 done; 1 could not, and nothing was copied; 2 wrong usage.
    """
    from shadow.merging import merge as merged
    from shadow.render import batch_view, several

    found = merged(output, folders or [])
    console.say(f"{found.copied} reports copied to {output}, {found.there} were there")
    if missing := found.index.missing_shards:
        console.say(f"missing are the shards {several(missing)} of the list")
    if format is Format.json:
        console.show_json(found.index.as_json())
    else:
        console.show(batch_view(found.index, console.out.options))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Two reports or more: a pair's folder, or one above it.", metavar="RUN")
    ],
    margin: Annotated[
        float, typer.Option(help="Least difference of concentration that counts; the other figures get its like.")
    ] = 0.05,
    allow_different_base: Annotated[
        bool, typer.Option("--allow-different-base", help="Also compare deltas from different bases.")
    ] = False,
    scores: Scores = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Parquet file for the rows, one a matrix.", metavar="FILE", dir_okay=False),
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Tell whose delta is more concentrated: two models tuned from one base, or two stages of one lineage.

    Differences are paired over the same matrices, with an interval over layers and a margin.

    With --scores, gains and concentrations of up to 200 reports are correlated, whatever their bases.

    Exit codes: 0 done, whatever the verdict; 1 could not; 2 wrong usage.
    """
    from shadow import compare as comparing
    from shadow.diagnostics import COMPARISON
    from shadow.render import comparison_view
    from shadow.report import write_rows

    folders = list(dict.fromkeys(folder for run in runs for folder in _reports_at(run))) if scores else runs
    most = comparing.MAX_SCORED if scores else comparing.MAX_REPORTS
    if not 2 <= len(folders) <= most:
        raise UsageError(f"{len(folders)} reports", f"name two, or up to {most}")
    if not 0 <= margin <= 1:
        raise UsageError(f"--margin {margin:g} is no difference of concentration", "between 0 and 1, such as 0.05")
    folders = folders if scores else [_one_report(run) for run in runs]
    given = None
    if scores:
        from shadow.gains import sides_of
        from shadow.report import required_metadata

        given = _read_scores(scores, [sides_of(required_metadata(folder)) for folder in folders])
    found = comparing.compare(folders, margin=margin, allow_different_base=allow_different_base, scores=given)
    if output is not None and found.not_contrasted:
        raise ShadowError(f"no rows for {output}: {found.not_contrasted}", "leave -o out")
    if output is not None:
        write_rows(output, COMPARISON, found.rows, found.provenance)
        console.say(f"{len(found.rows)} rows in {output}")
    if format is Format.json:
        console.show_json(found.as_json())
    else:
        console.show(comparison_view(found, console.out.options))


def _reports_at(run: Path) -> list[Path]:
    """The report in a folder, else all that lie below it."""
    try:
        return [run] if (run / "matrices.parquet").is_file() else _report_folders(run)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ShadowError(f"{str(run)[:80]}: {error.strerror}", "name a folder that `shadow audit` made") from error


def _one_report(run: Path) -> Path:
    """The only report at or below a path."""
    found = _reports_at(run)
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ShadowError(f"{run} holds {len(found)} reports: {names}{more}", "name one of them")
    return found[0]


@app.command()
def gate(
    runs: Annotated[list[Path], typer.Argument(help="Finished reports: pairs' folders, or some above.", metavar="RUN")],
    fail_on: FailOn = None,
    policy: PolicyFile = None,
    against: Against = None,
    allow_missing: AllowMissing = False,
    junit: Junit = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Hold finished reports against rules and a baseline, for CI: what `audit` does with the same options.

    Exit codes: 0 no rule was met; 1 could not, or a rule had nothing to judge; 2 wrong usage; 4 a rule was met.
    """
    rules = _rules(fail_on, policy, against, allow_missing, junit)
    if not rules:
        raise UsageError("nothing to hold the reports against", "add --fail-on, --policy or --against")
    from shadow.gate import judge_report, read_measured
    from shadow.render import rules_view
    from shadow.report import required_metadata

    judged: list[Judged] = []
    names: dict[Path, tuple[str, str]] = {}
    for folder in {folder.resolve(): folder for run in runs for folder in _report_folders(run)}.values():
        try:
            metadata = required_metadata(folder)
            names[folder] = metadata["family"], metadata["pair"]
        except ShadowError as error:
            judged.append(_at_fault(folder.resolve().parent.name, folder.resolve().name, error))
    baselines = _baselines(against, list(names.values()), allow_missing)
    for folder, name in names.items():
        try:
            baseline = baselines.get(name)
            if baseline and baseline.report.folder.resolve() == folder.resolve():
                raise ShadowError(f"{folder} is its own baseline", "name an earlier report with --against")
            judged.append(judge_report(rules, read_measured(folder), baseline))
        except ShadowError as error:
            judged.append(_at_fault(*name, error))
            continue
        if format is Format.table:
            console.show(rules_view(judged[-1], titled=True))
    if format is Format.json:
        console.show_json([one.as_json() for one in judged])
    _finish(judged, junit)


def _rules(
    fail_on: list[str] | None, policy: Path | None, against: Path | None, allow_missing: bool, junit: Path | None
) -> tuple[Rule, ...]:
    """The rules of a command; refuses a file for JUnit that may not be written over."""
    if junit is not None:
        from shadow.ci import check_junit

        check_junit(junit)
    if not fail_on and policy is None and against is None:
        return ()
    from shadow.rules import gather

    return gather(fail_on or [], policy, against is not None, allow_missing)


def _at_fault(family: str, pair: str, error: ShadowError) -> Judged:
    from shadow.gate import Judged

    console.complain(error)
    return Judged(family, pair, fault=error.message)


def _baselines(
    against: Path | None, pairs: list[tuple[str, str]], allow_missing: bool
) -> dict[tuple[str, str], Measured]:
    from shadow.gate import read_baselines

    if against is None:
        return {}
    if not against.is_dir():
        if not allow_missing:
            hint = "name finished reports, or add --allow-missing for a first run"
            raise ShadowError(f"no such folder: {against}", hint)
        console.say(f"no baseline: there is no folder {against}")
        return {}
    return read_baselines(against, _report_folders(against), pairs)


def _finish(judged: list[Judged], junit: Path | None) -> None:
    """Tell what came of every pair to people, to GitHub Actions and to a JUnit file, and exit with its code."""
    from shadow import ci
    from shadow.gate import first_code

    if os.environ.get("GITHUB_ACTIONS") == "true":
        workspace = os.environ.get("GITHUB_WORKSPACE")
        for command in ci.workflow_commands(judged, Path(workspace) if workspace else None):
            console.annotate(command)
    else:
        for text in ci.sentences(judged):
            console.say(text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            ci.append_summary(Path(summary), judged)
        except OSError as error:  # the audit is what was asked for
            console.say(f"no summary of the step: cannot write {summary}: {error.strerror or error}")
    if junit is not None:
        ci.write_junit(junit, judged)
    if code := first_code({one.code for one in judged}):
        raise typer.Exit(code)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A pair's folder, or one above it.", metavar="RUN")],
    to: Annotated[ExportName, typer.Option("--to", help="The format.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File or folder to write [default: RUN-csv and so on, here].", metavar="PATH"
        ),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table: matrices, tensors, residual, spectra; may be repeated.")
    ] = None,
) -> None:
    """Write finished reports in the format of another tool: one set of tables, however many reports.

    It appears whole or not at all. What is at PATH is replaced only if it is such an export that nobody has touched.

    Exit codes: 0 done; 1 could not; 2 wrong usage.
    """
    from shadow import export as exporting
    from shadow.tables import absent_note

    target = output or exporting.default_output(run, to.value)
    done = exporting.export(_report_folders(run), to.value, target, table or ())
    if done.older:
        console.say(f"{done.older} of {done.reports} reports were {absent_note(done.absent)}")
    counts = ", ".join(f"{count:,} {name}" for name, count in done.rows.items())
    console.say(f"{done.output}: {exporting.FORMATS[to.value].what}; rows: {counts}")


@app.command()
def figure(
    run: Annotated[Path, typer.Argument(help="A pair's folder, or one above it.", metavar="RUN")],
    kind: Annotated[FigureName, typer.Option(help="What to draw.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File to draw to: .svg, .pdf or .png.", metavar="FILE", dir_okay=False),
    ],
    component: Annotated[str | None, typer.Option(help="Of this component [default: language].")] = None,
    module: Annotated[list[str] | None, typer.Option(help="Only this module, or attn.*; may be repeated.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer of a spectrum [default: the middle].", min=0)] = None,
    expert: Annotated[int | None, typer.Option(help="The expert of a spectrum.", min=0)] = None,
    metric: Annotated[str | None, typer.Option(help="The column of a heatmap, or of the curves of depth.")] = None,
    width: Annotated[float, typer.Option(help="Width in inches.", min=2, max=20)] = 3.3,
    title: Annotated[bool, typer.Option("--title/--no-title", help="Say above it which report it is.")] = True,
) -> None:
    """Draw a figure for a paper.

    depth: a metric by layer and module (the effective-rank shift), relative norm, concentration. spectrum: the singular
    values of one matrix. heatmap: a metric by layer and module. modules: concentration by module against its null.
    depth and modules take up to four reports.

    Exit codes: 0 done; 1 could not; 2 wrong usage.
    """
    from shadow.figure import OPTIONS, Choice, write_figure

    given = {"component": component, "module": module, "layer": layer, "expert": expert, "metric": metric}
    for name, kinds in OPTIONS.items():
        if given[name] not in (None, []) and kind.value not in kinds:
            raise UsageError(f"--{name} says nothing of a {kind.value}", f"it is for --kind {' and '.join(kinds)}")
    if component is not None:
        _check_component(component)
    choice = Choice(component, tuple(module or ()), layer, expert, metric, width, title)
    for note in write_figure(kind.value, _report_folders(run), output, choice):
        console.say(f"{output}: {note}")


@app.command()
def explain(
    column: Annotated[
        str | None, typer.Argument(help="A column or figure of the report, or `label`; none lists all.")
    ] = None,
) -> None:
    """Explain a column: formula, range, null value, source, pitfalls."""
    import difflib

    from shadow.diagnostics import BATCH, FIGURES, MATRICES, RESIDUAL, SCORES, SPECTRA, TENSORS
    from shadow.reference import calibration
    from shadow.render import column_view, columns_view, label_view

    # of columns with one name, that of matrices.parquet is meant
    columns = {one.name: one for one in (*BATCH, *SCORES, *FIGURES, *RESIDUAL, *SPECTRA, *TENSORS, *MATRICES)}
    if column is None:
        console.show(columns_view(tuple(dict.fromkeys((*MATRICES, *columns.values())))))
        return
    if column == "label":
        console.show(label_view(calibration()))
        return
    if column not in columns:
        close = difflib.get_close_matches(column, [*columns, "label"], n=1)
        raise UsageError(
            f"no column {column!r}", f"did you mean {close[0]!r}?" if close else "`shadow explain` lists them"
        )
    console.show(column_view(columns[column]))


@lab_app.command("run")
def lab_run(
    preset: Annotated[
        PresetName, typer.Option(help="smoke: seconds, learns nothing; quick: minutes; full: an hour, every control.")
    ] = PresetName.quick,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for all of it.", file_okay=False)] = Path(
        "lab"
    ),
    jobs: Annotated[
        int, typer.Option(help="Processes of one thread; numbers do not depend on it.", min=1, max=256)
    ] = 2,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Train tiny models on known data, audit every one, and say what the data left in their weights.

    Writes runs.parquet, comparisons.parquet, lab.md and lab.svg. Interrupted, the same command goes on.

    Exit codes: 0 done, whatever was found; 1 could not; 2 wrong usage.
    """
    from shadow.lab.run import run
    from shadow.lab.view import view

    with console.steps(f"lab {preset.value}") as update:
        try:
            tables = run(
                preset.value, output, jobs=jobs, show=lambda done: update(done.finished, done.total, done.what)
            )
        except KeyboardInterrupt:
            console.say("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
    if format is Format.json:
        console.show_json({"preset": preset.value, "runs": len(tables["runs"]), "folder": str(output)})
    else:
        console.show(view(tables))
    console.say(f"tables, page and figure in {output}/: runs.parquet, comparisons.parquet, lab.md, lab.svg")


@app.command()
def schema(
    table: Annotated[str | None, typer.Argument(help="A table of the report; none lists them.")] = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
) -> None:
    """Tell the schema of a report's files: tables, columns, types, units, null cases."""
    import difflib

    from shadow.diagnostics import TABLES

    if table is not None and table not in TABLES:
        close = difflib.get_close_matches(table, TABLES, n=1)
        raise UsageError(
            f"no table {table!r}", f"did you mean {close[0]!r}?" if close else f"one of {', '.join(TABLES)}"
        )
    chosen = [TABLES[table]] if table else list(TABLES.values())
    if format is Format.json:
        from shadow.schema import schema_json

        console.show_json(schema_json(chosen))
        return
    from shadow.render import schema_view, table_view

    console.show(table_view(chosen[0]) if table else schema_view(chosen))


@app.command()
def families(
    word: Annotated[
        str | None,
        typer.Argument(
            help="A family's name shows it; any other word filters names, checkpoints and tags.", metavar="[NAME|WORD]"
        ),
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="Only families that have this component: vision, projector, audio.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only families with this tag; repeated: with all.")] = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of family files.")] = False,
    registry: Registry = None,
) -> None:
    """List the families of the registry, or show one."""
    from shadow.registry import filter_families, load_families

    if schema:
        from shadow.family_schema import family_schema

        console.show_json(family_schema())
        return
    if component is not None:
        _check_component(component)
    chosen = filter_families(load_families(registry), word, component, tag or ())
    if format is Format.json:
        console.show_json([family.as_json() for family in chosen])
        return
    from shadow.render import families_view, family_view

    one = len(chosen) == 1 and chosen[0].name == word
    console.show(family_view(chosen[0]) if one else families_view(chosen, console.out.options))


@app.command()
def clean(output: Output = DEFAULT_OUTPUT) -> None:
    """Remove what unfinished audits left: their folders, and shards that they fetched to free them after use.

    Finished reports stay, and so does everything else in the Hub's cache.
    """
    from shadow.report import remove_unfinished

    removed = remove_unfinished(output)
    console.say(f"removed the unfinished work of {len(removed)} audits" if removed else "nothing unfinished there")
    for folder, fetched in removed.items():
        console.say(f"  {folder}")
        if fetched:
            from shadow.hub import forget, remove_leftovers

            for one in fetched:
                remove_leftovers(one.repo, one.checksum)
                if not one.keep:
                    forget(one.repo, one.commit, one.path, one.checksum)


def main() -> None:
    """The `shadow` command."""
    try:
        app()
    except UsageError as error:
        console.complain(error)
        sys.exit(2)
    except ShadowError as error:
        console.complain(error)
        sys.exit(1)
    except BrokenPipeError:
        # the reader (`| head`) has gone: let no flush at exit complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
