"""Defines the recipes: ranges and probabilities of each view's operations.

A recipe holds one `View` for each view that it treats differently (view v uses `views[v % len(views)]`), the crop that
the loader cuts, the channel statistics of the final normalisation, and the source of its numbers. Horizontal flips
commute with every operation on colours, and with the blur, whose kernel is symmetric. So recipes that differ only in
the position of the flip are equal, and have no field for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moco.errors import InputError, did_you_mean

PerChannel = tuple[float, ...]
Range = tuple[float, float]

IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)
CIFAR_MEAN: PerChannel = (0.4914, 0.4822, 0.4465)
CIFAR_STD: PerChannel = (0.2023, 0.1994, 0.2010)
STL10_MEAN: PerChannel = (0.44087801806139126, 0.42790631331699347, 0.3867879370752931)
STL10_STD: PerChannel = (0.26826768628079806, 0.2610450402318512, 0.26866836876860795)
DIGITS_MEAN: PerChannel = (0.306, 0.306, 0.306)  # of the 1,797 scans after the enlargement to 32 x 32
DIGITS_STD: PerChannel = (0.324, 0.324, 0.324)


@dataclass(frozen=True)
class Jitter:
    """Holds the strengths of ColorJitter, done with probability `p`.

    The factors of the first three lie in [max(0, 1 - x), 1 + x]. The hue shift lies in [-hue, hue] turns.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_odds(self.p)
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"a hue shift of {self.hue} turns is outside [0, 0.5]; give at most half a turn")
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise InputError("a jitter strength below 0 has no meaning; give 0 to leave an operation out")

    def ranges(self) -> tuple[Range, Range, Range, Range]:
        """Returns (low, high) of brightness, contrast, saturation and hue.

        Hue is in turns, the others are factors. The rule is torchvision's.
        """
        factors = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        return factors[0], factors[1], factors[2], (-self.hue, self.hue)


@dataclass(frozen=True)
class View:
    """Holds one view's operations; those with probability 0 are left out.

    Their order is rotation, jitter, grayscale, blur, solarize, horizontal flip.
    grayscale_first: True if grayscale comes before the jitter instead.
    rotation: largest angle in degrees, in both directions.
    sigma: range of the blur's sigma in pixels, drawn uniformly. solarize: probability; the threshold is half intensity.
    rgb: True if the three channels are colours. Otherwise contrast uses each channel's own mean.
    """

    rotation: float = 0.0
    jitter: Jitter | None = None
    grayscale: float = 0.0
    grayscale_first: bool = False
    blur: float = 0.0
    sigma: Range = (0.1, 2.0)
    solarize: float = 0.0
    flip: float = 0.0
    rgb: bool = True

    def __post_init__(self) -> None:
        for odds in (self.grayscale, self.blur, self.solarize, self.flip):
            _check_odds(odds)
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise InputError(f"blur sigmas {self.sigma} must be two numbers above 0, the smaller first")

    @property
    def changes_colour(self) -> bool:
        """Returns True if it has an operation that only RGB has."""
        return bool(self.grayscale or (self.jitter and (self.jitter.saturation or self.jitter.hue)))

    def without_colour(self) -> View:
        """Returns the view without hue, saturation and grey, which need RGB."""
        jitter = replace(self.jitter, saturation=0.0, hue=0.0) if self.jitter else None
        return replace(self, jitter=jitter, grayscale=0.0, grayscale_first=False, rgb=False)


@dataclass(frozen=True)
class Recipe:
    """Holds a named set of views.

    scale, ratio: area share and aspect ratio of the loader's random crop. probe_scale: area share of the crop for a
    probe. centre: side of the central square of an evaluation, as a share of the shorter side; by default that of 224
    in 256 px.
    """

    name: str
    source: str
    views: tuple[View, ...]
    scale: Range = (0.2, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD
    probe_scale: Range = (0.08, 1.0)
    centre: float = 0.875

    def view(self, number: int) -> View:
        return self.views[number % len(self.views)]

    def for_probe(self) -> Recipe:
        """Returns the recipe for training a linear probe.

        It has the crop and this recipe's flip, and no change of colours.
        """
        flip = max(view.flip for view in self.views)
        return Recipe(
            f"lincls ({self.name})",
            RECIPES["lincls"].source,
            (View(flip=flip),),
            scale=self.probe_scale,
            ratio=self.ratio,
            centre=self.centre,
            mean=self.mean,
            std=self.std,
        )

    def for_evaluation(self) -> Recipe:
        """Returns the recipe that only normalises, with this recipe's statistics."""
        return replace(RECIPES["eval"], name=f"eval ({self.name})", mean=self.mean, std=self.std, centre=self.centre)

    def for_channels(
        self, channels: int, mean: Sequence[float] = (), std: Sequence[float] = (), rgb: bool = True
    ) -> Recipe:
        """Returns this recipe for images of `channels`.

        mean, std: of their values / 255. rgb: True if three channels are colours. Without mean and std, RGB images have
        the recipe's. Other images have them too if the recipe's three are equal (grey scans), and otherwise 0.5 and
        0.5. The views of other images are those of `View.without_colour`.
        """
        recipe = self
        if channels != 3 or not rgb:
            grey = len(set(self.mean)) == len(set(self.std)) == 1
            usual = (self.mean[0], self.std[0]) if grey else (0.5, 0.5)
            views = tuple(view.without_colour() for view in self.views)
            recipe = replace(self, views=views, mean=(usual[0],) * channels, std=(usual[1],) * channels)
        return replace(recipe, mean=tuple(mean), std=tuple(std)) if mean or std else recipe


def _check_odds(p: float) -> None:
    if not 0 <= p <= 1:
        raise InputError(f"a probability of {p} is outside [0, 1]")


def find_recipe(
    name: str,
    crop_min: float | None = None,
    channels: int = 3,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    rgb: bool = True,
) -> Recipe:
    """Returns the recipe called `name`, for these channels.

    crop_min: smallest area share of the random crop, instead of the recipe's. For the others see `Recipe.for_channels`.
    Raises InputError, with the known names, if there is no such recipe.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES, 1)
        raise InputError(f"unknown augmentation recipe {name!r}{hint}; take one of {', '.join(sorted(RECIPES))}")
    recipe = RECIPES[name].for_channels(channels, mean, std, rgb)
    return recipe if crop_min is None else replace(recipe, scale=(crop_min, max(crop_min, recipe.scale[1])))


_MILD = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8)
_BYOL = Jitter(0.4, 0.4, 0.2, 0.1, p=0.8)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "v1",
            "MoCo v1 (He et al. 2020; facebookresearch/moco main_moco.py without --aug-plus): grey before jitter",
            (View(grayscale=0.2, grayscale_first=True, jitter=Jitter(0.4, 0.4, 0.4, 0.4), flip=0.5),),
        ),
        Recipe(
            "v2",
            "MoCo v2 (Chen et al. 2020; facebookresearch/moco main_moco.py --aug-plus)",
            (View(jitter=_MILD, grayscale=0.2, blur=0.5, flip=0.5),),
        ),
        Recipe(
            "simclr",
            "SimCLR (Chen et al. 2020, appendix A; colour strength 1), normalised with ImageNet's statistics as "
            "its ports to PyTorch are; the original feeds [0, 1]",
            (View(jitter=Jitter(0.8, 0.8, 0.8, 0.2, p=0.8), grayscale=0.2, blur=0.5, flip=0.5),),
            scale=(0.08, 1.0),
        ),
        Recipe(
            "byol",
            "BYOL (Grill et al. 2020, table 6): view 0 always blurred, view 1 seldom blurred and sometimes solarized",
            (
                View(jitter=_BYOL, grayscale=0.2, blur=1.0, flip=0.5),
                View(jitter=_BYOL, grayscale=0.2, blur=0.1, solarize=0.2, flip=0.5),
            ),
            scale=(0.08, 1.0),
        ),
        Recipe(
            "supcon",
            "SupCon (Khosla et al. 2020; HobbitLong/SupContrast main_supcon.py), with ImageNet's statistics",
            (View(jitter=_MILD, grayscale=0.2, flip=0.5),),
        ),
        Recipe(
            "stl10",
            "Wang & Isola 2020 (SsnL/align_uniform, examples/stl10)",
            (View(jitter=Jitter(0.4, 0.4, 0.4, 0.4), grayscale=0.2, flip=0.5),),
            scale=(0.08, 1.0),
            mean=STL10_MEAN,
            std=STL10_STD,
            centre=64 / 70,  # resized to 70 px, of which 64 are cut
        ),
        Recipe(
            "cifar",
            "MoCo's CIFAR-10 demo (facebookresearch/moco, colab notebook)",
            (View(jitter=_MILD, grayscale=0.2, flip=0.5),),
            scale=(0.08, 1.0),
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            centre=1.0,  # pictures made to size are shown whole
        ),
        Recipe(
            "digits",
            "this project: a mirrored or upside-down digit is another sign, and grey scans have no hue",
            (View(rotation=15.0, jitter=Jitter(brightness=0.4, contrast=0.4, p=0.8)),),
            scale=(0.4, 1.0),
            mean=DIGITS_MEAN,
            std=DIGITS_STD,
            probe_scale=(0.8, 1.0),
            centre=1.0,
        ),
        Recipe(
            "lincls", "MoCo's linear probe (facebookresearch/moco main_lincls.py)", (View(flip=0.5),), scale=(0.08, 1.0)
        ),
        Recipe("eval", "normalisation alone", (View(),), scale=(1.0, 1.0)),
    )
}
