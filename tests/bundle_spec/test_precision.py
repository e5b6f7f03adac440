from __future__ import annotations

import subprocess
import sys

import pytest

from maisi_aug.bundle_spec.precision import choose_precision, computes_in, require_sound_cudnn
from maisi_aug.errors import RecipeError


@pytest.mark.parametrize(
    ("device", "bears_half", "expected"),
    [
        ("cpu", True, "float32"),
        ("cpu", False, "float32"),
        ("cuda", True, "float16"),
        ("cuda:1", True, "float16"),
        ("cuda", False, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_auto_is_float16_on_cuda_and_float32_elsewhere(device: str, bears_half: bool, expected: str) -> None:
    assert choose_precision("auto", device, bears_half=bears_half) == expected


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_taken_whatever_the_bundle_says(wanted: str) -> None:
    assert choose_precision(wanted, "cuda", bears_half=False) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "device"), [("float16", "mps"), ("bfloat16", "mps")])
def test_precision_that_a_device_could_only_emulate_is_refused(wanted: str, device: str) -> None:
    message = f"precision: expected one that the device '{device}' computes in, found '{wanted}'.* Use --precision flo"
    with pytest.raises(RecipeError, match=message):
        choose_precision(wanted, device, bears_half=True)  # type: ignore[arg-type]


def test_half_precision_of_a_processor_is_taken_only_where_it_computes_in_it() -> None:
    for wanted in ("float16", "bfloat16"):
        if computes_in(wanted, "cpu"):
            assert choose_precision(wanted, "cpu", bears_half=True) == wanted
        else:
            with pytest.raises(RecipeError, match=f"'cpu' computes in, found '{wanted}'"):
                choose_precision(wanted, "cpu", bears_half=True)


def test_names_are_known_without_torch() -> None:
    program = "import sys, maisi_aug.bundle_spec.precision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(("version", "spelt"), [(90800, "9.8.0"), (91002, "9.10.2")])
def test_cudnn_that_computes_bfloat16_wrongly_is_refused(version: int, spelt: str) -> None:
    with pytest.raises(
        RecipeError, match=f"expected cuDNN 9.11 or later .* found cuDNN {spelt}, whose 3D convolutions"
    ):
        require_sound_cudnn(version)


@pytest.mark.parametrize("version", [None, 8907, 90701, 91100, 92400])
def test_other_cudnn_is_taken(version: int | None) -> None:
    require_sound_cudnn(version)
