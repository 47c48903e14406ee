"""Defines the options of python -m moco.sentences.train.

Flags have the names of the image trainer. The defaults are those of Wang & Isola's BookCorpus encoders.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial

from moco.errors import InputError
from moco.losses.neighbours import NEIGHBOUR_WEIGHTS, NeighbourLoss
from moco.losses.weighted import Across, OneProcess
from moco.run import flags
from moco.run.options import (
    SavingOptions,
    at_least,
    check_saving,
    check_seed,
    check_unread,
    encoder_option,
    evaluation,
    positive,
    result,
    running,
    training_option,
    unread_saves,
)
from moco.sentences.text import LAYOUTS
from moco.world import World

text_option = partial(result, topic="text")
loss_option = partial(result, topic="loss")


@dataclass(frozen=True)
class TextOptions:
    """Holds the options for reading the text."""

    data: list[str] = text_option(
        [], "plain-text files, or folders with .txt files, in the order of reading", nargs="*"
    )
    encoding: str = text_option("auto", "encoding of the text; auto: UTF-8, else Windows-1252")
    layout: str = text_option(
        "auto", "a sentence a line, a paragraph a line, or paragraphs between blank lines; auto: one of the last two",
        choices=LAYOUTS,
    )  # fmt: skip
    held_out: int | None = text_option(
        None, "sentences at the end of the text that are not trained on; default: a tenth, at most 5000"
    )
    vocabulary: str | None = text_option(
        None, "words of another run: its vocabulary.txt; default: the words of the text", metavar="FILE"
    )
    vocabulary_size: int = text_option(50000, "number of words in the vocabulary: the most frequent ones")
    longest: int = text_option(30, "words read of a sentence; the rest is cut")


@dataclass(frozen=True)
class SentenceOptions(SavingOptions, TextOptions):
    """Holds the options of python -m moco.sentences.train."""

    embedding: int = encoder_option(620, "width of the word embeddings")
    hidden: int = encoder_option(
        600, "width of the GRU in each of its two directions; a feature has twice as many numbers"
    )
    init: float = encoder_option(0.1, "initial parameters are uniform in ± X")

    epochs: int = training_option(1, "epochs to train")
    batch_size: int = training_option(400, "consecutive sentences in a step, over all ranks", "-b")
    lr: float = training_option(5e-4, "constant learning rate of Adam", "--learning-rate")
    grad_clip: float | None = training_option(0.5, "largest gradient norm; 0 for none")
    loss: str = loss_option(
        "infonce", "sets the defaults of the three weights: infonce 1, 0, 0; align-uniform 0, .9, .1",
        choices=tuple(NEIGHBOUR_WEIGHTS),
    )  # fmt: skip
    moco_t: float = loss_option(0.075, "temperature of the contrastive term", "--moco-contr-tau")
    moco_contr_w: float | None = loss_option(None, "weight of the contrastive term")
    moco_align_w: float | None = loss_option(None, "weight of the alignment term")
    moco_align_alpha: float = loss_option(2.0, "exponent α of alignment")
    moco_unif_w: float | None = loss_option(None, "weight of the uniformity term")
    moco_unif_t: float = loss_option(5.0, "t of uniformity")

    classify: list[str] = evaluation(
        [], "folders such as MR/ and CR/, classified after training as by python -m moco.sentences.evaluate",
        nargs="*",
    )  # fmt: skip
    folds: int = evaluation(10, "folds of the nested cross-validation of --classify")

    device: str = running("auto", "where to train; auto: cuda if there is one", choices=("auto", "cuda", "cpu"))


def parse_sentences(argv: list[str] | None = None, world_size: int | None = None) -> SentenceOptions:
    """Parses, checks and resolves the options.

    InputError if they are wrong. world_size: the number of ranks that will train; None: the ranks of this
    process's start.
    """
    world_size = World.launched().size if world_size is None else world_size
    o = flags.parse(SentenceOptions, "Sentence encoders from plain text.", argv)
    if not o.data:
        raise InputError("no text was given: pass plain-text files, or folders with .txt files")
    given = (o.moco_contr_w, o.moco_align_w, o.moco_unif_w)
    weights = [preset if w is None else w for w, preset in zip(given, NEIGHBOUR_WEIGHTS[o.loss], strict=True)]
    resolved = dataclasses.replace(
        o,
        moco_contr_w=weights[0],
        moco_align_w=weights[1],
        moco_unif_w=weights[2],
        output_dir=o.output_dir or os.path.join("runs", f"sentences-{o.loss}"),
    )
    at_least(resolved, 1, "epochs", "print_freq", "vocabulary_size", "longest", "embedding", "hidden")
    at_least(resolved, 2, "batch_size", "folds")
    at_least(resolved, 0, "held_out", "grad_clip")
    positive(resolved, "lr", "init")
    check_seed(resolved.seed)
    check_saving(resolved)
    if resolved.batch_size < world_size:
        raise InputError(f"--batch-size {resolved.batch_size} must be at least {world_size}, the number of ranks")
    unread = {} if resolved.classify else {"folds": "training alone, without --classify"}
    check_unread(flags.typed(SentenceOptions, argv), unread | unread_saves(resolved))
    make_loss(resolved)  # for the loss's own checks, before any text is read
    return resolved


def make_loss(o: SentenceOptions, across: Across | None = None) -> NeighbourLoss:
    """Makes the loss that the resolved options describe.

    across: the other ranks.
    """
    assert o.moco_contr_w is not None and o.moco_align_w is not None and o.moco_unif_w is not None
    return NeighbourLoss(
        contr_w=o.moco_contr_w,
        temperature=o.moco_t,
        align_w=o.moco_align_w,
        align_alpha=o.moco_align_alpha,
        unif_w=o.moco_unif_w,
        unif_t=o.moco_unif_t,
        across=across or OneProcess(),
    )
