"""`agriclip map STUDY`: the present and every scenario as cloud-optimised GeoTIFFs, a band of rows at a time.

Memory is set by the band and not by the grid. Bands that are done are kept until the maps are whole, so an
interrupted map goes on where it stopped, and several processes share the bands; the rasters are the same to the byte.
Every probability comes with its answer without the image, its spread over the ensemble's members, and how far it can
be trusted. A band's imagery is encoded once for all scenarios. A cell is nodata in every layer when any predictor is
missing there, or the imagery is nodata throughout its chip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mapping.applicability import ApplicabilityReference, prediction_set_layer
from mapping.band_store import BandStore, fingerprint, remove_left_over
from mapping.layers import SET_LEVEL, Layer, suitability_layers
from mapping.novelty import MessReference
from mapping.outputs import iterate_rows
from mapping.predictor import SuitabilityPredictor
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.climate_report import ReportTokens
from processing.plans import fingerprint_code
from processing.rasters import file_of
from processing.scenario_checks import require_scenarios
from processing.study import PRESENT, Study, load_study
from processing.study_data import StudyData

#: Folder of the bands that are done, beside the maps.
UNFINISHED = ".maps-partial"
#: Code that decides what a map holds; half a map of other code is not gone on with.
CODE = (
    "modeling_agriclip",
    "processing",
    *(f"mapping/{name}.py" for name in ("applicability", "layers", "novelty", "predict", "predictor")),
)
_CELLS = 2048  # of a band


def map_study(
    study: Study | str | Path,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    scenarios: list[str] | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> dict[str, dict[str, str]]:
    """Map the present and the scenarios of a study.

    Args:
        study: A study or the path of its file.
        model_dir: Folder of a fitted model.
        output_dir: Maps go to the folder `maps` in it, as `<scenario>_<layer>.tif`.
        scenarios: Names of the scenarios to map besides the present; all of the study's if None.
        restart: Throw away what an interrupted map left, instead of going on with it.
        quiet: No progress bar.

    Returns:
        Paths by scenario and layer, see [`mapping.layers.suitability_layers`].

    Raises:
        AgriClipError: No model in the folder, an unknown scenario, a model fitted to other variables, layers of a
            scenario that do not belong to those of the present, or unfinished maps of another plan.
    """
    study = study if isinstance(study, Study) else load_study(study)
    data = StudyData(study)
    chosen = [study.scenario(name).name for name in scenarios] if scenarios is not None else None
    names = [scenario.name for scenario in study.scenarios] if chosen is None else chosen
    require_scenarios(data, names)
    mapper = StudyMapper(data, SuitabilityPredictor(model_dir))
    rows_per_band = study.map.block_rows or max(1, _CELLS // data.grid.width)
    bands = list(iterate_rows(data.grid.height, rows_per_band))
    plan = {
        "study": study.fingerprint(),
        "data": fingerprint([file_of(study.path(file)) for _, file in study.files() if "://" not in file]),
        "model": mapper.predictor.hash,
        "scenarios": names,
        "rows": rows_per_band,
        "code": fingerprint_code(*CODE),
    }
    cells = data.grid.height * data.grid.width * (1 + len(names))
    bytes_needed = 2 * cells * sum(np.dtype(layer.dtype).itemsize for layer in mapper.layers.values())
    folder = Path(output_dir)
    with (
        BandStore(folder / UNFINISHED, plan, len(bands), restart=restart, bytes_needed=bytes_needed) as store,
        _progress(quiet or not store.is_main) as progress,
    ):
        mine = store.pending()
        task = progress.add_task("Mapping", total=len(mine) * (1 + len(names)))

        def work_on(unit: int) -> None:
            store.save(unit, mapper.map_band(bands[unit], names, lambda: progress.advance(task)))

        for_each(mine, work_on)
        store.wait_for_everyone()
        paths = _paths(folder / "maps", mapper.layers, names)
        if store.is_main:
            task = progress.add_task("Writing", total=len(paths))
            for scenario, files in paths.items():
                _assemble(store, bands, mapper, scenario, files)
                progress.advance(task)
        store.finish()
    return {scenario: {layer: str(path) for layer, path in files.items()} for scenario, files in paths.items()}


class StudyMapper:
    """Maps bands of rows of a study's grid.

    Args:
        data: The study's data.
        predictor: A model fitted to its variables.

    Attributes:
        data: As given.
        predictor: As given.
        layers: What a map holds.
    """

    def __init__(self, data: StudyData, predictor: SuitabilityPredictor) -> None:
        self.data, self.predictor = data, predictor
        self.tokens: ReportTokens = data.template.tokenise(predictor.processor)
        sites = data.labels()
        known = data.predictors(sites.x, sites.y)
        self._mess = MessReference(known, [variable.name for variable in data.variables])
        self._applicable = ApplicabilityReference.of_study(data)
        config = predictor.members[0].model.config
        sets = predictor.calibration is not None and predictor.calibration.levels
        level = SET_LEVEL if sets else None
        self.layers = suitability_layers(data.study, data, config.suitability_likelihood == "share", level)
        self.layers["applicability"].tags["threshold"] = self._applicable.threshold

    def map_band(self, rows: slice, scenarios: list[str], advance: Any = lambda: None) -> dict[str, NDArray[Any]]:
        """All layers of all climates of a band of rows, each (h, w), as `<scenario>/<layer>`."""
        present = self.data.predictor_grid(rows)
        seen = self._look(rows, present)
        found = {}
        for scenario in [PRESENT, *scenarios]:
            predictors = present if scenario == PRESENT else self.data.predictor_grid(rows, scenario)
            for name, values in self._answers(predictors, seen).items():
                found[f"{scenario}/{name}"] = values
            advance()
        return found

    def _look(self, rows: slice, present: NDArray[np.float64]) -> SeenBand:
        """Encode the chips around the cells of a band, once for all scenarios; only where there are predictors."""
        data, predictor = self.data, self.predictor
        x, y = (axis.reshape(-1) for axis in data.grid.cell_centres(rows))
        cells = np.flatnonzero(np.isfinite(present).all(axis=0).reshape(-1))
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

    def _answers(self, predictors: NDArray[np.float64], seen: SeenBand) -> dict[str, NDArray[Any]]:
        """All layers of a band, each (h, w), from its predictors (M, h, w) under one climate."""
        shape = predictors.shape[1:]
        table = predictors.reshape(len(predictors), -1).T
        known = np.isfinite(table[seen.cells]).all(axis=1)
        cells = seen.cells[known]
        full = {name: layer.empty((len(table),)) for name, layer in self.layers.items()}
        if len(cells):
            for name, values in self._answers_at(table[cells], seen.only(known)).items():
                if name in full:
                    full[name][cells] = values
        return {name: values.reshape(shape) for name, values in full.items()}

    def _answers_at(
        self, table: NDArray[np.float64], seen: list[AgriClipVisionOutput] | None
    ) -> dict[str, NDArray[Any]]:
        """All layers at N cells with predictors (N, M)."""
        answer = self.predictor.predict(self.tokens, self.data.template.values(table), seen)
        novelty, applicable = self._mess.score(table), self._applicable.score(table)
        found = {
            "probability": answer.probability,
            "probability_without_image": answer.without_image,
            "image_effect": answer.probability - answer.without_image,
            "std": answer.std,
            "mutual_information": answer.mutual_information,
            "mess": novelty.mess,
            "mess_variable": novelty.variable,
            "out_of_range": novelty.out_of_range,
            "dissimilarity": applicable.dissimilarity,
            "applicability": applicable.classes,
        }
        if answer.share is not None:
            found["share"] = answer.share
        if "prediction_set" in self.layers:
            found["prediction_set"] = prediction_set_layer(self.predictor.calibration, answer.median, SET_LEVEL)
        return found


@dataclass
class SeenBand:
    """Imagery of a band of rows, encoded.

    Attributes:
        cells: Places, in the flattened band, of the cells with a valid pixel in their chip.
        outputs: What each member sees there; None without imagery.
    """

    cells: NDArray[np.int64]
    outputs: list[AgriClipVisionOutput] | None

    def only(self, known: NDArray[np.bool_]) -> list[AgriClipVisionOutput] | None:
        """What is seen at some of the cells."""
        if self.outputs is None or known.all():
            return self.outputs
        keep = torch.from_numpy(known).to(self.outputs[0].pooler_output.device)
        return [AgriClipVisionOutput(**{key: value[keep] for key, value in out.items()}) for out in self.outputs]


def for_each(units: Iterable[int], work_on: Callable[[int], None]) -> None:
    """Work on units side by side, one thread of torch each, where torch would have split every product.

    The order in which a product is summed depends on the number of threads; so a map made by several processes, which
    have fewer threads each, is the same to the bit.

    Raises:
        BaseException: What the first unit that failed raised; those not begun yet are left.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = 1 if torch.cuda.is_available() else threads
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    try:
        for done in as_completed([pool.submit(work_on, unit) for unit in units]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _paths(folder: Path, layers: Mapping[str, Layer], scenarios: list[str]) -> dict[str, dict[str, Path]]:
    return {
        scenario: {name: folder / f"{scenario}_{name}.tif" for name in layers} for scenario in [PRESENT, *scenarios]
    }


def _assemble(
    store: BandStore, bands: list[slice], mapper: StudyMapper, scenario: str, files: Mapping[str, Path]
) -> None:
    """Write the rasters of one climate from the bands, top to bottom."""
    tags = _tags(mapper.data.study, None if scenario == PRESENT else scenario, mapper.predictor)
    for path in files.values():
        remove_left_over(path)
    with ExitStack() as stack:
        writers = {
            name: mapper.layers[name].open(stack, path, mapper.data.grid, name, tags) for name, path in files.items()
        }
        for unit, rows in enumerate(bands):
            for name, writer in writers.items():
                key = f"{scenario}/{name}"
                writer.write(rows.start, store.load_rows(unit, key, slice(0, rows.stop - rows.start)))
    for name, path in files.items():
        mapper.layers[name].write_style(path)


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=quiet)


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


__all__ = ["PRESENT", "StudyMapper", "SuitabilityPredictor", "map_study"]
