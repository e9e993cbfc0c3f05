"""When an endpoint that fails is left alone, and when it is asked again.

    state     what goes out   a failure                             a 2xx
    closed    everything      counted; `share` of the last          counted
                              `attempts` have failed, or none
                              but timeouts ever came: open
    open      nothing         ignored: it was sent before           ignored: single probes decide
    probing   one delivery    open, the wait doubled                closed, nothing counted any more

    closed -> open      the first probe after `probe_s`, give or take a fifth, so that many do not ask together
    open -> probing     the wait is over and there is a delivery to ask with
    probing -> open     `probe_max_s` at the most; as long as before where the probe proved nothing (`failed` is our own
                        fault, `blocked` never left)
    probing -> closed   what was parked meanwhile goes out at a growing rate (scheduling/rate)

The window is a ring of bits, a failure is a one: what has never been asked counts as answered, so that a cold start
takes as many failures as a warm one, and no blip opens. A success where nothing has failed costs one look.

Never here: which delivery is the probe (scheduling/lanes), a clock, randomness.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

JITTER: Final = 0.2  # share by which the wait for a probe varies
_ROUNDING: Final = 1e-9  # 0.1 x 30 is a little more than 3


@dataclasses.dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """The settings `breaker.*`.

    Attributes:
        attempts: how many of the last ones are looked at.
        share: of them must have failed to open; 0: never.
        probe_s: seconds to the first probe.
        probe_max_s: seconds between probes at the most.
    """

    attempts: int = 20
    share: float = 0.5
    probe_s: float = 30.0
    probe_max_s: float = 600.0

    def opens(self, window: int) -> bool:
        """Whether so many failures open a breaker."""
        return self.share > 0 and window.bit_count() >= math.ceil(self.share * self.attempts - _ROUNDING)


@dataclasses.dataclass(slots=True, eq=False)
class Breaker:
    """One endpoint's.

    Attributes:
        policy: shared by all.
        window: the last attempts, the newest in the lowest bit, one is a failure; not 0 while it is open.
        is_open: whether nothing but probes may go out.
        wait_s: what the last wait for a probe was made of, before its jitter.
        probe_at: monotonic seconds; a probe may go out from then on.
    """

    policy: BreakerPolicy
    window: int = 0
    is_open: bool = False
    wait_s: float = 0.0
    probe_at: float = 0.0

    def succeeded(self) -> None:
        """Count a 2xx while closed. Where `window` is 0 the call may be left out."""
        self.window = self.window << 1 & (1 << self.policy.attempts) - 1

    def failed(self, now: float, random01: float, *, too_often: bool = False) -> bool:
        """Count a failure while closed; whether that has opened it. `too_often`: whatever the share is."""
        self.window = (self.window << 1 | 1) & (1 << self.policy.attempts) - 1
        if not self.policy.opens(self.window) and not (too_often and self.policy.share > 0):
            return False
        self.is_open = True
        self._wait(self.policy.probe_s, now, random01)
        return True

    def reopen(self, probe_at: float) -> None:
        """Be open, as another epoch left it."""
        self.window, self.is_open = 1, True
        self.wait_s, self.probe_at = self.policy.probe_s, probe_at

    def probe_failed(self, now: float, random01: float) -> None:
        """Wait twice as long for the next probe."""
        self._wait(min(2 * self.wait_s, self.policy.probe_max_s), now, random01)

    def probe_proved_nothing(self, now: float, random01: float) -> None:
        """Wait as long again."""
        self._wait(self.wait_s, now, random01)

    def probe_now(self) -> None:
        """Ask at once: the endpoint was changed."""
        self.wait_s, self.probe_at = self.policy.probe_s, 0.0

    def close(self) -> None:
        """Let everything out again, and count anew."""
        self.window, self.is_open, self.wait_s = 0, False, 0.0

    def _wait(self, wait_s: float, now: float, random01: float) -> None:
        self.wait_s = wait_s
        self.probe_at = now + wait_s * (1.0 + JITTER * (2.0 * random01 - 1.0))
