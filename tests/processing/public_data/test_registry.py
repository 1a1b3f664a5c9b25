"""The registry: every entry holds together, says where its facts were seen, and fits the study file."""

import pytest
import yaml

from processing.errors import AgriClipError
from processing.public_data import acquire, converters_study
from processing.public_data.registry import get_source, load_registry, parse_source
from processing.study_parts import Imagery, LabelsPart, Predictors, Scenario

NEEDED = """ag-net us-double-crop-counties isimip-bioclim grassmapr-north-america ftw-crop-calendar ftw-two-date-scene
terramind-examples mato-grosso-modis rsicap rsieval million-aid hrsid gf1-wfv farmseg-vl pastis-r multi-temporal-crop
eurosat-rgb eurosat-ms eurosat-ms-spatial bigearthnet-v2 cdl worldclim isimip3b cil-gdpcir seifert-lobell lant resisc45
aid ucm rsicd rsitmd""".split()


def test_all_sources_are_there():
    assert sorted(load_registry()) == sorted(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
def test_an_entry_is_complete_and_honest(name):
    source = get_source(name)
    assert source.citation.doi or source.citation.url
    assert source.citation.authors in source.citation.bibtex.replace(" and ", "; ")
    if source.verified:
        assert {"url", "licence"} <= set(source.found)
    else:
        assert len(source.note) > 20
    if source.licence.non_commercial or source.licence.name is None:
        assert source.licence.needs_acceptance
    if source.loader:
        known = {*acquire._TILE_LOADERS, "study", "cdl_counts", "r_tables"}
        assert source.loader in known and all((form.loader or source.loader) in known for form in source.prepared)
    assert all(file.url is None or not file.url.startswith("http://") for file in source.files)


@pytest.mark.parametrize("name", NEEDED)
def test_a_study_block_is_accepted_by_the_study_file(name):
    source = get_source(name)
    for block in (source.study, *(form.study for form in source.prepared)):
        for key, part in (block or {}).items():
            model = {"labels": LabelsPart, "predictors": Predictors, "imagery": Imagery, "scenarios": Scenario}[key]
            for item in part if isinstance(part, list) else [part]:
                model.model_validate(item)


def test_loaders_exist():
    from importlib import import_module

    for loader, module in acquire._TILE_LOADERS.items():
        assert callable(getattr(import_module(f"processing.public_data.{module}"), loader))
    assert callable(converters_study.cdl_counts) and callable(converters_study.r_tables)


def entry(**changes):
    return yaml.safe_dump(yaml.safe_load(get_source("eurosat-rgb").model_dump_json()) | {"name": "toy"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"verified": "yes"}, "verified: Input should be a valid boolean"),
        ({"size": "2 GB"}, "size: Input should be a valid integer"),
        ({"found": {}}, "`found` must say where 'url' was seen"),
        ({"found": {"url": "x", "licence": "x", "size": "x"}}, "`found` must say where 'checksum' was seen"),
        ({"found": {"adress": "x"}}, "unknown fact 'adress'"),
        ({"verified": False, "note": ""}, "needs a `note`"),
        ({"files": [{"path": "../x", "url": None}]}, "must be relative and stay inside"),
        ({"files": [{"path": "x", "url": "file:///etc/passwd"}]}, "no http"),
        ({"files": [{"path": "x", "url": None, "md5": "123"}]}, "md5"),
        ({"files": [], "note": ""}, "how to get the data"),
        ({"loader": "magic"}, "loader"),
        ({"loader": "study", "study": None}, "needs a `study` block"),
        ({"name": "other"}, "file and entry must agree"),
    ],
)
def test_a_faulty_entry_is_refused(changes, message):
    with pytest.raises(AgriClipError, match=message):
        parse_source(entry(**changes), "toy.yaml")


def test_no_yaml_and_no_such_source():
    with pytest.raises(AgriClipError, match="is no YAML"):
        parse_source("a: [", "toy.yaml")
    with pytest.raises(AgriClipError, match="no public source 'eurosat-rbg'; did you mean 'eurosat-rgb'"):
        get_source("eurosat-rbg")
    assert parse_source(entry(), "toy.yaml").name == "toy"
