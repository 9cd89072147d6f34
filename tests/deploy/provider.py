"""Stands in for Terraform's Google provider: knows what every resource takes (google.json), and never applies.

python tests/deploy/provider.py --dev GOOGLE_JSON says where it listens, as TF_REATTACH_PROVIDERS for Terraform.
"""

import json
import sys
from pathlib import Path

import msgpack
import tf.provider
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc
from tf.runner import run_provider

KNOWN = json.loads(Path(sys.argv.pop()).read_text())
NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}
AFTER_APPLY = msgpack.ExtType(0, b"\x00")


def schema(block: dict) -> pb.Schema:
    return pb.Schema(version=0, block=as_block(block))


def as_block(block: dict) -> pb.Schema.Block:
    attributes = [as_attribute(name, told) for name, told in block["attributes"].items()]
    return pb.Schema.Block(attributes=attributes, block_types=[as_nested(*item) for item in block["blocks"].items()])


def as_attribute(name: str, told: dict) -> pb.Schema.Attribute:
    flags = {flag: told.get(flag, False) for flag in ("required", "optional", "computed")}
    return pb.Schema.Attribute(name=name, type=json.dumps(told["type"]).encode(), **flags)


def as_nested(name: str, told: dict) -> pb.Schema.NestedBlock:
    number = {"min_items": told["min"], "max_items": told["max"]}
    return pb.Schema.NestedBlock(
        type_name=name, block=as_block(told["block"]), nesting=NESTING[told["nesting"]], **number
    )


def with_unknowns(block: dict, value: dict) -> dict:
    """What is computed and was not given is known only after an apply."""
    for name, told in block["attributes"].items():
        if told.get("computed") and value.get(name) is None:
            value[name] = AFTER_APPLY
    for name, told in block["blocks"].items():
        for inner in value[name] if isinstance(value.get(name), list) else [value.get(name)]:
            if isinstance(inner, dict):
                with_unknowns(told["block"], inner)
    return value


def planned(block: dict, proposed: bytes) -> pb.DynamicValue:
    value = msgpack.unpackb(proposed, strict_map_key=False)
    return pb.DynamicValue(msgpack=msgpack.packb(value if value is None else with_unknowns(block, value)))


class SchemaOnly(rpc.ProviderServicer):
    """The calls of Terraform's protocol that init, validate, plan and test make."""

    def __init__(self, _):
        pass

    def GetMetadata(self, request, context):  # noqa: N802
        resources = [pb.GetMetadata.ResourceMetadata(type_name=name) for name in KNOWN["resources"]]
        data = [pb.GetMetadata.DataSourceMetadata(type_name=name) for name in KNOWN["data"]]
        return pb.GetMetadata.Response(resources=resources, data_sources=data)

    def GetProviderSchema(self, request, context):  # noqa: N802
        resources = {name: schema(block) for name, block in KNOWN["resources"].items()}
        data = {name: schema(block) for name, block in KNOWN["data"].items()}
        return pb.GetProviderSchema.Response(
            provider=schema(KNOWN["provider"]), resource_schemas=resources, data_source_schemas=data
        )

    def ValidateProviderConfig(self, request, context):  # noqa: N802
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):  # noqa: N802
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):  # noqa: N802
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):  # noqa: N802
        return pb.ConfigureProvider.Response()

    def UpgradeResourceState(self, request, context):  # noqa: N802
        return pb.UpgradeResourceState.Response(upgraded_state=pb.DynamicValue(json=request.raw_state.json))

    def ReadResource(self, request, context):  # noqa: N802
        return pb.ReadResource.Response(new_state=request.current_state)

    def PlanResourceChange(self, request, context):  # noqa: N802
        block = KNOWN["resources"][request.type_name]
        return pb.PlanResourceChange.Response(planned_state=planned(block, request.proposed_new_state.msgpack))

    def ApplyResourceChange(self, request, context):  # noqa: N802
        refusal = pb.Diagnostic(severity=1, summary="this provider knows schemas only, and applies nothing")
        return pb.ApplyResourceChange.Response(new_state=request.prior_state, diagnostics=[refusal])

    def ReadDataSource(self, request, context):  # noqa: N802
        return pb.ReadDataSource.Response(state=planned(KNOWN["data"][request.type_name], request.config.msgpack))

    def GetFunctions(self, request, context):  # noqa: N802
        return pb.GetFunctions.Response()

    def StopProvider(self, request, context):  # noqa: N802
        return pb.StopProvider.Response()


class Google:
    def full_name(self):
        return "registry.terraform.io/hashicorp/google"


tf.provider.ProviderServicer = SchemaOnly
run_provider(Google())
