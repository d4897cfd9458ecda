"""The AWS command line, as far as docs/aws.md uses it, on boto3: ``aws SERVICE OPERATION --...``.

Flags are those of the operation's own model; an unknown one is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import jmespath
from botocore import xform_name

SERVICES = {"s3api": "s3"}
# The server that imitates EC2 knows no images.
IMAGE = "ami-0123456789abcdef0"


def main(words: Sequence[str]) -> None:
    service, operation, *rest = words
    flags = dict(zip(rest[::2], rest[1::2], strict=True))
    query, output = flags.pop("--query", "@"), flags.pop("--output", "json")
    client = boto3.session.Session().client(SERVICES.get(service, service))
    method = operation.replace("-", "_")
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    members = model.input_shape.members
    names = {f"--{xform_name(name, '-')}": name for name in members}
    parameters = {
        names[flag]: _value(members[names[flag]].type_name, text) for flag, text in flags.items()
    }
    if service == "ssm":
        answer: Any = {"Parameter": {"Value": IMAGE}}
    else:
        answer = getattr(client, method)(**parameters)
    found = jmespath.search(query, answer)
    sys.stdout.write(f"{found if output == 'text' else json.dumps(found, default=str)}\n")


def _value(kind: str, text: str) -> Any:
    if text.startswith("file://"):
        text = Path(text.removeprefix("file://")).read_text("utf-8")
    return text if kind == "string" else json.loads(text)


if __name__ == "__main__":
    main(sys.argv[1:])
