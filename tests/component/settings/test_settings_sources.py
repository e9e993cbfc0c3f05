"""Where settings come from: which place wins; all faults are reported at once, in words, without a secret."""

from __future__ import annotations

import pytest

from pghookd.settings import schema as core
from pghookd.settings.load import SettingsError, exposed, load, variable
from support.fault_server import Certificates


@pytest.fixture
def toml(tmp_path):
    def write(text):
        file = tmp_path / "pghookd.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def credentials(tmp_path):
    def write(files):
        folder = tmp_path / "credentials"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    return write


def faults_of(config=None, environ=None, folder=None):
    with pytest.raises(SettingsError) as raised:
        load(config, environ or {}, folder)
    return raised.value


def test_nothing_given_means_the_defaults():
    assert load(None, {"PATH": "/bin", "PGHOOKD_TEST_DATABASE_URL": "x"}, None) == core.Settings()


def test_environment_wins_over_credentials_over_toml(toml, credentials):
    config = toml(
        '[smtp]\nusername = "toml"\npassword = "toml"\n[poll]\nfallback_s = 1\n[storm]\nhosts_min = 3\n'
    )
    folder = credentials({"smtp.username": b"file", "smtp.password": b"file\n", "poll.fallback_s": b"2\r\n"})
    settings = load(config, {"PGHOOKD_SMTP_USERNAME": "env"}, folder)
    assert settings.smtp.username == "env"
    assert settings.smtp.password.get_secret_value() == "file"
    assert settings.poll.fallback_s == 2
    assert settings.storm.hosts_min == 3


@pytest.mark.parametrize("name", core.NAMES)
def test_every_setting_has_its_variable_and_its_credential(name, credentials, tmp_path):
    value = "x@y.example" if name in {"mail.sender", "mail.reply_to", "mail.operator"} else None
    current = core.value_of(core.Settings(), name)
    text = value or {
        "retry.schedule": "1s",
        "mail.reminders": "1h",
        "egress.ports": "443",
        "egress.allow": "10.0.0.0/8",
        "egress.deny": "10.0.0.0/8",
        "egress.proxy": "http://p.example:1",
        "egress.ca_file": str(Certificates(tmp_path).ca_file) if name == "egress.ca_file" else "",
        "database.url": "postgresql://h/d",
        "log.successes": "all",
        "secrets.key": "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=",
        "mail.unsubscribe_url": "https://x.example/{token}",
        "mail.console_url": "https://x.example",
        "mail.help_url": "https://x.example",
    }.get(name, str(current) or "x")
    rest = {"PGHOOKD_MAIL_SENDER": "x@y.example"} if name == "smtp.host" else {}
    assert load(None, {variable(name): text, **rest}, None) == load(
        None, rest, credentials({name: text.encode()})
    )


def test_lists_in_the_environment_are_split_at_commas():
    settings = load(None, {"PGHOOKD_EGRESS_ALLOW": "10.0.0.0/8, 127.0.0.0/8"}, None)
    assert settings.egress.allow == ("10.0.0.0/8", "127.0.0.0/8")


def test_lists_in_toml_may_be_lists(toml):
    assert load(toml('[egress]\nports = ["80", "443"]\n'), {}, None).egress.ports == ("80", "443")


def test_all_faults_are_reported_at_once_each_with_its_place(toml, credentials):
    config = toml(
        '[delivery]\ntimeout_s = "soon"\ngrace_s = 0\n[retry]\nschedule = "5s,5x"\n[logs]\n[pool]\nx = 1\n'
    )
    folder = credentials({"database.rul": b"postgresql://h/d", "smtp.port": b"mail"})
    environ = {
        "PGHOOKD_DELIVRY_SHARDS": "3",
        "PGHOOKD_STORM_SHARE": "2",
        "pghookd_poll_fallback_s": "1",
        "PGHOOKD_DATABASE_LEASE_S": "1",
    }
    told = faults_of(config, environ, folder).faults
    expected = [
        "PGHOOKD_DELIVRY_SHARDS is not a setting: did you mean PGHOOKD_DELIVERY_SHARDS?",
        "pghookd_poll_fallback_s is not a setting: did you mean PGHOOKD_POLL_FALLBACK_S?",
        f"the credential database.rul (in {folder}) is not a setting: did you mean database.url?",
        f"[logs] in {config} is not a section: did you mean log?",
        f"[pool] in {config} is not a section: did you mean poll?",
        "PGHOOKD_STORM_SHARE must be 1 or less (it is '2')",
        f"the credential smtp.port (in {folder}) must be a whole number (it is 'mail')",
        f"retry.schedule in {config} is wrong: '5x' is not a duration such as 5s, 5m, 2h or 1d (it is '5s,5x')",
        f"delivery.grace_s in {config} must be more than 0 (it is '0')",
        f"delivery.timeout_s in {config} must be a number (it is 'soon')",
        (
            "PGHOOKD_DATABASE_LEASE_S must be at least twice database.heartbeat_s"
            " (database.lease_s is 1.0, database.heartbeat_s is 2.0 by default)"
        ),
    ]
    assert list(told) == expected


def test_the_message_counts_and_lists():
    error = faults_of(environ={"PGHOOKD_A": "1", "PGHOOKD_B": "1"})
    assert str(error).splitlines()[0] == "2 errors in the settings:"
    assert len(str(error).splitlines()) == 3


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"PGHOOKD_DATABASE_URL": "mysql://u:hunter2@h/d"}, "PGHOOKD_DATABASE_URL"),
        ({"PGHOOKD_DATABASE_URL": "postgresql://u:hunter2:x/y@h/d"}, "PGHOOKD_DATABASE_URL"),
        ({"PGHOOKD_EGRESS_PROXY": "hunter2"}, "PGHOOKD_EGRESS_PROXY"),
        ({"PGHOOKD_SMTP_PASSWROD": "hunter2"}, "PGHOOKD_SMTP_PASSWROD"),
    ],
)
def test_a_secret_is_never_shown(environ, place):
    error = faults_of(environ=environ)
    chain, texts = error, []
    while chain is not None:
        texts.append(str(chain))
        chain = None if chain.__suppress_context__ else chain.__cause__ or chain.__context__
    assert "hunter2" not in " ".join(texts)
    assert place in texts[0]


def test_a_secret_of_the_wrong_type_in_toml_is_not_shown(toml):
    assert "4711" not in str(faults_of(toml("[smtp]\npassword = 4711\n")))


def test_a_named_file_must_be_there_and_readable(tmp_path, toml):
    assert "No such file" in str(faults_of(tmp_path / "none.toml"))
    assert "is not valid TOML" in str(faults_of(toml("[delivery\n")))
    assert "must be a section" in str(faults_of(toml("delivery = 3\n")))


def test_a_credentials_folder_must_be_there_and_hold_texts(tmp_path, credentials):
    assert "cannot be read" in str(faults_of(folder=tmp_path / "none"))
    folder = credentials({"smtp.password": b"\xff\xfe", "secrets.key": b"x" * 70_000, ".hidden": b""})
    (folder / "database.url").mkdir()
    told = str(faults_of(folder=folder))
    assert told.count("cannot be read") == 3
    assert "not UTF-8" in told


def test_what_is_right_is_kept_for_those_who_look_further():
    error = faults_of(environ={"PGHOOKD_DATABASE_URL": "postgresql://h/d", "PGHOOKD_STORM_SHARE": "x"})
    assert error.rest is not None
    assert error.rest.database.url.get_secret_value() == "postgresql://h/d"
    assert faults_of(environ={"PGHOOKD_DATABASE_URL": "h"}).rest is None


def test_secrets_in_the_environment_are_noticed():
    environ = {
        "PGHOOKD_DATABASE_URL": "postgresql://u@h/d",
        "PGHOOKD_EGRESS_PROXY": "http://proxy.example:3128",
        "PGHOOKD_SMTP_PASSWORD": "x",
        "PGHOOKD_SECRETS_KEY": "",
    }
    assert exposed(environ) == ("PGHOOKD_SMTP_PASSWORD",)
    environ |= {
        "PGHOOKD_DATABASE_URL": "postgresql:///d?user=u&password=x",
        "PGHOOKD_EGRESS_PROXY": "http://u:p@proxy.example:3128",
    }
    assert exposed(environ) == ("PGHOOKD_DATABASE_URL", "PGHOOKD_EGRESS_PROXY", "PGHOOKD_SMTP_PASSWORD")


def test_certificates_that_cannot_be_used_are_a_fault(tmp_path):
    (tmp_path / "empty.pem").touch()
    told = []
    for file in (tmp_path / "none.pem", tmp_path / "empty.pem", tmp_path):
        with pytest.raises(SettingsError) as caught:
            load(None, {"PGHOOKD_EGRESS_CA_FILE": str(file)}, None)
        told += [fault.partition(" (")[0] for fault in caught.value.faults]
    assert told == [
        "PGHOOKD_EGRESS_CA_FILE cannot be used: No such file or directory",
        "PGHOOKD_EGRESS_CA_FILE cannot be used: it contains no certificate in PEM",
        "PGHOOKD_EGRESS_CA_FILE cannot be used: Is a directory",
    ]
