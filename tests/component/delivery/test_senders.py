"""A sender lives until its last request has ended, and no longer."""

from __future__ import annotations

import asyncio

import pytest

from pghookd.delivery.senders import Senders
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Reply
from pghookd.runtime import app
from pghookd.settings.schema import Settings

HEAD = b"content-length: 2\r\n\r\n"


class Watched(Sender):
    """Notes when it was closed."""

    closed = False

    async def __aexit__(self, *why):
        self.closed = True
        await super().__aexit__(*why)


class Unusable(Watched):
    async def __aenter__(self):
        raise OSError("no port is free")


def made(kind=Watched):
    settings = Settings(egress={"allow": ("127.0.0.0/8",)})
    sender = app.sender_of(settings)
    sender.__class__ = kind
    return sender


def post(sender, receiver):
    return asyncio.create_task(sender.post(sender.target_of(receiver.url("/")), HEAD, b"{}", 10.0))


async def test_each_of_several_ends_with_its_own_last_request(receiver, until):
    answers = [asyncio.Event() for _ in range(3)]

    async def hang(request):
        await answers[request.number - 1].wait()
        return 200

    receiver.script = hang
    senders, used, requests = Senders(), [], []
    for number in range(3):
        used.append(made())
        await senders.use(used[-1])
        assert senders.current is used[-1]
        requests.append(post(used[-1], receiver))
        await receiver.wait_for(number + 1)
    assert senders.in_flight == 3
    for number in (1, 0):
        answers[number].set()
        assert isinstance(await requests[number], Reply)
        await until(lambda number=number: used[number].closed)
    assert [sender.closed for sender in used] == [True, True, False]
    assert senders.in_flight == 1
    requests[2].cancel()
    await asyncio.wait([requests[2]])
    await senders.close()
    assert used[2].closed


async def test_the_new_settings_are_put_before_the_one_before_is_closed(receiver):
    senders, first, second = Senders(), made(), made()
    await senders.use(first)
    closed = []
    await senders.use(second, lambda: closed.append(first.closed))
    assert closed == [False]
    await senders.close()
    assert first.closed


async def test_a_sender_that_cannot_be_opened_changes_nothing(receiver):
    senders, first, put = Senders(), made(), []
    await senders.use(first)
    with pytest.raises(OSError, match="no port"):
        await senders.use(made(Unusable), lambda: put.append(1))
    assert (senders.current, put) == (first, [])
    assert isinstance(await post(first, receiver), Reply)
    await senders.close()
