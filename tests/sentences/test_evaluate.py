"""Classification of frozen features against scikit-learn's own cross-validation, baselines, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold

from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key
from moco.run.checkpoint import load, save
from moco.sentences.classification import COSTS, bag_of_words, nested_cross_validation, read_labelled
from moco.sentences.evaluate import MAJORITY, TRAINED, UNTRAINED, WORDS, main
from moco.sentences.train import main as train
from tests.sentences.material import write_classes, write_text


def made_up(classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 4))
    scores = x @ generator.normal(size=(4, classes)) + generator.gumbel(size=(90, classes))
    return x, scores.argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_nested_cross_validation_is_that_of_scikit_learn(classes: int) -> None:
    x, y = made_up(classes)
    found = nested_cross_validation(x, y, folds=3, seed=5, tolerance=1e-8)
    order = permutation(stream_key(5, 0, Purpose.FOLD), len(y))
    x, y = x[order], y[order]
    for i, (rest, test) in enumerate(KFold(3).split(x)):
        search = GridSearchCV(LogisticRegression(max_iter=1000, tol=1e-8), {"C": COSTS}, cv=KFold(3)).fit(
            x[rest], y[rest]
        )
        means = search.cv_results_["mean_test_score"]
        best = next(cost for cost, mean in zip(COSTS, means, strict=True) if mean > search.best_score_ - 1e-9)
        assert found["costs"][i] == best
        alone = LogisticRegression(C=best, max_iter=1000, tol=1e-8).fit(x[rest], y[rest])
        assert found["folds"][i] == pytest.approx(100 * alone.score(x[test], y[test]))
    assert found["accuracy"] == pytest.approx(np.mean(found["folds"]))


def test_labels_that_mean_nothing_are_not_predicted() -> None:
    """No test row is among those that the classifier, or its C, was chosen on: with as many features as rows, one that
    was would be known by heart."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(200, 100)), np.arange(200) % 2
    assert 35 < nested_cross_validation(x, y, folds=4)["accuracy"] < 65


def test_a_bag_of_words_counts(tmp_path: Path) -> None:
    data = read_labelled(write_classes(tmp_path / "MR"), folds=3)
    found = bag_of_words(data)
    assert isinstance(found, csr_matrix) and found.sum() == sum(map(len, data.sentences))
    assert found[0].sum() == len(data.sentences[0]) and found.shape[0] == 120
    assert nested_cross_validation(found, data.labels, folds=3)["accuracy"] > 75
    assert data.classes == ["neg", "pos"] and data.majority == 50


@pytest.mark.parametrize(
    ("count", "message"), [(0, "must hold a .txt file for each class"), (8, "too few for a nested")]
)
def test_folders_that_cannot_be_classified(count: int, message: str, tmp_path: Path) -> None:
    if count:
        write_classes(tmp_path / "MR", count)
    else:
        (tmp_path / "MR").mkdir()
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path / "MR", folds=3)
    with pytest.raises(InputError, match="CR: No such file or directory; check the path"):
        read_labelled(tmp_path / "CR", folds=3)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.sentences.conftest import SETTINGS

    place = tmp_path_factory.mktemp("trained")
    write_classes(place / "MR")
    assert train([str(text), *SETTINGS, "--output-dir", str(place / "run")]) == 0
    return place


def measured(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[dict[str, Any], str]:
    target = Path(argv[0]).parent / "measures.json"
    assert main([*map(str, argv), "--folds", "3", "--json", str(target), "--device", "cpu"]) == 0
    return json.loads(target.read_text()), capsys.readouterr().out


def test_the_command_shows_baselines_beside_the_encoders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "run" / "checkpoint_0000.pth.tar"
    found, out = measured(capsys, file, folder / "MR")
    accuracies = {name: one["accuracy"] for name, one in found["datasets"]["MR"]["accuracies"].items()}
    assert list(accuracies) == [TRAINED, UNTRAINED, WORDS, MAJORITY] and accuracies[MAJORITY] == 50
    assert accuracies[WORDS] > 75, "and the encoders do not know the words 'good' and 'bad'"
    assert 0 < found["datasets"]["MR"]["unknown_words"] < 50
    measures = found["held_out"]["measures"]
    assert measures[TRAINED]["val_alignment"] < measures[UNTRAINED]["val_alignment"], "neighbours came closer"
    assert found["held_out"]["sentences"] == 20 and "20 sentences, held out of the run's text" in out
    for name, value in accuracies.items():
        assert f"{value:.2f}" in next(line for line in out.splitlines() if line.startswith(name))
    assert measured(capsys, file, folder / "MR")[0]["datasets"] == found["datasets"], "nothing is drawn anew"


def test_held_out_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "moved.pth.tar"
    moved.write_bytes((folder / "run" / "checkpoint_0000.pth.tar").read_bytes())
    found, out = measured(capsys, moved)
    assert found["held_out"]["measures"] == {} and "pass --text" in out
    found, _ = measured(capsys, moved, "--text", write_text(tmp_path / "more.txt", 50, seed=4))
    assert found["held_out"]["sentences"] == 50 and found["held_out"]["measures"][TRAINED]["val_uniformity"] < 0


def test_bad_input_is_one_sentence(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "run" / "checkpoint_0000.pth.tar"
    state = load(file)
    shorter = state["moco_run"] | {"vocabulary": "<unk>\na"}
    save(tmp_path / "vocabulary.pth.tar", state | {"moco_run": shorter})
    save(tmp_path / "image.pth.tar", {"arch": "resnet50", "state_dict": {}})
    (tmp_path / "short.txt").write_text("one.\n")
    for argv, message in (
        ([tmp_path / "gone.pth.tar"], "there is no checkpoint"),
        ([tmp_path / "image.pth.tar"], "is no checkpoint of python -m moco.sentences.train"),
        ([tmp_path / "vocabulary.pth.tar"], "and a vocabulary of 2"),
        ([file, folder / "MR", "--folds", "1"], "argument --folds: 1 must be at least 2"),
        ([file, folder / "MR", "--folds", "9"], "too few for a nested 9-fold"),
        ([file, folder], "must hold a .txt file for each class"),
        ([file, "--text", tmp_path / "short.txt"], "fewer than 2 sentences"),
    ):
        assert main([*map(str, argv), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
