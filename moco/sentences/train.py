"""Trains sentence encoders on plain text.

    python -m moco.sentences.train novels/ --loss infonce
    torchrun --nproc_per_node=8 -m moco.sentences.train bookcorpus/ --layout lines --loss align-uniform --held-out 50000

The method is that of Quick-Thought and of Wang & Isola. Two encoders f and g read the same sentences. The positives of
f(s_i) are g(s_{i-1}) and g(s_{i+1}). The loop is moco/sentences/loop.py, the losses are moco/losses/neighbours.py. The
output folder is that of any run (moco/run/).
Exit codes (moco/errors.py): 0 done, 2 bad input, 3 numbers not finite, 75 preempted and saved. After 75 start the same
command again with --resume auto.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from moco import distributed
from moco.commands import end_with, run_command
from moco.distributed.global_batch import GlobalBatch
from moco.distributed.session import pick_device
from moco.errors import EXIT_OK, InputError
from moco.run import checkpoint, resume
from moco.run.arithmetic import set_arithmetic
from moco.run.lock import only_run_in
from moco.run.log import RunLog
from moco.run.meter import Meter
from moco.run.options import as_json
from moco.run.preemption import Preemption
from moco.run.resume import Position, begin_log
from moco.sentences import corpus
from moco.sentences.classification import read_labelled
from moco.sentences.loop import Training
from moco.sentences.network import SentencePair
from moco.sentences.options import SentenceOptions, make_loss, parse_sentences
from moco.sentences.sampler import WindowSampler, held_out_count
from moco.sentences.state import check, restore, vocabulary_of
from moco.sentences.step import TrainingStep
from moco.sentences.text import find_files
from moco.sentences.vocabulary import FILE, Vocabulary, read_vocabulary
from moco.world import World


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        world = World.launched()
        options = parse_sentences(argv, world.size)
        if options.dry_run:
            print(as_json(options))
            return EXIT_OK
        device = pick_device(options.device, world)
        folder = Path(options.output_dir)
        with distributed.session(world, device, options.rank_timeout), Preemption() as preemption:
            distributed.on_rank_0(lambda: find_files(options.data))  # a wrong path leaves no folder behind
            with only_run_in(folder):
                return train(options, world, device, preemption)

    return run_command(run)


def train(options: SentenceOptions, world: World, device: torch.device, preemption: Preemption) -> int:
    folder = Path(options.output_dir)

    # The checkpoint to resume from. One that cannot be used ends the run here, before any text is read.
    path, notes = distributed.on_rank_0(lambda: resume.find(options.resume, folder))
    saved = checkpoint.load(path) if path else None
    run = check(saved, path) if saved is not None and path is not None else None
    seed = distributed.broadcast_object(resume.seed(options.seed, saved))
    options = dataclasses.replace(options, seed=seed)
    torch.manual_seed(seed)
    kernels = set_arithmetic(options.deterministic, device)

    # Text: rank 0 reads it once and writes the ids to the folder, from where all ranks map them.
    labelled = [read_labelled(name, folds=options.folds) for name in options.classify]
    distributed.on_rank_0(lambda: read_text(options, run, path, folder))
    text = corpus.load(folder)
    vocabulary = read_vocabulary(folder / FILE)
    border = len(text) - held_out_count(len(text), options.held_out)
    training_text = text.part(0, border)
    held_out = text.part(border, len(text))
    preemption.steps_follow()
    sampler = WindowSampler(len(training_text), options.batch_size, seed)

    step = make_step(options, len(vocabulary), sampler.sizes, device)
    position = Position()
    meters = [Meter(), Meter()]
    if saved is not None and path is not None:
        position, more = restore(saved, path, step, meters, options)
        notes += more
    del saved  # as large as model and optimiser

    with RunLog(folder, rank=world.rank, tensorboard=options.tensorboard, wandb=options.wandb) as log:
        about = (
            f"{len(training_text)} sentences to train on, {len(held_out)} held out, {len(vocabulary)} words;"
            f" {len(sampler)} steps of {options.batch_size} an epoch, on {world.size} x {device.type}; --seed {seed};"
            f" output in {folder}"
        )
        begin_log(log, position, options, device, notes, (*about_text(text, options), kernels, about))
        return Training(
            options, device, training_text, held_out, vocabulary, sampler, step, meters, position, labelled, log,
            preemption,
        ).run()  # fmt: skip


def make_step(options: SentenceOptions, words: int, sizes: list[int], device: torch.device) -> TrainingStep:
    """Builds the encoders, their loss and their optimiser.

    words: of the vocabulary. sizes: sentences of each rank in a batch.
    """
    pair = SentencePair(words, options.embedding, options.hidden, options.init).to(device)
    across = GlobalBatch()
    return TrainingStep(
        distributed.data_parallel(pair, device),
        make_loss(options, across),
        torch.optim.Adam(pair.parameters(), options.lr, fused=True),
        across,
        sizes,
        options.grad_clip,
    )


def read_text(options: SentenceOptions, run: dict[str, Any] | None, path: Path | None, folder: Path) -> None:
    """Writes corpus and vocabulary to the run's folder.

    InputError if --vocabulary is not that of the resumed run.
    """
    vocabulary: Vocabulary | None = read_vocabulary(Path(options.vocabulary)) if options.vocabulary else None
    if run is not None:
        of_run = vocabulary_of(run)
        if vocabulary is not None and vocabulary.digest != of_run.digest:
            raise InputError(
                f"{options.vocabulary} is the vocabulary of another run, not that of {path}; leave out --vocabulary"
            )
        vocabulary = of_run
    corpus.prepare(
        options.data,
        folder,
        encoding=options.encoding,
        layout=options.layout,
        longest=options.longest,
        size=options.vocabulary_size,
        vocabulary=vocabulary,
        resumed=run["text"] if run is not None else None,
    )


def about_text(text: corpus.Corpus, options: SentenceOptions) -> list[str]:
    """Returns notes for the log about the reading of the text."""
    if not text.cut:
        return []
    return [f"{text.cut} of {len(text)} sentences are longer than --longest {options.longest} words and were cut"]


if __name__ == "__main__":
    end_with(main)
