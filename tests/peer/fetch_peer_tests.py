"""Lay out the common tests of the installed transformers version in `_peer/<version>`, once, whoever asks first.

transformers' source distribution carries every `tests/test_*.py` of its top folder, so the tests are those of exactly
the installed version. What it lacks (helpers of other folders) is replaced by small stubs. Nothing of it is committed.

    python fetch_peer_tests.py [--sdist path/to/transformers-X.tar.gz]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import transformers
from filelock import FileLock

CACHE = Path(__file__).resolve().parent / "_peer"
KEEP = (
    "test_modeling_common.py",
    "test_configuration_common.py",
    "test_processing_common.py",
    "test_image_processing_common.py",
    "test_memory_cleanup_mixin.py",
    "test_training_mixin.py",
)

STUBS = {
    "tests/__init__.py": "",
    "tests/generation/__init__.py": "",
    # An encoder never inherits it; ModelTesterMixin only asks issubclass.
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/__init__.py": "",
    # Upstream: torch.export, ONNX, OpenVINO, ExecuTorch and AOTI; here torch.export through the same exporter.
    "tests/exporters/test_export.py": '''
import copy, unittest
import torch
from transformers import set_seed


class ExportTesterMixin:
    """Stand-in for upstream's ExportTesterMixin: `DynamoExporter` on every class, and parity with eager."""

    def test_torch_export(self):
        if not getattr(self, "test_torch_exportable", True):
            self.skipTest("test_torch_exportable is False")
        from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                set_seed(1234)
                config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
                inputs = self._prepare_for_class(inputs_dict, model_class)
                inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
                model = model_class(copy.deepcopy(config)).eval()
                with torch.no_grad():
                    set_seed(1234)
                    eager = model(**copy.deepcopy(inputs))
                exported = DynamoExporter().export(model, copy.deepcopy(inputs), DynamoConfig(dynamic=False))
                with torch.no_grad():
                    set_seed(1234)
                    out = exported.program.module()(**copy.deepcopy(inputs))
                for key, value in eager.items():
                    if isinstance(value, torch.Tensor):
                        torch.testing.assert_close(out[key], value, atol=1e-4, rtol=1e-4)
''',
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": """
# Upstream lists common settings a configuration must keep; these exist on every PreTrainedConfig in v5.
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
    "dtype": "float16",
}
""",
    # The processor tests import it from <root>/utils.
    "utils/fetch_hub_objects_for_ci.py": '''
import os, tempfile, zlib


def url_to_local_path(url, *args, **kwargs):
    """Offline stand-in: a deterministic picture for any picture address."""
    import numpy as np
    from PIL import Image
    seed = zlib.crc32(url.encode())
    name = os.path.join(tempfile.gettempdir(), f"peer_{seed:08x}.png")
    if not os.path.exists(name):
        partial = f"{name}.{os.getpid()}.png"
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype="uint8")).save(partial)
        os.replace(partial, name)
    return name
''',
}


class PeerTestsUnavailable(RuntimeError):
    """The source distribution could not be had; the message says why."""


def ensure_peer_tests(sdist: str | None = None) -> Path:
    """Return the folder that holds `tests/` of the installed transformers, downloading it at the first call.

    Safe with several test processes: one downloads while the others wait, and the folder appears whole or not at all.

    Raises:
        PeerTestsUnavailable: If the download fails.
    """
    folder = CACHE / transformers.__version__
    if folder.is_dir() and sdist is None:
        return folder
    CACHE.mkdir(exist_ok=True)
    with FileLock(str(CACHE / ".lock"), timeout=300):
        if folder.is_dir() and sdist is None:
            return folder
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as partial:
            root = Path(partial) / "root"
            _unpack(Path(sdist) if sdist else _download(Path(partial)), root)
            for name, text in STUBS.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(root, folder)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    command += [f"transformers=={transformers.__version__}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerTestsUnavailable(f"pip could not download transformers' source distribution: {error}") from error
    found = sorted(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerTestsUnavailable(f"pip could not download transformers' source distribution: {last}")
    return found[0]


def _unpack(sdist: Path, root: Path) -> None:
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = PurePosixPath(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2] in KEEP:
                content = archive.extractfile(member)
                if content is not None:
                    path = root / "tests" / parts[2]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())
    missing = [name for name in KEEP if not (root / "tests" / name).is_file()]
    if missing:
        raise PeerTestsUnavailable(f"{sdist.name} does not hold {', '.join(missing)}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sdist", help="a source distribution that is here already")
    print(f"peer tests of transformers {transformers.__version__} in {ensure_peer_tests(parser.parse_args().sdist)}")
