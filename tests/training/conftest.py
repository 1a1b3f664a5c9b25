"""A small virtual landscape, fitted once for the tests that need a fitted model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from processing.study import load_study
from processing.tokenizer import build_tokenizer
from processing.virtual_landscape import make_virtual_landscape
from tests.training.small_model import make_batch
from training.fit import fit_study


@pytest.fixture(scope="session")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study file of a landscape of 24 x 24 cells with 150 sites."""
    return make_virtual_landscape(tmp_path_factory.mktemp("landscape"), seed=1, height=24, width=24, sites=150)


@pytest.fixture(scope="session")
def fitted(landscape: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a fit with two members, and what the fit returned."""
    study = load_study(landscape)
    study = study.model_copy(
        update={"training": study.training.model_copy(update={"members": 2, "epochs": 1, "preset": "light"})}
    )
    folder = tmp_path_factory.mktemp("fit")
    return folder, fit_study(study, folder, quiet=True)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Inputs of four places."""
    return make_batch()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small BERT whose tokenizer knows nothing of `[NUM]`, like any sentence encoder's."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer(vocab_size=2000)
    vocabulary = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    vocabulary.remove("[NUM]")
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 512}')
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder
