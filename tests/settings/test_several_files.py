"""Queues, pools and transforms in files of their own, as users of the reference have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import ConfigFile
from tests.settings.config_files import read_config_file

QUEUES = """[
  {"id": "a", "queue_name": "queue-a", "igw_base_url": "http://gateway", "request_path_url": "/v1/completions",
   "worker_pool_id": "gpu", "gate_type": "prometheus-saturation", "gate_params": {"pool": "p", "threshold": "0.8"}},
  {"queue_name": "queue-b", "labels": {"tier": "batch"}, "result_queue_name": "results-b"}
]"""
POOLS = '[{"id": "gpu", "workers": 32}, {"id": "default", "workers": 8, "gate_type": "constant"}]'
TRANSFORMS = '{"requestTransforms": [{"name": "gcs_uri_multipart", "params": {"providers": ["gcs"]}}]}'


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, text in {"queues": QUEUES, "pools": POOLS, "transforms": TRANSFORMS}.items():
        made[name] = tmp_path / f"{name}.json"
        made[name].write_text(text)
    return made


def read(*paths: Path) -> ConfigFile:
    return read_config_file(", ".join(str(path) for path in paths))


def test_separate_files_are_one_configuration(files: dict[str, Path]) -> None:
    config = read(*files.values())
    assert [queue.queue_name for queue in config.queues] == ["queue-a", "queue-b"]
    assert {pool.id: pool.workers for pool in config.pools} == {"gpu": 32, "default": 8}
    assert [one.name for one in config.request_transforms] == ["gcs_uri_multipart"]


def test_a_queue_may_use_a_pool_of_another_file_but_no_unknown_pool(files: dict[str, Path]) -> None:
    with pytest.raises(InvalidSetting, match="worker_pool_id"):
        read(files["queues"])


def test_a_field_in_two_files_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"retry_queue_name: {name}")
    with pytest.raises(
        InvalidSetting, match=r"retry_queue_name: expected one file that sets it, got 'one' in .*/one and 'two' in"
    ):
        read(tmp_path / "one", tmp_path / "two")


def test_a_name_in_two_files_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InvalidSetting, match=r"pools.id|queues.queue_name"):
        read(files["queues"], files["pools"], files["pools"])


def test_an_error_names_its_file_and_the_path_in_it(files: dict[str, Path], tmp_path: Path) -> None:
    more, broken = tmp_path / "more.yaml", tmp_path / "broken.yaml"
    more.write_text("queues: [{queue_name: c}, {queue_name: d, worker_pool_id: nowhere}]\nbatch_size: x\n")
    with pytest.raises(InvalidSetting) as caught:
        read(files["queues"], files["pools"], more)
    found = [str(one) for one in (caught.value, *caught.value.others)]
    assert found[0].startswith(f"{more}: batch_size: expected an integer")
    assert found[1].startswith(f"{more}: queues[1].worker_pool_id: expected one of")
    assert len(found) == 2

    broken.write_text("queues: [}\n")
    with pytest.raises(InvalidSetting) as caught:
        read(files["queues"], broken)
    assert str(caught.value).startswith(
        f"{broken}: expected valid YAML or JSON, got a syntax error on line 1, column 10"
    )
