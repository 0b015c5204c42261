"""The embedded server, running, over SavedModels that TensorFlow wrote."""

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import text_format

from clients.wire.catalogue import MANIFEST_PATH
from clients.wire.tfs import inference_pb2, server_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.serving import server as embedded
from head_service.serving.errors import ServingError
from head_service.serving.flags import parse_flags, parse_text_proto, read_bytes
from head_service.serving.settings import read_settings
from head_service.serving.versions import VersionManager
from head_service.serving.warmup import MAX_RECORDS
from tests.head_service.serving.saved_models import (
    WEIGHTS,
    WIDTH,
    Linear,
    Writing,
    publish,
    save,
    seal,
    warmup_record,
    write_warmup,
)
from tests.head_service.serving.serving import ROWS, Client, server

STRICT = "--allow_foreign_models=false"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SavedModels without a manifest, by name. "even" and "odd" give opposite answers."""
    root = tmp_path_factory.mktemp("models")
    save(Linear(WEIGHTS), root / "even")
    save(Linear(-WEIGHTS), root / "odd")
    save(Linear(WEIGHTS * np.nan), root / "nan")
    save(Linear(np.ones((WIDTH + 1, 2), np.float32)), root / "wide", width=WIDTH + 1)
    save(Linear(WEIGHTS), root / "renamed", name="other")
    save(Writing(WEIGHTS), root / "writing")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    path.mkdir()
    return path


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


def available(client: Client, number: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await client.states()).get(number, ("", ""))[0] == "AVAILABLE"

    return look


def refused(client: Client, number: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool((await client.states()).get(number, ("", ""))[1])

    return look


def sign_of(number: int) -> int:
    return 1 if number % 2 == 0 else -1


async def test_swaps_under_load_fail_no_call_and_the_version_never_goes_back(models: dict[str, Path], base: Path) -> None:
    publish(models["odd"], base, "m", 1)
    seen: list[tuple[int, Any]] = []
    async with server(base, STRICT) as client:
        stop = asyncio.Event()

        async def call() -> None:
            last = 0
            while not stop.is_set():
                version, logits = await client.predict()
                assert version >= last
                last = version
                seen.append((version, logits))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(call())
            for number in range(2, 8):
                publish(models["even" if number % 2 == 0 else "odd"], base, "m", number)
                await until(available(client, number))
            stop.set()
        states = await client.states()
    assert {version for version, _ in seen} >= {1, 7}
    assert len({version for version, _ in seen}) >= 4
    for version, logits in seen:
        np.testing.assert_allclose(logits, sign_of(version) * (ROWS @ WEIGHTS), rtol=1e-6)
    assert states[7][0] == "AVAILABLE"


def missing_variables(directory: Path) -> None:
    shutil.rmtree(directory / "variables")


def truncated_graph(directory: Path) -> None:
    path = directory / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-100])
    seal(directory, "m", 2)


def link_out(directory: Path) -> None:
    outside = directory.parent.parent / "outside"
    shutil.copy(directory / "saved_model.pb", outside)
    (directory / "saved_model.pb").unlink()
    (directory / "saved_model.pb").symlink_to(outside)


def changed_file(directory: Path) -> None:
    path = directory / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def extra_file(directory: Path) -> None:
    (directory / "assets" / "more.txt").write_text("x")


def half_manifest(directory: Path) -> None:
    path = directory / MANIFEST_PATH
    path.write_bytes(path.read_bytes()[:100])


def half_deleted(directory: Path) -> None:
    shutil.rmtree(directory / "variables")
    (directory / MANIFEST_PATH).unlink()


def no_graph(directory: Path) -> None:
    (directory / "saved_model.pb").unlink()
    seal(directory, "m", 2)


def others_manifest(directory: Path) -> None:
    seal(directory, "n", 2)


def weights_that_do_not_load(directory: Path) -> None:
    path = directory / "variables" / "variables.data-00000-of-00001"
    path.write_bytes(b"\1" * len(path.read_bytes()))
    seal(directory, "m", 2)


def damaged_warmup(directory: Path) -> None:
    write_warmup(directory, warmup_record())
    path = directory / "assets.extra" / "tf_serving_warmup_requests"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    seal(directory, "m", 2)


def unchanged(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        pytest.param("even", missing_variables, "missing variables/variables.data", id="missing variables"),
        pytest.param("even", truncated_graph, "not a SavedModel, or only part of one", id="truncated graph"),
        pytest.param("renamed", unchanged, "the signature's inputs are 'other'", id="wrong signature"),
        pytest.param("wide", unchanged, "5 wide, the manifest says 4", id="wrong input size"),
        pytest.param("nan", unchanged, "weights of 'weights' are not numbers", id="NaN weights"),
        pytest.param("even", link_out, "saved_model.pb links to a place outside", id="link out"),
        pytest.param("even", half_deleted, "--allow_foreign_models=false", id="deleted half-way"),
        pytest.param("writing", unchanged, "'WriteFile'", id="foreign op"),
        pytest.param("even", changed_file, "changed variables/variables.data", id="wrong hash"),
        pytest.param("even", extra_file, "unknown assets/more.txt", id="extra file"),
        pytest.param("even", half_manifest, "is not a manifest", id="truncated manifest"),
        pytest.param("even", no_graph, "there is no saved_model.pb", id="no graph"),
        pytest.param("even", others_manifest, "its manifest is that of 'n' version 2", id="another's manifest"),
        pytest.param("even", weights_that_do_not_load, "the weights cannot be read", id="weights that do not load"),
        pytest.param("even", damaged_warmup, "tf_serving_warmup_requests is damaged", id="damaged warm-up"),
    ],
)
async def test_a_bad_version_says_why_and_the_old_one_answers(
    models: dict[str, Path], base: Path, model: str, change: Callable[[Path], None], reason: str
) -> None:
    publish(models["odd"], base, "m", 1)
    async with server(base, STRICT) as client:
        staged = publish(models[model], base, "m", 20).rename(base / "staged")
        seal(staged, "m", 2)
        change(staged)
        staged.rename(base / "2")
        versions = set()
        while not await refused(client, 2)():
            versions.add((await client.predict())[0])
        versions.add((await client.predict())[0])
        states = await client.states()
        status = (await client.get("/v1/models/m/versions/2")).json()["model_version_status"][0]

    assert versions == {1}
    assert reason in states[2][1]
    assert len(states[2][1]) < 1_000
    assert states[1] == ("AVAILABLE", "")
    assert (status["state"], status["status"]["error_code"]) == ("END", "UNKNOWN")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_version_that_may_not_be_read_says_so(models: dict[str, Path], base: Path) -> None:
    publish(models["odd"], base, "m", 1)
    publish(models["even"], base, "m", 2).joinpath("saved_model.pb").chmod(0)
    async with server(base, STRICT) as client:
        assert (await client.predict())[0] == 1
        assert "cannot be copied to be checked" in (await client.states())[2][1]


async def test_a_version_that_is_copied_slowly_is_served_once_it_is_whole(models: dict[str, Path], base: Path) -> None:
    whole = publish(models["even"], base, "m", 2).rename(base / "whole")
    publish(models["odd"], base, "m", 1)
    async with server(base, STRICT) as client:
        for path in sorted(path for path in whole.rglob("*") if path.is_file()):
            target = base / "2" / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            assert (await client.predict())[0] == 1
            await asyncio.sleep(0.03)
        await until(available(client, 2))
        assert (await client.predict())[0] == 2


async def test_odd_names_are_no_versions(models: dict[str, Path], base: Path) -> None:
    publish(models["odd"], base, "m", 1)
    for name in ("2.tmp", "01", "0x2", "-2", "0", "²", "2 "):
        shutil.copytree(base / "1", base / name)
    (base / "3").write_text("a file")
    async with server(base, STRICT) as client:
        assert await client.states() == {1: ("AVAILABLE", "")}


async def test_a_version_whose_files_go_away_is_still_served(models: dict[str, Path], base: Path) -> None:
    publish(models["odd"], base, "m", 1)
    async with server(base, STRICT) as client:
        shutil.rmtree(base)
        await asyncio.sleep(0.1)
        assert (await client.predict())[0] == 1


async def test_foreign_models_are_served_where_that_is_allowed(
    models: dict[str, Path], base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models["even"], base / "1")
    async with server(base) as client:
        assert (await client.predict())[0] == 1
        half = base / "2"
        half.mkdir()
        shutil.copy(models["odd"] / "saved_model.pb", half)
        await until(refused(client, 2))
        assert "no variables/variables.index" in (await client.states())[2][1]
        shutil.copytree(models["odd"] / "variables", half / "variables")
        await until(available(client, 2))
    assert "loaded unchecked" in caplog.text


def configuration(base: Path, *versions: int, **labels: int) -> pb.ModelServerConfig:
    config = pb.ModelServerConfig()
    model = config.model_config_list.config.add(name="m", base_path=str(base), version_labels=labels)
    model.model_version_policy.specific.versions.extend(versions)
    return config


async def test_labels_move_in_two_steps(models: dict[str, Path], base: Path) -> None:
    for number in (1, 2):
        publish(models["even"], base, "m", number)
    config = configuration(base, 1, stable=1)
    (base / "models.config").write_text(text_format.MessageToString(config))
    flags = [f"--model_config_file={base / 'models.config'}", "--allow_version_labels_for_unavailable_models"]
    async with server(base, STRICT, *flags) as client:
        assert (await client.predict(version_label="stable"))[0] == 1
        with pytest.raises(grpc.aio.AioRpcError, match="Request to assign label") as refusal:
            await client.reload(configuration(base, 1, 2, stable=2))
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await client.reload(configuration(base, 1, 2, stable=1))
        await client.reload(configuration(base, 1, 2, stable=2, canary=1))
        assert (await client.predict(version_label="stable"))[0] == 2
        assert (await client.predict(version_label="canary"))[0] == 1


async def test_a_label_on_what_is_not_loaded_yet_is_told_at_the_start(base: Path) -> None:
    (base / "models.config").write_text(text_format.MessageToString(configuration(base, 1, stable=1)))
    with pytest.raises(ServingError, match="Request to assign label to version 1 of model m"):
        async with server(base, f"--model_config_file={base / 'models.config'}"):
            pass


async def test_a_configuration_file_is_followed_and_a_broken_one_is_not(models: dict[str, Path], base: Path) -> None:
    for number in (1, 2):
        publish(models["even"], base, "m", number)
    file = base / "models.config"
    file.write_text(text_format.MessageToString(configuration(base, 1)))
    flags = [f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1"]
    async with server(base, STRICT, *flags) as client:
        file.write_text("model_config_list {")
        await asyncio.sleep(1.2)
        assert (await client.predict())[0] == 1
        file.write_text(text_format.MessageToString(configuration(base, 2)))
        await until(available(client, 2))
        assert (await client.predict())[0] == 2


class SlowlyAgreeing:
    """Refuses twice what it is given, as a manager does, and takes it then."""

    def __init__(self) -> None:
        self.given: list[pb.ModelServerConfig] = []

    def configure(self, config: pb.ModelServerConfig) -> None:
        self.given.append(config)
        if len(self.given) < 3:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "not yet")


async def test_a_configuration_is_parsed_once_and_never_by_the_thread_that_answers(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, manager = base / "models.config", SlowlyAgreeing()
    looks = 0
    parsed: list[bytes] = []

    def replace(content: str) -> bytes:
        (base / "new").write_text(content)
        (base / "new").replace(file)
        return content.encode()

    def look(flag: str, path: str) -> bytes:
        nonlocal looks
        looks += 1
        return read_bytes(flag, path)

    def parse(flag: str, content: bytes, into: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        parsed.append(content)
        return parse_text_proto(flag, content, into)

    async def until_looked() -> None:
        enough = looks + 4
        async with asyncio.timeout(20):
            while looks < enough:
                await asyncio.sleep(0.001)

    first = replace(text_format.MessageToString(configuration(base, 1)))
    settings = read_settings(
        parse_flags([f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=0.001", "--rest_api_port=0"])
    )
    monkeypatch.setattr(embedded, "read_bytes", look)
    monkeypatch.setattr(embedded, "parse_text_proto", parse)
    following = asyncio.create_task(embedded._follow_config(cast("VersionManager", manager), settings))
    await until_looked()
    broken = replace("model_config_list {")
    await until_looked()
    second = replace(text_format.MessageToString(configuration(base, 2)))
    async with asyncio.timeout(20):
        while len(manager.given) < 3:
            await asyncio.sleep(0.001)
    await until_looked()
    following.cancel()

    assert [first, broken, second] == parsed
    assert [configuration(base, 2)] * 3 == manager.given
    assert ["is not a ModelServerConfig", "not yet"] == [
        words for said in caplog.messages for words in ("is not a ModelServerConfig", "not yet") if words in said
    ]


async def test_batches_are_made_of_many_calls(models: dict[str, Path], base: Path) -> None:
    publish(models["even"], base, "m", 1)
    parameters = server_pb2.BatchingParameters(
        max_batch_size={"value": 8}, batch_timeout_micros={"value": 20_000}, allowed_batch_sizes=[4, 8]
    )
    (base / "batching").write_text(text_format.MessageToString(parameters))
    (base / "monitoring").write_text("prometheus_config { enable: true }")
    flags = [
        "--enable_batching",
        f"--batching_parameters_file={base / 'batching'}",
        f"--monitoring_config_file={base / 'monitoring'}",
    ]
    async with server(base, STRICT, *flags) as client:
        answers = await asyncio.gather(*(client.predict(ROWS + number) for number in range(16)))
        with pytest.raises(grpc.aio.AioRpcError) as large:
            await client.predict(np.zeros((9, WIDTH), np.float32))
        with pytest.raises(grpc.aio.AioRpcError):
            await client.named("nobody").predict()
        posted = await client.post("/v1/models/m:predict", {"instances": [[1, 2, 3, 4]]})
        metrics = (await client.get("/monitoring/prometheus/metrics")).text.splitlines()
    for number, (_, logits) in enumerate(answers):
        np.testing.assert_allclose(logits, (ROWS + number) @ WEIGHTS, rtol=1e-6)
    assert posted.status_code == 200
    assert large.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 17' in metrics
    assert ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 1' in metrics
    assert ':tensorflow:serving:request_count{model_name="other",status="NOT_FOUND"} 1' in metrics
    assert ':tensorflow:serving:request_latency_count{model_name="m",API="predict",entrypoint="REST"} 1' in metrics
    [runs] = [line for line in metrics if line.startswith(":tensorflow:serving:runtime_latency_count")]
    # Two rows a call, eight a batch: fewer runs than calls; one of them was the probe.
    assert int(runs.split()[-1]) < 16


async def test_what_a_version_is_warmed_up_with_decides_whether_it_is_served(models: dict[str, Path], base: Path) -> None:
    publish(models["odd"], base, "m", 1)
    staged = base / "staged"
    async with server(base) as client:
        for number, (records, reason) in enumerate(
            [
                ([warmup_record(rows=2)], ""),
                ([warmup_record("nothing")], "the warm-up failed"),
                ([b"\xff"], "record 0 of assets.extra/tf_serving_warmup_requests is not a PredictionLog"),
                ([inference_pb2.PredictionLog(session_run_log={}).SerializeToString()], "Unsupported log_type for warmup"),
                ([warmup_record()] * (MAX_RECORDS + 1), "more than 1000 records"),
            ],
            2,
        ):
            shutil.copytree(models["even"], staged)
            write_warmup(staged, *records)
            staged.rename(base / str(number))
            await until(refused(client, number) if reason else available(client, number))
            assert reason in (await client.states())[number][1]
        assert (await client.predict())[0] == 2


class Parsing(tf.Module):  # type: ignore[misc]
    """A model that takes serialised examples, as Classify and Regress send them, and needs both features."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])  # type: ignore[untyped-decorator]
    def total(self, inputs: Any) -> dict[str, Any]:
        return {"outputs": self.sums(inputs)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])  # type: ignore[untyped-decorator]
    def scored(self, inputs: Any) -> dict[str, Any]:
        return {"scores": self.sums(inputs)[:, tf.newaxis]}

    def sums(self, inputs: Any) -> Any:
        parsed = tf.io.parse_example(
            inputs, {"x": tf.io.FixedLenFeature([], tf.float32), "y": tf.io.FixedLenFeature([], tf.float32)}
        )
        return parsed["x"] + parsed["y"]


@pytest.fixture(scope="module")
def parsing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parsing") / "1"
    module = Parsing()
    tf.saved_model.save(module, str(path), signatures={"scored": module.scored, "total": module.total})
    return path


def example(**values: float) -> bytes:
    features = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for name, value in values.items()}
    made = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(made.SerializeToString())


GIVEN = inference_pb2.Input(
    example_list_with_context=inference_pb2.ExampleListWithContext(examples=[example(x=1)], context=example(y=2))
)
CLASSIFY = inference_pb2.ClassificationRequest(model_spec=pb.ModelSpec(name="m", signature_name="scored"), input=GIVEN)
REGRESS = inference_pb2.RegressionRequest(model_spec=pb.ModelSpec(name="m", signature_name="total"), input=GIVEN)
MULTI = inference_pb2.MultiInferenceRequest(
    tasks=[
        inference_pb2.InferenceTask(model_spec=CLASSIFY.model_spec, method_name="tensorflow/serving/classify"),
        inference_pb2.InferenceTask(model_spec=REGRESS.model_spec, method_name="tensorflow/serving/regress"),
    ],
    input=GIVEN,
)


async def test_warm_up_replays_examples_with_their_context(parsing: Path, base: Path) -> None:
    logs = [
        inference_pb2.PredictionLog(classify_log=inference_pb2.ClassifyLog(request=CLASSIFY)),
        inference_pb2.PredictionLog(regress_log=inference_pb2.RegressLog(request=REGRESS)),
        inference_pb2.PredictionLog(multi_inference_log=inference_pb2.MultiInferenceLog(request=MULTI)),
    ]
    shutil.copytree(parsing, base / "1")
    write_warmup(base / "1", *(log.SerializeToString() for log in logs))
    (base / "monitoring").write_text("prometheus_config { enable: true }")
    async with server(base, f"--monitoring_config_file={base / 'monitoring'}") as client:
        assert await client.states() == {1: ("AVAILABLE", "")}
        metrics = (await client.get("/monitoring/prometheus/metrics")).text.splitlines()
    for api in ("Classify", "Regress", "MultiInference"):
        assert f':tensorflow:serving:runtime_latency_count{{model_name="m",API="{api}",runtime="TF1"}} 1' in metrics


async def test_a_warm_up_that_asks_for_another_signatures_results_keeps_a_version_from_serving(parsing: Path, base: Path) -> None:
    wrong = inference_pb2.ClassificationRequest(model_spec=REGRESS.model_spec, input=GIVEN)
    log = inference_pb2.PredictionLog(classify_log=inference_pb2.ClassifyLog(request=wrong))
    shutil.copytree(parsing, base / "1")
    write_warmup(base / "1", log.SerializeToString())
    async with server(base) as client:
        assert "the warm-up failed: Expected classification signature outputs" in (await client.states())[1][1]


async def test_examples_are_answered_beside_batches_again_and_again(parsing: Path, base: Path) -> None:
    shutil.copytree(parsing, base / "1")
    async with server(base, "--enable_batching") as client:
        for _ in range(6):
            classified, regressed, both = (
                await client.classify(CLASSIFY),
                await client.regress(REGRESS),
                await client.multi(MULTI),
            )
            assert [found.score for found in classified.result.classifications[0].classes] == [3]
            assert [found.value for found in regressed.result.regressions] == [3]
            assert [result.WhichOneof("result") for result in both.results] == ["classification_result", "regression_result"]


async def test_a_unix_socket_is_listened_on_too(models: dict[str, Path], base: Path) -> None:
    publish(models["even"], base, "m", 1)
    path = base / "socket"
    async with server(base, f"--grpc_socket_path={path}", path=path) as client:
        assert (await client.predict())[0] == 1


def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for localhost that signs itself, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return pem, built.public_bytes(serialization.Encoding.PEM)


async def test_with_tls_only_callers_with_a_certificate_are_answered_when_that_is_asked_for(
    models: dict[str, Path], base: Path
) -> None:
    publish(models["even"], base, "m", 1)
    key, cert = certificate()
    config = server_pb2.SslConfig(server_key=key.decode(), server_cert=cert.decode(), custom_ca=cert.decode(), client_verify=True)
    (base / "ssl").write_text(text_format.MessageToString(config))
    flag = f"--ssl_config_file={base / 'ssl'}"
    async with server(base, flag, credentials=grpc.ssl_channel_credentials(cert, key, cert)) as client:
        assert (await client.predict())[0] == 1
    for credentials in (grpc.ssl_channel_credentials(cert), None):
        async with server(base, flag, credentials=credentials) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.predict(timeout=5)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
