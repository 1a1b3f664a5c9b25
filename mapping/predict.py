"""`agriclip map STUDY`: the present and every scenario as cloud-optimised GeoTIFFs, a band of rows at a time.

Memory is set by the band and not by the grid. The report is tokenised once; in a band each distinct report is encoded
once, however many cells tell it and whether or not the image is shown beside it. Every probability comes with its
answer without the image, its spread over the ensemble's members, and the novelty of its climate. A band's imagery is
encoded once for all scenarios. A cell is nodata in
every layer when any predictor is missing there, or the imagery is nodata throughout its chip.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from mapping.novelty import MessReference
from mapping.outputs import RowBandWriter, file_sha256, iterate_rows
from modeling_agriclip import AgriClipForSuitability, Calibration
from modeling_agriclip.calibration_agriclip import FILE_NAME as CALIBRATION
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.climate_report import ReportTokens
from processing.errors import AgriClipError
from processing.study import Study, load_study
from processing.study_data import StudyData

PRESENT = "present"
_BATCH = 256


@dataclass
class Member:
    """A fitted network.

    Attributes:
        model: The network, in evaluation mode.
        path: Its folder.
        calibration: What makes its probabilities honest, where one was fitted.
    """

    model: AgriClipForSuitability
    path: Path
    calibration: Calibration | None = None


@dataclass
class Answer:
    """What an ensemble says of N cells, each (N,) float32.

    Attributes:
        probability: Mean probability of suitability over members.
        without_image: The same from the report alone.
        std: Standard deviation over members; 0 for a single one.
        share: Mean predicted share, for models of a share; else None.
    """

    probability: NDArray[np.float32]
    without_image: NDArray[np.float32]
    std: NDArray[np.float32]
    share: NDArray[np.float32] | None


class SuitabilityPredictor:
    """The members of a model folder, asked together.

    Args:
        model_dir: Folder of `fit_study`; its `members/` if there are any, else the model itself.

    Raises:
        AgriClipError: There is no model in the folder.
    """

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        if not (folder / "config.json").exists():
            raise AgriClipError(f"There is no model in '{folder}'; make one with `agriclip fit STUDY`.")
        transformers_logging.disable_progress_bar()
        self.processor = AutoProcessor.from_pretrained(folder)
        folders = sorted((folder / "members").glob("fold_*")) or [folder]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.members = [self._load(path) for path in folders]
        self.hash = file_sha256(folder / "model.safetensors")

    def _load(self, path: Path) -> Member:
        """A member with its calibration, if it has one."""
        model = AgriClipForSuitability.from_pretrained(path).eval().to(self.device)
        calibrated = (path / CALIBRATION).exists()
        return Member(model, path, Calibration.load(path) if calibrated else None)

    @torch.inference_mode()
    def look(self, images: dict[str, Tensor]) -> list[AgriClipVisionOutput]:
        """What each member sees in N images; the images of a place are the same in every scenario.

        Args:
            images: `pixel_values` (N, C, s, s), `pixel_mask`, `channels` (C, 4) and `gsd` (1,).
        """
        seen = []
        for member in self.members:
            parts = []
            for start in range(0, len(images["pixel_values"]), _BATCH):
                cut = {k: v[start : start + _BATCH] if k.startswith("pixel") else v for k, v in images.items()}
                parts.append(member.model.vision_model(**cut))
            # The place as a whole is asked, not the cells of its chip.
            joined = {key: torch.cat([part[key] for part in parts]) for key in ("pooler_output", "image_valid")}
            nothing = joined["pooler_output"][:, None][:, :0]
            seen.append(AgriClipVisionOutput(last_hidden_state=nothing, cell_mask=nothing[..., 0].long(), **joined))
        return seen

    @torch.inference_mode()
    def predict(
        self, tokens: ReportTokens, values: NDArray[np.float32], seen: list[AgriClipVisionOutput] | None = None
    ) -> Answer:
        """Ask all members about N cells.

        Args:
            tokens: The tokenised report.
            values: (N, n_slots) numbers of each cell's report.
            seen: What [`look`] returned for the N cells; None for no image.
        """
        parts = [self._batch(tokens, values, seen, start) for start in range(0, len(values), _BATCH)]
        joined = {key: torch.cat([part[key] for part in parts], dim=1).float().cpu().numpy() for key in parts[0]}
        probability = joined["with"]
        return Answer(
            probability=probability.mean(axis=0),
            without_image=joined["without"].mean(axis=0),
            std=probability.std(axis=0, ddof=1) if len(probability) > 1 else np.zeros_like(probability[0]),
            share=joined["share"].mean(axis=0) if "share" in joined else None,
        )

    def _batch(
        self,
        tokens: ReportTokens,
        values: NDArray[np.float32],
        seen: list[AgriClipVisionOutput] | None,
        start: int,
    ) -> dict[str, Tensor]:
        """Answers of every member to the cells from `start` on, each (K, B)."""
        distinct, cell = np.unique(values[start : start + _BATCH], axis=0, return_inverse=True)
        numbers = torch.from_numpy(tokens.numeric_values(distinct)).to(self.device)
        ids = torch.from_numpy(tokens.input_ids).to(self.device).expand(len(distinct), -1)
        mask = torch.from_numpy(tokens.attention_mask).to(self.device)
        place = torch.from_numpy(cell.reshape(-1)).to(self.device)
        answers: dict[str, list[Tensor]] = {"with": [], "without": []}
        for number, member in enumerate(self.members):
            text = member.model.text_model(ids, mask.expand(len(distinct), -1), numbers)
            # Encoded once a distinct report, then handed to each cell that tells it.
            text.last_hidden_state, text.pooler_output = text.last_hidden_state[place], text.pooler_output[place]
            asked = {"attention_mask": mask.expand(len(place), -1), "text_model_output": text}
            if seen is not None:
                cut = {key: value[start : start + _BATCH] for key, value in seen[number].items()}
                asked["vision_model_output"] = AgriClipVisionOutput(**cut)
            answer = member.model(**asked)
            for key, chance in (("with", answer.probabilities), ("without", answer.report_probabilities)):
                answers[key].append(chance if member.calibration is None else member.calibration.apply(chance))
            if answer.share is not None:
                answers.setdefault("share", []).append(answer.share)
        return {key: torch.stack(parts) for key, parts in answers.items()}


def map_study(
    study: Study | str | Path,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    scenarios: list[str] | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, str]]:
    """Map the present and the scenarios of a study.

    Args:
        study: A study or the path of its file.
        model_dir: Folder of a fitted model.
        output_dir: Maps go to the folder `maps` in it, as `<scenario>_<layer>.tif`.
        scenarios: Names of the scenarios to map besides the present; all of the study's if None.
        quiet: No progress bar.

    Returns:
        Paths by scenario and layer: `probability`, `probability_without_image`, `image_effect`, `std`, `mess`,
        `mess_variable`, and `share` for models of a share.

    Raises:
        AgriClipError: No model in the folder, an unknown scenario, or a model fitted to other variables.
    """
    study = study if isinstance(study, Study) else load_study(study)
    data = StudyData(study)
    predictor = SuitabilityPredictor(model_dir)
    tokens = data.template.tokenise(predictor.processor)
    chosen = [study.scenario(name) for name in scenarios] if scenarios is not None else list(study.scenarios)
    sites = data.labels()
    reference = MessReference(data.predictors(sites.x, sites.y), [variable.name for variable in data.variables])
    shared = predictor.members[0].model.config.suitability_likelihood == "share"

    rows_per_band = study.map.block_rows or max(1, 2048 // data.grid.width)
    bands = list(iterate_rows(data.grid.height, rows_per_band))
    folder = Path(output_dir) / "maps"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack, Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("Mapping", total=len(bands) * (1 + len(chosen)))
        writers = {
            scenario: _open_writers(stack, folder, study, data, scenario, predictor, shared)
            for scenario in [None, *(scenario.name for scenario in chosen)]
        }
        for rows in bands:
            present = data.predictor_grid(rows)
            seen = _see_band(data, predictor, rows, present)
            for scenario, layers in writers.items():
                predictors = present if scenario is None else data.predictor_grid(rows, scenario)
                for layer, values in _map_band(data, predictor, tokens, reference, predictors, seen).items():
                    if layer in layers:
                        layers[layer].write(rows.start, values)
                progress.advance(task)
    return {
        PRESENT if scenario is None else scenario: {layer: str(writer.path) for layer, writer in layers.items()}
        for scenario, layers in writers.items()
    }


def _open_writers(
    stack: ExitStack,
    folder: Path,
    study: Study,
    data: StudyData,
    scenario: str | None,
    predictor: SuitabilityPredictor,
    shared: bool,
) -> dict[str, RowBandWriter]:
    """One writer a layer of a scenario; what they have begun disappears if the block ends in an error."""
    tags = _tags(study, scenario, predictor)
    writers = {}
    for layer, (long_name, unit, extra) in _layers(study, data, shared).items():
        classes = layer == "mess_variable"
        writers[layer] = stack.enter_context(
            RowBandWriter(
                folder / f"{scenario or PRESENT}_{layer}.tif",
                data.grid,
                dtype="int16" if classes else "float32",
                nodata=-1 if classes else None,
                band_names=[layer],
                units=[unit],
                tags={**tags, "long_name": long_name, "units": unit, **extra},
                overview_resampling="nearest" if classes else None,
            )
        )
    return writers


@dataclass
class SeenBand:
    """Imagery of a band of rows, encoded.

    Attributes:
        cells: Places, in the flattened band, of the cells with a valid pixel in their chip.
        outputs: What each member sees there; None without imagery.
    """

    cells: NDArray[np.int64]
    outputs: list[AgriClipVisionOutput] | None


def _see_band(data: StudyData, predictor: SuitabilityPredictor, rows: slice, present: NDArray[np.float64]) -> SeenBand:
    """Encode the chips around the cells of a band, once for all scenarios; only where the present has predictors."""
    x, y = (axis.reshape(-1) for axis in data.grid.cell_centres(rows))
    known = np.isfinite(present).all(axis=0).reshape(-1)
    cells = np.flatnonzero(known)
    if not data.channels or not len(cells):
        return SeenBand(cells, None)
    chips, valid = data.chips(x[cells], y[cells])
    seen = valid.any(axis=(1, 2, 3))
    cells = cells[seen]
    if not len(cells):
        return SeenBand(cells, None)
    pixels, mask = predictor.processor.image_processor.normalize_values(chips[seen], data.channels, valid[seen])
    images = {
        "pixel_values": torch.as_tensor(pixels, dtype=torch.float32).to(predictor.device),
        "pixel_mask": torch.as_tensor(mask).bool().to(predictor.device),
        "channels": torch.tensor([channel.code() for channel in data.channels], device=predictor.device),
        "gsd": torch.tensor([data.gsd], device=predictor.device),
    }
    return SeenBand(cells, predictor.look(images))


def _map_band(
    data: StudyData,
    predictor: SuitabilityPredictor,
    tokens: ReportTokens,
    reference: MessReference,
    predictors: NDArray[np.float64],
    seen: SeenBand,
) -> dict[str, NDArray[Any]]:
    """All layers of a band of rows, each (h, w), from its predictors (M, h, w) under a scenario."""
    shape = predictors.shape[1:]
    table = predictors.reshape(len(predictors), -1).T
    known = np.isfinite(table[seen.cells]).all(axis=1)
    cells = seen.cells[known]

    def layer(values: Any, fill: float = np.nan, dtype: str = "float32") -> NDArray[Any]:
        full = np.full(len(table), fill, dtype=dtype)
        full[cells] = values
        return full.reshape(shape)

    if not len(cells):
        names = ("probability", "probability_without_image", "image_effect", "std", "share", "mess")
        return {**{name: layer([]) for name in names}, "mess_variable": layer([], -1, "int16")}
    outputs = seen.outputs
    if outputs is not None and not known.all():
        keep = torch.from_numpy(known).to(predictor.device)
        outputs = [AgriClipVisionOutput(**{key: value[keep] for key, value in out.items()}) for out in outputs]
    answer = predictor.predict(tokens, data.template.values(table[cells]), outputs)
    novelty = reference.score(table[cells])
    layers = {
        "probability": layer(answer.probability),
        "probability_without_image": layer(answer.without_image),
        "image_effect": layer(answer.probability - answer.without_image),
        "std": layer(answer.std),
        "mess": layer(novelty.mess),
        "mess_variable": layer(novelty.variable, -1, "int16"),
    }
    if answer.share is not None:
        layers["share"] = layer(answer.share)
    return layers


def _layers(study: Study, data: StudyData, shared: bool) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Long name, unit and further tags of every layer."""
    what = "probability of suitability"
    if shared:
        what = f"probability that the share of land exceeds {study.labels.presence_above:g}"
    layers: dict[str, tuple[str, str, dict[str, Any]]] = {
        "probability": (what, "1", {}),
        "probability_without_image": (f"{what}, from the report alone", "1", {}),
        "image_effect": (f"{what}: with the image less without it", "1", {}),
        "std": (f"{what}: standard deviation over the ensemble's members", "1", {}),
        "mess": ("novelty (MESS): below 0 a variable lies outside the range of the labelled sites", "%", {}),
        "mess_variable": (
            "variable that is most unlike the labelled sites",
            "1",
            {"classes": {i: variable.name for i, variable in enumerate(data.variables)}},
        ),
    }
    if shared:
        layers["share"] = ("predicted share of land (median)", "1", {})
    return layers


def _tags(study: Study, name: str | None, predictor: SuitabilityPredictor) -> dict[str, Any]:
    """What every map says of itself."""
    scenario = None if name is None else study.scenario(name)
    tags = {
        "study": study.name,
        "study_fingerprint": study.fingerprint(),
        "scenario": PRESENT if scenario is None else scenario.name,
        "model_sha256": predictor.hash,
        "members": len(predictor.members),
        "software": "AgriCLIP",
    }
    if scenario is not None:
        told = {key: getattr(scenario, key, None) for key in ("title", "ssp", "period", "climate_model")}
        tags |= {key: value for key, value in told.items() if value}
    return tags
