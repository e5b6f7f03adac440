"""`maisi-aug evaluate`: how close synthetic cases are to real ones, and whether they show what was requested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.api.engines import EngineOptions
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, Quiet
from maisi_aug.cli.shared.streams import tell
from maisi_aug.evaluation.request import (
    BlindPackRequest,
    DistributionRequest,
    EquivalenceRequest,
    FidRequest,
    HuRequest,
    LesionsRequest,
    MemorizationRequest,
    ReconstructionRequest,
    SegmenterRequest,
)

if TYPE_CHECKING:
    from maisi_aug.api.evaluate import Measurement

Cases = Annotated[Path, typer.Argument(metavar="COHORT", help="A cohort, or any labelled folder or dataset.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the figures as JSON, Markdown and pictures.", rich_help_panel=RUN),
]
Devices = Annotated[
    str | None,
    typer.Option(metavar="DEVICE,...", help="Several devices, such as cuda:0,cuda:1; each runs its own process."),
]


def register(app: typer.Typer) -> None:
    """Add the group of commands ``evaluate`` to the application."""
    group = typer.Typer(
        name="evaluate",
        no_args_is_help=True,
        help="Measure a cohort, its distance from real cases, or a bundle's autoencoder on your own CTs.",
    )
    for command in (fid, distribution, equivalence, hu, lesions, agreement, detection_curve, memorization):
        group.command(command.__name__.replace("_", "-"))(with_options(command))
    group.command("reconstruction")(with_options(reconstruction))
    group.command("blind-pack")(with_options(blind_pack))
    group.command("blind-score")(blind_score)
    group.command("reviewers")(reviewers)
    app.add_typer(group)


def fid(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Real cases: a folder of volumes, a prepared or nnU-Net dataset.")
    ],
    synthetic: Annotated[
        Path, typer.Argument(metavar="SYNTH", help="Synthetic cases: a cohort, or any of the same kinds.")
    ],
    request: FidRequest,
    engine: EngineOptions,
    devices: Devices = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure 2.5D FID and KID by plane, with intervals over cases and the floor that real cases set.

    MAISI's protocol: --spacing 1 --resampling maisi --shape 512 --extractor radimagenet_resnet50 --weights FILE.

    Example: maisi-aug evaluate fid real_cts cohort --spacing 3.2 --shape 128x96x80 --out fid
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.fid(
            real, synthetic, out=out, progress=notify, devices=devices, **dict(engine), **dict(request)
        )
    _finish(measured, as_json=as_json)


def distribution(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Real cases, at least ten: any dataset or folder of volumes.")
    ],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases, at least ten.")],
    request: DistributionRequest,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare radiomic features by region: Fréchet distance, precision, recall, density and coverage.

    Example: maisi-aug evaluate distribution nnUNet_raw/Dataset003_Liver cohort --out distribution
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.distribution(real, synthetic, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def equivalence(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Real cases with label maps.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases with label maps.")],
    request: EquivalenceRequest,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Test whether sizes, places, HU, texture and shape of lesions and organs are like real ones (two one-sided tests).

    Each is equivalent, different or undecided; the report says how many cases a decision would need.

    Example: maisi-aug evaluate equivalence nnUNet_raw/Dataset003_Liver cohort --out equivalence
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.equivalence(real, synthetic, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def hu(cases: Cases, request: HuRequest, out: Out = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Compare the HU of every organ and lesion with MAISI's published ranges, your own file, or your real cases.

    With --reference, --out also gets hu_ranges.json, to be passed as --ranges later.

    Example: maisi-aug evaluate hu cohort --reference nnUNet_raw/Dataset501_Mine --out hu
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.hu(cases, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def lesions(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="Folder of a cohort.")],
    request: LesionsRequest,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare realised with requested lesion sizes, and check whether each lesion is visible against its host.

    Example: maisi-aug evaluate lesions cohort --out lesions
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.lesions(cohort, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def agreement(
    cases: Cases, request: SegmenterRequest, out: Out = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Measure the Dice of an independent segmenter against the given label maps: do images show what their maps say?

    The model must not have been trained on synthetic cases. Labels are matched by name; --map "tumor=hepatic tumor".

    Example: maisi-aug evaluate agreement cohort --model nnUNet_results/Dataset501_Mine --out agreement
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.agreement(cases, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def detection_curve(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Cohort of insert or synthesize, best made with --twins.")
    ],
    request: SegmenterRequest,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure which lesions a segmenter finds, by size or by the factor that the cohort's twins vary, with intervals.

    Example: maisi-aug evaluate detection-curve cohort --predictions found --map "nodule=lung tumor" --out curve
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.detection_curve(cohort, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def memorization(
    cases: Annotated[Path, typer.Argument(metavar="COHORT", help="Synthetic cases.")],
    request: MemorizationRequest,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check whether synthetic cases repeat training cases, by the nearest ones, compared with held-out real cases.

    Example: maisi-aug evaluate memorization cohort --train prepared --held-out test_cts --out memorization
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.memorization(cases, out=out, progress=notify, **dict(request))
    _finish(measured, as_json=as_json)


def reconstruction(
    cases: Annotated[Path, typer.Argument(metavar="CTS", help="CTs: a folder of volumes, any dataset or cohort.")],
    request: ReconstructionRequest,
    engine: EngineOptions,
    devices: Devices = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a bundle's autoencoder preserves of your CTs: PSNR, SSIM, LPIPS, HU by organ and tissue, blur.

    What it cannot draw, such as small vessels, metal or bone above 1000 HU, cannot be fine-tuned into that bundle.

    Example: maisi-aug evaluate reconstruction real_cts --bundle rflow-ct --out reconstruction
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        measured = evaluate.reconstruction(
            cases, out=out, progress=notify, devices=devices, **dict(engine), **dict(request)
        )
    _finish(measured, as_json=as_json)


def blind_pack(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Real cases: any dataset or folder of volumes.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTH", help="Synthetic cases.")],
    request: BlindPackRequest,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pack; its key is written next to it.")],
    quiet: Quiet = False,
) -> None:
    """Write unlabelled pictures of real and synthetic cases for a reader test, with an answer key next to them.

    Example: maisi-aug evaluate blind-pack real_cts cohort --out pack
    """
    from maisi_aug.api import evaluate

    with show_stages("reading", is_quiet=quiet) as notify:
        pack = evaluate.blind_pack(real, synthetic, out=out, progress=notify, **dict(request))
    for row in pack.skipped:
        tell(f"Left out, {row['case']}: {row['reason']}")
    typer.echo(f"{out}: give this folder to the readers.\n{pack.key}: keep this file to yourself.")
    tell(f"Next: maisi-aug evaluate blind-score {pack.key} {pack.answers}")
    if pack.skipped:
        raise typer.Exit(1)


def blind_score(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Key file written by blind-pack.")],
    answers: Annotated[
        list[Path], typer.Argument(metavar="ANSWERS", help="Filled-in answers.csv files, one per reader.")
    ],
    margin: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.49,
            help="Equivalence margin: largest irrelevant deviation of the share of right answers from one half.",
        ),
    ] = 0.2,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Test if readers can tell synthetic from real cases: share of right answers with an exact interval, and a verdict.

    Example: maisi-aug evaluate blind-score pack_key.json anna.csv ben.csv --out reader
    """
    from maisi_aug.api import evaluate

    _finish(evaluate.blind_score(key, answers, margin=margin, out=out), as_json=as_json)


def reviewers(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Folder whose cases were reviewed with maisi-aug view.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the measurement.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Summarise reviewers' decisions: rejections, agreement with kappa, and the blinded test of real or synthetic.

    The folder must contain review.jsonl or reader_test.jsonl, which maisi-aug view writes. Agreement is measured for
    every pair of reviewers, over the cases that both decided on.

    Example: maisi-aug evaluate reviewers cohort
    """
    from maisi_aug.api import evaluate

    _finish(evaluate.reviewers(cohort, seed=seed, out=out), as_json=as_json)


def _finish(measured: Measurement, *, as_json: bool) -> None:
    """Print a measurement; exit with code 1 if cases could not be measured."""
    for note in measured.notes:
        tell(f"Note: {note}")
    typer.echo(json.dumps(measured.figures, indent=1) if as_json else measured.text)
    if measured.files:
        tell(f"Written: {', '.join(map(str, measured.files))}")
    if measured.num_skipped:
        raise typer.Exit(1)
