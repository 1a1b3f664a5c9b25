"""What each part of the model and of the objective is worth: fitted with all parts, and without each in turn.

On a virtual landscape, whose true probability is known everywhere, so that the score is not that of the noise in the
labels: root mean square error against the truth, at places in blocks that were left out, in the present climate and,
with the image and without it, in one 2 degC warmer. Every row is the mean of several seeds, which change the
landscape, the weights and the order.

    python benchmarks/ablation.py --seeds 3
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from modeling_agriclip import AgriClipConfig
from processing.rasters import sample_points
from processing.study import load_study
from processing.study_data import StudyData
from processing.virtual_landscape import make_virtual_landscape
from training.fit import build_config, build_processor
from training.single_fit import FitJob, FitTask, make_trainer
from training.study_dataset import SiteTensors, SuitabilityDataset, read_sites


@dataclass(frozen=True)
class Part:
    """A part that can be left out.

    Attributes:
        title: What is left out.
        weights: Weights of the objective without it.
        change: Changes the configuration.
        digits: Write numbers as words.
    """

    title: str
    weights: dict[str, float] = field(default_factory=dict)
    change: Callable[[AgriClipConfig], None] = lambda config: None
    digits: bool = False


def _set(part: str, name: str, value: Any) -> Callable[[AgriClipConfig], None]:
    return lambda config: setattr(getattr(config, part), name, value)


PARTS = (
    Part("all parts"),
    Part("scale consistency", {"consistency": 0.0}),
    Part("inter-scale diversity", {"diversity": 0.0}),
    Part("image-text alignment", {"alignment": 0.0}),
    Part("masked image modelling", {"reconstruction": 0.0}),
    Part("adversarial term", {"adversarial": 0.0}),
    Part("prediction from the report alone", {"report_only": 0.0}),
    Part("price of the image's effect", {"image_effect": 0.0}),
    Part("varied-size windows", change=_set("vision_config", "varied_size_windows", False)),
    Part("scale attention", change=_set("vision_config", "scale_attention", False)),
    Part("coarser scales", change=_set("vision_config", "num_scales", 1)),
    Part("number tokens (digits as text)", digits=True),
    Part("null token", change=_set("fuser_config", "use_null_token", False)),
    Part("FiLM", change=_set("fuser_config", "use_film", False)),
)


def digits_as_text(data: StudyData, sites: SiteTensors, tables: list[np.ndarray]) -> list[SiteTensors]:
    """The sites of several climates, their reports written out for a tokenizer that knows no numbers."""
    tokenizer = build_processor().tokenizer
    texts = [[data.template.render(row) for row in table] for table in tables]
    encoded = [tokenizer(part, padding="max_length", max_length=256, return_tensors="pt") for part in texts]
    longest = max(int(part["attention_mask"].sum(dim=1).max()) for part in encoded)
    return [
        replace(
            sites,
            input_ids=part["input_ids"][:, :longest],
            attention_mask=part["attention_mask"][:, :longest],
            numeric_values=torch.zeros(len(sites), longest),
            clauses=None,
        )
        for part in encoded
    ]


class Landscape:
    """A landscape of one seed, read once for all parts."""

    def __init__(self, folder: Path, seed: int, sites: int, edge: int) -> None:
        self.study = load_study(make_virtual_landscape(folder, seed=seed, height=edge, width=edge, sites=sites))
        self.data, self.processor, self.seed, self.folder = StudyData(self.study), build_processor(), seed, folder
        self.table = self.data.labels()
        x, y = self.table.x, self.table.y
        self.reports = [self.data.predictors(x, y), self.data.predictors(x, y, "warm")]
        present = read_sites(self.data, self.processor, x, y)
        tokens = self.data.template.tokenise(self.processor)
        warm = torch.from_numpy(tokens.numeric_values(self.data.template.values(self.reports[1])))
        self.sites = [present, replace(present, numeric_values=warm)]
        files = [folder / f"truth_{name}.tif" for name in ("present", "warm")]
        self.truth = [sample_points(file, None, x, y, self.data.grid.crs)[0][:, 0] for file in files]

    def score(self, part: Part, epochs: int, scratch: Path) -> dict[str, float]:
        """Fit outside the first fold and compare with the truth inside it."""
        started = time.monotonic()
        training = self.study.training.model_copy(update={"preset": "full", "weights": part.weights, "batch_size": 32})
        study = self.study.model_copy(update={"training": training})
        config = build_config(study, self.processor)
        part.change(config)
        present, warm = digits_as_text(self.data, self.sites[0], self.reports) if part.digits else self.sites
        folds = self.data.folds()
        task = FitTask(
            study=study,
            sites=present,
            config=config,
            labels=self.table.share,
            weights=self.table.weight / self.table.weight.mean(),
            epochs=epochs,
            blocks=self.data.blocks(),
            channels=tuple(self.data.channels),
            checkpoint_seconds=1e9,
        )
        trainer = make_trainer(task, FitJob(part.title, folds != 0, self.seed, scratch, scratch), lambda *_: None)
        trainer.train()
        model, index = trainer.model.eval(), np.flatnonzero(folds == 0)
        scores = {}
        for name, sites, truth in (("present", present, self.truth[0]), ("warm", warm, self.truth[1])):
            dataset = SuitabilityDataset(sites, task.labels, task.weights, index)
            rows = [dataset[i] for i in range(len(dataset))]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if "label" not in key}
            with torch.no_grad():
                answer = model(**batch)
            for suffix, chance in (("", answer.probabilities), (" without image", answer.report_probabilities)):
                scores[name + suffix] = float(np.sqrt(np.mean((chance.numpy() - truth[index]) ** 2)))
        return scores | {"seconds": time.monotonic() - started}


def main(
    seeds: int = 3,
    epochs: int = 15,
    sites: int = 500,
    edge: int = 72,
    output: Path = Path("out/ablation"),
    only: Annotated[list[str] | None, typer.Option(help="Only parts whose title holds this.")] = None,
) -> None:
    """Fit every row with every seed; rows that are done are not fitted again."""
    output.mkdir(parents=True, exist_ok=True)
    console, path = Console(), output / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts = [part for part in PARTS if not only or any(word in part.title for word in only)]
    for seed in range(seeds):
        landscape = Landscape(output / f"landscape_{seed}", seed, sites, edge)
        for part in track(parts, f"Seed {seed}", console=console):
            if f"{part.title} {seed}" not in results:
                results[f"{part.title} {seed}"] = landscape.score(part, epochs, output / "scratch")
                path.write_text(json.dumps(results, indent=1) + "\n")
    names = ("present", "present without image", "warm", "warm without image")
    table = Table("without", *names, "seconds", title=f"RMSE against the truth, mean (sd) of {seeds} seeds")
    for part in parts:
        rows = [results[f"{part.title} {seed}"] for seed in range(seeds)]
        cells = [np.array([row[name] for row in rows]) for name in names]
        spread = [f"{cell.mean():.4f} ({cell.std(ddof=1) if len(cell) > 1 else 0:.4f})" for cell in cells]
        table.add_row(part.title, *spread, f"{np.mean([row['seconds'] for row in rows]):.0f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
