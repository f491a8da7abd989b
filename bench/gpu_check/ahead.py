"""Compile torch's networks ahead, while sections that time nothing prove the card.

What is compiled lies in torch's own cache, where the section ``networks`` finds it: so more of
them are compared in the time that there is. ``python -m bench.gpu_check.ahead PART PARTS`` compiles
every PARTS-th network from number PART on, in the order in which they are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.gpu_check.nets import NETS, Net
from bench.gpu_check.sections.networks import ORDER, Precision, every


def compile_all(plan: Sequence[tuple[int, Precision, Net]], where: str) -> int:
    """Compile networks; returns how many. What fails here fails, and is told, when compared."""
    from bench.gpu_check import nets_torch

    made = 0
    for batch, precision, net in plan:
        nets_torch.tf32(precision.tf32)
        feeds = net.feeds(batch, precision.dtype)
        try:
            peers = nets_torch.Peers(net, batch, precision.dtype, where, feeds, resident=True)
            peers.compiled()()
        except Exception:  # noqa: BLE001 - whatever it is, the next network is another
            continue
        else:
            made += 1
        finally:
            nets_torch.give_back()
    return made


def main(part: int, parts: int) -> None:
    """Compile this process's part."""
    plan = [(b, precision, net) for b, precision, net, resident in every(ORDER, NETS) if resident]
    compile_all(plan[part::parts], "cuda")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
