from __future__ import annotations

from pathlib import Path

from tests.benchmarks.kills import ENGINE_KILLS, KILLS, Commands, RayNodes, Row, _judge, hash_all


def test_times_in_texts_do_not_count_and_everything_else_does(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    found = []
    for text in (
        '{"seconds":{"mask":0.2},"a":1,"at":"2026-11-30T20:00:00+00:00"}',
        '{"seconds":{"mask":9.5},"a":1,"at":"2027-01-01T00:00:00+00:00"}',
        '{"seconds":{"mask":9.5},"a":2,"at":"2027-01-01T00:00:00+00:00"}',
    ):
        path.write_text(text)
        found.append(hash_all(tmp_path))
    assert found[0] == found[1] != found[2]


def test_what_is_left_or_differs_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("Error: it is there already.\n")
    row, expected = Row("export"), {"out": "folder", "out/a": "1"}
    _judge(row, expected, {}, expected, 0, "went on", tmp_path / "log")
    _judge(row, expected, expected, expected, 1, "was done", tmp_path / "log")
    assert (row.num_resumed, row.num_done, row.num_same, row.num_left, row.faults) == (1, 1, 2, 0, [])
    _judge(row, expected, {}, {**expected, ".out.part": "folder"}, 0, "left", tmp_path / "log")
    _judge(row, expected, {}, {"out": "folder", "out/a": "2"}, 0, "differs", tmp_path / "log")
    assert (row.num_same, row.num_left, len(row.faults)) == (3, 1, 2)
    assert sum(KILLS.values()) == sum(ENGINE_KILLS.values()) == 200


def test_every_command_that_is_killed_can_be_called(tmp_path: Path) -> None:
    commands = Commands(tmp_path, RayNodes(tmp_path / "ray")).by_name()
    assert list(commands) == [*KILLS, *ENGINE_KILLS]
    case = commands["devices: the driver"]()
    assert case.words[:1] == ["synthesize"]
    assert case.words[-2:] == ["--devices", "cpu,cpu"]
    assert case.place == tmp_path / "place"
