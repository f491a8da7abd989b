"""The distribution function of the normal law in float32, for processors and grids alike.

``(normal(x) - 1/2) / x`` is a minimax fit (Lawson's iteration) as a polynomial of
``2 (x / NORMAL_END)^2 - 1``, whose powers keep their digits; beyond ``NORMAL_END`` it is 0 or 1.
"""

from __future__ import annotations

NORMAL = (0.1285519301891327, -0.06417233496904373, 0.04773762822151184, -0.03879278525710106,
    0.032070260494947433, -0.026048259809613228, 0.020364567637443542,
    -0.014999077655375004, 0.010227825492620468, -0.006819910369813442,
    0.00462178373709321, -0.002418649150058627, 0.000720103969797492,
    -0.0005291324341669679, 0.0006315598147921264,
    -0.0002364176034461707)  # fmt: skip
"""Coefficients, lowest first."""
NORMAL_END = 5.5
