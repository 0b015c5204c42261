from prometheus_client.parser import text_string_to_metric_families

from head_service.serving.monitoring import LATENCY_BOUNDS_MICROS, Monitoring


def test_the_metrics_have_the_references_names_and_bounds() -> None:
    monitoring = Monitoring({"m"}.__contains__, "pool")
    monitoring.request_ended("m", "predict", "GRPC", "OK", 0.001)
    monitoring.request_ended("m", "predict", "REST", "OK", 0.5)
    monitoring.run_ended("m", "Predict", 0.00001, 32)
    monitoring.waited(0.002)
    monitoring.warmed_up("m", 0.1, "OK")
    lines = monitoring.exposition().decode().splitlines()

    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2' in lines
    assert ':tensorflow:serving:request_latency_count{model_name="m",API="predict",entrypoint="GRPC"} 1' in lines
    assert ':tensorflow:serving:request_latency_bucket{model_name="m",API="predict",entrypoint="REST",le="10"} 0' in lines
    assert ':tensorflow:serving:runtime_latency_bucket{model_name="m",API="Predict",runtime="TF1",le="10"} 1' in lines
    assert ':tensorflow:serving:request_example_counts_sum{model="m"} 32' in lines
    assert ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="pool"} 1' in lines
    assert ':tensorflow:serving:model_warmup_latency_count{model_path="m",status="OK"} 1' in lines
    assert len(LATENCY_BOUNDS_MICROS) == 33


def test_prometheus_can_read_it_whatever_models_are_called() -> None:
    name = 'a"b\\c\nd'
    monitoring = Monitoring({name}.__contains__)
    monitoring.request_ended(name, "predict", "GRPC", "OK", 0.001)
    families = {family.name: family for family in text_string_to_metric_families(monitoring.exposition().decode())}

    [count] = families[":tensorflow:serving:request_count"].samples
    assert count.labels["model_name"] == name
    buckets = [sample.value for sample in families[":tensorflow:serving:request_latency"].samples if "le" in sample.labels]
    assert buckets == sorted(buckets)
    assert len(buckets) == len(LATENCY_BOUNDS_MICROS) + 1


def test_names_that_no_model_has_are_counted_as_one() -> None:
    monitoring = Monitoring(lambda _: False)
    for number in range(100):
        monitoring.request_ended(f"guess{number}", "predict", "GRPC", "NOT_FOUND", 0.001)
    text = monitoring.exposition().decode()

    assert ':tensorflow:serving:request_count{model_name="other",status="NOT_FOUND"} 100' in text
    assert "guess" not in text
