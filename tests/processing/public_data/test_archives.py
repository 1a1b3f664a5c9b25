"""Archives, honest and hostile."""

import io
import shutil
import stat
import subprocess
import tarfile
import zipfile

import pytest

from processing.errors import AgriClipError
from processing.public_data.archives import is_archive, require_unpackable, stem_of, unpack


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            file.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for info, content in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_zip_and_tar_give_the_same_files(tmp_path):
    members = {"a/b.txt": b"one", "a/c/d.txt": b"two", "./e.txt": b"three"}
    expected = {"a/b.txt": b"one", "a/c/d.txt": b"two", "e.txt": b"three"}
    archives = [make_zip(tmp_path / "x.zip", members)]
    archives += [
        make_tar(tmp_path / name, members.items(), mode)
        for name, mode in (("x.tar", "w"), ("x.tgz", "w:gz"), ("x.tar.bz2", "w:bz2"), ("x.tar.xz", "w:xz"))
    ]
    for i, archive in enumerate(archives):
        assert is_archive(archive) and stem_of(archive) == "x"
        assert contents(unpack(archive, tmp_path / str(i))) == expected
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "C:/evil", "a\\..\\evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_outside_the_folder_are_refused(tmp_path, name, kind):
    if kind == "zip":
        archive = make_zip(tmp_path / "x.zip", {"good.txt": b"1", name: b"2"})
    else:
        archive = make_tar(tmp_path / "x.tar.gz", [("good.txt", b"1"), (name, b"2")])
    with pytest.raises(AgriClipError, match="outside of its folder; it is not unpacked"):
        unpack(archive, tmp_path / "out" / "x")
    assert contents(tmp_path / "out") == {}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "../../secret"
    with pytest.raises(AgriClipError, match="'link', which is a link or a device"):
        unpack(make_tar(tmp_path / "x.tar.gz", [(info, b"")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(AgriClipError, match="is a link"):
        unpack(make_zip(tmp_path / "x.zip", {info: b"/etc/passwd"}), tmp_path / "out")


def test_a_bomb_is_stopped_while_it_grows(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"zeros": bytes(5_000_000)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(AgriClipError, match="unpacks to more than 1,000,000 bytes"):
        unpack(archive, tmp_path / "out", limit=1_000_000)
    assert not (tmp_path / "out").exists()
    assert unpack(archive, tmp_path / "out").is_dir()


def test_a_full_disk_a_doubled_name_and_an_old_folder(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"data": bytes(1000)})
    with pytest.raises(AgriClipError, match="only 10 are free"):
        unpack(archive, tmp_path / "out", disk_usage=lambda _: (0, 0, 10))
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "y.zip", "w") as file:
        file.writestr("a", b"1")
        file.writestr("a", b"2")
    with pytest.raises(AgriClipError, match="'a' twice"):
        unpack(tmp_path / "y.zip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    assert set(contents(unpack(archive, tmp_path / "out"))) == {"data"}


def test_what_is_damaged_or_no_archive(tmp_path):
    whole = make_zip(tmp_path / "x.zip", {"data": bytes(range(256)) * 100}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    tar = make_tar(tmp_path / "y.tar.gz", [("data", bytes(range(256)) * 100)]).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(tar[: len(tar) // 2])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("cut.zip", "cut.tar.gz", "text.zip"):
        with pytest.raises(AgriClipError, match="cannot be unpacked|damaged or no archive"):
            unpack(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_zstandard_needs_its_tool(tmp_path, monkeypatch):
    if shutil.which("zstd"):
        make_tar(tmp_path / "x.tar", [("a", b"1")], "w")
        subprocess.run(["zstd", "-q", tmp_path / "x.tar", "-o", tmp_path / "x.tar.zst"], check=True)
        assert contents(unpack(tmp_path / "x.tar.zst", tmp_path / "out")) == {"a": b"1"}
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(AgriClipError, match="tar --zstd -xf"):
        require_unpackable(["x.tar.zst"])
    require_unpackable(["x.zip"])
