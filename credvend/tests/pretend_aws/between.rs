//! Stands between a store and the pretend DynamoDB: counts the calls, and deals the faults that the real one has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How many of a hundred calls suffer each kind of fault.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Refused before anything happens: throttled, or an error of DynamoDB's own.
    pub refused: u32,
    /// Done, but the answer is lost.
    pub lost: u32,
    /// A batch of which nothing was processed; a transaction that met another one.
    pub not_now: u32,
}

/// See the module.
pub struct Between {
    endpoint: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    to: String,
    http: reqwest::Client,
    faults: Mutex<Faults>,
    calls: Mutex<BTreeMap<String, u64>>,
    /// Calls that get through; none after them.
    left: AtomicU64,
    dealt: AtomicU32,
    random: AtomicU64,
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Between {
    /// Before this endpoint.
    pub async fn start(to: &str, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            to: to.to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            faults: Mutex::new(faults),
            calls: Mutex::default(),
            left: AtomicU64::new(u64::MAX),
            dealt: AtomicU32::new(0),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
        });
        let served = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let shared = shared.clone();
                        async move { Ok::<_, std::convert::Infallible>(shared.serve(request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Between { endpoint, shared, task }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
    }

    /// After so many more calls every one is refused at once, as if the store had died.
    pub fn cut_after(&self, calls: u64) {
        self.shared.left.store(calls, Ordering::Relaxed);
    }

    /// Faults so far.
    pub fn dealt(&self) -> u32 {
        self.shared.dealt.load(Ordering::Relaxed)
    }

    /// Calls since the last time, by operation.
    pub fn take_calls(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.shared.calls.lock().unwrap())
    }
}

fn answer(status: u16, body: Value) -> Response<Full<Bytes>> {
    let kind = body["__type"].as_str().unwrap_or("").to_owned();
    let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    response.header("x-amzn-errortype", kind).body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

impl Shared {
    /// The same faults in the same order for the same calls.
    fn roll(&self) -> u32 {
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        (x >> 33) as u32 % 100
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let target = head.headers.get("x-amz-target").and_then(|v| v.to_str().ok()).unwrap_or("");
        let operation = target.rsplit('.').next().unwrap_or("").to_owned();
        *self.calls.lock().unwrap().entry(operation.clone()).or_default() += 1;
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return answer(400, json!({ "__type": "AccessDeniedException", "message": "cut off" }));
        }
        let faults = *self.faults.lock().unwrap();
        let roll = self.roll();
        let dealt = || self.dealt.fetch_add(1, Ordering::Relaxed);
        if roll < faults.refused {
            dealt();
            return match roll % 3 {
                0 => answer(400, json!({ "__type": "ThrottlingException", "message": "slow down" })),
                1 => answer(400, json!({ "__type": "ProvisionedThroughputExceededException", "message": "slow down" })),
                _ => answer(500, json!({ "__type": "InternalServerError", "message": "oops" })),
            };
        }
        if roll < faults.refused + faults.not_now {
            let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
            let late = match operation.as_str() {
                "BatchWriteItem" => Some(json!({ "UnprocessedItems": parsed["RequestItems"] })),
                "BatchGetItem" => Some(json!({ "Responses": {}, "UnprocessedKeys": parsed["RequestItems"] })),
                "TransactWriteItems" => {
                    let count = parsed["TransactItems"].as_array().map_or(0, Vec::len);
                    let mut reasons = vec![json!({ "Code": "None" }); count];
                    reasons[0] = json!({ "Code": "TransactionConflict", "Message": "Transaction is ongoing" });
                    let error = json!({
                        "__type": "TransactionCanceledException",
                        "Message": "Transaction cancelled, please refer cancellation reasons for specific reasons [TransactionConflict]",
                        "CancellationReasons": reasons,
                    });
                    dealt();
                    return answer(400, error);
                }
                _ => None,
            };
            if let Some(body) = late {
                dealt();
                return answer(200, body);
            }
        }
        let url = format!("{}{}", self.to, head.uri.path_and_query().map_or("/", |p| p.as_str()));
        let mut forwarded = self.http.request(head.method, url).body(body);
        for (name, value) in &head.headers {
            if name != "content-length" {
                forwarded = forwarded.header(name, value);
            }
        }
        let Ok(real) = forwarded.send().await else {
            return answer(503, json!({ "__type": "ServiceUnavailable", "message": "not there" }));
        };
        let status = real.status();
        let kind = real.headers().get("x-amzn-errortype").cloned();
        let Ok(body) = real.bytes().await else {
            return answer(503, json!({ "__type": "ServiceUnavailable", "message": "cut off" }));
        };
        if roll >= 100 - faults.lost {
            dealt();
            return answer(503, json!({ "__type": "ServiceUnavailable", "message": "the answer is lost" }));
        }
        let mut response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
        if let Some(kind) = kind {
            response = response.header("x-amzn-errortype", kind);
        }
        response.body(Full::new(body)).unwrap()
    }
}
