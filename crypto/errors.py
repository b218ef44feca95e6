"""The one exception tree of Diptych.

The text of every error is a sentence for a person: what is wrong and what to do. It never carries a key, a plaintext or
patient data, so it may be logged and shown as it is.
"""


class DiptychError(Exception):
    """Root of every refusal that Diptych makes on purpose; `code` is for programs, where they must tell refusals of one class apart."""

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Malformed(DiptychError):
    """Something from outside (bytes, JSON, TOML, an argument) is not in the form it must have."""


class PolicyError(Malformed):
    """An access policy does not parse; `column` (from 1) is where."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(f"{message} (column {column})")
        self.column = column


class Unauthentic(DiptychError):
    """A signature, hash, certificate or authentication tag does not hold: somebody changed or forged something."""


class Denied(DiptychError):
    """The request is understood and refused: rights, rule, expiry."""


class NotFound(DiptychError):
    """The thing asked for is not here."""


class Unavailable(DiptychError):
    """A server or network does not answer now; trying again later may help."""


class Conflict(DiptychError):
    """The state does not allow it: already done, wrong version, in use by another process."""
