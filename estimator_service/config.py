"""The environment -> frozen settings, read once; a value that can't be is named in the error."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PRICES_FILE = Path(__file__).parent / "data" / "prices.json"


class ConfigError(Exception):
    """A variable of the environment can't be used; the text is one line that names it."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, populate_by_name=True)

    # HOST:PORT (port 0: any free one), [::1]:PORT or unix:/PATH.
    listen: str = Field(default="127.0.0.1:7461", validation_alias="PARLEY_ESTIMATOR_LISTEN")
    database: Path = Field(default=Path("var/estimator.db"), validation_alias="PARLEY_ESTIMATOR_DATABASE")
    # In the form of data/prices.json, which it replaces.
    rates_file: Path = Field(default=PRICES_FILE, validation_alias="PARLEY_RATES_FILE")
    tls_certificate: Path | None = Field(default=None, validation_alias="PARLEY_TLS_CERTIFICATE")
    tls_key: Path | None = Field(default=None, validation_alias="PARLEY_TLS_KEY")
    tls_client_ca: Path | None = Field(default=None, validation_alias="PARLEY_TLS_CLIENT_CA")
    tokens_file: Path | None = Field(default=None, validation_alias="PARLEY_TOKENS_FILE")
    allow_insecure: bool = Field(default=False, validation_alias="PARLEY_ALLOW_INSECURE")
    drain_s: float = Field(default=10.0, ge=0, le=3_600, allow_inf_nan=False, validation_alias="PARLEY_DRAIN_S")


def read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}.") from None
