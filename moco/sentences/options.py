"""The options of python -m moco.sentences.train.

Flags have the names of the image trainer. The defaults are those of Wang & Isola's BookCorpus encoders.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass

from moco.errors import InputError
from moco.losses.neighbours import NEIGHBOUR_WEIGHTS, NeighbourLoss
from moco.losses.weighted import Across, OneProcess
from moco.run import flags
from moco.run.options import (
    at_least,
    check_seed,
    check_unread,
    evaluation,
    positive,
    result,
    running,
    unread_saves,
)
from moco.run.saver import Every
from moco.sentences.text import LAYOUTS
from moco.world import World


@dataclass(frozen=True)
class SentenceOptions:
    """Options of python -m moco.sentences.train."""

    data: list[str] = result([], "plain-text files, or folders with .txt files, in the order of reading", nargs="*")
    encoding: str = result("auto", "encoding of the text; auto: UTF-8, else Windows-1252")
    layout: str = result(
        "auto", "a sentence a line, a paragraph a line, or paragraphs between blank lines; auto: one of the last two",
        choices=LAYOUTS,
    )  # fmt: skip
    held_out: int | None = result(
        None, "sentences at the end of the text that are not trained on; default: a tenth, at most 5000"
    )
    vocabulary: str | None = result(
        None, "words of another run: its vocabulary.txt; default: the words of the text", metavar="FILE"
    )
    vocabulary_size: int = result(50000, "number of words in the vocabulary: the most frequent ones")
    longest: int = result(30, "words read of a sentence; the rest is cut")

    embedding: int = result(620, "width of the word embeddings")
    hidden: int = result(600, "width of the GRU in each of its two directions; a feature has twice as many numbers")
    init: float = result(0.1, "initial parameters are uniform in ± X")

    epochs: int = result(1, "epochs to train")
    batch_size: int = result(400, "consecutive sentences in a step, over all ranks", "-b")
    lr: float = result(5e-4, "constant learning rate of Adam", "--learning-rate")
    grad_clip: float | None = result(0.5, "largest gradient norm; 0 for none")
    loss: str = result(
        "infonce", "sets the defaults of the three weights: infonce 1, 0, 0; align-uniform 0, .9, .1",
        choices=tuple(NEIGHBOUR_WEIGHTS),
    )  # fmt: skip
    moco_t: float = result(0.075, "temperature of the contrastive term", "--moco-contr-tau")
    moco_contr_w: float | None = result(None, "weight of the contrastive term")
    moco_align_w: float | None = result(None, "weight of the alignment term")
    moco_align_alpha: float = result(2.0, "exponent α of alignment")
    moco_unif_w: float | None = result(None, "weight of the uniformity term")
    moco_unif_t: float = result(5.0, "t of uniformity")
    seed: int | None = result(None, "seed of everything random; default: drawn at the start, and saved")
    deterministic: bool = result(False, "only deterministic kernels: bit-identical runs on a GPU too, but slower")

    classify: list[str] = evaluation(
        [], "folders such as MR/ and CR/, classified after training as by python -m moco.sentences.evaluate",
        nargs="*",
    )  # fmt: skip
    folds: int = evaluation(10, "folds of the nested cross-validation of --classify")

    device: str = running("auto", "where to train; auto: cuda if there is one", choices=("auto", "cuda", "cpu"))
    print_freq: int = running(10, "steps between two log lines", "-p")
    output_dir: str = running(
        "", "folder of text, checkpoints, logs and options; default: a name under runs/", metavar="FOLDER"
    )
    config: str | None = running(
        None, "YAML file with lines of the form option: value; flags override them", metavar="FILE"
    )
    dry_run: bool = running(False, "print the resolved options and stop")
    resume: str | None = running(
        None,
        "checkpoint to go on from; auto: the newest good one in --output-dir, if there is one",
        metavar="FILE|auto",
    )
    save_freq: int = running(1, "epochs between two checkpoints; the last epoch is always saved")
    save_every: str | None = running(
        None, "save inside epochs too: each so many steps (500) or minutes (30m)", metavar="STEPS|MINUTESm"
    )
    keep_last: int = running(0, "checkpoints to keep; 0: every epoch's, and the last two of those inside epochs")
    keep_every: int = running(0, "with --keep-last: keep also each so many epochs' checkpoint")
    rank_timeout: float = running(1800.0, "seconds without an answer from a rank after which the run ends")
    tensorboard: bool = running(True, "write TensorBoard files; default: yes", action=argparse.BooleanOptionalAction)
    wandb: str | None = running(None, "log to this Weights & Biases project too", metavar="PROJECT")


def parse_sentences(argv: list[str] | None = None, world_size: int | None = None) -> SentenceOptions:
    """The options, checked and resolved. InputError if they are wrong.

    world_size: the number of ranks that will train; None: the ranks of this process's start.
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
    at_least(resolved, 1, "epochs", "print_freq", "vocabulary_size", "longest", "embedding", "hidden", "save_freq")
    at_least(resolved, 2, "batch_size", "folds")
    at_least(resolved, 0, "held_out", "grad_clip", "keep_last", "keep_every")
    positive(resolved, "lr", "init", "rank_timeout")
    check_seed(resolved.seed)
    if resolved.batch_size < world_size:
        raise InputError(f"--batch-size {resolved.batch_size} must be at least {world_size}, the number of ranks")
    unread = {} if resolved.classify else {"folds": "training alone, without --classify"}
    check_unread(flags.typed(SentenceOptions, argv), unread | unread_saves(resolved.keep_last))
    make_loss(resolved)  # its own checks, before anything is read
    Every(resolved.save_every)
    return resolved


def make_loss(o: SentenceOptions, across: Across | None = None) -> NeighbourLoss:
    """The loss that the resolved options describe. across: the other ranks."""
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
