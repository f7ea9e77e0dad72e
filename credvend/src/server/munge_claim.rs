//! A node's proof: a MUNGE credential made by root, whose payload says exactly this request, to exactly this server, now.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use credd_protocol::ClusterName;
use credd_protocol::claim::{Claim, MAX_SKEW_SECONDS};
use munge::Munge;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::refusal::Refusal;
use crate::store::Store;

/// Credentials decoded at once: each holds a blocking thread while munged answers.
const MAX_DECODING: usize = 32;
/// libmunge retries an absent munged for some seconds; who has waited this long is told to come again.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);

/// Verifies credentials with the munged of each cluster.
pub struct MungeVerifier {
    realms: Vec<Realm>,
    store: Arc<dyn Store>,
    slots: Semaphore,
}

/// One munged, and the clusters whose key it has.
struct Realm {
    socket: Option<PathBuf>,
    munge: Munge,
    clusters: Vec<ClusterName>,
}

/// What the claim must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The request's method.
    pub method: &'a str,
    /// Its path and query, as they came.
    pub target: &'a str,
    /// SHA-256 of its body, lower-case hex.
    pub body: String,
    /// SHA-256 of the certificate that the connection was shown, lower-case hex; empty on plain loopback HTTP.
    pub server: &'a str,
    /// The time.
    pub now: OffsetDateTime,
}

impl MungeVerifier {
    /// `clusters` with the socket of their munged; those that share a socket share a key.
    ///
    /// # Errors
    /// A socket path that libmunge cannot take.
    pub fn new(clusters: Vec<(ClusterName, Option<PathBuf>)>, store: Arc<dyn Store>) -> Result<Self, munge::Error> {
        let mut realms: Vec<Realm> = Vec::new();
        for (cluster, socket) in clusters {
            match realms.iter_mut().find(|realm| realm.socket == socket) {
                Some(realm) => realm.clusters.push(cluster),
                None => {
                    let munge = Munge::new(socket.as_deref())?;
                    realms.push(Realm { socket, munge, clusters: vec![cluster] });
                }
            }
        }
        Ok(MungeVerifier { realms, store, slots: Semaphore::new(MAX_DECODING) })
    }

    /// The claim, once everything about it is right. Each credential is good once.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`] with the reason, [`Refusal::UnknownCluster`], or [`Refusal::Unavailable`] without
    /// munged or store.
    pub async fn verify(&self, credential: String, expected: &Expected<'_>) -> Result<Claim, Refusal> {
        let (decoded, realm) = self.decode(credential).await?;
        if decoded.uid != 0 {
            return Err(refused(format!("uid {} made the MUNGE credential; only root speaks for a node", decoded.uid)));
        }
        let claim = Claim::from_json(&decoded.payload).map_err(|e| refused(e.to_string()))?;
        if !realm.clusters.contains(&claim.cluster) {
            let elsewhere = self.realms.iter().any(|other| other.clusters.contains(&claim.cluster));
            return Err(if elsewhere {
                refused(format!("it was made with another cluster's MUNGE key than that of {}", claim.cluster))
            } else {
                Refusal::UnknownCluster(claim.cluster)
            });
        }
        check(&claim, expected)?;
        let expires = OffsetDateTime::from_unix_timestamp(claim.time + MAX_SKEW_SECONDS + 1)
            .map_err(|_| refused("its time is out of range".into()))?;
        if !self.store.remember_nonce(&claim.nonce, expires).await? {
            return Err(refused("its nonce was used before (replay)".into()));
        }
        tracing::debug!(
            cluster = %claim.cluster, node = %claim.node, encoded_at = decoded.encode_addr.map(tracing::field::display), "a node proved itself by MUNGE"
        );
        Ok(claim)
    }

    async fn decode(&self, credential: String) -> Result<(munge::Decoded, &Realm), Refusal> {
        let slot = tokio::time::timeout(SLOT_PATIENCE, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            return Err(Refusal::Unavailable("too many MUNGE credentials wait to be decoded; is munged slow?".into()));
        };
        let mut last = refused("no configured cluster uses MUNGE".into());
        for realm in &self.realms {
            let (munge, text) = (realm.munge.clone(), credential.clone());
            let decoded = tokio::task::spawn_blocking(move || munge.decode(&text))
                .await
                .map_err(|_| Refusal::Internal("MUNGE decoding was cut short".into()))?;
            match decoded {
                Ok(decoded) => return Ok((decoded, realm)),
                // Made with another key, maybe that of the next cluster.
                Err(error @ munge::Error::BadCred(_)) => last = refused(error.to_string()),
                Err(error) if error.is_transient() => last = Refusal::Unavailable(error.to_string()),
                Err(error) => return Err(refused(error.to_string())),
            }
        }
        Err(last)
    }
}

/// Everything about a claim but its nonce's novelty.
fn check(claim: &Claim, expected: &Expected<'_>) -> Result<(), Refusal> {
    if claim.method != expected.method || claim.path != expected.target {
        return Err(refused("it was made for another request (method or path differ)".into()));
    }
    if claim.body != expected.body {
        return Err(refused("it was made for another request (the body differs)".into()));
    }
    if claim.server != expected.server {
        return Err(refused(
            "it was made for a server with another certificate; check the node's pin, and what stands between".into(),
        ));
    }
    let off = i128::from(expected.now.unix_timestamp()) - i128::from(claim.time);
    if off.abs() > i128::from(MAX_SKEW_SECONDS) {
        return Err(refused(format!(
            "it was made {off} s ago, and {MAX_SKEW_SECONDS} s are allowed; check the clocks"
        )));
    }
    if claim.nonce.len() != 32 || !claim.nonce.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(refused("its nonce is not 32 lower-case hex digits".into()));
    }
    Ok(())
}

fn refused(why: String) -> Refusal {
    Refusal::Unauthenticated(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> Claim {
        Claim {
            version: 1,
            cluster: "lab".parse().unwrap(),
            node: "n1".parse().unwrap(),
            method: "POST".into(),
            path: "/node/v1/sessions".into(),
            body: "b".repeat(64),
            server: "c".repeat(64),
            time: 1_000_000,
            nonce: "0123456789abcdef0123456789abcdef".into(),
        }
    }

    fn expected() -> Expected<'static> {
        Expected {
            method: "POST",
            target: "/node/v1/sessions",
            body: "b".repeat(64),
            server: "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
            now: OffsetDateTime::from_unix_timestamp(1_000_000).unwrap(),
        }
    }

    #[test]
    fn every_field_binds() {
        check(&claim(), &expected()).unwrap();
        let changes: [fn(&mut Claim); 11] = [
            |c| c.method = "GET".into(),
            |c| c.method = "post".into(),
            |c| c.path = "/node/v1/sessions?".into(),
            |c| c.path.push('x'),
            |c| c.body = "B".repeat(64),
            |c| c.server = String::new(),
            |c| c.time += MAX_SKEW_SECONDS + 1,
            |c| c.time -= MAX_SKEW_SECONDS + 1,
            |c| c.time = i64::MIN,
            |c| c.nonce = "short".into(),
            |c| c.nonce = c.nonce.to_uppercase(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut claim = claim();
            change(&mut claim);
            assert_eq!(check(&claim, &expected()).unwrap_err().status(), 401, "change {number}");
        }
        let mut late = claim();
        late.time += MAX_SKEW_SECONDS;
        check(&late, &expected()).unwrap();
        // Plain loopback HTTP: the claim must not be one for a certificate.
        let plain = Expected { server: "", ..expected() };
        assert!(check(&claim(), &plain).is_err());
    }

    proptest! {
        #[test]
        fn only_the_exact_request_is_accepted(method in "[A-Z]{3,4}", path in "/[a-z/]{0,20}", time in any::<i64>()) {
            let made = Claim { method: method.clone(), path: path.clone(), time, ..claim() };
            let good = method == "POST" && path == "/node/v1/sessions" && time.abs_diff(1_000_000) <= MAX_SKEW_SECONDS as u64;
            prop_assert_eq!(check(&made, &expected()).is_ok(), good);
        }
    }
}
