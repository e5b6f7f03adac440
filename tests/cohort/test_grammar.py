from __future__ import annotations

import pytest

from maisi_aug.cohort.grammar import (
    CaseRequest,
    LesionRequest,
    SizeRange,
    WrittenRequest,
    allot_cases,
    find_problems,
    label_names,
    parse_requests,
)
from maisi_aug.errors import RequestError, VocabularyError
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.vocabulary.sizes import measure_distribution, reference_distribution, volume_ml

VOCABULARY = MAISI.with_slots(
    {"kidney tumor": SlotBinding(129, hosts=(5, 14)), "sarcoma": SlotBinding(130, hosts=(200,))}
)


def parse_one(text: str) -> CaseRequest:
    (request,) = parse_requests([text], vocabulary=VOCABULARY)
    return request


def parse_size(text: str) -> SizeRange:
    size = parse_one(text).lesions[0].size
    assert size is not None
    return size


@pytest.mark.parametrize("name", ["hepatic tumor", "26", "Liver tumour", " hepatic_tumor "])
def test_percentile_is_that_of_the_largest_lesion_per_patient(name: str) -> None:
    lesion = parse_one(f"{name}:0.3").lesions[0]
    assert (lesion.label_id, lesion.label_name, lesion.count) == (26, "hepatic tumor", 1)
    assert lesion.size is not None
    assert (lesion.size.low_ml, lesion.size.high_ml) == (5.92, 5.92)
    assert (lesion.size.low_percentile, lesion.size.high_percentile) == (0.3, 0.3)
    assert lesion.size.at(0.0) == lesion.size.at(1.0) == 5.92


@pytest.mark.parametrize(
    ("text", "low_ml", "high_ml", "count"),
    [
        ("hepatic tumor:0.1-0.6", 1.456, 37.859, 1),
        ("hepatic tumor:0-1", 0.213, 1889.956, 1),
        ("hepatic tumor:.3x2", 5.92, 5.92, 2),
        ("lung tumor:8-20mm", volume_ml(8), volume_ml(20), 1),
        ("lung tumor:8mm-20mm", volume_ml(8), volume_ml(20), 1),
        ("lung tumor:8 – 20 MM", volume_ml(8), volume_ml(20), 1),
        ("lung tumor:8.5mm", volume_ml(8.5), volume_ml(8.5), 1),
        ("kidney tumor:4mL", 4.0, 4.0, 1),
        ("kidney tumor:1-3ml", 1.0, 3.0, 1),
        ("hepatic tumor:10-30mmx3", volume_ml(10), volume_ml(30), 3),
        ("hepatic tumor:4mL × 2", 4.0, 4.0, 2),
        ("lung tumor:1cm", volume_ml(10), volume_ml(10), 1),
        ("lung tumor:0.8-2 cm", volume_ml(8), volume_ml(20), 1),
        ("lung tumor:8mm-2cm", volume_ml(8), volume_ml(20), 1),
        ("lung tumor:1-3cmx3", volume_ml(10), volume_ml(30), 3),
        *(
            (f"kidney tumor:5{unit}", 5.0, 5.0, 1)
            for unit in ("cc", "CC", "ccm", "cm3", "cm^3", "cm³", "ml", "mL", "ML")
        ),
        ("kidney tumor:1-3ccx2", 1.0, 3.0, 2),
        ("kidney tumor:500mm3-2cm3x3", 0.5, 2.0, 3),
        ("kidney tumor:500mm³", 0.5, 0.5, 1),
        ("hepatic tumor:0.5L", 500.0, 500.0, 1),
        ("hepatic tumor", 1.11, 378.009, 1),
        ("hepatic tumor:x3", 1.11, 378.009, 3),
    ],
)
def test_sizes_are_read(text: str, low_ml: float, high_ml: float, count: int) -> None:
    lesion = parse_one(text).lesions[0]
    assert lesion.size is not None
    assert lesion.size.low_ml == pytest.approx(low_ml)
    assert lesion.size.high_ml == pytest.approx(high_ml)
    assert lesion.count == count


def test_plus_joins_what_one_case_holds_and_the_share_covers_all_of_it() -> None:
    joined, rest = parse_requests(["hepatic tumor:10mmx2 + spleen + 23:0.5@40%", "bone lesion"], vocabulary=VOCABULARY)
    assert [(lesion.label_name, lesion.count) for lesion in joined.lesions] == [
        ("hepatic tumor", 2),
        ("spleen", 1),
        ("lung tumor", 1),
    ]
    assert (joined.share, rest.share) == (0.4, None)
    assert joined.text == "hepatic tumor:10mmx2 + spleen + 23:0.5@40%"


def test_organ_must_be_present_and_has_no_size() -> None:
    assert parse_one("left kidney").lesions == (LesionRequest(14, "left kidney", None, 1),)


def test_percentile_range_is_walked_in_percentiles() -> None:
    size = parse_size("hepatic tumor:0.2-0.6")
    reference = reference_distribution("hepatic tumor")
    for u in (0.0, 0.1, 0.5, 1.0):
        assert size.at(u) == pytest.approx(reference.volume_ml(0.2 + 0.4 * u))


@pytest.mark.parametrize("text", ["hepatic tumor:8-20mm", "hepatic tumor:0.27-4.2mL"])
def test_range_of_mm_or_ml_is_walked_in_log_volume(text: str) -> None:
    size = parse_size(text)
    assert (size.at(0.0), size.at(1.0)) == (size.low_ml, size.high_ml)
    assert size.at(0.5) == pytest.approx((size.low_ml * size.high_ml) ** 0.5)


def test_own_distribution_replaces_the_reference_under_any_name_of_the_label() -> None:
    own = measure_distribution([[1.0], [2.0], [3.0]], "renal tumor", "a test")
    (request,) = parse_requests(["kidney tumor:0.5"], vocabulary=VOCABULARY, distributions={"RCC": own})
    assert request.lesions[0].size is not None
    assert request.lesions[0].size.low_ml == 2.0
    assert request.lesions[0].size.distribution is own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hepatic tumor:5", r"Size 5 in 'hepatic tumor:5': .* found 5\. Did you mean 5mm or 5mL\?"),
        ("hepatic tumor:0.2-5", r"Size 5 in .* Did you mean 0.2-5mm or 0.2-5mL\?"),
        ("hepatic tumor:30%", r"found '30%'. Did you mean 0\.3\?"),
        ("hepatic tumor:10-30%", r"Did you mean 0\.1-0\.3\?"),
        ("hepatic tumor:-5mm", "found '-5mm'. A size cannot be negative"),
        ("hepatic tumor:-0.1", "found '-0.1'. A size cannot be negative"),
        ("hepatic tumor:0.6-0.1", r"smaller size first, found '0.6-0.1'. Did you mean 0\.1-0\.6\?"),
        ("hepatic tumor:20-8mL", r"Did you mean 8-20mL\?"),
        ("hepatic tumor:8mm-20mL", "both ends of a range must be diameters, or both volumes, found 'mm' and 'ml'"),
        ("hepatic tumor:0mm", "above 0 and at most 400 mm, found '0mm'"),
        ("hepatic tumor:0-5mL", "above 0 and at most 30000 mL, found '0-5mL'"),
        ("hepatic tumor:401mm", "at most 400 mm, found '401mm'"),
        ("hepatic tumor:2in", "expected a size such as .* found '2in'. Correct"),
        ("hepatic tumor:41cm", "at most 400 mm, found '41cm'"),
        ("hepatic tumor:3cm-20mm", r"smaller size first, found '3cm-20mm'. Did you mean 20-30mm\?"),
        ("hepatic tumor:2-1cc", r"Did you mean 1-2mL\?"),
        ("hepatic tumor:1cm-2cm3", "both ends of a range must be diameters, or both volumes, found 'cm' and 'cm3'"),
        ("hepatic tumor:nan", "found 'nan'"),
        ("hepatic tumor:", "the size after ':' is missing"),
        ("hepatic tumor:0.3x0", "a count from x1 to x50, found 'x0'"),
        ("hepatic tumor:0.3x51", "found 'x51'"),
        ("hepatic tumor:0.3,lung tumor:0.2", "repeat --labels or join with"),
        ("", "expected a label name, found ''"),
        ("hepatic tumor:0.3+", "expected a label name, found ''"),
        (":0.3", "expected a label name, found ':0.3'"),
        ("liver:0.3", r"'liver' cannot have a size, found '0.3'.* Did you mean 'hepatic tumor:0.3'\?"),
        ("spleen:8mm", "found '8mm'.* Leave the size out"),
        ("dummy1:0.3", "a placeholder slot without a meaning"),
        ("face", "face' is 'body'"),
        ("0", "'0' is 'background'"),
        ("sarcoma:0.3", "Sizes of 'sarcoma': .* Give the size in mm or mL"),
        ("sarcoma", "Sizes of 'sarcoma'"),
        ("hepatic tumor@0", "a share above 0 and at most 1, found '@0'"),
        ("hepatic tumor@40", "found '@40'. Did you mean @40%"),
        ("hepatic tumor@140%", "found '@140%'"),
        ("hepatic tumor@-0.1", "expected a share such as @0.4, @40% or @2/5 at the end, found '@-0.1'"),
        ("hepatic tumor@", "found '@'"),
        ("hepatic tumor@0.3+liver", r"found '@0.3\+liver'. Write the share last"),
        ("hepatic tumor@0.3+liver@0.2", "only one share is allowed, at the end, found 2"),
    ],
)
def test_unreadable_request_is_one_sentence_with_a_way_out(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_one(text)


def test_unknown_label_offers_the_closest_names() -> None:
    with pytest.raises(VocabularyError, match="'hepatic tumr': .* Did you mean 'hepatic tumor'"):
        parse_one("hepatic tumr:0.3")


def test_no_request_is_refused() -> None:
    with pytest.raises(RequestError, match="At least one label request is required, such as 'hepatic tumor:0.3'"):
        parse_requests([], vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["liver@0.6", "spleen@0.5"], "Shares: the sum must be at most 1, found 1.1 over 2 requests"),
        (["liver@0.6", "spleen@20%"], "Shares: if every request has a share, the sum must be 1, found 0.8"),
        (["liver@0.6", "spleen@0.4", "aorta"], "Shares: nothing is left for 'aorta'"),
    ],
)
def test_shares_that_do_not_add_up_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_requests(texts, vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("texts", "num_cases", "counts"),
    [
        (["liver"], 4, [4]),
        (["liver", "spleen", "aorta"], 10, [4, 3, 3]),
        (["liver@0.3", "spleen@0.7"], 10, [3, 7]),
        (["liver@0.6", "spleen", "aorta"], 11, [7, 2, 2]),
        (["liver@1%", "spleen"], 10, [1, 9]),
        (["liver@0.333", "spleen", "aorta"], 9, [3, 3, 3]),
        (["liver", "spleen"], 2, [1, 1]),
    ],
)
def test_cases_follow_the_shares_and_every_request_gets_one(
    texts: list[str], num_cases: int, counts: list[int]
) -> None:
    assert allot_cases(parse_requests(texts, vocabulary=VOCABULARY), num_cases) == counts


def test_all_cases_are_dealt_out_for_any_number() -> None:
    requests = parse_requests(["liver@0.17", "spleen@33%", "aorta", "colon", "heart"], vocabulary=VOCABULARY)
    for num_cases in range(5, 120):
        counts = allot_cases(requests, num_cases)
        assert sum(counts) == num_cases
        assert min(counts) >= 1


@pytest.mark.parametrize("num_cases", [-1, 0, 1])
def test_too_few_cases_are_refused(num_cases: int) -> None:
    requests = parse_requests(["liver", "spleen"], vocabulary=VOCABULARY)
    with pytest.raises(RequestError, match=f"expected at least 2, .* found {num_cases}"):
        allot_cases(requests, num_cases)


@pytest.mark.parametrize("text", ["liver", "hepatic tumor:0.3@0.5", "liver+23:8-20mmx2@2/5", ":3", "a:@"])
def test_request_that_is_taken_apart_can_be_put_together_again(text: str) -> None:
    written = WrittenRequest.read(text)
    assert str(written) == text
    assert WrittenRequest.read(str(written)) == written
    assert WrittenRequest.is_name(text) is (text == "liver")


def test_names_are_read_by_the_same_grammar_as_requests() -> None:
    texts = ["hepatic tumor : 0.3 + spleen@0.5", "bone lesion:9mm"]
    names = label_names(texts)
    assert names == ["hepatic tumor", "spleen", "bone lesion"]
    parsed = parse_requests(texts, vocabulary=VOCABULARY)
    assert [lesion.label_name for request in parsed for lesion in request.lesions] == names
    with pytest.raises(RequestError, match="only one share is allowed, at the end, found 2"):
        label_names(["liver@0.3@0.2"])


def test_every_request_is_looked_at_by_itself_for_problems() -> None:
    first, second = find_problems(["livr", "liver@0.4", "lung tumor:900mm"], VOCABULARY)
    assert first.startswith("labels[0]: Label 'livr'")
    assert second.startswith("labels[2]: Label request 'lung tumor:900mm': expected a size above 0")
