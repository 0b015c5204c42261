import grpc
import pytest

import clients
from clients import GRPC_ERRORS, HTTP_ERRORS, InvalidRequest, ServerFault, TrunklineError, error_for_http
from clients._channel import error_for_rpc, error_for_status


def test_every_grpc_status_but_ok_has_an_error():
    assert set(GRPC_ERRORS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize("code", GRPC_ERRORS)
def test_a_status_becomes_its_error_with_a_message(code):
    error = error_for_status(code, "")
    assert type(error) is GRPC_ERRORS[code]
    assert code.name in error.message


def test_an_unlisted_http_status_counts_as_its_class():
    assert error_for_http(418) is InvalidRequest
    assert error_for_http(599) is ServerFault


def test_every_listed_http_status_is_an_error():
    assert all(400 <= status < 600 for status in HTTP_ERRORS)


def test_codes_on_the_wire_are_distinct_but_for_the_root():
    kinds = [kind for kind in vars(clients).values() if isinstance(kind, type) and issubclass(kind, TrunklineError)]
    codes = [kind.code for kind in kinds if kind is not TrunklineError]
    assert len(codes) == len(set(codes))


def test_every_listed_error_is_exported():
    assert {kind.__name__ for kind in (*GRPC_ERRORS.values(), *HTTP_ERRORS.values())} <= set(clients.__all__)


def test_an_error_of_grpc_without_an_outcome_is_a_server_fault():
    error = error_for_rpc(grpc.RpcError("odd"), "r-1")
    assert type(error) is ServerFault
    assert "odd" in error.message
    assert error.request_id == "r-1"
