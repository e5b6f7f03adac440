"""`maisi-aug evaluate`: how close synthetic cases are to real ones, and whether they show what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.cli.shared.completion import complete_bundles
from maisi_aug.cli.shared.run_options import RUN, Device, Quiet, parse_shape, parse_spacing
from maisi_aug.cli.shared.streams import tell
from maisi_aug.system.content import spells_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maisi_aug.evaluation.cohort.agreement import MatchedLabel, Segment
    from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, SkippedCase
    from maisi_aug.vocabulary.labels import Vocabulary
    from maisi_aug.volumes.image_files import Volume


class ResamplingName(StrEnum):
    """What `evaluate fid --resampling` takes."""

    centred = "centred"
    maisi = "maisi"


evaluate_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a cohort, its distance from real cases, or a bundle's autoencoder on your own CTs.",
)

GRID, SEGMENTER = "Grid", "Segmenter"
"""Panels of the help."""

Cohort = Annotated[Path, typer.Argument(metavar="COHORT", help="Folder that synthesize wrote.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder that gets the figures as JSON, Markdown and pictures.", rich_help_panel=RUN
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.", rich_help_panel=RUN)]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; one per core for a dozen cases each by default.", rich_help_panel=RUN),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of the measurement.", rich_help_panel=RUN)]
FeatureSpacing = Annotated[
    float, typer.Option(min=0.5, max=10.0, metavar="MM", help="Voxels on which texture and shape are measured.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Trained nnU-Net model; its checkpoint is a pickle: trust it.", rich_help_panel=SEGMENTER
    ),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Ready label maps CASE.nii.gz instead, with a dataset.json.", rich_help_panel=SEGMENTER
    ),
]
SegmenterMap = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="LABEL=NAME",
        help="What a label of the model is compared with; may repeat.",
        rich_help_panel=SEGMENTER,
    ),
]
Folds = Annotated[
    str | None,
    typer.Option(help="Folds of the model, such as 0,1; all that are there.", rich_help_panel=SEGMENTER),
]
Orientation = Annotated[
    str,
    typer.Option(help="Orientation of the images that the model was trained on.", rich_help_panel=SEGMENTER),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(evaluate_app, name="evaluate")


@evaluate_app.callback()
def evaluate() -> None:
    """Measure how close synthetic cases are to real ones, and whether they show what was asked for."""


@evaluate_app.command()
def fid(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Real cases: a folder of volumes, a prepared or nnU-Net dataset.")
    ],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases: a cohort or the same kinds.")],
    extractor: Annotated[
        str, typer.Option(help="efficientnet_lite0 (needs no download), radimagenet_resnet50 or squeezenet1_1.")
    ] = "efficientnet_lite0",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Weights of the extractor; an https address needs --sha256.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 of the weights; of a file, 8 digits or more.")] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="MM|IxJxK", help="Resample to these voxels in mm, such as 1 or 1x1x2.", rich_help_panel=GRID
        ),
    ] = None,
    resampling: Annotated[
        ResamplingName,
        typer.Option(
            rich_help_panel=GRID,
            help="How to resample to --spacing: about the centre, smoothed where voxels become larger; or as in "
            "MAISI's script, from the first voxel on and not smoothed, for figures to compare with MAISI's.",
        ),
    ] = ResamplingName.centred,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="IxJxK",
            help="Fill up with air and cut to this shape, such as 256 or 512x512x256.",
            rich_help_panel=GRID,
        ),
    ] = None,
    centre_share: Annotated[
        float, typer.Option(help="Central share of the slices along each axis, such as 0.4.")
    ] = 1.0,
    every: Annotated[int, typer.Option(help="Take only every n-th slice: faster, with other figures.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of features, kept by content; beside the fetched bundles by default.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no features.")] = False,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """2.5D FID and KID by plane, with an interval over cases and what real cases differ by among themselves.

    MAISI's protocol: --spacing 1 --resampling maisi --shape 512 --extractor radimagenet_resnet50 --weights FILE. On
    several GPUs: torchrun --nproc-per-node 4 -m maisi_aug.cli.app evaluate fid ...

    Example: maisi-aug evaluate fid real_cts cohort --spacing 3.2 --shape 128x96x80 --out fid
    """
    from maisi_aug.evaluation.fid import measurement
    from maisi_aug.evaluation.fid.extractors import load_extractor
    from maisi_aug.evaluation.fid.feature_store import default_cache, join_processes
    from maisi_aug.evaluation.fid.slices import SliceProtocol
    from maisi_aug.networks.pipeline import resolve_device

    protocol = SliceProtocol(parse_spacing(spacing), parse_shape(shape), centre_share, every, resampling.value)
    _require_out(out, measurement.REPORT_NAME)
    sets = _list_cases(real), _list_cases(synthetic)
    with join_processes(resolve_device(device)) as (processes, place), show_stages("reading", is_quiet=quiet) as notify:
        network = load_extractor(extractor, weights=weights, sha256=sha256, device=place)
        document = measurement.measure_fid(
            *sets,
            network,
            protocol,
            cache=None if no_cache else cache or default_cache(),
            processes=processes,
            seed=seed,
            notify=notify if processes.is_first else lambda stage, done, total: None,
        )
    if document is not None:
        charts = {"fid.svg": measurement.draw_chart(document)}
        _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command()
def distribution(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Real cases, ten or more: any dataset or folder of volumes.")
    ],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases, ten or more.")],
    spacing: FeatureSpacing = 3.0,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fréchet radiomics distance, precision, recall, density and coverage, by region, with what real cases allow.

    Example: maisi-aug evaluate distribution nnUNet_raw/Dataset003_Liver cohort --out distribution
    """
    from maisi_aug.evaluation.cohort.case_sets import find_case_set
    from maisi_aug.evaluation.distribution import distances as measurement

    _require_out(out, measurement.REPORT_NAME)
    own = find_case_set(synthetic)
    with show_stages("reading", is_quiet=quiet) as notify:
        document = measurement.measure_distribution(
            find_case_set(real, vocabulary=own.vocabulary), own, spacing_mm=spacing, seed=seed, notify=notify
        )
    charts = {"distribution.svg": measurement.draw_chart(document)}
    _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command()
def equivalence(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Real cases with label maps.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases with label maps.")],
    margin: Annotated[
        float,
        typer.Option(min=0.05, max=5.0, help="Difference of means that does not matter, in real standard deviations."),
    ] = 0.5,
    spacing: FeatureSpacing = 3.0,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Whether sizes, places, HU, texture and shape of lesions and organs are like real ones: two one-sided tests.

    Each is equivalent, different, or cannot be told with so few cases; the report says how many it would take.

    Example: maisi-aug evaluate equivalence nnUNet_raw/Dataset003_Liver cohort --out equivalence
    """
    from maisi_aug.evaluation.cohort.case_sets import find_case_set
    from maisi_aug.evaluation.distribution import equivalence as measurement

    _require_out(out, measurement.REPORT_NAME)
    own = find_case_set(synthetic)
    with show_stages("reading", is_quiet=quiet) as notify:
        document = measurement.measure_equivalence(
            find_case_set(real, vocabulary=own.vocabulary),
            own,
            margin=margin,
            spacing_mm=spacing,
            seed=seed,
            notify=notify,
        )
    charts = {"equivalence.svg": measurement.draw_chart(document)}
    _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command()
def hu(
    cases: Annotated[Path, typer.Argument(metavar="COHORT", help="A cohort, or any labelled folder or dataset.")],
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real labelled cases to take the ranges from.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON with ranges, such as an earlier hu_ranges.json.")
    ] = None,
    workers: Workers = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """HU of every organ and lesion against MAISI's published ranges, your own file, or your own real cases.

    With --reference, --out gets hu_ranges.json too, to be passed as --ranges later.

    Example: maisi-aug evaluate hu cohort --reference nnUNet_raw/Dataset501_Mine --out hu
    """
    from maisi_aug.evaluation.cohort import hu as measurement
    from maisi_aug.system.whole_files import write_json_whole

    if reference is not None and ranges is not None:
        raise typer.BadParameter("--reference and --ranges: expected one of them, found both.")
    _require_out(out, measurement.REPORT_NAME)
    case_set = _list_cases(cases)
    skipped: list[SkippedCase] = []
    with show_stages("reading", is_quiet=quiet) as notify:
        if reference is not None:
            real = _list_cases(reference, vocabulary=case_set.vocabulary)
            normal, skipped = measurement.measure_reference(real, partial(notify, "reference"), num_workers=workers)
        elif ranges is not None:
            normal = measurement.load_reference(ranges, case_set.vocabulary)
        else:
            normal = measurement.published_reference()
        document = measurement.measure_hu(
            case_set, normal, partial(notify, "cases"), skipped_reference=skipped, num_workers=workers
        )
    if reference is not None and out is not None:
        write_json_whole(out / measurement.RANGES_NAME, measurement.to_ranges(normal, case_set.vocabulary))
    charts = {"hu.svg": measurement.draw_chart(document)}
    _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command()
def lesions(
    cohort: Cohort, workers: Workers = None, out: Out = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Realised against requested lesion size, and whether each lesion can be seen against its host.

    Example: maisi-aug evaluate lesions cohort --out lesions
    """
    from maisi_aug.evaluation.cohort import lesion_report as measurement

    _require_out(out, measurement.REPORT_NAME)
    with show_stages("reading", is_quiet=quiet) as notify:
        document = measurement.measure_lesions_of(_list_cases(cohort), partial(notify, "cases"), num_workers=workers)
    _finish(document, measurement.to_report(document), measurement.draw_charts(document), out=out, as_json=as_json)


@evaluate_app.command()
def agreement(
    cases: Annotated[Path, typer.Argument(metavar="COHORT", help="A cohort, or any labelled folder or dataset.")],
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    mapping: SegmenterMap = None,
    folds: Folds = None,
    orientation: Orientation = "RAS",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Dice of an independent segmenter against the given label maps: do images show what their maps say?

    The model must not have been trained on synthetic cases. Labels are matched by name; --map "tumor=hepatic tumor".

    Example: maisi-aug evaluate agreement cohort --model nnUNet_results/Dataset501_Mine --out agreement
    """
    from maisi_aug.evaluation.cohort import agreement as measurement

    _require_one(model, predictions)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _list_cases(cases)
    with show_stages("reading", is_quiet=quiet) as notify:
        segmenter = _open_segmenter(model, predictions, folds, orientation, device, case_set.vocabulary, mapping)
        document = measurement.measure_agreement(
            case_set,
            segmenter.segment,
            segmenter.labels,
            segmenter=segmenter.name,
            unmatched=segmenter.unmatched,
            seed=seed,
            notify=partial(notify, "cases"),
        )
    charts = {"agreement.svg": measurement.draw_chart(document)}
    _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command("detection-curve")
def detection_curve(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Folder that insert or synthesize wrote; best one with --twins.")
    ],
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    mapping: SegmenterMap = None,
    folds: Folds = None,
    orientation: Orientation = "RAS",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Which lesions a segmenter finds, by their size or by what the twins of the cohort differ in, with intervals.

    Example: maisi-aug evaluate detection-curve cohort --predictions found --map "nodule=lung tumor" --out curve
    """
    from maisi_aug.evaluation.cohort import detection_curve as measurement

    _require_one(model, predictions)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _list_cases(cohort)
    with show_stages("reading", is_quiet=quiet) as notify:
        segmenter = _open_segmenter(model, predictions, folds, orientation, device, case_set.vocabulary, mapping)
        document = measurement.measure_detection_curve(
            case_set,
            segmenter.segment,
            segmenter.labels,
            segmenter=segmenter.name,
            seed=seed,
            notify=partial(notify, "cases"),
        )
    charts = {measurement.CHART_NAME: measurement.draw_chart(document)}
    _finish(document, measurement.to_report(document), charts, out=out, as_json=as_json)


@evaluate_app.command()
def memorization(
    cases: Annotated[Path, typer.Argument(metavar="COHORT", help="Synthetic cases.")],
    train: Annotated[Path, typer.Option(metavar="DIR", help="Cases that the generator was trained on.")],
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Real cases that it was not trained on; else training cases, left out in turn."
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Whether synthetic cases repeat training cases: how near the nearest one is, against held-out real cases.

    Example: maisi-aug evaluate memorization cohort --train prepared --held-out test_cts --out memorization
    """
    from maisi_aug.evaluation.cohort import memorization as measurement
    from maisi_aug.pictures.preview import save_picture

    _require_out(out, measurement.REPORT_NAME)
    synthetic = _list_cases(cases)
    real = [None if path is None else _list_cases(path, vocabulary=synthetic.vocabulary) for path in (train, held_out)]
    assert real[0] is not None
    with show_stages("reading", is_quiet=quiet) as notify:
        document, pairs = measurement.measure_memorization(synthetic, real[0], real[1], notify=notify)
    report = measurement.to_report(document)
    if out is not None:
        save_picture(out / measurement.PICTURE_NAME, pairs)
        report += f"\n![closest pairs]({measurement.PICTURE_NAME})\n"
    charts = {"memorization.svg": measurement.draw_chart(document)}
    _finish(document, report, charts, out=out, as_json=as_json)


@evaluate_app.command()
def reconstruction(
    cases: Annotated[Path, typer.Argument(metavar="CTS", help="CTs: a folder of volumes, any dataset or cohort.")],
    bundle: Annotated[
        str,
        typer.Option(autocompletion=complete_bundles, help="Name or folder of the bundle whose autoencoder is tried."),
    ],
    lpips_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL", help="Weights of SqueezeNet 1.1, to measure LPIPS too; an address needs --sha256."
        ),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 of the weights; of a file, 8 digits or more.")] = None,
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a bundle's autoencoder leaves of your CTs: PSNR, SSIM, LPIPS, HU by organ and tissue, blur, worst slices.

    What it cannot draw, such as small vessels, metal or bone above 1000 HU, no fine-tuning of that bundle will.

    Example: maisi-aug evaluate reconstruction real_cts --bundle rflow-ct --out reconstruction
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.evaluation.cohort import reconstruction as measurement
    from maisi_aug.evaluation.cohort.case_sets import find_case_set
    from maisi_aug.evaluation.fid.lpips import load_perceptual_distance
    from maisi_aug.networks.pipeline import resolve_device
    from maisi_aug.pictures.preview import save_picture

    _require_out(out, measurement.REPORT_NAME)
    found, place = load_bundle(bundle), resolve_device(device)
    case_set = find_case_set(cases, vocabulary=found.vocabulary)
    perceptual = None
    if lpips_weights is not None:
        perceptual = load_perceptual_distance(lpips_weights, sha256=sha256, device=place)
    with show_stages("reading", is_quiet=quiet) as notify:
        autoencoder = measurement.Autoencoder.load(found, place)
        document, worst = measurement.measure_reconstruction(
            case_set, autoencoder, perceptual, partial(notify, "cases")
        )
    report = measurement.to_report(document)
    if out is not None:
        save_picture(out / measurement.PICTURE_NAME, worst)
        report += f"\n![worst slices]({measurement.PICTURE_NAME})\n"
    _finish(document, report, {"reconstruction.svg": measurement.draw_chart(document)}, out=out, as_json=as_json)


@evaluate_app.command("blind-pack")
def blind_pack(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Real cases: any dataset or folder of volumes.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder of the pack; its key goes beside it.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=499, help="Items of each kind.")] = 20,
    volumes: Annotated[bool, typer.Option("--volumes", help="Write every item as NIfTI as well.")] = False,
    spacing: Annotated[
        float, typer.Option(min=0.5, max=10.0, metavar="MM", help="Voxels that all items are brought to.")
    ] = 2.0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Unlabelled pictures of real and synthetic cases for a reader test, with an answer key beside them.

    Example: maisi-aug evaluate blind-pack real_cts cohort --out pack
    """
    from maisi_aug.evaluation.cohort import blind_pack as packing
    from maisi_aug.evaluation.cohort.case_sets import find_case_set

    packing.require_new_pack(out)
    with show_stages("reading", is_quiet=quiet) as notify:
        skipped = packing.write_blind_pack(
            find_case_set(real),
            find_case_set(synthetic),
            out,
            num_each=number,
            spacing_mm=spacing,
            with_volumes=volumes,
            seed=seed,
            notify=partial(notify, "items"),
        )
    for row in skipped:
        tell(f"Left out, {row['case']}: {row['reason']}")
    typer.echo(f"{out}: hand this folder to readers.\n{packing.name_key(out)}: keep this one.")
    tell(f"Next: maisi-aug evaluate blind-score {packing.name_key(out)} {out / packing.ANSWERS_NAME}")
    if skipped:
        raise typer.Exit(1)


@evaluate_app.command("blind-score")
def blind_score(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The key that blind-pack wrote.")],
    answers: Annotated[
        list[Path], typer.Argument(metavar="ANSWERS...", help="Filled-in answers.csv, one of each reader.")
    ],
    margin: Annotated[
        float, typer.Option(min=0.01, max=0.49, help="Share of right answers beyond one half that does not matter.")
    ] = 0.2,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Whether readers can tell synthetic from real cases: share of right answers with an exact interval, and a verdict.

    Example: maisi-aug evaluate blind-score pack_key.json anna.csv ben.csv --out reader
    """
    from maisi_aug.evaluation.cohort import blind_pack as packing

    _require_out(out, packing.REPORT_NAME)
    document = packing.measure_reader(key, answers, margin=margin)
    _finish(document, packing.to_report(document), {}, out=out, as_json=as_json)


@evaluate_app.command()
def reviewers(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Folder whose cases were looked at with maisi-aug view.")
    ],
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What reviewers rejected and agree on, with kappa, and how blinded readers told synthetic images from real ones.

    Example: maisi-aug evaluate reviewers cohort
    """
    from maisi_aug.evaluation.review import reviewers as measurement

    _require_out(out, measurement.REPORT_NAME)
    document = measurement.measure_reviewers(cohort, seed=seed)
    _finish(document, measurement.to_report(document), {}, out=out, as_json=as_json)


class _Segmenter(NamedTuple):
    """A segmenter, what it is called, and which of its labels have a counterpart."""

    segment: Segment
    name: str
    labels: tuple[MatchedLabel, ...]
    unmatched: tuple[str, ...]


def _require_one(model: Path | None, predictions: Path | None) -> None:
    if (model is None) == (predictions is None):
        raise typer.BadParameter("--model and --predictions: expected one of them, found both or none.")


def _open_segmenter(
    model: Path | None,
    predictions: Path | None,
    folds: str | None,
    orientation: str,
    device: str,
    vocabulary: Vocabulary,
    mapping: list[str] | None,
) -> _Segmenter:
    """A trained model, or a folder of what one has predicted."""
    from maisi_aug.evaluation.cohort.agreement import match_labels, segment_from_folder
    from maisi_aug.integrations.nnunet.prediction import NnUNetModel, read_label_values
    from maisi_aug.networks.pipeline import resolve_device

    if predictions is not None:
        segment = segment_from_folder(predictions)
        values, name = read_label_values(predictions / "dataset.json"), f"predictions in {predictions}"
    else:
        assert model is not None
        network = NnUNetModel(
            model, folds=_parse_folds(folds), orientation=orientation.upper(), device=resolve_device(device)
        )
        values, name = network.label_values, f"nnU-Net model {network.folder}"

        def segment(case: EvaluatedCase, image: Volume) -> NDArray[np.uint8]:
            return network.predict(image)

    return _Segmenter(segment, name, *match_labels(values, vocabulary, mapping=mapping or ()))


def _parse_folds(text: str | None) -> tuple[int | str, ...]:
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if any(not (spells_number(word) or word == "all") for word in words):
        raise typer.BadParameter(f"--folds: expected numbers such as 0,1,2, or all, found '{text}'.")
    return tuple(int(word) if spells_number(word) else word for word in words)


def _list_cases(path: Path, *, vocabulary: Vocabulary | None = None) -> CaseSet:
    """The cases of a folder; says where reviewers rejected some of a cohort, which are left out."""
    from maisi_aug.evaluation.cohort.case_sets import find_case_set

    found = find_case_set(path, vocabulary=vocabulary)
    if found.cohort is not None and found.cohort.review_note:
        tell(f"Note: {found.cohort.review_note}")
    return found


def _require_out(out: Path | None, name: str) -> None:
    from maisi_aug.evaluation.output.files import require_own_folder

    if out is not None:
        require_own_folder(out, name)


def _finish(
    document: Mapping[str, Any], report: str, charts: Mapping[str, str], *, out: Path | None, as_json: bool
) -> None:
    """Print and save; cases that could not be measured are an exit code of 1."""
    from maisi_aug.evaluation.output.files import save_results

    typer.echo(json.dumps(document, indent=1) if as_json else report)
    if out is not None:
        paths = save_results(out, document["measurement"], document, report, charts)
        tell(f"Written: {', '.join(map(str, paths))}")
    if _count_skipped(document):
        raise typer.Exit(1)


def _count_skipped(document: Mapping[str, Any]) -> int:
    """Cases left out, wherever the document lists them."""
    own = document.get("skipped", ())
    return len(own) + sum(len(part.get("skipped", ())) for part in document.values() if isinstance(part, Mapping))
