"""Fills the pretend AWS: credvend's own identity, its revoker role, one role and one bucket per project, and a role that trusts nobody.

Reads one JSON document on stdin ({endpoint, region, projects: [names], more_roles: [...]}) and prints another: the
account, credvend's access key, the roles' ARNs. Runs once per cluster, with the root key.
"""

import json
import sys

import boto3
from botocore.config import Config

asked = json.load(sys.stdin)
session = boto3.Session("test", "test", region_name=asked["region"])
once = Config(retries={"total_max_attempts": 2}, s3={"addressing_style": "path"})


def client(service):
    return session.client(service, endpoint_url=asked["endpoint"], config=once)


iam, s3 = client("iam"), client("s3")
account = client("sts").get_caller_identity()["Account"]

SERVICE = "credvend-service"


def trust(principal):
    """The trust policy of the original instructions, word for word but for the principal's ARN."""
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Sid": "Statement1", "Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"}
            ],
        }
    )


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


service_arn = iam.create_user(UserName=SERVICE)["User"]["Arn"]
key = iam.create_access_key(UserName=SERVICE)["AccessKey"]

# As `credvend project policy` prints them, but for the path that stands for the roles' names: more are made later.
roles = f"arn:aws:iam::{account}:role/projects/*"
boundary = iam.create_policy(
    PolicyName="credd-project-boundary",
    PolicyDocument=policy({"Effect": "Allow", "Action": "s3:*", "Resource": "*"}),
)["Policy"]["Arn"]
revoker = iam.create_role(RoleName="credd-revoker", AssumeRolePolicyDocument=trust(service_arn))["Role"]["Arn"]
iam.put_role_policy(
    RoleName="credd-revoker",
    PolicyName="revoke",
    PolicyDocument=policy(
        {
            "Effect": "Allow",
            "Action": ["iam:GetRolePolicy", "iam:ListRolePolicies", "iam:PutRolePolicy", "iam:DeleteRolePolicy"],
            "Resource": roles,
        },
        {
            "Effect": "Deny",
            "Action": ["iam:PutRolePolicy", "iam:DeleteRolePolicy"],
            "Resource": "*",
            "Condition": {"StringNotEquals": {"iam:PermissionsBoundary": boundary}},
        },
    ),
)
iam.put_user_policy(
    UserName=SERVICE,
    PolicyName="vend",
    PolicyDocument=policy({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": [roles, revoker]}),
)


def make_role(name, trusted, bucket):
    arn = iam.create_role(
        Path="/projects/", RoleName=name, AssumeRolePolicyDocument=trust(trusted), PermissionsBoundary=boundary
    )["Role"]["Arn"]
    if bucket:
        iam.put_role_policy(
            RoleName=name,
            PolicyName="own-bucket",
            PolicyDocument=policy(
                {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"},
                {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": f"arn:aws:s3:::{bucket}/*"},
            ),
        )
    return arn


made = {}
for project in asked["projects"]:
    bucket = f"{project}-data"
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="hello.txt", Body=f"data of {project}\n".encode())
    made[project] = make_role(project, service_arn, bucket)
# Its trust policy names somebody else: credvend may ask and must be refused.
made["locked"] = make_role("locked", f"arn:aws:iam::{account}:user/somebody-else", None)
for extra in asked["more_roles"]:
    made[extra["name"]] = make_role(extra["name"], service_arn, f"{extra['project']}-data")

json.dump(
    {
        "account": account,
        "service_arn": service_arn,
        "access_key_id": key["AccessKeyId"],
        "secret_access_key": key["SecretAccessKey"],
        "roles": made,
    },
    sys.stdout,
)
