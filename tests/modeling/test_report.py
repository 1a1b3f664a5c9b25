"""Numbers that count: near values are near, each value matters, a missing one is a state of its own."""

import pytest
import torch
from transformers import DistilBertConfig, ModernBertConfig

from modeling_agriclip import AgriClipConfig, AgriClipTextConfig, AgriClipTextModel

from .conftest import report_inputs


@pytest.fixture
def model(build):
    return build(AgriClipTextModel)


def pooled(model, **inputs):
    with torch.no_grad():
        return model(**inputs).pooler_output


@pytest.mark.parametrize("value", [0.3, 7.0, 14.1, 400.0, 1168.0, 52000.0])
def test_one_percent_moves_the_report(model, value):
    inputs = report_inputs(batch=1)
    inputs["numeric_values"] = torch.where(inputs["input_ids"] == 5, value, 0.0)
    moved = inputs | {"numeric_values": inputs["numeric_values"] * 1.01}
    assert (pooled(model, **inputs) - pooled(model, **moved)).norm() > 1e-5


def test_values_off_number_tokens_are_ignored(model):
    inputs = report_inputs()
    other = torch.where(inputs["input_ids"] == 5, inputs["numeric_values"], 123.0)
    torch.testing.assert_close(pooled(model, **inputs), pooled(model, **inputs | {"numeric_values": other}))


def test_missing_number_is_finite_and_differs_from_zero(model):
    inputs = report_inputs()
    missing = inputs | {"numeric_values": torch.full_like(inputs["numeric_values"], torch.nan)}
    zero = inputs | {"numeric_values": torch.zeros_like(inputs["numeric_values"])}
    assert pooled(model, **missing).isfinite().all()
    assert not torch.allclose(pooled(model, **missing), pooled(model, **zero), atol=1e-4)
    without = {key: value for key, value in inputs.items() if key != "numeric_values"}
    torch.testing.assert_close(pooled(model, **without), pooled(model, **missing))


def test_padding_is_absent(model):
    inputs = report_inputs()
    padded = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in inputs.items()}
    torch.testing.assert_close(pooled(model, **padded), pooled(model, **inputs), atol=1e-5, rtol=0)


def test_empty_report_is_finite(model):
    inputs = report_inputs()
    output = pooled(model, **inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])})
    assert output.abs().max() == 0


@pytest.mark.parametrize(
    "encoder",
    [
        DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2, hidden_dim=64),
        ModernBertConfig(
            vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        ),
    ],
    ids=["distilbert", "modernbert"],
)  # fmt: skip
def test_any_encoder(encoder, tmp_path):
    config = AgriClipTextConfig(encoder_config=encoder)
    assert config.hidden_size == 32
    model = AgriClipTextModel(config).eval()
    inputs = report_inputs()
    model.save_pretrained(tmp_path)
    again = AgriClipTextModel.from_pretrained(tmp_path).eval()
    assert torch.equal(pooled(model, **inputs), pooled(again, **inputs))
    whole = AgriClipConfig(text_config=config)
    assert whole.fuser_config.report_size == 32
