"""What a request takes from the quota of whose key it came with. Where no keys are set everybody may take all."""

from starlette.requests import Request

from clients import Overloaded
from clients.wire import guarded_http


class QuotaUsedUp(Overloaded):
    """It is the key's own bound that is reached, and not the gateway's."""


def charge(request: Request, num_texts: int) -> None:
    """Take *num_texts* from the quota of the key that *request* came with, all or none.

    Raises:
        QuotaUsedUp: there is not enough left; it says when there will be.
    """
    refusal = guarded_http.charge(request.scope, num_texts)
    if refusal is not None:
        raise QuotaUsedUp(refusal.message, retry_after=refusal.retry_after)
