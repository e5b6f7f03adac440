"""Whatever is damaged in a file, its reader reads it or says in one sentence what is wrong, within seconds."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maisi_aug.errors import MaisiAugError
from maisi_aug.system.content import ContentError
from tests.fuzz.readers import READERS, Reader

MAX_SECONDS = 5.0
"""Of processor time, so that a busy machine is no fault of a reader."""
NUM_EXAMPLES = 200
NUM_THOROUGH = 10_000


@pytest.fixture(scope="module")
def num_examples(request: pytest.FixtureRequest) -> int:
    """Examples of each reader; more where the fuzz tests are asked for by name."""
    return NUM_THOROUGH if request.config.option.markexpr.strip() == "fuzz" else NUM_EXAMPLES


@pytest.mark.fuzz
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_input_is_read_or_named_in_a_sentence(reader: Reader, num_examples: int) -> None:
    files = reader.build()

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=num_examples == NUM_EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )
    @given(random=st.randoms(use_true_random=False))
    def survive(random: Random) -> None:
        damaged = reader.damage(files, random)
        begun = time.process_time()
        with TemporaryDirectory() as folder:
            try:
                reader.try_on(damaged, Path(folder))
            except ContentError:
                raise  # a reason without a sentence
            except MaisiAugError:
                pass
        assert time.process_time() - begun < MAX_SECONDS

    survive()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_input_is_valid_before_it_is_damaged(reader: Reader, tmp_path: Path) -> None:
    files = reader.build()
    assert any(name.endswith(reader.damaged) for name in files)
    reader.try_on(files, tmp_path)


def test_every_reader_is_tried() -> None:
    assert len({reader.name for reader in READERS}) == len(READERS) == 23
