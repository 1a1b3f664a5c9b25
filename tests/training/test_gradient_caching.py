"""Chunks give the loss and the gradients of the batch, whatever is drawn at random on the way."""

import pytest
import torch

from modeling_agriclip.losses_agriclip import alignment_loss, weighted_mean
from training.gradient_caching import cached_backward, split_batch


class Pairs(torch.nn.Module):
    """Two encoders with dropout, a contrast with keys, and a weighted mean."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        self.scale, self.bias = torch.nn.Parameter(torch.tensor(3.0)), torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, image, text, keys, valid, labels, dropout, sigmoid):
        image = torch.nn.functional.dropout(self.image(image), dropout)
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (image, self.text(text))]
        contrast = alignment_loss(*unit, self.scale, self.bias if sigmoid else None, valid, keys, 1.0)
        return contrast + weighted_mean((image.sum(1) - labels).square(), valid)


@pytest.fixture
def pairs():
    torch.manual_seed(0)
    valid = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    return {
        "image": torch.randn(7, 6),
        "text": torch.randn(7, 5),
        "keys": torch.randn(7, 2),
        "valid": valid,
        "labels": torch.randn(7),
    }


def cached(model, batch, size, **options):
    chunks = split_batch(batch, size)
    model.zero_grad()
    loss = cached_backward(lambda i: model(**chunks[i], **options), lambda loss, last: loss.backward(), len(chunks))
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_chunks_equal_the_batch(pairs, size, sigmoid):
    model = Pairs()
    loss = model(**pairs, dropout=0.0, sigmoid=sigmoid)
    loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    value, gradients = cached(model, pairs, size, dropout=0.0, sigmoid=sigmoid)
    torch.testing.assert_close(value, loss.detach(), atol=1e-6, rtol=1e-6)
    assert gradients.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5)


def test_both_passes_draw_the_same(pairs):
    model = Pairs()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    value, gradients = cached(model, pairs, 4, dropout=0.5, sigmoid=False)
    after = torch.get_rng_state()
    # By hand: draw both chunks' dropout as the first pass did, and contrast the whole.
    torch.set_rng_state(before)
    images = torch.cat(
        [torch.nn.functional.dropout(model.image(pairs["image"][part]), 0.5) for part in ([0, 1, 2, 3], [4, 5, 6])]
    )
    assert torch.equal(torch.get_rng_state(), after), "as many numbers are drawn as in one pass"
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (images, model.text(pairs["text"]))]
    loss = alignment_loss(*unit, model.scale, None, pairs["valid"], pairs["keys"], 1.0)
    loss = loss + weighted_mean((images.sum(1) - pairs["labels"]).square(), pairs["valid"])
    torch.testing.assert_close(value, loss.detach())
    model.zero_grad()
    loss.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad)


def test_chunks_keep_what_has_no_rows():
    batch = {"labels": torch.arange(5), "channels": torch.zeros(3, 4), "flag": True}
    chunks = split_batch(batch, 2)
    assert [len(chunk["labels"]) for chunk in chunks] == [2, 2, 1]
    assert all(chunk["channels"].shape == (3, 4) and chunk["flag"] for chunk in chunks)
