//! An STS that answers at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use credd_protocol::credentials::rfc3339_z;
use hyper::Response;
use time::OffsetDateTime;

use crate::loopback::{Answer, serve};
use crate::vending_api::credentials;

/// Starts it.
pub fn start() -> Result<SocketAddr> {
    let count = AtomicU64::new(1);
    serve(move |_, _, body| {
        let form = String::from_utf8_lossy(body);
        let parameter = |name: &str| {
            form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let xml = match &*parameter("Action") {
            "AssumeRole" => assumed(count.fetch_add(1, Ordering::Relaxed), &parameter("RoleSessionName")),
            _ => identity(),
        };
        let mut response = Response::new(Answer::whole(xml));
        response.headers_mut().insert("content-type", "text/xml".parse().expect("a header"));
        response
    })
}

fn assumed(nth: u64, name: &str) -> String {
    let made = credentials(nth);
    let expiration = rfc3339_z::format(OffsetDateTime::now_utc() + Duration::from_secs(3600));
    format!(
        r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROA3XFRBF535PLBIFPI4:{name}</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/genomics/{name}</Arn></AssumedRoleUser><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken><Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult><ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata></AssumeRoleResponse>"#,
        made.access_key_id,
        made.secret_access_key.expose(),
        made.token.expose(),
    )
}

fn identity() -> String {
    r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/credvend</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>123456789012</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata></GetCallerIdentityResponse>"#
        .to_owned()
}
