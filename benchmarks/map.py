"""What mapping a large raster costs: time over the model's own, memory over the raster's size, and whether bytes hold.

Rasters of four bands are made on the fly and mapped by a model with random weights, each job in a process of its own,
so that its peak of memory is its own. Ratios within one run mean something, whatever else the machine does; seconds do
not.

    python benchmarks/map.py --size small --sizes 4096,16384
    python benchmarks/map.py --size small --sizes 4096,16384 --memory-model small   # hours on a CPU
"""

import hashlib
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BANDS = ("blue", "green", "red", "nir")
TEXTS = ["soybean fields", "other land"]
BLOCK = 512
TARGETS = {"time": 1.10, "memory": 1.15}


def make_raster(path: Path, edge: int) -> Path:
    """Write reflectance of fields of noise, block by block."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    fields = rng.integers(300, 4000, (len(BANDS), BLOCK // 8, BLOCK // 8), dtype=np.uint16)
    block = fields.repeat(8, axis=1).repeat(8, axis=2)
    profile = {"driver": "GTiff", "height": edge, "width": edge, "count": len(BANDS), "dtype": "uint16"}
    stored = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1}
    place = rasterio.Affine(10, 0, 600_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", crs="EPSG:32614", transform=place, **profile, **stored, BIGTIFF="IF_SAFER") as file:
        for top in range(0, edge, BLOCK):
            for left in range(0, edge, BLOCK):
                height, width = min(BLOCK, edge - top), min(BLOCK, edge - left)
                file.write(block[:, :height, :width], window=Window(left, top, width, height))
        for number, name in enumerate(BANDS, 1):
            file.set_band_description(number, name)
    return path


def make_model(folder: Path, size: str) -> Path:
    """Save a segmentation model with random weights."""
    from transformers import set_seed
    from transformers.utils import logging

    from modeling_agriclip import AgriClipConfig, AgriClipForSemanticSegmentation
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from processing.processing_agriclip import AgriClipProcessor
    from processing.tokenizer import build_tokenizer

    logging.disable_progress_bar()
    set_seed(0)
    processor = AgriClipProcessor(AgriClipImageProcessor(sensor="sentinel2_l2a"), build_tokenizer())
    config = AgriClipConfig.from_size(size, vocab_size=len(processor.tokenizer))
    config.text_config.number_token_id = processor.num_token_id
    AgriClipForSemanticSegmentation(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_predictor(raster: Path, model: str) -> Any:
    """What the engine asks: a saved model, or `cheap`, the mean over the bands."""
    if model == "cheap":
        return lambda pixels, valid: pixels.mean(axis=1, keepdims=True) / np.float32(1e4)
    from mapping.scene import QueryModel, ScenePredictor
    from mapping.scene_bands import describe_scene

    asked = QueryModel(model, TEXTS, "a satellite image of {}")
    return ScenePredictor(asked, describe_scene(raster, asked.image_processor, bands=BANDS), 1)


def map_once(
    raster: Path, predictor: Any, folder: Path, tile: int, stride: int, batch: int, workers: int = 1
) -> float:
    """Map a raster by the engine; seconds of the whole job."""
    from mapping.streaming import MapLayer, stream_map

    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    layers = [MapLayer(folder / "probability.tif", "probability")]
    windows = {"tile": tile, "stride": stride, "batch_size": batch, "workers": workers}
    stream_map(raster, predictor, layers, **windows, quiet=True)
    return time.perf_counter() - begun


def run_model_alone(raster: Path, predictor: Any, tile: int, stride: int, batch: int, workers: int) -> float:
    """Seconds of the model on the same windows in the same batches and as many threads, from memory."""
    import rasterio

    from mapping.tiling import TilePlan

    with rasterio.open(raster) as file:
        pixels = file.read().astype(np.float32)
    plan = TilePlan(*pixels.shape[1:], tile, stride)
    batches: list[NDArray[np.float32]] = []
    for unit in plan.units(max(batch, 2048 // stride)):
        rows = slice(plan.tops[unit.row], plan.tops[unit.row] + tile)
        windows = [pixels[:, rows, left : left + tile] for left in plan.lefts[unit.first : unit.stop]]
        batches += [np.stack(windows[i : i + batch]) for i in range(0, len(windows), batch)]
    valid = [np.ones(part.shape, dtype=bool) for part in batches]
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(predictor, batches, valid))
    return time.perf_counter() - begun


def run_terratorch(raster: Path, predictor: Any, tile: int, stride: int, batch: int) -> float:
    """Seconds of terratorch's tiled inference of the same model, reading and writing included."""
    import rasterio
    import torch
    from terratorch.tasks.tiled_inference import tiled_inference

    begun = time.perf_counter()
    with rasterio.open(raster) as file:
        pixels, profile = torch.from_numpy(file.read().astype(np.float32)), file.profile

    def forward(part: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(predictor(part.numpy(), np.ones(part.shape, dtype=bool)))

    found = tiled_inference(forward, pixels[None], crop=tile, stride=stride, delta=0, batch_size=batch, padding=False)
    profile.update(count=1, dtype="float32", driver="COG")
    with rasterio.open(raster.with_name("terratorch.tif"), "w", **profile) as file:
        file.write(found[0].numpy())
    return time.perf_counter() - begun


def work(job: str, raster: Path, model: str, folder: Path, tile: int, stride: int, batch: int) -> dict[str, Any]:
    """One job of a process of its own."""
    from benchmarks.memory import peak_mib

    workers = 1
    if model != "cheap":
        from mapping.scene import model_threads

        workers = model_threads()  # before the model takes one of them
    predictor = load_predictor(raster, model)
    begun = peak_mib()
    found: dict[str, Any] = {}
    windows = (tile, stride, batch, workers)
    if job == "time":
        map_once(raster, predictor, folder, *windows)  # warm
        rounds = []
        for _ in range(3):
            alone = run_model_alone(raster, predictor, *windows)
            rounds.append((alone, map_once(raster, predictor, folder, *windows)))
        found = {
            "model_seconds": statistics.median(alone for alone, _ in rounds),
            "job_seconds": statistics.median(whole for _, whole in rounds),
            "ratios": [whole / alone for alone, whole in rounds],
            "workers": workers,
        }
    elif job == "terratorch":
        found = {"job_seconds": run_terratorch(raster, predictor, tile, stride, batch)}
    else:
        found = {"job_seconds": map_once(raster, predictor, folder, *windows)}
    return {**found, "start_mib": begun, "peak_mib": peak_mib()}


class Jobs:
    """Starts jobs in processes of their own."""

    def __init__(self, tile: int, stride: int, batch: int) -> None:
        self.windows = [f"--tile={tile}", f"--stride={stride}", f"--batch={batch}"]

    def command(self, job: str, raster: Path, model: str, folder: Path, processes: int = 1) -> list[str]:
        """Command line of a job."""
        launcher = [sys.executable]
        if processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
        named = [f"--job={job}", f"--raster={raster}", f"--model={model}", f"--folder={folder}"]
        return [*launcher, str(Path(__file__).resolve()), *named, *self.windows]

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run a job to its end."""
        done = subprocess.run(self.command(*args, **kwargs), capture_output=True, text=True, env=environment())
        if done.returncode:
            raise SystemExit(f"{args[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    def kill(self, raster: Path, model: str, folder: Path, after: int) -> int:
        """Kill a job when so many units are kept; how many were."""
        job = subprocess.Popen(
            self.command("map", raster, model, folder),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kept = folder / ".probability-partial"
        while job.poll() is None and len(list(kept.glob("*.safetensors"))) < after:
            time.sleep(0.005)
        job.send_signal(signal.SIGKILL)
        job.wait()
        return len(list(kept.glob("*.safetensors")))


def environment() -> dict[str, str]:
    """That of the jobs: the project can be imported."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure(
    scratch: Path, size: str, edges: list[int], time_edge: int, memory_model: str, tile: int, stride: int, batch: int
) -> dict[str, Any]:
    """All measurements."""
    jobs, results = Jobs(tile, stride, batch), {}
    model = str(make_model(scratch / size, size))
    tiny = model if size == "tiny" else str(make_model(scratch / "tiny", "tiny"))
    raster = make_raster(scratch / "time.tif", time_edge)
    results["time"] = jobs.run("time", raster, model, scratch / "time")
    if importlib.util.find_spec("terratorch") is not None:
        results["terratorch"] = jobs.run("terratorch", raster, model, scratch / "terratorch")
    memory: dict[str, Any] = {}
    used = memory_model if memory_model == "cheap" else str(make_model(scratch / "memory", memory_model))
    for edge in edges:
        raster = make_raster(scratch / f"{edge}.tif", edge)
        memory[str(edge)] = jobs.run("map", raster, used, scratch / f"out_{edge}")
        raster.unlink()
        (scratch / f"out_{edge}" / "probability.tif").unlink()
    results["memory"] = memory
    raster = make_raster(scratch / "bytes.tif", 8 * tile)
    digest = {}
    jobs.run("map", raster, tiny, scratch / "one")
    jobs.run("map", raster, tiny, scratch / "two", processes=2)
    kept = jobs.kill(raster, tiny, scratch / "killed", after=2)
    jobs.run("map", raster, tiny, scratch / "killed")
    for name in ("one", "two", "killed"):
        digest[name] = hashlib.sha256((scratch / name / "probability.tif").read_bytes()).hexdigest()
    results["bytes"] = {**digest, "units_kept_when_killed": kept}
    return results


def main(
    sizes: str = "4096,16384",
    size: str = "small",
    tile: int = 128,
    stride: Annotated[int | None, typer.Option(help="Step between windows; the tile by default.")] = None,
    batch: int = 8,
    time_edge: Annotated[int, typer.Option(help="Edge of the raster on which time is measured.")] = 1024,
    memory_model: Annotated[
        str, typer.Option(help="cheap, tiny, small or base: the model where memory is measured.")
    ] = "cheap",
    output: Path = Path("out/map_benchmark.json"),
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    raster: Annotated[Path | None, typer.Option(hidden=True)] = None,
    model: Annotated[str, typer.Option(hidden=True)] = "cheap",
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure time, memory and whether the bytes hold."""
    step = stride or tile
    if job is not None and raster is not None and folder is not None:
        found = work(job, raster, model, folder, tile, step, batch)
        if int(os.environ.get("RANK", "0")) == 0:  # one process speaks for all
            print(json.dumps(found))
        return
    edges = [int(edge) for edge in sizes.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), size, edges, time_edge, memory_model, tile, step, batch)
    told = found["time"]
    table = Table("what", "figure", "target")
    table.add_row(f"pure model time, {size}, {time_edge} x {time_edge}", f"{told['model_seconds']:.2f} s", "")
    table.add_row("whole job", f"{told['job_seconds']:.2f} s", "")
    rounds = ", ".join(f"{ratio:.3f}" for ratio in told["ratios"])
    found["time_ratio"] = told["job_seconds"] / told["model_seconds"]
    table.add_row("job over model", f"{found['time_ratio']:.3f} ({rounds})", f"at most {TARGETS['time']:.2f}")
    other = found.get("terratorch")
    said = "not installed: not measured" if other is None else f"{other['job_seconds'] / told['model_seconds']:.2f}"
    table.add_row("terratorch's tiled inference over model", said, "")
    for edge, row in found["memory"].items():
        above = row["peak_mib"] - row["start_mib"]
        detail = f"{row['peak_mib']:.0f} MiB ({above:.0f} above start), {row['job_seconds']:.0f} s"
        table.add_row(f"peak memory, {memory_model}, {edge} x {edge}", detail, "")
    peaks = [found["memory"][str(edge)]["peak_mib"] for edge in (min(edges), max(edges))]
    found["memory_ratio"] = peaks[1] / peaks[0]
    table.add_row("largest over smallest", f"{found['memory_ratio']:.3f}", f"at most {TARGETS['memory']:.2f}")
    hashes = found["bytes"]
    for name, what in (("two", "two processes"), ("killed", "killed and called again")):
        table.add_row(f"{what}: bytes of one", "equal" if hashes[name] == hashes["one"] else "DIFFERENT", "equal")
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"size": size, "tile": tile, "stride": step, "batch": batch, "time_edge": time_edge}
    output.write_text(json.dumps({**settings, "memory_model": memory_model, **found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
