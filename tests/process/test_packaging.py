"""The packages: wheel and sdist work away from here; the unit and the example settings are in order."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from pghookd import __version__
from pghookd.egress import destination
from pghookd.settings import schema as core
from pghookd.settings.load import load

ROOT = Path(__file__).parents[2]


def run(*command, cwd=ROOT, **variables):
    environ = {
        key: value for key, value in os.environ.items() if not key.startswith(("PGHOOKD_", "PYTHON", "PG"))
    }
    done = subprocess.run(
        command, cwd=cwd, env=environ | variables, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist; the wheel is built from the sdist, so that both hold all that is needed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A new environment with the wheel; ours lends what it depends on, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    purelib = Path(
        run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    )
    pip = [sys.executable, "-m", "pip", f"--python={python}"]
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", str(built[0]))
    # Behind the wheel on sys.path, and its own .pth files are not read: our editable install stays out.
    (purelib / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_wheel_and_sdist_hold_sql_and_letters_and_nothing_foreign(built):
    wheel, sdist = built
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    for file in (ROOT / "sql").rglob("*.sql"):
        name = file.relative_to(ROOT).as_posix()
        assert f"pghookd/{name}" in in_wheel
        assert name in in_sdist
    for file in (ROOT / "daemon" / "pghookd" / "owner_mail" / "letters").rglob("*.*"):
        name = file.relative_to(ROOT).as_posix()
        assert name.removeprefix("daemon/") in in_wheel
        assert name in in_sdist
    assert {"pghookd/py.typed", "pghookd/settings/schema.py"} <= in_wheel
    assert {name.split("/")[0] for name in in_wheel} == {"pghookd", f"pghookd-{__version__}.dist-info"}
    assert {"pyproject.toml", "README.md", "LICENSE", "systemd/pghookd.service"} <= in_sdist
    assert {"CONTRIBUTING.md", "SECURITY.md"} <= in_sdist
    assert {f"{folder}/README.md" for folder in ("daemon", "sql", "systemd", "tests")} <= in_sdist


@pytest.mark.slow
async def test_the_installed_command_works_from_anywhere(installed, database_url):
    where = run(str(installed / "python"), "-c", "import pghookd; print(pghookd.__file__)", cwd="/").stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run(str(installed / "pghookd"), "--version", cwd="/").stdout == f"pghookd {__version__}\n"
    done = run(str(installed / "pghookd"), "migrate", "--roles", cwd="/", PGHOOKD_DATABASE_URL=database_url)
    assert "applied 0001_" in done.stdout
    done = run(str(installed / "pghookd"), "check", cwd="/", PGHOOKD_DATABASE_URL=database_url)
    assert "schema: at migration" in done.stdout


# systemd ----------------------------------------------------------------------------------------------------

UNIT = ROOT / "systemd" / "pghookd.service"
EXAMPLE = ROOT / "systemd" / "pghookd.toml"


def directives():
    """The unit's directives, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def with_an_existing_program(folder):
    copy = folder / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    return copy


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"
)


@needs_analyze
def test_systemd_takes_the_unit_without_a_word(tmp_path):
    done = run("systemd-analyze", "verify", str(with_an_existing_program(tmp_path)))
    assert done.stderr == ""  # unknown keys are reported there, with a status of 0


@needs_analyze
def test_systemd_finds_the_unit_well_locked(tmp_path):
    done = run(
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--threshold=11",
        str(with_an_existing_program(tmp_path)),
    )
    assert "Overall exposure level" in done.stdout


def test_the_second_wall_has_every_metadata_address_of_the_first():
    networks = [ipaddress.ip_network(each) for line in directives()["IPAddressDeny"] for each in line.split()]
    for address in destination._METADATA:
        assert any(address in network for network in networks), address


def test_the_unit_agrees_with_the_daemon():
    unit, settings = directives(), core.Settings()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert unit["ExecStart"] == ["/opt/pghookd/bin/pghookd run --config /etc/pghookd/pghookd.toml"]
    assert unit["RestartPreventExitStatus"] == ["2 78"]
    assert float(unit["TimeoutStopSec"][0]) > settings.delivery.grace_s
    assert float(unit["WatchdogSec"][0]) >= 2 * settings.database.heartbeat_s
    credentials = re.findall(
        r"(?m)^#?LoadCredential=([^:\n]+):/etc/pghookd/credentials/(\S+)$", UNIT.read_text()
    )
    assert credentials
    for name, file in credentials:
        assert name in core.SECRETS
        assert name == file


def test_the_example_lists_every_setting_with_its_default(tmp_path):
    text = EXAMPLE.read_text().replace("pghookd/VERSION", f"pghookd/{__version__}")
    uncommented = re.sub(r"(?m)^#(?=[a-z0-9_]+ = )", "", text)
    listed = [
        f"{section}.{name}" for section, values in tomllib.loads(uncommented).items() for name in values
    ]
    assert tuple(listed) == core.NAMES
    file = tmp_path / "pghookd.toml"
    for content in (text, uncommented):
        file.write_text(content)
        assert load(file, {}, None) == core.Settings()
