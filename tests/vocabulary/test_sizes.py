from __future__ import annotations

import math

import numpy as np
import pytest

from maisi_aug.errors import RequestError
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.vocabulary.sizes import (
    SizeDistribution,
    diameter_mm,
    measure_distribution,
    reference_distribution,
    reference_labels,
    volume_ml,
)

LABELS = (
    "hepatic tumor",
    "kidney tumor",
    "lung tumor",
    "pancreatic tumor",
    "colon cancer primaries",
    "bone lesion",
)
STAND_INS = {"pancreatic tumor", "colon cancer primaries", "bone lesion"}


def test_diameter_is_that_of_the_sphere_of_equal_volume() -> None:
    assert volume_ml(10.0) == pytest.approx(math.pi / 6)
    assert diameter_mm(volume_ml(23.0)) == pytest.approx(23.0)


def test_every_tumour_has_a_reference() -> None:
    assert reference_labels() == LABELS
    vocabulary = MAISI.with_slots({"kidney tumor": SlotBinding(129, (5, 14))})
    assert {vocabulary.name_of(tumor) for tumor in vocabulary.tumor_ids} == set(LABELS)


def test_thirtieth_percentile_of_hepatic_tumours_is_5_92_ml() -> None:
    assert reference_distribution("hepatic tumor").volume_ml(0.3) == 5.92


@pytest.mark.parametrize("label", LABELS)
def test_tabulated_percentiles_are_exact(label: str) -> None:
    distribution = reference_distribution(label)
    for step, volume in enumerate(distribution.quantiles_ml):
        assert distribution.volume_ml(step * 0.05) == volume


@pytest.mark.parametrize("label", LABELS)
def test_between_quantiles_the_logarithm_is_interpolated(label: str) -> None:
    distribution = reference_distribution(label)
    percentiles = np.linspace(0, 1, 173)
    expected = np.exp(np.interp(percentiles, np.linspace(0, 1, 21), np.log(distribution.quantiles_ml)))
    found = [distribution.volume_ml(float(percentile)) for percentile in percentiles]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("label", LABELS)
def test_percentile_is_the_inverse_of_volume(label: str) -> None:
    distribution = reference_distribution(label)
    for percentile in np.linspace(0, 1, 97):
        assert distribution.percentile(distribution.volume_ml(float(percentile))) == pytest.approx(percentile, abs=1e-9)
    assert distribution.percentile(1e-9) == 0.0
    assert distribution.percentile(1e9) == 1.0


@pytest.mark.parametrize("label", LABELS)
def test_stand_ins_say_that_they_are(label: str) -> None:
    distribution = reference_distribution(label)
    if label in STAND_INS:
        assert distribution.stand_in_for == label
        assert distribution.label == "hepatic tumor"
        assert distribution.source.startswith("estimated, not measured: hepatic tumor cut at")
    else:
        assert distribution.stand_in_for is None
        assert distribution.label == label


def test_stand_in_is_the_cut_distribution() -> None:
    base, cut = reference_distribution("hepatic tumor"), reference_distribution("bone lesion")
    low, high = base.percentile(0.2), base.percentile(15.0)
    assert cut.quantiles_ml[0] >= 0.2
    assert cut.quantiles_ml[-1] == pytest.approx(15.0)
    assert cut.volume_ml(0.5) == pytest.approx(base.volume_ml((low + high) / 2))


@pytest.mark.parametrize("percentile", [-0.01, 1.01, float("nan")])
def test_percentile_outside_0_to_1_is_refused(percentile: float) -> None:
    with pytest.raises(RequestError, match=rf"fraction in \[0, 1\], found {percentile:g}"):
        reference_distribution("hepatic tumor").volume_ml(percentile)


def test_label_without_reference_is_refused_with_a_way_out() -> None:
    with pytest.raises(RequestError, match=r"Sizes of 'lung tumour': .* Did you mean 'lung tumor'.*--size-reference"):
        reference_distribution("lung tumour")


@pytest.mark.parametrize("quantiles", [(1.0,) * 20, (0.0,) * 21, (2.0, *(1.0,) * 20), (*(1.0,) * 20, math.inf)])
def test_impossible_quantiles_are_refused(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="expected 21 positive volumes in mL that never fall"):
        SizeDistribution("hepatic tumor", quantiles, "a test")


def test_measured_distribution_takes_the_largest_lesion_of_each_patient() -> None:
    rng = np.random.default_rng(3)
    patients = [list(rng.lognormal(1.0, 1.0, size=count)) for count in (1, 4, 2, 7, 1, 3)]
    found = measure_distribution([*patients, []], "kidney tumor", "nnUNet_raw/Dataset007")
    expected = np.quantile([max(volumes) for volumes in patients], np.linspace(0, 1, 21))
    np.testing.assert_allclose(found.quantiles_ml, expected, rtol=1e-12)
    assert found.source == "nnUNet_raw/Dataset007, 6 patients"


def test_one_patient_is_a_distribution_of_one_size() -> None:
    found = measure_distribution([[2.5]], "kidney tumor", "a test")
    assert found.volume_ml(0.37) == pytest.approx(2.5)
    assert found.percentile(2.5) == 0.0
    assert found.percentile(2.6) == 1.0


def test_patients_without_lesions_are_no_distribution() -> None:
    with pytest.raises(RequestError, match="no patient with a lesion in 2 label maps"):
        measure_distribution([[], []], "kidney tumor", "a test")
