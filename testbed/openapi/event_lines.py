"""Compares lines of the nodes' stream, from standard input, with the document: schemathesis knows no streams of lines."""

import json
import sys

import jsonschema_rs
import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    document = yaml.safe_load(file)
event = {"$ref": "#/components/schemas/Event", "components": document["components"]}
validator = jsonschema_rs.validator_for(event)
for line in sys.stdin:
    validator.validate(json.loads(line))
