"""How often each client may ask: by its token, or where none is wanted by its address."""

from __future__ import annotations

import ipaddress
import math
import time

import limits
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from models.errors import HeadraceError
from pipelines.serve.http import HttpError


class RateError(HeadraceError, ValueError):
    """A rate that can't be."""


class Rates:
    """Rates that hold for each client, counted in this process; without one all may ask as often as they like."""

    def __init__(self, text: str | None = None) -> None:
        """Such as `100/second`, or `100/second; 5000/hour`; RateError."""
        try:
            self._rates = limits.parse_many(text) if text is not None else []
        except ValueError:
            self._rates = []
        if text is not None and not (self._rates and all(rate.amount > 0 for rate in self._rates)):
            raise RateError(f"--rate is a number and a time such as 100/second or 5000/hour, several with ; not {text}")
        if self._rates:
            self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def check(self, client: str) -> None:
        """HttpError if a client has asked too often; what is refused does not count."""
        for rate in self._rates:
            if not self._limiter.test(rate, client):
                seconds = max(math.ceil(self._limiter.get_window_stats(rate, client).reset_time - time.time()), 1)
                raise HttpError(429, f"more than {rate}: come again in {seconds} s", {"Retry-After": str(seconds)})
        for rate in self._rates:
            self._limiter.hit(rate, client)


def client_of(address: str) -> str:
    """Who is at an address: of IPv6 the network of 64 bits, of which one client has all."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
