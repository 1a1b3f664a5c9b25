"""The tokenizer built from the module's own text."""

import hashlib
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from processing.numbers_agriclip import CANONICAL_UNITS
from processing.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def digest(tokenizer: PreTrainedTokenizerFast) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def test_another_process_builds_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    code = (
        "import hashlib; from processing.tokenizer import build_tokenizer; "
        "print(hashlib.sha256(build_tokenizer().backend_tokenizer.to_str().encode()).hexdigest())"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "123", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == digest(tokenizer)


def test_size_and_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 4000 < len(tokenizer) <= 8192
    assert tokenizer.convert_ids_to_tokens(range(6)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[NUM]"]
    assert tokenizer.model_max_length == 512
    assert tokenizer.tokenize("Rain [NUM] mm") == ["rain", "[NUM]", "mm"]
    assert tokenizer("rain").keys() == {"input_ids", "attention_mask"}


def test_smaller_and_larger_vocabularies(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(build_tokenizer(vocab_size=1200)) == 1200
    with pytest.raises(ValueError, match="give at least"):
        build_tokenizer(vocab_size=100)


def test_extra_texts_add_words(tokenizer: PreTrainedTokenizerFast) -> None:
    word = "quinoa"
    assert len(tokenizer.tokenize(word)) > 1
    assert build_tokenizer(extra_texts=[f"{word} in the highlands"]).tokenize(word) == [word]


def test_words_of_the_field_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (
        "soybean",
        "precipitation",
        "temperature",
        "isothermality",
        "degC",
        "mm",
        "october",
        "tillage",
        "ndvi",
    ):
        assert len(tokenizer.tokenize(word)) == 1, word
    for unit in CANONICAL_UNITS:
        assert len(tokenizer.tokenize(unit)) <= 5, unit


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.printable + "äéßøłçñÅÆ°²µ–“”", max_size=60))
def test_latin_text_never_becomes_unknown(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, "")
    assert "[UNK]" not in tokenizer.tokenize(text)


def test_long_words_are_spelled(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "[UNK]" not in tokenizer.tokenize("a" * 900)


def test_saved_and_loaded(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Annual mean temperature [NUM] degC; dbl-crop soy."
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert digest(loaded) == digest(tokenizer)
