"""Shared by the tests of producers' ORMs and of receivers' recipes: Django, which is configured once in a process."""

from __future__ import annotations

import django
import pytest
from django.conf import settings


@pytest.fixture(scope="session")
def configured_django():
    """Configure Django; a test overrides what it needs (django.test.utils.override_settings)."""
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, INSTALLED_APPS=[], USE_TZ=True
    )
    django.setup()
