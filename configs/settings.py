"""The settings of each daemon and of a new network. A value comes from a flag, else the environment (`DIPTYCH_…`), else the TOML file, else its default.

Paths in a TOML file are relative to that file.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from configs.files import read_text
from crypto import schemes
from crypto.errors import Malformed
from crypto.split import MAX_ISSUERS
from protocol.quorum import Mode

Transport = Literal["libp2p", "tls"]
"""What carries a chain's messages: py-libp2p, or mutual TLS 1.3. All nodes of a chain use the same."""

Pairing = Literal["mcl", "mcl-plain", "arkworks"]
"""The library that computes pairings (`crypto.group`)."""


class Layered(BaseSettings):
    """Values from flags, environment and a TOML file, in this order."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_", extra="forbid", frozen=True)

    @classmethod
    def load(cls, path: Path, **flags: Any) -> Self:
        """Read and validate; `Malformed` lists every wrong field with the place it comes from."""
        text = read_text(path)
        try:
            tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # no TOML, or a number too long
            raise Malformed(f"{path} is not valid TOML: {error}") from None

        class FromFile(cls):  # type: ignore[valid-type,misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: Any,
                env_settings: Any,
                **_: Any,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, _RelativePaths(settings_cls, path)

        try:
            values = FromFile(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise Malformed(
                f"{path} (with environment and flags) is not a valid configuration: {faults}"
            ) from None
        return values


class _RelativePaths(TomlConfigSettingsSource):
    """The TOML file, with `network`, `keys` and `data` taken relative to it."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path) -> None:
        self._folder = path.parent
        super().__init__(settings_cls, path)

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        return {
            k: self._folder / Path(v).expanduser()
            if k in ("network", "keys", "data") and isinstance(v, str)
            else v
            for k, v in values.items()
        }


class Settings(Layered):
    """Common to all daemons: the listening HTTP address, the network file, the folders of keys and data, where the passphrase of the key
    files comes from, the command that signs in place of a signing key there (`configs.signer`), and the pairing library to be preferred to
    the fastest."""

    network: Path
    keys: Path
    data: Path
    http_host: str = "127.0.0.1"
    http_port: int = Field(ge=0, le=65535)
    passphrase_command: str | None = None
    passphrase_fd: int | None = Field(default=None, ge=0)
    signer_command: str | None = None
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    log_json: bool = False
    pairing: Pairing | None = None

    @field_validator("network", "keys", "data")
    @classmethod
    def _expanded(cls, path: Path) -> Path:
        return path.expanduser().absolute()


class NodeSettings(Settings):
    """One consensus node: `chain` is storage or sharing, `name` its member name in that chain's genesis. `chaos` lets faults be
    injected over its HTTP address, which must then be loopback (docs/chaos.md)."""

    chain: str = Field(pattern="^(storage|sharing)$")
    name: str
    transport: Transport = "libp2p"
    p2p_host: str = "127.0.0.1"
    p2p_port: int = Field(ge=1, le=65535)
    chaos: bool = False

    @model_validator(mode="after")
    def _chaos_stays_here(self) -> Self:
        if self.chaos and self.http_host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                "chaos = true lets whoever reaches http_host break the node: set it to 127.0.0.1"
            )
        return self


class CloudSettings(Settings):
    """The cloud server: quotas are per patient."""

    quota_bytes: int = Field(default=10 << 30, ge=1)
    quota_blobs: int = Field(default=1_000_000, ge=1)


class AuthoritySettings(Settings):
    """The attribute authority: how long its credentials last."""

    credential_days: int = Field(default=365, ge=1, le=3650)


class NetworkSettings(Layered):
    """The shape of a new network: how many nodes a chain, which quorum, how patient, which CP-ABE scheme, and how many authorities issue
    its keys, `authority_threshold` of them together (by default a majority)."""

    storage: int = Field(default=4, ge=1, le=32)
    sharing: int = Field(default=4, ge=1, le=32)
    mode: Mode = "bft"
    transport: Transport = "libp2p"
    base_timeout_ms: int = Field(default=1000, ge=50, le=60_000)
    term_length: int = Field(default=64, ge=1, le=1024)
    scheme: schemes.Name = "fabeo"
    authorities: int = Field(default=1, ge=1, le=MAX_ISSUERS)
    authority_threshold: int | None = Field(default=None, ge=1, le=MAX_ISSUERS)

    @model_validator(mode="after")
    def _authorities_fit(self) -> Self:
        if not (self.authorities == self.threshold == 1 or 2 <= self.threshold <= self.authorities):
            raise ValueError("of several authorities, 2 to all are needed (authority_threshold); of one, 1")
        if self.authorities > 1 and self.scheme != "fabeo":
            raise ValueError("several authorities issue keys of the scheme fabeo together, of no other")
        return self

    @property
    def threshold(self) -> int:
        """How many authorities issue a key."""
        return self.authority_threshold or self.authorities // 2 + 1
