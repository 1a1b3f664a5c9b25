"""Downloads against a server that breaks lines, lies and forgets."""

import hashlib
import json
import random

import pytest

from processing.errors import AgriClipError
from processing.public_data.download import LOCK, Lock, fetch, verify

CONTENT = random.Random(0).randbytes(300_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def place(tmp_path):
    return tmp_path / "source" / "files", Lock.of(tmp_path)


def get(file, place, **said):
    pauses = []
    fetched = fetch(file, *place, sleep=pauses.append, **said)
    return fetched, pauses


def parts(folder):
    return sorted(path.name for path in folder.rglob("*") if ".part" in path.name)


def test_a_file_is_fetched_checked_and_remembered(site, place):
    site.files["a/data.bin"] = CONTENT
    done = []
    fetched, pauses = get(
        site.file("a/data.bin", sha256=SHA256, size=len(CONTENT)), place, progress=lambda *p: done.append(p)
    )
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.verified, fetched.sha256, fetched.resumed, pauses) == ("sha256", SHA256, 0, [])
    assert done[-1] == ("a/data.bin", len(CONTENT), len(CONTENT))
    assert parts(place[0]) == []
    known = json.loads((place[1].folder / LOCK).read_text())["files"]["source/files/a/data.bin"]
    assert known["sha256"] == SHA256 and known["size"] == len(CONTENT) and known["url"].endswith("/a/data.bin")


def test_a_broken_line_is_resumed_where_it_broke(site, place):
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [100_000, 50_000]
    fetched, pauses = get(site.file("data.bin", md5=MD5), place)
    assert fetched.path.read_bytes() == CONTENT and fetched.verified == "md5"
    assert [asked for _, asked, _ in site.seen] == [None, "bytes=100000-", "bytes=150000-"]
    assert all(condition is not None for _, asked, condition in site.seen if asked)
    assert len(pauses) == 2


def test_a_later_run_goes_on_from_the_part(site, place):
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [120_000] + [0] * 9
    with pytest.raises(AgriClipError, match="3 attempts .* what came is kept"):
        get(site.file("data.bin"), place, attempts=3)
    assert (place[0] / "data.bin.part").stat().st_size == 120_000
    site.broken.clear()
    site.seen.clear()
    fetched, _ = get(site.file("data.bin"), place)
    assert fetched.path.read_bytes() == CONTENT and fetched.resumed == 120_000
    assert site.seen == [("data.bin", "bytes=120000-", site.seen[0][2])]


def test_a_file_that_changed_meanwhile_is_fetched_anew(site, place):
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [120_000] + [0] * 9
    with pytest.raises(AgriClipError):
        get(site.file("data.bin"), place, attempts=2)
    site.broken.clear()
    site.files["data.bin"] = other = CONTENT[::-1]
    fetched, _ = get(site.file("data.bin"), place)
    assert fetched.path.read_bytes() == other  # If-Range no longer holds, so the server sent all


def test_a_server_without_ranges_sends_all_again(site, place):
    site.ranges = False
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [100_000]
    fetched, _ = get(site.file("data.bin", sha256=SHA256), place)
    assert fetched.path.read_bytes() == CONTENT


def test_a_part_without_a_validator_is_not_trusted(site, place):
    site.etags = False
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [100_000]
    fetched, _ = get(site.file("data.bin", sha256=SHA256), place)
    assert fetched.path.read_bytes() == CONTENT
    assert [asked for _, asked, _ in site.seen] == [None, None]


def test_a_server_that_does_not_tell_the_length(site, place):
    site.length = False
    site.files["data.bin"] = CONTENT
    assert get(site.file("data.bin", sha256=SHA256), place)[0].size == len(CONTENT)


def test_a_part_that_is_already_whole(site, place):
    site.files["data.bin"] = CONTENT
    site.broken["data.bin"] = [len(CONTENT) - 1] + [0] * 9
    with pytest.raises(AgriClipError):
        get(site.file("data.bin"), place, attempts=2)
    (place[0] / "data.bin.part").write_bytes(CONTENT)  # written, but not renamed: the server answers 416
    site.broken.clear()
    assert get(site.file("data.bin", sha256=SHA256), place)[0].path.read_bytes() == CONTENT


def test_a_404_is_told_at_once(site, place):
    with pytest.raises(AgriClipError, match=r"HTTP 404 .* no longer there.*--from"):
        get(site.file("data.bin"), place)
    assert len(site.seen) == 1


def test_a_busy_server_is_asked_again_with_growing_pauses(site, place):
    site.files["data.bin"] = CONTENT
    site.errors["data.bin"] = [503, 429, 500]
    _, pauses = get(site.file("data.bin"), place, pause=1.0)
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 7}])
def test_another_file_than_expected_is_refused_and_not_kept(site, place, known):
    site.files["data.bin"] = CONTENT
    with pytest.raises(AgriClipError, match="MD5|SHA-256|registry says 7"):
        get(site.file("data.bin", **known), place)
    assert not (place[0] / "data.bin").exists() and parts(place[0]) == []


def test_without_a_checksum_the_first_download_counts(site, place):
    site.files["data.bin"] = CONTENT
    file = site.file("data.bin")
    assert get(file, place)[0].verified == "first download"
    (place[0] / "data.bin").unlink()
    again = Lock.of(place[1].folder)
    assert get(file, (place[0], again))[0].verified == "lock"
    (place[0] / "data.bin").unlink()
    site.files["data.bin"] = b"another"
    with pytest.raises(AgriClipError, match="is not the file that was first downloaded on"):
        get(file, (place[0], Lock.of(place[1].folder)))
    assert not (place[0] / "data.bin").exists()


def test_a_file_that_is_there_is_checked_and_not_fetched(site, place):
    site.files["data.bin"] = CONTENT
    file = site.file("data.bin", sha256=SHA256)
    get(file, place)
    site.seen.clear()
    assert get(file, place)[0].sha256 == SHA256 and site.seen == []
    (place[0] / "data.bin").write_bytes(b"spoilt")
    with pytest.raises(AgriClipError, match="SHA-256"):
        get(file, place)


def test_a_full_disk_is_noticed_before_the_download(site, place):
    site.files["data.bin"] = CONTENT
    with pytest.raises(AgriClipError, match="needs 300,000 bytes, but only 1,000 are free"):
        get(site.file("data.bin"), place, disk_usage=lambda _: (10**6, 10**6, 1000))


def test_a_file_without_an_address_and_a_damaged_lock(place, tmp_path, site):
    file = site.file("x.bin").model_copy(update={"url": None})
    with pytest.raises(AgriClipError, match="no address"):
        fetch(file, *place)
    (tmp_path / LOCK).write_text("{}")
    with pytest.raises(AgriClipError, match="is damaged"):
        Lock.of(tmp_path)


def test_size_alone_is_a_check(tmp_path, site):
    path = tmp_path / "x.bin"
    path.write_bytes(b"1234")
    assert verify(site.file("x.bin", size=4), path, Lock.of(tmp_path)).verified == "size"
    with pytest.raises(AgriClipError, match="4 bytes instead of 5"):
        verify(site.file("x.bin", size=5), path, Lock.of(tmp_path))
