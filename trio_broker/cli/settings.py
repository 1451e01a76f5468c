"""Where settings come from: flags > TRIO_BROKER_* variables > a TOML file > defaults.

Owns:      reading and merging the sources, and errors that say what is wrong, where, and what to do.
Not here:  which settings there are, and their checks (trio_broker/config.py).
"""

import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from trio_broker.cli.running import USAGE, Failure
from trio_broker.config import Config

PREFIX = "TRIO_BROKER_"
SECRETS = ("store", "store_listen")
"""Settings that may hold a password. Each may also be in a file, which its variable with ``_FILE`` appended names."""
SECRET_MAX_BYTES = 64 * 1024
"""The largest such file."""

_OF_CLIENTS = {f"CLIENT_TLS{part}" for part in ("", "_CA", "_CERT", "_KEY", "_SERVER_NAME")}
_NOT_OF_SERVE = {"CONFIG", "SERVER", "METRICS", *_OF_CLIENTS}

# What Kubernetes puts into every container for a service named trio-broker, or trio-broker-metrics, and so on.
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)

_PLAIN_WORDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be words, or a list of them",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


class ConfigError(Failure):
    """The settings cannot be used; the text says what is wrong, where it is written, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(text, USAGE)


class Settings(NamedTuple):
    """What was read."""

    config: Config
    unknown_variables: dict[str, str | None]
    """TRIO_BROKER_* variables that are no settings, with the one that may be meant."""


class _Given(NamedTuple):
    """A value as it is written somewhere."""

    value: object
    origin: str


class _Sources(Config, BaseSettings):
    """Lets pydantic-settings look for the fields of `Config`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, enable_decoding=False)  # lists are words, not JSON


def load(flags: Mapping[str, object], file: Path | None) -> Settings:
    """Read all sources; ``flags`` holds those that were given, by setting.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return Settings(_checked(_gather(Config.model_fields, flags, file)), unknown_variables(os.environ))


def load_one(name: str, flagged: str | None, file: Path | None) -> Any:  # noqa: ANN401 - as the setting is
    """Read one setting, for a command that needs no other; ``flagged`` is what its flag says, if it was given.

    The others may be anything: in a container they are often completed by flags that only ``serve`` is given.

    Raises:
        ConfigError: as `load` does.
    """
    given = _gather([name], {} if flagged is None else {name: flagged}, file)
    return getattr(_checked({name: given[name]} if name in given else {}), name)


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Find TRIO_BROKER_* variables that are no settings, each with the one that may be meant."""
    known = (
        {name.upper() for name in Config.model_fields} | {f"{name.upper()}_FILE" for name in SECRETS} | _NOT_OF_SERVE
    )
    unknown: dict[str, str | None] = {}
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(PREFIX)
        if not variable.startswith(PREFIX) or name in known:
            continue
        if not _SERVICE_LINK.fullmatch(f"{name}={value}"):
            meant = _meant(name, known)
            unknown[variable] = meant and PREFIX + meant
    return unknown


def _gather(names: Collection[str], flags: Mapping[str, object], file: Path | None) -> dict[str, _Given]:
    """Collect what is given of the settings ``names``, and all that is in the file."""
    return {
        **({name: _Given(value, f"{name} in {file}") for name, value in _read_file(file).items()} if file else {}),
        **_read_environment(names),
        **{name: _Given(value, flag(name)) for name, value in flags.items()},
    }


def _checked(given: Mapping[str, _Given]) -> Config:
    try:
        return Config.model_validate({name: value for name, (value, _) in given.items()})
    except ValidationError as error:
        raise ConfigError(_tell(error, {name: origin for name, (_, origin) in given.items()})) from None


def _read_environment(names: Collection[str]) -> dict[str, _Given]:
    found: dict[str, Any] = EnvSettingsSource(_Sources)()
    given = {name: _Given(found[name], PREFIX + name.upper()) for name in names if name in found}
    for name in SECRETS:
        variable = f"{PREFIX}{name.upper()}_FILE"
        if name not in names or variable not in os.environ:
            continue
        if name in given:
            raise ConfigError(f"{given[name].origin} and {variable} are both set: leave one of them out")
        given[name] = _Given(_read_secret(variable, Path(os.environ[variable])), variable)
    return given


def _read_secret(variable: str, path: Path) -> str:
    """Return the one line of a file. No error tells what it holds."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{variable}: {path} is no regular file")
        with path.open("rb") as file:
            content = file.read(SECRET_MAX_BYTES + 1)
        secret = content.decode("utf-8-sig").strip()  # a file usually ends with a newline, on Windows begins with a BOM
    except OSError as error:
        raise ConfigError(f"{variable}: cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{variable}: {path} is not text in UTF-8") from None
    if len(content) > SECRET_MAX_BYTES:
        raise ConfigError(f"{variable}: {path} is larger than {SECRET_MAX_BYTES} bytes")
    if not secret:
        raise ConfigError(f"{variable}: {path} is empty")
    if len(secret.splitlines()) > 1:
        raise ConfigError(f"{variable}: {path} has more than one line")
    return secret


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():  # pydantic-settings takes a missing file for an empty one
        raise ConfigError(f"cannot read the settings in {file}: no such file")
    try:
        found: dict[str, Any] = TomlConfigSettingsSource(_Sources, file)()
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return found


def _tell(error: ValidationError, origins: Mapping[str, str]) -> str:
    problems = [_problem(details, origins) for details in error.errors()]
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} settings are wrong:", *problems])


def _problem(details: ErrorDetails, origins: Mapping[str, str]) -> str:
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden":
        meant = _meant(name, Config.model_fields)
        return f"{origins[name]}: no such setting" + (f"; did you mean {meant}?" if meant else "")
    words = _PLAIN_WORDS.get(details["type"], details["msg"]).format_map(details.get("ctx", {}))
    got = "" if details["type"] == "value_error" else f", not {details['input']!r}"  # those texts name the value
    return f"{origins[name]}: {words}{got}" if name else words


def _meant(name: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.7)), None)
