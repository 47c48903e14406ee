"""Everything that crosses ranks. At world size 1 each function is the identity."""

from moco.distributed.session import (
    all_reduce_max as all_reduce_max,
    all_reduce_sum as all_reduce_sum,
    any_rank as any_rank,
    barrier as barrier,
    broadcast_buffers as broadcast_buffers,
    broadcast_object as broadcast_object,
    data_parallel as data_parallel,
    exchange_rows as exchange_rows,
    gather_objects as gather_objects,
    gather_rows as gather_rows,
    is_launched as is_launched,
    local_rank as local_rank,
    local_world_size as local_world_size,
    on_rank_0 as on_rank_0,
    rank as rank,
    session as session,
    share as share,
    shares as shares,
    world_size as world_size,
)
