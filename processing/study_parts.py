"""The parts of a study file as typed models: what may be written under each key, and what its values mean.

Unknown keys are refused everywhere and values do not change after reading. Each part checks only itself; what one part
says about another, and about files, is checked where the whole study is read (`study.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import nearest
from .numbers_agriclip import canonical_unit
from .sensors_agriclip import CHANNEL_KINDS

NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"
PRESENT = "present"  # the name under which maps of the observed climate are written


def _unit(text: str) -> str:
    canonical_unit(text)  # raises ValueError with the nearest known unit
    return text


def _ordered(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} must lie below the upper bound {bounds[1]}")
    return bounds


# Terms of the objective beside the prediction; training/objective.py says what each is.
ObjectiveTerm = Literal[
    "adversarial",
    "reconstruction",
    "consistency",
    "diversity",
    "alignment",
    "detection",
    "masked_language",
    "report_only",
    "image_effect",
]
Unit = Annotated[str, AfterValidator(_unit)]
Range = Annotated[tuple[float, float] | None, AfterValidator(_ordered)]


class Part(BaseModel):
    """A part of a study: unknown keys are refused, numbers must be finite, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GridPart(Part):
    """The cells to map: bounds, CRS and resolution, or the grid of a raster (`like`).

    Attributes:
        bounds: West, south, east, north in CRS units; across the antimeridian the east runs on: 170 to 190.
        crs: Coordinate reference system.
        resolution: Edge of a cell in CRS units.
        like: Raster whose grid is taken instead.
    """

    bounds: tuple[float, float, float, float] | None = None
    crs: str | None = None
    resolution: float | None = Field(default=None, gt=0)
    like: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_hand = [self.bounds, self.crs, self.resolution]
        if (self.like is None) == all(part is None for part in by_hand) or (self.like is None and None in by_hand):
            raise ValueError("give either `like: some_raster.tif` or all of `bounds`, `crs` and `resolution`")
        return self


class LabelsPart(Part):
    """The labelled sites, one row of a CSV each.

    Attributes:
        table: CSV file with a header.
        id: Column with the site's name, used in messages.
        x: Column with easting or longitude.
        y: Column with northing or latitude.
        crs: CRS of x and y.
        kind: `share` (positive out of total), `presence_absence` (positive is 0 or 1) or `presence_only`.
        positive: Column with the number of positive units (pixels, fields, years), or 0/1; not for `presence_only`.
        total: Column with the number of units looked at; needed for `share`.
        weight: Column with a site's weight; 1 by default.
        min_total: Sites with a smaller total are left out.
        repeated: What to do when a site has several rows: `refuse`, or keep the `first`.
        presence_above: A site counts as present where its share exceeds this.
    """

    table: str
    id: str
    x: str
    y: str
    crs: str = "EPSG:4326"
    kind: Literal["share", "presence_absence", "presence_only"] = "share"
    positive: str | None = None
    total: str | None = None
    weight: str | None = None
    min_total: float = Field(default=1.0, gt=0)
    repeated: Literal["refuse", "first"] = "refuse"
    presence_above: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _columns(self) -> Self:
        if self.kind != "presence_only" and self.positive is None:
            raise ValueError(f"labels of kind '{self.kind}' need `positive`, the column that counts positive units")
        if self.kind == "share" and self.total is None:
            raise ValueError("labels of kind 'share' need `total`, the column that counts the units looked at")
        return self


class Variable(Part):
    """One predictor: a band of a raster with a name, a plain title and a unit.

    Attributes:
        name: Name in report sentences and tables.
        band: Band number (from 1) or description; the name by default.
        title: Words for the report, e.g. `annual mean temperature`.
        unit: Unit of the stored values; they are converted to the canonical unit.
        decimals: Digits after the point in the report, in the canonical unit; the model sees no more than these.
        scale: Factor on the stored values, on top of the raster's own scale tag.
        offset: Added after `scale`.
        valid_range: Values outside, in the stated unit, count as missing.
        change: How the change of a `delta` scenario is put on: `difference` (future less baseline is added) or `ratio`
            (multiplied by future over baseline, held to 0.2-5); by default `ratio` for amounts in mm, which cannot be
            negative, and `difference` for all else. Write `difference` for a balance in mm.
    """

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    band: int | str | None = None
    title: str
    unit: Unit = "1"
    decimals: int = Field(default=1, ge=0, le=6)
    scale: float = 1.0
    offset: float = 0.0
    valid_range: Range = None
    change: Literal["difference", "ratio"] | None = None

    @property
    def canonical_unit(self) -> str:
        """The unit in which values reach report and model."""
        return canonical_unit(self.unit)

    @property
    def changed_by(self) -> Literal["difference", "ratio"]:
        """How a change of climate is put on this variable."""
        return self.change or ("ratio" if self.canonical_unit == "mm" else "difference")

    @property
    def source_band(self) -> int | str:
        """The band in its raster."""
        return self.name if self.band is None else self.band


class Predictors(Part):
    """A raster and the variables taken from it.

    Attributes:
        file: Raster file: GeoTIFF, COG, VRT, or a variable of a NetCDF or Zarr file, as `climate.nc:tas`.
        variables: What its bands are.
        resampling: How it is brought to the grid when it lies on another. `auto` is `nearest` where its cells are
            clearly larger than the grid's (by half or more), so that each cell tells the report of its climate cell,
            as labelled sites do; and `bilinear` elsewhere.
    """

    file: str
    variables: tuple[Variable, ...] = Field(min_length=1)
    resampling: Literal["auto", "nearest", "bilinear", "cubic", "average", "mode"] = "auto"


class StudyChannel(Part):
    """One band of imagery, described so that the model can read it whatever the sensor.

    Attributes:
        band: Band number (from 1) or description.
        name: Name in messages; made from variable and month by default.
        kind: Kind of channel, e.g. `reflectance`, `index`, `cover_fraction`.
        wavelength_nm: Centre wavelength.
        month: Month 1-12 of a monthly layer.
        variable: What is measured where no wavelength says it, e.g. `ndvi`.
        mean: Mean in physical units; taken from the raster under the grid by default.
        std: Standard deviation in physical units; likewise.
        unit: Physical unit.
        scale: Factor on the stored values, on top of the raster's own scale tag.
        offset: Added after `scale`.
        valid_range: Physical values outside count as missing.
    """

    band: int | str = 1
    name: str | None = None
    kind: str
    wavelength_nm: float | None = Field(default=None, gt=0)
    month: int | None = Field(default=None, ge=1, le=12)
    variable: str | None = None
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)
    unit: Unit = "1"
    scale: float = 1.0
    offset: float = 0.0
    valid_range: Range = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in CHANNEL_KINDS:
            raise ValueError(f"'{kind}' is no kind of channel; {nearest(kind, CHANNEL_KINDS)}")
        return kind

    @property
    def label(self) -> str:
        """The channel's name."""
        if self.name:
            return self.name
        stem = self.variable or (f"{self.kind}_{self.wavelength_nm:g}" if self.wavelength_nm else self.kind)
        return f"{stem}_{self.month:02d}" if self.month else stem


class Reduce(Part):
    """Order statistics over the listed bands, per pixel: keeps how green and how varied, drops when (the phenology).

    Attributes:
        percentiles: Percentiles, 0-100; each becomes one channel.
        min_valid: Bands that must be valid at a pixel; half of them by default.
    """

    percentiles: tuple[float, ...] = Field(min_length=1)
    min_valid: int | None = Field(default=None, ge=1)

    @field_validator("percentiles")
    @classmethod
    def _within(cls, percentiles: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= p <= 100 for p in percentiles) or len(set(percentiles)) != len(percentiles):
            raise ValueError("percentiles must be different numbers from 0 to 100")
        return percentiles


class Imagery(Part):
    """A raster of imagery and its channels.

    Attributes:
        file: Raster file.
        gsd: Ground sample distance in metres; from the raster's cells by default.
        channels: The bands to read.
        reduce: Optional order statistics in place of the bands.
    """

    file: str
    gsd: float | None = Field(default=None, gt=0)
    channels: tuple[StudyChannel, ...] = Field(min_length=1)
    reduce: Reduce | None = None

    @model_validator(mode="after")
    def _reducible(self) -> Self:
        if self.reduce is not None:
            said = {(c.kind, c.variable, c.wavelength_nm, c.unit) for c in self.channels}
            if len(said) > 1:
                raise ValueError("`reduce` mixes its bands, so they must have the same kind, variable and unit")
            if (self.reduce.min_valid or 1) > len(self.channels):
                raise ValueError(f"`min_valid` asks for {self.reduce.min_valid} of {len(self.channels)} bands")
        return self


class Chip(Part):
    """The window of imagery around a cell, in pixels."""

    size: int = Field(default=16, ge=1, le=1024)


class Report(Part):
    """The report's sentences, with `{variable}` where a number and its unit go; one clause per variable by default."""

    sentences: tuple[str, ...] | None = Field(default=None, min_length=1)


class Splits(Part):
    """How sites are held out.

    Attributes:
        kind: `spatial_blocks` (square blocks stay together) or `random` (only to show how optimistic it is).
        size: Edge of a block in units of the grid's CRS.
        folds: Number of folds.
        seed: Seed of the assignment.
    """

    kind: Literal["spatial_blocks", "random"] = "spatial_blocks"
    size: float | None = Field(default=None, gt=0)
    folds: int = Field(default=5, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.kind == "spatial_blocks" and self.size is None:
            raise ValueError("spatial blocks need `size`, the edge of a block in units of the grid's CRS")
        return self


class Delta(Part):
    """Two rasters of one climate model whose change is put on the observed predictors."""

    baseline: str
    future: str


class Scenario(Part):
    """A climate to map: predictor files replaced, or changed by the difference of two files (delta method).

    Attributes:
        name: Short name, used in file names.
        title: Words for the legend.
        ssp: Shared socio-economic pathway, e.g. `ssp585`.
        period: Years or year.
        climate_model: Climate model.
        replace: Predictor file -> file with the same bands under this climate.
        delta: Predictor file -> baseline and future file of one climate model.
    """

    name: str = Field(pattern=NAME)
    title: str | None = None
    ssp: str | None = None
    period: int | str | None = None
    climate_model: str | None = None
    replace: dict[str, str] = Field(default_factory=dict)
    delta: dict[str, Delta] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _changes(self) -> Self:
        if self.name.lower() == PRESENT:
            raise ValueError(f"'{PRESENT}' names the map of the observed climate; give the scenario another name")
        if not self.replace and not self.delta:
            raise ValueError("a scenario needs `replace` or `delta`, else it is the present")
        both = sorted(set(self.replace) & set(self.delta))
        if both:
            raise ValueError(f"'{both[0]}' is both replaced and changed by delta; choose one")
        return self


class ModelPart(Part):
    """Size of the network, and configuration values that differ from that size's."""

    size: Literal["tiny", "small", "base"] = "tiny"
    overrides: dict[str, Any] = Field(default_factory=dict)


class Lora(Part):
    """Low-rank adapters in place of fitting every weight.

    Attributes:
        recipe: Which parts get adapters: `report`, `fusion`, `vision` or `all`; or several of them.
        rank: Rank of each adapter.
        dora: Split a weight's size from its direction (DoRA).
    """

    recipe: str | list[str] = "all"
    rank: int = Field(default=8, ge=1)
    dora: bool = False


class Training(Part):
    """How the model is fitted.

    Attributes:
        objective: What the labels are fitted as: `binary` (binomial likelihood of the counts), `share` (likelihood
            for rare shares) or `presence_only` (found or unknown).
        preset: Which terms stand beside the prediction: `default`, `light` (fewer), `full` (with attacks and
            detection), or one of the paper's four totals.
        weights: Weight of single terms, in place of the preset's.
        epochs: Passes over the sites.
        batch_size: Sites per step, over all processes.
        chunk_size: Sites in memory at a time; a larger batch is run in chunks, with the gradients of the whole.
        learning_rate: Highest learning rate.
        weight_decay: Decoupled weight decay.
        schedule: How the learning rate falls: `cosine`, `step` (to a tenth every `step_epochs`) or `plateau` (to a
            tenth where the validation stands still).
        step_epochs: Epochs between two steps.
        validation: Share of the blocks that are fitted to which is set aside to watch the fit.
        patience: Stop after so many epochs without a better log loss on the validation blocks.
        average: Share of the running mean of the weights that each step keeps, such as 0.995; the mean is what a fit
            ends with. 0 ends with the last weights.
        gaussian_process: Put a Gaussian process over the fitted places beside each network, for the objective `share`.
        image_dropout: Share of samples shown without their image.
        sentence_dropout: Share of a report's clauses left out while fitting.
        number_dropout: Share of a report's numbers missing while fitting.
        number_noise: Noise on a report's numbers while fitting, in standard deviations over the sites.
        band_noise: Offset on each channel while fitting, in standard deviations of the channel.
        pixel_dropout: Largest share of an image's pixels hidden while fitting.
        pretraining_epochs: Passes without labels before the fit, over the sites and as many unlabelled places.
        unlabelled: Unlabelled places of the grid that are mixed in, as a share of the sites.
        start: Model folder or Hub name whose weights the fit starts from.
        report_encoder: Sentence encoder that reads the reports in place of a fresh one: a folder, an installed
            package or a Hub name, such as `sentence-transformers/all-MiniLM-L6-v2`.
        tuning: What is fitted of a model: `full`, `lora` or `frozen` (the heads only).
        lora: The adapters, for `lora`.
        precision: Numbers that the network computes with.
        gradient_checkpointing: Compute activations twice and keep fewer of them.
        compile: Compile the network first.
        calibration: How probabilities are calibrated on held-out blocks: `none`, `temperature`, `platt`, `isotonic`,
            or `auto` to choose by cross-validation.
        members: Models in the ensemble, each fitted without one fold.
        seed: Seed of weights and order.
    """

    objective: Literal["binary", "share", "presence_only"] = "binary"
    preset: Literal["default", "light", "full", "paper_f1", "paper_f16", "paper_f19", "paper_f22"] = "default"
    weights: dict[ObjectiveTerm, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    chunk_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    schedule: Literal["cosine", "step", "plateau"] = "cosine"
    step_epochs: int = Field(default=10, ge=1)
    validation: float = Field(default=0.0, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    average: float = Field(default=0.0, ge=0, lt=1)
    gaussian_process: bool = True
    image_dropout: float = Field(default=0.1, ge=0, le=1)
    sentence_dropout: float = Field(default=0.0, ge=0, lt=1)
    number_dropout: float = Field(default=0.0, ge=0, lt=1)
    number_noise: float = Field(default=0.1, ge=0)
    band_noise: float = Field(default=0.1, ge=0)
    pixel_dropout: float = Field(default=0.5, ge=0, le=1)
    pretraining_epochs: int = Field(default=0, ge=0)
    unlabelled: float = Field(default=0.0, ge=0)
    start: str | None = None
    report_encoder: str | None = None
    tuning: Literal["full", "lora", "frozen"] = "full"
    lora: Lora = Field(default_factory=Lora)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    calibration: Literal["none", "temperature", "platt", "isotonic", "auto"] = "none"
    members: int = Field(default=1, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check_watch(self) -> Self:
        """What watches a fit needs blocks to watch it on."""
        if not self.validation and (self.patience is not None or self.schedule == "plateau"):
            asked = "patience" if self.patience is not None else "schedule: plateau"
            raise ValueError(f"`{asked}` needs blocks to watch: set `validation`, such as 0.15")
        if self.validation and self.average:
            raise ValueError("`validation` chooses the best weights and `average` their mean: leave one away")
        if self.weights.get("masked_language") and not self.pretraining_epochs:
            raise ValueError("`weights: masked_language` belongs to the first stage: set `pretraining_epochs`")
        if self.start is not None and self.pretraining_epochs:
            raise ValueError("`start` is a model that has been pre-trained: leave `pretraining_epochs` away")
        if self.start is not None and self.report_encoder is not None:
            raise ValueError("`start` is a model with a report encoder of its own: leave `report_encoder` away")
        return self


class ZonesPart(Part):
    """Administrative units, or any polygons, that areas are summed over.

    Attributes:
        file: GeoJSON, TopoJSON, GeoPackage or Shapefile.
        layer: Layer, or object of a TopoJSON file; the first by default.
        id: Field of the identifier; `id` by default.
        name: Field of the name; `name` by default.
    """

    file: str
    layer: str | None = None
    id: str | None = None
    name: str | None = None


class MapPart(Part):
    """How maps are made.

    Attributes:
        suitable_above: A cell counts as suitable above this probability or share.
        block_rows: Rows of cells per step; from the grid's width by default.
        latitude_band: Height in degrees of the bands of latitude that areas are summed over.
        zones: Polygons that areas are summed over.
    """

    suitable_above: float = Field(default=0.5, gt=0, lt=1)
    block_rows: int | None = Field(default=None, ge=1)
    latitude_band: float = Field(default=0.5, gt=0, le=180)
    zones: ZonesPart | None = None
