//! A browser that holds an administrator's certificate shows it to credvend whatever page asks. So a request whose proof
//! is the connection itself, a certificate or the administrators' socket, must not look like a browser's.
//!
//! A page cannot add an `Authorization` header of another site, so secrets, tokens and MUNGE need none of this.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN, REFERER};
use hyper::{HeaderMap, Method};

use super::Connection;
use super::principal::{Asked, Principal};
use crate::refusal::Refusal;

/// Refuses what a page in somebody's browser can make it send.
///
/// # Errors
/// [`Refusal::BrowserRequest`].
pub fn refuse(
    connection: &Connection,
    principal: &Principal,
    asked: &Asked<'_>,
    host: Option<&str>,
) -> Result<(), Refusal> {
    if let Some(name) = asked.headers.keys().find(|name| from_browser(name)) {
        return Err(refused(format!("it has the header {name}, which browsers send")));
    }
    let (Principal::Admin(_), Connection::Tls { names, .. }) = (principal, connection) else { return Ok(()) };
    // A name of somebody else that leads here (DNS rebinding) makes that somebody's page one of ours.
    let known = |name: &str| {
        name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || host.is_some_and(|own| own.eq_ignore_ascii_case(name))
            || names.iter().any(|own| own.eq_ignore_ascii_case(name))
    };
    match asked_host(asked.headers) {
        Some(name) if known(name) => {}
        name => {
            return Err(refused(format!(
                "its Host {:?} is neither an address nor a name of credvend's certificate or public-url",
                name.unwrap_or_default().chars().take(80).collect::<String>()
            )));
        }
    }
    // What a page may send without asking first has one of three other types.
    if asked.method == Method::POST && !is_json(asked.headers) {
        return Err(refused("an administrator's POST needs Content-Type: application/json".into()));
    }
    Ok(())
}

fn refused(why: String) -> Refusal {
    Refusal::BrowserRequest(why)
}

fn from_browser(name: &HeaderName) -> bool {
    *name == ORIGIN || *name == REFERER || name.as_str().starts_with("sec-fetch-")
}

/// The host of the one `Host` header, without its port.
fn asked_host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    if hosts.next().is_some() {
        return None;
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => Some(name),
        // An IPv6 address without a port ends in its bracket.
        _ => Some(host),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let first = types.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let json = first.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json");
    json && types.next().is_none()
}
