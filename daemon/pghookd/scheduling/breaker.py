"""Circuit breaker: when a failing endpoint gets no requests, and when it is probed.

    state     may go out      a failure                             a 2xx
    closed    everything      counted; opens the breaker if         counted
                              `share` of the last `attempts`
                              failed, or timeouts come too often
    open      nothing         ignored: it was sent before           ignored: only probes decide
    probing   one delivery    open, the wait doubled                closed, the window is cleared

    closed -> open      the first probe follows after `probe_s`, plus or minus a fifth, so that probes do not coincide
    open -> probing     the wait is over and there is a delivery to send as the probe
    probing -> open     the wait is at most `probe_max_s`; it stays the same if the probe proved nothing (`failed` is
                        our own fault, `blocked` was never sent)
    probing -> closed   deliveries parked meanwhile go out at a growing rate (scheduling/rate)

The window is a ring of bits in which a one is a failure. Attempts not made yet count as successes. So a cold start
needs as many failures as a warm one, and a short disturbance does not open the breaker. A success while the window is
empty costs one comparison.

Never here: which delivery is the probe (scheduling/lane), a clock, randomness.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

JITTER: Final = 0.2  # share by which the wait for a probe varies, up or down
_ROUNDING: Final = 1e-9  # in floating point 0.1 x 30 is a little more than 3


@dataclasses.dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """The settings `breaker.*`.

    Attributes:
        attempts: number of latest attempts in the window.
        share: share of `attempts` that must fail to open the breaker; 0 means that it never opens.
        probe_s: seconds to the first probe.
        probe_max_s: maximum of seconds between probes.
    """

    attempts: int = 20
    share: float = 0.5
    probe_s: float = 30.0
    probe_max_s: float = 600.0

    def opens(self, window: int) -> bool:
        """Return True if the failures in a window open a breaker."""
        return self.share > 0 and window.bit_count() >= math.ceil(self.share * self.attempts - _ROUNDING)


@dataclasses.dataclass(slots=True, eq=False)
class Breaker:
    """The breaker of one endpoint.

    Attributes:
        policy: the settings, shared by all breakers.
        window: the last attempts, the newest in the lowest bit; a one is a failure. Not 0 while the breaker is open.
        is_open: True if only probes may go out.
        wait_s: the last wait for a probe, before its jitter, seconds.
        probe_at: monotonic seconds from which a probe may go out.
    """

    policy: BreakerPolicy
    window: int = 0
    is_open: bool = False
    wait_s: float = 0.0
    probe_at: float = 0.0

    def succeeded(self) -> None:
        """Count a 2xx while closed. Callers may skip this while `window` is 0."""
        self.window = self.window << 1 & (1 << self.policy.attempts) - 1

    def failed(self, now: float, random01: float, *, too_often: bool = False) -> bool:
        """Count a failure while closed; return True if it opened. `too_often` opens it whatever the share is."""
        self.window = (self.window << 1 | 1) & (1 << self.policy.attempts) - 1
        if not self.policy.opens(self.window) and not (too_often and self.policy.share > 0):
            return False
        self.is_open = True
        self._wait(self.policy.probe_s, now, random01)
        return True

    def reopen(self, probe_at: float) -> None:
        """Open the breaker again, as an earlier epoch left it."""
        self.window, self.is_open = 1, True
        self.wait_s, self.probe_at = self.policy.probe_s, probe_at

    def probe_failed(self, now: float, random01: float) -> None:
        """Wait twice as long for the next probe."""
        self._wait(min(2 * self.wait_s, self.policy.probe_max_s), now, random01)

    def probe_proved_nothing(self, now: float, random01: float) -> None:
        """Wait as long again: the probe proved nothing about the endpoint."""
        self._wait(self.wait_s, now, random01)

    def probe_now(self) -> None:
        """Allow a probe at once, because the endpoint was changed."""
        self.wait_s, self.probe_at = self.policy.probe_s, 0.0

    def close(self) -> None:
        """Close the breaker and clear the window."""
        self.window, self.is_open, self.wait_s = 0, False, 0.0

    def _wait(self, wait_s: float, now: float, random01: float) -> None:
        self.wait_s = wait_s
        self.probe_at = now + wait_s * (1.0 + JITTER * (2.0 * random01 - 1.0))
