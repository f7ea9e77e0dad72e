//! A `ministack` of one test's own, and the requests that a test makes with other people's keys.
#![allow(dead_code, reason = "each test program uses some of it")]

pub mod between;

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_iam::config::SharedCredentialsProvider;
use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use serde_json::{Value, json};

/// An access key.
pub struct Keys(Credentials);

impl Keys {
    pub fn new(id: &str, secret: &str, token: Option<&str>) -> Self {
        Keys(Credentials::new(id, secret, token.map(str::to_owned), None, "test"))
    }

    pub fn provider(&self) -> Credentials {
        self.0.clone()
    }
}

/// credvend's own IAM user.
pub struct ServiceUser {
    pub arn: String,
    pub keys: Keys,
    /// Of the same key, for programs.
    pub id: String,
    pub secret: String,
}

const USER: &str = "credvend-service";

/// Stops when it is dropped.
pub struct PretendAws {
    endpoint: String,
    http: reqwest::Client,
    iam: aws_sdk_iam::Client,
    _process: tokio::process::Child,
    _home: tempfile::TempDir,
}

impl PretendAws {
    pub async fn start() -> Self {
        // No other process uses the provider of TLS; a second test of this process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let home = tempfile::tempdir().unwrap();
        // The interpreter beside it knows its modules.
        let ministack = std::path::Path::new(option_env!("CREDD_MINISTACK_FOUND").unwrap_or("ministack"));
        let process = tokio::process::Command::new(ministack.with_file_name("python3"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../testbed/aws/pretend.py"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", home.path())
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("CLOUDTRAIL_RECORDING", "1")
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let root = Keys::new("test", "test", None);
        let config = aws_sdk_iam::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&endpoint)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(SharedCredentialsProvider::new(root.provider()))
            .build();
        let pretend = PretendAws {
            endpoint,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            iam: aws_sdk_iam::Client::from_conf(config),
            _process: process,
            _home: home,
        };
        let begun = Instant::now();
        while pretend.http.get(&pretend.endpoint).send().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "ministack does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        pretend
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// credvend's user, who may assume every role, and a revoker role that may write inline policies on any.
    pub async fn create_service_user(&self) -> ServiceUser {
        let service = self.create_bare_user().await;
        let any = json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*" }]);
        self.user_policy(any).await;
        self.create_role("revoker", &service.arn, None).await;
        self.role_policy("revoker", json!([{ "Effect": "Allow", "Action": "iam:*", "Resource": "*" }])).await;
        service
    }

    /// credvend's user, who may do nothing.
    pub async fn create_bare_user(&self) -> ServiceUser {
        let user = self.iam.create_user().user_name(USER).send().await.unwrap().user.unwrap();
        let key = self.iam.create_access_key().user_name(USER).send().await.unwrap().access_key.unwrap();
        let keys = Keys::new(&key.access_key_id, &key.secret_access_key, None);
        ServiceUser { arn: user.arn, keys, id: key.access_key_id, secret: key.secret_access_key }
    }

    /// What this policy allows, credvend may do too.
    pub async fn allow_also(&self, policy: &Value) {
        let put = self.iam.put_user_policy().user_name(USER).policy_name("more").policy_document(policy.to_string());
        put.send().await.unwrap();
    }

    /// The revoker that [`PretendAws::create_service_user`] made.
    pub fn revoker() -> credd_protocol::RoleArn {
        "arn:aws:iam::000000000000:role/projects/revoker".parse().unwrap()
    }

    /// DynamoDB as the account's root.
    pub fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(SharedCredentialsProvider::new(Keys::new("test", "test", None).provider()))
            .build();
        aws_sdk_dynamodb::Client::from_conf(config)
    }

    /// IAM as the account's root.
    pub fn iam(&self) -> &aws_sdk_iam::Client {
        &self.iam
    }

    pub async fn forbid_iam_writes(&self) {
        self.role_policy("revoker", json!([{ "Effect": "Allow", "Action": "iam:Get*", "Resource": "*" }])).await;
    }

    pub async fn role_policy(&self, role: &str, statements: Value) {
        let document = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        let put = self.iam.put_role_policy().role_name(role).policy_name("may").policy_document(document);
        put.send().await.unwrap();
    }

    pub async fn user_policy(&self, statements: Value) {
        self.user_document(&json!({ "Version": "2012-10-17", "Statement": statements })).await;
    }

    pub async fn user_document(&self, document: &Value) {
        let put = self.iam.put_user_policy().user_name(USER).policy_name("vend").policy_document(document.to_string());
        put.send().await.unwrap();
    }

    /// A role below a path, with the original trust policy word for word but for the principal; with a bucket it may read
    /// that one, which is made with an object in it. Returns the role's ARN.
    pub async fn create_role(&self, name: &str, principal: &str, bucket: Option<&str>) -> String {
        let trust = format!(
            r#"{{
    "Version": "2012-10-17",
    "Statement": [
        {{
            "Sid": "Statement1",
            "Effect": "Allow",
            "Principal": {{
                "AWS": "{principal}"
            }},
            "Action": "sts:AssumeRole"
        }}
    ]
}}"#
        );
        let create = self.iam.create_role().role_name(name).path("/projects/").assume_role_policy_document(trust);
        let role = create.send().await.unwrap().role.unwrap();
        if let Some(bucket) = bucket {
            let root = Keys::new("test", "test", None);
            for (path, body) in
                [(format!("/{bucket}"), String::new()), (format!("/{bucket}/hello"), format!("data of {bucket}"))]
            {
                let answer = self.signed(&root, "s3", "PUT", &path, &[], body).await;
                assert!(answer.status().is_success(), "{path}: {answer:?}");
            }
            let resource = format!("arn:aws:s3:::{bucket}/*");
            let document = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "s3:GetObject", "Resource": resource }] });
            let put = self.iam.put_role_policy().role_name(name).policy_name("own-bucket");
            put.policy_document(document.to_string()).send().await.unwrap();
        }
        role.arn
    }

    /// The bucket's object as these keys see it, or the HTTP status.
    pub async fn get_object(&self, keys: &Keys, bucket: &str) -> Result<String, u16> {
        let answer = self.signed(keys, "s3", "GET", &format!("/{bucket}/hello"), &[], String::new()).await;
        match answer.status().as_u16() {
            200 => Ok(answer.text().await.unwrap()),
            status => Err(status),
        }
    }

    /// The parameters of the recorded requests with this `Action`.
    pub async fn recorded(&self, action: &str) -> Vec<Value> {
        let root = Keys::new("test", "test", None);
        let target = "com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101.LookupEvents";
        let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target)];
        let answer = self.signed(&root, "cloudtrail", "POST", "/", &headers, "{\"MaxResults\":50}".into()).await;
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let events = answer["Events"].as_array().unwrap().iter();
        let records = events.map(|e| serde_json::from_str::<Value>(e["CloudTrailEvent"].as_str().unwrap()).unwrap());
        records.map(|record| record["requestParameters"].clone()).filter(|p| p["Action"] == action).collect()
    }

    async fn signed(
        &self,
        keys: &Keys,
        service: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> reqwest::Response {
        let url = format!("{}{path}", self.endpoint);
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = keys.provider().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name(service)
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .unwrap();
        let request = SignableRequest::new(method, &url, headers.iter().copied(), SignableBody::Bytes(body.as_bytes()));
        let (instructions, _) = sign(request.unwrap(), &params.into()).unwrap().into_parts();
        let mut request = self.http.request(method.parse().unwrap(), &url);
        for (name, value) in headers.iter().copied().chain(instructions.headers()) {
            request = request.header(name, value);
        }
        request.body(body).send().await.unwrap()
    }
}
