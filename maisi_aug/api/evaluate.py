"""Measurements of cohorts and of bundles; ``ma.evaluate.fid(...)`` is ``maisi-aug evaluate fid``.

Each function gives back a :class:`Measurement`. With ``out`` it also writes it into a folder, whose files
:func:`maisi_aug.report` takes as evidence; nothing is measured where they would replace files of something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maisi_aug.api.displays import Progress, listen_to_stages
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
from maisi_aug.system.progress import report_nothing

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
    """What was measured.

    Attributes:
        figures: As JSON types.
        text: The same as Markdown, which notebooks show.
        charts: Drawings (SVG) by the names of their files.
        pictures: Images by the names of their files.
        further: Other documents (JSON) by the names of their files.
        notes: What the user should know, a sentence each.
        files: What was written, where a folder was named.
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
        """Cases that could not be measured; the figures name them, with the reasons."""
        own = self.figures.get("skipped", ())
        parts = (part for part in self.figures.values() if isinstance(part, Mapping))
        return len(own) + sum(len(part.get("skipped", ())) for part in parts)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write figures, text, charts and pictures into a folder.

        Returns:
            The files.

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
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement | None:
    """2.5D FID and KID by plane, with an interval, and what real cases differ by; ``maisi-aug evaluate fid``.

    Args:
        real: Real cases: a folder of volumes, a prepared or an nnU-Net dataset.
        synthetic: Synthetic cases: a cohort, or the same kinds.
        out: Folder for the results.
        progress: True for bars on a terminal or in a notebook, False for none, or something to call with
            ``(stage, done, total)``.
        **fields: See below.

    Returns:
        The measurement; None in all processes of ``torchrun`` but the first.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    from maisi_aug.evaluation.fid import measurement
    from maisi_aug.evaluation.fid.extractors import load_extractor
    from maisi_aug.evaluation.fid.feature_store import default_cache, join_processes
    from maisi_aug.evaluation.fid.slices import SliceProtocol
    from maisi_aug.networks.pipeline import resolve_device

    asked = _read(fid, FidRequest, fields)
    protocol = SliceProtocol(asked.spacing_mm, asked.shape, asked.centre_share, asked.every, asked.resampling)
    _require_out(out, measurement.REPORT_NAME)
    sets = _find_cases(real), _find_cases(synthetic)
    with join_processes(resolve_device(asked.device)) as (processes, place), listen_to_stages(progress) as notify:
        document = measurement.measure_fid(
            *sets,
            load_extractor(asked.extractor, weights=asked.weights, sha256=asked.sha256, device=place),
            protocol,
            cache=None if asked.no_cache else asked.cache or default_cache(),
            processes=processes,
            seed=asked.seed,
            notify=notify if processes.is_first else report_nothing,
        )
    if document is None:
        return None
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
    """Fréchet radiomics distance, precision, recall, density, coverage; ``maisi-aug evaluate distribution``.

    Args:
        real: Real cases, ten or more: any dataset or folder of volumes.
        synthetic: Synthetic cases, ten or more.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Whether lesions and organs are like real ones, by two one-sided tests; ``maisi-aug evaluate equivalence``.

    Args:
        real: Real cases with label maps.
        synthetic: Synthetic cases with label maps.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """HU of organs and lesions against published ranges, a file's, or real cases'; ``maisi-aug evaluate hu``.

    >>> import maisi_aug as ma
    >>> measured = ma.evaluate.hu("cohort", out="hu")
    >>> {"liver", "hepatic tumor"} <= {row["label"] for row in measured.figures["labels"]}
    True
    >>> [path.name for path in measured.files]
    ['hu.svg', 'hu.md', 'hu.json']

    Args:
        cases: A cohort, or any labelled folder or dataset.
        out: Folder for the results; with ``reference`` it gets ``hu_ranges.json`` too, to be given as ``ranges`` later.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Realised against requested sizes, and whether lesions can be seen; ``maisi-aug evaluate lesions``.

    >>> import maisi_aug as ma
    >>> measured = ma.evaluate.lesions("cohort")
    >>> measured.figures["measurement"], measured.num_skipped
    ('lesions', 0)

    Args:
        cohort: Folder that ``synthesize`` or ``insert`` wrote.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Dice of an independent segmenter against the given label maps; ``maisi-aug evaluate agreement``.

    Args:
        cases: A cohort, or any labelled folder or dataset.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below; ``map`` may be a mapping of labels to names, too.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Which lesions a segmenter finds, by size or by what twins differ in; ``maisi-aug evaluate detection-curve``.

    Args:
        cohort: Folder that ``insert`` or ``synthesize`` wrote; best one with ``twins``.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below; ``map`` may be a mapping of labels to names, too.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Whether synthetic cases repeat training cases; ``maisi-aug evaluate memorization``.

    Args:
        cases: Synthetic cases.
        train: Cases that the generator was trained on.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    from maisi_aug.evaluation.cohort import memorization as measurement

    asked = _read(memorization, MemorizationRequest, {"train": train, **fields})
    _require_out(out, measurement.REPORT_NAME)
    synthetic = _find_cases(cases)
    known = _find_cases(asked.train, vocabulary=synthetic.vocabulary)
    unseen = None if asked.held_out is None else _find_cases(asked.held_out, vocabulary=synthetic.vocabulary)
    with listen_to_stages(progress) as notify:
        document, pairs = measurement.measure_memorization(synthetic, known, unseen, notify=notify)
    charts = {"memorization.svg": measurement.draw_chart(document)}
    pictures = {measurement.PICTURE_NAME: pairs}
    notes = _notes_of(synthetic, known, *([] if unseen is None else [unseen]))
    return _save(Measurement(document, measurement.to_report(document), charts, pictures, notes=notes), out)


@takes_fields_of(ReconstructionRequest)
def reconstruction(
    cases: str | Path,
    *,
    bundle: str | Path,
    out: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> Measurement:
    """What a bundle's autoencoder leaves of CTs; ``maisi-aug evaluate reconstruction``.

    Args:
        cases: CTs: a folder of volumes, any dataset or cohort.
        bundle: The bundle whose autoencoder is tried.
        out: Folder for the results.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.evaluation.cohort import reconstruction as measurement
    from maisi_aug.evaluation.fid.lpips import load_perceptual_distance
    from maisi_aug.networks.pipeline import resolve_device

    asked = _read(reconstruction, ReconstructionRequest, {"bundle": bundle, **fields})
    _require_out(out, measurement.REPORT_NAME)
    found, place = load_bundle(asked.bundle), resolve_device(asked.device)
    case_set = _find_cases(cases, vocabulary=found.vocabulary)
    perceptual = None
    if asked.lpips_weights is not None:
        perceptual = load_perceptual_distance(asked.lpips_weights, sha256=asked.sha256, device=place)
    with listen_to_stages(progress) as notify:
        autoencoder = measurement.Autoencoder.load(found, place)
        report = partial(notify, "cases")
        document, worst = measurement.measure_reconstruction(case_set, autoencoder, perceptual, report)
    charts = {"reconstruction.svg": measurement.draw_chart(document)}
    pictures = {measurement.PICTURE_NAME: worst}
    notes = _notes_of(case_set)
    return _save(Measurement(document, measurement.to_report(document), charts, pictures, notes=notes), out)


@dataclass(frozen=True)
class BlindPack:
    """A reader test on pictures.

    Attributes:
        folder: To be handed to readers.
        key: Which items are synthetic; kept back.
        answers: What readers fill in, in the folder.
        skipped: Cases that could not be read, with the reasons; others took their places.
    """

    folder: Path
    key: Path
    answers: Path
    skipped: tuple[Mapping[str, str], ...]


@takes_fields_of(BlindPackRequest)
def blind_pack(
    real: str | Path, synthetic: str | Path, *, out: str | Path, progress: Progress = True, **fields: Any
) -> BlindPack:
    """Unlabelled pictures of real and synthetic cases for readers; ``maisi-aug evaluate blind-pack``.

    Args:
        real: Real cases: any dataset or folder of volumes.
        synthetic: Synthetic cases.
        out: New folder; the key goes beside it.
        progress: As for :func:`fid`.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    """Whether readers can tell synthetic from real cases; ``maisi-aug evaluate blind-score``.

    Args:
        key: What :func:`blind_pack` wrote.
        answers: A filled-in ``answers.csv``, or one of each reader.
        margin: Share of right answers beyond one half that does not matter, 0.01 to 0.49.
        out: Folder for the results.

    Raises:
        EvaluationError: The answers do not go with the key.
    """
    from maisi_aug.evaluation.cohort import blind_pack as packing

    _require_out(out, packing.REPORT_NAME)
    several = [answers] if isinstance(answers, str | Path) else answers
    document = packing.measure_reader(Path(key), [Path(file) for file in several], margin=margin)
    return _save(Measurement(document, packing.to_report(document)), out)


def reviewers(cohort: str | Path, *, seed: int = 0, out: str | Path | None = None) -> Measurement:
    """What reviewers rejected and agree on, and how readers told images apart; ``maisi-aug evaluate reviewers``.

    Args:
        cohort: Folder whose cases were looked at with ``maisi-aug view``.
        seed: Of the intervals.
        out: Folder for the results.

    Raises:
        MaisiAugError: Nobody has looked at the cases, or a file is damaged.
    """
    from maisi_aug.evaluation.review import reviewers as measurement

    _require_out(out, measurement.REPORT_NAME)
    document = measurement.measure_reviewers(Path(cohort), seed=seed)
    return _save(Measurement(document, measurement.to_report(document)), out)


class _Segmenter(NamedTuple):
    """A segmenter, what it is called, and which of its labels have a counterpart."""

    segment: Segment
    name: str
    labels: tuple[MatchedLabel, ...]
    unmatched: tuple[str, ...]

    @classmethod
    def open(cls, asked: SegmenterRequest, vocabulary: Vocabulary) -> _Segmenter:
        """A trained model, or a folder of what one has predicted."""
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


def _read(function: Callable[..., object], model: type[Model], fields: Mapping[str, Any]) -> Model:
    require_known(function, fields)
    return build_model(model, fields, source=function.__name__, error=RequestError)


def _find_cases(path: str | Path, *, vocabulary: Vocabulary | None = None) -> CaseSet:
    from maisi_aug.evaluation.cohort.case_sets import find_case_set

    return find_case_set(Path(path), vocabulary=vocabulary)


def _notes_of(*sets: CaseSet) -> tuple[str, ...]:
    """Where reviewers rejected cases of a cohort, which are left out."""
    cohorts = [one.cohort for one in sets if one.cohort is not None]
    return tuple(dict.fromkeys(cohort.review_note for cohort in cohorts if cohort.review_note))


def _require_out(out: str | Path | None, name: str) -> None:
    from maisi_aug.evaluation.output.files import require_own_folder

    if out is not None:
        require_own_folder(Path(out), name)


def _save(measured: Measurement, out: str | Path | None) -> Measurement:
    return measured if out is None else replace(measured, files=measured.save(out))
