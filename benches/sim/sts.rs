//! An STS that bears so many calls a second, refuses more with `Throttling`, and counts.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use credd_protocol::credentials::rfc3339_z;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;

use crate::world::HERD;

/// How long AWS takes for an answer in its own region, about.
const TAKES: Duration = Duration::from_millis(30);

/// What came so far.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// AssumeRole calls.
    pub calls: usize,
    /// Of these, refused.
    pub throttled: usize,
    /// The most in one second.
    pub busiest: usize,
    /// Names of the large job that were given credentials more than once.
    pub twice: usize,
}

struct State {
    throttle: f64,
    tokens: f64,
    filled: Instant,
    begun: Instant,
    counts: Counts,
    seconds: HashMap<u64, usize>,
    names: HashMap<String, usize>,
    keys: usize,
}

/// One that serves on a thread of its own until the program ends.
#[derive(Clone)]
pub struct Sts {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl Sts {
    /// Starts it.
    pub fn start(throttle: u32) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = State {
            throttle: throttle.into(),
            tokens: throttle.into(),
            filled: Instant::now(),
            begun: Instant::now(),
            counts: Counts::default(),
            seconds: HashMap::new(),
            names: HashMap::new(),
            keys: 0,
        };
        let sts = Sts { state: Arc::new(Mutex::new(state)), address };
        let serving = sts.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(serving.serve(listener)));
        Ok(sts)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came since this was last asked.
    pub fn take(&self) -> Counts {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let busiest = state.seconds.drain().map(|(_, calls)| calls).max().unwrap_or_default();
        let twice = state.names.drain().filter(|(_, times)| *times > 1).count();
        Counts { busiest, twice, ..std::mem::take(&mut state.counts) }
    }

    async fn serve(self, listener: TcpListener) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let sts = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let sts = sts.clone();
                    async move { Ok::<_, Infallible>(sts.answer(request).await) }
                });
                // Whatever ends a connection is the client's matter.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let form = String::from_utf8_lossy(&body).into_owned();
        let parameter = |name: &str| {
            let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().replace("%3A", ":").replace("%2F", "/").replace("%40", "@")
        };
        let (status, xml) = if parameter("Action") == "AssumeRole" {
            self.assume(&parameter("RoleArn"), &parameter("RoleSessionName"))
        } else {
            (200, IDENTITY.to_owned())
        };
        tokio::time::sleep(TAKES).await;
        let mut response = Response::new(Full::new(Bytes::from(xml)));
        *response.status_mut() = status.try_into().expect("a status");
        response.headers_mut().insert("content-type", "text/xml".parse().expect("a header"));
        response
    }

    fn assume(&self, role: &str, name: &str) -> (u16, String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let came = (now - state.filled).as_secs_f64() * state.throttle;
        state.filled = now;
        state.tokens = (state.tokens + came).min(state.throttle);
        state.counts.calls += 1;
        let second = (now - state.begun).as_secs();
        *state.seconds.entry(second).or_default() += 1;
        if state.tokens < 1.0 {
            state.counts.throttled += 1;
            return (400, THROTTLED.to_owned());
        }
        state.tokens -= 1.0;
        // The small jobs come one after the other to the same node, and have its name.
        if role.ends_with(HERD) {
            *state.names.entry(name.to_owned()).or_default() += 1;
        }
        state.keys += 1;
        (200, given(state.keys, role, name))
    }
}

const THROTTLED: &str = "<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>";

const IDENTITY: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/credvend</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"#;

fn given(nth: usize, role: &str, name: &str) -> String {
    let expiration = rfc3339_z::format(OffsetDateTime::now_utc() + Duration::from_secs(3600));
    let role = role.rsplit('/').next().unwrap_or_default();
    // As long as real ones.
    let token = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY".repeat(26);
    format!(
        r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROA3XFRBF535PLBIFPI4:{name}</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/{role}/{name}</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIA{nth:016}</AccessKeyId><SecretAccessKey>wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"#
    )
}
