"""Remembered pairs: the same as one large batch, other views of a place left out, the oldest forgotten first."""

import torch
from torch.nn.functional import cross_entropy, normalize

from training.release.memory import PairMemory

SCALE = torch.tensor(7.0)


def _pairs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(normalize(torch.randn(count, 5, generator=generator), dim=-1) for _ in range(2))


def test_a_batch_among_what_is_remembered_by_hand():
    memory = PairMemory(6, 5)
    (first_image, first_text), (image, text) = _pairs(4, 0), _pairs(3, 1)
    memory(first_image, first_text, torch.tensor([0, 1, 2, 3]), SCALE)
    # Place 2 is seen again: its remembered view is no key for it, but for the others.
    found = memory(image, text, torch.tensor([7, 2, 8]), SCALE)
    own = torch.arange(3)
    expected = torch.zeros(())
    for query, keys in ((image, torch.cat([text, first_text])), (text, torch.cat([image, first_image]))):
        logits = SCALE * query @ keys.t()
        logits[1, 3 + 2] = -torch.inf
        expected = expected + cross_entropy(logits, own) / 2
    torch.testing.assert_close(found, expected)


def test_the_oldest_are_forgotten():
    memory = PairMemory(4, 5)
    for number in range(3):
        memory(*_pairs(2, number), torch.tensor([2 * number, 2 * number + 1]), SCALE)
    assert memory.places.tolist() == [4, 5, 2, 3]
    torch.testing.assert_close(memory.images[:2], _pairs(2, 2)[0])


def test_nothing_remembered_is_the_plain_contrast_and_learns():
    image, text = (x.requires_grad_() for x in _pairs(3, 0))
    memory = PairMemory(8, 5)
    value = memory(image, text, torch.arange(3), SCALE)
    logits = SCALE * image @ text.t()
    own = torch.arange(3)
    torch.testing.assert_close(value, (cross_entropy(logits, own) + cross_entropy(logits.t(), own)) / 2)
    value.backward()
    assert image.grad.abs().sum() > 0 and text.grad.abs().sum() > 0
    assert not memory.images.requires_grad


def test_scoring_remembers_nothing():
    memory = PairMemory(4, 5).eval()
    memory(*_pairs(2, 0), torch.arange(2), SCALE)
    assert int(memory.count) == 0
