//! What the SPANK plugin, `credd` and `credvend` say to each other, and nothing that does I/O over a network.
//!
//! | module | between |
//! |---|---|
//! | [`record`] | plugin → `credd`, as files on the node's tmpfs |
//! | [`late`] | plugin → `credd`, likewise, where the job's start left no record |
//! | [`handshake_ticket`] | `credvend` → `credd` → `credvend`: which TLS handshakes are a node's own |
//! | [`local`] | plugin, `credd status` → `credd`, over the node's Unix sockets |
//! | [`endpoint`] | plugin → SDK → `credd`: the URL a job finds in its environment |
//! | [`credentials`] | `credd` → SDK: the container-credentials document and its errors |
//! | `fixtures` | tests: records of a made-up job, with the feature of that name |
//! | [`causes`] | why something failed, in one sentence |
//! | [`claim`] | `credd` → `credvend`: what a node signs with MUNGE |
//! | [`node_api`] | `credd` ↔ `credvend` |
//! | [`no_proxy`] | plugin, `credd env` → the clients of a job: no proxy between them and `credd` |
//! | [`own_api`] | `credd credentials`, `credd env` → `credd`, over the jobs' endpoint |
//! | [`credentials_api_v1`] | head node ↔ `credvend`: the wire format of the IAM Credentials API (v1) |
//!
//! Ids are validated where they enter ([`ids`]); secrets redact themselves ([`secret`]).
#![forbid(unsafe_code)]

pub mod causes;
pub mod claim;
mod cluster_name;
pub mod credentials;
pub mod credentials_api_v1;
pub mod endpoint;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod handshake_ticket;
pub mod hex;
pub mod ids;
pub mod late;
pub mod local;
pub mod no_proxy;
pub mod node_api;
pub mod own_api;
pub mod printable;
pub mod record;
pub mod secret;

pub use ids::{
    ClusterName, Invalid, JobId, NodeName, PartitionName, ProjectId, Region, RoleArn, RoleName, SessionId, Sluid, Uid,
    UserName,
};
pub use secret::{JobToken, Secret, TokenHash};
