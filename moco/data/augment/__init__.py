"""Augments the colours of whole batches of uint8 crops, on their device."""

from moco.data.augment.apply import Augment as Augment
from moco.data.augment.on_device import everywhere as everywhere
from moco.data.augment.parameters import Parameters as Parameters, draw as draw
from moco.data.augment.recipes import RECIPES as RECIPES, Recipe as Recipe, View as View, find_recipe as find_recipe
