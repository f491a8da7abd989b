"""Costs of a machine that is not so: its links are of another speed, or it has fewer cores."""

from __future__ import annotations

from collections.abc import Mapping

from crossdock.runtime.prediction import RUN
from crossdock.scheduler import CostModel, DeviceRates, Estimate, LinkModel, Source, Work


class SupposedCosts(CostModel):
    """The costs of another model, and those of its devices on fewer cores.

    A device with an n-th of its cores takes n times as long at most and no longer at best; n
    times is the estimate, since most kernels are shared out evenly. What whole runs took does not
    count: they ran on the machine as it is.
    """

    def __init__(self, base: CostModel, whole: Mapping[str, tuple[str, float]]) -> None:
        """Take over what ``base`` holds.

        Args:
            base: the costs of the machine as it is.
            whole: for the fingerprint of each device with fewer cores, that of the device as it is
                and n.
        """
        super().__init__()
        self.__dict__.update(base.merge(CostModel()).__dict__)
        self._whole = dict(whole)

    def _there(self, fingerprint: str) -> str:
        return self._whole.get(fingerprint, (fingerprint, 1.0))[0]

    def pace(self, fingerprint: str) -> float:
        """The pace of the device as it is."""
        return super().pace(self._there(fingerprint))

    def rates(self, fingerprint: str) -> DeviceRates | None:
        """The roofline of the device as it is."""
        return super().rates(self._there(fingerprint))

    def link(self, src: str, dst: str) -> LinkModel | None:
        """The link between the devices, which fewer cores do not change."""
        return super().link(self._there(src), self._there(dst))

    def set_link(self, src: str, dst: str, model: LinkModel) -> None:
        """Set the link between two fingerprints, one direction."""
        super().set_link(self._there(src), self._there(dst), model)

    def estimate(
        self, fingerprint: str, variant: str, key: str, work: Work | None = None
    ) -> Estimate:
        """Seconds of one run, scaled where the device is one with fewer cores."""
        if variant == RUN:
            return Estimate.unknown()
        old, factor = self._whole.get(fingerprint, (fingerprint, 1.0))
        made = super().estimate(old, variant, key, work)
        if factor == 1.0 or made.seconds is None or made.low is None or made.high is None:
            return made
        source = Source.FITTED if made.source is Source.MEASURED else made.source
        return Estimate(made.seconds * factor, made.low, made.high * factor, source, made.samples)
