"""Train the released checkpoint: every step on tiles, and on counties and made-up series in turn.

Whatever is drawn depends on the seed and the number of the step, and a run that was stopped goes on from its last
checkpoint, so the same command gives the same model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modeling_agriclip import AgriClipConfig
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.study import Study
from processing.study_data import StudyData
from processing.vocabulary import default_tokenizer
from training.objective import get_objective
from training.release.folder import LOG, save_release
from training.release.joint import JointModel, total
from training.release.phrases import PhraseBatches
from training.release.series import SeriesBatches
from training.release.stages import Settings, learn_pixels, learn_seasons, learn_to_read, progress_bar, rate_at
from training.release.tiles import TileBatches, Tiles, evaluate_tiles, read_tiles
from training.release.words import start_words
from training.single_fit import FitTask, site_noise
from training.study_dataset import SuitabilityDataset, read_sites

MANIFEST, CHECKPOINT = "data_manifest.json", "checkpoint.pt"

#: The size `small`, its widths cut to what two processor cores train in an hour and a half.
SIZES: dict[str, Any] = {
    "vision_config": {
        "stage_sizes": (64, 128, 192),
        "stage_depths": (1, 1, 2),
        "stage_heads": (2, 4, 6),
        "hidden_size": 192,
        "patch_size": 8,
        "pixel_size": 32,
        "pixel_levels": 3,
        "channel_hidden_size": 96,
        "initializer_range": 0.04,
    },
    "text_config": {
        "initializer_range": 0.05,
        "embedding_init_std": 1.0,
        "encoder_config": {
            "initializer_range": 0.05,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    },
    "fuser_config": {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "gate_init_value": 1.0,
        "initializer_range": 0.05,
    },
    "initializer_range": 0.05,
}


def train(
    study: Study,
    tiles_dir: Path,
    output: Path,
    settings: Settings,
    minutes: float = 5.0,
    quiet: bool = False,
    stop_after: int | None = None,
) -> Path:
    """Train the model of all jobs and save it as a folder that any of its classes loads.

    Args:
        study: The study of suitability.
        tiles_dir: Folder with `images/` and `masks/`.
        output: The folder of the model; checkpoints lie beside it until it is complete.
        settings: What the run depends on.
        minutes: Time between two checkpoints.
        quiet: No progress bar.
        stop_after: Leave after this many steps, as if interrupted; for tests.

    Returns:
        `output`.

    Raises:
        AgriClipError: Data are missing, or a checkpoint of other settings lies there.
    """
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[handler])
    set_seed(settings.seed)
    processor = build_processor()
    everything = read_tiles(tiles_dir, processor.image_processor)
    inside = np.ones(len(everything), dtype=bool)
    if settings.hold_out is not None:
        inside = everything.folds != settings.hold_out
    learnt, kept = everything.at(np.flatnonzero(inside)), everything.at(np.flatnonzero(~inside))
    config = build_config(study, processor)
    phrases = PhraseBatches(processor, settings.phrases, settings.seed)
    world = accelerator.num_processes
    draws = _Draws(study, learnt, processor, config, settings, world, accelerator.process_index)
    model = JointModel(config, len(phrases.classes) + 1, len(draws.tiles.present))
    start_words(model.suitability.text_model, processor.tokenizer, settings.seed)
    part = output.with_name(f".{output.name}.partial")
    log = _Log(part, accelerator.is_main_process)
    if not (part / CHECKPOINT).is_file():
        # In each process alike: it takes a minute, and depends on the seed only.
        log.write(learn_to_read(model, phrases, settings, quiet or not accelerator.is_main_process))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    steps = settings.epochs * (len(learnt) // settings.tiles)
    optimizer = _optimizer(model, settings)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    wrapped: Any = accelerator.prepare(model)
    averaged.to(accelerator.device)
    state = (model, averaged, optimizer, rates)
    first = _resume(part, settings, *state)
    saved = time.monotonic()
    with progress_bar(quiet or not accelerator.is_main_process) as bar:
        shown = bar.add_task("Training", total=steps, completed=first)
        for step in range(first, steps):
            terms = _step(accelerator, wrapped, draws, step, settings, optimizer)
            rates.step()
            averaged.update_parameters(model)
            log.note(step, terms, rates.get_last_lr()[0])
            bar.update(shown, advance=1)
            stop = stop_after is not None and step + 1 >= stop_after
            if accelerator.is_main_process and (stop or time.monotonic() - saved > 60 * minutes):
                _save_checkpoint(part, settings, step + 1, *state)
                saved = time.monotonic()
            if stop:
                return output
            if (step + 1) % (4 * max(1, len(learnt) // settings.tiles)) == 0 and len(kept):
                scores = evaluate_tiles(_eval(averaged), kept, processor) if accelerator.is_main_process else {}
                log.write({"step": step + 1, "held_out_tiles": scores})
                accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        log.write(learn_pixels(averaged.module, draws.tiles, settings, quiet))
        _complete(part, output, averaged, processor, kept, settings, log, study, tiles_dir)
    accelerator.wait_for_everyone()
    return output


def build_processor() -> AgriClipProcessor:
    """The processor of the checkpoint."""
    return AgriClipProcessor(AgriClipImageProcessor(), default_tokenizer())


def build_config(study: Study, processor: AgriClipProcessor) -> AgriClipConfig:
    """The configuration of the checkpoint, with the likelihood of the study."""
    fields = {
        **SIZES,
        **get_objective(study.training.preset).fields(),
        "suitability_likelihood": study.training.objective,
        "share_threshold": study.labels.presence_above,
        "use_detection_head": True,
        "use_pretraining_heads": False,
    }
    config = AgriClipConfig.from_size("small", vocab_size=len(processor.tokenizer), **fields)
    config.text_config.number_token_id = processor.num_token_id
    return config


class _Draws:
    """Batches of the three tasks by the number of the step."""

    def __init__(
        self,
        study: Study,
        tiles: Tiles,
        processor: AgriClipProcessor,
        config: AgriClipConfig,
        settings: Settings,
        world: int,
        rank: int,
    ) -> None:
        self.world, self.rank, self.seed = world, rank, settings.seed
        self.tiles = TileBatches(tiles, processor, settings.tiles // world, settings.seed)
        self.series = SeriesBatches(processor.image_processor, settings.series // world, settings.seed)
        self.phrases = PhraseBatches(processor, settings.phrases // world, settings.seed)
        self.count = settings.sites // world
        self.sites = _site_dataset(study, processor, config, settings.seed)

    def __call__(self, task: str, step: int) -> dict[str, Tensor]:
        number = step * self.world + self.rank
        if task == "tiles":
            return self.tiles(number)
        if task != "sites":
            return self.series(number) if task == "series" else self.phrases(number)
        # Only every second step asks.
        epoch, place = divmod(step // 2 * self.world + self.rank, len(self.sites) // self.count)
        self.sites.set_epoch(epoch)
        order = np.random.default_rng((self.seed, 3, epoch)).permutation(len(self.sites))
        rows = [self.sites[int(i)] for i in order[place * self.count : (place + 1) * self.count]]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "noise"}


def _site_dataset(study: Study, processor: AgriClipProcessor, config: AgriClipConfig, seed: int) -> SuitabilityDataset:
    """The labelled sites of a study with the noise that it asks for."""
    data = StudyData(study)
    table = data.labels()
    sites = read_sites(data, processor, table.x, table.y)
    task = FitTask(
        study=study,
        sites=sites,
        config=config,
        labels=table.share,
        weights=np.ones(len(table)),
        epochs=1,
        blocks=data.blocks(),
        channels=tuple(data.channels),
    )
    index = np.arange(len(table))
    return task.dataset(index, noise=site_noise(task, index), seed=seed)


def _step(
    accelerator: Accelerator, model: Any, draws: _Draws, step: int, settings: Settings, optimizer: Any
) -> dict[str, float]:
    """Gradients of tiles and of counties or series, and one step down their sum."""
    noted: dict[str, float] = {}
    # Which patches are hidden depends on the step, wherever a run was taken up.
    torch.manual_seed(settings.seed * 1_000_003 + step)
    for task in ("tiles", *(("series", "phrases") if step % 2 else ("sites",))):
        batch = {name: value.to(accelerator.device) for name, value in draws(task, step).items()}
        # Reports are read in full precision: half of it has three digits, and their numbers have more.
        short = torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=task != "sites")
        with short:
            terms = model(task, batch, masked=task == "tiles" and step % settings.mask_every == 0)
        loss = total(terms)
        if not torch.isfinite(loss):
            raise AgriClipError(f"The loss of {task} is no longer a number at step {step}; lower the learning rate.")
        accelerator.backward(loss)
        noted |= {name: float(term.detach()) for name, term in terms.items()}
    # Each by itself: the steep gradients of one task must not shrink those of another.
    bare = accelerator.unwrap_model(model)
    for part in (bare.segmentation_head, bare.suitability, bare.decoder, bare.season_head, bare.code_head):
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return noted


def _optimizer(model: JointModel, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; pixels' own path and report encoder have rates of their own, and norms and biases do not decay."""
    own = {
        "segmentation_head.pixels": settings.pixel_rate,
        "suitability.text_model": settings.text_rate,
        "suitability.text_projection": settings.text_rate,
    }
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        rate = next((rate for start, rate in own.items() if name.startswith(start)), 1.0)
        groups.setdefault((rate, weight.dim() > 1), []).append(weight)
    listed = [
        {
            "params": weights,
            "lr": settings.learning_rate * rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (rate, decays), weights in groups.items()
    ]
    return torch.optim.AdamW(listed, fused=True)


def _eval(averaged: AveragedModel) -> Any:
    return averaged.module.segmenter().eval()


class _Log:
    """Means of the terms, one JSON document a line."""

    def __init__(self, folder: Path, active: bool, every: int = 20) -> None:
        self.path, self.active, self.every = folder / LOG, active, every
        self.sums: dict[str, list[float]] = {}
        self.started = time.monotonic()

    def note(self, step: int, terms: dict[str, float], rate: float) -> None:
        """Take the terms of a step, and write their means now and then."""
        for name, value in terms.items():
            self.sums.setdefault(name, []).append(value)
        if (step + 1) % self.every == 0:
            means = {name: round(float(np.mean(values)), 5) for name, values in self.sums.items()}
            self.write({"step": step + 1, "learning_rate": round(rate, 7), **means})
            self.sums.clear()

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line, with the seconds since this process began."""
        if self.active and entry:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            seconds = round(time.monotonic() - self.started, 1)
            with self.path.open("a") as file:
                file.write(json.dumps({"seconds": seconds, **entry}) + "\n")


def _save_checkpoint(folder: Path, settings: Settings, step: int, *parts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".checkpoint.pt"
    torch.save({"settings": asdict(settings), "step": step, "parts": [p.state_dict() for p in parts]}, temporary)
    temporary.replace(folder / CHECKPOINT)


def _resume(folder: Path, settings: Settings, *parts: Any) -> int:
    """Load the last checkpoint, if there is one; the number of steps that are done."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0
    found = torch.load(path, weights_only=True, map_location="cpu")
    if found["settings"] != asdict(settings):
        raise AgriClipError(f"'{folder}' holds a run of other settings; remove it, or give the same ones.")
    for part, state in zip(parts, found["parts"], strict=True):
        part.load_state_dict(state)
    return int(found["step"])


def _complete(
    part: Path,
    output: Path,
    averaged: AveragedModel,
    processor: AgriClipProcessor,
    kept: Tiles,
    settings: Settings,
    log: _Log,
    study: Study,
    tiles_dir: Path,
) -> None:
    """Save the averaged weights, what they were trained on and how it went, and put the folder in its place."""
    log.write(
        learn_seasons(averaged.module, SeriesBatches(processor.image_processor, 32, settings.seed + 1), settings)
    )
    if len(kept):
        log.write({"held_out_tiles": evaluate_tiles(_eval(averaged), kept, processor)})
    whole = part / "model"
    shutil.rmtree(whole, ignore_errors=True)
    save_release(averaged.module, processor, whole)
    shutil.copy(part / LOG, whole / LOG)
    (whole / MANIFEST).write_text(json.dumps(manifest(study, tiles_dir, settings), indent=1) + "\n")
    if output.exists():
        shutil.rmtree(output)
    whole.rename(output)
    shutil.rmtree(part)


def manifest(study: Study, tiles_dir: Path, settings: Settings) -> dict[str, Any]:
    """Every file that was trained on, with its SHA-256, and the settings."""
    files = {str(file): study.path(file) for _, file in study.files()}
    files |= {f"{kind}/{p.name}": p for kind in ("images", "masks") for p in sorted((tiles_dir / kind).glob("*.tif"))}
    digests = {}
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"settings": asdict(settings), "study": study.fingerprint(), "files": digests}
