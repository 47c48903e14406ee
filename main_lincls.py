#!/usr/bin/env python
"""Trains a linear classifier on frozen features, as MoCo's script does.

    torchrun --nproc_per_node=8 main_lincls.py --pretrained runs/v2/checkpoint_0199.pth.tar /data/imagenet
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --sweep
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --cached
    python main_lincls.py --evaluate --resume runs/lincls/model_best.pth.tar /data/imagenet

It is the same as `python -m moco.probe`. The program is moco/probe/__main__.py; docs/evaluation.md has the protocols.
"""

from moco.commands import end_with
from moco.probe.__main__ import main

if __name__ == "__main__":
    end_with(main)
