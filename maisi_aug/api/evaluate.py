"""Measurements of cohorts and of bundles; ``ma.evaluate.fid(...)`` is ``maisi-aug evaluate fid``.

Each function but :func:`blind_pack` returns a :class:`Measurement`. With ``out`` it is also written to a folder, which
:func:`maisi_aug.report` takes as evidence. An existing folder is refused unless it is from such a measurement.

Cases are a cohort, an nnU-Net raw dataset (path, number or name), a folder that ``prepare`` wrote, a folder with
``images/`` and ``labels/``, a MONAI data list, or a folder of CTs in HU (NIfTI, NRRD, MHA, DICOM). Cases that cannot be
read are listed with the reason under ``skipped`` in the figures. Every error is a :class:`~maisi_aug.MaisiAugError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maisi_aug.api.displays import Progress, listen_to_stages
from maisi_aug.api.engines import EngineName, Where, read_engine
from maisi_aug.api.keywords import Model, build_model, require_known, takes_fields_of
from maisi_aug.errors import RequestError
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
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from maisi_aug.evaluation.cohort.agreement import MatchedLabel, Segment
    from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, SkippedCase
    from maisi_aug.vocabulary.labels import Vocabulary
    from maisi_aug.volumes.image_files import Volume


@dataclass(frozen=True)
class Measurement:
    """Result of one of the measurements in ``ma.evaluate``, to look at or to save.

    Attributes:
        figures: Figures as a dict of JSON types; ``figures["measurement"]`` names the measurement.
        text: The figures as Markdown; shown in notebooks.
        charts: File name -> chart as SVG text.
        pictures: File name -> picture, as PIL image.
        further: File name -> further document as JSON types.
        notes: Notes to the user, a sentence each.
        files: Paths of the written files; empty without ``out``.
    """

    figures: Mapping[str, Any]
    text: str
    charts: Mapping[str, str] = field(default_factory=dict, repr=False)
    pictures: Mapping[str, Image] = field(default_factory=dict, repr=False)
    further: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def num_skipped(self) -> int:
        """Number of cases that could not be measured; the figures list them with the reasons."""
        own = self.figures.get("skipped", ())
        parts = (part for part in self.figures.values() if isinstance(part, Mapping))
        return len(own) + sum(len(part.get("skipped", ())) for part in parts)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write figures (``.json``), text (``.md``), charts (``.svg``) and pictures to a folder.

        Args:
            folder: Folder to write to, created if missing; files of the same names are replaced.

        Returns:
            Paths of the written files.

        Raises:
            VolumeError: A file cannot be written.
        """
        from maisi_aug.evaluation.output.files import save_results
        from maisi_aug.pictures.preview import save_picture
        from maisi_aug.system.whole_files import write_json_whole

        folder = Path(folder)
        for name, picture in self.pictures.items():
            save_picture(folder / name, picture)
        for name, document in self.further.items():
            write_json_whole(folder / name, document)
        shown = "".join(f"\n![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in self.pictures)
        results = save_results(folder, self.figures["measurement"], self.figures, self.text + shown, self.charts)
        return (*(folder / name for name in (*self.pictures, *self.further)), *results)

    def _repr_markdown_(self) -> str:
        return self.text


@takes_fields_of(FidRequest)
def fid(
    real: str | Path,
    synthetic: str | Path,
    *,
    devices: str | Sequence[str] | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """Measure 2.5D FID and KID by plane, with intervals and the floor of real cases; ``maisi-aug evaluate fid``.

    Args:
        real: Real cases: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare``, image-label pairs or CTs.
        synthetic: Synthetic cases, of any of these kinds.
        devices: Several devices, such as ``"cuda:0,cuda:1"``, each with a process of its own, instead of
            ``device``. Scripts that use it need ``if __name__ == "__main__":``.
        engine: ``"local"``, or ``"ray"`` for workers on a Ray cluster.
        address: ``"HOST:PORT"`` of the cluster's head, or ``"auto"`` for one that runs on this machine.
        num_workers: Number of workers on the cluster; one per GPU, or per core, when not given.
        gpus_per_worker: GPUs of each worker, such as 0.5.
        out: Folder for ``fid.json``, ``fid.md`` and ``fid.svg``, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["planes"]`` has, for ``xy`` (axial), ``yz`` (sagittal), ``zx``
        (coronal) and ``mean``, the figures ``fid`` with its 95% ``interval``, ``extrapolated`` (to infinitely many
        cases), ``kid``, and ``floor``, the FID of random halves of the real cases, with which to compare.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or none can be read, or ``out`` holds something else.
        MissingExtraError: The package with the extractor's weights is not installed.
    """
    from maisi_aug.evaluation.fid import measurement
    from maisi_aug.evaluation.fid.extractors import find_extractor
    from maisi_aug.evaluation.fid.feature_store import default_cache
    from maisi_aug.evaluation.fid.slices import SliceProtocol

    _require_one_process()
    asked = _read(fid, FidRequest, fields)
    options = read_engine(engine, address, num_workers, gpus_per_worker)
    where = Where.read(asked.device, devices, options=options)
    protocol = SliceProtocol(asked.spacing_mm, asked.shape, asked.centre_share, asked.every, asked.resampling)
    _require_out(out, measurement.REPORT_NAME)
    sets = _find_cases(real), _find_cases(synthetic)
    where.require_devices()
    with listen_to_stages(progress) as notify:
        document = measurement.measure_fid(
            *sets,
            find_extractor(asked.extractor, weights=asked.weights, sha256=asked.sha256),
            protocol,
            cache=None if asked.no_cache else asked.cache or default_cache(),
            engine=where.open_engine(),
            seed=asked.seed,
            notify=notify,
        )
    charts = {"fid.svg": measurement.draw_chart(document)}
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(*sets)), out)


@takes_fields_of(DistributionRequest)
def distribution(
    real: str | Path,
    synthetic: str | Path,
    *,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """Compare the distributions of radiomic features of real and synthetic cases; ``maisi-aug evaluate distribution``.

    Args:
        real: Ten cases or more: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare``, image-label pairs
            or CTs. Without label maps the body alone is compared.
        synthetic: Synthetic cases, ten or more, of any of these kinds.
        out: Folder for ``distribution.json``, ``.md`` and ``.svg``, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["regions"]`` has a row for the body and for every label in enough
        cases of both sets, with ``region``, ``frd`` (Fréchet radiomics distance) with ``frd_interval`` (95%), and
        precision, recall, density and coverage, each with ``value`` and ``interval``; ``floors`` are the same of random
        halves of the real cases.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or are too few, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.distribution import distances as measurement

    asked = _read(distribution, DistributionRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    own = _find_cases(synthetic)
    with listen_to_stages(progress) as notify:
        others = _find_cases(real, vocabulary=own.vocabulary)
        document = measurement.measure_distribution(others, own, **dict(asked), notify=notify)
    charts = {"distribution.svg": measurement.draw_chart(document)}
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(others, own)), out)


@takes_fields_of(EquivalenceRequest)
def equivalence(
    real: str | Path,
    synthetic: str | Path,
    *,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """Test whether synthetic lesions and organs are equivalent to real ones; ``maisi-aug evaluate equivalence``.

    Args:
        real: Labelled cases: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare`` or image-label pairs.
        synthetic: Labelled synthetic cases, of any of these kinds.
        out: Folder for ``equivalence.json``, ``.md`` and ``.svg``, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["rows"]`` has a row for every label and quantity, with means and
        deviations of both sets, ``difference`` with its interval, and ``verdict``, ``cannot tell`` with too few cases.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or have no label maps, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.distribution import equivalence as measurement

    asked = _read(equivalence, EquivalenceRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    own = _find_cases(synthetic)
    with listen_to_stages(progress) as notify:
        others = _find_cases(real, vocabulary=own.vocabulary)
        document = measurement.measure_equivalence(others, own, **dict(asked), notify=notify)
    charts = {"equivalence.svg": measurement.draw_chart(document)}
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(others, own)), out)


@takes_fields_of(HuRequest)
def hu(cases: str | Path, *, out: str | Path | None = None, progress: Progress = True, **fields: Any) -> Measurement:
    """Compare HU of organs and lesions with published ranges, a file or real cases; ``maisi-aug evaluate hu``.

    >>> import maisi_aug as ma
    >>> measured = ma.evaluate.hu("cohort", out="hu")
    >>> {"liver", "hepatic tumor"} <= {row["label"] for row in measured.figures["labels"]}
    True
    >>> [path.name for path in measured.files]
    ['hu.svg', 'hu.md', 'hu.json']

    Args:
        cases: Labelled cases: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare`` or image-label pairs.
        out: Folder for the results, created if missing: ``hu.json``, ``hu.md`` and ``hu.svg``; with ``reference`` also
            ``hu_ranges.json``, which a later call takes as ``ranges``. None to write nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["labels"]`` has a row per label, with ``label``, ``num_cases``,
        ``medians_hu`` (one per case), the reference range from ``low_hu`` to ``high_hu`` (None without one) and
        ``inside``, the share of cases in it. ``figures["outliers"]`` lists the cases outside.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or have no label maps, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import hu as measurement

    asked = _read(hu, HuRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _find_cases(cases)
    skipped: list[SkippedCase] = []
    sets, further = [case_set], {}
    with listen_to_stages(progress) as notify:
        if asked.reference is not None:
            sets.append(_find_cases(asked.reference, vocabulary=case_set.vocabulary))
            normal, skipped = measurement.measure_reference(
                sets[1], partial(notify, "reference"), num_workers=asked.num_workers
            )
            further = {measurement.RANGES_NAME: measurement.to_ranges(normal, case_set.vocabulary)}
        elif asked.ranges is not None:
            normal = measurement.load_reference(asked.ranges, case_set.vocabulary)
        else:
            normal = measurement.published_reference()
        document = measurement.measure_hu(
            case_set, normal, partial(notify, "cases"), skipped_reference=skipped, num_workers=asked.num_workers
        )
    charts = {"hu.svg": measurement.draw_chart(document)}
    text = measurement.to_report(document)
    return _save(Measurement(document, text, charts, further=further, notes=_notes_of(*sets)), out)


@takes_fields_of(LesionsRequest)
def lesions(
    cohort: str | Path, *, out: str | Path | None = None, progress: Progress = True, **fields: Any
) -> Measurement:
    """Compare realised with requested sizes, and check that lesions are visible; ``maisi-aug evaluate lesions``.

    >>> import maisi_aug as ma
    >>> measured = ma.evaluate.lesions("cohort")
    >>> measured.figures["measurement"], measured.num_skipped
    ('lesions', 0)

    Args:
        cohort: Folder that ``synthesize`` or ``insert`` wrote.
        out: Folder for ``lesions.json``, ``lesions.md`` and charts, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["calibration"]`` has the errors of the diameter by label,
        ``figures["points"]`` a row per lesion with ``requested_mm`` and ``realised_mm``, and ``figures["visibility"]``
        by label ``contrast_hu``, ``cnr`` and ``visible``, the share of visible lesions.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The folder is not a cohort or has no label maps, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import lesion_report as measurement

    asked = _read(lesions, LesionsRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _find_cases(cohort)
    with listen_to_stages(progress) as notify:
        document = measurement.measure_lesions_of(case_set, partial(notify, "cases"), num_workers=asked.num_workers)
    charts = measurement.draw_charts(document)
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(case_set)), out)


@takes_fields_of(SegmenterRequest)
def agreement(
    cases: str | Path, *, out: str | Path | None = None, progress: Progress = True, **fields: Any
) -> Measurement:
    """Measure the Dice of an independent segmenter against the label maps; ``maisi-aug evaluate agreement``.

    Args:
        cases: Labelled cases: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare`` or image-label pairs.
        out: Folder for ``agreement.json``, ``.md`` and ``.svg``, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below; either ``model`` or ``predictions`` is required.

    Returns:
        A :class:`Measurement`, in which ``figures["labels"]`` has a row per label, with ``label``, ``num_cases``,
        ``mean`` Dice with its 95% ``interval``, ``median`` and ``worst``. ``figures["cases"]`` has the Dice of every
        case, ``figures["unmatched"]`` the labels of the segmenter that were not compared.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: No case or label can be compared, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import agreement as measurement

    asked = _read(agreement, SegmenterRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _find_cases(cases)
    with listen_to_stages(progress) as notify:
        segmenter = _Segmenter.open(asked, case_set.vocabulary)
        document = measurement.measure_agreement(
            case_set,
            segmenter.segment,
            segmenter.labels,
            segmenter=segmenter.name,
            unmatched=segmenter.unmatched,
            seed=asked.seed,
            notify=partial(notify, "cases"),
        )
    charts = {"agreement.svg": measurement.draw_chart(document)}
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(case_set)), out)


@takes_fields_of(SegmenterRequest)
def detection_curve(
    cohort: str | Path, *, out: str | Path | None = None, progress: Progress = True, **fields: Any
) -> Measurement:
    """Measure which lesions a segmenter finds, by size or varied factor; ``maisi-aug evaluate detection-curve``.

    Args:
        cohort: Folder that ``insert`` or ``synthesize`` wrote. With ``twins``, cases that differ in one factor only,
            sensitivity is given by this factor, else by size.
        out: Folder for ``detection_curve.json``, ``.md`` and ``.svg``, created if missing; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below; either ``model`` or ``predictions`` is required.

    Returns:
        A :class:`Measurement`, in which ``figures["groups"]`` has a row per value or range of sizes, with ``name``,
        ``num``, ``num_found``, ``sensitivity`` with its 95% ``interval``; ``figures["fit"]`` the diameters in mm from
        which 50, 80 and 90% of the lesions are found (None with too few lesions, or another factor than size).

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: It is not a cohort, no label can be compared, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import detection_curve as measurement

    asked = _read(detection_curve, SegmenterRequest, fields)
    _require_out(out, measurement.REPORT_NAME)
    case_set = _find_cases(cohort)
    with listen_to_stages(progress) as notify:
        segmenter = _Segmenter.open(asked, case_set.vocabulary)
        document = measurement.measure_detection_curve(
            case_set,
            segmenter.segment,
            segmenter.labels,
            segmenter=segmenter.name,
            seed=asked.seed,
            notify=partial(notify, "cases"),
        )
    charts = {measurement.CHART_NAME: measurement.draw_chart(document)}
    return _save(Measurement(document, measurement.to_report(document), charts, notes=_notes_of(case_set)), out)


@takes_fields_of(MemorizationRequest)
def memorization(
    cases: str | Path,
    *,
    train: str | Path,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """Check whether synthetic cases repeat training cases; ``maisi-aug evaluate memorization``.

    Args:
        cases: Synthetic: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare``, image-label pairs or CTs.
        train: Cases that the generator was trained on, two or more, of any of these kinds.
        out: Folder for ``memorization.json``, ``.md``, ``.svg`` and ``closest_pairs.png``; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["images"]`` and the further comparisons have a ``verdict`` and
        ``cases``, a row per synthetic case, the most suspicious first: ``case``, ``nearest`` (training case),
        ``distance`` and ``is_copy``. The picture shows the closest pairs.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or are too few, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import memorization as measurement

    asked = _read(memorization, MemorizationRequest, {"train": train, **fields})
    _require_out(out, measurement.REPORT_NAME)
    synthetic = _find_cases(cases)
    known = _find_cases(asked.train, vocabulary=synthetic.vocabulary)
    unseen = None if asked.held_out is None else _find_cases(asked.held_out, vocabulary=synthetic.vocabulary)
    with listen_to_stages(progress) as notify:
        document, pairs = measurement.measure_memorization(
            synthetic, known, unseen, notify=notify, num_workers=asked.num_workers
        )
    charts = {"memorization.svg": measurement.draw_chart(document)}
    pictures = {measurement.PICTURE_NAME: pairs}
    notes = _notes_of(synthetic, known, *([] if unseen is None else [unseen]))
    return _save(Measurement(document, measurement.to_report(document), charts, pictures, notes=notes), out)


@takes_fields_of(ReconstructionRequest)
def reconstruction(
    cases: str | Path,
    *,
    bundle: str | Path,
    devices: str | Sequence[str] | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """Measure what a bundle's autoencoder preserves of CTs; ``maisi-aug evaluate reconstruction``.

    Args:
        cases: CTs: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare``, image-label pairs or CTs.
        bundle: Name or folder of the bundle whose autoencoder is measured.
        devices: Several devices, such as ``"cuda:0,cuda:1"``; see :func:`fid`, also for the following four arguments.
        engine: ``"local"`` or ``"ray"``.
        address: ``"HOST:PORT"`` of the Ray cluster's head, or ``"auto"``.
        num_workers: Number of workers on the cluster.
        gpus_per_worker: GPUs of each worker, such as 0.5.
        out: Folder for ``reconstruction.json``, ``.md``, ``.svg`` and ``worst_slices.png``; None writes nothing.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        A :class:`Measurement`, in which ``figures["summary"]`` has over all cases ``psnr_db``, ``ssim``, ``lpips``
        (None without ``lpips_weights``), ``mean_error_hu`` and ``blur_mm``; ``figures["cases"]`` the same per case;
        ``figures["tissues"]`` and ``figures["labels"]`` errors in HU.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError, CohortError: The cases were not found or none can be read, or ``out`` holds something else.
        BundleError: The bundle was not found, or the device cannot be used.
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.evaluation.cohort import reconstruction as measurement

    asked = _read(reconstruction, ReconstructionRequest, {"bundle": bundle, **fields})
    options = read_engine(engine, address, num_workers, gpus_per_worker)
    where = Where.read(asked.device, devices, options=options)
    _require_out(out, measurement.REPORT_NAME)
    found = load_bundle(asked.bundle)
    where.require_devices()
    case_set = _find_cases(cases, vocabulary=found.vocabulary)
    weights = None if asked.lpips_weights is None else measurement.LpipsWeights(asked.lpips_weights, asked.sha256)
    with listen_to_stages(progress) as notify:
        report = partial(notify, "cases")
        document, worst = measurement.measure_reconstruction(
            case_set, found, report, engine=where.open_engine(), lpips=weights, memory_gb=asked.memory_gb
        )
    charts = {"reconstruction.svg": measurement.draw_chart(document)}
    pictures = {measurement.PICTURE_NAME: worst}
    notes = _notes_of(case_set)
    return _save(Measurement(document, measurement.to_report(document), charts, pictures, notes=notes), out)


@dataclass(frozen=True)
class BlindPack:
    """Pictures of real and synthetic cases for a reader test, as :func:`blind_pack` writes them.

    Attributes:
        folder: Folder to give to the readers.
        key: File that says which items are synthetic; not to be given to the readers.
        answers: ``answers.csv`` in that folder, the form that readers fill in.
        skipped: Cases that could not be read and were replaced by others, with the reasons.
    """

    folder: Path
    key: Path
    answers: Path
    skipped: tuple[Mapping[str, str], ...]


@takes_fields_of(BlindPackRequest)
def blind_pack(
    real: str | Path, synthetic: str | Path, *, out: str | Path, progress: Progress = True, **fields: Any
) -> BlindPack:
    """Write unlabelled pictures of real and synthetic cases for readers; ``maisi-aug evaluate blind-pack``.

    Args:
        real: Real cases: cohort, nnU-Net dataset, MONAI data list, or folder of ``prepare``, image-label pairs or CTs.
        synthetic: Synthetic cases, of any of these kinds.
        out: New folder for the readers, with a picture per item, ``answers.csv`` and ``README.txt``. The answer key
            ``OUT_key.json`` is written next to it.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        The paths ``folder``, ``key`` and ``answers``; and ``skipped``, the cases that could not be read.

    Raises:
        RequestError, RecipeError: A field is invalid, or a keyword is unknown.
        EvaluationError: There are too few cases of a kind, or ``out`` or the key exists.
    """
    from maisi_aug.evaluation.cohort import blind_pack as packing

    asked = _read(blind_pack, BlindPackRequest, fields)
    folder = Path(out)
    packing.require_new_pack(folder)
    sets = _find_cases(real), _find_cases(synthetic)
    with listen_to_stages(progress) as notify:
        skipped = packing.write_blind_pack(*sets, folder, **dict(asked), notify=partial(notify, "items"))
    return BlindPack(folder, packing.name_key(folder), folder / packing.ANSWERS_NAME, tuple(skipped))


def blind_score(
    key: str | Path, answers: str | Path | Sequence[str | Path], *, margin: float = 0.2, out: str | Path | None = None
) -> Measurement:
    """Test whether readers can tell synthetic from real cases; ``maisi-aug evaluate blind-score``.

    Args:
        key: Answer key ``OUT_key.json`` that :func:`blind_pack` wrote.
        answers: A filled-in ``answers.csv``, or one per reader; the file's name is the reader's.
        margin: Largest deviation of the share of right answers from one half that does not matter, 0.01 to 0.49.
        out: Folder for ``reader-test.json`` and ``.md``, created if missing; None writes nothing.

    Returns:
        A :class:`Measurement`, in which ``figures["readers"]`` has a row per reader, with ``reader``, ``verdict``
        (such as ``cannot tell``), ``p_value``, ``num_unanswered`` and, under ``all``, the share of right answers.

    Raises:
        EvaluationError: A file is missing or damaged, or the answers do not belong to the key.
        CohortError: ``out`` holds something else.
    """
    from maisi_aug.evaluation.cohort import blind_pack as packing

    _require_out(out, packing.REPORT_NAME)
    several = [answers] if isinstance(answers, str | Path) else answers
    document = packing.measure_reader(Path(key), [Path(file) for file in several], margin=margin)
    return _save(Measurement(document, packing.to_report(document)), out)


def reviewers(cohort: str | Path, *, seed: int = 0, out: str | Path | None = None) -> Measurement:
    """Summarise reviewers' decisions, their agreement and the blinded test; ``maisi-aug evaluate reviewers``.

    Args:
        cohort: Folder whose cases were reviewed with ``maisi-aug view``, which wrote ``review.jsonl`` (decisions) or
            ``reader_test.jsonl`` (answers of the blinded test) into it.
        seed: Seed of the bootstrap intervals of kappa.
        out: Folder for ``reviewers.json`` and ``.md``, created if missing; None writes nothing.

    Returns:
        A :class:`Measurement`, in which ``figures["reviewers"]`` has a row per reviewer (``num_accepted``,
        ``num_rejected``, ``reasons``); ``figures["pairs"]`` one per pair, over the cases that both decided on
        (``num_both``, ``agreement``, ``kappa`` from ``low`` to ``high``, ``disagreements``); ``figures["readers"]`` one
        per reader of the blinded test.

    Raises:
        EvaluationError: The cases have not been reviewed.
        CohortError: A file of decisions is damaged, or ``out`` holds something else.
    """
    from maisi_aug.evaluation.review import reviewers as measurement

    _require_out(out, measurement.REPORT_NAME)
    document = measurement.measure_reviewers(Path(cohort), seed=seed)
    return _save(Measurement(document, measurement.to_report(document)), out)


class _Segmenter(NamedTuple):
    """A segmenter with its name and the labels that have a counterpart."""

    segment: Segment
    name: str
    labels: tuple[MatchedLabel, ...]
    unmatched: tuple[str, ...]

    @classmethod
    def open(cls, asked: SegmenterRequest, vocabulary: Vocabulary) -> _Segmenter:
        """Open a trained model or a folder of predictions."""
        from maisi_aug.evaluation.cohort.agreement import match_labels, segment_from_folder
        from maisi_aug.integrations.nnunet.prediction import NnUNetModel, read_label_values
        from maisi_aug.networks.pipeline import resolve_device

        if asked.predictions is not None:
            segment = segment_from_folder(asked.predictions)
            values = read_label_values(asked.predictions / "dataset.json")
            name = f"predictions in {asked.predictions}"
        else:
            assert asked.model is not None
            device, orientation = resolve_device(asked.device), asked.orientation.upper()
            network = NnUNetModel(asked.model, folds=asked.folds, orientation=orientation, device=device)
            values, name = network.label_values, f"nnU-Net model {network.folder}"

            def segment(case: EvaluatedCase, image: Volume) -> NDArray[np.uint8]:
                return network.predict(image)

        return cls(segment, name, *match_labels(values, vocabulary, mapping=asked.map))


def _require_one_process() -> None:
    """Raise where several processes would measure the same, each for itself.

    Raises:
        RequestError: ``torchrun`` has started this one.
    """
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise RequestError(
            f"evaluate fid: expected one process, found {count} of torchrun. Name the GPUs instead: --devices "
            "cuda:0,cuda:1"
        )


def _read(function: Callable[..., object], model: type[Model], fields: Mapping[str, Any]) -> Model:
    require_known(function, fields)
    return build_model(model, fields, source=function.__name__, error=RequestError)


def _find_cases(path: str | Path, *, vocabulary: Vocabulary | None = None) -> CaseSet:
    from maisi_aug.evaluation.cohort.case_sets import find_case_set

    return find_case_set(Path(path), vocabulary=vocabulary)


def _notes_of(*sets: CaseSet) -> tuple[str, ...]:
    """Return notes on cases that reviewers rejected and that are left out."""
    cohorts = [one.cohort for one in sets if one.cohort is not None]
    return tuple(dict.fromkeys(cohort.review_note for cohort in cohorts if cohort.review_note))


def _require_out(out: str | Path | None, name: str) -> None:
    from maisi_aug.evaluation.output.files import require_own_folder

    if out is not None:
        require_own_folder(Path(out), name)


def _save(measured: Measurement, out: str | Path | None) -> Measurement:
    return measured if out is None else replace(measured, files=measured.save(out))
