"""Readers of attributes: what they learn, that they come back from disk, and what compliance counts."""

import pytest
import torch
from torch.nn import functional as F

from kdcdiff.data.attributes import ATTRIBUTES, Request, targets
from kdcdiff.data.sources import draw_garden, image_set
from kdcdiff.errors import UserError
from kdcdiff.metrics.attributes import compliance, read
from kdcdiff.models.attribute_reader import AttributeReader, load_reader, save_reader
from kdcdiff.training.readers import train_reader

OWN = ATTRIBUTES["garden"]


@pytest.fixture(scope="module")
def shown():
    drawn = draw_garden("train", ("rose", "monarch"), 8, size=32, progress=False, pairs=2)
    return image_set(drawn, ("rose", "monarch")).images, targets(drawn, OWN)


def test_a_reader_learns_what_it_is_shown_and_comes_back_from_disk(shown, tmp_path):
    images, wanted = shown

    def loss(model: AttributeReader) -> float:
        with torch.no_grad():
            return sum(F.cross_entropy(own, wanted[:, i]).item() for i, own in enumerate(model(images).values()))

    reader, again = (train_reader(images, wanted, OWN, steps=12, batch=8, seed=0, describe="") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(reader.parameters(), again.parameters(), strict=True))
    torch.manual_seed(0)
    assert loss(reader) < loss(AttributeReader(OWN))
    save_reader(reader, tmp_path)
    back = load_reader(tmp_path)
    assert back.attributes == OWN and not any(p.requires_grad for p in back.parameters())
    found = read(images, back)
    assert len(found) == len(images) and all(v in OWN[name] for row in found for name, v in row.items())


@pytest.mark.parametrize("side", [32, 64, 96])
def test_a_reader_takes_pictures_of_any_side(side):
    logits = AttributeReader(OWN, width=8)(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert {name: own.shape for name, own in logits.items()} == {name: (2, len(v)) for name, v in OWN.items()}


def test_compliance_counts_what_was_asked_and_all_of_it():
    class Says(AttributeReader):
        """Sees a red subject in the first picture, a blue one in the second, and sand behind both."""

        def forward(self, images):
            return {
                "colour": F.one_hot(torch.tensor([0, 1]), 2).float(),
                "background": F.one_hot(torch.tensor([1, 1]), 2).float(),
            }

    reader = Says({"colour": ("red", "blue"), "background": ("sky", "sand")}, width=8)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    asked = [Request("", {"colour": "red", "background": "sand"}, True), Request("", {"colour": "red"}, False)]
    found = compliance(images, asked, reader)
    assert {name: (own.value, own.n) for name, own in found.items()} == {
        "colour": (0.5, 2),
        "background": (1.0, 1),
        "all": (0.5, 2),
    }
    assert found["colour"].low < 0.5 < found["colour"].high and found["colour"].extractor == "attribute reader"
    with pytest.raises(UserError, match="images=2: must be one for each of the 1 requests"):
        compliance(images, asked[:1], reader)
    with pytest.raises(UserError, match="attribute='petals': must be one of colour, background"):
        compliance(images, [*asked[:1], Request("", {"petals": "4"}, True)], reader)
