"""Sizes, operations and training of a model folder."""

import json

import pytest
import torch
from rich.console import Console
from torch import nn

from evaluation.model_info import count_flops, count_parameters, info_tables, model_info
from modeling_agriclip import AgriClipConfig, AgriClipForSuitability
from processing.errors import AgriClipError


class Toy(nn.Module):
    """Two linear layers of known cost that share a weight."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.two = nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.ones(3))
        self.device = torch.device("cpu")

    def forward(self, numeric_values):
        x = numeric_values.reshape(-1, 8)
        query = self.two(self.one(x))[None]
        return nn.functional.scaled_dot_product_attention(query, query, query)


def test_shared_weights_are_counted_once():
    assert count_parameters(Toy()) == {"one": 64, "(between parts)": 3, "total": 67}


def test_operations_by_hand_with_attention():
    flops = count_flops(Toy(), tokens=128)  # 16 rows of 8
    assert flops["one"] == flops["two"] == 2 * 16 * 8 * 8
    assert flops["(between parts)"] == 2 * 2 * 16 * 16 * 8  # two products of the attention
    assert flops["total"] == sum(value for name, value in flops.items() if name != "total")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AgriClipForSuitability(AgriClipConfig.from_size("tiny")).save_pretrained(path)
    return path


def test_info_of_a_saved_model(folder):
    info = model_info(folder)
    model = AgriClipForSuitability.from_pretrained(folder)
    assert info["class"] == "AgriClipForSuitability"
    assert info["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert sum(v for k, v in info["parameters"].items() if k != "total") == info["parameters"]["total"]
    assert info["flops"]["total"] > 1e7 and info["flops_input"]["image"] == [6, 128, 128]
    assert info["size_bytes"] > 2 * info["parameters"]["total"]
    assert {"pixel_values", "channels", "numeric_values"} <= set(info["inputs"])
    assert info["training"] is None
    json.dumps(info)


def test_more_pixels_cost_more(folder):
    small = model_info(folder, height=64, width=64)["flops"]["total"]
    assert model_info(folder)["flops"]["total"] > 1.5 * small
    assert model_info(folder, flops=False)["flops"] is None


def test_training_is_read_and_never_guessed(folder):
    file = folder / "training_summary.json"
    file.write_text(json.dumps({"study": "toy", "places": 300}))
    try:
        info = model_info(folder, flops=False)
        assert info["training"] == {"study": "toy", "places": 300}
        console = Console(width=100, record=True, quiet=True)
        for table in info_tables(info):
            console.print(table)
        file.write_text("{")
        with pytest.raises(AgriClipError, match="not valid JSON"):
            model_info(folder, flops=False)
    finally:
        file.unlink()


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(AgriClipError, match="no config.json"):
        model_info(tmp_path)
    with pytest.raises(AgriClipError, match="does not exist"):
        model_info(tmp_path / "nothing")
