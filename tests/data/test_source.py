"""Parts of a source: which samples, in which order, the same for the same seed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from moco.data.source import ArraySource, Subset, folds, hold_out, labelled, share_of_classes
from moco.errors import InputError


def source(counts: list[int]) -> ArraySource:
    """counts[c] samples of class c, dealt out in turn; the first pixel is the sample's number."""
    labels = np.array([c for turn in range(max(counts)) for c in range(len(counts)) if turn < counts[c]])
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ArraySource(images, labels, [f"class{c}" for c in range(len(counts))], "made up")


def test_a_subset_is_a_source() -> None:
    whole = source([3, 2])
    part = Subset(whole, np.array([4, 1]))
    assert (len(part), part.labels.tolist(), part.classes) == (2, [0, 1], whole.classes)
    assert (part.name(0), part.size(1)) == ("made up[4]", (2, 2))
    assert part.decode(0)[0, 0, 0] == part.open(0).decode().array[0, 0, 0] == 4


def test_labelled() -> None:
    whole = source([20, 20])
    assert labelled(whole) is whole
    whole.labels[::2] = -1
    part = labelled(whole)
    assert len(part) == 20
    assert (part.labels >= 0).all()
    assert part.name(3) == whole.name(7)


def test_every_class_gives_the_same_share() -> None:
    whole = source([40, 20, 10])
    part = share_of_classes(whole, 0.1, seed=3)
    assert np.bincount(part.labels).tolist() == [4, 2, 1]
    assert part.index.tolist() == sorted(set(part.index.tolist()))
    assert part.index.tolist() == share_of_classes(whole, 0.1, seed=3).index.tolist()
    assert part.index.tolist() != share_of_classes(whole, 0.1, seed=4).index.tolist()
    assert len(share_of_classes(whole, 1.0, seed=3)) == 70
    with pytest.raises(InputError, match=r"leaves no image of class 'class0', which has 40: take 0\.025 or more"):
        share_of_classes(whole, 0.01, seed=3)
    whole.classes.append("empty")
    with pytest.raises(InputError, match="class 'empty' has no image"):
        share_of_classes(whole, 0.1, seed=3)


def test_held_out_images_are_of_every_class_and_not_trained_on() -> None:
    rest, held = hold_out(source([40, 20, 2]), 0.1, seed=0)
    assert np.bincount(held.labels).tolist() == [4, 2, 1]
    assert sorted([*rest.index, *held.index]) == list(range(62))
    assert (rest.labels == 2).sum() == 1
    assert held.index.tolist() != hold_out(source([40, 20, 2]), 0.1, seed=1)[1].index.tolist()
    with pytest.raises(InputError, match="'class1' has 1 training image"):
        hold_out(source([5, 1]), 0.1, seed=0)


def test_folds_are_even_within_each_class() -> None:
    labels = source([11, 5]).labels
    fold = folds(labels, 5, seed=0)
    assert np.bincount(fold[labels == 0], minlength=5).tolist() == [3, 2, 2, 2, 2]
    assert np.bincount(fold[labels == 1], minlength=5).tolist() == [1] * 5
    assert fold.tolist() != folds(labels, 5, seed=1).tolist()
    with pytest.raises(InputError, match="class 1 has 5"):
        folds(labels, 6, seed=0)
