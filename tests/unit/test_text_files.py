# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import openmarigold
from openmarigold.checkpoints.weight_files import read_json
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.readers.rgbd_folder import read_config
from openmarigold.data.shard_writer import ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import CheckpointError, DataError, OpenMarigoldError, one_line
from openmarigold.evaluation.report import read_report
from openmarigold.results.manifest import MANIFEST_NAME, Manifest
from openmarigold.text_files import DamagedTextError, from_table, parse_json, parse_json_lines, parse_toml
from openmarigold.training.monitor import keep_lines
from openmarigold.training.recipe import read_recipe

DAMAGED_JSON = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep but closed": b"[" * 500 + b"]" * 500,
    "400 digits": b'{"step": ' + b"9" * 400 + b"}",
    "5000 digits": b"-" + b"9" * 5000,
    "NUL in a text": b'{"a": "\\u0000"}',
    "NUL": b"\0" * 100,
    "no UTF-8": b'{"a": "\xff"}',
    "half": b'{"step": 3, "lo',
    "nothing": b"",
}
DAMAGED_TOML = {
    "deep": b"a = " + b"[" * 100_000,
    "deep but closed": b"a = " + b"[" * 150 + b"]" * 150,
    "deep key": b"a." * 5000 + b"a = 1",
    "400 digits": b"seed = " + b"9" * 400,
    "5000 digits": b"seed = " + b"9" * 5000,
    "NUL in a text": b'a = "\\u0000"',
    "no UTF-8": b'a = "\xff"',
    "half": b'kind = "dep',
}


@pytest.mark.parametrize("damage", DAMAGED_JSON)
def test_damaged_json_is_one_error_on_one_line(damage: str) -> None:
    with pytest.raises(DamagedTextError) as caught:
        parse_json(DAMAGED_JSON[damage])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("damage", DAMAGED_TOML)
def test_damaged_toml_is_one_error_on_one_line(damage: str) -> None:
    with pytest.raises(DamagedTextError) as caught:
        parse_toml(DAMAGED_TOML[damage])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "value", [{"a": [1, -2.5, None, True]}, "[" * 200, "\\u0000", "\udcff", 10**300, [[[]]], {"é": "\n"}]
)
def test_what_is_whole_is_read_as_before(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


def test_damaged_lines_are_passed_over_and_the_rest_is_kept() -> None:
    lines = [b'{"n": 0}', *DAMAGED_JSON.values(), b'{"n": 1}\r', b'{"n": 2', b'{"n": 3}']
    assert [entry["n"] for entry in parse_json_lines(b"\n".join(lines))] == [0, 1, 3]


def test_no_other_module_parses_json_or_toml() -> None:
    """Each parser of its own would have to know all of these faults."""
    root = Path(openmarigold.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Attribute) and node.attr in ("load", "loads")
            if is_call and isinstance(node.value, ast.Name) and node.value.id in ("json", "tomllib", "tomli"):
                found.append(path.relative_to(root).as_posix())
    assert set(found) == {"text_files.py"}


@pytest.mark.parametrize("damage", DAMAGED_JSON)
def test_each_reader_of_a_json_file_says_which_file_and_keeps_to_its_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(DAMAGED_JSON[damage])
    with pytest.raises(CheckpointError, match=r"summary\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(DataError, match=r"summary\.json is not valid JSON"):
        read_report(tmp_path)


@pytest.mark.parametrize("damage", DAMAGED_TOML)
def test_each_reader_of_a_toml_file_says_which_file(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(DAMAGED_TOML[damage])
    for read in (read_config, read_recipe):
        with pytest.raises(OpenMarigoldError, match=r"some\.toml cannot be read"):
            read(path)


def test_a_manifest_keeps_its_whole_lines(tmp_path: Path) -> None:
    whole = [{"result": name, "status": "done", "outputs": {}} for name in "ab"]
    content = b"\n".join([json.dumps(whole[0]).encode(), *DAMAGED_JSON.values(), json.dumps(whole[1]).encode()])
    (tmp_path / MANIFEST_NAME).write_bytes(content + b"\n")
    assert Manifest(tmp_path).lines() == whole


def test_a_log_of_training_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\n".join(DAMAGED_JSON.values()) + b'\n[3]\n{"step": 2}\n{"step": 3}\n')
    keep_lines(path, before=3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED_JSON.values(),
        b'{"bytes": 1024}',
        b'{"bytes": 1024, "samples": [{"key": 1}], "rejected": [], "sha256": ""}',
        b'{"bytes": 1024, "samples": [], "rejected": [{"name": "a", "reason": "b"}], "sha256": ""}',
    ],
)
def test_a_shard_with_a_damaged_index_is_made_again(content: bytes, tmp_path: Path) -> None:
    writer = ShardWriter(
        tmp_path, name="x", split="train", encodings={"depth": MapEncoding(kind="float32")}, settings={"seed": 1}
    )
    writer.begin()
    writer.write(0, [])
    assert writer.is_done(0)
    size = (tmp_path / "shard-00000.tar").stat().st_size
    (tmp_path / "shard-00000.json").write_bytes(content.replace(b"1024", str(size).encode()))
    assert not writer.is_done(0)
    with pytest.raises(DataError, match="are not done"):
        writer.finish(1)
    writer.write(0, [])
    manifest = writer.finish(1)
    assert manifest["counts"]["samples"] == 0
    for damaged in DAMAGED_JSON.values():
        (tmp_path / "manifest.json").write_bytes(damaged)
        with pytest.raises(DataError, match=r"manifest\.json"):
            ShardedDataset(tmp_path)


def test_errors_of_libraries_have_the_same_text_in_every_run() -> None:
    texts = {one_line(OSError(f"cannot identify image file {object()!r}\nat all")) for _ in range(3)}
    assert texts == {"OSError: cannot identify image file <object object> at all"}


@dataclass(frozen=True)
class Part:
    size: tuple[int, int]


@dataclass(frozen=True)
class Whole:
    part: Part
    share: float = 1.0
    limit: int | None = None


def test_tables_become_dataclasses() -> None:
    table = {"part": {"size": [2, 3]}, "share": 1, "limit": 4}
    assert from_table(Whole, table, where="w", error=DataError) == Whole(Part((2, 3)), 1.0, 4)
    for change, message in (
        (
            {"part": {"size": [2]}},
            r"w: part\.size=\[2\] is not accepted; it must be a list of a whole number and a whole",
        ),
        ({"part": {"sise": [2, 3]}}, r"w: unknown key part\.sise; did you mean part\.size\?"),
        ({"part": {}}, r"w: part\.size is missing"),
        ({"part": 1}, r"w: \[part\] must be a table, not 1"),
        ({"share": float("nan")}, "w: share=nan is not accepted; it must be a number"),
        ({"limit": True}, "w: limit=True is not accepted; it must be a whole number"),
    ):
        with pytest.raises(DataError, match=message):
            from_table(Whole, table | change, where="w", error=DataError)
