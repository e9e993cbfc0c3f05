"""One spelling for all spellings of a mailbox, and whose domain it is at."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pghookd.owner_mail.mailbox import domain_of, is_of_strangers, mailbox_of


@pytest.mark.parametrize(
    ("address", "mailbox"),
    [
        ("anna@shop.example", "anna@shop.example"),
        ("Anna@SHOP.example", "anna@shop.example"),
        ("victim+17@bank.example", "victim@bank.example"),
        ("victim+a+b@bank.example.", "victim@bank.example"),
        ("v.i.c.t.i.m@gmail.com", "victim@gmail.com"),
        ("v.ictim+x@googlemail.com", "victim@gmail.com"),
        ("v.ictim@bank.example", "v.ictim@bank.example"),
        ("anna@B\u00dcCHER.example", "anna@xn--bcher-kva.example"),
        ("+@bank.example", "+@bank.example"),
        ("nobody", "@nobody"),
        ("", "@"),
    ],
)
def test_spellings_of_one_mailbox(address, mailbox):
    assert mailbox_of(address) == mailbox


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("a@shop.example", "shop.example"),
        ("a@mx1.bank.example", "bank.example"),
        ("a@mx2.bank.co.uk", "bank.co.uk"),
        ("a@b@shop.example", "shop.example"),
        ("nobody", "nobody"),
    ],
)
def test_the_domain_of_an_address(address, domain):
    assert domain_of(address) == domain


def test_mailboxes_of_strangers():
    assert is_of_strangers("gmail.com")
    assert not is_of_strangers("bank.example")


@given(st.text())
@example("0\x85.")
def test_any_text_has_one_spelling(address):
    assert mailbox_of(mailbox_of(address)) == mailbox_of(address)
    domain_of(address)
