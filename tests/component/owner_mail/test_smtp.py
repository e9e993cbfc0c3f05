"""One mail on its way to a real SMTP server: what each answer, cut and silence becomes."""

from __future__ import annotations

import contextlib
import email.message
import ssl
import time

import pytest

from pghookd.egress.tls import trust
from pghookd.owner_mail.smtp import IDLE_MAX_S, MAILS_MAX, Deferred, Rejected, Sent, SmtpClient
from pghookd.settings.schema import Secret, SmtpSettings
from support.fault_server import Certificates
from support.mail_server import DROP, HANG, Mailbox

PASSWORD = "hunter2-AGFubmEA"


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def mail(number=1, to="anna@shop.example", **headers):
    message = email.message.EmailMessage()
    message["From"] = "Hooks <hooks@platform.example>"
    message["To"] = to
    message["Subject"] = f"Mail {number}"
    message["Message-ID"] = f"<digest.{number}@platform.example>"
    for name, value in headers.items():
        message[name] = value
    message.set_content("Grüße\n.\n..two dots, and a line of its own\n")
    message.add_alternative("<p>Gr\u00fc\u00dfe</p>", subtype="html")
    message.set_boundary(f"part-{number}")
    return message


@contextlib.asynccontextmanager
async def post_to(box, *, within_s=5.0, clock=None, ca_file=None, host="127.0.0.1", **settings):
    smtp = SmtpSettings(host=host, port=box.port, **{"tls": "none", **settings})
    async with SmtpClient(
        smtp, context=trust(ca_file), monotonic=clock or time.monotonic, within_s=within_s
    ) as post:
        yield post


async def test_a_mail_arrives_as_it_was_written():
    async with Mailbox() as box, post_to(box) as post:
        assert await post.send(mail()) == Sent("OK queued as 1")
        (found,) = box.mails
    assert (found.sender, found.recipients) == ("hooks@platform.example", ["anna@shop.example"])
    assert found.content.isascii()
    assert found.message.get_body(("plain",)).get_content().replace("\r\n", "\n") == (
        "Grüße\n.\n..two dots, and a line of its own\n"
    )
    assert found.message.get_body(("html",)).get_content().strip() == "<p>Grüße</p>"


async def test_one_connection_serves_many_mails():
    async with Mailbox() as box, post_to(box) as post:
        for number in range(1, 4):
            assert isinstance(await post.send(mail(number)), Sent)
        assert [found.subject for found in box.mails] == ["Mail 1", "Mail 2", "Mail 3"]
        assert box.connections == 1


async def test_a_connection_ends_after_a_hundred_mails():
    async with Mailbox() as box, post_to(box) as post:
        for number in range(MAILS_MAX + 1):
            assert isinstance(await post.send(mail(number)), Sent)
        assert box.connections == 2


async def test_a_connection_ends_when_nothing_is_sent(until):
    clock = Clock()
    async with Mailbox() as box, post_to(box, clock=clock) as post:
        await post.send(mail(1))
        await post.rest()
        assert box._open
        clock.now += IDLE_MAX_S + 1
        await post.rest()
        await until(lambda: not box._open)
        assert isinstance(await post.send(mail(2)), Sent)
        clock.now += IDLE_MAX_S + 1
        assert isinstance(await post.send(mail(3)), Sent)  # not over one that the server may just be ending
        assert box.connections == 3


async def test_a_server_that_ended_the_connection_meanwhile_is_not_a_fault(until):
    async with Mailbox() as box, post_to(box) as post:
        await post.send(mail(1))
        for line in list(box._open):
            line.transport.close()
        await until(lambda: not box._open)
        assert isinstance(await post.send(mail(2)), Sent)
        box.script["MAIL"] = [DROP]
        assert isinstance(await post.send(mail(3)), Sent)
        box.script["RCPT"] = [DROP, DROP]  # but only once
        assert await post.send(mail(4)) == Deferred("RCPT TO: the server ended the connection")
        assert [found.subject for found in box.mails] == ["Mail 1", "Mail 2", "Mail 3"]


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "answer", "expected"),
    [
        ("connect", "421 too busy", Deferred("connection: 421 too busy", server=True)),
        ("connect", "554 no service here", Deferred("connection: 554 no service here", server=True)),
        ("EHLO", "451 not now", Deferred("connection: 451 not now", server=True)),
        ("MAIL", "450 later", Deferred("MAIL FROM: 450 later")),
        ("MAIL", "550 who are you", Rejected("MAIL FROM: 550 who are you")),
        (
            "MAIL",
            "530 5.7.0 Authentication required",
            Deferred("MAIL FROM: 530 5.7.0 Authentication required", server=True),
        ),
        ("RCPT", "451 4.7.1 Greylisted", Deferred("RCPT TO: 451 4.7.1 Greylisted")),
        ("RCPT", "421 4.3.2 closing", Deferred("RCPT TO: 421 4.3.2 closing", server=True)),
        ("RCPT", "550 5.1.1 no such user", Rejected("RCPT TO: 550 5.1.1 no such user", recipient=True)),
        ("RCPT", "550 no such user", Rejected("RCPT TO: 550 no such user", recipient=True)),
        ("RCPT", "552 5.2.2 over quota", Rejected("RCPT TO: 552 5.2.2 over quota", recipient=True)),
        ("RCPT", "554 5.7.1 Relay access denied", Rejected("RCPT TO: 554 5.7.1 Relay access denied")),
        ("RCPT", "503 bad sequence", Rejected("RCPT TO: 503 bad sequence")),
        ("DATA", "451 disk", Deferred("DATA: 451 disk")),
        ("DATA", "554 no", Rejected("DATA: 554 no")),
        ("content", "452 full", Deferred("DATA: 452 full")),
        ("content", "554 5.6.0 spam", Rejected("DATA: 554 5.6.0 spam")),
        ("content", "354 what", Deferred("DATA: 354 what", doubt=True)),
    ],
)
async def test_answers(stage, answer, expected):
    async with Mailbox() as box, post_to(box) as post:
        box.script[stage] = [answer]
        assert await post.send(mail(1)) == expected
        assert isinstance(await post.send(mail(2)), Sent)
        assert box.accepted[-1].subject == "Mail 2"


@pytest.mark.parametrize(
    ("stage", "doubt"),
    [
        ("connect", False),
        ("EHLO", False),
        ("MAIL", False),
        ("RCPT", False),
        ("DATA", True),
        ("content", True),
    ],
)
async def test_a_cut_connection(stage, doubt):
    async with Mailbox() as box, post_to(box) as post:
        box.script[stage] = [DROP]
        outcome = await post.send(mail(1))
        assert isinstance(outcome, Deferred)
        assert outcome.doubt == doubt
        assert outcome.server == (stage in {"connect", "EHLO"})
        assert isinstance(await post.send(mail(2)), Sent)
        assert len(box.accepted) == 1


@pytest.mark.parametrize("stage", ["connect", "EHLO", "MAIL", "content"])
async def test_a_silent_server_is_left_after_a_while(stage):
    async with Mailbox() as box, post_to(box, within_s=0.2) as post:
        box.script[stage] = [HANG]
        started = time.monotonic()
        outcome = await post.send(mail(1))
        assert time.monotonic() - started < 2
        assert isinstance(outcome, Deferred)
        assert "did not answer within 0.2 s" in outcome.error
        assert outcome.doubt == (stage == "content")
        assert isinstance(await post.send(mail(2)), Sent)


async def test_no_server():
    async with Mailbox() as box:
        pass
    async with post_to(box) as post:
        outcome = await post.send(mail())
    assert isinstance(outcome, Deferred)
    assert outcome.server
    assert "refused" in outcome.error.lower() or "connect" in outcome.error.lower()


async def test_what_a_server_says_is_made_harmless():
    async with Mailbox() as box, post_to(box) as post:
        box.script["RCPT"] = ["550 \x1b[2J\u202eno\x00 " + "long " * 80]
        outcome = await post.send(mail())
    assert isinstance(outcome, Rejected)
    assert outcome.error.isprintable()
    assert len(outcome.error) <= 300
    assert "\u202e" not in outcome.error


async def test_garbage_is_not_an_answer():
    async with Mailbox() as box, post_to(box) as post:
        box.script["RCPT"] = ["what?"]
        assert isinstance(await post.send(mail(1)), Deferred)
        assert isinstance(await post.send(mail(2)), Sent)


# One recipient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        mail(to="anna@shop.example, bert@shop.example"),
        mail(to="nobody"),
        mail(Cc="bert@shop.example"),
        mail(Bcc="bert@shop.example"),
    ],
)
async def test_a_mail_has_one_recipient(message):
    async with Mailbox() as box, post_to(box) as post:
        outcome = await post.send(message)
        assert isinstance(outcome, Rejected)
        assert not outcome.recipient
        assert box.connections == 0


async def test_an_address_that_is_not_ascii(until):
    async with Mailbox() as box, post_to(box) as post:
        assert isinstance(await post.send(mail(to="grün@shop.example")), Sent)
        assert box.mails[0].recipients == ["grün@shop.example"]
    async with Mailbox() as box, post_to(box) as post:
        box.script["EHLO"] = ["250 mailbox.test"]
        assert "RFC 6531" in (await post.send(mail(to="grün@shop.example"))).error


# TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_starttls(authority):
    context = authority.server_context("good", "IP:127.0.0.1")
    async with (
        Mailbox(starttls=context) as box,
        post_to(box, tls="starttls", ca_file=str(authority.ca_file)) as post,
    ):
        assert isinstance(await post.send(mail(1)), Sent)
        assert isinstance(await post.send(mail(2)), Sent)
        assert [found.secure for found in box.mails] == [True, True]
        assert box.connections == 1


async def test_tls_from_the_first_byte(authority):
    context = authority.server_context("good", "IP:127.0.0.1")
    async with (
        Mailbox(tls=context) as box,
        post_to(box, tls="tls", ca_file=str(authority.ca_file)) as post,
    ):
        assert isinstance(await post.send(mail()), Sent)
        assert box.mails[0].secure


async def test_nothing_is_sent_in_clear_where_starttls_is_not_offered():
    async with (
        Mailbox(login=("hooks", PASSWORD)) as box,
        post_to(box, tls="starttls", username="hooks", password=Secret(PASSWORD)) as post,
    ):
        outcome = await post.send(mail())
        assert outcome == Deferred(
            "connection: the server does not offer STARTTLS, and nothing is sent in clear", server=True
        )
        assert [command.split()[0] for command in box.commands] == ["EHLO"]


async def test_nothing_is_sent_in_clear_where_starttls_is_refused(authority):
    context = authority.server_context("good", "IP:127.0.0.1")
    async with (
        Mailbox(starttls=context, login=("hooks", PASSWORD)) as box,
        post_to(box, tls="starttls", username="hooks", password=Secret(PASSWORD)) as post,
    ):
        box.script["STARTTLS"] = "454 not now"
        outcome = await post.send(mail())
        assert outcome == Deferred("connection: 454 not now", server=True)
        assert {command.split()[0] for command in box.commands} == {"EHLO", "STARTTLS"}


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_certificate_of_somebody_else(authority, tls):
    context = authority.server_context("other", "DNS:elsewhere.example")
    options = {"starttls": context} if tls == "starttls" else {"tls": context}
    for ca_file in (None, str(authority.ca_file)):
        async with Mailbox(**options) as box, post_to(box, tls=tls, ca_file=ca_file) as post:
            outcome = await post.send(mail())
            assert isinstance(outcome, Deferred)
            assert outcome.server
            assert "the server's certificate is not trusted" in outcome.error
            assert not box.mails


# Login ------------------------------------------------------------------------------------------------------------


async def test_login():
    async with (
        Mailbox(login=("hooks", PASSWORD)) as box,
        post_to(box, username="hooks", password=Secret(PASSWORD)) as post,
    ):
        assert isinstance(await post.send(mail()), Sent)


async def test_a_refused_login_is_the_servers_and_names_no_password():
    async with (
        Mailbox(login=("hooks", "other")) as box,
        post_to(box, username="hooks", password=Secret(PASSWORD)) as post,
    ):
        outcome = await post.send(mail())
        assert outcome == Deferred("login: the server refused it: 535 5.7.8", server=True)
        box.script["AUTH"] = f"535 5.7.139 you said {PASSWORD}"
        outcome = await post.send(mail())
        assert outcome == Deferred("login: the server refused it: 535 5.7.139", server=True)
        assert PASSWORD not in repr(post) + repr(vars(post)) + str(post)
        assert not box.mails


async def test_a_server_that_knows_no_login():
    async with Mailbox() as box, post_to(box, username="hooks", password=Secret(PASSWORD)) as post:
        outcome = await post.send(mail())
    assert isinstance(outcome, Deferred)
    assert outcome.server
    assert "AUTH" in outcome.error


def test_a_faulty_file_of_certificates(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        trust(str(tmp_path / "nowhere.pem"))
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ssl.SSLError):
        trust(str(tmp_path / "empty.pem"))
