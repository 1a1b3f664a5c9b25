"""What a step of training costs: samples a second, memory, and the share of time that is not the model's.

Tiles are GeoTIFFs of six bands that are made once, read through the cache of tiles by one worker, and classified.
Each mode runs in a process of its own, so that its peak of memory is its own. Ratios within one run mean something,
whatever else the machine does; seconds do not.

    python benchmarks/train.py --size small
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MODES = ("full", "lora", "checkpointed", "bf16")
WARM_UP = 3


def make_tiles(folder: Path, count: int, edge: int) -> Path:
    """Write tiles of noise with a class each, and their metadata."""
    import numpy as np
    import rasterio

    rng, lines = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / "images" / f"{number:03d}.tif"
        profile = {"driver": "GTiff", "height": edge, "width": edge, "count": 6, "dtype": "int16"}
        transform = rasterio.Affine(30, 0, 0, 0, -30, 0)
        with rasterio.open(path, "w", crs="EPSG:32614", transform=transform, **profile) as file:
            file.write(rng.integers(100, 400, (6, edge, edge), dtype=np.int16))
            file.scales = [8e-4] * 6
            for band, name in enumerate(("blue", "green", "red", "nir", "swir1", "swir2"), 1):
                file.set_band_description(band, name)
        row = {"file_name": f"images/{path.name}", "label": number % 2, "sensor": "landsat8", "key": path.stem}
        lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def measure(mode: str, size: str, tiles: Path, steps: int, batch: int) -> dict[str, float]:
    """Train for a few steps in one mode."""
    import torch
    from transformers import PrinterCallback, TrainingArguments, set_seed

    from benchmarks.memory import peak_mib
    from modeling_agriclip import AgriClipConfig, AgriClipForImageClassification
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from training.augmentation import Augmentation
    from training.lora import add_lora
    from training.tile_cache import TileCache
    from training.tile_dataset import load_tiles, prepare_tiles
    from training.tile_transform import TileTransform, collate_tiles
    from training.trainer import AgriClipTrainer

    spent = {"data": 0.0, "model": 0.0}
    counted: list[float] = []

    class Timed(AgriClipTrainer):
        """Adds up what a step spends on waiting for data and on the model."""

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == WARM_UP:
                counted.append(time.perf_counter())
            started = time.perf_counter()
            found = super().get_batch_samples(*args, **kwargs)
            self._add("data", started)
            return found

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._add("model", started)
            return loss

        def _add(self, what: str, started: float) -> None:
            if counted:
                spent[what] += time.perf_counter() - started

    set_seed(0)
    model: Any = AgriClipForImageClassification(AgriClipConfig.from_size(size, num_labels=2))
    if mode == "lora":
        model = add_lora(model, "vision")
    processor = AgriClipImageProcessor(sensor="landsat8")
    cache = TileCache(tiles.parent / "cache", processor.to_dict())
    changes = Augmentation.none(flip=0.5, rotate=0.75, noise=0.5)
    table = load_tiles(tiles)
    transform = TileTransform(processor, labels="label", augmentation=changes, cache=cache)
    for row in table:  # what is measured is a second epoch: the first one fills the cache
        transform.tile(row)
    trainer = Timed(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            max_steps=WARM_UP + steps,
            activation_checkpointing=mode == "checkpointed",
            bf16=mode == "bf16",
            dataloader_num_workers=1,
            dataloader_persistent_workers=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=prepare_tiles(table, transform),
        data_collator=collate_tiles,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    total = time.perf_counter() - counted[0]
    memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mib()
    return {
        "samples_per_second": steps * batch / total,
        "memory_mib": memory,
        "outside_model": 1 - spent["model"] / total,
        "waiting_for_data": spent["data"] / total,
    }


def main(
    size: str = "small",
    steps: int = 10,
    batch: int = 8,
    edge: int = 128,
    output: Path = Path("out/train_benchmark.json"),
    mode: Annotated[str | None, typer.Option(hidden=True)] = None,
    tiles: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every mode, each in a process of its own."""
    if mode is not None and tiles is not None:
        print(json.dumps(measure(mode, size, tiles, steps, batch)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tiles(Path(scratch) / "tiles", 4 * batch, edge)
        for name in MODES:
            settings = {"size": size, "steps": steps, "batch": batch, "mode": name, "tiles": folder}
            options = [f"--{key}={value}" for key, value in settings.items()]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, __file__, *options]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            results[name] = json.loads(done.stdout.splitlines()[-1])
    full = results["full"]
    table = Table(
        "mode", "samples / s", "of full", "peak memory, MiB", "of full", "outside the model", "waiting for data"
    )
    for name, row in results.items():
        table.add_row(
            name,
            f"{row['samples_per_second']:.1f}",
            f"{row['samples_per_second'] / full['samples_per_second']:.2f}",
            f"{row['memory_mib']:.0f}",
            f"{row['memory_mib'] / full['memory_mib']:.2f}",
            f"{row['outside_model']:.1%}",
            f"{row['waiting_for_data']:.1%}",
        )
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"size": size, "batch": batch, "edge": edge, "modes": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
