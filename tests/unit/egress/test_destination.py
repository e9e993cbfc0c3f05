"""The first SSRF check, as tables: refused and ordinary URLs, and that no text at all makes it raise."""

# ruff: noqa: E501 -- tables are read by the line
# ruff: noqa: RUF001 -- look-alike characters are the subject
# ruff: noqa: SIM905 -- long lists of plain words
# ruff: noqa: S104 -- 0.0.0.0 is a thing to refuse here, nothing is bound
import ipaddress
import socket
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.egress.destination import Destination, Refusal, judge_address, parse, why_closed
from pghookd.settings.network import PORTS, EgressPolicy, parse_places, parse_ports

OPEN = EgressPolicy()
NAMES = {"url", "scheme", "port", "userinfo", "name", "literal", "address"}


def refused(url: str, policy: EgressPolicy = OPEN) -> str | None:
    answer = parse(url, policy)
    return answer.name if isinstance(answer, Refusal) else None


def aimed(url: str, policy: EgressPolicy = OPEN) -> Destination:
    answer = parse(url, policy)
    assert isinstance(answer, Destination), answer
    return answer


ORDINARY = [
    ("https://example.com", "example.com", 443, "/", "example.com"),
    ("http://example.com/", "example.com", 80, "/", "example.com"),
    ("HTTPS://Example.COM/Hook", "example.com", 443, "/Hook", "example.com"),
    ("https://example.com:443/a", "example.com", 443, "/a", "example.com"),
    ("http://example.com:443/a", "example.com", 443, "/a", "example.com:443"),
    ("https://example.com:8443/a?b=c&d", "example.com", 8443, "/a?b=c&d", "example.com:8443"),
    ("https://example.com?token=1", "example.com", 443, "/?token=1", "example.com"),
    ("https://example.com/a#frag?x", "example.com", 443, "/a", "example.com"),
    ("https://example.com#frag", "example.com", 443, "/", "example.com"),
    ("https://example.com./x", "example.com", 443, "/x", "example.com"),
    ("https://example.com/%2f%7E/a/../b%zz", "example.com", 443, "/%2f%7E/a/../b%zz", "example.com"),
    ("https://example.com//double//", "example.com", 443, "//double//", "example.com"),
    ("https://example.com/a@b:c", "example.com", 443, "/a@b:c", "example.com"),
    ("https://example.com/?u=http://127.0.0.1/", "example.com", 443, "/?u=http://127.0.0.1/", "example.com"),
    ("https://a-b.c_d.example.co.uk/", "a-b.c_d.example.co.uk", 443, "/", "a-b.c_d.example.co.uk"),
    ("https://bücher.example.de/", "xn--bcher-kva.example.de", 443, "/", "xn--bcher-kva.example.de"),
    ("https://BÜCHER.example.de/", "xn--bcher-kva.example.de", 443, "/", "xn--bcher-kva.example.de"),
    ("https://bu\u0308cher.de/", "xn--bcher-kva.de", 443, "/", "xn--bcher-kva.de"),
    ("https://xn--bcher-kva.de/", "xn--bcher-kva.de", 443, "/", "xn--bcher-kva.de"),
    ("https://例え.jp/", "xn--r8jz45g.jp", 443, "/", "xn--r8jz45g.jp"),
    ("https://straße.de/", "xn--strae-oqa.de", 443, "/", "xn--strae-oqa.de"),
    ("https://example.com/über?q=ß", "example.com", 443, "/%C3%BCber?q=%C3%9F", "example.com"),
    ("http://93.184.216.34/x", "93.184.216.34", 80, "/x", "93.184.216.34"),
    ("https://[2606:2800:220:1::0248]:8443/", "2606:2800:220:1::248", 8443, "/", "[2606:2800:220:1::248]:8443"),
    ("https://[2606:4700::1111]", "2606:4700::1111", 443, "/", "[2606:4700::1111]"),
    ("https://hooks.zapier.com/hooks/catch/1/2/", "hooks.zapier.com", 443, "/hooks/catch/1/2/", "hooks.zapier.com"),
    ("https://1password.com/1", "1password.com", 443, "/1", "1password.com"),
    ("https://0x.org/", "0x.org", 443, "/", "0x.org"),
    ("https://127.0.0.1.nip.io/", "127.0.0.1.nip.io", 443, "/", "127.0.0.1.nip.io"),  # its answer is judged
]  # fmt: skip


def test_ordinary_urls_are_aimed_at_exactly_as_written():
    for url, host, port, target, host_header in ORDINARY:
        found = aimed(url)
        assert (found.host, found.port, found.target, found.host_header) == (host, port, target, host_header)
        is_literal = host[0].isdigit() and host.replace(".", "").isdigit()
        assert found.address == (host if is_literal or ":" in host else None), url
        assert not found.named, url


NO_WEB_ADDRESS = [
    ("", "url"),
    ("example.com", "url"),
    ("//example.com/", "url"),
    ("http:example.com", "url"),
    ("http:/example.com", "url"),
    ("http://", "url"),
    ("http:///x", "url"),
    ("http://?x", "url"),
    ("http://#x", "url"),
    (" http://example.com/", "url"),
    ("http://example.com/ ", "url"),
    ("http://example.com/a b", "url"),
    ("http://example.com\\@127.0.0.1/", "url"),
    ("http:\\\\example.com", "url"),
    ("http://example.com/\x00", "url"),
    ("http://example.com/\u2028", "url"),
    ("http://example.com/\u200b", "url"),
    ("http://example.com/\ud800", "url"),
    ("http://exam%70le.com/", "url"),
    ("http://example.com%2f@127.0.0.1/", "userinfo"),
    ("http://example.com:/", "url"),
    ("http://example.com:a/", "url"),
    ("http://example.com:8\u0663/", "url"),
    ("http://a:80:80/", "url"),
    ("http://example.com:-1/", "url"),
    ("http://[::1", "url"),
    ("http://[::1]x/", "url"),
    ("http://[::1]80/", "url"),
    ("https://example.com/" + "a" * 2029, "url"),
    ("ftp://example.com/", "scheme"),
    ("file:///etc/passwd", "scheme"),
    ("javascript:alert(1)", "scheme"),
    ("gopher://example.com/", "scheme"),
    ("httpss://example.com/", "scheme"),
    ("http://example.com:22/", "port"),
    ("http://example.com:0/", "port"),
    ("http://example.com:25/", "port"),
    ("http://example.com:5432/", "port"),
    ("http://example.com:6379/", "port"),
    ("http://example.com:65536/", "port"),
    ("http://example.com:99999999999999999999/", "port"),
    ("http://user@example.com/", "userinfo"),
    ("http://user:pw@example.com/", "userinfo"),
    ("http://@example.com/", "userinfo"),
    ("http://example.com@127.0.0.1/", "userinfo"),
]


def test_urls_that_are_not_plain_web_addresses_are_refused():
    assert [(url, refused(url)) for url, _ in NO_WEB_ADDRESS] == NO_WEB_ADDRESS


MISLEADING = [
    "localhost", "LOCALHOST", "localhost.", "foo.localhost", "db", "printer.local", "vault.internal",
    "metadata.google.internal", "intranet.corp", "nas.home", "router.lan", "abc.onion", "web.service.consul",
    "kubernetes.default.svc", "1.0.0.127.in-addr.arpa", "a.test", "a.invalid", "a.alt",
    "localhost.localdomain", "www.intranet", "db.private", "printer", "a.home.arpa", "LOCAL.", "x.LocalHost", "example..com",
    ".example.com", "example.com..", "-", "a" * 64 + ".com", ".".join(["a" * 60] * 5), "exa!.com",
    "ex*mple.com", "exam,ple.com", "a$b.com", "ⓛocalhost", "ⓔxample.com", "ｅxample.com", "example。com",
    "example．com", "example｡com", "exa\u00admple.com", "exaﬁle.com", "\u212aelvin.com", "ſite.com", "a².com",
    "١٢٣.com", "a٣.com", "x\u0661.com", "℀.com", "example.com\uff0f.evil.com", "user＠example.com", "½.com",
    "xn\u00b7.com",
]  # fmt: skip


def test_names_that_are_not_public_or_mislead_are_refused():
    expected = {host: "name" if host.isprintable() else "url" for host in MISLEADING}
    assert {host: refused(f"http://{host}/") for host in MISLEADING} == expected


ODD = [
    "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0X7F.0.0.1", "0177.0.0.1", "127.1", "127.0.0.1.",
    "127.0.0.01", "0.0.0.0", "0", "0x", "1.2.3.4.5", "256.256.256.256", "8.8.8.8.", "08.8.8.8", "example.0x1f",
    "example.1", "8.8.8", "017700000001", "127.0.0.1", "10.1.2.3", "100.64.0.1", "169.254.1.1", "172.16.0.1",
    "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "169.254.169.254", "100.100.100.200",
    "[::1]", "[::]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]", "[::ffff:0:7f00:1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::808:808]", "[64:ff9b:1::1]", "[100::1]", "[fc00::1]", "[fd00:ec2::254]",
    "[fe80::1]", "[fec0::1]", "[ff02::1]", "[5f00::1]", "[4000::1]", "[2001::1]", "[2001:db8::1]",
    "[2002:7f00:1::1]", "[3fff::1]", "[v1.x]", "[]", "[1.2.3.4]", "[::1]]",
    "[[::1]]", "[fd20:ce::254]", "[fd00:c1::a9fe:a9fe]", "[fd00:42::42]", "[fe80::a9fe:a9fe]",
]  # fmt: skip


def test_addresses_that_are_inner_or_oddly_written_are_refused():
    assert {host: refused(f"http://{host}/") for host in ODD} == dict.fromkeys(ODD, "literal")


def test_dotted_digits_of_other_shapes_are_not_addresses():
    assert refused("http://①②⑦.⓪.⓪.①/") == "name"
    assert refused("http://１２７.0.0.1/") == "name"
    assert refused("http://[fe80::1%25eth0]/") == "url"


CONTROLS = ["\x00", "\t", "\n", "\r", "\x0b", "\x1b", "\x7f", "\x85", "\xa0", " ", "\\"]  # fmt: skip


def test_a_control_character_anywhere_is_refused():
    for url, *_ in ORDINARY:
        for what in CONTROLS:
            tried = (url[:position] + what + url[position:] for position in range(len(url) + 1))
            assert {refused(each) for each in tried} == {"url"}, (url, what)


HOSTILE = (
    "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 169.254.169.254 169.254.170.2 "
    "169.254.170.23 169.254.169.253 169.254.42.42 169.254.0.23 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.192 "
    "192.0.2.1 192.88.99.1 192.168.255.255 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 "
    "255.255.255.255 168.63.129.16 100.100.100.200 :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 "
    "::ffff:100.64.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::7f00:1 100::1 2001::1 "
    "2001:0:7f00:1::1 2001:10::1 2001:20::1 2001:1ff::1 2001:db8::1 2002:7f00:1::1 2002:808:808::1 3fff::1 "
    "3fff:fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00:ec2::254 fd00:ec2::23 fd00:c1::a9fe:a9fe fd20:ce::254 "
    "fd00:42::42 fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 ff02::1 ff0e::1 fe80::1%eth0 2606:4700::1%1 "
    "garbage 1.2.3 01.2.3.4 0x7f.0.0.1"
).split()


def test_hostile_addresses_are_refused():
    tried = [*HOSTILE, "", " 8.8.8.8", "8.8.8.8\n", "127.0.0.1\x00"]
    refusal = Refusal("address", "it resolves to an address that is not public; allow it with egress.allow")
    assert {address: judge_address(address, OPEN) for address in tried} == dict.fromkeys(tried, refusal)


# The name of each block, its first and its last address: the IANA registries of special-purpose addresses, and
# all others that no request may reach. Written out here as well, so that an edit of the rules' own table shows.
BLOCKS = """
unspecified, this network    0.0.0.0                0.255.255.255
private                      10.0.0.0               10.255.255.255
CGNAT                        100.64.0.0             100.127.255.255
loopback                     127.0.0.0              127.255.255.255
link local, cloud metadata   169.254.0.0            169.254.255.255
private                      172.16.0.0             172.31.255.255
protocol assignments         192.0.0.0              192.0.0.255
documentation                192.0.2.0              192.0.2.255
6to4 relays                  192.88.99.0            192.88.99.255
private                      192.168.0.0            192.168.255.255
benchmarking                 198.18.0.0             198.19.255.255
documentation                198.51.100.0           198.51.100.255
documentation                203.0.113.0            203.0.113.255
multicast                    224.0.0.0              239.255.255.255
reserved, broadcast          240.0.0.0              255.255.255.255
cloud host agent             168.63.129.16          168.63.129.16
unspecified                  ::                     ::
loopback                     ::1                    ::1
compatible                   ::                     ::ffff:ffff
mapped                       ::ffff:0.0.0.0         ::ffff:255.255.255.255
translated (SIIT)            ::ffff:0:0.0.0.0       ::ffff:0:255.255.255.255
NAT64                        64:ff9b::              64:ff9b::ffff:ffff
NAT64, local                 64:ff9b:1::            64:ff9b:1:ffff:ffff:ffff:ffff:ffff
discard                      100::                  100::ffff:ffff:ffff:ffff
dummy prefix                 100:0:0:1::            100:0:0:1:ffff:ffff:ffff:ffff
Teredo                       2001::                 2001:0:ffff:ffff:ffff:ffff:ffff:ffff
benchmarking                 2001:2::               2001:2:0:ffff:ffff:ffff:ffff:ffff
AMT, AS112, ORCHID, DETs     2001:3::               2001:3f:ffff:ffff:ffff:ffff:ffff:ffff
protocol assignments         2001::                 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff
documentation                2001:db8::             2001:db8:ffff:ffff:ffff:ffff:ffff:ffff
6to4                         2002::                 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff
documentation                3fff::                 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff
ISATAP                       2606:4700::5efe:0:0    2606:4700::5efe:ffff:ffff
ISATAP, global flag          2606:4700::200:5efe:0:0  2606:4700::200:5efe:ffff:ffff
not assigned to hosts        4000::                 5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
segment routing              5f00::                 5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff
not assigned to hosts        6000::                 fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
unique local                 fc00::                 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
link local                   fe80::                 febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff
site local                   fec0::                 feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
multicast                    ff00::                 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""".strip().splitlines()


def test_no_address_of_a_registered_special_block_is_allowed():
    random = Random(1)
    for line in BLOCKS:
        first, last = (ipaddress.ip_address(text) for text in line.split()[-2:])
        between = [random.randint(int(first), int(last)) for _ in range(4)]
        for address in (first, last, *(type(first)(number) for number in between)):
            assert judge_address(str(address), OPEN) is not None, (line, address)


INNER = "127.0.0.1 10.0.0.1 169.254.169.254 192.168.1.1 100.64.0.1 8.8.8.8".split()


def carriers(text):
    """Every way to say an IPv4 address in IPv6."""
    v4 = ipaddress.IPv4Address(text)
    high, low, turned = int(v4) >> 16, int(v4) & 0xFFFF, int(v4) ^ 0xFFFFFFFF
    hexed = f"{high:x}:{low:x}"
    return {
        "mapped": f"::ffff:{text}",
        "mapped in hex": f"::ffff:{hexed}",
        "mapped in full": f"0000:0000:0000:0000:0000:FFFF:{high:04X}:{low:04X}",
        "compatible": f"::{text}",
        "SIIT": f"::ffff:0:{text}",
        "NAT64": f"64:ff9b::{text}",
        "NAT64, local, /96": f"64:ff9b:1::{text}",
        "NAT64, local, /48": f"64:ff9b:1:{high:x}:{low >> 8:x}:{(low & 0xFF) << 8:x}:0:0",
        "6to4": f"2002:{hexed}::1",
        "Teredo server": f"2001:0:{hexed}:0:0:f7f7:f7f7",
        "Teredo client": f"2001:0:808:808:0:0:{turned >> 16:x}:{turned & 0xFFFF:x}",
        "ISATAP": f"2606:4700::5efe:{hexed}",
        "ISATAP, global": f"2606:4700::200:5efe:{hexed}",
        "ISATAP, link": f"fe80::5efe:{text}",
    }


def test_an_ipv4_address_inside_ipv6_is_refused_however_it_is_carried():
    for text in INNER:
        forms = carriers(text)
        assert {how: judge_address(form, OPEN) is None for how, form in forms.items()} == dict.fromkeys(
            forms, False
        )
        urls = {how: refused(f"http://[{form}]/") for how, form in forms.items()}
        assert urls == dict.fromkeys(forms, "literal")


def test_a_denied_or_metadata_address_inside_allowed_ipv6_is_found():
    policy = EgressPolicy(allow=parse_places(["::/0"]), deny=parse_places(["192.168.1.0/24"]))
    for text in ("192.168.1.1", "169.254.169.254"):
        assert [how for how, form in carriers(text).items() if judge_address(form, policy) is None] == []


def ipv4_spellings(text):
    """Every way that inet_aton, a browser or a mapping reads as this address, but for the plain one."""
    a, b, c, d = (int(part) for part in text.split("."))
    low = b << 16 | c << 8 | d
    number = a << 24 | low
    wide = str.maketrans("0123456789.", "０１２３４５６７８９．")
    circled = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")
    return {
        "decimal": str(number),
        "octal": f"0{number:o}",
        "hex": hex(number),
        "hex in capitals": f"0X{number:X}",
        "octal parts": f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        "hex parts": f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        "mixed parts": f"{a:#x}.{b}.0{c:o}.{d}",
        "two parts": f"{a}.{low}",
        "three parts": f"{a}.{b}.{c << 8 | d}",
        "padded": f"{a:03}.{b:03}.{c:03}.{d:03}",
        "trailing dot": f"{text}.",
        "two trailing dots": f"{text}..",
        "full width": text.translate(wide),
        "circled": text.translate(circled),
        "ideographic dots": text.replace(".", "。"),
        "half width dots": text.replace(".", "｡"),
        "full width dots": text.replace(".", "．"),
        "other digits": text.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
        "percent": "".join(f"%{ord(c):02x}" for c in text),
        "soft hyphen": "\u00ad".join(text),
        "five parts": f"{text}.0",
        "zone": f"[::ffff:{text}%251]",
        "brackets": f"[{text}]",
    }  # fmt: skip


def test_other_spellings_of_an_address_are_refused_and_public_ones_as_well():
    for text in (*INNER, "0.0.0.0", "255.255.255.255"):
        for how, host in ipv4_spellings(text).items():
            assert refused(f"https://{host}/x") in {"literal", "name", "url"}, (text, how)
            assert judge_address(host, OPEN) is not None, (text, how)


TWENTY_FIVE = (Path(__file__).parent / "ordinary_urls.txt").read_text("utf-8").splitlines()


def test_twenty_five_ordinary_urls_are_allowed_with_their_addresses():
    assert len(TWENTY_FIVE) == 25
    for line in TWENTY_FIVE:
        url, *addresses = line.split()
        found = aimed(url)
        refusals = [
            judge_address(text, OPEN, named=found.named) for text in (*addresses, found.address) if text
        ]
        assert set(refusals) == {None}, line


PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 172.15.255.255 "
    "172.32.0.0 192.0.1.1 192.167.1.1 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.17 2000::1 2001:200::1 "
    "2001:4860:4860::8888 2003::1 2606:4700::1111 3ffe::1 3fff:1000::1 "
    "2606:4700::5eff:7f00:1 2606:4700::100:5efe:7f00:1 2606:4700:5efe::7f00:1"
).split()


def test_public_addresses_pass():
    assert {address: judge_address(address, OPEN) for address in PUBLIC} == dict.fromkeys(PUBLIC)


def test_allowed_networks_open_what_lies_in_them():
    policy = EgressPolicy(allow=parse_places(["127.0.0.0/8", "::1", "10.1.2.3"]))
    assert aimed("http://127.0.0.1:8080/", policy).address == "127.0.0.1"
    assert aimed("http://[::1]:8080/", policy).address == "::1"
    assert judge_address("10.1.2.3", policy) is None
    assert judge_address("10.1.2.4", policy) is not None
    assert judge_address("::ffff:127.0.0.1", policy) is not None
    assert refused("http://localhost:8080/", policy) == "name"


def test_a_name_may_be_opened_and_may_then_lead_inside():
    policy = EgressPolicy(allow=parse_places(["localhost", "Hooks.Corp."]))
    assert aimed("http://LOCALHOST:8080/", policy).named
    assert aimed("https://hooks.corp/", policy).named
    assert refused("https://other.corp/", policy) == "name"
    assert refused("https://a.hooks.corp/", policy) == "name"
    assert judge_address("127.0.0.1", policy, named=True) is None
    assert judge_address("127.0.0.1", policy) is not None
    assert judge_address("169.254.169.254", policy, named=True) is not None


def test_a_star_opens_or_shuts_all_names_below_and_not_the_name_itself():
    policy = EgressPolicy(
        allow=parse_places(["*.svc", "*.Hooks.Corp"]), deny=parse_places(["*.example.com", "secret.svc"])
    )
    tried = {
        "a.svc": None,
        "a.b.svc": None,
        "svc": "name",
        "x.secret.svc": "name",
        "a.hooks.corp": None,
        "hooks.corp": "name",
        "ahooks.corp": "name",
        "example.com": None,
        "a.example.com": "name",
        "a.b.example.com": "name",
        "aexample.com": None,
    }
    assert {host: refused(f"http://{host}/", policy) for host in tried} == tried
    assert aimed("http://a.svc/", policy).named
    assert not aimed("http://aexample.com/", policy).named


METADATA = ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254",
     "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::a9fe:a9fe", "::ffff:0:a9fe:a9fe", "168.63.129.16", "fd00:ec2::254"]  # fmt: skip


def test_metadata_stays_shut_unless_named_exactly():
    wide = EgressPolicy(allow=parse_places(["0.0.0.0/0", "::/0"]))
    for address in METADATA:
        assert judge_address(address, wide) is not None, address
        assert judge_address(address, wide, named=True) is not None, address


def test_metadata_named_exactly_is_open():
    policy = EgressPolicy(allow=parse_places(["169.254.169.254/32", "fd00:ec2::254"]))
    assert judge_address("169.254.169.254", policy) is None
    assert judge_address("fd00:ec2::254", policy) is None


def test_deny_wins():
    policy = EgressPolicy(
        allow=parse_places(["10.0.0.0/8", "shop.example.com"]),
        deny=parse_places(["10.9.0.0/16", "8.8.8.0/24", "example.com"]),
    )
    assert judge_address("10.1.1.1", policy) is None
    assert judge_address("10.9.1.1", policy) is not None
    assert judge_address("8.8.8.8", policy) is not None
    assert refused("http://8.8.8.8/", policy) == "literal"
    assert refused("https://shop.example.com/", policy) == "name"
    assert refused("https://example.com./", policy) == "name"
    assert aimed("https://notexample.com/", policy)


def test_nat64_inherits_the_verdict_on_what_it_carries():
    policy = EgressPolicy(nat64=True)
    assert judge_address("64:ff9b::808:808", policy) is None
    assert judge_address("64:ff9b::7f00:1", policy) is not None
    assert judge_address("64:ff9b::a9fe:a9fe", policy) is not None
    assert judge_address("64:ff9b:1::808:808", policy) is not None
    assert (
        judge_address("64:ff9b::808:808", EgressPolicy(nat64=True, deny=parse_places(["8.8.8.8"])))
        is not None
    )


def test_https_only():
    policy = EgressPolicy(https_only=True)
    assert refused("http://example.com/", policy) == "scheme"
    assert aimed("https://example.com/", policy)


def test_ports_exclusion_wins_in_any_order():
    ports = parse_ports("!5000-5002, 443 ,1024-65535,!6379")
    assert 443 in ports
    assert 1024 in ports
    assert 65535 in ports
    assert 80 not in ports
    assert 5001 not in ports
    assert 6379 not in ports
    assert 5003 in ports
    assert 5432 not in parse_ports(PORTS)


NO_PORTS = ["", "!80", "a", "80;443", "0", "65536", "1-", "-1", "90-80", "80,,x", "８０", "1-2-3", "!!80", "1e3", "+80"]  # fmt: skip


def test_ports_that_cannot_be_read_are_named():
    for text in NO_PORTS:
        with pytest.raises(ValueError, match=r"port|range"):
            parse_ports(text)


NO_PLACES = ["*", "*.", "*.1.2.3.4", "a.*.com", "*x.com", "*.*.com", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "http://a", "a b", "fe80::/200", "", "1.2.3.4.5"]  # fmt: skip


def test_places_that_cannot_be_read_are_named():
    for text in NO_PLACES:
        with pytest.raises(ValueError, match=r"neither|nor"):
            parse_places([text])


def test_no_refusal_names_an_address():
    for address in HOSTILE:
        refusal = judge_address(address, OPEN)
        assert refusal is not None
        assert address not in refusal.why


WHY = [
    ("http://192.168.1.4/", "192.168.1.4 is a private address; allow it with egress.allow"),
    ("http://[fd00::1]/", "fd00::1 is a private address; allow it with egress.allow"),
    ("http://127.0.0.1/", "127.0.0.1 is a loopback address; allow it with egress.allow"),
    ("http://[fe80::1]/", "fe80::1 is a link-local address; allow it with egress.allow"),
    ("http://192.0.2.1/", "192.0.2.1 is a special-purpose address; allow it with egress.allow"),
    ("http://169.254.169.254/", "169.254.169.254 is a cloud metadata address; allow it with egress.allow, listed by itself"),
    ("http://0x7f.1/", "its address must be written as in 198.51.100.7 or [2001:db8::7]"),
    ("http://[::g]/", "its address must be written as in 198.51.100.7 or [2001:db8::7]"),
    ("http://hooks.internal/", "its host name is not public; allow it with egress.allow"),
    ("http://a b.example/", "it contains a space, a backslash or an unprintable character"),
    ("http://a..example/", "its host name is not valid, or has characters that look like others"),
    ("http://a.example:5432/", "port 5432 is not in egress.ports"),
    ("http://a.example:999999/", "its port must be 1 to 65535"),
    ("localhost:9101/x", "it starts with 'localhost:'; it must start with http:// or https://"),
    ("a.example", "it must start with http:// or https://"),
    ("http:///x", "it has no host"),
    ("http://a.example:x/", "its port must be a number"),
    ("http://canary@a.example/", "it must not contain a user name or password; use a header or auth instead"),
    ("http://a%2e.example/", "its host and port must not be percent-encoded"),
]  # fmt: skip


def test_a_refusal_says_what_was_found_and_what_to_do():
    assert [(url, parse(url, OPEN).why) for url, _ in WHY] == WHY
    denied = EgressPolicy(deny=parse_places(["93.184.216.0/24", "a.example"]))
    assert parse("http://93.184.216.34/", denied).why == "93.184.216.34 is in egress.deny"
    assert parse("http://hooks.a.example/", denied).why == "its host name is in egress.deny"
    assert parse("http://a.example/", EgressPolicy(https_only=True)).why.startswith(
        "it must start with https://"
    )
    assert why_closed("10.0.0", OPEN) == "'10.0.0' is not an IP address"


AUTHORITIES = st.text(alphabet="a1.:@[]%-_xX0７①。\\/?# éſ\u00ad\n", max_size=30)


@given(
    st.text(max_size=80)
    | st.builds("http://{}".format, AUTHORITIES)
    | st.builds("https://{}/p".format, st.text())
)
def test_parse_never_raises_and_returns_only_safe_request_lines(url):
    answer = parse(url, OPEN)
    if isinstance(answer, Refusal):
        assert answer.name in NAMES
        return
    for text in (answer.target, answer.host_header, answer.host):
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
    assert answer.target.startswith("/")


@given(st.text(alphabet="0123456789abcdefx.:%", max_size=40) | st.text())
def test_judging_never_raises(address):
    judge_address(address, OPEN)


@given(st.text(alphabet="0123456789xabcdefX.", min_size=1, max_size=24))
def test_what_the_system_would_read_as_an_inner_address_is_refused(host):
    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return
    answer = parse(f"http://{host}/", OPEN)
    if isinstance(answer, Destination):
        assert answer.address == address == host
        assert ipaddress.ip_address(address).is_global


@given(st.ip_addresses(v=4))
def test_every_form_that_carries_an_ipv4_address_is_refused(address):
    for prefix in ("::", "::ffff:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::"):
        assert judge_address(f"{prefix}{address}", OPEN) is not None


@given(st.ip_addresses(v=6))
def test_ipv6_is_public_only_in_the_global_block(address):
    if judge_address(str(address), OPEN) is None:
        assert int(address) >> 125 == 1
