"""Requests at a real receiver, checked by libraries that are not ours: PyPI's and npm's `standardwebhooks`."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time

import pytest
import standardwebhooks

from pghookd.egress.sender import Sender
from pghookd.model.delivery import Reply
from pghookd.settings.network import EgressPolicy, parse_places
from pghookd.webhook import envelope, signing
from support.receiver import Receiver, Response, read_log, start_process

SECRET = "whsec_" + base64.b64encode(bytes(range(100, 132))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(132, 164))).decode()
PAYLOAD = '{"total": 12.50, "name": "Núñez ☕", "note": "\\u0000 \\" </script>", "items": [1 , 2]}'.encode()
CREATED_AT_US = 1_764_000_000_123_456
EVENT_ID = (2155 << 32) + 7

VERIFY_JS = """
const { Webhook } = require("standardwebhooks");
const said = [];
for (const one of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
  const body = Buffer.from(one.body, "base64").toString("utf8");
  try {
    said.push({ id: new Webhook(one.secret).verify(body, one.headers).id });
  } catch (error) {
    said.push({ refused: error.message });
  }
}
process.stdout.write(JSON.stringify(said));
"""


@pytest.fixture(scope="session")
def verify_by_npm(request):
    """Return a function that lets npm's library judge requests: the ids it read, or its refusals."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm or node is not installed")
    folder = request.config.cache.mkdir("npm-standardwebhooks")
    if not (folder / "node_modules" / "standardwebhooks").exists():
        options = [
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
            "--ignore-scripts",
            "--prefix",
            str(folder),
        ]
        done = subprocess.run(
            ["npm", "install", *options, "standardwebhooks"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"npm could not install standardwebhooks: {done.stderr.strip()[-200:]}")

    def verify(*requests):
        told = [
            {"secret": secret, "headers": headers, "body": base64.b64encode(body).decode()}
            for secret, headers, body in requests
        ]
        done = subprocess.run(
            ["node", "-e", VERIFY_JS],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        )
        return json.loads(done.stdout)

    return verify


async def send(receiver, *, secret=SECRET, source="https://shop.example", attempt=1, path="/hook?key=1"):
    """Send one event with our own sender; return what the receiver got."""
    body = envelope.body(EVENT_ID, "order_created", CREATED_AT_US, PAYLOAD)
    webhook_id = envelope.webhook_id(EVENT_ID, CREATED_AT_US)
    timestamp_s = int(time.time())
    key = None if secret is None else signing.key_of(secret)
    head = envelope.StaticHead.of("pghookd/test", source).head(
        webhook_id=webhook_id,
        timestamp_s=timestamp_s,
        signature=None if key is None else signing.sign(key, webhook_id, timestamp_s, body),
        event_type="order_created",
        attempt=attempt,
        triggered_at=envelope.timestamp_text(CREATED_AT_US),
        body_bytes=len(body),
    )
    policy = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))
    settings = {"connections_max": 4, "connect_timeout_s": 2.0, "response_bytes_max": 4096}
    async with Sender(policy=policy, **settings) as sender:
        target = sender.target_of(receiver.url(path))
        answer = await sender.post(target, head, body, 5.0)
    assert isinstance(answer, Reply), answer
    return receiver.requests[-1]


def tampered(request):
    """Yield copies of a request, each with one thing changed."""
    headers, body = request.headers, request.body
    later = str(int(headers["webhook-timestamp"]) + 1)
    yield headers, body.replace(b"12.50", b"12.51")
    yield headers, body + b" "
    yield {**headers, "webhook-id": headers["webhook-id"][:-1] + "f"}, body
    yield {**headers, "webhook-timestamp": later}, body
    yield {**headers, "webhook-signature": "v1," + base64.b64encode(b"x" * 32).decode()}, body
    yield {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v1a,")}, body


async def test_pypis_library_believes_it(receiver):
    request = await send(receiver)
    told = standardwebhooks.Webhook(SECRET).verify(request.body, request.headers)
    assert told["id"] == request.webhook_id
    assert told["data"]["name"] == "Núñez ☕"


async def test_pypis_library_refuses_any_change(receiver):
    request = await send(receiver)
    for headers, body in tampered(request):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(SECRET).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(OTHER).verify(request.body, request.headers)


async def test_npms_library_accepts_it_and_refuses_any_change(receiver, verify_by_npm):
    request = await send(receiver)
    changed = list(tampered(request))
    said = verify_by_npm(
        (SECRET, request.headers, request.body),
        (OTHER, request.headers, request.body),
        *((SECRET, headers, body) for headers, body in changed),
    )
    assert said[0] == {"id": request.webhook_id}
    assert len(said) == 2 + len(changed)
    assert all("refused" in each for each in said[1:])


async def test_a_legacy_secret_is_its_bytes(receiver):
    request = await send(receiver, secret="not base64, long enough")
    same_key = base64.b64encode(b"not base64, long enough").decode()
    assert (
        standardwebhooks.Webhook(same_key).verify(request.body, request.headers)["id"] == request.webhook_id
    )


async def test_the_request_has_these_headers_once_and_no_other(receiver):
    request = await send(receiver)
    lines = request.raw_head.decode("ascii").split("\r\n")
    assert lines[0] == "POST /hook?key=1 HTTP/1.1"
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        "host",
        "content-type",
        "user-agent",
        "accept",
        "accept-encoding",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "x-webhook-topic",
        "x-webhook-source",
        "x-webhook-attempt",
        "x-webhook-triggered-at",
        "content-length",
    ]
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert int(request.headers["content-length"]) == len(request.body)


async def test_null_values_are_not_sent(receiver):
    request = await send(receiver, secret=None, source=None)
    assert "webhook-signature" not in request.headers
    assert "x-webhook-source" not in request.headers


async def test_body_and_id_stay_the_same_over_attempts(receiver):
    first = await send(receiver)
    third = await send(receiver, attempt=3)
    assert (first.body, first.webhook_id) == (third.body, third.webhook_id)
    assert (first.attempt, third.attempt) == (1, 3)
    assert PAYLOAD in first.body


async def test_the_payload_arrives_byte_for_byte(receiver):
    request = await send(receiver)
    head = (
        f'{{"id":"{request.webhook_id}","type":"order_created","timestamp":"2025-11-24T16:00:00.123Z","data":'
    )
    assert request.body == head.encode() + PAYLOAD + b"}"


async def test_a_receiver_process_writes_down_what_it_decides(tmp_path):
    log = tmp_path / "requests.jsonl"
    process, port = await start_process(log)
    try:
        request_url = Receiver(port=port)
        request_url.requests.append(None)  # it is another process that records
        await send(request_url)
    finally:
        process.terminate()
        await process.wait()
    (row,) = read_log(log)
    assert (row["status"], row["x-webhook-attempt"]) == (200, "1")
    assert base64.b64decode(row["body"]).endswith(PAYLOAD + b"}")


async def test_a_script_may_refuse_delay_and_cut(receiver):
    receiver.paths["/slow"] = lambda _request: Response(503, (("retry-after", "7"),), b"later", delay_s=0.01)
    request = await send(receiver, path="/slow")
    assert (request.status, receiver.in_flight, receiver.in_flight_max) == (503, 0, 1)


@pytest.mark.parametrize(
    "us", [0, 1, CREATED_AT_US, -1, -(10**15), (1 << 56) - 1, 1 << 56, 9_000_000_000_000_000_000]
)
async def test_the_database_makes_the_same_webhook_id(database, connect, us):
    connection = await connect(database, server_settings={"timezone": "UTC"})  # where every day is as long
    made = await connection.fetchval(
        "select webhooks.webhook_id($1, timestamptz 'epoch' + make_interval(days => $2) + make_interval(secs => $3))",
        EVENT_ID,
        us // 86_400_000_000,
        us % 86_400_000_000 / 1e6,
    )
    assert made == envelope.webhook_id(EVENT_ID, us)
    assert await connection.fetchval("select webhooks.event_id($1)", made) == EVENT_ID
