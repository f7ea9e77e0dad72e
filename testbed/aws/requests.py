"""Prints every request that the pretend AWS recorded since a given time, oldest first, one JSON document a line.

Arguments: endpoint, region, seconds since 1970. Its LookupEvents answers the newest 50 and knows no page marker, so
older ones are asked for with an end time, and told apart by their ids.
"""

import datetime
import json
import sys

import boto3

endpoint, region, since = sys.argv[1], sys.argv[2], float(sys.argv[3])
trail = boto3.Session("test", "test", region_name=region).client("cloudtrail", endpoint_url=endpoint)
found, asked = {}, {"StartTime": datetime.datetime.fromtimestamp(since, datetime.timezone.utc)}
while True:
    page = trail.lookup_events(**asked)["Events"]
    new = [event for event in page if event["EventId"] not in found]
    found.update((event["EventId"], event) for event in new)
    if len(page) < 50 or not new:
        break
    # A whole second of overlap: the answer's times are cut.
    asked["EndTime"] = min(event["EventTime"] for event in page) + datetime.timedelta(seconds=1)

for event in reversed(list(found.values())):
    record = json.loads(event["CloudTrailEvent"])
    parameters = record["requestParameters"] or {}
    print(
        json.dumps(
            {
                "time": record["eventTime"],
                "service": record["eventSource"].removesuffix(".amazonaws.com"),
                "action": parameters.get("Action", record["eventName"]),
                "access_key_id": event["AccessKeyId"],
                "parameters": parameters,
                "resources": event["Resources"],
                "user_agent": record["userAgent"],
            }
        )
    )
