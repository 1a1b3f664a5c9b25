"""What each part of the model and of the objective is worth: fitted with all parts, and without each in turn.

On the real data of a study: log loss, average precision and Brier score at places in the fold that was left out, with
the image and without it. Without a study, on a virtual landscape, whose true probability is known everywhere, so that
the score is not that of the noise in the labels: root mean square error against the truth in the present climate and
in one 2 degC warmer. Each seed changes the weights, the order and the fold (and the landscape); a row is compared
with that of all parts seed by seed.

    python benchmarks/ablation.py --study studies/us_double_crop_soybean.yaml --seeds 3
    python benchmarks/ablation.py --seeds 3
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evaluation.metrics import average_precision, brier, log_loss
from modeling_agriclip import AgriClipConfig
from processing.rasters import sample_points
from processing.study import Study, load_study
from processing.study_data import StudyData
from processing.virtual_landscape import make_virtual_landscape
from training.fit import build_config, build_processor
from training.single_fit import FitJob, FitTask, make_trainer
from training.study_dataset import SiteTensors, SuitabilityDataset, read_sites

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A part that can be left out.

    Attributes:
        title: What is left out.
        weights: Weights of the objective without it.
        change: Changes the configuration.
        digits: Write numbers as words.
        preset: The objective that the weights change.
    """

    title: str
    weights: dict[str, float] = field(default_factory=dict)
    change: Callable[[AgriClipConfig], None] = lambda config: None
    digits: bool = False
    preset: str = "full"


def _set(part: str, name: str, value: Any) -> Callable[[AgriClipConfig], None]:
    return lambda config: setattr(getattr(config, part), name, value)


ALL = "all parts"
PARTS = (
    Part(ALL),
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
    Part("all terms but those of `light`", preset="light"),
    Part("all terms but those of `default`", preset="default"),
)


def digits_as_text(data: StudyData, sites: SiteTensors, tables: list[Floats]) -> list[SiteTensors]:
    """The sites of several climates, their reports written out for a tokenizer that knows no numbers."""
    tokenizer = build_processor().tokenizer
    texts = [[data.template.render(row) for row in table] for table in tables]
    encoded = [tokenizer(part, padding="max_length", max_length=512, return_tensors="pt") for part in texts]
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


class Case:
    """A study of one seed, read once for all parts, and the fold that the seed leaves out."""

    def __init__(self, study: Study, seed: int, epochs: int, climates: tuple[str | None, ...] = (None,)) -> None:
        self.study, self.data, self.processor = study, StudyData(study), build_processor()
        self.seed, self.epochs, self.table, self.folds = seed, epochs, self.data.labels(), self.data.folds()
        self.inside = self.folds != seed % (int(self.folds.max()) + 1)
        x, y = self.table.x, self.table.y
        self.reports = [self.data.predictors(x, y, climate) for climate in climates]
        present = read_sites(self.data, self.processor, x, y)
        tokens = self.data.template.tokenise(self.processor)
        values = [torch.from_numpy(tokens.numeric_values(self.data.template.values(table))) for table in self.reports]
        self.sites = [present, *(replace(present, numeric_values=warm) for warm in values[1:])]

    def fit(self, part: Part, scratch: Path) -> tuple[list[tuple[Floats, Floats]], float]:
        """Fit outside the fold; for each climate what is predicted inside it with the image, and without."""
        started = time.monotonic()
        asked = {"preset": part.preset, "weights": part.weights, "batch_size": 32}
        study = self.study.model_copy(update={"training": self.study.training.model_copy(update=asked)})
        config = build_config(study, self.processor)
        part.change(config)
        sites = digits_as_text(self.data, self.sites[0], self.reports) if part.digits else self.sites
        shares = study.training.objective == "share"
        task = FitTask(
            study=study,
            sites=sites[0],
            config=config,
            labels=self.table.share,
            weights=np.ones(len(self.table)) if shares else self.table.weight / self.table.weight.mean(),
            epochs=self.epochs,
            blocks=self.data.blocks(),
            channels=tuple(self.data.channels),
            checkpoint_seconds=1e9,
        )
        trainer = make_trainer(task, FitJob(part.title, self.inside, self.seed, scratch, scratch), lambda *_: None)
        trainer.train()
        model, index, found = trainer.model.eval(), np.flatnonzero(~self.inside), []
        for climate in sites:
            dataset = SuitabilityDataset(climate, task.labels, task.weights, index)
            rows = [dataset[i] for i in range(len(dataset))]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if "label" not in key}
            with torch.no_grad():
                answer = model(**batch)
            found.append((answer.probabilities.double().numpy(), answer.report_probabilities.double().numpy()))
        return found, time.monotonic() - started

    def score(self, part: Part, scratch: Path) -> dict[str, float]:
        """Fit, and score the presence in the fold that was left out."""
        ((full, report_only),), seconds = self.fit(part, scratch)
        presence = self.table.presence[~self.inside].astype(np.float64)
        return {
            "log loss": log_loss(presence, full),
            "average precision": average_precision(presence, full),
            "Brier": brier(presence, full),
            "log loss without image": log_loss(presence, report_only),
            "seconds": seconds,
        }


class Landscape(Case):
    """A virtual landscape of one seed."""

    def __init__(self, folder: Path, seed: int, epochs: int, sites: int, edge: int) -> None:
        study = load_study(make_virtual_landscape(folder, seed=seed, height=edge, width=edge, sites=sites))
        super().__init__(study, seed, epochs, (None, "warm"))
        places = (self.table.x, self.table.y, self.data.grid.crs)
        files = [folder / f"truth_{name}.tif" for name in ("present", "warm")]
        self.truth = [sample_points(file, None, *places)[0][:, 0] for file in files]

    def score(self, part: Part, scratch: Path) -> dict[str, float]:
        """Fit, and compare with the truth in the fold that was left out."""
        found, seconds = self.fit(part, scratch)
        scores = {}
        for name, chances, truth in zip(("present", "warm"), found, self.truth, strict=True):
            for suffix, chance in zip(("", " without image"), chances, strict=True):
                scores[name + suffix] = float(np.sqrt(np.mean((chance - truth[~self.inside]) ** 2)))
        return scores | {"seconds": seconds}


def main(
    study: Annotated[Path | None, typer.Option(help="Study file; without one, a virtual landscape.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the study's data.")] = None,
    seeds: int = 3,
    epochs: int = 15,
    sites: int = 500,
    edge: int = 72,
    output: Path = Path("out/ablation"),
    only: Annotated[list[str] | None, typer.Option(help="Only parts whose title holds this.")] = None,
) -> None:
    """Fit every row with every seed; rows that are done are not fitted again, so several may run side by side."""
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    parts = [part for part in PARTS if not only or any(word in part.title for word in only)]
    for seed in range(seeds):
        case: Case | None = None
        for part in track(parts, f"Seed {seed}", console=console):
            if _file(output, part, seed).exists():
                continue
            if case is None and study is not None:
                case = Case(load_study(study, data_root=data), seed, epochs)
            elif case is None:
                case = Landscape(output / f"landscape_{os.getpid()}_{seed}", seed, epochs, sites, edge)
            result = case.score(part, output / f"scratch_{os.getpid()}")
            _file(output, part, seed).write_text(json.dumps(result) + "\n")
    whole = [json.loads(_file(output, PARTS[0], seed).read_text()) for seed in range(seeds)]
    names = [name for name in whole[0] if name != "seconds"]
    title = f"mean (sd of the difference from '{ALL}') of {seeds} seeds"
    table = Table("without", *names, "time", title=title)
    lines: list[dict[str, Any]] = []
    for part in parts:
        rows = [json.loads(_file(output, part, seed).read_text()) for seed in range(seeds)]
        cells = {name: np.array([row[name] for row in rows]) for name in names}
        change = {name: cells[name] - [row[name] for row in whole] for name in names}
        spread = {name: float(change[name].std(ddof=1)) if seeds > 1 else 0.0 for name in names}
        said = [f"{cells[name].mean():.4f} {change[name].mean():+.4f} ({spread[name]:.4f})" for name in names]
        cost = np.mean([row["seconds"] / one["seconds"] for row, one in zip(rows, whole, strict=True)])
        table.add_row(part.title, *said, f"{cost:.2f}")
        lines.append({"without": part.title, "time": cost, "scores": {key: list(cells[key]) for key in names}})
    console.print(table)
    (output / "results.json").write_text(json.dumps(lines, indent=1) + "\n")


def _file(output: Path, part: Part, seed: int) -> Path:
    """Where one fit's scores lie."""
    return output / f"{''.join(c if c.isalnum() else '_' for c in part.title)}_{seed}.json"


if __name__ == "__main__":
    typer.run(main)
