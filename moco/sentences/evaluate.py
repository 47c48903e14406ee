"""Classification, alignment and uniformity of a trained pair of sentence encoders.

    python -m moco.sentences.evaluate runs/sentences-infonce/checkpoint_0000.pth.tar MR/ CR/
    python -m moco.sentences.evaluate checkpoint.pth.tar MR/ --text other_novels/ --json measures.json

A folder has a .txt file for each class, one sentence a line. The features are frozen; the classifier is an l2 logistic
regression with nested cross-validation (moco/sentences/classification.py). Baselines are the same encoders untrained, a
logistic regression on word counts, and the share of the largest class. Alignment and uniformity are measured on text
that was not trained on: --text, else the run's held-out sentences, if the checkpoint is still in the run's folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from moco import distributed
from moco.commands import Number, Parser, end_with, run_command
from moco.distributed.session import pick_device
from moco.errors import EXIT_OK, InputError
from moco.run import checkpoint
from moco.run.files import write_json
from moco.run.provenance import git_state, machine
from moco.sentences.classification import (
    LabelledSentences,
    bag_of_words,
    classify,
    nested_cross_validation,
    read_labelled,
)
from moco.sentences.corpus import Corpus, from_sentences, load, read_sentences
from moco.sentences.measures import encode, held_out_measures
from moco.sentences.network import SentencePair
from moco.sentences.sampler import held_out_count
from moco.sentences.state import check, load_weights, vocabulary_of
from moco.sentences.text import find_files
from moco.world import World

TRAINED = "trained encoders"
UNTRAINED = "untrained encoders"
WORDS = "bag of words"
MAJORITY = "largest class"


def read_pairs(path: Path, device: torch.device) -> tuple[dict[str, SentencePair], dict[str, Any]]:
    """Returns trained and untrained encoders of one shape, and the run.

    The run is the checkpoint's part that `check` returns. InputError if the file is no checkpoint of a sentence run.
    """
    state = checkpoint.load(path)
    run = check(state, path)
    options = run["options"]
    size = len(run["vocabulary"].split("\n"))
    pairs = {}
    for name in (TRAINED, UNTRAINED):
        torch.manual_seed(options["seed"])
        pairs[name] = SentencePair(size, options["embedding"], options["hidden"], options["init"])
    load_weights(pairs[TRAINED], state, path)
    return {name: pair.to(device).eval() for name, pair in pairs.items()}, run


def held_out_text(path: Path, run: dict[str, Any], o: argparse.Namespace) -> tuple[Corpus | None, str]:
    """Returns (consecutive sentences that were not trained on, their origin).

    If there are none, returns (None, the reason). InputError if --text cannot be used.
    """
    options = run["options"]
    if o.text:
        files = find_files(o.text)
        sentences = read_sentences(files, o.encoding, options["layout"])
        found = from_sentences(sentences, vocabulary_of(run), options["longest"])
        if len(found) < 2:
            raise InputError("--text has fewer than 2 sentences, but alignment compares neighbours: give more text")
        return found, ", ".join(map(str, o.text))
    try:
        text = load(path.parent)
    except InputError:
        return None, "the checkpoint is not in its run's folder: pass --text"
    if text.digest != run["text"]:
        return None, f"the text in {path.parent} is not that of this checkpoint: pass --text"
    held = held_out_count(len(text), options["held_out"])
    if held < 2:
        return None, "the run held out no text (--held-out): pass --text"
    return text.part(len(text) - held, len(text)), "held out of the run's text"


def accuracies(
    pairs: dict[str, SentencePair], data: LabelledSentences, run: dict[str, Any], o: argparse.Namespace
) -> dict[str, Any]:
    """Returns results of encoders and baselines on one data set.

    Accuracies are in percent.
    """
    device = next(pairs[TRAINED].parameters()).device
    vocabulary = vocabulary_of(run)
    longest = run["options"]["longest"]
    found = {name: classify(pair, data, vocabulary, longest, device, o.folds, o.seed) for name, pair in pairs.items()}
    found[WORDS] = nested_cross_validation(bag_of_words(data), data.labels, o.folds, o.seed)
    found[MAJORITY] = {"accuracy": data.majority}
    known = vocabulary.ids(word for sentence in data.sentences for word in sentence)
    unknown = 100 * sum(number == 0 for number in known) / len(known)
    return {"sentences": len(data.labels), "classes": data.classes, "unknown_words": unknown, "accuracies": found}


def evaluate(path: Path, o: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Returns the content of the --json file."""
    started = time.monotonic()
    datasets = [read_labelled(folder, o.encoding, o.folds) for folder in o.data]
    pairs, run = read_pairs(path, device)
    text, source = held_out_text(path, run, o)
    measures = {name: held_out_measures(*encode(pair, text, device)) for name, pair in pairs.items() if text}
    about = {name: run[name] for name in ("git", "global_step", "options")}
    return {
        "schema": 1,
        "checkpoint": {"path": str(path), **about},
        "settings": {"folds": o.folds, "seed": o.seed},
        "held_out": {"source": source, "sentences": len(text) if text else 0, "measures": measures},
        "datasets": {data.name: accuracies(pairs, data, run, o) for data in datasets},
        "git": git_state(),
        "machine": machine(device),
        "command_seconds": time.monotonic() - started,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Formats the measures as a table.

    It has a row for each encoder and baseline.
    """
    held = found["held_out"]
    datasets = found["datasets"]
    heads = [*(f"{name} [%]" for name in datasets), "alignment", "uniformity"]
    lines = [f"{'':20}" + "".join(f"{head:>14}" for head in heads)]
    for row in (TRAINED, UNTRAINED, WORDS, MAJORITY):
        cells = [f"{one['accuracies'][row]['accuracy']:.2f}" for one in datasets.values()]
        measures = held["measures"].get(row)
        cells += [f"{value:.4f}" for value in measures.values()] if measures else ["–", "–"]
        lines.append(f"{row:20}" + "".join(f"{cell:>14}" for cell in cells))
    for name, one in datasets.items():
        lines.append(
            f"{name}: {one['sentences']} sentences of {len(one['classes'])} classes, {one['unknown_words']:.1f} % of"
            f" the words unknown to the encoders; nested {found['settings']['folds']}-fold cross-validation"
        )
    lines.append(f"alignment (α 2), uniformity (t 2): {held['sentences']} sentences, {held['source']}")
    if found["checkpoint"]["global_step"] == 0:
        lines.append("this checkpoint has made no step")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="moco.sentences.evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="file written by python -m moco.sentences.train")
    parser.add_argument("data", nargs="*", help="folders such as MR/ and CR/, with a .txt file for each class")
    parser.add_argument("--text", nargs="+", help="text to measure alignment and uniformity on")
    parser.add_argument(
        "--encoding", default="auto", help="encoding of data and --text; auto: UTF-8, else Windows-1252"
    )
    parser.add_argument(
        "--folds", type=Number(int, 2), default=10, help="folds of the outer and the inner cross-validation"
    )
    parser.add_argument("--seed", type=Number(int, 0), default=0, help="seed of the shuffle before the folds")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to this file")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute; auto: cuda if there is one"
    )

    def run() -> int:
        options = parser.parse_args(argv)
        world = World.launched()
        device = pick_device(options.device, world)
        with distributed.session(world, device):
            found = evaluate(options.checkpoint, options, device)
            if world.rank == 0:
                if options.json:
                    write_json(options.json, found)
                print(table(found))
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
