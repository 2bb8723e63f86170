"""Settings of the orchestrator: from the environment, read once, checked once, named in the error."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from parley.wire.errors import BootError
from parley.wire.server import ServerSettings
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PARLEY_", frozen=True, extra="ignore", populate_by_name=True)

    # HOST:PORT, [::1]:PORT or unix:/PATH.
    orchestrator_listen: str = "127.0.0.1:7460"
    orchestrator_database: Path = Path("var/orchestrator.db")
    # Where the estimator listens, and how it is reached.
    estimator: str = "127.0.0.1:7461"
    estimator_token: SecretStr | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens_file: Path | None = None
    allow_insecure: bool = False
    # How long calls in flight may take to end when the process is told to.
    drain_s: float = Field(default=90.0, ge=0, le=3600)
    # The model of specs that name none.
    model: str = "claude-sonnet-5-5"
    max_concurrency: int = Field(default=10, ge=1, le=1000)
    max_conversations: int = Field(default=100_000, ge=1, le=1_000_000)
    max_watchers: int = Field(default=500, ge=1, le=100_000)
    # Of all batches together; what the provider announces where it is not set.
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    # The most that a UTC day may cost, in dollars: all batches of this server, and those of each owner.
    daily_budget: Decimal | None = Field(default=None, ge=0, le=1_000_000_000)
    owner_daily_budget: Decimal | None = Field(default=None, ge=0, le=1_000_000_000)
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str = Field(
        default="https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL", pattern=r"^https?://[^/ ]+"
    )

    def server(self) -> ServerSettings:
        return ServerSettings(
            listen=self.orchestrator_listen,
            tls_certificate_file=self.tls_certificate,
            tls_key_file=self.tls_key,
            tls_client_ca_file=self.tls_client_ca,
            tokens_file=self.tokens_file,
            allow_insecure=self.allow_insecure,
            drain_s=self.drain_s,
            listen_setting="PARLEY_ORCHESTRATOR_LISTEN",
        )


def load() -> Settings:
    """Raises BootError with the variable at fault."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        variable = name if name.startswith("ANTHROPIC_") else f"PARLEY_{name.removeprefix('PARLEY_')}"
        raise BootError(f"{variable} is wrong: {first['msg']}.") from error
