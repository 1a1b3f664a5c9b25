"""One optimizer step of every preset, in one process or in several: writes losses and gradients to a file.

Run by test_distributed.py: `python distributed_step.py OUTPUT CHUNK`, or the same under torchrun.
"""

import sys
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from modeling_agriclip import AgriClipConfig, AgriClipForPreTraining, AgriClipForSuitability
from processing.sensors_agriclip import get_sensor
from training.adversarial import Attack, SensorNoise
from training.lora import add_lora
from training.objective import PRESETS, get_objective
from training.trainer import AgriClipTrainer

BATCH = 8
SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
    "projection_dim": 16,
    "decoder_size": 16,
}


class Samples(Dataset):
    """Images, reports and labels, some of them missing, so that no two processes count the same."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.sensor = get_sensor("landsat8")
        self.channels = torch.tensor([channel.code() for channel in self.sensor.channels])
        count = len(self.channels)
        self.pixels = torch.randn(BATCH, count, 8, 8, generator=generator)
        self.mask = torch.rand(BATCH, count, 8, 8, generator=generator) > 0.2
        self.mask[5] = False
        self.tokens = torch.randint(6, 100, (BATCH, 12), generator=generator)
        self.tokens[:, 3::4] = 5
        self.values = torch.randn(BATCH, 12, generator=generator)
        self.labels = torch.rand(BATCH, generator=generator).round()
        self.labels[6:] = torch.nan
        self.weights = torch.rand(BATCH, generator=generator) + 0.5
        self.noise = torch.rand(BATCH, 64, generator=generator)

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.tokens[item],
            "attention_mask": torch.ones(12, dtype=torch.long),
            "numeric_values": self.values[item],
            "pixel_values": self.pixels[item],
            "pixel_mask": self.mask[item],
            "channels": self.channels,
            "gsd": torch.tensor(30.0),
            "labels": self.labels[item],
            "label_weights": self.weights[item],
            "detection_labels": self.labels[item],
            "noise": self.noise[item],
            "report_keys": self.values[item, 3::4],
        }


class Gradients(TrainerCallback):
    """Keeps the gradients of a step as they are before the optimizer takes them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.found[name.replace("module.", "")] = parameter.grad.detach().clone()


def step(preset: str, lora: bool, chunk: int | None) -> dict[str, Any] | None:
    """Do one step; loss, terms and gradients, in the first process."""
    set_seed(0)
    objective = get_objective(preset)
    config = AgriClipConfig.from_size("tiny", vocab_size=128, **{**objective.fields(), **SMALL})
    kind = AgriClipForPreTraining if preset == "pretraining" else AgriClipForSuitability
    model = kind(config)
    # Heads, gates and adapters that start at nothing would hide half of the gradients.
    if lora:
        model = add_lora(model, "all", rank=2)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    data, gradients = Samples(), Gradients()
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=BATCH,
        max_steps=1,
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    arguments.per_device_train_batch_size = BATCH // arguments.world_size
    attack = Attack(SensorNoise(data.sensor.channels), torch.full((12,), 0.1)) if objective.adversarial else None
    columns = ("labels", "label_weights", "detection_labels") if preset == "pretraining" else ()

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key not in columns}

    trainer = AgriClipTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        attack=attack,
        chunk_size=chunk,
        callbacks=[gradients],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if not trainer.is_world_process_zero():
        return None
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    terms = {key: value for key, value in logs.items() if key.startswith("terms/")}
    return {"loss": logs["loss"], "terms": terms, "gradients": gradients.found}


def main(output: str, chunk: str) -> None:
    """All presets, whole and with adapters, at once and in chunks."""
    found = {}
    for preset in PRESETS:
        for lora in (False, True):
            for size in (None, int(chunk)):
                found[f"{preset} {lora} {size is not None}"] = step(preset, lora, size)
    if all(value is not None for value in found.values()):
        torch.save(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
