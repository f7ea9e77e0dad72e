//! Results and refusals as HTTP responses.

use std::convert::Infallible;

use credd_protocol::credentials::ErrorBody;
use credd_protocol::handshake_ticket::{self, HandshakeTicket};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::{Response, StatusCode, header};
use serde::Serialize;

use crate::refusal::Refusal;

/// Every response's body.
pub type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer that is not yet HTTP.
pub struct Reply {
    status: StatusCode,
    content_type: &'static str,
    retry_after: Option<u32>,
    ticket: Option<HandshakeTicket>,
    /// The methods that the path has, where it was asked with another.
    allow: Option<header::HeaderValue>,
    body: AnyBody,
}

impl Reply {
    /// With this node's ticket.
    pub fn with_ticket(self, ticket: Option<HandshakeTicket>) -> Self {
        Reply { ticket, ..self }
    }

    /// As HTTP. Nothing of ours may be kept by anything in between.
    pub fn into_response(self) -> Response<AnyBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        headers.insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(Ok(ticket)) = self.ticket.map(|ticket| header::HeaderValue::from_str(ticket.as_str())) {
            headers.insert(handshake_ticket::HEADER, ticket);
        }
        if let Some(methods) = self.allow {
            headers.insert(header::ALLOW, methods);
        }
        response
    }
}

/// A JSON document.
pub fn json(status: u16, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => raw(status, bytes),
        Err(error) => refused(&Refusal::Internal(format!("an answer cannot be written: {error}")), false),
    }
}

fn raw(status: u16, bytes: Vec<u8>) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Reply {
        status,
        content_type: "application/json",
        retry_after: None,
        ticket: None,
        allow: None,
        body: Full::new(Bytes::from(bytes)).boxed_unsync(),
    }
}

/// One JSON document a line, until the sender stops.
pub fn lines(body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Reply {
    Reply {
        status: StatusCode::OK,
        content_type: "application/x-ndjson",
        retry_after: None,
        ticket: None,
        allow: None,
        body: body.boxed_unsync(),
    }
}

/// A refusal: for an SDK in both of the spellings that SDKs read, else as credd and heads read it.
pub fn refused(refusal: &Refusal, for_sdk: bool) -> Reply {
    let bytes = if for_sdk {
        ErrorBody::new(refusal.code(), &refusal.to_string()).to_json()
    } else {
        serde_json::to_vec(&refusal.to_api_error()).unwrap_or_default()
    };
    let allow = match refusal {
        Refusal::MethodNotAllowed { allow, .. } => header::HeaderValue::from_str(allow).ok(),
        _ => None,
    };
    Reply { retry_after: refusal.retry_after(), allow, ..raw(refusal.status(), bytes) }
}
