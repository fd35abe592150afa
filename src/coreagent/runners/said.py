"""What a failure means by its words alone, for protocols that have no field for it. Pure.

The parsers of such protocols come in. A field, where there is one, says more and is asked first.
"""

from __future__ import annotations

import re
from typing import Final

from coreagent.models.agent import Reason

_STATUS: Final = r"(?<!\d){}(?!\d)"
# Ordered; numbers have digit boundaries so that "402913 tokens" is no 402.
TEXTS: Final = (
    (r"session not found|no (such )?session|invalid session|unknown session", Reason.SESSION_LOST),
    (r"context.{0,2}(window|length|limit)|maximum context|too long|too many tokens", Reason.CONTEXT_OVERFLOW),
    (
        r"quota.{0,20}exceeded|billing|credit balance|insufficient|" + _STATUS.format("402"),
        Reason.BUDGET,
    ),
    (r"rate.?limit|usage limit|too many requests|resource.exhausted|" + _STATUS.format("429"), Reason.RATE_LIMIT),
    (r"flagged|usage policy|content.?filter|safety", Reason.MODEL_REFUSED),
    (r"unauthori[sz]ed|authenticat|not logged in|log ?in|api.?key|credential|invalid token", Reason.AUTH),
    (_STATUS.format("40[13]"), Reason.AUTH),
    (r"model.{0,80}(not exist|not supported|not found|unknown|invalid)|unknown model", Reason.CONFIGURATION),
    (r"overloaded|high demand|internal server error|unavailable|" + _STATUS.format(r"5\d\d"), Reason.MODEL_ERROR),
    (
        r"econn\w+|enotfound|etimedout|eai_again|connection|unable to connect|network|socket|fetch failed|timed? ?out"
        r"|stream (ended|closed|disconnected)|terminated",
        Reason.NETWORK,
    ),
    (r"bad request|invalid.request|" + _STATUS.format("4(00|13|22)"), Reason.BAD_REQUEST),
)


def reason_in(text: str) -> Reason | None:
    """Return what a sentence says of a failure; None when it says nothing known."""
    lower = text[:4000].lower()
    return next((reason for pattern, reason in TEXTS if re.search(pattern, lower)), None)
