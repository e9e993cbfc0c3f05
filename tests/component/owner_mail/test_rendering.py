"""Letters: the same facts in text and HTML, headers that strangers cannot touch, words in every language."""

from __future__ import annotations

import asyncio
import dataclasses
import email
import email.policy
import html
import html.parser
import re
import shutil
import tempfile
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.owner_mail import catalogue, samples
from pghookd.owner_mail.content import sections
from pghookd.owner_mail.digest import OF_OPERATOR, SECTIONS_MAX, Cause, Digest, Fate, Kind, arranged
from pghookd.owner_mail.message import Letters, incident_id, message_id, one_address
from pghookd.owner_mail.samples import DAY_US, HOUR_US, NOW_US, sample
from pghookd.settings.schema import DeliverySettings, MailSettings, Settings

SENDER = "webhooks@shops.example"
MAIL = samples.with_stand_ins(MailSettings())
LETTERS = Letters(MAIL)
ID = message_id(7, SENDER)
LANGUAGES = ("en", "de")
SECTION = sample("failing").sections[0]


def digest_of(*sections, **changes):
    kind = sections[0].kind if sections else Kind.FAILING
    values = {"owner_email": "anna@example.com", "language": "en", "at_us": NOW_US, "since_us": NOW_US}
    return Digest(**{"kind": kind, "sections": sections, **values, **changes})


def section(**changes):
    return dataclasses.replace(SECTION, **changes)


def sent(digest, letters=LETTERS):
    """Return a letter as its receiver reads it."""
    content = letters.render(digest, message_id=ID).as_bytes()
    return email.message_from_bytes(content, policy=email.policy.default)


def text_of(message):
    return message.get_body(("plain",)).get_content().replace("\r\n", "\n")


def html_of(message):
    return message.get_body(("html",)).get_content().replace("\r\n", "\n")


def told(digest, letters=LETTERS):
    return re.sub(r"\s+", " ", text_of(sent(digest, letters)))


class Page(html.parser.HTMLParser):
    """The view of a browser: tags, attributes, and words, with the target of a link behind its label."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.links, self.shown = set(), [], [], []
        self._skipping = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._skipping += tag in {"style", "title"}
        self.links += [value for name, value in attrs if name == "href"]

    def handle_endtag(self, tag):
        self._skipping -= tag in {"style", "title"}
        if tag == "a":
            self.shown.append(self.links[-1])

    def handle_data(self, data):
        if not self._skipping:
            self.shown.append(data)


def words_in(text):
    """Return words in their order, without what only decorates."""
    found = (word.rstrip(".:") for word in text.split())
    return [word for word in found if word and not re.fullmatch(r"[=_-]+", word)]


# Every kind, both languages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", samples.NAMES)
def test_text_and_html_say_the_same_in_the_same_order(name, language):
    message = sent(sample(name, language))
    text = re.sub(r"(?m)^  > ", "", text_of(message))
    page = Page(html_of(message))
    assert words_in(text) == words_in(" ".join(page.shown))
    assert max(map(len, text.splitlines())) <= 120
    assert "{" not in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", samples.NAMES)
def test_the_page_needs_nothing_from_elsewhere(name, language):
    source = html_of(sent(sample(name, language)))
    page = Page(source)
    assert page.tags <= {
        "html", "head", "meta", "title", "style", "body", "div", "p", "h1", "h2", "h3", "table", "tbody", "tr",
        "th", "td", "a", "pre",
    }  # fmt: skip
    assert all(link.startswith("https://console.shops.example/") for link in page.links)
    assert "url(" not in source
    assert "@import" not in source
    assert dict(page.attributes)["lang"] == language


def test_a_letter_says_who_what_and_the_consequence():
    text = told(sample("failing"))
    for fact in (
        "Messages from Anna's Shop to shop.example.com have not been arriving since 13 May 2026, 08:00 CEST.",
        "The site itself works normally. 14 order events are waiting. Your server reported an internal error",
        "internal error: it answered 500",
        "we switch the webhook off on 18 May 2026, 08:00 CEST",
        "URL: https://shop.example.com/hooks/orders",
        "Description: Orders to the warehouse",
        "Events: order_created (11), order_updated (3)",
        "Failed: 14 of 14 deliveries",
        "Last failure: 13 May 2026, 10:45 CEST",
        "Last success: none",
        "Next attempt: 13 May 2026, 11:30 CEST",
        "Open this webhook: https://console.shops.example/webhooks/shop-17/42",
        "> Fatal error: Uncaught PDOException",
        "failure: server_error, HTTP 500 since: 2026-05-13T06:00:00Z",
        "oldest webhook-id: evt_0009d6000000010660fa643be000",
        "or write to support@shops.example",
        "Stop these emails: https://console.shops.example/unsubscribe?token=b5d1c0ffee",
    ):
        assert fact in text


SUBJECTS = {
    "failing": "Webhook failing: shop.example.com, 14 order events waiting [Anna's Shop]",
    "partly": "Webhook failing: shop.example.com, 9 product events waiting [Anna's Shop]",
    "reminder": "Webhook failing: shop.example.com, 209 order events waiting, 3 not delivered [Anna's Shop]",
    "warning": "Action needed by 14 May 11:00 CEST: webhook shop.example.com will be switched off [Anna's Shop]",
    "disabled": "Webhook switched off: shop.example.com, 512 order events held until 22 May [Anna's Shop]",
    "held_expiring": "Act by 15 May 11:00 CEST, or held events are dropped: shop.example.com, 512 order events held"
    " [Anna's Shop]",
    "flapping": "Webhook unreliable: shop.example.com, 120 of 3,400 failed [Anna's Shop]",
    "recovered": "Webhook working again: shop.example.com, 212 order events delivered late, 3 not delivered"
    " [Anna's Shop]",
    "several": "Webhook switched off: shop.example.com, 512 order events held until 22 May [Anna's Shop]",
    "storm": "Storm suspected: webhooks of 412 of 903 sites fail at once, at 64 domains [Example Shops]",
    "faults": "14 events could not be sent [Example Shops]",
}


def test_subjects_say_what_where_how_many_and_whose():
    assert {name: LETTERS.subject(sample(name)) for name in samples.NAMES} == SUBJECTS


def test_a_subject_counts_hosts_webhooks_and_sites():
    other = section(
        site_id="s2", site_name="Other", url="https://b.example/x", types=(("order_created", 1), ("x", 1))
    )
    same = section(site_id="s2", site_name="Other", endpoint_id=43)
    assert LETTERS.subject(digest_of(SECTION, other)) == (
        "Webhook failing: shop.example.com and 1 more, 28 events waiting [Anna's Shop and 1 more]"
    )
    assert LETTERS.subject(digest_of(SECTION, same)) == (
        "Webhook failing: shop.example.com (2 webhooks), 28 order events waiting [Anna's Shop and 1 more]"
    )
    assert LETTERS.subject(digest_of(section(waiting=0))).startswith(
        "Webhook failing: shop.example.com, 14 of 14 failed"
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize(
    "error", [None, "redirect: https://www.example.com", "connect", "refused", "address: 10.0.0.1"]
)
def test_every_cause_has_a_sentence_and_advice(cause, error, language):
    made = section(cause=cause, error=error, status=599 if cause is Cause.ODD_STATUS else None)
    assert text_of(sent(digest_of(made, language=language)))


def test_causes_are_explained_in_plain_words():
    for changes, sentence in (
        ({"cause": Cause.TIMEOUT, "status": None, "error": "response"}, "did not answer within 15 seconds."),
        ({"cause": Cause.TIMEOUT, "status": None, "timeout_s": 2.5}, "did not answer within 2.5 seconds."),
        (
            {"cause": Cause.TIMEOUT, "status": None, "error": "connect"},
            "did not accept a connection in time.",
        ),
        ({"cause": Cause.DNS, "status": None, "error": "dns"}, "The name shop.example.com was not found"),
        ({"cause": Cause.TLS_EXPIRED, "status": None}, "certificate of shop.example.com has expired"),
        ({"cause": Cause.CONNECTION, "error": "refused"}, "Your server refused the connection."),
        (
            {"cause": Cause.REDIRECT, "status": 301, "error": "redirect: https://www.shop.example.com"},
            "Change the webhook's URL to the new address, at https://www.shop.example.com.",
        ),
        ({"cause": Cause.BLOCKED, "error": "address"}, "leads to an address that is not public"),
        ({"cause": Cause.UNAUTHORIZED, "status": 401}, "the header User-Agent: pghookd/"),
        ({"cause": Cause.THROTTLED, "status": 503}, "Your server is overloaded or down for maintenance"),
        ({"cause": Cause.THROTTLED, "status": 503}, "ask your hosting company for more capacity"),
        ({"cause": Cause.THROTTLED, "status": 429}, "Your server asked us to slow down: it answered 429"),
        ({"cause": Cause.THROTTLED, "status": 429}, "ask your hosting company for more capacity"),
    ):
        assert sentence in told(digest_of(section(**changes)))


def test_unsent_deliveries_are_reported_as_such():
    slow = told(digest_of(section(cause=Cause.FILTER_SLOW, status=None, error="filter_slow")))
    assert "filter takes too long to be evaluated" in slow
    assert "Simplify the filter" in slow
    assert "at once when it is changed" in slow
    assert "your server accepts" not in slow
    assert "failure: filter_slow\n" in text_of(
        sent(digest_of(section(cause=Cause.FILTER_SLOW, status=None, error="filter_slow")))
    )


FATES = [
    (Fate.TRIED, 2, "2 order events were not delivered after repeated attempts."),
    (Fate.ONCE, 1, "1 order event was not delivered: the only attempt failed."),
    (Fate.EXPIRED, 2, "2 order events expired before they could be delivered."),
    (Fate.ABORTED, 1, "1 order event was not delivered because your server asked us to drop it."),
    (Fate.BLOCKED, 3, "3 order events were not sent, because of the webhook's URL."),
    (Fate.UNTRIED, 2, "2 order events were not delivered."),
]


@pytest.mark.parametrize(("fate", "count", "sentence"), FATES)
def test_each_way_to_give_up_has_its_sentence(fate, count, sentence):
    """And none of them claims attempts that were not made."""
    made = section(dead=count, dead_by=((fate.value, count),), waiting=0, next_attempt_us=None)
    text = told(digest_of(made))
    assert sentence in text
    assert ("attempt" in text) == (fate in {Fate.TRIED, Fate.ONCE})
    assert "We keep trying" not in text
    assert "Nothing is lost" not in text
    waiting = told(digest_of(section(dead=count, dead_by=((fate.value, count),))))
    assert "We keep trying" in waiting
    assert "Nothing is lost" not in waiting


def test_several_ways_to_give_up_are_counted_apart():
    by = tuple((fate.value, count) for fate, count, _ in FATES)
    text = told(digest_of(section(dead=sum(count for _, count in by), dead_by=by)))
    assert all(sentence in text for _, _, sentence in FATES)
    old = told(digest_of(section(dead=2, dead_by=())))
    assert "2 order events were not delivered." in old, (
        "a digest of an earlier version says no more than it knows"
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("fate", Fate)
def test_each_way_to_give_up_has_words_in_each_language(fate, language):
    for count in (1, 2):
        made = section(dead=count, dead_by=((fate.value, count),))
        assert text_of(sent(digest_of(made, language=language)))


def test_what_was_not_delivered_can_be_had_by_an_answer_or_by_asking():
    lost = section(dead=1, dead_by=(("tried", 1),))
    assert "once the webhook works, reply to this email." in told(digest_of(lost))
    silent = Letters(MailSettings(sender=SENDER))
    text = told(digest_of(lost), silent)
    assert "the events that were not delivered can be sent again." in text
    assert "reply to" not in text


def test_the_operator_gets_a_mail_about_unsendable_events():
    text = told(sample("faults"))
    for fact in (
        "14 events since 13 May 2026, 08:00 UTC could not be sent",
        "Some events have an invalid type, or their endpoint has invalid options.",
        "Make the payloads smaller, or raise delivery.payload_bytes_max.",
        "add the destination to egress.allow",
        "shop-17 Reason: invalid Events: order created (12) Endpoint: 42",
        "shop-19 Reason: blocked: literal",
        "Event: evt_0009d6000000010660fa643be000",
        "Owners are not emailed about these events.",
        "You get this email at operator@shops.example as the operator of Example Shops.",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("redirect: https://b.example:8443", "a redirect to https://b.example:8443."),
        ("redirect: b.example", "a redirect to b.example."),
        ("redirect", "pointed to another address."),
        ("redirect: javascript:alert(1)", "pointed to another address."),
        ("redirect: https://b.example/pay here", "pointed to another address."),
        (None, "pointed to another address."),
    ],
)
def test_a_redirect_names_where_to_and_nothing_else(error, shown):
    assert shown in told(digest_of(section(cause=Cause.REDIRECT, status=302, error=error)))


def test_partial_failures_are_reported_by_type_and_never_threatened():
    text = told(sample("partly"))
    assert "Your webhook fails for some events" in text
    assert "These event types fail: product_updated." in text
    assert "Answer 200 to event types that you do not use" in text
    assert "We do not switch a webhook off while some of its events arrive." in text


def test_dead_deliveries_are_reported_with_advice():
    assert "To have the events that were not delivered sent again, reply to this email." in told(
        sample("recovered")
    )
    assert "The outage lasted 6 hours and 15 minutes." in told(sample("recovered"))
    fine = dataclasses.replace(sample("recovered").sections[0], dead=0)
    assert "There is nothing that you need to do." in told(digest_of(fine))


def test_a_held_event_has_a_last_day():
    assert "512 order events are held, the oldest until 22 May 2026, 11:00 CEST" in told(sample("disabled"))
    unknown = dataclasses.replace(sample("held_expiring").sections[0], held_until_us=None)
    assert LETTERS.subject(digest_of(unknown)).startswith(
        "Act now, or held events are dropped: shop.example.com"
    )
    assert "is switched off." in told(digest_of(unknown))


def test_forty_sites_on_one_dead_server_are_one_block():
    many = [section(endpoint_id=n, site_id=f"s{n}", site_name=f"Site {n}") for n in range(40)]
    sections, more = arranged(many)
    message = sent(digest_of(*sections, more=more))
    text = re.sub(r"\s+", " ", text_of(message))
    assert text.count("What to do") == 1
    assert text.count("Failing since: 13 May 2026") == 1
    assert text.count("Open this webhook") == SECTIONS_MAX
    assert "20 of your webhooks are failing" in text
    assert "And 20 more webhooks, not listed in this email." in text
    assert len(message.as_bytes()) < 100_000


def test_a_letter_with_twenty_troubles_is_still_a_letter():
    many = [section(endpoint_id=n, url=f"https://h{n}.example/hook", site_name="S" * 120) for n in range(20)]
    message = sent(digest_of(*many))
    assert len(html_of(message)) < 102_000  # more is cut off by Gmail
    assert len(message.as_bytes()) < 200_000


# Times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        (None, "13 May 2026, 06:00 UTC."),
        ("", "13 May 2026, 06:00 UTC."),
        ("Europe/Berlin", "13 May 2026, 08:00 CEST."),
        ("Asia/Kathmandu", "13 May 2026, 11:45 UTC+05:45."),
        ("Pacific/Honolulu", "12 May 2026, 20:00 HST."),
        ("Africa/Abidjan", "13 May 2026, 06:00 GMT."),
        ("Nowhere/Town", "13 May 2026, 06:00 UTC."),
        ("../../etc/passwd", "13 May 2026, 06:00 UTC."),
        ("Europe", "13 May 2026, 06:00 UTC."),
        ("x\x00", "13 May 2026, 06:00 UTC."),
    ],
)
def test_times_are_those_of_the_site_and_say_so(zone, shown):
    assert f"not been arriving since {shown}" in told(digest_of(section(time_zone=zone)))


@pytest.mark.parametrize(
    ("microseconds", "english", "german"),
    [
        (0, "0 seconds", "0 Sekunden"),
        (59_900_000, "59 seconds", "59 Sekunden"),
        (3_599_000_000, "59 minutes", "59 Minuten"),
        (HOUR_US + 90_000_000, "1 hour and 1 minute", "1 Stunde und 1 Minute"),
        (45 * DAY_US + 3 * HOUR_US, "45 days and 3 hours", "45 Tage und 3 Stunden"),
    ],
)
def test_durations(microseconds, english, german):
    made = [LETTERS._tellers[each]._words.duration(microseconds) for each in LANGUAGES]
    assert made == [english, german]


# Headers ----------------------------------------------------------------------------------------------------


def test_headers():
    message = sent(sample("failing"))
    incident = incident_id(sample("failing"), SENDER)
    assert dict(message.items()) == {
        "From": "Example Shops <webhooks@shops.example>",
        "To": "anna@shop.example.com",
        "Reply-To": "support@shops.example",
        "Subject": SUBJECTS["failing"],
        "Date": "Wed, 13 May 2026 09:00:00 +0000",
        "Message-ID": "<digest.7@shops.example>",
        "In-Reply-To": incident,
        "References": incident,
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "List-Id": "Example Shops <webhooks.shops.example>",
        "X-Pghookd-Kind": "failing",
        "Content-Language": "en",
        "List-Unsubscribe": "<https://console.shops.example/unsubscribe?token=b5d1c0ffee>,"
        " <mailto:support@shops.example?subject=unsubscribe>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "MIME-Version": "1.0",
        "Content-Type": message["Content-Type"],
    }
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_mails_of_one_incident_form_a_thread():
    first, later = (
        sample("failing"),
        dataclasses.replace(sample("reminder"), since_us=sample("failing").since_us + 999),
    )
    assert re.fullmatch(r"<incident\.[0-9a-f]{12}\.1778652000@shops\.example>", incident_id(first, SENDER))
    assert incident_id(first, SENDER) == incident_id(later, SENDER)
    assert incident_id(first, SENDER) != incident_id(
        dataclasses.replace(first, owner_email="b@example.com"), SENDER
    )


def test_the_same_digest_gives_the_same_bytes():
    one, other = (Letters(MAIL).render(sample("several"), message_id=ID).as_bytes() for _ in range(2))
    assert one == other


def test_what_is_not_set_is_not_there():
    message = sent(digest_of(SECTION), Letters(MailSettings(sender=SENDER)))
    assert not {"Reply-To", "List-Unsubscribe", "List-Unsubscribe-Post"} & set(message.keys())
    assert str(message["From"]) == SENDER
    assert message["List-Id"] == "<webhooks.shops.example>"
    assert "https://console" not in text_of(message)
    plain = MAIL.model_copy(update={"unsubscribe_url": "http://shops.example/u/{token}"})
    message = sent(digest_of(SECTION, unsubscribe_token="a/b ä"), Letters(plain))
    assert message["List-Unsubscribe"].startswith("<http://shops.example/u/a%2Fb%20%C3%A4>, <mailto:")
    assert message["List-Unsubscribe-Post"] is None  # RFC 8058 speaks of https


def test_long_names_and_urls_stay_in_one_piece():
    sender = f"hooks@{'a' * 60}.{'b' * 60}.example"
    mail = MAIL.model_copy(
        update={
            "sender": sender,
            "platform_name": 'Ünïcode, "Shops" <b> & Söhne',
            "unsubscribe_url": f"https://shops.example/{'u' * 200}?t={{token}}&ö=1",
        }
    )
    digest = dataclasses.replace(sample("failing"), unsubscribe_token="t" * 100)
    message = Letters(mail).render(digest, message_id=message_id(2**62, sender))
    lines = message.as_bytes().split(b"\r\n")
    assert max(map(len, lines)) <= 998
    for name in ("Message-ID", "References", "In-Reply-To", "List-Unsubscribe"):
        [line] = [line for line in lines if line.startswith(f"{name}: <".encode())]
        assert b"=?" not in line
    read = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert read["From"].addresses[0].display_name == mail.platform_name
    assert read["From"].addresses[0].addr_spec == sender
    assert read["List-Id"].endswith(f" <webhooks.{sender.partition('@')[2]}>")


@pytest.mark.parametrize(
    "address",
    [
        "", "anna", "@example.com", "anna@", "a@b.example, c@d.example", "a@b.example;c@d.example",
        "Anna <a@b.example>", "a@b.example\r\nBcc: c@d.example", "a@b.example\n", "a@b.example\x00",
        "a b@c.example", '"a@b.example"@c.example', "a@b.example c", "a@@b.example", "a@b@c.example",
        "=?utf-8?q?a=2C?=@b.example", "group: a@b.example;", "a@[127.0.0.1]", ".a@b.example", "a..b@c.example",
        "a@-b.example", "a@b..example", "\u00e4@b.example", f"a@{'b' * 300}.example", "a\u202e@b.example",
        "a@b.example(c)", "<a@b.example>",
    ],
)  # fmt: skip
def test_an_address_is_one_or_none(address):
    with pytest.raises(ValueError, match="is not one plain e-mail address"):
        one_address(address)
    with pytest.raises(ValueError, match="the owner's address is not one plain e-mail address"):
        LETTERS.render(dataclasses.replace(sample("failing"), owner_email=address), message_id=ID)


def test_usual_addresses_are_taken():
    for address in ("anna@example.com", "o'hara+shop@mail.example.co.uk", "a_b%c@localhost"):
        assert one_address(address).addr_spec == address
    assert one_address("anna@bücher.example").addr_spec == "anna@xn--bcher-kva.example"


# Strangers --------------------------------------------------------------------------------------------------

CONTROLS = "".join(map(chr, [*range(32), 127, *range(128, 160)]))
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MARKUP = (
    "</pre></title></style><script>alert(1)</script><img src=x onerror=alert(1)><a href='https://evil.example'>"
    "<!-- --><![CDATA[ ]]>&lt;b&gt;&#60;\"'`<style>*{display:none}</style><meta http-equiv=refresh content=0>"
)
HEADERS = "\r\nBcc: evil@example.com\r\n\r\n--=_\r\n\nX-Evil: 1\n.\n"
TEMPLATES = "{{7*7}}{% raw %}{#{{letter.__class__}}{n}{site}%(n)s$n{0}"
HOSTILE = f"{MARKUP}{HEADERS}{CONTROLS}{BIDI}{TEMPLATES}, evil@example.com \ud800\U000e0041 \u05d0\u05d1"


def hostile(text, **changes):
    return section(
        site_id=text, site_name=text, url=f"https://h.example/{text}", description=text, time_zone=text,
        types=((text, 3),) * 30, error=f"redirect: {text}", response=text, disabled_reason=text,
        event_ids=(text,) * 30, cause=Cause.REDIRECT, status=302, **changes,
    )  # fmt: skip


def assert_harmless(message, *, sections=1):
    assert [each.addr_spec for each in message["To"].addresses] == ["anna@example.com"]
    assert sorted(message.keys()) == sorted(sent(digest_of(SECTION)).keys())
    assert len(message["Subject"]) <= 150
    text, source = text_of(message), html_of(message)
    page = Page(source)
    for shown in (str(message["Subject"]), text, *page.shown):
        categories = {c: unicodedata.category(c) for c in shown if c not in "\n\u2068\u2069\u2060"}
        assert not {"Cc", "Cf", "Cs", "Co"} & set(categories.values())
        assert shown.count("\u2068") == shown.count("\u2069")  # ours, around text written from the right
    assert not page.tags & {"script", "img", "b", "iframe", "svg"}
    assert {name for name, _ in page.attributes} <= {
        "lang", "charset", "name", "content", "dir", "class", "style", "scope", "href", "data-css-inline"
    }  # fmt: skip
    assert all(link.startswith("https://console.shops.example/webhooks") for link in page.links)
    assert source.count("<style") == 1
    assert "49" not in str(message["Subject"])
    assert len(message.as_bytes()) < 200_000 + 20_000 * (sections > 1)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in OF_OPERATOR])
@pytest.mark.parametrize("language", LANGUAGES)
def test_strangers_texts_are_shown_and_do_nothing(kind, language):
    message = sent(digest_of(hostile(HOSTILE, kind=kind), language=language))
    assert_harmless(message)
    assert "<script>alert(1)</script>" in text_of(message)
    assert "&lt;script&gt;" in html_of(message)
    assert "{{7*7}}" in told(digest_of(section(site_name="{{7*7}}")))


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "\n" * 1_000_000, "<" * 1_000_000, "\u4e2d" * 1_000_000, "\u05d0" * 10**6]
)
def test_a_megabyte_is_cut(text):
    message = sent(digest_of(*[hostile(text, endpoint_id=n) for n in range(SECTIONS_MAX + 5)]))
    assert_harmless(message, sections=SECTIONS_MAX)


def test_twenty_strangers_at_once_stay_in_bounds():
    many = [hostile(f"{n}{HOSTILE}", endpoint_id=n) for n in range(SECTIONS_MAX)]
    assert_harmless(sent(digest_of(*many)), sections=SECTIONS_MAX)


@given(st.text(max_size=80))
def test_any_text_is_harmless(text):
    assert_harmless(sent(digest_of(hostile(text))))


def test_an_encoded_word_of_a_stranger_stays_a_text():
    word = "=?utf-8?q?=0D=0AX:_1?="
    message = sent(digest_of(section(site_name=word)))
    assert_harmless(message)
    assert message["Subject"] == f"Webhook failing: shop.example.com, 14 order events waiting [{word}]"


# Texts that programs turn into links: a scheme, an address, www, a name with a dot, a number with dots.
LINKIFIERS = (
    re.compile(r"[a-z][a-z0-9+.-]*:[/\\]{1,2}\S", re.IGNORECASE),
    re.compile(r"(?<![a-z])(?:https?|ftp|mailto|tel|sms|javascript):\S", re.IGNORECASE),
    re.compile(r"[^\s\u2060]@|@[^\s\u2060]"),
    re.compile(r"www\.[^\s\u2060]", re.IGNORECASE),
    re.compile(r"\w[.\u3002\uff0e\uff61]\w"),
    re.compile(r"//\w"),
)
LINKS = (
    "URGENT: verify your account at https://phish.example/login",
    "HTTPS://PHISH.EXAMPLE", "http:phish.example", "www.phish.example", "phish.example/login", "a@phish.example",
    "mailto:a@phish.example", "tel:+4930123", "phish\u3002example", "phish\uff0eexample", "//phish.example",
    "http:\\\\phish.example", "javascript:alert(1)", "192.0.2.1/x", "ftp://a.b", "x\u2060.y", "xn--bcher-kva.example",
)  # fmt: skip


def assert_no_link(shown):
    for linkifier in LINKIFIERS:
        assert not linkifier.search(shown), (linkifier.pattern, shown)


@pytest.mark.parametrize("text", LINKS)
def test_a_name_cannot_become_a_link(text):
    """Site, description and the server's answer hold a link: neither subject, text nor HTML does."""
    made = section(site_name=text, description=text, response=text)
    message = sent(digest_of(made))
    for shown in (sections.unlinked(text), sections.shown_name(text)):
        assert_no_link(shown)
    plain = text.replace("\u2060", "")
    assert sections.unlinked(text).replace("\u2060", "") == plain
    body = text_of(message)
    assert sections.unlinked(plain) in body.replace("\n", " ")
    for shown in (str(message["Subject"]), body, " ".join(Page(html_of(message)).shown)):
        if "." in plain or "@" in plain or "//" in plain:
            assert plain not in shown
    assert_no_link(str(message["Subject"]).replace("shop.example.com", ""))


@given(
    st.text(alphabet=st.sampled_from("ab1.:/@\\ -_w\u3002\uff0e\u2060\u00e4"), max_size=60)
    | st.sampled_from(LINKS)
)
def test_no_text_is_a_link_once_it_is_unlinked(text):
    shown = sections.unlinked(text)
    assert_no_link(shown)
    assert sections.unlinked(shown) == shown
    assert shown.replace("\u2060", "") == text.replace("\u2060", "")


def test_ordinary_names_look_as_they_are():
    for name in ("Anna's Shop", "Bread & Cakes", "24/7 Flowers", "Anna: Flowers, est. 1999"):
        assert sections.shown_name(name) == name
        assert LETTERS.subject(digest_of(section(site_name=name))).endswith(f"[{name}]")
    assert sections.shown_name("bakery.example") == "bakery.\u2060example"
    assert LETTERS.subject(digest_of(section(site_name="bakery.example"))).endswith("[bakery.\u2060example]")


def test_a_name_with_a_link_is_quoted_and_left_out_of_the_subject():
    made = digest_of(section(site_name="URGENT: see https://phish.example/"))
    assert (
        LETTERS.subject(made) == "Webhook failing: shop.example.com, 14 order events waiting [Example Shops]"
    )
    assert "\u201cURGENT: see https" in told(made)


def test_right_to_left_names_turn_nothing_round():
    text = told(digest_of(section(site_name="\u05d7\u05e0\u05d5\u05ea")))
    assert "Messages from \u2068\u05d7\u05e0\u05d5\u05ea\u2069 to shop.example.com" in text


def test_no_secret_of_a_url_is_shown():
    text = text_of(sent(digest_of(section(url="https://user:pw@h.example/x?token=geheim#geheim"))))
    assert "https://h.example/x" in text
    assert "geheim" not in text
    assert "pw" not in re.sub(r"pghookd", "", text)


@pytest.mark.parametrize(
    "digest",
    [
        digest_of(section(since_us=2**80)),
        digest_of(section(since_us="x")),
        digest_of(section(types=(("a",),))),
        digest_of(section(failed="x")),
        digest_of(SECTION, at_us=10**30),
        digest_of(SECTION, language=5),
        digest_of(SECTION, owner_email=None),
        digest_of(kind=Kind.STORM, storm=(1,)),
        digest_of(section(status=b"x")),
    ],
)
def test_what_cannot_be_said_is_a_short_reason(digest):
    with pytest.raises(ValueError, match=r"^.{5,220}$"):
        LETTERS.render(digest, message_id=ID)


def test_odd_values_that_can_be_said_are_said():
    for odd in (
        section(since_us=0, last_failure_us=-(10**15), failed=-3, total=0),
        section(site_name="", url="", description="", types=(), event_ids=(), status=0),
        section(url="https://[::1", status=99999, timeout_s=1e9),
        dataclasses.replace(sample("recovered").sections[0], ended_us=None),
        dataclasses.replace(sample("warning").sections[0], disable_at_us=None),
        dataclasses.replace(sample("disabled").sections[0], disabled_reason=None, held=0),
    ):
        assert text_of(sent(digest_of(odd)))
    assert text_of(sent(digest_of()))
    assert sent(digest_of(kind=Kind.STORM))["X-Pghookd-Kind"] == "storm"


# Links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site_id", "url"),
    [
        ("shop-17", "https://c.example/w/shop-17/42?a=1"),
        ("a/b?c#d", "https://c.example/w/a%2Fb%3Fc%23d/42?a=1"),
        ("..", None),
        ("x" * 120, None),
        ("", None),
    ],
)
def test_an_endpoint_is_opened_below_the_console(site_id, url):
    mail = MailSettings(console_url="https://c.example/w/?a=1")
    assert sections.console_url(mail, section(site_id=site_id)) == url
    assert sections.console_url(MailSettings(), SECTION) is None


def test_help_is_a_link_or_a_person():
    helped = Letters(MAIL.model_copy(update={"help_url": "https://shops.example/help"}))
    assert "Help with webhooks: https://shops.example/help" in told(sample("failing"), helped)
    assert "write to" not in told(sample("failing"), helped)


# Words ------------------------------------------------------------------------------------------------------

CATALOGUES = {
    language: catalogue._flat(
        catalogue._parsed(
            (samples.Path(catalogue.__file__).parent / f"letters/words/{language}.toml").read_text()
        )
    )
    for language in LANGUAGES
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_whole_and_uses_the_same_placeholders(language):
    ours, reference = CATALOGUES[language], CATALOGUES["en"]
    assert list(ours) == list(reference)
    assert catalogue.faults_of(ours, reference) == {}
    for key, forms in reference.items():
        assert len(ours[key]) == len(forms), key
        assert [catalogue.placeholders(form) for form in ours[key]] == [
            catalogue.placeholders(form) for form in forms
        ], key


def test_a_language_is_matched_by_its_first_part_or_falls_back_to_english():
    known = {"de", "en"}
    wanted = ["de", "DE", "de-AT", "de_CH.UTF-8", "en", "fr", "", "deutsch", "../de", "\x00", None]
    assert [catalogue.language_of(each, known) for each in wanted] == ["de"] * 4 + ["en"] * 7


# The operator's own -----------------------------------------------------------------------------------------


def with_folder(folder, **files):
    for name, content in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Letters(MAIL.model_copy(update={"templates": str(folder)}))


def put(folder, files):
    return with_folder(folder, **files)


def test_an_operators_files_win_one_by_one(tmp_path):
    letters = put(
        tmp_path,
        {
            "digest.txt.j2": "{{ letter.title }} - {{ letter.platform }}\n",
            "style.css": "h1 { color: #123456 }",
            "words__en.toml": '[title]\nfailing = ["One is down", "{n} are down"]',
        },
    )
    message = sent(sample("failing"), letters)
    assert text_of(message) == "One is down - Example Shops\n"
    assert '<h1 style="color:#123456">One is down</h1>' in html_of(message)
    assert "What to do" in html_of(message)
    assert letters.faults == ()


def test_an_operator_adds_a_language(tmp_path):
    polish = """
        [language]
        plural = "n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2"
        humanize = "pl_PL"
        [events]
        any = ["{n} zdarzenie", "{n} zdarzenia", "{n} zdarzeń"]
        order = ["{n} zdarzenie", "{n} zdarzenia", "{n} zdarzeń"]
    """
    letters = put(tmp_path, {"words__pl.toml": polish})
    assert letters.languages == ("de", "en", "pl")
    for count, shown in ((1, "1 zdarzenie"), (3, "3 zdarzenia"), (14, "14 zdarzeń")):
        assert shown in letters.subject(digest_of(section(waiting=count), language="pl"))
    assert letters.faults == ()


BROKEN = [
    ({"digest.txt.j2": "{% if %}"}, "digest.txt.j2: .*line 1"),
    ({"digest.txt.j2": "{{ letter.nothing }}"}, "digest.txt.j2: .*nothing"),
    ({"digest.html.j2": "{{ letter.blocks[0].nothing }}"}, "digest.html.j2: "),
    ({"digest.txt.j2": "{{ ''.__class__.__mro__ }}"}, "digest.txt.j2: .*unsafe"),
    ({"digest.txt.j2": "{{ 1 // 0 }}"}, "digest.txt.j2: "),
    ({"digest.txt.j2": b"\xff"}, "digest.txt.j2: .*utf-8"),
    ({"block.html.j2": "x" * 200_001}, "block.html.j2: is longer than 200000 bytes"),
    ({"words__de.toml": "[title"}, "words/de.toml: is not valid TOML"),
    ({"words__de.toml": "title = 3"}, "words/de.toml: title stands in no table"),
    (
        {"words__de.toml": "[title]\nstorm = 3"},
        "words/de.toml: title.storm must be a string or a list of strings",
    ),
    ({"words__de.toml": "[title]\nodd = 'x'"}, "words/de.toml: title.odd is not a key"),
    ({"words__de.toml": "[title]\nstorm = '{host}'"}, r"words/de.toml: title.storm has no \{host\}"),
    ({"words__de.toml": "[title]\nfailing = '{n!r}'"}, "words/de.toml: title.failing cannot be read"),
    ({"words__de.toml": "[title]\nfailing = '{n.real}'"}, "words/de.toml: title.failing cannot be read"),
    ({"words__de.toml": "[title]\nfailing = '{'"}, "words/de.toml: title.failing cannot be read"),
    ({"words__de.toml": "[language]\nplural = 'n/0'"}, "words/de.toml: language.plural cannot be read"),
    ({"words__de.toml": "[language]\nplural = 'import'"}, "words/de.toml: language.plural cannot be read"),
    ({"words__de.toml": "[title]\nstorm = ['a', 'b']"}, "words/de.toml: title.storm must be one text"),
    (
        {"words__de.toml": "[dates]\nmonths = ['a', 'b']"},
        "words/de.toml: dates.months must list twelve months",
    ),
]


@pytest.mark.parametrize(("files", "fault"), BROKEN, ids=lambda value: str(value)[:40])
def test_broken_templates_are_left_out_and_reported(tmp_path, files, fault):
    letters = put(tmp_path, files)
    message = sent(sample("failing", "de"), letters)
    assert words_in(text_of(message)) == words_in(text_of(sent(sample("failing", "de"))))
    assert html_of(message) == html_of(sent(sample("failing", "de")))
    [told] = letters.faults
    assert re.match(fault, told)


def test_a_text_with_too_few_forms_is_reported(tmp_path):
    letters = put(tmp_path, {"words__de.toml": "[language]\nplural = 'n%3'\n[events]\nany = ['a', 'b']"})
    assert letters.faults == ("words/de.toml: events.any needs 3 forms, as language.plural says",)
    assert text_of(sent(sample("failing", "de"), letters))


def test_a_missing_folder_is_reported():
    letters = Letters(MAIL.model_copy(update={"templates": "/nowhere/letters"}))
    assert letters.faults == ("mail.templates: /nowhere/letters is not a folder",)
    assert text_of(sent(sample("failing"), letters))


# The preview ------------------------------------------------------------------------------------------------


def test_the_preview_shows_every_kind_in_every_language():
    shown, faults = samples.preview(Settings(delivery=DeliverySettings(user_agent="shops/1")))
    assert {each.message["X-Pghookd-Kind"] for each in shown} == set(Kind)
    assert {each.language for each in shown} == set(LANGUAGES)
    assert faults == ()
    assert any("user-agent: shops/1" in each.text for each in shown)
    with pytest.raises(KeyError):
        samples.preview(Settings(), language="xx")


# A browser --------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000",
)  # fmt: skip


async def opened(file):
    """Open a file in a browser, wait until it has loaded, and return its document."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"file://{file}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        shown, _ = await asyncio.wait_for(browser.communicate(), 60)
        return shown.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here")
async def test_a_browser_runs_and_fetches_nothing_of_a_stranger(tmp_path, receiver):
    attack = (
        f"</pre></title><script>document.title='owned'</script><img src={receiver.url('/img')}>"
        f"<link rel=stylesheet href={receiver.url('/css')}><iframe src={receiver.url('/frame')}></iframe>"
    )
    letter, bare = tmp_path / "letter.html", tmp_path / "bare.html"
    letter.write_text(html_of(sent(digest_of(hostile(attack)))))
    assert "<title>owned" not in await opened(letter)
    assert receiver.requests == []
    bare.write_text(f"<html><title>x</title>{attack}")  # the same, not escaped, does both
    assert "<title>owned" in await opened(bare)
    assert receiver.requests
