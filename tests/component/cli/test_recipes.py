"""The recipes for receivers, as README.md and sql/README.md print them, get the requests that `pghookd send` makes.

Each accepts a genuine request of any size that the guide names, and refuses a changed one and an old one. The rest of
a receiver, such as its `app` and SECRET, is given to a recipe here; of its text only `whsec_...` is changed.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import math
import os
import re
import shutil
import subprocess
import time
import types
import wsgiref.util
from pathlib import Path

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test.utils import override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from pghookd.cli.devtools import sample_requests
from pghookd.cli.devtools.sample_requests import Sample, Way
from pghookd.settings.schema import Settings
from pghookd.webhook import signing

ROOT = Path(__file__).parents[3]
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
LEGACY = "correct horse battery staple"
PAYLOAD = '{"name": "Núñez ☕", "items": [1 , 2]}'.encode()
LARGE = b'"%s"' % (b"x" * (Settings().delivery.payload_bytes_max - 2))
SETTINGS = Settings(egress={"allow": ("127.0.0.0/8",), "ports": ("1-65535",)})
README, GUIDE = ((ROOT / each).read_text(encoding="utf-8") for each in ("README.md", "sql/README.md"))


def recipes(language, guide=GUIDE):
    """Return the blocks of a language in a guide."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", guide)


def recipe(word, language="python", guide=GUIDE):
    """Return the one block that has a word in it."""
    (found,) = [text for text in recipes(language, guide) if word in text]
    return found


def run(text, **given):
    """Run a recipe of Python with what it is part of; return the names that it has defined."""
    names = {"__name__": __name__, **given}
    exec(compile(text, "recipe", "exec", dont_inherit=True), names)  # noqa: S102 - a text of this repository
    return names


VERIFY = run(recipe("def verify"))["verify"]


async def judged(url, secret, payload, way):
    """Send the requests of a way, as `pghookd send` does; return the statuses of the answers, and if all are right."""
    found = []
    sample = Sample("order_created", payload, signing.signer_of(secret))
    right = await sample_requests.send(
        SETTINGS, SETTINGS.egress.policy(), url, sample, way, told=found.append
    )
    return [each.status or each.error for each in found], right


async def accepts_what_is_genuine(url, secret=SECRET):
    assert await judged(url, secret, PAYLOAD, Way.TAMPER) == ([204, 401], True)
    assert await judged(url, secret, PAYLOAD, Way.STALE) == ([204, 401], True)
    assert await judged(url, secret, LARGE, Way.ONCE) == ([204], True)


# Python -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [README, GUIDE], ids=["README", "guide"])
def test_each_recipe_in_python_can_be_parsed(guide):
    assert [ast.parse(text) for text in recipes("python", guide)]


@pytest.mark.parametrize("secret", [SECRET, LEGACY])
async def test_verify(receiver, secret):
    receiver.script = lambda request: 204 if VERIFY(secret, request.headers, request.body) else 401
    await accepts_what_is_genuine(receiver.url("/in"), secret)


def test_verify_takes_either_signature_of_a_rotation_and_raises_nothing():
    now = int(time.time())
    old, new = (signing.signer_of(each)("evt_1", now, PAYLOAD).decode() for each in (LEGACY, SECRET))
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(now), "webhook-signature": f"{new} {old}"}
    assert VERIFY(SECRET, headers, PAYLOAD)
    assert VERIFY(LEGACY, headers, PAYLOAD)
    assert not VERIFY(SECRET[:-4] + "AAA=", headers, PAYLOAD)
    for name in headers:
        assert not VERIFY(SECRET, headers | {name: "ÿ"}, PAYLOAD)
        assert not VERIFY(SECRET, {key: value for key, value in headers.items() if key != name}, PAYLOAD)


def of_wsgi(app):
    """Return a script for a receiver that answers as a WSGI application does."""

    def answer(request):
        status = []
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": request.path,
            "CONTENT_LENGTH": request.headers["content-length"],
            "CONTENT_TYPE": request.headers["content-type"],
            "wsgi.input": io.BytesIO(request.body),
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()},
        }
        wsgiref.util.setup_testing_defaults(environ)
        list(app(environ, lambda line, _headers: status.append(int(line.split()[0]))))
        return status[0]

    return answer


def of_asgi(app):
    """Return a script for a receiver that answers as an ASGI application does."""

    async def answer(request):
        sent = []
        lines = [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": request.path,
            "query_string": b"",
            "headers": lines,
        }

        async def receive():
            return {"type": "http.request", "body": request.body}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"]

    return answer


async def test_flask(receiver):
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")
    run(recipe("flask"), flask=flask, app=app, verify=VERIFY, SECRET=SECRET)
    receiver.script = of_wsgi(app)
    await accepts_what_is_genuine(receiver.url("/in"))


async def test_flask_with_the_library(receiver):
    pytest.importorskip("flask")
    text = recipe("flask", guide=README).replace("whsec_...", SECRET)
    receiver.script = of_wsgi(run(text)["app"])
    await accepts_what_is_genuine(receiver.url("/in"))


async def test_django(receiver, configured_django):
    limit = re.search(r"`DATA_UPLOAD_MAX_MEMORY_SIZE`[^`]*`([\d* ]+)`", GUIDE)[1]
    names = run(
        recipe("csrf_exempt"),
        csrf_exempt=csrf_exempt,
        HttpResponse=HttpResponse,
        verify=VERIFY,
        SECRET=SECRET,
    )
    urls = types.ModuleType("urls")
    urls.urlpatterns = [path("in", names["hook"])]
    changed = {
        "ROOT_URLCONF": urls,
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "MIDDLEWARE": ["django.middleware.csrf.CsrfViewMiddleware"],
        "DATA_UPLOAD_MAX_MEMORY_SIZE": math.prod(map(int, limit.split("*"))),
    }
    with override_settings(**changed):
        receiver.script = of_wsgi(WSGIHandler())
        await accepts_what_is_genuine(receiver.url("/in"))


async def test_fastapi(receiver):
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    run(recipe("fastapi"), fastapi=fastapi, app=app, verify=VERIFY, SECRET=SECRET)
    receiver.script = of_asgi(app)
    await accepts_what_is_genuine(receiver.url("/in"))


# Other languages ----------------------------------------------------------------------------------------------------

# The file of a recipe, with the text around it, and the program that parses it.
OTHERS = {
    "js": ("recipe.js", "{}", ("node", "--check")),
    "php": ("recipe.php", "<?php\n{}", ("php", "-l")),
    "ruby": ("recipe.rb", "{}", ("ruby", "-c")),
    "go": ("recipe.go", "package shop\n\nfunc hook() {{\n{}}}\n", ("gofmt", "-e", "-l")),
}


@pytest.mark.parametrize("language", OTHERS)
def test_each_recipe_in_another_language_can_be_parsed(language, tmp_path):
    name, around, command = OTHERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for text in recipes(language):
        (tmp_path / name).write_text(around.format(text))
        done = subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


EXPRESS = """
const express = require("express");
const { Webhook } = require("standardwebhooks");
const app = express();
const SECRET = process.env.SECRET;
%s
const server = app.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Return a folder with the packages that Express's recipe names."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm or node is not installed")
    folder = tmp_path_factory.mktemp("express")
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefix", str(folder)]
    command = ["npm", "install", *options, "express", "standardwebhooks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install Express: {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.slow
async def test_express(packages):
    process = await asyncio.create_subprocess_exec(
        *("node", "-e", EXPRESS % recipe("express", "js")),
        cwd=packages,
        env={**os.environ, "SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            port = int(await process.stdout.readline())
        await accepts_what_is_genuine(f"http://127.0.0.1:{port}/in")
    finally:
        process.kill()
        await process.wait()
