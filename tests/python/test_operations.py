"""What operators and tools see: health, readiness, reflection."""

import grpc
import pytest
import support
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support import channel


def test_health_and_readiness_answer_plain_http(gateway):
    for path in ["/healthz", "/readyz"]:
        response = gateway.http("GET", path)
        assert (response.status, response.body) == (200, b"ok\n")
    assert b"/v1/ws" in gateway.http("GET", "/").body
    assert gateway.http("GET", "/nothing").status == 404


@pytest.mark.parametrize("service", ["", "twinspan.v1.Gateway", "twinspan.v1.Sessions"])
def test_grpc_health(gateway, service):
    with channel(gateway) as connection:
        checked = health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_serves_the_contract(gateway):
    with channel(gateway) as connection:
        database = ProtoReflectionDescriptorDatabase(connection)
        services = set(database.get_services())
        assert {"twinspan.v1.Gateway", "twinspan.v1.Sessions", "grpc.health.v1.Health"} <= services
        pool = DescriptorPool(database)
        attach = pool.FindServiceByName("twinspan.v1.Gateway").FindMethodByName("Attach")
        assert attach.input_type.full_name == attach.output_type.full_name == "twinspan.v1.Frame"
        assert {method.name for method in pool.FindServiceByName("twinspan.v1.Sessions").methods} >= {"Publish", "Watch"}


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_are_there(gateway, version):
    """grpcio has stubs of v1alpha only; the messages of v1 are the same on the wire."""
    with channel(gateway) as connection:
        info = connection.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        [answer] = info(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), timeout=20)
        names = {service.name for service in answer.list_services_response.service}
    assert {"twinspan.v1.Gateway", "twinspan.v1.Sessions"} <= names


def test_unknown_methods_are_unimplemented(gateway):
    with channel(gateway) as connection:
        for method in ["/twinspan.v1.Sessions/Nothing", "/no.Service/Nothing"]:
            with pytest.raises(grpc.RpcError) as caught:
                connection.unary_unary(method)(b"", timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_wrong_setting_is_told_before_anything_starts(tmp_path):
    with pytest.raises(AssertionError, match="TWINSPAN_LIMITS_FRAME_BYTES"):
        support.Gateway(tmp_path / "log", limits_frame_bytes="many")
