"""Where settings come from, which wins, and how mistakes are told."""

import os
from pathlib import Path

import pytest
import trio

from trio_broker.cli.main import run_command_line
from trio_broker.cli.settings import (
    SECRET_MAX_BYTES,
    SECRETS,
    ConfigError,
    Settings,
    flag,
    load,
    load_one,
    unknown_variables,
)
from trio_broker.config import Config


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Config.model_fields:
        monkeypatch.delenv(f"TRIO_BROKER_{name.upper()}", raising=False)
        monkeypatch.delenv(f"TRIO_BROKER_{name.upper()}_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.toml"


def told(flags: dict[str, object], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(flags, file)
    return str(error.value)


def test_flags_go_before_variables_before_the_file_before_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('grace = "1s"\ncommit_timeout = 2.5\nstore_grace = "3s"\nno_migrate = true\n')
    monkeypatch.setenv("TRIO_BROKER_COMMIT_TIMEOUT", "20s")
    monkeypatch.setenv("TRIO_BROKER_STORE_GRACE", "30s")
    config = load({"store_grace": "300s"}, file).config
    assert (config.grace, config.commit_timeout, config.store_grace) == (1, 20, 300)
    assert config.no_migrate is True
    assert config.listen == Config().listen


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("no", False), ("FALSE", False)])
def test_switches_are_written_in_variables_as_usual(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_BROKER_ALLOW_ANONYMOUS", text)
    assert load({}, None).config.allow_anonymous is value


def test_lists_are_words_in_flags_and_variables_and_lists_in_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('metrics_subjects = ["in.file", "too"]')
    assert load({}, file).config.metrics_subjects == ("in.file", "too")
    monkeypatch.setenv("TRIO_BROKER_METRICS_SUBJECTS", "in.variable too")
    assert load({}, file).config.metrics_subjects == ("in.variable", "too")
    assert load({"metrics_subjects": "in.flag"}, file).config.metrics_subjects == ("in.flag",)
    file.write_text("metrics_subjects = 7")
    monkeypatch.delenv("TRIO_BROKER_METRICS_SUBJECTS")
    assert told({}, file) == f"metrics_subjects in {file}: must be words, or a list of them, not 7"


def test_a_wrong_value_is_told_with_the_place_where_it_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told({"grace": "soon"}).startswith("--grace: not a duration: 'soon'; write 250ms")
    assert told({"queue_messages": "many"}) == "--queue-messages: must be a whole number, not 'many'"
    file.write_text("queue_messages = 0")
    assert told({}, file) == f"queue_messages in {file}: must be more than 0, not 0"
    monkeypatch.setenv("TRIO_BROKER_LOG_LEVEL", "loud")
    assert told({}) == "TRIO_BROKER_LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', not 'loud'"


def test_an_exposed_listener_is_refused_with_the_flag_that_allows_it() -> None:
    assert "--allow-anonymous" in told({"listen": "0.0.0.0:50051"})
    assert load({"listen": "0.0.0.0:50051", "allow_anonymous": True}, None).config.allow_anonymous


def test_everything_that_is_wrong_is_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("flush_messages = -1\nno_migrate = 7\n")
    monkeypatch.setenv("TRIO_BROKER_GRACE", "x")
    lines = told({"listen": "nowhere"}, file).splitlines()
    assert lines[0] == "4 settings are wrong:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "--listen",
        "TRIO_BROKER_GRACE",
        f"flush_messages in {file}",
        f"no_migrate in {file}",
    }


@pytest.mark.parametrize(
    ("key", "meant"), [("metrics-listen", "metrics_listen"), ("queue_mesages", "queue_messages"), ("zzz", None)]
)
def test_an_unknown_key_is_refused_with_the_one_that_may_be_meant(file: Path, key: str, meant: str | None) -> None:
    file.write_text(f"{key} = 1")
    expected = f"{key} in {file}: no such setting" + (f"; did you mean {meant}?" if meant else "")
    assert told({}, file) == expected


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert told({}, file) == f"cannot read the settings in {file}: no such file"
    file.write_text("grace = ")
    assert told({}, file).startswith(f"{file} is not TOML: ")
    file.write_bytes(b"grace = '\xff'")
    assert told({}, file).startswith(f"{file} is not TOML: ")


def test_unknown_variables_are_found_with_the_one_that_may_be_meant() -> None:
    assert unknown_variables({"TRIO_BROKER_LISTN": "x", "TRIO_BROKER_GRACE": "1s", "PATH": "/bin"}) == {
        "TRIO_BROKER_LISTN": "TRIO_BROKER_LISTEN"
    }
    assert unknown_variables({"TRIO_BROKER_ZZZ": "x"}) == {"TRIO_BROKER_ZZZ": None}
    of_other_commands = ("TRIO_BROKER_CONFIG", "TRIO_BROKER_SERVER")
    assert unknown_variables(dict.fromkeys(of_other_commands, "x")) == {}


def test_what_kubernetes_injects_for_its_services_is_passed_over() -> None:
    injected = {
        "TRIO_BROKER_SERVICE_HOST": "10.96.0.7",
        "TRIO_BROKER_SERVICE_PORT": "50051",
        "TRIO_BROKER_SERVICE_PORT_GRPC": "50051",
        "TRIO_BROKER_PORT": "tcp://10.96.0.7:50051",
        "TRIO_BROKER_PORT_50051_TCP": "tcp://10.96.0.7:50051",
        "TRIO_BROKER_PORT_50051_TCP_PROTO": "tcp",
        "TRIO_BROKER_PORT_50051_TCP_PORT": "50051",
        "TRIO_BROKER_PORT_50051_TCP_ADDR": "10.96.0.7",
        "TRIO_BROKER_METRICS_SERVICE_HOST": "10.96.0.8",
        "TRIO_BROKER_METRICS_PORT": "tcp://10.96.0.8:9464",
    }
    assert unknown_variables(injected) == {}
    assert unknown_variables({"TRIO_BROKER_METRICS_PORT": "9464"}).keys() == {"TRIO_BROKER_METRICS_PORT"}


def test_the_rule_of_names_holds_for_every_setting(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Config().model_dump().items():
        written = " ".join(value) if isinstance(value, tuple) else str(value)
        written = written.lower() if isinstance(value, bool) else written
        monkeypatch.setenv(f"TRIO_BROKER_{name.upper()}", written)
        assert flag(name) == f"--{name}".replace("_", "-")
    file.write_text("no_migrate = true\nallow_anonymous = true")
    assert load({}, file).config == Config()
    assert unknown_variables({"TRIO_BROKER_MIGRATE": "no"}) == {"TRIO_BROKER_MIGRATE": "TRIO_BROKER_NO_MIGRATE"}


@pytest.mark.parametrize(
    ("arguments", "no_migrate", "allow_anonymous"),
    [
        ([], True, True),
        (["--migrate", "--no-allow-anonymous"], False, False),
        (["--no-migrate", "--allow-anonymous"], True, True),
        (["--no-migrate", "--migrate"], False, True),
    ],
)
def test_a_flag_can_undo_a_switch_of_the_environment(
    arguments: list[str], no_migrate: bool, allow_anonymous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []

    async def served(settings: Settings, file: Path | None) -> int:
        await trio.lowlevel.checkpoint()
        seen.append(settings.config)
        return 0

    monkeypatch.setattr("trio_broker.cli.serve._serve", served)
    monkeypatch.setenv("TRIO_BROKER_NO_MIGRATE", "true")
    monkeypatch.setenv("TRIO_BROKER_ALLOW_ANONYMOUS", "yes")
    assert run_command_line(["serve", *arguments]) == 0
    assert [(config.no_migrate, config.allow_anonymous) for config in seen] == [(no_migrate, allow_anonymous)]


def test_every_setting_has_a_flag_and_help_shows_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in Config.model_fields:
        assert flag(name) in text
    words = text.replace(" ", "")  # a line may end anywhere
    for default in ("127.0.0.1:50051", "sqlite:///trio-broker.db", "64MiB", "4032KiB", "10s", "50000"):
        assert f"[default:{default}]" in words
    assert "--no-migrate / --migrate wait for the store's schema at start instead of" in text
    assert "--allow-anonymous / --no-allow-anonymous let anybody call" in text
    assert "auto|console|json" in text


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["--lisen", "x"], 2, "'--listen'"),
        (["--grace"], 2, "requires an argument"),
        (["--listen", "0.0.0.0:1"], 2, "--allow-anonymous"),
        (["--config", "no-such-file.toml"], 2, "no such file"),
        (["--grace", "x", "--queue-bytes", "y"], 2, "2 settings are wrong"),
    ],
)
def test_what_keeps_serve_from_starting_is_told_on_stderr(
    arguments: list[str], exit_code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *arguments])
        == exit_code
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trio-broker: ")
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", SECRETS)
def test_what_may_hold_a_password_can_be_in_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://broker:pa55@db/app\n")
    monkeypatch.setenv(f"TRIO_BROKER_{name.upper()}_FILE", str(secret))
    settings = load({}, None)
    assert getattr(settings.config, name) == "postgresql://broker:pa55@db/app"
    assert settings.unknown_variables == {}
    assert getattr(load({name: "memory:"}, None).config, name) == "memory:"


def test_a_secret_that_cannot_be_read_is_told_without_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    monkeypatch.setenv("TRIO_BROKER_STORE_FILE", str(secret))
    assert told({}) == f"TRIO_BROKER_STORE_FILE: cannot read {str(secret)!r}: No such file or directory"
    secret.write_bytes(b"\n")
    assert told({}) == f"TRIO_BROKER_STORE_FILE: {secret} is empty"
    secret.write_bytes(b"pa55\xff")
    assert told({}) == f"TRIO_BROKER_STORE_FILE: {secret} is not text in UTF-8"
    secret.write_bytes(b"pa55\nmemory:\n")
    assert told({}) == f"TRIO_BROKER_STORE_FILE: {secret} has more than one line"
    secret.write_bytes(b"x" * (SECRET_MAX_BYTES + 1))
    assert told({}) == f"TRIO_BROKER_STORE_FILE: {secret} is larger than 65536 bytes"


def test_a_secret_may_begin_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbfmemory:\r\n")
    monkeypatch.setenv("TRIO_BROKER_STORE_FILE", str(secret))
    assert load({}, None).config.store == "memory:"


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_a_secret_that_is_no_regular_file_is_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    monkeypatch.setenv("TRIO_BROKER_STORE_FILE", str(path))
    assert told({}) == f"TRIO_BROKER_STORE_FILE: {path} is no regular file"


def test_a_setting_both_in_a_variable_and_in_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_BROKER_STORE", "memory:")
    monkeypatch.setenv("TRIO_BROKER_STORE_FILE", str(tmp_path / "secret"))
    assert told({}) == "TRIO_BROKER_STORE and TRIO_BROKER_STORE_FILE are both set: leave one of them out"


def test_one_setting_is_read_whatever_the_others_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('store = "memory:"\ngrace = "soon"\n')
    monkeypatch.setenv("TRIO_BROKER_LISTEN", "0.0.0.0:50051")
    monkeypatch.setenv("TRIO_BROKER_STORE_LISTEN_FILE", str(file.with_name("missing")))
    assert load_one("store", None, file) == "memory:"
    with pytest.raises(ConfigError, match="--metrics-listen: "):
        load_one("metrics_listen", "nowhere", None)
