"""Tools for receivers' developers: `send`, `receive` and `run --sink`, as processes, against each other and others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys

import pytest
import standardwebhooks
from click.testing import CliRunner

from pghookd.cli.devtools import sink
from pghookd.cli.main import cli
from pghookd.settings.schema import MailSettings, Settings, SmtpSettings
from support.daemon import Daemon

SECRET = "whsec_" + "A" * 32
OTHER = "whsec_" + "B" * 32


def environ(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGHOOKD_", "PG"))}
    return kept | {"PGHOOKD_EGRESS_PORTS": "1-65535", "PYTHONUNBUFFERED": "1", **more}


async def pghookd(*words, stdin=b"", **variables):
    """Run a command to its end; return its status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pghookd", *map(str, words), env=environ(**variables),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def receiving(*words):
    """Run `pghookd receive`; yield the process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pghookd", "receive", str(port), *words, env=environ(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process):
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode()


def strict(request):
    """Answer as a receiver should that uses the Standard Webhooks library."""
    try:
        standardwebhooks.Webhook(SECRET).verify(request.body, request.headers)
    except standardwebhooks.webhooks.WebhookVerificationError:
        return 401
    return 204


# send -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "statuses"),
    [
        ((), [204]),
        (("--twice",), [204, 204]),
        (("--tamper",), [204, 401]),
        (("--stale",), [204, 401]),
        (("--retry", "3"), [204, 204, 204]),
    ],
)
async def test_a_correct_receiver_is_right(receiver, way, statuses):
    receiver.script = strict
    status, out, err = await pghookd("send", receiver.url("/in"), "--secret", SECRET, "--json", *way)
    told = json.loads(out)
    assert (status, err) == (0, "")
    assert told["right"] is True
    assert [each["status"] for each in told["requests"]] == statuses
    ids = [request.webhook_id for request in receiver.requests]
    assert ids == [each["webhook_id"] for each in told["requests"]]
    assert len(set(ids)) == (1 if way in {(), ("--twice",), ("--retry", "3")} else 2)
    attempts = [request.attempt for request in receiver.requests]
    assert attempts == ([1, 2, 3] if "--retry" in way else [1] * len(attempts))


@pytest.mark.parametrize(
    ("way", "answer"), [((), 500), ((), 301), (("--tamper",), 200), (("--stale",), 200), (("--tamper",), 500)]
)
async def test_a_wrong_receiver_is_reported(receiver, way, answer):
    receiver.script = lambda _request: answer
    status, out, err = await pghookd("send", receiver.url("/in"), "--secret", SECRET, *way)
    assert status == 1
    assert f"got {answer}" in out
    assert "wrong" in out
    assert "Also allowed: 127.0.0.0/8" in err


async def test_send_takes_a_payload_of_yours_and_a_secret_from_standard_input(receiver, tmp_path):
    receiver.script = strict
    file = tmp_path / "payload.json"
    file.write_bytes(b'{"a":  1}')
    words = ("--type", "thing.made", "--payload", file, "--secret", "-")
    status, _, _ = await pghookd("send", receiver.url("/in"), *words, stdin=SECRET.encode())
    (request,) = receiver.requests
    assert status == 0
    assert b'"type":"thing.made"' in request.body
    assert request.body.endswith(b'"data":{"a":  1}}')


@pytest.mark.slow
async def test_nothing_but_this_machine_is_open_unless_it_is_allowed(receiver):
    status, out, _ = await pghookd("send", "http://10.0.0.1/", "--json")
    assert (status, json.loads(out)["requests"][0]["error"]) == (1, "blocked: literal")
    status, out, err = await pghookd("send", receiver.url("/"), "--allow", "10.0.0.0/8")
    assert (status, "blocked" in out, err) == (1, True, "")
    assert "this URL is blocked: " in out
    assert not receiver.requests
    named = receiver.url("/").replace("127.0.0.1", "localhost")
    assert (await pghookd("send", named))[0] == 0
    assert (await pghookd("send", receiver.url("/"), "--config", "/nowhere"))[0] == 78


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("http://x/", "--twice", "--stale"),
        ("http://x/", "--tamper"),
        ("http://x/", "--type", "no type"),
        ("http://x/", "--secret", "whsec_x"),
        ("http://x/", "--secret", ""),
        ("http://x/", "--allow", "1.2.3.4/99"),
        ("http://x/", "--payload", "/dev/null"),
    ],
)
def test_send_refuses_nonsense(words):
    done = CliRunner().invoke(cli, ["send", *words])
    assert done.exit_code == 2
    assert "whsec_x" not in done.output


# receive ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_receive_verifies_and_ends_with_0(receiver):
    async with receiving("--secret", OTHER, "--secret", SECRET) as (process, port):
        assert f"http://127.0.0.1:{port}/" in await line(process)
        url = f"http://127.0.0.1:{port}/in?x=1"
        assert (await pghookd("send", url, "--secret", SECRET, "--tamper"))[0] == 0
        told = [await line(process) for _ in range(6)]
        assert told[0].startswith("verified")
        assert "order_created" in told[0]
        assert f"127.0.0.1:{port}/in?x=1" in told[1]
        assert '"data":{' in told[2]
        assert told[3].startswith("refused")
        assert "the signature is wrong" in told[3]
        assert (await pghookd("receive", port))[0] == 1
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_receive_answers_413_to_a_large_body_and_shows_it(tmp_path):
    payload = tmp_path / "large.json"
    payload.write_text(f'"{"x" * 3_000_000}"')
    async with receiving("--json", "--secret", SECRET) as (process, port):
        url = f"http://127.0.0.1:{port}/"
        words = ("send", url, "--secret", SECRET, "--payload", payload, "--json")
        status, out, _ = await pghookd(*words)
        assert status == 1
        assert json.loads(out)["requests"][0]["status"] == 413
        shown = json.loads(await line(process))
        assert (shown["status"], shown["body"]) == (413, "")
        assert re.fullmatch(r"the body has 30\d+ bytes, more than 1000000", shown["why"])


@pytest.mark.slow
async def test_receive_as_json_is_a_line_for_each():
    async with receiving("--json", "--status", "503", "--secret", SECRET) as (process, port):
        assert b"receiving at" in await asyncio.wait_for(process.stderr.readline(), 30)
        url = f"http://127.0.0.1:{port}/"
        status, _, _ = await pghookd("send", url, "--secret", SECRET, "--twice", "--json")
        assert status == 1
        first, second = json.loads(await line(process)), json.loads(await line(process))
        assert (first["verdict"], first["status"], first["repeated"]) == ("verified", 503, False)
        assert second["repeated"] is True
        assert json.loads(first["body"])["type"] == "order_created"
        assert first["headers"]["x-webhook-attempt"] == "1"


@pytest.mark.parametrize(
    "words", [("x",), ("70000",), ("0", "--secret", "whsec_?"), ("0", "--status", "100")]
)
def test_receive_refuses_nonsense(words):
    assert CliRunner().invoke(cli, ["receive", *words]).exit_code == 2


# run --sink -------------------------------------------------------------------------------------------------


def test_the_sink_has_no_mail_server():
    settings = Settings(smtp=SmtpSettings(host="mail.example"), mail=MailSettings(sender="a@b.example"))
    quiet = sink.without_mails(settings)
    assert quiet.smtp.host == ""
    assert quiet.mail == settings.mail


@pytest.mark.slow
async def test_the_sink_shows_what_would_have_been_sent(database, shop, db, until):
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    endpoint_id = await shop.open(url="https://hooks.nowhere.example/in?key=1", secret=SECRET)
    other = await shop.open(url="http://8.8.8.8:8080/plain")
    daemon = Daemon(
        database,
        program=("-m", "pghookd", "run", "--sink"),
        smtp_host="mail.example",
        mail_sender="a@b.example",
    )
    await daemon.start()
    try:
        await daemon.ready()
        event_id = await shop.emit()
        await shop.reaches(event_id, endpoint_id, "delivered")
        await shop.reaches(event_id, other, "delivered")
        assert await shop.attempts(event_id) == [(1, "delivered", 200, None)] * 2
        assert any("SINK" in text for text in daemon.noise)
        await until(lambda: len([text for text in daemon.noise if '"data":{"n": 1}' in text]) == 2)
        shown = "\n".join(daemon.noise)
        assert "to hooks.nowhere.example/in?key=1" in shown
        assert "to 8.8.8.8:8080/plain" in shown
        assert "seen before" not in shown
        daemon.stop()
        assert await daemon.ended() == 0
    finally:
        await daemon.kill()
