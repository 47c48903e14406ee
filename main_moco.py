#!/usr/bin/env python
"""Momentum-contrast pretraining: MoCo's script, the same as `python -m moco.pretrain`.

    torchrun --nproc_per_node=8 main_moco.py --mlp --aug-plus --cos --moco-t 0.2 /data/imagenet  # MoCo v2
    torchrun --nproc_per_node=8 main_moco.py --loss align-uniform imagenet100.beton  # another loss, another loader
    python main_moco.py --dataset digits -a smallcnn --resume auto                   # one process, any device

The program is moco/pretrain/__main__.py; one step is moco/pretrain/step.py; the model is moco/builder.py.
"""

from moco.commands import end_with
from moco.pretrain.__main__ import main

if __name__ == "__main__":
    end_with(main)
