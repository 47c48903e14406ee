"""Holds the process group of a run, and its collectives.

No other folder imports torch.distributed.
"""

from moco.distributed.collectives import (
    LateVote as LateVote,
    all_reduce_max as all_reduce_max,
    all_reduce_sum as all_reduce_sum,
    barrier as barrier,
    broadcast_buffers as broadcast_buffers,
    broadcast_object as broadcast_object,
    exchange_rows as exchange_rows,
    gather_objects as gather_objects,
    gather_rows as gather_rows,
    on_rank_0 as on_rank_0,
    share as share,
    shares as shares,
)
from moco.distributed.session import (
    copy_without_waiting as copy_without_waiting,
    data_parallel as data_parallel,
    pick_device as pick_device,
    rank as rank,
    session as session,
    world_size as world_size,
)
