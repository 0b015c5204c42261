from pathlib import Path

import pytest

from head_service.serving.flags import FlagError, parse_flags, read_config, read_monitoring
from head_service.serving.settings import read_settings

MODEL = "--model_base_path=/models/m"


def test_the_defaults_are_the_references() -> None:
    flags = parse_flags([MODEL])
    assert (flags.port, flags.rest_api_port, flags.model_name) == (8500, 8501, "default")
    assert (flags.max_num_load_retries, flags.load_retry_interval_micros) == (5, 60_000_000)
    assert (flags.rest_api_timeout_in_ms, flags.file_system_poll_wait_seconds) == (30_000, 1)
    assert flags.enable_model_warmup
    assert not flags.enable_batching
    assert flags.allow_foreign_models
    [model] = read_config(flags).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("default", "/models/m", "tensorflow")


def test_the_configuration_may_be_looked_at_several_times_a_second() -> None:
    assert 0.2 == parse_flags([MODEL, "--model_config_file_poll_wait_seconds=0.2"]).model_config_file_poll_wait_seconds
    assert 1 == parse_flags([MODEL, "--model_config_file_poll_wait_seconds=1"]).model_config_file_poll_wait_seconds


def test_less_than_no_seconds_between_looks_is_taken_as_the_reference_takes_it() -> None:
    flags = parse_flags([MODEL, "--model_config_file_poll_wait_seconds=-1", "--file_system_poll_wait_seconds=-1"])
    assert (-1, -1) == (flags.model_config_file_poll_wait_seconds, flags.file_system_poll_wait_seconds)


@pytest.mark.parametrize("written", ["--enable_batching", "--enable_batching=true", "--enable_batching=1"])
def test_a_switch_is_written_as_the_reference_takes_it(written: str) -> None:
    assert parse_flags([MODEL, written]).enable_batching
    assert not parse_flags([MODEL, written, "--enable_batching=false"]).enable_batching


def test_flags_about_the_references_threads_are_taken() -> None:
    parse_flags([MODEL, "--grpc_max_threads=8", "--rest_api_num_threads", "4", "--flush_filesystem_caches=false"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nothing=1"],
        ["--model-name=x"],
        ["--port=many"],
        ["--enable_batching=maybe"],
        ["--rest_api_timeout_in_ms=0"],
        ["--drain_grace_seconds=nan"],
        ["--drain_grace_seconds=-1"],
        ["--model_config_file_poll_wait_seconds=nan"],
        ["--model_config_file_poll_wait_seconds=inf"],
        ["--model_config_file_poll_wait_seconds=often"],
        ["--file_system_poll_wait_seconds=inf"],
        ["--model_na=x"],
    ],
)
def test_a_flag_that_makes_no_sense_ends_it_with_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert arguments[0].partition("=")[0] in said


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("model_config_file", b"model_config_list {", "is not a ModelServerConfig"),
        ("model_config_file", b"\xff", "not text in UTF-8"),
        ("model_config_file", None, "cannot be read: No such file"),
        ("batching_parameters_file", b"max_batch_size: 3", "is not a BatchingParameters"),
        ("batching_parameters_file", b"max_batch_size { value: 4 } allowed_batch_sizes: 2", "allowed_batch_sizes"),
        ("monitoring_config_file", b"prometheus_config { enable: true path: 'x' }", "must begin with /"),
        ("ssl_config_file", b"server_key: 'x'", "server_key and server_cert"),
        ("ssl_config_file", b"server_key: 'BEGIN' server_cert: 'BEGIN' client_verify: true", "needs custom_ca"),
    ],
)
def test_a_file_that_is_broken_is_told_with_its_flag(tmp_path: Path, flag: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FlagError, match=message) as told:
        read_settings(parse_flags([MODEL, "--enable_batching", f"--{flag}={path}"]))
    assert f"--{flag}" in str(told.value)


def test_what_needs_another_flag_says_so(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match="--model_config_file, or one with"):
        read_settings(parse_flags([]))
    with pytest.raises(FlagError, match="needs --enable_batching"):
        read_settings(parse_flags([MODEL, f"--batching_parameters_file={tmp_path}"]))
    with pytest.raises(FlagError, match="--grpc_channel_arguments"):
        read_settings(parse_flags([MODEL, "--grpc_channel_arguments=x"]))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ("prometheus_config { enable: true path: '/metrics' }", "/metrics"),
        ("prometheus_config { path: '/metrics' }", ""),
    ],
)
def test_where_the_metrics_are(tmp_path: Path, text: str, path: str) -> None:
    (tmp_path / "file").write_text(text)
    assert path == read_monitoring(parse_flags([MODEL, f"--monitoring_config_file={tmp_path / 'file'}"]))


def test_the_parameters_of_batching_are_read_as_they_are_written_for_the_reference(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(
        "max_batch_size { value: 128 } batch_timeout_micros { value: 500 } max_enqueued_batches { value: 1000000 }\n"
        "num_batch_threads { value: 8 } thread_pool_name { value: 'pool' } pad_variable_length_inputs: true\n"
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 32 }\n"
        "allowed_batch_sizes: 8 allowed_batch_sizes: 32\n"
    )
    arguments = [MODEL, "--enable_batching", f"--batching_parameters_file={tmp_path / 'file'}"]
    found = read_settings(parse_flags(arguments)).batching
    assert found is not None
    assert (found.max_batch_size, found.max_execution_batch_size, found.allowed_batch_sizes) == (128, 32, (8, 32))
    assert (found.batch_timeout_seconds, found.num_batch_threads, found.thread_pool_name) == (0.0005, 8, "pool")
    assert found.splits_large
    assert found.pads_variable_lengths
