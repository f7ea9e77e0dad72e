//! A pretend credvend for credd: every job's session is open, every request is answered at once.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use credd_protocol::credentials::Credentials;
use credd_protocol::node_api::{CredentialsResponse, Event, OPEN, OpenRequest, OpenResponse, STREAM};
use credd_protocol::{RoleName, Secret, SessionId};
use hyper::{Response, StatusCode};
use time::OffsetDateTime;

use crate::loopback::{Answer, serve};

/// How long a session token of STS is, about.
const TOKEN_CHARS: usize = 1000;

/// Credentials as large as real ones, good for an hour.
pub fn credentials(nth: u64) -> Credentials {
    let fill =
        |length: usize| Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".chars().cycle().take(length).collect());
    Credentials {
        access_key_id: format!("ASIA{nth:016}"),
        secret_access_key: fill(40),
        token: fill(TOKEN_CHARS),
        expiration: OffsetDateTime::now_utc() + Duration::from_secs(3600),
        role_arn: "arn:aws:iam::123456789012:role/projects/genomics".parse().expect("a role"),
        account_id: Some("123456789012".to_owned()),
    }
}

/// Starts it.
pub fn start() -> Result<SocketAddr> {
    serve(|_, path, body| {
        if path.starts_with(STREAM) {
            let hello = Event::Hello { epoch: "bench".to_owned(), seq: 0 };
            let line = |event: &Event| format!("{}\n", serde_json::to_string(event).expect("plain values"));
            return Response::new(Answer::lines(line(&hello), line(&Event::Ping { seq: 0 })));
        }
        let answer = match path {
            _ if path.split('?').next() == Some(OPEN) => match serde_json::from_slice(body) {
                Ok(request) => serde_json::to_vec(&opened(&request)),
                Err(_) => return refused(),
            },
            _ if path.ends_with("/credentials") => serde_json::to_vec(&CredentialsResponse {
                credentials: credentials(1),
                session_name: "bench-alice-n1".to_owned(),
                issued: OffsetDateTime::now_utc(),
            }),
            _ if path.ends_with("/leave") => Ok(b"{}".to_vec()),
            _ => return refused(),
        };
        let mut response = Response::new(Answer::whole(answer.expect("plain values")));
        response.headers_mut().insert("content-type", "application/json".parse().expect("a header"));
        response
    })
}

fn opened(request: &OpenRequest) -> OpenResponse {
    OpenResponse {
        session: SessionId::random(),
        cluster: crate::node::CLUSTER.parse().expect("a name"),
        job: request.job,
        user: "alice".parse().expect("a name"),
        uid: request.uid,
        project: "genomics".parse().expect("a name"),
        partition: Some("batch".parse().expect("a name")),
        roles: vec![RoleName::default()],
    }
}

fn refused() -> Response<Answer> {
    let mut response = Response::new(Answer::whole("{}"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}
