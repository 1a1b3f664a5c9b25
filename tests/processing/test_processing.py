"""Images and reports in one call; saving and loading, with and without this project's packages."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

import processing
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(vocab_size=1500).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(tokenizer_folder: Path) -> AgriClipProcessor:
    return AgriClipProcessor(AgriClipImageProcessor(), AutoTokenizer.from_pretrained(tokenizer_folder))


def test_one_call_gives_the_tensors_of_the_model(processor: AgriClipProcessor) -> None:
    reports = ["Annual rain 15.75 in, mean temperature 59 F.", "Dry."]
    scene = np.random.default_rng(0).integers(200, 900, (2, 6, 5, 5))
    out = processor(text=reports, images=list(scene), sensor="hls", gsd=30, dates=[150, 151])
    assert set(out) == set(processor.model_input_names)
    assert out["numeric_values"].shape == out["input_ids"].shape == out["attention_mask"].shape
    assert out["numeric_values"].dtype == torch.float32
    slots = out["input_ids"] == processor.num_token_id
    assert out["numeric_values"][slots].tolist() == [400.0, 15.0]
    assert (out["numeric_values"][~slots] == 0).all()
    assert out["pixel_values"].shape == (2, 1, 6, 5, 5)
    assert out["gsd"].tolist() == [30.0, 30.0]
    assert out["dates"].tolist() == [[150], [151]]


def test_text_alone_and_images_alone(processor: AgriClipProcessor) -> None:
    assert set(processor(text="rain 5 mm")) == {"input_ids", "attention_mask", "numeric_values"}
    assert set(processor(images=np.zeros((3, 4, 4)))) == set(processor.image_processor.model_input_names)
    with pytest.raises(ValueError, match="at least one input"):
        processor()


def test_units_that_mean_the_same_give_the_same_tensors(processor: AgriClipProcessor) -> None:
    ours, theirs = processor(text="Rain 400 mm at 15 C"), processor(text="Rain 15.75 in at 59 F")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_missing_numbers_are_nan(processor: AgriClipProcessor) -> None:
    values = processor(text="rain [NUM] mm and 3 days")["numeric_values"]
    assert torch.isnan(values).sum() == 1
    assert values[~torch.isnan(values)].sum() == 3


@pytest.mark.parametrize("kind", ["np", None])
def test_other_return_types(processor: AgriClipProcessor, kind: str | None) -> None:
    reference = processor(text=["rain 5 mm", "7 days of rain"])["numeric_values"]
    out = processor(text=["rain 5 mm", "7 days of rain"], return_tensors=kind)["numeric_values"]
    assert isinstance(out, np.ndarray if kind else list)
    assert np.asarray(out).tolist() == reference.tolist()
    single = processor(text="rain 5 mm", return_tensors=None)
    assert len(single["numeric_values"]) == len(single["input_ids"])


def test_a_long_report_is_refused_and_never_cut_in_silence(processor: AgriClipProcessor) -> None:
    long = "rain 5 mm " * 200
    with pytest.raises(ValueError, match=r"Report 2 of 2 has 602 tokens but the limit is 512") as error:
        processor(text=["short", long])
    assert "\n" not in str(error.value)
    cut = processor(text=long, truncation=True, max_length=20)
    assert cut["input_ids"].shape == cut["numeric_values"].shape == (1, 20)
    assert (cut["numeric_values"][0] == 5).sum() == 6
    with pytest.raises(ValueError, match="has 602 tokens"):
        processor.encode_report("rain [NUM] mm " * 200, [1.0] * 200)


def test_truncation_from_the_left_keeps_the_last_values(processor: AgriClipProcessor) -> None:
    processor.tokenizer.truncation_side = "left"
    text = " ".join(f"rain {i} mm" for i in range(1, 9))
    cut = processor(text=text, truncation=True, max_length=8)
    kept = cut["numeric_values"][cut["input_ids"] == processor.num_token_id]
    assert kept.tolist() == [7.0, 8.0]


def test_a_canonical_report_is_encoded_as_it_stands(processor: AgriClipProcessor) -> None:
    encoded = processor.encode_report("Rain [NUM] mm; mean temperature [NUM] degC.", [400.0, 15.0])
    whole = processor(text="Rain 400 mm; mean temperature 15 degC.")
    for key in ("input_ids", "attention_mask", "numeric_values"):
        assert torch.equal(encoded[key], whole[key][0])
    assert encoded["numeric_values"][encoded["slot_positions"]].tolist() == [400.0, 15.0]
    assert torch.isnan(processor.encode_report("Rain [NUM] mm")["numeric_values"]).sum() == 1
    with pytest.raises(ValueError, match="1 .NUM. tokens but 2 values"):
        processor.encode_report("Rain [NUM] mm", [1.0, 2.0])


def test_prompts_of_classes(processor: AgriClipProcessor) -> None:
    prompts = processor.class_prompts(["soybean", "winter wheat"])
    assert torch.equal(
        prompts["input_ids"],
        processor(text=["a satellite image of soybean", "a satellite image of winter wheat"])["input_ids"],
    )
    with pytest.raises(ValueError, match="at least one label"):
        processor.class_prompts([])


def test_a_tokenizer_without_the_number_token_gets_it() -> None:
    words = ["[PAD]", "[UNK]", "rain", "mm", "[", "]", "NUM"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.add_special_tokens({"extra_special_tokens": ["[OLD]"]})
    processor = AgriClipProcessor(AgriClipImageProcessor(), tokenizer)
    out = processor(text="rain 5 mm")
    assert set(out) == {"input_ids", "attention_mask", "numeric_values"}
    assert out["numeric_values"].tolist() == [[0.0, 5.0, 0.0]]
    assert set(processor.tokenizer.extra_special_tokens) == {"[OLD]", "[NUM]"}
    assert processor.num_token_id == len(tokenizer) - 1


def test_importing_the_package_is_light() -> None:
    code = "import sys, processing; print([m for m in ('torch', 'transformers', 'rasterio') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"
    assert processing.AgriClipProcessor is AgriClipProcessor
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        processing.Nothing  # noqa: B018


def reference_tensors(processor: AgriClipProcessor) -> dict[str, torch.Tensor]:
    """What the processes of the tests below must reproduce."""
    scene = np.random.default_rng(7).integers(200, 900, (6, 5, 4)).astype(np.float64)
    return dict(processor(text="Rain 15.75 in, day 99.", images=scene, sensor="hls", dates="2024-06-01"))


def test_saved_and_loaded_after_registering(
    processor: AgriClipProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saved with its code a processor gains an entry on loading; the next test looks at that.
    monkeypatch.setattr(AgriClipProcessor, "_auto_class", None)
    monkeypatch.setattr(AgriClipImageProcessor, "_auto_class", None)

    class RegisteredConfig(PreTrainedConfig):
        model_type = "agriclip_registered_in_test"

    from transformers import AutoImageProcessor

    mapping = {"torchvision": AgriClipImageProcessor, "pil": AgriClipImageProcessor}
    AutoImageProcessor.register(RegisteredConfig, image_processor_classes=mapping, exist_ok=True)
    AutoProcessor.register(RegisteredConfig, AgriClipProcessor, exist_ok=True)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AgriClipProcessor
    assert loaded.to_dict() == processor.to_dict()
    first, second = reference_tensors(processor), reference_tensors(loaded)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_loaded_as_remote_code_where_no_package_of_ours_is_importable(
    processor: AgriClipProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgriClipProcessor, "_auto_class", "AutoProcessor")
    monkeypatch.setattr(AgriClipImageProcessor, "_auto_class", "AutoImageProcessor")
    folder, elsewhere = tmp_path / "agriclip", tmp_path / "elsewhere"
    elsewhere.mkdir()
    processor.save_pretrained(folder)
    copied = {path.name for path in folder.glob("*.py")}
    assert copied == {
        f"{name}_agriclip.py" for name in ("processing", "image_processing", "bands", "sensors", "numbers", "units")
    }
    settings = json.loads((folder / "processor_config.json").read_text())
    assert settings["auto_map"]["AutoProcessor"] == "processing_agriclip.AgriClipProcessor"
    torch.save(reference_tensors(processor), elsewhere / "reference.pt")
    script = """
        import importlib.util, sys
        # An editable install puts the checkout on the path of every process; take it away again.
        sys.path = [place for place in sys.path if place != sys.argv[2]]
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
        import numpy as np, torch
        from transformers import AutoProcessor
        assert importlib.util.find_spec("processing") is None, "the test needs a place without our packages"
        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert type(processor).__module__.startswith("transformers_modules"), type(processor)
        scene = np.random.default_rng(7).integers(200, 900, (6, 5, 4)).astype(np.float64)
        out = processor(text="Rain 15.75 in, day 99.", images=scene, sensor="hls", dates="2024-06-01")
        reference = torch.load("reference.pt")
        assert out.keys() == reference.keys(), out.keys()
        assert all(torch.equal(out[key], reference[key]) for key in reference)
        processor.save_pretrained("again")
        print("equal")
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("equal")
    # A processor that came as remote code saves its code again.
    assert {path.name for path in (elsewhere / "again").glob("*.py")} == copied
