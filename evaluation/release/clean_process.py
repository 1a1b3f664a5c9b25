"""Does a release answer without this project as it does with it?

The folder is loaded by a fresh interpreter that ignores the environment (`python -I`), stands in an empty folder, and
cannot import any package of this project, however it is installed: an import hook refuses them. It must load model,
processor and pipelines by `trust_remote_code` and give the outputs that the packages give here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.release.checks import Check
from evaluation.release.folder import AUTO_OF, Release

__all__ = ["check_clean_process", "example_image"]

#: Largest difference of any output that counts as none: the rounding of one thread more or less.
TOLERANCE = 1e-5
REPORT = "Annual precipitation 45 in; annual mean temperature 14.1 degC; soil pH 6.4."
_TIMEOUT = 600
_BLOCKED = ("agriclip_cli", "evaluation", "mapping", "modeling_agriclip", "processing", "spaces_demo", "training")

_SCRIPT = """
import json, sys

spec = json.load(open("spec.json"))

class Blocked:
    # However the project is installed, it is not to be had here.
    def find_spec(self, name, path=None, target=None):
        if name in spec["blocked"]:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads(spec["threads"])
transformers.utils.logging.set_verbosity_error()
auto = getattr(transformers, spec["auto"])
model = auto.from_pretrained(spec["base"], trust_remote_code=True).eval()
if spec["adapter"]:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, spec["adapter"]).eval()
processor = transformers.AutoProcessor.from_pretrained(spec["base"], trust_remote_code=True)
image = np.load("image.npy", allow_pickle=False)
given = {"images": [image], "text": [spec["report"]]} if spec["text"] else {"images": [image]}
inputs = processor(**given) if spec["text"] else processor.image_processor(**given)
with torch.no_grad():
    output = model(**inputs)
tensors = {f"input.{k}": v for k, v in inputs.items() if torch.is_tensor(v)}
tensors |= {f"output.{k}": v.contiguous().clone() for k, v in output.items() if torch.is_tensor(v)}
save_file(tensors, "clean.safetensors")
answers = {}
for task, call in spec["tasks"].items():
    pipe = transformers.pipeline(task, model=spec["base"], trust_remote_code=True, device="cpu")
    positional = [image if value == "@image" else value for value in call["positional"]]
    named = {key: image if value == "@image" else value for key, value in call["named"].items()}
    answer = pipe(*positional, **named)
    json.dumps(answer, default=lambda value: value.tolist())
    answers[task] = answer
ours = sorted(name for name in sys.modules if name.split(".")[0] in spec["blocked"])
kind = type(model.get_base_model() if spec["adapter"] else model).__module__
print("@" + json.dumps({"ours": ours, "module": kind, "answers": answers}, default=lambda value: value.tolist()))
"""


def check_clean_process(release: Release) -> Check:
    """Load a release where nothing of this project can be imported, and compare its outputs.

    Args:
        release: The release. The base of an adapter must lie on this machine; else the check says it was not made.

    Returns:
        The check, with the largest difference of any output.
    """
    name = "clean process"
    base = release.base_folder if release.kind == "adapter" else release.path
    if base is None:
        detail = f"not made: the base {release.base} is not on this machine"
        return Check(name, True, detail, "load base and adapter once by hand")
    auto = AUTO_OF.get(release.architecture, "AutoModel")
    if auto == "AutoModelForPreTraining":
        auto = "AutoModel"  # pre-training hides patches at random; its towers are the same
    with tempfile.TemporaryDirectory(prefix="agriclip-release-") as place:
        return _compare(release, Path(place), Path(base).resolve(), auto, name)


def _compare(release: Release, place: Path, base: Path, auto: str, name: str) -> Check:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoProcessor

    text = auto != "AutoModelForImageClassification"
    processor = AutoProcessor.from_pretrained(base)
    image = example_image(processor.image_processor)
    np.save(place / "image.npy", image)
    tasks = {task: _call(task) for task in release.tasks}
    spec = {
        "base": str(base),
        "adapter": str(_adapter_folder(release)) if release.kind == "adapter" else "",
        "auto": auto,
        "report": REPORT,
        "text": text,
        "tasks": tasks,
        "blocked": _BLOCKED,
        "threads": torch.get_num_threads(),
    }
    (place / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _SCRIPT],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, False, f"loading took more than {_TIMEOUT} s", "try again on an idle machine")
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or ["no message"]
        return Check(name, False, f"the folder does not load by itself: {said[-1][:200]}", "prepare the release again")
    told = json.loads(lines[-1][1:])
    if told["ours"] or not told["module"].startswith("transformers_modules"):
        return Check(name, False, f"the folder used {(told['ours'] or [told['module']])[0]} of this project")
    expected = _reference(release, base, auto, image, text)
    difference, where = _largest(expected, load_file(place / "clean.safetensors"))
    answers = json.loads(json.dumps(_answers(base, tasks, image), default=lambda value: value.tolist()))
    other, at = _difference(answers, told["answers"])
    if other > difference:
        difference, where = other, at
    same = difference <= TOLERANCE
    detail = f"outputs differ by {difference:.3g}" + (f" in {where}" if difference else "")
    detail += f"; {len(expected)} tensors and {len(tasks)} pipelines compared"
    return Check(name, same, detail, "" if same else "prepare the release again with this version")


def example_image(processor: Any) -> NDArray[np.float32]:
    """A random image (C, 16, 16) of the channels that an image processor takes by default, in its stored numbers."""
    from processing.sensors_agriclip import get_sensor, resolve_channels

    sensor = get_sensor(processor.sensor)
    chosen = getattr(processor, "channels", None)
    specs = sensor.channels if chosen is None else resolve_channels(chosen, sensor)
    noise = np.random.default_rng(0).normal(size=(max(len(specs), 3), 16, 16))
    if not specs:
        return noise.astype(np.float32)
    physical = [spec.mean + 0.5 * spec.std * band for spec, band in zip(specs, noise, strict=False)]
    stored = [(band - spec.offset) / spec.scale for spec, band in zip(specs, physical, strict=True)]
    return np.stack(stored).astype(np.float32)


def _call(task: str) -> dict[str, Any]:
    """How a pipeline is asked for the comparison; `@image` stands for the image."""
    from processing import pipelines_agriclip as pipelines

    if task == pipelines.SUITABILITY:
        return {"positional": [REPORT], "named": {"image": "@image"}}
    if task == pipelines.ZERO_SHOT:
        return {"positional": ["@image"], "named": {"candidate_labels": ["soybean field", "forest"]}}
    if task == pipelines.SEGMENTATION:
        return {"positional": ["@image"], "named": {"queries": ["soybean field", "forest"]}}
    return {"positional": ["@image"], "named": {}}


def _adapter_folder(release: Release) -> Path:
    from evaluation.release.folder import _adapters

    return _adapters(release.path)[0].resolve()


def _reference(release: Release, base: Path, auto: str, image: NDArray[np.float32], text: bool) -> dict[str, Any]:
    """The same tensors by the packages of this process."""
    import torch
    import transformers

    import modeling_agriclip  # noqa: F401 - registers the classes

    model = getattr(transformers, auto).from_pretrained(base).eval()
    if release.kind == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, _adapter_folder(release)).eval()
    processor = transformers.AutoProcessor.from_pretrained(base)
    inputs = processor(images=[image], text=[REPORT]) if text else processor.image_processor(images=[image])
    with torch.no_grad():
        output = model(**inputs)
    tensors = {f"input.{key}": value for key, value in inputs.items() if torch.is_tensor(value)}
    return tensors | {f"output.{key}": value for key, value in output.items() if torch.is_tensor(value)}


def _answers(base: Path, tasks: dict[str, Any], image: NDArray[np.float32]) -> dict[str, Any]:
    """What the pipelines of this process say."""
    from transformers import AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY, pipeline

    answers = {}
    for task, call in tasks.items():
        # By its class: a configuration that names code of its own would otherwise ask for trust_remote_code.
        chosen = PIPELINE_REGISTRY.check_task(task)[1]["impl"]
        pipe = pipeline(
            task,
            model=_loaded(base, task),
            processor=AutoProcessor.from_pretrained(base),
            pipeline_class=chosen,
            device="cpu",
        )
        positional = [image if value == "@image" else value for value in call["positional"]]
        given = {
            key: image if isinstance(value, str) and value == "@image" else value
            for key, value in call["named"].items()
        }
        answers[task] = pipe(*positional, **given)
    return answers


def _loaded(base: Path, task: str) -> Any:
    import transformers

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (auto,) = config["custom_pipelines"][task]["pt"]
    return getattr(transformers, auto).from_pretrained(base)


def _largest(expected: dict[str, Any], found: dict[str, Any]) -> tuple[float, str]:
    """Largest difference of two sets of tensors, and where; infinite where one lacks something."""
    worst, where = 0.0, ""
    for key in sorted(set(expected) | set(found)):
        if key not in expected or key not in found or expected[key].shape != found[key].shape:
            return float("inf"), key
        one, other = expected[key].detach().double().cpu(), found[key].double()
        if (one.isnan() != other.isnan()).any():
            return float("inf"), key
        gap = float((one - other).nan_to_num().abs().max()) if one.numel() else 0.0
        if gap > worst:
            worst, where = gap, key
    return worst, where


def _difference(one: Any, other: Any, where: str = "") -> tuple[float, str]:
    """Largest difference of the numbers of two JSON contents; infinite where anything else differs."""
    if isinstance(one, bool) or not isinstance(one, int | float | dict | list):
        return (0.0 if one == other else float("inf")), where
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return float("inf"), where
        pairs = [(one[key], other[key], f"{where}.{key}".lstrip(".")) for key in one]
    elif isinstance(one, list):
        if not isinstance(other, list) or len(one) != len(other):
            return float("inf"), where
        pairs = [(first, second, where) for first, second in zip(one, other, strict=True)]
    else:
        if isinstance(other, bool) or not isinstance(other, int | float):
            return float("inf"), where
        both_missing = one != one and other != other
        return (0.0 if both_missing else abs(one - other)), where
    return max((_difference(*pair) for pair in pairs), key=lambda found: found[0], default=(0.0, where))
