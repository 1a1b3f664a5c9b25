"""Half-done work: kept whole or not at all, taken up by its own plan only, shared out in runs."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mapping.band_store import BandStore, fingerprint, remove_left_over, require_disk
from processing.errors import AgriClipError
from processing.plans import differences, fingerprint_code

PLAN = {"model": "abc", "grid": [10, 20], "settings": {"tile": 128}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / ".maps-partial"


def test_units_come_back_as_they_were_saved(folder):
    arrays = {
        "mean": np.random.default_rng(0).random((2, 5, 7)).astype(np.float32),
        "turned": np.arange(12, dtype=np.int16).reshape(3, 4).T,
        "flags": np.array([True, False]),
        "none": np.zeros((0,), np.uint8),
    }
    arrays["mean"][0, 0, 0] = np.nan
    with BandStore(folder, PLAN, 3) as store:
        assert not store.done(1) and store.pending() == [0, 1, 2]
        store.save(1, arrays)
        store.save(2, {})
        assert store.done(1) and store.pending() == [0]
        found = store.load(1)
        assert found.keys() == arrays.keys() and store.load(2) == {}
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(store.load_rows(1, "mean", slice(1, 3), axis=1), arrays["mean"][:, 1:3])
        np.testing.assert_array_equal(store.load_rows(1, "turned", slice(2, 4)), arrays["turned"][2:4])
        with pytest.raises(AgriClipError, match="Unit 0 in .* is not there or damaged"):
            store.load(0)
        with pytest.raises(AgriClipError, match="has no unit 3: it has 3"):
            store.save(3, arrays)
        store.finish()
    assert not folder.exists() and folder.parent.is_dir()


def test_work_goes_on_where_it_stopped_and_torn_units_are_done_again(folder):
    class Stop(Exception):
        pass

    with pytest.raises(Stop), BandStore(folder, PLAN, 6) as store:
        for unit in store.pending()[:5]:
            store.save(unit, {"x": np.full(1000, unit, np.float32)})
        raise Stop
    short, flipped, empty = (folder / f"{unit:06d}.safetensors" for unit in (0, 2, 3))
    short.write_bytes(short.read_bytes()[:-7])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    empty.write_bytes(b"")
    (folder / f".000004.safetensors.{os.getpid()}.partial").write_bytes(b"half")
    with BandStore(folder, PLAN, 6) as store:
        assert store.pending() == [0, 2, 3, 5]
        assert (store.load(4)["x"] == 4).all()
        assert not list(folder.glob(".*.partial"))


def test_another_plan_is_refused_with_what_differs(folder):
    with BandStore(folder, PLAN, 2) as store:
        store.save(0, {})
    other = {**PLAN, "model": "xyz", "settings": {"tile": 64, "stride": 32}}
    said = r"differs in model \(abc then, xyz now\), settings tile \(128 then, 64 now\), settings stride \(None then"
    with pytest.raises(AgriClipError, match=said), BandStore(folder, other, 2):
        pass
    with pytest.raises(AgriClipError, match=r"units \(2 then, 3 now\)"), BandStore(folder, PLAN, 3):
        pass
    with BandStore(folder, PLAN, 2) as store:
        assert store.pending() == [1], "a refusal takes nothing away"
    with BandStore(folder, other, 2, restart=True) as store:
        assert store.pending() == [0, 1]
    assert json.loads((folder / "manifest.json").read_text())["model"] == "xyz"


def test_units_of_another_plan_that_lie_about_are_not_done(folder, tmp_path):
    with BandStore(folder, PLAN, 1) as store:
        store.save(0, {"x": np.ones(3)})
    with BandStore(tmp_path / "b", {**PLAN, "model": "xyz"}, 1) as store:
        (tmp_path / "b" / "000000.safetensors").write_bytes((folder / "000000.safetensors").read_bytes())
        assert not store.done(0)


def test_a_folder_without_its_plan_is_begun_anew(folder):
    folder.mkdir(parents=True)
    (folder / "000000.safetensors").write_bytes(b"?")
    with BandStore(folder, PLAN, 1) as store:
        assert store.pending() == [0]


def test_units_that_are_not_good_are_done_again(folder):
    with BandStore(folder, PLAN, 3) as store:
        for unit, bad in enumerate((0, 1, 0)):
            store.save(unit, {"bad": np.array(bad)})
        assert store.pending() == []
    with BandStore(folder, PLAN, 3, keep=lambda arrays: not arrays["bad"]) as store:
        assert store.pending() == [1]


def test_a_running_process_is_not_disturbed(folder):
    with BandStore(folder, PLAN, 1):
        pass
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (folder / "lock").write_text(str(other.pid))
        for restart in (False, True):
            with pytest.raises(AgriClipError, match=f"Process {other.pid} is at work"):
                BandStore(folder, PLAN, 1, restart=restart).__enter__()
    finally:
        other.kill()
        other.wait()
    with BandStore(folder, PLAN, 1) as store:
        assert (folder / "lock").read_text() == str(os.getpid())
        assert store.pending() == [0]
    assert not (folder / "lock").exists()


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("units", [1, 2, 10])
def test_processes_share_what_is_missing_in_runs(folder, units, processes):
    with BandStore(folder, PLAN, units) as store:
        for unit in range(0, units, 3):
            store.save(unit, {})
    with BandStore(folder, PLAN, units) as store:
        runs = [store.pending(index, processes) for index in range(processes)]
        missing = [unit for unit in range(units) if unit % 3]
        assert [unit for run in runs for unit in run] == missing, "in order, each once"
        assert max(map(len, runs)) - min(map(len, runs)) <= 1
        if missing:
            store.save(missing[0], {})
            assert [store.pending(index, processes) for index in range(processes)] == [
                [unit for unit in run if unit != missing[0]] for run in runs
            ], "what another has done since changes nobody's share"


def test_only_the_main_process_makes_and_removes(folder):
    waited = []
    side = SimpleNamespace(
        is_main_process=False,
        process_index=1,
        num_processes=2,
        wait_for_everyone=lambda: waited.append(folder.exists()),
    )
    with BandStore(folder, PLAN, 4) as main:
        store = BandStore(folder, PLAN, 4, state=side)
        with store:
            assert not store.is_main and store.pending() == [2, 3] and len(waited) == 2
            store.save(2, {"x": np.ones(2)})
            store.finish()
        assert folder.exists() and (folder / "lock").exists()
        assert main.done(2), "units of other processes are seen"
        main.finish()


def test_too_little_disk_is_said_before_work_begins(folder, monkeypatch):
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("mapping.band_store.shutil.disk_usage", lambda path: free)
    with pytest.raises(AgriClipError, match="needs about 2e-06 GB in .* where 1e-06 GB are free"):
        BandStore(folder, PLAN, 1, bytes_needed=2000).__enter__()
    assert not folder.exists()
    with BandStore(folder, PLAN, 1, bytes_needed=900) as store:
        store.save(0, {"x": np.zeros(2000, np.uint8)})
    with BandStore(folder, PLAN, 1, bytes_needed=2000) as store:
        assert store.pending() == [], "what is already there need not be free"
    with pytest.raises(AgriClipError, match="name another folder"):
        require_disk(folder / "not" / "yet", 1001)


def test_fingerprints_tell_changes_of_files(tmp_path):
    tile, mosaic = tmp_path / "a.tif", tmp_path / "m.vrt"
    tile.write_bytes(b"1")
    mosaic.write_text("<x/>")
    before = fingerprint([tile, mosaic])
    elsewhere = tmp_path / "0.vrt"
    elsewhere.write_text("<x/>")
    assert fingerprint([elsewhere, tile]) == before, "a virtual raster is what it says, wherever it lies"
    elsewhere.write_text("<y/>")
    assert fingerprint([elsewhere, tile]) != before
    tile.write_bytes(b"12")
    assert fingerprint([tile, mosaic]) != before
    assert fingerprint_code("mapping/tiling.py") != fingerprint_code("mapping/tiling.py", "processing")
    assert differences({"a": 1}, {"a": 1}) == [] and differences({"a": "x" * 99}, {"a": 1}) == ["a"]


def test_only_what_dead_processes_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = tmp_path / f".a.{os.getpid()}.rows.partial"
    left = [tmp_path / f".a.{dead.pid}.{kind}" for kind in ("rows.partial", "cog.partial", "cog.partial.ovr.tmp")]
    other = tmp_path / f".ab.{dead.pid}.rows.partial"
    for path in (mine, other, *left):
        path.touch()
    remove_left_over(tmp_path / "a.tif")
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
