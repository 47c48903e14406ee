"""Trains a probe's classifiers on frozen features, in several ways."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

from torch import Tensor, nn

from moco import distributed
from moco.data.augment import Augment
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source, hold_out
from moco.encoders.files import EncoderFile
from moco.probe.logistic import five_nearest, solve
from moco.probe.model import Features, Model, Rows, Setup
from moco.probe.options import LinclsOptions
from moco.probe.saved import BEST, LAST, Best, restore_classifiers, restore_progress, save
from moco.probe.training import Cached, Classifiers, Crops, Probe, Stream, accuracies, check_unchanged, make_optimizer
from moco.run.log import RunLog


class Linear:
    """Trains one classifier by epochs, as MoCo's protocol does.

    The features are frozen, and of augmented crops (He et al. 2020, section 4.1). The other protocols that train by
    epochs replace single methods.
    """

    name = "moco"
    drop_last = False

    def __init__(self, options: LinclsOptions) -> None:
        self.options = options

    def settings(self) -> list[tuple[float, float]]:
        """Returns (learning rate per 256 images, weight decay) of each classifier."""
        return [(self.options.lr, self.options.weight_decay)]

    def in_words(self) -> str:
        """Describes the training in words, for the log."""
        return f"learning rate {self._scaled(self.options.lr)}"

    def split(self, train: Source) -> tuple[Source, Source | None]:
        """Returns the images to train on, and the held-out ones.

        The second are for the choice between several classifiers; None if there is only one.
        """
        return train, None

    def prepare(self, model: Model) -> Model:
        """Returns the model to train. The one given is frozen."""
        return model

    def restore(self, model: Model, resumed: EncoderFile) -> None:
        """Puts back the classifiers of a checkpoint. InputError if their shapes differ."""
        restore_classifiers(model.encoder, model.classifiers, resumed, self.options.features_from)

    def stream(self, setup: Setup) -> Stream:
        """Returns the training batches: here features of augmented crops."""
        return self._crops(setup, setup.model.network)

    def features(self, setup: Setup) -> Features:
        """Extracts the features to validate on.

        Once is enough, because neither a frozen network nor the validation crops change.
        """
        return Features(setup.features_of(setup.val), setup.features_of(setup.held_out) if setup.held_out else None)

    def run(
        self, setup: Setup, features: Features, log: RunLog, about: dict[str, Any], said: str
    ) -> tuple[Best, dict[str, Any]]:
        """Trains, validates and saves by epochs.

        Returns the best epoch, and entries of the result file. about and said: for the beginning of the log.
        """
        options, model, stream = self.options, setup.model, self.stream(setup)
        tuned, classifiers = self._trained(model), model.classifiers
        optimizer, rates = make_optimizer(options, self.settings(), classifiers, tuned)
        training = Probe(options, setup.device, model.encoder, classifiers, tuned, optimizer, rates, stream, log)
        start, best = options.start_epoch, Best()
        if setup.resumed:
            start, best, training.chosen = restore_progress(optimizer, setup.resumed)
        log.cut_back(start * stream.sampler.steps)
        log.start(about, epoch=start, global_step=start * stream.sampler.steps)
        log.say(said)
        validation = features.validation
        for epoch in range(start, options.epochs):
            before = copy.deepcopy(self._frozen(model)) if epoch == start else {}
            training.one_epoch(epoch)
            check_unchanged(before, self._frozen(model))
            validation = self._features(setup, validation)
            best = self._after_epoch(training, epoch, best, validation, features.held_out, setup.val)
        if validation is None:  # of a trained network, where no epoch was left
            validation = setup.features_of(setup.val)
        top1, top5 = training.percent(validation)
        result = {"top1": top1, "top5": top5, "epochs": max(start, options.epochs)}
        return best, result | (self._choice(training, features.held_out) if features.held_out else {})

    def _after_epoch(
        self, training: Probe, epoch: int, best: Best, validation: Rows, held_out: Rows | None, val: Source
    ) -> Best:
        """Validates and saves after the 0-based `epoch`.

        Returns the best epoch up to here.
        """
        figures: dict[str, float] = {}
        if held_out:
            of_each = accuracies(training.classifiers, *held_out)[0]
            training.chosen = int(of_each.argmax())
            figures["held_out_acc1"] = float(of_each[training.chosen])
        top1, top5 = training.percent(validation)
        figures |= {"val_acc1": top1, "val_acc5": top5}
        training.log.eval(figures, epoch=epoch, global_step=(epoch + 1) * training.stream.sampler.steps)
        score = figures.get("held_out_acc1", top1)
        better = score > best.score
        if better:
            best = Best(top1, top5, epoch + 1, score)
        training.log.sync()
        save(
            self.options, training.encoder, training.classifiers, training.chosen, training.optimizer, epoch + 1, best,
            val.classes, [LAST, BEST] if better else [LAST],
        )  # fmt: skip
        return best

    def _choice(self, training: Probe, held_out: Rows) -> dict[str, Any]:
        """Logs the chosen classifier and returns its entries of the result file."""
        settings = self.settings()
        lr, decay = settings[training.chosen]
        of_each = accuracies(training.classifiers, *held_out)[0].tolist()
        training.log.say(
            f"chosen on held-out training images: learning rate {lr:g} per 256, weight decay {decay:g}"
            f" ({of_each[training.chosen]:.2f} there)"
        )
        tried = [
            {"lr": lr, "weight_decay": decay, "held_out_top1": percent}
            for (lr, decay), percent in zip(settings, of_each, strict=True)
        ]
        return {"lr": lr, "weight_decay": decay, "sweep": tried}

    def _trained(self, model: Model) -> nn.Module | None:
        """Returns the trunk if it is trained, else None."""
        return None

    def _frozen(self, model: Model) -> dict[str, Tensor]:
        """Returns the tensors that training must not change."""
        return model.network.state_dict()

    def _features(self, setup: Setup, validation: Rows | None) -> Rows:
        """Returns the features of the validation images after an epoch.

        Those of a frozen network do not change.
        """
        assert validation is not None
        return validation

    def _crops(self, setup: Setup, network: nn.Module | None) -> Crops:
        options, augmentations = self.options, setup.recipe.for_probe()
        assert options.image_size and options.seed is not None  # resolved
        loader = Loader(
            setup.fit, self._sampler(len(setup.fit)), size=options.image_size, views=1,
            scale=augmentations.scale, ratio=augmentations.ratio, workers=options.workers, device=setup.device,
            seed=options.seed, skip_bad_images=options.skip_bad_images,
        )  # fmt: skip
        return Crops(loader, Augment(augmentations, options.seed), network)

    def _sampler(self, n: int) -> Sampler:
        options, rank, world_size = self.options, distributed.rank(), distributed.world_size()
        return Sampler(
            n, options.batch_size, options.seed or 0, drop_last=self.drop_last, rank=rank, world_size=world_size
        )

    def _scaled(self, lr: float) -> str:
        return f"{lr:g} x {self.options.batch_size}/256 = {lr * self.options.batch_size / 256:g}"


class Sweep(Linear):
    """Trains many classifiers at once.

    Each has its own learning rate and weight decay. The best on held-out training images is the result.
    """

    name = "sweep"

    def settings(self) -> list[tuple[float, float]]:
        return list(product(self.options.sweep_lrs, self.options.sweep_wds))

    def in_words(self) -> str:
        return f"{len(self.settings())} classifiers"

    def split(self, train: Source) -> tuple[Source, Source | None]:
        return hold_out(train, self.options.held_out, self.options.seed or 0)


class CachedSweep(Sweep):
    """Sweeps on features that are computed once, without augmentation."""

    name = "cached sweep"

    def in_words(self) -> str:
        return f"{super().in_words()} on cached features"

    def stream(self, setup: Setup) -> Stream:
        features, labels = setup.features_of(setup.fit)
        return Cached(features, labels, self._sampler(len(features)))


class Solved(Linear):
    """Solves logistic regression to its optimum, without epochs.

    The features are computed once.
    """

    name = "cached"

    def in_words(self) -> str:
        return "logistic regression on cached features"

    def restore(self, model: Model, resumed: EncoderFile) -> None:
        """Does nothing, because the problem is solved again."""

    def run(
        self, setup: Setup, features: Features, log: RunLog, about: dict[str, Any], said: str
    ) -> tuple[Best, dict[str, Any]]:
        """Solves the problem again, even if there is a checkpoint to resume.

        Returns its accuracies, and entries of the result file, with the other figures of the STL-10 protocol.
        """
        log.start(about)
        log.say(said)
        assert features.validation is not None
        options, classes, validation = self.options, setup.val.classes, features.validation
        bank = setup.features_of(setup.fit)
        found = solve(*bank, len(classes), options.folds, options.seed or 0)
        classifiers = Classifiers([found.linear])
        top1, top5 = (float(percent[0]) for percent in accuracies(classifiers, *validation))
        best = Best(top1, top5)
        save(options, setup.model.encoder, classifiers, 0, None, 0, best, classes, [LAST, BEST])
        return best, {
            "top1": top1, "top5": top5, "epochs": 0, "penalty": found.penalty, "cv_top1": found.cv_top1,
            "cv_top1_std": found.cv_top1_std, "knn5_top1": five_nearest(*bank, *validation, len(classes)),
            "held_out_top1": {f"{penalty:g}": percent for penalty, percent in found.held_out.items()},
        }  # fmt: skip
