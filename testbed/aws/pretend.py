"""The pretend AWS, and what of IAM it lacks and this project rests on.

Runs ministack with these added, as AWS documents them:

- `iam:PermissionsBoundary`: the boundary of the role that an IAM call names, absent if it has none;
- an IAM call is about the role's whole ARN, its path included;
- `aws:SourceIdentity`: what AssumeRole was given, allowed only where the trust policy has sts:SetSourceIdentity;
- all inline policies of a role have 10,240 characters together, white space not counted.
"""

import contextvars
import dataclasses
from urllib.parse import parse_qs

from ministack.core import iam_evaluator
from ministack.services import iam, sts

INLINE_CHARS = 10_240

source_identity = contextvars.ContextVar("source_identity", default=None)


def role_named(arn):
    return iam._roles.get(arn.rsplit("/", 1)[-1]) if ":role/" in arn else None


enforce = iam_evaluator.enforce


def enforce_with_boundary(access_key_id, iam_action, service, region, resource_arn="*", service_context=None):
    context = dict(service_context or {})
    role = role_named(resource_arn) if service == "iam" else None
    if role:
        resource_arn = role["Arn"]
        if role.get("PermissionsBoundary"):
            context["iam:PermissionsBoundary"] = role["PermissionsBoundary"]
    return enforce(access_key_id, iam_action, service, region, resource_arn=resource_arn, service_context=context)


principal_keys = iam_evaluator._principal_keys


def principal_keys_with_identity(credential):
    keys = principal_keys(credential)
    identity = (sts._sessions.get(credential.access_key_id) or {}).get("SourceIdentity")
    if identity:
        keys["aws:sourceidentity"] = identity
    return keys


register_session = sts.register_session


def register_session_with_identity(access_key, session):
    if source_identity.get():
        session["SourceIdentity"] = source_identity.get()
    register_session(access_key, session)


evaluate_trust_policy = iam_evaluator.evaluate_trust_policy


def trusts_identity_too(trust_doc, caller_arn, ctx=None):
    if not evaluate_trust_policy(trust_doc, caller_arn, ctx):
        return False
    if ctx is None or ctx.action != "sts:AssumeRole" or not source_identity.get():
        return True
    return evaluate_trust_policy(trust_doc, caller_arn, dataclasses.replace(ctx, action="sts:SetSourceIdentity"))


handle_sts = sts.handle_request


async def handle_sts_with_identity(method, path, headers, body, query_params):
    asked = parse_qs((body or b"").decode("utf-8", errors="replace"))
    source_identity.set((asked.get("SourceIdentity") or [None])[0])
    return await handle_sts(method, path, headers, body, query_params)


put_role_policy = iam._put_role_policy


def put_role_policy_within_bounds(p):
    role = iam._roles.get(iam._p(p, "RoleName"))
    if role:
        policies = {**role["InlinePolicies"], iam._p(p, "PolicyName"): iam._p(p, "PolicyDocument")}
        chars = sum(1 for document in policies.values() for c in str(document) if not c.isspace())
        if chars > INLINE_CHARS:
            return iam._error(
                409, "LimitExceeded", f"Maximum policy size of {INLINE_CHARS} bytes exceeded for the role.", ns="iam"
            )
    return put_role_policy(p)


iam_evaluator.enforce = enforce_with_boundary
iam_evaluator._principal_keys = principal_keys_with_identity
iam_evaluator.evaluate_trust_policy = trusts_identity_too
sts.register_session = register_session_with_identity
sts.handle_request = handle_sts_with_identity
iam._put_role_policy = put_role_policy_within_bounds
for table in [value for value in vars(iam).values() if isinstance(value, dict) and "PutRolePolicy" in value]:
    table["PutRolePolicy"] = put_role_policy_within_bounds

if __name__ == "__main__":
    from ministack.app import main

    main()
