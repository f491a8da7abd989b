"""Machine profiles as costs: probed rates become rooflines, probed links become link models."""

from __future__ import annotations

from crossdock.devices.links import link_ends
from crossdock.devices.machine import LinkProfile, Machine, Rates
from crossdock.devices.registry import HOST
from crossdock.scheduler import CostModel, DeviceRates, LinkModel

TYPICAL_BYTES = float(1 << 20)
"""Data of a typical op, where nothing is known of the graph: bandwidth depends on it."""


def apply(machine: Machine, model: CostModel, nbytes: float = TYPICAL_BYTES) -> None:
    """Set the rooflines and links of a profile's working devices in a cost model."""
    for device in machine.passed:
        if device.info is not None and device.rates is not None:
            model.set_rates(device.info.fingerprint, device_rates(device.rates, nbytes))
    for link in machine.links:
        ends = [machine.device(name) for name in (link.src, link.dst)]
        infos = [d.info for d in ends if d is not None and d.info is not None]
        if len(infos) == 2 and len(link.route) == 2:
            model.set_link(*link_ends(*infos), link_model(link))


def peers(machine: Machine) -> dict[tuple[str, str], str]:
    """How devices copy from each other without the host, by (source, target) ids."""
    return {
        (link.src, link.dst): link.how or "direct"
        for link in machine.links
        if len(link.route) == 2 and HOST not in link.route
    }


def device_rates(rates: Rates, nbytes: float = TYPICAL_BYTES) -> DeviceRates:
    """A profile's rates as a roofline; dtypes not probed get the elementwise rate of float32.

    Products of bytes get that of products of float32, which none of them is slower than.
    """
    flops = rates.flops_by_class()
    if "gemm:float32" in flops:
        for dtype in ("int8", "uint8"):
            flops.setdefault(f"gemm:{dtype}", flops["gemm:float32"])
    fallback = flops.get("elementwise:float32") or max(flops.values(), default=0.0)
    if fallback > 0:
        flops.setdefault("*", fallback)
    return DeviceRates(flops, rates.bandwidth_at(nbytes), rates.launch())


def link_model(link: LinkProfile) -> LinkModel:
    """A profile's link; its rates have the latency in them, the model's have not."""
    samples = [(0.0, link.latency_s.median)]
    samples += [(float(n), n / rate) for n, rate in link.pairs()]
    return LinkModel.fit(samples)
