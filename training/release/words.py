"""Words that start with a meaning: each from a sentence encoder's vector of it.

Two hours on two cores teach no language. What "maize" has to do with "corn" is known to all-MiniLM-L6-v2 (Apache-2.0),
so the word embeddings of a small report encoder start as the main directions of its vectors of the same words.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from training.pretrained import MINILM, report_encoder


def start_words(text_model: torch.nn.Module, tokenizer: object, seed: int = 0, name: str = MINILM) -> int:
    """Start whole words at the main directions of a sentence encoder's vectors of them.

    Args:
        text_model: Report encoder whose word embeddings (V, D) are changed in place; pieces of words keep their start.
        tokenizer: Its tokenizer, WordPiece.
        seed: Seed of the decomposition.
        name: Sentence encoder: a folder, an installed package or a name on the Hub.

    Returns:
        How many words were started so.

    Raises:
        AgriClipError: The sentence encoder is nowhere to be found.
    """
    from sklearn.decomposition import PCA

    folder = report_encoder(name)
    reader, spelling = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    vocabulary: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    words = sorted(token for token in vocabulary if token.isalpha() and len(token) > 1)
    vectors = []
    with torch.no_grad():
        for start in range(0, len(words), 256):
            inputs = spelling(words[start : start + 256], padding=True, return_tensors="pt")
            states = reader(**inputs).last_hidden_state
            keep = inputs["attention_mask"].unsqueeze(-1)
            vectors.append(((states * keep).sum(1) / keep.sum(1)).numpy())
    table = text_model.get_input_embeddings().weight  # type: ignore[operator]
    size = table.shape[1]
    means = np.concatenate(vectors)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    reduced = PCA(size, random_state=seed).fit_transform(means)
    # All directions of one spread would drown the first ones in noise; one factor for all keeps their order.
    scale = float(table.detach().std()) / float(reduced.std())
    rows = torch.tensor([vocabulary[word] for word in words])
    with torch.no_grad():
        table[rows] = torch.from_numpy(reduced * scale).to(table)
    return len(words)
